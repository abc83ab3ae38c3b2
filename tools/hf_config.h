/* hf_config.h: reads config.json and generation_config.json of a Monet checkpoint.

   What the arithmetic needs goes into a monet_arch. What asks for something that monet.h does not
   compute is refused, by key and value. All other keys are kept as metadata "config.KEY" and
   "generation.KEY", each value as its JSON text, so that an export can write them again.

       hf_config config;
       if (!hf_config_load(&config, folder, &err)) ...
       hf_config_free(&config);                                                                 */
#ifndef TOOL_HF_CONFIG_H
#define TOOL_HF_CONFIG_H

#include "json.h"

#include "monet.h"

#define HF_MAX_CONFIG (1u << 20) /* bytes of a configuration file */
#define HF_MAX_EOS 64

/* ---- notes: metadata that will be written ---------------------------------------------------- */

typedef struct hf_notes { /* keys and values are owned */
    monet_metadata *items;
    size_t          n, capacity;
} hf_notes;

static TOOL_UNUSED void hf_notes_free(hf_notes *notes)
{
    size_t i;

    for (i = 0; i < notes->n; i++) {
        free((void *)(uintptr_t)notes->items[i].key);
        free((void *)(uintptr_t)notes->items[i].value);
    }
    free(notes->items);
    memset(notes, 0, sizeof *notes);
}

/* Adds "prefix" "key" = value. Neither may hold a zero byte. */
static TOOL_UNUSED bool hf_note(hf_notes *notes, const char *prefix, const char *key,
                                const char *value, tool_error *err)
{
    size_t a = strlen(prefix), b = strlen(key);
    char *name, *text;

    if (!tool_grow(&notes->items, &notes->capacity, (uint64_t)notes->n + 1, sizeof *notes->items,
                   err))
        return false;
    name = tool_alloc((uint64_t)a + b + 1, 1, err);
    text = name == NULL ? NULL : tool_copy(value, strlen(value), err);
    if (text == NULL) {
        free(name);
        return false;
    }
    memcpy(name, prefix, a);
    memcpy(name + a, key, b);
    notes->items[notes->n].key = name;
    notes->items[notes->n++].value = text;
    return true;
}

static TOOL_UNUSED const char *hf_note_find(const hf_notes *notes, const char *key)
{
    size_t i;

    for (i = 0; i < notes->n; i++)
        if (strcmp(notes->items[i].key, key) == 0) return notes->items[i].value;
    return NULL;
}

static TOOL_UNUSED void hf__put_scalar(tool_buffer *out, const json_doc *doc, uint32_t value)
{
    static const char *const words[] = {"null", "false", "true"};
    json_type type = json_typeof(doc, value);
    size_t size;
    const char *bytes = json_string(doc, value, &size);

    if (bytes != NULL)
        json_put_string(out, bytes, size);
    else if (type == JSON_NUMBER)
        tool_put(out, doc->text + json_offset(doc, value), doc->tokens[value].tail);
    else
        tool_put(out, words[type], strlen(words[type]));
}

/* The JSON text of a value, without blanks. */
static TOOL_UNUSED void hf_put_json(tool_buffer *out, const json_doc *doc, uint32_t value)
{
    json_each open[JSON_MAX_DEPTH];
    bool more[JSON_MAX_DEPTH]; /* the innermost one has an element already */
    int depth = 0;

    for (;;) {
        if (json_typeof(doc, value) >= JSON_ARRAY) {
            open[depth] = json_begin(doc, value);
            tool_put(out, open[depth].object ? "{" : "[", 1);
            more[depth++] = false;
        } else {
            hf__put_scalar(out, doc, value);
        }
        while (depth > 0 && !json_step(doc, &open[depth - 1]))
            tool_put(out, open[--depth].object ? "}" : "]", 1);
        if (depth == 0) return;
        if (more[depth - 1]) tool_put(out, ",", 1);
        more[depth - 1] = true;
        if (open[depth - 1].object) {
            hf__put_scalar(out, doc, open[depth - 1].key);
            tool_put(out, ":", 1);
        }
        value = open[depth - 1].value;
    }
}

/* A note "prefix" "key" with the value's JSON text. */
static TOOL_UNUSED bool hf_note_json(hf_notes *notes, const char *prefix, const json_doc *doc,
                                     const json_each *it, tool_error *err)
{
    size_t size = 0;
    const char *key = json_string(doc, it->key, &size);
    tool_buffer text = {NULL, 0, 0, false};
    char quoted[TOOL_QUOTE];
    bool ok;

    if (memchr(key, '\0', size) != NULL)
        return tool_fail(err, "the key \"%s\" contains byte 0x00", tool_quote(quoted, key, size));
    hf_put_json(&text, doc, it->value);
    ok = text.failed ? tool_fail(err, "out of memory") :
         hf_note(notes, prefix, key, text.data, err);
    tool_buffer_free(&text);
    return ok;
}

/* ---- config.json: the architecture ----------------------------------------------------------- */

typedef struct hf_config {
    monet_arch arch;
    hf_notes   notes;
    hf_notes   unknown;         /* keys that this code does not know; also in notes */
    int32_t    bos_id, pad_id;  /* -1 = not given */
    int32_t    eos_ids[HF_MAX_EOS];
    int32_t    n_eos;           /* 0 = not given */
} hf_config;

enum { HF_REQUIRED = -1 };

typedef struct hf__number {
    const char *key;
    const char *name;   /* of the field, in the words of monet_arch_check */
    size_t      field;  /* its place in monet_arch; int32_t */
    int32_t     absent; /* what the published code takes; HF_REQUIRED: refuse */
} hf__number;

#define HF__NUMBER(key, field, absent) {key, #field, offsetof(monet_arch, field), absent}
static TOOL_UNUSED const hf__number hf__numbers[] = {
    HF__NUMBER("vocab_size", vocab_size, HF_REQUIRED),
    HF__NUMBER("hidden_size", dim, HF_REQUIRED),
    HF__NUMBER("num_hidden_layers", n_layers, HF_REQUIRED),
    HF__NUMBER("num_attention_heads", n_heads, HF_REQUIRED),
    HF__NUMBER("num_key_value_heads", n_kv_heads, 0), /* as many as query heads */
    HF__NUMBER("max_position_embeddings", max_seq_len, 2048),
    HF__NUMBER("moe_experts", moe_experts, HF_REQUIRED),
    HF__NUMBER("moe_dim", moe_dim, HF_REQUIRED),
    HF__NUMBER("moe_heads", moe_heads, HF_REQUIRED),
    HF__NUMBER("moe_topk", moe_topk, 32),
    HF__NUMBER("moe_groups", moe_groups, 4),
};

/* Other keys with a meaning: they set a field, or must have a value that asks for nothing. */
static TOOL_UNUSED const char *const hf__read_keys[] = {
    "moe_decompose", "tie_word_embeddings", "rope_theta", "rms_norm_eps"
};

/* Keys that change nothing that monet.h computes. */
static TOOL_UNUSED const char *const hf__harmless_keys[] = {
    "_name_or_path", "architectures", "attention_bias", "attention_dropout", "auto_map",
    "bos_token_id", "dtype", "eos_token_id", "head_dim", "hidden_act", "initializer_range",
    "intermediate_size", "mlp_bias", "model_type", "output_router_probs", "pad_token_id",
    "pretraining_tp", "rope_parameters", "rope_scaling", "torch_dtype", "transformers_version",
    "use_cache"
};

static TOOL_UNUSED bool hf__refuse(const json_doc *doc, uint32_t value, const char *key,
                                   const char *why, tool_error *err)
{
    char shown[TOOL_QUOTE];

    return tool_fail(err, "\"%s\" is %s: %s", key, json_show(doc, value, shown), why);
}

static TOOL_UNUSED bool hf__has_element(const json_doc *doc, uint32_t array, const char *text)
{
    json_each it = json_begin(doc, array);

    while (!it.object && json_step(doc, &it))
        if (json_equals(doc, it.value, text)) return true;
    return false;
}

/* Is this a Monet at all, and one for text? */
static TOOL_UNUSED bool hf__check_kind(const json_doc *doc, tool_error *err)
{
    static const char vision[] = "the vision variant, which this version does not convert";
    uint32_t kind = json_find(doc, 0, "model_type");
    uint32_t list = json_find(doc, 0, "architectures");
    uint32_t tower = json_find(doc, 0, "mm_vision_tower");
    json_each it = json_begin(doc, list);

    if (json_equals(doc, kind, "llava_monet"))
        return hf__refuse(doc, kind, "model_type", vision, err);
    if (hf__has_element(doc, list, "LlavaMonetForCausalLM"))
        return tool_fail(err, "\"architectures\" has \"LlavaMonetForCausalLM\": %s", vision);
    if (!json_is_null(doc, tower)) return hf__refuse(doc, tower, "mm_vision_tower", vision, err);
    if (json_is_null(doc, kind) && json_is_null(doc, list))
        return tool_fail(err, "\"model_type\" is missing, needs \"monet\"");
    if (!json_is_null(doc, kind) && !json_equals(doc, kind, "monet"))
        return hf__refuse(doc, kind, "model_type", "needs \"monet\"", err);
    if (json_is_null(doc, list) || hf__has_element(doc, list, "MonetForCausalLM")) return true;
    if (json_typeof(doc, list) == JSON_ARRAY && json_step(doc, &it)) list = it.value;
    return hf__refuse(doc, list, "architectures", "needs \"MonetForCausalLM\"", err);
}

/* Values that ask for arithmetic which monet.h does not have. */
static TOOL_UNUSED bool hf__check_unsupported(const json_doc *doc, tool_error *err)
{
    static const struct { const char *key; bool or_false; } off[] = {
        {"rope_scaling", false}, {"attention_bias", true}, {"mlp_bias", true},
        {"quantization_config", false}, {"sliding_window", true}
    };
    uint32_t value;
    double factor;
    size_t i;

    for (i = 0; i < sizeof off / sizeof off[0]; i++) {
        value = json_find(doc, 0, off[i].key);
        if (json_is_null(doc, value)) continue;
        if (off[i].or_false && json_typeof(doc, value) == JSON_FALSE) continue;
        return hf__refuse(doc, value, off[i].key, off[i].or_false ?
                          "not supported, needs false or null" : "not supported, needs null", err);
    }
    value = json_find(doc, 0, "hidden_act");
    if (!json_is_null(doc, value) && !json_equals(doc, value, "relu2"))
        return hf__refuse(doc, value, "hidden_act", "not supported, needs \"relu2\"", err);
    value = json_find(doc, 0, "partial_rotary_factor");
    if (json_is_null(doc, value) || (json_double(doc, value, &factor) && factor == 1)) return true;
    return hf__refuse(doc, value, "partial_rotary_factor", "not supported, needs 1", err);
}

static TOOL_UNUSED bool hf__read_numbers(const json_doc *doc, monet_arch *arch, tool_error *err)
{
    size_t i;

    for (i = 0; i < sizeof hf__numbers / sizeof hf__numbers[0]; i++) {
        const hf__number *number = &hf__numbers[i];
        int64_t value = number->absent;
        int32_t narrow;
        if (!json_get_int(doc, 0, number->key, 1, INT32_MAX, &value, err)) return false;
        if (value == HF_REQUIRED) return tool_fail(err, "\"%s\" is missing", number->key);
        narrow = (int32_t)value;
        memcpy((char *)arch + number->field, &narrow, sizeof narrow);
    }
    if (arch->n_kv_heads == 0) arch->n_kv_heads = arch->n_heads;
    return true;
}

/* Newer versions of transformers write {"rope_type": "default", "rope_theta": 10000.0}. */
static TOOL_UNUSED bool hf__read_rope(const json_doc *doc, double *theta, tool_error *err)
{
    uint32_t rope = json_find(doc, 0, "rope_parameters");
    uint32_t type = json_find(doc, rope, "rope_type");
    double inner = 0;

    *theta = 0;
    if (!json_get_double(doc, 0, "rope_theta", 1, 1e12, theta, err)) return false;
    if (!json_is_null(doc, rope)) {
        if (json_typeof(doc, rope) != JSON_OBJECT)
            return hf__refuse(doc, rope, "rope_parameters", "needs an object", err);
        if (!json_is_null(doc, type) && !json_equals(doc, type, "default"))
            return hf__refuse(doc, type, "rope_parameters.rope_type",
                              "not supported, needs \"default\"", err);
        if (!json_get_double(doc, rope, "rope_theta", 1, 1e12, &inner, err)) return false;
        if (inner > 0 && *theta > 0 && (inner < *theta || inner > *theta))
            return tool_fail(err, "\"rope_theta\" is %g, but %g in \"rope_parameters\"", *theta,
                             inner);
        if (inner > 0) *theta = inner;
    }
    if (*theta <= 0) *theta = 10000;
    return true;
}

static TOOL_UNUSED bool hf__read_others(const json_doc *doc, monet_arch *arch, tool_error *err)
{
    uint32_t decompose = json_find(doc, 0, "moe_decompose");
    double eps = 1e-6, theta;
    bool tied = false;

    if (!json_get_double(doc, 0, "rms_norm_eps", 1e-12, 1, &eps, err) ||
        !json_get_bool(doc, 0, "tie_word_embeddings", &tied, err) ||
        !hf__read_rope(doc, &theta, err))
        return false;
    arch->norm_eps = (float)eps;
    arch->rope_theta = (float)theta;
    arch->tie_embeddings = tied;
    arch->decompose = MONET_VERTICAL;
    if (json_equals(doc, decompose, "horizontal")) arch->decompose = MONET_HORIZONTAL;
    else if (!json_is_null(doc, decompose) && !json_equals(doc, decompose, "vertical"))
        return hf__refuse(doc, decompose, "moe_decompose", "needs \"vertical\" or \"horizontal\"",
                          err);
    return true;
}

/* What monet.h refuses, with the key in place of the field's name. */
static TOOL_UNUSED bool hf__arch_fail(const monet_error *problem, tool_error *err)
{
    size_t i;

    for (i = 0; i < sizeof hf__numbers / sizeof hf__numbers[0]; i++) {
        size_t n = strlen(hf__numbers[i].name);
        if (strncmp(problem->message, hf__numbers[i].name, n) == 0 && problem->message[n] == ' ')
            return tool_fail(err, "\"%s\"%s", hf__numbers[i].key, problem->message + n);
    }
    return tool_fail(err, "%s", problem->message);
}

/* Numbers that contradict each other, in the words of config.json. */
static TOOL_UNUSED bool hf__check_arch(const json_doc *doc, monet_arch *arch, tool_error *err)
{
    int64_t head_dim = 0;
    monet_error problem = {{0}, MONET_OK};

    if (arch->dim % arch->n_heads != 0)
        return tool_fail(err, "\"hidden_size\" is %d, no multiple of \"num_attention_heads\" %d",
                         (int)arch->dim, (int)arch->n_heads);
    if (!json_get_int(doc, 0, "head_dim", 1, INT32_MAX, &head_dim, err)) return false;
    if (head_dim != 0 && head_dim != arch->dim / arch->n_heads)
        return tool_fail(err, "\"head_dim\" is %lld, needs hidden_size / num_attention_heads = %d",
                         (long long)head_dim, (int)(arch->dim / arch->n_heads));
    if (arch->n_heads % arch->n_kv_heads != 0)
        return tool_fail(err, "\"num_attention_heads\" is %d, no multiple of "
                         "\"num_key_value_heads\" %d", (int)arch->n_heads, (int)arch->n_kv_heads);
    if (arch->moe_topk >= arch->moe_experts)
        return tool_fail(err, "\"moe_topk\" is %d, needs less than \"moe_experts\" %d",
                         (int)arch->moe_topk, (int)arch->moe_experts);
    if (arch->decompose == MONET_VERTICAL && arch->moe_dim % 2 != 0)
        return tool_fail(err, "\"moe_dim\" is %d, must be even for a vertical model",
                         (int)arch->moe_dim);
    return monet_arch_check(arch, &problem) == MONET_OK || hf__arch_fail(&problem, err);
}

/* ---- config.json: token ids and the other keys ----------------------------------------------- */

static TOOL_UNUSED bool hf__id(const json_doc *doc, uint32_t value, const char *key,
                               int32_t vocab_size, int32_t *id, tool_error *err)
{
    int64_t x;
    char shown[TOOL_QUOTE];

    if (!json_int(doc, value, &x) || x < 0 || x >= vocab_size)
        return tool_fail(err, "\"%s\" is %s, needs a token id from 0 to %d", key,
                         json_show(doc, value, shown), (int)vocab_size - 1);
    *id = (int32_t)x;
    return true;
}

static TOOL_UNUSED bool hf__add_eos(hf_config *config, int32_t id, tool_error *err)
{
    int32_t i;

    for (i = 0; i < config->n_eos; i++)
        if (config->eos_ids[i] == id) return true;
    if (config->n_eos == HF_MAX_EOS)
        return tool_fail(err, "\"eos_token_id\" has more than %d ids", HF_MAX_EOS);
    config->eos_ids[config->n_eos++] = id;
    return true;
}

/* The ids of special tokens. generation_config.json and the tokenizer may say otherwise. */
static TOOL_UNUSED bool hf__read_ids(hf_config *config, const json_doc *doc, tool_error *err)
{
    int32_t vocab = config->arch.vocab_size, id;
    uint32_t bos = json_find(doc, 0, "bos_token_id");
    uint32_t pad = json_find(doc, 0, "pad_token_id");
    uint32_t eos = json_find(doc, 0, "eos_token_id");
    json_each it = json_begin(doc, eos);

    if (!json_is_null(doc, bos) &&
        !hf__id(doc, bos, "bos_token_id", vocab, &config->bos_id, err))
        return false;
    if (!json_is_null(doc, pad) &&
        !hf__id(doc, pad, "pad_token_id", vocab, &config->pad_id, err))
        return false;
    if (json_is_null(doc, eos)) return true;
    if (json_typeof(doc, eos) != JSON_ARRAY)
        return hf__id(doc, eos, "eos_token_id", vocab, &id, err) && hf__add_eos(config, id, err);
    while (json_step(doc, &it))
        if (!hf__id(doc, it.value, "eos_token_id", vocab, &id, err) ||
            !hf__add_eos(config, id, err))
            return false;
    return true;
}

static TOOL_UNUSED bool hf__listed(const json_doc *doc, uint32_t key, const char *const *list,
                                   size_t n)
{
    size_t i;

    for (i = 0; i < n; i++)
        if (json_equals(doc, key, list[i])) return true;
    return false;
}

/* The architecture section of the .monet file says these already. */
static TOOL_UNUSED bool hf__in_arch(const json_doc *doc, uint32_t key)
{
    size_t i;

    for (i = 0; i < sizeof hf__numbers / sizeof hf__numbers[0]; i++)
        if (json_equals(doc, key, hf__numbers[i].key)) return true;
    return hf__listed(doc, key, hf__read_keys, sizeof hf__read_keys / sizeof *hf__read_keys);
}

static TOOL_UNUSED bool hf__keep_rest(hf_config *config, const json_doc *doc, tool_error *err)
{
    json_each it = json_begin(doc, 0);
    size_t n = sizeof hf__harmless_keys / sizeof *hf__harmless_keys;

    while (json_step(doc, &it)) {
        if (hf__in_arch(doc, it.key)) continue;
        if (!hf_note_json(&config->notes, "config.", doc, &it, err)) return false;
        if (!hf__listed(doc, it.key, hf__harmless_keys, n) &&
            !hf_note_json(&config->unknown, "", doc, &it, err))
            return false;
    }
    return true;
}

static TOOL_UNUSED bool hf__read_config(hf_config *config, const json_doc *doc, tool_error *err)
{
    char shown[TOOL_QUOTE];

    if (json_typeof(doc, 0) != JSON_OBJECT)
        return tool_fail(err, "holds %s, needs an object", json_show(doc, 0, shown));
    return hf__check_kind(doc, err) && hf__check_unsupported(doc, err) &&
           hf__read_numbers(doc, &config->arch, err) && hf__read_others(doc, &config->arch, err) &&
           hf__check_arch(doc, &config->arch, err) && hf__read_ids(config, doc, err) &&
           hf__keep_rest(config, doc, err);
}

/* ---- generation_config.json ------------------------------------------------------------------ */

/* Only kept: tokenizer_files.h reads what it means. */
static TOOL_UNUSED bool hf__read_generation(hf_config *config, const json_doc *doc,
                                            tool_error *err)
{
    json_each it = json_begin(doc, 0);
    char shown[TOOL_QUOTE];

    if (json_typeof(doc, 0) != JSON_OBJECT)
        return tool_fail(err, "holds %s, needs an object", json_show(doc, 0, shown));
    while (json_step(doc, &it))
        if (!hf_note_json(&config->notes, "generation.", doc, &it, err)) return false;
    return true;
}

/* ---- both files ------------------------------------------------------------------------------ */

static TOOL_UNUSED void hf_config_free(hf_config *config)
{
    hf_notes_free(&config->notes);
    hf_notes_free(&config->unknown);
}

static TOOL_UNUSED bool hf__load(hf_config *config, const char *folder, const char *name,
                                 bool (*read)(hf_config *, const json_doc *, tool_error *),
                                 tool_error *err)
{
    json_doc doc;
    bool ok;

    if (!json_load_inside(&doc, folder, name, HF_MAX_CONFIG, err)) return false;
    ok = read(config, &doc, err) || tool_prefix(err, name);
    json_free(&doc);
    return ok;
}

/* generation_config.json may be absent. On failure nothing needs to be freed. */
static TOOL_UNUSED bool hf_config_load(hf_config *config, const char *folder, tool_error *err)
{
    static const char generation[] = "generation_config.json";

    memset(config, 0, sizeof *config);
    config->bos_id = config->pad_id = -1;
    if (hf__load(config, folder, "config.json", hf__read_config, err) &&
        (!tool_has(folder, generation) ||
         hf__load(config, folder, generation, hf__read_generation, err)))
        return true;
    hf_config_free(config);
    return false;
}

#endif /* TOOL_HF_CONFIG_H */
