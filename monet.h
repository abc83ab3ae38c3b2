/* monet.h - v0.2.0 - the Monet transformer (Mixture of Monosemantic Experts) in one C99 header

   Runs and trains Monet language models (arXiv 2412.04139): 262,144 experts a layer, each close to
   one concept, and shows which of them a token used. No dependency beyond libc; pthreads if you ask
   for them.

   In ONE source file:    #define MONET_IMPLEMENTATION
                          #include "monet.h"
   In all others:         #include "monet.h"

   ---------------------------------------------------------------------------------------------

   QUICK START             cc -O2 -pthread -I. examples/hello.c -o hello -lm && ./hello

   ---- examples/hello.c ----
    // The shortest complete program with monet.h: continues a text on standard output.
    // cc -O2 -pthread -I. examples/hello.c -o hello -lm && ./hello
    #define MONET_IMPLEMENTATION
    #include "monet.h"
    #include <stdio.h>

    static bool print_text(void *user, const char *text, size_t size)
    {
        return fwrite(text, 1, size, (FILE *)user) == size && fflush((FILE *)user) == 0;
    }

    int main(int argc, char **argv)
    {
        monet_error err = {{0}, MONET_OK};
        monet_model *model = NULL;
        monet_session *session = NULL;
        monet_generate_config config = {0};
        config.sampler.temperature = 0.8f;
        config.sampler.top_p = 0.9f;
        config.max_tokens = 100;
        config.text_fn = print_text;
        config.user = stdout;

        const char *path = argc > 1 ? argv[1] : "examples/monet-4m.monet";
        if (monet_model_load(path, NULL, &model, &err) != MONET_OK ||
            monet_session_create(model, NULL, &session, &err) != MONET_OK) {
            fprintf(stderr, "%s\n", err.message);
        } else if (monet_session_generate(session, "The key to life is", &config, NULL)) {
            fprintf(stderr, "%s\n", monet_session_error(session)->message);
        }
        monet_session_free(session);
        monet_model_free(model);
        return err.code != MONET_OK;
    }
   ---- end ----

   CONTENTS               search for >>word to jump

     API                  >>base >>tensors >>model >>writer >>tokenizer_api >>session_api
                          >>routing_api >>edits_api >>taps_api >>attribution_api >>snapshot_api
                          >>sampling_api >>generation_api >>training_api
     implementation       >>platform >>memory >>numbers >>hash >>kernels >>simd >>threads >>layers
                          >>experts >>table >>file >>load >>save >>tokenizer >>session >>eval
                          >>routing >>edits >>attribution >>snapshots >>sampling >>generation
                          >>training >>undef

   WHAT MONET IS

   A Llama-shaped decoder whose feed-forward layer is a mixture of N*N tiny experts (N = 512 in the
   released models). Expert (i,j) is built from half-expert i of one axis and half-expert j of the
   other, so parameters grow with N, not with N*N. For each of H heads a router gives half-experts
   gates g1[h,i] and g2[h,j]; most are exactly 0. A layer depends on the routing only through

       P[i,j] = sum over h of g1[h,i] * g2[h,j]         the pair matrix; r, c = its row, column sums

       horizontal (HD)  y      = V (P^T a) + bias2^T c                      a  = relu(U x + b)^2
       vertical   (VD)  top    = V11 (r.a1) + V12 (P a2)   + B1^T r         a1 = relu(U1 x + b1)^2
                        bottom = V21 (P^T a1) + V22 (c.a2) + B2^T c         a2 = relu(U2 x + b2)^2

   (sections 3.1-3.3 of the paper). A half-expert with gate zero contributes exactly nothing, so its
   weights are not even read: work grows with the active half-experts (about 12 % of them), not N.
   One entry of P is one expert: set it to 0 and the expert is gone (>>experts has an example).

   MONET.H DOES NOT

     use a GPU; build graphs; run other architectures; read Hugging Face files (tools/convert.c
     does); run the vision variant; print, exit, abort, read the environment or keep global state.

   SWITCHES               define before the #include that holds MONET_IMPLEMENTATION

     MONET_STATIC         all functions static: two libraries may embed monet.h in one program
     MONET_NO_STDIO       no file functions: load from memory only
     MONET_NO_SIMD        plain C kernels only; else AVX2 or AVX-512 if the processor has them,
                          NEON on 64-bit ARM, SIMD128 in WebAssembly (built with -msimd128)
     MONET_SELF           this file's name for its own #include (>>simd), if not "monet.h"
     MONET_NO_TRAINING    leaves the trainer out
     MONET_THREADS        sessions with host.n_threads > 1 get a pool of pthreads
     MONET_REAL           the type of the arithmetic: float. The tests build with double, to check
                          derivatives; such a build loads no files.

   OWNERSHIP AND THREADS

     model                read-only once loaded: any number of threads and sessions may share it.
                          It must outlive its sessions.
     session              one sequence: its KV cache and logits. One thread at a time.
     writer               one file being written. One thread at a time.
     edit                 which experts are removed, scaled, forced. Sessions borrow it: it outlives
                          them, any number share it, and it is changed only while none evaluates.
     trainer              a model of its own, gradients, moments, activations. One thread at a time.
     Each object is one allocation of host.alloc_fn (a loaded file is mapped beside it, a trainer's
     model is two more, an edit has tables for layers that it changes). Nothing is allocated by
     eval, sample, rewind, forward, backward or update; encode (and so generate), create, save and
     load take scratch and free it.

   DETERMINISM

     Equal inputs give equal bits, for any number of threads and any split of a prompt into evals:
     every sum has one fixed order (16 partial sums, then one tree); gradients and checkpoints too.
     (In fast mode, see monet_mode, for any number of threads only.)
     The caller's rounding mode does not matter: all works in the default one. Another compiler,
     other flags or another instruction set (>>simd) may round differently: the last digits differ.

   SECURITY

     A .monet file is hostile until proven otherwise: all of it but the weights is checked before
     it is used, in time and memory bounded by the file's size. Weights are any numbers: NaN or
     infinity end in MONET_ERROR_NUMERIC. If another process truncates a file while it is mapped,
     reading it raises SIGBUS: set config.copy where that can happen; writers must rename.
     The hashes find accidents, not attackers.

   THE .monet FILE        all numbers little-endian; section starts and tensors aligned to 64 bytes

     fixed header, 64     magic "MONET\r\n\x1a", u16 major, u16 minor, u32 0x01020304, u64 file size
                          u32 features that a reader must know (1: there are q8 or q4 tensors),
                          u32 features that it may ignore,
                          u32 sections, u32 0, u64 XXH64 of the section table, u64 0,
                          u64 XXH64 of bytes 0..55
     section table        40 bytes each: u32 kind, u32 flags (1 = reader must know it), u64 offset,
                          u64 size, u64 XXH64 of the section (data: 0), u64 number of records
     1 architecture       u32 or f32 each: the fields of monet_arch in order
     2 tensors            128 bytes each: name[64], u32 dtype, u32 source dtype, u32 n_dims, u32 0,
                          u64 shape[2], u64 offset in the data section, u64 size, u64 XXH64
     3 tokenizer          see >>tokenizer
     4 metadata           u32 key size, u32 value size, key, 0, value, 0
     5 data               the tensors, in the order of the table (>>table), in the layout that the
                          kernels read (>>tensors): loading is mapping, no second copy
     6 state              of a training checkpoint, see >>training; before the data
     7 moments            of AdamW, both as large as the data; behind them, XXH64 in the table
     Order and offsets are fixed, so a file with a gap, an overlap or a byte too many is refused.
     Readers skip sections that they do not know.

   A SNAPSHOT             of a session, in memory or a file; little-endian, without padding

     header, 72           magic "MONETKV\x1a", u32 version, u32 0x01020304, u64 size of all,
                          u64 XXH64 of architecture and tensor entries (with their hashes),
                          u32 kv_dtype, u32 L, u32 K, u32 D, u32 tokens, u32 logits (0 or V),
                          u64 XXH64 of what is behind the header, u64 XXH64 of bytes 0..63
     then                 u32 tokens that each layer saw (L), i32 tokens; for each layer the keys,
                          then the values of these tokens: for each head and column group the rows
                          as they lie in the cache (>>tensors; S rows are one panel); f32 logits
     All but the numbers of the cache, which are any, is checked before anything changes.

   LICENCE                at the end of this file: public domain or MIT-0, your choice
*/
#ifndef MONET_H
#define MONET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MONET_VERSION_MAJOR 0 /* breaking changes */
#define MONET_VERSION_MINOR 2 /* new functions    */
#define MONET_VERSION_PATCH 0 /* fixes            */
#define MONET_VERSION                                                                              \
    (MONET_VERSION_MAJOR * 10000 + MONET_VERSION_MINOR * 100 + MONET_VERSION_PATCH)

#ifndef MONET_API
#if defined(MONET_STATIC) && (defined(__GNUC__) || defined(__clang__))
#define MONET_API static __attribute__((unused))
#elif defined(MONET_STATIC)
#define MONET_API static
#else
#define MONET_API extern
#endif
#endif

#ifndef MONET_REAL
#define MONET_REAL float
#endif
typedef MONET_REAL monet_real; /* float; double only in tests that check derivatives */

/* Letters used for shapes, here and in every comment below:
     B  sequences in a batch     T  tokens in a sequence    C  hidden size (dim)
     L  decoder layers           V  vocabulary              S  positions of the KV cache
     A  query heads              K  key/value heads         D  size of one head (C/A)
     H  router heads             N  experts on one axis     M  hidden units of one expert
   A layer has N*N experts; expert (i,j) has id i*N + j. Router group l/G serves G layers.        */

/* ---- base ----------------------------------------------------------------------------- >>base
   Every function that can fail returns monet_result. Nothing prints, exits or aborts.            */
#define MONET_RESULTS(X)                                                                           \
    X(MONET_OK, 0)                                                                                 \
    X(MONET_ERROR_ARGUMENT, -1)     /* NULL, out of range, contradictory: a bug in the caller */   \
    X(MONET_ERROR_MEMORY, -2)       /* the allocator returned NULL, or `memory` is too small  */   \
    X(MONET_ERROR_IO, -3)           /* open, read, write, fsync or rename failed              */   \
    X(MONET_ERROR_FORMAT, -4)       /* not a .monet file, or damaged                          */   \
    X(MONET_ERROR_VERSION, -5)      /* a file or struct newer than this header                */   \
    X(MONET_ERROR_CAPACITY, -6)     /* the output is too small; the count says how much       */   \
    X(MONET_ERROR_CONTEXT_FULL, -7) /* the session has no room for these tokens               */   \
    X(MONET_ERROR_STATE, -8)        /* called out of order, e.g. sample before eval           */   \
    X(MONET_ERROR_CANCELLED, -9)    /* a callback of yours asked to stop                      */   \
    X(MONET_ERROR_NUMERIC, -10)     /* NaN or infinity where a number is needed               */   \
    X(MONET_ERROR_UNSUPPORTED, -11) /* valid, but this code does not do it                    */

#define MONET_RESULT_ENUM(name, value) name = value,
typedef enum monet_result { MONET_RESULTS(MONET_RESULT_ENUM) MONET_RESULT_LAST = 0 } monet_result;
#undef MONET_RESULT_ENUM

/* Where a failure needs words, pass one of these, or NULL. Untouched on success. Example:
   "tensor layers.3.moe.u1.weight: shape is (2048,768), expected (2048,1536)"                     */
typedef struct monet_error {
    char         message[240]; /* always terminated; only printable ASCII */
    monet_result code;
} monet_error;

/* "MONET_ERROR_FORMAT"; "unknown result" for any other number. Never NULL. */
MONET_API const char *monet_result_name(monet_result result);
/* MONET_VERSION of the compiled code: compare it with the macro in a shared library. */
MONET_API int monet_version(void);

/* What your program provides. All zero = malloc, free, the calling thread only.
   parallel_fn must call task(arg, i) once for each i in 0..count-1, in any order, on any threads,
   and return when all are done; count is at most n_threads. NULL = a pool of the session's own
   under MONET_THREADS, else the calling thread. Results do not depend on n_threads.              */
typedef struct monet_host {
    void *(*alloc_fn)(void *user, size_t size);             /* NULL = malloc; any alignment */
    void (*free_fn)(void *user, void *ptr, size_t size);    /* NULL = free */
    void (*parallel_fn)(void *user, int count, void (*task)(void *arg, int index), void *arg);
    int   n_threads;                                        /* 0 = 1; at most 256 */
    void *user;
} monet_host;

/* ---- tensors ----------------------------------------------------------------------- >>tensors
   A tensor is a table of rows and columns; where an element lies depends on its layout, so that
   what the kernels read together lies together. Columns come in groups of 32.

     MONET_ROWS     row after row. Vectors, biases, statistics.
     MONET_PANELS   `panel` rows side by side: [row panel][column group][row][32]. Matrices that
                    are multiplied by rows: panel = 16, the last one filled up with zeros; U of a
                    half-expert: panel = its hidden units, so one half-expert is one panel.
     MONET_SUMS     V, stored transposed: rows are hidden units, columns are outputs:
                    [row panel][column group][row][32]; bf16 keeps two rows in pairs,
                    [row/2][32][row%2], an odd last row with a zero row beside it.

   In MONET_PANELS a group of 32 of f32 or f16 holds its 16 even columns, then its 16 odd ones; of
   bf16 the columns in order, since an even and an odd one share a 32-bit word. That is the split
   order: activations are kept the same way, and all dtypes sum in the same order.

   Matrices may be quantised, in units of one row of a column group: 32 codes q and one bf16 scale,
   value = scale * q, exact in f32. q8: q = -127..127 in a byte, q + 128; q4: q = -8..7 in four
   bits, q + 8. A group of a panel holds the codes of all its rows, row by row, in the order of f32,
   then the scales of these rows. Byte l of 16 of a q4 row: number l low, number l + 16 high.
   These three paragraphs are what >>layout does.                                                 */
typedef enum monet_dtype {
    MONET_F32 = 0, MONET_F16 = 1, MONET_BF16 = 2, MONET_Q8 = 3, MONET_Q4 = 4
} monet_dtype;
typedef enum monet_layout { MONET_ROWS = 0, MONET_PANELS = 1, MONET_SUMS = 2 } monet_layout;

typedef struct monet_tensor {
    char         name[64];     /* "layers.0.moe.u1.weight" */
    monet_dtype  dtype;
    monet_dtype  source_dtype; /* what it was before conversion: an export goes back to it */
    monet_layout layout;
    int32_t      panel;        /* rows in a panel */
    int32_t      n_dims;       /* 1 or 2 */
    int64_t      shape[2];     /* (rows, columns), or (n, 1) */
    const void  *data;         /* NULL in a description without data */
    uint64_t     size;         /* bytes, padding included */
    uint64_t     offset;       /* in the data section */
    uint64_t     hash;         /* XXH64 of the bytes, as the file says */
} monet_tensor;

/* "f32", "f16", "bf16", "q8", "q4"; "unknown" for any other number. */
MONET_API const char *monet_dtype_name(monet_dtype dtype);
/* Bytes of one element; 0 for an unknown dtype and for q8 and q4, whose rows carry a scale. */
MONET_API size_t monet_dtype_size(monet_dtype dtype);
/* Converts n numbers, rounding to nearest even; NaN stays NaN. Error: unknown dtype. */
MONET_API monet_result monet_convert(void *dst, monet_dtype dst_dtype, const void *src,
                                     monet_dtype src_dtype, size_t n);
/* Index of the element at (row, column) within tensor->data, in elements; 0 for q8 and q4. A vector
   has row 0. */
MONET_API size_t monet_tensor_place(const monet_tensor *tensor, int64_t row, int64_t column);
/* Rows first..first+count-1 as float, row-major (count, columns); a vector is one row. */
MONET_API monet_result monet_tensor_read(const monet_tensor *tensor, int64_t first, int64_t count,
                                         float *out);

/* ---- model --------------------------------------------------------------------------- >>model */
typedef enum monet_decompose { MONET_VERTICAL = 0, MONET_HORIZONTAL = 1 } monet_decompose;

typedef struct monet_arch {
    int32_t vocab_size;      /* V */
    int32_t dim;             /* C */
    int32_t n_layers;        /* L */
    int32_t n_heads;         /* A; divides C, and C/A is even */
    int32_t n_kv_heads;      /* K; divides A; 0 = n_heads */
    int32_t max_seq_len;     /* positions the model was trained for */
    int32_t moe_experts;     /* N: experts on one axis, N*N in a layer */
    int32_t moe_dim;         /* M; even for vertical */
    int32_t moe_heads;       /* H */
    int32_t moe_topk;        /* k: expected active half-experts a head; sets the threshold; < N */
    int32_t moe_groups;      /* G: layers sharing one router; 0 = 1 */
    int32_t decompose;       /* a monet_decompose */
    int32_t tie_embeddings;  /* 1: lm_head is embed_tokens */
    float   rope_theta;      /* 0 = 10000 */
    float   norm_eps;        /* 0 = 1e-6 */
} monet_arch;

/* Checks every field, filling in the defaults of those that are 0. */
MONET_API monet_result monet_arch_check(monet_arch *arch, monet_error *err);
/* Describes the tensors of such a model, in file order: names, shapes, layouts; dtype as given for
   matrices and expert biases (these are bf16 for q8 and q4), f32 for vectors and statistics. *count
   is right even if capacity is too small (MONET_ERROR_CAPACITY; `out` may be NULL then).         */
MONET_API monet_result monet_arch_tensors(const monet_arch *arch, monet_dtype dtype,
                                          monet_tensor *out, size_t capacity, size_t *count);

typedef struct monet_model     monet_model;     /* weights and tokenizer; see OWNERSHIP */
typedef struct monet_tokenizer monet_tokenizer; /* part of its model */

typedef struct monet_model_config {
    uint32_t   struct_size; /* 0 = sizeof as compiled; set it only across a library boundary */
    monet_host host;        /* inherited by the sessions of this model */
    uint64_t   max_bytes;   /* refuse a file that needs more memory, file included; 0 = any */
    bool       copy;        /* read the file into memory instead of mapping it */
    bool       verify;      /* check the hash of every tensor: reads the whole file */
} monet_model_config;

/* A NULL config means all defaults, here and below. *out is NULL after an error. */
#ifndef MONET_NO_STDIO
MONET_API monet_result monet_model_load(const char *path, const monet_model_config *config,
                                        monet_model **out, monet_error *err);
/* Writes beside `path`, syncs and renames: an error leaves an older file as it was. */
MONET_API monet_result monet_model_save(const monet_model *model, const char *path,
                                        monet_error *err);
#endif
/* Borrows `data`, which must be aligned to 64 bytes, until monet_model_free. */
MONET_API monet_result monet_model_load_memory(const void *data, size_t size,
                                               const monet_model_config *config, monet_model **out,
                                               monet_error *err);
/* Reads all weights and compares their hashes: names the first tensor that is damaged. */
MONET_API monet_result monet_model_verify(const monet_model *model, monet_error *err);
/* NULL is allowed. No session of the model may be alive. */
MONET_API void monet_model_free(monet_model *model);

/* NULL if the file holds a tokenizer only. */
MONET_API const monet_arch *monet_model_arch(const monet_model *model);
/* NULL if the file holds none. */
MONET_API const monet_tokenizer *monet_model_tokenizer(const monet_model *model);
MONET_API size_t monet_model_tensor_count(const monet_model *model);
/* NULL if out of range or not there. Valid as long as the model. */
MONET_API const monet_tensor *monet_model_tensor(const monet_model *model, size_t index);
MONET_API const monet_tensor *monet_model_find_tensor(const monet_model *model, const char *name);
/* Free text that the converter kept: "generation.temperature", "chat_template", ... */
MONET_API size_t monet_model_metadata_count(const monet_model *model);
MONET_API const char *monet_model_metadata_key(const monet_model *model, size_t index);
MONET_API const char *monet_model_metadata_value(const monet_model *model, size_t index);
/* NULL if there is no such key. */
MONET_API const char *monet_model_metadata(const monet_model *model, const char *key);

/* ---- writer ------------------------------------------------------------------------- >>writer
   Writes a .monet file tensor by tensor, in bounded memory: converters and trainers use it.      */
typedef struct monet_metadata { const char *key, *value; } monet_metadata;

enum { /* types of pieces, as SentencePiece numbers them */
    MONET_PIECE_NORMAL = 1, MONET_PIECE_UNKNOWN = 2, MONET_PIECE_CONTROL = 3,
    MONET_PIECE_USER = 4, MONET_PIECE_UNUSED = 5, MONET_PIECE_BYTE = 6
};
typedef struct monet_piece {
    const char *bytes; /* as the vocabulary writes it: U+2581 for a space, "<0x41>" for a byte */
    int32_t     size;  /* 1..512 bytes of UTF-8; need not be terminated */
    int32_t     type;  /* MONET_PIECE_... */
    float       score; /* pairs that make a piece of higher score merge first; without merges */
} monet_piece;
typedef struct monet_merge { int32_t left, right, result; } monet_merge; /* piece ids */

enum { MONET_PREFIX_NEVER = 0, MONET_PREFIX_ALWAYS = 1, MONET_PREFIX_FIRST = 2 };
typedef struct monet_tokenizer_data {
    const monet_piece *pieces;
    int32_t            n_pieces;
    const monet_merge *merges;        /* in order of rank; NULL = merge by score */
    int32_t            n_merges;
    const int32_t     *eos_ids;       /* each of them ends a generation */
    int32_t            n_eos;
    int32_t            unk_id, bos_id; /* -1 = none */
    int32_t            prefix_space;  /* MONET_PREFIX_...; FIRST: none before a leading space */
    int32_t            strip_space;   /* 1: decoding drops one leading space */
} monet_tokenizer_data;

typedef struct monet_writer_config {
    uint32_t                    struct_size;
    monet_host                  host;
    const monet_arch           *arch;       /* NULL = a tokenizer alone */
    const monet_tensor         *tensors;    /* of monet_arch_tensors, dtypes changed as you like */
    size_t                      n_tensors;
    const monet_tokenizer_data *tokenizer;  /* NULL = none */
    const monet_metadata       *metadata;
    size_t                      n_metadata;
} monet_writer_config;

/* A new model in memory with random weights: matrices normal(0, 0.02), norms and running variances
   1, the rest 0. content->arch is needed, content->tensors must be NULL: all are f32. Equal seeds
   give equal weights.                                                                            */
MONET_API monet_result monet_model_create(const monet_writer_config *content, uint64_t seed,
                                          const monet_model_config *config, monet_model **out,
                                          monet_error *err);

#ifndef MONET_NO_STDIO
typedef struct monet_writer monet_writer;
/* Opens path.tmp.<pid>.<n>. The config's arrays are not needed after the call. */
MONET_API monet_result monet_writer_create(const char *path, const monet_writer_config *config,
                                           monet_writer **out, monet_error *err);
/* Appends `count` rows (count, columns) of the current tensor.
   Tensors come in order, rows from first to last. A vector is one row.                           */
MONET_API monet_result monet_writer_rows(monet_writer *writer, const float *rows, int64_t count,
                                         monet_error *err);
/* All tensors must be complete: writes the header, syncs, renames. The writer stays to be freed. */
MONET_API monet_result monet_writer_finish(monet_writer *writer, monet_error *err);
/* Before finish, or after a failed one: removes the unfinished file. NULL is allowed. */
MONET_API void monet_writer_free(monet_writer *writer);
#endif

/* ---- tokenizer --------------------------------------------------------------- >>tokenizer_api
   SentencePiece BPE with byte fallback, as Llama uses it. Read-only; any number of threads.
   User text never becomes a control token (<s>, </s>) unless MONET_PARSE_SPECIAL asks for it.    */
enum {
    MONET_ADD_BOS = 1, MONET_ADD_EOS = 2,
    MONET_PARSE_SPECIAL = 4, /* "<s>" in the text becomes the token */
    MONET_NO_PREFIX = 8      /* no space is put before the text: it goes on after other tokens */
};

/* Any bytes are text; what is not UTF-8 becomes byte tokens and decodes to the same bytes.
   *count is what the whole text needs, also when capacity is too small (then
   MONET_ERROR_CAPACITY, with the first of them; tokens may be NULL if capacity is 0).            */
MONET_API monet_result monet_tokenizer_encode(const monet_tokenizer *tokenizer, const char *text,
                                              size_t text_size, unsigned flags, int32_t *tokens,
                                              size_t capacity, size_t *count);
/* The text is not terminated. Control tokens give nothing. MONET_ERROR_ARGUMENT: no such token. */
MONET_API monet_result monet_tokenizer_decode(const monet_tokenizer *tokenizer,
                                              const int32_t *tokens, size_t count, char *text,
                                              size_t capacity, size_t *text_size);
/* Bytes of one token inside a text, its leading space kept: not terminated, and maybe only part of
   a UTF-8 character. Valid as long as the model. NULL if there is no such token.                 */
MONET_API const char *monet_tokenizer_bytes(const monet_tokenizer *tokenizer, int32_t token,
                                            size_t *size);
/* Number of tokens. */
MONET_API int32_t monet_tokenizer_size(const monet_tokenizer *tokenizer);
/* Id of the piece written like this ("</s>", "<0x0A>"), or -1. */
MONET_API int32_t monet_tokenizer_find(const monet_tokenizer *tokenizer, const char *bytes,
                                       size_t size);
/* -1 = none. */
MONET_API int32_t monet_tokenizer_bos(const monet_tokenizer *tokenizer);
/* The first of the tokens that end a text; -1 = none. */
MONET_API int32_t monet_tokenizer_eos(const monet_tokenizer *tokenizer);
/* True for each token that ends a text. */
MONET_API bool monet_tokenizer_is_eos(const monet_tokenizer *tokenizer, int32_t token);
/* The pieces and settings as the file has them, to write them again. The caller provides arrays of
   n_pieces, n_merges and n_eos elements, or NULL to ask for the counts; bytes stay the model's.  */
MONET_API monet_result monet_tokenizer_describe(const monet_tokenizer *tokenizer,
                                                monet_piece *pieces, monet_merge *merges,
                                                int32_t *eos_ids, monet_tokenizer_data *out);

/* Instruction sets that sums are computed with, chosen when an object is made. Results of two of
   them differ in the last digits. One that the processor lacks gives the best that it has.       */
typedef enum monet_kernels {
    MONET_KERNELS_BEST = 0, MONET_KERNELS_SCALAR, MONET_KERNELS_AVX2, MONET_KERNELS_AVX512,
    MONET_KERNELS_BF16, /* AVX-512 with BF16 and VNNI: differs from AVX512 in fast mode only */
    MONET_KERNELS_AMX,  /* the same with AMX tiles */
    MONET_KERNELS_NEON, MONET_KERNELS_WASM
} monet_kernels;
/* The name of what `kernels` gives here: "scalar", "avx2", "avx512", ... */
MONET_API const char *monet_kernels_name(monet_kernels kernels);

/* EXACT: activations are f32; a prompt in pieces or whole, one thread or many give the same bits.
   FAST: products of many tokens round activations to bf16, and products with q8 and q4 weights to
   8 bits with a scale every 32; the same calls give the same bits, other pieces may not. Router
   logits stay accurate to f32 in both. On the model of the tests, bf16, 16,320 tokens: bits per
   byte change by 0.001 %, the likeliest token is the same at 99.6 % of the places.               */
typedef enum monet_mode { MONET_EXACT = 0, MONET_FAST = 1 } monet_mode;

/* ---- session ------------------------------------------------------------------- >>session_api
   One sequence: its tokens, KV cache and last logits. It counts positions itself.                */
typedef struct monet_session monet_session;

typedef struct monet_session_config {
    uint32_t          struct_size;
    int32_t           context;         /* S: positions of the KV cache; 0 = max_seq_len */
    int32_t           max_batch;       /* tokens computed together; 0 = 512, at most S */
    monet_dtype       kv_dtype;        /* of the KV cache: f32, f16 or bf16 */
    bool              capture_routing; /* keep the routing of the tokens of the last eval */
    bool              capture_activations; /* and what adds up to their residual stream: 4*L+1
                                          times (max_batch,C) numbers; needs capture_routing */
    bool              all_logits;      /* keep the logits of every token of the last eval */
    const monet_host *host;            /* NULL = that of the model; copied */
    void             *memory;          /* put the session here (aligned to 64 bytes) ... */
    size_t            memory_size;     /* ... instead of allocating; see monet_session_size */
    monet_kernels     kernels;         /* 0 = the best that this processor has */
    monet_mode        mode;
} monet_session_config;

/* Bytes that the session needs, KV cache and all. */
MONET_API monet_result monet_session_size(const monet_model *model,
                                          const monet_session_config *config, size_t *size);
MONET_API monet_result monet_session_create(const monet_model *model,
                                            const monet_session_config *config,
                                            monet_session **out, monet_error *err);
MONET_API void monet_session_free(monet_session *session); /* NULL is allowed */
/* The words of the last call on this session that failed. Never NULL. */
MONET_API const monet_error *monet_session_error(const monet_session *session);

/* Appends tokens and computes the logits of the next one. After any error the session holds the
   tokens it held before. A bad token or a full context is found before any work, and the logits
   stay; after MONET_ERROR_NUMERIC or MONET_ERROR_CANCELLED there are none until the next eval.
   With capture_routing or all_logits, at most max_batch tokens a call. count 0 does nothing.     */
MONET_API monet_result monet_session_eval(monet_session *session, const int32_t *tokens,
                                          size_t count);
/* The same with vectors (count,C) in place of token embeddings (pictures, averaged words). */
MONET_API monet_result monet_session_eval_embeddings(monet_session *session,
                                                     const float *embeddings, size_t count);
/* Keeps the first `length` tokens; 0 = start over. There are no logits until the next eval. */
MONET_API monet_result monet_session_rewind(monet_session *session, int32_t length);
MONET_API int32_t monet_session_length(const monet_session *session);
MONET_API int32_t monet_session_context(const monet_session *session); /* S */
/* The tokens so far, (length); -1 for an embedding. Valid until the next call. */
MONET_API const int32_t *monet_session_tokens(const monet_session *session);
/* (V) of the last token; valid until the next eval. NULL before the first and after rewind. */
MONET_API const monet_real *monet_session_logits(const monet_session *session);
/* (V) of token `index` of the last eval; needs all_logits. NULL if out of range. */
MONET_API const monet_real *monet_session_logits_at(const monet_session *session, int32_t index);
/* Natural logarithm of the probability of `token` after these logits; computed in double. */
MONET_API double monet_logprob(const monet_real *logits, int32_t vocab_size, int32_t token);

/* ---- routing ------------------------------------------------------------------- >>routing_api */
typedef struct monet_edit monet_edit; /* see >>edits_api */

typedef struct monet_routing {    /* a view, valid until the next eval or change of the edit */
    int32_t           n_heads, n_experts; /* H, N */
    int32_t           group;      /* router number: layer / G */
    int32_t           n_i, n_j;   /* active half-experts on each axis */
    const uint16_t   *i, *j;      /* (n_i) (n_j) their numbers, ascending */
    const monet_real *g1, *g2;    /* (H,N) gates; exactly 0 except at active half-experts */
    const monet_edit *edit;       /* what changed the weights; NULL = nothing */
    int32_t           layer;      /* the weights are those of this layer */
} monet_routing;

typedef struct monet_expert {
    int32_t i, j;                 /* id = i*N + j */
    float   score;                /* what the router said: sum over h of g1[h,i] * g2[h,j]; 0..H */
    float   weight;               /* P[i,j] that the layer used: the score, unless it was edited */
} monet_expert;

/* Routing of token `index` of the last eval in `layer`; needs capture_routing. MONET_ERROR_STATE:
   nothing was kept, or the edit was changed since.                                               */
MONET_API monet_result monet_session_routing(const monet_session *session, int32_t index,
                                             int32_t layer, monet_routing *out);
/* The strongest `capacity` experts with strength > threshold, strongest first (equal ones: lower id
   first); strength is the larger of score and |weight|, so that removed and forced experts are
   seen. Returns how many such experts there are in all; `out` may be NULL if capacity is 0.      */
MONET_API size_t monet_routing_experts(const monet_routing *routing, float threshold,
                                       monet_expert *out, size_t capacity);

/* ---- edits ----------------------------------------------------------------------- >>edits_api
   Experts removed, scaled or forced on, exactly. An edit changes the pair matrix and nothing else:

       P[i,j] = factor[i,j] * sum over h of g1[h,i] * g2[h,j]  +  amount[i,j]

   Factor 0 removes an expert (the paper's unlearning; nothing is renormalised), any other factor
   steers it, an amount forces it on for every token. Unless they are set, they are 1 and 0.
   Removing or scaling any number of experts costs nothing; a forced expert costs its two
   half-experts. Memory: 4*N*N bytes for layers that are edited alike, twice that if any is forced.
   `where` is a layer, MONET_ROUTER(g) for all layers of router g, or MONET_ALL; i and j may be
   MONET_ALL, so (i,MONET_ALL) is a whole row: all experts of half-expert i.                      */
enum { MONET_ALL = -1 };
#define MONET_ROUTER(g) (-2 - (g))

/* An edit that changes nothing, for models of this shape. name: 1..63 printable characters without
   #; the first and the last are no blanks.                                                       */
MONET_API monet_result monet_edit_create(const monet_model *model, const char *name,
                                         monet_edit **out, monet_error *err);
/* NULL is allowed. No session may hold it: monet_session_set_edit(session, NULL) first, or free the
   session, which leaves the edit alone.                                                          */
MONET_API void monet_edit_free(monet_edit *edit);
MONET_API const char *monet_edit_name(const monet_edit *edit);
/* The last call for an expert counts, each of the two on its own. MONET_ERROR_ARGUMENT: there is no
   such place, or the number is not finite.                                                       */
MONET_API monet_result monet_edit_scale(monet_edit *edit, int32_t where, int32_t i, int32_t j,
                                        float factor, monet_error *err);
MONET_API monet_result monet_edit_force(monet_edit *edit, int32_t where, int32_t i, int32_t j,
                                        float amount, monet_error *err);
/* As if `edit` was applied and then `next`: factors multiply, amounts are scaled and added. */
MONET_API monet_result monet_edit_combine(monet_edit *edit, const monet_edit *next,
                                          monet_error *err);
/* Factor and amount of one expert in one layer; either may be NULL. */
MONET_API monet_result monet_edit_get(const monet_edit *edit, int32_t layer, int32_t i, int32_t j,
                                      float *factor, float *amount);
/* How many experts of a layer it changes; 0 if there is no such layer. */
MONET_API int64_t monet_edit_count(const monet_edit *edit, int32_t layer);
/* Text, a line each; what follows # is a comment. People number routers from 1, as G1:

       monet-edit 1
       name no-economics
       shape N=64 L=8 G=4                  the model must have it
       remove G2 E17 E3000 i=5             experts i*N+j, a row, a column: j=9
       scale 2.5 L3 E40                    in one layer, numbered from 0
       force 0.75 all E231                 in all layers

   Lines are applied in order. Errors name the line. Any text is read in bounded time: it may set
   every expert of every layer 64 times, and 8 experts more for each byte, not more.              */
MONET_API monet_result monet_edit_parse(const monet_model *model, const char *text, size_t size,
                                        monet_edit **out, monet_error *err);
/* The same edit as text, not terminated; *size is right even if capacity is too small. */
MONET_API monet_result monet_edit_text(const monet_edit *edit, char *text, size_t capacity,
                                       size_t *size);
#ifndef MONET_NO_STDIO
MONET_API monet_result monet_edit_load(const monet_model *model, const char *path, monet_edit **out,
                                       monet_error *err);
MONET_API monet_result monet_edit_save(const monet_edit *edit, const char *path, monet_error *err);
#endif
/* From the next eval on; NULL = none. Borrows the edit, which any number of sessions may share;
   change it only between evals. MONET_ERROR_ARGUMENT: it is for models of another shape. */
MONET_API monet_result monet_session_set_edit(monet_session *session, const monet_edit *edit);

/* ---- taps ------------------------------------------------------------------------- >>taps_api */
typedef enum monet_site {
    MONET_SITE_EMBEDDING = 0,     /* layer is -1: the residual stream before layer 0 */
    MONET_SITE_ATTENTION_OUT = 1, /* what attention adds to the residual stream */
    MONET_SITE_MOE_IN = 2,        /* after post_attention_layernorm: input of router and experts */
    MONET_SITE_MOE_OUT = 3,       /* what the experts add to the residual stream */
    MONET_SITE_RESIDUAL = 4,      /* the residual stream after the layer */
    MONET_SITE_FINAL_NORM = 5     /* layer is L; what lm_head reads */
} monet_site;
/* data is (count,C) for positions first..first+count-1 and may be changed. false = stop here: eval
   returns MONET_ERROR_CANCELLED. Called on the thread that called eval, many times an eval. Of what
   changes or computes with the session it may call monet_session_lens only.                      */
typedef bool (*monet_tap_fn)(void *user, monet_site site, int32_t layer, int32_t first,
                             int32_t count, monet_real *data);
typedef struct monet_tap {
    monet_tap_fn fn;
    void        *user;
    uint32_t     sites;           /* bits 1 << site; 0 = all */
    int32_t      n_layers;        /* only of layers first_layer..first_layer+n_layers-1; 0 = all. */
    int32_t      first_layer;     /* -1 is the embedding, L the final norm */
} monet_tap;
/* From the next eval on, also during generation; NULL = none. Copied. MONET_ERROR_ARGUMENT: there
   is no such site or layer.                                                                      */
MONET_API monet_result monet_session_set_tap(monet_session *session, const monet_tap *tap);
/* Evals end after this layer; the others are not run, and there are no logits. MONET_ALL = run all.
   An eval that would go on deeper than a token before it is MONET_ERROR_STATE: rewind first.     */
MONET_API monet_result monet_session_set_last_layer(monet_session *session, int32_t layer);

/* ---- attribution ----------------------------------------------------------- >>attribution_api
   Where a number of the residual stream or a logit comes from: exact, since experts add up.      */
/* (C) of token `index` of the last eval; needs capture_activations. Sites of >>taps_api, after what
   a tap wrote; not FINAL_NORM. NULL if there is none. Valid until the next eval.                 */
MONET_API const monet_real *monet_session_activation(const monet_session *session, monet_site site,
                                                     int32_t layer, int32_t index);
/* out (C) = E_ij(n): what expert (i,j) makes of n (C), see MONET_SITE_MOE_IN, at weight 1. The two
   must not overlap.                                                                              */
MONET_API monet_result monet_model_expert(const monet_model *model, int32_t layer, int32_t i,
                                          int32_t j, const monet_real *n, monet_real *out);
/* out (C) = P[i,j] * E_ij(n): what it added to the residual stream of token `index` of the last
   eval, edits applied. Needs capture_activations.                                                */
MONET_API monet_result monet_session_contribution(const monet_session *session, int32_t index,
                                                  int32_t layer, int32_t i, int32_t j,
                                                  monet_real *out);
typedef struct monet_part {       /* a part of a logit */
    monet_site site;              /* of EMBEDDING, ATTENTION_OUT or, for an expert, MOE_OUT */
    int32_t    layer;             /* -1: embedding */
    int32_t    i, j;              /* the expert */
    float      weight;            /* its P[i,j], edits applied */
    double     logit;             /* lm_head . (norm weight * part / rms of the stream) */
    double     bias;              /* share of `logit` that comes from moe.b of its halves */
} monet_part;
/* The parts of logit `token` after token `index` of the last eval: embedding, then for each layer
   attention and all experts whose weight is not 0. They sum up to the logit (with set_last_layer,
   to that of the lens), unless a tap wrote to MOE_OUT, RESIDUAL or FINAL_NORM. *count is right even
   if capacity is too small (MONET_ERROR_CAPACITY). Needs capture_activations.                    */
MONET_API monet_result monet_session_attribution(monet_session *session, int32_t index,
                                                 int32_t token, monet_part *out, size_t capacity,
                                                 size_t *count);
/* Logit lens: logits (V) of a residual stream x (C), or of any direction in it. The session's own
   logits stay.                                                                                   */
MONET_API monet_result monet_session_lens(monet_session *session, const monet_real *x,
                                          monet_real *logits);
/* *nats = sum of -log p of tokens[1..count-1]. Rewinds to 0 first; needs all_logits. Goes in pieces
   of max_batch, so count may be as large as the context.                                         */
MONET_API monet_result monet_session_loss(monet_session *session, const int32_t *tokens,
                                          size_t count, double *nats);
/* The same without any edit and with this one. The session is empty afterwards, and has its own
   edit again.                                                                                    */
MONET_API monet_result monet_session_effect(monet_session *session, const monet_edit *edit,
                                            const int32_t *tokens, size_t count, double *plain,
                                            double *edited);

/* ---- snapshots ---------------------------------------------------------------- >>snapshot_api
   The tokens, the KV cache and the last logits of a session: run a prefix once, try many edits.
   Taps, edits and what was kept of the last eval are not in it. A model is known by its shape and
   the hashes of its tensors, which a trainer does not renew: there, an update is not noticed.    */
/* *size is right even if capacity is too small (MONET_ERROR_CAPACITY). All of these functions are
   MONET_ERROR_UNSUPPORTED on a big-endian machine, or if MONET_REAL is not float.                */
MONET_API monet_result monet_session_snapshot(const monet_session *session, void *data,
                                              size_t capacity, size_t *size);
/* Into any session of the same weights, kv_dtype and a context that is long enough. All of it is
   checked before anything changes. MONET_ERROR_FORMAT: damaged. MONET_ERROR_VERSION: newer.
   MONET_ERROR_ARGUMENT: of another model or kv_dtype. MONET_ERROR_CONTEXT_FULL: too long.        */
MONET_API monet_result monet_session_restore(monet_session *session, const void *data, size_t size);
#ifndef MONET_NO_STDIO
MONET_API monet_result monet_session_save(const monet_session *session, const char *path,
                                          monet_error *err);
MONET_API monet_result monet_session_load(monet_session *session, const char *path,
                                          monet_error *err);
#endif

/* ---- sampling ----------------------------------------------------------------- >>sampling_api */
typedef struct monet_sampler {    /* plain data, copy it freely; {0} = greedy */
    float    temperature;         /* 0 = greedy: the largest logit, the lowest id of equal ones */
    int32_t  top_k;               /* only the k likeliest; 0 = off */
    float    top_p;               /* of these, the likeliest that reach this part; 0 or 1 = off */
    float    min_p;               /* only those with at least min_p times the largest; 0 = off */
    float    repetition_penalty;  /* logits of recent tokens: / if > 0, * if < 0; 0 or 1 = off */
    int32_t  penalty_last_n;      /* how many tokens back; 0 = all */
    uint64_t seed;                /* equal seeds, equal text */
    uint64_t draws;               /* how many tokens were drawn; moves on with each */
} monet_sampler;

/* Draws the next token of the session; it is not appended. sampler NULL = greedy. logprob, if not
   NULL, gets log p(token) under the model itself, before temperature and cuts.
   MONET_ERROR_STATE: no logits. MONET_ERROR_NUMERIC: no finite logit. MONET_ERROR_ARGUMENT: a
   field of the sampler is negative or not a number.                                              */
MONET_API monet_result monet_session_sample(monet_session *session, monet_sampler *sampler,
                                            int32_t *token, float *logprob);

/* ---- generation ------------------------------------------------------------- >>generation_api */
typedef enum monet_stop {
    MONET_STOP_NONE = 0, MONET_STOP_EOS, MONET_STOP_MAX_TOKENS, MONET_STOP_CONTEXT_FULL,
    MONET_STOP_STRING, MONET_STOP_CALLBACK
} monet_stop;

typedef struct monet_generate_config {
    uint32_t           struct_size;
    monet_sampler      sampler;
    int32_t            max_tokens;   /* 0 = until end of text or a full context */
    bool               ignore_eos;   /* go on after an end-of-text token */
    const char *const *stop_strings; /* n_stop strings, 1..255 bytes; not delivered */
    int32_t            n_stop;       /* at most 16 */
    /* Gets whole UTF-8 characters, not terminated; a byte that is not UTF-8 comes as U+FFFD. May
       hold text back until it cannot be part of a stop string. false = stop.                     */
    bool (*text_fn)(void *user, const char *text, size_t size);
    /* Gets each token as it is drawn, before it is evaluated. false = stop. NULL is allowed.
       logprob is as in monet_session_sample if `logprobs` asks for it, else 0.                   */
    bool (*token_fn)(void *user, int32_t token, float logprob);
    bool  logprobs;
    void *user;
} monet_generate_config;

typedef struct monet_generate_result {
    int32_t    n_prompt; /* tokens of the prompt */
    int32_t    n_tokens; /* tokens drawn, the end-of-text token included */
    monet_stop stop;
    int32_t    last_token; /* drawn, but not in the session; -1 = none */
    monet_sampler sampler; /* moved on by the draws: pass it to a call that goes on */
} monet_generate_result;

/* Encodes the prompt (BOS first if the session is empty), evaluates it and generates. A NULL prompt
   goes on from the session's logits; "" is BOS alone. Tokens of the text are in the session
   afterwards, except result->last_token. MONET_ERROR_CONTEXT_FULL: the prompt is longer than the
   room that is left; nothing was evaluated. A context that fills up later is a stop, not an error.
   result may be NULL.                                                                            */
MONET_API monet_result monet_session_generate(monet_session *session, const char *prompt,
                                              const monet_generate_config *config,
                                              monet_generate_result *result);

/* ---- training ----------------------------------------------------------------- >>training_api
   The step that teaches a model: three calls, on weights of f32.

       monet_trainer_forward(trainer, tokens, targets, &losses);  losses, and what backward needs
       monet_trainer_backward(trainer);                           adds to the gradients
       monet_trainer_update(trainer, rate, &update);              clips, AdamW, gradients to zero

     L = cross entropy + uniformity * L_unif + ambiguity * L_amb      (section 3.4 of the paper)
     L_unif = -(1/(2HN)) sum_h (sum_i log mean_t g1[h,i] + sum_j log mean_t g2[h,j])
     L_amb  = (1/(2H)) sum_h mean_t ((1 - max_i g1[h,i]) + (1 - max_j g2[h,j]))

   both averaged over the routers. Several forward-backward pairs before an update accumulate:
   gradients are sums over the scored targets, divided once by their number; statistics and routing
   losses are of each pass.                                                                       */
#ifndef MONET_NO_TRAINING
typedef struct monet_trainer monet_trainer;

typedef struct monet_trainer_config {
    uint32_t           struct_size;
    int32_t            batch_size;     /* B: sequences of a pass; 0 = 1 */
    int32_t            seq_len;        /* T: tokens of a sequence; 0 = max_seq_len */
    float              beta1, beta2;   /* AdamW; 0 = 0.9 and 0.95 */
    float              eps;            /* AdamW; 0 = 1e-8 */
    float              weight_decay;   /* of matrices; vectors, biases, moe.b do not; 0 = none */
    float              grad_clip;      /* largest norm of all gradients together; 0 = any */
    float              uniformity;     /* weight of L_unif; 0 = off, the paper takes 1e-3 */
    float              ambiguity;      /* weight of L_amb; 0 = off, the paper takes 1e-3 */
    float              uniformity_eps; /* added to the mean inside the logarithm; 0 = 1e-8 */
    const char *const *freeze;         /* patterns of names of tensors that are not trained; */
    int32_t            n_freeze;       /* '*' is any characters: "layers.*.router.*" */
    bool               batch_stats;    /* frozen routers too take, and move, batch statistics */
    const monet_host  *host;           /* NULL = that of the model; copied */
    monet_kernels      kernels;        /* 0 = the best that this processor has */
    /* For many machines: must replace sums[0..n-1] by their sums over all of them. forward calls it
       twice a router and once at the end, update once.                                           */
    void (*reduce_fn)(void *user, double *sums, size_t n);
    void *reduce_user;
} monet_trainer_config;

typedef struct monet_losses { /* of one pass */
    double  total;                 /* L */
    double  cross_entropy;         /* nats per scored target; 0 if there is none */
    double  uniformity, ambiguity; /* L_unif, L_amb; also where their weight is 0 */
    int64_t scored;                /* targets that are not -1 */
    int64_t unused;                /* half-experts, of 2*N a router, that no token used */
} monet_losses;

typedef struct monet_update {
    double  grad_norm; /* of all trained tensors, before clipping */
    int64_t scored;    /* targets since the last update */
    bool    skipped;   /* a loss or gradient was not finite: nothing was changed, no step counted */
} monet_update;

typedef struct monet_counts {
    int64_t steps;   /* updates done */
    int64_t skipped; /* updates skipped */
    int64_t batches; /* passes whose statistics were taken (num_batches_tracked) */
} monet_counts;

/* Bytes that such a trainer allocates, its copy of the model included. */
MONET_API monet_result monet_trainer_size(const monet_model *model,
                                          const monet_trainer_config *config, size_t *size);
/* Copies weights (widened to f32), tokenizer and metadata: the model is not needed any more. */
MONET_API monet_result monet_trainer_create(const monet_model *model,
                                            const monet_trainer_config *config,
                                            monet_trainer **out, monet_error *err);
MONET_API void monet_trainer_free(monet_trainer *trainer); /* NULL is allowed */
/* The words of the last call on this trainer that failed. Never NULL. */
MONET_API const monet_error *monet_trainer_error(const monet_trainer *trainer);
/* tokens and targets are (B,T); targets[t] is the token to predict after tokens[t], -1 = none. One
   out of range: MONET_ERROR_ARGUMENT before any work. Losses that are not finite are no error, but
   running statistics do not move then. Without a scored target there are no gradients at all, also
   of the routing losses. losses may be NULL.                                                     */
MONET_API monet_result monet_trainer_forward(monet_trainer *trainer, const int32_t *tokens,
                                             const int32_t *targets, monet_losses *losses);
/* Once after each forward: MONET_ERROR_STATE otherwise. */
MONET_API monet_result monet_trainer_backward(monet_trainer *trainer);
/* MONET_ERROR_STATE without a backward before; MONET_ERROR_ARGUMENT, and nothing changed, if the
   rate is negative or not finite. update may be NULL.                                            */
MONET_API monet_result monet_trainer_update(monet_trainer *trainer, float rate,
                                            monet_update *update);
MONET_API monet_result monet_trainer_counts(const monet_trainer *trainer, monet_counts *out);
/* The model in training, to evaluate or to save: lives as long as the trainer. Its weights change
   with each update and its statistics with each forward, so rewind sessions on it; the hashes of
   its tensors are those of the start.                                                            */
MONET_API const monet_model *monet_trainer_model(const monet_trainer *trainer);
/* All gradients, *count numbers in the order and layout of a file's data section: sums over the
   scored targets. With many machines, sum them here between backward and update.                 */
MONET_API monet_real *monet_trainer_grads(monet_trainer *trainer, size_t *count);
/* The gradient of one tensor, as a tensor within that block. */
MONET_API monet_result monet_trainer_grad(const monet_trainer *trainer, const char *name,
                                          monet_tensor *out);

/* Learning rate of step 0, 1, ...: rises over `warmup` steps, then falls along a cosine to `least`
   at step `total`, or stays.                                                                     */
MONET_API float monet_rate_cosine(int64_t step, int64_t warmup, int64_t total, float rate,
                                  float least);
MONET_API float monet_rate_constant(int64_t step, int64_t warmup, float rate);

#ifndef MONET_NO_STDIO
/* One .monet file with weights, moments and counts; any reader of models can use it. `user`: bytes
   of yours (position in the data, options). Errors leave an older file as it was, and the trainer
   usable. MONET_ERROR_STATE between backward and update: gradients are not saved.                */
MONET_API monet_result monet_trainer_save(const monet_trainer *trainer, const char *path,
                                          const void *user, size_t user_size, monet_error *err);
/* Goes on from such a file, bit for bit if the config is the same. All of it is verified first.
   The host of the trainer is config->host, or malloc and one thread.                             */
MONET_API monet_result monet_trainer_load(const char *path, const monet_trainer_config *config,
                                          monet_trainer **out, monet_error *err);
#endif
/* The user bytes of the file that monet_trainer_load read. NULL if there are none. */
MONET_API const void *monet_trainer_user(const monet_trainer *trainer, size_t *size);
#endif /* MONET_NO_TRAINING */

#ifdef __cplusplus
}
#endif
#endif /* MONET_H */

/* =================================================================================================
   End of the interface. What follows is the implementation: compiled where you ask for it.
   ============================================================================================== */
#ifdef MONET_IMPLEMENTATION
#ifndef MONET_IMPLEMENTATION_ONCE
#define MONET_IMPLEMENTATION_ONCE

/* ---- platform --------------------------------------------------------------------- >>platform */
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "monet.h needs NaN and infinity: build without -ffast-math (-Ofast, -ffinite-math-only)"
#endif
#if defined(__ORDER_BIG_ENDIAN__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define MONET__BIG_ENDIAN 1
#else
#define MONET__BIG_ENDIAN 0
#endif

#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#ifndef MONET_NO_STDIO
#include <errno.h>
#include <stdio.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#define MONET__POSIX 1
#ifndef MONET_NO_STDIO
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif
#ifdef MONET_THREADS
#include <pthread.h>
#include <unistd.h>
#endif
#else
#define MONET__POSIX 0
#endif

/* A reader with 32-bit registers and x87 arithmetic would round differently at every spill. */
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD == 2
#error "monet.h needs float arithmetic without excess precision: build with -msse2 -mfpmath=sse"
#endif

#define MONET__LANES 16  /* partial sums of every long sum */
#define MONET__GROUP 32  /* columns of a group, in panels and in activations */
#define MONET__ROWS 16   /* rows in a panel of a dense matrix */
#define MONET__TOKENS 32 /* tokens that a kernel sees at a time */
enum {
    MONET__SHARES = 8,         /* parts of the work of a thread; who is free takes one */
    MONET__BLOCK_TOKENS = 128, /* tokens of a product that stay in cache */
    MONET__BLOCK_GROUPS = 4,   /* column groups of a block that stays in cache */
    MONET__FAST_TOKENS = 512,  /* tokens of a product in fast mode */
    MONET__FAST_LEAST = 4,     /* fewer tokens of a half-expert are quicker in f32 */
    MONET__NEAR = 1024,        /* bytes ahead that are fetched, see fetch: within one panel */
    MONET__FAR = 8192          /* and within many */
};

/* ---- memory and errors -------------------------------------------------------------- >>memory
   Sizes are computed with checked arithmetic, an arena is laid out by the code that measures it. */
static bool monet__mul(uint64_t *out, uint64_t a, uint64_t b)
{
    if (b && a > UINT64_MAX / b) return false;
    *out = a * b;
    return true;
}

static bool monet__add(uint64_t *out, uint64_t a, uint64_t b)
{
    if (a > UINT64_MAX - b) return false;
    *out = a + b;
    return true;
}

static uint64_t monet__round_up(uint64_t n, uint64_t unit) /* n far below UINT64_MAX */
{
    return (n + unit - 1) / unit * unit;
}

static void *monet__alloc(const monet_host *host, uint64_t size)
{
    if (size == 0 || size > SIZE_MAX) return NULL;
    return host->alloc_fn ? host->alloc_fn(host->user, (size_t)size) : malloc((size_t)size);
}

static void monet__free(const monet_host *host, void *ptr, uint64_t size)
{
    if (!ptr) return;
    if (host->free_fn) host->free_fn(host->user, ptr, (size_t)size);
    else free(ptr);
}

/* The place of an object in a block with 64 bytes to spare: allocators need not align. */
static char *monet__align(void *block)
{
    return (char *)block + (64 - (uintptr_t)block % 64) % 64;
}

typedef struct monet__arena {
    char    *base; /* NULL = only measure */
    uint64_t used;
    bool     overflow;
} monet__arena;

/* The next `count` elements, aligned to 64 bytes; NULL while measuring. */
static void *monet__take(monet__arena *arena, uint64_t count, uint64_t size)
{
    uint64_t bytes, end, start = monet__round_up(arena->used, 64);
    if (!monet__mul(&bytes, count, size) || !monet__add(&end, start, bytes) ||
        end > UINT64_MAX / 4) {
        arena->overflow = true;
        return NULL;
    }
    arena->used = end;
    return arena->base ? arena->base + start : NULL;
}

/* Decimal digits of value, behind a minus if it is negative: no printf here. Returns their start
   within buf[22].                                                                                */
static const char *monet__decimal(char *buf, uint64_t value, bool negative)
{
    char *p = buf + 21;
    *p = 0;
    if (negative) value = 0 - value;
    do *--p = (char)('0' + value % 10);
    while (value /= 10);
    if (negative) *--p = '-';
    return p;
}

/* Sets the error. format knows %s (string), %d (int32_t), %D (int64_t), %U (uint64_t). */
static monet_result monet__fail(monet_error *err, monet_result code, const char *format, ...)
{
    va_list args;
    size_t  n = 0, max = sizeof err->message - 1;
    if (!err) return code;
    err->code = code;
    va_start(args, format);
    for (; *format && n < max; ++format) {
        char        digits[22], one[2] = {*format, 0};
        const char *s = one;
        if (*format == '%' && *++format == 's') s = va_arg(args, const char *);
        else if (*one == '%' && *format == 'U')
            s = monet__decimal(digits, va_arg(args, uint64_t), false);
        else if (*one == '%') {
            int64_t value = *format == 'd' ? va_arg(args, int) : va_arg(args, int64_t);
            s = monet__decimal(digits, (uint64_t)value, value < 0);
        }
        for (; s && *s && n < max; ++s) /* names in hostile files may hold anything */
            err->message[n++] = *s >= 32 && *s < 127 ? *s : '?';
    }
    va_end(args);
    err->message[n] = 0;
    return code;
}

/* A rule that does not hold, or a call that fails, ends the function; words are in its `err`. */
#define MONET__NEED(code, rule, ...)                                                               \
    do                                                                                             \
        if (!(rule)) return monet__fail(err, MONET_ERROR_##code, __VA_ARGS__);                     \
    while (0)
#define MONET__TRY(call)                                                                           \
    do {                                                                                           \
        monet_result monet__tried = call;                                                          \
        if (monet__tried != MONET_OK) return monet__tried;                                         \
    } while (0)

/* Copies a config; NULL gives zeros. */
static monet_result monet__config(void *dst, size_t size, const void *src, monet_error *err)
{
    uint32_t given = 0;
    memset(dst, 0, size);
    if (!src) return MONET_OK;
    memcpy(&given, src, sizeof given);
    MONET__NEED(VERSION, given <= size, "config: struct_size is %U, this version of monet.h knows "
                "%U", (uint64_t)given, (uint64_t)size);
    MONET__NEED(ARGUMENT, !given || given == size, /* no struct of the first version is smaller */
                "config: struct_size is %U, expected 0 or %U", (uint64_t)given, (uint64_t)size);
    memcpy(dst, src, size);
    return MONET_OK;
}

static monet_result monet__no_memory(monet_error *err, const char *what, uint64_t size)
{
    return monet__fail(err, MONET_ERROR_MEMORY, "%s: cannot allocate %U bytes", what, size);
}

MONET_API const char *monet_result_name(monet_result result)
{
#define MONET__RESULT_NAME(name, value)                                                            \
    if ((int)result == (value)) return #name;
    MONET_RESULTS(MONET__RESULT_NAME)
#undef MONET__RESULT_NAME
    return "unknown result";
}

MONET_API int monet_version(void) { return MONET_VERSION; }

/* ---- numbers ----------------------------------------------------------------------- >>numbers
   bf16 is the upper half of a float. Rounding is to nearest, ties to even. Easy to get wrong: a NaN
   whose payload lies in the lower bits must stay NaN, not become infinity.                       */
static float monet__float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t monet__bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static float monet__from_bf16(uint16_t h) { return monet__float((uint32_t)h << 16); }

static uint16_t monet__to_bf16(float f)
{
    uint32_t u = monet__bits(f), rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 64 : rounded);
}

/* The exponent is moved by a multiplication, which also normalises what is subnormal in f16. */
static float monet__from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = (uint32_t)(h & 0x7fffu);
    if (rest >= 0x7c00u) return monet__float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x400u) return monet__float(sign | ((rest << 13) + 0x38000000u));
    return monet__float(sign | monet__bits((float)rest * 5.9604644775390625e-8f)); /* 2^-24 */
}

static uint16_t monet__to_f16(float f)
{
    uint32_t u = monet__bits(f), sign = (u >> 16) & 0x8000u, rest = u & 0x7fffffffu, shift = 13;
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((rest >> 13) & 0x3ffu));
    if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and more round to inf */
    if (rest < 0x33000000u) return (uint16_t)sign;              /* below 2^-25: zero */
    if (rest < 0x38800000u) { /* subnormal in f16: 14..24 bits fall off */
        shift = 126 - (rest >> 23);
        rest = (rest & 0x7fffffu) | 0x800000u;
    } else rest -= 0x38000000u;
    return (uint16_t)(sign | (rest + (1u << (shift - 1)) - 1 + (rest >> shift & 1)) >> shift);
}

MONET_API const char *monet_dtype_name(monet_dtype dtype)
{
    static const char *const names[] = {"f32", "f16", "bf16", "q8", "q4"};
    return (unsigned)dtype <= MONET_Q4 ? names[dtype] : "unknown";
}

/* The native type is monet_real: 8 bytes in a test build with double. */
MONET_API size_t monet_dtype_size(monet_dtype dtype)
{
    if (dtype == MONET_F32) return sizeof(monet_real);
    return dtype == MONET_F16 || dtype == MONET_BF16 ? 2 : 0;
}

static monet_real monet__get(const void *data, monet_dtype dtype, size_t index)
{
    uint16_t   h;
    monet_real r;
    if (dtype == MONET_F32) {
        memcpy(&r, (const char *)data + index * sizeof r, sizeof r);
        return r;
    }
    memcpy(&h, (const char *)data + index * 2, 2);
    return (monet_real)(dtype == MONET_BF16 ? monet__from_bf16(h) : monet__from_f16(h));
}

static void monet__put(void *data, monet_dtype dtype, size_t index, monet_real value)
{
    uint16_t h;
    if (dtype == MONET_F32) {
        memcpy((char *)data + index * sizeof value, &value, sizeof value);
        return;
    }
    h = dtype == MONET_BF16 ? monet__to_bf16((float)value) : monet__to_f16((float)value);
    memcpy((char *)data + index * 2, &h, 2);
}

MONET_API monet_result monet_convert(void *dst, monet_dtype dst_dtype, const void *src,
                                     monet_dtype src_dtype, size_t n)
{
    if (!monet_dtype_size(dst_dtype) || !monet_dtype_size(src_dtype) || (n && (!dst || !src)))
        return MONET_ERROR_ARGUMENT;
    if (dst_dtype == src_dtype) {
        if (n) memmove(dst, src, n * monet_dtype_size(dst_dtype));
        return MONET_OK;
    }
    for (size_t k = 0; k < n; ++k) monet__put(dst, dst_dtype, k, monet__get(src, src_dtype, k));
    return MONET_OK;
}

/* e^x to about 1 unit in the last place; 0 below -87.3, infinity above 88.3, NaN stays NaN.
   x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its series, 2^n put into the exponent.                 */
static monet_real monet__exp(monet_real x)
{
    float v = (float)x, n, r, p;
    if (sizeof(monet_real) != sizeof(float)) return (monet_real)exp((double)x);
    if (!(v > -87.3f)) return (monet_real)(v <= -87.3f ? 0.0f : v);
    if (v > 88.3f) return (monet_real)HUGE_VALF; /* up to here 2^n fits a float */
    n = (float)(int)(v * 1.44269504f + (v < 0 ? -0.5f : 0.5f));
    r = (v - n * 0.693359375f) - n * -2.12194440e-4f; /* ln 2 in two parts: the first is exact */
    p = 1.0f / 720 + r * (1.0f / 5040);
    p = 1.0f / 24 + r * (1.0f / 120 + r * p);
    p = 1 + r * (1 + r * (0.5f + r * (1.0f / 6 + r * p)));
    return (monet_real)(p * monet__float((uint32_t)((int)n + 127) << 23));
}

static monet_real monet__sqrt(monet_real x)
{
    return sizeof x == sizeof(float) ? (monet_real)sqrtf((float)x) : (monet_real)sqrt((double)x);
}

/* Little-endian numbers at any address. */
static uint16_t monet__u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static uint32_t monet__u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t monet__u64(const uint8_t *p)
{
    return (uint64_t)monet__u32(p) | (uint64_t)monet__u32(p + 4) << 32;
}

/* Rounding and flushing of subnormals belong to a thread: to the caller's, or to that which started
   a pool. All arithmetic runs in the default mode and leaves the thread's own as it was.         */
static void monet__mode_begin(fenv_t *own)
{
    (void)fegetenv(own);
    (void)fesetenv(FE_DFL_ENV);
}

static void monet__mode_end(const fenv_t *own) { (void)fesetenv(own); }

/* ---- hash ----------------------------------------------------------------------------- >>hash
   XXH64 with seed 0, for accidents only. Streaming: any pieces give the hash of the whole.       */
typedef struct monet__hash {
    uint64_t lane[4], total;
    uint8_t  buffer[32]; /* total % 32 bytes wait here */
} monet__hash;

static const uint64_t MONET__P1 = 0x9e3779b185ebca87u, MONET__P2 = 0xc2b2ae3d27d4eb4fu,
                      MONET__P3 = 0x165667b19e3779f9u, MONET__P4 = 0x85ebca77c2b2ae63u,
                      MONET__P5 = 0x27d4eb2f165667c5u;

static uint64_t monet__rotate(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static uint64_t monet__hash_round(uint64_t lane, uint64_t word)
{
    return monet__rotate(lane + word * MONET__P2, 31) * MONET__P1;
}

static void monet__hash_begin(monet__hash *h)
{
    memset(h, 0, sizeof *h);
    h->lane[0] = MONET__P1 + MONET__P2;
    h->lane[1] = MONET__P2;
    h->lane[3] = 0 - MONET__P1;
}

static void monet__hash_add(monet__hash *h, const void *data, size_t size)
{
    const uint8_t *p = (const uint8_t *)data;
    for (size_t take; size; p += take, size -= take) {
        size_t         n = h->total % 32;
        const uint8_t *block = n || size < 32 ? h->buffer : p;
        take = 32 - n < size ? 32 - n : size;
        if (block != p) memcpy(h->buffer + n, p, take);
        h->total += take;
        for (int k = 0; k < 4 && n + take == 32; ++k)
            h->lane[k] = monet__hash_round(h->lane[k], monet__u64(block + 8 * k));
    }
}

static uint64_t monet__hash_end(const monet__hash *h)
{
    const uint8_t *p = h->buffer, *end = p + h->total % 32;
    uint64_t       x = MONET__P5;
    if (h->total >= 32) {
        x = monet__rotate(h->lane[0], 1) + monet__rotate(h->lane[1], 7) +
            monet__rotate(h->lane[2], 12) + monet__rotate(h->lane[3], 18);
        for (int k = 0; k < 4; ++k)
            x = (x ^ monet__hash_round(0, h->lane[k])) * MONET__P1 + MONET__P4;
    }
    x += h->total;
    for (; end - p >= 8; p += 8)
        x = monet__rotate(x ^ monet__hash_round(0, monet__u64(p)), 27) * MONET__P1 + MONET__P4;
    for (; end - p >= 4; p += 4)
        x = monet__rotate(x ^ monet__u32(p) * MONET__P1, 23) * MONET__P2 + MONET__P3;
    for (; p < end; ++p) x = monet__rotate(x ^ *p * MONET__P5, 11) * MONET__P1;
    x = (x ^ x >> 33) * MONET__P2;
    x = (x ^ x >> 29) * MONET__P3;
    return x ^ x >> 32;
}

static uint64_t monet__hash_of(const void *data, size_t size)
{
    monet__hash h;
    monet__hash_begin(&h);
    monet__hash_add(&h, data, size);
    return monet__hash_end(&h);
}

/* Random numbers are a function of (seed, purpose, step, index): no state to save or to lose. */
enum { MONET__RANDOM_SAMPLE = 1, MONET__RANDOM_INIT = 2 };

static uint64_t monet__mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t monet__random(uint64_t seed, uint64_t purpose, uint64_t step, uint64_t index)
{
    uint64_t x = monet__mix(seed + 0x9e3779b97f4a7c15u);
    x = monet__mix(x + purpose * 0xd1b54a32d192ed03u);
    x = monet__mix(x + step * 0x8cb92ba72f3d8dd7u);
    return monet__mix(x + index * 0x9e3779b97f4a7c15u);
}

/* ---- layout: where an element lies ----------------------------------------------------------- */
/* Rows and columns of the table that is stored; a vector is one row. */
static int64_t monet__rows(const monet_tensor *t) { return t->n_dims == 1 ? 1 : t->shape[0]; }
static int64_t monet__cols(const monet_tensor *t)
{
    return t->n_dims == 1 ? t->shape[0] : t->shape[1];
}

/* Place of a column within its group of 32 in split order: evens first, then odds. */
static size_t monet__split(size_t column)
{
    return column / MONET__GROUP * MONET__GROUP + (column & 1) * MONET__LANES +
           column % MONET__GROUP / 2;
}

/* Rows that a panel takes in memory: pairs of bf16 rows leave no row alone. */
static size_t monet__panel_rows(const monet_tensor *t)
{
    size_t rows = (size_t)t->panel;
    return t->layout == MONET_SUMS && t->dtype == MONET_BF16 ? (rows + 1) / 2 * 2 : rows;
}

static size_t monet__n_groups(const monet_tensor *t)
{
    return ((size_t)monet__cols(t) + MONET__GROUP - 1) / MONET__GROUP;
}

/* Elements of one panel. */
static size_t monet__panel_size(const monet_tensor *t)
{
    return monet__panel_rows(t) * monet__n_groups(t) * MONET__GROUP;
}

static bool monet__quantised(monet_dtype dtype) { return dtype == MONET_Q8 || dtype == MONET_Q4; }

/* Bytes of one row of a column group, without and with its scale; 0 for an unknown dtype. */
static size_t monet__code_bytes(monet_dtype dtype)
{
    switch (dtype) {
    case MONET_F32: return MONET__GROUP * sizeof(monet_real);
    case MONET_F16:
    case MONET_BF16: return MONET__GROUP * 2;
    case MONET_Q8: return MONET__GROUP;
    case MONET_Q4: return MONET__GROUP / 2;
    default: return 0;
    }
}

static size_t monet__row_bytes(monet_dtype dtype)
{
    return monet__code_bytes(dtype) + (monet__quantised(dtype) ? 2 : 0);
}

/* Bytes of one column group of a panel; of one panel, a row in MONET_ROWS. */
static size_t monet__group_bytes(const monet_tensor *t)
{
    return monet__panel_rows(t) * monet__row_bytes(t->dtype);
}

static size_t monet__panel_bytes(const monet_tensor *t)
{
    return t->layout == MONET_ROWS ? (size_t)monet__cols(t) * monet_dtype_size(t->dtype)
                                   : monet__n_groups(t) * monet__group_bytes(t);
}

/* Where panel k begins. */
static const char *monet__panel(const monet_tensor *t, int64_t k)
{
    return (const char *)t->data + (size_t)k * monet__panel_bytes(t);
}

/* Place of column k (0..31) of a group, from that of its column 0 on. */
static size_t monet__in_group(const monet_tensor *t, size_t k)
{
    if (t->layout == MONET_PANELS) return t->dtype == MONET_BF16 ? k : monet__split(k);
    return t->layout == MONET_SUMS && t->dtype == MONET_BF16 ? 2 * k : k;
}

MONET_API size_t monet_tensor_place(const monet_tensor *tensor, int64_t row, int64_t column)
{
    size_t c = (size_t)column, r = (size_t)row, p;
    if (!tensor || tensor->panel < 1 || monet__quantised(tensor->dtype)) return 0;
    if (tensor->layout == MONET_ROWS) return r * (size_t)monet__cols(tensor) + c;
    p = r / (size_t)tensor->panel * monet__panel_size(tensor) +
        c / MONET__GROUP * monet__panel_rows(tensor) * MONET__GROUP;
    r %= (size_t)tensor->panel;
    if (tensor->layout == MONET_SUMS && tensor->dtype == MONET_BF16) /* rows in pairs */
        r = r / 2 * 2 * MONET__GROUP + r % 2;
    else r *= MONET__GROUP;
    return p + r + monet__in_group(tensor, c % MONET__GROUP);
}

/* Bytes of a tensor, padding included; false if they do not fit in 64 bits. */
static bool monet__tensor_size(const monet_tensor *t, uint64_t *out)
{
    uint64_t panels = (uint64_t)monet__rows(t), columns = (uint64_t)monet__cols(t), size;
    if (t->layout == MONET_ROWS)
        return monet__mul(&size, columns, monet_dtype_size(t->dtype)) &&
               monet__mul(out, panels, size);
    panels = (panels + (uint64_t)t->panel - 1) / (uint64_t)t->panel;
    return monet__mul(&size, monet__group_bytes(t),
                      monet__round_up(columns, MONET__GROUP) / MONET__GROUP) &&
           monet__mul(out, panels, size);
}

/* Row r of a column group of `rows` rows, in the order of f32: in split order, if the layout is
   MONET_PANELS.                                                                                  */
static void monet__widen(monet_real *out, const void *group, monet_dtype dtype, int rows, int r)
{
    size_t         size = monet__code_bytes(dtype);
    const uint8_t *p = (const uint8_t *)group + (size_t)r * size;
    float          scale = 0;
    if (monet__quantised(dtype))
        scale = monet__from_bf16(monet__u16((const uint8_t *)group + (size_t)rows * size + 2 * r));
    if (dtype == MONET_F32) {
        memcpy(out, p, size);
    } else if (dtype == MONET_F16) {
        for (int l = 0; l < MONET__GROUP; ++l)
            out[l] = monet__get(p, MONET_F16, (size_t)l);
    } else if (dtype == MONET_BF16) {
        for (int l = 0; l < MONET__LANES; ++l) {
            uint32_t pair;
            memcpy(&pair, p + 4 * l, 4);
            out[l] = (monet_real)monet__float(pair << 16);
            out[l + MONET__LANES] = (monet_real)monet__float(pair & 0xffff0000u);
        }
    } else if (dtype == MONET_Q8) {
        for (int l = 0; l < MONET__GROUP; ++l) out[l] = (monet_real)(scale * (float)(p[l] - 128));
    } else {
        for (int l = 0; l < MONET__LANES; ++l) {
            out[l] = (monet_real)(scale * (float)((p[l] & 15) - 8));
            out[l + MONET__LANES] = (monet_real)(scale * (float)((p[l] >> 4) - 8));
        }
    }
}

/* The same for MONET_SUMS, columns in order. */
static void monet__widen_sums(monet_real *out, const void *group, monet_dtype dtype, int rows,
                              int r)
{
    if (dtype != MONET_BF16) {
        monet__widen(out, group, dtype, rows, r);
        return;
    }
    for (int c = 0; c < MONET__GROUP; ++c)
        out[c] = monet__get(group, dtype, (size_t)(r / 2 * 2 * MONET__GROUP + 2 * c + r % 2));
}

/* The 32 columns of a column group of a row, in order, zeros beyond the last column. */
static void monet__group_read(const monet_tensor *t, const void *data, int64_t row, size_t group,
                              monet_real *out)
{
    const char *p = (const char *)data + (size_t)(row / t->panel) * monet__panel_bytes(t) +
                    group * monet__group_bytes(t);
    monet_real  split[MONET__GROUP];
    if (t->layout == MONET_ROWS) {
        for (size_t k = 0, c = group * MONET__GROUP; k < MONET__GROUP; ++k, ++c)
            out[k] = c < (size_t)monet__cols(t)
                         ? monet__get(data, t->dtype, monet_tensor_place(t, row, (int64_t)c)) : 0;
    } else if (t->layout == MONET_SUMS) {
        monet__widen_sums(out, p, t->dtype, t->panel, (int)(row % t->panel));
    } else {
        monet__widen(split, p, t->dtype, t->panel, (int)(row % t->panel));
        for (size_t k = 0; k < MONET__GROUP; ++k) out[k] = split[monet__split(k)];
    }
}

/* The q of 32 numbers for one scale, plus 8 (q4) or 128 (q8); returns the squared error. */
static double monet__encode(uint8_t *codes, const monet_real *x, monet_dtype dtype, float scale)
{
    float  zero = dtype == MONET_Q8 ? 128 : 8, least = dtype == MONET_Q8 ? 1 : 0;
    double error = 0, d;
    for (int k = 0; k < MONET__GROUP; ++k) {
        float v = scale != 0 ? (float)x[k] / scale + zero + 0.5f : zero;
        codes[k] = (uint8_t)(v < least ? least : v >= 2 * zero ? 2 * zero - 1 : v);
        d = (double)x[k] - (double)scale * (codes[k] - (double)zero);
        error += d * d;
    }
    return error;
}

/* Chooses the scale, in bf16. q8: the least one that reaches the largest number. q4: that of a few
   with the least squared error; if it is negative, the largest number may become -8. False if a
   number is NaN, or beyond what a code times its scale can be.                                   */
static bool monet__quantise(uint8_t *codes, uint16_t *scale, const monet_real *x,
                            monet_dtype dtype)
{
    static const float divisors[] = {-8, -7.5f, -7, -8.5f, -9, 7, 7.5f};
    uint8_t            draft[MONET__GROUP];
    float              most = 0;
    double             error, least;
    for (int k = 0; k < MONET__GROUP; ++k) {
        float size = (float)(x[k] < 0 ? -x[k] : x[k]);
        if (!(size <= 3.3e38f)) return false;
        if (size > (most < 0 ? -most : most)) most = (float)x[k];
    }
    *scale = 0;
    if (dtype == MONET_Q8) {
        uint32_t up = monet__bits((most < 0 ? -most : most) / 127) + 0xffffu;
        *scale = (uint16_t)(up >> 16);
        (void)monet__encode(codes, x, dtype, monet__from_bf16(*scale));
        return true;
    }
    least = monet__encode(codes, x, dtype, 0);
    for (size_t k = 0; k < sizeof divisors / sizeof *divisors; ++k) {
        uint16_t try_scale = monet__to_bf16(most / divisors[k]);
        error = monet__encode(draft, x, dtype, monet__from_bf16(try_scale));
        if (error >= least) continue;
        least = error, *scale = try_scale;
        memcpy(codes, draft, sizeof draft);
    }
    return true;
}

/* Writes what monet__group_read reads. False if q8 or q4 cannot hold one of the numbers. */
static bool monet__group_write(const monet_tensor *t, void *data, int64_t row, size_t group,
                               const monet_real *x)
{
    size_t   columns = (size_t)monet__cols(t) - group * MONET__GROUP, r, at;
    size_t   size = monet__code_bytes(t->dtype);
    uint8_t  codes[MONET__GROUP], *p = (uint8_t *)data;
    uint16_t scale;
    if (!monet__quantised(t->dtype)) {
        at = monet_tensor_place(t, row, (int64_t)(group * MONET__GROUP));
        if (t->layout != MONET_ROWS || columns > MONET__GROUP) columns = MONET__GROUP;
        for (size_t k = 0; k < columns; ++k)
            monet__put(data, t->dtype, at + monet__in_group(t, k), x[k]);
        return true;
    }
    if (!monet__quantise(codes, &scale, x, t->dtype)) return false;
    r = (size_t)(row % t->panel);
    p += (size_t)(row / t->panel) * monet__panel_bytes(t) + group * monet__group_bytes(t);
    p[(size_t)t->panel * size + 2 * r] = (uint8_t)scale;
    p[(size_t)t->panel * size + 2 * r + 1] = (uint8_t)(scale >> 8);
    p += r * size;
    for (size_t k = 0; k < MONET__GROUP; ++k) {
        at = monet__in_group(t, k);
        if (size == 32) p[at] = codes[k];
        else if (at < 16) p[at] = (uint8_t)((p[at] & 0xf0) | codes[k]);
        else p[at - 16] = (uint8_t)((p[at - 16] & 15) | codes[k] << 4);
    }
    return true;
}

MONET_API monet_result monet_tensor_read(const monet_tensor *tensor, int64_t first, int64_t count,
                                         float *out)
{
    monet_real group[MONET__GROUP];
    int64_t    columns;
    if (!tensor || !tensor->data || tensor->panel < 1 || !monet__panel_bytes(tensor) || !out ||
        first < 0 || count < 0 || first > monet__rows(tensor) - count)
        return MONET_ERROR_ARGUMENT;
    columns = monet__cols(tensor);
    for (int64_t r = first; r < first + count; ++r)
        for (int64_t c = 0; c < columns; ++c) {
            if (c % MONET__GROUP == 0)
                monet__group_read(tensor, tensor->data, r, (size_t)(c / MONET__GROUP), group);
            *out++ = (float)group[c % MONET__GROUP];
        }
    return MONET_OK;
}

/* ---- kernels ----------------------------------------------------------------------- >>kernels
   The leaves: all that knows dtypes and the order of sums. Everything above is written with these.
   Order of a dot product over columns k: lane l adds the products of columns 32g+2l and 32g+2l+1
   for g = 0, 1, ...; then lanes are added in a tree, l with l+8, l+4, l+2, l+1. One token or many,
   one thread or many: the same sums in the same order, so the same bits.                         */
static monet_real monet__tree(monet_real *lanes)
{
    for (int step = MONET__LANES / 2; step; step /= 2)
        for (int l = 0; l < step; ++l) lanes[l] += lanes[l + step];
    return lanes[0];
}

/* out[t][r] = row r . x[t] for n_rows rows and all tokens, of a panel or of several that follow one
   another; x is in split order, and so are the rows.                                             */
static void monet__dot_panel(monet_real *const *out, const void *panel, monet_dtype dtype,
                             int panel_rows, int n_rows, size_t groups,
                             const monet_real *const *x, int n_tokens)
{
    size_t size = (size_t)panel_rows * monet__row_bytes(dtype);
    for (int r = 0; r < n_rows; ++r)
        for (int t = 0; t < n_tokens; ++t) {
            monet_real  lanes[MONET__LANES] = {0}, row[MONET__GROUP];
            const char *w = (const char *)panel + (size_t)(r / panel_rows) * groups * size;
            for (size_t g = 0; g < groups; ++g, w += size) {
                const monet_real *in = x[t] + g * MONET__GROUP;
                monet__widen(row, w, dtype, panel_rows, r % panel_rows);
                for (int l = 0; l < MONET__LANES; ++l) lanes[l] += row[l] * in[l];
                for (int l = 0; l < MONET__LANES; ++l)
                    lanes[l] += row[l + MONET__LANES] * in[l + MONET__LANES];
            }
            out[t][r] = monet__tree(lanes);
        }
}

/* y[t][32g..32g+31] += sum over rows r of s[t][r] * panel[g][r][0..31], rows in order, for a
   MONET_SUMS panel of which panel_rows are stored (bf16: an even number) and n_rows count.       */
static void monet__sum_panel(monet_real *const *y, const void *panel, monet_dtype dtype,
                             int panel_rows, int n_rows, size_t groups,
                             const monet_real *const *s, int n_tokens)
{
    const char *w = (const char *)panel;
    monet_real  row[MONET__GROUP];
    for (size_t g = 0; g < groups; ++g, w += (size_t)panel_rows * monet__row_bytes(dtype))
        for (int r = 0; r < n_rows; ++r) {
            monet__widen_sums(row, w, dtype, panel_rows, r);
            for (int t = 0; t < n_tokens; ++t) {
                monet_real scale = s[t][r], *out = y[t] + g * MONET__GROUP;
                for (int c = 0; c < MONET__GROUP; ++c) out[c] += scale * row[c];
            }
        }
}

/* panel[g][r][0..31] += sum over tokens of s[t][r] * x[t][32g..32g+31], tokens in order: the
   gradient of a panel of native weights.                                                         */
static void monet__outer_panel(monet_real *panel, int panel_rows, int n_rows, size_t groups,
                               const monet_real *const *s, const monet_real *const *x,
                               int n_tokens)
{
    for (size_t g = 0; g < groups; ++g)
        for (int r = 0; r < n_rows; ++r) {
            monet_real *w = panel + (g * (size_t)panel_rows + (size_t)r) * MONET__GROUP;
            for (int t = 0; t < n_tokens; ++t) {
                const monet_real *in = x[t] + g * MONET__GROUP;
                monet_real        scale = s[t][r];
                for (int c = 0; c < MONET__GROUP; ++c) w[c] += scale * in[c];
            }
        }
}

/* 16 numbers of any dtype, in order. */
static void monet__load16(monet_real *out, const void *data, monet_dtype dtype, size_t index)
{
    uint16_t half[MONET__LANES];
    if (dtype == MONET_F32) {
        memcpy(out, (const char *)data + index * sizeof *out, MONET__LANES * sizeof *out);
        return;
    }
    memcpy(half, (const char *)data + index * 2, sizeof half);
    for (int l = 0; l < MONET__LANES; ++l)
        out[l] = (monet_real)(dtype == MONET_BF16 ? monet__from_bf16(half[l])
                                                  : monet__from_f16(half[l]));
}

/* y[0..n) += scale * row, in order. */
static void monet__axpy(monet_real *y, monet_real scale, const void *row, monet_dtype dtype,
                        size_t index, size_t n)
{
    monet_real values[MONET__LANES];
    for (; n >= MONET__LANES; n -= MONET__LANES, y += MONET__LANES, index += MONET__LANES) {
        monet__load16(values, row, dtype, index);
        for (int l = 0; l < MONET__LANES; ++l) y[l] += scale * values[l];
    }
    for (size_t k = 0; k < n; ++k) y[k] += scale * monet__get(row, dtype, index + k);
}

/* Dot product of n numbers: lane l adds elements 16g+l, the last group may be short. */
static monet_real monet__dot(const monet_real *a, const void *b, monet_dtype dtype, size_t index,
                             size_t n)
{
    monet_real lanes[MONET__LANES] = {0}, values[MONET__LANES];
    for (; n >= MONET__LANES; n -= MONET__LANES, a += MONET__LANES, index += MONET__LANES) {
        monet__load16(values, b, dtype, index);
        for (int l = 0; l < MONET__LANES; ++l) lanes[l] += a[l] * values[l];
    }
    for (size_t l = 0; l < n; ++l) lanes[l] += a[l] * monet__get(b, dtype, index + l);
    return monet__tree(lanes);
}

/* Sum of n numbers: lane l adds elements 16g+l, the last group may be short. */
static monet_real monet__sum(const monet_real *x, size_t n)
{
    monet_real lanes[MONET__LANES] = {0};
    for (; n >= MONET__LANES; n -= MONET__LANES, x += MONET__LANES)
        for (int l = 0; l < MONET__LANES; ++l) lanes[l] += x[l];
    for (size_t l = 0; l < n; ++l) lanes[l] += x[l];
    return monet__tree(lanes);
}

/* A vector (n) from natural to split order, padded with zeros to whole groups. */
static void monet__to_split(monet_real *out, const monet_real *x, size_t n)
{
    size_t whole = n / MONET__GROUP * MONET__GROUP;
    for (size_t k = 0; k < whole; k += MONET__GROUP)
        for (size_t l = 0; l < MONET__LANES; ++l) {
            out[k + l] = x[k + 2 * l];
            out[k + MONET__LANES + l] = x[k + 2 * l + 1];
        }
    if (whole == n) return;
    memset(out + whole, 0, MONET__GROUP * sizeof *out);
    for (size_t k = whole; k < n; ++k) out[monet__split(k)] = x[k];
}

/* ---- kernels: chosen at run time ------------------------------------------------------ >>simd
   One table of leaves for each kind of processor; each object takes one table when it is made. All
   keep the order of sums written above. FMA rounds a product and a sum once, so tables differ in
   last digits; within one table one token or many, one row or many give the same bits.           */
typedef struct monet__kernels {
    const char *name; /* "scalar", "avx2", "avx512" */
    void (*dot_panel)(monet_real *const *out, const void *panel, monet_dtype dtype, int panel_rows,
                      int n_rows, size_t groups, const monet_real *const *x, int n_tokens);
    void (*sum_panel)(monet_real *const *y, const void *panel, monet_dtype dtype, int panel_rows,
                      int n_rows, size_t groups, const monet_real *const *s, int n_tokens);
    void (*outer_panel)(monet_real *panel, int panel_rows, int n_rows, size_t groups,
                        const monet_real *const *s, const monet_real *const *x, int n_tokens);
    monet_real (*dot)(const monet_real *a, const void *b, monet_dtype dtype, size_t index,
                      size_t n);
    void (*axpy)(monet_real *y, monet_real scale, const void *row, monet_dtype dtype, size_t index,
                 size_t n);
    void (*adamw)(monet_real *w, monet_real *m, monet_real *v, monet_real *g, size_t n,
                  monet_real scale, monet_real beta1, monet_real beta2, monet_real decay,
                  monet_real rate, monet_real correction2, monet_real eps);
    monet_real (*softmax)(monet_real *x, size_t n, monet_real scale, monet_real *max);
    void (*spread)(monet_real *to, size_t stride, const uint16_t *at, const monet_real *p,
                   size_t n, const monet_real *from, size_t m);
    void (*gather)(monet_real *to, const uint16_t *at, const monet_real *p, size_t n,
                   const monet_real *from, size_t stride, size_t m);
    void (*dots)(monet_real *out, const uint16_t *at, size_t n, const monet_real *x,
                 const monet_real *from, size_t stride, size_t m);
} monet__kernels;

/* One step of AdamW; g was the gradient and becomes 0. rate = lr / (1 - beta1^t). */
static void monet__adam(monet_real *w, monet_real *m, monet_real *v, monet_real *g, size_t n,
                        monet_real scale, monet_real beta1, monet_real beta2, monet_real decay,
                        monet_real rate, monet_real correction2, monet_real eps)
{
    monet_real unbias = 1 / correction2;
    for (size_t k = 0; k < n; ++k) {
        monet_real d = g[k] * scale;
        m[k] = beta1 * m[k] + (1 - beta1) * d;
        v[k] = beta2 * v[k] + (1 - beta2) * d * d;
        w[k] = w[k] * decay - rate * m[k] / (monet__sqrt(v[k] * unbias) + eps);
        g[k] = 0;
    }
}

/* x = e^(scale*x - max), max the largest of scale*x. Returns the sum that x is to be divided by. */
static monet_real monet__softmax(monet_real *x, size_t n, monet_real scale, monet_real *max)
{
    monet_real most = x[0] * scale;
    for (size_t k = 0; k < n; ++k) {
        x[k] *= scale;
        if (x[k] > most) most = x[k];
    }
    for (size_t k = 0; k < n; ++k) x[k] = monet__exp(x[k] - most);
    *max = most;
    return monet__sum(x, n);
}

/* A row of P, as a list of n entries p at columns `at`, times rows of m numbers:
   spread: to[at] += p * from          gather: to += p * from[at]          dots: out += x . from[at]
*/
static void monet__spread(monet_real *to, size_t stride, const uint16_t *at, const monet_real *p,
                          size_t n, const monet_real *from, size_t m)
{
    for (size_t k = 0; k < n; ++k)
        for (size_t q = 0; q < m; ++q) to[at[k] * stride + q] += p[k] * from[q];
}

static void monet__gather(monet_real *to, const uint16_t *at, const monet_real *p, size_t n,
                          const monet_real *from, size_t stride, size_t m)
{
    for (size_t k = 0; k < n; ++k)
        for (size_t q = 0; q < m; ++q) to[q] += p[k] * from[at[k] * stride + q];
}

static void monet__dots(monet_real *out, const uint16_t *at, size_t n, const monet_real *x,
                        const monet_real *from, size_t stride, size_t m)
{
    for (size_t k = 0; k < n; ++k)
        for (size_t q = 0; q < m; ++q) out[k] += x[q] * from[at[k] * stride + q];
}

static const monet__kernels monet__scalar = {
    "scalar", monet__dot_panel, monet__sum_panel, monet__outer_panel, monet__dot, monet__axpy,
    monet__adam, monet__softmax, monet__spread, monet__gather, monet__dots};

#if !defined(MONET_NO_SIMD) && (defined(__GNUC__) || defined(__clang__)) &&                        \
    (defined(__x86_64__) || defined(__aarch64__) || defined(__wasm_simd128__))
#define MONET__SIMD 1
#ifdef MONET_SELF
#define MONET__SELF MONET_SELF
#elif defined(__has_include)
#if __has_include("monet.h")
#define MONET__SELF "monet.h"
#endif
#endif
#ifndef MONET__SELF
#define MONET__SELF __FILE__
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#else
#include <wasm_simd128.h>
#endif

#define MONET__JOIN(name, set) monet__##name##_##set
#define MONET__NAME(name, set) MONET__JOIN(name, set)
#define MONET__TEXT(set) #set
#define MONET__LITERAL(set) MONET__TEXT(set)
#define MONET__V(name) MONET__NAME(name, MONET__VEC)
#define MONET__INLINE static inline __attribute__((always_inline)) MONET__TARGET
#define MONET__DTYPES(X) X(MONET_F32) X(MONET_F16) X(MONET_BF16) X(MONET_Q8) X(MONET_Q4)
/* Before each loop over an array of vectors: only if all such loops vanish is it kept in registers.
   gcc also reads from memory at each use what is used twice, unless told to KEEP it; and keeps
   what it had better read again, unless told that the pointer is NEW.                            */
#ifdef __clang__
#define MONET__UNROLL _Pragma("clang loop unroll(full)")
#define MONET__KEEP(v) (void)0
#define MONET__NEW(p) (void)0
#else
#define MONET__UNROLL _Pragma("GCC unroll 32")
#define MONET__NEW(p) __asm__("" : "+r"(p))
#ifdef __x86_64__
#define MONET__KEEP(v) __asm__("" : "+x"(v))
#else
#define MONET__KEEP(v) __asm__("" : "+w"(v))
#endif
#endif

/* Sums of V rows and outer products are one thing, a blend: to each target, vectors are added in
   order, each times a number. Targets are the y of tokens and vectors rows of V; or (outer) targets
   are rows of a gradient and vectors the x of tokens.                                            */
typedef struct monet__blend {
    monet_real *const       *y; /* sum: y[target] + 32 g, w + g w_step, s[target][vector]; */
    const char              *w;
    size_t                   w_step, scales; /* in a group, scales of q8 and q4 begin there */
    monet_real              *panel; /* outer: panel + g step + 32 target, x[vector] + 32 g, */
    size_t                   step;  /* s[vector][target]                                    */
    const monet_real *const *x;
    const monet_real *const *s;
    int                      count; /* vectors */
} monet__blend;
#endif
#define MONET__MAIN
#endif /* MONET_IMPLEMENTATION_ONCE */

/* ---- kernels: one body for all instruction sets -------------------------------------------------
   This file includes itself once for each set; only this part is compiled then. MONET__V(name) is
   the name of a thing of that set. It brings MONET__VEC, its name; MONET__TARGET, an attribute;
   MONET__PARTS, vectors that 16 lanes take; the sizes of tiles; and the primitives
     vec, ints, set1, fma  floats, on which + - * / work as well; a * b + c
     bytes, from_f16       as many lanes as `vec` has, from as many bytes or f16
     trees                 out[t][at + r], r < rows, = the tree of each of R x T sums
   and only where MONET__PARTS > 1
     tree, sqrt, halves    the lanes of one vector added up; square roots; from 16-bit numbers
     load_n, store_n       the first n lanes only; loaded, the others are as given                */
#ifdef MONET__VEC
#define MONET__WIDTH (16 / MONET__PARTS)
typedef float MONET__V(loose)
    __attribute__((vector_size(64 / MONET__PARTS), aligned(1), may_alias));

MONET__INLINE MONET__V(vec) MONET__V(load)(const void *p)
{
    return (MONET__V(vec))*(const MONET__V(loose) *)p;
}

MONET__INLINE void MONET__V(store)(void *p, MONET__V(vec) v)
{
    *(MONET__V(loose) *)p = (MONET__V(loose))v;
}

/* The weights of one part of one half of a row of a group, see >>tensors. */
MONET__INLINE MONET__V(vec) MONET__V(weights)(const char *w, const char *scale, monet_dtype dtype,
                                              int half, int part)
{
    MONET__V(ints) bits;
    float          by, zero = dtype == MONET_Q8 ? 128 : 8;
    part *= MONET__WIDTH;
    if (dtype == MONET_F32) return MONET__V(load)(w + 64 * half + 4 * part);
    if (dtype == MONET_F16) return MONET__V(from_f16)(w + 32 * half + 2 * part);
    if (dtype == MONET_BF16) {
        bits = (MONET__V(ints))MONET__V(load)(w + 4 * part);
        return (MONET__V(vec))(half ? bits & 0xffff0000u : bits << 16);
    }
    by = monet__from_bf16(monet__u16((const uint8_t *)scale));
    if (dtype == MONET_Q8) bits = MONET__V(bytes)(w + 16 * half + part);
    else bits = (MONET__V(bytes)(w + part) >> (half ? 4u : 0u)) & 15u;
    bits |= 0x4b000000u; /* 2^23 + code */
    return ((MONET__V(vec))bits - MONET__V(set1)(8388608 + zero)) * MONET__V(set1)(by);
}

/* For one token weights come from memory, once: asks for `size` bytes that come later, up to `end`.
   Each eighth of 1 KB at another distance: memory is read faster at several places.              */
MONET__INLINE void MONET__V(fetch)(const char *w, const char *end, size_t size, size_t distance)
{
    for (const char *p = w; p < w + size; p += 64) {
        size_t ahead = ((uintptr_t)p / 128 % 8 + 1) * distance;
        if ((size_t)(end - p) > ahead) __builtin_prefetch(p + ahead, 0, 2);
    }
}

#if MONET__PARTS > 1
MONET__INLINE float MONET__V(sum16)(const MONET__V(vec) *part)
{
#if MONET__PARTS == 4
    return MONET__V(tree)((part[0] + part[2]) + (part[1] + part[3]));
#else
    return MONET__V(tree)(part[0] + part[1]);
#endif
}

MONET__INLINE void MONET__V(trees)(monet_real *const *out, int at, const MONET__V(vec) *sum,
                                   int rows, int R, int T)
{
    MONET__UNROLL for (int k = 0; k < R * T; ++k)
        if (k % R < rows)
            out[k / R][at + k % R] = (monet_real)MONET__V(sum16)(sum + MONET__PARTS * k);
}
#endif

/* R rows, of which `rows` count, times T tokens; scales, if any, begin at w + scales. Weights are
   fetched up to `until`, if it is not NULL.                                                      */
MONET__INLINE void MONET__V(dot_tile)(monet_real *const *out, int at, const char *w, size_t scales,
                                      const char *until, monet_dtype dtype, size_t stride,
                                      int rows, size_t groups, const monet_real *const *x, int R,
                                      int T)
{
    const char    *end = w + groups * stride;
    size_t         row[16], scale[16], distance = until > end ? MONET__FAR : MONET__NEAR;
    MONET__V(vec)  sum[MONET__SUMS], v[4], f;
    MONET__UNROLL for (int r = 0; r < R; ++r) {
        row[r] = R > 4 || r < rows ? (size_t)r * monet__code_bytes(dtype) : 0;
        scale[r] = R > 4 || r < rows ? scales + (size_t)r * 2 : scales;
    }
    MONET__UNROLL for (int k = 0; k < MONET__SUMS; ++k) sum[k] = MONET__V(set1)(0);
    for (size_t column = 0; w < end; w += stride, column += MONET__GROUP) {
        if (T == 1 && until) MONET__V(fetch)(w, until, stride, distance);
        MONET__UNROLL for (int part = 0; part < 2 * MONET__PARTS; ++part) { /* of both halves */
            const int half = part / MONET__PARTS, k = part % MONET__PARTS;
            if (T > 1)
                MONET__UNROLL for (int r = 0; r < R; ++r)
                    v[r] = MONET__V(weights)(w + row[r], w + scale[r], dtype, half, k);
            MONET__UNROLL for (int t = 0; t < T; ++t) {
                f = MONET__V(load)(x[t] + column + MONET__WIDTH * part);
                MONET__KEEP(f);
                MONET__UNROLL for (int r = 0; r < R; ++r)
                    sum[(t * R + r) * MONET__PARTS + k] = MONET__V(fma)(
                        T > 1 ? v[r] : MONET__V(weights)(w + row[r], w + scale[r], dtype, half, k),
                        f, sum[(t * R + r) * MONET__PARTS + k]);
            }
        }
    }
    MONET__V(trees)(out, at, sum, rows, R, T);
}

MONET__INLINE void MONET__V(dot_any)(monet_real *const *out, const char *w, monet_dtype dtype,
                                     int panel_rows, int n_rows, size_t groups, int first,
                                     const char *end, const monet_real *const *x, int n)
{
    const size_t size = monet__code_bytes(dtype);
    const size_t stride = (size_t)panel_rows * monet__row_bytes(dtype);
#define MONET__TILE(R, T)                                                                          \
    MONET__V(dot_tile)(out, first + r, w + (size_t)r * size, scales, r ? NULL : end, dtype,        \
                       stride, left < R ? left : R, groups, x, R, T)
    for (int T; n > 0; n -= T, out += T, x += T) {
        T = n < MONET__TILE_TOKENS ? n : MONET__TILE_TOKENS; /* one alone costs as much as two: */
        if (n == MONET__TILE_TOKENS + 1) --T;
        for (int r = 0, R; r < n_rows; r += R) {
            int    left = n_rows - r;
            size_t scales = (size_t)(panel_rows - r) * size + (size_t)r * 2;
            R = MONET__TILE_ROWS;
            if (T == 1 && MONET__TILE_ALONE >= 16 && left >= 16) { R = 16; MONET__TILE(16, 1); }
            else if (T == 1 && MONET__TILE_ALONE >= 8 && left >= 8) { R = 8; MONET__TILE(8, 1); }
            else if (T == 1 && left >= 4) { R = 4; MONET__TILE(4, 1); }
            else if (T == 1) MONET__TILE(MONET__TILE_ROWS, 1);
            else if (T == 2) MONET__TILE(MONET__TILE_ROWS, 2);
            else if (T == 3) MONET__TILE(MONET__TILE_ROWS, 3);
#if MONET__TILE_TOKENS > 3
            else if (T == 4) MONET__TILE(MONET__TILE_ROWS, 4);
            else if (T == 5) MONET__TILE(MONET__TILE_ROWS, 5);
            else MONET__TILE(MONET__TILE_ROWS, 6);
#endif
        }
    }
#undef MONET__TILE
}

static MONET__TARGET void MONET__V(dot_panel)(monet_real *const *out, const void *panel,
                                              monet_dtype dtype, int panel_rows, int n_rows,
                                              size_t groups, const monet_real *const *x, int n)
{
    const char *w = (const char *)panel;
    size_t      size = (size_t)panel_rows * monet__row_bytes(dtype) * groups;
    const char *end = w + (size_t)((n_rows + panel_rows - 1) / panel_rows) * size;
    for (int first = 0; first < n_rows; first += panel_rows, w += size) {
        int rows = n_rows - first < panel_rows ? n_rows - first : panel_rows;
        switch (dtype) {
#define MONET__CASE(d)                                                                             \
        case d: MONET__V(dot_any)(out, w, d, panel_rows, rows, groups, first, end, x, n); break;
            MONET__DTYPES(MONET__CASE)
#undef MONET__CASE
        }
    }
}

/* Where the numbers of a target begin, from column c of group g on. */
MONET__INLINE monet_real *MONET__V(at)(const monet__blend *blend, bool outer, int target, size_t g,
                                       int c)
{
    if (!outer) return blend->y[target] + g * MONET__GROUP + c;
    return blend->panel + (g + (size_t)c / MONET__GROUP) * blend->step + target * MONET__GROUP +
           c % MONET__GROUP;
}

/* N vectors, from half `side` of group g on, of T targets. bf16 keeps rows of V in pairs. */
MONET__INLINE void MONET__V(blend_tile)(const monet__blend *blend, monet_dtype dtype, bool outer,
                                        size_t g, int side, int target, int T, int N)
{
    const int     pair = dtype == MONET_BF16 ? 2 : 1, column = side * MONET__LANES;
    MONET__V(vec) sum[MONET__SUMS], v[4];
    MONET__UNROLL for (int k = 0; k < N * T; ++k)
        sum[k] = MONET__V(load)(MONET__V(at)(blend, outer, target + k / N, g,
                                             column + k % N * MONET__WIDTH));
    for (int i = 0; i < blend->count; i += pair)
        MONET__UNROLL for (int odd = 0; odd < pair; ++odd) {
            const char *row = outer ? NULL : blend->w + g * blend->w_step +
                                             (size_t)i * monet__code_bytes(dtype);
            const char *scale = outer ? NULL : blend->w + g * blend->w_step + blend->scales + 2 * i;
            if (odd && i + odd == blend->count) break;
            if (odd) MONET__NEW(row);
            MONET__UNROLL for (int k = 0; k < N; ++k) {
                const int   c = k * MONET__WIDTH, half = c / MONET__LANES % 2 + side;
                const int   part = c % MONET__LANES / MONET__WIDTH;
                size_t      next = c < MONET__GROUP ? 0 : blend->w_step;
                v[k] = outer ? MONET__V(load)(blend->x[i] + g * MONET__GROUP + column + c)
                     : pair == 2 ? MONET__V(weights)(row + next + 64 * half, NULL, dtype, odd, part)
                     : MONET__V(weights)(row + next, scale + next, dtype, half, part);
            }
            MONET__UNROLL for (int t = 0; t < T; ++t) {
                MONET__V(vec) s = MONET__V(set1)((float)(outer ? blend->s[i][target + t]
                                                               : blend->s[target + t][i + odd]));
                MONET__UNROLL for (int k = 0; k < N; ++k)
                    sum[t * N + k] = MONET__V(fma)(v[k], s, sum[t * N + k]);
            }
        }
    MONET__UNROLL for (int k = 0; k < N * T; ++k)
        MONET__V(store)(MONET__V(at)(blend, outer, target + k / N, g,
                                     column + k % N * MONET__WIDTH), sum[k]);
}

/* Half a group at a time, or two groups if a half is one vector. */
MONET__INLINE void MONET__V(blend_all)(const monet__blend *blend, monet_dtype dtype, bool outer,
                                       size_t groups, int n)
{
    const size_t step = MONET__PARTS == 1 ? 4 : 1, half_groups = 2 * groups;
    for (size_t h = 0; h < half_groups; h += step) {
        size_t g = h / 2;
        int    side = MONET__PARTS == 1 ? 0 : (int)(h % 2);
        bool   all = h + step <= half_groups;
        if (n == 1 && !outer && h % 2 == 0)
            MONET__V(fetch)(blend->w + g * blend->w_step, blend->w + groups * blend->w_step,
                            (step + 1) / 2 * blend->w_step, MONET__NEAR);
#define MONET__TILE(T)                                                                             \
    if (MONET__PARTS > 1) MONET__V(blend_tile)(blend, dtype, outer, g, side, t, T, MONET__PARTS); \
    else if (all) MONET__V(blend_tile)(blend, dtype, outer, g, side, t, T, 4);                     \
    else MONET__V(blend_tile)(blend, dtype, outer, g, side, t, T, 2)
        for (int t = 0, T; t < n; t += T) {
            T = n - t >= 6 ? 6 : n - t >= 4 ? 4 : n - t >= 2 ? 2 : 1;
            if (T > MONET__TILE_TARGETS) T = MONET__TILE_TARGETS;
            if (T == 1) { MONET__TILE(1); }
            else if (T == 2) { MONET__TILE(2); }
#if MONET__TILE_TARGETS > 2
            else if (T == 4) { MONET__TILE(4); }
            else { MONET__TILE(6); }
#endif
        }
#undef MONET__TILE
    }
}

/* A function for each dtype: gcc has registers for one at a time. */
#define MONET__SUM(d)                                                                              \
    static MONET__TARGET __attribute__((noinline)) void MONET__V(sum_##d)(                         \
        const monet__blend *blend, size_t groups, int n)                                           \
    {                                                                                              \
        const monet__blend own = *blend;                                                           \
        MONET__V(blend_all)(&own, d, false, groups, n);                                            \
    }
MONET__DTYPES(MONET__SUM)
#undef MONET__SUM

static MONET__TARGET void MONET__V(sum_panel)(monet_real *const *y, const void *panel,
                                              monet_dtype dtype, int panel_rows, int n_rows,
                                              size_t groups, const monet_real *const *s, int n)
{
    size_t       rows = (size_t)panel_rows;
    monet__blend blend = {y, (const char *)panel, rows * monet__row_bytes(dtype),
                          rows * monet__code_bytes(dtype), NULL, 0, NULL, s, n_rows};
    switch (dtype) {
#define MONET__CASE(d) case d: MONET__V(sum_##d)(&blend, groups, n); break;
        MONET__DTYPES(MONET__CASE)
#undef MONET__CASE
    }
}

static MONET__TARGET void MONET__V(outer_panel)(monet_real *panel, int panel_rows, int n_rows,
                                                size_t groups, const monet_real *const *s,
                                                const monet_real *const *x, int n)
{
    monet__blend blend = {NULL, NULL, 0, 0, panel, (size_t)panel_rows * MONET__GROUP, x, s, n};
    MONET__V(blend_all)(&blend, MONET_F32, true, groups, n_rows);
}

#if MONET__PARTS > 1 /* what follows is bound by memory: longer vectors take those of AVX2 */
/* The first n lanes from numbers of any dtype, zeros after them. */
MONET__INLINE MONET__V(vec) MONET__V(any_n)(const void *data, monet_dtype dtype, size_t index,
                                            size_t n)
{
    const char *p = (const char *)data + index * (dtype == MONET_F32 ? 4 : 2);
    uint16_t    few[MONET__WIDTH] = {0};
    if (dtype == MONET_F32) return MONET__V(load_n)(p, n, MONET__V(set1)(0));
    if (n < MONET__WIDTH) memcpy(few, p, 2 * n), p = (const char *)few;
    if (dtype == MONET_F16) return MONET__V(from_f16)(p);
    return (MONET__V(vec))(MONET__V(halves)(p) << 16);
}

static MONET__TARGET monet_real MONET__V(dot)(const monet_real *a, const void *b, monet_dtype dtype,
                                              size_t index, size_t n)
{
    MONET__V(vec) zero = MONET__V(set1)(0), sum[MONET__PARTS];
    MONET__UNROLL for (int k = 0; k < MONET__PARTS; ++k) sum[k] = zero;
    for (size_t k = 0; k < n; k += MONET__LANES)
        MONET__UNROLL for (int part = 0; part < MONET__PARTS; ++part) {
            size_t at = k + (size_t)part * MONET__WIDTH;
            if (at < n)
                sum[part] = MONET__V(fma)(MONET__V(load_n)(a + at, n - at, zero),
                                          MONET__V(any_n)(b, dtype, index + at, n - at),
                                          sum[part]);
        }
    return (monet_real)MONET__V(sum16)(sum);
}

static MONET__TARGET void MONET__V(axpy)(monet_real *y, monet_real scale, const void *row,
                                         monet_dtype dtype, size_t index, size_t n)
{
    MONET__V(vec) s = MONET__V(set1)((float)scale);
    for (size_t k = 0; k < n; k += MONET__WIDTH) {
        MONET__V(vec) v = MONET__V(any_n)(row, dtype, index + k, n - k);
        MONET__V(store_n)(y + k, MONET__V(fma)(s, v, MONET__V(load_n)(y + k, n - k, s)), n - k);
    }
}

static MONET__TARGET void MONET__V(adamw)(monet_real *w, monet_real *m, monet_real *v,
                                          monet_real *g, size_t n, monet_real scale,
                                          monet_real beta1, monet_real beta2, monet_real decay,
                                          monet_real rate, monet_real correction2, monet_real eps)
{
    MONET__V(vec) b1 = MONET__V(set1)((float)beta1), c1 = MONET__V(set1)((float)(1 - beta1));
    MONET__V(vec) b2 = MONET__V(set1)((float)beta2), c2 = MONET__V(set1)((float)(1 - beta2));
    MONET__V(vec) unbias = MONET__V(set1)((float)(1 / correction2)), zero = MONET__V(set1)(0);
    MONET__V(vec) by = MONET__V(set1)((float)scale), e = MONET__V(set1)((float)eps);
    MONET__V(vec) keep = MONET__V(set1)((float)decay), go = MONET__V(set1)((float)rate);
    for (size_t k = 0; k < n; k += MONET__WIDTH) {
        size_t        left = n - k;
        MONET__V(vec) d = MONET__V(load_n)(g + k, left, zero) * by;
        MONET__V(vec) mean = MONET__V(fma)(c1, d, b1 * MONET__V(load_n)(m + k, left, zero));
        MONET__V(vec) square = MONET__V(fma)(c2 * d, d, b2 * MONET__V(load_n)(v + k, left, zero));
        MONET__V(vec) step = go * mean / (MONET__V(sqrt)(square * unbias) + e);
        MONET__V(store_n)(w + k, keep * MONET__V(load_n)(w + k, left, zero) - step, left);
        MONET__V(store_n)(m + k, mean, left);
        MONET__V(store_n)(v + k, square, left);
        MONET__V(store_n)(g + k, zero, left);
    }
}

/* Lane by lane: a <= b ? yes : no; `no` if either is NaN. */
MONET__INLINE MONET__V(vec) MONET__V(choose)(MONET__V(vec) a, MONET__V(vec) b, MONET__V(vec) yes,
                                             MONET__V(vec) no)
{
    MONET__V(ints) mask = (MONET__V(ints))(a <= b);
    return (MONET__V(vec))((mask & (MONET__V(ints))yes) | (~mask & (MONET__V(ints))no));
}

/* monet__exp, several at a time; 1.5 * 2^23 added brings the integer part to the lowest bits. */
MONET__INLINE MONET__V(vec) MONET__V(exp)(MONET__V(vec) v)
{
    MONET__V(vec)  one = MONET__V(set1)(1), magic = MONET__V(set1)(12582912), r, p;
    MONET__V(vec)  whole = MONET__V(fma)(v, MONET__V(set1)(1.44269504f), magic), e = whole - magic;
    MONET__V(ints) power = ((MONET__V(ints))whole + 127u) << 23;
    r = MONET__V(fma)(e, MONET__V(set1)(-0.693359375f), v);
    r = MONET__V(fma)(e, MONET__V(set1)(2.12194440e-4f), r);
    p = MONET__V(fma)(r, MONET__V(set1)(1.0f / 5040), MONET__V(set1)(1.0f / 720));
    p = MONET__V(fma)(r, p, MONET__V(set1)(1.0f / 120));
    p = MONET__V(fma)(r, p, MONET__V(set1)(1.0f / 24));
    p = MONET__V(fma)(r, p, MONET__V(set1)(1.0f / 6));
    p = MONET__V(fma)(r, p, MONET__V(set1)(0.5f));
    p = MONET__V(fma)(r, MONET__V(fma)(r, p, one), one) * (MONET__V(vec))power;
    p = MONET__V(choose)(v, MONET__V(set1)(-87.3f), MONET__V(set1)(0), p);
    p = MONET__V(choose)(v, MONET__V(set1)(88.3f), p, MONET__V(set1)((float)HUGE_VAL));
    return MONET__V(choose)(v, v, p, v); /* NaN */
}

static MONET__TARGET monet_real MONET__V(softmax)(monet_real *x, size_t n, monet_real scale,
                                                  monet_real *max)
{
    MONET__V(vec) first = MONET__V(set1)((float)x[0]), by = MONET__V(set1)((float)scale);
    MONET__V(vec) least = MONET__V(set1)(-(float)HUGE_VAL), most = first * by;
    MONET__V(vec) sum[MONET__PARTS], v;
    float         lanes[MONET__WIDTH];
    for (size_t k = 0; k < n; k += MONET__WIDTH) {
        v = MONET__V(load_n)(x + k, n - k, first) * by;
        MONET__V(store_n)(x + k, v, n - k);
        most = MONET__V(choose)(most, v, v, most); /* NaN in v: most stays; the sum becomes NaN */
    }
    MONET__V(store)(lanes, most);
    for (int l = 1; l < MONET__WIDTH; ++l)
        if (lanes[l] > lanes[0]) lanes[0] = lanes[l];
    most = MONET__V(set1)(lanes[0]);
    MONET__UNROLL for (int k = 0; k < MONET__PARTS; ++k) sum[k] = MONET__V(set1)(0);
    for (size_t k = 0; k < n; k += MONET__LANES)
        MONET__UNROLL for (int part = 0; part < MONET__PARTS; ++part) {
            size_t at = k + (size_t)part * MONET__WIDTH;
            if (at >= n) break;
            v = MONET__V(exp)(MONET__V(load_n)(x + at, n - at, least) - most);
            MONET__V(store_n)(x + at, v, n - at);
            sum[part] += v;
        }
    *max = (monet_real)lanes[0];
    return (monet_real)MONET__V(sum16)(sum);
}

/* A row of P. */
static MONET__TARGET void MONET__V(spread)(monet_real *to, size_t stride, const uint16_t *at,
                                           const monet_real *p, size_t n, const monet_real *from,
                                           size_t m)
{
    for (size_t q = 0; q < m; q += MONET__WIDTH) {
        MONET__V(vec) zero = MONET__V(set1)(0), v = MONET__V(load_n)(from + q, m - q, zero);
        for (size_t k = 0; k < n; ++k) {
            monet_real *y = to + at[k] * stride + q;
            MONET__V(store_n)(y, MONET__V(fma)(MONET__V(set1)((float)p[k]), v,
                                               MONET__V(load_n)(y, m - q, zero)), m - q);
        }
    }
}

static MONET__TARGET void MONET__V(gather)(monet_real *to, const uint16_t *at, const monet_real *p,
                                           size_t n, const monet_real *from, size_t stride,
                                           size_t m)
{
    for (size_t q = 0; q < m; q += MONET__WIDTH) {
        MONET__V(vec) zero = MONET__V(set1)(0), sum = MONET__V(load_n)(to + q, m - q, zero);
        for (size_t k = 0; k < n; ++k)
            sum = MONET__V(fma)(MONET__V(set1)((float)p[k]),
                                MONET__V(load_n)(from + at[k] * stride + q, m - q, zero), sum);
        MONET__V(store_n)(to + q, sum, m - q);
    }
}

static MONET__TARGET void MONET__V(dots)(monet_real *out, const uint16_t *at, size_t n,
                                         const monet_real *x, const monet_real *from,
                                         size_t stride, size_t m)
{
    for (size_t q = 0; q < m; q += MONET__WIDTH) {
        MONET__V(vec) zero = MONET__V(set1)(0), v = MONET__V(load_n)(x + q, m - q, zero);
        for (size_t k = 0; k < n; ++k)
            out[k] += (monet_real)MONET__V(tree)(
                v * MONET__V(load_n)(from + at[k] * stride + q, m - q, zero));
    }
}
#define MONET__SLOW MONET__VEC
#else
#define MONET__SLOW avx2
#endif

static const monet__kernels MONET__V(kernels) = {
    MONET__LITERAL(MONET__VEC), MONET__V(dot_panel), MONET__V(sum_panel), MONET__V(outer_panel),
    MONET__NAME(dot, MONET__SLOW), MONET__NAME(axpy, MONET__SLOW), MONET__NAME(adamw, MONET__SLOW),
    MONET__NAME(softmax, MONET__SLOW), MONET__NAME(spread, MONET__SLOW),
    MONET__NAME(gather, MONET__SLOW), MONET__NAME(dots, MONET__SLOW)};
#undef MONET__PARTS
#undef MONET__SLOW
#undef MONET__SUMS
#undef MONET__TARGET
#undef MONET__TILE_ALONE
#undef MONET__TILE_ROWS
#undef MONET__TILE_TARGETS
#undef MONET__TILE_TOKENS
#undef MONET__VEC
#undef MONET__WIDTH
#endif /* MONET__VEC */

#ifdef MONET__MAIN
#undef MONET__MAIN
#if defined(MONET__SIMD) && defined(__x86_64__)
/* ---- kernels: AVX2 ---------------------------------------------------------------------------
   16 registers: 12 sums, the vectors they are made from, one more. Lanes are two halves of 8.    */
#define MONET__VEC avx2
#define MONET__TARGET __attribute__((target("avx2,fma,f16c")))
#define MONET__PARTS 2
#define MONET__SUMS 12
#define MONET__TILE_ROWS 2
#define MONET__TILE_TOKENS 3
#define MONET__TILE_ALONE 4
#define MONET__TILE_TARGETS 6
typedef __m256 monet__vec_avx2;
MONET__INLINE __m256 monet__set1_avx2(float x) { return _mm256_set1_ps(x); }
MONET__INLINE __m256 monet__sqrt_avx2(__m256 v) { return _mm256_sqrt_ps(v); }
MONET__INLINE __m256 monet__fma_avx2(__m256 a, __m256 b, __m256 c)
{
    return _mm256_fmadd_ps(a, b, c);
}

MONET__INLINE __m256 monet__from_f16_avx2(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

typedef uint32_t monet__ints_avx2 __attribute__((vector_size(32)));
MONET__INLINE monet__ints_avx2 monet__bytes_avx2(const void *p)
{
    return (monet__ints_avx2)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}

MONET__INLINE monet__ints_avx2 monet__halves_avx2(const void *p)
{
    return (monet__ints_avx2)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
}

MONET__INLINE float monet__tree_avx2(__m256 sum)
{
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
}

/* The first n lanes. 4 often: rows of P. */
MONET__INLINE __m256i monet__mask_avx2(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

MONET__INLINE __m256 monet__load_n_avx2(const void *p, size_t n, __m256 rest)
{
    __m256i mask;
    if (n >= 8) return _mm256_loadu_ps((const float *)p);
    if (n == 4) return _mm256_insertf128_ps(rest, _mm_loadu_ps((const float *)p), 0);
    mask = monet__mask_avx2(n);
    return _mm256_blendv_ps(rest, _mm256_maskload_ps((const float *)p, mask),
                            _mm256_castsi256_ps(mask));
}

MONET__INLINE void monet__store_n_avx2(void *p, __m256 v, size_t n)
{
    if (n >= 8) _mm256_storeu_ps((float *)p, v);
    else if (n == 4) _mm_storeu_ps((float *)p, _mm256_castps256_ps128(v));
    else _mm256_maskstore_ps((float *)p, monet__mask_avx2(n), v);
}
#include MONET__SELF

/* ---- kernels: AVX-512 ------------------------------------------------------------------------
   32 registers: 24 sums, the vectors they are made from.                                         */
#define MONET__VEC avx512
#define MONET__TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define MONET__PARTS 1
#define MONET__SUMS 32
#define MONET__TILE_ROWS 4
#define MONET__TILE_TOKENS 6
#define MONET__TILE_ALONE 16
#define MONET__TILE_TARGETS 6
typedef __m512   monet__vec_avx512;
typedef uint32_t monet__ints_avx512 __attribute__((vector_size(64)));
MONET__INLINE __m512 monet__set1_avx512(float x) { return _mm512_set1_ps(x); }
MONET__INLINE __m512 monet__fma_avx512(__m512 a, __m512 b, __m512 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* All "maskz" with all lanes here are for g++ 12, which takes the plain forms for uses of
   uninitialised values.                                                                          */
MONET__INLINE __m512 monet__from_f16_avx512(const void *p)
{
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i *)p));
}

MONET__INLINE monet__ints_avx512 monet__bytes_avx512(const void *p)
{
    return (monet__ints_avx512)_mm512_maskz_cvtepu8_epi32(0xffff,
                                                          _mm_loadu_si128((const __m128i *)p));
}

/* One level of 4 trees: lanes of a plus other lanes of a, then the same of b. */
#define MONET__FOLD(shuffle, a, b, one, other)                                                     \
    (_mm512_maskz_##shuffle(0xffff, a, b, one) + _mm512_maskz_##shuffle(0xffff, a, b, other))

/* The trees of 16 sums at once; the result in order. */
MONET__INLINE __m512 monet__trees16_avx512(const __m512 *sum)
{
    __m512 v[8], u[4];
    MONET__UNROLL for (int k = 0; k < 8; ++k) { /* l + l+8 of sums 4k and 4k+4, and so on */
        int one = k / 4 * 8 + k % 4;
        v[k] = MONET__FOLD(shuffle_f32x4, sum[one], sum[one + 4], 0x44, 0xee);
    }
    MONET__UNROLL for (int k = 0; k < 4; ++k)
        u[k] = MONET__FOLD(shuffle_f32x4, v[k], v[k + 4], 0x88, 0xdd);
    u[0] = MONET__FOLD(shuffle_ps, u[0], u[1], 0x44, 0xee);
    u[2] = MONET__FOLD(shuffle_ps, u[2], u[3], 0x44, 0xee);
    return MONET__FOLD(shuffle_ps, u[0], u[2], 0x88, 0xdd);
}

MONET__INLINE void monet__trees_avx512(monet_real *const *out, int at, const __m512 *sum, int rows,
                                       int R, int T)
{
    float trees[32];
    if (R > 4) {
        _mm512_mask_storeu_ps(out[0] + at, (__mmask16)((1 << rows) - 1),
                              monet__trees16_avx512(sum));
        return;
    }
    _mm512_storeu_ps(trees, monet__trees16_avx512(sum));
    if (T > 4) _mm512_storeu_ps(trees + 16, monet__trees16_avx512(sum + 16));
    MONET__UNROLL for (int t = 0; t < T; ++t)
        _mm_mask_storeu_ps(out[t] + at, (__mmask8)((1 << rows) - 1), _mm_loadu_ps(trees + 4 * t));
}
#include MONET__SELF
#undef MONET__FOLD

/* __builtin_cpu_supports also asks whether the operating system keeps the registers. */
static bool monet__has_avx2(void)
{
    unsigned a, b, c = 0, d; /* F16C has no name in clang 14 */
    __builtin_cpu_init();
    return sizeof(monet_real) == sizeof(float) && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static bool monet__has_avx512(void)
{
    return monet__has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#elif defined(MONET__SIMD)
/* ---- kernels: NEON and WebAssembly --------------------------------------------------------------
   Vectors of 4 lanes; WebAssembly has no fused multiply-add.                                     */
#define MONET__TARGET
#define MONET__PARTS 4
#define MONET__TILE_ALONE 4
#define MONET__TILE_TOKENS 3
#ifdef __aarch64__
#define MONET__VEC neon
#define MONET__SUMS 24
#define MONET__TILE_ROWS 2
#define MONET__TILE_TARGETS 6
#else
#define MONET__VEC wasm
#define MONET__SUMS 16
#define MONET__TILE_ROWS 1
#define MONET__TILE_TARGETS 2
#endif
typedef float    MONET__V(vec) __attribute__((vector_size(16)));
typedef uint32_t MONET__V(ints) __attribute__((vector_size(16)));
MONET__INLINE MONET__V(vec) MONET__V(set1)(float x)
{
    MONET__V(vec) v = {x, x, x, x};
    return v;
}

MONET__INLINE float MONET__V(tree)(MONET__V(vec) v) { return (v[0] + v[2]) + (v[1] + v[3]); }

MONET__INLINE MONET__V(vec) MONET__V(load_n)(const void *p, size_t n, MONET__V(vec) rest)
{
    if (n >= 4) memcpy(&rest, p, 16);
    else memcpy(&rest, p, 4 * n);
    return rest;
}

MONET__INLINE void MONET__V(store_n)(void *p, MONET__V(vec) v, size_t n)
{
    if (n >= 4) memcpy(p, &v, 16);
    else memcpy(p, &v, 4 * n);
}

#ifdef __aarch64__
MONET__INLINE MONET__V(vec) monet__sqrt_neon(MONET__V(vec) v)
{
    return (MONET__V(vec))vsqrtq_f32((float32x4_t)v);
}

MONET__INLINE MONET__V(vec) monet__fma_neon(MONET__V(vec) a, MONET__V(vec) b, MONET__V(vec) c)
{
    return (MONET__V(vec))vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

MONET__INLINE MONET__V(vec) monet__from_f16_neon(const void *p)
{
    uint16x4_t half;
    memcpy(&half, p, sizeof half);
    return (MONET__V(vec))vcvt_f32_f16(vreinterpret_f16_u16(half));
}

MONET__INLINE MONET__V(ints) monet__halves_neon(const void *p)
{
    uint16x4_t half;
    memcpy(&half, p, sizeof half);
    return (MONET__V(ints))vmovl_u16(half);
}

MONET__INLINE MONET__V(ints) monet__bytes_neon(const void *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return (MONET__V(ints))vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}
#else
MONET__INLINE MONET__V(vec) monet__sqrt_wasm(MONET__V(vec) v)
{
    return (MONET__V(vec))wasm_f32x4_sqrt((v128_t)v);
}

MONET__INLINE MONET__V(vec) monet__fma_wasm(MONET__V(vec) a, MONET__V(vec) b, MONET__V(vec) c)
{
    return a * b + c;
}

MONET__INLINE MONET__V(vec) monet__from_f16_wasm(const void *p)
{
    const uint8_t *h = (const uint8_t *)p;
    MONET__V(vec)  v = {monet__from_f16(monet__u16(h)), monet__from_f16(monet__u16(h + 2)),
                        monet__from_f16(monet__u16(h + 4)), monet__from_f16(monet__u16(h + 6))};
    return v;
}

MONET__INLINE MONET__V(ints) monet__halves_wasm(const void *p)
{
    return (MONET__V(ints))wasm_u32x4_load16x4(p);
}

MONET__INLINE MONET__V(ints) monet__bytes_wasm(const void *p)
{
    v128_t four = wasm_v128_load32_zero(p);
    return (MONET__V(ints))wasm_u32x4_extend_low_u16x8(wasm_u16x8_extend_low_u8x16(four));
}
#endif
#include MONET__SELF
#endif

/* The table that a config asks for, or the best that this processor has. */
static const monet__kernels *monet__kernels_for(monet_kernels wanted)
{
#if defined(MONET__SIMD) && defined(__x86_64__)
    if (wanted != MONET_KERNELS_SCALAR && wanted != MONET_KERNELS_AVX2 && monet__has_avx512())
        return &monet__kernels_avx512;
    if (wanted != MONET_KERNELS_SCALAR && monet__has_avx2()) return &monet__kernels_avx2;
#elif defined(MONET__SIMD) && defined(__aarch64__)
    if (wanted != MONET_KERNELS_SCALAR && sizeof(monet_real) == 4) return &monet__kernels_neon;
#elif defined(MONET__SIMD)
    if (wanted != MONET_KERNELS_SCALAR && sizeof(monet_real) == 4) return &monet__kernels_wasm;
#endif
    (void)wanted;
    return &monet__scalar;
}
#undef MONET__DTYPES
#undef MONET__JOIN
#undef MONET__KEEP
#undef MONET__LITERAL
#undef MONET__NAME
#undef MONET__NEW
#undef MONET__SELF
#undef MONET__TEXT
#undef MONET__V

/* ---- kernels: fast mode ------------------------------------------------------------------ >>fast
   For many tokens, products of bf16 numbers with sums in f32; for one token and q8 or q4 weights,
   of 8-bit integers. Inputs are rounded as said here; sums are in f32, in an order that depends on
   the table and the shape, never on other tokens. Subnormal numbers may count as 0.

   Many tokens: tiles of 16 tokens x 16 rows. Activations are rows of bf16, columns in order.
   Weights are made into [column group][16 pairs of columns][16 rows][2] in scratch memory, which
   suits both AMX and the dot products of AVX512_BF16; only that step knows their dtype.          */
enum {
    MONET__TILE = 1024,   /* bytes of a tile: 16 x 16 pairs of bf16 */
    MONET__TILE_SETS = 8  /* sets of 16 rows that are made at once: all tiles stay in L2 */
};

typedef struct monet__codes { /* 32 columns of x as signed bytes: scale * code, in split order */
    int8_t  code[32];
    int32_t fix8[8], fix4[4]; /* each 4 codes x -128 (q4: of both halves, x -8): codes of weights */
    float   scale, pad[3];    /* are kept with that offset */
} monet__codes;

/* 1 to 32 tokens times 1 or 2 sets of 16 rows. */
typedef struct monet__step {
    const uint16_t *x[32]; /* behind `tokens` the last one again */
    const char     *w[2];  /* tiles of a set */
    int             tokens, sets;
    size_t          groups, x_groups; /* x has them `parts` times */
} monet__step;

typedef struct monet__fast { /* NULL: not on this processor, the f32 kernels are faster */
    const char *name;        /* "scalar", "vnni", "bf16", "amx", "none" */
    /* x (32*groups, split order) to bf16, columns in order. parts = 1: rounded; 3: lo, mid and hi
       (3, 32*groups) that together are x exactly, where it is below 3e38.                        */
    void (*round)(uint16_t *out, const monet_real *x, size_t groups, int parts);
    /* The tile of one column group of n rows; what is behind these rows does not matter. */
    void (*make)(char *tile, const char *group, monet_dtype dtype, int panel_rows, int first,
                 int n);
    void (*step)(float (*c)[512], const monet__step *step); /* c[set][16*token + row] */
    void (*begin)(void), (*end)(void);                      /* around the steps, or NULL */
    void (*quantize)(monet__codes *out, const monet_real *x, size_t groups);
    /* out[r] = row r . x for n_rows rows of q8 or q4 panels that follow one another. */
    void (*dot_int8)(monet_real *out, const void *panel, monet_dtype dtype, int panel_rows,
                     int n_rows, size_t groups, const monet__codes *x);
} monet__fast;

static size_t monet__fast_scratch(size_t groups)
{
    return MONET__TILE_SETS * MONET__TILE * groups;
}

/* All tokens with the tiles of rows first[0]..first[sets]-1. */
static void monet__dot_sets(const monet__fast *fast, monet_real *const *out, const char *made,
                            const int *first, int sets, monet__step *step,
                            const uint16_t *const *x, int n_tokens)
{
    float c[2][512];
    for (int t = 0; t < n_tokens; t += 32) {
        step->tokens = n_tokens - t < 32 ? n_tokens - t : 32;
        for (int k = 0; k < 32; ++k) step->x[k] = x[k < step->tokens ? t + k : n_tokens - 1];
        for (int s = 0; s < sets; s += 2) {
            step->sets = sets - s < 2 ? 1 : 2;
            step->w[0] = made + MONET__TILE * step->groups * (size_t)s;
            step->w[1] = step->w[0] + MONET__TILE * step->groups;
            fast->step(c, step);
            for (int k = 0; k < step->sets; ++k) {
                int at = first[s + k], rows = first[s + k + 1] - at;
                for (int i = 0; i < step->tokens; ++i) {
                    monet_real *to = out[t + i] + at;
                    if (rows == 16 && sizeof *to == 4) memcpy(to, c[k] + i * 16, 64);
                    else for (int r = 0; r < rows; ++r) to[r] = (monet_real)c[k][i * 16 + r];
                }
            }
        }
    }
}

/* out[t][r] = row r . x[t] for n_rows rows of panels that follow one another, x as rounded.
   Other weights than bf16 are rounded to it. Scratch: monet__fast_scratch, aligned to 64.        */
static void monet__fast_dot(const monet__fast *fast, monet_real *const *out, const void *panel,
                            monet_dtype dtype, int panel_rows, int n_rows, size_t groups,
                            const uint16_t *const *x, int parts, int n_tokens, void *scratch)
{
    size_t      size = (size_t)panel_rows * monet__row_bytes(dtype);
    int         first[MONET__TILE_SETS + 1], sets;
    monet__step step;
    step.groups = groups, step.x_groups = groups * (size_t)parts;
    if (fast->begin) fast->begin();
    for (int row = 0; row < n_rows; row = first[sets]) {
        char *tile = (char *)scratch;
        first[0] = row;
        for (sets = 0; sets < MONET__TILE_SETS && first[sets] < n_rows; ++sets) {
            const char *group = (const char *)panel;
            int         at = first[sets] % panel_rows, n = panel_rows - at;
            if (n > 16) n = 16;
            if (n > n_rows - first[sets]) n = n_rows - first[sets];
            group += (size_t)(first[sets] / panel_rows) * groups * size;
            for (size_t g = 0; g < groups; ++g, group += size, tile += MONET__TILE)
                fast->make(tile, group, dtype, panel_rows, at, n);
            first[sets + 1] = first[sets] + n;
        }
        monet__dot_sets(fast, out, (const char *)scratch, first, sets, &step, x, n_tokens);
    }
    if (fast->end) fast->end();
}

/* What rounding loses goes on in the next part. */
static void monet__round(uint16_t *out, const monet_real *x, size_t groups, int parts)
{
    size_t n = groups * MONET__GROUP;
    for (size_t k = 0; k < n; ++k) {
        float rest = (float)x[monet__split(k)];
        for (size_t part = (size_t)parts; part-- > 0;) {
            out[part * n + k] = monet__to_bf16(rest);
            rest -= monet__from_bf16(out[part * n + k]);
        }
    }
}

static void monet__make_scalar(char *tile, const char *group, monet_dtype dtype, int panel_rows,
                               int first, int n)
{
    monet_real row[MONET__GROUP]; /* in split order */
    for (int r = 0; r < n; ++r) {
        monet__widen(row, group, dtype, panel_rows, first + r);
        for (int k = 0; k < MONET__GROUP; ++k) {
            uint16_t h = monet__to_bf16((float)row[k]);
            memcpy(tile + k % 16 * 64 + r * 4 + k / 16 * 2, &h, 2);
        }
    }
}

static void monet__step_scalar(float (*c)[512], const monet__step *step)
{
    for (int set = 0; set < step->sets; ++set)
        for (int t = 0; t < step->tokens; ++t) {
            float sum[16] = {0};
            for (size_t pair = 0; pair < step->x_groups * 16; ++pair) {
                const uint16_t *x = step->x[t] + 2 * pair;
                uint16_t        w[32];
                memcpy(w, step->w[set] + pair % (step->groups * 16) * 64, 64);
                for (int r = 0; r < 16; ++r)
                    sum[r] += monet__from_bf16(x[0]) * monet__from_bf16(w[2 * r]) +
                              monet__from_bf16(x[1]) * monet__from_bf16(w[2 * r + 1]);
            }
            memcpy(c[set] + t * 16, sum, sizeof sum);
        }
}

/* Scale of 32 numbers by the bits of the largest: NaN if it is not finite, 0 if below 2^-100. */
static float monet__code_scale(uint32_t most)
{
    return most < 0x0d800000u ? 0 : most < 0x7f800000u ? monet__float(most) / 127 : (float)NAN;
}

/* Nearest codes, -127..127; all 0 where the scale is 0 or NaN. */
static void monet__quantize(monet__codes *out, const monet_real *x, size_t groups)
{
    for (; groups--; x += MONET__GROUP, ++out) {
        uint32_t most = 0;
        float    factor;
        for (int k = 0; k < MONET__GROUP; ++k) {
            uint32_t u = monet__bits((float)x[k]) & 0x7fffffffu;
            if (u > most) most = u;
        }
        memset(out, 0, sizeof *out);
        out->scale = monet__code_scale(most);
        if (!(out->scale > 0)) continue;
        factor = 127 / monet__float(most);
        for (int k = 0; k < MONET__GROUP; ++k) {
            int code = (int)lrintf((float)x[k] * factor);
            out->code[k] = (int8_t)code;
            out->fix8[k / 4] -= 128 * code;
            out->fix4[k / 4 % 4] -= 8 * code;
        }
    }
}

/* A row of q8 has 8 sums, of q4 4: one for each 4 bytes of codes. Each group adds the integer times
   (scale of w * scale of x), in f32; at the end a tree.                                          */
static void monet__dot_int8(monet_real *out, const void *panel, monet_dtype dtype, int panel_rows,
                            int n_rows, size_t groups, const monet__codes *x)
{
    size_t size = (size_t)panel_rows * monet__row_bytes(dtype), bytes = monet__code_bytes(dtype);
    for (int row = 0; row < n_rows; ++row) {
        size_t         r = (size_t)(row % panel_rows);
        const uint8_t *q = (const uint8_t *)panel + (size_t)(row / panel_rows) * groups * size;
        float          sum[8] = {0};
        for (size_t g = 0; g < groups; ++g, q += size) {
            uint16_t scale = monet__u16(q + (size_t)panel_rows * bytes + 2 * r);
            for (size_t l = 0; l < bytes / 4; ++l) {
                int32_t dot = dtype == MONET_Q8 ? x[g].fix8[l] : x[g].fix4[l];
                for (size_t k = 4 * l; k < 4 * l + 4; ++k) {
                    int w = q[r * bytes + k];
                    dot += dtype == MONET_Q8 ? w * x[g].code[k] : (w & 15) * x[g].code[k] +
                                                                  (w >> 4) * x[g].code[k + 16];
                }
                sum[l] += (float)dot * (monet__from_bf16(scale) * x[g].scale);
            }
        }
        for (size_t step = bytes / 8; step; step /= 2)
            for (size_t l = 0; l < step; ++l) sum[l] += sum[l + step];
        out[row] = (monet_real)sum[0];
    }
}

static const monet__fast monet__fast_none = {"none", NULL, NULL, NULL, NULL, NULL, NULL, NULL};
static const monet__fast monet__fast_scalar = {
    "scalar", monet__round, monet__make_scalar, monet__step_scalar, NULL, NULL, monet__quantize,
    monet__dot_int8};

#if defined(MONET__SIMD) && defined(__x86_64__) &&                                                 \
    (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define MONET__FAST_SIMD 1
#define MONET__ISA "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"
#define MONET__TARGET __attribute__((target(MONET__ISA)))
#define MONET__BF16 __attribute__((target(MONET__ISA ",avx512bf16")))
#define MONET__AMX __attribute__((target(MONET__ISA ",amx-tile,amx-bf16")))
#define MONET__LOAD_128(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define MONET__LOAD_256(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))

/* Even and odd columns, rounded to bf16, as 16 pairs. */
MONET__INLINE __m512i monet__pairs_512(__m512 even, __m512 odd)
{
    __m512  x[2];
    __m512i u[2];
    x[0] = even, x[1] = odd;
    MONET__UNROLL for (int k = 0; k < 2; ++k) {
        __m512i bits = _mm512_castps_si512(x[k]), up = _mm512_srli_epi32(bits, 16);
        up = _mm512_add_epi32(_mm512_and_si512(up, _mm512_set1_epi32(1)),
                              _mm512_set1_epi32(0x7fff));
        u[k] = _mm512_mask_or_epi32(_mm512_add_epi32(bits, up),
                                    _mm512_cmp_ps_mask(x[k], x[k], _CMP_UNORD_Q), bits,
                                    _mm512_set1_epi32(64 << 16)); /* NaN stays NaN */
    }
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(u[0], 16), u[1]);
}

static MONET__TARGET void monet__round_512(uint16_t *out, const monet_real *x, size_t groups,
                                           int parts)
{
    for (size_t g = 0; g < groups; ++g) {
        __m512 even = _mm512_loadu_ps((const void *)(x + g * 32));
        __m512 odd = _mm512_loadu_ps((const void *)(x + g * 32 + 16));
        for (size_t part = (size_t)parts; part-- > 0;) {
            __m512i u = monet__pairs_512(even, odd);
            _mm512_storeu_si512(out + (part * groups + g) * 32, u);
            even = _mm512_sub_ps(even, _mm512_castsi512_ps(_mm512_slli_epi32(u, 16)));
            u = _mm512_and_si512(u, _mm512_set1_epi32(-65536));
            odd = _mm512_sub_ps(odd, _mm512_castsi512_ps(u));
        }
    }
}

/* Row r of a group that is not bf16, as pairs. */
MONET__INLINE __m512i monet__row_512(const char *group, monet_dtype dtype, size_t rows, size_t r)
{
    size_t   bytes = monet__code_bytes(dtype);
    __m128i  nibble = _mm_set1_epi8(15), low, high;
    __m512i  offset = _mm512_set1_epi32(dtype == MONET_Q8 ? 128 : 8);
    uint16_t h;
    __m512   scale;
    if (dtype == MONET_F32)
        return monet__pairs_512(_mm512_loadu_ps(group + r * 128),
                                _mm512_loadu_ps(group + r * 128 + 64));
    if (dtype == MONET_F16)
        return monet__pairs_512(_mm512_cvtph_ps(MONET__LOAD_256(group + r * 64)),
                                _mm512_cvtph_ps(MONET__LOAD_256(group + r * 64 + 32)));
    memcpy(&h, group + rows * bytes + 2 * r, 2);
    scale = _mm512_set1_ps(monet__from_bf16(h));
    low = MONET__LOAD_128(group + r * bytes);
    high = dtype == MONET_Q8 ? MONET__LOAD_128(group + r * 32 + 16) : _mm_srli_epi16(low, 4);
    if (dtype == MONET_Q4) low = _mm_and_si128(low, nibble), high = _mm_and_si128(high, nibble);
#define MONET__NUMBERS(q)                                                                          \
    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(q), offset)), scale)
    return monet__pairs_512(MONET__NUMBERS(low), MONET__NUMBERS(high));
#undef MONET__NUMBERS
}

/* Turns 16 rows of pairs into a tile, 4 x 4 pairs at a time in each quarter of a register. */
MONET__INLINE void monet__turn_512(char *tile, const char *rows, int n)
{
    const char *p[16];
    MONET__UNROLL for (int r = 0; r < 16; ++r) p[r] = rows + (r < n ? r : n - 1) * 64;
    MONET__UNROLL for (int r = 0; r < 16; ++r) _mm_prefetch(p[r] + 8192, _MM_HINT_T0);
    for (int q = 0; q < 64; q += 16) {
        __m512i v[4], u[4];
        MONET__UNROLL for (int i = 0; i < 4; ++i) {
            v[i] = _mm512_castsi128_si512(MONET__LOAD_128(p[i] + q));
            v[i] = _mm512_inserti32x4(v[i], MONET__LOAD_128(p[4 + i] + q), 1);
            v[i] = _mm512_inserti32x4(v[i], MONET__LOAD_128(p[8 + i] + q), 2);
            v[i] = _mm512_inserti32x4(v[i], MONET__LOAD_128(p[12 + i] + q), 3);
        }
        u[0] = _mm512_unpacklo_epi32(v[0], v[1]), u[1] = _mm512_unpackhi_epi32(v[0], v[1]);
        u[2] = _mm512_unpacklo_epi32(v[2], v[3]), u[3] = _mm512_unpackhi_epi32(v[2], v[3]);
        MONET__UNROLL for (int i = 0; i < 2; ++i, tile += 128) {
            _mm512_storeu_si512(tile, _mm512_unpacklo_epi64(u[i], u[i + 2]));
            _mm512_storeu_si512(tile + 64, _mm512_unpackhi_epi64(u[i], u[i + 2]));
        }
    }
}

static MONET__TARGET void monet__make_512(char *tile, const char *group, monet_dtype dtype,
                                          int panel_rows, int first, int n)
{
    char rows[MONET__TILE];
    if (dtype == MONET_BF16) {
        monet__turn_512(tile, group + first * 64, n);
        return;
    }
    for (int r = 0; r < n; ++r)
        _mm512_storeu_si512(rows + r * 64, monet__row_512(group, dtype, (size_t)panel_rows,
                                                          (size_t)(first + r)));
    monet__turn_512(tile, rows, n);
}

/* 32 columns of 16 tokens side by side. */
MONET__INLINE void monet__gather_512(char *tile, const uint16_t *const *x, size_t g)
{
    MONET__UNROLL for (int t = 0; t < 16; ++t)
        _mm512_storeu_si512(tile + t * 64, _mm512_loadu_si512(x[t] + g * MONET__GROUP));
}

/* A vector of 16 rows times a pair of columns of each of 16 tokens. */
static MONET__BF16 void monet__step_bf16(float (*c)[512], const monet__step *step)
{
    for (int k = 0; k < 4; ++k) {
        int    first = k / 2 * 16, set = k % 2;
        char   x[MONET__TILE];
        __m512 sum[16];
        if (set >= step->sets || first >= step->tokens) continue;
        MONET__UNROLL for (int t = 0; t < 16; ++t) sum[t] = _mm512_setzero_ps();
        for (size_t g = 0; g < step->x_groups; ++g) {
            const char *w = step->w[set] + g % step->groups * MONET__TILE;
            monet__gather_512(x, step->x + first, g);
            for (int pair = 0; pair < MONET__TILE / 16; pair += 4) {
                __m512bh rows = (__m512bh)_mm512_loadu_si512(w + pair * 16);
                MONET__UNROLL for (int t = 0; t < 16; ++t) {
                    int both;
                    memcpy(&both, x + t * 64 + pair, 4);
                    sum[t] = _mm512_dpbf16_ps(sum[t], rows, (__m512bh)_mm512_set1_epi32(both));
                }
            }
        }
        MONET__UNROLL for (int t = 0; t < 16; ++t)
            _mm512_storeu_ps(c[set] + (first + t) * 16, sum[t]);
    }
}

/* Tiles: 0 to 3 sums, 4 and 5 tokens, 6 and 7 rows. As asm, because the functions that compilers
   have for this do not say which memory they read.                                               */
#define MONET__TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::: "memory")
#define MONET__TILE_LOAD(t, p, stride)                                                             \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"(stride) : "memory")
#define MONET__TILE_STORE(t, p)                                                                    \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"((size_t)64) : "memory")
#define MONET__TILE_DOT(c, x, w)                                                                   \
    __asm__ volatile("tdpbf16ps %%tmm" #w ", %%tmm" #x ", %%tmm" #c ::: "memory")
/* Tokens are read where they are if they lie at one distance, else side by side from a copy. */
#define MONET__TILE_TOKENS(t, first, distance)                                                     \
    if (distance) {                                                                                \
        MONET__TILE_LOAD(t, step->x[first] + g * MONET__GROUP, distance);                          \
    } else {                                                                                       \
        monet__gather_512(copy[g % 4][first / 16], step->x + first, g);                            \
        MONET__TILE_LOAD(t, copy[g % 4][first / 16], (size_t)64);                                  \
    }

/* Bytes from a token to the next, if 16 tokens lie at one distance; else 0. */
static size_t monet__distance(const uint16_t *const *x)
{
    uintptr_t distance = (uintptr_t)x[1] - (uintptr_t)x[0];
    for (int t = 2; t < 16; ++t)
        if ((uintptr_t)x[t] - (uintptr_t)x[t - 1] != distance) return 0;
    return (size_t)distance;
}

static MONET__AMX void monet__step_amx(float (*c)[512], const monet__step *step)
{
    bool   two_x = step->tokens > 16, two_w = step->sets > 1;
    size_t distance0 = monet__distance(step->x), distance1 = monet__distance(step->x + 16);
    char   copy[4][2][MONET__TILE];
    MONET__TILE_ZERO(0);
    MONET__TILE_ZERO(1);
    MONET__TILE_ZERO(2);
    MONET__TILE_ZERO(3);
    for (size_t g = 0; g < step->x_groups; ++g) {
        size_t tile = g % step->groups * MONET__TILE;
        MONET__TILE_LOAD(6, step->w[0] + tile, (size_t)64);
        MONET__TILE_TOKENS(4, 0, distance0)
        MONET__TILE_DOT(0, 4, 6);
        if (two_w) MONET__TILE_LOAD(7, step->w[1] + tile, (size_t)64);
        if (two_w) MONET__TILE_DOT(1, 4, 7);
        if (!two_x) continue;
        MONET__TILE_TOKENS(5, 16, distance1)
        MONET__TILE_DOT(2, 5, 6);
        if (two_w) MONET__TILE_DOT(3, 5, 7);
    }
    MONET__TILE_STORE(0, c[0]);
    MONET__TILE_STORE(1, c[1]);
    MONET__TILE_STORE(2, c[0] + 256);
    MONET__TILE_STORE(3, c[1] + 256);
}

static MONET__AMX void monet__begin_amx(void)
{
    static const struct { uint8_t palette[16]; uint16_t bytes[16]; uint8_t rows[16]; } config = {
        {1}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

static MONET__AMX void monet__end_amx(void) { __asm__ volatile("tilerelease" ::: "memory"); }

static MONET__TARGET void monet__quantize_512(monet__codes *out, const monet_real *x, size_t groups)
{
    __m512i plain = _mm512_set1_epi32(0x7fffffff);
    for (; groups--; x += MONET__GROUP, ++out) {
        __m512  even = _mm512_loadu_ps((const void *)x), factor;
        __m512  odd = _mm512_loadu_ps((const void *)(x + 16));
        __m512i bits = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(even), plain),
                                        _mm512_and_si512(_mm512_castps_si512(odd), plain));
        __m128i low, high, sums;
        __m256i code, four;
        float   scale = monet__code_scale(_mm512_reduce_max_epu32(bits));
        memset(out, 0, sizeof *out);
        out->scale = scale;
        if (!(scale > 0)) continue;
        factor = _mm512_set1_ps(127 / monet__float(_mm512_reduce_max_epu32(bits)));
        low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(even, factor)));
        high = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(odd, factor)));
        code = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
        four = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), code);
        sums = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
        _mm256_storeu_si256((__m256i *)(void *)out->code, code);
        _mm256_storeu_si256((__m256i *)(void *)out->fix8,
                            _mm256_mullo_epi32(four, _mm256_set1_epi32(-128)));
        _mm_storeu_si128((__m128i *)(void *)out->fix4,
                         _mm_mullo_epi32(sums, _mm_set1_epi32(-8)));
    }
}

/* n rows of a panel from r on, w its first group, in V vectors: one holds the codes of 4 rows of q4
   or of 2 of q8; the last may be short.                                                          */
MONET__INLINE void monet__int8_rows(monet_real *out, const char *w, size_t r, int n, int V, bool q4,
                                    size_t panel_rows, size_t groups, const monet__codes *x)
{
    int       per = q4 ? 4 : 2;
    size_t    bytes = q4 ? 16 : 32, size = panel_rows * (bytes + 2);
    __mmask64 all = ~(__mmask64)0, tail = all >> (64 - (size_t)(n - (V - 1) * per) * bytes);
    __m512i   lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), at[8];
    __m512i   nibble = _mm512_set1_epi8(15);
    __m512    sum[8];
    float     result[16 + 2];
    MONET__UNROLL for (int v = 0; v < V; ++v) {
        sum[v] = _mm512_setzero_ps();
        at[v] = _mm512_add_epi32(_mm512_srli_epi32(lane, q4 ? 2 : 3), _mm512_set1_epi32(v * per));
    }
    for (size_t g = 0; g < groups; ++g, w += size) {
        __m256i h = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1),
                                             w + panel_rows * bytes + 2 * r);
        __m512  scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
        __m256i code = MONET__LOAD_256(x[g].code);
        __m512i fix = q4 ? _mm512_broadcast_i32x4(MONET__LOAD_128(x[g].fix4))
                         : _mm512_broadcast_i64x4(MONET__LOAD_256(x[g].fix8));
        __m512i low = q4 ? _mm512_broadcast_i32x4(_mm256_castsi256_si128(code))
                         : _mm512_broadcast_i64x4(code);
        __m512i high = _mm512_broadcast_i32x4(_mm256_extracti128_si256(code, 1));
        scale = _mm512_mul_ps(scale, _mm512_set1_ps(x[g].scale));
        MONET__UNROLL for (int v = 0; v < V; ++v) {
            const char *p = w + r * bytes + 64 * v;
            __m512i     q = _mm512_maskz_loadu_epi8(v + 1 < V ? all : tail, p), dot;
            dot = _mm512_dpbusd_epi32(fix, q4 ? _mm512_and_si512(q, nibble) : q, low);
            q = _mm512_and_si512(_mm512_srli_epi16(q, 4), nibble);
            if (q4) dot = _mm512_dpbusd_epi32(dot, q, high);
            sum[v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                                     _mm512_permutexvar_ps(at[v], scale), sum[v]);
            _mm_prefetch(p + 8192, _MM_HINT_T0);
        }
    }
    MONET__UNROLL for (int v = 0; v < V; ++v) {
        __m512 s = sum[v];
        if (!q4) s = _mm512_add_ps(s, _mm512_shuffle_f32x4(s, s, 0xb1));
        s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4e));
        s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xb1));
        s = _mm512_maskz_compress_ps(q4 ? 0x1111 : 0x0101, s);
        _mm_storeu_ps(result + per * v, _mm512_castps512_ps128(s));
    }
    for (int k = 0; k < n; ++k) out[k] = (monet_real)result[k];
}

static MONET__TARGET void monet__dot_int8_512(monet_real *out, const void *panel, monet_dtype dtype,
                                              int panel_rows, int n_rows, size_t groups,
                                              const monet__codes *x)
{
    size_t rows = (size_t)panel_rows, size = groups * rows * monet__row_bytes(dtype);
    bool   q4 = dtype == MONET_Q4;
    for (int row = 0, n; row < n_rows; row += n, out += n) {
        const char *w = (const char *)panel + (size_t)(row / panel_rows) * size;
        size_t      r = (size_t)(row % panel_rows);
        n = panel_rows - row % panel_rows;
        if (n > n_rows - row) n = n_rows - row;
        n = n >= 16 ? 16 : n >= 8 ? 8 : n > 2 && !q4 ? 2 : n > 4 ? 4 : n;
        if (n == 16 && q4) monet__int8_rows(out, w, r, 16, 4, true, rows, groups, x);
        else if (n == 16) monet__int8_rows(out, w, r, 16, 8, false, rows, groups, x);
        else if (n == 8 && q4) monet__int8_rows(out, w, r, 8, 2, true, rows, groups, x);
        else if (n == 8) monet__int8_rows(out, w, r, 8, 4, false, rows, groups, x);
        else if (q4) monet__int8_rows(out, w, r, n, 1, true, rows, groups, x);
        else monet__int8_rows(out, w, r, n, 1, false, rows, groups, x);
    }
}

static const monet__fast monet__fast_vnni = {
    "vnni", NULL, NULL, NULL, NULL, NULL, monet__quantize_512, monet__dot_int8_512};
static const monet__fast monet__fast_bf16 = {
    "bf16", monet__round_512, monet__make_512, monet__step_bf16, NULL, NULL, monet__quantize_512,
    monet__dot_int8_512};
static const monet__fast monet__fast_amx = {
    "amx", monet__round_512, monet__make_512, monet__step_amx, monet__begin_amx, monet__end_amx,
    monet__quantize_512, monet__dot_int8_512};

/* Linux gives tiles to a process that asks for their registers (18); it may be refused. */
static bool monet__has_amx(void)
{
#ifdef __linux__
    unsigned a, b, c, d = 0;
    long     result = 158; /* arch_prctl(ARCH_REQ_XCOMP_PERM, 18) */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 22 & 5) != 5) return false;
    __asm__ volatile("syscall" : "+a"(result) : "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
    return result == 0;
#else
    return false;
#endif
}
#undef MONET__ISA
#undef MONET__TARGET
#undef MONET__BF16
#undef MONET__AMX
#undef MONET__LOAD_128
#undef MONET__LOAD_256
#undef MONET__TILE_ZERO
#undef MONET__TILE_LOAD
#undef MONET__TILE_STORE
#undef MONET__TILE_DOT
#undef MONET__TILE_TOKENS
#endif

/* The table for a config. By itself bf16 without tiles is taken from AMD only: the others need more
   time for it than for products in f32.                                                          */
static const monet__fast *monet__fast_for(monet_kernels wanted)
{
    if (wanted == MONET_KERNELS_SCALAR) return &monet__fast_scalar;
#ifdef MONET__FAST_SIMD
    if (wanted == MONET_KERNELS_AVX2 || !monet__has_avx512() ||
        !__builtin_cpu_supports("avx512vnni"))
        return &monet__fast_none;
    if (wanted == MONET_KERNELS_AVX512 || !__builtin_cpu_supports("avx512bf16"))
        return &monet__fast_vnni;
    if (wanted != MONET_KERNELS_BF16 && monet__has_amx()) return &monet__fast_amx;
    if (wanted == MONET_KERNELS_BF16 || __builtin_cpu_is("amd")) return &monet__fast_bf16;
    return &monet__fast_vnni;
#else
    return &monet__fast_none;
#endif
}
#undef MONET__FAST_SIMD
#undef MONET__INLINE
#undef MONET__SIMD
#undef MONET__UNROLL

MONET_API const char *monet_kernels_name(monet_kernels kernels)
{
    const char *fast = monet__fast_for(kernels)->name; /* "amx", "bf16": avx512 for the rest */
    return fast[0] == 'a' || fast[0] == 'b' ? fast : monet__kernels_for(kernels)->name;
}

/* ---- tokenizer ---------------------------------------------------------------------- >>tokenizer
   Byte pair encoding as SentencePiece and tokenizer.json do it. A space reads as U+2581, a text as
   characters; then, again and again, the adjacent pair of best priority (score of the merged piece,
   or rank of the merge; the leftmost of equals) becomes one symbol, until no pair is a piece. A
   character that is no piece becomes its bytes, so every byte string has an encoding.

   Plain bytes: U+2581 is written as the space it stands for, in pieces when they are loaded and in
   text while it is read, so no copy of the text is made.

   Words: no merge crosses a place where no piece has these two bytes side by side (`joins`). Cut
   there, a text falls into short words that merge on their own. A word that is a piece, and is what
   its own characters merge to (tried at load), is a token at once.

   Symbols are ids of normal pieces, -1 for a character that is none. Such a character is in no
   longer piece either: the shortest one with it could not be made by a merge, which is refused. So
   a hash table of (left id, right id) is all that merging needs, also when it goes by score.

   Easy to get wrong: control, unknown, unused and byte pieces never come out of a merge, whatever
   the text says; a new pair may be better than the one just merged; equal scores go by place; a
   character cut off by the end of the text is bytes.                                             */
enum {
    MONET__TOK_HEADER    = 32,      /* bytes of the section's header */
    MONET__TOK_MAX_PIECE = 512,     /* bytes of a piece: bounds what a made-up one can cost */
    MONET__TOK_MAX_COUNT = 1 << 24, /* pieces; merges */
    MONET__TOK_MAX_TEXT  = 1 << 30, /* bytes of all pieces; of one word to encode */
    MONET__TOK_PROBES    = 256,     /* only a made-up file needs more in a hash table: refused */
    MONET__TOK_SHORT     = 64,      /* a word of more characters needs memory */
    /* `marks`: may come out of a merge; does so; out of its own text alone; is found in the text */
    MONET__TOK_USABLE = 1, MONET__TOK_FORMED = 2, MONET__TOK_WHOLE = 4,
    MONET__TOK_USER = 8, MONET__TOK_CONTROL = 16
};

typedef struct monet__tok_name { uint32_t tag; int32_t id; } monet__tok_name;
typedef struct monet__tok_pair { int32_t left, right, result; uint32_t priority; } monet__tok_pair;

struct monet_tokenizer {
    const char *blob;           size_t blob_size;
    const uint8_t *pieces;      int32_t n_pieces;   /* records of 12 bytes, see monet__tok_piece */
    const uint8_t *merges;      int32_t n_merges;   /* 12 bytes; 0: merge by score */
    const uint8_t *eos;         int32_t n_eos;      /* 4 bytes; each ends a text */
    int32_t unk_id, bos_id, eos_id;                 /* -1 = none; eos_id is the first of eos */
    uint64_t index_size;
    int32_t prefix_space;                           /* 0 never, 1 always, 2 first */
    bool strip_space;                               /* decode drops one leading space */
    monet_host host;                                /* alloc_fn and free_fn, for long words */
    /* the indexes, made by monet__tok_build */
    monet__tok_pair *pairs;     /* hash of (left, right) -> result */
    monet__tok_name *names;     /* hash of plain bytes -> piece */
    uint32_t *text_at;          /* (n_pieces + 1) plain bytes of piece i: text + text_at[i] */
    char *text;
    uint8_t *marks;             /* (n_pieces) */
    uint32_t n_pairs, n_names;  /* places in these tables, not counting the last PROBES ones */
    int32_t byte_ids[256];      /* the piece of each byte */
    uint8_t joins[256 * 32];    /* bit (x,y): some piece has byte y right after byte x */
    uint16_t longest[256];      /* plain bytes of user and control pieces, by their first byte */
};

/* Records of the file: little-endian, at any address. */
static monet_piece monet__tok_piece(const monet_tokenizer *t, int32_t id)
{
    const uint8_t *p = t->pieces + (size_t)id * 12;
    monet_piece    piece = {t->blob + monet__u32(p), monet__u16(p + 4), monet__u16(p + 6),
                            monet__float(monet__u32(p + 8))};
    return piece;
}

static monet_piece monet__tok_plain_piece(const monet_tokenizer *t, int32_t id)
{
    monet_piece piece = monet__tok_piece(t, id);
    piece.bytes = t->text + t->text_at[id];
    piece.size = (int32_t)(t->text_at[id + 1] - t->text_at[id]);
    return piece;
}

static monet_merge monet__tok_merge(const monet_tokenizer *t, int32_t rank)
{
    const uint8_t *p = t->merges + (size_t)rank * 12;
    monet_merge    merge = {(int32_t)monet__u32(p), (int32_t)monet__u32(p + 4),
                            (int32_t)monet__u32(p + 8)};
    return merge;
}

static int32_t monet__tok_eos(const monet_tokenizer *t, int32_t k)
{
    return (int32_t)monet__u32(t->eos + (size_t)k * 4);
}

static bool monet__tok_is_id(const monet_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n_pieces;
}

/* ---- tokenizer: characters and tables -------------------------------------------------------- */
/* Bytes of the UTF-8 character that the n > 0 bytes at s begin with: more than n if it is cut off,
   0 if there is no such character (overlong, a surrogate, beyond U+10FFFF).                      */
static size_t monet__utf8_size(const char *s, size_t n)
{
    unsigned lead = (uint8_t)s[0], second = n > 1 ? (uint8_t)s[1] : 0;
    size_t   size = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3
                                                                    : lead < 0xF5 ? 4 : 0;
    for (size_t k = 1; k < size && k < n; ++k)
        if (((uint8_t)s[k] & 0xC0) != 0x80) return 0;
    if (n > 1 && ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) ||
                  (lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F)))
        return 0;
    return size;
}

static bool monet__tok_is_mark(const char *s, size_t n) /* U+2581 */
{
    return n >= 3 && s[0] == '\xE2' && s[1] == '\x96' && s[2] == '\x81';
}

/* Writes the plain bytes of s to out (room for n) and returns their number. */
static size_t monet__tok_plain(char *out, const char *s, size_t n)
{
    size_t size = 0;
    for (size_t i = 0; i < n; ++i) {
        bool mark = monet__tok_is_mark(s + i, n - i);
        out[size++] = mark ? ' ' : s[i];
        if (mark) i += 2;
    }
    return size;
}

/* A polynomial: hash(xy) = hash(x) * BASE^size(y) + hash(y), so one pass hashes both halves of all
   splits of a piece. Mixed before use, because some of its bits are weak.                        */
static const uint64_t MONET__TOK_BASE = 0x9E3779B97F4A7C15u;

static uint64_t monet__tok_step(uint64_t hash, char c)
{
    return hash * MONET__TOK_BASE + (uint8_t)c + 1;
}

static uint64_t monet__tok_hash(const char *s, size_t n)
{
    uint64_t hash = 0;
    for (size_t i = 0; i < n; ++i) hash = monet__tok_step(hash, s[i]);
    return hash;
}

/* Where to start in a table of n. It has PROBES more places at its end; the last one is always free
   and stands for "too many probes".                                                              */
static size_t monet__tok_home(uint64_t mixed, uint32_t n)
{
    return (size_t)((mixed >> 32) * n >> 32);
}

/* The place of this pair, or the free one (result < 0) for it. */
static monet__tok_pair *monet__tok_pair_at(const monet_tokenizer *t, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)left << 32 | (uint32_t)right;
    monet__tok_pair *pair = t->pairs + monet__tok_home(monet__mix(key), t->n_pairs);
    monet__tok_pair *end = pair + MONET__TOK_PROBES - 1;
    while (pair < end && pair->result >= 0 && (pair->left != left || pair->right != right)) ++pair;
    return pair < end ? pair : t->pairs + t->n_pairs + MONET__TOK_PROBES - 1;
}

/* The place of the piece with one of these marks and plain bytes s, or, with marks 0, of the piece
   that is written s; or the free one (id -1) for it.                                             */
static monet__tok_name *monet__tok_name_at(const monet_tokenizer *t, uint64_t hash, const char *s,
                                           size_t n, unsigned marks)
{
    uint64_t mixed = monet__mix(hash);
    monet__tok_name *name = t->names + monet__tok_home(mixed, t->n_names);
    monet__tok_name *end = name + MONET__TOK_PROBES - 1;
    for (; name < end && name->id >= 0; ++name) {
        monet_piece p;
        if (name->tag != (uint32_t)mixed || (marks && !(t->marks[name->id] & marks))) continue;
        p = marks ? monet__tok_plain_piece(t, name->id) : monet__tok_piece(t, name->id);
        if ((size_t)p.size == n && memcmp(p.bytes, s, n) == 0) break;
    }
    return name < end ? name : t->names + t->n_names + MONET__TOK_PROBES - 1;
}

/* ---- tokenizer: checks ----------------------------------------------------------------------- */
static const char monet__tok_hex[] = "0123456789ABCDEF";

/* Names the piece by its number and bytes; what is not printable ASCII as \xHH. */
static monet_result monet__tok_fail(const monet_tokenizer *t, int32_t id, const char *what,
                                    int64_t found, const char *need, monet_error *err)
{
    monet_piece p = monet__tok_piece(t, id);
    char shown[64];
    int32_t i, n = 0;
    for (i = 0; i < p.size && n < 56; ++i) {
        uint8_t c = (uint8_t)p.bytes[i];
        const char hex[4] = {'\\', 'x', monet__tok_hex[c >> 4], monet__tok_hex[c & 15]};
        bool printable = c >= 0x20 && c < 0x7F;
        memcpy(shown + n, printable ? p.bytes + i : hex, printable ? 1 : 4);
        n += printable ? 1 : 4;
    }
    memcpy(shown + n, i < p.size ? "..." : "", i < p.size ? 4 : 1);
    return monet__fail(err, MONET_ERROR_FORMAT, "tokenizer: piece %d \"%s\": %s %D, need %s",
                       id, shown, what, found, need);
}

/* Adds the places where it can be split in two to *splits. */
static monet_result monet__tok_check_piece(const monet_tokenizer *t, int32_t id, uint64_t *splits,
                                           monet_error *err)
{
    const uint8_t *record = t->pieces + (size_t)id * 12;
    uint64_t size = monet__u16(record + 4), end = monet__u32(record) + size;
    monet_piece p;
    MONET__NEED(FORMAT, size > 0 && size <= MONET__TOK_MAX_PIECE,
                "tokenizer: piece %d: %U bytes, need 1 to %d", id, size, MONET__TOK_MAX_PIECE);
    MONET__NEED(FORMAT, end <= t->blob_size, "tokenizer: piece %d: ends at byte %U of %U", id, end,
                (uint64_t)t->blob_size);
    p = monet__tok_piece(t, id);
    if (p.type < MONET_PIECE_NORMAL || p.type > MONET_PIECE_BYTE)
        return monet__tok_fail(t, id, "type", p.type, "1 to 6", err);
    MONET__NEED(FORMAT, p.score - p.score == 0, "tokenizer: piece %d: the score is not finite", id);
    for (size_t i = 0, n; i < size; i += n) {
        n = monet__utf8_size(p.bytes + i, size - i);
        if (n == 0 || n > size - i)
            return monet__tok_fail(t, id, "bytes of valid UTF-8", (int64_t)i, "all", err);
        *splits += i > 0 && p.type == MONET_PIECE_NORMAL;
    }
    return MONET_OK;
}

/* Checks the records, each on its own, and sets the sizes of the hash tables. */
static monet_result monet__tok_check(monet_tokenizer *t, monet_error *err)
{
    uint64_t total = 0, splits = 0, n_pairs;
    MONET__NEED(FORMAT, t->n_pieces > 0,
                "tokenizer: %d pieces and %d merges, need at least 1 and 0, at most %d",
                t->n_pieces, t->n_merges, MONET__TOK_MAX_COUNT);
    MONET__NEED(FORMAT, t->prefix_space >= 0 && t->prefix_space <= 2,
                "tokenizer: prefix space mode %d, need 0 to 2", t->prefix_space);
    for (int32_t k = -2; k < t->n_eos; ++k) {
        int32_t id = k == -2 ? t->unk_id : k == -1 ? t->bos_id : monet__tok_eos(t, k);
        MONET__NEED(FORMAT, monet__tok_is_id(t, id) || (k < 0 && id == -1),
                    "tokenizer: %s id %d, there are %d pieces",
                    k == -2 ? "unk" : k == -1 ? "bos" : "eos", id, t->n_pieces);
    }
    for (int32_t i = 0; i < t->n_pieces; ++i) {
        MONET__TRY(monet__tok_check_piece(t, i, &splits, err));
        total += (uint64_t)monet__tok_piece(t, i).size;
    }
    /* Pieces that share bytes could ask for far more memory than the file has. */
    MONET__NEED(FORMAT, total <= t->blob_size && total <= MONET__TOK_MAX_TEXT,
                "tokenizer: pieces of %U bytes together, room for %U", total,
                (uint64_t)t->blob_size);
    n_pairs = t->n_merges ? (uint64_t)t->n_merges : splits;
    t->n_pairs = (uint32_t)(n_pairs + n_pairs / 2); /* n_pairs is at most 2^30 */
    t->n_names = 2 * (uint32_t)t->n_pieces;
    return MONET_OK;
}

/* ---- tokenizer: building the indexes --------------------------------------------------------- */
static void monet__tok_tables(monet_tokenizer *t, monet__arena *arena)
{
    uint64_t n_pieces = (uint64_t)t->n_pieces;
    t->pairs = (monet__tok_pair *)monet__take(arena, (uint64_t)t->n_pairs + MONET__TOK_PROBES,
                                              sizeof *t->pairs);
    t->names = (monet__tok_name *)monet__take(arena, (uint64_t)t->n_names + MONET__TOK_PROBES,
                                              sizeof *t->names);
    t->text_at = (uint32_t *)monet__take(arena, n_pieces + 1, sizeof *t->text_at);
    t->marks = (uint8_t *)monet__take(arena, n_pieces, 1);
    t->text = (char *)monet__take(arena, t->blob_size, 1);
}

/* Name, plain bytes and marks of a piece. */
static monet_result monet__tok_add_name(monet_tokenizer *t, int32_t id, monet_error *err)
{
    monet_piece p = monet__tok_piece(t, id);
    char *plain = t->text + t->text_at[id];
    size_t size = monet__tok_plain(plain, p.bytes, (size_t)p.size);
    uint64_t hash = monet__tok_hash(plain, size);
    monet__tok_name *name = monet__tok_name_at(t, hash, p.bytes, (size_t)p.size, 0);
    uint8_t lead = (uint8_t)plain[0];
    uint8_t mark = p.type == MONET_PIECE_USER ? MONET__TOK_USER
                 : p.type == MONET_PIECE_CONTROL ? MONET__TOK_CONTROL : 0;
    if (name == t->names + t->n_names + MONET__TOK_PROBES - 1)
        return monet__tok_fail(t, id, "probes", MONET__TOK_PROBES, "fewer", err);
    if (name->id >= 0)
        return monet__tok_fail(t, id, "the same bytes as piece", name->id, "others", err);
    name->id = id;
    name->tag = (uint32_t)monet__mix(hash);
    t->text_at[id + 1] = t->text_at[id] + (uint32_t)size;
    t->marks[id] = mark;
    if (mark) {
        if (size > t->longest[lead]) t->longest[lead] = (uint16_t)size;
        if (lead == ' ' && size > t->longest[0xE2]) /* of U+2581 in the text */
            t->longest[0xE2] = (uint16_t)size;
    } else if (p.type == MONET_PIECE_NORMAL && !memchr(p.bytes, ' ', (size_t)p.size)) {
        t->marks[id] = MONET__TOK_USABLE; /* text reads as U+2581, never as a true space */
    }
    return MONET_OK;
}

/* Finds "<0x00>" to "<0xFF>", which shall be all byte pieces. Their text becomes the byte. */
static monet_result monet__tok_add_bytes(monet_tokenizer *t, monet_error *err)
{
    char bytes[7] = "<0x00>";
    int32_t n = 0;
    for (int32_t id = 0; id < t->n_pieces; ++id)
        n += monet__tok_piece(t, id).type == MONET_PIECE_BYTE;
    for (int value = 0; value < 256; ++value) {
        int32_t id, type;
        bytes[3] = monet__tok_hex[value >> 4];
        bytes[4] = monet__tok_hex[value & 15];
        id = monet_tokenizer_find(t, bytes, 6);
        type = id < 0 ? -1 : monet__tok_piece(t, id).type;
        MONET__NEED(FORMAT, type == MONET_PIECE_BYTE,
                    "tokenizer: \"%s\" is piece %d, type %d, need type %d", bytes, id, type,
                    MONET_PIECE_BYTE);
        t->byte_ids[value] = id;
        t->text[t->text_at[id]] = (char)(uint8_t)value;
    }
    MONET__NEED(FORMAT, n == 256, "tokenizer: %d byte pieces, need 256", n);
    return MONET_OK;
}

static monet_result monet__tok_add_pair(monet_tokenizer *t, int32_t left, int32_t right,
                                        int32_t result, uint32_t priority, monet_error *err)
{
    monet__tok_pair *pair = monet__tok_pair_at(t, left, right);
    if (pair == t->pairs + t->n_pairs + MONET__TOK_PROBES - 1)
        return monet__tok_fail(t, result, "probes", MONET__TOK_PROBES, "fewer", err);
    MONET__NEED(FORMAT, pair->result < 0,
                "tokenizer: merge %U is of the same pieces %d and %d as merge %U",
                (uint64_t)priority, left, right, (uint64_t)pair->priority);
    pair->left = left, pair->right = right;
    pair->result = result, pair->priority = priority;
    t->marks[result] |= MONET__TOK_FORMED;
    return MONET_OK;
}

/* Without merges each split of a piece into two pieces is one, with the score as priority. */
static monet_result monet__tok_add_splits(monet_tokenizer *t, int32_t id, monet_error *err)
{
    monet_piece p = monet__tok_plain_piece(t, id);
    uint32_t bits = monet__bits(p.score + 0.0f); /* -0 becomes 0 */
    uint32_t priority = bits >> 31 ? bits : ~bits & 0x7FFFFFFFu; /* the higher score, the lower */
    uint64_t left[MONET__TOK_MAX_PIECE], right = 0, power = 1; /* hashes of s[0..i) and s[i..n) */
    const char *s = p.bytes;
    size_t n = (size_t)p.size;
    if (!(t->marks[id] & MONET__TOK_USABLE)) return MONET_OK;
    left[0] = 0;
    for (size_t i = 1; i < n; ++i) left[i] = monet__tok_step(left[i - 1], s[i - 1]);
    for (size_t i = n; i-- > 1; power *= MONET__TOK_BASE) {
        int32_t l, r = -1;
        right += ((uint8_t)s[i] + 1u) * power;
        if (((uint8_t)s[i] & 0xC0) == 0x80) continue;
        l = monet__tok_name_at(t, left[i], s, i, MONET__TOK_USABLE)->id;
        if (l >= 0) r = monet__tok_name_at(t, right, s + i, n - i, MONET__TOK_USABLE)->id;
        if (r >= 0) MONET__TRY(monet__tok_add_pair(t, l, r, id, priority, err));
    }
    return MONET_OK;
}

static monet_result monet__tok_add_merge(monet_tokenizer *t, int32_t rank, monet_error *err)
{
    monet_merge m = monet__tok_merge(t, rank);
    monet_piece left, right, whole;
    MONET__NEED(FORMAT, monet__tok_is_id(t, m.left) && monet__tok_is_id(t, m.right) &&
                monet__tok_is_id(t, m.result),
                "tokenizer: merge %d of pieces %d and %d to %d, there are %d pieces",
                rank, m.left, m.right, m.result, t->n_pieces);
    left = monet__tok_piece(t, m.left), right = monet__tok_piece(t, m.right);
    whole = monet__tok_piece(t, m.result);
    if (whole.size != left.size + right.size ||
        memcmp(whole.bytes, left.bytes, (size_t)left.size) ||
        memcmp(whole.bytes + left.size, right.bytes, (size_t)right.size))
        return monet__tok_fail(t, m.result, "other bytes than in the parts of merge", rank,
                               "the same", err);
    t->marks[m.result] |= MONET__TOK_FORMED;
    if (!(t->marks[m.left] & t->marks[m.right] & t->marks[m.result] & MONET__TOK_USABLE))
        return MONET_OK; /* text never yields one of the three */
    return monet__tok_add_pair(t, m.left, m.right, m.result, (uint32_t)rank, err);
}

/* ---- tokenizer: words ------------------------------------------------------------------------
   A word is a list of symbols, one a character at first. Above it stands a tree of minima: its
   leaves are the priorities of the symbols' pairs, tree[k] the lesser one of tree[2k], tree[2k+1].
   So the leftmost best pair is found from tree[1] downwards, and n characters cost n log n, also
   if they are one letter a million times.                                                        */
typedef struct monet__tok_symbol {
    int32_t id, prev, next;     /* -1 = none */
    int32_t result;             /* this symbol joined with the next one */
    uint32_t at;                /* its first byte in the word */
} monet__tok_symbol;

typedef struct monet__tok_word {
    monet__tok_symbol *symbols;
    uint32_t *tree;             /* UINT32_MAX = no pair */
    size_t leaves;              /* a power of two; the first is tree[leaves] */
} monet__tok_word;

typedef struct monet__tok_out {
    const monet_tokenizer *t;
    int32_t *tokens;
    size_t capacity, count;     /* count goes on beyond the capacity */
    monet_result result;
} monet__tok_out;

static void monet__tok_push(monet__tok_out *out, int32_t token)
{
    if (out->count++ < out->capacity) out->tokens[out->count - 1] = token;
}

static uint32_t monet__tok_lesser(const uint32_t *tree, size_t k)
{
    return tree[2 * k] < tree[2 * k + 1] ? tree[2 * k] : tree[2 * k + 1];
}

static void monet__tok_set(const monet__tok_word *w, int32_t i, uint32_t priority)
{
    size_t k = w->leaves + (size_t)i;
    w->tree[k] = priority;
    while ((k /= 2) > 0 && w->tree[k] != monet__tok_lesser(w->tree, k))
        w->tree[k] = monet__tok_lesser(w->tree, k);
}

/* Looks up what symbol i and the next one become, and returns the priority. */
static uint32_t monet__tok_rate(const monet_tokenizer *t, const monet__tok_word *w, int32_t i)
{
    monet__tok_symbol *a = &w->symbols[i];
    int32_t right = a->next < 0 ? -1 : w->symbols[a->next].id;
    const monet__tok_pair *pair;
    if ((a->id | right) < 0) return UINT32_MAX;
    pair = monet__tok_pair_at(t, a->id, right);
    a->result = pair->result;
    return pair->priority; /* of a free place all bits are set */
}

static void monet__tok_merge_all(const monet_tokenizer *t, const monet__tok_word *w)
{
    while (w->tree[1] != UINT32_MAX) {
        monet__tok_symbol *a;
        int32_t i, gone;
        size_t k = 1;
        while (k < w->leaves) k = 2 * k + (w->tree[2 * k] != w->tree[1]);
        i = (int32_t)(k - w->leaves);
        a = &w->symbols[i];
        gone = a->next;
        a->id = a->result;
        a->next = w->symbols[gone].next;
        if (a->next >= 0) w->symbols[a->next].prev = i;
        monet__tok_set(w, gone, UINT32_MAX);
        /* only i and the symbol before it have new pairs */
        monet__tok_set(w, i, monet__tok_rate(t, w, i));
        if (a->prev >= 0) monet__tok_set(w, a->prev, monet__tok_rate(t, w, a->prev));
    }
}

/* Writes the characters of s, after a space if there is a prefix, to `symbols`; how many. */
static int32_t monet__tok_read(const monet_tokenizer *t, monet__tok_symbol *symbols, const char *s,
                               size_t n, bool prefix)
{
    int32_t count = 0;
    size_t size = 0;
    for (size_t at = 0; at < n || prefix; at += size, ++count) {
        const char *c = s + at;
        size_t k;
        monet__tok_symbol *a = &symbols[count];
        a->prev = count - 1;
        a->next = count + 1;
        a->at = (uint32_t)at;
        size = prefix ? 0 : monet__utf8_size(c, n - at);
        if (size > n - at || (size == 0 && !prefix)) size = 1; /* no character: a byte alone */
        k = size;
        if (prefix || monet__tok_is_mark(c, size)) c = " ", k = 1;
        a->id = monet__tok_name_at(t, monet__tok_hash(c, k), c, k, MONET__TOK_USABLE)->id;
        prefix = false;
    }
    symbols[count - 1].next = -1;
    return count;
}

/* A word without merges across its ends; with a prefix it begins with a space that s has not. */
static void monet__tok_encode_word(monet__tok_out *out, const char *s, size_t n, bool prefix)
{
    const monet_tokenizer *t = out->t;
    monet__tok_symbol symbols[MONET__TOK_SHORT];
    uint32_t tree[2 * MONET__TOK_SHORT];
    monet__tok_word w = {symbols, tree, 1};
    uint64_t most = (uint64_t)n + prefix, size = 0;
    void *block = NULL;
    int32_t count;
    if (most > MONET__TOK_SHORT) {
        size = most * (sizeof *symbols + 4 * sizeof *tree) + 64; /* leaves < 2 * most */
        block = n < MONET__TOK_MAX_TEXT ? monet__alloc(&t->host, size) : NULL;
        if (!block) {
            out->result = MONET_ERROR_MEMORY;
            return;
        }
        w.symbols = (monet__tok_symbol *)(void *)monet__align(block);
        w.tree = (uint32_t *)(void *)(w.symbols + most);
    }
    count = monet__tok_read(t, w.symbols, s, n, prefix);
    while (w.leaves < (size_t)count) w.leaves *= 2;
    for (size_t k = 0; k < w.leaves; ++k)
        w.tree[w.leaves + k] = k < (size_t)count ? monet__tok_rate(t, &w, (int32_t)k) : UINT32_MAX;
    for (size_t k = w.leaves; --k > 0;) w.tree[k] = monet__tok_lesser(w.tree, k);
    monet__tok_merge_all(t, &w);
    for (int32_t i = 0; i >= 0; i = w.symbols[i].next) {
        const monet__tok_symbol *a = &w.symbols[i];
        size_t end = a->next < 0 ? n : w.symbols[a->next].at;
        if (a->id >= 0) monet__tok_push(out, a->id);
        else if (end == a->at) monet__tok_push(out, t->byte_ids[0x20]); /* the prefix */
        for (size_t k = a->at; a->id < 0 && k < end; ++k)
            monet__tok_push(out, t->byte_ids[(uint8_t)s[k]]);
    }
    monet__free(&t->host, block, size);
}

/* No cut inside of a character, nor beside something like U+2581, which is E2 96 81 in the text but
   a space in the plain bytes.                                                                    */
static bool monet__tok_joined(const monet_tokenizer *t, uint8_t x, uint8_t y)
{
    return x == 0x81 || y == 0xE2 || (y & 0xC0) == 0x80 || t->joins[x * 32 + y / 8] >> y % 8 & 1;
}

/* Text without special pieces. The prefix space goes to the first word. */
static void monet__tok_words(monet__tok_out *out, const char *s, size_t n, bool prefix)
{
    const monet_tokenizer *t = out->t;
    for (size_t i = 0, start = 0; (i < n || prefix) && out->result == MONET_OK; start = i) {
        uint64_t hash = 0;
        int32_t id = -1;
        while (i < n && (i == start || monet__tok_joined(t, (uint8_t)s[i - 1], (uint8_t)s[i])))
            hash = monet__tok_step(hash, s[i++]);
        if (!prefix) id = monet__tok_name_at(t, hash, s + start, i - start, MONET__TOK_WHOLE)->id;
        if (id >= 0) monet__tok_push(out, id);
        else monet__tok_encode_word(out, s + start, i - start, prefix);
        prefix = false;
    }
}

/* ---- tokenizer: build ------------------------------------------------------------------------ */
/* Each piece must be the result of a merge. Which bytes stand side by side? Which pieces are what
   their own text merges to? (Rarely not, when the pieces on the way go elsewhere first.)         */
static monet_result monet__tok_finish(monet_tokenizer *t, monet_error *err)
{
    int32_t token = -1;
    monet__tok_out out = {t, &token, 1, 0, MONET_OK};
    for (int32_t id = 0; id < t->n_pieces; ++id) {
        monet_piece p = monet__tok_plain_piece(t, id);
        size_t n = (size_t)p.size;
        if (p.type != MONET_PIECE_NORMAL) continue;
        if (!(t->marks[id] & MONET__TOK_FORMED) && monet__utf8_size(p.bytes, n) != n)
            return monet__tok_fail(t, id, "merges that make it", 0, "at least 1", err);
        if (!(t->marks[id] & MONET__TOK_USABLE)) continue;
        for (size_t i = 1; i < n; ++i) {
            uint8_t x = (uint8_t)p.bytes[i - 1], y = (uint8_t)p.bytes[i];
            t->joins[x * 32 + y / 8] |= (uint8_t)(1 << y % 8);
        }
        if (n > MONET__TOK_SHORT) continue;
        if (p.bytes[0] != ' ' && n > 2) continue; /* not often a word: saves half the time */
        out.count = 0;
        monet__tok_encode_word(&out, p.bytes, n, false);
        if (out.count == 1 && token == id) t->marks[id] |= MONET__TOK_WHOLE;
    }
    return MONET_OK;
}

/* Checks the rest and makes the indexes, at t->pairs in memory of index_size bytes. */
static monet_result monet__tok_build(monet_tokenizer *t, int32_t vocab_size, monet_error *err)
{
    monet__arena arena = {(char *)t->pairs, 0, false};
    MONET__NEED(FORMAT, t->n_pieces <= vocab_size, "tokenizer has %d pieces, vocab_size is %d",
                t->n_pieces, vocab_size);
    monet__tok_tables(t, &arena);
    memset(arena.base, 0xFF, (size_t)((char *)t->text_at - arena.base)); /* both hash tables */
    t->text_at[0] = 0;
    for (int32_t i = 0; i < t->n_pieces; ++i) MONET__TRY(monet__tok_add_name(t, i, err));
    MONET__TRY(monet__tok_add_bytes(t, err));
    for (int32_t i = 0; i < t->n_pieces && t->n_merges == 0; ++i)
        MONET__TRY(monet__tok_add_splits(t, i, err));
    for (int32_t i = 0; i < t->n_merges; ++i) MONET__TRY(monet__tok_add_merge(t, i, err));
    return monet__tok_finish(t, err);
}

/* ---- tokenizer: encode and decode ------------------------------------------------------------ */
/* The longest piece with one of the marks that starts here; -1 if none does. After a prefix only
   one that starts with this space. *size: how many bytes of the text it is.                      */
static int32_t monet__tok_special(const monet_tokenizer *t, const char *s, size_t n, bool prefix,
                                  unsigned marks, size_t *size)
{
    char plain[MONET__TOK_MAX_PIECE];
    int32_t found = -1;
    uint64_t hash = 0;
    size_t most = t->longest[prefix ? 0x20 : (uint8_t)s[0]];
    for (size_t i = 0, k = 0; k < most && i < n; prefix = false) {
        size_t step = prefix ? 0 : monet__tok_is_mark(s + i, n - i) ? 3 : 1;
        int32_t id;
        plain[k] = step == 1 ? s[i] : ' ';
        hash = monet__tok_step(hash, plain[k++]);
        i += step;
        id = monet__tok_name_at(t, hash, plain, k, marks)->id;
        if (id >= 0) found = id, *size = i;
    }
    return found;
}

/* Words between special pieces. After a control piece a text begins anew: with prefix_space 1 it
   has its own prefix, as tokenizer.json does it and as turns encoded one by one would have.      */
static void monet__tok_encode(monet__tok_out *out, const char *s, size_t n, unsigned flags)
{
    const monet_tokenizer *t = out->t;
    const int32_t mode = flags & MONET_NO_PREFIX ? 0 : t->prefix_space;
    const unsigned marks = MONET__TOK_USER | (flags & MONET_PARSE_SPECIAL ? MONET__TOK_CONTROL : 0);
    bool prefix = mode == 1 || (mode == 2 && s[0] != ' ' && !monet__tok_is_mark(s, n));
    bool first = prefix; /* which may be the space that a user-defined piece begins with */
    size_t i = 0, from = 0, size = 0;
    while (i < n) {
        const unsigned kinds = first ? (unsigned)MONET__TOK_USER : marks;
        int32_t id = -1;
        bool user;
        if (first || t->longest[(uint8_t)s[i]])
            id = monet__tok_special(t, s + i, n - i, first, kinds, &size);
        user = id >= 0 && monet__tok_piece(t, id).type == MONET_PIECE_USER;
        if (id >= 0) {
            if (!first && (i > from || user)) monet__tok_words(out, s + from, i - from, prefix);
            monet__tok_push(out, id);
            prefix = mode == 1 && !user;
            from = i += size;
        } else {
            i += !first;
        }
        first = false;
    }
    if (from < n) monet__tok_words(out, s + from, n - from, prefix);
}

MONET_API monet_result monet_tokenizer_encode(const monet_tokenizer *t, const char *text,
    size_t text_size, unsigned flags, int32_t *tokens, size_t capacity, size_t *count)
{
    const unsigned known = MONET_ADD_BOS | MONET_ADD_EOS | MONET_PARSE_SPECIAL | MONET_NO_PREFIX;
    monet__tok_out out = {t, tokens, capacity, 0, MONET_OK};
    if (count) *count = 0;
    if (!t || !count || (!text && text_size) || (!tokens && capacity) || (flags & ~known) ||
        text_size > SIZE_MAX / 4) return MONET_ERROR_ARGUMENT;
    if ((flags & MONET_ADD_BOS) && t->bos_id >= 0) monet__tok_push(&out, t->bos_id);
    if (text_size > 0) monet__tok_encode(&out, text, text_size, flags);
    if ((flags & MONET_ADD_EOS) && t->eos_id >= 0) monet__tok_push(&out, t->eos_id);
    if (out.result != MONET_OK) return out.result;
    *count = out.count;
    return out.count > capacity ? MONET_ERROR_CAPACITY : MONET_OK;
}

MONET_API const char *monet_tokenizer_bytes(const monet_tokenizer *t, int32_t token, size_t *size)
{
    monet_piece p;
    if (size) *size = 0;
    if (!t || !size || !monet__tok_is_id(t, token)) return NULL;
    p = monet__tok_plain_piece(t, token);
    *size = p.type == MONET_PIECE_CONTROL || p.type == MONET_PIECE_UNKNOWN ? 0
          : p.type == MONET_PIECE_BYTE ? 1 : (size_t)p.size;
    return p.bytes;
}

MONET_API monet_result monet_tokenizer_decode(const monet_tokenizer *t, const int32_t *tokens,
    size_t count, char *text, size_t capacity, size_t *text_size)
{
    size_t n, size = 0;
    bool strip = t && t->strip_space;
    if (text_size) *text_size = 0;
    if (!t || !text_size || (!tokens && count) || (!text && capacity)) return MONET_ERROR_ARGUMENT;
    for (size_t i = 0; i < count; ++i) {
        const char *bytes = monet_tokenizer_bytes(t, tokens[i], &n);
        if (!bytes || n > SIZE_MAX - size) return MONET_ERROR_ARGUMENT;
        for (size_t k = strip && n > 0 && bytes[0] == ' '; k < n; ++k, ++size)
            if (size < capacity) text[size] = bytes[k];
        strip = strip && n == 0; /* before any byte of the text */
    }
    *text_size = size;
    return size > capacity ? MONET_ERROR_CAPACITY : MONET_OK;
}

MONET_API int32_t monet_tokenizer_size(const monet_tokenizer *t) { return t ? t->n_pieces : 0; }
MONET_API int32_t monet_tokenizer_bos(const monet_tokenizer *t) { return t ? t->bos_id : -1; }
MONET_API int32_t monet_tokenizer_eos(const monet_tokenizer *t) { return t ? t->eos_id : -1; }

MONET_API int32_t monet_tokenizer_find(const monet_tokenizer *t, const char *bytes, size_t size)
{
    char plain[MONET__TOK_MAX_PIECE];
    if (!t || !bytes || size == 0 || size > MONET__TOK_MAX_PIECE) return -1;
    return monet__tok_name_at(t, monet__tok_hash(plain, monet__tok_plain(plain, bytes, size)),
                              bytes, size, 0)->id;
}

MONET_API bool monet_tokenizer_is_eos(const monet_tokenizer *tokenizer, int32_t token)
{
    for (int32_t k = 0; tokenizer && k < tokenizer->n_eos; ++k)
        if (monet__tok_eos(tokenizer, k) == token) return true;
    return false;
}

/* ---- tokenizer: the section of the file ------------------------------------------------------
   u32 pieces, merges, end-of-text ids, bytes of all pieces, i32 unk id, bos id, u32 prefix space,
   u32 strip space; then the pieces (u32 offset, u16 size, u16 type, f32 score), the merges
   (u32 left, right, result), the end-of-text ids (u32), the bytes.                               */
/* Finds the tables in the section and measures the indexes; nothing is allocated yet. */
static monet_result monet__tok_open(monet_tokenizer *t, const uint8_t *data, uint64_t size,
                                    monet_error *err)
{
    monet__arena arena = {NULL, 0, false};
    uint64_t n_pieces, n_merges, n_eos, blob, need;
    MONET__NEED(FORMAT, size >= MONET__TOK_HEADER, "tokenizer: section of %U bytes, its header "
                "alone needs %d", size, MONET__TOK_HEADER);
    n_pieces = monet__u32(data), n_merges = monet__u32(data + 4);
    n_eos = monet__u32(data + 8), blob = monet__u32(data + 12);
    need = MONET__TOK_HEADER + 12 * (n_pieces + n_merges) + 4 * n_eos + blob; /* below 2^38 */
    MONET__NEED(FORMAT, need == size && n_pieces <= MONET__TOK_MAX_COUNT &&
                n_merges <= MONET__TOK_MAX_COUNT, "tokenizer: %U pieces, %U merges, %U ids and %U "
                "bytes take %U bytes, the section has %U", n_pieces, n_merges, n_eos, blob, need,
                size);
    memset(t, 0, sizeof *t);
    t->n_pieces = (int32_t)n_pieces, t->n_merges = (int32_t)n_merges, t->n_eos = (int32_t)n_eos;
    t->unk_id = (int32_t)monet__u32(data + 16), t->bos_id = (int32_t)monet__u32(data + 20);
    t->prefix_space = (int32_t)monet__u32(data + 24), t->strip_space = monet__u32(data + 28) != 0;
    t->pieces = data + MONET__TOK_HEADER;
    t->merges = t->pieces + 12 * n_pieces;
    t->eos = t->merges + 12 * n_merges;
    t->eos_id = t->n_eos ? monet__tok_eos(t, 0) : -1;
    t->blob = (const char *)t->eos + 4 * n_eos;
    t->blob_size = (size_t)blob;
    MONET__TRY(monet__tok_check(t, err));
    monet__tok_tables(t, &arena);
    t->index_size = arena.used;
    return MONET_OK;
}

MONET_API monet_result monet_tokenizer_describe(const monet_tokenizer *tokenizer,
                                                monet_piece *pieces, monet_merge *merges,
                                                int32_t *eos_ids, monet_tokenizer_data *out)
{
    const monet_tokenizer *t = tokenizer;
    if (!t || !out) return MONET_ERROR_ARGUMENT;
    memset(out, 0, sizeof *out);
    out->pieces = pieces, out->n_pieces = t->n_pieces;
    out->merges = merges, out->n_merges = t->n_merges;
    out->eos_ids = eos_ids, out->n_eos = t->n_eos;
    out->unk_id = t->unk_id, out->bos_id = t->bos_id;
    out->prefix_space = t->prefix_space, out->strip_space = t->strip_space;
    for (int32_t k = 0; pieces && k < t->n_pieces; ++k) pieces[k] = monet__tok_piece(t, k);
    for (int32_t k = 0; merges && k < t->n_merges; ++k) merges[k] = monet__tok_merge(t, k);
    for (int32_t k = 0; eos_ids && k < t->n_eos; ++k) eos_ids[k] = monet__tok_eos(t, k);
    return MONET_OK;
}

/* ---- threads ----------------------------------------------------------------------- >>threads
   A team runs one function over items 0..count-1; tasks take some of them at a time, until none is
   left. Work is split by output only, never by a sum, so it does not matter who does what: the
   number of threads does not change a bit.
   The pool has no more threads than there are processors. Who is awake takes the next task, so
   nobody waits for a thread that the system does not run. It sleeps when idle: a thread spins for
   about 50 us for the next job, then waits.                                                      */
typedef void (*monet__item_fn)(void *context, int item, int task);

typedef struct monet__job {
    monet__item_fn fn;
    void          *context;
    int            count, n_tasks, step;
    int            next;    /* first item that nobody has taken; atomic */
    bool           foreign; /* on threads of the host, in whatever mode they are */
} monet__job;

/* The next items for a task: `step` of them from the one that is returned on. */
static int monet__job_next(monet__job *job, int *share)
{
#if defined(__GNUC__) || defined(__clang__)
    (void)share;
    return __atomic_fetch_add(&job->next, job->step, __ATOMIC_RELAXED);
#else /* the n-th share of a task lies n * n_tasks shares behind its first */
    int first = *share;
    *share += job->n_tasks;
    return first * job->step;
#endif
}

static void monet__job_task(void *arg, int index)
{
    monet__job *job = (monet__job *)arg;
    fenv_t      own;
    int         share = index;
    if (job->foreign) monet__mode_begin(&own);
    for (int first; (first = monet__job_next(job, &share)) < job->count;)
        for (int item = first; item < first + job->step && item < job->count; ++item)
            job->fn(job->context, item, index);
    if (job->foreign) monet__mode_end(&own);
}

#if defined(MONET_THREADS) && MONET__POSIX
#define MONET__POOL 1
typedef struct monet__pool {
    pthread_mutex_t lock;
    pthread_cond_t  wake, done;
    pthread_t       threads[256];
    int             n_started;
    int             owner;   /* the process that has these threads; 0 = no pool */
    monet__job     *job;
    int             left;    /* tasks 1..left are not taken yet; atomic */
    int             running; /* tasks that are not finished; atomic */
    int             asleep;  /* threads that wait for a job */
    bool            quit;
} monet__pool;

/* Spins, for a while, until *value is zero or is not. */
static bool monet__soon(int *value, bool zero)
{
    for (int spin = 0; spin < 700; ++spin) {
        if ((__atomic_load_n(value, __ATOMIC_ACQUIRE) == 0) == zero) return true;
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
    return false;
}

/* Does a task. Those of one job are all taken, and done, before the next job is written. */
static void monet__pool_task(monet__pool *pool, int index)
{
    monet__job_task(pool->job, index);
    if (__atomic_sub_fetch(&pool->running, 1, __ATOMIC_ACQ_REL)) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_signal(&pool->done);
    pthread_mutex_unlock(&pool->lock);
}

static void monet__pool_tasks(monet__pool *pool)
{
    int left = __atomic_load_n(&pool->left, __ATOMIC_ACQUIRE);
    while (left > 0)
        if (__atomic_compare_exchange_n(&pool->left, &left, left - 1, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE)) {
            monet__pool_task(pool, left);
            left = __atomic_load_n(&pool->left, __ATOMIC_ACQUIRE);
        }
}

static void *monet__work(void *arg)
{
    monet__pool *pool = (monet__pool *)arg;
    bool         quit = false;
    (void)fesetenv(FE_DFL_ENV);
    while (!quit) {
        monet__pool_tasks(pool);
        if (monet__soon(&pool->left, false)) continue;
        pthread_mutex_lock(&pool->lock);
        ++pool->asleep;
        while (!__atomic_load_n(&pool->left, __ATOMIC_ACQUIRE) && !pool->quit)
            pthread_cond_wait(&pool->wake, &pool->lock);
        --pool->asleep;
        quit = pool->quit;
        pthread_mutex_unlock(&pool->lock);
    }
    return NULL;
}

static void monet__pool_stop(monet__pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->quit = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int k = 0; k < pool->n_started; ++k) pthread_join(pool->threads[k], NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
}

static bool monet__pool_start(monet__pool *pool, int n_threads)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    if (n < 2) n = 2; /* one is perhaps a guess */
    if (n > n_threads) n = n_threads;
    if (pthread_mutex_init(&pool->lock, NULL)) return false;
    if (pthread_cond_init(&pool->wake, NULL)) {
        pthread_mutex_destroy(&pool->lock);
        return false;
    }
    if (pthread_cond_init(&pool->done, NULL)) {
        pthread_cond_destroy(&pool->wake);
        pthread_mutex_destroy(&pool->lock);
        return false;
    }
    for (; pool->n_started < n - 1; ++pool->n_started)
        if (pthread_create(&pool->threads[pool->n_started], NULL, monet__work, pool)) {
            monet__pool_stop(pool);
            return false;
        }
    pool->owner = (int)getpid();
    return true;
}

static void monet__pool_run(monet__pool *pool, monet__job *job)
{
    pthread_mutex_lock(&pool->lock);
    pool->job = job;
    __atomic_store_n(&pool->running, job->n_tasks, __ATOMIC_RELEASE);
    __atomic_store_n(&pool->left, job->n_tasks - 1, __ATOMIC_RELEASE);
    if (pool->asleep) pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    monet__pool_task(pool, 0);
    monet__pool_tasks(pool);
    if (monet__soon(&pool->running, true)) return;
    pthread_mutex_lock(&pool->lock);
    while (__atomic_load_n(&pool->running, __ATOMIC_ACQUIRE))
        pthread_cond_wait(&pool->done, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}
#else
#define MONET__POOL 0
#endif

typedef struct monet__team {
    monet_host             host;
    int                    n; /* tasks at most */
    const monet__kernels  *kernels;
#if MONET__POOL
    monet__pool            pool;
#endif
} monet__team;

static bool monet__team_start(monet__team *team, const monet_host *host,
                              const monet__kernels *kernels)
{
    memset(team, 0, sizeof *team);
    team->host = *host;
    team->kernels = kernels;
    team->n = host->n_threads > 0 && (host->parallel_fn || MONET__POOL) ? host->n_threads : 1;
#if MONET__POOL
    if (!host->parallel_fn && team->n > 1) return monet__pool_start(&team->pool, team->n);
#endif
    return true;
}

static void monet__team_stop(monet__team *team)
{
    (void)team;
#if MONET__POOL
    if (team->pool.owner == (int)getpid()) monet__pool_stop(&team->pool);
#endif
}

/* How many parts work is to be cut into that has no items of its own. */
static int monet__shares(const monet__team *team)
{
    return team->n > 1 ? team->n * MONET__SHARES : 1;
}

/* fn(context, item, task) for each item; task is below team->n and names scratch memory. */
static void monet__each(monet__team *team, int count, monet__item_fn fn, void *context)
{
    monet__job job = {fn, context, count, team->n < count ? team->n : count, 0, 0, false};
    job.step = count / monet__shares(team) + 1;
    job.foreign = job.n_tasks > 1 && team->host.parallel_fn;
    if (job.foreign) team->host.parallel_fn(team->host.user, job.n_tasks, monet__job_task, &job);
#if MONET__POOL
    else if (job.n_tasks > 1 && team->pool.owner == (int)getpid())
        monet__pool_run(&team->pool, &job);
#endif
    else
        for (int k = 0; k < job.n_tasks; ++k) monet__job_task(&job, k); /* a fork has no pool */
}

/* ---- layers ------------------------------------------------------------------------- >>layers
   Each works on plain arrays. "split" marks vectors in split order, padded to whole groups.      */

/* ---- layers: rmsnorm -------------------------------------------------------------------------
   out = x / sqrt(mean(x^2) + eps) * weight, over one token. Easy to get wrong: eps is inside the
   root; the mean is over C. If x is so large (1.8e19) that its square overflows, out is 0, as in
   the published model.                                                                           */
static void monet__rmsnorm_forward(monet_real *out, const monet_real *x, /* (C) (C) */
                                   const monet_real *weight, int C, monet_real eps)
{
    monet_real square = monet__dot(x, x, MONET_F32, 0, (size_t)C) / (monet_real)C;
    monet_real rstd = 1 / monet__sqrt(square + eps);
    for (int k = 0; k < C; ++k) out[k] = x[k] * rstd * weight[k];
}

#ifndef MONET_NO_TRAINING
/* With n = x * rstd and g = dout * weight:  dx += rstd * (g - n * mean(g * n)). Returns rstd: the
   weight's gradient is the sum of dout * n over all tokens.                                      */
static monet_real monet__rmsnorm_backward(monet_real *dx, const monet_real *dout, /* (C) (C) */
                                          const monet_real *x, const monet_real *weight, int C,
                                          monet_real eps)
{
    monet_real square = monet__dot(x, x, MONET_F32, 0, (size_t)C) / (monet_real)C;
    monet_real rstd = 1 / monet__sqrt(square + eps), mean, lanes[MONET__LANES] = {0};
    for (int k = 0; k < C; ++k) lanes[k % MONET__LANES] += dout[k] * weight[k] * x[k];
    mean = monet__tree(lanes) * rstd / (monet_real)C;
    for (int k = 0; k < C; ++k) dx[k] += rstd * (dout[k] * weight[k] - x[k] * rstd * mean);
    return rstd;
}
#endif

/* ---- layers: linear --------------------------------------------------------------------------
   out[t] = W x[t] for up to three matrices that read the same x: q, k, v share one pass.         */
typedef struct monet__input { /* what the products of a layer read */
    int               n;      /* tokens */
    const monet_real *x;      /* (n, stride) split */
    size_t            stride;
    /* fast mode has these too; NULL in exact mode */
    const monet__fast *fast;
    uint16_t          *rounded;      /* (n, 3*32*groups) bf16, natural order */
    size_t             rounded_stride;
    int                parts;        /* how many of its 3 are made: 1 or, for routers, 3 */
    monet__codes      *codes;        /* of one token alone */
    char              *scratch;      /* (tasks, scratch_size) */
    size_t             scratch_size;
} monet__input;

typedef struct monet__product {
    const monet_tensor *w;   /* MONET_PANELS (rows, C) */
    monet_real         *out; /* (n_tokens, stride) */
    size_t              stride;
    int                 parts; /* fast mode: 1 = x is rounded to bf16; 3 = it is taken whole */
} monet__product;

typedef struct monet__linear {
    const monet__kernels *kernels;
    const monet__product *products;
    const monet__input   *in;
    int                   n_products, n_shares;
} monet__linear;

static monet__input monet__input_of(const monet_real *x, size_t stride, int n)
{
    monet__input in = {n, x, stride, NULL, NULL, 0, 0, NULL, NULL, 0};
    return in;
}

static int monet__n_panels(const monet_tensor *w)
{
    return (int)((w->shape[0] + w->panel - 1) / w->panel);
}

/* Where part `part` of 3 of a rounded row begins. Part 2 is x rounded to bf16, 1 and 0 the rest. */
static const uint16_t *monet__rounded(const monet__input *in, size_t t, size_t groups, int part)
{
    return in->rounded + t * in->rounded_stride + (size_t)part * groups * MONET__GROUP;
}

/* Rows first..end-1 of one product, for all tokens. */
static void monet__linear_exact(const monet__linear *job, const monet__product *p, int first,
                                int end)
{
    const monet__input *in = job->in;
    const monet_real   *x[MONET__TOKENS];
    monet_real         *out[MONET__TOKENS];
    if (in->n == 1) {
        x[0] = in->x, out[0] = p->out + first;
        job->kernels->dot_panel(out, monet__panel(p->w, first / p->w->panel), p->w->dtype,
                                p->w->panel, end - first, monet__n_groups(p->w), x, 1);
        return;
    }
    for (int from = 0; from < in->n; from += MONET__BLOCK_TOKENS) { /* these stay in cache */
        int to = in->n - from < MONET__BLOCK_TOKENS ? in->n : from + MONET__BLOCK_TOKENS;
        for (int r = first; r < end; r += p->w->panel) {
            const char *panel = monet__panel(p->w, r / p->w->panel);
            int         rows = end - r < p->w->panel ? end - r : p->w->panel;
            for (int t = from, n; t < to; t += n) {
                n = to - t < MONET__TOKENS ? to - t : MONET__TOKENS;
                for (int k = 0; k < n; ++k) {
                    x[k] = in->x + (size_t)(t + k) * in->stride;
                    out[k] = p->out + (size_t)(t + k) * p->stride + (size_t)r;
                }
                job->kernels->dot_panel(out, panel, p->w->dtype, p->w->panel, rows,
                                        monet__n_groups(p->w), x, n);
            }
        }
    }
}

/* The same in fast mode; false if that has nothing better for this product. */
static bool monet__linear_fast(const monet__linear *job, const monet__product *p, int first,
                               int end, int task)
{
    const monet__input *in = job->in;
    monet_dtype         dtype = p->w->dtype;
    size_t              groups = monet__n_groups(p->w);
    const uint16_t     *x[MONET__FAST_TOKENS];
    monet_real         *out[MONET__FAST_TOKENS];
    const char         *panel = monet__panel(p->w, first / p->w->panel);
    if (in->n == 1) {
        if (!in->codes || !monet__quantised(dtype)) return false;
        in->fast->dot_int8(p->out + first, panel, dtype, p->w->panel, end - first, groups,
                           in->codes);
        return true;
    }
    if (!in->rounded || (p->parts == 3 && dtype != MONET_BF16)) return false; /* stays f32 */
    for (int t = 0; t < in->n; t += MONET__FAST_TOKENS) {
        int n = in->n - t < MONET__FAST_TOKENS ? in->n - t : MONET__FAST_TOKENS;
        for (int k = 0; k < n; ++k) {
            x[k] = monet__rounded(in, (size_t)(t + k), groups, p->parts == 3 ? 0 : 2);
            out[k] = p->out + (size_t)(t + k) * p->stride + (size_t)first;
        }
        monet__fast_dot(in->fast, out, panel, dtype, p->w->panel, end - first, groups, x, p->parts,
                        n, in->scratch + (size_t)task * in->scratch_size);
    }
    return true;
}

/* A share of the panels of all products. */
static void monet__linear_share(void *context, int item, int task)
{
    const monet__linear *job = (const monet__linear *)context;
    for (int k = 0; k < job->n_products; ++k) {
        const monet__product *p = &job->products[k];
        int64_t panels = monet__n_panels(p->w), rows = p->w->shape[0];
        int64_t first = panels * item / job->n_shares * p->w->panel;
        int64_t end = panels * (item + 1) / job->n_shares * p->w->panel;
        if (end > rows) end = rows;
        if (first < end && !(job->in->fast && monet__linear_fast(job, p, (int)first, (int)end,
                                                                 task)))
            monet__linear_exact(job, p, (int)first, (int)end);
    }
}

static void monet__linear_forward(monet__team *team, const monet__product *products,
                                  int n_products, const monet__input *in)
{
    monet__linear job = {team->kernels, products, in, n_products, monet__shares(team)};
    monet__each(team, job.n_shares, monet__linear_share, &job);
}

#ifndef MONET_NO_TRAINING
/* dx += W^T dout (split order), dW += dout x^T. Weights and gradients are of the native type; dW is
   made by rows, dx in blocks of tokens and columns, so each element has one writer. Tokens whose
   dout is 0 in all rows of a block are left out: most of what a router gets.                     */
typedef struct monet__linear_back {
    const monet__kernels *kernels;
    const monet_tensor   *w;
    monet_real           *dw;   /* laid out as w; NULL = frozen */
    const monet_real     *dout; /* (n_tokens, stride) */
    size_t                stride;
    const monet_real     *x;    /* (n_tokens, x_stride) split */
    monet_real           *dx;   /* (n_tokens, x_stride) split */
    size_t                x_stride;
    int                   n_tokens;
    bool                  sparse; /* dout is 0 mostly: in blocks of few rows */
    bool                  fresh;  /* dx = W^T dout */
} monet__linear_back;

/* Tokens that a block of rows is multiplied with. */
typedef struct monet__chosen {
    int               n;
    const monet_real *dout[MONET__TOKENS], *x[MONET__TOKENS];
    monet_real       *dx[MONET__TOKENS];
} monet__chosen;

/* Is one of n numbers not 0? */
static bool monet__some(const monet_real *x, int n)
{
    for (int k = 0; k < n; ++k)
        if (x[k] != 0) return true;
    return false;
}

static void monet__linear_dw(void *context, int panel, int task)
{
    const monet__linear_back *job = (const monet__linear_back *)context;
    monet__chosen             chosen[4]; /* one a block */
    size_t                    size = monet__panel_size(job->w);
    monet_real               *dw = job->dw + (size_t)panel * size;
    int rows = (int)(job->w->shape[0] - (int64_t)panel * MONET__ROWS);
    int step = job->sparse ? MONET__ROWS / 4 : MONET__ROWS;
    (void)task;
    if (rows > MONET__ROWS) rows = MONET__ROWS;
    for (int k = 0; k < 4; ++k) chosen[k].n = 0;
    for (int t = 0; t <= job->n_tokens; ++t) /* once more at the end: what is left */
        for (int r = 0; r < rows; r += step) {
            monet__chosen *c = &chosen[r / step];
            int            n = rows - r < step ? rows - r : step;
            if (t < job->n_tokens) {
                c->dout[c->n] = job->dout + (size_t)t * job->stride +
                                (size_t)(panel * MONET__ROWS + r);
                c->x[c->n] = job->x + (size_t)t * job->x_stride;
                c->n += monet__some(c->dout[c->n], n);
                if (c->n < MONET__TOKENS) continue;
            }
            job->kernels->outer_panel(dw + r * MONET__GROUP, MONET__ROWS, n,
                                      size / (MONET__ROWS * MONET__GROUP), c->dout, c->x, c->n);
            c->n = 0;
        }
}

static void monet__linear_dx(void *context, int item, int task)
{
    const monet__linear_back *job = (const monet__linear_back *)context;
    const monet_real         *w = (const monet_real *)job->w->data;
    size_t size = monet__panel_size(job->w), groups = size / (MONET__ROWS * MONET__GROUP);
    size_t width = job->sparse ? groups : (size_t)MONET__BLOCK_GROUPS;
    size_t blocks = (groups + width - 1) / width, from = (size_t)item % blocks * width;
    int    begin = (int)((size_t)item / blocks) * MONET__TOKENS;
    int    step = job->sparse ? MONET__ROWS / 4 : MONET__ROWS, rows = (int)job->w->shape[0];
    int    end = job->n_tokens - begin < MONET__TOKENS ? job->n_tokens : begin + MONET__TOKENS;
    (void)task;
    if (groups - from < width) width = groups - from;
    for (int t = begin; job->fresh && t < end; ++t)
        memset(job->dx + (size_t)t * job->x_stride + from * MONET__GROUP, 0,
               width * MONET__GROUP * sizeof *w);
    for (int r = 0; r < rows; r += step) {
        monet__chosen c;
        int           n = rows - r < step ? rows - r : step;
        c.n = 0;
        for (int t = begin; t < end; ++t) {
            const monet_real *dout = job->dout + (size_t)t * job->stride + r;
            if (!monet__some(dout, n)) continue;
            c.dout[c.n] = dout;
            c.dx[c.n++] = job->dx + (size_t)t * job->x_stride + from * MONET__GROUP;
        }
        job->kernels->sum_panel(c.dx, w + (size_t)(r / MONET__ROWS) * size +
                                (from * MONET__ROWS + (size_t)(r % MONET__ROWS)) * MONET__GROUP,
                                MONET_F32, MONET__ROWS, n, width, c.dout, c.n);
    }
}

static void monet__linear_backward(monet__team *team, monet__linear_back *job)
{
    int groups = (int)((job->w->shape[1] + MONET__GROUP - 1) / MONET__GROUP);
    int blocks = job->sparse ? 1 : (groups + MONET__BLOCK_GROUPS - 1) / MONET__BLOCK_GROUPS;
    job->kernels = team->kernels;
    if (job->dw) monet__each(team, monet__n_panels(job->w), monet__linear_dw, job);
    if (job->dx)
        monet__each(team, (job->n_tokens + MONET__TOKENS - 1) / MONET__TOKENS * blocks,
                    monet__linear_dx, job);
}
#endif

/* ---- layers: rope ----------------------------------------------------------------------------
   Turns the pairs (d, d + D/2) of a head by the angle pos * theta^(-2d/D): "rotate half".
   Angles in double, so that far positions keep their digits.                                     */
static void monet__rope_table(monet_real *cosine, monet_real *sine, /* (S,D/2) (S,D/2) */
                              int S, int D, double theta)
{
    fenv_t own;
    monet__mode_begin(&own);
    for (int d = 0; d < D / 2; ++d) {
        double frequency = pow(theta, -2.0 * d / D);
        for (int pos = 0; pos < S; ++pos) {
            cosine[(size_t)pos * (size_t)(D / 2) + (size_t)d] = (monet_real)cos(pos * frequency);
            sine[(size_t)pos * (size_t)(D / 2) + (size_t)d] = (monet_real)sin(pos * frequency);
        }
    }
    monet__mode_end(&own);
}

static void monet__rope_forward(monet_real *head, const monet_real *cosine, /* (D) (D/2) (D/2) */
                                const monet_real *sine, int D)
{
    for (int d = 0; d < D / 2; ++d) {
        monet_real u = head[d], v = head[d + D / 2];
        head[d] = u * cosine[d] - v * sine[d];
        head[d + D / 2] = v * cosine[d] + u * sine[d];
    }
}

#ifndef MONET_NO_TRAINING
static void monet__rope_backward(monet_real *dhead, const monet_real *cosine, /* in place: */
                                 const monet_real *sine, int D)               /* turn back */
{
    for (int d = 0; d < D / 2; ++d) {
        monet_real u = dhead[d], v = dhead[d + D / 2];
        dhead[d] = u * cosine[d] + v * sine[d];
        dhead[d + D / 2] = v * cosine[d] - u * sine[d];
    }
}
#endif

/* ---- layers: attention -----------------------------------------------------------------------
   out = sum_j softmax_j(q . k_j / sqrt(D)) v_j for one head and a block of queries, those of
   positions first..first+n-1. Query t sees keys 0..first+t; what comes after has weight 0. Keys are
   a MONET_PANELS panel of all positions, values a MONET_SUMS panel. Every query sums over positions
   in ascending order, whatever else is in the block; no table of all pairs is ever made.         */
typedef struct monet__queries {
    const monet__kernels *kernels;
    const void           *keys, *values;
    monet_dtype           dtype;
    int                   key_rows, value_rows; /* positions in a panel, padding included */
    int                   D, first, n;          /* n: 1..MONET__TOKENS */
    size_t                groups;               /* rows of q and out are 32*groups, q split */
    const monet_real     *q[MONET__TOKENS];
    monet_real           *p[MONET__TOKENS];     /* (first+n) weights of each query */
} monet__queries;

static void monet__attention_weights(const monet__queries *a)
{
    monet_real scale = 1 / monet__sqrt((monet_real)a->D);
    int        rows = a->first + a->n;
    a->kernels->dot_panel(a->p, a->keys, a->dtype, a->key_rows, rows, a->groups, a->q, a->n);
    for (int t = 0; t < a->n; ++t) {
        monet_real *p = a->p[t], max, sum;
        int         seen = a->first + t + 1;
        sum = 1 / a->kernels->softmax(p, (size_t)seen, scale, &max);
        for (int j = 0; j < seen; ++j) p[j] *= sum;
        for (int j = seen; j < rows; ++j) p[j] = 0;
    }
}

static void monet__attention_forward(const monet__queries *a, monet_real *const *out)
{
    monet__attention_weights(a);
    for (int t = 0; t < a->n; ++t) memset(out[t], 0, a->groups * MONET__GROUP * sizeof **out);
    a->kernels->sum_panel(out, a->values, a->dtype, a->value_rows, a->first + a->n, a->groups,
                          (const monet_real *const *)a->p, a->n);
}

#ifndef MONET_NO_TRAINING
/* With p the weights and dp_j = dout . v_j:  dv_j += p_j dout,
   ds_j = p_j (dp_j - sum_k p_k dp_k) / sqrt(D),  dq += sum_j ds_j k_j,  dk_j += ds_j q.
   dkeys and dvalues are panels as keys and values are; ds: scratch, (n) rows of (first+n).       */
static void monet__attention_backward(const monet__queries *a, monet_real *const *dq,
                                      monet_real *dkeys, monet_real *dvalues,
                                      const monet_real *const *dout, monet_real *const *ds)
{
    monet_real               scale = 1 / monet__sqrt((monet_real)a->D);
    int                      rows = a->first + a->n;
    const monet_real *const *p = (const monet_real *const *)a->p;
    const monet_real *const *s = (const monet_real *const *)ds;
    a->kernels->dot_panel(ds, a->values, MONET_F32, a->value_rows, rows, a->groups, dout, a->n);
    a->kernels->outer_panel(dvalues, a->value_rows, rows, a->groups, p, dout, a->n);
    for (int t = 0; t < a->n; ++t) {
        monet_real mean = a->kernels->dot(p[t], ds[t], MONET_F32, 0, (size_t)rows);
        for (int j = 0; j < rows; ++j) ds[t][j] = p[t][j] * (ds[t][j] - mean) * scale;
    }
    a->kernels->sum_panel(dq, a->keys, MONET_F32, a->key_rows, rows, a->groups, s, a->n);
    a->kernels->outer_panel(dkeys, a->key_rows, rows, a->groups, s, a->q, a->n);
}
#endif

/* ---- layers: router --------------------------------------------------------------------------
   One head of one side, in place: logits z (N) become gates (paper, eq. 10 and 11).
     zn = (z - mean) / sqrt(var + 1e-5)           BatchNorm without affine, one channel a head
     cut = min(max zn, sigma)                     sigma = normal quantile of 1 - k/N
     g = softmax over {zn >= cut} of the raw z    0 elsewhere
   Easy to get wrong: the cut is on normalised logits, the softmax on raw ones; the largest always
   survives; k is an average only; ties survive together. False if a logit is not finite.         */
static bool monet__router_forward(monet_real *z, monet_real mean, monet_real var, monet_real sigma,
                                  int N)
{
    monet_real rstd = 1 / monet__sqrt(var + (monet_real)1e-5), cut, sum = 0;
    monet_real top = z[0], top_norm = (z[0] - mean) * rstd;
    for (int i = 0; i < N; ++i) {
        if (!(z[i] - z[i] == 0)) return false; /* NaN or infinity */
        if (z[i] > top) top = z[i], top_norm = (top - mean) * rstd;
    }
    cut = top_norm < sigma ? top_norm : sigma;
    for (int i = 0; i < N; ++i) {
        z[i] = (z[i] - mean) * rstd >= cut ? monet__exp(z[i] - top) : 0;
        sum += z[i];
    }
    for (int i = 0; i < N; ++i)
        if (z[i] != 0) z[i] /= sum;
    return true;
}

#ifndef MONET_NO_TRAINING
/* Softmax of the survivors, in place: dg (N) becomes dz = g (dg - sum_i g dg), where g is not 0 and
   so dz neither: in a list of n places. Neither the cut nor the BatchNorm has a gradient.        */
static void monet__router_backward(monet_real *dg, const monet_real *g, const uint16_t *list, int n)
{
    monet_real mean = 0;
    for (int k = 0; k < n; ++k) mean += g[list[k]] * dg[list[k]];
    for (int k = 0; k < n; ++k) dg[list[k]] = g[list[k]] * (dg[list[k]] - mean);
}
#endif

/* x with P(normal > x) = k/N: where the cut lies so that k half-experts survive on average. */
static double monet__sigma(int k, int N)
{
    double          low = -40, high = 40, tail;
    volatile double result; /* volatile: compilers move other results across the mode */
    fenv_t          own;
    monet__mode_begin(&own);
    tail = (double)k / N;
    for (int step = 0; step < 100; ++step) { /* erfc falls: bisection always converges */
        double middle = 0.5 * (low + high);
        if (0.5 * erfc(middle / sqrt(2.0)) > tail) low = middle;
        else high = middle;
    }
    result = 0.5 * (low + high);
    monet__mode_end(&own);
    return result;
}

/* ---- experts ----------------------------------------------------------------------- >>experts
   The mixture of experts over the pair matrix P of each token (see WHAT MONET IS). An example with
   N = 4 and one head, whose gates are g1 = (0, 0.7, 0, 0.3) and g2 = (0.6, 0, 0.4, 0):

               j=0    j=2    r            I = {1,3}, J = {0,2}: of 16 experts, 4 act on this token.
        i=1    0.42   0.28   0.70         Expert (1,2) adds 0.28 E_12(n) to the stream, and y is
        i=3    0.18   0.12   0.30         the sum of all four. Nobody adds them one by one: a_1
        c      0.60   0.40                and a_2 are computed once and meet through P, r and c.

   To remove expert (1,2) write 0 in its place; r_1 becomes 0.42 and c_2 0.12. No other expert
   notices, since nothing is renormalised. No choice of gates could do that: with one head P is an
   outer product of g1 and g2, and a zero in g1 or g2 takes a whole row or column, N experts, along.
   So P itself is kept, as the list of its entries: a few hundred, of N*N = 262,144.

   One "slot" is one active half-expert of one token. Axis 0 holds the i, axis 1 the j of P.
     route    gates -> lists I, J and P (|I|,|J|) of each token; half-expert -> its slots
     U        a[slot] = relu(U_i n + bias_i)^2              by half-expert, over its tokens
     P        s[slot] = what the rows of V_i get            by token
     V        y += s[slot] V_i + (row sum of P) B_i         by column, half-experts ascending
   A half-expert that no token of the chunk uses is not read. Tokens are walked in chunks that fit
   the memory; one token always fits, even if all its half-experts are active.                    */
typedef struct monet__change { /* what an edit does in one layer, or in several alike */
    float    *factor;   /* (N,N) */
    float    *amount;   /* (N,N); NULL = none yet */
    uint16_t *forced;   /* (2,N) of each row, each column: how many amounts are not 0 */
    size_t    n_forced; /* amounts that are not 0 */
    int       n_layers; /* that use this table */
    int       n_inside; /* of them: work space of monet__edit_own */
} monet__change;

struct monet_edit {
    monet_host     host;
    int32_t        N, L, G;
    uint64_t       version;   /* moves on with each change */
    monet__change **of, **made; /* (L) the table of each layer, NULL = unchanged; work space */
    char           name[64];
};

typedef struct monet__experts { /* weights of a layer; NULL where an axis has none (HD) */
    const monet_tensor *u[2], *bias[2], *v[2], *b[2];
} monet__experts;

typedef struct monet__moe {
    const monet__kernels *kernels;
    bool       horizontal;
    int        C, H, N, m;      /* m: hidden units of a half-expert */
    int        n_rows, width;   /* rows of a V panel; outputs of an axis: C, or C/2 (VD) */
    size_t     y_stride;        /* of y: two axes side by side for VD */
    int        max_tokens;
    uint64_t   max_slots, max_pairs;
    monet_real sigma;
    /* gates of the router, for max_tokens tokens; capture keeps those of all routers */
    monet_real *gates;          /* (max_tokens,2,H,N): logits first, gates after */
    uint16_t   *active;         /* (max_tokens,2,N): I and J, ascending */
    int32_t    *n_active;       /* (max_tokens,2) */
    bool       *bad;            /* (max_tokens,2): a router logit was not finite */
    const monet__change *table;  /* what an edit does to P in this layer; NULL = nothing */
    uint16_t   *forced;         /* (max_tokens,2,N): I and J with the half-experts it forces */
    int32_t    *n_forced;       /* (max_tokens,2) */
    const uint16_t *list;       /* active or forced, and how many: what this layer goes by */
    const int32_t  *n_list;
    /* routing of the chunk first..end-1 */
    int         first, end;
    uint32_t   *slot;           /* (max_tokens,2) first slot of a token */
    size_t     *pair;           /* (max_tokens) start of its P */
    monet_real *p;              /* (max_pairs) entries of P that are not 0, row by row */
    uint16_t   *at;             /* (max_pairs) their columns: places in the list J */
    uint16_t   *row;            /* (max_slots) how many there are in the row of this i */
    const monet_real *routed;   /* gates that the routing belongs to; NULL = none */
    const monet__change *routed_table;
    monet_real *sums[2];        /* (max_slots) row sums, column sums of P */
    uint32_t   *start[2];       /* (N+1) half-expert -> its entries in users */
    uint32_t   *users[2];       /* (max_slots,2) token, slot; by half-expert, then by token */
    monet_real *a[2], *s[2];    /* (max_slots,m) (max_slots,n_rows) */
    monet_real *scratch;        /* (tasks,2*H*N+N) */
    /* the current layer */
    const monet__experts *w;
    const monet__input   *in;
    monet_real           *y;    /* (max_tokens,y_stride) */
#ifndef MONET_NO_TRAINING
    bool        trains;         /* set before the layout: what follows is wanted */
    bool        kept;           /* a and s of all tokens are still what forward made them */
    monet_real *ds[2], *da[2], *dsums[2];         /* as s, a, sums */
    monet_real *dgates;                           /* as gates, of one router; added to */
    monet_real *du[2], *dbias[2], *dv[2], *db[2]; /* gradients of weights; NULL = frozen */
    monet_real *dx;                               /* as in->x; added to */
#endif
} monet__moe;

/* Lays the workspace out; the sizes must be set. `routers` gates are kept (capture), at least 1. */
static void monet__moe_layout(monet__moe *moe, monet__arena *arena, int n_tasks, int routers)
{
    uint64_t tokens = (uint64_t)moe->max_tokens, kept = tokens * (uint64_t)routers;
    uint64_t N = (uint64_t)moe->N, H = (uint64_t)moe->H;
    moe->gates = (monet_real *)monet__take(arena, kept * 2 * H * N, sizeof *moe->gates);
    moe->active = (uint16_t *)monet__take(arena, kept * 2 * N, sizeof *moe->active);
    moe->n_active = (int32_t *)monet__take(arena, kept * 2, sizeof *moe->n_active);
    moe->bad = (bool *)monet__take(arena, tokens * 2, sizeof *moe->bad);
    moe->slot = (uint32_t *)monet__take(arena, tokens * 2, sizeof *moe->slot);
    moe->pair = (size_t *)monet__take(arena, tokens, sizeof *moe->pair);
    moe->p = (monet_real *)monet__take(arena, moe->max_pairs, sizeof *moe->p);
    moe->at = (uint16_t *)monet__take(arena, moe->max_pairs, sizeof *moe->at);
    moe->row = (uint16_t *)monet__take(arena, moe->max_slots, sizeof *moe->row);
    for (int axis = 0; axis < 2; ++axis) {
        uint64_t slots = moe->max_slots;
        moe->sums[axis] = (monet_real *)monet__take(arena, slots, sizeof(monet_real));
        moe->start[axis] = (uint32_t *)monet__take(arena, N + 1, sizeof(uint32_t));
        moe->users[axis] = (uint32_t *)monet__take(arena, slots * 2, sizeof(uint32_t));
        moe->a[axis] = (monet_real *)monet__take(arena, slots * (uint64_t)moe->m,
                                                 sizeof(monet_real));
        moe->s[axis] = (monet_real *)monet__take(arena, slots * (uint64_t)moe->n_rows,
                                                 sizeof(monet_real));
    }
    moe->scratch = (monet_real *)monet__take(arena, (uint64_t)n_tasks * (2 * H * N + N),
                                             sizeof(monet_real));
#ifndef MONET_NO_TRAINING
    for (int axis = 0; axis < 2 && moe->trains; ++axis) {
        uint64_t slots = moe->max_slots, m = (uint64_t)moe->m, rows = (uint64_t)moe->n_rows;
        moe->da[axis] = (monet_real *)monet__take(arena, slots * m, sizeof(monet_real));
        moe->ds[axis] = (monet_real *)monet__take(arena, slots * rows, sizeof(monet_real));
        moe->dsums[axis] = (monet_real *)monet__take(arena, slots, sizeof(monet_real));
    }
    if (moe->trains)
        moe->dgates = (monet_real *)monet__take(arena, tokens * 2 * H * N, sizeof(monet_real));
#endif
    moe->y = (monet_real *)monet__take(arena, tokens * moe->y_stride, sizeof(monet_real));
}

static void monet__moe_sizes(monet__moe *moe, const monet_arch *arch, int max_tokens)
{
    uint64_t N = (uint64_t)arch->moe_experts, tokens = (uint64_t)max_tokens;
    uint64_t usual = (uint64_t)arch->moe_heads * (uint64_t)arch->moe_topk * 5 / 4 + 8;
    fenv_t   own;
    if (usual > N) usual = N;
    moe->horizontal = arch->decompose == MONET_HORIZONTAL;
    moe->C = arch->dim;
    moe->H = arch->moe_heads;
    moe->N = arch->moe_experts;
    moe->m = moe->horizontal ? arch->moe_dim : arch->moe_dim / 2;
    moe->n_rows = arch->moe_dim;
    moe->width = moe->horizontal ? arch->dim : arch->dim / 2;
    moe->y_stride = (size_t)monet__round_up((uint64_t)moe->width, MONET__GROUP) *
                    (moe->horizontal ? 1 : 2);
    moe->max_tokens = max_tokens;
    moe->max_slots = tokens * usual > N ? tokens * usual : N;
    moe->max_pairs = tokens * usual * usual > N * N ? tokens * usual * usual : N * N;
    if (moe->max_slots > INT32_MAX) moe->max_slots = INT32_MAX; /* slots are 32-bit numbers */
    monet__mode_begin(&own);
    moe->sigma = (monet_real)monet__sigma(arch->moe_topk, arch->moe_experts);
    monet__mode_end(&own);
}

/* The lists of one token and side: half-experts with a gate above 0 in some head. */
static int monet__active_list(uint16_t *list, const monet_real *gates, int H, int N)
{
    int n = 0;
    for (int i = 0; i < N; ++i)
        for (int h = 0; h < H; ++h)
            if (gates[(size_t)h * (size_t)N + (size_t)i] > 0) {
                list[n++] = (uint16_t)i;
                break;
            }
    return n;
}

/* ---- experts: edits --------------------------------------------------------------------------
   An edit of the pair matrix is done where P is made: P[i,j] * factor[i,j] + amount[i,j]. So all
   that follows, one token or many, is the same code with and without an edit. Only a forced pair
   can lie outside I x J: its half-experts are added to the lists.                                */

/* Adds the half-experts of one axis that the table forces to the list of one token. */
static int32_t monet__forced_list(uint16_t *out, const uint16_t *list, int32_t n, int axis,
                                  const monet__change *table, int N)
{
    const uint16_t *forced = table->forced + axis * N;
    int32_t         total = 0, k = 0;
    for (int i = 0; i < N; ++i) {
        bool active = k < n && list[k] == i;
        k += active;
        if (active || forced[i]) out[total++] = (uint16_t)i;
    }
    return total;
}

static void monet__moe_force(void *context, int t, int task)
{
    monet__moe *moe = (monet__moe *)context;
    size_t      N = (size_t)moe->N;
    (void)task;
    for (size_t at = 2 * (size_t)t; at < 2 * (size_t)t + 2; ++at)
        moe->n_forced[at] = monet__forced_list(moe->forced + at * N, moe->active + at * N,
                                               moe->n_active[at], at % 2 != 0, moe->table,
                                               moe->N);
}

/* The lists that this layer goes by. */
static void monet__moe_lists(monet__moe *moe, monet__team *team, int n_tokens)
{
    bool forces = moe->table && moe->table->n_forced;
    if (forces) monet__each(team, n_tokens, monet__moe_force, moe);
    moe->list = forces ? moe->forced : moe->active;
    moe->n_list = forces ? moe->n_forced : moe->n_active;
}

/* Row i of P over the columns J. */
static void monet__edit_row(monet_real *row, const monet__change *table, int i, const uint16_t *J,
                            size_t n_j, size_t N)
{
    const float *factor = table->factor + (size_t)i * N;
    const float *amount = table->n_forced && table->forced[i] ? table->amount + (size_t)i * N
                                                              : NULL;
    for (size_t at = 0; at < n_j; ++at) {
        if (row[at] != 0) row[at] *= factor[J[at]];
        if (amount) row[at] += amount[J[at]];
    }
}

/* The same for one pair. */
static monet_real monet__edit_pair(const monet__change *table, int i, int j, size_t N,
                                   monet_real score)
{
    size_t     at = (size_t)i * N + (size_t)j;
    monet_real p = score * table->factor[at];
    return table->amount ? p + table->amount[at] : p;
}

/* How many tokens from `first` on fit the chunk; gives each its place for slots and P. */
static void monet__moe_chunk(monet__moe *moe, int first, int n_tokens)
{
    uint64_t slots[2] = {0, 0}, pairs = 0;
    int      t = first;
    for (; t < n_tokens; ++t) {
        const int32_t *n = moe->n_list + 2 * (size_t)t;
        uint64_t       p = (uint64_t)n[0] * (uint64_t)n[1];
        if (slots[0] + (uint64_t)n[0] > moe->max_slots ||
            slots[1] + (uint64_t)n[1] > moe->max_slots || pairs + p > moe->max_pairs)
            break;
        moe->pair[t] = (size_t)pairs;
        pairs += p;
        for (int axis = 0; axis < 2; ++axis) {
            moe->slot[2 * (size_t)t + (size_t)axis] = (uint32_t)slots[axis];
            slots[axis] += (uint64_t)n[axis];
        }
    }
    moe->first = first;
    moe->end = t;
}

/* P and its sums, for one token of the chunk. */
static void monet__moe_pairs(void *context, int item, int task)
{
    monet__moe       *moe = (monet__moe *)context;
    size_t            t = (size_t)(moe->first + item), N = (size_t)moe->N, H = (size_t)moe->H;
    size_t            n_i = (size_t)moe->n_list[2 * t], n_j = (size_t)moe->n_list[2 * t + 1];
    const uint16_t   *I = moe->list + 2 * t * N, *J = I + N;
    const monet_real *g1 = moe->gates + 2 * t * H * N, *g2 = g1 + H * N;
    monet_real       *near = moe->scratch + (size_t)task * (2 * H * N + N); /* (H,n_j) g2 of J */
    monet_real       *dense = near + H * n_j;  /* (n_j) a row of P */
    monet_real       *p = moe->p + moe->pair[t];
    uint16_t         *at = moe->at + moe->pair[t], *row = moe->row + moe->slot[2 * t];
    monet_real *r = moe->sums[0] + moe->slot[2 * t], *c = moe->sums[1] + moe->slot[2 * t + 1];
    for (size_t h = 0; h < H; ++h)
        for (size_t j = 0; j < n_j; ++j) near[h * n_j + j] = g2[h * N + J[j]];
    for (size_t j = 0; j < n_j; ++j) c[j] = 0;
    for (size_t i = 0; i < n_i; ++i) {
        size_t n = 0;
        for (size_t j = 0; j < n_j; ++j) dense[j] = 0;
        for (size_t h = 0; h < H; ++h) {
            monet_real g = g1[h * N + I[i]];
            if (g > 0)
                for (size_t j = 0; j < n_j; ++j) dense[j] += g * near[h * n_j + j];
        }
        if (moe->table) monet__edit_row(dense, moe->table, I[i], J, n_j, N);
        r[i] = monet__sum(dense, n_j);
        for (size_t j = 0; j < n_j; ++j) { /* what is 0 is written over */
            c[j] += dense[j];
            p[n] = dense[j];
            at[n] = (uint16_t)j;
            n += dense[j] != 0;
        }
        row[i] = (uint16_t)n;
        p += n, at += n;
    }
}

/* Inverts the lists of one axis: a counting sort of its slots by half-expert. */
static void monet__moe_users(void *context, int axis, int task)
{
    monet__moe *moe = (monet__moe *)context;
    uint32_t   *start = moe->start[axis], *users = moe->users[axis];
    size_t      N = (size_t)moe->N;
    (void)task;
    memset(start, 0, (N + 1) * sizeof *start);
    for (size_t t = (size_t)moe->first; t < (size_t)moe->end; ++t)
        for (int32_t k = 0; k < moe->n_list[2 * t + (size_t)axis]; ++k)
            ++start[moe->list[(2 * t + (size_t)axis) * N + (size_t)k] + 1];
    for (size_t i = 0; i < N; ++i) start[i + 1] += start[i];
    for (size_t t = (size_t)moe->end; t-- > (size_t)moe->first;) /* backwards: ends become starts */
        for (int32_t k = moe->n_list[2 * t + (size_t)axis]; k-- > 0;) {
            uint32_t at = --start[moe->list[(2 * t + (size_t)axis) * N + (size_t)k] + 1];
            users[2 * at] = (uint32_t)t;
            users[2 * at + 1] = moe->slot[2 * t + (size_t)axis] + (uint32_t)k;
        }
    memmove(start, start + 1, N * sizeof *start); /* start[i+1] had become the start of i */
    start[N] = 0;
    for (size_t t = (size_t)moe->first; t < (size_t)moe->end; ++t)
        start[N] += (uint32_t)moe->n_list[2 * t + (size_t)axis];
}

/* Lists and P of the chunk that begins at `first`, unless they are still in place: a router serves
   several layers.                                                                                */
static void monet__moe_route(monet__moe *moe, monet__team *team, int first, int n_tokens)
{
    bool same = moe->routed == moe->gates && moe->routed_table == moe->table;
    if (same && moe->first == 0 && moe->end == n_tokens) return;
    if (!same) monet__moe_lists(moe, team, n_tokens);
    monet__moe_chunk(moe, first, n_tokens);
    monet__each(team, moe->end - first, monet__moe_pairs, moe);
    monet__each(team, 2, monet__moe_users, moe);
    moe->routed = moe->gates;
    moe->routed_table = moe->table;
}

/* A job by half-experts: they go to the task in whose share of the slots they begin, so that tasks
   are even. Axes without these weights are left out.                                             */
typedef void (*monet__half_fn)(monet__moe *moe, int axis, int i, int task);

typedef struct monet__moe_job {
    monet__moe                *moe;
    int                        n_shares;
    monet__half_fn             fn;
    const monet_tensor *const *weights; /* (2) */
} monet__moe_job;

static void monet__moe_share(void *context, int item, int task)
{
    const monet__moe_job *job = (const monet__moe_job *)context;
    monet__moe           *moe = job->moe;
    uint64_t              total = 0, at = 0;
    for (int axis = 0; axis < 2; ++axis)
        if (job->weights[axis]) total += moe->start[axis][moe->N];
    for (int axis = 0; axis < 2; ++axis) {
        if (!job->weights[axis]) continue;
        for (int i = 0; i < moe->N; ++i) {
            uint64_t begin = at + moe->start[axis][i];
            if (moe->start[axis][i] < moe->start[axis][i + 1] &&
                begin * (uint64_t)job->n_shares / total == (uint64_t)item)
                job->fn(moe, axis, i, task);
        }
        at += moe->start[axis][moe->N];
    }
}

static void monet__moe_halves(monet__moe *moe, monet__team *team, monet__half_fn fn,
                              const monet_tensor *const *weights)
{
    monet__moe_job job;
    job.moe = moe;
    job.n_shares = monet__shares(team);
    job.fn = fn;
    job.weights = weights;
    monet__each(team, job.n_shares, monet__moe_share, &job);
}

/* U n of one half-expert and a block of its tokens. */
static void monet__half_products(const monet__moe *moe, const monet_tensor *u, int i,
                                 monet_real *const *out, const uint32_t *user, int n, int task)
{
    const monet__input *in = moe->in;
    const monet_real   *x[MONET__TOKENS];
    const uint16_t     *rounded[MONET__FAST_TOKENS];
    int                 m = moe->m;
    size_t              groups = monet__n_groups(u);
    const char         *panel = monet__panel(u, i);
    if (in->codes && in->n == 1 && monet__quantised(u->dtype)) {
        in->fast->dot_int8(out[0], panel, u->dtype, m, m, groups, in->codes);
        return;
    }
    if (in->rounded && in->n > 1 && n >= MONET__FAST_LEAST) {
        for (int t = 0; t < n; ++t) rounded[t] = monet__rounded(in, user[2 * t], groups, 2);
        monet__fast_dot(in->fast, out, panel, u->dtype, m, m, groups, rounded, 1, n,
                        in->scratch + (size_t)task * in->scratch_size);
        return;
    }
    for (int k, t = 0; t < n; t += k) {
        for (k = 0; k < MONET__TOKENS && t + k < n; ++k)
            x[k] = in->x + user[2 * (t + k)] * in->stride;
        moe->kernels->dot_panel(out + t, panel, u->dtype, m, m, groups, x, k);
    }
}

/* a = relu(U n + bias)^2 for one half-expert and all its tokens. */
static void monet__half_expert(monet__moe *moe, int axis, int i, int task)
{
    monet_real       *out[MONET__FAST_TOKENS];
    int               m = moe->m;
    const monet_real *bias = (const monet_real *)moe->w->bias[axis]->data + (size_t)i * (size_t)m;
    for (uint32_t k = moe->start[axis][i]; k < moe->start[axis][i + 1]; k += MONET__FAST_TOKENS) {
        const uint32_t *user = moe->users[axis] + 2 * (size_t)k;
        int             n = 0;
        for (; n < MONET__FAST_TOKENS && k + (uint32_t)n < moe->start[axis][i + 1]; ++n)
            out[n] = moe->a[axis] + user[2 * n + 1] * (size_t)m;
        monet__half_products(moe, moe->w->u[axis], i, out, user, n, task);
        for (int t = 0; t < n; ++t)
            for (int q = 0; q < m; ++q) {
                monet_real h = out[t][q] + bias[q];
                out[t][q] = h > 0 ? h * h : h - h; /* h - h: 0, but NaN stays NaN */
            }
    }
}

/* s: what the V rows of each half-expert are multiplied with, for one token of the chunk.
   HD: s_j = sum_i P[i,j] a_i.  VD: s_i = (r_i a1_i, sum_j P[i,j] a2_j),
                                    s_j = (sum_i P[i,j] a1_i, c_j a2_j).                          */
static void monet__moe_p(void *context, int item, int task)
{
    const monet__moe *moe = (const monet__moe *)context;
    size_t            t = (size_t)(moe->first + item), m = (size_t)moe->m;
    size_t            n_i = (size_t)moe->n_list[2 * t], n_j = (size_t)moe->n_list[2 * t + 1];
    size_t            slot_i = moe->slot[2 * t], slot_j = moe->slot[2 * t + 1];
    size_t            rows = (size_t)moe->n_rows;
    const monet_real *p = moe->p + moe->pair[t], *a1 = moe->a[0] + slot_i * m;
    const monet_real *a2 = moe->a[1] + slot_j * m;
    const uint16_t   *at = moe->at + moe->pair[t], *row = moe->row + slot_i;
    monet_real       *s_i = moe->s[0] + slot_i * rows, *s_j = moe->s[1] + slot_j * rows;
    (void)task;
    memset(s_j, 0, n_j * rows * sizeof *s_j);
    for (size_t i = 0; i < n_i; ++i, a1 += m, s_i += rows) {
        moe->kernels->spread(s_j, rows, at, p, row[i], a1, m);
        if (!moe->horizontal) {
            for (size_t q = 0; q < m; ++q)
                s_i[q] = moe->sums[0][slot_i + i] * a1[q], s_i[m + q] = 0;
            moe->kernels->gather(s_i + m, at, p, row[i], a2, m, m);
        }
        p += row[i], at += row[i];
    }
    for (size_t j = 0; !moe->horizontal && j < n_j; ++j)
        for (size_t q = 0; q < m; ++q)
            s_j[j * rows + m + q] = moe->sums[1][slot_j + j] * a2[j * m + q];
}

/* y[t] += sum[t] * B_i, elements at..stop-1 of B: for many tokens, as a panel of one row. */
static void monet__moe_add_bias(const monet__moe *moe, monet_real *const *y,
                                const monet_real *const *sum, const monet_tensor *b, size_t at,
                                size_t stop, int n)
{
    monet_real row[MONET__BLOCK_GROUPS * MONET__GROUP];
    size_t     groups = (stop - at + MONET__GROUP - 1) / MONET__GROUP;
    if (n == 1 || groups > MONET__BLOCK_GROUPS) {
        for (int t = 0; t < n; ++t)
            moe->kernels->axpy(y[t], *sum[t], b->data, b->dtype, at, stop - at);
        return;
    }
    memset(row, 0, sizeof row);
    moe->kernels->axpy(row, 1, b->data, b->dtype, at, stop - at);
    moe->kernels->sum_panel(y, row, MONET_F32, 1, 1, groups, sum, n);
}

/* Adds half-expert i to the columns of groups first..end-1, for all its tokens. */
static void monet__moe_add(monet__moe *moe, int axis, int i, int first, int end)
{
    const monet_tensor *v = moe->w->v[axis];
    const monet_real   *s[MONET__TOKENS], *sum[MONET__TOKENS];
    monet_real         *y[MONET__TOKENS];
    size_t              half = axis && !moe->horizontal, at = (size_t)first * MONET__GROUP;
    size_t              column = half * (moe->y_stride / 2) + at, rows = monet__panel_rows(v);
    size_t              width = (size_t)moe->width, stop = (size_t)end * MONET__GROUP;
    const char *panel = monet__panel(v, i) + (size_t)first * monet__group_bytes(v);
    if (stop > width) stop = width;
    for (uint32_t k = moe->start[axis][i]; k < moe->start[axis][i + 1]; k += MONET__TOKENS) {
        const uint32_t *user = moe->users[axis] + 2 * (size_t)k;
        int             n = 0;
        for (; n < MONET__TOKENS && k + (uint32_t)n < moe->start[axis][i + 1]; ++n) {
            s[n] = moe->s[axis] + user[2 * n + 1] * (size_t)moe->n_rows;
            sum[n] = moe->sums[axis] + user[2 * n + 1];
            y[n] = moe->y + user[2 * n] * moe->y_stride + column;
        }
        moe->kernels->sum_panel(y, panel, v->dtype, (int)rows, moe->n_rows, (size_t)(end - first),
                                s, n);
        monet__moe_add_bias(moe, y, sum, moe->w->b[axis], (size_t)i * width + at,
                            (size_t)i * width + stop, n);
    }
}

/* One task's share of the column groups, in blocks whose y stays in cache. */
static void monet__moe_v(void *context, int item, int task)
{
    const monet__moe_job *job = (const monet__moe_job *)context;
    monet__moe           *moe = job->moe;
    int                   n_axes = moe->horizontal ? 1 : 2;
    int                   groups = (int)(moe->y_stride / MONET__GROUP) / n_axes;
    int                   total = groups * n_axes, block = moe->end - moe->first > 16 ? 4 : total;
    int first = (int)((int64_t)total * item / job->n_shares);
    int end = (int)((int64_t)total * (item + 1) / job->n_shares);
    (void)task;
    while (first < end) {
        int axis = moe->horizontal ? 1 : first / groups, base = first / groups * groups;
        int stop = first + block < end ? first + block : end;
        if (stop > base + groups) stop = base + groups;
        for (int i = 0; i < moe->N; ++i)
            if (moe->start[axis][i] < moe->start[axis][i + 1])
                monet__moe_add(moe, axis, i, first - base, stop - base);
        first = stop;
    }
}

/* y (n_tokens, y_stride) of one layer. Where gates are new, `routed` must be NULL. */
static void monet__moe_forward(monet__moe *moe, monet__team *team, const monet__experts *w,
                               const monet__input *in)
{
    monet__moe_job job;
    memset(&job, 0, sizeof job);
    moe->kernels = team->kernels;
    moe->w = w;
    moe->in = in;
    job.moe = moe;
    job.n_shares = in->n > 1 ? monet__shares(team) : team->n;
    memset(moe->y, 0, (size_t)in->n * moe->y_stride * sizeof *moe->y);
    for (int t = 0; t < in->n; t = moe->end) {
        monet__moe_route(moe, team, t, in->n);
        monet__moe_halves(moe, team, monet__half_expert, w->u);
        monet__each(team, moe->end - t, monet__moe_p, moe);
        monet__each(team, job.n_shares, monet__moe_v, &job);
    }
}

/* y of one token, its two halves put together: (C). */
static void monet__moe_output(monet_real *out, const monet__moe *moe, int t)
{
    const monet_real *y = moe->y + (size_t)t * moe->y_stride;
    size_t            width = (size_t)moe->width, half = moe->y_stride / 2;
    memcpy(out, y, width * sizeof *out);
    if (!moe->horizontal) memcpy(out + width, y + half, width * sizeof *out);
}

#ifndef MONET_NO_TRAINING
/* ---- experts: backward -----------------------------------------------------------------------
   The same chunks, if there are several the forward pass of U and P once more, then from y back:
     V   ds = V_i dy, dV_i += s dy^T, dB_i += sum dy, dsum = B_i . dy      by half-expert
     P   da, dP, and from dP the gates: dg1[h,i] += sum_j dP[i,j] g2[h,j]  by token
     U   dz = 2 sqrt(a) da, dU_i += dz n^T, dbias += dz                    by half-expert
         dn += dz U_i                                                      by column
   A half-expert that no token uses gets no gradient and costs nothing. Weights are native.       */
static void monet__moe_dv(monet__moe *moe, int axis, int i, int task)
{
    const monet__kernels *kernels = moe->kernels;
    const monet_tensor   *v = moe->w->v[axis];
    const monet_real     *dy[MONET__TOKENS], *s[MONET__TOKENS], *sum[MONET__TOKENS];
    monet_real           *ds[MONET__TOKENS], *dsum[MONET__TOKENS];
    int                   rows = moe->n_rows;
    size_t column = axis && !moe->horizontal ? moe->y_stride / 2 : 0, size = monet__panel_size(v);
    size_t width = (size_t)moe->width, whole = width / MONET__GROUP, tail = width % MONET__GROUP;
    size_t groups = size / ((size_t)rows * MONET__GROUP), last = whole * MONET__GROUP;
    const monet_real *bias = (const monet_real *)moe->w->b[axis]->data + (size_t)i * width;
    monet_real       *db = moe->db[axis] ? moe->db[axis] + (size_t)i * width : NULL;
    (void)task;
    for (uint32_t k = moe->start[axis][i]; k < moe->start[axis][i + 1]; k += MONET__TOKENS) {
        const uint32_t *user = moe->users[axis] + 2 * (size_t)k;
        int             n = 0;
        for (; n < MONET__TOKENS && k + (uint32_t)n < moe->start[axis][i + 1]; ++n) {
            size_t slot = user[2 * n + 1];
            dy[n] = moe->y + user[2 * n] * moe->y_stride + column;
            s[n] = moe->s[axis] + slot * (size_t)rows;
            ds[n] = moe->ds[axis] + slot * (size_t)rows;
            sum[n] = moe->sums[axis] + slot;
            dsum[n] = moe->dsums[axis] + slot;
        }
        kernels->dot_panel(ds, (const monet_real *)v->data + (size_t)i * size, MONET_F32, rows,
                           rows, groups, dy, n);
        if (moe->dv[axis])
            kernels->outer_panel(moe->dv[axis] + (size_t)i * size, rows, rows, groups, s, dy, n);
        kernels->dot_panel(dsum, bias, MONET_F32, 1, 1, whole, dy, n); /* B_i: one row, but it is */
        if (db) kernels->outer_panel(db, 1, 1, whole, sum, dy, n);     /* not padded to groups    */
        for (int t = 0; tail && t < n; ++t) {
            *dsum[t] += kernels->dot(dy[t] + last, bias, MONET_F32, last, tail);
            if (db) kernels->axpy(db + last, *sum[t], dy[t], MONET_F32, last, tail);
        }
    }
}

/* One token: ds to da, and to the gradients of the gates. Only where P is not 0: a gate that is 0
   has no gradient.                                                                               */
static void monet__moe_dp(void *context, int item, int task)
{
    monet__moe       *moe = (monet__moe *)context;
    size_t            t = (size_t)(moe->first + item), N = (size_t)moe->N, H = (size_t)moe->H;
    size_t            n_i = (size_t)moe->n_list[2 * t], n_j = (size_t)moe->n_list[2 * t + 1];
    size_t            m = (size_t)moe->m, rows = (size_t)moe->n_rows;
    size_t            slot_i = moe->slot[2 * t], slot_j = moe->slot[2 * t + 1];
    const uint16_t   *I = moe->list + 2 * t * N, *J = I + N;
    const monet_real *g1 = moe->gates + 2 * t * H * N, *g2 = g1 + H * N;
    const monet_real *p = moe->p + moe->pair[t], *r = moe->sums[0] + slot_i;
    const uint16_t   *at = moe->at + moe->pair[t], *n_row = moe->row + slot_i;
    const monet__kernels *kernels = moe->kernels;
    const monet_real *a1 = moe->a[0] + slot_i * m, *a2 = moe->a[1] + slot_j * m;
    const monet_real *ds_i = moe->ds[0] + slot_i * rows, *ds_j = moe->ds[1] + slot_j * rows;
    monet_real       *da1 = moe->da[0] + slot_i * m, *da2 = moe->da[1] + slot_j * m;
    monet_real       *dr = moe->dsums[0] + slot_i, *dc = moe->dsums[1] + slot_j;
    monet_real       *dg1 = moe->dgates + 2 * t * H * N, *dg2 = dg1 + H * N;
    monet_real       *near = moe->scratch + (size_t)task * (2 * H * N + N); /* (H,n_j) g2 of J */
    monet_real       *dnear = near + H * n_j, *dp = dnear + H * n_j;
    bool              vd = !moe->horizontal;
    for (size_t h = 0; h < H; ++h)
        for (size_t j = 0; j < n_j; ++j) near[h * n_j + j] = g2[h * N + J[j]];
    memset(dnear, 0, H * n_j * sizeof *dnear);
    for (size_t j = 0; vd && j < n_j; ++j)
        for (size_t q = 0; q < m; ++q) {
            da2[j * m + q] = moe->sums[1][slot_j + j] * ds_j[j * rows + m + q];
            dc[j] += a2[j * m + q] * ds_j[j * rows + m + q];
        }
    for (size_t i = 0; i < n_i; ++i, a1 += m, da1 += m, ds_i += rows) {
        monet_real row = vd ? dr[i] : 0;
        size_t     n = n_row[i];
        for (size_t q = 0; q < m; ++q) {
            da1[q] = vd ? r[i] * ds_i[q] : 0;
            if (vd) row += a1[q] * ds_i[q];
        }
        for (size_t k = 0; k < n; ++k) dp[k] = row + dc[at[k]];
        kernels->dots(dp, at, n, a1, ds_j, rows, m);
        kernels->gather(da1, at, p, n, ds_j, rows, m);
        if (vd) {
            kernels->dots(dp, at, n, ds_i + m, a2, m, m);
            kernels->spread(da2, m, at, p, n, ds_i + m, m);
        }
        for (size_t h = 0; h < H; ++h) {
            monet_real g = g1[h * N + I[i]], sum = 0;
            if (g == 0) continue;
            for (size_t k = 0; k < n; ++k) {
                sum += dp[k] * near[h * n_j + at[k]];
                dnear[h * n_j + at[k]] += g * dp[k];
            }
            dg1[h * N + I[i]] += sum;
        }
        p += n, at += n;
    }
    for (size_t h = 0; h < H; ++h)
        for (size_t j = 0; j < n_j; ++j) dg2[h * N + J[j]] += dnear[h * n_j + j];
}

/* dz in place of da; dU and dbias of one half-expert. */
static void monet__moe_du(monet__moe *moe, int axis, int i, int task)
{
    const monet_real *x[MONET__TOKENS], *dz[MONET__TOKENS];
    size_t            size = monet__panel_size(moe->w->u[axis]), m = (size_t)moe->m;
    monet_real       *dbias = moe->dbias[axis] ? moe->dbias[axis] + (size_t)i * m : NULL;
    (void)task;
    for (uint32_t k = moe->start[axis][i]; k < moe->start[axis][i + 1]; k += MONET__TOKENS) {
        const uint32_t *user = moe->users[axis] + 2 * (size_t)k;
        int             n = 0;
        for (; n < MONET__TOKENS && k + (uint32_t)n < moe->start[axis][i + 1]; ++n) {
            size_t            slot = user[2 * n + 1] * m;
            monet_real       *da = moe->da[axis] + slot;
            const monet_real *a = moe->a[axis] + slot;
            for (size_t q = 0; q < m; ++q) {
                da[q] *= 2 * monet__sqrt(a[q]);
                if (dbias) dbias[q] += da[q];
            }
            x[n] = moe->in->x + user[2 * n] * moe->in->stride;
            dz[n] = da;
        }
        if (moe->du[axis])
            moe->kernels->outer_panel(moe->du[axis] + (size_t)i * size, (int)m, (int)m,
                                      size / (m * MONET__GROUP), dz, x, n);
    }
}

/* dn of the tokens of one half-expert, columns of groups first..end-1. */
static void monet__moe_dx_half(monet__moe *moe, int axis, int i, int first, int end)
{
    const monet_tensor *u = moe->w->u[axis];
    const monet_real   *dz[MONET__TOKENS];
    monet_real         *dx[MONET__TOKENS];
    size_t              m = (size_t)moe->m, at = (size_t)first * MONET__GROUP;
    const monet_real   *w = (const monet_real *)u->data + (size_t)i * monet__panel_size(u);
    for (uint32_t k = moe->start[axis][i]; k < moe->start[axis][i + 1]; k += MONET__TOKENS) {
        const uint32_t *user = moe->users[axis] + 2 * (size_t)k;
        int             n = 0;
        for (; n < MONET__TOKENS && k + (uint32_t)n < moe->start[axis][i + 1]; ++n) {
            dz[n] = moe->da[axis] + user[2 * n + 1] * m;
            dx[n] = moe->dx + user[2 * n] * moe->in->stride + at;
        }
        moe->kernels->sum_panel(dx, w + at * m, MONET_F32, (int)m, (int)m, (size_t)(end - first),
                                dz, n);
    }
}

/* One task's share of the columns, in blocks that stay in cache; half-experts ascending. */
static void monet__moe_dx(void *context, int item, int task)
{
    const monet__moe_job *job = (const monet__moe_job *)context;
    monet__moe           *moe = job->moe;
    int                   groups = (moe->C + MONET__GROUP - 1) / MONET__GROUP;
    int                   end = (int)((int64_t)groups * (item + 1) / job->n_shares);
    (void)task;
    for (int g = (int)((int64_t)groups * item / job->n_shares); g < end; g += 4)
        for (int axis = 0; axis < 2; ++axis)
            for (int i = 0; moe->w->u[axis] && i < moe->N; ++i)
                monet__moe_dx_half(moe, axis, i, g, g + 4 < end ? g + 4 : end);
}

/* moe->y holds dy (n_tokens, y_stride); adds to dx, dgates and the gradients of the weights. */
static void monet__moe_backward(monet__moe *moe, monet__team *team, const monet__experts *w,
                                const monet__input *in)
{
    monet__moe_job job;
    memset(&job, 0, sizeof job);
    job.moe = moe;
    job.n_shares = monet__shares(team);
    moe->kernels = team->kernels;
    moe->w = w;
    moe->in = in;
    for (int t = 0; t < in->n; t = moe->end) {
        int n;
        monet__moe_route(moe, team, t, in->n);
        n = moe->end - t;
        if (!moe->kept) {
            monet__moe_halves(moe, team, monet__half_expert, w->u);
            monet__each(team, n, monet__moe_p, moe);
        }
        monet__moe_halves(moe, team, monet__moe_dv, w->v);
        monet__each(team, n, monet__moe_dp, moe);
        monet__moe_halves(moe, team, monet__moe_du, w->u);
        monet__each(team, job.n_shares, monet__moe_dx, &job);
    }
}
#endif

/* ---- table --------------------------------------------------------------------------- >>table
   Every tensor of a model, in file order: sizes, pointers and files come from this list alone.
   Sizes are letters; u: rows of U, v: rows of V, W: outputs of one axis, 1: a vector. Horizontal
   experts have one U, and one V, on the second axis: their names are without the digit.          */
#define MONET__TABLE(X)                                                                            \
    X(EMBED,     "embed_tokens.weight",                  'V', 'C', MONET_PANELS, 'd', FIRST)       \
    X(NORM1,     "input_layernorm.weight",               'C', '1', MONET_ROWS,   '1', LAYER)       \
    X(Q,         "self_attn.q_proj.weight",              'A', 'C', MONET_PANELS, 'd', LAYER)       \
    X(K,         "self_attn.k_proj.weight",              'K', 'C', MONET_PANELS, 'd', LAYER)       \
    X(V,         "self_attn.v_proj.weight",              'K', 'C', MONET_PANELS, 'd', LAYER)       \
    X(O,         "self_attn.o_proj.weight",              'C', 'A', MONET_PANELS, 'd', LAYER)       \
    X(NORM2,     "post_attention_layernorm.weight",      'C', '1', MONET_ROWS,   '1', LAYER)       \
    X(ROUTER1,   "router.w1.weight",                     'Z', 'C', MONET_PANELS, 'd', ROUTER)      \
    X(ROUTER2,   "router.w2.weight",                     'Z', 'C', MONET_PANELS, 'd', ROUTER)      \
    X(MEAN1,     "router.norm1.running_mean",            'H', '1', MONET_ROWS,   '1', ROUTER)      \
    X(VAR1,      "router.norm1.running_var",             'H', '1', MONET_ROWS,   '1', ROUTER)      \
    X(MEAN2,     "router.norm2.running_mean",            'H', '1', MONET_ROWS,   '1', ROUTER)      \
    X(VAR2,      "router.norm2.running_var",             'H', '1', MONET_ROWS,   '1', ROUTER)      \
    X(U1,        "moe.u1.weight",                        'u', 'C', MONET_PANELS, 'm', EXPERT)      \
    X(BIAS1,     "moe.u1.bias",                          'u', '1', MONET_ROWS,   '1', EXPERT)      \
    X(V1,        "moe.v1.weight",                        'v', 'W', MONET_SUMS,   'M', VERTICAL)    \
    X(B1,        "moe.b1",                               'N', 'W', MONET_ROWS,   '1', VERTICAL)    \
    X(U2,        "moe.u2.weight",                        'u', 'C', MONET_PANELS, 'm', VERTICAL)    \
    X(BIAS2,     "moe.u2.bias",                          'u', '1', MONET_ROWS,   '1', VERTICAL)    \
    X(V2,        "moe.v2.weight",                        'v', 'W', MONET_SUMS,   'M', EXPERT)      \
    X(B2,        "moe.b2",                               'N', 'W', MONET_ROWS,   '1', EXPERT)      \
    X(NORM,      "norm.weight",                          'C', '1', MONET_ROWS,   '1', LAST)        \
    X(LM_HEAD,   "lm_head.weight",                       'V', 'C', MONET_PANELS, 'd', UNTIED)

enum { MONET__FIRST, MONET__LAYER, MONET__ROUTER, MONET__EXPERT, MONET__VERTICAL, MONET__LAST,
       MONET__UNTIED };
#define MONET__ID(id, name, rows, columns, layout, panel, where) MONET__T_##id,
enum { MONET__TABLE(MONET__ID) MONET__T_COUNT };
#undef MONET__ID

typedef struct monet__row {
    const char  *name;
    char         rows, columns;
    monet_layout layout;
    char         panel;
    int          where;
} monet__row;
#define MONET__ROW(id, name, rows, columns, layout, panel, where)                                  \
    {name, rows, columns, layout, panel, MONET__##where},
static const monet__row monet__table[] = {MONET__TABLE(MONET__ROW)};
#undef MONET__ROW

static int64_t monet__dim(const monet_arch *a, char letter)
{
    int64_t C = a->dim, H = a->moe_heads, N = a->moe_experts, M = a->moe_dim;
    int64_t side = a->decompose == MONET_VERTICAL ? 2 : 1; /* a VD half-expert has M/2 units */
    const struct { char letter; int64_t size; } dims[] = {
        {'V', a->vocab_size}, {'C', C}, {'A', C}, {'K', C / a->n_heads * a->n_kv_heads},
        {'Z', H * N}, {'H', H}, {'N', N}, {'M', M}, {'m', M / side}, {'u', N * (M / side)},
        {'v', N * M}, {'W', C / side}, {'d', MONET__ROWS}, {'1', 1}};
    size_t k = 0;
    while (dims[k].letter != letter) ++k;
    return dims[k].size;
}

/* Is tensor `id` in layer `layer` of such a model (layer -1: before, L: after the layers)? */
static bool monet__has_tensor(const monet_arch *a, int id, int layer)
{
    bool inside = layer >= 0 && layer < a->n_layers;
    switch (monet__table[id].where) {
    case MONET__FIRST: return layer < 0;
    case MONET__LAST: return layer == a->n_layers;
    case MONET__UNTIED: return layer == a->n_layers && !a->tie_embeddings;
    case MONET__ROUTER: return inside && layer % a->moe_groups == 0;
    case MONET__VERTICAL: return inside && a->decompose == MONET_VERTICAL;
    default: return inside;
    }
}

/* Goes on to the next tensor in file order, from layer = id = -1 on; false after the last one. */
static bool monet__next_tensor(const monet_arch *a, int *layer, int *id)
{
    do
        if (++*id == MONET__T_COUNT) *id = 0, ++*layer;
    while (*layer <= a->n_layers && !monet__has_tensor(a, *id, *layer));
    return *layer <= a->n_layers;
}

/* Copies a string and returns its end. */
static char *monet__append(char *at, const char *s)
{
    while ((*at = *s++) != 0) ++at;
    return at;
}

/* Vectors are f32, and what is read row by row is not quantised. */
static bool monet__dtype_fits(const monet_tensor *t, monet_dtype dtype)
{
    if (t->n_dims == 1) return dtype == MONET_F32;
    return monet_dtype_size(dtype) || (monet__quantised(dtype) && t->layout != MONET_ROWS);
}

static void monet__describe_tensor(monet_tensor *t, const monet_arch *a, int id, int layer,
                                   monet_dtype dtype)
{
    const monet__row *row = &monet__table[id];
    char              digits[22], *name = t->name;
    memset(t, 0, sizeof *t);
    if (layer >= 0 && layer < a->n_layers) {
        name = monet__append(name, "layers.");
        name = monet__append(name, monet__decimal(digits, (uint64_t)layer, false));
        name = monet__append(name, ".");
    }
    (void)monet__append(name, row->name);
    if (row->where == MONET__EXPERT && a->decompose == MONET_HORIZONTAL)
        (void)monet__append(name + 5, row->name + 6); /* moe.u1 is moe.u */
    t->n_dims = row->columns == '1' ? 1 : 2;
    t->layout = row->layout;
    t->dtype = monet__dtype_fits(t, dtype) ? dtype : t->n_dims == 1 ? MONET_F32 : MONET_BF16;
    t->source_dtype = monet__quantised(t->dtype) ? MONET_BF16 : t->dtype; /* an export's */
    t->panel = (int32_t)monet__dim(a, row->panel);
    t->shape[0] = monet__dim(a, row->rows);
    t->shape[1] = monet__dim(a, row->columns);
}

/* Size and offset of the tensor that begins at *at; false if its end does not fit. */
static bool monet__place_tensor(monet_tensor *t, uint64_t *at)
{
    t->offset = *at;
    if (!monet__tensor_size(t, &t->size) || !monet__add(at, *at, t->size) || *at > UINT64_MAX / 4)
        return false;
    *at = monet__round_up(*at, 64);
    return true;
}

/* Bytes of the data section when all is native; false if they do not fit. */
static bool monet__data_bytes(const monet_arch *a, uint64_t *bytes)
{
    monet_tensor t;
    *bytes = 0;
    for (int layer = -1, id = -1; monet__next_tensor(a, &layer, &id);) {
        monet__describe_tensor(&t, a, id, layer, MONET_F32);
        if (!monet__place_tensor(&t, bytes)) return false;
    }
    return true;
}

MONET_API monet_result monet_arch_tensors(const monet_arch *arch, monet_dtype dtype,
                                          monet_tensor *out, size_t capacity, size_t *count)
{
    monet_arch checked;
    uint64_t   total = 0;
    size_t     n = 0;
    if (!arch || !count || !monet__row_bytes(dtype) || (capacity && !out))
        return MONET_ERROR_ARGUMENT;
    checked = *arch;
    if (monet_arch_check(&checked, NULL) != MONET_OK) return MONET_ERROR_ARGUMENT;
    for (int layer = -1, id = -1; monet__next_tensor(&checked, &layer, &id); ++n)
        if (n < capacity) monet__describe_tensor(&out[n], &checked, id, layer, dtype);
    *count = n;
    if (n > capacity) return MONET_ERROR_CAPACITY;
    for (; n--; ++out)
        if (!monet__place_tensor(out, &total)) return MONET_ERROR_ARGUMENT;
    return MONET_OK;
}

static size_t monet__count_tensors(const monet_arch *arch)
{
    size_t count = 0;
    (void)monet_arch_tensors(arch, MONET_F32, NULL, 0, &count);
    return count;
}

/* In which way a float is out of its range. */
static const char *monet__off(float x, float most)
{
    return x != x ? "NaN" : x < 0 ? "negative" : x > most ? "too large" : "too small";
}

MONET_API monet_result monet_arch_check(monet_arch *arch, monet_error *err)
{
    monet_arch *a = arch;
    int32_t     most = 1 << 26;
    MONET__NEED(ARGUMENT, a, "arch is NULL");
    if (!a->n_kv_heads) a->n_kv_heads = a->n_heads;
    if (!a->moe_groups) a->moe_groups = 1;
    if (a->rope_theta == 0) a->rope_theta = 10000.0f;
    if (a->norm_eps == 0) a->norm_eps = 1e-6f;
#define MONET__IN(field, least, most)                                                              \
    MONET__NEED(FORMAT, a->field >= (least) && a->field <= (most), #field " is %d, must be %d..%d",\
                a->field, (int)(least), (int)(most));
    MONET__IN(vocab_size, 1, 1 << 24) MONET__IN(dim, 2, 1 << 20) MONET__IN(n_layers, 1, 4096)
    MONET__IN(n_heads, 1, 65536) MONET__IN(n_kv_heads, 1, 65536)
    MONET__IN(max_seq_len, 1, 1 << 24) MONET__IN(moe_experts, 2, 65535)
    MONET__IN(moe_dim, 1, 65536) MONET__IN(moe_heads, 1, 65536) MONET__IN(moe_topk, 1, 65534)
    MONET__IN(moe_groups, 1, 4096) MONET__IN(decompose, 0, 1) MONET__IN(tie_embeddings, 0, 1)
#undef MONET__IN
    MONET__NEED(FORMAT, a->rope_theta >= 1.0f && a->rope_theta <= 1e12f,
                "rope_theta is %s, must be 1..1e12", monet__off(a->rope_theta, 1e12f));
    MONET__NEED(FORMAT, a->norm_eps >= 1e-12f && a->norm_eps <= 1.0f,
                "norm_eps is %s, must be 1e-12..1", monet__off(a->norm_eps, 1.0f));
    MONET__NEED(FORMAT, a->dim % a->n_heads == 0, "dim is %d, not a multiple of n_heads %d", a->dim,
                a->n_heads);
    MONET__NEED(FORMAT, a->dim / a->n_heads % 2 == 0,
                "size of a head is %d (dim %d / n_heads %d): rope needs an even one",
                a->dim / a->n_heads, a->dim, a->n_heads);
    MONET__NEED(FORMAT, a->n_heads % a->n_kv_heads == 0,
                "n_heads is %d, not a multiple of n_kv_heads %d", a->n_heads, a->n_kv_heads);
    MONET__NEED(FORMAT, a->moe_topk < a->moe_experts,
                "moe_topk is %d, must be less than moe_experts %d", a->moe_topk, a->moe_experts);
    MONET__NEED(FORMAT, a->decompose != MONET_VERTICAL || a->moe_dim % 2 == 0,
                "moe_dim is %d, vertical needs an even one", a->moe_dim);
    MONET__NEED(UNSUPPORTED, (int64_t)a->moe_experts * a->moe_dim <= most,
                "moe_experts %d * moe_dim %d: more than %d", a->moe_experts, a->moe_dim, most);
    MONET__NEED(UNSUPPORTED, (int64_t)a->moe_experts * a->moe_heads <= most,
                "moe_experts %d * moe_heads %d: more than %d", a->moe_experts, a->moe_heads, most);
    return MONET_OK;
}

/* ---- model object ---------------------------------------------------------------------------- */
typedef struct monet__layer {
    const monet_tensor *w[MONET__T_COUNT]; /* NULL where the layer has none */
    monet__experts      experts;
} monet__layer;

typedef struct monet__span { /* bytes of a section, within the file's memory */
    const uint8_t *data;
    uint64_t       size, count;
} monet__span;

enum { MONET__S_ARCH = 1, MONET__S_TENSORS, MONET__S_TOKENIZER, MONET__S_METADATA, MONET__S_DATA,
       MONET__S_STATE, MONET__S_MOMENTS, MONET__S_COUNT };

struct monet_model {
    monet_host      host;
    void           *arena;      /* the block that this struct lies in */
    uint64_t        arena_size;
    bool            has_weights, has_tokenizer;
    monet_arch      arch;
    monet_tensor   *tensors;
    size_t          n_tensors;
    monet__layer   *layers;
    const monet_tensor *embed, *norm, *lm_head;
    monet_metadata *metadata;
    size_t          n_metadata;
    monet_tokenizer tokenizer;
    monet__span     sections[MONET__S_COUNT];
    uint64_t        moments_hash;
    const uint8_t  *base;     /* the file's bytes ... */
    uint64_t        size;
    void           *block;    /* ... in this block of the host, or mapped, or borrowed */
    uint64_t        block_size;
    bool            mapped;
};

/* ---- file -------------------------------------------------------------------------------- >>file
   What the system does with files: POSIX, or what stdio can do instead.                          */
#ifndef MONET_NO_STDIO
static monet_result monet__io_fail(monet_error *err, const char *what, const char *path)
{
    return monet__fail(err, MONET_ERROR_IO, "%s: cannot %s: %s", path, what, strerror(errno));
}

#if MONET__POSIX
#if defined(__STRICT_ANSI__) && !defined(__cplusplus)
extern int fsync(int fd); /* -std=c99 hides it */
#endif
typedef int monet__file;
#define MONET__NO_FILE (-1)

static int monet__open(const char *path, int flags)
{
    int file;
#ifdef O_CLOEXEC
    flags |= O_CLOEXEC;
#endif
    do file = open(path, flags, 0666);
    while (file < 0 && errno == EINTR);
    return file;
}

static monet__file monet__file_create(const char *path)
{
    return monet__open(path, O_WRONLY | O_CREAT | O_EXCL);
}

static monet_result monet__file_open(const char *path, int *file, uint64_t *size, monet_error *err)
{
    struct stat info;
    *file = monet__open(path, O_RDONLY | O_NONBLOCK); /* a FIFO must not hang */
    if (*file < 0) return monet__io_fail(err, "open", path);
    if (fstat(*file, &info) || !S_ISREG(info.st_mode)) {
        (void)close(*file);
        return monet__fail(err, MONET_ERROR_IO, "%s: not a regular file", path);
    }
    *size = (uint64_t)info.st_size;
    return MONET_OK;
}

/* Reads or writes all of it: a call may do less, or be interrupted. One of the two is NULL. */
static bool monet__file_move(int file, void *in, const void *out, uint64_t size)
{
    for (uint64_t at = 0; at < size;) {
        size_t  part = size - at < 1u << 30 ? (size_t)(size - at) : 1u << 30;
        ssize_t n = in ? read(file, (char *)in + at, part)
                       : write(file, (const char *)out + at, part);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO; /* shorter than it was when opened */
        if (n <= 0) return false;
        at += (uint64_t)n;
    }
    return true;
}

static void *monet__file_map(int file, uint64_t size) /* NULL = cannot */
{
    void *p = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, file, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void monet__file_unmap(void *p, uint64_t size) { (void)munmap(p, (size_t)size); }
static bool monet__file_rewind(int file) { return lseek(file, 0, SEEK_SET) == 0; }

static bool monet__file_close(int file, bool sync)
{
    bool synced = true, closed;
    int  reason;
    if (sync)
        do synced = fsync(file) == 0;
        while (!synced && errno == EINTR); /* not a failure yet: nothing was dropped */
    reason = errno;
    closed = close(file) == 0 || errno == EINTR; /* then it is closed all the same */
    if (!synced) errno = reason;
    return synced && closed;
}

static bool monet__file_rename(const char *from, const char *to) { return !rename(from, to); }

static void monet__sync_folder(char *path) /* of this file; cuts the path */
{
    char *slash = strrchr(path, '/');
    int   fd;
    if (slash) slash[1] = 0;
    fd = monet__open(slash ? path : ".", O_RDONLY);
    if (fd < 0) return; /* some file systems have no folders to sync */
    (void)fsync(fd);
    (void)close(fd);
}

static int monet__process(void) { return (int)getpid(); }
#else
typedef FILE *monet__file;
#define MONET__NO_FILE NULL

static FILE *monet__file_create(const char *path)
{
    FILE *old = fopen(path, "rb");
    if (!old) return fopen(path, "wb");
    fclose(old);
    errno = EEXIST;
    return NULL;
}

static monet_result monet__file_open(const char *path, FILE **file, uint64_t *size,
                                     monet_error *err)
{
    long end = -1;
    *file = fopen(path, "rb");
    if (*file && !fseek(*file, 0, SEEK_END)) end = ftell(*file);
    *size = (uint64_t)end;
    if (end >= 0 && !fseek(*file, 0, SEEK_SET)) return MONET_OK;
    if (*file) fclose(*file);
    return monet__io_fail(err, "open", path);
}

static bool monet__file_move(FILE *file, void *in, const void *out, uint64_t size)
{
    return (in ? fread(in, 1, (size_t)size, file) : fwrite(out, 1, (size_t)size, file)) == size;
}

static bool monet__file_rename(const char *from, const char *to)
{
    return (remove(to), !rename(from, to)); /* not in one step on such a system */
}

static void *monet__file_map(FILE *file, uint64_t size) { return (void)file, (void)size, NULL; }
static void monet__file_unmap(void *p, uint64_t size) { (void)p, (void)size; }
static bool monet__file_close(FILE *file, bool sync) { return (void)sync, fclose(file) == 0; }
static bool monet__file_rewind(FILE *file) { return fseek(file, 0, SEEK_SET) == 0; }
static void monet__sync_folder(char *path) { (void)path; }
static int monet__process(void) { return 0; }
#endif
#endif

/* ---- load ----------------------------------------------------------------------------- >>load
   Order: size, magic, version, endianness, hash, counts against the bytes that are there, each
   entry against what the architecture says it must be. Only then memory is allocated.            */
enum {
    MONET__HEADER = 64, MONET__SECTION = 40, MONET__ENTRY = 128, /* bytes */
    MONET__ARCH = sizeof(monet_arch) / 4, /* fields of 4 bytes */
    MONET__HAS_QUANTISED = 1 /* features that a reader must know: q8 or q4 tensors */
};
static const uint8_t monet__magic[8] = {'M', 'O', 'N', 'E', 'T', '\r', '\n', 0x1a};

static monet_result monet__load_magic(const uint8_t *p, uint64_t size, monet_error *err)
{
    size_t   there = size < 8 ? (size_t)size : 8;
    uint64_t unknown;
    MONET__NEED(FORMAT, there < 5 || memcmp(p, monet__magic, 5) || !memcmp(p, monet__magic, there),
                "magic is damaged: was the file transferred as text?");
    MONET__NEED(FORMAT, size >= MONET__HEADER, "file is %U bytes, the header alone needs %d: not a "
                ".monet file, or cut short", size, MONET__HEADER);
    MONET__NEED(FORMAT, !memcmp(p, monet__magic, 8), "magic bytes: not a .monet file");
    MONET__NEED(UNSUPPORTED, monet__u32(p + 12) != 0x04030201u, "byte order is big-endian");
    MONET__NEED(FORMAT, monet__u32(p + 12) == 0x01020304u, "byte order tag is %U, expected %U",
                (uint64_t)monet__u32(p + 12), (uint64_t)0x01020304);
    MONET__NEED(VERSION, monet__u16(p + 8) == 1, "file format is version %d, this reads 1",
                (int)monet__u16(p + 8));
    MONET__NEED(FORMAT, monet__u64(p + 56) == monet__hash_of(p, 56), "header: hash does not match");
    MONET__NEED(FORMAT, monet__u64(p + 16) == size, "file is %U bytes, header says %U", size,
                monet__u64(p + 16));
    unknown = monet__u32(p + 24) & ~(uint32_t)MONET__HAS_QUANTISED;
    MONET__NEED(VERSION, !unknown, "file needs features %U that this version does not have",
                unknown);
    return MONET_OK;
}

/* On to the next multiple of 64. */
static monet_result monet__load_padding(const monet_model *model, uint64_t *at, monet_error *err)
{
    for (; *at % 64 && *at < model->size; ++*at)
        MONET__NEED(FORMAT, !model->base[*at], "padding at byte %U is not zero", *at);
    return MONET_OK;
}

/* One entry of the section table; *at is where the section must begin. */
static monet_result monet__load_section(monet_model *model, const uint8_t *entry, uint64_t *at,
                                        monet_error *err)
{
    uint64_t     kind = monet__u32(entry), offset = monet__u64(entry + 8), end;
    uint64_t     size = monet__u64(entry + 16), hash = monet__u64(entry + 24);
    monet__span *span = &model->sections[kind < MONET__S_COUNT ? kind : 0];
    bool         hashed = kind != MONET__S_DATA && kind != MONET__S_MOMENTS; /* now, not later */
    MONET__NEED(FORMAT, offset == *at && monet__add(&end, offset, size) && end <= model->size,
                "section %U: bytes %U + %U, expected to begin at %U and to end by %U", kind, offset,
                size, *at, model->size);
    *at += size;
    MONET__TRY(monet__load_padding(model, at, err));
    MONET__NEED(FORMAT, kind, "section kind is 0");
    MONET__NEED(FORMAT, !hashed || monet__hash_of(model->base + offset, (size_t)size) == hash,
                "section %U: hash does not match", kind);
    MONET__NEED(VERSION, kind < MONET__S_COUNT || !(entry[4] & 1),
                "section %U is needed and not known to this version", kind);
    if (kind >= MONET__S_COUNT) return MONET_OK;
    MONET__NEED(FORMAT, !span->data, "section %U: twice", kind);
    if (kind == MONET__S_MOMENTS) model->moments_hash = hash;
    span->data = model->base + offset;
    span->size = size;
    span->count = monet__u64(entry + 32);
    return MONET_OK;
}

static monet_result monet__load_sections(monet_model *model, monet_error *err)
{
    const uint8_t *table = model->base + MONET__HEADER;
    uint64_t       n = monet__u32(model->base + 32), at = MONET__HEADER + n * MONET__SECTION;
    MONET__NEED(FORMAT, n <= 64 && at <= model->size, "%U sections in a file of %U bytes", n,
                model->size);
    MONET__NEED(FORMAT, monet__hash_of(table, (size_t)n * MONET__SECTION) ==
                monet__u64(model->base + 40), "section table: hash does not match");
    MONET__TRY(monet__load_padding(model, &at, err));
    for (uint64_t k = 0; k < n; ++k)
        MONET__TRY(monet__load_section(model, table + k * MONET__SECTION, &at, err));
    MONET__NEED(FORMAT, at == model->size, "file is %U bytes, its sections end at %U", model->size,
                at);
    return MONET_OK;
}

static monet_result monet__load_arch(monet_model *model, monet_error *err)
{
    const monet__span *s = model->sections;
    const uint8_t     *p = s[MONET__S_ARCH].data;
    monet_arch        *a = &model->arch;
    const char        *zero;
    uint32_t           fields[MONET__ARCH];
    if (!p && s[MONET__S_TOKENIZER].data && !s[MONET__S_TENSORS].data && !s[MONET__S_DATA].data)
        return MONET_OK; /* a tokenizer alone */
    MONET__NEED(FORMAT, p, "no architecture section");
    MONET__NEED(FORMAT, s[MONET__S_ARCH].size == sizeof fields, "architecture section is %U bytes, "
                "expected %d", s[MONET__S_ARCH].size, (int)sizeof fields);
    for (int k = 0; k < MONET__ARCH; ++k) fields[k] = monet__u32(p + 4 * k);
    memcpy(a, fields, sizeof *a);
    zero = !a->n_kv_heads ? "n_kv_heads" : !a->moe_groups ? "moe_groups"
           : a->norm_eps == 0 ? "norm_eps" : a->rope_theta == 0 ? "rope_theta" : NULL;
    MONET__NEED(FORMAT, !zero, "architecture: %s is 0", zero); /* a file has no defaults */
    model->has_weights = true;
    return monet_arch_check(a, err);
}

/* Entry `index` of the directory against the tensor that the architecture expects there, which is
   *at bytes behind the start of the data.                                                        */
static monet_result monet__load_entry(monet_model *model, size_t index, uint64_t *at,
                                      monet_error *err)
{
    const uint8_t *e = model->sections[MONET__S_TENSORS].data + index * MONET__ENTRY;
    monet_tensor  *t = &model->tensors[index];
    uint64_t       dtype = monet__u32(e + 64), source = monet__u32(e + 68);
    uint64_t       n_dims = monet__u32(e + 72), rows = monet__u64(e + 80);
    uint64_t       columns = monet__u64(e + 88), offset = monet__u64(e + 96);
    uint64_t       size = monet__u64(e + 104);
    size_t         k = index;
    char           name[65];
    memcpy(name, e, 64);
    name[64] = 0;
    if (strcmp(name, t->name))
        for (k = 0; k < model->n_tensors && strcmp(name, model->tensors[k].name);) ++k;
    MONET__NEED(FORMAT, k == index, k < index ? "tensor %s: duplicate, expected %s"
                : k < model->n_tensors ? "tensor %s: out of order, %s is missing"
                : "tensor '%s': not part of this model, expected %s", name, t->name);
    MONET__NEED(FORMAT, !memcmp(e, t->name, 64), "tensor %s: bytes after its name", name);
    MONET__NEED(FORMAT, n_dims == (uint64_t)t->n_dims, "tensor %s: %U dimensions, expected %d",
                name, n_dims, t->n_dims);
    MONET__NEED(FORMAT, rows == (uint64_t)t->shape[0] && columns == (uint64_t)t->shape[1],
                "tensor %s: shape is (%U,%U), expected (%D,%D)", name, rows, columns, t->shape[0],
                t->shape[1]);
    MONET__NEED(UNSUPPORTED, dtype <= MONET_Q4 && source <= MONET_BF16, "tensor %s: dtype %U from "
                "%U, this version knows 0..%d from 0..%d", name, dtype, source, MONET_Q4,
                MONET_BF16);
    t->dtype = (monet_dtype)dtype;
    t->source_dtype = (monet_dtype)source;
    t->hash = monet__u64(e + 112);
    MONET__NEED(FORMAT, monet__dtype_fits(t, t->dtype), "tensor %s: dtype is %s, expected f32%s",
                name, monet_dtype_name(t->dtype), t->n_dims == 1 ? "" : ", f16 or bf16");
    MONET__NEED(FORMAT, monet__place_tensor(t, at) && offset == t->offset && size == t->size,
                "tensor %s: bytes %U + %U, expected %U + %U by its dtype", name, offset, size,
                t->offset, t->size);
    return MONET_OK;
}

static monet_result monet__load_tensors(monet_model *model, monet_error *err)
{
    const monet__span *data = &model->sections[MONET__S_DATA];
    monet_tensor      *t = model->tensors;
    uint64_t           total = 0, features = monet__u32(model->base + 24), needed = 0;
    for (size_t k = 0; k < model->n_tensors; ++k) {
        MONET__TRY(monet__load_entry(model, k, &total, err));
        if (monet__quantised(t[k].dtype)) needed = MONET__HAS_QUANTISED;
    }
    MONET__NEED(FORMAT, total == data->size, "data section is %U bytes, its tensors take %U",
                data->size, total);
    MONET__NEED(FORMAT, features == needed, "header says features %U, the dtypes of its tensors "
                "need %U", features, needed);
    for (size_t k = 0; k < model->n_tensors; ++k) t[k].data = data->data + t[k].offset;
    return MONET_OK;
}

static void monet__link_tensors(monet_model *model)
{
    const monet_tensor *t = model->tensors;
    int                 L = model->arch.n_layers;
    for (int layer = -1, id = -1; monet__next_tensor(&model->arch, &layer, &id); ++t)
        if (layer >= 0 && layer < L) model->layers[layer].w[id] = t;
        else if (id == MONET__T_EMBED) model->embed = model->lm_head = t;
        else if (id == MONET__T_NORM) model->norm = t;
        else model->lm_head = t;
    for (int layer = 0; layer < L; ++layer) {
        const monet_tensor *const *w = model->layers[layer].w;
        monet__experts            *e = &model->layers[layer].experts;
        e->u[0] = w[MONET__T_U1], e->u[1] = w[MONET__T_U2];
        e->bias[0] = w[MONET__T_BIAS1], e->bias[1] = w[MONET__T_BIAS2];
        e->v[0] = w[MONET__T_V1], e->v[1] = w[MONET__T_V2];
        e->b[0] = w[MONET__T_B1], e->b[1] = w[MONET__T_B2];
    }
}

/* BatchNorm statistics must be numbers, variances not negative: the router divides by them. */
static monet_result monet__load_statistics(const monet_model *model, monet_error *err)
{
    for (int l = 0; l < model->arch.n_layers; l += model->arch.moe_groups)
        for (int id = MONET__T_MEAN1; id <= MONET__T_VAR2; ++id) {
            const monet_tensor *t = model->layers[l].w[id];
            bool                var = id == MONET__T_VAR1 || id == MONET__T_VAR2;
            for (size_t h = 0; h < (size_t)t->shape[0]; ++h) {
                monet_real x = monet__get(t->data, MONET_F32, h);
                MONET__NEED(NUMERIC, x - x == 0 && (!var || x >= 0), "tensor %s: entry %U is %s",
                            t->name, (uint64_t)h, x - x == 0 ? "negative" : "not finite");
            }
        }
    return MONET_OK;
}

static monet_result monet__load_metadata(monet_model *model, monet_error *err)
{
    const monet__span *span = &model->sections[MONET__S_METADATA];
    uint64_t           at = 0, key, value, left;
    for (size_t k = 0; k < model->n_metadata; ++k, at += key + value + 10) {
        const uint8_t *p = span->data + at;
        left = span->size - at;
        MONET__NEED(FORMAT, left >= 8, "metadata: record %U of %U is cut off", (uint64_t)k,
                    span->count);
        key = monet__u32(p), value = monet__u32(p + 4);
        p += 8, left -= 8;
        MONET__NEED(FORMAT, key + value + 2 <= left && !p[key] && !p[key + 1 + value] &&
                    !memchr(p, 0, (size_t)key) && !memchr(p + key + 1, 0, (size_t)value),
                    "metadata: record %U: sizes %U and %U, %U bytes left", (uint64_t)k, key, value,
                    left);
        model->metadata[k].key = (const char *)p;
        model->metadata[k].value = (const char *)p + key + 1;
    }
    MONET__NEED(FORMAT, at == span->size, "metadata: %U bytes, its records take %U", span->size,
                at);
    return MONET_OK;
}

/* The object's memory, measured (model->n_tensors ... are known) or laid out. */
static uint64_t monet__model_layout(monet_model *model, char *base)
{
    uint64_t     n_layers = model->has_weights ? (uint64_t)model->arch.n_layers : 0;
    monet__arena arena = {base, sizeof *model, false};
    model->tensors = (monet_tensor *)monet__take(&arena, model->n_tensors, sizeof(monet_tensor));
    model->layers = (monet__layer *)monet__take(&arena, n_layers, sizeof(monet__layer));
    model->metadata = (monet_metadata *)monet__take(&arena, model->n_metadata,
                                                    sizeof(monet_metadata));
    if (model->has_tokenizer) /* its indexes */
        model->tokenizer.pairs = (monet__tok_pair *)monet__take(&arena, model->tokenizer.index_size,
                                                                1);
    return arena.overflow ? UINT64_MAX : arena.used;
}

/* Counts against bytes, before anything is allocated for them. */
static monet_result monet__load_counts(monet_model *model, monet_error *err)
{
    const monet__span *s = model->sections, *tokenizer = &s[MONET__S_TOKENIZER];
    const monet__span *tensors = &s[MONET__S_TENSORS], *metadata = &s[MONET__S_METADATA];
    uint64_t           n = model->has_weights ? monet__count_tensors(&model->arch) : 0;
    MONET__NEED(FORMAT, !s[MONET__S_STATE].data == !s[MONET__S_MOMENTS].data,
                "training state without section %d",
                s[MONET__S_STATE].data ? MONET__S_MOMENTS : MONET__S_STATE);
    MONET__NEED(FORMAT, tensors->count == n, "%U tensors, this architecture has %U", tensors->count,
                n);
    MONET__NEED(FORMAT, tensors->size == n * MONET__ENTRY, "tensor section is %U bytes, expected "
                "%U", tensors->size, n * MONET__ENTRY);
    MONET__NEED(FORMAT, !model->has_weights || s[MONET__S_DATA].data, "no data section");
    MONET__NEED(FORMAT, metadata->count <= metadata->size / 10, "metadata: %U records in %U bytes",
                metadata->count, metadata->size);
    model->n_tensors = (size_t)n;
    model->n_metadata = (size_t)metadata->count;
    model->has_tokenizer = tokenizer->data != NULL;
    if (!tokenizer->data) return MONET_OK;
    return monet__tok_open(&model->tokenizer, tokenizer->data, tokenizer->size, err);
}

/* Everything after the arena: tables are filled and checked. */
static monet_result monet__load_tables(monet_model *model, bool verify, monet_error *err)
{
    int32_t vocab_size = model->has_weights ? model->arch.vocab_size : INT32_MAX;
    size_t  n = 0;
    model->tokenizer.host = model->host;
    if (model->has_weights) {
        (void)monet_arch_tensors(&model->arch, MONET_F32, model->tensors, model->n_tensors, &n);
        MONET__TRY(monet__load_tensors(model, err));
        memset(model->layers, 0, (size_t)model->arch.n_layers * sizeof *model->layers);
        monet__link_tensors(model);
        MONET__TRY(monet__load_statistics(model, err));
    }
    MONET__TRY(monet__load_metadata(model, err));
    if (model->has_tokenizer) MONET__TRY(monet__tok_build(&model->tokenizer, vocab_size, err));
    return verify && model->has_weights ? monet_model_verify(model, err) : MONET_OK;
}

/* `draft` holds host, base, size and how the bytes were got; it is on the caller's stack. */
static monet_result monet__load(monet_model *draft, const monet_model_config *config,
                                monet_model **out, monet_error *err)
{
    monet_model *model;
    uint64_t     size, need = 0;
    monet_result result;
    MONET__TRY(monet__load_magic(draft->base, draft->size, err));
    MONET__TRY(monet__load_sections(draft, err));
    MONET__TRY(monet__load_arch(draft, err));
    MONET__TRY(monet__load_counts(draft, err));
    size = monet__model_layout(draft, NULL) + 64;
    MONET__NEED(MEMORY, monet__add(&need, size, draft->size +
                                   (draft->block && !draft->mapped ? 64 : 0)) &&
                (!config->max_bytes || need <= config->max_bytes),
                "model needs %U bytes, max_bytes is %U", need, config->max_bytes);
    draft->arena_size = size;
    draft->arena = monet__alloc(&draft->host, size);
    if (!draft->arena) return monet__no_memory(err, "model", size);
    model = (monet_model *)(void *)monet__align(draft->arena);
    *model = *draft;
    (void)monet__model_layout(model, (char *)model);
    result = monet__load_tables(model, config->verify, err);
    if (result == MONET_OK) *out = model;
    else monet__free(&draft->host, draft->arena, size);
    return result;
}

/* Common start of both loaders: arguments, config, what this build can do at all. */
static monet_result monet__load_begin(monet_model *draft, monet_model_config *full,
                                      const monet_model_config *config, const void *source,
                                      monet_model **out, monet_error *err)
{
    if (out) *out = NULL;
    memset(draft, 0, sizeof *draft);
    MONET__NEED(ARGUMENT, out && source, "load: path, data or out is NULL");
    MONET__NEED(UNSUPPORTED, !MONET__BIG_ENDIAN && sizeof(monet_real) == sizeof(float),
                "this build (big-endian, or MONET_REAL not float) loads no files");
    MONET__TRY(monet__config(full, sizeof *full, config, err));
    draft->host = full->host;
    return MONET_OK;
}

MONET_API monet_result monet_model_load_memory(const void *data, size_t size,
                                               const monet_model_config *config, monet_model **out,
                                               monet_error *err)
{
    monet_model        draft;
    monet_model_config full;
    uint64_t           off = (uintptr_t)data % 64;
    MONET__TRY(monet__load_begin(&draft, &full, config, data, out, err));
    MONET__NEED(ARGUMENT, !off, "data is not aligned to 64 bytes: address is %U more than a "
                "multiple", off);
    draft.base = (const uint8_t *)data;
    draft.size = size;
    return monet__load(&draft, &full, out, err);
}

static void monet__release_file(monet_model *model)
{
    if (!model->mapped) monet__free(&model->host, model->block, model->block_size);
#ifndef MONET_NO_STDIO
    else monet__file_unmap(model->block, model->block_size);
#endif
}

#ifndef MONET_NO_STDIO
/* The bytes of an open file: mapped, or read into memory. */
static monet_result monet__load_bytes(monet_model *draft, const monet_model_config *config,
                                      monet__file file, const char *path, monet_error *err)
{
    uint64_t size = draft->size, most = SIZE_MAX / 2;
    if (config->max_bytes && config->max_bytes < most) most = config->max_bytes;
    MONET__NEED(MEMORY, size <= most, "file is %U bytes, max_bytes is %U", size, most);
    if (!config->copy) draft->block = monet__file_map(file, size);
    draft->mapped = draft->block != NULL;
    draft->block_size = draft->mapped ? size : size + 64;
    if (!draft->mapped) draft->block = monet__alloc(&draft->host, size + 64);
    if (!draft->block) return monet__no_memory(err, "model file", size + 64);
    draft->base = (const uint8_t *)monet__align(draft->block); /* a page is aligned anyway */
    if (draft->mapped || monet__file_move(file, monet__align(draft->block), NULL, size))
        return MONET_OK;
    return monet__io_fail(err, "read", path);
}

/* Puts "path: " before a message that does not name the file. */
static void monet__name_file(monet_error *err, const char *path)
{
    monet_error inner;
    if (!err || !strncmp(err->message, path, strlen(path))) return;
    inner = *err;
    (void)monet__fail(err, inner.code, "%s: %s", path, inner.message);
}

MONET_API monet_result monet_model_load(const char *path, const monet_model_config *config,
                                        monet_model **out, monet_error *err)
{
    monet_model        draft;
    monet_model_config full;
    monet__file        file;
    monet_result       result;
    MONET__TRY(monet__load_begin(&draft, &full, config, path, out, err));
    MONET__TRY(monet__file_open(path, &file, &draft.size, err));
    result = monet__load_bytes(&draft, &full, file, path, err);
    (void)monet__file_close(file, false);
    if (result == MONET_OK) result = monet__load(&draft, &full, out, err);
    if (result == MONET_OK) return MONET_OK;
    monet__name_file(err, path);
    monet__release_file(&draft);
    return result;
}
#endif

/* ---- model: what it holds -------------------------------------------------------------------- */
MONET_API monet_result monet_model_verify(const monet_model *model, monet_error *err)
{
    const monet__span *moments;
    MONET__NEED(ARGUMENT, model, "model is NULL");
    for (size_t k = 0; k < model->n_tensors; ++k) {
        const monet_tensor *t = &model->tensors[k];
        const uint8_t      *p = (const uint8_t *)t->data + t->size;
        MONET__NEED(FORMAT, monet__hash_of(t->data, (size_t)t->size) == t->hash,
                    "tensor %s: hash does not match, its bytes are damaged", t->name);
        for (uint64_t pad = t->offset + t->size; pad % 64; ++pad, ++p)
            MONET__NEED(FORMAT, !*p, "tensor %s: padding is not zero", t->name);
    }
    moments = &model->sections[MONET__S_MOMENTS];
    MONET__NEED(FORMAT, !moments->data ||
                monet__hash_of(moments->data, (size_t)moments->size) == model->moments_hash,
                "section %d, the moments of training: hash does not match", MONET__S_MOMENTS);
    return MONET_OK;
}

MONET_API void monet_model_free(monet_model *model)
{
    monet_host host;
    if (!model) return;
    host = model->host;
    monet__release_file(model);
    monet__free(&host, model->arena, model->arena_size);
}

MONET_API const monet_arch *monet_model_arch(const monet_model *model)
{
    return model && model->has_weights ? &model->arch : NULL;
}

MONET_API const monet_tokenizer *monet_model_tokenizer(const monet_model *model)
{
    return model && model->has_tokenizer ? &model->tokenizer : NULL;
}

MONET_API size_t monet_model_tensor_count(const monet_model *m) { return m ? m->n_tensors : 0; }
MONET_API const monet_tensor *monet_model_tensor(const monet_model *model, size_t index)
{
    return index < monet_model_tensor_count(model) ? &model->tensors[index] : NULL;
}

MONET_API const monet_tensor *monet_model_find_tensor(const monet_model *model, const char *name)
{
    for (size_t k = 0; name && k < monet_model_tensor_count(model); ++k)
        if (!strcmp(model->tensors[k].name, name)) return &model->tensors[k];
    return NULL;
}

MONET_API size_t monet_model_metadata_count(const monet_model *m) { return m ? m->n_metadata : 0; }
MONET_API const char *monet_model_metadata_key(const monet_model *model, size_t index)
{
    return index < monet_model_metadata_count(model) ? model->metadata[index].key : NULL;
}

MONET_API const char *monet_model_metadata_value(const monet_model *model, size_t index)
{
    return index < monet_model_metadata_count(model) ? model->metadata[index].value : NULL;
}

MONET_API const char *monet_model_metadata(const monet_model *model, const char *key)
{
    for (size_t k = 0; key && k < monet_model_metadata_count(model); ++k)
        if (!strcmp(model->metadata[k].key, key)) return model->metadata[k].value;
    return NULL;
}

/* ---- sections of a file: measured while p is NULL, then written ------------------------------ */
typedef struct monet__sink {
    uint8_t *p;
    uint64_t n;
} monet__sink;

static void monet__emit(monet__sink *s, uint64_t value, int bytes)
{
    for (int k = 0; k < bytes; ++k, value >>= 8) {
        if (s->p) s->p[s->n] = (uint8_t)value;
        ++s->n;
    }
}

static void monet__emit_bytes(monet__sink *s, const void *data, size_t size)
{
    if (s->p && size) memcpy(s->p + s->n, data, size);
    s->n += size;
}

static void monet__emit_ints(monet__sink *s, const int32_t *values, int count)
{
    while (count--) monet__emit(s, (uint32_t)*values++, 4);
}

static void monet__emit_words(monet__sink *s, const uint64_t *words, int count)
{
    while (count--) monet__emit(s, *words++, 8);
}

static void monet__emit_arch(monet__sink *s, const monet_arch *a)
{
    int32_t fields[MONET__ARCH];
    memcpy(fields, a, sizeof fields);
    monet__emit_ints(s, fields, MONET__ARCH);
}

static void monet__emit_tensor(monet__sink *s, const monet_tensor *t)
{
    const uint64_t words[] = {(uint64_t)t->dtype | (uint64_t)t->source_dtype << 32,
                              (uint64_t)t->n_dims, (uint64_t)t->shape[0], (uint64_t)t->shape[1],
                              t->offset, t->size, t->hash, 0};
    monet__emit_bytes(s, t->name, 64); /* zeros behind it: monet__describe_tensor */
    monet__emit_words(s, words, 8);
}

static void monet__emit_tokenizer(monet__sink *s, const monet_tokenizer_data *t)
{
    uint32_t blob = 0;
    int32_t  head[] = {t->n_pieces, t->n_merges, t->n_eos, 0, t->unk_id, t->bos_id,
                       t->prefix_space, t->strip_space};
    for (int32_t k = 0; k < t->n_pieces; ++k) blob += (uint32_t)t->pieces[k].size;
    head[3] = (int32_t)blob;
    monet__emit_ints(s, head, 8);
    blob = 0;
    for (int32_t k = 0; k < t->n_pieces; ++k) {
        monet__emit(s, blob, 4);
        monet__emit(s, (uint64_t)t->pieces[k].size, 2);
        monet__emit(s, (uint64_t)t->pieces[k].type, 2);
        monet__emit(s, monet__bits(t->pieces[k].score), 4);
        blob += (uint32_t)t->pieces[k].size;
    }
    for (int32_t k = 0; k < t->n_merges; ++k) {
        const int32_t merge[3] = {t->merges[k].left, t->merges[k].right, t->merges[k].result};
        monet__emit_ints(s, merge, 3);
    }
    monet__emit_ints(s, t->eos_ids, t->n_eos);
    for (int32_t k = 0; k < t->n_pieces; ++k)
        monet__emit_bytes(s, t->pieces[k].bytes, (size_t)t->pieces[k].size);
}

static void monet__emit_metadata(monet__sink *s, const monet_metadata *m, size_t n)
{
    for (; n--; ++m) {
        monet__emit(s, strlen(m->key), 4);
        monet__emit(s, strlen(m->value), 4);
        monet__emit_bytes(s, m->key, strlen(m->key) + 1);
        monet__emit_bytes(s, m->value, strlen(m->value) + 1);
    }
}

/* What a file is made of. */
typedef struct monet__plan {
    size_t   n_tensors;
    uint64_t features;
    uint64_t begin[MONET__S_COUNT], end[MONET__S_COUNT]; /* of the sections that are there */
    uint64_t header_size; /* all sections but the data and the moments */
    uint64_t file_size;
} monet__plan;

static bool monet__plan_has(const monet_writer_config *c, const monet__span *raw, int kind)
{
    if (kind <= MONET__S_TENSORS || kind == MONET__S_DATA) return c->arch != NULL;
    return raw[kind].data || (kind == MONET__S_TOKENIZER && c->tokenizer) ||
           (kind == MONET__S_METADATA && c->n_metadata);
}

/* The header of a file, but for the entries of tensors, and for hashes: monet__seal_header. `raw`
   sections are copied as they are; data and moments come behind the header. The sink's memory is
   zero where nothing is written.                                                                 */
static void monet__emit_header(monet__plan *w, monet__sink *s, const monet_writer_config *c,
                               const monet__span *raw, uint64_t data_size)
{
    static const int order[] = {MONET__S_ARCH, MONET__S_TENSORS, MONET__S_TOKENIZER,
                                MONET__S_METADATA, MONET__S_STATE, MONET__S_DATA, MONET__S_MOMENTS};
    uint64_t         start[] = {1 | (uint64_t)0x01020304 << 32, 0, w->features, 0}; /* 1: version */
    monet__sink      table = {s->p, MONET__HEADER};
    for (int kind = 1; kind < MONET__S_COUNT; ++kind) start[3] += monet__plan_has(c, raw, kind);
    s->n = w->header_size = monet__round_up(MONET__HEADER + start[3] * MONET__SECTION, 64);
    for (const int *next = order; next < order + (MONET__S_COUNT - 1); ++next) {
        int      kind = *next;
        uint64_t needed = kind <= MONET__S_DATA; /* readers may skip what training adds */
        uint64_t entry[5] = {(uint64_t)kind | needed << 32, s->n, 0, 0, 1};
        if (!monet__plan_has(c, raw, kind)) continue;
        if (kind == MONET__S_TENSORS || kind == MONET__S_DATA) {
            entry[4] = w->n_tensors;
            s->n += kind == MONET__S_DATA ? data_size : w->n_tensors * MONET__ENTRY;
        } else if (kind == MONET__S_MOMENTS) {
            s->n += raw[kind].size;
        } else if (kind == MONET__S_ARCH) {
            monet__emit_arch(s, c->arch);
        } else {
            monet__emit_bytes(s, raw[kind].data, (size_t)raw[kind].size);
            if (kind == MONET__S_TOKENIZER && c->tokenizer) monet__emit_tokenizer(s, c->tokenizer);
            if (kind == MONET__S_METADATA) {
                entry[4] = raw[kind].count + c->n_metadata;
                monet__emit_metadata(s, c->metadata, c->n_metadata);
            }
        }
        w->begin[kind] = entry[1], w->end[kind] = s->n;
        entry[2] = s->n - entry[1];
        monet__emit_words(&table, entry, 5);
        s->n = monet__round_up(s->n, 64);
        if (kind != MONET__S_DATA && kind != MONET__S_MOMENTS) w->header_size = s->n;
    }
    start[1] = w->file_size = s->n;
    table.n = 0;
    monet__emit_bytes(&table, monet__magic, 8);
    monet__emit_words(&table, start, 4);
}

/* All hashes, known last. */
static void monet__seal_header(uint8_t *header, uint64_t moments_hash)
{
    const uint8_t *table = header + MONET__HEADER, *e = table;
    const uint8_t *end = table + monet__u32(header + 32) * MONET__SECTION;
    monet__sink    s = {header, 0};
    for (; e < end; e += MONET__SECTION) {
        uint64_t kind = monet__u32(e);
        s.n = (uint64_t)(e - header) + 24;
        monet__emit(&s, kind == MONET__S_DATA ? 0 : kind == MONET__S_MOMENTS ? moments_hash :
                    monet__hash_of(header + monet__u64(e + 8), (size_t)monet__u64(e + 16)), 8);
    }
    s.n = 40;
    monet__emit(&s, monet__hash_of(table, (size_t)(end - table)), 8);
    s.n = 56;
    monet__emit(&s, monet__hash_of(header, 56), 8);
}

#if !defined(MONET_NO_STDIO) || !defined(MONET_NO_TRAINING)
/* What a copy of a model is made of: the same sections, but no state of training. */
static void monet__model_content(const monet_model *model, monet_writer_config *c,
                                 monet__span *raw)
{
    memset(c, 0, sizeof *c);
    c->arch = model->has_weights ? &model->arch : NULL;
    c->tensors = model->tensors;
    c->n_tensors = model->n_tensors;
    memcpy(raw, model->sections, sizeof model->sections);
    memset(&raw[MONET__S_STATE], 0, sizeof raw[0]);
    memset(&raw[MONET__S_MOMENTS], 0, sizeof raw[0]);
}
#endif

/* What a caller gives to be written, copied with its architecture and checked. */
static monet_result monet__content(monet_writer_config *c, monet_arch *arch,
                                   const monet_writer_config *given, monet_error *err)
{
    const monet_tokenizer_data *t;
    MONET__TRY(monet__config(c, sizeof *c, given, err));
    if (c->arch) {
        *arch = *c->arch;
        c->arch = arch;
        MONET__TRY(monet_arch_check(arch, err));
    }
    for (size_t k = 0; k < c->n_metadata; ++k)
        MONET__NEED(ARGUMENT, c->metadata && c->metadata[k].key && c->metadata[k].value &&
                    strlen(c->metadata[k].key) <= INT32_MAX &&
                    strlen(c->metadata[k].value) <= INT32_MAX, "metadata %U: NULL or too long",
                    (uint64_t)k);
    t = c->tokenizer;
    if (!t) return MONET_OK;
    MONET__NEED(ARGUMENT, t->n_pieces >= 0 && t->n_merges >= 0 && t->n_eos >= 0 &&
                (t->pieces || !t->n_pieces) && (t->merges || !t->n_merges) &&
                (t->eos_ids || !t->n_eos), "tokenizer: a count below 0, or no array");
    for (int32_t k = 0; k < t->n_pieces; ++k) {
        const monet_piece *p = &t->pieces[k];
        MONET__NEED(ARGUMENT, p->bytes && p->size >= 1 && p->size <= 65535 && p->type >= 1 &&
                    p->type <= MONET_PIECE_BYTE, "tokenizer: piece %d has %d bytes and type %d", k,
                    p->size, p->type);
    }
    return MONET_OK;
}

/* ---- model: created -------------------------------------------------------------------------- */
/* Copies a tensor, from any dtype to the native one. */
static void monet__widen_tensor(const monet_tensor *to, void *data, const monet_tensor *from)
{
    monet_real group[MONET__GROUP];
    for (int64_t r = 0; r < monet__rows(from); ++r)
        for (size_t g = 0; g < monet__n_groups(from); ++g) {
            monet__group_read(from, from->data, r, g, group);
            (void)monet__group_write(to, data, r, g, group);
        }
}

/* Element `index` of a normal distribution (0, 0.02), by Box and Muller. */
static double monet__normal(uint64_t seed, uint64_t tensor, uint64_t index)
{
    double u = (double)(monet__random(seed, MONET__RANDOM_INIT, tensor, 2 * index) >> 11) + 0.5;
    double v = (double)(monet__random(seed, MONET__RANDOM_INIT, tensor, 2 * index + 1) >> 11);
    u *= 1.0 / 9007199254740992.0, v *= 1.0 / 9007199254740992.0; /* 2^-53 */
    return 0.02 * sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* Start of a training from nothing: matrices random, norms and variances 1, the rest 0. */
static void monet__init_tensor(const monet_tensor *t, void *data, int id, uint64_t seed,
                               uint64_t number)
{
    bool    one = id == MONET__T_NORM1 || id == MONET__T_NORM2 || id == MONET__T_NORM ||
                  id == MONET__T_VAR1 || id == MONET__T_VAR2;
    int64_t columns = monet__cols(t);
    if (t->layout == MONET_ROWS && !one) return;
    for (int64_t r = 0; r < monet__rows(t); ++r)
        for (int64_t c = 0; c < columns; ++c)
            monet__put(data, MONET_F32, monet_tensor_place(t, r, c), one ? 1 : (monet_real)
                       monet__normal(seed, number, (uint64_t)r * (uint64_t)columns + (uint64_t)c));
}

/* A model in memory, all weights native: copied from `from`, or random if it is NULL. A file is
   filled in and loaded. c->arch is complete.                                                     */
static monet_result monet__model_new(const monet_writer_config *c, const monet__span *raw,
                                     const monet_model_config *config, const monet_model *from,
                                     uint64_t seed, monet_model **out, monet_error *err)
{
    uint64_t     total;
    monet__plan  plan;
    monet__sink  sink = {NULL, 0};
    monet_model  draft;
    monet_result result;
    fenv_t       own;
    memset(&plan, 0, sizeof plan);
    memset(&draft, 0, sizeof draft);
    MONET__NEED(MEMORY, monet__data_bytes(c->arch, &total) && total <= SIZE_MAX / 4,
                "model does not fit the address space");
    plan.n_tensors = monet__count_tensors(c->arch);
    monet__emit_header(&plan, &sink, c, raw, total);
    draft.host = config->host;
    draft.size = plan.file_size;
    draft.block_size = plan.file_size + 64;
    draft.block = monet__alloc(&draft.host, draft.block_size);
    if (!draft.block) return monet__no_memory(err, "model", draft.block_size);
    sink.p = (uint8_t *)monet__align(draft.block);
    draft.base = sink.p;
    memset(sink.p, 0, (size_t)draft.size);
    monet__emit_header(&plan, &sink, c, raw, total);
    sink.n = plan.begin[MONET__S_TENSORS];
    total = 0;
    monet__mode_begin(&own);
    for (int layer = -1, id = -1, k = 0; monet__next_tensor(c->arch, &layer, &id); ++k) {
        monet_tensor t;
        uint8_t     *data = sink.p + plan.header_size + total;
        monet__describe_tensor(&t, c->arch, id, layer, MONET_F32);
        (void)monet__place_tensor(&t, &total);
        if (from) monet__widen_tensor(&t, data, &from->tensors[k]);
        else monet__init_tensor(&t, data, id, seed, (uint64_t)k);
        t.hash = monet__hash_of(data, (size_t)t.size);
        monet__emit_tensor(&sink, &t);
    }
    monet__mode_end(&own);
    monet__seal_header(sink.p, 0);
    result = monet__load(&draft, config, out, err);
    if (result != MONET_OK) monet__free(&draft.host, draft.block, draft.block_size);
    return result;
}

MONET_API monet_result monet_model_create(const monet_writer_config *content, uint64_t seed,
                                          const monet_model_config *config, monet_model **out,
                                          monet_error *err)
{
    monet_writer_config c;
    monet_model_config  full;
    monet_arch          arch;
    monet__span         raw[MONET__S_COUNT];
    if (out) *out = NULL;
    memset(raw, 0, sizeof raw);
    MONET__NEED(ARGUMENT, content && out, "create: content or out is NULL");
    MONET__TRY(monet__config(&full, sizeof full, config, err));
    MONET__TRY(monet__content(&c, &arch, content, err));
    MONET__NEED(ARGUMENT, c.arch && !c.tensors, "create: content->%s NULL",
                c.tensors ? "tensors is not" : "arch is");
    return monet__model_new(&c, raw, &full, NULL, seed, out, err);
}

/* ---- save ----------------------------------------------------------------------------- >>save
   A file is written as path.tmp.<pid>.<n> beside the target, synced, closed and renamed, and the
   folder is synced: at every moment the old file or the new one is there, whole. A failed fsync is
   never repeated: the system may have dropped the data, and the second call would succeed.       */
#ifndef MONET_NO_STDIO
/* Creates path.tmp.<pid>.<n>; temp has room for 40 characters more than the path. */
static monet_result monet__temp_open(monet__file *file, char *temp, const char *path,
                                     monet_error *err)
{
    char digits[22], *end = monet__append(temp, path);
    end = monet__append(end, ".tmp.");
    end = monet__append(end, monet__decimal(digits, (uint64_t)monet__process(), false));
    end = monet__append(end, ".");
    for (unsigned n = 0; n < 1000; ++n) {
        (void)monet__append(end, monet__decimal(digits, n, false));
        *file = monet__file_create(temp);
        if (*file != MONET__NO_FILE) return MONET_OK;
        if (errno != EEXIST) break;
    }
    return monet__io_fail(err, "create", temp);
}

/* Syncs, closes and renames it, or removes it. Cuts the path. */
static monet_result monet__temp_commit(monet__file file, char *temp, char *path, monet_error *err)
{
    if (!monet__file_close(file, true)) {
        (void)monet__io_fail(err, "sync", temp);
    } else if (monet__file_rename(temp, path)) {
        monet__sync_folder(path);
        return MONET_OK;
    } else {
        (void)monet__io_fail(err, "rename the new file to", path);
    }
    (void)remove(temp);
    return MONET_ERROR_IO;
}

/* A small file, whole in memory. */
static monet_result monet__save_bytes(const monet_host *host, const char *path, const void *data,
                                      uint64_t size, monet_error *err)
{
    size_t       n = strlen(path) + 40;
    char        *names = (char *)monet__alloc(host, 2 * (uint64_t)n);
    monet__file  file;
    monet_result result;
    if (!names) return monet__no_memory(err, path, 2 * (uint64_t)n);
    (void)monet__append(names + n, path);
    result = monet__temp_open(&file, names, path, err);
    if (result == MONET_OK && !monet__file_move(file, NULL, data, size)) {
        result = monet__io_fail(err, "write", names);
        (void)monet__file_close(file, false);
        (void)remove(names);
    } else if (result == MONET_OK) {
        result = monet__temp_commit(file, names, names + n, err);
    }
    monet__free(host, names, 2 * (uint64_t)n);
    return result;
}

/* Reads a file of at most `most` bytes into a new block of *size + 64 bytes. */
static monet_result monet__load_whole(const monet_host *host, const char *path, uint64_t most,
                                      void **block, uint64_t *size, monet_error *err)
{
    monet__file  file;
    monet_result result = MONET_OK;
    *block = NULL;
    MONET__TRY(monet__file_open(path, &file, size, err));
    if (*size > most)
        result = monet__fail(err, MONET_ERROR_FORMAT, "%s: file is %U bytes, more than %U", path,
                             *size, most);
    else if (!(*block = monet__alloc(host, *size + 64)))
        result = monet__no_memory(err, path, *size + 64);
    else if (!monet__file_move(file, *block, NULL, *size))
        result = monet__io_fail(err, "read", path);
    (void)monet__file_close(file, false);
    if (result != MONET_OK) monet__free(host, *block, *size + 64);
    return result;
}

struct monet_writer {
    monet_host    host;
    void         *arena;       /* the block that this struct lies in */
    uint64_t      arena_size;
    monet__file   file;
    char         *path, *temp;
    uint8_t      *header;      /* written last */
    monet__plan   plan;
    monet_tensor *tensors;
    size_t        current;     /* tensor */
    int64_t       row;         /* next row of the current tensor */
    char         *panel;       /* rows of one panel */
    uint64_t      panel_size;
    monet__hash   hash;        /* of the current tensor; behind the last one, of the moments */
    bool          done;        /* finished or failed */
};

/* Would the tokenizer in this header load? Opens and indexes it. */
static monet_result monet__writer_tokenizer(const monet_writer *w, monet_error *err)
{
    uint64_t        at = w->plan.begin[MONET__S_TOKENIZER], size;
    monet_tokenizer t;
    monet_result    result;
    void           *index;
    MONET__TRY(monet__tok_open(&t, w->header + at, w->plan.end[MONET__S_TOKENIZER] - at, err));
    size = t.index_size + 64;
    index = monet__alloc(&w->host, size);
    if (!index) return monet__no_memory(err, "tokenizer", size);
    t.pairs = (monet__tok_pair *)(void *)monet__align(index);
    result = monet__tok_build(&t, INT32_MAX, err);
    monet__free(&w->host, index, size);
    return result;
}

/* Our own description of the tensors, with the caller's dtypes: all else must be equal. */
static monet_result monet__writer_tensors(monet_writer *w, const monet_writer_config *c,
                                          uint64_t *total, monet_error *err)
{
    size_t n = 0;
    *total = 0;
    if (!c->arch) return MONET_OK;
    (void)monet_arch_tensors(c->arch, MONET_F32, w->tensors, w->plan.n_tensors, &n);
    for (size_t k = 0; k < n; ++k) {
        const monet_tensor *given = &c->tensors[k];
        monet_tensor       *t = &w->tensors[k];
        MONET__NEED(ARGUMENT, !memcmp(t->name, given->name, sizeof t->name) &&
                    t->layout == given->layout && t->panel == given->panel &&
                    t->n_dims == given->n_dims && !memcmp(t->shape, given->shape, sizeof t->shape),
                    "tensor %s: its description is not that of monet_arch_tensors", t->name);
        MONET__NEED(ARGUMENT, monet__dtype_fits(t, given->dtype) &&
                    monet_dtype_size(given->source_dtype),
                    "tensor %s: dtype %d from %d cannot be written", t->name, (int)given->dtype,
                    (int)given->source_dtype);
        t->dtype = given->dtype;
        t->source_dtype = given->source_dtype;
        if (monet__quantised(t->dtype)) w->plan.features = MONET__HAS_QUANTISED;
        MONET__NEED(ARGUMENT, monet__place_tensor(t, total), "tensors are larger than 2^62 bytes");
    }
    return MONET_OK;
}

/* One allocation: the writer, its tables, the header, room for one panel. Returns its size. */
static uint64_t monet__writer_layout(monet_writer *w, const char *path, char *base)
{
    monet__arena arena = {base, sizeof *w, false};
    w->tensors = (monet_tensor *)monet__take(&arena, w->plan.n_tensors, sizeof(monet_tensor));
    w->path = (char *)monet__take(&arena, strlen(path) + 1, 1);
    w->temp = (char *)monet__take(&arena, strlen(path) + 60, 1);
    w->panel = (char *)monet__take(&arena, w->panel_size, 1);
    w->header = (uint8_t *)monet__take(&arena, w->plan.header_size, 1);
    return arena.overflow ? 0 : arena.used + 64;
}

static monet_result monet__writer_new(const char *path, const monet_writer_config *c,
                                      const monet__span *raw, monet_writer **out,
                                      monet_error *err)
{
    monet_writer draft, *w;
    monet__sink  sink = {NULL, 0};
    uint64_t     total;
    monet_result result;
    memset(&draft, 0, sizeof draft);
    draft.host = c->host;
    draft.plan.n_tensors = c->arch ? c->n_tensors : 0;
    draft.file = MONET__NO_FILE;
    for (int id = 0; c->arch && id < MONET__T_COUNT; ++id) {
        monet_tensor t;
        monet__describe_tensor(&t, c->arch, id, 0, MONET_F32); /* no dtype takes more */
        if (monet__panel_bytes(&t) > draft.panel_size) draft.panel_size = monet__panel_bytes(&t);
    }
    monet__emit_header(&draft.plan, &sink, c, raw, 0);
    draft.arena_size = monet__writer_layout(&draft, path, NULL);
    draft.arena = monet__alloc(&draft.host, draft.arena_size);
    if (!draft.arena) return monet__no_memory(err, "writer", draft.arena_size);
    w = (monet_writer *)(void *)monet__align(draft.arena);
    *w = draft;
    (void)monet__writer_layout(w, path, (char *)w);
    (void)monet__append(w->path, path);
    memset(w->header, 0, (size_t)w->plan.header_size);
    monet__hash_begin(&w->hash);
    sink.p = w->header;
    result = monet__writer_tensors(w, c, &total, err);
    if (result == MONET_OK) monet__emit_header(&w->plan, &sink, c, raw, total);
    if (result == MONET_OK && c->tokenizer) result = monet__writer_tokenizer(w, err);
    if (result == MONET_OK) result = monet__temp_open(&w->file, w->temp, w->path, err);
    if (result == MONET_OK && !monet__file_move(w->file, NULL, w->header, w->plan.header_size))
        result = monet__io_fail(err, "write", w->temp);
    if (result == MONET_OK) *out = w;
    else monet_writer_free(w);
    return result;
}

MONET_API monet_result monet_writer_create(const char *path, const monet_writer_config *config,
                                           monet_writer **out, monet_error *err)
{
    monet_writer_config c;
    monet_arch          arch;
    monet__span         raw[MONET__S_COUNT];
    uint64_t            n;
    if (out) *out = NULL;
    memset(raw, 0, sizeof raw);
    MONET__NEED(ARGUMENT, path && out && config, "writer: path, config or out is NULL");
    MONET__NEED(UNSUPPORTED, sizeof(monet_real) == sizeof(float),
                "MONET_REAL is not float: no files");
    MONET__TRY(monet__content(&c, &arch, config, err));
    MONET__NEED(ARGUMENT, c.arch || c.tokenizer, "neither an architecture nor a tokenizer");
    n = c.arch ? monet__count_tensors(&arch) : 0;
    MONET__NEED(ARGUMENT, !c.arch || !memcmp(&arch, config->arch, sizeof arch),
                "arch has defaults left: monet_arch_check");
    MONET__NEED(ARGUMENT, !c.arch || (c.tensors && c.n_tensors == n), "%U tensors given, the model "
                "has %U", (uint64_t)c.n_tensors, n);
    MONET__NEED(ARGUMENT, !c.arch || !c.tokenizer || c.tokenizer->n_pieces <= arch.vocab_size,
                "tokenizer has %d pieces, vocab_size is %d", c.tokenizer->n_pieces,
                arch.vocab_size);
    return monet__writer_new(path, &c, raw, out, err);
}

/* One row into its place in the panel. False if its numbers are none that the dtype can hold. */
static bool monet__pack_row(const monet_tensor *t, char *panel, int64_t row, const float *x)
{
    size_t columns = (size_t)monet__cols(t), n;
    for (size_t g = 0; g < monet__n_groups(t); ++g, x += MONET__GROUP, columns -= n) {
        monet_real group[MONET__GROUP] = {0};
        n = columns < MONET__GROUP ? columns : MONET__GROUP;
        for (size_t k = 0; k < n; ++k) group[k] = (monet_real)x[k];
        if (!monet__group_write(t, panel, row % t->panel, g, group)) return false;
    }
    return true;
}

static bool monet__writer_put(monet_writer *w, const void *data, size_t size)
{
    monet__hash_add(&w->hash, data, size);
    return monet__file_move(w->file, NULL, data, size);
}

/* After the last row of a tensor: its entry, padding to 64 bytes, on to the next one. */
static bool monet__writer_next(monet_writer *w)
{
    static const char zeros[64] = {0};
    monet__sink       s = {w->header, w->plan.begin[MONET__S_TENSORS] + w->current * MONET__ENTRY};
    monet_tensor     *t = &w->tensors[w->current++];
    t->hash = monet__hash_end(&w->hash);
    monet__emit_tensor(&s, t);
    monet__hash_begin(&w->hash);
    w->row = 0;
    return monet__file_move(w->file, NULL, zeros, monet__round_up(t->size, 64) - t->size);
}

MONET_API monet_result monet_writer_rows(monet_writer *writer, const float *rows, int64_t count,
                                         monet_error *err)
{
    monet_writer       *w = writer;
    const monet_tensor *t;
    size_t              size;
    MONET__NEED(ARGUMENT, w && (rows || !count) && count >= 0, "writer: NULL, or count below 0");
    MONET__NEED(STATE, !w->done && (!count || w->current < w->plan.n_tensors),
                "writer: failed, finished or complete");
    if (!count) return MONET_OK;
    t = &w->tensors[w->current];
    size = monet__panel_bytes(t);
    MONET__NEED(ARGUMENT, count <= monet__rows(t) - w->row, "tensor %s: %D rows given, %D are "
                "missing", t->name, count, monet__rows(t) - w->row);
    w->done = true; /* until all went well */
    for (; count > 0; --count, rows += monet__cols(t)) {
        bool last = w->row + 1 == monet__rows(t);
        if (w->row % t->panel == 0) memset(w->panel, 0, size);
        MONET__NEED(NUMERIC, monet__pack_row(t, w->panel, w->row, rows), "tensor %s: row %D has a "
                    "number that is not finite, or too large for %s", t->name, w->row,
                    monet_dtype_name(t->dtype));
        ++w->row;
        if (((w->row % t->panel == 0 || last) && !monet__writer_put(w, w->panel, size)) ||
            (last && !monet__writer_next(w)))
            return monet__io_fail(err, "write", w->temp);
    }
    w->done = false;
    return MONET_OK;
}

MONET_API monet_result monet_writer_finish(monet_writer *writer, monet_error *err)
{
    monet_writer *w = writer;
    monet__file   file;
    MONET__NEED(ARGUMENT, w, "writer is NULL");
    MONET__NEED(STATE, !w->done && w->current == w->plan.n_tensors,
                "writer: failed, finished or incomplete: %U of %U tensors", (uint64_t)w->current,
                (uint64_t)w->plan.n_tensors);
    w->done = true;
    monet__seal_header(w->header, monet__hash_end(&w->hash));
    if (!monet__file_rewind(w->file) ||
        !monet__file_move(w->file, NULL, w->header, w->plan.header_size))
        return monet__io_fail(err, "write", w->temp);
    file = w->file;
    w->file = MONET__NO_FILE;
    return monet__temp_commit(file, w->temp, w->path, err);
}

MONET_API void monet_writer_free(monet_writer *writer)
{
    monet_host host;
    if (!writer) return;
    if (writer->file != MONET__NO_FILE) {
        (void)monet__file_close(writer->file, false);
        (void)remove(writer->temp);
    }
    host = writer->host;
    monet__free(&host, writer->arena, writer->arena_size);
}

/* A model, or with state and moments (NULL = none) a checkpoint of a training. */
static monet_result monet__write_model(const monet_model *model, const monet_host *host,
                                       const char *path, const monet__span *training,
                                       monet_error *err)
{
    monet_writer_config c;
    monet__span         raw[MONET__S_COUNT];
    monet_writer       *w;
    bool                ok = true;
    monet_result        result;
    monet__model_content(model, &c, raw);
    c.host = *host;
    if (training) raw[MONET__S_STATE] = training[0], raw[MONET__S_MOMENTS] = training[1];
    MONET__TRY(monet__writer_new(path, &c, raw, &w, err));
    for (size_t k = 0; ok && k < model->n_tensors; ++k)
        ok = monet__writer_put(w, model->tensors[k].data, (size_t)model->tensors[k].size) &&
             monet__writer_next(w);
    if (ok && training) ok = monet__writer_put(w, training[1].data, (size_t)training[1].size);
    result = ok ? monet_writer_finish(w, err) : monet__io_fail(err, "write", w->temp);
    monet_writer_free(w);
    return result;
}

MONET_API monet_result monet_model_save(const monet_model *model, const char *path,
                                        monet_error *err)
{
    MONET__NEED(ARGUMENT, model && path, "model or path is NULL");
    return monet__write_model(model, &model->host, path, NULL, err);
}
#endif

/* ---- session ----------------------------------------------------------------------- >>session */
typedef struct monet__candidate {
    monet_real logit;
    int32_t    token;
} monet__candidate;

struct monet_session {
    const monet_model *model;
    void              *arena;     /* the block that this struct lies in; NULL = the caller's */
    uint64_t           arena_size;
    monet_error        error;
    monet__team        team;
    int                S, B;      /* positions of the cache, tokens computed together */
    int                D, padded; /* size of a head, and padded to whole groups */
    int                block;     /* queries of a head computed together */
    monet_tensor       key_panel, value_panel; /* of one head: (S,D) */
    bool               capture, keeps, all_logits;
    monet_tap          tap;
    const monet_edit  *edit;         /* the caller's; NULL = none */
    uint64_t           edit_version; /* as the last eval found it */
    int                n_run;        /* layers that evals run ... */
    int                n_ran;        /* ... and that the last one did */
    int                length;       /* tokens in the cache */
    int                n_last;       /* tokens of the last eval, if it went well */
    int                n_logits;     /* rows of logits that are valid */
    int32_t           *seen;         /* (L) tokens that went through a layer: never more than
                                        through the one before it */
    int32_t           *tokens;       /* (S) */
    char              *keys, *values;/* (L,K) panels */
    monet_real        *cosine, *sine;/* (S,D/2) */
    monet_real        *x, *h;        /* (B,C) residual stream, and what is added to it */
    monet_real        *kept;         /* (1+4*L,B,C) see monet__site_data; NULL = not wanted */
    monet_real        *split;        /* (B,stride) input of a product */
    size_t             stride;
    monet__input       in;           /* the same, with what fast mode adds */
    monet_real        *q, *k, *v;    /* (B,C) (B,K*D) (B,K*D) */
    monet_real        *scores;       /* (tasks,block,row): a query, its output, its weights */
    size_t             row;
    monet_real        *logits;       /* (V), or (B,V) for all_logits */
    monet__candidate  *candidates;   /* (V) */
    monet__moe         moe;
    monet_real        *all_gates;    /* of all routers; those of the moe are a view */
    uint16_t          *all_active;
    int32_t           *all_n_active;
    /* the batch being computed */
    int                first, n, layer; /* position of its first token, its tokens */
    const monet_real  *weight;          /* of the rmsnorm */
    const monet_real  *norm_in;
    monet_real        *norm_out;
};

/* Lays the session out, or measures it. The sizes in *s must be set. */
static uint64_t monet__session_layout(monet_session *s, char *base)
{
    const monet_arch *a = &s->model->arch;
    uint64_t          B = (uint64_t)s->B, C = (uint64_t)a->dim, S = (uint64_t)s->S;
    uint64_t          tasks = (uint64_t)s->team.n, V = (uint64_t)a->vocab_size, cache;
    uint64_t          KD = (uint64_t)a->n_kv_heads * (uint64_t)s->D;
    uint64_t          size = sizeof(monet_real);
    int               routers = (a->n_layers + a->moe_groups - 1) / a->moe_groups;
    monet__arena      arena;
    arena.base = base;
    arena.used = sizeof *s;
    arena.overflow = false;
    cache = (uint64_t)a->n_layers * (uint64_t)a->n_kv_heads;
    s->tokens = (int32_t *)monet__take(&arena, S, sizeof(int32_t));
    s->seen = (int32_t *)monet__take(&arena, (uint64_t)a->n_layers, sizeof(int32_t));
    s->keys = (char *)monet__take(&arena, cache, s->key_panel.size);
    s->values = (char *)monet__take(&arena, cache, s->value_panel.size);
    s->cosine = (monet_real *)monet__take(&arena, S * (uint64_t)(s->D / 2), size);
    s->sine = (monet_real *)monet__take(&arena, S * (uint64_t)(s->D / 2), size);
    s->x = (monet_real *)monet__take(&arena, B * C, size);
    s->h = (monet_real *)monet__take(&arena, B * C, size);
    if (s->keeps)
        s->kept = (monet_real *)monet__take(&arena, 1 + 4 * (uint64_t)a->n_layers, B * C * size);
    s->split = (monet_real *)monet__take(&arena, B * s->stride, size);
    s->in.x = s->split;
    s->in.stride = s->stride;
    if (s->in.fast && s->in.fast->step) {
        s->in.rounded = (uint16_t *)monet__take(&arena, B * s->in.rounded_stride, 2);
        s->in.scratch = (char *)monet__take(&arena, tasks, s->in.scratch_size);
    }
    if (s->in.fast && s->in.fast->dot_int8)
        s->in.codes = (monet__codes *)monet__take(&arena, C / MONET__GROUP + 1,
                                                  sizeof(monet__codes));
    s->q = (monet_real *)monet__take(&arena, B * C, size);
    s->k = (monet_real *)monet__take(&arena, B * KD, size);
    s->v = (monet_real *)monet__take(&arena, B * KD, size);
    s->scores = (monet_real *)monet__take(&arena, tasks * (uint64_t)s->block,
                                          s->row * size);
    s->logits = (monet_real *)monet__take(&arena, s->all_logits ? B * V : V, size);
    s->candidates = (monet__candidate *)monet__take(&arena, V, sizeof(monet__candidate));
    monet__moe_layout(&s->moe, &arena, s->team.n, s->capture ? routers : 1);
    s->moe.forced = (uint16_t *)monet__take(&arena, B * 2 * (uint64_t)s->moe.N, 2);
    s->moe.n_forced = (int32_t *)monet__take(&arena, B * 2, sizeof(int32_t));
    s->all_gates = s->moe.gates;
    s->all_active = s->moe.active;
    s->all_n_active = s->moe.n_active;
    return arena.overflow || arena.used > SIZE_MAX / 2 ? UINT64_MAX : arena.used;
}

/* Keys or values of one head at S positions. */
static void monet__session_panel(monet_tensor *t, const monet_session *s, monet_layout layout,
                                 monet_dtype dtype)
{
    t->dtype = dtype;
    t->layout = layout;
    t->panel = s->S;
    t->n_dims = 2;
    t->shape[0] = s->S;
    t->shape[1] = s->D;
    (void)monet__tensor_size(t, &t->size); /* S and D are far from 2^32 */
}

/* Checks the config and sets all sizes of a session that does not exist yet. */
static monet_result monet__session_begin(monet_session *s, monet_session_config *full,
                                         const monet_model *model,
                                         const monet_session_config *config, monet_error *err)
{
    const monet_arch *a = &model->arch;
    const monet_host *host = &model->host;
    monet_result      result = monet__config(full, sizeof *full, config, err);
    if (result != MONET_OK) return result;
    if (!model->has_weights)
        return monet__fail(err, MONET_ERROR_STATE, "the model is a tokenizer alone, no weights");
    if (full->context < 0 || full->context > 1 << 24 || full->max_batch < 0)
        return monet__fail(err, MONET_ERROR_ARGUMENT, "context is %d, max_batch is %d: must be "
                           "0..%d and 0 or more", full->context, full->max_batch, 1 << 24);
    if (!monet_dtype_size(full->kv_dtype))
        return monet__fail(err, MONET_ERROR_ARGUMENT, "kv_dtype is %d", (int)full->kv_dtype);
    if (full->capture_activations && !full->capture_routing)
        return monet__fail(err, MONET_ERROR_ARGUMENT, "capture_activations needs capture_routing");
    if (full->mode != MONET_EXACT && full->mode != MONET_FAST)
        return monet__fail(err, MONET_ERROR_ARGUMENT, "mode is %d, must be 0 or 1",
                           (int)full->mode);
    if (full->host) host = full->host;
    if (host->n_threads < 0 || host->n_threads > 256)
        return monet__fail(err, MONET_ERROR_ARGUMENT, "n_threads is %d, must be 0..256",
                           host->n_threads);
    memset(s, 0, sizeof *s);
    s->model = model;
    s->team.host = *host;
    s->team.n = host->n_threads ? host->n_threads : 1;
    s->S = full->context ? full->context : a->max_seq_len;
    s->B = full->max_batch ? full->max_batch : 512;
    if (s->B > s->S) s->B = s->S;
    if ((int64_t)s->B * a->n_heads > INT32_MAX)
        return monet__fail(err, MONET_ERROR_ARGUMENT, "max_batch is %d: too much for %d heads",
                           s->B, a->n_heads);
    s->D = a->dim / a->n_heads;
    s->padded = (int)monet__round_up((uint64_t)s->D, MONET__GROUP);
    s->in = monet__input_of(NULL, 0, 0);
    s->row = (size_t)monet__round_up((uint64_t)s->S, MONET__LANES) + 2 * (size_t)s->padded;
    s->block = (1 << 20) / s->S; /* scores of a task take 4 MB, or one row */
    s->block = s->block < 1 ? 1 : s->block > MONET__TOKENS ? MONET__TOKENS : s->block;
    if (s->block > s->B) s->block = s->B;
    s->stride = (size_t)monet__round_up((uint64_t)a->dim, MONET__GROUP) + MONET__LANES;
    if (full->mode == MONET_FAST) {
        size_t groups = s->stride / MONET__GROUP;
        s->in.fast = monet__fast_for(full->kernels);
        s->in.rounded_stride = (3 * groups + 1) * MONET__GROUP;
        s->in.scratch_size = monet__fast_scratch(groups);
    }
    monet__session_panel(&s->key_panel, s, MONET_PANELS, full->kv_dtype);
    monet__session_panel(&s->value_panel, s, MONET_SUMS, full->kv_dtype);
    s->capture = full->capture_routing;
    s->keeps = full->capture_activations;
    s->n_run = a->n_layers;
    s->all_logits = full->all_logits;
    monet__moe_sizes(&s->moe, a, s->B);
    return MONET_OK;
}

MONET_API monet_result monet_session_size(const monet_model *model,
                                          const monet_session_config *config, size_t *size)
{
    monet_session        draft;
    monet_session_config full;
    monet_result         result;
    uint64_t             bytes;
    if (!model || !size) return MONET_ERROR_ARGUMENT;
    result = monet__session_begin(&draft, &full, model, config, NULL);
    if (result != MONET_OK) return result;
    bytes = monet__session_layout(&draft, NULL);
    if (bytes == UINT64_MAX) return MONET_ERROR_MEMORY;
    *size = (size_t)bytes + 64; /* an allocator need not align to 64 */
    return MONET_OK;
}

MONET_API monet_result monet_session_create(const monet_model *model,
                                            const monet_session_config *config,
                                            monet_session **out, monet_error *err)
{
    monet_session        draft, *s;
    monet_session_config full;
    monet_result         result;
    uint64_t             size;
    char                *block;
    if (out) *out = NULL;
    if (!model || !out)
        return monet__fail(err, MONET_ERROR_ARGUMENT, "session: model or out is NULL");
    result = monet__session_begin(&draft, &full, model, config, err);
    if (result != MONET_OK) return result;
    size = monet__session_layout(&draft, NULL);
    if (size == UINT64_MAX)
        return monet__fail(err, MONET_ERROR_MEMORY, "session of %d positions and %d tokens a batch "
                           "does not fit the address space", draft.S, draft.B);
    if (full.memory && (full.memory_size < size || (uintptr_t)full.memory % 64))
        return monet__fail(err, (uintptr_t)full.memory % 64 ? MONET_ERROR_ARGUMENT
                           : MONET_ERROR_MEMORY, "session memory: %U bytes at %U past a multiple "
                           "of 64, needs %U at 0", (uint64_t)full.memory_size,
                           (uint64_t)((uintptr_t)full.memory % 64), size);
    draft.arena_size = size + 64;
    if (!full.memory) draft.arena = monet__alloc(&draft.team.host, size + 64);
    if (!full.memory && !draft.arena) return monet__no_memory(err, "session", size + 64);
    block = full.memory ? (char *)full.memory : monet__align(draft.arena);
    s = (monet_session *)(void *)block;
    (void)monet__session_layout(&draft, block);
    memcpy(block, &draft, sizeof draft);
    if (!monet__team_start(&s->team, &draft.team.host, monet__kernels_for(full.kernels))) {
        monet__free(&draft.team.host, draft.arena, size + 64);
        return monet__fail(err, MONET_ERROR_MEMORY, "cannot start %d threads",
                           draft.team.n);
    }
    monet__rope_table(s->cosine, s->sine, s->S, s->D, (double)model->arch.rope_theta);
    memset(s->seen, 0, (size_t)model->arch.n_layers * sizeof *s->seen);
    *out = s;
    return MONET_OK;
}

MONET_API void monet_session_free(monet_session *session)
{
    monet_host host;
    if (!session) return;
    monet__team_stop(&session->team);
    host = session->team.host;
    monet__free(&host, session->arena, session->arena_size);
}

MONET_API const monet_error *monet_session_error(const monet_session *session)
{
    static const monet_error none = {"session is NULL", MONET_ERROR_ARGUMENT};
    return session ? &session->error : &none;
}

/* ---- eval ----------------------------------------------------------------------------- >>eval
   One batch of tokens through all layers. Each step is a function over tokens, heads or rows.    */
static bool monet__tap_wants(const monet_tap *tap, monet_site site, int layer)
{
    return tap->fn && (!tap->sites || tap->sites >> site & 1) &&
           (!tap->n_layers || (layer >= tap->first_layer &&
                               layer - tap->first_layer < tap->n_layers));
}

/* What capture_activations keeps of one site: (B,C). */
static monet_real *monet__site_data(const monet_session *s, monet_site site, int layer)
{
    size_t at = site == MONET_SITE_EMBEDDING ? 0 : 4 * (size_t)layer + (size_t)site;
    return s->kept + at * (size_t)s->B * (size_t)s->model->arch.dim;
}

static bool monet__tap(monet_session *s, monet_site site, int layer, monet_real *data)
{
    size_t size = (size_t)s->n * (size_t)s->model->arch.dim * sizeof *data;
    if (monet__tap_wants(&s->tap, site, layer) &&
        !s->tap.fn(s->tap.user, site, layer, s->first, s->n, data)) return false;
    if (s->kept && site != MONET_SITE_FINAL_NORM)
        memcpy(monet__site_data(s, site, layer), data, size);
    return true;
}

/* One row of a MONET_PANELS tensor in natural order. */
static void monet__embed(monet_real *out, const monet_tensor *w, int64_t row)
{
    size_t     columns = (size_t)w->shape[1];
    monet_real group[MONET__GROUP];
    for (size_t c = 0; c < columns; ++c) {
        if (c % MONET__GROUP == 0) monet__group_read(w, w->data, row, c / MONET__GROUP, group);
        out[c] = group[c % MONET__GROUP];
    }
}

static void monet__step_embed(void *context, int t, int task)
{
    monet_session *s = (monet_session *)context;
    size_t         C = (size_t)s->model->arch.dim;
    (void)task;
    monet__embed(s->x + (size_t)t * C, s->model->embed, s->tokens[s->first + t]);
}

static void monet__step_norm(void *context, int t, int task)
{
    monet_session *s = (monet_session *)context;
    int            C = s->model->arch.dim;
    (void)task;
    monet__rmsnorm_forward(s->norm_out + (size_t)t * (size_t)C, s->norm_in + (size_t)t * (size_t)C,
                           s->weight, C, (monet_real)s->model->arch.norm_eps);
}

/* Input t of the next products, from natural order. */
static void monet__split_token(monet_session *s, int t, const monet_real *x)
{
    monet__input *in = &s->in;
    size_t        C = (size_t)s->model->arch.dim, groups = (C + MONET__GROUP - 1) / MONET__GROUP;
    monet_real   *split = s->split + (size_t)t * s->stride;
    monet__to_split(split, x, C);
    if (in->n == 1 && in->codes) in->fast->quantize(in->codes, split, groups);
    if (in->n > 1 && in->rounded)
        in->fast->round(in->rounded + (size_t)t * in->rounded_stride +
                        (size_t)(3 - in->parts) * groups * MONET__GROUP, split, groups, in->parts);
}

static void monet__step_split(void *context, int t, int task)
{
    monet_session *s = (monet_session *)context;
    size_t         C = (size_t)s->model->arch.dim;
    (void)task;
    monet__split_token(s, t, s->h + (size_t)t * C);
}

static void monet__step_add(void *context, int t, int task)
{
    monet_session *s = (monet_session *)context;
    size_t         C = (size_t)s->model->arch.dim, at = (size_t)t * C;
    (void)task;
    for (size_t c = 0; c < C; ++c) s->x[at + c] += s->h[at + c];
}

static void monet__step_moe_out(void *context, int t, int task)
{
    monet_session *s = (monet_session *)context;
    (void)task;
    monet__moe_output(s->h + (size_t)t * (size_t)s->model->arch.dim, &s->moe, t);
}

/* Panel of a head of the current layer. */
static char *monet__kv_panel(const monet_session *s, char *base, const monet_tensor *t, int head)
{
    return base + ((size_t)s->layer * (size_t)s->model->arch.n_kv_heads + (size_t)head) *
                      (size_t)t->size;
}

static void monet__kv_put(const monet_session *s, char *base, const monet_tensor *t, int head,
                          int position, const monet_real *row)
{
    monet_real group[MONET__GROUP];
    size_t     D = (size_t)s->D;
    for (size_t d = 0; d < D; d += MONET__GROUP) {
        size_t n = D - d < MONET__GROUP ? D - d : MONET__GROUP;
        memset(group, 0, sizeof group);
        memcpy(group, row + d, n * sizeof *row);
        (void)monet__group_write(t, monet__kv_panel(s, base, t, head), position, d / MONET__GROUP,
                                 group);
    }
}

/* Keys (turned by rope) and values of one token go into the cache. */
static void monet__step_cache(void *context, int t, int task)
{
    monet_session *s = (monet_session *)context;
    int            K = s->model->arch.n_kv_heads, D = s->D, position = s->first + t;
    size_t         angle = (size_t)position * (size_t)(D / 2);
    (void)task;
    for (int head = 0; head < K; ++head) {
        size_t      from = ((size_t)t * (size_t)K + (size_t)head) * (size_t)D;
        monet_real *k = s->k + from, *v = s->v + from;
        monet__rope_forward(k, s->cosine + angle, s->sine + angle, D);
        monet__kv_put(s, s->keys, &s->key_panel, head, position, k);
        monet__kv_put(s, s->values, &s->value_panel, head, position, v);
    }
}

/* A block of queries of one head: item = head * blocks + block, so that a thread's keys stay in its
   cache.                                                                                         */
static void monet__step_attention(void *context, int item, int task)
{
    monet_session    *s = (monet_session *)context;
    const monet_arch *arch = &s->model->arch;
    int               blocks = (s->n + s->block - 1) / s->block, from = item % blocks * s->block;
    int               head = item / blocks, kv = head / (arch->n_heads / arch->n_kv_heads);
    size_t            D = (size_t)s->D, P = (size_t)s->padded;
    monet_real       *out[MONET__TOKENS];
    monet__queries    a;
    a.kernels = s->team.kernels;
    a.keys = monet__kv_panel(s, s->keys, &s->key_panel, kv);
    a.values = monet__kv_panel(s, s->values, &s->value_panel, kv);
    a.dtype = s->key_panel.dtype;
    a.key_rows = s->S, a.value_rows = (int)monet__panel_rows(&s->value_panel);
    a.D = s->D, a.first = s->first + from;
    a.n = s->n - from < s->block ? s->n - from : s->block;
    a.groups = P / MONET__GROUP;
    for (int t = 0; t < a.n; ++t) {
        size_t      at = ((size_t)(from + t) * (size_t)arch->n_heads + (size_t)head) * D;
        size_t      angle = (size_t)(a.first + t) * (D / 2);
        monet_real *q = s->scores + ((size_t)task * (size_t)s->block + (size_t)t) * s->row;
        monet__rope_forward(s->q + at, s->cosine + angle, s->sine + angle, s->D);
        monet__to_split(q, s->q + at, D);
        a.q[t] = q, out[t] = q + P, a.p[t] = q + 2 * P;
    }
    monet__attention_forward(&a, out);
    for (int t = 0; t < a.n; ++t)
        memcpy(s->h + ((size_t)(from + t) * (size_t)arch->n_heads + (size_t)head) * D, out[t],
               D * sizeof **out);
}

/* Gates and list of one side of one token: item = 2 * token + side. */
static void monet__step_gates(void *context, int item, int task)
{
    monet_session      *s = (monet_session *)context;
    monet__moe         *moe = &s->moe;
    const monet__layer *layer = &s->model->layers[s->layer];
    size_t              N = (size_t)moe->N, H = (size_t)moe->H;
    monet_real         *gates = moe->gates + (size_t)item * H * N;
    const monet_tensor *mean = layer->w[item % 2 ? MONET__T_MEAN2 : MONET__T_MEAN1];
    const monet_tensor *var = layer->w[item % 2 ? MONET__T_VAR2 : MONET__T_VAR1];
    (void)task;
    moe->bad[item] = false;
    for (size_t h = 0; h < H; ++h)
        if (!monet__router_forward(gates + h * N, monet__get(mean->data, MONET_F32, h),
                                   monet__get(var->data, MONET_F32, h), moe->sigma, moe->N)) {
            memset(gates + h * N, 0, N * sizeof *gates);
            moe->bad[item] = true;
        }
    moe->n_active[item] = monet__active_list(moe->active + (size_t)item * N, gates, moe->H,
                                             moe->N);
}

static void monet__eval_norm(monet_session *s, const monet_tensor *weight)
{
    s->weight = (const monet_real *)weight->data;
    s->norm_in = s->x;
    s->norm_out = s->h;
    monet__each(&s->team, s->n, monet__step_norm, s);
}

static monet__product monet__product_of(const monet_tensor *w, monet_real *out, size_t stride)
{
    monet__product p;
    p.w = w;
    p.out = out;
    p.stride = stride;
    p.parts = 1;
    return p;
}

static monet_result monet__eval_attention(monet_session *s)
{
    const monet_arch   *a = &s->model->arch;
    const monet__layer *layer = &s->model->layers[s->layer];
    size_t              C = (size_t)a->dim, KD = (size_t)(a->n_kv_heads * s->D);
    monet__product      p[3];
    monet__eval_norm(s, layer->w[MONET__T_NORM1]);
    s->in.parts = 1;
    monet__each(&s->team, s->n, monet__step_split, s);
    p[0] = monet__product_of(layer->w[MONET__T_Q], s->q, C);
    p[1] = monet__product_of(layer->w[MONET__T_K], s->k, KD);
    p[2] = monet__product_of(layer->w[MONET__T_V], s->v, KD);
    monet__linear_forward(&s->team, p, 3, &s->in);
    monet__each(&s->team, s->n, monet__step_cache, s);
    monet__each(&s->team, (s->n + s->block - 1) / s->block * a->n_heads, monet__step_attention, s);
    monet__each(&s->team, s->n, monet__step_split, s);
    p[0] = monet__product_of(layer->w[MONET__T_O], s->h, C);
    monet__linear_forward(&s->team, p, 1, &s->in);
    if (!monet__tap(s, MONET_SITE_ATTENTION_OUT, s->layer, s->h)) return MONET_ERROR_CANCELLED;
    monet__each(&s->team, s->n, monet__step_add, s);
    return MONET_OK;
}

/* Router of the group that begins at this layer. */
static monet_result monet__eval_router(monet_session *s)
{
    const monet__layer *layer = &s->model->layers[s->layer];
    monet__moe         *moe = &s->moe;
    size_t              HN = (size_t)moe->H * (size_t)moe->N, B = (size_t)s->B;
    size_t              kept = s->capture ? (size_t)(s->layer / s->model->arch.moe_groups) : 0;
    monet__product      p[2];
    moe->gates = s->all_gates + kept * B * 2 * HN;
    moe->active = s->all_active + kept * B * 2 * (size_t)moe->N;
    moe->n_active = s->all_n_active + kept * B * 2;
    moe->routed = NULL;
    p[0] = monet__product_of(layer->w[MONET__T_ROUTER1], moe->gates, 2 * HN);
    p[1] = monet__product_of(layer->w[MONET__T_ROUTER2], moe->gates + HN, 2 * HN);
    p[0].parts = p[1].parts = 3;
    monet__linear_forward(&s->team, p, 2, &s->in);
    monet__each(&s->team, 2 * s->n, monet__step_gates, s);
    for (int item = 0; item < 2 * s->n; ++item)
        if (moe->bad[item])
            return monet__fail(&s->error, MONET_ERROR_NUMERIC, "router of layer %d: a logit of "
                               "position %d is not finite", s->layer, s->first + item / 2);
    return MONET_OK;
}

static monet_result monet__eval_moe(monet_session *s)
{
    const monet__layer *layer = &s->model->layers[s->layer];
    bool                router = s->layer % s->model->arch.moe_groups == 0;
    monet_result        result = MONET_OK;
    monet__eval_norm(s, layer->w[MONET__T_NORM2]);
    if (!monet__tap(s, MONET_SITE_MOE_IN, s->layer, s->h)) return MONET_ERROR_CANCELLED;
    s->in.parts = router ? 3 : 1;
    monet__each(&s->team, s->n, monet__step_split, s);
    if (router) result = monet__eval_router(s);
    if (result != MONET_OK) return result;
    s->moe.table = s->edit ? s->edit->of[s->layer] : NULL;
    monet__moe_forward(&s->moe, &s->team, &layer->experts, &s->in);
    monet__each(&s->team, s->n, monet__step_moe_out, s);
    if (!monet__tap(s, MONET_SITE_MOE_OUT, s->layer, s->h)) return MONET_ERROR_CANCELLED;
    monet__each(&s->team, s->n, monet__step_add, s);
    return monet__tap(s, MONET_SITE_RESIDUAL, s->layer, s->x) ? MONET_OK : MONET_ERROR_CANCELLED;
}

/* Logits (rows,V) of what the final norm gave (rows,C). Returns the place of the first that is not
   finite; -1 = all are.                                                                          */
static int64_t monet__lm_head(monet_session *s, const monet_real *x, int rows, monet_real *logits)
{
    size_t         C = (size_t)s->model->arch.dim, V = (size_t)s->model->arch.vocab_size;
    monet__product p = monet__product_of(s->model->lm_head, logits, V);
    s->in.parts = 1;
    s->in.n = rows;
    for (int t = 0; t < rows; ++t) monet__split_token(s, t, x + (size_t)t * C);
    monet__linear_forward(&s->team, &p, 1, &s->in);
    for (size_t k = 0; k < (size_t)rows * V; ++k)
        if (!(logits[k] - logits[k] == 0)) return (int64_t)k;
    return -1;
}

/* Final norm, and if asked for logits: of every token, or of the last one. */
static monet_result monet__eval_logits(monet_session *s, bool logits)
{
    const monet_arch *a = &s->model->arch;
    int               from = s->all_logits ? 0 : s->n - 1, rows = s->n - from;
    int64_t           bad;
    monet__eval_norm(s, s->model->norm);
    if (!monet__tap(s, MONET_SITE_FINAL_NORM, a->n_layers, s->h)) return MONET_ERROR_CANCELLED;
    if (!logits) return MONET_OK;
    bad = monet__lm_head(s, s->h + (size_t)from * (size_t)a->dim, rows, s->logits);
    if (bad >= 0)
        return monet__fail(&s->error, MONET_ERROR_NUMERIC, "logit %D of position %d is not finite",
                           bad % a->vocab_size, s->first + from + (int)(bad / a->vocab_size));
    s->n_logits = rows;
    return MONET_OK;
}

/* x holds the embeddings of tokens first..first+n-1. */
static monet_result monet__eval_batch(monet_session *s, bool logits)
{
    monet_result result = MONET_OK;
    if (!monet__tap(s, MONET_SITE_EMBEDDING, -1, s->x)) result = MONET_ERROR_CANCELLED;
    for (s->layer = 0; result == MONET_OK && s->layer < s->n_run; ++s->layer) {
        result = monet__eval_attention(s);
        if (result == MONET_OK) result = monet__eval_moe(s);
    }
    if (result == MONET_OK && s->n_run == s->model->arch.n_layers &&
        (logits || monet__tap_wants(&s->tap, MONET_SITE_FINAL_NORM, s->model->arch.n_layers)))
        result = monet__eval_logits(s, logits);
    if (result == MONET_ERROR_CANCELLED)
        return monet__fail(&s->error, result, "a tap asked to stop");
    return result;
}

static monet_result monet__eval_check(monet_session *s, const void *input, size_t count)
{
    if (!input && count) return monet__fail(&s->error, MONET_ERROR_ARGUMENT, "eval: input is NULL");
    if (count > (size_t)(s->S - s->length))
        return monet__fail(&s->error, MONET_ERROR_CONTEXT_FULL, "%U tokens, the context of %d has "
                           "room for %d", (uint64_t)count, s->S, s->S - s->length);
    if ((s->capture || s->all_logits) && count > (size_t)s->B)
        return monet__fail(&s->error, MONET_ERROR_ARGUMENT, "%U tokens, with capture_routing or "
                           "all_logits at most max_batch %d a call", (uint64_t)count, s->B);
    if (count && s->seen[s->n_run - 1] < s->length)
        return monet__fail(&s->error, MONET_ERROR_STATE, "%d of %d tokens went through layer %d: "
                           "rewind to them", s->seen[s->n_run - 1], s->length, s->n_run - 1);
    return MONET_OK;
}

/* tokens or embeddings is NULL. */
static monet_result monet__eval_all(monet_session *s, const int32_t *tokens,
                                    const float *embeddings, size_t count)
{
    size_t C = (size_t)s->model->arch.dim;
    s->n_last = s->n_logits = 0;
    s->edit_version = s->edit ? s->edit->version : 0;
    for (size_t at = 0; at < count; at += (size_t)s->n) {
        monet_result result;
        s->first = s->length + (int)at;
        s->n = count - at < (size_t)s->B ? (int)(count - at) : s->B;
        s->in.n = s->n;
        for (int t = 0; t < s->n; ++t)
            s->tokens[s->first + t] = tokens ? tokens[at + (size_t)t] : -1;
        if (tokens) monet__each(&s->team, s->n, monet__step_embed, s);
        for (size_t k = 0; !tokens && k < (size_t)s->n * C; ++k)
            s->x[k] = (monet_real)embeddings[at * C + k];
        result = monet__eval_batch(s, at + (size_t)s->n == count);
        if (result != MONET_OK) {
            s->n_logits = 0;
            return result;
        }
    }
    s->length += (int)count;
    s->n_last = (int)count;
    s->n_ran = s->n_run;
    for (int l = 0; l < s->n_run; ++l) s->seen[l] = s->length;
    return MONET_OK;
}

static monet_result monet__eval(monet_session *s, const int32_t *tokens, const float *embeddings,
                                size_t count)
{
    fenv_t       own;
    monet_result result;
    monet__mode_begin(&own);
    result = monet__eval_all(s, tokens, embeddings, count);
    monet__mode_end(&own);
    return result;
}

MONET_API monet_result monet_session_eval(monet_session *session, const int32_t *tokens,
                                          size_t count)
{
    monet_result result;
    if (!session) return MONET_ERROR_ARGUMENT;
    result = monet__eval_check(session, tokens, count);
    if (result != MONET_OK || !count) return result;
    for (size_t k = 0; k < count; ++k)
        if (tokens[k] < 0 || tokens[k] >= session->model->arch.vocab_size)
            return monet__fail(&session->error, MONET_ERROR_ARGUMENT, "token %U of %U is %d, must "
                               "be 0..%d", (uint64_t)k, (uint64_t)count, tokens[k],
                               session->model->arch.vocab_size - 1);
    return monet__eval(session, tokens, NULL, count);
}

MONET_API monet_result monet_session_eval_embeddings(monet_session *session,
                                                     const float *embeddings, size_t count)
{
    monet_result result;
    if (!session) return MONET_ERROR_ARGUMENT;
    result = monet__eval_check(session, embeddings, count);
    if (result != MONET_OK || !count) return result;
    for (size_t k = 0; k < count * (size_t)session->model->arch.dim; ++k)
        if (!(embeddings[k] - embeddings[k] == 0))
            return monet__fail(&session->error, MONET_ERROR_NUMERIC, "embedding %U is not finite",
                               (uint64_t)k / (uint64_t)session->model->arch.dim);
    return monet__eval(session, NULL, embeddings, count);
}

MONET_API monet_result monet_session_rewind(monet_session *session, int32_t length)
{
    if (!session) return MONET_ERROR_ARGUMENT;
    if (length < 0 || length > session->length)
        return monet__fail(&session->error, MONET_ERROR_ARGUMENT, "rewind to %d, must be 0..%d",
                           length, session->length);
    session->length = length;
    session->n_logits = session->n_last = 0;
    for (int l = 0; l < session->model->arch.n_layers; ++l)
        if (session->seen[l] > length) session->seen[l] = length;
    return MONET_OK;
}

MONET_API int32_t monet_session_length(const monet_session *session)
{
    return session ? session->length : 0;
}

MONET_API int32_t monet_session_context(const monet_session *session)
{
    return session ? session->S : 0;
}

MONET_API const int32_t *monet_session_tokens(const monet_session *session)
{
    return session ? session->tokens : NULL;
}

MONET_API const monet_real *monet_session_logits_at(const monet_session *session, int32_t index)
{
    if (!session || !session->all_logits || index < 0 || index >= session->n_logits ||
        index >= session->n_last) return NULL; /* after a restore there was no last eval */
    return session->logits + (size_t)index * (size_t)session->model->arch.vocab_size;
}

MONET_API const monet_real *monet_session_logits(const monet_session *session)
{
    if (!session || !session->n_logits) return NULL;
    return session->logits +
           (size_t)(session->n_logits - 1) * (size_t)session->model->arch.vocab_size;
}

MONET_API monet_result monet_session_set_tap(monet_session *session, const monet_tap *tap)
{
    monet_error *err = session ? &session->error : NULL;
    int          L;
    if (!session) return MONET_ERROR_ARGUMENT;
    if (tap) {
        L = session->model->arch.n_layers;
        MONET__NEED(ARGUMENT, tap->sites >> (MONET_SITE_FINAL_NORM + 1) == 0,
                    "tap: sites are %U: there is no such site", (uint64_t)tap->sites);
        MONET__NEED(ARGUMENT, tap->first_layer >= -1 && tap->first_layer <= L &&
                    tap->n_layers >= 0 && tap->n_layers <= L + 1 - tap->first_layer,
                    "tap: %d layers from %d on, there are -1..%d", tap->n_layers, tap->first_layer,
                    L);
        session->tap = *tap;
    } else {
        memset(&session->tap, 0, sizeof session->tap);
    }
    return MONET_OK;
}

MONET_API monet_result monet_session_set_last_layer(monet_session *session, int32_t layer)
{
    int L = session ? session->model->arch.n_layers : 0;
    if (!session) return MONET_ERROR_ARGUMENT;
    if (layer < MONET_ALL || layer >= L)
        return monet__fail(&session->error, MONET_ERROR_ARGUMENT, "last layer %d, must be -1..%d",
                           layer, L - 1);
    session->n_run = layer == MONET_ALL ? L : layer + 1;
    return MONET_OK;
}

/* ---- routing ----------------------------------------------------------------------- >>routing */
MONET_API monet_result monet_session_routing(const monet_session *session, int32_t index,
                                             int32_t layer, monet_routing *out)
{
    const monet__moe *moe;
    size_t            token, N;
    if (!session || !out) return MONET_ERROR_ARGUMENT;
    if (!session->capture || !session->n_last ||
        session->edit_version != (session->edit ? session->edit->version : 0))
        return MONET_ERROR_STATE;
    if (index < 0 || index >= session->n_last || layer < 0 ||
        layer >= session->model->arch.n_layers)
        return MONET_ERROR_ARGUMENT;
    if (layer >= session->n_ran) return MONET_ERROR_STATE;
    moe = &session->moe;
    N = (size_t)moe->N;
    out->n_heads = moe->H;
    out->n_experts = moe->N;
    out->group = layer / session->model->arch.moe_groups;
    token = (size_t)out->group * (size_t)session->B + (size_t)index;
    out->n_i = session->all_n_active[2 * token];
    out->n_j = session->all_n_active[2 * token + 1];
    out->i = session->all_active + 2 * token * N;
    out->j = out->i + N;
    out->g1 = session->all_gates + 2 * token * (size_t)moe->H * N;
    out->g2 = out->g1 + (size_t)moe->H * N;
    out->edit = session->edit;
    out->layer = layer;
    return MONET_OK;
}

static float monet__strength(const monet_expert *e)
{
    float weight = e->weight < 0 ? -e->weight : e->weight;
    return weight > e->score ? weight : e->score;
}

/* The scores and weights of pair (i,j). */
static monet_expert monet__pair(const monet_routing *r, const monet__change *table, int i, int j)
{
    size_t       N = (size_t)r->n_experts;
    monet_real   score = 0;
    monet_expert e;
    for (size_t h = 0; h < (size_t)r->n_heads; ++h)
        score += r->g1[h * N + (size_t)i] * r->g2[h * N + (size_t)j];
    e.i = i, e.j = j;
    e.score = (float)score;
    e.weight = table ? (float)monet__edit_pair(table, i, j, N, score) : e.score;
    return e;
}

/* P[i,j] of any expert, active or not. */
static monet_real monet__pair_weight(const monet_routing *r, int32_t i, int32_t j)
{
    return (monet_real)monet__pair(r, r->edit ? r->edit->of[r->layer] : NULL, i, j).weight;
}

/* Is a stronger than b? Equal ones: the lower id. */
static bool monet__stronger(const monet_expert *a, const monet_expert *b)
{
    float x = monet__strength(a), y = monet__strength(b);
    if (x != y) return x > y;
    return a->i != b->i ? a->i < b->i : a->j < b->j;
}

/* Heap of the strongest, the weakest on top: puts `expert` on top, lets it sink. */
static void monet__expert_sink(monet_expert *heap, size_t n, monet_expert expert)
{
    size_t k = 0;
    for (size_t child; (child = 2 * k + 1) < n; k = child) {
        if (child + 1 < n && monet__stronger(&heap[child], &heap[child + 1])) ++child;
        if (!monet__stronger(&expert, &heap[child])) break;
        heap[k] = heap[child];
    }
    heap[k] = expert;
}

/* The strongest experts so far, as a heap in the caller's array. */
typedef struct monet__strongest {
    monet_expert *out;
    size_t        n, capacity, total;
    float         threshold;
} monet__strongest;

static void monet__expert_add(monet__strongest *best, monet_expert e)
{
    monet_expert *out = best->out;
    if (!(monet__strength(&e) > best->threshold)) return;
    ++best->total;
    if (best->n < best->capacity) { /* it rises to its place */
        size_t k = best->n++;
        for (; k && monet__stronger(&out[(k - 1) / 2], &e); k = (k - 1) / 2)
            out[k] = out[(k - 1) / 2];
        out[k] = e;
    } else if (best->n && monet__stronger(&e, &out[0])) {
        monet__expert_sink(out, best->n, e);
    }
}

static bool monet__listed(const uint16_t *list, int n, int value)
{
    for (int low = 0, k; low < n;) {
        k = (low + n) / 2;
        if (list[k] == value) return true;
        if (list[k] < value) low = k + 1;
        else n = k;
    }
    return false;
}

MONET_API size_t monet_routing_experts(const monet_routing *routing, float threshold,
                                       monet_expert *out, size_t capacity)
{
    const monet_routing *r = routing;
    const monet__change  *table;
    monet__strongest     best;
    fenv_t               own;
    int                  N;
    if (!r || (capacity && !out)) return 0;
    monet__mode_begin(&own);
    N = r->n_experts;
    best.out = out, best.capacity = capacity, best.threshold = threshold;
    best.n = best.total = 0;
    table = r->edit ? r->edit->of[r->layer] : NULL;
    for (int i = 0; i < r->n_i; ++i)
        for (int j = 0; j < r->n_j; ++j)
            monet__expert_add(&best, monet__pair(r, table, r->i[i], r->j[j]));
    for (int i = 0; table && table->n_forced && i < N; ++i) { /* what the router did not choose */
        const float *amount = table->amount + (size_t)i * (size_t)N;
        bool         listed = monet__listed(r->i, r->n_i, i);
        for (int j = 0; table->forced[i] && j < N; ++j)
            if (amount[j] != 0 && !(listed && monet__listed(r->j, r->n_j, j)))
                monet__expert_add(&best, monet__pair(r, table, i, j));
    }
    while (best.n-- > 1) { /* heap sort: the weakest goes to the end */
        monet_expert last = out[best.n];
        out[best.n] = out[0];
        monet__expert_sink(out, best.n, last);
    }
    monet__mode_end(&own);
    return best.total;
}

/* ---- edits --------------------------------------------------------------------------- >>edits
   A layer has a table of factors and forced amounts, or none; layers that are edited alike share
   one. Before a layer is changed it gets tables that no other layer uses.                        */
static uint64_t monet__amount_bytes(const monet_edit *e) /* and of `forced` behind them */
{
    return (uint64_t)e->N * (uint64_t)e->N * sizeof(float) + 2 * (uint64_t)e->N * sizeof(uint16_t);
}

static void monet__change_release(const monet_edit *e, monet__change *t, int n_layers)
{
    uint64_t N = (uint64_t)e->N;
    if (!t || (t->n_layers -= n_layers) > 0) return;
    monet__free(&e->host, t->factor, N * N * sizeof *t->factor);
    monet__free(&e->host, t->amount, monet__amount_bytes(e));
    monet__free(&e->host, t, sizeof *t);
}

/* From here on there are amounts: those of another table, or zeros. */
static bool monet__change_amounts(const monet_edit *e, monet__change *t, const monet__change *of)
{
    size_t N = (size_t)e->N, size = (size_t)monet__amount_bytes(e);
    if (t->amount) return true;
    t->amount = (float *)monet__alloc(&e->host, monet__amount_bytes(e));
    if (!t->amount) return false;
    t->forced = (uint16_t *)(void *)(t->amount + N * N);
    if (of) memcpy(t->amount, of->amount, size);
    else memset(t->amount, 0, size);
    t->n_forced = of ? of->n_forced : 0;
    return true;
}

/* A table of its own for n_layers; of NULL changes nothing yet. */
static monet__change *monet__change_copy(const monet_edit *e, const monet__change *of, int n_layers)
{
    uint64_t       NN = (uint64_t)e->N * (uint64_t)e->N;
    monet__change *t = (monet__change *)monet__alloc(&e->host, sizeof *t);
    if (!t) return NULL;
    memset(t, 0, sizeof *t);
    t->n_layers = t->n_inside = n_layers;
    t->factor = (float *)monet__alloc(&e->host, NN * sizeof *t->factor);
    if (!t->factor || (of && of->amount && !monet__change_amounts(e, t, of))) {
        monet__change_release(e, t, n_layers);
        return NULL;
    }
    if (of) memcpy(t->factor, of->factor, (size_t)NN * sizeof *t->factor);
    for (uint64_t k = 0; !of && k < NN; ++k) t->factor[k] = 1;
    return t;
}

static monet_result monet__edit_memory(const monet_edit *e, monet_error *err)
{
    return monet__no_memory(err, "edit", (uint64_t)e->N * (uint64_t)e->N * sizeof(float));
}

/* Layers first..end-1 share no table with others afterwards. */
static monet_result monet__edit_own(monet_edit *e, int first, int end, monet_error *err)
{
    for (int l = first; l < end; ++l)
        if (e->of[l]) e->of[l]->n_inside = 0;
    for (int l = first; l < end; ++l)
        if (e->of[l]) ++e->of[l]->n_inside;
    for (int l = first; l < end; ++l) {
        monet__change *t = e->of[l], *own;
        if (t && t->n_inside == t->n_layers) continue;
        own = monet__change_copy(e, t, 0);
        if (!own) return monet__edit_memory(e, err);
        for (int m = l; m < end; ++m)
            if (e->of[m] == t) e->of[m] = own, ++own->n_layers;
        own->n_inside = own->n_layers;
        monet__change_release(e, t, own->n_layers);
    }
    return MONET_OK;
}

static void monet__change_force(monet__change *t, size_t N, size_t i, size_t j, float amount)
{
    float *at = t->amount + i * N + j;
    int    more = (amount != 0) - (*at != 0);
    *at = amount;
    t->forced[i] = (uint16_t)(t->forced[i] + more);
    t->forced[N + j] = (uint16_t)(t->forced[N + j] + more);
    t->n_forced += (size_t)more;
}

/* Layers first..end-1 that `where` means; none if there is no such place. */
static bool monet__edit_layers(const monet_edit *e, int32_t where, int *first, int *end)
{
    int64_t from = where, n = 1; /* MONET_ROUTER(g) is -2 - g */
    if (where == MONET_ALL) from = 0, n = e->L;
    if (where < MONET_ALL) from = (-2 - (int64_t)where) * e->G, n = e->G;
    if (from >= e->L) return false;
    *first = (int)from;
    *end = from + n < e->L ? (int)(from + n) : e->L;
    return true;
}

static monet_result monet__edit_set(monet_edit *e, int32_t where, int32_t i, int32_t j, bool force,
                                    float value, monet_error *err)
{
    int first = 0, end = 0, N;
    MONET__NEED(ARGUMENT, e, "edit is NULL");
    N = e->N;
    MONET__NEED(ARGUMENT, monet__edit_layers(e, where, &first, &end),
                "edit: place %d: there are %d layers and %d routers", where, e->L,
                (e->L + e->G - 1) / e->G);
    MONET__NEED(ARGUMENT, i >= MONET_ALL && i < N && j >= MONET_ALL && j < N,
                "edit: expert (%d,%d): i and j must be 0..%d or MONET_ALL", i, j, N - 1);
    MONET__NEED(ARGUMENT, value - value == 0, "edit: expert (%d,%d): %s is not finite", i, j,
                force ? "amount" : "factor");
    MONET__TRY(monet__edit_own(e, first, end, err));
    for (int l = first; force && value != 0 && l < end; ++l)
        if (!monet__change_amounts(e, e->of[l], NULL)) return monet__edit_memory(e, err);
    ++e->version;
    for (int l = first; l < end; ++l) {
        monet__change *t = e->of[l];
        if (l > first && t == e->of[l - 1]) continue; /* done */
        for (int a = i < 0 ? 0 : i; a <= (i < 0 ? N - 1 : i); ++a)
            for (int b = j < 0 ? 0 : j; b <= (j < 0 ? N - 1 : j); ++b)
                if (!force) t->factor[(size_t)a * (size_t)N + (size_t)b] = value;
                else if (t->amount)
                    monet__change_force(t, (size_t)N, (size_t)a, (size_t)b, value);
    }
    return MONET_OK;
}

MONET_API monet_result monet_edit_scale(monet_edit *edit, int32_t where, int32_t i, int32_t j,
                                        float factor, monet_error *err)
{
    return monet__edit_set(edit, where, i, j, false, factor, err);
}

MONET_API monet_result monet_edit_force(monet_edit *edit, int32_t where, int32_t i, int32_t j,
                                        float amount, monet_error *err)
{
    return monet__edit_set(edit, where, i, j, true, amount, err);
}

MONET_API monet_result monet_edit_create(const monet_model *model, const char *name,
                                         monet_edit **out, monet_error *err)
{
    size_t      n = name ? strlen(name) : 0;
    uint64_t    size;
    monet_edit *e;
    if (out) *out = NULL;
    MONET__NEED(ARGUMENT, model && out && name, "edit: model, name or out is NULL");
    MONET__NEED(STATE, model->has_weights, "the model is a tokenizer alone, no weights");
    for (size_t k = 0; k < n; ++k)
        if (name[k] < 32 || name[k] > 126 || name[k] == '#') n = 0; /* # begins a comment */
    MONET__NEED(ARGUMENT, n && n < sizeof e->name && name[0] != ' ' && name[n - 1] != ' ',
                "edit: a name has 1..63 printable characters, no #, the first and last no blank");
    size = sizeof *e + 2 * (uint64_t)model->arch.n_layers * sizeof *e->of;
    e = (monet_edit *)monet__alloc(&model->host, size);
    if (!e) return monet__no_memory(err, "edit", size);
    memset(e, 0, (size_t)size);
    e->host = model->host;
    e->N = model->arch.moe_experts, e->L = model->arch.n_layers, e->G = model->arch.moe_groups;
    e->of = (monet__change **)(void *)(e + 1);
    e->made = e->of + e->L;
    memcpy(e->name, name, n);
    *out = e;
    return MONET_OK;
}

MONET_API void monet_edit_free(monet_edit *edit)
{
    monet_host host;
    if (!edit) return;
    host = edit->host;
    for (int l = 0; l < edit->L; ++l) monet__change_release(edit, edit->of[l], 1);
    monet__free(&host, edit, sizeof *edit + 2 * (uint64_t)edit->L * sizeof *edit->of);
}

MONET_API const char *monet_edit_name(const monet_edit *edit) { return edit ? edit->name : ""; }

/* t = t * next + amounts of next. */
static bool monet__change_combine(const monet_edit *e, monet__change *t, const monet__change *next)
{
    size_t N = (size_t)e->N;
    if (next->amount && !monet__change_amounts(e, t, NULL)) return false;
    for (size_t k = 0; k < N * N; ++k) {
        float amount = t->amount ? t->amount[k] * next->factor[k] : 0;
        if (next->amount) amount += next->amount[k];
        if (t->amount) monet__change_force(t, N, k / N, k % N, amount);
        t->factor[k] *= next->factor[k];
    }
    return true;
}

/* Products and sums of finite numbers may be too large. */
static bool monet__change_finite(const monet_edit *e, const monet__change *t)
{
    size_t NN = (size_t)e->N * (size_t)e->N;
    for (size_t k = 0; k < NN; ++k)
        if (!(t->factor[k] - t->factor[k] == 0) ||
            (t->amount && !(t->amount[k] - t->amount[k] == 0))) return false;
    return true;
}

/* Makes the combined tables beside the old ones: an error changes nothing. */
static monet_result monet__edit_combined(monet_edit *e, const monet_edit *next, monet_error *err)
{
    for (int l = 0; l < e->L; ++l) {
        int n = 0;
        if (e->made[l] || !next->of[l]) continue;
        for (int m = l; m < e->L; ++m) n += e->of[m] == e->of[l] && next->of[m] == next->of[l];
        e->made[l] = monet__change_copy(e, e->of[l], 1);
        if (!e->made[l] || !monet__change_combine(e, e->made[l], next->of[l]))
            return monet__edit_memory(e, err);
        MONET__NEED(ARGUMENT, monet__change_finite(e, e->made[l]),
                    "edits combined: a factor or an amount of layer %d is not finite", l);
        e->made[l]->n_layers = n;
        for (int m = l + 1; m < e->L; ++m)
            if (e->of[m] == e->of[l] && next->of[m] == next->of[l]) e->made[m] = e->made[l];
    }
    return MONET_OK;
}

MONET_API monet_result monet_edit_combine(monet_edit *edit, const monet_edit *next,
                                          monet_error *err)
{
    monet_edit  *e = edit;
    monet_result result;
    fenv_t       own;
    MONET__NEED(ARGUMENT, e && next, "edit is NULL");
    MONET__NEED(ARGUMENT, e->N == next->N && e->L == next->L && e->G == next->G,
                "edits combined: one is for N=%d L=%d G=%d, the other for N=%d L=%d G=%d", e->N,
                e->L, e->G, next->N, next->L, next->G);
    monet__mode_begin(&own);
    result = monet__edit_combined(e, next, err);
    monet__mode_end(&own);
    for (int l = 0; l < e->L; ++l) {
        monet__change *old = result == MONET_OK ? e->of[l] : e->made[l];
        if (e->made[l] && result == MONET_OK) e->of[l] = e->made[l];
        if (e->made[l]) monet__change_release(e, old, 1);
        e->made[l] = NULL;
    }
    if (result == MONET_OK) ++e->version;
    return result;
}

MONET_API monet_result monet_edit_get(const monet_edit *edit, int32_t layer, int32_t i, int32_t j,
                                      float *factor, float *amount)
{
    const monet__change *t;
    size_t               at;
    if (!edit || layer < 0 || layer >= edit->L || i < 0 || i >= edit->N || j < 0 || j >= edit->N)
        return MONET_ERROR_ARGUMENT;
    t = edit->of[layer];
    at = (size_t)i * (size_t)edit->N + (size_t)j;
    if (factor) *factor = t ? t->factor[at] : 1;
    if (amount) *amount = t && t->amount ? t->amount[at] : 0;
    return MONET_OK;
}

MONET_API int64_t monet_edit_count(const monet_edit *edit, int32_t layer)
{
    const monet__change *t = edit && layer >= 0 && layer < edit->L ? edit->of[layer] : NULL;
    size_t               N = edit ? (size_t)edit->N : 0;
    int64_t              n = 0;
    for (size_t k = 0; t && k < N * N; ++k)
        n += t->factor[k] != 1 || (t->amount && t->amount[k] != 0);
    return n;
}

MONET_API monet_result monet_session_set_edit(monet_session *session, const monet_edit *edit)
{
    const monet_arch *a;
    monet_error      *err;
    if (!session) return MONET_ERROR_ARGUMENT;
    a = &session->model->arch;
    err = &session->error;
    MONET__NEED(ARGUMENT, !edit || (edit->N == a->moe_experts && edit->L == a->n_layers &&
                                    edit->G == a->moe_groups),
                "edit %s: for N=%d L=%d G=%d, the model has N=%d L=%d G=%d", edit->name, edit->N,
                edit->L, edit->G, a->moe_experts, a->n_layers, a->moe_groups);
    session->edit = edit;
    session->edit_version = UINT64_MAX; /* what was kept belongs to the edit before */
    return MONET_OK;
}

/* ---- edits: text -----------------------------------------------------------------------------
   Numbers are read and written here, since libc's depend on the locale.                          */
#define MONET__EDIT_TEXT ((size_t)1 << 30) /* bytes that are read at most */

/* Digits with a point and an exponent, as far as they go; NULL = not a number. */
static const char *monet__read_number(const char *p, const char *end, double *out)
{
    double value = 0, unit = 10;
    int    digits = 0, scale = 0, exponent = 0;
    bool   negative = p < end && *p == '-', point = false, down;
    if (p < end && (*p == '-' || *p == '+')) ++p;
    for (; p < end && ((*p >= '0' && *p <= '9') || (*p == '.' && !point)); ++p) {
        if (*p == '.') {
            point = true;
        } else {
            if (value < 1e17) value = 10 * value + (*p - '0'), scale -= point;
            else scale += !point; /* digits that a double cannot hold */
            ++digits;
        }
    }
    if (!digits) return NULL;
    if (p < end && (*p == 'e' || *p == 'E')) {
        down = ++p < end && *p == '-';
        if (p < end && (*p == '-' || *p == '+')) ++p;
        if (p == end || *p < '0' || *p > '9') return NULL;
        for (; p < end && *p >= '0' && *p <= '9'; ++p)
            if (exponent < 100000) exponent = 10 * exponent + (*p - '0');
        scale += down ? -exponent : exponent;
    }
    down = scale < 0;
    for (scale = down ? -scale : scale; scale && value != 0; scale /= 2, unit *= unit)
        if (scale % 2) value = down ? value / unit : value * unit;
    *out = negative ? -value : value;
    return p;
}

/* The shortest text that reads as f again, terminated. */
static void monet__write_number(char out[48], float f)
{
    double value = f < 0 ? -(double)f : (double)f, unit = 1, back = 0;
    int    e = 0;
    while (value >= 10) value /= 10, ++e; /* |f| = value * 10^e */
    while (value > 0 && value < 1) value *= 10, --e;
    for (int n = 0; n < 9; ++n, unit *= 10) { /* one digit more each time */
        char        digits[22], *p = out;
        const char *d = monet__decimal(digits, (uint64_t)(value * unit + 0.5), false);
        int         zeros = e - n, point = (int)strlen(d) + zeros; /* digits before the point */
        if (f < 0) *p++ = '-';
        if (zeros > 6 || point < -6) {
            char exponent[22];
            p = monet__append(monet__append(p, d), "e");
            p = monet__append(p, monet__decimal(exponent, (uint64_t)(int64_t)zeros, zeros < 0));
        } else if (point > 0) {
            for (; *d; *p++ = *d++)
                if (point-- == 0) *p++ = '.';
            for (; zeros > 0; --zeros) *p++ = '0';
        } else {
            for (p = monet__append(p, "0."); point < 0; ++point) *p++ = '0';
            p = monet__append(p, d);
        }
        *p = 0;
        if (monet__read_number(out, p, &back) == p && (float)back == f) return;
    }
}

typedef struct monet__words { /* the words of a text */
    const char  *p, *end, *word; /* the rest; the last word */
    size_t       size;           /* of the word */
    int32_t      line;
    uint64_t     work;           /* pairs that rules may still set, one in one layer being 1 */
    monet_edit  *edit;
    monet_error *err;
} monet__words;

/* The next word of this line; false at its end. */
static bool monet__word(monet__words *w)
{
    const char *p = w->p;
    while (p < w->end && (*p == ' ' || *p == '\t' || *p == '\r')) ++p;
    if (p < w->end && *p == '#')
        while (p < w->end && *p != '\n') ++p;
    w->word = p;
    while (p < w->end && *p != ' ' && *p != '\t' && *p != '\r' && *p != '\n' && *p != '#') ++p;
    w->size = (size_t)(p - w->word);
    w->p = p;
    return w->size > 0;
}

/* The first word of the next line that has one; false at the end of the text. */
static bool monet__line(monet__words *w)
{
    for (;;) {
        if (monet__word(w)) return true;
        if (w->p >= w->end) return false;
        ++w->p; /* a line feed */
        ++w->line;
    }
}

static bool monet__is(const monet__words *w, const char *text)
{
    return w->size == strlen(text) && !memcmp(w->word, text, w->size);
}

static monet_result monet__bad_word(const monet__words *w, const char *expected)
{
    char   shown[41];
    size_t n = w->size < 40 ? w->size : 40;
    memcpy(shown, w->word, n);
    shown[n] = 0;
    return monet__fail(w->err, MONET_ERROR_FORMAT, "line %d: '%s': expected %s", w->line, shown,
                       expected);
}

/* The word is `before` and a whole number, of at most `most`. */
static bool monet__word_number(const monet__words *w, const char *before, int64_t most,
                               int64_t *out)
{
    size_t n = strlen(before);
    if (w->size <= n || memcmp(w->word, before, n) != 0) return false;
    for (*out = 0; n < w->size; ++n) {
        if (w->word[n] < '0' || w->word[n] > '9') return false;
        *out = 10 * *out + (w->word[n] - '0');
        if (*out > most) return false;
    }
    return true;
}

static monet_result monet__edit_shape(monet__words *w)
{
    static const char *const names[3] = {"N=", "L=", "G="};
    const int32_t            needed[3] = {w->edit->N, w->edit->L, w->edit->G};
    for (int k = 0; k < 3; ++k) {
        int64_t value = 0;
        if (!monet__word(w) || !monet__word_number(w, names[k], INT32_MAX, &value))
            return monet__bad_word(w, "the model's shape, as N=512 L=24 G=4");
        if (value != needed[k])
            return monet__fail(w->err, MONET_ERROR_ARGUMENT, "line %d: the edit is for a model "
                               "with %s%D, this one has %s%d", w->line, names[k], value, names[k],
                               needed[k]);
    }
    return MONET_OK;
}

/* The rest of the line is the name. */
static monet_result monet__edit_named(monet__words *w)
{
    char       *name = w->edit->name;
    const char *end;
    size_t      n;
    if (!monet__word(w)) return monet__bad_word(w, "a name");
    while (w->p < w->end && *w->p != '\n' && *w->p != '#') ++w->p;
    for (end = w->p; end[-1] == ' ' || end[-1] == '\t' || end[-1] == '\r';) --end;
    n = (size_t)(end - w->word);
    for (const char *p = w->word; p < end; ++p)
        if (*p < 32 || *p > 126) n = sizeof w->edit->name;
    if (n >= sizeof w->edit->name)
        return monet__bad_word(w, "a name of at most 63 printable characters");
    memcpy(name, w->word, n);
    name[n] = 0;
    return MONET_OK;
}

/* What a rule is about: E17, i=3, j=5, or all experts. */
static monet_result monet__edit_target(monet__words *w, int32_t where, bool force, float value)
{
    int64_t  N = w->edit->N, n = 0;
    int32_t  i = MONET_ALL, j = MONET_ALL;
    int      first = 0, end = 0;
    uint64_t work;
    if (monet__word_number(w, "E", N * N - 1, &n)) i = (int32_t)(n / N), j = (int32_t)(n % N);
    else if (monet__word_number(w, "i=", N - 1, &n)) i = (int32_t)n;
    else if (monet__word_number(w, "j=", N - 1, &n)) j = (int32_t)n;
    else if (!monet__is(w, "all"))
        return monet__bad_word(w, "an expert E0..N*N-1, a row i=0..N-1, a column j=0..N-1 or all");
    (void)monet__edit_layers(w->edit, where, &first, &end);
    work = (uint64_t)((i < 0 ? N : 1) * (j < 0 ? N : 1) * (end - first));
    if (work > w->work)
        return monet__fail(w->err, MONET_ERROR_FORMAT, "line %d: the rules up to here set every "
                           "expert more than 64 times", w->line);
    w->work -= work;
    return monet__edit_set(w->edit, where, i, j, force, value, w->err);
}

/* remove WHERE TARGET..., scale FACTOR WHERE TARGET..., force AMOUNT WHERE TARGET... */
static monet_result monet__edit_rule(monet__words *w)
{
    bool    force = monet__is(w, "force");
    int64_t n = 0, G = w->edit->G, routers = (w->edit->L + G - 1) / G;
    double  value = 0;
    int32_t where = MONET_ALL;
    if (!force && !monet__is(w, "scale") && !monet__is(w, "remove"))
        return monet__bad_word(w, "name, shape, remove, scale or force");
    if (!monet__is(w, "remove") &&
        (!monet__word(w) || monet__read_number(w->word, w->p, &value) != w->p ||
         !(value > -3.40282356e38 && value < 3.40282356e38))) /* rounds to a finite float */
        return monet__bad_word(w, "a number");
    if (!monet__word(w)) return monet__bad_word(w, "a place: G1, L0 or all");
    if (monet__word_number(w, "G", routers, &n) && n) where = MONET_ROUTER((int32_t)n - 1);
    else if (monet__word_number(w, "L", w->edit->L - 1, &n)) where = (int32_t)n;
    else if (!monet__is(w, "all"))
        return monet__fail(w->err, MONET_ERROR_FORMAT, "line %d: expected a place: G1..G%D, "
                           "L0..L%d or all", w->line, routers, w->edit->L - 1);
    if (!monet__word(w)) return monet__bad_word(w, "an expert, as E17");
    do MONET__TRY(monet__edit_target(w, where, force, (float)value));
    while (monet__word(w));
    return MONET_OK;
}

static monet_result monet__edit_lines(monet__words *w)
{
    bool shaped = false;
    if (!monet__line(w) || !monet__is(w, "monet-edit") || !monet__word(w))
        return monet__fail(w->err, MONET_ERROR_FORMAT, "line %d: not an edit: expected monet-edit "
                           "1", w->line);
    if (!monet__is(w, "1"))
        return monet__fail(w->err, MONET_ERROR_VERSION, "line %d: a newer edit: this version of "
                           "monet.h knows monet-edit 1", w->line);
    if (monet__word(w)) return monet__bad_word(w, "the end of the line");
    while (monet__line(w)) {
        if (monet__is(w, "name")) {
            MONET__TRY(monet__edit_named(w));
        } else if (monet__is(w, "shape")) {
            MONET__TRY(monet__edit_shape(w));
            shaped = true;
        } else if (shaped) {
            MONET__TRY(monet__edit_rule(w));
        } else {
            return monet__bad_word(w, "the shape of the model first, as shape N=512 L=24 G=4");
        }
        if (monet__word(w)) return monet__bad_word(w, "the end of the line");
    }
    if (!shaped)
        return monet__fail(w->err, MONET_ERROR_FORMAT, "line %d: the text ends without a shape",
                           w->line);
    return MONET_OK;
}

MONET_API monet_result monet_edit_parse(const monet_model *model, const char *text, size_t size,
                                        monet_edit **out, monet_error *err)
{
    monet__words w;
    monet_result result;
    fenv_t       own;
    if (out) *out = NULL;
    MONET__NEED(ARGUMENT, out && (text || !size), "edit: text or out is NULL");
    MONET__NEED(ARGUMENT, size <= MONET__EDIT_TEXT, "edit: a text of %U bytes, more than %U",
                (uint64_t)size, (uint64_t)MONET__EDIT_TEXT);
    memset(&w, 0, sizeof w);
    MONET__TRY(monet_edit_create(model, "edit", &w.edit, err));
    w.p = text, w.end = size ? text + size : text;
    w.line = 1, w.err = err;
    w.work = 64 * (uint64_t)w.edit->N * (uint64_t)w.edit->N * (uint64_t)w.edit->L +
             8 * (uint64_t)size;
    monet__mode_begin(&own);
    result = monet__edit_lines(&w);
    monet__mode_end(&own);
    if (result == MONET_OK) *out = w.edit;
    else monet_edit_free(w.edit);
    return result;
}

typedef struct monet__text { /* of which as much is kept as there is room for */
    char  *text;
    size_t size, capacity;
} monet__text;

static void monet__text_add(monet__text *t, const char *s)
{
    for (; *s; ++s, ++t->size)
        if (t->size < t->capacity) t->text[t->size] = *s;
}

static void monet__text_number(monet__text *t, const char *before, uint64_t n)
{
    char digits[22];
    monet__text_add(t, before);
    monet__text_add(t, monet__decimal(digits, n, false));
}

/* One expert of a rule: on the line before, if that has the same value and is not long. */
static void monet__text_rule(monet__text *t, const char *verb, const char *where, float value,
                             uint64_t id, float *last, int *n)
{
    char number[48];
    if (*n == 0 || *n == 16 || *last != value) {
        monet__text_add(t, *n ? "\n" : "");
        monet__text_add(t, *verb == 's' && value == 0 ? "remove" : verb);
        if (*verb != 's' || value != 0) {
            monet__write_number(number, value);
            monet__text_add(t, " ");
            monet__text_add(t, number);
        }
        monet__text_add(t, where);
        *n = 0;
    }
    monet__text_number(t, " E", id);
    *last = value;
    ++*n;
}

/* All rules of a table, at one place. */
static void monet__text_change(monet__text *t, const monet_edit *e, const monet__change *table,
                              const char *where)
{
    size_t N = (size_t)e->N;
    float  last = 0;
    int    n = 0;
    for (size_t id = 0; id < N * N; ++id)
        if (table->factor[id] != 1)
            monet__text_rule(t, "scale", where, table->factor[id], (uint64_t)id, &last, &n);
    monet__text_add(t, n ? "\n" : "");
    n = 0;
    for (size_t id = 0; table->amount && id < N * N; ++id)
        if (table->amount[id] != 0)
            monet__text_rule(t, "force", where, table->amount[id], (uint64_t)id, &last, &n);
    monet__text_add(t, n ? "\n" : "");
}

/* For all layers at once if they are edited alike, else for a router's layers, else for one. */
static void monet__text_layers(monet__text *t, const monet_edit *e)
{
    for (int first = 0, n; first < e->L; first += n) {
        int         group = e->L - first < e->G ? e->L - first : e->G, alike = 1;
        char        where[32], digits[22];
        const char *number = "";
        while (first + alike < e->L && e->of[first + alike] == e->of[first]) ++alike;
        n = alike == e->L ? alike : first % e->G == 0 && alike >= group ? group : 1;
        if (!e->of[first]) continue;
        if (n == 1) number = monet__decimal(digits, (uint64_t)first, false);
        else if (n < e->L) number = monet__decimal(digits, (uint64_t)(first / e->G + 1), false);
        monet__append(monet__append(where, n == e->L ? " all" : n == 1 ? " L" : " G"), number);
        monet__text_change(t, e, e->of[first], where);
    }
}

MONET_API monet_result monet_edit_text(const monet_edit *edit, char *text, size_t capacity,
                                       size_t *size)
{
    monet__text t;
    fenv_t      own;
    if (size) *size = 0;
    if (!edit || !size || (capacity && !text)) return MONET_ERROR_ARGUMENT;
    t.text = text, t.size = 0, t.capacity = capacity;
    monet__text_add(&t, "monet-edit 1\nname ");
    monet__text_add(&t, edit->name);
    monet__text_number(&t, "\nshape N=", (uint64_t)edit->N);
    monet__text_number(&t, " L=", (uint64_t)edit->L);
    monet__text_number(&t, " G=", (uint64_t)edit->G);
    monet__text_add(&t, "\n");
    monet__mode_begin(&own);
    monet__text_layers(&t, edit);
    monet__mode_end(&own);
    *size = t.size;
    return t.size > capacity ? MONET_ERROR_CAPACITY : MONET_OK;
}

#ifndef MONET_NO_STDIO
MONET_API monet_result monet_edit_load(const monet_model *model, const char *path, monet_edit **out,
                                       monet_error *err)
{
    void        *block;
    uint64_t     size = 0;
    monet_result result;
    if (out) *out = NULL;
    MONET__NEED(ARGUMENT, model && path && out, "edit: model, path or out is NULL");
    MONET__TRY(monet__load_whole(&model->host, path, MONET__EDIT_TEXT, &block, &size, err));
    result = monet_edit_parse(model, (const char *)block, (size_t)size, out, err);
    monet__free(&model->host, block, size + 64);
    if (result != MONET_OK) monet__name_file(err, path);
    return result;
}

MONET_API monet_result monet_edit_save(const monet_edit *edit, const char *path, monet_error *err)
{
    size_t       size = 0;
    char        *text;
    monet_result result;
    MONET__NEED(ARGUMENT, edit && path, "edit or path is NULL");
    (void)monet_edit_text(edit, NULL, 0, &size);
    MONET__NEED(UNSUPPORTED, size <= MONET__EDIT_TEXT, "edit: a text of %U bytes, more than load "
                "takes", (uint64_t)size);
    text = (char *)monet__alloc(&edit->host, size);
    if (!text) return monet__no_memory(err, "edit", size);
    (void)monet_edit_text(edit, text, size, &size);
    result = monet__save_bytes(&edit->host, path, text, size, err);
    monet__free(&edit->host, text, size);
    return result;
}
#endif

/* ---- attribution --------------------------------------------------------------- >>attribution
   Experts add up: y = sum_ij P[i,j] E_ij(n), so a logit is a sum over experts too. With d the
   direction of the logit in the residual stream, e1_i = V1_i d and e2_j = V2_j d (rows of V):

     HD  d.E_ij = a_i . e2_j + d.bias2_j
     VD  d.E_ij = a1_i . (e1_i + e2_j)[0..m) + a2_j . (e1_i + e2_j)[m..2m) + d.(B1_i, B2_j)

   so what is as long as C is done once for each active half-expert, not for each pair.           */
MONET_API const monet_real *monet_session_activation(const monet_session *session, monet_site site,
                                                     int32_t layer, int32_t index)
{
    const monet_session *s = session;
    if (!s || !s->kept || (unsigned)site >= MONET_SITE_FINAL_NORM || index < 0 ||
        index >= s->n_last || (site == MONET_SITE_EMBEDDING ? layer != -1
                                                            : layer < 0 || layer >= s->n_ran))
        return NULL;
    return monet__site_data(s, site, layer) + (size_t)index * (size_t)s->model->arch.dim;
}

static double monet__row_dot(const monet_tensor *t, size_t row, const monet_real *x)
{
    monet_real group[MONET__GROUP];
    double     sum = 0;
    for (size_t c = 0; c < (size_t)t->shape[1]; ++c) {
        if (c % MONET__GROUP == 0)
            monet__group_read(t, t->data, (int64_t)row, c / MONET__GROUP, group);
        sum += (double)group[c % MONET__GROUP] * (double)x[c];
    }
    return sum;
}

static void monet__row_add(monet_real *out, monet_real scale, const monet_tensor *t, size_t row)
{
    monet_real group[MONET__GROUP];
    for (size_t c = 0; c < (size_t)t->shape[1]; ++c) {
        if (c % MONET__GROUP == 0)
            monet__group_read(t, t->data, (int64_t)row, c / MONET__GROUP, group);
        out[c] += scale * group[c % MONET__GROUP];
    }
}

/* One hidden unit of one axis: a row of U. */
static monet_real monet__hidden(const monet__experts *w, int axis, size_t row, const monet_real *n)
{
    double z = monet__row_dot(w->u[axis], row, n) +
               (double)monet__get(w->bias[axis]->data, MONET_F32, row);
    return (monet_real)(z > 0 ? z * z : z - z);
}

static void monet__expert(const monet_model *model, int layer, size_t i, size_t j,
                          const monet_real *n, monet_real *out)
{
    const monet__experts *w = &model->layers[layer].experts;
    size_t      C = (size_t)model->arch.dim, M = (size_t)model->arch.moe_dim;
    bool        vd = model->arch.decompose == MONET_VERTICAL;
    size_t      m = vd ? M / 2 : M;
    monet_real *second = vd ? out + C / 2 : out; /* outputs of V2 */
    memset(out, 0, C * sizeof *out);
    for (size_t u = 0; u < M; ++u) { /* units of a_i, then (VD) those of a_j */
        monet_real a = u < m ? monet__hidden(w, 0, i * m + u, n)
                             : monet__hidden(w, 1, j * m + u - m, n);
        if (a == 0) continue;
        if (vd) monet__row_add(out, a, w->v[0], i * M + u);
        monet__row_add(second, a, w->v[1], j * M + u);
    }
    if (vd) monet__row_add(out, 1, w->b[0], i);
    monet__row_add(second, 1, w->b[1], j);
}

static bool monet__is_expert(const monet_model *model, int layer, int i, int j)
{
    const monet_arch *a = &model->arch;
    return model->has_weights && layer >= 0 && layer < a->n_layers && i >= 0 &&
           i < a->moe_experts && j >= 0 && j < a->moe_experts;
}

MONET_API monet_result monet_model_expert(const monet_model *model, int32_t layer, int32_t i,
                                          int32_t j, const monet_real *n, monet_real *out)
{
    fenv_t own;
    if (!model || !n || !out || !monet__is_expert(model, layer, i, j)) return MONET_ERROR_ARGUMENT;
    monet__mode_begin(&own);
    monet__expert(model, layer, (size_t)i, (size_t)j, n, out);
    monet__mode_end(&own);
    return MONET_OK;
}

MONET_API monet_result monet_session_contribution(const monet_session *session, int32_t index,
                                                  int32_t layer, int32_t i, int32_t j,
                                                  monet_real *out)
{
    monet_routing     r;
    monet_real        weight;
    fenv_t            own;
    const monet_real *n = monet_session_activation(session, MONET_SITE_MOE_IN, layer, index);
    if (!session || !out || !monet__is_expert(session->model, layer, i, j))
        return MONET_ERROR_ARGUMENT;
    if (!session->kept) return MONET_ERROR_STATE;
    MONET__TRY(monet_session_routing(session, index, layer, &r));
    monet__mode_begin(&own);
    monet__expert(session->model, layer, (size_t)i, (size_t)j, n, out);
    weight = monet__pair_weight(&r, i, j);
    for (size_t c = 0; c < (size_t)session->model->arch.dim; ++c)
        out[c] = weight != 0 ? weight * out[c] : 0;
    monet__mode_end(&own);
    return MONET_OK;
}

/* A token and layer whose experts are taken apart; a, s and sums of the moe hold, for each place in
   the lists of half-experts, hidden units, V_i d and B_i d.                                      */
typedef struct monet__parts {
    monet_session    *s;
    monet_routing     r;
    const uint16_t   *list[2]; /* half-experts of the router, and those that an edit forces */
    int32_t           n_list[2];
    const monet_real *n, *d;
    monet_part       *out;
    size_t            capacity, count;
} monet__parts;

static void monet__parts_half(void *context, int item, int task)
{
    const monet__parts   *p = (const monet__parts *)context;
    const monet__moe     *moe = &p->s->moe;
    const monet__experts *w = &p->s->model->layers[p->s->layer].experts;
    int               axis = item >= p->n_list[0];
    size_t            slot = (size_t)(axis ? item - p->n_list[0] : item), m = (size_t)moe->m;
    size_t            i = p->list[axis][slot], M = (size_t)moe->n_rows;
    const monet_real *d = axis && !moe->horizontal ? p->d + moe->width : p->d;
    (void)task;
    for (size_t q = 0; w->u[axis] && q < m; ++q)
        moe->a[axis][slot * m + q] = monet__hidden(w, axis, i * m + q, p->n);
    if (!w->v[axis]) return;
    for (size_t q = 0; q < M; ++q)
        moe->s[axis][slot * M + q] = (monet_real)monet__row_dot(w->v[axis], i * M + q, d);
    moe->sums[axis][slot] = (monet_real)monet__row_dot(w->b[axis], i, d);
}

/* d.E_ij of two places in the lists; *bias is the part that does not depend on n. */
static double monet__pair_logit(const monet__moe *moe, size_t i, size_t j, double *bias)
{
    size_t            m = (size_t)moe->m, M = (size_t)moe->n_rows;
    const monet_real *a1 = moe->a[0] + i * m, *a2 = moe->a[1] + j * m;
    const monet_real *e1 = moe->s[0] + i * M, *e2 = moe->s[1] + j * M;
    double            sum = 0;
    *bias = (double)moe->sums[1][j] + (moe->horizontal ? 0 : (double)moe->sums[0][i]);
    for (size_t q = 0; q < m; ++q)
        if (moe->horizontal)
            sum += (double)a1[q] * (double)e2[q];
        else
            sum += (double)a1[q] * ((double)e1[q] + (double)e2[q]) +
                   (double)a2[q] * ((double)e1[m + q] + (double)e2[m + q]);
    return sum + *bias;
}

static void monet__parts_add(monet__parts *p, monet_site site, int layer, const monet_real *x)
{
    monet_part part = {site, layer, 0, 0, 0, 0, 0};
    if (p->count++ >= p->capacity) return;
    for (size_t c = 0; c < (size_t)p->s->model->arch.dim; ++c)
        part.logit += (double)x[c] * (double)p->d[c];
    p->out[p->count - 1] = part;
}

static void monet__parts_lists(monet__parts *p)
{
    monet__moe          *moe = &p->s->moe;
    const monet__change *change = p->r.edit ? p->r.edit->of[p->r.layer] : NULL;
    p->list[0] = p->r.i, p->list[1] = p->r.j;
    p->n_list[0] = p->r.n_i, p->n_list[1] = p->r.n_j;
    for (int axis = 0; axis < 2 && change && change->n_forced; ++axis) {
        uint16_t *list = moe->forced + axis * moe->N;
        p->n_list[axis] = monet__forced_list(list, p->list[axis], p->n_list[axis], axis, change,
                                             moe->N);
        p->list[axis] = list;
    }
}

/* All experts of the layer s->layer whose weight is not 0. */
static void monet__parts_experts(monet__parts *p)
{
    monet_session *s = p->s;
    double         logit, bias;
    monet__parts_lists(p);
    if (p->count < p->capacity)
        monet__each(&s->team, p->n_list[0] + p->n_list[1], monet__parts_half, p);
    for (size_t i = 0; i < (size_t)p->n_list[0]; ++i)
        for (size_t j = 0; j < (size_t)p->n_list[1]; ++j) {
            monet_part part = {MONET_SITE_MOE_OUT, s->layer, p->list[0][i], p->list[1][j], 0, 0, 0};
            double     weight = (double)monet__pair_weight(&p->r, part.i, part.j);
            if (weight == 0 || p->count++ >= p->capacity) continue;
            logit = monet__pair_logit(&s->moe, i, j, &bias);
            part.weight = (float)weight;
            part.logit = weight * logit;
            part.bias = weight * bias;
            p->out[p->count - 1] = part;
        }
}

/* d (C): what a number of the stream x adds to a logit. */
static void monet__logit_direction(const monet_session *s, monet_real *d, int token,
                                   const monet_real *x)
{
    const monet_real *weight = (const monet_real *)s->model->norm->data;
    size_t            C = (size_t)s->model->arch.dim;
    double            square = 0, rstd;
    for (size_t c = 0; c < C; ++c) square += (double)x[c] * (double)x[c];
    rstd = 1 / sqrt(square / (double)C + (double)s->model->arch.norm_eps);
    monet__embed(d, s->model->lm_head, token);
    for (size_t c = 0; c < C; ++c) d[c] = (monet_real)((double)d[c] * (double)weight[c] * rstd);
}

MONET_API monet_result monet_session_attribution(monet_session *session, int32_t index,
                                                 int32_t token, monet_part *out, size_t capacity,
                                                 size_t *count)
{
    monet_session *s = session;
    monet_error   *err = s ? &s->error : NULL;
    monet__parts   p;
    monet_result   result = MONET_OK;
    fenv_t         own;
    MONET__NEED(ARGUMENT, s && count && (out || !capacity), "attribution: out or count is NULL");
    MONET__NEED(STATE, s->kept && s->n_last, "attribution: needs capture_activations and an eval");
    MONET__NEED(ARGUMENT, index >= 0 && index < s->n_last && token >= 0 &&
                token < s->model->arch.vocab_size, "attribution: logit %d after token %d of the "
                "last eval, there are %d and %d", token, index, s->model->arch.vocab_size,
                s->n_last);
    memset(&p, 0, sizeof p);
    p.s = s, p.d = s->q, p.out = out, p.capacity = capacity;
    monet__mode_begin(&own);
    s->moe.routed = NULL; /* its work memory is used here */
    monet__logit_direction(s, s->q, token, monet_session_activation(s, MONET_SITE_RESIDUAL,
                                                                    s->n_ran - 1, index));
    monet__parts_add(&p, MONET_SITE_EMBEDDING, -1,
                     monet_session_activation(s, MONET_SITE_EMBEDDING, -1, index));
    for (int l = 0; result == MONET_OK && l < s->n_ran; ++l) {
        s->layer = l;
        p.n = monet_session_activation(s, MONET_SITE_MOE_IN, l, index);
        monet__parts_add(&p, MONET_SITE_ATTENTION_OUT, l,
                         monet_session_activation(s, MONET_SITE_ATTENTION_OUT, l, index));
        result = monet_session_routing(s, index, l, &p.r);
        if (result == MONET_OK) monet__parts_experts(&p);
    }
    monet__mode_end(&own);
    MONET__NEED(STATE, result == MONET_OK, "attribution: the edit was changed since the eval");
    *count = p.count;
    return p.count > capacity ? MONET_ERROR_CAPACITY : MONET_OK;
}

MONET_API monet_result monet_session_lens(monet_session *session, const monet_real *x,
                                          monet_real *logits)
{
    monet_session *s = session;
    monet_error   *err = s ? &s->error : NULL;
    int64_t        bad;
    int            n = s ? s->in.n : 0;
    fenv_t         own;
    MONET__NEED(ARGUMENT, s && x && logits, "lens: x or logits is NULL");
    monet__mode_begin(&own);
    monet__rmsnorm_forward(s->q, x, (const monet_real *)s->model->norm->data, s->model->arch.dim,
                           (monet_real)s->model->arch.norm_eps);
    bad = monet__lm_head(s, s->q, 1, logits);
    s->in.n = n; /* a tap may call this: it uses what no site needs, and puts this back */
    monet__mode_end(&own);
    MONET__NEED(NUMERIC, bad < 0, "lens: logit %D is not finite", bad);
    return MONET_OK;
}

static monet_result monet__loss(monet_session *s, const int32_t *tokens, size_t count, double *nats,
                                monet_error *err)
{
    double sum = 0;
    MONET__NEED(ARGUMENT, (tokens || !count) && nats, "loss: tokens or nats is NULL");
    MONET__NEED(STATE, s->all_logits, "loss: needs all_logits");
    MONET__NEED(STATE, s->n_run == s->model->arch.n_layers, "loss: no logits with set_last_layer");
    MONET__NEED(CONTEXT_FULL, count <= (size_t)s->S, "loss: %U tokens, the context is %d",
                (uint64_t)count, s->S);
    MONET__TRY(monet_session_rewind(s, 0));
    for (size_t at = 0, n; at < count; at += n) {
        n = count - at < (size_t)s->B ? count - at : (size_t)s->B;
        MONET__TRY(monet_session_eval(s, tokens + at, n));
        for (size_t k = 0; k < n && at + k + 1 < count; ++k)
            sum -= monet_logprob(monet_session_logits_at(s, (int32_t)k), s->model->arch.vocab_size,
                                 tokens[at + k + 1]);
    }
    *nats = sum;
    return MONET_OK;
}

MONET_API monet_result monet_session_loss(monet_session *session, const int32_t *tokens,
                                          size_t count, double *nats)
{
    monet_result result;
    fenv_t       own;
    if (!session) return MONET_ERROR_ARGUMENT;
    monet__mode_begin(&own);
    result = monet__loss(session, tokens, count, nats, &session->error);
    monet__mode_end(&own);
    return result;
}

MONET_API monet_result monet_session_effect(monet_session *session, const monet_edit *edit,
                                            const int32_t *tokens, size_t count, double *plain,
                                            double *edited)
{
    const monet_edit *own;
    monet_result      result;
    monet_error      *err = session ? &session->error : NULL;
    MONET__NEED(ARGUMENT, session && plain && edited, "effect: plain or edited is NULL");
    own = session->edit;
    result = monet_session_set_edit(session, edit); /* one of another shape: before any work */
    if (result == MONET_OK) result = monet_session_loss(session, tokens, count, edited);
    if (result == MONET_OK) result = monet_session_set_edit(session, NULL);
    if (result == MONET_OK) result = monet_session_loss(session, tokens, count, plain);
    (void)monet_session_set_edit(session, own);
    (void)monet_session_rewind(session, 0);
    return result;
}

/* ---- snapshots ------------------------------------------------------------------- >>snapshots
   The bytes are described on top (A SNAPSHOT). The header has a hash of its own, so that damage is
   told from a snapshot of another model.                                                         */
#define MONET__SNAPSHOT 72 /* bytes of the header */
static const uint8_t monet__snapshot_magic[8] = {'M', 'O', 'N', 'E', 'T', 'K', 'V', 0x1a};

static uint64_t monet__fingerprint(const monet_model *model)
{
    uint8_t     bytes[MONET__ENTRY];
    monet__hash hash;
    monet__sink sink = {bytes, 0};
    int32_t     fields[MONET__ARCH];
    monet__hash_begin(&hash);
    memcpy(fields, &model->arch, sizeof fields);
    monet__emit_ints(&sink, fields, MONET__ARCH);
    monet__hash_add(&hash, bytes, (size_t)sink.n);
    for (size_t k = 0; k < model->n_tensors; ++k) {
        sink.n = 0;
        monet__emit_tensor(&sink, &model->tensors[k]);
        monet__hash_add(&hash, bytes, (size_t)sink.n);
    }
    return monet__hash_end(&hash);
}

/* Bytes of the first rows of a column group. Values in bf16 are kept in pairs of rows. */
static uint64_t monet__cache_rows(const monet_tensor *t, int rows)
{
    bool pairs = t->layout == MONET_SUMS && t->dtype == MONET_BF16;
    return monet__round_up((uint64_t)rows, pairs ? 2 : 1) * monet__row_bytes(t->dtype);
}

/* Bytes of the keys and values of the first tokens in one layer. */
static uint64_t monet__cache_bytes(const monet_session *s, int tokens)
{
    uint64_t groups = (uint64_t)s->model->arch.n_kv_heads * monet__n_groups(&s->key_panel);
    return groups * (monet__cache_rows(&s->key_panel, tokens) +
                     monet__cache_rows(&s->value_panel, tokens));
}

/* Between the cache and a snapshot: to `out`, or else from `in`. */
static void monet__cache_move(const monet_session *s, uint8_t *out, const uint8_t *in)
{
    size_t groups = (size_t)s->model->arch.n_kv_heads * monet__n_groups(&s->key_panel), at = 0;
    for (int part = 0; part < 2 * s->model->arch.n_layers; ++part) {
        const monet_tensor *t = part % 2 ? &s->value_panel : &s->key_panel;
        int                 rows = s->seen[part / 2];
        size_t              size = (size_t)monet__cache_rows(t, rows), step = monet__group_bytes(t);
        bool                alone = rows % 2 && size != (size_t)rows * monet__row_bytes(t->dtype);
        char *cache = (part % 2 ? s->values : s->keys) + (size_t)(part / 2) * groups * step;
        for (size_t k = 0; k < groups; ++k, cache += step, at += size) {
            char *to = out ? (char *)out + at : cache;
            memcpy(to, out ? cache : (const char *)in + at, size);
            for (size_t c = 0; alone && c < MONET__GROUP; ++c) /* the other row of the last pair */
                memset(to + size - 4 * MONET__GROUP + 4 * c + 2, 0, 2);
        }
    }
}

MONET_API monet_result monet_session_snapshot(const monet_session *session, void *data,
                                              size_t capacity, size_t *size)
{
    const monet_session *s = session;
    const monet_real    *logits = monet_session_logits(s);
    const monet_arch    *a = s ? &s->model->arch : NULL;
    uint64_t             bytes = MONET__SNAPSHOT, V;
    monet__sink          sink = {(uint8_t *)data, 0};
    if (!s || !size || (capacity && !data)) return MONET_ERROR_ARGUMENT;
    if (MONET__BIG_ENDIAN || sizeof(monet_real) != sizeof(float)) return MONET_ERROR_UNSUPPORTED;
    V = logits ? (uint64_t)a->vocab_size : 0;
    bytes += 4 * ((uint64_t)a->n_layers + (uint64_t)s->length + V);
    for (int l = 0; l < a->n_layers; ++l) bytes += monet__cache_bytes(s, s->seen[l]);
    *size = (size_t)bytes; /* a session is as large, and fits the address space */
    if (bytes > capacity) return MONET_ERROR_CAPACITY;
    sink.n = MONET__SNAPSHOT;
    monet__emit_ints(&sink, s->seen, a->n_layers);
    monet__emit_ints(&sink, s->tokens, s->length);
    monet__cache_move(s, sink.p + sink.n, NULL);
    if (logits) memcpy(sink.p + bytes - 4 * V, logits, 4 * (size_t)V);
    sink.n = 0;
    monet__emit_bytes(&sink, monet__snapshot_magic, 8);
    monet__emit(&sink, 1 | (uint64_t)0x01020304 << 32, 8); /* 1: version */
    monet__emit(&sink, bytes, 8);
    monet__emit(&sink, monet__fingerprint(s->model), 8);
    monet__emit(&sink, (uint64_t)s->key_panel.dtype | (uint64_t)a->n_layers << 32, 8);
    monet__emit(&sink, (uint64_t)a->n_kv_heads | (uint64_t)s->D << 32, 8);
    monet__emit(&sink, (uint64_t)s->length | V << 32, 8);
    monet__emit(&sink, monet__hash_of(sink.p + MONET__SNAPSHOT, (size_t)bytes - MONET__SNAPSHOT),
                8);
    monet__emit(&sink, monet__hash_of(sink.p, 64), 8);
    return MONET_OK;
}

/* The header of a snapshot of `size` bytes, and its size as far as that follows from the header. */
static monet_result monet__snapshot_header(const monet_session *s, const uint8_t *p, uint64_t size,
                                           monet_error *err)
{
    const monet_arch *a = &s->model->arch;
    uint64_t          length, logits, least;
    MONET__NEED(UNSUPPORTED, !MONET__BIG_ENDIAN && sizeof(monet_real) == sizeof(float),
                "this build (big-endian, or MONET_REAL not float) has no snapshots");
    MONET__NEED(FORMAT, size >= MONET__SNAPSHOT, "%U bytes: too short for a snapshot", size);
    MONET__NEED(FORMAT, !memcmp(p, monet__snapshot_magic, 8), "magic bytes: not a snapshot");
    MONET__NEED(FORMAT, monet__u64(p + 64) == monet__hash_of(p, 64), "snapshot: hash of the header "
                "does not match");
    MONET__NEED(VERSION, monet__u32(p + 8) == 1, "snapshot is version %U, this reads 1",
                (uint64_t)monet__u32(p + 8));
    MONET__NEED(FORMAT, monet__u32(p + 12) == 0x01020304u, "snapshot: byte order tag");
    MONET__NEED(FORMAT, monet__u64(p + 16) == size, "snapshot is %U bytes, its header says %U",
                size, monet__u64(p + 16));
    MONET__NEED(ARGUMENT, monet__u64(p + 24) == monet__fingerprint(s->model),
                "snapshot is of another model");
    MONET__NEED(ARGUMENT, monet__u32(p + 32) == (uint32_t)s->key_panel.dtype,
                "snapshot has a cache of %s, the session has %s",
                monet_dtype_name((monet_dtype)monet__u32(p + 32)),
                monet_dtype_name(s->key_panel.dtype));
    MONET__NEED(FORMAT, monet__u32(p + 36) == (uint32_t)a->n_layers &&
                monet__u32(p + 40) == (uint32_t)a->n_kv_heads &&
                monet__u32(p + 44) == (uint32_t)s->D, "snapshot: shape of the cache");
    length = monet__u32(p + 48), logits = monet__u32(p + 52);
    MONET__NEED(FORMAT, !logits || (logits == (uint64_t)a->vocab_size && length),
                "snapshot: %U logits after %U tokens", logits, length);
    MONET__NEED(CONTEXT_FULL, length <= (uint64_t)s->S, "snapshot of %U tokens, the context is %d",
                length, s->S);
    least = MONET__SNAPSHOT + 4 * ((uint64_t)a->n_layers + length + logits);
    MONET__NEED(FORMAT, size >= least && (size - least) / (uint64_t)a->n_layers <=
                monet__cache_bytes(s, (int)length), "snapshot: %U bytes for %U tokens", size,
                length);
    return MONET_OK;
}

/* What is behind a header that is right. */
static monet_result monet__snapshot_body(const monet_session *s, const uint8_t *p, uint64_t size,
                                         monet_error *err)
{
    const monet_arch *a = &s->model->arch;
    uint32_t          length = monet__u32(p + 48), logits = monet__u32(p + 52), last = length;
    const uint8_t    *at = p + MONET__SNAPSHOT;
    uint64_t          bytes = MONET__SNAPSHOT;
    MONET__NEED(FORMAT, monet__u64(p + 56) == monet__hash_of(at, (size_t)size - MONET__SNAPSHOT),
                "snapshot: hash does not match");
    for (int l = 0; l < a->n_layers; ++l, at += 4) {
        uint32_t seen = monet__u32(at);
        MONET__NEED(FORMAT, l ? seen <= last : seen == length, "snapshot: layer %d saw %U of %U "
                    "tokens", l, (uint64_t)seen, (uint64_t)last);
        last = seen;
        bytes += monet__cache_bytes(s, (int)seen);
    }
    MONET__NEED(FORMAT, !logits || last == length, "snapshot: logits without the last layer");
    bytes += 4 * ((uint64_t)a->n_layers + length + logits);
    MONET__NEED(FORMAT, bytes == size, "snapshot is %U bytes, expected %U", size, bytes);
    for (uint32_t k = 0; k < length; ++k, at += 4) /* -1: an embedding */
        MONET__NEED(FORMAT, monet__u32(at) + 1 <= (uint32_t)a->vocab_size, "snapshot: token %U",
                    (uint64_t)k);
    for (at = p + size - 4 * (uint64_t)logits; at < p + size; at += 4)
        MONET__NEED(FORMAT, (monet__u32(at) & 0x7f800000u) != 0x7f800000u,
                    "snapshot: a logit is not finite");
    return MONET_OK;
}

static void monet__snapshot_apply(monet_session *s, const uint8_t *p, uint64_t size)
{
    int            L = s->model->arch.n_layers;
    uint32_t       logits = monet__u32(p + 52);
    const uint8_t *at = p + MONET__SNAPSHOT;
    s->length = (int)monet__u32(p + 48);
    s->n_last = 0;
    s->n_logits = logits > 0;
    for (int l = 0; l < L; ++l, at += 4) s->seen[l] = (int32_t)monet__u32(at);
    for (int t = 0; t < s->length; ++t, at += 4) s->tokens[t] = (int32_t)monet__u32(at);
    monet__cache_move(s, NULL, at);
    memcpy(s->logits, p + size - 4 * (uint64_t)logits, 4 * (size_t)logits);
}

MONET_API monet_result monet_session_restore(monet_session *session, const void *data, size_t size)
{
    monet_error *err = session ? &session->error : NULL;
    MONET__NEED(ARGUMENT, session && data, "restore: data is NULL");
    MONET__TRY(monet__snapshot_header(session, (const uint8_t *)data, size, err));
    MONET__TRY(monet__snapshot_body(session, (const uint8_t *)data, size, err));
    monet__snapshot_apply(session, (const uint8_t *)data, size);
    return MONET_OK;
}

#ifndef MONET_NO_STDIO
MONET_API monet_result monet_session_save(const monet_session *session, const char *path,
                                          monet_error *err)
{
    size_t       size = 0;
    void        *data;
    monet_result result;
    MONET__NEED(ARGUMENT, session && path, "save: session or path is NULL");
    result = monet_session_snapshot(session, NULL, 0, &size);
    MONET__NEED(UNSUPPORTED, result == MONET_ERROR_CAPACITY, "this build has no snapshots");
    data = monet__alloc(&session->team.host, size);
    if (!data) return monet__no_memory(err, "snapshot", size);
    (void)monet_session_snapshot(session, data, size, &size);
    result = monet__save_bytes(&session->team.host, path, data, size, err);
    monet__free(&session->team.host, data, size);
    return result;
}

MONET_API monet_result monet_session_load(monet_session *session, const char *path,
                                          monet_error *err)
{
    monet_session *s = session;
    void          *block;
    uint64_t       size, most;
    monet_result   result;
    MONET__NEED(ARGUMENT, s && path, "load: session or path is NULL");
    most = MONET__SNAPSHOT + 4 * (uint64_t)(s->model->arch.n_layers + s->S) +
           4 * (uint64_t)s->model->arch.vocab_size +
           (uint64_t)s->model->arch.n_layers * monet__cache_bytes(s, s->S);
    MONET__TRY(monet__load_whole(&s->team.host, path, most, &block, &size, err));
    result = monet_session_restore(s, block, (size_t)size);
    monet__free(&s->team.host, block, size + 64);
    if (result == MONET_OK) return result;
    return monet__fail(err, result, "%s: %s", path, s->error.message);
}
#endif

/* ---- sampling --------------------------------------------------------------------- >>sampling */
static double monet__logprob(const monet_real *logits, int32_t vocab_size, int32_t token)
{
    double max, sum = 0;
    if (!logits || token < 0 || token >= vocab_size) return -HUGE_VAL;
    max = (double)logits[0];
    for (int32_t v = 1; v < vocab_size; ++v)
        if ((double)logits[v] > max) max = (double)logits[v];
    for (int32_t v = 0; v < vocab_size; ++v) sum += exp((double)logits[v] - max);
    return (double)logits[token] - max - log(sum);
}

MONET_API double monet_logprob(const monet_real *logits, int32_t vocab_size, int32_t token)
{
    volatile double result; /* volatile: compilers move the rest across the mode */
    fenv_t          own;
    monet__mode_begin(&own);
    result = monet__logprob(logits, vocab_size, token);
    monet__mode_end(&own);
    return result;
}

static bool monet__likelier(const monet__candidate *a, const monet__candidate *b)
{
    return a->logit != b->logit ? a->logit > b->logit : a->token < b->token;
}

/* A heap that goes down from `end`: the likeliest is end[-1]. Lets element k sink. */
static void monet__candidate_sink(monet__candidate *end, size_t n, size_t k)
{
    monet__candidate *heap = end - 1, c = *(heap - k);
    for (size_t child; (child = 2 * k + 1) < n; k = child) {
        const monet__candidate *best = heap - child;
        if (child + 1 < n && monet__likelier(best - 1, best)) --best, ++child;
        if (!monet__likelier(best, &c)) break;
        *(heap - k) = *best;
    }
    *(heap - k) = c;
}

/* The likeliest of those from `first` on, which are a heap, goes to the front of them. */
static void monet__candidate_pop(monet__candidate *list, size_t n, size_t first)
{
    monet__candidate best = list[n - 1];
    list[n - 1] = list[first];
    list[first] = best;
    monet__candidate_sink(list + n, n - first - 1, 0);
}

/* Logits of recent tokens are pushed down, each once: what differs from the model's is done. */
static void monet__penalise(const monet_session *s, const monet_sampler *p,
                            const monet_real *logits)
{
    int first = 0;
    if (p->repetition_penalty == 0 || p->repetition_penalty == 1) return;
    if (p->penalty_last_n && s->length > p->penalty_last_n) first = s->length - p->penalty_last_n;
    for (int k = first; k < s->length; ++k) {
        int32_t token = s->tokens[k];
        if (token < 0 || s->candidates[token].logit != logits[token]) continue;
        if (logits[token] > 0) s->candidates[token].logit /= (monet_real)p->repetition_penalty;
        else s->candidates[token].logit *= (monet_real)p->repetition_penalty;
    }
}

/* Weight of a candidate: its probability relative to that of the likeliest. */
static double monet__weight(const monet__candidate *c, const monet_sampler *p, double max)
{
    return exp(((double)c->logit - max) / (double)p->temperature);
}

/* What top_k leaves, and of this what top_p and min_p leave: in order at the front of the list,
   behind it is a heap of the others, because few of many are needed. Returns how many.           */
static size_t monet__cut(monet__candidate *list, size_t n, const monet_sampler *p, double max)
{
    double top_p = p->top_p < 1 ? (double)p->top_p : 0, min_p = (double)p->min_p;
    double total = 0, sum = 0;
    size_t most = p->top_k && (size_t)p->top_k < n ? (size_t)p->top_k : n, kept, sorted = 0;
    bool   all = !(top_p > 0 || min_p > 0);
    if (all && most == n) return n;
    for (size_t k = n / 2; k-- > 0;) monet__candidate_sink(list + n, n, k);
    if (most < n)
        while (sorted < most) monet__candidate_pop(list, n, sorted++);
    for (size_t k = 0; k < most; ++k) total += monet__weight(&list[k], p, max);
    for (kept = 0; kept < most && !all; ++kept) {
        double q;
        if (kept == sorted) monet__candidate_pop(list, n, sorted++);
        q = monet__weight(&list[kept], p, max);
        if (kept && (q < min_p || (top_p > 0 && sum >= top_p * total))) return kept;
        sum += q;
    }
    return most;
}

static int32_t monet__draw(const monet__candidate *list, size_t n, const monet_sampler *p,
                           double max)
{
    double  total = 0, sum = 0;
    double  u = (double)(monet__random(p->seed, MONET__RANDOM_SAMPLE, p->draws, 0) >> 11) *
               (1.0 / 9007199254740992.0); /* 2^-53 */
    for (size_t k = 0; k < n; ++k) total += monet__weight(&list[k], p, max);
    for (size_t k = 0; k + 1 < n; ++k) {
        sum += monet__weight(&list[k], p, max);
        if (sum > u * total) return list[k].token;
    }
    return list[n - 1].token;
}

static monet_result monet__sample(monet_session *s, monet_sampler *sampler, int32_t *token,
                                  float *logprob, monet_error *err)
{
    monet_sampler     p;
    const monet_real *logits = monet_session_logits(s);
    monet__candidate  best;
    size_t            V;
    MONET__NEED(ARGUMENT, token, "sample: token is NULL");
    MONET__NEED(STATE, logits, "sample: no logits, eval first");
    memset(&p, 0, sizeof p);
    if (sampler) p = *sampler;
    MONET__NEED(ARGUMENT, p.temperature >= 0 && p.temperature <= FLT_MAX && p.top_p >= 0 &&
                p.min_p >= 0 && p.repetition_penalty >= 0 && p.repetition_penalty <= FLT_MAX &&
                p.top_k >= 0 && p.penalty_last_n >= 0,
                "sampler: a field is negative or not a number");
    V = (size_t)s->model->arch.vocab_size;
    for (size_t v = 0; v < V; ++v) {
        s->candidates[v].logit = logits[v];
        s->candidates[v].token = (int32_t)v;
    }
    monet__penalise(s, &p, logits);
    best = s->candidates[0];
    for (size_t v = 1; v < V; ++v)
        if (monet__likelier(&s->candidates[v], &best)) best = s->candidates[v];
    MONET__NEED(NUMERIC, best.logit - best.logit == 0,
                "sample: no finite logit, or none after repetition_penalty");
    *token = best.token;
    if (p.temperature > 0) {
        size_t n = monet__cut(s->candidates, V, &p, (double)best.logit);
        *token = monet__draw(s->candidates, n, &p, (double)best.logit);
    }
    if (sampler) ++sampler->draws;
    if (logprob) *logprob = (float)monet__logprob(logits, (int32_t)V, *token);
    return MONET_OK;
}

MONET_API monet_result monet_session_sample(monet_session *session, monet_sampler *sampler,
                                            int32_t *token, float *logprob)
{
    monet_result result;
    fenv_t       own;
    if (!session) return MONET_ERROR_ARGUMENT;
    monet__mode_begin(&own);
    result = monet__sample(session, sampler, token, logprob, &session->error);
    monet__mode_end(&own);
    return result;
}

/* ---- generation ----------------------------------------------------------------- >>generation
   Bytes of tokens are held back while they may become a stop string or are not yet a whole
   character.                                                                                     */
typedef struct monet__stream {
    const monet_generate_config *config;
    char   held[260];    /* may be the beginning of a character, then that of a stop string */
    size_t n_held;
    char   out[256];     /* whole characters for text_fn */
    size_t n_out;
    bool   stopped;      /* text_fn returned false */
} monet__stream;

static void monet__stream_flush(monet__stream *s)
{
    if (s->n_out && !s->stopped && s->config->text_fn &&
        !s->config->text_fn(s->config->user, s->out, s->n_out))
        s->stopped = true;
    s->n_out = 0;
}

static void monet__stream_out(monet__stream *s, const char *bytes, size_t n)
{
    if (s->n_out + n > sizeof s->out) monet__stream_flush(s);
    memcpy(s->out + s->n_out, bytes, n);
    s->n_out += n;
}

/* Passes the first n bytes that are held, in whole characters. What is none becomes U+FFFD; what is
   not yet one stays, unless this is the end.                                                     */
static void monet__stream_pass(monet__stream *s, size_t n, bool end)
{
    size_t at = 0, size, need;
    for (; at < n; at += size) {
        const char *c = s->held + at;
        for (size = 1; (need = monet__utf8_size(c, size)) > size && at + size < n;) ++size;
        if (need > size && !end) break;
        if (need == size) monet__stream_out(s, c, size);
        else monet__stream_out(s, "\xef\xbf\xbd", 3);
        size -= need == 0 && size > 1; /* the byte that does not belong to it begins anew */
    }
    s->n_held -= at;
    memmove(s->held, s->held + at, s->n_held);
}

/* Takes one byte; true if it completes a stop string, which is dropped. */
static bool monet__stream_byte(monet__stream *s, char byte)
{
    size_t keep = 0, found = 0;
    s->held[s->n_held++] = byte;
    for (int32_t k = 0; k < s->config->n_stop; ++k) {
        const char *stop = s->config->stop_strings[k];
        size_t      size = strlen(stop), n = size < s->n_held ? size : s->n_held;
        if (n == size && n > found && !memcmp(s->held + s->n_held - n, stop, n))
            found = n; /* of several that end here the longest counts */
        for (; n > keep; --n)
            if (n < size && !memcmp(s->held + s->n_held - n, stop, n)) keep = n;
    }
    if (found) {
        s->n_held -= found;
        return true;
    }
    monet__stream_pass(s, s->n_held - keep, false);
    return false;
}

static void monet__stream_end(monet__stream *s)
{
    monet__stream_pass(s, s->n_held, true);
    monet__stream_flush(s);
}

/* One token's text; the reason if generation ends here. */
static monet_stop monet__stream_token(monet__stream *s, const monet_tokenizer *tokenizer,
                                      int32_t token, bool first)
{
    size_t      size = 0;
    const char *bytes = monet_tokenizer_bytes(tokenizer, token, &size);
    for (size_t k = 0; bytes && k < size; ++k) {
        if (first && k == 0 && bytes[0] == ' ' && tokenizer->strip_space) continue;
        if (monet__stream_byte(s, bytes[k])) return MONET_STOP_STRING;
        if (s->stopped) break;
    }
    monet__stream_flush(s);
    return s->stopped ? MONET_STOP_CALLBACK : MONET_STOP_NONE;
}

static monet_result monet__generate_check(const monet_session *s, const monet_generate_config *c,
                                          monet_error *err)
{
    MONET__NEED(STATE, s->model->has_tokenizer, "generate: the model has no tokenizer");
    MONET__NEED(ARGUMENT, c->max_tokens >= 0 && c->n_stop >= 0 && c->n_stop <= 16 &&
                (!c->n_stop || c->stop_strings), "generate: max_tokens is %d, n_stop is %d: must "
                "be 0 or more, and 0..16", c->max_tokens, c->n_stop);
    for (int32_t k = 0; k < c->n_stop; ++k)
        MONET__NEED(ARGUMENT, c->stop_strings[k] && c->stop_strings[k][0] &&
                    strlen(c->stop_strings[k]) <= 255,
                    "generate: stop string %d must have 1..255 bytes", k);
    return MONET_OK;
}

/* Encodes the prompt to where its tokens belong in the session, and evaluates it. */
static monet_result monet__generate_prompt(monet_session *s, const char *prompt, size_t *count,
                                           monet_error *err)
{
    int32_t     *tokens = s->tokens + s->length, length = s->length, room = s->S - length;
    size_t       n = 0, B = (size_t)s->B;
    monet_result result = monet_tokenizer_encode(&s->model->tokenizer, prompt, strlen(prompt),
                                                 length ? 0 : MONET_ADD_BOS, tokens, (size_t)room,
                                                 &n);
    if (result != MONET_OK && result != MONET_ERROR_CAPACITY)
        return monet__fail(err, result, "generate: cannot encode the prompt");
    MONET__NEED(STATE, n || s->n_logits, "generate: an empty prompt, and no BOS");
    *count = n;
    MONET__NEED(CONTEXT_FULL, n <= (size_t)room, "prompt has %U tokens, the context of %d has room "
                "for %d", (uint64_t)n, s->S, room);
    for (size_t at = 0; result == MONET_OK && at < n; at += B)
        result = monet_session_eval(s, tokens + at, n - at < B ? n - at : B);
    if (result != MONET_OK) (void)monet_session_rewind(s, length);
    return result;
}

/* Draws, delivers and evaluates tokens until something ends it. */
static monet_result monet__generate_tokens(monet_session *s, const monet_generate_config *c,
                                           bool bare, monet_generate_result *r)
{
    monet__stream stream;
    monet_result  result = MONET_OK;
    memset(&stream, 0, sizeof stream);
    stream.config = c;
    while (result == MONET_OK && r->stop == MONET_STOP_NONE) {
        int32_t token = 0;
        float   logprob = 0;
        result = monet_session_sample(s, &r->sampler, &token, c->logprobs ? &logprob : NULL);
        if (result != MONET_OK) break;
        ++r->n_tokens;
        r->last_token = token;
        if (c->token_fn && !c->token_fn(c->user, token, logprob)) r->stop = MONET_STOP_CALLBACK;
        else if (!c->ignore_eos && monet_tokenizer_is_eos(&s->model->tokenizer, token))
            r->stop = MONET_STOP_EOS;
        else
            r->stop = monet__stream_token(&stream, &s->model->tokenizer, token,
                                          bare && r->n_tokens == 1);
        if (r->stop != MONET_STOP_NONE) break;
        if (c->max_tokens && r->n_tokens == c->max_tokens) r->stop = MONET_STOP_MAX_TOKENS;
        else if (s->length == s->S) r->stop = MONET_STOP_CONTEXT_FULL;
        else if ((result = monet_session_eval(s, &token, 1)) == MONET_OK) r->last_token = -1;
    }
    monet__stream_end(&stream);
    if (stream.stopped) r->stop = MONET_STOP_CALLBACK;
    return result;
}

MONET_API monet_result monet_session_generate(monet_session *session, const char *prompt,
                                              const monet_generate_config *config,
                                              monet_generate_result *result)
{
    monet_generate_config c;
    monet_generate_result r;
    monet_result          code;
    size_t                n = 0;
    bool                  bare; /* the text begins with the first token drawn */
    memset(&r, 0, sizeof r);
    r.last_token = -1;
    if (config) r.sampler = config->sampler;
    if (result) *result = r;
    if (!session) return MONET_ERROR_ARGUMENT;
    code = monet__config(&c, sizeof c, config, &session->error);
    if (code == MONET_OK) code = monet__generate_check(session, &c, &session->error);
    bare = (!prompt || !*prompt) && session->length < 2 &&
           (!session->length || session->tokens[0] == session->model->tokenizer.bos_id);
    if (code == MONET_OK && prompt)
        code = monet__generate_prompt(session, prompt, &n, &session->error);
    r.n_prompt = (int32_t)n;
    if (code == MONET_OK) code = monet__generate_tokens(session, &c, bare, &r);
    if (result) *result = r;
    return code;
}

/* ---- training --------------------------------------------------------------------- >>training
   Forward keeps the residual stream, q, k, v, the attention's output and the gates; all else is
   computed again on the way back. Weights, gradients and both moments are four blocks in the order
   and layout of a file's data section. Every gradient has one writer, which sums over the tokens in
   order: the number of threads does not change a bit.                                            */
#ifndef MONET_NO_TRAINING
enum { MONET__BLOCK = 4096 }; /* numbers that one item of an update handles */

typedef struct monet__kept { /* activations of one layer */
    monet_real *x, *middle;  /* (BT,C) residual stream before attention, before the experts */
    monet_real *attention;   /* (BT,stride) what o_proj reads */
    monet_real *heads;       /* q (B,A,T,padded), k, v (B,K,padded/32,T,32); q, k turned by rope */
    monet_real *a[2], *s[2]; /* of the experts, if all tokens are one chunk: */
    bool        whole;
} monet__kept;

struct monet_trainer {
    monet_model         *model;     /* ours; its weights are trained */
    void                *arena;     /* the block that this struct lies in */
    uint64_t             arena_size; /* with room to align it */
    monet_error          error;
    monet_trainer_config config;    /* all defaults filled in */
    monet__team          team;
    int                  B, T, BT, D, padded, n_routers;
    size_t               C, stride; /* of a row, of a split row */
    uint64_t             n;         /* numbers in each of the four blocks */
    monet_real          *weights, *grads, *moment1, *moment2;
    bool                *frozen;    /* (tensors) */
    monet__kept         *kept;      /* (L) */
    monet_real          *last;      /* (BT,C) residual stream after the last layer */
    monet_real          *h, *dx;    /* (BT,C) */
    monet_real          *rstd;      /* (BT) of a norm on the way back */
    monet_real          *split, *dsplit; /* (BT,stride) input of a product, and its gradient */
    monet__input         in;             /* the same input */
    monet_real          *wide;      /* (BT,3C) rows of q, k, v, or of their gradients */
    monet_real          *dheads;    /* their gradients */
    monet_real          *scores;    /* (tasks,32,2T+padded) weights of queries, their gradients */
    monet_real          *logits;    /* (BT,V); after forward their gradient */
    monet_real          *cosine, *sine; /* (T,D/2) */
    double              *usage;     /* (R,2HN) gates summed over the tokens, (R,2H) their maxima, */
    size_t               n_usage;   /* then the totals: */
    double              *totals;    /* tokens, scored targets, sum of their losses, failures */
    double              *batch;     /* (2H+1) sums of one router */
    double              *means, *vars; /* (R,2H) batch statistics of this pass */
    double              *loss;      /* (BT) */
    double              *squares;   /* (blocks) */
    int32_t             *tokens, *targets; /* (BT) */
    monet_real          *all_gates; /* of all routers; those of the moe are a view */
    uint16_t            *all_active;
    int32_t             *all_n_active;
    monet__moe           moe;
    void                *user;      /* bytes of monet_trainer_load, in a block of the host */
    uint64_t             user_size;
    monet_counts         counts;
    bool                 forwarded, pending;
    bool                 pass_bad, bad; /* a loss is not finite: of this pass, since the update */
    double               scored, pass_scored; /* own targets: since the update, of this pass */
    /* the step at hand */
    void (*item_fn)(monet_trainer *t, size_t item);
    bool                 back;
    int                  layer, pass;
    const monet__layer  *w;         /* of the layer */
    monet__kept         *own;       /* of the layer */
    size_t               router;    /* of the layer */
    const monet_tensor  *tensor;
    monet_real          *norm_in;   /* what the norm reads, after `added` went into it */
    const monet_real    *added;     /* or NULL */
    const monet_tensor  *norm;
    double               scale, rate, correction1, correction2;
};

static uint64_t monet__trainer_layout(monet_trainer *t, const monet_arch *a, char *base)
{
    uint64_t BT = (uint64_t)t->BT, C = (uint64_t)a->dim, r = sizeof(monet_real);
    uint64_t A = (uint64_t)a->n_heads, K = (uint64_t)a->n_kv_heads, P = (uint64_t)t->padded;
    uint64_t H2 = 2 * (uint64_t)a->moe_heads, R = (uint64_t)t->n_routers;
    uint64_t angles = (uint64_t)t->T * (uint64_t)(t->D / 2), tasks = (uint64_t)t->team.n;
    size_t   n_tensors = monet__count_tensors(a);
    monet__arena arena = {base, sizeof *t, false};
#define MONET__REALS(count) (monet_real *)monet__take(&arena, count, r)
#define MONET__DOUBLES(count) (double *)monet__take(&arena, count, sizeof(double))
    t->grads = MONET__REALS(t->n);
    t->moment1 = MONET__REALS(2 * t->n); /* both: what a checkpoint keeps */
    t->moment2 = base ? t->moment1 + t->n : NULL;
    t->frozen = (bool *)monet__take(&arena, n_tensors, sizeof(bool));
    t->kept = (monet__kept *)monet__take(&arena, (uint64_t)a->n_layers, sizeof(monet__kept));
    for (int l = 0; l < a->n_layers; ++l) {
        monet__kept none, *kept = base ? &t->kept[l] : &none;
        kept->x = MONET__REALS(BT * C);
        kept->middle = MONET__REALS(BT * C);
        kept->attention = MONET__REALS(BT * t->stride);
        kept->heads = MONET__REALS(BT * P * (A + 2 * K));
        for (int axis = 0; axis < 2; ++axis) {
            kept->a[axis] = MONET__REALS(t->moe.max_slots * (uint64_t)t->moe.m);
            kept->s[axis] = MONET__REALS(t->moe.max_slots * (uint64_t)t->moe.n_rows);
        }
    }
    t->last = MONET__REALS(BT * C);
    t->h = MONET__REALS(BT * C);
    t->dx = MONET__REALS(BT * C);
    t->rstd = MONET__REALS(BT);
    t->split = MONET__REALS(BT * t->stride);
    t->in = monet__input_of(t->split, t->stride, t->BT);
    t->dsplit = MONET__REALS(BT * t->stride);
    t->wide = MONET__REALS(BT * 3 * C);
    t->dheads = MONET__REALS(BT * P * (A + 2 * K));
    t->scores = MONET__REALS(tasks * MONET__TOKENS * (2 * (uint64_t)t->T + P));
    t->logits = MONET__REALS(BT * (uint64_t)a->vocab_size);
    t->cosine = MONET__REALS(angles);
    t->sine = MONET__REALS(angles);
    t->n_usage = (size_t)(R * H2 * ((uint64_t)a->moe_experts + 1) + 4);
    t->usage = MONET__DOUBLES(t->n_usage);
    t->totals = base ? t->usage + t->n_usage - 4 : NULL;
    t->batch = MONET__DOUBLES(H2 + 1);
    t->means = MONET__DOUBLES(R * H2);
    t->vars = MONET__DOUBLES(R * H2);
    t->loss = MONET__DOUBLES(BT);
    t->squares = MONET__DOUBLES(t->n / MONET__BLOCK + 1);
    t->tokens = (int32_t *)monet__take(&arena, BT, sizeof(int32_t));
    t->targets = (int32_t *)monet__take(&arena, BT, sizeof(int32_t));
#undef MONET__REALS
#undef MONET__DOUBLES
    monet__moe_layout(&t->moe, &arena, t->team.n, t->n_routers);
    t->all_gates = t->moe.gates;
    t->all_active = t->moe.active;
    t->all_n_active = t->moe.n_active;
    return arena.overflow || arena.used > SIZE_MAX / 2 ? UINT64_MAX : arena.used;
}

/* Does the name fit the pattern? '*' stands for any characters. */
static bool monet__matches(const char *pattern, const char *name)
{
    const char *star = NULL, *from = NULL;
    while (*name) {
        if (*pattern == '*') star = pattern++, from = name;
        else if (*pattern == *name) ++pattern, ++name;
        else if (star) pattern = star + 1, name = ++from;
        else return false;
    }
    while (*pattern == '*') ++pattern;
    return !*pattern;
}

static monet_result monet__trainer_freeze(monet_trainer *t, monet_error *err)
{
    const monet_trainer_config *c = &t->config;
    const monet_model          *model = t->model;
    for (size_t k = 0; k < model->n_tensors; ++k) { /* statistics are not trained by gradients */
        const char *dot = strrchr(model->tensors[k].name, '.');
        t->frozen[k] = dot && !strncmp(dot, ".running_", 9);
    }
    for (int32_t p = 0; p < c->n_freeze; ++p) {
        bool used = false;
        MONET__NEED(ARGUMENT, c->freeze && c->freeze[p], "freeze: pattern %d is NULL", p);
        for (size_t k = 0; k < model->n_tensors; ++k)
            if (monet__matches(c->freeze[p], model->tensors[k].name))
                t->frozen[k] = used = true;
        MONET__NEED(ARGUMENT, used, "freeze: no tensor matches '%s'", c->freeze[p]);
    }
    return MONET_OK;
}

static monet_result monet__trainer_numbers(monet_trainer_config *c, monet_error *err)
{
    const struct { const char *name; float *value, preset, most; } fields[] = {
        {"beta1", &c->beta1, 0.9f, 1}, {"beta2", &c->beta2, 0.95f, 1}, {"eps", &c->eps, 1e-8f, 1},
        {"uniformity_eps", &c->uniformity_eps, 1e-8f, 1}, {"weight_decay", &c->weight_decay, 0,
        1e6f}, {"grad_clip", &c->grad_clip, 0, 1e30f}, {"uniformity", &c->uniformity, 0, 1e6f},
        {"ambiguity", &c->ambiguity, 0, 1e6f}};
    for (size_t k = 0; k < sizeof fields / sizeof *fields; ++k) {
        float x = *fields[k].value;
        MONET__NEED(ARGUMENT, x >= 0 && x <= fields[k].most && (k > 1 || x < 1),
                    "trainer: %s is %s", fields[k].name,
                    x == 1 ? "1, must be less" : monet__off(x, fields[k].most));
        if (x == 0) *fields[k].value = fields[k].preset;
    }
    return MONET_OK;
}

/* Checks the config and sets all sizes of a trainer that does not exist yet. */
static monet_result monet__trainer_begin(monet_trainer *t, const monet_model *model,
                                         const monet_trainer_config *config, monet_error *err)
{
    const monet_arch     *a = &model->arch;
    const monet_host     *host;
    monet_trainer_config *c = &t->config;
    memset(t, 0, sizeof *t);
    MONET__TRY(monet__config(c, sizeof *c, config, err));
    MONET__TRY(monet__trainer_numbers(c, err));
    MONET__NEED(STATE, model->has_weights, "the model is a tokenizer alone, no weights");
    host = c->host ? c->host : &model->host;
    if (!c->batch_size) c->batch_size = 1;
    if (!c->seq_len) c->seq_len = a->max_seq_len;
    MONET__NEED(ARGUMENT, c->batch_size >= 0 && c->seq_len >= 0 && c->n_freeze >= 0 &&
                (int64_t)c->batch_size * c->seq_len <= 1 << 24 &&
                (int64_t)c->batch_size * c->seq_len * a->n_heads <= INT32_MAX,
                "trainer: batch_size is %d, seq_len is %d, n_freeze is %d: negative, or more than "
                "%d tokens", c->batch_size, c->seq_len, c->n_freeze, 1 << 24);
    MONET__NEED(ARGUMENT, host->n_threads >= 0 && host->n_threads <= 256,
                "n_threads is %d, must be 0..256", host->n_threads);
    t->team.host = *host;
    t->team.n = host->n_threads ? host->n_threads : 1;
    t->B = c->batch_size, t->T = c->seq_len, t->BT = t->B * t->T;
    t->C = (size_t)a->dim;
    t->D = a->dim / a->n_heads;
    t->padded = (int)monet__round_up((uint64_t)t->D, MONET__GROUP);
    t->n_routers = (a->n_layers + a->moe_groups - 1) / a->moe_groups;
    t->stride = (size_t)monet__round_up((uint64_t)a->dim, MONET__GROUP) + MONET__LANES;
    t->moe.trains = true;
    monet__moe_sizes(&t->moe, a, t->BT);
    MONET__NEED(MEMORY, monet__data_bytes(a, &t->n) && t->n <= SIZE_MAX / 8,
                "trainer: too large for the address space");
    t->n /= sizeof(monet_real);
    t->arena_size = monet__trainer_layout(t, a, NULL);
    MONET__NEED(MEMORY, t->arena_size != UINT64_MAX, "trainer of %d sequences of %d tokens does "
                "not fit the address space", t->B, t->T);
    t->arena_size += 64;
    return MONET_OK;
}

MONET_API monet_result monet_trainer_size(const monet_model *model,
                                          const monet_trainer_config *config, size_t *size)
{
    monet_trainer       draft;
    monet_writer_config c;
    monet__span         raw[MONET__S_COUNT];
    monet__plan         plan;
    monet__sink         sink = {NULL, 0};
    if (!model || !size) return MONET_ERROR_ARGUMENT;
    MONET__TRY(monet__trainer_begin(&draft, model, config, NULL));
    monet__model_content(model, &c, raw);
    memset(&plan, 0, sizeof plan);
    plan.n_tensors = model->n_tensors;
    monet__emit_header(&plan, &sink, &c, raw, draft.n * sizeof(monet_real));
    *size = (size_t)(draft.arena_size + plan.file_size + 64 + model->arena_size);
    return MONET_OK;
}

MONET_API void monet_trainer_free(monet_trainer *trainer)
{
    monet_host host;
    if (!trainer) return;
    monet__team_stop(&trainer->team);
    host = trainer->team.host;
    monet__free(&host, trainer->user, trainer->user_size);
    monet_model_free(trainer->model);
    monet__free(&host, trainer->arena, trainer->arena_size);
}

MONET_API monet_result monet_trainer_create(const monet_model *model,
                                            const monet_trainer_config *config,
                                            monet_trainer **out, monet_error *err)
{
    monet_trainer       draft, *t;
    monet_writer_config c;
    monet_model_config  full;
    monet__span         raw[MONET__S_COUNT];
    monet_result        result;
    if (out) *out = NULL;
    MONET__NEED(ARGUMENT, model && out, "trainer: model or out is NULL");
    MONET__TRY(monet__trainer_begin(&draft, model, config, err));
    draft.arena = monet__alloc(&draft.team.host, draft.arena_size);
    if (!draft.arena) return monet__no_memory(err, "trainer", draft.arena_size);
    t = (monet_trainer *)(void *)monet__align(draft.arena);
    (void)monet__trainer_layout(&draft, &model->arch, (char *)t);
    memcpy(t, &draft, sizeof draft);
    monet__model_content(model, &c, raw);
    memset(&full, 0, sizeof full);
    full.host = draft.team.host;
    result = monet__model_new(&c, raw, &full, model, 0, &t->model, err);
    if (result == MONET_OK) result = monet__trainer_freeze(t, err);
    if (result == MONET_OK && !monet__team_start(&t->team, &draft.team.host,
                                                  monet__kernels_for(t->config.kernels)))
        result = monet__fail(err, MONET_ERROR_MEMORY, "cannot start %d threads", draft.team.n);
    if (result != MONET_OK) {
        monet_model_free(t->model);
        monet__free(&draft.team.host, draft.arena, draft.arena_size);
        return result;
    }
    t->config.freeze = NULL, t->config.host = NULL; /* the caller's, not kept */
    t->weights = (monet_real *)(uintptr_t)t->model->sections[MONET__S_DATA].data;
    for (uint64_t k = 0; k < t->n; ++k) t->grads[k] = t->moment1[k] = t->moment2[k] = 0;
    for (int l = 0; l < model->arch.n_layers; ++l) /* padding of rows stays 0 */
        memset(t->kept[l].attention, 0, (size_t)t->BT * t->stride * sizeof(monet_real));
    monet__rope_table(t->cosine, t->sine, t->T, t->D, (double)model->arch.rope_theta);
    *out = t;
    return MONET_OK;
}

/* ---- training: forward ----------------------------------------------------------------------- */
static void monet__train_item(void *context, int item, int task)
{
    monet_trainer *t = (monet_trainer *)context;
    (void)task;
    t->item_fn(t, (size_t)item);
}

static void monet__train_each(monet_trainer *t, int count, void (*fn)(monet_trainer *t, size_t k))
{
    t->item_fn = fn;
    monet__each(&t->team, count, monet__train_item, t);
}

static void monet__train_embed(monet_trainer *t, size_t token)
{
    monet__embed(t->kept[0].x + token * t->C, t->model->embed, t->tokens[token]);
}

static void monet__train_norm_token(monet_trainer *t, size_t token)
{
    monet_real *x = t->norm_in + token * t->C, *h = t->h + token * t->C;
    if (t->added) t->team.kernels->axpy(x, 1, t->added, MONET_F32, token * t->C, t->C);
    monet__rmsnorm_forward(h, x, (const monet_real *)t->norm->data, (int)t->C,
                           (monet_real)t->model->arch.norm_eps);
    monet__to_split(t->split + token * t->stride, h, t->C);
}

/* x += added, if there is something; split gets the normalised x. */
static void monet__train_norm(monet_trainer *t, monet_real *x, const monet_real *added,
                              const monet_tensor *weight)
{
    t->norm_in = x;
    t->added = added;
    t->norm = weight;
    t->in.x = t->split;
    monet__train_each(t, t->BT, monet__train_norm_token);
}

/* Where a head of a sequence begins: of q (part 0), k or v. */
static size_t monet__train_head(const monet_trainer *t, int part, int b, int head)
{
    size_t A = (size_t)t->model->arch.n_heads, K = (size_t)t->model->arch.n_kv_heads;
    size_t before = part ? (size_t)t->B * (A + (size_t)(part - 1) * K) : 0;
    return (before + (size_t)b * (part ? K : A) + (size_t)head) * (size_t)t->T * (size_t)t->padded;
}

/* One head of one position from its row (D) to its place, or back: q in rows, k and v in panels. */
static void monet__train_place(const monet_trainer *t, monet_real *head, int part, int pos,
                               monet_real *row)
{
    size_t step = MONET__GROUP * (size_t)(part ? t->T : 1);
    head += (size_t)pos * (size_t)(part ? MONET__GROUP : t->padded);
    for (size_t d = 0; d < (size_t)t->padded; d += MONET__GROUP, head += step) {
        size_t n = (size_t)t->D - d < MONET__GROUP ? (size_t)t->D - d : MONET__GROUP;
        memcpy(t->back ? row + d : head, t->back ? head : row + d, n * sizeof *row);
        if (!t->back && n < MONET__GROUP) memset(head + n, 0, (MONET__GROUP - n) * sizeof *row);
    }
}

/* Rows of q, k, v of one token become heads, q and k turned by rope; on the way back gradients of
   the heads become rows, turned back.                                                            */
static void monet__train_heads(monet_trainer *t, size_t token)
{
    const monet_arch *a = &t->model->arch;
    int               D = t->D, b = (int)token / t->T, pos = (int)token % t->T;
    size_t            angle = (size_t)pos * (size_t)(D / 2);
    const monet_real *cosine = t->cosine + angle, *sine = t->sine + angle;
    for (int part = 0; part < 3; ++part) {
        monet_real *row = t->wide + (token * 3 + (size_t)part) * t->C;
        for (int head = 0; head < (part ? a->n_kv_heads : a->n_heads); ++head, row += D) {
            if (part < 2 && !t->back) monet__rope_forward(row, cosine, sine, D);
            monet__train_place(t, (t->back ? t->dheads : t->own->heads) +
                               monet__train_head(t, part, b, head), part, pos, row);
            if (part < 2 && t->back) monet__rope_backward(row, cosine, sine, D);
        }
    }
}

/* A block of queries of one head; its weights go to the scratch memory of the task. */
static monet__queries monet__train_queries(const monet_trainer *t, int b, int head, int first,
                                           int task)
{
    const monet_arch *a = &t->model->arch;
    int               shared = head / (a->n_heads / a->n_kv_heads);
    size_t            P = (size_t)t->padded, row = 2 * (size_t)t->T + P;
    monet__queries    q;
    q.kernels = t->team.kernels;
    q.keys = t->own->heads + monet__train_head(t, 1, b, shared);
    q.values = t->own->heads + monet__train_head(t, 2, b, shared);
    q.dtype = MONET_F32;
    q.key_rows = q.value_rows = t->T;
    q.D = t->D, q.first = first;
    q.n = t->T - first < MONET__TOKENS ? t->T - first : MONET__TOKENS;
    q.groups = P / MONET__GROUP;
    for (int k = 0; k < q.n; ++k) {
        q.q[k] = t->own->heads + monet__train_head(t, 0, b, head) + (size_t)(first + k) * P;
        q.p[k] = t->scores + ((size_t)task * MONET__TOKENS + (size_t)k) * row;
    }
    return q;
}

/* One query head of one sequence: item = b * A + head. */
static void monet__train_attention_head(void *context, int item, int task)
{
    monet_trainer *t = (monet_trainer *)context;
    int            A = t->model->arch.n_heads, b = item / A, head = item % A;
    size_t         D = (size_t)t->D, column = (size_t)head * D;
    monet_real    *y[MONET__TOKENS];
    for (int first = 0; first < t->T; first += MONET__TOKENS) {
        monet__queries q = monet__train_queries(t, b, head, first, task);
        monet_real    *out = t->own->attention + (size_t)(b * t->T + first) * t->stride;
        for (int k = 0; k < q.n; ++k) y[k] = q.p[k] + 2 * t->T;
        monet__attention_forward(&q, y);
        for (int k = 0; k < q.n; ++k, out += t->stride)
            for (size_t d = 0; d < D; ++d) out[monet__split(column + d)] = y[k][d];
    }
}

static void monet__train_attention(monet_trainer *t)
{
    monet__product p[3];
    size_t         C = t->C;
    monet__train_norm(t, t->own->x, t->layer ? t->own[-1].middle : NULL, t->w->w[MONET__T_NORM1]);
    p[0] = monet__product_of(t->w->w[MONET__T_Q], t->wide, 3 * C);
    p[1] = monet__product_of(t->w->w[MONET__T_K], t->wide + C, 3 * C);
    p[2] = monet__product_of(t->w->w[MONET__T_V], t->wide + 2 * C, 3 * C);
    monet__linear_forward(&t->team, p, 3, &t->in);
    monet__train_each(t, t->BT, monet__train_heads);
    monet__each(&t->team, t->B * t->model->arch.n_heads, monet__train_attention_head, t);
    t->in.x = t->own->attention;
    p[0] = monet__product_of(t->w->w[MONET__T_O], t->own->middle, C);
    monet__linear_forward(&t->team, p, 1, &t->in);
}

/* ---- training: routers -----------------------------------------------------------------------
   BatchNorm over all B*T*N logits of a head: biased variance to normalise, unbiased one into the
   running statistics, which move by a tenth. Sums in two passes, in double: E[x^2] - E[x]^2 would
   lose its digits. On many machines reduce_fn adds the sums up between the passes.               */
static void monet__train_batch_sum(monet_trainer *t, size_t item) /* item = side * H + head */
{
    size_t            N = (size_t)t->moe.N, H2 = 2 * (size_t)t->moe.H;
    const monet_real *z = t->moe.gates + item * N;
    double            lanes[8] = {0}, mean = t->pass ? t->means[t->router * H2 + item] : 0;
    bool              squares = t->pass == 1;
    for (int token = 0; token < t->BT; ++token, z += H2 * N)
        for (size_t i = 0; i < N; ++i) {
            double d = (double)z[i] - mean;
            lanes[i % 8] += squares ? d * d : d;
        }
    t->batch[item] = 0;
    for (int l = 0; l < 8; ++l) t->batch[item] += lanes[l];
}

static void monet__train_reduce(monet_trainer *t, double *sums, size_t n)
{
    if (t->config.reduce_fn) t->config.reduce_fn(t->config.reduce_user, sums, n);
}

/* Means and biased variances of a router's heads; the count of numbers is kept in batch[2H]. */
static void monet__train_statistics(monet_trainer *t)
{
    size_t H2 = 2 * (size_t)t->moe.H;
    for (t->pass = 0; t->pass < 2; ++t->pass) {
        double *out = (t->pass ? t->vars : t->means) + t->router * H2;
        monet__train_each(t, (int)H2, monet__train_batch_sum);
        t->batch[H2] = (double)t->BT * t->moe.N;
        monet__train_reduce(t, t->batch, H2 + 1);
        for (size_t k = 0; k < H2; ++k) out[k] = t->batch[k] / t->batch[H2];
    }
}

/* Running means and variances of one side of a layer's router; does it take those of the batch? */
typedef struct monet__running {
    monet_real *mean, *var;
    bool        by_batch;
} monet__running;

static monet__running monet__train_running(const monet_trainer *t, int layer, size_t side)
{
    const monet_tensor *const *w = t->model->layers[layer].w;
    monet__running             r;
    r.mean = t->weights + w[side ? MONET__T_MEAN2 : MONET__T_MEAN1]->offset / sizeof(monet_real);
    r.var = t->weights + w[side ? MONET__T_VAR2 : MONET__T_VAR1]->offset / sizeof(monet_real);
    r.by_batch = t->config.batch_stats ||
                 !t->frozen[w[side ? MONET__T_ROUTER2 : MONET__T_ROUTER1] - t->model->tensors];
    return r;
}

/* Gates and list of one side of one token: item = 2 * token + side. */
static void monet__train_gates(monet_trainer *t, size_t item)
{
    monet__moe    *moe = &t->moe;
    size_t         N = (size_t)moe->N, H = (size_t)moe->H, side = item % 2;
    const double  *means = t->means + (2 * t->router + side) * H;
    const double  *vars = t->vars + (2 * t->router + side) * H;
    monet__running own = monet__train_running(t, t->layer, side);
    monet_real    *gates = moe->gates + item * H * N;
    moe->bad[item] = false;
    for (size_t h = 0; h < H; ++h)
        if (!monet__router_forward(gates + h * N, own.by_batch ? (monet_real)means[h] : own.mean[h],
                                   own.by_batch ? (monet_real)vars[h] : own.var[h], moe->sigma,
                                   moe->N)) {
            memset(gates + h * N, 0, N * sizeof *gates);
            moe->bad[item] = true;
        }
    moe->n_active[item] = monet__active_list(moe->active + item * N, gates, moe->H, moe->N);
}

/* What both routing losses need of one head: item = side * H + head. */
static void monet__train_usage(monet_trainer *t, size_t item)
{
    size_t            N = (size_t)t->moe.N, H2 = 2 * (size_t)t->moe.H, side = item * 2 / H2;
    size_t            at = t->router * H2 + item;
    double           *sums = t->usage + at * N, tops = 0;
    const monet_real *g = t->moe.gates + item * N;
    for (size_t i = 0; i < N; ++i) sums[i] = 0;
    for (; side < 2 * (size_t)t->BT; side += 2, g += H2 * N) {
        const uint16_t *list = t->moe.active + side * N;
        monet_real      top = 0;
        for (int32_t k = 0; k < t->moe.n_active[side]; ++k) {
            sums[list[k]] += (double)g[list[k]];
            if (g[list[k]] > top) top = g[list[k]];
        }
        tops += (double)top;
    }
    t->usage[(size_t)t->n_routers * H2 * N + at] = tops;
}

/* All looks at this layer, the moe at the gates of its group and at what the layer keeps. */
static void monet__train_layer(monet_trainer *t, int layer)
{
    size_t BT2 = 2 * (size_t)t->BT, N = (size_t)t->moe.N;
    t->layer = layer;
    t->w = &t->model->layers[layer];
    t->own = &t->kept[layer];
    t->router = (size_t)(layer / t->model->arch.moe_groups);
    t->moe.gates = t->all_gates + t->router * BT2 * (size_t)t->moe.H * N;
    t->moe.active = t->all_active + t->router * BT2 * N;
    t->moe.n_active = t->all_n_active + t->router * BT2;
    for (int axis = 0; axis < 2; ++axis)
        t->moe.a[axis] = t->own->a[axis], t->moe.s[axis] = t->own->s[axis];
}

static void monet__train_router(monet_trainer *t)
{
    size_t         HN = (size_t)t->moe.H * (size_t)t->moe.N;
    monet__product p[2];
    t->moe.routed = NULL;
    p[0] = monet__product_of(t->w->w[MONET__T_ROUTER1], t->moe.gates, 2 * HN);
    p[1] = monet__product_of(t->w->w[MONET__T_ROUTER2], t->moe.gates + HN, 2 * HN);
    monet__linear_forward(&t->team, p, 2, &t->in);
    monet__train_statistics(t);
    monet__train_each(t, 2 * t->BT, monet__train_gates);
    monet__train_each(t, 2 * t->moe.H, monet__train_usage);
    for (int item = 0; item < 2 * t->BT; ++item)
        if (t->moe.bad[item]) t->totals[3] = 1;
}

/* The residual stream after the layer, without what goes around the experts. */
static void monet__train_moe_out(monet_trainer *t, size_t token)
{
    monet_real *x = t->layer + 1 < t->model->arch.n_layers ? t->own[1].x : t->last;
    monet__moe_output(x + token * t->C, &t->moe, (int)token);
}

static void monet__train_experts(monet_trainer *t)
{
    monet__train_norm(t, t->own->middle, t->own->x, t->w->w[MONET__T_NORM2]);
    if (t->layer % t->model->arch.moe_groups == 0) monet__train_router(t);
    monet__moe_forward(&t->moe, &t->team, &t->w->experts, &t->in);
    t->own->whole = t->moe.first == 0;
    monet__train_each(t, t->BT, monet__train_moe_out);
}

/* Cross entropy of one token; its logits become their gradient, softmax - onehot. */
static void monet__train_loss(monet_trainer *t, size_t token)
{
    size_t      V = (size_t)t->model->arch.vocab_size;
    monet_real *z = t->logits + token * V, max, sum;
    int32_t     target = t->targets[token];
    double      logit;
    t->loss[token] = 0;
    if (target < 0) {
        memset(z, 0, V * sizeof *z);
        return;
    }
    logit = (double)z[target];
    sum = t->team.kernels->softmax(z, V, 1, &max);
    t->loss[token] = log((double)sum) - (logit - (double)max);
    sum = 1 / sum;
    for (size_t v = 0; v < V; ++v) z[v] *= sum;
    z[target] -= 1;
}

/* Losses of the pass from its sums. */
static void monet__train_losses(const monet_trainer *t, monet_losses *out)
{
    size_t        N = (size_t)t->moe.N, H = (size_t)t->moe.H, R = (size_t)t->n_routers;
    const double *totals = t->totals, *tops = t->usage + R * 2 * H * N;
    double        tokens = totals[0], heads = (double)(2 * R * H), logs = 0, above = 0;
    memset(out, 0, sizeof *out);
    out->scored = (int64_t)totals[1];
    out->cross_entropy = totals[1] > 0 ? totals[2] / totals[1] : 0;
    for (size_t side = 0; side < 2 * R; ++side) {
        const double *sums = t->usage + side * H * N;
        for (size_t i = 0; i < N; ++i) {
            double all = 0;
            for (size_t h = 0; h < H; ++h) {
                all += sums[h * N + i];
                logs += log(sums[h * N + i] / tokens + (double)t->config.uniformity_eps);
            }
            out->unused += all == 0;
        }
    }
    for (size_t k = 0; k < 2 * R * H; ++k) above += tops[k];
    out->uniformity = -logs / (heads * (double)N);
    out->ambiguity = 1 - above / (heads * tokens);
    out->total = out->cross_entropy + (double)t->config.uniformity * out->uniformity +
                 (double)t->config.ambiguity * out->ambiguity;
}

/* Running statistics take a tenth of the batch's. */
static void monet__train_move(monet_trainer *t)
{
    const monet_arch *a = &t->model->arch;
    const double     *mean = t->means, *var = t->vars;
    double            n = t->totals[0] * a->moe_experts;
    for (int layer = 0; layer < a->n_layers; layer += a->moe_groups)
        for (size_t side = 0; side < 2; ++side, mean += a->moe_heads, var += a->moe_heads) {
            monet__running r = monet__train_running(t, layer, side);
            for (int h = 0; r.by_batch && h < a->moe_heads; ++h) {
                r.mean[h] = (monet_real)(0.9 * (double)r.mean[h] + 0.1 * mean[h]);
                r.var[h] = (monet_real)(0.9 * (double)r.var[h] + 0.1 * var[h] * n / (n - 1));
            }
        }
    ++t->counts.batches;
}

static void monet__train_forward(monet_trainer *t, monet_losses *losses)
{
    const monet_arch *a = &t->model->arch;
    double           *totals = t->totals;
    monet__product    p;
    monet_losses      out;
    totals[0] = t->BT, totals[1] = totals[2] = totals[3] = 0;
    monet__train_each(t, t->BT, monet__train_embed);
    t->back = false;
    for (int layer = 0; layer < a->n_layers; ++layer) {
        monet__train_layer(t, layer);
        monet__train_attention(t);
        monet__train_experts(t);
    }
    monet__train_norm(t, t->last, t->own->middle, t->model->norm);
    p = monet__product_of(t->model->lm_head, t->logits, (size_t)a->vocab_size);
    monet__linear_forward(&t->team, &p, 1, &t->in);
    monet__train_each(t, t->BT, monet__train_loss);
    for (int token = 0; token < t->BT; ++token) {
        totals[1] += t->targets[token] >= 0;
        totals[2] += t->loss[token];
    }
    t->pass_scored = totals[1];
    monet__train_reduce(t, t->usage, t->n_usage);
    monet__train_losses(t, &out);
    if (totals[3] > 0) out.total = out.cross_entropy = (double)NAN;
    t->pass_bad = !(out.total - out.total == 0);
    if (!t->pass_bad) monet__train_move(t);
    if (losses) *losses = out;
}

MONET_API monet_result monet_trainer_forward(monet_trainer *trainer, const int32_t *tokens,
                                             const int32_t *targets, monet_losses *losses)
{
    monet_trainer *t = trainer;
    monet_error   *err;
    fenv_t         own;
    int32_t        V;
    if (!t) return MONET_ERROR_ARGUMENT;
    err = &t->error;
    MONET__NEED(ARGUMENT, tokens && targets, "forward: tokens or targets is NULL");
    V = t->model->arch.vocab_size;
    for (int k = 0; k < t->BT; ++k)
        MONET__NEED(ARGUMENT, tokens[k] >= 0 && tokens[k] < V && targets[k] >= -1 && targets[k] < V,
                    "sequence %d, position %d: token %d, target %d, must be 0..%d, and -1 for no "
                    "target", k / t->T, k % t->T, tokens[k], targets[k], V - 1);
    memcpy(t->tokens, tokens, (size_t)t->BT * sizeof *tokens);
    memcpy(t->targets, targets, (size_t)t->BT * sizeof *targets);
    monet__mode_begin(&own);
    monet__train_forward(t, losses);
    monet__mode_end(&own);
    t->forwarded = true;
    return MONET_OK;
}

/* ---- training: backward ---------------------------------------------------------------------- */
/* Where the gradient of a tensor goes; NULL if it is frozen or not there. */
static monet_real *monet__grad_of(const monet_trainer *t, const monet_tensor *w)
{
    if (!w || t->frozen[w - t->model->tensors]) return NULL;
    return t->grads + w->offset / sizeof(monet_real);
}

typedef enum monet__kind { MONET__SETS, MONET__ADDS, MONET__SPARSE } monet__kind;

/* Gradient of a product that read in: dW += dout x^T; dsplit = W^T dout, or it adds. */
static void monet__back_linear(monet_trainer *t, const monet_tensor *w, const monet_real *dout,
                               size_t stride, monet__kind kind)
{
    monet__linear_back job = {t->team.kernels, w, monet__grad_of(t, w), dout, stride,
                              t->in.x, t->dsplit, t->stride, t->BT,
                              kind == MONET__SPARSE, kind == MONET__SETS};
    monet__linear_backward(&t->team, &job);
}

/* dsplit to dx; then h is dout * x. */
static void monet__back_norm_token(monet_trainer *t, size_t token)
{
    const monet_real *weight = (const monet_real *)t->norm->data, *x = t->norm_in + token * t->C;
    monet_real       *h = t->h + token * t->C;
    for (size_t c = 0; c < t->C; ++c) h[c] = t->dsplit[token * t->stride + monet__split(c)];
    t->rstd[token] = monet__rmsnorm_backward(t->dx + token * t->C, h, x, weight, (int)t->C,
                                             (monet_real)t->model->arch.norm_eps);
    for (size_t c = 0; c < t->C; ++c) h[c] *= x[c];
}

static void monet__back_norm_weight(monet_trainer *t, size_t group)
{
    size_t      from = group * MONET__GROUP;
    size_t      n = t->C - from < MONET__GROUP ? t->C - from : MONET__GROUP;
    monet_real *dw = monet__grad_of(t, t->norm) + from;
    for (size_t token = 0; token < (size_t)t->BT; ++token)
        t->team.kernels->axpy(dw, t->rstd[token], t->h, MONET_F32, token * t->C + from, n);
}

/* From dsplit through the norm that read x: dx += ... */
static void monet__back_norm(monet_trainer *t, monet_real *x, const monet_tensor *weight)
{
    t->norm_in = x;
    t->norm = weight;
    monet__train_each(t, t->BT, monet__back_norm_token);
    if (monet__grad_of(t, weight))
        monet__train_each(t, (t->model->arch.dim + MONET__GROUP - 1) / MONET__GROUP,
                          monet__back_norm_weight);
}

/* Logits: their gradient is in place. dx begins here. */
static void monet__back_logits(monet_trainer *t)
{
    monet__train_norm(t, t->last, NULL, t->model->norm);
    monet__back_linear(t, t->model->lm_head, t->logits, (size_t)t->model->arch.vocab_size,
                       MONET__SETS);
    memset(t->dx, 0, (size_t)t->BT * t->C * sizeof *t->dx);
    monet__back_norm(t, t->last, t->model->norm);
}

/* dgates of one side of one token to logits: the routing losses, then the softmax. */
static void monet__back_gates(monet_trainer *t, size_t item)
{
    size_t          N = (size_t)t->moe.N, H = (size_t)t->moe.H, R = (size_t)t->n_routers;
    size_t          side = t->router * 2 + item % 2;
    double          tokens = t->totals[0], scored = t->totals[1], heads = (double)(2 * R * H);
    double          eps = (double)t->config.uniformity_eps;
    double          unif = scored * (double)t->config.uniformity / (heads * (double)N);
    double          amb = scored * (double)t->config.ambiguity / (heads * tokens);
    const uint16_t *list = t->moe.active + item * N;
    int             n = t->moe.n_active[item];
    for (size_t h = 0; h < H; ++h) { /* dz is 0 wherever g is */
        const monet_real *g = t->moe.gates + (item * H + h) * N;
        monet_real       *dg = t->moe.dgates + (item * H + h) * N, top = 0;
        const double     *sums = t->usage + (side * H + h) * N;
        int               ties = 0;
        for (int k = 0; k < n; ++k)
            if (g[list[k]] > top) top = g[list[k]];
        for (int k = 0; k < n; ++k) ties += g[list[k]] == top;
        for (int k = 0; k < n; ++k) {
            size_t i = list[k];
            if (g[i] == 0) continue;
            dg[i] -= (monet_real)(unif / (sums[i] + eps * tokens));
            if (g[i] == top) dg[i] -= (monet_real)(amb / ties);
        }
        monet__router_backward(dg, g, list, n);
    }
}

static void monet__back_router(monet_trainer *t)
{
    size_t HN = (size_t)t->moe.H * (size_t)t->moe.N;
    monet__train_each(t, 2 * t->BT, monet__back_gates);
    monet__back_linear(t, t->w->w[MONET__T_ROUTER1], t->moe.dgates, 2 * HN, MONET__SPARSE);
    monet__back_linear(t, t->w->w[MONET__T_ROUTER2], t->moe.dgates + HN, 2 * HN, MONET__SPARSE);
}

/* dx of one token as dy of the experts, in two halves for VD; what they add to begins at 0. */
static void monet__back_dy(monet_trainer *t, size_t token)
{
    const monet_arch *a = &t->model->arch;
    monet__moe       *moe = &t->moe;
    size_t            width = (size_t)moe->width, half = moe->y_stride / 2;
    size_t            n = 2 * (size_t)moe->H * (size_t)moe->N;
    monet_real       *y = moe->y + token * moe->y_stride;
    const monet_real *dx = t->dx + token * (size_t)moe->C;
    memset(y, 0, moe->y_stride * sizeof *y);
    memcpy(y, dx, width * sizeof *y);
    if (!moe->horizontal) memcpy(y + half, dx + width, width * sizeof *y);
    memset(t->dsplit + token * t->stride, 0, t->stride * sizeof *t->dsplit);
    if ((t->layer + 1) % a->moe_groups == 0 || t->layer + 1 == a->n_layers) /* last of the group */
        memset(moe->dgates + token * n, 0, n * sizeof *moe->dgates);
}

static void monet__back_experts(monet_trainer *t)
{
    const monet__experts *e = &t->w->experts;
    monet__moe           *moe = &t->moe;
    monet__train_norm(t, t->own->middle, NULL, t->w->w[MONET__T_NORM2]);
    monet__train_each(t, t->BT, monet__back_dy);
    for (int axis = 0; axis < 2; ++axis) {
        moe->du[axis] = monet__grad_of(t, e->u[axis]);
        moe->dbias[axis] = monet__grad_of(t, e->bias[axis]);
        moe->dv[axis] = monet__grad_of(t, e->v[axis]);
        moe->db[axis] = monet__grad_of(t, e->b[axis]);
    }
    moe->dx = t->dsplit;
    moe->kept = t->own->whole;
    monet__moe_backward(moe, &t->team, e, &t->in);
    if (t->layer % t->model->arch.moe_groups == 0) monet__back_router(t);
    monet__back_norm(t, t->own->middle, t->w->w[MONET__T_NORM2]);
}

/* All queries of one key/value head of one sequence: item = b * K + head. */
static void monet__back_attention_head(void *context, int item, int task)
{
    monet_trainer    *t = (monet_trainer *)context;
    const monet_arch *a = &t->model->arch;
    int               K = a->n_kv_heads, b = item / K, shared = a->n_heads / K;
    size_t            T = (size_t)t->T, P = (size_t)t->padded, D = (size_t)t->D;
    monet_real       *dk = t->dheads + monet__train_head(t, 1, b, item % K);
    monet_real       *dv = t->dheads + monet__train_head(t, 2, b, item % K);
    memset(dk, 0, T * P * sizeof *dk);
    memset(dv, 0, T * P * sizeof *dv);
    for (int head = item % K * shared; head < (item % K + 1) * shared; ++head)
        for (int first = 0; first < t->T; first += MONET__TOKENS) {
            monet__queries    q = monet__train_queries(t, b, head, first, task);
            monet_real       *dq[MONET__TOKENS], *ds[MONET__TOKENS];
            const monet_real *dout[MONET__TOKENS];
            for (int k = 0; k < q.n; ++k) {
                size_t            pos = (size_t)(first + k);
                const monet_real *in = t->dsplit + ((size_t)b * T + pos) * t->stride;
                monet_real       *row = q.p[k] + 2 * T;
                ds[k] = q.p[k] + T;
                dq[k] = t->dheads + monet__train_head(t, 0, b, head) + pos * P;
                memset(dq[k], 0, P * sizeof *dq[k]);
                for (size_t d = 0; d < D; ++d) row[d] = in[monet__split((size_t)head * D + d)];
                memset(row + D, 0, (P - D) * sizeof *row);
                dout[k] = row;
            }
            monet__attention_weights(&q);
            monet__attention_backward(&q, dq, dk, dv, dout, ds);
        }
}

static void monet__back_attention(monet_trainer *t)
{
    size_t C = t->C;
    t->in.x = t->own->attention;
    monet__back_linear(t, t->w->w[MONET__T_O], t->dx, C, MONET__SETS);
    monet__each(&t->team, t->B * t->model->arch.n_kv_heads, monet__back_attention_head, t);
    monet__train_each(t, t->BT, monet__train_heads);
    monet__train_norm(t, t->own->x, NULL, t->w->w[MONET__T_NORM1]);
    monet__back_linear(t, t->w->w[MONET__T_Q], t->wide, 3 * C, MONET__SETS);
    monet__back_linear(t, t->w->w[MONET__T_K], t->wide + C, 3 * C, MONET__ADDS);
    monet__back_linear(t, t->w->w[MONET__T_V], t->wide + 2 * C, 3 * C, MONET__ADDS);
    monet__back_norm(t, t->own->x, t->w->w[MONET__T_NORM1]);
}

/* Rows of embed_tokens, a group of columns: tokens in order. */
static void monet__back_embed(monet_trainer *t, size_t group)
{
    const monet_tensor *w = t->model->embed;
    monet_real         *grad = monet__grad_of(t, w);
    size_t              C = t->C, from = group * MONET__GROUP;
    size_t              n = C - from < MONET__GROUP ? C - from : MONET__GROUP;
    for (int token = 0; token < t->BT; ++token) {
        monet_real       *out = grad + monet_tensor_place(w, t->tokens[token], (int64_t)from);
        const monet_real *dx = t->dx + (size_t)token * C + from;
        for (size_t c = 0; c < n; ++c) out[monet__split(c)] += dx[c];
    }
}

MONET_API monet_result monet_trainer_backward(monet_trainer *trainer)
{
    monet_trainer *t = trainer;
    fenv_t         own;
    if (!t) return MONET_ERROR_ARGUMENT;
    if (!t->forwarded)
        return monet__fail(&t->error, MONET_ERROR_STATE, "backward without a forward before");
    t->forwarded = false;
    t->pending = true;
    t->scored += t->pass_scored;
    t->bad = t->bad || t->pass_bad;
    if (t->bad) return MONET_OK; /* the update will be skipped */
    monet__mode_begin(&own);
    monet__back_logits(t);
    t->back = true;
    for (int layer = t->model->arch.n_layers - 1; layer >= 0; --layer) {
        monet__train_layer(t, layer);
        monet__back_experts(t);
        monet__back_attention(t);
    }
    if (monet__grad_of(t, t->model->embed))
        monet__train_each(t, (t->model->arch.dim + MONET__GROUP - 1) / MONET__GROUP,
                          monet__back_embed);
    monet__mode_end(&own);
    return MONET_OK;
}

/* ---- training: update ------------------------------------------------------------------------
   w *= 1 - rate*decay; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g g;
   w -= rate/(1-b1^t) * m / (sqrt(v/(1-b2^t)) + eps). Only matrices decay. A half-expert that nobody
   used has gradient zero; its moments and weights decay all the same.                            */
static void monet__train_squares(monet_trainer *t, size_t block)
{
    size_t            from = block * MONET__BLOCK, n = (size_t)t->n - from;
    const monet_real *g = t->grads + from;
    double            lanes[8] = {0}, sum = 0;
    if (n > MONET__BLOCK) n = MONET__BLOCK;
    for (; n; n -= 8, g += 8) /* n is a multiple of 8: tensors begin at 64 bytes */
        for (int l = 0; l < 8; ++l) lanes[l] += (double)g[l] * (double)g[l];
    for (int l = 0; l < 8; ++l) sum += lanes[l];
    t->squares[block] = sum;
}

/* One block of the tensor at hand. */
static void monet__train_adamw(monet_trainer *t, size_t block)
{
    const monet_trainer_config *c = &t->config;
    const monet_tensor         *w = t->tensor;
    bool                        decays = w->n_dims == 2 && w->layout != MONET_ROWS;
    size_t      at = block * MONET__BLOCK, n = (size_t)w->size / sizeof(monet_real) - at;
    monet_real  kept[MONET__BLOCK], *weights;
    if (n > MONET__BLOCK) n = MONET__BLOCK;
    at += (size_t)w->offset / sizeof(monet_real);
    weights = t->rate == 0 ? kept : t->weights + at;
    if (t->rate == 0) /* not one bit changes: -0 - 0 * m could become 0 */
        memcpy(kept, t->weights + at, n * sizeof *kept);
    t->team.kernels->adamw(weights, t->moment1 + at, t->moment2 + at, t->grads + at, n,
                           (monet_real)t->scale, (monet_real)c->beta1, (monet_real)c->beta2,
                           (monet_real)(decays ? 1 - t->rate * (double)c->weight_decay : 1),
                           (monet_real)(t->rate / t->correction1), (monet_real)t->correction2,
                           (monet_real)c->eps);
}

static void monet__train_step(monet_trainer *t)
{
    ++t->counts.steps;
    t->correction1 = 1 - pow((double)t->config.beta1, (double)t->counts.steps);
    t->correction2 = 1 - pow((double)t->config.beta2, (double)t->counts.steps);
    for (size_t k = 0; k < t->model->n_tensors; ++k) {
        t->tensor = &t->model->tensors[k];
        if (!t->frozen[k])
            monet__train_each(t, (int)((t->tensor->size / sizeof(monet_real) + MONET__BLOCK - 1) /
                                       MONET__BLOCK), monet__train_adamw);
    }
}

MONET_API monet_result monet_trainer_update(monet_trainer *trainer, float rate,
                                            monet_update *update)
{
    monet_trainer *t = trainer;
    int            blocks;
    double         sums[2], norm = 0, least;
    bool           skipped;
    fenv_t         own;
    if (!t) return MONET_ERROR_ARGUMENT;
    if (!(rate >= 0 && rate <= 1e6f))
        return monet__fail(&t->error, MONET_ERROR_ARGUMENT, "learning rate is %s",
                           monet__off(rate, 1e6f));
    if (!t->pending)
        return monet__fail(&t->error, MONET_ERROR_STATE, "update without a backward before");
    monet__mode_begin(&own);
    sums[0] = t->scored, sums[1] = t->bad;
    monet__train_reduce(t, sums, 2);
    blocks = (int)((t->n + MONET__BLOCK - 1) / MONET__BLOCK);
    monet__train_each(t, blocks, monet__train_squares);
    for (int k = 0; k < blocks; ++k) norm += t->squares[k];
    norm = sqrt(norm) / (sums[0] > 1 ? sums[0] : 1);
    skipped = sums[1] > 0 || !(norm - norm == 0);
    if (skipped) {
        memset(t->grads, 0, (size_t)t->n * sizeof *t->grads);
        ++t->counts.skipped;
    } else {
        least = (double)t->config.grad_clip / (norm + 1e-6);
        t->scale = (t->config.grad_clip > 0 && least < 1 ? least : 1) / (sums[0] > 1 ? sums[0] : 1);
        t->rate = (double)rate;
        monet__train_step(t);
    }
    monet__mode_end(&own);
    if (update) {
        update->grad_norm = norm;
        update->scored = (int64_t)sums[0];
        update->skipped = skipped;
    }
    t->scored = 0;
    t->pending = t->bad = false;
    return MONET_OK;
}

/* ---- training: what a host sees -------------------------------------------------------------- */
MONET_API const monet_error *monet_trainer_error(const monet_trainer *trainer)
{
    static const monet_error none = {"trainer is NULL", MONET_ERROR_ARGUMENT};
    return trainer ? &trainer->error : &none;
}

MONET_API monet_result monet_trainer_counts(const monet_trainer *trainer, monet_counts *out)
{
    if (!trainer || !out) return MONET_ERROR_ARGUMENT;
    *out = trainer->counts;
    return MONET_OK;
}

MONET_API const monet_model *monet_trainer_model(const monet_trainer *trainer)
{
    return trainer ? trainer->model : NULL;
}

MONET_API monet_real *monet_trainer_grads(monet_trainer *trainer, size_t *count)
{
    if (count) *count = trainer ? (size_t)trainer->n : 0;
    return trainer ? trainer->grads : NULL;
}

MONET_API monet_result monet_trainer_grad(const monet_trainer *trainer, const char *name,
                                          monet_tensor *out)
{
    const monet_tensor *w = trainer ? monet_model_find_tensor(trainer->model, name) : NULL;
    if (!w || !out) return MONET_ERROR_ARGUMENT;
    *out = *w;
    out->data = trainer->grads + w->offset / sizeof(monet_real);
    return MONET_OK;
}

MONET_API const void *monet_trainer_user(const monet_trainer *trainer, size_t *size)
{
    if (size) *size = trainer ? (size_t)trainer->user_size : 0;
    return trainer ? trainer->user : NULL;
}

MONET_API float monet_rate_constant(int64_t step, int64_t warmup, float rate)
{
    return monet_rate_cosine(step, warmup, INT64_MAX, rate, rate);
}

MONET_API float monet_rate_cosine(int64_t step, int64_t warmup, int64_t total, float rate,
                                  float least)
{
    volatile double start = (double)rate, end = (double)least; /* volatile: compilers move the */
    volatile float  result;                                    /* rest across the mode         */
    double          high, low;
    fenv_t          own;
    monet__mode_begin(&own);
    high = start, low = end;
    if (step < warmup) high *= (double)(step + 1) / (double)warmup;
    else if (step >= total || total <= warmup) high = low;
    else if (high != low)
        high = low + (high - low) * 0.5 * (1 + cos(3.14159265358979324 * (double)(step - warmup) /
                                                   (double)(total - warmup)));
    result = (float)high;
    monet__mode_end(&own);
    return result;
}

/* ---- training: files -------------------------------------------------------------------------
   Section 6, state: u64 steps, skipped, batches, then the caller's bytes. Section 7, moments: both
   blocks as they are in memory, each as large as the data section.                               */
#ifndef MONET_NO_STDIO
enum { MONET__STATE = 24 };

MONET_API monet_result monet_trainer_save(const monet_trainer *trainer, const char *path,
                                          const void *user, size_t user_size, monet_error *err)
{
    const monet_trainer *t = trainer;
    monet_result         result;
    monet__sink          sink = {NULL, 0};
    monet__span          training[2] = {{NULL, MONET__STATE + (uint64_t)user_size, 1},
                                        {NULL, 0, 0}};
    MONET__NEED(ARGUMENT, t && path && (user || !user_size) && user_size <= INT32_MAX,
                "trainer save: NULL, or more than 2^31 bytes of the caller");
    MONET__NEED(UNSUPPORTED, sizeof(monet_real) == sizeof(float),
                "MONET_REAL is not float: no files");
    MONET__NEED(STATE, !t->pending, "save between backward and update: gradients would be lost");
    sink.p = (uint8_t *)monet__alloc(&t->team.host, training[0].size);
    if (!sink.p) return monet__no_memory(err, "training state", training[0].size);
    monet__emit(&sink, (uint64_t)t->counts.steps, 8);
    monet__emit(&sink, (uint64_t)t->counts.skipped, 8);
    monet__emit(&sink, (uint64_t)t->counts.batches, 8);
    monet__emit_bytes(&sink, user, user_size);
    training[0].data = sink.p;
    training[1].data = (const uint8_t *)t->moment1;
    training[1].size = 2 * t->n * sizeof(monet_real);
    result = monet__write_model(t->model, &t->team.host, path, training, err);
    monet__free(&t->team.host, sink.p, training[0].size);
    return result;
}

/* State and moments of a checkpoint against the model that it holds. */
static monet_result monet__trainer_state(const monet_model *model, monet_error *err)
{
    const monet__span *state = &model->sections[MONET__S_STATE];
    const monet__span *moments = &model->sections[MONET__S_MOMENTS];
    uint64_t           bytes = model->sections[MONET__S_DATA].size;
    MONET__NEED(FORMAT, state->data && moments->data,
                "no training state: this is not a checkpoint");
    MONET__NEED(FORMAT, state->size >= MONET__STATE, "state section is %U bytes, needs %d",
                state->size, MONET__STATE);
    for (int k = 0; k < 3; ++k)
        MONET__NEED(FORMAT, monet__u64(state->data + 8 * k) <= INT64_MAX / 2,
                    "state: count %d is %U", k, monet__u64(state->data + 8 * k));
    for (size_t k = 0; k < model->n_tensors; ++k)
        MONET__NEED(FORMAT, model->tensors[k].dtype == MONET_F32,
                    "tensor %s: dtype is %s, a checkpoint has f32", model->tensors[k].name,
                    monet_dtype_name(model->tensors[k].dtype));
    MONET__NEED(FORMAT, moments->size == 2 * bytes, "moments section is %U bytes, expected %U",
                moments->size, 2 * bytes);
    for (size_t k = 0; k < 2 * bytes / 4; ++k) {
        float x = monet__float(monet__u32(moments->data + 4 * k));
        MONET__NEED(NUMERIC, x - x == 0 && (k < bytes / 4 || x >= 0), "moments: number %U is %s",
                    (uint64_t)k, x - x == 0 ? "negative" : "not finite");
    }
    return MONET_OK;
}

static monet_result monet__trainer_restore(monet_trainer *t, const monet_model *model,
                                           monet_error *err)
{
    const monet__span *state = &model->sections[MONET__S_STATE];
    t->counts.steps = (int64_t)monet__u64(state->data);
    t->counts.skipped = (int64_t)monet__u64(state->data + 8);
    t->counts.batches = (int64_t)monet__u64(state->data + 16);
    memcpy(t->moment1, model->sections[MONET__S_MOMENTS].data,
           2 * (size_t)t->n * sizeof(monet_real));
    if (state->size == MONET__STATE) return MONET_OK;
    t->user = monet__alloc(&t->team.host, state->size - MONET__STATE);
    if (!t->user) return monet__no_memory(err, "training state", state->size);
    t->user_size = state->size - MONET__STATE;
    memcpy(t->user, state->data + MONET__STATE, (size_t)t->user_size);
    return MONET_OK;
}

MONET_API monet_result monet_trainer_load(const char *path, const monet_trainer_config *config,
                                          monet_trainer **out, monet_error *err)
{
    monet_trainer_config full;
    monet_model_config   load;
    monet_model         *model = NULL;
    monet_result         result;
    if (out) *out = NULL;
    MONET__NEED(ARGUMENT, path && out, "trainer load: path or out is NULL");
    MONET__TRY(monet__config(&full, sizeof full, config, err));
    memset(&load, 0, sizeof load);
    load.verify = true;
    if (full.host) load.host = *full.host;
    MONET__TRY(monet_model_load(path, &load, &model, err));
    result = monet__trainer_state(model, err);
    if (result == MONET_OK) result = monet_trainer_create(model, config, out, err);
    if (result == MONET_OK) result = monet__trainer_restore(*out, model, err);
    if (result != MONET_OK) {
        monet_trainer_free(*out);
        *out = NULL;
        monet__name_file(err, path);
    }
    monet_model_free(model);
    return result;
}
#endif
#endif /* MONET_NO_TRAINING */

/* ---- undef --------------------------------------------------------------------------- >>undef */
#undef MONET__BIG_ENDIAN
#undef MONET__EDIT_TEXT
#undef MONET__GROUP
#undef MONET__LANES
#undef MONET__NEED
#undef MONET__NO_FILE
#undef MONET__POOL
#undef MONET__POSIX
#undef MONET__ROWS
#undef MONET__SNAPSHOT
#undef MONET__TABLE
#undef MONET__TOKENS
#undef MONET__TRY

#endif /* MONET_IMPLEMENTATION_ONCE */
#endif /* MONET_IMPLEMENTATION */

/* REVISION HISTORY

     0.2.0  api: edits of the pair matrix, taps of single layers, set_last_layer, activations,
                 contributions, attribution, logit lens, loss and effect, snapshots
            API CHANGE: monet_session_set_tap(session, fn, user) -> (session, &tap)
            API CHANGE: monet_expert has a weight beside its score; monet_routing has edit, layer
     0.1.0  api: first version: load, save, tokenizer, session, sampling, generation, training

   LICENCE: use this file under either of the two, as you like.

   A. MIT No Attribution. Copyright (c) 2026 the authors of monet.h

     Permission is hereby granted, free of charge, to any person obtaining a copy of this software
     and associated documentation files (the "Software"), to deal in the Software without
     restriction, including without limitation the rights to use, copy, modify, merge, publish,
     distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
     Software is furnished to do so.

     THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING
     BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
     NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
     DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
     OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

   B. Public domain. The authors dedicate this software to the public domain: anyone is free to
     copy, modify, publish, use, compile, sell or distribute it, in source or binary form, for any
     purpose, commercial or not, and by any means, without any condition.
*/
