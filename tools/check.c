/* check.c: does a converted model compute what the published PyTorch model computes?
   cc -O2 -pthread -I. tools/check.c -o check -lm
   ./check MODEL.monet EXPECTED.safetensors [EXPECTED.json] [--dump OUT.safetensors]
   ./check --tokenizer MODEL.monet FILE.jsonl

   EXPECTED.safetensors holds any of these arrays (B sequences of T tokens; R routers):

     tokens (B,T)  logits (B,T,V)  hidden (L+1,B,T,C)  g1, g2 (R,B,T,H,N)  loss (1)
     greedy.prompt, greedy.tokens: a prompt and what follows it greedily, end of text ignored
     train.tokens (steps,B,T): one batch a step, where token t+1 is the target of token t
     grad.TENSOR: gradient of the first step, before clipping
     train.losses (steps,3), train.grad_norms (steps): cross entropy, uniformity, ambiguity; norm of
     the gradient before clipping
     train.after_one.TENSOR, train.after_all.TENSOR: after the first forward pass; at the end
     edit.NAME.logits (B,T,V): logits of the model with the edit NAME of EXPECTED.json

   TENSOR is a name of the checkpoint. hidden[0] are the embeddings, hidden[l] is the output of
   layer l, hidden[L] comes after the final norm. To make such a file from a checkpoint, with the
   published model's code in PyTorch (which has none for training):

     import torch
     from safetensors.torch import save_file
     from transformers import AutoModelForCausalLM, AutoTokenizer
     name = "MonetLLM/monet-vd-850M-100BT-hf"
     t = AutoTokenizer.from_pretrained(name)
     m = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True,
             torch_dtype=torch.float32, attn_implementation="eager").eval()
     texts = ["The price of bread rises when the harvest was bad, and", "local function add(a, b)"]
     rows = [t(x * 9).input_ids[:32] for x in texts]          # <s> first, 32 tokens each
     x = torch.tensor(rows)
     with torch.no_grad():
         o = m(x, labels=x, output_hidden_states=True, output_router_probs=True)
         ids = x[:1, :8]
         for _ in range(48):
             ids = torch.cat((ids, m(ids).logits[:, -1:].argmax(-1)), 1)
     g = [p for p in o.router_probs if p is not None]         # None: layers without a router
     e = {"tokens": x.int(), "logits": o.logits, "hidden": torch.stack(o.hidden_states),
          "g1": torch.stack([p[0] for p in g]), "g2": torch.stack([p[1] for p in g]),
          "loss": o.loss[None],
          "greedy.prompt": ids[0, :8].int(), "greedy.tokens": ids[0, 8:].int()}
     save_file({k: v.contiguous() for k, v in e.items()}, "expected.safetensors")

   and the lines for --tokenizer, where ids are without <s>:

     import json
     for x in texts:
         ids = t(x, add_special_tokens=False).input_ids
         back = t.decode(ids, clean_up_tokenization_spaces=False)
         print(json.dumps({"text_hex": x.encode().hex(), "ids": ids,
                           "decoded_hex": back.encode().hex()}))

   EXPECTED.json may say "greedy_smallest_margin" (between the two largest logits) and
   "smallest_routing_margin" (from a normalised router logit to its cut): where a difference shows
   up, they tell whether rounding can explain it. Arrays of training need its "train": {"lambda" of
   both routing losses, "epsilon_in_log", "lr", "beta1", "beta2", "eps", "weight_decay",
   "clip_global_norm"}. Arrays of edits need its "edits", where a router is a number from 0 and an
   expert is i*N + j; they apply to all layers of the router, and P is the pair matrix:

     "edits": {NAME: {ROUTER: {"scale": {EXPERT: factor}, "force": {EXPERT: amount}}}}
     P[i,j] = factor * (sum over h of g1[h,i] * g2[h,j]) + amount       if not given: 1 and 0

   With --dump, an edit need not have an array: what monet.h computes is written all the same.

   Exit status: 0 all within tolerance, 1 not, 2 wrong options or files.                        */
#include "common.h"
#include "safetensors.h"

#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"

#include "hf_names.h"
#include "run.h"

#define BATCH 64             /* tokens a call: their logits and routing are kept */
#define MAX_DIFFERENCES 5    /* shown of a tokenizer file */
#define ROUTING_NOISE 2e-5   /* how far float32 rounding moves a normalised router logit */

enum { LOGITS, HIDDEN, G1, G2, LOSS, N_ARRAYS };
enum { PASSED = 0, FAILED = 1, BROKEN = 2 }; /* exit status */

/* An array of the file and what the model computes in its place. */
typedef struct array {
    const char      *name;
    const st_tensor *expected; /* NULL = not in the file */
    float           *found;
} array;

/* What training makes of a tensor: an array of the file that belongs to one of ours. */
enum { GRAD, AFTER_ONE, AFTER_ALL, N_MOMENTS };
static const char *const moments[N_MOMENTS] = {"grad.", "train.after_one.", "train.after_all."};

typedef struct trained {
    array   a;
    int     moment;
    size_t  tensor; /* of the model ... */
    int32_t source; /* ... and which of the checkpoint's that it is made of */
} trained;

typedef struct edited {
    array     a;     /* edit.NAME.logits */
    st_tensor as;    /* what it is in the file, or would be */
    char     *name;  /* of the array */
    uint32_t  value; /* the edit itself, in EXPECTED.json */
} edited;

/* A list of tokens of the file. */
typedef struct tokens {
    const char      *name;
    const st_tensor *expected;
    int32_t         *ids;
    uint64_t         count;
} tokens;

typedef struct training {
    bool                 given;      /* EXPECTED.json says how to train */
    monet_trainer_config config;
    double               rate, scored; /* scored: targets of the first step */
    tokens               input;
    int32_t             *targets;    /* of one step */
    int64_t              steps, B, T;
    array                losses, norms;
    trained             *list;
    size_t               n, capacity;
    monet_trainer       *trainer;
} training;

typedef struct settings {
    const char   *dump;
    int64_t       threads;
    monet_dtype   kv;
    monet_mode    mode;
    monet_kernels kernels;
    bool          tokenizer, help;
} settings;

typedef struct check {
    settings          set;
    const monet_arch *arch;
    monet_session    *session;
    st_file           file;
    json_doc          json;             /* EXPECTED.json */
    array             arrays[N_ARRAYS];
    edited           *edits;
    size_t            n_edits;
    tokens            input, prompt, greedy;
    int32_t          *drawn;            /* (greedy.count) */
    double            drawn_margin;     /* of the two largest logits at the first difference */
    int64_t           B, T, R, row;     /* row: the sequence that is being evaluated */
    double            nats;             /* of all sequences */
    float            *logits;           /* (B,T,V) where keep_logits puts them; NULL = nowhere */
    double            greedy_margin, routing_margin; /* of EXPECTED.json; < 0 = unknown */
    training          train;
    int               width;            /* of the first column */
    bool              failed;
} check;

/* ---- the expected file ----------------------------------------------------------------------- */

static bool expect_shape(const st_tensor *t, int32_t n_dims, const int64_t *shape, tool_error *err)
{
    char found[ST_SHAPE], expected[ST_SHAPE], quoted[TOOL_QUOTE];

    st_shape(found, t->n_dims, t->shape);
    st_shape(expected, n_dims, shape);
    if (strcmp(found, expected) == 0) return true;
    return tool_fail(err, "array %s: shape is %s, expected %s by this model and \"tokens\"",
                     tool_quote(quoted, t->name, t->name_size), found, expected);
}

static bool open_array(check *c, int which, const char *name, int32_t n_dims, const int64_t *shape,
                       tool_error *err)
{
    array *a = &c->arrays[which];

    a->name = name;
    a->expected = st_find(&c->file, name);
    if (a->expected == NULL) return true;
    if (c->input.count == 0)
        return tool_fail(err, "array %s is there, but \"tokens\", its input, is not", name);
    if (!expect_shape(a->expected, n_dims, shape, err)) return false;
    a->found = tool_alloc(a->expected->count, sizeof *a->found, err);
    return a->found != NULL;
}

static bool open_arrays(check *c, tool_error *err)
{
    const monet_arch *a = c->arch;
    const int64_t B = c->B, T = c->T;
    const int64_t logits[] = {B, T, a->vocab_size}, hidden[] = {a->n_layers + 1, B, T, a->dim};
    const int64_t gates[] = {c->R, B, T, a->moe_heads, a->moe_experts}, loss[] = {1};

    return open_array(c, LOGITS, "logits", 3, logits, err) &&
           open_array(c, HIDDEN, "hidden", 4, hidden, err) &&
           open_array(c, G1, "g1", 5, gates, err) && open_array(c, G2, "g2", 5, gates, err) &&
           open_array(c, LOSS, "loss", 1, loss, err);
}

/* Reads an integer array whose values have to be tokens of the model; it may be absent. */
static bool open_tokens(const check *c, tokens *list, const char *name, int32_t n_dims,
                        tool_error *err)
{
    int64_t *wide;
    uint64_t k;
    char shape[ST_SHAPE];
    const st_tensor *t = st_find(&c->file, name);
    bool ok;

    list->name = name;
    list->expected = t;
    if (t == NULL) return true;
    if (t->n_dims != n_dims || t->count == 0)
        return tool_fail(err, "array %s: shape is %s, expected %s, nothing 0", name,
                         st_shape(shape, t->n_dims, t->shape), n_dims == 1 ? "(T)" :
                         n_dims == 2 ? "(B,T)" : "(steps,B,T)");
    wide = tool_alloc(t->count, sizeof *wide, err);
    list->ids = tool_alloc(t->count, sizeof *list->ids, err);
    ok = wide != NULL && list->ids != NULL && st_read_i64(&c->file, t, 0, t->count, wide, err);
    for (k = 0; ok && k < t->count; k++) {
        if (wide[k] < 0 || wide[k] >= c->arch->vocab_size)
            ok = tool_fail(err, "array %s: value %lld at %llu, expected 0 to %d", name,
                           (long long)wide[k], (unsigned long long)k,
                           (int)c->arch->vocab_size - 1);
        list->ids[k] = (int32_t)wide[k];
    }
    list->count = t->count;
    free(wide);
    return ok;
}

static bool open_expected(check *c, const char *path, tool_error *err)
{
    bool ok;

    if (!st_open(&c->file, path, err)) return false;
    c->R = run_routers(c->arch);
    ok = open_tokens(c, &c->input, "tokens", 2, err);
    if (ok && c->input.count > 0) {
        c->B = c->input.expected->shape[0];
        c->T = c->input.expected->shape[1];
    }
    ok = ok && open_arrays(c, err) && open_tokens(c, &c->prompt, "greedy.prompt", 1, err) &&
         open_tokens(c, &c->greedy, "greedy.tokens", 1, err);
    if (ok && c->greedy.count > 0 && c->prompt.count == 0)
        ok = tool_fail(err, "greedy.tokens is there, but greedy.prompt, its input, is not");
    if (ok && c->arrays[LOSS].expected != NULL && c->T < 2)
        ok = tool_fail(err, "array loss: needs sequences of at least 2 tokens, tokens has %lld",
                       (long long)c->T);
    return ok || tool_prefix(err, path);
}

/* How to train: "train" of EXPECTED.json. */
static bool open_training_settings(training *t, const json_doc *doc, tool_error *err)
{
    uint32_t from = json_find(doc, 0, "train");
    monet_trainer_config *to = &t->config;
    double momentum = 0.1, values[7] = {0}; /* 0 = as monet.h has it */
    static const char *const keys[7] = {"beta1", "beta2", "eps", "weight_decay",
                                        "clip_global_norm", "lambda", "epsilon_in_log"};
    float *const fields[7] = {&to->beta1, &to->beta2, &to->eps, &to->weight_decay,
                              &to->grad_clip, &to->uniformity, &to->uniformity_eps};
    int k;

    if (json_is_null(doc, from)) return true;
    for (k = 0; k < 7; k++) {
        if (!json_get_double(doc, from, keys[k], 0, 1e9, &values[k], err)) return false;
        *fields[k] = (float)values[k];
    }
    to->ambiguity = to->uniformity;
    if (!json_get_double(doc, from, "lr", 0, 1e9, &t->rate, err) ||
        !json_get_double(doc, from, "momentum", 0, 1, &momentum, err))
        return false;
    if (momentum != 0.1)
        return tool_fail(err, "\"momentum\" of the statistics is %g, monet.h has 0.1", momentum);
    t->given = true;
    return true;
}

static bool open_settings(check *c, const char *path, tool_error *err)
{
    const json_doc *doc = &c->json;

    c->greedy_margin = c->routing_margin = -1;
    if (path == NULL) return true;
    if (!json_load(&c->json, path, 1 << 26, err)) return false;
    json_double(doc, json_find(doc, 0, "greedy_smallest_margin"), &c->greedy_margin);
    json_double(doc, json_find(doc, 0, "smallest_routing_margin"), &c->routing_margin);
    return open_training_settings(&c->train, doc, err) || tool_prefix(err, path);
}

/* ---- the expected file: edits ---------------------------------------------------------------- */

/* A key that is a whole number below `limit`; one number has one way to be written. */
static bool read_key(const json_doc *doc, uint32_t key, int64_t limit, int64_t *out)
{
    size_t size = 0, k;
    const char *digits = json_string(doc, key, &size);

    if (size == 0 || size > 18 || (digits[0] == '0' && size > 1)) return false;
    for (*out = 0, k = 0; k < size; k++) {
        if (digits[k] < '0' || digits[k] > '9') return false;
        *out = *out * 10 + (digits[k] - '0');
    }
    return *out < limit;
}

/* "scale" or "force" of a router. */
static bool apply_numbers(const check *c, int32_t router, uint32_t key, uint32_t numbers,
                          monet_edit *edit, tool_error *err)
{
    const int64_t N = c->arch->moe_experts;
    const bool force = json_equals(&c->json, key, "force");
    json_each it = json_begin(&c->json, numbers);
    monet_error why = {{0}, MONET_OK};
    monet_result result;
    char shown[TOOL_QUOTE];
    double x = 0;
    int64_t id = 0;

    if (!force && !json_equals(&c->json, key, "scale"))
        return tool_fail(err, "%s is neither \"scale\" nor \"force\"",
                         json_show(&c->json, key, shown));
    if (!it.object)
        return tool_fail(err, "%s is not an object", force ? "\"force\"" : "\"scale\"");
    while (json_step(&c->json, &it)) {
        if (!read_key(&c->json, it.key, N * N, &id))
            return tool_fail(err, "%s is no expert, they go from 0 to %lld",
                             json_show(&c->json, it.key, shown), (long long)(N * N - 1));
        if (!json_double(&c->json, it.value, &x) || fabs(x) > (double)FLT_MAX)
            return tool_fail(err, "expert %lld: %s is %s, needs a number that fits f32",
                             (long long)id, force ? "its amount" : "its factor",
                             json_show(&c->json, it.value, shown));
        result = (force ? monet_edit_force : monet_edit_scale)(
            edit, MONET_ROUTER(router), (int32_t)(id / N), (int32_t)(id % N), (float)x, &why);
        if (result != MONET_OK) return tool_fail(err, "%s", why.message);
    }
    return true;
}

static bool apply_router(const check *c, uint32_t key, uint32_t value, monet_edit *edit,
                         tool_error *err)
{
    json_each it = json_begin(&c->json, value);
    char shown[TOOL_QUOTE];
    int64_t router = 0;

    if (!read_key(&c->json, key, c->R, &router))
        return tool_fail(err, "%s is no router, they go from 0 to %lld",
                         json_show(&c->json, key, shown), (long long)c->R - 1);
    if (!it.object) return tool_fail(err, "router %lld: needs an object", (long long)router);
    while (json_step(&c->json, &it))
        if (!apply_numbers(c, (int32_t)router, it.key, it.value, edit, err)) {
            snprintf(shown, sizeof shown, "router %lld", (long long)router);
            return tool_prefix(err, shown);
        }
    return true;
}

/* Makes an edit of EXPECTED.json. */
static bool make_edit(const check *c, const monet_model *model, const edited *e, monet_edit **out,
                      tool_error *err)
{
    json_each it = json_begin(&c->json, e->value);
    monet_error why = {{0}, MONET_OK};
    bool ok = it.object || tool_fail(err, "needs an object");

    *out = NULL;
    if (ok && monet_edit_create(model, "expected", out, &why) != MONET_OK)
        ok = tool_fail(err, "%s", why.message);
    while (ok && json_step(&c->json, &it)) ok = apply_router(c, it.key, it.value, *out, err);
    return ok;
}

/* The name of its array in quotes, for messages. */
static const char *quote_edit(const edited *e, char out[TOOL_QUOTE])
{
    return tool_quote(out, e->name, strlen(e->name));
}

static bool open_edit(check *c, edited *e, uint32_t key, tool_error *err)
{
    const int64_t shape[] = {c->B, c->T, c->arch->vocab_size};
    char quoted[TOOL_QUOTE];
    size_t size = 0;
    const char *name = json_string(&c->json, key, &size);
    tool_buffer array_name = {NULL, 0, 0, false};

    tool_put(&array_name, "edit.", 5);
    tool_put(&array_name, name, size);
    tool_put(&array_name, ".logits", 8); /* with its NUL */
    if (array_name.failed) return tool_fail(err, "out of memory");
    e->name = array_name.data;
    if (memchr(name, '\0', size) != NULL)
        return tool_fail(err, "the name of an edit, \"%s\", has a byte 0x00",
                         tool_quote(quoted, name, size));
    e->a.name = e->as.name = e->name;
    e->a.expected = st_find(&c->file, e->name);
    if (e->a.expected == NULL && c->set.dump == NULL)
        return tool_fail(err, "array %s is not in the file, but EXPECTED.json has its edit",
                         quote_edit(e, quoted));
    if (c->input.count == 0)
        return tool_fail(err, "there are edits, but no \"tokens\", their input");
    if (e->a.expected != NULL && !expect_shape(e->a.expected, 3, shape, err)) return false;
    e->as.n_dims = 3;
    memcpy(e->as.shape, shape, sizeof shape);
    if (!tool_mul(c->input.count, (uint64_t)shape[2], &e->as.count)) e->as.count = UINT64_MAX;
    e->a.found = tool_alloc(e->as.count, sizeof *e->a.found, err);
    return e->a.found != NULL;
}

static bool is_edit(const st_tensor *t)
{
    static const char start[] = "edit.", end[] = ".logits";
    const size_t n = sizeof start - 1, m = sizeof end - 1;

    return t->name_size >= n + m && memcmp(t->name, start, n) == 0 &&
           memcmp(t->name + t->name_size - m, end, m) == 0;
}

/* Each array of an edit needs that edit. */
static bool check_has_edits(const check *c, tool_error *err)
{
    bool *has = tool_alloc(c->file.n_tensors, sizeof *has, err), ok = has != NULL;
    char quoted[TOOL_QUOTE];
    uint32_t k;
    size_t i;

    for (i = 0; ok && i < c->n_edits; i++)
        if (c->edits[i].a.expected != NULL) has[c->edits[i].a.expected - c->file.tensors] = true;
    for (k = 0; ok && k < c->file.n_tensors; k++) {
        const st_tensor *t = &c->file.tensors[k];
        if (is_edit(t) && !has[k])
            ok = tool_fail(err, "array %s is there, but EXPECTED.json has no such edit",
                           tool_quote(quoted, t->name, t->name_size));
    }
    free(has);
    return ok;
}

/* Every edit is made once before the long work begins: it may be wrong. */
static bool open_edits(check *c, const monet_model *model, const char *path, tool_error *err)
{
    uint32_t all = json_find(&c->json, 0, "edits");
    json_each it = json_begin(&c->json, all);
    char quoted[TOOL_QUOTE];
    bool ok = true;

    if (json_is_null(&c->json, all)) return true;
    if (!it.object) return tool_fail(err, "%.300s: \"edits\" is not an object", path);
    c->edits = tool_alloc(json_count(&c->json, all), sizeof *c->edits, err);
    if (c->edits == NULL) return false;
    while (ok && json_step(&c->json, &it)) {
        edited *e = &c->edits[c->n_edits++];
        monet_edit *edit = NULL;
        e->value = it.value;
        ok = open_edit(c, e, it.key, err);
        if (ok && !make_edit(c, model, e, &edit, err))
            ok = tool_prefix(err, quote_edit(e, quoted));
        monet_edit_free(edit);
    }
    return (ok && check_has_edits(c, err)) || tool_prefix(err, path);
}

/* ---- the expected file: training ------------------------------------------------------------- */

/* The arrays that belong to one of our tensors. */
static bool open_trained(check *c, size_t tensor, const monet_tensor *of, tool_error *err)
{
    training *t = &c->train;
    hf_mapping map;
    char name[128];
    int32_t k;

    hf_map(c->arch, of, &map);
    for (k = 0; k < map.n_sources * N_MOMENTS; k++) {
        const hf_source *source = &map.source[k / N_MOMENTS];
        trained x;
        memset(&x, 0, sizeof x);
        x.moment = k % N_MOMENTS;
        x.tensor = tensor;
        x.source = k / N_MOMENTS;
        snprintf(name, sizeof name, "%s%s", moments[x.moment], source->name);
        x.a.expected = st_find(&c->file, name);
        if (x.a.expected == NULL) continue;
        x.a.name = x.a.expected->name;
        if (!expect_shape(x.a.expected, source->n_dims, source->shape, err) ||
            !tool_grow(&t->list, &t->capacity, t->n + 1, sizeof *t->list, err))
            return false;
        x.a.found = tool_alloc(x.a.expected->count, sizeof *x.a.found, err);
        if (x.a.found == NULL) return false;
        t->list[t->n++] = x;
    }
    return true;
}

static bool open_history(check *c, array *a, const char *name, int32_t n_dims, tool_error *err)
{
    const int64_t shape[] = {c->train.steps, 3};

    a->name = name;
    a->expected = st_find(&c->file, name);
    if (a->expected == NULL) return true;
    if (!expect_shape(a->expected, n_dims, shape, err)) return false;
    a->found = tool_alloc(a->expected->count, sizeof *a->found, err);
    return a->found != NULL;
}

static bool open_training(check *c, const monet_model *model, tool_error *err)
{
    training *t = &c->train;
    size_t k;

    if (!t->given || st_find(&c->file, "train.tokens") == NULL) return true;
    if (!open_tokens(c, &t->input, "train.tokens", 3, err)) return false;
    t->steps = t->input.expected->shape[0];
    t->B = t->input.expected->shape[1];
    t->T = t->input.expected->shape[2];
    if (t->B > INT32_MAX || t->T > INT32_MAX)
        return tool_fail(err, "array train.tokens: %lld sequences of %lld tokens",
                         (long long)t->B, (long long)t->T);
    t->config.batch_size = (int32_t)t->B;
    t->config.seq_len = (int32_t)t->T;
    t->targets = tool_alloc((uint64_t)(t->B * t->T), sizeof *t->targets, err);
    if (t->targets == NULL || !open_history(c, &t->losses, "train.losses", 2, err) ||
        !open_history(c, &t->norms, "train.grad_norms", 1, err))
        return false;
    for (k = 0; k < monet_model_tensor_count(model); k++)
        if (!open_trained(c, k, monet_model_tensor(model, k), err)) return false;
    return true;
}

/* ---- computing ------------------------------------------------------------------------------- */

/* A tap: copies hidden states to where the expected array has them. */
static bool keep_hidden(void *user, monet_site site, int32_t layer, int32_t first, int32_t count,
                        monet_real *data)
{
    check *c = user;
    size_t C = (size_t)c->arch->dim, slot, k;
    float *out;

    if (site == MONET_SITE_EMBEDDING)
        slot = 0;
    else if (site == MONET_SITE_RESIDUAL && layer < c->arch->n_layers - 1)
        slot = (size_t)layer + 1;
    else if (site == MONET_SITE_FINAL_NORM)
        slot = (size_t)c->arch->n_layers;
    else
        return true;
    out = c->arrays[HIDDEN].found +
          ((slot * (size_t)c->B + (size_t)c->row) * (size_t)c->T + (size_t)first) * C;
    for (k = 0; k < (size_t)count * C; k++) out[k] = (float)data[k];
    return true;
}

static bool keep_gates(check *c, int which, int64_t router, int64_t t, const monet_real *gates)
{
    size_t size = (size_t)c->arch->moe_heads * (size_t)c->arch->moe_experts, k;
    float *out = c->arrays[which].found;

    if (out == NULL) return true;
    out += (size_t)((router * c->B + c->row) * c->T + t) * size;
    for (k = 0; k < size; k++) out[k] = (float)gates[k];
    return true;
}

/* Token `index` of the last eval is token t of the sequence. */
typedef bool (*keep_fn)(check *c, int32_t index, int64_t t);

static bool keep_logits(check *c, int32_t index, int64_t t)
{
    const monet_real *logits = monet_session_logits_at(c->session, index);
    size_t V = (size_t)c->arch->vocab_size, at = (size_t)(c->row * c->T + t), k;

    if (logits == NULL) return false;
    for (k = 0; c->logits != NULL && k < V; k++) c->logits[at * V + k] = (float)logits[k];
    if (t + 1 < c->T) c->nats -= monet_logprob(logits, (int32_t)V, c->input.ids[at + 1]);
    return true;
}

static bool keep_token(check *c, int32_t index, int64_t t)
{
    int64_t r;
    monet_routing routing;

    if (!keep_logits(c, index, t)) return false;
    for (r = 0; r < c->R; r++) {
        int32_t layer = (int32_t)r * c->arch->moe_groups;
        if (monet_session_routing(c->session, index, layer, &routing) != MONET_OK) return false;
        keep_gates(c, G1, r, t, routing.g1);
        keep_gates(c, G2, r, t, routing.g2);
    }
    return true;
}

static bool session_failed(const check *c, const char *what, tool_error *err)
{
    return tool_fail(err, "%s: %s", what, monet_session_error(c->session)->message);
}

/* One sequence after the other, each in an empty session. */
static bool run_sequences(check *c, keep_fn keep, tool_error *err)
{
    int64_t t, k, n;

    c->nats = 0;
    for (c->row = 0; c->row < c->B; c->row++) {
        if (monet_session_rewind(c->session, 0) != MONET_OK)
            return session_failed(c, "rewind", err);
        for (t = 0; t < c->T; t += n) {
            n = c->T - t < BATCH ? c->T - t : BATCH;
            if (monet_session_eval(c->session, c->input.ids + c->row * c->T + t, (size_t)n) !=
                MONET_OK)
                return session_failed(c, "tokens", err);
            for (k = 0; k < n; k++)
                if (!keep(c, (int32_t)k, t + k))
                    return tool_fail(err, "the session does not give its logits and routing");
        }
    }
    return true;
}

static bool compute_sequences(check *c, tool_error *err)
{
    monet_tap tap = {keep_hidden, c, 1u << MONET_SITE_EMBEDDING | 1u << MONET_SITE_RESIDUAL |
                     1u << MONET_SITE_FINAL_NORM, 0, 0};

    if (c->arrays[HIDDEN].found != NULL && c->B > 0 &&
        monet_session_set_tap(c->session, &tap) != MONET_OK)
        return session_failed(c, "hidden", err);
    c->logits = c->arrays[LOGITS].found;
    if (!run_sequences(c, keep_token, err)) return false;
    monet_session_set_tap(c->session, NULL);
    if (c->arrays[LOSS].found != NULL)
        c->arrays[LOSS].found[0] = (float)(c->nats / (double)(c->B * (c->T - 1)));
    return true;
}

static bool compute_edits(check *c, const monet_model *model, tool_error *err)
{
    char quoted[TOOL_QUOTE];
    bool ok = true;
    size_t k;

    for (k = 0; ok && k < c->n_edits; k++) {
        edited *e = &c->edits[k];
        monet_edit *edit = NULL;
        c->logits = e->a.found;
        ok = make_edit(c, model, e, &edit, err) &&
             (monet_session_set_edit(c->session, edit) == MONET_OK ||
              session_failed(c, "edit", err)) &&
             run_sequences(c, keep_logits, err);
        monet_session_set_edit(c->session, NULL);
        monet_edit_free(edit);
        if (!ok) tool_prefix(err, quote_edit(e, quoted));
    }
    return ok;
}

/* The largest logit minus the second largest. */
static double margin(const monet_real *logits, int32_t n)
{
    double first = -INFINITY, second = -INFINITY;
    int32_t k;

    for (k = 0; k < n; k++) {
        double x = (double)logits[k];
        if (x > first) {
            second = first;
            first = x;
        } else if (x > second) {
            second = x;
        }
    }
    return first - second;
}

/* Token by token with the KV cache, as a program that generates does. */
static bool compute_greedy(check *c, tool_error *err)
{
    uint64_t k, at, n;
    bool same = true;

    if (c->greedy.count == 0) return true;
    c->drawn = tool_alloc(c->greedy.count, sizeof *c->drawn, err);
    if (c->drawn == NULL) return false;
    if (monet_session_rewind(c->session, 0) != MONET_OK) return session_failed(c, "rewind", err);
    for (at = 0; at < c->prompt.count; at += n) {
        n = c->prompt.count - at < BATCH ? c->prompt.count - at : BATCH;
        if (monet_session_eval(c->session, c->prompt.ids + at, (size_t)n) != MONET_OK)
            return session_failed(c, "greedy.prompt", err);
    }
    for (k = 0; k < c->greedy.count; k++) {
        if (monet_session_sample(c->session, NULL, &c->drawn[k], NULL) != MONET_OK)
            return session_failed(c, "greedy.tokens", err);
        if (same && c->drawn[k] != c->greedy.ids[k]) {
            same = false;
            c->drawn_margin = margin(monet_session_logits(c->session), c->arch->vocab_size);
        }
        if (k + 1 < c->greedy.count &&
            monet_session_eval(c->session, &c->drawn[k], 1) != MONET_OK)
            return session_failed(c, "greedy.tokens", err);
    }
    return true;
}

/* ---- computing: training --------------------------------------------------------------------- */

static bool trainer_failed(const training *t, int64_t step, const char *what, tool_error *err)
{
    return tool_fail(err, "training, step %lld: %s: %s", (long long)step, what,
                     monet_trainer_error(t->trainer)->message);
}

/* The checkpoint's tensor that x->a expects, from ours; its numbers times `scale`. */
static bool fetch(const check *c, trained *x, const monet_tensor *tensor, double scale,
                  tool_error *err)
{
    hf_mapping map;
    const hf_source *source = &map.source[x->source];
    int64_t columns = tensor->n_dims == 1 ? tensor->shape[0] : tensor->shape[1], rows, at, k;
    float *row = tool_alloc((uint64_t)columns, sizeof *row, err);
    bool ok = row != NULL;

    hf_map(c->arch, tensor, &map);
    rows = tensor->n_dims == 1 ? 1 : source->shape[map.transposed ? 1 : 0];
    for (at = 0; ok && at < rows; at++) {
        ok = monet_tensor_read(tensor, hf_place(&map, x->source, at), 1, row) == MONET_OK ||
             tool_fail(err, "tensor %s cannot be read", tensor->name);
        for (k = 0; ok && k < columns; k++)
            x->a.found[map.transposed ? k * rows + at : at * columns + k] =
                (float)((double)row[k] * scale);
    }
    free(row);
    return ok;
}

static bool fetch_all(check *c, int moment, tool_error *err)
{
    training *t = &c->train;
    const monet_model *model = monet_trainer_model(t->trainer);
    size_t k;

    for (k = 0; k < t->n; k++) {
        const monet_tensor *tensor = monet_model_tensor(model, t->list[k].tensor);
        monet_tensor gradient;
        if (t->list[k].moment != moment) continue;
        if (moment == GRAD) {
            if (monet_trainer_grad(t->trainer, tensor->name, &gradient) != MONET_OK)
                return trainer_failed(t, 0, tensor->name, err);
            tensor = &gradient;
        }
        if (!fetch(c, &t->list[k], tensor, moment == GRAD ? 1 / t->scored : 1, err)) return false;
    }
    return true;
}

static bool train_step(check *c, int64_t step, tool_error *err)
{
    training *t = &c->train;
    const int32_t *ids = t->input.ids + step * t->B * t->T;
    monet_losses losses;
    monet_update update;
    int64_t k;

    for (k = 0; k < t->B * t->T; k++)
        t->targets[k] = k % t->T + 1 < t->T ? ids[k + 1] : -1;
    if (monet_trainer_forward(t->trainer, ids, t->targets, &losses) != MONET_OK)
        return trainer_failed(t, step, "forward", err);
    t->scored = (double)losses.scored;
    if (t->losses.found != NULL) {
        t->losses.found[3 * step] = (float)losses.cross_entropy;
        t->losses.found[3 * step + 1] = (float)losses.uniformity;
        t->losses.found[3 * step + 2] = (float)losses.ambiguity;
    }
    if (step == 0 && !fetch_all(c, AFTER_ONE, err)) return false;
    if (monet_trainer_backward(t->trainer) != MONET_OK)
        return trainer_failed(t, step, "backward", err);
    if (step == 0 && !fetch_all(c, GRAD, err)) return false;
    if (monet_trainer_update(t->trainer, (float)t->rate, &update) != MONET_OK)
        return trainer_failed(t, step, "update", err);
    if (update.skipped)
        return tool_fail(err, "training, step %lld: a loss or gradient is not finite",
                         (long long)step);
    if (t->norms.found != NULL) t->norms.found[step] = (float)update.grad_norm;
    return true;
}

static bool compute_training(check *c, const monet_model *model, tool_error *err)
{
    training *t = &c->train;
    monet_error why = {{0}, MONET_OK};
    monet_host host;
    int64_t step;

    if (t->input.count == 0) return true;
    memset(&host, 0, sizeof host);
    host.n_threads = (int)c->set.threads;
    t->config.host = &host;
    if (monet_trainer_create(model, &t->config, &t->trainer, &why) != MONET_OK)
        return tool_fail(err, "training: %s", why.message);
    for (step = 0; step < t->steps; step++)
        if (!train_step(c, step, err)) return false;
    return fetch_all(c, AFTER_ALL, err);
}

/* ---- comparing ------------------------------------------------------------------------------- */

static void print_row(check *c, const char *name, const char *shape, const char *difference,
                      const char *tolerance, bool ok)
{
    printf("%-*s %-18s %-20s %-12s %s\n", c->width, name, shape, difference, tolerance,
           ok ? "ok" : "FAIL");
    if (!ok) c->failed = true;
}

/* "(1,0,5)": where element `index` of the array is. Returns out. */
static const char *place_of(char out[ST_SHAPE], const st_tensor *t, uint64_t index)
{
    int64_t place[ST_MAX_DIMS] = {0};
    int32_t d;

    for (d = t->n_dims - 1; d >= 0; d--) {
        place[d] = (int64_t)(index % (uint64_t)t->shape[d]);
        index /= (uint64_t)t->shape[d];
    }
    return st_shape(out, t->n_dims, place);
}

typedef struct comparison {
    double   largest, size; /* largest difference (NaN counts as infinite); largest |expected| */
    double   relative;      /* largest difference as a part of its |expected| */
    double   norm, norm_of_difference;
    uint64_t worst, flips, first_flip; /* flips: elements that are positive in one array only */
} comparison;

static bool compare(const check *c, const array *a, comparison *out, tool_error *err)
{
    double expected[1024];
    uint64_t at, n, k;

    memset(out, 0, sizeof *out);
    for (at = 0; at < a->expected->count; at += n) {
        n = a->expected->count - at < 1024 ? a->expected->count - at : 1024;
        if (!st_read_f64(&c->file, a->expected, at, n, expected, err)) return false;
        for (k = 0; k < n; k++) {
            double e = expected[k], f = (double)a->found[at + k], d = fabs(e - f);
            if (isnan(d)) d = INFINITY;
            if (d > out->largest) out->largest = d, out->worst = at + k;
            if (fabs(e) > out->size) out->size = fabs(e);
            if (d > out->relative * fabs(e)) out->relative = e == 0 ? INFINITY : d / fabs(e);
            out->norm += e * e;
            out->norm_of_difference += d * d;
            if ((e > 0) != (f > 0) && out->flips++ == 0) out->first_flip = at + k;
        }
    }
    out->norm = sqrt(out->norm);
    out->norm_of_difference = sqrt(out->norm_of_difference);
    return true;
}

static double tolerance_of(int which, const comparison *x)
{
    if (which == G1 || which == G2) return 3e-5;
    if (which == LOSS) return 1e-5 * x->size;
    return 2e-5 * (1 + x->size);
}

/* Gates: which half-experts are active has to be the same. */
static bool check_active(check *c, const array *a, const comparison *x, tool_error *err)
{
    char name[32], shape[ST_SHAPE], difference[64];
    double expected;

    st_shape(shape, a->expected->n_dims, a->expected->shape);
    snprintf(name, sizeof name, "%s > 0", a->name);
    snprintf(difference, sizeof difference, "%llu differ", (unsigned long long)x->flips);
    print_row(c, name, shape, difference, "0", x->flips == 0);
    if (x->flips == 0) return true;
    if (!st_read_f64(&c->file, a->expected, x->first_flip, 1, &expected, err)) return false;
    printf("    the first (router,sequence,token,head,half-expert) is %s: %.6g, expected %.6g\n",
           place_of(shape, a->expected, x->first_flip), (double)a->found[x->first_flip],
           expected);
    if (c->routing_margin >= 0 && c->set.kv == MONET_F32)
        printf("    the smallest distance of a normalised router logit to its cut is %.2e: "
               "rounding (about %.0e)\n    %s\n", c->routing_margin, ROUTING_NOISE,
               c->routing_margin < ROUTING_NOISE ? "can explain this" : "does not explain this");
    return true;
}

/* `which` says what the tolerance is. */
static bool check_values(check *c, const array *a, const char *name, int which, comparison *x,
                         tool_error *err)
{
    char shape[ST_SHAPE], difference[32], tolerance[32];
    double most;
    bool ok;

    if (!compare(c, a, x, err)) return false;
    most = tolerance_of(which, x);
    ok = x->largest <= most;
    snprintf(difference, sizeof difference, "%.2e", x->largest);
    snprintf(tolerance, sizeof tolerance, "%.2e", most);
    print_row(c, name, st_shape(shape, a->expected->n_dims, a->expected->shape), difference,
              tolerance, ok);
    if (!ok) printf("    the largest is at %s\n", place_of(shape, a->expected, x->worst));
    return true;
}

static bool check_array(check *c, int which, tool_error *err)
{
    const array *a = &c->arrays[which];
    comparison x;

    if (a->expected == NULL) return true;
    if (!check_values(c, a, a->name, which, &x, err)) return false;
    return which != G1 && which != G2 ? true : check_active(c, a, &x, err);
}

static bool check_edits(check *c, tool_error *err)
{
    char quoted[TOOL_QUOTE];
    comparison x;
    size_t k;

    for (k = 0; k < c->n_edits; k++) {
        const edited *e = &c->edits[k];
        quote_edit(e, quoted);
        if (e->a.expected == NULL)
            printf("%-*s not in the file, computed for --dump\n", c->width, quoted);
        else if (!check_values(c, &e->a, quoted, LOGITS, &x, err))
            return false;
    }
    return true;
}

static void check_greedy(check *c)
{
    uint64_t n = c->greedy.count, same = 0, first = n, k;
    char shape[ST_SHAPE], difference[64];

    if (n == 0) return;
    for (k = 0; k < n; k++) {
        if (c->drawn[k] == c->greedy.ids[k]) same++;
        else if (first == n) first = k;
    }
    snprintf(difference, sizeof difference, "%llu differ", (unsigned long long)(n - same));
    print_row(c, c->greedy.name, st_shape(shape, 1, c->greedy.expected->shape), difference, "0",
              same == n);
    if (same < n)
        printf("    the first is at %llu: %d, expected %d; there the two largest logits differ by "
               "%.2e\n", (unsigned long long)first, (int)c->drawn[first],
               (int)c->greedy.ids[first], c->drawn_margin);
    if (same < n && c->greedy_margin >= 0 && c->set.kv == MONET_F32)
        printf("    the smallest such margin of the expected tokens is %.2e: rounding %s\n",
               c->greedy_margin, c->greedy_margin < 1e-4 ? "can explain this" :
               "does not explain this");
}

/* ---- comparing: training --------------------------------------------------------------------- */

/* A difference against what it may be; both are of `unit` ("largest", "norm", "each"). */
static void check_part(check *c, const array *a, double found, double most, bool ok,
                       const char *unit)
{
    char shape[ST_SHAPE], difference[32], tolerance[32];

    snprintf(difference, sizeof difference, "%.2e of %s", found, unit);
    snprintf(tolerance, sizeof tolerance, "%.2e", most);
    print_row(c, a->name, st_shape(shape, a->expected->n_dims, a->expected->shape), difference,
              tolerance, ok && found <= most);
}

/* A part of `whole`; 0 of nothing is 0. */
static double part_of(double x, double whole)
{
    return x == 0 ? 0 : x / whole;
}

static bool check_history(check *c, const array *a, tool_error *err)
{
    comparison x;

    if (a->expected == NULL) return true;
    if (!compare(c, a, &x, err)) return false;
    check_part(c, a, x.relative, 1e-5, true, "each");
    return true;
}

static bool check_trained(check *c, const trained *t, tool_error *err)
{
    comparison x;
    double most = 10 * c->train.rate;
    char place[ST_SHAPE];
    bool ok;

    if (!compare(c, &t->a, &x, err)) return false;
    ok = t->moment != AFTER_ALL || x.largest <= most;
    if (t->moment == AFTER_ALL)
        check_part(c, &t->a, part_of(x.norm_of_difference, x.norm), 1e-4, ok, "norm");
    else
        check_part(c, &t->a, part_of(x.largest, x.size), t->moment == GRAD ? 1e-4 : 1e-5, true,
                   "largest");
    if (!ok)
        printf("    %s is off by %.2e, more than 10 steps of %.2e\n",
               place_of(place, t->a.expected, x.worst), x.largest, c->train.rate);
    return true;
}

static bool compare_training(check *c, tool_error *err)
{
    const training *t = &c->train;
    size_t k;
    int moment;

    if (t->input.count == 0) return true;
    for (k = 0; k < t->n; k++)
        if ((int)t->list[k].a.expected->name_size > c->width)
            c->width = (int)t->list[k].a.expected->name_size;
    printf("training: %lld steps of %lld sequences of %lld tokens, rate %g\n",
           (long long)t->steps, (long long)t->B, (long long)t->T, t->rate);
    if (!check_history(c, &t->losses, err) || !check_history(c, &t->norms, err)) return false;
    for (moment = 0; moment < N_MOMENTS; moment++)
        for (k = 0; k < t->n; k++)
            if (t->list[k].moment == moment && !check_trained(c, &t->list[k], err)) return false;
    return true;
}

/* ---- arrays that are not compared ------------------------------------------------------------ */

static bool starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

static bool is_compared(const check *c, const char *name)
{
    int k;

    for (k = 0; k < N_ARRAYS; k++)
        if (strcmp(name, c->arrays[k].name) == 0) return true;
    return strcmp(name, "tokens") == 0 || starts_with(name, "greedy.");
}

/* One bool for each array of the file: it was compared, or is input. NULL = no memory. */
static bool *compared(const check *c, tool_error *err)
{
    const training *t = &c->train;
    const st_tensor *others[] = {t->input.expected, t->losses.expected, t->norms.expected};
    bool *marks = tool_alloc(c->file.n_tensors, sizeof *marks, err);
    uint32_t i;
    size_t k;

    for (i = 0; marks != NULL && i < c->file.n_tensors; i++)
        marks[i] = is_compared(c, c->file.tensors[i].name);
    for (k = 0; marks != NULL && k < 3; k++)
        if (others[k] != NULL) marks[others[k] - c->file.tensors] = true;
    for (k = 0; marks != NULL && k < t->n; k++)
        marks[t->list[k].a.expected - c->file.tensors] = true;
    for (k = 0; marks != NULL && k < c->n_edits; k++)
        if (c->edits[k].a.expected != NULL)
            marks[c->edits[k].a.expected - c->file.tensors] = true;
    return marks;
}

static bool list_others(const check *c, tool_error *err)
{
    uint32_t trains = 0, k;
    char quoted[TOOL_QUOTE], shape[ST_SHAPE];
    bool *marks = compared(c, err);

    if (marks == NULL) return false;
    for (k = 0; k < c->file.n_tensors; k++) {
        const st_tensor *t = &c->file.tensors[k];
        bool is_training = starts_with(t->name, "grad.") || starts_with(t->name, "train.");
        if (marks[k]) continue;
        if (is_edit(t))
            printf("%s %s: not checked: there is no EXPECTED.json with \"edits\"\n",
                   tool_quote(quoted, t->name, t->name_size),
                   st_shape(shape, t->n_dims, t->shape));
        else if (is_training && c->train.input.count == 0)
            trains++;
        else
            printf("%s %s: unknown, not checked\n", tool_quote(quoted, t->name, t->name_size),
                   st_shape(shape, t->n_dims, t->shape));
    }
    if (trains > 0)
        printf("grad.*, train.*: %u arrays, not checked: there is no %s\n", trains,
               c->train.given ? "train.tokens" : "EXPECTED.json with \"train\"");
    free(marks);
    return true;
}

/* ---- dump ------------------------------------------------------------------------------------ */

static bool dump_ids(st_writer *w, size_t index, const int32_t *ids, uint64_t n, tool_error *err)
{
    uint64_t k;

    for (k = 0; k < n; k++) {
        int64_t wide = ids[k];
        if (!st_writer_put_i64(w, index, &wide, 1, err)) return false;
    }
    return true;
}

typedef struct dumped { /* floats or ids */
    const st_tensor *tensor;
    const float     *floats;
    const int32_t   *ids;
} dumped;

/* One of floats and ids is given, unless there is nothing to write. */
static size_t add_dumped(dumped *list, size_t n, const st_tensor *tensor, const float *floats,
                         const int32_t *ids)
{
    if (tensor == NULL || (floats == NULL && ids == NULL)) return n;
    list[n].tensor = tensor;
    list[n].floats = floats;
    list[n].ids = ids;
    return n + 1;
}

static size_t add_array(dumped *list, size_t n, const array *a)
{
    return add_dumped(list, n, a->expected, a->found, NULL);
}

/* Every array that was computed and its inputs. */
static size_t list_dumped(const check *c, dumped *list)
{
    const training *t = &c->train;
    size_t n = 0, k;

    for (k = 0; k < N_ARRAYS; k++) n = add_array(list, n, &c->arrays[k]);
    for (k = 0; k < c->n_edits; k++)
        n = add_dumped(list, n, &c->edits[k].as, c->edits[k].a.found, NULL);
    n = add_array(list, n, &t->losses);
    n = add_array(list, n, &t->norms);
    for (k = 0; k < t->n; k++) n = add_array(list, n, &t->list[k].a);
    n = add_dumped(list, n, c->input.expected, NULL, c->input.ids);
    n = add_dumped(list, n, c->prompt.expected, NULL, c->prompt.ids);
    n = add_dumped(list, n, c->greedy.expected, NULL, c->drawn);
    return add_dumped(list, n, t->input.expected, NULL, t->input.ids);
}

/* Writes them under the names of the expected file. */
static bool dump(const check *c, tool_error *err)
{
    dumped *list = tool_alloc(N_ARRAYS + 6 + c->n_edits + c->train.n, sizeof *list, err);
    size_t n = list == NULL ? 0 : list_dumped(c, list), k;
    st_writer w;
    bool ok = list != NULL;

    memset(&w, 0, sizeof w);
    for (k = 0; ok && k < n; k++)
        ok = st_writer_add(&w, list[k].tensor->name, list[k].ids != NULL ? ST_I32 : ST_F32,
                           list[k].tensor->n_dims, list[k].tensor->shape, err);
    ok = ok && st_writer_start(&w, c->set.dump, err);
    for (k = 0; ok && k < n; k++) {
        uint64_t count = list[k].tensor->count;
        ok = list[k].ids != NULL ? dump_ids(&w, k, list[k].ids, count, err)
                                 : st_writer_put_f32(&w, k, list[k].floats, count, err);
    }
    ok = ok && st_writer_commit(&w, err);
    st_writer_free(&w);
    free(list);
    if (ok) printf("wrote %s\n", c->set.dump);
    return ok;
}

/* ---- check MODEL EXPECTED -------------------------------------------------------------------- */

static bool has_work(const check *c)
{
    int k;

    for (k = 0; k < N_ARRAYS; k++)
        if (c->arrays[k].expected != NULL) return true;
    return c->greedy.count > 0 || c->train.input.count > 0 || c->n_edits > 0;
}

static bool start_session(check *c, const monet_model *model, tool_error *err)
{
    uint64_t context = c->prompt.count + c->greedy.count;
    monet_session_config config;

    memset(&config, 0, sizeof config);
    if ((uint64_t)c->T > context) context = (uint64_t)c->T;
    if (!has_work(c))
        return tool_fail(err, "the file holds no array that this version compares: logits, hidden, "
                         "g1, g2, loss, greedy.tokens, or, with EXPECTED.json, edits and "
                         "train.tokens");
    if (context > INT32_MAX)
        return tool_fail(err, "a sequence has %llu tokens, at most %d are possible",
                         (unsigned long long)context, INT32_MAX);
    config.context = (int32_t)context;
    config.max_batch = context < BATCH ? (int32_t)context : BATCH;
    config.kv_dtype = c->set.kv;
    config.mode = c->set.mode;
    config.kernels = c->set.kernels;
    config.capture_routing = config.all_logits = true;
    return run_open_session(model, c->set.threads, &config, &c->session, err);
}

static bool compare_all(check *c, tool_error *err)
{
    char quoted[TOOL_QUOTE];
    size_t i;
    int k;

    c->width = 14;
    for (i = 0; i < c->n_edits; i++)
        if ((int)strlen(quote_edit(&c->edits[i], quoted)) > c->width)
            c->width = (int)strlen(quoted);
    printf("%-*s %-18s %-20s %-12s\n", c->width, "array", "shape", "largest difference",
           "tolerance");
    for (k = 0; k < N_ARRAYS; k++)
        if (!check_array(c, k, err)) return false;
    check_greedy(c);
    if (!check_edits(c, err) || !compare_training(c, err) || !list_others(c, err)) return false;
    if (c->greedy_margin >= 0)
        printf("smallest margin of the expected greedy tokens: %.2e\n", c->greedy_margin);
    if (c->routing_margin >= 0)
        printf("smallest distance of a normalised router logit to its cut: %.2e\n",
               c->routing_margin);
    if (c->failed && (c->set.kv != MONET_F32 || c->set.mode != MONET_EXACT))
        printf("the tolerances are meant for --kv f32 --mode exact; this was %s and %s\n",
               monet_dtype_name(c->set.kv), c->set.mode == MONET_FAST ? "fast" : "exact");
    return true;
}

static void close_training(training *t)
{
    size_t k;

    for (k = 0; k < t->n; k++) free(t->list[k].a.found);
    free(t->list);
    free(t->losses.found);
    free(t->norms.found);
    free(t->input.ids);
    free(t->targets);
    monet_trainer_free(t->trainer);
}

static void close_edits(check *c)
{
    size_t k;

    for (k = 0; k < c->n_edits; k++) {
        free(c->edits[k].a.found);
        free(c->edits[k].name);
    }
    free(c->edits);
    json_free(&c->json);
}

static int check_model(check *c, const char **files, size_t n_files, tool_error *err)
{
    monet_model *model = NULL;
    bool ok = run_load(files[0], &model, err);
    int k;

    if (ok) c->arch = monet_model_arch(model);
    ok = ok && open_expected(c, files[1], err) &&
         open_settings(c, n_files > 2 ? files[2] : NULL, err) &&
         (open_training(c, model, err) || tool_prefix(err, files[1])) &&
         open_edits(c, model, n_files > 2 ? files[2] : NULL, err) &&
         start_session(c, model, err) && compute_sequences(c, err) && compute_greedy(c, err) &&
         compute_edits(c, model, err) && compute_training(c, model, err) && compare_all(c, err) &&
         (c->set.dump == NULL || dump(c, err));
    for (k = 0; k < N_ARRAYS; k++) free(c->arrays[k].found);
    close_edits(c);
    free(c->input.ids);
    free(c->prompt.ids);
    free(c->greedy.ids);
    free(c->drawn);
    close_training(&c->train);
    monet_session_free(c->session);
    monet_model_free(model);
    st_close(&c->file);
    return !ok ? BROKEN : c->failed ? FAILED : PASSED;
}

/* ---- check --tokenizer MODEL FILE ------------------------------------------------------------ */

typedef struct lines {
    const monet_tokenizer *tokenizer;
    uint64_t               line, count, bad, shown;
} lines;

typedef struct bytes {
    unsigned char *data;
    size_t         size;
} bytes;

/* A string of hexadecimal digits. */
static bool read_hex(const json_doc *doc, const char *key, bytes *out, tool_error *err)
{
    static const char digits[] = "0123456789abcdef";
    size_t size = 0, k;
    const char *hex = json_string(doc, json_find(doc, 0, key), &size);

    if (hex == NULL || size % 2 != 0)
        return tool_fail(err, "\"%s\" has to be a string of hexadecimal digits", key);
    out->data = tool_alloc(size / 2 + 1, 1, err);
    out->size = size / 2;
    if (out->data == NULL) return false;
    for (k = 0; k < size; k++) {
        const char *digit = hex[k] == '\0' ? NULL : strchr(digits, hex[k] | 0x20);
        if (digit == NULL || hex[k] < '0')
            return tool_fail(err, "\"%s\" has a character that is no hexadecimal digit", key);
        out->data[k / 2] = (unsigned char)(out->data[k / 2] << 4 | (digit - digits));
    }
    return true;
}

static int32_t *read_ids(const json_doc *doc, size_t *n, tool_error *err)
{
    uint32_t value = json_find(doc, 0, "ids");
    json_each it = json_begin(doc, value);
    int32_t *ids;
    int64_t id = 0;

    *n = 0;
    if (json_typeof(doc, value) != JSON_ARRAY) {
        tool_fail(err, "\"ids\" has to be an array");
        return NULL;
    }
    ids = tool_alloc(json_count(doc, value), sizeof *ids, err);
    while (ids != NULL && json_step(doc, &it)) {
        if (!json_int(doc, it.value, &id) || id < INT32_MIN || id > INT32_MAX) {
            tool_fail(err, "\"ids\" has a value that is no token");
            free(ids);
            return NULL;
        }
        ids[(*n)++] = (int32_t)id;
    }
    return ids;
}

static void show_difference(lines *l, const char *what, const bytes *text, const char *found,
                            const char *expected)
{
    char quoted[TOOL_QUOTE];

    if (l->shown++ >= MAX_DIFFERENCES) return;
    printf("line %llu: \"%s\": %s %s, expected %s\n", (unsigned long long)l->line,
           tool_quote(quoted, text->data, text->size), what, found, expected);
}

/* "at 3: 412", or what stands for the end of a list. */
static void describe_id(char out[64], const int32_t *ids, size_t n, size_t at)
{
    if (at < n)
        snprintf(out, 64, "id %d at %llu", (int)ids[at], (unsigned long long)at);
    else
        snprintf(out, 64, "the end after %llu ids", (unsigned long long)n);
}

static bool compare_ids(lines *l, const bytes *text, const int32_t *expected, size_t n,
                        tool_error *err)
{
    size_t count = 0, at = 0;
    int32_t *ids;
    char a[64], b[64];
    monet_result result;

    monet_tokenizer_encode(l->tokenizer, (const char *)text->data, text->size, 0, NULL, 0, &count);
    ids = tool_alloc(count, sizeof *ids, err);
    if (ids == NULL) return false;
    result = monet_tokenizer_encode(l->tokenizer, (const char *)text->data, text->size, 0, ids,
                                    count, &count);
    if (result != MONET_OK) {
        free(ids);
        return tool_fail(err, "cannot be encoded: %s", monet_result_name(result));
    }
    while (at < count && at < n && ids[at] == expected[at]) at++;
    if (at < count || at < n) {
        describe_id(a, ids, count, at);
        describe_id(b, expected, n, at);
        show_difference(l, "encodes to", text, a, b);
        l->bad++;
    }
    free(ids);
    return true;
}

static bool compare_decoded(lines *l, const bytes *text, const int32_t *ids, size_t n,
                            const bytes *expected, tool_error *err)
{
    size_t size = 0;
    char a[TOOL_QUOTE], b[TOOL_QUOTE];
    char *decoded;
    monet_result result;

    monet_tokenizer_decode(l->tokenizer, ids, n, NULL, 0, &size);
    decoded = tool_alloc(size, 1, err);
    if (decoded == NULL) return false;
    result = monet_tokenizer_decode(l->tokenizer, ids, n, decoded, size, &size);
    if (result != MONET_OK) {
        show_difference(l, "decodes to", text, monet_result_name(result), "bytes");
        l->bad++;
    } else if (size != expected->size || memcmp(decoded, expected->data, size) != 0) {
        show_difference(l, "decodes to", text, tool_quote(a, decoded, size),
                        tool_quote(b, expected->data, expected->size));
        l->bad++;
    }
    free(decoded);
    return true;
}

static bool check_line(lines *l, char *line, size_t size, tool_error *err)
{
    json_doc doc;
    bytes text = {NULL, 0}, decoded = {NULL, 0};
    int32_t *ids = NULL;
    size_t n = 0;
    uint64_t bad = l->bad;
    bool ok;

    if (!json_parse(&doc, line, size, err)) return false;
    ok = read_hex(&doc, "text_hex", &text, err) && read_hex(&doc, "decoded_hex", &decoded, err) &&
         (ids = read_ids(&doc, &n, err)) != NULL && compare_ids(l, &text, ids, n, err) &&
         compare_decoded(l, &text, ids, n, &decoded, err);
    if (l->bad > bad) l->bad = bad + 1; /* a line counts once */
    l->count++;
    free(text.data);
    free(decoded.data);
    free(ids);
    json_free(&doc);
    return ok;
}

static bool check_lines(lines *l, const char *path, tool_error *err)
{
    char *data, *line, *end;
    size_t size;
    char where[64];
    bool ok = tool_read_file(path, UINT64_C(1) << 30, &data, &size, err);

    for (line = data; ok && line < data + size; line = end + 1) {
        end = memchr(line, '\n', (size_t)(data + size - line));
        if (end == NULL) end = data + size;
        l->line++;
        if (end == line) continue;
        ok = check_line(l, line, (size_t)(end - line), err);
        if (!ok) {
            snprintf(where, sizeof where, "line %llu", (unsigned long long)l->line);
            tool_prefix(err, where);
            tool_prefix(err, path);
        }
    }
    free(data);
    return ok;
}

static int check_tokenizer(const char **files, tool_error *err)
{
    monet_model *model = NULL;
    lines l;
    bool ok;

    memset(&l, 0, sizeof l);
    if (!run_load_any(files[0], &model, err)) return BROKEN;
    l.tokenizer = monet_model_tokenizer(model);
    ok = l.tokenizer != NULL || tool_fail(err, "%.300s: holds no tokenizer", files[0]);
    ok = ok && check_lines(&l, files[1], err);
    if (ok && l.count == 0) ok = tool_fail(err, "%.300s: holds no line", files[1]);
    if (ok)
        printf("%llu lines: %llu as expected, %llu not\n", (unsigned long long)l.count,
               (unsigned long long)(l.count - l.bad), (unsigned long long)l.bad);
    monet_model_free(model);
    return !ok ? BROKEN : l.bad > 0 ? FAILED : PASSED;
}

/* ---- main ------------------------------------------------------------------------------------ */

static int run_check(check *c, const char **files, size_t n_files, tool_error *err)
{
    if (c->set.tokenizer && n_files == 2) return check_tokenizer(files, err);
    if (!c->set.tokenizer && n_files >= 2) return check_model(c, files, n_files, err);
    tool_fail(err, "needs a model and a file to compare it with (--help says more)");
    return BROKEN;
}

int main(int argc, char **argv)
{
    const char *files[3];
    size_t n_files = 0;
    static check c;
    tool_error err = {{0}};
    int status = BROKEN;
    const run_option options[] = {
        {"tokenizer", RUN_FLAG, &c.set.tokenizer, 0, 0, NULL, "compare the tokenizer"},
        {"dump", RUN_TEXT, (void *)&c.set.dump, 0, 0, "FILE", "write the computed arrays there"},
        {"kv", RUN_DTYPE, &c.set.kv, 0, 0, "TYPE", "KV cache in f32, f16 or bf16 (default: f32)"},
        {"mode", RUN_MODE, &c.set.mode, 0, 0, "MODE", "exact or fast (default: exact)"},
        {"kernels", RUN_KERNELS, &c.set.kernels, 0, 0, "NAME",
         "instruction set: scalar, avx2, ... (default: the best here)"},
        {"threads", RUN_WHOLE, &c.set.threads, 1, 256, "N", "threads (default: all processors)"},
        {"help", RUN_FLAG, &c.set.help, 0, 0, NULL, "this text"},
    };
    const size_t n_options = sizeof options / sizeof options[0];

    c.set.threads = run_processors();
    if (run_parse(options, n_options, argc, argv, files, 3, &n_files, &err)) {
        if (c.set.help) {
            printf("usage: check MODEL.monet EXPECTED.safetensors [EXPECTED.json] [options]\n"
                   "       check --tokenizer MODEL.monet FILE.jsonl\n\n");
            run_print_options(options, n_options);
            return PASSED;
        }
        status = run_check(&c, files, n_files, &err);
    }
    if (status == BROKEN) fprintf(stderr, "check: %s\n", err.message);
    if (fflush(stdout) != 0 || ferror(stdout)) status = BROKEN;
    return status;
}
