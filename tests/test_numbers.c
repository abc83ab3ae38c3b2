/* test_numbers.c: f16, bf16, XXH64, exp, the threshold of the router, places in tensors, logprob.

   cc -O2 -pthread -I. tests/test_numbers.c -o test_numbers -lm && ./test_numbers

   Every reference here is written another way than monet.h: in double, or by walking along the
   numbers in order. With the argument "long" all 2^32 floats are rounded, not every 251st.      */
#define _POSIX_C_SOURCE 200809L
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "test.h"

#include <stdlib.h>
#include <unistd.h>

/* ---- rounding to 16 bits: a walk ------------------------------------------------------------- */
typedef struct kind { /* of a 16-bit float */
    monet_dtype dtype;
    int         mantissa, bias; /* bits, bias of the exponent */
    uint32_t    infinity;
} kind;

static const kind kinds[2] = {{MONET_F16, 10, 15, 0x7c00}, {MONET_BF16, 7, 127, 0x7f80}};

/* What a 16-bit number without sign means; infinity counts as the next power of 2. */
static double value_of(const kind *k, uint32_t h)
{
    int      exponent = (int)(h >> k->mantissa);
    uint32_t digits = h & ((1u << k->mantissa) - 1);

    if (exponent == 0) return ldexp((double)digits, 1 - k->bias - k->mantissa);
    return ldexp((double)(digits + (1u << k->mantissa)), exponent - k->bias - k->mantissa);
}

static float float_of(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, 4);
    return f;
}

static uint32_t bits_of(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, 4);
    return bits;
}

static uint32_t narrow(const kind *k, float f)
{
    return k->dtype == MONET_F16 ? monet__to_f16(f) : monet__to_bf16(f);
}

static float widen(const kind *k, uint32_t h)
{
    return k->dtype == MONET_F16 ? monet__from_f16((uint16_t)h) : monet__from_bf16((uint16_t)h);
}

/* Both signs of a finite number or infinity must round to `expected`. */
static int rounds_to(const kind *k, uint32_t bits, uint32_t expected)
{
    return narrow(k, float_of(bits)) == expected &&
           narrow(k, float_of(bits | 0x80000000u)) == (expected | 0x8000u);
}

/* All positive floats from 0 to infinity in order: the nearest half `h` only moves up. */
static void test_walk(const kind *k, uint32_t stride)
{
    uint32_t h = 0, wrong = 0, bits = 0;
    double   middle = (value_of(k, 0) + value_of(k, 1)) / 2;

    for (; bits < 0x7f800000u; bits += stride) {
        double x = (double)float_of(bits);
        while (h < k->infinity && (x > middle || (x == middle && (h & 1)))) {
            ++h;
            middle = (value_of(k, h) + value_of(k, h + 1)) / 2;
        }
        if (!rounds_to(k, bits, h) && !wrong++) printf("    first: float 0x%08x\n", bits);
    }
    CHECK_EQ(wrong, 0);
    CHECK(rounds_to(k, 0x7f800000u, k->infinity));
    if (k->dtype == MONET_F16 || stride == 1) CHECK_EQ(h, k->infinity);
}

/* Around each 16-bit number and each tie: the float below, on and above. */
static void test_ties(const kind *k)
{
    uint32_t wrong = 0;

    for (uint32_t h = 0; h < k->infinity; ++h) {
        double   low = value_of(k, h), high = value_of(k, h + 1);
        uint32_t at = bits_of((float)low), tie = bits_of((float)((low + high) / 2));
        wrong += !rounds_to(k, at, h) || !rounds_to(k, at + 1, h);
        if (h) wrong += !rounds_to(k, at - 1, h);
        wrong += !rounds_to(k, tie - 1, h) || !rounds_to(k, tie + 1, h + 1);
        wrong += !rounds_to(k, tie, h & 1 ? h + 1 : h);
    }
    CHECK_EQ(wrong, 0);
}

static void test_widening(const kind *k)
{
    uint32_t wrong = 0, back = 0, nans = 0;

    for (uint32_t h = 0; h < 0x10000; ++h) {
        uint32_t rest = h & 0x7fffu;
        float    f = widen(k, h);
        double   expected = rest == k->infinity ? HUGE_VAL : value_of(k, rest);
        if (rest > k->infinity) { /* NaN, its sign and payload kept */
            nans += !(f != f) || bits_of(f) >> 31 != h >> 15;
            nans += (bits_of(f) & 0x7fffffu) >> (23 - k->mantissa) !=
                    (h & ((1u << k->mantissa) - 1));
            nans += (narrow(k, f) & 0x7fffu) <= k->infinity;
            continue;
        }
        wrong += (double)f != (h & 0x8000u ? -expected : expected);
        wrong += bits_of(f) >> 31 != h >> 15;
        back += narrow(k, f) != h;
    }
    CHECK_EQ(wrong, 0);
    CHECK_EQ(back, 0);
    CHECK_EQ(nans, 0);
}

static void test_nans(const kind *k, uint32_t stride)
{
    uint32_t wrong = 0;

    for (uint32_t bits = 0x7f800001u; bits <= 0x7fffffffu; bits += stride)
        for (uint32_t sign = 0; sign < 2; ++sign) {
            uint32_t h = narrow(k, float_of(bits | sign << 31));
            wrong += (h & 0x7fffu) <= k->infinity || h >> 15 != sign;
        }
    wrong += (narrow(k, float_of(0x7fffffffu)) & 0x7fffu) <= k->infinity;
    wrong += (narrow(k, float_of(0x7fff8c22u)) & 0x7fffu) <= k->infinity;
    CHECK_EQ(wrong, 0);
}

/* monet_convert: all pairs of types, odd addresses, nothing beside what was asked for. */
static void test_convert(void)
{
    static const float values[5] = {0.1f, -65519.9f, 1e-7f, 70000.0f, -0.0f};
    unsigned char      from[32], to[32];

    for (int a = 0; a < 3; ++a)
        for (int b = 0; b < 3; ++b) {
            size_t      from_size = a ? 2 : 4, to_size = b ? 2 : 4;
            monet_dtype src = (monet_dtype)a, dst = (monet_dtype)b;
            int         wrong = 0;
            memset(to, 0x5a, sizeof to);
            for (size_t k = 0; k < 5; ++k) {
                uint32_t h = a ? narrow(&kinds[a - 1], values[k]) : bits_of(values[k]);
                memcpy(from + 1 + k * from_size, &h, from_size);
            }
            CHECK_EQ(monet_convert(to + 3, dst, from + 1, src, 5), MONET_OK);
            for (size_t k = 0; k < 5; ++k) {
                uint32_t h = 0, expected = 0, got = 0;
                float    f;
                memcpy(&h, from + 1 + k * from_size, from_size);
                f = a ? widen(&kinds[a - 1], h) : float_of(h);
                expected = b ? narrow(&kinds[b - 1], f) : bits_of(f);
                memcpy(&got, to + 3 + k * to_size, to_size);
                wrong += got != expected;
            }
            CHECK_EQ(wrong, 0);
            CHECK(to[2] == 0x5a && to[3 + 5 * to_size] == 0x5a);
        }
    CHECK_EQ(monet_convert(NULL, MONET_F32, NULL, MONET_BF16, 0), MONET_OK);
    CHECK_EQ(monet_convert(NULL, MONET_F32, from, MONET_BF16, 1), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_convert(to, (monet_dtype)3, from, MONET_F32, 1), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_convert(to, MONET_F32, from, (monet_dtype)-1, 1), MONET_ERROR_ARGUMENT);
}

/* ---- XXH64, as its description says, all at once --------------------------------------------- */
static const uint64_t primes[6] = {0, 11400714785074694791u, 14029467366897019727u,
                                   1609587929392839161u, 9650029242287828579u,
                                   2870177450012600261u};

static uint64_t left(uint64_t x, unsigned n) { return (x << n) + (x >> (64 - n)); }

static uint64_t word_at(const unsigned char *p, int n)
{
    uint64_t x = 0;

    while (n-- > 0) x = x * 256 + p[n];
    return x;
}

static uint64_t lane_of(uint64_t lane, uint64_t input)
{
    return left(lane + input * primes[2], 31) * primes[1];
}

static uint64_t plain_xxh64(const unsigned char *p, size_t n)
{
    uint64_t v1 = primes[1] + primes[2], v2 = primes[2], v3 = 0, v4 = -primes[1], h = primes[5];
    size_t   i = 0;

    if (n >= 32) {
        for (; i + 32 <= n; i += 32) {
            v1 = lane_of(v1, word_at(p + i, 8)), v2 = lane_of(v2, word_at(p + i + 8, 8));
            v3 = lane_of(v3, word_at(p + i + 16, 8)), v4 = lane_of(v4, word_at(p + i + 24, 8));
        }
        h = left(v1, 1) + left(v2, 7) + left(v3, 12) + left(v4, 18);
        h = (h ^ lane_of(0, v1)) * primes[1] + primes[4];
        h = (h ^ lane_of(0, v2)) * primes[1] + primes[4];
        h = (h ^ lane_of(0, v3)) * primes[1] + primes[4];
        h = (h ^ lane_of(0, v4)) * primes[1] + primes[4];
    }
    h += n;
    for (; i + 8 <= n; i += 8)
        h = left(h ^ lane_of(0, word_at(p + i, 8)), 27) * primes[1] + primes[4];
    if (i + 4 <= n) h = left(h ^ word_at(p + i, 4) * primes[1], 23) * primes[2] + primes[3], i += 4;
    for (; i < n; ++i) h = left(h ^ p[i] * primes[5], 11) * primes[1];
    h = (h ^ (h >> 33)) * primes[2];
    h = (h ^ (h >> 29)) * primes[3];
    return h ^ (h >> 32);
}

static void test_hash(void)
{
    unsigned char text[136];
    uint64_t      seed = 1;
    int           wrong = 0, splits = 0;

    for (size_t k = 0; k < sizeof text; ++k) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        text[k] = (unsigned char)(seed >> 56);
    }
    CHECK(monet__hash_of("", 0) == 0xef46db3751d8e999u);
    CHECK(monet__hash_of("a", 1) == 0xd24ec4f1a98c6e5bu);
    CHECK(monet__hash_of("abc", 3) == 0x44bc2cf5ad770999u);
    for (size_t n = 0; n <= sizeof text; ++n) {
        uint64_t expected = plain_xxh64(text, n);
        wrong += monet__hash_of(text, n) != expected;
        for (size_t a = 0; a <= n; ++a)
            for (size_t b = a; b <= n; b += n > 70 ? 5 : 1) {
                monet__hash h;
                monet__hash_begin(&h);
                monet__hash_add(&h, text, a);
                monet__hash_add(&h, text + a, b - a);
                monet__hash_add(&h, text + b, n - b);
                splits += monet__hash_end(&h) != expected || monet__hash_end(&h) != expected;
            }
    }
    CHECK_EQ(wrong, 0);
    CHECK_EQ(splits, 0);
}

/* ---- exp, sigma, logprob --------------------------------------------------------------------- */
/* Error of monet__exp at x in units of the last place of the true value. */
static double exp_error(float x)
{
    double expected = exp((double)x);
    int    exponent;

    (void)frexp(expected, &exponent);
    return fabs((double)monet__exp(x) - expected) / ldexp(1, exponent - 24);
}

static void test_exp(uint32_t stride)
{
    double worst = 0;
    int    above_one = 0, zeros = 0, above = 0;

    for (uint32_t bits = 1; bits < 0x42ae999au; bits += stride) { /* up to 87.3 */
        double a = exp_error(float_of(bits)), b = exp_error(-float_of(bits));
        if (a > worst) worst = a;
        if (b > worst) worst = b;
        above_one += monet__exp(-float_of(bits)) > 1;
        zeros += monet__exp(-float_of(bits)) == 0;
    }
    for (uint32_t bits = 0x42ae0000u; float_of(bits) <= 89; ++bits) /* from 88.3 on also infinity */
        above += !(exp_error(float_of(bits)) <= 2) &&
                 !(float_of(bits) > 88.3f && monet__exp(float_of(bits)) == (float)HUGE_VAL);
    CHECK_NEAR(worst, 0, 2);
    CHECK_EQ(above, 0);
    CHECK_EQ(above_one, 0);
    CHECK_EQ(zeros, 0);
    printf("exp: worst error %.2f ulp\n", worst);
    CHECK(monet__exp(0.0f) == 1 && monet__exp(-0.0f) == 1);
    CHECK(monet__exp(1e-40f) == 1 && monet__exp(-1e-40f) == 1);
    CHECK(monet__exp(-88.0f) == 0 && monet__exp(-3e38f) == 0);
    CHECK(monet__exp((float)-HUGE_VAL) == 0 && !signbit(monet__exp(-100.0f)));
    CHECK(monet__exp((float)HUGE_VAL) == (float)HUGE_VAL && monet__exp(89.0f) == (float)HUGE_VAL);
    CHECK(monet__exp((float)NAN) != monet__exp((float)NAN));
    CHECK(monet__exp(-(float)NAN) != monet__exp(-(float)NAN));
}

static void test_sigma(void)
{
    CHECK_NEAR(monet__sigma(8, 512), 2.1538746940614555, 1e-12);
    CHECK_NEAR(monet__sigma(3, 16), 0.8871465590188758, 1e-12);
    CHECK_NEAR(monet__sigma(2, 20), 1.2815515655446008, 1e-12);
    CHECK_NEAR(monet__sigma(8, 64), 1.1503493803760079, 1e-12);
    CHECK_NEAR(monet__sigma(1, 2), 0, 1e-12);
    for (int k = 1; k < 65535; k += k < 100 ? 1 : 997) { /* and it is symmetric */
        double sigma = monet__sigma(k, 65535);
        if (!(fabs(sigma + monet__sigma(65535 - k, 65535)) < 1e-9) ||
            !(fabs(0.5 * erfc(sigma / sqrt(2.0)) * 65535 / k - 1) < 1e-12))
            CHECK_EQ(k, -1);
    }
}

static void test_logprob(void)
{
    float  logits[37];
    double sum = 0, total = 0;

    for (int v = 0; v < 37; ++v) logits[v] = (float)(v * v % 11) * 0.37f - 2, sum += exp(logits[v]);
    for (int v = 0; v < 37; ++v) {
        CHECK_NEAR(monet_logprob(logits, 37, v), logits[v] - log(sum), 1e-13);
        total += exp(monet_logprob(logits, 37, v));
    }
    CHECK_NEAR(total, 1, 1e-13);
    for (int v = 0; v < 37; ++v) logits[v] = v % 2 ? 3e38f : -3e38f; /* no overflow */
    CHECK_NEAR(monet_logprob(logits, 37, 1), -log(18.0), 1e-13);
    CHECK(monet_logprob(logits, 37, 0) < -1e38);
    logits[0] = (float)-HUGE_VAL;
    CHECK(monet_logprob(logits, 37, 0) == -HUGE_VAL);
    CHECK(monet_logprob(logits, 1, 1) == -HUGE_VAL && monet_logprob(logits, 37, -1) == -HUGE_VAL);
    CHECK(monet_logprob(NULL, 37, 0) == -HUGE_VAL);
    logits[0] = 12345.678f;
    CHECK(monet_logprob(logits, 1, 0) == 0);
}

/* ---- places in tensors ----------------------------------------------------------------------- */
static monet_tensor make_tensor(monet_layout layout, monet_dtype dtype, int panel, int64_t rows,
                                int64_t columns)
{
    monet_tensor t;

    memset(&t, 0, sizeof t);
    t.layout = layout;
    t.dtype = dtype;
    t.panel = panel;
    t.n_dims = 2;
    t.shape[0] = rows;
    t.shape[1] = columns;
    return t;
}

/* Every element has a place of its own, within the size. */
static int is_injective(const monet_tensor *t)
{
    static unsigned char seen[1 << 16];
    uint64_t             bytes = 0;
    size_t               size;
    int                  ok = monet__tensor_size(t, &bytes);

    size = (size_t)bytes / monet_dtype_size(t->dtype);
    if (!ok || size > sizeof seen) return 0;
    memset(seen, 0, size);
    for (int64_t r = 0; r < t->shape[0]; ++r)
        for (int64_t c = 0; c < t->shape[1]; ++c) {
            size_t place = monet_tensor_place(t, r, c);
            if (place >= size || seen[place]++) return 0;
        }
    return 1;
}

static void test_places(void)
{
    static const int columns[] = {1, 2, 3, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 97};
    static const int panels[] = {1, 2, 3, 4, 5, 6, 7, 8, 11, 16};
    int              wrong = 0, tested = 0;
    monet_tensor     t;

    for (int layout = 0; layout < 3; ++layout)
        for (int dtype = 0; dtype < 3; ++dtype)
            for (size_t c = 0; c < sizeof columns / sizeof *columns; ++c)
                for (size_t p = 0; p < sizeof panels / sizeof *panels; ++p)
                    for (int rows = 1; rows <= 35; rows += 1 + rows / 4) {
                        t = make_tensor((monet_layout)layout, (monet_dtype)dtype, panels[p], rows,
                                        columns[c]);
                        wrong += !is_injective(&t);
                        ++tested;
                    }
    CHECK_EQ(wrong, 0);
    CHECK(tested > 10000);
    t = make_tensor(MONET_PANELS, MONET_F32, 16, 40, 40); /* as the comment of >>tensors says */
    CHECK_EQ(monet_tensor_place(&t, 0, 1), 16);
    CHECK_EQ(monet_tensor_place(&t, 17, 35), 1024 + 512 + 32 + 17);
    t.dtype = MONET_BF16;
    CHECK_EQ(monet_tensor_place(&t, 17, 35), 1024 + 512 + 32 + 3);
    t = make_tensor(MONET_SUMS, MONET_BF16, 5, 40, 40);
    CHECK_EQ(monet_tensor_place(&t, 7, 33), 2 * 192 + 192 + 64 + 2);
    t = make_tensor(MONET_ROWS, MONET_BF16, 1, 40, 40);
    CHECK_EQ(monet_tensor_place(&t, 7, 33), 7 * 40 + 33);
}

/* ---- written files --------------------------------------------------------------------------- */
/* Element (row, column) of tensor k: exact in every dtype, and not 0. */
static float element(size_t k, int64_t row, int64_t column)
{
    return (float)(1 + (row * 31 + column * 7 + (int64_t)k * 13) % 101) / 64;
}

static void write_tensor(monet_writer *writer, const monet_tensor *t, size_t k, int64_t at_once)
{
    int64_t rows = t->n_dims == 1 ? 1 : t->shape[0];
    int64_t columns = t->n_dims == 1 ? t->shape[0] : t->shape[1];
    float  *values = (float *)malloc((size_t)(at_once * columns) * sizeof(float));
    int     wrong = 0;

    for (int64_t row = 0; row < rows; row += at_once) {
        int64_t count = rows - row < at_once ? rows - row : at_once;
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < columns; ++c) values[r * columns + c] = element(k, row + r, c);
        wrong += monet_writer_rows(writer, values, count, NULL) != MONET_OK;
    }
    if (wrong) CHECK_EQ(wrong, 0);
    free(values);
}

static int write_model(const char *path, monet_arch arch, monet_dtype dtype, int64_t at_once)
{
    monet_tensor        tensors[64];
    monet_writer_config config;
    monet_writer       *writer = NULL;
    monet_error         err = {{0}, MONET_OK};
    size_t              n = 0;
    int                 ok;

    memset(&config, 0, sizeof config);
    ok = monet_arch_check(&arch, &err) == MONET_OK &&
         monet_arch_tensors(&arch, dtype, tensors, 64, &n) == MONET_OK;
    config.arch = &arch;
    config.tensors = tensors;
    config.n_tensors = n;
    ok = ok && monet_writer_create(path, &config, &writer, &err) == MONET_OK;
    for (size_t k = 0; ok && k < n; ++k) write_tensor(writer, &tensors[k], k, at_once);
    ok = ok && monet_writer_finish(writer, &err) == MONET_OK;
    monet_writer_free(writer);
    if (!CHECK(ok)) printf("    %s\n", err.message);
    return ok;
}

/* What no element has as its place must be zero in the file. */
static int padding_is_zero(const monet_tensor *t)
{
    size_t         size = (size_t)t->size / monet_dtype_size(t->dtype);
    unsigned char *used = (unsigned char *)calloc(size, 1);
    int64_t        rows = t->n_dims == 1 ? 1 : t->shape[0];
    int64_t        columns = t->n_dims == 1 ? t->shape[0] : t->shape[1];
    int            ok = 1;

    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) used[monet_tensor_place(t, r, c)] = 1;
    for (size_t k = 0; k < size; ++k)
        if (!used[k] && monet__get(t->data, t->dtype, k) != 0) ok = 0;
    free(used);
    return ok;
}

/* monet_tensor_read gives back what was written, whole and in parts. */
static int reads_back(const monet_tensor *t, size_t k)
{
    int64_t rows = t->n_dims == 1 ? 1 : t->shape[0];
    int64_t columns = t->n_dims == 1 ? t->shape[0] : t->shape[1];
    float  *out = (float *)malloc((size_t)(rows * columns) * sizeof(float));
    int     ok = 1;

    for (int64_t step = 1; step <= rows; step = step * 3 + 1)
        for (int64_t first = 0; first < rows; first += step) {
            int64_t count = rows - first < step ? rows - first : step;
            ok = ok && monet_tensor_read(t, first, count, out) == MONET_OK;
            for (int64_t r = 0; r < count; ++r)
                for (int64_t c = 0; c < columns; ++c)
                    if (out[r * columns + c] != element(k, first + r, c)) ok = 0;
        }
    ok = ok && monet_tensor_read(t, rows, 1, out) == MONET_ERROR_ARGUMENT;
    ok = ok && monet_tensor_read(t, -1, 1, out) == MONET_ERROR_ARGUMENT;
    ok = ok && monet_tensor_read(t, 0, rows + 1, out) == MONET_ERROR_ARGUMENT;
    ok = ok && monet_tensor_read(t, INT64_MAX, INT64_MAX, out) == MONET_ERROR_ARGUMENT;
    ok = ok && monet_tensor_read(t, rows, 0, out) == MONET_OK;
    free(out);
    return ok;
}

static monet_arch small_arch(int decompose)
{
    monet_arch arch;

    memset(&arch, 0, sizeof arch);
    arch.vocab_size = 37;
    arch.dim = decompose == MONET_HORIZONTAL ? 35 * 2 : 2 * 34;
    arch.n_layers = 1;
    arch.n_heads = 1;
    arch.max_seq_len = 8;
    arch.moe_experts = 7;
    arch.moe_dim = decompose == MONET_HORIZONTAL ? 5 : 6;
    arch.moe_heads = 3;
    arch.moe_topk = 2;
    arch.decompose = decompose;
    return arch;
}

static void test_files(void)
{
    char path[] = "/tmp/test_numbers.XXXXXX";
    int  file = mkstemp(path);

    if (!CHECK(file >= 0)) return;
    close(file);
    for (int decompose = 0; decompose < 2; ++decompose)
        for (int dtype = 0; dtype < 3; ++dtype)
            for (int at_once = 1; at_once < 1000; at_once = at_once * 5 + 2) {
                monet_model *model = NULL;
                int          padding = 1, same = 1;
                if (!write_model(path, small_arch(decompose), (monet_dtype)dtype, at_once)) break;
                if (!CHECK_EQ(monet_model_load(path, NULL, &model, NULL), MONET_OK)) break;
                CHECK_EQ(monet_model_verify(model, NULL), MONET_OK);
                for (size_t k = 0; k < monet_model_tensor_count(model); ++k) {
                    padding = padding && padding_is_zero(monet_model_tensor(model, k));
                    same = same && reads_back(monet_model_tensor(model, k), k);
                }
                CHECK(padding);
                CHECK(same);
                monet_model_free(model);
            }
    remove(path);
}

int main(int argc, char **argv)
{
    uint32_t stride = argc > 1 && !strcmp(argv[1], "long") ? 1 : 251;

    for (int k = 0; k < 2; ++k) {
        test_walk(&kinds[k], stride);
        test_ties(&kinds[k]);
        test_widening(&kinds[k]);
        test_nans(&kinds[k], stride);
    }
    test_convert();
    test_hash();
    test_exp(stride == 1 ? 7 : 1021);
    test_sigma();
    test_logprob();
    test_places();
    test_files();
    return test_end("test_numbers");
}
