/* test_export.c: tests tools/export.c: what was converted comes back with the same bytes, in any
   number of files; bad metadata and tokenizers stay out; whatever fails leaves nothing behind.

   cc -O2 -pthread -I. tests/test_export.c -o test_export -lm && ./test_export

   Run it from the repository's root: the checkpoints come from tests/golden, the tokenizers from
   tests/tokenizer. Files are made in a temporary folder, which is removed at the end.          */

#define _FILE_OFFSET_BITS 64
#define _XOPEN_SOURCE 700
#define _DEFAULT_SOURCE 1
#define TOOL_SYS(name) hook_##name
#define hook_realloc realloc
#define hook_posix_fallocate posix_fallocate
#define hook_close close
#define hook_rename rename
#define hook_open open
#define hook_pread pread
#define hook_fsync(fd) ((void)(fd), 0) /* no need to wait for the disk */

#include <stddef.h>
#include <sys/types.h>

/* What the tools call in place of the system, so that the test can let it fail. */
static void *hook_calloc(size_t count, size_t size);
static ssize_t hook_pwrite(int fd, const void *data, size_t size, off_t offset);

#define EXPORT_BLOCK 20000 /* small as the models are, they pass through in many blocks */
#define EXPORT_MAP 200000
#define main export_main
#include "tools/export.c"
#undef main
#define main convert_main
#include "tools/convert.c"
#undef main

#include "test.h"

/* ---- hooks ----------------------------------------------------------------------------------- */

static long calloc_left = -1; /* the call after so many fails; below 0: none does */
static long pwrite_left = -1;
static bool pwrite_stops;     /* it does not fail, but Ctrl-C is pressed */

static void *hook_calloc(size_t count, size_t size)
{
    if (calloc_left >= 0 && calloc_left-- == 0) return NULL;
    return calloc(count, size);
}

static ssize_t hook_pwrite(int fd, const void *data, size_t size, off_t offset)
{
    if (pwrite_left >= 0 && pwrite_left-- == 0) {
        if (pwrite_stops) raise(SIGINT);
        else return errno = ENOSPC, -1;
    }
    return pwrite(fd, data, size, offset);
}

/* ---- files ----------------------------------------------------------------------------------- */

static char root[64];

/* One text for each name, up to 16. */
static const char *in_root(const char *name)
{
    static char paths[16][128];
    size_t i = 0, skip = strlen(root) + 1;

    while (i < 15 && paths[i][0] != '\0' && strcmp(paths[i] + skip, name) != 0) i++;
    snprintf(paths[i], sizeof paths[0], "%s/%s", root, name);
    return paths[i];
}

static const char *inside(const char *folder, const char *name)
{
    static char paths[16][512];
    static int next;
    char *path = paths[next++ % 16];

    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static void put_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");

    if (!CHECK(f != NULL)) return;
    fputs(text, f);
    fclose(f);
}

/* Its text, cut at 64 KB; "" if there is none. */
static const char *text_of(const char *path)
{
    static char text[1 << 16];
    FILE *f = fopen(path, "rb");
    size_t n = f == NULL ? 0 : fread(text, 1, sizeof text - 1, f);

    text[n] = '\0';
    if (f != NULL) fclose(f);
    return text;
}

static bool exists(const char *path)
{
    struct stat status;

    return lstat(path, &status) == 0;
}

static bool same_bytes(const char *a, const char *b)
{
    char *x = NULL, *y = NULL;
    size_t n = 0, m = 0;
    bool same = tool_read_file(a, 1 << 26, &x, &n, NULL) && tool_read_file(b, 1 << 26, &y, &m, NULL)
                && n == m && memcmp(x, y, n) == 0;

    free(x);
    free(y);
    return same;
}

static void remove_folder(const char *folder)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;

    while (dir != NULL && (entry = readdir(dir)) != NULL)
        if (!is_dots(entry->d_name)) unlink(inside(folder, entry->d_name));
    if (dir != NULL) closedir(dir);
    rmdir(folder);
}

/* ---- running the programs -------------------------------------------------------------------- */

static char said[1 << 14]; /* on stderr, by the last run */

/* Runs a program with these words, the last one NULL; returns its exit status. */
static int run_program(int (*program)(int, char **), const char *const *words)
{
    char *argv[12] = {(char *)(uintptr_t)"program"};
    FILE *out = tmpfile(), *err = tmpfile();
    int old_out = dup(1), old_err = dup(2), status, argc = 1;
    size_t n;

    while (argc < 11 && words[argc - 1] != NULL) {
        argv[argc] = (char *)(uintptr_t)words[argc - 1];
        argc++;
    }
    fflush(stdout);
    dup2(fileno(out), 1);
    dup2(fileno(err), 2);
    status = program(argc, argv);
    fflush(stdout);
    dup2(old_out, 1);
    dup2(old_err, 2);
    close(old_out);
    close(old_err);
    rewind(err);
    n = fread(said, 1, sizeof said - 1, err);
    said[n] = '\0';
    fclose(out);
    fclose(err);
    return status;
}

#define EXPORT(...) run_program(export_main, (const char *const[]){__VA_ARGS__, NULL})
#define CONVERT(...) run_program(convert_main, (const char *const[]){__VA_ARGS__, NULL})

/* ---- golden checkpoints ---------------------------------------------------------------------- */

/* Every tensor of one is in the other, with the same bytes. */
static void compare_tensors(const char *folder, const char *other)
{
    st_file a, b;
    uint32_t i, n_same = 0;

    if (!CHECK(st_open_model(&a, folder, NULL))) return;
    if (CHECK(st_open_model(&b, other, NULL))) {
        CHECK_EQ(a.n_tensors, b.n_tensors);
        for (i = 0; i < a.n_tensors; i++) {
            const st_tensor *x = &a.tensors[i];
            const st_tensor *y = st_expect(&b, x->name, x->n_dims, x->shape, NULL);
            char *p = calloc(1, (size_t)x->size + 1), *q = calloc(1, (size_t)x->size + 1);
            if (y != NULL && y->dtype == x->dtype && st_read(&a, x, 0, x->size, p, NULL) &&
                st_read(&b, y, 0, y->size, q, NULL) && memcmp(p, q, (size_t)x->size) == 0)
                n_same++;
            else
                printf("    %s: tensor %s differs\n", folder, x->name);
            free(p);
            free(q);
        }
        CHECK_EQ(n_same, a.n_tensors);
        CHECK_STR(st_note_of(&b, "format"), "pt");
        st_close(&b);
    }
    st_close(&a);
}

/* Every key of one file is in the other, with the same value. Numbers are compared as such. */
static void compare_json(const char *path, const char *other)
{
    json_doc a, b;
    json_each it;

    if (!CHECK(json_load(&a, path, 1 << 20, NULL))) return;
    if (CHECK(json_load(&b, other, 1 << 20, NULL))) {
        CHECK_EQ(json_count(&a, 0), json_count(&b, 0));
        for (it = json_begin(&a, 0); json_step(&a, &it);) {
            const char *key = json_string(&a, it.key, NULL);
            uint32_t value = json_find(&b, 0, key);
            tool_buffer x = {NULL, 0, 0, false}, y = {NULL, 0, 0, false};
            double u = 0, v = 1;
            hf_put_json(&x, &a, it.value);
            hf_put_json(&y, &b, value == JSON_NONE ? 0 : value);
            if (json_double(&a, it.value, &u) && json_double(&b, value, &v)) CHECK_NEAR(u, v, 0);
            else if (!CHECK_STR(y.data, x.data)) printf("    key %s\n", key);
            tool_buffer_free(&x);
            tool_buffer_free(&y);
        }
        json_free(&b);
    }
    json_free(&a);
}

static void test_golden(const char *name, const char *shard_size, int n_files)
{
    const char *source = inside("tests/golden", name);
    const char *model = in_root("a.monet"), *folder = in_root("out"), *again = in_root("b.monet");
    int n = 0;
    DIR *dir;
    struct dirent *entry;

    CHECK_EQ(CONVERT(source, model), 0);
    if (!CHECK_EQ(EXPORT(model, folder, "--shard-size", shard_size), 0)) printf("%s", said);
    CHECK_STR(said, "");
    compare_tensors(source, folder);
    compare_json(inside(source, "config.json"), inside(folder, "config.json"));
    compare_json(inside(source, "generation_config.json"),
                 inside(folder, "generation_config.json"));
    CHECK_EQ(CONVERT(folder, again), 0);
    CHECK(same_bytes(model, again));
    dir = opendir(folder);
    while (dir != NULL && (entry = readdir(dir)) != NULL)
        n += hf__ends_with(entry->d_name, ".safetensors");
    if (dir != NULL) closedir(dir);
    CHECK_EQ(n, n_files);
    remove_folder(folder);
}

static void test_trained(void)
{
    const char *folder = in_root("out"), *again = in_root("b.monet");

    CHECK_EQ(EXPORT("examples/monet-4m.monet", folder), 0);
    CHECK_EQ(CONVERT(folder, again), 0);
    CHECK(same_bytes("examples/monet-4m.monet", again));
    remove_folder(folder);
}

static void test_dtype(void)
{
    static const struct { const char *word, *torch; st_dtype dtype; } kinds[] = {
        {"f32", "float32", ST_F32}, {"f16", "float16", ST_F16}, {"bf16", "bfloat16", ST_BF16}
    };
    const char *source = "tests/golden/vd-base", *folder = in_root("out");
    st_file a, b;
    json_doc doc;
    uint32_t k, i, n;
    float x[64], y[64];

    CHECK_EQ(CONVERT(source, in_root("a.monet")), 0);
    for (k = 0; k < 3; k++) {
        int wrong = 0;
        CHECK_EQ(EXPORT("--dtype", kinds[k].word, in_root("a.monet"), folder), 0);
        if (!CHECK(st_open_model(&a, source, NULL) && st_open_model(&b, folder, NULL))) return;
        for (i = 0; i < a.n_tensors; i++) {
            const st_tensor *s = &a.tensors[i], *t = st_find(&b, s->name);
            const bool counter = s->dtype == ST_I64;
            n = s->count < 64 ? (uint32_t)s->count : 64;
            if (t == NULL || t->dtype != (counter ? ST_I64 : kinds[k].dtype)) wrong++;
            if (t == NULL || counter) continue;
            st_read_f32(&a, s, 0, n, x, NULL);
            st_read_f32(&b, t, 0, n, y, NULL);
            while (n-- > 0) {
                if (k == 1) x[n] = st_f32_of_f16(st_f16_of_f32(x[n]));
                if (k == 2) x[n] = st_f32_of_bf16(st_bf16_of_f32(x[n]));
                wrong += memcmp(&x[n], &y[n], sizeof x[n]) != 0;
            }
        }
        CHECK_EQ(wrong, 0);
        CHECK(json_load(&doc, inside(folder, "config.json"), 1 << 20, NULL));
        CHECK(json_equals(&doc, json_find(&doc, 0, "torch_dtype"), kinds[k].torch));
        json_free(&doc);
        st_close(&a);
        st_close(&b);
        remove_folder(folder);
    }
}

/* ---- tokenizers ------------------------------------------------------------------------------ */

/* Lines of {"text_hex", "ids", "decoded_hex"}: how many give other ids. */
static int count_wrong(const monet_tokenizer *tokenizer, char *text, size_t size, int *n_lines)
{
    static char bytes[1 << 16];
    static int32_t ids[1 << 16];
    int wrong = 0;
    char *line = text, *end;

    for (*n_lines = 0; line < text + size; line = end + 1, *n_lines += 1) {
        json_doc doc;
        json_each it;
        size_t n, i, count = 0;
        const char *hex;
        bool same;
        end = memchr(line, '\n', (size_t)(text + size - line));
        if (end == NULL || !json_parse(&doc, line, (size_t)(end - line), NULL)) return -1;
        hex = json_string(&doc, json_find(&doc, 0, "text_hex"), &n);
        for (i = 0; i < n / 2 && i < sizeof bytes; i++) {
            const char pair[3] = {hex[2 * i], hex[2 * i + 1], '\0'};
            bytes[i] = (char)strtol(pair, NULL, 16);
        }
        same = monet_tokenizer_encode(tokenizer, bytes, n / 2, 0, ids, 1 << 16, &count) == MONET_OK;
        it = json_begin(&doc, json_find(&doc, 0, "ids"));
        for (i = 0; json_step(&doc, &it); i++) {
            int64_t id = -1;
            same = json_int(&doc, it.value, &id) && i < count && ids[i] == id && same;
        }
        wrong += !same || i != count;
        json_free(&doc);
    }
    return wrong;
}

static void test_tokenizer(const char *source, const char *texts, const char *made)
{
    const char *model = in_root("t.monet"), *folder = in_root("tok"), *again = in_root("u.monet");
    monet_model *loaded = NULL;
    char *text = NULL;
    size_t size = 0;
    int n_lines = 0;

    CHECK_EQ(CONVERT("--tokenizer", source, model), 0);
    if (!CHECK_EQ(EXPORT(model, folder), 0)) printf("%s", said);
    CHECK(exists(inside(folder, made)));
    CHECK(!exists(inside(folder, "config.json")));
    CHECK_EQ(CONVERT("--tokenizer", folder, again), 0);
    CHECK(same_bytes(model, again));
    CHECK_EQ(CONVERT("--tokenizer", inside(folder, made), again), 0);
    CHECK(same_bytes(model, again)); /* that file alone says it all */
    CHECK_EQ(monet_model_load(again, NULL, &loaded, NULL), MONET_OK);
    if (texts != NULL && CHECK(tool_read_file(texts, 1 << 24, &text, &size, NULL))) {
        CHECK_EQ(count_wrong(monet_model_tokenizer(loaded), text, size, &n_lines), 0);
        CHECK(n_lines > 100);
    }
    free(text);
    monet_model_free(loaded);
    remove_folder(folder);
}

/* A tokenizer of our own: <unk>, <s>, </s>, the bytes, and `more`, whose types differ. */
static monet_tokenizer_data own_tokenizer(monet_piece *pieces, const monet_piece *more, int n)
{
    static const char *const names[] = {"<unk>", "<s>", "</s>"};
    static const int32_t eos[] = {2};
    static char bytes[256][8];
    monet_tokenizer_data t;
    int i;

    memset(&t, 0, sizeof t);
    for (i = 0; i < 259 + n; i++) {
        if (i >= 259) {
            pieces[i] = more[i - 259];
        } else {
            if (i >= 3) snprintf(bytes[i - 3], 8, "<0x%02X>", (unsigned)(i - 3));
            pieces[i].bytes = i < 3 ? names[i] : bytes[i - 3];
            pieces[i].type = i == 0 ? MONET_PIECE_UNKNOWN : i < 3 ? MONET_PIECE_CONTROL :
                             MONET_PIECE_BYTE;
            pieces[i].score = 0;
        }
        pieces[i].size = (int32_t)strlen(pieces[i].bytes);
    }
    t.pieces = pieces;
    t.n_pieces = 259 + n;
    t.eos_ids = eos;
    t.n_eos = 1;
    t.bos_id = 1;
    return t;
}

static bool write_monet(const char *path, const monet_tokenizer_data *tokenizer,
                        const monet_metadata *metadata, size_t n_metadata)
{
    monet_writer_config config;
    monet_writer *writer = NULL;
    bool ok;

    memset(&config, 0, sizeof config);
    config.tokenizer = tokenizer;
    config.metadata = metadata;
    config.n_metadata = n_metadata;
    ok = monet_writer_create(path, &config, &writer, NULL) == MONET_OK &&
         monet_writer_finish(writer, NULL) == MONET_OK;
    monet_writer_free(writer);
    return ok;
}

/* There and back: the same file. */
static void same_tokenizer(const monet_tokenizer_data *t, const char *made)
{
    const char *model = in_root("t.monet"), *folder = in_root("tok"), *again = in_root("u.monet");

    CHECK(write_monet(model, t, NULL, 0));
    if (!CHECK_EQ(EXPORT(model, folder), 0)) printf("%s", said);
    CHECK(exists(inside(folder, made)));
    if (!CHECK_EQ(CONVERT("--tokenizer", folder, again), 0)) printf("%s", said);
    CHECK(same_bytes(model, again));
    remove_folder(folder);
}

static void test_own_tokenizers(void)
{
    static const monet_piece more[] = {
        {U_2581, 0, MONET_PIECE_NORMAL, -1}, {"a", 0, MONET_PIECE_NORMAL, -2},
        {"<|user|>", 0, MONET_PIECE_CONTROL, 0}, {"\"\\\n", 0, MONET_PIECE_USER, 0},
        {U_2581 "a", 0, MONET_PIECE_NORMAL, -3}, {"zz", 0, MONET_PIECE_UNUSED, 0}
    };
    static const monet_merge merge = {259, 260, 263};
    static const int32_t eos_ids[] = {261};
    monet_piece pieces[300];
    monet_tokenizer_data t = own_tokenizer(pieces, more, 6);
    const char *model = in_root("t.monet"), *folder = in_root("tok");

    same_tokenizer(&t, "tokenizer.model"); /* never a prefix */
    t.strip_space = 1;
    same_tokenizer(&t, "tokenizer.model");
    t.prefix_space = MONET_PREFIX_ALWAYS;
    t.eos_ids = eos_ids;
    t.bos_id = -1;
    same_tokenizer(&t, "tokenizer.model");
    t.bos_id = 259; /* an ordinary piece */
    same_tokenizer(&t, "tokenizer.model");
    t.prefix_space = MONET_PREFIX_FIRST;
    CHECK(write_monet(model, &t, NULL, 0));
    CHECK_EQ(EXPORT(model, folder), 1);
    CHECK_HAS(said, "is merged by score");
    t.n_pieces = 264;
    t.merges = &merge;
    t.n_merges = 1;
    pieces[259].score = pieces[260].score = 0;
    pieces[263].score = -1; /* its rank, as convert has it */
    for (t.prefix_space = 0; t.prefix_space < 3; t.prefix_space++)
        for (t.strip_space = 0; t.strip_space < 2; t.strip_space++)
            same_tokenizer(&t, "tokenizer.json");
    t.strip_space = 1;
    t.n_pieces = 265;
    t.prefix_space = MONET_PREFIX_ALWAYS;
    CHECK(write_monet(model, &t, NULL, 0));
    CHECK_EQ(EXPORT(model, folder), 1);
    CHECK_HAS(said, "piece 264 \"zz\" is of the unused type");
    CHECK(!exists(folder));

    t = own_tokenizer(pieces, more, 0); /* bytes alone: both files, for a space is a byte */
    same_tokenizer(&t, "tokenizer.model");
    same_tokenizer(&t, "tokenizer.json");
}

/* The template, and what is not UTF-8. */
static void test_template(void)
{
    const char *model = in_root("t.monet"), *folder = in_root("tok"), *again = in_root("u.monet");
    monet_metadata notes[] = {{"chat_template", "{% for m in x %}\"\\\n\xC3\xA9"}};
    monet_piece pieces[300];
    monet_tokenizer_data t = own_tokenizer(pieces, NULL, 0);

    CHECK(write_monet(model, &t, notes, 1));
    CHECK_EQ(EXPORT(model, folder), 0);
    CHECK_EQ(CONVERT("--tokenizer", folder, again), 0);
    CHECK(same_bytes(model, again));
    notes[0].value = "\xFF";
    CHECK(write_monet(model, &t, notes, 1));
    CHECK_EQ(EXPORT(model, folder, "--force"), 0);
    CHECK_HAS(said, "the chat template is left out");
    CHECK(strstr(text_of(inside(folder, "tokenizer_config.json")), "chat_template") == NULL);
    remove_folder(folder);
}

/* ---- metadata -------------------------------------------------------------------------------- */

/* Writes a model again with other metadata; every number is multiplied. */
static void rewrite(const char *from, const char *to, const monet_metadata *notes, size_t n_notes,
                    float factor)
{
    monet_writer_config config;
    monet_writer *writer = NULL;
    monet_model *model = NULL;
    monet_tensor *tensors;
    tool_error err;
    dtype_rules as_it_is;
    size_t i;
    int64_t k, n;

    memset(&config, 0, sizeof config);
    memset(&as_it_is, 0, sizeof as_it_is);
    as_it_is.all = -1;
    if (!CHECK_EQ(monet_model_load(from, NULL, &model, NULL), MONET_OK)) return;
    tensors = recoded_tensors(model, &as_it_is, &config.n_tensors, &err);
    config.arch = monet_model_arch(model);
    config.tensors = tensors;
    config.metadata = notes;
    config.n_metadata = n_notes;
    CHECK_EQ(monet_writer_create(to, &config, &writer, NULL), MONET_OK);
    for (i = 0; i < config.n_tensors; i++) {
        const monet_tensor *t = monet_model_tensor(model, i);
        float *x = malloc((size_t)(t->shape[0] * t->shape[1]) * sizeof *x);
        n = t->n_dims == 1 ? 1 : t->shape[0];
        monet_tensor_read(t, 0, n, x);
        for (k = 0; k < t->shape[0] * t->shape[1]; k++) x[k] *= factor;
        CHECK_EQ(monet_writer_rows(writer, x, n, NULL), MONET_OK);
        free(x);
    }
    CHECK_EQ(monet_writer_finish(writer, NULL), MONET_OK);
    monet_writer_free(writer);
    monet_model_free(model);
    free(tensors);
}

static void test_metadata(void)
{
    static const monet_metadata bad[] = {
        {"config.a", "1,\"auto_map\":{}"}, {"config.b", "{"}, {"config.c", ""},
        {"config.d", "[1] x"}, {"config.\xFF", "1"}, {"config.vocab_size", "7"},
        {"config.rope_theta", "1"}, {"config.e\"", "{\"x\":[1,null]}"}, {"generation.f", "NaN"},
        {"generation.top_k", "5"}, {"layers.0.router.norm1.num_batches_tracked", "12"},
        {"layers.0.router.norm2.num_batches_tracked", "1e99"}, {"other", "not JSON"},
        {"config.torch_dtype", "\"bfloat16\""}
    };
    static const monet_metadata twice[] = {{"config.x", "1"}, {"config.x", "2"}};
    const char *folder = in_root("out"), *model = in_root("m.monet");
    st_file tensors;
    json_doc doc;
    int64_t n = -1, m = -1;

    CHECK_EQ(CONVERT("tests/golden/hd-base", in_root("a.monet")), 0);
    rewrite(in_root("a.monet"), model, bad, sizeof bad / sizeof bad[0], 1);
    CHECK_EQ(EXPORT(model, folder), 0);
    CHECK_HAS(said, "metadata \"config.a\" is left out: byte 1");
    CHECK_HAS(said, "metadata \"config.c\" is left out");
    CHECK_HAS(said, "metadata \"config.\\xFF\" is left out: its key is not UTF-8");
    CHECK_HAS(said, "norm2.num_batches_tracked\" is left out: is no integer");
    CHECK_HAS(said, "torch_dtype \"bfloat16\" as before, but the embedding is \"float32\"");
    CHECK(json_load(&doc, inside(folder, "config.json"), 1 << 20, NULL));
    CHECK(json_get_int(&doc, 0, "vocab_size", 400, 400, &n, NULL));
    CHECK(json_find(&doc, 0, "a") == JSON_NONE && json_find(&doc, 0, "auto_map") == JSON_NONE);
    CHECK(json_find(&doc, json_find(&doc, 0, "e\""), "x") != JSON_NONE);
    CHECK(json_equals(&doc, json_find(&doc, 0, "model_type"), "monet"));
    CHECK(json_equals(&doc, json_find(&doc, 0, "hidden_act"), "relu2"));
    CHECK(hf__has_element(&doc, json_find(&doc, 0, "architectures"), "MonetForCausalLM"));
    json_free(&doc);
    CHECK_STR(text_of(inside(folder, "generation_config.json")), "{\n  \"top_k\": 5\n}\n");
    if (CHECK(st_open_model(&tensors, folder, NULL))) {
        CHECK(st_read_i64(&tensors, st_find(&tensors,
              "model.layers.0.router.norm1.num_batches_tracked"), 0, 1, &n, NULL) && n == 12);
        CHECK(st_read_i64(&tensors, st_find(&tensors,
              "model.layers.0.router.norm2.num_batches_tracked"), 0, 1, &m, NULL) && m == 0);
        st_close(&tensors);
    }
    CHECK_EQ(CONVERT(folder, in_root("b.monet")), 0); /* still a checkpoint, without a tokenizer */
    remove_folder(folder);
    rewrite(in_root("a.monet"), model, twice, 2, 1);
    CHECK_EQ(EXPORT(model, folder), 1);
    CHECK_HAS(said, "\"config.x\" occurs twice");
}

/* A tied checkpoint that stored its head, and numbers that f16 does not hold. */
static void test_tensors(void)
{
    static const monet_metadata notes[] = {
        {"config.model_type", "\"monet\""}, {"checkpoint.lm_head", "stored"}
    };
    const char *folder = in_root("out"), *model = in_root("m.monet");
    st_file tensors;

    CHECK_EQ(CONVERT("tests/golden/vd-gqa-tied-bf16-shards", in_root("a.monet")), 0);
    rewrite(in_root("a.monet"), model, notes, 2, 1);
    CHECK_EQ(EXPORT(model, folder, "--shard-size", "100kB"), 0);
    if (CHECK(st_open_model(&tensors, folder, NULL))) {
        CHECK(st_find(&tensors, "lm_head.weight") != NULL);
        st_close(&tensors);
    }
    if (!CHECK_EQ(CONVERT(folder, in_root("b.monet")), 0)) printf("%s", said);
    rewrite(in_root("a.monet"), model, notes, 2, 1e8f);
    CHECK_EQ(EXPORT(model, folder, "--force", "--dtype", "f16"), 0);
    CHECK_HAS(said, "warning: tensor \"model.embed_tokens.weight\": ");
    CHECK_HAS(said, "values are too large for f16 and become infinite");
    CHECK_HAS(said, "there are more of these");
    remove_folder(folder);
}

/* What training saves is a .monet file with more sections. */
static void test_training(void)
{
    const char *model = in_root("a.monet"), *saved = in_root("m.monet"), *folder = in_root("out");
    monet_trainer_config config;
    monet_trainer *trainer = NULL;
    monet_model *loaded = NULL;
    st_file tensors;
    uint32_t i, n_wide = 0;

    memset(&config, 0, sizeof config);
    config.seq_len = 4;
    CHECK_EQ(CONVERT("tests/golden/vd-gqa-tied-bf16-shards", model), 0);
    CHECK_EQ(monet_model_load(model, NULL, &loaded, NULL), MONET_OK);
    CHECK_EQ(monet_trainer_create(loaded, &config, &trainer, NULL), MONET_OK);
    CHECK_EQ(monet_trainer_save(trainer, saved, NULL, 0, NULL), MONET_OK);
    monet_trainer_free(trainer);
    monet_model_free(loaded);
    CHECK_EQ(EXPORT(saved, folder), 0);
    if (CHECK(st_open_model(&tensors, folder, NULL))) {
        for (i = 0; i < tensors.n_tensors; i++)
            n_wide += tensors.tensors[i].dtype == ST_F32 || tensors.tensors[i].dtype == ST_I64;
        CHECK_EQ(n_wide, tensors.n_tensors);
        st_close(&tensors);
    }
    CHECK_EQ(EXPORT(saved, folder, "--dtype", "bf16", "--force"), 0);
    compare_tensors("tests/golden/vd-gqa-tied-bf16-shards", folder); /* not trained yet */
    remove_folder(folder);
}

/* ---- what goes wrong ------------------------------------------------------------------------- */

static void test_folders(void)
{
    const char *model = in_root("a.monet"), *folder = in_root("out");

    CHECK_EQ(CONVERT("tests/golden/hd-odd-shapes", model), 0);
    CHECK_EQ(EXPORT(model, folder, "--shard-size", "50kB"), 0);
    CHECK(exists(inside(folder, "model-00001-of-00006.safetensors")));
    put_file(inside(folder, "modeling_monet.py"), "code");
    put_file(inside(folder, "chat_template.jinja"), "old");
    CHECK_EQ(EXPORT(model, folder), 1);
    CHECK_HAS(said, "is not empty");
    CHECK_EQ(EXPORT(model, folder, "--force"), 0);
    CHECK(exists(inside(folder, "modeling_monet.py")));
    CHECK(exists(inside(folder, "model.safetensors")));
    CHECK(!exists(inside(folder, "model-00001-of-00006.safetensors")));
    CHECK(!exists(inside(folder, "model.safetensors.index.json")));
    CHECK(!exists(inside(folder, "chat_template.jinja")));
    compare_tensors("tests/golden/hd-odd-shapes", folder);
    remove_folder(folder);
    mkdir(folder, 0777);
    CHECK_EQ(EXPORT("--", model, folder), 0); /* an empty one is fine */
    remove_folder(folder);
    put_file(folder, "a file");
    CHECK_EQ(EXPORT(model, folder, "--force"), 1);
    CHECK_HAS(said, "is a regular file, not a folder");
    unlink(folder);
    CHECK_EQ(EXPORT(model, in_root("none/out")), 1);
    CHECK_HAS(said, "No such file");
    CHECK_EQ(EXPORT(model, folder, "--shard-size", "1"), 0); /* a file for each of 77 tensors */
    remove_folder(folder);
}

static void test_usage(void)
{
    CHECK_EQ(EXPORT("--help"), 0);
    CHECK_EQ(EXPORT("a.monet"), 2);
    CHECK_HAS(said, "needs a .monet file and a folder");
    CHECK_EQ(EXPORT("a", "b", "c"), 2);
    CHECK_EQ(EXPORT("a", "b", "--nonsense"), 2);
    CHECK_HAS(said, "unknown option: --nonsense");
    CHECK_EQ(EXPORT("a", "b", "--dtype"), 2);
    CHECK_EQ(EXPORT("a", "b", "--dtype", "f64"), 2);
    CHECK_EQ(EXPORT("a", "b", "--shard-size", "0"), 2);
    CHECK_EQ(EXPORT("a", "b", "--shard-size", "5TB"), 2);
    CHECK_EQ(EXPORT("a", "b", "--shard-size", "99999999999999GB"), 2);
    CHECK_HAS(said, "needs a size like 5GB or 500MB, not: 99999999999999GB");
    CHECK_EQ(EXPORT(in_root("none.monet"), in_root("out")), 1);
    CHECK_HAS(said, "none.monet");
    CHECK(!exists(in_root("out")));
}

/* Cut files, writes that fail, Ctrl-C, no memory: a message, and no folder. */
static void test_failures(void)
{
    const char *model = in_root("a.monet"), *cut = in_root("cut.monet"), *folder = in_root("out");
    char *data = NULL;
    size_t size = 0, at;
    long n;
    int status = 1;
    FILE *f;

    CHECK_EQ(CONVERT("tests/golden/hd-odd-shapes", model), 0);
    CHECK(tool_read_file(model, 1 << 24, &data, &size, NULL));
    for (at = 0; at < size; at += size / 7 + 1) {
        f = fopen(cut, "wb");
        fwrite(data, 1, at, f);
        fclose(f);
        CHECK_EQ(EXPORT(cut, folder), 1);
        CHECK_HAS(said, "cut.monet");
        CHECK(!exists(folder));
    }
    free(data);
    for (n = 0; n < 200; n += 9) {
        pwrite_stops = n % 2 == 0;
        pwrite_left = n;
        status = EXPORT(model, folder, "--shard-size", "50kB");
        if (pwrite_left >= 0) break; /* there were not so many */
        CHECK_EQ(status, 1);
        CHECK_HAS(said, pwrite_stops ? "interrupted" : "No space left");
        CHECK(!exists(folder));
    }
    CHECK(n > 40);
    pwrite_left = -1;
    CHECK_EQ(status, 0);
    remove_folder(folder);
    for (n = 0, status = 1; status != 0 && n < 2000; n += n < 40 ? 1 : 23) {
        calloc_left = n;
        status = EXPORT(model, folder, "--shard-size", "50kB");
        if (status != 0) CHECK(!exists(folder));
        if (status != 0 && strstr(said, "synced") == NULL) CHECK_HAS(said, "out of memory");
    }
    calloc_left = -1;
    CHECK(n > 40);
    remove_folder(folder);
}

int main(void)
{
    static const char *const left[] = {"a.monet", "b.monet", "m.monet", "t.monet", "u.monet",
                                       "cut.monet"};
    size_t i;

    snprintf(root, sizeof root, "/tmp/test_export.XXXXXX");
    if (mkdtemp(root) == NULL) return 2;
    test_golden("vd-base", "5GB", 1);
    test_golden("hd-base", "100kB", 6);
    test_golden("hd-odd-shapes", "1MB", 1);
    test_golden("hd-released-router-f16", "300000", 6);
    test_golden("vd-gqa-tied-bf16-shards", "1GB", 1);
    test_golden("vd-released-router-bf16", "2MB", 2);
    test_trained();
    test_dtype();
    test_tokenizer("tests/tokenizer/v400.model", "tests/tokenizer/v400.jsonl", "tokenizer.model");
    test_tokenizer("tests/tokenizer/v2048.model", "tests/tokenizer/v2048.jsonl",
                   "tokenizer.model");
    test_tokenizer("tests/tokenizer/v400.tokenizer.json", "tests/tokenizer/v400.jsonl",
                   "tokenizer.json");
    test_tokenizer("tests/tokenizer/v2048-metaspace.tokenizer.json",
                   "tests/tokenizer/v2048-metaspace.jsonl", "tokenizer.json");
    test_own_tokenizers();
    test_template();
    test_metadata();
    test_tensors();
    test_training();
    test_folders();
    test_usage();
    test_failures();
    for (i = 0; i < sizeof left / sizeof left[0]; i++) unlink(in_root(left[i]));
    CHECK_EQ(rmdir(root), 0);
    return test_end("test_export");
}
