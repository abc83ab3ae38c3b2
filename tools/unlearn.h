/* unlearn.h: what removing experts does to texts that were not used to choose them, beside what
   removing random experts does: masks, baselines, measuring. explore_unlearn.h prints it.

   Loss: the texts are cut into windows (texts.h), each evaluated on its own from position 0, and
   all tokens of a window but its first are scored. Bits per byte: nats / ln 2 / bytes, where the
   bytes are those that the scored tokens decode to, as in tools/eval.c. The nats of a window are
   computed by one thread and added in the order of the windows: the number of threads changes
   nothing.

   Masks: the experts of each label (explore_domains.h); or those whose score correlates with the
   numeric score of the texts, or with a label, by at least a threshold; or an edit from a file.
   Baselines for each mask, `draws` times each, drawn in each group from the experts that are active
   on `floor` tokens (those that the rule chose from; the mask's own may be among them):
     number    as many experts as the mask has in the group
     mass      experts whose mean scores (over all tokens) add up to those of the mask
     own-mass  the same for the mean scores on the mask's own label: as much as the mask takes from
               the texts that it is meant to hurt (only with --own-mass)
   A draw is a function of the seed, the mask's name, the kind, the number of the draw.

   --csv keeps a line for each run and label, rewritten after each run. A run is known by a hash of
   the model, the way it is run, the tokens and the experts removed, so --resume takes from it what
   is still true and computes the rest; lines of other runs are kept.                            */
#ifndef TOOL_UNLEARN_H
#define TOOL_UNLEARN_H

#include "corpus.h" /* corpus_random */
#include "explore_domains.h"
#include "texts.h"

#include <pthread.h>

enum { UNLEARN_FILES = 4096, UNLEARN_THRESHOLDS = 16 };

typedef enum unlearn_kind {
    UNLEARN_PLAIN, UNLEARN_MASK, UNLEARN_NUMBER, UNLEARN_MASS, UNLEARN_OWN_MASS, UNLEARN_KINDS
} unlearn_kind;

static const char *const unlearn_kinds[] = {"plain", "mask", "number", "mass", "own-mass"};

typedef struct unlearn_mask {
    char        name[96];
    int32_t     label;   /* that it should hurt, of the statistics; -1 = none */
    int32_t     own;     /* the same of the texts that are measured; -1 = none */
    uint8_t    *member;  /* (n_groups, N*N); 1 = removed */
    monet_edit *edit;    /* from a file: it may do other things; NULL = remove the members */
    int64_t     experts; /* removed */
} unlearn_mask;

typedef struct unlearn_run {
    size_t       mask;
    unlearn_kind kind;
    int32_t      draw;    /* from 1; 0 = not drawn */
    uint64_t     key;
    int64_t      experts;
    double       percent; /* of the routing mass; of the own label's for OWN_MASS */
    double      *nats;    /* of each label; NULL = not measured yet */
} unlearn_run;

typedef struct unlearn_window {
    size_t  at; /* of the tokens */
    int32_t n;
    int32_t label;
    double  nats;
} unlearn_window;

typedef struct unlearn_label { /* what is measured */
    char    *name;
    uint64_t tokens, bytes; /* scored */
} unlearn_label;

typedef struct unlearn {
    explore        *e;
    stats           s;
    domains_rule    rule;
    const char     *match, *csv, *jsonl, *edit, *label, *correlation, *permute;
    int64_t         size, max_windows, draws, seed; /* size of a window */
    bool            own_mass, resume;
    int32_t        *tokens;
    size_t          n_tokens, tokens_room;
    unlearn_window *windows;
    size_t          n_windows, windows_room;
    unlearn_label  *labels;
    size_t          n_labels;
    unlearn_mask   *masks;
    size_t          n_masks, masks_room;
    unlearn_run    *runs; /* the first one is plain */
    size_t          n_runs;
    uint64_t        base; /* hash of the model, the way it is run, and the tokens */
    uint8_t        *member; /* of the run at hand */
    uint32_t       *order;  /* (N*N) */
    tool_buffer     kept;   /* lines of the results file that are of other runs */
    double          thresholds[UNLEARN_THRESHOLDS];
    size_t          n_thresholds;
    tool_progress   progress;
    size_t          done;   /* windows evaluated */
} unlearn;

/* ---- unlearn: texts -------------------------------------------------------------------------- */

/* Bytes of tokens[1..n-1], as tools/eval.c counts them. */
static bool unlearn__bytes(const unlearn *u, const int32_t *tokens, int32_t n, uint64_t *bytes,
                           tool_error *err)
{
    size_t all = 0, first = 0;
    monet_result result =
        monet_tokenizer_decode(u->e->tokenizer, tokens, (size_t)n, NULL, 0, &all);

    if (result != MONET_OK && result != MONET_ERROR_CAPACITY)
        return tool_fail(err, "a token is not in the tokenizer");
    monet_tokenizer_decode(u->e->tokenizer, tokens, 1, NULL, 0, &first);
    *bytes += all - first;
    return true;
}

static bool unlearn__add_window(unlearn *u, const text_window *w, tool_error *err)
{
    unlearn_label *label = &u->labels[w->label];
    unlearn_window *window;

    if (!tool_grow(&u->windows, &u->windows_room, u->n_windows + 1, sizeof *window, err) ||
        !tool_grow(&u->tokens, &u->tokens_room, u->n_tokens + (size_t)w->n, sizeof *u->tokens, err))
        return false;
    window = &u->windows[u->n_windows++];
    window->at = u->n_tokens;
    window->n = w->n;
    window->label = (int32_t)w->label;
    memcpy(u->tokens + u->n_tokens, w->tokens, (size_t)w->n * sizeof *w->tokens);
    u->n_tokens += (size_t)w->n;
    label->tokens += (uint64_t)w->n - 1;
    return unlearn__bytes(u, w->tokens, w->n, &label->bytes, err);
}

static bool unlearn__take_labels(unlearn *u, const texts *t, tool_error *err)
{
    size_t k;

    u->labels = tool_alloc(t->n_labels, sizeof *u->labels, err);
    for (k = 0; u->labels != NULL && k < t->n_labels; k++, u->n_labels++) {
        u->labels[k].name = tool_copy(t->labels[k], strlen(t->labels[k]), err);
        if (u->labels[k].name == NULL) return false;
    }
    return u->labels != NULL;
}

/* All windows of all texts are kept: 4 bytes a token. */
static bool unlearn__read(unlearn *u, const texts_config *config, tool_error *err)
{
    text_window w;
    texts t;
    size_t k;
    bool ok = texts_open(&t, config, err);

    if (!ok) return false;
    ok = unlearn__take_labels(u, &t, err);
    for (w.n = 1; ok && w.n > 0;) {
        ok = texts_next(&t, &w, err);
        if (ok && w.n > 1) ok = unlearn__add_window(u, &w, err);
    }
    texts_close(&t);
    for (k = 0; ok && k < u->n_labels; k++)
        if (u->labels[k].bytes == 0)
            ok = tool_fail(err, "label '%.60s' has no bytes to score", u->labels[k].name);
    return ok && (u->n_windows > 0 || tool_fail(err, "the texts hold nothing to score"));
}

/* ---- unlearn: masks -------------------------------------------------------------------------- */

static size_t unlearn__members(const unlearn *u)
{
    return (size_t)u->s.n_groups * domains_group_size(&u->s);
}

static void unlearn__count(unlearn *u, unlearn_mask *m)
{
    int32_t group;

    m->experts = 0;
    for (group = 0; group < u->s.n_groups; group++)
        m->experts += domains_count(&u->s, group, m->member);
}

/* A new mask without members; the name of the label that it should hurt, or NULL. */
static unlearn_mask *unlearn__new_mask(unlearn *u, const char *label, tool_error *err)
{
    unlearn_mask *m;
    size_t k;

    if (!tool_grow(&u->masks, &u->masks_room, u->n_masks + 1, sizeof *m, err)) return NULL;
    m = &u->masks[u->n_masks];
    memset(m, 0, sizeof *m);
    m->label = m->own = -1;
    for (k = 0; label != NULL && k < u->s.n_labels; k++)
        if (strcmp(u->s.labels[k].name, label) == 0) m->label = (int32_t)k;
    for (k = 0; label != NULL && k < u->n_labels; k++)
        if (strcmp(u->labels[k].name, label) == 0) m->own = (int32_t)k;
    if (label != NULL && m->label < 0 && m->own < 0) {
        tool_fail(err, "neither the statistics nor the texts have a label '%.60s'", label);
        return NULL;
    }
    m->member = tool_alloc(unlearn__members(u), 1, err);
    if (m->member == NULL) return NULL;
    u->n_masks++;
    return m;
}

static bool unlearn__wanted(const unlearn *u, int32_t label)
{
    return u->label == NULL || strcmp(u->label, u->s.labels[label].name) == 0;
}

static bool unlearn__masks_by_rule(unlearn *u, tool_error *err)
{
    int32_t *owner, label;
    unlearn_mask *m;
    bool ok = domains_check_rule(&u->rule, &u->s, err);

    owner = ok ? domains_find(&u->s, &u->rule, err) : NULL;
    ok = owner != NULL;
    for (label = 0; ok && label < (int32_t)u->s.n_labels; label++) {
        if (!unlearn__wanted(u, label)) continue;
        m = unlearn__new_mask(u, u->s.labels[label].name, err);
        ok = m != NULL;
        if (!ok) break;
        snprintf(m->name, sizeof m->name, "%.95s", u->s.labels[label].name);
        domains_mask(&u->s, owner, label, m->member);
        unlearn__count(u, m);
    }
    free(owner);
    return ok;
}

/* Pearson's r of an expert's score with the indicator of a label, or (-1) with the texts' score. */
static double unlearn__r(const stats *s, int32_t group, size_t id, int32_t label)
{
    const int32_t i = (int32_t)(id / (size_t)s->N), j = (int32_t)(id % (size_t)s->N);

    if (label < 0) return stats_pearson(s, group, i, j);
    return stats_label_pearson(s, group, i, j, (size_t)label);
}

static bool unlearn__mask_by_r(unlearn *u, int32_t label, double threshold, tool_error *err)
{
    const size_t size = domains_group_size(&u->s);
    const char *name = label < 0 ? u->label : u->s.labels[label].name;
    unlearn_mask *m = unlearn__new_mask(u, name, err);
    int32_t group;
    size_t id;

    if (m == NULL) return false;
    if (label < 0) snprintf(m->name, sizeof m->name, "r>=%g", threshold);
    else snprintf(m->name, sizeof m->name, "%.60s r>=%g", name, threshold);
    for (group = 0; group < u->s.n_groups; group++)
        for (id = 0; id < size; id++) /* NaN, of an expert that is never used, is not >= */
            m->member[(size_t)group * size + id] =
                unlearn__r(&u->s, group, id, label) >= threshold;
    unlearn__count(u, m);
    return true;
}

/* A number from `low` to `high` at the start of *text, which moves to what comes behind it. */
static TOOL_UNUSED bool unlearn__number(const char **text, const char *option, double low,
                                        double high, double *out, tool_error *err)
{
    char *end;

    *out = strtod(*text, &end);
    if (end == *text || !(*out >= low && *out <= high))
        return tool_fail(err, "--%s: '%.60s' is not a number from %g to %g", option, *text, low,
                         high);
    *text = end;
    return true;
}

/* --correlation 0.2,0.1: with the texts' own scores if the statistics have them, or with labels. */
static bool unlearn__masks_by_r(unlearn *u, tool_error *err)
{
    const int32_t first = u->s.n_scored > 0 ? -1 : 0;
    const int32_t end = first < 0 ? 0 : (int32_t)u->s.n_labels;
    const char *text = u->correlation;
    int32_t label;
    size_t k;
    bool ok = true;

    do {
        if (u->n_thresholds == UNLEARN_THRESHOLDS)
            return tool_fail(err, "--correlation: at most %d thresholds", UNLEARN_THRESHOLDS);
        if (!unlearn__number(&text, "correlation", -1, 1, &u->thresholds[u->n_thresholds++], err))
            return false;
    } while (*text++ == ',');
    if (text[-1] != '\0')
        return tool_fail(err, "--correlation: '%.60s' follows a number", text - 1);
    for (label = first; ok && label < end; label++)
        for (k = 0; ok && k < u->n_thresholds; k++)
            if (label < 0 || unlearn__wanted(u, label))
                ok = unlearn__mask_by_r(u, label, u->thresholds[k], err);
    return ok;
}

/* Whether the edit removes this expert in all layers of its group. */
static bool unlearn__removes(const unlearn *u, const monet_edit *edit, int32_t group, int32_t i,
                             int32_t j)
{
    const int32_t last = explore_last_layer(u->e, group);
    float factor = 1, amount = 0;
    int32_t layer;

    for (layer = explore_first_layer(u->e, group); layer <= last; layer++)
        if (monet_edit_get(edit, layer, i, j, &factor, &amount) != MONET_OK || factor != 0 ||
            amount != 0) return false;
    return true;
}

/* Members are the experts that it removes; what else it does is measured, but has no baseline. */
static bool unlearn__mask_of_edit(unlearn *u, tool_error *err)
{
    const size_t size = domains_group_size(&u->s);
    monet_error why = {{0}, MONET_OK};
    unlearn_mask *m;
    int32_t group;
    size_t id;

    m = unlearn__new_mask(u, u->label, err);
    if (m == NULL) return false;
    if (monet_edit_load(u->e->model, u->edit, &m->edit, &why) != MONET_OK)
        return tool_fail(err, "%s", why.message);
    snprintf(m->name, sizeof m->name, "%.90s", monet_edit_name(m->edit));
    for (group = 0; group < u->s.n_groups; group++)
        for (id = 0; id < size; id++)
            m->member[(size_t)group * size + id] = unlearn__removes(
                u, m->edit, group, (int32_t)(id / (size_t)u->s.N), (int32_t)(id % (size_t)u->s.N));
    unlearn__count(u, m);
    return true;
}

static bool unlearn__make_masks(unlearn *u, tool_error *err)
{
    bool ok = u->edit != NULL ? unlearn__mask_of_edit(u, err) :
              u->correlation != NULL ? unlearn__masks_by_r(u, err) : unlearn__masks_by_rule(u, err);

    if (ok && u->n_masks == 0)
        return tool_fail(err, "the statistics have no label '%.60s'", u->label);
    return ok;
}

/* ---- unlearn: random masks ------------------------------------------------------------------- */

/* The experts that may be drawn, in random order, into u->order. All, if they are fewer than n. */
static size_t unlearn__shuffle(const unlearn *u, int32_t group, int64_t n, uint64_t seed)
{
    const size_t size = domains_group_size(&u->s);
    uint64_t floor = (uint64_t)u->rule.floor;
    size_t id, k, count = 0;

    for (id = 0; id < size; id++)
        if (domains_active(&u->s, group, id) >= floor) u->order[count++] = (uint32_t)id;
    for (id = 0; count < (size_t)n && id < size; id++)
        if (domains_active(&u->s, group, id) < floor) u->order[count++] = (uint32_t)id;
    for (k = count; k > 1; k--) { /* the remainder's bias is below 2^-40 */
        const size_t other = (size_t)(corpus_random(seed, (uint64_t)group, k) % k);
        const uint32_t x = u->order[other];
        u->order[other] = u->order[k - 1];
        u->order[k - 1] = x;
    }
    return count;
}

/* Experts in random order, those left out that are too heavy for what is still missing. */
static void unlearn__draw_mass(const unlearn *u, int32_t group, size_t count, double mass,
                               int32_t label, uint8_t *member)
{
    double left = mass;
    size_t k;

    for (k = 0; k < count; k++) {
        const double m = domains_mean(&u->s, group, u->order[k], label);
        if (m <= 0 || m > left) continue;
        member[u->order[k]] = 1;
        left -= m;
    }
}

/* The mask of a run, into u->member. */
static void unlearn__draw(const unlearn *u, const unlearn_run *run)
{
    const size_t size = domains_group_size(&u->s);
    const unlearn_mask *m = run->kind == UNLEARN_PLAIN ? NULL : &u->masks[run->mask];
    const int32_t label = run->kind == UNLEARN_OWN_MASS ? m->label : -1;
    const uint64_t seed = m == NULL ? 0 : corpus_random((uint64_t)u->seed,
        tool_hash(m->name, strlen(m->name)), (uint64_t)run->kind << 32 | (uint32_t)run->draw);
    int32_t group;
    int64_t k;

    memset(u->member, 0, unlearn__members(u));
    if (run->kind == UNLEARN_MASK) memcpy(u->member, m->member, unlearn__members(u));
    for (group = 0; run->kind > UNLEARN_MASK && group < u->s.n_groups; group++) {
        const int64_t n = domains_count(&u->s, group, m->member);
        const size_t count = unlearn__shuffle(u, group, n, seed);
        uint8_t *member = u->member + (size_t)group * size;
        if (run->kind != UNLEARN_NUMBER)
            unlearn__draw_mass(u, group, count, domains_mass(&u->s, group, m->member, label),
                               label, member);
        else
            for (k = 0; k < n; k++) member[u->order[k]] = 1;
    }
}

/* ---- unlearn: the list of runs --------------------------------------------------------------- */

static uint64_t unlearn__mix(uint64_t hash, const void *bytes, size_t size)
{
    return corpus_random(hash, tool_hash(bytes, size), size);
}

/* Of all that decides what comes out, but for what is removed. */
static uint64_t unlearn__base(const unlearn *u)
{
    const char *kernels = monet_kernels_name(u->e->kernels);
    const int32_t fast = u->e->mode == MONET_FAST;
    uint64_t hash = unlearn__mix(1, kernels, strlen(kernels));
    size_t k;

    hash = unlearn__mix(hash, &fast, sizeof fast);
    for (k = 0; k < monet_model_tensor_count(u->e->model); k++) {
        const monet_tensor *t = monet_model_tensor(u->e->model, k);
        hash = unlearn__mix(hash, t->name, strlen(t->name));
        hash = corpus_random(hash, t->hash, 0);
    }
    for (k = 0; k < u->n_windows; k++) {
        const unlearn_window *w = &u->windows[k];
        hash = unlearn__mix(hash, u->tokens + w->at, (size_t)w->n * sizeof *u->tokens);
        hash = corpus_random(hash, (uint64_t)w->label, 0);
    }
    return hash;
}

/* What a run is known by: runs with equal keys give equal numbers. */
static bool unlearn__key(unlearn *u, unlearn_run *run, tool_error *err)
{
    const monet_edit *edit = run->kind == UNLEARN_MASK ? u->masks[run->mask].edit : NULL;
    size_t size = 0;
    char *text;

    if (edit == NULL) {
        run->key = unlearn__mix(u->base, u->member, unlearn__members(u));
        return true;
    }
    monet_edit_text(edit, NULL, 0, &size);
    text = tool_alloc((uint64_t)size + 1, 1, err);
    if (text == NULL) return false;
    monet_edit_text(edit, text, size, &size);
    run->key = unlearn__mix(u->base, text, size);
    free(text);
    return true;
}

static bool unlearn__add_run(unlearn *u, size_t mask, unlearn_kind kind, int32_t draw,
                             tool_error *err)
{
    unlearn_run *run = &u->runs[u->n_runs++];
    int32_t group;

    run->mask = mask;
    run->kind = kind;
    run->draw = draw;
    unlearn__draw(u, run);
    for (group = 0; group < u->s.n_groups; group++)
        run->experts += domains_count(&u->s, group, u->member);
    run->percent = domains_percent(&u->s, u->member,
                                   kind == UNLEARN_OWN_MASS ? u->masks[mask].label : -1);
    return unlearn__key(u, run, err);
}

/* Masks first, then the first draw of all, and so on: whoever stops early has a whole table. */
static bool unlearn__list(unlearn *u, tool_error *err)
{
    const size_t most = 1 + u->n_masks * (1 + (size_t)u->draws * (UNLEARN_KINDS - UNLEARN_NUMBER));
    int32_t draw, kind;
    size_t mask;
    bool ok;

    u->base = unlearn__base(u);
    u->member = tool_alloc(unlearn__members(u), 1, err);
    u->order = tool_alloc(domains_group_size(&u->s), sizeof *u->order, err);
    u->runs = tool_alloc(most, sizeof *u->runs, err);
    ok = u->member != NULL && u->order != NULL && u->runs != NULL &&
         unlearn__add_run(u, 0, UNLEARN_PLAIN, 0, err);
    for (mask = 0; ok && mask < u->n_masks; mask++)
        ok = unlearn__add_run(u, mask, UNLEARN_MASK, 0, err);
    for (draw = 1; draw <= u->draws; draw++)
        for (mask = 0; mask < u->n_masks; mask++)
            for (kind = UNLEARN_NUMBER; ok && kind < UNLEARN_KINDS; kind++)
                if (kind != UNLEARN_OWN_MASS || (u->own_mass && u->masks[mask].label >= 0))
                    ok = unlearn__add_run(u, mask, (unlearn_kind)kind, draw, err);
    return ok;
}

/* ---- unlearn: the results file --------------------------------------------------------------- */

/* What a run did to a label, in bits per byte. NaN = not known yet. */
static double unlearn__change(const unlearn *u, const unlearn_run *run, size_t label)
{
    const unlearn_run *plain = &u->runs[0];

    if (run->nats == NULL || plain->nats == NULL) return NAN;
    return (run->nats[label] - plain->nats[label]) / log(2.0) / (double)u->labels[label].bytes;
}

static uint64_t unlearn__line_key(const unlearn_run *run, size_t label)
{
    return corpus_random(run->key, label, 0);
}

static void unlearn__put_lines(const unlearn *u, tool_buffer *csv, const unlearn_run *run)
{
    const char *name = run->kind == UNLEARN_PLAIN ? "" : u->masks[run->mask].name;
    size_t k;

    for (k = 0; k < u->n_labels; k++) {
        const unlearn_label *label = &u->labels[k];
        tool_putf(csv, "%016llx,%.17g,%llu,%llu,%.6f,%.6f,%s,%d,%lld,%lld,%.6f,",
                  (unsigned long long)unlearn__line_key(run, k), run->nats[k],
                  (unsigned long long)label->tokens, (unsigned long long)label->bytes,
                  run->nats[k] / log(2.0) / (double)label->bytes, unlearn__change(u, run, k),
                  unlearn_kinds[run->kind], (int)run->draw, (long long)u->seed,
                  (long long)run->experts, run->percent);
        tool_put_csv(csv, name, strlen(name));
        tool_put(csv, ",", 1);
        tool_put_csv(csv, label->name, strlen(label->name));
        tool_put(csv, "\n", 1);
    }
}

/* All runs that are done, and behind them what else the file held. */
static bool unlearn__save(const unlearn *u, tool_error *err)
{
    tool_buffer csv = {NULL, 0, 0, false};
    size_t k;
    bool ok;

    if (u->csv == NULL) return true;
    tool_putf(&csv, "key,nats,tokens,bytes,bits_per_byte,change,kind,draw,seed,experts,"
                    "mass_percent,masked,measured\n");
    for (k = 0; k < u->n_runs; k++)
        if (u->runs[k].nats != NULL) unlearn__put_lines(u, &csv, &u->runs[k]);
    tool_put(&csv, u->kept.data, u->kept.size);
    csv.failed = csv.failed || u->kept.failed;
    ok = tool_write_file(u->csv, &csv, err);
    tool_buffer_free(&csv);
    return ok;
}

/* The nats of a run from the lines of an older file; false: not all of them are there. */
static bool unlearn__find(const unlearn *u, const unlearn_run *run, const char *text, double *nats)
{
    char wanted[32];
    size_t k;

    for (k = 0; k < u->n_labels; k++) {
        const char *line;
        char *end;
        snprintf(wanted, sizeof wanted, "\n%016llx,",
                 (unsigned long long)unlearn__line_key(run, k));
        line = strstr(text, wanted);
        if (line == NULL) return false;
        nats[k] = strtod(line + strlen(wanted), &end);
        if (*end != ',' || !(nats[k] >= 0 && nats[k] < 1e18)) return false;
    }
    return true;
}

/* Whether a line of an older file is of one of the runs of now. */
static bool unlearn__known(const unlearn *u, const char *line)
{
    const uint64_t key = strtoull(line, NULL, 16);
    size_t k, label;

    for (k = 0; k < u->n_runs; k++)
        for (label = 0; label < u->n_labels; label++)
            if (unlearn__line_key(&u->runs[k], label) == key) return true;
    return false;
}

/* Other options, other runs: whoever goes on with a file must not lose what is in it. */
static void unlearn__keep(unlearn *u, const char *text)
{
    const char *line = strchr(text, '\n'), *end;

    for (; line != NULL && (end = strchr(line + 1, '\n')) != NULL; line = end)
        if (!unlearn__known(u, line + 1)) tool_put(&u->kept, line + 1, (size_t)(end - line));
}

static bool unlearn__load(unlearn *u, tool_error *err)
{
    char *text;
    size_t size, k;
    bool ok = true;

    if (u->csv == NULL || !u->resume || access(u->csv, F_OK) != 0) return true;
    if (!tool_read_file(u->csv, EXPLORE_MAX_TEXT, &text, &size, err)) return false;
    for (k = 0; ok && k < u->n_runs; k++) {
        double *nats = tool_alloc(u->n_labels, sizeof *nats, err);
        ok = nats != NULL;
        if (ok && unlearn__find(u, &u->runs[k], text, nats)) u->runs[k].nats = nats;
        else free(nats);
    }
    unlearn__keep(u, text);
    free(text);
    return ok;
}

/* ---- unlearn: measuring ---------------------------------------------------------------------- */

typedef struct unlearn_crew { /* the threads that take windows */
    unlearn         *u;
    pthread_mutex_t  lock;
    size_t           next;   /* window */
    bool             failed;
    tool_error       err;
} unlearn_crew;

typedef struct unlearn_worker {
    unlearn_crew  *crew;
    monet_session *session; /* of one thread */
    pthread_t      thread;
} unlearn_worker;

static void *unlearn__work(void *user)
{
    unlearn_worker *worker = user;
    unlearn_crew *crew = worker->crew;
    unlearn *u = crew->u;
    bool ok = true;

    for (;;) {
        size_t k;
        pthread_mutex_lock(&crew->lock);
        if (!ok && !crew->failed) explore_session_failed(worker->session, &crew->err);
        crew->failed = crew->failed || !ok;
        k = crew->failed || explore_interrupted ? u->n_windows : crew->next;
        crew->next += k < u->n_windows;
        if (k < u->n_windows) tool_progress_update(&u->progress, u->done++);
        pthread_mutex_unlock(&crew->lock);
        if (k >= u->n_windows) return NULL;
        ok = monet_session_loss(worker->session, u->tokens + u->windows[k].at,
                                (size_t)u->windows[k].n, &u->windows[k].nats) == MONET_OK;
    }
}

/* All windows, with the edit, into u->windows. False after Ctrl-C too. */
static bool unlearn__pass(unlearn_crew *crew, unlearn_worker *workers, size_t n,
                          const monet_edit *edit, tool_error *err)
{
    size_t k, started;

    crew->next = 0;
    for (k = 0; k < n; k++)
        if (monet_session_set_edit(workers[k].session, edit) != MONET_OK)
            return explore_session_failed(workers[k].session, err);
    for (started = 1; started < n; started++)
        if (pthread_create(&workers[started].thread, NULL, unlearn__work, &workers[started]) != 0)
            break; /* the others do its share */
    unlearn__work(&workers[0]);
    for (k = 1; k < started; k++) pthread_join(workers[k].thread, NULL);
    for (k = 0; k < n; k++) monet_session_set_edit(workers[k].session, NULL);
    if (crew->failed) return tool_fail(err, "%s", crew->err.message);
    return !explore_interrupted || tool_fail(err, "interrupted");
}

/* Takes the numbers of an earlier run that removed the same. */
static bool unlearn__copy(const unlearn *u, unlearn_run *run)
{
    const unlearn_run *other = u->runs;

    for (; other < run; other++)
        if (other->key == run->key && other->nats != NULL) {
            memcpy(run->nats, other->nats, u->n_labels * sizeof *run->nats);
            return true;
        }
    return false;
}

static bool unlearn__measure(unlearn_crew *crew, unlearn_worker *workers, size_t n,
                             unlearn_run *run, tool_error *err)
{
    unlearn *u = crew->u;
    const unlearn_mask *m = run->kind == UNLEARN_PLAIN ? NULL : &u->masks[run->mask];
    monet_edit *edit = NULL;
    size_t k;
    bool ok = true;

    run->nats = tool_alloc(u->n_labels, sizeof *run->nats, err);
    if (run->nats == NULL) return false;
    if (unlearn__copy(u, run)) {
        u->done += u->n_windows;
    } else {
        unlearn__draw(u, run);
        ok = domains_edit(u->e, &u->s, "mask", u->member, &edit, err) &&
             unlearn__pass(crew, workers, n,
                           m != NULL && run->kind == UNLEARN_MASK && m->edit ? m->edit : edit, err);
        for (k = 0; k < u->n_windows; k++)
            run->nats[u->windows[k].label] += u->windows[k].nats;
    }
    monet_edit_free(edit);
    ok = ok && unlearn__save(u, err);
    if (!ok) {
        free(run->nats);
        run->nats = NULL;
    }
    return ok;
}

/* One session of one thread for each processor: a window is too small to be shared out. */
static bool unlearn__start(unlearn_crew *crew, unlearn_worker *workers, size_t n, tool_error *err)
{
    explore one = *crew->u->e;
    int32_t longest = 2;
    size_t k;

    for (k = 0; k < crew->u->n_windows; k++)
        if (crew->u->windows[k].n > longest) longest = crew->u->windows[k].n;
    one.threads = 1;
    for (k = 0; k < n; k++) {
        workers[k].crew = crew;
        if (!explore_session(&one, longest, EXPLORE_LOGITS, &workers[k].session, err))
            return false;
    }
    return true;
}

/* All runs that are not there yet. */
static bool unlearn__measure_all(unlearn *u, tool_error *err)
{
    const size_t n = (size_t)u->e->threads;
    unlearn_worker *workers = tool_alloc(n, sizeof *workers, err);
    unlearn_crew crew;
    size_t k, missing = 0;
    bool ok;

    memset(&crew, 0, sizeof crew);
    crew.u = u;
    pthread_mutex_init(&crew.lock, NULL);
    for (k = 0; k < u->n_runs; k++) missing += u->runs[k].nats == NULL;
    tool_progress_begin(&u->progress, "measuring", "windows", missing * u->n_windows);
    if (u->e->quiet) tool_progress_silence(&u->progress);
    ok = workers != NULL && unlearn__start(&crew, workers, n, err);
    for (k = 0; ok && k < u->n_runs; k++)
        if (u->runs[k].nats == NULL) ok = unlearn__measure(&crew, workers, n, &u->runs[k], err);
    tool_progress_end(&u->progress);
    for (k = 0; workers != NULL && k < n; k++) monet_session_free(workers[k].session);
    free(workers);
    pthread_mutex_destroy(&crew.lock);
    return ok;
}

#endif /* TOOL_UNLEARN_H */
