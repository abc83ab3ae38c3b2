/* tiny.h: makes small Monet files for the tests.

   Include it after monet.h with its implementation. tiny_make gives the bytes of a file of about
   100 KB: 2 layers, C = 16, A = 4 heads of 4 numbers, N = 8, H = 2, k = 2, 272 tokens of which 270
   have a piece. Weights are a function of (seed, tensor, element), and the running variance of each
   router is the one that its weights give, so that about k half-experts a head are active.

       tiny_file file = tiny_make(&(tiny_options){.horizontal = 1});
       tiny_put(&file, tiny_at(&file, 1) + 4, 4, 0);          dim = 0
       tiny_rehash(&file);                                    no hash gives it away
       ... monet_model_load_memory(file.data, file.size, ...) ...
       tiny_drop(&file);                                                                          */
#ifndef TINY_H
#define TINY_H

#include "test.h"
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct tiny_options { /* {0}: vertical, f32, a head of its own, merges by score */
    int horizontal, tied, merges, no_weights, no_tokenizer;
    monet_dtype dtype;
    int n_layers, moe_groups, n_kv_heads, max_seq_len; /* 0 = 2, 1, 2, 32 */
    int n_experts;                                     /* 0 = 8 */
    uint64_t seed;
} tiny_options;

typedef struct tiny_file { /* size bytes and not one more, aligned to 64 */
    uint8_t *data;
    size_t size;
} tiny_file;

/* ---- numbers --------------------------------------------------------------------------------- */

TEST_FN uint64_t tiny_rotate(uint64_t x, int n)
{
    return x << n | x >> (64 - n);
}

/* XXH64 with seed 0, from its specification: files are made right again with another program than
   the one that checks them.                                                                      */
TEST_FN uint64_t tiny_xxh64(const void *data, size_t size)
{
    const uint64_t A = 0x9E3779B185EBCA87u, B = 0xC2B2AE3D27D4EB4Fu, D = 0x85EBCA77C2B2AE63u;
    const uint64_t C = 0x165667B19E3779F9u, E = 0x27D4EB2F165667C5u;
    const unsigned char *p = (const unsigned char *)data, *end = p + size;
    uint64_t lane[4], word, hash = E;
    uint32_t half;
    lane[0] = A + B, lane[1] = B, lane[2] = 0, lane[3] = 0 - A;
    for (; end - p >= 32; p += 32)
        for (int k = 0; k < 4; k++) {
            memcpy(&word, p + 8 * k, 8);
            lane[k] = tiny_rotate(lane[k] + word * B, 31) * A;
        }
    if (size >= 32) {
        hash = tiny_rotate(lane[0], 1) + tiny_rotate(lane[1], 7) + tiny_rotate(lane[2], 12) +
               tiny_rotate(lane[3], 18);
        for (int k = 0; k < 4; k++)
            hash = (hash ^ tiny_rotate(lane[k] * B, 31) * A) * A + D;
    }
    hash += size;
    for (; end - p >= 8; p += 8) {
        memcpy(&word, p, 8);
        hash = tiny_rotate(hash ^ tiny_rotate(word * B, 31) * A, 27) * A + D;
    }
    for (; end - p >= 4; p += 4) {
        memcpy(&half, p, 4);
        hash = tiny_rotate(hash ^ half * A, 23) * B + C;
    }
    for (; p < end; p++) hash = tiny_rotate(hash ^ *p * E, 11) * A;
    hash = (hash ^ hash >> 33) * B;
    hash = (hash ^ hash >> 29) * C;
    return hash ^ hash >> 32;
}

TEST_FN uint64_t tiny_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* Evenly in [-1, 1): variance 1/3. */
TEST_FN float tiny_random(uint64_t seed, uint64_t tensor, uint64_t index)
{
    uint64_t x = tiny_mix(tiny_mix(seed + 1) ^ tiny_mix(tensor * 0x9E3779B97F4A7C15u + index));
    return (float)(x >> 40) / 8388608.0f - 1.0f;
}

TEST_FN float tiny_weight(const monet_tensor *t, uint64_t seed, uint64_t tensor, uint64_t index)
{
    float u = tiny_random(seed, tensor, index), n = (float)t->shape[1];
    if (t->n_dims == 1) /* running_var: of C numbers with mean square 1, weighted as below */
        return strstr(t->name, "norm") && !strstr(t->name, "mean") ? 1 + 0.1f * u : 0.1f * u;
    if (strstr(t->name, "moe.b")) return 0.1f * u;
    return u * (float)sqrt(3.0 / n); /* sum over a row of n weights: variance 1 */
}

/* ---- tokenizer ------------------------------------------------------------------------------- */

enum { TINY_BYTES = 3, TINY_LETTERS = 259, TINY_PIECES = 270, TINY_MERGES = 5, TINY_VOCAB = 272 };

/* <unk> <s> </s>, 256 bytes, then pieces; the merges make each of the last five. "<u>" is user-
   defined, U+00E9 has two bytes.                                                                 */
TEST_FN void tiny_tokenizer(monet_tokenizer_data *out, int with_merges)
{
    static const char *const pieces[] = {"\xe2\x96\x81", "a", "b", "c", "\xc3\xa9", "<u>",
                                         "ab", "\xe2\x96\x81" "a", "\xe2\x96\x81" "ab", "abc",
                                         "\xe2\x96\x81" "abc"};
    static const monet_merge merges[TINY_MERGES] = {
        {260, 261, 265}, {259, 260, 266}, {259, 265, 267}, {265, 262, 268}, {259, 268, 269}};
    static const int32_t eos[1] = {2};
    static monet_piece list[TINY_PIECES];
    static char bytes[256][7];
    static const char *const special[] = {"<unk>", "<s>", "</s>"};
    const char *hex = "0123456789ABCDEF";
    for (int i = 0; i < TINY_PIECES; i++) {
        int b = i - TINY_BYTES, k = i - TINY_LETTERS;
        list[i].type = i == 0 ? MONET_PIECE_UNKNOWN : MONET_PIECE_CONTROL;
        if (b >= 0) list[i].type = k < 0 ? MONET_PIECE_BYTE : MONET_PIECE_NORMAL;
        if (k == 5) list[i].type = MONET_PIECE_USER;
        list[i].bytes = b < 0 ? special[i] : k < 0 ? bytes[b] : pieces[k];
        list[i].score = k > 5 ? (float)(5 - k) : 0;
        if (b >= 0 && k < 0) {
            memcpy(bytes[b], "<0x00>", 7);
            bytes[b][3] = hex[b / 16];
            bytes[b][4] = hex[b % 16];
        }
        list[i].size = (int32_t)strlen(list[i].bytes);
    }
    memset(out, 0, sizeof *out);
    out->pieces = list;
    out->n_pieces = TINY_PIECES;
    out->merges = with_merges ? merges : NULL;
    out->n_merges = with_merges ? TINY_MERGES : 0;
    out->eos_ids = eos;
    out->n_eos = 1;
    out->bos_id = 1;
    out->prefix_space = MONET_PREFIX_ALWAYS;
    out->strip_space = 1;
}

/* ---- files ----------------------------------------------------------------------------------- */

TEST_FN void tiny_arch(monet_arch *a, const tiny_options *o)
{
    memset(a, 0, sizeof *a);
    a->vocab_size = TINY_VOCAB;
    a->dim = 16;
    a->n_layers = o->n_layers ? o->n_layers : 2;
    a->n_heads = 4;
    a->n_kv_heads = o->n_kv_heads ? o->n_kv_heads : 2;
    a->max_seq_len = o->max_seq_len ? o->max_seq_len : 32;
    a->moe_experts = o->n_experts ? o->n_experts : 8;
    a->moe_dim = 4;
    a->moe_heads = 2;
    a->moe_topk = 2;
    a->moe_groups = o->moe_groups;
    a->decompose = o->horizontal ? MONET_HORIZONTAL : MONET_VERTICAL;
    a->tie_embeddings = o->tied;
    (void)monet_arch_check(a, NULL);
}

/* All rows of all tensors. */
TEST_FN monet_result tiny_rows(monet_writer *w, const monet_tensor *t, size_t n, uint64_t seed,
                               monet_error *err)
{
    monet_result result = MONET_OK;
    for (size_t k = 0; k < n && result == MONET_OK; k++) {
        size_t count = (size_t)(t[k].shape[0] * t[k].shape[1]);
        float *rows = (float *)malloc(count * sizeof *rows);
        if (!rows) return MONET_ERROR_MEMORY;
        for (size_t i = 0; i < count; i++) rows[i] = tiny_weight(&t[k], seed, k, i);
        result = monet_writer_rows(w, rows, t[k].n_dims == 1 ? 1 : t[k].shape[0], err);
        free(rows);
    }
    return result;
}

/* Fills in a config of the writer; the arrays live until the next call. */
TEST_FN void tiny_config(monet_writer_config *c, const tiny_options *o)
{
    static const monet_metadata metadata[2] = {{"general.name", "tiny"}, {"note", ""}};
    static monet_tensor tensors[256];
    static monet_arch arch;
    static monet_tokenizer_data tokenizer;
    memset(c, 0, sizeof *c);
    tiny_arch(&arch, o);
    tiny_tokenizer(&tokenizer, o->merges);
    if (!o->no_weights) {
        c->arch = &arch;
        c->tensors = tensors;
        (void)monet_arch_tensors(&arch, o->dtype, tensors, 256, &c->n_tensors);
    }
    if (!o->no_tokenizer) c->tokenizer = &tokenizer;
    c->metadata = metadata;
    c->n_metadata = 2;
}

TEST_FN monet_result tiny_write(const char *path, const tiny_options *o, monet_error *err)
{
    monet_writer_config c;
    monet_writer *w = NULL;
    monet_result result;
    tiny_config(&c, o);
    result = monet_writer_create(path, &c, &w, err);
    if (result == MONET_OK) result = tiny_rows(w, c.tensors, c.n_tensors, o->seed, err);
    if (result == MONET_OK) result = monet_writer_finish(w, err);
    monet_writer_free(w);
    return result;
}

/* A path in a new folder of this program, valid for 4 calls; tiny_clean removes the folder. */
TEST_FN const char *tiny_path(const char *name)
{
    static char folder[64], path[4][256];
    static int next;
    char *out = path[next++ % 4];
    if (!folder[0]) {
        strcpy(folder, "/tmp/monet-test-XXXXXX");
        if (!mkdtemp(folder)) strcpy(folder, ".");
    }
    snprintf(out, sizeof path[0], "%s/%s", folder, name);
    return out;
}

/* Files in the folder of this test. */
TEST_FN int tiny_files(void)
{
    DIR *folder = opendir(tiny_path(""));
    int n = 0;
    while (folder && readdir(folder)) n++;
    if (folder) closedir(folder);
    return n;
}

TEST_FN void tiny_clean(void)
{
    char folder[256];
    strcpy(folder, tiny_path(""));
    folder[strlen(folder) - 1] = 0;
    (void)rmdir(folder);
}

TEST_FN tiny_file tiny_new(size_t size)
{
    tiny_file file = {NULL, size};
    void *data = NULL;
    if (posix_memalign(&data, 64, size ? size : 1) == 0) file.data = (uint8_t *)data;
    return file;
}

TEST_FN tiny_file tiny_read(const char *path)
{
    tiny_file file = {NULL, 0};
    FILE *f = fopen(path, "rb");
    if (f && fseek(f, 0, SEEK_END) == 0) file = tiny_new((size_t)ftell(f));
    if (f && file.data) {
        rewind(f);
        if (fread(file.data, 1, file.size, f) != file.size) file.size = 0;
    }
    if (f) fclose(f);
    return file;
}

TEST_FN tiny_file tiny_make(const tiny_options *o)
{
    monet_error err = {{0}, MONET_OK};
    tiny_file file = {NULL, 0};
    const char *path = tiny_path("tiny.monet");
    if (!CHECK_EQ(tiny_write(path, o, &err), MONET_OK)) printf("    %s\n", err.message);
    else file = tiny_read(path);
    (void)remove(path);
    return file;
}

TEST_FN tiny_file tiny_copy(const tiny_file *from, size_t size) /* cut off, or zeros appended */
{
    tiny_file to = tiny_new(size);
    memset(to.data, 0, size);
    memcpy(to.data, from->data, size < from->size ? size : from->size);
    return to;
}

TEST_FN void tiny_drop(tiny_file *file)
{
    free(file->data);
    file->data = NULL;
}

/* ---- taps ------------------------------------------------------------------------------------ */

/* At all sites of all layers. */
TEST_FN monet_result tiny_tap(monet_session *s, monet_tap_fn fn, void *user)
{
    monet_tap tap = {fn, user, 0, 0, 0};
    return monet_session_set_tap(s, &tap);
}

/* ---- patches --------------------------------------------------------------------------------- */

TEST_FN uint64_t tiny_get(const tiny_file *f, uint64_t at, int bytes)
{
    uint64_t value = 0;
    for (int k = bytes; k-- > 0;) value = value << 8 | f->data[at + (uint64_t)k];
    return value;
}

TEST_FN void tiny_put(tiny_file *f, uint64_t at, int bytes, uint64_t value)
{
    for (int k = 0; k < bytes; k++, value >>= 8) f->data[at + (uint64_t)k] = (uint8_t)value;
}

/* Where the entry of a section lies in the table; 0 = there is none. */
TEST_FN uint64_t tiny_entry(const tiny_file *f, uint32_t kind)
{
    for (uint64_t k = 0; k < tiny_get(f, 32, 4); k++)
        if (tiny_get(f, 64 + 40 * k, 4) == kind) return 64 + 40 * k;
    return 0;
}

/* Where the section itself lies: 1 architecture, 2 tensors, 3 tokenizer, 4 metadata, 5 data. */
TEST_FN uint64_t tiny_at(const tiny_file *f, uint32_t kind)
{
    return tiny_get(f, tiny_entry(f, kind) + 8, 8);
}

/* Makes all hashes of the file right again, as far as what they cover lies in the file. */
TEST_FN void tiny_rehash(tiny_file *f)
{
    uint64_t n = tiny_get(f, 32, 4);
    for (uint64_t k = 0; k < n && 64 + 40 * (k + 1) <= f->size; k++) {
        uint64_t e = 64 + 40 * k, at = tiny_get(f, e + 8, 8), size = tiny_get(f, e + 16, 8);
        if (tiny_get(f, e, 4) == 5 || at > f->size || size > f->size - at) continue;
        tiny_put(f, e + 24, 8, tiny_xxh64(f->data + at, (size_t)size));
    }
    if (n <= (f->size - 64) / 40)
        tiny_put(f, 40, 8, tiny_xxh64(f->data + 64, (size_t)(40 * n)));
    tiny_put(f, 56, 8, tiny_xxh64(f->data, 56));
}

#endif /* TINY_H */
