/* test_texts.c: labelled texts as windows of tokens.
   cc -O2 -pthread -I. tests/test_texts.c -o test_texts -lm && ./test_texts */
#include "tools/common.h"
#include "tools/json.h"
#include "tools/tokenizer_files.h"

#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"

#include "tools/texts.h"

#include "tiny.h"

static const monet_tokenizer *tokenizer;
static char root[128]; /* folder of the texts */

/* ---- help ------------------------------------------------------------------------------------ */

static void put_file(const char *name, const void *bytes, size_t size)
{
    char path[256];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", root, name);
    f = fopen(path, "wb");
    if (CHECK(f != NULL)) {
        CHECK_EQ(fwrite(bytes, 1, size, f), size);
        CHECK(fclose(f) == 0);
    }
}

static void put_text(const char *name, const char *text) { put_file(name, text, strlen(text)); }

static void drop(const char *name)
{
    char path[256];

    snprintf(path, sizeof path, "%s/%s", root, name);
    CHECK(remove(path) == 0);
}

static bool open_root(texts *t, const char *match, int32_t window, int64_t max, tool_error *err)
{
    static const char *paths[1];
    texts_config config;

    paths[0] = root;
    memset(&config, 0, sizeof config);
    config.paths = paths;
    config.n_paths = 1;
    config.match = match;
    config.window = window;
    config.max_windows = max;
    config.tokenizer = tokenizer;
    return texts_open(t, &config, err);
}

/* All tokens of one file, from windows of any size; checks the numbers of the windows. */
typedef struct stream {
    int32_t *tokens;
    size_t n, capacity, windows;
} stream;

static stream read_stream(const char *match, int32_t window)
{
    stream s = {NULL, 0, 0, 0};
    tool_error err = {{0}};
    text_window w;
    texts t;
    bool last = false;

    if (!CHECK(open_root(&t, match, window, 0, &err))) return puts(err.message), s;
    CHECK_EQ(t.n_files, 1);
    while (CHECK(texts_next(&t, &w, &err)) && w.n > 0) {
        CHECK(!last && w.n <= window && w.n >= 2);
        last = w.n < window; /* only the last one may be shorter */
        CHECK_EQ(w.first, (int64_t)s.n);
        CHECK(w.file == 0 && w.label == 0 && !w.has_score);
        if (!tool_grow(&s.tokens, &s.capacity, s.n + (size_t)w.n, sizeof *s.tokens, &err)) break;
        memcpy(s.tokens + s.n, w.tokens, (size_t)w.n * sizeof *w.tokens);
        s.n += (size_t)w.n;
        s.windows++;
    }
    CHECK_EQ(t.windows, s.windows);
    CHECK_EQ(t.bytes_done, t.bytes);
    texts_close(&t);
    return s;
}

/* What read_stream should give: documents as a list, each encoded by itself. */
static void check_stream(const stream *s, const char *const *documents, const size_t *sizes,
                         size_t n_documents, int32_t window)
{
    static int32_t tokens[8192];
    size_t n = 0, count, k;

    for (k = 0; k < n_documents; k++) {
        size_t size = sizes != NULL ? sizes[k] : strlen(documents[k]);
        CHECK_EQ(monet_tokenizer_encode(tokenizer, documents[k], size,
                                        MONET_ADD_BOS | MONET_ADD_EOS, tokens + n, 8192 - n,
                                        &count), MONET_OK);
        n += count;
    }
    if (n % (size_t)window == 1) n--; /* one token alone is no window */
    if (CHECK_EQ(s->n, n)) CHECK(memcmp(s->tokens, tokens, n * sizeof *tokens) == 0);
}

/* ---- text files ------------------------------------------------------------------------------ */

static void test_documents(void)
{
    static const struct {
        const char *text, *documents[4];
        size_t n;
    } cases[] = {
        {"abc ab", {"abc ab"}, 1},
        {"abc\n\f\nab\n", {"abc\n", "ab\n"}, 2},
        {"\f\nabc\n\f\n\f\nab\n\f", {"abc\n", "ab\n"}, 2}, /* none is empty */
        {"abc\f\nab", {"abc\f\nab"}, 1},                    /* not a line of its own */
        {"abc\n\f ab\n", {"abc\n\f ab\n"}, 1},
        {"a\n\f\nb\n\f\nc\n\f\n", {"a\n", "b\n", "c\n"}, 3},
        {"\xff\xfe \xc3", {"\xff\xfe \xc3"}, 1},            /* any bytes */
        {"\n", {"\n"}, 1},
    };
    static const int32_t windows[] = {2, 3, 7, 1000};
    static const char nul[] = "ab\0c\n\f\n\0";
    static const char *const parts[] = {nul, nul + 7};
    static const size_t sizes[] = {5, 1};
    size_t k, w;
    stream s;

    for (k = 0; k < sizeof cases / sizeof cases[0]; k++)
        for (w = 0; w < 4; w++) {
            put_text("one.txt", cases[k].text);
            s = read_stream("one.txt", windows[w]);
            check_stream(&s, cases[k].documents, NULL, cases[k].n, windows[w]);
            free(s.tokens);
        }
    put_file("one.txt", nul, 8);
    s = read_stream("one.txt", 4);
    check_stream(&s, parts, sizes, 2, 4);
    free(s.tokens);
    put_text("one.txt", "");
    s = read_stream("one.txt", 4);
    CHECK_EQ(s.n, 0);
    free(s.tokens);
    drop("one.txt");
}

/* A document of several pieces gives the tokens that training gets; those around it are whole. */
static void test_long(void)
{
    const size_t size = 2 * CORPUS_PIECE + CORPUS_PIECE / 3;
    char *text = tool_alloc(size + 64, 1, NULL), path[256], data_path[256];
    const char *paths[1];
    volatile sig_atomic_t stop = 0;
    tool_error err = {{0}};
    corpus_config config;
    corpus_files files;
    corpus data;
    stream s;
    size_t k, n = 0;
    bool scored;

    if (!CHECK(text != NULL)) return;
    for (k = 0; k < size; k++) /* long lines, and in the middle none for a whole piece */
        text[k] = k % 5000 == 4999 && (k < size / 4 || k > size * 3 / 4) ? '\n' :
                  (char)('a' + tiny_mix(k) % 26);
    put_file("long.txt", text, size);
    snprintf(path, sizeof path, "%s/long.txt", root);
    snprintf(data_path, sizeof data_path, "%s/data", root);
    paths[0] = path;
    memset(&config, 0, sizeof config);
    config.train = paths;
    config.n_train = 1;
    config.tokenizer = tokenizer;
    config.stop = &stop;
    CHECK(corpus_find(&files, &config, &err) && corpus_build(data_path, &files, &config, &err) &&
          corpus_open(&data, data_path, files.hash, &err));
    s = read_stream("long.txt", 997);
    if (CHECK(s.n + 1 >= data.number[CORPUS_TRAIN] && s.n <= data.number[CORPUS_TRAIN])) {
        while (n < s.n && s.tokens[n] == corpus_token(&data, n, &scored)) n++;
        CHECK_EQ(n, s.n);
    }
    free(s.tokens);
    corpus_close(&data);
    corpus_files_free(&files);
    drop("data");
    drop("long.txt");
    free(text);
}

/* A separator at every place around the end of what is read at once. */
static void test_edges(void)
{
    char *text = tool_alloc(CORPUS_PIECE + 64, 1, NULL);
    tool_error err = {{0}};
    text_window w;
    texts t;
    size_t at, n_bos, n_eos;
    int32_t k;

    if (!CHECK(text != NULL)) return;
    for (at = CORPUS_PIECE - 3; at <= CORPUS_PIECE + 3; at++) {
        memset(text, ' ', CORPUS_PIECE + 64);
        memcpy(text + at, "\n\f\nab", 5);
        put_file("edge.txt", text, at + 5);
        if (!CHECK(open_root(&t, "edge.txt", 65536, 0, &err))) break;
        for (n_bos = n_eos = 0; CHECK(texts_next(&t, &w, &err)) && w.n > 0;)
            for (k = 0; k < w.n; k++) {
                n_bos += w.tokens[k] == 1;
                n_eos += w.tokens[k] == 2;
            }
        CHECK_EQ(n_bos, 2);
        CHECK_EQ(n_eos, 2);
        texts_close(&t);
    }
    drop("edge.txt");
    free(text);
}

/* ---- lines of JSON --------------------------------------------------------------------------- */

static void test_lines(void)
{
    static const char text[] =
        "{\"text\": \"abc\", \"label\": \"x\", \"score\": 0.25}\n"
        "\n  \t\r\n"
        "{\"text\": \"\"}\n"
        "{\"text\": \"a b c a b c\", \"score\": -1}\n"
        "{\"label\": null, \"text\": \"ab\\u0000c\", \"score\": null, \"more\": [1]}\r\n"
        "{\"text\": \"b\", \"label\": \"y\"}";
    static const struct {
        const char *text, *label;
        size_t size;
        double score;
        bool has_score;
    } wanted[] = {
        {"abc", "x", 3, 0.25, true}, {"a b c a b c", "some", 11, -1, true},
        {"ab\0c", "some", 4, 0, false}, {"b", "y", 1, 0, false},
    };
    tool_error err = {{0}};
    text_window w;
    texts t;
    int32_t tokens[64];
    size_t k, count, at;
    uint64_t document = 0;

    put_text("some.more.jsonl", text);
    if (!CHECK(open_root(&t, "*.jsonl", 5, 0, &err))) return;
    CHECK_EQ(t.n_labels, 3);
    CHECK_STR(t.labels[0], "x");
    CHECK_STR(t.labels[1], "some");
    CHECK_STR(t.labels[2], "y");
    CHECK_EQ(t.files[0].label, 1);
    for (k = 0; k < 4; k++) {
        CHECK_EQ(monet_tokenizer_encode(tokenizer, wanted[k].text, wanted[k].size,
                                        MONET_ADD_BOS | MONET_ADD_EOS, tokens, 64, &count),
                 MONET_OK);
        for (at = 0; at + 1 < count; at += (size_t)w.n) {
            if (!CHECK(texts_next(&t, &w, &err)) || !CHECK(w.n > 0)) break;
            CHECK_EQ(w.n, count - at < 5 ? count - at : 5);
            CHECK(memcmp(w.tokens, tokens + at, (size_t)w.n * sizeof *tokens) == 0);
            CHECK_EQ(w.first, (int64_t)at);
            CHECK_STR(t.labels[w.label], wanted[k].label);
            CHECK(w.has_score == wanted[k].has_score && !(w.score < wanted[k].score) &&
                  !(w.score > wanted[k].score));
            CHECK((w.document == document) == (at > 0));
            document = w.document;
        }
    }
    CHECK(texts_next(&t, &w, &err) && w.n == 0);
    texts_close(&t);
    if (CHECK(open_root(&t, "*.jsonl", 5, 1, &err))) CHECK_EQ(t.n_labels, 1); /* reads one line */
    texts_close(&t);
    drop("some.more.jsonl");
}

static void test_bad_lines(void)
{
    static const char *const lines[][2] = {
        {"{\"text\": \"a\"}\n{\"text\": 1}\n", "line 2: \"text\" is 1"},
        {"{\"label\": \"a\"}\n", "line 1: \"text\" is missing"},
        {"[1]\n", "line 1: \"text\" is missing"},
        {"\n{\"text\": \"a\", \"score\": \"b\"}\n", "line 2: \"score\" is"},
        {"{\"text\": \"a\", \"score\": 1e400}\n", "line 1: \"score\" is"},
        {"{\"text\": \"a\", \"label\": \"a\\nb\"}\n", "printable"},
        {"{\"text\": \"a\", \"label\": \"\"}\n", "printable"},
        {"{\"text\": \"a\"\n", "line 1: "},
        {"{\"text\": \"\xff\"}\n", "line 1: "},
        {"{\"text\": \"a\"} x\n", "line 1: "},
    };
    tool_error err;
    texts t;
    size_t k;

    for (k = 0; k < sizeof lines / sizeof lines[0]; k++) {
        put_text("bad.jsonl", lines[k][0]);
        CHECK(!open_root(&t, "bad.jsonl", 8, 0, &err));
        CHECK_HAS(err.message, lines[k][1]);
        CHECK_HAS(err.message, "bad.jsonl: ");
    }
    drop("bad.jsonl");
}

/* ---- passes ---------------------------------------------------------------------------------- */

static void test_folder(void)
{
    tool_error err = {{0}};
    text_window w, all[64];
    int32_t first[64][4];
    texts t;
    size_t n = 0, k;
    uint64_t hash, document = 0;

    put_text("b.valid.txt", "ab ab ab ab");
    put_text("b.train.txt", "abc abc abc abc abc");
    put_text("a.train.txt", "a b c d e f g h");
    put_text("c.jsonl", "{\"text\": \"abc abc\", \"label\": \"a\"}\n");
    if (!CHECK(open_root(&t, NULL, 4, 0, &err))) return;
    CHECK_EQ(t.n_files, 4);
    CHECK_EQ(t.n_labels, 2);
    CHECK_STR(t.labels[0], "a");
    CHECK_STR(t.labels[1], "b");
    CHECK_EQ(t.files[3].label, TEXTS_NO_LABEL);
    hash = t.hash;
    while (n < 64 && texts_next(&t, &all[n], &err) && all[n].n > 0) {
        memcpy(first[n], all[n].tokens, (size_t)all[n].n * sizeof **first);
        n++;
    }
    CHECK(n > 6 && n < 64);
    CHECK(all[n - 1].label == 0 && all[n - 1].file == 3);
    texts_close(&t);
    for (k = 0; k <= n; k++) { /* to go on behind any window */
        if (!CHECK(open_root(&t, NULL, 4, 0, &err) && texts_seek(&t, k, &err))) break;
        CHECK_EQ(t.windows, k);
        CHECK(texts_next(&t, &w, &err));
        CHECK_EQ(w.n, k < n ? all[k].n : 0);
        if (k < n) CHECK(memcmp(w.tokens, first[k], (size_t)w.n * sizeof *w.tokens) == 0);
        if (k < n) CHECK(w.document == all[k].document && w.first == all[k].first);
        texts_close(&t);
    }
    if (CHECK(open_root(&t, NULL, 4, 0, &err))) CHECK(t.hash == hash);
    CHECK(!texts_seek(&t, n + 1, &err));
    texts_close(&t);
    if (CHECK(open_root(&t, NULL, 5, 0, &err))) CHECK(t.hash != hash);
    texts_close(&t);
    if (CHECK(open_root(&t, "*.train.txt", 4, 1, &err))) { /* the same document in another pass */
        CHECK(t.hash != hash && t.n_files == 2);
        CHECK(texts_next(&t, &w, &err) && w.file == 0 && w.document == all[0].document);
        CHECK(texts_next(&t, &w, &err) && w.file == 1 && w.label == 1);
        document = w.document;
        CHECK(texts_next(&t, &w, &err) && w.n == 0);
    }
    texts_close(&t);
    for (k = 0; k < n && all[k].document != document; k++) {}
    CHECK(k < n && all[k].file == 1);
    CHECK(!open_root(&t, "*.none", 4, 0, &err));
    CHECK_HAS(err.message, "holds no file of such a name");
    CHECK(!open_root(&t, NULL, 1, 0, &err));
    drop("a.train.txt"), drop("b.train.txt"), drop("b.valid.txt"), drop("c.jsonl");
}

int main(void)
{
    monet_error why = {{0}, MONET_OK};
    monet_model *model = NULL;
    tiny_options options = {0};
    tiny_file file;

    options.no_weights = 1;
    file = tiny_make(&options);
    snprintf(root, sizeof root, "%s", tiny_path("texts"));
    if (CHECK_EQ(monet_model_load_memory(file.data, file.size, NULL, &model, &why), MONET_OK) &&
        CHECK(mkdir(root, 0700) == 0)) {
        tokenizer = monet_model_tokenizer(model);
        test_documents();
        test_long();
        test_edges();
        test_lines();
        test_bad_lines();
        test_folder();
        CHECK(rmdir(root) == 0);
    }
    monet_model_free(model);
    tiny_drop(&file);
    tiny_clean();
    return test_end("texts");
}
