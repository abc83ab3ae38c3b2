/* explore_stats.h: explore stats: streams texts through the model and counts what each expert does.

   The file is saved every minute, at Ctrl-C and at the end; --resume goes on where it ends, to the
   same bytes as without a break.                                                               */
#ifndef TOOL_EXPLORE_STATS_H
#define TOOL_EXPLORE_STATS_H

#include "explore_common.h"
#include "stats.h"

typedef struct stats_settings {
    const char *match;
    int64_t     window, max_windows, top, sample, context, memory, autosave;
    bool        resume, merge, summary;
} stats_settings;

typedef struct stats_pass {
    explore              *e;
    const stats_settings *set;
    stats                 s;
    texts                 t;
    monet_session        *session;
    tool_progress         progress;
    char                  label[64];              /* of the progress */
    uint64_t              tokens, first;          /* of this run; how far it was before */
    double                start, eval_seconds, saved;
} stats_pass;

/* ---- stats: the summary ---------------------------------------------------------------------- */

static TOOL_UNUSED void pass__put_labels(tool_buffer *out, const stats *s)
{
    size_t k;

    for (k = 0; k < s->n_labels; k++) {
        const char *name = s->labels[k].name; /* printable: stats.h takes no other */
        int width = explore_width(name, strlen(name));
        tool_putf(out, "  ");
        tool_put(out, name, strlen(name));
        tool_putf(out, "%*s %10llu tokens\n", width < 24 ? 24 - width : 0, "",
                  (unsigned long long)s->labels[k].n_tokens);
    }
}

static TOOL_UNUSED void pass__put_group(const explore *e, tool_buffer *out, const stats *s,
                                         int32_t group)
{
    char layers[EXPLORE_NAME];
    uint64_t active = 0, never = 0, rare = 0;
    int32_t i, j;

    for (i = 0; i < s->N; i++)
        for (j = 0; j < s->N; j++) {
            uint64_t count = stats_expert(s, group, i, j)->count;
            active += count;
            never += count == 0;
            rare += (double)count < 1e-4 * (double)s->n_tokens;
        }
    tool_putf(out, "  G%d (%s): %.1f experts active on a token; of %lld, %llu never, %llu on less "
              "than 0.01 %%\n", (int)group + 1, explore_layers(e, layers, group),
              s->n_tokens > 0 ? (double)active / (double)s->n_tokens : 0.0,
              (long long)s->N * s->N, (unsigned long long)never, (unsigned long long)rare);
}

/* What a statistics file holds, in a few lines. */
static TOOL_UNUSED void pass__put_summary(const explore *e, tool_buffer *out, const stats *s)
{
    int32_t g;

    tool_putf(out, "%llu tokens in %llu windows, %zu labels",
              (unsigned long long)s->n_tokens, (unsigned long long)s->windows, s->n_labels);
    if (s->n_scored > 0)
        tool_putf(out, ", %llu tokens with a score", (unsigned long long)s->n_scored);
    tool_put(out, "\n", 1);
    pass__put_labels(out, s);
    for (g = 0; g < s->n_groups; g++) pass__put_group(e, out, s, g);
}

static TOOL_UNUSED bool pass__show_summary(explore *e, const stats *s, const stats_pass *pass,
                                            tool_error *err)
{
    explore_output out;
    double seconds;

    memset(&out, 0, sizeof out); /* --out is the statistics file: this goes to standard output */
    pass__put_summary(e, &out.text, s);
    if (pass != NULL && pass->tokens > 0) {
        seconds = tool_seconds() - pass->start;
        tool_putf(&out.text, "%llu tokens in %.1f s: %.0f tokens/s (the model alone: %.0f)\n",
                  (unsigned long long)pass->tokens, seconds, (double)pass->tokens / seconds,
                  (double)pass->tokens / pass->eval_seconds);
    }
    return explore_output_close(e, &out, true, err);
}

/* ---- stats: the pass ------------------------------------------------------------------------- */

static TOOL_UNUSED bool pass__open_texts(stats_pass *p, const char **paths, size_t n,
                                          tool_error *err)
{
    texts_config config;

    memset(&config, 0, sizeof config);
    config.paths = paths;
    config.n_paths = n;
    config.match = p->set->match;
    config.window = (int32_t)p->set->window;
    config.max_windows = p->set->max_windows;
    config.tokenizer = p->e->tokenizer;
    config.stop = &explore_interrupted;
    return texts_open(&p->t, &config, err);
}

static TOOL_UNUSED bool pass__resume(stats_pass *p, const stats_config *config, tool_error *err)
{
    if (!stats_load_limited(&p->s, p->e->model, p->e->out, config->max_bytes, err)) return false;
    if (p->s.pass != p->t.hash)
        return tool_fail(err, "%.300s: was made from other texts or with other options: --resume "
                         "goes on with the same only", p->e->out);
    if (p->s.config.top != config->top || p->s.config.sample != config->sample ||
        p->s.config.context != config->context)
        return tool_fail(err, "%.300s: was made with --top %d --sample %d --context %d", p->e->out,
                         (int)p->s.config.top, (int)p->s.config.sample, (int)p->s.config.context);
    p->s.config.n_threads = config->n_threads;
    return texts_seek(&p->t, p->s.windows, err);
}

/* New statistics, or with --resume those of the file, if there is one. */
static TOOL_UNUSED bool pass__begin(stats_pass *p, tool_error *err)
{
    stats_config config;

    memset(&config, 0, sizeof config);
    config.top = (int32_t)p->set->top;
    config.sample = (int32_t)p->set->sample;
    config.context = (int32_t)p->set->context;
    config.n_threads = (int32_t)p->e->threads;
    config.max_bytes = (uint64_t)p->set->memory * 1000000;
    if (p->set->resume && access(p->e->out, F_OK) == 0) return pass__resume(p, &config, err);
    if (!stats_create(&p->s, p->e->model, &config, (const char *const *)p->t.labels,
                      p->t.n_labels, err)) return false;
    p->s.pass = p->t.hash;
    return true;
}

static TOOL_UNUSED bool pass__window(stats_pass *p, const text_window *w, tool_error *err)
{
    double start = tool_seconds();

    if (monet_session_rewind(p->session, 0) != MONET_OK ||
        monet_session_eval(p->session, w->tokens, (size_t)w->n) != MONET_OK)
        return explore_session_failed(p->session, err);
    p->eval_seconds += tool_seconds() - start;
    p->tokens += (uint64_t)w->n;
    return stats_add(&p->s, p->session, w, err);
}

/* How far it is: in bytes, or with --max-windows, which leaves most of a file out, in tokens. */
static TOOL_UNUSED uint64_t pass__done(const stats_pass *p)
{
    return p->set->max_windows > 0 ? p->s.n_tokens : p->t.bytes_done;
}

/* What pass__done will be at the end, about: there are some 3 bytes in a token. */
static TOOL_UNUSED uint64_t pass__total(const stats_pass *p)
{
    uint64_t most, total = 0;
    size_t k;

    if (p->set->max_windows == 0) return p->t.bytes;
    if (!tool_mul((uint64_t)p->set->max_windows, (uint64_t)p->set->window, &most))
        most = UINT64_MAX;
    for (k = 0; k < p->t.n_files; k++) {
        uint64_t tokens = p->t.files[k].size / 3;
        total += tokens < most ? tokens : most;
    }
    return total;
}

static TOOL_UNUSED void pass__begin_progress(stats_pass *p)
{
    uint64_t total = pass__total(p);

    p->first = pass__done(p);
    p->start = p->saved = tool_seconds();
    tool_progress_begin(&p->progress, p->label, p->set->max_windows > 0 ? "tokens" : NULL,
                        total > p->first ? total - p->first : 0);
    if (p->e->quiet) tool_progress_silence(&p->progress);
}

static TOOL_UNUSED void pass__tell(stats_pass *p)
{
    double seconds = tool_seconds() - p->start;

    snprintf(p->label, sizeof p->label, "%.0f tokens/s", (double)p->tokens / (seconds + 1e-9));
    tool_progress_update(&p->progress, pass__done(p) - p->first);
}

/* All windows that are left. A failure behind Ctrl-C is the end that it asked for. */
static TOOL_UNUSED bool pass__count(stats_pass *p, tool_error *err)
{
    text_window w;
    bool ok = true;

    pass__begin_progress(p);
    while (ok && !explore_interrupted) {
        if (!texts_next(&p->t, &w, err)) {
            ok = explore_interrupted != 0;
            break;
        }
        if (w.n == 0) break;
        ok = pass__window(p, &w, err);
        if (ok && tool_seconds() - p->saved >= (double)p->set->autosave) {
            ok = stats_save(&p->s, p->e->out, err);
            p->saved = tool_seconds();
        }
        pass__tell(p);
    }
    tool_progress_end(&p->progress);
    return ok;
}

static TOOL_UNUSED bool pass__run(stats_pass *p, const char **paths, size_t n, tool_error *err)
{
    bool ok = pass__open_texts(p, paths, n, err);

    ok = ok && pass__begin(p, err) &&
         explore_session(p->e, (int32_t)p->set->window, EXPLORE_ROUTING, &p->session, err) &&
         pass__count(p, err) && stats_save(&p->s, p->e->out, err);
    if (ok && explore_interrupted)
        fprintf(stderr, "explore stats: stopped: %s holds %llu windows; the same with --resume "
                "goes on\n", p->e->out, (unsigned long long)p->s.windows);
    else if (ok && !p->e->quiet)
        ok = pass__show_summary(p->e, &p->s, p, err);
    monet_session_free(p->session);
    texts_close(&p->t);
    return ok;
}

/* ---- stats: files that are there ------------------------------------------------------------- */

static TOOL_UNUSED bool pass__merge_files(stats_pass *p, const char **paths, size_t n,
                                           tool_error *err)
{
    const uint64_t most = (uint64_t)p->set->memory * 1000000;
    stats other;
    size_t k;
    bool ok = stats_load_limited(&p->s, p->e->model, paths[0], most, err);

    for (k = 1; ok && k < n; k++) {
        ok = stats_load_limited(&other, p->e->model, paths[k], most, err);
        if (!ok) break;
        ok = stats_merge(&p->s, &other, err) || tool_prefix(err, paths[k]);
        stats_free(&other);
    }
    ok = ok && (p->set->summary || stats_save(&p->s, p->e->out, err));
    return ok && ((p->e->quiet && !p->set->summary) || pass__show_summary(p->e, &p->s, NULL, err));
}

static TOOL_UNUSED int explore_stats(explore *e, int argc, char **argv)
{
    static const explore_command about = {
        "stats", "MODEL TEXTS... --out FILE",
        "Reads texts through the model in one pass and counts for every expert: how often it is\n"
        "active, its mean score per label, its strongest tokens. TEXTS are files and folders; the\n"
        "label of a file is its name up to the first dot. A .jsonl file has a document a line:\n"
        "{\"text\": ..., \"label\": ..., \"score\": ...}. Saved every minute and at Ctrl-C. It\n"
        "ends with a summary; --quiet leaves that out.",
        "  explore stats examples/monet-4m.monet texts/ --match '*.train.txt' --out all.stats\n"
        "  explore stats examples/monet-4m.monet a.stats b.stats --merge --out all.stats\n"
        "  explore stats examples/monet-4m.monet all.stats --summary"};
    stats_settings set = {NULL, 256, 0, 20, 20, 12, 4000, 60, false, false, false};
    const run_option options[] = {
        {"out", RUN_TEXT, (void *)&e->out, 0, 0, "FILE", "the statistics; replaced if it exists"},
        {"resume", RUN_FLAG, &set.resume, 0, 0, NULL, "go on from FILE, if it is there"},
        {"match", RUN_TEXT, (void *)&set.match, 0, 0, "PATTERN",
         "in folders only files with such names"},
        {"window", RUN_WHOLE, &set.window, 2, 1 << 20, "N",
         "tokens that are read together (default: 256)"},
        {"max-windows", RUN_WHOLE, &set.max_windows, 1, INT64_MAX, "N",
         "at most N windows of each file (default: all)"},
        {"top", RUN_WHOLE, &set.top, 1, 1000, "N", "strongest tokens kept (default: 20)"},
        {"sample", RUN_WHOLE, &set.sample, 1, 1000, "N",
         "tokens of the random sample kept (default: 20)"},
        {"context", RUN_WHOLE, &set.context, 1, 1000, "N",
         "tokens kept on each side of them (default: 12)"},
        {"memory", RUN_WHOLE, &set.memory, 1, 1 << 24, "MB",
         "refuse statistics that need more (default: 4000)"},
        {"autosave", RUN_WHOLE, &set.autosave, 0, 1 << 20, "S",
         "save every S seconds (default: 60)"},
        {"merge", RUN_FLAG, &set.merge, 0, 0, NULL, "TEXTS are files of statistics: add them up"},
        {"summary", RUN_FLAG, &set.summary, 0, 0, NULL, "only say what is in a file of statistics"},
        EXPLORE_OPTIONS(e),
    };
    static const char *files[EXPLORE_MAX_FILES];
    static stats_pass pass;
    tool_error err = {{0}};
    size_t n_files;
    int status;
    bool ok;

    if (!explore_arguments(e, &about, options, sizeof options / sizeof options[0], argc, argv,
                           files, 2, EXPLORE_MAX_FILES, &n_files, &status)) return status;
    if (e->out == NULL && !set.summary) {
        tool_fail(&err, "--out FILE is missing: where the statistics go");
        return explore_usage(about.name, &err);
    }
    pass.e = e;
    pass.set = &set;
    ok = explore_open(e, files[0], &err) &&
         (set.merge || set.summary ? pass__merge_files(&pass, files + 1, n_files - 1, &err)
                                   : pass__run(&pass, files + 1, n_files - 1, &err));
    stats_free(&pass.s);
    explore_close(e);
    return explore_end(e, about.name, ok, &err);
}

#endif /* TOOL_EXPLORE_STATS_H */
