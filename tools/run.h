/* run.h: what the tools share that run a model: options, loading models and edits.

   Include it after monet.h and common.h. An option is "--name value", "--name=value" or "--flag";
   what does not start with a dash is a file, in any order; after "--" everything is a file.

       int64_t threads = run_processors();
       bool help = false;
       const run_option options[] = {
           {"threads", RUN_WHOLE, &threads, 1, 256, "N", "threads (default: all processors)"},
           {"help", RUN_FLAG, &help, 0, 0, NULL, "this text"},
       };
       if (!run_parse(options, 2, argc, argv, files, 3, &n_files, &err)) ...                   */
#ifndef TOOL_RUN_H
#define TOOL_RUN_H

#include "common.h"

typedef enum run_type {
    RUN_FLAG, RUN_TEXT, RUN_TEXTS, RUN_WHOLE, RUN_DTYPE, RUN_MODE, RUN_KERNELS
} run_type;

#define RUN_MAX_TEXTS 64
typedef struct run_texts { /* of an option that may be repeated, in order */
    const char *items[RUN_MAX_TEXTS];
    size_t      n;
} run_texts;

typedef struct run_option {
    const char *name;
    run_type    type;
    void       *value;      /* bool, const char *, run_texts, int64_t, monet_dtype and so on */
    int64_t     low, high;  /* what a number may be */
    const char *argument, *help;
} run_option;

static TOOL_UNUSED bool run__whole(const run_option *option, const char *text, tool_error *err)
{
    int64_t value = 0;
    const char *c = text;

    for (; *c >= '0' && *c <= '9' && value <= option->high; c++) {
        int digit = *c - '0';
        value = value > (INT64_MAX - digit) / 10 ? INT64_MAX : value * 10 + digit;
    }
    if (c == text || *c != '\0' || value < option->low || value > option->high)
        return tool_fail(err, "--%s: '%.100s' is not a whole number from %lld to %lld",
                         option->name, text, (long long)option->low, (long long)option->high);
    *(int64_t *)option->value = value;
    return true;
}

static TOOL_UNUSED bool run__dtype(const run_option *option, const char *text, tool_error *err)
{
    static const monet_dtype types[] = {MONET_F32, MONET_F16, MONET_BF16};
    size_t i;

    for (i = 0; i < 3; i++)
        if (strcmp(text, monet_dtype_name(types[i])) == 0) {
            *(monet_dtype *)option->value = types[i];
            return true;
        }
    return tool_fail(err, "--%s: '%.100s' is not f32, f16 or bf16", option->name, text);
}

static TOOL_UNUSED bool run__mode(const run_option *option, const char *text, tool_error *err)
{
    const bool fast = strcmp(text, "fast") == 0;

    if (!fast && strcmp(text, "exact") != 0)
        return tool_fail(err, "--%s: '%.100s' is not exact or fast", option->name, text);
    *(monet_mode *)option->value = fast ? MONET_FAST : MONET_EXACT;
    return true;
}

/* Only what this processor has: elsewhere monet_kernels_name gives another name. */
static TOOL_UNUSED bool run__kernels(const run_option *option, const char *text, tool_error *err)
{
    const char *name, *last = "best";
    tool_buffer here = {NULL, 0, 0, false};
    int k;

    tool_putf(&here, "best");
    for (k = MONET_KERNELS_BEST; k <= MONET_KERNELS_WASM; k++) {
        name = k == MONET_KERNELS_BEST ? last : monet_kernels_name((monet_kernels)k);
        if (strcmp(text, name) == 0) {
            *(monet_kernels *)option->value = (monet_kernels)k;
            tool_buffer_free(&here);
            return true;
        }
        if (strcmp(name, last) != 0) tool_putf(&here, ", %s", name);
        last = name;
    }
    tool_fail(err, "--%s: '%.100s' is not there; this machine has %s", option->name, text,
              here.failed ? "others" : here.data);
    tool_buffer_free(&here);
    return false;
}

static TOOL_UNUSED bool run__add(const run_option *option, const char *text, tool_error *err)
{
    run_texts *texts = option->value;

    if (texts->n == RUN_MAX_TEXTS)
        return tool_fail(err, "--%s: given more than %d times", option->name, RUN_MAX_TEXTS);
    texts->items[texts->n++] = text;
    return true;
}

static TOOL_UNUSED bool run__set(const run_option *option, const char *text, tool_error *err)
{
    switch (option->type) {
    case RUN_FLAG: *(bool *)option->value = true; break;
    case RUN_TEXT: *(const char **)option->value = text; break;
    case RUN_TEXTS: return run__add(option, text, err);
    case RUN_WHOLE: return run__whole(option, text, err);
    case RUN_DTYPE: return run__dtype(option, text, err);
    case RUN_MODE: return run__mode(option, text, err);
    case RUN_KERNELS: return run__kernels(option, text, err);
    }
    return true;
}

/* argv[*index] is an option; moves on to its value if that is the next argument. */
static TOOL_UNUSED bool run__option(const run_option *options, size_t n, int argc, char **argv,
                                    int *index, tool_error *err)
{
    const char *name = argv[*index] + 2, *equals = strchr(name, '=');
    const char *value = equals != NULL ? equals + 1 : NULL;
    size_t size = equals != NULL ? (size_t)(equals - name) : strlen(name), i = 0;

    while (i < n && (strlen(options[i].name) != size || memcmp(options[i].name, name, size) != 0))
        i++;
    if (i == n)
        return tool_fail(err, "unknown option '%.100s' (--help lists them)", argv[*index]);
    if (options[i].type == RUN_FLAG && value != NULL)
        return tool_fail(err, "--%s takes no value", options[i].name);
    if (options[i].type != RUN_FLAG && value == NULL) {
        if (*index + 1 >= argc)
            return tool_fail(err, "--%s needs a value: %s", options[i].name, options[i].argument);
        value = argv[++*index];
    }
    return run__set(&options[i], value, err);
}

/* Sets the options and collects at most max_files other arguments. */
static TOOL_UNUSED bool run_parse(const run_option *options, size_t n, int argc, char **argv,
                                  const char **files, size_t max_files, size_t *n_files,
                                  tool_error *err)
{
    bool only_files = false;
    int k;

    *n_files = 0;
    for (k = 1; k < argc; k++) {
        const char *argument = argv[k];
        if (!only_files && strcmp(argument, "--") == 0) {
            only_files = true;
        } else if (!only_files && strncmp(argument, "--", 2) == 0) {
            if (!run__option(options, n, argc, argv, &k, err)) return false;
        } else if (!only_files && argument[0] == '-' && argument[1] != '\0') {
            return tool_fail(err, "unknown option '%.100s' (--help lists them)", argument);
        } else if (*n_files == max_files) {
            return tool_fail(err, "'%.100s' is one file too many", argument);
        } else {
            files[(*n_files)++] = argument;
        }
    }
    return true;
}

static TOOL_UNUSED void run_print_options(const run_option *options, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++) {
        const run_option *o = &options[i];
        int width = printf("  --%s%s%s", o->name, o->argument != NULL ? " " : "",
                           o->argument != NULL ? o->argument : "");
        printf("%*s%s\n", width < 24 ? 24 - width : 1, "", o->help);
    }
}

/* One router serves moe_groups layers. */
static TOOL_UNUSED int32_t run_routers(const monet_arch *arch)
{
    return (arch->n_layers + arch->moe_groups - 1) / arch->moe_groups;
}

/* Processors of this machine that are on, 1 to 256. */
static TOOL_UNUSED int64_t run_processors(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);

    return n < 1 ? 1 : n > 256 ? 256 : n;
}

/* Loads a file; the message of a failure names it. */
static TOOL_UNUSED bool run_load_any(const char *path, monet_model **model, tool_error *err)
{
    monet_error why = {{0}, MONET_OK};

    if (monet_model_load(path, NULL, model, &why) == MONET_OK) return true;
    tool_fail(err, "%s", why.message);
    return strstr(why.message, path) != NULL ? false : tool_prefix(err, path);
}

/* Loads a file that has to hold weights. */
static TOOL_UNUSED bool run_load(const char *path, monet_model **model, tool_error *err)
{
    if (!run_load_any(path, model, err)) return false;
    if (monet_model_arch(*model) == NULL)
        return tool_fail(err, "%.300s holds a tokenizer, but no model", path);
    return true;
}

/* A session as config says, but with so many threads. */
static TOOL_UNUSED bool run_open_session(const monet_model *model, int64_t threads,
                                         const monet_session_config *config, monet_session **out,
                                         tool_error *err)
{
    monet_session_config with = *config;
    monet_error why = {{0}, MONET_OK};
    monet_host host;

    memset(&host, 0, sizeof host);
    host.n_threads = (int)threads;
    with.host = &host;
    if (monet_session_create(model, &with, out, &why) == MONET_OK) return true;
    return tool_fail(err, "%s", why.message);
}

/* ---- what a session found -------------------------------------------------------------------- */

/* Score of expert (i,j), in double from the gates, as the statistics are counted. */
static TOOL_UNUSED double run_score(const monet_routing *r, int32_t i, int32_t j)
{
    double sum = 0;
    int32_t h;

    for (h = 0; h < r->n_heads; h++)
        sum += (double)r->g1[h * r->n_experts + i] * (double)r->g2[h * r->n_experts + j];
    return sum;
}

static TOOL_UNUSED int32_t run_likeliest(const monet_real *logits, int32_t n)
{
    int32_t i, best = 0;

    for (i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* ---- edits ----------------------------------------------------------------------------------- */

typedef struct run_edit { /* all zero = no edit */
    monet_edit *edit;
    tool_buffer names;    /* "no-economics + calm" */
} run_edit;

static TOOL_UNUSED void run_edit_free(run_edit *edit)
{
    monet_edit_free(edit->edit);
    tool_buffer_free(&edit->names);
    edit->edit = NULL;
}

/* Adds one file behind those that are there. The message of a failure names it. */
static TOOL_UNUSED bool run__edit_add(run_edit *to, const monet_model *model, const char *path,
                                      tool_error *err)
{
    monet_edit *next = NULL;
    monet_error why = {{0}, MONET_OK};
    bool ok = monet_edit_load(model, path, &next, &why) == MONET_OK;

    if (ok) {
        if (to->edit != NULL) tool_put(&to->names, " + ", 3);
        tool_put(&to->names, monet_edit_name(next), strlen(monet_edit_name(next)));
    }
    if (ok && to->edit == NULL) {
        to->edit = next;
        return !to->names.failed || tool_fail(err, "out of memory");
    }
    ok = ok && monet_edit_combine(to->edit, next, &why) == MONET_OK;
    monet_edit_free(next);
    if (ok) return !to->names.failed || tool_fail(err, "out of memory");
    tool_fail(err, "%s", why.message);
    return strstr(why.message, path) != NULL ? false : tool_prefix(err, path);
}

/* Loads the files and combines them in order. run_edit_free, whatever happens. */
static TOOL_UNUSED bool run_edit_load(run_edit *edit, const monet_model *model,
                                      const run_texts *paths, tool_error *err)
{
    size_t k;

    memset(edit, 0, sizeof *edit);
    for (k = 0; k < paths->n; k++)
        if (!run__edit_add(edit, model, paths->items[k], err)) return false;
    return true;
}

typedef struct run_edit_counts { /* an expert of a router counts once, whatever its layers */
    int64_t removed, scaled, forced;
} run_edit_counts;

static TOOL_UNUSED run_edit_counts run_edit_count(const monet_edit *edit, const monet_arch *arch)
{
    const int32_t N = arch->moe_experts, L = arch->n_layers, G = arch->moe_groups;
    run_edit_counts n = {0, 0, 0};
    int32_t first, layer, i, j;

    for (first = 0; first < L; first += G)
        for (i = 0; i < N; i++)
            for (j = 0; j < N; j++) {
                bool removed = false, scaled = false, forced = false;
                for (layer = first; layer < L && layer < first + G; layer++) {
                    float factor = 1, amount = 0;
                    (void)monet_edit_get(edit, layer, i, j, &factor, &amount);
                    if (factor < 0 || factor > 0) scaled = scaled || factor < 1 || factor > 1;
                    else removed = true;
                    forced = forced || amount < 0 || amount > 0;
                }
                n.removed += removed;
                n.scaled += scaled;
                n.forced += forced;
            }
    return n;
}

static TOOL_UNUSED void run_edit_print(const run_edit *edit, const monet_arch *arch)
{
    run_edit_counts n;

    if (edit->edit == NULL) return;
    n = run_edit_count(edit->edit, arch);
    printf("edit %s: %lld experts removed, %lld scaled, %lld forced\n", edit->names.data,
           (long long)n.removed, (long long)n.scaled, (long long)n.forced);
}

#endif /* TOOL_RUN_H */
