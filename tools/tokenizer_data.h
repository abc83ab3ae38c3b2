/* tokenizer_data.h: tokenizers in the form that monet_writer takes, from wherever they come: a
   tokenizer.model or tokenizer.json, a .monet file, or none at all, by bytes.

   Include it after monet.h and tokenizer_files.h.

       tokenizer_copy t;
       if (!tokenizer_copy_bytes(&t, &err)) ...
       content.tokenizer = &t.data;
       tokenizer_copy_free(&t);                                                                 */
#ifndef TOOL_TOKENIZER_DATA_H
#define TOOL_TOKENIZER_DATA_H

#include "tokenizer_files.h"

typedef struct tokenizer_copy {
    monet_tokenizer_data data;
    monet_piece         *pieces;
    monet_merge         *merges;
    int32_t             *eos_ids;
    char                *text; /* what the pieces point into, unless it is someone else's */
} tokenizer_copy;

static TOOL_UNUSED void tokenizer_copy_free(tokenizer_copy *t)
{
    free(t->pieces);
    free(t->merges);
    free(t->eos_ids);
    free(t->text);
    memset(t, 0, sizeof *t);
}

static TOOL_UNUSED bool tokenizer__arrays(tokenizer_copy *t, tool_error *err)
{
    t->pieces = tool_alloc((uint64_t)t->data.n_pieces, sizeof *t->pieces, err);
    t->merges = tool_alloc((uint64_t)t->data.n_merges, sizeof *t->merges, err);
    t->eos_ids = tool_alloc((uint64_t)t->data.n_eos, sizeof *t->eos_ids, err);
    t->data.pieces = t->pieces;
    t->data.merges = t->merges;
    t->data.eos_ids = t->eos_ids;
    if (t->pieces != NULL && t->merges != NULL && t->eos_ids != NULL) return true;
    tokenizer_copy_free(t);
    return false;
}

/* Of a loaded model, whose bytes it borrows. */
static TOOL_UNUSED bool tokenizer_copy_model(tokenizer_copy *t, const monet_tokenizer *tokenizer,
                                             tool_error *err)
{
    memset(t, 0, sizeof *t);
    monet_tokenizer_describe(tokenizer, NULL, NULL, NULL, &t->data);
    if (!tokenizer__arrays(t, err)) return false;
    monet_tokenizer_describe(tokenizer, t->pieces, t->merges, t->eos_ids, &t->data);
    return true;
}

/* Of a file that tok_open read; borrows its bytes. */
static TOOL_UNUSED bool tokenizer_copy_file(tokenizer_copy *t, const tok_file *file,
                                            tool_error *err)
{
    int32_t i;

    memset(t, 0, sizeof *t);
    t->data.n_pieces = file->n_pieces;
    t->data.n_merges = file->n_merges;
    t->data.n_eos = file->eos_id >= 0;
    t->data.unk_id = file->unk_id;
    t->data.bos_id = file->bos_id;
    t->data.prefix_space = file->prefix_space;
    t->data.strip_space = file->strip_space;
    if (!tokenizer__arrays(t, err)) return false;
    for (i = 0; i < file->n_pieces; i++) {
        t->pieces[i].bytes = file->pieces[i].bytes;
        t->pieces[i].size = file->pieces[i].size;
        t->pieces[i].type = file->pieces[i].type;
        t->pieces[i].score = file->pieces[i].score;
    }
    for (i = 0; i < file->n_merges; i++) {
        t->merges[i].left = file->merges[i].left;
        t->merges[i].right = file->merges[i].right;
        t->merges[i].result = file->merges[i].result;
    }
    if (t->data.n_eos > 0) t->eos_ids[0] = file->eos_id;
    return true;
}

/* 259 pieces: <unk>, <s>, </s> and the 256 bytes. A text is its bytes, so nothing is put before it
   and nothing dropped when it is decoded.                                                      */
static TOOL_UNUSED bool tokenizer_copy_bytes(tokenizer_copy *t, tool_error *err)
{
    static const char *const names[] = {"<unk>", "<s>", "</s>"};
    static const int32_t types[] = {MONET_PIECE_UNKNOWN, MONET_PIECE_CONTROL, MONET_PIECE_CONTROL};
    int32_t i;

    memset(t, 0, sizeof *t);
    t->data.n_pieces = 3 + 256;
    t->data.n_eos = 1;
    t->data.bos_id = 1;
    t->data.prefix_space = MONET_PREFIX_NEVER;
    if (!tokenizer__arrays(t, err)) return false;
    t->text = tool_alloc(256, 7, err);
    if (t->text == NULL) {
        tokenizer_copy_free(t);
        return false;
    }
    for (i = 0; i < 3 + 256; i++) {
        char *name = i < 3 ? NULL : t->text + 7 * (i - 3);
        if (name != NULL) snprintf(name, 7, "<0x%02X>", (unsigned)(i - 3) & 255u);
        t->pieces[i].bytes = name != NULL ? name : names[i];
        t->pieces[i].size = (int32_t)strlen(t->pieces[i].bytes);
        t->pieces[i].type = name != NULL ? MONET_PIECE_BYTE : types[i];
    }
    t->eos_ids[0] = 2;
    return true;
}

/* A number that is the same for tokenizers that turn every text into the same tokens. */
static TOOL_UNUSED bool tokenizer_hash(const monet_tokenizer *tokenizer, uint64_t *hash,
                                       tool_error *err)
{
    tokenizer_copy t;
    tool_buffer all = {NULL, 0, 0, false};
    int32_t i;

    if (!tokenizer_copy_model(&t, tokenizer, err)) return false;
    tool_putf(&all, "%d %d %d %d ", (int)t.data.n_pieces, (int)t.data.bos_id,
              (int)t.data.unk_id, (int)t.data.prefix_space);
    for (i = 0; i < t.data.n_eos; i++) tool_putf(&all, "%d ", (int)t.eos_ids[i]);
    for (i = 0; i < t.data.n_pieces; i++) {
        tool_put(&all, t.pieces[i].bytes, (size_t)t.pieces[i].size);
        tool_putf(&all, " %d %.9g ", (int)t.pieces[i].type, (double)t.pieces[i].score);
    }
    for (i = 0; i < t.data.n_merges; i++)
        tool_putf(&all, "%d %d ", (int)t.merges[i].left, (int)t.merges[i].right);
    tokenizer_copy_free(&t);
    *hash = tool_hash(all.data, all.size);
    i = all.failed;
    tool_buffer_free(&all);
    return i == 0 || tool_fail(err, "out of memory: the hash of a tokenizer");
}

#endif /* TOOL_TOKENIZER_DATA_H */
