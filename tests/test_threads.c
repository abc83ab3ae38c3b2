/* test_threads.c: the pool of threads, and many sessions on one model.

   cc -O2 -pthread -I. tests/test_threads.c -o test_threads -lm && ./test_threads [long]

   Data races: the same line with -g -fsanitize=thread must run without a report.

   1 to 16 threads give the same bits, in sessions and in training, with the pool and with threads
   of the host's; eight host threads share one model; pools come and go; a forked child finishes;
   an idle pool takes no processor time. "long" repeats more, idles for 5 s, and times 16 threads
   against 2: on two processors they may take half as long again, so run it on a quiet machine.   */
#define _XOPEN_SOURCE 700
#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "tiny.h"
#include "host_threads.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
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

enum { T = 32, STEPS = 3 };
static const int counts[] = {1, 2, 3, 4, 7, 8, 16};
enum { N_COUNTS = sizeof counts / sizeof *counts };

typedef struct subject {
    tiny_file    file;
    monet_model *model;
    int32_t      tokens[T + 1];
    float        logits[T][TINY_VOCAB]; /* after each token, computed by one thread */
} subject;

static int thorough;

static monet_host host_of(int n_threads)
{
    monet_host host;
    memset(&host, 0, sizeof host);
    host.n_threads = n_threads;
    return host;
}

static monet_session *open_session(const subject *s, const monet_host *host)
{
    monet_session_config config;
    monet_session       *session = NULL;
    memset(&config, 0, sizeof config);
    config.host = host;
    (void)monet_session_create(s->model, &config, &session, NULL);
    return session;
}

/* How many of the tokens [at, end), evaluated `step` at a time, give other logits. */
static int wrong_tokens(const subject *s, monet_session *session, int at, int end, int step)
{
    int wrong = session == NULL;
    for (; session && at < end; at += step) {
        int n = end - at < step ? end - at : step;
        if (monet_session_eval(session, s->tokens + at, (size_t)n)) return wrong + 1;
        wrong += memcmp(monet_session_logits(session), s->logits[at + n - 1],
                        sizeof s->logits[0]) != 0;
    }
    return wrong;
}

static int wrong_session(const subject *s, const monet_host *host, int step)
{
    monet_session *session = open_session(s, host);
    int            wrong = wrong_tokens(s, session, 0, T, step);
    monet_session_free(session);
    return wrong;
}

static bool subject_make(subject *s, const tiny_options *o)
{
    monet_host     alone = host_of(1);
    monet_session *session;
    s->file = tiny_make(o);
    if (!CHECK_EQ(monet_model_load_memory(s->file.data, s->file.size, NULL, &s->model, NULL),
                  MONET_OK))
        return false;
    for (int t = 0; t <= T; ++t) s->tokens[t] = (int32_t)(tiny_mix((uint64_t)t + 9) % TINY_PIECES);
    session = open_session(s, &alone);
    for (int t = 0; session && t < T; ++t) {
        CHECK_EQ(monet_session_eval(session, s->tokens + t, 1), MONET_OK);
        memcpy(s->logits[t], monet_session_logits(session), sizeof s->logits[t]);
    }
    monet_session_free(session);
    return CHECK(session != NULL);
}

/* ---- a host's own threads -------------------------------------------------------------------- */
static void test_counts_of_threads(const subject *s)
{
    long calls = 0;
    for (int k = 0; k < N_COUNTS; ++k)
        for (int own = 0; own < 2; ++own) {
            monet_host host = host_of(counts[k]);
            host.parallel_fn = own ? with_threads : NULL;
            host.user = &calls;
            CHECK_EQ(wrong_session(s, &host, T), 0);
            CHECK_EQ(wrong_session(s, &host, own ? 11 : 1), 0);
        }
    CHECK(calls > 50);
}

/* ---- training -------------------------------------------------------------------------------- */

/* Hash of the losses, gradients and weights of a few steps. */
static uint64_t trained(const subject *s, const monet_host *host)
{
    monet_trainer_config config;
    monet_trainer       *trainer = NULL;
    uint64_t             hash = 0;
    memset(&config, 0, sizeof config);
    config.host = host;
    config.batch_size = 2;
    config.seq_len = T / 2;
    config.uniformity = config.ambiguity = 1e-3f;
    if (!CHECK_EQ(monet_trainer_create(s->model, &config, &trainer, NULL), MONET_OK)) return 0;
    for (int step = 0; step < STEPS; ++step) {
        monet_losses losses;
        monet_real  *grads;
        size_t       n;
        memset(&losses, 0, sizeof losses);
        CHECK_EQ(monet_trainer_forward(trainer, s->tokens, s->tokens + 1, &losses), MONET_OK);
        CHECK_EQ(monet_trainer_backward(trainer), MONET_OK);
        grads = monet_trainer_grads(trainer, &n);
        hash = tiny_mix(hash ^ tiny_xxh64((const uint8_t *)grads, n * sizeof *grads));
        hash = tiny_mix(hash ^ tiny_xxh64((const uint8_t *)&losses, sizeof losses));
        CHECK_EQ(monet_trainer_update(trainer, 0.01f, NULL), MONET_OK);
    }
    monet_trainer_free(trainer);
    return hash;
}

static void test_training(const subject *s)
{
    monet_host alone = host_of(1);
    uint64_t   want = trained(s, &alone);
    long       calls = 0;
    for (int k = 1; k < N_COUNTS; ++k) {
        monet_host host = host_of(counts[k]);
        CHECK(trained(s, &host) == want);
        if (k % 3) continue;
        host.parallel_fn = with_threads;
        host.user = &calls;
        CHECK(trained(s, &host) == want);
    }
}

/* ---- several sessions ------------------------------------------------------------------------ */
typedef struct neighbour {
    const subject *s;
    int            n_threads, rounds, wrong;
} neighbour;

static void *run_neighbour(void *arg)
{
    neighbour *me = (neighbour *)arg;
    monet_host host = host_of(me->n_threads);
    for (int k = 0; k < me->rounds; ++k) me->wrong += wrong_session(me->s, &host, 1 + k % T);
    return NULL;
}

/* Eight sessions on one model at once, some with pools; each gives what it gives alone. */
static void test_neighbours(const subject *s)
{
    pthread_t threads[8];
    neighbour all[8];
    for (int k = 0; k < 8; ++k) {
        all[k].s = s;
        all[k].n_threads = 1 + k % 4;
        all[k].rounds = thorough ? 100 : 2;
        all[k].wrong = 0;
        if (!CHECK_EQ(pthread_create(&threads[k], NULL, run_neighbour, &all[k]), 0)) exit(1);
    }
    for (int k = 0; k < 8; ++k) {
        pthread_join(threads[k], NULL);
        CHECK_EQ(all[k].wrong, 0);
    }
}

/* Pools that come and go, used once, used after a rest, or not at all. */
static void test_churn(const subject *s)
{
    struct timespec rest = {0, 2000000};
    int             wrong = 0;
    for (int round = 0; round < (thorough ? 1000 : 60); ++round) {
        monet_host     host = host_of(counts[1 + round % (N_COUNTS - 1)]);
        monet_session *session = open_session(s, &host);
        wrong += session == NULL;
        if (round % 3) wrong += wrong_tokens(s, session, 0, 1, 1);
        if (round % 3 == 2) {
            nanosleep(&rest, NULL);
            wrong += wrong_tokens(s, session, 1, 2, 1);
        }
        monet_session_free(session);
    }
    CHECK_EQ(wrong, 0);
}

/* The child of a fork has the session but not the threads of its pool: it works alone. */
static void test_fork(const subject *s)
{
    monet_host     host = host_of(8);
    monet_session *session = open_session(s, &host);
    pid_t          child;
    int            status = -1;
    if (HAS_TSAN) { /* does not know forks of programs with threads */
        monet_session_free(session);
        return;
    }
    CHECK_EQ(wrong_tokens(s, session, 0, 5, 5), 0);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        int wrong;
        alarm(60); /* a hang is a failure */
        wrong = wrong_tokens(s, session, 5, T, 4);
        monet_session_free(session);
        _exit(wrong + wrong_session(s, &host, 7) ? 1 : 0); /* with a pool of its own */
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
    CHECK_EQ(wrong_tokens(s, session, 5, T, 4), 0); /* and the parent's is as it was */
    monet_session_free(session);
}

/* ---- time ------------------------------------------------------------------------------------ */
static double cpu_seconds(void)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           1e-6 * (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

static double wall_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void test_idle(const subject *s)
{
    struct timespec rest = {thorough ? 5 : 1, 0};
    struct timespec settle = {0, 50000000};
    monet_host      host = host_of(16);
    monet_session  *session = open_session(s, &host);
    double          start;
    CHECK_EQ(wrong_tokens(s, session, 0, T, T), 0);
    nanosleep(&settle, NULL);
    start = cpu_seconds();
    nanosleep(&rest, NULL);
    start = (cpu_seconds() - start) / (double)rest.tv_sec;
    printf("  an idle pool of 16 threads: %.3f %% of a processor\n", 100 * start);
    CHECK(start < 0.01);
    monet_session_free(session);
}

/* Seconds for a prompt of 16 tokens and 48 more, one at a time. */
static double decode_seconds(monet_session *session)
{
    static const int32_t prompt[16] = {1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19};
    double start = wall_seconds();
    CHECK_EQ(monet_session_rewind(session, 0), MONET_OK);
    CHECK_EQ(monet_session_eval(session, prompt, 16), MONET_OK);
    for (int32_t t = 20; t < 68; ++t) CHECK_EQ(monet_session_eval(session, &t, 1), MONET_OK);
    return wall_seconds() - start;
}

/* More threads than processors: in turn with two threads, the best of each. */
static void test_crowd(const char *path)
{
    monet_model *model = NULL;
    monet_error  err = {{0}, MONET_OK};
    double       best[3] = {1e9, 1e9, 1e9};
    static const int n_threads[3] = {1, 2, 16};
    monet_session *sessions[3] = {NULL, NULL, NULL};
    if (!CHECK_EQ(monet_model_load(path, NULL, &model, &err), MONET_OK)) return;
    for (int k = 0; k < 3; ++k) {
        monet_session_config config;
        monet_host           host = host_of(n_threads[k]);
        memset(&config, 0, sizeof config);
        config.host = &host;
        CHECK_EQ(monet_session_create(model, &config, &sessions[k], &err), MONET_OK);
    }
    for (int round = 0; round < 20; ++round)
        for (int k = 0; k < 3; ++k) {
            double seconds = decode_seconds(sessions[k]);
            if (seconds < best[k]) best[k] = seconds;
        }
    for (int k = 0; k < 3; ++k) {
        printf("  %d threads: %.2f ms, %.2f of 2 threads\n", n_threads[k], 1e3 * best[k],
               best[k] / best[1]);
        monet_session_free(sessions[k]);
    }
    CHECK(best[2] <= 1.5 * best[1]);
    monet_model_free(model);
}

int main(int argc, char **argv)
{
    static const tiny_options options[2] = {{.moe_groups = 2}, {.horizontal = 1, .tied = 1}};
    static subject subjects[2];
    thorough = argc > 1 && strcmp(argv[1], "long") == 0;
    for (int k = 0; k < 2; ++k) {
        subject *s = &subjects[k];
        if (!subject_make(s, &options[k])) return test_end("threads");
        test_counts_of_threads(s);
        test_training(s);
        if (k == 0) {
            test_neighbours(s);
            test_churn(s);
            test_fork(s);
            test_idle(s);
        }
        monet_model_free(s->model);
        tiny_drop(&s->file);
    }
    if (thorough) test_crowd("examples/monet-4m.monet");
    tiny_clean();
    return test_end("threads");
}
