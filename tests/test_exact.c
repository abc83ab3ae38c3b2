/* test_exact.c: the same bits, however a text is cut up and whoever computes it.

   cc -O2 -pthread -I. tests/test_exact.c -o test_exact -lm && ./test_exact

   Data races: the same line with -g -fsanitize=thread must run without a report.

   Logits are compared with memcmp: pieces of a prompt, sizes of batches, threads of the host's and
   of the session's own, types of the KV cache, options of the session, rewinding, embeddings in
   place of tokens, sessions side by side, a forked child. Then weights that are not finite. What
   rounding modes and flushing to zero of the caller do is printed, not required. With the
   argument "long" every prefix is computed anew, not every fifth, and everything twenty times.   */
#define _XOPEN_SOURCE 700
#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "tiny.h"
#include "host_threads.h"

#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HAS_TSAN 1
#endif
#elif defined(__SANITIZE_THREAD__)
#define HAS_TSAN 1
#endif
#ifndef HAS_TSAN
#define HAS_TSAN 0
#endif

enum { T = 40, CONTEXT = 48 };
enum { MODES_REQUIRED = 1 }; /* 1: the caller's rounding mode must not change a bit */
static int thorough;

/* ---- models ---------------------------------------------------------------------------------- */
typedef struct recipe { /* V, C, L, A, K, N, M, H, k, G */
    const char *name;
    monet_dtype dtype;
    int32_t     decompose, v, c, l, a, kv, n, m, h, k, g, tied;
} recipe;

static const recipe recipes[] = {
    {"vd f32", MONET_F32, MONET_VERTICAL, 70, 16, 2, 4, 2, 16, 4, 3, 3, 1, 0},
    {"hd odd bf16", MONET_BF16, MONET_HORIZONTAL, 37, 40, 1, 5, 1, 17, 5, 1, 3, 1, 0},
    {"vd f16", MONET_F16, MONET_VERTICAL, 33, 42, 2, 3, 3, 11, 4, 2, 3, 2, 1},
    {"hd bf16", MONET_BF16, MONET_HORIZONTAL, 16, 32, 3, 2, 2, 33, 2, 2, 5, 2, 1}};
enum { N_MODELS = sizeof recipes / sizeof *recipes };

typedef struct subject { /* a model, a text, and its logits and routing computed in one go */
    const char    *name;
    tiny_file      file;
    monet_model   *model;
    int32_t        tokens[T];
    size_t         V, HN, routers;
    int            light;   /* half of the combinations will do */
    float         *logits; /* (T,V) */
    float         *gates;  /* (routers,T,2,HN) */
} subject;

static int write_model(const char *path, const recipe *r)
{
    static monet_tensor tensors[256];
    monet_arch          arch;
    monet_writer_config config;
    monet_writer       *writer = NULL;
    monet_error         err = {{0}, MONET_OK};
    int                 ok;

    memset(&arch, 0, sizeof arch);
    memset(&config, 0, sizeof config);
    arch.vocab_size = r->v, arch.dim = r->c, arch.n_layers = r->l;
    arch.n_heads = r->a, arch.n_kv_heads = r->kv, arch.max_seq_len = CONTEXT;
    arch.moe_experts = r->n, arch.moe_dim = r->m, arch.moe_heads = r->h;
    arch.moe_topk = r->k, arch.moe_groups = r->g;
    arch.decompose = r->decompose, arch.tie_embeddings = r->tied;
    ok = monet_arch_check(&arch, &err) == MONET_OK &&
         monet_arch_tensors(&arch, r->dtype, tensors, 256, &config.n_tensors) == MONET_OK;
    config.arch = &arch;
    config.tensors = tensors;
    ok = ok && monet_writer_create(path, &config, &writer, &err) == MONET_OK &&
         tiny_rows(writer, tensors, config.n_tensors, 5, &err) == MONET_OK &&
         monet_writer_finish(writer, &err) == MONET_OK;
    monet_writer_free(writer);
    if (!ok) printf("    %s: %s\n", r->name, err.message);
    return ok;
}

static monet_session_config plain(void)
{
    monet_session_config config;

    memset(&config, 0, sizeof config);
    return config;
}

static monet_session *open_session(const subject *s, const monet_session_config *config)
{
    monet_session *session = NULL;
    monet_error    err = {{0}, MONET_OK};

    if (monet_session_create(s->model, config, &session, &err) != MONET_OK)
        printf("    %s: %s\n", s->name, err.message);
    return session;
}

/* Copies gates of the last eval's tokens (first.. of the text). */
static void keep_gates(const subject *s, const monet_session *session, float *gates, size_t first,
                       size_t count)
{
    int G = monet_model_arch(s->model)->moe_groups;

    for (size_t r = 0; r < s->routers; ++r)
        for (size_t t = 0; t < count; ++t) {
            monet_routing routing;
            float        *to = gates + (r * T + first + t) * 2 * s->HN;
            if (monet_session_routing(session, (int32_t)t, (int32_t)r * G, &routing) != MONET_OK)
                continue;
            memcpy(to, routing.g1, s->HN * sizeof(float));
            memcpy(to + s->HN, routing.g2, s->HN * sizeof(float));
        }
}

static int open_subject(subject *s, const recipe *r)
{
    monet_session_config config = plain();
    const char          *path = tiny_path("exact.monet");
    monet_session       *session;
    int                  ok;

    memset(s, 0, sizeof *s);
    s->name = r->name;
    if (!CHECK(write_model(path, r))) return 0;
    s->file = tiny_read(path);
    (void)remove(path);
    if (!CHECK_EQ(monet_model_load_memory(s->file.data, s->file.size, NULL, &s->model, NULL), 0))
        return 0;
    s->V = (size_t)r->v;
    s->light = r >= recipes + 2 && !thorough;
    s->HN = (size_t)(r->h * r->n);
    s->routers = (size_t)((r->l + r->g - 1) / r->g);
    for (int t = 0; t < T; ++t)
        s->tokens[t] = (int32_t)(tiny_mix((uint64_t)t + 99) % (uint64_t)r->v);
    s->logits = (float *)calloc(T * s->V, sizeof(float));
    s->gates = (float *)calloc(s->routers * T * 2 * s->HN, sizeof(float));
    config.all_logits = true;
    config.capture_routing = true;
    session = open_session(s, &config);
    ok = session && monet_session_eval(session, s->tokens, T) == MONET_OK;
    if (ok) memcpy(s->logits, monet_session_logits_at(session, 0), T * s->V * sizeof(float));
    if (ok) keep_gates(s, session, s->gates, 0, T);
    monet_session_free(session);
    return CHECK(ok);
}

static void close_subject(subject *s)
{
    monet_model_free(s->model);
    tiny_drop(&s->file);
    free(s->logits);
    free(s->gates);
}

/* Do the logits after token t have the expected bits? */
static int same_row(const subject *s, const float *logits, size_t t)
{
    return logits && !memcmp(logits, s->logits + t * s->V, s->V * sizeof(float));
}

/* Evaluates tokens first..end-1 in pieces; counts the pieces with other logits than `s`. */
static int wrong_pieces(const subject *s, monet_session *session, size_t first, size_t end,
                        size_t piece)
{
    int wrong = 0;

    for (size_t n; first < end; first += n) {
        n = end - first < piece ? end - first : piece;
        if (monet_session_eval(session, s->tokens + first, n) != MONET_OK) return 1000;
        wrong += !same_row(s, monet_session_logits(session), first + n - 1);
        for (size_t t = 0; t < n && monet_session_logits_at(session, 0); ++t)
            wrong += !same_row(s, monet_session_logits_at(session, (int32_t)t), first + t);
    }
    return wrong;
}

/* A new session, the whole text in pieces. */
static int wrong_session(const subject *s, const monet_session_config *config, size_t piece)
{
    monet_session *session = open_session(s, config);
    int            wrong = session ? wrong_pieces(s, session, 0, T, piece) : 1000;

    monet_session_free(session);
    return wrong;
}

/* ---- the reference is one model's, not chance ------------------------------------------------ */
static void test_sane(const subject *s)
{
    int    changed = 0, finite = 1, active = 0;
    size_t n = s->routers * T * 2 * s->HN;

    for (size_t t = 1; t < T; ++t) changed += !same_row(s, s->logits, t);
    for (size_t k = 0; k < T * s->V; ++k) finite = finite && s->logits[k] - s->logits[k] == 0;
    for (size_t k = 0; k < n; ++k) active += s->gates[k] > 0;
    CHECK_EQ(changed, T - 1);
    CHECK(finite);
    CHECK(active > 0 && (size_t)active < n / 2);
}

/* ---- pieces, batches, options ---------------------------------------------------------------- */
static void test_pieces(const subject *s)
{
    static const size_t  pieces[] = {1, 7, 32, T};
    static const int32_t batches[] = {1, 3, 64, 0};
    int                  wrong = 0;

    for (int b = 0; b < 4; ++b)
        for (int p = 0; p < 4; ++p) {
            monet_session_config config = plain();
            if ((b + p) % 2 && s->light) continue;
            config.max_batch = batches[b];
            wrong += wrong_session(s, &config, pieces[p]);
            if (batches[b] && pieces[p] > (size_t)batches[b]) continue;
            config.all_logits = (b + p) % 3 != 0 || thorough;
            config.capture_routing = (b + p) % 3 != 1 || thorough;
            config.context = T;
            wrong += wrong_session(s, &config, pieces[p]);
        }
    CHECK_EQ(wrong, 0);
}

static void test_prefixes(const subject *s)
{
    int wrong = 0;

    for (size_t n = 1; n <= T; n += thorough ? 1 : 5) {
        monet_session *session = open_session(s, NULL);
        wrong += session ? wrong_pieces(s, session, 0, n, n) : 1000;
        monet_session_free(session);
    }
    CHECK_EQ(wrong, 0);
}

/* What was tried in between leaves no trace. */
static void test_rewind(const subject *s)
{
    monet_session *session = open_session(s, NULL);
    int32_t        other[20];
    int            wrong = 0;

    if (!CHECK(session != NULL)) return;
    for (int k = 0; k < 20; ++k) other[k] = (int32_t)((size_t)(k * 7 + 1) % s->V);
    wrong += wrong_pieces(s, session, 0, 30, 30);
    for (int32_t at = 0; at <= 30; at += 10) {
        CHECK_EQ(monet_session_rewind(session, at), MONET_OK);
        CHECK(monet_session_logits(session) == NULL && monet_session_length(session) == at);
        CHECK_EQ(monet_session_eval(session, other, 15), MONET_OK);
        CHECK_EQ(monet_session_rewind(session, at), MONET_OK);
        wrong += wrong_pieces(s, session, (size_t)at, 34, 9);
    }
    CHECK_EQ(monet_session_eval(session, s->tokens, CONTEXT), MONET_ERROR_CONTEXT_FULL);
    wrong += wrong_pieces(s, session, 34, T, 3); /* an error changed nothing */
    CHECK_EQ(wrong, 0);
    CHECK(!memcmp(monet_session_tokens(session), s->tokens, sizeof s->tokens));
    monet_session_free(session);
}

/* The cache rounds keys and values: other numbers than with f32, but the same in every piece. */
static void test_cache_types(const subject *s)
{
    for (int dtype = 0; dtype < 3; ++dtype) {
        monet_session_config config = plain();
        subject              mine = *s;
        monet_session       *session;
        int                  wrong = 0, differ = 0;
        config.kv_dtype = (monet_dtype)dtype;
        config.all_logits = true;
        mine.logits = (float *)calloc(T * s->V, sizeof(float));
        session = open_session(s, &config);
        if (session && !monet_session_eval(session, s->tokens, T))
            memcpy(mine.logits, monet_session_logits_at(session, 0), T * s->V * sizeof(float));
        monet_session_free(session);
        config.all_logits = false;
        wrong += wrong_session(&mine, &config, 1);
        config.max_batch = 3;
        wrong += wrong_session(&mine, &config, 32);
        for (size_t t = 1; t < T; ++t) differ += !same_row(s, mine.logits + t * s->V, t);
        CHECK_EQ(wrong, 0);
        CHECK(dtype ? differ > T / 2 : differ == 0);
        free(mine.logits);
    }
}

/* Captured gates: the same for every way to get there; the lists say where they are not 0. */
static void test_capture(const subject *s)
{
    monet_session_config config = plain();
    float               *gates = (float *)calloc(s->routers * T * 2 * s->HN, sizeof(float));
    monet_session       *session;
    monet_routing        r;
    int                  wrong = 0;

    config.capture_routing = true;
    session = open_session(s, &config);
    for (size_t at = 0; at < T; at += 8) {
        (void)monet_session_eval(session, s->tokens + at, 8);
        keep_gates(s, session, gates, at, 8);
    }
    CHECK(!memcmp(gates, s->gates, s->routers * T * 2 * s->HN * sizeof(float)));
    for (int32_t layer = 0; layer < monet_model_arch(s->model)->n_layers; ++layer) {
        int n[2] = {0, 0};
        CHECK_EQ(monet_session_routing(session, 3, layer, &r), MONET_OK);
        for (int side = 0; side < 2; ++side)
            for (int i = 0; i < r.n_experts; ++i) {
                int             active = 0, count = side ? r.n_j : r.n_i;
                const uint16_t *list = side ? r.j : r.i;
                for (int h = 0; h < r.n_heads; ++h)
                    active = active || (side ? r.g2 : r.g1)[h * r.n_experts + i] > 0;
                if (active) wrong += n[side] >= count || list[n[side]] != i, ++n[side];
            }
        wrong += n[0] != r.n_i || n[1] != r.n_j;
    }
    CHECK_EQ(wrong, 0);
    monet_session_free(session);
    free(gates);
}

/* ---- threads --------------------------------------------------------------------------------- */
static void in_order(void *user, int count, void (*task)(void *arg, int index), void *arg)
{
    (void)user;
    for (int k = 0; k < count; ++k) task(arg, k);
}

static void backwards(void *user, int count, void (*task)(void *arg, int index), void *arg)
{
    (void)user;
    while (count-- > 0) task(arg, count);
}

static void test_threads(const subject *s)
{
    static const int counts[] = {1, 2, 3, 4, 7, 8};
    int              wrong[4] = {0, 0, 0, 0};
    long             calls = 0;

    for (int k = 0; k < 6; ++k)
        for (int way = 0; way < 4; ++way) {
            monet_session_config config = plain();
            monet_host           host;
            if ((k + way) % 2 && s->light) continue;
            memset(&host, 0, sizeof host);
            host.n_threads = counts[k];
            host.user = &calls;
            host.parallel_fn = way == 0 ? in_order : way == 1 ? backwards : NULL;
            if (way == 2) host.parallel_fn = with_threads;
            config.host = &host;
            config.capture_routing = k % 2;
            config.max_batch = k % 2 ? 0 : 16; /* captured tokens are one batch */
            wrong[way] += wrong_session(s, &config, (k + way) % 3 ? T : 16);
        }
    for (int way = 0; way < 4; ++way) CHECK_EQ(wrong[way], 0);
    CHECK(calls > 50);
}

/* The pool again and again, between pauses in which its threads fall asleep. */
static void test_pool(const subject *s)
{
    struct timespec pause = {0, 2000000};
    int             wrong = 0;

    for (int round = 0; round < (thorough ? 200 : 10); ++round) {
        monet_session_config config = plain();
        monet_host           host;
        monet_session       *session;
        memset(&host, 0, sizeof host);
        host.n_threads = 2 + round % 7;
        config.host = &host;
        session = open_session(s, &config);
        if (!session) ++wrong;
        for (size_t at = 0; session && at < 3; ++at) {
            wrong += wrong_pieces(s, session, at, at + 1, 1);
            nanosleep(&pause, NULL);
        }
        monet_session_free(session);
    }
    CHECK_EQ(wrong, 0);
}

typedef struct neighbour {
    const subject *s;
    int            n_threads, wrong;
} neighbour;

static void *run_neighbour(void *arg)
{
    neighbour           *n = (neighbour *)arg;
    monet_session_config config = plain();
    monet_host           host;

    memset(&host, 0, sizeof host);
    host.n_threads = n->n_threads;
    config.host = &host;
    for (int round = 0; round < (thorough ? 20 : 1); ++round)
        n->wrong += wrong_session(n->s, &config, (size_t)(1 + 8 * round));
    return NULL;
}

/* Sessions on one model in threads of their own, some with pools. */
static void test_neighbours(const subject *s)
{
    pthread_t threads[6];
    neighbour all[6];
    int       wrong = 0, started = 0;

    for (int k = 0; k < 6; ++k) {
        all[k].s = s;
        all[k].n_threads = 1 + k % 3;
        all[k].wrong = 0;
        if (pthread_create(&threads[k], NULL, run_neighbour, &all[k])) break;
        ++started;
    }
    for (int k = 0; k < started; ++k) pthread_join(threads[k], NULL), wrong += all[k].wrong;
    CHECK_EQ(started, 6);
    CHECK_EQ(wrong, 0);
}

/* The child of a fork has the session but not the threads of its pool: it works alone. */
static void test_fork(const subject *s)
{
    monet_session_config config = plain();
    monet_host           host;
    monet_session       *session;
    pid_t                child;
    int                  status = -1;

    if (HAS_TSAN) return; /* does not know forks of programs with threads */
    memset(&host, 0, sizeof host);
    host.n_threads = 4;
    config.host = &host;
    session = open_session(s, &config);
    if (!CHECK(session && wrong_pieces(s, session, 0, 20, 20) == 0)) return;
    fflush(stdout);
    child = fork();
    if (child == 0) {
        int wrong;
        alarm(60); /* a hang is a failure */
        wrong = wrong_pieces(s, session, 20, T, 7);
        monet_session_free(session);
        wrong += wrong_session(s, &config, 11); /* a pool of its own */
        _exit(wrong ? 1 : 0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
    CHECK_EQ(wrong_pieces(s, session, 20, T, 7), 0); /* and the parent's is as it was */
    monet_session_free(session);
}

/* ---- embeddings ------------------------------------------------------------------------------ */
static void test_embeddings(const subject *s)
{
    const monet_tensor *embed = monet_model_find_tensor(s->model, "embed_tokens.weight");
    size_t              C = (size_t)monet_model_arch(s->model)->dim;
    float              *rows = (float *)calloc(T * C, sizeof(float));
    monet_session      *session = open_session(s, NULL);
    int                 wrong = 0;

    for (size_t t = 0; t < T; ++t)
        wrong += monet_tensor_read(embed, s->tokens[t], 1, rows + t * C) != MONET_OK;
    for (size_t at = 0, n; session && at < T; at += n) {
        n = T - at < 13 ? T - at : 13;
        if (at % 2) wrong += monet_session_eval(session, s->tokens + at, n) != MONET_OK;
        else wrong += monet_session_eval_embeddings(session, rows + at * C, n) != MONET_OK;
        wrong += !same_row(s, monet_session_logits(session), at + n - 1);
    }
    CHECK_EQ(wrong, 0);
    CHECK(monet_session_tokens(session)[0] == -1);
    CHECK(monet_session_tokens(session)[13] == s->tokens[13]);
    rows[C + 3] = (float)NAN;
    CHECK_EQ(monet_session_rewind(session, 2), MONET_OK);
    CHECK_EQ(monet_session_eval_embeddings(session, rows, 2), MONET_ERROR_NUMERIC);
    CHECK_EQ(monet_session_length(session), 2);
    monet_session_free(session);
    free(rows);
}

/* ---- weights that are changed in memory ------------------------------------------------------ */
/* All router logits equal: every half-expert of both axes is active, tokens come in chunks. */
static void test_all_active(const recipe *r)
{
    subject             s;
    monet_session      *session;
    monet_routing       routing;
    monet_session_config config = plain();

    if (!open_subject(&s, r)) return;
    for (size_t k = 0; k < monet_model_tensor_count(s.model); ++k) {
        const monet_tensor *t = monet_model_tensor(s.model, k);
        if (strstr(t->name, "router.w")) memset((void *)(uintptr_t)t->data, 0, (size_t)t->size);
    }
    config.all_logits = true;
    config.capture_routing = true;
    session = open_session(&s, &config);
    if (CHECK(session && monet_session_eval(session, s.tokens, T) == MONET_OK)) {
        memcpy(s.logits, monet_session_logits_at(session, 0), T * s.V * sizeof(float));
        CHECK_EQ(monet_session_routing(session, T - 1, 0, &routing), MONET_OK);
        CHECK(routing.n_i == r->n && routing.n_j == r->n);
        CHECK_EQ(wrong_session(&s, NULL, 1), 0);
        CHECK_EQ(wrong_session(&s, NULL, 7), 0);
        config = plain();
        config.max_batch = 3;
        CHECK_EQ(wrong_session(&s, &config, T), 0);
        CHECK(monet_routing_experts(&routing, 0, NULL, 0) == (size_t)(r->n * r->n));
    }
    monet_session_free(session);
    close_subject(&s);
}

/* Overwrites the elements (of the first or last row, or all) of a tensor. */
static void spoil(const monet_tensor *t, float value, int how)
{
    int64_t rows = t->n_dims == 1 ? 1 : t->shape[0];
    int64_t columns = t->n_dims == 1 ? t->shape[0] : t->shape[1];

    for (int64_t r = how == 1 ? rows - 1 : 0; r < (how == 2 ? 1 : rows); ++r)
        for (int64_t c = 0; c < columns; ++c)
            monet__put((void *)(uintptr_t)t->data, t->dtype, monet_tensor_place(t, r, c), value);
}

/* Any tensor of NaN: MONET_ERROR_NUMERIC, the session is as before, and goes on when the weights
   are numbers again. Parts of a tensor may be unused: then anything but a crash.         */
static void test_spoilt(const recipe *r)
{
    static const float values[4] = {(float)NAN, (float)HUGE_VAL, 3e38f, (float)NAN};
    subject            s;

    if (!open_subject(&s, r)) return;
    for (size_t k = 0; k < monet_model_tensor_count(s.model); ++k) {
        const monet_tensor *t = monet_model_tensor(s.model, k);
        void               *kept = malloc((size_t)t->size);
        if (strstr(t->name, "running")) { /* refused when a file is loaded */
            free(kept);
            continue;
        }
        memcpy(kept, t->data, (size_t)t->size);
        for (int way = 0; way < 4; ++way) {
            monet_session *session = open_session(&s, NULL);
            monet_result   result;
            int            before = wrong_pieces(&s, session, 0, 3, 3);
            spoil(t, values[way], way % 3);
            result = monet_session_eval(session, s.tokens + 3, 9);
            if (way == 0 && !CHECK_EQ(result, MONET_ERROR_NUMERIC)) printf("    %s\n", t->name);
            if (result != MONET_OK && result != MONET_ERROR_NUMERIC) CHECK_EQ(result, 0);
            if (result != MONET_OK && monet_session_logits(session)) CHECK_EQ(way, -1);
            if (result != MONET_OK && monet_session_length(session) != 3) CHECK_EQ(way, -1);
            memcpy((void *)(uintptr_t)t->data, kept, (size_t)t->size);
            (void)monet_session_rewind(session, 3);
            before += wrong_pieces(&s, session, 3, 12, 9);
            if (before && !CHECK_EQ(before, 0)) printf("    %s\n", t->name);
            monet_session_free(session);
        }
        free(kept);
    }
    close_subject(&s);
}

/* ---- the caller's floating point mode -------------------------------------------------------- */
static void report(const char *name, const subject *s, int n_threads)
{
    monet_session_config config = plain();
    monet_host           host;
    int                  wrong;

    memset(&host, 0, sizeof host);
    host.n_threads = n_threads;
    config.host = &host;
    wrong = wrong_session(s, &config, 9);
    if (MODES_REQUIRED) CHECK_EQ(wrong, 0);
    printf("%-12s %-20s %d thread%s %s\n", s->name, name, n_threads, n_threads > 1 ? "s:" : ": ",
           wrong ? "other logits" : "the same bits");
}

/* Under each mode the results are consistent in themselves, and the mode is left as it was. */
static void test_modes(const subject *s)
{
#if defined(FE_UPWARD) && defined(FE_TOWARDZERO)
    static const struct { const char *name; int mode; } modes[] = {
        {"FE_UPWARD", FE_UPWARD}, {"FE_DOWNWARD", FE_DOWNWARD}, {"FE_TOWARDZERO", FE_TOWARDZERO}};
    for (int k = 0; k < 3; ++k) {
        if (fesetround(modes[k].mode)) continue;
        report(modes[k].name, s, 1);
        report(modes[k].name, s, 3);
        CHECK_EQ(fegetround(), modes[k].mode);
        (void)fesetround(FE_TONEAREST);
    }
#endif
#if defined(__SSE2__)
    {
        unsigned mode = _mm_getcsr(), flush = mode | 0x8040; /* FTZ and DAZ */
        _mm_setcsr(flush);
        report("FTZ and DAZ", s, 1);
        report("FTZ and DAZ", s, 3);
        CHECK_EQ(_mm_getcsr() & 0x8040, 0x8040);
        _mm_setcsr(mode);
    }
#endif
    CHECK_EQ(wrong_session(s, NULL, T), 0);
}

int main(int argc, char **argv)
{
    thorough = argc > 1 && !strcmp(argv[1], "long");
    for (int k = 0; k < N_MODELS; ++k) {
        subject s;
        if (open_subject(&s, &recipes[k])) {
            test_sane(&s);
            test_pieces(&s);
            test_prefixes(&s);
            test_rewind(&s);
            test_cache_types(&s);
            test_capture(&s);
            test_threads(&s);
            test_pool(&s);
            test_neighbours(&s);
            test_fork(&s);
            test_embeddings(&s);
            test_modes(&s);
        }
        close_subject(&s);
        test_all_active(&recipes[k]);
        if (k < 2) test_spoilt(&recipes[k]);
    }
    tiny_clean();
    return test_end("test_exact");
}
