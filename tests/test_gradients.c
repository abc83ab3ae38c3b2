/* test_gradients.c: every derivative against differences, in double.

   cc -O2 -pthread -I. tests/test_gradients.c -o test_gradients -lm && ./test_gradients

   The header is built with MONET_REAL double. For each tensor of models of both kinds and of odd
   shapes, and for random directions d: the trainer's sum of gradient * d must be
   (loss(w + h d) - loss(w - h d)) / 2h to BAR, relative to it or to what is typical of a random
   direction, |gradient| |d| / sqrt(n), if that is larger. The loss itself, its parts and what a
   forward pass does to the statistics are compared with a second Monet, written here in plain
   loops, expert by expert.

   The loss is smooth only between changes of the routing. The second Monet knows which half-experts
   are active, which gate of a head is the largest and which hidden units are above zero; where that
   is not the same at w - h d, w - h/2 d, w, w + h/2 d and w + h d, a smaller h is tried, then the
   direction is left out. How many were is printed; more than a quarter is a failure.             */
#define MONET_REAL double
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "test.h"

#include <stdlib.h>

#define BAR 1e-6
enum { MAX_LAYERS = 8, MAX_TENSORS = 160, MAX_T = 64 };

/* ---- random numbers -------------------------------------------------------------------------- */
static uint64_t random_state;

static uint64_t next_random(void)
{
    uint64_t x = random_state += 0x9e3779b97f4a7c15u;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static int below(int n) { return (int)(next_random() % (uint64_t)n); }

/* Nearly normal, of variance 1. */
static double normal(void)
{
    double sum = 0;

    for (int k = 0; k < 12; ++k) sum += (double)(next_random() >> 11) / 9007199254740992.0;
    return sum - 6;
}

static double *numbers(size_t n)
{
    double *x = (double *)calloc(n ? n : 1, sizeof *x);

    if (!x) printf("no memory\n"), exit(2);
    return x;
}

/* ---- the second Monet ------------------------------------------------------------------------ */
typedef struct plain_layer { /* row-major, as the trainer's model has them at the moment */
    const double *norm1, *q, *k, *v, *o, *norm2, *router[2], *mean[2], *var[2];
    const double *u[2], *bias[2], *vt[2], *b[2];
} plain_layer;

typedef struct plain {
    monet_arch    a;
    int           B, T;
    bool          running;               /* routers normalise by the running statistics */
    double        unif, amb, unif_eps;
    double       *w[MAX_TENSORS];        /* the tensors, row-major */
    const double *embed, *norm, *head;
    plain_layer   layers[MAX_LAYERS];
    double       *x, *n, *q, *k, *v, *y; /* (BT,C) */
    double       *g[2];                  /* (BT,H,N) */
    double        mean[MAX_LAYERS][2][8], var[MAX_LAYERS][2][8]; /* of the last batch, biased */
    uint64_t      signature;             /* of the routing */
    double        uniformity, ambiguity; /* sums over the routers */
    int64_t       unused;
} plain;

static void plain_norm(double *out, const double *x, const double *w, int C, double eps)
{
    double sum = 0;

    for (int c = 0; c < C; ++c) sum += x[c] * x[c];
    for (int c = 0; c < C; ++c) out[c] = x[c] / sqrt(sum / C + eps) * w[c];
}

static void plain_linear(double *out, const double *w, const double *x, int rows, int columns)
{
    for (int r = 0; r < rows; ++r) {
        out[r] = 0;
        for (int c = 0; c < columns; ++c) out[r] += w[r * columns + c] * x[c];
    }
}

static void plain_rope(double *heads, int n_heads, int D, int position, double theta)
{
    for (int a = 0; a < n_heads; ++a, heads += D)
        for (int d = 0; d < D / 2; ++d) {
            double angle = position * pow(theta, -2.0 * d / D), u = heads[d], v = heads[d + D / 2];
            heads[d] = u * cos(angle) - v * sin(angle);
            heads[d + D / 2] = v * cos(angle) + u * sin(angle);
        }
}

/* One query head of one token against the tokens before it, those of its own sequence. */
static void plain_head(const plain *m, double *out, int token, int head)
{
    const int A = m->a.n_heads, K = m->a.n_kv_heads, D = m->a.dim / A, first = token / m->T * m->T;
    const int group = head / (A / K);
    const double *q = m->q + token * m->a.dim + head * D;
    double p[MAX_T], max = -INFINITY, sum = 0;

    for (int j = first; j <= token; ++j) {
        const double *k = m->k + (j * K + group) * D;
        p[j - first] = 0;
        for (int d = 0; d < D; ++d) p[j - first] += q[d] * k[d] / sqrt((double)D);
        if (p[j - first] > max) max = p[j - first];
    }
    for (int j = first; j <= token; ++j) sum += p[j - first] = exp(p[j - first] - max);
    for (int d = 0; d < D; ++d) out[d] = 0;
    for (int j = first; j <= token; ++j)
        for (int d = 0; d < D; ++d)
            out[d] += p[j - first] / sum * m->v[(j * K + group) * D + d];
}

static void plain_attention(plain *m, const plain_layer *l)
{
    const int C = m->a.dim, D = C / m->a.n_heads, kv = D * m->a.n_kv_heads;
    double *heads = numbers((size_t)C);

    for (int t = 0; t < m->B * m->T; ++t) {
        plain_norm(m->n, m->x + t * C, l->norm1, C, (double)m->a.norm_eps);
        plain_linear(m->q + t * C, l->q, m->n, C, C);
        plain_linear(m->k + t * kv, l->k, m->n, kv, C);
        plain_linear(m->v + t * kv, l->v, m->n, kv, C);
        plain_rope(m->q + t * C, m->a.n_heads, D, t % m->T, (double)m->a.rope_theta);
        plain_rope(m->k + t * kv, m->a.n_kv_heads, D, t % m->T, (double)m->a.rope_theta);
    }
    for (int t = 0; t < m->B * m->T; ++t) {
        for (int h = 0; h < m->a.n_heads; ++h) plain_head(m, heads + h * D, t, h);
        plain_linear(m->y, l->o, heads, C, C);
        for (int c = 0; c < C; ++c) m->x[t * C + c] += m->y[c];
    }
    free(heads);
}

static double plain_sigma(int k, int N)
{
    double low = -40, high = 40;

    while (high - low > 1e-14)
        if (erfc((low + high) / 2 / sqrt(2.0)) / 2 > (double)k / N) low = (low + high) / 2;
        else high = (low + high) / 2;
    return low;
}

static void sign(plain *m, int value)
{
    m->signature = (m->signature ^ (uint64_t)(unsigned)value) * 0x100000001b3u;
}

/* Logits z (N) become gates; which are active, and which is the largest, goes into signature. */
static void plain_gates(plain *m, double *z, double mean, double var)
{
    const int N = m->a.moe_experts;
    double top = z[0], sum = 0, cut = plain_sigma(m->a.moe_topk, N);
    int best = 0;

    for (int i = 1; i < N; ++i)
        if (z[i] > top) top = z[i], best = i;
    if ((top - mean) / sqrt(var + 1e-5) < cut) cut = (top - mean) / sqrt(var + 1e-5);
    for (int i = 0; i < N; ++i) {
        bool active = i == best || (z[i] - mean) / sqrt(var + 1e-5) >= cut;
        z[i] = active ? exp(z[i] - top) : 0;
        sum += z[i];
        sign(m, active);
    }
    for (int i = 0; i < N; ++i) z[i] /= sum;
    sign(m, best);
}

/* Mean and biased variance of head h over all tokens and half-experts. */
static void plain_statistics(const plain *m, const double *z, int h, double *mean, double *var)
{
    const int N = m->a.moe_experts, H = m->a.moe_heads, BT = m->B * m->T;

    *mean = *var = 0;
    for (int t = 0; t < BT; ++t)
        for (int i = 0; i < N; ++i) *mean += z[(t * H + h) * N + i] / BT / N;
    for (int t = 0; t < BT; ++t)
        for (int i = 0; i < N; ++i) {
            double d = z[(t * H + h) * N + i] - *mean;
            *var += d * d / BT / N;
        }
}

/* Adds what one head and side gives to the routing losses. */
static void plain_routing_losses(plain *m, const double *g, int h)
{
    const int N = m->a.moe_experts, H = m->a.moe_heads, BT = m->B * m->T;

    for (int i = 0; i < N; ++i) {
        double mean = 0;
        for (int t = 0; t < BT; ++t) mean += g[(t * H + h) * N + i] / BT;
        m->uniformity -= log(mean + m->unif_eps) / (2 * H * N);
    }
    for (int t = 0; t < BT; ++t) {
        double max = 0;
        for (int i = 0; i < N; ++i)
            if (g[(t * H + h) * N + i] > max) max = g[(t * H + h) * N + i];
        m->ambiguity += (1 - max) / (2 * H * BT);
    }
}

static void plain_router(plain *m, int layer, const double *n)
{
    const plain_layer *l = &m->layers[layer];
    const int N = m->a.moe_experts, H = m->a.moe_heads, C = m->a.dim, BT = m->B * m->T;

    for (int side = 0; side < 2; ++side) {
        double *g = m->g[side];
        for (int t = 0; t < BT; ++t)
            plain_linear(g + t * H * N, l->router[side], n + t * C, H * N, C);
        for (int h = 0; h < H; ++h) {
            double mean, var;
            plain_statistics(m, g, h, &mean, &var);
            m->mean[layer][side][h] = mean, m->var[layer][side][h] = var;
            if (m->running) mean = l->mean[side][h], var = l->var[side][h];
            for (int t = 0; t < BT; ++t) plain_gates(m, g + (t * H + h) * N, mean, var);
            plain_routing_losses(m, g, h);
        }
        for (int i = 0; i < N; ++i) {
            bool used = false;
            for (int k = 0; k < BT * H; ++k) used = used || g[k * N + i] > 0;
            m->unused += !used;
        }
    }
}

/* y += P * E_ij(n): expert (i,j) alone. */
static void plain_expert(const plain *m, const plain_layer *l, double *y, const double *a1,
                         const double *a2, int i, int j, double P)
{
    const int C = m->a.dim, M = m->a.moe_dim, half = C / 2, mm = M / 2;

    if (m->a.decompose == MONET_HORIZONTAL) {
        for (int c = 0; c < C; ++c) {
            double sum = l->b[1][j * C + c];
            for (int u = 0; u < M; ++u) sum += l->vt[1][(j * M + u) * C + c] * a1[i * M + u];
            y[c] += P * sum;
        }
        return;
    }
    for (int c = 0; c < half; ++c) {
        double top = l->b[0][i * half + c], bottom = l->b[1][j * half + c];
        for (int u = 0; u < mm; ++u) {
            top += l->vt[0][(i * M + u) * half + c] * a1[i * mm + u];
            top += l->vt[0][(i * M + mm + u) * half + c] * a2[j * mm + u];
            bottom += l->vt[1][(j * M + u) * half + c] * a1[i * mm + u];
            bottom += l->vt[1][(j * M + mm + u) * half + c] * a2[j * mm + u];
        }
        y[c] += P * top, y[half + c] += P * bottom;
    }
}

static void plain_moe(plain *m, const plain_layer *l)
{
    const int N = m->a.moe_experts, H = m->a.moe_heads, C = m->a.dim;
    const bool hd = m->a.decompose == MONET_HORIZONTAL;
    const int rows = N * (hd ? m->a.moe_dim : m->a.moe_dim / 2);
    double *a[2] = {numbers((size_t)rows), numbers((size_t)rows)};

    for (int t = 0; t < m->B * m->T; ++t) {
        const double *g1 = m->g[0] + t * H * N, *g2 = m->g[1] + t * H * N;
        for (int side = 0; side < (hd ? 1 : 2); ++side) {
            plain_linear(a[side], l->u[side], m->n + t * C, rows, C);
            for (int r = 0; r < rows; ++r) {
                double x = a[side][r] + l->bias[side][r];
                a[side][r] = x > 0 ? x * x : 0;
            }
        }
        for (int c = 0; c < C; ++c) m->y[c] = 0;
        for (int id = 0; id < N * N; ++id) {
            double P = 0;
            for (int h = 0; h < H; ++h) P += g1[h * N + id / N] * g2[h * N + id % N];
            if (P != 0) plain_expert(m, l, m->y, a[0], a[1], id / N, id % N, P);
        }
        for (int r = 0; r < rows; ++r) { /* kinks of half-experts that are used */
            int i = r / (rows / N), used = 0;
            for (int h = 0; h < H; ++h) used |= (g1[h * N + i] > 0) + 2 * (g2[h * N + i] > 0);
            sign(m, (used & 1 && a[0][r] > 0) + 2 * (used & 2 && a[1][r] > 0));
        }
        for (int c = 0; c < C; ++c) m->x[t * C + c] += m->y[c];
    }
    free(a[0]);
    free(a[1]);
}

static double plain_cross_entropy(plain *m, const int32_t *targets, int64_t *scored)
{
    const int C = m->a.dim, V = m->a.vocab_size;
    double *logits = numbers((size_t)V), loss = 0;

    *scored = 0;
    for (int t = 0; t < m->B * m->T; ++t) {
        double max = -INFINITY, sum = 0;
        if (targets[t] < 0) continue;
        ++*scored;
        plain_norm(m->n, m->x + t * C, m->norm, C, (double)m->a.norm_eps);
        plain_linear(logits, m->head, m->n, V, C);
        for (int v = 0; v < V; ++v)
            if (logits[v] > max) max = logits[v];
        for (int v = 0; v < V; ++v) sum += exp(logits[v] - max);
        loss += log(sum) + max - logits[targets[t]];
    }
    free(logits);
    return *scored ? loss / (double)*scored : 0;
}

static void plain_forward(plain *m, const int32_t *tokens, const int32_t *targets,
                          monet_losses *out)
{
    const int C = m->a.dim, routers = (m->a.n_layers + m->a.moe_groups - 1) / m->a.moe_groups;

    m->signature = 0xcbf29ce484222325u;
    m->uniformity = m->ambiguity = 0;
    m->unused = 0;
    for (int t = 0; t < m->B * m->T; ++t)
        memcpy(m->x + t * C, m->embed + tokens[t] * C, (size_t)C * sizeof *m->x);
    for (int k = 0; k < m->a.n_layers; ++k) {
        const plain_layer *l = &m->layers[k];
        plain_attention(m, l);
        for (int t = 0; t < m->B * m->T; ++t)
            plain_norm(m->n + t * C, m->x + t * C, l->norm2, C, (double)m->a.norm_eps);
        if (k % m->a.moe_groups == 0) plain_router(m, k, m->n);
        plain_moe(m, l);
    }
    out->cross_entropy = plain_cross_entropy(m, targets, &out->scored);
    out->uniformity = m->uniformity / routers;
    out->ambiguity = m->ambiguity / routers;
    out->total = out->cross_entropy + m->unif * out->uniformity + m->amb * out->ambiguity;
    out->unused = m->unused;
}

/* ---- a subject: a trainer and the second Monet with the same weights ------------------------- */
typedef struct recipe { /* V, C, L, A, K, N, M, H, k, G; B, T */
    const char *name;
    int         decompose, v, c, l, a, kv, n, m, h, k, g, tied, B, T;
} recipe;

enum { BATCH_STATS, FROZEN, FROZEN_BATCH, N_MODES };
static const char *const mode_names[N_MODES] = {"trained routers", "frozen routers",
                                                "frozen routers, batch statistics"};

typedef struct subject {
    const recipe  *recipe;
    int            mode;
    monet_trainer *trainer;
    plain          plain;
    size_t         n_tensors;
    const monet_tensor *tensors[MAX_TENSORS];
    double        *direction[MAX_TENSORS]; /* (rows, columns); NULL = not along this tensor */
    int32_t        tokens[2 * MAX_T], targets[2 * MAX_T];
    uint64_t       signature; /* of the routing where no weight has moved */
    int            tried, left_out;
    double         worst;
} subject;

static int rows_of(const monet_tensor *t) { return t->n_dims == 1 ? 1 : (int)t->shape[0]; }
static int columns_of(const monet_tensor *t)
{
    return (int)(t->n_dims == 1 ? t->shape[0] : t->shape[1]);
}

static bool is_router(const monet_tensor *t) { return strstr(t->name, "router.") != NULL; }
static bool is_statistic(const monet_tensor *t) { return strstr(t->name, "running_") != NULL; }

static double read_at(const monet_tensor *t, int row, int column)
{
    return ((const double *)t->data)[monet_tensor_place(t, row, column)];
}

/* The trainer's weights may be changed through the model that it shows: it works on them. */
static void write_at(const monet_tensor *t, int row, int column, double value)
{
    double *data = NULL;

    memcpy(&data, &t->data, sizeof data);
    data[monet_tensor_place(t, row, column)] = value;
}

/* Values that make a lively model: sharp routers, every part matters. `crowded`: half of all
   half-experts are active where the running statistics decide, more than k lets expect.          */
static double start_value(const monet_tensor *t, bool crowded)
{
    double fan_in = sqrt((double)t->shape[1]);

    if (strstr(t->name, "running_var")) return crowded ? 1e-4 : 2 + 0.2 * normal();
    if (strstr(t->name, "running_mean")) return 0.1 * normal();
    if (t->n_dims == 1) return strstr(t->name, "bias") ? 0.2 * normal() : 1 + 0.2 * normal();
    if (strstr(t->name, "moe.v")) return 0.3 * normal();
    if (strstr(t->name, "moe.b")) return 0.3 * normal();
    if (strstr(t->name, "embed")) return 0.7 * normal();
    return (is_router(t) || strstr(t->name, "lm_head") ? 1.5 : 1.0) * normal() / fan_in;
}

/* Row-major weights again, after the trainer's were changed. */
static void refresh(subject *s, size_t k)
{
    const monet_tensor *t = s->tensors[k];

    for (int r = 0; r < rows_of(t); ++r)
        for (int c = 0; c < columns_of(t); ++c)
            s->plain.w[k][r * columns_of(t) + c] = read_at(t, r, c);
}

static const double *weights(const subject *s, int layer, const char *name)
{
    char full[80];

    if (layer < 0) snprintf(full, sizeof full, "%s", name);
    else snprintf(full, sizeof full, "layers.%d.%s", layer, name);
    for (size_t k = 0; k < s->n_tensors; ++k)
        if (!strcmp(s->tensors[k]->name, full)) return s->plain.w[k];
    return NULL;
}

static void link_plain(subject *s)
{
    plain *m = &s->plain;
    size_t C = (size_t)m->a.dim, BT = (size_t)(m->B * m->T);
    size_t gates = BT * (size_t)(m->a.moe_heads * m->a.moe_experts);
    bool hd = m->a.decompose == MONET_HORIZONTAL;

    for (int k = 0; k < m->a.n_layers; ++k) {
        plain_layer *l = &m->layers[k];
        int router = k / m->a.moe_groups * m->a.moe_groups;
        l->norm1 = weights(s, k, "input_layernorm.weight");
        l->norm2 = weights(s, k, "post_attention_layernorm.weight");
        l->q = weights(s, k, "self_attn.q_proj.weight");
        l->k = weights(s, k, "self_attn.k_proj.weight");
        l->v = weights(s, k, "self_attn.v_proj.weight");
        l->o = weights(s, k, "self_attn.o_proj.weight");
        l->router[0] = weights(s, router, "router.w1.weight");
        l->router[1] = weights(s, router, "router.w2.weight");
        l->mean[0] = weights(s, router, "router.norm1.running_mean");
        l->mean[1] = weights(s, router, "router.norm2.running_mean");
        l->var[0] = weights(s, router, "router.norm1.running_var");
        l->var[1] = weights(s, router, "router.norm2.running_var");
        l->u[0] = weights(s, k, hd ? "moe.u.weight" : "moe.u1.weight");
        l->u[1] = weights(s, k, "moe.u2.weight");
        l->bias[0] = weights(s, k, hd ? "moe.u.bias" : "moe.u1.bias");
        l->bias[1] = weights(s, k, "moe.u2.bias");
        l->vt[0] = weights(s, k, "moe.v1.weight");
        l->vt[1] = weights(s, k, hd ? "moe.v.weight" : "moe.v2.weight");
        l->b[0] = weights(s, k, "moe.b1");
        l->b[1] = weights(s, k, hd ? "moe.b" : "moe.b2");
    }
    m->embed = weights(s, -1, "embed_tokens.weight");
    m->norm = weights(s, -1, "norm.weight");
    m->head = m->a.tie_embeddings ? m->embed : weights(s, -1, "lm_head.weight");
    m->x = numbers(BT * C), m->n = numbers(BT * C), m->q = numbers(BT * C);
    m->k = numbers(BT * C), m->v = numbers(BT * C), m->y = numbers(C);
    m->g[0] = numbers(gates), m->g[1] = numbers(gates);
}

static monet_result make_trainer(subject *s, monet_error *err)
{
    static const char *const freeze[] = {"layers.*.router.*"};
    const recipe *r = s->recipe;
    monet_model *model = NULL;
    monet_arch arch;
    monet_writer_config content;
    monet_trainer_config config;
    monet_result result;

    memset(&arch, 0, sizeof arch);
    memset(&content, 0, sizeof content);
    memset(&config, 0, sizeof config);
    arch.vocab_size = r->v, arch.dim = r->c, arch.n_layers = r->l;
    arch.n_heads = r->a, arch.n_kv_heads = r->kv, arch.max_seq_len = MAX_T;
    arch.moe_experts = r->n, arch.moe_dim = r->m, arch.moe_heads = r->h;
    arch.moe_topk = r->k, arch.moe_groups = r->g;
    arch.decompose = r->decompose, arch.tie_embeddings = r->tied;
    arch.norm_eps = 0.01f; /* so large that it matters */
    content.arch = &arch;
    config.batch_size = r->B, config.seq_len = r->T;
    config.uniformity = 0.3f, config.ambiguity = 0.7f, config.uniformity_eps = 0.01f;
    config.freeze = freeze;
    config.n_freeze = s->mode == BATCH_STATS ? 0 : 1;
    config.batch_stats = s->mode == FROZEN_BATCH;
    result = monet_arch_check(&arch, err);
    if (result == MONET_OK) result = monet_model_create(&content, 1, NULL, &model, err);
    if (result == MONET_OK) result = monet_trainer_create(model, &config, &s->trainer, err);
    monet_model_free(model);
    s->plain.a = arch, s->plain.B = r->B, s->plain.T = r->T;
    s->plain.running = s->mode == FROZEN;
    s->plain.unif = (double)config.uniformity, s->plain.amb = (double)config.ambiguity;
    s->plain.unif_eps = (double)config.uniformity_eps;
    return result;
}

/* Two batches; a fifth of the targets is not scored. */
static void make_tokens(subject *s)
{
    for (int t = 0; t < 2 * s->recipe->B * s->recipe->T; ++t) {
        s->tokens[t] = below(s->recipe->v);
        s->targets[t] = below(5) ? below(s->recipe->v) : -1;
    }
}

static bool open_subject(subject *s, const recipe *r, int mode)
{
    monet_error err = {{0}, MONET_OK};
    const monet_model *model;

    memset(s, 0, sizeof *s);
    s->recipe = r;
    s->mode = mode;
    random_state = (uint64_t)(r->c * 1000 + r->n);
    if (!CHECK_EQ(make_trainer(s, &err), MONET_OK)) {
        printf("    %s: %s\n", r->name, err.message);
        return false;
    }
    model = monet_trainer_model(s->trainer);
    s->n_tensors = monet_model_tensor_count(model);
    for (size_t k = 0; k < s->n_tensors; ++k) {
        const monet_tensor *t = s->tensors[k] = monet_model_tensor(model, k);
        for (int row = 0; row < rows_of(t); ++row)
            for (int c = 0; c < columns_of(t); ++c)
                write_at(t, row, c, start_value(t, strstr(r->name, "chunks") != NULL));
        s->plain.w[k] = numbers((size_t)(rows_of(t) * columns_of(t)));
        refresh(s, k);
    }
    link_plain(s);
    make_tokens(s);
    return true;
}

static void close_subject(subject *s)
{
    plain *m = &s->plain;

    for (size_t k = 0; k < s->n_tensors; ++k) free(m->w[k]), free(s->direction[k]);
    free(m->x), free(m->n), free(m->q), free(m->k), free(m->v), free(m->y);
    free(m->g[0]), free(m->g[1]);
    monet_trainer_free(s->trainer);
}

static bool is_trained(const subject *s, const monet_tensor *t)
{
    return !is_statistic(t) && (s->mode == BATCH_STATS || !is_router(t));
}

/* ---- the loss, and what a forward pass does -------------------------------------------------- */

/* The trainer's loss; false if the routing, as the other sees it, is not that of the start. */
static bool loss_of(subject *s, double *loss)
{
    monet_losses mine, theirs;

    plain_forward(&s->plain, s->tokens, s->targets, &mine);
    if (s->plain.signature != s->signature) return false;
    if (monet_trainer_forward(s->trainer, s->tokens, s->targets, &theirs) != MONET_OK)
        theirs.total = NAN;
    *loss = theirs.total;
    return true;
}

static void check_losses(subject *s)
{
    monet_losses mine, theirs;

    memset(&theirs, 0, sizeof theirs);
    plain_forward(&s->plain, s->tokens, s->targets, &mine);
    CHECK_EQ(monet_trainer_forward(s->trainer, s->tokens, s->targets, &theirs), MONET_OK);
    CHECK_NEAR(theirs.cross_entropy, mine.cross_entropy, 1e-11 * mine.cross_entropy);
    CHECK_NEAR(theirs.uniformity, mine.uniformity, 1e-11 * mine.uniformity);
    CHECK_NEAR(theirs.ambiguity, mine.ambiguity, 1e-11);
    CHECK_NEAR(theirs.total, mine.total, 1e-11 * mine.total);
    CHECK_EQ(theirs.scored, mine.scored);
    CHECK_EQ(theirs.unused, mine.unused);
}

/* running = 0.9 running + 0.1 of the batch, its variance unbiased; or nothing. */
static void check_statistics(subject *s)
{
    const plain *m = &s->plain;
    const double n = (double)m->B * m->T * m->a.moe_experts;
    double worst = 0;

    for (int l = 0; l < m->a.n_layers; l += m->a.moe_groups)
        for (int k = 0; k < 4 * m->a.moe_heads; ++k) {
            int side = k / 2 % 2, h = k / 4;
            const char *names[2][2] = {{"router.norm1.running_mean", "router.norm1.running_var"},
                                       {"router.norm2.running_mean", "router.norm2.running_var"}};
            char full[80];
            const monet_tensor *t;
            double before, batch, after;
            snprintf(full, sizeof full, "layers.%d.%s", l, names[side][k % 2]);
            t = monet_model_find_tensor(monet_trainer_model(s->trainer), full);
            if (!CHECK(t != NULL)) return;
            before = (k % 2 ? m->layers[l].var : m->layers[l].mean)[side][h];
            batch = k % 2 ? m->var[l][side][h] * n / (n - 1) : m->mean[l][side][h];
            after = s->mode == FROZEN ? before : 0.9 * before + 0.1 * batch;
            if (fabs(read_at(t, 0, h) - after) > worst) worst = fabs(read_at(t, 0, h) - after);
        }
    if (!CHECK(s->mode == FROZEN ? worst == 0 : worst <= 1e-7)) /* 0.9f and 0.1f are allowed */
        printf("    %s, %s: statistics differ by %.3g\n", s->recipe->name, mode_names[s->mode],
               worst);
    for (size_t k = 0; k < s->n_tensors; ++k)
        if (is_statistic(s->tensors[k])) refresh(s, k);
}

/* ---- derivatives ----------------------------------------------------------------------------- */

/* w = kept + h d for all tensors that have a direction. `kept` are the weights before. */
static void move(subject *s, double *const *kept, double h)
{
    for (size_t k = 0; k < s->n_tensors; ++k) {
        const monet_tensor *t = s->tensors[k];
        if (!s->direction[k]) continue;
        for (int r = 0; r < rows_of(t); ++r)
            for (int c = 0; c < columns_of(t); ++c) {
                int at = r * columns_of(t) + c;
                s->plain.w[k][at] = kept[k][at] + h * s->direction[k][at];
                write_at(t, r, c, s->plain.w[k][at]);
            }
    }
}

/* (loss(w + h d) - loss(w - h d)) / 2h; false if the routing changes on the way, however small h
   is. Two steps are extrapolated to h = 0: what is left is of order h^4.                         */
static bool difference(subject *s, double *slope)
{
    double *kept[MAX_TENSORS] = {0};
    bool smooth = false;

    for (size_t k = 0; k < s->n_tensors; ++k) {
        size_t n = (size_t)(rows_of(s->tensors[k]) * columns_of(s->tensors[k]));
        kept[k] = numbers(n);
        memcpy(kept[k], s->plain.w[k], n * sizeof **kept);
    }
    for (double h = 2e-4; !smooth && h > 1e-6; h /= 5) {
        const double steps[4] = {h, -h, h / 2, -h / 2};
        double loss[4];
        smooth = true;
        for (int k = 0; k < 4 && smooth; ++k) {
            move(s, kept, steps[k]);
            smooth = loss_of(s, &loss[k]);
        }
        if (smooth) *slope = (4 * (loss[2] - loss[3]) / h - (loss[0] - loss[1]) / (2 * h)) / 3;
    }
    move(s, kept, 0);
    for (size_t k = 0; k < s->n_tensors; ++k) free(kept[k]);
    return smooth;
}

/* Sum of gradient * direction over the tensors that have one; what is typical of it. */
static double along(const subject *s, double *const *gradient, double *typical)
{
    double sum = 0, g2 = 0, d2 = 0, n = 0;

    for (size_t k = 0; k < s->n_tensors; ++k) {
        int size = rows_of(s->tensors[k]) * columns_of(s->tensors[k]);
        if (!s->direction[k]) continue;
        for (int j = 0; j < size; ++j) {
            double g = gradient[k][j], d = s->direction[k][j];
            sum += g * d, g2 += g * g, d2 += d * d;
            n += 1;
        }
    }
    *typical = sqrt(g2 * d2 / (n > 0 ? n : 1));
    return sum;
}

static void compare_slopes(subject *s, double *const *gradient, const char *what)
{
    double typical, slope = 0, expected = along(s, gradient, &typical), scale, error;

    ++s->tried;
    if (!difference(s, &slope)) {
        ++s->left_out;
        return;
    }
    scale = fabs(expected) > typical ? fabs(expected) : typical;
    error = fabs(slope - expected) / (scale > 0 ? scale : 1);
    if (scale == 0) error = fabs(slope); /* no gradient: no slope */
    if (error > s->worst) s->worst = error;
    if (!CHECK(error <= BAR))
        printf("    %s, %s, %s: slope %.9g, gradient says %.9g, off by %.3g of %.3g\n",
               s->recipe->name, mode_names[s->mode], what, slope, expected, error, scale);
}

static void clear_directions(subject *s)
{
    for (size_t k = 0; k < s->n_tensors; ++k) {
        free(s->direction[k]);
        s->direction[k] = NULL;
    }
}

static void draw_direction(subject *s, size_t k)
{
    size_t n = (size_t)(rows_of(s->tensors[k]) * columns_of(s->tensors[k]));

    s->direction[k] = numbers(n);
    for (size_t j = 0; j < n; ++j) s->direction[k][j] = normal();
}

/* The gradients of the first batch, row-major, divided by the number of scored targets. NULL where
   the tensor is not trained.                                                                     */
static void get_gradients(subject *s, double **gradient)
{
    monet_losses losses;

    plain_forward(&s->plain, s->tokens, s->targets, &losses);
    s->signature = s->plain.signature;
    CHECK_EQ(monet_trainer_forward(s->trainer, s->tokens, s->targets, &losses), MONET_OK);
    CHECK_EQ(monet_trainer_backward(s->trainer), MONET_OK);
    for (size_t k = 0; k < s->n_tensors; ++k) {
        monet_tensor g;
        const monet_tensor *t = s->tensors[k];
        gradient[k] = NULL;
        if (!is_trained(s, t)) continue;
        gradient[k] = numbers((size_t)(rows_of(t) * columns_of(t)));
        if (!CHECK_EQ(monet_trainer_grad(s->trainer, t->name, &g), MONET_OK)) continue;
        for (int r = 0; r < rows_of(t); ++r)
            for (int c = 0; c < columns_of(t); ++c)
                gradient[k][r * columns_of(t) + c] = read_at(&g, r, c) / (double)losses.scored;
    }
}

static void free_gradients(const subject *s, double **gradient)
{
    for (size_t k = 0; k < s->n_tensors; ++k) free(gradient[k]);
}

/* Each tensor along a random direction, then all of them together. */
static void check_directions(subject *s)
{
    double *gradient[MAX_TENSORS];

    get_gradients(s, gradient);
    for (size_t k = 0; k < s->n_tensors; ++k) {
        if (!gradient[k]) continue;
        draw_direction(s, k);
        compare_slopes(s, gradient, s->tensors[k]->name);
        clear_directions(s);
    }
    for (size_t k = 0; k < s->n_tensors; ++k)
        if (gradient[k]) draw_direction(s, k);
    compare_slopes(s, gradient, "all tensors");
    clear_directions(s);
    free_gradients(s, gradient);
}

/* Every single number of every tensor. */
static void check_elements(subject *s)
{
    double *gradient[MAX_TENSORS];

    get_gradients(s, gradient);
    for (size_t k = 0; k < s->n_tensors; ++k) {
        int n = rows_of(s->tensors[k]) * columns_of(s->tensors[k]);
        if (!gradient[k]) continue;
        s->direction[k] = numbers((size_t)n);
        for (int j = 0; j < n; ++j) {
            char what[100];
            snprintf(what, sizeof what, "%s [%d]", s->tensors[k]->name, j);
            s->direction[k][j] = 1;
            compare_slopes(s, gradient, what);
            s->direction[k][j] = 0;
        }
        clear_directions(s);
    }
    free_gradients(s, gradient);
}

/* ---- layers, one by one ---------------------------------------------------------------------- */
/* A function of some numbers: what a layer gives, weighted with what comes back to it. */
typedef struct layer {
    const char    *name;
    double        *x[4], *gradient[4]; /* what it is a function of; NULL at the end */
    size_t         n[4];
    const double  *mask;               /* 0 where x is no argument; NULL = all of it is */
    double       (*loss)(const struct layer *layer);
    double        *dout, *out;
    int            C, rows, tokens;
    double         eps;
    subject       *s;                  /* lends its threads, kernels and memory */
    monet__queries queries;
} layer;

static double weighted(const double *a, const double *b, size_t n)
{
    double sum = 0;

    for (size_t k = 0; k < n; ++k) sum += a[k] * b[k];
    return sum;
}

static double *random_numbers(size_t n)
{
    double *x = numbers(n);

    for (size_t k = 0; k < n; ++k) x[k] = normal();
    return x;
}

/* Along a random direction of x[which], extrapolated as in difference(). */
static double layer_slope(const layer *l, int which, const double *d)
{
    const double h = 1e-4, steps[4] = {h, -h, h / 2, -h / 2};
    double loss[4], *kept = numbers(l->n[which]);

    memcpy(kept, l->x[which], l->n[which] * sizeof *kept);
    for (int k = 0; k < 4; ++k) {
        for (size_t j = 0; j < l->n[which]; ++j) l->x[which][j] = kept[j] + steps[k] * d[j];
        loss[k] = l->loss(l);
    }
    memcpy(l->x[which], kept, l->n[which] * sizeof *kept);
    free(kept);
    return (4 * (loss[2] - loss[3]) / h - (loss[0] - loss[1]) / (2 * h)) / 3;
}

/* x[k] of the layer against gradient[k], three random directions each. */
static void check_layer(const layer *l)
{
    for (int k = 0; k < 4 && l->x[k]; ++k)
        for (int round = 0; round < 3; ++round) {
            double *d = random_numbers(l->n[k]), *g = l->gradient[k], slope, expected, size;
            for (size_t j = 0; l->mask && j < l->n[k]; ++j)
                if (l->mask[j] == 0) d[j] = 0;
            slope = layer_slope(l, k, d);
            expected = weighted(d, g, l->n[k]);
            size = sqrt(weighted(g, g, l->n[k]));
            if (size < fabs(expected)) size = fabs(expected);
            if (!CHECK(fabs(slope - expected) <= BAR * size + 1e-10))
                printf("    %s, C %d, rows %d, tokens %d, argument %d: slope %.9g, gradient says "
                       "%.9g\n", l->name, l->C, l->rows, l->tokens, k, slope, expected);
            free(d);
        }
}

static double rmsnorm_loss(const layer *l)
{
    monet__rmsnorm_forward(l->out, l->x[0], l->x[1], l->C, l->eps);
    return weighted(l->out, l->dout, (size_t)l->C);
}

static void rmsnorm(void)
{
    static const int sizes[] = {1, 2, 15, 16, 17, 33, 64, 100};

    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; ++k) {
        size_t C = (size_t)sizes[k];
        layer l;
        double rstd;
        memset(&l, 0, sizeof l);
        l.name = "rmsnorm", l.C = sizes[k], l.eps = k % 2 ? 0.3 : 1e-6, l.loss = rmsnorm_loss;
        for (int i = 0; i < 2; ++i) {
            l.n[i] = C;
            l.x[i] = random_numbers(C), l.gradient[i] = numbers(C);
        }
        l.dout = random_numbers(C), l.out = numbers(C);
        for (size_t c = 0; c < C; ++c) l.gradient[0][c] = 7; /* what is there is added to */
        rstd = monet__rmsnorm_backward(l.gradient[0], l.dout, l.x[0], l.x[1], l.C, l.eps);
        for (size_t c = 0; c < C; ++c) l.gradient[0][c] -= 7;
        for (size_t c = 0; c < C; ++c) l.gradient[1][c] = l.dout[c] * l.x[0][c] * rstd;
        if (C > 1 || l.eps > 0.1) check_layer(&l); /* of one number only its sign is left */
        for (int i = 0; i < 2; ++i) free(l.x[i]), free(l.gradient[i]);
        free(l.dout), free(l.out);
    }
}

/* W is linear: its derivative is known, dx = W^T dout, dW = dout x^T. */
static void linear(subject *s, int rows, int C, int n_tokens)
{
    monet_tensor w;
    monet__linear_back job;
    const size_t stride = ((size_t)C + 31) / 32 * 32 + 16, n = (size_t)n_tokens;
    double *x = numbers(n * stride), *dx = numbers(n * stride), *dw, worst = 0, *data;
    double *dout = random_numbers(n * (size_t)(rows + 3));
    uint64_t bytes = 0;

    memset(&w, 0, sizeof w);
    memset(&job, 0, sizeof job);
    w.layout = MONET_PANELS, w.panel = 16, w.n_dims = 2;
    w.shape[0] = rows, w.shape[1] = C;
    CHECK(monet__tensor_size(&w, &bytes));
    w.data = data = numbers((size_t)bytes / 8);
    dw = numbers((size_t)bytes / 8);
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < C; ++c) data[monet_tensor_place(&w, r, c)] = normal();
    for (int t = 0; t < n_tokens; ++t)
        for (int c = 0; c < C; ++c) x[(size_t)t * stride + monet__split((size_t)c)] = normal();
    job.w = &w, job.dw = dw, job.dout = dout, job.stride = (size_t)rows + 3;
    job.x = x, job.dx = dx, job.x_stride = stride, job.n_tokens = n_tokens;
    monet__linear_backward(&s->trainer->team, &job);
    monet__linear_backward(&s->trainer->team, &job); /* adds: all is there twice */
    job.dw = NULL;
    monet__linear_backward(&s->trainer->team, &job); /* frozen: dx three times */
    for (int t = 0; t < n_tokens; ++t)
        for (int c = 0; c < C; ++c) {
            double sum = 0, got = dx[(size_t)t * stride + monet__split((size_t)c)];
            for (int r = 0; r < rows; ++r)
                sum += data[monet_tensor_place(&w, r, c)] * dout[t * (rows + 3) + r];
            if (!(fabs(3 * sum - got) <= worst)) worst = fabs(3 * sum - got);
        }
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < C; ++c) {
            double sum = 0, got = dw[monet_tensor_place(&w, r, c)];
            for (int t = 0; t < n_tokens; ++t)
                sum += dout[t * (rows + 3) + r] * x[(size_t)t * stride + monet__split((size_t)c)];
            if (!(fabs(2 * sum - got) <= worst)) worst = fabs(2 * sum - got);
            dw[monet_tensor_place(&w, r, c)] = 0;
        }
    for (size_t k = 0; k < (size_t)bytes / 8; ++k) worst += fabs(dw[k]); /* padding stays 0 */
    if (!CHECK(worst <= 1e-11))
        printf("    linear (%d,%d), %d tokens: off by %.3g\n", rows, C, n_tokens, worst);
    free(x), free(dx), free(dw), free(dout), free(data);
}

/* Rope is linear too: rope(x) . y = x . rope_backward(y). */
static void rope(void)
{
    for (int D = 2; D <= 70; D += 4) {
        size_t n = (size_t)D, half = n / 2;
        double *cosine = numbers(9 * half), *sine = numbers(9 * half), before, after;
        double *x = random_numbers(n), *y = random_numbers(n), *turned = numbers(n);
        monet__rope_table(cosine, sine, 9, D, 10000);
        memcpy(turned, x, n * sizeof *x);
        monet__rope_forward(turned, cosine + 8 * half, sine + 8 * half, D);
        before = weighted(turned, y, n);
        monet__rope_backward(y, cosine + 8 * half, sine + 8 * half, D);
        after = weighted(x, y, n);
        CHECK_NEAR(before, after, 1e-12 * (1 + fabs(before)));
        free(cosine), free(sine), free(x), free(y), free(turned);
    }
}

/* Softmax of the survivors, in plain loops; x are their logits and 0 elsewhere. */
static double router_loss(const layer *l)
{
    double sum = 0, total = 0;

    for (int i = 0; i < l->C; ++i)
        if (l->out[i] > 0) sum += exp(l->x[0][i]);
    for (int i = 0; i < l->C; ++i)
        if (l->out[i] > 0) total += l->dout[i] * exp(l->x[0][i]) / sum;
    return total;
}

static void router(void)
{
    uint16_t all[40];

    for (int i = 0; i < 40; ++i) all[i] = (uint16_t)i;
    for (int N = 2; N < 40; N += 3) {
        const size_t n = (size_t)N;
        layer l;
        memset(&l, 0, sizeof l);
        l.name = "router", l.C = N, l.n[0] = n, l.loss = router_loss;
        l.x[0] = random_numbers(n), l.dout = random_numbers(n), l.out = numbers(n);
        memcpy(l.out, l.x[0], n * sizeof *l.out);
        CHECK(monet__router_forward(l.out, 0.1, 0.8, 0.5, N));
        l.gradient[0] = numbers(n);
        memcpy(l.gradient[0], l.dout, n * sizeof *l.dout);
        monet__router_backward(l.gradient[0], l.out, all, N);
        for (size_t i = 0; i < n; ++i) CHECK(l.out[i] > 0 || l.gradient[0][i] == 0);
        check_layer(&l);
        free(l.x[0]), free(l.gradient[0]), free(l.dout), free(l.out);
    }
}

/* Softmax of each query with the keys that it sees, 0 for the others of the block. */
static void attention_weights(const layer *l)
{
    const monet__queries *a = &l->queries;
    const size_t width = 32 * a->groups;

    for (int t = 0; t < a->n; ++t) {
        double sum = 0;
        for (int j = 0; j < a->first + a->n; ++j) {
            double dot = 0;
            for (size_t c = 0; c < width; ++c)
                dot += l->x[0][(size_t)t * width + c] *
                       l->x[1][(c / 32 * (size_t)a->key_rows + (size_t)j) * 32 + c % 32];
            a->p[t][j] = j <= a->first + t ? exp(dot / sqrt((double)a->D)) : 0;
            sum += a->p[t][j];
        }
        for (int j = 0; j < a->first + a->n; ++j) a->p[t][j] /= sum;
    }
}

/* Outputs of a block of queries: sum over keys of weight * value. */
static double attention_loss(const layer *l)
{
    const monet__queries *a = &l->queries;
    double total = 0;

    attention_weights(l);
    for (int t = 0; t < a->n; ++t)
        for (int j = 0; j < a->first + a->n; ++j)
            for (size_t c = 0; c < 32 * a->groups; ++c)
                total += l->dout[(size_t)t * 32 * a->groups + c] * a->p[t][j] *
                         l->x[2][(c / 32 * (size_t)a->key_rows + (size_t)j) * 32 + c % 32];
    return total;
}

static void attention(const subject *s, int T, int D, int first, int n)
{
    const size_t groups = ((size_t)D + 31) / 32, width = 32 * groups, seen = (size_t)(first + n);
    layer l;
    monet__queries *a = &l.queries;
    double *dq[32], *ds[32], *p = numbers((size_t)n * seen), *scratch = numbers((size_t)n * seen);
    const double *dout[32];

    memset(&l, 0, sizeof l);
    l.name = "attention", l.C = D, l.rows = T, l.tokens = n, l.loss = attention_loss;
    for (int k = 0; k < 3; ++k) { /* queries, keys, values: they fill their padding here */
        l.n[k] = (k ? (size_t)T : (size_t)n) * width;
        l.x[k] = random_numbers(l.n[k]), l.gradient[k] = numbers(l.n[k]);
    }
    l.dout = random_numbers((size_t)n * width);
    a->kernels = s->trainer->team.kernels;
    a->keys = l.x[1], a->values = l.x[2];
    a->dtype = MONET_F32, a->key_rows = a->value_rows = T;
    a->D = D, a->first = first, a->n = n, a->groups = groups;
    for (int t = 0; t < n; ++t) {
        a->q[t] = l.x[0] + (size_t)t * width;
        a->p[t] = p + (size_t)t * seen, ds[t] = scratch + (size_t)t * seen;
        dq[t] = l.gradient[0] + (size_t)t * width, dout[t] = l.dout + (size_t)t * width;
    }
    attention_weights(&l);
    monet__attention_backward(a, dq, l.gradient[1], l.gradient[2], dout, ds);
    check_layer(&l);
    for (int k = 0; k < 3; ++k) free(l.x[k]), free(l.gradient[k]);
    free(l.dout), free(p), free(scratch);
}

/* ---- layers: experts ------------------------------------------------------------------------- */
/* The second Monet's experts, on what they read and the gates that are in it. */
static double moe_loss(const layer *l)
{
    plain *m = &l->s->plain;
    const size_t n = (size_t)(l->tokens * l->C);

    memset(m->x, 0, n * sizeof *m->x);
    plain_moe(m, &m->layers[0]);
    return weighted(m->x, l->dout, n);
}

/* Gates of which a quarter is 0: more than a chunk of tokens is laid out for. And their lists. */
static void draw_gates(plain *m, monet__moe *moe)
{
    const size_t N = (size_t)moe->N, H = (size_t)moe->H;

    for (size_t item = 0; item < 2 * (size_t)(m->B * m->T); ++item) {
        double *g = moe->gates + item * H * N;
        for (size_t k = 0; k < H * N; ++k) g[k] = below(4) ? 0.1 + fabs(normal()) : 0;
        for (size_t h = 0; h < H; ++h) g[h * N + (size_t)below((int)N)] = 0.7;
        moe->n_active[item] = monet__active_list(moe->active + item * N, g, moe->H, moe->N);
        memcpy(m->g[item % 2] + item / 2 * H * N, g, H * N * sizeof *g);
    }
}

/* What the experts read, in both orders; dout as the trainer has it, in two halves for VD. */
static void draw_input(const layer *l, double *split)
{
    const monet_trainer *t = l->s->trainer;
    const monet__moe *moe = &t->moe;
    plain *m = &l->s->plain;

    memset(moe->y, 0, (size_t)t->BT * moe->y_stride * sizeof *moe->y);
    for (size_t k = 0; k < (size_t)(l->tokens * l->C); ++k) {
        size_t token = k / (size_t)l->C, c = k % (size_t)l->C, width = (size_t)moe->width;
        m->n[k] = normal();
        split[token * t->stride + monet__split(c)] = m->n[k];
        moe->y[token * moe->y_stride + (c < width ? c : moe->y_stride / 2 + c - width)] =
            l->dout[k];
    }
}

/* The gradients of a layer's weights go into the trainer's own block. */
static void link_gradients(monet_trainer *t)
{
    const monet__experts *e = &t->model->layers[0].experts;
    monet__moe *moe = &t->moe;

    for (int axis = 0; axis < 2; ++axis) {
        moe->du[axis] = e->u[axis] ? t->grads + e->u[axis]->offset / 8 : NULL;
        moe->dbias[axis] = e->bias[axis] ? t->grads + e->bias[axis]->offset / 8 : NULL;
        moe->dv[axis] = e->v[axis] ? t->grads + e->v[axis]->offset / 8 : NULL;
        moe->db[axis] = e->b[axis] ? t->grads + e->b[axis]->offset / 8 : NULL;
    }
}

/* One argument of the experts: its gradient is gathered by the caller. */
static void check_argument(layer *l, const char *name, double *x, double *gradient, size_t n,
                           const double *mask)
{
    l->name = name;
    l->x[0] = x, l->gradient[0] = gradient, l->n[0] = n;
    l->mask = mask;
    check_layer(l);
    free(gradient);
}

static void check_experts(layer *l, const double *dsplit)
{
    subject *s = l->s;
    const monet_trainer *t = s->trainer;
    const size_t HN = (size_t)(t->moe.H * t->moe.N), BT = (size_t)t->BT;
    double *g = numbers(BT * (size_t)l->C);

    for (size_t k = 0; k < BT * (size_t)l->C; ++k)
        g[k] = dsplit[k / (size_t)l->C * t->stride + monet__split(k % (size_t)l->C)];
    check_argument(l, "experts, input", s->plain.n, g, BT * (size_t)l->C, NULL);
    for (size_t side = 0; side < 2; ++side) {
        g = numbers(BT * HN);
        for (size_t k = 0; k < BT * HN; ++k)
            if (s->plain.g[side][k] > 0) g[k] = t->moe.dgates[(2 * (k / HN) + side) * HN + k % HN];
        check_argument(l, "experts, gates", s->plain.g[side], g, BT * HN, s->plain.g[side]);
    }
    for (size_t k = 0; k < s->n_tensors; ++k) {
        const monet_tensor *x = s->tensors[k];
        int n = rows_of(x) * columns_of(x);
        if (strncmp(x->name, "layers.0.moe.", 13)) continue;
        g = numbers((size_t)n);
        for (int j = 0; j < n; ++j)
            g[j] = t->grads[x->offset / 8 +
                            monet_tensor_place(x, j / columns_of(x), j % columns_of(x))];
        check_argument(l, x->name, s->plain.w[k], g, (size_t)n, NULL);
    }
}

static void experts(subject *s)
{
    monet_trainer *t = s->trainer;
    monet__moe *moe = &t->moe;
    const size_t n = (size_t)t->BT;
    double *split = numbers(n * t->stride), *dsplit = numbers(n * t->stride);
    monet__input in;
    layer l;

    memset(&l, 0, sizeof l);
    l.s = s, l.C = moe->C, l.tokens = t->BT, l.loss = moe_loss;
    l.dout = random_numbers(n * (size_t)l.C);
    moe->gates = t->all_gates, moe->active = t->all_active, moe->n_active = t->all_n_active;
    draw_gates(&s->plain, moe);
    draw_input(&l, split);
    link_gradients(t);
    moe->dx = dsplit;
    memset(moe->dgates, 0, n * 2 * (size_t)(moe->H * moe->N) * sizeof *moe->dgates);
    in = monet__input_of(split, t->stride, t->BT);
    monet__moe_backward(moe, &t->team, &t->model->layers[0].experts, &in);
    check_experts(&l, dsplit);
    free(l.dout), free(split), free(dsplit);
}

static void layers(void)
{
    static const recipe some[2] = {
        {"experts vd", MONET_VERTICAL, 5, 42, 1, 3, 1, 20, 6, 2, 1, 1, 0, 1, 37},
        {"experts hd", MONET_HORIZONTAL, 5, 40, 1, 5, 1, 17, 5, 3, 2, 1, 0, 1, 35}};
    static subject s;

    rmsnorm();
    rope();
    router();
    for (int k = 0; k < 2; ++k) {
        if (!open_subject(&s, &some[k], BATCH_STATS)) continue;
        experts(&s);
        for (int n = 1; n < 70; n += 17) linear(&s, n, 70 - n, n + k);
        linear(&s, 33, 160, 2);
        attention(&s, 5, 6, 0, 5);
        attention(&s, 37, 40, 32, 5);
        attention(&s, 37, 10, 0, 32);
        attention(&s, 1, 2, 0, 1);
        close_subject(&s);
    }
}

/* ---- main ------------------------------------------------------------------------------------ */

static const recipe recipes[] = {
    /*                                V  C  L  A  K  N  M  H  k  G  tied B  T */
    {"vd", MONET_VERTICAL,           23, 16, 2, 4, 2, 8, 4, 2, 2, 1, 0, 2, 5},
    {"hd", MONET_HORIZONTAL,         23, 16, 2, 4, 4, 8, 4, 2, 2, 1, 0, 2, 5},
    {"hd odd", MONET_HORIZONTAL,     37, 40, 2, 5, 1, 17, 5, 1, 3, 1, 0, 1, 5},
    {"vd odd tied", MONET_VERTICAL,  29, 42, 3, 3, 3, 11, 6, 3, 3, 2, 1, 1, 3},
    {"hd tied groups", MONET_HORIZONTAL, 17, 24, 4, 4, 2, 10, 3, 2, 2, 3, 1, 2, 3},
    {"vd many tokens", MONET_VERTICAL, 13, 12, 1, 2, 1, 9, 2, 3, 4, 1, 0, 1, 35},
    {"hd wide head", MONET_HORIZONTAL, 13, 40, 1, 1, 1, 9, 3, 2, 2, 1, 0, 1, 5},
    {"hd nearly dense", MONET_HORIZONTAL, 13, 12, 2, 2, 2, 12, 2, 2, 11, 2, 0, 2, 5},
    {"vd one token", MONET_VERTICAL, 13, 8, 1, 2, 2, 5, 2, 1, 2, 1, 0, 1, 1},
    {"hd in chunks", MONET_HORIZONTAL, 13, 12, 1, 2, 2, 40, 1, 1, 1, 1, 0, 1, 9},
};

static void run(const recipe *r, int mode, void (*work)(subject *))
{
    subject *s = (subject *)calloc(1, sizeof *s);

    if (s && open_subject(s, r, mode)) {
        check_losses(s);
        check_statistics(s);
        check_losses(s);
        check_statistics(s);
        work(s);
        printf("  %s, %s: %d directions, %d left out, off by at most %.2g\n", r->name,
               mode_names[mode], s->tried, s->left_out, s->worst);
        CHECK(4 * s->left_out <= s->tried);
        close_subject(s);
    }
    free(s);
}

int main(void)
{
    static const recipe tiny[2] = {
        {"all of vd", MONET_VERTICAL, 5, 4, 1, 2, 1, 4, 2, 2, 2, 1, 0, 1, 4},
        {"all of hd", MONET_HORIZONTAL, 5, 4, 1, 1, 1, 4, 2, 1, 2, 1, 1, 2, 3}};

    layers();
    for (size_t k = 0; k < sizeof recipes / sizeof *recipes; ++k)
        for (int mode = 0; mode < N_MODES; ++mode)
            if (mode < FROZEN_BATCH || k < 2) run(&recipes[k], mode, check_directions);
    for (int k = 0; k < 2; ++k) run(&tiny[k], BATCH_STATS, check_elements);
    return test_end("gradients");
}
