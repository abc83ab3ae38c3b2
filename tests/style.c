/* style.c: holds the files of this repository to their style.

   cc -O2 -pthread -I. tests/style.c -o style -lm && ./style .

   The argument is the root of the tree (default "."). Every rule is one check per file, or one for
   the tree; each fault is printed with its file and line. The last line is
   "style: N passed, N failed", and the exit status 1 if anything failed.

   monet.h and all .c, .h and .sh: lines of at most 100 columns, no tabs, no blanks at the end of a
   line, banners padded to column 100, no notes to do something later, functions of at most 130
   lines, nine of ten within 60. Every .c says in its first comment how to build it. monet.h: its
   first lines, its top comment, the quick start, names, and calls that a library must not make. */
#define _FILE_OFFSET_BITS 64
#define _XOPEN_SOURCE 700
#include "test.h"
#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>

#define MAX_COLUMNS 100
#define MAX_FUNCTION 130
#define MAX_P90 60
#define MAX_MEDIAN 20
#define MAX_TOP_COMMENT 200
#define MIN_API_COMMENT 50           /* percent of the lines */
#define MAX_FILE (1024L * 1024 * 1024)
#define MAX_DEPTH 16                 /* of folders */
#define SHOWN 5                      /* faults of one rule in one file */

/* ---- checks ---------------------------------------------------------------------------------- */

static int faults;                   /* of the check that goes on */

static void begin_check(void)
{
    faults = 0;
}

static void fault(const char *path, int line, const char *format, ...)
{
    va_list list;
    if (++faults > SHOWN) return;
    if (line > 0) printf("FAIL %s:%d: ", path, line);
    else printf("FAIL %s: ", path);
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    printf("\n");
}

static void end_check(const char *path)
{
    if (faults > SHOWN) printf("FAIL %s: %d more of these\n", path, faults - SHOWN);
    if (faults) test_counts.failed++;
    else test_counts.passed++;
}

static void *allocate(size_t size)
{
    void *p = calloc(size ? size : 1, 1);
    if (!p) {
        fprintf(stderr, "style: out of memory\n");
        exit(2);
    }
    return p;
}

/* ---- files ----------------------------------------------------------------------------------- */

enum kind { CODE, COMMENT, STRING, DIRECTIVE };

struct source {
    const char *path;                /* from the root of the tree */
    char *text;                      /* ends with a 0 that is not counted */
    size_t size;
    unsigned char *kind;             /* one enum kind a byte; NULL: not C */
};

struct line {
    const char *text;                /* without its newline */
    size_t size, start;
    int number;
};

static char *join(const char *folder, const char *name)
{
    size_t size = strlen(folder) + strlen(name) + 2;
    char *path = allocate(size);
    if (*folder) snprintf(path, size, "%s/%s", folder, name);
    else snprintf(path, size, "%s", name);
    return path;
}

static int ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

static int starts_with(const char *s, const char *start)
{
    return !strncmp(s, start, strlen(start));
}

static int is_c(const char *path)
{
    return ends_with(path, ".c") || ends_with(path, ".h");
}

/* Before the first call line->number is 0. */
static int next_line(const struct source *s, struct line *line)
{
    size_t start = line->number ? line->start + line->size + 1 : 0;
    const char *end;
    if (start >= s->size) return 0;
    end = memchr(s->text + start, '\n', s->size - start);
    line->text = s->text + start;
    line->start = start;
    line->size = end ? (size_t)(end - line->text) : s->size - start;
    line->number++;
    return 1;
}

static int line_of(const struct source *s, size_t at)
{
    int number = 1;
    size_t i;
    for (i = 0; i < at; i++) number += s->text[i] == '\n';
    return number;
}

static int line_is(const struct line *line, const char *text)
{
    return line->size == strlen(text) && !memcmp(line->text, text, line->size);
}

/* The first place of the word at or after `at`, or s->size. */
static size_t find_bytes(const struct source *s, size_t at, const char *word)
{
    const size_t n = strlen(word);
    while (at + n <= s->size) {
        const char *p = memchr(s->text + at, word[0], s->size - at - n + 1);
        if (!p) break;
        at = (size_t)(p - s->text);
        if (!memcmp(p, word, n)) return at;
        at++;
    }
    return s->size;
}

static void free_source(struct source *s)
{
    free(s->text);
    free(s->kind);
    memset(s, 0, sizeof *s);
}

static int read_source(struct source *s, const char *root, const char *path)
{
    char *full = join(root, path);
    FILE *f = fopen(full, "rb");
    long size = -1;
    memset(s, 0, sizeof *s);
    s->path = path;
    free(full);
    if (!f) return 0;
    if (fseek(f, 0, SEEK_END) == 0) size = ftell(f);
    if (size < 0 || size > MAX_FILE || fseek(f, 0, SEEK_SET) != 0) {
        fclose(f);
        return 0;
    }
    s->size = (size_t)size;
    s->text = allocate(s->size + 1);
    s->size = fread(s->text, 1, s->size, f);
    fclose(f);
    return s->size == (size_t)size;
}

/* ---- C text ---------------------------------------------------------------------------------- */

/* The end of the comment that begins at i. */
static size_t skip_comment(const char *t, size_t i, size_t n)
{
    if (t[i + 1] == '/') {
        while (i < n && t[i] != '\n') i++;
        return i;
    }
    for (i += 2; i < n; i++)
        if (t[i] == '*' && t[i + 1] == '/') return i + 2;
    return n;
}

/* The end of the string or character that begins at i. */
static size_t skip_string(const char *t, size_t i, size_t n)
{
    const char quote = t[i++];
    for (; i < n && t[i] != quote && t[i] != '\n'; i++)
        if (t[i] == '\\' && i + 1 < n) i++;
    return i < n ? i + 1 : n;
}

/* A directive ends with its line, unless the line ends with a backslash. */
static void classify(struct source *s)
{
    const char *t = s->text;
    size_t i = 0, n = s->size, end;
    int fresh = 1, directive = 0;                /* fresh: nothing but blanks on this line yet */
    s->kind = allocate(n + 1);
    while (i < n) {
        enum kind kind = directive ? DIRECTIVE : CODE;
        end = i + 1;
        if (t[i] == '/' && (t[i + 1] == '*' || t[i + 1] == '/')) {
            kind = COMMENT;
            end = skip_comment(t, i, n);
        } else if (t[i] == '"' || t[i] == '\'') {
            kind = STRING;
            end = skip_string(t, i, n);
        } else if (t[i] == '#' && fresh) {
            kind = DIRECTIVE;
            directive = 1;
        } else if (t[i] == '\\' && t[i + 1] == '\n') {
            end = i + 2;
        }
        if (t[i] == '\n') fresh = 1, directive = 0;
        else if (t[i] != ' ' && kind != COMMENT) fresh = 0;
        memset(s->kind + i, (int)kind, end - i);
        i = end;
    }
}

static int is_word_character(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* A word, a number or one other character. */
struct token {
    const char *text;
    size_t size, start, end;
};

/* The next token of code at or after `at`; directives count as code if they are wanted. */
static int next_token(const struct source *s, size_t at, int directives, struct token *token)
{
    for (; at < s->size; at++) {
        const int wanted = s->kind[at] == CODE || (directives && s->kind[at] == DIRECTIVE);
        if (wanted && !strchr(" \t\n\\", s->text[at])) break;
    }
    if (at >= s->size) return 0;
    token->text = s->text + at;
    token->start = token->end = at;
    while (token->end < s->size && is_word_character(s->text[token->end])) token->end++;
    if (token->end == at) token->end++;
    token->size = token->end - at;
    return 1;
}

static int token_is(const struct token *token, const char *text)
{
    return token->size == strlen(text) && !memcmp(token->text, text, token->size);
}

static int is_name(const struct token *token)
{
    return is_word_character(token->text[0]) && (token->text[0] < '0' || token->text[0] > '9');
}

/* The comment at the very start of the file, lines of // included: its end, or 0. */
static size_t first_comment_end(const struct source *s)
{
    struct line line = {0};
    size_t end = 0;
    if (starts_with(s->text, "/*")) return skip_comment(s->text, 0, s->size);
    while (next_line(s, &line) && line.size >= 2 && !memcmp(line.text, "//", 2))
        end = line.start + line.size;
    return end;
}

/* ---- rules for lines ------------------------------------------------------------------------- */

static void check_width(const struct source *s)
{
    struct line line = {0};
    begin_check();
    while (next_line(s, &line))
        if (line.size > MAX_COLUMNS)
            fault(s->path, line.number, "%zu columns, at most %d", line.size, MAX_COLUMNS);
    end_check(s->path);
}

static void check_blanks(const struct source *s)
{
    struct line line = {0};
    begin_check();
    while (next_line(s, &line)) {
        if (memchr(line.text, '\t', line.size)) fault(s->path, line.number, "a tab");
        if (memchr(line.text, '\r', line.size)) fault(s->path, line.number, "a carriage return");
        if (line.size && line.text[line.size - 1] == ' ')
            fault(s->path, line.number, "blanks at the end of the line");
    }
    if (s->size && s->text[s->size - 1] != '\n') fault(s->path, 0, "no newline at the end");
    end_check(s->path);
}

/* The words are written in two halves here, so that this file keeps its own rule. */
static void check_notes(const struct source *s)
{
    static const char *const words[] = {"TO" "DO", "FIX" "ME", "XX" "X"};
    size_t i, at;
    begin_check();
    for (i = 0; i < sizeof words / sizeof words[0]; i++) {
        const size_t n = strlen(words[i]);
        for (at = 0; (at = find_bytes(s, at, words[i])) < s->size; at += n)
            if (!(at && is_word_character(s->text[at - 1]))
                && !is_word_character(s->text[at + n]))
                fault(s->path, line_of(s, at), "%s", words[i]);
    }
    end_check(s->path);
}

/* A banner that is a whole comment ends at column 100; one whose comment goes on may also leave
   out the " * /" there and end at column 97. */
static void check_banners(const struct source *s)
{
    struct line line = {0};
    begin_check();
    while (next_line(s, &line)) {
        int closed;
        if (line.size < 8 || memcmp(line.text, "/* ---- ", 8) != 0) continue;
        if (s->kind[line.start] != COMMENT) continue;
        closed = !memcmp(line.text + line.size - 2, "*/", 2);
        if (line.size == MAX_COLUMNS || (!closed && line.size == MAX_COLUMNS - 3)) continue;
        fault(s->path, line.number, "banner of %zu columns, expected %s", line.size,
              closed ? "100" : "97 or 100");
    }
    end_check(s->path);
}

/* Rules of this repository's machines: no path of them belongs into a file. The words are halved
   as above. `dot`: whether files of top-level dot folders are held to it too. */
static void check_paths(const struct source *s, const char *full_root)
{
    static const struct { const char *word; int dot; } words[] = {
        {"/wo" "rk/", 1}, {"sha" "red/", 0}, {"/ro" "ot/", 1}, {"/ho" "me/", 1},
        {"/tmp/no" "tes", 1},
    };
    size_t i, at;
    begin_check();
    for (i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (s->path[0] == '.' && !words[i].dot) continue;
        at = find_bytes(s, 0, words[i].word);
        if (at < s->size) fault(s->path, line_of(s, at), "a path: %s", words[i].word);
    }
    if (strlen(full_root) > 5) {
        at = find_bytes(s, 0, full_root);
        if (at < s->size) fault(s->path, line_of(s, at), "the path of this tree");
    }
    end_check(s->path);
}

static void check_cc_line(const struct source *s)
{
    const size_t end = first_comment_end(s);
    struct source path = {0};
    struct line line = {0};
    int found = 0;
    begin_check();
    while (!found && next_line(s, &line) && line.start < end) {
        size_t i = 0;
        while (i < line.size && strchr(" */", line.text[i])) i++;
        if (line.size - i < 3 || memcmp(line.text + i, "cc ", 3) != 0) continue;
        path.text = s->text + line.start;
        path.size = line.size;
        found = find_bytes(&path, 0, s->path) < path.size;
    }
    if (!found) fault(s->path, 1, "no line `cc ... %s` in the first comment", s->path);
    end_check(s->path);
}

/* ---- rules for functions --------------------------------------------------------------------- */

struct lengths {
    int *lines;
    size_t count, capacity;
};

static void add_length(struct lengths *l, int lines)
{
    if (l->count == l->capacity) {
        int *grown = allocate((l->capacity * 2 + 64) * sizeof *grown);
        if (l->count) memcpy(grown, l->lines, l->count * sizeof *grown);
        free(l->lines);
        l->lines = grown;
        l->capacity = l->capacity * 2 + 64;
    }
    l->lines[l->count++] = lines;
}

/* The name before the first parenthesis of a definition. */
static struct token function_name(const struct source *s, size_t start)
{
    struct token name = {"?", 1, 0, 0}, token;
    size_t at = start;
    while (next_token(s, at, 0, &token) && !token_is(&token, "(")) {
        if (is_name(&token)) name = token;
        at = token.end;
    }
    return name;
}

static void end_function(const struct source *s, size_t start, int lines, struct lengths *l)
{
    const struct token name = function_name(s, start);
    add_length(l, lines);
    if (lines > MAX_FUNCTION)
        fault(s->path, line_of(s, start), "%.*s has %d lines, at most %d", (int)name.size,
              name.text, lines, MAX_FUNCTION);
}

/* A definition is text outside all braces that ends with `)` and a brace. A brace in column 0
   closes whatever is open: so halves of an #if with a brace each do no harm. extern "C" { is no
   brace at all. */
static void check_functions(const struct source *s, struct lengths *l)
{
    size_t i, start = 0;
    int line = 1, depth = 0, first_line = 0, in_function = 0;
    char before = 0;                             /* the last character that is not blank */
    begin_check();
    for (i = 0; i < s->size; i++) {
        const char c = s->text[i];
        if (c == '\n') line++;
        if (s->kind[i] == STRING) before = '"';
        if (s->kind[i] != CODE || c == ' ' || c == '\n') continue;
        if (!depth && !first_line) start = i, first_line = line;
        if (c == '{' && (depth || before != '"')) {
            if (!depth) in_function = before == ')';
            depth++;
        }
        if (c == '}' && (i == 0 || s->text[i - 1] == '\n') && depth) depth = 1;
        if (c == '}' && depth && !--depth && in_function) {
            end_function(s, start, line - first_line + 1, l);
            in_function = 0;
        }
        if (!depth && strchr(";{}", c)) first_line = 0;
        before = c;
    }
    end_check(s->path);
}

static int by_value(const void *a, const void *b)
{
    const int x = *(const int *)a, y = *(const int *)b;
    return x < y ? -1 : x > y;
}

static void check_lengths(const char *name, struct lengths *l)
{
    int median, p90;
    if (!l->count) return;
    qsort(l->lines, l->count, sizeof *l->lines, by_value);
    median = l->lines[l->count / 2];
    p90 = l->lines[(l->count * 9 + 9) / 10 - 1];
    printf("%s: %zu functions, median %d lines, p90 %d, longest %d\n", name, l->count, median,
           p90, l->lines[l->count - 1]);
    begin_check();
    if (median > MAX_MEDIAN) fault(name, 0, "functions: median %d, at most %d", median, MAX_MEDIAN);
    if (p90 > MAX_P90) fault(name, 0, "functions: p90 %d, at most %d", p90, MAX_P90);
    end_check(name);
    free(l->lines);
    memset(l, 0, sizeof *l);
}

/* ---- rules for monet.h ----------------------------------------------------------------------- */

static int parse_number(const char **p, const char *end)
{
    int n = -1;
    for (; *p < end && **p >= '0' && **p <= '9' && n < 100000; (*p)++)
        n = (n < 0 ? 0 : n * 10) + (**p - '0');
    return n;
}

/* "1.2.3" anywhere in the first 12 lines. */
static int find_version(const struct source *s, int version[3])
{
    struct line line = {0};
    while (next_line(s, &line) && line.number <= 12) {
        const char *p = line.text, *end = line.text + line.size;
        while (p < end) {
            int i;
            for (i = 0; i < 3; i++) {
                version[i] = parse_number(&p, end);
                if (version[i] < 0 || (i < 2 && (p >= end || *p++ != '.'))) break;
            }
            if (i == 3) return 1;
            if (version[0] < 0) p++;
        }
    }
    return 0;
}

/* The number after `#define NAME `, or -1. */
static int defined_number(const struct source *s, const char *define)
{
    size_t at = find_bytes(s, 0, define);
    const char *p = s->text + at + strlen(define);
    return at < s->size ? parse_number(&p, s->text + s->size) : -1;
}

static void check_head(const struct source *s)
{
    static const char *const names[] = {
        "#define MONET_VERSION_MAJOR ", "#define MONET_VERSION_MINOR ",
        "#define MONET_VERSION_PATCH ",
    };
    struct source head = *s;
    struct line line = {0};
    int version[3], i;
    while (next_line(s, &line) && line.number <= 12) head.size = line.start + line.size;
    begin_check();
    if (!starts_with(s->text, "/* monet.h ")) fault(s->path, 1, "does not begin \"/* monet.h \"");
    if (find_bytes(&head, 0, "#define MONET_IMPLEMENTATION") == head.size)
        fault(s->path, 1, "the first 12 lines do not say \"#define MONET_IMPLEMENTATION\"");
    if (!find_version(s, version)) fault(s->path, 1, "the first 12 lines give no version (0.0.0)");
    else
        for (i = 0; i < 3; i++)
            if (defined_number(s, names[i]) != version[i])
                fault(s->path, 0, "%s: found %d, the first lines say %d", names[i],
                      defined_number(s, names[i]), version[i]);
    end_check(s->path);
}

static void check_top_comment(const struct source *s)
{
    const size_t end = first_comment_end(s);
    const int lines = end ? line_of(s, end) : 0;
    begin_check();
    if (!end) fault(s->path, 1, "the file does not begin with a comment");
    if (lines > MAX_TOP_COMMENT)
        fault(s->path, 1, "top comment of %d lines, at most %d", lines, MAX_TOP_COMMENT);
    end_check(s->path);
}

/* The lines between the two marks, without four leading blanks, or fewer if the line is blank. */
static int extract_quick_start(const struct source *s, struct source *out)
{
    const size_t end = first_comment_end(s);
    struct line line = {0};
    int inside = 0;
    out->path = "quick start";
    out->text = allocate(end + 1);
    while (next_line(s, &line) && line.start < end) {
        size_t skip = 0;
        if (line_is(&line, "   ---- end ----") && inside) return 1;
        while (skip < 4 && skip < line.size && line.text[skip] == ' ') skip++;
        if (inside) {
            memcpy(out->text + out->size, line.text + skip, line.size - skip);
            out->size += line.size - skip;
            out->text[out->size++] = '\n';
            if (skip < 4 && skip < line.size)
                fault(s->path, line.number, "quick start: the line is not indented by 4");
        }
        if (line_is(&line, "   ---- examples/hello.c ----")) inside = 1;
    }
    return 0;
}

static void check_quick_start(const struct source *s, const char *root)
{
    struct source text = {0}, hello = {0};
    struct line a = {0}, b = {0};
    begin_check();
    if (!read_source(&hello, root, "examples/hello.c"))
        fault("examples/hello.c", 0, "cannot be read");
    else if (!extract_quick_start(s, &text))
        fault(s->path, 0, "no quick start between `   ---- examples/hello.c ----` and "
              "`   ---- end ----` in the top comment");
    else if (text.size != hello.size || memcmp(text.text, hello.text, text.size) != 0) {
        int more_a, more_b;
        do {
            more_a = next_line(&text, &a);
            more_b = next_line(&hello, &b);
        } while (more_a && more_b && a.size == b.size && !memcmp(a.text, b.text, a.size));
        fault("examples/hello.c", b.number, "differs from the quick start in %s", s->path);
    }
    end_check(s->path);
    free_source(&text);
    free_source(&hello);
}

/* What a library must not call: it would end, print, read the environment or depend on the
   locale of the program it lives in. */
static void check_calls(const struct source *s)
{
    static const char *const names[] = {
        "printf", "fprintf", "sprintf", "vprintf", "vfprintf", "vsprintf", "puts", "putchar",
        "perror", "exit", "_exit", "abort", "getenv", "secure_getenv", "strtod", "strtof", "atof",
        "rand", "srand", "assert", "setlocale", "signal", "system", "popen",
    };
    struct token token, next;
    size_t at = 0, i;
    begin_check();
    for (; next_token(s, at, 1, &token); at = token.end) {
        if (!is_name(&token) || !next_token(s, token.end, 1, &next) || !token_is(&next, "("))
            continue;
        for (i = 0; i < sizeof names / sizeof names[0]; i++)
            if (token_is(&token, names[i]))
                fault(s->path, line_of(s, token.start), "calls %s", names[i]);
    }
    end_check(s->path);
}

/* ---- rules for the API of monet.h ------------------------------------------------------------ */

/* Where the implementation begins, or the end of the file. */
static size_t border_of(const struct source *s)
{
    struct line line = {0};
    while (next_line(s, &line))
        if (line.size && line.text[0] == '#' && s->kind[line.start] == DIRECTIVE
            && (starts_with(line.text, "#ifdef MONET_IMPLEMENTATION")
                || starts_with(line.text, "#if defined(MONET_IMPLEMENTATION)")))
            return line.start;
    return s->size;
}

static void check_name(const struct source *s, const struct token *name, const char *what)
{
    const int ours = name->size > 6 && (!memcmp(name->text, "monet_", 6)
                                        || !memcmp(name->text, "MONET_", 6));
    const int private_name = name->size > 6 && !memcmp(name->text, "monet__", 7);
    if (!ours || private_name)
        fault(s->path, line_of(s, name->start), "%s '%.*s' is not called %s...", what,
              (int)name->size, name->text, what[0] == 'm' || what[0] == 'c' ? "MONET_" : "monet_");
}

/* After the word typedef: the name in (*name), or the last one before the semicolon, braces,
   brackets and parameters left out. */
static void check_typedef(const struct source *s, size_t at, size_t end)
{
    struct token token, name = {"?", 1, at, at};
    int depth = 0, pointer = 0;
    for (; next_token(s, at, 0, &token) && token.start < end; at = token.end) {
        const char c = token.text[0];
        if (c == ';' && !depth) break;
        if (c == '*' && depth == 1 && s->text[token.start - 1] == '(') pointer = 1;
        else if (is_name(&token) && (!depth || pointer == 1)) {
            name = token;
            if (pointer) break;
        }
        if (strchr("([{", c)) depth++;
        if (strchr(")]}", c)) depth--;
    }
    check_name(s, &name, "type");
}

/* After the brace of an enum: the first name in it, and the first after each comma. */
static void check_enum(const struct source *s, size_t at, size_t end)
{
    struct token token;
    int depth = 0, first = 1;
    for (; next_token(s, at, 0, &token) && token.start < end; at = token.end) {
        const char c = token.text[0];
        if (c == '}' && !depth) break;
        if (first && is_name(&token)) check_name(s, &token, "constant");
        first = c == ',' && !depth;
        if (strchr("([{", c)) depth++;
        if (strchr(")]}", c)) depth--;
    }
}

static void check_struct_or_enum(const struct source *s, const struct token *word, size_t end)
{
    struct token next;
    if (!next_token(s, word->end, 0, &next)) return;
    if (is_name(&next)) {
        check_name(s, &next, "tag");
        if (!next_token(s, next.end, 0, &next)) return;
    }
    if (token_is(word, "enum") && token_is(&next, "{")) check_enum(s, next.end, end);
}

static void check_macros(const struct source *s, size_t end)
{
    struct line line = {0};
    while (next_line(s, &line) && line.start < end) {
        struct token name;
        if (!starts_with(line.text, "#define ") || s->kind[line.start] != DIRECTIVE) continue;
        if (next_token(s, line.start + 7, 1, &name)) check_name(s, &name, "macro");
    }
}

static void check_public_names(const struct source *s)
{
    const size_t end = border_of(s);
    struct token token;
    size_t at = 0;
    begin_check();
    for (; next_token(s, at, 0, &token) && token.start < end; at = token.end) {
        if (token_is(&token, "MONET_API")) {
            const struct token name = function_name(s, token.end);
            check_name(s, &name, "function");
        } else if (token_is(&token, "typedef")) {
            check_typedef(s, token.end, end);
        } else if (token_is(&token, "struct") || token_is(&token, "enum")
                   || token_is(&token, "union")) {
            check_struct_or_enum(s, &token, end);
        }
    }
    check_macros(s, end);
    end_check(s->path);
}

/* Percent of the lines from `start` to `end` that hold a comment, blank lines left out. */
static int comment_share(const struct source *s, size_t start, size_t end)
{
    struct line line = {0};
    int lines = 0, comments = 0;
    while (next_line(s, &line) && line.start < end) {
        size_t i;
        int text = 0, comment = 0;
        if (line.start < start) continue;
        for (i = 0; i < line.size; i++) {
            if (line.text[i] == ' ') continue;
            text = 1;
            if (s->kind[line.start + i] == COMMENT) comment = 1;
        }
        lines += text;
        comments += comment;
    }
    return lines ? comments * 100 / lines : -1;
}

/* The API section begins after the top comment: the manual stands next to the functions. */
static void check_comments(const struct source *s)
{
    const size_t start = first_comment_end(s), border = border_of(s);
    const int api = comment_share(s, start, border), rest = comment_share(s, border, s->size);
    begin_check();
    printf("%s: comments on %d %% of the lines of the API", s->path, api);
    if (rest >= 0) printf(", %d %% of the implementation", rest);
    printf("\n");
    if (api < MIN_API_COMMENT)
        fault(s->path, 0, "API: comments on %d %% of the lines, at least %d", api, MIN_API_COMMENT);
    end_check(s->path);
}

/* ---- the tree -------------------------------------------------------------------------------- */

struct tree {
    const char *root;
    char *full_root;                 /* absolute, with a slash at its end */
    struct lengths header, others;
};

static void check_monet_h(const struct source *s, const char *root)
{
    check_head(s);
    check_top_comment(s);
    check_quick_start(s, root);
    check_calls(s);
    check_public_names(s);
    check_comments(s);
}

static int is_styled(const char *path)
{
    return !strcmp(path, "monet.h") || starts_with(path, "examples/") || starts_with(path, "tools/")
        || starts_with(path, "tests/");
}

static void check_file(struct tree *tree, const char *path)
{
    const int c = is_styled(path) && is_c(path), header = !strcmp(path, "monet.h");
    const int shell = is_styled(path) && ends_with(path, ".sh"), text = ends_with(path, ".md");
    struct source s;
    if (!read_source(&s, tree->root, path)) {
        begin_check();
        fault(path, 0, "cannot be read");
        end_check(path);
        free_source(&s);
        return;
    }
    check_paths(&s, tree->full_root);
    if (c || shell || text) check_notes(&s);
    if (c || shell) {
        check_width(&s);
        check_blanks(&s);
    }
    if (c) {
        classify(&s);
        check_banners(&s);
        check_functions(&s, header ? &tree->header : &tree->others);
        if (ends_with(path, ".c")) check_cc_line(&s);
    }
    if (header) check_monet_h(&s, tree->root);
    free_source(&s);
}

static int not_dot(const struct dirent *e)
{
    return strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
}

/* Top level: nothing but the entries that a reader is told about, and dot files. */
static void check_top_level(struct dirent **entries, int n)
{
    static const char *const names[] = {
        "monet.h", "README.md", "LICENSE", "examples", "tests", "tools",
    };
    const size_t count = sizeof names / sizeof names[0];
    int found[sizeof names / sizeof names[0]] = {0}, i;
    size_t k;
    begin_check();
    for (i = 0; i < n; i++) {
        for (k = 0; k < count && strcmp(entries[i]->d_name, names[k]) != 0; k++) {}
        if (k < count) found[k] = 1;
        else if (entries[i]->d_name[0] != '.')
            fault(entries[i]->d_name, 0, "does not belong to the top level");
    }
    for (k = 0; k < count; k++)
        if (!found[k]) fault(names[k], 0, "is missing");
    end_check(".");
}

/* In order of names, so that the output is always the same. Links are not followed. */
static void check_folder(struct tree *tree, const char *folder, int depth)
{
    char *full = join(tree->root, folder);
    struct dirent **entries = NULL;
    struct stat status;
    int n = scandir(full, &entries, not_dot, alphasort), i;
    free(full);
    if (n < 0) {
        begin_check();
        fault(folder, 0, "cannot be read: %s", strerror(errno));
        end_check(folder);
        return;
    }
    if (!depth) check_top_level(entries, n);
    for (i = 0; i < n; i++) {
        char *path = join(folder, entries[i]->d_name);
        full = join(tree->root, path);
        if (lstat(full, &status) == 0 && strcmp(path, ".git") != 0) {
            if (S_ISREG(status.st_mode)) check_file(tree, path);
            if (S_ISDIR(status.st_mode) && depth < MAX_DEPTH) check_folder(tree, path, depth + 1);
        }
        free(full);
        free(path);
        free(entries[i]);
    }
    free(entries);
}

int main(int argc, char **argv)
{
    struct tree tree = {0};
    char *real;
    tree.root = argc > 1 ? argv[1] : ".";
    real = realpath(tree.root, NULL);
    if (argc > 2 || !real) {
        fprintf(stderr, "usage: style [ROOT]; %s: %s\n", tree.root, strerror(errno));
        return 2;
    }
    tree.full_root = join(real, "");
    free(real);
    check_folder(&tree, "", 0);
    check_lengths("monet.h", &tree.header);
    check_lengths("examples, tests and tools", &tree.others);
    free(tree.full_root);
    return test_end("style");
}
