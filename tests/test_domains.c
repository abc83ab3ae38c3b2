/* test_domains.c: explore domains and explore unlearn on a small model and made-up texts: the rule
   against brute force, edits by hand, random masks, any number of threads, going on after Ctrl-C,
   correlations with permuted scores.

   cc -O2 -pthread -I. tests/test_domains.c -o test_domains -lm && ./test_domains              */
int hook_rename(const char *from, const char *to);
#define hook_calloc calloc
#define hook_realloc realloc
#define hook_open open
#define hook_pread pread
#define hook_pwrite pwrite
#define hook_fsync fsync
#define hook_close close
#define hook_posix_fallocate posix_fallocate
#define TOOL_SYS(name) hook_##name
#include "../tools/common.h"

#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"

#include "../tools/tokenizer_files.h"

#include "../tools/explore_unlearn.h"

#include "tiny.h"

enum { N = 8, H = 2, G = 2, LAYERS = 4, GROUPS = 2, WINDOW = 24, LABELS = 3,
       EXPERTS = GROUPS * N * N };

static int saves, stop_at; /* files that were put in place; Ctrl-C at this one */

int hook_rename(const char *from, const char *to)
{
    if (++saves == stop_at) explore_interrupted = 1;
    return rename(from, to);
}

static explore ex;
static tool_error err;
static char folder[200];

/* A path in the folder of this test, valid for 8 calls. */
static const char *in_folder(const char *name)
{
    static char path[8][256];
    static int next;
    char *out = path[next++ % 8];
    snprintf(out, sizeof path[0], "%.150s%.90s", folder, name);
    return out;
}

/* ---- texts ----------------------------------------------------------------------------------- */

/* Words of a few letters; `kind` says which letters are common. */
static void put_words(FILE *f, int kind, uint64_t seed, int words)
{
    static const char *const letters[LABELS] = {"aaabbbabcabc!,", "bcccbcaxyzxyzx",
                                                "zz0123?abc012."};
    for (int k = 0; k < words; k++) {
        uint64_t r = tiny_mix(seed * 1000 + (uint64_t)k);
        for (int n = 3 + (int)(r % 5); n > 0; n--, r /= 7) fputc(letters[kind][r % 14], f);
        fputc(' ', f);
    }
}

static void make_texts(void)
{
    FILE *f;
    for (int kind = 0; kind < LABELS; kind++)
        for (int valid = 0; valid < 2; valid++) {
            char name[64];
            snprintf(name, sizeof name, "texts/%c.%s.txt", "abz"[kind], valid ? "valid" : "train");
            f = fopen(in_folder(name), "w");
            for (int d = 0; f && d < 3; d++) {
                put_words(f, kind, (uint64_t)(100 * valid + 10 * kind + d), valid ? 5 : 40);
                fputs(d < 2 ? "\n\f\n" : "\n", f);
            }
            if (CHECK(f)) fclose(f);
        }
    f = fopen(in_folder("scored.jsonl"), "w");
    for (int d = 0; f && d < 12; d++) {
        fputs("{\"text\": \"", f);
        put_words(f, d % LABELS, (uint64_t)(500 + d), 12);
        fprintf(f, "\", \"score\": %d.5}\n", d % LABELS + d % 2);
    }
    if (CHECK(f)) fclose(f);
}

static void set_texts(texts_config *c, const char *const *path, const char *match)
{
    memset(c, 0, sizeof *c);
    c->paths = path;
    c->n_paths = 1;
    c->match = match;
    c->window = WINDOW;
    c->tokenizer = ex.tokenizer;
}

/* ---- statistics, and brute force ------------------------------------------------------------- */

typedef struct brute { /* all that the rule needs, from a dense sum */
    double sum[LABELS][EXPERTS], n[LABELS];
    long   active[EXPERTS];
    double y, y2, x[EXPERTS], x2[EXPERTS], xy[EXPERTS], all; /* of the scored texts */
} brute;

static void brute_token(brute *b, const monet_session *s, int32_t index, const text_window *w)
{
    b->n[w->label]++;
    b->all++;
    b->y += w->score;
    b->y2 += w->score * w->score;
    for (int g = 0; g < GROUPS; g++) {
        monet_routing r;
        CHECK_EQ(monet_session_routing(s, index, g * G, &r), MONET_OK);
        for (int id = 0; id < N * N; id++) {
            const int e = g * N * N + id;
            double score = 0;
            for (int h = 0; h < H; h++)
                score += (double)r.g1[h * N + id / N] * (double)r.g2[h * N + id % N];
            b->sum[w->label][e] += score;
            b->active[e] += score > 0.01;
            b->x[e] += score, b->x2[e] += score * score, b->xy[e] += score * w->score;
        }
    }
}

/* Counts the texts with stats.h, saves that, and again by brute force. */
static void count(const char *path, const char *match, const char *out, brute *b)
{
    texts_config config;
    texts t;
    text_window w;
    stats s;
    monet_session *session = NULL;
    memset(b, 0, sizeof *b);
    set_texts(&config, &path, match);
    if (!CHECK(texts_open(&t, &config, &err)) ||
        !CHECK(stats_create(&s, ex.model, NULL, (const char *const *)t.labels, t.n_labels, &err)) ||
        !CHECK(explore_session(&ex, WINDOW, EXPLORE_ROUTING, &session, &err))) return;
    while (texts_next(&t, &w, &err) && w.n > 0) {
        CHECK_EQ(monet_session_rewind(session, 0), MONET_OK);
        CHECK_EQ(monet_session_eval(session, w.tokens, (size_t)w.n), MONET_OK);
        CHECK(stats_add(&s, session, &w, &err));
        for (int32_t k = 0; k < w.n; k++)
            if (w.tokens[k] != 1) brute_token(b, session, k, &w);
    }
    CHECK(stats_save(&s, out, &err));
    monet_session_free(session);
    stats_free(&s);
    texts_close(&t);
}

/* The label that an expert belongs to, or -1. */
static int brute_owner(const brute *b, int e, double factor, long floor)
{
    int best = -1;
    for (int k = 0; k < LABELS; k++) {
        int beats = 1;
        for (int o = 0; o < LABELS; o++)
            if (o != k && b->sum[k][e] / b->n[k] < factor * b->sum[o][e] / b->n[o]) beats = 0;
        if (beats && b->sum[k][e] > 0 && b->active[e] >= floor) best = k;
    }
    return best;
}

static double brute_r(const brute *b, int e)
{
    const double n = b->all, vx = n * b->x2[e] - b->x[e] * b->x[e], vy = n * b->y2 - b->y * b->y;
    return vx > 0 ? (n * b->xy[e] - b->x[e] * b->y) / sqrt(vx) / sqrt(vy) : NAN;
}

static void test_rule(const brute *b)
{
    static const struct { const char *factor; double f; int floor; } cases[] = {
        {"1.3", 1.3, 10}, {"2", 2, 10}, {NULL, 2, 0}, {"1.05", 1.05, 25}};
    int belong = 0, alone = 0;
    stats s;
    if (!CHECK(stats_load(&s, ex.model, in_folder("texts.stats"), &err))) return;
    for (int c = 0; c < 4; c++) {
        domains_rule rule = {cases[c].factor, 0, cases[c].floor};
        int32_t *owner;
        CHECK(domains_check_rule(&rule, &s, &err));
        owner = domains_find(&s, &rule, &err);
        if (!CHECK(owner)) return;
        for (int e = 0; e < EXPERTS; e++) {
            CHECK_EQ(owner[e], brute_owner(b, e, cases[c].f, cases[c].floor));
            belong += owner[e] >= 0;
            alone += owner[e] < 0;
        }
        free(owner);
    }
    CHECK(belong > 40);
    CHECK(alone > 40);
    stats_free(&s);
}

/* ---- the subcommands ------------------------------------------------------------------------- */

enum { MOST_ARGUMENTS = 32 };

/* Runs a subcommand as main does, words separated by blanks; '@' stands for the folder. */
static int run(const char *line)
{
    static char text[4096];
    char *argv[MOST_ARGUMENTS];
    int argc = 0, status;
    size_t n = 0;
    explore e;
    for (const char *c = line; *c; c++) {
        if (*c == '@') n += (size_t)snprintf(text + n, sizeof text - n, "%s", folder);
        else text[n++] = *c;
    }
    text[n] = 0;
    for (char *word = strtok(text, " "); word && argc < MOST_ARGUMENTS; word = strtok(NULL, " "))
        argv[argc++] = word;
    memset(&e, 0, sizeof e);
    e.threads = 2;
    explore_interrupted = 0;
    saves = 0;
    status = strcmp(argv[0], "domains") == 0 ? explore_domains(&e, argc, argv) :
             explore_unlearn(&e, argc, argv);
    explore_interrupted = 0;
    stop_at = 0;
    return status;
}

#define UNLEARN "unlearn @tiny.monet @texts.stats @texts --match *.valid.txt --window 24 " \
                "--factor 1.3 --quiet --out @out.txt "

static char *slurp(const char *name)
{
    char *text = NULL;
    size_t size;
    CHECK(tool_read_file(in_folder(name), 1 << 24, &text, &size, &err));
    return text;
}

static void same_files(const char *a, const char *b)
{
    char *x = slurp(a), *y = slurp(b);
    CHECK(x && y && strlen(x) > 100 && strcmp(x, y) == 0);
    free(x);
    free(y);
}

/* The nats of one line of a results file; run: "mask,0", "number,2"; -1 = it is not there. */
static double nats_of(const char *csv, const char *run, const char *masked, const char *measured)
{
    char wanted[2][128];
    snprintf(wanted[0], sizeof wanted[0], ",\"%s\",\"%s\"\n", masked, measured);
    snprintf(wanted[1], sizeof wanted[1], ",%s,", run);
    for (const char *line = csv; *line; line = strchr(line, '\n') + 1) {
        const char *end = strstr(line, wanted[0]), *of = strstr(line, wanted[1]);
        if (end && of && end < strchr(line, '\n') && of < end)
            return strtod(strchr(line, ',') + 1, NULL);
    }
    return -1;
}

/* ---- edits by hand --------------------------------------------------------------------------- */

/* Sum of -log p over all windows of a label, with an edit file or without. */
static double by_hand(const char *edit_path, const char *text)
{
    texts_config config;
    texts t;
    text_window w;
    monet_edit *edit = NULL;
    monet_session *session = NULL;
    double sum = 0;
    set_texts(&config, &text, NULL);
    if (edit_path) CHECK_EQ(monet_edit_load(ex.model, edit_path, &edit, NULL), MONET_OK);
    if (!CHECK(explore_session(&ex, WINDOW, EXPLORE_LOGITS, &session, &err)) ||
        !CHECK(texts_open(&t, &config, &err))) return -1;
    CHECK_EQ(monet_session_set_edit(session, edit), MONET_OK);
    while (texts_next(&t, &w, &err) && w.n > 0) {
        double nats = 0;
        CHECK_EQ(monet_session_rewind(session, 0), MONET_OK);
        CHECK_EQ(monet_session_eval(session, w.tokens, (size_t)w.n), MONET_OK);
        for (int32_t k = 0; k + 1 < w.n; k++)
            nats -= monet_logprob(monet_session_logits_at(session, k), ex.arch->vocab_size,
                                  w.tokens[k + 1]);
        sum += nats;
    }
    texts_close(&t);
    monet_session_free(session);
    monet_edit_free(edit);
    return sum;
}

/* The files of `domains` hold what the rule says, in all layers of the group. */
static void test_edits(const brute *b)
{
    static const char *const names[LABELS] = {"edits/no-a.edit", "edits/no-b.edit",
                                              "edits/no-z.edit"};
    CHECK_EQ(run("domains @tiny.monet @texts.stats --factor 1.3 --out @out.txt --csv @d.csv "
                 "--jsonl @d.jsonl --out-edits @edits"), 0);
    for (int k = 0; k < LABELS; k++) {
        monet_edit *edit = NULL;
        if (!CHECK_EQ(monet_edit_load(ex.model, in_folder(names[k]), &edit, NULL), MONET_OK))
            continue;
        for (int e = 0; e < EXPERTS; e++)
            for (int layer = e / (N * N) * G; layer < (e / (N * N) + 1) * G; layer++) {
                float factor = -1, amount = -1;
                CHECK_EQ(monet_edit_get(edit, layer, e / N % N, e % N, &factor, &amount), MONET_OK);
                CHECK_NEAR(factor, brute_owner(b, e, 1.3, 10) != k, 0);
                CHECK_NEAR(amount, 0, 0);
            }
        monet_edit_free(edit);
    }
}

static const char *const labels[LABELS] = {"a", "b", "z"};

/* The rise of bits per byte that a run of the results file shows. */
static double rise(const char *csv, const char *run, int mask, int label)
{
    char line[64];
    const char *bytes;
    snprintf(line, sizeof line, ",plain,0,1,0,0.000000,\"\",\"%s\"", labels[label]);
    bytes = strstr(csv, line);
    for (int fields = 0; bytes && fields < 3; fields += *bytes == ',') bytes--;
    return (nats_of(csv, run, labels[mask], labels[label]) -
            nats_of(csv, "plain,0", "", labels[label])) / log(2.0) / atof(bytes ? bytes + 1 : "0");
}

/* Own and others, mean and spread over two draws, from the lines of the results file. */
static void check_summary(const json_doc *doc, const char *csv, int mask, const char *kind)
{
    const char *const runs[2] = {"%s,1", "%s,2"};
    const uint32_t object = json_find(doc, 0, kind);
    double own[2] = {0}, others[2] = {0}, value = NAN, of_mask = rise(csv, "mask,0", mask, mask);
    for (int d = 0; d < 2; d++) {
        char run[32];
        snprintf(run, sizeof run, strcmp(kind, "mask") == 0 ? "mask,0" : runs[d], kind);
        for (int k = 0; k < LABELS; k++) {
            if (k == mask) own[d] = rise(csv, run, mask, k);
            else others[d] += rise(csv, run, mask, k) / (LABELS - 1);
        }
    }
    CHECK(json_get_double(doc, object, "own", -9, 9, &value, &err));
    CHECK_NEAR(value, (own[0] + own[1]) / 2, 1e-8);
    CHECK(json_get_double(doc, object, "others", -9, 9, &value, &err));
    CHECK_NEAR(value, (others[0] + others[1]) / 2, 1e-8);
    CHECK(json_get_double(doc, object, "own_sd", -9, 9, &value, &err));
    CHECK_NEAR(value, fabs(own[0] - own[1]) / sqrt(2), 1e-8);
    CHECK(json_get_double(doc, object, "others_sd", -9, 9, &value, &err));
    CHECK_NEAR(value, fabs(others[0] - others[1]) / sqrt(2), 1e-8);
    CHECK(json_get_double(doc, object, "below_mask", 0, 2, &value, &err));
    CHECK_EQ(value, (own[0] < of_mask) + (own[1] < of_mask));
}

static void test_summary(const char *csv)
{
    char *text = slurp("hand.jsonl"), *line = text;
    for (int mask = 0; text && mask < LABELS; mask++) {
        json_doc doc;
        size_t size = strcspn(line, "\n");
        double rank = 0;
        int hurt = 0;
        if (!CHECK(json_parse(&doc, line, size, &err))) break;
        for (int k = 0; k < LABELS; k++)
            hurt += rise(csv, "mask,0", mask, k) >= rise(csv, "mask,0", mask, mask);
        CHECK(json_get_double(&doc, 0, "rank", 1, LABELS, &rank, &err));
        CHECK_EQ(rank, hurt);
        check_summary(&doc, csv, mask, "mask");
        check_summary(&doc, csv, mask, "number");
        check_summary(&doc, csv, mask, "mass");
        json_free(&doc);
        line += size + 1;
    }
    free(text);
}

static void test_by_hand(void)
{
    char *csv, *other, edit[64], text[64];
    CHECK_EQ(run(UNLEARN "--draws 2 --csv @hand.csv --jsonl @hand.jsonl"), 0);
    CHECK_EQ(run(UNLEARN "--draws 1 --edit @edits/no-b.edit --label b --csv @edit.csv"), 0);
    csv = slurp("hand.csv");
    other = slurp("edit.csv");
    for (int k = 0; csv && other && k < LABELS; k++) {
        snprintf(text, sizeof text, "texts/%s.valid.txt", labels[k]);
        CHECK_NEAR(nats_of(csv, "plain,0", "", labels[k]), by_hand(NULL, in_folder(text)), 0);
        for (int m = 0; m < LABELS; m++) {
            snprintf(edit, sizeof edit, "edits/no-%s.edit", labels[m]);
            CHECK_NEAR(nats_of(csv, "mask,0", labels[m], labels[k]),
                       by_hand(in_folder(edit), in_folder(text)), 0);
        }
        CHECK(fabs(rise(csv, "mask,0", k, k)) > 1e-6);
        CHECK_NEAR(nats_of(other, "mask,0", "no-b", labels[k]), /* the same edit from its file */
                   nats_of(csv, "mask,0", "b", labels[k]), 0);
    }
    if (csv) test_summary(csv);
    free(csv);
    free(other);
}

/* ---- random masks ---------------------------------------------------------------------------- */

/* As many experts in each group; or as much mass, so that none that may be drawn still fits. */
static void check_draw(const unlearn *u, const unlearn_run *run)
{
    const unlearn_mask *m = &u->masks[run->mask];
    const int32_t label = run->kind == UNLEARN_OWN_MASS ? m->label : -1;
    for (int32_t g = 0; g < GROUPS; g++) {
        const double want = domains_mass(&u->s, g, m->member, label);
        const double got = domains_mass(&u->s, g, u->member, label);
        if (run->kind == UNLEARN_NUMBER)
            CHECK_EQ(domains_count(&u->s, g, u->member), domains_count(&u->s, g, m->member));
        else
            CHECK(got <= want + 1e-12);
        for (size_t id = 0; id < N * N; id++) {
            const double mass = domains_mean(&u->s, g, id, label);
            const bool may = domains_active(&u->s, g, id) >= 10;
            CHECK(may || !u->member[(size_t)g * N * N + id]);
            if (run->kind != UNLEARN_NUMBER && may && mass > 0 &&
                !u->member[(size_t)g * N * N + id]) CHECK(got + mass > want - 1e-12);
        }
    }
}

static void test_draws(void)
{
    static uint8_t first[EXPERTS];
    unlearn u;
    int differ = 0;
    memset(&u, 0, sizeof u);
    u.e = &ex;
    u.rule.floor = 10;
    u.rule.factor_text = "1.3";
    u.draws = 3;
    u.seed = 7;
    u.own_mass = true;
    CHECK(stats_load(&u.s, ex.model, in_folder("texts.stats"), &err));
    CHECK(unlearn__make_masks(&u, &err) && unlearn__list(&u, &err));
    CHECK_EQ(u.n_runs, 1 + LABELS * (1 + 3 * 3));
    for (size_t k = 1; k < u.n_runs; k++) {
        if (u.runs[k].kind == UNLEARN_MASK) continue;
        unlearn__draw(&u, &u.runs[k]);
        check_draw(&u, &u.runs[k]);
        memcpy(first, u.member, sizeof first);
        unlearn__draw(&u, &u.runs[k]); /* the same again */
        CHECK(memcmp(first, u.member, sizeof first) == 0);
        u.seed = 8;
        unlearn__draw(&u, &u.runs[k]);
        differ += memcmp(first, u.member, sizeof first) != 0;
        u.seed = 7;
        for (size_t other = 0; other < k; other++) CHECK(u.runs[k].key != u.runs[other].key);
    }
    CHECK(differ > LABELS * 3 * 3 - 5);
    for (size_t k = 0; k < u.n_masks; k++) free(u.masks[k].member);
    free(u.masks), free(u.runs), free(u.member), free(u.order);
    stats_free(&u.s);
}

/* ---- threads, Ctrl-C, going on --------------------------------------------------------------- */

static void test_resume(void)
{
    char *text;
    CHECK_EQ(run(UNLEARN "--draws 1 --own-mass --threads 1 --csv @one.csv"), 0);
    CHECK_EQ(saves, 1 + LABELS + 3 * LABELS + 1);
    CHECK_EQ(run(UNLEARN "--draws 1 --own-mass --threads 3 --csv @three.csv"), 0);
    same_files("one.csv", "three.csv");
    text = slurp("out.txt");
    if (text) CHECK_HAS(text, "random, own mass");
    free(text);

    stop_at = 6; /* Ctrl-C */
    CHECK_EQ(run(UNLEARN "--draws 1 --own-mass --csv @three.csv --out @half.txt"), 130);
    text = slurp("half.txt"); /* what was measured is shown */
    if (text) CHECK_HAS(text, "random, number");
    if (text) CHECK(!strstr(text, "random, own mass"));
    free(text);
    text = slurp("three.csv");
    if (text) CHECK(strstr(text, ",number,1,") && !strstr(text, ",own-mass,"));
    free(text);
    CHECK_EQ(run(UNLEARN "--draws 1 --own-mass --csv @three.csv --resume"), 0);
    CHECK_EQ(saves, 1 + LABELS + 3 * LABELS - 6 + 1);
    same_files("one.csv", "three.csv");
    CHECK_EQ(run(UNLEARN "--draws 1 --own-mass --csv @three.csv --resume"), 0);
    CHECK_EQ(saves, 1);
    CHECK_EQ(run(UNLEARN "--draws 1 --own-mass --csv @three.csv --resume --seed 5"), 0);
    CHECK_EQ(saves, 3 * LABELS + 1);
    CHECK_EQ(run(UNLEARN "--draws 0 --csv @three.csv --resume --window 20"), 0); /* other texts */
    CHECK_EQ(saves, 1 + LABELS + 1);
    CHECK_EQ(run(UNLEARN "--draws 1 --own-mass --csv @three.csv --resume"), 0); /* none is lost */
    CHECK_EQ(saves, 1);
}

/* ---- correlation ----------------------------------------------------------------------------- */

static void test_correlation(void)
{
    static const double thresholds[2] = {0.1, 0.03};
    static brute b;
    char *text, line[64];
    count(in_folder("scored.jsonl"), NULL, in_folder("scored.stats"), &b);
    CHECK_EQ(run("unlearn @tiny.monet @scored.stats @texts --match *.valid.txt --window 24 --quiet "
                 "--correlation 0.1,0.03 --permute @scored.jsonl --draws 3 --out @out.txt "
                 "--csv @r.csv"), 0);
    text = slurp("out.txt");
    for (int t = 0; text && t < 2; t++) {
        int reach = 0;
        for (int e = 0; e < EXPERTS; e++) reach += brute_r(&b, e) >= thresholds[t];
        CHECK(reach > 0);
        snprintf(line, sizeof line, "r >= %-5g %8d   ", thresholds[t], reach);
        CHECK_HAS(text, line);
        snprintf(line, sizeof line, "r>=%-14g%8d", thresholds[t], reach);
        CHECK_HAS(text, line);
    }
    free(text);
    CHECK_EQ(run("unlearn @tiny.monet @scored.stats @texts --window 20 --quiet --correlation 0.1 "
                 "--permute @scored.jsonl --out @out.txt"), 1); /* another window */
    CHECK_EQ(run(UNLEARN "--correlation 0.1 --permute @scored.jsonl"), 1); /* no scores */
    CHECK_EQ(run(UNLEARN "--correlation 0.05,0.1x"), 1);
    CHECK_EQ(run(UNLEARN "--correlation 0.05,0.02 --label z --draws 1"), 0); /* with a label */
    CHECK_EQ(run(UNLEARN "--label nobody"), 1);
}

/* ---- main ------------------------------------------------------------------------------------ */

static void remove_all(const char *path)
{
    DIR *d = opendir(path);
    for (struct dirent *f; d && (f = readdir(d)) != NULL;) {
        char inside[512];
        if (f->d_name[0] == '.') continue;
        snprintf(inside, sizeof inside, "%.240s/%.240s", path, f->d_name);
        if (f->d_type == DT_DIR) remove_all(inside);
        else (void)remove(inside);
    }
    if (d) closedir(d);
    (void)rmdir(path);
}

int main(void)
{
    static brute b;
    const tiny_options options = {.n_layers = LAYERS, .moe_groups = G};
    monet_error why = {{0}, MONET_OK};
    snprintf(folder, sizeof folder, "%s", tiny_path(""));
    ex.threads = 1;
    CHECK(mkdir(in_folder("texts"), 0777) == 0);
    CHECK_EQ(tiny_write(in_folder("tiny.monet"), &options, &why), MONET_OK);
    make_texts();
    if (CHECK(explore_open(&ex, in_folder("tiny.monet"), &err))) {
        count(in_folder("texts"), "*.train.txt", in_folder("texts.stats"), &b);
        test_rule(&b);
        test_edits(&b);
        test_by_hand();
        test_draws();
        test_resume();
        test_correlation();
    }
    if (err.message[0]) printf("%s\n", err.message);
    explore_close(&ex);
    remove_all(folder);
    return test_end("domains");
}
