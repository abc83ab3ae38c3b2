/* explore_expert.h: explore expert: all that the statistics and the model know about one expert. */
#ifndef TOOL_EXPLORE_EXPERT_H
#define TOOL_EXPLORE_EXPERT_H

#include "explore_domains.h"

#include <math.h>

#define EXPERT_MAX_LIST 1000 /* examples; as many as statistics can hold */
#define EXPERT_BEFORE 40     /* columns of text before a token, and after it */
#define EXPERT_AFTER 30

typedef struct expert_settings {
    int64_t top, sample, tokens;
    bool    csv, jsonl, no_output;
} expert_settings;

typedef struct expert_direction { /* what it adds to the residual stream in one layer */
    double         size;   /* mean length of E_ij(n) */
    double         alike;  /* length of the mean / mean length: 1 = always the same direction */
    explore_ranked *up, *down; /* (tokens) by logit lens: promoted; suppressed, negated */
    size_t         n_up, n_down;
} expert_direction;

typedef struct expert_run {
    explore               *e;
    const expert_settings *set;
    const stats           *s;
    explore_output         out;
    int32_t                group, i, j;
    stats_example         *top, *sample;
    size_t                 n_top, n_sample;
    monet_session         *session;
    int32_t               *tokens;     /* BOS and the context up to the token */
    explore_ranked        *labels;     /* (n_labels) by mean score */
    size_t                 n_labels;
    monet_real            *sum, *one, *logits;
    expert_direction      *directions; /* of each layer of the group */
    explore_ranked        *ranked;     /* memory of their lists */
    bool                   color;
} expert_run;

/* ---- expert: output direction ---------------------------------------------------------------- */

/* Evaluates BOS, the context before an example and the example itself: its place in the eval. */
static TOOL_UNUSED bool expert__eval(expert_run *r, const stats_example *x, int32_t *index,
                                     tool_error *err)
{
    int32_t n = 0, bos = monet_tokenizer_bos(r->e->tokenizer);

    if (bos >= 0) r->tokens[n++] = bos;
    memcpy(r->tokens + n, x->tokens, (size_t)(x->n_before + 1) * sizeof *r->tokens);
    n += x->n_before + 1;
    *index = n - 1;
    if (monet_session_rewind(r->session, 0) == MONET_OK &&
        monet_session_eval(r->session, r->tokens, (size_t)n) == MONET_OK) return true;
    return explore_session_failed(r->session, err);
}

/* Sums E_ij(n) over the examples in r->sum, and its length. */
static TOOL_UNUSED bool expert__add_output(expert_run *r, int32_t layer, int32_t index,
                                           double *size, tool_error *err)
{
    const size_t C = (size_t)r->e->arch->dim;
    const monet_real *n = monet_session_activation(r->session, MONET_SITE_MOE_IN, layer, index);
    monet_real *sum = r->sum + (size_t)(layer - explore_first_layer(r->e, r->group)) * C;
    size_t c;

    if (n == NULL || monet_model_expert(r->e->model, layer, r->i, r->j, n, r->one) != MONET_OK)
        return tool_fail(err, "the output of layer %d cannot be read", (int)layer);
    for (c = 0; c < C; c++) sum[c] += r->one[c];
    *size += sqrt(explore_dot(r->one, r->one, C));
    return true;
}

/* The tokens that a direction promotes and suppresses. */
static TOOL_UNUSED bool expert__read_direction(expert_run *r, expert_direction *d,
                                               const monet_real *x, tool_error *err)
{
    size_t most = (size_t)r->set->tokens;
    int32_t k;

    if (monet_session_lens(r->session, x, r->logits) != MONET_OK)
        return explore_session_failed(r->session, err);
    for (k = 0; k < r->e->arch->vocab_size; k++) {
        explore_rank(d->up, most, &d->n_up, (double)r->logits[k], (uint64_t)k);
        explore_rank(d->down, most, &d->n_down, -(double)r->logits[k], (uint64_t)k);
    }
    return true;
}

static TOOL_UNUSED bool expert__directions(expert_run *r, tool_error *err)
{
    const int32_t first = explore_first_layer(r->e, r->group);
    const int32_t last = explore_last_layer(r->e, r->group);
    const size_t C = (size_t)r->e->arch->dim;
    int32_t layer, index;
    size_t k;

    memset(r->sum, 0, (size_t)(last - first + 1) * C * sizeof *r->sum);
    for (layer = first; layer <= last; layer++) {
        expert_direction *d = &r->directions[layer - first];
        d->size = 0;
        d->n_up = d->n_down = 0;
        d->up = r->ranked + (size_t)(layer - first) * 2 * (size_t)r->set->tokens;
        d->down = d->up + r->set->tokens;
    }
    for (k = 0; k < r->n_top; k++) {
        if (!expert__eval(r, &r->top[k], &index, err)) return false;
        for (layer = first; layer <= last; layer++)
            if (!expert__add_output(r, layer, index, &r->directions[layer - first].size, err))
                return false;
    }
    for (layer = first; layer <= last && r->n_top > 0; layer++) {
        expert_direction *d = &r->directions[layer - first];
        const monet_real *sum = r->sum + (size_t)(layer - first) * C;
        if (!expert__read_direction(r, d, sum, err)) return false;
        d->alike = d->size > 0 ? sqrt(explore_dot(sum, sum, C)) / d->size : 0;
        d->size /= (double)r->n_top;
    }
    return true;
}

/* ---- expert: text ---------------------------------------------------------------------------- */

/* Of a safe text the first or last `columns`, with ".." for what is left out. */
static TOOL_UNUSED void expert__put_columns(tool_buffer *out, const tool_buffer *text, int columns,
                                            bool last)
{
    int width = explore_width(text->data, text->size), skip = 0;
    size_t from = 0, to = text->size;

    if (width <= columns) {
        if (last) tool_putf(out, "%*s", columns - width, "");
        tool_put(out, text->data, text->size);
        return;
    }
    if (last) {
        for (skip = width - columns + 2; skip > 0 || ((unsigned char)text->data[from] & 0xC0) ==
             0x80; from++) skip -= ((unsigned char)text->data[from] & 0xC0) != 0x80;
        tool_put(out, "..", 2);
    } else {
        for (to = 0; skip < columns - 2 || ((unsigned char)text->data[to] & 0xC0) == 0x80; to++)
            skip += ((unsigned char)text->data[to] & 0xC0) != 0x80;
    }
    tool_put(out, text->data + from, to - from);
    if (!last) tool_put(out, "..", 2);
}

static TOOL_UNUSED void expert__put_context(expert_run *r, const int32_t *tokens, int32_t n,
                                            bool before)
{
    tool_buffer raw = {NULL, 0, 0, false}, safe = {NULL, 0, 0, false};

    explore_put_tokens(r->e, &raw, tokens, n);
    if (raw.size > 0) explore_put_safe(&safe, raw.data, raw.size, 0);
    else tool_put(&safe, "", 0);
    if (raw.failed || safe.failed) r->out.text.failed = true;
    else expert__put_columns(&r->out.text, &safe, before ? EXPERT_BEFORE : EXPERT_AFTER, before);
    tool_buffer_free(&raw);
    tool_buffer_free(&safe);
}

/* 0.98  economics     ..the rise in the[ price] of bread.. */
static TOOL_UNUSED void expert__put_examples(expert_run *r, const char *title,
                                             const stats_example *list, size_t n)
{
    tool_buffer *out = &r->out.text;
    size_t k;

    tool_putf(out, "\n%s\n", title);
    for (k = 0; k < n; k++) {
        const stats_example *x = &list[k];
        int32_t token = x->tokens[x->n_before];
        size_t size = 0;
        const char *bytes = monet_tokenizer_bytes(r->e->tokenizer, token, &size);
        tool_putf(out, "  %.2f  ", (double)x->score);
        domains_put_name(out, r->s->labels[x->label].name, 12);
        expert__put_context(r, x->tokens, x->n_before, true);
        tool_putf(out, "%s", r->color ? "\033[1;7m" : "[");
        explore_put_safe(out, bytes != NULL ? bytes : "", size, 0);
        tool_putf(out, "%s", r->color ? "\033[0m" : "]");
        expert__put_context(r, x->tokens + x->n_before + 1, x->n - x->n_before - 1, false);
        tool_put(out, "\n", 1);
    }
}

static TOOL_UNUSED double expert__percent(const expert_run *r, uint64_t count)
{
    return r->s->n_tokens > 0 ? 100 * (double)count / (double)r->s->n_tokens : 0;
}

static TOOL_UNUSED void expert__put_numbers(expert_run *r)
{
    const stats *s = r->s;
    const stats_sum *x = stats_expert(s, r->group, r->i, r->j);
    const stats_sum *i = stats_half(s, r->group, 0, r->i), *j = stats_half(s, r->group, 1, r->j);
    tool_buffer *out = &r->out.text;
    double r_score = stats_pearson(s, r->group, r->i, r->j);

    tool_putf(out, "active    %.3f %% of %llu tokens; mean score %.5f, when active %.3f\n",
              expert__percent(r, x->count), (unsigned long long)s->n_tokens,
              stats_mean(s, r->group, r->i, r->j),
              x->count > 0 ? x->sum / (double)x->count : 0.0);
    tool_putf(out, "halves    i=%d active %.2f %%, mean %.4f; j=%d active %.2f %%, mean %.4f\n",
              (int)r->i, expert__percent(r, i->count), stats_half_mean(s, r->group, 0, r->i),
              (int)r->j, expert__percent(r, j->count), stats_half_mean(s, r->group, 1, r->j));
    tool_putf(out, "lift      %.2f (mean score / that of halves that meet by chance)\n",
              stats_lift(s, r->group, r->i, r->j));
    if (r_score == r_score) tool_putf(out, "score     r = %+.4f with the score of the texts\n",
                                      r_score);
}

/* Labels by mean score, the largest first. */
static TOOL_UNUSED void expert__rank_labels(expert_run *r)
{
    size_t k;

    r->n_labels = 0;
    for (k = 0; k < r->s->n_labels; k++)
        explore_rank(r->labels, r->s->n_labels, &r->n_labels,
                     stats_label_mean(r->s, r->group, r->i, r->j, k), k);
}

static TOOL_UNUSED void expert__put_labels(expert_run *r)
{
    const stats *s = r->s;
    const explore_ranked *list = r->labels;
    tool_buffer *out = &r->out.text;
    size_t k;

    for (k = 0; k < r->n_labels && k < 5; k++) {
        size_t label = (size_t)list[k].index;
        uint64_t count = stats_label_count(s, r->group, r->i, r->j, label);
        tool_putf(out, "%-9s ", k == 0 ? "labels" : "");
        domains_put_name(out, s->labels[label].name, 16);
        tool_putf(out, "mean %.5f, active %.3f %%, r %+.3f", list[k].value,
                  s->labels[label].n_tokens > 0 ?
                  100 * (double)count / (double)s->labels[label].n_tokens : 0.0,
                  stats_label_pearson(s, r->group, r->i, r->j, label));
        if (k == 0 && r->n_labels > 1 && list[1].value > 0)
            tool_putf(out, "   %.2f x the second", list[0].value / list[1].value);
        tool_put(out, "\n", 1);
    }
}

static TOOL_UNUSED void expert__put_directions(expert_run *r)
{
    tool_buffer *out = &r->out.text;
    int32_t first = explore_first_layer(r->e, r->group), layer;

    tool_putf(out, "\nwhat it adds, as tokens (mean over its %zu strongest tokens, read again in "
              "the context shown)\n", r->n_top);
    for (layer = first; layer <= explore_last_layer(r->e, r->group); layer++) {
        const expert_direction *d = &r->directions[layer - first];
        tool_putf(out, "  layer %-3d promotes  ", (int)layer);
        explore_put_list(r->e, out, d->up, d->n_up, false);
        tool_putf(out, "\n%12ssuppresses", "");
        explore_put_list(r->e, out, d->down, d->n_down, false);
        tool_putf(out, "\n%12slength %.3f, %.0f %% of it alike in all\n", "", d->size,
                  100 * d->alike);
    }
}

static TOOL_UNUSED void expert__put_text(expert_run *r)
{
    char name[EXPLORE_NAME];

    tool_putf(&r->out.text, "%s\n", explore_name(r->e, name, r->group, r->i, r->j));
    expert__put_numbers(r);
    expert__put_labels(r);
    expert__put_examples(r, "strongest tokens", r->top, r->n_top);
    expert__put_examples(r, "a sample of all tokens that it is active on", r->sample, r->n_sample);
    if (!r->set->no_output && r->n_top > 0) expert__put_directions(r);
}

/* ---- expert: JSON and CSV -------------------------------------------------------------------- */

static TOOL_UNUSED void expert__put_joined(expert_run *r, const int32_t *tokens, int32_t n,
                                           bool csv)
{
    tool_buffer text = {NULL, 0, 0, false};
    const char *bytes;

    explore_put_tokens(r->e, &text, tokens, n);
    bytes = text.size > 0 ? text.data : "";
    if (csv) tool_put_csv(&r->out.text, bytes, text.size);
    else explore_put_json(&r->out.text, bytes, text.size);
    r->out.text.failed = r->out.text.failed || text.failed;
    tool_buffer_free(&text);
}

static TOOL_UNUSED void expert__put_examples_json(expert_run *r, const char *key,
                                                  const stats_example *list, size_t n)
{
    tool_buffer *out = &r->out.text;
    size_t k;

    tool_putf(out, ",\"%s\":[", key);
    for (k = 0; k < n; k++) {
        const stats_example *x = &list[k];
        const char *label = r->s->labels[x->label].name;
        tool_putf(out, "%s{\"score\":%.6g,", k > 0 ? "," : "", (double)x->score);
        explore_put_token_json(r->e, out, x->tokens[x->n_before]);
        tool_putf(out, ",\"label\":");
        explore_put_json(out, label, strlen(label));
        tool_putf(out, ",\"document\":\"%llu\",\"position\":%lld,\"before\":",
                  (unsigned long long)x->document, (long long)x->position);
        expert__put_joined(r, x->tokens, x->n_before, false);
        tool_putf(out, ",\"after\":");
        expert__put_joined(r, x->tokens + x->n_before + 1, x->n - x->n_before - 1, false);
        tool_put(out, "}", 1);
    }
    tool_put(out, "]", 1);
}

static TOOL_UNUSED void expert__put_labels_json(expert_run *r)
{
    const stats *s = r->s;
    tool_buffer *out = &r->out.text;
    size_t k;

    tool_putf(out, ",\"labels\":[");
    for (k = 0; k < r->n_labels; k++) {
        size_t label = (size_t)r->labels[k].index;
        tool_putf(out, "%s{\"label\":", k > 0 ? "," : "");
        explore_put_json(out, s->labels[label].name, strlen(s->labels[label].name));
        tool_putf(out, ",\"tokens\":%llu,\"active\":%llu,",
                  (unsigned long long)s->labels[label].n_tokens,
                  (unsigned long long)stats_label_count(s, r->group, r->i, r->j, label));
        explore_put_number(out, "mean", r->labels[k].value);
        tool_put(out, ",", 1);
        explore_put_number(out, "r", stats_label_pearson(s, r->group, r->i, r->j, label));
        tool_put(out, "}", 1);
    }
    tool_put(out, "]", 1);
}

static TOOL_UNUSED void expert__put_numbers_json(expert_run *r)
{
    const stats *s = r->s;
    const stats_sum *x = stats_expert(s, r->group, r->i, r->j);
    const stats_sum *i = stats_half(s, r->group, 0, r->i), *j = stats_half(s, r->group, 1, r->j);
    tool_buffer *out = &r->out.text;

    tool_put(out, "{", 1);
    explore_put_expert_json(r->e, out, r->group, r->i, r->j);
    tool_putf(out, ",\"layers\":[%d,%d],\"tokens\":%llu,\"active\":%llu,",
              (int)explore_first_layer(r->e, r->group), (int)explore_last_layer(r->e, r->group),
              (unsigned long long)s->n_tokens, (unsigned long long)x->count);
    explore_put_number(out, "mean", stats_mean(s, r->group, r->i, r->j));
    tool_put(out, ",", 1);
    explore_put_number(out, "lift", stats_lift(s, r->group, r->i, r->j));
    tool_put(out, ",", 1);
    explore_put_number(out, "r_score", stats_pearson(s, r->group, r->i, r->j));
    tool_putf(out, ",\"halves\":[{\"active\":%llu,\"mean\":%.7g},{\"active\":%llu,\"mean\":%.7g}]",
              (unsigned long long)i->count, stats_half_mean(s, r->group, 0, r->i),
              (unsigned long long)j->count, stats_half_mean(s, r->group, 1, r->j));
}

static TOOL_UNUSED void expert__put_json(expert_run *r)
{
    int32_t first = explore_first_layer(r->e, r->group), layer;
    tool_buffer *out = &r->out.text;

    expert__put_numbers_json(r);
    expert__put_labels_json(r);
    expert__put_examples_json(r, "top", r->top, r->n_top);
    expert__put_examples_json(r, "sample", r->sample, r->n_sample);
    if (!r->set->no_output && r->n_top > 0) {
        tool_putf(out, ",\"output\":[");
        for (layer = first; layer <= explore_last_layer(r->e, r->group); layer++) {
            const expert_direction *d = &r->directions[layer - first];
            tool_putf(out, "%s{\"layer\":%d,", layer > first ? "," : "", (int)layer);
            explore_put_number(out, "length", d->size);
            tool_put(out, ",", 1);
            explore_put_number(out, "alike", d->alike);
            tool_put(out, ",", 1);
            explore_put_list_json(r->e, out, "promotes", d->up, d->n_up, NULL);
            tool_put(out, ",", 1);
            explore_put_list_json(r->e, out, "suppresses", d->down, d->n_down, NULL);
            tool_put(out, "}", 1);
        }
        tool_put(out, "]", 1);
    }
    tool_put(out, "}\n", 2);
}

/* A row an example. */
static TOOL_UNUSED void expert__put_csv(expert_run *r, const char *list_name,
                                        const stats_example *list, size_t n)
{
    tool_buffer *out = &r->out.text;
    size_t k;

    for (k = 0; k < n; k++) {
        const stats_example *x = &list[k];
        const char *label = r->s->labels[x->label].name;
        tool_putf(out, "%d,%lld,%d,%d,%s,%zu,%.6g,", (int)r->group + 1,
                  (long long)explore_id(r->e, r->i, r->j), (int)r->i, (int)r->j, list_name, k + 1,
                  (double)x->score);
        tool_put_csv(out, label, strlen(label));
        tool_putf(out, ",%llu,%lld,%d,", (unsigned long long)x->document, (long long)x->position,
                  (int)x->tokens[x->n_before]);
        expert__put_joined(r, x->tokens, x->n_before, true);
        tool_put(out, ",", 1);
        expert__put_joined(r, x->tokens + x->n_before, 1, true);
        tool_put(out, ",", 1);
        expert__put_joined(r, x->tokens + x->n_before + 1, x->n - x->n_before - 1, true);
        tool_put(out, "\n", 1);
    }
}

/* ---- expert: the run ------------------------------------------------------------------------- */

static TOOL_UNUSED bool expert__one(expert_run *r, const char *which, tool_error *err)
{
    bool ok = explore_parse_expert(r->e, which, &r->group, &r->i, &r->j, err);

    if (!ok) return false;
    r->n_top = stats_top(r->s, r->group, r->i, r->j, r->top, (size_t)r->set->top);
    r->n_sample = stats_sample(r->s, r->group, r->i, r->j, r->sample, (size_t)r->set->sample);
    if (r->set->csv) {
        expert__put_csv(r, "top", r->top, r->n_top);
        expert__put_csv(r, "sample", r->sample, r->n_sample);
    } else {
        expert__rank_labels(r);
        ok = r->set->no_output || expert__directions(r, err);
        if (ok) (r->set->jsonl ? expert__put_json : expert__put_text)(r);
    }
    return ok && explore_flush(r->e, &r->out, err);
}

static TOOL_UNUSED bool expert__prepare(expert_run *r, tool_error *err)
{
    const size_t G = (size_t)r->e->arch->moe_groups, C = (size_t)r->e->arch->dim;
    const size_t most = (size_t)r->set->tokens;
    int32_t context = r->s->config.context + 2;

    r->top = tool_alloc((uint64_t)r->set->top, sizeof *r->top, err);
    r->sample = tool_alloc((uint64_t)r->set->sample, sizeof *r->sample, err);
    r->labels = tool_alloc(r->s->n_labels, sizeof *r->labels, err);
    r->tokens = tool_alloc((uint64_t)context, sizeof *r->tokens, err);
    r->sum = tool_alloc(G * C, sizeof *r->sum, err);
    r->one = tool_alloc(C, sizeof *r->one, err);
    r->logits = tool_alloc((uint64_t)r->e->arch->vocab_size, sizeof *r->logits, err);
    r->directions = tool_alloc(G, sizeof *r->directions, err);
    r->ranked = tool_alloc(G * 2 * most, sizeof *r->ranked, err);
    return r->top != NULL && r->sample != NULL && r->labels != NULL && r->tokens != NULL &&
           r->sum != NULL && r->one != NULL && r->logits != NULL && r->directions != NULL &&
           r->ranked != NULL &&
           explore_output_open(r->e, &r->out, err) &&
           (r->set->no_output || r->set->csv ||
            explore_session(r->e, context, EXPLORE_ACTIVATIONS, &r->session, err));
}

static TOOL_UNUSED bool expert__run(expert_run *r, const char **which, size_t n, tool_error *err)
{
    bool ok = expert__prepare(r, err);
    size_t k;

    if (r->set->csv)
        tool_putf(&r->out.text, "group,id,i,j,list,rank,score,label,document,position,token,"
                  "before,text,after\n");
    for (k = 0; ok && k < n && !explore_interrupted; k++) {
        if (k > 0 && !r->set->csv && !r->set->jsonl) tool_put(&r->out.text, "\n", 1);
        ok = expert__one(r, which[k], err);
    }
    if (ok && r->out.to_file && explore_interrupted)
        ok = tool_fail(err, "stopped: %.300s was not written", r->e->out);
    ok = explore_output_close(r->e, &r->out, ok, err);
    monet_session_free(r->session);
    free(r->top);
    free(r->sample);
    free(r->labels);
    free(r->tokens);
    free(r->sum);
    free(r->one);
    free(r->logits);
    free(r->directions);
    free(r->ranked);
    return ok;
}

static TOOL_UNUSED int explore_expert(explore *e, int argc, char **argv)
{
    static const explore_command about = {
        "expert", "MODEL STATS EXPERT...",
        "Shows an expert: how often it is active, on which labels, whether it is the pair that\n"
        "carries the meaning or one of its halves, its strongest tokens, a sample of all of them,\n"
        "and which tokens its output promotes in each layer.",
        "  explore expert examples/monet-4m.monet all.stats G1:E1304\n"
        "  explore expert examples/monet-4m.monet all.stats G1:20,24 G2:E190 --jsonl"};
    expert_settings set = {20, 10, 8, false, false, false};
    const run_option options[] = {
        {"top", RUN_WHOLE, &set.top, 1, EXPERT_MAX_LIST, "N", "strongest tokens (default: 20)"},
        {"sample", RUN_WHOLE, &set.sample, 1, EXPERT_MAX_LIST, "N",
         "tokens of a sample of all that it is active on (default: 10)"},
        {"tokens", RUN_WHOLE, &set.tokens, 1, 1000, "N",
         "tokens that it promotes and suppresses (default: 8)"},
        {"no-output", RUN_FLAG, &set.no_output, 0, 0, NULL, "leave out which tokens it promotes"},
        {"jsonl", RUN_FLAG, &set.jsonl, 0, 0, NULL, "a JSON object an expert"},
        {"csv", RUN_FLAG, &set.csv, 0, 0, NULL, "a row for each of its tokens"},
        EXPLORE_COLOR(e), EXPLORE_OUT(e), EXPLORE_OPTIONS(e),
    };
    static const char *files[EXPLORE_MAX_FILES];
    tool_error err = {{0}};
    expert_run r;
    stats s;
    size_t n_files;
    int status;
    bool ok;

    memset(&r, 0, sizeof r);
    memset(&s, 0, sizeof s);
    r.e = e;
    r.set = &set;
    r.s = &s;
    if (!explore_arguments(e, &about, options, sizeof options / sizeof options[0], argc, argv,
                           files, 3, EXPLORE_MAX_FILES, &n_files, &status)) return status;
    if (!explore_colors(e, &r.color, &err)) return explore_usage(about.name, &err);
    ok = explore_open(e, files[0], &err) && stats_load(&s, e->model, files[1], &err) &&
         expert__run(&r, files + 2, n_files - 2, &err);
    stats_free(&s);
    explore_close(e);
    return explore_end(e, about.name, ok, &err);
}

#endif /* TOOL_EXPLORE_EXPERT_H */
