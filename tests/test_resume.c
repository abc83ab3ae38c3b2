/* test_resume.c: checkpoints. Training goes on from a file as if it had never stopped, bit for bit;
   a file that is damaged is refused in words; a save that fails, or is killed, leaves the old file.

   cc -O2 -pthread -I. tests/test_resume.c -o test_resume -lm && ./test_resume

   The calls of monet.h that open, write, sync, close, rename, read and start threads go through
   functions of this test, which fail at the k-th call, do half of the work, or end the process.  */
#define _XOPEN_SOURCE 700
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "faults.h"

static int threads_left = -1; /* so many threads can be started; -1 = any number */

static int io_thread(pthread_t *thread, const pthread_attr_t *attributes, void *(*fn)(void *),
                     void *arg)
{
    if (threads_left == 0) return EAGAIN;
    if (threads_left > 0) threads_left--;
    return pthread_create(thread, attributes, fn, arg);
}

#define sysconf(name) 64L /* the pool makes no more threads than there are processors */
#define pthread_create io_thread
#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "heap.h"
#include "tiny.h"

enum { B = 2, T = 6, BT = B * T, STEPS = 10 };
enum { ARCH = 1, TENSORS, TOKENIZER, METADATA, DATA, STATE, MOMENTS }; /* sections */

static monet_error said;
static monet_model *model;
static heap_count heap;
static monet_host host;        /* counts in heap */
static char target[256];       /* what is saved and loaded */
static monet_trainer *trainer; /* what is saved, where one is enough */

/* ---- trainers and files ---------------------------------------------------------------------- */

static monet_trainer_config usual(int threads)
{
    static monet_host hosts[16];
    monet_trainer_config c;
    memset(&c, 0, sizeof c);
    memset(&hosts[threads], 0, sizeof hosts[threads]);
    hosts[threads].n_threads = threads;
    c.batch_size = B;
    c.seq_len = T;
    c.weight_decay = 0.1f;
    c.grad_clip = 1;
    c.uniformity = c.ambiguity = 0.01f;
    c.host = &hosts[threads];
    return c;
}

static monet_trainer *open_trainer(int threads)
{
    monet_trainer_config c = usual(threads);
    monet_trainer *t = NULL;
    if (!CHECK_EQ(monet_trainer_create(model, &c, &t, &said), MONET_OK))
        printf("    %s\n", said.message);
    return t;
}

static void pass(monet_trainer *t, int number)
{
    int32_t tokens[BT], targets[BT];
    for (int k = 0; k < BT; k++) {
        uint64_t x = tiny_mix((uint64_t)(number * BT + k) + 77);
        tokens[k] = (int32_t)(x % TINY_VOCAB);
        targets[k] = x >> 40 & 7 ? (int32_t)((x >> 20) % TINY_VOCAB) : -1;
    }
    CHECK_EQ(monet_trainer_forward(t, tokens, targets, NULL), MONET_OK);
    CHECK_EQ(monet_trainer_backward(t), MONET_OK);
}

static void step(monet_trainer *t, int number)
{
    pass(t, number);
    CHECK_EQ(monet_trainer_update(t, monet_rate_cosine(number, 3, STEPS, 0.01f, 0.001f), NULL),
             MONET_OK);
}

static monet_result load_with(int threads, monet_trainer **out)
{
    monet_trainer_config c = usual(threads);
    memset(&said, 0, sizeof said);
    return monet_trainer_load(target, &c, out, &said);
}

static monet_trainer *load(int threads)
{
    monet_trainer *t = NULL;
    if (!CHECK_EQ(load_with(threads, &t), MONET_OK)) printf("    %s\n", said.message);
    return t;
}

static void save(const monet_trainer *t, const void *user, size_t size)
{
    if (!CHECK_EQ(monet_trainer_save(t, target, user, size, &said), MONET_OK))
        printf("    %s\n", said.message);
}

static void put_file(const char *path, const tiny_file *f)
{
    FILE *out = fopen(path, "wb");
    if (CHECK(out != NULL)) {
        CHECK_EQ(fwrite(f->data, 1, f->size, out), f->size);
        fclose(out);
    }
}

static bool same_file(const tiny_file *a, const tiny_file *b)
{
    return a->data && b->data && a->size == b->size && !memcmp(a->data, b->data, a->size);
}

/* Is the target this file, byte for byte? NULL: is there none? */
static bool target_is(const tiny_file *f)
{
    tiny_file now = tiny_read(target);
    bool same = f ? same_file(&now, f) : now.data == NULL;
    tiny_drop(&now);
    return same;
}

/* ---- going on -------------------------------------------------------------------------------- */

/* Stops before step `at`, goes on with other threads, and ends with the same file. */
static void stop_at(const monet_trainer *t, int at, const tiny_file *end)
{
    monet_trainer *other;
    monet_counts counts = {0, 0, 0};
    size_t size = 0;
    const void *user;
    save(t, &at, sizeof at);
    other = load(at % 5 + 1);
    if (!other) return;
    user = monet_trainer_user(other, &size);
    CHECK(user && size == sizeof at && !memcmp(user, &at, size));
    CHECK_EQ(monet_trainer_counts(other, &counts), MONET_OK);
    CHECK(counts.steps == at && counts.batches == at && counts.skipped == 0);
    for (int k = at; k < STEPS; k++) step(other, k);
    save(other, "end", 3);
    if (!CHECK(target_is(end))) printf("    stopped before step %d\n", at);
    monet_trainer_free(other);
}

static void resume(void)
{
    monet_trainer *t = open_trainer(1);
    tiny_file end;
    for (int k = 0; k < STEPS; k++) step(t, k);
    save(t, "end", 3);
    end = tiny_read(target);
    monet_trainer_free(t);
    t = open_trainer(4);
    for (int k = 0; k <= STEPS; k++) {
        stop_at(t, k, &end);
        if (k < STEPS) step(t, k);
    }
    monet_trainer_free(t);
    t = open_trainer(3);
    for (int k = 0; k < STEPS; k++) { /* a stop after every step, one after the other */
        step(t, k);
        save(t, NULL, 0);
        monet_trainer_free(t);
        t = load(k % 4 + 1);
        CHECK(monet_trainer_user(t, NULL) == NULL);
    }
    save(t, "end", 3);
    CHECK(target_is(&end));
    monet_trainer_free(t);
    tiny_drop(&end);
    (void)remove(target);
}

/* Batches in parts, a skipped update, and a forward without backward are no obstacle. */
static void resume_anywhere(void)
{
    monet_trainer *t = open_trainer(1), *other;
    monet_counts counts = {0, 0, 0};
    int32_t tokens[BT] = {1, 2, 3}, targets[BT] = {2, 3, 4};
    tiny_file one;
    step(t, 0);
    pass(t, 1);
    monet_trainer_grads(t, NULL)[0] = NAN;
    CHECK_EQ(monet_trainer_update(t, 0.1f, NULL), MONET_OK);
    CHECK_EQ(monet_trainer_forward(t, tokens, targets, NULL), MONET_OK);
    save(t, "x", 1);
    other = load(2);
    CHECK_EQ(monet_trainer_counts(other, &counts), MONET_OK);
    CHECK(counts.steps == 1 && counts.skipped == 1 && counts.batches == 3);
    CHECK_EQ(monet_trainer_backward(other), MONET_ERROR_STATE); /* that forward was the other's */
    pass(t, 1);
    pass(t, 2);
    CHECK_EQ(monet_trainer_save(t, target, NULL, 0, &said), MONET_ERROR_STATE);
    CHECK_HAS(said.message, "between backward and update");
    CHECK_EQ(monet_trainer_update(t, 0.01f, NULL), MONET_OK);
    pass(other, 1);
    pass(other, 2);
    CHECK_EQ(monet_trainer_update(other, 0.01f, NULL), MONET_OK);
    save(t, NULL, 0);
    one = tiny_read(target);
    save(other, NULL, 0);
    CHECK(target_is(&one));
    tiny_drop(&one);
    monet_trainer_free(other);
    monet_trainer_free(t);
    (void)remove(target);
}

/* User bytes of any kind and size. */
static void user_bytes(void)
{
    static const size_t sizes[] = {0, 1, 39, 40, 41, 64, 1000, 100003};
    uint8_t *bytes = (uint8_t *)malloc(100003);
    for (size_t k = 0; k < 100003; k++) bytes[k] = (uint8_t)tiny_mix(k);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        monet_trainer *t;
        size_t size = 7;
        const void *user;
        save(trainer, bytes, sizes[k]);
        t = load(1);
        user = monet_trainer_user(t, &size);
        CHECK_EQ(size, sizes[k]);
        CHECK(sizes[k] ? user && !memcmp(user, bytes, size) : user == NULL);
        monet_trainer_free(t);
    }
    free(bytes);
    (void)remove(target);
}

/* ---- a checkpoint is a model ----------------------------------------------------------------- */

static bool same_logits(const monet_model *a, const monet_model *b)
{
    const int32_t tokens[5] = {1, 260, 3, 99, 261};
    monet_session *s[2] = {NULL, NULL};
    const monet_model *m[2];
    bool same;
    m[0] = a, m[1] = b;
    for (int k = 0; k < 2; k++) {
        CHECK_EQ(monet_session_create(m[k], NULL, &s[k], NULL), MONET_OK);
        CHECK_EQ(monet_session_eval(s[k], tokens, 5), MONET_OK);
    }
    same = !memcmp(monet_session_logits(s[0]), monet_session_logits(s[1]), TINY_VOCAB * 4);
    monet_session_free(s[0]);
    monet_session_free(s[1]);
    return same;
}

static void is_a_model(void)
{
    monet_model_config config = {0};
    const monet_model *mine = monet_trainer_model(trainer);
    monet_model *m = NULL;
    monet_trainer_config c = usual(1);
    monet_trainer *fresh = NULL;
    tiny_file checkpoint, plain;
    CHECK(!same_logits(mine, model)); /* it has learned something */
    save(trainer, "user", 4);
    checkpoint = tiny_read(target);
    for (int k = 0; k < 2; k++) {
        config.verify = true;
        config.copy = k;
        CHECK_EQ(monet_model_load(target, &config, &m, &said), MONET_OK);
        CHECK(same_logits(mine, m));
        CHECK_EQ(monet_model_verify(m, NULL), MONET_OK);
        CHECK_STR(monet_model_metadata(m, "general.name"), "tiny");
        CHECK_EQ(monet_tokenizer_find(monet_model_tokenizer(m), "abc", 3), 268);
        CHECK_EQ(monet_trainer_create(m, &c, &fresh, NULL), MONET_OK); /* from step 0 on */
        CHECK(monet_trainer_user(fresh, NULL) == NULL);
        monet_trainer_free(fresh);
        if (k) CHECK_EQ(monet_model_save(m, target, &said), MONET_OK);
        monet_model_free(m);
    }
    plain = tiny_read(target); /* the model alone */
    CHECK(plain.size < checkpoint.size / 2);
    CHECK_EQ(load_with(1, &fresh), MONET_ERROR_FORMAT);
    CHECK_HAS(said.message, "no training state");
    CHECK_EQ(monet_model_save(mine, target, &said), MONET_OK);
    CHECK(target_is(&plain));
    CHECK_EQ(monet_model_load(target, &config, &m, &said), MONET_OK);
    CHECK(same_logits(mine, m));
    monet_model_free(m);
    tiny_drop(&checkpoint);
    tiny_drop(&plain);
    (void)remove(target);
}

/* ---- wrong calls ----------------------------------------------------------------------------- */

static void wrong_calls(void)
{
    static const char *const freeze[] = {"no.such.*"};
    monet_trainer_config c = usual(1);
    monet_trainer *t = trainer;
    save(trainer, "u", 1);
    CHECK_EQ(monet_trainer_save(NULL, target, NULL, 0, &said), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_save(trainer, NULL, NULL, 0, &said), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_save(trainer, target, NULL, 1, &said), MONET_ERROR_ARGUMENT);
    CHECK_HAS(said.message, "NULL");
    CHECK_EQ(monet_trainer_save(trainer, target, "x", SIZE_MAX, NULL), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_load(NULL, &c, &t, &said), MONET_ERROR_ARGUMENT);
    CHECK(t == NULL);
    CHECK_EQ(monet_trainer_load(target, &c, NULL, &said), MONET_ERROR_ARGUMENT);
    CHECK_EQ(monet_trainer_load("/no/such/file", &c, &t, &said), MONET_ERROR_IO);
    CHECK_HAS(said.message, "/no/such/file");
    c.struct_size = 5000;
    CHECK_EQ(monet_trainer_load(target, &c, &t, &said), MONET_ERROR_VERSION);
    c.struct_size = 0;
    c.batch_size = -3;
    CHECK_EQ(monet_trainer_load(target, &c, &t, &said), MONET_ERROR_ARGUMENT);
    CHECK_HAS(said.message, "batch_size is -3");
    c.batch_size = 1;
    c.freeze = freeze;
    c.n_freeze = 1;
    CHECK_EQ(monet_trainer_load(target, &c, &t, &said), MONET_ERROR_ARGUMENT);
    CHECK_HAS(said.message, "no.such.*");
    CHECK(t == NULL);
    CHECK_EQ(monet_trainer_load(target, NULL, &t, &said), MONET_OK); /* another shape of batches */
    monet_trainer_free(t);
    (void)remove(target);
}

/* ---- damaged files --------------------------------------------------------------------------- */

/* The target must be refused, without a leak. */
static bool refused(monet_result code, const char *words)
{
    monet_trainer_config c = usual(1);
    monet_trainer *t = trainer;
    const long live = heap.live;
    const int n_open = io.open;
    monet_result result;
    bool ok;
    c.host = &host;
    memset(&said, 0, sizeof said);
    result = monet_trainer_load(target, &c, &t, &said);
    ok = result != MONET_OK && (code == MONET_OK || result == code) && t == NULL &&
         said.code == result && strstr(said.message, target) &&
         (!words || strstr(said.message, words)) && heap.live == live && io.open == n_open &&
         heap.wrong == 0;
    if (t && result == MONET_OK) monet_trainer_free(t);
    return ok;
}

static void cut_short(const tiny_file *good)
{
    int wrong = 0;
    char words[64];
    put_file(target, good);
    for (size_t n = good->size; n-- > 0;) {
        if (n > 2048 && n < good->size - 200 && n % 1021) continue;
        if (truncate(target, (off_t)n)) wrong++;
        snprintf(words, sizeof words, "file is %zu bytes", n);
        wrong += !refused(MONET_ERROR_FORMAT, words);
        if (wrong && wrong < 5) printf("    %zu: %s\n", n, said.message);
    }
    CHECK_EQ(wrong, 0);
    put_file(target, good);
    for (size_t n = good->size + 1; n <= good->size + 64; n++) {
        if (truncate(target, (off_t)n)) wrong++;
        snprintf(words, sizeof words, "file is %zu bytes, header says %zu", n, good->size);
        wrong += !refused(MONET_ERROR_FORMAT, words);
    }
    CHECK_EQ(wrong, 0);
}

static void flip(FILE *file, const tiny_file *good, size_t at, int bit)
{
    int byte = bit < 0 ? good->data[at] : good->data[at] ^ 1 << bit;
    if (fseek(file, (long)at, SEEK_SET) || fputc(byte, file) == EOF || fflush(file)) exit(2);
}

/* Every bit of the header, the table, the architecture and the state; some of the rest. */
static void flipped(const tiny_file *good)
{
    const size_t state = (size_t)tiny_at(good, STATE), entries = (size_t)tiny_at(good, TENSORS);
    int wrong = 0, tried = 0;
    FILE *file;
    put_file(target, good);
    file = fopen(target, "r+b");
    if (!CHECK(file != NULL)) return;
    for (size_t k = 0; k < 8 * good->size; k++) {
        size_t at = k / 8;
        bool all = at < entries || (at >= state && at < state + 128);
        if (!all && tiny_mix(k) % (8 * good->size / 700)) continue;
        flip(file, good, at, (int)k % 8);
        if (!refused(MONET_OK, NULL) && wrong++ < 5)
            printf("    byte %zu, bit %d: %s\n", at, (int)k % 8, said.message);
        flip(file, good, at, -1);
        tried++;
    }
    CHECK(tried > 4000);
    CHECK_EQ(wrong, 0);
    fclose(file);
    CHECK(target_is(good));
    printf("  %d bits flipped\n", tried);
}

/* One field has another value, and all hashes are right. */
static void field(const tiny_file *good, uint64_t at, int bytes, uint64_t value,
                  monet_result code, const char *words)
{
    tiny_file bad = tiny_copy(good, good->size);
    tiny_put(&bad, at, bytes, value);
    tiny_rehash(&bad);
    put_file(target, &bad);
    if (!CHECK(refused(code, words)))
        printf("    byte %d = %llu: %s, expected %s\n", (int)at, (unsigned long long)value,
               said.message, words);
    tiny_drop(&bad);
}

static void state_fields(const tiny_file *good)
{
    static const uint64_t bad[] = {(uint64_t)INT64_MAX / 2 + 1, (uint64_t)INT64_MAX,
                                   (uint64_t)INT64_MAX + 1, UINT64_MAX};
    const uint64_t state = tiny_at(good, STATE), entry = tiny_entry(good, STATE);
    for (uint64_t k = 0; k < 3; k++)
        for (size_t v = 0; v < 4; v++) {
            char words[64];
            snprintf(words, sizeof words, "count %d is %llu", (int)k, (unsigned long long)bad[v]);
            field(good, state + 8 * k, 8, bad[v], MONET_ERROR_FORMAT, words);
        }
    field(good, entry, 4, 99, MONET_ERROR_FORMAT, "training state without section 6");
    field(good, entry, 4, MOMENTS, MONET_ERROR_FORMAT, "twice");
    field(good, entry, 4, DATA, MONET_ERROR_FORMAT, NULL);
    field(good, entry, 4, 0, MONET_ERROR_FORMAT, "kind is 0");
    field(good, entry + 8, 8, state + 64, MONET_ERROR_FORMAT, "expected to begin");
    field(good, entry + 8, 8, 0, MONET_ERROR_FORMAT, "expected to begin");
    for (uint64_t size = 65; size < 70; size++)
        field(good, entry + 16, 8, size, MONET_ERROR_FORMAT, NULL);
    field(good, entry + 16, 8, UINT64_MAX - 63, MONET_ERROR_FORMAT, NULL);
    field(good, entry + 16, 8, UINT64_MAX, MONET_ERROR_FORMAT, NULL);
}

/* A state section of fewer bytes: what is left of the old one is cleared. */
static void short_state(const tiny_file *good)
{
    const uint64_t state = tiny_at(good, STATE), entry = tiny_entry(good, STATE);
    for (uint64_t size = 1; size < 24; size++) {
        tiny_file bad = tiny_copy(good, good->size);
        char words[64];
        memset(bad.data + state + size, 0, (size_t)(64 - size));
        tiny_put(&bad, entry + 16, 8, size);
        tiny_rehash(&bad);
        put_file(target, &bad);
        snprintf(words, sizeof words, "state section is %d bytes, needs 24", (int)size);
        CHECK(refused(MONET_ERROR_FORMAT, words));
        tiny_drop(&bad);
    }
}

static void moments_fields(const tiny_file *good)
{
    static const uint32_t bad[] = {0x7fc00000, 0x7f800001, 0xffffffff, 0x7f800000, 0xff800000};
    const uint64_t at = tiny_at(good, MOMENTS), entry = tiny_entry(good, MOMENTS);
    const uint64_t size = tiny_get(good, entry + 16, 8);
    for (uint64_t k = 0; k < 5; k++) {
        field(good, at, 4, bad[k], MONET_ERROR_NUMERIC, "number 0 is not finite");
        field(good, at + size / 2, 4, bad[k], MONET_ERROR_NUMERIC, "not finite");
        field(good, at + size - 4, 4, bad[k], MONET_ERROR_NUMERIC, "not finite");
    }
    field(good, at + size / 2, 4, 0xbf800000, MONET_ERROR_NUMERIC, "negative");
    field(good, at + size - 4, 4, 0x80000001, MONET_ERROR_NUMERIC, "negative");
    field(good, entry, 4, 98, MONET_ERROR_FORMAT, "training state without section 7");
    field(good, entry, 4, STATE, MONET_ERROR_FORMAT, "twice");
    field(good, entry + 8, 8, at - 64, MONET_ERROR_FORMAT, "expected to begin");
    field(good, entry + 16, 8, size - 4, MONET_ERROR_FORMAT, NULL);
    field(good, entry + 16, 8, size + 64, MONET_ERROR_FORMAT, NULL);
    field(good, entry + 16, 8, UINT64_MAX - at + 1, MONET_ERROR_FORMAT, NULL);
    for (int k = -1; k <= 1; k += 2) { /* a moment too few, a moment too many */
        tiny_file other = tiny_copy(good, (size_t)((int64_t)good->size + 64 * k));
        char words[80];
        tiny_put(&other, 16, 8, other.size);
        tiny_put(&other, entry + 16, 8, (uint64_t)((int64_t)size + 64 * k));
        tiny_rehash(&other);
        put_file(target, &other);
        snprintf(words, sizeof words, "moments section is %lld bytes, expected %lld",
                 (long long)((int64_t)size + 64 * k), (long long)size);
        if (!CHECK(refused(MONET_ERROR_FORMAT, words))) printf("    %s\n", said.message);
        tiny_drop(&other);
    }
}

/* A model file with a state of `state` bytes and moments put behind it: kinds, sizes and hashes are
   right. The table has two entries more, so all else moves on by 64 bytes.                       */
static tiny_file with_sections(const tiny_file *f, uint64_t state, uint64_t moments)
{
    const uint64_t n = tiny_get(f, 32, 4), end = 64 + 40 * n, gap = (64 - end % 64) % 64;
    const uint64_t move = (end + 80 + 63) / 64 * 64 - end - gap, room = (state + 63) / 64 * 64;
    tiny_file out = tiny_copy(f, (size_t)(f->size + move + room + moments));
    uint64_t at = f->size + move;
    memset(out.data + end, 0, out.size - (size_t)end);
    memcpy(out.data + end + gap + move, f->data + end + gap, f->size - (size_t)(end + gap));
    for (uint64_t k = 0; k < n; k++)
        tiny_put(&out, 64 + 40 * k + 8, 8, tiny_get(f, 64 + 40 * k + 8, 8) + move);
    for (uint64_t k = 0; k < 2; k++) {
        tiny_put(&out, end + 40 * k, 4, k ? MOMENTS : STATE);
        tiny_put(&out, end + 40 * k + 8, 8, at);
        tiny_put(&out, end + 40 * k + 16, 8, k ? moments : state);
        tiny_put(&out, end + 40 * k + 32, 8, 1);
        at += room;
    }
    tiny_put(&out, 32, 4, n + 2);
    tiny_put(&out, 16, 8, out.size);
    tiny_rehash(&out);
    return out;
}

/* State and moments that fit no f32 model: of a bf16 one, of a tokenizer alone. */
static void other_files(void)
{
    for (int k = 0; k < 3; k++) {
        tiny_options options = {0};
        tiny_file file, made;
        uint64_t data = 0;
        if (k == 1) options.dtype = MONET_BF16;
        options.no_weights = k == 2;
        file = tiny_make(&options);
        if (k < 2) data = tiny_get(&file, tiny_entry(&file, DATA) + 16, 8);
        made = with_sections(&file, 32, 2 * data);
        put_file(target, &made);
        if (k == 0) { /* so it is done right: this one is a checkpoint, of step 0 */
            monet_trainer *t = load(1);
            CHECK(t != NULL);
            if (t) step(t, 0);
            monet_trainer_free(t);
        }
        if (k == 1) CHECK(refused(MONET_ERROR_FORMAT, "dtype is bf16, a checkpoint has f32"));
        if (k == 2) CHECK(refused(MONET_OK, NULL));
        tiny_drop(&made);
        tiny_drop(&file);
    }
    (void)remove(target);
}

static void damaged(void)
{
    const long live = heap.live;
    tiny_file good;
    save(trainer, "8 bytes.", 8);
    good = tiny_read(target);
    cut_short(&good);
    flipped(&good);
    state_fields(&good);
    short_state(&good);
    moments_fields(&good);
    put_file(target, &good);
    monet_trainer_free(load(1)); /* and the good one is good */
    CHECK_EQ(heap.live, live);
    tiny_drop(&good);
    (void)remove(target);
    other_files();
}

/* ---- memory ---------------------------------------------------------------------------------- */

static monet_trainer *heap_trainer; /* allocates with host */

static monet_result do_create(void)
{
    monet_trainer_config c = usual(1);
    monet_trainer *t = NULL;
    monet_result result;
    c.host = &host;
    result = monet_trainer_create(model, &c, &t, &said);
    CHECK((t != NULL) == (result == MONET_OK));
    monet_trainer_free(t);
    return result;
}

static monet_result do_new(void)
{
    tiny_options options = {0};
    monet_writer_config content;
    monet_model_config config = {0};
    monet_model *m = NULL;
    monet_result result;
    tiny_config(&content, &options);
    content.tensors = NULL, content.n_tensors = 0;
    config.host = host;
    result = monet_model_create(&content, 3, &config, &m, &said);
    CHECK((m != NULL) == (result == MONET_OK));
    monet_model_free(m);
    return result;
}

static monet_result do_load(void)
{
    monet_trainer_config c = usual(1);
    monet_trainer *t = NULL;
    monet_result result;
    c.host = &host;
    result = monet_trainer_load(tiny_path("source.monet"), &c, &t, &said);
    CHECK((t != NULL) == (result == MONET_OK));
    monet_trainer_free(t);
    return result;
}

static monet_result do_save(void)
{
    return monet_trainer_save(heap_trainer, target, "user", 4, &said);
}

static void each_failure_of_memory(const char *name, monet_result (*call)(void))
{
    const long live = heap.live, calls = heap.calls;
    const int before = tiny_files(), n_open = io.open;
    long n;
    CHECK_EQ(call(), MONET_OK);
    n = heap.calls - calls;
    CHECK(n > 0 && n < 20);
    (void)remove(target);
    for (long k = 1; k <= n; k++)
        for (heap.sticky = 0; heap.sticky < 2; heap.sticky++) {
            memset(&said, 0, sizeof said);
            heap.fail_at = heap.calls + k;
            if (!CHECK_EQ(call(), MONET_ERROR_MEMORY)) printf("    %s, %ld\n", name, k);
            heap.fail_at = 0;
            CHECK_EQ(said.code, MONET_ERROR_MEMORY);
            CHECK_HAS(said.message, "cannot ");
            CHECK_EQ(heap.live, live);
            CHECK_EQ(tiny_files(), before);
            CHECK_EQ(io.open, n_open);
            CHECK_EQ(call(), MONET_OK); /* again, and it works */
            CHECK_EQ(heap.live, live);
            (void)remove(target);
        }
    heap.sticky = 0;
    CHECK_EQ(heap.wrong, 0);
    printf("  %s: %ld allocations\n", name, n);
}

static void failures_of_memory(void)
{
    monet_trainer_config c = usual(1);
    char source[256];
    strcpy(source, tiny_path("source.monet"));
    c.host = &host;
    CHECK_EQ(monet_trainer_save(trainer, source, "user", 4, NULL), MONET_OK);
    CHECK_EQ(monet_trainer_create(model, &c, &heap_trainer, NULL), MONET_OK);
    each_failure_of_memory("create", do_create);
    each_failure_of_memory("new model", do_new);
    each_failure_of_memory("load", do_load);
    each_failure_of_memory("save", do_save);
    monet_trainer_free(heap_trainer);
    CHECK_EQ(heap.live, 0);
    (void)remove(source);
}

static void failures_of_threads(void)
{
    monet_trainer_config c = usual(1);
    monet_host four = host;
    monet_trainer *t = NULL;
    const long live = heap.live;
    four.n_threads = 4;
    c.host = &four;
    save(trainer, NULL, 0);
    for (int k = 0; k < 8; k++) {
        memset(&said, 0, sizeof said);
        threads_left = k % 4 < 3 ? k % 4 : -1;
        CHECK_EQ(k < 4 ? monet_trainer_create(model, &c, &t, &said)
                       : monet_trainer_load(target, &c, &t, &said),
                 k % 4 < 3 ? MONET_ERROR_MEMORY : MONET_OK);
        threads_left = -1;
        CHECK((t != NULL) == (k % 4 == 3));
        if (k % 4 < 3) CHECK_HAS(said.message, "cannot start 4 threads");
        if (t) step(t, 0);
        monet_trainer_free(t);
        CHECK_EQ(heap.live, live);
    }
    (void)remove(target);
}

/* ---- files that fail ------------------------------------------------------------------------- */

static monet_result work_save(void)
{
    return monet_trainer_save(trainer, target, "new", 3, &said);
}

static monet_result work_load(void)
{
    monet_trainer *t = NULL;
    monet_result result = load_with(1, &t);
    CHECK((t != NULL) == (result == MONET_OK));
    monet_trainer_free(t);
    return result;
}

/* What must come of it. The second open, fsync and close of a save are those of the folder, after
   the file is there; a file that cannot be mapped is read.                                       */
static bool must_work(int op, int k, int error, bool saves)
{
    if (saves && k == 2 && (op == OPEN || op == FSYNC || op == CLOSE)) return true;
    if (!saves && (op == CLOSE || op == MMAP)) return true;
    if (error == HALF) return true;
    return error == EINTR && op != RENAME && op != LSEEK && op != FSTAT;
}

static void one_failure(int op, int k, int error, const tiny_file *old_file,
                        const tiny_file *new_file)
{
    const int n = tiny_files(), n_open = io.open;
    const bool saves = new_file != NULL, works = must_work(op, k, error, saves);
    monet_result (*work)(void) = saves ? work_save : work_load;
    monet_result result;
    memset(io.calls, 0, sizeof io.calls);
    memset(&said, 0, sizeof said);
    io.op = op;
    io.at = k;
    io.error = error;
    result = work();
    io.at = 0;
    if (!CHECK_EQ(result, works ? MONET_OK : MONET_ERROR_IO))
        printf("    %s %d: %s: %s\n", op_names[op], k, strerror(error > 0 ? error : 0),
               said.message);
    CHECK_EQ(io.open, n_open);
    if (saves) CHECK(target_is(works ? new_file : old_file));
    if (!works) {
        CHECK_EQ(said.code, MONET_ERROR_IO);
        CHECK_HAS(said.message, target);
        if (error > 0 && op != FSTAT) CHECK_HAS(said.message, strerror(error));
        CHECK_EQ(tiny_files(), n);
        CHECK_EQ(work(), MONET_OK); /* again, and it works */
        if (saves) CHECK(target_is(new_file));
    }
    if (saves && old_file) put_file(target, old_file);
    else if (saves) (void)remove(target);
    CHECK_EQ(tiny_files(), n);
}

/* new_file NULL: loads old_file; else saves over it (NULL = there is no old file). */
static void each_failure(const char *name, const tiny_file *old_file, const tiny_file *new_file)
{
    static const int errors[] = {EIO, ENOSPC, EINTR, HALF, ZERO};
    int counts[N_OPS], total = 0;
    if (old_file) put_file(target, old_file);
    memset(io.calls, 0, sizeof io.calls);
    CHECK_EQ(new_file ? work_save() : work_load(), MONET_OK);
    memcpy(counts, io.calls, sizeof counts);
    if (old_file) put_file(target, old_file);
    else (void)remove(target);
    for (int op = 0; op < N_OPS; op++)
        for (int k = 1; k <= counts[op]; k++)
            for (size_t e = 0; e < sizeof errors / sizeof *errors; e++) {
                if (errors[e] < 0 && op != READ && op != WRITE) continue;
                if (errors[e] == EIO && op == WRITE && k % 8) continue; /* as ENOSPC */
                one_failure(op, k, errors[e], old_file, new_file);
                total++;
            }
    CHECK(total > 5);
    printf("  %s: %d failures\n", name, total);
}

/* The process ends within a save, at each of its calls, once in the middle of a write: the file is
   the old one or the new one, and loads.                                                         */
static void killed(const tiny_file *old_file, const tiny_file *new_file)
{
    int counts[N_OPS], total = 0, was_new = 0;
    put_file(target, old_file);
    memset(io.calls, 0, sizeof io.calls);
    CHECK_EQ(work_save(), MONET_OK);
    memcpy(counts, io.calls, sizeof counts);
    for (int op = 0; op <= RENAME; op++)
        for (int k = 1; k <= counts[op]; k++) {
            monet_trainer *t = NULL;
            char temp[300];
            int status = 0;
            pid_t child;
            put_file(target, old_file);
            child = fork();
            if (child == 0) {
                memset(io.calls, 0, sizeof io.calls);
                io.op = op, io.at = k, io.error = DIE;
                (void)work_save();
                _exit(1);
            }
            if (!CHECK(child > 0 && waitpid(child, &status, 0) == child)) return;
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 9);
            snprintf(temp, sizeof temp, "%s.tmp.%ld.0", target, (long)child);
            (void)remove(temp);
            CHECK(target_is(old_file) || target_is(new_file));
            was_new += target_is(new_file);
            CHECK_EQ(load_with(1, &t), MONET_OK);
            monet_trainer_free(t);
            total++;
        }
    CHECK(total > 20 && was_new > 0 && was_new < total);
    printf("  killed %d times: %d times the new file was there\n", total, was_new);
}

static void failures_of_files(void)
{
    monet_trainer *twin;
    tiny_file old_file, new_file;
    save(trainer, "old", 3);
    old_file = tiny_read(target);
    step(trainer, 2);
    twin = open_trainer(1);
    for (int k = 0; k < 3; k++) step(twin, k);
    CHECK_EQ(work_save(), MONET_OK);
    new_file = tiny_read(target);
    (void)remove(target);
    each_failure("save, a new file", NULL, &new_file);
    each_failure("save over an old file", &old_file, &new_file);
    each_failure("load", &old_file, NULL);
    killed(&old_file, &new_file);
    step(trainer, 3); /* after all this it still trains */
    step(twin, 3);
    save(twin, "new", 3);
    tiny_drop(&new_file);
    new_file = tiny_read(target);
    CHECK_EQ(work_save(), MONET_OK);
    CHECK(target_is(&new_file));
    monet_trainer_free(twin);
    tiny_drop(&old_file);
    tiny_drop(&new_file);
    (void)remove(target);
}

int main(void)
{
    const tiny_options options = {.n_layers = 1};
    tiny_file file = tiny_make(&options);
    if (!CHECK_EQ(monet_model_load_memory(file.data, file.size, NULL, &model, &said), MONET_OK))
        return test_end("resume");
    host = heap_host(&heap);
    strcpy(target, tiny_path("target.monet"));
    trainer = open_trainer(1);
    step(trainer, 0);
    step(trainer, 1);
    resume();
    resume_anywhere();
    user_bytes();
    is_a_model();
    wrong_calls();
    damaged();
    failures_of_memory();
    failures_of_threads();
    failures_of_files();
    monet_trainer_free(trainer);
    monet_model_free(model);
    CHECK_EQ(io.open, 0);
    tiny_drop(&file);
    tiny_clean();
    return test_end("resume");
}
