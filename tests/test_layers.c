/* test_layers.c: each kernel and layer against plain double arithmetic, element by element.

   cc -O2 -pthread -I. tests/test_layers.c -o test_layers -lm && ./test_layers

   The bound is a theorem, not a tolerance: a sum of k products in float is wrong by at most
   gamma(k) * sum|a_i b_i|, gamma(k) = k u / (1 - k u), u = 2^-24, in whatever order. What goes into
   another sum takes its own bound along. The largest error seen is printed as a part of the bound.
   All arrays lie against a page that may not be touched, once before them and once behind.       */
#define _DEFAULT_SOURCE
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "test.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GROUP = 32, ROWS = 16, TOKENS = 32 };
static const double unit = 1.0 / 16777216;

/* ---- arrays between guard pages -------------------------------------------------------------- */
static struct { char *at[256]; size_t size[256]; int n, behind; } regions;

/* `bytes` zeros; the page before them or (regions.behind) the page behind them is forbidden. */
static void *guarded(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (bytes + page) / page * page;
    char  *p = (char *)mmap(NULL, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED || regions.n == 256 || mprotect(p + page, inside, PROT_READ | PROT_WRITE)) {
        printf("no memory for guard pages\n");
        exit(2);
    }
    regions.at[regions.n] = p;
    regions.size[regions.n++] = inside + 2 * page;
    return regions.behind ? p + page + inside - bytes : p + page;
}

static float *floats(size_t n) { return (float *)guarded(n * sizeof(float)); }

static void drop_regions(void)
{
    while (regions.n) --regions.n, munmap(regions.at[regions.n], regions.size[regions.n]);
}

/* ---- random numbers and errors --------------------------------------------------------------- */
static uint64_t random_state = 1;

static uint64_t next_random(void)
{
    uint64_t x = random_state += 0x9e3779b97f4a7c15u;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static int below(int n) { return (int)(next_random() % (uint64_t)n); }
static float uniform(void) { return (float)(next_random() >> 40) / 8388608.0f - 1; } /* [-1,1) */

/* Kinds of data: even, cancelling, of very different size, subnormal, mostly zeros (both signs). */
enum { EVEN, CANCEL, WIDE, TINY, ZEROS, KINDS };

static float number(int kind, int k)
{
    switch (kind) {
    case CANCEL: return (k % 2 ? -1.0f : 1.0f) * (1000 + (k % 3 ? uniform() * 1e-3f : 0));
    case WIDE: return (float)ldexp((double)uniform(), below(100) - 50);
    case TINY: return (float)ldexp((double)uniform(), -126 - below(20));
    case ZEROS: return below(4) ? (below(2) ? 0.0f : -0.0f) : uniform();
    default: return uniform();
    }
}

/* What a matrix of this type can hold: f16 ends at 65504. */
static float weight(int kind, int k, monet_dtype dtype)
{
    return kind == WIDE && dtype == MONET_F16 ? (float)ldexp((double)uniform(), below(30) - 14)
                                              : number(kind, k);
}

static void fill(float *x, size_t n, int kind)
{
    for (size_t k = 0; k < n; ++k) x[k] = number(kind, (int)k);
}

static double gamma_of(double k) { return k * unit / (1 - k * unit); }

static struct { const char *name; double worst; long checked, wrong; } stats;

static void begin(const char *name)
{
    memset(&stats, 0, sizeof stats);
    stats.name = name;
}

/* One element; `bound` does not yet have the underflow of `k` products. */
static void compare(float got, double expected, double bound, double k)
{
    double error = fabs((double)got - expected), limit = bound + k * 0x1p-149;

    ++stats.checked;
    if (!(error <= limit) && !stats.wrong++)
        printf("    %s: got %.9g, expected %.9g, bound %.3g\n", stats.name, (double)got, expected,
               limit);
    if (error > stats.worst * limit && limit > 0) stats.worst = error / limit;
}

static void finish(void)
{
    CHECK_EQ(stats.wrong, 0);
    CHECK(stats.checked > 0);
    printf("%-18s worst error %.3f of the bound, %ld elements\n", stats.name, stats.worst,
           stats.checked);
    drop_regions();
}

/* ---- matrices -------------------------------------------------------------------------------- */
typedef struct matrix {
    monet_tensor t;
    double      *values; /* (rows, columns): what is really stored */
} matrix;

static matrix make_matrix(monet_layout layout, monet_dtype dtype, int panel, int rows, int columns,
                          int kind)
{
    matrix   m;
    uint64_t size = 0;

    memset(&m, 0, sizeof m);
    m.t.layout = layout;
    m.t.dtype = dtype;
    m.t.panel = panel;
    m.t.n_dims = 2;
    m.t.shape[0] = rows;
    m.t.shape[1] = columns;
    (void)monet__tensor_size(&m.t, &size);
    m.t.size = size;
    m.t.data = guarded((size_t)size);
    m.values = (double *)guarded((size_t)rows * (size_t)columns * sizeof(double));
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) {
            size_t place = monet_tensor_place(&m.t, r, c);
            monet__put((void *)(uintptr_t)m.t.data, dtype, place, weight(kind, c, dtype));
            m.values[r * columns + c] = (double)monet__get(m.t.data, dtype, place);
        }
    return m;
}

/* A vector (n) in split order, padded to whole groups. */
static float *split_copy(const float *x, int n)
{
    size_t padded = ((size_t)n + GROUP - 1) / GROUP * GROUP;
    float *out = floats(padded);

    for (size_t k = 0; k < padded; ++k) {
        size_t at = k / GROUP * GROUP + k % 2 * 16 + k % GROUP / 2;
        out[at] = k < (size_t)n ? x[k] : 0;
    }
    return out;
}

/* Element r of W x, with its bound. */
static void compare_dot(float got, const double *w, const float *x, int n)
{
    double sum = 0, size = 0;

    for (int k = 0; k < n; ++k) {
        sum += w[k] * (double)x[k];
        size += fabs(w[k] * (double)x[k]);
    }
    compare(got, sum, gamma_of(n) * size + unit * fabs(sum), n);
}

/* ---- kernels --------------------------------------------------------------------------------- */
/* One panel of `rows` rows, `n` columns, `tokens` tokens: together and one by one. */
static void one_dot_panel(monet_dtype dtype, int rows, int n, int tokens, int kind)
{
    matrix       m = make_matrix(MONET_PANELS, dtype, rows, rows, n, kind);
    const float *x[TOKENS], *natural[TOKENS];
    float       *out[TOKENS], *single = floats((size_t)rows);
    size_t       groups = (size_t)(n + GROUP - 1) / GROUP;
    int          same = 1;

    for (int t = 0; t < tokens; ++t) {
        float *values = floats((size_t)n);
        fill(values, (size_t)n, kind);
        natural[t] = values;
        x[t] = split_copy(values, n);
        out[t] = floats((size_t)rows);
    }
    monet__dot_panel(out, m.t.data, dtype, rows, rows, groups, x, tokens);
    for (int t = 0; t < tokens; ++t) {
        for (int r = 0; r < rows; ++r) compare_dot(out[t][r], m.values + r * n, natural[t], n);
        monet__dot_panel(&single, m.t.data, dtype, rows, rows, groups, x + t, 1);
        same = same && !memcmp(single, out[t], (size_t)rows * sizeof(float));
    }
    if (!same) CHECK(same);
    drop_regions();
}

static const int large[] = {96, 128, 255, 257, 1000, 1536, 2048, 4097};

static void test_dot_panel(void)
{
    begin("dot_panel");
    for (int dtype = 0; dtype < 3; ++dtype) {
        for (int n = 1; n <= 67; ++n)
            for (int kind = 0; kind < KINDS; ++kind)
                one_dot_panel((monet_dtype)dtype, 1 + (n * 5 + kind) % 17, n, 1 + (n + kind) % 3,
                              kind);
        for (int k = 0; k < 8; ++k)
            one_dot_panel((monet_dtype)dtype, k % 2 ? 12 : 16, large[k], k == 3 ? 32 : 2,
                          k % KINDS);
    }
    finish();
}

/* One column group of a panel of V: `rows` rows, all dtypes keep 32 columns. */
static void one_sum_panel(monet_dtype dtype, int rows, int tokens, int kind)
{
    matrix       m = make_matrix(MONET_SUMS, dtype, rows, rows, GROUP, kind);
    const float *s[TOKENS];
    float       *y[TOKENS], *before[TOKENS];

    for (int t = 0; t < tokens; ++t) {
        float *scales = floats((size_t)rows);
        fill(scales, (size_t)rows, kind);
        s[t] = scales;
        y[t] = floats(GROUP);
        before[t] = floats(GROUP);
        fill(y[t], GROUP, kind);
        memcpy(before[t], y[t], GROUP * sizeof(float));
    }
    monet__sum_panel(y, m.t.data, dtype, (int)monet__panel_rows(&m.t), rows, 1, s, tokens);
    for (int t = 0; t < tokens; ++t)
        for (int c = 0; c < GROUP; ++c) {
            double sum = (double)before[t][c], size = fabs(sum);
            for (int r = 0; r < rows; ++r) {
                double product = (double)s[t][r] * m.values[r * GROUP + c];
                sum += product, size += fabs(product);
            }
            compare(y[t][c], sum, gamma_of(rows + 1) * size + unit * fabs(sum), rows);
        }
    drop_regions();
}

static void test_sum_panel(void)
{
    begin("sum_panel");
    for (int dtype = 0; dtype < 3; ++dtype)
        for (int rows = 1; rows <= 67; ++rows)
            for (int kind = 0; kind < KINDS; ++kind)
                one_sum_panel((monet_dtype)dtype, rows, 1 + (rows + kind) % 3, kind);
    one_sum_panel(MONET_BF16, 129, 32, EVEN);
    finish();
}

static void test_axpy(void)
{
    begin("axpy");
    for (int dtype = 0; dtype < 3; ++dtype)
        for (int n = 0; n <= 67; ++n)
            for (int kind = 0; kind < KINDS; ++kind) {
                matrix m = make_matrix(MONET_ROWS, (monet_dtype)dtype, 1, 3, n + 1, kind);
                float *y = floats((size_t)n), *before = floats((size_t)n), scale = number(kind, n);
                fill(y, (size_t)n, kind);
                memcpy(before, y, (size_t)n * sizeof(float));
                monet__axpy(y, scale, m.t.data, m.t.dtype, (size_t)(2 * n + 2), (size_t)n);
                for (int k = 0; k < n; ++k) {
                    double product = (double)scale * m.values[2 * n + 2 + k];
                    double sum = (double)before[k] + product;
                    compare(y[k], sum, gamma_of(2) * (fabs((double)before[k]) + fabs(product)), 1);
                }
                drop_regions();
            }
    finish();
}

static void test_dot(void)
{
    begin("dot");
    for (int dtype = 0; dtype < 3; ++dtype)
        for (int n = 16; n <= 256; n += 16)
            for (int kind = 0; kind < KINDS; ++kind) {
                matrix m = make_matrix(MONET_ROWS, (monet_dtype)dtype, 1, 2, n, kind);
                float *a = floats((size_t)n);
                fill(a, (size_t)n, kind);
                compare_dot(monet__dot(a, m.t.data, m.t.dtype, (size_t)n, (size_t)n), m.values + n,
                            a, n);
                drop_regions();
            }
    finish();
}

static void test_sum(void)
{
    begin("sum");
    for (int n = 0; n <= 67; ++n)
        for (int kind = 0; kind < KINDS; ++kind) {
            float *x = floats((size_t)n);
            double sum = 0, size = 0;
            fill(x, (size_t)n, kind);
            for (int k = 0; k < n; ++k) sum += (double)x[k], size += fabs((double)x[k]);
            compare(monet__sum(x, (size_t)n), sum, gamma_of(n) * size, 0);
            drop_regions();
        }
    finish();
}

/* Numbers that are none go through: a dot product with one is one. */
static void test_not_finite(void)
{
    static const float special[3] = {(float)NAN, (float)HUGE_VAL, (float)-HUGE_VAL};
    int                wrong = 0;

    for (int dtype = 0; dtype < 3; ++dtype)
        for (int n = 1; n <= 67; ++n) {
            matrix       m = make_matrix(MONET_PANELS, (monet_dtype)dtype, 3, 3, n, EVEN);
            float       *x = floats((size_t)n), *out = floats(3), value = special[n % 3];
            const float *split;
            fill(x, (size_t)n, EVEN);
            for (int k = 0; k < n; ++k) x[k] += x[k] < 0 ? -0.5f : 0.5f; /* no zeros */
            monet__put((void *)(uintptr_t)m.t.data, m.t.dtype, monet_tensor_place(&m.t, 1, n - 1),
                       value);
            split = split_copy(x, n);
            monet__dot_panel(&out, m.t.data, m.t.dtype, 3, 3, (size_t)(n + 31) / 32, &split, 1);
            wrong += !(out[0] - out[0] == 0) || !(out[2] - out[2] == 0);
            if (x[n - 1] < 0) value = -value;
            wrong += value != value ? !(out[1] != out[1]) : out[1] != value;
            drop_regions();
        }
    CHECK_EQ(wrong, 0);
}

/* ---- linear ---------------------------------------------------------------------------------- */
static void backwards(void *user, int count, void (*task)(void *arg, int index), void *arg)
{
    (void)user;
    while (count-- > 0) task(arg, count);
}

static void set_team(monet__team *team, int n)
{
    memset(team, 0, sizeof *team);
    team->n = n;
    team->kernels = monet__kernels_for(MONET_KERNELS_BEST);
    team->host.n_threads = n;
    team->host.parallel_fn = backwards;
}

/* Three matrices of different size on one input, as q, k and v. */
static void one_linear(monet_dtype dtype, int n, int tokens)
{
    static const int rows[3] = {37, 16, 1};
    matrix           m[3];
    monet__product   products[3];
    size_t           stride = (size_t)(n + GROUP - 1) / GROUP * GROUP;
    float           *x = floats((size_t)(tokens * n)), *split = floats((size_t)tokens * stride);
    monet__team     *team = (monet__team *)guarded(sizeof *team);
    monet__input     in;

    fill(x, (size_t)(tokens * n), EVEN);
    for (int t = 0; t < tokens; ++t)
        monet__to_split(split + (size_t)t * stride, x + t * n, (size_t)n);
    for (int k = 0; k < 3; ++k) {
        m[k] = make_matrix(MONET_PANELS, dtype, ROWS, rows[k], n, EVEN);
        products[k].w = &m[k].t;
        products[k].stride = (size_t)rows[k];
        products[k].out = floats((size_t)(tokens * rows[k]));
    }
    set_team(team, 1 + n % 5);
    in = monet__input_of(split, stride, tokens);
    monet__linear_forward(team, products, 3, &in);
    for (int k = 0; k < 3; ++k)
        for (int t = 0; t < tokens; ++t)
            for (int r = 0; r < rows[k]; ++r)
                compare_dot(products[k].out[t * rows[k] + r], m[k].values + r * n, x + t * n, n);
    drop_regions();
}

static void test_linear(void)
{
    begin("linear");
    for (int dtype = 0; dtype < 3; ++dtype)
        for (int n = 1; n <= 67; n += 3) one_linear((monet_dtype)dtype, n, n % 5 ? 1 + n % 7 : 70);
    finish();
}

/* ---- rmsnorm and rope ------------------------------------------------------------------------ */
static void one_rmsnorm(int C, int kind, float eps)
{
    float *x = floats((size_t)C), *weight = floats((size_t)C), *out = floats((size_t)C);
    double sum = 0;

    fill(x, (size_t)C, kind);
    fill(weight, (size_t)C, EVEN);
    for (int k = 0; k < C; ++k) sum += (double)x[k] * (double)x[k];
    monet__rmsnorm_forward(out, x, weight, C, eps);
    for (int k = 0; k < C; ++k) {
        double expected = (double)x[k] / sqrt(sum / C + (double)eps) * (double)weight[k];
        compare(out[k], expected, gamma_of(C / 2 + 6) * fabs(expected), 2);
    }
    monet__rmsnorm_forward(x, x, weight, C, eps); /* in place gives the same */
    if (memcmp(x, out, (size_t)C * sizeof(float))) CHECK_EQ(C, -1);
    drop_regions();
}

static void test_rmsnorm(void)
{
    float x[4] = {0, -0.0f, 0, 0}, weight[4] = {1, 2, 3, 4}, out[4];

    begin("rmsnorm");
    for (int kind = 0; kind < KINDS; ++kind) {
        for (int C = 1; C <= 67; ++C) one_rmsnorm(C, kind, C % 2 ? 1e-6f : 1e-5f);
        for (int k = 0; k < 8; ++k) one_rmsnorm(large[k], kind, 1e-6f);
    }
    finish();
    monet__rmsnorm_forward(out, x, weight, 4, 1e-6f);
    for (int k = 0; k < 4; ++k) CHECK(out[k] == 0);
    x[1] = 3e19f; /* the square overflows: 0, as the published model gives, and no NaN */
    monet__rmsnorm_forward(out, x, weight, 4, 1e-6f);
    for (int k = 0; k < 4; ++k) CHECK(out[k] == 0);
    x[1] = (float)NAN;
    monet__rmsnorm_forward(out, x, weight, 4, 1e-6f);
    for (int k = 0; k < 4; ++k) CHECK(out[k] != out[k]);
    x[1] = (float)HUGE_VAL;
    monet__rmsnorm_forward(out, x, weight, 4, 1e-6f);
    CHECK(out[1] != out[1]);
}

static void test_rope(void)
{
    begin("rope_table");
    for (int D = 2; D <= 68; D += 6) {
        double theta = D % 4 ? 10000 : 500000;
        int    S = 2050;
        float *cosine = floats((size_t)(S * D / 2)), *sine = floats((size_t)(S * D / 2));
        monet__rope_table(cosine, sine, S, D, theta);
        for (int pos = 0; pos < S; pos += pos < 70 ? 1 : 97)
            for (int d = 0; d < D / 2; ++d) {
                long double angle = (long double)pos * powl((long double)theta, -2.0L * d / D);
                double      c = (double)cosl(angle), s = (double)sinl(angle);
                compare(cosine[pos * (D / 2) + d], c, unit * fabs(c) + pos * 1e-15, 0);
                compare(sine[pos * (D / 2) + d], s, unit * fabs(s) + pos * 1e-15, 0);
            }
        drop_regions();
    }
    finish();
    begin("rope");
    for (int D = 2; D <= 134; D += 2) {
        float *x = floats((size_t)D), *out = floats((size_t)D);
        float *c = floats((size_t)(D / 2)), *s = floats((size_t)(D / 2));
        fill(x, (size_t)D, D % 4 ? EVEN : WIDE);
        fill(c, (size_t)(D / 2), EVEN);
        fill(s, (size_t)(D / 2), EVEN);
        memcpy(out, x, (size_t)D * sizeof *x);
        monet__rope_forward(out, c, s, D);
        for (int d = 0; d < D / 2; ++d) {
            double u = (double)x[d], v = (double)x[d + D / 2], cc = (double)c[d], ss = (double)s[d];
            double g = gamma_of(2);
            compare(out[d], u * cc - v * ss, g * (fabs(u * cc) + fabs(v * ss)), 2);
            compare(out[d + D / 2], v * cc + u * ss, g * (fabs(v * cc) + fabs(u * ss)), 2);
        }
        drop_regions();
    }
    finish();
}

/* ---- attention ------------------------------------------------------------------------------- */
typedef struct heads {
    int    n, D, padded;
    matrix keys, values;
    float *q, *out, *scores;
} heads;

static heads make_heads(monet_dtype dtype, int n, int D, float size)
{
    heads h;

    h.n = n;
    h.D = D;
    h.padded = (D + 31) / 32 * 32;
    h.keys = make_matrix(MONET_PANELS, dtype, n, n, h.padded, EVEN);
    h.values = make_matrix(MONET_SUMS, dtype, n, n, h.padded, EVEN);
    h.q = floats((size_t)h.padded);
    h.out = floats((size_t)h.padded);
    h.scores = floats((size_t)n);
    for (int d = 0; d < D; ++d) h.q[d] = size * uniform();
    return h;
}

/* The query of the last position; for f32 also in a block with those before it. */
static void run_heads(heads *h)
{
    monet__queries a;
    float         *q = floats((size_t)h->padded), *out = h->out;

    monet__to_split(q, h->q, (size_t)h->padded);
    a.kernels = monet__kernels_for(MONET_KERNELS_BEST);
    a.keys = h->keys.t.data, a.values = h->values.t.data;
    a.dtype = h->keys.t.dtype;
    a.key_rows = h->n, a.value_rows = (int)monet__panel_rows(&h->values.t);
    a.D = h->D, a.first = h->n - 1, a.n = 1;
    a.groups = (size_t)h->padded / GROUP;
    a.q[0] = q, a.p[0] = h->scores;
    monet__attention_forward(&a, &out);
    for (int k = 2; k <= h->n && k <= 32; k += 5) { /* in a block: the same bits */
        float *block = floats((size_t)(k * (h->n + h->padded))), *outs[32];
        a.first = h->n - k, a.n = k;
        for (int t = 0; t < k; ++t) {
            a.q[t] = q;
            a.p[t] = block + t * h->n;
            outs[t] = block + k * h->n + t * h->padded;
        }
        monet__attention_forward(&a, outs);
        CHECK(!memcmp(outs[k - 1], out, (size_t)h->padded * sizeof *out));
    }
}

/* A weight is wrong by a factor of at most e^(2 d), d the largest error of an exponent (the dot
   product, its scale, the difference to the maximum), then by exp, sum and quotient.             */
static void compare_heads(const heads *h)
{
    double *s = (double *)guarded((size_t)h->n * sizeof(double)), max = -HUGE_VAL, sum = 0, d = 0;
    double  scale = 1 / sqrt((double)h->D), relative;

    for (int j = 0; j < h->n; ++j) {
        s[j] = 0;
        for (int k = 0; k < h->padded; ++k)
            s[j] += (double)h->q[k] * h->keys.values[j * h->padded + k];
        s[j] *= scale;
        if (s[j] > max) max = s[j];
    }
    for (int j = 0; j < h->n; ++j) {
        double size = 0;
        for (int k = 0; k < h->padded; ++k)
            size += fabs((double)h->q[k] * h->keys.values[j * h->padded + k]);
        size = gamma_of(h->padded + 3) * scale * size + unit * fabs(s[j] - max);
        if (size > d) d = size;
    }
    for (int j = 0; j < h->n; ++j) sum += s[j] = exp(s[j] - max);
    relative = expm1(2 * d) + gamma_of(h->n + 8);
    for (int k = 0; k < h->padded; ++k) {
        double expected = 0, size = 0;
        for (int j = 0; j < h->n; ++j) {
            expected += s[j] / sum * h->values.values[j * h->padded + k];
            size += s[j] / sum * fabs(h->values.values[j * h->padded + k]);
        }
        compare(h->out[k], expected, (relative + gamma_of(h->n + 1)) * size + 1e-37 * h->n, h->n);
    }
}

static void test_attention(void)
{
    begin("attention");
    for (int dtype = 0; dtype < 3; ++dtype)
        for (int n = 1; n <= 67; ++n) {
            heads h = make_heads((monet_dtype)dtype, n, 2 * (1 + n % 35), n % 3 ? 3.0f : 100.0f);
            run_heads(&h);
            compare_heads(&h);
            drop_regions();
        }
    for (int k = 0; k < 3; ++k) {
        heads h = make_heads((monet_dtype)k, large[k + 4], 128, 3);
        run_heads(&h);
        compare_heads(&h);
        drop_regions();
    }
    finish();
}

static void test_attention_edges(void)
{
    heads h = make_heads(MONET_F32, 1, 6, 5);
    float *keys, *values, sum = 0;

    run_heads(&h); /* one position: exactly its value */
    for (int d = 0; d < 6; ++d) CHECK(h.out[d] == ((const float *)h.values.t.data)[d]);
    h = make_heads(MONET_F32, 64, 6, 0);
    run_heads(&h); /* all scores equal: all weights exactly 1/64 */
    for (int j = 0; j < 64; ++j) CHECK(h.scores[j] == 1.0f / 64);
    h = make_heads(MONET_F32, 67, 8, 200);
    keys = (float *)(uintptr_t)h.keys.t.data, values = (float *)(uintptr_t)h.values.t.data;
    for (int j = 0; j < 67 * GROUP; ++j) values[j] = 1;
    run_heads(&h); /* weights sum to 1 */
    for (int d = 0; d < 8; ++d) CHECK_NEAR(h.out[d], 1, 1e-6);
    for (int j = 0; j < 67; ++j) sum += h.scores[j];
    CHECK_NEAR(sum, 1, 1e-5);
    keys[3 * GROUP] = (float)NAN; /* NaN in, NaN out */
    run_heads(&h);
    for (int d = 0; d < 8; ++d) CHECK(h.out[d] != h.out[d]);
    keys[3 * GROUP] = 3e38f; /* a score that overflows to infinity is no number either */
    run_heads(&h);
    for (int d = 0; d < 8; ++d) CHECK(!(h.out[d] - h.out[d] == 0) || h.q[0] < 0);
    drop_regions();
}

/* ---- router ---------------------------------------------------------------------------------- */
/* False if a logit lies so near the cut that float may decide otherwise. */
static int router_oracle(double *g, double *bound, const float *z, double mean, double var,
                         double sigma, int N)
{
    double rstd = 1 / sqrt(var + (double)1e-5f), top = -HUGE_VAL, cut, sum = 0, far = 0;

    for (int i = 0; i < N; ++i)
        if ((double)z[i] > top) top = (double)z[i];
    cut = fmin((top - mean) * rstd, sigma);
    for (int i = 0; i < N; ++i) {
        double zn = ((double)z[i] - mean) * rstd, noise = gamma_of(5) * (fabs(zn) + fabs(cut));
        if (zn != cut && fabs(zn - cut) < noise && (double)z[i] != top) return 0;
        g[i] = zn >= cut || (double)z[i] == top ? exp((double)z[i] - top) : 0;
        if (g[i] > 0 && top - (double)z[i] > far) far = top - (double)z[i];
        sum += g[i];
    }
    for (int i = 0; i < N; ++i) {
        g[i] /= sum;
        bound[i] = (expm1(2 * unit * far) + gamma_of(N + 8)) * g[i] + (g[i] > 0 ? 1e-37 : 0);
    }
    return 1;
}

static int one_router(int N, float mean, float var, float sigma, float size)
{
    float  *z = floats((size_t)N), *before = floats((size_t)N);
    double *g = (double *)guarded((size_t)N * sizeof(double));
    double *bound = (double *)guarded((size_t)N * sizeof(double)), sum = 0;
    int     ok;

    for (int i = 0; i < N; ++i) z[i] = mean + size * (uniform() + uniform() + uniform());
    memcpy(before, z, (size_t)N * sizeof *z);
    ok = router_oracle(g, bound, z, (double)mean, (double)var, (double)sigma, N);
    if (!monet__router_forward(z, mean, var, sigma, N)) CHECK_EQ(N, -1);
    for (int i = 0; ok && i < N; ++i) compare(z[i], g[i], bound[i], 0);
    for (int i = 0; i < N; ++i) sum += (double)z[i];
    compare((float)sum, 1, 1e-6, 0);
    drop_regions();
    return ok;
}

static void test_router(void)
{
    int skipped = 0, total = 0;

    begin("router");
    for (int N = 1; N <= 67; ++N)
        for (int k = 0; k < 12; ++k, ++total)
            skipped += !one_router(N, uniform() * (k % 3 ? 1 : 50), 0.01f + (float)below(100) / 25,
                                   2 * uniform(), k % 4 ? 1 : 30);
    for (int k = 0; k < 40; ++k, ++total) skipped += !one_router(512, uniform(), 1, 2.1538747f, 1);
    finish();
    CHECK(skipped * 20 < total);
}

static void test_router_edges(void)
{
    static const float special[3] = {(float)NAN, (float)HUGE_VAL, (float)-HUGE_VAL};
    float              z[64];
    int                n = 0;

    for (int i = 0; i < 64; ++i) z[i] = 0.7f; /* all equal survive together, above the cut ... */
    CHECK(monet__router_forward(z, 0, 0.01f, 2, 64));
    for (int i = 0; i < 64; ++i) CHECK(z[i] == 1.0f / 64);
    for (int i = 0; i < 64; ++i) z[i] = -5; /* ... and below it */
    CHECK(monet__router_forward(z, 0, 1, 2, 64));
    for (int i = 0; i < 64; ++i) CHECK(z[i] == 1.0f / 64);
    for (int i = 0; i < 64; ++i) z[i] = i == 17 ? -1.0f : -3; /* all below: the largest alone */
    CHECK(monet__router_forward(z, 0, 1, 2, 64));
    for (int i = 0; i < 64; ++i) CHECK(z[i] == (i == 17));
    for (int i = 0; i < 64; ++i) z[i] = i % 9 == 4 ? -1.0f : -3; /* equal largest ones together */
    CHECK(monet__router_forward(z, 0, 1, 2, 64));
    for (int i = 0; i < 64; ++i) n += z[i] > 0;
    CHECK_EQ(n, 7);
    for (int i = 0; i < 64; ++i) z[i] = i ? 0 : 90; /* a survivor whose gate is 0: not active */
    CHECK(monet__router_forward(z, 0, 0, -1, 64) && z[0] == 1 && z[1] == 0);
    for (int i = 0; i < 64; ++i) z[i] = i % 2 ? 3e38f : -3e38f; /* normalising overflows */
    CHECK(monet__router_forward(z, 0, 0, 2, 64) && z[0] == 0 && z[1] == 1.0f / 32);
    for (int i = 0; i < 64; ++i) z[i] = -3e38f;
    CHECK(monet__router_forward(z, 3e38f, 0, 2, 64) && z[0] == 1.0f / 64);
    for (int i = 0; i < 64; ++i) z[i] = i < 2 ? 0.02f / (float)(i + 1) : 0.005f;
    /* normalised with the 1e-5 of the variance alone: 6.3, 3.2, 1.6 */
    CHECK(monet__router_forward(z, 0, 0, 2, 64) && z[0] > 0 && z[1] > 0 && z[2] == 0);
    for (int k = 0; k < 3; ++k)
        for (int at = 0; at < 64; at += 9) {
            for (int i = 0; i < 64; ++i) z[i] = i == at ? special[k] : uniform();
            CHECK(!monet__router_forward(z, 0, 1, 1, 64));
        }
    z[0] = -4;
    CHECK(monet__router_forward(z, 0, 1, 2, 1) && z[0] == 1);
}

/* ---- experts --------------------------------------------------------------------------------- */
typedef struct layer { /* one layer of experts, T tokens and what they route to */
    monet__moe     moe;
    monet__team   *team;
    monet__experts w;
    matrix         u[2], bias[2], v[2], b[2];
    int            T;
    float         *x, *split;
    monet__input   in;
    size_t         stride;
} layer;

typedef struct shape { int horizontal, C, N, M, H, T; } shape;

/* A vector of the tensor table: f32 rows. */
static matrix make_vector(int n, int kind)
{
    matrix m = make_matrix(MONET_ROWS, MONET_F32, 1, 1, n, kind);

    m.t.n_dims = 1;
    m.t.shape[0] = n;
    m.t.shape[1] = 1;
    return m;
}

static void make_weights(layer *l, const shape *s, monet_dtype dtype)
{
    int m = l->moe.m, N = s->N;

    for (int axis = 0; axis < 2; ++axis) {
        if (!s->horizontal || axis == 0) {
            l->u[axis] = make_matrix(MONET_PANELS, dtype, m, N * m, s->C, EVEN);
            l->bias[axis] = make_vector(N * m, EVEN);
            l->w.u[axis] = &l->u[axis].t;
            l->w.bias[axis] = &l->bias[axis].t;
        }
        if (!s->horizontal || axis == 1) {
            l->v[axis] = make_matrix(MONET_SUMS, dtype, s->M, N * s->M, l->moe.width, EVEN);
            l->b[axis] = make_matrix(MONET_ROWS, dtype, 1, N, l->moe.width, EVEN);
            l->w.v[axis] = &l->v[axis].t;
            l->w.b[axis] = &l->b[axis].t;
        }
    }
}

/* About `active` of N half-experts a head; 0 = all, equal; 1 = exactly one. */
static void make_gates(layer *l, int active)
{
    int N = l->moe.N, H = l->moe.H;

    for (int row = 0; row < 2 * l->T * H; ++row) {
        float *g = l->moe.gates + (size_t)row * (size_t)N, sum = 0;
        int    only = below(N);
        for (int i = 0; i < N; ++i) {
            g[i] = active == 0 || (active > 1 && below(N) < active) ? 1 + uniform() / 2 : 0;
            if (i == only) g[i] = 1;
            sum += active == 0 ? g[i] = 1 : g[i];
        }
        for (int i = 0; i < N; ++i) g[i] /= sum;
    }
    for (int k = 0; k < 2 * l->T; ++k)
        l->moe.n_active[k] = monet__active_list(l->moe.active + (size_t)k * (size_t)N,
                                                l->moe.gates + (size_t)(k * H) * (size_t)N, H, N);
}

/* The workspace has `slots` and `pairs`, or what a session would give it (0). */
static layer *make_layer(const shape *s, monet_dtype dtype, int threads, uint64_t slots,
                         uint64_t pairs)
{
    layer       *l = (layer *)guarded((sizeof *l + 15) / 16 * 16);
    monet_arch   arch;
    monet__arena arena;

    memset(&arch, 0, sizeof arch);
    arch.dim = s->C, arch.moe_experts = s->N, arch.moe_dim = s->M, arch.moe_heads = s->H;
    arch.moe_topk = 1;
    arch.decompose = s->horizontal ? MONET_HORIZONTAL : MONET_VERTICAL;
    l->T = s->T;
    l->stride = (size_t)(s->C + GROUP - 1) / GROUP * GROUP;
    l->team = (monet__team *)guarded(sizeof *l->team);
    set_team(l->team, threads);
    monet__moe_sizes(&l->moe, &arch, s->T);
    if (slots) l->moe.max_slots = slots;
    if (pairs) l->moe.max_pairs = pairs;
    memset(&arena, 0, sizeof arena);
    monet__moe_layout(&l->moe, &arena, threads, 1);
    arena.base = (char *)guarded(arena.used);
    arena.used = 0;
    monet__moe_layout(&l->moe, &arena, threads, 1);
    make_weights(l, s, dtype);
    l->x = floats((size_t)(s->T * s->C));
    l->split = floats((size_t)s->T * l->stride);
    fill(l->x, (size_t)(s->T * s->C), EVEN);
    for (int t = 0; t < s->T; ++t)
        monet__to_split(l->split + (size_t)t * l->stride, l->x + t * s->C, (size_t)s->C);
    l->in = monet__input_of(l->split, l->stride, s->T);
    return l;
}

/* Activation q of half-expert i of an axis, and how wrong it may be. */
static double activation(const layer *l, int axis, int i, int q, const float *x, double *error)
{
    int           row = i * l->moe.m + q, C = l->moe.C;
    const double *u = l->u[axis].values + row * C;
    double        h = l->bias[axis].values[row], size = fabs(h), wrong;

    for (int c = 0; c < C; ++c) h += u[c] * (double)x[c], size += fabs(u[c] * (double)x[c]);
    wrong = gamma_of(C + 1) * size;
    *error = (2 * fabs(h) + wrong) * wrong * 2 + unit * h * h;
    if (h <= 0) {
        *error = h + wrong > 0 ? (h + wrong) * (h + wrong) * 1.001 : 0;
        return 0;
    }
    return h * h;
}

typedef struct sums { double *y, *size, *error; } sums; /* (C) value, sum of |terms|, their error */

/* Adds p * (V rows of half-expert `unit_of` . a + bias), the definition of one expert's part. */
static void add_rows(const layer *l, sums *out, int axis, int unit_of, int first, const double *a,
                     const double *wrong, double p, int with_bias)
{
    int    width = l->moe.width, offset = axis && !l->moe.horizontal ? width : 0;

    for (int c = 0; c < width; ++c) {
        double bias = with_bias ? l->b[axis].values[unit_of * width + c] : 0;
        out->y[offset + c] += p * bias;
        out->size[offset + c] += fabs(p * bias);
        for (int q = 0; q < l->moe.m; ++q) {
            int    row = unit_of * l->moe.n_rows + first + q;
            double v = l->v[axis].values[row * width + c];
            out->y[offset + c] += p * v * a[q];
            out->size[offset + c] += fabs(p * v) * (a[q] + wrong[q]);
            out->error[offset + c] += fabs(p * v) * wrong[q];
        }
    }
}

/* One expert (i,j) with weight p: HD V_j a_i + b_j; VD both halves (architecture of the paper). */
static void add_expert(const layer *l, sums *out, int i, int j, double p, const double *a1,
                       const double *a2, const double *wrong1, const double *wrong2)
{
    int m = l->moe.m;

    if (l->moe.horizontal) {
        add_rows(l, out, 1, j, 0, a1 + i * m, wrong1 + i * m, p, 1);
        return;
    }
    add_rows(l, out, 0, i, 0, a1 + i * m, wrong1 + i * m, p, 1);
    add_rows(l, out, 0, i, m, a2 + j * m, wrong2 + j * m, p, 0);
    add_rows(l, out, 1, j, 0, a1 + i * m, wrong1 + i * m, p, 1);
    add_rows(l, out, 1, j, m, a2 + j * m, wrong2 + j * m, p, 0);
}

/* One token: all experts, one by one. */
static void compare_token(const layer *l, int t, const float *got)
{
    int          N = l->moe.N, H = l->moe.H, m = l->moe.m, C = l->moe.C, n;
    size_t       units = (size_t)(N * m);
    double      *a = (double *)calloc(4 * units + 3 * (size_t)C, sizeof(double)), k;
    const float *g1 = l->moe.gates + (size_t)(2 * t * H * N), *g2 = g1 + H * N;
    sums         out;

    out.y = a + 4 * units, out.size = out.y + C, out.error = out.size + C;
    for (int axis = 0; axis < (l->moe.horizontal ? 1 : 2); ++axis)
        for (int i = 0; i < N; ++i)
            for (int q = 0; q < m; ++q) {
                size_t at = (size_t)axis * units + (size_t)(i * m + q);
                a[at] = activation(l, axis, i, q, l->x + t * C, &a[2 * units + at]);
            }
    for (int i = 0; i < N; ++i)
        for (int j = 0; j < N; ++j) {
            double p = 0;
            for (int h = 0; h < H; ++h) p += (double)g1[h * N + i] * (double)g2[h * N + j];
            if (p > 0)
                add_expert(l, &out, i, j, p, a, a + units, a + 2 * units, a + 3 * units);
        }
    n = l->moe.n_active[2 * t] + l->moe.n_active[2 * t + 1];
    k = 2 * H + n + n * (l->moe.n_rows + 1) + 8; /* roundings on the way of one term, at most */
    for (int c = 0; c < C; ++c)
        compare(got[c], out.y[c], gamma_of(k) * out.size[c] + (1 + gamma_of(k)) * out.error[c], k);
    free(a);
}

static void run_layer(layer *l, float *out)
{
    l->moe.routed = NULL;
    monet__moe_forward(&l->moe, l->team, &l->w, &l->in);
    for (int t = 0; t < l->T; ++t) monet__moe_output(out + t * l->moe.C, &l->moe, t);
}

static const shape shapes[] = { /* horizontal, C, N, M, H, T */
    {1, 40, 17, 5, 1, 3}, {0, 40, 17, 6, 1, 3}, {1, 32, 16, 8, 3, 1}, {0, 64, 16, 8, 3, 1},
    {1, 2, 2, 1, 1, 1}, {0, 2, 2, 2, 1, 1}, {1, 33, 7, 3, 2, 37}, {0, 66, 7, 10, 2, 37},
    {1, 67, 31, 1, 4, 5}, {0, 134, 31, 2, 4, 5}, {1, 96, 64, 12, 6, 2}, {0, 96, 64, 12, 6, 2},
    {1, 130, 5, 67, 2, 4}, {0, 130, 5, 66, 2, 4}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void test_experts(void)
{
    begin("moe");
    for (int k = 0; k < N_SHAPES; ++k)
        for (int dtype = 0; dtype < 3; ++dtype)
            for (int active = 0; active < 4; ++active) {
                const shape *s = &shapes[k];
                layer       *l;
                float       *out;
                if (s->N > 30 && dtype != (active + regions.behind) % 3) continue; /* slow */
                l = make_layer(s, (monet_dtype)dtype, 1 + (k + active) % 4, 0, 0);
                out = floats((size_t)(s->T * s->C));
                make_gates(l, active);
                if (active == 0) CHECK_EQ(l->moe.n_active[0], s->N);
                if (active == 1 && s->H == 1) CHECK_EQ(l->moe.n_active[1], 1);
                run_layer(l, out);
                for (int t = 0; t < s->T; t += 1 + t / 3) compare_token(l, t, out + t * s->C);
                drop_regions();
            }
    finish();
}

/* Small workspaces cut the tokens into chunks; threads share the work; P may still be there from
   the layer before: nothing of it may change a bit.                                              */
static void test_chunks(void)
{
    static const int threads[] = {1, 2, 3, 8};

    for (int k = 0; k < N_SHAPES; ++k)
        for (int active = 0; active < 3; ++active) {
            const shape *s = &shapes[k];
            uint64_t     N = (uint64_t)s->N, seed = random_state;
            size_t       size = (size_t)(s->T * s->C) * sizeof(float);
            float       *first = floats(size / sizeof(float)), *out = floats(size / sizeof(float));
            int          different = 0;
            for (int way = 0; way < 8; ++way) {
                uint64_t slots = way & 1 ? N : 0, pairs = way & 2 ? N * N : 0;
                layer   *l;
                random_state = seed;
                l = make_layer(s, (monet_dtype)(k % 3), threads[(way + k) % 4], slots, pairs);
                make_gates(l, active);
                run_layer(l, way ? out : first);
                if (way) different += memcmp(first, out, size) != 0;
                monet__moe_forward(&l->moe, l->team, &l->w, &l->in);
                for (int t = 0; t < l->T; ++t) monet__moe_output(out + t * s->C, &l->moe, t);
                different += memcmp(first, out, size) != 0;
            }
            if (different) CHECK_EQ(different, 0);
            drop_regions();
        }
    CHECK(1);
}

/* Parts of the workspace do not overlap: two flags a token for the router. */
static void test_workspace(void)
{
    const shape s = {1, 32, 16, 4, 2, 64};
    layer      *l = make_layer(&s, MONET_F32, 1, 0, 0);

    CHECK((size_t)((char *)l->moe.slot - (char *)l->moe.bad) >= 2 * (size_t)s.T);
    drop_regions();
}

/* NaN in what an active half-expert reads comes out; in what nobody reads it does not. */
static void test_experts_not_finite(void)
{
    for (int horizontal = 0; horizontal < 2; ++horizontal)
        for (int used = 0; used < 2; ++used) {
            const shape s = {0, 40, 9, 4, 1, 2};
            shape       mine = s;
            layer      *l;
            float      *out = floats(2 * 40), *u;
            int         finite = 1, target = -1;
            mine.horizontal = horizontal;
            l = make_layer(&mine, MONET_F32, 2, 0, 0);
            make_gates(l, 2);
            for (int i = 0; i < 9; ++i) {
                int active = 0;
                for (int k = 0; k < l->moe.n_active[0]; ++k) active += l->moe.active[k] == i;
                for (int k = 0; k < l->moe.n_active[2]; ++k) active += l->moe.active[18 + k] == i;
                if ((active > 0) == used) target = i;
            }
            u = (float *)(uintptr_t)l->u[0].t.data;
            for (int q = 0; q < l->moe.m; ++q)
                for (int c = 0; c < 40; ++c)
                    u[monet_tensor_place(&l->u[0].t, target * l->moe.m + q, c)] = (float)NAN;
            run_layer(l, out);
            for (int c = 0; c < 80; ++c) finite = finite && out[c] - out[c] == 0;
            CHECK(target >= 0);
            CHECK_EQ(finite, !used);
            drop_regions();
        }
}

int main(void)
{
    for (regions.behind = 0; regions.behind < 2; ++regions.behind) {
        test_dot_panel();
        test_sum_panel();
        test_axpy();
        test_dot();
        test_sum();
        test_not_finite();
        test_linear();
        test_rmsnorm();
        test_rope();
        test_attention();
        test_attention_edges();
        test_router();
        test_router_edges();
        test_experts();
        if (regions.behind) test_chunks();
        test_workspace();
        test_experts_not_finite();
    }
    return test_end("test_layers");
}
