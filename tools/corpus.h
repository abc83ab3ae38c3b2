/* corpus.h: texts as one stream of tokens in a file, to train on.

   Documents are found in files and folders, put in a random order, encoded and written to a token
   file, which is mapped afterwards: texts and tokens may be larger than memory. What is held in
   memory is 32 bytes a document. Documents for validation come last in the file.

       corpus_files files;
       if (!corpus_find(&files, &config, &err)) ...                  names, sizes, times, a hash
       if (!corpus_open(&data, path, files.hash, &err))              NULL err: is it there already?
           corpus_build(path, &files, &config, &err) && corpus_open(...)
       corpus_token(&data, 17) ...

   Three forms of documents: parts of a file between lines that hold one form feed, whole files,
   and lines of JSON {"prompt", "response"}: conversations, of which only the response is scored. */
#ifndef TOOL_CORPUS_H
#define TOOL_CORPUS_H

#include "tokenizer_data.h"

#include <dirent.h>
#include <fnmatch.h>
#include <sys/mman.h>

#define CORPUS_MAX_DEPTH 64               /* of folders */
#define CORPUS_PIECE ((size_t)1 << 20)    /* bytes of a document that are encoded at once */
#define CORPUS_MAX_LINE (UINT64_C(1) << 27)
#define CORPUS_HEADER 128
#define CORPUS_OPEN 64                    /* files that stay open between documents */

typedef enum corpus_form { CORPUS_PARTS, CORPUS_WHOLE, CORPUS_CHAT } corpus_form;

typedef struct corpus_config {
    const char *const      *train, *const *valid;     /* files and folders */
    size_t                  n_train, n_valid;
    const char             *train_match, *valid_match; /* names of files in folders; NULL = all */
    double                  valid_fraction;           /* of the training documents */
    corpus_form             form;
    int64_t                 longest_prompt; /* conversations with a longer one are left out */
    uint64_t                seed;
    const monet_tokenizer  *tokenizer;
    volatile sig_atomic_t  *stop;           /* set by a signal: end as soon as possible */
} corpus_config;

typedef struct corpus_file {
    char    *path;
    uint64_t size, device, inode;
    int64_t  seconds, nanoseconds; /* of the last change */
    bool     valid;
} corpus_file;

typedef struct corpus_files {
    corpus_file *items;
    size_t       n, capacity;
    uint64_t     hash; /* of all that decides what the tokens are */
} corpus_files;

/* The header of a token file: numbers of the machine that made it. */
enum { CORPUS_MAGIC, CORPUS_HASH, CORPUS_WIDTH, CORPUS_TRAIN, CORPUS_VALID, CORPUS_TRAIN_SCORED,
       CORPUS_VALID_SCORED, CORPUS_TRAIN_BYTES, CORPUS_VALID_BYTES, CORPUS_DOCUMENTS,
       CORPUS_LEFT_OUT, CORPUS_N_NUMBERS };

typedef struct corpus {
    const unsigned char *map;
    uint64_t             size;                     /* bytes mapped */
    uint64_t             number[CORPUS_N_NUMBERS];
} corpus;

/* ---- corpus: random numbers that are functions of where they are used ------------------------ */

static TOOL_UNUSED uint64_t corpus_random(uint64_t seed, uint64_t purpose, uint64_t index)
{
    uint64_t x = seed;
    int k;

    for (k = 0; k < 3; k++) { /* three rounds of splitmix64 */
        x += (k == 0 ? purpose : k == 1 ? index : 0) + UINT64_C(0x9E3779B97F4A7C15);
        x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
        x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
        x ^= x >> 31;
    }
    return x;
}

enum { CORPUS_FOR_ORDER = 1, CORPUS_FOR_VALID = 2, CORPUS_FOR_STEPS = 16 };

/* ---- corpus: finding files ------------------------------------------------------------------- */

static TOOL_UNUSED void corpus_files_free(corpus_files *files)
{
    size_t i;

    for (i = 0; i < files->n; i++) free(files->items[i].path);
    free(files->items);
    memset(files, 0, sizeof *files);
}

static TOOL_UNUSED bool corpus__add_file(corpus_files *files, const char *path,
                                         const struct stat *status, bool valid, tool_error *err)
{
    corpus_file *file;

    if (!tool_grow(&files->items, &files->capacity, (uint64_t)files->n + 1, sizeof *file, err))
        return false;
    file = &files->items[files->n];
    memset(file, 0, sizeof *file);
    file->path = tool_copy(path, strlen(path), err);
    if (file->path == NULL) return false;
    file->size = (uint64_t)status->st_size;
    file->device = (uint64_t)status->st_dev;
    file->inode = (uint64_t)status->st_ino;
    file->seconds = (int64_t)status->st_mtim.tv_sec;
    file->nanoseconds = (int64_t)status->st_mtim.tv_nsec;
    file->valid = valid;
    files->n++;
    return true;
}

static TOOL_UNUSED int corpus__by_name(const void *a, const void *b)
{
    char *x, *y;

    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return strcmp(x, y);
}

/* Names in a folder, sorted by their bytes; those that start with a dot are hidden. */
static TOOL_UNUSED bool corpus__names(const char *path, char ***names, size_t *n, tool_error *err)
{
    DIR *folder = opendir(path);
    struct dirent *entry;
    size_t capacity = 0;
    bool ok = true;

    *names = NULL;
    *n = 0;
    if (folder == NULL) return tool_fail(err, "%.300s: %s", path, strerror(errno));
    while (ok && (entry = readdir(folder)) != NULL) {
        if (entry->d_name[0] == '.') continue;
        ok = tool_grow(names, &capacity, (uint64_t)*n + 1, sizeof **names, err) &&
             ((*names)[*n] = tool_copy(entry->d_name, strlen(entry->d_name), err)) != NULL;
        *n += ok;
    }
    closedir(folder);
    tool_sort(*names, *n, sizeof **names, corpus__by_name);
    return ok;
}

/* A file or folder that was found in a folder (depth > 0), or one that the user named. */
static TOOL_UNUSED bool corpus__add(corpus_files *files, const corpus_config *config,
                                    const char *path, bool valid, int depth, tool_error *err)
{
    const char *name = tool_base_name(path);
    struct stat status;
    char **names;
    size_t n, i;
    bool ok;

    if (stat(path, &status) != 0)
        return depth > 0 || tool_fail(err, "%.300s: %s", path, strerror(errno));
    if (!S_ISDIR(status.st_mode)) {
        bool for_valid = config->valid_match != NULL && fnmatch(config->valid_match, name, 0) == 0;
        bool for_train = config->train_match == NULL || fnmatch(config->train_match, name, 0) == 0;
        if (depth > 0 && (!S_ISREG(status.st_mode) || (!valid && !for_valid && !for_train)))
            return true;
        if (!S_ISREG(status.st_mode))
            return tool_fail(err, "%.300s: is %s, not a file", path, tool__kind(status.st_mode));
        return corpus__add_file(files, path, &status, valid || for_valid, err);
    }
    if (depth >= CORPUS_MAX_DEPTH)
        return tool_fail(err, "%.300s: more than %d folders deep", path, CORPUS_MAX_DEPTH);
    if (depth > 0 && lstat(path, &status) == 0 && S_ISLNK(status.st_mode))
        return true; /* a link to a folder could lead round in a circle */
    ok = corpus__names(path, &names, &n, err);
    for (i = 0; i < n; i++) {
        char *inside = ok ? tool_join(path, names[i], err) : NULL;
        ok = inside != NULL && corpus__add(files, config, inside, valid, depth + 1, err);
        free(inside);
        free(names[i]);
    }
    free(names);
    return ok;
}

static TOOL_UNUSED int corpus__by_inode(const void *a, const void *b)
{
    const corpus_file *x, *y;

    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    if (x->inode != y->inode) return x->inode < y->inode ? -1 : 1;
    if (x->device != y->device) return x->device < y->device ? -1 : 1;
    return (int)x->valid - (int)y->valid;
}

/* What a model is tested on it must not learn. */
static TOOL_UNUSED bool corpus__apart(const corpus_files *files, tool_error *err)
{
    const corpus_file **sorted = tool_alloc(files->n, sizeof *sorted, err);
    size_t i;
    bool ok = sorted != NULL;

    for (i = 0; ok && i < files->n; i++) sorted[i] = &files->items[i];
    if (ok) tool_sort(sorted, files->n, sizeof *sorted, corpus__by_inode);
    for (i = 1; ok && i < files->n; i++) {
        const corpus_file *a = sorted[i - 1], *b = sorted[i];
        if (a->inode == b->inode && a->device == b->device && a->valid != b->valid)
            ok = tool_fail(err, "%.300s: is given for training and for validation", b->path);
    }
    free(sorted);
    return ok;
}

static TOOL_UNUSED bool corpus__describe(corpus_files *files, const corpus_config *config,
                                         tool_error *err)
{
    tool_buffer all = {NULL, 0, 0, false};
    uint64_t tokenizer;
    size_t i;
    bool ok = tokenizer_hash(config->tokenizer, &tokenizer, err);

    tool_putf(&all, "1 %d %.17g %llu %llu %lld\n", (int)config->form, config->valid_fraction,
              (unsigned long long)config->seed, (unsigned long long)(ok ? tokenizer : 0),
              (long long)(config->form == CORPUS_CHAT ? config->longest_prompt : 0));
    for (i = 0; i < files->n; i++) {
        const corpus_file *f = &files->items[i];
        tool_put(&all, f->path, strlen(f->path) + 1);
        tool_putf(&all, "%d %llu %lld %lld\n", (int)f->valid, (unsigned long long)f->size,
                  (long long)f->seconds, (long long)f->nanoseconds);
    }
    if (ok && all.failed) ok = tool_fail(err, "out of memory: too many files");
    if (ok) files->hash = tool_hash(all.data, all.size);
    tool_buffer_free(&all);
    return ok;
}

/* In the order in which the user named them, folders by name. Free after a failure, too. */
static TOOL_UNUSED bool corpus_find(corpus_files *files, const corpus_config *config,
                                    tool_error *err)
{
    size_t i, n_train = 0;
    bool ok = true;

    memset(files, 0, sizeof *files);
    for (i = 0; ok && i < config->n_train; i++)
        ok = corpus__add(files, config, config->train[i], false, 0, err);
    for (i = 0; ok && i < config->n_valid; i++)
        ok = corpus__add(files, config, config->valid[i], true, 0, err);
    for (i = 0; i < files->n; i++) n_train += !files->items[i].valid;
    if (ok && n_train == 0)
        ok = tool_fail(err, "no file to train on: %.300s%s", config->train[0],
                       config->train_match != NULL ? " holds none of that name" : " holds none");
    return ok && corpus__apart(files, err) && corpus__describe(files, config, err);
}

/* ---- corpus: finding documents --------------------------------------------------------------- */

typedef struct corpus__document {
    uint64_t key; /* the order: random; the highest bit: for validation */
    uint64_t offset, size;
    uint32_t file;
} corpus__document;

typedef struct corpus__index {
    corpus__document *items;
    size_t            n, capacity;
} corpus__index;

#define CORPUS__VALID (UINT64_C(1) << 63)

static TOOL_UNUSED int corpus__by_key(const void *a, const void *b)
{
    const corpus__document *x = a, *y = b;

    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static TOOL_UNUSED bool corpus__add_document(corpus__index *index, const corpus_config *config,
                                             bool valid, uint32_t file, uint64_t from, uint64_t to,
                                             tool_error *err)
{
    corpus__document *d;
    uint64_t n = index->n;

    if (to <= from) return true;
    if (!tool_grow(&index->items, &index->capacity, n + 1, sizeof *d, err)) return false;
    d = &index->items[index->n++];
    if (!valid && config->valid_fraction > 0)
        valid = (double)(corpus_random(config->seed, CORPUS_FOR_VALID, n) >> 11) * 0x1p-53 <
                config->valid_fraction;
    d->key = corpus_random(config->seed, CORPUS_FOR_ORDER, n) >> 1 | (valid ? CORPUS__VALID : 0);
    d->offset = from;
    d->size = to - from;
    d->file = file;
    return true;
}

/* Cuts a file at separators: lines that hold one form feed, or (of conversations) line ends. */
static TOOL_UNUSED bool corpus__split(corpus__index *index, const corpus_config *config,
                                      const corpus_file *file, uint32_t number, char *buffer,
                                      tool_error *err)
{
    struct stat status;
    int fd = tool__open(file->path, &status, err);
    uint64_t at = 0, start = 0, n = 0, i;
    bool chat = config->form == CORPUS_CHAT, candidate = false, ok = fd >= 0;
    char before = '\n';

    for (; ok && at < file->size && !*config->stop; at += n) {
        n = file->size - at < CORPUS_PIECE ? file->size - at : CORPUS_PIECE;
        ok = tool_pread(fd, buffer, n, at, err);
        for (i = 0; ok && i < n; before = buffer[i++]) {
            bool line_end = buffer[i] == '\n';
            if (line_end && (chat || candidate)) {
                ok = corpus__add_document(index, config, file->valid, number, start,
                                          at + i - candidate, err);
                start = at + i + 1;
            }
            candidate = !chat && buffer[i] == '\f' && before == '\n';
        }
    }
    if (fd >= 0) close(fd);
    ok = ok && corpus__add_document(index, config, file->valid, number, start,
                                    file->size - candidate, err);
    return ok || tool_prefix(err, file->path);
}

static TOOL_UNUSED bool corpus__index_all(corpus__index *index, const corpus_files *files,
                                          const corpus_config *config, tool_error *err)
{
    char *buffer = tool_alloc(CORPUS_PIECE, 1, err);
    size_t i;
    bool ok = buffer != NULL && (files->n < UINT32_MAX || tool_fail(err, "too many files"));

    for (i = 0; ok && i < files->n; i++) {
        const corpus_file *f = &files->items[i];
        ok = config->form == CORPUS_WHOLE
           ? corpus__add_document(index, config, f->valid, (uint32_t)i, 0, f->size, err)
           : corpus__split(index, config, f, (uint32_t)i, buffer, err);
    }
    free(buffer);
    if (ok) tool_sort(index->items, index->n, sizeof *index->items, corpus__by_key);
    return ok;
}

/* ---- corpus: encoding ------------------------------------------------------------------------ */

typedef struct corpus__builder {
    const corpus_config *config;
    const corpus_files  *files;
    tool_output          output;
    uint64_t             number[CORPUS_N_NUMBERS];
    char                *text;     /* one piece, or one conversation */
    size_t               text_capacity;
    int32_t             *tokens;
    unsigned char       *packed;
    size_t               capacity, packed_capacity, n_tokens;
    int                  fd[CORPUS_OPEN];
    uint32_t             owner[CORPUS_OPEN];
} corpus__builder;

/* Descriptor of a file; it stays open until another one needs the place. */
static TOOL_UNUSED int corpus__descriptor(corpus__builder *b, uint32_t file, tool_error *err)
{
    size_t place = file % CORPUS_OPEN;
    struct stat status;

    if (b->fd[place] >= 0 && b->owner[place] == file) return b->fd[place];
    if (b->fd[place] >= 0) close(b->fd[place]);
    b->fd[place] = tool__open(b->files->items[file].path, &status, err);
    b->owner[place] = file;
    return b->fd[place];
}

/* Appends the tokens of a text to the growing array *tokens, of which *n are used. */
static TOOL_UNUSED bool corpus_encode(const monet_tokenizer *tokenizer, const char *text,
                                      size_t size, unsigned flags, int32_t **tokens,
                                      size_t *capacity, size_t *n, tool_error *err)
{
    size_t count = size + 16;
    monet_result result = MONET_ERROR_CAPACITY;
    int tries;

    for (tries = 0; tries < 2 && result == MONET_ERROR_CAPACITY; tries++) {
        if (!tool_grow(tokens, capacity, (uint64_t)*n + count, sizeof **tokens, err)) return false;
        result = monet_tokenizer_encode(tokenizer, text, size, flags, *tokens + *n, *capacity - *n,
                                        &count);
    }
    if (result != MONET_OK)
        return tool_fail(err, "cannot be encoded: %s", monet_result_name(result));
    *n += count;
    return true;
}

static TOOL_UNUSED bool corpus__encode(corpus__builder *b, const char *text, size_t size,
                                       unsigned flags, tool_error *err)
{
    return corpus_encode(b->config->tokenizer, text, size, flags, &b->tokens, &b->capacity,
                         &b->n_tokens, err);
}

/* Writes b->tokens; those before `scored` carry the mark that they are not scored. */
static TOOL_UNUSED bool corpus__write(corpus__builder *b, size_t scored, uint64_t bytes,
                                      bool valid, tool_error *err)
{
    size_t width = (size_t)b->number[CORPUS_WIDTH], i, k, n = b->n_tokens;
    uint32_t mark = width == 2 ? UINT32_C(0x8000) : UINT32_C(0x80000000);

    if (!tool_grow(&b->packed, &b->packed_capacity, (uint64_t)n * width, 1, err)) return false;
    for (i = 0, k = 0; i < n; i++, k += width) {
        uint32_t token = (uint32_t)b->tokens[i] | (i < scored ? mark : 0);
        uint16_t half = (uint16_t)token;
        if (width == 2) memcpy(b->packed + k, &half, sizeof half);
        else memcpy(b->packed + k, &token, sizeof token);
    }
    b->number[CORPUS_TRAIN + valid] += n;
    b->number[CORPUS_TRAIN_SCORED + valid] += n - scored;
    b->number[CORPUS_TRAIN_BYTES + valid] += bytes;
    b->n_tokens = 0;
    return tool_output_write(&b->output, b->packed, n * width, err);
}

/* Of a long document, how many of the first n bytes to encode at once: up to a line end, or at
   least not into a character.                                                                  */
static TOOL_UNUSED size_t corpus_cut(const char *text, size_t n)
{
    size_t end = n;

    while (end > n / 2 && text[end - 1] != '\n') end--;
    if (end > n / 2) return end;
    for (end = n; end > n - 3 && ((unsigned char)text[end] & 0xC0) == 0x80; end--) {}
    return end;
}

static TOOL_UNUSED bool corpus__encode_text(corpus__builder *b, const corpus__document *d, int fd,
                                            tool_error *err)
{
    uint64_t at;
    size_t n;

    for (at = 0; at < d->size; at += n) {
        bool last = d->size - at <= CORPUS_PIECE;
        unsigned flags = (at == 0 ? MONET_ADD_BOS : MONET_NO_PREFIX) | (last ? MONET_ADD_EOS : 0);
        n = last ? (size_t)(d->size - at) : CORPUS_PIECE + 1; /* one more, to cut between */
        if (!tool_pread(fd, b->text, n, d->offset + at, err)) return false;
        if (!last) n = corpus_cut(b->text, n - 1);
        if (!corpus__encode(b, b->text, n, flags, err) ||
            !corpus__write(b, 0, n, (d->key & CORPUS__VALID) != 0, err)) return false;
    }
    return true;
}

/* "<s>[INST] prompt [/INST]" as generate --chat makes it, then " response</s>". */
static TOOL_UNUSED bool corpus__encode_turn(corpus__builder *b, const char *prompt,
                                            const char *response, bool valid, tool_error *err)
{
    tool_buffer turn = {NULL, 0, 0, false};
    size_t prompt_tokens, size = strlen(response);
    bool ok;

    tool_put(&turn, "[INST] ", 7);
    tool_put(&turn, prompt, strlen(prompt));
    tool_put(&turn, " [/INST]", 8);
    ok = !turn.failed && corpus__encode(b, turn.data, turn.size, MONET_ADD_BOS, err);
    if (turn.failed) tool_fail(err, "out of memory");
    prompt_tokens = b->n_tokens;
    turn.size = 0;
    tool_put(&turn, " ", 1);
    tool_put(&turn, response, size);
    ok = ok && !turn.failed &&
         corpus__encode(b, turn.data, turn.size, MONET_ADD_EOS | MONET_NO_PREFIX, err);
    tool_buffer_free(&turn);
    if (!ok) return false;
    if (prompt_tokens <= (uint64_t)b->config->longest_prompt)
        return corpus__write(b, prompt_tokens, size, valid, err);
    b->number[CORPUS_LEFT_OUT]++;
    b->n_tokens = 0;
    return true;
}

static TOOL_UNUSED bool corpus__encode_chat(corpus__builder *b, const corpus__document *d, int fd,
                                            tool_error *err)
{
    json_doc doc;
    const char *prompt, *response;
    char *line;
    size_t i = 0, size = (size_t)d->size, prompt_size, response_size;
    bool ok;

    if (d->size > CORPUS_MAX_LINE) return tool_fail(err, "a line of more than 128 MiB");
    line = tool_alloc(d->size + 1, 1, err);
    if (line == NULL || !tool_pread(fd, line, d->size, d->offset, err)) return free(line), false;
    while (i < size && strchr(" \t\r", line[i]) != NULL && line[i] != '\0') i++;
    if (i == size) return free(line), true; /* an empty line */
    if (!json_parse(&doc, line, size, err)) return free(line), false;
    prompt = json_string(&doc, json_find(&doc, 0, "prompt"), &prompt_size);
    response = json_string(&doc, json_find(&doc, 0, "response"), &response_size);
    if (prompt == NULL || response == NULL)
        ok = tool_fail(err, "\"%s\" is missing or no string",
                       prompt == NULL ? "prompt" : "response");
    else if (strlen(prompt) != prompt_size || strlen(response) != response_size)
        ok = tool_fail(err, "\"prompt\" or \"response\" holds a NUL");
    else
        ok = corpus__encode_turn(b, prompt, response, (d->key & CORPUS__VALID) != 0, err);
    json_free(&doc);
    free(line);
    return ok;
}

static TOOL_UNUSED bool corpus__encode_all(corpus__builder *b, const corpus__index *index,
                                           tool_error *err)
{
    tool_progress progress;
    uint64_t total = 0, done = 0;
    size_t i;
    bool ok = true;

    for (i = 0; i < index->n; i++) total += index->items[i].size;
    tool_progress_begin(&progress, "reading texts as tokens", NULL, total);
    for (i = 0; ok && i < index->n; i++) {
        const corpus__document *d = &index->items[i];
        int fd = corpus__descriptor(b, d->file, err);
        ok = fd >= 0 && (b->config->form == CORPUS_CHAT ? corpus__encode_chat(b, d, fd, err)
                                                        : corpus__encode_text(b, d, fd, err));
        if (!ok) {
            char place[64];
            snprintf(place, sizeof place, "byte %llu", (unsigned long long)d->offset);
            if (d->offset > 0) tool_prefix(err, place);
            tool_prefix(err, b->files->items[d->file].path);
        } else if (*b->config->stop) {
            ok = tool_fail(err, "stopped while texts were read: nothing was trained yet");
        }
        tool_progress_update(&progress, done += d->size);
    }
    tool_progress_end(&progress);
    b->number[CORPUS_DOCUMENTS] = index->n - b->number[CORPUS_LEFT_OUT];
    return ok;
}

static TOOL_UNUSED uint64_t corpus__magic(void)
{
    uint64_t magic;

    memcpy(&magic, "MONETTOK", sizeof magic);
    return magic ^ 1; /* a version; a machine of the other byte order reads another number */
}

static TOOL_UNUSED bool corpus_build(const char *path, const corpus_files *files,
                                     const corpus_config *config, tool_error *err)
{
    corpus__builder *b = tool_alloc(1, sizeof *b, err);
    corpus__index index = {NULL, 0, 0};
    unsigned char header[CORPUS_HEADER] = {0};
    size_t i;
    bool ok;

    if (b == NULL) return false;
    b->config = config;
    b->files = files;
    for (i = 0; i < CORPUS_OPEN; i++) b->fd[i] = -1;
    b->number[CORPUS_MAGIC] = corpus__magic();
    b->number[CORPUS_HASH] = files->hash;
    b->number[CORPUS_WIDTH] = monet_tokenizer_size(config->tokenizer) <= 0x8000 ? 2 : 4;
    b->text = tool_alloc(CORPUS_PIECE + 1, 1, err);
    ok = b->text != NULL && corpus__index_all(&index, files, config, err) &&
         tool_output_open(&b->output, path, err) &&
         tool_output_write(&b->output, header, sizeof header, err) &&
         corpus__encode_all(b, &index, err);
    memcpy(header, b->number, sizeof b->number);
    ok = ok && tool_output_write_at(&b->output, header, sizeof header, 0, err) &&
         tool_output_commit(&b->output, err);
    tool_output_abandon(&b->output);
    for (i = 0; i < CORPUS_OPEN; i++)
        if (b->fd[i] >= 0) close(b->fd[i]);
    free(index.items);
    free(b->text);
    free(b->tokens);
    free(b->packed);
    free(b);
    return ok;
}

/* ---- corpus: reading tokens ------------------------------------------------------------------ */

static TOOL_UNUSED void corpus_close(corpus *data)
{
    void *map = (void *)(uintptr_t)data->map;

    if (map != NULL) munmap(map, (size_t)data->size);
    memset(data, 0, sizeof *data);
}

/* Maps a token file, if it is whole and made from what `hash` stands for. */
static TOOL_UNUSED bool corpus_open(corpus *data, const char *path, uint64_t hash, tool_error *err)
{
    unsigned char header[CORPUS_HEADER];
    struct stat status;
    const uint64_t *n = data->number;
    uint64_t total, size;
    void *map = MAP_FAILED;
    int fd;

    memset(data, 0, sizeof *data);
    fd = tool__open(path, &status, err);
    if (fd < 0) return tool_prefix(err, path);
    if (tool_pread(fd, header, sizeof header, 0, err)) {
        memcpy(data->number, header, sizeof data->number);
        if (n[CORPUS_MAGIC] != corpus__magic() ||
            (n[CORPUS_WIDTH] != 2 && n[CORPUS_WIDTH] != 4) ||
            !tool_add(n[CORPUS_TRAIN], n[CORPUS_VALID], &total) ||
            !tool_mul(total, n[CORPUS_WIDTH], &size) || !tool_add(size, CORPUS_HEADER, &size) ||
            size != (uint64_t)status.st_size)
            tool_fail(err, "is not a whole token file of this machine");
        else if (n[CORPUS_HASH] != hash)
            tool_fail(err, "was made from other texts, options or another tokenizer");
        else if (size > SIZE_MAX / 2 || (map = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd,
                                                    0)) == MAP_FAILED)
            tool_fail(err, "cannot be mapped: %s", strerror(errno));
    }
    close(fd);
    if (map == MAP_FAILED) return tool_prefix(err, path);
    data->map = map;
    data->size = (uint64_t)status.st_size;
    return true;
}

/* Token `index`; *scored: whether it may be a target. Validation begins at number[CORPUS_TRAIN]. */
static TOOL_UNUSED int32_t corpus_token(const corpus *data, uint64_t index, bool *scored)
{
    size_t width = (size_t)data->number[CORPUS_WIDTH];
    const unsigned char *p = data->map + CORPUS_HEADER + (size_t)index * width;
    uint32_t wide, mark = width == 2 ? UINT32_C(0x8000) : UINT32_C(0x80000000);
    uint16_t half;

    if (width == 2) {
        memcpy(&half, p, sizeof half);
        wide = half;
    } else {
        memcpy(&wide, p, sizeof wide);
    }
    *scored = (wide & mark) == 0;
    return (int32_t)(wide & ~mark);
}

#endif /* TOOL_CORPUS_H */
