/* tokenizer_files.h: reads the tokenizer of a model folder, for the tools of monet.h.

   Two formats of the same thing, Llama's BPE with byte fallback: tokenizer.model (SentencePiece)
   and tokenizer.json (Hugging Face), and the small JSON files beside them. What would tokenize
   another way is refused by name: Unigram, WordPiece, byte-level BPE, a precompiled charsmap,
   dropout, unknown normalizers, pre-tokenizers and decoders.

   Any bytes give an error or a table that holds: ids 0..n_pieces-1 each once, no piece twice, all
   256 byte pieces, finite scores, and every merge names three pieces of the table.             */
#ifndef TOOL_TOKENIZER_FILES_H
#define TOOL_TOKENIZER_FILES_H

#include "json.h"
#include "protobuf.h"

#define TOK_MAX_MODEL (UINT64_C(1) << 25) /* bytes of tokenizer.model: 32 MiB; Gemma has 4 */
#define TOK_MAX_JSON (UINT64_C(1) << 26)  /* of tokenizer.json and the like: 64 MiB */
#define TOK_MAX_PIECES (INT32_C(1) << 24)
#define TOK_MAX_MERGES (INT32_C(1) << 24)
#define TOK_MAX_PIECE 65535 /* bytes */
#define TOK_MAX_EOS 64

enum { /* as SentencePiece numbers them */
    TOK_NORMAL = 1,
    TOK_UNKNOWN = 2,
    TOK_CONTROL = 3,      /* never made from text; from tokenizer.json: special added tokens */
    TOK_USER_DEFINED = 4, /* found in text before the merges; added tokens that are not special */
    TOK_UNUSED = 5,
    TOK_BYTE = 6          /* "<0x00>".."<0xFF>" */
};

enum { TOK_PREFIX_NEVER = 0, TOK_PREFIX_ALWAYS = 1, TOK_PREFIX_FIRST = 2 };

typedef struct tok_piece {
    const char *bytes; /* as in the file, U+2581 kept; not terminated, may hold NUL */
    int32_t     size;
    float       score; /* from tokenizer.json: -1 - rank of the first merge that makes it, or 0 */
    int32_t     type;
} tok_piece;

typedef struct tok_merge {
    int32_t left, right, result;
} tok_merge;

typedef struct tok_file {
    tok_piece *pieces;
    int32_t    n_pieces;
    tok_merge *merges; /* in the order of rank; only from tokenizer.json */
    int32_t    n_merges;
    int32_t    unk_id, bos_id, eos_id, pad_id; /* -1 = none */
    int32_t    prefix_space; /* 0 never, 1 always, 2 none before a text that starts with a space */
    bool       prefix_each;  /* also after a special token in the middle of a text */
    bool       strip_space;  /* decoding drops one leading space */
    bool       add_bos, add_eos;
    const char *chat_template; /* a Jinja text, ends with a NUL; NULL = none */
    size_t     chat_template_size;
    tool_name *names; /* sorted, for tok_find */
    char      *kept[8]; /* file contents that the pointers above lead into */
} tok_file;

static TOOL_UNUSED void tok_free(tok_file *tok)
{
    size_t i;

    for (i = 0; i < sizeof tok->kept / sizeof tok->kept[0]; i++) free(tok->kept[i]);
    free(tok->pieces);
    free(tok->merges);
    free(tok->names);
    memset(tok, 0, sizeof *tok);
}

/* The id of a piece, or -1. */
static TOOL_UNUSED int32_t tok_find(const tok_file *tok, const char *bytes, size_t size)
{
    const tool_name *found = tool_names_find(tok->names, (size_t)tok->n_pieces, bytes, size);

    return found == NULL ? -1 : (int32_t)found->value;
}

/* Keeps file contents alive; there is a place for every file that is read. */
static TOOL_UNUSED void tok__keep(tok_file *tok, char *text)
{
    size_t i = 0, n = sizeof tok->kept / sizeof tok->kept[0];

    while (i < n - 1 && tok->kept[i] != NULL) i++;
    tok->kept[i] = text;
}

static TOOL_UNUSED void tok__clear(tok_file *tok)
{
    memset(tok, 0, sizeof *tok);
    tok->unk_id = tok->bos_id = tok->eos_id = tok->pad_id = -1;
}

/* ---- tokenizer: the table of pieces ---------------------------------------------------------- */

typedef struct tok__entry { /* a piece that a file wants at an id */
    tok_piece piece;
    int64_t   id;
} tok__entry;

static TOOL_UNUSED bool tok__fail(const char *bytes, size_t size, const char *what,
                                  tool_error *err)
{
    char quoted[TOOL_QUOTE];

    return tool_fail(err, "piece \"%s\" %s", tool_quote(quoted, bytes, size), what);
}

/* 0..255 for "<0x00>".."<0xFF>", -1 for other pieces, -2 for "<0x-1>" and the like. */
static TOOL_UNUSED int tok__byte_of(const char *bytes, size_t size)
{
    int i, value = 0;

    if (size != 6 || memcmp(bytes, "<0x", 3) != 0 || bytes[5] != '>') return -1;
    for (i = 3; i < 5; i++) {
        char c = bytes[i];
        if (c >= '0' && c <= '9')
            value = value * 16 + (c - '0');
        else if (c >= 'A' && c <= 'F')
            value = value * 16 + (c - 'A') + 10;
        else
            return -2;
    }
    return value;
}

static TOOL_UNUSED bool tok__piece_ok(const tok_piece *piece, tool_error *err)
{
    size_t size = (size_t)piece->size;

    if (size == 0) return tool_fail(err, "an empty piece");
    if (size > TOK_MAX_PIECE)
        return tok__fail(piece->bytes, size, "has more than 65535 bytes", err);
    if (!tool_is_utf8(piece->bytes, size))
        return tok__fail(piece->bytes, size, "is not valid UTF-8", err);
    if (tok__byte_of(piece->bytes, size) == -2)
        return tok__fail(piece->bytes, size, "looks like a byte without two digits 0-9 A-F", err);
    if (piece->type == TOK_BYTE && tok__byte_of(piece->bytes, size) < 0)
        return tok__fail(piece->bytes, size, "has the type of a byte, but not its name", err);
    if (!(piece->score >= -FLT_MAX && piece->score <= FLT_MAX))
        return tok__fail(piece->bytes, size, "has a score that is not finite", err);
    return true;
}

/* Entries with the same bytes must agree on the id; of the types the later one counts, except that
   the unknown piece and bytes stay what they are. Marks those to skip with id -1.              */
static TOOL_UNUSED bool tok__merge_twins(tok__entry *entries, const tool_name *names, size_t n,
                                         size_t *n_unique, tool_error *err)
{
    size_t i, first = 0;

    *n_unique = n > 0;
    for (i = 1; i < n; i++) {
        tok__entry *kept = &entries[names[first].value], *twin = &entries[names[i].value];
        char what[96];
        if (tool__name_order(&names[first], &names[i]) != 0) {
            first = i;
            *n_unique += 1;
            continue;
        }
        if (kept->id != twin->id) {
            snprintf(what, sizeof what, "has two ids, %lld and %lld", (long long)kept->id,
                     (long long)twin->id);
            return tok__fail(names[i].bytes, names[i].size, what, err);
        }
        if (kept->piece.type != TOK_UNKNOWN && kept->piece.type != TOK_BYTE)
            kept->piece.type = twin->piece.type;
        twin->id = -1;
    }
    return true;
}

/* Puts each entry at its id; all ids have to be taken, once. */
static TOOL_UNUSED bool tok__place(tok_piece *pieces, size_t n_pieces, const tok__entry *entries,
                                   size_t n, tool_error *err)
{
    char what[160], quoted[TOOL_QUOTE];
    size_t i;

    for (i = 0; i < n; i++) {
        const tok_piece *piece = &entries[i].piece;
        int64_t id = entries[i].id;
        if (id == -1) continue; /* a twin */
        if (id < 0 || (uint64_t)id >= n_pieces) {
            snprintf(what, sizeof what, "has id %lld, but the ids of %lu pieces go from 0 to %lu",
                     (long long)id, (unsigned long)n_pieces, (unsigned long)n_pieces - 1);
            return tok__fail(piece->bytes, (size_t)piece->size, what, err);
        }
        if (pieces[id].bytes != NULL) {
            tool_quote(quoted, pieces[id].bytes, (size_t)pieces[id].size);
            snprintf(what, sizeof what, "has id %lld, as \"%.100s\" has", (long long)id, quoted);
            return tok__fail(piece->bytes, (size_t)piece->size, what, err);
        }
        pieces[id] = *piece;
    }
    return true;
}

/* Makes the table of n entries, which are changed. Replaces the table that is there. */
static TOOL_UNUSED bool tok__build(tok_file *tok, tok__entry *entries, size_t n, tool_error *err)
{
    tool_name *names = tool_alloc(n, sizeof *names, err);
    tok_piece *pieces = NULL;
    size_t i, n_pieces = 0;
    bool ok = names != NULL;

    for (i = 0; ok && i < n; i++) {
        ok = tok__piece_ok(&entries[i].piece, err);
        if (ok && (entries[i].id < 0 || entries[i].id >= TOK_MAX_PIECES))
            ok = tok__fail(entries[i].piece.bytes, (size_t)entries[i].piece.size,
                           "has an id that is negative or above 2^24", err);
        names[i] = tool_name_of(entries[i].piece.bytes, (size_t)entries[i].piece.size, (uint32_t)i);
    }
    if (ok) tool_names_sort(names, n);
    ok = ok && tok__merge_twins(entries, names, n, &n_pieces, err);
    if (ok) pieces = tool_alloc(n_pieces, sizeof *pieces, err);
    ok = ok && pieces != NULL && tok__place(pieces, n_pieces, entries, n, err);
    if (!ok) {
        free(names);
        free(pieces);
        return false;
    }
    for (i = 0; i < n_pieces; i++)
        names[i] = tool_name_of(pieces[i].bytes, (size_t)pieces[i].size, (uint32_t)i);
    tool_names_sort(names, n_pieces);
    free(tok->names);
    free(tok->pieces);
    tok->names = names;
    tok->pieces = pieces;
    tok->n_pieces = (int32_t)n_pieces;
    return true;
}

static TOOL_UNUSED bool tok__check_bytes(const tok_file *tok, tool_error *err)
{
    char name[8];
    int i;

    for (i = 0; i < 256; i++) {
        int32_t id;
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)i);
        id = tok_find(tok, name, 6);
        if (id < 0) return tok__fail(name, 6, "is missing: all 256 bytes need one", err);
        if (tok->pieces[id].type != TOK_BYTE)
            return tok__fail(name, 6, "does not have the type of a byte", err);
    }
    return true;
}

/* ---- tokenizer: SentencePiece ---------------------------------------------------------------- */

typedef struct tok__spec { /* of trainer_spec and normalizer_spec; values of absent fields */
    int32_t model_type, unk_id, bos_id, eos_id, pad_id;
    bool    byte_fallback, suffix;
    bool    add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces;
    size_t  charsmap;
} tok__spec;

static TOOL_UNUSED bool tok__trainer_field(tok__spec *spec, const pb_field *field,
                                           tool_error *err)
{
    switch (field->number) {
    case 3:  return pb_int32(field, &spec->model_type, err);
    case 24: return pb_bool(field, &spec->suffix, err);
    case 35: return pb_bool(field, &spec->byte_fallback, err);
    case 40: return pb_int32(field, &spec->unk_id, err);
    case 41: return pb_int32(field, &spec->bos_id, err);
    case 42: return pb_int32(field, &spec->eos_id, err);
    case 43: return pb_int32(field, &spec->pad_id, err);
    default: return true;
    }
}

/* Of normalizer_spec, and of denormalizer_spec, of which only the charsmap matters. */
static TOOL_UNUSED bool tok__normalizer_field(tok__spec *spec, const pb_field *field,
                                              tool_error *err)
{
    switch (field->number) {
    case 2:
        spec->charsmap += field->size;
        return pb_want(field, PB_BYTES, err);
    case 3:  return pb_bool(field, &spec->add_dummy_prefix, err);
    case 4:  return pb_bool(field, &spec->remove_extra_whitespaces, err);
    case 5:  return pb_bool(field, &spec->escape_whitespaces, err);
    default: return true;
    }
}

static TOOL_UNUSED bool tok__spec_fields(tok__spec *spec, const pb_reader *outer,
                                         const pb_field *message, tool_error *err)
{
    pb_reader reader;
    pb_field field;
    tok__spec unused; /* denormalizer_spec has the fields of normalizer_spec */
    int got;

    if (!pb_want(message, PB_BYTES, err)) return false;
    reader = pb_inside(outer, message);
    memset(&unused, 0, sizeof unused);
    while ((got = pb_next(&reader, &field, err)) > 0) {
        bool ok = message->number == 2 ? tok__trainer_field(spec, &field, err) :
                  tok__normalizer_field(message->number == 3 ? spec : &unused, &field, err);
        if (!ok) return false;
    }
    spec->charsmap += unused.charsmap;
    return got == 0;
}

static TOOL_UNUSED bool tok__spec_ok(const tok__spec *spec, tool_error *err)
{
    static const char *const types[] = {"unknown", "Unigram", "BPE", "Word", "Char"};
    int32_t type = spec->model_type;

    if (type != 2)
        return tool_fail(err, "model_type is %ld (%s), only BPE is supported", (long)type,
                         type >= 0 && type <= 4 ? types[type] : "unknown");
    if (!spec->byte_fallback) return tool_fail(err, "byte_fallback is false, needs true");
    if (spec->suffix) return tool_fail(err, "treat_whitespace_as_suffix is not supported");
    if (spec->charsmap > 0)
        return tool_fail(err, "a precompiled charsmap (%lu bytes) is not supported: only models "
                         "with the identity normalization are", (unsigned long)spec->charsmap);
    if (spec->remove_extra_whitespaces)
        return tool_fail(err, "remove_extra_whitespaces is true, needs false");
    if (!spec->escape_whitespaces) return tool_fail(err, "escape_whitespaces is false, needs true");
    return true;
}

static TOOL_UNUSED bool tok__piece_field(tok_piece *piece, const pb_field *field, tool_error *err)
{
    switch (field->number) {
    case 1:
        piece->bytes = field->bytes;
        piece->size = field->size > TOK_MAX_PIECE ? TOK_MAX_PIECE + 1 : (int32_t)field->size;
        return pb_want(field, PB_BYTES, err);
    case 2:
        return pb_float(field, &piece->score, err);
    case 3:
        if (!pb_int32(field, &piece->type, err)) return false;
        if (piece->type >= TOK_NORMAL && piece->type <= TOK_BYTE) return true;
        return tool_fail(err, "byte %lu: a piece of unknown type %ld", (unsigned long)field->offset,
                         (long)piece->type);
    default:
        return true;
    }
}

static TOOL_UNUSED bool tok__proto_piece(tok_piece *piece, const pb_reader *outer,
                                         const pb_field *message, tool_error *err)
{
    pb_reader reader = pb_inside(outer, message);
    pb_field field;
    int got;

    memset(piece, 0, sizeof *piece);
    piece->bytes = "";
    piece->type = TOK_NORMAL;
    while ((got = pb_next(&reader, &field, err)) > 0)
        if (!tok__piece_field(piece, &field, err)) return false;
    return got == 0;
}

/* The first pass: counts the pieces and reads the specs. */
static TOOL_UNUSED bool tok__proto_specs(const char *data, size_t size, tok__spec *spec,
                                         size_t *n_pieces, tool_error *err)
{
    pb_reader reader = pb_begin(data, size);
    pb_field field;
    int got;

    *n_pieces = 0;
    while ((got = pb_next(&reader, &field, err)) > 0) {
        if (field.number == 1) {
            if (!pb_want(&field, PB_BYTES, err)) return false;
            *n_pieces += 1;
        } else if (field.number == 2 || field.number == 3 || field.number == 5) {
            if (!tok__spec_fields(spec, &reader, &field, err)) return false;
        }
    }
    if (got < 0) return false;
    if (*n_pieces == 0) return tool_fail(err, "no pieces: not a SentencePiece model");
    if (*n_pieces > (size_t)TOK_MAX_PIECES)
        return tool_fail(err, "%lu pieces, at most 2^24 are read", (unsigned long)*n_pieces);
    return true;
}

/* A special id of the trainer_spec: out of range, or of a piece that is none, is an error. */
static TOOL_UNUSED bool tok__special(const tok_file *tok, const char *what, int32_t id,
                                     int32_t *out, tool_error *err)
{
    bool unknown = strcmp(what, "unk_id") == 0;
    int32_t type;

    *out = -1;
    if (id == -1 && !unknown) return true;
    if (id < 0 || id >= tok->n_pieces)
        return tool_fail(err, "%s is %ld, but there are %ld pieces", what, (long)id,
                         (long)tok->n_pieces);
    type = tok->pieces[id].type;
    if (unknown ? type != TOK_UNKNOWN : type != TOK_CONTROL && type != TOK_USER_DEFINED)
        return tool_fail(err, "%s is %ld, but that piece has type %ld", what, (long)id, (long)type);
    *out = id;
    return true;
}

static TOOL_UNUSED bool tok__proto_pieces(tok_file *tok, const char *data, size_t size, size_t n,
                                          tool_error *err)
{
    tok__entry *entries = tool_alloc(n, sizeof *entries, err);
    pb_reader reader = pb_begin(data, size);
    pb_field field;
    size_t i = 0;
    bool ok = entries != NULL;

    while (ok && pb_next(&reader, &field, err) > 0) {
        if (field.number != 1) continue;
        entries[i].id = (int64_t)i;
        ok = tok__proto_piece(&entries[i].piece, &reader, &field, err);
        i++;
    }
    ok = ok && tok__build(tok, entries, n, err) && tok__check_bytes(tok, err);
    free(entries);
    return ok;
}

static TOOL_UNUSED bool tok__parse_model(tok_file *tok, const char *data, size_t size,
                                         tool_error *err)
{
    tok__spec spec = {1, 0, 1, 2, -1, false, false, true, true, true, 0};
    size_t n;
    int32_t i, n_unknown = 0;

    if (!tok__proto_specs(data, size, &spec, &n, err) || !tok__spec_ok(&spec, err) ||
        !tok__proto_pieces(tok, data, size, n, err) ||
        !tok__special(tok, "unk_id", spec.unk_id, &tok->unk_id, err) ||
        !tok__special(tok, "bos_id", spec.bos_id, &tok->bos_id, err) ||
        !tok__special(tok, "eos_id", spec.eos_id, &tok->eos_id, err) ||
        !tok__special(tok, "pad_id", spec.pad_id, &tok->pad_id, err))
        return false;
    for (i = 0; i < tok->n_pieces; i++) n_unknown += tok->pieces[i].type == TOK_UNKNOWN;
    if (n_unknown != 1)
        return tool_fail(err, "%ld pieces are of the unknown type, needs 1", (long)n_unknown);
    tok->prefix_space = spec.add_dummy_prefix ? TOK_PREFIX_ALWAYS : TOK_PREFIX_NEVER;
    tok->prefix_each = tok->strip_space = spec.add_dummy_prefix;
    tok->add_bos = tok->bos_id >= 0;
    return true;
}

/* The contents of a tokenizer.model. Takes over `data`, which has to come from malloc, also when it
   fails; on failure the tok_file is empty and needs no tok_free. */
static TOOL_UNUSED bool tok_parse_model(tok_file *tok, char *data, size_t size, tool_error *err)
{
    tok__clear(tok);
    tok__keep(tok, data);
    if (tok__parse_model(tok, data, size, err)) return true;
    tok_free(tok);
    return false;
}

/* ---- tokenizer: tokenizer.json, the table ---------------------------------------------------- */

static const char tok__space[] = "\xE2\x96\x81"; /* U+2581 */

static TOOL_UNUSED bool tok__type_is(const json_doc *doc, uint32_t object, const char *type)
{
    return json_equals(doc, json_find(doc, object, "type"), type);
}

/* "normalizer "NFKC" is not supported" */
static TOOL_UNUSED bool tok__refuse(const json_doc *doc, const char *what, uint32_t object,
                                    tool_error *err)
{
    char shown[TOOL_QUOTE];
    uint32_t type = json_find(doc, object, "type");

    if (json_equals(doc, type, "ByteLevel"))
        return tool_fail(err, "%s \"ByteLevel\": byte-level BPE is not supported", what);
    if (json_equals(doc, type, "Precompiled"))
        return tool_fail(err, "%s \"Precompiled\": a precompiled charsmap is not supported", what);
    return tool_fail(err, "%s %s is not supported", what,
                     json_show(doc, type != JSON_NONE ? type : object, shown));
}

/* Refuses settings of the model that change the result. */
static TOOL_UNUSED bool tok__json_model(const json_doc *doc, uint32_t model, tool_error *err)
{
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    bool fallback = false, ignore_merges = false;
    double dropout = 0;
    size_t i;

    if (json_typeof(doc, model) != JSON_OBJECT) return tool_fail(err, "needs a model");
    if (!tok__type_is(doc, model, "BPE")) return tok__refuse(doc, "model", model, err);
    if (!json_get_bool(doc, model, "byte_fallback", &fallback, err) ||
        !json_get_bool(doc, model, "ignore_merges", &ignore_merges, err) ||
        !json_get_double(doc, model, "dropout", 0, 1, &dropout, err))
        return tool_prefix(err, "model");
    if (!fallback) return tool_fail(err, "model: byte_fallback is false, needs true");
    if (ignore_merges) return tool_fail(err, "model: ignore_merges is not supported");
    if (dropout > 0) return tool_fail(err, "model: dropout is not supported");
    for (i = 0; i < 2; i++) {
        uint32_t value = json_find(doc, model, empty[i]);
        char shown[TOOL_QUOTE];
        if (!json_is_null(doc, value) && !json_equals(doc, value, ""))
            return tool_fail(err, "model: %s is %s, not supported", empty[i],
                             json_show(doc, value, shown));
    }
    return true;
}

static TOOL_UNUSED bool tok__json_piece(tok__entry *entry, const json_doc *doc, uint32_t content,
                                        int32_t type, tool_error *err)
{
    size_t size;
    const char *bytes = json_string(doc, content, &size);
    char shown[TOOL_QUOTE];

    memset(entry, 0, sizeof *entry);
    if (bytes == NULL)
        return tool_fail(err, "a piece is %s, not a string", json_show(doc, content, shown));
    entry->piece.bytes = bytes;
    entry->piece.size = size > TOK_MAX_PIECE ? TOK_MAX_PIECE + 1 : (int32_t)size;
    entry->piece.type = type;
    if (type == TOK_NORMAL && tok__byte_of(bytes, size) >= 0) entry->piece.type = TOK_BYTE;
    return true;
}

static TOOL_UNUSED bool tok__json_id(tok__entry *entry, const json_doc *doc, uint32_t id,
                                     tool_error *err)
{
    char shown[TOOL_QUOTE], what[160];

    if (json_int(doc, id, &entry->id) && entry->id >= 0) return true;
    json_show(doc, id, shown);
    snprintf(what, sizeof what, "has id %.100s, needs an integer from 0", shown);
    return tok__fail(entry->piece.bytes, (size_t)entry->piece.size, what, err);
}

/* An element of added_tokens or a value of added_tokens_decoder, but for its id. */
static TOOL_UNUSED bool tok__json_added(tok__entry *entry, const json_doc *doc, uint32_t token,
                                        tool_error *err)
{
    static const char *const unsupported[] = {"single_word", "lstrip", "rstrip"};
    bool special = false, flag;
    size_t i;

    if (!json_get_bool(doc, token, "special", &special, err) ||
        !tok__json_piece(entry, doc, json_find(doc, token, "content"),
                         special ? TOK_CONTROL : TOK_USER_DEFINED, err))
        return tool_prefix(err, "added token");
    if (entry->piece.size == 0) return tool_fail(err, "an added token is empty");
    for (i = 0; i < 3 && !special; i++) { /* of special ones they only tidy up around them */
        flag = false;
        if (!json_get_bool(doc, token, unsupported[i], &flag, err)) return false;
        if (flag)
            return tool_fail(err, "added token \"%.80s\": %s is not supported", entry->piece.bytes,
                             unsupported[i]);
    }
    return true;
}

static TOOL_UNUSED bool tok__json_table(tok_file *tok, const json_doc *doc, uint32_t model,
                                        tool_error *err)
{
    uint32_t vocab = json_find(doc, model, "vocab"), added = json_find(doc, 0, "added_tokens");
    uint64_t n = (uint64_t)json_count(doc, vocab) + json_count(doc, added), i = 0;
    json_each it = json_begin(doc, vocab);
    tok__entry *entries;
    bool ok = true;

    if (json_typeof(doc, vocab) != JSON_OBJECT) return tool_fail(err, "model: needs a vocab");
    if (n > (uint64_t)TOK_MAX_PIECES)
        return tool_fail(err, "%llu pieces, at most 2^24 are read", (unsigned long long)n);
    entries = tool_alloc(n, sizeof *entries, err);
    if (entries == NULL) return false;
    for (; ok && json_step(doc, &it); i++)
        ok = tok__json_piece(&entries[i], doc, it.key, TOK_NORMAL, err) &&
             tok__json_id(&entries[i], doc, it.value, err);
    it = json_begin(doc, added);
    for (; ok && json_step(doc, &it); i++)
        ok = tok__json_added(&entries[i], doc, it.value, err) &&
             tok__json_id(&entries[i], doc, json_find(doc, it.value, "id"), err);
    ok = ok && tok__build(tok, entries, (size_t)n, err) && tok__check_bytes(tok, err);
    free(entries);
    return ok;
}

/* ---- tokenizer: tokenizer.json, merges ------------------------------------------------------- */

/* The two halves of "a b" or ["a","b"]. */
static TOOL_UNUSED bool tok__halves(const json_doc *doc, uint32_t value, const char *half[2],
                                    size_t size[2])
{
    json_each it = json_begin(doc, value);
    const char *space;
    size_t whole;
    int n = 0;

    if (json_typeof(doc, value) == JSON_STRING) {
        half[0] = json_string(doc, value, &whole);
        space = memchr(half[0], ' ', whole);
        if (space == NULL) return false;
        size[0] = (size_t)(space - half[0]);
        half[1] = space + 1;
        size[1] = whole - size[0] - 1;
        return memchr(half[1], ' ', size[1]) == NULL;
    }
    while (!it.object && n < 3 && json_step(doc, &it)) {
        if (n < 2 && (half[n] = json_string(doc, it.value, &size[n])) == NULL) return false;
        n++;
    }
    return n == 2;
}

static TOOL_UNUSED bool tok__json_merge(const tok_file *tok, const json_doc *doc, uint32_t value,
                                        char *scratch, tok_merge *merge, tool_error *err)
{
    const char *half[2] = {NULL, NULL};
    size_t size[2] = {0, 0};
    char shown[TOOL_QUOTE], quoted[TOOL_QUOTE];
    int missing = 2;

    if (!tok__halves(doc, value, half, size))
        return tool_fail(err, "%s is not two pieces", json_show(doc, value, shown));
    merge->left = tok_find(tok, half[0], size[0]);
    merge->right = tok_find(tok, half[1], size[1]);
    if (merge->left >= 0 && merge->right >= 0) { /* so both have at most TOK_MAX_PIECE bytes */
        memcpy(scratch, half[0], size[0]);
        memcpy(scratch + size[0], half[1], size[1]);
        merge->result = tok_find(tok, scratch, size[0] + size[1]);
        if (merge->result >= 0) return true;
        tool_quote(quoted, scratch, size[0] + size[1]);
    } else {
        missing = merge->left < 0 ? 0 : 1;
        tool_quote(quoted, half[missing], size[missing]);
    }
    return tool_fail(err, "the %s \"%s\" is not in the vocabulary",
                     missing == 2 ? "result" : missing == 1 ? "right half" : "left half", quoted);
}

static TOOL_UNUSED int tok__by_pair(const void *a, const void *b)
{
    const tok_merge *x = a, *y = b;

    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    if (x->right != y->right) return x->right < y->right ? -1 : 1;
    return 0;
}

static TOOL_UNUSED bool tok__merges_unique(const tok_file *tok, tool_error *err)
{
    size_t n = (size_t)tok->n_merges, i = 1;
    tok_merge *sorted = tool_alloc(n, sizeof *sorted, err);
    char left[TOOL_QUOTE], right[TOOL_QUOTE];
    const tok_piece *a, *b;

    if (sorted == NULL) return false;
    memcpy(sorted, tok->merges, n * sizeof *sorted);
    tool_sort(sorted, n, sizeof *sorted, tok__by_pair);
    while (i < n && tok__by_pair(&sorted[i - 1], &sorted[i]) != 0) i++;
    if (i < n) {
        a = &tok->pieces[sorted[i].left];
        b = &tok->pieces[sorted[i].right];
        tool_fail(err, "the merge of \"%s\" and \"%s\" is there twice",
                  tool_quote(left, a->bytes, (size_t)a->size),
                  tool_quote(right, b->bytes, (size_t)b->size));
    }
    free(sorted);
    return i >= n;
}

static TOOL_UNUSED bool tok__json_merges(tok_file *tok, const json_doc *doc, uint32_t model,
                                         tool_error *err)
{
    uint32_t merges = json_find(doc, model, "merges"), n = json_count(doc, merges);
    json_each it = json_begin(doc, merges);
    char *scratch, where[48];
    bool ok = true;

    if (json_typeof(doc, merges) != JSON_ARRAY) return tool_fail(err, "model: needs merges");
    if (n > (uint32_t)TOK_MAX_MERGES) return tool_fail(err, "more than 2^24 merges");
    tok->merges = tool_alloc(n, sizeof *tok->merges, err);
    scratch = tool_alloc(2 * TOK_MAX_PIECE, 1, err);
    ok = tok->merges != NULL && scratch != NULL;
    while (ok && json_step(doc, &it)) {
        tok_merge *merge = &tok->merges[tok->n_merges];
        ok = tok__json_merge(tok, doc, it.value, scratch, merge, err);
        if (!ok) {
            snprintf(where, sizeof where, "merge %ld", (long)tok->n_merges);
            tool_prefix(err, where);
        } else {
            float *score = &tok->pieces[merge->result].score;
            tok->n_merges++;
            if (*score == 0) *score = (float)-tok->n_merges;
        }
    }
    free(scratch);
    return ok && tok__merges_unique(tok, err);
}

/* ---- tokenizer: tokenizer.json, what happens around the merges ------------------------------- */

typedef struct tok__steps {
    bool prepend, replace; /* of the normalizer */
} tok__steps;

static TOOL_UNUSED bool tok__normalizer(const json_doc *doc, uint32_t value, tok__steps *steps,
                                        tool_error *err)
{
    uint32_t pattern = json_find(doc, json_find(doc, value, "pattern"), "String");

    if (tok__type_is(doc, value, "Prepend") && !steps->prepend &&
        json_equals(doc, json_find(doc, value, "prepend"), tok__space)) {
        steps->prepend = true;
        return true;
    }
    if (tok__type_is(doc, value, "Replace") && !steps->replace && json_equals(doc, pattern, " ") &&
        json_equals(doc, json_find(doc, value, "content"), tok__space)) {
        steps->replace = true;
        return true;
    }
    return tok__refuse(doc, "normalizer", value, err);
}

static TOOL_UNUSED bool tok__normalizers(const json_doc *doc, tok__steps *steps, tool_error *err)
{
    uint32_t value = json_find(doc, 0, "normalizer");
    json_each it = json_begin(doc, json_find(doc, value, "normalizers"));

    if (json_is_null(doc, value)) return true;
    if (!tok__type_is(doc, value, "Sequence")) return tok__normalizer(doc, value, steps, err);
    while (json_step(doc, &it))
        if (!tok__normalizer(doc, it.value, steps, err)) return false;
    return true;
}

/* prepend_scheme, or add_prefix_space of older files. */
static TOOL_UNUSED bool tok__metaspace(tok_file *tok, const json_doc *doc, uint32_t value,
                                       tool_error *err)
{
    uint32_t scheme = json_find(doc, value, "prepend_scheme");
    bool split = true, prefix = true, always, first;
    char shown[TOOL_QUOTE];

    if (!json_equals(doc, json_find(doc, value, "replacement"), tok__space))
        return tool_fail(err, "Metaspace: replacement is not U+2581");
    if (!json_get_bool(doc, value, "split", &split, err) ||
        !json_get_bool(doc, value, "add_prefix_space", &prefix, err))
        return tool_prefix(err, "Metaspace");
    if (split) return tool_fail(err, "Metaspace: split is true, needs false");
    always = json_is_null(doc, scheme) ? prefix : json_equals(doc, scheme, "always");
    first = json_equals(doc, scheme, "first");
    if (!always && !first && !json_is_null(doc, scheme) && !json_equals(doc, scheme, "never"))
        return tool_fail(err, "Metaspace: prepend_scheme is %s, needs always, first or never",
                         json_show(doc, scheme, shown));
    tok->prefix_space = always || first ? TOK_PREFIX_FIRST : TOK_PREFIX_NEVER;
    tok->prefix_each = always;
    return true;
}

static TOOL_UNUSED bool tok__pre_tokenizer(tok_file *tok, const json_doc *doc, tool_error *err)
{
    uint32_t value = json_find(doc, 0, "pre_tokenizer");
    tok__steps steps = {false, false};

    if (!tok__normalizers(doc, &steps, err)) return false;
    if (json_is_null(doc, value)) {
        if (!steps.replace) return tool_fail(err, "nothing turns spaces into U+2581");
        tok->prefix_space = steps.prepend ? TOK_PREFIX_ALWAYS : TOK_PREFIX_NEVER;
        tok->prefix_each = steps.prepend;
        return true;
    }
    if (!tok__type_is(doc, value, "Metaspace"))
        return tok__refuse(doc, "pre_tokenizer", value, err);
    if (steps.prepend || steps.replace)
        return tool_fail(err, "both a normalizer and Metaspace: not supported");
    return tok__metaspace(tok, doc, value, err);
}

static TOOL_UNUSED bool tok__decoder(tok_file *tok, const json_doc *doc, uint32_t value,
                                     unsigned *seen, tool_error *err)
{
    static const char *const types[] = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"};
    uint32_t pattern = json_find(doc, json_find(doc, value, "pattern"), "String");
    int64_t start = -1, stop = -1;
    unsigned i = 0;
    bool ok = true;

    while (i < 5 && !tok__type_is(doc, value, types[i])) i++;
    if (i == 0) {
        ok = json_equals(doc, pattern, tok__space) &&
             json_equals(doc, json_find(doc, value, "content"), " ");
    } else if (i == 3) {
        json_int(doc, json_find(doc, value, "start"), &start);
        json_int(doc, json_find(doc, value, "stop"), &stop);
        ok = json_equals(doc, json_find(doc, value, "content"), " ") && stop == 0 &&
             (start == 0 || start == 1);
        tok->strip_space = start == 1;
    } else if (i == 4) {
        ok = json_equals(doc, json_find(doc, value, "replacement"), tok__space);
        tok->strip_space = !json_equals(doc, json_find(doc, value, "prepend_scheme"), "never");
    }
    if (!ok || i == 5 || (*seen & 1u << i) != 0) return tok__refuse(doc, "decoder", value, err);
    *seen |= 1u << i;
    return true;
}

static TOOL_UNUSED bool tok__decoders(tok_file *tok, const json_doc *doc, tool_error *err)
{
    uint32_t value = json_find(doc, 0, "decoder");
    json_each it = json_begin(doc, json_find(doc, value, "decoders"));
    unsigned seen = 0;

    if (!tok__type_is(doc, value, "Sequence")) {
        if (!tok__decoder(tok, doc, value, &seen, err)) return false;
    } else {
        while (json_step(doc, &it))
            if (!tok__decoder(tok, doc, it.value, &seen, err)) return false;
    }
    if ((seen & 2) == 0) return tool_fail(err, "decoder: needs ByteFallback");
    if ((seen & 1) != 0 || (seen & 16) != 0) return true;
    return tool_fail(err, "decoder: nothing turns U+2581 into spaces");
}

/* The id of a token of the template, which it has to have in the table too. */
static TOOL_UNUSED bool tok__template_token(const tok_file *tok, const json_doc *doc,
                                            uint32_t post, uint32_t name, int32_t *id,
                                            tool_error *err)
{
    size_t size;
    const char *bytes = json_string(doc, name, &size);
    uint32_t ids = bytes == NULL ? JSON_NONE :
        json_find(doc, json_find(doc, json_find(doc, post, "special_tokens"), bytes), "ids");
    json_each it = json_begin(doc, ids);
    char shown[TOOL_QUOTE];
    int64_t said = -1;

    *id = bytes == NULL ? -1 : tok_find(tok, bytes, size);
    if (*id < 0 || json_count(doc, ids) != 1 || !json_step(doc, &it) ||
        !json_int(doc, it.value, &said) || said != *id)
        return tool_fail(err, "post_processor: token %s is id %ld in the vocabulary, %lld in "
                         "special_tokens", json_show(doc, name, shown), (long)*id, (long long)said);
    return true;
}

/* Nothing, or a TemplateProcessing of one text: at most one token before it and one after. */
static TOOL_UNUSED bool tok__post_processor(tok_file *tok, const json_doc *doc, tool_error *err)
{
    uint32_t post = json_find(doc, 0, "post_processor");
    json_each it = json_begin(doc, json_find(doc, post, "single"));
    bool text = false;

    if (json_is_null(doc, post)) return true;
    if (!tok__type_is(doc, post, "TemplateProcessing"))
        return tok__refuse(doc, "post_processor", post, err);
    while (json_step(doc, &it)) {
        uint32_t token = json_find(doc, it.value, "SpecialToken");
        int32_t *id = text ? &tok->eos_id : &tok->bos_id;
        bool *add = text ? &tok->add_eos : &tok->add_bos;
        if (token == JSON_NONE) {
            if (text || json_find(doc, it.value, "Sequence") == JSON_NONE)
                return tool_fail(err, "post_processor: a template that is not one text");
            text = true;
            continue;
        }
        if (*add) return tool_fail(err, "post_processor: two special tokens on one side");
        if (!tok__template_token(tok, doc, post, json_find(doc, token, "id"), id, err))
            return false;
        *add = true;
    }
    if (!text) return tool_fail(err, "post_processor: a template without the text");
    return true;
}

/* Special ids: the unknown one by name of the model, the others by their usual names if the
   template does not say. The files beside the tokenizer may say otherwise.                     */
static TOOL_UNUSED bool tok__json_ids(tok_file *tok, const json_doc *doc, uint32_t model,
                                      tool_error *err)
{
    uint32_t unk = json_find(doc, model, "unk_token");
    size_t size;
    const char *bytes = json_string(doc, unk, &size);
    char shown[TOOL_QUOTE];
    int32_t bos = tok_find(tok, "<s>", 3), eos = tok_find(tok, "</s>", 4);

    if (!json_is_null(doc, unk)) {
        tok->unk_id = bytes == NULL ? -1 : tok_find(tok, bytes, size);
        if (tok->unk_id < 0)
            return tool_fail(err, "model: unk_token %s is not in the vocabulary",
                             json_show(doc, unk, shown));
        if (tok->pieces[tok->unk_id].type == TOK_BYTE)
            return tool_fail(err, "model: unk_token is a byte");
        tok->pieces[tok->unk_id].type = TOK_UNKNOWN;
    }
    if (bos >= 0 && tok->pieces[bos].type == TOK_CONTROL) tok->bos_id = bos;
    if (eos >= 0 && tok->pieces[eos].type == TOK_CONTROL) tok->eos_id = eos;
    return true;
}

/* The contents of a tokenizer.json. Takes over `text` like tok_parse_model. */
static TOOL_UNUSED bool tok_parse_json(tok_file *tok, char *text, size_t size, tool_error *err)
{
    json_doc doc;
    uint32_t model;
    bool ok;

    tok__clear(tok);
    tok__keep(tok, text);
    ok = json_parse(&doc, text, size, err);
    if (ok) {
        model = json_find(&doc, 0, "model");
        ok = tok__json_model(&doc, model, err) && tok__pre_tokenizer(tok, &doc, err) &&
             tok__decoders(tok, &doc, err) && tok__json_table(tok, &doc, model, err) &&
             tok__json_merges(tok, &doc, model, err) && tok__json_ids(tok, &doc, model, err) &&
             tok__post_processor(tok, &doc, err);
        json_free(&doc);
    }
    if (!ok) tok_free(tok);
    return ok;
}

/* ---- tokenizer: the files beside it ---------------------------------------------------------- */

/* "bos_token" and the like: a string, {"content": string}, or null for none. The id of a token that
   is not in the vocabulary is an error if it is needed, else it does not exist.                */
static TOOL_UNUSED bool tok__named_token(const tok_file *tok, const json_doc *doc,
                                         const char *key, bool needed, int32_t *id,
                                         tool_error *err)
{
    uint32_t value = json_find(doc, 0, key);
    uint32_t content = json_typeof(doc, value) == JSON_OBJECT ? json_find(doc, value, "content") :
                       value;
    size_t size;
    const char *bytes = json_string(doc, content, &size);
    char shown[TOOL_QUOTE];

    if (value == JSON_NONE) return true;
    *id = bytes == NULL ? -1 : tok_find(tok, bytes, size);
    if (*id >= 0 || json_is_null(doc, value) || (bytes != NULL && !needed)) return true;
    return tool_fail(err, "%s %s is not in the vocabulary", key, json_show(doc, content, shown));
}

static TOOL_UNUSED bool tok__named_tokens(tok_file *tok, const json_doc *doc, tool_error *err)
{
    return tok__named_token(tok, doc, "bos_token", true, &tok->bos_id, err) &&
           tok__named_token(tok, doc, "eos_token", true, &tok->eos_id, err) &&
           tok__named_token(tok, doc, "pad_token", false, &tok->pad_id, err);
}

/* The id that is the key of added_tokens_decoder. */
static TOOL_UNUSED bool tok__key_id(const json_doc *doc, uint32_t key, int64_t *id,
                                    tool_error *err)
{
    size_t size, i;
    const char *bytes = json_string(doc, key, &size);
    char shown[TOOL_QUOTE];

    *id = 0;
    for (i = 0; i < size && size <= 8 && bytes[i] >= '0' && bytes[i] <= '9'; i++)
        *id = *id * 10 + (bytes[i] - '0');
    if (size > 0 && i == size) return true;
    return tool_fail(err, "added_tokens_decoder: %s is not an id", json_show(doc, key, shown));
}

/* Tokens that only tokenizer_config.json knows come after those of the tokenizer itself. */
static TOOL_UNUSED bool tok__extend(tok_file *tok, const json_doc *doc, tool_error *err)
{
    uint32_t added = json_find(doc, 0, "added_tokens_decoder");
    size_t n = (size_t)tok->n_pieces, i;
    uint64_t all = (uint64_t)n + json_count(doc, added);
    json_each it = json_begin(doc, added);
    tok__entry *entries;
    bool ok = true;

    if (!it.object) return true;
    if (all > (uint64_t)TOK_MAX_PIECES) return tool_fail(err, "more than 2^24 pieces");
    entries = tool_alloc(all, sizeof *entries, err);
    if (entries == NULL) return false;
    for (i = 0; i < n; i++) {
        entries[i].piece = tok->pieces[i];
        entries[i].id = (int64_t)i;
    }
    for (; ok && json_step(doc, &it); i++)
        ok = tok__json_added(&entries[i], doc, it.value, err) &&
             tok__key_id(doc, it.key, &entries[i].id, err);
    ok = ok && tok__build(tok, entries, i, err);
    free(entries);
    return ok;
}

/* One template, or a list of named ones, of which "default" is meant. */
static TOOL_UNUSED bool tok__template(tok_file *tok, const json_doc *doc, tool_error *err)
{
    uint32_t value = json_find(doc, 0, "chat_template");
    json_each it = json_begin(doc, value);
    char shown[TOOL_QUOTE];

    if (json_is_null(doc, value)) return true;
    if (json_typeof(doc, value) == JSON_ARRAY) {
        while (json_step(doc, &it))
            if (json_equals(doc, json_find(doc, it.value, "name"), "default")) break;
        value = json_find(doc, it.value, "template");
        if (value == JSON_NONE) return true;
    }
    tok->chat_template = json_string(doc, value, &tok->chat_template_size);
    if (tok->chat_template != NULL) return true;
    return tool_fail(err, "chat_template is %s, not a string", json_show(doc, value, shown));
}

static TOOL_UNUSED bool tok__config(tok_file *tok, const json_doc *doc, bool sentencepiece,
                                    tool_error *err)
{
    bool prefix = true;

    if (json_typeof(doc, 0) != JSON_OBJECT) return tool_fail(err, "is not an object");
    if (!tok__extend(tok, doc, err) || !tok__named_tokens(tok, doc, err) ||
        !tok__template(tok, doc, err) ||
        !json_get_bool(doc, 0, "add_bos_token", &tok->add_bos, err) ||
        !json_get_bool(doc, 0, "add_eos_token", &tok->add_eos, err) ||
        !json_get_bool(doc, 0, "add_prefix_space", &prefix, err))
        return false;
    if (sentencepiece && !prefix) { /* tokenizer.json says it itself */
        tok->prefix_space = TOK_PREFIX_NEVER;
        tok->prefix_each = false;
    }
    return true;
}

/* Reads a small JSON file if it is there; its text stays as long as the tokenizer. */
static TOOL_UNUSED bool tok__beside(tok_file *tok, const char *folder, const char *name,
                                    bool sentencepiece, tool_error *err)
{
    json_doc doc;
    bool ok;

    if (!tool_has(folder, name)) return true;
    if (!json_load_inside(&doc, folder, name, TOK_MAX_JSON, err)) return false;
    doc.owns_text = false;
    tok__keep(tok, doc.text);
    ok = tok__config(tok, &doc, sentencepiece, err);
    json_free(&doc);
    return ok || tool_prefix(err, name);
}

static TOOL_UNUSED bool tok__jinja(tok_file *tok, const char *folder, tool_error *err)
{
    static const char name[] = "chat_template.jinja";
    char *text;
    size_t size;

    if (!tool_has(folder, name)) return true;
    if (!tool_read_inside(folder, name, UINT64_C(1) << 20, &text, &size, err)) return false;
    tok__keep(tok, text);
    if (!tool_is_utf8(text, size)) return tool_fail(err, "%s: is not valid UTF-8", name);
    tok->chat_template = text;
    tok->chat_template_size = size;
    return true;
}

static TOOL_UNUSED bool tok__open_folder(tok_file *tok, const char *folder, tool_error *err)
{
    bool sentencepiece = tool_has(folder, "tokenizer.model");
    const char *name = sentencepiece ? "tokenizer.model" : "tokenizer.json";
    char *data;
    size_t size;

    if (!sentencepiece && !tool_has(folder, name))
        return tool_fail(err, "no tokenizer.model and no tokenizer.json");
    if (!tool_read_inside(folder, name, sentencepiece ? TOK_MAX_MODEL : TOK_MAX_JSON, &data, &size,
                          err))
        return false;
    if (!(sentencepiece ? tok_parse_model : tok_parse_json)(tok, data, size, err))
        return tool_prefix(err, name);
    if (tok__beside(tok, folder, "special_tokens_map.json", sentencepiece, err) &&
        tok__beside(tok, folder, "tokenizer_config.json", sentencepiece, err) &&
        tok__jinja(tok, folder, err)) {
        if (!tok->add_bos || tok->bos_id >= 0) return true;
        tool_fail(err, "a beginning-of-text token is to be added, but there is none");
    }
    tok_free(tok);
    return false;
}

/* The tokenizer of a model folder: tokenizer.model if there is one, because it is the source, else
   tokenizer.json; then special_tokens_map.json, tokenizer_config.json and chat_template.jinja.
   Or one file alone: a name that ends with .json, or the other kind. On failure the tok_file is
   empty and needs no tok_free.                                                                 */
static TOOL_UNUSED bool tok_open(tok_file *tok, const char *path, tool_error *err)
{
    struct stat status;
    size_t size, length = strlen(path);
    bool json = length >= 5 && strcmp(path + length - 5, ".json") == 0;
    char *data;

    tok__clear(tok);
    if (stat(path, &status) != 0) return tool_fail(err, "%s: %s", path, strerror(errno));
    if (S_ISDIR(status.st_mode))
        return tok__open_folder(tok, path, err) || tool_prefix(err, path);
    if (!tool_read_file(path, json ? TOK_MAX_JSON : TOK_MAX_MODEL, &data, &size, err)) return false;
    if (!(json ? tok_parse_json : tok_parse_model)(tok, data, size, err))
        return tool_prefix(err, path);
    return true;
}

/* ---- tokenizer: generation_config.json ------------------------------------------------------- */

typedef struct tok_generation { /* -1 = the file does not say */
    int32_t eos_ids[TOK_MAX_EOS];
    int32_t n_eos_ids; /* 0 = the file does not say */
    int32_t bos_id, pad_id;
    bool    do_sample;
    double  temperature, top_p, min_p, repetition_penalty;
    int64_t top_k, max_new_tokens;
} tok_generation;

static TOOL_UNUSED bool tok__generation_id(const json_doc *doc, const char *key, int32_t n_vocab,
                                           int32_t *out, tool_error *err)
{
    int64_t id = -1;

    if (!json_get_int(doc, 0, key, 0, (int64_t)n_vocab - 1, &id, err)) return false;
    *out = (int32_t)id;
    return true;
}

/* An id or a list of ids. */
static TOOL_UNUSED bool tok__generation_eos(tok_generation *generation, const json_doc *doc,
                                            int32_t n_vocab, tool_error *err)
{
    uint32_t value = json_find(doc, 0, "eos_token_id");
    json_each it = json_begin(doc, value);
    char shown[TOOL_QUOTE];
    int64_t id;

    if (json_typeof(doc, value) != JSON_ARRAY) {
        if (!tok__generation_id(doc, "eos_token_id", n_vocab, generation->eos_ids, err))
            return false;
        generation->n_eos_ids = generation->eos_ids[0] >= 0;
        return true;
    }
    while (json_step(doc, &it)) {
        if (generation->n_eos_ids >= TOK_MAX_EOS)
            return tool_fail(err, "eos_token_id: more than %d ids", TOK_MAX_EOS);
        if (!json_int(doc, it.value, &id) || id < 0 || id >= n_vocab)
            return tool_fail(err, "eos_token_id: %s is not an id from 0 to %ld",
                             json_show(doc, it.value, shown), (long)n_vocab - 1);
        generation->eos_ids[generation->n_eos_ids++] = (int32_t)id;
    }
    return true;
}

static TOOL_UNUSED bool tok__generation(tok_generation *g, const json_doc *doc, int32_t n_vocab,
                                        tool_error *err)
{
    return tok__generation_eos(g, doc, n_vocab, err) &&
           tok__generation_id(doc, "bos_token_id", n_vocab, &g->bos_id, err) &&
           tok__generation_id(doc, "pad_token_id", n_vocab, &g->pad_id, err) &&
           json_get_bool(doc, 0, "do_sample", &g->do_sample, err) &&
           json_get_double(doc, 0, "temperature", 0, 1000, &g->temperature, err) &&
           json_get_double(doc, 0, "top_p", 0, 1, &g->top_p, err) &&
           json_get_double(doc, 0, "min_p", 0, 1, &g->min_p, err) &&
           json_get_double(doc, 0, "repetition_penalty", 0, 1000, &g->repetition_penalty, err) &&
           json_get_int(doc, 0, "top_k", 0, INT32_MAX, &g->top_k, err) &&
           json_get_int(doc, 0, "max_new_tokens", 0, INT32_MAX, &g->max_new_tokens, err);
}

/* generation_config.json of a model folder; without it all is unsaid. Ids are below n_vocab. */
static TOOL_UNUSED bool tok_generation_read(tok_generation *generation, const char *folder,
                                            int32_t n_vocab, tool_error *err)
{
    static const char name[] = "generation_config.json";
    json_doc doc;
    bool ok;

    memset(generation, 0, sizeof *generation);
    generation->bos_id = generation->pad_id = -1;
    generation->temperature = generation->top_p = generation->min_p = -1;
    generation->repetition_penalty = -1;
    generation->top_k = generation->max_new_tokens = -1;
    if (!tool_has(folder, name)) return true;
    if (!json_load_inside(&doc, folder, name, UINT64_C(1) << 24, err)) return false;
    ok = tok__generation(generation, &doc, n_vocab, err);
    json_free(&doc);
    return ok || tool_prefix(err, name);
}

#endif /* TOOL_TOKENIZER_FILES_H */
