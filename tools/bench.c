/* bench.c: how fast models run and train here, and which share of what the machine can do that is.
   cc -O2 -pthread -I. tools/bench.c -o bench -lm && ./bench examples/monet-4m.monet

   Every figure stands beside the limit that bounds it, measured right before and right after, on
   as many threads: reading from DRAM for tokens one at a time, arithmetic for prompts and training.
   What is compared with the limit is what the mathematics needs: the bytes or operations of the
   half-experts that the tokens really use, counted from their routing, and of all other weights.
   Several files, kernels, modes, numbers of threads or edits are measured in turn, round after
   round, so that a busy neighbour disturbs all of them alike.

   Order of this file: options, what a token needs, runs, start of a process, rounds, tables, CSV,
   main.                                                                                        */
#include "common.h"

#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"

#include "limits.h"
#include "random_model.h"
#include "run.h"
#include <sys/resource.h>
#include <sys/wait.h>

#define MAX_FILES 16
#define MAX_LIST 8
#define MAX_EDITS 17 /* the plain model is one of them */
#define MAX_FIGURES 1024
#define MAX_REPEATS 100
#define START_PROMPT 128 /* tokens that a fresh process reads before its memory is looked at */
#define TRAIN_BATCH 4
#define TRAIN_LENGTH 256

static volatile sig_atomic_t interrupted;

/* ---- options --------------------------------------------------------------------------------- */

typedef enum edit_kind { EDIT_NONE, EDIT_CAPTURE, EDIT_REMOVE, EDIT_SCALE, EDIT_FORCE } edit_kind;

typedef struct edit_plan { /* what is measured beside the plain model */
    edit_kind kind;
    int32_t   count;       /* experts of each router */
} edit_plan;

typedef struct settings {
    const char *edits_text;
    const char *kernels_text, *mode_text, *threads_text, *prompt_text, *train_text, *decompose_text;
    const char *csv, *shape, *write, *dtype_text, *routers_text;
    int64_t     decode, at, repeats;
    monet_dtype kv;
    bool        quick, no_start, help;

    monet_kernels   kernels[MAX_LIST];
    monet_mode      modes[MAX_LIST];
    monet_decompose decompose[MAX_LIST];
    int32_t         threads[MAX_LIST], prompts[MAX_LIST];
    const random_shape *train[MAX_LIST];
    edit_plan           edits[MAX_EDITS];
    size_t n_edits, n_kernels, n_modes, n_decompose, n_threads, n_prompts, n_train;
} settings;

static const char *const kernels_names[] = {"best", "scalar", "avx2", "avx512", "bf16", "amx",
                                            "neon", "wasm"};
static const char *const mode_names[] = {"exact", "fast"};
static const char *const decompose_names[] = {"vd", "hd"};
static const char *const edit_names[] = {"plain", "capture", "remove", "scale", "force"};
static const char *const dtype_names[] = {"f32", "f16", "bf16", "q8", "q4"};

#define COUNT(list) (sizeof(list) / sizeof *(list))

/* The place of text[0..size-1] among names, or -1. */
static int find_name(const char *const *names, size_t n, const char *text, size_t size)
{
    size_t i;

    for (i = 0; i < n; i++)
        if (strlen(names[i]) == size && memcmp(names[i], text, size) == 0) return (int)i;
    return -1;
}

/* Goes through a list with commas: false at its end. */
static bool next_item(const char **text, const char **item, size_t *size)
{
    if (**text == '\0') return false;
    *item = *text;
    *size = strcspn(*text, ",");
    *text += *size;
    if (**text == ',') ++*text;
    return true;
}

static bool parse_names(const char *option, const char *text, const char *const *names, size_t n,
                        int *out, size_t *count, tool_error *err)
{
    const char *item;
    size_t size, i;
    tool_buffer all = {NULL, 0, 0, false};

    for (*count = 0; *count < MAX_LIST && next_item(&text, &item, &size); ++*count) {
        out[*count] = find_name(names, n, item, size);
        if (out[*count] >= 0) continue;
        for (i = 0; i < n; i++) tool_putf(&all, "%s%s", i > 0 ? ", " : "", names[i]);
        tool_fail(err, "--%s: '%.*s' is none of %s", option, size > 60 ? 60 : (int)size, item,
                  all.data != NULL ? all.data : "its names");
        tool_buffer_free(&all);
        return false;
    }
    if (*count == 0) return tool_fail(err, "--%s: an empty list", option);
    if (*text != '\0') return tool_fail(err, "--%s: more than %d in a list", option, MAX_LIST);
    return true;
}

/* "none" is an empty list. */
static bool parse_numbers(const char *option, const char *text, int32_t least, int32_t most,
                          int32_t *out, size_t *count, tool_error *err)
{
    const char *item;
    size_t size, k;

    *count = 0;
    if (strcmp(text, "none") == 0) return true;
    while (*count < MAX_LIST && next_item(&text, &item, &size)) {
        int64_t value = 0;
        for (k = 0; k < size && item[k] >= '0' && item[k] <= '9' && value <= most; k++)
            value = value * 10 + (item[k] - '0');
        if (size == 0 || k < size || value < least || value > most)
            return tool_fail(err, "--%s: '%.*s' is not a whole number from %d to %d", option,
                             size > 60 ? 60 : (int)size, item, (int)least, (int)most);
        out[(*count)++] = (int32_t)value;
    }
    if (*text != '\0') return tool_fail(err, "--%s: more than %d in a list", option, MAX_LIST);
    return true;
}

static bool parse_train(settings *set, tool_error *err)
{
    const char *text = set->train_text, *item;
    size_t size;

    while (text != NULL && set->n_train < MAX_LIST && next_item(&text, &item, &size)) {
        set->train[set->n_train] = random_find(item, size, err);
        if (set->train[set->n_train++] == NULL) return tool_prefix(err, "--train");
    }
    return true;
}

/* "capture", or "remove:1000" and the like. The plain model is the first of the list. */
static bool parse_edits(settings *set, tool_error *err)
{
    const char *text = set->edits_text, *item;
    size_t size, name, k;

    set->n_edits = 1;
    while (text != NULL && next_item(&text, &item, &size)) {
        edit_plan *plan = &set->edits[set->n_edits];
        int kind;
        if (++set->n_edits > MAX_EDITS)
            return tool_fail(err, "--edits: more than %d in a list", MAX_EDITS - 1);
        for (name = 0; name < size && item[name] != ':'; name++) continue;
        kind = find_name(edit_names, COUNT(edit_names), item, name);
        for (k = name + 1; k < size && item[k] >= '0' && item[k] <= '9' && plan->count < 1 << 26;
             k++)
            plan->count = plan->count * 10 + (item[k] - '0');
        if (kind < EDIT_CAPTURE || (kind == EDIT_CAPTURE ? name < size : plan->count < 1) ||
            (kind != EDIT_CAPTURE && k < size))
            return tool_fail(err, "--edits: '%.*s' is none of capture, remove:N, scale:N, force:N",
                             size > 60 ? 60 : (int)size, item);
        plan->kind = (edit_kind)kind;
    }
    return true;
}

static bool parse_lists(settings *set, tool_error *err)
{
    int found[MAX_LIST], both[] = {MONET_FAST, MONET_EXACT};
    size_t i;

    if (!parse_names("kernels", set->kernels_text, kernels_names, COUNT(kernels_names), found,
                     &set->n_kernels, err))
        return false;
    for (i = 0; i < set->n_kernels; i++) set->kernels[i] = (monet_kernels)found[i];
    if (strcmp(set->mode_text, "both") == 0) {
        memcpy(found, both, sizeof both);
        set->n_modes = 2;
    } else if (!parse_names("mode", set->mode_text, mode_names, 2, found, &set->n_modes, err)) {
        return false;
    }
    for (i = 0; i < set->n_modes; i++) set->modes[i] = (monet_mode)found[i];
    if (!parse_names("decompose", set->decompose_text, decompose_names, 2, found,
                     &set->n_decompose, err))
        return false;
    for (i = 0; i < set->n_decompose; i++) set->decompose[i] = (monet_decompose)found[i];
    return parse_numbers("threads", set->threads_text, 1, LIMITS_THREADS, set->threads,
                         &set->n_threads, err) &&
           (set->n_threads > 0 || tool_fail(err, "--threads: an empty list")) &&
           parse_numbers("prompt", set->prompt_text, 1, 1 << 20, set->prompts, &set->n_prompts,
                         err) &&
           parse_train(set, err) && parse_edits(set, err);
}

/* ---- what a token needs ---------------------------------------------------------------------- */

typedef struct subject {
    const char  *path;           /* NULL: a model in memory, to be trained */
    char         label[32];
    monet_model *model;
    uint64_t     file_size;
    monet_dtype  dtype;          /* of most of its bytes */
    uint64_t     parameters;
    int32_t     *tokens;         /* n_tokens of them */
    double      *share[2];       /* active half-experts of each router, by axis: 0 to 1 */
    double       pairs;          /* experts of a token and layer: non-zeros of P */
    double       active;         /* mean of share */
    double       bytes;          /* that decoding one token reads, without the KV cache */
    double       operations;     /* of one token, without attention and lm_head */
    double       head;           /* operations of lm_head */
    double       load[MAX_REPEATS], first[MAX_REPEATS]; /* seconds since a process started */
    uint64_t     resident, session;
    size_t       n_starts;
} subject;

/* A text of some topics, for models that can read one. */
static const char sample_text[] =
    "The price of a good rises when more people want it than there is of it, and falls when shops "
    "cannot sell what they have. In the cell, energy comes from sugar: a molecule is taken apart "
    "in many small steps, so that little is lost as heat. A function that returns the larger of "
    "two numbers may be written as follows.\n\n"
    "def larger(a, b):\n    if a > b:\n        return a\n    return b\n\n"
    "Planets move on ellipses, with the sun in one focus; the line between them sweeps over equal "
    "areas in equal times. The senate met in the autumn of that year, but the law was not passed "
    "before spring. Ask your doctor before you take two medicines together. What is the "
    "probability that three dice show the same number? There are 216 ways in which they may fall, "
    "and six of these are alike, so it is one in thirty-six. She closed the window, for the rain "
    "had begun again, and went on with her letter.\n";

/* BOS and the text, again and again; random tokens if there is no tokenizer. */
static bool make_tokens(subject *s, size_t n, tool_error *err)
{
    const monet_tokenizer *tokenizer = monet_model_tokenizer(s->model);
    int32_t text[sizeof sample_text];
    uint64_t state = 1, range = (uint64_t)monet_model_arch(s->model)->vocab_size;
    size_t count = 0, k;

    s->tokens = tool_alloc(n, sizeof *s->tokens, err);
    if (s->tokens == NULL) return false;
    if (tokenizer != NULL &&
        monet_tokenizer_encode(tokenizer, sample_text, sizeof sample_text - 1, MONET_ADD_BOS, text,
                               sizeof text / sizeof text[0], &count) != MONET_OK)
        count = 0;
    for (k = 0; k < n; k++)
        s->tokens[k] = count > 0 ? text[k % count] : (int32_t)(random_next(&state) % range);
    return true;
}

static int group_of(const monet_arch *a, const char *name)
{
    int layer = 0;

    if (strncmp(name, "layers.", 7) != 0) return 0;
    for (name += 7; *name >= '0' && *name <= '9' && layer < a->n_layers; name++)
        layer = layer * 10 + (*name - '0');
    return layer / a->moe_groups;
}

/* The share of a tensor that one token uses. Of the two axes of the experts, U and V of vertical
   ones have one each; horizontal ones have U on the first and V on the second.                 */
static double used_share(const subject *s, const char *name)
{
    const monet_arch *a = monet_model_arch(s->model);
    const char *part = strstr(name, ".moe.");
    int group = group_of(a, name);

    if (part == NULL) return 1;
    part += 5;
    if (part[1] == '1' || strncmp(part, "u.", 2) == 0) return s->share[0][group];
    return s->share[1][group];
}

/* Counts bytes and operations of one token over all tensors, once `share` and `pairs` are there. */
static void count_needs(subject *s)
{
    const monet_arch *a = monet_model_arch(s->model);
    double units = a->decompose == MONET_VERTICAL ? 2 * (a->moe_dim / 2.0) : a->moe_dim;
    uint64_t by_dtype[5] = {0};
    size_t k;

    s->operations = 2 * 2 * s->pairs * units * a->n_layers; /* making P, multiplying with it */
    for (k = 0; k < monet_model_tensor_count(s->model); k++) {
        const monet_tensor *t = monet_model_tensor(s->model, k);
        double share = used_share(s, t->name);
        double n = (double)t->shape[0] * (double)(t->n_dims == 1 ? 1 : t->shape[1]);
        bool embedding = strcmp(t->name, "embed_tokens.weight") == 0;
        bool head = embedding ? a->tie_embeddings != 0 : strcmp(t->name, "lm_head.weight") == 0;
        s->parameters += (uint64_t)n;
        if ((unsigned)t->dtype < COUNT(by_dtype)) by_dtype[t->dtype] += t->size;
        if (embedding && !head) {
            s->bytes += (double)t->size / (double)t->shape[0];
            continue;
        }
        s->bytes += (double)t->size * share;
        if (head) s->head = 2 * n;
        else s->operations += 2 * n * share;
    }
    for (k = 0; k < COUNT(by_dtype); k++)
        if (by_dtype[k] > by_dtype[s->dtype]) s->dtype = (monet_dtype)k;
}

static bool alloc_shares(subject *s, tool_error *err)
{
    const monet_arch *a = monet_model_arch(s->model);
    size_t groups = (size_t)run_routers(a);

    s->share[0] = tool_alloc(groups, sizeof(double), err);
    s->share[1] = tool_alloc(groups, sizeof(double), err);
    return s->share[0] != NULL && s->share[1] != NULL;
}

/* Adds the routing of the last eval of `count` tokens. */
static void add_routing(subject *s, const monet_session *session, size_t count)
{
    const monet_arch *a = monet_model_arch(s->model);
    monet_routing r;
    size_t k;
    int layer;

    for (k = 0; k < count; k++)
        for (layer = 0; layer < a->n_layers; layer += a->moe_groups) {
            if (monet_session_routing(session, (int32_t)k, layer, &r) != MONET_OK) continue;
            s->share[0][r.group] += (double)r.n_i / r.n_experts;
            s->share[1][r.group] += (double)r.n_j / r.n_experts;
            s->pairs += (double)monet_routing_experts(&r, 0, NULL, 0);
        }
}

static void finish_shares(subject *s, double count)
{
    const monet_arch *a = monet_model_arch(s->model);
    int groups = run_routers(a), g;

    s->pairs /= count * groups;
    for (g = 0; g < groups; g++) {
        s->share[0][g] /= count;
        s->share[1][g] /= count;
        s->active += (s->share[0][g] + s->share[1][g]) / (2 * groups);
    }
}

/* Runs the first n tokens once and counts the half-experts that they use. */
static bool measure_needs(subject *s, size_t n, int threads, tool_error *err)
{
    monet_session_config config;
    monet_session *session = NULL;
    size_t at, count;
    bool ok = alloc_shares(s, err);

    memset(&config, 0, sizeof config);
    config.context = (int32_t)n;
    config.max_batch = n < 64 ? (int32_t)n : 64;
    config.capture_routing = true;
    config.mode = MONET_FAST;
    ok = ok && (run_open_session(s->model, threads, &config, &session, err) ||
                tool_prefix(err, s->label));
    for (at = 0; ok && at < n && !interrupted; at += count) {
        count = n - at < 64 ? n - at : 64;
        if (monet_session_eval(session, s->tokens + at, count) != MONET_OK)
            ok = tool_fail(err, "%s: %s", s->label, monet_session_error(session)->message);
        if (ok) add_routing(s, session, count);
    }
    monet_session_free(session);
    if (!ok) return false;
    finish_shares(s, (double)n);
    count_needs(s);
    return true;
}

/* What is to be expected: a head takes each half-expert with the probability k/N. */
static bool expect_needs(subject *s, tool_error *err)
{
    const monet_arch *a = monet_model_arch(s->model);
    double share = 1 - pow(1 - (double)a->moe_topk / a->moe_experts, a->moe_heads);
    int groups = run_routers(a), g;

    if (!alloc_shares(s, err)) return false;
    for (g = 0; g < groups; g++) s->share[0][g] = s->share[1][g] = share;
    s->active = share;
    s->pairs = (double)a->moe_topk * a->moe_topk * a->moe_heads;
    count_needs(s);
    return true;
}

static double kv_bytes(const monet_arch *a, monet_dtype kv)
{
    return 2.0 * a->n_layers * (a->dim / a->n_heads * a->n_kv_heads) *
           (double)monet_dtype_size(kv);
}

/* Operations of attention, for each position that a token looks at. */
static double attention(const monet_arch *a)
{
    return 4.0 * a->n_layers * a->dim;
}

/* ---- runs ------------------------------------------------------------------------------------ */

typedef enum task { TASK_PROMPT, TASK_DECODE, TASK_TRAIN } task;

typedef struct figure {
    task          task;
    subject      *s;
    monet_kernels kernels;
    monet_mode    mode;
    edit_plan     edit;
    int           threads;
    int32_t       n;                         /* tokens of a run */
    double        needs;                     /* bytes or operations of a token */
    limit         bound;
    double        speed[MAX_REPEATS];        /* tokens a second */
    double        before[MAX_REPEATS], after[MAX_REPEATS]; /* the limit */
    size_t        n_done;
} figure;

typedef struct bench {
    settings       set;
    const char    *program;
    limits_machine machine;
    subject        subjects[MAX_FILES + 2 * MAX_LIST];
    size_t         n_subjects, n_files;
    figure         figures[MAX_FIGURES];
    size_t         n_figures;
    void          *memory;                   /* of one session at a time, touched before */
    size_t         memory_size;
    double         load;                     /* average of the machine at the start, or -1 */
    double         limits[LIMIT_COUNT];      /* with the most threads, at the start */
    int            streams, max_threads;
} bench;

static monet_session_config session_config(const bench *b, const figure *f, monet_host *host)
{
    monet_session_config config;

    memset(&config, 0, sizeof config);
    memset(host, 0, sizeof *host);
    host->n_threads = f->threads;
    config.host = host;
    config.context = f->task == TASK_DECODE ? (int32_t)b->set.at + f->n : f->n;
    config.kv_dtype = b->set.kv;
    config.kernels = f->kernels;
    config.mode = f->mode;
    config.capture_routing = f->edit.kind == EDIT_CAPTURE;
    if (config.capture_routing) config.max_batch = config.context; /* all of a prompt is kept */
    return config;
}

/* Experts spread over all of a router's, others for each router. NULL where nothing is edited. */
static bool make_edit(const figure *f, monet_edit **edit, tool_error *err)
{
    const monet_arch *a = monet_model_arch(f->s->model);
    const int64_t all = (int64_t)a->moe_experts * a->moe_experts;
    const int routers = run_routers(a);
    monet_error why = {{0}, MONET_OK};
    monet_result result;
    int r;

    *edit = NULL;
    if (f->edit.kind <= EDIT_CAPTURE) return true;
    if (f->edit.count > all)
        return tool_fail(err, "%s: has %lld experts a layer, not %d", f->s->label, (long long)all,
                         (int)f->edit.count);
    result = monet_edit_create(f->s->model, "bench", edit, &why);
    for (r = 0; r < routers; r++) {
        int64_t k;
        for (k = 0; result == MONET_OK && k < f->edit.count; k++) {
            const int64_t id = (k * 7919 + r) % all; /* a prime: N is no multiple of it */
            const int32_t i = (int32_t)(id / a->moe_experts), j = (int32_t)(id % a->moe_experts);
            if (f->edit.kind == EDIT_FORCE)
                result = monet_edit_force(*edit, MONET_ROUTER(r), i, j, 0.1f, &why);
            else
                result = monet_edit_scale(*edit, MONET_ROUTER(r), i, j,
                                          f->edit.kind == EDIT_SCALE ? 0.5f : 0, &why);
        }
    }
    if (result == MONET_OK) return true;
    return tool_fail(err, "%s: %s", f->s->label, why.message);
}

/* "monet-4m", or "monet-4m remove:1000". */
static const char *figure_name(const figure *f, char out[64])
{
    if (f->edit.kind == EDIT_NONE) snprintf(out, 64, "%s", f->s->label);
    else if (f->edit.kind == EDIT_CAPTURE) snprintf(out, 64, "%s capture", f->s->label);
    else snprintf(out, 64, "%s %s:%d", f->s->label, edit_names[f->edit.kind], (int)f->edit.count);
    return out;
}

static bool eval_tokens(const figure *f, monet_session *session, size_t at, size_t n,
                        tool_error *err)
{
    if (monet_session_eval(session, f->s->tokens + at, n) == MONET_OK) return true;
    return tool_fail(err, "%s: %s", f->s->label, monet_session_error(session)->message);
}

/* The tokens are given, not drawn: all files and modes do the same work. Returns seconds, or -1. */
static double time_session(bench *b, const figure *f, monet_session *session, double *before,
                           tool_error *err)
{
    size_t warm = f->task == TASK_DECODE ? (size_t)b->set.at : f->n < 16 ? (size_t)f->n : 16, k;
    double start;

    if (!eval_tokens(f, session, 0, warm, err)) return -1;
    if (f->task == TASK_PROMPT && monet_session_rewind(session, 0) != MONET_OK) return -1;
    *before = limits_measure(&b->machine, f->bound, f->threads);
    start = tool_seconds();
    if (f->task == TASK_PROMPT)
        return eval_tokens(f, session, 0, (size_t)f->n, err) ? tool_seconds() - start : -1;
    for (k = 0; k < (size_t)f->n; k++)
        if (interrupted || !eval_tokens(f, session, warm + k, 1, err)) return -1;
    return tool_seconds() - start;
}

static double run_session(bench *b, const figure *f, double *before, tool_error *err)
{
    monet_error why = {{0}, MONET_OK};
    monet_host host;
    monet_session_config config = session_config(b, f, &host);
    monet_session *session = NULL;
    monet_edit *edit = NULL;
    double seconds = -1;

    config.memory = b->memory;
    config.memory_size = b->memory_size;
    if (monet_session_create(f->s->model, &config, &session, &why) != MONET_OK) {
        tool_fail(err, "%s: %s", f->s->label, why.message);
        return -1;
    }
    if (make_edit(f, &edit, err) && monet_session_set_edit(session, edit) == MONET_OK)
        seconds = time_session(b, f, session, before, err);
    monet_session_free(session);
    monet_edit_free(edit);
    return seconds;
}

static bool train_step(monet_trainer *trainer, const int32_t *tokens, const int32_t *targets)
{
    return monet_trainer_forward(trainer, tokens, targets, NULL) == MONET_OK &&
           monet_trainer_backward(trainer) == MONET_OK &&
           monet_trainer_update(trainer, 5e-4f, NULL) == MONET_OK;
}

/* One step to warm up, then `steps`: f->n tokens in all. */
static double time_training(bench *b, const figure *f, monet_trainer *trainer, double *before,
                            tool_error *err)
{
    const int32_t *tokens = f->s->tokens, *targets = f->s->tokens + 1;
    int steps = f->n / (TRAIN_BATCH * TRAIN_LENGTH), k;
    double start = 0;

    for (k = 0; k <= steps; k++) {
        if (k == 1) {
            *before = limits_measure(&b->machine, f->bound, f->threads);
            start = tool_seconds();
        }
        if (interrupted) return -1;
        if (train_step(trainer, tokens, targets)) continue;
        tool_fail(err, "%s: %s", f->s->label, monet_trainer_error(trainer)->message);
        return -1;
    }
    return tool_seconds() - start;
}

static double run_training(bench *b, const figure *f, double *before, tool_error *err)
{
    monet_error why = {{0}, MONET_OK};
    monet_trainer_config config;
    monet_trainer *trainer = NULL;
    monet_host host;
    double seconds;

    memset(&config, 0, sizeof config);
    memset(&host, 0, sizeof host);
    host.n_threads = f->threads;
    config.host = &host;
    config.kernels = f->kernels;
    config.batch_size = TRAIN_BATCH;
    config.seq_len = TRAIN_LENGTH;
    config.weight_decay = 0.1f;
    config.grad_clip = 1;
    config.uniformity = config.ambiguity = 1e-3f;
    if (monet_trainer_create(f->s->model, &config, &trainer, &why) != MONET_OK) {
        tool_fail(err, "%s: %s", f->s->label, why.message);
        return -1;
    }
    seconds = time_training(b, f, trainer, before, err);
    monet_trainer_free(trainer);
    return seconds;
}

/* The arithmetic that may bound a prompt. Fast mode rounds activations to what the kernels take,
   where that is faster than f32; exact mode and training are f32 throughout.                   */
static limit arithmetic(const bench *b, const figure *f)
{
    const char *name = monet_kernels_name(f->kernels);
    bool eight = f->s->dtype == MONET_Q8 || f->s->dtype == MONET_Q4;
    limit found = LIMIT_F32;

    if (f->task == TASK_TRAIN || f->mode == MONET_EXACT) return LIMIT_F32;
    if (strstr(name, "amx") != NULL) found = eight ? LIMIT_AMX_INT8 : LIMIT_AMX_BF16;
    else if (strstr(name, "bf16") != NULL) found = eight ? LIMIT_INT8 : LIMIT_BF16;
    return b->limits[found] > b->limits[LIMIT_F32] ? found : LIMIT_F32;
}

static void set_needs(const bench *b, figure *f)
{
    const subject *s = f->s;
    const monet_arch *a = monet_model_arch(s->model);
    double positions = (double)b->set.at + (f->n + 1) / 2.0; /* in the cache, on average */

    f->bound = f->task == TASK_DECODE ? LIMIT_READ : arithmetic(b, f);
    if (f->task == TASK_DECODE)
        f->needs = s->bytes + kv_bytes(a, b->set.kv) * positions;
    else if (f->task == TASK_PROMPT)
        f->needs = s->operations + attention(a) * (f->n + 1) / 2 + s->head / f->n;
    else /* forward once, backward twice: for the inputs and for the weights */
        f->needs = 3 * (s->operations + attention(a) * (TRAIN_LENGTH + 1) / 2 + s->head);
}

/* One run, with the limit around it. */
static bool run_figure(bench *b, figure *f, tool_error *err)
{
    double before = 0, seconds;

    seconds = f->task == TASK_TRAIN ? run_training(b, f, &before, err) :
              run_session(b, f, &before, err);
    if (seconds < 0) return false;
    f->before[f->n_done] = before;
    f->after[f->n_done] = limits_measure(&b->machine, f->bound, f->threads);
    f->speed[f->n_done++] = f->n / (seconds > 1e-9 ? seconds : 1e-9);
    return true;
}

/* ---- start of a process ----------------------------------------------------------------------
   The program runs itself: `bench --start-child NANOSECONDS FILE KERNELS MODE THREADS TOKENS` is a
   process that loads the file, answers a prompt of one token, maybe reads and generates on, and
   writes how long that took since the time it was given, and its memory.                       */

typedef struct start_result {
    double   load, first;         /* seconds */
    uint64_t resident, session;   /* bytes; 0 without further tokens */
} start_result;

/* The most that this process ever had in memory. Linux carries ru_maxrss over from the parent. */
static uint64_t peak_memory(void)
{
    char line[128];
    unsigned long long kilobytes = 0;
    struct rusage usage;
    FILE *file = fopen("/proc/self/status", "r");

    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "VmHWM: %llu", &kilobytes) == 1) break;
    if (file != NULL) fclose(file);
    if (kilobytes > 0) return (uint64_t)kilobytes * 1024;
    if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#ifdef __APPLE__
    return (uint64_t)usage.ru_maxrss;
#else
    return (uint64_t)usage.ru_maxrss * 1024;
#endif
}

/* Reads a prompt and decodes, so that everything a user's process touches is touched. */
static bool child_tokens(subject *s, monet_session *session, size_t n)
{
    size_t room = (size_t)monet_session_context(session), k, prompt = START_PROMPT;

    if (prompt + n > room) prompt = room / 2, n = room / 2;
    if (!make_tokens(s, prompt + n, NULL)) return false;
    if (monet_session_rewind(session, 0) != MONET_OK ||
        monet_session_eval(session, s->tokens, prompt) != MONET_OK)
        return false;
    for (k = 0; k < n; k++)
        if (monet_session_eval(session, s->tokens + prompt + k, 1) != MONET_OK) return false;
    return true;
}

static int start_child(char **argv)
{
    double since = 1e-9 * (double)strtoll(argv[2], NULL, 10);
    size_t n = (size_t)strtol(argv[6], NULL, 10), size = 0;
    subject s;
    start_result out;
    monet_session *session = NULL;
    monet_session_config config;
    monet_host host;
    int32_t token = 1;

    memset(&s, 0, sizeof s);
    memset(&out, 0, sizeof out);
    memset(&config, 0, sizeof config);
    memset(&host, 0, sizeof host);
    host.n_threads = (int)strtol(argv[5], NULL, 10);
    config.host = &host;
    config.kernels = (monet_kernels)(argv[4][0] - 'a');
    config.mode = (monet_mode)(argv[4][1] - 'a');
    if (!run_load(argv[3], &s.model, NULL)) return 1;
    out.load = tool_seconds() - since;
    if (monet_session_create(s.model, &config, &session, NULL) != MONET_OK) return 1;
    if (token >= monet_model_arch(s.model)->vocab_size) token = 0;
    if (monet_session_eval(session, &token, 1) != MONET_OK) return 1;
    out.first = tool_seconds() - since;
    if (n > 0) {
        if (!child_tokens(&s, session, n)) return 1;
        out.resident = peak_memory();
        if (monet_session_size(s.model, &config, &size) == MONET_OK) out.session = size;
    }
    return write(1, &out, sizeof out) == (ssize_t)sizeof out ? 0 : 1;
}

/* In the forked child: the time is taken as late as possible. */
static void exec_self(const char *program, const char *path, const char *how, const char *threads,
                      const char *n, int out)
{
    struct timespec now = {0, 0};
    char time_text[32];
    char *argv[8];
    const char *self = access("/proc/self/exe", X_OK) == 0 ? "/proc/self/exe" : program;
    const char *words[7];
    size_t k;

    words[0] = program, words[1] = "--start-child", words[2] = time_text, words[3] = path;
    words[4] = how, words[5] = threads, words[6] = n;
    for (k = 0; k < 7; k++) memcpy(&argv[k], &words[k], sizeof argv[k]); /* execvp lacks const */
    argv[7] = NULL;
    dup2(out, 1);
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(time_text, sizeof time_text, "%lld",
             (long long)now.tv_sec * 1000000000 + (long long)now.tv_nsec);
    execvp(self, argv);
    _exit(127);
}

static bool read_result(int fd, start_result *out)
{
    size_t done = 0;
    ssize_t got;

    while (done < sizeof *out) {
        got = read(fd, (char *)out + done, sizeof *out - done);
        if (got < 0 && errno == EINTR && !interrupted) continue;
        if (got <= 0) return false;
        done += (size_t)got;
    }
    return true;
}

/* Starts a process with the first kernels and mode and the most threads; n > 0: it generates. */
static bool run_start(bench *b, subject *s, int64_t n, tool_error *err)
{
    char how[3] = {0}, threads[16], tokens[32];
    start_result result;
    int ends[2], status = 0;
    pid_t child;
    bool ok;

    how[0] = (char)('a' + (int)b->set.kernels[0]);
    how[1] = (char)('a' + (int)b->set.modes[0]);
    snprintf(threads, sizeof threads, "%d", b->max_threads);
    snprintf(tokens, sizeof tokens, "%lld", (long long)n);
    if (pipe(ends) != 0) return tool_fail(err, "no pipe: %s", strerror(errno));
    fflush(stdout);
    child = fork();
    if (child == 0) {
        close(ends[0]);
        exec_self(b->program, s->path, how, threads, tokens, ends[1]);
    }
    close(ends[1]);
    ok = child > 0 && read_result(ends[0], &result);
    close(ends[0]);
    if (child > 0) waitpid(child, &status, 0);
    if (!ok) return tool_fail(err, "%s: a process of its own failed to run it", s->label);
    s->load[s->n_starts] = result.load;
    s->first[s->n_starts++] = result.first;
    if (result.resident > s->resident) s->resident = result.resident;
    if (n > 0) s->session = result.session;
    return true;
}

/* ---- rounds ---------------------------------------------------------------------------------- */

static bool add_figure(bench *b, const figure *f, tool_error *err)
{
    if (b->n_figures == MAX_FIGURES)
        return tool_fail(err, "more than %d figures are asked for", MAX_FIGURES);
    b->figures[b->n_figures] = *f;
    set_needs(b, &b->figures[b->n_figures++]);
    return true;
}

/* The figure for each file in turn, or for each model to be trained. */
static bool add_for_subjects(bench *b, figure f, tool_error *err)
{
    size_t first = f.task == TASK_TRAIN ? b->n_files : 0;
    size_t last = f.task == TASK_TRAIN ? b->n_subjects : b->n_files, k, e;

    for (k = first; k < last; k++)
        for (e = 0; e < (f.task == TASK_TRAIN ? 1 : b->set.n_edits); e++) {
            f.s = &b->subjects[k];
            f.edit = b->set.edits[e];
            if (!add_figure(b, &f, err)) return false;
        }
    return true;
}

/* Training knows no modes, and is measured in the first one's place. */
static bool add_tasks(bench *b, figure f, bool first_mode, tool_error *err)
{
    size_t k;

    f.task = TASK_PROMPT;
    for (k = 0; k < b->set.n_prompts; k++) {
        f.n = b->set.prompts[k];
        if (!add_for_subjects(b, f, err)) return false;
    }
    f.task = TASK_DECODE;
    f.n = (int32_t)b->set.decode;
    if (f.n > 0 && !add_for_subjects(b, f, err)) return false;
    f.task = TASK_TRAIN;
    f.mode = MONET_EXACT;
    f.n = (b->set.quick ? 1 : 3) * TRAIN_BATCH * TRAIN_LENGTH;
    return !first_mode || add_for_subjects(b, f, err);
}

/* Kernels that give the same here are measured once. */
static bool is_repeated(const bench *b, size_t which)
{
    const char *name = monet_kernels_name(b->set.kernels[which]);
    size_t k;

    for (k = 0; k < which; k++)
        if (strcmp(monet_kernels_name(b->set.kernels[k]), name) == 0) return true;
    return false;
}

static bool plan_figures(bench *b, tool_error *err)
{
    size_t k, m, t;
    figure f;

    memset(&f, 0, sizeof f);
    for (k = 0; k < b->set.n_kernels; k++) {
        f.kernels = b->set.kernels[k];
        if (is_repeated(b, k)) {
            printf("note        kernels %s are %s here, measured once\n",
                   kernels_names[f.kernels], monet_kernels_name(f.kernels));
            continue;
        }
        for (m = 0; m < b->set.n_modes; m++)
            for (t = 0; t < b->set.n_threads; t++) {
                f.mode = b->set.modes[m];
                f.threads = b->set.threads[t];
                if (!add_tasks(b, f, m == 0, err)) return false;
            }
    }
    return true;
}

/* One block for all sessions, its pages there before anything is timed. */
static bool make_memory(bench *b, tool_error *err)
{
    monet_host host;
    void *memory = NULL;
    size_t k, size;

    for (k = 0; k < b->n_figures; k++) {
        const figure *f = &b->figures[k];
        monet_session_config config = session_config(b, f, &host);
        if (f->task == TASK_TRAIN) continue;
        if (monet_session_size(f->s->model, &config, &size) != MONET_OK)
            return tool_fail(err, "%s: no session of %d positions", f->s->label,
                             (int)config.context);
        if (size > b->memory_size) b->memory_size = size;
    }
    if (b->memory_size == 0) return true;
    if (posix_memalign(&memory, 64, b->memory_size) != 0)
        return tool_fail(err, "no memory for a session");
    b->memory = memory;
    memset(memory, 1, b->memory_size);
    return true;
}

static const char *task_name(const bench *b, const figure *f, char out[32])
{
    if (f->task == TASK_PROMPT) snprintf(out, 32, "prompt %d", (int)f->n);
    else if (f->task == TASK_DECODE)
        snprintf(out, 32, "decode %d at %d", (int)f->n, (int)b->set.at);
    else snprintf(out, 32, "training");
    return out;
}

static const char *mode_name(const figure *f)
{
    return f->task == TASK_TRAIN ? "f32" : mode_names[f->mode];
}

static bool run_round(bench *b, size_t round, tool_error *err)
{
    char name[32], who[64];
    size_t k;

    for (k = 0; k < b->n_files && !b->set.no_start && !interrupted; k++)
        if (!run_start(b, &b->subjects[k], round == 0 ? b->set.decode : 0, err))
            return interrupted != 0;
    for (k = 0; k < b->n_figures && !interrupted; k++) {
        figure *f = &b->figures[k];
        if (!run_figure(b, f, err)) return interrupted != 0;
        fprintf(stderr, "round %d of %d: %s, %s, %s, %d threads, %s: %.1f tokens/s\n",
                (int)round + 1, (int)b->set.repeats, figure_name(f, who),
                monet_kernels_name(f->kernels), mode_name(f), f->threads, task_name(b, f, name),
                f->speed[f->n_done - 1]);
    }
    return true;
}

/* ---- tables ---------------------------------------------------------------------------------- */

static int compare_doubles(const void *a, const void *b)
{
    double x, y;

    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x < y ? -1 : x > y;
}

static double median(const double *values, size_t n)
{
    double sorted[MAX_REPEATS];

    if (n == 0) return 0;
    memcpy(sorted, values, n * sizeof *values);
    tool_sort(sorted, n, sizeof *sorted, compare_doubles);
    return (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
}

static double least(const double *values, size_t n)
{
    double found = n > 0 ? values[0] : 0;
    size_t k;

    for (k = 1; k < n; k++)
        if (values[k] < found) found = values[k];
    return found;
}

static size_t best_run(const figure *f)
{
    size_t best = 0, k;

    for (k = 1; k < f->n_done; k++)
        if (f->speed[k] > f->speed[best]) best = k;
    return best;
}

/* The limit around the best run, the share of it that the run reached, and whether it moved by more
   than 15 % while the run went on.                                                             */
static double limit_of(const figure *f, double *share, bool *moved)
{
    size_t k = best_run(f);
    double before = f->before[k], after = f->after[k], mean = (before + after) / 2;

    *share = mean > 0 ? f->speed[k] * f->needs / mean : 0;
    *moved = before > 1.15 * after || after > 1.15 * before;
    return mean;
}

/* Speed against that of the plain model, or of the first file, in the same circumstances; 0 if
   there is none.                                                                               */
static double ratio_to_first(const bench *b, const figure *f)
{
    const subject *first = f->edit.kind == EDIT_NONE ? &b->subjects[0] : f->s;
    size_t k;

    for (k = 0; k < b->n_figures; k++) {
        const figure *g = &b->figures[k];
        if (g->s != first || g->edit.kind != EDIT_NONE || g->task != f->task) continue;
        if (f->task == TASK_TRAIN || (g->s == f->s && f->edit.kind == EDIT_NONE)) continue;
        if (g->kernels == f->kernels && g->mode == f->mode && g->threads == f->threads &&
            g->n == f->n && g->n_done > 0)
            return f->speed[best_run(f)] / g->speed[best_run(g)];
    }
    return 0;
}

static void print_figure(const bench *b, const figure *f)
{
    char name[32], who[64], ratio[16] = "";
    double share, times = ratio_to_first(b, f), bound;
    bool moved;

    if (f->n_done == 0) return;
    bound = limit_of(f, &share, &moved);
    if (times > 0) snprintf(ratio, sizeof ratio, "  %.2fx", times);
    printf("%-20.40s %-8.8s %-5s %4d  %-16s %9.1f %9.1f %8.4f %-5s %8.1f %-8s %4.0f %%%s%s\n",
           figure_name(f, who), monet_kernels_name(f->kernels), mode_name(f), f->threads,
           task_name(b, f, name), f->speed[best_run(f)], median(f->speed, f->n_done),
           f->needs / 1e9, f->bound == LIMIT_READ ? "GB" : "GFLOP", bound / 1e9,
           limit_names[f->bound], 100 * share, moved ? " ~" : "", ratio);
}

static void print_figures(const bench *b)
{
    bool any_moved = false, any_above = false, moved;
    double share;
    size_t k;

    printf("\n%-20s %-8s %-5s %4s  %-16s %9s %9s %14s %17s %6s%s\n", "model", "kernels", "mode",
           "thr.", "task", "best", "median", "a token needs", "limit, G/s", "share",
           b->set.n_edits > 1 ? "  to plain" : b->n_files > 1 ? "  to first" : "");
    for (k = 0; k < b->n_figures; k++) {
        print_figure(b, &b->figures[k]);
        if (b->figures[k].n_done == 0) continue;
        limit_of(&b->figures[k], &share, &moved);
        any_moved = any_moved || moved;
        any_above = any_above || share > 1.05;
    }
    printf("best and median are tokens a second; share is that of the best run.\n");
    if (any_above)
        printf("Above 100 %%: weights that fit into a cache are not read from DRAM, or the limit "
               "was disturbed.\n");
    if (any_moved)
        printf("~  the limit moved by more than 15 %% meanwhile: the machine is busy, the figure "
               "doubtful.\n");
}

static void print_scaling(const bench *b)
{
    char name[32], who[64];
    size_t k, i;

    for (k = 0; k < b->n_figures; k++)
        for (i = 0; i < b->n_figures; i++) {
            const figure *f = &b->figures[k], *g = &b->figures[i];
            if (f->threads != 1 || g->threads == 1 || f->s != g->s || f->task != g->task ||
                f->kernels != g->kernels || f->mode != g->mode || f->n != g->n ||
                f->edit.kind != g->edit.kind || f->edit.count != g->edit.count)
                continue;
            if (f->n_done == 0 || g->n_done == 0) continue;
            printf("scaling     %s, %s, %s, %s: %.2fx with %d threads\n", figure_name(f, who),
                   monet_kernels_name(f->kernels), mode_name(f), task_name(b, f, name),
                   g->speed[best_run(g)] / f->speed[best_run(f)], g->threads);
        }
}

static void print_start(const subject *s)
{
    char a[TOOL_HUMAN], c[TOOL_HUMAN], d[TOOL_HUMAN];
    double together = (double)(s->file_size + s->session);

    if (s->n_starts == 0) return;
    printf("start       %s: loaded after %.1f ms, first answer after %.1f ms (median %.1f)\n",
           s->label, 1e3 * least(s->load, s->n_starts), 1e3 * least(s->first, s->n_starts),
           1e3 * median(s->first, s->n_starts));
    if (s->resident > 0)
        printf("memory      %s: %s resident; file %s and session of the whole context %s: %.0f %% "
               "of both\n", s->label, tool_human(a, s->resident), tool_human(c, s->file_size),
               tool_human(d, s->session), 100 * (double)s->resident / together);
}

/* Name of the processor as the system has it; "" if it does not say. */
static void processor_name(char *out, size_t size)
{
    char line[256];
    const char *colon;
    FILE *file = fopen("/proc/cpuinfo", "r");

    *out = '\0';
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "model name", 10) != 0 || (colon = strchr(line, ':')) == NULL) continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(out, size, "%.100s", colon + 1 + strspn(colon + 1, " "));
        break;
    }
    if (file != NULL) fclose(file);
}

static void print_machine(const bench *b)
{
    char name[128];
    int k;

    processor_name(name, sizeof name);
    printf("processor   %s, %d processors, best kernels: %s\n", *name ? name : "(no name)",
           (int)run_processors(), monet_kernels_name(MONET_KERNELS_BEST));
    printf("limits      %d threads: read %.1f GB/s (%d streams each)", b->max_threads,
           b->limits[LIMIT_READ] / 1e9, b->streams);
    for (k = LIMIT_F32; k < LIMIT_COUNT; k++)
        if (b->machine.has[k])
            printf(", %s%s%s%s %.0f", limit_names[k], k == LIMIT_F32 ? " (" : "",
                   k == LIMIT_F32 ? b->machine.f32_name : "", k == LIMIT_F32 ? ")" : "",
                   b->limits[k] / 1e9);
    printf(" GFLOP/s\n");
    if (b->load >= 0) printf("load        %.2f", b->load);
    if (b->load > 0.3)
        printf(": the machine is busy, so figures are lower than they could be");
    if (b->load >= 0) printf("\n");
}

static void print_subject(const subject *s)
{
    const monet_arch *a = monet_model_arch(s->model);
    char size[TOOL_HUMAN];

    printf("model       %s: %s, %.1f M numbers, mostly %s%s%s; active half-experts %.1f %%%s, "
           "%.0f experts a token and layer\n", s->label,
           a->decompose == MONET_VERTICAL ? "vertical" : "horizontal",
           (double)s->parameters / 1e6, dtype_names[s->dtype], s->path != NULL ? ", " : "",
           s->path != NULL ? tool_human(size, s->file_size) : "", 100 * s->active,
           s->path != NULL ? "" : " expected", s->pairs);
}

/* ---- CSV ------------------------------------------------------------------------------------- */

static void csv_figure(tool_buffer *csv, const bench *b, const figure *f)
{
    static const char *const tasks[] = {"prompt", "decode", "training"};
    size_t best = best_run(f);
    const char *name;
    char who[64];
    double share;
    bool moved;

    if (f->n_done == 0) return;
    limit_of(f, &share, &moved);
    name = figure_name(f, who);
    tool_put_csv(csv, name, strlen(name));
    tool_putf(csv, ",%s,%s,%s,%d,%s,%d,%d", dtype_names[f->s->dtype],
              monet_kernels_name(f->kernels), mode_name(f), f->threads, tasks[f->task], (int)f->n,
              f->task == TASK_DECODE ? (int)b->set.at : 0);
    tool_putf(csv, ",%.6g,%.6g,tokens/s,%.6g,%s,%.6g,%.6g,%.4f,%d\n", f->speed[best],
              median(f->speed, f->n_done), f->needs, limit_names[f->bound], f->before[best],
              f->after[best], share, moved);
}

static void csv_start(tool_buffer *csv, const bench *b, const subject *s)
{
    static const char *const tasks[] = {"load", "first", "resident", "file", "session"};
    double best[5], middle[5];
    size_t k;

    best[0] = least(s->load, s->n_starts), middle[0] = median(s->load, s->n_starts);
    best[1] = least(s->first, s->n_starts), middle[1] = median(s->first, s->n_starts);
    best[2] = middle[2] = (double)s->resident;
    best[3] = middle[3] = (double)s->file_size;
    best[4] = middle[4] = (double)s->session;
    for (k = 0; k < 5 && s->n_starts > 0; k++) {
        tool_put_csv(csv, s->label, strlen(s->label));
        tool_putf(csv, ",%s,%s,%s,%d,%s,0,0,%.9g,%.9g,%s,,,,,,\n", dtype_names[s->dtype],
                  monet_kernels_name(b->set.kernels[0]), mode_names[b->set.modes[0]],
                  b->max_threads, tasks[k], best[k], middle[k], k < 2 ? "seconds" : "bytes");
    }
}

static bool write_csv(const bench *b, tool_error *err)
{
    static const char header[] = "model,dtype,kernels,mode,threads,task,tokens,at,best,median,unit,"
                                 "needs,limit,before,after,share,moved\n";
    tool_buffer csv = {NULL, 0, 0, false};
    size_t k;
    bool ok;

    tool_put(&csv, header, sizeof header - 1);
    for (k = 0; k < b->n_figures; k++) csv_figure(&csv, b, &b->figures[k]);
    for (k = 0; k < b->n_files; k++) csv_start(&csv, b, &b->subjects[k]);
    ok = tool_write_file(b->set.csv, &csv, err);
    tool_buffer_free(&csv);
    return ok;
}

/* ---- main ------------------------------------------------------------------------------------ */

/* "folder/name.monet" is called "name". */
static void make_label(subject *s)
{
    const char *name = tool_base_name(s->path);
    size_t size = strlen(name);

    if (size > 6 && strcmp(name + size - 6, ".monet") == 0) size -= 6;
    snprintf(s->label, sizeof s->label, "%.*s", size > 31 ? 31 : (int)size, name);
}

static bool open_file(bench *b, const char *path, tool_error *err)
{
    subject *s = &b->subjects[b->n_subjects++];
    struct stat status;
    size_t n = b->set.decode > 0 ? (size_t)(b->set.at + b->set.decode) : 1, k;

    b->n_files = b->n_subjects;
    s->path = path;
    make_label(s);
    if (!run_load(path, &s->model, err)) return false;
    if (stat(path, &status) == 0) s->file_size = (uint64_t)status.st_size;
    for (k = 0; k < b->set.n_prompts; k++)
        if ((size_t)b->set.prompts[k] > n) n = (size_t)b->set.prompts[k];
    if (!make_tokens(s, n, err)) return false;
    return measure_needs(s, n < 192 ? n : 192, b->max_threads, err);
}

static bool open_training(bench *b, const random_shape *shape, monet_decompose decompose,
                          tool_error *err)
{
    subject *s = &b->subjects[b->n_subjects++];
    monet_arch arch = random_arch(shape, decompose);
    monet_writer_config content;
    monet_error why = {{0}, MONET_OK};

    memset(&content, 0, sizeof content);
    content.arch = &arch;
    snprintf(s->label, sizeof s->label, "%s %s", shape->name, decompose_names[decompose]);
    if (monet_model_create(&content, 1, NULL, &s->model, &why) != MONET_OK)
        return tool_fail(err, "%s: %s", s->label, why.message);
    return make_tokens(s, TRAIN_BATCH * TRAIN_LENGTH + 1, err) && expect_needs(s, err);
}

static bool open_subjects(bench *b, const char **files, size_t n_files, tool_error *err)
{
    size_t k, d;

    for (k = 0; k < n_files && !interrupted; k++)
        if (!open_file(b, files[k], err)) return false;
    for (k = 0; k < b->set.n_train && !interrupted; k++)
        for (d = 0; d < b->set.n_decompose; d++)
            if (!open_training(b, b->set.train[k], b->set.decompose[d], err)) return false;
    return true;
}

static bool measure_machine(bench *b, tool_error *err)
{
    size_t k;

    if (!limits_open(&b->machine, b->set.quick ? 10 : 25, err)) return false;
    for (k = 0; k < LIMIT_COUNT; k++)
        b->limits[k] = limits_measure(&b->machine, (limit)k, b->max_threads);
    b->streams = b->machine.streams;
    print_machine(b);
    for (k = 0; k < b->n_subjects; k++) print_subject(&b->subjects[k]);
    return true;
}

static bool run_bench(bench *b, const char **files, size_t n_files, tool_error *err)
{
    double load[1];
    int64_t round;
    size_t k;
    bool ok;

    for (k = 0; k < b->set.n_threads; k++)
        if (b->set.threads[k] > b->max_threads) b->max_threads = b->set.threads[k];
    b->load = getloadavg(load, 1) == 1 ? load[0] : -1;
    ok = open_subjects(b, files, n_files, err) && !interrupted && measure_machine(b, err) &&
         plan_figures(b, err) && make_memory(b, err);
    fflush(stdout);
    for (round = 0; ok && round < b->set.repeats && !interrupted; round++)
        ok = run_round(b, (size_t)round, err);
    if (b->n_figures > 0) print_figures(b);
    print_scaling(b);
    for (k = 0; k < b->n_files; k++) print_start(&b->subjects[k]);
    if (b->set.csv != NULL && ok) ok = write_csv(b, err);
    if (ok && (ferror(stdout) || fflush(stdout) != 0))
        ok = tool_fail(err, "cannot write the table: %s", strerror(errno));
    if (interrupted) printf("interrupted: this is what was measured so far\n");
    return ok;
}

static void close_bench(bench *b)
{
    size_t k;

    for (k = 0; k < b->n_subjects; k++) {
        monet_model_free(b->subjects[k].model);
        free(b->subjects[k].tokens);
        free(b->subjects[k].share[0]);
        free(b->subjects[k].share[1]);
    }
    free(b->memory);
    limits_close(&b->machine);
}

static bool write_model(const settings *set, tool_error *err)
{
    const random_shape *shape = random_find(set->shape, strlen(set->shape), err);
    int dtype = find_name(dtype_names, COUNT(dtype_names), set->dtype_text,
                          strlen(set->dtype_text));
    const char *routers_text = set->routers_text != NULL ? set->routers_text : set->dtype_text;
    int routers = find_name(dtype_names, COUNT(dtype_names), routers_text, strlen(routers_text));
    monet_arch arch;

    if (shape == NULL) return tool_prefix(err, "--shape");
    if (dtype < 0 || routers < 0)
        return tool_fail(err, "--%s: '%.60s' is not f32, f16, bf16, q8 or q4",
                         dtype < 0 ? "dtype" : "routers",
                         dtype < 0 ? set->dtype_text : routers_text);
    arch = random_arch(shape, set->decompose[0]);
    return random_write(set->write, &arch, (monet_dtype)dtype, (monet_dtype)routers, &interrupted,
                        err);
}

/* The first Ctrl-C ends the measurement after the run at hand, the second one at once. */
static void on_interrupt(int number)
{
    interrupted = 1;
    signal(number, SIG_DFL);
}

static void print_help(const run_option *options, size_t n)
{
    printf("usage: bench MODEL.monet... [options]\n"
           "       bench --train small [options]\n"
           "       bench --shape 1.4b --dtype bf16 --write FILE.monet\n\n"
           "Measures prompts, decoding, the start of a process and its memory, and training, each\n"
           "beside the limit of this machine. Several files are measured in turn, for example\n"
           "one model in bf16 and in q8. The last form writes a model with random weights, for\n"
           "those who have no released one; it computes as much as a real one does.\n\n");
    run_print_options(options, n);
    printf("\nAn unpinned program on a busy machine can be several times slower: look at the load\n"
           "and at the limits before believing a figure. Ctrl-C prints what is there so far.\n");
}

/* What an option left alone means; --quick means less. */
static void set_defaults(settings *set)
{
    static char threads[16];

    snprintf(threads, sizeof threads, "%d", run_processors() < 2 ? 1 : 2);
    if (set->threads_text == NULL) set->threads_text = threads;
    if (set->prompt_text == NULL) set->prompt_text = set->quick ? "128" : "128,512";
    if (set->decode < 0) set->decode = set->quick ? 16 : 64;
    if (set->repeats == 0) set->repeats = set->quick ? 1 : 3;
}

static bool check_use(const settings *set, size_t n_files, tool_error *err)
{
    if ((set->write != NULL) != (set->shape != NULL))
        return tool_fail(err, "--shape and --write belong together: which model, and where to");
    if (set->write != NULL && (n_files > 0 || set->n_train > 0))
        return tool_fail(err, "--write only writes: measure in a second call");
    if (set->write == NULL && n_files == 0 && set->n_train == 0)
        return tool_fail(err, "needs a model, or --train (--help says more)");
    return true;
}

static int run_program(bench *b, const char **files, size_t n_files)
{
    tool_error err = {{0}};
    bool ok;

    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    ok = b->set.write != NULL ? write_model(&b->set, &err) : run_bench(b, files, n_files, &err);
    close_bench(b);
    if (interrupted) return 130;
    if (!ok) fprintf(stderr, "bench: %s\n", err.message);
    return ok ? 0 : 1;
}

int main(int argc, char **argv)
{
    static const char *files[MAX_FILES];
    static bench b;
    static char long_threads[] = "--threads";
    tool_error err = {{0}};
    size_t n_files = 0;
    settings *set = &b.set;
    int k;
    const run_option options[] = {
        {"threads", RUN_TEXT, (void *)&set->threads_text, 0, 0, "LIST",
         "numbers of threads, e.g. 1,2 to see the scaling (default: 2); also -t"},
        {"kernels", RUN_TEXT, (void *)&set->kernels_text, 0, 0, "LIST",
         "best, scalar, avx2, avx512, bf16, amx, neon, wasm (default: best)"},
        {"mode", RUN_TEXT, (void *)&set->mode_text, 0, 0, "MODE",
         "exact, fast or both (default: fast)"},
        {"prompt", RUN_TEXT, (void *)&set->prompt_text, 0, 0, "LIST",
         "lengths of prompts, or none (default: 128,512)"},
        {"decode", RUN_WHOLE, &set->decode, 0, 1 << 20, "N",
         "tokens one at a time, 0 = none (default: 64)"},
        {"at", RUN_WHOLE, &set->at, 1, 1 << 20, "N", "tokens before them (default: 128)"},
        {"kv", RUN_DTYPE, &set->kv, 0, 0, "TYPE", "KV cache in f32, f16 or bf16 (default: f32)"},
        {"train", RUN_TEXT, (void *)&set->train_text, 0, 0, "LIST",
         "train small, mini, nano, ...: 4 sequences of 256 tokens a step"},
        {"decompose", RUN_TEXT, (void *)&set->decompose_text, 0, 0, "LIST",
         "vd, hd for --train and --shape (default: vd)"},
        {"edits", RUN_TEXT, (void *)&set->edits_text, 0, 0, "LIST",
         "also with routing kept, or N experts edited: capture, remove:N, scale:N, force:N"},
        {"no-start", RUN_FLAG, &set->no_start, 0, 0, NULL, "do not measure starts and memory"},
        {"repeats", RUN_WHOLE, &set->repeats, 1, MAX_REPEATS, "N", "rounds (default: 3)"},
        {"quick", RUN_FLAG, &set->quick, 0, 0, NULL, "one round, short prompt, 16 tokens"},
        {"csv", RUN_TEXT, (void *)&set->csv, 0, 0, "FILE", "also write the figures there"},
        {"shape", RUN_TEXT, (void *)&set->shape, 0, 0, "NAME",
         "850m, 1.4b, 4.1b, small, mini or nano: a random model for --write"},
        {"dtype", RUN_TEXT, (void *)&set->dtype_text, 0, 0, "TYPE",
         "of its weights: f32, f16, bf16, q8, q4 (default: bf16)"},
        {"routers", RUN_TEXT, (void *)&set->routers_text, 0, 0, "TYPE",
         "of its routers (default: as --dtype)"},
        {"write", RUN_TEXT, (void *)&set->write, 0, 0, "FILE", "where it goes; measures nothing"},
        {"help", RUN_FLAG, &set->help, 0, 0, NULL, "this text"},
    };

    if (argc == 7 && strcmp(argv[1], "--start-child") == 0) return start_child(argv);
    b.program = argv[0];
    set->kernels_text = "best", set->mode_text = "fast", set->decompose_text = "vd";
    set->dtype_text = "bf16", set->decode = -1, set->at = 128;
    for (k = 1; k < argc; k++)
        if (strcmp(argv[k], "-t") == 0) argv[k] = long_threads;
    if (run_parse(options, COUNT(options), argc, argv, files, MAX_FILES, &n_files, &err)) {
        set_defaults(set);
        if (set->help) {
            print_help(options, COUNT(options));
            return 0;
        }
        if (parse_lists(set, &err) && check_use(set, n_files, &err))
            return run_program(&b, files, n_files);
    }
    fprintf(stderr, "bench: %s\n", err.message);
    return 2;
}
