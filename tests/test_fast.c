/* test_fast.c: the kernels of the fast mode, each table that this processor has, against sums in
   double. Weights, activations and scratch memory end at pages that cannot be read.

       cc -O2 -pthread -I. -Itests tests/test_fast.c -o test_fast -lm && ./test_fast              */
#define _DEFAULT_SOURCE
#define MONET_IMPLEMENTATION
#define MONET_STATIC
#include "monet.h"
#include "test.h"
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__linux__) && defined(__x86_64__)
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#endif

#define LONGEST 4096 /* columns */

static uint64_t seed = 42;

static uint32_t draw(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

/* -1..1, many sizes of numbers among them. */
static float number(void)
{
    float x = (float)((double)draw() / 1073741824.0 - 1);
    return draw() % 8 ? x : x * (draw() % 2 ? 64.0f : 1.0f / 1024);
}

/* The nearest bf16, ties to even, by arithmetic. */
static double nearest(double x)
{
    int e;
    if (x == 0) return 0;
    (void)frexp(x, &e);
    return ldexp(nearbyint(ldexp(x, 8 - e)), e - 8);
}

/* ---- memory that ends at a page without access ----------------------------------------------- */
typedef struct guarded {
    char *map;
    size_t size; /* with the last page */
} guarded;

static guarded guard_new(size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    guarded g;
    g.size = (n + page - 1) / page * page + page;
    g.map = (char *)mmap(NULL, g.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == MAP_FAILED || mprotect(g.map + g.size - page, page, PROT_NONE)) abort();
    return g;
}

/* The last n bytes. */
static void *guard_end(guarded g, size_t n)
{
    return g.map + g.size - (size_t)sysconf(_SC_PAGESIZE) - n;
}

/* ---- weights: bytes of panels, and what they mean -------------------------------------------- */
typedef struct weights {
    monet_dtype dtype;
    int panel_rows, n_rows, columns;
    size_t groups, bytes;
    char *data;
    double *value; /* (rows of all panels, 32*groups) */
} weights;

static guarded weight_memory, value_memory, x_memory, scratch_memory, out_memory;

/* Byte of column k of a row of a group, for codes. */
static size_t code_place(monet_dtype dtype, size_t row, size_t k)
{
    return dtype == MONET_Q8 ? row * 32 + k % 2 * 16 + k / 2 : row * 16 + k / 2;
}

static void weight_group(weights *w, char *group, double *value, size_t stride)
{
    size_t rows = (size_t)w->panel_rows, bytes = w->dtype == MONET_Q8 ? 32 : 16;
    for (size_t r = 0; r < rows; ++r) {
        uint16_t scale = monet__to_bf16(number() / 64);
        if (w->dtype >= MONET_Q8) memcpy(group + rows * bytes + 2 * r, &scale, 2);
        for (size_t k = 0; k < 32; ++k) {
            float    x = number();
            size_t   at = r * 32 + k % 2 * 16 + k / 2;
            uint16_t h = w->dtype == MONET_F16 ? monet__to_f16(x) : monet__to_bf16(x);
            if (w->dtype == MONET_F32) {
                memcpy(group + at * 4, &x, 4);
            } else if (w->dtype == MONET_F16) {
                memcpy(group + at * 2, &h, 2);
                x = monet__from_f16(h);
            } else if (w->dtype == MONET_BF16) {
                memcpy(group + (r * 32 + k) * 2, &h, 2);
                x = monet__from_bf16(h);
            } else {
                uint8_t *byte = (uint8_t *)group + code_place(w->dtype, r, k);
                int code = w->dtype == MONET_Q8 ? (int)(draw() % 255) - 127
                                                : (int)(draw() % 16) - 8;
                if (w->dtype == MONET_Q8) *byte = (uint8_t)(code + 128);
                else *byte = (uint8_t)(k % 2 ? (*byte & 15) | (code + 8) << 4
                                             : (*byte & 240) | (code + 8));
                x = monet__from_bf16(scale) * (float)code;
            }
            value[r * stride + k] = (double)x;
        }
    }
}

static weights weights_new(monet_dtype dtype, int panel_rows, int n_rows, int columns)
{
    size_t panels = (size_t)((n_rows + panel_rows - 1) / panel_rows);
    size_t size = (size_t)panel_rows * (dtype == MONET_Q8 ? 34 : dtype == MONET_Q4 ? 18
                                        : dtype == MONET_F32 ? 128 : 64);
    weights w;
    w.dtype = dtype, w.panel_rows = panel_rows, w.n_rows = n_rows, w.columns = columns;
    w.groups = (size_t)(columns + 31) / 32;
    w.bytes = panels * w.groups * size;
    w.data = (char *)guard_end(weight_memory, w.bytes);
    w.value = (double *)guard_end(value_memory, panels * (size_t)panel_rows * w.groups * 32 * 8);
    for (size_t p = 0; p < panels; ++p)
        for (size_t g = 0; g < w.groups; ++g)
            weight_group(&w, w.data + (p * w.groups + g) * size,
                         w.value + p * (size_t)panel_rows * w.groups * 32 + g * 32, w.groups * 32);
    return w;
}

/* ---- activations ----------------------------------------------------------------------------- */
/* One token: natural numbers (0 beyond `columns`) and the same in split order. */
static void activation(double *natural, monet_real *split, int columns)
{
    for (int k = 0; k < (columns + 31) / 32 * 32; ++k) {
        monet_real x = k < columns ? (monet_real)number() : 0;
        natural[k] = (double)x;
        split[k / 32 * 32 + k % 2 * 16 + k % 32 / 2] = x;
    }
}

enum { MOST = 80 }; /* tokens */
static double natural[MOST][LONGEST];
static monet_real split[LONGEST];

/* Largest error by what it may be: 1 is the limit. Reference 0: rounded inputs, 1: true ones. */
static double excess(const weights *w, const double *x, int row, double found, int parts,
                     int reference)
{
    const double *value = w->value + (size_t)row * w->groups * 32;
    double sum = 0, size = 0, limit;
    for (size_t k = 0; k < w->groups * 32; ++k) {
        double a = value[k], b = x[k];
        if (!reference) a = nearest(a);
        if (!reference && parts == 1) b = nearest(b);
        sum += a * b;
        size += fabs(a * b);
    }
    limit = ((double)w->columns * parts + 4) * ldexp(1.0, -24) * size; /* of sums in f32 */
    if (reference) limit += (parts == 1 ? 1 : 0) * ldexp(1.004, -8) * size +
                            (w->dtype == MONET_BF16 ? 0 : 1) * ldexp(1.004, -8) * size;
    return found - found == 0 ? fabs(found - sum) / (limit + 1e-33) : 1e9;
}

/* One product; order = 0: rows of tokens at one distance, 1: anywhere. */
static void dot_case(const monet__fast *fast, monet_dtype dtype, int panel_rows, int n_rows,
                     int columns, int n_tokens, int parts, int order)
{
    weights          w = weights_new(dtype, panel_rows, n_rows, columns);
    size_t           row = w.groups * 32 * (size_t)parts, pad = draw() % 3 * 32;
    const uint16_t  *x[MOST];
    monet_real      *out[MOST];
    uint16_t        *base = (uint16_t *)guard_end(x_memory, ((row + pad) * MOST - pad) * 2);
    void            *scratch = guard_end(scratch_memory, monet__fast_scratch(w.groups));
    double           worst = 0;
    int              wrong = 0;
    for (int t = 0; t < n_tokens; ++t) {
        size_t at = (size_t)(order ? (t * 29 + 7) % MOST : MOST - n_tokens + t);
        x[t] = base + at * (row + pad);
        out[t] = (monet_real *)(void *)out_memory.map + (size_t)t * (size_t)(n_rows + 3);
        for (int r = 0; r < n_rows + 3; ++r) out[t][r] = 12345;
        activation(natural[t], split, columns);
        fast->round(base + at * (row + pad), split, w.groups, parts);
    }
    monet__fast_dot(fast, out, w.data, dtype, panel_rows, n_rows, w.groups, x, parts, n_tokens,
                    scratch);
    for (int t = 0; t < n_tokens; ++t) {
        for (int r = 0; r < n_rows; ++r)
            for (int reference = 0; reference < 2; ++reference) {
                double e = excess(&w, natural[t], r, (double)out[t][r], parts, reference);
                if (!(e <= worst)) worst = e;
            }
        for (int r = n_rows; r < n_rows + 3; ++r) wrong += out[t][r] != 12345;
    }
    /* a token alone gives the same bits */
    for (int t = 0; t < n_tokens; t += 7) {
        monet_real alone[200], *one = alone;
        monet__fast_dot(fast, &one, w.data, dtype, panel_rows, n_rows, w.groups, x + t, parts, 1,
                        scratch);
        wrong += memcmp(alone, out[t], (size_t)n_rows * sizeof *alone) != 0;
    }
    if (!CHECK(worst <= 1) || !CHECK_EQ(wrong, 0))
        printf("    %s dtype %d, panels of %d, %d rows, %d columns, %d tokens, parts %d: %g\n",
               fast->name, (int)dtype, panel_rows, n_rows, columns, n_tokens, parts, worst);
}

static void test_dot(const monet__fast *fast)
{
    static const int tokens[] = {1, 2, 15, 16, 17, 31, 32, 33, 48, 67};
    if (!fast->step) return;
    for (int dtype = MONET_F32; dtype <= MONET_Q4; ++dtype) {
        for (int rows = 1; rows <= 33; ++rows)
            dot_case(fast, (monet_dtype)dtype, rows, rows, 1 + (int)(draw() % 100),
                     tokens[draw() % 10], 1, rows % 2);
        for (int k = 0; k < 12; ++k) /* several panels, the last one not all used */
            dot_case(fast, (monet_dtype)dtype, k % 2 ? 16 : 1 + k, 1 + (int)(draw() % 150),
                     1 + (int)(draw() % 200), tokens[k % 10], k % 3 ? 1 : 3, k % 2);
        dot_case(fast, (monet_dtype)dtype, 16, 150, 1030, 40, 1, 0);
    }
    for (int columns = 1; columns <= 200; columns += 7)
        dot_case(fast, MONET_BF16, 16, 16, columns, 18, columns % 2 ? 1 : 3, 1);
    dot_case(fast, MONET_BF16, 16, 20, LONGEST, 35, 3, 0);
    dot_case(fast, MONET_BF16, 8, 8, LONGEST, 60, 1, 1);
    dot_case(fast, MONET_Q8, 64, 64, 77, MOST, 1, 1);
}

/* NaN and infinity reach their token and no other. */
static void test_not_finite(const monet__fast *fast)
{
    weights     w = weights_new(MONET_BF16, 16, 16, 64);
    uint16_t    rows[20][64];
    monet_real  out[20][16], *to[20];
    const uint16_t *x[20];
    int         nan = 0, finite = 0;
    if (!fast->step) return;
    for (int t = 0; t < 20; ++t) {
        activation(natural[0], split, 64);
        if (t == 3) split[40] = (monet_real)NAN;
        if (t == 18) split[0] = (monet_real)INFINITY;
        fast->round(rows[t], split, 2, 1);
        x[t] = rows[t], to[t] = out[t];
    }
    monet__fast_dot(fast, to, w.data, MONET_BF16, 16, 16, 2, x, 1, 20,
                    guard_end(scratch_memory, monet__fast_scratch(2)));
    for (int t = 0; t < 20; ++t)
        for (int r = 0; r < 16; ++r) {
            bool good = out[t][r] - out[t][r] == 0;
            nan += (t == 3 || t == 18) && !good;
            finite += t != 3 && t != 18 && good;
        }
    CHECK_EQ(nan, 32);
    CHECK_EQ(finite, 288);
}

/* ---- rounding to bf16 ------------------------------------------------------------------------ */
static void test_narrow(const monet__fast *fast)
{
    static const float special[] = {0.0f, -0.0f, 1.00390625f, 1.01171875f, 3.4e38f, 1e-40f,
                                    -1e-45f, INFINITY, -INFINITY, NAN, 1.1754944e-38f};
    uint16_t   one[96], three[288], expected[288];
    monet_real x[96], natural_x[96];
    int        wrong = 0;
    if (!fast->round) return;
    for (int round = 0; round < 300; ++round) {
        for (int k = 0; k < 96; ++k) {
            uint32_t bits = draw() << 1 ^ draw();
            float    f = round < 200 ? number() : monet__float(bits);
            if (round == 0 && k < 11) f = special[k];
            natural_x[k] = (monet_real)f;
            x[k / 32 * 32 + k % 2 * 16 + k % 32 / 2] = (monet_real)f;
        }
        fast->round(one, x, 3, 1);
        fast->round(three, x, 3, 3);
        monet__round(expected, x, 3, 3);
        wrong += memcmp(expected, three, sizeof three) != 0 && round < 200 && round > 0;
        for (int k = 0; k < 96; ++k) {
            double f = (double)natural_x[k], sum = 0;
            for (int p = 0; p < 3; ++p) sum += (double)monet__from_bf16(three[p * 96 + k]);
            wrong += one[k] != monet__to_bf16((float)natural_x[k]) && f == f;
            wrong += f == f ? fabs(f) > 1e-30 && fabs(f) < 3.3e38 && sum != f
                            : sum == sum || (one[k] & 0x7fff) <= 0x7f80;
        }
    }
    CHECK_EQ(wrong, 0);
}

/* ---- bytes ----------------------------------------------------------------------------------- */
static void test_quantize(const monet__fast *fast)
{
    monet__codes codes[4], expected[4];
    int          wrong = 0;
    if (!fast->quantize) return;
    for (int round = 0; round < 500; ++round) {
        activation(natural[0], split, 128);
        for (int k = 0; k < 32; ++k) {
            if (round % 5 == 1) split[k] = 0;
            if (round % 5 == 2) split[k] *= (monet_real)1e-36;
        }
        if (round % 5 == 3) split[5] = (monet_real)NAN;
        if (round % 5 == 4) split[31] = (monet_real)INFINITY;
        fast->quantize(codes, split, 4);
        monet__quantize(expected, split, 4);
        for (int g = 0; g < 4; ++g) {
            const monet__codes *c = codes + g;
            int32_t             fix8[8] = {0}, fix4[4] = {0};
            wrong += memcmp(c->code, expected[g].code, 32) != 0;
            wrong += memcmp(&c->scale, &expected[g].scale, 4) != 0 && c->scale == c->scale;
            for (int k = 0; k < 32; ++k) {
                double x = (double)split[g * 32 + k], s = (double)c->scale;
                fix8[k / 4] -= 128 * c->code[k], fix4[k / 4 % 4] -= 8 * c->code[k];
                wrong += c->code[k] < -127;
                if (s == s) wrong += fabs(x - s * c->code[k]) > s * 0.5001 + 1e-30;
            }
            wrong += memcmp(fix8, c->fix8, sizeof fix8) || memcmp(fix4, c->fix4, sizeof fix4);
            wrong += (c->scale != c->scale) != (g == 0 && round % 5 >= 3);
        }
    }
    CHECK_EQ(wrong, 0);
}

static void int8_case(const monet__fast *fast, monet_dtype dtype, int panel_rows, int n_rows,
                      int columns)
{
    weights       w = weights_new(dtype, panel_rows, n_rows, columns);
    monet__codes *codes = (monet__codes *)guard_end(x_memory, w.groups * sizeof *codes);
    monet_real   *out = (monet_real *)guard_end(out_memory, (size_t)n_rows * sizeof *out);
    monet_real    same[200];
    double        worst = 0;
    activation(natural[0], split, columns);
    fast->quantize(codes, split, w.groups);
    fast->dot_int8(out, w.data, dtype, panel_rows, n_rows, w.groups, codes);
    monet__dot_int8(same, w.data, dtype, panel_rows, n_rows, w.groups, codes);
    for (int r = 0; r < n_rows; ++r) {
        const double *value = w.value + (size_t)r * w.groups * 32;
        double        sum = 0, size = 0, truth = 0, lost = 0, e;
        for (size_t k = 0; k < w.groups * 32; ++k) {
            const monet__codes *c = codes + k / 32;
            double x = (double)c->scale * c->code[k % 2 * 16 + k % 32 / 2];
            sum += value[k] * x, size += fabs(value[k] * x);
            truth += value[k] * natural[0][k];
            lost += fabs(value[k]) * 0.5001 * (double)c->scale;
        }
        size *= ((double)w.groups + 6) * ldexp(1.0, -24);
        e = fmax(fabs((double)out[r] - sum), fabs((double)out[r] - (double)same[r]));
        e /= size + 1e-33;
        if (!(e <= worst)) worst = e;
        e = fabs((double)out[r] - truth) / (size + lost + 1e-33);
        if (!(e <= worst)) worst = e;
    }
    if (!CHECK(worst <= 2))
        printf("    %s dtype %d, panels of %d, %d rows, %d columns: %g\n", fast->name, (int)dtype,
               panel_rows, n_rows, columns, worst);
}

static void test_int8(const monet__fast *fast)
{
    if (!fast->dot_int8) return;
    for (int dtype = MONET_Q8; dtype <= MONET_Q4; ++dtype) {
        for (int rows = 1; rows <= 66; ++rows)
            int8_case(fast, (monet_dtype)dtype, rows, rows, 1 + (int)(draw() % 200));
        for (int k = 0; k < 40; ++k)
            int8_case(fast, (monet_dtype)dtype, k % 2 ? 16 : 1 + k, 1 + (int)(draw() % 190),
                      1 + (int)(draw() % 300));
        int8_case(fast, (monet_dtype)dtype, 16, 64, LONGEST);
        int8_case(fast, (monet_dtype)dtype, 8, 8, LONGEST);
    }
}

/* ---- where tiles are refused ----------------------------------------------------------------- */
#if defined(__linux__) && defined(__x86_64__)
static void test_refused(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 158, 0, 1), /* arch_prctl */
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {4, code};
    int               status = 0;
    pid_t             child = fork();
    if (child == 0) {
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) _exit(2);
        _exit(strcmp(monet__fast_for(MONET_KERNELS_AMX)->name, "amx") == 0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) return;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 2) printf("note: no system call filter here\n");
    else CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

int main(void)
{
    static const monet_kernels all[] = {MONET_KERNELS_SCALAR, MONET_KERNELS_AVX2,
                                        MONET_KERNELS_AVX512, MONET_KERNELS_BF16,
                                        MONET_KERNELS_AMX, MONET_KERNELS_BEST};
    const monet__fast *done[6];
    weight_memory = guard_new(160 * LONGEST * 4 + 160 * 1024);
    value_memory = guard_new(200 * LONGEST * 8);
    x_memory = guard_new(MOST * (LONGEST * 3 + 64) * 2);
    out_memory = guard_new(MOST * 256 * sizeof(monet_real));
    scratch_memory = guard_new(monet__fast_scratch(LONGEST / 32));
    for (int k = 0; k < 6; ++k) {
        int seen = 0;
        done[k] = monet__fast_for(all[k]);
        for (int j = 0; j < k; ++j) seen += done[j] == done[k];
        if (seen) continue;
        printf("table %s\n", done[k]->name);
        test_narrow(done[k]);
        test_dot(done[k]);
        test_not_finite(done[k]);
        test_quantize(done[k]);
        test_int8(done[k]);
    }
#if defined(__linux__) && defined(__x86_64__)
    test_refused();
#endif
    return test_end("fast");
}
