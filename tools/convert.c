/* convert.c: makes .monet files of Monet checkpoints, and shows what is in a .monet file.

   cc -O2 -pthread -I. tools/convert.c -o convert -lm

   `convert --help` lists what it does. A checkpoint is a folder of Hugging Face: config.json,
   safetensors, tokenizer. Everything in it is checked before the first byte is written; the weights
   then pass through in blocks, so that memory stays small however large the model is; and the new
   file takes its name only when it is complete.

   Order of this file: reporting, dtypes, the plan of the tensors, checks, the tokenizer, the stream
   of weights, and then one section for each command: checkpoint, .monet again, tokenizer, info,
   verify, C array; main.                                                                        */
#include "common.h"

#include <pthread.h>

#include "hf_config.h"
#include "hf_names.h"
#include "json.h"
#include "safetensors.h"

#define MONET_IMPLEMENTATION
#include "monet.h"

#include "run.h"
#include "tokenizer_data.h"

#ifndef BLOCK_BYTES                      /* the test makes all three small */
#define BLOCK_BYTES (UINT64_C(40) << 20) /* of a checkpoint's V, read before it is transposed */
#define ROWS_BYTES  (UINT64_C(1) << 20)  /* of floats given to the writer at a time */
#define MAP_BYTES   (UINT64_C(96) << 20) /* of a .monet file, read before it is mapped anew */
#endif
#define N_SLOTS     4                    /* blocks of rows on their way to the writer */
#define SYNC_SLOTS  128                  /* so many are written, then sent on to the disk */
#define MAX_SHOWN 10                     /* warnings of one kind */

enum { EXIT_USAGE = 2 };

/* ---- reporting ------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

/* Ctrl-C ends a conversion at the next block, which removes the unfinished file on its way out. */
static void stop_on_signal(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action, old;
    size_t i;

    interrupted = 0;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
}

static bool fail_monet(tool_error *err, const monet_error *problem)
{
    return tool_fail(err, "%s", problem->message);
}

static void warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void warn(const char *format, ...)
{
    va_list args;

    fflush(stdout);
    fprintf(stderr, "warning: ");
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
}

/* "1,452,345,344". Returns out. */
static const char *grouped(char out[TOOL_HUMAN], uint64_t n)
{
    char digits[TOOL_HUMAN];
    int size = snprintf(digits, sizeof digits, "%llu", (unsigned long long)n);
    int i, used = 0;

    for (i = 0; i < size; i++) {
        if (i > 0 && (size - i) % 3 == 0) out[used++] = ',';
        out[used++] = digits[i];
    }
    out[used] = '\0';
    return out;
}

static void print_arch(const monet_arch *a)
{
    char experts[TOOL_HUMAN];

    printf("architecture  %s: V=%d C=%d L=%d A=%d K=%d N=%d M=%d H=%d k=%d G=%d%s\n",
           a->decompose == MONET_VERTICAL ? "vertical" : "horizontal", (int)a->vocab_size,
           (int)a->dim, (int)a->n_layers, (int)a->n_heads, (int)a->n_kv_heads,
           (int)a->moe_experts, (int)a->moe_dim, (int)a->moe_heads, (int)a->moe_topk,
           (int)a->moe_groups, a->tie_embeddings ? ", tied embeddings" : "");
    printf("              context %d, rope theta %g, norm eps %g; %s experts a layer\n",
           (int)a->max_seq_len, (double)a->rope_theta, (double)a->norm_eps,
           grouped(experts, (uint64_t)a->moe_experts * (uint64_t)a->moe_experts));
}

/* Whether both paths lead to one existing file. */
static bool same_file(const char *a, const char *b)
{
    struct stat x, y;

    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static bool refuse_same(const char *in, const char *out, tool_error *err)
{
    if (!same_file(in, out)) return true;
    return tool_fail(err, "%s: is the input as well; choose another name for the output", out);
}

/* ---- dtypes: what the tensors are written as -------------------------------------------------
   --dtype q8 and q4 are for attention, experts and lm_head, which are most of what a token reads.
   Routers stay wide: they decide which experts are used at all. So do expert biases, which have no
   groups of columns. embed_tokens, one row a token, is q8 in both. On the trained model of
   examples/ this costs 0.00 % (q8) and 0.25 % (q4) in bits per byte. q8 for lm_head instead of q4
   would save 0.10 of that; q8 for the routers costs nothing, but of the half-experts of a q8 model
   0.4 % are others then.                                                                        */

enum { MAX_RULES = 32 };

typedef struct dtype_rule { /* the tensors of these names get that dtype */
    const char *names;      /* size bytes; '*' stands for any characters */
    size_t      size;
    monet_dtype dtype;
} dtype_rule;

typedef struct dtype_rules {
    int        all;              /* a monet_dtype; -1 = as it is */
    int        n_rules;
    dtype_rule rules[MAX_RULES]; /* the last one that matches counts */
} dtype_rules;

static bool is_quantised(monet_dtype dtype)
{
    return dtype == MONET_Q8 || dtype == MONET_Q4;
}

static bool name_matches(const char *pattern, size_t size, const char *name)
{
    const char *end = pattern + size, *star = NULL, *from = NULL;

    while (*name != '\0') {
        if (pattern < end && *pattern == '*') star = pattern++, from = name;
        else if (pattern < end && *pattern == *name) pattern++, name++;
        else if (star != NULL) pattern = star + 1, name = ++from;
        else return false;
    }
    while (pattern < end && *pattern == '*') pattern++;
    return pattern == end;
}

/* What --dtype q8 or q4 makes of a matrix that would be `wide` otherwise. */
static monet_dtype quantised_dtype(monet_dtype dtype, const monet_tensor *tensor, monet_dtype wide)
{
    if (tensor->layout == MONET_ROWS || strstr(tensor->name, ".router.") != NULL) return wide;
    return strcmp(tensor->name, "embed_tokens.weight") == 0 ? MONET_Q8 : dtype;
}

/* What a matrix whose numbers are of the dtype `now` becomes. */
static monet_dtype new_dtype(const dtype_rules *want, const monet_tensor *tensor, monet_dtype now)
{
    const monet_dtype wide = now == MONET_F32 ? MONET_BF16 : now;
    monet_dtype dtype = want->all < 0 ? now : (monet_dtype)want->all;
    int i;

    if (want->all >= 0 && is_quantised(dtype)) dtype = quantised_dtype(dtype, tensor, wide);
    for (i = 0; i < want->n_rules; i++) {
        const dtype_rule *rule = &want->rules[i];
        if (name_matches(rule->names, rule->size, tensor->name)) dtype = rule->dtype;
    }
    return is_quantised(dtype) && tensor->layout == MONET_ROWS ? wide : dtype;
}

/* A name that is spelt wrong shall not go unnoticed. */
static bool check_rules(const dtype_rules *want, const monet_tensor *tensors, size_t n,
                        tool_error *err)
{
    char quoted[TOOL_QUOTE];
    size_t k;
    int i;

    for (i = 0; i < want->n_rules; i++) {
        const dtype_rule *rule = &want->rules[i];
        for (k = 0; k < n; k++)
            if (tensors[k].n_dims == 2 && name_matches(rule->names, rule->size, tensors[k].name))
                break;
        if (k == n)
            return tool_fail(err, "no matrix of this model has a name like \"%s\"",
                             tool_quote(quoted, rule->names, rule->size));
    }
    return true;
}

/* "q8, bf16": the dtypes of the tensors of these names, in their order; "" if there are none. */
static void put_dtypes(tool_buffer *out, const char *names, const monet_tensor *tensors, size_t n)
{
    unsigned seen = 0;
    size_t i;

    for (i = 0; i < n; i++) {
        const unsigned bit = 1u << tensors[i].dtype;
        if ((seen & bit) != 0 || !name_matches(names, strlen(names), tensors[i].name)) continue;
        tool_putf(out, "%s%s", seen != 0 ? ", " : "", monet_dtype_name(tensors[i].dtype));
        seen |= bit;
    }
}

static bool any_quantised(const monet_tensor *tensors, size_t n)
{
    size_t i = 0;

    while (i < n && !is_quantised(tensors[i].dtype)) i++;
    return i < n;
}

/* Says, and keeps as metadata, what a model with quantised tensors is made of: "quantised.router" =
   "bf16" and the like. A file that is made of it later keeps that: its numbers went through it. */
static bool note_dtypes(hf_notes *notes, const monet_tensor *tensors, size_t n, tool_error *err)
{
    static const char *const parts[][2] = {
        {"embed_tokens", "embed_tokens.weight"}, {"attention", "*.self_attn.*"},
        {"router", "*.router.w*"}, {"experts", "*.moe.*.weight"}, {"lm_head", "lm_head.weight"}
    };
    tool_buffer text = {NULL, 0, 0, false};
    bool ok = true, first = true;
    size_t i;

    for (i = 0; ok && any_quantised(tensors, n) && i < sizeof parts / sizeof parts[0]; i++) {
        text.size = 0;
        put_dtypes(&text, parts[i][1], tensors, n);
        if (text.failed) ok = tool_fail(err, "out of memory: metadata");
        if (!ok || text.size == 0) continue; /* no lm_head in a tied model */
        printf("%s%s %s", first ? "quantised     " : "; ", parts[i][0], text.data);
        first = false;
        ok = hf_note(notes, "quantised.", parts[i][0], text.data, err);
    }
    if (!first) printf("\n");
    tool_buffer_free(&text);
    return ok;
}

/* ---- the plan: which tensors make which ------------------------------------------------------ */

typedef struct plan_tensor {
    hf_mapping       map;
    const st_tensor *source[2];
} plan_tensor;

typedef struct checkpoint {
    const char   *folder;
    hf_config     config;
    st_file       files;
    tok_file      tokenizer;
    const char   *tokenizer_name; /* NULL = the folder has none */
    monet_tensor *tensors;        /* of the .monet file, in its order */
    plan_tensor  *plan;           /* (n_tensors) */
    size_t        n_tensors;
    bool         *used;           /* (files.n_tensors) has a place in the plan */
    uint64_t      n_parameters;
    uint64_t      n_bytes;        /* of the tensors that are used */
} checkpoint;

/* The tensors of an architecture in new memory; matrices, which alone may have another dtype than
   f32, are of the given one. */
static monet_tensor *describe_tensors(const monet_arch *arch, monet_dtype dtype, size_t *n,
                                      tool_error *err)
{
    monet_tensor *tensors = NULL;
    monet_result result = monet_arch_tensors(arch, dtype, NULL, 0, n);

    if (result == MONET_OK || result == MONET_ERROR_CAPACITY)
        tensors = tool_alloc(*n, sizeof *tensors, err);
    else
        tool_fail(err, "the architecture is not possible (%s)", monet_result_name(result));
    if (tensors == NULL) return NULL;
    result = monet_arch_tensors(arch, dtype, tensors, *n, n);
    if (result == MONET_OK) return tensors;
    tool_fail(err, "the architecture is not possible (%s)", monet_result_name(result));
    free(tensors);
    return NULL;
}

static bool float_dtype(const st_tensor *tensor, monet_dtype *dtype, tool_error *err)
{
    switch (tensor->dtype) {
    case ST_F32: *dtype = MONET_F32; return true;
    case ST_F16: *dtype = MONET_F16; return true;
    case ST_BF16: *dtype = MONET_BF16; return true;
    default: return st__dtype_fail(tensor, "F32, F16 or BF16", err);
    }
}

/* The narrowest dtype that holds all numbers of both. */
static monet_dtype wider(monet_dtype a, monet_dtype b)
{
    return a == b ? a : MONET_F32;
}

static bool plan_one(checkpoint *in, size_t index, tool_error *err)
{
    plan_tensor *plan = &in->plan[index];
    monet_tensor *tensor = &in->tensors[index];
    int32_t i;

    hf_map(&in->config.arch, tensor, &plan->map);
    for (i = 0; i < plan->map.n_sources; i++) {
        const hf_source *source = &plan->map.source[i];
        const st_tensor *found =
            st_expect(&in->files, source->name, source->n_dims, source->shape, err);
        monet_dtype dtype = MONET_F32;
        if (found == NULL || !float_dtype(found, &dtype, err)) return false;
        plan->source[i] = found;
        in->used[found - in->files.tensors] = true;
        if (strstr(tensor->name, ".running_") == NULL) in->n_parameters += found->count;
        in->n_bytes += found->size;
        tensor->source_dtype = i == 0 ? dtype : wider(dtype, tensor->source_dtype);
    }
    return true;
}

static bool make_plan(checkpoint *in, const dtype_rules *want, tool_error *err)
{
    size_t i;

    in->tensors = describe_tensors(&in->config.arch, MONET_BF16, &in->n_tensors, err);
    if (in->tensors == NULL) return false;
    in->plan = tool_alloc(in->n_tensors, sizeof *in->plan, err);
    in->used = tool_alloc(in->files.n_tensors, sizeof *in->used, err);
    if (in->plan == NULL || in->used == NULL) return false;
    for (i = 0; i < in->n_tensors; i++) {
        monet_tensor *tensor = &in->tensors[i];
        if (!plan_one(in, i, err)) return false;
        if (tensor->n_dims == 2) tensor->dtype = new_dtype(want, tensor, tensor->source_dtype);
    }
    return check_rules(want, in->tensors, in->n_tensors, err);
}

/* ---- checks: what else the checkpoint has ---------------------------------------------------- */

/* PyTorch's counters of training batches are kept as metadata. */
static bool keep_counters(checkpoint *in, tool_error *err)
{
    char name[96], text[32];
    int64_t batches = 0;
    size_t i;

    for (i = 0; i < in->n_tensors; i++) {
        const st_tensor *found;
        if (!hf_counter(&in->tensors[i], name)) continue;
        found = st_find(&in->files, name);
        if (found == NULL) continue;
        if (found->count != 1) {
            char shape[ST_SHAPE];
            return tool_fail(err, "tensor \"%s\": the file has %.90s, needs ()", name,
                             st_shape(shape, found->n_dims, found->shape));
        }
        if (!st_read_i64(&in->files, found, 0, 1, &batches, err)) return false;
        in->used[found - in->files.tensors] = true;
        snprintf(text, sizeof text, "%lld", (long long)batches);
        if (!hf_note(&in->config.notes, "", name + strlen("model."), text, err)) return false;
    }
    return true;
}

/* Some tied checkpoints store the embedding a second time. It has to be the same. */
static bool check_tied_head(checkpoint *in, tool_error *err)
{
    const st_tensor *head = st_find(&in->files, "lm_head.weight");
    const st_tensor *embed = in->plan[0].source[0];
    enum { chunk = 4096 };
    float a[chunk], b[chunk];
    uint64_t at, n;

    if (!in->config.arch.tie_embeddings || head == NULL) return true;
    if (st_expect(&in->files, head->name, embed->n_dims, embed->shape, err) == NULL) return false;
    for (at = 0; at < embed->count; at += n) {
        n = embed->count - at < chunk ? embed->count - at : chunk;
        if (!st_read_f32(&in->files, head, at, n, a, err) ||
            !st_read_f32(&in->files, embed, at, n, b, err))
            return false;
        if (memcmp(a, b, (size_t)n * sizeof a[0]) != 0)
            return tool_fail(err, "tensor \"lm_head.weight\" differs from \"%s\", but "
                             "tie_word_embeddings is true in config.json", embed->name);
    }
    in->used[head - in->files.tensors] = true;
    return hf_note(&in->config.notes, "", "checkpoint.lm_head", "stored", err);
}

/* The number N of "model.layers.N.", or -1: decimal, no leading zeros. */
static int64_t layer_of(const char *name)
{
    static const char start[] = "model.layers.";
    int64_t layer = 0;
    const char *p;

    if (strncmp(name, start, sizeof start - 1) != 0) return -1;
    p = name + sizeof start - 1;
    if (p[0] < '0' || p[0] > '9' || (p[0] == '0' && p[1] != '.')) return -1;
    for (; *p >= '0' && *p <= '9'; p++)
        if (layer < INT32_MAX) layer = layer * 10 + (*p - '0');
    return *p == '.' ? layer : -1;
}

static bool refuse_unexpected(const checkpoint *in, const st_tensor *tensor, tool_error *err)
{
    const monet_arch *arch = &in->config.arch;
    int64_t layer = layer_of(tensor->name);
    char quoted[TOOL_QUOTE];

    tool_quote(quoted, tensor->name, tensor->name_size);
    if (layer >= arch->n_layers)
        return tool_fail(err, "tensor \"%s\": there is no layer %lld, num_hidden_layers is %d",
                         quoted, (long long)layer, (int)arch->n_layers);
    if (strncmp(tensor->name, "model.vision_tower.", 19) == 0 ||
        strncmp(tensor->name, "model.mm_projector.", 19) == 0)
        return tool_fail(err, "tensor \"%s\" belongs to the vision variant, which this version "
                         "does not convert", quoted);
    if (layer >= 0 && strstr(tensor->name, ".router.") != NULL && layer % arch->moe_groups != 0)
        return tool_fail(err, "tensor \"%s\": layer %lld has no router of its own, moe_groups is "
                         "%d", quoted, (long long)layer, (int)arch->moe_groups);
    return tool_fail(err, "tensor \"%s\" is unknown: no Monet model of this config.json has it",
                     quoted);
}

/* Every tensor of the checkpoint has a use, or is known to need none. */
static bool check_leftovers(checkpoint *in, tool_error *err)
{
    static const char rope[] = "rotary_emb.inv_freq";
    uint32_t i, n = 0;

    for (i = 0; i < in->files.n_tensors; i++) {
        const st_tensor *tensor = &in->files.tensors[i];
        if (in->used[i]) continue;
        if (!hf__ends_with(tensor->name, rope)) return refuse_unexpected(in, tensor, err);
        n++;
    }
    if (n > 0)
        printf("left out      %lu tensor%s %s: computed, not read\n", (unsigned long)n,
               n == 1 ? "" : "s", rope);
    return true;
}

/* A variance below zero or a NaN would switch whole routers off. */
static bool check_numbers(const st_file *files, const st_tensor *source, bool variance,
                          tool_error *err)
{
    enum { chunk = 1024 };
    float x[chunk];
    uint64_t at, n, i;

    for (at = 0; at < source->count; at += n) {
        n = source->count - at < chunk ? source->count - at : chunk;
        if (!st_read_f32(files, source, at, n, x, err)) return false;
        for (i = 0; i < n; i++)
            if (!(x[i] >= (variance ? 0 : -FLT_MAX) && x[i] <= FLT_MAX))
                return tool_fail(err, "tensor \"%s\": value %llu is %g, needs a finite number%s",
                                 source->name, (unsigned long long)(at + i), (double)x[i],
                                 variance ? " that is not negative" : "");
    }
    return true;
}

/* The statistics of the routers. */
static bool check_statistics(const checkpoint *in, tool_error *err)
{
    size_t i;

    for (i = 0; i < in->n_tensors; i++) {
        bool variance = hf__ends_with(in->tensors[i].name, ".running_var");
        if (!variance && !hf__ends_with(in->tensors[i].name, ".running_mean")) continue;
        if (!check_numbers(&in->files, in->plan[i].source[0], variance, err)) return false;
    }
    return true;
}

/* The output must not take the place of a file that is read. */
static bool check_output(const checkpoint *in, const char *out, tool_error *err)
{
    static const char *const names[] = {
        "config.json", "generation_config.json", "tokenizer.model", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "model.safetensors.index.json"
    };
    struct stat target, part;
    size_t i;
    uint32_t k;

    if (stat(out, &target) != 0) return true;
    if (S_ISDIR(target.st_mode))
        return tool_fail(err, "%s: is a directory; give the name of a file", out);
    for (k = 0; k < in->files.n_parts; k++)
        if (fstat(in->files.parts[k].fd, &part) == 0 && part.st_dev == target.st_dev &&
            part.st_ino == target.st_ino)
            return tool_fail(err, "%s: is the input as well; choose another name for the output",
                             out);
    for (i = 0; i < sizeof names / sizeof names[0]; i++) {
        char *path = tool_join(in->folder, names[i], err);
        bool ok = path != NULL && refuse_same(path, out, err);
        free(path);
        if (!ok) return false;
    }
    return true;
}

/* ---- the tokenizer --------------------------------------------------------------------------- */

static bool keep_template(hf_notes *notes, const tok_file *tok, tool_error *err)
{
    if (tok->chat_template == NULL) return true;
    if (memchr(tok->chat_template, '\0', tok->chat_template_size) != NULL)
        return tool_fail(err, "the chat template contains byte 0x00");
    return hf_note(notes, "", "chat_template", tok->chat_template, err);
}

static bool open_tokenizer(checkpoint *in, tool_error *err)
{
    bool model = tool_has(in->folder, "tokenizer.model");
    bool json = tool_has(in->folder, "tokenizer.json");

    if (!model && !json) {
        warn("%s: no tokenizer.model and no tokenizer.json: the file will take and give token ids "
             "only", in->folder);
        return true;
    }
    if (!tok_open(&in->tokenizer, in->folder, err)) return false;
    in->tokenizer_name = model ? "tokenizer.model" : "tokenizer.json";
    if (in->tokenizer.n_pieces > in->config.arch.vocab_size)
        return tool_fail(err, "%s: has %d pieces, but \"vocab_size\" in config.json is %d",
                         in->tokenizer_name, (int)in->tokenizer.n_pieces,
                         (int)in->config.arch.vocab_size);
    if (model && json) printf("left out      tokenizer.json: tokenizer.model is the source\n");
    return keep_template(&in->config.notes, &in->tokenizer, err) &&
           hf_note(&in->config.notes, "", "tokenizer.add_bos",
                   in->tokenizer.add_bos ? "true" : "false", err);
}

static bool known_token(const checkpoint *in, const char *what, int32_t id, tool_error *err)
{
    if (id < in->tokenizer.n_pieces) return true;
    return tool_fail(err, "\"%s\" is %d, but %s has %d pieces", what, (int)id, in->tokenizer_name,
                     (int)in->tokenizer.n_pieces);
}

/* Ids that end a text: generation_config.json decides, then config.json, then the tokenizer. */
static bool special_ids(checkpoint *in, const tok_generation *generation, tool_error *err)
{
    hf_config *config = &in->config;
    int32_t i;

    if (generation->n_eos_ids > 0) {
        memcpy(config->eos_ids, generation->eos_ids, sizeof config->eos_ids);
        config->n_eos = generation->n_eos_ids;
    }
    if (in->tokenizer_name == NULL) return true;
    if (config->n_eos == 0 && in->tokenizer.eos_id >= 0)
        config->eos_ids[config->n_eos++] = in->tokenizer.eos_id;
    for (i = 0; i < config->n_eos; i++)
        if (!known_token(in, "eos_token_id", config->eos_ids[i], err)) return false;
    if (config->n_eos == 0) warn("no token ends a text: generation goes on to its limit");
    if (generation->bos_id >= 0) config->bos_id = generation->bos_id;
    if (in->tokenizer.bos_id < 0) in->tokenizer.bos_id = config->bos_id;
    if (in->tokenizer.bos_id < 0) warn("no token begins a text");
    else if (config->bos_id >= 0 && config->bos_id != in->tokenizer.bos_id)
        warn("\"bos_token_id\" is %d, but the tokenizer begins a text with %d, which is used",
             (int)config->bos_id, (int)in->tokenizer.bos_id);
    return known_token(in, "bos_token_id", in->tokenizer.bos_id, err);
}

/* ---- the stream of weights -------------------------------------------------------------------
   The reader, a thread, reads, widens and transposes; the main thread packs and writes. Rows of
   floats go from one to the other through a ring of slots, in the order of the file. A third thread
   sends what was written on to the disk: the system would keep gigabytes in memory until the sync
   at the end, and that would take as long as all the rest.                                      */

typedef struct slot {
    float              *rows;
    uint64_t            size;     /* floats that have room */
    const monet_tensor *tensor;
    int64_t             count, columns;
    uint64_t            bytes;      /* of the input that these rows were */
    uint64_t            n_broken;   /* NaN and infinity */
    uint64_t            n_overflow; /* finite, but infinite in the new dtype */
} slot;

typedef struct stream {
    monet_writer   *writer;
    const st_file  *files;
    unsigned char  *raw;          /* a block as the checkpoint has it */
    uint64_t        raw_size;
    uint64_t        n_broken;     /* as in a slot, of the tensor at hand */
    uint64_t        n_overflow;
    int             n_warnings;
    uint64_t        done;         /* bytes of the input */
    tool_progress   progress;
    pthread_mutex_t lock;         /* for all that follows */
    pthread_cond_t  changed;
    slot            slots[N_SLOTS];
    uint64_t        n_filled, n_written; /* slots, since the start */
    bool            ended, stopped;      /* no more rows will come; no more rows are wanted */
    bool            failed;              /* the reader did, see problem */
    tool_error      problem;
    int             sync_fd;             /* the unfinished file once more; -1 = none */
    int             sync_code;           /* what the disk said; 0 = all well */
} stream;

static void stream_begin(stream *s, const st_file *files)
{
    memset(s, 0, sizeof *s);
    s->files = files;
    s->sync_fd = -1;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
}

static void stream_free(stream *s)
{
    int i;

    monet_writer_free(s->writer);
    if (s->sync_fd >= 0) close(s->sync_fd);
    free(s->raw);
    for (i = 0; i < N_SLOTS; i++) free(s->slots[i].rows);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
}

/* Room for a block of a file; what was there is forgotten. */
static bool reserve_raw(stream *s, uint64_t size, tool_error *err)
{
    if (size <= s->raw_size) return true;
    free(s->raw);
    s->raw = tool_alloc(size, 1, err);
    s->raw_size = s->raw == NULL ? 0 : size;
    return s->raw != NULL;
}

/* Reader: the next slot, once it is free, with room for so many floats; NULL = stop. */
static slot *begin_rows(stream *s, uint64_t n_floats, tool_error *err)
{
    slot *next = &s->slots[s->n_filled % N_SLOTS]; /* only the reader changes n_filled */
    bool stopped;

    pthread_mutex_lock(&s->lock);
    while (!s->stopped && s->n_filled - s->n_written == N_SLOTS)
        pthread_cond_wait(&s->changed, &s->lock);
    stopped = s->stopped;
    pthread_mutex_unlock(&s->lock);
    if (stopped) return NULL;
    if (n_floats <= next->size) return next;
    free(next->rows);
    next->rows = tool_alloc(n_floats, sizeof *next->rows, err);
    next->size = next->rows == NULL ? 0 : n_floats;
    return next->rows == NULL ? NULL : next;
}

/* Bits without sign from which on a float becomes infinite in a dtype. */
static int32_t infinite_from(monet_dtype dtype)
{
    return dtype == MONET_F16 ? 0x477FF000 : dtype == MONET_BF16 ? 0x7F7F8000 : 0x7F800000;
}

static int32_t float_bits(float x)
{
    int32_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7FFFFFFF;
}

/* Most rows have none of these and are done with in the first loop, which compilers vectorise. */
static void count_broken(slot *full)
{
    const int32_t limit = infinite_from(full->tensor->dtype);
    const float *x = full->rows;
    const size_t n = (size_t)(full->count * full->columns);
    int32_t lane[16] = {0}, found = 0;
    size_t i, k;

    for (i = 0; i + 16 <= n; i += 16)
        for (k = 0; k < 16; k++) lane[k] |= (limit - 1 - float_bits(x[i + k])) >> 31;
    for (; i < n; i++) found |= float_bits(x[i]) >= limit;
    for (k = 0; k < 16; k++) found |= lane[k];
    full->n_broken = full->n_overflow = 0;
    if (!found) return;
    for (i = 0; i < n; i++) {
        int32_t bits = float_bits(x[i]);
        full->n_broken += bits >= 0x7F800000;
        full->n_overflow += bits >= limit && bits < 0x7F800000;
    }
}

/* Reader: the slot is full. */
static void end_rows(stream *s, slot *full, const monet_tensor *tensor, int64_t count,
                     int64_t columns, uint64_t bytes)
{
    full->tensor = tensor;
    full->count = count;
    full->columns = columns;
    full->bytes = bytes;
    count_broken(full);
    pthread_mutex_lock(&s->lock);
    s->n_filled++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* A vector is one row of many columns; `step` rows fill whole panels. */
static void row_shape(const monet_tensor *tensor, int64_t *rows, int64_t *columns, int64_t *step)
{
    bool vector = tensor->n_dims == 1;

    *rows = vector ? 1 : tensor->shape[0];
    *columns = vector ? tensor->shape[0] : tensor->shape[1];
    *step = !vector && tensor->panel > 1 ? tensor->panel : 1;
}

/* So many rows that they take at most `bytes`, but whole steps and at least one. */
static int64_t rows_of(uint64_t bytes, uint64_t row_bytes, int64_t step, int64_t rows)
{
    uint64_t steps = bytes / (row_bytes * (uint64_t)step);
    uint64_t most = ((uint64_t)rows + (uint64_t)step - 1) / (uint64_t)step;

    if (steps < 1) steps = 1;
    return (int64_t)(steps < most ? steps : most) * step;
}

/* n numbers of the checkpoint to floats: exact. In runs of 16, which compilers vectorise. */
static void widen(float *out, const unsigned char *raw, monet_dtype dtype, size_t n)
{
    enum { run = 16 };
    uint16_t half[run];
    uint32_t bits[run];
    size_t i, k;

    if (dtype == MONET_F32) {
        memcpy(out, raw, n * sizeof *out);
        return;
    }
    for (i = 0; i + run <= n && dtype == MONET_BF16; i += run) {
        memcpy(half, raw + 2 * i, sizeof half);
        for (k = 0; k < run; k++) bits[k] = (uint32_t)half[k] << 16;
        memcpy(out + i, bits, sizeof bits);
    }
    monet_convert(out + i, MONET_F32, raw + 2 * i, dtype, n - i);
}

/* Tensors whose rows are rows of the checkpoint. */
static bool read_plain(stream *s, const monet_tensor *tensor, const st_tensor *source,
                       tool_error *err)
{
    int64_t rows, columns, step, first, count, most;
    uint64_t width, bytes; /* of a row in the checkpoint, of a block */
    monet_dtype dtype = MONET_F32;

    if (!float_dtype(source, &dtype, err)) return false;
    row_shape(tensor, &rows, &columns, &step);
    width = (uint64_t)columns * monet_dtype_size(dtype);
    most = rows_of(ROWS_BYTES, (uint64_t)columns * sizeof(float), step, rows);
    if (!reserve_raw(s, (uint64_t)most * width, err)) return false;
    for (first = 0; first < rows; first += count) {
        slot *next = begin_rows(s, (uint64_t)(most * columns), err);
        count = rows - first < most ? rows - first : most;
        bytes = (uint64_t)count * width;
        if (next == NULL || !st_read(s->files, source, (uint64_t)first * width, bytes, s->raw, err))
            return false;
        widen(next->rows, s->raw, dtype, (size_t)(count * columns));
        end_rows(s, next, tensor, count, columns, bytes);
    }
    return true;
}

/* ---- the stream of weights: V ----------------------------------------------------------------
   A row of V in the .monet file is a column of the checkpoint. A block of columns is read at a
   time, of both sources of a vertical layer, and transposed in tiles of 16 x 64: 16 floats are a
   cache line of the output, 64 numbers two or four of the input.                                */

enum { TILE_ROWS = 16, TILE_COLUMNS = 64 }; /* of the checkpoint */

typedef struct block {      /* columns first..first+count-1 of each source, in stream.raw */
    const plan_tensor *plan;
    monet_dtype dtype[2];
    uint64_t    start[2];   /* of a source, in raw */
    int64_t     height;     /* rows of a source = columns of the tensor */
    int64_t     first, count;
} block;

static bool read_block(stream *s, const block *b, tool_error *err)
{
    int32_t i;
    int64_t row;

    for (i = 0; i < b->plan->map.n_sources; i++) {
        const st_tensor *source = b->plan->source[i];
        uint64_t size = monet_dtype_size(b->dtype[i]);
        uint64_t width = (uint64_t)b->count * size;
        uint64_t stride = (uint64_t)source->shape[1] * size;
        unsigned char *out = s->raw + b->start[i];
        if (width == stride) { /* the whole tensor: one piece of the file */
            if (!st_read(s->files, source, 0, source->size, out, err)) return false;
            continue;
        }
        for (row = 0; row < b->height; row++)
            if (!st_read(s->files, source, (uint64_t)row * stride + (uint64_t)b->first * size,
                         width, out + (uint64_t)row * width, err))
                return false;
    }
    return true;
}

/* Up to 16 x 64 numbers from `raw`, whose rows are `stride` bytes apart, turned on their side. */
static void turn_tile(float tile[TILE_COLUMNS][TILE_ROWS], const unsigned char *raw, size_t stride,
                      monet_dtype dtype, int64_t n_rows, int64_t n_columns)
{
    float line[TILE_COLUMNS];
    int64_t row, column;

    for (row = 0; row < n_rows; row++) {
        widen(line, raw + (size_t)row * stride, dtype, (size_t)n_columns);
        for (column = 0; column < n_columns; column++) tile[column][row] = line[column];
    }
}

/* Rows row..row+n_rows-1, at most 16, of the block's source `which`, columns from..from+n-1, into
   their rows of the tensor; the first of `rows` is row `base`. */
static void turn_strip(float *rows, const unsigned char *raw, const block *b, int32_t which,
                       int64_t row, int64_t n_rows, int64_t from, int64_t n, int64_t base)
{
    float tile[TILE_COLUMNS][TILE_ROWS];
    size_t size = monet_dtype_size(b->dtype[which]);
    size_t stride = (size_t)b->count * size;
    int64_t column, width, k;

    raw += b->start[which] + (size_t)row * stride;
    for (column = from; column < from + n; column += width) {
        width = from + n - column < TILE_COLUMNS ? from + n - column : TILE_COLUMNS;
        turn_tile(tile, raw + (size_t)column * size, stride, b->dtype[which], n_rows, width);
        for (k = 0; k < width; k++) {
            int64_t place = hf_place(&b->plan->map, which, b->first + column + k) - base;
            memcpy(rows + place * b->height + row, tile[k], (size_t)n_rows * sizeof(float));
        }
    }
}

/* Columns from..from+n-1 of all sources, as rows of the tensor. */
static void turn_columns(float *rows, const unsigned char *raw, const block *b, int64_t from,
                         int64_t n)
{
    int32_t which, n_sources = b->plan->map.n_sources;
    int64_t row, n_rows, base = (b->first + from) * n_sources;

    for (which = 0; which < n_sources; which++)
        for (row = 0; row < b->height; row += n_rows) {
            n_rows = b->height - row < TILE_ROWS ? b->height - row : TILE_ROWS;
            turn_strip(rows, raw, b, which, row, n_rows, from, n, base);
        }
}

/* Sends the block on, `most` columns of each source at a time. */
static bool send_block(stream *s, const monet_tensor *tensor, const block *b, int64_t most,
                       tool_error *err)
{
    int32_t n_sources = b->plan->map.n_sources, which;
    int64_t from, n;

    for (from = 0; from < b->count; from += n) {
        slot *next = begin_rows(s, (uint64_t)(most * n_sources * b->height), err);
        uint64_t bytes = 0;
        if (next == NULL) return false;
        n = b->count - from < most ? b->count - from : most;
        turn_columns(next->rows, s->raw, b, from, n);
        for (which = 0; which < n_sources; which++)
            bytes += (uint64_t)(n * b->height) * monet_dtype_size(b->dtype[which]);
        end_rows(s, next, tensor, n * n_sources, b->height, bytes);
    }
    return true;
}

static int64_t common_multiple(int64_t a, int64_t b)
{
    int64_t x = a, y = b;

    while (y != 0) {
        int64_t rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

static bool read_turned(stream *s, const monet_tensor *tensor, const plan_tensor *plan,
                        tool_error *err)
{
    int32_t n_sources = plan->map.n_sources, i;
    int64_t columns = plan->source[0]->shape[1]; /* of each source */
    int64_t step, most, slice;
    uint64_t column_bytes = 0; /* of one column of all sources */
    block b;

    b.plan = plan;
    b.height = tensor->shape[1];
    for (i = 0; i < n_sources; i++) {
        if (!float_dtype(plan->source[i], &b.dtype[i], err)) return false;
        column_bytes += (uint64_t)b.height * monet_dtype_size(b.dtype[i]);
    }
    step = tensor->panel > 1 ? tensor->panel : 1; /* whole panels, and whole runs of both sources */
    if (n_sources > 1) step = common_multiple(plan->map.run * n_sources, step) / n_sources;
    most = rows_of(BLOCK_BYTES, column_bytes, step, columns);
    slice = rows_of(ROWS_BYTES, (uint64_t)(b.height * n_sources) * sizeof(float), step, columns);
    if (!reserve_raw(s, (uint64_t)most * column_bytes, err)) return false;
    for (b.first = 0; b.first < columns; b.first += b.count) {
        b.count = columns - b.first < most ? columns - b.first : most;
        b.start[0] = 0;
        b.start[1] = (uint64_t)(b.count * b.height) * monet_dtype_size(b.dtype[0]);
        if (!read_block(s, &b, err) || !send_block(s, tensor, &b, slice, err)) return false;
    }
    return true;
}

/* ---- the stream of weights: writing ---------------------------------------------------------- */

static void report_broken(stream *s, const monet_tensor *tensor)
{
    char n[TOOL_HUMAN];

    if (s->n_broken + s->n_overflow == 0) return;
    tool_progress_end(&s->progress);
    if (s->n_warnings == MAX_SHOWN) warn("more tensors have such values");
    if (s->n_warnings < MAX_SHOWN && s->n_broken > 0)
        warn("tensor \"%s\": %s values are NaN or infinite", tensor->name,
             grouped(n, s->n_broken));
    if (s->n_warnings < MAX_SHOWN && s->n_overflow > 0)
        warn("tensor \"%s\": %s values are too large for %s and become infinite", tensor->name,
             grouped(n, s->n_overflow), monet_dtype_name(tensor->dtype));
    s->n_warnings++;
    s->n_broken = s->n_overflow = 0;
}

/* The oldest full slot, or NULL: the reader has ended. */
static const slot *next_rows(stream *s)
{
    bool any;

    pthread_mutex_lock(&s->lock);
    while (s->n_filled == s->n_written && !s->ended) pthread_cond_wait(&s->changed, &s->lock);
    any = s->n_filled != s->n_written;
    pthread_mutex_unlock(&s->lock);
    return any ? &s->slots[s->n_written % N_SLOTS] : NULL;
}

static void release_rows(stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->n_written++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static bool write_rows(stream *s, tool_error *err)
{
    const monet_tensor *tensor = NULL;
    const slot *full;
    monet_error problem = {{0}, MONET_OK};

    while ((full = next_rows(s)) != NULL) {
        if (interrupted) return tool_fail(err, "interrupted: nothing was written");
        if (full->tensor != tensor && tensor != NULL) report_broken(s, tensor);
        tensor = full->tensor;
        s->n_broken += full->n_broken;
        s->n_overflow += full->n_overflow;
        if (monet_writer_rows(s->writer, full->rows, full->count, &problem) != MONET_OK)
            return fail_monet(err, &problem);
        s->done += full->bytes;
        release_rows(s);
        tool_progress_update(&s->progress, s->done);
    }
    if (tensor != NULL) report_broken(s, tensor);
    return true;
}

/* What the reader does: sends all tensors in order, from `source`. */
typedef bool (*read_fn)(stream *s, void *source, tool_error *err);

typedef struct reader {
    stream *s;
    read_fn read;
    void   *source;
} reader;

static void *reader_main(void *arg)
{
    reader *r = arg;
    bool ok = r->read(r->s, r->source, &r->s->problem);

    pthread_mutex_lock(&r->s->lock);
    r->s->failed = !ok;
    r->s->ended = true;
    pthread_cond_broadcast(&r->s->changed);
    pthread_mutex_unlock(&r->s->lock);
    return NULL;
}

static void *syncer_main(void *arg)
{
    stream *s = arg;
    uint64_t synced = 0;
    bool ended;

    do {
        pthread_mutex_lock(&s->lock);
        while (!s->stopped && s->n_written - synced < SYNC_SLOTS)
            pthread_cond_wait(&s->changed, &s->lock);
        synced = s->n_written;
        ended = s->stopped;
        pthread_mutex_unlock(&s->lock);
        if (!ended && TOOL_SYS(fsync)(s->sync_fd) != 0) s->sync_code = errno;
    } while (!ended && s->sync_code == 0);
    return NULL;
}

/* The writer's unfinished file is out.tmp.PID.N, with the first N that was free. If it cannot be
   opened once more, all is well but slower. */
static void open_for_sync(stream *s, const char *out)
{
    uint64_t room = (uint64_t)strlen(out) + 48;
    char *path = tool_alloc(room, 1, NULL);
    int n, fd;

    for (n = 0; path != NULL && n < 1000; n++) {
        snprintf(path, (size_t)room, "%s.tmp.%ld.%d", out, (long)getpid(), n);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0) break;
        if (s->sync_fd >= 0) close(s->sync_fd);
        s->sync_fd = fd;
    }
    free(path);
}

static bool finish_writer(stream *s, tool_error *err)
{
    monet_error problem = {{0}, MONET_OK};

    if (interrupted) return tool_fail(err, "interrupted: nothing was written");
    return monet_writer_finish(s->writer, &problem) == MONET_OK || fail_monet(err, &problem);
}

static void stop_stream(stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->stopped = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* Runs the threads to the end of the file `out`, for which the writer is there. */
static bool run_stream(stream *s, read_fn read, void *source, const char *out, uint64_t bytes,
                       tool_error *err)
{
    reader r;
    pthread_t thread, syncer;
    int code;
    bool syncs, ok;

    r.s = s;
    r.read = read;
    r.source = source;
    tool_progress_begin(&s->progress, "converting", NULL, bytes);
    open_for_sync(s, out);
    code = pthread_create(&thread, NULL, reader_main, &r);
    if (code != 0) return tool_fail(err, "no second thread: %s", strerror(code));
    syncs = s->sync_fd >= 0 && pthread_create(&syncer, NULL, syncer_main, s) == 0;
    ok = write_rows(s, err);
    stop_stream(s);
    pthread_join(thread, NULL);
    if (syncs) pthread_join(syncer, NULL);
    tool_progress_end(&s->progress);
    if (ok && s->failed) ok = tool_fail(err, "%s", s->problem.message);
    if (ok && s->sync_code != 0)
        ok = tool_fail(err, "%s: writing failed: %s", out, strerror(s->sync_code));
    return ok && finish_writer(s, err);
}

/* ---- command: a checkpoint ------------------------------------------------------------------- */

static void checkpoint_close(checkpoint *in)
{
    hf_config_free(&in->config);
    st_close(&in->files);
    tok_free(&in->tokenizer);
    free(in->tensors);
    free(in->plan);
    free(in->used);
    memset(in, 0, sizeof *in);
}

static void print_unknown(const hf_notes *unknown)
{
    char key[TOOL_QUOTE], value[TOOL_QUOTE];
    size_t i;

    for (i = 0; i < unknown->n; i++) {
        const monet_metadata *note = &unknown->items[i];
        printf("unknown key   %s = %s: not used, kept as metadata\n",
               tool_quote(key, note->key, strlen(note->key)),
               tool_quote(value, note->value, strlen(note->value)));
    }
}

/* "bf16", or "bf16 and f32" of a mixed checkpoint; vectors do not count. */
static const char *source_dtypes(const monet_tensor *tensors, size_t n, char out[TOOL_HUMAN])
{
    bool seen[3] = {false, false, false};
    size_t i;
    int used = 0;

    for (i = 0; i < n; i++)
        if (tensors[i].n_dims == 2) seen[tensors[i].source_dtype] = true;
    out[0] = '\0';
    for (i = 0; i < 3; i++)
        if (seen[i])
            used += snprintf(out + used, (size_t)(TOOL_HUMAN - used), "%s%s",
                             used > 0 ? " and " : "", monet_dtype_name((monet_dtype)i));
    return out;
}

static void print_checkpoint(const checkpoint *in)
{
    char parameters[TOOL_HUMAN], bytes[TOOL_HUMAN], dtypes[TOOL_HUMAN];

    print_arch(&in->config.arch);
    printf("weights       %s parameters, %s of %s in %lu file%s\n",
           grouped(parameters, in->n_parameters), tool_human(bytes, in->n_bytes),
           source_dtypes(in->tensors, in->n_tensors, dtypes), (unsigned long)in->files.n_parts,
           in->files.n_parts == 1 ? "" : "s");
    if (in->tokenizer_name != NULL)
        printf("tokenizer     %s: %d pieces, %d merges, bos %d, eos %d%s\n", in->tokenizer_name,
               (int)in->tokenizer.n_pieces, (int)in->tokenizer.n_merges,
               (int)in->tokenizer.bos_id, in->config.n_eos > 0 ? (int)in->config.eos_ids[0] : -1,
               in->config.n_eos > 1 ? " and others" : "");
    if (hf_note_find(&in->config.notes, "chat_template") != NULL)
        printf("chat template kept as metadata\n");
    print_unknown(&in->config.unknown);
    fflush(stdout);
}

/* Reads and checks all but the weights. On failure, too, checkpoint_close is due. */
static bool checkpoint_open(checkpoint *in, const char *folder, const char *out,
                            const dtype_rules *want, tool_error *err)
{
    tok_generation generation;

    memset(in, 0, sizeof *in);
    in->folder = folder;
    return hf_config_load(&in->config, folder, err) && st_open_model(&in->files, folder, err) &&
           make_plan(in, want, err) && keep_counters(in, err) && check_tied_head(in, err) &&
           check_leftovers(in, err) && check_statistics(in, err) && open_tokenizer(in, err) &&
           tok_generation_read(&generation, folder, in->config.arch.vocab_size, err) &&
           special_ids(in, &generation, err) && check_output(in, out, err);
}

static bool create_writer(stream *s, const checkpoint *in, const char *out, tool_error *err)
{
    monet_writer_config config;
    tokenizer_copy tokenizer;
    monet_error problem = {{0}, MONET_OK};
    bool ok = true;

    memset(&config, 0, sizeof config);
    memset(&tokenizer, 0, sizeof tokenizer);
    if (in->tokenizer_name != NULL) {
        ok = tokenizer_copy_file(&tokenizer, &in->tokenizer, err);
        tokenizer.data.eos_ids = in->config.eos_ids;
        tokenizer.data.n_eos = in->config.n_eos;
        config.tokenizer = &tokenizer.data;
    }
    config.arch = &in->config.arch;
    config.tensors = in->tensors;
    config.n_tensors = in->n_tensors;
    config.metadata = in->config.notes.items;
    config.n_metadata = in->config.notes.n;
    if (ok && monet_writer_create(out, &config, &s->writer, &problem) != MONET_OK)
        ok = fail_monet(err, &problem);
    tokenizer_copy_free(&tokenizer);
    return ok;
}

/* Sizes, time and speed of what was done. */
static void print_done(const char *out, uint64_t bytes, double seconds)
{
    struct stat status;
    char size[TOOL_HUMAN], speed[TOOL_HUMAN];
    uint64_t written = stat(out, &status) == 0 ? (uint64_t)status.st_size : 0;

    if (seconds < 1e-3) seconds = 1e-3;
    printf("written       %s: %s in %.1f s, %s/s\n", out, tool_human(size, written), seconds,
           tool_human(speed, (uint64_t)((double)(bytes > written ? bytes : written) / seconds)));
}

/* The reader's part: all tensors of the checkpoint, as the .monet file wants them. */
static bool read_checkpoint(stream *s, void *source, tool_error *err)
{
    const checkpoint *in = source;
    size_t i;

    for (i = 0; i < in->n_tensors; i++) {
        const plan_tensor *plan = &in->plan[i];
        if (!(plan->map.transposed ? read_turned(s, &in->tensors[i], plan, err) :
              read_plain(s, &in->tensors[i], plan->source[0], err)))
            return false;
    }
    return true;
}

static bool write_checkpoint(checkpoint *in, const char *out, tool_error *err)
{
    double start = tool_seconds();
    stream s;
    bool ok;

    stream_begin(&s, &in->files);
    ok = create_writer(&s, in, out, err) &&
         run_stream(&s, read_checkpoint, in, out, in->n_bytes, err);
    stream_free(&s);
    if (ok) print_done(out, in->n_bytes, tool_seconds() - start);
    return ok;
}

static bool convert_checkpoint(const char *folder, const char *out, const dtype_rules *want,
                               tool_error *err)
{
    checkpoint in;
    bool ok = checkpoint_open(&in, folder, out, want, err);

    if (ok) {
        print_checkpoint(&in);
        ok = note_dtypes(&in.config.notes, in.tensors, in.n_tensors, err) &&
             write_checkpoint(&in, out, err);
    }
    checkpoint_close(&in);
    return ok;
}

/* ---- command: a .monet file again ------------------------------------------------------------ */

/* Metadata of the old file, but not about quantised tensors if the new ones will be noted. */
static bool keep_notes(hf_notes *notes, const monet_model *model, const monet_tensor *tensors,
                       size_t n_tensors, tool_error *err)
{
    const bool noted = any_quantised(tensors, n_tensors);
    size_t i, n = monet_model_metadata_count(model);

    for (i = 0; i < n; i++) {
        const char *key = monet_model_metadata_key(model, i);
        if (noted && strncmp(key, "quantised.", 10) == 0) continue;
        if (!hf_note(notes, "", key, monet_model_metadata_value(model, i), err)) return false;
    }
    return note_dtypes(notes, tensors, n_tensors, err);
}

/* The same tensors; those that may have another dtype get it. */
static monet_tensor *recoded_tensors(const monet_model *model, const dtype_rules *want, size_t *n,
                                     tool_error *err)
{
    monet_tensor *tensors = describe_tensors(monet_model_arch(model), MONET_BF16, n, err);
    size_t i;

    for (i = 0; tensors != NULL && i < *n; i++) {
        const monet_tensor *old = monet_model_tensor(model, i);
        tensors[i].dtype = old->n_dims == 2 ? new_dtype(want, old, old->dtype) : old->dtype;
        tensors[i].source_dtype = old->source_dtype;
    }
    if (tensors == NULL || check_rules(want, tensors, *n, err)) return tensors;
    free(tensors);
    return NULL;
}

static bool create_recoder(stream *s, const monet_model *model, const monet_tensor *tensors,
                           size_t n_tensors, const char *out, tool_error *err)
{
    const monet_tokenizer *old = monet_model_tokenizer(model);
    monet_writer_config config;
    tokenizer_copy tokenizer;
    monet_error problem = {{0}, MONET_OK};
    hf_notes notes = {NULL, 0, 0};
    bool ok;

    memset(&config, 0, sizeof config);
    memset(&tokenizer, 0, sizeof tokenizer);
    ok = keep_notes(&notes, model, tensors, n_tensors, err) &&
         (old == NULL || tokenizer_copy_model(&tokenizer, old, err));
    config.arch = monet_model_arch(model);
    config.tensors = tensors;
    config.n_tensors = n_tensors;
    if (old != NULL) config.tokenizer = &tokenizer.data;
    config.metadata = notes.items;
    config.n_metadata = notes.n;
    if (ok && monet_writer_create(out, &config, &s->writer, &problem) != MONET_OK)
        ok = fail_monet(err, &problem);
    tokenizer_copy_free(&tokenizer);
    hf_notes_free(&notes);
    return ok;
}

/* The pages of a mapped file count as resident once they were read: map it anew now and then. */
typedef struct source_model {
    const char   *path;
    monet_model  *model;
    uint64_t      read;     /* bytes since it was mapped */
    monet_tensor *targets;  /* what is written, in the same order */
    size_t        n_tensors;
} source_model;

static const monet_tensor *source_tensor(source_model *in, size_t index, tool_error *err)
{
    const monet_tensor *tensor, *target = &in->targets[index];

    if (in->read >= MAP_BYTES) {
        monet_model_free(in->model);
        in->model = NULL;
        in->read = 0;
        if (!run_load_any(in->path, &in->model, err)) return NULL;
    }
    tensor = monet_model_tensor(in->model, index);
    if (tensor != NULL && strcmp(tensor->name, target->name) == 0 &&
        tensor->shape[0] == target->shape[0] && tensor->shape[1] == target->shape[1])
        return tensor;
    tool_fail(err, "%s: has become another file while it was read", in->path);
    return NULL;
}

static bool read_again(stream *s, source_model *in, size_t index, tool_error *err)
{
    int64_t rows, columns, step, first, count, most;

    row_shape(&in->targets[index], &rows, &columns, &step);
    most = rows_of(ROWS_BYTES, (uint64_t)columns * sizeof(float), step, rows);
    for (first = 0; first < rows; first += count) {
        const monet_tensor *tensor = source_tensor(in, index, err);
        slot *next = tensor == NULL ? NULL : begin_rows(s, (uint64_t)(most * columns), err);
        uint64_t bytes;
        if (next == NULL) return false;
        count = rows - first < most ? rows - first : most;
        bytes = tensor->size / (uint64_t)rows * (uint64_t)count;
        if (monet_tensor_read(tensor, first, count, next->rows) != MONET_OK)
            return tool_fail(err, "tensor \"%s\" cannot be read", tensor->name);
        in->read += bytes;
        end_rows(s, next, &in->targets[index], count, columns, bytes);
    }
    return true;
}

static bool read_model(stream *s, void *source, tool_error *err)
{
    source_model *in = source;
    size_t i;

    for (i = 0; i < in->n_tensors; i++)
        if (!read_again(s, in, i, err)) return false;
    return true;
}

static bool convert_monet(const char *path, const char *out, const dtype_rules *want,
                          tool_error *err)
{
    double start = tool_seconds();
    struct stat status;
    source_model in = {path, NULL, 0, NULL, 0};
    stream s;
    bool ok;

    if (!refuse_same(path, out, err) || !run_load_any(path, &in.model, err)) return false;
    stream_begin(&s, NULL);
    if (monet_model_arch(in.model) != NULL) {
        print_arch(monet_model_arch(in.model));
        in.targets = recoded_tensors(in.model, want, &in.n_tensors, err);
    }
    ok = (in.targets != NULL || monet_model_arch(in.model) == NULL) &&
         create_recoder(&s, in.model, in.targets, in.n_tensors, out, err) &&
         run_stream(&s, read_model, &in, out,
                    stat(path, &status) == 0 ? (uint64_t)status.st_size : 0, err);
    if (ok) print_done(out, s.done, tool_seconds() - start);
    stream_free(&s);
    monet_model_free(in.model);
    free(in.targets);
    return ok;
}

/* ---- command: a tokenizer alone -------------------------------------------------------------- */

static bool convert_tokenizer(const char *path, const char *out, tool_error *err)
{
    monet_writer_config config;
    tokenizer_copy tokenizer;
    monet_error problem = {{0}, MONET_OK};
    hf_notes notes = {NULL, 0, 0};
    tok_file tok;
    stream s;
    bool ok;

    memset(&config, 0, sizeof config);
    if (!refuse_same(path, out, err) || !tok_open(&tok, path, err)) return false;
    stream_begin(&s, NULL);
    ok = tokenizer_copy_file(&tokenizer, &tok, err) && keep_template(&notes, &tok, err);
    config.tokenizer = &tokenizer.data;
    config.metadata = notes.items;
    config.n_metadata = notes.n;
    if (ok && monet_writer_create(out, &config, &s.writer, &problem) != MONET_OK)
        ok = fail_monet(err, &problem);
    ok = ok && finish_writer(&s, err);
    stream_free(&s);
    if (ok) printf("written       %s: %d pieces, %d merges\n", out,
                   (int)tokenizer.data.n_pieces, (int)tokenizer.data.n_merges);
    tokenizer_copy_free(&tokenizer);
    hf_notes_free(&notes);
    tok_free(&tok);
    return ok;
}

/* ---- commands: info and verify --------------------------------------------------------------- */

static void info_tokenizer(const monet_tokenizer *tokenizer)
{
    static const char *const prefix[] = {"never", "always", "unless one is there"};
    monet_tokenizer_data data;
    int32_t i, n;

    if (tokenizer == NULL) {
        printf("tokenizer     none\n");
        return;
    }
    monet_tokenizer_describe(tokenizer, NULL, NULL, NULL, &data);
    printf("tokenizer     %d pieces, %d merges; unk %d, bos %d, eos", (int)data.n_pieces,
           (int)data.n_merges, (int)data.unk_id, (int)data.bos_id);
    n = monet_tokenizer_size(tokenizer);
    for (i = 0; i < n; i++)
        if (monet_tokenizer_is_eos(tokenizer, i)) printf(" %d", (int)i);
    printf("\n              a space before the text: %s; decoding drops one: %s\n",
           data.prefix_space >= 0 && data.prefix_space < 3 ? prefix[data.prefix_space] : "?",
           data.strip_space ? "yes" : "no");
}

static void info_metadata(const monet_model *model)
{
    char key[TOOL_QUOTE], value[TOOL_QUOTE];
    size_t i, n = monet_model_metadata_count(model);

    if (n > 0) printf("\nmetadata (\"config.\": keys of config.json that the architecture does not "
                      "use)\n");
    for (i = 0; i < n; i++) {
        const char *k = monet_model_metadata_key(model, i);
        const char *v = monet_model_metadata_value(model, i);
        printf("  %s = %s\n", tool_quote(key, k, strlen(k)), tool_quote(value, v, strlen(v)));
    }
}

static void info_tensors(const monet_model *model)
{
    static const char *const layouts[] = {"rows", "panels", "sums"};
    size_t i, n = monet_model_tensor_count(model);
    char shape[ST_SHAPE], size[TOOL_HUMAN];

    if (n > 0)
        printf("\n%-44s %-14s %-5s %-5s %-6s %5s %10s  %s\n", "tensor", "shape", "dtype", "from",
               "layout", "panel", "size", "XXH64");
    for (i = 0; i < n; i++) {
        const monet_tensor *t = monet_model_tensor(model, i);
        printf("%-44s %-14s %-5s %-5s %-6s %5d %10s  %016llx\n", t->name,
               st_shape(shape, t->n_dims, t->shape), monet_dtype_name(t->dtype),
               monet_dtype_name(t->source_dtype), layouts[t->layout], (int)t->panel,
               tool_human(size, t->size), (unsigned long long)t->hash);
    }
}

static void info_sizes(const monet_model *model, const char *path)
{
    size_t i, n = monet_model_tensor_count(model);
    uint64_t parameters = 0;
    struct stat status;
    char size[TOOL_HUMAN], count[TOOL_HUMAN];

    for (i = 0; i < n; i++) {
        const monet_tensor *t = monet_model_tensor(model, i);
        if (strstr(t->name, ".running_") == NULL) /* statistics are not trained */
            parameters += (uint64_t)t->shape[0] * (uint64_t)(t->n_dims == 1 ? 1 : t->shape[1]);
    }
    if (stat(path, &status) == 0)
        printf("file          %s: %s, %s parameters in %lu tensors\n", path,
               tool_human(size, (uint64_t)status.st_size), grouped(count, parameters),
               (unsigned long)n);
}

static bool show_info(const char *path, tool_error *err)
{
    monet_model *model;

    if (!run_load_any(path, &model, err)) return false;
    info_sizes(model, path);
    if (monet_model_arch(model) != NULL) print_arch(monet_model_arch(model));
    info_tokenizer(monet_model_tokenizer(model));
    info_metadata(model);
    info_tensors(model);
    monet_model_free(model);
    return true;
}

static bool verify(const char *path, tool_error *err)
{
    monet_error problem = {{0}, MONET_OK};
    monet_model *model;
    bool ok;

    if (!run_load_any(path, &model, err)) return false;
    ok = monet_model_verify(model, &problem) == MONET_OK;
    if (ok)
        printf("%s: intact, the hashes of all %lu tensors agree\n", path,
               (unsigned long)monet_model_tensor_count(model));
    else {
        fail_monet(err, &problem);
        tool_prefix(err, path);
    }
    monet_model_free(model);
    return ok;
}

/* ---- command: a C array ----------------------------------------------------------------------
   The bytes are a string literal: compilers read it twenty times faster than a list of numbers.
   Its terminating zero stands behind the file's bytes; C++ does not allow to leave it out.      */

enum { LINE_BYTES = 92 }; /* of text before a line is ended */

typedef struct escape { /* how a byte is written; `wide` before a digit */
    char text[5], wide[5];
} escape;

static void make_escapes(escape table[256])
{
    int i;

    for (i = 0; i < 256; i++) {
        bool plain = i >= ' ' && i <= '~' && i != '"' && i != '\\' && i != '?'; /* ?: trigraphs */
        snprintf(table[i].text, sizeof table[i].text, plain ? "%c" : "\\%o", (unsigned)i);
        snprintf(table[i].wide, sizeof table[i].wide, plain ? "%c" : "\\%03o", (unsigned)i);
    }
}

/* Bytes as lines of a string literal, each "..." on its own. *column: bytes on the open line. */
static void put_literal(tool_buffer *text, const escape table[256], const unsigned char *bytes,
                        size_t n, size_t *column)
{
    size_t i;

    for (i = 0; i < n; i++) {
        bool digit = i + 1 == n || (bytes[i + 1] >= '0' && bytes[i + 1] <= '9');
        const char *s = digit ? table[bytes[i]].wide : table[bytes[i]].text;
        size_t size = strlen(s);
        if (*column >= LINE_BYTES) {
            tool_put(text, "\"\n\"", 3);
            *column = 0;
        }
        tool_put(text, s, size);
        *column += size;
    }
}

static void put_array_start(tool_buffer *text, const char *name, const char *source,
                            uint64_t size)
{
    static const char aligned[] =
        "#if defined(__GNUC__) || defined(__clang__)\n"
        "#pragma GCC diagnostic ignored \"-Woverlength-strings\"\n"
        "#define ALIGNED_64 __attribute__((aligned(64)))\n"
        "#elif defined(_MSC_VER)\n"
        "#define ALIGNED_64 __declspec(align(64))\n"
        "#elif defined(__cplusplus)\n"
        "#define ALIGNED_64 alignas(64)\n"
        "#else\n"
        "#define ALIGNED_64 _Alignas(64)\n"
        "#endif\n\n"
        "#ifdef __cplusplus\n"
        "extern \"C\" {\n"
        "#endif\n";
    char digits[TOOL_HUMAN];

    snprintf(digits, sizeof digits, "%llu", (unsigned long long)size);
    tool_putf(text, "/* %.100s as a C array, made by convert --c-array. In other files:\n", source);
    tool_putf(text, "       extern const unsigned char %s[];   aligned to 64 bytes\n", name);
    tool_putf(text, "       extern const size_t %s_size;\n", name);
    tool_putf(text, "       monet_model_load_memory(%s, %s_size, NULL, &model, &error)  */\n", name,
              name);
    tool_putf(text, "#include <stddef.h>\n\n");
    tool_put(text, aligned, sizeof aligned - 1);
    tool_putf(text, "extern const unsigned char %s[%s + 1];\n", name, digits);
    tool_putf(text, "extern const size_t %s_size;\n\n", name);
    tool_putf(text, "const size_t %s_size = %s;\n", name, digits);
    tool_putf(text, "ALIGNED_64 const unsigned char %s[%s + 1] =\n\"", name, digits);
}

static bool write_array(tool_output *output, int fd, uint64_t size, const char *name,
                        const char *source, tool_error *err)
{
    static const char end[] = "\";\n\n#ifdef __cplusplus\n}\n#endif\n";
    enum { chunk = 65536 };
    tool_buffer text = {NULL, 0, 0, false};
    unsigned char *bytes = tool_alloc(chunk, 1, err);
    escape table[256];
    size_t column = 0;
    uint64_t at, n;
    bool ok = bytes != NULL;

    make_escapes(table);
    put_array_start(&text, name, source, size);
    for (at = 0; ok && at < size; at += n) {
        n = size - at < chunk ? size - at : chunk;
        ok = tool_pread(fd, bytes, n, at, err);
        if (ok) put_literal(&text, table, bytes, (size_t)n, &column);
        ok = ok && !text.failed && tool_output_write(output, text.data, text.size, err);
        text.size = 0;
    }
    ok = ok && tool_output_write(output, end, sizeof end - 1, err);
    tool_buffer_free(&text);
    free(bytes);
    return ok;
}

static bool check_identifier(const char *name, tool_error *err)
{
    size_t i, size = strlen(name);

    for (i = 0; i < size; i++) {
        char c = name[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
        if (!letter && (i == 0 || c < '0' || c > '9')) break;
    }
    if (size > 0 && size <= 63 && i == size) return true;
    return tool_fail(err, "\"%.80s\" is not a C identifier of 1 to 63 characters", name);
}

static bool make_array(const char *path, const char *out, const char *name, tool_error *err)
{
    const char *source = tool_base_name(path);
    monet_model *model;
    struct stat status;
    tool_output output;
    char quoted[TOOL_QUOTE];
    int fd;
    bool ok;

    if (!check_identifier(name, err) || !refuse_same(path, out, err) ||
        !run_load_any(path, &model, err))
        return false;
    monet_model_free(model); /* it is a .monet file */
    fd = tool__open(path, &status, err);
    if (fd < 0) return tool_prefix(err, path);
    tool_remove_on_signal();
    ok = tool_output_open(&output, out, err);
    if (ok) {
        ok = write_array(&output, fd, (uint64_t)status.st_size, name,
                         tool_quote(quoted, source, strlen(source)), err) &&
             tool_output_commit(&output, err);
        tool_output_abandon(&output);
    }
    close(fd);
    if (ok) printf("written       %s: %s[], %s_size\n", out, name, name);
    return ok;
}

/* ---- main ------------------------------------------------------------------------------------ */

static const char help[] =
    "convert HF_FOLDER OUT.monet [options]\n"
    "    makes a .monet file of a checkpoint of Hugging Face: config.json, model.safetensors or\n"
    "    its shards, tokenizer.model or tokenizer.json\n"
    "convert IN.monet OUT.monet [options]\n"
    "    writes a .monet file again. Options of both:\n"
    "    --dtype f32|f16|bf16|q8|q4  of the weights (without it they keep their precision).\n"
    "          Vectors and statistics are f32. q8 and q4, 8.5 and 4.5 bits a weight, are for\n"
    "          attention, experts and lm_head; embeddings are q8 then, routers and expert\n"
    "          biases keep 16 bits.\n"
    "    --router DTYPE      of the routers, for instance q8: less to read for every token, but a\n"
    "          few other experts are chosen\n"
    "    --set NAMES=DTYPE   of the tensors of these names, as --info shows them; '*' stands for\n"
    "          any characters: --set '*.self_attn.o_proj.*=q8'. The last that fits counts.\n"
    "convert --tokenizer FILE OUT.monet\n"
    "    a tokenizer alone; FILE is a tokenizer.model, a tokenizer.json or a folder\n"
    "convert --info FILE.monet\n"
    "    shows architecture, tokenizer, metadata and tensors with their hashes\n"
    "convert --verify FILE.monet\n"
    "    compares the hashes of all weights\n"
    "convert --c-array FILE.monet OUT.c [NAME]\n"
    "    a C source file with the bytes of the file, for programs without files: NAME[], aligned\n"
    "    to 64 bytes, and NAME_size (NAME: monet_model)\n"
    "convert --help\n"
    "\n"
    "The output appears when it is complete, or not at all.\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage.\n";

typedef struct arguments {
    const char *command;   /* "" = convert */
    const char *paths[3];
    int         n_paths;
    dtype_rules want;
} arguments;

static bool usage(const char *what, const char *word)
{
    fprintf(stderr, "convert: %s%s%s\nconvert --help lists the commands.\n", what,
            word == NULL ? "" : ": ", word == NULL ? "" : word);
    return false;
}

static bool parse_dtype(const char *option, const char *word, int *dtype)
{
    char message[80];

    for (*dtype = 0; word != NULL && *dtype <= MONET_Q4; *dtype += 1)
        if (strcmp(word, monet_dtype_name((monet_dtype)*dtype)) == 0) return true;
    snprintf(message, sizeof message, "%s needs f32, f16, bf16, q8 or q4%s", option,
             word == NULL ? "" : ", not");
    return usage(message, word);
}

/* "NAMES=DTYPE" of --set, or the dtype of `names`. */
static bool parse_rule(dtype_rules *want, const char *option, const char *names, const char *word)
{
    dtype_rule *rule = &want->rules[want->n_rules];
    const char *equals = word == NULL ? NULL : strrchr(word, '=');
    int dtype;

    if (want->n_rules == MAX_RULES) return usage("too many options", option);
    if (names == NULL && (equals == NULL || equals == word))
        return usage("--set needs NAMES=DTYPE", word);
    rule->names = names != NULL ? names : word;
    rule->size = names != NULL ? strlen(names) : (size_t)(equals - word);
    if (!parse_dtype(option, names != NULL ? word : equals + 1, &dtype)) return false;
    rule->dtype = (monet_dtype)dtype;
    want->n_rules++;
    return true;
}

static bool parse_command(arguments *a, const char *word)
{
    static const char *const commands[] = {"--info", "--verify", "--tokenizer", "--c-array",
                                           "--help"};
    size_t i;

    for (i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(word, commands[i]) == 0) {
            if (a->command[0] != '\0') return usage("only one command at a time", word);
            a->command = commands[i];
            return true;
        }
    return usage("unknown option", word);
}

/* An option with a value; NULL if there is none. */
static bool parse_option(arguments *a, const char *option, const char *value)
{
    if (strcmp(option, "--dtype") == 0) return parse_dtype(option, value, &a->want.all);
    if (strcmp(option, "--router") == 0)
        return parse_rule(&a->want, option, "layers.*.router.*", value);
    return parse_rule(&a->want, option, NULL, value);
}

static bool is_option(const char *word)
{
    return strcmp(word, "--dtype") == 0 || strcmp(word, "--router") == 0 ||
           strcmp(word, "--set") == 0;
}

static bool parse_arguments(arguments *a, int argc, char **argv)
{
    bool options = true;
    int i;

    memset(a, 0, sizeof *a);
    a->command = "";
    a->want.all = -1;
    for (i = 1; i < argc; i++) {
        if (options && strcmp(argv[i], "--") == 0) {
            options = false;
        } else if (options && is_option(argv[i])) {
            if (!parse_option(a, argv[i], i + 1 < argc ? argv[i + 1] : NULL)) return false;
            i++;
        } else if (options && argv[i][0] == '-') {
            if (!parse_command(a, argv[i])) return false;
        } else {
            if (a->n_paths == 3) return usage("one argument too many", argv[i]);
            a->paths[a->n_paths++] = argv[i];
        }
    }
    return true;
}

static bool is_folder(const char *path)
{
    struct stat status;

    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

/* 0 done, 1 failed with a message, 2 wrong usage. */
static int run(const arguments *a, tool_error *err)
{
    const char *const *p = a->paths;
    bool one = a->n_paths == 1, two = a->n_paths == 2;
    bool plain = a->command[0] == '\0';

    if (!plain && (a->want.all >= 0 || a->want.n_rules > 0))
        return usage("a dtype does not go with", a->command), EXIT_USAGE;
    if (strcmp(a->command, "--info") == 0 && one) return !show_info(p[0], err);
    if (strcmp(a->command, "--verify") == 0 && one) return !verify(p[0], err);
    if (strcmp(a->command, "--tokenizer") == 0 && two) return !convert_tokenizer(p[0], p[1], err);
    if (strcmp(a->command, "--c-array") == 0 && (two || a->n_paths == 3))
        return !make_array(p[0], p[1], two ? "monet_model" : p[2], err);
    if (plain && two && is_folder(p[0])) return !convert_checkpoint(p[0], p[1], &a->want, err);
    if (plain && two) return !convert_monet(p[0], p[1], &a->want, err);
    usage(plain ? "needs an input and an output" : "wrong number of arguments for",
          plain ? NULL : a->command);
    return EXIT_USAGE;
}

int main(int argc, char **argv)
{
    tool_error err = {""};
    arguments a;
    int status;

    if (!parse_arguments(&a, argc, argv)) return EXIT_USAGE;
    if (strcmp(a.command, "--help") == 0) {
        fputs(help, stdout);
        return 0;
    }
    stop_on_signal();
    status = run(&a, &err);
    if (status == 1) fprintf(stderr, "convert: %s\n", err.message);
    if (fflush(stdout) != 0 && status == 0) status = 1;
    return status;
}
