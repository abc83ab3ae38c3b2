/* test_quant.c: what q8, q4 and fast mode cost on a trained model, against fixed bars: bits per
   byte, greedy text, routing. And the way back: a quantised model exported to a folder.

   cc -O2 -pthread -I. tests/test_quant.c -o test_quant -lm && ./test_quant

   Run it from the repository's root. `test_quant long` takes all 16,320 tokens of the validation
   text instead of 1,020, and more combinations. Files are made in a temporary folder, which is
   removed at the end.                                                                           */

#define main eval_main
#include "tools/eval.c"
#undef main
#define main convert_main
#include "tools/convert.c"
#undef main
#define main export_main
#include "tools/export.c"
#undef main

#include "test.h"

static const char whole[] = "examples/monet-4m.monet"; /* bf16 */
static const char valid[] = "tests/golden/trained/valid.safetensors";
static char root[64], path[128], folder[128];
static int64_t n_tokens = 1020;
static bool is_long;

/* ---- running the programs -------------------------------------------------------------------- */

/* What the programs print is no part of the test: hide(true), run, hide(false). */
static void hide(bool now)
{
    static int kept[2] = {-1, -1};
    int i, null = now ? open("/dev/null", O_WRONLY) : -1;

    fflush(stdout);
    fflush(stderr);
    for (i = 0; i < 2; i++) {
        if (now) kept[i] = dup(i + 1);
        dup2(now ? null : kept[i], i + 1);
        if (!now) close(kept[i]);
    }
    if (null >= 0) close(null);
}

/* Makes `path` of the model with these options of convert. */
static void quantise(const char *dtype, const char *router)
{
    char words[7][128] = {"convert", "", "", "--dtype", "", "--router", ""};
    char *argv[8];
    int i, status;

    snprintf(words[1], sizeof words[1], "%s", whole);
    snprintf(words[2], sizeof words[2], "%s", path);
    snprintf(words[4], sizeof words[4], "%s", dtype);
    snprintf(words[6], sizeof words[6], "%s", router == NULL ? "" : router);
    for (i = 0; i < 8; i++) argv[i] = i < (router == NULL ? 5 : 7) ? words[i] : NULL;
    hide(true);
    status = convert_main(router == NULL ? 5 : 7, argv);
    hide(false);
    CHECK_EQ(status, 0);
}

/* Scores `model` and the other one on the validation text. NULL: the same model. */
static bool compare_models(evaluation *e, const char *model, const char *other)
{
    const char *files[2];
    tool_error err = {""};
    bool ok;

    files[0] = model;
    files[1] = valid;
    e->set.compare = other;
    e->set.compare_mode = "exact";
    e->set.max_tokens = n_tokens;
    e->set.quiet = true;
    e->set.threads = run_processors();
    hide(true);
    ok = run_files(e, files, 2, &err);
    hide(false);
    if (!CHECK(ok)) printf("    %s\n", err.message);
    return ok;
}

/* ---- quality --------------------------------------------------------------------------------- */

typedef struct bar {
    const char *dtype, *router; /* NULL = as it is */
    monet_mode  mode;
    double      bits;           /* bits per byte may be so many % more */
    double      same, routing;  /* at least so many % of the tokens; of the half-experts */
} bar;

static void show(const bar *b, double bits, double same, double routing)
{
    printf("%s, routers %s, %s: %+.3f %% bits per byte, %.2f %% of the likeliest tokens, %.2f %% "
           "of the half-experts\n", b->dtype == NULL ? "bf16" : b->dtype,
           b->router == NULL ? "bf16" : b->router, b->mode == MONET_FAST ? "fast" : "exact", bits,
           same, routing);
}

/* Against the bf16 model in exact mode. */
static void check_bar(const bar *b)
{
    static evaluation e;
    double bits, same, routing = 100;
    int32_t r;
    int axis;

    memset(&e, 0, sizeof e);
    e.set.way.mode = b->mode;
    if (b->dtype != NULL) quantise(b->dtype, b->router);
    if (!compare_models(&e, b->dtype == NULL ? whole : path, whole)) return;
    bits = 100 * (e.now.nats / e.now.other_nats - 1);
    same = 100 * (double)e.now.same / (double)e.now.tokens;
    for (r = 0; r < e.n_routers; r++)
        for (axis = 0; axis < 2; axis++) {
            const routing_agreement *x = &e.routers[r];
            double part = 100 * (double)x->both[axis] / (double)x->either[axis];
            if (part < routing) routing = part;
        }
    show(b, bits, same, routing);
    CHECK_EQ(e.n_routers, 2);
    CHECK_EQ(e.now.tokens, n_tokens);
    CHECK(bits <= b->bits && bits > -1);
    CHECK(same >= b->same);
    CHECK(routing >= b->routing);
    unlink(path);
}

static void test_quality(void)
{
    enum { N_SHORT = 3 };
    static const bar bars[] = {
        {NULL, NULL, MONET_FAST, 0.3, 96, 98}, {"q8", NULL, MONET_EXACT, 0.2, 97, 98},
        {"q4", NULL, MONET_EXACT, 3, 88, 92},
        {"q8", "q8", MONET_EXACT, 0.2, 97, 98}, {"q8", NULL, MONET_FAST, 0.3, 96, 98},
        {"q8", "q8", MONET_FAST, 0.3, 96, 98}, {"q4", "q8", MONET_EXACT, 3, 88, 92},
        {"q4", NULL, MONET_FAST, 3, 88, 92}, {"q4", "q8", MONET_FAST, 3, 88, 92},
    };
    size_t i, n = is_long ? sizeof bars / sizeof bars[0] : N_SHORT;

    for (i = 0; i < n; i++) check_bar(&bars[i]);
}

/* ---- greedy text ----------------------------------------------------------------------------- */

enum { MAX_DRAWN = 128 };

typedef struct drawn {
    int32_t tokens[MAX_DRAWN];
    int     n;
} drawn;

static bool keep_drawn(void *user, int32_t token, float logprob)
{
    drawn *d = user;

    (void)logprob;
    d->tokens[d->n++] = token;
    return true;
}

static void draw(const monet_model *model, const int32_t *prompt, int32_t n, way how, int threads,
                 drawn *out)
{
    monet_host host;
    monet_session_config config;
    monet_generate_config generate;
    monet_session *session = NULL;

    memset(&host, 0, sizeof host);
    memset(&config, 0, sizeof config);
    memset(&generate, 0, sizeof generate);
    out->n = 0;
    host.n_threads = threads;
    config.host = &host;
    config.mode = how.mode;
    config.kernels = how.kernels;
    generate.max_tokens = 96;
    generate.ignore_eos = true;
    generate.token_fn = keep_drawn;
    generate.user = out;
    if (!CHECK_EQ(monet_session_create(model, &config, &session, NULL), MONET_OK)) return;
    CHECK_EQ(monet_session_eval(session, prompt, (size_t)n), MONET_OK);
    CHECK_EQ(monet_session_generate(session, NULL, &generate, NULL), MONET_OK);
    monet_session_free(session);
}

static bool same_tokens(const drawn *a, const drawn *b)
{
    return a->n == b->n && memcmp(a->tokens, b->tokens, (size_t)a->n * sizeof a->tokens[0]) == 0;
}

/* The prompt that PyTorch continued, and what it wrote: (n) tokens each. */
static int32_t read_tokens(const char *name, int32_t *out, int32_t room)
{
    st_file file;
    const st_tensor *t;
    int64_t wide[MAX_DRAWN];
    int32_t n = 0, i;
    tool_error err = {""};

    if (!CHECK(st_open(&file, "tests/golden/trained/expected.safetensors", &err))) return 0;
    t = st_find(&file, name);
    if (CHECK(t != NULL) && CHECK(t->count <= (uint64_t)room) &&
        CHECK(st_read_i64(&file, t, 0, t->count, wide, &err)))
        n = (int32_t)t->count;
    for (i = 0; i < n; i++) out[i] = (int32_t)wide[i];
    st_close(&file);
    return n;
}

/* PyTorch's greedy tokens in exact and in fast mode; those of q8 and q4 with 1 to 3 threads. */
static void test_greedy(void)
{
    static const char *const dtypes[] = {NULL, "q8", "q4"};
    static drawn expected, found, other;
    const way exact = {MONET_EXACT, MONET_KERNELS_BEST}, fast = {MONET_FAST, MONET_KERNELS_BEST};
    int32_t prompt[MAX_DRAWN], n = read_tokens("greedy.prompt", prompt, MAX_DRAWN);
    int i, threads;

    expected.n = read_tokens("greedy.tokens", expected.tokens, MAX_DRAWN);
    CHECK_EQ(expected.n, 96);
    for (i = 0; i < 3; i++) {
        monet_model *model = NULL;
        if (dtypes[i] != NULL) quantise(dtypes[i], NULL);
        if (!CHECK_EQ(monet_model_load(i == 0 ? whole : path, NULL, &model, NULL), MONET_OK))
            continue;
        draw(model, prompt, n, exact, 1, &found);
        if (i == 0) CHECK(same_tokens(&found, &expected));
        for (threads = 2; threads <= 3; threads++) {
            draw(model, prompt, n, exact, threads, &other);
            CHECK(same_tokens(&found, &other));
        }
        draw(model, prompt, n, fast, 2, &other);
        if (i == 0) CHECK(same_tokens(&other, &expected));
        CHECK_EQ(other.n, 96);
        monet_model_free(model);
    }
    unlink(path);
}

/* ---- export ---------------------------------------------------------------------------------- */

/* Numbers that are not those of the quantised model, rounded to bf16. */
static long wrong_after_export(const monet_tensor *from, const monet_tensor *to)
{
    static float x[4096], y[4096];
    static uint16_t half[4096];
    const bool vector = from->n_dims == 1;
    int64_t r, c, rows = vector ? 1 : from->shape[0], columns = from->shape[vector ? 0 : 1];
    long wrong = 0;

    for (r = 0; r < rows; r++) {
        wrong += monet_tensor_read(from, r, 1, x) != MONET_OK;
        wrong += monet_tensor_read(to, r, 1, y) != MONET_OK;
        monet_convert(half, from->source_dtype, x, MONET_F32, (size_t)columns);
        monet_convert(x, MONET_F32, half, from->source_dtype, (size_t)columns);
        for (c = 0; c < columns; c++) wrong += x[c] < y[c] || x[c] > y[c];
    }
    return wrong;
}

static void compare_exported(const char *again)
{
    monet_model *from = NULL, *to = NULL;
    size_t i;

    if (CHECK_EQ(monet_model_load(path, NULL, &from, NULL), MONET_OK) &&
        CHECK_EQ(monet_model_load(again, NULL, &to, NULL), MONET_OK))
        for (i = 0; i < monet_model_tensor_count(from); i++) {
            const monet_tensor *t = monet_model_tensor(from, i), *u = monet_model_tensor(to, i);
            if (!CHECK_EQ(wrong_after_export(t, u), 0)) printf("    in %s\n", t->name);
            CHECK_EQ(u->dtype, t->n_dims == 1 ? MONET_F32 : MONET_BF16);
        }
    monet_model_free(from);
    monet_model_free(to);
}

static void remove_folder(void)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;

    while (dir != NULL && (entry = readdir(dir)) != NULL)
        if (entry->d_name[0] != '.') unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir != NULL) closedir(dir);
    CHECK(rmdir(folder) == 0);
}

static void test_export(void)
{
    static exporter e;
    tool_error err = {""};
    const dtype_rules as_it_is = {-1, 0, {{NULL, 0, MONET_F32}}};
    char again[160];
    bool ok;

    snprintf(again, sizeof again, "%s/again.monet", root);
    memset(&e, 0, sizeof e);
    e.path = path;
    e.folder = folder;
    e.dtype = -1;
    e.shard_size = UINT64_C(5000000000);
    quantise("q4", NULL);
    hide(true);
    ok = run_export(&e, &err) && convert_checkpoint(folder, again, &as_it_is, &err);
    hide(false);
    if (!CHECK(ok)) printf("    %s\n", err.message);
    CHECK_EQ(e.n_warnings, 1); /* that it is lossy */
    compare_exported(again);
    remove_folder();
    unlink(again);
    unlink(path);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "long") == 0) {
        is_long = true;
        n_tokens = 16320;
    }
    snprintf(root, sizeof root, "/tmp/monet-quant-XXXXXX");
    if (mkdtemp(root) == NULL) return 2;
    snprintf(path, sizeof path, "%s/q.monet", root);
    snprintf(folder, sizeof folder, "%s/hf", root);
    test_quality();
    test_greedy();
    test_export();
    CHECK(rmdir(root) == 0);
    return test_end("test_quant");
}
