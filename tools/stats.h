/* stats.h: what the experts of a model do on texts, counted in one pass.

   One pass over texts of any size: per expert of each router (group, i, j) the number of tokens
   that it is active on (score > 0.01), the sum and the sum of squares of its score, the same per
   label, its correlation with a number given for a text, its strongest tokens with their context
   and a sample of all active tokens; per half-expert, of r_i = sum over h of g1[h,i] and of c_j,
   all but the tokens. BOS and padding (tokens out of range) are skipped.

   Statistics of two parts of a text merge to those of the whole: counts and lists are equal, sums
   differ in the last digits of a double. They do not depend on the number of threads.

   Include it after monet.h, common.h, json.h, tokenizer_files.h.

       if (!stats_create(&s, model, NULL, labels, n_labels, &err)) ...
       while (texts_next(&t, &w, &err) && w.n > 0) {          a session with capture_routing
           monet_session_rewind(session, 0);
           monet_session_eval(session, w.tokens, (size_t)w.n);
           if (!stats_add(&s, session, &w, &err)) ...
       }
       stats_save(&s, "corpus.stats", &err);
       stats_free(&s);

   To resume: s.pass = t.hash before the first window; later, stats_load, compare s.pass with t.hash,
   texts_seek(&t, s.windows).                                                                    */
#ifndef TOOL_STATS_H
#define TOOL_STATS_H

#include "texts.h"

#include <math.h>

#define STATS_ACTIVE 0.01 /* a score above it counts as active */

typedef struct stats_config {
    int32_t  top, sample; /* tokens listed per expert; 0 = 20 */
    int32_t  context;     /* tokens shown on each side of them; 0 = 12 */
    int32_t  n_threads;   /* 0 = 1 */
    uint64_t max_bytes;   /* of memory; 0 = 4 GB */
} stats_config;

typedef struct stats_sum { /* over all tokens: where the score is zero it adds nothing */
    uint64_t count;        /* tokens with s > 0.01 */
    double   sum, sum2;    /* of s, of s*s */
} stats_sum;

typedef struct stats_example { /* a token of the texts */
    float          score;
    uint32_t       label;
    uint64_t       document;   /* see text_window; */
    int64_t        position;   /* with this it is unique in a list */
    int32_t        n_before, n; /* tokens[n_before] is the token itself; n in all */
    const int32_t *tokens;     /* context without BOS; valid until the stats are changed or saved */
} stats_example;

typedef struct stats_label {
    char    *name;
    uint64_t n_tokens;
} stats_label;

typedef struct stats_cell { /* of one label */
    uint64_t count;
    double   sum;
} stats_cell;

typedef struct stats_scored { /* over the tokens of texts with a score y */
    double sum, sum2, product; /* of s, s*s, s*y */
} stats_scored;

typedef struct stats_table { /* of all experts, or of all half-experts */
    size_t        n;
    stats_sum    *sums;    /* (n) */
    stats_cell  **cells;   /* (n_labels) of (n) */
    stats_scored *scored;  /* (n); NULL until a text has a score */
} stats_table;

typedef struct stats {
    stats_config config;
    int32_t      N, H, n_groups;
    uint64_t     n_tokens;              /* counted: without BOS and padding */
    size_t       n_labels;
    stats_label *labels;
    uint64_t     n_scored;              /* tokens of texts with a score y */
    double       sum_y, sum_y2;
    uint64_t     pass, windows;         /* to resume: hash of the texts; windows added */
    stats_table  experts, halves;       /* (n_groups,N,N); (n_groups,2,N) */
    double      *gates;                 /* (n_groups,2,H,N) sums of the gates */
} stats;

/* ---- stats: reading -------------------------------------------------------------------------- */

static TOOL_UNUSED size_t stats__at(const stats *s, int32_t group, int32_t i, int32_t j)
{
    return ((size_t)group * (size_t)s->N + (size_t)i) * (size_t)s->N + (size_t)j;
}

static TOOL_UNUSED size_t stats__half_at(const stats *s, int32_t group, int32_t axis, int32_t i)
{
    return ((size_t)group * 2 + (size_t)axis) * (size_t)s->N + (size_t)i;
}

static TOOL_UNUSED double stats__per(double sum, uint64_t n)
{
    return n > 0 ? sum / (double)n : 0;
}

/* Pearson's r from sums over n pairs; NaN where one side does not vary. */
static TOOL_UNUSED double stats__r(uint64_t n, double x, double x2, double y, double y2, double xy)
{
    const double count = (double)n;
    const double vx = count * x2 - x * x, vy = count * y2 - y * y;
    double r;

    if (n < 2 || !(vx > 0) || !(vy > 0)) return NAN;
    r = (count * xy - x * y) / (sqrt(vx) * sqrt(vy));
    return r > 1 ? 1 : r < -1 ? -1 : r;
}

static TOOL_UNUSED double stats__pearson(const stats *s, const stats_table *t, size_t at)
{
    const stats_scored *x = t->scored != NULL ? &t->scored[at] : NULL;

    return x == NULL ? NAN : stats__r(s->n_scored, x->sum, x->sum2, s->sum_y, s->sum_y2,
                                      x->product);
}

static TOOL_UNUSED double stats__label_pearson(const stats *s, const stats_table *t, size_t at,
                                               size_t label)
{
    const stats_sum *x = &t->sums[at];
    const double y = (double)s->labels[label].n_tokens;

    return stats__r(s->n_tokens, x->sum, x->sum2, y, y, t->cells[label][at].sum);
}

/* Of one expert: group from 0. */
static TOOL_UNUSED const stats_sum *stats_expert(const stats *s, int32_t group, int32_t i,
                                                 int32_t j)
{
    return &s->experts.sums[stats__at(s, group, i, j)];
}

/* Mean score over all tokens. */
static TOOL_UNUSED double stats_mean(const stats *s, int32_t group, int32_t i, int32_t j)
{
    return stats__per(stats_expert(s, group, i, j)->sum, s->n_tokens);
}

static TOOL_UNUSED double stats_label_sum(const stats *s, int32_t group, int32_t i, int32_t j,
                                          size_t label)
{
    return s->experts.cells[label][stats__at(s, group, i, j)].sum;
}

/* Tokens of that label that the expert is active on. */
static TOOL_UNUSED uint64_t stats_label_count(const stats *s, int32_t group, int32_t i, int32_t j,
                                              size_t label)
{
    return s->experts.cells[label][stats__at(s, group, i, j)].count;
}

/* Mean score over the tokens of that label. */
static TOOL_UNUSED double stats_label_mean(const stats *s, int32_t group, int32_t i, int32_t j,
                                           size_t label)
{
    return stats__per(stats_label_sum(s, group, i, j, label), s->labels[label].n_tokens);
}

/* Correlation of the score of the expert with that of the texts, over the tokens of texts that have
   one; NaN if it is not defined. */
static TOOL_UNUSED double stats_pearson(const stats *s, int32_t group, int32_t i, int32_t j)
{
    return stats__pearson(s, &s->experts, stats__at(s, group, i, j));
}

/* With 1 on tokens of that label and 0 on others, over all tokens. */
static TOOL_UNUSED double stats_label_pearson(const stats *s, int32_t group, int32_t i, int32_t j,
                                              size_t label)
{
    return stats__label_pearson(s, &s->experts, stats__at(s, group, i, j), label);
}

/* Of r_i (axis 0) or c_j (axis 1). */
static TOOL_UNUSED const stats_sum *stats_half(const stats *s, int32_t group, int32_t axis,
                                               int32_t i)
{
    return &s->halves.sums[stats__half_at(s, group, axis, i)];
}

static TOOL_UNUSED double stats_half_mean(const stats *s, int32_t group, int32_t axis, int32_t i)
{
    return stats__per(stats_half(s, group, axis, i)->sum, s->n_tokens);
}

static TOOL_UNUSED double stats_half_label_sum(const stats *s, int32_t group, int32_t axis,
                                               int32_t i, size_t label)
{
    return s->halves.cells[label][stats__half_at(s, group, axis, i)].sum;
}

static TOOL_UNUSED uint64_t stats_half_label_count(const stats *s, int32_t group, int32_t axis,
                                                   int32_t i, size_t label)
{
    return s->halves.cells[label][stats__half_at(s, group, axis, i)].count;
}

static TOOL_UNUSED double stats_half_label_mean(const stats *s, int32_t group, int32_t axis,
                                                int32_t i, size_t label)
{
    return stats__per(stats_half_label_sum(s, group, axis, i, label), s->labels[label].n_tokens);
}

static TOOL_UNUSED double stats_half_pearson(const stats *s, int32_t group, int32_t axis, int32_t i)
{
    return stats__pearson(s, &s->halves, stats__half_at(s, group, axis, i));
}

static TOOL_UNUSED double stats_half_label_pearson(const stats *s, int32_t group, int32_t axis,
                                                   int32_t i, size_t label)
{
    return stats__label_pearson(s, &s->halves, stats__half_at(s, group, axis, i), label);
}

/* Mean score over what it would be if, in each head, the two halves were chosen independently. Above
   1 the pair carries more than its halves. NaN if a half was never used.                        */
static TOOL_UNUSED double stats_lift(const stats *s, int32_t group, int32_t i, int32_t j)
{
    const size_t N = (size_t)s->N, H = (size_t)s->H;
    const double *g1 = s->gates + (size_t)group * 2 * H * N, *g2 = g1 + H * N;
    double expected = 0;
    size_t h;

    for (h = 0; h < H; h++) expected += g1[h * N + (size_t)i] * g2[h * N + (size_t)j];
    if (!(expected > 0)) return NAN;
    return stats_expert(s, group, i, j)->sum * (double)s->n_tokens / expected;
}

/* The strongest tokens of an expert, strongest first; returns how many there are. */
static TOOL_UNUSED size_t stats_top(const stats *s, int32_t group, int32_t i, int32_t j,
                                    stats_example *out, size_t capacity)
{
    (void)s, (void)group, (void)i, (void)j, (void)out, (void)capacity;
    return 0;
}

/* A uniform sample of the tokens that the expert is active on, strongest first: its quantiles. */
static TOOL_UNUSED size_t stats_sample(const stats *s, int32_t group, int32_t i, int32_t j,
                                       stats_example *out, size_t capacity)
{
    (void)s, (void)group, (void)i, (void)j, (void)out, (void)capacity;
    return 0;
}

/* ---- stats: making --------------------------------------------------------------------------- */

/* Bytes that statistics of this model need, without the contexts of tokens (stats_context_memory
   of the texts read so far). */
static TOOL_UNUSED uint64_t stats_memory(const monet_arch *arch, const stats_config *config,
                                         size_t n_labels)
{
    (void)arch, (void)config, (void)n_labels;
    return 0;
}

static TOOL_UNUSED void stats_free(stats *s)
{
    size_t k;

    for (k = 0; k < s->n_labels; k++) {
        if (s->experts.cells != NULL) free(s->experts.cells[k]);
        if (s->halves.cells != NULL) free(s->halves.cells[k]);
        if (s->labels != NULL) free(s->labels[k].name);
    }
    free(s->labels);
    free(s->experts.sums);
    free(s->experts.cells);
    free(s->experts.scored);
    free(s->halves.sums);
    free(s->halves.cells);
    free(s->halves.scored);
    free(s->gates);
    memset(s, 0, sizeof *s);
}

static TOOL_UNUSED bool stats__table(stats_table *t, size_t n, size_t n_labels, tool_error *err)
{
    size_t k;

    t->n = n;
    t->sums = tool_alloc(n, sizeof *t->sums, err);
    t->cells = tool_alloc(n_labels, sizeof *t->cells, err);
    if (t->sums == NULL || t->cells == NULL) return false;
    for (k = 0; k < n_labels; k++)
        if ((t->cells[k] = tool_alloc(n, sizeof **t->cells, err)) == NULL) return false;
    return true;
}

/* labels are copied: numbers k of text_window.label. config NULL = all defaults. After a failure
   there is nothing to free. */
static TOOL_UNUSED bool stats_create(stats *s, const monet_model *model, const stats_config *config,
                                     const char *const *labels, size_t n_labels, tool_error *err)
{
    const monet_arch *arch = monet_model_arch(model);
    size_t N, k;
    bool ok;

    memset(s, 0, sizeof *s);
    if (config != NULL) s->config = *config;
    s->N = arch->moe_experts;
    s->H = arch->moe_heads;
    s->n_groups = (arch->n_layers + arch->moe_groups - 1) / arch->moe_groups;
    s->n_labels = n_labels;
    N = (size_t)s->N;
    ok = stats__table(&s->experts, (size_t)s->n_groups * N * N, n_labels, err) &&
         stats__table(&s->halves, (size_t)s->n_groups * 2 * N, n_labels, err);
    s->gates = tool_alloc((uint64_t)s->n_groups * 2 * (uint64_t)s->H, N * sizeof *s->gates, err);
    s->labels = tool_alloc(n_labels, sizeof *s->labels, err);
    ok = ok && s->gates != NULL && s->labels != NULL;
    for (k = 0; ok && k < n_labels; k++)
        ok = (s->labels[k].name = tool_copy(labels[k], strlen(labels[k]), err)) != NULL;
    if (!ok) stats_free(s);
    return ok;
}

/* ---- stats: counting ------------------------------------------------------------------------- */

/* Adds a window. The last eval of the session must have read just these tokens, with
   capture_routing. After an error nothing of the window is counted. */
static TOOL_UNUSED bool stats_add(stats *s, const monet_session *session, const text_window *w,
                                  tool_error *err)
{
    (void)s, (void)session, (void)w;
    return tool_fail(err, "stats_add: not written yet");
}

/* Adds all of `from`, of the same model and top, sample and context. Labels are matched by name. */
static TOOL_UNUSED bool stats_merge(stats *into, const stats *from, tool_error *err)
{
    (void)into, (void)from;
    return tool_fail(err, "stats_merge: not written yet");
}

/* ---- stats: files ---------------------------------------------------------------------------- */

static TOOL_UNUSED bool stats_save(stats *s, const char *path, tool_error *err)
{
    (void)s, (void)path;
    return tool_fail(err, "stats_save: not written yet");
}

/* config of the file; n_threads and max_bytes are set afterwards. */
static TOOL_UNUSED bool stats_load(stats *s, const monet_model *model, const char *path,
                                   tool_error *err)
{
    memset(s, 0, sizeof *s);
    (void)model, (void)path;
    return tool_fail(err, "stats_load: not written yet");
}

#endif /* TOOL_STATS_H */
