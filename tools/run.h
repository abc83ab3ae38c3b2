/* run.h: what the tools share that run a model: options, loading, a session with threads.

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
    RUN_FLAG, RUN_TEXT, RUN_WHOLE, RUN_DTYPE, RUN_MODE, RUN_KERNELS
} run_type;

typedef struct run_option {
    const char *name;
    run_type    type;
    void       *value;      /* bool, const char *, int64_t, monet_dtype and so on */
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

static TOOL_UNUSED bool run__set(const run_option *option, const char *text, tool_error *err)
{
    switch (option->type) {
    case RUN_FLAG: *(bool *)option->value = true; break;
    case RUN_TEXT: *(const char **)option->value = text; break;
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

#endif /* TOOL_RUN_H */
