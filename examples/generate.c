// Continues a text with a Monet model, or chats with one, and shows which experts it used.
// cc -O2 -pthread -I. examples/generate.c -o generate -lm && ./generate "The key to life is"
//
// Read it from top to bottom: writing text, showing experts, reading a prompt, generating,
// chatting, statistics; then what every program needs: options, loading, main. All that it knows
// about the model comes through the functions of monet.h; examples/hello.c is the short version.

#define _POSIX_C_SOURCE 200809L
#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { DONE = 0, FAILED = 1, USAGE = 2, INTERRUPTED = 130, PIPE_CLOSED = 141 }; /* exit codes */
enum {
    PIECE = 128,           /* tokens of a prompt evaluated at once: how soon Ctrl-C is noticed */
    MAX_STOPS = 16,        /* as monet_generate_config allows */
    MAX_EXPERTS = 64,      /* --experts=N */
    MAX_EDITS = 16,        /* --edit */
    INPUT_LIMIT = 16 << 20 /* bytes of a prompt or a line */
};

typedef struct settings {
    const char   *model, *prompt;
    monet_sampler sampler;
    const char   *stops[MAX_STOPS], *edits[MAX_EDITS];
    int32_t       n_stops, n_edits, max_tokens, context, threads, experts;
    monet_dtype   kv;
    monet_mode    mode;
    monet_kernels kernels;
    bool          ignore_eos, chat, no_echo, quiet, help, info;
} settings;

typedef struct program {
    settings               set;
    monet_model           *model;
    const monet_arch      *arch;
    const monet_tokenizer *tokenizer;
    monet_edit            *edit;       /* NULL = none */
    monet_session         *session;
    int32_t                last_token; /* drawn, but not evaluated yet; -1 = none */
    bool                   skip_space; /* nothing was written yet: a space would stand alone */
    int                    write_error; /* errno of a failed write */
    size_t                 n_prompt, n_drawn;
    double                 prompt_seconds, draw_seconds;
    monet_stop             stop;
} program;

typedef struct token_list {
    int32_t *data;
    size_t   count;
} token_list;

static volatile sig_atomic_t interrupted; /* set by Ctrl-C; a second Ctrl-C ends the process */

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

static bool fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("generate: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return false;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- writing text ---------------------------------------------------------------------------- */

static bool flush_output(program *p)
{
    if (fflush(stdout) != 0 || ferror(stdout)) p->write_error = errno ? errno : EIO;
    return p->write_error == 0;
}

/* A text_fn of monet_generate_config: gets whole characters as soon as they are sure. */
static bool write_text(void *user, const char *text, size_t size)
{
    program *p = (program *)user;
    while (p->skip_space && size > 0 && *text == ' ') text++, size--;
    if (size > 0) p->skip_space = false;
    fwrite(text, 1, size, stdout);
    return flush_output(p);
}

/* ---- showing experts ------------------------------------------------------------------------- */

/* Bytes of the UTF-8 character at s; 0 if the bytes are not one. */
static size_t utf8_size(const unsigned char *s, size_t size)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] >= 0xC2 && s[0] < 0xE0 ? 2 : s[0] >= 0xE0 && s[0] < 0xF0 ? 3
             : s[0] >= 0xF0 && s[0] < 0xF5 ? 4 : 0;
    for (size_t k = 1; k < n; k++)
        if (k >= size || (s[k] & 0xC0) != 0x80) return 0;
    return n;
}

/* Prints the token in quotes, padded to a column; part of a character is shown as \xE2. */
static void print_token(const program *p, int32_t token)
{
    size_t size = 0;
    const char *bytes = monet_tokenizer_bytes(p->tokenizer, token, &size);
    const unsigned char *s = (const unsigned char *)bytes;
    int width = 2;
    if (size == 0) { /* control tokens stand for no text */
        if (token == monet_tokenizer_bos(p->tokenizer)) width = printf("<s>");
        else if (monet_tokenizer_is_eos(p->tokenizer, token)) width = printf("</s>");
        else width = printf("<%d>", (int)token);
    } else {
        putchar('"');
        for (size_t k = 0, n; k < size; k += n ? n : 1) {
            n = utf8_size(s + k, size - k);
            if (s[k] == '\n') width += printf("\\n");
            else if (s[k] == '"' || s[k] == '\\') width += printf("\\%c", s[k]);
            else if (n == 0 || s[k] < 0x20 || s[k] == 0x7F) width += printf("\\x%02X", s[k]);
            else width += (fwrite(s + k, 1, n, stdout), 1);
        }
        putchar('"');
    }
    printf("%*s", width < 16 ? 16 - width : 0, "");
}

/* One router serves moe_groups layers; people number these groups from 1. */
static int32_t group_count(const monet_arch *arch)
{
    return (arch->n_layers + arch->moe_groups - 1) / arch->moe_groups;
}

static void print_group_legend(const program *p, FILE *out)
{
    for (int32_t g = 0; g < group_count(p->arch); g++) {
        int32_t first = g * p->arch->moe_groups, last = first + p->arch->moe_groups - 1;
        if (last >= p->arch->n_layers) last = p->arch->n_layers - 1;
        fprintf(out, "%sG%d = layers %d-%d", g ? ", " : "", (int)g + 1, (int)first, (int)last);
    }
    fputc('\n', out);
}

/* Layers of a group route alike, but may be edited each on its own: the first one that is. */
static int32_t shown_layer(const program *p, int32_t group)
{
    int32_t first = group * p->arch->moe_groups;
    for (int32_t l = first; p->edit && l < first + p->arch->moe_groups; l++)
        if (monet_edit_count(p->edit, l) > 0) return l;
    return first;
}

/* "E40 (i=0, j=40) 0.52", and what an edit made of it: " -> 0.00". */
static void print_expert(const monet_routing *routing, const monet_expert *e)
{
    long long id = (long long)e->i * routing->n_experts + e->j;
    printf(" E%lld (i=%d, j=%d) %.2f", id, (int)e->i, (int)e->j, (double)e->score);
    if (e->weight < e->score || e->weight > e->score) printf(" -> %.2f", (double)e->weight);
}

/* One line: the token and, for each group, its strongest experts; with several experts, one line
   for each group. `index` counts the tokens of the last call of monet_session_eval.              */
static void print_experts(program *p, int32_t token, int32_t index)
{
    monet_expert best[MAX_EXPERTS];
    int32_t n_groups = group_count(p->arch);
    size_t capacity = (size_t)p->set.experts;
    for (int32_t g = 0; g < n_groups; g++) {
        monet_routing routing;
        int32_t layer = shown_layer(p, g);
        if (monet_session_routing(p->session, index, layer, &routing) != MONET_OK) return;
        size_t n = monet_routing_experts(&routing, 0.0f, best, capacity);
        if (g == 0 || capacity > 1) print_token(p, token);
        printf("  G%d", (int)g + 1);
        for (size_t k = 0; k < n && k < capacity; k++) print_expert(&routing, &best[k]);
        if (capacity > 1 || g == n_groups - 1) putchar('\n');
    }
    flush_output(p);
}

/* ---- tokens and prompts ---------------------------------------------------------------------- */

static bool add_tokens(token_list *list, const int32_t *tokens, size_t count)
{
    int32_t *data = (int32_t *)realloc(list->data, (list->count + count + 1) * sizeof *data);
    if (!data) return fail("out of memory");
    list->data = data;
    for (size_t k = 0; k < count; k++) list->data[list->count++] = tokens[k];
    return true;
}

/* monet_tokenizer_encode says how many tokens a text needs: ask, make room, encode. */
static bool add_text(const program *p, token_list *list, const char *text, size_t size,
                     unsigned flags)
{
    size_t count = 0;
    monet_tokenizer_encode(p->tokenizer, text, size, flags, NULL, 0, &count);
    int32_t *tokens = (int32_t *)malloc((count + 1) * sizeof *tokens);
    bool ok = tokens && monet_tokenizer_encode(p->tokenizer, text, size, flags, tokens, count,
                                               &count) == MONET_OK;
    ok = ok ? add_tokens(list, tokens, count) : fail("cannot encode the text: out of memory");
    free(tokens);
    return ok;
}

/* Evaluates tokens in pieces, so that Ctrl-C need not wait for a long prompt. */
static bool feed(program *p, const int32_t *tokens, size_t count)
{
    double start = seconds();
    for (size_t done = 0, n; done < count && !interrupted && !p->write_error; done += n) {
        n = count - done < PIECE ? count - done : PIECE;
        if (monet_session_eval(p->session, tokens + done, n) != MONET_OK)
            return fail("%s", monet_session_error(p->session)->message);
        p->n_prompt += n;
        if (p->set.experts && !p->set.no_echo)
            for (size_t k = 0; k < n; k++) print_experts(p, tokens[done + k], (int32_t)k);
    }
    p->prompt_seconds += seconds() - start;
    return true;
}

/* Bytes up to `end` ('\n', or EOF for everything), which is not kept. NULL at the end of the
   input, or after an error, which is then told. Free the result.                                 */
static char *read_text(FILE *in, int end, size_t *size)
{
    char *text = NULL;
    size_t used = 0, capacity = 0;
    int c;
    while ((c = getc(in)) != EOF && c != end && used < INPUT_LIMIT) {
        if (used + 1 >= capacity) {
            capacity = capacity ? 2 * capacity : 1024;
            char *bigger = (char *)realloc(text, capacity);
            if (!bigger) return free(text), (void)fail("out of memory"), (char *)NULL;
            text = bigger;
        }
        text[used++] = (char)c;
    }
    bool failed = used >= INPUT_LIMIT || (ferror(in) && !interrupted);
    if (used >= INPUT_LIMIT) fail("the input is longer than %d bytes", (int)INPUT_LIMIT);
    else if (failed) fail("cannot read the input: %s", strerror(errno));
    if (failed || interrupted || (c == EOF && end != EOF && used == 0)) return free(text), NULL;
    if (!text) text = (char *)malloc(1);
    *size = used;
    return text;
}

/* ---- generating ------------------------------------------------------------------------------ */

/* A token_fn of monet_generate_config: gets each token before it is evaluated, so the routing of
   the token before it is there to be shown. Returning false stops the generation.                */
static bool on_token(void *user, int32_t token, float logprob)
{
    program *p = (program *)user;
    (void)logprob;
    if (p->set.experts && p->last_token >= 0) print_experts(p, p->last_token, 0);
    p->last_token = token;
    return !interrupted && !p->write_error;
}

/* With --experts: the last token was drawn, but its own experts are known only after an eval. */
static bool show_last_token(program *p)
{
    int32_t token = p->last_token;
    if (token < 0 || interrupted || p->write_error) return true;
    if (monet_session_length(p->session) == monet_session_context(p->session)) return true;
    if (monet_session_eval(p->session, &token, 1) != MONET_OK)
        return fail("%s", monet_session_error(p->session)->message);
    print_experts(p, token, 0);
    p->last_token = -1;
    return true;
}

/* Goes on from the tokens in the session. The text ends with a newline. */
static bool generate(program *p)
{
    monet_generate_config config = {0};
    monet_generate_result result = {0};
    double start = seconds();
    config.sampler = p->set.sampler;
    config.max_tokens = p->set.max_tokens;
    config.ignore_eos = p->set.ignore_eos;
    config.stop_strings = p->set.stops;
    config.n_stop = p->set.n_stops;
    config.text_fn = p->set.experts ? NULL : write_text;
    config.token_fn = on_token;
    config.user = p;

    p->last_token = -1;
    monet_result done = monet_session_generate(p->session, NULL, &config, &result);
    p->set.sampler = result.sampler; /* the next turn draws other numbers */
    p->n_drawn += (size_t)result.n_tokens;
    p->draw_seconds += seconds() - start;
    p->stop = result.stop;
    if (done != MONET_OK) {
        putchar('\n');
        flush_output(p);
        return fail("%s", monet_session_error(p->session)->message);
    }
    if (p->set.experts) return show_last_token(p);
    putchar('\n');
    flush_output(p);
    return true;
}

/* The main job: one prompt, one continuation. */
static bool continue_text(program *p, const char *prompt, size_t size)
{
    token_list tokens = {NULL, 0};
    bool ok = add_text(p, &tokens, prompt, size, MONET_ADD_BOS);
    int32_t context = monet_session_context(p->session);
    if (ok && tokens.count > (size_t)context)
        ok = fail("the prompt is %zu tokens long and the context holds %d; --context N makes it "
                  "longer (the model was trained with %d)", tokens.count, (int)context,
                  (int)p->arch->max_seq_len);
    if (ok && !p->set.experts && !p->set.no_echo) write_text(p, prompt, size);
    p->skip_space = size == 0;
    ok = ok && !p->write_error && feed(p, tokens.data, tokens.count);
    if (ok && interrupted) putchar('\n');
    else if (ok && !p->write_error) ok = generate(p);
    free(tokens.data);
    return ok;
}

/* ---- chatting --------------------------------------------------------------------------------
   The model was taught conversations of this form, where <s> and </s> are the tokens:

       <s>[INST] a [/INST] b</s><s>[INST] c [/INST]

   What the user types is plain text: "</s>" in it does not become the token. The session keeps all
   earlier turns, so only the new one is evaluated. When the context is full, the oldest turns are
   forgotten: those that are left are evaluated again, since each token depends on all before it. */

/* What was said so far and was not evaluated yet: the last token, and the end of the reply where
   the model did not get to it (--max-tokens, a stop string).                                     */
static bool add_history(const program *p, token_list *list)
{
    int32_t end = monet_tokenizer_eos(p->tokenizer);
    size_t length = (size_t)monet_session_length(p->session);
    if (!add_tokens(list, monet_session_tokens(p->session), length)) return false;
    if (p->last_token >= 0 && !add_tokens(list, &p->last_token, 1)) return false;
    if (list->count == 0 || end < 0) return true;
    return monet_tokenizer_is_eos(p->tokenizer, list->data[list->count - 1])
        || add_tokens(list, &end, 1);
}

static bool add_turn(const program *p, token_list *list, const char *text, size_t size)
{
    static const char before[] = "[INST] ", after[] = " [/INST]";
    size_t before_size = sizeof before - 1, after_size = sizeof after - 1;
    int32_t bos = monet_tokenizer_bos(p->tokenizer);
    char *turn = (char *)malloc(before_size + size + after_size);
    if (!turn) return fail("out of memory");
    memcpy(turn, before, before_size);
    memcpy(turn + before_size, text, size);
    memcpy(turn + before_size + size, after, after_size);
    bool ok = (bos < 0 || add_tokens(list, &bos, 1))
        && add_text(p, list, turn, before_size + size + after_size, 0);
    free(turn);
    return ok;
}

/* Evaluates what the session does not hold yet, without its oldest turns if need be. A turn
   starts at <s>; `turn` is where the new one does, which must fit, with some room for a reply.   */
static bool feed_turn(program *p, const token_list *all, size_t turn)
{
    size_t context = (size_t)monet_session_context(p->session), room = context / 4, start = 0;
    size_t length = (size_t)monet_session_length(p->session);
    if (p->set.max_tokens > 0 && (size_t)p->set.max_tokens < room)
        room = (size_t)p->set.max_tokens;
    while (start < turn && all->count - start + room > context) {
        start++;
        while (start < turn && all->data[start] != monet_tokenizer_bos(p->tokenizer)) start++;
    }
    if (start == 0) return feed(p, all->data + length, all->count - length);
    fprintf(stderr, "(the context of %zu tokens is full: the oldest turns are forgotten)\n",
            context);
    monet_session_rewind(p->session, 0);
    return feed(p, all->data + start, all->count - start);
}

static bool chat_turn(program *p, const char *text, size_t size)
{
    token_list all = {NULL, 0};
    bool ok = add_history(p, &all);
    size_t turn = all.count, context = (size_t)monet_session_context(p->session);
    ok = ok && add_turn(p, &all, text, size);
    if (ok && all.count - turn >= context) {
        fprintf(stderr, "(this is %zu tokens and the context holds %zu: say it shorter)\n",
                all.count - turn, context);
    } else if (ok && (ok = feed_turn(p, &all, turn)) && !interrupted && !p->write_error) {
        p->skip_space = true;
        ok = generate(p);
        if (ok && p->stop == MONET_STOP_CONTEXT_FULL)
            fputs("(the context is full: the reply was cut)\n", stderr);
    }
    free(all.data);
    return ok;
}

/* A line of the standard input is a turn; empty lines are skipped. */
static bool chat(program *p)
{
    bool ok = true, ask = isatty(STDIN_FILENO) && !p->set.quiet;
    if (p->set.prompt) ok = chat_turn(p, p->set.prompt, strlen(p->set.prompt));
    while (ok && !interrupted && !p->write_error) {
        size_t size = 0;
        if (ask) fputs("> ", stderr);
        char *line = read_text(stdin, '\n', &size);
        if (!line) break;
        if (size > 0 && line[size - 1] == '\r') size--;
        if (size > 0) ok = chat_turn(p, line, size);
        free(line);
    }
    if (interrupted || ask) fputc('\n', stderr);
    return ok;
}

/* ---- statistics ------------------------------------------------------------------------------ */

static void print_statistics(const program *p)
{
    static const char *const reasons[] = {"", "end of text", "--max-tokens", "the context is full",
                                          "a stop string", "interrupted"};
    double prompt = p->prompt_seconds > 0 ? (double)p->n_prompt / p->prompt_seconds : 0;
    double drawn = p->draw_seconds > 0 ? (double)p->n_drawn / p->draw_seconds : 0;
    fprintf(stderr, "prompt: %zu tokens, %.1f tokens/s; generated: %zu tokens, %.1f tokens/s",
            p->n_prompt, prompt, p->n_drawn, drawn);
    fprintf(stderr, p->stop ? "; stopped by: %s\n" : "%s\n", reasons[p->stop]);
}

/* How many experts an edit changes: of each router, since its layers are mostly edited alike. */
static void print_edit(const program *p, const monet_edit *edit)
{
    fprintf(stderr, "edit %s:", monet_edit_name(edit));
    for (int32_t g = 0; g < group_count(p->arch); g++) {
        long long most = 0;
        for (int32_t l = g * p->arch->moe_groups; l < (g + 1) * p->arch->moe_groups; l++)
            if (monet_edit_count(edit, l) > most) most = (long long)monet_edit_count(edit, l);
        fprintf(stderr, "%s %lld experts in G%d", g ? "," : "", most, (int)g + 1);
    }
    fputc('\n', stderr);
}

/* Metadata comes from a file: it must not be able to drive the terminal. */
static void print_plain(const char *text)
{
    for (size_t k = 0; text[k] && k < 200; k++)
        putchar((unsigned char)text[k] < 0x20 || text[k] == 0x7F ? ' ' : text[k]);
}

static void print_info(const program *p)
{
    const monet_arch *a = p->arch;
    monet_session_config config = {0};
    size_t session = 0, parameters = 0;
    config.kv_dtype = p->set.kv;
    config.context = p->set.context;
    config.mode = p->set.mode;
    config.kernels = p->set.kernels;
    monet_session_size(p->model, &config, &session);
    for (size_t k = 0; k < monet_model_tensor_count(p->model); k++) {
        const monet_tensor *t = monet_model_tensor(p->model, k);
        parameters += (size_t)t->shape[0] * (size_t)t->shape[1];
    }
    printf("model        %s\n", p->set.model);
    printf("parameters   %zu in %zu tensors\n", parameters, monet_model_tensor_count(p->model));
    printf("shape        %s, %d layers of %d, %d heads (%d key/value), %d tokens, context %d\n",
           a->decompose == MONET_VERTICAL ? "vertical" : "horizontal", (int)a->n_layers,
           (int)a->dim, (int)a->n_heads, (int)a->n_kv_heads, (int)a->vocab_size,
           (int)a->max_seq_len);
    printf("experts      %d x %d in each layer, %d hidden units each; %d router heads, about %d "
           "active half-experts a head\n", (int)a->moe_experts, (int)a->moe_experts,
           (int)a->moe_dim, (int)a->moe_heads, (int)a->moe_topk);
    printf("routers      ");
    print_group_legend(p, stdout);
    printf("session      %zu bytes with a KV cache of %s\n", session, monet_dtype_name(p->set.kv));
    for (size_t k = 0; k < monet_model_metadata_count(p->model); k++) {
        print_plain(monet_model_metadata_key(p->model, k));
        printf(" = ");
        print_plain(monet_model_metadata_value(p->model, k));
        putchar('\n');
    }
}

/* ---- options --------------------------------------------------------------------------------- */

typedef enum option_type {
    FLAG, TEXT, WHOLE, SEED, NUMBER, DTYPE, MODE, KERNELS, STOP, EDIT, EXPERTS
} option_type;

typedef struct option {
    const char *name;
    option_type type;
    size_t      field;      /* where in settings the value goes */
    double      low, high;  /* what a number may be */
    const char *value, *help;
} option;

#define FIELD(name) offsetof(settings, name)

static const option options[] = {
    {"model", TEXT, FIELD(model), 0, 0, "FILE", "the model (default: examples/monet-4m.monet)"},
    {"temperature", NUMBER, FIELD(sampler.temperature), 0, 1e6, "T",
     "0 = always the likeliest token (default: 0.8)"},
    {"top-p", NUMBER, FIELD(sampler.top_p), 0, 1, "P",
     "only the likeliest tokens that reach this probability (default: 0.9)"},
    {"top-k", WHOLE, FIELD(sampler.top_k), 0, INT32_MAX, "N", "only the N likeliest tokens"},
    {"min-p", NUMBER, FIELD(sampler.min_p), 0, 1, "P",
     "only tokens at least P times as likely as the likeliest"},
    {"repetition-penalty", NUMBER, FIELD(sampler.repetition_penalty), 0, 1e6, "X",
     "makes tokens of the text less likely, if > 1"},
    {"seed", SEED, FIELD(sampler.seed), 0, 0, "N", "equal seeds, equal text (default: 0)"},
    {"max-tokens", WHOLE, FIELD(max_tokens), 0, INT32_MAX, "N",
     "stop after N tokens; 0 = when the text ends (default: 200)"},
    {"stop", STOP, 0, 0, 0, "STRING", "stop before this string; may be given 16 times"},
    {"ignore-eos", FLAG, FIELD(ignore_eos), 0, 0, NULL, "go on after the end of a text"},
    {"chat", FLAG, FIELD(chat), 0, 0, NULL, "each line of the standard input is a turn"},
    {"experts", EXPERTS, FIELD(experts), 1, MAX_EXPERTS, "N",
     "instead of the text: each token with its N (1) strongest experts"},
    {"edit", EDIT, 0, 0, 0, "FILE",
     "experts to remove, scale or force (see >>edits_api in monet.h); may be given 16 times"},
    {"no-echo", FLAG, FIELD(no_echo), 0, 0, NULL, "do not repeat the prompt before its text"},
    {"quiet", FLAG, FIELD(quiet), 0, 0, NULL, "no statistics on standard error"},
    {"context", WHOLE, FIELD(context), 1, INT32_MAX, "N", "tokens of prompt and text (model's)"},
    {"kv", DTYPE, FIELD(kv), 0, 0, "TYPE", "KV cache in f32, f16 or bf16 (default: f32)"},
    {"mode", MODE, FIELD(mode), 0, 0, "MODE",
     "exact, or fast: prompts with rounded numbers, in less time (default: fast)"},
    {"kernels", KERNELS, FIELD(kernels), 0, 0, "NAME",
     "instruction set: scalar, avx2, ... (default: the best here)"},
    {"threads", WHOLE, FIELD(threads), 1, 256, "N", "threads (default: as many as processors)"},
    {"info", FLAG, FIELD(info), 0, 0, NULL, "describe the model and exit"},
    {"help", FLAG, FIELD(help), 0, 0, NULL, "this text"},
};
enum { N_OPTIONS = sizeof options / sizeof options[0] };

static void print_help(void)
{
    printf("usage: generate [options] [prompt]\n\n"
           "Continues the prompt with a Monet model. Without a prompt, or with -, it is read from\n"
           "the standard input (one newline at its end is dropped). After -- all is prompt.\n\n");
    for (size_t k = 0; k < N_OPTIONS; k++) {
        const option *o = &options[k];
        const char *equals = o->type == EXPERTS ? "[=" : o->value ? " " : "";
        int width = printf("  --%s%s%s%s", o->name, equals, o->value ? o->value : "",
                           o->type == EXPERTS ? "]" : "");
        printf("%*s%s\n", width < 28 ? 28 - width : 1, "", o->help);
    }
    printf("\nExit status: 0 done, 1 failed, 2 wrong options, 130 stopped by Ctrl-C.\n");
}

/* The locale is always "C" here, since setlocale is never called: strtod reads a point. */
static bool parse_number(const option *o, const char *text, double *out)
{
    char *end = NULL;
    double value = strtod(text, &end);
    bool whole = value >= o->low && value <= o->high && value == (double)(int64_t)value;
    *out = value;
    if (end != text && *end == 0 && value >= o->low && value <= o->high
        && (o->type == NUMBER || whole)) return true;
    return fail("--%s: '%s' is not a %snumber from %.0f to %.0f", o->name, text,
                o->type == NUMBER ? "" : "whole ", o->low, o->high);
}

static bool parse_seed(const char *text, uint64_t *out)
{
    uint64_t value = 0;
    const char *c = text;
    for (; *c >= '0' && *c <= '9'; c++) {
        uint64_t digit = (uint64_t)(*c - '0');
        if (value > (UINT64_MAX - digit) / 10) break;
        value = value * 10 + digit;
    }
    if (c == text || *c) return fail("--seed: '%s' is not a whole number below 2^64", text);
    *out = value;
    return true;
}

static bool parse_dtype(const char *text, monet_dtype *out)
{
    static const monet_dtype types[] = {MONET_F32, MONET_F16, MONET_BF16};
    for (size_t k = 0; k < 3; k++)
        if (strcmp(text, monet_dtype_name(types[k])) == 0) return *out = types[k], true;
    return fail("--kv: '%s' is not f32, f16 or bf16", text);
}

static bool parse_mode(const char *text, monet_mode *out)
{
    *out = strcmp(text, "exact") == 0 ? MONET_EXACT : MONET_FAST;
    return *out == MONET_EXACT || strcmp(text, "fast") == 0
        || fail("--mode: '%s' is not fast or exact", text);
}

/* What the processor lacks has the name of something else here. */
static bool parse_kernels(const char *text, monet_kernels *out)
{
    for (int k = MONET_KERNELS_SCALAR; k <= MONET_KERNELS_WASM; k++)
        if (strcmp(text, monet_kernels_name((monet_kernels)k)) == 0)
            return *out = (monet_kernels)k, true;
    return fail("--kernels: this machine has no '%s', its best is %s", text,
                monet_kernels_name(MONET_KERNELS_BEST));
}

static bool add_stop(settings *set, const char *text)
{
    size_t size = strlen(text);
    if (size < 1 || size > 255) return fail("--stop: a string has 1 to 255 bytes, not %zu", size);
    if (set->n_stops == MAX_STOPS) return fail("--stop: given more than %d times", MAX_STOPS);
    set->stops[set->n_stops++] = text;
    return true;
}

static bool add_edit(settings *set, const char *path)
{
    if (set->n_edits == MAX_EDITS) return fail("--edit: given more than %d times", MAX_EDITS);
    set->edits[set->n_edits++] = path;
    return true;
}

static bool set_option(settings *set, const option *o, const char *value)
{
    void *field = (char *)set + o->field;
    double number = 0;
    switch (o->type) {
    case FLAG: *(bool *)field = true; return true;
    case TEXT: *(const char **)field = value; return true;
    case SEED: return parse_seed(value, (uint64_t *)field);
    case DTYPE: return parse_dtype(value, (monet_dtype *)field);
    case MODE: return parse_mode(value, (monet_mode *)field);
    case KERNELS: return parse_kernels(value, (monet_kernels *)field);
    case STOP: return add_stop(set, value);
    case EDIT: return add_edit(set, value);
    case EXPERTS:
    case WHOLE:
        if (!parse_number(o, value, &number)) return false;
        *(int32_t *)field = (int32_t)number;
        return true;
    case NUMBER:
        if (!parse_number(o, value, &number)) return false;
        *(float *)field = (float)number;
        return true;
    }
    return false;
}

static const option *find_option(const char *name, size_t size)
{
    for (size_t k = 0; k < N_OPTIONS; k++)
        if (strlen(options[k].name) == size && memcmp(options[k].name, name, size) == 0)
            return &options[k];
    return NULL;
}

/* "--name value", "--name=value" and "--flag". Moves *index on to the last argument used. */
static bool read_option(settings *set, int argc, char **argv, int *index)
{
    const char *argument = argv[*index], *name = argument + 2, *equals = strchr(name, '=');
    const option *o = find_option(name, equals ? (size_t)(equals - name) : strlen(name));
    const char *value = equals ? equals + 1 : NULL;
    if (!o) return fail("unknown option '%s' (--help lists them)", argument);
    if (o->type == FLAG && value) return fail("--%s takes no value", o->name);
    if (o->type == EXPERTS && !value) value = "1";
    if (o->type != FLAG && !value) {
        if (*index + 1 >= argc) return fail("--%s needs a value: %s", o->name, o->value);
        value = argv[++*index];
    }
    return set_option(set, o, value);
}

static bool read_options(settings *set, int argc, char **argv)
{
    bool only_text = false; /* after -- */
    for (int k = 1; k < argc; k++) {
        if (!only_text && strcmp(argv[k], "--") == 0) {
            only_text = true;
        } else if (!only_text && strcmp(argv[k], "-h") == 0) {
            set->help = true;
        } else if (!only_text && strncmp(argv[k], "--", 2) == 0) {
            if (!read_option(set, argc, argv, &k)) return false;
        } else if (!only_text && argv[k][0] == '-' && argv[k][1] != 0) {
            return fail("unknown option '%s' (--help lists them)", argv[k]);
        } else if (set->prompt) {
            return fail("a second prompt '%s': put quotes around the prompt", argv[k]);
        } else {
            set->prompt = argv[k];
        }
    }
    return true;
}

/* ---- loading --------------------------------------------------------------------------------- */

/* The model that ships: below the current folder, or near the program. NULL if it is not there. */
static const char *find_model(const char *program_path, char *path, size_t size)
{
    static const char *const places[] = {"examples/", "", "../examples/"};
    static const char name[] = "monet-4m.monet";
    const char *slash = strrchr(program_path, '/');
    snprintf(path, size, "examples/%s", name);
    if (access(path, R_OK) == 0) return path;
    for (size_t k = 0; slash && k < sizeof places / sizeof places[0]; k++) {
        int folder = (int)(slash + 1 - program_path);
        int length = snprintf(path, size, "%.*s%s%s", folder, program_path, places[k], name);
        if (length > 0 && (size_t)length < size && access(path, R_OK) == 0) return path;
    }
    return NULL;
}

static bool load(program *p)
{
    monet_error err = {{0}, MONET_OK};
    if (!p->set.model)
        return fail("examples/monet-4m.monet is neither here nor near the program: go to the "
                    "folder that holds monet.h, or give a model with --model FILE");
    if (monet_model_load(p->set.model, NULL, &p->model, &err) != MONET_OK)
        return strstr(err.message, p->set.model) ? fail("%s", err.message)
                                                 : fail("%s: %s", p->set.model, err.message);
    p->arch = monet_model_arch(p->model);
    p->tokenizer = monet_model_tokenizer(p->model);
    if (!p->arch) return fail("%s holds a tokenizer, but no model", p->set.model);
    if (!p->tokenizer && !p->set.info) return fail("%s holds no tokenizer", p->set.model);
    return true;
}

/* Each edit changes what those before it left. */
static bool load_edits(program *p)
{
    for (int32_t k = 0; k < p->set.n_edits; k++) {
        const char *path = p->set.edits[k];
        monet_error err = {{0}, MONET_OK};
        monet_edit *next = NULL;
        monet_result result = monet_edit_load(p->model, path, &next, &err);
        if (result == MONET_OK && p->edit) result = monet_edit_combine(p->edit, next, &err);
        if (result == MONET_OK && !p->set.quiet) print_edit(p, next);
        if (result == MONET_OK && !p->edit) p->edit = next;
        else monet_edit_free(next);
        if (result != MONET_OK)
            return strstr(err.message, path) ? fail("%s", err.message)
                                             : fail("%s: %s", path, err.message);
    }
    return true;
}

static bool start_session(program *p)
{
    monet_error err = {{0}, MONET_OK};
    monet_host host = {0};
    monet_session_config config = {0};
    host.n_threads = p->set.threads;
    config.host = &host;
    config.context = p->set.context;
    config.kv_dtype = p->set.kv;
    config.mode = p->set.mode;
    config.kernels = p->set.kernels;
    config.capture_routing = p->set.experts > 0;
    if (monet_session_create(p->model, &config, &p->session, &err) != MONET_OK)
        return fail("%s", err.message);
    if (monet_session_set_edit(p->session, p->edit) != MONET_OK)
        return fail("%s", monet_session_error(p->session)->message);
    return true;
}

/* ---- main ------------------------------------------------------------------------------------ */

static void default_settings(settings *set)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    set->threads = processors < 1 ? 1 : processors > 256 ? 256 : (int32_t)processors;
    set->sampler.temperature = 0.8f;
    set->sampler.top_p = 0.9f;
    set->max_tokens = 200;
    set->mode = MONET_FAST;
}

static bool run_prompt(program *p)
{
    if (p->set.prompt) return continue_text(p, p->set.prompt, strlen(p->set.prompt));
    size_t size = 0;
    char *text = read_text(stdin, EOF, &size);
    if (!text) return false;
    if (size > 0 && text[size - 1] == '\n') size--;
    bool ok = continue_text(p, text, size);
    free(text);
    return ok;
}

static int run(program *p)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = (int)SA_RESETHAND;
    sigaction(SIGINT, &action, NULL);
    if (!start_session(p)) return FAILED;
    if (p->set.experts && !p->set.quiet) print_group_legend(p, stderr);
    bool ok = p->set.chat ? chat(p) : run_prompt(p);
    if (p->write_error && p->write_error != EPIPE && !interrupted)
        ok = fail("cannot write the text: %s", strerror(p->write_error));
    if (!p->set.quiet && !p->write_error && p->n_prompt) print_statistics(p);
    return interrupted ? INTERRUPTED : p->write_error == EPIPE ? PIPE_CLOSED : ok ? DONE : FAILED;
}

int main(int argc, char **argv)
{
    program p;
    char path[4096];
    int status = FAILED;
    memset(&p, 0, sizeof p);
    p.last_token = -1;
    default_settings(&p.set);
    if (!read_options(&p.set, argc, argv)) return USAGE;
    if (p.set.help) return print_help(), fflush(stdout) == 0 ? DONE : FAILED;
    if (p.set.prompt && strcmp(p.set.prompt, "-") == 0) p.set.prompt = NULL;
    else if (!p.set.prompt && !p.set.chat && !p.set.info && isatty(STDIN_FILENO))
        return fail("no prompt: try generate \"The key to life is\", or --help"), USAGE;
    if (!p.set.model) p.set.model = find_model(argv[0], path, sizeof path);
    if (load(&p) && load_edits(&p)) {
        if (!p.set.info) status = run(&p);
        else status = (print_info(&p), flush_output(&p)) ? DONE : FAILED;
    }
    monet_session_free(p.session);
    monet_edit_free(p.edit);
    monet_model_free(p.model);
    return status;
}
