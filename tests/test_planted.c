/* test_planted.c: a small model built by hand, whose experts are known: one for digits, one for
   capital letters. They are found, ranked first, removed, steered and forced, as computed by hand.

   cc -O2 -pthread -I. tests/test_planted.c -o test_planted -lm && ./test_planted

   A token's embedding says its kind, and who it is in eight signs, so that all have one length:

     dimension   0: 1   1, 2, 3: 2 if it is a digit, a capital letter, anything else
                 4-7, 12-15: signs of 1/2   8, 9: nothing yet   10, 11: 0

   Attention adds nothing. In group 1 (layers 0 and 1), two of the three router heads choose
   half-expert ROW on digits and on capitals, and DIGIT or CAPITAL on the other axis: it is the pair
   that carries the meaning. Expert (ROW,DIGIT) writes to dimension 8, which lm_head reads as '!';
   (ROW,CAPITAL) to dimension 9, read as '?'. All else is routed at random and adds nothing.      */
#include "tools/common.h"
#include "tools/json.h"
#include "tools/tokenizer_files.h"

#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"

#include "tools/stats.h"
#include "tiny.h"

enum { N = 8, H = 3, C = 16, M = 4, L = 4, G = 2, SPACE = 259, V = 260 };
enum { ROW = 6, DIGIT = 5, CAPITAL = 2 };
enum { IS_DIGIT = 1, IS_CAPITAL = 2, IS_OTHER = 3 }; /* also their dimensions */

static monet_model *model;

/* ---- the model ------------------------------------------------------------------------------- */

static int byte_token(int c)
{
    return 3 + (unsigned char)c;
}

static int kind_of(int token)
{
    int c = token < SPACE ? token - 3 : ' ';
    return c >= '0' && c <= '9' ? IS_DIGIT : c >= 'A' && c <= 'Z' ? IS_CAPITAL : IS_OTHER;
}

static bool is_sign(int column)
{
    return (column >= 4 && column < 8) || column >= 12;
}

static float embedding(int token, int column)
{
    if (column == 0) return 1;
    if (column <= 3) return column == kind_of(token) ? 2 : 0;
    if (!is_sign(column)) return 0;
    return tiny_random(11, (uint64_t)token, (uint64_t)column) < 0 ? -0.5f : 0.5f;
}

/* Row of W_1 or W_2 of group 1: head h, half-expert i. */
static float router_weight(int axis, int h, int i, int column, float noise)
{
    bool planted = axis == 0 ? i == ROW : i == DIGIT || i == CAPITAL;
    if (h == 2 && planted) return column == 0 ? -8 : 0; /* this head knows nothing of them */
    if (!planted && is_sign(column)) return noise;
    if (h == 2 || column < 1 || column > 3) return 0;
    if (!planted) return column == IS_OTHER ? 0 : -3;
    if (column == IS_OTHER) return -2;
    if (axis == 0) return 2;
    return (i == DIGIT) == (column == IS_DIGIT) ? 2 : -2;
}

/* What the planted experts add: P * (hidden * n0^2 + bias), where VD has hidden units on both axes.
   n0 is dimension 0 after the norm. Layer 1 adds half as much.                                   */
static const float hidden[2] = {1.5f, 2}, second[2] = {0.75f, -0.5f}, bias[2] = {0.5f, 0.25f};

static float expert_weight(const char *name, int layer, int row, int column, bool horizontal,
                           float noise)
{
    int units = horizontal ? M : M / 2, at = row % M, half = row / M;
    int out = horizontal ? column - 8 : column; /* VD's second axis writes the lower half */
    float size = layer == 0 ? 1 : 0.5f;
    if (strncmp(name, "u", 1) == 0 && strstr(name, "weight")) {
        bool planted = strncmp(name, "u2", 2) == 0 ? row / units == DIGIT || row / units == CAPITAL
                                                   : row / units == ROW;
        if (!planted || layer >= G) return noise;
        return row % units == 0 && column == 0 ? 1 : 0;
    }
    if (layer >= G || strstr(name, "bias")) return 0;
    if (strcmp(name, "v.weight") != 0 && strcmp(name, "v2.weight") != 0 &&
        strcmp(name, "b") != 0 && strcmp(name, "b2") != 0) return 0;
    if (name[0] == 'b') at = 0, half = row;
    if ((half != DIGIT || out != 0) && (half != CAPITAL || out != 1)) return 0;
    if (name[0] == 'b') return size * bias[out];
    return at == 0 ? size * hidden[out] : at == M / 2 && !horizontal ? size * second[out] : 0;
}

/* Any weight of the model; what means nothing is noise. */
static float weight(const monet_tensor *t, int row, int column, bool horizontal)
{
    int layer = 0, after = 0;
    const char *name = t->name;
    float noise = tiny_random(5, tiny_xxh64(name, strlen(name)), (uint64_t)(row * 64 + column));
    if (sscanf(name, "layers.%d.%n", &layer, &after) == 1) name += after;
    if (strstr(name, "running_mean")) return 0;
    if (t->n_dims == 1 && !strstr(name, "bias")) return 1; /* norms, variances */
    if (strcmp(name, "embed_tokens.weight") == 0) return embedding(row, column);
    if (strcmp(name, "lm_head.weight") == 0) {
        if (row == byte_token('!') || row == byte_token('?'))
            return column == (row == byte_token('!') ? 8 : 9);
        return is_sign(column) ? 0.1f * noise : 0;
    }
    if (strstr(name, "o_proj")) return 0;
    if (strncmp(name, "router.w", 8) == 0 && layer == 0)
        return router_weight(name[8] - '1', row / N, row % N, column, noise);
    if (strncmp(name, "router.w", 8) == 0) return column == 8 || column == 9 ? 0 : noise;
    if (strncmp(name, "moe.", 4) == 0)
        return expert_weight(name + 4, layer, row, column, horizontal, noise);
    return noise;
}

static void tokenizer_data(monet_tokenizer_data *out)
{
    static monet_piece pieces[V];
    tiny_tokenizer(out, 0); /* its first 260 pieces: specials, bytes, the space */
    memcpy(pieces, out->pieces, sizeof pieces);
    out->pieces = pieces;
    out->n_pieces = V;
    out->prefix_space = MONET_PREFIX_NEVER;
    out->strip_space = 0;
}

/* `without` half-expert DIGIT: its weights of the second axis are zero. */
static monet_result write_model(const char *path, bool horizontal, bool without)
{
    static monet_tensor tensors[256];
    monet_tokenizer_data tokenizer;
    monet_writer_config c = {0};
    monet_writer *w = NULL;
    monet_arch a;
    monet_result result;
    tiny_arch(&a, &(tiny_options){.horizontal = horizontal, .n_layers = L, .moe_groups = G,
                                  .max_seq_len = 128});
    a.vocab_size = V, a.moe_heads = H;
    tokenizer_data(&tokenizer);
    c.arch = &a, c.tokenizer = &tokenizer, c.tensors = tensors;
    (void)monet_arch_tensors(&a, MONET_F32, tensors, 256, &c.n_tensors);
    result = monet_writer_create(path, &c, &w, NULL);
    for (size_t k = 0; k < c.n_tensors && result == MONET_OK; k++) {
        const monet_tensor *t = &tensors[k];
        int rows = t->n_dims == 1 ? 1 : (int)t->shape[0];
        int columns = (int)(t->n_dims == 1 ? t->shape[0] : t->shape[1]);
        bool is_v = strstr(t->name, "moe.v2.") || strstr(t->name, "moe.v.");
        bool is_b = strstr(t->name, "moe.b2") ||
                    strcmp(t->name + strlen(t->name) - 5, "moe.b") == 0;
        for (int row = 0; row < rows && result == MONET_OK; row++) {
            float numbers[64] = {0};
            bool gone = without && ((is_v && row / M == DIGIT) || (is_b && row == DIGIT));
            for (int column = 0; column < columns && !gone; column++)
                numbers[column] = weight(t, row, column, horizontal);
            result = monet_writer_rows(w, numbers, 1, NULL);
        }
    }
    if (result == MONET_OK) result = monet_writer_finish(w, NULL);
    monet_writer_free(w);
    return result;
}

static monet_model *make_model(bool horizontal, bool without)
{
    monet_model_config config = {0};
    monet_model *m = NULL;
    const char *path = tiny_path("planted.monet");
    config.copy = true;
    CHECK_EQ(write_model(path, horizontal, without), MONET_OK);
    CHECK_EQ(monet_model_load(path, &config, &m, NULL), MONET_OK);
    (void)remove(path);
    return m;
}

/* ---- by hand --------------------------------------------------------------------------------- */

/* The logits of '!' and '?' where both planted experts have these weights in layers 0 and 1. */
static void by_hand(double logits[2], double p[2][2])
{
    const bool horizontal = monet_model_arch(model)->decompose == MONET_HORIZONTAL;
    const double length = 1 + 4 + 8 * 0.25, eps = 1e-6; /* sum of squares of an embedding */
    double x[2] = {0, 0};
    for (int l = 0; l < 2; l++) {
        double n0 = 1 / sqrt((length + x[0] * x[0] + x[1] * x[1]) / C + eps);
        for (int k = 0; k < 2; k++) {
            double a = horizontal ? (double)hidden[k] : (double)hidden[k] + (double)second[k];
            x[k] += (l == 0 ? 1 : 0.5) * p[l][k] * (a * n0 * n0 + (double)bias[k]);
        }
    }
    for (int k = 0; k < 2; k++)
        logits[k] = x[k] / sqrt((length + x[0] * x[0] + x[1] * x[1]) / C + eps);
}

static double worst; /* difference from it */

static monet_session *open_session(const monet_model *m, const monet_edit *edit)
{
    monet_session_config config = {0};
    monet_session *s = NULL;
    config.capture_routing = config.all_logits = true;
    CHECK_EQ(monet_session_create(m, &config, &s, NULL), MONET_OK);
    CHECK_EQ(monet_session_set_edit(s, edit), MONET_OK);
    return s;
}

/* Tokens of the text with BOS before them. */
static size_t encode(const char *text, int32_t *out, size_t room)
{
    size_t n = 0;
    CHECK_EQ(monet_tokenizer_encode(monet_model_tokenizer(model), text, strlen(text), MONET_ADD_BOS,
                                    out, room, &n), MONET_OK);
    CHECK_EQ(n, strlen(text) + 1);
    return n;
}

static const char text[] = "In 1729 we saw 42 COWS, 7 hens and NO DOG; x=30, Y=9!";

/* All logits of both planted tokens, where the edit is P = factor * score + amount, by layer and
   expert. The plain score is 2 where the kind of the token is that of the expert.                */
static void check_edited(const monet_edit *edit, const double factor[2][2],
                         const double amount[2][2])
{
    int32_t tokens[128];
    size_t n = encode(text, tokens, 128);
    monet_session *s = open_session(model, edit);
    CHECK_EQ(monet_session_eval(s, tokens, n), MONET_OK);
    for (size_t t = 0; t < n; t++) {
        const float *logits = monet_session_logits_at(s, (int32_t)t);
        double expected[2], p[2][2];
        for (int l = 0; l < 2; l++)
            for (int k = 0; k < 2; k++) {
                double score = kind_of(tokens[t]) == IS_DIGIT + k ? 2 : 0;
                p[l][k] = factor[l][k] * score + amount[l][k];
            }
        by_hand(expected, p);
        for (int k = 0; k < 2; k++) {
            double found = (double)logits[byte_token(k ? '?' : '!')];
            CHECK_NEAR(found, expected[k], 1e-6 * (1 + fabs(expected[k])));
            if (fabs(found - expected[k]) > worst) worst = fabs(found - expected[k]);
        }
    }
    monet_session_free(s);
}

/* ---- found by routing ------------------------------------------------------------------------ */

/* Where an expert is in the list; -1 = not there. */
static int rank_of(const monet_expert *list, size_t n, int i, int j)
{
    for (size_t k = 0; k < n; k++)
        if (list[k].i == i && list[k].j == j) return (int)k;
    return -1;
}

/* First with score 2 on its kind, and nowhere else; its halves on the other kind, but not it. */
static void test_ranks(void)
{
    monet_session *s = open_session(model, NULL);
    for (int32_t token = 3; token < V; token++)
        for (int layer = 0; layer < 2; layer++) {
            monet_expert list[N * N];
            monet_routing r;
            const int kind = kind_of(token);
            size_t n;
            CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
            CHECK_EQ(monet_session_eval(s, &token, 1), MONET_OK);
            CHECK_EQ(monet_session_routing(s, 0, layer, &r), MONET_OK);
            n = monet_routing_experts(&r, 0, list, N * N);
            CHECK_EQ(rank_of(list, n, ROW, DIGIT), kind == IS_DIGIT ? 0 : -1);
            CHECK_EQ(rank_of(list, n, ROW, CAPITAL), kind == IS_CAPITAL ? 0 : -1);
            if (kind != IS_OTHER) CHECK_NEAR(list[0].score, 2, 0);
            if (kind != IS_OTHER) CHECK_NEAR(list[0].weight, 2, 0);
            if (n > 1 && kind != IS_OTHER) CHECK(list[1].score <= 1);
        }
    monet_session_free(s);
}

/* ---- found by statistics --------------------------------------------------------------------- */

static const char *const labels[2] = {"digits", "letters"}; /* of each planted expert */

/* A text of one of the labels; each has a little of the other kind. */
static void write_text(const char *path, int label)
{
    static const char *const lines[2][4] = {
        {"a 17 cows and 203 hens, 4096 stars\n", "3.14159 is pi, 299792458 is c; not A\n",
         "seven is 7 and ten is 10\n", "1 2 3, on the 4th of july 1776\n"},
        {"The CAT Sat ON a Mat\n", "WHY NOT? yes Sir, No 1\n", "An Owl, and a PUSSY Cat\n",
         "We went to Sea in A boat\n"}};
    FILE *f = fopen(path, "w");
    if (!CHECK(f != NULL)) return;
    for (int k = 0; k < 40; k++) fputs(lines[label][tiny_mix((uint64_t)k) % 4], f);
    fclose(f);
}

typedef struct counted { /* by hand: tokens of a label, and those of the kind of each expert */
    double n[2], kind[2][2]; /* [label][expert] */
} counted;

static void count_window(counted *c, const text_window *w)
{
    for (int32_t k = 0; k < w->n; k++)
        if (w->tokens[k] != 1) { /* BOS */
            c->n[w->label] += 1;
            if (kind_of(w->tokens[k]) != IS_OTHER)
                c->kind[w->label][kind_of(w->tokens[k]) - IS_DIGIT] += 1;
        }
}

static void read_texts(stats *s, counted *c)
{
    char path[2][256];
    const char *paths[2] = {path[0], path[1]};
    texts_config config;
    texts t;
    text_window w;
    tool_error err = {""};
    monet_session *session = open_session(model, NULL);
    memset(&config, 0, sizeof config);
    memset(c, 0, sizeof *c);
    for (int k = 0; k < 2; k++) {
        snprintf(path[k], sizeof path[k], "%s", tiny_path(k ? "letters.txt" : "digits.txt"));
        write_text(path[k], k);
    }
    config.paths = paths, config.n_paths = 2, config.window = 50;
    config.tokenizer = monet_model_tokenizer(model);
    CHECK(stats_create(s, model, NULL, labels, 2, &err));
    CHECK(texts_open(&t, &config, &err));
    CHECK(t.n_labels == 2 && strcmp(t.labels[0], "digits") == 0);
    while (CHECK(texts_next(&t, &w, &err)) && w.n > 0) {
        CHECK_EQ(monet_session_rewind(session, 0), MONET_OK);
        CHECK_EQ(monet_session_eval(session, w.tokens, (size_t)w.n), MONET_OK);
        CHECK(stats_add(s, session, &w, &err));
        count_window(c, &w);
    }
    if (err.message[0] != '\0') printf("    %s\n", err.message);
    texts_close(&t);
    monet_session_free(session);
    (void)remove(path[0]);
    (void)remove(path[1]);
}

/* Of the 0/1 variables "is of this kind" and "is in a text of this label". */
static double pearson_by_hand(const counted *c, int expert, int label)
{
    double n = c->n[0] + c->n[1], x = c->kind[0][expert] + c->kind[1][expert], y = c->n[label];
    double xy = c->kind[label][expert];
    return (n * xy - x * y) / sqrt((n * x - x * x) * (n * y - y * y));
}

/* No other expert of group 1 goes with the label like the planted one. */
static void check_first(const stats *s, const counted *c, int expert, uint32_t label)
{
    const int j0 = expert ? CAPITAL : DIGIT;
    const double r = stats_label_pearson(s, 0, ROW, j0, label);
    CHECK_NEAR(r, pearson_by_hand(c, expert, (int)label), 1e-9);
    CHECK(r > 0.3);
    for (int e = 0; e < N * N; e++)
        if (e != ROW * N + j0) CHECK(!(stats_label_pearson(s, 0, e / N, e % N, label) >= r));
}

static void test_found(void)
{
    stats s;
    counted c;
    read_texts(&s, &c);
    CHECK_EQ(s.n_tokens, c.n[0] + c.n[1]);
    for (int expert = 0; expert < 2; expert++) {
        const uint32_t label = (uint32_t)expert;
        const int j = expert ? CAPITAL : DIGIT;
        const double here = c.kind[expert][expert], there = c.kind[1 - expert][expert];
        const stats_sum *sum = stats_expert(&s, 0, ROW, j);
        stats_example top[20];
        const size_t n = stats_top(&s, 0, ROW, j, top, 20);
        CHECK_EQ(sum->count, here + there);
        CHECK_NEAR(sum->sum, 2 * (here + there), 1e-9);
        CHECK_NEAR(sum->sum2, 4 * (here + there), 1e-9);
        CHECK_EQ(stats_label_count(&s, 0, ROW, j, label), here);
        CHECK_EQ(n, 20);
        for (size_t k = 0; k < n && k < 20; k++) {
            CHECK_EQ(kind_of(top[k].tokens[top[k].n_before]), IS_DIGIT + expert);
            CHECK_NEAR(top[k].score, 2, 0);
        }
        /* the rule for domains: at least twice as much as in the second one */
        CHECK(there > 0);
        CHECK(stats_label_mean(&s, 0, ROW, j, label) >=
              2 * stats_label_mean(&s, 0, ROW, j, 1 - label));
        CHECK_NEAR(stats_label_mean(&s, 0, ROW, j, label), 2 * here / c.n[expert], 1e-12);
        check_first(&s, &c, expert, label);
        /* the half-expert ROW is no expert of either; the pair is more than its halves */
        CHECK_NEAR(stats_half(&s, 0, 0, ROW)->sum / 2,
                   c.kind[0][0] + c.kind[0][1] + c.kind[1][0] + c.kind[1][1], 1e-9);
        CHECK(stats_lift(&s, 0, ROW, j) > 1.5);
    }
    stats_free(&s);
}

/* ---- edited ---------------------------------------------------------------------------------- */

static monet_edit *parse(const char *rules)
{
    char words[400];
    monet_error err = {{0}, MONET_OK};
    monet_edit *e = NULL;
    int n = snprintf(words, sizeof words, "monet-edit 1\nshape N=8 L=4 G=2\n%s", rules);
    if (!CHECK_EQ(monet_edit_parse(model, words, (size_t)n, &e, &err), MONET_OK))
        printf("    %s\n", err.message);
    return e;
}

/* ROW * 8 + DIGIT = 53, ROW * 8 + CAPITAL = 50. */
static void test_edits(void)
{
    static const struct { const char *rules; double factor[2][2], amount[2][2]; } edits[] = {
        {"", {{1, 1}, {1, 1}}, {{0, 0}, {0, 0}}},
        {"remove G1 E53", {{0, 1}, {0, 1}}, {{0, 0}, {0, 0}}},
        {"remove G1 E50", {{1, 0}, {1, 0}}, {{0, 0}, {0, 0}}},
        {"remove G2 E53 E50", {{1, 1}, {1, 1}}, {{0, 0}, {0, 0}}},
        {"remove L0 E53", {{0, 1}, {1, 1}}, {{0, 0}, {0, 0}}},
        {"remove L1 E53 E50", {{1, 1}, {0, 0}}, {{0, 0}, {0, 0}}},
        {"remove all i=6", {{0, 0}, {0, 0}}, {{0, 0}, {0, 0}}},
        {"remove G1 j=2", {{1, 0}, {1, 0}}, {{0, 0}, {0, 0}}},
        {"scale 2 G1 E53", {{2, 1}, {2, 1}}, {{0, 0}, {0, 0}}},
        {"scale -0.5 G1 E53\nscale 3 L1 E50", {{-0.5, 1}, {-0.5, 3}}, {{0, 0}, {0, 0}}},
        {"force 0.75 G1 E53", {{1, 1}, {1, 1}}, {{0.75, 0}, {0.75, 0}}},
        {"force -0.25 G1 E50\nscale 0 all E50", {{1, 0}, {1, 0}}, {{0, -0.25}, {0, -0.25}}},
        {"force 1 L0 E53\nforce 0.5 L1 E50\nscale 0.5 all all", {{0.5, 0.5}, {0.5, 0.5}},
         {{1, 0}, {0, 0.5}}},
    };
    for (size_t k = 0; k < sizeof edits / sizeof *edits; k++) {
        monet_edit *e = parse(edits[k].rules);
        int failed = test_counts.failed;
        check_edited(e, edits[k].factor, edits[k].amount);
        if (test_counts.failed > failed) printf("    with %s\n", edits[k].rules);
        monet_edit_free(e);
    }
}

/* What comes after each token, greedily. */
static void greedy(const monet_model *m, const monet_edit *edit, const int32_t *tokens, size_t n,
                   int32_t *out, float *logits)
{
    monet_session *s = open_session(m, edit);
    for (size_t t = 0; t < n; t++) {
        CHECK_EQ(monet_session_eval(s, tokens + t, 1), MONET_OK);
        CHECK_EQ(monet_session_sample(s, NULL, &out[t], NULL), MONET_OK);
        memcpy(logits + t * V, monet_session_logits(s), V * sizeof *logits);
    }
    monet_session_free(s);
}

/* Removed: bit for bit as if its weights were zero, and for all that are not digits as if nothing
   had happened. What is said after a digit and a capital letter follows.                         */
static void test_removed(bool horizontal)
{
    static float plain[128 * V], removed[128 * V], without[128 * V], forced[128 * V];
    int32_t tokens[128], said[4][128];
    size_t n = encode(text, tokens, 128);
    monet_model *other = make_model(horizontal, true);
    monet_edit *e = parse("remove G1 E53"), *f = parse("force 4 G1 E53");
    greedy(model, NULL, tokens, n, said[0], plain);
    greedy(model, e, tokens, n, said[1], removed);
    greedy(other, NULL, tokens, n, said[2], without);
    greedy(model, f, tokens, n, said[3], forced);
    CHECK(memcmp(removed, without, n * V * sizeof *plain) == 0);
    for (size_t t = 0; t < n; t++) {
        const int kind = kind_of(tokens[t]);
        bool same = memcmp(plain + t * V, removed + t * V, V * sizeof *plain) == 0;
        CHECK_EQ(same, kind != IS_DIGIT);
        CHECK_EQ(said[0][t] == byte_token('!'), kind == IS_DIGIT);
        CHECK_EQ(said[0][t] == byte_token('?'), kind == IS_CAPITAL);
        CHECK(said[1][t] != byte_token('!'));
        CHECK_EQ(said[1][t] == byte_token('?'), kind == IS_CAPITAL);
        CHECK_EQ(said[3][t], byte_token('!'));
    }
    monet_edit_free(e);
    monet_edit_free(f);
    monet_model_free(other);
}

/* Edits show in the list: removed with weight 0, forced where the router never goes. */
static void test_shown(void)
{
    monet_edit *e = parse("remove G1 E53\nforce 0.75 L1 E50");
    monet_session *s = open_session(model, e);
    const int32_t seven = byte_token('7'), x = byte_token('x');
    for (int layer = 0; layer < 2; layer++) {
        monet_expert list[N * N];
        monet_routing r;
        size_t n;
        int at;
        CHECK_EQ(monet_session_eval(s, &seven, 1), MONET_OK);
        CHECK_EQ(monet_session_routing(s, 0, layer, &r), MONET_OK);
        n = monet_routing_experts(&r, 0.5f, list, N * N);
        if (CHECK_EQ(rank_of(list, n, ROW, DIGIT), 0)) {
            CHECK_NEAR(list[0].score, 2, 0);
            CHECK_NEAR(list[0].weight, 0, 0);
        }
        CHECK_EQ(monet_session_eval(s, &x, 1), MONET_OK);
        CHECK_EQ(monet_session_routing(s, 0, layer, &r), MONET_OK);
        n = monet_routing_experts(&r, 0.5f, list, N * N);
        at = rank_of(list, n, ROW, CAPITAL);
        CHECK_EQ(at >= 0, layer == 1);
        if (at >= 0) CHECK_NEAR(list[at].score, 0, 0);
        if (at >= 0) CHECK_NEAR(list[at].weight, 0.75, 0);
    }
    monet_session_free(s);
    monet_edit_free(e);
}

/* ---- main ------------------------------------------------------------------------------------ */

int main(void)
{
    for (int horizontal = 0; horizontal < 2; horizontal++) {
        model = make_model(horizontal != 0, false);
        if (!model) return test_end("test_planted");
        test_ranks();
        test_found();
        test_edits();
        test_removed(horizontal != 0);
        test_shown();
        monet_model_free(model);
    }
    tiny_clean();
    printf("worst difference from the logits computed by hand: %.2e\n", worst);
    return test_end("test_planted");
}
