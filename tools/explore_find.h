/* explore_find.h: explore find: experts for a word, for a label, for the scores of texts or for a
   text.

   A word counts at a token of an expert's list where the context there spells it, from the start
   of a token, or behind its leading space, to the end of one: so a word of several tokens is
   found, and "price" is not found in "prices".                                                 */
#ifndef TOOL_EXPLORE_FIND_H
#define TOOL_EXPLORE_FIND_H

#include "explore_domains.h"

#include <math.h>

#define FIND_LISTED 1000 /* tokens that statistics can list for an expert */
#define FIND_SHOWN 6     /* of them, shown beside an expert that was found */

typedef struct find_settings {
    const char *word, *label, *like, *group;
    int64_t     top, floor;
    bool        score, csv, jsonl;
} find_settings;

typedef struct find_column { /* a figure of an expert that was found */
    const char *key;         /* in JSON and CSV */
    const char *title;
    int         digits;      /* behind the point, in the table */
} find_column;

typedef struct find_ranking { /* one question */
    const char        *by;
    const find_column *columns;
    size_t             n_columns, rank_by; /* which column ranks */
} find_ranking;

#define FIND_COLUMNS 4

typedef struct find_run {
    explore             *e;
    const find_settings *set;
    const stats         *s;
    explore_output       out;
    int32_t              only_group; /* -1 = all */
    size_t               label;
    stats_example       *examples;   /* (FIND_LISTED) */
    double              *sums;       /* of --like: (n_groups,N,N) sums of scores on the text */
    size_t               n_like;     /* its tokens */
    double               value[FIND_COLUMNS];
    explore_ranked      *ranked;     /* (top) */
    size_t               n_ranked;
} find_run;

/* ---- find: words ----------------------------------------------------------------------------- */

/* Whether the word is spelled across token n_before of the example. */
static TOOL_UNUSED bool find__spells(const find_run *r, const stats_example *x, const char *word)
{
    size_t size, from = 0, begin, done = 0, length = strlen(word);
    int32_t start, k;

    for (start = 0; start <= x->n_before; start++) {
        for (from = 0; from < 2; from++) { /* at the token, behind its leading space */
            done = 0;
            for (k = start; k < x->n && done < length; k++) {
                const char *bytes = monet_tokenizer_bytes(r->e->tokenizer, x->tokens[k], &size);
                begin = k == start ? from : 0;
                if (bytes == NULL || size < begin || (begin == 1 && bytes[0] != ' ')) break;
                if (size - begin > length - done ||
                    memcmp(bytes + begin, word + done, size - begin) != 0) break;
                done += size - begin;
            }
            if (done == length && k > x->n_before) return true;
        }
    }
    return false;
}

static TOOL_UNUSED bool find__word(find_run *r, int32_t group, int32_t i, int32_t j)
{
    size_t n = stats_top(r->s, group, i, j, r->examples, FIND_LISTED), k, hits = 0;
    double sum = 0;

    for (k = 0; k < n; k++)
        if (find__spells(r, &r->examples[k], r->set->word)) {
            hits++;
            sum += (double)r->examples[k].score;
        }
    r->value[0] = sum;
    r->value[1] = (double)hits;
    r->value[2] = (double)n;
    return hits > 0;
}

/* ---- find: labels and scores ----------------------------------------------------------------- */

/* The paper's rule: the mean on the label, over the largest mean on another one. */
static TOOL_UNUSED double find__label_ratio(const find_run *r, int32_t group, int32_t i, int32_t j)
{
    double mean = stats_label_mean(r->s, group, i, j, r->label), best[2], second;
    int32_t label[2];

    domains_two_best(r->s, group, (size_t)explore_id(r->e, i, j), label, best);
    second = label[0] == (int32_t)r->label ? best[1] : best[0];
    return second > 0 ? mean / second : mean > 0 ? INFINITY : 0;
}

static TOOL_UNUSED bool find__label_values(find_run *r, int32_t group, int32_t i, int32_t j)
{
    uint64_t count = stats_label_count(r->s, group, i, j, r->label);

    if (count == 0 || count < (uint64_t)r->set->floor) return false;
    r->value[0] = find__label_ratio(r, group, i, j);
    r->value[1] = stats_label_pearson(r->s, group, i, j, r->label);
    r->value[2] = stats_label_mean(r->s, group, i, j, r->label);
    r->value[3] = 100 * (double)count / (double)r->s->labels[r->label].n_tokens;
    return r->value[0] > 1 || r->value[1] > 0;
}

static TOOL_UNUSED bool find__score(find_run *r, int32_t group, int32_t i, int32_t j)
{
    const stats_sum *x = stats_expert(r->s, group, i, j);

    r->value[0] = stats_pearson(r->s, group, i, j);
    r->value[1] = stats_mean(r->s, group, i, j);
    r->value[2] = 100 * (double)x->count / (double)r->s->n_tokens;
    return x->count >= (uint64_t)r->set->floor && r->value[0] == r->value[0];
}

/* ---- find: a text ---------------------------------------------------------------------------- */

static TOOL_UNUSED void find__add_routing(find_run *r, const monet_routing *x)
{
    const size_t N = (size_t)x->n_experts;
    double *sums = r->sums + (size_t)x->group * N * N;
    int a, b;

    for (a = 0; a < x->n_i; a++)
        for (b = 0; b < x->n_j; b++)
            sums[x->i[a] * N + x->j[b]] += run_score(x, x->i[a], x->j[b]);
}

/* Sums the scores of all experts over the text, BOS left out as in the statistics. */
static TOOL_UNUSED bool find__read_text(find_run *r, tool_error *err)
{
    const size_t N = (size_t)r->e->arch->moe_experts;
    unsigned flags = monet_tokenizer_bos(r->e->tokenizer) >= 0 ? MONET_ADD_BOS : 0;
    size_t n = 0, k, first = flags != 0 ? 1 : 0;
    monet_session *session = NULL;
    monet_routing routing;
    int32_t *tokens, g;
    bool ok;

    r->sums = tool_alloc((uint64_t)r->e->n_groups * N, N * sizeof *r->sums, err);
    tokens = explore_encode(r->e, r->set->like, strlen(r->set->like), flags, &n, err);
    ok = r->sums != NULL && tokens != NULL;
    if (ok && n <= first) ok = tool_fail(err, "--like: the text is empty");
    if (ok && n > (size_t)r->e->arch->max_seq_len)
        ok = tool_fail(err, "--like: the text is %zu tokens long and the context holds %d", n,
                       (int)r->e->arch->max_seq_len);
    ok = ok && explore_session(r->e, (int32_t)n, EXPLORE_ROUTING, &session, err);
    if (ok && monet_session_eval(session, tokens, n) != MONET_OK)
        ok = explore_session_failed(session, err);
    for (k = first; ok && k < n; k++)
        for (g = 0; ok && g < r->e->n_groups; g++) {
            ok = monet_session_routing(session, (int32_t)k, explore_first_layer(r->e, g),
                                       &routing) == MONET_OK;
            if (ok) find__add_routing(r, &routing);
            else explore_session_failed(session, err);
        }
    r->n_like = n - first;
    monet_session_free(session);
    free(tokens);
    return ok;
}

/* How much more it is active on the text than in general. */
static TOOL_UNUSED bool find__like(find_run *r, int32_t group, int32_t i, int32_t j)
{
    const size_t N = (size_t)r->s->N;
    double mean = stats_mean(r->s, group, i, j);
    double here = r->sums[((size_t)group * N + (size_t)i) * N + (size_t)j] / (double)r->n_like;

    r->value[0] = here - mean;
    r->value[1] = here;
    r->value[2] = mean;
    return here > mean;
}

/* ---- find: output ---------------------------------------------------------------------------- */

/* The different tokens of its list, strongest first. Returns how many. */
static TOOL_UNUSED size_t find__tokens(find_run *r, int32_t group, int32_t i, int32_t j,
                                       explore_ranked out[FIND_SHOWN])
{
    size_t n = stats_top(r->s, group, i, j, r->examples, FIND_LISTED), k, m, shown = 0;

    for (k = 0; k < n && shown < FIND_SHOWN; k++) {
        uint64_t token = (uint64_t)r->examples[k].tokens[r->examples[k].n_before];
        for (m = 0; m < shown && out[m].index != token; m++) {}
        if (m == shown) out[shown++].index = token;
    }
    return shown;
}

static TOOL_UNUSED void find__put_row(find_run *r, const find_ranking *q, int32_t group, int32_t i,
                                      int32_t j)
{
    tool_buffer *out = &r->out.text;
    char name[EXPLORE_NAME];
    explore_ranked tokens[FIND_SHOWN];
    size_t n = find__tokens(r, group, i, j, tokens), k;

    for (k = 0; k < q->n_columns; k++)
        tool_putf(out, "%*.*f", (int)strlen(q->columns[k].title) + 2, q->columns[k].digits,
                  r->value[k]);
    tool_putf(out, "  %-34s", explore_name(r->e, name, group, i, j));
    explore_put_list(r->e, out, tokens, n, false);
    tool_put(out, "\n", 1);
}

static TOOL_UNUSED void find__put_json(find_run *r, const find_ranking *q, int32_t group,
                                       int32_t i, int32_t j)
{
    tool_buffer *out = &r->out.text;
    explore_ranked tokens[FIND_SHOWN];
    size_t n = find__tokens(r, group, i, j, tokens), k;

    tool_putf(out, "{\"by\":\"%s\",", q->by);
    explore_put_expert_json(r->e, out, group, i, j);
    tool_put(out, ",", 1);
    for (k = 0; k < q->n_columns; k++) {
        explore_put_number(out, q->columns[k].key, r->value[k]);
        tool_put(out, ",", 1);
    }
    explore_put_list_json(r->e, out, "top", tokens, n, NULL);
    tool_put(out, "}\n", 2);
}

static TOOL_UNUSED void find__put_csv(find_run *r, const find_ranking *q, int32_t group, int32_t i,
                                      int32_t j)
{
    tool_buffer *out = &r->out.text, words = {NULL, 0, 0, false};
    explore_ranked tokens[FIND_SHOWN];
    size_t n = find__tokens(r, group, i, j, tokens), k;

    tool_putf(out, "%s,%d,%lld,%d,%d", q->by, (int)group + 1, (long long)explore_id(r->e, i, j),
              (int)i, (int)j);
    for (k = 0; k < q->n_columns; k++) tool_putf(out, ",%.7g", r->value[k]);
    tool_put(out, ",", 1);
    explore_put_list(r->e, &words, tokens, n, false);
    tool_put_csv(out, words.size > 0 ? words.data + 1 : "", words.size > 0 ? words.size - 1 : 0);
    tool_put(out, "\n", 1);
    out->failed = out->failed || words.failed;
    tool_buffer_free(&words);
}

static TOOL_UNUSED void find__put_head(find_run *r, const find_ranking *q)
{
    tool_buffer *out = &r->out.text;
    size_t k;

    if (r->set->jsonl) return;
    if (r->set->csv) tool_putf(out, "by,group,id,i,j");
    for (k = 0; k < q->n_columns; k++) {
        if (r->set->csv) tool_putf(out, ",%s", q->columns[k].key);
        else tool_putf(out, "  %s", q->columns[k].title);
    }
    if (r->set->csv) tool_putf(out, ",top\n");
    else tool_putf(out, "  %-34s strongest tokens\n", "expert");
}

/* ---- find: the run --------------------------------------------------------------------------- */

typedef bool (*find_measure)(find_run *r, int32_t group, int32_t i, int32_t j);

/* Measures all experts and shows the best. */
static TOOL_UNUSED bool find__rank(find_run *r, const find_ranking *q, find_measure measure,
                                   tool_error *err)
{
    const uint64_t N = (uint64_t)r->s->N, total = (uint64_t)r->s->n_groups * N * N;
    tool_progress progress;
    int32_t group, i, j;
    uint64_t at;
    size_t k;

    r->n_ranked = 0;
    tool_progress_begin(&progress, "experts looked at", "experts", total);
    if (r->e->quiet) tool_progress_silence(&progress);
    for (at = 0; at < total && !explore_interrupted; at++) {
        if (at % 256 == 0) tool_progress_update(&progress, at);
        group = (int32_t)(at / (N * N));
        if (r->only_group >= 0 && group != r->only_group) continue;
        if (measure(r, group, (int32_t)(at / N % N), (int32_t)(at % N)))
            explore_rank(r->ranked, (size_t)r->set->top, &r->n_ranked,
                         r->value[q->rank_by], at);
    }
    tool_progress_end(&progress);
    if (explore_interrupted) return tool_fail(err, "stopped");
    for (k = 0; k < r->n_ranked; k++) {
        at = r->ranked[k].index;
        group = (int32_t)(at / (N * N));
        i = (int32_t)(at / N % N);
        j = (int32_t)(at % N);
        measure(r, group, i, j);
        if (r->set->jsonl) find__put_json(r, q, group, i, j);
        else if (r->set->csv) find__put_csv(r, q, group, i, j);
        else find__put_row(r, q, group, i, j);
    }
    if (r->n_ranked == 0 && !r->set->csv && !r->set->jsonl) tool_putf(&r->out.text, "  none\n");
    return explore_flush(r->e, &r->out, err);
}

/* Both rankings, under one head where a program reads it. */
static TOOL_UNUSED bool find__label(find_run *r, tool_error *err)
{
    static const find_column columns[] = {{"ratio", "x second", 2}, {"r", "r     ", 3},
                                          {"mean", "mean   ", 5},
                                          {"active_percent", "active %", 3}};
    static const find_ranking ratio = {"ratio", columns, 4, 0}, pearson = {"r", columns, 4, 1};

    for (r->label = 0; r->label < r->s->n_labels; r->label++)
        if (strcmp(r->s->labels[r->label].name, r->set->label) == 0) break;
    if (r->label == r->s->n_labels)
        return tool_fail(err, "the statistics have no label '%.60s' (explore stats MODEL STATS "
                         "--summary lists them)", r->set->label);
    find__put_head(r, &ratio);
    if (!find__rank(r, &ratio, find__label_values, err)) return false;
    if (!r->set->csv && !r->set->jsonl) {
        tool_put(&r->out.text, "\n", 1);
        find__put_head(r, &pearson);
    }
    return find__rank(r, &pearson, find__label_values, err);
}

static TOOL_UNUSED bool find__ask(find_run *r, tool_error *err)
{
    static const find_column word[] = {{"sum", "sum   ", 3}, {"hits", "hits", 0},
                                       {"listed", "of", 0}};
    static const find_column score[] = {{"r", "r     ", 4}, {"mean", "mean   ", 5},
                                        {"active_percent", "active %", 3}};
    static const find_column like[] = {{"more", "more   ", 4}, {"text_mean", "here   ", 4},
                                       {"mean", "in all ", 4}};
    static const find_ranking rankings[] = {{"word", word, 3, 0}, {"score", score, 3, 0},
                                            {"like", like, 3, 0}};
    static const find_measure measures[] = {find__word, find__score, find__like};
    int which = r->set->word != NULL ? 0 : r->set->like != NULL ? 2 : 1;

    if (r->set->label != NULL) return find__label(r, err);
    if (which == 1 && r->s->n_scored == 0)
        return tool_fail(err, "the texts of these statistics have no scores");
    if (which == 2 && !find__read_text(r, err)) return false;
    find__put_head(r, &rankings[which]);
    return find__rank(r, &rankings[which], measures[which], err);
}

static TOOL_UNUSED bool find__run(find_run *r, tool_error *err)
{
    bool ok = true;

    r->only_group = -1;
    if (r->set->group != NULL) ok = explore_parse_group(r->e, r->set->group, &r->only_group, err);
    r->examples = tool_alloc(FIND_LISTED, sizeof *r->examples, err);
    r->ranked = tool_alloc((uint64_t)r->set->top, sizeof *r->ranked, err);
    ok = ok && r->examples != NULL && r->ranked != NULL &&
         explore_output_open(r->e, &r->out, err) && find__ask(r, err);
    ok = explore_output_close(r->e, &r->out, ok, err);
    free(r->examples);
    free(r->ranked);
    free(r->sums);
    return ok;
}

static TOOL_UNUSED int explore_find(explore *e, int argc, char **argv)
{
    static const explore_command about = {
        "find", "MODEL STATS",
        "Finds experts: --word: the word is among their strongest tokens (ranked by the sum of\n"
        "scores there); --label: active on the texts of a label, by the paper's ratio (mean\n"
        "there / largest mean elsewhere) and by correlation; --score: correlated with the scores\n"
        "of the texts; --like: more active on a text than in general.",
        "  explore find examples/monet-4m.monet all.stats --word \" price\"\n"
        "  explore find examples/monet-4m.monet all.stats --label economics --top 10"};
    find_settings set = {NULL, NULL, NULL, NULL, 20, 10, false, false, false};
    const run_option options[] = {
        {"word", RUN_TEXT, (void *)&set.word, 0, 0, "WORD",
         "price: with or without a space before it; \" price\": only with"},
        {"label", RUN_TEXT, (void *)&set.label, 0, 0, "LABEL", "a label of the statistics"},
        {"score", RUN_FLAG, &set.score, 0, 0, NULL, "correlated with the scores of the texts"},
        {"like", RUN_TEXT, (void *)&set.like, 0, 0, "TEXT",
         "more active on this text than in general"},
        {"floor", RUN_WHOLE, &set.floor, 0, INT64_MAX, "N",
         "labels, scores: active on at least N tokens (default: 10)"},
        {"group", RUN_TEXT, (void *)&set.group, 0, 0, "G1", "this group only (default: all)"},
        {"top", RUN_WHOLE, &set.top, 1, 10000, "N", "experts shown (default: 20)"},
        {"jsonl", RUN_FLAG, &set.jsonl, 0, 0, NULL, "a JSON object an expert"},
        {"csv", RUN_FLAG, &set.csv, 0, 0, NULL, "a row an expert"},
        EXPLORE_OUT(e), EXPLORE_OPTIONS(e),
    };
    tool_error err = {{0}};
    const char *files[2];
    find_run r;
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
                           files, 2, 2, &n_files, &status)) return status;
    if ((set.word != NULL) + (set.label != NULL) + (set.like != NULL) + set.score != 1) {
        tool_fail(&err, "one of --word, --label, --score and --like is needed");
        return explore_usage(about.name, &err);
    }
    ok = explore_open(e, files[0], &err) && stats_load(&s, e->model, files[1], &err) &&
         find__run(&r, &err);
    stats_free(&s);
    explore_close(e);
    return explore_end(e, about.name, ok, &err);
}

#endif /* TOOL_EXPLORE_FIND_H */
