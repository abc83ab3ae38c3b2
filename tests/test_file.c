/* test_file.c: hostile .monet files. Each is made here from a small good one; each must give its
   own error, in bounded time and memory, or load and then survive encode and eval.

   cc -O2 -pthread -I. tests/test_file.c -o test_file -lm && ./test_file

   An argument n makes it n times longer: random bit flips and random damage behind the hashes.  */
#define _POSIX_C_SOURCE 200809L
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "heap.h"
#include "tiny.h"
#include <time.h>

#define MAX_EXTRA (16u << 20) /* bytes beyond the file's size that a rejected file may take */
#define MAX_MS 100            /* time that a rejected file may take */
#define BIT(code) (1u << -(code))
#define FORMAT BIT(MONET_ERROR_FORMAT)
#define LOADS BIT(MONET_OK)

static heap_count heap;
static monet_error said;               /* of the last load */
static tiny_file seed, good;           /* the file that is damaged, and as it was */
static size_t head;                    /* bytes before the data section */
static long slow, fat, leaky, unclear; /* rejected files that took too long, too much, ... */
static int survived;

/* ---- loading --------------------------------------------------------------------------------- */

/* Tokens of a text and their logits, as a program would. NaN is an answer, a crash is not. */
static int use(const monet_model *model)
{
    const monet_tokenizer *t = monet_model_tokenizer(model);
    const monet_arch *arch = monet_model_arch(model);
    monet_session_config config = {0};
    monet_session *session = NULL;
    monet_result result = MONET_OK;
    int32_t tokens[32] = {1, 0};
    size_t n = 0;
    char text[64];
    if (t && monet_tokenizer_encode(t, "abc \xc3\xa9<u>\xff", 9, 0, tokens, 32, &n)) return 0;
    if (t && monet_tokenizer_decode(t, tokens, n, text, 64, &n)) return 0;
    if (!arch) return 1;
    config.context = 8;
    config.capture_routing = true;
    if (monet_session_create(model, &config, &session, NULL)) return 0;
    result = monet_session_eval(session, tokens, 2);
    if (result == MONET_OK) result = monet_session_sample(session, NULL, tokens, NULL);
    if (result == MONET_OK) result = monet_session_eval(session, tokens, 1);
    monet_session_free(session);
    return result == MONET_OK || result == MONET_ERROR_NUMERIC;
}

static monet_result load(const tiny_file *f)
{
    monet_model_config config = {0};
    monet_model *model = NULL;
    clock_t start = clock();
    monet_result result;
    memset(&said, 0, sizeof said);
    config.host = heap_host(&heap);
    result = monet_model_load_memory(f->data, f->size, &config, &model, &said);
    survived = result == MONET_OK && use(model);
    if (result != MONET_OK) {
        slow += (double)(clock() - start) * 1000 / CLOCKS_PER_SEC > MAX_MS;
        fat += heap.peak > f->size + MAX_EXTRA;
        unclear += said.code != result || model != NULL || strlen(said.message) < 12;
    }
    monet_model_free(model);
    leaky += heap.live != 0 || heap.wrong != 0;
    return result;
}

/* Does the text contain one of the words, "this|or this"? */
static int has_one(const char *text, const char *words)
{
    char word[128];
    for (;;) {
        size_t n = strcspn(words, "|");
        memcpy(word, words, n);
        word[n] = 0;
        if (n && strstr(text, word)) return 1;
        if (!words[n]) return 0;
        words += n + 1;
    }
}

/* The file gives one of these codes and, if that is an error, a message with one of these words. */
static int expect(const tiny_file *f, const char *what, unsigned codes, const char *words)
{
    monet_result result = load(f);
    int ok = (codes & BIT(result)) && (result ? has_one(said.message, words) : survived);
    if (!test_check(ok, __FILE__, __LINE__, what))
        printf("    %s \"%s\"%s, expected \"%s\"\n", monet_result_name(result), said.message,
               result == MONET_OK && !survived ? " does not survive" : "", words);
    return ok;
}

static void restore(void)
{
    memcpy(seed.data, good.data, seed.size);
}

static void patched(const char *what, uint64_t at, int bytes, uint64_t value, unsigned codes,
                    const char *words)
{
    tiny_put(&seed, at, bytes, value);
    tiny_rehash(&seed);
    (void)expect(&seed, what, codes, words);
    restore();
}

static void begin(const tiny_options *options)
{
    seed = tiny_make(options);
    good = tiny_copy(&seed, seed.size);
    head = (size_t)(tiny_entry(&seed, 5) ? tiny_at(&seed, 5) : seed.size);
    (void)expect(&seed, "the good file", LOADS, "");
}

static uint64_t n_tensors(void)
{
    return tiny_get(&good, tiny_entry(&good, 2) + 32, 8);
}

static void end(void)
{
    tiny_drop(&seed);
    tiny_drop(&good);
}

/* ---- every integer of the file, with thirty values ------------------------------------------- */

static bool any(uint64_t v) { return (void)v, true; }
static bool is_dtype(uint64_t v) { return v <= 2; }
static bool is_id(uint64_t v) { return v < TINY_PIECES || v == 0xFFFFFFFFu; }
static bool is_eos(uint64_t v) { return v < TINY_PIECES; }
static bool is_length(uint64_t v) { return v >= 1 && v <= 1u << 24; }
static bool is_k(uint64_t v) { return v >= 1 && v <= 7; }
static bool is_finite(uint64_t v) { return (v & 0x7F800000u) != 0x7F800000u; }
static bool is_theta(uint64_t v) { return v >= 0x3F800000u && v <= 0x5368D4A5u; } /* 1 to 1e12 */
static bool is_eps(uint64_t v) { return v >= 0x2B8CBCCCu && v <= 0x3F800000u; }   /* 1e-12 to 1 */

/* One integer: what a changed one must give once the hashes are right again, and stale. harmless:
   values that load; either: it depends on the rest of the file. Fields in the hash of the file's
   first bytes say "header: hash" when stale, unless they are looked at before.                   */
typedef struct field {
    const char *name;
    uint64_t at;
    int bytes;
    unsigned codes;
    const char *words;
    bool (*harmless)(uint64_t value);
    bool either;
    const char *stale;
} field;

static const char *const stale_hash = "hash does not match";

static void try_value(const field *d, uint64_t value)
{
    char what[128];
    unsigned codes = d->harmless && d->harmless(value) ? LOADS : d->codes;
    snprintf(what, sizeof what, "%s = %llu", d->name, (unsigned long long)value);
    if (d->either) codes |= LOADS;
    tiny_put(&seed, d->at, d->bytes, value);
    (void)expect(&seed, what, FORMAT | (d->stale ? d->codes : 0), d->stale ? d->stale : stale_hash);
    if (codes) {
        tiny_rehash(&seed);
        (void)expect(&seed, what, codes, d->words);
    }
    memcpy(seed.data, good.data, head);
}

static void try_field(const field *d)
{
    const uint64_t old = tiny_get(&seed, d->at, d->bytes), size = seed.size;
    const uint64_t values[] = {
        0, 1, 2, 3, old - 1, old + 1, 2 * old, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000,
        0x7FFFFFFF, 0x80000000u, 0xFFFFFFFFu, UINT64_C(1) << 32, (UINT64_C(1) << 32) + 1,
        UINT64_C(1) << 62, UINT64_MAX / 2, UINT64_MAX / 2 + 1, UINT64_MAX - 3, UINT64_MAX,
        size - 1, size, size + 1, UINT64_MAX / 128, UINT64_MAX / 128 + 1, UINT64_MAX / 40 + 1,
        UINT64_MAX / 12 + 1, UINT64_C(0x0400000000000001), UINT64_C(0x7FFFFFFFFFFFFFC0)};
    const uint64_t mask = d->bytes == 8 ? UINT64_MAX : (UINT64_C(1) << 8 * d->bytes) - 1;
    for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
        uint64_t value = values[k] & mask;
        size_t i = 0;
        while (i < k && (values[i] & mask) != value) i++;
        if (i == k && value != old) try_value(d, value);
    }
}

static void try_fields(const char *where, uint64_t base, const field *fields, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        char name[96];
        field d = fields[k];
        snprintf(name, sizeof name, "%s %s", where, d.name);
        d.name = name;
        d.at += base;
        try_field(&d);
    }
}

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define VERSION BIT(MONET_ERROR_VERSION)
#define OTHER BIT(MONET_ERROR_UNSUPPORTED)

static void header_fields(void)
{
    static const field fields[] = {
        {"magic", 0, 8, FORMAT, "magic", NULL, false, "magic"},
        {"major", 8, 2, VERSION, "file format is version", NULL, false, "version"},
        {"minor", 10, 2, 0, "", any, false, NULL},
        {"byte order", 12, 4, FORMAT, "byte order tag is", NULL, false, "byte order"},
        {"file size", 16, 8, FORMAT, "header says", NULL, false, NULL},
        {"features to know", 24, 4, VERSION | FORMAT, "file needs features|says features", NULL,
         false, NULL},
        {"other features", 28, 4, 0, "", any, false, NULL},
        {"sections", 32, 4, FORMAT, "sections in a file|padding at|expected to begin|sections end",
         NULL, false, NULL},
        {"reserved", 36, 4, 0, "", any, false, NULL},
        {"hash of the table", 40, 8, 0, "", NULL, false, NULL},
        {"reserved", 48, 8, 0, "", any, false, NULL},
        {"hash", 56, 8, 0, "", NULL, false, NULL}};
    try_fields("header", 0, fields, COUNT(fields));
}

static void section_fields(void)
{
    static const char *const names[] = {"", "architecture", "tensors", "tokenizer", "metadata",
                                        "data"};
    static const field fields[] = {
        {"kind", 0, 4, FORMAT | VERSION, "twice|is needed and not known|kind is 0|training state",
         NULL, false, NULL},
        {"flags", 4, 4, 0, "", any, false, NULL},
        {"offset", 8, 8, FORMAT, "expected to begin", NULL, false, NULL},
        {"size", 16, 8, FORMAT,
         "expected to begin|section is|padding at|take|sections end|metadata: record", NULL, false,
         NULL},
        {"hash", 24, 8, 0, "", NULL, false, NULL}};
    static const field counts[] = {
        {"records", 32, 8, 0, "", any, false, NULL},
        {"records", 32, 8, FORMAT, "tensors, this architecture has", NULL, false, NULL},
        {"records", 32, 8, FORMAT, "metadata: ", NULL, false, NULL}};
    for (uint32_t kind = 1; kind <= 5; kind++) {
        const field *count = &counts[kind == 2 ? 1 : kind == 4 ? 2 : 0];
        try_fields(names[kind], tiny_entry(&seed, kind), fields, COUNT(fields));
        try_fields(names[kind], tiny_entry(&seed, kind), count, 1);
    }
}

#define ARCH(k, name, harmless)                                                                    \
    {name, 4 * k, 4, FORMAT | OTHER, name "|tensor", harmless, false, NULL}
static const field arch_fields[] = {
    ARCH(0, "vocab_size", NULL), ARCH(1, "dim", NULL), ARCH(2, "n_layers", NULL),
    ARCH(3, "n_heads", NULL), ARCH(4, "n_kv_heads", NULL), ARCH(5, "max_seq_len", is_length),
    ARCH(6, "moe_experts", NULL), ARCH(7, "moe_dim", NULL), ARCH(8, "moe_heads", NULL),
    ARCH(9, "moe_topk", is_k), ARCH(10, "moe_groups", NULL), ARCH(11, "decompose", NULL),
    ARCH(12, "tie_embeddings", NULL), ARCH(13, "rope_theta", is_theta),
    ARCH(14, "norm_eps", is_eps)};

static void tensor_fields(void)
{
    static const field fields[] = {
        {"dtype", 64, 4, FORMAT | OTHER, "dtype|tensors take", NULL, false, NULL},
        {"source dtype", 68, 4, OTHER, "dtype", is_dtype, false, NULL},
        {"dimensions", 72, 4, FORMAT, "dimensions, expected", NULL, false, NULL},
        {"reserved", 76, 4, 0, "", any, false, NULL},
        {"rows", 80, 8, FORMAT, "shape is", NULL, false, NULL},
        {"columns", 88, 8, FORMAT, "shape is", NULL, false, NULL},
        {"offset", 96, 8, FORMAT, "expected", NULL, false, NULL},
        {"size", 104, 8, FORMAT, "expected", NULL, false, NULL},
        {"hash", 112, 8, 0, "", any, false, NULL},
        {"reserved", 120, 8, 0, "", any, false, NULL}};
    const uint64_t at = tiny_at(&seed, 2);
    for (uint64_t k = 0; k < n_tensors(); k++) {
        char name[80];
        snprintf(name, sizeof name, "tensor %s:", (const char *)good.data + at + 128 * k);
        try_fields(name, at + 128 * k, fields, COUNT(fields));
    }
}

static void tokenizer_fields(void)
{
    static const field fields[] = {
        {"pieces", 0, 4, FORMAT, "bytes, the section has| take ", NULL, false, NULL},
        {"merges", 4, 4, FORMAT, "bytes, the section has| take ", NULL, false, NULL},
        {"end ids", 8, 4, FORMAT, "bytes, the section has| take ", NULL, false, NULL},
        {"bytes", 12, 4, FORMAT, "bytes, the section has| take ", NULL, false, NULL},
        {"unk id", 16, 4, FORMAT, "unk id", is_id, false, NULL},
        {"bos id", 20, 4, FORMAT, "bos id", is_id, false, NULL},
        {"prefix space", 24, 4, FORMAT, "prefix space", is_dtype, false, NULL},
        {"strip space", 28, 4, FORMAT, "strip space", any, true, NULL}};
    static const field piece[] = {
        {"offset", 0, 4, FORMAT, "tokenizer: ", NULL, true, NULL},
        {"size", 4, 2, FORMAT, "tokenizer: ", NULL, true, NULL},
        {"type", 6, 2, FORMAT, "tokenizer: ", NULL, true, NULL},
        {"score", 8, 4, FORMAT, "the score", is_finite, false, NULL}};
    static const field merge[] = {
        {"left", 0, 4, FORMAT, "merge ", NULL, false, NULL},
        {"right", 4, 4, FORMAT, "merge ", NULL, false, NULL},
        {"result", 8, 4, FORMAT, "merge ", NULL, false, NULL}};
    static const field eos = {"end id", 0, 4, FORMAT, "eos id", is_eos, false, NULL};
    static const int ids[] = {0, 1, 2, 3, 100, 258, 259, 260, 263, 264, 265, 269};
    const uint64_t at = tiny_at(&seed, 3), merges = tiny_get(&seed, at + 4, 4);
    char name[32];
    try_fields("tokenizer", at, fields, COUNT(fields));
    for (size_t k = 0; k < COUNT(ids); k++) {
        snprintf(name, sizeof name, "piece %d", ids[k]);
        try_fields(name, at + 32 + 12 * (uint64_t)ids[k], piece, COUNT(piece));
    }
    for (uint64_t k = 0; k < merges; k++) {
        snprintf(name, sizeof name, "merge %d", (int)k);
        try_fields(name, at + 32 + 12 * (TINY_PIECES + k), merge, COUNT(merge));
    }
    try_fields("tokenizer", at + 32 + 12 * (TINY_PIECES + merges), &eos, 1);
}

static void metadata_fields(void)
{
    static const field fields[] = {
        {"size of key 0", 0, 4, FORMAT, "metadata: record 0", NULL, false, NULL},
        {"size of value 0", 4, 4, FORMAT, "metadata: record 0", NULL, false, NULL},
        {"size of key 1", 26, 4, FORMAT, "metadata: record 1", NULL, false, NULL},
        {"size of value 1", 30, 4, FORMAT, "metadata: record 1", NULL, false, NULL}};
    try_fields("metadata", tiny_at(&seed, 4), fields, COUNT(fields));
}

static void every_field(const tiny_options *options)
{
    begin(options);
    header_fields();
    section_fields();
    try_fields("architecture", tiny_at(&seed, 1), arch_fields, COUNT(arch_fields));
    tensor_fields();
    tokenizer_fields();
    metadata_fields();
    end();
}

/* All pairs of the fields that sizes come from: no sum or product of two may wrap around. */
static void every_pair(void)
{
    static const struct { uint32_t section; uint64_t at; int bytes; } fields[] = {
        {0, 16, 8}, {2, 8, 8}, {2, 16, 8}, {2, 32, 8}, {5, 8, 8}, {5, 16, 8}, {4, 32, 8},
        {3, 16, 8}};
    const uint64_t values[] = {0, 1, 64, 128, UINT64_C(1) << 32, UINT64_MAX / 2 + 1,
                               UINT64_MAX - 63, UINT64_MAX, UINT64_MAX / 128 + 1};
    tiny_options options = {0};
    begin(&options);
    for (size_t a = 0; a < COUNT(fields); a++)
        for (size_t b = a + 1; b < COUNT(fields); b++)
            for (size_t k = 0; k < COUNT(values) * COUNT(values); k++) {
                uint64_t at = tiny_entry(&good, fields[a].section) + fields[a].at;
                tiny_put(&seed, at, fields[a].bytes, values[k % COUNT(values)]);
                at = tiny_entry(&good, fields[b].section) + fields[b].at;
                tiny_put(&seed, at, fields[b].bytes, values[k / COUNT(values)]);
                tiny_rehash(&seed);
                (void)expect(&seed, "two sizes", FORMAT,
                             "header says|expected|has|records|take|padding at|sections end");
                memcpy(seed.data, good.data, head);
            }
    end();
}

/* ---- bytes missing, bytes too many, bits turned ---------------------------------------------- */

static void truncation(void)
{
    tiny_options options = {0};
    char sizes[2][48];
    options.n_layers = options.tied = 1;
    options.dtype = MONET_BF16;
    begin(&options);
    for (size_t n = 0; n < good.size + 65; n++) {
        tiny_file cut = tiny_copy(&good, n); /* memory of just this size */
        if (n != good.size) {
            snprintf(sizes[0], sizeof sizes[0], "file is %d bytes", (int)n);
            snprintf(sizes[1], sizeof sizes[1], "%d", n < 64 ? 64 : (int)good.size);
            (void)expect(&cut, "truncated, or bytes appended", FORMAT, sizes[0]);
            if (!strstr(said.message, sizes[1])) (void)CHECK_HAS(said.message, sizes[1]);
        }
        tiny_drop(&cut);
    }
    end();
}

static void bit_flips(void)
{
    tiny_options options = {0};
    long missed = 0;
    options.n_layers = 1;
    options.dtype = MONET_BF16;
    begin(&options);
    for (size_t bit = 0; bit < 8 * head; bit++) {
        seed.data[bit / 8] = (uint8_t)(seed.data[bit / 8] ^ 1 << bit % 8);
        missed += load(&seed) == MONET_OK;
        seed.data[bit / 8] = good.data[bit / 8];
    }
    CHECK_EQ(missed, 0);
    printf("  %ld bits of header and directory\n", (long)head * 8);
    end();
}

/* Single bits and bursts of up to 64 bytes in the data: verify names the tensor. */
static void data_flips(long turns)
{
    tiny_options options = {0};
    monet_model_config config = {0};
    monet_model *model = NULL;
    long missed = 0;
    options.n_layers = 1;
    options.dtype = MONET_BF16;
    options.tied = 1;
    begin(&options);
    CHECK_EQ(monet_model_load_memory(seed.data, seed.size, NULL, &model, NULL), MONET_OK);
    CHECK_EQ(monet_model_verify(model, NULL), MONET_OK);
    for (long k = 0; k < turns; k++) {
        uint64_t x = tiny_mix((uint64_t)k), burst = k % 10 ? 1 : 1 + tiny_mix(x + 1) % 64;
        uint64_t at = head + x % (seed.size - head);
        if (burst > seed.size - at) burst = seed.size - at;
        for (uint64_t i = 0; i < burst; i++) {
            uint64_t mask = burst == 1 ? UINT64_C(1) << (x >> 60) % 8
                                       : tiny_mix(x + 2 + i) % 255 + 1;
            seed.data[at + i] = (uint8_t)(seed.data[at + i] ^ mask);
        }
        missed += monet_model_verify(model, &said) == MONET_OK || !strstr(said.message, "tensor ");
        memcpy(seed.data + at, good.data + at, (size_t)burst);
    }
    CHECK_EQ(missed, 0);
    CHECK_EQ(monet_model_verify(model, NULL), MONET_OK);
    monet_model_free(model);
    config.verify = true;
    seed.data[seed.size - 100] ^= 1;
    CHECK_EQ(monet_model_load_memory(seed.data, seed.size, &config, &model, &said),
             MONET_ERROR_FORMAT);
    CHECK(model == NULL);
    CHECK_HAS(said.message, "hash does not match, its bytes are damaged");
    end();
}

/* Random damage with right hashes: whatever the answer is, it comes. */
static void random_damage(const tiny_options *options, long turns)
{
    static const int widths[] = {1, 2, 4, 8};
    long loaded = 0, lost = 0;
    begin(options);
    for (long k = 0; k < turns; k++) {
        uint64_t x = tiny_mix((uint64_t)k + (uint64_t)options->merges * 1000003);
        for (int i = (int)(x % 4); i >= 0; i--) {
            uint64_t y = tiny_mix(x + 7 + (uint64_t)i), z = tiny_mix(y), at = y % (head - 8);
            int width = widths[z % 4];
            if (z % 3) at = tiny_at(&good, 3) + y % (tiny_get(&good, tiny_entry(&good, 3) + 16, 8));
            z = tiny_mix(z);
            z = z % 5 ? z >> z % 61 : tiny_get(&good, at, width) + z % 9 - 4;
            tiny_put(&seed, at, width, z);
        }
        tiny_rehash(&seed);
        if (load(&seed) == MONET_OK) loaded++, lost += !survived;
        memcpy(seed.data, good.data, head);
    }
    CHECK_EQ(lost, 0);
    printf("  %ld files with random damage, %ld of them load\n", turns, loaded);
    end();
}

/* ---- structure ------------------------------------------------------------------------------- */

typedef struct part {
    uint32_t kind, flags;
    const uint8_t *data;
    size_t size;
    uint64_t count;
} part;

static size_t parts_of(const tiny_file *f, part *parts)
{
    const size_t n = (size_t)tiny_get(f, 32, 4);
    for (size_t k = 0; k < n; k++) {
        uint64_t e = 64 + 40 * k;
        parts[k].kind = (uint32_t)tiny_get(f, e, 4);
        parts[k].flags = (uint32_t)tiny_get(f, e + 4, 4);
        parts[k].data = f->data + tiny_get(f, e + 8, 8);
        parts[k].size = (size_t)tiny_get(f, e + 16, 8);
        parts[k].count = tiny_get(f, e + 32, 8);
    }
    return n;
}

/* A file of these sections, with right hashes. */
static tiny_file assemble(const part *parts, size_t n)
{
    tiny_file f;
    uint64_t at = monet__round_up(64 + 40 * n, 64), size = at;
    for (size_t k = 0; k < n; k++) size += monet__round_up(parts[k].size, 64);
    f = tiny_new((size_t)size);
    memset(f.data, 0, f.size);
    memcpy(f.data, good.data, 32);
    tiny_put(&f, 16, 8, size);
    tiny_put(&f, 32, 4, n);
    for (size_t k = 0; k < n; k++) {
        uint64_t e = 64 + 40 * k;
        tiny_put(&f, e, 4, parts[k].kind);
        tiny_put(&f, e + 4, 4, parts[k].flags);
        tiny_put(&f, e + 8, 8, at);
        tiny_put(&f, e + 16, 8, parts[k].size);
        tiny_put(&f, e + 32, 8, parts[k].count);
        if (parts[k].size) memcpy(f.data + at, parts[k].data, parts[k].size);
        at += monet__round_up(parts[k].size, 64);
    }
    tiny_rehash(&f);
    return f;
}

static void assembled(const char *what, const part *parts, size_t n, unsigned codes,
                      const char *words)
{
    tiny_file f = assemble(parts, n);
    (void)expect(&f, what, codes, words);
    tiny_drop(&f);
}

static void sections(void)
{
    static const uint8_t extra[100] = {1, 2, 3};
    static const char *const missing[] = {"no architecture section", "tensors, this architecture",
                                          "", "", "no data section"};
    tiny_options options = {0};
    part p[8], q[8];
    size_t n;
    begin(&options);
    n = parts_of(&good, p);
    CHECK_EQ(n, 5);
    assembled("as it was", p, n, LOADS, "");
    for (size_t k = 0; k < n; k++) { /* dropped, twice, to the end */
        memcpy(q, p, sizeof q);
        memmove(q + k, q + k + 1, (n - k - 1) * sizeof *q);
        assembled("a section less", q, n - 1, k == 2 || k == 3 ? LOADS : FORMAT, missing[k]);
        q[n - 1] = p[k];
        assembled("another order", q, n, LOADS, "");
        q[n] = p[k];
        assembled("a section twice", q, n + 1, FORMAT, ": twice");
    }
    for (size_t k = 0; k <= n; k++) {
        static const uint32_t kinds[] = {8, 100, 0x80000000u, 0xFFFFFFFFu};
        memcpy(q, p, k * sizeof *q);
        memcpy(q + k + 1, p + k, (n - k) * sizeof *q);
        q[k].data = extra;
        q[k].size = 100 - k;
        q[k].count = UINT64_MAX;
        for (size_t i = 0; i < COUNT(kinds); i++) {
            char words[64];
            q[k].kind = kinds[i];
            q[k].flags = 0xFFFFFFFEu;
            assembled("an unknown section", q, n + 1, LOADS, "");
            q[k].flags = 1;
            snprintf(words, sizeof words, "section %u is needed", kinds[i]);
            assembled("an unknown section that is needed", q, n + 1, VERSION, words);
        }
    }
    assembled("no section", p, 0, FORMAT, "no architecture section");
    q[0] = p[3];
    assembled("metadata alone", q, 1, FORMAT, "no architecture section");
    q[0] = p[2];
    q[1] = p[4];
    assembled("tokenizer and data", q, 2, FORMAT, "no architecture section");
    for (size_t k = 0; k < 4; k++) { /* an empty section of each kind */
        memcpy(q, p, sizeof q);
        q[k].size = 0;
        assembled("an empty section", q, n, FORMAT, "section|tokenizer|metadata");
    }
    end();
}

/* Gaps, overlaps, padding and offsets that are not the ones. */
static void places(void)
{
    tiny_options options = {0};
    uint64_t e, at;
    monet_model *model = NULL;
    begin(&options);
    for (at = 0; at < head; at++) {
        bool used = at < 264;
        for (uint32_t kind = 1; kind <= 4 && !used; kind++) {
            e = tiny_entry(&good, kind);
            used = at - tiny_at(&good, kind) < tiny_get(&good, e + 16, 8);
        }
        if (!used) patched("padding", at, 1, 1, FORMAT, "padding at byte");
    }
    for (uint32_t kind = 1; kind <= 5; kind++)
        for (int by = -64; by <= 64; by += by == -64 ? 63 : by == 1 ? 63 : 2) {
            e = tiny_entry(&good, kind);
            patched("section moved", e + 8, 8, tiny_at(&good, kind) + (uint64_t)(int64_t)by, FORMAT,
                    "expected to begin");
        }
    for (uint64_t k = 0; k < n_tensors(); k++) {
        e = tiny_at(&good, 2) + 128 * k;
        for (int by = -64; by <= 64; by += by == -64 ? 63 : by == 1 ? 63 : 2) {
            uint64_t move = (uint64_t)(int64_t)by;
            patched("tensor moved", e + 96, 8, tiny_get(&good, e + 96, 8) + move, FORMAT,
                    "expected");
            patched("tensor's size", e + 104, 8, tiny_get(&good, e + 104, 8) + move, FORMAT,
                    "expected");
        }
    }
    e = tiny_at(&good, 2) + 128; /* the first vector: 64 bytes and no padding; the router's has */
    for (uint64_t k = 0; k < n_tensors() && tiny_get(&good, e + 104, 8) % 64 == 0; k++) e += 128;
    at = head + tiny_get(&good, e + 96, 8) + tiny_get(&good, e + 104, 8);
    seed.data[at] = 1;
    CHECK_EQ(monet_model_load_memory(seed.data, seed.size, NULL, &model, NULL), MONET_OK);
    CHECK_EQ(monet_model_verify(model, &said), MONET_ERROR_FORMAT);
    CHECK_HAS(said.message, "padding is not zero");
    monet_model_free(model);
    end();
}

static void tensor_name(const char *what, uint64_t index, const char *name, size_t size,
                        const char *words)
{
    const uint64_t at = tiny_at(&good, 2) + 128 * index;
    memset(seed.data + at, 0, 64);
    memcpy(seed.data + at, name, size);
    tiny_rehash(&seed);
    (void)expect(&seed, what, FORMAT, words);
    restore();
}

static void directory(void)
{
    const char *names[] = {"layers.-1.input_layernorm.weight",
                           "layers.00001.input_layernorm.weight",
                           "layers.4294967295.input_layernorm.weight", "layers.2.norm.weight",
                           "layers.4294967296.input_layernorm.weight", "experts.2147483648.w", " ",
                           "layers.1e0.input_layernorm.weight", "\xff\xfe\n\t\x1b[31m", ""};
    tiny_options options = {0};
    uint64_t at;
    char full[64];
    begin(&options);
    at = tiny_at(&good, 2);
    for (size_t k = 0; k < COUNT(names); k++)
        tensor_name("a name", 21, names[k], strlen(names[k]), "not part of this model, expected "
                    "layers.1.input_layernorm.weight");
    tensor_name("a NUL in the name", 0, "embed_tokens\0weight", 19, "tensor 'embed_tokens': not");
    tensor_name("bytes after the name", 0, "embed_tokens.weight\0x", 21, "bytes after its name");
    memset(full, 'n', 64);
    tensor_name("a name without end", 0, full, 64, "nnnn': not part of this model");
    tensor_name("a duplicate", 21, "embed_tokens.weight", 19,
                "tensor embed_tokens.weight: duplicate");
    for (uint64_t k = 0; k + 1 < n_tensors(); k++) { /* swapped, dropped */
        memcpy(seed.data + at + 128 * k, good.data + at + 128 * (k + 1), 128);
        memcpy(seed.data + at + 128 * (k + 1), good.data + at + 128 * k, 128);
        tiny_rehash(&seed);
        (void)expect(&seed, "entries swapped", FORMAT, "out of order");
        CHECK_HAS(said.message, (const char *)good.data + at + 128 * k);
        memmove(seed.data + at + 128 * k, good.data + at + 128 * (k + 1),
                (size_t)(128 * (n_tensors() - 1 - k)));
        tiny_rehash(&seed);
        (void)expect(&seed, "an entry dropped", FORMAT, "is missing");
        CHECK_HAS(said.message, (const char *)good.data + at + 128 * k);
        memcpy(seed.data + at + 128 * (k + 1), good.data + at + 128 * k, 128);
        restore();
    }
    for (uint64_t k = 0; k < n_tensors(); k++) { /* two tensors whose sizes wrap around together */
        uint64_t e = at + 128 * k;
        tiny_put(&seed, e + 104, 8, UINT64_C(0x7FFFFFFFFFFFFFC0));
        tiny_put(&seed, e + 128 + 104, 8, UINT64_C(0x7FFFFFFFFFFFFFC0));
        if (k + 1 < n_tensors()) tiny_rehash(&seed);
        (void)expect(&seed, "two sizes of 2^63 - 64", FORMAT, "expected|hash");
        restore();
        tiny_put(&seed, e + 80, 8, UINT64_C(1) << 32);
        tiny_put(&seed, e + 88, 8, UINT64_C(1) << 32);
        tiny_rehash(&seed);
        (void)expect(&seed, "a shape of 2^64 elements", FORMAT, "shape is (4294967296,4294967296)");
        restore();
    }
    end();
}

/* What a transfer as text does, and other versions. */
static void transfer(void)
{
    tiny_options options = {0};
    tiny_file f;
    size_t n = 0;
    begin(&options);
    f = tiny_new(2 * good.size);
    for (size_t k = 0; k < good.size; k++) {
        if (good.data[k] == '\n') f.data[n++] = '\r';
        f.data[n++] = good.data[k];
    }
    f.size = n;
    (void)expect(&f, "LF became CR LF", FORMAT, "transferred as text");
    for (size_t k = n = 0; k < good.size; k++)
        if (good.data[k] != '\r' || good.data[k + 1] != '\n') f.data[n++] = good.data[k];
    f.size = n;
    (void)expect(&f, "CR LF became LF", FORMAT, "transferred as text");
    f.size = 7;
    memcpy(f.data, good.data, 8);
    (void)expect(&f, "the end at 0x1A", FORMAT, "cut short");
    f.size = good.size;
    for (size_t k = 0; k + 4 <= good.size; k++) f.data[k] = good.data[k ^ 3];
    (void)expect(&f, "bytes swapped", FORMAT, "not a .monet file");
    memcpy(f.data, "\x89PNG\r\n\x1a\n", 8);
    (void)expect(&f, "another file", FORMAT, "not a .monet file");
    tiny_drop(&f);
    patched("big-endian", 12, 4, 0x04030201, OTHER, "big-endian");
    patched("minor version 7", 10, 2, 7, LOADS, "");
    patched("major version 2", 8, 2, 2, VERSION, "version 2, this reads 1");
    patched("major version 0", 8, 2, 0, VERSION, "version 0, this reads 1");
    for (int bit = 0; bit < 32; bit++) {
        patched("a feature to know", 24, 4, UINT64_C(1) << bit, bit ? VERSION : FORMAT,
                bit ? "file needs features" : "header says features 1");
        patched("a feature to ignore", 28, 4, UINT64_C(1) << bit, LOADS, "");
    }
    end();
}

/* ---- values that make no model --------------------------------------------------------------- */

typedef struct value {
    const char *what;
    int index; /* of the field */
    uint64_t bits;
    unsigned codes;
    const char *words;
} value;

static const value arch_values[] = {
    {"no heads", 3, 0, FORMAT, "n_heads is 0"},
    {"heads that do not divide C", 3, 3, FORMAT, "dim is 16, not a multiple of n_heads 3"},
    {"an odd head", 3, 16, FORMAT, "size of a head is 1"},
    {"2^16+1 heads", 3, 65537, FORMAT, "n_heads is 65537"},
    {"-4 heads", 3, 0xFFFFFFFCu, FORMAT, "n_heads is -4"},
    {"no kv heads", 4, 0, FORMAT, "n_kv_heads is 0"},
    {"kv heads that do not divide", 4, 3, FORMAT, "n_heads is 4, not a multiple of n_kv_heads 3"},
    {"more kv heads than heads", 4, 8, FORMAT, "not a multiple of n_kv_heads 8"},
    {"no layers", 2, 0, FORMAT, "n_layers is 0"},
    {"more layers than tensors", 2, 3, FORMAT, "43 tensors, this architecture has"},
    {"fewer layers than tensors", 2, 1, FORMAT, "43 tensors, this architecture has"},
    {"513 layers", 2, 513, FORMAT, "43 tensors, this architecture has"},
    {"4096 layers", 2, 4096, FORMAT, "43 tensors, this architecture has"},
    {"4097 layers", 2, 4097, FORMAT, "n_layers is 4097"},
    {"topk 0", 9, 0, FORMAT, "moe_topk is 0"},
    {"topk = experts", 9, 8, FORMAT, "moe_topk is 8, must be less than moe_experts 8"},
    {"topk > experts", 9, 9, FORMAT, "moe_topk is 9"},
    {"topk -1", 9, 0xFFFFFFFFu, FORMAT, "moe_topk is -1"},
    {"one expert", 6, 1, FORMAT, "moe_experts is 1"},
    {"no expert", 6, 0, FORMAT, "moe_experts is 0"},
    {"2^16 experts", 6, 65536, FORMAT, "moe_experts is 65536"},
    {"another number of experts", 6, 16, FORMAT, "router.w1.weight: shape is (16,16)"},
    {"no router heads", 8, 0, FORMAT, "moe_heads is 0"},
    {"moe_dim 0", 7, 0, FORMAT, "moe_dim is 0"},
    {"moe_dim odd", 7, 5, FORMAT, "moe_dim is 5"},
    {"moe_dim 2^16", 7, 65536, FORMAT | OTHER, "moe.u1.weight: shape is (16,16)"},
    {"vocab_size 0", 0, 0, FORMAT, "vocab_size is 0"},
    {"vocab_size -1", 0, 0xFFFFFFFFu, FORMAT, "vocab_size is -1"},
    {"vocab_size of another model", 0, 50257, FORMAT, "embed_tokens.weight: shape is (272,16)"},
    {"vocab_size 999999999", 0, 999999999, FORMAT, "vocab_size is 999999999"},
    {"dim 0", 1, 0, FORMAT, "dim is 0"},
    {"dim 2^20+1", 1, (1 << 20) + 1, FORMAT, "dim is 1048577"},
    {"groups 0", 10, 0, FORMAT, "moe_groups is 0"},
    {"groups 2", 10, 2, FORMAT, "43 tensors, this architecture has 37"},
    {"groups 4097", 10, 4097, FORMAT, "moe_groups is 4097"},
    {"decompose 2", 11, 2, FORMAT, "decompose is 2"},
    {"decompose of another model", 11, 1, FORMAT, "43 tensors, this architecture has 35"},
    {"tied, but there is a head", 12, 1, FORMAT, "43 tensors, this architecture has 42"},
    {"tied 2", 12, 2, FORMAT, "tie_embeddings is 2"},
    {"no positions", 5, 0, FORMAT, "max_seq_len is 0"},
    {"2^31 positions", 5, 0x80000000u, FORMAT, "max_seq_len is -2147483648"},
    {"2^24+1 positions", 5, (1 << 24) + 1, FORMAT, "max_seq_len is 16777217"},
    {"rope_theta 0", 13, 0, FORMAT, "rope_theta is 0"},
    {"rope_theta -0", 13, 0x80000000u, FORMAT, "rope_theta is 0"},
    {"rope_theta NaN", 13, 0x7FC00000u, FORMAT, "rope_theta is NaN"},
    {"rope_theta infinite", 13, 0x7F800000u, FORMAT, "rope_theta is too large"},
    {"rope_theta -1", 13, 0xBF800000u, FORMAT, "rope_theta is negative"},
    {"rope_theta 1e-40", 13, 0x000116C2u, FORMAT, "rope_theta is too small"},
    {"rope_theta 0.5", 13, 0x3F000000u, FORMAT, "rope_theta is too small"},
    {"rope_theta 3e38", 13, 0x7F61B1E6u, FORMAT, "rope_theta is too large"},
    {"rope_theta 1", 13, 0x3F800000u, LOADS, ""},
    {"norm_eps 0", 14, 0, FORMAT, "norm_eps is 0"},
    {"norm_eps -1", 14, 0xBF800000u, FORMAT, "norm_eps is negative"},
    {"norm_eps NaN", 14, 0xFFC00000u, FORMAT, "norm_eps is NaN"},
    {"norm_eps infinite", 14, 0x7F800000u, FORMAT, "norm_eps is too large"},
    {"norm_eps 1e-40", 14, 0x000116C2u, FORMAT, "norm_eps is too small"},
    {"norm_eps 2", 14, 0x40000000u, FORMAT, "norm_eps is too large"}};

static void architecture(void)
{
    tiny_options options = {0};
    uint64_t at;
    begin(&options);
    at = tiny_at(&good, 1);
    for (size_t k = 0; k < COUNT(arch_values); k++) {
        const value *v = &arch_values[k];
        patched(v->what, at + 4 * (uint64_t)v->index, 4, v->bits, v->codes, v->words);
    }
    tiny_put(&seed, at + 24, 4, 65535);
    patched("N*M too large", at + 28, 4, 65536, OTHER, "moe_experts 65535 * moe_dim 65536");
    tiny_put(&seed, at + 24, 4, 65535);
    patched("N*H too large", at + 32, 4, 65536, OTHER, "moe_experts 65535 * moe_heads 65536");
    end();
    options.tied = 1;
    begin(&options);
    patched("not tied, no head", tiny_at(&good, 1) + 48, 4, 0, FORMAT,
            "42 tensors, this architecture has 43");
    end();
}

/* Weights are any numbers; statistics of the router are not. */
static void statistics(void)
{
    static const struct { uint32_t bits; bool mean, var; } values[] = {
        {0x7FC00000u, false, false}, {0xFFC00001u, false, false}, {0x7F800000u, false, false},
        {0xFF800000u, false, false}, {0xBF800000u, true, false}, {0x80000001u, true, false},
        {0, true, true}, {0x80000000u, true, true}, {0x00000001u, true, true},
        {0x7F7FFFFFu, true, true}};
    tiny_options options = {0};
    uint64_t at;
    begin(&options);
    at = tiny_at(&good, 2);
    for (uint64_t k = 0; k < n_tensors(); k++) {
        const char *name = (const char *)good.data + at + 128 * k;
        bool var = strstr(name, "running_var") != NULL;
        if (!strstr(name, "running_")) continue;
        for (size_t i = 0; i < COUNT(values); i++) {
            bool fine = var ? values[i].var : values[i].mean;
            char words[100];
            uint64_t data = head + tiny_get(&good, at + 128 * k + 96, 8);
            snprintf(words, sizeof words, "tensor %s: entry 1 is", name);
            patched(name, data + 4, 4, values[i].bits, fine ? LOADS : BIT(MONET_ERROR_NUMERIC),
                    words);
        }
    }
    end();
}

/* ---- tokenizers ------------------------------------------------------------------------------ */

static void piece_bytes(const char *what, uint64_t id, const char *bytes, unsigned codes,
                        const char *words)
{
    const uint64_t at = tiny_at(&good, 3), e = at + 32 + 12 * id;
    const uint64_t tables = 12 * (TINY_PIECES + tiny_get(&good, at + 4, 4)) + 4;
    memcpy(seed.data + at + 32 + tables + tiny_get(&good, e, 4), bytes,
           (size_t)tiny_get(&good, e + 4, 2));
    tiny_rehash(&seed);
    (void)expect(&seed, what, codes, words);
    restore();
}

static void pieces(void)
{
    const uint64_t at = tiny_at(&good, 3), p = at + 32;
    patched("score NaN", p + 12 * 265 + 8, 4, 0x7FC00000u, FORMAT,
            "piece 265: the score is not finite");
    patched("score infinite", p + 12 * 265 + 8, 4, 0x7F800000u, FORMAT, "the score is not finite");
    patched("score -infinite", p + 12 * 3 + 8, 4, 0xFF800000u, FORMAT,
            "piece 3: the score is not finite");
    for (uint64_t b = 0; b < 256; b++) {
        char words[48];
        snprintf(words, sizeof words, "\"<0x%02X>\" is piece %d, type 5", (unsigned)b,
                 (int)b + 3);
        patched("a byte is missing", p + 12 * (3 + b) + 6, 2, MONET_PIECE_UNUSED, FORMAT, words);
    }
    piece_bytes("<0x-1>", 10, "<0x-1>", FORMAT, "\"<0x07>\" is piece -1");
    piece_bytes("<0xZZ>", 10, "<0xZZ>", FORMAT, "\"<0x07>\" is piece -1");
    piece_bytes("<0X07>", 10, "<0X07>", FORMAT, "\"<0x07>\" is piece -1");
    piece_bytes("<0x 7>", 10, "<0x 7>", FORMAT, "\"<0x07>\" is piece -1");
    piece_bytes("a byte twice, other letters", 3 + 0x4B, "<0x4a>", FORMAT,
                "\"<0x4B>\" is piece -1");
    piece_bytes("a byte twice", 3 + 0x4B, "<0x4A>", FORMAT, "the same bytes as piece 77");
    patched("a byte more", p + 12 * 260 + 6, 2, MONET_PIECE_BYTE, FORMAT, "257 byte pieces");
    piece_bytes("a piece twice", 261, "a", FORMAT, "piece 261 \"a\": the same bytes as piece 260");
    piece_bytes("bad UTF-8", 263, "\xc3\x28", FORMAT, "bytes of valid UTF-8");
    piece_bytes("overlong UTF-8", 263, "\xc0\xaf", FORMAT, "bytes of valid UTF-8");
    piece_bytes("a surrogate", 259, "\xed\xa0\x80", FORMAT, "bytes of valid UTF-8");
    piece_bytes("a NUL", 261, "\0", FORMAT | LOADS, "merge");
    patched("type 0", p + 12 * 265 + 6, 2, 0, FORMAT, "piece 265 \"ab\": type 0");
    patched("type 7", p + 12 * 265 + 6, 2, 7, FORMAT, "type 7");
    patched("a piece of 0 bytes", p + 12 * 265 + 4, 2, 0, FORMAT, "piece 265: 0 bytes");
    patched("a piece of 65535 bytes", p + 12 * 265 + 4, 2, 65535, FORMAT, "piece 265: 65535 bytes");
    patched("a piece beyond the end", p + 12 * 265, 4, 0xFFFFFFFFu, FORMAT, "piece 265: ends at");
    for (int k = 0; k < 4; k++) {
        static const uint32_t ids[4] = {TINY_PIECES, 0xFFFFFFFEu, 0x80000000u, 0x7FFFFFFFu};
        patched("unk id", at + 16, 4, ids[k], FORMAT, "unk id");
        patched("bos id", at + 20, 4, ids[k], FORMAT, "bos id");
        patched("eos id", p + 12 * (TINY_PIECES + tiny_get(&good, at + 4, 4)), 4, ids[k], FORMAT,
                "eos id");
    }
    patched("prefix mode", at + 24, 4, 3, FORMAT, "prefix space mode 3");
    patched("2^32-1 pieces", at, 4, 0xFFFFFFFFu, FORMAT, "4294967295 pieces");
    patched("2^32-1 merges", at + 4, 4, 0xFFFFFFFFu, FORMAT, "4294967295 merges");
    patched("2^32-1 end ids", at + 8, 4, 0xFFFFFFFFu, FORMAT, "4294967295 ids");
    patched("2^32-1 bytes", at + 12, 4, 0xFFFFFFFFu, FORMAT, "4294967295 bytes");
}

static void merges(void)
{
    const uint64_t at = tiny_at(&good, 3) + 32 + 12 * TINY_PIECES;
    patched("left out of range", at, 4, TINY_PIECES, FORMAT, "merge 0 of pieces 270 and 261");
    patched("right out of range", at + 4, 4, 0x80000000u, FORMAT, "there are 270 pieces");
    patched("result out of range", at + 8, 4, 0xFFFFFFFFu, FORMAT, "to -1, there are 270 pieces");
    patched("other bytes", at + 8, 4, 266, FORMAT,
            "piece 266 \"\\xE2\\x96\\x81a\": other bytes than in the parts of merge 0");
    patched("a longer result", at + 8, 4, 268, FORMAT, "piece 268 \"abc\": other bytes");
    tiny_put(&seed, at + 36, 4, 260);
    tiny_put(&seed, at + 40, 4, 261);
    patched("a merge twice", at + 44, 4, 265, FORMAT, "merge 3 is of the same pieces");
    tiny_put(&seed, at + 36, 4, 266);
    tiny_put(&seed, at + 40, 4, 261);
    patched("no merge makes it", at + 44, 4, 267, FORMAT,
            "piece 268 \"abc\": merges that make it 0");
}

/* A tokenizer that has more pieces than the model has rows. */
static void vocabulary(void)
{
    tiny_options options = {0};
    monet_writer_config config;
    monet_writer *w = NULL;
    monet_arch arch;
    monet_tensor tensors[64];
    const char *path = tiny_path("small.monet");
    static const uint8_t none[32];
    part p[8], q[8];
    size_t n;
    tiny_file small;
    tiny_config(&config, &options);
    arch = *config.arch;
    arch.vocab_size = TINY_PIECES - 1;
    config.arch = &arch;
    CHECK_EQ(monet_arch_tensors(&arch, MONET_F32, tensors, 64, &n), MONET_OK);
    config.tensors = tensors;
    CHECK_EQ(monet_writer_create(path, &config, &w, &said), MONET_ERROR_ARGUMENT);
    CHECK_HAS(said.message, "tokenizer has 270 pieces, vocab_size is 269");
    config.tokenizer = NULL;
    CHECK_EQ(monet_writer_create(path, &config, &w, &said), MONET_OK);
    CHECK_EQ(tiny_rows(w, tensors, n, 0, &said), MONET_OK);
    CHECK_EQ(monet_writer_finish(w, &said), MONET_OK);
    monet_writer_free(w);
    small = tiny_read(path);
    (void)remove(path);
    begin(&options);
    CHECK_EQ(parts_of(&good, p), 5);
    memcpy(q, p, sizeof q);
    q[2].data = none;
    q[2].size = sizeof none;
    assembled("no pieces at all", q, 5, FORMAT, "tokenizer: 0 pieces and 0 merges");
    CHECK_EQ(parts_of(&small, q), 4);
    q[4] = p[2];
    assembled("more pieces than rows", q, 5, FORMAT, "tokenizer has 270 pieces, vocab_size is 269");
    tiny_drop(&small);
    end();
}

static void tokenizers(void)
{
    tiny_options options = {0};
    begin(&options);
    pieces();
    piece_bytes("no split makes it", 268, "xyz", FORMAT,
                "piece 268 \"xyz\": merges that make it 0");
    patched("more merges than bytes", tiny_at(&good, 3) + 4, 4, 1, FORMAT, "the section has");
    end();
    options.merges = 1;
    begin(&options);
    pieces();
    merges();
    end();
    vocabulary();
    options.no_weights = 1;
    begin(&options);
    pieces();
    merges();
    end();
}

/* ---- bounds ---------------------------------------------------------------------------------- */

/* max_bytes: the least that is enough, and one less. */
static void max_bytes(void)
{
    tiny_options options = {0};
    monet_model_config config = {0};
    monet_model *model = NULL;
    const char *path = tiny_path("bound.monet");
    uint64_t low, high;
    CHECK_EQ(tiny_write(path, &options, NULL), MONET_OK);
    for (int copy = 0; copy < 2; copy++) {
        config.copy = copy != 0;
        for (low = 1, high = 1 << 20; low < high;) {
            config.max_bytes = (low + high) / 2;
            config.host = heap_host(&heap);
            if (monet_model_load(path, &config, &model, NULL) == MONET_OK) high = config.max_bytes;
            else low = config.max_bytes + 1;
            monet_model_free(model);
        }
        CHECK(low > 131712 && low < 300000);
        config.max_bytes = low;
        config.host = heap_host(&heap);
        CHECK_EQ(monet_model_load(path, &config, &model, &said), MONET_OK);
        if (copy) CHECK(heap.peak <= low);
        else CHECK(heap.peak + 131712 <= low);
        monet_model_free(model);
        config.max_bytes = low - 1;
        config.host = heap_host(&heap);
        CHECK_EQ(monet_model_load(path, &config, &model, &said), MONET_ERROR_MEMORY);
        CHECK(model == NULL && heap.live == 0);
        CHECK_HAS(said.message, "max_bytes is");
        config.max_bytes = 1000;
        config.host = heap_host(&heap);
        CHECK_EQ(monet_model_load(path, &config, &model, &said), MONET_ERROR_MEMORY);
        CHECK_HAS(said.message, "max_bytes is 1000");
        CHECK_EQ(heap.calls, 0);
    }
    (void)remove(path);
}

/* Many records: time and memory grow with the file and no faster. */
static void large_tables(void)
{
    const size_t n = 200000, record = 8 + 7 + 1;
    uint8_t *bytes = (uint8_t *)calloc(n, record);
    tiny_options options = {0};
    tiny_file f = {bytes, n * record};
    part p[8];
    size_t count;
    options.no_weights = 1;
    begin(&options);
    count = parts_of(&good, p);
    for (size_t k = 0; k < n; k++) {
        tiny_put(&f, record * k, 4, 6);
        snprintf((char *)bytes + record * k + 8, 7, "%06d", (int)k);
    }
    p[1].kind = 4;
    p[1].data = bytes;
    p[1].size = n * record;
    p[1].count = n;
    assembled("200000 records of metadata", p, count, LOADS, "");
    tiny_put(&f, record * (n - 1), 4, 7);
    assembled("the last one is wrong", p, count, FORMAT, "metadata: record 199999");
    p[1].count = n - 1;
    assembled("one is not counted", p, count, FORMAT, "its records take");
    free(bytes);
    end();
}

/* ---- a crowded hash table -------------------------------------------------------------------- */

enum { LETTERS = 3000, CROWD = 32000 };

/* Where the tokenizer looks for a pair first, if its hash is what it was when this was written. */
static uint64_t pair_home(uint64_t left, uint64_t right, uint64_t n)
{
    uint64_t x = (left << 32 | right) * UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 32) * UINT64_C(0xD6E8FEB86659FD93);
    return ((x ^ x >> 32) >> 32) * n >> 32;
}

static void letter(monet_piece *p, char *bytes, int prefix, int a, int b)
{
    const int codes[3] = {prefix ? 0x2581 : 0, a + 0x4E00, b < 0 ? 0 : b + 0x4E00};
    p->bytes = bytes;
    p->type = MONET_PIECE_NORMAL;
    p->size = 0;
    for (int k = 0; k < 3; k++) {
        if (!codes[k]) continue;
        bytes[p->size++] = (char)(0xE0 | codes[k] >> 12);
        bytes[p->size++] = (char)(0x80 | (codes[k] >> 6 & 63));
        bytes[p->size++] = (char)(0x80 | (codes[k] & 63));
    }
}

/* Merges of " a" and "b" that take one place after the other of the table, with "ab", which is no
   pair, looked for at the beginning of that run: a search that goes on to its end takes n^2. Or,
   to compare with, as many merges wherever they fall.                                            */
static void crowd(monet_piece *pieces, char *bytes, monet_merge *merges, bool crowded)
{
    const uint64_t n = (LETTERS + CROWD) * 3 / 2;
    const int words = 260 + 2 * LETTERS;
    char *taken = (char *)calloc(n + LETTERS, 1);
    uint64_t end = 0; /* of the run */
    int found = 0;
    for (int i = 0; i < LETTERS; i++) {
        uint64_t home = pair_home(259, (uint64_t)i + 260, n);
        letter(pieces + 260 + i, bytes + 9 * i, 0, i, -1);
        letter(pieces + 260 + LETTERS + i, bytes + 9 * (LETTERS + i), 1, i, -1);
        merges[i].left = 259, merges[i].right = 260 + i, merges[i].result = 260 + LETTERS + i;
        while (taken[home]) home++;
        taken[home] = 1;
    }
    for (uint64_t places = 0; places < CROWD; end++) places += !taken[end];
    for (uint64_t x = 1; found < CROWD;) {
        int a = (int)((x = tiny_mix(x + 1)) % LETTERS), b = (int)((x >> 32) % LETTERS);
        uint64_t home = pair_home((uint64_t)a + 260 + LETTERS, (uint64_t)b + 260, n);
        if ((crowded && home >= end) || taken[home]) continue;
        if (crowded && pair_home((uint64_t)a + 260, (uint64_t)b + 260, n) > n / 12) continue;
        taken[home] = 1;
        letter(pieces + words + found, bytes + 9 * (words + found), 1, a, b);
        merges[LETTERS + found].left = 260 + LETTERS + a;
        merges[LETTERS + found].right = 260 + b;
        merges[LETTERS + found].result = words + found;
        found++;
    }
    free(taken);
}

/* Processor seconds that the writer takes to check such a tokenizer, as the loader does. */
static double table_seconds(bool crowded)
{
    const int n = 260 + 2 * LETTERS + CROWD;
    monet_piece *pieces = (monet_piece *)calloc((size_t)n, sizeof *pieces);
    monet_merge *merges = (monet_merge *)calloc(LETTERS + CROWD, sizeof *merges);
    char *bytes = (char *)calloc((size_t)n, 9);
    monet_tokenizer_data data;
    monet_writer_config config;
    monet_writer *w = NULL;
    tiny_options options = {0};
    clock_t start;
    double seconds;
    options.no_weights = options.merges = 1;
    tiny_config(&config, &options);
    data = *config.tokenizer;
    memcpy(pieces, data.pieces, 260 * sizeof *pieces);
    crowd(pieces, bytes, merges, crowded);
    data.pieces = pieces, data.n_pieces = n;
    data.merges = merges, data.n_merges = LETTERS + CROWD;
    config.tokenizer = &data;
    start = clock();
    if (!CHECK_EQ(monet_writer_create(tiny_path("x"), &config, &w, &said), MONET_OK))
        printf("    %s\n", said.message);
    seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    monet_writer_free(w);
    free(pieces);
    free(merges);
    free(bytes);
    return seconds;
}

static void crowded_table(void)
{
    const double plain = table_seconds(false), crowded = table_seconds(true);
    CHECK(crowded < 4 * plain);
    printf("  a crowded table: %.0f ms, another %.0f ms\n", 1e3 * crowded, 1e3 * plain);
}

/* ---- files and memory that are none ---------------------------------------------------------- */

static void load_path(const char *what, const char *path, monet_result code, const char *words)
{
    for (int copy = 0; copy < 2; copy++) {
        monet_model_config config = {0};
        monet_model *model = (monet_model *)1;
        config.copy = copy != 0;
        config.host = heap_host(&heap);
        if (!test_check(monet_model_load(path, &config, &model, &said) == code, __FILE__, __LINE__,
                        what)) printf("    %s\n", said.message);
        CHECK(model == NULL && heap.live == 0);
        CHECK_HAS(said.message, words);
    }
}

static void paths(void)
{
    tiny_options options = {0};
    const char *path = tiny_path("a");
    monet_model *model = NULL;
    FILE *f = fopen(path, "wb");
    if (f) fclose(f);
    load_path("an empty file", path, MONET_ERROR_FORMAT, "file is 0 bytes");
    (void)remove(path);
    load_path("a missing file", path, MONET_ERROR_IO, path);
    CHECK_HAS(said.message, "cannot open");
    CHECK_EQ(mkfifo(path, 0600), 0);
    load_path("a pipe", path, MONET_ERROR_IO, "not a regular file");
    (void)remove(path);
    CHECK_EQ(mkdir(path, 0700), 0);
    load_path("a folder", path, MONET_ERROR_IO, "not a regular file");
    (void)rmdir(path);
    load_path("a device", "/dev/zero", MONET_ERROR_IO, "not a regular file");
    load_path("no name", "", MONET_ERROR_IO, "cannot open");
    load_path("a file as folder", "/dev/null/x", MONET_ERROR_IO, "/dev/null/x");
    CHECK_EQ(tiny_write(path, &options, NULL), MONET_OK);
    for (off_t size = 140; size-- > 0;) {
        char words[32];
        CHECK_EQ(truncate(path, size), 0);
        snprintf(words, sizeof words, "file is %d bytes", (int)size);
        load_path("cut short", path, MONET_ERROR_FORMAT, words);
    }
    (void)remove(path);
    CHECK_EQ(tiny_write(path, &options, NULL), MONET_OK);
    CHECK_EQ(symlink(path, tiny_path("link")), 0);
    CHECK_EQ(monet_model_load(tiny_path("link"), NULL, &model, &said), MONET_OK);
    monet_model_free(model);
    (void)remove(tiny_path("link"));
    (void)remove(path);
}

static void alignment(void)
{
    tiny_options options = {0};
    uint8_t *block;
    monet_model *model = (monet_model *)1;
    begin(&options);
    block = (uint8_t *)malloc(good.size + 128);
    for (uintptr_t k = 0; k < 64; k++) {
        uint8_t *data = block + (64 - (uintptr_t)block % 64) + k;
        memcpy(data, good.data, good.size);
        CHECK_EQ(monet_model_load_memory(data, good.size, NULL, &model, &said),
                 k ? MONET_ERROR_ARGUMENT : MONET_OK);
        if (k) CHECK_HAS(said.message, "not aligned to 64 bytes");
        monet_model_free(model);
    }
    free(block);
    end();
}

/* ---- weights that are no numbers ------------------------------------------------------------- */

/* All elements of one tensor become this number: eval says so or goes on, and after an error the
   session is as it was before.                                                                   */
static void bad_weight(uint64_t index, uint32_t bits)
{
    const uint64_t e = tiny_at(&good, 2) + 128 * index, at = head + tiny_get(&good, e + 96, 8);
    const int32_t tokens[3] = {260, 261, 262};
    monet_model *model = NULL;
    monet_session *s = NULL;
    monet_result result;
    for (uint64_t k = 0; k < tiny_get(&good, e + 104, 8); k += 4) tiny_put(&seed, at + k, 4, bits);
    result = monet_model_load_memory(seed.data, seed.size, NULL, &model, &said);
    if (strstr((const char *)good.data + e, "running_")) {
        CHECK_EQ(result, bits == 0x7F7FFFFFu ? MONET_OK : MONET_ERROR_NUMERIC);
    } else {
        CHECK_EQ(result, MONET_OK);
    }
    if (result == MONET_OK && CHECK_EQ(monet_session_create(model, NULL, &s, NULL), MONET_OK)) {
        result = monet_session_eval(s, tokens, 3);
        CHECK(result == MONET_OK || result == MONET_ERROR_NUMERIC);
        CHECK_EQ(monet_session_length(s), result == MONET_OK ? 3 : 0);
        CHECK((monet_session_logits(s) != NULL) == (result == MONET_OK));
        if (result) CHECK_HAS(monet_session_error(s)->message, "not finite");
        if (index == 0 && bits != 0x7F7FFFFFu) CHECK_EQ(result, MONET_ERROR_NUMERIC);
    }
    monet_session_free(s);
    monet_model_free(model);
    restore();
}

/* One token's embedding is NaN: the others still work, with the same bits. */
static void bad_token(void)
{
    const int32_t fine[2] = {260, 261}, bad = 17;
    monet_model *model = NULL;
    monet_session *a = NULL, *b = NULL;
    monet_tensor embed;
    CHECK_EQ(monet_model_load_memory(seed.data, seed.size, NULL, &model, &said), MONET_OK);
    embed = *monet_model_tensor(model, 0);
    for (int c = 0; c < 16; c++)
        tiny_put(&seed, head + 4 * monet_tensor_place(&embed, bad, c), 4, 0x7FC00000u);
    CHECK_EQ(monet_session_create(model, NULL, &a, NULL), MONET_OK);
    CHECK_EQ(monet_session_create(model, NULL, &b, NULL), MONET_OK);
    CHECK_EQ(monet_session_eval(a, fine, 1), MONET_OK);
    CHECK_EQ(monet_session_eval(a, &bad, 1), MONET_ERROR_NUMERIC);
    CHECK_EQ(monet_session_length(a), 1);
    CHECK(monet_session_logits(a) == NULL);
    CHECK_EQ(monet_session_eval(a, fine + 1, 1), MONET_OK);
    CHECK_EQ(monet_session_eval(b, fine, 2), MONET_OK);
    CHECK(memcmp(monet_session_logits(a), monet_session_logits(b), TINY_VOCAB * 4) == 0);
    monet_session_free(a);
    monet_session_free(b);
    monet_model_free(model);
    restore();
}

static void bad_weights(void)
{
    static const uint32_t bits[] = {0x7FC00000u, 0x7F800000u, 0xFF800000u, 0x7F7FFFFFu};
    for (int horizontal = 0; horizontal < 2; horizontal++) {
        tiny_options options = {0};
        options.horizontal = horizontal;
        begin(&options);
        for (uint64_t k = 0; k < n_tensors(); k++)
            for (size_t i = 0; i < COUNT(bits); i++) bad_weight(k, bits[i]);
        bad_token();
        end();
    }
}

/* ---- q8 and q4 ------------------------------------------------------------------------------- */

/* A config with more than one column group in a row, the last not full. */
static void wide_config(monet_writer_config *c, const tiny_options *o)
{
    static monet_tensor tensors[64];
    static monet_arch arch;
    tiny_config(c, o);
    arch = *c->arch;
    arch.dim = 80;
    CHECK_EQ(monet_arch_tensors(&arch, o->dtype, tensors, 64, &c->n_tensors), MONET_OK);
    c->arch = &arch;
    c->tensors = tensors;
}

/* Its dtype, its size, and numbers that are near what was written. */
static void quantised_tensor(const monet_tensor *t, size_t number, monet_dtype dtype)
{
    const int bytes = dtype == MONET_Q8 ? 34 : 18;
    int64_t columns = t->n_dims == 1 ? t->shape[0] : t->shape[1];
    int64_t rows = t->n_dims == 1 ? 1 : t->shape[0], groups = (columns + 31) / 32;
    float *values = (float *)malloc((size_t)(rows * columns) * sizeof(float));
    int far = 0;
    if (!values || !CHECK_EQ(monet_tensor_read(t, 0, rows, values), MONET_OK)) return;
    if (t->layout == MONET_ROWS) {
        CHECK_EQ(t->dtype, t->n_dims == 1 ? MONET_F32 : MONET_BF16);
        CHECK_EQ(t->size, (uint64_t)(rows * columns * (t->n_dims == 1 ? 4 : 2)));
    } else {
        CHECK_EQ(t->dtype, dtype);
        CHECK_EQ(t->size, (uint64_t)((rows + t->panel - 1) / t->panel * t->panel * groups * bytes));
    }
    CHECK_EQ(t->source_dtype, t->n_dims == 1 ? MONET_F32 : MONET_BF16);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < groups; g++) {
            float given[32], most = 0, step;
            int n = (int)(columns - 32 * g < 32 ? columns - 32 * g : 32);
            for (int k = 0; k < n; k++) {
                given[k] = tiny_weight(t, 0, number, (uint64_t)(r * columns + 32 * g + k));
                if (fabsf(given[k]) > most) most = fabsf(given[k]);
            }
            /* q4 cuts off what is largest on one side for the sake of the rest */
            step = t->dtype != dtype ? most / 256 : dtype == MONET_Q8 ? most / 200 : most / 6;
            for (int k = 0; k < n; k++)
                far += !(fabsf(values[r * columns + 32 * g + k] - given[k]) <= step);
        }
    if (!CHECK_EQ(far, 0)) printf("    %s\n", t->name);
    free(values);
}

/* Written, loaded, saved again: the same bytes. A trainer widens it. */
static void quantised_model(const tiny_options *o)
{
    monet_writer_config config;
    monet_writer *w = NULL;
    monet_model *model = NULL;
    monet_trainer *trainer = NULL;
    char path[256], again[256];
    tiny_file a, b;
    wide_config(&config, o);
    strcpy(path, tiny_path("quantised.monet"));
    strcpy(again, tiny_path("again.monet"));
    CHECK_EQ(monet_writer_create(path, &config, &w, &said), MONET_OK);
    CHECK_EQ(tiny_rows(w, config.tensors, config.n_tensors, 0, &said), MONET_OK);
    CHECK_EQ(monet_writer_finish(w, &said), MONET_OK);
    monet_writer_free(w);
    if (!CHECK_EQ(monet_model_load(path, NULL, &model, &said), MONET_OK)) return;
    for (size_t k = 0; k < config.n_tensors; k++)
        quantised_tensor(monet_model_tensor(model, k), k, o->dtype);
    CHECK_EQ(monet_model_verify(model, &said), MONET_OK);
    CHECK_EQ(monet_model_save(model, again, &said), MONET_OK);
    a = tiny_read(path), b = tiny_read(again);
    CHECK(a.size == b.size && memcmp(a.data, b.data, a.size) == 0);
    CHECK_EQ(tiny_get(&a, 24, 4), 1);
    CHECK_EQ(monet_trainer_create(model, NULL, &trainer, &said), MONET_OK);
    for (size_t k = 0; trainer && k < config.n_tensors; k++) {
        const monet_tensor *t = monet_model_tensor(model, k);
        const monet_tensor *wide = monet_model_tensor(monet_trainer_model(trainer), k);
        float one[800], other[800];
        CHECK_EQ(wide->dtype, MONET_F32);
        CHECK_EQ(monet_tensor_read(t, 0, 1, one), MONET_OK);
        CHECK_EQ(monet_tensor_read(wide, 0, 1, other), MONET_OK);
        CHECK(memcmp(one, other, (size_t)t->shape[t->n_dims - 1] * sizeof(float)) == 0);
    }
    monet_trainer_free(trainer);
    monet_model_free(model);
    tiny_drop(&a);
    tiny_drop(&b);
    (void)remove(path);
    (void)remove(again);
}

/* What a quantised file may not say. */
static void quantised_directory(const tiny_options *o)
{
    const uint64_t other = (uint64_t)(MONET_Q8 + MONET_Q4 - (int)o->dtype);
    uint64_t at;
    begin(o);
    CHECK_EQ(tiny_get(&seed, 24, 4), 1);
    patched("no feature", 24, 4, 0, FORMAT, "says features 0, the dtypes of its tensors need 1");
    patched("one feature more", 24, 4, 3, VERSION, "file needs features 2");
    at = tiny_at(&seed, 2);
    for (uint64_t k = 0; k < n_tensors(); k++) {
        const bool matrix = tiny_get(&seed, at + 128 * k + 64, 4) >= MONET_Q8;
        const bool vector = tiny_get(&seed, at + 128 * k + 72, 4) == 1;
        const char *words = matrix ? "data section is|expected" : vector
                            ? "expected f32" : "expected f32, f16 or bf16";
        patched("the other one", at + 128 * k + 64, 4, other, FORMAT, words);
        patched("f32 instead", at + 128 * k + 64, 4, MONET_F32, vector ? LOADS : FORMAT,
                "data section is|expected");
        patched("dtype 5", at + 128 * k + 64, 4, 5, OTHER, "dtype 5 from");
        patched("from q8", at + 128 * k + 68, 4, MONET_Q8, OTHER, "this version knows");
    }
    end();
}

/* What the writer does not take. */
static void quantised_writer(const tiny_options *o)
{
    monet_writer_config config;
    monet_tensor tensors[64];
    tiny_config(&config, o);
    for (size_t k = 0; k < config.n_tensors; k++) {
        monet_writer *w = NULL;
        memcpy(tensors, config.tensors, config.n_tensors * sizeof *tensors);
        config.tensors = tensors;
        tensors[k].dtype = o->dtype;
        CHECK_EQ(monet_writer_create(tiny_path("x"), &config, &w, &said),
                 tensors[k].layout == MONET_ROWS ? MONET_ERROR_ARGUMENT : MONET_OK);
        if (!w) CHECK_HAS(said.message, tensors[k].name);
        monet_writer_free(w);
        tensors[k].source_dtype = MONET_Q8;
        CHECK_EQ(monet_writer_create(tiny_path("x"), &config, &w, &said), MONET_ERROR_ARGUMENT);
        CHECK_HAS(said.message, "cannot be written");
        tiny_config(&config, o);
    }
    for (int k = 0; k < 2; k++) { /* embed_tokens is the first */
        monet_writer *w = NULL;
        float row[16] = {0};
        row[11] = k ? (float)HUGE_VAL : (float)NAN;
        CHECK_EQ(monet_writer_create(tiny_path("x"), &config, &w, &said), MONET_OK);
        CHECK_EQ(monet_writer_rows(w, row, 1, &said), MONET_ERROR_NUMERIC);
        CHECK_HAS(said.message, "tensor embed_tokens.weight: row 0 has a number");
        CHECK_EQ(monet_writer_finish(w, &said), MONET_ERROR_STATE);
        monet_writer_free(w);
    }
}

static void quantised(void)
{
    tiny_options options = {0};
    for (int k = 0; k < 4; k++) {
        options.horizontal = k & 1;
        options.dtype = k & 2 ? MONET_Q4 : MONET_Q8;
        quantised_model(&options);
        quantised_directory(&options);
        quantised_writer(&options);
        random_damage(&options, 300);
    }
}

int main(int argc, char **argv)
{
    tiny_options vertical = {0}, horizontal = {0};
    long times = argc > 1 ? strtol(argv[1], NULL, 10) : 1;
    if (times < 1) times = 1;
    vertical.merges = 1;
    horizontal.horizontal = 1;
    horizontal.dtype = MONET_F16;
    horizontal.n_kv_heads = 4;
    every_field(&vertical);
    every_pair();
    sections();
    places();
    directory();
    transfer();
    architecture();
    statistics();
    tokenizers();
    truncation();
    bit_flips();
    data_flips(500 * times);
    random_damage(&vertical, 2000 * times);
    random_damage(&horizontal, 2000 * times);
    max_bytes();
    large_tables();
    crowded_table();
    paths();
    alignment();
    bad_weights();
    quantised();
    CHECK_EQ(slow, 0);
    CHECK_EQ(fat, 0);
    CHECK_EQ(leaky, 0);
    CHECK_EQ(unclear, 0);
    tiny_clean();
    return test_end("file");
}
