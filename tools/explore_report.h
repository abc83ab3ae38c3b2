/* explore_report.h: `explore report`: statistics as one HTML file that works from a disk.

   The page (explore_page.h) is a program in the file; what it shows is one JSON object in the file:

     title, model, shape        texts
     N, H, tokens, scored       numbers; scored = tokens of texts with a numeric score
     threshold, factor, floor   a score above it counts as active; the rule for domain experts
     groups                     ["layers 0-3", ...]
     labels                     [[name, tokens], ...]
     cells                      per group, packed, in the order of ids: density 2, mean 2, ratio 2,
                                best bestDigits; lift 2 and r 2, or null; labels: 2 for each, or []
     halves                     per group and axis: density 2, mean 2, labels: 2 for each
     cards                      per group: [id, tokens it is active on, mean if active, maximum,
                                means by label 2, lift, top, sample, r or null]
     vocab                      tokens that occur: text, or [name] of a control token
     text                       null, or tokens: tokenDigits each; nats: 3 each; gates: per group
                                and token: for each head, i and then j: how many 2, of half 3 and
                                gate 3
     leftOut                    sentences

   Packed numbers are digits of base 64 (the alphabet of RFC 4648), as many for each as it says
   behind it, nothing in between. Those that are not whole are on a logarithmic scale: 0 is 0, from
   1 to the largest it is 1e-8 to 100. But r > 0 is (r-2048)/2047, best > 0 is 1 + 2 * label, and
   one more for a domain expert. An example in top or sample is: score 3, label labelDigits,
   document 4 (its first 24 bits), position 5, tokens before it 1, tokens in all 1, tokens
   tokenDigits each. Bytes of a token that are no UTF-8 are \udc80 to \udcff.                    */
#ifndef TOOL_EXPLORE_REPORT_H
#define TOOL_EXPLORE_REPORT_H

#include "explore_domains.h"
#include "explore_page.h"

enum {
    PAGE_TOP = 20, PAGE_SAMPLE = 8,    /* examples of a card */
    PAGE_BEFORE = 12, PAGE_AFTER = 8,  /* tokens of context: what follows cannot change a score */
    PAGE_TEXT = 600,                   /* tokens of the text */
    PAGE_STRONGEST = 6                 /* experts of a token that get a card first */
};

static const char *const page_example =
    "When the price of bread rises, people buy less of it, and sellers who ask for too much lose "
    "their buyers. A short program can print the price of each loaf:\n"
    "for name, price in prices.items():\n    print(name, price * 1.07)\n";

typedef struct page {
    explore       *e;
    stats          s;
    domains_rule   rule;
    const char    *title, *text, *model_path;
    int64_t        cards, max_bytes;     /* cards of a group: at most; 0 = as many as fit */
    int32_t       *owner;                /* (n_groups,N*N) label of a domain expert, or -1 */
    uint8_t       *in_text;              /* (n_groups,N*N) 1 = strong in the text */
    int32_t       *number;               /* of each token: its place in `vocab`, or -1 */
    int32_t        n_used;
    tool_buffer    vocab, card;
    int            label_digits, best_digits, token_digits;
    bool           has_lift, has_r, has_labels, text_is_cut;
    explore_output out;
} page;

/* ---- report: packed numbers and strings ------------------------------------------------------ */

/* `width` digits of base 64, the highest first; what is too large becomes the largest. */
static void page_put_digits(tool_buffer *out, uint64_t value, int width)
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint64_t most = ((uint64_t)1 << 6 * width) - 1;
    char text[8];
    int k;

    if (value > most) value = most;
    for (k = width - 1; k >= 0; k--, value >>= 6) text[k] = digits[value & 63];
    tool_put(out, text, (size_t)width);
}

/* On the logarithmic scale: 1e-8 to 100; only 0 itself is 0. */
static void page_put_log(tool_buffer *out, double value, int width)
{
    const double steps = (double)(((uint64_t)1 << 6 * width) - 1);
    double v = value > 0 ? floor((log10(value) + 8) * steps / 10 + 0.5) : 0;

    if (value > 0 && v < 1) v = 1;
    page_put_digits(out, v > steps ? (uint64_t)steps : (uint64_t)v, width);
}

/* Digits that numbers up to `most` need. */
static int page_width(uint64_t most)
{
    int width = 1;

    while (most >> 6 * width != 0) width++;
    return width;
}

/* A JSON string of any bytes that also cannot end the element it stands in. */
static void page_put_string(tool_buffer *out, const char *bytes, size_t size)
{
    const unsigned char *p = (const unsigned char *)bytes;
    size_t at, n;

    tool_put(out, "\"", 1);
    for (at = 0; at < size; at += n > 0 ? n : 1) {
        n = tool_utf8(p + at, size - at);
        if (n == 0) tool_putf(out, "\\udc%02x", p[at]);
        else if (n == 1 && (p[at] < 0x20 || p[at] == 0x7F || strchr("\"\\<>&", p[at]) != NULL))
            tool_putf(out, "\\u%04x", p[at]);
        else if (n == 3 && p[at] == 0xE2 && p[at + 1] == 0x80 && (p[at + 2] & 0xFE) == 0xA8)
            tool_putf(out, "\\u202%c", p[at + 2] == 0xA8 ? '8' : '9');
        else tool_put(out, p + at, n);
    }
    tool_put(out, "\"", 1);
}

/* "key": and, before all but the first of an object, a comma. */
static void page_put_key(tool_buffer *out, const char *key)
{
    const char last = out->size > 0 ? out->data[out->size - 1] : '{';

    tool_putf(out, "%s\"%s\":", last == '{' ? "" : ",\n", key);
}

static void page_put_text(tool_buffer *out, const char *key, const char *text)
{
    page_put_key(out, key);
    page_put_string(out, text, strlen(text));
}

/* A comma between the elements of an array. */
static void page_next(tool_buffer *out)
{
    if (!out->failed && out->data[out->size - 1] != '[') tool_put(out, ",", 1);
}

/* A token by its place in the vocabulary of the report, which it enters here. */
static void page_put_token(page *p, tool_buffer *out, int32_t token)
{
    size_t size = 0;
    const char *bytes;

    if (token < 0 || token >= p->e->arch->vocab_size) token = 0;
    if (p->number[token] < 0) {
        p->number[token] = p->n_used++;
        bytes = monet_tokenizer_bytes(p->e->tokenizer, token, &size);
        if (p->number[token] > 0) tool_put(&p->vocab, ",", 1);
        if (bytes != NULL && size > 0) {
            page_put_string(&p->vocab, bytes, size);
        } else {
            tool_put(&p->vocab, "[\"", 2);
            if (token == monet_tokenizer_bos(p->e->tokenizer)) tool_putf(&p->vocab, "BOS");
            else if (monet_tokenizer_is_eos(p->e->tokenizer, token)) tool_putf(&p->vocab, "EOS");
            else tool_putf(&p->vocab, "token %d", (int)token);
            tool_put(&p->vocab, "\"]", 2);
        }
    }
    page_put_digits(out, (uint64_t)p->number[token], p->token_digits);
}

/* ---- report: maps ---------------------------------------------------------------------------- */

static size_t page_group_size(const page *p)
{
    return domains_group_size(&p->s);
}

static double page_density(const page *p, const stats_sum *sum)
{
    return p->s.n_tokens > 0 ? (double)sum->count / (double)p->s.n_tokens : 0;
}

/* Mean on the best label over that on the second. */
static void page_put_ratio(page *p, tool_buffer *out, int32_t group, size_t id)
{
    int32_t label[2];
    double mean[2];

    domains_two_best(&p->s, group, id, label, mean);
    if (label[1] < 0 || !(mean[0] > 0)) page_put_digits(out, 0, 2);
    else page_put_log(out, mean[1] > 0 ? mean[0] / mean[1] : 100, 2);
}

static void page_put_best(page *p, tool_buffer *out, int32_t group, size_t id)
{
    const bool owned = p->owner[(size_t)group * page_group_size(p) + id] >= 0;
    int32_t label[2];
    double mean[2];

    domains_two_best(&p->s, group, id, label, mean);
    page_put_digits(out, mean[0] > 0 ? 1 + 2 * (uint64_t)label[0] + (owned ? 1 : 0) : 0,
                    p->best_digits);
}

static void page_put_density(page *p, tool_buffer *out, int32_t group, size_t id)
{
    const int32_t N = p->s.N, i = (int32_t)id / N, j = (int32_t)id % N;

    page_put_log(out, page_density(p, stats_expert(&p->s, group, i, j)), 2);
}

static void page_put_mean(page *p, tool_buffer *out, int32_t group, size_t id)
{
    page_put_log(out, domains_mean(&p->s, group, id, -1), 2);
}

static void page_put_lift(page *p, tool_buffer *out, int32_t group, size_t id)
{
    const int32_t N = p->s.N;

    page_put_log(out, stats_lift(&p->s, group, (int32_t)id / N, (int32_t)id % N), 2);
}

static void page_put_r(page *p, tool_buffer *out, int32_t group, size_t id)
{
    const int32_t N = p->s.N;
    const double r = stats_pearson(&p->s, group, (int32_t)id / N, (int32_t)id % N);

    page_put_digits(out, r >= -1 ? (uint64_t)(r * 2047 + 2048.5) : 0, 2);
}

typedef void (*page_put)(page *p, tool_buffer *out, int32_t group, size_t id);

/* One number of all experts of a group; null if it is left out. */
static void page_put_map(page *p, const char *key, int32_t group, page_put put, bool present)
{
    tool_buffer *out = &p->out.text;
    size_t id;

    page_put_key(out, key);
    if (!present) {
        tool_put(out, "null", 4);
        return;
    }
    tool_put(out, "\"", 1);
    for (id = 0; id < page_group_size(p); id++) put(p, out, group, id);
    tool_put(out, "\"", 1);
}

static void page_put_label_maps(page *p, int32_t group)
{
    tool_buffer *out = &p->out.text;
    size_t k, id;

    page_put_key(out, "labels");
    tool_put(out, "[", 1);
    for (k = 0; p->has_labels && k < p->s.n_labels; k++) {
        tool_putf(out, "%s\"", k > 0 ? "," : "");
        for (id = 0; id < page_group_size(p); id++)
            page_put_log(out, domains_mean(&p->s, group, id, (int32_t)k), 2);
        tool_put(out, "\"", 1);
    }
    tool_put(out, "]", 1);
}

static void page_put_cells(page *p)
{
    tool_buffer *out = &p->out.text;
    int32_t group;

    page_put_key(out, "cells");
    tool_put(out, "[", 1);
    for (group = 0; group < p->s.n_groups; group++) {
        page_next(out);
        tool_put(out, "{", 1);
        page_put_map(p, "density", group, page_put_density, true);
        page_put_map(p, "mean", group, page_put_mean, true);
        page_put_map(p, "ratio", group, page_put_ratio, true);
        page_put_map(p, "best", group, page_put_best, true);
        page_put_map(p, "lift", group, page_put_lift, p->has_lift);
        page_put_map(p, "r", group, page_put_r, p->has_r);
        page_put_label_maps(p, group);
        tool_put(out, "}", 1);
    }
    tool_put(out, "]", 1);
}

/* Half-experts i (axis 0) or j (axis 1) of a group. */
static void page_put_half(page *p, int32_t group, int32_t axis)
{
    tool_buffer *out = &p->out.text;
    const stats *s = &p->s;
    int32_t i;
    size_t k;

    page_next(out);
    tool_putf(out, "{\"density\":\"");
    for (i = 0; i < s->N; i++) page_put_log(out, page_density(p, stats_half(s, group, axis, i)), 2);
    tool_putf(out, "\",\"mean\":\"");
    for (i = 0; i < s->N; i++) page_put_log(out, stats_half_mean(s, group, axis, i), 2);
    tool_putf(out, "\",\"labels\":[");
    for (k = 0; k < s->n_labels; k++) {
        tool_putf(out, "%s\"", k > 0 ? "," : "");
        for (i = 0; i < s->N; i++)
            page_put_log(out, stats_half_label_mean(s, group, axis, i, k), 2);
        tool_put(out, "\"", 1);
    }
    tool_putf(out, "]}");
}

static void page_put_halves(page *p)
{
    tool_buffer *out = &p->out.text;
    int32_t group;

    page_put_key(out, "halves");
    tool_put(out, "[", 1);
    for (group = 0; group < p->s.n_groups; group++) {
        page_next(out);
        tool_put(out, "[", 1);
        page_put_half(p, group, 0);
        page_put_half(p, group, 1);
        tool_put(out, "]", 1);
    }
    tool_put(out, "]", 1);
}

/* Which maps there is room for, beside cards: these may take half of the bytes. */
static void page_choose_maps(page *p)
{
    const uint64_t cells = (uint64_t)p->s.n_groups * page_group_size(p);
    const uint64_t most = (uint64_t)p->max_bytes / 2;
    uint64_t used = cells * (6 + (uint64_t)p->best_digits);

    p->has_r = p->s.n_scored > 0 && (used += 2 * cells) <= most;
    p->has_lift = (used += 2 * cells) <= most;
    p->has_labels = used + 2 * cells * p->s.n_labels <= most;
}

/* ---- report: cards --------------------------------------------------------------------------- */

typedef struct page_rank {
    int32_t id, tier;
    double  mass;
} page_rank;

static int page_rank_order(const void *a, const void *b)
{
    const page_rank *x = a, *y = b;

    if (x->tier != y->tier) return x->tier > y->tier ? -1 : 1;
    if (x->mass != y->mass) return x->mass > y->mass ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Experts of a group that were ever active: those that are strong in the text first, then domain
   experts, then the others, each by the sum of their scores. New memory; *n gets how many.      */
static page_rank *page_order(const page *p, int32_t group, size_t *n, tool_error *err)
{
    const size_t size = page_group_size(p), first = (size_t)group * size;
    page_rank *list = tool_alloc(size, sizeof *list, err);
    int32_t id;

    *n = 0;
    for (id = 0; list != NULL && id < (int32_t)size; id++) {
        const stats_sum *sum = stats_expert(&p->s, group, id / p->s.N, id % p->s.N);
        if (sum->count == 0) continue;
        list[*n].id = id;
        list[*n].tier = p->in_text[first + (size_t)id] ? 2 : p->owner[first + (size_t)id] >= 0;
        list[(*n)++].mass = sum->sum;
    }
    if (list != NULL) tool_sort(list, *n, sizeof *list, page_rank_order);
    return list;
}

static void page_put_examples(page *p, const stats_example *list, size_t n)
{
    tool_buffer *out = &p->card;
    size_t k;

    tool_putf(out, ",\"");
    for (k = 0; k < n; k++) {
        const stats_example *x = &list[k];
        const int32_t skip = x->n_before > PAGE_BEFORE ? x->n_before - PAGE_BEFORE : 0;
        const int32_t after = x->n - x->n_before - 1;
        const int32_t end = x->n - (after > PAGE_AFTER ? after - PAGE_AFTER : 0);
        int32_t t;
        page_put_log(out, (double)x->score, 3);
        page_put_digits(out, x->label, p->label_digits);
        page_put_digits(out, x->document >> 40, 4);
        page_put_digits(out, (uint64_t)x->position, 5);
        page_put_digits(out, (uint64_t)(x->n_before - skip), 1);
        page_put_digits(out, (uint64_t)(end - skip), 1);
        for (t = skip; t < end; t++) page_put_token(p, out, x->tokens[t]);
    }
    tool_put(out, "\"", 1);
}

/* One card, into p->card. */
static void page_make_card(page *p, int32_t group, int32_t id)
{
    const int32_t i = id / p->s.N, j = id % p->s.N;
    const stats_sum *sum = stats_expert(&p->s, group, i, j);
    const double lift = stats_lift(&p->s, group, i, j), r = stats_pearson(&p->s, group, i, j);
    stats_example list[PAGE_TOP];
    size_t n = stats_top(&p->s, group, i, j, list, PAGE_TOP), k;

    p->card.size = 0;
    tool_putf(&p->card, "[%d,%llu,%.4g,%.4g,\"", (int)id, (unsigned long long)sum->count,
              sum->sum / (double)sum->count, n > 0 ? (double)list[0].score : 0.0);
    for (k = 0; k < p->s.n_labels; k++)
        page_put_log(&p->card, stats_label_mean(&p->s, group, i, j, k), 2);
    tool_putf(&p->card, isfinite(lift) ? "\",%.3g" : "\",null", lift);
    page_put_examples(p, list, n);
    n = stats_sample(&p->s, group, i, j, list, PAGE_SAMPLE);
    page_put_examples(p, list, n);
    tool_putf(&p->card, isfinite(r) ? ",%.3g]" : ",null]", r);
}

static size_t page_text_size(const char *const *lines, size_t n)
{
    size_t k, size = 0;

    for (k = 0; k < n; k++) size += strlen(lines[k]);
    return size;
}

enum { PAGE_SCRIPT = sizeof explore_page_script / sizeof explore_page_script[0],
       PAGE_REST = 2000 }; /* bytes for what stands between and behind the large parts */

/* Bytes that the page will have, once what is made so far is in it. */
static uint64_t page_bytes(const page *p)
{
    return (uint64_t)p->out.text.size + p->vocab.size +
           page_text_size(explore_page_script, PAGE_SCRIPT) + PAGE_REST;
}

/* Cards of all groups; each may use its share of the bytes that are left. */
static bool page_put_cards(page *p, tool_error *err)
{
    tool_buffer *out = &p->out.text;
    int32_t group;
    size_t n, k;

    page_put_key(out, "cards");
    tool_put(out, "[", 1);
    for (group = 0; group < p->s.n_groups; group++) {
        const uint64_t start = page_bytes(p), most = (uint64_t)p->max_bytes;
        const uint64_t share = start >= most ? 0 :
                               (most - start) / (uint64_t)(p->s.n_groups - group);
        page_rank *list = page_order(p, group, &n, err);
        if (list == NULL) return false;
        page_next(out);
        tool_put(out, "[", 1);
        for (k = 0; k < n && (p->cards == 0 || k < (size_t)p->cards) && !out->failed &&
                    !explore_interrupted; k++) {
            page_make_card(p, group, list[k].id);
            if (page_bytes(p) + p->card.size + 2 > start + share) break;
            page_next(out);
            tool_put(out, p->card.data, p->card.size);
            if (k % 16 == 15) tool_put(out, "\n", 1);
        }
        tool_put(out, "]", 1);
        free(list);
    }
    tool_put(out, "]", 1);
    if (explore_interrupted) return tool_fail(err, "interrupted");
    return !p->card.failed || tool_fail(err, "out of memory");
}

/* ---- report: the text ------------------------------------------------------------------------ */

/* The gates of one axis of one head that are not 0. */
static void page_put_gates(tool_buffer *out, const monet_real *gates, const uint16_t *numbers,
                           int32_t n)
{
    int32_t k, used = 0;

    for (k = 0; k < n; k++) used += gates[numbers[k]] > 0;
    page_put_digits(out, (uint64_t)used, 2);
    for (k = 0; k < n; k++)
        if (gates[numbers[k]] > 0) {
            page_put_digits(out, numbers[k], 3);
            page_put_log(out, (double)gates[numbers[k]], 3);
        }
}

static bool page_put_routing(page *p, const monet_session *session, int32_t group, int32_t at,
                             tool_error *err)
{
    tool_buffer *out = &p->out.text;
    monet_expert strongest[PAGE_STRONGEST];
    monet_routing r;
    size_t n, k;
    int32_t h;

    if (monet_session_routing(session, at, explore_first_layer(p->e, group), &r) != MONET_OK)
        return explore_session_failed(session, err);
    page_next(out);
    tool_put(out, "\"", 1);
    for (h = 0; h < r.n_heads; h++) {
        page_put_gates(out, r.g1 + (size_t)h * (size_t)r.n_experts, r.i, r.n_i);
        page_put_gates(out, r.g2 + (size_t)h * (size_t)r.n_experts, r.j, r.n_j);
    }
    tool_put(out, "\"", 1);
    n = monet_routing_experts(&r, (float)STATS_ACTIVE, strongest, PAGE_STRONGEST);
    for (k = 0; k < n && k < PAGE_STRONGEST; k++)
        p->in_text[(size_t)group * page_group_size(p) +
                   (size_t)explore_id(p->e, strongest[k].i, strongest[k].j)] = 1;
    return true;
}

/* Of tokens[1..n-1]; tokens[0] is BOS. */
static bool page_put_tokens(page *p, const monet_session *session, const int32_t *tokens, int32_t n,
                            tool_error *err)
{
    tool_buffer *out = &p->out.text;
    int32_t t, group;

    tool_putf(out, "{\"tokens\":\"");
    for (t = 1; t < n; t++) page_put_token(p, out, tokens[t]);
    tool_putf(out, "\",\"nats\":\"");
    for (t = 1; t < n; t++)
        page_put_log(out, -monet_logprob(monet_session_logits_at(session, t - 1),
                                         p->e->arch->vocab_size, tokens[t]), 3);
    tool_putf(out, "\",\"gates\":[");
    for (group = 0; group < p->s.n_groups; group++) {
        page_next(out);
        tool_put(out, "[", 1);
        for (t = 1; t < n; t++)
            if (!page_put_routing(p, session, group, t, err)) return false;
        tool_put(out, "]", 1);
    }
    tool_putf(out, "]}");
    return true;
}

static bool page_put_text_view(page *p, const char *text, size_t size, tool_error *err)
{
    const int32_t most = p->e->arch->max_seq_len < PAGE_TEXT ? p->e->arch->max_seq_len : PAGE_TEXT;
    monet_session *session = NULL;
    size_t n = 0;
    int32_t *tokens = explore_encode(p->e, text, size, MONET_ADD_BOS, &n, err);
    bool ok = tokens != NULL;

    p->text_is_cut = n > (size_t)most;
    if (p->text_is_cut) n = (size_t)most;
    page_put_key(&p->out.text, "text");
    if (ok && n < 2) tool_put(&p->out.text, "null", 4);
    else ok = ok && explore_session(p->e, (int32_t)n, EXPLORE_ROUTING | EXPLORE_LOGITS, &session,
                                    err) &&
              (monet_session_eval(session, tokens, n) == MONET_OK ||
               explore_session_failed(session, err)) &&
              page_put_tokens(p, session, tokens, (int32_t)n, err);
    monet_session_free(session);
    free(tokens);
    return ok;
}

/* --text is the name of a file, or the text itself. */
static bool page_read_text(page *p, tool_error *err)
{
    char *data = NULL;
    size_t size = 0;
    bool ok;

    if (p->text == NULL) return page_put_text_view(p, page_example, strlen(page_example), err);
    if (access(p->text, F_OK) != 0) return page_put_text_view(p, p->text, strlen(p->text), err);
    ok = tool_read_file(p->text, EXPLORE_MAX_TEXT, &data, &size, err) &&
         page_put_text_view(p, data, size, err);
    free(data);
    return ok;
}

/* ---- report: the file ------------------------------------------------------------------------ */

static void page_put_lines(tool_buffer *out, const char *const *lines, size_t n)
{
    size_t k;

    for (k = 0; k < n; k++) tool_put(out, lines[k], strlen(lines[k]));
}

static void page_put_facts(page *p)
{
    tool_buffer *out = &p->out.text;
    const monet_arch *a = p->e->arch;
    char text[EXPLORE_NAME];
    size_t k;
    int32_t g;

    page_put_text(out, "title", p->title != NULL ? p->title : tool_base_name(p->model_path));
    page_put_text(out, "model", tool_base_name(p->model_path));
    page_put_key(out, "shape");
    tool_putf(out, "\"%d layers of %d, %d router%s of %d \\u00d7 %d experts, %d heads, %s\"",
              (int)a->n_layers, (int)a->dim, (int)p->s.n_groups, p->s.n_groups == 1 ? "" : "s",
              (int)p->s.N, (int)p->s.N, (int)p->s.H,
              a->decompose == MONET_VERTICAL ? "vertical" : "horizontal");
    tool_putf(out, ",\n\"N\":%d,\"H\":%d,\"tokens\":%llu,\"scored\":%llu,\"threshold\":%.9g,"
              "\"factor\":%.9g,\"floor\":%lld", (int)p->s.N, (int)p->s.H,
              (unsigned long long)p->s.n_tokens, (unsigned long long)p->s.n_scored, STATS_ACTIVE,
              p->rule.factor, (long long)p->rule.floor);
    tool_putf(out, ",\"labelDigits\":%d,\"bestDigits\":%d,\"tokenDigits\":%d", p->label_digits,
              p->best_digits, p->token_digits);
    page_put_key(out, "groups");
    for (g = 0; g < p->s.n_groups; g++)
        tool_putf(out, "%s\"%s\"", g > 0 ? "," : "[", explore_layers(p->e, text, g));
    tool_put(out, "]", 1);
    page_put_key(out, "labels");
    tool_put(out, "[", 1);
    for (k = 0; k < p->s.n_labels; k++) {
        page_next(out);
        tool_put(out, "[", 1);
        page_put_string(out, p->s.labels[k].name, strlen(p->s.labels[k].name));
        tool_putf(out, ",%llu]", (unsigned long long)p->s.labels[k].n_tokens);
    }
    tool_put(out, "]", 1);
}

static void page_put_left_out(page *p)
{
    tool_buffer *out = &p->out.text;

    page_put_key(out, "leftOut");
    tool_put(out, "[", 1);
    tool_putf(out, "\"A card shows %d top tokens and a sample of %d, with %d tokens before and %d "
              "behind: those behind cannot change a score.\"", PAGE_TOP, PAGE_SAMPLE, PAGE_BEFORE,
              PAGE_AFTER);
    tool_putf(out, ",\"Which experts got a card: those that are strong in the text, then domain "
              "experts, then the others, by the sum of their scores.\"");
    if (!p->has_labels)
        tool_putf(out, ",\"Maps of single labels: more bytes than --max-bytes leaves.\"");
    if (!p->has_lift) tool_putf(out, ",\"The map of lift: the same.\"");
    if (p->text_is_cut)
        tool_putf(out, ",\"The text was longer; it was cut after so many tokens as fit.\"");
    tool_put(out, "]", 1);
}

static bool page_put_data(page *p, tool_error *err)
{
    tool_buffer *out = &p->out.text;

    tool_put(out, "{", 1);
    page_put_facts(p);
    page_put_cells(p);
    page_put_halves(p);
    if (!page_read_text(p, err)) return false;
    page_put_left_out(p);
    if (!page_put_cards(p, err)) return false;
    page_put_key(out, "vocab");
    tool_put(out, "[", 1);
    tool_put(out, p->vocab.data, p->vocab.size);
    tool_putf(out, "]}");
    return true;
}

/* The policy of the page forbids every request: not even a picture can be loaded. */
static bool page_put_all(page *p, tool_error *err)
{
    tool_buffer *out = &p->out.text;

    tool_putf(out, "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    tool_putf(out, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    tool_putf(out, "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
              "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n");
    tool_putf(out, "<title>Experts</title>\n<style>\n");
    page_put_lines(out, explore_page_style,
                   sizeof explore_page_style / sizeof explore_page_style[0]);
    tool_putf(out, "</style>\n");
    page_put_lines(out, explore_page_body, sizeof explore_page_body / sizeof explore_page_body[0]);
    tool_putf(out, "<script type=\"application/json\" id=\"data\">");
    if (!page_put_data(p, err)) return false;
    tool_putf(out, "</script>\n<script>\n");
    page_put_lines(out, explore_page_script, PAGE_SCRIPT);
    tool_putf(out, "</script>\n</html>\n");
    if (out->failed) return tool_fail(err, "out of memory");
    return out->size <= (uint64_t)p->max_bytes ||
           tool_fail(err, "--max-bytes: maps, text and page alone take %llu bytes",
                     (unsigned long long)out->size);
}

/* Memory for what is looked up by expert or token. */
static bool page_begin(page *p, tool_error *err)
{
    const size_t n = (size_t)p->s.n_groups * page_group_size(p);
    int32_t k;
    size_t at;

    p->label_digits = page_width(p->s.n_labels);
    p->best_digits = page_width(2 * (uint64_t)p->s.n_labels);
    p->token_digits = page_width((uint64_t)p->e->arch->vocab_size);
    p->in_text = tool_alloc(n, 1, err);
    p->number = tool_alloc((uint64_t)p->e->arch->vocab_size, sizeof *p->number, err);
    p->owner = p->s.n_labels > 1 ? domains_find(&p->s, &p->rule, err)
                                 : tool_alloc(n, sizeof *p->owner, err);
    if (p->in_text == NULL || p->number == NULL || p->owner == NULL) return false;
    for (k = 0; k < p->e->arch->vocab_size; k++) p->number[k] = -1;
    for (at = 0; p->s.n_labels < 2 && at < n; at++) p->owner[at] = -1;
    page_choose_maps(p);
    return true;
}

static bool page_run(page *p, const char **files, tool_error *err)
{
    bool ok = explore_open(p->e, files[0], err) &&
              stats_load(&p->s, p->e->model, files[1], err) && page_begin(p, err) &&
              explore_output_open(p->e, &p->out, err);

    p->model_path = files[0];
    if (ok) ok = explore_output_close(p->e, &p->out, page_put_all(p, err), err);
    free(p->owner);
    free(p->in_text);
    free(p->number);
    tool_buffer_free(&p->vocab);
    tool_buffer_free(&p->card);
    stats_free(&p->s);
    explore_close(p->e);
    return ok;
}

static TOOL_UNUSED int explore_report(explore *e, int argc, char **argv)
{
    static const explore_command about = {"report", "MODEL STATS",
        "One HTML file to look at the experts with, in any browser and without a network:\n"
        "search, cards with top tokens, the N x N map of each group, labels, a text.",
        "  explore stats M.monet texts --out M.stats\n"
        "  explore report M.monet M.stats --out report.html --text \"The price of bread\""};
    const char *files[2];
    size_t n_files;
    int status;
    tool_error err = {{0}};
    page p;
    const run_option options[] = {
        {"text", RUN_TEXT, (void *)&p.text, 0, 0, "TEXT", "a file, or the text to show token by "
         "token"},
        {"title", RUN_TEXT, (void *)&p.title, 0, 0, "TEXT", "title (default: the model's file)"},
        {"experts", RUN_WHOLE, &p.cards, 1, INT32_MAX, "N",
         "cards of each group (default: all that fit)"},
        {"max-bytes", RUN_WHOLE, &p.max_bytes, 1 << 16, INT32_MAX, "N",
         "size of the file (default: 18000000)"},
        EXPLORE_OUT(e), EXPLORE_OPTIONS(e)};

    memset(&p, 0, sizeof p);
    p.e = e;
    p.rule.factor = 2;
    p.rule.floor = 10;
    p.max_bytes = 18000000;
    if (!explore_arguments(e, &about, options, sizeof options / sizeof options[0], argc, argv,
                           files, 2, 2, &n_files, &status)) return status;
    return explore_end(e, about.name, page_run(&p, files, &err), &err);
}

#endif /* TOOL_EXPLORE_REPORT_H */
