/* limits.h: what this machine can do at most, measured: bytes a second that come out of DRAM,
   multiplications and additions a second in each arithmetic that it has.

       limits_machine m;
       if (!limits_open(&m, 25, &err)) ...            each measurement takes 25 ms
       double bytes = limits_measure(&m, LIMIT_READ, 2);   two threads at once, per second
       limits_close(&m);

   A limit counts a multiplication and an addition as two. All threads of a measurement run at the
   same time and until the same moment. Inner loops use intrinsics under target attributes, chosen
   by what the processor says; the program itself needs no -march.                              */
#ifndef TOOL_LIMITS_H
#define TOOL_LIMITS_H

#include "common.h"
#include <pthread.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LIMITS_X86 1
#include <cpuid.h>
#include <immintrin.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif
#else
#define LIMITS_X86 0
#endif

typedef enum limit {
    LIMIT_READ,     /* bytes from DRAM */
    LIMIT_F32,      /* f32 FMA, the widest there is */
    LIMIT_BF16,     /* AVX512-BF16 (vdpbf16ps) */
    LIMIT_INT8,     /* AVX512-VNNI (vpdpbusd) */
    LIMIT_AMX_BF16, /* AMX tiles, loads of tiles included */
    LIMIT_AMX_INT8,
    LIMIT_COUNT
} limit;

static const char *const limit_names[LIMIT_COUNT] = {"read", "f32", "bf16", "int8", "amx-bf16",
                                                     "amx-int8"};

#define LIMITS_THREADS 256

typedef struct limits_machine {
    bool     has[LIMIT_COUNT];
    char    *buffer;               /* larger than the caches */
    size_t   size, at;             /* of the buffer; where each thread goes on in its part */
    double   seconds;              /* of one measurement */
    int      streams;              /* of the last measurement of LIMIT_READ: the best of 1, 4, 8 */
    const char *f32_name;
} limits_machine;

/* A loop does `rounds` of its work and returns something that depends on all of it. */
typedef float (*limits_loop)(size_t rounds);

#define LIMITS_12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

/* ---- arithmetic ------------------------------------------------------------------------------
   Twelve independent sums hide the latency of two units and fit into 16 registers with the two
   operands; an array of them would not stay in registers in every compiler.                    */

typedef float limits_v4 __attribute__((vector_size(16)));

static TOOL_UNUSED float limits__plain(size_t rounds)
{
    const limits_v4 x = {0.999f, 0.998f, 0.997f, 0.996f}, y = {0.1f, 0.2f, 0.3f, 0.4f};
    limits_v4 sum = {0, 0, 0, 0};
#define LIMITS_START(k) limits_v4 a##k = {k, 1, 2, 3};
#define LIMITS_STEP(k) a##k = a##k * x + y;
#define LIMITS_ADD(k) sum += a##k;
    LIMITS_12(LIMITS_START)
    while (rounds-- > 0) {
        LIMITS_12(LIMITS_STEP)
    }
    LIMITS_12(LIMITS_ADD)
#undef LIMITS_START
#undef LIMITS_STEP
#undef LIMITS_ADD
    return sum[0] + sum[1] + sum[2] + sum[3];
}

#if LIMITS_X86
__attribute__((target("avx2,fma"))) static TOOL_UNUSED float limits__avx2(size_t rounds)
{
    const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.1f);
    __m256 sum = _mm256_setzero_ps();
#define LIMITS_START(k) __m256 a##k = _mm256_set1_ps((float)k);
#define LIMITS_STEP(k) a##k = _mm256_fmadd_ps(a##k, x, y);
#define LIMITS_ADD(k) sum = _mm256_add_ps(sum, a##k);
    LIMITS_12(LIMITS_START)
    while (rounds-- > 0) {
        LIMITS_12(LIMITS_STEP)
    }
    LIMITS_12(LIMITS_ADD)
#undef LIMITS_START
#undef LIMITS_STEP
#undef LIMITS_ADD
    return _mm256_cvtss_f32(sum);
}

__attribute__((target("avx512f"))) static TOOL_UNUSED float limits__avx512(size_t rounds)
{
    const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.1f);
    __m512 sum = _mm512_setzero_ps();
#define LIMITS_START(k) __m512 a##k = _mm512_set1_ps((float)k);
#define LIMITS_STEP(k) a##k = _mm512_fmadd_ps(a##k, x, y);
#define LIMITS_ADD(k) sum = _mm512_add_ps(sum, a##k);
    LIMITS_12(LIMITS_START)
    while (rounds-- > 0) {
        LIMITS_12(LIMITS_STEP)
    }
    LIMITS_12(LIMITS_ADD)
#undef LIMITS_START
#undef LIMITS_STEP
#undef LIMITS_ADD
    return _mm512_cvtss_f32(sum);
}

__attribute__((target("avx512f,avx512bf16"))) static TOOL_UNUSED float limits__bf16(size_t rounds)
{
    const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
    __m512 sum = _mm512_setzero_ps();
#define LIMITS_START(k) __m512 a##k = _mm512_set1_ps((float)k);
#define LIMITS_STEP(k) a##k = _mm512_dpbf16_ps(a##k, x, x);
#define LIMITS_ADD(k) sum = _mm512_add_ps(sum, a##k);
    LIMITS_12(LIMITS_START)
    while (rounds-- > 0) {
        LIMITS_12(LIMITS_STEP)
    }
    LIMITS_12(LIMITS_ADD)
#undef LIMITS_START
#undef LIMITS_STEP
#undef LIMITS_ADD
    return _mm512_cvtss_f32(sum);
}

__attribute__((target("avx512f,avx512vnni"))) static TOOL_UNUSED float limits__int8(size_t rounds)
{
    const __m512i x = _mm512_set1_epi32(0x01010101);
    __m512i sum = _mm512_setzero_si512();
#define LIMITS_START(k) __m512i a##k = _mm512_set1_epi32(k);
#define LIMITS_STEP(k) a##k = _mm512_dpbusd_epi32(a##k, x, x);
#define LIMITS_ADD(k) sum = _mm512_add_epi32(sum, a##k);
    LIMITS_12(LIMITS_START)
    while (rounds-- > 0) {
        LIMITS_12(LIMITS_STEP)
    }
    LIMITS_12(LIMITS_ADD)
#undef LIMITS_START
#undef LIMITS_STEP
#undef LIMITS_ADD
    return (float)_mm_cvtsi128_si32(_mm512_castsi512_si128(sum));
}

/* Palette 1, eight tiles of 16 rows of 64 bytes. Static and const: gcc 12 declares that
   _tile_loadconfig reads 8 bytes only, and would leave out the rest of a local one.            */
static TOOL_UNUSED const unsigned char limits__tiles[64] = {
    1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64,
    0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16};

/* A product of 32 x 32 outputs from operands that lie in the first cache: four tiles are loaded for
   four multiplied, as in a real product.                                                       */
#define LIMITS_AMX(name, extension, multiply)                                                      \
    __attribute__((target("amx-tile," extension))) static TOOL_UNUSED float name(size_t rounds)    \
    {                                                                                              \
        static const unsigned char operand[4][1024] = {{0}};                                       \
        unsigned char out[1024];                                                                   \
        _tile_loadconfig(limits__tiles);                                                           \
        _tile_zero(0);                                                                             \
        _tile_zero(1);                                                                             \
        _tile_zero(2);                                                                             \
        _tile_zero(3);                                                                             \
        while (rounds-- > 0) {                                                                     \
            _tile_loadd(4, operand[0], 64);                                                        \
            _tile_loadd(5, operand[1], 64);                                                        \
            _tile_loadd(6, operand[2], 64);                                                        \
            _tile_loadd(7, operand[3], 64);                                                        \
            multiply(0, 4, 6);                                                                     \
            multiply(1, 4, 7);                                                                     \
            multiply(2, 5, 6);                                                                     \
            multiply(3, 5, 7);                                                                     \
        }                                                                                          \
        _tile_stored(0, out, 64);                                                                  \
        _tile_release();                                                                           \
        return (float)out[0];                                                                      \
    }
LIMITS_AMX(limits__amx_bf16, "amx-bf16", _tile_dpbf16ps)
LIMITS_AMX(limits__amx_int8, "amx-int8", _tile_dpbssd)

/* Linux gives the tiles to a process that asks, once, if processor and kernel have them. Returns
   what leaf 7 of cpuid says in edx, or 0 without the permission.                               */
static TOOL_UNUSED unsigned limits__amx(void)
{
    unsigned a, b, c, d;

    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 24 & 1) == 0) return 0;
#if defined(__linux__) && defined(SYS_arch_prctl)
    if (syscall(SYS_arch_prctl, 0x1023, 18) == 0) return d; /* ARCH_REQ_XCOMP_PERM, XTILEDATA */
#endif
    return 0;
}
#endif /* LIMITS_X86 */

/* The loop that measures an arithmetic and how many operations one round of it is; NULL if the
   machine has no such thing.                                                                   */
static TOOL_UNUSED limits_loop limits__find(limit which, double *operations, const char **name)
{
    *operations = 12 * 4 * 2;
    *name = "plain";
#if LIMITS_X86
    __builtin_cpu_init();
    *name = which == LIMIT_F32 ? "avx512" : limit_names[which];
    *operations = 12 * 16 * 2 * (which == LIMIT_BF16 ? 2 : which == LIMIT_INT8 ? 4 : 1);
    if (which == LIMIT_F32 && __builtin_cpu_supports("avx512f")) return limits__avx512;
    if (which == LIMIT_BF16 && __builtin_cpu_supports("avx512bf16")) return limits__bf16;
    if (which == LIMIT_INT8 && __builtin_cpu_supports("avx512vnni")) return limits__int8;
    *operations = 4 * 16 * 16 * 2 * (which == LIMIT_AMX_INT8 ? 64 : 32);
    if (which == LIMIT_AMX_BF16 && (limits__amx() >> 22 & 1)) return limits__amx_bf16;
    if (which == LIMIT_AMX_INT8 && (limits__amx() >> 25 & 1)) return limits__amx_int8;
    *operations = 12 * 8 * 2;
    *name = "avx2";
    if (which == LIMIT_F32 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return limits__avx2;
    *operations = 12 * 4 * 2;
    *name = "sse";
#endif
    return which == LIMIT_F32 ? limits__plain : NULL;
}

/* ---- reading ---------------------------------------------------------------------------------
   A thread has a part of the buffer for itself and goes on where it stopped the last time, so that
   nothing comes out of a cache. The part is cut into 1, 4 or 8 streams that advance together.   */

#define LIMITS_BLOCK 256 /* bytes of a stream at a time */

typedef uint64_t limits_v2 __attribute__((vector_size(16)));

/* `blocks` blocks of each stream from `at` on; `apart`: bytes from a stream to the next. */
static TOOL_UNUSED uint64_t limits__read(const char *at, size_t blocks, int streams, size_t apart)
{
    limits_v2 a = {0, 0}, b = {0, 0};
    int s, k;

    for (; blocks-- > 0; at += LIMITS_BLOCK)
        for (s = 0; s < streams; s++) {
            const limits_v2 *p = (const limits_v2 *)(const void *)(at + (size_t)s * apart);
            for (k = 0; k < LIMITS_BLOCK / 16; k += 4) {
                a |= p[k] | p[k + 1];
                b |= p[k + 2] | p[k + 3];
            }
        }
    return a[0] | a[1] | b[0] | b[1];
}

/* ---- measuring ------------------------------------------------------------------------------- */

typedef struct limits__job {
    pthread_t   thread;
    limits_loop loop;    /* NULL: read */
    double      operations;
    const char *part;    /* of the buffer */
    size_t      size, at;
    int         streams;
    double      seconds, rate;
    int        *ready;   /* threads that have started */
    int         n_threads;
    bool        started;
    float       sink;
} limits__job;

/* About 50 us of work; returns what it counts for. */
static TOOL_UNUSED double limits__piece(limits__job *job)
{
    size_t apart = job->size / (size_t)job->streams / LIMITS_BLOCK * LIMITS_BLOCK, bytes;

    if (job->loop != NULL) {
        job->sink += job->loop(8000);
        return 8000 * job->operations;
    }
    bytes = (size_t)(1 << 19) / (size_t)job->streams;
    if (job->at + bytes > apart) job->at = 0;
    job->sink += (float)limits__read(job->part + job->at, bytes / LIMITS_BLOCK, job->streams,
                                     apart);
    job->at += bytes;
    return (double)bytes * job->streams;
}

static TOOL_UNUSED void *limits__run(void *arg)
{
    limits__job *job = arg;
    double start, now, done = 0;

    limits__piece(job); /* pages, tables and wide units are awake after this */
    __atomic_add_fetch(job->ready, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(job->ready, __ATOMIC_ACQUIRE) < job->n_threads) {}
    start = now = tool_seconds();
    while (now - start < job->seconds) {
        done += limits__piece(job);
        now = tool_seconds();
    }
    job->rate = done / (now - start);
    return NULL;
}

/* Sum over the threads, operations or bytes a second. `streams` counts for LIMIT_READ only. */
static TOOL_UNUSED double limits__once(limits_machine *m, limit which, int threads, int streams)
{
    static limits__job jobs[LIMITS_THREADS];
    const char *name;
    int ready = 0, t;
    double sum = 0;
    size_t part = m->size / (size_t)threads / 4096 * 4096;

    memset(jobs, 0, sizeof jobs);
    for (t = 0; t < threads; t++) {
        limits__job *job = &jobs[t];
        if (which != LIMIT_READ) job->loop = limits__find(which, &job->operations, &name);
        job->part = m->buffer + (size_t)t * part;
        job->size = part;
        job->at = m->at;
        job->streams = streams;
        job->seconds = m->seconds;
        job->ready = &ready;
        job->n_threads = threads;
        if (t > 0) job->started = pthread_create(&job->thread, NULL, limits__run, job) == 0;
        if (t > 0 && !job->started) __atomic_add_fetch(&ready, 1, __ATOMIC_ACQ_REL);
    }
    limits__run(&jobs[0]);
    for (t = 0; t < threads; t++) {
        if (jobs[t].started) pthread_join(jobs[t].thread, NULL);
        sum += jobs[t].rate;
    }
    m->at = jobs[0].at;
    return sum;
}

/* Bytes or operations a second that `threads` threads reach together; 0 if the machine has no such
   arithmetic.                                                                                  */
static TOOL_UNUSED double limits_measure(limits_machine *m, limit which, int threads)
{
    static const int streams[] = {1, 4, 8};
    double best = 0, found;
    size_t i;

    if (!m->has[which]) return 0;
    if (which != LIMIT_READ) return limits__once(m, which, threads, 1);
    for (i = 0; i < 3; i++) {
        found = limits__once(m, which, threads, streams[i]);
        if (found > best) {
            best = found;
            m->streams = streams[i];
        }
    }
    return best;
}

/* Twice the last cache, read in a circle, leaves nothing of a pass for the next one. A virtual
   machine may see a large cache that it shares with many others: 1 GB is enough.               */
static TOOL_UNUSED size_t limits__buffer_size(void)
{
    uint64_t size = UINT64_C(1) << 28, most = UINT64_C(1) << 30, memory = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (cache > 0 && (uint64_t)cache * 2 > size) size = (uint64_t)cache * 2;
#endif
#ifdef _SC_PHYS_PAGES
    memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
#endif
    if (memory > 0 && memory / 8 < most) most = memory / 8;
    return (size_t)(size < most ? size : most) / 65536 * 65536;
}

static TOOL_UNUSED bool limits_open(limits_machine *m, double milliseconds, tool_error *err)
{
    double operations;
    const char *name;
    int k;

    memset(m, 0, sizeof *m);
    m->seconds = milliseconds / 1000;
    m->size = limits__buffer_size();
    m->buffer = malloc(m->size);
    if (m->buffer == NULL) return tool_fail(err, "no memory to measure its speed with");
    memset(m->buffer, 1, m->size); /* untouched pages would all be one page of zeros */
    m->has[LIMIT_READ] = true;
    for (k = LIMIT_F32; k < LIMIT_COUNT; k++) {
        m->has[k] = limits__find((limit)k, &operations, &name) != NULL;
        if (k == LIMIT_F32) m->f32_name = name;
    }
    return true;
}

static TOOL_UNUSED void limits_close(limits_machine *m)
{
    free(m->buffer);
    memset(m, 0, sizeof *m);
}

#endif /* TOOL_LIMITS_H */
