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
       texts_close(&t);                                         after a failure, too

   Include it after monet.h, common.h, json.h and tokenizer_files.h.                            */
#ifndef TOOL_TEXTS_H
#define TOOL_TEXTS_H

#include "corpus.h"

#define TEXTS_MAX_LABELS 4096
#define TEXTS_MAX_LABEL 255 /* bytes of a label */

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
    uint32_t label;
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
} texts;

static TOOL_UNUSED bool texts_open(texts *t, const texts_config *config, tool_error *err)
{
    memset(t, 0, sizeof *t);
    t->config = *config;
    return tool_fail(err, "texts_open: not written yet");
}

/* The next window; window->n is 0 behind the last one. */
static TOOL_UNUSED bool texts_next(texts *t, text_window *window, tool_error *err)
{
    (void)t;
    memset(window, 0, sizeof *window);
    return tool_fail(err, "texts_next: not written yet");
}

/* Goes on behind the first `windows` windows of all, to resume a pass of the same hash. */
static TOOL_UNUSED bool texts_seek(texts *t, uint64_t windows, tool_error *err)
{
    text_window window;

    while (t->windows < windows)
        if (!texts_next(t, &window, err) || window.n == 0) return false;
    return true;
}

static TOOL_UNUSED void texts_close(texts *t) { memset(t, 0, sizeof *t); }

#endif /* TOOL_TEXTS_H */
