/* test_convert.c: tests tools/convert.c: good checkpoints arrive as they were, bad ones are refused
   by name, and whatever fails leaves nothing behind.

   cc -O2 -pthread -I. tests/test_convert.c -o test_convert -lm && ./test_convert

   Run it from the repository's root: the tokenizers come from tests/tokenizer. All other files are
   made in a temporary folder, which is removed at the end.                                      */

#define _FILE_OFFSET_BITS 64
#define _XOPEN_SOURCE 700
#define _DEFAULT_SOURCE 1
#define TOOL_SYS(name) hook_##name
#define hook_realloc realloc
#define hook_pwrite pwrite
#define hook_posix_fallocate posix_fallocate
#define hook_close close
#define hook_rename rename
#define hook_open open

#include <stddef.h>
#include <sys/types.h>

/* What the tool calls in place of the system, so that the test can let it fail. */
static void *hook_calloc(size_t count, size_t size);
static ssize_t hook_pread(int fd, void *out, size_t size, off_t offset);
static int hook_fsync(int fd);

#define BLOCK_BYTES 3000 /* tiny as the models are, they pass through in many blocks */
#define ROWS_BYTES 1100
#define MAP_BYTES 5000
#define main convert_main
#include "tools/convert.c"
#undef main

#include <dirent.h>

#include "test.h"

/* ---- hooks ----------------------------------------------------------------------------------- */

static long calloc_left = -1; /* the call after so many fails; below 0: none does */
static long pread_left = -1;  /* after so many reads Ctrl-C is pressed */

static void *hook_calloc(size_t count, size_t size)
{
    if (calloc_left >= 0 && calloc_left-- == 0) return NULL;
    return calloc(count, size);
}

static ssize_t hook_pread(int fd, void *out, size_t size, off_t offset)
{
    if (pread_left >= 0 && pread_left-- == 0) raise(SIGINT);
    return pread(fd, out, size, offset);
}

static bool disk_fails;
static int disk_failed; /* so many times */

static int hook_fsync(int fd)
{
    if (!disk_fails) return fsync(fd);
    disk_failed++;
    errno = EIO;
    return -1;
}

/* ---- files ----------------------------------------------------------------------------------- */

static char root[64];   /* the temporary folder: in/ is the checkpoint, out/ the result */
static char in_path[80], out_folder[80], out_path[96];

static const char *path_in(const char *folder, const char *name)
{
    static char path[4][256];
    static int next;
    char *p = path[next++ % 4];

    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    return p;
}

static void put_file(const char *path, const void *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");

    if (!CHECK(f != NULL)) return;
    CHECK(fwrite(bytes, 1, size, f) == size);
    CHECK(fclose(f) == 0);
}

static void put_text(const char *path, const char *text)
{
    put_file(path, text, strlen(text));
}

static void copy_file(const char *from, const char *to)
{
    char *data;
    size_t size;

    if (!CHECK(tool_read_file(from, 1 << 24, &data, &size, NULL))) return;
    put_file(to, data, size);
    free(data);
}

static int count_files(const char *folder)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int n = 0;

    if (dir == NULL) return -1;
    while ((entry = readdir(dir)) != NULL) n += entry->d_name[0] != '.';
    closedir(dir);
    return n;
}

static void empty_folder(const char *folder)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;

    if (dir == NULL) return;
    while ((entry = readdir(dir)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlink(path_in(folder, entry->d_name));
    closedir(dir);
}

/* ---- running the program --------------------------------------------------------------------- */

static char said[1 << 16]; /* on stderr, by the last run */
static char shown[1 << 16]; /* on stdout */

static void read_back(FILE *f, char *text, size_t room)
{
    size_t n;

    rewind(f);
    n = fread(text, 1, room - 1, f);
    text[n] = '\0';
    fclose(f);
}

/* Runs convert with these words, of which the first is the program's name and the last is NULL;
   returns its exit status. */
static int run_words(char **argv)
{
    FILE *out = tmpfile(), *err = tmpfile();
    int old_out, old_err, status, argc = 1;

    while (argv[argc] != NULL) argc++;
    fflush(stdout);
    fflush(stderr);
    old_out = dup(1);
    old_err = dup(2);
    dup2(fileno(out), 1);
    dup2(fileno(err), 2);
    status = convert_main(argc, argv);
    fflush(stdout);
    fflush(stderr);
    dup2(old_out, 1);
    dup2(old_err, 2);
    close(old_out);
    close(old_err);
    read_back(out, shown, sizeof shown);
    read_back(err, said, sizeof said);
    return status;
}

/* With up to six words; NULL after the last. */
static int convert_more(const char *a, const char *b, const char *c, const char *d, const char *e,
                        const char *f)
{
    char *argv[8] = {(char *)(uintptr_t)"convert", (char *)(uintptr_t)a, (char *)(uintptr_t)b,
                     (char *)(uintptr_t)c, (char *)(uintptr_t)d, (char *)(uintptr_t)e,
                     (char *)(uintptr_t)f, NULL};

    return run_words(argv);
}

static int convert(const char *a, const char *b, const char *c, const char *d)
{
    return convert_more(a, b, c, d, NULL, NULL);
}

/* Converting the checkpoint fails with this in its message, and leaves nothing. */
static bool refused(const char *message)
{
    bool ok = CHECK_EQ(convert(in_path, out_path, NULL, NULL), 1) != 0;

    ok = CHECK_HAS(said, message) && ok;
    ok = CHECK_EQ(count_files(out_folder), 0) && ok;
    empty_folder(out_folder);
    return ok;
}

static bool converted(const char *option, const char *value)
{
    bool ok = CHECK_EQ(convert(in_path, out_path, option, value), 0) != 0;

    if (!ok) printf("    %s", said);
    return CHECK_EQ(count_files(out_folder), 1) && ok;
}

/* ---- a checkpoint ---------------------------------------------------------------------------- */

enum change { NO_CHANGE, DROP, RESHAPE, RETYPE, REVALUE, ADD };

typedef struct edit { /* one thing that is wrong with a checkpoint */
    enum change change;
    const char *name;
    st_dtype    dtype;     /* RETYPE, ADD */
    int32_t     n_dims;    /* RESHAPE, ADD */
    int64_t     shape[2];
    int64_t     index;     /* REVALUE */
    float       value;
} edit;

typedef struct model { /* {0}: vertical, f32, not tied, a head of keys for each query, one file */
    bool     horizontal, tied, gqa, counters, no_tokenizer;
    st_dtype dtype;
    int      shards;
} model;

static const model plain = {false, false, false, false, false, ST_F32, 1};

static monet_arch arch_of(const model *m)
{
    monet_arch arch;

    memset(&arch, 0, sizeof arch);
    arch.vocab_size = 400;
    arch.dim = 24;
    arch.n_layers = 3;
    arch.n_heads = 4;
    arch.n_kv_heads = m->gqa ? 2 : 4;
    arch.max_seq_len = 64;
    arch.moe_experts = 10;
    arch.moe_dim = 6;
    arch.moe_heads = 2;
    arch.moe_topk = 3;
    arch.moe_groups = 2;
    arch.decompose = m->horizontal ? MONET_HORIZONTAL : MONET_VERTICAL;
    arch.tie_embeddings = m->tied;
    CHECK_EQ(monet_arch_check(&arch, NULL), MONET_OK);
    return arch;
}

/* The checkpoint's numbers: 8 bits, so that every dtype holds them exactly. */
static float value_at(const char *name, int64_t index)
{
    uint64_t x = tool_hash(name, strlen(name)) + (uint64_t)index * UINT64_C(0x9E3779B97F4A7C15);

    x = (x ^ (x >> 31)) * UINT64_C(0x94D049BB133111EB);
    x ^= x >> 29;
    if (hf__ends_with(name, ".running_var")) return (float)(x % 100) / 64.0f;
    return (float)((int)(x % 255) - 127) / 64.0f;
}

static void add_tensor(st_writer *w, const edit *e, const char *name, st_dtype dtype,
                       int32_t n_dims, const int64_t *shape)
{
    bool here = e->change != NO_CHANGE && strcmp(e->name, name) == 0;
    tool_error err = {""};

    if (here && e->change == DROP) return;
    if (here && e->change == RETYPE) dtype = e->dtype;
    if (here && e->change == RESHAPE)
        CHECK(st_writer_add(w, name, dtype, e->n_dims, e->shape, &err));
    else
        CHECK(st_writer_add(w, name, dtype, n_dims, shape, &err));
}

static void fill_tensor(st_writer *w, size_t index, const edit *e)
{
    const st__declared *t = &w->tensors[index];
    uint64_t n = t->size * 8 / st_dtype_bits(t->dtype), i;
    int64_t counter = 1234;
    bool real = t->dtype == ST_F32 || t->dtype == ST_F16 || t->dtype == ST_BF16, ok = true;
    tool_error err = {""};

    for (i = 0; i < n; i++) {
        float x = value_at(t->name, (int64_t)i);
        if (e->change == REVALUE && strcmp(e->name, t->name) == 0 && e->index == (int64_t)i)
            x = e->value;
        if (real)
            ok = st_writer_put_f32(w, index, &x, 1, &err) && ok;
        else
            ok = st_writer_put(w, index, &counter, st_dtype_bits(t->dtype) / 8, &err) && ok;
    }
    CHECK(ok);
}

/* One shard of several: every tensor whose number fits. */
static void put_shard(const model *m, const edit *e, int shard, const char *name,
                      tool_buffer *index)
{
    monet_arch arch = arch_of(m);
    st_writer w;
    monet_tensor *tensors;
    size_t n, i;
    int32_t k;
    tool_error err = {""};

    memset(&w, 0, sizeof w);
    tensors = describe_tensors(&arch, MONET_F32, &n, &err);
    for (i = (size_t)shard; i < n; i += (size_t)m->shards) {
        char counter[96];
        hf_mapping map;
        hf_map(&arch, &tensors[i], &map);
        for (k = 0; k < map.n_sources; k++)
            add_tensor(&w, e, map.source[k].name, m->dtype, map.source[k].n_dims,
                       map.source[k].shape);
        if (m->counters && hf_counter(&tensors[i], counter))
            add_tensor(&w, e, counter, ST_I64, 0, NULL);
    }
    if (shard == 0 && e->change == ADD)
        CHECK(st_writer_add(&w, e->name, e->dtype, e->n_dims, e->shape, &err));
    for (i = 0; i < w.n_tensors; i++)
        tool_putf(index, "%s\"%s\": \"%s\"", index->size > 0 ? ", " : "", w.tensors[i].name, name);
    CHECK(st_writer_start(&w, path_in(in_path, name), &err));
    for (i = 0; i < w.n_tensors; i++) fill_tensor(&w, i, e);
    if (!CHECK(st_writer_commit(&w, &err))) printf("    %s\n", err.message);
    st_writer_free(&w);
    free(tensors);
}

static void put_weights(const model *m, const edit *e)
{
    tool_buffer index = {NULL, 0, 0, false};
    char name[64];
    FILE *f;
    int i;

    for (i = 0; i < m->shards; i++) {
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1, m->shards);
        put_shard(m, e, i, m->shards > 1 ? name : "model.safetensors", &index);
    }
    if (m->shards > 1 && (f = fopen(path_in(in_path, "model.safetensors.index.json"), "wb"))) {
        fprintf(f, "{\"metadata\": {}, \"weight_map\": {%s}}", index.data);
        fclose(f);
    }
    tool_buffer_free(&index);
}

/* config.json with one key of another value; "" leaves the key out. */
static void put_config(const model *m, const char *key, const char *value)
{
    const char *const pairs[][2] = {
        {"architectures", "[\"MonetForCausalLM\"]"}, {"model_type", "\"monet\""},
        {"attention_bias", "false"}, {"hidden_act", "\"relu2\""}, {"hidden_size", "24"},
        {"max_position_embeddings", "64"}, {"mlp_bias", "null"},
        {"moe_decompose", m->horizontal ? "\"horizontal\"" : "\"vertical\""}, {"moe_dim", "6"},
        {"moe_experts", "10"}, {"moe_groups", "2"}, {"moe_heads", "2"}, {"moe_topk", "3"},
        {"num_attention_heads", "4"}, {"num_hidden_layers", "3"},
        {"num_key_value_heads", m->gqa ? "2" : "null"}, {"rms_norm_eps", "1e-06"},
        {"rope_scaling", "null"}, {"rope_theta", "10000.0"},
        {"tie_word_embeddings", m->tied ? "true" : "false"}, {"torch_dtype", "\"float32\""},
        {"vocab_size", "400"}, {"bos_token_id", "1"}, {"eos_token_id", "2"}
    };
    FILE *f = fopen(path_in(in_path, "config.json"), "wb");
    bool found = false;
    size_t i;

    if (!CHECK(f != NULL)) return;
    fprintf(f, "{\"initializer_range\": 0.02");
    for (i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        bool here = key != NULL && strcmp(pairs[i][0], key) == 0;
        found = found || here;
        if (here && value[0] == '\0') continue;
        fprintf(f, ",\n\"%s\": %s", pairs[i][0], here ? value : pairs[i][1]);
    }
    if (key != NULL && !found) fprintf(f, ",\n\"%s\": %s", key, value);
    fprintf(f, "}\n");
    fclose(f);
}

static void make(const model *m, const edit *e)
{
    static const edit none = {NO_CHANGE, "", ST_F32, 0, {0, 0}, 0, 0};

    empty_folder(in_path);
    empty_folder(out_folder);
    put_config(m, NULL, NULL);
    put_weights(m, e == NULL ? &none : e);
    if (!m->no_tokenizer)
        copy_file("tests/tokenizer/v400.model", path_in(in_path, "tokenizer.model"));
}

/* ---- good checkpoints ------------------------------------------------------------------------ */

/* The number that the checkpoint has for (row, column) of a tensor: written from the layout of a
   checkpoint, without the code that is tested. */
static float expected_at(const monet_arch *arch, const monet_tensor *t, int64_t row, int64_t column)
{
    int64_t m = arch->moe_dim / 2, n = arch->moe_experts, width;
    const char *v = strstr(t->name, ".moe.v");
    char name[96];
    int half;

    if (v == NULL) {
        snprintf(name, sizeof name, "%s%s", strncmp(t->name, "lm_head", 7) == 0 ? "" : "model.",
                 t->name);
        return value_at(name, row * (t->n_dims == 1 ? 1 : t->shape[1]) + column);
    }
    if (v[6] == '.') { /* horizontal: (C, N*M) turned */
        snprintf(name, sizeof name, "model.%s", t->name);
        width = n * arch->moe_dim;
    } else {           /* half-expert i: m columns of v11, then m columns of v12 */
        half = row % (2 * m) >= m;
        snprintf(name, sizeof name, "model.%.*s%d.weight", (int)(v - t->name) + 7, t->name,
                 half + 1);
        width = n * m;
        row = row / (2 * m) * m + row % m;
    }
    return value_at(name, column * width + row);
}

static long wrong_numbers(const monet_arch *arch, const monet_tensor *t)
{
    bool vector = t->n_dims == 1;
    int64_t rows = vector ? 1 : t->shape[0], columns = vector ? t->shape[0] : t->shape[1], r, c;
    float *row = calloc((size_t)columns, sizeof *row);
    long wrong = 0;

    for (r = 0; row != NULL && r < rows; r++) {
        if (monet_tensor_read(t, r, 1, row) != MONET_OK) wrong++;
        for (c = 0; c < columns; c++) {
            float x = expected_at(arch, t, vector ? c : r, vector ? 0 : c);
            wrong += memcmp(&x, &row[c], sizeof x) != 0;
        }
    }
    free(row);
    return wrong;
}

/* Every tensor of the output holds the numbers of the checkpoint; matrices are of this dtype. */
static void check_weights(const model *m, monet_dtype dtype, monet_dtype source)
{
    monet_arch arch = arch_of(m);
    monet_model *loaded = NULL;
    monet_error err = {{0}, MONET_OK};
    size_t i;

    if (!CHECK_EQ(monet_model_load(out_path, NULL, &loaded, &err), MONET_OK)) {
        printf("    %s\n", err.message);
        return;
    }
    CHECK(memcmp(monet_model_arch(loaded), &arch, sizeof arch) == 0);
    CHECK(monet_model_tensor_count(loaded) > 40);
    for (i = 0; i < monet_model_tensor_count(loaded); i++) {
        const monet_tensor *t = monet_model_tensor(loaded, i);
        if (!CHECK_EQ(wrong_numbers(&arch, t), 0)) printf("    in %s\n", t->name);
        CHECK_EQ(t->dtype, t->n_dims == 1 ? MONET_F32 : dtype);
        CHECK_EQ(t->source_dtype, source);
    }
    CHECK_EQ(monet_model_verify(loaded, NULL), MONET_OK);
    monet_model_free(loaded);
}

static void test_variants(void)
{
    static const struct { st_dtype st; monet_dtype dtype; const char *name; } dtypes[] = {
        {ST_F32, MONET_F32, "f32"}, {ST_F16, MONET_F16, "f16"}, {ST_BF16, MONET_BF16, "bf16"}
    };
    model m = plain;
    int variant, i, k;

    for (variant = 0; variant < 4; variant++)
        for (i = 0; i < 3; i++) {
            m.horizontal = variant % 2;
            m.tied = m.gqa = variant / 2;
            m.shards = i + 1;
            m.dtype = dtypes[i].st;
            make(&m, NULL);
            if (converted(NULL, NULL)) check_weights(&m, dtypes[i].dtype, dtypes[i].dtype);
            k = (i + variant) % 3;
            if (converted("--dtype", dtypes[k].name))
                check_weights(&m, dtypes[k].dtype, dtypes[i].dtype);
        }
}

static const char *metadata_of(const monet_model *loaded, const char *key)
{
    const char *value = monet_model_metadata(loaded, key);

    return value == NULL ? "(none)" : value;
}

static void test_metadata(void)
{
    model m = plain;
    monet_model *loaded = NULL;
    const monet_tokenizer *tokenizer;

    m.counters = true;
    make(&m, NULL);
    put_config(&m, "made_by", "{\"who\": [\"a \\\"b\\\"\", 1.50, true], \"x\\u00e9\": null}");
    put_text(path_in(in_path, "generation_config.json"),
             "{\"eos_token_id\": [5, 2], \"temperature\": 0.70, \"top_p\": 0.9}");
    put_text(path_in(in_path, "tokenizer_config.json"),
             "{\"chat_template\": \"{{ a }}\\n\", \"add_bos_token\": true}");
    CHECK(converted(NULL, NULL));
    CHECK_HAS(shown, "made_by");
    if (!CHECK_EQ(monet_model_load(out_path, NULL, &loaded, NULL), MONET_OK)) return;
    CHECK_STR(metadata_of(loaded, "config.made_by"),
              "{\"who\":[\"a \\\"b\\\"\",1.50,true],\"x\xC3\xA9\":null}");
    CHECK_STR(metadata_of(loaded, "config.torch_dtype"), "\"float32\"");
    CHECK_STR(metadata_of(loaded, "config.hidden_size"), "(none)");
    CHECK_STR(metadata_of(loaded, "generation.temperature"), "0.70");
    CHECK_STR(metadata_of(loaded, "generation.eos_token_id"), "[5,2]");
    CHECK_STR(metadata_of(loaded, "chat_template"), "{{ a }}\n");
    CHECK_STR(metadata_of(loaded, "layers.2.router.norm2.num_batches_tracked"), "1234");
    CHECK_STR(metadata_of(loaded, "layers.1.router.norm1.num_batches_tracked"), "(none)");
    CHECK_STR(metadata_of(loaded, "checkpoint.lm_head"), "(none)");
    tokenizer = monet_model_tokenizer(loaded);
    CHECK_EQ(monet_tokenizer_size(tokenizer), 400);
    CHECK_EQ(monet_tokenizer_bos(tokenizer), 1);
    CHECK(monet_tokenizer_is_eos(tokenizer, 5) && monet_tokenizer_is_eos(tokenizer, 2));
    CHECK(!monet_tokenizer_is_eos(tokenizer, 1));
    monet_model_free(loaded);
}

/* Sources of two precisions: the narrowest that holds both. */
static void test_mixed(void)
{
    edit e = {RETYPE, "model.layers.1.moe.v12.weight", ST_BF16, 0, {0, 0}, 0, 0};
    model m = plain;
    monet_model *loaded = NULL;

    m.dtype = ST_F16;
    make(&m, &e);
    CHECK(converted(NULL, NULL));
    if (!CHECK_EQ(monet_model_load(out_path, NULL, &loaded, NULL), MONET_OK)) return;
    CHECK_EQ(monet_model_find_tensor(loaded, "layers.1.moe.v1.weight")->dtype, MONET_F32);
    CHECK_EQ(monet_model_find_tensor(loaded, "layers.1.moe.v2.weight")->dtype, MONET_F16);
    monet_model_free(loaded);
}

static void test_odd_numbers(void)
{
    edit e = {REVALUE, "model.layers.0.moe.u1.weight", ST_F32, 0, {0, 0}, 7, 0};
    model m = plain;

    e.value = 1e6f;
    make(&m, &e);
    CHECK(converted("--dtype", "f16"));
    CHECK_HAS(said, "\"layers.0.moe.u1.weight\": 1 values are too large for f16");
    CHECK(converted(NULL, NULL));
    CHECK(strstr(said, "warning") == NULL);
    e.value = NAN;
    make(&m, &e);
    CHECK(converted(NULL, NULL));
    CHECK_HAS(said, "\"layers.0.moe.u1.weight\": 1 values are NaN or infinite");
}

static void test_tied_head(void)
{
    edit e = {ADD, "lm_head.weight", ST_F32, 2, {400, 24}, 0, 0};
    model m = plain;

    m.tied = true;
    make(&m, &e);
    refused("tensor \"lm_head.weight\" differs from \"model.embed_tokens.weight\"");
    e.shape[1] = 23;
    make(&m, &e);
    refused("tensor \"lm_head.weight\": the file has (400,23), needs (400,24)");
}

static void test_tokenizer_choice(void)
{
    model m = plain;
    monet_model *loaded = NULL;

    m.no_tokenizer = true;
    make(&m, NULL);
    CHECK(converted(NULL, NULL));
    CHECK_HAS(said, "no tokenizer.model and no tokenizer.json");
    if (CHECK_EQ(monet_model_load(out_path, NULL, &loaded, NULL), MONET_OK))
        CHECK(monet_model_tokenizer(loaded) == NULL);
    monet_model_free(loaded);
    copy_file("tests/tokenizer/v400.tokenizer.json", path_in(in_path, "tokenizer.json"));
    CHECK(converted(NULL, NULL));
    CHECK_HAS(shown, "tokenizer.json: 400 pieces, 84 merges");
    copy_file("tests/tokenizer/v400.model", path_in(in_path, "tokenizer.model"));
    CHECK(converted(NULL, NULL));
    CHECK_HAS(shown, "tokenizer.model: 400 pieces, 0 merges");
    copy_file("tests/tokenizer/v2048.model", path_in(in_path, "tokenizer.model"));
    empty_folder(out_folder);
    refused("tokenizer.model: has 2048 pieces, but \"vocab_size\" in config.json is 400");
}

/* ---- q8 and q4 ------------------------------------------------------------------------------- */

/* Error of one group of 32 columns, in parts of its largest number: the sum of squares; the worst
   of all groups in *worst. */
static double group_error(const float *row, const monet_arch *arch, const monet_tensor *t,
                          int64_t r, int64_t first, double *worst)
{
    int64_t end = first + 32 < t->shape[1] ? first + 32 : t->shape[1], c;
    double most = 0, sum = 0, error;

    for (c = first; c < end; c++) most = fmax(most, fabs((double)expected_at(arch, t, r, c)));
    for (c = first; most > 0 && c < end; c++) {
        error = fabs((double)row[c] - (double)expected_at(arch, t, r, c)) / most;
        *worst = fmax(*worst, error);
        sum += error * error;
    }
    return sum;
}

/* Half a step of 127 or, on average, of 7, and what the rounding of a scale to bf16 adds. */
static bool close_enough(const monet_arch *arch, const monet_tensor *t)
{
    float *row = calloc((size_t)t->shape[1], sizeof *row);
    double worst = 0, sum = 0, mean;
    int64_t r, c;

    for (r = 0; row != NULL && r < t->shape[0]; r++) {
        if (monet_tensor_read(t, r, 1, row) != MONET_OK) worst = 1;
        for (c = 0; c < t->shape[1]; c += 32) sum += group_error(row, arch, t, r, c, &worst);
    }
    free(row);
    mean = sqrt(sum / (double)(t->shape[0] * t->shape[1]));
    return t->dtype == MONET_Q8 ? worst < 0.501 / 126 : worst < 0.25 && mean < 0.05 && mean > 0.01;
}

/* What --dtype q8 or q4 makes of a tensor of bf16. */
static monet_dtype quantised_as(const monet_tensor *t, monet_dtype dtype, monet_dtype router)
{
    if (t->n_dims == 1) return MONET_F32;
    if (strstr(t->name, ".router.") != NULL) return router;
    if (strstr(t->name, ".moe.b") != NULL) return MONET_BF16;
    return strcmp(t->name, "embed_tokens.weight") == 0 ? MONET_Q8 : dtype;
}

static void check_quantised(const char *path, const model *m, monet_dtype dtype,
                            monet_dtype router)
{
    monet_arch arch = arch_of(m);
    monet_model *loaded = NULL;
    monet_error err = {{0}, MONET_OK};
    size_t i;

    if (!CHECK_EQ(monet_model_load(path, NULL, &loaded, &err), MONET_OK)) {
        printf("    %s\n", err.message);
        return;
    }
    for (i = 0; i < monet_model_tensor_count(loaded); i++) {
        const monet_tensor *t = monet_model_tensor(loaded, i);
        bool ok = CHECK_EQ(t->dtype, quantised_as(t, dtype, router)) != 0;
        ok = CHECK_EQ(t->source_dtype, MONET_BF16) && ok;
        if (is_quantised(t->dtype)) ok = CHECK(close_enough(&arch, t)) && ok;
        else ok = CHECK_EQ(wrong_numbers(&arch, t), 0) && ok;
        if (!ok) printf("    in %s\n", t->name);
    }
    CHECK_EQ(monet_model_verify(loaded, NULL), MONET_OK);
    CHECK_STR(metadata_of(loaded, "quantised.experts"), monet_dtype_name(dtype));
    CHECK_STR(metadata_of(loaded, "quantised.router"), monet_dtype_name(router));
    CHECK_STR(metadata_of(loaded, "quantised.embed_tokens"), "q8");
    CHECK_STR(metadata_of(loaded, "quantised.lm_head"),
              m->tied ? "(none)" : monet_dtype_name(dtype));
    monet_model_free(loaded);
}

static bool same_bytes(const char *a, const char *b)
{
    char *x = NULL, *y = NULL;
    size_t n = 0, k = 0;
    bool same = tool_read_file(a, 1 << 24, &x, &n, NULL) &&
                tool_read_file(b, 1 << 24, &y, &k, NULL) && n == k && memcmp(x, y, n) == 0;

    free(x);
    free(y);
    return same;
}

/* How many numbers of two files of the same model differ. */
static long different_numbers(const char *a, const char *b)
{
    monet_model *one = NULL, *two = NULL;
    static float x[4096], y[4096];
    long n = 0;
    size_t i;

    if (monet_model_load(a, NULL, &one, NULL) != MONET_OK ||
        monet_model_load(b, NULL, &two, NULL) != MONET_OK)
        n = -1;
    for (i = 0; n >= 0 && i < monet_model_tensor_count(one); i++) {
        const monet_tensor *t = monet_model_tensor(one, i), *u = monet_model_tensor(two, i);
        int64_t rows = t->n_dims == 1 ? 1 : t->shape[0], r, c;
        int64_t columns = t->n_dims == 1 ? t->shape[0] : t->shape[1];
        for (r = 0; r < rows; r++) {
            n += monet_tensor_read(t, r, 1, x) != MONET_OK;
            n += monet_tensor_read(u, r, 1, y) != MONET_OK;
            for (c = 0; c < columns; c++) n += x[c] < y[c] || x[c] > y[c];
        }
    }
    monet_model_free(one);
    monet_model_free(two);
    return n;
}

/* From a folder and from a .monet file the same file, of both kinds of layers. */
static void test_quantised(void)
{
    static const char *const names[] = {"q8", "q4"};
    static const monet_dtype dtypes[] = {MONET_Q8, MONET_Q4};
    model m = plain;
    char other[128], third[128];
    int i;

    snprintf(other, sizeof other, "%s/other.monet", root);
    snprintf(third, sizeof third, "%s/third.monet", root);
    m.dtype = ST_BF16;
    m.counters = true;
    for (i = 0; i < 4; i++) {
        m.horizontal = i / 2;
        m.tied = m.gqa = i % 2;
        make(&m, NULL);
        CHECK_EQ(convert(in_path, other, NULL, NULL), 0);
        CHECK(converted("--dtype", names[i % 2]));
        CHECK_HAS(shown, "router bf16; experts q");
        check_quantised(out_path, &m, dtypes[i % 2], MONET_BF16);
        CHECK_EQ(convert(other, third, "--dtype", names[i % 2]), 0);
        CHECK(same_bytes(out_path, third));
        CHECK_EQ(convert_more(third, other, "--router", "q8", NULL, NULL), 0);
        if (dtypes[i % 2] == MONET_Q4) check_quantised(other, &m, MONET_Q4, MONET_Q8);
        CHECK_EQ(convert_more(in_path, other, "--router", "q8", "--dtype", names[i % 2]), 0);
        check_quantised(other, &m, dtypes[i % 2], MONET_Q8);
    }
    unlink(other);
    unlink(third);
}

/* Widened and written again: q4 keeps its numbers, and the file says what they went through. */
static void test_widened(void)
{
    model m = plain;
    char wide[128], again[128];
    monet_model *loaded = NULL;

    snprintf(wide, sizeof wide, "%s/wide.monet", root);
    snprintf(again, sizeof again, "%s/again.monet", root);
    m.dtype = ST_BF16;
    make(&m, NULL);
    CHECK_EQ(convert_more(in_path, out_path, "--dtype", "q4", "--set", "embed_tokens.weight=q4"),
             0);
    CHECK_EQ(convert(out_path, wide, "--dtype", "f32"), 0);
    CHECK_EQ(different_numbers(out_path, wide), 0);
    if (CHECK_EQ(monet_model_load(wide, NULL, &loaded, NULL), MONET_OK)) {
        CHECK_STR(metadata_of(loaded, "quantised.experts"), "q4");
        CHECK_EQ(monet_model_find_tensor(loaded, "layers.0.moe.v1.weight")->dtype, MONET_F32);
        CHECK_EQ(monet_model_find_tensor(loaded, "layers.0.moe.v1.weight")->source_dtype,
                 MONET_BF16);
    }
    monet_model_free(loaded);
    CHECK_EQ(convert(out_path, again, NULL, NULL), 0);
    CHECK_EQ(different_numbers(out_path, again), 0);
    CHECK_EQ(convert_more(wide, again, "--dtype", "q4", "--set", "embed_tokens.weight=q4"), 0);
    CHECK_EQ(different_numbers(out_path, again), 0);
    unlink(wide);
    unlink(again);
}

static void test_rules(void)
{
    monet_model *loaded = NULL;

    make(&plain, NULL);
    CHECK_EQ(convert_more(in_path, out_path, "--set", "*=q8", "--set", "layers.1.*.u?.weight=f16"),
             1);
    CHECK_HAS(said, "no matrix of this model has a name like \"layers.1.*.u?.weight\"");
    CHECK_EQ(convert_more(in_path, out_path, "--set", "*=q8", "--set", "layers.1.*.u*=f16"), 0);
    if (CHECK_EQ(monet_model_load(out_path, NULL, &loaded, NULL), MONET_OK)) {
        CHECK_EQ(monet_model_find_tensor(loaded, "layers.1.moe.u2.weight")->dtype, MONET_F16);
        CHECK_EQ(monet_model_find_tensor(loaded, "layers.1.moe.u2.bias")->dtype, MONET_F32);
        CHECK_EQ(monet_model_find_tensor(loaded, "layers.1.moe.v2.weight")->dtype, MONET_Q8);
        CHECK_EQ(monet_model_find_tensor(loaded, "layers.2.moe.u2.weight")->dtype, MONET_Q8);
        CHECK_EQ(monet_model_find_tensor(loaded, "layers.0.router.w2.weight")->dtype, MONET_Q8);
        CHECK_EQ(monet_model_find_tensor(loaded, "layers.0.moe.b1")->dtype, MONET_BF16);
    }
    monet_model_free(loaded);
    CHECK(name_matches("*a*b", 4, "xaab") && name_matches("a*", 2, "a") &&
          name_matches("**", 2, "") && name_matches("abc", 3, "abc"));
    CHECK(!name_matches("*a*b", 4, "xbba") && !name_matches("a", 1, "ab") &&
          !name_matches("abc", 2, "abc") && !name_matches("", 0, "a"));
}

/* NaN and infinity have no code: refused by name. Where a tensor stays wide, they are as before. */
static void test_no_numbers(void)
{
    static const float values[] = {NAN, INFINITY, -INFINITY};
    edit e = {REVALUE, "model.layers.0.moe.u1.weight", ST_F32, 0, {0, 0}, 7, 0};
    int i;

    for (i = 0; i < 6; i++) {
        e.value = values[i % 3];
        make(&plain, &e);
        CHECK_EQ(convert(in_path, out_path, "--dtype", i < 3 ? "q8" : "q4"), 1);
        CHECK_HAS(said, "tensor layers.0.moe.u1.weight: ");
        CHECK_EQ(count_files(out_folder), 0);
    }
    e.name = "model.layers.0.router.w1.weight";
    make(&plain, &e);
    CHECK(converted("--dtype", "q8"));
    CHECK_HAS(said, "\"layers.0.router.w1.weight\": 1 values are NaN or infinite");
    e.name = "lm_head.weight";
    e.value = 1e30f;
    make(&plain, &e);
    CHECK(converted("--dtype", "q4"));
    CHECK(strstr(said, "warning") == NULL);
}

/* ---- bad config.json ------------------------------------------------------------------------- */

typedef struct bad_key {
    const char *key, *value, *message;
} bad_key;

static void refuse_keys(const bad_key *bad, size_t n)
{
    size_t i;

    make(&plain, NULL);
    for (i = 0; i < n; i++) {
        put_config(&plain, bad[i].key, bad[i].value);
        if (!refused(bad[i].message)) printf("    for %s = %s\n", bad[i].key, bad[i].value);
    }
}

static void test_unsupported(void)
{
    static const bad_key bad[] = {
        {"rope_scaling", "{\"type\": \"linear\"}", "config.json: \"rope_scaling\" is an object"},
        {"rope_scaling", "0", "\"rope_scaling\" is 0"},
        {"rope_parameters", "{\"rope_type\": \"yarn\"}", "rope_type\" is \"yarn\""},
        {"rope_parameters", "{\"rope_theta\": 5e5}", "\"rope_theta\" is 10000, but 500000"},
        {"attention_bias", "true", "\"attention_bias\" is true"},
        {"mlp_bias", "true", "\"mlp_bias\" is true"},
        {"hidden_act", "\"silu\"", "\"hidden_act\" is \"silu\""},
        {"sliding_window", "4096", "\"sliding_window\" is 4096"},
        {"partial_rotary_factor", "0.5", "\"partial_rotary_factor\" is 0.5"},
        {"quantization_config", "{}", "\"quantization_config\" is an object"},
        {"moe_decompose", "\"diagonal\"", "\"moe_decompose\" is \"diagonal\""},
        {"model_type", "\"llama\"", "\"model_type\" is \"llama\""},
        {"model_type", "\"llava_monet\"", "vision variant"},
        {"architectures", "[\"LlavaMonetForCausalLM\"]", "vision variant"},
        {"mm_vision_tower", "\"openai/clip-vit-base-patch16\"", "vision variant"},
        {"architectures", "[\"LlamaForCausalLM\"]", "\"architectures\" is \"LlamaForCausalLM\""},
        {"architectures", "[]", "\"architectures\" is an array"},
    };

    refuse_keys(bad, sizeof bad / sizeof bad[0]);
}

static void test_ranges(void)
{
    static const bad_key bad[] = {
        {"hidden_size", "\"24\"", "\"hidden_size\" is \"24\", needs an integer"},
        {"hidden_size", "24.5", "\"hidden_size\" is 24.5"},
        {"hidden_size", "24e0", "\"hidden_size\" is 24e0"},
        {"hidden_size", "[24]", "\"hidden_size\" is an array"},
        {"hidden_size", "-24", "\"hidden_size\" is -24"},
        {"hidden_size", "4294967320", "\"hidden_size\" is 4294967320"},
        {"hidden_size", "null", "\"hidden_size\" is missing"},
        {"num_hidden_layers", "0", "\"num_hidden_layers\" is 0"},
        {"num_hidden_layers", "5000", "\"num_hidden_layers\" is 5000, must be 1..4096"},
        {"vocab_size", "2000000000", "\"vocab_size\" is 2000000000"},
        {"num_attention_heads", "0", "\"num_attention_heads\" is 0"},
        {"num_attention_heads", "5", "no multiple of \"num_attention_heads\" 5"},
        {"num_attention_heads", "8", "size of a head is 3"},
        {"num_key_value_heads", "3", "no multiple of \"num_key_value_heads\" 3"},
        {"num_key_value_heads", "8", "no multiple of \"num_key_value_heads\" 8"},
        {"head_dim", "8", "\"head_dim\" is 8, needs hidden_size / num_attention_heads = 6"},
        {"moe_topk", "10", "\"moe_topk\" is 10, needs less than \"moe_experts\" 10"},
        {"moe_topk", "0", "\"moe_topk\" is 0"},
        {"moe_dim", "5", "\"moe_dim\" is 5, must be even"},
        {"moe_groups", "0", "\"moe_groups\" is 0"},
        {"moe_experts", "70000", "\"moe_experts\" is 70000"},
        {"rope_theta", "0", "\"rope_theta\" is 0"}, {"rope_theta", "1e400", "\"rope_theta\""},
        {"rope_theta", "1e-320", "\"rope_theta\""}, {"rope_theta", "\"x\"", "\"rope_theta\""},
        {"rms_norm_eps", "0", "\"rms_norm_eps\" is 0"}, {"rms_norm_eps", "-1", "\"rms_norm_eps\""},
        {"tie_word_embeddings", "1", "\"tie_word_embeddings\" is 1, needs true or false"},
        {"max_position_embeddings", "0", "\"max_position_embeddings\" is 0"},
        {"bos_token_id", "-1", "\"bos_token_id\" is -1, needs a token id from 0 to 399"},
        {"bos_token_id", "[1]", "\"bos_token_id\" is an array"},
        {"eos_token_id", "400", "\"eos_token_id\" is 400"},
        {"eos_token_id", "[2, 4294967295]", "\"eos_token_id\" is 4294967295"},
        {"eos_token_id", "\"</s>\"", "\"eos_token_id\" is \"</s>\""},
        {"pad_token_id", "401", "\"pad_token_id\" is 401"},
        {"x\\u0000y", "1", "contains byte 0x00"},
    };

    refuse_keys(bad, sizeof bad / sizeof bad[0]);
}

static void test_missing_keys(void)
{
    static const char *const keys[] = {"vocab_size", "hidden_size", "num_hidden_layers",
                                       "num_attention_heads", "moe_dim", "moe_heads",
                                       "moe_experts"};
    char message[80];
    size_t i;

    make(&plain, NULL);
    for (i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        put_config(&plain, keys[i], "");
        snprintf(message, sizeof message, "config.json: \"%s\" is missing", keys[i]);
        refused(message);
    }
}

/* Keys that may be absent have the published model's values. */
static void test_defaults(void)
{
    monet_arch arch = arch_of(&plain);
    hf_config config;
    tool_error err = {""};

    make(&plain, NULL);
    put_text(path_in(in_path, "config.json"),
             "{\"model_type\": \"monet\", \"vocab_size\": 400, \"hidden_size\": 24, "
             "\"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"moe_dim\": 6, "
             "\"moe_heads\": 2, \"moe_experts\": 64, \"rope_parameters\": {\"rope_theta\": 5e5, "
             "\"rope_type\": \"default\"}}");
    if (!CHECK(hf_config_load(&config, in_path, &err))) printf("    %s\n", err.message);
    arch.moe_experts = 64;
    arch.moe_topk = 32;
    arch.moe_groups = 4;
    arch.max_seq_len = 2048;
    arch.rope_theta = 5e5f;
    CHECK(memcmp(&config.arch, &arch, sizeof arch) == 0);
    CHECK_EQ(config.n_eos, 0);
    CHECK_EQ(config.bos_id, -1);
    hf_config_free(&config);
}

static void test_broken_config(void)
{
    static const char *const texts[][2] = {
        {"", "config.json: byte 0"}, {"[1]", "config.json: holds an array, needs an object"},
        {"{\"vocab_size\": NaN}", "config.json: byte 15"},
        {"{\"a\": 1, \"a\": 2}", "the key \"a\" occurs twice"},
        {"{}", "\"model_type\" is missing"},
    };
    char deep[400];
    size_t i;

    make(&plain, NULL);
    for (i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        put_text(path_in(in_path, "config.json"), texts[i][0]);
        refused(texts[i][1]);
    }
    memset(deep, '[', sizeof deep);
    put_file(path_in(in_path, "config.json"), deep, sizeof deep);
    refused("config.json: byte 64: nested deeper than 64 levels");
    unlink(path_in(in_path, "config.json"));
    refused("config.json");
}

static void test_broken_generation(void)
{
    static const char *const texts[][2] = {
        {"{\"eos_token_id\": [2, 400]}", "generation_config.json: eos_token_id"},
        {"{\"temperature\": \"hot\"}", "generation_config.json: \"temperature\" is \"hot\""},
        {"{\"top_p\": 2}", "generation_config.json: \"top_p\" is 2"},
        {"[]", "generation_config.json: holds an array"}, {"{", "generation_config.json: byte 1"},
    };
    size_t i;

    make(&plain, NULL);
    for (i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        put_text(path_in(in_path, "generation_config.json"), texts[i][0]);
        refused(texts[i][1]);
    }
}

/* ---- bad tensors ----------------------------------------------------------------------------- */

static void test_bad_tensors(void)
{
    static const struct { edit e; const char *message; } bad[] = {
        {{DROP, "model.norm.weight", ST_F32, 0, {0, 0}, 0, 0},
         "tensor \"model.norm.weight\" is missing; its shape would be (24)"},
        {{DROP, "model.layers.2.moe.v21.weight", ST_F32, 0, {0, 0}, 0, 0},
         "tensor \"model.layers.2.moe.v21.weight\" is missing"},
        {{DROP, "lm_head.weight", ST_F32, 0, {0, 0}, 0, 0}, "tensor \"lm_head.weight\" is missing"},
        {{RESHAPE, "model.layers.0.self_attn.q_proj.weight", ST_F32, 2, {24, 23}, 0, 0},
         "q_proj.weight\": the file has (24,23), needs (24,24)"},
        {{RESHAPE, "model.layers.0.moe.v11.weight", ST_F32, 2, {30, 12}, 0, 0},
         "v11.weight\": the file has (30,12), needs (12,30)"},
        {{RESHAPE, "model.norm.weight", ST_F32, 2, {24, 1}, 0, 0},
         "the file has (24,1), needs (24)"},
        {{RESHAPE, "model.norm.weight", ST_F32, 0, {0, 0}, 0, 0}, "the file has (), needs (24)"},
        {{RESHAPE, "model.embed_tokens.weight", ST_F32, 2, {400, 0}, 0, 0},
         "the file has (400,0), needs (400,24)"},
        {{RETYPE, "model.norm.weight", ST_F64, 0, {0, 0}, 0, 0},
         "tensor \"model.norm.weight\": dtype is F64, needs F32, F16 or BF16"},
        {{RETYPE, "model.layers.1.moe.b1", ST_I8, 0, {0, 0}, 0, 0}, "dtype is I8"},
        {{RETYPE, "model.layers.1.moe.u1.weight", ST_F8_E4M3, 0, {0, 0}, 0, 0}, "dtype is F8_E4M3"},
        {{ADD, "model.layers.3.moe.b1", ST_F32, 2, {10, 12}, 0, 0},
         "there is no layer 3, num_hidden_layers is 3"},
        {{ADD, "model.layers.4294967296.moe.b1", ST_F32, 1, {1, 1}, 0, 0}, "there is no layer"},
        {{ADD, "model.layers.00.moe.b1", ST_F32, 1, {1, 1}, 0, 0},
         "tensor \"model.layers.00.moe.b1\" is unknown"},
        {{ADD, "model.layers.-1.moe.b1", ST_F32, 1, {1, 1}, 0, 0}, "is unknown"},
        {{ADD, "model.layers.1.router.w1.weight", ST_F32, 2, {20, 24}, 0, 0},
         "layer 1 has no router of its own, moe_groups is 2"},
        {{ADD, "model.mm_projector.0.weight", ST_F32, 1, {1, 1}, 0, 0}, "vision variant"},
        {{ADD, "something\x1B[31m.else", ST_F32, 1, {1, 1}, 0, 0},
         "tensor \"something\\x1B[31m.else\" is unknown"},
        {{REVALUE, "model.layers.2.router.norm1.running_var", ST_F32, 0, {0, 0}, 1, -0.25f},
         "norm1.running_var\": value 1 is -0.25, needs a finite number that is not negative"},
        {{REVALUE, "model.layers.2.router.norm2.running_var", ST_F32, 0, {0, 0}, 0, NAN},
         "norm2.running_var\": value 0 is "},
        {{REVALUE, "model.layers.0.router.norm2.running_mean", ST_F32, 0, {0, 0}, 0, INFINITY},
         "norm2.running_mean\": value 0 is inf, needs a finite number"},
    };
    size_t i;

    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        make(&plain, &bad[i].e);
        if (!refused(bad[i].message)) printf("    for %s\n", bad[i].e.name);
    }
}

static void test_counters(void)
{
    static const struct { edit e; const char *message; } bad[] = {
        {{RETYPE, "model.layers.0.router.norm1.num_batches_tracked", ST_F32, 0, {0, 0}, 0, 0},
         "dtype is F32, needs an integer type"},
        {{RESHAPE, "model.layers.2.router.norm2.num_batches_tracked", ST_I64, 1, {2, 1}, 0, 0},
         "norm2.num_batches_tracked\": the file has (2), needs ()"},
        {{ADD, "model.layers.1.router.norm1.num_batches_tracked", ST_I64, 1, {1, 1}, 0, 0},
         "layer 1 has no router of its own"},
    };
    edit rope = {ADD, "model.layers.0.self_attn.rotary_emb.inv_freq", ST_F32, 1, {3, 1}, 0, 0};
    model m = plain;
    size_t i;

    m.counters = true;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        make(&m, &bad[i].e);
        refused(bad[i].message);
    }
    make(&m, &rope);
    CHECK(converted(NULL, NULL));
    CHECK_HAS(shown, "1 tensor rotary_emb.inv_freq: computed, not read");
}

static void test_files(void)
{
    char message[200];

    make(&plain, NULL);
    unlink(path_in(in_path, "model.safetensors"));
    refused("no model.safetensors and no model.safetensors.index.json");
    put_text(path_in(in_path, "pytorch_model.bin"), "PK");
    refused("safetensors.torch as s;s.save_file(");
    put_text(path_in(in_path, "model.safetensors"), "short");
    refused("model.safetensors: has 5 bytes");
    put_text(path_in(in_path, "model.safetensors.index.json"),
             "{\"weight_map\": {\"a\": \"../x.safetensors\"}}");
    unlink(path_in(in_path, "model.safetensors"));
    refused("\"../x.safetensors\" starts with a dot");
    CHECK_EQ(convert(path_in(root, "nowhere"), out_path, NULL, NULL), 1);
    snprintf(message, sizeof message, "%s/nowhere", root);
    CHECK_HAS(said, message);
}

static void test_same_output(void)
{
    static const char *const names[] = {"model.safetensors", "config.json", "tokenizer.model"};
    struct stat before, after;
    size_t i;

    make(&plain, NULL);
    CHECK_EQ(stat(path_in(in_path, "model.safetensors"), &before), 0);
    for (i = 0; i < sizeof names / sizeof names[0]; i++) {
        CHECK_EQ(convert(in_path, path_in(in_path, names[i]), NULL, NULL), 1);
        CHECK_HAS(said, "is the input as well");
    }
    CHECK_EQ(symlink(path_in(in_path, "model.safetensors"), out_path), 0);
    CHECK_EQ(convert(in_path, out_path, NULL, NULL), 1);
    CHECK_HAS(said, "is the input as well");
    CHECK_EQ(stat(path_in(in_path, "model.safetensors"), &after), 0);
    CHECK_EQ(after.st_ino, before.st_ino);
    CHECK_EQ(after.st_size, before.st_size);
    CHECK_EQ(convert(in_path, out_folder, NULL, NULL), 1);
    CHECK_HAS(said, "is a directory");
    CHECK_EQ(convert(in_path, path_in(root, "no/folder/x.monet"), NULL, NULL), 1);
    CHECK_HAS(said, "x.monet");
    empty_folder(out_folder);
}

/* ---- faults on the way ----------------------------------------------------------------------- */

/* An older file stays as it was, and no temporary file is left. */
static void test_interrupt(void)
{
    const long many = 1000000;
    long at, all;

    make(&plain, NULL);
    pread_left = many;
    CHECK(converted(NULL, NULL));
    all = many - pread_left;
    put_text(out_path, "old");
    for (at = (all - 1) % 7; at < all; at += 7) { /* the last read is among them */
        struct stat status;
        pread_left = at;
        CHECK_EQ(convert(in_path, out_path, NULL, NULL), 1);
        pread_left = -1;
        CHECK_HAS(said, "interrupted: nothing was written");
        CHECK_EQ(count_files(out_folder), 1);
        CHECK(stat(out_path, &status) == 0 && status.st_size == 3);
    }
    CHECK(converted(NULL, NULL));
}

/* A disk that says on the way that it cannot write. On a busy machine the end may come
   before the disk is asked.                                                                     */
static void test_disk(void)
{
    int i;

    make(&plain, NULL);
    for (i = 0; i < 5; i++) {
        int status;
        disk_failed = 0;
        disk_fails = true;
        status = convert(in_path, out_path, NULL, NULL);
        disk_fails = false;
        CHECK_EQ(status, disk_failed > 0);
        CHECK_EQ(count_files(out_folder), disk_failed == 0);
        if (disk_failed > 0) CHECK_HAS(said, "model.monet: writing failed: ");
        empty_folder(out_folder);
    }
}

static void test_memory(void)
{
    long at;
    int status = 1;

    make(&plain, NULL);
    for (at = 0; status == 1 && at < 2000; at += at < 40 ? 1 : 5) {
        calloc_left = at;
        status = convert(in_path, out_path, "--dtype", "q8");
        calloc_left = -1;
        if (status == 1) CHECK_HAS(said, "out of memory");
        CHECK_EQ(count_files(out_folder), status == 0);
    }
    CHECK_EQ(status, 0);
    CHECK(at > 20);
    empty_folder(out_folder);
}

/* ---- other commands -------------------------------------------------------------------------- */

static void test_again(void)
{
    model m = plain;
    char other[128];
    struct stat status;

    snprintf(other, sizeof other, "%s/again.monet", root);
    m.dtype = ST_BF16;
    m.counters = true;
    make(&m, NULL);
    CHECK(converted(NULL, NULL));
    CHECK_EQ(convert(out_path, other, "--dtype", "f32"), 0);
    CHECK_EQ(convert(other, out_path, NULL, NULL), 0);
    check_weights(&m, MONET_F32, MONET_BF16);
    CHECK_EQ(convert(other, out_path, "--dtype", "f16"), 0);
    check_weights(&m, MONET_F16, MONET_BF16);
    CHECK_EQ(convert("--info", out_path, NULL, NULL), 0);
    CHECK_HAS(shown, "layers.2.router.norm1.num_batches_tracked = 1234");
    CHECK_HAS(shown, "400 pieces");
    CHECK_EQ(convert(out_path, out_path, "--dtype", "f32"), 1);
    CHECK_HAS(said, "is the input as well");
    CHECK_EQ(convert(path_in(in_path, "model.safetensors"), other, NULL, NULL), 1);
    CHECK_HAS(said, "model.safetensors");
    CHECK(stat(other, &status) == 0 && status.st_size > 1000);
    unlink(other);
}

static void test_verify(void)
{
    char *data = NULL;
    size_t size = 0;

    make(&plain, NULL);
    CHECK(converted(NULL, NULL));
    CHECK_EQ(convert("--verify", out_path, NULL, NULL), 0);
    CHECK_HAS(shown, "intact");
    if (!CHECK(tool_read_file(out_path, 1 << 24, &data, &size, NULL))) return;
    data[size - 100] ^= 1;
    put_file(out_path, data, size);
    CHECK_EQ(convert("--verify", out_path, NULL, NULL), 1);
    CHECK_HAS(said, "lm_head.weight");
    put_file(out_path, data, size - 1);
    CHECK_EQ(convert("--info", out_path, NULL, NULL), 1);
    CHECK_HAS(said, "model.monet");
    free(data);
}

static void test_tokenizer_alone(void)
{
    static const char *const files[] = {"tests/tokenizer/v400.model",
                                        "tests/tokenizer/v400.tokenizer.json",
                                        "tests/tokenizer/v2048-metaspace.tokenizer.json"};
    size_t i;

    empty_folder(out_folder);
    for (i = 0; i < 3; i++) {
        CHECK_EQ(convert("--tokenizer", files[i], out_path, NULL), 0);
        CHECK_EQ(convert("--info", out_path, NULL, NULL), 0);
        CHECK_HAS(shown, i < 2 ? "400 pieces" : "2048 pieces");
        CHECK_EQ(convert("--verify", out_path, NULL, NULL), 0);
    }
    CHECK_EQ(convert(out_path, path_in(out_folder, "b.monet"), NULL, NULL), 0);
    CHECK_EQ(convert("--info", path_in(out_folder, "b.monet"), NULL, NULL), 0);
    CHECK_HAS(shown, "2048 pieces");
    empty_folder(out_folder);
    CHECK_EQ(convert("--tokenizer", "tests/test.h", out_path, NULL), 1);
    CHECK_EQ(count_files(out_folder), 0);
}

/* Reads the string literal that follows `at` back into bytes; returns how many. */
static size_t read_literal(const char *at, unsigned char *out, size_t room)
{
    size_t n = 0;
    bool inside = false;

    for (; *at != ';' || inside; at++) {
        if (*at == '"') {
            inside = !inside;
        } else if (inside && *at != '\\') {
            if (n < room) out[n] = (unsigned char)*at;
            n++;
        } else if (inside) {
            unsigned value = 0;
            int digits = 0;
            while (digits < 3 && at[1] >= '0' && at[1] <= '7') {
                value = value * 8 + (unsigned)(*++at - '0');
                digits++;
            }
            if (n < room) out[n] = (unsigned char)value;
            n++;
        }
    }
    return n;
}

static void test_array(void)
{
    const char *array = path_in(root, "array.c");
    char source[256], *data = NULL, *text = NULL, *start;
    unsigned char *back;
    size_t size = 0, text_size;

    snprintf(source, sizeof source, "%s", array);
    make(&plain, NULL);
    CHECK(converted(NULL, NULL));
    CHECK_EQ(convert("--c-array", out_path, source, "tiny_model"), 0);
    if (CHECK(tool_read_file(out_path, 1 << 24, &data, &size, NULL)) &&
        CHECK(tool_read_file(source, 1 << 26, &text, &text_size, NULL)) &&
        CHECK((start = strstr(text, "const unsigned char tiny_model[]")) != NULL) &&
        CHECK((start = strstr(start, " =\n\"")) != NULL) &&
        CHECK((back = malloc(size)) != NULL)) {
        CHECK_EQ(read_literal(start, back, size), size);
        CHECK(memcmp(back, data, size) == 0);
        free(back);
    }
    free(data);
    free(text);
    CHECK_EQ(convert("--c-array", out_path, source, "no-name"), 1);
    CHECK_HAS(said, "\"no-name\" is not a C identifier");
    CHECK_EQ(convert("--c-array", "tests/test.h", source, NULL), 1);
    CHECK_EQ(convert("--c-array", out_path, out_path, NULL), 1);
    CHECK_HAS(said, "is the input as well");
    unlink(source);
}

static void test_usage(void)
{
    CHECK_EQ(convert(NULL, NULL, NULL, NULL), 2);
    CHECK_EQ(convert("a", NULL, NULL, NULL), 2);
    CHECK_EQ(convert("a", "b", "c", NULL), 2);
    CHECK_EQ(convert("--dtype", NULL, NULL, NULL), 2);
    CHECK_EQ(convert("a", "b", "--dtype", "f64"), 2);
    CHECK_HAS(said, "--dtype needs f32, f16, bf16, q8 or q4, not: f64");
    CHECK_EQ(convert("a", "b", "--router", NULL), 2);
    CHECK_HAS(said, "--router needs f32, f16, bf16, q8 or q4");
    CHECK_EQ(convert("a", "b", "--set", "lm_head.weight"), 2);
    CHECK_HAS(said, "--set needs NAMES=DTYPE: lm_head.weight");
    CHECK_EQ(convert("a", "b", "--set", "a=b=q5"), 2);
    CHECK_HAS(said, "--set needs f32, f16, bf16, q8 or q4, not: q5");
    CHECK_EQ(convert("--info", "a", "--router", "q8"), 2);
    CHECK_HAS(said, "a dtype does not go with: --info");
    CHECK_EQ(convert("--frobnicate", "a", "b", NULL), 2);
    CHECK_HAS(said, "--frobnicate");
    CHECK_EQ(convert("--info", "--verify", "a", NULL), 2);
    CHECK_EQ(convert("--info", NULL, NULL, NULL), 2);
    CHECK_EQ(convert("--help", NULL, NULL, NULL), 0);
    CHECK_HAS(shown, "convert HF_FOLDER OUT.monet");
    CHECK_EQ(convert("--info", path_in(root, "nowhere"), NULL, NULL), 1);
    CHECK_HAS(said, "nowhere");
}

/* Both directions of the mapping are each other's inverse. */
static void test_mapping(void)
{
    model m = plain;
    monet_arch arch;
    monet_tensor *tensors;
    hf_mapping map;
    size_t n, i;
    int64_t row;
    int32_t which;
    long wrong = 0, two = 0;

    for (m.horizontal = false;; m.horizontal = true) {
        arch = arch_of(&m);
        tensors = describe_tensors(&arch, MONET_F32, &n, NULL);
        for (i = 0; i < n; i++) {
            hf_map(&arch, &tensors[i], &map);
            two += map.n_sources == 2;
            for (row = 0; row < tensors[i].shape[0]; row++) {
                int64_t at = hf_row(&map, row, &which);
                wrong += hf_place(&map, which, at) != row || which >= map.n_sources;
            }
        }
        free(tensors);
        if (m.horizontal) break;
    }
    CHECK_EQ(wrong, 0);
    CHECK_EQ(two, 6);
}

int main(void)
{
    snprintf(root, sizeof root, "/tmp/monet-convert-XXXXXX");
    if (mkdtemp(root) == NULL) return 2;
    snprintf(in_path, sizeof in_path, "%s/in", root);
    snprintf(out_folder, sizeof out_folder, "%s/out", root);
    snprintf(out_path, sizeof out_path, "%s/model.monet", out_folder);
    CHECK(mkdir(in_path, 0700) == 0 && mkdir(out_folder, 0700) == 0);
    test_mapping();
    test_variants();
    test_metadata();
    test_mixed();
    test_odd_numbers();
    test_tied_head();
    test_tokenizer_choice();
    test_quantised();
    test_widened();
    test_rules();
    test_no_numbers();
    test_unsupported();
    test_ranges();
    test_missing_keys();
    test_defaults();
    test_broken_config();
    test_broken_generation();
    test_bad_tensors();
    test_counters();
    test_files();
    test_same_output();
    test_interrupt();
    test_disk();
    test_memory();
    test_again();
    test_verify();
    test_tokenizer_alone();
    test_array();
    test_usage();
    empty_folder(in_path);
    empty_folder(out_folder);
    rmdir(in_path);
    rmdir(out_folder);
    CHECK(rmdir(root) == 0);
    return test_end("test_convert");
}
