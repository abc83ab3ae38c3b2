/* test_alloc.c: memory. The k-th allocation fails, once or from then on; sizes that come back; one
   allocation an object; none at all in eval and sample; threads that cannot be started.

   cc -O2 -pthread -I. tests/test_alloc.c -o test_alloc -lm && ./test_alloc                       */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <unistd.h>

static int threads_left = -1, threads_made, threads_joined;

/* Fails when threads_left have been made; -1 = never. */
static int counted_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*fn)(void *), void *arg)
{
    int result = EAGAIN;
    if (threads_left != 0) result = pthread_create(thread, attributes, fn, arg);
    if (threads_left > 0) threads_left--;
    threads_made += result == 0;
    return result;
}

static int counted_join(pthread_t thread, void **result)
{
    threads_joined++;
    return pthread_join(thread, result);
}

#define sysconf(name) 64L /* the pool makes no more threads than there are processors */
#define pthread_create counted_create
#define pthread_join counted_join
#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "heap.h"
#include "tiny.h"

static heap_count heap;
static monet_host host;                /* counts in heap */
static monet_error said;
static tiny_file file;                 /* a good model in memory ... */
static char path[256], target[256];    /* ... and on the disk; what save and the writer write */
static monet_model *model;             /* the same, loaded with host */

/* ---- the calls that allocate ----------------------------------------------------------------- */

/* Each does its work from nothing to nothing and returns the first error. */
static monet_result load(bool copy)
{
    monet_model_config config = {0};
    monet_model *m = NULL;
    monet_result result;
    config.host = host;
    config.copy = copy;
    config.verify = true;
    result = monet_model_load(path, &config, &m, &said);
    CHECK((m != NULL) == (result == MONET_OK));
    monet_model_free(m);
    return result;
}

static monet_result load_mapped(void)
{
    return load(false);
}

static monet_result load_copied(void)
{
    return load(true);
}

static monet_result load_memory(void)
{
    monet_model_config config = {0};
    monet_model *m = NULL;
    monet_result result;
    config.host = host;
    result = monet_model_load_memory(file.data, file.size, &config, &m, &said);
    CHECK((m != NULL) == (result == MONET_OK));
    monet_model_free(m);
    return result;
}

static monet_result session(void)
{
    monet_session *s = NULL;
    monet_result result = monet_session_create(model, NULL, &s, &said);
    CHECK((s != NULL) == (result == MONET_OK));
    monet_session_free(s);
    return result;
}

/* A word takes scratch memory if it is long: bytes that continue a character are never cut off. */
static const char *long_word(void)
{
    static char text[301];
    memset(text, 0x80, 300);
    return text;
}

static monet_result encode(void)
{
    int32_t tokens[400];
    size_t n = 1;
    monet_result result = monet_tokenizer_encode(monet_model_tokenizer(model), long_word(), 300,
                                                 MONET_ADD_BOS, tokens, 400, &n);
    CHECK(result == MONET_OK ? n > 100 : n == 0);
    said.code = result;
    strcpy(said.message, "encode gives no words, cannot allocate");
    return result;
}

static monet_result generate(void)
{
    monet_session_config config = {0};
    monet_generate_config g = {0};
    monet_generate_result r;
    monet_session *s = NULL;
    monet_result result;
    config.context = 400;
    g.max_tokens = 3;
    g.ignore_eos = true;
    result = monet_session_create(model, &config, &s, &said);
    if (result == MONET_OK) {
        result = monet_session_generate(s, long_word(), &g, &r);
        said = *monet_session_error(s);
        CHECK_EQ(monet_session_length(s), result == MONET_OK ? r.n_prompt + r.n_tokens - 1 : 0);
        CHECK_EQ(r.n_tokens, result == MONET_OK ? 3 : 0);
    }
    monet_session_free(s);
    return result;
}

static monet_result write_file(void)
{
    tiny_options options = {0};
    monet_writer_config config;
    monet_writer *w = NULL;
    monet_result result;
    tiny_config(&config, &options);
    config.host = host;
    result = monet_writer_create(target, &config, &w, &said);
    CHECK((w != NULL) == (result == MONET_OK));
    if (result == MONET_OK) result = tiny_rows(w, config.tensors, config.n_tensors, 0, &said);
    if (result == MONET_OK) result = monet_writer_finish(w, &said);
    monet_writer_free(w);
    return result;
}

static monet_result save(void)
{
    return monet_model_save(model, target, &said);
}

/* ---- the k-th allocation fails --------------------------------------------------------------- */

static void each_failure(const char *name, monet_result (*call)(void), int expected)
{
    long live = heap.live, calls = heap.calls, n;
    const int before = tiny_files();
    CHECK_EQ(call(), MONET_OK);
    n = heap.calls - calls;
    if (!CHECK_EQ(n, expected)) printf("    allocations of %s\n", name);
    (void)remove(target);
    for (long k = 1; k <= n; k++)
        for (heap.sticky = 0; heap.sticky < 2; heap.sticky++) {
            memset(&said, 0, sizeof said);
            heap.fail_at = heap.calls + k;
            if (!CHECK_EQ(call(), MONET_ERROR_MEMORY)) printf("    %s, %ld\n", name, k);
            heap.fail_at = 0;
            CHECK_EQ(said.code, MONET_ERROR_MEMORY);
            CHECK(strstr(said.message, "cannot "));
            CHECK_EQ(heap.live, live);
            CHECK_EQ(tiny_files(), before);
            CHECK_EQ(call(), MONET_OK); /* again, and it works */
            CHECK_EQ(heap.live, live);
            (void)remove(target);
        }
    CHECK_EQ(heap.wrong, 0);
}

/* ---- one allocation an object, none in between ----------------------------------------------- */

static void one_each(void)
{
    monet_model_config config = {0};
    monet_writer_config w_config;
    tiny_options options = {0};
    monet_model *m = NULL;
    monet_session *s = NULL;
    monet_writer *w = NULL;
    long live = heap.live;
    config.host = host;
    CHECK_EQ(monet_model_load(path, &config, &m, NULL), MONET_OK);
    CHECK_EQ(heap.live, live + 1);
    monet_model_free(m);
    config.copy = true;
    CHECK_EQ(monet_model_load(path, &config, &m, NULL), MONET_OK);
    CHECK_EQ(heap.live, live + 2); /* and the file itself */
    monet_model_free(m);
    CHECK_EQ(monet_model_load_memory(file.data, file.size, &config, &m, NULL), MONET_OK);
    CHECK_EQ(heap.live, live + 1);
    monet_model_free(m);
    CHECK_EQ(monet_session_create(model, NULL, &s, NULL), MONET_OK);
    CHECK_EQ(heap.live, live + 1);
    monet_session_free(s);
    tiny_config(&w_config, &options);
    w_config.host = host;
    CHECK_EQ(monet_writer_create(target, &w_config, &w, NULL), MONET_OK);
    CHECK_EQ(heap.live, live + 1);
    monet_writer_free(w);
    CHECK_EQ(heap.live, live);
}

static bool tap(void *user, monet_site site, int32_t layer, int32_t first, int32_t count,
                monet_real *data)
{
    (void)site, (void)layer, (void)first, (void)data;
    *(int32_t *)user += count;
    return true;
}

static void none_in_between(void)
{
    const monet_tokenizer *t = monet_model_tokenizer(model);
    const int32_t tokens[5] = {1, 259, 260, 261, 262};
    const float embeddings[32] = {0};
    monet_session_config config = {0};
    monet_sampler sampler = {0.8f, 40, 0.9f, 0.01f, 1.1f, 8, 1, 0};
    monet_session *s = NULL;
    monet_routing routing;
    monet_expert experts[4];
    int32_t token, seen = 0;
    size_t n = 0;
    float logprob, x[16], logits[TINY_VOCAB];
    static monet_part parts[200];
    static char bytes[40000];
    double nats;
    char text[64];
    long calls;
    config.capture_routing = config.capture_activations = config.all_logits = true;
    config.kv_dtype = MONET_F16;
    CHECK_EQ(monet_session_create(model, &config, &s, NULL), MONET_OK);
    calls = heap.calls;
    CHECK_EQ(tiny_tap(s, tap, &seen), MONET_OK);
    CHECK_EQ(monet_session_eval(s, tokens, 5), MONET_OK);
    CHECK_EQ(monet_session_eval_embeddings(s, embeddings, 2), MONET_OK);
    CHECK_EQ(monet_session_sample(s, &sampler, &token, &logprob), MONET_OK);
    CHECK_EQ(monet_session_sample(s, NULL, &token, NULL), MONET_OK);
    CHECK_EQ(monet_session_routing(s, 1, 1, &routing), MONET_OK);
    CHECK(monet_routing_experts(&routing, 0, experts, 4) > 0);
    CHECK(monet_session_logits_at(s, 1) != NULL);
    CHECK_EQ(monet_session_contribution(s, 1, 1, experts[0].i, experts[0].j, x), MONET_OK);
    CHECK_EQ(monet_session_attribution(s, 1, 3, parts, 200, &n), MONET_OK);
    CHECK_EQ(monet_session_lens(s, x, logits), MONET_OK);
    CHECK_EQ(monet_session_loss(s, tokens, 5, &nats), MONET_OK);
    CHECK_EQ(monet_session_snapshot(s, bytes, sizeof bytes, &n), MONET_OK);
    CHECK_EQ(monet_session_restore(s, bytes, n), MONET_OK);
    CHECK_EQ(monet_session_rewind(s, 3), MONET_OK);
    CHECK_EQ(monet_session_eval(s, tokens, 1), MONET_OK);
    CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
    CHECK_EQ(monet_session_eval(s, tokens, 99), MONET_ERROR_CONTEXT_FULL);
    CHECK_EQ(monet_tokenizer_decode(t, tokens, 5, text, 64, &n), MONET_OK);
    CHECK_EQ(monet_tokenizer_encode(t, "a b c abc", 9, 0, NULL, 0, &n), MONET_ERROR_CAPACITY);
    CHECK(monet_tokenizer_find(t, "abc", 3) == 268 && monet_tokenizer_bytes(t, 268, &n));
    CHECK_EQ(monet_model_verify(model, NULL), MONET_OK);
    CHECK(seen > 0 && monet_model_find_tensor(model, "norm.weight") != NULL);
    CHECK_EQ(heap.calls, calls);
    monet_session_free(s);
}

/* The session's own host, and memory of the caller: of exactly the size that it asks for. */
static void other_memory(void)
{
    monet_session_config config = {0};
    monet_session *s = NULL;
    heap_count other;
    monet_host other_host = heap_host(&other);
    tiny_file memory;
    const int32_t token = 1;
    const long calls = heap.calls;
    size_t size = 0;
    config.host = &other_host;
    CHECK_EQ(monet_session_size(model, &config, &size), MONET_OK);
    CHECK_EQ(monet_session_create(model, &config, &s, NULL), MONET_OK);
    CHECK_EQ(other.live, 1);
    CHECK(other.now >= size && other.now <= size + 64);
    CHECK_EQ(monet_session_eval(s, &token, 1), MONET_OK);
    monet_session_free(s);
    memory = tiny_new(size);
    config.memory = memory.data;
    config.memory_size = size;
    CHECK_EQ(monet_session_create(model, &config, &s, NULL), MONET_OK);
    CHECK_EQ(monet_session_eval(s, &token, 1), MONET_OK);
    monet_session_free(s);
    CHECK(other.calls == 1 && other.live == 0 && other.wrong == 0);
    CHECK_EQ(heap.calls, calls);
    tiny_drop(&memory);
}

/* ---- memory of any alignment ----------------------------------------------------------------- */

static long odd_live;

static void *odd_alloc(void *user, size_t size)
{
    char *p = (char *)malloc(size + *(const size_t *)user);
    odd_live += p != NULL;
    return p ? p + *(const size_t *)user : NULL;
}

static void odd_free(void *user, void *ptr, size_t size)
{
    (void)size;
    odd_live--;
    free((char *)ptr - *(const size_t *)user);
}

static void any_alignment(void)
{
    for (size_t shift = 1; shift < 64; shift += 1 + shift / 2) {
        monet_host saved = host;
        monet_model_config config = {0};
        monet_model *kept = model;
        host.alloc_fn = odd_alloc;
        host.free_fn = odd_free;
        host.user = &shift;
        config.host = host;
        config.copy = shift % 2 != 0;
        CHECK_EQ(monet_model_load(path, &config, &model, NULL), MONET_OK);
        CHECK_EQ(generate(), MONET_OK);
        CHECK_EQ(save(), MONET_OK);
        CHECK_EQ(write_file(), MONET_OK);
        monet_model_free(model);
        (void)remove(target);
        model = kept;
        host = saved;
        CHECK_EQ(odd_live, 0);
    }
}

/* ---- threads and parallel_fn ----------------------------------------------------------------- */

/* The host runs the tasks, the last one first. */
static void backwards(void *user, int count, void (*task)(void *arg, int index), void *arg)
{
    int *most = (int *)user;
    if (count > *most) *most = count;
    while (count-- > 0) task(arg, count);
}

static void parallel(void)
{
    const int32_t tokens[4] = {1, 260, 261, 262};
    monet_session_config config = {0};
    monet_host own = {NULL, NULL, backwards, 3, NULL};
    monet_session *one = NULL, *s = NULL;
    int most = 0;
    own.user = &most;
    config.host = &own;
    CHECK_EQ(monet_session_create(model, NULL, &one, NULL), MONET_OK);
    CHECK_EQ(monet_session_create(model, &config, &s, NULL), MONET_OK);
    CHECK_EQ(monet_session_eval(one, tokens, 4), MONET_OK);
    CHECK_EQ(monet_session_eval(s, tokens, 4), MONET_OK);
    CHECK(!memcmp(monet_session_logits(s), monet_session_logits(one), TINY_VOCAB * 4));
    CHECK_EQ(most, 3);
    CHECK_EQ(threads_made, 0);
    monet_session_free(s);
    monet_session_free(one);
}

static void threads(void)
{
    monet_session_config config = {0};
    monet_host four = host;
    monet_session *one = NULL, *s = NULL;
    const int32_t tokens[4] = {1, 260, 261, 262};
    const long live = heap.live;
    four.n_threads = 4;
    CHECK_EQ(monet_session_create(model, NULL, &one, NULL), MONET_OK);
    CHECK_EQ(monet_session_eval(one, tokens, 4), MONET_OK);
    CHECK_EQ(threads_made, 0);
    config.host = &four;
    for (int k = 0; k <= 3; k++) {
        threads_left = k < 3 ? k : -1;
        threads_made = threads_joined = 0;
        CHECK_EQ(monet_session_create(model, &config, &s, &said),
                 k < 3 ? MONET_ERROR_MEMORY : MONET_OK);
        CHECK_EQ(threads_made, k);
        CHECK((s != NULL) == (k == 3));
        if (k < 3) CHECK_HAS(said.message, "cannot start 4 threads");
        if (k < 3) CHECK_EQ(heap.live, live + 1);
        if (s) CHECK_EQ(monet_session_eval(s, tokens, 4), MONET_OK);
        if (s) CHECK(!memcmp(monet_session_logits(s), monet_session_logits(one), TINY_VOCAB * 4));
        monet_session_free(s);
        CHECK_EQ(threads_joined, threads_made);
    }
    monet_session_free(one);
    CHECK_EQ(heap.live, live);
}

int main(void)
{
    tiny_options options = {0};
    monet_model_config config = {0};
    file = tiny_make(&options);
    strcpy(path, tiny_path("model.monet"));
    strcpy(target, tiny_path("target.monet"));
    CHECK_EQ(tiny_write(path, &options, &said), MONET_OK);
    config.host = host = heap_host(&heap);
    CHECK_EQ(monet_model_load(path, &config, &model, &said), MONET_OK);
    each_failure("load, mapped", load_mapped, 1);
    each_failure("load, copied", load_copied, 2);
    each_failure("load_memory", load_memory, 1);
    each_failure("session", session, 1);
    each_failure("encode", encode, 1);
    each_failure("generate", generate, 2);
    each_failure("writer", write_file, 2);
    each_failure("save", save, 1);
    one_each();
    none_in_between();
    other_memory();
    any_alignment();
    parallel();
    threads();
    monet_model_free(model);
    CHECK(heap.live == 0 && heap.wrong == 0);
    (void)remove(path);
    tiny_drop(&file);
    tiny_clean();
    return test_end("alloc");
}
