/* explore_unlearn.h: `explore unlearn`: tables of what unlearn.h measures, and how many experts
   would correlate with the scores of the texts by chance.                                      */
#ifndef TOOL_EXPLORE_UNLEARN_H
#define TOOL_EXPLORE_UNLEARN_H

#include "unlearn.h"

/* ---- unlearn: tables ------------------------------------------------------------------------- */

typedef struct unlearn_sum { /* over the draws of one kind, or of the one mask */
    int    n, below;                      /* how many; that hurt the own label less than the mask */
    double experts, percent;              /* means */
    double own, others, own_sd, others_sd; /* mean rises and their standard deviations */
} unlearn_sum;

/* Rise on the mask's own label, or NaN, and the mean rise on the others. */
static void unlearn__rises(const unlearn *u, const unlearn_run *run, double *own, double *others)
{
    const int32_t mine = u->masks[run->mask].own;
    size_t k, n = 0;

    *own = NAN;
    *others = 0;
    for (k = 0; k < u->n_labels; k++) {
        const double change = unlearn__change(u, run, k);
        if ((int32_t)k == mine) *own = change;
        else *others += change, n++;
    }
    *others = n > 0 ? *others / (double)n : NAN;
}

static double unlearn__sd(double sum, double sum2, int n)
{
    const double left = sum2 - sum * sum / n;

    return n < 2 ? 0 : sqrt((left > 0 ? left : 0) / (n - 1));
}

static unlearn_sum unlearn__sum_up(const unlearn *u, size_t mask, unlearn_kind kind)
{
    double own, others, own2 = 0, others2 = 0, of_mask = NAN;
    unlearn_sum sum;
    size_t k;

    memset(&sum, 0, sizeof sum);
    for (k = 1; k < u->n_runs && u->runs[0].nats != NULL; k++) {
        const unlearn_run *run = &u->runs[k];
        if (run->mask != mask || run->nats == NULL) continue;
        if (run->kind == UNLEARN_MASK) unlearn__rises(u, run, &of_mask, &others);
        if (run->kind != kind) continue;
        unlearn__rises(u, run, &own, &others);
        sum.n++;
        sum.below += own < of_mask;
        sum.experts += (double)run->experts;
        sum.percent += run->percent;
        sum.own += own, own2 += own * own;
        sum.others += others, others2 += others * others;
    }
    if (sum.n == 0) return sum;
    sum.own_sd = unlearn__sd(sum.own, own2, sum.n);
    sum.others_sd = unlearn__sd(sum.others, others2, sum.n);
    sum.experts /= sum.n, sum.percent /= sum.n, sum.own /= sum.n, sum.others /= sum.n;
    return sum;
}

/* How many labels the mask hurts as much as its own, itself included: 1 = its own most. */
static int unlearn__rank(const unlearn *u, size_t mask)
{
    const unlearn_run *run = &u->runs[1 + mask];
    const int32_t own = u->masks[mask].own;
    int rank = 0;
    size_t k;

    for (k = 0; own >= 0 && k < u->n_labels; k++)
        rank += unlearn__change(u, run, k) >= unlearn__change(u, run, (size_t)own);
    return rank;
}

static void unlearn__put_matrix(const unlearn *u, tool_buffer *out)
{
    size_t k, mask;

    tool_putf(out, "\nbits per byte without an edit, and their changes when the experts of a row "
                   "are removed\n\n%-16s %8s ", "removed", "experts");
    for (k = 0; k < u->n_labels; k++) domains_put_name(out, u->labels[k].name, 10);
    tool_putf(out, "\n%-16s %8d ", "nothing", 0);
    for (k = 0; k < u->n_labels && u->runs[0].nats != NULL; k++)
        tool_putf(out, "%-10.4f ",
                  u->runs[0].nats[k] / log(2.0) / (double)u->labels[k].bytes);
    for (mask = 0; mask < u->n_masks; mask++) {
        const unlearn_run *run = &u->runs[1 + mask];
        tool_putf(out, "\n");
        domains_put_name(out, u->masks[mask].name, 16);
        tool_putf(out, "%8lld ", (long long)u->masks[mask].experts);
        for (k = 0; k < u->n_labels && run->nats != NULL; k++)
            tool_putf(out, "%+.4f%-3s ", unlearn__change(u, run, k),
                      (int32_t)k == u->masks[mask].own ? "*" : "");
    }
    tool_putf(out, "\n");
}

/* One line of the second table; a spread only of draws, - for what there is not. */
static void unlearn__put_sum(const unlearn_sum *sum, const char *name, unlearn_kind kind,
                             tool_buffer *out)
{
    static const char *const what[] = {"", "its experts", "random, number", "random, mass",
                                       "random, own mass"};
    const double mean[2] = {sum->own, sum->others}, sd[2] = {sum->own_sd, sum->others_sd};
    int k;

    domains_put_name(out, name, 16);
    tool_putf(out, "%-16s %8.1f %8.3f %%", what[kind], sum->experts, sum->percent);
    for (k = 0; k < 2; k++) {
        if (mean[k] != mean[k]) tool_putf(out, " %10s %-9s", "-", "");
        else if (kind == UNLEARN_MASK) tool_putf(out, " %+10.5f %-9s", mean[k], "");
        else tool_putf(out, " %+10.5f (%.5f)", mean[k], sd[k]);
    }
    if (sum->others > 0 && sum->own == sum->own)
        tool_putf(out, " %6.1f", sum->own / sum->others);
    else
        tool_putf(out, " %6s", "-");
}

static void unlearn__add_sum(unlearn_sum *all, const unlearn_sum *one)
{
    all->n++;
    all->below += one->below == one->n; /* masks that hurt more than each of their draws */
    all->experts += one->experts, all->percent += one->percent;
    all->own += one->own, all->others += one->others;
    all->own_sd += one->own_sd, all->others_sd += one->others_sd;
}

/* Means over all masks that have a label of their own which is measured. */
static void unlearn__put_means(const unlearn_sum *all, int firsts, tool_buffer *out)
{
    int kind;

    for (kind = UNLEARN_MASK; kind < UNLEARN_KINDS; kind++) {
        unlearn_sum mean = all[kind];
        const double n = mean.n;
        if (mean.n == 0) continue;
        mean.experts /= n, mean.percent /= n, mean.own /= n, mean.others /= n;
        mean.own_sd /= n, mean.others_sd /= n;
        unlearn__put_sum(&mean, kind == UNLEARN_MASK ? "mean" : "", (unlearn_kind)kind, out);
        if (kind == UNLEARN_MASK) tool_putf(out, "  first: %d of %d\n", firsts, mean.n);
        else tool_putf(out, "  above all draws: %d of %d\n", mean.below, mean.n);
    }
}

static void unlearn__put_sums(const unlearn *u, tool_buffer *out)
{
    unlearn_sum all[UNLEARN_KINDS], sum;
    size_t mask;
    int kind, firsts = 0;

    memset(all, 0, sizeof all);
    tool_putf(out, "\nrise in bits per byte on the mask's own label (*) and on the others, beside "
                   "%lld random masks\n(spread: standard deviation over the draws; mass: share of "
                   "all scores; seed %lld)\n\n", (long long)u->draws, (long long)u->seed);
    tool_putf(out, "%-16s %-16s %8s %10s %10s %-9s %10s %-9s %6s\n", "removed", "", "experts",
              "mass", "own", "", "others", "", "ratio");
    for (mask = 0; mask < u->n_masks; mask++)
        for (kind = UNLEARN_MASK; kind < UNLEARN_KINDS; kind++) {
            sum = unlearn__sum_up(u, mask, (unlearn_kind)kind);
            if (sum.n == 0) continue;
            if (u->masks[mask].own >= 0) unlearn__add_sum(&all[kind], &sum);
            unlearn__put_sum(&sum, kind == UNLEARN_MASK ? u->masks[mask].name : "",
                             (unlearn_kind)kind, out);
            if (u->masks[mask].own >= 0 && kind == UNLEARN_MASK)
                tool_putf(out, "  rank %d of %d", unlearn__rank(u, mask), (int)u->n_labels);
            else if (u->masks[mask].own >= 0)
                tool_putf(out, "  above %d of %d draws", sum.below, sum.n);
            tool_putf(out, "\n");
            firsts += kind == UNLEARN_MASK && unlearn__rank(u, mask) == 1;
        }
    unlearn__put_means(all, firsts, out);
}

/* A number, or null. */
static void unlearn__put_number(tool_buffer *out, const char *key, double value)
{
    if (value == value) tool_putf(out, ",\"%s\":%.9g", key, value);
    else tool_putf(out, ",\"%s\":null", key);
}

static void unlearn__put_json(const unlearn *u, size_t mask, tool_buffer *out)
{
    const unlearn_mask *m = &u->masks[mask];
    int kind;
    size_t k;

    tool_putf(out, "{\"removed\":");
    explore_put_json(out, m->name, strlen(m->name));
    tool_putf(out, ",\"experts\":%lld,\"seed\":%lld,\"rank\":%d,\"own_label\":",
              (long long)m->experts, (long long)u->seed, unlearn__rank(u, mask));
    if (m->own < 0) tool_putf(out, "null");
    else explore_put_json(out, u->labels[m->own].name, strlen(u->labels[m->own].name));
    tool_putf(out, ",\"labels\":[");
    for (k = 0; k < u->n_labels; k++) {
        tool_putf(out, "%s{\"label\":", k > 0 ? "," : "");
        explore_put_json(out, u->labels[k].name, strlen(u->labels[k].name));
        unlearn__put_number(out, "plain_bits_per_byte",
                            u->runs[0].nats[k] / log(2.0) / (double)u->labels[k].bytes);
        unlearn__put_number(out, "change", unlearn__change(u, &u->runs[1 + mask], k));
        tool_putf(out, "}");
    }
    tool_putf(out, "]");
    for (kind = UNLEARN_MASK; kind < UNLEARN_KINDS; kind++) {
        const unlearn_sum sum = unlearn__sum_up(u, mask, (unlearn_kind)kind);
        if (sum.n == 0) continue;
        tool_putf(out, ",\"%s\":{\"runs\":%d", unlearn_kinds[kind], sum.n);
        unlearn__put_number(out, "experts", sum.experts);
        unlearn__put_number(out, "mass_percent", sum.percent);
        unlearn__put_number(out, "own", sum.own);
        unlearn__put_number(out, "own_sd", sum.own_sd);
        unlearn__put_number(out, "others", sum.others);
        unlearn__put_number(out, "others_sd", sum.others_sd);
        tool_putf(out, ",\"below_mask\":%d}", sum.below);
    }
    tool_putf(out, "}\n");
}

/* An object for each mask that was measured. */
static bool unlearn__save_json(const unlearn *u, tool_error *err)
{
    tool_buffer out = {NULL, 0, 0, false};
    size_t mask;
    bool ok;

    if (u->jsonl == NULL) return true;
    for (mask = 0; mask < u->n_masks; mask++)
        if (u->runs[1 + mask].nats != NULL) unlearn__put_json(u, mask, &out);
    ok = tool_write_file(u->jsonl, &out, err);
    tool_buffer_free(&out);
    return ok;
}

/* ---- unlearn: what correlates by chance ------------------------------------------------------
   A second pass over the scored texts that the statistics are of, with the scores permuted over the
   documents (all tokens of a document share one): how many experts reach a threshold then? Set 0
   keeps the scores as they are and has to give the correlations of the statistics.             */

typedef struct unlearn_chance {
    double *scores; /* (n_documents), as they come; while counting, of one set after the other */
    size_t  n_documents, room;
    stats  *sets;   /* (n_sets) */
    size_t  n_sets, n_made;
} unlearn_chance;

/* (n_sets,n_documents) scores, and statistics of each set. They need neither labels nor tokens. */
static bool unlearn__chance_start(unlearn *u, unlearn_chance *c, tool_error *err)
{
    static const char *const label = "all";
    const size_t n = c->n_documents;
    stats_config config;
    size_t d;

    memset(&config, 0, sizeof config);
    config.top = config.sample = config.context = 1;
    config.n_threads = (int32_t)u->e->threads;
    c->n_sets = (size_t)u->draws + 1;
    c->sets = tool_alloc(c->n_sets, sizeof *c->sets, err);
    if (c->sets == NULL || !tool_grow(&c->scores, &c->room, (uint64_t)c->n_sets * n,
                                      sizeof *c->scores, err)) return false;
    for (; c->n_made < c->n_sets; c->n_made++) {
        double *y = c->scores + c->n_made * n;
        if (!stats_create(&c->sets[c->n_made], u->e->model, &config, &label, 1, err)) return false;
        if (c->n_made == 0) continue;
        memcpy(y, c->scores, n * sizeof *y);
        for (d = n; d > 1; d--) {
            const size_t other = (size_t)(corpus_random((uint64_t)u->seed, c->n_made, d) % d);
            const double x = y[other];
            y[other] = y[d - 1];
            y[d - 1] = x;
        }
    }
    return true;
}

/* Adds a window to each set, with the score that its document has there. */
static bool unlearn__chance_add(unlearn_chance *c, monet_session *session, text_window *w,
                                size_t document, tool_error *err)
{
    bool ok = true;
    size_t k;

    if (monet_session_rewind(session, 0) != MONET_OK ||
        monet_session_eval(session, w->tokens, (size_t)w->n) != MONET_OK)
        return explore_session_failed(session, err);
    w->label = 0;
    for (k = 0; ok && k < c->n_sets; k++) {
        w->score = c->scores[k * c->n_documents + document];
        ok = stats_add(&c->sets[k], session, w, err);
    }
    return ok;
}

/* Reads all scored windows; without a session only the score of each document. */
static bool unlearn__chance_pass(unlearn *u, unlearn_chance *c, const texts_config *config,
                                 monet_session *session, tool_error *err)
{
    uint64_t last = 0;
    size_t n = 0; /* documents */
    text_window w;
    texts t;
    bool ok = texts_open(&t, config, err);

    if (!ok) return false;
    tool_progress_begin(&u->progress, "permuting", NULL, t.bytes);
    if (u->e->quiet) tool_progress_silence(&u->progress);
    for (w.n = 1; ok && w.n > 0;) {
        ok = texts_next(&t, &w, err) && (!explore_interrupted || tool_fail(err, "interrupted"));
        if (!ok || w.n == 0 || !w.has_score) continue;
        n += n == 0 || w.document != last;
        last = w.document;
        if (session == NULL) {
            ok = tool_grow(&c->scores, &c->room, n, sizeof *c->scores, err);
            if (ok) c->scores[n - 1] = w.score;
            c->n_documents = n;
        } else {
            ok = (n <= c->n_documents || tool_fail(err, "the texts have changed")) &&
                 unlearn__chance_add(c, session, &w, n - 1, err);
        }
        tool_progress_update(&u->progress, t.bytes_done);
    }
    tool_progress_end(&u->progress);
    texts_close(&t);
    return ok;
}

static bool unlearn__chance_check(const unlearn *u, const unlearn_chance *c, tool_error *err)
{
    const size_t size = domains_group_size(&u->s);
    size_t k;
    bool same = c->sets[0].n_scored == u->s.n_scored;

    for (k = 0; same && k < unlearn__members(u); k++) {
        const double a = unlearn__r(&c->sets[0], (int32_t)(k / size), k % size, -1);
        const double b = unlearn__r(&u->s, (int32_t)(k / size), k % size, -1);
        same = a == a ? fabs(a - b) < 1e-6 : b != b;
    }
    return same || tool_fail(err, "--permute: %.200s is not what the statistics were made of, or "
                             "--window is another", u->permute);
}

/* How many experts of a set reach the threshold; *most: the largest r of all. */
static long long unlearn__reach(const unlearn *u, const stats *set, double threshold, double *most)
{
    const size_t size = domains_group_size(&u->s);
    long long n = 0;
    size_t k;

    for (*most = -1, k = 0; k < unlearn__members(u); k++) {
        const double r = unlearn__r(set, (int32_t)(k / size), k % size, -1);
        n += r >= threshold;
        if (r > *most) *most = r;
    }
    return n;
}

static void unlearn__put_chance(const unlearn *u, const unlearn_chance *c, tool_buffer *out)
{
    double most = 0;
    size_t t, k;

    tool_putf(out, "\nexperts whose score correlates with that of the texts, and with scores "
                   "permuted over %llu documents (seed %lld)\n\n%-10s %8s   permuted\n",
              (unsigned long long)c->n_documents, (long long)u->seed, "threshold", "experts");
    for (t = 0; t < u->n_thresholds; t++) {
        tool_putf(out, "r >= %-5g", u->thresholds[t]);
        for (k = 0; k < c->n_sets; k++)
            tool_putf(out, k == 0 ? " %8lld  " : " %lld",
                      unlearn__reach(u, &c->sets[k], u->thresholds[t], &most));
        tool_putf(out, "\n");
    }
    tool_putf(out, "%-10s", "largest r");
    for (k = 0; k < c->n_sets; k++) {
        unlearn__reach(u, &c->sets[k], 1, &most);
        tool_putf(out, k == 0 ? " %8.3f  " : " %.3f", most);
    }
    tool_putf(out, "\n");
}

static bool unlearn__permute(unlearn *u, tool_buffer *out, tool_error *err)
{
    texts_config config;
    unlearn_chance c;
    monet_session *session = NULL;
    size_t k;
    bool ok;

    if (u->permute == NULL) return true;
    if (u->correlation == NULL || u->s.n_scored == 0)
        return tool_fail(err, "--permute: needs --correlation, and statistics of scored texts");
    memset(&c, 0, sizeof c);
    memset(&config, 0, sizeof config);
    config.paths = &u->permute;
    config.n_paths = 1;
    config.window = (int32_t)u->size;
    config.tokenizer = u->e->tokenizer;
    config.stop = &explore_interrupted;
    ok = unlearn__chance_pass(u, &c, &config, NULL, err) && unlearn__chance_start(u, &c, err) &&
         explore_session(u->e, config.window, EXPLORE_ROUTING, &session, err) &&
         unlearn__chance_pass(u, &c, &config, session, err) && unlearn__chance_check(u, &c, err);
    if (ok) unlearn__put_chance(u, &c, out);
    for (k = 0; k < c.n_made; k++) stats_free(&c.sets[k]);
    free(c.sets);
    free(c.scores);
    monet_session_free(session);
    return ok;
}

/* ---- unlearn --------------------------------------------------------------------------------- */

static void unlearn__free(unlearn *u)
{
    size_t k;

    for (k = 0; k < u->n_masks; k++) {
        monet_edit_free(u->masks[k].edit);
        free(u->masks[k].member);
    }
    for (k = 0; k < u->n_runs; k++) free(u->runs[k].nats);
    for (k = 0; k < u->n_labels; k++) free(u->labels[k].name);
    free(u->masks), free(u->runs), free(u->labels), free(u->tokens), free(u->windows);
    free(u->member), free(u->order);
    tool_buffer_free(&u->kept);
    stats_free(&u->s);
    explore_close(u->e);
}

static void unlearn__put_head(const unlearn *u, tool_buffer *out)
{
    size_t k;

    tool_putf(out, "%llu windows of up to %lld tokens, each from position 0; all of their tokens "
                   "but the first are scored\n", (unsigned long long)u->n_windows,
              (long long)u->size);
    for (k = 0; k < u->n_labels; k++) {
        domains_put_name(out, u->labels[k].name, 16);
        tool_putf(out, "%10llu tokens %10llu bytes\n", (unsigned long long)u->labels[k].tokens,
                  (unsigned long long)u->labels[k].bytes);
    }
}

/* After Ctrl-C the tables show what was measured until then. */
static bool unlearn__report(unlearn *u, explore_output *out, tool_error *err)
{
    bool ok = unlearn__measure_all(u, err);

    if (!ok && !explore_interrupted) return false;
    if (u->runs[0].nats != NULL) {
        unlearn__put_matrix(u, &out->text);
        unlearn__put_sums(u, &out->text);
        ok = unlearn__save_json(u, err) && ok;
    }
    return ok;
}

static bool unlearn__run(unlearn *u, const char **files, size_t n_files, tool_error *err)
{
    explore_output out;
    texts_config config;
    bool ok, opened;

    memset(&config, 0, sizeof config);
    memset(&out, 0, sizeof out);
    ok = explore_open(u->e, files[0], err) && stats_load(&u->s, u->e->model, files[1], err);
    config.paths = files + 2;
    config.n_paths = n_files - 2;
    config.match = u->match;
    config.window = (int32_t)u->size;
    config.max_windows = u->max_windows;
    config.tokenizer = u->e->tokenizer;
    config.stop = &explore_interrupted;
    ok = ok && unlearn__read(u, &config, err) && unlearn__make_masks(u, err) &&
         unlearn__list(u, err) && unlearn__load(u, err);
    opened = ok && explore_output_open(u->e, &out, err);
    ok = opened;
    if (ok) {
        unlearn__put_head(u, &out.text);
        ok = unlearn__permute(u, &out.text, err) && explore_flush(u->e, &out, err) &&
             unlearn__report(u, &out, err);
    }
    if (opened) ok = explore_output_close(u->e, &out, ok || explore_interrupted, err) && ok;
    unlearn__free(u);
    return ok;
}

static TOOL_UNUSED int explore_unlearn(explore *e, int argc, char **argv)
{
    static const explore_command about = {"unlearn", "MODEL STATS TEXTS...",
        "Removes the experts of each label (see explore domains) and measures how much worse the\n"
        "model then predicts the texts of every label, beside random masks of as many experts\n"
        "and of the same routing mass. TEXTS: not those that the statistics are of.",
        "  explore unlearn M.monet M.stats texts --match '*.valid.txt' --max-windows 64 \\\n"
        "      --csv unlearn.csv --resume"};
    static const char *files[UNLEARN_FILES];
    size_t n_files;
    int status;
    tool_error err = {{0}};
    unlearn u;
    const run_option options[] = {
        {"match", RUN_TEXT, (void *)&u.match, 0, 0, "PATTERN", "names of files in folders"},
        {"window", RUN_WHOLE, &u.size, 2, INT32_MAX - 1, "N", "tokens of a window (default: 256)"},
        {"max-windows", RUN_WHOLE, &u.max_windows, 0, INT64_MAX - 1, "N",
         "at most N windows of each file (0: all)"},
        DOMAINS_RULE_OPTIONS(&u.rule),
        {"label", RUN_TEXT, (void *)&u.label, 0, 0, "LABEL",
         "remove the experts of this one only; with scores or --edit: what it should hurt"},
        {"correlation", RUN_TEXT, (void *)&u.correlation, 0, 0, "R,R...",
         "remove by correlation of at least R with the score of the texts, or with a label"},
        {"permute", RUN_TEXT, (void *)&u.permute, 0, 0, "TEXTS",
         "what the statistics are of: how many experts correlate with permuted scores?"},
        {"edit", RUN_TEXT, (void *)&u.edit, 0, 0, "FILE",
         "measure this edit"},
        {"draws", RUN_WHOLE, &u.draws, 0, 10000, "N", "random masks of each kind (default: 5)"},
        {"own-mass", RUN_FLAG, &u.own_mass, 0, 0, NULL,
         "also random masks of the same routing mass on the mask's own label"},
        {"seed", RUN_WHOLE, &u.seed, 0, INT64_MAX - 1, "N", "of the draws (default: 1)"},
        {"csv", RUN_TEXT, (void *)&u.csv, 0, 0, "FILE", "every run and label, after each run"},
        {"resume", RUN_FLAG, &u.resume, 0, 0, NULL, "take runs from that file, do the rest"},
        {"jsonl", RUN_TEXT, (void *)&u.jsonl, 0, 0, "FILE", "an object for each mask"},
        EXPLORE_OUT(e), EXPLORE_OPTIONS(e)};

    memset(&u, 0, sizeof u);
    u.e = e;
    u.size = 256;
    u.rule.floor = 10;
    u.draws = 5;
    u.seed = 1;
    if (!explore_arguments(e, &about, options, sizeof options / sizeof options[0], argc, argv,
                           files, 3, UNLEARN_FILES, &n_files, &status)) return status;
    return explore_end(e, about.name, unlearn__run(&u, files, n_files, &err), &err);
}

#endif /* TOOL_EXPLORE_UNLEARN_H */
