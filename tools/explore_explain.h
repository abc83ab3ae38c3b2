/* explore_explain.h: explore explain: the model says what an expert stands for (section 4.3 of the
   paper). In the place of a word in a question stands a vector: the mean of the input embeddings
   of the expert's strongest tokens, weighted by scores, as long as an embedding is on average.  */
#ifndef TOOL_EXPLORE_EXPLAIN_H
#define TOOL_EXPLORE_EXPLAIN_H

#include "explore_common.h"
#include "stats.h"

#include <math.h>

#define EXPLAIN_ROWS 64     /* embeddings read at once */
#define EXPLAIN_MAX_TOP 256 /* tokens that make the vector */

typedef struct explain_settings {
    const char *word, *prompt, *temperature;
    int64_t     top, nearest, max_tokens, seed;
    bool        chat, jsonl;
} explain_settings;

typedef struct explain_run {
    explore                *e;
    const explain_settings *set;
    explore_output          out;
    monet_session          *session;
    double                  temperature;
    int32_t                 group, i, j;
    explore_ranked          tokens[EXPLAIN_MAX_TOP]; /* each once, by the sum of its scores */
    size_t                  n_tokens;
    float                  *x;       /* (C) */
    explore_ranked         *nearest; /* tokens by the cosine of their embeddings with x */
    size_t                  n_nearest;
    tool_buffer             answer;
} explain_run;

/* ---- explain: the vector --------------------------------------------------------------------- */

static TOOL_UNUSED void explain__add_token(explain_run *r, int32_t token, double weight)
{
    explore_ranked *list = r->tokens;
    size_t k = 0;

    while (k < r->n_tokens && list[k].index != (uint64_t)token) k++;
    if (k == EXPLAIN_MAX_TOP) return;
    if (k < r->n_tokens) weight += list[k].value;
    else r->n_tokens++;
    for (; k > 0 && list[k - 1].value < weight; k--) list[k] = list[k - 1];
    list[k].value = weight;
    list[k].index = (uint64_t)token;
}

/* The strongest tokens of the expert, or those of --word. */
static TOOL_UNUSED bool explain__tokens(explain_run *r, const stats *s, tool_error *err)
{
    stats_example top[EXPLAIN_MAX_TOP];
    char name[EXPLORE_NAME];
    const char *text = r->set->word;
    size_t n = 0, k;
    int32_t *word;

    if (text != NULL) {
        word = explore_encode(r->e, text, strlen(text), text[0] == ' ' ? MONET_NO_PREFIX : 0, &n,
                              err);
        for (k = 0; word != NULL && k < n; k++) explain__add_token(r, word[k], 1);
        free(word);
        return word != NULL && (n > 0 || tool_fail(err, "--word: the word is empty"));
    }
    n = stats_top(s, r->group, r->i, r->j, top, (size_t)r->set->top);
    for (k = 0; k < n; k++)
        explain__add_token(r, top[k].tokens[top[k].n_before], (double)top[k].score);
    return n > 0 || tool_fail(err, "%s was active on no token of these statistics",
                              explore_name(r->e, name, r->group, r->i, r->j));
}

static TOOL_UNUSED bool explain__mean(explain_run *r, const monet_tensor *embed, float *row,
                                      tool_error *err)
{
    size_t C = (size_t)r->e->arch->dim, k, c;
    double total = 0;

    for (k = 0; k < r->n_tokens; k++) total += r->tokens[k].value;
    for (k = 0; k < r->n_tokens; k++) {
        int32_t token = (int32_t)r->tokens[k].index;
        if (monet_tensor_read(embed, token, 1, row) != MONET_OK)
            return tool_fail(err, "the embedding of token %d cannot be read", (int)token);
        for (c = 0; c < C; c++) r->x[c] += (float)(r->tokens[k].value / total) * row[c];
    }
    return true;
}

/* One pass over all embeddings: their mean length, and which are nearest to x. */
static TOOL_UNUSED bool explain__compare(explain_run *r, const monet_tensor *embed, float *rows,
                                         double *mean_norm, tool_error *err)
{
    const size_t C = (size_t)r->e->arch->dim;
    double size = sqrt(explore_dot(r->x, r->x, C)), sum = 0;
    int32_t V = r->e->arch->vocab_size, first, n, k;

    for (first = 0; first < V; first += n) {
        n = V - first < EXPLAIN_ROWS ? V - first : EXPLAIN_ROWS;
        if (monet_tensor_read(embed, first, n, rows) != MONET_OK)
            return tool_fail(err, "the embeddings cannot be read");
        for (k = 0; k < n; k++) {
            const float *row = rows + (size_t)k * C;
            double norm = sqrt(explore_dot(row, row, C));
            sum += norm;
            if (norm > 0 && size > 0)
                explore_rank(r->nearest, (size_t)r->set->nearest, &r->n_nearest,
                             explore_dot(row, r->x, C) / norm / size, (uint64_t)(first + k));
        }
    }
    *mean_norm = sum / (double)V;
    return true;
}

static TOOL_UNUSED bool explain__vector(explain_run *r, tool_error *err)
{
    const monet_tensor *embed = monet_model_find_tensor(r->e->model, "embed_tokens.weight");
    const size_t C = (size_t)r->e->arch->dim;
    float *rows = tool_alloc(C * EXPLAIN_ROWS, sizeof *rows, err);
    double norm = 0, size;
    size_t c;
    bool ok;

    r->x = tool_alloc(C, sizeof *r->x, err);
    r->nearest = tool_alloc((uint64_t)r->set->nearest, sizeof *r->nearest, err);
    ok = rows != NULL && r->x != NULL && r->nearest != NULL &&
         explain__mean(r, embed, rows, err) && explain__compare(r, embed, rows, &norm, err);
    free(rows);
    if (!ok) return false;
    size = sqrt(explore_dot(r->x, r->x, C));
    if (!(size > 0)) return tool_fail(err, "the mean of these embeddings is zero");
    for (c = 0; c < C; c++) r->x[c] *= (float)(norm / size);
    return true;
}

/* ---- explain: the question ------------------------------------------------------------------- */

static TOOL_UNUSED bool explain__is_word(char c)
{
    unsigned char u = (unsigned char)c;

    return (u >= '0' && u <= '9') || (u >= 'A' && u <= 'Z') || (u >= 'a' && u <= 'z') || u >= 0x80;
}

/* The next X that is a word of its own; NULL = none. */
static TOOL_UNUSED const char *explain__find_x(const char *start, const char *at)
{
    while ((at = strchr(at, 'X')) != NULL) {
        if ((at == start || !explain__is_word(at[-1])) && !explain__is_word(at[1])) return at;
        at++;
    }
    return NULL;
}

static TOOL_UNUSED bool explain__eval_text(explain_run *r, const char *text, size_t size,
                                           bool first, tool_error *err)
{
    unsigned flags = !first ? MONET_NO_PREFIX
                   : monet_tokenizer_bos(r->e->tokenizer) >= 0 ? MONET_ADD_BOS : 0;
    size_t n = 0;
    int32_t *tokens = explore_encode(r->e, text, size, flags, &n, err);
    bool ok = tokens != NULL;

    if (ok && n > 0 && monet_session_eval(r->session, tokens, n) != MONET_OK)
        ok = explore_session_failed(r->session, err);
    free(tokens);
    return ok;
}

/* Text, vector, text, ...: the vector takes the place of X and of the space before it, which is
   part of the token of a word.                                                                 */
static TOOL_UNUSED bool explain__ask(explain_run *r, const char *prompt, tool_error *err)
{
    const char *at = prompt, *x;

    while ((x = explain__find_x(prompt, at)) != NULL) {
        size_t size = (size_t)(x - at);
        if (size > 0 && at[size - 1] == ' ') size--;
        if (!explain__eval_text(r, at, size, at == prompt, err)) return false;
        if (monet_session_eval_embeddings(r->session, r->x, 1) != MONET_OK)
            return explore_session_failed(r->session, err);
        at = x + 1;
    }
    return explain__eval_text(r, at, strlen(at), false, err);
}

static TOOL_UNUSED bool explain__collect(void *user, const char *text, size_t size)
{
    tool_put((tool_buffer *)user, text, size);
    return !explore_interrupted;
}

static TOOL_UNUSED bool explain__answer(explain_run *r, tool_error *err)
{
    static const char *const stops[] = {"\""};
    monet_generate_config config;

    memset(&config, 0, sizeof config);
    config.sampler.temperature = (float)r->temperature;
    config.sampler.seed = (uint64_t)r->set->seed;
    config.max_tokens = (int32_t)r->set->max_tokens;
    config.stop_strings = stops;
    config.n_stop = 1;
    config.text_fn = explain__collect;
    config.user = &r->answer;
    if (monet_session_generate(r->session, NULL, &config, NULL) != MONET_OK)
        return explore_session_failed(r->session, err);
    return !r->answer.failed || tool_fail(err, "out of memory");
}

/* ---- explain: output ------------------------------------------------------------------------- */

static TOOL_UNUSED void explain__put_text(explain_run *r, const char *prompt)
{
    tool_buffer *out = &r->out.text;
    char name[EXPLORE_NAME];

    if (r->set->word == NULL)
        tool_putf(out, "%s\n", explore_name(r->e, name, r->group, r->i, r->j));
    tool_putf(out, "X is the mean of");
    explore_put_list(r->e, out, r->tokens, r->n_tokens, true);
    tool_putf(out, "\nnearest tokens (cosine)");
    explore_put_list(r->e, out, r->nearest, r->n_nearest, true);
    tool_put(out, "\n\n", 2);
    tool_put(out, prompt, strlen(prompt));
    explore_put_safe(out, r->answer.data != NULL ? r->answer.data : "", r->answer.size, 0);
    tool_putf(out, "\"\n");
}

static TOOL_UNUSED void explain__put_json(explain_run *r, const char *prompt)
{
    tool_buffer *out = &r->out.text;

    tool_put(out, "{", 1);
    if (r->set->word == NULL) {
        explore_put_expert_json(r->e, out, r->group, r->i, r->j);
        tool_put(out, ",", 1);
    }
    explore_put_list_json(r->e, out, "tokens", r->tokens, r->n_tokens, "weight");
    tool_put(out, ",", 1);
    explore_put_list_json(r->e, out, "nearest", r->nearest, r->n_nearest, "cosine");
    tool_putf(out, ",\"prompt\":");
    explore_put_json(out, prompt, strlen(prompt));
    tool_putf(out, ",\"answer\":");
    explore_put_json(out, r->answer.data != NULL ? r->answer.data : "", r->answer.size);
    tool_put(out, "}\n", 2);
}

/* ---- explain: the run ------------------------------------------------------------------------ */

static TOOL_UNUSED const char *explain__prompt(const explain_settings *set)
{
    if (set->prompt != NULL) return set->prompt;
    return set->chat ? "[INST] What is the meaning of the word X? [/INST] Sure! The meaning of the "
                       "word X is \""
                     : "Q: What is the meaning of the word X? A: Sure! The meaning of the word X "
                       "is \"";
}

static TOOL_UNUSED bool explain__run(explain_run *r, const stats *s, tool_error *err)
{
    const char *prompt = explain__prompt(r->set);
    bool ok = explain__tokens(r, s, err) && explain__vector(r, err) &&
              explore_session(r->e, r->e->arch->max_seq_len, 0, &r->session, err) &&
              explore_output_open(r->e, &r->out, err);

    ok = ok && explain__ask(r, prompt, err) && explain__answer(r, err);
    if (ok && r->set->jsonl) explain__put_json(r, prompt);
    else if (ok) explain__put_text(r, prompt);
    ok = explore_output_close(r->e, &r->out, ok, err);
    monet_session_free(r->session);
    free(r->x);
    free(r->nearest);
    tool_buffer_free(&r->answer);
    return ok;
}

static TOOL_UNUSED bool explain__load_and_run(explain_run *r, const char **files, tool_error *err)
{
    stats s;
    bool ok = explore_open(r->e, files[0], err);

    memset(&s, 0, sizeof s);
    ok = ok && (r->set->word != NULL ||
                (explore_parse_expert(r->e, files[2], &r->group, &r->i, &r->j, err) &&
                 stats_load(&s, r->e->model, files[1], err))) && explain__run(r, &s, err);
    stats_free(&s);
    explore_close(r->e);
    return ok;
}

static TOOL_UNUSED int explore_explain(explore *e, int argc, char **argv)
{
    static const explore_command about = {
        "explain", "MODEL STATS EXPERT",
        "Asks the model what an expert stands for: in the place of X in a question stands the\n"
        "mean of the input embeddings of the expert's strongest tokens. Shows these tokens, the\n"
        "tokens nearest to the mean, and what the model says. Only a model that can answer such\n"
        "questions (large, best a chat model with --chat) gives a meaning: one of a few million\n"
        "parameters goes on with any text, and the nearest tokens tell more.",
        "  explore explain model.monet all.stats G1:E1304\n"
        "  explore explain model.monet --word \" price\"     what it says of a plain word"};
    explain_settings set = {NULL, NULL, "0", 20, 8, 60, 0, false, false};
    const run_option options[] = {
        {"prompt", RUN_TEXT, (void *)&set.prompt, 0, 0, "TEXT", "another question, with X in it"},
        {"chat", RUN_FLAG, &set.chat, 0, 0, NULL, "the question as [INST] ... [/INST]"},
        {"word", RUN_TEXT, (void *)&set.word, 0, 0, "WORD",
         "instead of an expert: a word, best of one token, to compare"},
        {"top", RUN_WHOLE, &set.top, 1, EXPLAIN_MAX_TOP, "N",
         "strongest tokens that make the vector (default: 20)"},
        {"nearest", RUN_WHOLE, &set.nearest, 1, 1000, "N", "nearest tokens shown (default: 8)"},
        {"max-tokens", RUN_WHOLE, &set.max_tokens, 1, INT32_MAX, "N",
         "tokens of the answer, which ends at a quote (default: 60)"},
        {"temperature", RUN_TEXT, (void *)&set.temperature, 0, 0, "T",
         "of the answer (default: 0, the likeliest tokens)"},
        {"seed", RUN_WHOLE, &set.seed, 0, INT64_MAX, "N", "of the answer (default: 0)"},
        {"jsonl", RUN_FLAG, &set.jsonl, 0, 0, NULL, "as one JSON object"},
        EXPLORE_OUT(e), EXPLORE_OPTIONS(e),
    };
    tool_error err = {{0}};
    const char *files[3] = {NULL, NULL, NULL}, *prompt;
    size_t n_files;
    explain_run r;
    int status;

    memset(&r, 0, sizeof r);
    r.e = e;
    r.set = &set;
    if (!explore_arguments(e, &about, options, sizeof options / sizeof options[0], argc, argv,
                           files, 1, 3, &n_files, &status)) return status;
    prompt = explain__prompt(&set);
    if ((n_files != (set.word != NULL ? 1 : 3) &&
         !tool_fail(&err, "needs %s (--help says more)", about.files)) ||
        (explain__find_x(prompt, prompt) == NULL &&
         !tool_fail(&err, "--prompt: there is no X that stands alone")) ||
        !explore_parse_real("temperature", set.temperature, 0, 100, &r.temperature, &err))
        return explore_usage(about.name, &err);
    return explore_end(e, about.name, explain__load_and_run(&r, files, &err), &err);
}

#endif /* TOOL_EXPLORE_EXPLAIN_H */
