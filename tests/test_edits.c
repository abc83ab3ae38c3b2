/* test_edits.c: edits of the pair matrix: the object, its text, and what a session makes of it.

   cc -O2 -pthread -I. tests/test_edits.c -o test_edits -lm && ./test_edits

   Each edit is made twice: through the API, and in plain tables of this file. What a layer adds is
   compared with the sum over all N*N experts in double, from the session's gates, the tensors and
   the tables. Then bits: pieces of a prompt, threads, edits that change between tokens. Then what
   goes wrong: arguments, texts that are cut, changed or huge, memory that is not there.          */
#define _XOPEN_SOURCE 700
#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "heap.h"
#include "tiny.h"
#include "host_threads.h"

enum { N = 8, H = 2, C = 16, M = 4, L = 5, G = 2, R = 3, T = 20, V = TINY_VOCAB };

static monet_model *model;
static monet_error said;

#define ARGUMENT(call) CHECK_EQ(call, MONET_ERROR_ARGUMENT)

/* Equal, and not NaN: compilers warn of ==, which is meant here. */
static int same_float(float a, float b)
{
    return a <= b && a >= b;
}

/* ---- tables ---------------------------------------------------------------------------------- */

typedef struct tables { /* what an edit should be */
    float factor[L][N][N], amount[L][N][N];
} tables;

static void plain_tables(tables *t)
{
    for (int l = 0; l < L; l++)
        for (int e = 0; e < N * N; e++) {
            t->factor[l][e / N][e % N] = 1;
            t->amount[l][e / N][e % N] = 0;
        }
}

static void set_tables(tables *t, int where, int i, int j, int force, float value)
{
    for (int l = 0; l < L; l++)
        for (int e = 0; e < N * N; e++)
            if ((where == MONET_ALL || where == l || where == MONET_ROUTER(l / G)) &&
                (i == MONET_ALL || i == e / N) && (j == MONET_ALL || j == e % N)) {
                if (force) t->amount[l][e / N][e % N] = value;
                else t->factor[l][e / N][e % N] = value;
            }
}

static void combine_tables(tables *t, const tables *next)
{
    for (int l = 0; l < L; l++)
        for (int e = 0; e < N * N; e++) {
            int i = e / N, j = e % N;
            t->factor[l][i][j] *= next->factor[l][i][j];
            t->amount[l][i][j] = t->amount[l][i][j] * next->factor[l][i][j] + next->amount[l][i][j];
        }
}

/* How many experts are not what the tables say, and layers whose count is not. */
static long wrong_experts(const monet_edit *e, const tables *t)
{
    long wrong = 0;
    for (int l = 0; l < L; l++) {
        int64_t changed = 0;
        for (int k = 0; k < N * N; k++) {
            float factor = -7, amount = -7, f = t->factor[l][k / N][k % N];
            float a = t->amount[l][k / N][k % N];
            if (monet_edit_get(e, l, k / N, k % N, &factor, &amount) != MONET_OK) wrong++;
            wrong += !same_float(factor, f) + !same_float(amount, a);
            changed += !same_float(f, 1) || !same_float(a, 0);
        }
        wrong += monet_edit_count(e, l) != changed;
    }
    return wrong;
}

static uint64_t random_state = 1;

static int random_below(int n)
{
    random_state += 0x9E3779B97F4A7C15u;
    return (int)(tiny_mix(random_state) % (uint64_t)n);
}

static float random_value(void)
{
    static const float some[] = {0, 0, 0, 1, -1, 2.5f, 0.1f, -0.75f, 0.333333343f, 1e-5f};
    return some[random_below(10)];
}

/* One call, chosen at random: a layer, a router or all; an expert, a row, a column or all. */
static void random_call(monet_edit *e, tables *t)
{
    static const int alls[] = {0, 0, 0, 0, 0, 1, 1, 2, 2, 3};
    int kind = random_below(3), shape = alls[random_below(10)], force = random_below(2);
    int where = kind == 0 ? random_below(L) : kind == 1 ? MONET_ROUTER(random_below(R)) : MONET_ALL;
    int i = shape & 1 ? MONET_ALL : random_below(N), j = shape & 2 ? MONET_ALL : random_below(N);
    float value = random_value();
    CHECK_EQ((force ? monet_edit_force : monet_edit_scale)(e, where, i, j, value, &said), MONET_OK);
    set_tables(t, where, i, j, force, value);
}

static monet_edit *new_edit(const char *name)
{
    monet_edit *e = NULL;
    if (!CHECK_EQ(monet_edit_create(model, name, &e, &said), MONET_OK))
        printf("    %s\n", said.message);
    return e;
}

static monet_edit *random_edit(tables *t, int calls)
{
    monet_edit *e = new_edit("random");
    plain_tables(t);
    while (calls-- > 0) random_call(e, t);
    return e;
}

/* ---- the object ------------------------------------------------------------------------------ */

/* The text of an edit in new memory of exactly its size. */
static char *text_of(const monet_edit *e, size_t *size)
{
    char *text = NULL;
    CHECK_EQ(monet_edit_text(e, NULL, 0, size), MONET_ERROR_CAPACITY);
    text = (char *)malloc(*size);
    if (text) CHECK_EQ(monet_edit_text(e, text, *size, size), MONET_OK);
    return text;
}

static void check_round_trip(const monet_edit *e, const tables *t)
{
    size_t size = 0, again = 0;
    char *text = text_of(e, &size), *second = NULL;
    monet_edit *back = NULL;
    if (!CHECK_EQ(monet_edit_parse(model, text, size, &back, &said), MONET_OK))
        printf("    %s\n%.*s", said.message, (int)size, text);
    if (back) {
        CHECK_EQ(wrong_experts(back, t), 0);
        CHECK_STR(monet_edit_name(back), monet_edit_name(e));
        second = text_of(back, &again);
        CHECK(again == size && memcmp(text, second, size) == 0);
    }
    free(text);
    free(second);
    monet_edit_free(back);
}

static void test_calls(void)
{
    for (int round = 0; round < 40; round++) {
        static tables t, next;
        monet_edit *e = random_edit(&t, round % 12), *f = random_edit(&next, round % 7);
        CHECK_EQ(wrong_experts(e, &t), 0);
        check_round_trip(e, &t);
        CHECK_EQ(monet_edit_combine(e, f, &said), MONET_OK);
        combine_tables(&t, &next);
        CHECK_EQ(wrong_experts(e, &t), 0);
        CHECK_EQ(wrong_experts(f, &next), 0);
        check_round_trip(e, &t);
        random_call(e, &t);
        CHECK_EQ(wrong_experts(e, &t), 0);
        t = next;
        CHECK_EQ(monet_edit_combine(f, f, &said), MONET_OK);
        combine_tables(&next, &t);
        CHECK_EQ(wrong_experts(f, &next), 0);
        monet_edit_free(e);
        monet_edit_free(f);
    }
}

/* Each scope over each other: the last call counts, factors and amounts each on their own. */
static void test_order(void)
{
    static const int places[] = {1, MONET_ROUTER(0), MONET_ROUTER(2), MONET_ALL, 4};
    static tables t;
    for (int a = 0; a < 5; a++)
        for (int b = 0; b < 5; b++) {
            monet_edit *e = new_edit("order");
            plain_tables(&t);
            CHECK_EQ(monet_edit_scale(e, places[a], 3, MONET_ALL, 0, NULL), MONET_OK);
            CHECK_EQ(monet_edit_force(e, places[a], MONET_ALL, 2, 0.5f, NULL), MONET_OK);
            CHECK_EQ(monet_edit_scale(e, places[b], MONET_ALL, 2, 4, NULL), MONET_OK);
            CHECK_EQ(monet_edit_force(e, places[b], 3, 2, 0, NULL), MONET_OK);
            set_tables(&t, places[a], 3, MONET_ALL, 0, 0);
            set_tables(&t, places[a], MONET_ALL, 2, 1, 0.5f);
            set_tables(&t, places[b], MONET_ALL, 2, 0, 4);
            set_tables(&t, places[b], 3, 2, 1, 0);
            CHECK_EQ(wrong_experts(e, &t), 0);
            check_round_trip(e, &t);
            monet_edit_free(e);
        }
}

static void test_names(void)
{
    static const char *const good[] = {"a", "no-economics 2", "~!@$%^&*()_+", "a  b", "monet-edit",
        "123456789012345678901234567890123456789012345678901234567890123"};
    static const char *const bad[] = {"", "a\n", "\tb", "caf\xc3\xa9", "x\x7f", "\r", " ", " a",
        "a ", "#", "a#b",
        "1234567890123456789012345678901234567890123456789012345678901234"};
    static tables t;
    monet_edit *e = NULL;
    plain_tables(&t);
    for (size_t k = 0; k < sizeof good / sizeof *good; k++) {
        e = new_edit(good[k]);
        CHECK_STR(monet_edit_name(e), good[k]);
        check_round_trip(e, &t);
        monet_edit_free(e);
    }
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        e = (monet_edit *)&t;
        said.message[0] = 0;
        ARGUMENT(monet_edit_create(model, bad[k], &e, &said));
        CHECK(e == NULL);
        CHECK_HAS(said.message, "name");
    }
}

static void test_arguments(void)
{
    static const float no_numbers[] = {NAN, INFINITY, -INFINITY};
    static const int places[] = {L, INT32_MAX, MONET_ROUTER(R), INT32_MIN, INT32_MIN + 1};
    static tables t;
    monet_edit *e = new_edit("e"), *out = NULL;
    float x = 3;
    plain_tables(&t);
    ARGUMENT(monet_edit_create(NULL, "e", &out, &said));
    ARGUMENT(monet_edit_create(model, NULL, &out, &said));
    ARGUMENT(monet_edit_create(model, "e", NULL, &said));
    ARGUMENT(monet_edit_scale(NULL, 0, 0, 0, 1, &said));
    ARGUMENT(monet_edit_force(NULL, 0, 0, 0, 1, NULL));
    ARGUMENT(monet_edit_combine(NULL, e, &said));
    ARGUMENT(monet_edit_combine(e, NULL, &said));
    ARGUMENT(monet_edit_get(NULL, 0, 0, 0, &x, &x));
    for (int k = 0; k < 4; k++) {
        const int out_of[4][2] = {{-2, 0}, {N, 0}, {0, -2}, {0, N}};
        ARGUMENT(monet_edit_scale(e, 0, out_of[k][0], out_of[k][1], 0, &said));
        ARGUMENT(monet_edit_force(e, 0, out_of[k][0], out_of[k][1], 1, NULL));
        ARGUMENT(monet_edit_get(e, 0, out_of[k][0], out_of[k][1], &x, NULL));
    }
    ARGUMENT(monet_edit_get(e, 0, MONET_ALL, 0, &x, NULL));
    ARGUMENT(monet_edit_get(e, -1, 0, 0, &x, NULL));
    ARGUMENT(monet_edit_get(e, L, 0, 0, NULL, NULL));
    CHECK_EQ(monet_edit_get(e, 0, 0, 0, NULL, NULL), MONET_OK);
    CHECK(same_float(x, 3));
    for (int k = 0; k < 5; k++) {
        said.message[0] = 0;
        ARGUMENT(monet_edit_scale(e, places[k], 0, 0, 0, &said));
        ARGUMENT(monet_edit_force(e, places[k], 0, 0, 1, &said));
        CHECK(said.message[0] != 0);
    }
    for (int k = 0; k < 3; k++) {
        ARGUMENT(monet_edit_scale(e, 0, 0, 0, no_numbers[k], &said));
        ARGUMENT(monet_edit_force(e, MONET_ALL, 0, 0, no_numbers[k], &said));
        CHECK_HAS(said.message, "not finite");
    }
    CHECK_EQ(wrong_experts(e, &t), 0);
    CHECK_EQ(monet_edit_count(NULL, 0), 0);
    CHECK_EQ(monet_edit_count(e, -1), 0);
    CHECK_EQ(monet_edit_count(e, L), 0);
    CHECK(monet_edit_name(NULL) != NULL);
    monet_edit_free(NULL);
    monet_edit_free(e);
}

static void test_text_arguments(void)
{
    static const char text[] = "monet-edit 1\nshape N=8 L=5 G=2\n";
    monet_edit *e = new_edit("e"), *out = (monet_edit *)(void *)&said;
    size_t size = 1;
    char few[5] = "....";
    ARGUMENT(monet_edit_text(NULL, few, 4, &size));
    ARGUMENT(monet_edit_text(e, few, 4, NULL));
    ARGUMENT(monet_edit_text(e, NULL, 4, &size));
    CHECK_EQ(monet_edit_text(e, few, 4, &size), MONET_ERROR_CAPACITY);
    CHECK_STR(few, "mone");
    ARGUMENT(monet_edit_parse(NULL, text, sizeof text - 1, &out, &said));
    ARGUMENT(monet_edit_parse(model, NULL, 3, &out, &said));
    CHECK(out == NULL);
    ARGUMENT(monet_edit_parse(model, text, sizeof text - 1, NULL, &said));
    CHECK_EQ(monet_edit_parse(model, NULL, 0, &out, NULL), MONET_ERROR_FORMAT);
    ARGUMENT(monet_edit_load(NULL, "x", &out, &said));
    ARGUMENT(monet_edit_load(model, NULL, &out, &said));
    ARGUMENT(monet_edit_load(model, "x", NULL, &said));
    ARGUMENT(monet_edit_save(NULL, "x", &said));
    ARGUMENT(monet_edit_save(e, NULL, &said));
    monet_edit_free(e);
}

/* Factors and amounts that are finite each, but not their product or sum. */
static void test_too_large(void)
{
    static tables t;
    monet_edit *e = random_edit(&t, 6), *huge = new_edit("huge");
    CHECK_EQ(monet_edit_scale(e, 2, 1, 1, 1e30f, NULL), MONET_OK);
    set_tables(&t, 2, 1, 1, 0, 1e30f);
    CHECK_EQ(monet_edit_scale(huge, MONET_ALL, MONET_ALL, MONET_ALL, -1e30f, NULL), MONET_OK);
    ARGUMENT(monet_edit_combine(e, huge, &said));
    CHECK_HAS(said.message, "layer 2");
    CHECK_EQ(wrong_experts(e, &t), 0);
    CHECK_EQ(monet_edit_scale(huge, MONET_ALL, MONET_ALL, MONET_ALL, 1, NULL), MONET_OK);
    CHECK_EQ(monet_edit_force(e, 4, 0, 5, 3e38f, NULL), MONET_OK);
    set_tables(&t, 4, 0, 5, 1, 3e38f);
    CHECK_EQ(monet_edit_force(huge, MONET_ROUTER(2), 0, 5, 3e38f, NULL), MONET_OK);
    ARGUMENT(monet_edit_combine(e, huge, &said));
    CHECK_HAS(said.message, "layer 4");
    CHECK_EQ(wrong_experts(e, &t), 0);
    monet_edit_free(e);
    monet_edit_free(huge);
}

/* ---- text ------------------------------------------------------------------------------------ */

static monet_result parse(const char *text, size_t size, monet_edit **out)
{
    char *exact = (char *)malloc(size ? size : 1); /* nothing may be read behind it */
    monet_result result = MONET_ERROR_MEMORY;
    *out = NULL;
    said.code = MONET_OK;
    said.message[0] = 0;
    if (exact) {
        memcpy(exact, text, size);
        result = monet_edit_parse(model, exact, size, out, &said);
    }
    free(exact);
    CHECK((*out != NULL) == (result == MONET_OK) && said.code == result);
    return result;
}

#define HEAD "monet-edit 1\nname x\nshape N=8 L=5 G=2\n" /* three lines */

static void test_rules(void)
{
    static const char text[] = "# first\n\n\t monet-edit\t1 # one\r\nname  two words \r\n"
        "shape N=8 L=5 G=2\n  remove G1 E17 i=5 # remove all all\nremove\tL3\tj=2\tE0\n"
        "scale 2.5 all E63 E62\nscale -.5e1 G3 all\nforce 75e-2 L0 j=7\nforce 0 L0 E7\n"
        "scale 1 all E63";
    static tables t;
    monet_edit *e = NULL;
    plain_tables(&t);
    set_tables(&t, MONET_ROUTER(0), 2, 1, 0, 0);
    set_tables(&t, MONET_ROUTER(0), 5, MONET_ALL, 0, 0);
    set_tables(&t, 3, MONET_ALL, 2, 0, 0);
    set_tables(&t, 3, 0, 0, 0, 0);
    set_tables(&t, MONET_ALL, 7, 6, 0, 2.5f);
    set_tables(&t, MONET_ROUTER(2), MONET_ALL, MONET_ALL, 0, -5);
    set_tables(&t, 0, MONET_ALL, 7, 1, 0.75f);
    set_tables(&t, 0, 0, 7, 1, 0);
    set_tables(&t, MONET_ALL, 7, 7, 0, 1);
    if (!CHECK_EQ(parse(text, sizeof text - 1, &e), MONET_OK)) printf("    %s\n", said.message);
    if (!e) return;
    CHECK_EQ(wrong_experts(e, &t), 0);
    CHECK_STR(monet_edit_name(e), "two words");
    check_round_trip(e, &t);
    monet_edit_free(e);
}

static void test_wrong_lines(void)
{
    static const struct { const char *text, *line, *word; monet_result result; } wrong[] = {
        {"", "line 1:", "monet-edit", MONET_ERROR_FORMAT},
        {"\n\nhello", "line 3:", "monet-edit", MONET_ERROR_FORMAT},
        {"monet-edit", "line 1:", "monet-edit", MONET_ERROR_FORMAT},
        {"monet-edit 2\n", "line 1:", "newer", MONET_ERROR_VERSION},
        {"monet-edit 1 2\n", "line ", "2", MONET_ERROR_FORMAT},
        {"monet-edit 1\n\n", "line 3:", "shape", MONET_ERROR_FORMAT},
        {"monet-edit 1\nremove all all\n", "line 2:", "shape", MONET_ERROR_FORMAT},
        {"monet-edit 1\nshape N=8 L=5\n", "line 2:", "shape", MONET_ERROR_FORMAT},
        {"monet-edit 1\nshape N=8 G=2 L=5\n", "line 2:", "G=2", MONET_ERROR_FORMAT},
        {"monet-edit 1\nshape N=9 L=5 G=2\n", "line 2:", "N=9", MONET_ERROR_ARGUMENT},
        {"monet-edit 1\nshape N=8 L=6 G=2\n", "line 2:", "L=6", MONET_ERROR_ARGUMENT},
        {"monet-edit 1\n#\nshape N=8 L=5 G=1\n", "line 3:", "G=1", MONET_ERROR_ARGUMENT},
        {"monet-edit 1\nshape N=8 L=5 G=2 A=1\n", "line 2:", "A=1", MONET_ERROR_FORMAT},
        {"monet-edit 1\nname\n", "line 2:", "name", MONET_ERROR_FORMAT},
        {"monet-edit 1\nname caf\xc3\xa9\n", "line 2:", "name", MONET_ERROR_FORMAT},
        {"monet-edit 1\nname a\rb\nshape N=8 L=5 G=2\n", "line 2:", "name", MONET_ERROR_FORMAT},
        {HEAD "mask all all\n", "line 4:", "mask", MONET_ERROR_FORMAT},
        {HEAD "\n\nREMOVE all all\n", "line 6:", "REMOVE", MONET_ERROR_FORMAT},
        {HEAD "remove\n", "line 4:", "G1", MONET_ERROR_FORMAT},
        {HEAD "remove G1\n", "line 4:", "E17", MONET_ERROR_FORMAT},
        {HEAD "remove G0 E1\n", "line 4:", "G1..G3", MONET_ERROR_FORMAT},
        {HEAD "remove G4 E1\n", "line 4:", "G1..G3", MONET_ERROR_FORMAT},
        {HEAD "remove L5 E1\n", "line 4:", "L0..L4", MONET_ERROR_FORMAT},
        {HEAD "remove L-1 E1\n", "line 4:", "L0..L4", MONET_ERROR_FORMAT},
        {HEAD "remove E1\n", "line 4:", "place", MONET_ERROR_FORMAT},
        {HEAD "remove all E64\n", "line 4:", "E64", MONET_ERROR_FORMAT},
        {HEAD "remove all E1 E99999999999999999999999\n", "line 4:", "E9999", MONET_ERROR_FORMAT},
        {HEAD "remove all E-1\n", "line 4:", "E-1", MONET_ERROR_FORMAT},
        {HEAD "remove all E1,E2\n", "line 4:", "E1,E2", MONET_ERROR_FORMAT},
        {HEAD "remove all i=8\n", "line 4:", "i=8", MONET_ERROR_FORMAT},
        {HEAD "remove all i=\n", "line 4:", "i=", MONET_ERROR_FORMAT},
        {HEAD "remove all j=8\n", "line 4:", "j=8", MONET_ERROR_FORMAT},
        {HEAD "remove all 17\n", "line 4:", "17", MONET_ERROR_FORMAT},
        {HEAD "remove 0 all E1\n", "line 4:", "place", MONET_ERROR_FORMAT},
        {HEAD "scale all E1\n", "line 4:", "number", MONET_ERROR_FORMAT},
        {HEAD "scale\n", "line 4:", "number", MONET_ERROR_FORMAT},
        {HEAD "scale nan all E1\n", "line 4:", "nan", MONET_ERROR_FORMAT},
        {HEAD "scale inf all E1\n", "line 4:", "inf", MONET_ERROR_FORMAT},
        {HEAD "scale 1e39 all E1\n", "line 4:", "1e39", MONET_ERROR_FORMAT},
        {HEAD "scale -1e999999999999999 all E1\n", "line 4:", "number", MONET_ERROR_FORMAT},
        {HEAD "force 0x1p3 all E1\n", "line 4:", "0x1p3", MONET_ERROR_FORMAT},
        {HEAD "force 1e all E1\n", "line 4:", "1e", MONET_ERROR_FORMAT},
        {HEAD "force . all E1\n", "line 4:", "number", MONET_ERROR_FORMAT},
        {HEAD "force 1.2.3 all E1\n", "line 4:", "1.2.3", MONET_ERROR_FORMAT},
        {HEAD "force 1,5 all E1\n", "line 4:", "1,5", MONET_ERROR_FORMAT},
    };
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        monet_edit *e = NULL;
        int ok = CHECK_EQ(parse(wrong[k].text, strlen(wrong[k].text), &e), wrong[k].result);
        ok = CHECK_HAS(said.message, wrong[k].line) && CHECK_HAS(said.message, wrong[k].word) && ok;
        if (!ok) printf("    text %d: %s\n", (int)k, wrong[k].text);
        monet_edit_free(e);
    }
}

/* Numbers are read as strtof reads them, and written so that they come back. */
static void test_numbers(void)
{
    static const char *const some[] = {"1", "-1.5", "+2", ".5", "5.", "1e-3", "1E3", "0.1", "1e+2",
        "3.4028234e38", "-3.40282347e38", "1e-45", "1.17549435e-38", "0.000000000000000000001",
        "123456789012345678901234567890", "1e-400", "0e99999999", "00012", "16777217",
        "0.30000001192092896"};
    static tables t;
    char text[200];
    monet_edit *e = NULL;
    for (size_t k = 0; k < sizeof some / sizeof *some; k++) {
        int n = snprintf(text, sizeof text, "%sforce %s L2 E9", HEAD, some[k]);
        float amount = 0;
        CHECK_EQ(parse(text, (size_t)n, &e), MONET_OK);
        if (e) CHECK_EQ(monet_edit_get(e, 2, 1, 1, NULL, &amount), MONET_OK);
        if (!CHECK(same_float(amount, strtof(some[k], NULL)))) printf("    %s\n", some[k]);
        monet_edit_free(e);
    }
    for (int round = 0; round < 60; round++) {
        e = new_edit("numbers");
        plain_tables(&t);
        for (int k = 0; k < N * N; k++) {
            uint32_t bits = (uint32_t)random_below(INT32_MAX) ^ (uint32_t)random_below(2) << 31;
            float x;
            if (round % 3 == 0) bits &= 0x80FFFFFFu; /* tiny ones, and 0 */
            memcpy(&x, &bits, sizeof x);
            if (!(x - x <= 0)) x = 3.40282347e38f;
            CHECK_EQ(monet_edit_force(e, MONET_ROUTER(1), k / N, k % N, x, NULL), MONET_OK);
            set_tables(&t, MONET_ROUTER(1), k / N, k % N, 1, x);
        }
        check_round_trip(e, &t);
        monet_edit_free(e);
    }
}

/* A text that ends anywhere, or has another byte anywhere: an edit, or an error that names a line
   in printable characters.                                                                       */
static void test_damaged(void)
{
    static const char bytes[] = {0, '\n', ' ', '#', '9', 'E', '-', (char)0xFF};
    static tables t;
    monet_edit *e = random_edit(&t, 9), *back = NULL;
    size_t size = 0;
    char *text = text_of(e, &size);
    long silent = 0;
    for (size_t n = 0; n <= size; n++) {
        if (parse(text, n, &back) != MONET_OK) silent += !strstr(said.message, "line ");
        monet_edit_free(back);
    }
    for (size_t at = 0; at < size; at++)
        for (size_t k = 0; k < sizeof bytes; k++) {
            char kept = text[at];
            text[at] = bytes[k];
            if (parse(text, size, &back) != MONET_OK) silent += !strstr(said.message, "line ");
            for (const char *s = said.message; *s; s++) silent += *s < 32 || *s > 126;
            text[at] = kept;
            monet_edit_free(back);
        }
    CHECK_EQ(silent, 0);
    free(text);
    monet_edit_free(e);
}

static void test_huge(void)
{
    static const char *const pieces[] = {" E5", " E63", " i=1", "\n", "#", " ", "7", "\0x"};
    enum { COUNT = 1000000 };
    char *text = (char *)malloc(sizeof HEAD + 16 + 4 * (size_t)COUNT);
    monet_edit *e = NULL;
    if (!CHECK(text != NULL)) return;
    for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
        size_t n = strlen(pieces[k]), size = (size_t)sprintf(text, "%sremove L1 E2", HEAD);
        float factor = 1;
        if (!n) n = 2;
        for (long c = 0; c < COUNT; c++, size += n) memcpy(text + size, pieces[k], n);
        if (parse(text, size, &e) == MONET_OK) {
            CHECK(k < 6);
            CHECK_EQ(monet_edit_get(e, 1, 0, 2, &factor, NULL), MONET_OK);
            CHECK(same_float(factor, 0));
        } else {
            CHECK(k >= 6);
            CHECK_HAS(said.message, "line 4: ");
        }
        monet_edit_free(e);
    }
    free(text);
}

static void test_files(void)
{
    static tables t;
    char path[256];
    monet_edit *e = random_edit(&t, 8), *back = NULL;
    FILE *f;
    snprintf(path, sizeof path, "%s", tiny_path("e.edit"));
    CHECK_EQ(monet_edit_load(model, path, &back, &said), MONET_ERROR_IO);
    CHECK_HAS(said.message, "e.edit");
    CHECK_EQ(monet_edit_save(e, path, &said), MONET_OK);
    CHECK_EQ(monet_edit_load(model, path, &back, &said), MONET_OK);
    if (back) CHECK_EQ(wrong_experts(back, &t), 0);
    monet_edit_free(back);
    f = fopen(path, "ab");
    if (CHECK(f != NULL)) fputs("\nforce x all E1\n", f), fclose(f);
    back = e;
    CHECK_EQ(monet_edit_load(model, path, &back, &said), MONET_ERROR_FORMAT);
    CHECK(back == NULL);
    CHECK_HAS(said.message, "e.edit");
    CHECK_HAS(said.message, "line ");
    CHECK_EQ(monet_edit_save(e, path, &said), MONET_OK); /* over the broken one */
    CHECK_EQ(monet_edit_load(model, path, &back, NULL), MONET_OK);
    monet_edit_free(back);
    f = fopen(path, "wb");
    if (f) fclose(f);
    CHECK_EQ(monet_edit_load(model, path, &back, &said), MONET_ERROR_FORMAT);
    CHECK(back == NULL);
    (void)remove(path);
    CHECK_EQ(monet_edit_save(e, "/nowhere/at/all", &said), MONET_ERROR_IO);
    CHECK_HAS(said.message, "/nowhere/at/all");
    monet_edit_free(e);
}

/* ---- what a layer adds ----------------------------------------------------------------------- */

/* A tensor of layer l as float, row by row, in new memory. */
static float *weights(int l, const char *name)
{
    char full[64];
    const monet_tensor *t;
    float *out;
    snprintf(full, sizeof full, "layers.%d.moe.%s", l, name);
    t = monet_model_find_tensor(model, full);
    if (!CHECK(t != NULL)) exit(1);
    out = (float *)malloc((size_t)(t->shape[0] * t->shape[1]) * sizeof *out);
    if (!out || monet_tensor_read(t, 0, t->n_dims == 1 ? 1 : t->shape[0], out) != MONET_OK) exit(1);
    return out;
}

/* relu(U n + bias)^2, all half-experts of one axis. */
static void hidden_units(double *a, int l, const char *name, const float *n, int units)
{
    char bias_name[32], weight_name[32];
    float *u, *bias;
    snprintf(bias_name, sizeof bias_name, "%s.bias", name);
    snprintf(weight_name, sizeof weight_name, "%s.weight", name);
    u = weights(l, weight_name), bias = weights(l, bias_name);
    for (int q = 0; q < units; q++) {
        double sum = (double)bias[q];
        for (int c = 0; c < C; c++) sum += (double)u[q * C + c] * (double)n[c];
        a[q] = sum > 0 ? sum * sum : 0;
    }
    free(u);
    free(bias);
}

/* y += p * E_ij, as architecture papers have it: no row or column sums here. */
static void add_expert(double *y, double p, const double *a1, const double *a2, const float *v1,
                       const float *v2, const float *b1, const float *b2, int i, int j)
{
    const int m = M / 2, W = C / 2;
    for (int c = 0; c < W; c++) {
        double top = (double)b1[i * W + c], bottom = (double)b2[j * W + c];
        for (int q = 0; q < m; q++) {
            top += (double)v1[(i * M + q) * W + c] * a1[i * m + q];
            top += (double)v1[(i * M + m + q) * W + c] * a2[j * m + q];
            bottom += (double)v2[(j * M + q) * W + c] * a1[i * m + q];
            bottom += (double)v2[(j * M + m + q) * W + c] * a2[j * m + q];
        }
        y[c] += p * top;
        y[W + c] += p * bottom;
    }
}

static void add_horizontal(double *y, double p, const double *a, const float *v, const float *b,
                           int i, int j)
{
    for (int c = 0; c < C; c++) {
        double e = (double)b[j * C + c];
        for (int q = 0; q < M; q++) e += (double)v[(j * M + q) * C + c] * a[i * M + q];
        y[c] += p * e;
    }
}

static double pair_weight(const monet_routing *r, const tables *t, int l, int i, int j)
{
    double score = 0;
    for (int h = 0; h < H; h++) score += (double)r->g1[h * N + i] * (double)r->g2[h * N + j];
    return score * (double)t->factor[l][i][j] + (double)t->amount[l][i][j];
}

/* What layer l should add for input n (C) with these gates: the sum over all N*N experts. */
static void expected_output(double *y, int l, const float *n, const monet_routing *r,
                            const tables *t)
{
    const int horizontal = monet_model_arch(model)->decompose == MONET_HORIZONTAL;
    double a1[N * M], a2[N * M];
    float *v1 = weights(l, horizontal ? "v.weight" : "v1.weight");
    float *b1 = weights(l, horizontal ? "b" : "b1");
    float *v2 = horizontal ? NULL : weights(l, "v2.weight");
    float *b2 = horizontal ? NULL : weights(l, "b2");
    for (int c = 0; c < C; c++) y[c] = 0;
    hidden_units(a1, l, horizontal ? "u" : "u1", n, horizontal ? N * M : N * M / 2);
    if (!horizontal) hidden_units(a2, l, "u2", n, N * M / 2);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double p = pair_weight(r, t, l, i, j);
            if (horizontal) add_horizontal(y, p, a1, v1, b1, i, j);
            else add_expert(y, p, a1, a2, v1, v2, b1, b2, i, j);
        }
    free(v1);
    free(v2);
    free(b1);
    free(b2);
}

typedef struct seen { /* inputs and outputs of all layers, by position */
    float in[L][T][C], out[L][T][C];
} seen;

static bool keep_seen(void *user, monet_site site, int32_t layer, int32_t first, int32_t count,
                      monet_real *data)
{
    seen *s = (seen *)user;
    memcpy(site == MONET_SITE_MOE_IN ? s->in[layer][first] : s->out[layer][first], data,
           (size_t)count * C * sizeof *data);
    return true;
}

static const int32_t text[T] = {1, 260, 5, 270, 70, 33, 12, 265, 100, 101, 102, 7, 8, 9, 259, 261,
                                200, 199, 44, 45};

static monet_session *open_session(int n_threads)
{
    monet_session_config config = {0};
    monet_session *s = NULL;
    monet_host host = {NULL, NULL, NULL, 0, NULL};
    host.n_threads = n_threads;
    config.host = &host;
    config.capture_routing = config.all_logits = true;
    CHECK_EQ(monet_session_create(model, &config, &s, &said), MONET_OK);
    return s;
}

static double worst_difference; /* of a layer's output, as a part of its largest number */

/* Layer outputs of tokens first..first+n-1, which the last eval computed, against the sum. */
static void check_outputs(const monet_session *s, const seen *x, const tables *t, int first, int n)
{
    for (int k = 0; k < n; k++)
        for (int l = 0; l < L; l++) {
            double y[C], largest = 0, worst = 0;
            monet_routing r;
            if (!CHECK_EQ(monet_session_routing(s, k, l, &r), MONET_OK)) return;
            expected_output(y, l, x->in[l][first + k], &r, t);
            for (int c = 0; c < C; c++) {
                double d = fabs(y[c] - (double)x->out[l][first + k][c]);
                if (fabs(y[c]) > largest) largest = fabs(y[c]);
                if (!(d <= worst)) worst = d;
            }
            CHECK(worst <= 1e-5 * largest);
            if (worst > worst_difference * largest) worst_difference = worst / largest;
        }
}

/* Every expert in the list has its score and weight, none is left out, the strongest come first. */
static void check_listed(const monet_session *s, int token, const tables *t)
{
    for (int l = 0; l < L; l++) {
        monet_expert list[N * N];
        monet_routing r;
        long wrong = 0, expected = 0;
        size_t n;
        double last = HUGE_VAL;
        static tables plain;
        plain_tables(&plain);
        if (!CHECK_EQ(monet_session_routing(s, token, l, &r), MONET_OK)) return;
        CHECK_EQ(r.layer, l);
        n = monet_routing_experts(&r, 0, list, N * N);
        for (int e = 0; e < N * N; e++)
            expected += pair_weight(&r, &plain, l, e / N, e % N) > 0 ||
                        fabs(pair_weight(&r, t, l, e / N, e % N)) > 0;
        CHECK_EQ(n, expected);
        for (size_t k = 0; k < n && k < N * N; k++) {
            double score = pair_weight(&r, &plain, l, list[k].i, list[k].j);
            double weight = pair_weight(&r, t, l, list[k].i, list[k].j), strength = score;
            if (fabs(weight) > strength) strength = fabs(weight);
            wrong += fabs(score - (double)list[k].score) > 1e-6 * (1 + score);
            wrong += fabs(weight - (double)list[k].weight) > 1e-6 * (1 + fabs(weight));
            wrong += strength > last + 1e-6;
            last = strength;
        }
        CHECK_EQ(wrong, 0);
    }
}

static void test_layers(void)
{
    static seen x;
    monet_tap tap = {keep_seen, &x, 1u << MONET_SITE_MOE_IN | 1u << MONET_SITE_MOE_OUT, 0, 0};
    monet_session *s = open_session(1);
    CHECK_EQ(monet_session_set_tap(s, &tap), MONET_OK);
    for (int round = 0; round < 16; round++) {
        static tables t;
        monet_edit *e = random_edit(&t, round == 0 ? 0 : 1 + round % 8);
        if (round == 15) { /* every pair of one router, so that all half-experts are listed */
            CHECK_EQ(monet_edit_force(e, MONET_ROUTER(0), -1, -1, 0.01f, NULL), MONET_OK);
            set_tables(&t, MONET_ROUTER(0), -1, -1, 1, 0.01f);
        }
        CHECK_EQ(monet_session_set_edit(s, e), MONET_OK);
        CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
        CHECK_EQ(monet_session_eval(s, text, 1), MONET_OK);
        check_outputs(s, &x, &t, 0, 1);
        CHECK_EQ(monet_session_eval(s, text + 1, T - 1), MONET_OK);
        check_outputs(s, &x, &t, 1, T - 1);
        check_listed(s, round, &t);
        CHECK_EQ(monet_session_set_edit(s, NULL), MONET_OK);
        monet_edit_free(e);
    }
    monet_session_free(s);
}

/* ---- bits ------------------------------------------------------------------------------------ */

typedef struct outcome { /* logits of every token */
    float logits[T][V];
} outcome;

/* Evaluates the text in pieces; `edits` has an edit for each token, whose pieces end where it
   changes.                                                                                       */
static void run(monet_session *s, const monet_edit *const edits[T], int piece, outcome *out)
{
    int at = 0, n;
    CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
    for (; at < T; at += n) {
        for (n = 1; n < piece && at + n < T && edits[at + n] == edits[at]; n++) continue;
        CHECK_EQ(monet_session_set_edit(s, edits[at]), MONET_OK);
        CHECK_EQ(monet_session_eval(s, text + at, (size_t)n), MONET_OK);
        for (int k = 0; k < n; k++)
            memcpy(out->logits[at + k], monet_session_logits_at(s, k), sizeof out->logits[0]);
    }
    CHECK_EQ(monet_session_set_edit(s, NULL), MONET_OK);
}

static int same_outcome(const outcome *a, const outcome *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

static void test_bits(void)
{
    static const int pieces[] = {1, 2, 3, 7, T};
    static outcome first, other, plain;
    static tables t, u;
    monet_edit *a = random_edit(&t, 7), *b = random_edit(&u, 9), *zero = new_edit("nothing");
    const monet_edit *all_a[T], *mixed[T], *none[T] = {NULL}, *nothing[T];
    for (int k = 0; k < T; k++)
        all_a[k] = a, nothing[k] = zero, mixed[k] = k < 5 ? a : k < 6 ? NULL : k < 13 ? b : a;
    for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
        monet_session *s = open_session(n_threads);
        for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
            run(s, none, pieces[k], k + (size_t)n_threads == 1 ? &plain : &other);
            CHECK(k + (size_t)n_threads == 1 || same_outcome(&plain, &other));
            run(s, nothing, pieces[k], &other);
            CHECK(same_outcome(&plain, &other));
        }
        monet_session_free(s);
    }
    for (int kind = 0; kind < 2; kind++)
        for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
            monet_session *s = open_session(n_threads);
            for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
                bool is_first = n_threads == 1 && k == 0;
                run(s, kind ? mixed : all_a, pieces[k], is_first ? &first : &other);
                if (!is_first) CHECK(same_outcome(&first, &other));
            }
            CHECK(!same_outcome(&first, &plain));
            monet_session_free(s);
        }
    monet_edit_free(a);
    monet_edit_free(b);
    monet_edit_free(zero);
}

/* An edit that is changed while it is attached counts from the next eval on. */
static void test_changes(void)
{
    static outcome out;
    static tables t;
    static seen x;
    monet_tap tap = {keep_seen, &x, 1u << MONET_SITE_MOE_IN | 1u << MONET_SITE_MOE_OUT, 0, 0};
    monet_session *s = open_session(1), *other = open_session(1);
    monet_edit *e = random_edit(&t, 3);
    monet_routing r;
    const monet_edit *none[T] = {NULL};
    CHECK_EQ(monet_session_set_tap(s, &tap), MONET_OK);
    CHECK_EQ(monet_session_set_edit(s, e), MONET_OK);
    for (int at = 0; at < T; at++) {
        CHECK_EQ(monet_session_eval(s, text + at, 1), MONET_OK);
        check_outputs(s, &x, &t, at, 1);
        random_call(e, &t);
        if (at % 3 == 0) CHECK_EQ(monet_session_routing(s, 0, 0, &r), MONET_ERROR_STATE);
    }
    run(other, none, T, &out);
    CHECK_EQ(monet_session_set_edit(other, e), MONET_OK);
    CHECK_EQ(monet_session_routing(other, 0, 0, &r), MONET_ERROR_STATE);
    CHECK(monet_session_logits(other) != NULL); /* what was computed stays */
    CHECK(memcmp(monet_session_logits(other), out.logits[T - 1], sizeof out.logits[0]) == 0);
    monet_session_free(other); /* with the edit attached: the edit is still good */
    CHECK_EQ(wrong_experts(e, &t), 0);
    monet_session_free(s);
    monet_edit_free(e);
}

/* Nothing is left of a layer whose experts are all removed: exactly nothing. */
static void test_removed(void)
{
    static seen x;
    monet_tap tap = {keep_seen, &x, 1u << MONET_SITE_MOE_IN | 1u << MONET_SITE_MOE_OUT, 0, 0};
    monet_session *s = open_session(2);
    monet_edit *e = new_edit("all");
    long not_zero[L] = {0};
    CHECK_EQ(monet_edit_scale(e, MONET_ROUTER(1), MONET_ALL, MONET_ALL, 0, NULL), MONET_OK);
    CHECK_EQ(monet_session_set_tap(s, &tap), MONET_OK);
    CHECK_EQ(monet_session_set_edit(s, e), MONET_OK);
    CHECK_EQ(monet_session_eval(s, text, T), MONET_OK);
    for (int l = 0; l < L; l++)
        for (int k = 0; k < T * C; k++) not_zero[l] += !same_float(x.out[l][k / C][k % C], 0);
    CHECK(not_zero[0] > 0 && not_zero[1] > 0 && not_zero[4] > 0);
    CHECK_EQ(not_zero[2] + not_zero[3], 0);
    CHECK_EQ(monet_edit_scale(e, 3, 1, 1, 3e38f, NULL), MONET_OK);
    CHECK_EQ(monet_edit_force(e, 3, MONET_ALL, MONET_ALL, 3e38f, NULL), MONET_OK);
    CHECK_EQ(monet_session_rewind(s, 0), MONET_OK);
    CHECK_EQ(monet_session_eval(s, text, T), MONET_ERROR_NUMERIC);
    CHECK_EQ(monet_session_length(s), 0);
    monet_session_free(s);
    monet_edit_free(e);
}

/* ---- models of another shape ----------------------------------------------------------------- */

static monet_model *open_model(tiny_file *file, const tiny_options *options,
                               const monet_model_config *config)
{
    monet_model *m = NULL;
    *file = tiny_make(options);
    if (!CHECK_EQ(monet_model_load_memory(file->data, file->size, config, &m, &said), MONET_OK))
        printf("    %s\n", said.message);
    return m;
}

static void test_other_shapes(void)
{
    static const tiny_options others[] = {{.n_layers = 4, .moe_groups = 2},
                                          {.n_layers = 5, .moe_groups = 1}};
    tiny_options words = {.no_weights = 1};
    tiny_file file;
    monet_session *s = open_session(1);
    monet_edit *mine = new_edit("mine"), *out = NULL;
    monet_model *m;
    for (int k = 0; k < 2; k++) {
        monet_edit *e = NULL;
        m = open_model(&file, &others[k], NULL);
        CHECK_EQ(monet_edit_create(m, "theirs", &e, NULL), MONET_OK);
        ARGUMENT(monet_edit_combine(mine, e, &said));
        CHECK_HAS(said.message, k ? "G=1" : "L=4");
        ARGUMENT(monet_session_set_edit(s, e));
        CHECK_HAS(monet_session_error(s)->message, "theirs");
        monet_edit_free(e);
        monet_model_free(m);
        tiny_drop(&file);
    }
    ARGUMENT(monet_session_set_edit(NULL, mine));
    CHECK_EQ(monet_session_set_edit(s, mine), MONET_OK);
    m = open_model(&file, &words, NULL);
    CHECK_EQ(monet_edit_create(m, "words", &out, &said), MONET_ERROR_STATE);
    CHECK(out == NULL);
    monet_model_free(m);
    tiny_drop(&file);
    monet_session_free(s);
    monet_edit_free(mine);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static heap_count heap;
static tables before; /* of the edit that the work is done on */

enum { CREATE, SCALE, SPLIT, FORCE, COMBINE, PARSE, SAVE, LOAD, N_WORKS };

/* Does one thing to a new edit; an error leaves the edit as it was. */
static monet_result do_work(int work, const char *path, const char *words)
{
    monet_edit *e = NULL, *next = NULL;
    monet_result result = monet_edit_create(model, "work", &e, &said);
    static tables t;
    if (result == MONET_OK && work != CREATE)
        result = monet_edit_scale(e, MONET_ALL, 2, MONET_ALL, 0.5f, &said);
    plain_tables(&t);
    set_tables(&t, MONET_ALL, 2, MONET_ALL, 0, 0.5f);
    if (result == MONET_OK && work == COMBINE) {
        result = monet_edit_parse(model, words, strlen(words), &next, &said);
        if (result == MONET_OK) result = monet_edit_combine(e, next, &said);
        if (result != MONET_OK) CHECK_EQ(wrong_experts(e, &t), 0);
    } else if (result == MONET_OK && work == SPLIT) {
        result = monet_edit_scale(e, MONET_ROUTER(1), 3, 3, 0, &said);
        if (result != MONET_OK) CHECK_EQ(wrong_experts(e, &t), 0);
    } else if (result == MONET_OK && work == FORCE) {
        result = monet_edit_force(e, 4, MONET_ALL, MONET_ALL, 0.25f, &said);
        if (result != MONET_OK) CHECK_EQ(wrong_experts(e, &t), 0);
    } else if (result == MONET_OK && work == PARSE) {
        result = monet_edit_parse(model, words, strlen(words), &next, &said);
    } else if (result == MONET_OK && work == SAVE) {
        result = monet_edit_save(e, path, &said);
    } else if (result == MONET_OK && work == LOAD) {
        result = monet_edit_load(model, path, &next, &said);
    }
    CHECK((result == MONET_OK || !next) || work == COMBINE);
    monet_edit_free(next);
    monet_edit_free(e);
    return result;
}

static void test_memory(void)
{
    tiny_options options = {.n_layers = L, .moe_groups = G};
    monet_model_config config = {0};
    monet_model *kept = model;
    tiny_file file;
    char path[256];
    static const char words[] = HEAD "scale 2 G1 E1\nforce 1 all i=3\nremove L3 j=2\n";
    snprintf(path, sizeof path, "%s", tiny_path("m.edit"));
    config.host = heap_host(&heap);
    model = open_model(&file, &options, &config);
    for (int work = 0; model && work < N_WORKS; work++) {
        long live = heap.live, calls = heap.calls, n;
        CHECK_EQ(do_work(work, path, words), MONET_OK);
        n = heap.calls - calls;
        CHECK(n > 0);
        for (long k = 1; k <= n; k++)
            for (heap.sticky = 0; heap.sticky < 2; heap.sticky++) {
                heap.fail_at = heap.calls + k;
                CHECK_EQ(do_work(work, path, words), MONET_ERROR_MEMORY);
                CHECK_EQ(said.code, MONET_ERROR_MEMORY);
                heap.fail_at = 0;
                CHECK_EQ(heap.live, live);
            }
        CHECK_EQ(heap.live, live);
    }
    CHECK_EQ(heap.wrong, 0);
    (void)remove(path);
    monet_model_free(model);
    CHECK_EQ(heap.live, 0);
    tiny_drop(&file);
    model = kept;
}

/* Eval allocates nothing, with or without an edit. */
static void test_no_allocation(void)
{
    tiny_options options = {.n_layers = L, .moe_groups = G};
    monet_model_config config = {0};
    monet_model *kept = model;
    monet_session *s;
    monet_edit *e;
    static tables t;
    tiny_file file;
    long calls;
    config.host = heap_host(&heap);
    model = open_model(&file, &options, &config);
    s = open_session(1);
    e = random_edit(&t, 10);
    calls = heap.calls;
    CHECK_EQ(monet_session_set_edit(s, e), MONET_OK);
    CHECK_EQ(monet_session_eval(s, text, T), MONET_OK);
    CHECK_EQ(heap.calls, calls);
    monet_session_free(s);
    monet_edit_free(e);
    monet_model_free(model);
    CHECK(heap.live == 0 && heap.wrong == 0);
    tiny_drop(&file);
    model = kept;
}

/* ---- main ------------------------------------------------------------------------------------ */

int main(void)
{
    for (int kind = 0; kind < 3; kind++) {
        tiny_options options = {.n_layers = L, .moe_groups = G, .horizontal = kind == 1, .seed = 3};
        tiny_file file;
        if (kind == 2) options.dtype = MONET_BF16;
        model = open_model(&file, &options, NULL);
        if (!model) return test_end("test_edits");
        test_layers();
        test_bits();
        test_changes();
        test_removed();
        if (kind == 0) {
            test_calls();
            test_order();
            test_names();
            test_arguments();
            test_text_arguments();
            test_too_large();
            test_rules();
            test_wrong_lines();
            test_numbers();
            test_damaged();
            test_huge();
            test_files();
            test_other_shapes();
            test_memory();
            test_no_allocation();
        }
        monet_model_free(model);
        tiny_drop(&file);
    }
    tiny_clean();
    printf("worst difference of a layer's output: %.2e of its largest number\n", worst_difference);
    return test_end("test_edits");
}
