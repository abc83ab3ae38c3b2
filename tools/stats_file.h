/* stats_file.h: statistics in a file. Included by stats.h.

   Little-endian: 40 bytes of header (magic, version, 0x01020304, bytes of the file, hash of what
   comes behind the header), then what stats__put_all writes. Only experts that were used are there.
   A file is read in one go and with limited memory; whatever its bytes, what was read is consistent
   or refused.                                                                                  */
#ifndef TOOL_STATS_FILE_H
#define TOOL_STATS_FILE_H

#define STATS_VERSION 1
#define STATS_HEADER 40

static TOOL_UNUSED const unsigned char stats__magic[8] = {'M', 'S', 'T', 'A', 'T', '\r', '\n',
                                                          0x1A};

/* ---- stats: writing a file ------------------------------------------------------------------- */

typedef struct stats__writer {
    tool_output   output;
    uint64_t      hash;
    unsigned char bytes[4096];
    size_t        n;
    tool_error   *err;
    bool          ok;
} stats__writer;

static TOOL_UNUSED void stats__flush(stats__writer *w)
{
    w->hash = tool_hash_more(w->hash, w->bytes, w->n);
    w->ok = w->ok && tool_output_write(&w->output, w->bytes, w->n, w->err);
    w->n = 0;
}

static TOOL_UNUSED void stats__put(stats__writer *w, uint64_t value, size_t size)
{
    size_t k;

    if (w->n + size > sizeof w->bytes) stats__flush(w);
    for (k = 0; k < size; k++) w->bytes[w->n++] = (unsigned char)(value >> (8 * k));
}

static TOOL_UNUSED void stats__put_double(stats__writer *w, double x)
{
    uint64_t bits;

    memcpy(&bits, &x, sizeof bits);
    stats__put(w, bits, 8);
}

static TOOL_UNUSED void stats__put_float(stats__writer *w, float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    stats__put(w, bits, 4);
}

static TOOL_UNUSED void stats__put_counts(stats__writer *w, const stats *s, const stats_table *t,
                                          size_t at)
{
    const stats_sum *sum = &t->sums[at];
    size_t n = 0, k;

    stats__put(w, sum->count, 8);
    stats__put_double(w, sum->sum);
    stats__put_double(w, sum->sum2);
    for (k = 0; k < s->n_labels; k++) n += t->cells[k][at].sum > 0;
    stats__put(w, n, 4);
    for (k = 0; k < s->n_labels; k++)
        if (t->cells[k][at].sum > 0) {
            stats__put(w, k, 4);
            stats__put(w, t->cells[k][at].count, 8);
            stats__put_double(w, t->cells[k][at].sum);
        }
    if (t->scored == NULL) return;
    stats__put_double(w, t->scored[at].sum);
    stats__put_double(w, t->scored[at].sum2);
    stats__put_double(w, t->scored[at].product);
}

static TOOL_UNUSED void stats__put_list(stats__writer *w, const stats_entry *list, size_t n)
{
    size_t k;

    stats__put(w, n, 2);
    for (k = 0; k < n; k++) { /* the keys follow from the place */
        stats__put_float(w, list[k].score);
        stats__put(w, list[k].place, 4);
    }
}

static TOOL_UNUSED void stats__put_head(stats__writer *w, const stats *s)
{
    const stats_config *c = &s->config;
    size_t k;

    stats__put(w, s->model, 8);
    stats__put(w, (uint64_t)s->N, 4);
    stats__put(w, (uint64_t)s->H, 4);
    stats__put(w, (uint64_t)s->n_groups, 4);
    stats__put(w, (uint64_t)c->top, 4);
    stats__put(w, (uint64_t)c->sample, 4);
    stats__put(w, (uint64_t)c->context, 4);
    stats__put(w, s->pass, 8);
    stats__put(w, s->windows, 8);
    stats__put(w, s->n_tokens, 8);
    stats__put(w, s->experts.scored != NULL, 4);
    stats__put(w, s->n_scored, 8);
    stats__put_double(w, s->sum_y);
    stats__put_double(w, s->sum_y2);
    stats__put(w, s->n_labels, 4);
    for (k = 0; k < s->n_labels; k++) {
        const char *c_name = s->labels[k].name;
        stats__put(w, s->labels[k].n_tokens, 8);
        stats__put(w, strlen(c_name), 1);
        while (*c_name != '\0') stats__put(w, (unsigned char)*c_name++, 1);
    }
}

static TOOL_UNUSED void stats__put_all(stats__writer *w, const stats *s)
{
    uint64_t used = 0;
    size_t k;

    stats__put_head(w, s);
    stats__put(w, s->n_segments, 4);
    for (k = 0; k < s->n_segments; k++) {
        stats__put(w, s->segments[k].document, 8);
        stats__put(w, (uint64_t)s->segments[k].position, 8);
        stats__put(w, s->segments[k].n, 4);
        stats__put(w, s->segments[k].label, 4);
    }
    for (k = 0; k < s->n_held; k++) stats__put(w, (uint32_t)s->tokens[k], 4);
    for (k = 0; k < s->halves.n * (size_t)s->H; k++) stats__put_double(w, s->gates[k]);
    for (k = 0; k < s->halves.n; k++) stats__put_counts(w, s, &s->halves, k);
    for (k = 0; k < s->experts.n; k++) used += s->experts.sums[k].sum > 0;
    stats__put(w, used, 8);
    for (k = 0; k < s->experts.n; k++)
        if (s->experts.sums[k].sum > 0) {
            stats__put(w, k, 8);
            stats__put_counts(w, s, &s->experts, k);
            stats__put_list(w, stats__entries(s, k), s->lists[k].n_top);
            stats__put_list(w, stats__entries(s, k) + s->config.top, s->lists[k].n_sample);
        }
    stats__flush(w);
}

/* Drops tokens without use, so it changes *s, but not what it says. */
static TOOL_UNUSED bool stats_save(stats *s, const char *path, tool_error *err)
{
    stats__writer w;
    unsigned char header[STATS_HEADER] = {0};
    bool ok;

    if (!stats__drop(s, err)) return false;
    memset(&w, 0, sizeof w);
    w.err = err;
    w.ok = true;
    w.hash = TOOL_HASH_START;
    if (!tool_output_open(&w.output, path, err)) return false;
    w.ok = tool_output_write(&w.output, header, sizeof header, err);
    stats__put_all(&w, s);
    for (w.n = 0; w.n < 8; w.n++) w.bytes[w.n] = stats__magic[w.n];
    stats__put(&w, STATS_VERSION, 4);
    stats__put(&w, 0x01020304, 4);
    stats__put(&w, w.output.size, 8);
    stats__put(&w, w.hash, 8);
    stats__put(&w, 0, 8);
    ok = w.ok && tool_output_write_at(&w.output, w.bytes, STATS_HEADER, 0, err) &&
         tool_output_commit(&w.output, err);
    tool_output_abandon(&w.output);
    return ok;
}

/* ---- stats: reading a file ------------------------------------------------------------------- */

typedef struct stats__reader {
    int           fd;
    uint64_t      size, at;    /* of the file; read into `bytes` so far */
    uint64_t      hash;
    unsigned char bytes[65536];
    size_t        from, have;
    tool_error   *err;
    bool          ok;          /* false: err says why, and all numbers are 0 */
} stats__reader;

static TOOL_UNUSED bool stats__bad(stats__reader *r, const char *what)
{
    if (r->ok) r->ok = tool_fail(r->err, "is damaged: %s", what);
    return false;
}

/* Bytes that were not taken yet. */
static TOOL_UNUSED uint64_t stats__left(const stats__reader *r)
{
    return r->size - r->at + (r->have - r->from);
}

static TOOL_UNUSED uint64_t stats__get(stats__reader *r, size_t size)
{
    uint64_t value = 0, more = r->size - r->at;
    size_t k;

    if (r->ok && r->have - r->from < size && stats__left(r) >= size) {
        memmove(r->bytes, r->bytes + r->from, r->have - r->from);
        r->have -= r->from;
        r->from = 0;
        if (more > sizeof r->bytes - r->have) more = sizeof r->bytes - r->have;
        r->ok = tool_pread(r->fd, r->bytes + r->have, more, r->at, r->err);
        r->hash = tool_hash_more(r->hash, r->bytes + r->have, (size_t)more);
        r->have += (size_t)more;
        r->at += more;
    }
    if (r->ok && r->have - r->from < size) stats__bad(r, "it ends too early");
    if (!r->ok) return 0;
    for (k = 0; k < size; k++) value |= (uint64_t)r->bytes[r->from++] << (8 * k);
    return value;
}

/* A number from least to most. Where that is what a sum can reach, all that is made of it later is
   finite. */
static TOOL_UNUSED double stats__get_within(stats__reader *r, double least, double most)
{
    const uint64_t bits = stats__get(r, 8);
    double x;

    memcpy(&x, &bits, sizeof x);
    if (!(x >= least && x <= most)) return stats__bad(r, "a sum"), 0;
    return x;
}

static TOOL_UNUSED void stats__get_counts(stats__reader *r, const stats *s, const stats_table *t,
                                          size_t at)
{
    const double score = 2 * (double)s->H, most = score * (double)s->n_tokens;
    stats_sum *sum = &t->sums[at];
    uint64_t n, count = 0, next = 0;

    sum->count = stats__get(r, 8);
    sum->sum = stats__get_within(r, 0, most);
    sum->sum2 = stats__get_within(r, 0, score * most);
    for (n = stats__get(r, 4); n > 0 && r->ok; n--) {
        const uint64_t label = stats__get(r, 4);
        stats_cell *cell;
        if (label < next || label >= s->n_labels) {
            stats__bad(r, "a label");
            return;
        }
        cell = &t->cells[label][at];
        cell->count = stats__get(r, 8);
        cell->sum = stats__get_within(r, 0, most);
        if (cell->count > s->labels[label].n_tokens) stats__bad(r, "a count of a label");
        count += cell->count;
        next = label + 1;
    }
    if (count != sum->count || count > s->n_tokens) stats__bad(r, "a count");
    if (t->scored == NULL) return;
    t->scored[at].sum = stats__get_within(r, 0, most);
    t->scored[at].sum2 = stats__get_within(r, 0, score * most);
    t->scored[at].product = stats__get_within(r, -2 * STATS_MAX_Y * most, 2 * STATS_MAX_Y * most);
}

/* A list, in its order, each token once. Returns how many. */
static TOOL_UNUSED uint16_t stats__get_list(stats__reader *r, const stats *s, size_t at,
                                            stats_entry *list, int32_t capacity, bool by_score)
{
    const uint64_t n = stats__get(r, 2);
    uint64_t k, m;

    if (n > (uint64_t)capacity || n > s->experts.sums[at].count) stats__bad(r, "a list");
    for (k = 0; k < n && r->ok; k++) {
        const uint32_t bits = (uint32_t)stats__get(r, 4);
        const stats_segment *in;
        uint64_t hash;
        memcpy(&list[k].score, &bits, sizeof bits);
        list[k].place = (uint32_t)stats__get(r, 4);
        if (!(list[k].score >= (float)STATS_ACTIVE && list[k].score <= 2 * (float)s->H) ||
            list[k].place >= s->n_held || !stats__counts(s, s->tokens[list[k].place]))
            return stats__bad(r, "a token of a list"), (uint16_t)0;
        in = stats__segment(s, list[k].place);
        hash = stats__hash(in->document, in->position + (int64_t)(list[k].place - in->begin));
        list[k].key = by_score ? (uint32_t)(hash >> 32) : stats__sample_key(hash, at);
        if (k > 0 && !stats__before(s, &list[k - 1], &list[k], by_score))
            return stats__bad(r, "the order of a list"), (uint16_t)0;
        for (m = 0; m < k; m++)
            if (list[m].key == list[k].key &&
                stats__place_order(s, list[m].place, list[k].place) == 0)
                return stats__bad(r, "a token is listed twice"), (uint16_t)0;
    }
    return (uint16_t)(r->ok ? n : 0);
}

static TOOL_UNUSED void stats__get_experts(stats__reader *r, stats *s)
{
    const stats_config *c = &s->config;
    uint64_t n = stats__get(r, 8), next = 0;

    for (; n > 0 && r->ok; n--) {
        const uint64_t at = stats__get(r, 8);
        stats_list *l;
        stats_entry *list;
        if (at < next || at >= s->experts.n) {
            stats__bad(r, "an expert");
            return;
        }
        l = &s->lists[at];
        list = stats__entries(s, (size_t)at);
        stats__get_counts(r, s, &s->experts, (size_t)at);
        l->n_top = stats__get_list(r, s, (size_t)at, list, c->top, true);
        l->n_sample = stats__get_list(r, s, (size_t)at, list + c->top, c->sample, false);
        if (l->n_top == c->top) l->floor = list[c->top - 1].score;
        if (l->n_sample == c->sample) l->cut = list[c->top + c->sample - 1].key;
        next = at + 1;
    }
}

static TOOL_UNUSED bool stats__get_labels(stats__reader *r, stats *s, uint64_t n)
{
    char name[256];
    uint64_t all = 0, size, k;

    for (; n > 0 && r->ok; n--) {
        const uint64_t n_tokens = stats__get(r, 8);
        size = stats__get(r, 1);
        for (k = 0; k < size; k++) name[k] = (char)stats__get(r, 1);
        if (!r->ok) return false;
        r->ok = stats__add_label(s, name, (size_t)size, r->err);
        if (!r->ok) return false;
        s->labels[s->n_labels - 1].n_tokens = n_tokens;
        if (n_tokens > s->n_tokens - all) return stats__bad(r, "the tokens of a label");
        all += n_tokens;
    }
    return all == s->n_tokens || stats__bad(r, "the tokens of all labels");
}

/* The segments, and the tokens in them. */
static TOOL_UNUSED bool stats__get_tokens(stats__reader *r, stats *s)
{
    const uint64_t n = stats__get(r, 4);
    uint64_t k, held = 0;

    if (n > stats__left(r) / 24) return stats__bad(r, "the number of segments");
    s->segments = tool_alloc(n, sizeof *s->segments, r->err);
    if (s->segments == NULL) return r->ok = false;
    s->segment_capacity = s->n_segments = (size_t)n;
    for (k = 0; k < n; k++) {
        stats_segment *segment = &s->segments[k];
        uint64_t position;
        segment->document = stats__get(r, 8);
        position = stats__get(r, 8);
        segment->position = (int64_t)position;
        segment->n = (uint32_t)stats__get(r, 4);
        segment->label = (uint32_t)stats__get(r, 4);
        segment->begin = (uint32_t)held;
        held += segment->n;
        if (held > UINT32_MAX || segment->n == 0 || segment->label >= s->n_labels ||
            position > INT64_MAX - UINT32_MAX) return stats__bad(r, "a segment");
    }
    if (held > stats__left(r) / 4) return stats__bad(r, "the number of tokens");
    s->tokens = tool_alloc(held, sizeof *s->tokens, r->err);
    if (s->tokens == NULL) return r->ok = false;
    s->held_capacity = s->n_held = (size_t)held;
    for (k = 0; k < held; k++) {
        s->tokens[k] = (int32_t)(uint32_t)stats__get(r, 4);
        if (s->tokens[k] < -1 || s->tokens[k] >= s->vocab_size) return stats__bad(r, "a token");
    }
    if (s->n_held > STATS_HELD / 2) s->drop_at = 2 * s->n_held;
    return r->ok && stats__fits(s, stats_size(s), s->n_labels, r->err);
}

/* Everything before the tables. s holds what the model says. */
static TOOL_UNUSED bool stats__get_head(stats__reader *r, stats *s)
{
    stats_config *c = &s->config;
    const bool same = stats__get(r, 8) == s->model;
    const bool alike = stats__get(r, 4) == (uint64_t)s->N && stats__get(r, 4) == (uint64_t)s->H &&
                       stats__get(r, 4) == (uint64_t)s->n_groups;
    uint64_t n, scored;
    double most;

    if (r->ok && !(same && alike))
        return r->ok = tool_fail(r->err, "are statistics of another model or tokenizer");
    c->top = (int32_t)stats__get(r, 4);
    c->sample = (int32_t)stats__get(r, 4);
    c->context = (int32_t)stats__get(r, 4);
    s->pass = stats__get(r, 8);
    s->windows = stats__get(r, 8);
    s->n_tokens = stats__get(r, 8);
    scored = stats__get(r, 4);
    s->n_scored = stats__get(r, 8);
    most = 2 * STATS_MAX_Y * (double)s->n_scored;
    s->sum_y = stats__get_within(r, -most, most);
    s->sum_y2 = stats__get_within(r, 0, STATS_MAX_Y * most);
    n = stats__get(r, 4);
    if (scored > 1 || s->n_tokens > STATS_MAX_TOKENS || s->n_scored > s->n_tokens ||
        s->n_scored > (scored ? s->n_tokens : 0) || n > TEXTS_MAX_LABELS)
        stats__bad(r, "a number of the header");
    if (!r->ok) return false;
    r->ok = stats__start(s, (size_t)n, r->err) && (scored == 0 || stats__need_scored(s, r->err));
    return r->ok && stats__get_labels(r, s, n);
}

static TOOL_UNUSED bool stats__get_all(stats__reader *r, stats *s, tool_error *err)
{
    uint64_t size, hash;
    size_t k;
    bool magic = true;

    for (k = 0; k < 8; k++) magic = stats__get(r, 1) == stats__magic[k] && magic;
    if (!magic) return tool_fail(err, "is no file of statistics");
    if (stats__get(r, 4) != STATS_VERSION || stats__get(r, 4) != 0x01020304)
        return tool_fail(err, "is of another version than %d", STATS_VERSION);
    size = stats__get(r, 8);
    hash = stats__get(r, 8);
    if (size != r->size || stats__get(r, 8) != 0)
        return tool_fail(err, "has %llu bytes, but was written with %llu",
                         (unsigned long long)r->size, (unsigned long long)size);
    r->hash = tool_hash_more(TOOL_HASH_START, r->bytes + r->from, r->have - r->from);
    if (!stats__get_head(r, s) || !stats__get_tokens(r, s)) return false;
    for (k = 0; k < s->halves.n * (size_t)s->H && r->ok; k++)
        s->gates[k] = stats__get_within(r, 0, 2 * (double)s->n_tokens);
    for (k = 0; k < s->halves.n && r->ok; k++) stats__get_counts(r, s, &s->halves, k);
    stats__get_experts(r, s);
    if (r->ok && stats__left(r) > 0) stats__bad(r, "bytes are left over");
    return r->ok && (r->hash == hash || stats__bad(r, "its hash is another one"));
}

/* With a limit for the memory, 0 = 4 GB. It becomes config.max_bytes; n_threads is 1. After a
   failure there is nothing to free. */
static TOOL_UNUSED bool stats_load_limited(stats *s, const monet_model *model, const char *path,
                                           uint64_t max_bytes, tool_error *err)
{
    stats__reader *r = tool_alloc(1, sizeof *r, err);
    struct stat status;
    bool ok;

    memset(s, 0, sizeof *s);
    s->config = stats__defaults(NULL);
    if (max_bytes > 0) s->config.max_bytes = max_bytes;
    if (r == NULL) return false;
    r->err = err;
    r->fd = tool__open(path, &status, err);
    ok = r->fd >= 0;
    if (ok) {
        r->ok = true;
        r->size = (uint64_t)status.st_size;
        ok = stats__fingerprint(s, model, err) && stats__get_all(r, s, err);
        close(r->fd);
    }
    free(r);
    if (ok) return true;
    stats_free(s);
    return tool_prefix(err, path);
}

static TOOL_UNUSED bool stats_load(stats *s, const monet_model *model, const char *path,
                                   tool_error *err)
{
    return stats_load_limited(s, model, path, 0, err);
}

#endif /* TOOL_STATS_FILE_H */
