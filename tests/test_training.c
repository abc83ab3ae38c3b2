/* test_training.c: what a trainer promises, apart from its derivatives (test_gradients.c) and its
   files (test_resume.c).

   cc -O2 -pthread -I. tests/test_training.c -o test_training -lm && ./test_training

   Data races: the same line with -g -fsanitize=thread must run without a report.

   Wrong arguments and wrong order; AdamW, clipping and decay against the formula in double; frozen
   tensors; batches in parts; targets that are not scored; weights that are not finite; two machines
   against one; the same bits for any number of threads and in any mode of the caller; memory; rates
   of learning; new models.                                                                       */
#define _XOPEN_SOURCE 700
#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "heap.h"
#include "tiny.h"

#include <fenv.h>
#include <float.h>
#include <limits.h>
#include <pthread.h>
#include <time.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

enum { B = 2, T = 7, BT = B * T, STEPS = 3 };

static tiny_file files[2];
static monet_model *models[2]; /* vertical f32; horizontal bf16, tied, three layers, two routers */
static const char *const everything[] = {"*"};
static const char *const routers[] = {"layers.*.router.*"};

/* ---- trainers and their bits ----------------------------------------------------------------- */

static monet_trainer_config usual(void)
{
    monet_trainer_config c;
    memset(&c, 0, sizeof c);
    c.batch_size = B;
    c.seq_len = T;
    c.weight_decay = 0.1f;
    c.grad_clip = 1;
    c.uniformity = 0.02f;
    c.ambiguity = 0.03f;
    c.uniformity_eps = 1e-3f;
    return c;
}

static monet_trainer *open_trainer(const monet_model *model, const monet_trainer_config *config)
{
    monet_trainer *t = NULL;
    monet_error err = {{0}, MONET_OK};
    if (!CHECK_EQ(monet_trainer_create(model, config, &t, &err), MONET_OK))
        printf("    %s\n", err.message);
    return t;
}

/* Sequences of step `number`, `n` tokens in all; a fifth of the targets is not scored. */
static void fill(int number, int n, int32_t *tokens, int32_t *targets)
{
    for (int k = 0; k < n; k++) {
        uint64_t x = tiny_mix((uint64_t)(number * 1000 + k) * 2654435761u + 17);
        tokens[k] = (int32_t)(x % TINY_VOCAB);
        targets[k] = x >> 20 & 255 ? (int32_t)((x >> 32) % TINY_VOCAB) : -1;
        if (x >> 40 & 1) targets[k] = k % 3 ? tokens[k] : -1;
    }
}

static void forward(monet_trainer *t, int number, monet_losses *losses)
{
    int32_t tokens[BT], targets[BT];
    fill(number, BT, tokens, targets);
    CHECK_EQ(monet_trainer_forward(t, tokens, targets, losses), MONET_OK);
}

static void pass(monet_trainer *t, int number, monet_losses *losses)
{
    forward(t, number, losses);
    CHECK_EQ(monet_trainer_backward(t), MONET_OK);
}

static void step(monet_trainer *t, int number, float rate)
{
    monet_update update;
    pass(t, number, NULL);
    CHECK_EQ(monet_trainer_update(t, rate, &update), MONET_OK);
    CHECK(!update.skipped);
}

/* Numbers in the blocks of weights and of gradients. */
static size_t count_of(monet_trainer *t)
{
    size_t n = 0;
    return monet_trainer_grads(t, &n) ? n : 0;
}

/* All weights, in one block like the gradients. They may be written to. */
static float *weights(monet_trainer *t)
{
    const void *data = monet_model_tensor(monet_trainer_model(t), 0)->data;
    float *out = NULL;
    memcpy(&out, &data, sizeof out);
    return out;
}

static float *copy_of(const float *x, size_t n)
{
    float *out = (float *)malloc(n * sizeof *out);
    if (!out) exit(2);
    memcpy(out, x, n * sizeof *out);
    return out;
}

static float *copy_weights(monet_trainer *t) { return copy_of(weights(t), count_of(t)); }
static float *copy_grads(monet_trainer *t)
{
    return copy_of(monet_trainer_grads(t, NULL), count_of(t));
}

static bool same_weights(monet_trainer *a, monet_trainer *b)
{
    return count_of(a) == count_of(b) &&
           !memcmp(weights(a), weights(b), count_of(a) * sizeof(float));
}

/* Element of a tensor in the trainer's blocks of weights and gradients. */
static size_t place(const monet_tensor *t, int64_t row, int64_t column)
{
    return (size_t)(t->offset / sizeof(float)) + monet_tensor_place(t, row, column);
}

static int64_t rows_of(const monet_tensor *t) { return t->n_dims == 1 ? 1 : t->shape[0]; }
static int64_t columns_of(const monet_tensor *t)
{
    return t->n_dims == 1 ? t->shape[0] : t->shape[1];
}

static bool is_statistic(const monet_tensor *t) { return strstr(t->name, ".running_") != NULL; }

static bool decays(const monet_tensor *t) /* matrices, but not moe.b, moe.b1, moe.b2 */
{
    const char *end = strrchr(t->name, '.');
    return t->n_dims == 2 && strcmp(end, ".b") && strcmp(end, ".b1") && strcmp(end, ".b2");
}

/* ---- wrong configs --------------------------------------------------------------------------- */

static void refuse(const monet_trainer_config *c, monet_result code, const char *words)
{
    monet_error err = {{0}, MONET_OK};
    monet_trainer *t = (monet_trainer *)&err;
    if (!CHECK_EQ(monet_trainer_create(models[0], c, &t, &err), code)) printf("    %s\n", words);
    CHECK(t == NULL);
    CHECK_EQ(err.code, code);
    CHECK_HAS(err.message, words);
    t = (monet_trainer *)&err;
    CHECK_EQ(monet_trainer_create(models[0], c, &t, NULL), code);
    CHECK(t == NULL);
}

static void wrong_numbers(void)
{
    static const float bad[] = {-1, -1e-30f, NAN, INFINITY, -INFINITY, FLT_MAX};
    static const struct { const char *name; size_t at; } fields[] = {
#define FIELD(name) {#name, offsetof(monet_trainer_config, name)}
        FIELD(beta1), FIELD(beta2), FIELD(eps), FIELD(weight_decay), FIELD(grad_clip),
        FIELD(uniformity), FIELD(ambiguity), FIELD(uniformity_eps)};
    size_t size;
    for (size_t f = 0; f < sizeof fields / sizeof *fields; f++)
        for (size_t k = 0; k < sizeof bad / sizeof *bad + 1; k++) {
            monet_trainer_config c = usual();
            float x = k < 6 ? bad[k] : 1;
            if (k == 6 && f > 1) continue; /* 1 is too much for a beta only */
            memcpy((char *)&c + fields[f].at, &x, sizeof x);
            refuse(&c, MONET_ERROR_ARGUMENT, fields[f].name);
            CHECK_EQ(monet_trainer_size(models[0], &c, &size), MONET_ERROR_ARGUMENT);
        }
}

static void wrong_sizes(void)
{
    static const int32_t bad[][2] = {{-1, 1}, {1, -1}, {INT32_MIN, 1}, {1, INT32_MIN},
                                     {INT32_MAX, INT32_MAX}, {INT32_MAX, 1}, {1, INT32_MAX},
                                     {65536, 65536}};
    monet_trainer_config c;
    monet_host host;
    size_t size;
    char words[64];
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        c = usual();
        c.batch_size = bad[k][0], c.seq_len = bad[k][1];
        snprintf(words, sizeof words, "batch_size is %d, seq_len is %d", bad[k][0], bad[k][1]);
        refuse(&c, MONET_ERROR_ARGUMENT, words);
        CHECK_EQ(monet_trainer_size(models[0], &c, &size), MONET_ERROR_ARGUMENT);
    }
    c = usual();
    c.struct_size = sizeof c + 8;
    refuse(&c, MONET_ERROR_VERSION, "struct_size");
    c.struct_size = 4;
    refuse(&c, MONET_ERROR_ARGUMENT, "struct_size is 4");
    for (int n = -1; n <= 257; n += 258) {
        memset(&host, 0, sizeof host);
        host.n_threads = n;
        c = usual();
        c.host = &host;
        snprintf(words, sizeof words, "n_threads is %d", n);
        refuse(&c, MONET_ERROR_ARGUMENT, words);
    }
}

static void wrong_freeze(void)
{
    static const char *const bad[] = {"layers.*.nothing", NULL, "", "layers.0", "*x"};
    monet_trainer_config c = usual();
    c.n_freeze = -1;
    refuse(&c, MONET_ERROR_ARGUMENT, "n_freeze is -1");
    c.n_freeze = 1;
    refuse(&c, MONET_ERROR_ARGUMENT, "pattern 0 is NULL");
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        char words[64];
        c.freeze = &bad[k];
        snprintf(words, sizeof words, "'%s'", bad[k] ? bad[k] : "");
        refuse(&c, MONET_ERROR_ARGUMENT, bad[k] ? words : "pattern 0 is NULL");
    }
}

static void no_model(void)
{
    tiny_options options = {0};
    tiny_file file;
    monet_model *m = NULL;
    monet_trainer *t = NULL;
    monet_error err;
    monet_trainer_config c = usual();
    size_t size = 1;
    CHECK_EQ(monet_trainer_create(NULL, &c, &t, &err), MONET_ERROR_ARGUMENT);
    CHECK_HAS(err.message, "NULL");
    CHECK_EQ(monet_trainer_create(models[0], &c, NULL, &err), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_size(NULL, &c, &size), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_size(models[0], &c, NULL), MONET_ERROR_ARGUMENT);
    options.no_weights = 1;
    file = tiny_make(&options);
    CHECK_EQ(monet_model_load_memory(file.data, file.size, NULL, &m, NULL), MONET_OK);
    CHECK_EQ(monet_trainer_create(m, &c, &t, &err), MONET_ERROR_STATE);
    CHECK_HAS(err.message, "tokenizer");
    CHECK_EQ(monet_trainer_size(m, &c, &size), MONET_ERROR_STATE);
    monet_model_free(m);
    tiny_drop(&file);
}

/* ---- wrong calls ----------------------------------------------------------------------------- */

/* Each failure changes nothing: `t` goes on like a trainer that never failed. */
static void wrong_tokens(monet_trainer *t)
{
    static const int32_t bad[] = {TINY_VOCAB, -2, INT32_MAX, INT32_MIN};
    int32_t tokens[BT], targets[BT];
    monet_losses losses = {-7, -7, -7, -7, -7, -7};
    for (size_t k = 0; k < 10; k++) {
        char words[64];
        size_t at = k % 5 ? BT - 1 : 3;
        int32_t *array = k < 5 ? tokens : targets, value = k % 5 < 4 ? bad[k % 5] : -1;
        if (k == 9) continue; /* -1 is a target, and no token */
        fill(9, BT, tokens, targets);
        array[at] = value;
        CHECK_EQ(monet_trainer_forward(t, tokens, targets, &losses), MONET_ERROR_ARGUMENT);
        CHECK_EQ(monet_trainer_error(t)->code, MONET_ERROR_ARGUMENT);
        snprintf(words, sizeof words, "sequence %d, position %d", (int)at / T, (int)at % T);
        CHECK_HAS(monet_trainer_error(t)->message, words);
        snprintf(words, sizeof words, k < 5 ? "token %d" : "target %d", value);
        CHECK_HAS(monet_trainer_error(t)->message, words);
        CHECK_HAS(monet_trainer_error(t)->message, "0..271");
    }
    CHECK(losses.total == -7 && losses.scored == -7);
    CHECK_EQ(monet_trainer_forward(t, NULL, targets, &losses), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_forward(t, tokens, NULL, &losses), MONET_ERROR_ARGUMENT);
    CHECK_HAS(monet_trainer_error(t)->message, "NULL");
}

static void wrong_rates(monet_trainer *t)
{
    static const float bad[] = {-1, -1e-30f, NAN, INFINITY, -INFINITY};
    monet_update update = {-7, -7, false};
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        CHECK_EQ(monet_trainer_update(t, bad[k], &update), MONET_ERROR_ARGUMENT);
        CHECK_HAS(monet_trainer_error(t)->message, "rate");
    }
    CHECK(update.grad_norm == -7 && update.scored == -7);
}

static void wrong_order(monet_trainer *t, monet_trainer *good)
{
    static const char *const path = "/tmp/monet-test-must-not-be-there";
    monet_counts counts = {0, 0, 0};
    monet_error err = {{0}, MONET_OK};
    CHECK_EQ(monet_trainer_backward(t), MONET_ERROR_STATE);
    CHECK_HAS(monet_trainer_error(t)->message, "forward");
    CHECK_EQ(monet_trainer_update(t, 1e-3f, NULL), MONET_ERROR_STATE);
    CHECK_HAS(monet_trainer_error(t)->message, "backward");
    forward(t, 0, NULL);
    CHECK_EQ(monet_trainer_update(t, 1e-3f, NULL), MONET_ERROR_STATE);
    wrong_tokens(t); /* what forward has kept stays good */
    CHECK_EQ(monet_trainer_backward(t), MONET_OK);
    CHECK_EQ(monet_trainer_backward(t), MONET_ERROR_STATE);
    wrong_tokens(t);
    wrong_rates(t);
    CHECK_EQ(monet_trainer_save(t, path, NULL, 0, &err), MONET_ERROR_STATE);
    CHECK_HAS(err.message, "backward");
    CHECK(access(path, F_OK) != 0);
    CHECK_EQ(monet_trainer_update(t, 1e-3f, NULL), MONET_OK);
    CHECK_EQ(monet_trainer_update(t, 1e-3f, NULL), MONET_ERROR_STATE);
    CHECK_EQ(monet_trainer_backward(t), MONET_ERROR_STATE);
    step(good, 0, 1e-3f);
    CHECK(same_weights(t, good));
    step(t, 1, 1e-3f);
    step(good, 1, 1e-3f);
    CHECK(same_weights(t, good));
    CHECK_EQ(monet_trainer_counts(t, &counts), MONET_OK);
    CHECK(counts.steps == 2 && counts.skipped == 0 && counts.batches == 2);
}

static void null_calls(monet_trainer *t)
{
    monet_counts counts = {0, 0, 0};
    monet_tensor g;
    size_t n = 7;
    int32_t token = 1;
    CHECK_EQ(monet_trainer_forward(NULL, &token, &token, NULL), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_backward(NULL), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_update(NULL, 0, NULL), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_counts(NULL, &counts), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_counts(t, NULL), MONET_ERROR_ARGUMENT);
    CHECK(monet_trainer_model(NULL) == NULL);
    CHECK(monet_trainer_grads(NULL, &n) == NULL && n == 0);
    CHECK(monet_trainer_grads(t, NULL) != NULL);
    CHECK_EQ(monet_trainer_grad(NULL, "norm.weight", &g), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_grad(t, NULL, &g), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_grad(t, "norm.weight", NULL), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_grad(t, "norm.weigh", &g), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_grad(t, "", &g), MONET_ERROR_ARGUMENT);
    n = 7;
    CHECK(monet_trainer_user(NULL, &n) == NULL && n == 0);
    n = 7;
    CHECK(monet_trainer_user(t, &n) == NULL && n == 0);
    CHECK(monet_trainer_user(t, NULL) == NULL);
    CHECK(monet_trainer_error(NULL) && monet_trainer_error(NULL)->message[0]);
    CHECK(monet_trainer_error(t) != NULL);
    monet_trainer_free(NULL);
}

static void wrong_calls(void)
{
    for (int k = 0; k < 2; k++) {
        monet_trainer_config c = usual();
        monet_trainer *t = open_trainer(models[k], &c), *good = open_trainer(models[k], &c);
        null_calls(t);
        wrong_order(t, good);
        monet_trainer_free(t);
        monet_trainer_free(good);
    }
}

/* ---- losses ---------------------------------------------------------------------------------- */

/* With frozen routers a pass computes what a session on the same model computes. */
static void against_session(int which)
{
    monet_trainer_config c = usual();
    monet_session_config config;
    monet_trainer *t;
    monet_session *s = NULL;
    monet_losses losses;
    int32_t tokens[BT], targets[BT];
    double nats = 0;
    int n = 0;
    c.freeze = routers;
    c.n_freeze = 1;
    t = open_trainer(models[which], &c);
    step(t, 0, 1e-2f);
    fill(5, BT, tokens, targets);
    CHECK_EQ(monet_trainer_forward(t, tokens, targets, &losses), MONET_OK);
    memset(&config, 0, sizeof config);
    config.all_logits = true;
    CHECK_EQ(monet_session_create(monet_trainer_model(t), &config, &s, NULL), MONET_OK);
    for (int b = 0; b < B; b++) {
        CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
        CHECK_EQ(monet_session_eval(s, tokens + b * T, T), MONET_OK);
        for (int k = 0; k < T; k++) {
            if (targets[b * T + k] < 0) continue;
            nats -= monet_logprob(monet_session_logits_at(s, k), TINY_VOCAB, targets[b * T + k]);
            n++;
        }
    }
    CHECK_EQ(losses.scored, n);
    CHECK_NEAR(losses.cross_entropy, nats / n, 1e-6 * nats / n);
    CHECK_NEAR(losses.total, losses.cross_entropy + 0.02 * losses.uniformity +
               0.03 * losses.ambiguity, 1e-6);
    CHECK(losses.uniformity >= log(8) - 1e-2 && losses.ambiguity > 0 && losses.ambiguity < 1);
    monet_session_free(s);
    monet_trainer_free(t);
}

/* Routing losses are computed where they are off too, and change nothing then. */
static void losses_off(void)
{
    monet_trainer_config c = usual();
    monet_trainer *on, *off;
    monet_losses a, b;
    on = open_trainer(models[0], &c);
    c.uniformity = c.ambiguity = 0;
    off = open_trainer(models[0], &c);
    pass(on, 0, &a);
    pass(off, 0, &b);
    CHECK(a.uniformity == b.uniformity && a.ambiguity == b.ambiguity);
    CHECK(a.cross_entropy == b.cross_entropy && b.total == b.cross_entropy);
    CHECK(a.scored == b.scored && a.unused == b.unused);
    CHECK(memcmp(monet_trainer_grads(on, NULL), monet_trainer_grads(off, NULL),
                 count_of(on) * sizeof(float)));
    monet_trainer_free(on);
    monet_trainer_free(off);
}

/* No target is scored: losses and gradients are 0, and nothing is divided by it. */
static void nothing_scored(void)
{
    monet_trainer_config c = usual();
    monet_trainer *t = open_trainer(models[0], &c);
    int32_t tokens[BT], targets[BT];
    monet_losses losses;
    monet_update update;
    size_t n = count_of(t), wrong = 0;
    float *w = weights(t), *before = copy_of(w, n);
    fill(0, BT, tokens, targets);
    for (int k = 0; k < BT; k++) targets[k] = -1;
    CHECK_EQ(monet_trainer_forward(t, tokens, targets, &losses), MONET_OK);
    CHECK(losses.cross_entropy == 0 && losses.scored == 0 && losses.uniformity > 0);
    CHECK_NEAR(losses.total, 0.02 * losses.uniformity + 0.03 * losses.ambiguity, 1e-6);
    free(before);
    before = copy_of(w, n); /* statistics have moved */
    CHECK_EQ(monet_trainer_backward(t), MONET_OK);
    for (size_t k = 0; k < n; k++) wrong += monet_trainer_grads(t, NULL)[k] != 0;
    CHECK_EQ(wrong, 0);
    CHECK_EQ(monet_trainer_update(t, 0.1f, &update), MONET_OK);
    CHECK(update.grad_norm == 0 && update.scored == 0 && !update.skipped);
    for (size_t k = 0; k < monet_model_tensor_count(monet_trainer_model(t)); k++) {
        const monet_tensor *x = monet_model_tensor(monet_trainer_model(t), k);
        for (int64_t i = 0; i < rows_of(x) * columns_of(x); i++) {
            size_t at = place(x, i / columns_of(x), i % columns_of(x));
            double expected = (double)before[at] * (decays(x) ? 1 - 0.1 * 0.1 : 1);
            wrong += fabs((double)w[at] - expected) > (decays(x) ? 2e-7 * fabs(expected) : 0);
        }
    }
    CHECK_EQ(wrong, 0); /* matrices decay, the rest has its bits */
    free(before);
    monet_trainer_free(t);
}

/* ---- AdamW ----------------------------------------------------------------------------------- */

/* One update by the formula, in double, from the trainer's own gradients. */
static void by_hand(const monet_trainer_config *c, monet_trainer *t, double *w, double *m,
                    double *v, int number, double rate, const monet_update *u, const float *grads)
{
    const monet_model *model = monet_trainer_model(t);
    double scored = (double)u->scored, norm = 0, clip = (double)c->grad_clip;
    double b1 = (double)c->beta1, b2 = (double)c->beta2;
    const size_t n = count_of(t);
    for (size_t k = 0; k < n; k++) norm += (double)grads[k] / scored * ((double)grads[k] / scored);
    norm = sqrt(norm);
    CHECK_NEAR(u->grad_norm, norm, 1e-9 * norm);
    clip = clip > 0 && clip / (norm + 1e-6) < 1 ? clip / (norm + 1e-6) : 1;
    for (size_t k = 0; k < monet_model_tensor_count(model); k++) {
        const monet_tensor *x = monet_model_tensor(model, k);
        if (is_statistic(x)) continue;
        for (int64_t i = 0; i < rows_of(x) * columns_of(x); i++) {
            size_t at = place(x, i / columns_of(x), i % columns_of(x));
            double g = (double)grads[at] / scored * clip;
            if (decays(x)) w[at] *= 1 - rate * (double)c->weight_decay;
            m[at] = b1 * m[at] + (1 - b1) * g;
            v[at] = b2 * v[at] + (1 - b2) * g * g;
            w[at] -= rate / (1 - pow(b1, number)) * m[at] /
                     (sqrt(v[at] / (1 - pow(b2, number))) + (double)c->eps);
        }
    }
}

/* Padding and statistics included: what an update must not touch has to keep its bits. */
static void check_by_hand(monet_trainer *t, const double *w, const float *before, double rate)
{
    const monet_model *model = monet_trainer_model(t);
    size_t n = count_of(t), wrong = 0, moved = 0, numbers = 0;
    const float *now = weights(t);
    unsigned char *real = (unsigned char *)calloc(n, 1);
    for (size_t k = 0; real && k < monet_model_tensor_count(model); k++) {
        const monet_tensor *x = monet_model_tensor(model, k);
        if (is_statistic(x)) continue;
        for (int64_t i = 0; i < rows_of(x) * columns_of(x); i++) {
            size_t at = place(x, i / columns_of(x), i % columns_of(x));
            double off = fabs((double)now[at] - w[at]);
            real[at] = 1;
            if (off > 3e-7 * fabs(w[at]) + 1e-5 * rate && wrong++ < 5)
                printf("    %s [%d]: %.9g, expected %.9g\n", x->name, (int)i, (double)now[at],
                       w[at]);
            moved += now[at] != before[at];
        }
    }
    CHECK_EQ(wrong, 0);
    for (size_t k = 0; real && k < n; k++) {
        wrong += !real[k] && memcmp(now + k, before + k, sizeof *now);
        numbers += real[k];
    }
    CHECK(moved > numbers / 2);
    CHECK_EQ(wrong, 0);
    free(real);
}

static void adamw(int which, float clip, float beta1, float beta2, float eps)
{
    monet_trainer_config c = usual();
    monet_trainer *t;
    monet_update u;
    size_t n;
    double *w, *m, *v;
    c.grad_clip = clip;
    c.beta1 = beta1, c.beta2 = beta2, c.eps = eps;
    t = open_trainer(models[which], &c);
    if (c.beta1 == 0) c.beta1 = 0.9f;
    if (c.beta2 == 0) c.beta2 = 0.95f;
    if (c.eps == 0) c.eps = 1e-8f;
    n = count_of(t);
    w = (double *)calloc(3 * n, sizeof *w), m = w + n, v = m + n;
    for (size_t k = 0; k < n; k++) w[k] = (double)weights(t)[k];
    for (int number = 1; number <= 4; number++) {
        const float rate = 0.003f * (float)number;
        float *before, *grads;
        pass(t, number, NULL);
        before = copy_weights(t);
        grads = copy_grads(t);
        CHECK_EQ(monet_trainer_update(t, rate, &u), MONET_OK);
        by_hand(&c, t, w, m, v, number, (double)rate, &u, grads);
        CHECK(clip == 0 || u.grad_norm > (double)clip);
        check_by_hand(t, w, before, (double)rate);
        for (size_t k = 0; k < n; k++) w[k] = (double)weights(t)[k]; /* errors do not add up */
        free(before);
        free(grads);
    }
    free(w);
    monet_trainer_free(t);
}

/* A rate of 0 leaves every weight as it is, even -0, and counts as a step. */
static void rate_zero(void)
{
    for (int which = 0; which < 2; which++) {
        monet_trainer_config c = usual();
        monet_trainer *t = open_trainer(models[which], &c);
        monet_counts counts = {0, 0, 0};
        size_t n = count_of(t);
        float *w = weights(t), *before;
        for (size_t k = 0; k < n; k += 3)
            if (w[k] != 0 && w[k] != 1) w[k] = -0.0f;
        pass(t, 0, NULL);
        before = copy_of(w, n);
        CHECK_EQ(monet_trainer_update(t, 0, NULL), MONET_OK);
        CHECK(!memcmp(before, w, n * sizeof *w));
        free(before);
        CHECK_EQ(monet_trainer_counts(t, &counts), MONET_OK);
        CHECK_EQ(counts.steps, 1);
        monet_trainer_free(t);
    }
}

/* Loss falls on a batch that is seen again and again: the sum of it all works. */
static void learns(int which)
{
    monet_trainer_config c = usual();
    monet_trainer *t = open_trainer(models[which], &c);
    monet_losses first, last;
    pass(t, 0, &first);
    CHECK_EQ(monet_trainer_update(t, 3e-3f, NULL), MONET_OK);
    for (int k = 0; k < 60; k++) step(t, 0, 3e-3f);
    forward(t, 0, &last);
    if (!CHECK(last.cross_entropy < 0.3 * first.cross_entropy))
        printf("    %.3f, then %.3f\n", first.cross_entropy, last.cross_entropy);
    monet_trainer_free(t);
}

/* ---- batches in parts ------------------------------------------------------------------------ */

static void accumulation(int which)
{
    monet_trainer_config c = usual();
    monet_trainer *both = open_trainer(models[which], &c), *one[2];
    monet_losses losses;
    monet_update update;
    int64_t scored = 0;
    size_t n = count_of(both), wrong = 0;
    const float *sum, *a, *b;
    double largest = 0, norm = 0;
    for (int k = 0; k < 2; k++) {
        one[k] = open_trainer(models[which], &c);
        pass(one[k], k, NULL);
        pass(both, k, &losses);
        scored += losses.scored;
    }
    sum = monet_trainer_grads(both, NULL);
    a = monet_trainer_grads(one[0], NULL), b = monet_trainer_grads(one[1], NULL);
    for (size_t k = 0; k < n; k++) {
        double x = (double)a[k] + (double)b[k];
        if (fabs(x) > largest) largest = fabs(x);
        norm += (double)sum[k] * (double)sum[k];
    }
    for (size_t k = 0; k < n; k++)
        wrong += !(fabs((double)a[k] + (double)b[k] - (double)sum[k]) <= 1e-6 * largest);
    CHECK_EQ(wrong, 0);
    CHECK_EQ(monet_trainer_update(both, 1e-3f, &update), MONET_OK);
    CHECK_EQ(update.scored, scored);
    CHECK_NEAR(update.grad_norm, sqrt(norm) / (double)scored, 1e-9 * sqrt(norm));
    for (size_t k = 0; k < n; k++) wrong += sum[k] != 0; /* update sets them to zero */
    CHECK_EQ(wrong, 0);
    monet_trainer_free(both);
    monet_trainer_free(one[0]);
    monet_trainer_free(one[1]);
}

/* ---- freezing -------------------------------------------------------------------------------- */

/* Does the tensor still have its bits, though a rate was not 0? */
static bool kept(monet_trainer *t, const monet_tensor *x, const float *before)
{
    size_t at = (size_t)(x->offset / sizeof(float));
    return !memcmp(weights(t) + at, before + at, (size_t)x->size);
}

static void freezing(int which)
{
    static const char *const patterns[] = {"embed*", "layers.1.*", "*q_proj.weight", "*.moe.b*",
                                           "norm.weight"};
    monet_trainer_config c = usual();
    monet_trainer *t;
    const monet_model *model;
    float *before;
    size_t frozen = 0;
    c.freeze = patterns;
    c.n_freeze = 5;
    t = open_trainer(models[which], &c);
    before = copy_weights(t);
    for (int k = 0; k < STEPS; k++) step(t, k, 1e-2f);
    model = monet_trainer_model(t);
    for (size_t k = 0; k < monet_model_tensor_count(model); k++) {
        const monet_tensor *x = monet_model_tensor(model, k);
        bool is_frozen = !strncmp(x->name, "embed", 5) || !strncmp(x->name, "layers.1.", 9) ||
                         strstr(x->name, "q_proj") || strstr(x->name, ".moe.b") ||
                         !strcmp(x->name, "norm.weight");
        if (strstr(x->name, "layers.1.router") && is_statistic(x)) is_frozen = true;
        if (kept(t, x, before) != is_frozen) printf("    %s\n", x->name);
        CHECK_EQ(kept(t, x, before), is_frozen);
        frozen += is_frozen;
    }
    CHECK(frozen > 10);
    free(before);
    monet_trainer_free(t);
}

/* All frozen: nothing moves; a gradient there is none. */
static void all_frozen(void)
{
    monet_trainer_config c = usual();
    monet_trainer *t;
    monet_update update;
    float *before;
    size_t n, wrong = 0;
    c.freeze = everything;
    c.n_freeze = 1;
    t = open_trainer(models[0], &c);
    n = count_of(t);
    before = copy_weights(t);
    pass(t, 0, NULL);
    for (size_t k = 0; k < n; k++) wrong += monet_trainer_grads(t, NULL)[k] != 0;
    CHECK_EQ(monet_trainer_update(t, 1, &update), MONET_OK);
    CHECK(update.grad_norm == 0 && wrong == 0 && !update.skipped);
    CHECK(!memcmp(before, weights(t), n * sizeof *before));
    free(before);
    monet_trainer_free(t);
}

/* Frozen routers: running statistics are used and stay, or, with batch_stats, move. The gradients
   of everything else are those of a trainer that does not freeze, where the statistics agree.    */
static void frozen_routers(int which)
{
    monet_trainer_config c = usual();
    monet_trainer *t[3];
    monet_losses losses[3];
    monet_counts counts = {0, 0, 0};
    size_t n = 0, moved[3] = {0, 0, 0}, differ = 0;
    for (int k = 0; k < 3; k++) {
        float *before;
        c.freeze = routers;
        c.n_freeze = k > 0;
        c.batch_stats = k == 2;
        t[k] = open_trainer(models[which], &c);
        before = copy_weights(t[k]);
        n = count_of(t[k]);
        pass(t[k], 0, &losses[k]);
        for (size_t j = 0; j < n; j++) moved[k] += weights(t[k])[j] != before[j];
        CHECK_EQ(monet_trainer_counts(t[k], &counts), MONET_OK);
        CHECK_EQ(counts.batches, 1);
        free(before);
    }
    CHECK(moved[1] == 0 && moved[0] > 0 && moved[0] == moved[2]);
    CHECK(losses[1].total != losses[0].total);
    CHECK(!memcmp(&losses[0], &losses[2], sizeof losses[0]));
    CHECK(!memcmp(weights(t[0]), weights(t[2]), n * sizeof(float)));
    for (size_t k = 0; k < monet_model_tensor_count(monet_trainer_model(t[0])); k++) {
        const monet_tensor *x = monet_model_tensor(monet_trainer_model(t[0]), k);
        size_t at = (size_t)(x->offset / sizeof(float));
        bool same = !memcmp(monet_trainer_grads(t[0], NULL) + at,
                            monet_trainer_grads(t[2], NULL) + at, (size_t)x->size);
        if (same != !strstr(x->name, ".router.w")) differ++;
    }
    CHECK_EQ(differ, 0);
    for (int k = 0; k < 3; k++) monet_trainer_free(t[k]);
}

/* ---- numbers that are not finite ------------------------------------------------------------- */

/* Writes `value` into the first column of a tensor. */
static void poke(monet_trainer *t, const char *name, float value)
{
    const monet_tensor *x = monet_model_find_tensor(monet_trainer_model(t), name);
    if (!CHECK(x != NULL)) return;
    for (int64_t r = 0; r < rows_of(x); r++) weights(t)[place(x, r, 0)] = value;
}

static void not_finite(int which, const char *name, float value)
{
    monet_trainer_config c = usual();
    monet_trainer *t = open_trainer(models[which], &c), *good = open_trainer(models[which], &c);
    monet_losses losses;
    monet_update update = {0, 0, false};
    monet_counts counts = {0, 0, 0};
    const char *path = tiny_path("skipped.monet");
    monet_trainer *again = NULL;
    float *before, *bad;
    const size_t n = count_of(t);
    step(t, 0, 1e-2f);
    step(good, 0, 1e-2f);
    before = copy_weights(t);
    poke(t, name, value);
    bad = copy_weights(t);
    pass(t, 1, &losses);
    CHECK(!(losses.total - losses.total == 0) || value > FLT_MAX / 10);
    CHECK_EQ(monet_trainer_update(t, 1e-2f, &update), MONET_OK);
    if (!CHECK(update.skipped)) printf("    %s = %g\n", name, (double)value);
    CHECK_EQ(monet_trainer_counts(t, &counts), MONET_OK);
    CHECK(counts.steps == 1 && counts.skipped == 1);
    if (!(losses.total - losses.total == 0)) /* not a bit moves, statistics included */
        CHECK(!memcmp(bad, weights(t), n * sizeof *bad) && counts.batches == 1);
    memcpy(weights(t), before, n * sizeof *before); /* repaired, it goes on as if nothing was */
    step(t, 2, 1e-2f);
    step(good, 2, 1e-2f);
    CHECK(same_weights(t, good));
    CHECK_EQ(monet_trainer_save(t, path, NULL, 0, NULL), MONET_OK);
    CHECK_EQ(monet_trainer_load(path, &c, &again, NULL), MONET_OK);
    CHECK_EQ(monet_trainer_counts(again, &counts), MONET_OK);
    CHECK(counts.steps == 2 && counts.skipped == 1);
    (void)remove(path);
    monet_trainer_free(again);
    monet_trainer_free(good);
    monet_trainer_free(t);
    free(before);
    free(bad);
}

/* A bad part of a batch spoils the whole of it, and only it. */
static void not_finite_part(void)
{
    monet_trainer_config c = usual();
    monet_trainer *t = open_trainer(models[0], &c);
    monet_update update;
    monet_losses losses;
    float *before;
    const size_t n = count_of(t);
    before = copy_weights(t);
    poke(t, "norm.weight", NAN);
    pass(t, 0, &losses);
    CHECK(!(losses.total - losses.total == 0));
    memcpy(weights(t), before, n * sizeof *before);
    pass(t, 1, &losses);
    CHECK(losses.total - losses.total == 0);
    CHECK_EQ(monet_trainer_update(t, 1, &update), MONET_OK);
    CHECK(update.skipped);
    monet_trainer_grads(t, NULL)[5] = NAN; /* gradients of another machine */
    pass(t, 1, NULL);
    CHECK_EQ(monet_trainer_update(t, 1, &update), MONET_OK);
    CHECK(update.skipped);
    memcpy(weights(t), before, n * sizeof *before);
    poke(t, "norm.weight", NAN); /* a pass that no backward follows does not count */
    forward(t, 0, &losses);
    CHECK(!(losses.total - losses.total == 0));
    memcpy(weights(t), before, n * sizeof *before);
    pass(t, 1, &losses);
    CHECK_EQ(monet_trainer_update(t, 1e-3f, &update), MONET_OK);
    CHECK(!update.skipped && update.scored == losses.scored);
    free(before);
    monet_trainer_free(t);
}

/* All logits of a router overflow: its gates are 0, so that gradients would be finite numbers. */
static void not_finite_loss(void)
{
    monet_trainer_config c = usual();
    monet_trainer *t = open_trainer(models[0], &c);
    monet_losses losses;
    monet_update update;
    poke(t, "layers.0.router.w1.weight", 3e38f);
    poke(t, "layers.0.post_attention_layernorm.weight", 1e6f);
    pass(t, 0, &losses);
    CHECK(!(losses.total - losses.total == 0));
    CHECK_EQ(monet_trainer_update(t, 1, &update), MONET_OK);
    CHECK(update.skipped);
    monet_trainer_free(t);
}

static void not_finite_at_all(void)
{
    static const char *const names[] = {
        "embed_tokens.weight", "layers.0.self_attn.q_proj.weight", "layers.0.router.w1.weight",
        "layers.1.post_attention_layernorm.weight", "norm.weight"};
    static const float values[] = {NAN, INFINITY, -INFINITY, 3e38f};
    for (int which = 0; which < 2; which++)
        for (size_t k = 0; k < sizeof names / sizeof *names; k++)
            for (size_t v = 0; v < 4; v++) {
                if (v == 3 && k != 2 && k != 4) continue; /* the norms make something of it */
                not_finite(which, names[k], values[v]);
            }
    not_finite_part();
    not_finite_loss();
}

/* ---- many machines --------------------------------------------------------------------------- */

/* Two threads that wait for each other, with a limit: who calls once too often fails. */
typedef struct meeting {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int here, round, broken;
    double sums[2][4096];
    size_t n[2];
    float *grads[2];
    int calls;
} meeting;

static void give_up(meeting *m)
{
    pthread_mutex_lock(&m->lock);
    m->broken = 1;
    pthread_cond_broadcast(&m->wake);
    pthread_mutex_unlock(&m->lock);
}

/* False if somebody has given up. */
static bool meet(meeting *m)
{
    struct timespec until;
    int round;
    bool ok;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    pthread_mutex_lock(&m->lock);
    round = m->round;
    if (++m->here == 2) {
        m->here = 0;
        m->round++;
        pthread_cond_broadcast(&m->wake);
    }
    while (m->round == round && !m->broken)
        if (pthread_cond_timedwait(&m->wake, &m->lock, &until)) m->broken = 1;
    if (m->broken) pthread_cond_broadcast(&m->wake);
    ok = !m->broken;
    pthread_mutex_unlock(&m->lock);
    return ok;
}

typedef struct machine {
    meeting *m;
    int rank, which;
    monet_trainer *t;
    monet_losses losses[STEPS];
    monet_update updates[STEPS];
    float *grads[STEPS]; /* summed over the machines */
} machine;

static void reduce(void *user, double *sums, size_t n)
{
    machine *me = (machine *)user;
    meeting *m = me->m;
    if (n > 4096) n = 4096, give_up(m);
    memcpy(m->sums[me->rank], sums, n * sizeof *sums);
    m->n[me->rank] = n;
    if (!meet(m)) return;
    if (m->n[0] != m->n[1]) give_up(m);
    for (size_t k = 0; k < n; k++) sums[k] = m->sums[0][k] + m->sums[1][k];
    if (me->rank == 0) m->calls++;
    (void)meet(m);
}

/* The gradients of both, in the same order of additions. */
static void reduce_grads(machine *me)
{
    meeting *m = me->m;
    const size_t n = count_of(me->t);
    float *g = monet_trainer_grads(me->t, NULL), *mine = copy_of(g, n);
    m->grads[me->rank] = mine;
    if (meet(m))
        for (size_t k = 0; k < n; k++) g[k] = m->grads[0][k] + m->grads[1][k];
    (void)meet(m);
    free(mine);
}

/* eps is large, so that rounding does not become a step. */
static monet_trainer_config smooth(int which)
{
    monet_trainer_config c = usual();
    c.eps = 0.3f;
    c.grad_clip = which ? 0.5f : 0;
    return c;
}

static int parts(int number) { return number == 1 ? 2 : 1; } /* of the batch of a step */

static void *machine_main(void *arg)
{
    machine *me = (machine *)arg;
    for (int k = 0; k < STEPS; k++) {
        for (int part = 0; part < parts(k); part++) {
            int32_t tokens[BT], targets[BT];
            fill(k + 10 * part, BT, tokens, targets);
            if (monet_trainer_forward(me->t, tokens + me->rank * T, targets + me->rank * T,
                                      &me->losses[k]) != MONET_OK ||
                monet_trainer_backward(me->t) != MONET_OK)
                give_up(me->m);
        }
        reduce_grads(me);
        me->grads[k] = copy_grads(me->t);
        if (monet_trainer_update(me->t, 0.02f, &me->updates[k]) != MONET_OK) give_up(me->m);
    }
    return NULL;
}

/* Largest difference as a part of the largest number. */
static double apart(const float *a, const float *b, size_t n)
{
    double most = 0, size = 0;
    for (size_t k = 0; k < n; k++) {
        double d = fabs((double)a[k] - (double)b[k]);
        if (!(d <= most)) most = d;
        if (fabs((double)b[k]) > size) size = fabs((double)b[k]);
    }
    return size > 0 ? most / size : most;
}

/* What the machines did against one trainer of the whole batch. */
static void compare_machines(const machine *pair, int which)
{
    monet_trainer_config c = smooth(which);
    monet_trainer *t = open_trainer(models[which], &c);
    const size_t n = count_of(t);
    for (int k = 0; k < STEPS; k++) {
        monet_losses losses;
        monet_update update;
        const monet_losses *x = &pair[0].losses[k];
        for (int part = 0; part < parts(k); part++) pass(t, k + 10 * part, &losses);
        CHECK(!memcmp(x, &pair[1].losses[k], sizeof *x));
        CHECK_EQ(x->scored, losses.scored);
        CHECK_EQ(x->unused, losses.unused);
        CHECK_NEAR(x->cross_entropy, losses.cross_entropy, 1e-5);
        CHECK_NEAR(x->uniformity, losses.uniformity, 1e-5);
        CHECK_NEAR(x->ambiguity, losses.ambiguity, 1e-5);
        CHECK_NEAR(x->total, losses.total, 1e-5);
        CHECK(apart(pair[0].grads[k], monet_trainer_grads(t, NULL), n) < 1e-4);
        CHECK_EQ(monet_trainer_update(t, 0.02f, &update), MONET_OK);
        CHECK_EQ(pair[0].updates[k].scored, update.scored);
        CHECK_NEAR(pair[0].updates[k].grad_norm, update.grad_norm, 1e-4 * update.grad_norm);
        CHECK(pair[0].updates[k].grad_norm == pair[1].updates[k].grad_norm);
        CHECK(!pair[0].updates[k].skipped && !pair[1].updates[k].skipped);
    }
    CHECK(apart(weights(pair[0].t), weights(t), n) < 1e-5);
    CHECK(same_weights(pair[0].t, pair[1].t));
    monet_trainer_free(t);
}

static void machines(int which)
{
    meeting *m = (meeting *)calloc(1, sizeof *m);
    machine pair[2];
    pthread_t thread;
    monet_trainer_config c = smooth(which);
    if (!m || pthread_mutex_init(&m->lock, NULL) || pthread_cond_init(&m->wake, NULL)) exit(2);
    memset(pair, 0, sizeof pair);
    c.batch_size = 1;
    c.reduce_fn = reduce;
    for (int k = 0; k < 2; k++) {
        pair[k].m = m;
        pair[k].rank = k;
        c.reduce_user = &pair[k];
        pair[k].t = open_trainer(models[which], &c);
    }
    if (!CHECK_EQ(pthread_create(&thread, NULL, machine_main, &pair[1]), 0)) exit(2);
    (void)machine_main(&pair[0]);
    (void)pthread_join(thread, NULL);
    CHECK_EQ(m->broken, 0);
    CHECK_EQ(m->calls, 4 * (2 * 2 + 1) + STEPS); /* two a router and one in each pass; an update */
    if (!m->broken) compare_machines(pair, which);
    for (int k = 0; k < 2; k++) {
        for (int s = 0; s < STEPS; s++) free(pair[k].grads[s]);
        monet_trainer_free(pair[k].t);
    }
    free(m);
}

/* ---- the same bits --------------------------------------------------------------------------- */

typedef struct history { /* of a few steps: everything that can be seen of them */
    monet_losses losses[STEPS];
    monet_update updates[STEPS];
    float *grads[STEPS], *weights;
    tiny_file file;
    size_t n;
} history;

static void record(history *h, int which, const monet_host *host)
{
    monet_trainer_config c = usual();
    monet_trainer *t;
    const char *path = tiny_path("history.monet");
    memset(h, 0, sizeof *h);
    c.host = host;
    t = open_trainer(models[which], &c);
    h->n = count_of(t);
    for (int k = 0; k < STEPS; k++) {
        pass(t, k, &h->losses[k]);
        h->grads[k] = copy_grads(t);
        memset(&h->updates[k], 0, sizeof h->updates[k]);
        CHECK_EQ(monet_trainer_update(t, monet_rate_cosine(k, 2, 7, 0.013f, 0.001f),
                                      &h->updates[k]), MONET_OK);
    }
    h->weights = copy_weights(t);
    CHECK_EQ(monet_trainer_save(t, path, "user", 4, NULL), MONET_OK);
    h->file = tiny_read(path);
    (void)remove(path);
    monet_trainer_free(t);
}

static void forget(history *h)
{
    for (int k = 0; k < STEPS; k++) free(h->grads[k]);
    free(h->weights);
    tiny_drop(&h->file);
}

static void check_same(const history *a, const history *b, const char *what, int number)
{
    bool same = a->n == b->n && a->file.size == b->file.size &&
                !memcmp(a->losses, b->losses, sizeof a->losses);
    for (int k = 0; same && k < STEPS; k++)
        same = !memcmp(a->grads[k], b->grads[k], a->n * sizeof(float)) &&
               a->updates[k].grad_norm == b->updates[k].grad_norm;
    same = same && !memcmp(a->weights, b->weights, a->n * sizeof(float)) &&
           !memcmp(a->file.data, b->file.data, a->file.size);
    if (!CHECK(same)) printf("    %s %d\n", what, number);
}

static void backwards(void *user, int count, void (*task)(void *arg, int index), void *arg)
{
    (void)user;
    while (count-- > 0) task(arg, count);
}

static void threads(int which)
{
    static const int counts[] = {2, 3, 4, 7, 8};
    history one, other;
    monet_host host;
    record(&one, which, NULL);
    for (size_t k = 0; k < 2 * sizeof counts / sizeof *counts; k++) {
        memset(&host, 0, sizeof host);
        host.n_threads = counts[k / 2];
        if (k % 2) host.parallel_fn = backwards;
        record(&other, which, &host);
        check_same(&one, &other, k % 2 ? "parallel_fn" : "threads", host.n_threads);
        forget(&other);
    }
    forget(&one);
}

/* The caller's own mode: rounding, and flushing of subnormal numbers where there is such. */
static void set_mode(int rounding, unsigned flush)
{
    (void)fesetround(rounding);
#if defined(__SSE2__)
    _mm_setcsr((_mm_getcsr() & ~0x8040u) | flush);
#else
    (void)flush;
#endif
}

static bool mode_is(int rounding, unsigned flush)
{
#if defined(__SSE2__)
    if ((_mm_getcsr() & 0x8040u) != flush) return false;
#else
    (void)flush;
#endif
    return fegetround() == rounding;
}

static void modes(int which)
{
    static const int roundings[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO, FE_TONEAREST};
    history one, other;
    record(&one, which, NULL);
    for (int k = 0; k < 8; k++) {
        const unsigned flush = k % 2 ? 0x8040u : 0;
        monet_host host;
        bool kept_mode;
        memset(&host, 0, sizeof host);
        host.n_threads = k % 3 + 1;
        if (k > 5) host.parallel_fn = backwards;
        set_mode(roundings[k / 2], flush);
        record(&other, which, &host);
        kept_mode = mode_is(roundings[k / 2], flush);
        set_mode(FE_TONEAREST, 0);
        CHECK(kept_mode);
        check_same(&one, &other, "mode", k);
        forget(&other);
    }
    forget(&one);
}

/* The threshold of the routers is made with the trainer, in whatever mode: always the same. */
static void thresholds(void)
{
    static const int roundings[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    monet_trainer *usual_mode = open_trainer(models[0], NULL), *t = NULL;
    for (int k = 0; k < 3; k++) {
        monet_result result;
        set_mode(roundings[k], 0);
        result = monet_trainer_create(models[0], NULL, &t, NULL);
        set_mode(FE_TONEAREST, 0);
        CHECK_EQ(result, MONET_OK);
        CHECK(t && t->moe.sigma == usual_mode->moe.sigma);
        monet_trainer_free(t);
    }
    monet_trainer_free(usual_mode);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void *stingy_alloc(void *user, size_t size)
{
    return size > (size_t)1 << 28 ? NULL : heap_alloc(user, size);
}

static void memory(int which)
{
    heap_count heap;
    monet_host host = heap_host(&heap);
    monet_trainer_config c = usual();
    monet_trainer *t = NULL;
    monet_error err = {{0}, MONET_OK};
    size_t size = 0, peak;
    long calls;
    c.host = &host;
    CHECK_EQ(monet_trainer_size(models[which], &c, &size), MONET_OK);
    CHECK_EQ(monet_trainer_create(models[which], &c, &t, NULL), MONET_OK);
    if (!CHECK(heap.now <= size && size <= heap.now + heap.now / 100 + 4096))
        printf("    %zu bytes allocated, %zu announced\n", heap.now, size);
    calls = heap.calls, peak = heap.now;
    for (int k = 0; k < STEPS; k++) step(t, k, 1e-3f);
    CHECK_EQ(heap.calls, calls);
    CHECK_EQ(heap.now, peak);
    monet_trainer_free(t);
    CHECK(heap.live == 0 && heap.now == 0 && heap.wrong == 0);
    host.alloc_fn = stingy_alloc;
    c.batch_size = 1 << 12, c.seq_len = 1 << 12;
    CHECK_EQ(monet_trainer_create(models[which], &c, &t, &err), MONET_ERROR_MEMORY);
    CHECK_HAS(err.message, "cannot allocate");
    CHECK(t == NULL && heap.live == 0);
}

/* The trainer stands alone: its model may be gone, and so may the arrays of the config. */
static void stands_alone(void)
{
    tiny_options options = {0};
    monet_trainer_config c = usual();
    monet_trainer *a, *b;
    monet_model *m = NULL;
    char pattern[] = "layers.0.*", *freeze[1];
    monet_host host;
    tiny_file file;
    memset(&host, 0, sizeof host);
    file = tiny_make(&options);
    CHECK_EQ(monet_model_load_memory(file.data, file.size, NULL, &m, NULL), MONET_OK);
    freeze[0] = pattern;
    c.freeze = (const char *const *)freeze;
    c.n_freeze = 1;
    c.host = &host;
    a = open_trainer(m, &c);
    b = open_trainer(models[0], &c);
    monet_model_free(m);
    memset(file.data, 255, file.size);
    tiny_drop(&file);
    memset(pattern, 'x', sizeof pattern - 1);
    freeze[0] = NULL;
    memset(&c, 255, sizeof c);
    memset(&host, 255, sizeof host);
    step(a, 0, 1e-2f);
    step(b, 0, 1e-2f);
    CHECK(same_weights(a, b));
    CHECK_STR(monet_model_metadata(monet_trainer_model(a), "general.name"), "tiny");
    CHECK_EQ(monet_tokenizer_size(monet_model_tokenizer(monet_trainer_model(a))), TINY_PIECES);
    monet_trainer_free(a);
    monet_trainer_free(b);
}

/* NULL is a config: one sequence of max_seq_len tokens, no routing losses, no decay. */
static void defaults(void)
{
    monet_trainer *t = open_trainer(models[0], NULL);
    int32_t tokens[33], targets[33];
    monet_losses losses;
    monet_update update;
    const monet_tensor *x;
    fill(0, 33, tokens, targets);
    tokens[32] = targets[32] = INT32_MAX; /* not looked at: 32 tokens */
    CHECK_EQ(monet_trainer_forward(t, tokens, targets, &losses), MONET_OK);
    CHECK(losses.total == losses.cross_entropy);
    CHECK_EQ(monet_trainer_backward(t), MONET_OK);
    CHECK_EQ(monet_trainer_update(t, 1e-3f, &update), MONET_OK);
    x = monet_model_find_tensor(monet_trainer_model(t), "layers.1.self_attn.o_proj.weight");
    CHECK(x && weights(t)[place(x, 0, 0)] != 0);
    monet_trainer_free(t);
}

/* Every tensor of the model has a gradient, at the same place in the block. */
static void gradients(int which)
{
    monet_trainer_config c = usual();
    monet_trainer *t = open_trainer(models[which], &c);
    const monet_model *model = monet_trainer_model(t);
    const size_t n = count_of(t);
    float *block = monet_trainer_grads(t, NULL);
    for (size_t k = 0; k < monet_model_tensor_count(model); k++) {
        const monet_tensor *w = monet_model_tensor(model, k);
        monet_tensor g;
        CHECK_EQ(monet_trainer_grad(t, w->name, &g), MONET_OK);
        CHECK(!strcmp(g.name, w->name) && g.dtype == MONET_F32 && g.size == w->size);
        CHECK((const float *)g.data - block == (ptrdiff_t)(w->offset / sizeof(float)));
        CHECK(w->offset + w->size <= n * sizeof(float) && w->dtype == MONET_F32);
        block[place(w, 0, 0)] = 1.5f;
        CHECK(((const float *)g.data)[monet_tensor_place(&g, 0, 0)] == 1.5f);
    }
    monet_trainer_free(t);
}

/* ---- rates of learning ----------------------------------------------------------------------- */

static void rates(void)
{
    static const int64_t odd[] = {0, 1, 2, 10, 1000000, INT64_MAX / 2, INT64_MAX - 1, INT64_MAX};
    const float most = 3e-4f, least = 3e-5f;
    float before = 0;
    for (int k = 0; k < 120; k++) {
        float x = monet_rate_cosine(k, 10, 100, most, least), y = monet_rate_constant(k, 10, most);
        if (k < 10) CHECK(x > before && x == y);
        if (k >= 10) CHECK(x <= before && y == most);
        if (k > 10 && k < 100) CHECK(x < before);
        before = x;
    }
    CHECK(monet_rate_cosine(9, 10, 100, most, least) == most);
    CHECK(monet_rate_cosine(10, 10, 100, most, least) == most);
    CHECK_NEAR(monet_rate_cosine(55, 10, 100, most, least), 1.65e-4, 1e-9);
    CHECK(monet_rate_cosine(100, 10, 100, most, least) == least);
    CHECK(monet_rate_cosine(0, 0, 100, most, least) == most);
    CHECK_NEAR(monet_rate_constant(0, 10, most), 3e-5, 1e-10);
    CHECK(monet_rate_constant(0, 0, most) == most);
    for (int k = 0; k < 512; k++) {
        float x = monet_rate_cosine(odd[k % 8], odd[k / 8 % 8], odd[k / 64], most, least);
        float y = monet_rate_constant(odd[k % 8], odd[k / 8 % 8], most);
        CHECK(x >= 0 && x <= most && y >= 0 && y <= most);
    }
}

/* How the caller rounds must not show in a rate: it would in all weights. Through pointers that the
   compiler does not see through, so that no call moves across a change of the mode.             */
static void rates_in_modes(void)
{
    float (*volatile cosine)(int64_t, int64_t, int64_t, float, float) = monet_rate_cosine;
    float (*volatile constant)(int64_t, int64_t, float) = monet_rate_constant;
    int wrong = 0;
    for (int k = 0; k < 1000; k++) {
        float a = cosine(k, 100, 1000, 7e-4f, 1e-5f), c = constant(k, 977, 7e-4f), b, d;
        bool kept_mode;
        set_mode(k % 2 ? FE_UPWARD : FE_DOWNWARD, 0);
        b = cosine(k, 100, 1000, 7e-4f, 1e-5f), d = constant(k, 977, 7e-4f);
        kept_mode = mode_is(k % 2 ? FE_UPWARD : FE_DOWNWARD, 0);
        set_mode(FE_TONEAREST, 0);
        wrong += a != b || c != d || !kept_mode;
    }
    CHECK_EQ(wrong, 0);
}

/* ---- new models ------------------------------------------------------------------------------ */

static monet_model *create(const tiny_options *options, uint64_t seed)
{
    monet_writer_config content;
    monet_model *m = NULL;
    monet_error err = {{0}, MONET_OK};
    tiny_config(&content, options);
    content.tensors = NULL;
    content.n_tensors = 0;
    if (!CHECK_EQ(monet_model_create(&content, seed, NULL, &m, &err), MONET_OK))
        printf("    %s\n", err.message);
    return m;
}

static bool same_model(const monet_model *a, const monet_model *b)
{
    for (size_t k = 0; k < monet_model_tensor_count(a); k++) {
        const monet_tensor *x = monet_model_tensor(a, k), *y = monet_model_tensor(b, k);
        if (!y || x->size != y->size || memcmp(x->data, y->data, (size_t)x->size)) return false;
    }
    return monet_model_tensor_count(a) == monet_model_tensor_count(b);
}

/* Mean, variance and fourth moment of all matrices are those of a normal distribution. */
static void check_normal(const monet_model *m)
{
    double sum[5] = {0};
    for (size_t k = 0; k < monet_model_tensor_count(m); k++) {
        const monet_tensor *t = monet_model_tensor(m, k);
        int64_t n = rows_of(t) * columns_of(t);
        float *x = (float *)malloc((size_t)n * sizeof *x);
        bool one = t->n_dims == 1 && strstr(t->name, "norm") && !strstr(t->name, "_mean");
        size_t wrong = 0;
        CHECK_EQ(monet_tensor_read(t, 0, rows_of(t), x), MONET_OK);
        for (int64_t i = 0; i < n; i++) {
            double z = (double)x[i] / 0.02;
            if (!decays(t)) wrong += x[i] != (one ? 1.0f : 0.0f);
            else sum[0] += 1, sum[1] += z, sum[2] += z * z, sum[3] += z * z * z,
                 sum[4] += z * z * z * z;
        }
        if (!CHECK_EQ(wrong, 0)) printf("    %s\n", t->name);
        free(x);
    }
    CHECK(sum[0] > 5000);
    CHECK_NEAR(sum[1] / sum[0], 0, 4 / sqrt(sum[0]));
    CHECK_NEAR(sum[2] / sum[0], 1, 4 * sqrt(2 / sum[0]));
    CHECK_NEAR(sum[3] / sum[0], 0, 4 * sqrt(15 / sum[0]));
    CHECK_NEAR(sum[4] / sum[0], 3, 4 * sqrt(96 / sum[0]));
}

static void new_models(void)
{
    tiny_options options = {0};
    monet_model *m, *other;
    monet_trainer *t;
    monet_trainer_config c = usual();
    monet_losses losses;
    const char *path = tiny_path("new.monet");
    for (int k = 0; k < 2; k++) {
        options.horizontal = k;
        options.tied = k;
        m = create(&options, 5);
        check_normal(m);
        other = create(&options, 6);
        CHECK(!same_model(m, other));
        monet_model_free(other);
        set_mode(FE_UPWARD, 0x8040u);
        other = create(&options, 5);
        CHECK(mode_is(FE_UPWARD, 0x8040u));
        set_mode(FE_TONEAREST, 0);
        CHECK(same_model(m, other));
        monet_model_free(other);
        CHECK_EQ(monet_model_verify(m, NULL), MONET_OK);
        CHECK_EQ(monet_model_save(m, path, NULL), MONET_OK);
        CHECK_EQ(monet_model_load(path, NULL, &other, NULL), MONET_OK);
        CHECK(same_model(m, other) && monet_model_verify(other, NULL) == MONET_OK);
        CHECK_STR(monet_model_metadata(other, "general.name"), "tiny");
        CHECK_STR(monet_model_metadata(m, "note"), "");
        CHECK_EQ(monet_tokenizer_find(monet_model_tokenizer(m), "abc", 3), 268);
        CHECK_EQ(monet_tokenizer_find(monet_model_tokenizer(other), "abc", 3), 268);
        t = open_trainer(m, &c);
        forward(t, 0, &losses);
        CHECK_NEAR(losses.cross_entropy, log(TINY_VOCAB), 0.1); /* it knows nothing yet */
        monet_trainer_free(t);
        monet_model_free(other);
        monet_model_free(m);
        (void)remove(path);
    }
}

/* Two matrices of a new model are not the same numbers, nor are two rows. */
static void new_numbers(void)
{
    tiny_options options = {0};
    monet_model *m = create(&options, 0);
    float rows[64][16];
    int n = 0, same = 0;
    for (size_t k = 0; k < monet_model_tensor_count(m) && n + 2 <= 64; k++) {
        const monet_tensor *t = monet_model_tensor(m, k);
        if (!decays(t) || t->shape[1] != 16) continue;
        CHECK_EQ(monet_tensor_read(t, 0, 2, rows[n]), MONET_OK);
        n += 2;
    }
    for (int a = 0; a < n; a++)
        for (int b = 0; b < a; b++)
            for (int k = 0; k < 16; k++) same += rows[a][k] == rows[b][k];
    CHECK(n > 10);
    CHECK_EQ(same, 0);
    monet_model_free(m);
}

static void refuse_new(const monet_writer_config *content, const monet_model_config *config,
                       monet_result code, const char *words)
{
    monet_error err = {{0}, MONET_OK};
    monet_model *m = (monet_model *)&err;
    if (!CHECK_EQ(monet_model_create(content, 1, config, &m, &err), code))
        printf("    %s: %s\n", words, err.message);
    CHECK(m == NULL);
    CHECK_EQ(err.code, code);
    CHECK_HAS(err.message, words);
}

static void wrong_new(void)
{
    tiny_options options = {0};
    monet_writer_config content;
    monet_model_config config;
    monet_tokenizer_data tokenizer;
    monet_metadata metadata = {"key", NULL};
    monet_arch arch;
    monet_model *m;
    memset(&config, 0, sizeof config);
    tiny_config(&content, &options);
    refuse_new(&content, NULL, MONET_ERROR_ARGUMENT, "tensors");
    content.tensors = NULL, content.n_tensors = 0;
    CHECK_EQ(monet_model_create(&content, 1, NULL, NULL, NULL), MONET_ERROR_ARGUMENT);
    refuse_new(NULL, NULL, MONET_ERROR_ARGUMENT, "NULL");
    config.struct_size = 4096;
    refuse_new(&content, &config, MONET_ERROR_VERSION, "struct_size");
    config.struct_size = 0;
    config.max_bytes = 1000;
    refuse_new(&content, &config, MONET_ERROR_MEMORY, "max_bytes is 1000");
    content.struct_size = 4096;
    refuse_new(&content, NULL, MONET_ERROR_VERSION, "struct_size");
    content.struct_size = 0;
    content.metadata = &metadata, content.n_metadata = 1;
    refuse_new(&content, NULL, MONET_ERROR_ARGUMENT, "metadata 0");
    content.n_metadata = 0;
    arch = *content.arch;
    arch.n_heads = 5;
    content.arch = &arch;
    refuse_new(&content, NULL, MONET_ERROR_FORMAT, "n_heads 5");
    arch.n_heads = 4, arch.vocab_size = TINY_PIECES - 1;
    refuse_new(&content, NULL, MONET_ERROR_FORMAT, "269");
    arch.vocab_size = TINY_VOCAB;
    tokenizer = *content.tokenizer;
    tokenizer.n_pieces = -1;
    content.tokenizer = &tokenizer;
    refuse_new(&content, NULL, MONET_ERROR_ARGUMENT, "tokenizer");
    content.tokenizer = NULL;
    arch.norm_eps = 0, arch.rope_theta = 0, arch.moe_groups = 0; /* defaults are filled in */
    CHECK_EQ(monet_model_create(&content, 1, NULL, &m, NULL), MONET_OK);
    CHECK(monet_model_tokenizer(m) == NULL && monet_model_arch(m)->moe_groups == 1);
    monet_model_free(m);
    content.arch = NULL;
    refuse_new(&content, NULL, MONET_ERROR_ARGUMENT, "arch is NULL");
}

/* ---- main ------------------------------------------------------------------------------------ */

int main(void)
{
    const tiny_options options[2] = {{0}, {.horizontal = 1, .tied = 1, .dtype = MONET_BF16,
                                           .n_layers = 3, .moe_groups = 2}};
    for (int k = 0; k < 2; k++) {
        files[k] = tiny_make(&options[k]);
        if (!CHECK_EQ(monet_model_load_memory(files[k].data, files[k].size, NULL, &models[k], NULL),
                      MONET_OK)) return test_end("training");
    }
    wrong_numbers();
    wrong_sizes();
    wrong_freeze();
    no_model();
    wrong_calls();
    losses_off();
    nothing_scored();
    adamw(1, 0, 0.5f, 0.3f, 1e-3f);
    rate_zero();
    all_frozen();
    not_finite_at_all();
    stands_alone();
    defaults();
    rates();
    rates_in_modes();
    thresholds();
    new_models();
    new_numbers();
    wrong_new();
    for (int k = 0; k < 2; k++) {
        against_session(k);
        adamw(k, 0.5f, 0, 0, 0);
        learns(k);
        accumulation(k);
        freezing(k);
        frozen_routers(k);
        machines(k);
        threads(k);
        modes(k);
        memory(k);
        gradients(k);
    }
    for (int k = 0; k < 2; k++) {
        monet_model_free(models[k]);
        tiny_drop(&files[k]);
    }
    tiny_clean();
    return test_end("training");
}
