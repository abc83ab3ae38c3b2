/* test_stats.c: statistics of experts against all N*N scores of all tokens, computed in double.
   cc -O2 -pthread -I. tests/test_stats.c -o test_stats -lm && ./test_stats */
#define _FILE_OFFSET_BITS 64
#define _XOPEN_SOURCE 700
#include <stddef.h>
#include <stdlib.h>

/* Allocation number fault_at from now on fails. */
static long fault_at = -1, fault_steps;
static int fault_now(void) { return fault_at >= 0 && fault_steps++ == fault_at; }
static void *fault_calloc(size_t n, size_t size) { return fault_now() ? NULL : calloc(n, size); }
static void *fault_realloc(void *p, size_t size) { return fault_now() ? NULL : realloc(p, size); }
#define tool_sys_calloc fault_calloc
#define tool_sys_realloc fault_realloc
#define tool_sys_open open
#define tool_sys_pread pread
#define tool_sys_pwrite pwrite
#define tool_sys_posix_fallocate posix_fallocate
#define tool_sys_fsync(fd) ((void)(fd), 0) /* the disk has better things to do */
#define tool_sys_close close
#define tool_sys_rename rename
#define TOOL_SYS(name) tool_sys_##name

#include "tools/common.h"
#include "tools/json.h"
#include "tools/tokenizer_files.h"

#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"

#include "tools/stats.h"

#include "tiny.h"

enum { N = 8, H = 2, GROUPS = 2, EXPERTS = GROUPS * N * N, HALVES = GROUPS * 2 * N,
       WINDOWS = 24, WINDOW = 20, LABELS = 3, TOP = 5, SAMPLE = 6, CONTEXT = 3,
       MOST = WINDOWS * WINDOW };

static monet_model *model;
static monet_session *session;
static const char *const labels[LABELS] = {"one", "two", "three"};

/* ---- texts that are made up ------------------------------------------------------------------ */

static int32_t tokens[WINDOWS][WINDOW];
static text_window windows[WINDOWS];

/* Documents of three windows; BOS here and there; some have a score. The last but one is padding:
   vectors that are no tokens. */
static void make_windows(void)
{
    int k, t;

    for (k = 0; k < WINDOWS; k++) {
        text_window *w = &windows[k];
        memset(w, 0, sizeof *w);
        for (t = 0; t < WINDOW; t++) {
            uint64_t x = tiny_mix((uint64_t)(k * WINDOW + t + 1));
            tokens[k][t] = x % 7 == 0 ? 1 : (int32_t)(3 + x % 40);
            if (k == WINDOWS - 2) tokens[k][t] = -1;
        }
        w->tokens = tokens[k];
        w->n = k % 5 == 4 ? WINDOW - 7 : WINDOW;
        w->label = (uint32_t)(k / 3 % LABELS);
        w->document = tiny_mix((uint64_t)(k / 3));
        w->first = k % 3 * WINDOW;
        w->has_score = k % 4 == 1;
        w->score = w->has_score ? (double)(tiny_mix((uint64_t)k) % 100) / 10 - 3 : 0;
    }
}

static void eval_window(const text_window *w)
{
    static float vectors[WINDOW * 16];
    int k;

    CHECK_EQ(monet_session_rewind(session, 0), MONET_OK);
    if (w->tokens[0] >= 0) {
        CHECK_EQ(monet_session_eval(session, w->tokens, (size_t)w->n), MONET_OK);
        return;
    }
    for (k = 0; k < WINDOW * 16; k++) vectors[k] = tiny_random(1, 2, (uint64_t)k);
    CHECK_EQ(monet_session_eval_embeddings(session, vectors, (size_t)w->n), MONET_OK);
}

static bool add(stats *s, int k)
{
    tool_error err = {{0}};

    eval_window(&windows[k]);
    return CHECK(stats_add(s, session, &windows[k], &err)) || (puts(err.message), false);
}

static stats_config small(int n_threads)
{
    stats_config c = {TOP, SAMPLE, CONTEXT, 0, 0};

    c.n_threads = n_threads;
    return c;
}

static stats make(int from, int to, int n_threads)
{
    stats s;
    tool_error err = {{0}};
    stats_config c = small(n_threads);

    CHECK(stats_create(&s, model, &c, labels, LABELS, &err));
    for (; from < to; from++) add(&s, from);
    return s;
}

/* ---- the same by brute force ----------------------------------------------------------------- */

typedef struct reference {
    struct { /* of each token that is counted */
        const text_window *w;
        int32_t index;
        double experts[EXPERTS], halves[HALVES];
    } all[MOST];
    double gates[GROUPS][2][H][N];
    int n;
} reference;

static reference *wanted;

static double gate(const monet_routing *r, int axis, int h, int i)
{
    return (double)(axis == 0 ? r->g1 : r->g2)[h * N + i];
}

static void refer_token(int g, const monet_routing *r)
{
    double *experts = wanted->all[wanted->n].experts + g * N * N;
    double *halves = wanted->all[wanted->n].halves + g * 2 * N;
    int h, i, j;

    for (h = 0; h < H; h++)
        for (i = 0; i < N; i++) {
            for (j = 0; j < N; j++) experts[i * N + j] += gate(r, 0, h, i) * gate(r, 1, h, j);
            for (j = 0; j < 2; j++) {
                halves[j * N + i] += gate(r, j, h, i);
                wanted->gates[g][j][h][i] += gate(r, j, h, i);
            }
        }
}

static void refer(int from, int to)
{
    monet_routing r;
    int32_t t;
    int g;

    memset(wanted, 0, sizeof *wanted);
    for (; from < to; from++) {
        const text_window *w = &windows[from];
        eval_window(w);
        for (t = 0; t < w->n; t++) {
            if (w->tokens[t] < 0 || w->tokens[t] == 1) continue;
            for (g = 0; g < GROUPS; g++) {
                CHECK_EQ(monet_session_routing(session, t, g, &r), MONET_OK);
                refer_token(g, &r);
            }
            wanted->all[wanted->n].w = w;
            wanted->all[wanted->n++].index = t;
        }
    }
}

static double score_of(int t, int at, bool half)
{
    return half ? wanted->all[t].halves[at] : wanted->all[t].experts[at];
}

/* Pearson's r with the means subtracted first; label < 0: with the scores of the texts. */
static double reference_r(int at, bool half, int label)
{
    double sx = 0, sy = 0, xx = 0, yy = 0, xy = 0;
    int t, pass, n = 0;

    for (pass = 0; pass < 2; pass++)
        for (t = 0; t < wanted->n; t++) {
            const text_window *w = wanted->all[t].w;
            double x = score_of(t, at, half);
            double y = label < 0 ? w->score : w->label == (uint32_t)label;
            if (label < 0 && !w->has_score) continue;
            if (pass == 0) {
                n++;
                sx += x;
                sy += y;
                continue;
            }
            xx += (x - sx / n) * (x - sx / n);
            yy += (y - sy / n) * (y - sy / n);
            xy += (x - sx / n) * (y - sy / n);
        }
    return xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : NAN;
}

#define CHECK_SUM(a, b) CHECK_NEAR(a, b, 1e-12 * fabs(b))

static void check_r(double r, double right) /* the streamed sums lose some digits */
{
    if (right != right) CHECK(r != r || fabs(r) < 1e-6);
    else CHECK_NEAR(r, right, 1e-9);
}

static void check_numbers(const stats *s, int at, bool half, const stats_sum *sum)
{
    const stats_table *table = half ? &s->halves : &s->experts;
    double x, all = 0, all2 = 0, of[LABELS] = {0};
    uint64_t count = 0, count_of[LABELS] = {0};
    int t, k;

    for (t = 0; t < wanted->n; t++) {
        const uint32_t label = wanted->all[t].w->label;
        x = score_of(t, at, half);
        count += x > 0.01;
        count_of[label] += x > 0.01;
        all += x;
        all2 += x * x;
        of[label] += x;
    }
    CHECK_EQ(sum->count, count);
    CHECK_SUM(sum->sum, all);
    CHECK_SUM(sum->sum2, all2);
    for (k = 0; k < LABELS; k++) {
        CHECK_EQ(table->cells[k][at].count, count_of[k]);
        CHECK_SUM(table->cells[k][at].sum, of[k]);
        check_r(stats__label_pearson(s, table, (size_t)at, (size_t)k), reference_r(at, half, k));
    }
    check_r(stats__pearson(s, table, (size_t)at), reference_r(at, half, -1));
}

/* ---- lists by brute force -------------------------------------------------------------------- */

typedef struct listed {
    float score;
    uint32_t key;
    const text_window *w;
    int32_t index;
} listed;

static int by_score(const void *a, const void *b)
{
    const listed *x = a, *y = b;

    if (x->score < y->score || x->score > y->score) return x->score > y->score ? -1 : 1;
    return x->key > y->key ? -1 : x->key < y->key;
}

static int by_key(const void *a, const void *b)
{
    const listed *x = a, *y = b;

    return x->key > y->key ? -1 : x->key < y->key;
}

static int64_t place_of(const listed *x) { return x->w->first + x->index; }

/* All tokens that the expert is active on, each place once, with its highest score. */
static int reference_list(int at, bool sample, listed *list)
{
    int t, k, n = 0;

    for (t = 0; t < wanted->n; t++) {
        listed x;
        uint64_t hash;
        if (!(wanted->all[t].experts[at] > 0.01)) continue;
        x.w = wanted->all[t].w;
        x.index = wanted->all[t].index;
        x.score = (float)wanted->all[t].experts[at];
        hash = stats__hash(x.w->document, place_of(&x));
        x.key = sample ? stats__sample_key(hash, (size_t)at) : (uint32_t)(hash >> 32);
        for (k = 0; k < n; k++)
            if (list[k].w->document == x.w->document && place_of(&list[k]) == place_of(&x)) break;
        if (k == n) list[n++] = x;
        else if (x.score > list[k].score) list[k] = x;
    }
    qsort(list, (size_t)n, sizeof *list, sample ? by_key : by_score);
    if (!sample) return n < TOP ? n : TOP;
    n = n < SAMPLE ? n : SAMPLE;
    qsort(list, (size_t)n, sizeof *list, by_score);
    return n;
}

static void check_example(const stats_example *x, const listed *y)
{
    const text_window *w = y->w;
    int32_t from = y->index, to = y->index + 1;

    while (from > 0 && y->index - from < CONTEXT && w->tokens[from - 1] > 1) from--;
    while (to < w->n && to - y->index <= CONTEXT && w->tokens[to] > 1) to++;
    CHECK(!(x->score < y->score) && !(x->score > y->score));
    CHECK(x->document == w->document && x->position == place_of(y) && x->label == w->label);
    CHECK_EQ(x->n_before, y->index - from);
    if (CHECK_EQ(x->n, to - from))
        CHECK(memcmp(x->tokens, w->tokens + from, (size_t)x->n * sizeof *x->tokens) == 0);
}

/* Returns whether the top list was cut between equal scores. */
static int check_lists(const stats *s, int at)
{
    static listed list[MOST];
    stats_example out[TOP + SAMPLE];
    int g = at / (N * N), i = at / N % N, j = at % N, k, n, tie;

    n = reference_list(at, false, list);
    if (CHECK_EQ(stats_top(s, g, i, j, out, TOP + SAMPLE), n))
        for (k = 0; k < n; k++) check_example(&out[k], &list[k]);
    tie = n == TOP && s->experts.sums[at].count > TOP && list[TOP].score >= list[TOP - 1].score;
    n = reference_list(at, true, list);
    if (CHECK_EQ(stats_sample(s, g, i, j, out, TOP + SAMPLE), n))
        for (k = 0; k < n; k++) check_example(&out[k], &list[k]);
    if (n == SAMPLE) {
        CHECK_EQ(stats_sample(s, g, i, j, out, 2), 2);
        check_example(&out[0], &list[0]);
        check_example(&out[1], &list[n - 1]);
        CHECK_EQ(stats_top(s, g, i, j, out, 1), 1);
    }
    return tie;
}

/* All that is known, against windows from..to-1 (or what refer gave last). */
static void check_all(const stats *s)
{
    uint64_t of[LABELS] = {0}, n_scored = 0;
    int at, t, g, i, j, h;

    for (t = 0; t < wanted->n; t++) {
        of[wanted->all[t].w->label]++;
        n_scored += wanted->all[t].w->has_score;
    }
    CHECK_EQ(s->n_tokens, wanted->n);
    CHECK_EQ(s->n_scored, n_scored);
    for (t = 0; t < LABELS; t++) CHECK_EQ(s->labels[t].n_tokens, of[t]);
    for (at = 0; at < EXPERTS; at++) {
        double expected = 0;
        g = at / (N * N);
        i = at / N % N;
        j = at % N;
        check_numbers(s, at, false, stats_expert(s, g, i, j));
        CHECK_NEAR(stats_mean(s, g, i, j), s->experts.sums[at].sum / wanted->n, 1e-15);
        for (h = 0; h < H; h++)
            expected += wanted->gates[g][0][h][i] / wanted->n * wanted->gates[g][1][h][j] /
                        wanted->n;
        if (expected > 0)
            CHECK_NEAR(stats_lift(s, g, i, j) * expected, stats_mean(s, g, i, j), 1e-12);
        else CHECK(stats_lift(s, g, i, j) != stats_lift(s, g, i, j));
    }
    for (at = 0; at < HALVES; at++)
        check_numbers(s, at, true, stats_half(s, at / (2 * N), at / N % 2, at % N));
}

/* ---- the tests ------------------------------------------------------------------------------- */

static tiny_file saved(stats *s)
{
    tool_error err = {{0}};
    const char *path = tiny_path("some.stats");
    tiny_file file;

    if (!CHECK(stats_save(s, path, &err))) puts(err.message);
    file = tiny_read(path);
    CHECK(remove(path) == 0);
    return file;
}

static bool load(stats *s, const tiny_file *file, tool_error *err)
{
    const char *path = tiny_path("some.stats");
    FILE *f = fopen(path, "wb");
    bool ok;

    CHECK(f != NULL && fwrite(file->data, 1, file->size, f) == file->size && fclose(f) == 0);
    ok = stats_load(s, model, path, err);
    remove(path);
    return ok;
}

static void check_same(stats *s, const tiny_file *file)
{
    tiny_file other = saved(s);

    if (CHECK_EQ(other.size, file->size)) CHECK(memcmp(other.data, file->data, file->size) == 0);
    tiny_drop(&other);
}

/* No token is held that is not near one in a list. */
static void check_held(const stats *s)
{
    stats_example out[2];
    char *near = calloc(s->n_held, 1);
    size_t k, n;
    int at, d;

    for (at = 0; near != NULL && at < EXPERTS; at++) {
        n = stats_top(s, at / N / N, at / N % N, at % N, out, 1);
        n += stats_sample(s, at / N / N, at / N % N, at % N, out + n, 1);
        for (k = 0; k < n; k++)
            for (d = -s->config.context; d <= s->config.context; d++) {
                ptrdiff_t place = out[k].tokens + out[k].n_before - s->tokens + d;
                if (place >= 0 && place < (ptrdiff_t)s->n_held) near[place] = 1;
            }
    }
    for (k = n = 0; near != NULL && k < s->n_held; k++) n += near[k] == 1;
    CHECK_EQ(n, s->n_held);
    free(near);
}

/* One thread or many, and with contexts dropped all the time: the same file, byte for byte. */
static void test_whole(tiny_file *file)
{
    static const int n_threads[] = {2, 3, 7};
    stats s = make(0, WINDOWS, 1);
    stats_config c = small(1);
    tool_error err;
    int k, at, ties = 0, cut = 0;

    refer(0, WINDOWS);
    check_all(&s);
    for (at = 0; at < EXPERTS; at++) {
        ties += check_lists(&s, at);
        cut += s.experts.sums[at].count > SAMPLE;
    }
    CHECK(ties > 0 && cut > EXPERTS / 4); /* both happen */
    *file = saved(&s);
    for (at = 0; at < EXPERTS; at++) check_lists(&s, at);
    stats_free(&s);
    for (k = 0; k < 3; k++) {
        s = make(0, WINDOWS, n_threads[k]);
        check_same(&s, file);
        stats_free(&s);
    }
    CHECK(stats_create(&s, model, &c, labels, LABELS, &err));
    for (k = 0; k < WINDOWS; k++) {
        s.drop_at = 0;
        add(&s, k);
    }
    check_same(&s, file);
    stats_free(&s);
    c.top = c.sample = c.context = 1; /* fewer are kept now */
    CHECK(stats_create(&s, model, &c, labels, LABELS, &err));
    for (k = 0; k < WINDOWS; k++) add(&s, k);
    k = (int)s.n_held;
    CHECK(stats__drop(&s, &err));
    CHECK(s.n_held < (size_t)k);
    check_held(&s);
    stats_free(&s);
}

/* Interrupted anywhere, saved, loaded and gone on with. */
static void test_resume(const tiny_file *whole)
{
    tool_error err = {{0}};
    stats s, t;
    tiny_file part;
    int stop, k;

    for (stop = 0; stop <= WINDOWS; stop += 6) {
        s = make(0, stop, 1);
        s.pass = 77;
        part = saved(&s);
        stats_free(&s);
        if (!CHECK(load(&t, &part, &err))) puts(err.message);
        CHECK(t.pass == 77 && t.windows == (uint64_t)stop && t.config.context == CONTEXT);
        t.pass = 0;
        for (k = stop; k < WINDOWS; k++) add(&t, k);
        check_same(&t, whole);
        stats_free(&t);
        tiny_drop(&part);
    }
}

/* Two parts, in both orders, with the labels in another order, one of them from a file. */
static void test_merge(void)
{
    static const char *const other[2] = {"three", "one"};
    const stats_config c = small(1);
    tool_error err = {{0}};
    tiny_file file;
    stats a, b;
    int order, at, k;

    refer(0, WINDOWS);
    for (order = 0; order < 2; order++) {
        a = make(order ? 10 : 0, order ? WINDOWS : 10, 1);
        b = make(order ? 0 : 10, order ? 10 : WINDOWS, 1);
        file = saved(&b);
        stats_free(&b);
        CHECK(load(&b, &file, &err) && stats_merge(&a, &b, &err));
        CHECK(a.windows == WINDOWS && a.pass == 0);
        check_all(&a);
        for (at = 0; at < EXPERTS; at++) check_lists(&a, at);
        stats_free(&a);
        stats_free(&b);
        tiny_drop(&file);
    }
    CHECK(stats_create(&a, model, &c, other, 2, &err));
    for (k = 0; k < WINDOWS; k++)
        if (windows[k].label != 1) {
            text_window w = windows[k];
            w.label = w.label == 2 ? 0 : 1;
            eval_window(&w);
            CHECK(stats_add(&a, session, &w, &err));
        }
    CHECK(stats_create(&b, model, &c, labels, 2, &err));
    for (k = 0; k < WINDOWS; k++)
        if (windows[k].label == 1) add(&b, k);
    CHECK(stats_merge(&b, &a, &err)); /* one, two and the new one: three */
    CHECK(b.n_labels == LABELS && strcmp(b.labels[2].name, "three") == 0);
    check_all(&b);
    for (at = 0; at < EXPERTS; at++) check_lists(&b, at);
    stats_free(&a);
    stats_free(&b);
}

/* Parts that overlap, cut into windows elsewhere: sums count twice, but a token is listed once,
   with its highest score. */
static void test_overlap(void)
{
    static int32_t joined[2 * WINDOW];
    text_window old[WINDOWS];
    stats a, b;
    tool_error err;
    int order, k, at;

    memcpy(old, windows, sizeof old);
    memcpy(joined, tokens[0], sizeof tokens[0]);
    memcpy(joined + WINDOW, tokens[1], sizeof tokens[1]);
    windows[2] = windows[0]; /* 0 and 1 are what they were, 2 and 3 the same text cut elsewhere */
    windows[2].n = WINDOW - 4;
    windows[3] = windows[0];
    windows[3].tokens = joined + WINDOW - 4;
    windows[3].first = WINDOW - 4;
    refer(0, 4);
    for (order = 0; order < 4; order++) {
        a = make(order & 1 ? 2 : 0, order & 1 ? 4 : 2, 1);
        if (order & 2) {
            b = make(order & 1 ? 0 : 2, order & 1 ? 2 : 4, 1);
            CHECK(stats_merge(&a, &b, &err));
            stats_free(&b);
        } else {
            for (k = 0; k < 2; k++) add(&a, (order & 1 ? 0 : 2) + k);
        }
        CHECK_EQ(a.n_tokens, wanted->n);
        for (at = 0; at < EXPERTS; at++) {
            static listed list[MOST];
            stats_example out[TOP];
            int n = reference_list(at, false, list);
            if (CHECK_EQ(stats_top(&a, at / N / N, at / N % N, at % N, out, TOP), n))
                for (k = 0; k < n; k++) CHECK(out[k].position == place_of(&list[k]));
            n = reference_list(at, true, list);
            CHECK_EQ(a.lists[at].n_sample, n);
        }
        stats_free(&a);
    }
    memcpy(windows, old, sizeof old);
}

/* What is refused changes nothing. */
static void test_refusals(const tiny_file *file)
{
    stats s = make(0, WINDOWS, 1), t;
    stats_config c;
    tool_error err;
    text_window w = windows[0];
    const char *twins[2] = {"a", "a"};

    eval_window(&windows[1]);
    CHECK(!stats_add(&s, session, &w, &err));
    CHECK_HAS(err.message, "has not just read this window");
    eval_window(&w);
    w.n--;
    CHECK(!stats_add(&s, session, &w, &err)); /* not all of the last eval */
    w = windows[0];
    w.label = LABELS;
    CHECK(!stats_add(&s, session, &w, &err));
    CHECK_HAS(err.message, "label 3 of 3");
    w = windows[0];
    w.has_score = true;
    w.score = NAN;
    CHECK(!stats_add(&s, session, &w, &err));
    s.config.max_bytes = stats_size(&s) - 1;
    CHECK(!stats_add(&s, session, &windows[0], &err));
    CHECK_HAS(err.message, "less context (3)");
    CHECK(!stats_merge(&s, &s, &err));
    c = small(1);
    c.context++;
    CHECK(stats_create(&t, model, &c, labels, 1, &err) && !stats_merge(&s, &t, &err));
    CHECK_HAS(err.message, "tokens of context");
    stats_free(&t);
    check_same(&s, file);
    stats_free(&s);
    c = small(1);
    c.max_bytes = stats_memory(monet_model_arch(model), &c, LABELS) - 1;
    CHECK(!stats_create(&s, model, &c, labels, LABELS, &err));
    CHECK_HAS(err.message, "or fewer labels (3) need less");
    c.max_bytes++;
    CHECK(stats_create(&s, model, &c, labels, LABELS, &err));
    CHECK_EQ(stats_size(&s), c.max_bytes);
    stats_free(&s);
    c.top = STATS_MAX_LIST + 1;
    CHECK(!stats_create(&s, model, &c, labels, LABELS, &err));
    CHECK(!stats_create(&s, model, NULL, twins, 2, &err));
    CHECK_HAS(err.message, "twice");
    twins[1] = "b\n";
    CHECK(!stats_create(&s, model, NULL, twins, 2, &err));
    CHECK_HAS(err.message, "printable");
}

/* Everything that can be asked, so that a bad number or place shows under the sanitizers. */
static double ask_all(const stats *s)
{
    stats_example out[STATS_MAX_LIST];
    double sum = 0;
    size_t n, k;
    int32_t at, t;

    for (at = 0; at < EXPERTS; at++) {
        const int32_t g = at / N / N, i = at / N % N, j = at % N;
        n = stats_top(s, g, i, j, out, STATS_MAX_LIST);
        for (k = 0; k < n; k++)
            for (t = 0; t < out[k].n; t++) sum += out[k].tokens[t];
        n = stats_sample(s, g, i, j, out, STATS_MAX_LIST);
        for (k = 0; k < n; k++) sum += out[k].score + (float)out[k].n_before;
        sum += stats_mean(s, g, i, j) + stats_lift(s, g, i, j) + stats_pearson(s, g, i, j);
        for (k = 0; k < s->n_labels; k++) sum += stats_label_pearson(s, g, i, j, k);
    }
    return sum;
}

static void set_hash(tiny_file *file)
{
    tiny_put(file, 24, 8, tool_hash(file->data + STATS_HEADER, file->size - STATS_HEADER));
}

/* Cut off at every byte, and every byte changed: refused; with the hash made right again it may be
   another valid file. */
static void test_damage(void)
{
    stats s = make(1, 3, 1), t;
    tool_error err;
    tiny_file file = saved(&s), copy;
    size_t k;
    int refused = 0;

    stats_free(&s);
    for (k = 0; k < file.size; k += k < 600 ? 1 : 31) {
        copy = tiny_copy(&file, k);
        CHECK(!load(&s, &copy, &err));
        if (k > STATS_HEADER) {
            tiny_put(&copy, 16, 8, k);
            set_hash(&copy);
            CHECK(!load(&s, &copy, &err));
        }
        tiny_drop(&copy);
    }
    copy = tiny_copy(&file, file.size);
    for (k = 0; k < file.size; k += k < 600 ? 1 : 17) {
        copy.data[k] ^= (uint8_t)(1 << tiny_mix(k) % 8);
        CHECK(!load(&s, &copy, &err));
        if (k >= STATS_HEADER) {
            copy.data[k] = (uint8_t)(k % 3 == 0 ? 0xFF : k % 3 == 1 ? 0x7F : tiny_mix(k));
            set_hash(&copy);
            if (load(&s, &copy, &err)) {
                s.config.max_bytes = UINT64_MAX;
                if (CHECK(stats_create(&t, model, &s.config, labels, LABELS, &err)) &&
                    CHECK(stats_merge(&t, &s, &err))) (void)ask_all(&t);
                (void)ask_all(&s);
                stats_free(&t);
                stats_free(&s);
            } else {
                refused++;
            }
        }
        copy.data[k] = file.data[k];
        set_hash(&copy);
    }
    CHECK(refused > 400);
    CHECK(load(&s, &copy, &err));
    stats_free(&s);
    tiny_drop(&copy);
    tiny_drop(&file);
}

/* Numbers that no counting could reach, with the hash of the file right. */
static void test_hostile(void)
{
    static const double sums[] = {1e308, INFINITY, NAN, -1e-9};
    stats s = make(0, 3, 1), t;
    tool_error err;
    tiny_file file = saved(&s);
    size_t k, which;

    tiny_put(&file, 60, 4, INT32_MAX); /* top and sample: their sum does not fit */
    tiny_put(&file, 64, 4, INT32_MAX);
    set_hash(&file);
    CHECK(!load(&t, &file, &err));
    CHECK_HAS(err.message, "out of range");
    tiny_drop(&file);
    for (k = 0; k < 4; k++)
        for (which = 0; which < 6; which++) {
            double *const at[6] = {&s.halves.sums[1].sum, &s.halves.sums[1].sum2, &s.gates[2],
                                   &s.halves.scored[3].product, &s.sum_y, &s.sum_y2};
            const double kept = *at[which];
            *at[which] = k == 3 && which > 2 && which < 5 ? 1e308 : sums[k]; /* may be negative */
            file = saved(&s);
            CHECK(!load(&t, &file, &err));
            CHECK_HAS(err.message, "a sum");
            tiny_drop(&file);
            *at[which] = kept;
        }
    s.n_tokens += UINT64_C(1) << 54;
    s.labels[0].n_tokens += UINT64_C(1) << 54;
    file = saved(&s);
    CHECK(!load(&t, &file, &err));
    CHECK_HAS(err.message, "header");
    tiny_drop(&file);
    stats_free(&s);
}

/* Every allocation fails once: a message, nothing lost, nothing leaked. */
static void test_memory(const tiny_file *whole)
{
    stats s = make(0, WINDOWS - 1, 1), t, from;
    stats_config c = small(1);
    tool_error err = {{0}};
    const char *path = tiny_path("fault.stats");
    int what;
    bool ok;

    eval_window(&windows[WINDOWS - 1]);
    for (what = 0; what < 5; what++)
        for (ok = false, fault_at = 0; !ok && fault_at < 200; fault_at++) {
            err.message[0] = '\0';
            fault_steps = 0;
            if (what == 0) ok = stats_add(&s, session, &windows[WINDOWS - 1], &err);
            if (what == 1) ok = stats_save(&s, path, &err);
            if (what == 2 && (ok = stats_load(&t, model, path, &err))) stats_free(&t);
            if (what == 3) {
                fault_at = fault_at == 0 ? 1 : fault_at;
                ok = stats_create(&t, model, &c, labels, LABELS, &err);
                if (ok) stats_free(&t);
            }
            if (what == 4) {
                long at = fault_at;
                fault_at = -1;
                CHECK(stats_create(&t, model, &c, labels, 1, &err));
                from = make(0, 2, 1);
                fault_at = at;
                fault_steps = 0;
                err.message[0] = '\0';
                ok = stats_merge(&t, &from, &err);
                CHECK_EQ(t.n_tokens, ok ? from.n_tokens : 0);
                stats_free(&t);
                stats_free(&from);
            }
            CHECK(ok == (err.message[0] == '\0'));
            CHECK(!ok || fault_steps <= fault_at);
            if (ok) CHECK(fault_at > 2);
        }
    fault_at = -1;
    check_same(&s, whole);
    stats_free(&s);
    CHECK(remove(path) == 0);
}

static void test_other_model(const tiny_file *file)
{
    tiny_options options = {0};
    tiny_file other;
    monet_model *mine = model;
    tool_error err;
    stats s;

    options.n_layers = 4;
    options.moe_groups = 2;
    other = tiny_make(&options);
    if (CHECK_EQ(monet_model_load_memory(other.data, other.size, NULL, &model, NULL), MONET_OK)) {
        CHECK(!load(&s, file, &err));
        CHECK_HAS(err.message, "another model");
        monet_model_free(model);
    }
    model = mine;
    tiny_drop(&other);
}

int main(void)
{
    monet_error why = {{0}, MONET_OK};
    monet_session_config config;
    tiny_options options = {0};
    tiny_file bytes = tiny_make(&options), file = {NULL, 0};

    memset(&config, 0, sizeof config);
    config.context = config.max_batch = WINDOW;
    config.capture_routing = true;
    wanted = calloc(1, sizeof *wanted);
    if (CHECK(wanted != NULL) &&
        CHECK_EQ(monet_model_load_memory(bytes.data, bytes.size, NULL, &model, &why), MONET_OK) &&
        CHECK_EQ(monet_session_create(model, &config, &session, &why), MONET_OK)) {
        make_windows();
        test_whole(&file);
        test_resume(&file);
        test_merge();
        test_overlap();
        test_refusals(&file);
        test_damage();
        test_hostile();
        test_memory(&file);
        test_other_model(&file);
    }
    tiny_drop(&file);
    free(wanted);
    monet_session_free(session);
    monet_model_free(model);
    tiny_drop(&bytes);
    tiny_clean();
    return test_end("stats");
}
