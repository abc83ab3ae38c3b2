/* Every kernel of every instruction set of this machine: sums against double with a proven bound,
   the same bits however tokens, rows and groups are split, guard pages on both sides, hard numbers.
   The quantised dtypes: format, round trip, error of the quantiser.
   cc -std=c99 -O1 -g -fsanitize=address,undefined -pthread -I. -Itests tests/test_kernels.c -lm  */
#if defined(__unix__) && !defined(__wasm__)
#define _DEFAULT_SOURCE
#include <sys/mman.h>
#define GUARDS 1
#else
#define GUARDS 0
#endif
#define MONET_IMPLEMENTATION
#define MONET_STATIC
#include "monet.h"
#include "test.h"

enum { GROUP = 32, LANES = 16, MOST_TOKENS = 70, SLOTS = 4, SLOT = 1 << 20, PAGE = 1 << 16 };
typedef enum numbers { PLAIN, CANCEL, WIDE, TINY, BROKEN, N_NUMBERS } numbers;

static const monet__kernels *K;
static uint64_t seed = 1;
static long     wrong_bounds, wrong_bits, n_bounds, n_bits;

static uint32_t rnd(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static int below(int n) { return (int)(rnd() % (uint32_t)n); }
static float real(void) { return (float)((double)rnd() / 1073741824.0 - 1.0); }

/* ---- memory between guard pages -------------------------------------------------------------- */
/* `end`: the last byte lies before a page that cannot be touched; else the first one behind one,
   or one byte later if `odd`.                                                                    */
static char *place(int slot, size_t size, int end, int odd)
{
    static char *slots[SLOTS];

    if (!slots[slot]) {
#if GUARDS
        char *p = (char *)mmap(NULL, SLOT + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                               0);
        if (p == (char *)MAP_FAILED || mprotect(p + PAGE, SLOT, PROT_READ | PROT_WRITE)) exit(2);
#else
        char *p = (char *)malloc(SLOT + 2 * PAGE);
        if (!p) exit(2);
#endif
        slots[slot] = p + PAGE;
    }
    if (size + 1 > SLOT) exit(2);
    return end ? slots[slot] + SLOT - size : slots[slot] + odd;
}

static float *floats(int slot, size_t n, int end)
{
    return (float *)(void *)place(slot, n * sizeof(float), end, 0);
}

/* ---- numbers --------------------------------------------------------------------------------- */
/* Number k of a row: what cancels in sums, spans 1e-30 to 1e30, is denormal, infinite or NaN. */
static float number(numbers kind, size_t k, float before)
{
    switch (kind) {
    case CANCEL: return k % 2 ? -before * (1 + real() * 1e-6f) : real() * 1000;
    case WIDE: return real() * (rnd() % 2 ? 1e30f : 1e-30f);
    case TINY: return real() * 1e-39f;
    case BROKEN: return rnd() % 97 ? real() : rnd() % 3 ? (float)HUGE_VAL : (float)NAN;
    default: return real();
    }
}

static void fill(float *x, size_t n, numbers kind)
{
    for (size_t k = 0; k < n; ++k) x[k] = number(kind, k, k ? x[k - 1] : 0);
}

static monet_tensor describe(monet_layout layout, monet_dtype dtype, int panel, int64_t rows,
                             int64_t columns)
{
    monet_tensor t;

    memset(&t, 0, sizeof t);
    t.dtype = t.source_dtype = dtype;
    t.layout = layout;
    t.panel = panel;
    t.n_dims = 2;
    t.shape[0] = rows;
    t.shape[1] = columns;
    return t;
}

/* The element as >>tensors of monet.h says, not as its code does. */
static float element(const monet_tensor *t, const char *data, size_t row, size_t column)
{
    size_t groups = ((size_t)t->shape[1] + GROUP - 1) / GROUP, panel = (size_t)t->panel;
    size_t c = column % GROUP, l, half, bytes = t->dtype == MONET_Q8 ? 32 : 16;
    const unsigned char *group, *scale;
    int                  q;

    if (t->dtype < MONET_Q8)
        return (float)monet__get(data, t->dtype,
                                 monet_tensor_place(t, (int64_t)row, (int64_t)column));
    group = (const unsigned char *)data +
            (row / panel * groups + column / GROUP) * panel * (bytes + 2);
    scale = group + panel * bytes + row % panel * 2;
    group += row % panel * bytes;
    half = t->layout == MONET_PANELS ? c % 2 : c / LANES;
    l = t->layout == MONET_PANELS ? c / 2 : c % LANES;
    if (t->dtype == MONET_Q8) q = group[half * LANES + l] - 128;
    else q = (half ? group[l] >> 4 : group[l] & 15) - 8;
    return monet__float((uint32_t)scale[1] << 24 | (uint32_t)scale[0] << 16) * (float)q;
}

/* Weights of one panel. What q8 and q4 refuse is made plain. */
static void fill_panel(monet_tensor *t, char *data, numbers kind)
{
    float      x[GROUP];
    monet_real group[GROUP];

    t->data = data;
    for (int64_t r = 0; r < t->shape[0]; ++r)
        for (size_t g = 0; g < (size_t)t->shape[1] / GROUP; ++g) {
            fill(x, GROUP, t->dtype == MONET_F16 && kind == WIDE ? CANCEL : kind);
            for (int k = 0; k < GROUP; ++k) group[k] = x[k];
            if (monet__group_write(t, data, r, g, group)) continue;
            for (int k = 0; k < GROUP; ++k) group[k] = real();
            (void)monet__group_write(t, data, r, g, group);
        }
}

/* ---- bounds ---------------------------------------------------------------------------------- */
/* |y - y64| <= gamma_k * sum |a b| + u |y64|, gamma_k = k u / (1 - k u), u = 2^-24; and what
   underflows. A sum that can overflow, or is not finite, has only to be of that kind.            */
static void bound(float y, double want, double absolute, size_t k)
{
    double u = 1.0 / 16777216, gamma = (double)k * u / (1 - (double)k * u);
    int    ok;

    if (absolute != absolute) ok = (y != y) == (want != want) && (y != y || y == (float)want);
    else if (absolute > 3e38) ok = want != HUGE_VAL || !(y < 3e38f);
    else ok = fabs((double)y - want) <= gamma * absolute + u * fabs(want) + (double)k * 1.5e-45;
    ++n_bounds;
    if (!ok && wrong_bounds++ < 5) printf("    %s: %.9g, expected %.9g\n", K->name, y, want);
}

/* A product of which infinity or NaN makes the bound meaningless is marked by NaN in `absolute`. */
static void add(double *sum, double *absolute, float a, float b)
{
    double product = (double)a * (double)b;

    *sum += product;
    *absolute += product - product == 0 ? fabs(product) : (double)NAN;
}

/* The same bits; of NaN only that it is one: WebAssembly promises no more. */
static void same(const float *a, const float *b, size_t n)
{
    int ok = 1;

    for (size_t k = 0; k < n; ++k)
        ok = ok && (memcmp(&a[k], &b[k], sizeof *a) == 0 || (a[k] != a[k] && b[k] != b[k]));
    ++n_bits, wrong_bits += !ok;
}

/* ---- panels ---------------------------------------------------------------------------------- */
typedef struct shape { int panel, rows; size_t groups; int tokens, end; numbers kind; } shape;

/* In parts: tokens in any number, or fewer rows. */
static void dot_parts(const shape *s, const monet_tensor *w, float *const *out,
                      const float *const *x, const float *first, size_t stride)
{
    float *all = out[0], few[MOST_TOKENS];
    size_t n = (size_t)s->tokens * stride - 3;

    for (int t = 0, some; t < s->tokens; t += some) {
        some = 1 + below(8) < s->tokens - t ? 1 + below(7) : 1;
        if (some > s->tokens - t) some = s->tokens - t;
        K->dot_panel(out + t, w->data, w->dtype, s->panel, s->rows, s->groups, x + t, some);
    }
    same(all, first, n);
    if (s->rows > MOST_TOKENS) return;
    for (int t = 0; t < s->tokens; t += 5) {
        int    rows = 1 + below(s->rows);
        float *one = few;
        K->dot_panel(&one, w->data, w->dtype, s->panel, rows, s->groups, x + t, 1);
        same(few, first + (size_t)t * stride, (size_t)rows);
    }
}

static void test_dot(const shape *s, monet_dtype dtype)
{
    size_t       columns = s->groups * GROUP, stride = (size_t)s->rows + 3, bytes;
    size_t       n = (size_t)s->tokens * stride - 3;
    monet_tensor w = describe(MONET_PANELS, dtype, s->panel, s->rows, (int64_t)columns);
    float       *x = floats(1, (size_t)s->tokens * columns, s->end);
    float       *out = floats(2, n, s->end), *to[MOST_TOKENS];
    float       *first = (float *)malloc(n * sizeof *first);
    const float *in[MOST_TOKENS];
    char        *data;

    bytes = monet__panel_bytes(&w);
    data = place(0, bytes, s->end, 1);
    memset(data, 0, bytes);
    fill_panel(&w, data, s->kind);
    fill(x, (size_t)s->tokens * columns, PLAIN);
    for (size_t k = 0; k < n; ++k) out[k] = 77;
    for (int t = 0; t < s->tokens; ++t)
        in[t] = x + (size_t)t * columns, to[t] = out + (size_t)t * stride;
    K->dot_panel(to, data, dtype, s->panel, s->rows, s->groups, in, s->tokens);
    for (int t = 0; t < s->tokens; ++t) {
        for (int r = below(4); r < s->rows; r += 1 + below(4)) {
            double sum = 0, absolute = 0;
            for (size_t c = 0; c < columns; ++c)
                add(&sum, &absolute, element(&w, data, (size_t)r, c), in[t][monet__split(c)]);
            bound(to[t][r], sum, absolute, columns);
        }
        for (int r = s->rows; r < s->rows + 3 && t + 1 < s->tokens; ++r)
            wrong_bits += to[t][r] != 77;
    }
    memcpy(first, out, n * sizeof *first);
    dot_parts(s, &w, to, in, first, stride);
    free(first);
}

/* In parts: tokens in any number, groups in two pieces. */
static void sum_parts(const shape *s, const monet_tensor *w, float *const *y,
                      const float *const *scales)
{
    int rows = (int)monet__panel_rows(w);

    for (int t = 0, some; t < s->tokens; t += some) {
        size_t cut = (size_t)below((int)s->groups + 1);
        float *part[MOST_TOKENS];
        some = 1 + below(7);
        if (some > s->tokens - t) some = s->tokens - t;
        for (int k = 0; k < some; ++k) part[k] = y[t + k] + cut * GROUP;
        K->sum_panel(y + t, w->data, w->dtype, rows, s->rows, cut, scales + t, some);
        K->sum_panel(part, (const char *)w->data + cut * monet__group_bytes(w), w->dtype, rows,
                     s->rows, s->groups - cut, scales + t, some);
    }
}

static void test_sum(const shape *s, monet_dtype dtype)
{
    size_t       columns = s->groups * GROUP, n = (size_t)s->tokens * columns, bytes;
    monet_tensor w = describe(MONET_SUMS, dtype, s->panel, s->rows, (int64_t)columns);
    float       *y = floats(1, n, s->end), *to[MOST_TOKENS];
    float       *a = floats(2, (size_t)(s->tokens * s->rows), s->end);
    float       *start = (float *)malloc(2 * n * sizeof *start), *first = start + n;
    const float *scales[MOST_TOKENS];
    char        *data;

    bytes = monet__panel_bytes(&w);
    data = place(0, bytes, s->end, 1);
    memset(data, 0, bytes);
    fill_panel(&w, data, s->kind);
    fill(y, n, PLAIN);
    fill(a, (size_t)(s->tokens * s->rows), PLAIN);
    memcpy(start, y, n * sizeof *y);
    for (int t = 0; t < s->tokens; ++t)
        to[t] = y + (size_t)t * columns, scales[t] = a + t * s->rows;
    K->sum_panel(to, data, dtype, (int)monet__panel_rows(&w), s->rows, s->groups, scales,
                 s->tokens);
    for (int t = 0; t < s->tokens; ++t)
        for (size_t c = 0; c < columns; c += 1 + rnd() % 9) {
            double sum = 0, absolute = 0;
            add(&sum, &absolute, start[(size_t)t * columns + c], 1);
            for (int r = 0; r < s->rows; ++r)
                add(&sum, &absolute, element(&w, data, (size_t)r, c), scales[t][r]);
            bound(to[t][c], sum, absolute, (size_t)s->rows + 1);
        }
    memcpy(first, y, n * sizeof *y);
    memcpy(y, start, n * sizeof *y);
    sum_parts(s, &w, to, scales);
    same(y, first, n);
    free(start);
}

static void test_outer(const shape *s)
{
    size_t       columns = s->groups * GROUP, n = (size_t)s->panel * columns;
    float       *w = floats(0, n, s->end);
    float       *x = floats(1, (size_t)s->tokens * columns, s->end);
    float       *a = floats(2, (size_t)(s->tokens * s->rows), s->end);
    float       *start = (float *)malloc(2 * n * sizeof *start), *first = start + n;
    const float *in[MOST_TOKENS], *scales[MOST_TOKENS];

    fill(w, n, PLAIN);
    fill(x, (size_t)s->tokens * columns, s->kind);
    fill(a, (size_t)(s->tokens * s->rows), PLAIN);
    memcpy(start, w, n * sizeof *w);
    for (int t = 0; t < s->tokens; ++t)
        in[t] = x + (size_t)t * columns, scales[t] = a + t * s->rows;
    K->outer_panel(w, s->panel, s->rows, s->groups, scales, in, s->tokens);
    for (size_t k = 0; k < n; k += 1 + rnd() % 9) {
        size_t r = k / GROUP % (size_t)s->panel;
        size_t c = k / GROUP / (size_t)s->panel * GROUP + k % GROUP;
        double sum = 0, absolute = 0;
        add(&sum, &absolute, start[k], 1);
        for (int t = 0; t < s->tokens && r < (size_t)s->rows; ++t)
            add(&sum, &absolute, in[t][c], scales[t][r]);
        bound(w[k], sum, absolute, (size_t)s->tokens + 1);
    }
    memcpy(first, w, n * sizeof *w);
    memcpy(w, start, n * sizeof *w);
    for (int t = 0, some; t < s->tokens; t += some) {
        some = 1 + below(7);
        if (some > s->tokens - t) some = s->tokens - t;
        K->outer_panel(w, s->panel, s->rows, s->groups, scales + t, in + t, some);
    }
    same(w, first, n);
    free(start);
}

/* ---- vectors --------------------------------------------------------------------------------- */
static void test_vectors(monet_dtype dtype, size_t n, int end, numbers kind)
{
    float *y = floats(1, n, end), start[300], scale = real();
    char  *row = place(0, n * monet_dtype_size(dtype), end, 0);
    double sum = 0, absolute = 0, two;

    for (size_t k = 0; k < n; ++k)
        monet__put(row, dtype, k, number(dtype == MONET_F16 && kind == WIDE ? PLAIN : kind, k, 1));
    fill(y, n, PLAIN);
    memcpy(start, y, n * sizeof *y);
    for (size_t k = 0; k < n; ++k) add(&sum, &absolute, y[k], (float)monet__get(row, dtype, k));
    bound(K->dot(y, row, dtype, 0, n), sum, absolute, n);
    K->axpy(y, scale, row, dtype, 0, n);
    for (size_t k = 0; k < n; ++k) {
        sum = start[k], absolute = fabs(sum), two = 0;
        add(&sum, &two, scale, (float)monet__get(row, dtype, k));
        bound(y[k], sum, absolute + two, 2);
    }
}

static void test_adamw(size_t n, int end)
{
    float *w = floats(0, n, end), *m = floats(1, n, end), *v = floats(2, n, end);
    float *g = floats(3, n, end);
    float  before[4], start[4][100];
    int    ok = 1;

    fill(w, n, PLAIN), fill(m, n, PLAIN), fill(g, n, PLAIN);
    for (size_t k = 0; k < n; ++k) {
        v[k] = fabsf(real()) * 1e-3f;
        start[0][k] = w[k], start[1][k] = m[k], start[2][k] = v[k], start[3][k] = g[k];
    }
    K->adamw(w, m, v, g, n, 0.5f, 0.9f, 0.95f, 0.99f, 0.02f, 0.3f, 1e-8f);
    for (size_t k = 0; k < n; ++k) {
        double d = start[3][k] * 0.5, mean = 0.9f * (double)start[1][k] + (1 - 0.9f) * d;
        double square = 0.95f * (double)start[2][k] + (1 - 0.95f) * d * d;
        double value = start[0][k] * 0.99f - 0.02f * mean / (sqrt(square / 0.3f) + 1e-8f);
        ok = ok && fabs(mean - m[k]) <= 3e-7 && fabs(square - v[k]) <= 1e-7 * (1 + square) &&
             fabs(value - w[k]) <= 1e-6 * (1 + fabs(value)) && g[k] == 0;
        for (int i = 0; i < 4; ++i) before[i] = start[i][k];
        K->adamw(before, before + 1, before + 2, before + 3, 1, 0.5f, 0.9f, 0.95f, 0.99f, 0.02f,
                 0.3f, 1e-8f);
        ok = ok && before[0] == w[k] && before[1] == m[k] && before[2] == v[k];
    }
    memcpy(start[0], w, n * sizeof *w);
    K->adamw(w, m, v, g, n, 1, 0.9f, 0.95f, 1, 0, 1, 1e-8f); /* rate 0: weights keep their bits */
    ok = ok && memcmp(start[0], w, n * sizeof *w) == 0;
    ++n_bounds, wrong_bounds += !ok;
}

static void test_softmax(size_t n, int end)
{
    float *x = floats(0, n, end), from[100], max, got;
    double want = 0, most = -1e30;
    int    ok = 1;

    for (size_t k = 0; k < n; ++k) {
        x[k] = from[k] = k && rnd() % 16 == 0 ? -(float)HUGE_VAL : real() * (rnd() % 8 ? 20 : 300);
        if ((double)from[k] * 0.5 > most) most = (double)from[k] * 0.5;
    }
    got = K->softmax(x, n, 0.5f, &max);
    for (size_t k = 0; k < n; ++k) {
        double e = exp((double)from[k] * 0.5 - most);
        want += e;
        ok = ok && fabs(x[k] - e) <= 2e-5 * e + 2e-38;
    }
    ok = ok && max == (float)most && fabs(got - want) <= 2e-5 * want;
    x[rnd() % n] = (float)NAN;
    got = K->softmax(x, n, 1, &max);
    ok = ok && got != got;
    ++n_bounds, wrong_bounds += !ok;
}

/* Rows of P: m numbers each, in lists that visit each of 9 rows once. */
static void test_lists(size_t m, int end)
{
    enum { N = 9 };
    static const uint16_t at[N] = {4, 0, 8, 2, 1, 7, 3, 5, 6};
    size_t stride = m + 1, n = N * stride - 1;
    float *rows = floats(0, n, end), *x = floats(1, m, end);
    float  p[N], start[N * 100], sums[100], out[N] = {0};

    fill(rows, n, PLAIN), fill(x, m, PLAIN), fill(p, N, PLAIN);
    K->dots(out, at, N, x, rows, stride, m);
    for (int k = 0; k < N; ++k) {
        double sum = 0, absolute = 0;
        for (size_t q = 0; q < m; ++q) add(&sum, &absolute, rows[at[k] * stride + q], x[q]);
        bound(out[k], sum, absolute, m);
    }
    memcpy(sums, x, m * sizeof *x);
    K->gather(x, at, p, N, rows, stride, m);
    for (size_t q = 0; q < m; ++q) {
        double sum = 0, absolute = 0;
        add(&sum, &absolute, sums[q], 1);
        for (int k = 0; k < N; ++k) add(&sum, &absolute, rows[at[k] * stride + q], p[k]);
        bound(x[q], sum, absolute, N + 1);
    }
    memcpy(start, rows, n * sizeof *rows);
    K->spread(rows, stride, at, p, N, x, m);
    for (size_t k = 0; k < n; ++k) {
        double sum = 0, absolute = 0;
        int    i = 0;
        add(&sum, &absolute, start[k], 1);
        while (at[i] != k / stride) ++i;
        if (k % stride < m) add(&sum, &absolute, p[i], x[k % stride]);
        bound(rows[k], sum, absolute, 2);
    }
}

/* ---- all sizes ------------------------------------------------------------------------------- */
static void test_panels(monet_dtype dtype, shape s)
{
    if (s.panel < s.rows) s.panel = s.rows;
    test_dot(&s, dtype);
    test_sum(&s, dtype);
    if (dtype == MONET_F32 && s.kind != BROKEN) test_outer(&s);
}

static void test_sizes(monet_dtype dtype)
{
    static const struct { int rows; size_t groups; int tokens; } large[] = {
        {16, 64, 7}, {16, 65, 33}, {8, 48, 64}, {12, 33, 6}, {256, 2, 32}};

    for (int n = 1; n <= 67; ++n) {
        shape s = {0, 1 + below(20), (size_t)(1 + below(5)), n, n % 2, PLAIN};
        s.panel = rnd() % 2 ? s.rows : s.rows + below(5);
        s.kind = (numbers)(n % N_NUMBERS);
        test_panels(dtype, s);
        s.rows = n, s.tokens = 1 + below(8), s.groups = 1, s.panel = 0;
        test_panels(dtype, s);
        s.rows = 1 + below(17), s.tokens = 1, s.groups = (size_t)n;
        test_panels(dtype, s);
    }
    for (size_t k = 0; k < sizeof large / sizeof *large; ++k) {
        shape s = {16, large[k].rows, large[k].groups, large[k].tokens, (int)k % 2, PLAIN};
        test_panels(dtype, s);
    }
}

static void test_path(monet_kernels path)
{
    K = monet__kernels_for(path);
    wrong_bounds = wrong_bits = n_bounds = n_bits = 0;
    for (int dtype = MONET_F32; dtype <= MONET_Q4; ++dtype) test_sizes((monet_dtype)dtype);
    for (size_t n = 1; n <= 67; ++n)
        for (int end = 0; end < 2; ++end) {
            for (int dtype = MONET_F32; dtype <= MONET_BF16; ++dtype)
                test_vectors((monet_dtype)dtype, n, end, (numbers)(n % N_NUMBERS));
            test_adamw(n, end);
            test_softmax(n, end);
            test_lists(n, end);
        }
    for (size_t n = 80; n <= 256; n += 16) test_vectors(MONET_F32, n, 1, PLAIN);
    K->dot_panel(NULL, place(0, 1, 0, 0), MONET_F32, 16, 16, 1, NULL, 0);
    K->sum_panel(NULL, place(0, 1, 0, 0), MONET_F32, 16, 16, 1, NULL, 0);
    printf("%-8s %ld sums, %ld comparisons of bits\n", K->name, n_bounds, n_bits);
    CHECK_EQ(wrong_bounds, 0);
    CHECK_EQ(wrong_bits, 0);
    CHECK(n_bounds > 100000 && n_bits > 1000);
}

/* ---- q8 and q4 ------------------------------------------------------------------------------- */
/* Reading, of whole tensors and of groups, gives what the format says; and the size is right. */
static void test_format(monet_layout layout, monet_dtype dtype)
{
    enum { ROWS = 23, COLUMNS = 70, PANEL = 5 };
    monet_tensor t = describe(layout, dtype, PANEL, ROWS, COLUMNS);
    size_t       step = dtype == MONET_Q8 ? 34 : 18;
    uint64_t     size = 0;
    float        out[ROWS * COLUMNS];
    char        *data;
    int          wrong = 0;

    CHECK(monet__tensor_size(&t, &size) && size == 25 * 3 * step);
    data = place(0, (size_t)size, 1, 0);
    t.data = data;
    for (uint64_t k = 0; k < size; ++k) data[k] = (char)(rnd() % 128); /* no NaN as a scale */
    CHECK_EQ(monet_tensor_read(&t, 0, ROWS, out), MONET_OK);
    for (size_t k = 0; k < ROWS * COLUMNS; ++k)
        wrong += out[k] != element(&t, data, k / COLUMNS, k % COLUMNS);
    CHECK_EQ(wrong, 0);
    CHECK_EQ(monet_tensor_place(&t, 1, 1), 0);
    t.layout = MONET_ROWS;
    CHECK_EQ(monet_tensor_read(&t, 0, 1, out), MONET_ERROR_ARGUMENT);
}

/* One row of 32 numbers written and read; returns the scale. */
static float round_trip(monet_real *out, const monet_real *x, monet_dtype dtype)
{
    monet_tensor t = describe(MONET_PANELS, dtype, 1, 1, GROUP);
    char         data[34];

    CHECK(monet__group_write(&t, data, 0, 0, x));
    monet__group_read(&t, data, 0, 0, out);
    return monet__from_bf16(monet__u16((const uint8_t *)data + (dtype == MONET_Q8 ? 32 : 16)));
}

static void test_quantiser(monet_dtype dtype)
{
    monet_real x[GROUP], y[GROUP], z[GROUP];
    float      row[GROUP];
    int        wrong = 0;

    for (int it = 0; it < 4000; ++it) {
        float  scale, most = 0;
        double error = 0, worst = 0, step;
        int    full = 0;
        fill(row, GROUP, it % 4 ? PLAIN : it % 8 ? WIDE : TINY);
        for (int k = 0; k < GROUP; ++k) {
            x[k] = row[k];
            if (fabsf(row[k]) > most) most = fabsf(row[k]);
        }
        scale = round_trip(y, x, dtype);
        for (int k = 0; k < GROUP; ++k) {
            double d = fabs((double)x[k] - (double)y[k]);
            error += d * d, worst = d > worst ? d : worst;
        }
        if (dtype == MONET_Q8) { /* the nearest code; the scale is no larger than needed */
            wrong += worst > 0.5001 * scale || scale > most / 127 * 1.008 + 1e-40;
            (void)round_trip(z, y, dtype);
            for (int k = 0; k < GROUP; ++k) full = full || fabs((double)y[k]) == 127.0 * scale;
            wrong += full && memcmp(y, z, sizeof y) != 0; /* the same scale again */
        } else { /* no worse than with the scale that gives the largest number 7 */
            step = most / 7.0 * 0.502 + 1e-40;
            wrong += error > GROUP * step * step;
        }
    }
    CHECK_EQ(wrong, 0);
}

static void test_quantiser_ends(monet_dtype dtype)
{
    static const float bad[] = {(float)NAN, (float)HUGE_VAL, -(float)HUGE_VAL, 3.4e38f, -3.35e38f};
    monet_tensor t = describe(MONET_SUMS, dtype, 1, 1, GROUP);
    monet_real   x[GROUP] = {0}, y[GROUP];
    char         data[34];
    int          q = dtype == MONET_Q8 ? 127 : 8;

    CHECK_EQ(round_trip(y, x, dtype), 0);
    for (int k = 0; k < GROUP; ++k) CHECK_EQ(y[k], 0);
    x[31] = 1e-45f; /* below every scale: becomes 0 */
    (void)round_trip(y, x, dtype);
    CHECK(y[31] >= 0 && y[31] < 1e-40f);
    for (size_t k = 0; k < sizeof bad / sizeof *bad; ++k) {
        x[7] = bad[k];
        CHECK(!monet__group_write(&t, data, 0, 0, x));
    }
    x[7] = 3.2e38f;
    (void)round_trip(y, x, dtype);
    CHECK_NEAR(y[7] / 3.2e38f, 1, 0.01);
    for (int k = 0; k < GROUP; ++k) x[k] = 0.25f * (float)(k % (q + q / 8) - q); /* codes: exact */
    (void)round_trip(y, x, dtype);
    CHECK(memcmp(x, y, sizeof x) == 0);
}

int main(void)
{
    static const monet_kernels paths[] = {MONET_KERNELS_SCALAR, MONET_KERNELS_AVX2,
                                          MONET_KERNELS_AVX512, MONET_KERNELS_NEON,
                                          MONET_KERNELS_WASM};
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon", "wasm"};

    for (size_t k = 0; k < sizeof paths / sizeof *paths; ++k)
        if (strcmp(monet_kernels_name(paths[k]), names[k]) == 0) test_path(paths[k]);
    for (int dtype = MONET_Q8; dtype <= MONET_Q4; ++dtype) {
        test_format(MONET_PANELS, (monet_dtype)dtype);
        test_format(MONET_SUMS, (monet_dtype)dtype);
        test_quantiser((monet_dtype)dtype);
        test_quantiser_ends((monet_dtype)dtype);
    }
    return test_end("test_kernels");
}
