/* explore_tokens.h: explore tokens: which experts each token of a text uses.

   A text is BOS and its tokens. One that is longer than the context is cut into windows of it, each
   read on its own.                                                                             */
#ifndef TOOL_EXPLORE_TOKENS_H
#define TOOL_EXPLORE_TOKENS_H

#include "explore_common.h"
#include "stats.h"

#include <math.h>

#define TOKENS_BATCH 64 /* tokens of an eval: of each the routing is kept */
#define TOKENS_MAX_TOP (1 << 20)

typedef struct tokens_settings {
    const char *text, *file, *expert, *group, *threshold;
    run_texts   edits;
    int64_t     top, context, layer; /* layer -1 = the first one of each group */
    bool        jsonl, gates, attribute;
} tokens_settings;

typedef struct tokens_run {
    explore               *e;
    const tokens_settings *set;
    explore_output         out;
    monet_session         *session;
    run_edit               edit;
    int32_t               *tokens;
    size_t                 n_tokens;
    monet_expert          *best;      /* (top) */
    monet_part            *parts;     /* of a logit */
    size_t                 parts_capacity;
    float                 *scores;    /* (n_tokens) of the one expert of --expert; else NULL */
    int32_t                only_group, group, i, j; /* only_group -1 = all */
    double                 threshold;
    bool                   color;
} tokens_run;

/* How many experts the router activates: s > 0.01. */
static TOOL_UNUSED size_t tokens_active(const monet_routing *r)
{
    size_t n = 0;
    int a, b;

    for (a = 0; a < r->n_i; a++)
        for (b = 0; b < r->n_j; b++)
            n += run_score(r, r->i[a], r->j[b]) > STATS_ACTIVE;
    return n;
}

/* ---- tokens: colours ------------------------------------------------------------------------- */

/* Terminal colours of a strength from 0 to 1: black on ever stronger orange. */
static TOOL_UNUSED void tokens__heat(tool_buffer *out, double strength)
{
    static const int shades[] = {230, 223, 216, 209, 202};
    int shade = (int)(strength * 5);

    tool_putf(out, "\033[30;48;5;%dm", shades[shade < 0 ? 0 : shade > 4 ? 4 : shade]);
}

/* ---- tokens: a table ------------------------------------------------------------------------- */

static TOOL_UNUSED void tokens__pad(tool_buffer *out, size_t from, int columns)
{
    int width = explore_width(out->data + from, out->size - from);

    tool_putf(out, "%*s", width < columns ? columns - width : 0, "");
}

static TOOL_UNUSED void tokens__put_expert(tokens_run *r, const monet_expert *x)
{
    tool_buffer *out = &r->out.text;
    const int32_t N = r->e->arch->moe_experts;
    char name[48];
    int most = snprintf(name, sizeof name, "%lld", (long long)explore_id(r->e, N - 1, N - 1));

    snprintf(name, sizeof name, "E%lld (%d,%d)", (long long)explore_id(r->e, x->i, x->j),
             (int)x->i, (int)x->j);
    tool_putf(out, "  %-*s ", 2 * most + 5, name); /* i and j have about as many digits as id */
    if (r->color) tokens__heat(out, (double)x->score);
    tool_putf(out, "%.2f", (double)x->score);
    if (r->color) tool_putf(out, "\033[0m");
    if (x->weight != x->score) tool_putf(out, "->%.2f", (double)x->weight);
}

/* The layer whose weights are shown for a group: all have the same scores, but an edit may be of
   one layer.                                                                                   */
static TOOL_UNUSED int32_t tokens__layer(const tokens_run *r, int32_t group)
{
    return r->set->layer >= 0 ? (int32_t)r->set->layer : explore_first_layer(r->e, group);
}

/* The lines of one token; `index` counts the tokens of the last eval. */
static TOOL_UNUSED bool tokens__show_lines(tokens_run *r, size_t at, int32_t index,
                                           tool_error *err)
{
    tool_buffer *out = &r->out.text;
    size_t start = out->size, n, k;
    monet_routing routing;
    int32_t g;
    bool first = true;

    tool_putf(out, "%5zu  ", at);
    explore_put_token(r->e, out, r->tokens[at]);
    for (g = 0; g < r->e->n_groups; g++) {
        if (r->only_group >= 0 && g != r->only_group) continue;
        if (monet_session_routing(r->session, index, tokens__layer(r, g), &routing) !=
            MONET_OK) return explore_session_failed(r->session, err);
        if (!first) {
            tool_put(out, "\n", 1);
            start = out->size;
        }
        if (!out->failed) tokens__pad(out, start, 24);
        n = monet_routing_experts(&routing, (float)r->threshold, r->best, (size_t)r->set->top);
        tool_putf(out, "  G%d %4zu ", (int)g + 1, tokens_active(&routing));
        for (k = 0; k < n && k < (size_t)r->set->top; k++) tokens__put_expert(r, &r->best[k]);
        first = false;
    }
    tool_put(out, "\n", 1);
    return true;
}

static TOOL_UNUSED void tokens__put_head(tokens_run *r)
{
    char layers[EXPLORE_NAME];
    tool_buffer *out = &r->out.text;
    int32_t g;

    for (g = 0; g < r->e->n_groups; g++)
        tool_putf(out, "%sG%d = %s", g > 0 ? ", " : "", (int)g + 1,
                  explore_layers(r->e, layers, g));
    tool_putf(out, "; scores are 0 to %d%s\n", (int)r->e->arch->moe_heads,
              r->edit.edit != NULL ? "; ->: the weight after the edit" : "");
    tool_putf(out, "%5s  %-17s  %s %s  %s\n", "place", "token", "on", "active",
              "strongest experts: (i,j) score");
}

/* ---- tokens: JSON lines ---------------------------------------------------------------------- */

/* [[[i,gate],...] for each head]: the half-experts of one axis that are not 0. */
static TOOL_UNUSED void tokens__put_gates(tool_buffer *out, const monet_real *g,
                                          const uint16_t *active, int32_t n,
                                          const monet_routing *routing)
{
    int32_t h, k;

    tool_put(out, "[", 1);
    for (h = 0; h < routing->n_heads; h++) {
        const monet_real *row = g + (size_t)h * (size_t)routing->n_experts;
        bool first = true;
        tool_putf(out, "%s[", h > 0 ? "," : "");
        for (k = 0; k < n; k++) {
            if (!(row[active[k]] > 0)) continue;
            tool_putf(out, "%s[%d,%.6g]", first ? "" : ",", (int)active[k],
                      (double)row[active[k]]);
            first = false;
        }
        tool_put(out, "]", 1);
    }
    tool_put(out, "]", 1);
}

static TOOL_UNUSED void tokens__put_group(tokens_run *r, int32_t group,
                                          const monet_routing *routing)
{
    tool_buffer *out = &r->out.text;
    size_t n = monet_routing_experts(routing, (float)r->threshold, r->best, (size_t)r->set->top), k;

    tool_putf(out, "{\"group\":%d,\"layers\":[%d,%d],\"active\":%zu,\"experts\":[", (int)group + 1,
              (int)explore_first_layer(r->e, group), (int)explore_last_layer(r->e, group),
              tokens_active(routing));
    for (k = 0; k < n && k < (size_t)r->set->top; k++) {
        const monet_expert *x = &r->best[k];
        tool_putf(out, "%s{\"id\":%lld,\"i\":%d,\"j\":%d,\"score\":%.6g,\"weight\":%.6g}",
                  k > 0 ? "," : "", (long long)explore_id(r->e, x->i, x->j), (int)x->i, (int)x->j,
                  (double)x->score, (double)x->weight);
    }
    tool_put(out, "]", 1);
    if (r->set->gates) {
        tool_putf(out, ",\"g1\":");
        tokens__put_gates(out, routing->g1, routing->i, routing->n_i, routing);
        tool_putf(out, ",\"g2\":");
        tokens__put_gates(out, routing->g2, routing->j, routing->n_j, routing);
    }
    tool_put(out, "}", 1);
}

/* The object stays open: --attribute adds to it. */
static TOOL_UNUSED bool tokens__show_json(tokens_run *r, size_t at, int32_t index, tool_error *err)
{
    tool_buffer *out = &r->out.text;
    monet_routing routing;
    bool first = true;
    int32_t g;

    tool_putf(out, "{\"position\":%zu,", at);
    explore_put_token_json(r->e, out, r->tokens[at]);
    tool_putf(out, ",\"groups\":[");
    for (g = 0; g < r->e->n_groups; g++) {
        if (r->only_group >= 0 && g != r->only_group) continue;
        if (monet_session_routing(r->session, index, tokens__layer(r, g), &routing) !=
            MONET_OK) return explore_session_failed(r->session, err);
        if (!first) tool_put(out, ",", 1);
        tokens__put_group(r, g, &routing);
        first = false;
    }
    tool_put(out, "]", 1);
    return true;
}

/* ---- tokens: attribution of the next token --------------------------------------------------- */

static TOOL_UNUSED int tokens__by_logit(const void *a, const void *b)
{
    const monet_part *x = a, *y = b;
    double p = fabs(x->logit), q = fabs(y->logit);

    if (p != q) return p > q ? -1 : 1;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    if (x->i != y->i) return x->i < y->i ? -1 : 1;
    return x->j < y->j ? -1 : x->j > y->j;
}

/* The token that follows in the text; behind the last one, what the model finds likeliest. */
static TOOL_UNUSED int32_t tokens__next(const tokens_run *r, size_t at, int32_t index)
{
    if (at + 1 < r->n_tokens) return r->tokens[at + 1];
    return run_likeliest(monet_session_logits_at(r->session, index), r->e->arch->vocab_size);
}

static TOOL_UNUSED bool tokens__parts(tokens_run *r, int32_t index, int32_t next, size_t *n,
                                      tool_error *err)
{
    monet_result result = MONET_ERROR_CAPACITY;

    *n = 0;
    while (result == MONET_ERROR_CAPACITY) {
        if (!tool_grow(&r->parts, &r->parts_capacity, *n, sizeof *r->parts, err)) return false;
        result = monet_session_attribution(r->session, index, next, r->parts, r->parts_capacity, n);
        if (result != MONET_OK && result != MONET_ERROR_CAPACITY)
            return explore_session_failed(r->session, err);
    }
    tool_sort(r->parts, *n, sizeof *r->parts, tokens__by_logit);
    return true;
}

static TOOL_UNUSED const char *tokens__site(monet_site site)
{
    return site == MONET_SITE_EMBEDDING ? "embedding" :
           site == MONET_SITE_ATTENTION_OUT ? "attention" : "expert";
}

static TOOL_UNUSED void tokens__put_parts(tokens_run *r, int32_t next, double logprob, size_t n)
{
    double sum[3] = {0, 0, 0};
    tool_buffer *out = &r->out.text;
    size_t k;

    for (k = 0; k < n; k++)
        sum[r->parts[k].site == MONET_SITE_EMBEDDING ? 0 :
            r->parts[k].site == MONET_SITE_ATTENTION_OUT ? 1 : 2] += r->parts[k].logit;
    tool_putf(out, "%7snext ", "");
    explore_put_token(r->e, out, next);
    tool_putf(out, " %.1f %%: logit %.2f = embedding %+.2f, attention %+.2f, experts %+.2f\n%9s",
              100 * exp(logprob), sum[0] + sum[1] + sum[2], sum[0], sum[1], sum[2], "");
    for (k = 0; k < n && k < (size_t)r->set->top; k++) {
        const monet_part *p = &r->parts[k];
        if (p->site == MONET_SITE_MOE_OUT)
            tool_putf(out, "  L%d E%lld", (int)p->layer, (long long)explore_id(r->e, p->i, p->j));
        else if (p->site == MONET_SITE_ATTENTION_OUT)
            tool_putf(out, "  L%d attention", (int)p->layer);
        else
            tool_putf(out, "  embedding");
        tool_putf(out, " %+.2f", p->logit);
    }
    tool_put(out, "\n", 1);
}

static TOOL_UNUSED void tokens__put_parts_json(tokens_run *r, int32_t next, double logprob,
                                               size_t n)
{
    tool_buffer *out = &r->out.text;
    double logit = 0;
    size_t k;

    for (k = n; k-- > 0;) logit += r->parts[k].logit; /* the small ones first */
    tool_putf(out, ",\"next\":{");
    explore_put_token_json(r->e, out, next);
    tool_putf(out, ",\"logprob\":%.6g,\"logit\":%.6g,\"parts\":[", logprob, logit);
    for (k = 0; k < n && k < (size_t)r->set->top; k++) {
        const monet_part *p = &r->parts[k];
        tool_putf(out, "%s{\"site\":\"%s\",\"layer\":%d,", k > 0 ? "," : "",
                  tokens__site(p->site), (int)p->layer);
        if (p->site == MONET_SITE_MOE_OUT)
            tool_putf(out, "\"id\":%lld,\"i\":%d,\"j\":%d,\"weight\":%.6g,\"bias\":%.6g,",
                      (long long)explore_id(r->e, p->i, p->j), (int)p->i, (int)p->j,
                      (double)p->weight, p->bias);
        tool_putf(out, "\"logit\":%.6g}", p->logit);
    }
    tool_putf(out, "]}");
}

static TOOL_UNUSED bool tokens__attribute(tokens_run *r, size_t at, int32_t index, tool_error *err)
{
    int32_t next = tokens__next(r, at, index);
    double logprob = monet_logprob(monet_session_logits_at(r->session, index),
                                   r->e->arch->vocab_size, next);
    size_t n;

    if (!tokens__parts(r, index, next, &n, err)) return false;
    if (r->set->jsonl) tokens__put_parts_json(r, next, logprob, n);
    else tokens__put_parts(r, next, logprob, n);
    return true;
}

/* ---- tokens: one expert in a text ------------------------------------------------------------ */

static TOOL_UNUSED void tokens__put_marked(tokens_run *r, int32_t token, double score, double most)
{
    tool_buffer *out = &r->out.text;
    size_t size = 0;
    const char *bytes = monet_tokenizer_bytes(r->e->tokenizer, token, &size);

    if (r->color) tokens__heat(out, score / most);
    else tool_put(out, "[", 1);
    if (size == 0) explore_put_token(r->e, out, token);
    else explore_put_safe(out, bytes, size, 0);
    if (r->color) tool_putf(out, "\033[0m");
    else tool_putf(out, "|%.2f]", score);
    if (size == 1 && *bytes == '\n') tool_put(out, "\n", 1);
}

/* Text between marked tokens: line by line, as it is. Empties it. */
static TOOL_UNUSED void tokens__put_plain(tokens_run *r, tool_buffer *plain)
{
    size_t at, end;

    for (at = 0; at < plain->size; at = end + 1) {
        for (end = at; end < plain->size && plain->data[end] != '\n'; end++) {}
        explore_put_safe(&r->out.text, plain->data + at, end - at, 0);
        if (end < plain->size) tool_put(&r->out.text, "\n", 1);
    }
    plain->size = 0;
}

/* The text with the tokens marked that activate the expert, and what that is in numbers. */
static TOOL_UNUSED void tokens__show_marked(tokens_run *r)
{
    char name[EXPLORE_NAME];
    tool_buffer *out = &r->out.text, plain = {NULL, 0, 0, false};
    size_t k, size, active = 0, strongest = 0;
    double sum = 0;

    for (k = 0; k < r->n_tokens; k++) {
        active += (double)r->scores[k] > r->threshold;
        sum += (double)r->scores[k];
        if (r->scores[k] > r->scores[strongest]) strongest = k;
    }
    for (k = 0; k < r->n_tokens; k++) {
        const char *bytes = monet_tokenizer_bytes(r->e->tokenizer, r->tokens[k], &size);
        if ((double)r->scores[k] <= r->threshold) {
            if (bytes != NULL) tool_put(&plain, bytes, size);
            continue;
        }
        tokens__put_plain(r, &plain);
        tokens__put_marked(r, r->tokens[k], (double)r->scores[k], (double)r->scores[strongest]);
    }
    tokens__put_plain(r, &plain);
    out->failed = out->failed || plain.failed;
    tool_buffer_free(&plain);
    tool_putf(out, "\n\n%s: active on %zu of %zu tokens, mean score %.4f", explore_name(r->e, name,
              r->group, r->i, r->j), active, r->n_tokens, sum / (double)r->n_tokens);
    if (active > 0) {
        tool_putf(out, ", strongest ");
        explore_put_token(r->e, out, r->tokens[strongest]);
        tool_putf(out, " %.2f", (double)r->scores[strongest]);
    }
    tool_put(out, "\n", 1);
}

static TOOL_UNUSED bool tokens__note_score(tokens_run *r, size_t at, int32_t index,
                                           tool_error *err)
{
    monet_routing routing;
    tool_buffer *out = &r->out.text;

    if (monet_session_routing(r->session, index, explore_first_layer(r->e, r->group), &routing) !=
        MONET_OK) return explore_session_failed(r->session, err);
    r->scores[at] = (float)run_score(&routing, r->i, r->j);
    if (!r->set->jsonl) return true;
    tool_putf(out, "{\"position\":%zu,", at);
    explore_put_token_json(r->e, out, r->tokens[at]);
    tool_putf(out, ",\"score\":%.6g}\n", (double)r->scores[at]);
    return true;
}

/* ---- tokens: the run ------------------------------------------------------------------------- */

static TOOL_UNUSED bool tokens__show(tokens_run *r, size_t at, int32_t index, tool_error *err)
{
    bool ok;

    if (r->scores != NULL) return tokens__note_score(r, at, index, err);
    ok = r->set->jsonl ? tokens__show_json(r, at, index, err)
                       : tokens__show_lines(r, at, index, err);
    ok = ok && (!r->set->attribute || tokens__attribute(r, at, index, err));
    if (ok && r->set->jsonl) tool_put(&r->out.text, "}\n", 2);
    return ok;
}

/* All tokens, TOKENS_BATCH at a time. */
static TOOL_UNUSED bool tokens__each(tokens_run *r, tool_error *err)
{
    size_t context = (size_t)monet_session_context(r->session), at, n, k;
    bool ok = true;

    for (at = 0; ok && at < r->n_tokens && !explore_interrupted; at += n) {
        size_t room = context - at % context;
        n = r->n_tokens - at < TOKENS_BATCH ? r->n_tokens - at : TOKENS_BATCH;
        if (n > room) n = room;
        if ((at % context == 0 && monet_session_rewind(r->session, 0) != MONET_OK) ||
            monet_session_eval(r->session, r->tokens + at, n) != MONET_OK)
            return explore_session_failed(r->session, err);
        for (k = 0; ok && k < n; k++) ok = tokens__show(r, at + k, (int32_t)k, err);
        ok = ok && explore_flush(r->e, &r->out, err);
    }
    return ok;
}

/* Nothing is lost yet: here Ctrl-C ends the program at once. */
static TOOL_UNUSED bool tokens__read_input(tool_buffer *text, tool_error *err)
{
    char piece[4096];
    size_t n;

    signal(SIGINT, SIG_DFL);
    while ((n = fread(piece, 1, sizeof piece, stdin)) > 0 && text->size < EXPLORE_MAX_TEXT)
        tool_put(text, piece, n);
    explore_catch_interrupt();
    if (ferror(stdin)) return tool_fail(err, "cannot read the input: %s", strerror(errno));
    if (text->size >= EXPLORE_MAX_TEXT) return tool_fail(err, "the input is too long");
    return !text->failed || tool_fail(err, "out of memory");
}

static TOOL_UNUSED bool tokens__read_text(tokens_run *r, tool_error *err)
{
    unsigned flags = monet_tokenizer_bos(r->e->tokenizer) >= 0 ? MONET_ADD_BOS : 0;
    tool_buffer text = {NULL, 0, 0, false};
    bool ok = true;

    if (r->set->file != NULL) ok = tool_read_file(r->set->file, EXPLORE_MAX_TEXT, &text.data,
                                                  &text.size, err);
    else if (r->set->text != NULL) tool_put(&text, r->set->text, strlen(r->set->text));
    else ok = tokens__read_input(&text, err);
    if (r->set->text == NULL && text.size > 0 && text.data[text.size - 1] == '\n') text.size--;
    if (ok && text.failed) ok = tool_fail(err, "out of memory");
    if (ok)
        r->tokens = explore_encode(r->e, text.data != NULL ? text.data : "", text.size, flags,
                                   &r->n_tokens, err);
    tool_buffer_free(&text);
    if (r->tokens == NULL) return false;
    return r->n_tokens > 0 || tool_fail(err, "the text holds no token");
}

static TOOL_UNUSED bool tokens__start(tokens_run *r, tool_error *err)
{
    const tokens_settings *set = r->set;
    explore *e = r->e;
    int32_t context = set->context > 0 ? (int32_t)set->context : e->arch->max_seq_len;
    unsigned keep = set->attribute ? EXPLORE_ACTIVATIONS | EXPLORE_LOGITS : EXPLORE_ROUTING;

    if (set->layer >= e->arch->n_layers)
        return tool_fail(err, "--layer %lld: the last layer is %d", (long long)set->layer,
                         (int)e->arch->n_layers - 1);
    r->only_group = set->layer >= 0 ? (int32_t)set->layer / e->arch->moe_groups : -1;
    if ((set->group != NULL && !explore_parse_group(e, set->group, &r->only_group, err)) ||
        (set->expert != NULL &&
         !explore_parse_expert(e, set->expert, &r->group, &r->i, &r->j, err)) ||
        !tokens__read_text(r, err)) return false;
    if ((size_t)context > r->n_tokens) context = (int32_t)r->n_tokens;
    e->batch = TOKENS_BATCH;
    r->best = tool_alloc((uint64_t)set->top, sizeof *r->best, err);
    if (set->expert != NULL) r->scores = tool_alloc(r->n_tokens, sizeof *r->scores, err);
    return r->best != NULL && (set->expert == NULL || r->scores != NULL) &&
           explore_session(e, context, keep, &r->session, err) &&
           run_edit_load(&r->edit, e->model, &set->edits, err) &&
           (monet_session_set_edit(r->session, r->edit.edit) == MONET_OK ||
            explore_session_failed(r->session, err)) &&
           explore_output_open(e, &r->out, err);
}

static TOOL_UNUSED bool tokens__run(tokens_run *r, tool_error *err)
{
    bool ok = tokens__start(r, err), table = !r->set->jsonl;

    if (ok && table && r->scores == NULL) tokens__put_head(r);
    ok = ok && tokens__each(r, err);
    if (ok && table && r->scores != NULL && !explore_interrupted) tokens__show_marked(r);
    if (ok && r->out.to_file && explore_interrupted)
        ok = tool_fail(err, "stopped: %.300s was not written", r->e->out);
    ok = explore_output_close(r->e, &r->out, ok, err);
    monet_session_free(r->session);
    run_edit_free(&r->edit);
    free(r->tokens);
    free(r->best);
    free(r->parts);
    free(r->scores);
    return ok;
}

static TOOL_UNUSED int explore_tokens(explore *e, int argc, char **argv)
{
    static const explore_command about = {
        "tokens", "MODEL [TEXT]",
        "Shows for each token of a text how many experts each group activates (score > 0.01) and\n"
        "which are strongest. Without TEXT and --file the standard input is read. With --expert\n"
        "the text is shown with the tokens marked that activate this one.",
        "  explore tokens examples/monet-4m.monet \"The price of bread rose\" --top 2\n"
        "  explore tokens examples/monet-4m.monet --file README.md --expert G1:E231"};
    tokens_settings set = {NULL, NULL, NULL, NULL, "0.01", {{NULL}, 0}, 3, 0, -1, false, false,
                           false};
    const run_option options[] = {
        {"file", RUN_TEXT, (void *)&set.file, 0, 0, "FILE", "read the text there"},
        {"top", RUN_WHOLE, &set.top, 1, TOKENS_MAX_TOP, "N", "strongest experts (default: 3)"},
        {"group", RUN_TEXT, (void *)&set.group, 0, 0, "G1", "this group only (default: all)"},
        {"layer", RUN_WHOLE, &set.layer, 0, INT32_MAX, "N",
         "this layer only, with its weights: an edit may be of one layer"},
        {"threshold", RUN_TEXT, (void *)&set.threshold, 0, 0, "S",
         "only experts with a score above S (default: 0.01)"},
        {"expert", RUN_TEXT, (void *)&set.expert, 0, 0, "G1:E231", "mark its tokens in the text"},
        {"attribute", RUN_FLAG, &set.attribute, 0, 0, NULL,
         "also which experts and attention layers make the logit of the next token"},
        {"edit", RUN_TEXTS, &set.edits, 0, 0, "FILE",
         "with this edit of experts; may be given several times"},
        {"jsonl", RUN_FLAG, &set.jsonl, 0, 0, NULL, "a JSON object a token"},
        {"gates", RUN_FLAG, &set.gates, 0, 0, NULL, "with --jsonl: the gates of each head"},
        {"context", RUN_WHOLE, &set.context, 1, INT32_MAX, "N",
         "cut longer texts into windows of N tokens (default: the model's)"},
        EXPLORE_COLOR(e), EXPLORE_OUT(e), EXPLORE_OPTIONS(e),
    };
    tool_error err = {{0}};
    const char *files[2] = {NULL, NULL};
    size_t n_files;
    tokens_run r;
    int status;
    bool ok;

    memset(&r, 0, sizeof r);
    r.e = e;
    r.set = &set;
    if (!explore_arguments(e, &about, options, sizeof options / sizeof options[0], argc, argv,
                           files, 1, 2, &n_files, &status)) return status;
    set.text = files[1];
    if (!explore_colors(e, &r.color, &err) ||
        !explore_parse_real("threshold", set.threshold, 0, 1e9, &r.threshold, &err) ||
        (set.text != NULL && set.file != NULL &&
         !tool_fail(&err, "a text and --file are one text too many")) ||
        (set.group != NULL && set.layer >= 0 &&
         !tool_fail(&err, "--group and --layer: one of them")) ||
        (set.expert != NULL && set.attribute &&
         !tool_fail(&err, "--expert shows one expert only, without --attribute")))
        return explore_usage(about.name, &err);
    ok = explore_open(e, files[0], &err) && tokens__run(&r, &err);
    explore_close(e);
    return explore_end(e, about.name, ok, &err);
}

#endif /* TOOL_EXPLORE_TOKENS_H */
