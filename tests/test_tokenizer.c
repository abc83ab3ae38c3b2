/* The tokenizer against the plainest algorithm there is: merge the best pair, again and again.

   cc -O1 -g -fsanitize=address,undefined -I. -Itests tests/test_tokenizer.c -o t -lm && ./t

   Vocabularies and texts are random: pieces by score, with many equal ones, and by rank of merges;
   letters of 1 to 4 bytes, U+2581, bytes that are no UTF-8, words of a few and of thousands of
   letters, with and without a space before the text.                                            */
#define _XOPEN_SOURCE 700
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "tiny.h"

enum { FIRST = 3 + 256, MAX_PIECES = FIRST + 64, VOCABULARIES = 300, TEXTS = 12, MAX_TEXT = 3000 };

static monet_piece pieces[MAX_PIECES];
static monet_merge merges[MAX_PIECES];
static char bytes[MAX_PIECES][512];
static int n_pieces, n_merges;
static uint64_t state = 1;

static int below(int n)
{
    state = tiny_mix(state + 1);
    return (int)(state % (uint64_t)n);
}

static int find(const char *s, int size)
{
    for (int i = FIRST; i < n_pieces; i++)
        if (pieces[i].size == size && !memcmp(pieces[i].bytes, s, (size_t)size)) return i;
    return -1;
}

static void add(const char *s, int size, int equal_scores)
{
    monet_piece *p = &pieces[n_pieces];
    memcpy(bytes[n_pieces], s, (size_t)size);
    p->bytes = bytes[n_pieces];
    p->size = size;
    p->type = MONET_PIECE_NORMAL;
    p->score = (float)(equal_scores ? below(3) : -n_pieces);
    n_pieces++;
}

/* ---- vocabularies ---------------------------------------------------------------------------- */

static const char *const letters[] = {"\xe2\x96\x81", "a", "b", ".", "\xc3\xa9", "\xe6\x96\x87",
                                      "\xf0\x9f\x98\x80", "\xe2\x96\x82", "\xff", "\x81"};

static void make_pieces(bool by_rank)
{
    const int equal = below(2);
    n_pieces = FIRST, n_merges = 0;
    for (int k = 0; k < 8; k++)
        if (below(4)) add(letters[k], (int)strlen(letters[k]), equal);
    if (n_pieces == FIRST) add("a", 1, equal);
    for (int k = below(48); k > 0; k--) {
        int l = FIRST + below(n_pieces - FIRST), r = FIRST + below(n_pieces - FIRST);
        int size = pieces[l].size + pieces[r].size;
        char both[1024];
        if (size > 60) continue;
        memcpy(both, pieces[l].bytes, (size_t)pieces[l].size);
        memcpy(both + pieces[l].size, pieces[r].bytes, (size_t)pieces[r].size);
        if (find(both, size) >= 0) continue;
        merges[n_merges].left = l, merges[n_merges].right = r, merges[n_merges].result = n_pieces;
        n_merges++;
        add(both, size, equal);
    }
    for (int k = n_merges; k > 1; k--) { /* ranks in any order */
        int other = below(k);
        monet_merge m = merges[other];
        merges[other] = merges[k - 1], merges[k - 1] = m;
    }
    if (!by_rank) n_merges = 0;
}

static monet_model *make_model(int prefix_space)
{
    tiny_options options = {0};
    monet_writer_config config;
    monet_tokenizer_data data;
    monet_arch arch;
    monet_model *model = NULL;
    monet_error error;
    tiny_config(&config, &options);
    arch = *config.arch;
    arch.vocab_size = n_pieces;
    data = *config.tokenizer;
    memcpy(pieces, data.pieces, FIRST * sizeof *pieces);
    data.pieces = pieces, data.n_pieces = n_pieces;
    data.merges = n_merges ? merges : NULL, data.n_merges = n_merges;
    data.prefix_space = prefix_space;
    config.arch = &arch, config.tokenizer = &data;
    config.tensors = NULL, config.n_tensors = 0;
    if (!CHECK_EQ(monet_model_create(&config, 1, NULL, &model, &error), MONET_OK))
        printf("    %s\n", error.message);
    return model;
}

/* ---- the plainest algorithm ------------------------------------------------------------------ */

static int symbols[MAX_TEXT + 1], sizes[MAX_TEXT + 1]; /* pieces, and bytes of the text */

/* How soon a and b merge, the less the sooner, and to which piece; false if never. */
static bool pair_of(int a, int b, double *priority, int *result)
{
    char both[1024];
    if (a < 0 || b < 0) return false;
    for (int k = 0; k < n_merges; k++) {
        if (merges[k].left != a || merges[k].right != b) continue;
        *priority = k, *result = merges[k].result;
        return true;
    }
    if (n_merges) return false;
    memcpy(both, pieces[a].bytes, (size_t)pieces[a].size);
    memcpy(both + pieces[a].size, pieces[b].bytes, (size_t)pieces[b].size);
    *result = find(both, pieces[a].size + pieces[b].size);
    if (*result >= 0) *priority = -(double)pieces[*result].score;
    return *result >= 0;
}

static int slow_encode(const char *s, int size, bool prefix, int32_t *tokens)
{
    int n = 0, count = 0;
    if (prefix) symbols[n] = find(letters[0], 3), sizes[n++] = 0;
    for (int at = 0; at < size; at += sizes[n++]) {
        sizes[n] = 1, symbols[n] = -1;
        for (int k = 0; k < 8; k++) {
            int length = (int)strlen(letters[k]);
            if (length > size - at || memcmp(s + at, letters[k], (size_t)length)) continue;
            sizes[n] = length, symbols[n] = find(letters[k], length);
        }
        if (s[at] == ' ') symbols[n] = find(letters[0], 3);
    }
    for (;;) {
        double least = 0, priority = 0;
        int best = -1, piece = -1, result = -1;
        for (int k = 0; k + 1 < n; k++) {
            if (!pair_of(symbols[k], symbols[k + 1], &priority, &result)) continue;
            if (best < 0 || priority < least) best = k, least = priority, piece = result;
        }
        if (best < 0) break;
        symbols[best] = piece, sizes[best] += sizes[best + 1], n--;
        memmove(symbols + best + 1, symbols + best + 2, (size_t)(n - best - 1) * sizeof *symbols);
        memmove(sizes + best + 1, sizes + best + 2, (size_t)(n - best - 1) * sizeof *sizes);
    }
    for (int k = 0; k < n; s += sizes[k++]) {
        if (symbols[k] >= 0) tokens[count++] = symbols[k];
        else if (sizes[k] == 0) tokens[count++] = 3 + ' ';
        for (int i = 0; symbols[k] < 0 && i < sizes[k]; i++) tokens[count++] = 3 + (uint8_t)s[i];
    }
    return count;
}

/* ---- texts ----------------------------------------------------------------------------------- */

static int make_text(char *s, int max)
{
    int n = 0, size = below(max), few = 1 + below(10), from = below(10);
    while (n < size) {
        const char *letter = below(12) ? letters[(from + below(few)) % 10] : " ";
        int length = (int)strlen(letter);
        if (n + length > size) break;
        memcpy(s + n, letter, (size_t)length);
        n += length;
    }
    return n;
}

static void compare(const monet_tokenizer *t, bool prefix, int max)
{
    static int32_t expected[MAX_TEXT + 1], tokens[MAX_TEXT + 1];
    char *text, all[MAX_TEXT];
    int size = make_text(all, max), count = size ? slow_encode(all, size, prefix, expected) : 0;
    size_t n = 0;
    text = (char *)malloc((size_t)size + 1); /* one byte too far is seen */
    memcpy(text + 1, all, (size_t)size);
    CHECK_EQ(monet_tokenizer_encode(t, text + 1, (size_t)size, 0, tokens, MAX_TEXT + 1, &n),
             MONET_OK);
    if (CHECK_EQ(n, count)) CHECK(!memcmp(tokens, expected, n * sizeof *tokens));
    free(text);
}

int main(void)
{
    for (int v = 0; v < VOCABULARIES; v++) {
        bool prefix = below(2);
        monet_model *model;
        make_pieces(below(2));
        model = make_model(prefix ? MONET_PREFIX_ALWAYS : MONET_PREFIX_NEVER);
        for (int k = 0; model && k < TEXTS; k++)
            compare(monet_model_tokenizer(model), prefix, k ? 60 : v % 10 ? 200 : 1200);
        monet_model_free(model);
    }
    return test_end("test_tokenizer");
}
