/* safetensors.h: reads and writes .safetensors files for the tools of monet.h.

   st_open reads one file, st_open_model a model folder (model.safetensors, or the shards named by
   model.safetensors.index.json); both give one table of tensors. Data is read on demand with pread,
   so that memory stays small however large the model is. Any bytes give an error or a table whose
   every tensor lies inside its file: the header has at most 100,000,000 bytes, the tensors cover
   the data exactly, without gap, overlap or bytes left over, and no name occurs twice.

       st_file model;
       if (!st_open_model(&model, "monet-vd-1.4B", &err)) ...
       const st_tensor *t = st_find(&model, "model.norm.weight");
       if (t != NULL && !st_read_f32(&model, t, 0, t->count, floats, &err)) ...
       st_close(&model);                                                                        */
#ifndef TOOL_SAFETENSORS_H
#define TOOL_SAFETENSORS_H

#include "json.h"

#define ST_MAX_HEADER UINT64_C(100000000)
#define ST_MAX_INDEX  UINT64_C(100000000)
#define ST_MAX_TENSORS (UINT32_C(1) << 20)
#define ST_MAX_PARTS 500 /* each keeps a file descriptor */
#define ST_MAX_DIMS 8
#define ST_MAX_NAME 1024

/* name, bits of an element */
#define ST_DTYPES(X) \
    X(BOOL, 8) X(U8, 8) X(I8, 8) X(U16, 16) X(I16, 16) X(U32, 32) X(I32, 32) X(U64, 64) \
    X(I64, 64) X(F16, 16) X(BF16, 16) X(F32, 32) X(F64, 64) X(C64, 64) X(F8_E4M3, 8) \
    X(F8_E5M2, 8) X(F8_E8M0, 8) X(F8_E4M3FNUZ, 8) X(F8_E5M2FNUZ, 8) X(F6_E2M3, 6) \
    X(F6_E3M2, 6) X(F4, 4)

typedef enum st_dtype {
#define ST__ENUM(name, bits) ST_##name,
    ST_DTYPES(ST__ENUM)
#undef ST__ENUM
    ST_N_DTYPES
} st_dtype;

typedef struct st_tensor {
    const char *name;                /* ends with a NUL and holds no other */
    st_dtype    dtype;
    int32_t     n_dims;              /* 0..8; 0 is one number */
    int64_t     shape[ST_MAX_DIMS];  /* each >= 0; 1 beyond n_dims */
    uint64_t    count;               /* elements */
    uint64_t    size;                /* bytes */
    uint64_t    offset;              /* from the start of its file */
    uint32_t    name_size;
    uint32_t    part;                /* which file: an index into parts */
} st_tensor;

typedef struct st_part {
    int      fd;
    char    *label;   /* path, or the shard's name in the folder */
    char    *header;  /* tensor names point into it */
    uint64_t size;    /* of the file */
} st_part;

typedef struct st_note { /* an entry of __metadata__ */
    const char *key, *value;
    size_t      key_size, value_size;
} st_note;

typedef struct st_file {
    st_tensor *tensors; /* in the order of the files, and of the data in each */
    uint32_t   n_tensors;
    st_note   *notes;   /* of the first file */
    uint32_t   n_notes;
    st_part   *parts;
    uint32_t   n_parts;
    tool_name *names;   /* sorted, for st_find */
    size_t     capacity;
} st_file;

/* ---- safetensors: dtypes and shapes ---------------------------------------------------------- */

static TOOL_UNUSED const char *st_dtype_name(st_dtype dtype)
{
    static const char *const names[] = {
#define ST__NAME(name, bits) #name,
        ST_DTYPES(ST__NAME)
#undef ST__NAME
    };
    return (unsigned)dtype < ST_N_DTYPES ? names[dtype] : "?";
}

static TOOL_UNUSED uint32_t st_dtype_bits(st_dtype dtype)
{
    static const uint8_t bits_of[] = {
#define ST__BITS(name, bits) bits,
        ST_DTYPES(ST__BITS)
#undef ST__BITS
    };
    return (unsigned)dtype < ST_N_DTYPES ? bits_of[dtype] : 0;
}

/* ST_N_DTYPES if there is none of that name. */
static TOOL_UNUSED st_dtype st_dtype_of(const char *name, size_t size)
{
    int i;

    for (i = 0; i < ST_N_DTYPES; i++) {
        const char *known = st_dtype_name((st_dtype)i);
        if (strlen(known) == size && memcmp(known, name, size) == 0) break;
    }
    return (st_dtype)i;
}

/* "(2048,768)". Returns out. */
#define ST_SHAPE 192
static TOOL_UNUSED const char *st_shape(char out[ST_SHAPE], int32_t n_dims, const int64_t *shape)
{
    size_t used = 1;
    int32_t i;

    out[0] = '(';
    for (i = 0; i < n_dims && i < ST_MAX_DIMS; i++)
        used += (size_t)snprintf(out + used, ST_SHAPE - used, "%s%lld", i > 0 ? "," : "",
                                 (long long)shape[i]);
    snprintf(out + used, ST_SHAPE - used, ")");
    return out;
}

/* Elements and bytes of a tensor, or false: negative, more than 64 bits, or no whole byte. */
static TOOL_UNUSED bool st__measure(st_dtype dtype, int32_t n_dims, const int64_t *shape,
                                    uint64_t *count, uint64_t *size)
{
    uint64_t bits;
    int32_t i;

    *count = 1;
    for (i = 0; i < n_dims; i++)
        if (shape[i] < 0 || !tool_mul(*count, (uint64_t)shape[i], count)) return false;
    if (!tool_mul(*count, st_dtype_bits(dtype), &bits) || bits % 8 != 0) return false;
    *size = bits / 8;
    return true;
}

/* ---- safetensors: header --------------------------------------------------------------------- */

typedef struct st__entry {
    uint64_t begin, end; /* in the data */
    uint32_t key, value; /* in the document */
} st__entry;

static TOOL_UNUSED bool st__fail(const json_doc *doc, uint32_t key, const char *what,
                                 tool_error *err)
{
    char quoted[TOOL_QUOTE];
    size_t size;
    const char *name = json_string(doc, key, &size);

    return tool_fail(err, "tensor \"%s\": %s", tool_quote(quoted, name, size), what);
}

static TOOL_UNUSED bool st__offsets(const json_doc *doc, st__entry *entry, tool_error *err)
{
    json_each it = json_begin(doc, json_find(doc, entry->value, "data_offsets"));
    int64_t pair[2] = {0, 0};
    int n = 0;

    while (n < 3 && !it.object && json_step(doc, &it)) {
        if (n < 2 && (!json_int(doc, it.value, &pair[n]) || pair[n] < 0))
            return st__fail(doc, entry->key, "an offset is not an integer from 0 to 2^63-1", err);
        n++;
    }
    if (n != 2) return st__fail(doc, entry->key, "needs data_offsets [begin, end]", err);
    entry->begin = (uint64_t)pair[0];
    entry->end = (uint64_t)pair[1];
    if (entry->end >= entry->begin) return true;
    return st__fail(doc, entry->key, "its data ends before it begins", err);
}

static TOOL_UNUSED bool st__notes(st_file *file, const json_doc *doc, uint32_t map,
                                  tool_error *err)
{
    json_each it = json_begin(doc, map);
    bool keep = file->notes == NULL;
    char shown[TOOL_QUOTE];

    if (json_typeof(doc, map) != JSON_OBJECT)
        return tool_fail(err, "__metadata__ is %s, not an object", json_show(doc, map, shown));
    if (keep) file->notes = tool_alloc(json_count(doc, map), sizeof *file->notes, err);
    if (file->notes == NULL) return false;
    while (json_step(doc, &it)) {
        st_note note;
        note.key = json_string(doc, it.key, &note.key_size);
        note.value = json_string(doc, it.value, &note.value_size);
        if (note.value == NULL)
            return tool_fail(err, "__metadata__: a value is %s, not a string",
                             json_show(doc, it.value, shown));
        if (keep) file->notes[file->n_notes++] = note;
    }
    return true;
}

static TOOL_UNUSED int st__by_offset(const void *a, const void *b)
{
    const st__entry *x = a, *y = b;

    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1; /* empty ones first */
    return x->key < y->key ? -1 : x->key > y->key;
}

/* The tensors of a header in the order of their data. */
static TOOL_UNUSED st__entry *st__entries(st_file *file, const json_doc *doc, uint32_t *n,
                                          tool_error *err)
{
    uint32_t members = json_count(doc, 0);
    st__entry *entries = tool_alloc(members, sizeof *entries, err);
    json_each it = json_begin(doc, 0);
    bool ok = entries != NULL;

    *n = 0;
    while (ok && json_step(doc, &it)) {
        st__entry *entry = &entries[*n];
        if (json_equals(doc, it.key, "__metadata__")) {
            ok = st__notes(file, doc, it.value, err);
            continue;
        }
        entry->key = it.key;
        entry->value = it.value;
        ok = st__offsets(doc, entry, err);
        *n += 1;
    }
    if (ok) {
        tool_sort(entries, *n, sizeof *entries, st__by_offset);
        return entries;
    }
    free(entries);
    return NULL;
}

static TOOL_UNUSED bool st__dims(st_tensor *tensor, const json_doc *doc, const st__entry *entry,
                                 uint32_t value, tool_error *err)
{
    json_each it = json_begin(doc, value);
    int i;

    for (i = 0; i < ST_MAX_DIMS; i++) tensor->shape[i] = 1;
    if (json_typeof(doc, value) != JSON_ARRAY)
        return st__fail(doc, entry->key, "needs a shape", err);
    while (json_step(doc, &it)) {
        if (tensor->n_dims >= ST_MAX_DIMS)
            return st__fail(doc, entry->key, "has more than 8 dimensions", err);
        if (!json_int(doc, it.value, &tensor->shape[tensor->n_dims]) ||
            tensor->shape[tensor->n_dims] < 0)
            return st__fail(doc, entry->key, "a dimension is not an integer from 0 to 2^63-1",
                            err);
        tensor->n_dims++;
    }
    return true;
}

static TOOL_UNUSED bool st__name_ok(const char *name, size_t size, tool_error *err)
{
    char quoted[TOOL_QUOTE];

    if (size == 0) return tool_fail(err, "a tensor has an empty name");
    if (size <= ST_MAX_NAME && memchr(name, '\0', size) == NULL) return true;
    return tool_fail(err, "tensor name \"%s\" %s", tool_quote(quoted, name, size),
                     size > ST_MAX_NAME ? "has more than 1024 bytes" : "contains byte 0x00");
}

/* Everything but the offset. */
static TOOL_UNUSED bool st__describe(st_tensor *tensor, const json_doc *doc,
                                     const st__entry *entry, tool_error *err)
{
    json_each it = json_begin(doc, entry->value);
    uint32_t dtype = json_find(doc, entry->value, "dtype");
    size_t size;
    const char *name = json_string(doc, dtype, &size);
    char shown[TOOL_QUOTE], what[256], shape[ST_SHAPE];

    memset(tensor, 0, sizeof *tensor);
    while (json_step(doc, &it))
        if (!json_equals(doc, it.key, "dtype") && !json_equals(doc, it.key, "shape") &&
            !json_equals(doc, it.key, "data_offsets")) {
            snprintf(what, sizeof what, "unknown key %s", json_show(doc, it.key, shown));
            return st__fail(doc, entry->key, what, err);
        }
    tensor->dtype = name == NULL ? ST_N_DTYPES : st_dtype_of(name, size);
    if (tensor->dtype == ST_N_DTYPES) {
        snprintf(what, sizeof what, "unknown dtype %s", json_show(doc, dtype, shown));
        return st__fail(doc, entry->key, what, err);
    }
    tensor->name = json_string(doc, entry->key, &size);
    tensor->name_size = (uint32_t)size;
    if (!st__name_ok(tensor->name, size, err)) return false;
    if (!st__dims(tensor, doc, entry, json_find(doc, entry->value, "shape"), err)) return false;
    if (st__measure(tensor->dtype, tensor->n_dims, tensor->shape, &tensor->count, &tensor->size) &&
        tensor->size == entry->end - entry->begin)
        return true;
    snprintf(what, sizeof what, "%s of shape %.120s does not fill its %llu bytes",
             st_dtype_name(tensor->dtype), st_shape(shape, tensor->n_dims, tensor->shape),
             (unsigned long long)(entry->end - entry->begin));
    return st__fail(doc, entry->key, what, err);
}

/* Adds the tensors of one header to the table. data: size of the file after the header. */
static TOOL_UNUSED bool st__tensors(st_file *file, const json_doc *doc, const st__entry *entries,
                                    uint32_t n, uint64_t data, tool_error *err)
{
    const st_part *part = &file->parts[file->n_parts - 1];
    uint64_t end = 0;
    uint32_t i;
    char what[160];

    if (n > ST_MAX_TENSORS - file->n_tensors)
        return tool_fail(err, "more than %lu tensors", (unsigned long)ST_MAX_TENSORS);
    if (!tool_grow(&file->tensors, &file->capacity, (uint64_t)file->n_tensors + n,
                   sizeof *file->tensors, err))
        return false;
    for (i = 0; i < n; i++) {
        st_tensor *tensor = &file->tensors[file->n_tensors];
        if (!st__describe(tensor, doc, &entries[i], err)) return false;
        if (entries[i].begin != end) {
            snprintf(what, sizeof what, "its data begins at %llu, the data before it ends at %llu",
                     (unsigned long long)entries[i].begin, (unsigned long long)end);
            return st__fail(doc, entries[i].key, what, err);
        }
        end = entries[i].end;
        tensor->part = file->n_parts - 1;
        tensor->offset = part->size - data + entries[i].begin;
        file->n_tensors++;
    }
    if (end == data) return true;
    return tool_fail(err, "the header describes %llu bytes of data, the file has %llu",
                     (unsigned long long)end, (unsigned long long)data);
}

static TOOL_UNUSED bool st__header(st_file *file, size_t size, tool_error *err)
{
    st_part *part = &file->parts[file->n_parts - 1];
    st__entry *entries = NULL;
    json_doc doc;
    uint32_t n;
    bool ok;

    if (part->header[0] != '{') return tool_fail(err, "the header does not begin with {");
    if (!json_parse(&doc, part->header, size, err)) return tool_prefix(err, "header");
    entries = st__entries(file, &doc, &n, err);
    ok = entries != NULL && st__tensors(file, &doc, entries, n, part->size - 8 - size, err);
    free(entries);
    json_free(&doc);
    return ok;
}

/* Reads the header of the newest part, whose file is open. */
static TOOL_UNUSED bool st__part(st_file *file, tool_error *err)
{
    st_part *part = &file->parts[file->n_parts - 1];
    unsigned char bytes[8];
    uint64_t size = 0;
    int i;

    if (part->size < 8)
        return tool_fail(err, "has %llu bytes, too few for a safetensors file",
                         (unsigned long long)part->size);
    if (!tool_pread(part->fd, bytes, 8, 0, err)) return false;
    for (i = 7; i >= 0; i--) size = size << 8 | bytes[i];
    if (size > ST_MAX_HEADER)
        return tool_fail(err, "its header would have %llu bytes, at most %llu are read",
                         (unsigned long long)size, (unsigned long long)ST_MAX_HEADER);
    if (size > part->size - 8)
        return tool_fail(err, "its header would have %llu bytes, but the file has %llu",
                         (unsigned long long)size, (unsigned long long)part->size);
    part->header = tool_alloc(size + 1, 1, err);
    return part->header != NULL && tool_pread(part->fd, part->header, size, 8, err) &&
           st__header(file, (size_t)size, err);
}

/* ---- safetensors: files and folders ---------------------------------------------------------- */

static TOOL_UNUSED void st_close(st_file *file)
{
    uint32_t i;

    for (i = 0; i < file->n_parts; i++) {
        if (file->parts[i].fd >= 0) close(file->parts[i].fd);
        free(file->parts[i].label);
        free(file->parts[i].header);
    }
    free(file->parts);
    free(file->tensors);
    free(file->notes);
    free(file->names);
    memset(file, 0, sizeof *file);
}

static TOOL_UNUSED bool st__names(st_file *file, tool_error *err)
{
    const tool_name *twin;
    char quoted[TOOL_QUOTE];
    uint32_t i;

    file->names = tool_alloc(file->n_tensors, sizeof *file->names, err);
    if (file->names == NULL) return false;
    for (i = 0; i < file->n_tensors; i++)
        file->names[i] = tool_name_of(file->tensors[i].name, file->tensors[i].name_size, i);
    twin = tool_names_sort(file->names, file->n_tensors);
    if (twin == NULL) return true;
    return tool_fail(err, "tensor \"%s\" is in \"%.100s\" and in \"%.100s\"",
                     tool_quote(quoted, twin->bytes, twin->size),
                     file->parts[file->tensors[twin[-1].value].part].label,
                     file->parts[file->tensors[twin->value].part].label);
}

/* Opens path as the next part of the file. A shard may not be a hard link either: its other name
   may belong to somebody else's model. */
static TOOL_UNUSED bool st__add_part(st_file *file, const char *path, const char *label,
                                     bool shard, tool_error *err)
{
    st_part *part = &file->parts[file->n_parts];
    struct stat status;

    part->label = tool_copy(label, strlen(label), err);
    if (part->label == NULL) return false;
    part->fd = tool__open(path, &status, err);
    file->n_parts++;
    if (part->fd < 0) return tool_prefix(err, label);
    part->size = (uint64_t)status.st_size;
    if (shard && status.st_nlink > 1) {
        tool_fail(err, "is a hard link (the file has %lu names); put a copy in its place",
                  (unsigned long)status.st_nlink);
        return tool_prefix(err, label);
    }
    return st__part(file, err) || tool_prefix(err, label);
}

/* On failure the file is empty and needs no st_close. */
static TOOL_UNUSED bool st_open(st_file *file, const char *path, tool_error *err)
{
    memset(file, 0, sizeof *file);
    file->parts = tool_alloc(1, sizeof *file->parts, err);
    if (file->parts != NULL && st__add_part(file, path, path, false, err) &&
        (st__names(file, err) || tool_prefix(err, path)))
        return true;
    st_close(file);
    return false;
}

typedef struct st__index { /* model.safetensors.index.json */
    json_doc   doc;
    tool_name *tensors;   /* sorted; value = number of the shard */
    uint32_t   n_tensors;
    tool_name *shards;    /* sorted by name; value = their number */
    uint32_t   n_shards;
} st__index;

static TOOL_UNUSED void st__index_free(st__index *index)
{
    free(index->tensors);
    free(index->shards);
    json_free(&index->doc);
}

static TOOL_UNUSED int st__by_text(const void *a, const void *b)
{
    return strcmp(((const tool_name *)a)->bytes, ((const tool_name *)b)->bytes);
}

static TOOL_UNUSED bool st__shard_name(const json_doc *doc, const json_each *it, tool_error *err)
{
    size_t size;
    const char *name = json_string(doc, it->value, &size);
    static const char ending[] = ".safetensors";
    char shown[TOOL_QUOTE];

    if (name == NULL)
        return st__fail(doc, it->key, "its shard in weight_map is not a string", err);
    if (!tool_plain_name(name, size, err)) return tool_prefix(err, "weight_map");
    if (size < sizeof ending || memcmp(name + size - sizeof ending + 1, ending, sizeof ending) != 0)
        return tool_fail(err, "weight_map: %s does not end with .safetensors",
                         json_show(doc, it->value, shown));
    return true;
}

/* The different values of weight_map, numbered in the order of their names. */
static TOOL_UNUSED bool st__shards(st__index *index, uint32_t map, tool_error *err)
{
    json_each it = json_begin(&index->doc, map);
    uint32_t n = 0, i;

    index->shards = tool_alloc(index->n_tensors, sizeof *index->shards, err);
    if (index->shards == NULL) return false;
    while (json_step(&index->doc, &it)) {
        size_t size;
        const char *name = json_string(&index->doc, it.value, &size);
        if (!st__shard_name(&index->doc, &it, err)) return false;
        index->shards[n++] = tool_name_of(name, size, 0);
    }
    tool_sort(index->shards, n, sizeof *index->shards, tool__name_compare);
    for (i = 0; i < n; i++)
        if (i == 0 || tool__name_order(&index->shards[i], &index->shards[index->n_shards - 1]) != 0)
            index->shards[index->n_shards++] = index->shards[i];
    if (index->n_shards > ST_MAX_PARTS)
        return tool_fail(err, "weight_map names %lu files, at most %d are read",
                         (unsigned long)index->n_shards, ST_MAX_PARTS);
    tool_sort(index->shards, index->n_shards, sizeof *index->shards, st__by_text);
    for (i = 0; i < index->n_shards; i++) index->shards[i].value = i;
    return true;
}

static TOOL_UNUSED bool st__index_read(st__index *index, const char *folder, const char *name,
                                       tool_error *err)
{
    json_each it;
    uint32_t map, i, n = 0;
    tool_name *by_name; /* the shards again, sorted for the search */

    if (!json_load_inside(&index->doc, folder, name, ST_MAX_INDEX, err)) return false;
    map = json_find(&index->doc, 0, "weight_map");
    index->n_tensors = json_count(&index->doc, map);
    if (json_typeof(&index->doc, map) != JSON_OBJECT || index->n_tensors == 0)
        return tool_fail(err, "%s: needs a weight_map from tensors to files", name);
    if (index->n_tensors > ST_MAX_TENSORS)
        return tool_fail(err, "%s: more than %lu tensors", name, (unsigned long)ST_MAX_TENSORS);
    if (!st__shards(index, map, err)) return tool_prefix(err, name);
    index->tensors = tool_alloc(index->n_tensors, sizeof *index->tensors, err);
    by_name = tool_alloc(index->n_shards, sizeof *by_name, err);
    if (by_name != NULL) {
        memcpy(by_name, index->shards, index->n_shards * sizeof *by_name);
        tool_names_sort(by_name, index->n_shards);
    }
    it = json_begin(&index->doc, map);
    for (i = 0; by_name != NULL && index->tensors != NULL && json_step(&index->doc, &it); i++) {
        size_t size, shard_size;
        const char *key = json_string(&index->doc, it.key, &size);
        const char *shard = json_string(&index->doc, it.value, &shard_size);
        const tool_name *found = tool_names_find(by_name, index->n_shards, shard, shard_size);
        index->tensors[n++] = tool_name_of(key, size, found->value);
    }
    free(by_name);
    if (n == index->n_tensors) tool_names_sort(index->tensors, n);
    return n == index->n_tensors;
}

/* The table and the index have to say the same. */
static TOOL_UNUSED bool st__index_check(const st__index *index, const st_file *file,
                                        const char *name, tool_error *err)
{
    char quoted[TOOL_QUOTE];
    const tool_name *found;
    uint32_t i;

    for (i = 0; i < file->n_tensors; i++) {
        const st_tensor *t = &file->tensors[i];
        found = tool_names_find(index->tensors, index->n_tensors, t->name, t->name_size);
        if (found != NULL && found->value == t->part) continue;
        return tool_fail(err, "tensor \"%s\" is in \"%.100s\", but %s %s%.100s%s",
                         tool_quote(quoted, t->name, t->name_size), file->parts[t->part].label,
                         name, found == NULL ? "does not list it" : "says \"",
                         found == NULL ? "" : index->shards[found->value].bytes,
                         found == NULL ? "" : "\"");
    }
    for (i = 0; i < index->n_tensors; i++) {
        const tool_name *wanted = &index->tensors[i];
        if (tool_names_find(file->names, file->n_tensors, wanted->bytes, wanted->size) == NULL)
            return tool_fail(err, "tensor \"%s\" is not in \"%.100s\", where %s says it is",
                             tool_quote(quoted, wanted->bytes, wanted->size),
                             index->shards[wanted->value].bytes, name);
    }
    return true;
}

static TOOL_UNUSED bool st__open_shards(st_file *file, const char *folder, tool_error *err)
{
    static const char name[] = "model.safetensors.index.json";
    st__index index;
    uint32_t i;
    bool ok;

    memset(&index, 0, sizeof index);
    ok = st__index_read(&index, folder, name, err);
    if (ok) file->parts = tool_alloc(index.n_shards, sizeof *file->parts, err);
    ok = ok && file->parts != NULL;
    for (i = 0; ok && i < index.n_shards; i++) {
        char *path = tool_inside(folder, index.shards[i].bytes, err);
        ok = path != NULL && st__add_part(file, path, index.shards[i].bytes, true, err);
        free(path);
    }
    ok = ok && st__names(file, err) && st__index_check(&index, file, name, err);
    st__index_free(&index);
    return ok;
}

static TOOL_UNUSED bool st__open_folder(st_file *file, const char *folder, tool_error *err)
{
    static const char whole[] = "model.safetensors";
    char *path;
    bool ok;

    if (tool_has(folder, whole)) {
        path = tool_inside(folder, whole, err);
        if (path == NULL) return false;
        file->parts = tool_alloc(1, sizeof *file->parts, err);
        ok = file->parts != NULL && st__add_part(file, path, whole, false, err) &&
             (st__names(file, err) || tool_prefix(err, whole));
        free(path);
        return ok;
    }
    if (tool_has(folder, "model.safetensors.index.json"))
        return st__open_shards(file, folder, err);
    if (tool_has(folder, "pytorch_model.bin") || tool_has(folder, "pytorch_model.bin.index.json"))
        return tool_fail(err, "only pytorch_model.bin, which is a program, not data. Run this "
            "in the folder: python3 -c \"import glob,torch,safetensors.torch as s;"
            "s.save_file({k:v.clone().contiguous() for f in glob.glob('pytorch_model*.bin') "
            "for k,v in torch.load(f,map_location='cpu',weights_only=True).items()},"
            "'model.safetensors',{'format':'pt'})\"");
    return tool_fail(err, "no model.safetensors and no model.safetensors.index.json");
}

/* A model folder, or one .safetensors file. On failure the file is empty and needs no st_close. */
static TOOL_UNUSED bool st_open_model(st_file *file, const char *path, tool_error *err)
{
    struct stat status;

    memset(file, 0, sizeof *file);
    if (stat(path, &status) != 0) return tool_fail(err, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(status.st_mode)) return st_open(file, path, err);
    if (st__open_folder(file, path, err)) return true;
    st_close(file);
    return tool_prefix(err, path);
}

/* ---- safetensors: tensors -------------------------------------------------------------------- */

/* NULL if there is none. */
static TOOL_UNUSED const st_tensor *st_find(const st_file *file, const char *name)
{
    const tool_name *found = tool_names_find(file->names, file->n_tensors, name, strlen(name));

    return found == NULL ? NULL : &file->tensors[found->value];
}

/* The tensor of that name if it has that shape, else NULL and a message with both. */
static TOOL_UNUSED const st_tensor *st_expect(const st_file *file, const char *name,
                                              int32_t n_dims, const int64_t *shape,
                                              tool_error *err)
{
    const st_tensor *tensor = st_find(file, name);
    char a[ST_SHAPE], b[ST_SHAPE];

    if (tensor == NULL) {
        tool_fail(err, "tensor \"%.120s\" is missing; its shape would be %.90s", name,
                  st_shape(a, n_dims, shape));
        return NULL;
    }
    if (tensor->n_dims == n_dims &&
        (n_dims == 0 || memcmp(tensor->shape, shape, (size_t)n_dims * sizeof *shape) == 0))
        return tensor;
    tool_fail(err, "tensor \"%.120s\": the file has %.90s, needs %.90s", name,
              st_shape(a, tensor->n_dims, tensor->shape), st_shape(b, n_dims, shape));
    return NULL;
}

/* The value of a key of __metadata__, or NULL. */
static TOOL_UNUSED const char *st_note_of(const st_file *file, const char *key)
{
    uint32_t i;

    for (i = 0; i < file->n_notes; i++)
        if (file->notes[i].key_size == strlen(key) && strcmp(file->notes[i].key, key) == 0)
            return file->notes[i].value;
    return NULL;
}

/* Raw little-endian bytes of a tensor. */
static TOOL_UNUSED bool st_read(const st_file *file, const st_tensor *tensor, uint64_t offset,
                                uint64_t size, void *out, tool_error *err)
{
    const st_part *part = &file->parts[tensor->part];
    char quoted[TOOL_QUOTE];

    if (offset > tensor->size || size > tensor->size - offset)
        return tool_fail(err, "tensor \"%s\": bytes %llu..%llu asked for, it has %llu",
                         tool_quote(quoted, tensor->name, tensor->name_size),
                         (unsigned long long)offset, (unsigned long long)(offset + size),
                         (unsigned long long)tensor->size);
    if (tool_pread(part->fd, out, size, tensor->offset + offset, err)) return true;
    return tool_prefix(err, part->label);
}

/* ---- safetensors: numbers -------------------------------------------------------------------- */

static TOOL_UNUSED uint64_t st__load(const unsigned char *p, uint32_t bytes)
{
    uint64_t x = 0;

    while (bytes-- > 0) x = x << 8 | p[bytes];
    return x;
}

static TOOL_UNUSED uint16_t st__load16(const unsigned char *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static TOOL_UNUSED uint32_t st__load32(const unsigned char *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static TOOL_UNUSED void st__store(unsigned char *p, uint64_t x, uint32_t bytes)
{
    uint32_t i;

    for (i = 0; i < bytes; i++, x >>= 8) p[i] = (unsigned char)(x & 255);
}

static TOOL_UNUSED uint32_t st__bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static TOOL_UNUSED float st__float(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

static TOOL_UNUSED float st_f32_of_bf16(uint16_t x)
{
    return st__float((uint32_t)x << 16);
}

static TOOL_UNUSED float st_f32_of_f16(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000) << 16, exponent = x >> 10 & 31, fraction = x & 1023;

    if (exponent == 31) return st__float(sign | 0x7F800000 | fraction << 13);
    if (exponent > 0) return st__float(sign | (exponent + 112) << 23 | fraction << 13);
    return st__float(sign | st__bits((float)fraction * 0x1p-24f)); /* subnormal: exact */
}

/* To nearest, ties to even; NaN stays NaN. */
static TOOL_UNUSED uint16_t st_bf16_of_f32(float value)
{
    uint32_t x = st__bits(value);

    if ((x & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(x >> 16 | 64);
    return (uint16_t)((x + 0x7FFF + (x >> 16 & 1)) >> 16);
}

static TOOL_UNUSED uint16_t st_f16_of_f32(float value)
{
    uint32_t x = st__bits(value), sign = x >> 16 & 0x8000, rest, half;
    int shift;

    x &= 0x7FFFFFFF;
    if (x > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (x >> 13 & 1023));
    if (x >= 0x47800000) return (uint16_t)(sign | 0x7C00); /* 65536 and more */
    if (x >= 0x38800000) {                                 /* 2^-14: normal */
        x += 0xFFF + (x >> 13 & 1);
        return (uint16_t)(sign | (x - 0x38000000) >> 13);
    }
    shift = 126 - (int)(x >> 23); /* steps of 2^-24 */
    if (shift > 24) return (uint16_t)sign;
    x = (x & 0x7FFFFF) | 0x800000;
    rest = x & ((UINT32_C(1) << shift) - 1);
    half = UINT32_C(1) << (shift - 1);
    x >>= shift;
    x += rest > half || (rest == half && (x & 1) != 0);
    return (uint16_t)(sign | x);
}

enum { ST__CHUNK = 2048 }; /* elements read at a time */

/* Bytes of up to ST__CHUNK elements from `first` on; their number is *n. */
static TOOL_UNUSED bool st__chunk(const st_file *file, const st_tensor *tensor, uint64_t first,
                                  uint64_t left, unsigned char raw[ST__CHUNK * 8], size_t *n,
                                  tool_error *err)
{
    uint32_t bytes = st_dtype_bits(tensor->dtype) / 8;

    *n = left < ST__CHUNK ? (size_t)left : ST__CHUNK;
    if (first > tensor->count || left > tensor->count - first) {
        char quoted[TOOL_QUOTE];
        return tool_fail(err, "tensor \"%s\": %llu elements from %llu asked for, it has %llu",
                         tool_quote(quoted, tensor->name, tensor->name_size),
                         (unsigned long long)left, (unsigned long long)first,
                         (unsigned long long)tensor->count);
    }
    return st_read(file, tensor, first * bytes, *n * bytes, raw, err);
}

static TOOL_UNUSED bool st__dtype_fail(const st_tensor *tensor, const char *wanted,
                                       tool_error *err)
{
    char quoted[TOOL_QUOTE];

    return tool_fail(err, "tensor \"%s\": dtype is %s, needs %s",
                     tool_quote(quoted, tensor->name, tensor->name_size),
                     st_dtype_name(tensor->dtype), wanted);
}

/* Elements first..first+n-1 of an F32, F16 or BF16 tensor, widened: exact. */
static TOOL_UNUSED bool st_read_f32(const st_file *file, const st_tensor *tensor, uint64_t first,
                                    uint64_t n, float *out, tool_error *err)
{
    unsigned char raw[ST__CHUNK * 8];
    size_t i, got;

    if (tensor->dtype != ST_F32 && tensor->dtype != ST_F16 && tensor->dtype != ST_BF16)
        return st__dtype_fail(tensor, "F32, F16 or BF16", err);
    for (; n > 0; n -= got, first += got, out += got) {
        if (!st__chunk(file, tensor, first, n, raw, &got, err)) return false;
        if (tensor->dtype == ST_F32)
            for (i = 0; i < got; i++) out[i] = st__float(st__load32(raw + 4 * i));
        else if (tensor->dtype == ST_F16)
            for (i = 0; i < got; i++) out[i] = st_f32_of_f16(st__load16(raw + 2 * i));
        else
            for (i = 0; i < got; i++) out[i] = st_f32_of_bf16(st__load16(raw + 2 * i));
    }
    return true;
}

/* The same with F64 allowed. */
static TOOL_UNUSED bool st_read_f64(const st_file *file, const st_tensor *tensor, uint64_t first,
                                    uint64_t n, double *out, tool_error *err)
{
    unsigned char raw[ST__CHUNK * 8];
    float narrow[ST__CHUNK];
    size_t i, got;

    for (; n > 0; n -= got, first += got, out += got) {
        got = n < ST__CHUNK ? (size_t)n : ST__CHUNK;
        if (tensor->dtype != ST_F64) {
            if (!st_read_f32(file, tensor, first, got, narrow, err)) return false;
            for (i = 0; i < got; i++) out[i] = (double)narrow[i];
            continue;
        }
        if (!st__chunk(file, tensor, first, n, raw, &got, err)) return false;
        for (i = 0; i < got; i++) {
            uint64_t bits = st__load(raw + 8 * i, 8);
            memcpy(&out[i], &bits, sizeof bits);
        }
    }
    return true;
}

/* Elements of a tensor of integers or BOOL; a U64 above 2^63-1 fails. */
static TOOL_UNUSED bool st_read_i64(const st_file *file, const st_tensor *tensor, uint64_t first,
                                    uint64_t n, int64_t *out, tool_error *err)
{
    unsigned char raw[ST__CHUNK * 8];
    uint32_t bits = st_dtype_bits(tensor->dtype);
    bool sign = tensor->dtype == ST_I8 || tensor->dtype == ST_I16 || tensor->dtype == ST_I32 ||
                tensor->dtype == ST_I64;
    size_t i, got;

    if (tensor->dtype > ST_I64) return st__dtype_fail(tensor, "an integer type", err);
    for (; n > 0; n -= got, first += got, out += got) {
        if (!st__chunk(file, tensor, first, n, raw, &got, err)) return false;
        for (i = 0; i < got; i++) {
            uint64_t x = st__load(raw + i * (bits / 8), bits / 8);
            bool high = (x >> (bits - 1) & 1) != 0;
            if (tensor->dtype == ST_U64 && high)
                return st__dtype_fail(tensor, "values below 2^63", err);
            if (sign && high) x |= bits < 64 ? ~UINT64_C(0) << bits : 0;
            memcpy(&out[i], &x, sizeof x); /* two's complement, as int64_t is defined */
        }
    }
    return true;
}

/* ---- safetensors: writer ---------------------------------------------------------------------
   Declare all tensors, start, put their data, commit. The tensors may be filled in any order, each
   from its first byte to its last in as many pieces as you like. In the file wide types come
   before narrow ones, so that every tensor is aligned to its element.

       st_writer w = {0};
       ok = st_writer_add(&w, "x", ST_BF16, 2, shape, &err) && ...           0, 1, 2, ...
            && st_writer_start(&w, "model.safetensors", &err)
            && st_writer_put_f32(&w, 0, floats, n, &err) && ...
            && st_writer_commit(&w, &err);
       st_writer_free(&w);                       removes the unfinished file if there is one     */

typedef struct st__declared {
    char    *name;
    st_dtype dtype;
    int32_t  n_dims;
    int64_t  shape[ST_MAX_DIMS];
    uint64_t size, offset, done;
} st__declared;

typedef struct st_writer {
    tool_output   output;
    st__declared *tensors;
    size_t        n_tensors, capacity;
    tool_buffer   notes;      /* the members of __metadata__ */
    uint64_t      data_start;
    bool          started;
} st_writer;

static TOOL_UNUSED void st_writer_free(st_writer *writer)
{
    size_t i;

    tool_output_abandon(&writer->output);
    for (i = 0; i < writer->n_tensors; i++) free(writer->tensors[i].name);
    free(writer->tensors);
    tool_buffer_free(&writer->notes);
    memset(writer, 0, sizeof *writer);
}

/* The tensor's number is that of the calls before. shape may be NULL if n_dims is 0. */
static TOOL_UNUSED bool st_writer_add(st_writer *writer, const char *name, st_dtype dtype,
                                      int32_t n_dims, const int64_t *shape, tool_error *err)
{
    st__declared *tensor;
    uint64_t count;
    size_t size = strlen(name);
    char quoted[TOOL_QUOTE];

    if (!st__name_ok(name, size, err)) return false;
    if (writer->started || writer->n_tensors >= ST_MAX_TENSORS || !tool_is_utf8(name, size) ||
        strcmp(name, "__metadata__") == 0 || (unsigned)dtype >= ST_N_DTYPES || n_dims < 0 ||
        n_dims > ST_MAX_DIMS)
        return tool_fail(err, "tensor \"%s\" cannot be declared",
                         tool_quote(quoted, name, size));
    if (!tool_grow(&writer->tensors, &writer->capacity, (uint64_t)writer->n_tensors + 1,
                   sizeof *writer->tensors, err))
        return false;
    tensor = &writer->tensors[writer->n_tensors];
    memset(tensor, 0, sizeof *tensor);
    tensor->dtype = dtype;
    tensor->n_dims = n_dims;
    if (n_dims > 0) memcpy(tensor->shape, shape, (size_t)n_dims * sizeof *shape);
    if (!st__measure(dtype, n_dims, tensor->shape, &count, &tensor->size))
        return tool_fail(err, "tensor \"%s\": its size is not a number of bytes",
                         tool_quote(quoted, name, size));
    tensor->name = tool_copy(name, size, err);
    if (tensor->name == NULL) return false;
    writer->n_tensors++;
    return true;
}

/* An entry of __metadata__; keys must differ. PyTorch's readers want "format" = "pt". */
static TOOL_UNUSED bool st_writer_note(st_writer *writer, const char *key, const char *value,
                                       tool_error *err)
{
    size_t key_size = strlen(key), value_size = strlen(value);

    if (writer->started || !tool_is_utf8(key, key_size) || !tool_is_utf8(value, value_size))
        return tool_fail(err, "metadata \"%.80s\" cannot be declared", key);
    if (writer->notes.size > 0) tool_put(&writer->notes, ",", 1);
    json_put_string(&writer->notes, key, key_size);
    tool_put(&writer->notes, ":", 1);
    json_put_string(&writer->notes, value, value_size);
    return !writer->notes.failed || tool_fail(err, "out of memory");
}

typedef struct st__place {
    uint32_t bits, tensor;
} st__place;

static TOOL_UNUSED int st__wide_first(const void *a, const void *b)
{
    const st__place *x = a, *y = b;

    if (x->bits != y->bits) return x->bits > y->bits ? -1 : 1;
    return x->tensor < y->tensor ? -1 : x->tensor > y->tensor;
}

/* Decides where each tensor goes and writes the header's text. */
static TOOL_UNUSED bool st__layout(st_writer *writer, const st__place *places, tool_buffer *header,
                                   uint64_t *data, tool_error *err)
{
    size_t i;
    int32_t d;

    *data = 0;
    tool_put(header, "{", 1);
    if (writer->notes.size > 0) {
        tool_put(header, "\"__metadata__\":{", 16);
        tool_put(header, writer->notes.data, writer->notes.size);
        tool_put(header, writer->n_tensors > 0 ? "}," : "}", writer->n_tensors > 0 ? 2 : 1);
    }
    for (i = 0; i < writer->n_tensors; i++) {
        st__declared *tensor = &writer->tensors[places[i].tensor];
        tensor->offset = *data;
        if (!tool_add(*data, tensor->size, data) || *data > INT64_MAX)
            return tool_fail(err, "the tensors have more than 2^63 bytes");
        json_put_string(header, tensor->name, strlen(tensor->name));
        tool_putf(header, ":{\"dtype\":\"%s\",\"shape\":[", st_dtype_name(tensor->dtype));
        for (d = 0; d < tensor->n_dims; d++)
            tool_putf(header, "%s%lld", d > 0 ? "," : "", (long long)tensor->shape[d]);
        tool_putf(header, "],\"data_offsets\":[%llu,%llu]}%s", (unsigned long long)tensor->offset,
                  (unsigned long long)*data, i + 1 < writer->n_tensors ? "," : "");
    }
    tool_put(header, "}", 1);
    while (!header->failed && header->size % 8 != 0) tool_put(header, " ", 1);
    if (header->failed) return tool_fail(err, "out of memory");
    if (header->size > ST_MAX_HEADER) return tool_fail(err, "the header would be too large");
    return true;
}

static TOOL_UNUSED st__place *st__places(const st_writer *writer, tool_error *err)
{
    st__place *places = tool_alloc(writer->n_tensors, sizeof *places, err);
    tool_name *names = tool_alloc(writer->n_tensors, sizeof *names, err);
    const tool_name *twin;
    char quoted[TOOL_QUOTE];
    size_t i;
    bool ok = places != NULL && names != NULL;

    for (i = 0; ok && i < writer->n_tensors; i++) {
        const char *name = writer->tensors[i].name;
        names[i] = tool_name_of(name, strlen(name), 0);
        places[i].bits = st_dtype_bits(writer->tensors[i].dtype);
        places[i].tensor = (uint32_t)i;
    }
    twin = ok ? tool_names_sort(names, writer->n_tensors) : NULL;
    if (twin != NULL)
        ok = tool_fail(err, "tensor \"%s\" is declared twice",
                       tool_quote(quoted, twin->bytes, twin->size));
    free(names);
    if (ok) {
        tool_sort(places, writer->n_tensors, sizeof *places, st__wide_first);
        return places;
    }
    free(places);
    return NULL;
}

/* Creates the temporary file with its whole size and writes the header. */
static TOOL_UNUSED bool st_writer_start(st_writer *writer, const char *path, tool_error *err)
{
    st__place *places;
    tool_buffer header = {NULL, 0, 0, false};
    unsigned char size[8];
    uint64_t data = 0;
    bool ok;

    if (writer->started) return tool_fail(err, "%s: already started", path);
    places = st__places(writer, err);
    ok = places != NULL && st__layout(writer, places, &header, &data, err);
    if (!ok) tool_prefix(err, path);
    ok = ok && tool_output_open(&writer->output, path, err);
    if (ok) {
        writer->started = true;
        writer->data_start = 8 + header.size;
        st__store(size, header.size, 8);
        ok = tool_output_reserve(&writer->output, writer->data_start + data, err) &&
             tool_output_write_at(&writer->output, size, 8, 0, err) &&
             tool_output_write_at(&writer->output, header.data, header.size, 8, err);
    }
    free(places);
    tool_buffer_free(&header);
    return ok;
}

/* The next bytes of a tensor. */
static TOOL_UNUSED bool st_writer_put(st_writer *writer, size_t tensor, const void *data,
                                      uint64_t size, tool_error *err)
{
    st__declared *t = tensor < writer->n_tensors ? &writer->tensors[tensor] : NULL;

    if (t == NULL || !writer->started) return tool_fail(err, "no such tensor to write");
    if (size > t->size - t->done || size > SIZE_MAX / 2)
        return tool_fail(err, "tensor \"%.120s\": %llu bytes are too many, %llu of %llu are left",
                         t->name, (unsigned long long)size,
                         (unsigned long long)(t->size - t->done), (unsigned long long)t->size);
    if (!tool_output_write_at(&writer->output, data, (size_t)size,
                              writer->data_start + t->offset + t->done, err))
        return false;
    t->done += size;
    return true;
}

/* The next n elements of an F32, BF16 or F16 tensor, rounded to nearest. */
static TOOL_UNUSED bool st_writer_put_f32(st_writer *writer, size_t tensor, const float *values,
                                          uint64_t n, tool_error *err)
{
    st_dtype dtype = tensor < writer->n_tensors ? writer->tensors[tensor].dtype : ST_F32;
    uint32_t bytes = st_dtype_bits(dtype) / 8;
    unsigned char raw[ST__CHUNK * 8];
    size_t i, some;

    if (dtype != ST_F32 && dtype != ST_BF16 && dtype != ST_F16)
        return tool_fail(err, "tensor \"%.120s\": dtype is %s, needs F32, F16 or BF16",
                         writer->tensors[tensor].name, st_dtype_name(dtype));
    for (; n > 0; n -= some, values += some) {
        some = n < ST__CHUNK ? (size_t)n : ST__CHUNK;
        for (i = 0; i < some; i++)
            st__store(raw + i * bytes, dtype == ST_F32 ? st__bits(values[i]) :
                      dtype == ST_BF16 ? st_bf16_of_f32(values[i]) : st_f16_of_f32(values[i]),
                      bytes);
        if (!st_writer_put(writer, tensor, raw, (uint64_t)some * bytes, err)) return false;
    }
    return true;
}

/* The next n elements of an I64 or I32 tensor; a value that does not fit fails. */
static TOOL_UNUSED bool st_writer_put_i64(st_writer *writer, size_t tensor, const int64_t *values,
                                          uint64_t n, tool_error *err)
{
    st_dtype dtype = tensor < writer->n_tensors ? writer->tensors[tensor].dtype : ST_I64;
    uint32_t bytes = st_dtype_bits(dtype) / 8;
    unsigned char raw[ST__CHUNK * 8];
    size_t i, some;

    if (dtype != ST_I64 && dtype != ST_I32)
        return tool_fail(err, "tensor \"%.120s\": dtype is %s, needs I64 or I32",
                         writer->tensors[tensor].name, st_dtype_name(dtype));
    for (; n > 0; n -= some, values += some) {
        some = n < ST__CHUNK ? (size_t)n : ST__CHUNK;
        for (i = 0; i < some; i++) {
            if (dtype == ST_I32 && (values[i] < INT32_MIN || values[i] > INT32_MAX))
                return tool_fail(err, "tensor \"%.120s\": %lld does not fit I32",
                                 writer->tensors[tensor].name, (long long)values[i]);
            st__store(raw + i * bytes, (uint64_t)values[i], bytes);
        }
        if (!st_writer_put(writer, tensor, raw, (uint64_t)some * bytes, err)) return false;
    }
    return true;
}

/* Every tensor has to be complete. The file appears at its path, or nothing does. */
static TOOL_UNUSED bool st_writer_commit(st_writer *writer, tool_error *err)
{
    size_t i;

    for (i = 0; i < writer->n_tensors; i++) {
        const st__declared *t = &writer->tensors[i];
        if (t->done != t->size)
            return tool_fail(err, "tensor \"%.120s\": %llu of %llu bytes were written", t->name,
                             (unsigned long long)t->done, (unsigned long long)t->size);
    }
    return tool_output_commit(&writer->output, err);
}

#endif /* TOOL_SAFETENSORS_H */
