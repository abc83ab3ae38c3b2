/* random_model.h: shapes of Monet models by name, and files of such a model with random weights.

   What counts for speed is as in a real model: sizes, layouts, and that about k half-experts a head
   are active. Each row of weights is a piece of one long row of normal numbers, from a random place
   on and scaled, so that making a row costs little more than copying it.

   Include it after monet.h.                                                                    */
#ifndef TOOL_RANDOM_MODEL_H
#define TOOL_RANDOM_MODEL_H

#include "common.h"
#include <math.h>

typedef struct random_shape {
    const char *name;
    int32_t     vocab, dim, layers, heads, experts, expert_dim, router_heads, topk, groups, context;
} random_shape;

/* The released ones, those of examples/train.c, and the one whose training is compared. */
static const random_shape random_shapes[] = {
    /*            V      C     L   A   N    M   H   k  G  context */
    {"850m",  32000, 1536, 24, 12, 512, 12, 6, 8, 4, 2048},
    {"1.4b",  32000, 2048, 24, 16, 512, 16, 8, 8, 4, 2048},
    {"4.1b",  32000, 3072, 32, 24, 512, 24, 12, 8, 4, 2048},
    {"small", 2048, 384, 8, 6, 256, 8, 4, 8, 4, 1024},
    {"mini",  2048, 192, 8, 6, 64, 8, 4, 8, 4, 512},
    {"nano",  259, 96, 4, 4, 32, 8, 2, 4, 2, 256},
};

/* Capital letters are the same. NULL and a message if there is no such shape. */
static TOOL_UNUSED const random_shape *random_find(const char *name, size_t size, tool_error *err)
{
    size_t i, k;

    for (i = 0; i < sizeof random_shapes / sizeof random_shapes[0]; i++) {
        const char *known = random_shapes[i].name;
        for (k = 0; k < size && known[k] != '\0'; k++) {
            char c = name[k];
            if (c >= 'A' && c <= 'Z') c = (char)(c - 'A' + 'a');
            if (c != known[k]) break;
        }
        if (k == size && known[k] == '\0') return &random_shapes[i];
    }
    tool_fail(err, "'%.*s' is not 850m, 1.4b, 4.1b, small, mini or nano",
              size > 100 ? 100 : (int)size, name);
    return NULL;
}

static TOOL_UNUSED monet_arch random_arch(const random_shape *shape, monet_decompose decompose)
{
    monet_arch arch;

    memset(&arch, 0, sizeof arch);
    arch.vocab_size = shape->vocab;
    arch.dim = shape->dim;
    arch.n_layers = shape->layers;
    arch.n_heads = shape->heads;
    arch.max_seq_len = shape->context;
    arch.moe_experts = shape->experts;
    arch.moe_dim = shape->expert_dim;
    arch.moe_heads = shape->router_heads;
    arch.moe_topk = shape->topk;
    arch.moe_groups = shape->groups;
    arch.decompose = (int32_t)decompose;
    monet_arch_check(&arch, NULL);
    return arch;
}

/* ---- numbers --------------------------------------------------------------------------------- */

#define RANDOM_BANK (1u << 20)
#define RANDOM_ROWS (1u << 18) /* numbers given to the writer at a time, or one row */

static TOOL_UNUSED uint64_t random_next(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* A normal number: twelve uniform ones have the variance 1, and their sum is normal enough. */
static TOOL_UNUSED float random_normal(uint64_t *state)
{
    int64_t sum = 0;
    int k, i;

    for (k = 0; k < 3; k++) {
        uint64_t bits = random_next(state);
        for (i = 0; i < 4; i++) sum += (int64_t)(bits >> (16 * i) & 65535);
    }
    return (float)(sum - 6 * 65535) / 65536.0f;
}

/* ---- the tensors ----------------------------------------------------------------------------- */

static TOOL_UNUSED bool random__ends(const char *name, const char *end)
{
    size_t n = strlen(name), e = strlen(end);

    return n >= e && strcmp(name + n - e, end) == 0;
}

/* Mean and standard deviation of a tensor's numbers. The normalised input n of a product has
   |n|^2 = C, so a router of deviation 2/sqrt(C) has logits of variance 4, which is what its running
   variance says: then k of N half-experts pass the cut. Hidden units have deviation 1 before
   relu2; outputs are as small as lets the residual stream grow by 1 over half of the layers.   */
static TOOL_UNUSED void random__scale(const monet_arch *a, const char *name, double *mean,
                                      double *deviation)
{
    double in = 1 / sqrt(a->dim), gain = 1 / sqrt(a->n_layers);

    *mean = *deviation = 0;
    if (random__ends(name, "norm.weight") || random__ends(name, "layernorm.weight")) *mean = 1;
    else if (random__ends(name, "running_var")) *mean = 4;
    else if (random__ends(name, "running_mean")) *mean = 0;
    else if (strcmp(name, "embed_tokens.weight") == 0) *deviation = 1;
    else if (strcmp(name, "lm_head.weight") == 0) *deviation = 2.5 * in;
    else if (random__ends(name, "o_proj.weight")) *deviation = in * gain;
    else if (strstr(name, ".router.") != NULL) *deviation = 2 * in;
    else if (random__ends(name, ".bias") || strstr(name, ".moe.b") != NULL) *deviation = 0.1 * gain;
    else if (strstr(name, ".moe.v") != NULL)
        *deviation = gain / sqrt(0.3 * a->moe_heads * a->moe_dim);
    else *deviation = in;
}

typedef struct random_writer {
    const monet_arch      *arch;
    monet_writer          *writer;
    float                 *bank, *rows;
    uint64_t               state;
    tool_progress          progress;
    uint64_t               done;
    volatile sig_atomic_t *stop; /* not 0: give up */
} random_writer;

static TOOL_UNUSED bool random__tensor(random_writer *w, const monet_tensor *t, tool_error *err)
{
    monet_error why = {{0}, MONET_OK};
    size_t rows = t->n_dims == 1 ? 1 : (size_t)t->shape[0], r, n, k, c;
    size_t columns = t->n_dims == 1 ? (size_t)t->shape[0] : (size_t)t->shape[1];
    size_t most = columns > RANDOM_ROWS ? 1 : RANDOM_ROWS / columns;
    double mean, deviation;

    random__scale(w->arch, t->name, &mean, &deviation);
    for (r = 0; r < rows; r += n) {
        n = rows - r < most ? rows - r : most;
        for (k = 0; k < n; k++) {
            const float *from = w->bank + random_next(&w->state) % RANDOM_BANK;
            float *to = w->rows + k * columns;
            for (c = 0; c < columns; c++) to[c] = (float)mean + (float)deviation * from[c];
        }
        if (*w->stop) return tool_fail(err, "interrupted");
        if (monet_writer_rows(w->writer, w->rows, (int64_t)n, &why) != MONET_OK)
            return tool_fail(err, "%s", why.message);
        w->done += (uint64_t)n * columns;
        tool_progress_update(&w->progress, w->done);
    }
    return true;
}

/* Small tables that are read as rows, and routers if asked, stay finer than q8 and q4. */
static TOOL_UNUSED void random__dtypes(monet_tensor *tensors, size_t n, monet_dtype dtype,
                                       monet_dtype routers)
{
    size_t i;

    for (i = 0; i < n; i++) {
        monet_tensor *t = &tensors[i];
        if (t->n_dims == 1) continue;
        t->dtype = strstr(t->name, ".router.") != NULL ? routers : dtype;
        if (t->layout == MONET_ROWS && (dtype == MONET_Q8 || dtype == MONET_Q4))
            t->dtype = MONET_BF16;
    }
}

static TOOL_UNUSED bool random__tensors(random_writer *w, const char *path, monet_tensor *tensors,
                                        size_t n, tool_error *err)
{
    monet_writer_config config;
    monet_error why = {{0}, MONET_OK};
    uint64_t total = 0;
    size_t i;
    bool ok = true;

    memset(&config, 0, sizeof config);
    config.arch = w->arch;
    config.tensors = tensors;
    config.n_tensors = n;
    if (monet_writer_create(path, &config, &w->writer, &why) != MONET_OK)
        return tool_fail(err, "%s", why.message);
    for (i = 0; i < n; i++) total += (uint64_t)tensors[i].shape[0] * (uint64_t)tensors[i].shape[1];
    for (i = 0; i < RANDOM_BANK + RANDOM_ROWS; i++) w->bank[i] = random_normal(&w->state);
    tool_progress_begin(&w->progress, "writing", "weights", total);
    for (i = 0; ok && i < n; i++) ok = random__tensor(w, &tensors[i], err);
    tool_progress_end(&w->progress);
    if (ok && monet_writer_finish(w->writer, &why) != MONET_OK)
        ok = tool_fail(err, "%s", why.message);
    monet_writer_free(w->writer);
    return ok;
}

/* Writes such a model to `path`. Shapes here are within RANDOM_ROWS columns. */
static TOOL_UNUSED bool random_write(const char *path, const monet_arch *arch, monet_dtype dtype,
                                     monet_dtype routers, volatile sig_atomic_t *stop,
                                     tool_error *err)
{
    random_writer w;
    monet_tensor *tensors = NULL;
    size_t n = 0;
    bool ok;

    memset(&w, 0, sizeof w);
    w.arch = arch;
    w.stop = stop;
    monet_arch_tensors(arch, MONET_F32, NULL, 0, &n);
    tensors = tool_alloc(n, sizeof *tensors, err);
    w.bank = tool_alloc(RANDOM_BANK + RANDOM_ROWS, sizeof *w.bank, err);
    w.rows = tool_alloc(RANDOM_ROWS, sizeof *w.rows, err);
    ok = tensors != NULL && w.bank != NULL && w.rows != NULL;
    if (ok && monet_arch_tensors(arch, MONET_F32, tensors, n, &n) != MONET_OK)
        ok = tool_fail(err, "%.300s: no such model is possible", path);
    if (ok) random__dtypes(tensors, n, dtype, routers);
    ok = ok && random__tensors(&w, path, tensors, n, err);
    free(tensors);
    free(w.bank);
    free(w.rows);
    return ok;
}

#endif /* TOOL_RANDOM_MODEL_H */
