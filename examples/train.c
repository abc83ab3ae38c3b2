// Trains a Monet model on texts, from nothing or from an existing model, and can be left alone.
// cc -O2 -pthread -I. examples/train.c -o train -lm && ./train --preset nano --out run FOLDER
//
// Read it from top to bottom: options, the model, the data, one step, validation and samples, the
// log, checkpoints, the loop; then starting and resuming. What it knows about Monet comes through
// the functions of monet.h; three of them make a step: forward, backward, update.
//
// Everything that happens at a step is a function of the options and the number of the step, and
// nothing of time or threads. So a run that was killed goes on from a checkpoint to the very bytes
// that an undisturbed run ends with.

#include "tools/common.h"

#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"

#include "tools/corpus.h"
#include "tools/report.h"
#include "tools/run.h"
#include "tools/safetensors.h"

enum { DONE = 0, FAILED = 1, USAGE = 2 };   /* exit codes; 128 + n = stopped by signal n */
enum {
    KEEP = 2,              /* checkpoints in the folder */
    GIVE_UP = 50,          /* steps in a row that are not finite */
    EVAL_TOKENS = 128,     /* tokens of a validation sequence evaluated together */
    PLAN_SECONDS = 5,      /* how long --minutes measures before it fixes the number of steps */
    MAX_OPTIONS = 80
};

typedef struct text_list {
    const char **items;
    size_t       n, capacity;
} text_list;

/* Whole numbers, flags and choices are int64_t, so that the table of options needs few types. */
typedef struct settings {
    text_list   inputs, chat, valid, freeze;
    const char *train_match, *valid_match, *tokenizer, *preset, *from, *out, *resume, *prompt;
    int64_t     doc_per_file, freeze_routers, force, quiet, help;
    int64_t     dim, layers, heads, kv_heads, experts, expert_dim, router_heads, topk, groups;
    int64_t     context, decompose, tie;
    int64_t     steps, stop_after, batch, seq, accumulate, warmup, schedule, threads;
    int64_t     valid_every, valid_tokens, sample_every, sample_tokens, log_every, save_dtype;
    double      minutes, lr, min_lr, beta1, beta2, eps, weight_decay, clip, uniformity, ambiguity;
    double      valid_fraction, checkpoint_minutes;
    uint64_t    seed;
} settings;

typedef struct validation { /* (n, length) each; a target of -1 is not scored */
    int32_t *tokens, *targets;
    size_t   n, length;
    uint64_t scored;
    double   bits; /* per byte, of one nat per token; 0 = unknown */
} validation;

typedef struct step_row { /* what the log says about a step */
    int64_t step, unused, skipped;
    double  loss, uniformity, ambiguity, norm, rate, valid, seconds, speed;
} step_row;

typedef struct run {
    settings               set;
    bool                   given[MAX_OPTIONS]; /* on the command line */
    text_list              owned;              /* strings to free */
    const char            *folder, *program;
    tool_error             err;
    corpus_files           files;
    corpus                 data;
    uint64_t               hash;               /* of the token file */
    double                 bits;               /* as in validation, of the training text */
    validation             valid;
    monet_trainer         *trainer;
    const monet_arch      *arch;
    const monet_tokenizer *tokenizer;
    monet_session         *session;
    int32_t               *tokens, *targets;   /* (B,T) */
    int64_t                step, saved, in_a_row;
    int                    log;                /* descriptor of log.csv, and lock of the folder */
    uint64_t               log_size;
    tool_buffer            waiting;            /* rows that are not in the file yet */
    report_curves          curves;
    tool_buffer            sample;
    double                 begun, seconds_before, last_save, last_line, step_seconds, valid_seconds;
    bool                   terminal, line_open, log_failed, output_failed, made_folder;
} run;

static volatile sig_atomic_t stop_signal; /* the step at hand is finished, then all is saved */

static void on_signal(int number)
{
    if (stop_signal) _exit(128 + number); /* asked twice: at once */
    stop_signal = number;
}

/* A failure of the library in words. */
static bool monet_failed(run *r, const monet_error *why)
{
    return tool_fail(&r->err, "%s", why->message);
}

/* A line on the standard output. If nobody can read it any more, training goes on. */
static void say(run *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void say(run *r, const char *format, ...)
{
    va_list args;
    if (r->output_failed) return;
    if (r->line_open) printf("\r%79s\r", "");
    r->line_open = false;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    if (fflush(stdout) == 0) return;
    r->output_failed = true;
    fprintf(stderr, "train: cannot write to the standard output: %s; training goes on\n",
            strerror(errno));
}

static bool add_text(run *r, text_list *list, const char *text)
{
    if (!tool_grow(&list->items, &list->capacity, (uint64_t)list->n + 1, sizeof *list->items,
                   &r->err)) return false;
    list->items[list->n++] = text;
    return true;
}

/* A string that lives as long as the run. */
static const char *keep_text(run *r, char *text)
{
    if (!text) return NULL;
    if (add_text(r, &r->owned, text)) return text;
    free(text);
    return NULL;
}

/* "run/ckpt-100.monet" */
static char *path_of(run *r, const char *name)
{
    return tool_join(r->folder, name, &r->err);
}

/* ---- options --------------------------------------------------------------------------------- */

typedef enum option_type { TITLE, FLAG, TEXT, LIST, WHOLE, SEED, NUMBER, CHOICE } option_type;

/* Options that decide what a run computes are kept in its checkpoints. */
typedef enum option_kind { KEPT, CHANGES, NOT_KEPT } option_kind; /* CHANGES: kept, but --resume */
                                                                  /* may give it another value   */
typedef struct option {
    const char *name;
    option_type type;
    option_kind kind;
    size_t      field;      /* where in settings the value goes */
    double      low, high;  /* what a number may be */
    const char *value, *help;
} option;

#define FIELD(name) offsetof(settings, name)
#define BIG 1e9 /* any count that fits an int32_t */

static const option options[] = {
    {"Texts", TITLE, NOT_KEPT, 0, 0, 0, NULL, NULL},
    {"train-match", TEXT, KEPT, FIELD(train_match), 0, 0, "GLOB",
     "of files in folders, only these: '*.train.txt'"},
    {"doc-per-file", FLAG, KEPT, FIELD(doc_per_file), 0, 0, NULL,
     "a file is one document (default: parted by lines of one form feed)"},
    {"chat", LIST, KEPT, FIELD(chat), 0, 0, "FILE",
     "lines {\"prompt\": ..., \"response\": ...}; only responses are learned"},
    {"tokenizer", TEXT, KEPT, FIELD(tokenizer), 0, 0, "FILE",
     "tokenizer.model, tokenizer.json or a .monet (default: bytes)"},
    {"valid", LIST, KEPT, FIELD(valid), 0, 0, "PATH",
     "texts to test on, or a .safetensors with tokens (n,T); repeatable"},
    {"valid-match", TEXT, KEPT, FIELD(valid_match), 0, 0, "GLOB",
     "files of these names are for validation: '*.valid.txt'"},
    {"valid-fraction", NUMBER, KEPT, FIELD(valid_fraction), 0, 0.9, "X",
     "part of the documents that is for validation (default: 0)"},
    {"Model", TITLE, NOT_KEPT, 0, 0, 0, NULL, NULL},
    {"preset", TEXT, NOT_KEPT, FIELD(preset), 0, 0, "NAME",
     "nano, mini, 850m, 1.4b or 4.1b: defaults for all below"},
    {"from", TEXT, KEPT, FIELD(from), 0, 0, "FILE", "go on from this model, with its tokenizer"},
    {"freeze", LIST, KEPT, FIELD(freeze), 0, 0, "NAMES",
     "tensors not to train: 'layers.*.moe.*'; repeatable"},
    {"freeze-routers", FLAG, KEPT, FIELD(freeze_routers), 0, 0, NULL,
     "the same as --freeze 'layers.*.router.*'"},
    {"dim", WHOLE, KEPT, FIELD(dim), 2, BIG, "C", "hidden size"},
    {"layers", WHOLE, KEPT, FIELD(layers), 1, BIG, "L", "decoder layers"},
    {"heads", WHOLE, KEPT, FIELD(heads), 1, BIG, "A", "query heads"},
    {"kv-heads", WHOLE, KEPT, FIELD(kv_heads), 1, BIG, "K", "key and value heads (default: A)"},
    {"experts", WHOLE, KEPT, FIELD(experts), 2, BIG, "N", "experts on an axis, N*N in a layer"},
    {"expert-dim", WHOLE, KEPT, FIELD(expert_dim), 1, BIG, "M", "hidden units of an expert"},
    {"router-heads", WHOLE, KEPT, FIELD(router_heads), 1, BIG, "H", "router heads"},
    {"topk", WHOLE, KEPT, FIELD(topk), 1, BIG, "k", "expected active half-experts of a head"},
    {"groups", WHOLE, KEPT, FIELD(groups), 1, BIG, "G", "layers that share a router (default: 1)"},
    {"context", WHOLE, KEPT, FIELD(context), 1, BIG, "S", "positions (max_seq_len)"},
    {"decompose", CHOICE, KEPT, FIELD(decompose), 0, 0, "vertical|horizontal",
     "how experts are composed (default: vertical)"},
    {"tie", FLAG, KEPT, FIELD(tie), 0, 0, NULL, "lm_head is embed_tokens"},
    {"Training", TITLE, NOT_KEPT, 0, 0, 0, NULL, NULL},
    {"steps", WHOLE, CHANGES, FIELD(steps), 1, 1e15, "N",
     "how long; the rate follows a new end"},
    {"minutes", NUMBER, KEPT, FIELD(minutes), 0, 1e7, "X",
     "or so: the first seconds tell how many steps that is"},
    {"stop-after", WHOLE, NOT_KEPT, FIELD(stop_after), 1, 1e15, "N",
     "end there, but follow the schedule of all steps"},
    {"batch", WHOLE, KEPT, FIELD(batch), 1, BIG, "B", "sequences at once (default: 1)"},
    {"seq", WHOLE, KEPT, FIELD(seq), 2, BIG, "T", "tokens of a sequence (default: the context)"},
    {"accumulate", WHOLE, KEPT, FIELD(accumulate), 1, BIG, "N", "batches in a step (default: 1)"},
    {"lr", NUMBER, KEPT, FIELD(lr), 0, 1000, "X", "learning rate (default: 5e-4)"},
    {"min-lr", NUMBER, KEPT, FIELD(min_lr), 0, 1000, "X", "at the end (default: a tenth of it)"},
    {"warmup", WHOLE, KEPT, FIELD(warmup), 0, 1e15, "N", "steps that it rises (default: 50)"},
    {"schedule", CHOICE, KEPT, FIELD(schedule), 0, 0, "cosine|constant",
     "after that (default: cosine)"},
    {"beta1", NUMBER, KEPT, FIELD(beta1), 0, 0.99999, "X", "of AdamW (default: 0.9)"},
    {"beta2", NUMBER, KEPT, FIELD(beta2), 0, 0.99999, "X", "of AdamW (default: 0.95)"},
    {"eps", NUMBER, KEPT, FIELD(eps), 1e-20, 1, "X", "of AdamW (default: 1e-8)"},
    {"weight-decay", NUMBER, KEPT, FIELD(weight_decay), 0, 1000, "X", "(default: 0.1)"},
    {"clip", NUMBER, KEPT, FIELD(clip), 0, 1e30, "X", "gradient norm (default: 1; 0 = any)"},
    {"uniformity", NUMBER, KEPT, FIELD(uniformity), 0, 1000, "X", "loss weight (default: 1e-3)"},
    {"ambiguity", NUMBER, KEPT, FIELD(ambiguity), 0, 1000, "X", "loss weight (default: 1e-3)"},
    {"seed", SEED, KEPT, FIELD(seed), 0, 0, "N", "equal seeds, equal models (default: 0)"},
    {"threads", WHOLE, NOT_KEPT, FIELD(threads), 1, 256, "N", "(default: all processors)"},
    {"Output", TITLE, NOT_KEPT, 0, 0, 0, NULL, NULL},
    {"out", TEXT, NOT_KEPT, FIELD(out), 0, 0, "FOLDER", "for all files (default: run)"},
    {"resume", TEXT, NOT_KEPT, FIELD(resume), 0, 0, "FOLDER",
     "go on there with its options; those marked * may be new"},
    {"force", FLAG, NOT_KEPT, FIELD(force), 0, 0, NULL, "delete the run that is in the folder"},
    {"checkpoint-minutes", NUMBER, CHANGES, FIELD(checkpoint_minutes), 0, 1e7, "X",
     "between checkpoints (default: 10)"},
    {"save-dtype", CHOICE, KEPT, FIELD(save_dtype), 0, 0, "f32|f16|bf16",
     "of model.monet (default: bf16; checkpoints are f32)"},
    {"valid-every", WHOLE, KEPT, FIELD(valid_every), 1, 1e15, "N", "steps (default: 250)"},
    {"valid-tokens", WHOLE, KEPT, FIELD(valid_tokens), 1, 1e12, "N", "at most (default: 16384)"},
    {"sample-every", WHOLE, KEPT, FIELD(sample_every), 1, 1e15, "N", "steps (default: never)"},
    {"sample-tokens", WHOLE, KEPT, FIELD(sample_tokens), 1, BIG, "N", "(default: 100)"},
    {"prompt", TEXT, KEPT, FIELD(prompt), 0, 0, "TEXT", "that samples continue"},
    {"log-every", WHOLE, CHANGES, FIELD(log_every), 1, 1e15, "N",
     "steps between lines, if not on a terminal (default: 10)"},
    {"quiet", FLAG, NOT_KEPT, FIELD(quiet), 0, 0, NULL, "no lines of progress"},
    {"help", FLAG, NOT_KEPT, FIELD(help), 0, 0, NULL, "this text"},
};
enum { N_OPTIONS = sizeof options / sizeof options[0] };

/* The published sizes have the recipe of the paper: 2M tokens a step, 100G in all. */
#define PUBLISHED                                                                                  \
    "layers=24\nexperts=512\ntopk=8\ngroups=4\ncontext=2048\nbatch=4\naccumulate=256\n"          \
    "steps=48000\nwarmup=500\nlr=5e-4\n"
static const struct { const char *name, *text; } presets[] = {
    {"nano", "dim=96\nlayers=4\nheads=4\nexperts=32\nexpert-dim=8\nrouter-heads=2\ntopk=4\n"
             "groups=2\ncontext=128\nbatch=8\nsteps=7000\nwarmup=50\nlr=4e-3\n"},
    {"mini", "dim=192\nlayers=8\nheads=6\nexperts=64\nexpert-dim=8\nrouter-heads=4\ntopk=8\n"
             "groups=4\ncontext=512\nseq=256\nbatch=16\nsteps=1500\nwarmup=50\nlr=1e-3\n"
             "valid-every=100\n"},
    {"850m", PUBLISHED "dim=1536\nheads=12\nexpert-dim=12\nrouter-heads=6\n"},
    {"1.4b", PUBLISHED "dim=2048\nheads=16\nexpert-dim=16\nrouter-heads=8\n"},
    {"4.1b", PUBLISHED "dim=3072\nlayers=32\nheads=24\nexpert-dim=24\nrouter-heads=12\n"},
};

static void default_settings(settings *set)
{
    memset(set, 0, sizeof *set);
    set->groups = set->batch = set->accumulate = 1;
    set->lr = 5e-4, set->min_lr = -1, set->warmup = 50;
    set->beta1 = 0.9, set->beta2 = 0.95, set->eps = 1e-8;
    set->weight_decay = 0.1, set->clip = 1, set->uniformity = set->ambiguity = 1e-3;
    set->threads = run_processors();
    set->out = "run", set->prompt = "";
    set->checkpoint_minutes = 10, set->save_dtype = MONET_BF16;
    set->valid_every = 250, set->valid_tokens = 16384, set->sample_tokens = 100;
    set->log_every = 10;
}

static void print_help(void)
{
    printf("usage: train [options] FILE|FOLDER...      trains on texts\n"
           "       train [options] --chat FILE         teaches conversations, with --from MODEL\n"
           "       train --resume FOLDER               goes on after the last checkpoint\n\n"
           "The folder gets log.csv, report.html, ckpt-STEP.monet (the newest two), model.monet,\n"
           "and tokens.bin, the texts as tokens. Ctrl-C saves and stops; a second one stops at "
           "once.\n");
    for (size_t k = 0; k < N_OPTIONS; k++) {
        const option *o = &options[k];
        bool changes = o->kind == CHANGES || o->field == FIELD(threads)
            || o->field == FIELD(stop_after) || o->field == FIELD(quiet);
        if (o->type == TITLE) {
            printf("\n%s\n", o->name);
            continue;
        }
        int width = printf(" %c--%s%s%s", changes ? '*' : ' ', o->name, o->value ? " " : "",
                           o->value ? o->value : "");
        printf("%*s%s\n", width < 32 ? 32 - width : 1, "", o->help);
    }
    printf("\nExit status: 0 done, 1 failed, 2 wrong options, 128 + n stopped by signal n.\n");
}

/* The locale is always "C" here, since setlocale is never called: strtod reads a point. */
static bool parse_number(run *r, const option *o, const char *text, double *out)
{
    char *end = NULL;
    double value = strtod(text, &end);
    bool in_range = value >= o->low && value <= o->high; /* false for NaN */
    *out = value;
    if (end != text && *end == 0 && in_range && (o->type == NUMBER || value == floor(value)))
        return true;
    return tool_fail(&r->err, "--%s: '%.100s' is not a %snumber from %.15g to %.15g", o->name, text,
                     o->type == NUMBER ? "" : "whole ", o->low, o->high);
}

static bool parse_seed(run *r, const char *text, uint64_t *out)
{
    uint64_t value = 0;
    const char *c = text;
    for (; *c >= '0' && *c <= '9'; c++) {
        uint64_t digit = (uint64_t)(*c - '0');
        if (value > (UINT64_MAX - digit) / 10) break;
        value = value * 10 + digit;
    }
    *out = value;
    return (c > text && *c == 0)
        || tool_fail(&r->err, "--seed: '%.100s' is not a whole number below 2^64", text);
}

/* The number of the word in "cosine|constant". */
static bool parse_choice(run *r, const option *o, const char *text, int64_t *out)
{
    const char *word = o->value;
    size_t size = strlen(text);
    for (int64_t k = 0; word; k++) {
        size_t n = strcspn(word, "|");
        if (n == size && memcmp(word, text, n) == 0) return *out = k, true;
        word = word[n] ? word + n + 1 : NULL;
    }
    return tool_fail(&r->err, "--%s: '%.100s' is not one of %s", o->name, text, o->value);
}

static bool set_option(run *r, const option *o, const char *text)
{
    void *field = (char *)&r->set + o->field;
    double number = 0;
    switch (o->type) {
    case FLAG: *(int64_t *)field = 1; return true;
    case TEXT: *(const char **)field = text; return true;
    case LIST: return add_text(r, (text_list *)field, text);
    case SEED: return parse_seed(r, text, (uint64_t *)field);
    case CHOICE: return parse_choice(r, o, text, (int64_t *)field);
    case WHOLE:
        if (!parse_number(r, o, text, &number)) return false;
        *(int64_t *)field = (int64_t)number;
        return true;
    case NUMBER: return parse_number(r, o, text, (double *)field);
    case TITLE: break;
    }
    return false;
}

static const option *find_option(const char *name, size_t size)
{
    for (size_t k = 0; k < N_OPTIONS; k++)
        if (options[k].type != TITLE && strlen(options[k].name) == size
            && memcmp(options[k].name, name, size) == 0) return &options[k];
    return NULL;
}

/* "--name value", "--name=value" and "--flag". Moves *index on to the last argument used. */
static bool read_option(run *r, int argc, char **argv, int *index)
{
    const char *name = argv[*index] + 2, *equals = strchr(name, '=');
    const option *o = find_option(name, equals ? (size_t)(equals - name) : strlen(name));
    const char *value = equals ? equals + 1 : NULL;
    if (!o) return tool_fail(&r->err, "unknown option '%.100s' (--help lists them)", argv[*index]);
    if (o->type == FLAG && value) return tool_fail(&r->err, "--%s takes no value", o->name);
    if (o->type != FLAG && !value) {
        if (*index + 1 >= argc)
            return tool_fail(&r->err, "--%s needs a value: %s", o->name, o->value);
        value = argv[++*index];
    }
    r->given[o - options] = true;
    return set_option(r, o, value);
}

static bool read_options(run *r, int argc, char **argv)
{
    bool only_files = false; /* after -- */
    for (int k = 1; k < argc; k++) {
        if (!only_files && strcmp(argv[k], "--") == 0) only_files = true;
        else if (!only_files && strncmp(argv[k], "--", 2) == 0) {
            if (!read_option(r, argc, argv, &k)) return false;
        } else if (!only_files && argv[k][0] == '-') {
            return tool_fail(&r->err, "unknown option '%.100s' (--help lists them)", argv[k]);
        } else if (!add_text(r, &r->set.inputs, argv[k])) {
            return false;
        }
    }
    return true;
}

static bool was_given(const run *r, const char *name)
{
    return r->given[find_option(name, strlen(name)) - options];
}

/* ---- options as text: one "name=value" a line ------------------------------------------------ */

static void put_text(tool_buffer *out, const char *name, const char *value)
{
    tool_put(out, name, strlen(name));
    tool_put(out, "=", 1);
    for (; *value; value++) {
        if (*value == '\n') tool_put(out, "\\n", 2);
        else if (*value == '\\') tool_put(out, "\\\\", 2);
        else tool_put(out, value, 1);
    }
    tool_put(out, "\n", 1);
}

static void put_list(tool_buffer *out, const char *name, const text_list *list)
{
    for (size_t k = 0; k < list->n; k++) put_text(out, name, list->items[k]);
}

static void put_option(tool_buffer *out, const settings *set, const option *o)
{
    const void *field = (const char *)set + o->field;
    const char *text = o->type == TEXT ? *(const char *const *)field : NULL;
    char number[32] = "";
    switch (o->type) {
    case FLAG: text = *(const int64_t *)field ? "" : NULL; break;
    case LIST: put_list(out, o->name, (const text_list *)field); break;
    case CHOICE: {
        const char *word = o->value;
        for (int64_t k = *(const int64_t *)field; k > 0; k--) word = strchr(word, '|') + 1;
        snprintf(number, sizeof number, "%.*s", (int)strcspn(word, "|"), word);
        break;
    }
    case SEED: snprintf(number, sizeof number, "%llu", *(const unsigned long long *)field); break;
    case NUMBER: /* the shortest form that reads back as the same number */
        for (int digits = 1; digits <= 17; digits++) {
            snprintf(number, sizeof number, "%.*g", digits, *(const double *)field);
            if (strtod(number, NULL) == *(const double *)field) break;
        }
        break;
    case WHOLE:
        if (*(const int64_t *)field < (int64_t)o->low) break; /* not set */
        snprintf(number, sizeof number, "%lld", (long long)*(const int64_t *)field);
        break;
    default: break;
    }
    if (number[0]) text = number;
    if (text) put_text(out, o->name, text);
}

/* What a checkpoint carries: enough to go on. Starts with a line that says whose it is. */
static tool_buffer settings_text(const run *r)
{
    tool_buffer out = {NULL, 0, 0, false};
    tool_putf(&out, "train=1\ntokens=%016llx\n", (unsigned long long)r->hash);
    put_list(&out, "input", &r->set.inputs);
    for (size_t k = 0; k < N_OPTIONS; k++)
        if (options[k].kind != NOT_KEPT) put_option(&out, &r->set, &options[k]);
    return out;
}

/* One line of it; `line` is changed, and lives as long as the run. */
static bool apply_line(run *r, char *line)
{
    char *value = strchr(line, '='), *to;
    if (!value) return tool_fail(&r->err, "'%.100s' is no option", line);
    *value++ = 0;
    to = value;
    for (const char *from = value; *from; from++) {
        if (*from == '\\' && from[1]) from++, *to++ = *from == 'n' ? '\n' : *from;
        else *to++ = *from;
    }
    *to = 0;
    const option *o = find_option(line, strlen(line));
    if (o) return set_option(r, o, value);
    if (strcmp(line, "input") == 0) return add_text(r, &r->set.inputs, value);
    if (strcmp(line, "tokens") == 0) return r->hash = strtoull(value, NULL, 16), true;
    if (strcmp(line, "train") == 0 && strcmp(value, "1") == 0) return true;
    return tool_fail(&r->err, "the option '%.100s' is unknown: a newer program?", line);
}

static bool apply_text(run *r, const char *text, size_t size)
{
    while (size > 0) {
        const char *feed = memchr(text, '\n', size);
        size_t n = feed ? (size_t)(feed - text) : size;
        char *line = tool_copy(text, n, &r->err);
        if (!keep_text(r, line) || !apply_line(r, line)) return false;
        n += feed != NULL;
        text += n, size -= n;
    }
    return true;
}

/* A preset is read before the options of the command line, which may change it. */
static bool read_settings(run *r, int argc, char **argv)
{
    const char *preset;
    default_settings(&r->set);
    if (!read_options(r, argc, argv)) return false;
    if (!r->set.preset || r->set.help) return true;
    preset = r->set.preset;
    for (size_t k = 0; k < sizeof presets / sizeof presets[0]; k++) {
        if (strcmp(preset, presets[k].name) != 0) continue;
        free(r->set.inputs.items), free(r->set.chat.items);
        free(r->set.valid.items), free(r->set.freeze.items);
        default_settings(&r->set);
        if (!apply_text(r, presets[k].text, strlen(presets[k].text))) return false;
        if (was_given(r, "minutes")) r->set.steps = 0;
        return read_options(r, argc, argv);
    }
    return tool_fail(&r->err, "--preset: '%.100s' is not nano, mini, 850m, 1.4b or 4.1b", preset);
}

/* Names are made absolute, so that a run may be resumed from any folder. */
static bool resolve_list(run *r, text_list *list)
{
    for (size_t k = 0; k < list->n; k++) {
        char *path = realpath(list->items[k], NULL);
        if (!path) return tool_fail(&r->err, "%.300s: %s", list->items[k], strerror(errno));
        if (!(list->items[k] = keep_text(r, path))) return false;
    }
    return true;
}

static bool check_settings(run *r)
{
    settings *set = &r->set;
    if (set->inputs.n + set->chat.n == 0)
        return tool_fail(&r->err, "nothing to train on: give files or folders (--help says more)");
    if (set->inputs.n > 0 && set->chat.n > 0)
        return tool_fail(&r->err, "'%.200s' and --chat: train on texts or on conversations",
                         set->inputs.items[0]);
    if (set->from && was_given(r, "tokenizer"))
        return tool_fail(&r->err, "--tokenizer: the model of --from brings its own");
    if (was_given(r, "steps") && was_given(r, "minutes"))
        return tool_fail(&r->err, "--steps and --minutes: only one of them");
    if (set->steps == 0 && !(set->minutes > 0))
        return tool_fail(&r->err, "how long? --steps N or --minutes X");
    if (set->min_lr < 0) set->min_lr = set->lr / 10;
    if (set->min_lr > set->lr)
        return tool_fail(&r->err, "--min-lr %g is more than --lr %g", set->min_lr, set->lr);
    if (set->valid_fraction > 0 && (set->valid.n > 0 || set->valid_match))
        return tool_fail(&r->err, "--valid-fraction, --valid and --valid-match: only one of them");
    return true;
}

/* ---- the model ------------------------------------------------------------------------------- */

static const struct { const char *name; size_t field, arch; } shapes[] = {
    {"dim", FIELD(dim), offsetof(monet_arch, dim)},
    {"layers", FIELD(layers), offsetof(monet_arch, n_layers)},
    {"heads", FIELD(heads), offsetof(monet_arch, n_heads)},
    {"kv-heads", FIELD(kv_heads), offsetof(monet_arch, n_kv_heads)},
    {"experts", FIELD(experts), offsetof(monet_arch, moe_experts)},
    {"expert-dim", FIELD(expert_dim), offsetof(monet_arch, moe_dim)},
    {"router-heads", FIELD(router_heads), offsetof(monet_arch, moe_heads)},
    {"topk", FIELD(topk), offsetof(monet_arch, moe_topk)},
    {"groups", FIELD(groups), offsetof(monet_arch, moe_groups)},
    {"context", FIELD(context), offsetof(monet_arch, max_seq_len)},
    {"decompose", FIELD(decompose), offsetof(monet_arch, decompose)},
    {"tie", FIELD(tie), offsetof(monet_arch, tie_embeddings)},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

/* A shape that the user gave has to be that of the model to go on from. */
static bool take_shape(run *r, const monet_arch *arch)
{
    for (size_t k = 0; k < N_SHAPES; k++) {
        int64_t *mine = (int64_t *)(void *)((char *)&r->set + shapes[k].field);
        int32_t its = *(const int32_t *)(const void *)((const char *)arch + shapes[k].arch);
        if (was_given(r, shapes[k].name) && *mine != its)
            return tool_fail(&r->err, "--%s is %lld, but %.300s has %d", shapes[k].name,
                             (long long)*mine, r->set.from, (int)its);
        *mine = its;
    }
    return true;
}

static bool make_arch(run *r, int32_t vocab_size, monet_arch *arch)
{
    monet_error why = {{0}, MONET_OK};
    memset(arch, 0, sizeof *arch);
    for (size_t k = 0; k < N_SHAPES; k++) {
        int64_t mine = *(const int64_t *)(const void *)((const char *)&r->set + shapes[k].field);
        bool needed = strcmp(shapes[k].name, "kv-heads") != 0;
        if (mine == 0 && needed && find_option(shapes[k].name, strlen(shapes[k].name))->low > 0)
            return tool_fail(&r->err, "the shape of the model: --%s is missing (or give --preset "
                             "nano)", shapes[k].name);
        *(int32_t *)(void *)((char *)arch + shapes[k].arch) = (int32_t)mine;
    }
    arch->vocab_size = vocab_size;
    return monet_arch_check(arch, &why) == MONET_OK || monet_failed(r, &why);
}

/* Weights, gradients and two moments, and for a moment the new model: is the machine too small? */
static bool check_memory(run *r, const monet_arch *arch)
{
    monet_tensor *tensors;
    char need[TOOL_HUMAN], have[TOOL_HUMAN];
    size_t n = 0;
    uint64_t bytes = 0, memory = UINT64_MAX;
    monet_arch_tensors(arch, MONET_F32, NULL, 0, &n);
    if (!(tensors = tool_alloc(n, sizeof *tensors, &r->err))) return false;
    monet_arch_tensors(arch, MONET_F32, tensors, n, &n);
    for (size_t k = 0; k < n; k++)
        bytes += (uint64_t)tensors[k].shape[0] * (uint64_t)tensors[k].shape[1] * 5 * sizeof(float);
    free(tensors);
#ifdef _SC_PHYS_PAGES
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) memory = (uint64_t)pages * (uint64_t)page;
#endif
    return bytes <= memory || tool_fail(&r->err, "training this model needs more than %s of "
                                        "memory, this machine has %s", tool_human(need, bytes),
                                        tool_human(have, memory));
}

static bool create_model(run *r, tokenizer_copy *tokenizer, monet_model **model)
{
    monet_writer_config content;
    monet_arch arch;
    monet_error why = {{0}, MONET_OK};
    memset(&content, 0, sizeof content);
    content.arch = &arch;
    content.tokenizer = &tokenizer->data;
    if (!make_arch(r, tokenizer->data.n_pieces, &arch) || !check_memory(r, &arch)) return false;
    return monet_model_create(&content, r->set.seed, NULL, model, &why) == MONET_OK
        || monet_failed(r, &why);
}

/* A new model with the tokenizer that --tokenizer names. */
static bool new_model(run *r, monet_model **model)
{
    const char *path = r->set.tokenizer, *dot = path ? strrchr(path, '.') : NULL;
    tokenizer_copy tokenizer;
    monet_model *source = NULL;
    tok_file file;
    bool ok;
    memset(&tokenizer, 0, sizeof tokenizer);
    memset(&file, 0, sizeof file);
    if (!path) {
        ok = tokenizer_copy_bytes(&tokenizer, &r->err);
    } else if (dot && strcmp(dot, ".monet") == 0) {
        ok = run_load_any(path, &source, &r->err);
        if (ok && !monet_model_tokenizer(source))
            ok = tool_fail(&r->err, "%.300s: holds no tokenizer", path);
        ok = ok && tokenizer_copy_model(&tokenizer, monet_model_tokenizer(source), &r->err);
    } else {
        ok = tok_open(&file, path, &r->err) && tokenizer_copy_file(&tokenizer, &file, &r->err);
    }
    ok = ok && create_model(r, &tokenizer, model);
    tokenizer_copy_free(&tokenizer);
    tok_free(&file);
    monet_model_free(source);
    return ok;
}

static bool open_model(run *r, monet_model **model)
{
    if (!r->set.from) {
        if (!new_model(r, model)) return false;
    } else {
        if (!run_load(r->set.from, model, &r->err)) return false;
        if (!monet_model_tokenizer(*model))
            return tool_fail(&r->err, "%.300s: holds no tokenizer", r->set.from);
        if (!take_shape(r, monet_model_arch(*model))
            || !check_memory(r, monet_model_arch(*model))) return false;
    }
    if (r->set.seq == 0) r->set.seq = monet_model_arch(*model)->max_seq_len;
    if (r->set.seq > monet_model_arch(*model)->max_seq_len)
        return tool_fail(&r->err, "--seq %lld is longer than the context of %d",
                         (long long)r->set.seq, (int)monet_model_arch(*model)->max_seq_len);
    r->arch = monet_model_arch(*model);
    r->tokenizer = monet_model_tokenizer(*model);
    return true;
}

/* Makes a trainer for `model`, or from the checkpoint at `path`. */
static bool make_trainer(run *r, const monet_model *model, const char *path)
{
    const settings *set = &r->set;
    monet_trainer_config c;
    monet_host host;
    monet_error why = {{0}, MONET_OK};
    monet_result result;
    text_list freeze = {NULL, 0, 0};
    memset(&c, 0, sizeof c);
    memset(&host, 0, sizeof host);
    for (size_t k = 0; k < set->freeze.n; k++)
        if (!add_text(r, &freeze, set->freeze.items[k])) return free(freeze.items), false;
    if (set->freeze_routers && !add_text(r, &freeze, "layers.*.router.*")) return false;
    host.n_threads = (int)set->threads;
    c.batch_size = (int32_t)set->batch;
    c.seq_len = (int32_t)set->seq;
    c.beta1 = (float)set->beta1, c.beta2 = (float)set->beta2, c.eps = (float)set->eps;
    c.weight_decay = (float)set->weight_decay;
    c.grad_clip = (float)set->clip;
    c.uniformity = (float)set->uniformity, c.ambiguity = (float)set->ambiguity;
    c.freeze = freeze.items, c.n_freeze = (int32_t)freeze.n;
    c.host = &host;
    result = path ? monet_trainer_load(path, &c, &r->trainer, &why)
                  : monet_trainer_create(model, &c, &r->trainer, &why);
    free(freeze.items);
    if (result != MONET_OK) return monet_failed(r, &why);
    r->arch = monet_model_arch(monet_trainer_model(r->trainer));
    r->tokenizer = monet_model_tokenizer(monet_trainer_model(r->trainer));
    return true;
}

/* ---- the data -------------------------------------------------------------------------------- */

static bool is_token_file(const char *path)
{
    size_t size = strlen(path);
    return size > 12 && strcmp(path + size - 12, ".safetensors") == 0;
}

/* The texts as a token file: the one that is there if it fits, else a new one. With `hash`, which
   a checkpoint remembers, a file that fits is used even if the texts are gone.                   */
static bool open_corpus(run *r, uint64_t hash)
{
    settings *set = &r->set;
    corpus_config c;
    char *path = path_of(r, "tokens.bin");
    bool ok = path != NULL;
    memset(&c, 0, sizeof c);
    c.form = set->chat.n ? CORPUS_CHAT : set->doc_per_file ? CORPUS_WHOLE : CORPUS_PARTS;
    c.train = set->chat.n ? set->chat.items : set->inputs.items;
    c.n_train = set->chat.n ? set->chat.n : set->inputs.n;
    c.valid = set->valid.items;
    c.n_valid = set->valid.n > 0 && is_token_file(set->valid.items[0]) ? 0 : set->valid.n;
    c.train_match = set->train_match, c.valid_match = set->valid_match;
    c.valid_fraction = set->valid_fraction;
    c.longest_prompt = set->seq;
    c.seed = set->seed;
    c.tokenizer = r->tokenizer;
    c.stop = &stop_signal;
    for (size_t k = 1; ok && k < set->valid.n; k++)
        if (c.n_valid == 0 || is_token_file(set->valid.items[k]))
            ok = tool_fail(&r->err, "--valid: texts, or one .safetensors file, not both");
    if (ok && (!hash || !corpus_open(&r->data, path, hash, NULL))) {
        ok = corpus_find(&r->files, &c, &r->err);
        if (ok && hash && r->files.hash != hash)
            ok = tool_fail(&r->err, "%.200s is missing or damaged, and the texts are not those of "
                           "the run any more", path);
        ok = ok && (corpus_open(&r->data, path, r->files.hash, NULL)
                    || (corpus_build(path, &r->files, &c, &r->err)
                        && corpus_open(&r->data, path, r->files.hash, &r->err)));
        r->hash = r->files.hash;
    }
    free(path);
    return ok;
}

static bool check_corpus(run *r)
{
    const uint64_t *n = r->data.number;
    char bytes[TOOL_HUMAN];
    if (n[CORPUS_TRAIN_SCORED] == 0 || n[CORPUS_TRAIN] <= (uint64_t)r->set.seq)
        return tool_fail(&r->err, "the texts to train on have %llu tokens, a sequence needs %lld",
                         (unsigned long long)n[CORPUS_TRAIN], (long long)r->set.seq + 1);
    if (r->set.chat.n && (monet_tokenizer_bos(r->tokenizer) < 0
                          || monet_tokenizer_eos(r->tokenizer) < 0))
        return tool_fail(&r->err, "--chat: the tokenizer has no <s> or no </s>");
    if (n[CORPUS_TRAIN_BYTES] > 0)
        r->bits = (double)n[CORPUS_TRAIN_SCORED] / (double)n[CORPUS_TRAIN_BYTES] / log(2);
    say(r, "texts        %llu documents, to train on %llu tokens of %s",
        (unsigned long long)n[CORPUS_DOCUMENTS], (unsigned long long)n[CORPUS_TRAIN],
        tool_human(bytes, n[CORPUS_TRAIN_BYTES]));
    if (n[CORPUS_LEFT_OUT] > 0)
        say(r, "             %llu conversations are left out: their prompt alone fills a sequence",
            (unsigned long long)n[CORPUS_LEFT_OUT]);
    return true;
}

/* T tokens from `start`, going round at the end, and the tokens that follow them. */
static void copy_sequence(const run *r, uint64_t first, uint64_t n, uint64_t start, size_t length,
                          int32_t *tokens, int32_t *targets)
{
    for (size_t t = 0; t <= length; t++) {
        bool scored;
        int32_t token = corpus_token(&r->data, first + (start + t) % n, &scored);
        if (t < length) tokens[t] = token;
        if (t > 0) targets[t - 1] = scored ? token : -1;
    }
}

/* Of conversations, a sequence begins where one begins: the next <s>. */
static uint64_t next_start(const run *r, uint64_t first, uint64_t n, uint64_t start)
{
    int32_t bos = monet_tokenizer_bos(r->tokenizer);
    bool scored;
    for (uint64_t k = 0; r->set.chat.n && k < n; k++, start++)
        if (corpus_token(&r->data, first + start % n, &scored) == bos) break;
    return start;
}

/* Sequence `index` of a step: anywhere in the stream, chosen by seed, step and index alone. */
static void fill_batch(run *r, int64_t part)
{
    uint64_t n = r->data.number[CORPUS_TRAIN], purpose = CORPUS_FOR_STEPS + (uint64_t)r->step;
    size_t T = (size_t)r->set.seq, B = (size_t)r->set.batch;
    for (size_t b = 0; b < B; b++) {
        uint64_t index = (uint64_t)part * B + b;
        uint64_t start = corpus_random(r->set.seed, purpose, index) % (n - T);
        copy_sequence(r, 0, n, next_start(r, 0, n, start), T, r->tokens + b * T,
                      r->targets + b * T);
    }
}

/* ---- one step -------------------------------------------------------------------------------- */

static float step_rate(const run *r)
{
    const settings *set = &r->set;
    int64_t total = set->steps > 0 ? set->steps : INT64_MAX; /* not planned yet: still warm-up */
    if (set->schedule == 1) return monet_rate_constant(r->step, set->warmup, (float)set->lr);
    return monet_rate_cosine(r->step, set->warmup, total, (float)set->lr, (float)set->min_lr);
}

/* Steps are numbered by updates that were tried, so a batch that is not finite comes up once. */
static bool train_step(run *r, step_row *row)
{
    monet_update update;
    monet_losses losses;
    monet_result result = MONET_OK;
    double start = tool_seconds(), nats = 0, parts = (double)r->set.accumulate;
    memset(row, 0, sizeof *row);
    row->unused = INT64_MAX;
    for (int64_t part = 0; part < r->set.accumulate && result == MONET_OK; part++) {
        fill_batch(r, part);
        result = monet_trainer_forward(r->trainer, r->tokens, r->targets, &losses);
        if (result == MONET_OK) result = monet_trainer_backward(r->trainer);
        if (result != MONET_OK) break;
        nats += losses.cross_entropy * (double)losses.scored;
        row->uniformity += losses.uniformity / parts;
        row->ambiguity += losses.ambiguity / parts;
        if (losses.unused < row->unused) row->unused = losses.unused;
    }
    row->rate = (double)step_rate(r);
    if (result == MONET_OK) result = monet_trainer_update(r->trainer, (float)row->rate, &update);
    if (result != MONET_OK) return monet_failed(r, monet_trainer_error(r->trainer));
    row->step = ++r->step;
    row->loss = nats / (update.scored > 0 ? (double)update.scored : 1);
    row->norm = fabs(update.grad_norm); /* "nan", not "-nan" */
    row->skipped = update.skipped;
    row->valid = NAN;
    row->seconds = tool_seconds() - start;
    row->speed = (double)(r->set.batch * r->set.seq * r->set.accumulate) / row->seconds;
    r->in_a_row = update.skipped ? r->in_a_row + 1 : 0;
    if (update.skipped)
        say(r, "step %lld: a loss or gradient was not finite: skipped, nothing was changed",
            (long long)r->step);
    return r->in_a_row < GIVE_UP
        || tool_fail(&r->err, "%d steps in a row were not finite: try a smaller --lr than %g, or "
                     "--resume with other data", GIVE_UP, r->set.lr);
}

/* ---- validation and samples ------------------------------------------------------------------ */

/* Bits per byte of one nat per token. Bytes are those that the scored tokens decode to: of all
   without the first one, since decoding drops a space at the beginning of a text.                */
static bool count_bytes(run *r)
{
    validation *v = &r->valid;
    const uint64_t *n = r->data.number;
    uint64_t bytes = 0;
    int32_t *stream;
    if (r->set.chat.n) { /* only responses count: on the average */
        v->bits = (double)n[CORPUS_VALID_SCORED] / (double)n[CORPUS_VALID_BYTES] / log(2);
        return true;
    }
    if (!(stream = tool_alloc(v->length + 1, sizeof *stream, &r->err))) return false;
    for (size_t k = 0; k < v->n; k++) {
        size_t all = 0, first = 0, size = v->length;
        memcpy(stream, v->tokens + k * v->length, v->length * sizeof *stream);
        if (v->targets[(k + 1) * v->length - 1] >= 0)
            stream[size++] = v->targets[(k + 1) * v->length - 1];
        monet_tokenizer_decode(r->tokenizer, stream, size, NULL, 0, &all);
        monet_tokenizer_decode(r->tokenizer, stream, 1, NULL, 0, &first);
        bytes += all - first;
    }
    free(stream);
    if (bytes > 0) v->bits = (double)v->scored / (double)bytes / log(2);
    return true;
}

static bool alloc_validation(run *r, uint64_t n, uint64_t length)
{
    validation *v = &r->valid;
    v->n = (size_t)n, v->length = (size_t)length;
    v->tokens = tool_alloc(n * length, sizeof *v->tokens, &r->err);
    v->targets = tool_alloc(n * length, sizeof *v->targets, &r->err);
    return v->tokens && v->targets;
}

/* Sequences spread evenly over the validation text. */
static bool valid_from_corpus(run *r)
{
    uint64_t first = r->data.number[CORPUS_TRAIN], n = r->data.number[CORPUS_VALID];
    uint64_t T = (uint64_t)r->set.seq, count = (uint64_t)r->set.valid_tokens / T;
    if (n <= T)
        return tool_fail(&r->err, "the texts for validation have %llu tokens, a sequence needs "
                         "%llu", (unsigned long long)n, (unsigned long long)T + 1);
    if (count > (n - 1) / T) count = (n - 1) / T;
    if (count == 0) count = 1;
    if (!alloc_validation(r, count, T)) return false;
    for (uint64_t k = 0; k < count; k++) {
        uint64_t start = count > 1 ? k * ((n - 1 - T) / (count - 1)) : 0;
        copy_sequence(r, first, n, next_start(r, first, n, start), (size_t)T,
                      r->valid.tokens + k * T, r->valid.targets + k * T);
    }
    return true;
}

/* The array "tokens" (n,T) of a safetensors file: the first token of each row is not scored. */
static bool valid_from_tokens(run *r, const char *path)
{
    st_file file;
    const st_tensor *t;
    uint64_t n, length;
    int64_t *row = NULL;
    bool ok;
    if (!st_open(&file, path, &r->err)) return false;
    t = st_find(&file, "tokens");
    ok = t && t->n_dims == 2 && t->shape[0] > 0 && t->shape[1] > 1
        && t->shape[1] <= r->arch->max_seq_len;
    if (!ok) tool_fail(&r->err, "%.300s: needs an array \"tokens\" (n,T), T from 2 to %d", path,
                       (int)r->arch->max_seq_len);
    length = ok ? (uint64_t)t->shape[1] : 1;
    n = (uint64_t)r->set.valid_tokens / length;
    if (ok && n > (uint64_t)t->shape[0]) n = (uint64_t)t->shape[0];
    if (n == 0) n = 1;
    ok = ok && alloc_validation(r, n, length)
        && (row = tool_alloc(length, sizeof *row, &r->err)) != NULL;
    for (uint64_t k = 0; ok && k < n; k++) {
        int32_t *tokens = r->valid.tokens + k * length, *targets = r->valid.targets + k * length;
        ok = st_read_i64(&file, t, k * length, length, row, &r->err);
        for (uint64_t i = 0; ok && i < length; i++) {
            if (row[i] < 0 || row[i] >= r->arch->vocab_size)
                ok = tool_fail(&r->err, "%.300s: token %lld at (%llu,%llu), the vocabulary has %d",
                               path, (long long)row[i], (unsigned long long)k,
                               (unsigned long long)i, (int)r->arch->vocab_size);
            tokens[i] = (int32_t)row[i];
            if (i > 0) targets[i - 1] = tokens[i];
        }
        targets[length - 1] = -1;
    }
    free(row);
    st_close(&file);
    return ok;
}

static bool make_validation(run *r)
{
    const settings *set = &r->set;
    validation *v = &r->valid;
    if (set->valid.n > 0 && is_token_file(set->valid.items[0])) {
        if (!valid_from_tokens(r, set->valid.items[0])) return false;
    } else if (set->valid.n > 0 || set->valid_match || set->valid_fraction > 0) {
        if (!valid_from_corpus(r)) return false;
    } else {
        return true;
    }
    for (size_t k = 0; k < v->n * v->length; k++) v->scored += v->targets[k] >= 0;
    if (v->scored == 0) return tool_fail(&r->err, "the validation text has no token to score");
    say(r, "validation   %llu tokens in %llu sequences", (unsigned long long)v->scored,
        (unsigned long long)v->n);
    return count_bytes(r);
}

/* For validation and samples, on the weights in training. */
static bool make_session(run *r)
{
    monet_session_config config;
    monet_host host;
    monet_error why = {{0}, MONET_OK};
    memset(&config, 0, sizeof config);
    memset(&host, 0, sizeof host);
    host.n_threads = (int)r->set.threads;
    config.host = &host;
    config.max_batch = r->arch->max_seq_len < EVAL_TOKENS ? r->arch->max_seq_len : EVAL_TOKENS;
    config.all_logits = true;
    return monet_session_create(monet_trainer_model(r->trainer), &config, &r->session, &why)
        == MONET_OK || monet_failed(r, &why);
}

/* Nats per token of the validation text, with the running statistics as in use. NAN: not finite. */
static double validate(run *r)
{
    const validation *v = &r->valid;
    double nats = 0, start = tool_seconds();
    for (size_t k = 0; k < v->n; k++) {
        const int32_t *tokens = v->tokens + k * v->length, *targets = v->targets + k * v->length;
        monet_session_rewind(r->session, 0);
        for (size_t at = 0, n; at < v->length; at += n) {
            n = v->length - at < EVAL_TOKENS ? v->length - at : EVAL_TOKENS;
            if (monet_session_eval(r->session, tokens + at, n) != MONET_OK) {
                say(r, "step %lld: validation failed: %s", (long long)r->step,
                    monet_session_error(r->session)->message);
                return NAN;
            }
            for (size_t t = 0; t < n; t++)
                if (targets[at + t] >= 0)
                    nats -= monet_logprob(monet_session_logits_at(r->session, (int32_t)t),
                                          r->arch->vocab_size, targets[at + t]);
        }
    }
    nats /= (double)v->scored;
    r->valid_seconds = tool_seconds() - start;
    say(r, "step %lld: validation %.4f nats per token, %.3f bits per byte (%.1f s)",
        (long long)r->step, nats, nats * v->bits, r->valid_seconds);
    return nats;
}

/* A young model writes anything: nothing of it may drive the terminal. */
static bool take_sample(void *user, const char *text, size_t size)
{
    run *r = (run *)user;
    for (size_t k = 0; k < size; k++) {
        unsigned char c = (unsigned char)text[k];
        bool control = (c < 0x20 && c != '\n') || c == 0x7F
            || (c == 0xC2 && k + 1 < size && (unsigned char)text[k + 1] < 0xA0);
        tool_put(&r->sample, control ? " " : text + k, 1);
        k += control && c == 0xC2;
    }
    return !stop_signal;
}

static void show_sample(run *r)
{
    monet_generate_config config;
    tool_buffer prompt = {NULL, 0, 0, false};
    bool chat = r->set.chat.n > 0;
    memset(&config, 0, sizeof config);
    config.sampler.temperature = 0.8f;
    config.sampler.top_p = 0.9f;
    config.sampler.seed = r->set.seed + (uint64_t)r->step;
    config.max_tokens = (int32_t)r->set.sample_tokens;
    config.text_fn = take_sample;
    config.user = r;
    if (chat) tool_put(&prompt, "[INST] ", 7);
    tool_put(&prompt, r->set.prompt, strlen(r->set.prompt));
    if (chat) tool_put(&prompt, " [/INST]", 8);
    r->sample.size = 0;
    tool_put(&r->sample, r->set.prompt, strlen(r->set.prompt));
    if (chat) tool_put(&r->sample, "\n", 1);
    monet_session_rewind(r->session, 0);
    if (prompt.failed || monet_session_generate(r->session, prompt.data, &config, NULL) != MONET_OK)
        say(r, "step %lld: no sample: %s", (long long)r->step,
            monet_session_error(r->session)->message);
    else if (!r->sample.failed)
        say(r, "---- step %lld ----\n%s\n----", (long long)r->step,
            r->sample.data ? r->sample.data : "");
    tool_buffer_free(&prompt);
}

/* ---- the log --------------------------------------------------------------------------------- */

static const char log_header[] =
    "step,tokens,loss,bits_per_byte,uniformity,ambiguity,unused,grad_norm,rate,skipped,valid_loss,"
    "valid_bits_per_byte,seconds,tokens_per_second\n";

/* Rows go to the file at once; if that fails they wait for the next time. */
static bool flush_log(run *r)
{
    size_t done = 0;
    while (done < r->waiting.size) {
        ssize_t n = pwrite(r->log, r->waiting.data + done, r->waiting.size - done,
                           (off_t)(r->log_size + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        done += (size_t)n;
    }
    if (done < r->waiting.size) {
        if (!r->log_failed) say(r, "log.csv: %s; training goes on, rows wait", strerror(errno));
        r->log_failed = true;
        return false;
    }
    if (r->log_failed) say(r, "log.csv: can be written again");
    r->log_failed = false;
    r->log_size += done;
    r->waiting.size = 0;
    return true;
}

static void log_row(run *r, const step_row *row)
{
    const double values[REPORT_SERIES] = {row->loss, row->valid, row->uniformity, row->ambiguity,
                                          (double)row->unused, row->norm, row->rate, row->speed};
    int64_t tokens = row->step * r->set.batch * r->set.seq * r->set.accumulate;
    tool_buffer *out = &r->waiting;
    report_add(&r->curves, row->step, values);
    tool_putf(out, "%lld,%lld,%.6f,%.5f,%.5f,%.5f,", (long long)row->step, (long long)tokens,
              row->loss, row->loss * r->bits, row->uniformity, row->ambiguity);
    tool_putf(out, "%lld,%.5g,%.6g,%d,", (long long)row->unused, row->norm, row->rate,
              (int)row->skipped);
    if (isfinite(row->valid)) tool_putf(out, "%.6f,%.5f,", row->valid, row->valid * r->valid.bits);
    else tool_putf(out, ",,");
    tool_putf(out, "%.2f,%.1f\n", r->seconds_before + tool_seconds() - r->begun, row->speed);
    flush_log(r);
}

/* One row back into the curves; false if it is cut off. */
static bool read_row(run *r, const char *line, const char *end)
{
    static const int columns[REPORT_SERIES] = {2, 10, 4, 5, 6, 7, 8, 13};
    double cell[14], values[REPORT_SERIES];
    for (int k = 0; k < 14; k++) {
        const char *stop = memchr(line, k < 13 ? ',' : '\n', (size_t)(end - line));
        char *after;
        if (!stop) return false;
        cell[k] = strtod(line, &after);
        if (after == line) cell[k] = NAN;
        line = stop + 1;
    }
    for (int k = 0; k < REPORT_SERIES; k++) values[k] = cell[columns[k]];
    report_add(&r->curves, (int64_t)cell[0], values);
    if (isfinite(cell[12])) r->seconds_before = cell[12];
    return true;
}

/* Cuts the log back to the step of the checkpoint, and draws its curves again. */
static bool cut_log(run *r)
{
    struct stat status;
    size_t size, head = sizeof log_header - 1, at = head;
    long long last = 0;
    char *text;
    if (fstat(r->log, &status) != 0)
        return tool_fail(&r->err, "log.csv: %s", strerror(errno));
    size = (size_t)status.st_size;
    if (!(text = tool_alloc((uint64_t)size + 1, 1, &r->err))) return false;
    if (!tool_pread(r->log, text, size, 0, &r->err)) return free(text), false;
    if (size < head || memcmp(text, log_header, head) != 0) {
        if (size > 0) say(r, "log.csv: is not a log of this program: begun anew");
        at = 0;
    }
    while (at > 0 && at < size) {
        const char *feed = memchr(text + at, '\n', size - at);
        long long step = feed ? strtoll(text + at, NULL, 10) : 0;
        if (!feed || step > r->step || step <= last || !read_row(r, text + at, feed + 1)) break;
        last = step;
        at = (size_t)(feed + 1 - text);
    }
    free(text);
    if (last < r->step) say(r, "log.csv: the rows after step %lld are missing", last);
    r->log_size = at;
    if (at == 0) tool_put(&r->waiting, log_header, head);
    if (ftruncate(r->log, (off_t)at) != 0) say(r, "log.csv: %s", strerror(errno));
    flush_log(r);
    return true;
}

/* The log is also the lock of the folder: two processes would destroy each other's work. */
static bool open_log(run *r)
{
    struct flock lock;
    char *path = path_of(r, "log.csv");
    if (!path) return false;
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    r->log = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (r->log < 0) tool_fail(&r->err, "%.300s: %s", path, strerror(errno));
    else if (fcntl(r->log, F_SETLK, &lock) != 0 && (errno == EACCES || errno == EAGAIN)) {
        bool known = fcntl(r->log, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
        tool_fail(&r->err, "another process (%ld) trains in %.300s", known ? (long)lock.l_pid : 0L,
                  r->folder);
        close(r->log);
        r->log = -1;
    }
    free(path);
    return r->log >= 0;
}

/* ---- progress -------------------------------------------------------------------------------- */

static const char *human_time(char out[24], double seconds)
{
    if (!(seconds < 3.6e8)) snprintf(out, 24, "?");
    else if (seconds < 100) snprintf(out, 24, "%.0f s", seconds);
    else if (seconds < 6000) snprintf(out, 24, "%.0f min", seconds / 60);
    else snprintf(out, 24, "%.1f h", seconds / 3600);
    return out;
}

static const char *human_count(char out[24], double n)
{
    if (n < 1e4) snprintf(out, 24, "%.0f", n);
    else if (n < 1e7) snprintf(out, 24, "%.0fk", n / 1e3);
    else if (n < 1e10) snprintf(out, 24, "%.1fM", n / 1e6);
    else snprintf(out, 24, "%.1fG", n / 1e9);
    return out;
}

/* Where this process ends: all steps, or --stop-after. */
static int64_t last_step(const run *r)
{
    int64_t end = r->set.steps > 0 ? r->set.steps : INT64_MAX;
    return r->set.stop_after > 0 && r->set.stop_after < end ? r->set.stop_after : end;
}

static void show_progress(run *r, const step_row *row)
{
    char line[160], tokens[24], left[24];
    double now = tool_seconds(), per_step = (double)(r->set.batch * r->set.seq * r->set.accumulate);
    bool last = row->step == last_step(r);
    r->step_seconds += (row->seconds - r->step_seconds) * (r->step_seconds > 0 ? 0.05 : 1);
    if (r->set.quiet || r->output_failed) return;
    if (r->terminal ? now - r->last_line < 1 && !last : row->step % r->set.log_every && !last)
        return;
    r->last_line = now;
    snprintf(line, sizeof line, "%7lld %7s %7.4f %6.3f %6.3f %6.3f %5lld %7.3f %7.0f %8s",
             (long long)row->step, human_count(tokens, (double)row->step * per_step), row->loss,
             row->loss * r->bits, row->uniformity, row->ambiguity, (long long)row->unused,
             row->norm, per_step / r->step_seconds,
             r->set.steps ? human_time(left, (double)(last_step(r) - row->step) * r->step_seconds)
                          : "?");
    if (!r->terminal) {
        say(r, "%s", line);
        return;
    }
    printf("\r%-79.79s", line);
    r->line_open = true;
    fflush(stdout);
}

/* ---- checkpoints ----------------------------------------------------------------------------- */

static int newest_first(const void *a, const void *b)
{
    int64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x > y ? -1 : x < y;
}

/* Steps of all files ckpt-STEP.monet in the folder, the newest first. */
static bool list_checkpoints(run *r, int64_t **steps, size_t *n)
{
    size_t capacity = 0, count, i;
    char **names;
    bool ok = corpus__names(r->folder, &names, &count, &r->err);
    *steps = NULL;
    *n = 0;
    for (i = 0; i < count; i++) {
        char *end = names[i];
        long long step = strncmp(end, "ckpt-", 5) == 0 ? strtoll(end + 5, &end, 10) : -1;
        char canonical[48];
        snprintf(canonical, sizeof canonical, "ckpt-%lld.monet", step);
        if (ok && step >= 0 && strcmp(canonical, names[i]) == 0) {
            ok = tool_grow(steps, &capacity, (uint64_t)*n + 1, sizeof **steps, &r->err);
            if (ok) (*steps)[(*n)++] = step;
        }
        free(names[i]);
    }
    free(names);
    tool_sort(*steps, *n, sizeof **steps, newest_first);
    return ok;
}

static char *checkpoint_path(run *r, int64_t step)
{
    char name[48];
    snprintf(name, sizeof name, "ckpt-%lld.monet", (long long)step);
    return path_of(r, name);
}

static void remove_old(run *r)
{
    int64_t *steps;
    size_t n, k;
    if (!list_checkpoints(r, &steps, &n)) n = 0;
    for (k = KEEP; k < n; k++) {
        char *path = checkpoint_path(r, steps[k]);
        if (path) unlink(path);
        free(path);
    }
    free(steps);
}

static void write_report(run *r)
{
    report_page page;
    tool_buffer text = settings_text(r);
    tool_error why;
    char *path = path_of(r, "report.html"), subtitle[160], count[24];
    double tokens = (double)(r->step * r->set.batch * r->set.seq * r->set.accumulate);
    memset(&page, 0, sizeof page);
    snprintf(subtitle, sizeof subtitle, "step %lld of %lld, %s tokens", (long long)r->step,
             (long long)r->set.steps, human_count(count, tokens));
    page.curves = &r->curves;
    page.title = r->folder;
    page.subtitle = subtitle;
    page.options = text.data;
    page.sample = r->sample.size > 0 ? r->sample.data : NULL;
    page.bits = r->bits;
    if (path && !report_write(path, &page, &why)) say(r, "report.html: %s", why.message);
    tool_buffer_free(&text);
    free(path);
}

/* The log goes to the disk first, so that it has every row up to the checkpoint's step. */
static bool save_checkpoint(run *r)
{
    monet_error why = {{0}, MONET_OK};
    tool_buffer text = settings_text(r);
    char *path = checkpoint_path(r, r->step);
    bool ok = path && !text.failed;
    r->last_save = tool_seconds();
    if (!ok) tool_fail(&r->err, "out of memory");
    if (flush_log(r) && fsync(r->log) != 0) say(r, "log.csv: %s", strerror(errno));
    if (ok && monet_trainer_save(r->trainer, path, text.data, text.size, &why) != MONET_OK)
        ok = monet_failed(r, &why);
    if (ok) {
        r->saved = r->step;
        remove_old(r);
        write_report(r);
    }
    tool_buffer_free(&text);
    free(path);
    return ok;
}

/* An older checkpoint is intact, so a failure is no reason to stop. */
static void save_or_warn(run *r)
{
    char when[24];
    if (save_checkpoint(r)) return;
    say(r, "step %lld: no checkpoint: %s; training goes on, the next try is in %s",
        (long long)r->step, r->err.message, human_time(when, r->set.checkpoint_minutes * 60));
    r->err.message[0] = 0; /* it was told */
}

static bool copy_rows(run *r, monet_writer *writer, const monet_tensor *t)
{
    monet_error why = {{0}, MONET_OK};
    int64_t rows = t->n_dims == 1 ? 1 : t->shape[0], columns = t->n_dims == 1 ? t->shape[0]
                                                                              : t->shape[1];
    int64_t most = columns > 65536 ? 1 : 65536 / columns;
    float *buffer = tool_alloc((uint64_t)most * (uint64_t)columns, sizeof *buffer, &r->err);
    bool ok = buffer != NULL;
    for (int64_t row = 0, n; ok && row < rows; row += n) {
        n = rows - row < most ? rows - row : most;
        if (monet_tensor_read(t, row, n, buffer) != MONET_OK)
            ok = tool_fail(&r->err, "tensor %s cannot be read", t->name);
        else if (monet_writer_rows(writer, buffer, n, &why) != MONET_OK)
            ok = monet_failed(r, &why);
    }
    free(buffer);
    return ok;
}

/* model.monet: the weights alone, in --save-dtype. */
static bool write_model(run *r)
{
    const monet_model *model = monet_trainer_model(r->trainer);
    monet_writer_config content;
    monet_writer *writer = NULL;
    monet_error why = {{0}, MONET_OK};
    size_t n = monet_model_tensor_count(model), items = monet_model_metadata_count(model);
    monet_tensor *tensors = tool_alloc(n, sizeof *tensors, &r->err);
    monet_metadata *metadata = tool_alloc(items, sizeof *metadata, &r->err);
    tokenizer_copy tokenizer;
    char *path = path_of(r, "model.monet");
    bool ok = tokenizer_copy_model(&tokenizer, r->tokenizer, &r->err) && tensors && metadata && path
        && monet_arch_tensors(r->arch, (monet_dtype)r->set.save_dtype, tensors, n, &n) == MONET_OK;
    memset(&content, 0, sizeof content);
    for (size_t k = 0; ok && k < items; k++) {
        metadata[k].key = monet_model_metadata_key(model, k);
        metadata[k].value = monet_model_metadata_value(model, k);
    }
    for (size_t k = 0; ok && k < n; k++) tensors[k].source_dtype = tensors[k].dtype;
    content.arch = r->arch;
    content.tensors = tensors, content.n_tensors = n;
    content.tokenizer = &tokenizer.data;
    content.metadata = metadata, content.n_metadata = items;
    if (ok && monet_writer_create(path, &content, &writer, &why) != MONET_OK)
        ok = monet_failed(r, &why);
    for (size_t k = 0; ok && k < n; k++) ok = copy_rows(r, writer, monet_model_tensor(model, k));
    if (ok && monet_writer_finish(writer, &why) != MONET_OK) ok = monet_failed(r, &why);
    monet_writer_free(writer);
    tokenizer_copy_free(&tokenizer);
    free(tensors);
    free(metadata);
    free(path);
    return ok;
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* With --minutes: the first steps, at most those of the warm-up, whose rate does not depend on how
   many there will be, tell how many fit in. That number is then as if it had been given.         */
static void plan_steps(run *r)
{
    const settings *set = &r->set;
    double spent = tool_seconds() - r->begun, cost = r->step_seconds;
    int64_t more;
    if (set->steps > 0 || (spent < PLAN_SECONDS && r->step < set->warmup)) return;
    if (r->valid.n > 0) cost += r->valid_seconds / (double)set->valid_every;
    more = (int64_t)fmax(1, (set->minutes * 60 - spent) / cost);
    r->set.steps = r->step + more;
    say(r, "%g minutes are %lld steps on this machine now: --steps %lld repeats this run",
        set->minutes, (long long)r->set.steps, (long long)r->set.steps);
}

static bool train(run *r)
{
    step_row row;
    r->begun = r->last_save = tool_seconds();
    if (!r->set.quiet && r->step < last_step(r))
        say(r, "%7s %7s %7s %6s %6s %6s %5s %7s %7s %8s", "step", "tokens", "loss", "bits/B",
            "unif", "ambig", "dead", "grad", "tok/s", "left");
    while (r->step < last_step(r) && !stop_signal) {
        if (!train_step(r, &row)) return false;
        show_progress(r, &row);
        plan_steps(r);
        if (r->valid.n > 0 && (r->step % r->set.valid_every == 0 || r->step == r->set.steps))
            row.valid = validate(r);
        log_row(r, &row);
        if (r->set.sample_every > 0 && r->step % r->set.sample_every == 0) show_sample(r);
        if (tool_seconds() - r->last_save >= r->set.checkpoint_minutes * 60
            && r->step < last_step(r) && !stop_signal) save_or_warn(r);
    }
    return true;
}

/* Saves what there is; the exit code. */
static int finish(run *r)
{
    bool complete = r->step >= last_step(r);
    if (r->saved != r->step && !save_checkpoint(r))
        return tool_prefix(&r->err, "no checkpoint of the last step"), FAILED;
    write_report(r);
    if (complete && !write_model(r)) return FAILED;
    if (!complete || r->step < r->set.steps)
        say(r, "stopped after step %lld; to go on: %s --resume %s", (long long)r->step, r->program,
            r->folder);
    else
        say(r, "done: %s/model.monet after %lld steps", r->folder, (long long)r->step);
    return complete ? DONE : 128 + (int)stop_signal;
}

/* ---- starting and resuming ------------------------------------------------------------------- */

/* Unfinished files NAME.tmp.PID... of processes that are no more. */
static void remove_stale(run *r)
{
    char **names;
    size_t n, k;
    if (!corpus__names(r->folder, &names, &n, &r->err)) n = 0;
    for (k = 0; k < n; k++) {
        const char *tail = strstr(names[k], ".tmp.");
        char *end = NULL, *path;
        long pid = tail ? strtol(tail + 5, &end, 10) : 0;
        bool ours = tail && end > tail + 5 && (*end == 0 || *end == '.') && pid > 0;
        if (ours && (pid == (long)getpid() || (kill((pid_t)pid, 0) != 0 && errno == ESRCH))
            && (path = path_of(r, names[k])) != NULL) {
            if (unlink(path) == 0) say(r, "removed      %s: unfinished", path);
            free(path);
        }
        free(names[k]);
    }
    free(names);
}

/* A run that is already in the folder is not overwritten, unless --force says so; then it goes. */
static bool clear_folder(run *r, bool remove)
{
    static const char *const names[] = {"model.monet", "report.html"};
    int64_t *steps;
    size_t n, k;
    char *path = path_of(r, "log.csv");
    struct stat status;
    bool used = path && stat(path, &status) == 0 && status.st_size > 0;
    free(path);
    if (!list_checkpoints(r, &steps, &n)) return false;
    for (k = 0; k < 2; k++) used = used || tool_has(r->folder, names[k]);
    for (k = 0; remove && k < n + 2; k++) {
        path = k < n ? checkpoint_path(r, steps[k]) : path_of(r, names[k - n]);
        if (path) unlink(path);
        free(path);
    }
    free(steps);
    return remove || !(used || n > 0)
        || tool_fail(&r->err, "%.300s: holds a run already: go on with --resume, or --force "
                     "deletes it", r->folder);
}

static bool make_folder(run *r)
{
    r->folder = r->set.out;
    r->made_folder = mkdir(r->folder, 0777) == 0;
    if (!r->made_folder && errno != EEXIST)
        return tool_fail(&r->err, "%.300s: cannot be made: %s", r->folder, strerror(errno));
    return (r->set.force || clear_folder(r, false)) && open_log(r);
}

/* A run that could not begin leaves nothing behind. */
static void unmake_folder(run *r)
{
    static const char *const names[] = {"log.csv", "tokens.bin"};
    for (size_t k = 0; r->made_folder && r->log >= 0 && k < 2; k++) {
        char *path = path_of(r, names[k]);
        if (path) unlink(path);
        free(path);
    }
    if (r->made_folder) rmdir(r->folder);
}

static bool make_buffers(run *r)
{
    uint64_t n = (uint64_t)r->set.batch * (uint64_t)r->set.seq;
    r->tokens = tool_alloc(n, sizeof *r->tokens, &r->err);
    r->targets = tool_alloc(n, sizeof *r->targets, &r->err);
    return r->tokens && r->targets
        && ((r->valid.n == 0 && r->set.sample_every == 0) || make_session(r));
}

static void describe(run *r)
{
    const monet_model *model = monet_trainer_model(r->trainer);
    const monet_arch *a = r->arch;
    char count[24];
    double parameters = 0;
    for (size_t k = 0; k < monet_model_tensor_count(model); k++) {
        const monet_tensor *t = monet_model_tensor(model, k);
        parameters += (double)t->shape[0] * (double)t->shape[1];
    }
    say(r, "model        %s, %s parameters: V=%d C=%d L=%d A=%d K=%d N=%d M=%d H=%d k=%d G=%d",
        a->decompose == MONET_VERTICAL ? "vertical" : "horizontal", human_count(count, parameters),
        (int)a->vocab_size, (int)a->dim, (int)a->n_layers, (int)a->n_heads, (int)a->n_kv_heads,
        (int)a->moe_experts, (int)a->moe_dim, (int)a->moe_heads, (int)a->moe_topk,
        (int)a->moe_groups);
    say(r, "step         %lld x %lld x %lld tokens, seed %llu, %lld threads",
        (long long)r->set.accumulate, (long long)r->set.batch, (long long)r->set.seq,
        (unsigned long long)r->set.seed, (long long)r->set.threads);
}

/* Everything that can be wrong shows before the first step; so does a disk without the room for a
   checkpoint.                                                                                    */
static bool start_run(run *r)
{
    monet_model *model = NULL;
    text_list files = {NULL, 0, 0};
    bool ok = check_settings(r) && resolve_list(r, &r->set.inputs) && resolve_list(r, &r->set.chat)
        && resolve_list(r, &r->set.valid);
    if (ok && r->set.from) ok = add_text(r, &files, r->set.from);
    if (ok && r->set.tokenizer) ok = add_text(r, &files, r->set.tokenizer);
    ok = ok && resolve_list(r, &files);
    if (ok && r->set.from) r->set.from = files.items[0];
    if (ok && r->set.tokenizer) r->set.tokenizer = files.items[files.n - 1];
    free(files.items);
    ok = ok && open_model(r, &model) && make_folder(r);
    if (ok) remove_stale(r);
    ok = ok && open_corpus(r, 0) && check_corpus(r) && make_trainer(r, model, NULL)
        && make_validation(r) && make_buffers(r);
    monet_model_free(model);
    if (!ok) return false;
    describe(r);
    if (r->valid.n > 0) validate(r);
    clear_folder(r, true);
    if (ftruncate(r->log, 0) != 0) return tool_fail(&r->err, "log.csv: %s", strerror(errno));
    tool_put(&r->waiting, log_header, sizeof log_header - 1);
    return save_checkpoint(r);
}

/* The options that a checkpoint carries, then those of the command line that may be new. */
static bool take_options(run *r, const monet_trainer *trainer, int argc, char **argv)
{
    size_t size = 0;
    const char *text = monet_trainer_user(trainer, &size);
    settings old = r->set;
    bool ok;
    if (!text || size < 8 || memcmp(text, "train=1\n", 8) != 0)
        return tool_fail(&r->err, "holds no options of this program");
    default_settings(&r->set);
    ok = apply_text(r, text, size) && read_options(r, argc, argv);
    free(old.inputs.items), free(old.chat.items), free(old.valid.items), free(old.freeze.items);
    if (ok && r->step > r->set.steps && r->set.steps > 0)
        ok = tool_fail(&r->err, "--steps %lld: the run is at step %lld already",
                       (long long)r->set.steps, (long long)r->step);
    return ok;
}

/* The newest checkpoint that is whole, loaded for a glance at its options: *path. Those that are
   not get another name, so that they do not count as checkpoints any more.                       */
static bool find_checkpoint(run *r, int argc, char **argv, char **path)
{
    monet_trainer_config small;
    int64_t *steps;
    size_t n, k;
    bool found = false, ok = list_checkpoints(r, &steps, &n);
    memset(&small, 0, sizeof small);
    small.batch_size = small.seq_len = 1;
    for (k = 0; ok && k < n && !found; k++) {
        monet_trainer *trainer = NULL;
        monet_error why = {{0}, MONET_OK};
        char *bad;
        ok = (*path = checkpoint_path(r, steps[k])) != NULL;
        found = ok && monet_trainer_load(*path, &small, &trainer, &why) == MONET_OK;
        r->step = steps[k];
        if (found) {
            ok = take_options(r, trainer, argc, argv);
        } else if (ok && why.code == MONET_ERROR_MEMORY) {
            ok = monet_failed(r, &why);
        } else if (ok && (bad = tool_alloc(strlen(*path) + 16, 1, &r->err)) != NULL) {
            snprintf(bad, strlen(*path) + 16, "%s.damaged", *path);
            say(r, "skipped      %s%s", why.message,
                rename(*path, bad) == 0 ? " (renamed .damaged)" : "");
            free(bad);
        }
        monet_trainer_free(trainer);
        if (!found) free(*path), *path = NULL;
    }
    free(steps);
    if (ok && !found)
        ok = tool_fail(&r->err, "%.300s: holds no checkpoint to resume", r->folder);
    return ok;
}

static bool resume_run(run *r, int argc, char **argv)
{
    monet_counts counts = {0, 0, 0};
    char *path = NULL;
    bool ok;
    for (size_t k = 0; k < N_OPTIONS; k++)
        if (r->given[k] && (options[k].kind == KEPT || options[k].field == FIELD(force)
                            || options[k].field == FIELD(out) || options[k].field == FIELD(preset)))
            return tool_fail(&r->err, "--%s cannot be given with --resume: the run keeps its "
                             "options", options[k].name);
    if (r->set.inputs.n > 0)
        return tool_fail(&r->err, "'%.200s' cannot be given with --resume: the run keeps its texts",
                         r->set.inputs.items[0]);
    r->folder = r->set.resume;
    if (access(r->folder, F_OK) != 0)
        return tool_fail(&r->err, "%.300s: %s", r->folder, strerror(errno));
    if (!open_log(r)) return false;
    remove_stale(r);
    ok = find_checkpoint(r, argc, argv, &path) && make_trainer(r, NULL, path);
    if (ok) {
        monet_trainer_counts(r->trainer, &counts);
        r->step = r->saved = counts.steps + counts.skipped;
        say(r, "resumed      %s", path);
    }
    free(path);
    ok = ok && open_corpus(r, r->hash) && check_corpus(r) && make_validation(r) && make_buffers(r)
        && cut_log(r);
    if (ok) describe(r);
    return ok;
}

/* ---- main ------------------------------------------------------------------------------------ */

static void catch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action, old;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    for (size_t k = 0; k < sizeof numbers / sizeof numbers[0]; k++)
        if (numbers[k] != SIGHUP || (sigaction(SIGHUP, NULL, &old) == 0
                                     && old.sa_handler != SIG_IGN)) /* it is, by nohup */
            sigaction(numbers[k], &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* a reader of the progress that went away */
#ifdef SIGXFSZ
    signal(SIGXFSZ, SIG_IGN); /* a limit of file sizes is a full disk */
#endif
}

static void free_run(run *r)
{
    monet_session_free(r->session);
    monet_trainer_free(r->trainer);
    corpus_close(&r->data);
    corpus_files_free(&r->files);
    free(r->valid.tokens), free(r->valid.targets);
    free(r->tokens), free(r->targets);
    tool_buffer_free(&r->waiting);
    tool_buffer_free(&r->sample);
    if (r->log >= 0) close(r->log);
    for (size_t k = 0; k < r->owned.n; k++) free((void *)(uintptr_t)r->owned.items[k]);
    free(r->owned.items), free(r->set.inputs.items), free(r->set.chat.items);
    free(r->set.valid.items), free(r->set.freeze.items);
}

int main(int argc, char **argv)
{
    static run r; /* zero; too large for a small stack */
    int status = FAILED;
    bool ok;
    r.log = -1;
    r.program = argc > 0 ? argv[0] : "train";
    r.terminal = isatty(STDOUT_FILENO) == 1;
    if (!read_settings(&r, argc, argv)) {
        status = USAGE;
    } else if (r.set.help) {
        print_help();
        status = fflush(stdout) == 0 ? DONE : FAILED;
    } else {
        catch_signals();
        ok = r.set.resume ? resume_run(&r, argc, argv) : start_run(&r);
        if (!ok && !r.set.resume) unmake_folder(&r);
        ok = ok && train(&r);
        if (ok) status = finish(&r);
        else if (stop_signal) status = 128 + (int)stop_signal;
    }
    if (r.line_open) putchar('\n');
    if (r.err.message[0] && status != DONE) fprintf(stderr, "train: %s\n", r.err.message);
    free_run(&r);
    return status;
}
