/* export.c: writes a .monet file as a model folder of Hugging Face, the way back from convert.c.

   cc -O2 -pthread -I. tools/export.c -o export -lm

   `export --help` says what it does. Every tensor goes back to the dtype that it came from, so a
   checkpoint that was converted comes out with the same bytes. The weights pass through in blocks,
   so that memory stays small however large the model is; all files are written into a temporary
   folder inside the new one and move up when the last of them is complete.

   Order of this file: reporting, metadata, the folder, the plan of the tensors, the weights,
   config.json, the tokenizer, main.                                                             */
#include "common.h"

#include <dirent.h>

#include "hf_config.h"
#include "hf_names.h"
#include "json.h"
#include "safetensors.h"

#define MONET_IMPLEMENTATION
#include "monet.h"

#include "run.h"
#include "tokenizer_data.h"

#ifndef EXPORT_BLOCK                      /* the test makes both small */
#define EXPORT_BLOCK (UINT64_C(32) << 20) /* bytes of floats held at a time */
#define EXPORT_MAP   (UINT64_C(64) << 20) /* of the .monet file, read before it is mapped anew */
#endif

enum { PUT = 1 << 16, STRIP = 64, TILE = 16, MAX_WARNINGS = 10 };

typedef struct item { /* a tensor of the new folder */
    char         name[96];
    monet_tensor from;    /* what the .monet file has */
    size_t       index;   /* its number there */
    int32_t      which;   /* source of its hf_mapping */
    bool         counter; /* of training batches: `value`, an int64 */
    int64_t      value;
    monet_dtype  dtype;
    int32_t      n_dims;
    int64_t      shape[2];
    uint64_t     size;    /* bytes */
    int          shard;
} item;

typedef struct exporter {
    const char   *path, *folder;
    int           dtype;      /* -1 = as each tensor was */
    uint64_t      shard_size;
    bool          force, help;
    monet_model  *model;
    uint64_t      mapped;     /* bytes that were read since it was mapped */
    monet_arch    arch;
    tool_name    *notes;      /* the metadata, sorted by key; value = number */
    size_t        n_notes;
    tokenizer_copy tokenizer; /* pieces NULL = none */
    item         *items;      /* none: a tokenizer alone */
    size_t        n_items, capacity;
    int           n_shards;
    char         *temp;       /* the temporary folder */
    bool          made_folder;
    char          files[ST_MAX_PARTS + 8][48]; /* what was written there */
    int           n_files;
    unsigned char raw[PUT * 4];
    uint64_t      total, done, n_infinite; /* bytes; values of the tensor that overflowed */
    tool_progress progress;
    int           n_warnings;
    bool          no_memory;  /* to look at metadata */
} exporter;

/* ---- reporting ------------------------------------------------------------------------------- */

static volatile sig_atomic_t stop_wanted;

static void on_stop(int number)
{
    (void)number;
    stop_wanted = 1;
}

/* Ctrl-C ends the export at the next block, which removes the unfinished files on its way out. */
static void catch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action, old;
    size_t i;

    stop_wanted = 0;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_stop;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
}

static void complain(exporter *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void complain(exporter *e, const char *format, ...)
{
    va_list args;

    if (e->n_warnings++ > MAX_WARNINGS) return;
    tool_progress_end(&e->progress);
    fprintf(stderr, "warning: ");
    va_start(args, format);
    if (e->n_warnings <= MAX_WARNINGS) vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, e->n_warnings > MAX_WARNINGS ? "there are more of these\n" : "\n");
}

/* ---- metadata -------------------------------------------------------------------------------- */

static bool index_notes(exporter *e, tool_error *err)
{
    size_t i;
    const tool_name *twin;
    char quoted[TOOL_QUOTE];

    e->n_notes = monet_model_metadata_count(e->model);
    e->notes = tool_alloc(e->n_notes, sizeof *e->notes, err);
    if (e->notes == NULL) return false;
    for (i = 0; i < e->n_notes; i++) {
        const char *key = monet_model_metadata_key(e->model, i);
        e->notes[i] = tool_name_of(key, strlen(key), (uint32_t)i);
    }
    twin = tool_names_sort(e->notes, e->n_notes);
    if (twin == NULL) return true;
    return tool_fail(err, "%s: the metadata key \"%s\" occurs twice", e->path,
                     tool_quote(quoted, twin->bytes, twin->size));
}

/* NULL if there is none. */
static const char *note(const exporter *e, const char *key)
{
    const tool_name *found = tool_names_find(e->notes, e->n_notes, key, strlen(key));

    return found == NULL ? NULL : monet_model_metadata_value(e->model, found->value);
}

static bool note_is(const exporter *e, const char *key, const char *value)
{
    const char *found = note(e, key);

    return found != NULL && strcmp(found, value) == 0;
}

/* A value goes into a JSON file as it is, so it has to be one JSON value and no more; if `number`
   is not NULL, an integer. What is not is left out, with a warning. */
static bool check_note(exporter *e, const char *key, const char *value, int64_t *number)
{
    tool_error why = {""};
    char *copy = tool_copy(value, strlen(value), &why), quoted[TOOL_QUOTE];
    json_doc doc;
    bool ok = copy != NULL && json_parse(&doc, copy, strlen(value), &why);

    if (ok) {
        if (!tool_is_utf8(key, strlen(key))) ok = tool_fail(&why, "its key is not UTF-8");
        if (number != NULL && !json_int(&doc, 0, number)) ok = tool_fail(&why, "is no integer");
        json_free(&doc);
    }
    if (strncmp(why.message, "out of memory", 13) == 0) e->no_memory = true;
    else if (!ok) complain(e, "metadata \"%s\" is left out: %s",
                           tool_quote(quoted, key, strlen(key)), why.message);
    free(copy);
    return ok;
}

/* ---- the folder ------------------------------------------------------------------------------ */

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Files that loading a model folder looks for: --force removes old ones. */
static bool is_model_file(const char *name)
{
    static const char *const names[] = {
        "config.json", "generation_config.json", "tokenizer.model", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "model.safetensors", "model.safetensors.index.json"
    };
    size_t i;

    for (i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return strncmp(name, "model-", 6) == 0 && hf__ends_with(name, ".safetensors");
}

/* With `remove`, takes away what loading would find; else fails if there is any file. */
static bool clear_folder(const exporter *e, bool remove, tool_error *err)
{
    DIR *dir = opendir(e->folder);
    struct dirent *entry;
    char quoted[TOOL_QUOTE];
    bool ok = true;

    if (dir == NULL) return tool_fail(err, "%s: %s", e->folder, strerror(errno));
    while (ok && (entry = readdir(dir)) != NULL) {
        if (is_dots(entry->d_name) || (remove && !is_model_file(entry->d_name))) continue;
        tool_quote(quoted, entry->d_name, strlen(entry->d_name));
        if (!remove)
            ok = tool_fail(err, "%s: is not empty, it has \"%s\"; --force replaces the model files "
                           "in it", e->folder, quoted);
        else if (unlinkat(dirfd(dir), entry->d_name, 0) != 0)
            ok = tool_fail(err, "%s/%s: %s", e->folder, quoted, strerror(errno));
    }
    closedir(dir);
    return ok;
}

static bool open_folder(exporter *e, tool_error *err)
{
    struct stat status;

    if (mkdir(e->folder, 0777) == 0)
        e->made_folder = true;
    else if (errno != EEXIST || stat(e->folder, &status) != 0)
        return tool_fail(err, "%s: cannot be made: %s", e->folder, strerror(errno));
    else if (!S_ISDIR(status.st_mode))
        return tool_fail(err, "%s: is %s, not a folder", e->folder, tool__kind(status.st_mode));
    else if (!e->force && !clear_folder(e, false, err))
        return false;
    e->temp = tool_join(e->folder, "export.tmp.XXXXXX", err);
    if (e->temp == NULL) return false;
    if (mkdtemp(e->temp) != NULL) return true;
    tool_fail(err, "%s: cannot be written to: %s", e->folder, strerror(errno));
    free(e->temp);
    e->temp = NULL;
    return false;
}

/* The path of a new file in the temporary folder. */
static char *new_file(exporter *e, const char *name, tool_error *err)
{
    snprintf(e->files[e->n_files++], sizeof e->files[0], "%s", name);
    return tool_join(e->temp, name, err);
}

static bool write_text(exporter *e, const char *name, tool_buffer *text, tool_error *err)
{
    tool_output output;
    char *path = text->failed ? NULL : new_file(e, name, err);
    bool ok = path != NULL && tool_output_open(&output, path, err);

    if (text->failed) tool_fail(err, "%s: out of memory", name);
    if (ok) {
        ok = tool_output_write(&output, text->data, text->size, err) &&
             tool_output_commit(&output, err);
        tool_output_abandon(&output);
    }
    free(path);
    tool_buffer_free(text);
    return ok;
}

/* All files are complete: they move up, the first one, config.json, at the end. Nothing here needs
   memory; if it fails all the same, those that moved are removed. */
static bool publish(exporter *e, tool_error *err)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
    int from, to, i = e->n_files;
    bool ok = true;

    if (stop_wanted) return tool_fail(err, "interrupted: nothing was written");
    if (e->force && !clear_folder(e, true, err)) return false;
    from = open(e->temp, flags);
    to = open(e->folder, flags);
    while (ok && i > 0)
        if (renameat(from, e->files[i - 1], to, e->files[i - 1]) == 0) i--;
        else ok = tool_fail(err, "%s/%s: %s", e->folder, e->files[i - 1], strerror(errno));
    if (ok && TOOL_SYS(fsync)(to) != 0 && errno != EINVAL) /* of file systems that cannot */
        ok = tool_fail(err, "%s: writing failed: %s", e->folder, strerror(errno));
    for (; !ok && i < e->n_files; i++) unlinkat(to, e->files[i], 0);
    if (from >= 0) close(from);
    if (to >= 0) close(to);
    return ok;
}

/* Removes what is left in the temporary folder, and after a failure the folder, if it is new. */
static void close_folder(exporter *e, bool ok)
{
    DIR *dir = e->temp == NULL ? NULL : opendir(e->temp);
    struct dirent *entry;

    while (dir != NULL && (entry = readdir(dir)) != NULL)
        if (!is_dots(entry->d_name)) unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir != NULL) closedir(dir);
    if (e->temp != NULL) rmdir(e->temp);
    if (!ok && e->made_folder) rmdir(e->folder);
    free(e->temp);
}

/* ---- the plan of the tensors ----------------------------------------------------------------- */

static bool add_item(exporter *e, size_t index, const hf_source *as, item it, tool_error *err)
{
    it.from = *monet_model_tensor(e->model, index);
    it.index = index;
    it.dtype = e->dtype < 0 ? it.from.source_dtype : (monet_dtype)e->dtype;
    it.n_dims = as->n_dims;
    it.shape[0] = as->shape[0];
    it.shape[1] = as->shape[1];
    it.size = (uint64_t)it.shape[0] * (uint64_t)it.shape[1] * /* as many as in the file */
              (it.counter ? 8 : monet_dtype_size(it.dtype));
    snprintf(it.name, sizeof it.name, "%s", as->name);
    if (!tool_grow(&e->items, &e->capacity, (uint64_t)e->n_items + 1, sizeof it, err))
        return false;
    e->total += it.size;
    e->items[e->n_items++] = it;
    return true;
}

/* What one tensor of the .monet file becomes. */
static bool add_tensor(exporter *e, size_t index, tool_error *err)
{
    const monet_tensor *tensor = monet_model_tensor(e->model, index);
    hf_mapping map;
    hf_source counter = {"", 0, {1, 1}};
    const char *count;
    item it;

    memset(&it, 0, sizeof it);
    hf_map(&e->arch, tensor, &map);
    for (; it.which < map.n_sources; it.which++)
        if (!add_item(e, index, &map.source[it.which], it, err)) return false;
    if (!hf_counter(tensor, counter.name)) return true;
    count = note(e, counter.name + strlen("model."));
    it.counter = true;
    if (count != NULL && !check_note(e, counter.name + strlen("model."), count, &it.value))
        it.value = 0;
    if (e->no_memory) return tool_fail(err, "out of memory");
    return add_item(e, index, &counter, it, err);
}

/* Tensors fill one file after the other, in their order. */
static bool plan_shards(exporter *e, tool_error *err)
{
    uint64_t used = 0;
    size_t i;

    for (i = 0; i < e->n_items; i++) {
        uint64_t size = e->items[i].size;
        if (i == 0 || (used > 0 && (used >= e->shard_size || size > e->shard_size - used))) {
            e->n_shards++;
            used = 0;
        }
        if (e->n_shards > ST_MAX_PARTS)
            return tool_fail(err, "more than %d files of %llu bytes: give a larger --shard-size",
                             ST_MAX_PARTS, (unsigned long long)e->shard_size);
        e->items[i].shard = e->n_shards - 1;
        used += size;
    }
    return true;
}

static void warn_quantised(exporter *e)
{
    size_t i, n = 0;

    for (i = 0; i < e->n_items; i++)
        n += e->items[i].from.dtype == MONET_Q8 || e->items[i].from.dtype == MONET_Q4;
    if (n > 0)
        complain(e, "%lu of %lu tensors are q8 or q4: they are widened, but have lost what their "
                 "rounding took away", (unsigned long)n, (unsigned long)e->n_items);
}

static bool plan(exporter *e, tool_error *err)
{
    size_t i, n = monet_model_tensor_count(e->model);
    hf_source head = {"lm_head.weight", 2, {e->arch.vocab_size, e->arch.dim}};
    item it;

    memset(&it, 0, sizeof it);
    for (i = 0; i < n; i++)
        if (!add_tensor(e, i, err)) return false;
    if (e->arch.tie_embeddings && note_is(e, "checkpoint.lm_head", "stored") &&
        !add_item(e, 0, &head, it, err)) /* the embedding once more */
        return false;
    warn_quantised(e);
    return plan_shards(e, err);
}

/* ---- the weights ----------------------------------------------------------------------------- */

/* Rows of an item's tensor. Pages of a mapped file count as resident once they were read, so it is
   mapped anew now and then. */
static bool read_rows(exporter *e, const item *it, int64_t first, int64_t count, float *out,
                      tool_error *err)
{
    const monet_tensor *t, *old = &it->from;

    if (e->mapped >= EXPORT_MAP) {
        monet_model_free(e->model);
        e->model = NULL;
        e->mapped = 0;
        if (!run_load_any(e->path, &e->model, err)) return false;
    }
    t = monet_model_tensor(e->model, it->index);
    if (t == NULL || strcmp(t->name, old->name) != 0 || t->dtype != old->dtype ||
        t->shape[0] != old->shape[0] || t->shape[1] != old->shape[1] || t->hash != old->hash)
        return tool_fail(err, "%s: has become another file while it was read", e->path);
    e->mapped += t->n_dims == 1 ? t->size : t->size / (uint64_t)t->shape[0] * (uint64_t)count;
    return monet_tensor_read(t, first, count, out) == MONET_OK || tool_fail(err, "cannot be read");
}

/* How many of n floats are finite, but not in that dtype. */
static uint64_t count_infinite(const float *x, size_t n, monet_dtype dtype)
{
    const uint32_t limit = dtype == MONET_F16 ? 0x477FF000 : 0x7F7F8000;
    uint64_t found = 0;
    size_t i;

    for (i = 0; i < n && dtype != MONET_F32; i++)
        found += (st__bits(x[i]) & 0x7FFFFFFF) - limit < 0x7F800000 - limit;
    return found;
}

/* n floats in the dtype of the new tensor. Most are bf16 and were: then the other half is zero. */
static void narrow(unsigned char *out, const item *it, const float *x, size_t n)
{
    size_t i;

    if (it->dtype != MONET_BF16 || it->from.dtype != MONET_BF16)
        monet_convert(out, it->dtype, x, MONET_F32, n);
    else
        for (i = 0; i < n; i++) st__store(out + 2 * i, st__bits(x[i]) >> 16, 2);
}

/* The next n numbers of a new tensor. */
static bool put(exporter *e, st_writer *writer, size_t number, const item *it, const float *x,
                uint64_t n, tool_error *err)
{
    const uint64_t size = monet_dtype_size(it->dtype);
    size_t some;

    for (; n > 0; n -= some, x += some) {
        if (stop_wanted) return tool_fail(err, "interrupted: nothing was written");
        some = n < PUT ? (size_t)n : PUT;
        narrow(e->raw, it, x, some);
        if (it->dtype != it->from.dtype) e->n_infinite += count_infinite(x, some, it->dtype);
        if (!st_writer_put(writer, number, e->raw, some * size, err)) return false;
        e->done += some * size;
        tool_progress_update(&e->progress, e->done);
    }
    return true;
}

/* As many rows of n floats as there is room for. */
static int64_t rows_of_block(int64_t n, int64_t rows)
{
    const uint64_t most = EXPORT_BLOCK / ((uint64_t)n * sizeof(float));

    return most < 1 ? 1 : most < (uint64_t)rows ? (int64_t)most : rows;
}

/* Tensors whose rows are rows of the .monet file; a vector is one row. */
static bool write_plain(exporter *e, st_writer *writer, size_t number, const item *it,
                        tool_error *err)
{
    const int64_t rows = it->n_dims == 1 ? 1 : it->shape[0];
    const int64_t columns = it->n_dims == 1 ? it->shape[0] : it->shape[1];
    const int64_t most = rows_of_block(columns, rows);
    float *block = tool_alloc((uint64_t)(most * columns), sizeof *block, err);
    int64_t first, count;
    bool ok = block != NULL;

    for (first = 0; ok && first < rows; first += count) {
        count = rows - first < most ? rows - first : most;
        ok = read_rows(e, it, first, count, block, err) &&
             put(e, writer, number, it, block, (uint64_t)(count * columns), err);
    }
    free(block);
    return ok;
}

/* Columns at..at+count-1 of V, one after the other: rows of the .monet file, some in a run. */
static bool read_columns(exporter *e, const item *it, const hf_mapping *map, int64_t at,
                         int64_t count, float *out, tool_error *err)
{
    int64_t done, run;

    for (done = 0; done < count; done += run) {
        run = map->run - (at + done) % map->run;
        if (run > count - done) run = count - done;
        if (!read_rows(e, it, hf_place(map, it->which, at + done), run, out + done * it->shape[0],
                       err))
            return false;
    }
    return true;
}

/* Puts `count` columns of `height` floats, which lie one after the other, into a block whose rows
   are `stride` apart; 16 rows at a time, since 16 floats of a column are a cache line. */
static void turn(float *block, int64_t stride, const float *columns, int64_t height, int64_t count,
                 int64_t rows)
{
    int64_t row, column, k, n;

    for (row = 0; row < rows; row += n) {
        n = rows - row < TILE ? rows - row : TILE;
        for (column = 0; column < count; column++)
            for (k = row; k < row + n; k++)
                block[k * stride + column] = columns[column * height + k];
    }
}

/* V: its columns are rows of the .monet file. For each block the whole tensor is read. */
static bool write_turned(exporter *e, st_writer *writer, size_t number, const item *it,
                         const hf_mapping *map, tool_error *err)
{
    const int64_t height = it->shape[0], columns = it->shape[1];
    const int64_t most = rows_of_block(columns, height);
    float *strip = tool_alloc((uint64_t)height * STRIP, sizeof *strip, err);
    float *block = tool_alloc((uint64_t)(most * columns), sizeof *block, err);
    int64_t row, rows, at, n;
    bool ok = strip != NULL && block != NULL;

    for (row = 0; ok && row < height; row += rows) {
        rows = height - row < most ? height - row : most;
        for (at = 0; ok && at < columns; at += n) {
            n = columns - at < STRIP ? columns - at : STRIP;
            ok = read_columns(e, it, map, at, n, strip, err);
            if (ok) turn(block + at, columns, strip + row, height, n, rows);
        }
        ok = ok && put(e, writer, number, it, block, (uint64_t)(rows * columns), err);
    }
    free(strip);
    free(block);
    return ok;
}

static bool write_item(exporter *e, st_writer *writer, size_t number, const item *it,
                       tool_error *err)
{
    unsigned char bytes[8];
    hf_mapping map;
    bool ok;

    st__store(bytes, (uint64_t)it->value, 8);
    if (it->counter) return st_writer_put(writer, number, bytes, 8, err);
    e->n_infinite = 0;
    hf_map(&e->arch, &it->from, &map);
    ok = map.transposed ? write_turned(e, writer, number, it, &map, err) :
         write_plain(e, writer, number, it, err);
    if (ok && e->n_infinite > 0)
        complain(e, "tensor \"%s\": %llu values are too large for %s and become infinite", it->name,
                 (unsigned long long)e->n_infinite, monet_dtype_name(it->dtype));
    return ok || (!stop_wanted && tool_prefix(err, it->name));
}

static void shard_name(const exporter *e, int shard, char name[48])
{
    if (e->n_shards == 1) snprintf(name, 48, "model.safetensors");
    else snprintf(name, 48, "model-%05d-of-%05d.safetensors", shard + 1, e->n_shards);
}

/* Items first..end-1 are those of one file. */
static bool write_shard(exporter *e, size_t first, size_t end, tool_error *err)
{
    static const st_dtype dtypes[] = {ST_F32, ST_F16, ST_BF16}; /* by monet_dtype */
    st_writer writer;
    char name[48], *path;
    size_t i;
    bool ok;

    memset(&writer, 0, sizeof writer);
    shard_name(e, e->items[first].shard, name);
    path = new_file(e, name, err);
    ok = path != NULL && st_writer_note(&writer, "format", "pt", err);
    for (i = first; ok && i < end; i++)
        ok = st_writer_add(&writer, e->items[i].name,
                           e->items[i].counter ? ST_I64 : dtypes[e->items[i].dtype],
                           e->items[i].n_dims, e->items[i].shape, err);
    ok = ok && st_writer_start(&writer, path, err);
    for (i = first; ok && i < end; i++) ok = write_item(e, &writer, i - first, &e->items[i], err);
    ok = ok && st_writer_commit(&writer, err);
    st_writer_free(&writer);
    free(path);
    return ok;
}

static bool write_weights(exporter *e, tool_error *err)
{
    tool_buffer index = {NULL, 0, 0, false};
    char name[48];
    size_t first, end;
    bool ok = true;

    tool_progress_begin(&e->progress, "exporting", NULL, e->total);
    tool_putf(&index, "{\n  \"metadata\": {\"total_size\": %llu},\n  \"weight_map\": {",
              (unsigned long long)e->total);
    for (first = 0; ok && first < e->n_items; first = end) {
        shard_name(e, e->items[first].shard, name);
        for (end = first; end < e->n_items && e->items[end].shard == e->items[first].shard; end++)
            tool_putf(&index, "%s\n    \"%s\": \"%s\"", end > 0 ? "," : "", e->items[end].name,
                      name);
        ok = write_shard(e, first, end, err);
    }
    tool_progress_end(&e->progress);
    tool_putf(&index, "\n  }\n}\n");
    if (ok && e->n_shards > 1) ok = write_text(e, "model.safetensors.index.json", &index, err);
    tool_buffer_free(&index);
    return ok;
}

/* ---- config.json ----------------------------------------------------------------------------- */

static void put_text(tool_buffer *out, const char *text)
{
    tool_put(out, text, strlen(text));
}

static void put_member(tool_buffer *out, const char *key, const char *value)
{
    put_text(out, out->size == 0 ? "{\n  " : ",\n  ");
    json_put_string(out, key, strlen(key));
    put_text(out, ": ");
    put_text(out, value);
}

/* The shortest of 6 to 9 digits that reads back as the same float. The locale is always "C" here,
   since setlocale is never called. */
static void put_float(tool_buffer *out, const char *key, float x)
{
    char text[40];
    int digits;

    for (digits = 6; digits < 9; digits++) {
        float back;
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        back = (float)strtod(text, NULL);
        if (memcmp(&back, &x, sizeof x) == 0) break;
    }
    snprintf(text, sizeof text, "%.*g", digits, (double)x);
    if (strpbrk(text, ".e") == NULL) strcat(text, ".0");
    put_member(out, key, text);
}

/* Ids of the tokenizer that no metadata says. */
static void put_ids(const exporter *e, tool_buffer *out)
{
    const monet_tokenizer_data *t = &e->tokenizer.data;
    int32_t i;

    if (t->bos_id >= 0 && t->pieces != NULL && note(e, "config.bos_token_id") == NULL)
        tool_putf(out, ",\n  \"bos_token_id\": %d", (int)t->bos_id);
    if (t->n_eos == 0 || note(e, "config.eos_token_id") != NULL) return;
    put_text(out, ",\n  \"eos_token_id\": ");
    for (i = 0; i < t->n_eos; i++)
        tool_putf(out, "%s%d", i > 0 ? ", " : t->n_eos > 1 ? "[" : "", (int)t->eos_ids[i]);
    if (t->n_eos > 1) put_text(out, "]");
}

/* What the architecture says, and what a reader needs even if no metadata says it. */
static void put_arch(exporter *e, tool_buffer *out)
{
    static const char *const dtypes[] = {"\"float32\"", "\"float16\"", "\"bfloat16\""};
    static const char *const needed[][3] = {
        {"architectures", "config.architectures", "[\"MonetForCausalLM\"]"},
        {"model_type", "config.model_type", "\"monet\""},
        {"hidden_act", "config.hidden_act", "\"relu2\""}
    };
    const bool vertical = e->arch.decompose == MONET_VERTICAL;
    const char *dtype = dtypes[e->items[0].dtype], *said = note(e, "config.torch_dtype");
    char text[16];
    size_t i;

    for (i = 0; i < 3; i++)
        if (note(e, needed[i][1]) == NULL) put_member(out, needed[i][0], needed[i][2]);
    for (i = 0; i < sizeof hf__numbers / sizeof hf__numbers[0]; i++) {
        int32_t value;
        memcpy(&value, (const char *)&e->arch + hf__numbers[i].field, sizeof value);
        snprintf(text, sizeof text, "%d", (int)value);
        put_member(out, hf__numbers[i].key, text);
    }
    put_member(out, "moe_decompose", vertical ? "\"vertical\"" : "\"horizontal\"");
    put_member(out, "tie_word_embeddings", e->arch.tie_embeddings ? "true" : "false");
    put_float(out, "rope_theta", e->arch.rope_theta);
    put_float(out, "rms_norm_eps", e->arch.norm_eps);
    if (e->dtype >= 0 || (said == NULL && note(e, "config.dtype") == NULL))
        put_member(out, "torch_dtype", dtype);
    for (i = 0; i < 3 && e->dtype < 0 && said != NULL; i++)
        if (strcmp(said, dtypes[i]) == 0 && dtypes[i] != dtype)
            complain(e, "config.json says torch_dtype %s as before, but the embedding is %s: "
                     "--dtype sets both", said, dtype);
    put_ids(e, out);
}

/* Whether put_arch writes that key whatever the metadata says. */
static bool in_arch(const exporter *e, const char *key)
{
    size_t i;

    for (i = 0; i < sizeof hf__numbers / sizeof hf__numbers[0]; i++)
        if (strcmp(key, hf__numbers[i].key) == 0) return true;
    for (i = 0; i < sizeof hf__read_keys / sizeof hf__read_keys[0]; i++)
        if (strcmp(key, hf__read_keys[i]) == 0) return true;
    return e->dtype >= 0 && (strcmp(key, "torch_dtype") == 0 || strcmp(key, "dtype") == 0);
}

/* Metadata whose keys start with the prefix, in its order. */
static void put_notes(exporter *e, tool_buffer *out, const char *prefix)
{
    size_t i, skip = strlen(prefix);

    for (i = 0; i < e->n_notes; i++) {
        const char *key = monet_model_metadata_key(e->model, i);
        const char *value = monet_model_metadata_value(e->model, i);
        if (strncmp(key, prefix, skip) == 0 && !in_arch(e, key + skip) &&
            check_note(e, key, value, NULL))
            put_member(out, key + skip, value);
    }
    if (out->size > 0) put_text(out, "\n}\n");
    out->failed = out->failed || e->no_memory;
}

static bool write_configs(exporter *e, tool_error *err)
{
    tool_buffer text = {NULL, 0, 0, false};

    put_arch(e, &text);
    put_notes(e, &text, "config.");
    if (!write_text(e, "config.json", &text, err)) return false;
    put_notes(e, &text, "generation.");
    return (text.size == 0 && !text.failed) ||
           write_text(e, "generation_config.json", &text, err);
}

/* ---- the tokenizer --------------------------------------------------------------------------- */

#define U_2581 "\xE2\x96\x81" /* in place of a space */

static void forget_texts(exporter *e) /* they lead into the model */
{
    tokenizer_copy_free(&e->tokenizer);
    free(e->notes);
    e->notes = NULL;
    e->n_notes = 0;
}

/* tokenizer.model: merges by score, has one unknown piece, and puts a space before all or no texts.
   Everything else goes into tokenizer.json. */
static bool fits_model(const monet_tokenizer_data *t)
{
    int32_t i, n_unknown = 0;

    for (i = 0; i < t->n_pieces; i++) n_unknown += t->pieces[i].type == MONET_PIECE_UNKNOWN;
    return t->n_merges == 0 && n_unknown == 1 && t->unk_id >= 0 &&
           t->pieces[t->unk_id].type == MONET_PIECE_UNKNOWN &&
           (t->prefix_space == MONET_PREFIX_NEVER ||
            (t->prefix_space == MONET_PREFIX_ALWAYS && t->strip_space));
}

/* A vocabulary without U+2581, like that of bytes alone: a space is the byte 0x20. SentencePiece
   would make the three bytes of U+2581 of it, and only tokenizer.json can say so. */
static bool is_spaceless(const monet_tokenizer_data *t)
{
    int32_t i;

    for (i = 0; i < t->n_pieces; i++)
        if (t->pieces[i].size == 3 && memcmp(t->pieces[i].bytes, U_2581, 3) == 0) return false;
    return fits_model(t) && t->prefix_space == MONET_PREFIX_NEVER && !t->strip_space;
}

static bool check_fits_json(const monet_tokenizer_data *t, tool_error *err)
{
    char quoted[TOOL_QUOTE];
    int32_t i;

    for (i = 0; i < t->n_pieces; i++) {
        const monet_piece *p = &t->pieces[i];
        const size_t size = (size_t)p->size;
        const char *what = NULL;
        if (p->type == MONET_PIECE_UNUSED) what = "is of the unused type";
        if ((p->type == MONET_PIECE_UNKNOWN) != (i == t->unk_id)) what = "is not the unknown one";
        if (p->type == MONET_PIECE_NORMAL && memchr(p->bytes, ' ', size)) what = "has a space";
        if (p->type == MONET_PIECE_NORMAL && t->n_merges == 0 && tool_utf8(p->bytes, size) < size)
            what = "is merged by score";
        if (what != NULL)
            return tool_fail(err, "the tokenizer fits neither tokenizer.model nor tokenizer.json: "
                             "piece %d \"%s\" %s", (int)i, tool_quote(quoted, p->bytes, size),
                             what);
    }
    return true;
}

static void put_varint(tool_buffer *out, uint64_t x)
{
    unsigned char c;

    do {
        c = (unsigned char)((x & 127) | (x > 127 ? 128 : 0));
        tool_put(out, &c, 1);
        x >>= 7;
    } while (x > 0);
}

static void put_number(tool_buffer *out, uint32_t field, int32_t value)
{
    put_varint(out, field << 3);
    put_varint(out, (uint64_t)(int64_t)value);
}

static void put_bytes(tool_buffer *out, uint32_t field, const void *bytes, size_t size)
{
    put_varint(out, field << 3 | 2);
    put_varint(out, size);
    tool_put(out, bytes, size);
}

/* An id of the trainer_spec, and its piece: SentencePiece looks for that. */
static void put_special(tool_buffer *out, const monet_tokenizer_data *t, uint32_t field, int32_t id)
{
    const int32_t type = id < 0 ? 0 : t->pieces[id].type;
    const bool fits = field == 40 || type == MONET_PIECE_CONTROL || type == MONET_PIECE_USER;

    put_number(out, field, fits ? id : -1);
    if (fits) put_bytes(out, field + 5, t->pieces[id].bytes, (size_t)t->pieces[id].size);
}

/* A protobuf message; the fields are those of sentencepiece_model.proto. */
static bool write_model(exporter *e, tool_error *err)
{
    const monet_tokenizer_data *t = &e->tokenizer.data;
    tool_buffer out = {NULL, 0, 0, false}, part = {NULL, 0, 0, false};
    unsigned char score[4];
    int32_t i;

    for (i = 0; i < t->n_pieces; i++) {
        const monet_piece *p = &t->pieces[i];
        part.size = 0;
        put_bytes(&part, 1, p->bytes, (size_t)p->size);
        put_varint(&part, 2 << 3 | 5);
        st__store(score, st__bits(p->score), 4);
        tool_put(&part, score, 4);
        if (p->type != MONET_PIECE_NORMAL) put_number(&part, 3, p->type);
        put_bytes(&out, 1, part.data, part.size);
    }
    part.size = 0;
    put_number(&part, 3, 2); /* model_type: BPE */
    put_number(&part, 4, t->n_pieces);
    put_number(&part, 35, 1); /* byte_fallback */
    put_special(&part, t, 40, t->unk_id);
    put_special(&part, t, 41, t->bos_id);
    put_special(&part, t, 42, t->n_eos > 0 ? t->eos_ids[0] : -1);
    put_number(&part, 43, -1); /* padding */
    put_bytes(&out, 2, part.data, part.size);
    part.size = 0;
    put_bytes(&part, 1, "identity", 8);
    put_number(&part, 3, t->strip_space); /* add_dummy_prefix */
    put_number(&part, 4, 0);              /* remove_extra_whitespaces */
    put_number(&part, 5, 1);              /* escape_whitespaces */
    put_bytes(&out, 3, part.data, part.size);
    out.failed = out.failed || part.failed;
    tool_buffer_free(&part);
    return write_text(e, "tokenizer.model", &out, err);
}

/* The piece in quotes, or null for none. */
static void put_piece(tool_buffer *out, const monet_tokenizer_data *t, int32_t id)
{
    if (id < 0) put_text(out, "null");
    else json_put_string(out, t->pieces[id].bytes, (size_t)t->pieces[id].size);
}

/* JSON text written with ' for ", ~ for U+2581, $ for the first piece of a text, # for its id. */
static void put_json(tool_buffer *out, const monet_tokenizer_data *t, const char *text)
{
    for (; *text != '\0'; text++)
        if (*text == '$') put_piece(out, t, t->bos_id);
        else if (*text == '#') tool_putf(out, "%d", (int)t->bos_id);
        else if (*text == '~') put_text(out, U_2581);
        else tool_put(out, *text == '\'' ? "\"" : text, 1);
}

/* Pieces that merging does not make: an array with ids, or an object by id. */
static void put_added(tool_buffer *out, const monet_tokenizer_data *t, bool array)
{
    const char *comma = "";
    int32_t i;

    put_text(out, array ? "[" : "{");
    for (i = 0; i < t->n_pieces; i++) {
        const int32_t type = t->pieces[i].type;
        if (type != MONET_PIECE_UNKNOWN && type != MONET_PIECE_CONTROL && type != MONET_PIECE_USER)
            continue;
        tool_putf(out, array ? "%s\n    {\"id\": %d, " : "%s\n    \"%d\": {", comma, (int)i);
        put_text(out, "\"content\": ");
        put_piece(out, t, i);
        tool_putf(out, ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
                  "\"normalized\": false, \"special\": %s}",
                  type == MONET_PIECE_USER ? "false" : "true");
        comma = ",";
    }
    put_text(out, array ? "\n  ]" : "\n  }");
}

/* "a b", which older readers know as well as newer ones. */
static void put_merges(tool_buffer *out, const monet_tokenizer_data *t)
{
    tool_buffer pair = {NULL, 0, 0, false};
    int32_t i;

    for (i = 0; i < t->n_merges; i++) {
        const monet_piece *a = &t->pieces[t->merges[i].left], *b = &t->pieces[t->merges[i].right];
        pair.size = 0;
        tool_put(&pair, a->bytes, (size_t)a->size);
        tool_put(&pair, " ", 1);
        tool_put(&pair, b->bytes, (size_t)b->size);
        put_text(out, i > 0 ? ",\n      " : "\n      ");
        if (!pair.failed) json_put_string(out, pair.data, pair.size);
    }
    out->failed = out->failed || pair.failed;
    tool_buffer_free(&pair);
}

static bool adds_bos(const exporter *e)
{
    return e->tokenizer.data.bos_id >= 0 && !note_is(e, "tokenizer.add_bos", "false");
}

/* What happens before and after the merges. */
static void put_steps(const exporter *e, tool_buffer *out)
{
    static const char *const before[] = { /* by prefix_space, and without spaces */
        "{'type': 'Replace', 'pattern': {'String': ' '}, 'content': '~'},\n"
        "  'pre_tokenizer': null",
        "{'type': 'Sequence', 'normalizers': [{'type': 'Prepend', 'prepend': '~'}, "
        "{'type': 'Replace', 'pattern': {'String': ' '}, 'content': '~'}]},\n"
        "  'pre_tokenizer': null",
        "null,\n  'pre_tokenizer': {'type': 'Metaspace', 'replacement': '~', "
        "'prepend_scheme': 'first', 'split': false}",
        "null,\n  'pre_tokenizer': null"
    };
    static const char template[] =
        "{'type': 'TemplateProcessing',\n    'single': [{'SpecialToken': {'id': $, 'type_id': 0}}, "
        "{'Sequence': {'id': 'A', 'type_id': 0}}],\n    'pair': [{'SpecialToken': {'id': $, "
        "'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}}, {'SpecialToken': {'id': $, "
        "'type_id': 1}}, {'Sequence': {'id': 'B', 'type_id': 1}}],\n    'special_tokens': {$: "
        "{'id': $, 'ids': [#], 'tokens': [$]}}}";
    const monet_tokenizer_data *t = &e->tokenizer.data;
    const bool spaceless = is_spaceless(t);

    put_json(out, t, ",\n  'normalizer': ");
    put_json(out, t, before[spaceless ? 3 : t->prefix_space]);
    put_json(out, t, ",\n  'post_processor': ");
    put_json(out, t, adds_bos(e) ? template : "null");
    put_json(out, t, ",\n  'decoder': {'type': 'Sequence', 'decoders': [");
    if (!spaceless)
        put_json(out, t, "{'type': 'Replace', 'pattern': {'String': '~'}, 'content': ' '}, ");
    put_json(out, t, "{'type': 'ByteFallback'}, {'type': 'Fuse'}");
    if (t->strip_space)
        put_json(out, t, ", {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}");
    put_text(out, "]}");
}

static bool write_json(exporter *e, tool_error *err)
{
    const monet_tokenizer_data *t = &e->tokenizer.data;
    tool_buffer out = {NULL, 0, 0, false};
    int32_t i;

    put_json(&out, t, "{\n  'version': '1.0',\n  'truncation': null,\n  'padding': null,\n"
             "  'added_tokens': ");
    put_added(&out, t, true);
    put_steps(e, &out);
    put_json(&out, t, ",\n  'model': {\n    'type': 'BPE',\n    'dropout': null,\n"
             "    'unk_token': ");
    put_piece(&out, t, t->unk_id);
    put_json(&out, t, ",\n    'continuing_subword_prefix': null,\n    'end_of_word_suffix': null,\n"
             "    'fuse_unk': true,\n    'byte_fallback': true,\n    'ignore_merges': false,\n"
             "    'vocab': {");
    for (i = 0; i < t->n_pieces; i++) {
        put_text(&out, i > 0 ? ",\n      " : "\n      ");
        put_piece(&out, t, i);
        tool_putf(&out, ": %d", (int)i);
    }
    put_json(&out, t, "\n    },\n    'merges': [");
    put_merges(&out, t);
    put_text(&out, "\n    ]\n  }\n}\n");
    return write_text(e, "tokenizer.json", &out, err);
}

/* tokenizer_config.json and special_tokens_map.json. Both kinds of tokenizer here give a text after
   a special token its own prefix if the first one has it: `legacy` is the name for that. */
static bool write_beside(exporter *e, bool json, tool_error *err)
{
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token"};
    const monet_tokenizer_data *t = &e->tokenizer.data;
    const int32_t ids[] = {t->bos_id, t->n_eos > 0 ? t->eos_ids[0] : -1, t->unk_id};
    const char *chat = note(e, "chat_template");
    tool_buffer out = {NULL, 0, 0, false}, map = {NULL, 0, 0, false}, piece = {NULL, 0, 0, false};
    int i;

    put_member(&out, "add_bos_token", adds_bos(e) ? "true" : "false");
    put_member(&out, "add_eos_token", "false");
    if (!json && t->prefix_space == MONET_PREFIX_NEVER)
        put_member(&out, "add_prefix_space", "false");
    put_text(&out, ",\n  \"added_tokens_decoder\": ");
    put_added(&out, t, false);
    if (chat != NULL && tool_is_utf8(chat, strlen(chat))) {
        put_text(&out, ",\n  \"chat_template\": ");
        json_put_string(&out, chat, strlen(chat));
    } else if (chat != NULL) {
        complain(e, "the chat template is left out: it is not UTF-8");
    }
    for (i = 0; i < 3; i++) {
        piece.size = 0;
        put_piece(&piece, t, ids[i]);
        if (piece.failed) break;
        put_member(&out, keys[i], piece.data);
        if (ids[i] >= 0) put_member(&map, keys[i], piece.data);
    }
    put_member(&out, "clean_up_tokenization_spaces", "false");
    put_member(&out, "legacy", t->prefix_space == MONET_PREFIX_FIRST ? "false" : "true");
    put_member(&out, "tokenizer_class", json ? "\"PreTrainedTokenizerFast\"" :
               "\"LlamaTokenizer\"");
    put_text(&out, "\n}\n");
    put_text(&map, map.size > 0 ? "\n}\n" : "{}\n");
    out.failed = out.failed || piece.failed;
    tool_buffer_free(&piece);
    if (write_text(e, "tokenizer_config.json", &out, err))
        return write_text(e, "special_tokens_map.json", &map, err);
    tool_buffer_free(&map);
    return false;
}

/* A spaceless one gets both: tokenizer.model is what convert reads. */
static bool write_tokenizer(exporter *e, tool_error *err)
{
    const monet_tokenizer_data *t = &e->tokenizer.data;
    const bool model = fits_model(t);
    const bool json = !model || (is_spaceless(t) && check_fits_json(t, NULL));

    if (t->pieces == NULL) return true;
    return (!json || (check_fits_json(t, err) && write_json(e, err))) &&
           (!model || write_model(e, err)) && write_beside(e, json, err);
}

/* ---- main ------------------------------------------------------------------------------------ */

static const char export_help[] =
    "export MODEL.monet FOLDER [options]\n"
    "    writes a model folder of Hugging Face: config.json, generation_config.json,\n"
    "    model.safetensors, tokenizer.model or tokenizer.json and what goes with it.\n"
    "    Every tensor gets the precision that it had before it was converted; what q8 and q4\n"
    "    took away does not come back.\n"
    "\n"
    "    --dtype f32|f16|bf16  this precision for all tensors\n"
    "    --shard-size SIZE     files of at most so many bytes: 5GB (default), 500MB, 1000000\n"
    "    --force               FOLDER may have files in it: those of a model are replaced\n"
    "    --help                this text\n"
    "\n"
    "To load the folder with the published Python code, put its modeling_monet.py beside the\n"
    "files: it is not part of a .monet file.\n"
    "The files appear when all of them are complete, or not at all.\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage.\n";

static bool write_folder(exporter *e, tool_error *err)
{
    const monet_tokenizer *tokenizer;

    if (!run_load_any(e->path, &e->model, err) || !index_notes(e, err)) return false;
    tokenizer = monet_model_tokenizer(e->model);
    if (tokenizer != NULL && !tokenizer_copy_model(&e->tokenizer, tokenizer, err)) return false;
    if (monet_model_arch(e->model) != NULL) {
        e->arch = *monet_model_arch(e->model);
        if (!plan(e, err)) return false;
    }
    if (!open_folder(e, err) || (e->n_items > 0 && !write_configs(e, err)) ||
        !write_tokenizer(e, err))
        return false;
    forget_texts(e);
    return (e->n_items == 0 || write_weights(e, err)) && publish(e, err);
}

static bool run_export(exporter *e, tool_error *err)
{
    double start = tool_seconds(), seconds;
    char size[TOOL_HUMAN], speed[TOOL_HUMAN];
    bool ok = write_folder(e, err);

    close_folder(e, ok);
    seconds = tool_seconds() - start;
    if (ok)
        printf("written       %s: %d file%s, %s of tensors in %.1f s, %s/s\n", e->folder,
               e->n_files, e->n_files == 1 ? "" : "s", tool_human(size, e->total), seconds,
               tool_human(speed, (uint64_t)((double)e->total / (seconds + 1e-3))));
    forget_texts(e);
    monet_model_free(e->model);
    free(e->items);
    return ok;
}

static bool misused(const char *what, const char *word)
{
    fprintf(stderr, "export: %s%s%s\nexport --help lists the options.\n", what,
            word == NULL ? "" : ": ", word == NULL ? "" : word);
    return false;
}

/* "5GB", "500MB", "64kB" or bytes. */
static bool read_size(const char *word, uint64_t *size)
{
    static const char *const units[] = {"", "kB", "MB", "GB"};
    const char *p = word == NULL ? "" : word;
    uint64_t factor = 1;
    size_t i = 0;

    for (*size = 0; *p >= '0' && *p <= '9'; p++)
        if (!tool_mul(*size, 10, size) || !tool_add(*size, (uint64_t)(*p - '0'), size)) break;
    for (; i < 4 && strcmp(p, units[i]) != 0; i++) factor *= 1000;
    if (i < 4 && tool_mul(*size, factor, size) && *size > 0) return true;
    return misused("--shard-size needs a size like 5GB or 500MB, not", word == NULL ? "" : word);
}

static bool read_dtype(const char *word, int *dtype)
{
    for (*dtype = 0; word != NULL && *dtype < 3; *dtype += 1)
        if (strcmp(word, monet_dtype_name((monet_dtype)*dtype)) == 0) return true;
    return misused("--dtype needs f32, f16 or bf16, not", word == NULL ? "" : word);
}

static bool read_arguments(exporter *e, int argc, char **argv)
{
    bool options = true;
    int i;

    for (i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (options && strcmp(word, "--") == 0) {
            options = false;
        } else if (options && strcmp(word, "--help") == 0) {
            e->help = true;
        } else if (options && strcmp(word, "--force") == 0) {
            e->force = true;
        } else if (options && strcmp(word, "--dtype") == 0) {
            if (!read_dtype(++i < argc ? argv[i] : NULL, &e->dtype)) return false;
        } else if (options && strcmp(word, "--shard-size") == 0) {
            if (!read_size(++i < argc ? argv[i] : NULL, &e->shard_size)) return false;
        } else if (options && word[0] == '-') {
            return misused("unknown option", word);
        } else if (e->folder != NULL) {
            return misused("one argument too many", word);
        } else if (e->path == NULL) {
            e->path = word;
        } else {
            e->folder = word;
        }
    }
    return e->help || e->folder != NULL || misused("needs a .monet file and a folder", NULL);
}

int main(int argc, char **argv)
{
    static exporter e;
    tool_error err = {""};
    int status;

    memset(&e, 0, sizeof e);
    e.dtype = -1;
    e.shard_size = UINT64_C(5000000000);
    if (!read_arguments(&e, argc, argv)) return 2;
    if (e.help) {
        fputs(export_help, stdout);
        return 0;
    }
    catch_signals();
    status = !run_export(&e, &err);
    if (status == 1) fprintf(stderr, "export: %s\n", err.message);
    if (fflush(stdout) != 0) status = 1;
    return status;
}
