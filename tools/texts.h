/* texts.h: labelled texts as windows of tokens, to look at experts with.

   A text file is one stream of tokens: each of its documents is BOS, its tokens, EOS; documents are
   separated by lines that hold one form feed. The stream is cut into windows, each of which is to
   be evaluated on its own. Of a file whose name ends with .jsonl each line is a document
   {"text": ..., "label": ..., "score": ...}; label and score may be missing. It starts a window of
   its own. The last, shorter window is kept if it has at least 2 tokens.

   The label of a file is its name up to the first dot: "economics.train.txt" is economics.
   Files are read piece by piece and may be larger than memory.

       if (!texts_open(&t, &config, &err)) ...                  finds the files and all labels
       while (texts_next(&t, &window, &err) && window.n > 0) ...
       texts_close(&t);

   Include it after monet.h, common.h, json.h and tokenizer_files.h.                            */
#ifndef TOOL_TEXTS_H
#define TOOL_TEXTS_H

#include "corpus.h"

#define TEXTS_MAX_LABELS 4096
#define TEXTS_MAX_LABEL 255       /* bytes of a label */
#define TEXTS_NO_LABEL UINT32_MAX

typedef struct texts_config {
    const char *const     *paths;       /* files and folders (searched recursively, by name) */
    size_t                 n_paths;
    const char            *match;       /* names of files in folders; NULL = all */
    int32_t                window;      /* tokens, at least 2 */
    int64_t                max_windows; /* of each file; 0 = all */
    const monet_tokenizer *tokenizer;
    volatile sig_atomic_t *stop;        /* set by a signal: end as soon as possible; NULL = none */
} texts_config;

typedef struct text_window {
    const int32_t *tokens;    /* valid until the next call */
    int32_t        n;         /* 0 = the end of all texts */
    uint32_t       file, label;
    uint64_t       document;  /* the same number in every pass: of the file, or of the line of a
                                 .jsonl file; with the place of a token it names that token */
    int64_t        first;     /* place of tokens[0] in the stream of that document */
    double         score;     /* 0 without has_score */
    bool           has_score;
} text_window;

typedef struct text_file {
    char    *path;
    uint64_t size;
    uint32_t label;     /* TEXTS_NO_LABEL: all of its lines have their own */
    bool     lines;     /* .jsonl */
} text_file;

typedef struct texts {
    texts_config config;
    text_file   *files;
    char       **labels;
    size_t       n_files, n_labels;
    uint64_t     bytes, bytes_done; /* of all files; as far as they were read */
    uint64_t     hash;              /* of all that decides what the windows are */
    uint64_t     windows;           /* that were given out */
    /* the file that is being read */
    size_t       file;
    int          fd;                /* -1 = not open yet */
    uint64_t     id, line, at;      /* of the file; lines read; bytes read into `text` */
    int64_t      file_windows;
    bool         inside;            /* what follows goes on with a document */
    bool         line_start;
    char        *text;              /* text[from..have-1] was read, but not encoded */
    size_t       from, have, text_capacity;
    /* the stream of tokens that is being cut */
    int32_t     *tokens;            /* tokens[taken..n_tokens-1] were not given out */
    size_t       taken, n_tokens, token_capacity, label_capacity;
    bool         ended;             /* no more tokens follow */
    text_window  now;               /* what holds for all of the stream; first: of tokens[taken] */
} texts;

static TOOL_UNUSED void texts_close(texts *t)
{
    size_t k;

    for (k = 0; k < t->n_files; k++) free(t->files[k].path);
    for (k = 0; k < t->n_labels; k++) free(t->labels[k]);
    if (t->fd >= 0 && t->files != NULL) close(t->fd);
    free(t->files);
    free(t->labels);
    free(t->text);
    free(t->tokens);
    memset(t, 0, sizeof *t);
}

/* ---- texts: labels --------------------------------------------------------------------------- */

/* Fit to be shown: 1 to TEXTS_MAX_LABEL bytes of UTF-8 without control characters. */
static TOOL_UNUSED bool texts_label_ok(const char *name, size_t size)
{
    size_t at = 0, n;

    for (; at < size; at += n)
        if ((n = tool_visible(name + at, size - at)) == 0) return false;
    return size > 0 && size <= TEXTS_MAX_LABEL;
}

/* The number of a label, a new one if need be. */
static TOOL_UNUSED bool texts__label(texts *t, const char *name, size_t size, uint32_t *label,
                                     tool_error *err)
{
    char shown[TOOL_QUOTE];
    size_t k;

    for (k = 0; k < t->n_labels; k++)
        if (strlen(t->labels[k]) == size && memcmp(t->labels[k], name, size) == 0) break;
    *label = (uint32_t)k;
    if (k < t->n_labels) return true;
    if (!texts_label_ok(name, size))
        return tool_fail(err, "the label \"%s\" is not 1 to %d printable characters",
                         tool_quote(shown, name, size), TEXTS_MAX_LABEL);
    if (k == TEXTS_MAX_LABELS)
        return tool_fail(err, "more than %d labels: is \"%s\" one?", TEXTS_MAX_LABELS,
                         tool_quote(shown, name, size));
    if (!tool_grow(&t->labels, &t->label_capacity, (uint64_t)k + 1, sizeof *t->labels, err) ||
        (t->labels[k] = tool_copy(name, size, err)) == NULL) return false;
    t->n_labels++;
    return true;
}

/* The name of the file up to the first dot. */
static TOOL_UNUSED bool texts__file_label(texts *t, text_file *file, tool_error *err)
{
    const char *name = tool_base_name(file->path);
    size_t size = strcspn(name, ".");

    if (file->label != TEXTS_NO_LABEL) return true;
    return texts__label(t, name, size > 0 ? size : strlen(name), &file->label, err);
}

/* ---- texts: bytes ---------------------------------------------------------------------------- */

/* Makes `need` unread bytes lie behind each other, or all that the file still has. */
static TOOL_UNUSED bool texts__fill(texts *t, size_t need, tool_error *err)
{
    const uint64_t size = t->files[t->file].size;
    size_t n = t->have - t->from;
    uint64_t more = size - t->at;

    if (n >= need || more == 0) return true;
    memmove(t->text, t->text + t->from, n);
    t->from = 0;
    t->have = n;
    if (!tool_grow(&t->text, &t->text_capacity, 2 * (uint64_t)need, 1, err)) return false;
    if (more > t->text_capacity - n) more = t->text_capacity - n;
    if (!tool_pread(t->fd, t->text + n, more, t->at, err)) return false;
    t->have += (size_t)more;
    t->at += more;
    return true;
}

static TOOL_UNUSED void texts__took(texts *t, size_t n)
{
    t->from += n;
    t->bytes_done += n;
}

/* Opens the next file. Its number in every pass is made from its name and how it begins. */
static TOOL_UNUSED bool texts__start(texts *t, tool_error *err)
{
    const text_file *file = &t->files[t->file];
    const char *name = tool_base_name(file->path);
    struct stat status;
    size_t n;

    t->fd = tool__open(file->path, &status, err);
    if (t->fd < 0) return false;
    if ((uint64_t)status.st_size != file->size)
        return tool_fail(err, "has changed while it was being read");
    t->at = t->line = 0;
    t->from = t->have = t->taken = t->n_tokens = 0;
    t->file_windows = 0;
    t->inside = t->ended = false;
    t->line_start = true;
    if (!tool_grow(&t->text, &t->text_capacity, 8192, 1, err) || !texts__fill(t, 4096, err))
        return false;
    n = t->have < 4096 ? t->have : 4096;
    t->id = tool_hash(name, strlen(name)) ^ corpus_random(tool_hash(t->text, n), 0, n);
    memset(&t->now, 0, sizeof t->now);
    t->now.file = (uint32_t)t->file;
    t->now.label = file->label;
    t->now.document = t->id;
    return true;
}

static TOOL_UNUSED void texts__stop(texts *t)
{
    close(t->fd);
    t->fd = -1;
    t->bytes_done += t->files[t->file].size - t->at + (t->have - t->from);
    t->file++;
}

/* ---- texts: documents ------------------------------------------------------------------------ */

static TOOL_UNUSED bool texts__encode(texts *t, const char *text, size_t n, bool last,
                                      tool_error *err)
{
    const unsigned flags = (t->inside ? MONET_NO_PREFIX : MONET_ADD_BOS) |
                           (last ? MONET_ADD_EOS : 0);

    if (t->taken > 0) {
        t->n_tokens -= t->taken;
        memmove(t->tokens, t->tokens + t->taken, t->n_tokens * sizeof *t->tokens);
        t->taken = 0;
    }
    t->inside = !last;
    return corpus_encode(t->config.tokenizer, text, n, flags, &t->tokens, &t->token_capacity,
                         &t->n_tokens, err);
}

/* The next piece of a text file, of whole documents or of a long one as corpus.h cuts them. */
static TOOL_UNUSED bool texts__piece(texts *t, tool_error *err)
{
    const char *text, *feed;
    size_t n, have, end;
    bool last, all;

    if (!texts__fill(t, CORPUS_PIECE + 2, err)) return false;
    text = t->text + t->from;
    have = t->have - t->from;
    all = t->at == t->files[t->file].size;
    feed = tool_form_feed(text, have, t->line_start, all);
    end = feed != NULL ? (size_t)(feed - text) : have;
    last = end <= CORPUS_PIECE && (feed != NULL || all);
    n = last ? end : corpus_cut(text, CORPUS_PIECE);
    if ((n > 0 || t->inside) && !texts__encode(t, text, n, last, err)) return false;
    t->line_start = last || text[n - 1] == '\n';
    if (last && feed != NULL) n += n + 1 < have ? 2 : 1;
    texts__took(t, n);
    t->ended = all && n == have;
    return true;
}

/* The text of a line, its label and score into `now`. Parsed in place: free doc before going on. */
static TOOL_UNUSED bool texts__parse(texts *t, json_doc *doc, char *line, size_t size,
                                     const char **text, size_t *text_size, tool_error *err)
{
    text_file *file = &t->files[t->file];
    const char *label = NULL;
    size_t label_size = 0;
    double score = NAN;

    if (!json_parse(doc, line, size, err)) return false;
    if (!json_get_string(doc, 0, "text", text, text_size, err) ||
        !json_get_string(doc, 0, "label", &label, &label_size, err) ||
        !json_get_double(doc, 0, "score", -1e9, 1e9, &score, err)) return false;
    if (*text == NULL) return tool_fail(err, "\"text\" is missing");
    t->now.has_score = score == score;
    t->now.score = t->now.has_score ? score : 0;
    if (label != NULL) return texts__label(t, label, label_size, &t->now.label, err);
    if (!texts__file_label(t, file, err)) return false;
    t->now.label = file->label;
    return true;
}

/* Bytes of the next line, its end included. */
static TOOL_UNUSED bool texts__line_size(texts *t, size_t *size, tool_error *err)
{
    size_t need = CORPUS_PIECE, have;
    const char *end;

    for (;; need *= 2) {
        if (!texts__fill(t, need, err)) return false;
        have = t->have - t->from;
        end = memchr(t->text + t->from, '\n', have);
        *size = end != NULL ? (size_t)(end - (t->text + t->from)) + 1 : have;
        if (*size > CORPUS_MAX_LINE) return tool_fail(err, "more than 128 MiB");
        if (end != NULL || t->at == t->files[t->file].size) return true;
    }
}

/* Reads lines until one has a text, whose tokens become the stream; with encode false only what its
   label is. *any: whether there was one. */
static TOOL_UNUSED bool texts__line(texts *t, bool encode, bool *any, tool_error *err)
{
    json_doc doc = {NULL, NULL, 0, false};
    const char *text = NULL;
    size_t size, at, n, text_size = 0, blank;
    char place[48];
    bool ok = true;

    for (*any = false; ok && !*any; texts__took(t, size)) {
        if (!texts__line_size(t, &size, err)) return false;
        if (size == 0) return true;
        for (blank = 0; blank < size && strchr(" \t\r\n", t->text[t->from + blank]) != NULL &&
                        t->text[t->from + blank] != '\0';) blank++;
        t->now.document = corpus_random(t->id, 0, ++t->line);
        if (blank == size) continue;
        ok = texts__parse(t, &doc, t->text + t->from, size, &text, &text_size, err);
        *any = ok && text_size > 0;
        t->n_tokens = t->taken = 0;
        t->now.first = 0;
        t->inside = false;
        for (at = 0; ok && encode && at < text_size; at += n) {
            bool last = text_size - at <= CORPUS_PIECE;
            n = last ? text_size - at : corpus_cut(text + at, CORPUS_PIECE);
            ok = texts__encode(t, text + at, n, last, err);
        }
        json_free(&doc);
        text = NULL;
        text_size = 0;
    }
    t->ended = true;
    snprintf(place, sizeof place, "line %llu", (unsigned long long)t->line);
    return ok || tool_prefix(err, place);
}

/* ---- texts: windows -------------------------------------------------------------------------- */

/* Gives out the next n tokens. */
static TOOL_UNUSED void texts__give(texts *t, int32_t n, text_window *window)
{
    *window = t->now;
    window->tokens = t->tokens + t->taken;
    window->n = n;
    t->taken += (size_t)n;
    t->now.first += n;
    t->windows++;
    t->file_windows++;
}

/* Reads on until tokens for a window are there (*n of them), or the file is at its end (0). */
static TOOL_UNUSED bool texts__more(texts *t, int32_t *n, tool_error *err)
{
    const text_file *file = &t->files[t->file];
    const size_t whole = (size_t)t->config.window;
    bool any = true;

    for (*n = 0; any;) {
        const size_t left = t->n_tokens - t->taken;
        *n = left >= whole ? t->config.window : t->ended && left >= 2 ? (int32_t)left : 0;
        if (*n > 0) return true;
        if (file->lines) {
            if (!texts__line(t, true, &any, err)) return false;
        } else {
            any = !t->ended;
            if (any && !texts__piece(t, err)) return false;
        }
    }
    return true;
}

/* The next window; window->n is 0 behind the last one. */
static TOOL_UNUSED bool texts_next(texts *t, text_window *window, tool_error *err)
{
    int32_t n = 0;

    memset(window, 0, sizeof *window);
    while (t->file < t->n_files) {
        bool enough = t->config.max_windows > 0 && t->fd >= 0 &&
                      t->file_windows >= t->config.max_windows;
        if ((t->fd < 0 && !texts__start(t, err)) || (!enough && !texts__more(t, &n, err)))
            return tool_prefix(err, t->files[t->file].path);
        if (!enough && n > 0) {
            texts__give(t, n, window);
            return true;
        }
        texts__stop(t);
    }
    return true;
}

/* Goes on behind the first `windows` windows of all, to resume a pass of the same hash. It reads
   what lies before. */
static TOOL_UNUSED bool texts_seek(texts *t, uint64_t windows, tool_error *err)
{
    text_window window;

    while (t->windows < windows) {
        if (!texts_next(t, &window, err)) return false;
        if (window.n == 0)
            return tool_fail(err, "the texts have %llu windows, not %llu",
                             (unsigned long long)t->windows, (unsigned long long)windows);
        if (t->config.stop != NULL && *t->config.stop) return tool_fail(err, "stopped");
    }
    return true;
}

/* ---- texts: opening -------------------------------------------------------------------------- */

/* All labels are known before the first window: .jsonl files are read once for that. It also finds
   lines that are wrong before the long work. */
static TOOL_UNUSED bool texts__all_labels(texts *t, tool_error *err)
{
    bool ok = true, any = true;

    for (t->file = 0; ok && t->file < t->n_files; t->file++) {
        int64_t n = 0; /* each line gives a window at least */
        if (!t->files[t->file].lines) {
            ok = texts__file_label(t, &t->files[t->file], err);
        } else {
            ok = texts__start(t, err);
            for (any = true; ok && any && (t->config.max_windows == 0 ||
                                           n < t->config.max_windows); n++)
                ok = texts__line(t, false, &any, err) &&
                     (t->config.stop == NULL || !*t->config.stop || tool_fail(err, "stopped"));
            if (t->fd >= 0) close(t->fd);
            t->fd = -1;
        }
        if (!ok) tool_prefix(err, t->files[t->file].path);
    }
    t->file = 0;
    t->bytes_done = 0;
    return ok;
}

/* Takes over the files that were found. */
static TOOL_UNUSED bool texts__files(texts *t, corpus_files *found, tool_error *err)
{
    static const char ending[] = ".jsonl";
    const size_t n = sizeof ending - 1;
    size_t k, size;

    if (found->n >= UINT32_MAX) return tool_fail(err, "too many files");
    t->files = tool_alloc(found->n, sizeof *t->files, err);
    if (t->files == NULL) return false;
    for (k = 0; k < found->n; k++) {
        text_file *file = &t->files[t->n_files++];
        file->path = found->items[k].path;
        file->size = found->items[k].size;
        file->label = TEXTS_NO_LABEL;
        size = strlen(file->path);
        file->lines = size > n && strcmp(file->path + size - n, ending) == 0;
        t->bytes += file->size;
        found->items[k].path = NULL;
    }
    t->hash = corpus_random(found->hash, (uint64_t)t->config.window,
                            (uint64_t)t->config.max_windows);
    return true;
}

/* After a failure there is nothing to close. */
static TOOL_UNUSED bool texts_open(texts *t, const texts_config *config, tool_error *err)
{
    corpus_files found;
    corpus_config find;
    size_t k;
    bool ok = true;

    memset(t, 0, sizeof *t);
    t->config = *config;
    t->fd = -1;
    if (config->tokenizer == NULL)
        return tool_fail(err, "the model holds no tokenizer to read texts with");
    if (config->window < 2) return tool_fail(err, "a window needs at least 2 tokens");
    if (config->n_paths == 0) return tool_fail(err, "no text is given");
    memset(&find, 0, sizeof find);
    find.train_match = config->match;
    find.tokenizer = config->tokenizer;
    memset(&found, 0, sizeof found);
    for (k = 0; ok && k < config->n_paths; k++)
        ok = corpus__add(&found, &find, config->paths[k], false, 0, err);
    if (ok && found.n == 0)
        ok = tool_fail(err, "%.300s: holds no file%s", config->paths[0],
                       config->match != NULL ? " of such a name" : "");
    ok = ok && corpus__describe(&found, &find, err) && texts__files(t, &found, err) &&
         texts__all_labels(t, err);
    corpus_files_free(&found);
    if (!ok) texts_close(t);
    return ok;
}

#endif /* TOOL_TEXTS_H */
