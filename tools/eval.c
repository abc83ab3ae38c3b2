/* eval.c: how well a model predicts texts: nats per token, bits per byte.
   cc -O2 -pthread -I. tools/eval.c -o eval -lm && ./eval examples/monet-4m.monet README.md

   A text file is one stream of tokens with BOS (<s>) first. A line that holds one form feed (0x0C)
   separates documents: each starts anew with BOS. A stream that is longer than the context is cut
   into windows. With --stride below the context, windows overlap: the tokens that a window repeats
   are only read, so that each token is scored once, with at least context - stride tokens before
   it. A .safetensors file holds "tokens" (B,T), integers: each row is a stream of its own, used as
   it is; its first token is not scored.

   Bytes are those of the text that the scored tokens decode to.

   With --edit, experts are removed, scaled or forced as a file says (see >>edits_api in monet.h);
   several are applied one after the other.

   With --compare another model reads the same tokens: what did a smaller dtype change? With
   --compare-mode, --compare-kernels and --compare-edit: the same, or the same model in another way.
   What did an edit change?  eval MODEL TEXT --edit FILE --compare-edit none                    */
#include "common.h"
#include "safetensors.h"

#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"

#include "run.h"
#include "tokenizer_data.h"

#define BATCH 64                           /* tokens a call: their logits are kept */
#define MAX_FILES 4096
#define MAX_ROUTERS 4096                   /* a model has no more layers */
#define MAX_TEXT (UINT64_C(1) << 32)       /* bytes of one text file */

typedef struct way { /* in which a model is run */
    monet_mode    mode;
    monet_kernels kernels;
} way;

typedef struct settings {
    const char *csv, *compare, *compare_mode, *compare_kernels;
    int64_t     context, stride, threads, max_tokens; /* 0 = default */
    monet_dtype kv;
    way         way, other_way;
    run_texts   edits, compare_edits;
    bool        quiet, help;
} settings;

typedef struct score {
    uint64_t tokens;    /* scored */
    uint64_t evaluated; /* the tokens that windows repeat count again */
    uint64_t bytes;
    double   nats, seconds;
    double   other_nats, other_seconds; /* of the model that this one is compared with */
    uint64_t same;      /* tokens that both find likeliest */
    bool     has_bytes;
} score;

typedef struct routing_agreement { /* of one router, over all tokens that were scored */
    uint64_t both[2], either[2]; /* half-experts of each axis that are active in both; in any */
    double   common, scores;     /* of all experts: the smaller of both; their mean */
} routing_agreement;

typedef struct evaluation {
    settings               set;
    const monet_arch      *arch;
    const monet_tokenizer *tokenizer; /* may be NULL: then only token files can be scored */
    monet_session         *session, *other; /* other NULL = nothing to compare with */
    monet_model           *other_model;     /* NULL = the same */
    run_edit               edit, other_edit;
    double                 sum_difference, max_difference; /* of logits */
    routing_agreement      routers[MAX_ROUTERS];
    int32_t                n_routers; /* 0 = the two models' cannot be compared */
    score                  now;       /* of the file at hand */
    tool_progress          progress;
    const char            *path;
} evaluation;

/* ---- comparing two models -------------------------------------------------------------------- */

static void compare_logits(evaluation *e, const monet_real *a, const monet_real *b)
{
    const int32_t n = e->arch->vocab_size;
    double sum = 0;
    int32_t i;

    for (i = 0; i < n; i++) {
        const double difference = fabs((double)a[i] - (double)b[i]);
        sum += difference;
        if (difference > e->max_difference) e->max_difference = difference;
    }
    e->sum_difference += sum / n;
    e->now.same += run_likeliest(a, n) == run_likeliest(b, n);
}

/* Numbers that are in both ascending lists, into `out`. */
static int32_t common_numbers(const uint16_t *a, int32_t n_a, const uint16_t *b, int32_t n_b,
                              uint16_t *out)
{
    int32_t i = 0, j = 0, n = 0;

    while (i < n_a && j < n_b) {
        if (a[i] == b[j]) out[n++] = a[i];
        if (a[i] < b[j]) i++;
        else if (b[j] < a[i]) j++;
        else i++, j++;
    }
    return n;
}

/* The sum of the scores of all experts. */
static double all_scores(const monet_routing *r)
{
    double all = 0;
    int32_t h, k;

    for (h = 0; h < r->n_heads; h++) {
        double sum1 = 0, sum2 = 0;
        for (k = 0; k < r->n_i; k++) sum1 += (double)r->g1[h * r->n_experts + r->i[k]];
        for (k = 0; k < r->n_j; k++) sum2 += (double)r->g2[h * r->n_experts + r->j[k]];
        all += sum1 * sum2;
    }
    return all;
}

static void compare_routing(routing_agreement *sum, const monet_routing *a, const monet_routing *b)
{
    static uint16_t i[65536], j[65536];
    const int32_t n_i = common_numbers(a->i, a->n_i, b->i, b->n_i, i);
    const int32_t n_j = common_numbers(a->j, a->n_j, b->j, b->n_j, j);
    int32_t x, y;

    sum->both[0] += (uint64_t)n_i;
    sum->both[1] += (uint64_t)n_j;
    sum->either[0] += (uint64_t)(a->n_i + b->n_i - n_i);
    sum->either[1] += (uint64_t)(a->n_j + b->n_j - n_j);
    for (x = 0; x < n_i; x++)
        for (y = 0; y < n_j; y++) {
            const double one = run_score(a, i[x], j[y]), two = run_score(b, i[x], j[y]);
            sum->common += one < two ? one : two;
        }
    sum->scores += (all_scores(a) + all_scores(b)) / 2;
}

/* What the two sessions found for token `index` of the last call, which `target` follows. */
static bool compare_token(evaluation *e, int32_t index, int32_t target, tool_error *err)
{
    const monet_real *logits = monet_session_logits_at(e->other, index);
    monet_routing a, b;
    int32_t r;

    compare_logits(e, monet_session_logits_at(e->session, index), logits);
    e->now.other_nats -= monet_logprob(logits, e->arch->vocab_size, target);
    for (r = 0; r < e->n_routers; r++) {
        const int32_t layer = r * e->arch->moe_groups;
        if (monet_session_routing(e->session, index, layer, &a) != MONET_OK ||
            monet_session_routing(e->other, index, layer, &b) != MONET_OK)
            return tool_fail(err, "layer %d: the routing was not kept", (int)layer);
        compare_routing(&e->routers[r], &a, &b);
    }
    return true;
}

static void print_agreement(const evaluation *e, const score *all)
{
    const bool has_bytes = all->has_bytes && all->bytes > 0;
    const double unit = has_bytes ? log(2.0) * (double)all->bytes : (double)all->tokens;
    int32_t r;

    printf("\ncompared with %s, %s, %s", e->set.compare != NULL ? e->set.compare : "itself",
           e->set.other_way.mode == MONET_FAST ? "fast" : "exact",
           monet_kernels_name(e->set.other_way.kernels));
    if (e->set.compare_edits.n > 0)
        printf(", edit %s", e->other_edit.edit != NULL ? e->other_edit.names.data : "none");
    printf(" (%.1f tokens/s)\n", (double)all->evaluated / (all->other_seconds + 1e-9));
    printf("%s    %.4f, there %.4f: %+.3f %%\n", has_bytes ? "bits/byte " : "nats/token",
           all->nats / unit, all->other_nats / unit, 100 * (all->nats / all->other_nats - 1));
    printf("likeliest     the same token at %.3f %% of %llu places\n",
           100 * (double)all->same / (double)all->tokens, (unsigned long long)all->tokens);
    printf("logits        differ by %.5f on average, by %.5f at most\n",
           e->sum_difference / (double)all->tokens, e->max_difference);
    if (e->n_routers > 0)
        printf("routers       half-experts active in both, of those active in any; scores in "
               "common\n");
    for (r = 0; r < e->n_routers; r++) {
        const routing_agreement *x = &e->routers[r];
        printf("  %-3d layer %-3d i %7.3f %%  j %7.3f %%  experts %7.3f %%\n", (int)r,
               (int)(r * e->arch->moe_groups),
               100 * (double)x->both[0] / ((double)x->either[0] + 1e-9),
               100 * (double)x->both[1] / ((double)x->either[1] + 1e-9),
               100 * x->common / (x->scores + 1e-30));
    }
}

/* ---- one stream ------------------------------------------------------------------------------ */

static bool eval_failed(const evaluation *e, const monet_session *session, size_t at,
                        tool_error *err)
{
    return tool_fail(err, "%.200s: token %llu of a stream: %s", e->path, (unsigned long long)at,
                     monet_session_error(session)->message);
}

/* The other model reads the same tokens. */
static bool eval_other(evaluation *e, const int32_t *tokens, size_t at, size_t n, bool first,
                       tool_error *err)
{
    const double start = tool_seconds();

    if (e->other == NULL) return true;
    if ((first && monet_session_rewind(e->other, 0) != MONET_OK) ||
        monet_session_eval(e->other, tokens, n) != MONET_OK)
        return eval_failed(e, e->other, at, err);
    e->now.other_seconds += tool_seconds() - start;
    return true;
}

/* Evaluates stream[first..end-1] as one window and scores the tokens after `known`, the last one
   that was scored before; stream[end] is the last target.                                      */
static bool score_window(evaluation *e, const int32_t *stream, size_t first, size_t end,
                         size_t known, tool_error *err)
{
    size_t at, k, n;

    if (monet_session_rewind(e->session, 0) != MONET_OK)
        return tool_fail(err, "%s", monet_session_error(e->session)->message);
    for (at = first; at < end; at += n) {
        n = end - at < BATCH ? end - at : BATCH;
        if (monet_session_eval(e->session, stream + at, n) != MONET_OK)
            return eval_failed(e, e->session, at, err);
        if (!eval_other(e, stream + at, at, n, at == first, err)) return false;
        e->now.evaluated += n;
        for (k = 0; k < n; k++) {
            if (at + k + 1 <= known) continue;
            e->now.nats -= monet_logprob(monet_session_logits_at(e->session, (int32_t)k),
                                         e->arch->vocab_size, stream[at + k + 1]);
            e->now.tokens++;
            if (e->other != NULL && !compare_token(e, (int32_t)k, stream[at + k + 1], err))
                return false;
        }
        tool_progress_update(&e->progress, e->now.tokens);
    }
    return true;
}

/* Adds the bytes of stream[1..n] to the score: those of the whole text without those of stream[0],
   since decoding drops a space at the beginning of a text, but not in the middle.              */
static bool count_bytes(evaluation *e, const int32_t *stream, size_t n, tool_error *err)
{
    size_t first = 0, all = 0;
    monet_result result;

    if (e->tokenizer == NULL) return true;
    result = monet_tokenizer_decode(e->tokenizer, stream, n + 1, NULL, 0, &all);
    if (result != MONET_OK && result != MONET_ERROR_CAPACITY)
        return tool_fail(err, "%.200s: a token is not in the tokenizer", e->path);
    monet_tokenizer_decode(e->tokenizer, stream, 1, NULL, 0, &first);
    e->now.bytes += all - first;
    return true;
}

/* stream[0] is given, stream[1..n] are scored, as far as --max-tokens goes. */
static bool score_stream(evaluation *e, const int32_t *stream, size_t n, tool_error *err)
{
    size_t context = (size_t)e->set.context, stride = (size_t)e->set.stride;
    size_t first = 0, known = 0, end;

    if (e->set.max_tokens > 0 && n > (uint64_t)e->set.max_tokens - e->now.tokens)
        n = (size_t)((uint64_t)e->set.max_tokens - e->now.tokens);
    for (; known < n; first += stride, known = end) {
        end = n - first < context ? n : first + context;
        if (!score_window(e, stream, first, end, known, err)) return false;
    }
    return count_bytes(e, stream, n, err);
}

static bool enough(const evaluation *e)
{
    return e->set.max_tokens > 0 && e->now.tokens >= (uint64_t)e->set.max_tokens;
}

/* ---- texts ----------------------------------------------------------------------------------- */

/* Tokens of a document with BOS before them, in new memory; *n does not count the first. */
static int32_t *encode(const evaluation *e, const char *text, size_t size, size_t *n,
                       tool_error *err)
{
    size_t count = 0;
    int32_t *tokens;
    int32_t bos = monet_tokenizer_bos(e->tokenizer);
    monet_result result = monet_tokenizer_encode(e->tokenizer, text, size, 0, NULL, 0, &count);

    if (result == MONET_OK || result == MONET_ERROR_CAPACITY) {
        tokens = tool_alloc((uint64_t)count + 1, sizeof *tokens, err);
        if (tokens == NULL) return NULL;
        tokens[0] = bos;
        result = monet_tokenizer_encode(e->tokenizer, text, size, 0, tokens + 1, count, &count);
        *n = count;
        if (result == MONET_OK) return tokens;
        free(tokens);
    }
    tool_fail(err, "%.200s: cannot be encoded: %s", e->path, monet_result_name(result));
    return NULL;
}

static bool score_text(evaluation *e, tool_error *err)
{
    char *text;
    size_t size, at, end;
    bool ok = tool_read_file(e->path, MAX_TEXT, &text, &size, err);

    if (ok && e->tokenizer == NULL)
        ok = tool_fail(err, "%.200s: the model holds no tokenizer to read a text with", e->path);
    if (ok && monet_tokenizer_bos(e->tokenizer) < 0)
        ok = tool_fail(err, "%.200s: the tokenizer has no BOS to start a text with", e->path);
    for (at = 0; ok && at < size && !enough(e); at = end + 2) {
        const char *feed = tool_form_feed(text + at, size - at, true, true);
        size_t n = 0;
        int32_t *tokens;
        end = feed != NULL ? (size_t)(feed - text) : size;
        if (end == at) continue;
        tokens = encode(e, text + at, end - at, &n, err);
        ok = tokens != NULL && score_stream(e, tokens, n, err);
        free(tokens);
    }
    free(text);
    return ok;
}

/* ---- token files ----------------------------------------------------------------------------- */

static bool read_row(const evaluation *e, const st_file *file, const st_tensor *t, uint64_t row,
                     int64_t *wide, int32_t *tokens, tool_error *err)
{
    uint64_t columns = (uint64_t)t->shape[1], k;

    if (!st_read_i64(file, t, row * columns, columns, wide, err)) return false;
    for (k = 0; k < columns; k++) {
        if (wide[k] < 0 || wide[k] >= e->arch->vocab_size)
            return tool_fail(err, "%.200s: token %lld at (%llu,%llu), expected 0 to %d", e->path,
                             (long long)wide[k], (unsigned long long)row, (unsigned long long)k,
                             (int)e->arch->vocab_size - 1);
        tokens[k] = (int32_t)wide[k];
    }
    return true;
}

static bool score_rows(evaluation *e, const st_file *file, tool_error *err)
{
    const st_tensor *t = st_find(file, "tokens");
    char shape[ST_SHAPE];
    int64_t *wide;
    int32_t *tokens;
    uint64_t row;
    bool ok;

    if (t == NULL) return tool_fail(err, "%.200s: holds no array \"tokens\"", e->path);
    if (t->n_dims != 2 || t->shape[1] < 2)
        return tool_fail(err, "%.200s: tokens is %s, expected (B,T) with T at least 2", e->path,
                         st_shape(shape, t->n_dims, t->shape));
    if (e->set.max_tokens == 0)
        e->progress.total = (uint64_t)t->shape[0] * ((uint64_t)t->shape[1] - 1);
    wide = tool_alloc((uint64_t)t->shape[1], sizeof *wide, err);
    tokens = tool_alloc((uint64_t)t->shape[1], sizeof *tokens, err);
    ok = wide != NULL && tokens != NULL;
    for (row = 0; ok && row < (uint64_t)t->shape[0] && !enough(e); row++)
        ok = read_row(e, file, t, row, wide, tokens, err) &&
             score_stream(e, tokens, (size_t)t->shape[1] - 1, err);
    free(wide);
    free(tokens);
    return ok;
}

static bool score_token_file(evaluation *e, tool_error *err)
{
    st_file file;
    bool ok;

    if (!st_open(&file, e->path, err)) return false;
    ok = score_rows(e, &file, err);
    st_close(&file);
    return ok;
}

/* ---- files and tables ------------------------------------------------------------------------ */

static bool is_token_file(const char *path)
{
    static const char ending[] = ".safetensors";
    size_t size = strlen(path), n = sizeof ending - 1;

    return size >= n && strcmp(path + size - n, ending) == 0;
}

static bool score_file(evaluation *e, tool_error *err)
{
    double start = tool_seconds();
    bool ok;

    memset(&e->now, 0, sizeof e->now);
    e->now.has_bytes = e->tokenizer != NULL;
    tool_progress_begin(&e->progress, "tokens scored", "tokens", (uint64_t)e->set.max_tokens);
    if (e->set.quiet) tool_progress_silence(&e->progress);
    ok = is_token_file(e->path) ? score_token_file(e, err) : score_text(e, err);
    tool_progress_end(&e->progress);
    e->now.seconds = tool_seconds() - start - e->now.other_seconds;
    if (ok && e->now.tokens == 0)
        return tool_fail(err, "%.200s: holds no token to score", e->path);
    return ok;
}

static void add_score(score *total, const score *one)
{
    total->tokens += one->tokens;
    total->evaluated += one->evaluated;
    total->bytes += one->bytes;
    total->nats += one->nats;
    total->seconds += one->seconds;
    total->other_nats += one->other_nats;
    total->other_seconds += one->other_seconds;
    total->same += one->same;
    total->has_bytes = one->has_bytes;
}

static double per(double amount, double count)
{
    return count > 0 ? amount / count : 0;
}

static void print_score(const char *name, const score *s)
{
    double nats = per(s->nats, (double)s->tokens);
    char bits[32] = "-";

    if (s->has_bytes && s->bytes > 0)
        snprintf(bits, sizeof bits, "%.4f", s->nats / log(2.0) / (double)s->bytes);
    printf("%-32s %10llu %11llu %10.4f %10.2f %9s %10.1f\n", name,
           (unsigned long long)s->tokens, (unsigned long long)s->bytes, nats, exp(nats), bits,
           per((double)s->evaluated, s->seconds));
    fflush(stdout);
}

static void put_csv(tool_buffer *csv, const char *name, const score *s, bool compares)
{
    double nats = per(s->nats, (double)s->tokens);

    tool_put_csv(csv, name, strlen(name));
    tool_putf(csv, ",%llu,%llu,%.6f,%.4f,", (unsigned long long)s->tokens,
              (unsigned long long)s->bytes, nats, exp(nats));
    if (s->has_bytes && s->bytes > 0)
        tool_putf(csv, "%.6f", s->nats / log(2.0) / (double)s->bytes);
    tool_putf(csv, ",%.3f,%.1f", s->seconds, per((double)s->evaluated, s->seconds));
    if (compares)
        tool_putf(csv, ",%.6f,%.4f,%.4f", per(s->other_nats, (double)s->tokens),
                  100 * (s->nats / s->other_nats - 1),
                  100 * per((double)s->same, (double)s->tokens));
    tool_putf(csv, "\n");
}

/* Every file in turn; the first one that fails ends it. */
static bool evaluate(evaluation *e, const char **files, size_t n_files, tool_error *err)
{
    static const char header[] =
        "file,tokens,bytes,nats_per_token,perplexity,bits_per_byte,seconds,tokens_per_second";
    const bool compares = e->other != NULL;
    tool_buffer csv = {NULL, 0, 0, false};
    score total;
    size_t k;
    bool ok = true;

    memset(&total, 0, sizeof total);
    tool_putf(&csv, "%s%s\n", header,
              compares ? ",other_nats_per_token,change_percent,same_likeliest_percent" : "");
    run_edit_print(&e->edit, e->arch);
    printf("%-32s %10s %11s %10s %10s %9s %10s\n", "file", "tokens", "bytes", "nats/token",
           "perplexity", "bits/byte", "tokens/s");
    for (k = 0; ok && k < n_files; k++) {
        e->path = files[k];
        ok = score_file(e, err);
        if (!ok) break;
        print_score(files[k], &e->now);
        put_csv(&csv, files[k], &e->now, compares);
        add_score(&total, &e->now);
    }
    if (ok && n_files > 1) {
        print_score("total", &total);
        put_csv(&csv, "total", &total, compares);
    }
    if (ok && compares) print_agreement(e, &total);
    if (ok && e->set.csv != NULL) ok = tool_write_file(e->set.csv, &csv, err);
    tool_buffer_free(&csv);
    if (ok && (ferror(stdout) || fflush(stdout) != 0))
        ok = tool_fail(err, "cannot write the table: %s", strerror(errno));
    return ok;
}

/* ---- main ------------------------------------------------------------------------------------ */

static bool start(const evaluation *e, const monet_model *model, way run, const monet_edit *edit,
                  monet_session **out, tool_error *err)
{
    monet_session_config config;

    memset(&config, 0, sizeof config);
    config.context = (int32_t)e->set.context;
    config.max_batch = e->set.context < BATCH ? (int32_t)e->set.context : BATCH;
    config.kv_dtype = e->set.kv;
    config.mode = run.mode;
    config.kernels = run.kernels;
    config.all_logits = true;
    config.capture_routing = e->n_routers > 0;
    if (!run_open_session(model, e->set.threads, &config, out, err)) return false;
    if (monet_session_set_edit(*out, edit) == MONET_OK) return true;
    return tool_fail(err, "the other model: %s; --compare-edit none leaves the edit out",
                     monet_session_error(*out)->message);
}

static bool check_context(evaluation *e, tool_error *err)
{
    if (e->set.context == 0) e->set.context = e->arch->max_seq_len;
    if (e->set.stride == 0) e->set.stride = e->set.context;
    if (e->set.stride <= e->set.context) return true;
    return tool_fail(err, "--stride %lld is more than the context of %lld",
                     (long long)e->set.stride, (long long)e->set.context);
}

/* Both have to read a text as the same tokens. Different routers are only not compared. */
static bool check_alike(evaluation *e, const monet_model *other, tool_error *err)
{
    const monet_arch *a = e->arch, *b = monet_model_arch(other);
    const monet_tokenizer *tokenizer = monet_model_tokenizer(other);
    uint64_t one = 0, two = 0;

    if (a->vocab_size != b->vocab_size)
        return tool_fail(err, "%.300s: has %d tokens, the other model %d", e->set.compare,
                         (int)b->vocab_size, (int)a->vocab_size);
    if (tokenizer != NULL && e->tokenizer != NULL &&
        (!tokenizer_hash(e->tokenizer, &one, err) || !tokenizer_hash(tokenizer, &two, err)))
        return false;
    if (one != two)
        return tool_fail(err, "%.300s: has another tokenizer", e->set.compare);
    if (a->n_layers == b->n_layers && a->moe_groups == b->moe_groups &&
        a->moe_experts == b->moe_experts && a->moe_heads == b->moe_heads)
        e->n_routers = run_routers(a);
    return true;
}

/* The other model has the edit of the first one, unless something is said about it. */
static bool open_other(evaluation *e, const monet_model *model, tool_error *err)
{
    const settings *set = &e->set;
    const run_texts *edits = &set->compare_edits;
    const bool same = edits->n == 0, none = edits->n == 1 && strcmp(edits->items[0], "none") == 0;

    if (set->compare == NULL && set->compare_mode == NULL && set->compare_kernels == NULL && same)
        return true;
    if (set->compare != NULL && !run_load(set->compare, &e->other_model, err)) return false;
    if (e->other_model != NULL) model = e->other_model;
    if (!none && !run_edit_load(&e->other_edit, model, edits, err)) return false;
    return check_alike(e, model, err) &&
           start(e, model, set->other_way, same ? e->edit.edit : e->other_edit.edit, &e->other,
                 err);
}

static bool run_files(evaluation *e, const char **files, size_t n_files, tool_error *err)
{
    monet_model *model = NULL;
    bool ok = run_load(files[0], &model, err);

    e->arch = monet_model_arch(model);
    e->tokenizer = monet_model_tokenizer(model);
    ok = ok && check_context(e, err) && run_edit_load(&e->edit, model, &e->set.edits, err) &&
         open_other(e, model, err) &&
         start(e, model, e->set.way, e->edit.edit, &e->session, err) &&
         evaluate(e, files + 1, n_files - 1, err);
    monet_session_free(e->session);
    monet_session_free(e->other);
    run_edit_free(&e->edit);
    run_edit_free(&e->other_edit);
    monet_model_free(e->other_model);
    monet_model_free(model);
    return ok;
}

/* The other model runs like the first one, but for what is said about it. */
static bool set_other_way(settings *set, tool_error *err)
{
    const run_option options[] = {
        {"compare-mode", RUN_MODE, &set->other_way.mode, 0, 0, NULL, NULL},
        {"compare-kernels", RUN_KERNELS, &set->other_way.kernels, 0, 0, NULL, NULL},
    };

    set->other_way = set->way;
    return (set->compare_mode == NULL || run__set(&options[0], set->compare_mode, err)) &&
           (set->compare_kernels == NULL || run__set(&options[1], set->compare_kernels, err));
}

int main(int argc, char **argv)
{
    static const char *files[MAX_FILES];
    static evaluation e;
    tool_error err = {{0}};
    size_t n_files = 0;
    settings *set = &e.set;
    const run_option options[] = {
        {"csv", RUN_TEXT, (void *)&set->csv, 0, 0, "FILE", "also write the table there"},
        {"context", RUN_WHOLE, &set->context, 1, INT32_MAX, "N", "tokens of a window (model's)"},
        {"stride", RUN_WHOLE, &set->stride, 1, INT32_MAX, "N",
         "from one window to the next (default: the context, no overlap)"},
        {"max-tokens", RUN_WHOLE, &set->max_tokens, 1, INT64_MAX - 1, "N",
         "score at most N tokens of each file"},
        {"kv", RUN_DTYPE, &set->kv, 0, 0, "TYPE", "KV cache in f32, f16 or bf16 (default: f32)"},
        {"mode", RUN_MODE, &set->way.mode, 0, 0, "MODE", "exact or fast (default: exact)"},
        {"kernels", RUN_KERNELS, &set->way.kernels, 0, 0, "NAME",
         "instruction set: scalar, avx2, ... (default: the best here)"},
        {"edit", RUN_TEXTS, &set->edits, 0, 0, "FILE",
         "experts to remove, scale or force; may be given several times"},
        {"compare", RUN_TEXT, (void *)&set->compare, 0, 0, "FILE",
         "another model: how do predictions and routing differ from its?"},
        {"compare-mode", RUN_TEXT, (void *)&set->compare_mode, 0, 0, "MODE",
         "its mode; without --compare the same model is compared"},
        {"compare-kernels", RUN_TEXT, (void *)&set->compare_kernels, 0, 0, "NAME",
         "its instruction set"},
        {"compare-edit", RUN_TEXTS, &set->compare_edits, 0, 0, "FILE",
         "its edit, or none (default: the same)"},
        {"threads", RUN_WHOLE, &set->threads, 1, 256, "N", "threads (default: all processors)"},
        {"quiet", RUN_FLAG, &set->quiet, 0, 0, NULL, "no progress on standard error"},
        {"help", RUN_FLAG, &set->help, 0, 0, NULL, "this text"},
    };
    const size_t n_options = sizeof options / sizeof options[0];

    set->threads = run_processors();
    if (run_parse(options, n_options, argc, argv, files, MAX_FILES, &n_files, &err) &&
        set_other_way(set, &err)) {
        if (set->help) {
            printf("usage: eval MODEL.monet TEXT|TOKENS.safetensors... [options]\n\n");
            run_print_options(options, n_options);
            return 0;
        }
        if (n_files >= 2) {
            if (run_files(&e, files, n_files, &err)) return 0;
            fprintf(stderr, "eval: %s\n", err.message);
            return 1;
        }
        tool_fail(&err, "needs a model and at least one text (--help says more)");
    }
    fprintf(stderr, "eval: %s\n", err.message);
    return 2;
}
