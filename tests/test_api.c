/* test_api.c: wrong and extreme arguments for every public function: each gives the documented
   error and leaves the object as it was.

   cc -O2 -pthread -I. tests/test_api.c -o test_api -lm && ./test_api                             */
#define _POSIX_C_SOURCE 200809L
#define MONET_IMPLEMENTATION
#include "monet.h"
#include <float.h>
#include <math.h>
#include "heap.h"
#include "tiny.h"
#include <limits.h>

#define V TINY_VOCAB
#define COUNT(array) (sizeof(array) / sizeof *(array))

static monet_error said;
static monet_model *model;             /* vertical, 2 layers, with a tokenizer */
static tiny_file file;                 /* its bytes */
static unsigned seen;                  /* the errors that came with words, a bit each */

/* A call must give this error and, in *e, words with this part. */
#define ERROR(call, code, e, part) error_is((call), (code), (e), (part), __LINE__, #call)
#define SESSION_ERROR(call, code, s, part) ERROR(call, code, monet_session_error(s), part)

static void error_is(monet_result result, monet_result code, const monet_error *e,
                     const char *part, int line, const char *what)
{
    int ok = result == code && e->code == code && strstr(e->message, part) != NULL;
    if (!test_check(ok, __FILE__, line, what))
        printf("    %s, %s, \"%s\", expected \"%s\"\n", monet_result_name(result),
               monet_result_name(e->code), e->message, part);
    if (ok && e->message[0]) seen |= 1u << -(int)code;
    memset(&said, 0, sizeof said);
}

#define ARGUMENT(call) CHECK_EQ(call, MONET_ERROR_ARGUMENT)

static monet_session *open_session(const monet_model *m, const monet_session_config *config)
{
    monet_session *s = NULL;
    if (!CHECK_EQ(monet_session_create(m, config, &s, &said), MONET_OK))
        printf("    %s\n", said.message);
    return s;
}

static monet_model *open_model(const tiny_file *f)
{
    monet_model *m = NULL;
    if (!CHECK_EQ(monet_model_load_memory(f->data, f->size, NULL, &m, &said), MONET_OK))
        printf("    %s\n", said.message);
    return m;
}

/* ---- base and tensors ------------------------------------------------------------------------ */

static void base(void)
{
    for (int k = -11; k <= 0; k++)
        CHECK(!strncmp(monet_result_name((monet_result)k), k ? "MONET_ERROR_" : "MONET_OK", 8));
    CHECK_STR(monet_result_name((monet_result)-12), "unknown result");
    CHECK_STR(monet_result_name((monet_result)1), "unknown result");
    CHECK_STR(monet_result_name((monet_result)INT_MIN), "unknown result");
    CHECK_STR(monet_result_name((monet_result)INT_MAX), "unknown result");
    CHECK_EQ(monet_version(), MONET_VERSION);
    CHECK_STR(monet_dtype_name((monet_dtype)5), "unknown");
    CHECK_STR(monet_dtype_name((monet_dtype)-1), "unknown");
    CHECK_STR(monet_dtype_name(MONET_BF16), "bf16");
    CHECK_STR(monet_dtype_name(MONET_Q8), "q8");
    CHECK_STR(monet_dtype_name(MONET_Q4), "q4");
    CHECK_EQ(monet_dtype_size(MONET_Q8), 0);
    CHECK_EQ(monet_dtype_size((monet_dtype)5), 0);
    CHECK_EQ(monet_dtype_size((monet_dtype)INT_MIN), 0);
}

static void tensors(void)
{
    const monet_tensor *t = monet_model_tensor(model, 0);
    monet_tensor fake;
    float row[16], x = 0;
    uint16_t h = 0;
    ARGUMENT(monet_convert(NULL, MONET_F16, &x, MONET_F32, 1));
    ARGUMENT(monet_convert(&h, MONET_F16, NULL, MONET_F32, 1));
    ARGUMENT(monet_convert(&h, (monet_dtype)3, &x, MONET_F32, 1));
    ARGUMENT(monet_convert(&h, MONET_F16, &x, (monet_dtype)-1, 1));
    CHECK_EQ(monet_convert(NULL, MONET_F16, NULL, MONET_F32, 0), MONET_OK);
    ARGUMENT(monet_tensor_read(NULL, 0, 1, row));
    ARGUMENT(monet_tensor_read(t, 0, 1, NULL));
    ARGUMENT(monet_tensor_read(t, -1, 1, row));
    ARGUMENT(monet_tensor_read(t, 0, -1, row));
    ARGUMENT(monet_tensor_read(t, V, 1, row));
    ARGUMENT(monet_tensor_read(t, V - 1, 2, row));
    ARGUMENT(monet_tensor_read(t, INT64_MAX, 1, row));
    ARGUMENT(monet_tensor_read(t, 1, INT64_MAX, row));
    ARGUMENT(monet_tensor_read(t, INT64_MIN, INT64_MIN, row));
    CHECK_EQ(monet_tensor_read(t, V - 1, 1, row), MONET_OK);
    CHECK_EQ(monet_tensor_read(t, V, 0, row), MONET_OK);
    fake = *t;
    fake.data = NULL;
    ARGUMENT(monet_tensor_read(&fake, 0, 1, row));
    memset(&fake, 0, sizeof fake);
    fake.data = row;
    fake.layout = MONET_PANELS;
    ARGUMENT(monet_tensor_read(&fake, 0, 0, row));
    CHECK_EQ(monet_tensor_place(&fake, 1, 1), 0);
    CHECK_EQ(monet_tensor_place(NULL, 0, 0), 0);
}

static void arch(void)
{
    tiny_options options = {0};
    monet_arch a, b;
    monet_tensor list[64];
    size_t n = 0;
    tiny_arch(&a, &options);
    ERROR(monet_arch_check(NULL, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ARGUMENT(monet_arch_tensors(NULL, MONET_F32, list, 64, &n));
    ARGUMENT(monet_arch_tensors(&a, MONET_F32, list, 64, NULL));
    ARGUMENT(monet_arch_tensors(&a, (monet_dtype)5, list, 64, &n));
    ARGUMENT(monet_arch_tensors(&a, MONET_F32, NULL, 64, &n));
    CHECK_EQ(monet_arch_tensors(&a, MONET_F32, NULL, 0, &n), MONET_ERROR_CAPACITY);
    CHECK_EQ(n, 43);
    CHECK_EQ(monet_arch_tensors(&a, MONET_F32, list, 42, &n), MONET_ERROR_CAPACITY);
    CHECK_EQ(n, 43);
    CHECK_EQ(monet_arch_tensors(&a, MONET_F32, list, 43, &n), MONET_OK);
    for (int k = 0; k < 13; k++) { /* each field: INT_MIN, INT_MAX, -1 */
        static const int values[] = {INT_MIN, INT_MAX, -1};
        for (size_t i = 0; i < COUNT(values); i++) {
            b = a;
            memcpy((char *)&b + 4 * k, &values[i], 4);
            ERROR(monet_arch_check(&b, &said), MONET_ERROR_FORMAT, &said, "is");
            ARGUMENT(monet_arch_tensors(&b, MONET_F32, list, 64, &n));
        }
    }
    memset(&b, 0, sizeof b);
    ERROR(monet_arch_check(&b, &said), MONET_ERROR_FORMAT, &said, "vocab_size is 0");
}

/* ---- models ---------------------------------------------------------------------------------- */

static void loading(void)
{
    monet_model_config config = {0};
    monet_model *m = NULL;
    uint32_t *small = (uint32_t *)malloc(sizeof *small); /* a struct of another version */
    ERROR(monet_model_load(NULL, NULL, &m, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ERROR(monet_model_load("x", NULL, NULL, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ARGUMENT(monet_model_load(NULL, NULL, NULL, NULL));
    ERROR(monet_model_load("/no/such/file", NULL, &m, &said), MONET_ERROR_IO, &said, "cannot open");
    ERROR(monet_model_load_memory(NULL, 64, NULL, &m, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ARGUMENT(monet_model_load_memory(file.data, file.size, NULL, NULL, NULL));
    ERROR(monet_model_load_memory(file.data, 0, NULL, &m, &said), MONET_ERROR_FORMAT, &said,
          "file is 0 bytes");
    config.struct_size = sizeof config + 8;
    ERROR(monet_model_load_memory(file.data, file.size, &config, &m, &said), MONET_ERROR_VERSION,
          &said, "struct_size is");
    config.struct_size = UINT32_MAX;
    ERROR(monet_model_load("x", &config, &m, &said), MONET_ERROR_VERSION, &said, "struct_size is");
    for (*small = 1; *small <= sizeof *small; ++*small)
        ERROR(monet_model_load_memory(file.data, file.size, (monet_model_config *)(void *)small, &m,
                                      &said), MONET_ERROR_ARGUMENT, &said, "struct_size is");
    free(small);
    config.struct_size = sizeof config;
    CHECK_EQ(monet_model_load_memory(file.data, file.size, &config, &m, NULL), MONET_OK);
    monet_model_free(m);
    ERROR(monet_model_save(NULL, "x", &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ERROR(monet_model_save(model, NULL, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ERROR(monet_model_verify(NULL, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    monet_model_free(NULL);
}

static void getters(void)
{
    CHECK(monet_model_arch(NULL) == NULL && monet_model_tokenizer(NULL) == NULL);
    CHECK(monet_model_tensor(NULL, 0) == NULL && monet_model_tensor(model, 43) == NULL);
    CHECK(monet_model_tensor(model, SIZE_MAX) == NULL && monet_model_tensor(model, 42) != NULL);
    CHECK(monet_model_tensor_count(NULL) == 0 && monet_model_tensor_count(model) == 43);
    CHECK(monet_model_find_tensor(NULL, "x") == NULL);
    CHECK(monet_model_find_tensor(model, NULL) == NULL);
    CHECK(monet_model_find_tensor(model, "") == NULL);
    CHECK(monet_model_find_tensor(model, "norm.weight") != NULL);
    CHECK(monet_model_metadata_count(NULL) == 0 && monet_model_metadata_count(model) == 2);
    CHECK(monet_model_metadata_key(NULL, 0) == NULL && monet_model_metadata_key(model, 2) == NULL);
    CHECK(monet_model_metadata_value(NULL, 0) == NULL);
    CHECK(monet_model_metadata_value(model, SIZE_MAX) == NULL);
    CHECK(monet_model_metadata(NULL, "note") == NULL && monet_model_metadata(model, NULL) == NULL);
    CHECK(monet_model_metadata(model, "no such key") == NULL);
    CHECK_STR(monet_model_metadata(model, "general.name"), "tiny");
    CHECK_STR(monet_model_metadata(model, "note"), "");
    CHECK_STR(monet_model_metadata_key(model, 1), "note");
}

/* ---- writer ---------------------------------------------------------------------------------- */

#define CREATE_ERROR(part)                                                                         \
    ERROR(monet_writer_create(path, &c, &w, &said), MONET_ERROR_ARGUMENT, &said, part);            \
    CHECK(w == NULL);                                                                              \
    tiny_config(&c, &options)

static void writer_config(const char *path)
{
    tiny_options options = {0};
    monet_writer_config c;
    monet_writer *w = NULL;
    monet_metadata bad[1] = {{NULL, "x"}};
    monet_tensor changed[64];
    monet_arch a;
    monet_tokenizer_data t;
    tiny_config(&c, &options);
    ERROR(monet_writer_create(NULL, &c, &w, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ERROR(monet_writer_create(path, NULL, &w, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ERROR(monet_writer_create(path, &c, NULL, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    c.struct_size = sizeof c + 1;
    ERROR(monet_writer_create(path, &c, &w, &said), MONET_ERROR_VERSION, &said, "struct_size is");
    tiny_config(&c, &options);
    c.arch = NULL, c.tokenizer = NULL;
    CREATE_ERROR("neither");
    c.metadata = NULL;
    CREATE_ERROR("metadata 0");
    c.metadata = bad, c.n_metadata = 1;
    CREATE_ERROR("metadata 0");
    bad[0].key = "x", bad[0].value = NULL;
    c.metadata = bad, c.n_metadata = 1;
    CREATE_ERROR("metadata 0");
    c.tensors = NULL;
    CREATE_ERROR("tensors given");
    c.n_tensors = 42;
    CREATE_ERROR("42 tensors given, the model has 43");
    a = *c.arch, a.moe_groups = 0, c.arch = &a;
    CREATE_ERROR("monet_arch_check");
    a = *c.arch, a.dim = -1, c.arch = &a;
    ERROR(monet_writer_create(path, &c, &w, &said), MONET_ERROR_FORMAT, &said, "dim is -1");
    tiny_config(&c, &options);
    memcpy(changed, c.tensors, 43 * sizeof *changed);
    changed[0].dtype = (monet_dtype)9, c.tensors = changed;
    CREATE_ERROR("embed_tokens.weight: dtype 9");
    memcpy(changed, c.tensors, 43 * sizeof *changed);
    changed[1].dtype = MONET_BF16, c.tensors = changed; /* a vector */
    CREATE_ERROR("layers.0.input_layernorm.weight: dtype");
    memset(changed, 0, sizeof changed);
    c.tensors = changed; /* no names, no shapes, nothing */
    CREATE_ERROR("embed_tokens.weight");
    t = *c.tokenizer, t.n_pieces = -1, c.tokenizer = &t;
    CREATE_ERROR("a count below 0");
    t = *c.tokenizer, t.pieces = NULL, c.tokenizer = &t;
    CREATE_ERROR("no array");
    t = *c.tokenizer, t.n_merges = INT_MIN, c.tokenizer = &t;
    CREATE_ERROR("a count below 0");
    t = *c.tokenizer, t.n_eos = 1, t.eos_ids = NULL, c.tokenizer = &t;
    CREATE_ERROR("no array");
}

static void writer_pieces(const char *path)
{
    static const struct { int size, type; float score; const char *part; } values[] = {
        {0, 1, 0, "piece 265"}, {-1, 1, 0, "piece 265"}, {65536, 1, 0, "piece 265"},
        {INT_MIN, 1, 0, "piece 265"}, {2, 0, 0, "piece 265"}, {2, 7, 0, "piece 265"},
        {2, 65537, 0, "piece 265"}, {2, INT_MIN, 0, "piece 265"}, {2, 1, NAN, "score"},
        {2, 1, HUGE_VALF, "score"}};
    tiny_options options = {0};
    monet_writer_config c;
    monet_writer *w = NULL;
    monet_piece list[TINY_PIECES];
    monet_tokenizer_data t;
    tiny_config(&c, &options);
    t = *c.tokenizer;
    for (size_t k = 0; k < COUNT(values); k++) {
        monet_result result;
        memcpy(list, c.tokenizer->pieces, sizeof list);
        list[265].size = values[k].size;
        list[265].type = values[k].type;
        list[265].score = values[k].score;
        t.pieces = list;
        c.tokenizer = &t;
        result = monet_writer_create(path, &c, &w, &said);
        CHECK(result == MONET_ERROR_ARGUMENT || result == MONET_ERROR_FORMAT);
        CHECK_HAS(said.message, values[k].part);
        monet_writer_free(w);
        tiny_config(&c, &options);
    }
    list[265].bytes = NULL;
    t.pieces = list;
    c.tokenizer = &t;
    ERROR(monet_writer_create(path, &c, &w, &said), MONET_ERROR_ARGUMENT, &said, "piece 265");
}

static void writer_order(const char *path)
{
    tiny_options options = {0};
    monet_writer_config c;
    monet_writer *w = NULL;
    float *rows = (float *)calloc(V * 16, sizeof *rows);
    tiny_config(&c, &options);
    CHECK_EQ(monet_writer_create(path, &c, &w, &said), MONET_OK);
    ERROR(monet_writer_rows(NULL, rows, 1, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ERROR(monet_writer_rows(w, NULL, 1, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ERROR(monet_writer_rows(w, rows, -1, &said), MONET_ERROR_ARGUMENT, &said, "below 0");
    ERROR(monet_writer_rows(w, rows, INT64_MIN, &said), MONET_ERROR_ARGUMENT, &said, "below 0");
    ERROR(monet_writer_rows(w, rows, V + 1, &said), MONET_ERROR_ARGUMENT, &said,
          "273 rows given, 272 are missing");
    ERROR(monet_writer_rows(w, rows, INT64_MAX, &said), MONET_ERROR_ARGUMENT, &said, "rows given");
    CHECK_EQ(monet_writer_rows(w, NULL, 0, &said), MONET_OK);
    CHECK_EQ(monet_writer_rows(w, rows, V - 16, &said), MONET_OK);
    ERROR(monet_writer_rows(w, rows, 17, &said), MONET_ERROR_ARGUMENT, &said, "16 are missing");
    ERROR(monet_writer_finish(w, &said), MONET_ERROR_STATE, &said, "0 of 43");
    ERROR(monet_writer_finish(NULL, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    monet_writer_free(w); /* not finished: nothing stays */
    CHECK(access(path, F_OK) != 0);
    options.no_weights = 1;
    tiny_config(&c, &options);
    CHECK_EQ(monet_writer_create(path, &c, &w, &said), MONET_OK);
    CHECK_EQ(monet_writer_rows(w, rows, 0, &said), MONET_OK);
    ERROR(monet_writer_rows(w, rows, 1, &said), MONET_ERROR_STATE, &said, "complete");
    CHECK_EQ(monet_writer_finish(w, &said), MONET_OK);
    ERROR(monet_writer_finish(w, &said), MONET_ERROR_STATE, &said, "finished");
    ERROR(monet_writer_rows(w, rows, 1, &said), MONET_ERROR_STATE, &said, "finished");
    monet_writer_free(w);
    monet_writer_free(NULL);
    CHECK_EQ(remove(path), 0);
    free(rows);
}

/* ---- tokenizer ------------------------------------------------------------------------------- */

static void encoding(void)
{
    const monet_tokenizer *t = monet_model_tokenizer(model);
    int32_t tokens[16], all[16];
    size_t n = 7, k;
    ARGUMENT(monet_tokenizer_encode(NULL, "a", 1, 0, tokens, 16, &n));
    CHECK_EQ(n, 0);
    ARGUMENT(monet_tokenizer_encode(t, NULL, 1, 0, tokens, 16, &n));
    ARGUMENT(monet_tokenizer_encode(t, "a", 1, 0, NULL, 16, &n));
    ARGUMENT(monet_tokenizer_encode(t, "a", 1, 0, tokens, 16, NULL));
    ARGUMENT(monet_tokenizer_encode(t, "a", 1, 16, tokens, 16, &n));
    ARGUMENT(monet_tokenizer_encode(t, "a", 1, UINT_MAX, tokens, 16, &n));
    ARGUMENT(monet_tokenizer_encode(t, "a", SIZE_MAX, 0, tokens, 16, &n));
    ARGUMENT(monet_tokenizer_encode(t, "a", SIZE_MAX / 2, 0, tokens, 16, &n));
    CHECK_EQ(monet_tokenizer_encode(t, NULL, 0, 0, NULL, 0, &n), MONET_OK);
    CHECK_EQ(n, 0);
    CHECK_EQ(monet_tokenizer_encode(t, "ab \xff", 4, MONET_ADD_BOS, all, 16, &n), MONET_OK);
    CHECK_EQ(all[0], 1);
    CHECK_EQ(all[n - 1], 3 + 255);
    for (k = 0; k <= n; k++) { /* too small: the first ones, the right number, nothing beyond */
        size_t count = 0;
        memset(tokens, 0x55, sizeof tokens);
        CHECK_EQ(monet_tokenizer_encode(t, "ab \xff", 4, MONET_ADD_BOS, tokens, k, &count),
                 k < n ? MONET_ERROR_CAPACITY : MONET_OK);
        CHECK_EQ(count, n);
        CHECK(!memcmp(tokens, all, k * sizeof *all) && tokens[k] == 0x55555555);
    }
    CHECK_EQ(monet_tokenizer_encode(t, "<s>", 3, 0, tokens, 16, &n), MONET_OK);
    for (k = 0; k < n; k++) CHECK(tokens[k] != 1); /* text never becomes a control token */
    CHECK_EQ(monet_tokenizer_encode(t, "<s>", 3, MONET_PARSE_SPECIAL, tokens, 16, &n), MONET_OK);
    CHECK(n == 1 && tokens[0] == 1);
}

static void decoding(void)
{
    const monet_tokenizer *t = monet_model_tokenizer(model);
    static const int32_t wrong[] = {-1, TINY_PIECES, V, INT_MIN, INT_MAX};
    const int32_t tokens[3] = {266, 262, 3 + 'x'}; /* " a", "c", "x" */
    char text[8];
    size_t n = 7;
    ARGUMENT(monet_tokenizer_decode(NULL, tokens, 1, text, 8, &n));
    ARGUMENT(monet_tokenizer_decode(t, NULL, 1, text, 8, &n));
    ARGUMENT(monet_tokenizer_decode(t, tokens, 1, NULL, 8, &n));
    ARGUMENT(monet_tokenizer_decode(t, tokens, 1, text, 8, NULL));
    CHECK_EQ(monet_tokenizer_decode(t, NULL, 0, NULL, 0, &n), MONET_OK);
    CHECK_EQ(n, 0);
    for (size_t k = 0; k < COUNT(wrong); k++) {
        ARGUMENT(monet_tokenizer_decode(t, &wrong[k], 1, text, 8, &n));
        CHECK(monet_tokenizer_bytes(t, wrong[k], &n) == NULL);
        CHECK(!monet_tokenizer_is_eos(t, wrong[k]));
    }
    for (size_t k = 0; k < 4; k++) {
        memset(text, '#', sizeof text);
        CHECK_EQ(monet_tokenizer_decode(t, tokens, 3, text, k, &n),
                 k < 3 ? MONET_ERROR_CAPACITY : MONET_OK);
        CHECK(n == 3 && !memcmp(text, "acx", k) && text[k] == '#');
    }
    CHECK(monet_tokenizer_bytes(NULL, 0, &n) == NULL && monet_tokenizer_bytes(t, 5, NULL) == NULL);
    CHECK(monet_tokenizer_size(NULL) == 0 && monet_tokenizer_size(t) == TINY_PIECES);
    CHECK(monet_tokenizer_bos(NULL) == -1 && monet_tokenizer_bos(t) == 1);
    CHECK(!monet_tokenizer_is_eos(NULL, 2) && monet_tokenizer_is_eos(t, 2));
    CHECK(monet_tokenizer_eos(NULL) == -1 && monet_tokenizer_eos(t) == 2);
    CHECK_EQ(monet_tokenizer_find(NULL, "a", 1), -1);
    CHECK_EQ(monet_tokenizer_find(t, NULL, 1), -1);
    CHECK_EQ(monet_tokenizer_find(t, "a", 0), -1);
    CHECK_EQ(monet_tokenizer_find(t, "a", SIZE_MAX), -1);
    CHECK_EQ(monet_tokenizer_find(t, "nothing like it", 15), -1);
    CHECK_EQ(monet_tokenizer_find(t, "</s>", 4), 2);
}

static void describing(void)
{
    const monet_tokenizer *t = monet_model_tokenizer(model);
    monet_tokenizer_data data;
    monet_piece list[TINY_PIECES];
    int32_t eos[1];
    ARGUMENT(monet_tokenizer_describe(NULL, NULL, NULL, NULL, &data));
    ARGUMENT(monet_tokenizer_describe(t, NULL, NULL, NULL, NULL));
    CHECK_EQ(monet_tokenizer_describe(t, NULL, NULL, NULL, &data), MONET_OK);
    CHECK(data.n_pieces == TINY_PIECES && data.n_merges == 0 && data.n_eos == 1);
    CHECK_EQ(monet_tokenizer_describe(t, list, NULL, eos, &data), MONET_OK);
    CHECK(list[265].size == 2 && !memcmp(list[265].bytes, "ab", 2) && eos[0] == 2);
}

/* ---- sessions -------------------------------------------------------------------------------- */

static void creating(void)
{
    static const int wrong[] = {-1, INT_MIN, (1 << 24) + 1, INT_MAX};
    monet_session_config c = {0};
    monet_session *s = NULL;
    monet_host host;
    heap_count heap;
    size_t size = 7;
    ERROR(monet_session_create(NULL, NULL, &s, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ERROR(monet_session_create(model, NULL, NULL, &said), MONET_ERROR_ARGUMENT, &said, "NULL");
    ARGUMENT(monet_session_size(NULL, NULL, &size));
    ARGUMENT(monet_session_size(model, NULL, NULL));
    for (size_t k = 0; k < COUNT(wrong); k++) {
        c.context = wrong[k];
        ERROR(monet_session_create(model, &c, &s, &said), MONET_ERROR_ARGUMENT, &said,
              "context is");
        ARGUMENT(monet_session_size(model, &c, &size));
    }
    c.context = 0;
    for (int k = 0; k < 2; k++) {
        c.max_batch = wrong[k];
        ERROR(monet_session_create(model, &c, &s, &said), MONET_ERROR_ARGUMENT, &said, "max_batch");
        c.max_batch = 0;
        c.kv_dtype = (monet_dtype)(k ? -1 : 3);
        ERROR(monet_session_create(model, &c, &s, &said), MONET_ERROR_ARGUMENT, &said, "kv_dtype");
        c.kv_dtype = MONET_F32;
        host = heap_host(&heap);
        host.n_threads = k ? 257 : -1;
        c.host = &host;
        ERROR(monet_session_create(model, &c, &s, &said), MONET_ERROR_ARGUMENT, &said, "n_threads");
        c.host = NULL;
        c.struct_size = k ? UINT32_MAX : (uint32_t)sizeof c + 1;
        ERROR(monet_session_create(model, &c, &s, &said), MONET_ERROR_VERSION, &said,
              "struct_size");
        CHECK_EQ(monet_session_size(model, &c, &size), MONET_ERROR_VERSION);
        c.struct_size = k ? 4 : (uint32_t)sizeof c - 1;
        ERROR(monet_session_create(model, &c, &s, &said), MONET_ERROR_ARGUMENT, &said,
              "struct_size");
        c.struct_size = 0;
    }
    CHECK(s == NULL && size == 7);
    host = heap_host(&heap);
    heap.fail_at = 1;
    c.host = &host;
    c.context = 1 << 24;
    ERROR(monet_session_create(model, &c, &s, &said), MONET_ERROR_MEMORY, &said, "session");
    c.host = NULL;
    c.context = 0;
    c.struct_size = sizeof c;
    c.max_batch = INT_MAX;
    s = open_session(model, &c);
    CHECK_EQ(monet_session_context(s), 32);
    monet_session_free(s);
    monet_session_free(NULL);
}

static void memory_of_the_caller(void)
{
    monet_session_config c = {0};
    monet_session *s = NULL;
    tiny_file memory;
    size_t size;
    CHECK_EQ(monet_session_size(model, &c, &size), MONET_OK);
    memory = tiny_new(size + 64);
    c.memory = memory.data;
    c.memory_size = size;
    for (size_t shift = 1; shift < 64; shift += 7) {
        c.memory = memory.data + shift;
        ERROR(monet_session_create(model, &c, &s, &said), MONET_ERROR_ARGUMENT, &said, "of 64");
    }
    c.memory = memory.data;
    for (size_t less = 65; less <= size; less += size / 5) {
        c.memory_size = size - less;
        ERROR(monet_session_create(model, &c, &s, &said), MONET_ERROR_MEMORY, &said,
              "session memory");
    }
    c.memory_size = 0;
    ERROR(monet_session_create(model, &c, &s, &said), MONET_ERROR_MEMORY, &said, "0 bytes");
    CHECK(s == NULL);
    c.memory_size = size;
    s = open_session(model, &c);
    CHECK((void *)s == c.memory);
    monet_session_free(s);
    tiny_drop(&memory);
}

static void evaluating(void)
{
    static const int32_t wrong[] = {-1, V, INT_MIN, INT_MAX};
    const int32_t tokens[40] = {1, 260, 261, 262, 259};
    float embeddings[40 * 16] = {0}, first[V];
    monet_session *s = open_session(model, NULL);
    int32_t pair[2] = {260, 0};
    CHECK(monet_session_logits(s) == NULL && monet_session_length(s) == 0);
    ARGUMENT(monet_session_eval(NULL, tokens, 1));
    ARGUMENT(monet_session_eval_embeddings(NULL, embeddings, 1));
    SESSION_ERROR(monet_session_eval(s, NULL, 1), MONET_ERROR_ARGUMENT, s, "NULL");
    SESSION_ERROR(monet_session_eval_embeddings(s, NULL, 1), MONET_ERROR_ARGUMENT, s, "NULL");
    CHECK_EQ(monet_session_eval(s, NULL, 0), MONET_OK);
    CHECK_EQ(monet_session_eval_embeddings(s, NULL, 0), MONET_OK);
    CHECK(monet_session_logits(s) == NULL);
    CHECK_EQ(monet_session_eval(s, tokens, 5), MONET_OK);
    memcpy(first, monet_session_logits(s), sizeof first);
    for (size_t k = 0; k < COUNT(wrong); k++) {
        pair[1] = wrong[k];
        SESSION_ERROR(monet_session_eval(s, pair, 2), MONET_ERROR_ARGUMENT, s, "token 1 of 2 is");
    }
    SESSION_ERROR(monet_session_eval(s, tokens, 28), MONET_ERROR_CONTEXT_FULL, s,
                  "28 tokens, the context of 32 has room for 27");
    SESSION_ERROR(monet_session_eval(s, tokens, SIZE_MAX), MONET_ERROR_CONTEXT_FULL, s, "context");
    SESSION_ERROR(monet_session_eval_embeddings(s, embeddings, SIZE_MAX), MONET_ERROR_CONTEXT_FULL,
                  s, "context");
    embeddings[17] = NAN;
    SESSION_ERROR(monet_session_eval_embeddings(s, embeddings, 2), MONET_ERROR_NUMERIC, s,
                  "embedding 1 is");
    embeddings[17] = HUGE_VALF;
    SESSION_ERROR(monet_session_eval_embeddings(s, embeddings, 2), MONET_ERROR_NUMERIC, s,
                  "embedding 1 is");
    CHECK_EQ(monet_session_length(s), 5);
    CHECK(!memcmp(first, monet_session_logits(s), sizeof first)); /* the logits stayed */
    CHECK_EQ(monet_session_eval(s, tokens, 27), MONET_OK);
    SESSION_ERROR(monet_session_eval(s, tokens, 1), MONET_ERROR_CONTEXT_FULL, s, "room for 0");
    CHECK_EQ(monet_session_eval(s, tokens, 0), MONET_OK);
    CHECK(monet_session_logits(s) != NULL && monet_session_length(s) == 32);
    monet_session_free(s);
}

static void rewinding(void)
{
    static const int32_t wrong[] = {-1, 6, INT_MIN, INT_MAX};
    const int32_t tokens[5] = {1, 260, 261, 262, 259};
    float vector[16] = {0}, before[V];
    monet_session *s = open_session(model, NULL);
    ARGUMENT(monet_session_rewind(NULL, 0));
    CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
    CHECK_EQ(monet_session_eval(s, tokens, 5), MONET_OK);
    memcpy(before, monet_session_logits(s), sizeof before);
    for (size_t k = 0; k < COUNT(wrong); k++)
        SESSION_ERROR(monet_session_rewind(s, wrong[k]), MONET_ERROR_ARGUMENT, s, "must be 0..5");
    CHECK(monet_session_length(s) == 5 && monet_session_logits(s) != NULL);
    CHECK_EQ(monet_session_rewind(s, 5), MONET_OK);
    CHECK(monet_session_logits(s) == NULL);
    CHECK_EQ(monet_session_rewind(s, 4), MONET_OK);
    CHECK_EQ(monet_session_eval(s, tokens + 4, 1), MONET_OK);
    CHECK(!memcmp(before, monet_session_logits(s), sizeof before));
    CHECK_EQ(monet_session_eval_embeddings(s, vector, 1), MONET_OK);
    CHECK(!memcmp(monet_session_tokens(s), tokens, sizeof tokens));
    CHECK_EQ(monet_session_tokens(s)[5], -1);
    CHECK(monet_session_length(NULL) == 0 && monet_session_context(NULL) == 0);
    CHECK(monet_session_tokens(NULL) == NULL && monet_session_logits(NULL) == NULL);
    CHECK(monet_session_logits_at(NULL, 0) == NULL && monet_session_logits_at(s, 0) == NULL);
    CHECK_EQ(monet_session_error(NULL)->code, MONET_ERROR_ARGUMENT);
    CHECK(monet_logprob(NULL, V, 0) < -1e300 && monet_logprob(before, V, -1) < -1e300);
    CHECK(monet_logprob(before, V, V) < -1e300 && monet_logprob(before, -1, 0) < -1e300);
    CHECK(monet_logprob(before, V, INT_MAX) < -1e300 && monet_logprob(before, V, 0) < 0);
    monet_session_free(s);
}

/* all_logits and capture_routing: at most max_batch tokens a call; rows as one by one. */
static void limits(void)
{
    const int32_t tokens[5] = {1, 260, 261, 262, 259};
    monet_session *one = open_session(model, NULL), *s;
    for (int capture = 0; capture < 2; capture++) {
        monet_session_config c = {0};
        c.max_batch = 4;
        c.capture_routing = capture != 0;
        c.all_logits = !capture;
        s = open_session(model, &c);
        SESSION_ERROR(monet_session_eval(s, tokens, 5), MONET_ERROR_ARGUMENT, s,
                      "at most max_batch 4");
        CHECK(monet_session_length(s) == 0 && monet_session_logits(s) == NULL);
        CHECK_EQ(monet_session_eval(s, tokens, 4), MONET_OK);
        if (!capture) {
            static const int32_t wrong[] = {-1, 4, INT_MIN, INT_MAX};
            for (size_t k = 0; k < COUNT(wrong); k++)
                CHECK(monet_session_logits_at(s, wrong[k]) == NULL);
            CHECK_EQ(monet_session_rewind(one, 0), MONET_OK);
            for (int k = 0; k < 4; k++) {
                CHECK_EQ(monet_session_eval(one, tokens + k, 1), MONET_OK);
                CHECK(!memcmp(monet_session_logits(one), monet_session_logits_at(s, k),
                              V * sizeof(float)));
            }
            CHECK(monet_session_logits(s) == monet_session_logits_at(s, 3));
            CHECK_EQ(monet_session_rewind(s, 3), MONET_OK);
            CHECK(monet_session_logits_at(s, 0) == NULL);
        }
        monet_session_free(s);
    }
    monet_session_free(one);
}

/* ---- routing --------------------------------------------------------------------------------- */

static void experts(const monet_routing *r)
{
    monet_expert all[64], few[64];
    const size_t n = (size_t)(r->n_i * r->n_j);
    CHECK_EQ(monet_routing_experts(NULL, 0, all, 64), 0);
    CHECK_EQ(monet_routing_experts(r, 0, NULL, 64), 0);
    CHECK_EQ(monet_routing_experts(r, -1, NULL, 0), n);
    CHECK_EQ(monet_routing_experts(r, NAN, all, 64), 0);
    CHECK_EQ(monet_routing_experts(r, HUGE_VALF, all, 64), 0);
    CHECK_EQ(monet_routing_experts(r, -HUGE_VALF, all, 64), n);
    for (size_t k = 1; k < n; k++)
        CHECK(all[k - 1].score > all[k].score || (all[k - 1].score == all[k].score &&
              all[k - 1].i * 8 + all[k - 1].j < all[k].i * 8 + all[k].j));
    for (size_t capacity = 1; capacity <= n; capacity++) {
        memset(few, 0x55, sizeof few);
        CHECK_EQ(monet_routing_experts(r, -1, few, capacity), n);
        CHECK(!memcmp(few, all, capacity * sizeof *few));
        CHECK(capacity == 64 || few[capacity].i == 0x55555555);
    }
}

static void routing(void)
{
    static const int32_t wrong[] = {-1, 3, INT_MIN, INT_MAX};
    const int32_t tokens[3] = {1, 260, 261};
    monet_session_config c = {0};
    monet_session *s = open_session(model, NULL);
    monet_routing r;
    CHECK_EQ(monet_session_eval(s, tokens, 3), MONET_OK);
    CHECK_EQ(monet_session_routing(s, 0, 0, &r), MONET_ERROR_STATE); /* not captured */
    monet_session_free(s);
    c.capture_routing = true;
    s = open_session(model, &c);
    ARGUMENT(monet_session_routing(NULL, 0, 0, &r));
    ARGUMENT(monet_session_routing(s, 0, 0, NULL));
    CHECK_EQ(monet_session_routing(s, 0, 0, &r), MONET_ERROR_STATE); /* no eval yet */
    CHECK_EQ(monet_session_eval(s, tokens, 3), MONET_OK);
    for (size_t k = 0; k < COUNT(wrong); k++) {
        ARGUMENT(monet_session_routing(s, wrong[k], 0, &r));
        ARGUMENT(monet_session_routing(s, 0, wrong[k] == 3 ? 2 : wrong[k], &r));
    }
    for (int32_t token = 0; token < 3; token++)
        for (int32_t layer = 0; layer < 2; layer++) {
            CHECK_EQ(monet_session_routing(s, token, layer, &r), MONET_OK);
            CHECK(r.n_heads == 2 && r.n_experts == 8 && r.group == layer);
            for (int32_t k = 1; k < r.n_i; k++) CHECK(r.i[k - 1] < r.i[k]);
            experts(&r);
        }
    CHECK_EQ(monet_session_rewind(s, 2), MONET_OK);
    CHECK_EQ(monet_session_routing(s, 0, 0, &r), MONET_ERROR_STATE);
    monet_session_free(s);
}

/* ---- taps ------------------------------------------------------------------------------------ */

typedef struct spy {
    int calls, stop_at;        /* false at this call; 0 = never */
    int change;                /* 1: the same numbers again, 2: others, 3: NaN */
    struct { monet_site site; int32_t layer, first, count; } log[64];
} spy;

static bool watch(void *user, monet_site site, int32_t layer, int32_t first, int32_t count,
                  monet_real *data)
{
    spy *me = (spy *)user;
    if (me->calls < 64) {
        me->log[me->calls].site = site;
        me->log[me->calls].layer = layer;
        me->log[me->calls].first = first;
        me->log[me->calls].count = count;
    }
    me->calls++;
    for (int k = 0; k < 16 * count && me->change; k++) {
        volatile monet_real x = data[k];
        data[k] = me->change == 1 ? x : me->change == 2 ? x + 1 : (monet_real)NAN;
    }
    return me->calls != me->stop_at;
}

static void taps(void)
{
    static const monet_site sites[10] = {
        MONET_SITE_EMBEDDING, MONET_SITE_ATTENTION_OUT, MONET_SITE_MOE_IN, MONET_SITE_MOE_OUT,
        MONET_SITE_RESIDUAL, MONET_SITE_ATTENTION_OUT, MONET_SITE_MOE_IN, MONET_SITE_MOE_OUT,
        MONET_SITE_RESIDUAL, MONET_SITE_FINAL_NORM};
    const int32_t tokens[5] = {1, 260, 261, 262, 259};
    monet_session_config c = {0};
    monet_session *s;
    float plain[V];
    spy me;
    c.max_batch = 2;
    s = open_session(model, &c);
    ARGUMENT(tiny_tap(NULL, watch, NULL));
    CHECK_EQ(monet_session_eval(s, tokens, 5), MONET_OK);
    memcpy(plain, monet_session_logits(s), sizeof plain);
    CHECK_EQ(tiny_tap(s, watch, &me), MONET_OK);
    for (int change = 0; change < 4; change++) {
        memset(&me, 0, sizeof me);
        me.change = change;
        CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
        CHECK_EQ(monet_session_eval(s, tokens, 5), change == 3 ? MONET_ERROR_NUMERIC : MONET_OK);
        if (change == 3) break;
        CHECK_EQ(!memcmp(plain, monet_session_logits(s), sizeof plain), change < 2);
        CHECK_EQ(me.calls, 30);
        for (int k = 0; k < 30; k++) {
            CHECK_EQ(me.log[k].site, sites[k % 10]);
            CHECK_EQ(me.log[k].layer, k % 10 == 0 ? -1 : k % 10 == 9 ? 2 : (k % 10 - 1) / 4);
            CHECK(me.log[k].first == k / 10 * 2 && me.log[k].count == (k < 20 ? 2 : 1));
        }
    }
    for (int stop = 1; stop <= 30; stop++) { /* cancelled at every call in turn */
        CHECK_EQ(monet_session_set_tap(s, NULL), MONET_OK);
        CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
        CHECK_EQ(monet_session_eval(s, tokens, 1), MONET_OK);
        memset(&me, 0, sizeof me);
        me.stop_at = stop;
        CHECK_EQ(tiny_tap(s, watch, &me), MONET_OK);
        if (stop <= 20) {
            SESSION_ERROR(monet_session_eval(s, tokens + 1, 4), MONET_ERROR_CANCELLED, s, "tap");
            CHECK(monet_session_length(s) == 1 && monet_session_logits(s) == NULL);
        }
        CHECK_EQ(monet_session_set_tap(s, NULL), MONET_OK);
        CHECK_EQ(monet_session_eval(s, tokens + 1, 4), MONET_OK);
        CHECK(!memcmp(plain, monet_session_logits(s), sizeof plain));
    }
    monet_session_free(s);
}

/* ---- a model that says what it is told ------------------------------------------------------- */

/* lm_head becomes a circle of 272 points in two of the dimensions: a tap that sets the final vector
   to the point of a token makes it the likeliest. With `far`, all logits lie below zero.         */
typedef struct script {
    const int32_t *tokens;     /* what comes after position `start`; NULL = the zero vector */
    int32_t n, start;
    float far;
} script;

static double angle(int32_t token)
{
    return token * 6.283185307179586 / V;
}

static bool follow(void *user, monet_site site, int32_t layer, int32_t first, int32_t count,
                   monet_real *data)
{
    const script *me = (const script *)user;
    (void)layer;
    if (site != MONET_SITE_FINAL_NORM) return true;
    for (int32_t t = 0; t < count; t++, data += 16) {
        int32_t k = first + t - me->start;
        int32_t token = me->tokens && k >= 0 && k < me->n ? me->tokens[k] : 0;
        memset(data, 0, 16 * sizeof *data);
        data[0] = me->tokens ? (monet_real)(1000 * cos(angle(token))) : 0;
        data[1] = me->tokens ? (monet_real)(1000 * sin(angle(token))) : 0;
        data[2] = (monet_real)-me->far;
    }
    return true;
}

static monet_model *circle_model(tiny_file *f, bool no_bos)
{
    const uint64_t e = tiny_at(&file, 2) + 128 * 42;
    const uint64_t at = tiny_at(&file, 5) + tiny_get(&file, e + 96, 8);
    const monet_tensor *head = monet_model_tensor(model, 42);
    *f = tiny_copy(&file, file.size);
    for (int32_t token = 0; token < V; token++)
        for (int c = 0; c < 16; c++) {
            float x = c == 0 ? (float)cos(angle(token)) : c == 1 ? (float)sin(angle(token))
                                                                 : (float)(c == 2);
            memcpy(f->data + at + 4 * monet_tensor_place(head, token, c), &x, 4);
        }
    if (no_bos) tiny_put(f, tiny_at(f, 3) + 20, 4, UINT32_MAX);
    tiny_rehash(f);
    return open_model(f);
}

/* ---- sampling -------------------------------------------------------------------------------- */

static void wrong_samplers(monet_session *s)
{
    static const monet_sampler good = {0.8f, 40, 0.9f, 0.05f, 1.1f, 8, 1, 0};
    static const float wrong[] = {-1, NAN, -HUGE_VALF, -1e-30f};
    const monet_real *logits = monet_session_logits(s);
    int32_t token = -5;
    for (size_t k = 0; k < COUNT(wrong); k++)
        for (int field = 0; field < 4; field++) {
            monet_sampler p = good;
            *(field == 0 ? &p.temperature : field == 1 ? &p.top_p : field == 2 ? &p.min_p
                                                       : &p.repetition_penalty) = wrong[k];
            SESSION_ERROR(monet_session_sample(s, &p, &token, NULL), MONET_ERROR_ARGUMENT, s,
                          "a field is");
            CHECK(token == -5 && p.draws == 0);
        }
    for (int k = 0; k < 4; k++) {
        monet_sampler p = good;
        if (k < 2) p.top_k = k ? -1 : INT_MIN;
        else p.penalty_last_n = k == 2 ? -1 : INT_MIN;
        SESSION_ERROR(monet_session_sample(s, &p, &token, NULL), MONET_ERROR_ARGUMENT, s,
                      "a field is");
    }
    for (int k = 0; k < 2; k++) {
        monet_sampler p = good;
        *(k ? &p.temperature : &p.repetition_penalty) = HUGE_VALF;
        SESSION_ERROR(monet_session_sample(s, &p, &token, NULL), MONET_ERROR_ARGUMENT, s,
                      "a field is");
    }
    ARGUMENT(monet_session_sample(NULL, NULL, &token, NULL));
    SESSION_ERROR(monet_session_sample(s, NULL, NULL, NULL), MONET_ERROR_ARGUMENT, s, "token");
    CHECK(token == -5 && monet_session_logits(s) == logits);
}

/* Large and small ones that are allowed. */
static void extreme_samplers(monet_session *s)
{
    static const monet_sampler values[] = {
        {FLT_MAX, 0, 0, 0, 0, 0, 1, 0}, {1e-45f, 0, 0, 0, 0, 0, 1, 0},
        {1, INT_MAX, 0, 0, 0, INT_MAX, UINT64_MAX, UINT64_MAX}, {1, 1, 0, 0, 0, 0, 1, 0},
        {1, 0, 1e30f, 0, 0, 0, 1, 0}, {1, 0, 1e-45f, 0, 0, 0, 1, 0}, {1, 0, 0, 1e30f, 0, 0, 1, 0},
        {1, 0, 0, HUGE_VALF, 0, 0, 1, 0}, {1, 3, 0.5f, 0.5f, 2, 1, 1, 0},
        {FLT_MAX, V + 1, HUGE_VALF, 1e-45f, 1, 1, 1, 0}};
    int32_t token, greedy;
    float logprob;
    CHECK_EQ(monet_session_sample(s, NULL, &greedy, NULL), MONET_OK);
    for (size_t k = 0; k < COUNT(values); k++) {
        monet_sampler p = values[k], q = values[k];
        int32_t again;
        token = -5;
        CHECK_EQ(monet_session_sample(s, &p, &token, &logprob), MONET_OK);
        CHECK(token >= 0 && token < V && p.draws == values[k].draws + 1);
        CHECK_NEAR(logprob, monet_logprob(monet_session_logits(s), V, token), 1e-4);
        CHECK_EQ(monet_session_sample(s, &q, &again, NULL), MONET_OK);
        CHECK_EQ(again, token);
        if (k == 1 || k == 3 || (k >= 5 && k <= 7)) CHECK_EQ(token, greedy);
    }
}

static void sampling(const monet_model *circle)
{
    static const float penalties[] = {FLT_MAX, 1e-45f, 1e-40f};
    int32_t tokens[V], token = -5, wish = 100;
    script me = {NULL, 1, 0, 0};
    monet_session_config c = {0};
    monet_session *s;
    float logprob;
    c.context = V;
    s = open_session(circle, &c);
    SESSION_ERROR(monet_session_sample(s, NULL, &token, NULL), MONET_ERROR_STATE, s, "no logits");
    for (int32_t k = 0; k < V; k++) tokens[k] = k;
    CHECK_EQ(tiny_tap(s, follow, &me), MONET_OK);
    CHECK_EQ(monet_session_eval(s, tokens, V), MONET_OK); /* all logits are 0 */
    for (int k = 0; k < 4; k++) { /* the lowest id of equals */
        monet_sampler p = {0, 0, 0, 0, 0, 0, 3, 0};
        if (k) p.temperature = 1;
        if (k == 1) p.top_k = 1;
        if (k == 2) p.top_p = 1e-6f;
        if (k == 3) p.top_k = 1, p.top_p = 0.5f, p.min_p = 1;
        CHECK_EQ(monet_session_sample(s, &p, &token, &logprob), MONET_OK);
        CHECK_EQ(token, 0);
        CHECK_NEAR(logprob, -log(V), 1e-5);
    }
    for (int k = 0; k < 3; k++) { /* penalties that leave no finite logit, or an infinite one */
        monet_sampler p = {1, 0, 0, 0, 0, 0, 3, 0};
        p.repetition_penalty = penalties[k];
        me.tokens = &wish;
        me.start = V - 1;
        me.far = k ? 0 : 1e5f; /* all below -1, or the largest 1000 */
        CHECK_EQ(monet_session_rewind(s, V - 1), MONET_OK);
        CHECK_EQ(monet_session_eval(s, tokens + V - 1, 1), MONET_OK);
        CHECK_EQ(monet_session_sample(s, NULL, &token, NULL), MONET_OK);
        CHECK_EQ(token, wish);
        for (int greedy = 0; greedy < 2; greedy++) {
            p.temperature = greedy ? 0 : 1;
            SESSION_ERROR(monet_session_sample(s, &p, &token, NULL), MONET_ERROR_NUMERIC, s,
                          "repetition_penalty");
        }
    }
    monet_session_free(s);
}

/* ---- generation ------------------------------------------------------------------------------ */

typedef struct sink {
    char text[600];
    size_t n;
    int calls, broken;         /* calls that did not hold whole characters */
    int stop_text, stop_token; /* false at this call; 0 = never */
    int tokens;
} sink;

static bool take_text(void *user, const char *text, size_t size)
{
    sink *me = (sink *)user;
    size_t last = size;
    while (last > 1 && ((uint8_t)text[last - 1] & 0xC0) == 0x80) last--;
    me->broken += size == 0 || ((uint8_t)text[0] & 0xC0) == 0x80;
    me->broken += last && size - last + 1 != ((uint8_t)text[last - 1] < 0x80 ? 1u
                          : (uint8_t)text[last - 1] < 0xE0 ? 2u
                          : (uint8_t)text[last - 1] < 0xF0 ? 3u : 4u);
    if (me->n + size < sizeof me->text) memcpy(me->text + me->n, text, size);
    me->n += size;
    me->text[me->n] = 0;
    return ++me->calls != me->stop_text;
}

static bool take_token(void *user, int32_t token, float logprob)
{
    sink *me = (sink *)user;
    (void)token;
    me->broken += !(logprob <= 0);
    return ++me->tokens != me->stop_token;
}

static sink heard;
static monet_generate_result made;
static monet_model *told;              /* the circle model */
static script lines;

/* Generates with a model that says these bytes as byte tokens; token 2 follows. `first` is said
   before them if it is no less than 0. What came is in `heard` and `made`.                       */
static monet_result say(const char *bytes, size_t n, int32_t first, const char *prompt,
                        monet_generate_config *g)
{
    static int32_t tokens[600];
    monet_session *s = open_session(told, NULL);
    monet_result result;
    int32_t k = 0;
    size_t n_prompt = 0;
    (void)monet_tokenizer_encode(monet_model_tokenizer(told), prompt, strlen(prompt), MONET_ADD_BOS,
                                 NULL, 0, &n_prompt);
    if (first >= 0) tokens[k++] = first;
    for (size_t i = 0; i < n; i++) tokens[k++] = 3 + (uint8_t)bytes[i];
    tokens[k++] = 2;
    lines.tokens = tokens;
    lines.n = k;
    lines.start = (int32_t)n_prompt - 1;
    memset(heard.text, 0, sizeof heard.text);
    heard.n = 0;
    heard.calls = heard.broken = heard.tokens = 0;
    g->text_fn = take_text;
    g->token_fn = take_token;
    g->user = &heard;
    CHECK_EQ(tiny_tap(s, follow, &lines), MONET_OK);
    result = monet_session_generate(s, prompt, g, &made);
    if (result != MONET_OK) said = *monet_session_error(s);
    else CHECK_EQ(monet_session_length(s), made.n_prompt + made.n_tokens - 1);
    CHECK_EQ(made.n_prompt, result == MONET_OK ? (int)n_prompt : made.n_prompt);
    CHECK_EQ(heard.broken, 0);
    monet_session_free(s);
    return result;
}

static void says(const char *bytes, const char *text, const char *const *stops, int n_stop,
                 monet_stop stop)
{
    monet_generate_config g = {0};
    g.stop_strings = stops;
    g.n_stop = n_stop;
    CHECK_EQ(say(bytes, strlen(bytes), -1, "b", &g), MONET_OK);
    if (!CHECK_STR(heard.text, text)) printf("    said \"%s\"\n", bytes);
    CHECK_EQ(made.stop, stop);
}

static void stop_strings(void)
{
    static const char *const one[] = {"wor"}, *const overlap[] = {"lo w", "low", "o wx"};
    static const char *const again[] = {"aab"}, *const longer[] = {"abcd", "bc"};
    static const char *const utf8[] = {"\xc3\xa9"}, *const half[] = {"\xa9"};
    static const char *const never[] = {"xyz"}, *const all[] = {"h"};
    says("hello world", "hello world", NULL, 0, MONET_STOP_EOS);
    says("hello world", "hello ", one, 1, MONET_STOP_STRING);
    CHECK_EQ(made.n_tokens, 9);
    says("lo lo w", "lo ", overlap, 3, MONET_STOP_STRING);
    says("lo lowly", "lo ", overlap, 3, MONET_STOP_STRING);
    says("lo lo x", "lo lo x", overlap, 3, MONET_STOP_EOS);
    says("aaaab", "aa", again, 1, MONET_STOP_STRING);
    says("aaaaa", "aaaaa", again, 1, MONET_STOP_EOS);
    says("abcd", "a", longer, 2, MONET_STOP_STRING);
    says("abd", "abd", longer, 2, MONET_STOP_EOS);
    says("caf\xc3\xa9!", "caf", utf8, 1, MONET_STOP_STRING);
    says("caf\xc3\xa8\xc3\xa9!", "caf\xc3\xa8", utf8, 1, MONET_STOP_STRING);
    says("caf\xc3\xa9!", "caf\xef\xbf\xbd", half, 1, MONET_STOP_STRING);
    says("ab xy", "ab xy", never, 1, MONET_STOP_EOS); /* held back, then it is no stop string */
    says("hello", "", all, 1, MONET_STOP_STRING);
    CHECK_EQ(heard.calls, 0);
}

static void stop_strings_in_pieces(void)
{
    static const char *const stops[] = {"bcx"}, *const inside[] = {"b"};
    monet_generate_config g = {0};
    g.stop_strings = stops;
    g.n_stop = 1;
    CHECK_EQ(say("xyz", 3, 268, "b", &g), MONET_OK); /* "abc", then "x": across two tokens */
    CHECK_STR(heard.text, "a");
    CHECK_EQ(made.n_tokens, 2);
    g.stop_strings = inside;
    CHECK_EQ(say("xyz", 3, 268, "b", &g), MONET_OK); /* in the middle of one */
    CHECK_STR(heard.text, "a");
    CHECK_EQ(made.n_tokens, 1);
    g.n_stop = 0;
    CHECK_EQ(say("x", 1, 266, "", &g), MONET_OK); /* the space that a text begins with ... */
    CHECK_STR(heard.text, "ax");
    CHECK_EQ(say("x", 1, 266, "b", &g), MONET_OK); /* ... and one between words */
    CHECK_STR(heard.text, " ax");
    CHECK_EQ(say("x", 1, 271, "b", &g), MONET_OK); /* a token without a piece */
    CHECK_STR(heard.text, "x");
    CHECK_EQ(say("x", 1, 1, "b", &g), MONET_OK); /* a control token */
    CHECK_STR(heard.text, "x");
}

static void characters(void)
{
    says("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", NULL, 0,
         MONET_STOP_EOS);
    CHECK_EQ(heard.calls, 3);
    says("a\xff" "b", "a\xef\xbf\xbd" "b", NULL, 0, MONET_STOP_EOS);
    says("\xc3x", "\xef\xbf\xbdx", NULL, 0, MONET_STOP_EOS);
    says("\xe2\x82", "\xef\xbf\xbd", NULL, 0, MONET_STOP_EOS); /* cut off by the end */
    says("\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd", NULL, 0, MONET_STOP_EOS);
    says("\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", NULL, 0, MONET_STOP_EOS);
    says("\xf4\x90z", "\xef\xbf\xbd\xef\xbf\xbdz", NULL, 0, MONET_STOP_EOS);
    says("\xe2\xc3\xa9", "\xef\xbf\xbd\xc3\xa9", NULL, 0, MONET_STOP_EOS);
    says("\x80\xc3\xa9", "\xef\xbf\xbd\xc3\xa9", NULL, 0, MONET_STOP_EOS);
}

static void endings(void)
{
    monet_generate_config g = {0};
    g.max_tokens = 3;
    CHECK_EQ(say("hello", 5, -1, "b", &g), MONET_OK);
    CHECK(made.stop == MONET_STOP_MAX_TOKENS && made.n_tokens == 3 && !strcmp(heard.text, "hel"));
    g.max_tokens = 7;
    g.ignore_eos = true; /* "</s>" gives no text; token 0, the unknown piece, follows */
    CHECK_EQ(say("hello", 5, -1, "b", &g), MONET_OK);
    CHECK(made.stop == MONET_STOP_MAX_TOKENS && made.n_tokens == 7 && !strcmp(heard.text, "hello"));
    g.max_tokens = 0; /* until the context of 32 is full; the last token is not in it */
    CHECK_EQ(say("hello", 5, -1, "b", &g), MONET_OK);
    CHECK_EQ(made.stop, MONET_STOP_CONTEXT_FULL);
    CHECK_EQ(made.n_prompt + made.n_tokens, 33);
    g.ignore_eos = false;
    CHECK_EQ(say("", 0, -1, "b", &g), MONET_OK);
    CHECK(made.stop == MONET_STOP_EOS && made.n_tokens == 1 && heard.calls == 0);
    heard.stop_text = 2;
    CHECK_EQ(say("hello", 5, -1, "b", &g), MONET_OK);
    CHECK(made.stop == MONET_STOP_CALLBACK && made.n_tokens == 2 && !strcmp(heard.text, "he"));
    heard.stop_text = 0;
    heard.stop_token = 2;
    CHECK_EQ(say("hello", 5, -1, "b", &g), MONET_OK);
    CHECK(made.stop == MONET_STOP_CALLBACK && made.n_tokens == 2 && !strcmp(heard.text, "h"));
    heard.stop_token = 0;
}

#define GENERATE_ERROR(code, part)                                                                 \
    SESSION_ERROR(monet_session_generate(s, "b", &g, &made), code, s, part);                       \
    CHECK(made.n_tokens == 0 && made.stop == MONET_STOP_NONE && monet_session_length(s) == 0);     \
    memset(&g, 0, sizeof g)

static void wrong_generations(void)
{
    static const char *stops[17];
    char long_stop[300];
    monet_generate_config g = {0};
    monet_session *s = open_session(told, NULL);
    memset(long_stop, 'x', sizeof long_stop);
    long_stop[256] = 0;
    for (int k = 0; k < 17; k++) stops[k] = "x";
    ARGUMENT(monet_session_generate(NULL, "b", NULL, &made));
    g.max_tokens = -1;
    GENERATE_ERROR(MONET_ERROR_ARGUMENT, "max_tokens is -1");
    g.max_tokens = INT_MIN;
    GENERATE_ERROR(MONET_ERROR_ARGUMENT, "max_tokens is -2147483648");
    g.n_stop = -1;
    GENERATE_ERROR(MONET_ERROR_ARGUMENT, "n_stop");
    g.n_stop = 17, g.stop_strings = stops;
    GENERATE_ERROR(MONET_ERROR_ARGUMENT, "n_stop");
    g.n_stop = INT_MAX, g.stop_strings = stops;
    GENERATE_ERROR(MONET_ERROR_ARGUMENT, "n_stop");
    g.n_stop = 1;
    GENERATE_ERROR(MONET_ERROR_ARGUMENT, "n_stop");
    stops[3] = NULL;
    g.n_stop = 16, g.stop_strings = stops;
    GENERATE_ERROR(MONET_ERROR_ARGUMENT, "stop string 3");
    stops[3] = "";
    g.n_stop = 16, g.stop_strings = stops;
    GENERATE_ERROR(MONET_ERROR_ARGUMENT, "stop string 3");
    stops[3] = long_stop;
    g.n_stop = 16, g.stop_strings = stops;
    GENERATE_ERROR(MONET_ERROR_ARGUMENT, "1..255 bytes");
    g.struct_size = sizeof g + 1;
    GENERATE_ERROR(MONET_ERROR_VERSION, "struct_size");
    g.struct_size = 4;
    GENERATE_ERROR(MONET_ERROR_ARGUMENT, "struct_size");
    SESSION_ERROR(monet_session_generate(s, NULL, &g, &made), MONET_ERROR_STATE, s, "no logits");
    g.sampler.temperature = NAN;
    SESSION_ERROR(monet_session_generate(s, "b", &g, &made), MONET_ERROR_ARGUMENT, s, "sampler");
    CHECK_EQ(made.n_tokens, 0);
    long_stop[255] = 0; /* as long as it may be, and 16 of them */
    stops[3] = long_stop;
    g.sampler.temperature = 0;
    g.n_stop = 16;
    g.stop_strings = stops;
    CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
    CHECK_EQ(monet_session_generate(s, "b", &g, NULL), MONET_OK);
    monet_session_free(s);
}

static void prompts(const monet_model *no_bos)
{
    monet_session *s = open_session(told, NULL);
    monet_generate_config g = {0};
    char text[200];
    script eos = {NULL, 0, 0, 0};
    g.max_tokens = 1;
    memset(text, 'x', sizeof text);
    text[199] = 0;
    CHECK_EQ(tiny_tap(s, follow, &eos), MONET_OK);
    SESSION_ERROR(monet_session_generate(s, text, &g, &made), MONET_ERROR_CONTEXT_FULL, s,
                  "prompt has 201 tokens, the context of 32 has room for 32");
    CHECK(monet_session_length(s) == 0 && made.n_tokens == 0);
    CHECK_EQ(monet_session_generate(s, "", &g, &made), MONET_OK); /* BOS alone */
    CHECK(made.n_prompt == 1 && made.n_tokens == 1 && monet_session_length(s) == 1);
    CHECK_EQ(monet_session_tokens(s)[0], 1);
    CHECK_EQ(monet_session_generate(s, NULL, &g, &made), MONET_OK); /* goes on */
    CHECK(made.n_prompt == 0 && made.n_tokens == 1);
    CHECK_EQ(monet_session_generate(s, "", &g, &made), MONET_OK); /* no second BOS */
    CHECK(made.n_prompt == 0 && monet_session_length(s) == 1);
    CHECK_EQ(monet_session_rewind(s, 1), MONET_OK);
    SESSION_ERROR(monet_session_generate(s, NULL, &g, &made), MONET_ERROR_STATE, s, "no logits");
    SESSION_ERROR(monet_session_generate(s, "", &g, &made), MONET_ERROR_STATE, s, "empty prompt");
    CHECK_EQ(monet_session_generate(s, "\xff\xc3\x28\xed\xa0\x80", &g, &made), MONET_OK);
    CHECK_EQ(made.n_prompt, 7); /* a space and six bytes */
    text[24] = 0; /* 8 are there: a space and 24 are one too many */
    SESSION_ERROR(monet_session_generate(s, text, &g, &made), MONET_ERROR_CONTEXT_FULL, s,
                  "prompt has 25 tokens, the context of 32 has room for 24");
    CHECK(monet_session_length(s) == 8 && monet_session_logits(s) != NULL);
    text[23] = 0;
    CHECK_EQ(monet_session_generate(s, text, NULL, &made), MONET_OK); /* just fits */
    CHECK(made.stop == MONET_STOP_CONTEXT_FULL && made.n_tokens == 1);
    CHECK_EQ(monet_session_generate(s, NULL, NULL, &made), MONET_OK);
    CHECK(made.stop == MONET_STOP_CONTEXT_FULL && made.n_tokens == 1);
    SESSION_ERROR(monet_session_generate(s, "x", NULL, &made), MONET_ERROR_CONTEXT_FULL, s,
                  "room for 0");
    monet_session_free(s);
    s = open_session(no_bos, NULL);
    SESSION_ERROR(monet_session_generate(s, "", &g, &made), MONET_ERROR_STATE, s, "no BOS");
    CHECK_EQ(monet_session_generate(s, "b", &g, &made), MONET_OK);
    monet_session_free(s);
}

/* Half a model: a tokenizer alone, weights alone. */
static void halves(void)
{
    tiny_options options = {0};
    tiny_file f;
    monet_model *m;
    monet_session *s = NULL;
    size_t size;
    options.no_weights = 1;
    f = tiny_make(&options);
    m = open_model(&f);
    CHECK(monet_model_arch(m) == NULL && monet_model_tokenizer(m) != NULL);
    CHECK(monet_model_tensor_count(m) == 0 && monet_model_tensor(m, 0) == NULL);
    CHECK_EQ(monet_model_verify(m, NULL), MONET_OK);
    ERROR(monet_session_create(m, NULL, &s, &said), MONET_ERROR_STATE, &said, "tokenizer alone");
    CHECK_EQ(monet_session_size(m, NULL, &size), MONET_ERROR_STATE);
    monet_model_free(m);
    tiny_drop(&f);
    options.no_weights = 0;
    options.no_tokenizer = 1;
    f = tiny_make(&options);
    m = open_model(&f);
    CHECK(monet_model_arch(m) != NULL && monet_model_tokenizer(m) == NULL);
    s = open_session(m, NULL);
    SESSION_ERROR(monet_session_generate(s, "b", NULL, NULL), MONET_ERROR_STATE, s, "no tokenizer");
    monet_session_free(s);
    monet_model_free(m);
    tiny_drop(&f);
}

/* Codes that no call above gives, with words. */
static void rare_errors(void)
{
    tiny_file f = tiny_copy(&file, file.size);
    monet_model *m = NULL;
    tiny_put(&f, 12, 4, 0x04030201);
    ERROR(monet_model_load_memory(f.data, f.size, NULL, &m, &said), MONET_ERROR_UNSUPPORTED, &said,
          "big-endian");
    tiny_drop(&f);
}

int main(void)
{
    tiny_options options = {0};
    const char *path = tiny_path("api.monet");
    tiny_file f[2];
    monet_model *no_bos;
    monet_session *s;
    file = tiny_make(&options);
    model = open_model(&file);
    base();
    tensors();
    arch();
    loading();
    getters();
    writer_config(path);
    writer_pieces(path);
    writer_order(path);
    encoding();
    decoding();
    describing();
    creating();
    memory_of_the_caller();
    evaluating();
    rewinding();
    limits();
    routing();
    taps();
    s = open_session(model, NULL);
    CHECK_EQ(monet_session_eval(s, (const int32_t[]){1, 260}, 2), MONET_OK);
    wrong_samplers(s);
    extreme_samplers(s);
    monet_session_free(s);
    told = circle_model(&f[0], false);
    no_bos = circle_model(&f[1], true);
    sampling(told);
    stop_strings();
    stop_strings_in_pieces();
    characters();
    endings();
    wrong_generations();
    prompts(no_bos);
    halves();
    rare_errors();
    CHECK_EQ(seen, 0xFFE & ~(1u << 6)); /* every error came with words; CAPACITY has a count */
    monet_model_free(no_bos);
    monet_model_free(told);
    monet_model_free(model);
    tiny_drop(&f[0]);
    tiny_drop(&f[1]);
    tiny_drop(&file);
    tiny_clean();
    return test_end("api");
}
