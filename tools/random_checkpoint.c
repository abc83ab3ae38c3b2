/* random_checkpoint.c: writes the folder of a Monet checkpoint with random weights, of any size.

   cc -O2 -pthread -I. tools/random_checkpoint.c -o random_checkpoint -lm

   It is for measuring speed and memory, and for tests that need a model of a given shape: the
   tensors, names, sizes and router statistics are those of a real model, the text it writes is
   noise. Activations stay moderate in every layer, and about k half-experts a head are active.
   `random_checkpoint --help` lists the sizes and options.

   Order of this file: options and sizes, numbers, the tensors of a model, the safetensors files,
   the tokenizer, the JSON files, main. */
#include "safetensors.h"
#include <dirent.h>
#include <math.h>
#include <sys/statvfs.h>

#define TABLE_SIZE 65536             /* quantiles of the normal distribution: 16 random bits each */
#define BUFFER_VALUES (1u << 18)     /* values made before each write */
#define MAX_LAYERS 1024
#define MAX_SIZE 1000000             /* of any dimension, the vocabulary included */
#define SPECIALS 259                 /* <unk> <s> </s> and the 256 bytes come first */

/* ---- options and sizes ----------------------------------------------------------------------- */

enum { V, C, L, A, K, N, M, H, TOPK, G, CONTEXT, DIMS };

static const struct { const char *option, *key, *what; } dim_info[DIMS] = {
    {"--vocab", "vocab_size", "V, pieces of the vocabulary"},
    {"--hidden", "hidden_size", "C, hidden size"},
    {"--layers", "num_hidden_layers", "L, layers"},
    {"--heads", "num_attention_heads", "A, query heads"},
    {"--kv-heads", "num_key_value_heads", "K, key/value heads (default: A)"},
    {"--experts", "moe_experts", "N, experts on one axis; a layer has N*N"},
    {"--expert-dim", "moe_dim", "M, hidden units of an expert"},
    {"--router-heads", "moe_heads", "H, router heads"},
    {"--topk", "moe_topk", "k, expected active half-experts per head"},
    {"--groups", "moe_groups", "G, layers that share one router"},
    {"--context", "max_position_embeddings", "positions the model is said to be made for"},
};

static const struct { const char *name; int dim[DIMS]; } sizes[] = {
    /*           V     C   L   A  K   N   M   H  k  G context */
    {"850M", {32000, 1536, 24, 12, 0, 512, 12, 6, 8, 4, 2048}},
    {"1.4B", {32000, 2048, 24, 16, 0, 512, 16, 8, 8, 4, 2048}},
    {"4.1B", {32000, 3072, 32, 24, 0, 512, 24, 12, 8, 4, 2048}},
    {"small", {2048, 384, 8, 6, 0, 256, 8, 4, 8, 4, 1024}},
    {"tiny", {1024, 128, 4, 4, 0, 64, 8, 4, 8, 2, 512}},
    {"nano", {512, 32, 2, 2, 0, 16, 4, 2, 3, 1, 256}},
};
#define SIZES (sizeof sizes / sizeof sizes[0])

static const struct { const char *option, *torch_name; st_dtype dtype; } dtypes[] = {
    {"bf16", "bfloat16", ST_BF16}, {"f16", "float16", ST_F16}, {"f32", "float32", ST_F32},
};
#define DTYPES (sizeof dtypes / sizeof dtypes[0])

struct options {
    const char *size, *folder;
    int dim[DIMS];
    int vertical, tied, no_tokenizer;
    size_t dtype;                    /* index of dtypes */
    uint64_t seed;
    int shards;
};

static tool_output output;           /* the text file being written, */
static st_writer writer;             /* and that of tensors: removed if the program fails */

static void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void die(const char *format, ...)
{
    va_list list;
    fprintf(stderr, "random_checkpoint: ");
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, "\n");
    tool_output_abandon(&output);
    st_writer_free(&writer);
    exit(1);
}

static void *allocate(uint64_t count, size_t size)
{
    tool_error err;
    void *p = tool_alloc(count, size, &err);
    if (!p) die("%s", err.message);
    return p;
}

static void print_help(void)
{
    size_t i;
    printf("usage: random_checkpoint SIZE OUT_FOLDER [options]\n\n"
           "Writes a Monet checkpoint with random weights: config.json, generation_config.json,\n"
           "tokenizer.json and model.safetensors. The folder is made if it is missing; one that\n"
           "holds a checkpoint already is refused.\n\nSIZE is one of\n");
    for (i = 0; i < SIZES; i++) {
        const int *d = sizes[i].dim;
        printf("  %-6s V=%d C=%d L=%d A=%d N=%d M=%d H=%d k=%d G=%d\n", sizes[i].name, d[V], d[C],
               d[L], d[A], d[N], d[M], d[H], d[TOPK], d[G]);
    }
    printf("\noptions\n"
           "  --decompose vd|hd     vertical (default) or horizontal experts\n"
           "  --dtype f32|f16|bf16  of the weights in the file (default bf16)\n"
           "  --seed S              another S gives other weights (default 0)\n"
           "  --shards N            N files and model.safetensors.index.json (default: one file)\n"
           "  --tied                lm_head is the embedding and is not in the file\n"
           "  --no-tokenizer        no tokenizer.json\n"
           "  --help                this text\n");
    for (i = 0; i < DIMS; i++) printf("  %-15s n     %s\n", dim_info[i].option, dim_info[i].what);
}

/* Decimal digits only, at most `max`: strtol would take signs, blanks and the locale's ideas. */
static uint64_t parse_number(const char *text, const char *option, uint64_t min, uint64_t max)
{
    uint64_t n = 0;
    const char *s = text;
    for (; *s >= '0' && *s <= '9'; s++) {
        unsigned digit = (unsigned)(*s - '0');
        if (n > (UINT64_MAX - digit) / 10) break;
        n = n * 10 + digit;
    }
    if (*s || s == text || n < min || n > max)
        die("%s: found '%s', expected a whole number from %llu to %llu", option, text,
            (unsigned long long)min, (unsigned long long)max);
    return n;
}

static void parse_size(struct options *o)
{
    size_t i;
    for (i = 0; i < SIZES && strcmp(o->size, sizes[i].name) != 0; i++) {}
    if (i == SIZES) die("unknown size '%s'; --help lists them", o->size);
    memcpy(o->dim, sizes[i].dim, sizeof o->dim);
}

static size_t parse_dtype(const char *text)
{
    size_t i;
    for (i = 0; i < DTYPES; i++)
        if (!strcmp(text, dtypes[i].option)) return i;
    die("--dtype: found '%s', expected f32, f16 or bf16", text);
}

static int parse_decompose(const char *text)
{
    if (!strcmp(text, "vd")) return 1;
    if (strcmp(text, "hd") != 0) die("--decompose: found '%s', expected vd or hd", text);
    return 0;
}

static void parse_value_option(struct options *o, const char *option, const char *value)
{
    int i;
    for (i = 0; i < DIMS && strcmp(option, dim_info[i].option) != 0; i++) {}
    if (i < DIMS)
        o->dim[i] = (int)parse_number(value, option, 1, i == L ? MAX_LAYERS : MAX_SIZE);
    else if (!strcmp(option, "--decompose"))
        o->vertical = parse_decompose(value);
    else if (!strcmp(option, "--dtype"))
        o->dtype = parse_dtype(value);
    else if (!strcmp(option, "--seed"))
        o->seed = parse_number(value, option, 0, UINT64_MAX);
    else
        o->shards = (int)parse_number(value, option, 1, ST_MAX_PARTS);
}

static int takes_value(const char *option)
{
    static const char *const others[] = {"--decompose", "--dtype", "--seed", "--shards"};
    size_t i;
    for (i = 0; i < DIMS; i++)
        if (!strcmp(option, dim_info[i].option)) return 1;
    for (i = 0; i < sizeof others / sizeof others[0]; i++)
        if (!strcmp(option, others[i])) return 1;
    return 0;
}

static void parse_options(struct options *o, int argc, char **argv)
{
    int i;
    for (i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            print_help();
            exit(0);
        }
    if (argc < 3 || argv[1][0] == '-' || argv[2][0] == '-')
        die("usage: random_checkpoint SIZE OUT_FOLDER [options]; --help lists them");
    o->size = argv[1];
    o->folder = argv[2];
    o->vertical = 1;
    o->shards = 1;
    parse_size(o);
    for (i = 3; i < argc; i++) {
        if (!strcmp(argv[i], "--tied")) o->tied = 1;
        else if (!strcmp(argv[i], "--no-tokenizer")) o->no_tokenizer = 1;
        else if (!takes_value(argv[i])) die("unknown option '%s'; --help lists them", argv[i]);
        else if (i + 1 == argc) die("%s needs a value", argv[i]);
        else {
            parse_value_option(o, argv[i], argv[i + 1]);
            i++;
        }
    }
    if (!o->dim[K]) o->dim[K] = o->dim[A];
}

static void check_sizes(const struct options *o)
{
    const int *d = o->dim;
    if (d[C] % d[A]) die("hidden size %d is not a multiple of the %d query heads", d[C], d[A]);
    if (d[C] / d[A] % 2) die("head size %d is odd; rotary positions need pairs", d[C] / d[A]);
    if (d[A] % d[K]) die("%d query heads are not a multiple of %d key/value heads", d[A], d[K]);
    if (o->vertical && (d[M] % 2 || d[C] % 2))
        die("vertical experts halve M and C: found M=%d C=%d, expected even", d[M], d[C]);
    if (d[TOPK] >= d[N]) die("k must be less than N: found k=%d N=%d", d[TOPK], d[N]);
    if (d[V] < 4) die("vocabulary: found %d, expected at least 4", d[V]);
    if (!o->no_tokenizer && d[V] < SPECIALS)
        die("a tokenizer needs %d pieces, found %d; use --no-tokenizer", SPECIALS, d[V]);
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* A bijection of 64-bit integers that scatters its input well: with mix(key + i), value number i
   of a stream is known without the ones before it, so nothing depends on the order of writing. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

#define STEP 0x9e3779b97f4a7c15u

/* q[i] = the normal quantile of (i + 1/2) / TABLE_SIZE, by Newton's method from the neighbour:
   the values are drawn from this table, with one lookup each. */
static float *make_quantiles(void)
{
    float *q = allocate(TABLE_SIZE, sizeof *q);
    double x = 0;
    int i, n;
    for (i = TABLE_SIZE / 2; i < TABLE_SIZE; i++) {
        double above = 1 - (i + 0.5) / TABLE_SIZE;
        for (n = 0; n < 8; n++)
            x += (0.5 * erfc(x / sqrt(2.0)) - above) * sqrt(2 * 3.14159265358979) * exp(x * x / 2);
        q[i] = (float)x;
        q[TABLE_SIZE - 1 - i] = -q[i];
    }
    return q;
}

/* The bytes that a file holds for a number, as many as an element has. */
static void put_value(unsigned char *out, st_dtype dtype, double value)
{
    const float x = (float)value;
    uint64_t bits = 0;
    uint32_t i, word;
    memcpy(&word, &x, 4);
    if (dtype == ST_BF16) bits = st_bf16_of_f32(x);
    else if (dtype == ST_F16) bits = st_f16_of_f32(x);
    else if (dtype == ST_F32) bits = word;
    else bits = (uint64_t)value;
    for (i = 0; i < st_dtype_bits(dtype) / 8; i++) out[i] = (unsigned char)(bits >> (8 * i));
}

/* ---- the tensors of a model ------------------------------------------------------------------ */

struct tensor {
    char name[80];
    st_dtype dtype;
    int dims;
    int64_t shape[2];
    uint64_t count;
    double mean, std;                /* std 0: all values are the mean */
    int shard;
};

struct model {
    const struct options *o;
    const float *quantiles;
    struct tensor *tensors;
    size_t count, capacity;
    uint64_t parameters, bytes;
};

static uint64_t tensor_bytes(const struct tensor *t)
{
    return t->count * (st_dtype_bits(t->dtype) / 8);
}

static uint64_t tensor_key(const struct model *m, const char *name)
{
    return mix(tool_hash(name, strlen(name))) ^ mix(m->o->seed + STEP);
}

/* Dimensions are at most 1e6 * 1e6, which fits; the sum is checked. b = 0: a vector. */
static struct tensor *add(struct model *m, int layer, const char *name, uint64_t a, uint64_t b,
                          double mean, double std)
{
    struct tensor *t = &m->tensors[m->count++];
    if (m->count > m->capacity) die("too many tensors (%zu)", m->count);
    if (layer < 0) snprintf(t->name, sizeof t->name, "%s", name);
    else snprintf(t->name, sizeof t->name, "model.layers.%d.%s", layer, name);
    t->dtype = dtypes[m->o->dtype].dtype;
    t->dims = b ? 2 : 1;
    t->shape[0] = (int64_t)a;
    t->shape[1] = (int64_t)b;
    t->count = b ? a * b : a;
    t->mean = mean;
    t->std = std;
    if (t->count > (UINT64_C(1) << 50) || m->bytes > (UINT64_C(1) << 50))
        die("%s: %llu values are too many", t->name, (unsigned long long)t->count);
    m->parameters += t->count;
    m->bytes += tensor_bytes(t);
    return t;
}

/* What the values of a random vector average to when squared, as drawn. */
static double mean_square(const struct model *m, const struct tensor *t)
{
    uint64_t key = tensor_key(m, t->name), i, bits = 0;
    double sum = 0;
    for (i = 0; i < t->count; i++) {
        double x;
        bits = i % 4 ? bits >> 16 : mix(key + (i / 4 + 1) * STEP);
        x = t->mean + t->std * (double)m->quantiles[bits & 65535];
        sum += x * x;
    }
    return sum / (double)t->count;
}

/* A logit z = W n has the variance |n|^2 * std(W)^2, and |n|^2 = C * mean square of the norm's
   weights, whatever the layers before do: so these are the statistics a trained BatchNorm has,
   and about k logits a head pass the cut. Standard deviation 2 makes the gates clearly unequal. */
static void add_router(struct model *m, int layer, double square)
{
    const int *d = m->o->dim;
    const uint64_t heads = (uint64_t)d[H];
    int s;
    for (s = 1; s <= 2; s++) {
        char name[64];
        struct tensor *t;
        snprintf(name, sizeof name, "router.w%d.weight", s);
        add(m, layer, name, heads * (uint64_t)d[N], (uint64_t)d[C], 0, 2 / sqrt(d[C]));
        snprintf(name, sizeof name, "router.norm%d.running_mean", s);
        add(m, layer, name, heads, 0, 0, 0);
        snprintf(name, sizeof name, "router.norm%d.running_var", s);
        add(m, layer, name, heads, 0, 4 * square, 0);
        snprintf(name, sizeof name, "router.norm%d.num_batches_tracked", s);
        t = add(m, layer, name, 1, 0, 1000, 0);
        m->bytes -= tensor_bytes(t);
        t->dtype = ST_I64;
        t->dims = 0;
        m->bytes += tensor_bytes(t);
        m->parameters -= 1 + 2 * heads;          /* statistics are not parameters */
    }
}

/* Hidden units get standard deviation 1 before relu2; `out` then gives each layer an output of
   about the standard deviation `gain`: 0.3 stands for the mean sum of the squared gates of a
   head, 1/2 for what is left of a hidden unit after the averages. */
static void add_experts(struct model *m, int layer, double gain)
{
    static const char *const v[] = {"v11", "v12", "v21", "v22"};
    const int *d = m->o->dim;
    const uint64_t c = (uint64_t)d[C], n = (uint64_t)d[N], units = n * (uint64_t)d[M];
    const double in = 1 / sqrt(d[C]), out = gain / sqrt(0.3 * d[H] * d[M]);
    char name[64];
    int i;
    if (!m->o->vertical) {
        add(m, layer, "moe.u.weight", units, c, 0, in);
        add(m, layer, "moe.u.bias", units, 0, 0, 0.1);
        add(m, layer, "moe.v.weight", c, units, 0, out);
        add(m, layer, "moe.b", n, c, 0, 0.1 * gain);
        return;
    }
    for (i = 1; i <= 2; i++) {
        snprintf(name, sizeof name, "moe.u%d.weight", i);
        add(m, layer, name, units / 2, c, 0, in);
        snprintf(name, sizeof name, "moe.u%d.bias", i);
        add(m, layer, name, units / 2, 0, 0, 0.1);
        snprintf(name, sizeof name, "moe.b%d", i);
        add(m, layer, name, n, c / 2, 0, 0.1 * gain);
    }
    for (i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "moe.%s.weight", v[i]);
        add(m, layer, name, c / 2, units / 2, 0, out);
    }
}

/* Each half of a layer adds about 1/L to the variance of the residual stream, which starts at 1
   and therefore ends below 3 for any number of layers. */
static void add_layer(struct model *m, int layer)
{
    const int *d = m->o->dim;
    const uint64_t c = (uint64_t)d[C], kv = c / (uint64_t)d[A] * (uint64_t)d[K];
    const double in = 1 / sqrt(d[C]), gain = 1 / sqrt(d[L]);
    const struct tensor *norm;
    add(m, layer, "input_layernorm.weight", c, 0, 1, 0.1);
    norm = add(m, layer, "post_attention_layernorm.weight", c, 0, 1, 0.1);
    add(m, layer, "self_attn.q_proj.weight", c, c, 0, in);
    add(m, layer, "self_attn.k_proj.weight", kv, c, 0, in);
    add(m, layer, "self_attn.v_proj.weight", kv, c, 0, in);
    add(m, layer, "self_attn.o_proj.weight", c, c, 0, in * gain);
    if (layer % d[G] == 0) add_router(m, layer, mean_square(m, norm));
    add_experts(m, layer, gain);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

/* A tied embedding must be small, or every token predicts itself. */
static void plan_model(struct model *m, const struct options *o, const float *quantiles)
{
    const int *d = o->dim;
    const uint64_t v = (uint64_t)d[V], c = (uint64_t)d[C];
    int layer;
    m->o = o;
    m->quantiles = quantiles;
    m->capacity = 3 + (size_t)d[L] * 25;
    m->tensors = allocate(m->capacity + 1, sizeof *m->tensors);
    add(m, -1, "model.embed_tokens.weight", v, c, 0, o->tied ? 2 / sqrt(d[C]) : 1);
    if (!o->tied) add(m, -1, "lm_head.weight", v, c, 0, 2.5 / sqrt(d[C]));
    add(m, -1, "model.norm.weight", c, 0, 1, 0.1);
    for (layer = 0; layer < d[L]; layer++) add_layer(m, layer);
    qsort(m->tensors, m->count, sizeof *m->tensors, by_name);
}

/* Cuts the sorted list into pieces of about the same number of bytes, none of them empty. */
static void assign_shards(struct model *m)
{
    const size_t shards = (size_t)m->o->shards;
    uint64_t done = 0;
    size_t i, shard = 0, used = 0;
    if (shards > m->count) die("--shards: found %zu, expected at most %zu", shards, m->count);
    for (i = 0; i < m->count; i++) {
        const uint64_t size = tensor_bytes(&m->tensors[i]);
        const int full = done + size / 2 > m->bytes / shards * (shard + 1);
        if (used && shard + 1 < shards && (full || m->count - i == shards - shard - 1)) {
            shard++;
            used = 0;
        }
        m->tensors[i].shard = (int)shard;
        used++;
        done += size;
    }
}

/* ---- files ----------------------------------------------------------------------------------- */

static void open_output(const struct options *o, const char *name)
{
    tool_error err;
    char *path = tool_join(o->folder, name, &err);
    if (!path || !tool_output_open(&output, path, &err)) die("%s", err.message);
    free(path);
}

static void write_output(const void *data, size_t size)
{
    tool_error err;
    if (!tool_output_write(&output, data, size, &err)) die("%s", err.message);
}

static void commit_output(void)
{
    tool_error err;
    if (!tool_output_commit(&output, &err)) die("%s", err.message);
}

static void write_text(const struct options *o, const char *name, tool_buffer *text)
{
    if (text->failed) die("%s: out of memory", name);
    open_output(o, name);
    write_output(text->data, text->size);
    commit_output();
    tool_buffer_free(text);
}

static void put_text(tool_buffer *t, const char *s)
{
    tool_put(t, s, strlen(s));
}

/* Random weights must never take the place of a real model. */
static void check_folder(const struct options *o)
{
    DIR *dir;
    const struct dirent *e;
    if (mkdir(o->folder, 0777) != 0 && errno != EEXIST)
        die("%s: the folder cannot be made: %s", o->folder, strerror(errno));
    dir = opendir(o->folder);
    if (!dir) die("%s: cannot be opened as a folder: %s", o->folder, strerror(errno));
    while ((e = readdir(dir)) != NULL) {
        size_t n = strlen(e->d_name);
        if (!strcmp(e->d_name, "config.json")
            || (n > 12 && !strcmp(e->d_name + n - 12, ".safetensors")))
            die("%s already holds %s; choose another folder", o->folder, e->d_name);
    }
    closedir(dir);
}

static void check_space(const struct model *m)
{
    struct statvfs s;
    char found[TOOL_HUMAN], wanted[TOOL_HUMAN];
    uint64_t available, needed = m->bytes + m->count * 512 + (uint64_t)m->o->dim[V] * 128 + 65536;
    if (statvfs(m->o->folder, &s) != 0)
        die("%s: free space unknown: %s", m->o->folder, strerror(errno));
    available = (uint64_t)s.f_bavail * s.f_frsize;
    if (available < needed)
        die("%s: not enough space: found %s free, needed %s", m->o->folder,
            tool_human(found, available), tool_human(wanted, needed));
}

/* ---- safetensors ----------------------------------------------------------------------------- */

static void shard_name(const struct options *o, int shard, char *out, size_t size)
{
    if (o->shards == 1) snprintf(out, size, "model.safetensors");
    else snprintf(out, size, "model-%05d-of-%05d.safetensors", shard + 1, o->shards);
}

/* The table holds each quantile as the bytes of one value (2 or 4), so that drawing is a lookup.
   Value number i comes from bits 16*(i%4).. of mix(key + (i/4 + 1) * STEP); first is a multiple
   of 4. */
static void draw(unsigned char *out, size_t n, const unsigned char *table, unsigned bytes,
                 uint64_t key, uint64_t first)
{
    uint64_t counter = key + first / 4 * STEP, bits = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        const unsigned char *value;
        bits = i % 4 ? bits >> 16 : mix(counter += STEP);
        value = table + (bits & 65535) * bytes;
        if (bytes == 2) memcpy(out + 2 * i, value, 2);
        else memcpy(out + 4 * i, value, 4);
    }
}

struct weights {
    struct model *m;
    unsigned char *table, *buffer;   /* TABLE_SIZE and BUFFER_VALUES values of up to 4 bytes */
    uint64_t written;
    tool_progress progress;
};

/* `index`: the tensor's number in the writer. */
static void write_tensor(struct weights *w, const struct tensor *t, size_t index)
{
    const uint32_t bytes = st_dtype_bits(t->dtype) / 8;
    const uint64_t key = tensor_key(w->m, t->name);
    tool_error err;
    uint64_t i, n;
    for (i = 0; i < TABLE_SIZE && t->dtype != ST_I64; i++)
        put_value(w->table + i * bytes, t->dtype, t->mean + t->std * (double)w->m->quantiles[i]);
    for (i = 0; i < t->count; i += n) {
        n = t->count - i < BUFFER_VALUES ? t->count - i : BUFFER_VALUES;
        if (t->dtype == ST_I64) put_value(w->buffer, ST_I64, t->mean);
        else draw(w->buffer, (size_t)n, w->table, bytes, key, i);
        if (!st_writer_put(&writer, index, w->buffer, n * bytes, &err)) die("%s", err.message);
        w->written += n * bytes;
        tool_progress_update(&w->progress, w->written);
    }
}

/* The tensors first..last-1 of the model are those of the shard. */
static void write_shard(struct weights *w, int shard, size_t first, size_t last)
{
    const struct tensor *t = w->m->tensors;
    tool_error err;
    char name[64], *path;
    size_t i;
    bool ok = st_writer_note(&writer, "format", "pt", &err);
    for (i = first; ok && i < last; i++)
        ok = st_writer_add(&writer, t[i].name, t[i].dtype, t[i].dims, t[i].shape, &err);
    shard_name(w->m->o, shard, name, sizeof name);
    path = ok ? tool_join(w->m->o->folder, name, &err) : NULL;
    if (!path || !st_writer_start(&writer, path, &err)) die("%s", err.message);
    for (i = first; i < last; i++) write_tensor(w, &t[i], i - first);
    if (!st_writer_commit(&writer, &err)) die("%s", err.message);
    st_writer_free(&writer);
    free(path);
}

static void write_index(const struct model *m)
{
    tool_buffer t = {0};
    char name[64];
    size_t i;
    tool_putf(&t, "{\n  \"metadata\": {\n    \"total_size\": %llu\n  },\n  \"weight_map\": {\n",
             (unsigned long long)m->bytes);
    for (i = 0; i < m->count; i++) {
        shard_name(m->o, m->tensors[i].shard, name, sizeof name);
        tool_putf(&t, "    \"%s\": \"%s\"%s\n", m->tensors[i].name, name,
                  i + 1 < m->count ? "," : "");
    }
    put_text(&t, "  }\n}\n");
    write_text(m->o, "model.safetensors.index.json", &t);
}

static void write_weights(struct model *m)
{
    struct weights w = {0};
    size_t first = 0, last;
    w.m = m;
    w.table = allocate(TABLE_SIZE, 4);
    w.buffer = allocate(BUFFER_VALUES, 4);
    tool_progress_begin(&w.progress, "writing", NULL, m->bytes);
    for (; first < m->count; first = last) {
        const int shard = m->tensors[first].shard;
        for (last = first; last < m->count && m->tensors[last].shard == shard;) last++;
        write_shard(&w, shard, first, last);
    }
    tool_progress_end(&w.progress);
    if (m->o->shards > 1) write_index(m);
    free(w.table);
    free(w.buffer);
}

/* ---- tokenizer ------------------------------------------------------------------------------- */

/* A byte-pair vocabulary is learned from made-up text: words are drawn, the frequent English ones
   half of the time, encoded with the merges so far, and two neighbours of the result merge to the
   next piece. So every piece is reached by the merges before it, as in a trained tokenizer.
   Piece numbers here: the single characters first, then the merged ones in order of rank. */

#define SPACE "\xe2\x96\x81"         /* U+2581, which stands for a space */
#define MAX_WORD 40                  /* bytes */
#define MAX_PIECE 18

struct piece { char text[MAX_PIECE + 1]; unsigned char size; };

struct vocab {
    struct piece *pieces;
    int *slots;                      /* open addressing: piece number + 1, or 0 */
    size_t slot_mask;
    int singles, count, limit;
    uint64_t random;
};

static const char single_characters[] =
    "etaoinsrhldcumfpgwybvkxjqz,.-'\"()0123456789:;!?/_=+*<>[]{}#$%&@\\^`|~"
    "ETAOINSRHLDCUMFPGWYBVKXJQZ";

static const char *const common_words[] = {
    "the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be", "by",
    "on", "not", "he", "this", "are", "or", "his", "from", "at", "which", "but", "have", "an",
    "had", "they", "you", "were", "there", "one", "all", "we", "can", "her", "has", "when", "will",
    "more", "no", "if", "out", "so", "what", "up", "its", "about", "into", "than", "them", "only",
    "other", "time", "some", "could", "these", "two", "may", "then", "do", "first", "any", "my",
    "now", "such", "like", "our", "over", "man", "me", "even", "most", "made", "after", "also",
    "did", "many", "before", "must", "through", "years", "where", "much", "way", "well", "down",
    "should", "because", "each", "just", "those", "people", "how", "too", "little", "state", "good",
    "very", "make", "world", "still", "own", "see", "men", "work", "long", "get", "here", "between",
    "both", "life", "being", "under", "never", "day", "same", "another", "know", "while", "last",
    "might", "us", "great", "old", "year", "off", "come", "since", "against", "go", "came", "right",
    "used", "take", "three", "number", "system", "function", "value", "return", "result", "example",
    "water", "energy", "form", "point", "question", "market", "price", "theory", "history",
};

static unsigned pick(struct vocab *v, unsigned n)
{
    v->random += STEP;
    return (unsigned)((mix(v->random) >> 32) * n >> 32);
}

/* The smaller of two draws: the front of a list is more frequent. */
static unsigned pick_early(struct vocab *v, unsigned n)
{
    unsigned a = pick(v, n), b = pick(v, n);
    return a < b ? a : b;
}

#define PICK(v, list) list[pick_early(v, (unsigned)(sizeof list / sizeof list[0]))]

/* Writes a word that begins with U+2581 more often than not; at most 3 + 6 + 3*7 bytes. */
static void draw_word(struct vocab *v, char *out)
{
    static const char *const onset[] = {
        "t", "r", "s", "", "l", "n", "d", "m", "c", "p", "b", "f", "v", "g", "h", "th", "st", "w",
        "pr", "tr", "ch", "sh", "k", "pl", "br", "gr", "y", "sp", "fl", "j", "qu", "cr", "sc", "z",
    };
    static const char *const vowel[] = {"e", "a", "i", "o", "u", "io", "ea", "ou", "ai", "y", "ee"};
    static const char *const coda[] = {
        "", "n", "", "r", "s", "t", "l", "", "d", "ng", "nt", "m", "st", "ck", "ss", "x",
    };
    unsigned syllables = 1 + pick_early(v, 3);
    strcpy(out, pick(v, 4) ? SPACE : "");
    if (pick(v, 2)) {
        strcat(out, PICK(v, common_words));
        if (pick(v, 4)) return;
        syllables = 1;
    } else if (!pick(v, 200)) {                  /* runs of spaces, as in source code */
        strcpy(out, SPACE SPACE SPACE SPACE SPACE SPACE SPACE SPACE);
        return;
    }
    while (syllables--) {
        strcat(out, PICK(v, onset));
        strcat(out, PICK(v, vowel));
        strcat(out, PICK(v, coda));
    }
    if (!pick(v, 8)) {
        char *first = strncmp(out, SPACE, 3) ? out : out + 3;
        if (*first >= 'a' && *first <= 'z') *first = (char)(*first - 32);
    }
}

/* The number of the piece with this text, or -1; *slot is where it is or would be. */
static int find_piece(const struct vocab *v, const char *s, size_t n, size_t *slot)
{
    size_t i = (size_t)mix(tool_hash(s, n)) & v->slot_mask;
    for (; v->slots[i]; i = (i + 1) & v->slot_mask) {
        const struct piece *p = &v->pieces[v->slots[i] - 1];
        if (p->size == n && !memcmp(p->text, s, n)) break;
    }
    if (slot) *slot = i;
    return v->slots[i] - 1;
}

static int add_piece(struct vocab *v, const char *s, size_t n)
{
    size_t slot;
    if (n > MAX_PIECE || find_piece(v, s, n, &slot) >= 0) return 0;
    memcpy(v->pieces[v->count].text, s, n);
    v->pieces[v->count].size = (unsigned char)n;
    v->slots[slot] = ++v->count;
    return 1;
}

static size_t character_size(const char *s)
{
    return *s == SPACE[0] ? 3 : 1;
}

/* Cuts the word into pieces: start[0..n] are their limits. The merge of lowest rank, leftmost
   first, is done until none is left. Returns n. */
static int encode_word(const struct vocab *v, const char *word, size_t start[MAX_WORD + 1])
{
    int n = 0, i, best, rank, where;
    for (start[0] = 0; word[start[n]]; n++)
        start[n + 1] = start[n] + character_size(word + start[n]);
    for (;;) {
        for (best = -1, where = i = 0; i + 2 <= n; i++) {
            rank = find_piece(v, word + start[i], start[i + 2] - start[i], NULL);
            if (rank >= 0 && (best < 0 || rank < best)) {
                best = rank;
                where = i;
            }
        }
        if (best < 0) return n;
        for (i = where + 1; i < n; i++) start[i] = start[i + 1];
        n--;
    }
}

static void learn_pieces(struct vocab *v)
{
    char word[MAX_WORD + 1];
    size_t start[MAX_WORD + 1];
    uint64_t tries = 0, most = (uint64_t)v->limit * 200 + 100000;
    while (v->count < v->limit) {
        int n, i;
        if (tries++ > most) die("tokenizer: only %d of %d pieces found", v->count, v->limit);
        draw_word(v, word);
        n = encode_word(v, word, start);
        if (n < 2) continue;
        i = (int)pick(v, (unsigned)n - 1);
        add_piece(v, word + start[i], start[i + 2] - start[i]);
    }
}

static void make_vocab(struct vocab *v, const struct options *o)
{
    const char *s = single_characters;
    size_t slots = 1024;
    v->limit = o->dim[V] - SPECIALS;
    while (slots < (size_t)v->limit * 2) slots *= 2;
    v->slot_mask = slots - 1;
    v->slots = allocate(slots, sizeof *v->slots);
    v->pieces = allocate((uint64_t)v->limit + 1, sizeof *v->pieces);
    v->random = mix(o->seed + 1);
    if (v->count < v->limit) add_piece(v, SPACE, 3);
    for (; *s && v->count < v->limit; s++) add_piece(v, s, 1);
    v->singles = v->count;
    learn_pieces(v);
}

static void add_vocab_json(tool_buffer *t, const struct vocab *v)
{
    int id, i;
    put_text(t, "\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2");
    for (id = 3; id < SPECIALS; id++) tool_putf(t, ",\"<0x%02X>\":%d", (unsigned)id - 3, id);
    for (i = 0; i < v->count; i++, id++) {       /* the merged pieces, then the characters */
        const int merged = v->count - v->singles;
        const struct piece *p = &v->pieces[i < merged ? v->singles + i : i - merged];
        put_text(t, ",");
        json_put_string(t, p->text, p->size);
        tool_putf(t, ":%d", id);
    }
    put_text(t, "}");
}

/* Every way to make a piece of two others is a merge, as in files converted from SentencePiece:
   then ranks of pairs and scores of pieces lead to the same result. */
static void add_merges_json(tool_buffer *t, const struct vocab *v)
{
    char pair[2 * MAX_PIECE];
    int i, n, first = 1;
    size_t cut;
    put_text(t, "\"merges\":[");
    for (i = v->singles; i < v->count; i++) {
        const struct piece *p = &v->pieces[i];
        for (cut = character_size(p->text); cut < p->size; cut += character_size(p->text + cut)) {
            if (find_piece(v, p->text, cut, NULL) < 0
                || find_piece(v, p->text + cut, p->size - cut, NULL) < 0) continue;
            n = snprintf(pair, sizeof pair, "%.*s %s", (int)cut, p->text, p->text + cut);
            if (!first) put_text(t, ",");
            json_put_string(t, pair, (size_t)n);
            first = 0;
        }
    }
    put_text(t, "]");
}

static void add_special_json(tool_buffer *t, int id, const char *name)
{
    tool_putf(t, "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,"
             "\"rstrip\":false,\"normalized\":false,\"special\":true}", id ? "," : "", id, name);
}

static void write_tokenizer(const struct options *o)
{
    struct vocab v = {0};
    tool_buffer t = {0};
    make_vocab(&v, o);
    put_text(&t, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
    add_special_json(&t, 0, "<unk>");
    add_special_json(&t, 1, "<s>");
    add_special_json(&t, 2, "</s>");
    put_text(&t, "],\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":["
             "{\"type\":\"Prepend\",\"prepend\":\"" SPACE "\"},"
             "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" SPACE "\"}]},");
    put_text(&t, "\"pre_tokenizer\":null,\"post_processor\":{\"type\":\"TemplateProcessing\","
             "\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
             "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],"
             "\"pair\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
             "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},"
             "{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":1}},"
             "{\"Sequence\":{\"id\":\"B\",\"type_id\":1}}],\"special_tokens\":"
             "{\"<s>\":{\"id\":\"<s>\",\"ids\":[1],\"tokens\":[\"<s>\"]}}},");
    put_text(&t, "\"decoder\":{\"type\":\"Sequence\",\"decoders\":["
             "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" SPACE "\"},\"content\":\" \"},"
             "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
             "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},");
    put_text(&t, "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"<unk>\","
             "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":true,"
             "\"byte_fallback\":true,\"ignore_merges\":false,");
    add_vocab_json(&t, &v);
    put_text(&t, ",");
    add_merges_json(&t, &v);
    put_text(&t, "}}\n");
    write_text(o, "tokenizer.json", &t);
    free(v.slots);
    free(v.pieces);
}

/* ---- config ---------------------------------------------------------------------------------- */

static void put_number(tool_buffer *t, const char *key, int value)
{
    tool_putf(t, "  \"%s\": %d,\n", key, value);
}

static void write_config(const struct options *o)
{
    const int *d = o->dim;
    tool_buffer t = {0};
    put_text(&t, "{\n  \"architectures\": [\n    \"MonetForCausalLM\"\n  ],\n"
             "  \"attention_bias\": false,\n  \"attention_dropout\": 0.0,\n"
             "  \"bos_token_id\": 1,\n  \"eos_token_id\": 2,\n");
    put_number(&t, "head_dim", d[C] / d[A]);
    put_text(&t, "  \"hidden_act\": \"relu2\",\n");
    put_number(&t, dim_info[C].key, d[C]);
    put_text(&t, "  \"initializer_range\": 0.02,\n  \"intermediate_size\": null,\n");
    put_number(&t, dim_info[CONTEXT].key, d[CONTEXT]);
    put_text(&t, "  \"mlp_bias\": null,\n  \"model_type\": \"monet\",\n");
    tool_putf(&t, "  \"moe_decompose\": \"%s\",\n", o->vertical ? "vertical" : "horizontal");
    put_number(&t, dim_info[M].key, d[M]);
    put_number(&t, dim_info[N].key, d[N]);
    put_number(&t, dim_info[G].key, d[G]);
    put_number(&t, dim_info[H].key, d[H]);
    put_number(&t, dim_info[TOPK].key, d[TOPK]);
    put_number(&t, dim_info[A].key, d[A]);
    put_number(&t, dim_info[L].key, d[L]);
    put_number(&t, dim_info[K].key, d[K]);
    put_text(&t, "  \"output_router_probs\": false,\n  \"pretraining_tp\": 1,\n"
             "  \"rms_norm_eps\": 1e-06,\n  \"rope_scaling\": null,\n"
             "  \"rope_theta\": 10000.0,\n");
    tool_putf(&t, "  \"tie_word_embeddings\": %s,\n", o->tied ? "true" : "false");
    tool_putf(&t, "  \"torch_dtype\": \"%s\",\n", dtypes[o->dtype].torch_name);
    put_text(&t, "  \"transformers_version\": \"4.45.2\",\n  \"use_cache\": true,\n");
    tool_putf(&t, "  \"%s\": %d\n}\n", dim_info[V].key, d[V]);
    write_text(o, "config.json", &t);
}

static void write_generation_config(const struct options *o)
{
    tool_buffer t = {0};
    put_text(&t, "{\n  \"_from_model_config\": true,\n  \"bos_token_id\": 1,\n"
             "  \"eos_token_id\": 2,\n  \"transformers_version\": \"4.45.2\"\n}\n");
    write_text(o, "generation_config.json", &t);
}

/* config.json is written last: a folder that has it is complete. */
int main(int argc, char **argv)
{
    struct options o = {0};
    struct model m = {0};
    float *quantiles;
    char bytes[TOOL_HUMAN];
    parse_options(&o, argc, argv);
    check_sizes(&o);
    tool_remove_on_signal();
    quantiles = make_quantiles();
    plan_model(&m, &o, quantiles);
    assign_shards(&m);
    check_folder(&o);
    check_space(&m);
    fprintf(stderr, "%s %s: %llu parameters, %s of %s in %zu tensors\n", o.size,
            o.vertical ? "vertical" : "horizontal", (unsigned long long)m.parameters,
            tool_human(bytes, m.bytes), dtypes[o.dtype].option, m.count);
    if (!o.no_tokenizer) write_tokenizer(&o);
    write_generation_config(&o);
    write_weights(&m);
    write_config(&o);
    free(m.tensors);
    free(quantiles);
    fprintf(stderr, "%s is ready (%.1f s of processor time)\n", o.folder,
            (double)clock() / CLOCKS_PER_SEC);
    return 0;
}
