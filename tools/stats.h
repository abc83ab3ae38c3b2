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

   To resume: s.pass = t.hash before the first window. Later: stats_load, compare s.pass with
   t.hash, texts_seek(&t, s.windows, &err).                                                     */
#ifndef TOOL_STATS_H
#define TOOL_STATS_H

#include "texts.h"

#include <math.h>
#include <pthread.h>

#define STATS_ACTIVE 0.01 /* a score above it counts as active, as in the paper */

typedef struct stats_config {
    int32_t  top, sample; /* tokens listed per expert; 0 = 20 */
    int32_t  context;     /* tokens shown on each side of them; 0 = 12 */
    int32_t  n_threads;   /* 0 = 1 */
    uint64_t max_bytes;   /* of memory, see stats_memory and stats_size; 0 = 4 GB */
} stats_config;

typedef struct stats_sum { /* over all tokens: where the score is zero it adds nothing */
    uint64_t count;        /* tokens with s > 0.01 */
    double   sum, sum2;    /* of s, of s*s */
} stats_sum;

typedef struct stats_example { /* a token of the texts */
    float          score;
    uint32_t       label;
    uint64_t       document;    /* as in text_window; */
    int64_t        position;    /* with this it is unique in a list */
    int32_t        n_before, n; /* tokens[n_before] is the token itself; n in all */
    const int32_t *tokens;      /* context without BOS; valid until the stats change or are saved */
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

typedef struct stats_entry { /* a token in a list */
    float    score;
    uint32_t key;   /* a hash of document and position; in samples, of the expert as well */
    uint32_t place; /* in stats.tokens */
} stats_entry;

typedef struct stats_list { /* of one expert */
    float    floor; /* a lower score cannot enter the top list */
    uint32_t cut;   /* a lower key cannot enter the sample */
    uint16_t n_top, n_sample;
} stats_list;

typedef struct stats_segment { /* tokens that follow each other in a document */
    uint64_t document;
    int64_t  position;     /* of the first one */
    uint32_t begin, n;     /* in stats.tokens */
    uint32_t label;
} stats_segment;

typedef struct stats {
    stats_config   config;
    int32_t        N, H, n_groups, layers, vocab_size, bos; /* layers of a group */
    uint64_t       model;               /* hash of the architecture and the tokenizer */
    uint64_t       n_tokens;            /* counted: without BOS and padding */
    size_t         n_labels;
    stats_label   *labels;
    uint64_t       n_scored;            /* tokens of texts with a score y */
    double         sum_y, sum_y2;
    uint64_t       pass, windows;       /* to resume: hash of the texts; windows added */
    stats_table    experts, halves;     /* (n_groups,N,N); (n_groups,2,N) */
    double        *gates;               /* (n_groups,2,H,N) sums of the gates */
    stats_list    *lists;               /* of each expert */
    stats_entry   *entries;             /* of each expert: (top + sample) */
    int32_t       *tokens;              /* contexts of the entries; -1 = padding */
    stats_segment *segments;            /* ascending, one behind the other */
    size_t         n_held, held_capacity, n_segments, segment_capacity;
    size_t         drop_at;             /* tokens at which those without use are dropped */
} stats;

#define STATS_MAX_LIST 256
#define STATS_MAX_Y 1e100                          /* of the score of a text */
#define STATS_MAX_TOKENS (UINT64_C(1) << 53)
#define STATS_HELD ((size_t)1 << 20)
#define STATS_BYTES UINT64_C(4000000000)

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

/* Mean score over what it would be if each head chose the two halves independently. Above 1 the
   pair carries more than its halves. NaN if a half was never used. */
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

/* ---- stats: lists ----------------------------------------------------------------------------
   The top list has the highest scores. Many experts reach exactly 1: among equal scores those with
   the higher hash of document and position are kept, so that they come from everywhere. The sample
   has the highest hashes of document, position and expert of all active tokens: each is in it with
   the same probability. Both are unions that were cut, so parts merge to what the whole gives.  */

static TOOL_UNUSED const stats_segment *stats__segment(const stats *s, uint32_t place)
{
    size_t low = 0, high = s->n_segments;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (s->segments[middle].begin <= place) low = middle;
        else high = middle;
    }
    return &s->segments[low];
}

/* < 0: the token at place a comes before that at b, by document and position; 0: the same one. */
static TOOL_UNUSED int stats__place_order(const stats *s, uint32_t a, uint32_t b)
{
    const stats_segment *x = stats__segment(s, a), *y = stats__segment(s, b);
    const int64_t p = x->position + (int64_t)(a - x->begin);
    const int64_t q = y->position + (int64_t)(b - y->begin);

    if (x->document != y->document) return x->document < y->document ? -1 : 1;
    return p < q ? -1 : p > q;
}

/* Whether a belongs before b in a top list, or (not by score) in a sample. */
static TOOL_UNUSED bool stats__before(const stats *s, const stats_entry *a, const stats_entry *b,
                                      bool by_score)
{
    if (by_score && (a->score < b->score || a->score > b->score)) return a->score > b->score;
    if (a->key != b->key) return a->key > b->key;
    return stats__place_order(s, a->place, b->place) < 0;
}

/* Puts an entry into a list of n, where it belongs. The same token with a lower score (in a window
   that was cut elsewhere) makes room. Returns the new n. */
static TOOL_UNUSED uint16_t stats__offer(const stats *s, stats_entry *list, uint16_t n,
                                         int32_t capacity, stats_entry e, bool by_score)
{
    uint16_t k;

    for (k = 0; k < n; k++) {
        if (list[k].key != e.key || stats__place_order(s, list[k].place, e.place) != 0) continue;
        if (list[k].score >= e.score) return n;
        memmove(list + k, list + k + 1, (size_t)(n - k - 1) * sizeof *list);
        n--;
        break;
    }
    for (k = n; k > 0 && stats__before(s, &e, &list[k - 1], by_score);) k--;
    if (k == capacity) return n;
    if (n == capacity) n--;
    memmove(list + k + 1, list + k, (size_t)(n - k) * sizeof *list);
    list[k] = e;
    return (uint16_t)(n + 1);
}

static TOOL_UNUSED stats_entry *stats__entries(const stats *s, size_t at)
{
    return s->entries + at * (size_t)(s->config.top + s->config.sample);
}

static TOOL_UNUSED void stats__offer_top(stats *s, size_t at, stats_entry e)
{
    stats_list *l = &s->lists[at];
    stats_entry *list = stats__entries(s, at);

    l->n_top = stats__offer(s, list, l->n_top, s->config.top, e, true);
    l->floor = l->n_top == s->config.top ? list[l->n_top - 1].score : 0;
}

static TOOL_UNUSED void stats__offer_sample(stats *s, size_t at, stats_entry e)
{
    stats_list *l = &s->lists[at];
    stats_entry *list = stats__entries(s, at) + s->config.top;

    l->n_sample = stats__offer(s, list, l->n_sample, s->config.sample, e, false);
    l->cut = l->n_sample == s->config.sample ? list[l->n_sample - 1].key : 0;
}

static TOOL_UNUSED uint64_t stats__mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

static TOOL_UNUSED uint64_t stats__hash(uint64_t document, int64_t position)
{
    return stats__mix(stats__mix(document) + (uint64_t)position * UINT64_C(0x9E3779B97F4A7C15));
}

static TOOL_UNUSED uint32_t stats__sample_key(uint64_t hash, size_t at)
{
    return (uint32_t)(stats__mix(hash + (uint64_t)at * UINT64_C(0x9E3779B97F4A7C15)) >> 32);
}

/* Whether a token is counted: it is neither BOS nor padding. */
static TOOL_UNUSED bool stats__counts(const stats *s, int32_t token)
{
    return token >= 0 && token < s->vocab_size && token != s->bos;
}

static TOOL_UNUSED void stats__example(const stats *s, const stats_entry *e, stats_example *out)
{
    const stats_segment *in = stats__segment(s, e->place);
    const uint32_t most = (uint32_t)s->config.context, end = in->begin + in->n;
    uint32_t from = e->place, to = e->place + 1;

    while (from > in->begin && e->place - from < most && stats__counts(s, s->tokens[from - 1]))
        from--;
    while (to < end && to - e->place <= most && stats__counts(s, s->tokens[to])) to++;
    out->score = e->score;
    out->label = in->label;
    out->document = in->document;
    out->position = in->position + (int64_t)(e->place - in->begin);
    out->n_before = (int32_t)(e->place - from);
    out->n = (int32_t)(to - from);
    out->tokens = s->tokens + from;
}

/* The strongest tokens of an expert, strongest first, at most `capacity`. Returns how many. */
static TOOL_UNUSED size_t stats_top(const stats *s, int32_t group, int32_t i, int32_t j,
                                    stats_example *out, size_t capacity)
{
    const size_t at = stats__at(s, group, i, j), n = s->lists[at].n_top;
    size_t k;

    for (k = 0; k < n && k < capacity; k++) stats__example(s, stats__entries(s, at) + k, &out[k]);
    return k;
}

/* Of the tokens that the expert is active on, each with the same probability: their quantiles,
   strongest first. With less capacity than the sample has, evenly spread ones of it. */
static TOOL_UNUSED size_t stats_sample(const stats *s, int32_t group, int32_t i, int32_t j,
                                       stats_example *out, size_t capacity)
{
    const size_t at = stats__at(s, group, i, j), n = s->lists[at].n_sample;
    const size_t shown = n < capacity ? n : capacity;
    const stats_entry *list = stats__entries(s, at) + s->config.top;
    stats_entry sorted[STATS_MAX_LIST];
    size_t k;
    uint16_t m = 0;

    for (k = 0; k < n; k++) m = stats__offer(s, sorted, m, STATS_MAX_LIST, list[k], true);
    for (k = 0; k < shown; k++)
        stats__example(s, &sorted[shown > 1 ? k * (n - 1) / (shown - 1) : n / 2], &out[k]);
    return shown;
}

/* ---- stats: making --------------------------------------------------------------------------- */

static TOOL_UNUSED uint64_t stats__fixed(const stats_config *c, uint64_t N, uint64_t H,
                                         uint64_t n_groups, uint64_t n_labels)
{
    const uint64_t one = sizeof(stats_sum) + sizeof(stats_scored) + n_labels * sizeof(stats_cell);
    const uint64_t lists = sizeof(stats_list) +
                           (uint64_t)(c->top + c->sample) * sizeof(stats_entry);

    return n_groups * N * (N * (one + lists) + 2 * one + 2 * H * sizeof(double));
}

static TOOL_UNUSED stats_config stats__defaults(const stats_config *config)
{
    stats_config c = {0, 0, 0, 0, 0};

    if (config != NULL) c = *config;
    if (c.top == 0) c.top = 20;
    if (c.sample == 0) c.sample = 20;
    if (c.context == 0) c.context = 12;
    if (c.n_threads == 0) c.n_threads = 1;
    if (c.max_bytes == 0) c.max_bytes = STATS_BYTES;
    return c;
}

static TOOL_UNUSED int32_t stats__groups(const monet_arch *arch)
{
    return (arch->n_layers + arch->moe_groups - 1) / arch->moe_groups;
}

/* Bytes that statistics of such a model need at most, but for the contexts of tokens: 60 for each
   expert, 16 for each label of it, 12 for each token in its lists. N = 512, 6 groups, 16 labels and
   lists of 20 and 20: 1.25 GB, of which what belongs to experts that are never active is never
   touched. Contexts take 4 bytes for each token near one in a list, twice that while they are
   gathered: at most 8 for each token of the texts, and 270 for each token in a list. */
static TOOL_UNUSED uint64_t stats_memory(const monet_arch *arch, const stats_config *config,
                                         size_t n_labels)
{
    const stats_config c = stats__defaults(config);

    return stats__fixed(&c, (uint64_t)arch->moe_experts, (uint64_t)arch->moe_heads,
                        (uint64_t)stats__groups(arch), n_labels);
}

/* Bytes that these have, contexts included. */
static TOOL_UNUSED uint64_t stats_size(const stats *s)
{
    return stats__fixed(&s->config, (uint64_t)s->N, (uint64_t)s->H, (uint64_t)s->n_groups,
                        s->n_labels) +
           s->held_capacity * sizeof *s->tokens + s->segment_capacity * sizeof *s->segments;
}

static TOOL_UNUSED bool stats__fits(const stats *s, uint64_t bytes, size_t n_labels,
                                    tool_error *err)
{
    char need[TOOL_HUMAN], most[TOOL_HUMAN];

    if (bytes <= s->config.max_bytes) return true;
    return tool_fail(err, "statistics would need %s, allowed are %s: shorter lists (now the top %d "
                     "and a sample of %d), less context (%d) or fewer labels (%llu) need less",
                     tool_human(need, bytes), tool_human(most, s->config.max_bytes),
                     (int)s->config.top, (int)s->config.sample, (int)s->config.context,
                     (unsigned long long)n_labels);
}

static TOOL_UNUSED void stats_free(stats *s)
{
    size_t k;

    for (k = 0; k < s->n_labels; k++) {
        free(s->experts.cells[k]);
        free(s->halves.cells[k]);
        free(s->labels[k].name);
    }
    free(s->labels);
    free(s->experts.sums);
    free(s->experts.cells);
    free(s->experts.scored);
    free(s->halves.sums);
    free(s->halves.cells);
    free(s->halves.scored);
    free(s->gates);
    free(s->lists);
    free(s->entries);
    free(s->tokens);
    free(s->segments);
    memset(s, 0, sizeof *s);
}

static TOOL_UNUSED bool stats__grow_cells(stats_table *t, size_t n_labels, tool_error *err)
{
    stats_cell **cells = TOOL_SYS(realloc)(t->cells, (n_labels + 1) * sizeof *cells);

    if (cells == NULL) return tool_fail(err, "out of memory: labels");
    t->cells = cells;
    return (cells[n_labels] = tool_alloc(t->n, sizeof **cells, err)) != NULL;
}

/* A label that is not there yet, with nothing counted. */
static TOOL_UNUSED bool stats__add_label(stats *s, const char *name, size_t size, tool_error *err)
{
    const size_t n = s->n_labels;
    char shown[TOOL_QUOTE];
    stats_label *labels;
    size_t k;

    if (!texts_label_ok(name, size))
        return tool_fail(err, "the label \"%s\" is not 1 to %d printable characters",
                         tool_quote(shown, name, size), TEXTS_MAX_LABEL);
    for (k = 0; k < n; k++)
        if (strlen(s->labels[k].name) == size && memcmp(s->labels[k].name, name, size) == 0)
            return tool_fail(err, "the label \"%s\" is there twice", tool_quote(shown, name, size));
    labels = TOOL_SYS(realloc)(s->labels, (n + 1) * sizeof *labels);
    if (labels == NULL) return tool_fail(err, "out of memory: labels");
    s->labels = labels;
    if (!stats__grow_cells(&s->experts, n, err)) return false;
    if (stats__grow_cells(&s->halves, n, err)) {
        labels[n].n_tokens = 0;
        if ((labels[n].name = tool_copy(name, size, err)) != NULL) return s->n_labels++, true;
        free(s->halves.cells[n]);
    }
    free(s->experts.cells[n]);
    return false;
}

static TOOL_UNUSED bool stats__fingerprint(stats *s, const monet_model *model, tool_error *err)
{
    const monet_arch *a = monet_model_arch(model);
    const monet_tokenizer *tokenizer = monet_model_tokenizer(model);
    uint64_t tokens = 0;
    char text[256];
    int n;

    if (a == NULL) return tool_fail(err, "the file holds no model");
    if (tokenizer != NULL && !tokenizer_hash(tokenizer, &tokens, err)) return false;
    n = snprintf(text, sizeof text, "%d %d %d %d %d %d %d %d %d %llu", (int)a->vocab_size,
                 (int)a->dim, (int)a->n_layers, (int)a->moe_experts, (int)a->moe_dim,
                 (int)a->moe_heads, (int)a->moe_topk, (int)a->moe_groups, (int)a->decompose,
                 (unsigned long long)tokens);
    s->model = tool_hash(text, (size_t)n);
    s->N = a->moe_experts;
    s->H = a->moe_heads;
    s->n_groups = stats__groups(a);
    s->layers = a->moe_groups;
    s->vocab_size = a->vocab_size;
    s->bos = monet_tokenizer_bos(tokenizer);
    return true;
}

/* All tables for n_labels more labels, which are added afterwards. */
static TOOL_UNUSED bool stats__start(stats *s, size_t n_labels, tool_error *err)
{
    const stats_config *c = &s->config;
    const uint64_t N = (uint64_t)s->N, n_groups = (uint64_t)s->n_groups, n = N * N * n_groups;
    uint64_t n_lists;

    if (c->top < 1 || c->top > STATS_MAX_LIST || c->sample < 1 || c->sample > STATS_MAX_LIST ||
        c->context < 1 || c->context > 4096 || c->n_threads < 1 || c->n_threads > 256)
        return tool_fail(err, "statistics: the top %d, a sample of %d (1 to %d), context %d (1 to "
                         "4096) or %d threads (1 to 256) is out of range", (int)c->top,
                         (int)c->sample, STATS_MAX_LIST, (int)c->context, (int)c->n_threads);
    if (!stats__fits(s, stats__fixed(c, N, (uint64_t)s->H, n_groups, n_labels), n_labels,
                     err)) return false;
    n_lists = (uint64_t)(c->top + c->sample);
    s->drop_at = STATS_HELD;
    s->experts.n = (size_t)n;
    s->halves.n = (size_t)(2 * N * n_groups);
    s->experts.sums = tool_alloc(n, sizeof *s->experts.sums, err);
    s->halves.sums = tool_alloc(s->halves.n, sizeof *s->halves.sums, err);
    s->gates = tool_alloc(s->halves.n, (uint64_t)s->H * sizeof *s->gates, err);
    s->lists = tool_alloc(n, sizeof *s->lists, err);
    s->entries = tool_alloc(n, n_lists * sizeof *s->entries, err); /* what is not used stays zero */
    return s->experts.sums != NULL && s->halves.sums != NULL && s->gates != NULL &&
           s->lists != NULL && s->entries != NULL;
}

/* labels are copied; they are the numbers in text_window.label. config NULL = all defaults. After a
   failure there is nothing to free. */
static TOOL_UNUSED bool stats_create(stats *s, const monet_model *model, const stats_config *config,
                                     const char *const *labels, size_t n_labels, tool_error *err)
{
    size_t k;
    bool ok;

    memset(s, 0, sizeof *s);
    s->config = stats__defaults(config);
    ok = stats__fingerprint(s, model, err) && stats__start(s, n_labels, err);
    for (k = 0; ok && k < n_labels; k++)
        ok = stats__add_label(s, labels[k], strlen(labels[k]), err);
    if (!ok) stats_free(s);
    return ok;
}

static TOOL_UNUSED bool stats__need_scored(stats *s, tool_error *err)
{
    stats_table *tables[2];
    int k;

    tables[0] = &s->experts;
    tables[1] = &s->halves;
    for (k = 0; k < 2; k++)
        if (tables[k]->scored == NULL &&
            (tables[k]->scored = tool_alloc(tables[k]->n, sizeof(stats_scored), err)) == NULL)
            return false;
    return true;
}

/* ---- stats: contexts ------------------------------------------------------------------------- */

/* Marks in used[] the tokens that lists point at, and (with 2) those around them. */
static TOOL_UNUSED void stats__mark(const stats *s, uint32_t *used)
{
    const uint32_t reach = (uint32_t)s->config.context + 1;
    size_t at, k;

    for (at = 0; at < s->experts.n; at++) {
        const stats_entry *list = stats__entries(s, at);
        for (k = 0; k < s->lists[at].n_top; k++) used[list[k].place] = 1;
        list += s->config.top;
        for (k = 0; k < s->lists[at].n_sample; k++) used[list[k].place] = 1;
    }
    for (k = 0; k < s->n_segments; k++) {
        const size_t begin = s->segments[k].begin, end = begin + s->segments[k].n;
        uint32_t before = 0, behind = 0; /* how far the context of the last one still goes */
        for (at = begin; at < end; at++) {
            behind = (used[at] & 1) != 0 ? reach : behind > 0 ? behind - 1 : 0;
            if (behind > 0) used[at] |= 2;
        }
        for (at = end; at-- > begin;) {
            before = (used[at] & 1) != 0 ? reach : before > 0 ? before - 1 : 0;
            if (before > 0) used[at] |= 2;
        }
    }
}

/* Moves what is used to the front, cut into new segments (NULL: only counts these), and writes to
   used[] where each token went. */
static TOOL_UNUSED size_t stats__move(stats *s, uint32_t *used, stats_segment *segments)
{
    uint32_t to = 0;
    size_t n = 0, k, at;

    for (k = 0; k < s->n_segments; k++) {
        const stats_segment old = s->segments[k];
        bool open = false;
        for (at = old.begin; at < (size_t)old.begin + old.n; at++) {
            const bool keep = used[at] != 0;
            if (keep && !open) n++;
            if (segments != NULL && keep) {
                stats_segment *now = &segments[n - 1];
                if (!open) {
                    *now = old;
                    now->position += (int64_t)(at - old.begin);
                    now->begin = to;
                    now->n = 0;
                }
                now->n++;
                s->tokens[to] = s->tokens[at];
                used[at] = to++;
            }
            open = keep;
        }
    }
    if (segments != NULL) s->n_held = to;
    return n;
}

/* Drops the tokens that are not near an entry of a list. Needs 4 bytes a token meanwhile. */
static TOOL_UNUSED bool stats__drop(stats *s, tool_error *err)
{
    uint32_t *used = tool_alloc(s->n_held, sizeof *used, err);
    stats_segment *segments = NULL;
    size_t n = 0, at, k;

    if (used != NULL) {
        stats__mark(s, used);
        n = stats__move(s, used, NULL);
        segments = tool_alloc(n, sizeof *segments, err);
    }
    if (segments == NULL) return free(used), false;
    stats__move(s, used, segments);
    for (at = 0; at < s->experts.n; at++) {
        stats_entry *list = stats__entries(s, at);
        for (k = 0; k < s->lists[at].n_top; k++) list[k].place = used[list[k].place];
        list += s->config.top;
        for (k = 0; k < s->lists[at].n_sample; k++) list[k].place = used[list[k].place];
    }
    free(used);
    free(s->segments);
    s->segments = segments;
    s->n_segments = s->segment_capacity = n;
    s->drop_at = s->n_held < STATS_HELD / 2 ? STATS_HELD : 2 * s->n_held;
    return true;
}

/* Whether so much more can be held; grown arrays double. */
static TOOL_UNUSED bool stats__has_room(const stats *s, size_t n, size_t n_segments,
                                        tool_error *err)
{
    uint64_t bytes = stats_size(s), held = s->held_capacity, segments = s->segment_capacity;

    if (s->n_held + n > held)
        bytes += (s->n_held + n > 2 * held ? s->n_held + n - held : held) * sizeof *s->tokens;
    if (s->n_segments + n_segments > segments)
        bytes += (s->n_segments + n_segments > 2 * segments
                  ? s->n_segments + n_segments - segments : segments) * sizeof *s->segments;
    return stats__fits(s, bytes, s->n_labels, err);
}

static TOOL_UNUSED bool stats__reserve(stats *s, size_t n, size_t n_segments, tool_error *err)
{
    if ((s->n_held + n > s->drop_at || !stats__has_room(s, n, n_segments, NULL)) &&
        s->n_held > 0 && !stats__drop(s, err)) return false;
    if (!stats__has_room(s, n, n_segments, err)) return false;
    if (n > UINT32_MAX - s->n_held) return tool_fail(err, "too many contexts of tokens");
    return tool_grow(&s->tokens, &s->held_capacity, (uint64_t)s->n_held + n, sizeof *s->tokens,
                     err) &&
           tool_grow(&s->segments, &s->segment_capacity, (uint64_t)s->n_segments + n_segments,
                     sizeof *s->segments, err);
}

/* ---- stats: counting -------------------------------------------------------------------------
   The gates of a window are sorted by half-expert i first. Then each row of experts (i, all j) is
   one task: it adds its scores, token by token, in tables of a few kilobytes. Rows have nothing in
   common, so it does not matter which thread does which.                                        */

typedef struct stats__use { /* of a half-expert i by a head */
    int32_t token, head;    /* the token counts from 0 over those that are counted */
    float   gate;
} stats__use;

typedef struct stats__gate { /* of a half-expert j */
    int32_t j;
    float   gate;
} stats__gate;

typedef struct stats__group {
    stats__use  *uses;       /* by i, then token, then head */
    size_t      *rows;       /* (N+1) where those of each i begin */
    stats__gate *gates;      /* by token, then head, then j */
    size_t      *heads;      /* (n,H)+1 where those of each head of each token begin */
    size_t       use_capacity, gate_capacity;
    bool         failed;
} stats__group;

typedef struct stats__work {
    stats               *s;
    const monet_session *session;
    const text_window   *window;
    int32_t              n;      /* tokens that are counted: */
    int32_t             *index;  /* (n) their index in the window, */
    uint64_t            *hash;   /* (n) of document and position */
    stats__group        *groups;
    double              *sums;   /* (n_threads,N) zero */
    int32_t             *list;   /* (n_threads,N) */
    void (*task)(struct stats__work *w, size_t task, size_t thread);
    size_t               n_tasks;
} stats__work;

typedef struct stats__thread {
    stats__work *work;
    size_t       number;
    pthread_t    id;
    bool         runs;
} stats__thread;

static TOOL_UNUSED void *stats__share(void *arg)
{
    const stats__thread *t = arg;
    size_t k;

    for (k = t->number; k < t->work->n_tasks; k += (size_t)t->work->s->config.n_threads)
        t->work->task(t->work, k, t->number);
    return NULL;
}

/* Does all tasks. A thread that cannot be started leaves its share to this one. */
static TOOL_UNUSED void stats__run(stats__work *w, size_t n_tasks,
                                   void (*task)(stats__work *, size_t, size_t))
{
    stats__thread threads[256];
    const size_t n = (size_t)w->s->config.n_threads;
    size_t k;

    w->task = task;
    w->n_tasks = n_tasks;
    for (k = n; k-- > 0;) {
        threads[k].work = w;
        threads[k].number = k;
        threads[k].runs = k > 0 && pthread_create(&threads[k].id, NULL, stats__share,
                                                  &threads[k]) == 0;
        if (!threads[k].runs) stats__share(&threads[k]);
    }
    for (k = 1; k < n; k++)
        if (threads[k].runs) pthread_join(threads[k].id, NULL);
}

static TOOL_UNUSED bool stats__routing(const stats__work *w, size_t group, int32_t token,
                                       monet_routing *r)
{
    return monet_session_routing(w->session, w->index[token], (int32_t)group * w->s->layers, r) ==
           MONET_OK;
}

/* The gates of axis 1. */
static TOOL_UNUSED bool stats__gather_gates(const stats__work *w, stats__group *g, size_t *n,
                                            int32_t token, const monet_routing *r)
{
    const int32_t H = w->s->H, N = w->s->N;
    int32_t h, k;

    if (!tool_grow(&g->gates, &g->gate_capacity, *n + (uint64_t)H * (uint64_t)r->n_j,
                   sizeof *g->gates, NULL)) return false;
    for (h = 0; h < H; h++) {
        for (k = 0; k < r->n_j; k++) {
            const float gate = (float)r->g2[(size_t)h * (size_t)N + r->j[k]];
            if (!(gate > 0)) continue;
            g->gates[*n].j = r->j[k];
            g->gates[(*n)++].gate = gate;
        }
        g->heads[(size_t)token * (size_t)H + (size_t)h + 1] = *n;
    }
    return true;
}

/* Counts the uses of each i (uses NULL) or puts them at rows[i], which moves on. */
static TOOL_UNUSED void stats__gather_uses(const stats__work *w, size_t *rows, stats__use *uses,
                                           int32_t token, const monet_routing *r)
{
    int32_t h, k;

    for (k = 0; k < r->n_i; k++)
        for (h = 0; h < w->s->H; h++) {
            const float gate = (float)r->g1[(size_t)h * (size_t)w->s->N + r->i[k]];
            if (!(gate > 0)) continue;
            if (uses != NULL) {
                stats__use *use = &uses[rows[r->i[k]]];
                use->token = token;
                use->head = h;
                use->gate = gate;
            }
            rows[r->i[k]]++;
        }
}

static TOOL_UNUSED void stats__gather(stats__work *w, size_t group, size_t thread)
{
    stats__group *g = &w->groups[group];
    const size_t N = (size_t)w->s->N;
    monet_routing r;
    size_t n = 0, k, sum, next;
    int32_t t;

    (void)thread;
    memset(g->rows, 0, (N + 1) * sizeof *g->rows);
    g->heads[0] = 0;
    for (t = 0; t < w->n && !g->failed; t++) {
        g->failed = !stats__routing(w, group, t, &r) || !stats__gather_gates(w, g, &n, t, &r);
        if (!g->failed) stats__gather_uses(w, g->rows, NULL, t, &r);
    }
    for (k = 0, sum = 0; k <= N; k++, sum += next) {
        next = g->rows[k];
        g->rows[k] = sum;
    }
    if (!g->failed) g->failed = !tool_grow(&g->uses, &g->use_capacity, (uint64_t)g->rows[N] + 1,
                                           sizeof *g->uses, NULL);
    for (t = 0; t < w->n && !g->failed; t++)
        if (stats__routing(w, group, t, &r)) stats__gather_uses(w, g->rows, g->uses, t, &r);
    memmove(g->rows + 1, g->rows, N * sizeof *g->rows); /* each had moved to its end */
    g->rows[0] = 0;
}

static TOOL_UNUSED void stats__count(const stats__work *w, stats_table *t, size_t at, double x)
{
    stats_sum *all = &t->sums[at];
    stats_cell *cell = &t->cells[w->window->label][at];
    const bool active = x > STATS_ACTIVE;

    all->count += active;
    all->sum += x;
    all->sum2 += x * x;
    cell->count += active;
    cell->sum += x;
    if (w->window->has_score) {
        t->scored[at].sum += x;
        t->scored[at].sum2 += x * x;
        t->scored[at].product += x * w->window->score;
    }
}

static TOOL_UNUSED void stats__count_expert(const stats__work *w, size_t at, int32_t token,
                                            double x)
{
    stats *s = w->s;
    const stats_list *l = &s->lists[at];
    stats_entry e;

    stats__count(w, &s->experts, at, x);
    if (!(x > STATS_ACTIVE)) return;
    e.score = (float)x;
    e.place = (uint32_t)(s->n_held + (size_t)w->index[token]);
    e.key = (uint32_t)(w->hash[token] >> 32);
    if (e.score >= l->floor) stats__offer_top(s, at, e);
    e.key = stats__sample_key(w->hash[token], at);
    if (e.key >= l->cut) stats__offer_sample(s, at, e);
}

/* Adds gate * g2[h,j] for all j; list[] gets the j that are new in sums[]. */
static TOOL_UNUSED int32_t stats__add_head(const stats__work *w, const stats__group *g,
                                           const stats__use *use, double *sums, int32_t *list,
                                           int32_t n)
{
    const size_t head = (size_t)use->token * (size_t)w->s->H + (size_t)use->head;
    size_t k;

    for (k = g->heads[head]; k < g->heads[head + 1]; k++) {
        const int32_t j = g->gates[k].j;
        if (!(sums[j] > 0)) list[n++] = j;
        sums[j] += (double)use->gate * (double)g->gates[k].gate;
    }
    return n;
}

/* All experts (i,j) of one i. */
static TOOL_UNUSED void stats__row(stats__work *w, size_t group, size_t i, double *sums,
                                   int32_t *list)
{
    stats *s = w->s;
    const stats__group *g = &w->groups[group];
    const size_t at = stats__at(s, (int32_t)group, (int32_t)i, 0);
    const size_t half = stats__half_at(s, (int32_t)group, 0, (int32_t)i);
    double *gates = s->gates + group * 2 * (size_t)s->H * (size_t)s->N + i;
    size_t k = g->rows[i];

    while (k < g->rows[i + 1]) {
        const int32_t token = g->uses[k].token;
        double all = 0;
        int32_t n = 0, m;
        for (; k < g->rows[i + 1] && g->uses[k].token == token; k++) {
            const stats__use *use = &g->uses[k];
            all += (double)use->gate;
            gates[(size_t)use->head * (size_t)s->N] += (double)use->gate;
            n = stats__add_head(w, g, use, sums, list, n);
        }
        stats__count(w, &s->halves, half, all);
        for (m = 0; m < n; m++) {
            stats__count_expert(w, at + (size_t)list[m], token, sums[list[m]]);
            sums[list[m]] = 0;
        }
    }
}

/* The half-experts of axis 1. */
static TOOL_UNUSED void stats__columns(stats__work *w, size_t group, double *sums, int32_t *list)
{
    stats *s = w->s;
    const stats__group *g = &w->groups[group];
    const size_t H = (size_t)s->H, N = (size_t)s->N;
    const size_t half = stats__half_at(s, (int32_t)group, 1, 0);
    double *gates = s->gates + (group * 2 + 1) * H * N;
    size_t h, k, token;
    int32_t n, m;

    for (token = 0; token < (size_t)w->n; token++) {
        for (h = 0, n = 0; h < H; h++)
            for (k = g->heads[token * H + h]; k < g->heads[token * H + h + 1]; k++) {
                const int32_t j = g->gates[k].j;
                if (!(sums[j] > 0)) list[n++] = j;
                sums[j] += (double)g->gates[k].gate;
                gates[h * N + (size_t)j] += (double)g->gates[k].gate;
            }
        for (m = 0; m < n; m++) {
            stats__count(w, &s->halves, half + (size_t)list[m], sums[list[m]]);
            sums[list[m]] = 0;
        }
    }
}

static TOOL_UNUSED void stats__task(stats__work *w, size_t task, size_t thread)
{
    const size_t N = (size_t)w->s->N, group = task / (N + 1), i = task % (N + 1);
    double *sums = w->sums + thread * N;
    int32_t *list = w->list + thread * N;

    if (i < N) stats__row(w, group, i, sums, list);
    else stats__columns(w, group, sums, list);
}

static TOOL_UNUSED void stats__work_free(stats__work *w)
{
    int32_t k;

    for (k = 0; w->groups != NULL && k < w->s->n_groups; k++) {
        free(w->groups[k].uses);
        free(w->groups[k].rows);
        free(w->groups[k].gates);
        free(w->groups[k].heads);
    }
    free(w->groups);
    free(w->index);
    free(w->hash);
    free(w->sums);
    free(w->list);
}

static TOOL_UNUSED bool stats__work_make(stats__work *w, tool_error *err)
{
    const stats *s = w->s;
    const uint64_t n = (uint64_t)w->window->n, N = (uint64_t)s->N;
    const uint64_t n_threads = (uint64_t)s->config.n_threads;
    int32_t k;

    w->index = tool_alloc(n, sizeof *w->index, err);
    w->hash = tool_alloc(n, sizeof *w->hash, err);
    w->sums = tool_alloc(n_threads * N, sizeof *w->sums, err);
    w->list = tool_alloc(n_threads * N, sizeof *w->list, err);
    w->groups = tool_alloc((uint64_t)s->n_groups, sizeof *w->groups, err);
    if (w->index == NULL || w->hash == NULL || w->sums == NULL || w->list == NULL ||
        w->groups == NULL) return false;
    for (k = 0; k < s->n_groups; k++) {
        w->groups[k].rows = tool_alloc(N + 1, sizeof(size_t), err);
        w->groups[k].heads = tool_alloc(n * (uint64_t)s->H + 1, sizeof(size_t), err);
        if (w->groups[k].rows == NULL || w->groups[k].heads == NULL) return false;
    }
    for (k = 0; k < w->window->n; k++)
        if (stats__counts(s, w->window->tokens[k])) {
            w->index[w->n] = k;
            w->hash[w->n++] = stats__hash(w->window->document, w->window->first + k);
        }
    return true;
}

/* Whether the last eval of the session read these tokens, all at once, and kept the routing. */
static TOOL_UNUSED bool stats__check(const stats *s, const monet_session *session,
                                     const text_window *w, tool_error *err)
{
    const int32_t length = monet_session_length(session);
    monet_routing r;

    if (s->config.n_threads < 1 || s->config.n_threads > 256)
        return tool_fail(err, "%d threads, needs 1 to 256", (int)s->config.n_threads);
    if (w->n < 1 || w->label >= s->n_labels || (w->has_score && !(fabs(w->score) <= STATS_MAX_Y)))
        return tool_fail(err, "a window of %d tokens, label %lu of %llu, score %g: out of range",
                         (int)w->n, (unsigned long)w->label, (unsigned long long)s->n_labels,
                         w->score);
    if (length < w->n || memcmp(monet_session_tokens(session) + (length - w->n), w->tokens,
                                (size_t)w->n * sizeof *w->tokens) != 0 ||
        monet_session_routing(session, w->n - 1, 0, &r) != MONET_OK ||
        monet_session_routing(session, w->n, 0, &r) == MONET_OK)
        return tool_fail(err, "the session has not just read this window, with its routing kept");
    if (r.n_experts != s->N || r.n_heads != s->H)
        return tool_fail(err, "the session is of another model");
    return true;
}

/* What the whole window adds: all but what the tasks count. */
static TOOL_UNUSED void stats__add_window(stats *s, const text_window *w, uint64_t n)
{
    stats_segment *segment = &s->segments[s->n_segments++];
    int32_t k;

    segment->document = w->document;
    segment->position = w->first;
    segment->begin = (uint32_t)s->n_held;
    segment->n = (uint32_t)w->n;
    segment->label = w->label;
    for (k = 0; k < w->n; k++) {
        const int32_t token = w->tokens[k];
        s->tokens[s->n_held + (size_t)k] = token >= 0 && token < s->vocab_size ? token : -1;
    }
    s->n_tokens += n;
    s->labels[w->label].n_tokens += n;
    s->windows++;
    if (!w->has_score) return;
    s->n_scored += n;
    s->sum_y += (double)n * w->score;
    s->sum_y2 += (double)n * w->score * w->score;
}

/* Adds a window. The last eval of the session must have read just these tokens, with
   capture_routing. Scores are what the routers say, whatever edit is set. After an error nothing of
   the window is counted. */
static TOOL_UNUSED bool stats_add(stats *s, const monet_session *session, const text_window *w,
                                  tool_error *err)
{
    stats__work work;
    int32_t k;
    bool ok;

    memset(&work, 0, sizeof work);
    work.s = s;
    work.session = session;
    work.window = w;
    if (!stats__check(s, session, w, err)) return false;
    ok = stats__reserve(s, (size_t)w->n, 1, err) && stats__work_make(&work, err) &&
         (!w->has_score || stats__need_scored(s, err));
    if (ok) stats__run(&work, (size_t)s->n_groups, stats__gather);
    for (k = 0; ok && k < s->n_groups; k++)
        if (work.groups[k].failed)
            ok = tool_fail(err, "no routing of group %d, or no memory for it", (int)k + 1);
    if (ok) {
        stats__add_window(s, w, (uint64_t)work.n);
        stats__run(&work, (size_t)s->n_groups * ((size_t)s->N + 1), stats__task);
        s->n_held += (size_t)w->n;
    }
    stats__work_free(&work);
    return ok;
}

/* ---- stats: merging -------------------------------------------------------------------------- */

static TOOL_UNUSED bool stats__alike(const stats *a, const stats *b, tool_error *err)
{
    if (a == b) return tool_fail(err, "statistics cannot be added to themselves");
    if (a->model != b->model || a->N != b->N || a->H != b->H || a->n_groups != b->n_groups)
        return tool_fail(err, "they are of another model");
    if (a->config.top == b->config.top && a->config.sample == b->config.sample &&
        a->config.context == b->config.context) return true;
    return tool_fail(err, "they list %d strongest tokens, a sample of %d and %d tokens of context, "
                     "not %d, %d and %d", (int)b->config.top, (int)b->config.sample,
                     (int)b->config.context, (int)a->config.top, (int)a->config.sample,
                     (int)a->config.context);
}

/* map[k]: the number in `into` of label k; those that are not there are added, if they fit. */
static TOOL_UNUSED bool stats__map_labels(stats *into, const stats *from, uint32_t *map,
                                          tool_error *err)
{
    const uint64_t one = (into->experts.n + into->halves.n) * sizeof(stats_cell);
    size_t k, m, n = into->n_labels;

    for (k = 0; k < from->n_labels; k++) {
        for (m = 0; m < into->n_labels; m++)
            if (strcmp(into->labels[m].name, from->labels[k].name) == 0) break;
        map[k] = (uint32_t)(m < into->n_labels ? m : n++);
    }
    if (!stats__fits(into, stats_size(into) + (n - into->n_labels) * one, n, err))
        return false;
    for (k = 0; k < from->n_labels; k++)
        if (map[k] >= into->n_labels &&
            !stats__add_label(into, from->labels[k].name, strlen(from->labels[k].name), err))
            return false;
    return true;
}

static TOOL_UNUSED void stats__merge_table(stats_table *into, const stats_table *from,
                                           size_t n_labels, const uint32_t *map)
{
    size_t at, k;

    for (at = 0; at < into->n; at++) {
        into->sums[at].count += from->sums[at].count;
        into->sums[at].sum += from->sums[at].sum;
        into->sums[at].sum2 += from->sums[at].sum2;
    }
    for (k = 0; k < n_labels; k++)
        for (at = 0; at < into->n; at++) {
            into->cells[map[k]][at].count += from->cells[k][at].count;
            into->cells[map[k]][at].sum += from->cells[k][at].sum;
        }
    for (at = 0; from->scored != NULL && at < into->n; at++) {
        into->scored[at].sum += from->scored[at].sum;
        into->scored[at].sum2 += from->scored[at].sum2;
        into->scored[at].product += from->scored[at].product;
    }
}

static TOOL_UNUSED void stats__merge_lists(stats *into, const stats *from, const uint32_t *map)
{
    const uint32_t base = (uint32_t)into->n_held;
    stats_entry e;
    size_t at, k;

    for (k = 0; k < from->n_segments; k++) {
        stats_segment *segment = &into->segments[into->n_segments++];
        *segment = from->segments[k];
        segment->begin += base;
        segment->label = map[segment->label];
    }
    if (from->n_held > 0)
        memcpy(into->tokens + base, from->tokens, from->n_held * sizeof *into->tokens);
    into->n_held += from->n_held;
    for (at = 0; at < into->experts.n; at++) {
        const stats_entry *list = stats__entries(from, at);
        for (k = 0; k < from->lists[at].n_top; k++) {
            e = list[k];
            e.place += base;
            if (e.score >= into->lists[at].floor) stats__offer_top(into, at, e);
        }
        for (k = 0; k < from->lists[at].n_sample; k++) {
            e = list[from->config.top + (int32_t)k];
            e.place += base;
            if (e.key >= into->lists[at].cut) stats__offer_sample(into, at, e);
        }
    }
}

/* Adds all of `from`, of the same model and top, sample and context. Labels are matched by name.
   Texts that are in both count twice, but their tokens are listed once. Only labels may have been
   added after an error. */
static TOOL_UNUSED bool stats_merge(stats *into, const stats *from, tool_error *err)
{
    uint32_t *map;
    size_t k;
    bool ok;

    if (!stats__alike(into, from, err)) return false;
    map = tool_alloc(from->n_labels, sizeof *map, err);
    ok = map != NULL && stats__map_labels(into, from, map, err) &&
         stats__reserve(into, from->n_held, from->n_segments, err) &&
         (from->experts.scored == NULL || stats__need_scored(into, err));
    if (ok) {
        stats__merge_table(&into->experts, &from->experts, from->n_labels, map);
        stats__merge_table(&into->halves, &from->halves, from->n_labels, map);
        for (k = 0; k < into->halves.n * (size_t)into->H; k++) into->gates[k] += from->gates[k];
        for (k = 0; k < from->n_labels; k++)
            into->labels[map[k]].n_tokens += from->labels[k].n_tokens;
        into->n_tokens += from->n_tokens;
        into->n_scored += from->n_scored;
        into->sum_y += from->sum_y;
        into->sum_y2 += from->sum_y2;
        into->windows += from->windows;
        into->pass = 0; /* no pass can go on from here */
        stats__merge_lists(into, from, map);
    }
    free(map);
    return ok;
}

#include "stats_file.h"

#endif /* TOOL_STATS_H */
