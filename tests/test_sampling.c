/* test_sampling.c: sampling, the strongest experts, streaming of text, stop strings.

   cc -O2 -pthread -I. tests/test_sampling.c -o test_sampling -lm && ./test_sampling

   Each is compared with a slow and obvious version of itself. Samplers run on a session made up
   here: only what sampling reads is filled in, so that logits can be anything. With the argument
   "long" there are twenty times as many random cases.                                            */
#define _XOPEN_SOURCE 700
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "tiny.h"

enum { MAX_V = 512, MAX_TEXT = 4096 };
static int many = 1; /* times as many cases */

static uint64_t random_state = 1;

static uint64_t next_random(void)
{
    return tiny_mix(random_state += 0x9e3779b97f4a7c15u);
}

static int below(int n) { return (int)(next_random() % (uint64_t)n); }
static float uniform(void) { return (float)(next_random() >> 40) / 8388608.0f - 1; } /* [-1,1) */

/* ---- a session that holds logits and nothing else -------------------------------------------- */
typedef struct mock {
    monet_model      model;
    monet_session    session;
    monet_real       logits[MAX_V];
    monet__candidate candidates[MAX_V];
    int32_t          tokens[MAX_V];
} mock;

/* Kinds of logits: any, few different values (ties), many -inf, far apart, all equal. */
enum { ANY, TIES, HOLES, FAR, EQUAL, KINDS };

static void fill_logits(mock *m, int V, int kind)
{
    for (int v = 0; v < V; ++v) {
        float x = 5 * uniform();
        if (kind == TIES) x = (float)(below(4) - 2) / 2;
        if (kind == HOLES && below(3)) x = (float)-HUGE_VAL;
        if (kind == FAR) x *= 200;
        m->logits[v] = kind == EQUAL ? 0.5f : x;
    }
    if (kind == HOLES) m->logits[below(V)] = 1;
}

static void make_mock(mock *m, int V, int kind)
{
    memset(m, 0, sizeof *m);
    m->model.arch.vocab_size = V;
    m->session.model = &m->model;
    m->session.logits = m->logits;
    m->session.candidates = m->candidates;
    m->session.tokens = m->tokens;
    m->session.n_logits = 1;
    m->session.length = below(20);
    for (int k = 0; k < m->session.length; ++k) m->tokens[k] = below(V + 1) - 1; /* -1: embedding */
    fill_logits(m, V, kind);
}

static int32_t sample(mock *m, monet_sampler *sampler)
{
    int32_t token = -1;

    if (monet_session_sample(&m->session, sampler, &token, NULL) != MONET_OK) return -1;
    return token >= 0 && token < m->model.arch.vocab_size ? token : -2;
}

/* ---- the slow sampler ------------------------------------------------------------------------ */
typedef struct slow {
    int    n;              /* candidates left */
    int    token[MAX_V];   /* likeliest first */
    float  logit[MAX_V];
    double p[MAX_V];       /* their probabilities */
} slow;

static void slow_penalty(const mock *m, const monet_sampler *s, float *logits)
{
    int length = m->session.length, V = m->model.arch.vocab_size, first = 0;

    if (s->penalty_last_n && s->penalty_last_n < length) first = length - s->penalty_last_n;
    for (int v = 0; v < V; ++v) {
        int seen = 0;
        for (int k = first; k < length; ++k) seen = seen || m->tokens[k] == v;
        logits[v] = m->logits[v];
        if (!seen || s->repetition_penalty == 0) continue;
        if (logits[v] > 0) logits[v] /= s->repetition_penalty;
        else logits[v] *= s->repetition_penalty;
    }
}

/* top_k, then top_p of what it left, then min_p; never fewer than one. */
static void slow_cut(slow *out, const monet_sampler *s)
{
    double total = 0, before = 0;
    int    keep = 0;

    if (s->top_k && s->top_k < out->n) out->n = s->top_k;
    for (int k = 0; k < out->n; ++k) total += out->p[k];
    for (; keep < out->n; ++keep) {
        if (keep && s->top_p > 0 && s->top_p < 1 && before >= (double)s->top_p * total) break;
        if (keep && out->p[keep] < (double)s->min_p * out->p[0]) break;
        before += out->p[keep];
    }
    out->n = keep;
}

static void slow_sampler(slow *out, const mock *m, const monet_sampler *s)
{
    float  logits[MAX_V];
    double total = 0;
    int    V = m->model.arch.vocab_size;

    slow_penalty(m, s, logits);
    for (out->n = 0; out->n < V; ++out->n) { /* insertion: larger first, of equals the lower id */
        int at = out->n;
        for (; at > 0 && out->logit[at - 1] < logits[out->n]; --at) {
            out->logit[at] = out->logit[at - 1];
            out->token[at] = out->token[at - 1];
        }
        out->logit[at] = logits[out->n];
        out->token[at] = out->n;
    }
    for (int k = 0; k < V; ++k)
        out->p[k] = s->temperature > 0 ? exp(((double)out->logit[k] - (double)out->logit[0]) /
                                             (double)s->temperature) : k == 0;
    if (s->temperature > 0) slow_cut(out, s);
    else out->n = 1;
    for (int k = 0; k < out->n; ++k) total += out->p[k];
    for (int k = 0; k < out->n; ++k) out->p[k] /= total;
}

/* ---- sampling -------------------------------------------------------------------------------- */
static monet_sampler random_sampler(int V)
{
    static const float temperatures[] = {1, 0.8f, 2, 0.1f, 30, 0};
    static const float penalties[] = {0, 1, 1.1f, 1.3f, 5, 0.5f};
    static const float parts[] = {0, 1, 0.9f, 0.5f, 0.1f, 0.01f, 0.999f};
    monet_sampler      s;

    memset(&s, 0, sizeof s);
    s.temperature = temperatures[below(6)];
    s.repetition_penalty = penalties[below(6)];
    s.penalty_last_n = below(3) ? 0 : below(8);
    s.top_p = below(2) ? 0 : parts[below(7)];
    s.min_p = below(2) ? 0 : parts[below(7)];
    s.top_k = below(2) ? 0 : below(V + 4);
    s.seed = next_random();
    return s;
}

/* What the cuts leave, exactly: the same tokens in the same order (unless nothing was cut). */
static int cut_agrees(mock *m, const monet_sampler *s)
{
    slow   expected;
    size_t V = (size_t)m->model.arch.vocab_size, n;
    float  max;
    int    found = 0;

    if (s->temperature == 0) return 1;
    slow_sampler(&expected, m, s);
    for (size_t v = 0; v < V; ++v)
        m->candidates[v].logit = m->logits[v], m->candidates[v].token = (int32_t)v;
    monet__penalise(&m->session, s, m->logits);
    max = expected.logit[0];
    n = monet__cut(m->candidates, V, s, (double)max);
    if (n != (size_t)expected.n) return 0;
    for (size_t k = 0; n < V && k < n; ++k) found += m->candidates[k].token == expected.token[k];
    return n == V || found == expected.n;
}

static int can_draw(const slow *expected, int32_t token)
{
    for (int k = 0; k < expected->n; ++k)
        if (expected->token[k] == token) return expected->p[k] > 0;
    return 0;
}

/* Whether the caller's rounding mode changes what is drawn, or its probability. */
static int mode_matters(mock *m, monet_sampler s, int32_t token, float logprob)
{
    int32_t other = -1;
    float   p = 1;
    double  plain = monet_logprob(m->logits, m->model.arch.vocab_size, 0), upward;
    (void)fesetround(FE_UPWARD);
    (void)monet_session_sample(&m->session, &s, &other, &p);
    upward = monet_logprob(m->logits, m->model.arch.vocab_size, 0);
    (void)fesetround(FE_TONEAREST);
    return other != token || memcmp(&p, &logprob, sizeof p) != 0 ||
           memcmp(&plain, &upward, sizeof plain) != 0;
}

static void test_random_samplers(void)
{
    static mock m;
    int         wrong_cut = 0, wrong_token = 0, wrong_greedy = 0, wrong_logprob = 0, draws = 0;
    int         wrong_mode = 0;

    for (int round = 0; round < 6000 * many; ++round) {
        int           V = round % 10 ? 1 + below(60) : 1 + below(MAX_V);
        monet_sampler s = random_sampler(V), first = s;
        slow          expected;
        int32_t       token = -1;
        float         logprob = 1;
        make_mock(&m, V, round % KINDS);
        if (!cut_agrees(&m, &s) && !wrong_cut++)
            printf("    V %d kind %d T %g top_k %d top_p %g min_p %g penalty %g\n", V,
                   round % KINDS, (double)s.temperature, s.top_k, (double)s.top_p, (double)s.min_p,
                   (double)s.repetition_penalty);
        slow_sampler(&expected, &m, &s);
        (void)monet_session_sample(&m.session, &s, &token, &logprob);
        wrong_token += !can_draw(&expected, token);
        wrong_greedy += s.temperature == 0 && token != expected.token[0];
        wrong_logprob += token >= 0 && logprob != (float)monet_logprob(m.logits, V, token);
        wrong_mode += mode_matters(&m, first, token, logprob);
        ++first.draws;
        draws += memcmp(&first, &s, sizeof s) != 0; /* nothing but draws has changed */
    }
    CHECK_EQ(wrong_cut, 0);
    CHECK_EQ(wrong_token, 0);
    CHECK_EQ(wrong_greedy, 0);
    CHECK_EQ(wrong_logprob, 0);
    CHECK_EQ(wrong_mode, 0);
    CHECK_EQ(draws, 0);
}

/* Chi-square of n draws against the exact probabilities, as what a normal variable of mean 0 and
   deviation 1 would be (Wilson and Hilferty). Seeds are fixed: this passes always or never.      */
static double chi_square(mock *m, monet_sampler *s, int n)
{
    static int counts[MAX_V];
    slow       expected;
    double     chi = 0, rest = 0, rest_count = 0, scale;
    int        cells = 0;

    slow_sampler(&expected, m, s);
    memset(counts, 0, sizeof counts);
    for (int k = 0; k < n; ++k) {
        int32_t token = sample(m, s);
        if (token < 0) return HUGE_VAL;
        ++counts[token];
    }
    for (int k = 0; k < expected.n; ++k) { /* cells of fewer than 10 go together */
        double e = n * expected.p[k], d = counts[expected.token[k]] - e;
        if (e < 10) rest += e, rest_count += counts[expected.token[k]];
        else chi += d * d / e, ++cells;
    }
    if (rest > 1) chi += (rest_count - rest) * (rest_count - rest) / rest, ++cells;
    if (cells < 2) return 0;
    scale = 2.0 / (9.0 * (cells - 1));
    return (cbrt(chi / (cells - 1)) - (1 - scale)) / sqrt(scale);
}

static void test_distribution(void)
{
    static mock m;
    double      worst = 0, square = 0;
    int         n = 0;

    random_state = 7;
    for (int round = 0; round < 40 * many; ++round) {
        int           V = 2 + below(40);
        monet_sampler s = random_sampler(V);
        double        d;
        if (s.temperature == 0) s.temperature = 1;
        make_mock(&m, V, round % KINDS);
        s.seed = (uint64_t)round; /* neighbours, and 0 */
        d = chi_square(&m, &s, 4000);
        if (d > worst) worst = d;
        square += d * d, ++n;
        CHECK_EQ(s.draws, 4000);
    }
    CHECK(worst < 4.5);
    CHECK(square / n < 2 && square / n > 0.4); /* and it is not too good to be random */
    printf("draws: worst chi-square %.2f standard deviations from its mean, all %.2f\n", worst,
           sqrt(square / n));
}

/* Same seed and counter, same token; other seeds and counters, other ones; pairs independent. */
static void test_seeds(void)
{
    static mock   m;
    monet_sampler a, b, c;
    int           same = 0, zero = 0, pairs[16] = {0};

    make_mock(&m, 4, EQUAL);
    m.session.length = 0;
    memset(&a, 0, sizeof a);
    a.temperature = 1;
    b = a;
    c = a;
    c.seed = 1;
    for (int k = 0; k < 4000; ++k) {
        int32_t x = sample(&m, &a), y = sample(&m, &b), z = sample(&m, &c);
        if (x != y) CHECK_EQ(x, y);
        same += x == z;
        zero += x == 0;
        ++pairs[4 * x + z];
    }
    CHECK(same > 850 && same < 1150);
    CHECK(zero > 850 && zero < 1150); /* seed 0 is not stuck */
    for (int k = 0; k < 16; ++k) CHECK(pairs[k] > 180 && pairs[k] < 320);
    CHECK_EQ(a.draws, 4000);
    b.draws = 17, c = b;
    CHECK_EQ(sample(&m, &b), sample(&m, &c));
    CHECK_EQ(b.draws, 18);
    CHECK(sample(&m, NULL) == 0); /* greedy: the lowest id of equal ones */
}

static void test_sampling_edges(void)
{
    static const float tiny[] = {1e-45f, 1e-38f, 1e-20f, 1e-3f};
    static mock        m;
    monet_sampler      s;

    memset(&s, 0, sizeof s);
    for (int k = 0; k < 4; ++k) { /* almost no temperature: the largest, and no NaN */
        make_mock(&m, 50, FAR);
        m.session.length = 0;
        m.logits[33] = 3e38f, m.logits[34] = -3e38f;
        s.temperature = tiny[k];
        for (int draw = 0; draw < 20; ++draw) CHECK_EQ(sample(&m, &s), 33);
    }
    s.temperature = 3e38f; /* the other way: evenly */
    fill_logits(&m, 50, ANY);
    CHECK(chi_square(&m, &s, 4000) < 5);
    for (int part = 0; part < 4; ++part) { /* any of these may leave one and must not leave none */
        memset(&s, 0, sizeof s);
        s.temperature = 1;
        if (part == 0) s.top_p = 1e-45f;
        if (part == 1) s.top_k = 1;
        if (part == 2) s.min_p = 2;
        if (part == 3) s.min_p = 1;
        fill_logits(&m, 50, ANY);
        m.logits[7] = 6;
        for (int draw = 0; draw < 20; ++draw) CHECK_EQ(sample(&m, &s), 7);
    }
    make_mock(&m, 1, ANY);
    s = random_sampler(1);
    CHECK_EQ(sample(&m, &s), 0);
    memset(&s, 0, sizeof s);
    s.repetition_penalty = 1e-30f; /* a logit that overflows is no number to draw by */
    s.temperature = 1;
    make_mock(&m, 3, EQUAL);
    m.logits[1] = 1e20f;
    m.tokens[0] = 1, m.session.length = 1;
    CHECK(sample(&m, &s) == 1 || monet_session_error(&m.session)->code == MONET_ERROR_NUMERIC);
}

static monet_result try_sampler(mock *m, monet_sampler s)
{
    int32_t token = -7;

    return monet_session_sample(&m->session, &s, &token, NULL);
}

static void test_sampling_errors(void)
{
    static const float bad[] = {-1, (float)NAN, (float)-HUGE_VAL};
    static mock        m;
    monet_sampler      good, s;
    int32_t            token = -7;

    make_mock(&m, 9, ANY);
    memset(&good, 0, sizeof good);
    for (int k = 0; k < 3; ++k) {
        s = good, s.temperature = bad[k];
        CHECK_EQ(try_sampler(&m, s), MONET_ERROR_ARGUMENT);
        s = good, s.top_p = bad[k];
        CHECK_EQ(try_sampler(&m, s), MONET_ERROR_ARGUMENT);
        s = good, s.min_p = bad[k];
        CHECK_EQ(try_sampler(&m, s), MONET_ERROR_ARGUMENT);
        s = good, s.repetition_penalty = bad[k];
        CHECK_EQ(try_sampler(&m, s), MONET_ERROR_ARGUMENT);
    }
    s = good, s.temperature = (float)HUGE_VAL;
    CHECK_EQ(try_sampler(&m, s), MONET_ERROR_ARGUMENT);
    s = good, s.top_k = -1;
    CHECK_EQ(try_sampler(&m, s), MONET_ERROR_ARGUMENT);
    s = good, s.penalty_last_n = -1;
    CHECK_EQ(try_sampler(&m, s), MONET_ERROR_ARGUMENT);
    s = good, s.top_k = INT32_MAX, s.penalty_last_n = INT32_MAX, s.temperature = 1;
    CHECK_EQ(try_sampler(&m, s), MONET_OK);
    CHECK_EQ(monet_session_sample(&m.session, &good, NULL, NULL), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_session_sample(NULL, &good, &token, NULL), MONET_ERROR_ARGUMENT);
    for (int k = 0; k < 2; ++k) { /* nothing finite, as documented */
        for (int v = 0; v < 9; ++v) m.logits[v] = k ? (float)NAN : (float)-HUGE_VAL;
        s = good, s.temperature = 1;
        CHECK_EQ(try_sampler(&m, good), MONET_ERROR_NUMERIC);
        CHECK_EQ(try_sampler(&m, s), MONET_ERROR_NUMERIC);
    }
    m.session.n_logits = 0;
    CHECK_EQ(try_sampler(&m, good), MONET_ERROR_STATE);
    CHECK_EQ(good.draws, 0);
}

/* ---- the strongest experts ------------------------------------------------------------------- */
enum { MAX_N = 24, MAX_H = 4 };
typedef struct gates {
    monet_routing r;
    float         g1[MAX_H * MAX_N], g2[MAX_H * MAX_N];
    uint16_t      i[MAX_N], j[MAX_N];
} gates;

static int fill_side(float *g, uint16_t *list, int H, int N, int coarse)
{
    int n = 0;

    for (int k = 0; k < H * N; ++k)
        g[k] = below(3) ? 0 : coarse ? (float)(1 + below(3)) / 4 : uniform() / 2 + 0.5f;
    g[below(H * N)] = 0.25f;
    for (int k = 0; k < N; ++k) {
        int active = 0;
        for (int h = 0; h < H; ++h) active = active || g[h * N + k] > 0;
        if (active) list[n++] = (uint16_t)k;
    }
    return n;
}

static void make_gates(gates *g, int coarse)
{
    int H = 1 + below(MAX_H), N = 2 + below(MAX_N - 2);

    memset(g, 0, sizeof *g);
    g->r.n_heads = H;
    g->r.n_experts = N;
    g->r.n_i = fill_side(g->g1, g->i, H, N, coarse);
    g->r.n_j = fill_side(g->g2, g->j, H, N, coarse);
    g->r.i = g->i, g->r.j = g->j;
    g->r.g1 = g->g1, g->r.g2 = g->g2;
}

static float score_of(const gates *g, int i, int j)
{
    float score = 0;
    int   N = g->r.n_experts;

    for (int h = 0; h < g->r.n_heads; ++h) score += g->g1[h * N + i] * g->g2[h * N + j];
    return score;
}

/* All N*N experts by selection: the strongest, of equals the lowest id, again and again. */
static size_t slow_experts(const gates *g, float threshold, monet_expert *out)
{
    int    N = g->r.n_experts;
    size_t n = 0;

    for (int i = 0; i < N; ++i)
        for (int j = 0; j < N; ++j) {
            size_t at;
            float  score = score_of(g, i, j);
            if (!(score > threshold)) continue;
            for (at = n++; at > 0 && out[at - 1].score < score; --at) out[at] = out[at - 1];
            out[at].i = i, out[at].j = j, out[at].score = score;
        }
    return n;
}

static void test_experts(void)
{
    static monet_expert expected[MAX_N * MAX_N], out[MAX_N * MAX_N + 8];
    static gates        g;
    int                 wrong_count = 0, wrong_order = 0, beyond = 0;

    for (int round = 0; round < 1500 * many; ++round) {
        float  threshold = round % 3 ? (float)below(8) / 16 : 0;
        size_t n, capacity;
        make_gates(&g, round % 2);
        n = slow_experts(&g, threshold, expected);
        capacity = round % 5 == 0 ? 0 : round % 5 == 1 ? n : round % 5 == 2 ? n + 7
                                                           : (size_t)below((int)n + 1);
        memset(out, 0x55, sizeof out);
        wrong_count += monet_routing_experts(&g.r, threshold, capacity ? out : NULL, capacity) != n;
        for (size_t k = 0; k < n && k < capacity; ++k)
            wrong_order += out[k].i != expected[k].i || out[k].j != expected[k].j ||
                           fabs((double)(out[k].score - expected[k].score)) > 1e-6;
        beyond += out[capacity < n ? capacity : n].i != 0x55555555;
    }
    CHECK_EQ(wrong_count, 0);
    CHECK_EQ(wrong_order, 0);
    CHECK_EQ(beyond, 0);
    CHECK_EQ(monet_routing_experts(&g.r, (float)NAN, out, 4), 0);
    CHECK_EQ(monet_routing_experts(&g.r, 1e9f, out, 4), 0);
    CHECK_EQ(monet_routing_experts(&g.r, 0, NULL, 4), 0);
    CHECK_EQ(monet_routing_experts(NULL, 0, out, 4), 0);
}

/* ---- text ------------------------------------------------------------------------------------ */
/* Length of the well-formed character at s (Unicode, table 3-7), or minus the length of the longest
   beginning of one (at least 1): that many bytes become one U+FFFD.                              */
static int slow_char(const unsigned char *s, size_t n)
{
    static const struct { unsigned char first, last, low, high, size; } rows[] = {
        {0x00, 0x7f, 0, 0, 1},       {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
        {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
        {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};

    for (size_t k = 0; k < sizeof rows / sizeof *rows; ++k) {
        int size = 1;
        if (s[0] < rows[k].first || s[0] > rows[k].last) continue;
        for (; size < rows[k].size && (size_t)size < n; ++size) {
            unsigned char low = size == 1 ? rows[k].low : 0x80;
            unsigned char high = size == 1 ? rows[k].high : 0xbf;
            if (s[size] < low || s[size] > high) break;
        }
        return size == rows[k].size ? size : -size;
    }
    return -1;
}

static size_t slow_clean(char *out, const char *text, size_t n)
{
    size_t size = 0;

    for (size_t at = 0; at < n;) {
        int length = slow_char((const unsigned char *)text + at, n - at);
        if (length > 0) memcpy(out + size, text + at, (size_t)length), size += (size_t)length;
        else memcpy(out + size, "\xef\xbf\xbd", 3), size += 3, length = -length;
        at += (size_t)length;
    }
    return size;
}

typedef struct listener {
    char   text[MAX_TEXT];
    size_t size;
    int    calls, broken; /* pieces that are not whole characters */
    int    limit;         /* this call says stop; 0 = none */
} listener;

static bool listen(void *user, const char *text, size_t size)
{
    listener *l = (listener *)user;

    for (size_t at = 0; at < size;) {
        int length = slow_char((const unsigned char *)text + at, size - at);
        if (length < 0) ++l->broken, length = -length;
        at += (size_t)length;
    }
    l->broken += size == 0;
    if (l->size + size <= sizeof l->text) memcpy(l->text + l->size, text, size), l->size += size;
    return ++l->calls != l->limit;
}

typedef struct run {
    listener              l;
    monet_generate_config config;
    monet__stream         stream;
    bool                  stopped;
} run;

static void begin_run(run *r, const char *const *stops, int n_stop)
{
    memset(r, 0, sizeof *r);
    r->config.text_fn = listen;
    r->config.user = &r->l;
    r->config.stop_strings = stops;
    r->config.n_stop = n_stop;
    r->stream.config = &r->config;
}

/* One token of n bytes, as monet__stream_token gives them to the stream. */
static void feed(run *r, const char *bytes, size_t n)
{
    for (size_t k = 0; k < n && !r->stopped && !r->stream.stopped; ++k)
        r->stopped = monet__stream_byte(&r->stream, bytes[k]);
    if (!r->stopped) monet__stream_flush(&r->stream);
}

/* Pieces of a text: ASCII, characters of all sizes, and what is none. */
static const char *const parts[] = {
    "a", "b", " ", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf",
    "\xed\x9f\xbf", "\xef\xbf\xbd", "\x80", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80",
    "\xf4\x90\x80\x80", "\xff",
    "\xe2\x82", "\xf0\x9f\x98", "\xf5\x80", "\xc3", "\xe2"};
enum { N_PARTS = sizeof parts / sizeof *parts };

static size_t random_text(char *out, size_t limit)
{
    size_t n = 0, size;

    for (; n < limit; n += size) {
        const char *part = parts[below(N_PARTS)];
        size = strlen(part);
        if (n + size > limit) break;
        memcpy(out + n, part, size);
        if (!below(9)) out[n] = (char)below(256);
    }
    return n;
}

/* Every way to cut a short text into tokens gives the same text, in whole characters. */
static void test_all_splits(void)
{
    static run r;
    char       text[16], expected[64];
    int        wrong = 0, broken = 0;

    for (int round = 0; round < 60 * many; ++round) {
        size_t n = random_text(text, 10), size = slow_clean(expected, text, n);
        for (unsigned mask = 0; n && mask < 1u << (n - 1); ++mask) {
            size_t from = 0;
            begin_run(&r, NULL, 0);
            for (size_t k = 0; k < n; ++k)
                if (k + 1 == n || mask >> k & 1) feed(&r, text + from, k + 1 - from), from = k + 1;
            monet__stream_end(&r.stream);
            wrong += r.l.size != size || memcmp(r.l.text, expected, size) != 0;
            broken += r.l.broken;
        }
    }
    CHECK_EQ(wrong, 0);
    CHECK_EQ(broken, 0);
}

/* How much of a text is certain: all but the beginning of a character at its end. */
static size_t slow_whole(const char *text, size_t n)
{
    size_t at = 0;

    while (at < n) {
        const unsigned char *s = (const unsigned char *)text + at;
        int                  length = slow_char(s, n - at);
        if (length < 0 && at + (size_t)-length == n && s[0] >= 0xc2 && s[0] <= 0xf4) return at;
        at += (size_t)(length < 0 ? -length : length);
    }
    return n;
}

/* A character is delivered with its last byte, not later. */
static void test_no_delay(void)
{
    static run r;
    char       text[600], expected[2000];
    int        late = 0;

    for (int round = 0; round < 30 * many; ++round) {
        size_t n = random_text(text, sizeof text);
        begin_run(&r, NULL, 0);
        for (size_t k = 0; k < n; ++k) {
            size_t size;
            feed(&r, text + k, 1);
            size = slow_clean(expected, text, slow_whole(text, k + 1));
            late += r.l.size != size || memcmp(r.l.text, expected, size) != 0;
        }
    }
    CHECK_EQ(late, 0);
}

/* ---- stop strings ---------------------------------------------------------------------------- */
/* Where the text ends: the first place at which a stop string is complete; the longest of those
   that end there is cut off. n if there is none.                                                 */
static size_t slow_stop(const char *text, size_t n, const char *const *stops, int n_stop)
{
    for (size_t end = 1; end <= n; ++end) {
        size_t longest = 0;
        for (int k = 0; k < n_stop; ++k) {
            size_t size = strlen(stops[k]);
            if (size <= end && size > longest && !memcmp(text + end - size, stops[k], size))
                longest = size;
        }
        if (longest) return end - longest;
    }
    return n;
}

/* How much of the text must be held back: the longest end of it that begins a stop string. */
static size_t slow_held(const char *text, size_t n, const char *const *stops, int n_stop)
{
    size_t held = 0;

    for (int k = 0; k < n_stop; ++k)
        for (size_t size = 1; size < strlen(stops[k]) && size <= n; ++size)
            if (size > held && !memcmp(text + n - size, stops[k], size)) held = size;
    return held;
}

static size_t few_letters(char *out, size_t n, int letters)
{
    for (size_t k = 0; k < n; ++k) out[k] = (char)('a' + below(letters));
    return n;
}

static void test_stop_strings(void)
{
    static run  r;
    static char stops[16][32], text[400], expected[1300];
    const char *list[16];
    int         wrong = 0, held = 0, found = 0, broken = 0;

    for (int round = 0; round < 4000 * many; ++round) {
        int    n_stop = below(4) ? 1 + below(3) : below(17), bytes = round % 4 == 0;
        size_t n, end, size;
        for (int k = 0; k < n_stop; ++k) {
            size = 0;
            while (!size) size = bytes ? random_text(stops[k], 6)
                                       : few_letters(stops[k], 1 + (size_t)below(6), 2);
            stops[k][size] = 0;
            if (!stops[k][0]) stops[k][0] = 'z';
            list[k] = stops[k];
        }
        n = bytes ? random_text(text, 1 + (size_t)below(300))
                  : few_letters(text, 1 + (size_t)below(60), 2 + below(2));
        end = slow_stop(text, n, list, n_stop);
        size = slow_clean(expected, text, end);
        begin_run(&r, list, n_stop);
        for (size_t k = 0; k < n && !r.stopped; ++k) {
            feed(&r, text + k, 1);
            if (!bytes && !r.stopped)
                held += r.l.size != k + 1 - slow_held(text, k + 1, list, n_stop);
        }
        monet__stream_end(&r.stream);
        found += r.stopped;
        broken += r.l.broken;
        if ((r.l.size != size || memcmp(r.l.text, expected, size)) && !wrong++ && !bytes)
            printf("    text %.*s, delivered %.*s, expected %.*s\n", (int)n, text, (int)r.l.size,
                   r.l.text, (int)size, expected);
    }
    CHECK_EQ(wrong, 0);
    CHECK_EQ(held, 0);
    CHECK_EQ(broken, 0);
    CHECK(found > 1000);
}

static void test_long_stops(void)
{
    static run  r;
    static char stop[256], text[1024];
    const char *list[1] = {stop};

    memset(stop, 'a', 254);
    stop[254] = 'b';
    memset(text, 'a', sizeof text);
    text[900] = 'b';
    begin_run(&r, list, 1);
    for (size_t k = 0; k < sizeof text && !r.stopped; k += 300)
        feed(&r, text + k, k == 900 ? 124 : 300);
    monet__stream_end(&r.stream);
    CHECK(r.stopped);
    CHECK_EQ(r.l.size, 900 - 254);
    begin_run(&r, NULL, 0); /* a token of more bytes than the stream's own buffer */
    feed(&r, text, 900);
    monet__stream_end(&r.stream);
    CHECK_EQ(r.l.size, 900);
    begin_run(&r, NULL, 0);
    r.l.limit = 2; /* nothing after the callback said stop */
    for (size_t k = 0; k < 900; ++k) feed(&r, text + k, 1);
    monet__stream_end(&r.stream);
    CHECK(r.stream.stopped && r.l.calls == 2 && r.l.size == 2);
}

/* ---- generation ------------------------------------------------------------------------------ */
typedef struct story {
    listener l;
    int32_t  tokens[64];
    double   sum; /* of log-probabilities */
    int      n;
    int      limit; /* this token says stop; 0 = none */
} story;

static bool hear_text(void *user, const char *text, size_t size)
{
    return listen(&((story *)user)->l, text, size);
}

static bool hear_token(void *user, int32_t token, float logprob)
{
    story *s = (story *)user;

    s->sum += (double)logprob;
    s->l.broken += !(logprob <= 0);
    if (s->n < 64) s->tokens[s->n++] = token;
    return s->n != s->limit;
}

static monet_generate_result tell(monet_session *session, story *s, uint64_t seed,
                                  const char *stop, int text_limit, int token_limit)
{
    monet_generate_config config;
    monet_generate_result result;

    memset(s, 0, sizeof *s);
    s->l.limit = text_limit;
    s->limit = token_limit;
    memset(&config, 0, sizeof config);
    config.sampler.temperature = 1.5f;
    config.sampler.seed = seed;
    config.max_tokens = 20;
    config.ignore_eos = true;
    config.stop_strings = &stop;
    config.n_stop = stop != NULL;
    config.text_fn = hear_text;
    config.token_fn = hear_token;
    config.user = s;
    config.logprobs = seed % 2;
    CHECK_EQ(monet_session_rewind(session, 0), MONET_OK);
    CHECK_EQ(monet_session_generate(session, "ab", &config, &result), MONET_OK);
    CHECK(seed % 2 ? s->sum < 0 : s->sum == 0);
    CHECK_EQ(result.last_token, s->tokens[s->n - 1]);
    CHECK_EQ(result.sampler.draws, s->n);
    return result;
}

/* A generation that stopped after some tokens goes on as if it had not. */
static void go_on(monet_session *session, const story *whole, const monet_generate_result *first)
{
    static story          rest;
    monet_generate_config config;
    monet_generate_result result;
    int                   n = first->n_tokens;

    memset(&rest, 0, sizeof rest);
    memset(&config, 0, sizeof config);
    config.sampler = first->sampler;
    config.max_tokens = whole->n - n;
    config.ignore_eos = true;
    config.token_fn = hear_token;
    config.user = &rest;
    CHECK_EQ(monet_session_eval(session, &first->last_token, 1), MONET_OK);
    CHECK_EQ(monet_session_generate(session, NULL, &config, &result), MONET_OK);
    CHECK_EQ(rest.n, whole->n - n);
    CHECK(!memcmp(rest.tokens, whole->tokens + n, (size_t)rest.n * sizeof *rest.tokens));
}

/* The bytes of the tokens, then cleaned: what text_fn must have got in all. */
static size_t told(const monet_model *model, const story *s, char *out)
{
    static char raw[MAX_TEXT];
    size_t      n = 0;

    for (int k = 0; k < s->n; ++k) {
        size_t      size = 0;
        const char *bytes;
        bytes = monet_tokenizer_bytes(monet_model_tokenizer(model), s->tokens[k], &size);
        if (bytes) memcpy(raw + n, bytes, size), n += size;
    }
    return slow_clean(out, raw, n);
}

static void test_stories(const monet_model *model, monet_session *session)
{
    static story a, b;
    static char  expected[3 * MAX_TEXT];
    char         stop[2] = {0};
    int          differ = 0, stops = 0;

    for (uint64_t seed = 0; seed < 20; ++seed) {
        monet_generate_result r = tell(session, &a, seed, NULL, 0, 0);
        size_t                size = told(model, &a, expected);
        CHECK(r.stop == MONET_STOP_MAX_TOKENS && r.n_tokens == 20 && a.n == 20);
        CHECK(a.l.size == size && !memcmp(a.l.text, expected, size) && a.l.broken == 0);
        (void)tell(session, &b, seed, NULL, 0, 0);
        CHECK(!memcmp(&a, &b, sizeof a)); /* equal seeds, equal text */
        (void)tell(session, &b, seed + 100, NULL, 0, 0);
        differ += memcmp(a.tokens, b.tokens, sizeof a.tokens) != 0;
        r = tell(session, &b, seed, NULL, 0, 7);
        CHECK(r.stop == MONET_STOP_CALLBACK && r.n_tokens == 7);
        CHECK_EQ(monet_session_length(session), r.n_prompt + 6);
        go_on(session, &a, &r);
        for (size_t k = 0; k < a.l.size && !stop[0]; ++k)
            if (k > 3 && (a.l.text[k] & 0x80) == 0) stop[0] = a.l.text[k];
        if (!stop[0]) continue;
        r = tell(session, &b, seed, stop, 0, 0);
        stops += r.stop == MONET_STOP_STRING;
        CHECK(b.l.size == slow_stop(a.l.text, a.l.size, (const char *const[]){stop}, 1));
        CHECK(!memcmp(a.l.text, b.l.text, b.l.size));
        stop[0] = 0;
    }
    CHECK(differ > 15);
    CHECK(stops > 5);
}

static void test_generation(void)
{
    tiny_options   options = {0};
    tiny_file      file;
    monet_model   *model = NULL;
    monet_session *session = NULL;

    options.max_seq_len = 64;
    file = tiny_make(&options);
    if (CHECK_EQ(monet_model_load_memory(file.data, file.size, NULL, &model, NULL), MONET_OK) &&
        CHECK_EQ(monet_session_create(model, NULL, &session, NULL), MONET_OK))
        test_stories(model, session);
    monet_session_free(session);
    monet_model_free(model);
    tiny_drop(&file);
    tiny_clean();
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "long")) many = 20;
    test_random_samplers();
    test_distribution();
    test_seeds();
    test_sampling_edges();
    test_sampling_errors();
    test_experts();
    test_all_splits();
    test_no_delay();
    test_stop_strings();
    test_long_stops();
    test_generation();
    return test_end("test_sampling");
}
