/* explore_common.h: what the subcommands of tools/explore.c share: the model, names of experts and
   tokens, arguments, output, Ctrl-C.

   Include it after monet.h and tokenizer_files.h. A subcommand is a function of this form (argv[0]
   is its name):

       static int explore_find(explore *e, int argc, char **argv)
       {
           static const explore_command about = {"find", "MODEL STATS", "what it does", "example"};
           const run_option options[] = {{"word", RUN_TEXT, ...}, EXPLORE_OPTIONS(e)};

           if (!explore_arguments(e, &about, options, sizeof options / sizeof options[0],
                                  argc, argv, files, 2, 2, &n_files, &status)) return status;
           ok = explore_open(e, files[0], &err) && find(e, ..., &err);
           explore_close(e);
           return explore_end(e, about.name, ok, &err);
       }

   Groups count from 0 in C and from 1 in all that people read.                                 */
#ifndef TOOL_EXPLORE_COMMON_H
#define TOOL_EXPLORE_COMMON_H

#include "common.h"

#include "corpus.h"
#include "json.h"
#include "run.h"

enum { EXPLORE_DONE = 0, EXPLORE_FAILED = 1, EXPLORE_USAGE = 2, EXPLORE_INTERRUPTED = 130,
       EXPLORE_PIPE_CLOSED = 141 }; /* exit codes */

#define EXPLORE_MAX_FILES 4096     /* arguments of a subcommand */
#define EXPLORE_MAX_TEXT (1 << 26) /* bytes of a text that is read whole */

typedef struct explore {
    monet_model           *model;     /* set by explore_open */
    const monet_arch      *arch;
    const monet_tokenizer *tokenizer; /* never NULL after explore_open */
    int32_t                n_groups;  /* routers */
    int64_t                threads;
    monet_mode             mode;
    monet_kernels          kernels;
    int32_t                batch;     /* most tokens of an eval, of explore_session; 0 = any */
    const char            *out;       /* --out: a file instead of the standard output */
    const char            *color;     /* --color: NULL = auto */
    bool                   quiet, help;
    bool                   pipe_closed; /* nobody reads the output any more: no error */
} explore;

/* Set by Ctrl-C; a second one ends the process. */
static TOOL_UNUSED volatile sig_atomic_t explore_interrupted;

/* ---- explore: Ctrl-C ------------------------------------------------------------------------- */

static TOOL_UNUSED void explore__on_interrupt(int number)
{
    explore_interrupted = 1;
    signal(number, tool__on_signal); /* the second one: removes temporary files and ends */
}

/* From here on Ctrl-C only sets explore_interrupted: what runs long has to look at it. */
static TOOL_UNUSED void explore_catch_interrupt(void)
{
    struct sigaction action;

    memset(&action, 0, sizeof action);
    action.sa_handler = explore__on_interrupt;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* ---- explore: arguments ---------------------------------------------------------------------- */

typedef struct explore_command {
    const char *name;    /* "find" */
    const char *files;   /* "MODEL STATS" */
    const char *what;    /* a few lines */
    const char *example; /* lines that can be pasted, without the leading blanks */
} explore_command;

/* The options that all subcommands have, at the end of their table. */
#define EXPLORE_OPTIONS(e)                                                                         \
    {"threads", RUN_WHOLE, &(e)->threads, 1, 256, "N", "threads (default: all processors)"},       \
    {"mode", RUN_MODE, &(e)->mode, 0, 0, "MODE", "exact or fast (default: exact)"},                \
    {"kernels", RUN_KERNELS, &(e)->kernels, 0, 0, "NAME",                                          \
     "instruction set: scalar, avx2, ... (default: the best here)"},                               \
    {"quiet", RUN_FLAG, &(e)->quiet, 0, 0, NULL, "no progress on standard error"},                 \
    {"help", RUN_FLAG, &(e)->help, 0, 0, NULL, "this text"}
#define EXPLORE_OUT(e)                                                                             \
    {"out", RUN_TEXT, (void *)&(e)->out, 0, 0, "FILE", "write there, not to standard output"}

#define EXPLORE_COLOR(e)                                                                           \
    {"color", RUN_TEXT, (void *)&(e)->color, 0, 0, "WHEN",                                         \
     "auto, always or never (default: on a terminal)"}

/* Whether the text output gets terminal colours. */
static TOOL_UNUSED bool explore_colors(const explore *e, bool *colors, tool_error *err)
{
    const char *when = e->color, *none = getenv("NO_COLOR"), *term = getenv("TERM");

    *colors = when != NULL && strcmp(when, "always") == 0;
    if (*colors || (when != NULL && strcmp(when, "never") == 0)) return true;
    if (when != NULL && strcmp(when, "auto") != 0)
        return tool_fail(err, "--color: '%.60s' is not auto, always or never", when);
    *colors = e->out == NULL && isatty(STDOUT_FILENO) == 1 && (none == NULL || *none == '\0') &&
              term != NULL && strcmp(term, "dumb") != 0;
    return true;
}

static TOOL_UNUSED void explore__print_help(const explore_command *about,
                                            const run_option *options, size_t n)
{
    printf("usage: explore %s %s [options]\n\n%s\n\n", about->name, about->files, about->what);
    run_print_options(options, n);
    printf("\nexample:\n%s\n", about->example);
}

/* The exit status if the arguments are wrong. */
static TOOL_UNUSED int explore_usage(const char *name, const tool_error *err)
{
    fprintf(stderr, "explore %s: %s\n", name, err->message);
    return EXPLORE_USAGE;
}

/* False: the subcommand ends with *status, which is 0 after --help and 2 if something is wrong. */
static TOOL_UNUSED bool explore_arguments(explore *e, const explore_command *about,
                                          const run_option *options, size_t n, int argc,
                                          char **argv, const char **files, size_t min_files,
                                          size_t max_files, size_t *n_files, int *status)
{
    tool_error err = {{0}};
    bool ok = run_parse(options, n, argc, argv, files, max_files, n_files, &err);

    if (ok && e->help) {
        explore__print_help(about, options, n);
        *status = fflush(stdout) == 0 ? EXPLORE_DONE : EXPLORE_FAILED;
        return false;
    }
    if (ok && *n_files < min_files)
        ok = tool_fail(&err, "needs %s (--help says more)", about->files);
    if (!ok) *status = explore_usage(about->name, &err);
    return ok;
}

/* The exit status; tells the failure, if it is one. */
static TOOL_UNUSED int explore_end(const explore *e, const char *name, bool ok,
                                   const tool_error *err)
{
    if (e->pipe_closed) return EXPLORE_PIPE_CLOSED;
    if (!ok) fprintf(stderr, "explore %s: %s\n", name, err->message);
    return explore_interrupted ? EXPLORE_INTERRUPTED : ok ? EXPLORE_DONE : EXPLORE_FAILED;
}

/* A number of an option that is a text, as --temperature 0.7. */
static TOOL_UNUSED bool explore_parse_real(const char *option, const char *text, double low,
                                           double high, double *out, tool_error *err)
{
    char *end; /* the locale is always "C" here: setlocale is never called */

    *out = strtod(text, &end);
    if (end != text && *end == '\0' && *out >= low && *out <= high) return true;
    return tool_fail(err, "--%s: '%.60s' is not a number from %g to %g", option, text, low, high);
}

/* ---- explore: model and sessions ------------------------------------------------------------- */

/* The model of this path, which has to hold a tokenizer. explore_close frees it. */
static TOOL_UNUSED bool explore_open(explore *e, const char *path, tool_error *err)
{
    if (!run_load(path, &e->model, err)) return false;
    e->arch = monet_model_arch(e->model);
    e->tokenizer = monet_model_tokenizer(e->model);
    e->n_groups = run_routers(e->arch);
    if (e->tokenizer == NULL)
        return tool_fail(err, "%.300s: holds no tokenizer to read a text with", path);
    return true;
}

static TOOL_UNUSED void explore_close(explore *e)
{
    monet_model_free(e->model);
    e->model = NULL;
}

enum { EXPLORE_ROUTING = 1, EXPLORE_ACTIVATIONS = 2, EXPLORE_LOGITS = 4 }; /* of each token */

/* A session for `context` tokens; e->batch of them, or all, may be evaluated at once. */
static TOOL_UNUSED bool explore_session(const explore *e, int32_t context, unsigned keep,
                                        monet_session **out, tool_error *err)
{
    monet_session_config config;

    memset(&config, 0, sizeof config);
    config.context = context;
    config.max_batch = e->batch > 0 && e->batch < context ? e->batch : context;
    config.mode = e->mode;
    config.kernels = e->kernels;
    config.capture_activations = (keep & EXPLORE_ACTIVATIONS) != 0;
    config.capture_routing = (keep & (EXPLORE_ROUTING | EXPLORE_ACTIVATIONS)) != 0;
    config.all_logits = (keep & EXPLORE_LOGITS) != 0;
    return run_open_session(e->model, e->threads, &config, out, err);
}

/* The message of a call on a session that failed. */
static TOOL_UNUSED bool explore_session_failed(const monet_session *session, tool_error *err)
{
    return tool_fail(err, "%s", monet_session_error(session)->message);
}

/* Tokens of a text in new memory. flags: MONET_ADD_BOS and so on. */
static TOOL_UNUSED int32_t *explore_encode(const explore *e, const char *text, size_t size,
                                           unsigned flags, size_t *n, tool_error *err)
{
    int32_t *tokens = NULL;
    size_t capacity = 0;

    *n = 0;
    if (corpus_encode(e->tokenizer, text, size, flags, &tokens, &capacity, n, err)) return tokens;
    free(tokens);
    tool_prefix(err, "the text");
    return NULL;
}

static TOOL_UNUSED double explore_dot(const monet_real *a, const monet_real *b, size_t n)
{
    double sum = 0;
    size_t k;

    for (k = 0; k < n; k++) sum += (double)a[k] * (double)b[k];
    return sum;
}

/* ---- explore: names of experts --------------------------------------------------------------- */

#define EXPLORE_NAME 96

static TOOL_UNUSED int32_t explore_first_layer(const explore *e, int32_t group)
{
    return group * e->arch->moe_groups;
}

static TOOL_UNUSED int32_t explore_last_layer(const explore *e, int32_t group)
{
    int32_t last = (group + 1) * e->arch->moe_groups - 1;

    return last < e->arch->n_layers ? last : e->arch->n_layers - 1;
}

/* "layers 0-3", or "layer 5" of a group of one. Returns out. */
static TOOL_UNUSED const char *explore_layers(const explore *e, char out[EXPLORE_NAME],
                                              int32_t group)
{
    int first = (int)explore_first_layer(e, group), last = (int)explore_last_layer(e, group);

    if (first == last) snprintf(out, EXPLORE_NAME, "layer %d", first);
    else snprintf(out, EXPLORE_NAME, "layers %d-%d", first, last);
    return out;
}

static TOOL_UNUSED int64_t explore_id(const explore *e, int32_t i, int32_t j)
{
    return (int64_t)i * e->arch->moe_experts + j;
}

/* "G1 E1304 (i=20, j=24; layers 0-3)". Returns out. */
static TOOL_UNUSED const char *explore_name(const explore *e, char out[EXPLORE_NAME], int32_t group,
                                            int32_t i, int32_t j)
{
    char layers[EXPLORE_NAME];

    snprintf(out, EXPLORE_NAME, "G%d E%lld (i=%d, j=%d; %.40s)", (int)group + 1,
             (long long)explore_id(e, i, j), (int)i, (int)j, explore_layers(e, layers, group));
    return out;
}

/* A number and what comes behind it; -1 if there is none, or it is larger than `most`. */
static TOOL_UNUSED int64_t explore__number(const char **at, int64_t most)
{
    const char *c = *at;
    int64_t value = 0;

    while (*c >= '0' && *c <= '9' && value <= most) value = value * 10 + (*c++ - '0');
    if (c == *at || value > most) return -1;
    *at = c;
    return value;
}

static TOOL_UNUSED bool explore__skip(const char **at, const char *word)
{
    size_t size = strlen(word);

    if (strncmp(*at, word, size) != 0) return false;
    *at += size;
    return true;
}

/* Group from "G1", from 0. */
static TOOL_UNUSED bool explore_parse_group(const explore *e, const char *text, int32_t *group,
                                            tool_error *err)
{
    const char *at = text;
    int64_t value;

    if (*at == 'G' || *at == 'g') at++;
    value = explore__number(&at, e->n_groups);
    if (value < 1 || *at != '\0')
        return tool_fail(err, "'%.60s' is no group: this model has G1 to G%d", text,
                         (int)e->n_groups);
    *group = (int32_t)value - 1;
    return true;
}

/* "G1:E1304", "G1 E1304", "G1:20,24" or "G1:i=20,j=24". */
static TOOL_UNUSED bool explore_parse_expert(const explore *e, const char *text, int32_t *group,
                                             int32_t *i, int32_t *j, tool_error *err)
{
    const int64_t N = e->arch->moe_experts;
    const char *at = text;
    int64_t g = -1, a = -1, b = -1;

    if (*at == 'G' || *at == 'g') {
        at++;
        g = explore__number(&at, e->n_groups);
    }
    if (*at == ':' || *at == ' ') at++;
    if (*at == 'E' || *at == 'e') {
        at++;
        a = explore__number(&at, N * N - 1);
        b = a < 0 ? -1 : a % N;
        a = a < 0 ? -1 : a / N;
    } else {
        explore__skip(&at, "i=");
        a = explore__number(&at, N - 1);
        while (*at == ',' || *at == ' ') at++;
        explore__skip(&at, "j=");
        b = explore__number(&at, N - 1);
    }
    if (g < 1 || a < 0 || b < 0 || *at != '\0')
        return tool_fail(err, "'%.60s' is no expert: write G1:E%lld or G1:%d,%d; this model has "
                         "G1 to G%d and E0 to E%lld", text, (long long)(N + 2), 1, 2,
                         (int)e->n_groups, (long long)(N * N - 1));
    *group = (int32_t)g - 1;
    *i = (int32_t)a;
    *j = (int32_t)b;
    return true;
}

/* ---- explore: names of tokens ---------------------------------------------------------------- */

/* Columns that text takes on a terminal, as far as one column a character is right. */
static TOOL_UNUSED int explore_width(const char *text, size_t size)
{
    int width = 0;
    size_t k;

    for (k = 0; k < size; k++) width += ((unsigned char)text[k] & 0xC0) != 0x80;
    return width;
}

/* Appends text so that a terminal shows it and nothing else: line ends as \n, other control
   characters and broken UTF-8 as \xNN; `quote` is escaped too, 0 = none.                       */
static TOOL_UNUSED void explore_put_safe(tool_buffer *out, const char *bytes, size_t size,
                                         char quote)
{
    const unsigned char *p = (const unsigned char *)bytes;
    size_t at, n;

    for (at = 0; at < size; at += n > 0 ? n : 1) {
        n = tool_visible(p + at, size - at);
        if (p[at] == '\n') tool_put(out, "\\n", 2);
        else if (p[at] == '\t') tool_put(out, "\\t", 2);
        else if (quote != 0 && (p[at] == (unsigned char)quote || p[at] == '\\'))
            tool_putf(out, "\\%c", p[at]);
        else if (n == 0) tool_putf(out, "\\x%02X", p[at]);
        else tool_put(out, p + at, n);
    }
}

/* Appends a token in quotes: " price"; control tokens as <s>, </s>, <0>. */
static TOOL_UNUSED void explore_put_token(const explore *e, tool_buffer *out, int32_t token)
{
    size_t size = 0;
    const char *bytes = monet_tokenizer_bytes(e->tokenizer, token, &size);

    if (bytes == NULL || size == 0) {
        if (token >= 0 && token == monet_tokenizer_bos(e->tokenizer)) tool_put(out, "<s>", 3);
        else if (monet_tokenizer_is_eos(e->tokenizer, token)) tool_put(out, "</s>", 4);
        else tool_putf(out, "<%d>", (int)token);
        return;
    }
    tool_put(out, "\"", 1);
    explore_put_safe(out, bytes, size, '"');
    tool_put(out, "\"", 1);
}

/* Bytes as a JSON string; what is not UTF-8 becomes U+FFFD. */
static TOOL_UNUSED void explore_put_json(tool_buffer *out, const char *bytes, size_t size)
{
    tool_buffer text = {NULL, 0, 0, false};
    size_t at, n;

    for (at = 0; at < size; at += n > 0 ? n : 1) {
        n = tool_utf8(bytes + at, size - at);
        tool_put(&text, n > 0 ? bytes + at : "\xEF\xBF\xBD", n > 0 ? n : 3);
    }
    json_put_string(out, text.size > 0 ? text.data : "", text.size);
    out->failed = out->failed || text.failed;
    tool_buffer_free(&text);
}

/* Appends  "token":17,"text":" price"  and, if the bytes are not UTF-8,  ,"bytes":"e2"  in hex. */
static TOOL_UNUSED void explore_put_token_json(const explore *e, tool_buffer *out, int32_t token)
{
    size_t size = 0, k;
    const char *bytes = monet_tokenizer_bytes(e->tokenizer, token, &size);

    tool_putf(out, "\"token\":%d,\"text\":", (int)token);
    explore_put_json(out, bytes, bytes == NULL ? 0 : size);
    if (bytes == NULL || tool_is_utf8(bytes, size)) return;
    tool_putf(out, ",\"bytes\":\"");
    for (k = 0; k < size; k++) tool_putf(out, "%02x", (unsigned char)bytes[k]);
    tool_put(out, "\"", 1);
}

/* Bytes of tokens as one text, so that characters of several tokens are whole. */
static TOOL_UNUSED void explore_put_tokens(const explore *e, tool_buffer *out,
                                           const int32_t *tokens, int32_t n)
{
    size_t size;
    int32_t k;

    for (k = 0; k < n; k++) {
        const char *bytes = monet_tokenizer_bytes(e->tokenizer, tokens[k], &size);
        if (bytes != NULL && size > 0) tool_put(out, bytes, size);
        else if (monet_tokenizer_is_eos(e->tokenizer, tokens[k])) tool_put(out, "</s>", 4);
    }
}

/* "group":1,"id":1304,"i":20,"j":24 */
static TOOL_UNUSED void explore_put_expert_json(const explore *e, tool_buffer *out, int32_t group,
                                                int32_t i, int32_t j)
{
    tool_putf(out, "\"group\":%d,\"id\":%lld,\"i\":%d,\"j\":%d", (int)group + 1,
              (long long)explore_id(e, i, j), (int)i, (int)j);
}

/* "key":1.5, or null for what is no finite number. */
static TOOL_UNUSED void explore_put_number(tool_buffer *out, const char *key, double value)
{
    if (value - value == 0) tool_putf(out, "\"%s\":%.7g", key, value);
    else tool_putf(out, "\"%s\":null", key);
}

/* ---- explore: the largest of many ------------------------------------------------------------ */

typedef struct explore_ranked {
    double   value;
    uint64_t index;
} explore_ranked;

/* Keeps the `capacity` largest values that were given, largest first; equal ones in the order in
   which they came. NaN is passed over.                                                         */
static TOOL_UNUSED void explore_rank(explore_ranked *list, size_t capacity, size_t *n, double value,
                                     uint64_t index)
{
    size_t k;

    if (value != value || capacity == 0) return;
    if (*n == capacity && !(value > list[*n - 1].value)) return;
    if (*n < capacity) ++*n;
    for (k = *n - 1; k > 0 && value > list[k - 1].value; k--) list[k] = list[k - 1];
    list[k].value = value;
    list[k].index = index;
}

/* A list of tokens, by index:  " price" " cost"  or, with values,  " price" 0.98, " cost" 0.50.
   A blank stands before each.                                                                  */
static TOOL_UNUSED void explore_put_list(const explore *e, tool_buffer *out,
                                         const explore_ranked *list, size_t n, bool values)
{
    size_t k;

    for (k = 0; k < n; k++) {
        tool_putf(out, "%s ", values && k > 0 ? "," : "");
        explore_put_token(e, out, (int32_t)list[k].index);
        if (values) tool_putf(out, " %.2f", list[k].value);
    }
}

/* "key":[{"token":17,"text":" price"},...], with the values under that name, if it is not NULL. */
static TOOL_UNUSED void explore_put_list_json(const explore *e, tool_buffer *out, const char *key,
                                              const explore_ranked *list, size_t n,
                                              const char *value)
{
    size_t k;

    tool_putf(out, "\"%s\":[", key);
    for (k = 0; k < n; k++) {
        tool_putf(out, "%s{", k > 0 ? "," : "");
        explore_put_token_json(e, out, (int32_t)list[k].index);
        if (value != NULL) tool_putf(out, ",\"%s\":%.6g", value, list[k].value);
        tool_put(out, "}", 1);
    }
    tool_put(out, "]", 1);
}

/* ---- explore: output ------------------------------------------------------------------------- */

/* Text on its way to the standard output or to a file, which appears when all of it is there. */
typedef struct explore_output {
    tool_buffer text;    /* append here */
    tool_output file;
    bool        to_file;
} explore_output;

static TOOL_UNUSED bool explore_output_open(const explore *e, explore_output *o, tool_error *err)
{
    memset(o, 0, sizeof *o);
    o->to_file = e->out != NULL;
    return !o->to_file || tool_output_open(&o->file, e->out, err);
}

/* Sends what was appended so far. */
static TOOL_UNUSED bool explore_flush(explore *e, explore_output *o, tool_error *err)
{
    bool ok = true;

    if (o->text.failed) return tool_fail(err, "out of memory");
    if (o->to_file) {
        ok = tool_output_write(&o->file, o->text.data, o->text.size, err);
    } else if ((o->text.size > 0 && fwrite(o->text.data, 1, o->text.size, stdout) != o->text.size)
               || fflush(stdout) != 0) {
        e->pipe_closed = errno == EPIPE;
        ok = tool_fail(err, "cannot write the output: %s", strerror(errno));
    }
    o->text.size = 0;
    return ok;
}

/* Sends the rest if all went well, else drops the file. Returns `ok`, or false if that failed. */
static TOOL_UNUSED bool explore_output_close(explore *e, explore_output *o, bool ok,
                                             tool_error *err)
{
    ok = ok && explore_flush(e, o, err);
    if (ok && o->to_file) ok = tool_output_commit(&o->file, err);
    if (o->to_file) tool_output_abandon(&o->file);
    tool_buffer_free(&o->text);
    return ok;
}

#endif /* TOOL_EXPLORE_COMMON_H */
