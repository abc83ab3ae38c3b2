/* test_inside.c: looking inside: taps of chosen sites, the last layer, activations, contributions
   of experts, attribution, the lens, loss; and snapshots, good and hostile.

   cc -O2 -pthread -I. tests/test_inside.c -o test_inside -lm && ./test_inside                    */
#define _POSIX_C_SOURCE 200809L
#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "heap.h"
#include "tiny.h"
#include <limits.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define ARGUMENT(call) CHECK_EQ(call, MONET_ERROR_ARGUMENT)
#define STATE(call) CHECK_EQ(call, MONET_ERROR_STATE)

enum { N_TOKENS = 9 };
static monet_error said;

/* V C L A K S N M H k G, decompose, tied: heads of one group and of several, outputs of an odd
   width, odd hidden units, routers that serve several layers, the last one fewer.                */
static const monet_arch shapes[] = {
    {31, 16, 2, 4, 2, 24, 8, 4, 2, 2, 1, MONET_VERTICAL, 0, 0, 0},
    {19, 10, 3, 1, 1, 24, 5, 6, 3, 2, 2, MONET_VERTICAL, 1, 0, 0},
    {23, 66, 2, 1, 1, 24, 7, 2, 2, 3, 1, MONET_VERTICAL, 0, 0, 0},
    {29, 6, 2, 3, 3, 24, 3, 3, 1, 1, 1, MONET_HORIZONTAL, 0, 0, 0},
    {33, 70, 4, 5, 1, 24, 6, 5, 4, 2, 3, MONET_HORIZONTAL, 1, 0, 0}};
static const int32_t text[N_TOKENS] = {1, 7, 2, 18, 5, 5, 11, 0, 3};

static monet_model *make(const monet_arch *shape, monet_dtype dtype, uint64_t seed)
{
    static monet_tensor tensors[256];
    monet_model_config config = {0};
    monet_writer_config c;
    monet_arch arch = *shape;
    monet_writer *w = NULL;
    monet_model *m = NULL;
    const char *path = tiny_path("inside.monet");
    memset(&c, 0, sizeof c);
    CHECK_EQ(monet_arch_check(&arch, &said), MONET_OK);
    c.arch = &arch;
    c.tensors = tensors;
    CHECK_EQ(monet_arch_tensors(&arch, dtype, tensors, 256, &c.n_tensors), MONET_OK);
    CHECK_EQ(monet_writer_create(path, &c, &w, &said), MONET_OK);
    CHECK_EQ(tiny_rows(w, tensors, c.n_tensors, seed, &said), MONET_OK);
    CHECK_EQ(monet_writer_finish(w, &said), MONET_OK);
    monet_writer_free(w);
    config.copy = true;
    CHECK_EQ(monet_model_load(path, &config, &m, &said), MONET_OK);
    (void)remove(path);
    return m;
}

static monet_session *open_session(const monet_model *m, const monet_session_config *config)
{
    monet_session *s = NULL;
    if (!CHECK_EQ(monet_session_create(m, config, &s, &said), MONET_OK))
        printf("    %s\n", said.message);
    return s;
}

/* Keeps everything, N_TOKENS at a time. */
static monet_session *open_all(const monet_model *m)
{
    monet_session_config c = {0};
    c.capture_routing = c.capture_activations = c.all_logits = true;
    c.max_batch = N_TOKENS;
    return open_session(m, &c);
}

/* ---- taps ------------------------------------------------------------------------------------ */

typedef struct spy {
    int calls, wrong;
    int write;                     /* 1: what it read, 2: changes it */
    uint32_t sites;                /* it must not see others */
    int32_t first, end;
    monet_session *session;        /* if not NULL, data[layer+1][site] must be its activations */
    float data[8][8][N_TOKENS * 70];
    size_t C;
} spy;

static bool watch(void *user, monet_site site, int32_t layer, int32_t first, int32_t count,
                  monet_real *data)
{
    spy *me = (spy *)user;
    size_t n = (size_t)count * me->C;
    me->calls++;
    me->wrong += !(me->sites >> site & 1) || layer < me->first || layer >= me->end;
    for (size_t k = 0; k < n && me->write; k++) {
        volatile monet_real x = data[k];
        data[k] = me->write == 1 ? x : x + (monet_real)0.25 * (monet_real)(k % 3);
    }
    memcpy(me->data[layer + 1][site] + (size_t)first * me->C, data, n * sizeof *data);
    return true;
}

static spy me;

static void spy_on(const monet_model *m)
{
    memset(&me, 0, sizeof me);
    me.sites = 63;
    me.first = -1;
    me.end = INT_MAX;
    me.C = (size_t)monet_model_arch(m)->dim;
}

/* How many places a tap should see. */
static int places(const monet_tap *tap, int L)
{
    int n = 0;
    for (int site = 0; site < 6; site++)
        for (int layer = -1; layer <= L; layer++) {
            bool there = site == 0 ? layer < 0 : site == 5 ? layer == L : layer >= 0 && layer < L;
            bool inside = !tap->n_layers || (layer >= tap->first_layer &&
                                             layer < tap->first_layer + tap->n_layers);
            n += there && inside && (!tap->sites || tap->sites >> site & 1);
        }
    return n;
}

static void chosen(const monet_model *m)
{
    const int L = monet_model_arch(m)->n_layers;
    monet_session_config c = {0};
    monet_session *s;
    float plain[64];
    size_t size = (size_t)monet_model_arch(m)->vocab_size * sizeof(float);
    monet_tap tap = {watch, &me, 0, 0, 0};
    c.max_batch = 4; /* batches of 4, 4 and 1 */
    s = open_session(m, &c);
    CHECK_EQ(monet_session_eval(s, text, N_TOKENS), MONET_OK);
    memcpy(plain, monet_session_logits(s), size);
    for (tap.sites = 0; tap.sites < 64; tap.sites++)
        for (tap.first_layer = -1; tap.first_layer <= L; tap.first_layer++)
            for (tap.n_layers = 0; tap.first_layer + tap.n_layers <= L + 1; tap.n_layers++) {
                spy_on(m);
                me.write = 1; /* back what it read: identical bits */
                if (tap.sites) me.sites = tap.sites;
                if (tap.n_layers) me.first = tap.first_layer;
                if (tap.n_layers) me.end = me.first + tap.n_layers;
                CHECK_EQ(monet_session_set_tap(s, &tap), MONET_OK);
                CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
                CHECK_EQ(monet_session_eval(s, text, N_TOKENS), MONET_OK);
                CHECK_EQ(me.calls, 3 * places(&tap, L));
                CHECK_EQ(me.wrong, 0);
                CHECK(!memcmp(plain, monet_session_logits(s), size));
            }
    monet_session_free(s);
}

static void no_such_tap(const monet_model *m)
{
    static const struct { uint32_t sites; int32_t n_layers, first_layer; } bad[] = {
        {64, 0, 0}, {UINT32_MAX, 0, 0}, {1u << 31, 0, 0}, {0, 0, -2}, {0, 0, 3}, {0, 1, -2},
        {0, 1, 3}, {0, 5, -1}, {0, 4, 0}, {0, 2, 2}, {0, -1, 0}, {0, INT_MAX, 0}, {0, INT_MIN, 0},
        {0, INT_MAX, 2}, {0, 1, INT_MAX}, {0, 1, INT_MIN}, {0, INT_MAX, -1}};
    monet_session *s = open_session(m, NULL);
    monet_tap tap = {watch, &me, 1, 1, -1};
    spy_on(m);
    ARGUMENT(monet_session_set_tap(NULL, &tap));
    CHECK_EQ(monet_session_set_tap(s, &tap), MONET_OK);
    for (size_t k = 0; k < COUNT(bad); k++) {
        tap.sites = bad[k].sites, tap.n_layers = bad[k].n_layers;
        tap.first_layer = bad[k].first_layer;
        if (!ARGUMENT(monet_session_set_tap(s, &tap))) printf("    %d\n", (int)k);
        CHECK_HAS(monet_session_error(s)->message, "tap: ");
    }
    CHECK_EQ(monet_session_eval(s, text, 2), MONET_OK);
    CHECK_EQ(me.calls, 1); /* the old one is still there */
    tap.fn = NULL;
    tap.sites = 0, tap.n_layers = 0, tap.first_layer = 0;
    CHECK_EQ(monet_session_set_tap(s, &tap), MONET_OK); /* none */
    CHECK_EQ(monet_session_eval(s, text, 2), MONET_OK);
    CHECK_EQ(me.calls, 1);
    monet_session_free(s);
}

/* ---- the last layer -------------------------------------------------------------------------- */

static void last_layer(const monet_model *m)
{
    static const int32_t bad[] = {-2, 3, INT_MAX, INT_MIN};
    const monet_arch *a = monet_model_arch(m);
    monet_session *s = open_all(m);
    monet_routing r;
    float plain[64];
    size_t size = (size_t)a->vocab_size * sizeof *plain, n;
    double nats;
    int32_t token;
    CHECK_EQ(monet_session_eval(s, text, N_TOKENS), MONET_OK);
    memcpy(plain, monet_session_logits(s), size);
    ARGUMENT(monet_session_set_last_layer(NULL, 0));
    for (size_t k = 0; k < COUNT(bad); k++) {
        ARGUMENT(monet_session_set_last_layer(s, bad[k] == 3 ? a->n_layers : bad[k]));
        CHECK_HAS(monet_session_error(s)->message, "last layer");
    }
    for (int32_t last = 0; last < a->n_layers; last++) {
        CHECK_EQ(monet_session_rewind(s, 5), MONET_OK); /* all went deep: shallower is right */
        CHECK_EQ(monet_session_set_last_layer(s, last), MONET_OK);
        spy_on(m);
        CHECK_EQ(tiny_tap(s, watch, &me), MONET_OK);
        CHECK_EQ(monet_session_eval(s, text + 5, 2), MONET_OK);
        CHECK_EQ(me.calls, last + 1 < a->n_layers ? 1 + 4 * (last + 1) : 2 + 4 * a->n_layers);
        CHECK_EQ(tiny_tap(s, NULL, NULL), MONET_OK);
        if (last + 1 == a->n_layers) break;
        CHECK(!monet_session_logits(s) && !monet_session_logits_at(s, 0));
        STATE(monet_session_sample(s, NULL, &token, NULL));
        STATE(monet_session_loss(s, text, 2, &nats));
        CHECK(monet_session_activation(s, MONET_SITE_RESIDUAL, last, 0) &&
              !monet_session_activation(s, MONET_SITE_RESIDUAL, last + 1, 0));
        CHECK_EQ(monet_session_routing(s, 0, last, &r), MONET_OK);
        STATE(monet_session_routing(s, 0, last + 1, &r));
        STATE(monet_session_contribution(s, 0, last + 1, 0, 0, plain));
        CHECK_EQ(monet_session_attribution(s, 0, 0, NULL, 0, &n), MONET_ERROR_CAPACITY);
        for (int32_t deeper = last + 1; deeper < a->n_layers; deeper++) {
            CHECK_EQ(monet_session_set_last_layer(s, deeper), MONET_OK);
            STATE(monet_session_eval(s, text + 7, 1));
            CHECK_HAS(monet_session_error(s)->message, "5 of 7 tokens");
            CHECK_EQ(monet_session_eval(s, NULL, 0), MONET_OK);
        }
        CHECK_EQ(monet_session_set_last_layer(s, MONET_ALL), MONET_OK);
        STATE(monet_session_eval(s, text + 7, 1));
        CHECK_EQ(monet_session_rewind(s, 6), MONET_OK);
        STATE(monet_session_eval(s, text + 6, 1));
        CHECK_EQ(monet_session_rewind(s, 5), MONET_OK);
        CHECK_EQ(monet_session_eval(s, text + 5, 4), MONET_OK);
        CHECK(!memcmp(plain, monet_session_logits(s), size));
    }
    monet_session_free(s);
}

/* ---- activations ----------------------------------------------------------------------------- */

static void activations(const monet_model *m)
{
    const monet_arch *a = monet_model_arch(m);
    monet_session *s = open_all(m);
    size_t C = (size_t)a->dim, size = C * sizeof(float);
    for (int write = 0; write <= 2; write += 2) {
        spy_on(m);
        me.write = write;
        CHECK_EQ(tiny_tap(s, watch, &me), MONET_OK);
        CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
        CHECK_EQ(monet_session_eval(s, text, 4), MONET_OK);
        CHECK_EQ(monet_session_eval(s, text + 4, 5), MONET_OK);
        for (int32_t layer = -1; layer < a->n_layers; layer++)
            for (int site = 0; site < 5; site++)
                for (int32_t t = 0; t < 5; t++) {
                    const float *x = monet_session_activation(s, (monet_site)site, layer, t);
                    CHECK((x != NULL) == ((site == 0) == (layer == -1)));
                    if (x) CHECK(!memcmp(x, me.data[layer + 1][site] + (size_t)(4 + t) * C, size));
                }
    }
    for (int32_t layer = 0; layer < a->n_layers; layer++) /* nothing else is added */
        for (size_t k = 0; k < C && !me.write; k++) {
            const float *in = monet_session_activation(
                s, layer ? MONET_SITE_RESIDUAL : MONET_SITE_EMBEDDING, layer - 1, 2);
            float sum = in[k];
            sum += monet_session_activation(s, MONET_SITE_ATTENTION_OUT, layer, 2)[k];
            sum += monet_session_activation(s, MONET_SITE_MOE_OUT, layer, 2)[k];
            CHECK(sum == monet_session_activation(s, MONET_SITE_RESIDUAL, layer, 2)[k]);
        }
    CHECK(!monet_session_activation(s, MONET_SITE_FINAL_NORM, a->n_layers, 0));
    CHECK(!monet_session_activation(s, (monet_site)-1, 0, 0));
    CHECK(!monet_session_activation(s, (monet_site)9, 0, 0));
    CHECK(!monet_session_activation(s, MONET_SITE_EMBEDDING, -1, 5));
    CHECK(!monet_session_activation(s, MONET_SITE_EMBEDDING, -1, -1));
    CHECK(!monet_session_activation(s, MONET_SITE_RESIDUAL, a->n_layers, 0));
    CHECK(!monet_session_activation(NULL, MONET_SITE_EMBEDDING, -1, 0));
    CHECK_EQ(monet_session_rewind(s, 3), MONET_OK);
    CHECK(!monet_session_activation(s, MONET_SITE_EMBEDDING, -1, 0));
    monet_session_free(s);
}

/* ---- experts --------------------------------------------------------------------------------- */

static double worst_sum, worst_logit, worst_part; /* shown at the end */

static void more(double *worst, double x)
{
    if (!(x <= *worst)) *worst = x;
}

/* All experts of a layer together are what the layer gave. */
static void contributions(const monet_model *m, const monet_session *s)
{
    const monet_arch *a = monet_model_arch(m);
    int N = a->moe_experts;
    float part[70], whole[70];
    for (int32_t t = 0; t < N_TOKENS; t += 4)
        for (int32_t layer = 0; layer < a->n_layers; layer++) {
            const float *out = monet_session_activation(s, MONET_SITE_MOE_OUT, layer, t);
            const float *n = monet_session_activation(s, MONET_SITE_MOE_IN, layer, t);
            double sum[70] = {0}, size = 0, off = 0;
            monet_routing r;
            CHECK_EQ(monet_session_routing(s, t, layer, &r), MONET_OK);
            for (int e = 0; e < N * N; e++) {
                double p = 0;
                for (int h = 0; h < r.n_heads; h++)
                    p += (double)r.g1[h * N + e / N] * (double)r.g2[h * N + e % N];
                CHECK_EQ(monet_session_contribution(s, t, layer, e / N, e % N, part), MONET_OK);
                CHECK_EQ(monet_model_expert(m, layer, e / N, e % N, n, whole), MONET_OK);
                for (int c = 0; c < a->dim; c++) {
                    sum[c] += (double)part[c];
                    more(&off, fabs(p * (double)whole[c] - (double)part[c]));
                }
            }
            for (int c = 0; c < a->dim; c++) more(&size, fabs((double)out[c]));
            for (int c = 0; c < a->dim; c++) more(&off, fabs(sum[c] - (double)out[c]));
            CHECK(size > 0 && off <= 1e-5 * size);
            more(&worst_sum, off / size);
        }
}

/* d: how a logit reads the stream x. */
static void direction(const monet_model *m, int32_t token, const float *x, double *d)
{
    const monet_arch *a = monet_model_arch(m);
    const monet_tensor *head = monet_model_find_tensor(m, a->tie_embeddings ? "embed_tokens.weight"
                                                                            : "lm_head.weight");
    float row[70], weight[70];
    double square = 0;
    CHECK_EQ(monet_tensor_read(head, token, 1, row), MONET_OK);
    CHECK_EQ(monet_tensor_read(monet_model_find_tensor(m, "norm.weight"), 0, 1, weight), MONET_OK);
    for (int c = 0; c < a->dim; c++) square += (double)x[c] * (double)x[c];
    for (int c = 0; c < a->dim; c++)
        d[c] = (double)row[c] * (double)weight[c] /
               sqrt(square / a->dim + (double)a->norm_eps);
}

/* What the biases of the halves of one expert add to the logit at weight 1. */
static double bias_logit(const monet_model *m, const monet_part *p, const double *d)
{
    const monet_arch *a = monet_model_arch(m);
    bool hd = a->decompose == MONET_HORIZONTAL;
    float b[70];
    char name[64];
    double sum = 0;
    snprintf(name, sizeof name, "layers.%d.moe.b%s", p->layer, hd ? "" : "2");
    CHECK_EQ(monet_tensor_read(monet_model_find_tensor(m, name), p->j, 1, hd ? b : b + a->dim / 2),
             MONET_OK);
    snprintf(name, sizeof name, "layers.%d.moe.b1", p->layer);
    if (!hd)
        CHECK_EQ(monet_tensor_read(monet_model_find_tensor(m, name), p->i, 1, b), MONET_OK);
    for (int c = 0; c < a->dim; c++) sum += (double)b[c] * d[c];
    return sum;
}

static void check_part(const monet_model *m, const monet_session *s, int32_t t,
                       const monet_part *p, const double *d)
{
    const monet_arch *a = monet_model_arch(m);
    float out[70];
    const float *x = out;
    double sum = 0, size = 0;
    if (p->site == MONET_SITE_MOE_OUT) {
        CHECK_EQ(monet_session_contribution(s, t, p->layer, p->i, p->j, out), MONET_OK);
        CHECK_NEAR(p->bias, (double)p->weight * bias_logit(m, p, d), 1e-5);
        CHECK(p->weight > 0);
    } else {
        x = monet_session_activation(s, p->site, p->layer, t);
        CHECK(p->i == 0 && p->j == 0 && p->bias == 0);
    }
    for (int c = 0; c < a->dim; c++) sum += (double)x[c] * d[c], size += fabs((double)x[c] * d[c]);
    CHECK(fabs(sum - p->logit) <= 1e-5 * (1 + size));
    more(&worst_part, fabs(sum - p->logit) / (1 + size));
}

static void attribution(const monet_model *m, monet_session *s, int n_layers)
{
    enum { MOST = 4096 };
    static monet_part parts[MOST], again[MOST];
    const monet_arch *a = monet_model_arch(m);
    for (int32_t t = 0; t < N_TOKENS; t += 4)
        for (int32_t token = 0; token < a->vocab_size; token += 9) {
            float logits[64];
            double d[70], sum = 0;
            size_t n = 0, fewer = 0, k = 0;
            const float *x = monet_session_activation(s, MONET_SITE_RESIDUAL, n_layers - 1, t);
            direction(m, token, x, d);
            CHECK_EQ(monet_session_lens(s, x, logits), MONET_OK);
            CHECK_EQ(monet_session_attribution(s, t, token, parts, MOST, &n), MONET_OK);
            CHECK(n >= (size_t)(1 + 2 * n_layers) && n <= MOST);
            for (int32_t layer = -1; layer < n_layers; layer++) { /* in order */
                CHECK(parts[k].layer == layer && parts[k].site == (layer < 0 ? MONET_SITE_EMBEDDING
                                                               : MONET_SITE_ATTENTION_OUT));
                for (k++; k < n && parts[k].site == MONET_SITE_MOE_OUT; k++)
                    CHECK(parts[k].layer == layer);
            }
            CHECK_EQ(k, n);
            for (k = 0; k < n; k++) {
                sum += parts[k].logit;
                check_part(m, s, t, &parts[k], d);
            }
            CHECK_NEAR(sum, logits[token], 1e-4);
            more(&worst_logit, fabs(sum - (double)logits[token]));
            memset(again, 0x55, sizeof again);
            CHECK_EQ(monet_session_attribution(s, t, token, again, n - 1, &fewer),
                     MONET_ERROR_CAPACITY);
            CHECK_EQ(fewer, n);
            for (k = 0; k + 1 < n; k++)
                CHECK(parts[k].logit == again[k].logit && parts[k].i == again[k].i &&
                      parts[k].weight == again[k].weight && parts[k].bias == again[k].bias);
            CHECK_EQ(again[n - 1].layer, 0x55555555);
            CHECK_EQ(monet_session_attribution(s, t, token, NULL, 0, &fewer),
                     MONET_ERROR_CAPACITY);
            CHECK_EQ(fewer, n);
        }
}

/* The lens on the last residual is what the session itself computes. */
static void lens(const monet_model *m, monet_session *s)
{
    const monet_arch *a = monet_model_arch(m);
    size_t size = (size_t)a->vocab_size * sizeof(float);
    float logits[64], x[70], own[64];
    memcpy(own, monet_session_logits(s), size);
    for (int32_t t = 0; t < N_TOKENS; t++) {
        const float *last = monet_session_activation(s, MONET_SITE_RESIDUAL, a->n_layers - 1, t);
        CHECK_EQ(monet_session_lens(s, last, logits), MONET_OK);
        CHECK(!memcmp(logits, monet_session_logits_at(s, t), size));
    }
    for (int c = 0; c < a->dim; c++) x[c] = c == 1 ? NAN : 1;
    CHECK_EQ(monet_session_lens(s, x, logits), MONET_ERROR_NUMERIC);
    CHECK_HAS(monet_session_error(s)->message, "lens: logit 0");
    CHECK(!memcmp(own, monet_session_logits(s), size));
    ARGUMENT(monet_session_lens(NULL, x, logits));
    ARGUMENT(monet_session_lens(s, NULL, logits));
    ARGUMENT(monet_session_lens(s, x, NULL));
}

static void inside(const monet_arch *shape, monet_dtype dtype)
{
    monet_model *m = make(shape, dtype, 3);
    monet_session *s = open_all(m), *plain = open_session(m, NULL);
    monet_tap tap = {watch, &me, 1u << MONET_SITE_ATTENTION_OUT | 1u << MONET_SITE_EMBEDDING |
                     1u << MONET_SITE_MOE_IN, 0, 0};
    size_t size = (size_t)shape->vocab_size * sizeof(float);
    CHECK_EQ(monet_session_eval(s, text, N_TOKENS), MONET_OK);
    contributions(m, s);
    attribution(m, s, shape->n_layers);
    lens(m, s);
    CHECK_EQ(monet_session_eval(plain, text, N_TOKENS), MONET_OK);
    CHECK_EQ(monet_session_eval(plain, text, 1), MONET_OK);
    CHECK_EQ(monet_session_eval(s, text, 1), MONET_OK); /* nothing of that is left behind */
    CHECK(!memcmp(monet_session_logits(s), monet_session_logits(plain), size));
    spy_on(m); /* what a tap adds is in the parts */
    me.write = 2;
    CHECK_EQ(monet_session_set_tap(s, &tap), MONET_OK);
    CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
    CHECK_EQ(monet_session_eval(s, text, N_TOKENS), MONET_OK);
    CHECK(me.calls > 0 && memcmp(monet_session_logits(s), monet_session_logits(plain), size));
    attribution(m, s, shape->n_layers);
    CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
    CHECK_EQ(monet_session_set_last_layer(s, 0), MONET_OK);
    CHECK_EQ(monet_session_eval(s, text, N_TOKENS), MONET_OK);
    attribution(m, s, 1);
    monet_session_free(s);
    monet_session_free(plain);
    monet_model_free(m);
}

/* The same bits with any number of threads, on a pool. */
static void threads(void)
{
    static monet_part parts[2][512];
    monet_model *m = make(&shapes[1], MONET_BF16, 3);
    monet_host host = {NULL, NULL, NULL, 1, NULL};
    size_t n[2] = {0, 0};
    for (int k = 0; k < 2; k++) {
        monet_session_config c = {0};
        monet_session *s;
        c.capture_routing = c.capture_activations = true;
        host.n_threads = k ? 5 : 1;
        c.host = &host;
        s = open_session(m, &c);
        CHECK_EQ(monet_session_eval(s, text, N_TOKENS), MONET_OK);
        CHECK_EQ(monet_session_attribution(s, 8, 4, parts[k], 512, &n[k]), MONET_OK);
        monet_session_free(s);
    }
    CHECK_EQ(n[0], n[1]);
    for (size_t k = 0; k < n[0]; k++) CHECK(parts[0][k].logit == parts[1][k].logit);
    monet_model_free(m);
}

static void misuse(const monet_model *m)
{
    static const int32_t wrong[] = {-1, 8, 99, INT_MAX, INT_MIN};
    monet_session_config c = {0};
    monet_session *s = NULL, *none = open_session(m, NULL);
    float x[16] = {0}, out[16];
    monet_part part;
    size_t n;
    c.capture_activations = true;
    ARGUMENT(monet_session_size(m, &c, &n));
    ARGUMENT(monet_session_create(m, &c, &s, &said));
    CHECK_HAS(said.message, "capture_activations needs capture_routing");
    c.capture_routing = true;
    c.max_batch = 2;
    s = open_session(m, &c);
    STATE(monet_session_contribution(s, 0, 0, 0, 0, out)); /* no eval */
    STATE(monet_session_attribution(s, 0, 0, &part, 1, &n));
    ARGUMENT(monet_session_eval(s, text, 3)); /* more than max_batch */
    CHECK_EQ(monet_session_eval(s, text, 2), MONET_OK);
    CHECK_EQ(monet_session_eval(none, text, 2), MONET_OK);
    STATE(monet_session_contribution(none, 0, 0, 0, 0, out)); /* no capture */
    STATE(monet_session_attribution(none, 0, 0, &part, 1, &n));
    CHECK_HAS(monet_session_error(none)->message, "capture_activations");
    ARGUMENT(monet_model_expert(NULL, 0, 0, 0, x, out));
    ARGUMENT(monet_model_expert(m, 0, 0, 0, NULL, out));
    ARGUMENT(monet_model_expert(m, 0, 0, 0, x, NULL));
    ARGUMENT(monet_session_contribution(NULL, 0, 0, 0, 0, out));
    ARGUMENT(monet_session_contribution(s, 0, 0, 0, 0, NULL));
    ARGUMENT(monet_session_attribution(NULL, 0, 0, &part, 1, &n));
    ARGUMENT(monet_session_attribution(s, 0, 0, NULL, 1, &n));
    ARGUMENT(monet_session_attribution(s, 0, 0, &part, 1, NULL));
    ARGUMENT(monet_session_attribution(s, 0, 31, &part, 1, &n));
    ARGUMENT(monet_session_attribution(s, 0, -1, &part, 1, &n));
    for (size_t k = 0; k < COUNT(wrong); k++) {
        ARGUMENT(monet_model_expert(m, wrong[k], 0, 0, x, out));
        ARGUMENT(monet_model_expert(m, 0, wrong[k], 0, x, out));
        ARGUMENT(monet_model_expert(m, 0, 0, wrong[k], x, out));
        ARGUMENT(monet_session_contribution(s, wrong[k], 0, 0, 0, out));
        ARGUMENT(monet_session_contribution(s, 0, wrong[k], 0, 0, out));
        ARGUMENT(monet_session_contribution(s, 0, 0, wrong[k], 0, out));
        ARGUMENT(monet_session_contribution(s, 0, 0, 0, wrong[k], out));
        ARGUMENT(monet_session_attribution(s, wrong[k], 0, &part, 1, &n));
    }
    CHECK_EQ(monet_session_rewind(s, 1), MONET_OK);
    STATE(monet_session_contribution(s, 0, 0, 0, 0, out));
    monet_session_free(s);
    monet_session_free(none);
}

/* ---- loss ------------------------------------------------------------------------------------ */

static void loss(const monet_model *m)
{
    const int32_t V = monet_model_arch(m)->vocab_size;
    monet_session *s = open_all(m), *none = open_session(m, NULL);
    monet_session_config c = {0};
    int32_t many[25] = {0};
    double whole = 0, nats = -1, other = -1;
    CHECK_EQ(monet_session_eval(s, text, N_TOKENS), MONET_OK);
    for (int32_t k = 0; k + 1 < N_TOKENS; k++)
        whole -= monet_logprob(monet_session_logits_at(s, k), V, text[k + 1]);
    CHECK_EQ(monet_session_loss(s, text, N_TOKENS, &nats), MONET_OK);
    CHECK(nats == whole && monet_session_length(s) == N_TOKENS);
    CHECK_EQ(monet_session_effect(s, NULL, text, N_TOKENS, &nats, &other), MONET_OK);
    CHECK(nats == whole && other == whole && monet_session_length(s) == 0);
    CHECK_EQ(monet_session_loss(s, NULL, 0, &nats), MONET_OK);
    CHECK(nats == 0);
    CHECK_EQ(monet_session_loss(s, text, 1, &nats), MONET_OK);
    CHECK(nats == 0);
    CHECK_EQ(monet_session_loss(s, many, 24, &nats), MONET_OK); /* the context */
    CHECK_EQ(monet_session_loss(s, many, 25, &nats), MONET_ERROR_CONTEXT_FULL);
    CHECK_EQ(monet_session_length(s), 24); /* found before any work */
    ARGUMENT(monet_session_loss(NULL, text, 2, &nats));
    ARGUMENT(monet_session_loss(s, NULL, 2, &nats));
    ARGUMENT(monet_session_loss(s, text, 2, NULL));
    ARGUMENT(monet_session_effect(NULL, NULL, text, 2, &nats, &other));
    ARGUMENT(monet_session_effect(s, NULL, text, 2, NULL, &other));
    ARGUMENT(monet_session_effect(s, NULL, text, 2, &nats, NULL));
    many[3] = V;
    ARGUMENT(monet_session_loss(s, many, 5, &nats));
    STATE(monet_session_loss(none, text, 2, &nats));
    CHECK_HAS(monet_session_error(none)->message, "all_logits");
    monet_session_free(s);
    c.all_logits = true;
    for (c.max_batch = 1; c.max_batch < N_TOKENS; c.max_batch++) { /* in pieces */
        s = open_session(m, &c);
        CHECK_EQ(monet_session_loss(s, text, N_TOKENS, &nats), MONET_OK);
        CHECK(nats == whole);
        monet_session_free(s);
    }
    monet_session_free(none);
}

/* ---- snapshots: going on --------------------------------------------------------------------- */

/* Of a session, in a block that is not a byte longer. */
static tiny_file snapshot(const monet_session *s)
{
    tiny_file f = {NULL, 0};
    size_t size = 0;
    CHECK_EQ(monet_session_snapshot(s, NULL, 0, &f.size), MONET_ERROR_CAPACITY);
    f.data = (uint8_t *)malloc(f.size);
    CHECK_EQ(monet_session_snapshot(s, f.data, f.size, &size), MONET_OK);
    CHECK_EQ(size, f.size);
    return f;
}

static bool same_snapshot(const monet_session *s, const tiny_file *f)
{
    tiny_file now = snapshot(s);
    bool same = now.size == f->size && !memcmp(now.data, f->data, f->size);
    tiny_drop(&now);
    return same;
}

static void same_logits(const monet_session *a, const monet_session *b, int32_t V)
{
    const float *x = monet_session_logits(a), *y = monet_session_logits(b);
    CHECK((x == NULL) == (y == NULL));
    if (x && y) CHECK(!memcmp(x, y, (size_t)V * sizeof *x));
}

/* From `from` into `to`, which is of another size; both go on in pieces, to the same end. */
static void go_on(monet_session *from, monet_session *to, int32_t V)
{
    const int32_t length = monet_session_length(from);
    tiny_file f = snapshot(from);
    int32_t a = -1, b = -1;
    monet_routing r;
    CHECK_EQ(monet_session_restore(to, f.data, f.size), MONET_OK);
    CHECK(same_snapshot(to, &f));
    CHECK_EQ(monet_session_length(to), length);
    CHECK(!memcmp(monet_session_tokens(from), monet_session_tokens(to), (size_t)length * 4));
    same_logits(from, to, V);
    CHECK_EQ(monet_session_sample(from, NULL, &a, NULL), monet_session_sample(to, NULL, &b, NULL));
    CHECK_EQ(a, b);
    STATE(monet_session_routing(to, 0, 0, &r));
    CHECK(!monet_session_logits_at(to, 0) &&
          !monet_session_activation(to, MONET_SITE_EMBEDDING, -1, 0));
    for (int32_t k = length; k < N_TOKENS; k++) {
        int32_t n = k == length && k + 1 < N_TOKENS ? 2 : 1;
        CHECK_EQ(monet_session_eval(from, text + k, (size_t)n), MONET_OK);
        CHECK_EQ(monet_session_eval(to, text + k, (size_t)n), MONET_OK);
        same_logits(from, to, V);
        k += n - 1;
    }
    CHECK_EQ(monet_session_rewind(from, length), MONET_OK); /* the old one went on as well */
    CHECK_EQ(monet_session_restore(from, f.data, f.size), MONET_OK);
    CHECK(same_snapshot(from, &f));
    tiny_drop(&f);
}

static void going_on(const monet_arch *shape, monet_dtype kv)
{
    monet_model *m = make(shape, MONET_BF16, 5);
    const float embeddings[140] = {0.5f, -0.25f};
    monet_session_config one = {0}, two = {0};
    monet_session *from, *to;
    one.kv_dtype = two.kv_dtype = kv;
    two.context = 11; /* odd, and panels of another size */
    two.max_batch = 3;
    two.capture_routing = two.capture_activations = two.all_logits = true;
    from = open_session(m, &one);
    to = open_session(m, &two);
    go_on(from, to, shape->vocab_size); /* nothing yet */
    for (int32_t k = 0; k < N_TOKENS; k++) {
        CHECK_EQ(monet_session_eval(from, text + k, 1), MONET_OK);
        go_on(from, to, shape->vocab_size);
    }
    for (int32_t k = N_TOKENS; k-- > 0;) { /* what lies behind the end is old */
        CHECK_EQ(monet_session_rewind(from, k), MONET_OK);
        go_on(from, to, shape->vocab_size);
    }
    CHECK_EQ(monet_session_eval_embeddings(from, embeddings, 2), MONET_OK);
    CHECK_EQ(monet_session_tokens(from)[1], -1);
    go_on(from, to, shape->vocab_size);
    monet_session_free(from);
    monet_session_free(to);
    monet_model_free(m);
}

/* Tokens that did not go through all layers. */
static void shallow(const monet_model *m)
{
    const int32_t V = monet_model_arch(m)->vocab_size;
    monet_session *s = open_session(m, NULL), *to = open_session(m, NULL);
    tiny_file f, whole;
    CHECK_EQ(monet_session_eval(s, text, 5), MONET_OK);
    whole = snapshot(s);
    CHECK_EQ(monet_session_rewind(s, 3), MONET_OK);
    CHECK_EQ(monet_session_set_last_layer(s, 0), MONET_OK);
    CHECK_EQ(monet_session_eval(s, text + 3, 2), MONET_OK);
    f = snapshot(s);
    CHECK(f.size < whole.size);
    CHECK_EQ(monet_session_restore(to, f.data, f.size), MONET_OK);
    CHECK(!monet_session_logits(to) && same_snapshot(to, &f));
    STATE(monet_session_eval(to, text + 5, 1));
    CHECK_EQ(monet_session_rewind(to, 3), MONET_OK);
    CHECK_EQ(monet_session_eval(to, text + 3, 2), MONET_OK);
    CHECK(same_snapshot(to, &whole));
    CHECK_EQ(monet_session_restore(to, f.data, f.size), MONET_OK);
    CHECK_EQ(monet_session_set_last_layer(to, 0), MONET_OK);
    CHECK_EQ(monet_session_eval(to, text + 5, 2), MONET_OK);
    CHECK_EQ(monet_session_eval(s, text + 5, 2), MONET_OK);
    tiny_drop(&f);
    f = snapshot(s);
    CHECK(same_snapshot(to, &f));
    CHECK_EQ(monet_session_restore(to, whole.data, whole.size), MONET_OK);
    CHECK_EQ(monet_session_set_last_layer(to, MONET_ALL), MONET_OK);
    CHECK_EQ(monet_session_set_last_layer(s, MONET_ALL), MONET_OK);
    CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
    CHECK_EQ(monet_session_eval(s, text, 6), MONET_OK);
    CHECK_EQ(monet_session_eval(to, text + 5, 1), MONET_OK);
    same_logits(s, to, V);
    tiny_drop(&f);
    tiny_drop(&whole);
    monet_session_free(s);
    monet_session_free(to);
}

/* ---- snapshots: hostile ---------------------------------------------------------------------- */

/* Both hashes are right again. */
static void seal(tiny_file *f)
{
    if (f->size < 72) return;
    tiny_put(f, 56, 8, monet__hash_of(f->data + 72, f->size - 72));
    tiny_put(f, 64, 8, monet__hash_of(f->data, 64));
}

static monet_session *target; /* holds other tokens, and must keep them */
static tiny_file before;      /* its snapshot */

/* Is this refused, with words, and is the target as it was? In a block of its own: a byte read too
   many is seen.                                                                                  */
static monet_result refused(const tiny_file *f)
{
    tiny_file own = {(uint8_t *)malloc(f->size ? f->size : 1), f->size};
    monet_result result;
    memcpy(own.data, f->data, f->size);
    result = monet_session_restore(target, own.data, own.size);
    CHECK(result != MONET_OK && monet_session_error(target)->code == result &&
          monet_session_error(target)->message[0]);
    CHECK(same_snapshot(target, &before));
    tiny_drop(&own);
    return result;
}

static uint64_t strange(int k, uint64_t old)
{
    static const uint64_t values[] = {
        0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 32, 63, 64, 127, 128, 255, 256, 0x7fff, 0x8000,
        0xffff, 0x10000, 0x1000000, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
    int n = (int)COUNT(values);
    if (k < n) return values[k];
    k -= n;
    return k == 0 ? old + 1 : k == 1 ? old - 1 : k == 2 ? 2 * old : k == 3 ? ~old
                                                                            : old ^ 0x80808080;
}

/* Every field of the header, and every word behind it that is not a number of the cache. */
static void fields(const tiny_file *good, const monet_arch *a, int32_t length, bool logits)
{
    tiny_file f = tiny_copy(good, good->size);
    uint64_t end = 72 + 4 * (uint64_t)(a->n_layers + length);
    for (uint64_t at = 0; at < end; at += 4) {
        uint64_t old = tiny_get(&f, at, 4), token = 72 + 4 * (uint64_t)a->n_layers;
        if (at >= 56 && at < 72) continue; /* the hashes */
        for (int k = 0; k < 34; k++) {
            uint64_t value = strange(k, old) & 0xffffffff;
            monet_result result;
            if (value == old || (at >= token && (value < (uint64_t)a->vocab_size ||
                                                 value == 0xffffffff))) continue;
            tiny_put(&f, at, 4, value);
            CHECK_EQ(refused(&f), MONET_ERROR_FORMAT); /* the hash does not match, or the magic */
            seal(&f);
            result = refused(&f);
            if (at < 8 || at == 12 || at == 16 || at == 20 || (at >= 36 && at < 48) || at > 48)
                CHECK_EQ(result, MONET_ERROR_FORMAT);
            if (at == 8) CHECK_EQ(result, MONET_ERROR_VERSION);
            if (at >= 24 && at < 36) CHECK_EQ(result, MONET_ERROR_ARGUMENT);
            if (at == 48)
                CHECK_EQ(result, value > 24 ? MONET_ERROR_CONTEXT_FULL : MONET_ERROR_FORMAT);
            tiny_put(&f, at, 4, old);
            seal(&f);
        }
    }
    for (uint64_t at = f.size - 4; logits && at > f.size - 4 * (uint64_t)a->vocab_size; at -= 4)
        for (int k = 0; k < 4; k++) { /* a logit that is NaN or infinite */
            static const uint32_t bits[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xffffffff};
            uint64_t old = tiny_get(&f, at, 4);
            tiny_put(&f, at, 4, bits[k]);
            seal(&f);
            CHECK_EQ(refused(&f), MONET_ERROR_FORMAT);
            tiny_put(&f, at, 4, old);
        }
    tiny_drop(&f);
}

static void hostile(const monet_model *m, monet_dtype kv, bool logits)
{
    const monet_arch *a = monet_model_arch(m);
    monet_session_config c = {0};
    monet_session *s;
    tiny_file good, f;
    c.kv_dtype = kv;
    s = open_session(m, &c);
    target = open_session(m, &c);
    CHECK_EQ(monet_session_eval(target, text + 2, 4), MONET_OK);
    before = snapshot(target);
    CHECK_EQ(monet_session_eval(s, text, 3), MONET_OK);
    if (!logits) CHECK_EQ(monet_session_rewind(s, 2), MONET_OK);
    good = snapshot(s);
    f.data = good.data;
    for (f.size = 0; f.size < good.size; f.size++) { /* cut off at every byte */
        tiny_file sealed = tiny_copy(&good, f.size);
        CHECK_EQ(refused(&f), MONET_ERROR_FORMAT);
        if (f.size >= 72) tiny_put(&sealed, 16, 8, f.size); /* and as if it was meant */
        seal(&sealed);
        CHECK_EQ(refused(&sealed), MONET_ERROR_FORMAT);
        tiny_drop(&sealed);
    }
    for (size_t more_bytes = 1; more_bytes < 9; more_bytes++) {
        f = tiny_copy(&good, good.size + more_bytes);
        CHECK_EQ(refused(&f), MONET_ERROR_FORMAT);
        tiny_put(&f, 16, 8, f.size);
        seal(&f);
        CHECK_EQ(refused(&f), MONET_ERROR_FORMAT);
        tiny_drop(&f);
    }
    f = tiny_copy(&good, good.size);
    for (size_t bit = 0; bit < 8 * good.size; bit += bit < 8 * 100 ? 1 : 29) {
        f.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK_EQ(refused(&f), MONET_ERROR_FORMAT);
        f.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    fields(&good, a, logits ? 3 : 2, logits);
    CHECK_EQ(monet_session_restore(target, good.data, good.size), MONET_OK);
    CHECK(same_snapshot(target, &good));
    tiny_drop(&f);
    tiny_drop(&good);
    tiny_drop(&before);
    monet_session_free(s);
    monet_session_free(target);
}

/* Numbers of the cache may be any: an error or not, but no more than that. */
static void any_cache(const monet_model *m)
{
    const monet_arch *a = monet_model_arch(m);
    monet_session *s = open_session(m, NULL);
    tiny_file good, f;
    int ends[2] = {0, 0};
    CHECK_EQ(monet_session_eval(s, text, 3), MONET_OK);
    good = snapshot(s);
    for (uint64_t seed = 0; seed < 40; seed++) {
        uint64_t from = 72 + 4 * (uint64_t)(a->n_layers + 3);
        f = tiny_copy(&good, good.size);
        for (uint64_t k = from; k < f.size - 4 * (uint64_t)a->vocab_size; k++)
            if (seed % 2 || k % 4 < 2) f.data[k] = (uint8_t)tiny_mix(seed * 100000 + k);
        seal(&f);
        CHECK_EQ(monet_session_restore(s, f.data, f.size), MONET_OK);
        ends[monet_session_eval(s, text + 3, 4) == MONET_OK]++;
        tiny_drop(&f);
    }
    CHECK_EQ(ends[0] + ends[1], 40);
    CHECK_EQ(monet_session_restore(s, good.data, good.size), MONET_OK);
    CHECK_EQ(monet_session_eval(s, text + 3, 4), MONET_OK);
    tiny_drop(&good);
    monet_session_free(s);
}

/* Another model, another cache, a short context; arguments. */
static void strangers(const monet_model *m)
{
    monet_model *other = make(&shapes[0], MONET_F32, 8), *wide = make(&shapes[0], MONET_BF16, 3);
    monet_session_config c = {0};
    monet_session *s = open_session(m, NULL), *to;
    tiny_file f;
    size_t n = 0;
    CHECK_EQ(monet_session_eval(s, text, 3), MONET_OK);
    f = snapshot(s);
    for (int k = 0; k < 4; k++) {
        monet_result result = k < 3 ? MONET_ERROR_ARGUMENT : MONET_ERROR_CONTEXT_FULL;
        c.kv_dtype = k == 2 ? MONET_BF16 : MONET_F32;
        c.context = k == 3 ? 2 : 0;
        to = open_session(k == 0 ? other : k == 1 ? wide : m, &c);
        CHECK_EQ(monet_session_restore(to, f.data, f.size), result);
        CHECK_HAS(monet_session_error(to)->message,
                  k < 2 ? "another model" : k == 2 ? "cache of f32" : "the context is 2");
        CHECK_EQ(monet_session_length(to), 0);
        monet_session_free(to);
    }
    memset(f.data, 0x55, f.size);
    CHECK_EQ(monet_session_snapshot(s, f.data, f.size - 1, &n), MONET_ERROR_CAPACITY);
    CHECK(n == f.size && f.data[0] == 0x55 && f.data[n - 2] == 0x55);
    ARGUMENT(monet_session_snapshot(NULL, f.data, f.size, &n));
    ARGUMENT(monet_session_snapshot(s, NULL, 1, &n));
    ARGUMENT(monet_session_snapshot(s, f.data, f.size, NULL));
    ARGUMENT(monet_session_restore(NULL, f.data, f.size));
    ARGUMENT(monet_session_restore(s, NULL, f.size));
    tiny_drop(&f);
    monet_session_free(s);
    monet_model_free(other);
    monet_model_free(wide);
}

/* ---- snapshots: files ------------------------------------------------------------------------ */

static void put_file(const char *path, const uint8_t *data, size_t size)
{
    FILE *out = fopen(path, "wb");
    if (!CHECK(out != NULL)) return;
    CHECK_EQ(fwrite(data, 1, size, out), size);
    fclose(out);
}

static void files(const monet_model *m)
{
    heap_count heap;
    monet_host host = heap_host(&heap);
    monet_session_config c = {0};
    monet_session *s, *to;
    const int n_files = tiny_files();
    char path[256];
    tiny_file f, on_disk;
    c.host = &host;
    s = open_session(m, &c);
    to = open_session(m, &c);
    strcpy(path, tiny_path("session.kv"));
    CHECK_EQ(monet_session_eval(s, text, 3), MONET_OK);
    CHECK_EQ(monet_session_save(s, path, &said), MONET_OK);
    f = snapshot(s);
    on_disk = tiny_read(path);
    CHECK(on_disk.size == f.size && !memcmp(on_disk.data, f.data, f.size));
    CHECK_EQ(monet_session_load(to, path, &said), MONET_OK);
    CHECK(same_snapshot(to, &f));
    CHECK_EQ(heap.live, 2);
    heap.fail_at = heap.calls + 1; /* one allocation each, and it may fail */
    CHECK_EQ(monet_session_save(s, path, &said), MONET_ERROR_MEMORY);
    heap.fail_at = heap.calls + 1;
    CHECK_EQ(monet_session_load(to, path, &said), MONET_ERROR_MEMORY);
    CHECK_HAS(said.message, path);
    CHECK_EQ(monet_session_save(s, tiny_path("no/folder"), &said), MONET_ERROR_IO);
    CHECK_EQ(monet_session_load(to, tiny_path("none"), &said), MONET_ERROR_IO);
    CHECK_EQ(monet_session_load(to, tiny_path(""), &said), MONET_ERROR_IO); /* a folder */
    ARGUMENT(monet_session_save(NULL, path, &said));
    ARGUMENT(monet_session_save(s, NULL, &said));
    ARGUMENT(monet_session_load(NULL, path, &said));
    ARGUMENT(monet_session_load(to, NULL, NULL));
    CHECK_EQ(monet_session_rewind(to, 1), MONET_OK);
    for (size_t size = 0; size < f.size; size += size < 100 ? 1 : 97) {
        put_file(path, f.data, size);
        CHECK_EQ(monet_session_load(to, path, &said), MONET_ERROR_FORMAT);
        CHECK_HAS(said.message, path);
        CHECK_EQ(monet_session_length(to), 1);
    }
    put_file(path, f.data, f.size);
    CHECK_EQ(truncate(path, (off_t)1 << 40), 0); /* 1 TB, of which 72 bytes are read */
    heap.peak = heap.now;
    CHECK_EQ(monet_session_load(to, path, &said), MONET_ERROR_FORMAT);
    tiny_put(&f, 16, 8, (uint64_t)1 << 40); /* the header says so too */
    seal(&f);
    put_file(path, f.data, f.size);
    CHECK_EQ(truncate(path, (off_t)1 << 40), 0);
    CHECK_EQ(monet_session_load(to, path, &said), MONET_ERROR_FORMAT);
    CHECK_EQ(heap.peak, heap.now);
    CHECK(heap.live == 2 && heap.wrong == 0);
    (void)remove(path);
    CHECK_EQ(tiny_files(), n_files);
    tiny_drop(&f);
    tiny_drop(&on_disk);
    monet_session_free(s);
    monet_session_free(to);
}

/* ---- all of it ------------------------------------------------------------------------------- */

int main(void)
{
    static const monet_dtype dtypes[] = {MONET_F32, MONET_F16, MONET_BF16, MONET_Q8, MONET_Q4};
    monet_model *vd = make(&shapes[0], MONET_F32, 3), *hd = make(&shapes[4], MONET_BF16, 4);
    chosen(vd);
    no_such_tap(vd);
    last_layer(vd);
    last_layer(hd);
    activations(vd);
    activations(hd);
    for (size_t k = 0; k < COUNT(shapes); k++)
        for (size_t d = 0; d < COUNT(dtypes); d++) inside(&shapes[k], dtypes[d]);
    threads();
    misuse(vd);
    loss(vd);
    loss(hd);
    for (size_t k = 0; k < COUNT(shapes); k++)
        for (size_t d = 0; d < 3; d++) going_on(&shapes[k], dtypes[d]);
    shallow(vd);
    shallow(hd);
    hostile(vd, MONET_F32, true);
    hostile(vd, MONET_BF16, false);
    any_cache(vd);
    strangers(vd);
    files(vd);
    monet_model_free(vd);
    monet_model_free(hd);
    tiny_clean();
    printf("  largest differences: contributions %.2g, parts %.2g, logits %.2g\n", worst_sum,
           worst_part, worst_logit);
    return test_end("inside");
}
