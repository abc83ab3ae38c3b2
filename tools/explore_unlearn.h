/* explore_unlearn.h: `explore unlearn`: what removing experts does to texts that were not used to
   choose them, beside what removing as many random experts does.

   Loss: the texts are cut into windows (texts.h), each evaluated on its own from position 0, and
   all tokens of a window but its first are scored. Bits per byte: nats / ln 2 / bytes, where the
   bytes are those that the scored tokens decode to, as in tools/eval.c. The nats of a window are
   computed by one thread and added in the order of the windows: the number of threads changes
   nothing.

   Masks: the experts of each label (explore_domains.h); or those whose score correlates with the
   numeric score of the texts, or with a label, by at least a threshold; or an edit from a file.
   Baselines for each mask, `draws` times each, drawn in each group from the experts that are active
   on `floor` tokens (those that the rule chose from; the mask's own may be among them):
     number    as many experts as the mask has in the group
     mass      experts whose mean scores (over all tokens) add up to those of the mask
     own-mass  the same for the mean scores on the mask's own label: as much as the mask takes from
               the texts that it is meant to hurt (only with --own-mass)
   A draw is a function of the seed, the mask's name, the kind, the number of the draw.

   --csv keeps a line for each run and label, rewritten after each run. A run is known by a hash of
   the model, the way it is run, the tokens and the experts removed, so --resume takes from it what
   is still true and computes the rest.                                                          */
#ifndef TOOL_EXPLORE_UNLEARN_H
#define TOOL_EXPLORE_UNLEARN_H

#include "corpus.h" /* corpus_random */
#include "explore_domains.h"
#include "texts.h"

#include <pthread.h>

enum { UNLEARN_FILES = 4096, UNLEARN_THRESHOLDS = 16 };

typedef enum unlearn_kind {
    UNLEARN_PLAIN, UNLEARN_MASK, UNLEARN_NUMBER, UNLEARN_MASS, UNLEARN_OWN_MASS, UNLEARN_KINDS
} unlearn_kind;

static const char *const unlearn_kinds[] = {"plain", "mask", "number", "mass", "own-mass"};

typedef struct unlearn_mask {
    char        name[96];
    int32_t     label;   /* that it should hurt, of the statistics; -1 = none */
    int32_t     own;     /* the same of the texts that are measured; -1 = none */
    uint8_t    *member;  /* (n_groups, N*N); 1 = removed */
    monet_edit *edit;    /* from a file: it may do other things; NULL = remove the members */
    int64_t     experts; /* removed */
} unlearn_mask;

typedef struct unlearn_run {
    size_t       mask;
    unlearn_kind kind;
    int32_t      draw;    /* from 1; 0 = not drawn */
    uint64_t     key;
    int64_t      experts;
    double       percent; /* of the routing mass; of the own label's for OWN_MASS */
    double      *nats;    /* of each label; NULL = not measured yet */
} unlearn_run;

typedef struct unlearn_window {
    size_t  at; /* of the tokens */
    int32_t n;
    int32_t label;
    double  nats;
} unlearn_window;

typedef struct unlearn_label { /* what is measured */
    char    *name;
    uint64_t tokens, bytes; /* scored */
} unlearn_label;

typedef struct unlearn {
    explore        *e;
    stats           s;
    domains_rule    rule;
    const char     *match, *csv, *jsonl, *edit, *label, *correlation, *permute;
    int64_t         size, max_windows, draws, seed; /* size of a window */
    bool            own_mass, resume;
    int32_t        *tokens;
    size_t          n_tokens, tokens_room;
    unlearn_window *windows;
    size_t          n_windows, windows_room;
    unlearn_label  *labels;
    size_t          n_labels;
    unlearn_mask   *masks;
    size_t          n_masks, masks_room;
    unlearn_run    *runs; /* the first one is plain */
    size_t          n_runs;
    uint64_t        base; /* hash of the model, the way it is run, and the tokens */
    uint8_t        *member; /* of the run at hand */
    uint32_t       *order;  /* (N*N) */
    double          thresholds[UNLEARN_THRESHOLDS];
    size_t          n_thresholds;
    tool_progress   progress;
    size_t          done;   /* windows evaluated */
} unlearn;

/* ---- unlearn: texts -------------------------------------------------------------------------- */

/* Bytes of tokens[1..n-1], as tools/eval.c counts them. */
static bool unlearn__bytes(const unlearn *u, const int32_t *tokens, int32_t n, uint64_t *bytes,
                           tool_error *err)
{
    size_t all = 0, first = 0;
    monet_result result =
        monet_tokenizer_decode(u->e->tokenizer, tokens, (size_t)n, NULL, 0, &all);

    if (result != MONET_OK && result != MONET_ERROR_CAPACITY)
        return tool_fail(err, "a token is not in the tokenizer");
    monet_tokenizer_decode(u->e->tokenizer, tokens, 1, NULL, 0, &first);
    *bytes += all - first;
    return true;
}

static bool unlearn__add_window(unlearn *u, const text_window *w, tool_error *err)
{
    unlearn_label *label = &u->labels[w->label];
    unlearn_window *window;

    if (!tool_grow(&u->windows, &u->windows_room, u->n_windows + 1, sizeof *window, err) ||
        !tool_grow(&u->tokens, &u->tokens_room, u->n_tokens + (size_t)w->n, sizeof *u->tokens, err))
        return false;
    window = &u->windows[u->n_windows++];
    window->at = u->n_tokens;
    window->n = w->n;
    window->label = (int32_t)w->label;
    memcpy(u->tokens + u->n_tokens, w->tokens, (size_t)w->n * sizeof *w->tokens);
    u->n_tokens += (size_t)w->n;
    label->tokens += (uint64_t)w->n - 1;
    return unlearn__bytes(u, w->tokens, w->n, &label->bytes, err);
}

static bool unlearn__take_labels(unlearn *u, const texts *t, tool_error *err)
{
    size_t k;

    u->labels = tool_alloc(t->n_labels, sizeof *u->labels, err);
    for (k = 0; u->labels != NULL && k < t->n_labels; k++, u->n_labels++) {
        u->labels[k].name = tool_copy(t->labels[k], strlen(t->labels[k]), err);
        if (u->labels[k].name == NULL) return false;
    }
    return u->labels != NULL;
}

/* All windows of all texts are kept: 4 bytes a token. */
static bool unlearn__read(unlearn *u, const texts_config *config, tool_error *err)
{
    text_window w;
    texts t;
    size_t k;
    bool ok = texts_open(&t, config, err);

    if (!ok) return false;
    ok = unlearn__take_labels(u, &t, err);
    for (w.n = 1; ok && w.n > 0;) {
        ok = texts_next(&t, &w, err);
        if (ok && w.n > 1) ok = unlearn__add_window(u, &w, err);
    }
    texts_close(&t);
    for (k = 0; ok && k < u->n_labels; k++)
        if (u->labels[k].bytes == 0)
            ok = tool_fail(err, "label '%.60s' has no bytes to score", u->labels[k].name);
    return ok && (u->n_windows > 0 || tool_fail(err, "the texts hold nothing to score"));
}

/* ---- unlearn: masks -------------------------------------------------------------------------- */

static size_t unlearn__members(const unlearn *u)
{
    return (size_t)u->s.n_groups * domains_group_size(&u->s);
}

static void unlearn__count(unlearn *u, unlearn_mask *m)
{
    int32_t group;

    m->experts = 0;
    for (group = 0; group < u->s.n_groups; group++)
        m->experts += domains_count(&u->s, group, m->member);
}

/* A new mask without members. `label`: which of the statistics it should hurt, or -1. */
static unlearn_mask *unlearn__new_mask(unlearn *u, int32_t label, tool_error *err)
{
    unlearn_mask *m;
    size_t k;

    if (!tool_grow(&u->masks, &u->masks_room, u->n_masks + 1, sizeof *m, err)) return NULL;
    m = &u->masks[u->n_masks];
    memset(m, 0, sizeof *m);
    m->member = tool_alloc(unlearn__members(u), 1, err);
    if (m->member == NULL) return NULL;
    u->n_masks++;
    m->label = label;
    m->own = -1;
    for (k = 0; label >= 0 && k < u->n_labels; k++)
        if (strcmp(u->labels[k].name, u->s.labels[label].name) == 0) m->own = (int32_t)k;
    return m;
}

static bool unlearn__wanted(const unlearn *u, int32_t label)
{
    return u->label == NULL || strcmp(u->label, u->s.labels[label].name) == 0;
}

static bool unlearn__masks_by_rule(unlearn *u, tool_error *err)
{
    int32_t *owner, label;
    unlearn_mask *m;
    bool ok = domains_check_rule(&u->rule, &u->s, err);

    owner = ok ? domains_find(&u->s, &u->rule, err) : NULL;
    ok = owner != NULL;
    for (label = 0; ok && label < (int32_t)u->s.n_labels; label++) {
        if (!unlearn__wanted(u, label)) continue;
        m = unlearn__new_mask(u, label, err);
        ok = m != NULL;
        if (!ok) break;
        snprintf(m->name, sizeof m->name, "%.95s", u->s.labels[label].name);
        domains_mask(&u->s, owner, label, m->member);
        unlearn__count(u, m);
    }
    free(owner);
    return ok;
}

/* Pearson's r of an expert's score with the indicator of a label, or (-1) with the texts' score. */
static double unlearn__r(const stats *s, int32_t group, size_t id, int32_t label)
{
    const int32_t i = (int32_t)(id / (size_t)s->N), j = (int32_t)(id % (size_t)s->N);

    if (label < 0) return stats_pearson(s, group, i, j);
    return stats_label_pearson(s, group, i, j, (size_t)label);
}

static bool unlearn__mask_by_r(unlearn *u, int32_t label, double threshold, tool_error *err)
{
    const size_t size = domains_group_size(&u->s);
    unlearn_mask *m = unlearn__new_mask(u, label, err);
    int32_t group;
    size_t id;

    if (m == NULL) return false;
    if (label < 0) snprintf(m->name, sizeof m->name, "r>=%g", threshold);
    else snprintf(m->name, sizeof m->name, "%.60s r>=%g", u->s.labels[label].name, threshold);
    for (group = 0; group < u->s.n_groups; group++)
        for (id = 0; id < size; id++) /* NaN, of an expert that is never used, is not >= */
            m->member[(size_t)group * size + id] =
                unlearn__r(&u->s, group, id, label) >= threshold;
    unlearn__count(u, m);
    return true;
}

/* --correlation 0.2,0.1: with the texts' own scores if the statistics have them, else the labels. */
static bool unlearn__masks_by_r(unlearn *u, tool_error *err)
{
    const int32_t first = u->s.n_scored > 0 ? -1 : 0;
    const int32_t end = first < 0 ? 0 : (int32_t)u->s.n_labels;
    const char *text = u->correlation;
    int32_t label;
    size_t k;
    bool ok = true;

    do {
        if (u->n_thresholds == UNLEARN_THRESHOLDS)
            return tool_fail(err, "--correlation: at most %d thresholds", UNLEARN_THRESHOLDS);
        if (!domains_number(&text, "correlation", -1, 1, &u->thresholds[u->n_thresholds++], err))
            return false;
    } while (*text++ == ',');
    if (text[-1] != '\0')
        return tool_fail(err, "--correlation: '%.60s' follows a number", text - 1);
    for (label = first; ok && label < end; label++)
        for (k = 0; ok && k < u->n_thresholds; k++)
            if (label < 0 || unlearn__wanted(u, label))
                ok = unlearn__mask_by_r(u, label, u->thresholds[k], err);
    return ok;
}

/* Whether the edit removes this expert in all layers of its group. */
static bool unlearn__removes(const unlearn *u, const monet_edit *edit, int32_t group, int32_t i,
                             int32_t j)
{
    const int32_t last = explore_last_layer(u->e, group);
    float factor = 1, amount = 0;
    int32_t layer;

    for (layer = explore_first_layer(u->e, group); layer <= last; layer++)
        if (monet_edit_get(edit, layer, i, j, &factor, &amount) != MONET_OK || factor != 0 ||
            amount != 0) return false;
    return true;
}

/* Members are the experts that it removes; what else it does is measured, but has no baseline. */
static bool unlearn__mask_of_edit(unlearn *u, tool_error *err)
{
    const size_t size = domains_group_size(&u->s);
    monet_error why = {{0}, MONET_OK};
    unlearn_mask *m;
    int32_t group, k, label = -1;
    size_t id;

    for (k = 0; u->label != NULL && k < (int32_t)u->s.n_labels; k++)
        if (unlearn__wanted(u, k)) label = k;
    m = unlearn__new_mask(u, label, err);
    if (m == NULL) return false;
    if (monet_edit_load(u->e->model, u->edit, &m->edit, &why) != MONET_OK)
        return tool_fail(err, "%s", why.message);
    snprintf(m->name, sizeof m->name, "%.90s", monet_edit_name(m->edit));
    for (group = 0; group < u->s.n_groups; group++)
        for (id = 0; id < size; id++)
            m->member[(size_t)group * size + id] = unlearn__removes(
                u, m->edit, group, (int32_t)(id / (size_t)u->s.N), (int32_t)(id % (size_t)u->s.N));
    unlearn__count(u, m);
    return true;
}

static bool unlearn__make_masks(unlearn *u, tool_error *err)
{
    bool ok = u->edit != NULL ? unlearn__mask_of_edit(u, err) :
              u->correlation != NULL ? unlearn__masks_by_r(u, err) : unlearn__masks_by_rule(u, err);

    if (ok && u->n_masks == 0)
        return tool_fail(err, "the statistics have no label '%.60s'", u->label);
    return ok;
}

/* ---- unlearn: random masks ------------------------------------------------------------------- */

/* The experts that may be drawn, in random order, into u->order. All, if they are fewer than n. */
static size_t unlearn__shuffle(const unlearn *u, int32_t group, int64_t n, uint64_t seed)
{
    const size_t size = domains_group_size(&u->s);
    uint64_t floor = (uint64_t)u->rule.floor;
    size_t id, k, count = 0;

    for (id = 0; id < size; id++)
        if (domains_active(&u->s, group, id) >= floor) u->order[count++] = (uint32_t)id;
    for (id = 0; count < (size_t)n && id < size; id++)
        if (domains_active(&u->s, group, id) < floor) u->order[count++] = (uint32_t)id;
    for (k = count; k > 1; k--) { /* the remainder's bias is below 2^-40 */
        const size_t other = (size_t)(corpus_random(seed, (uint64_t)group, k) % k);
        const uint32_t x = u->order[other];
        u->order[other] = u->order[k - 1];
        u->order[k - 1] = x;
    }
    return count;
}

/* Experts in random order, those left out that are too heavy for what is still missing. */
static void unlearn__draw_mass(const unlearn *u, int32_t group, size_t count, double mass,
                               int32_t label, uint8_t *member)
{
    double left = mass;
    size_t k;

    for (k = 0; k < count; k++) {
        const double m = domains_mean(&u->s, group, u->order[k], label);
        if (m <= 0 || m > left) continue;
        member[u->order[k]] = 1;
        left -= m;
    }
}

/* The mask of a run, into u->member. */
static void unlearn__draw(const unlearn *u, const unlearn_run *run)
{
    const size_t size = domains_group_size(&u->s);
    const unlearn_mask *m = run->kind == UNLEARN_PLAIN ? NULL : &u->masks[run->mask];
    const int32_t label = run->kind == UNLEARN_OWN_MASS ? m->label : -1;
    const uint64_t seed = m == NULL ? 0 : corpus_random((uint64_t)u->seed,
        tool_hash(m->name, strlen(m->name)), (uint64_t)run->kind << 32 | (uint32_t)run->draw);
    int32_t group;
    int64_t k;

    memset(u->member, 0, unlearn__members(u));
    if (run->kind == UNLEARN_MASK) memcpy(u->member, m->member, unlearn__members(u));
    for (group = 0; run->kind > UNLEARN_MASK && group < u->s.n_groups; group++) {
        const int64_t n = domains_count(&u->s, group, m->member);
        const size_t count = unlearn__shuffle(u, group, n, seed);
        uint8_t *member = u->member + (size_t)group * size;
        if (run->kind != UNLEARN_NUMBER)
            unlearn__draw_mass(u, group, count, domains_mass(&u->s, group, m->member, label),
                               label, member);
        else
            for (k = 0; k < n; k++) member[u->order[k]] = 1;
    }
}

/* ---- unlearn: the list of runs --------------------------------------------------------------- */

static uint64_t unlearn__mix(uint64_t hash, const void *bytes, size_t size)
{
    return corpus_random(hash, tool_hash(bytes, size), size);
}

/* Of all that decides what comes out, but for what is removed. */
static uint64_t unlearn__base(const unlearn *u)
{
    const char *kernels = monet_kernels_name(u->e->kernels);
    const int32_t fast = u->e->mode == MONET_FAST;
    uint64_t hash = unlearn__mix(1, kernels, strlen(kernels));
    size_t k;

    hash = unlearn__mix(hash, &fast, sizeof fast);
    for (k = 0; k < monet_model_tensor_count(u->e->model); k++) {
        const monet_tensor *t = monet_model_tensor(u->e->model, k);
        hash = unlearn__mix(hash, t->name, strlen(t->name));
        hash = corpus_random(hash, t->hash, 0);
    }
    for (k = 0; k < u->n_windows; k++) {
        const unlearn_window *w = &u->windows[k];
        hash = unlearn__mix(hash, u->tokens + w->at, (size_t)w->n * sizeof *u->tokens);
        hash = corpus_random(hash, (uint64_t)w->label, 0);
    }
    return hash;
}

/* What a run is known by: runs with equal keys give equal numbers. */
static bool unlearn__key(unlearn *u, unlearn_run *run, tool_error *err)
{
    const monet_edit *edit = run->kind == UNLEARN_MASK ? u->masks[run->mask].edit : NULL;
    size_t size = 0;
    char *text;

    if (edit == NULL) {
        run->key = unlearn__mix(u->base, u->member, unlearn__members(u));
        return true;
    }
    monet_edit_text(edit, NULL, 0, &size);
    text = tool_alloc((uint64_t)size + 1, 1, err);
    if (text == NULL) return false;
    monet_edit_text(edit, text, size, &size);
    run->key = unlearn__mix(u->base, text, size);
    free(text);
    return true;
}

static bool unlearn__add_run(unlearn *u, size_t mask, unlearn_kind kind, int32_t draw,
                             tool_error *err)
{
    unlearn_run *run = &u->runs[u->n_runs++];
    int32_t group;

    run->mask = mask;
    run->kind = kind;
    run->draw = draw;
    unlearn__draw(u, run);
    for (group = 0; group < u->s.n_groups; group++)
        run->experts += domains_count(&u->s, group, u->member);
    run->percent = domains_percent(&u->s, u->member,
                                   kind == UNLEARN_OWN_MASS ? u->masks[mask].label : -1);
    return unlearn__key(u, run, err);
}

/* Masks first, then the first draw of all, and so on: whoever stops early has a whole table. */
static bool unlearn__list(unlearn *u, tool_error *err)
{
    const size_t most = 1 + u->n_masks * (1 + (size_t)u->draws * (UNLEARN_KINDS - UNLEARN_NUMBER));
    int32_t draw, kind;
    size_t mask;
    bool ok;

    u->base = unlearn__base(u);
    u->member = tool_alloc(unlearn__members(u), 1, err);
    u->order = tool_alloc(domains_group_size(&u->s), sizeof *u->order, err);
    u->runs = tool_alloc(most, sizeof *u->runs, err);
    ok = u->member != NULL && u->order != NULL && u->runs != NULL &&
         unlearn__add_run(u, 0, UNLEARN_PLAIN, 0, err);
    for (mask = 0; ok && mask < u->n_masks; mask++)
        ok = unlearn__add_run(u, mask, UNLEARN_MASK, 0, err);
    for (draw = 1; draw <= u->draws; draw++)
        for (mask = 0; mask < u->n_masks; mask++)
            for (kind = UNLEARN_NUMBER; ok && kind < UNLEARN_KINDS; kind++)
                if (kind != UNLEARN_OWN_MASS || (u->own_mass && u->masks[mask].label >= 0))
                    ok = unlearn__add_run(u, mask, (unlearn_kind)kind, draw, err);
    return ok;
}

/* ---- unlearn: the results file --------------------------------------------------------------- */

/* What a run did to a label, in bits per byte. NaN = not known yet. */
static double unlearn__change(const unlearn *u, const unlearn_run *run, size_t label)
{
    const unlearn_run *plain = &u->runs[0];

    if (run->nats == NULL || plain->nats == NULL) return NAN;
    return (run->nats[label] - plain->nats[label]) / log(2.0) / (double)u->labels[label].bytes;
}

static uint64_t unlearn__line_key(const unlearn_run *run, size_t label)
{
    return corpus_random(run->key, label, 0);
}

static void unlearn__put_lines(const unlearn *u, tool_buffer *csv, const unlearn_run *run)
{
    const char *name = run->kind == UNLEARN_PLAIN ? "" : u->masks[run->mask].name;
    size_t k;

    for (k = 0; k < u->n_labels; k++) {
        const unlearn_label *label = &u->labels[k];
        tool_putf(csv, "%016llx,%.17g,%llu,%llu,%.6f,%.6f,%s,%d,%lld,%lld,%.6f,",
                  (unsigned long long)unlearn__line_key(run, k), run->nats[k],
                  (unsigned long long)label->tokens, (unsigned long long)label->bytes,
                  run->nats[k] / log(2.0) / (double)label->bytes, unlearn__change(u, run, k),
                  unlearn_kinds[run->kind], (int)run->draw, (long long)u->seed,
                  (long long)run->experts, run->percent);
        explore_put_csv(csv, name, strlen(name));
        tool_put(csv, ",", 1);
        explore_put_csv(csv, label->name, strlen(label->name));
        tool_put(csv, "\n", 1);
    }
}

/* All runs that are done. */
static bool unlearn__save(const unlearn *u, tool_error *err)
{
    tool_buffer csv = {NULL, 0, 0, false};
    size_t k;
    bool ok;

    if (u->csv == NULL) return true;
    tool_putf(&csv, "key,nats,tokens,bytes,bits_per_byte,change,kind,draw,seed,experts,"
                    "mass_percent,masked,measured\n");
    for (k = 0; k < u->n_runs; k++)
        if (u->runs[k].nats != NULL) unlearn__put_lines(u, &csv, &u->runs[k]);
    ok = domains_write(u->csv, &csv, err);
    tool_buffer_free(&csv);
    return ok;
}

/* The nats of a run from the lines of an older file; false: not all of them are there. */
static bool unlearn__find(const unlearn *u, const unlearn_run *run, const char *text, double *nats)
{
    char wanted[32];
    size_t k;

    for (k = 0; k < u->n_labels; k++) {
        const char *line;
        char *end;
        snprintf(wanted, sizeof wanted, "\n%016llx,",
                 (unsigned long long)unlearn__line_key(run, k));
        line = strstr(text, wanted);
        if (line == NULL) return false;
        nats[k] = strtod(line + strlen(wanted), &end);
        if (*end != ',' || !(nats[k] >= 0 && nats[k] < 1e18)) return false;
    }
    return true;
}

static bool unlearn__load(unlearn *u, tool_error *err)
{
    char *text;
    size_t size, k;
    bool ok = true;

    if (u->csv == NULL || !u->resume || access(u->csv, F_OK) != 0) return true;
    if (!tool_read_file(u->csv, EXPLORE_MAX_TEXT, &text, &size, err)) return false;
    for (k = 0; ok && k < u->n_runs; k++) {
        double *nats = tool_alloc(u->n_labels, sizeof *nats, err);
        ok = nats != NULL;
        if (ok && unlearn__find(u, &u->runs[k], text, nats)) u->runs[k].nats = nats;
        else free(nats);
    }
    free(text);
    return ok;
}

/* ---- unlearn: measuring ---------------------------------------------------------------------- */

typedef struct unlearn_crew { /* the threads that take windows */
    unlearn         *u;
    pthread_mutex_t  lock;
    size_t           next;   /* window */
    bool             failed;
    tool_error       err;
} unlearn_crew;

typedef struct unlearn_worker {
    unlearn_crew  *crew;
    monet_session *session; /* of one thread */
    pthread_t      thread;
} unlearn_worker;

static bool unlearn__window(const unlearn *u, monet_session *session, unlearn_window *w)
{
    const int32_t *tokens = u->tokens + w->at;
    int32_t k;

    if (monet_session_rewind(session, 0) != MONET_OK ||
        monet_session_eval(session, tokens, (size_t)w->n - 1) != MONET_OK) return false;
    for (w->nats = 0, k = 0; k < w->n - 1; k++)
        w->nats -= monet_logprob(monet_session_logits_at(session, k), u->e->arch->vocab_size,
                                 tokens[k + 1]);
    return true;
}

static void *unlearn__work(void *user)
{
    unlearn_worker *worker = user;
    unlearn_crew *crew = worker->crew;
    unlearn *u = crew->u;
    bool ok = true;

    for (;;) {
        size_t k;
        pthread_mutex_lock(&crew->lock);
        if (!ok && !crew->failed) explore_session_failed(worker->session, &crew->err);
        crew->failed = crew->failed || !ok;
        k = crew->failed || explore_interrupted ? u->n_windows : crew->next;
        crew->next += k < u->n_windows;
        if (k < u->n_windows) tool_progress_update(&u->progress, u->done++);
        pthread_mutex_unlock(&crew->lock);
        if (k >= u->n_windows) return NULL;
        ok = unlearn__window(u, worker->session, &u->windows[k]);
    }
}

/* All windows, with the edit, into u->windows. False after Ctrl-C too. */
static bool unlearn__pass(unlearn_crew *crew, unlearn_worker *workers, size_t n,
                          const monet_edit *edit, tool_error *err)
{
    size_t k, started;

    crew->next = 0;
    for (k = 0; k < n; k++)
        if (monet_session_set_edit(workers[k].session, edit) != MONET_OK)
            return explore_session_failed(workers[k].session, err);
    for (started = 1; started < n; started++)
        if (pthread_create(&workers[started].thread, NULL, unlearn__work, &workers[started]) != 0)
            break; /* the others do its share */
    unlearn__work(&workers[0]);
    for (k = 1; k < started; k++) pthread_join(workers[k].thread, NULL);
    for (k = 0; k < n; k++) monet_session_set_edit(workers[k].session, NULL);
    if (crew->failed) return tool_fail(err, "%s", crew->err.message);
    return !explore_interrupted || tool_fail(err, "interrupted");
}

/* Takes the numbers of an earlier run that removed the same. */
static bool unlearn__copy(const unlearn *u, unlearn_run *run)
{
    const unlearn_run *other = u->runs;

    for (; other < run; other++)
        if (other->key == run->key && other->nats != NULL) {
            memcpy(run->nats, other->nats, u->n_labels * sizeof *run->nats);
            return true;
        }
    return false;
}

static bool unlearn__measure(unlearn_crew *crew, unlearn_worker *workers, size_t n,
                             unlearn_run *run, tool_error *err)
{
    unlearn *u = crew->u;
    const unlearn_mask *m = run->kind == UNLEARN_PLAIN ? NULL : &u->masks[run->mask];
    monet_edit *edit = NULL;
    size_t k;
    bool ok = true;

    run->nats = tool_alloc(u->n_labels, sizeof *run->nats, err);
    if (run->nats == NULL) return false;
    if (unlearn__copy(u, run)) {
        u->done += u->n_windows;
    } else {
        unlearn__draw(u, run);
        ok = domains_edit(u->e, &u->s, "mask", u->member, &edit, err) &&
             unlearn__pass(crew, workers, n,
                           m != NULL && run->kind == UNLEARN_MASK && m->edit ? m->edit : edit, err);
        for (k = 0; k < u->n_windows; k++)
            run->nats[u->windows[k].label] += u->windows[k].nats;
    }
    monet_edit_free(edit);
    ok = ok && unlearn__save(u, err);
    if (!ok) {
        free(run->nats);
        run->nats = NULL;
    }
    return ok;
}

/* One session of one thread for each processor: a window is too small to be shared out. */
static bool unlearn__start(unlearn_crew *crew, unlearn_worker *workers, size_t n, tool_error *err)
{
    explore one = *crew->u->e;
    int32_t longest = 2;
    size_t k;

    for (k = 0; k < crew->u->n_windows; k++)
        if (crew->u->windows[k].n > longest) longest = crew->u->windows[k].n;
    one.threads = 1;
    for (k = 0; k < n; k++) {
        workers[k].crew = crew;
        if (!explore_session(&one, longest - 1, EXPLORE_LOGITS, &workers[k].session, err))
            return false;
    }
    return true;
}

/* All runs that are not there yet. */
static bool unlearn__measure_all(unlearn *u, tool_error *err)
{
    const size_t n = (size_t)u->e->threads;
    unlearn_worker *workers = tool_alloc(n, sizeof *workers, err);
    unlearn_crew crew;
    size_t k, missing = 0;
    bool ok;

    memset(&crew, 0, sizeof crew);
    crew.u = u;
    pthread_mutex_init(&crew.lock, NULL);
    for (k = 0; k < u->n_runs; k++) missing += u->runs[k].nats == NULL;
    tool_progress_begin(&u->progress, "measuring", "windows", missing * u->n_windows);
    if (u->e->quiet) u->progress.last = 1e300; /* the next line is never due */
    ok = workers != NULL && unlearn__start(&crew, workers, n, err);
    for (k = 0; ok && k < u->n_runs; k++)
        if (u->runs[k].nats == NULL) ok = unlearn__measure(&crew, workers, n, &u->runs[k], err);
    tool_progress_end(&u->progress);
    for (k = 0; workers != NULL && k < n; k++) monet_session_free(workers[k].session);
    free(workers);
    pthread_mutex_destroy(&crew.lock);
    return ok;
}

/* ---- unlearn: tables ------------------------------------------------------------------------- */

typedef struct unlearn_sum { /* over the draws of one kind, or of the one mask */
    int    n, below;                      /* how many; that hurt the own label less than the mask */
    double experts, percent;              /* means */
    double own, others, own_sd, others_sd; /* mean rises and their standard deviations */
} unlearn_sum;

/* Rise on the mask's own label, or NaN, and the mean rise on the others. */
static void unlearn__rises(const unlearn *u, const unlearn_run *run, double *own, double *others)
{
    const int32_t mine = u->masks[run->mask].own;
    size_t k, n = 0;

    *own = NAN;
    *others = 0;
    for (k = 0; k < u->n_labels; k++) {
        const double change = unlearn__change(u, run, k);
        if ((int32_t)k == mine) *own = change;
        else *others += change, n++;
    }
    *others = n > 0 ? *others / (double)n : NAN;
}

static double unlearn__sd(double sum, double sum2, int n)
{
    const double left = sum2 - sum * sum / n;

    return n < 2 ? 0 : sqrt((left > 0 ? left : 0) / (n - 1));
}

static unlearn_sum unlearn__sum_up(const unlearn *u, size_t mask, unlearn_kind kind)
{
    double own, others, own2 = 0, others2 = 0, of_mask = NAN;
    unlearn_sum sum;
    size_t k;

    memset(&sum, 0, sizeof sum);
    for (k = 1; k < u->n_runs && u->runs[0].nats != NULL; k++) {
        const unlearn_run *run = &u->runs[k];
        if (run->mask != mask || run->nats == NULL) continue;
        if (run->kind == UNLEARN_MASK) unlearn__rises(u, run, &of_mask, &others);
        if (run->kind != kind) continue;
        unlearn__rises(u, run, &own, &others);
        sum.n++;
        sum.below += own < of_mask;
        sum.experts += (double)run->experts;
        sum.percent += run->percent;
        sum.own += own, own2 += own * own;
        sum.others += others, others2 += others * others;
    }
    if (sum.n == 0) return sum;
    sum.own_sd = unlearn__sd(sum.own, own2, sum.n);
    sum.others_sd = unlearn__sd(sum.others, others2, sum.n);
    sum.experts /= sum.n, sum.percent /= sum.n, sum.own /= sum.n, sum.others /= sum.n;
    return sum;
}

/* How many labels the mask hurts as much as its own, itself included: 1 = its own most. */
static int unlearn__rank(const unlearn *u, size_t mask)
{
    const unlearn_run *run = &u->runs[1 + mask];
    const int32_t own = u->masks[mask].own;
    int rank = 0;
    size_t k;

    for (k = 0; own >= 0 && k < u->n_labels; k++)
        rank += unlearn__change(u, run, k) >= unlearn__change(u, run, (size_t)own);
    return rank;
}

static void unlearn__put_matrix(const unlearn *u, tool_buffer *out)
{
    size_t k, mask;

    tool_putf(out, "\nbits per byte without an edit, and their changes when the experts of a row "
                   "are removed\n\n%-16s %8s ", "removed", "experts");
    for (k = 0; k < u->n_labels; k++) domains_put_name(out, u->labels[k].name, 10);
    tool_putf(out, "\n%-16s %8d ", "nothing", 0);
    for (k = 0; k < u->n_labels && u->runs[0].nats != NULL; k++)
        tool_putf(out, "%-10.4f ",
                  u->runs[0].nats[k] / log(2.0) / (double)u->labels[k].bytes);
    for (mask = 0; mask < u->n_masks; mask++) {
        const unlearn_run *run = &u->runs[1 + mask];
        tool_putf(out, "\n");
        domains_put_name(out, u->masks[mask].name, 16);
        tool_putf(out, "%8lld ", (long long)u->masks[mask].experts);
        for (k = 0; k < u->n_labels && run->nats != NULL; k++)
            tool_putf(out, "%+.4f%-3s ", unlearn__change(u, run, k),
                      (int32_t)k == u->masks[mask].own ? "*" : "");
    }
    tool_putf(out, "\n");
}

/* One line of the second table; a spread only of draws. */
static void unlearn__put_sum(const unlearn_sum *sum, const char *name, unlearn_kind kind,
                             tool_buffer *out)
{
    static const char *const what[] = {"", "its experts", "random, number", "random, mass",
                                       "random, own mass"};
    char ratio[32] = "-", sd[2][32] = {"", ""};

    if (sum->others > 0 && sum->own == sum->own)
        snprintf(ratio, sizeof ratio, "%.1f", sum->own / sum->others);
    if (kind != UNLEARN_MASK) {
        snprintf(sd[0], sizeof sd[0], "(%.5f)", sum->own_sd);
        snprintf(sd[1], sizeof sd[1], "(%.5f)", sum->others_sd);
    }
    domains_put_name(out, name, 16);
    tool_putf(out, "%-16s %8.1f %8.3f %% %+10.5f %-9s %+10.5f %-9s %6s", what[kind], sum->experts,
              sum->percent, sum->own, sd[0], sum->others, sd[1], ratio);
}

static void unlearn__add_sum(unlearn_sum *all, const unlearn_sum *one)
{
    all->n++;
    all->below += one->below == one->n; /* masks that hurt more than each of their draws */
    all->experts += one->experts, all->percent += one->percent;
    all->own += one->own, all->others += one->others;
    all->own_sd += one->own_sd, all->others_sd += one->others_sd;
}

/* Means over all masks that have a label of their own which is measured. */
static void unlearn__put_means(const unlearn_sum *all, int firsts, tool_buffer *out)
{
    int kind;

    for (kind = UNLEARN_MASK; kind < UNLEARN_KINDS; kind++) {
        unlearn_sum mean = all[kind];
        const double n = mean.n;
        if (mean.n == 0) continue;
        mean.experts /= n, mean.percent /= n, mean.own /= n, mean.others /= n;
        mean.own_sd /= n, mean.others_sd /= n;
        unlearn__put_sum(&mean, kind == UNLEARN_MASK ? "mean" : "", (unlearn_kind)kind, out);
        if (kind == UNLEARN_MASK) tool_putf(out, "  first: %d of %d\n", firsts, mean.n);
        else tool_putf(out, "  above all draws: %d of %d\n", mean.below, mean.n);
    }
}

static void unlearn__put_sums(const unlearn *u, tool_buffer *out)
{
    unlearn_sum all[UNLEARN_KINDS], sum;
    size_t mask;
    int kind, firsts = 0;

    memset(all, 0, sizeof all);
    tool_putf(out, "\nrise in bits per byte on the mask's own label (*) and on the others, beside "
                   "%lld random masks\n(spread: standard deviation over the draws; mass: share of "
                   "all scores; seed %lld)\n\n", (long long)u->draws, (long long)u->seed);
    tool_putf(out, "%-16s %-16s %8s %10s %10s %-9s %10s %-9s %6s\n", "removed", "", "experts",
              "mass", "own", "", "others", "", "ratio");
    for (mask = 0; mask < u->n_masks; mask++)
        for (kind = UNLEARN_MASK; kind < UNLEARN_KINDS; kind++) {
            sum = unlearn__sum_up(u, mask, (unlearn_kind)kind);
            if (sum.n == 0) continue;
            if (u->masks[mask].own >= 0) unlearn__add_sum(&all[kind], &sum);
            unlearn__put_sum(&sum, kind == UNLEARN_MASK ? u->masks[mask].name : "",
                             (unlearn_kind)kind, out);
            if (kind != UNLEARN_MASK)
                tool_putf(out, "  above %d of %d draws\n", sum.below, sum.n);
            else
                tool_putf(out, "  rank %d of %d\n", unlearn__rank(u, mask), (int)u->n_labels);
            firsts += kind == UNLEARN_MASK && unlearn__rank(u, mask) == 1;
        }
    unlearn__put_means(all, firsts, out);
}

/* A number, or null. */
static void unlearn__put_number(tool_buffer *out, const char *key, double value)
{
    if (value == value) tool_putf(out, ",\"%s\":%.9g", key, value);
    else tool_putf(out, ",\"%s\":null", key);
}

static void unlearn__put_json(const unlearn *u, size_t mask, tool_buffer *out)
{
    const unlearn_mask *m = &u->masks[mask];
    int kind;
    size_t k;

    tool_putf(out, "{\"removed\":");
    explore_put_json(out, m->name, strlen(m->name));
    tool_putf(out, ",\"experts\":%lld,\"seed\":%lld,\"rank\":%d,\"own_label\":",
              (long long)m->experts, (long long)u->seed, unlearn__rank(u, mask));
    if (m->own < 0) tool_putf(out, "null");
    else explore_put_json(out, u->labels[m->own].name, strlen(u->labels[m->own].name));
    tool_putf(out, ",\"labels\":[");
    for (k = 0; k < u->n_labels; k++) {
        tool_putf(out, "%s{\"label\":", k > 0 ? "," : "");
        explore_put_json(out, u->labels[k].name, strlen(u->labels[k].name));
        unlearn__put_number(out, "plain_bits_per_byte",
                            u->runs[0].nats[k] / log(2.0) / (double)u->labels[k].bytes);
        unlearn__put_number(out, "change", unlearn__change(u, &u->runs[1 + mask], k));
        tool_putf(out, "}");
    }
    tool_putf(out, "]");
    for (kind = UNLEARN_MASK; kind < UNLEARN_KINDS; kind++) {
        const unlearn_sum sum = unlearn__sum_up(u, mask, (unlearn_kind)kind);
        if (sum.n == 0) continue;
        tool_putf(out, ",\"%s\":{\"runs\":%d", unlearn_kinds[kind], sum.n);
        unlearn__put_number(out, "experts", sum.experts);
        unlearn__put_number(out, "mass_percent", sum.percent);
        unlearn__put_number(out, "own", sum.own);
        unlearn__put_number(out, "own_sd", sum.own_sd);
        unlearn__put_number(out, "others", sum.others);
        unlearn__put_number(out, "others_sd", sum.others_sd);
        tool_putf(out, ",\"below_mask\":%d}", sum.below);
    }
    tool_putf(out, "}\n");
}

/* An object for each mask that was measured. */
static bool unlearn__save_json(const unlearn *u, tool_error *err)
{
    tool_buffer out = {NULL, 0, 0, false};
    size_t mask;
    bool ok;

    if (u->jsonl == NULL) return true;
    for (mask = 0; mask < u->n_masks; mask++)
        if (u->runs[1 + mask].nats != NULL) unlearn__put_json(u, mask, &out);
    ok = domains_write(u->jsonl, &out, err);
    tool_buffer_free(&out);
    return ok;
}

/* ---- unlearn: what correlates by chance ------------------------------------------------------
   A second pass over the scored texts that the statistics are of, with the scores permuted over the
   documents (all tokens of a document share one): how many experts reach a threshold then? Set 0
   keeps the scores as they are and has to give the correlations of the statistics.             */

typedef struct unlearn_chance {
    double *scores; /* (n_documents), as they come; while counting, of one set after the other */
    size_t  n_documents, room;
    stats  *sets;   /* (n_sets) */
    size_t  n_sets, n_made;
} unlearn_chance;

/* (n_sets,n_documents) scores, and statistics of each set. They need neither labels nor tokens. */
static bool unlearn__chance_start(unlearn *u, unlearn_chance *c, tool_error *err)
{
    static const char *const label = "all";
    const size_t n = c->n_documents;
    stats_config config;
    size_t d;

    memset(&config, 0, sizeof config);
    config.top = config.sample = config.context = 1;
    config.n_threads = (int32_t)u->e->threads;
    c->n_sets = (size_t)u->draws + 1;
    c->sets = tool_alloc(c->n_sets, sizeof *c->sets, err);
    if (c->sets == NULL || !tool_grow(&c->scores, &c->room, (uint64_t)c->n_sets * n,
                                      sizeof *c->scores, err)) return false;
    for (; c->n_made < c->n_sets; c->n_made++) {
        double *y = c->scores + c->n_made * n;
        if (!stats_create(&c->sets[c->n_made], u->e->model, &config, &label, 1, err)) return false;
        if (c->n_made == 0) continue;
        memcpy(y, c->scores, n * sizeof *y);
        for (d = n; d > 1; d--) {
            const size_t other = (size_t)(corpus_random((uint64_t)u->seed, c->n_made, d) % d);
            const double x = y[other];
            y[other] = y[d - 1];
            y[d - 1] = x;
        }
    }
    return true;
}

/* Adds a window to each set, with the score that its document has there. */
static bool unlearn__chance_add(unlearn_chance *c, monet_session *session, text_window *w,
                                size_t document, tool_error *err)
{
    bool ok = true;
    size_t k;

    if (monet_session_rewind(session, 0) != MONET_OK ||
        monet_session_eval(session, w->tokens, (size_t)w->n) != MONET_OK)
        return explore_session_failed(session, err);
    w->label = 0;
    for (k = 0; ok && k < c->n_sets; k++) {
        w->score = c->scores[k * c->n_documents + document];
        ok = stats_add(&c->sets[k], session, w, err);
    }
    return ok;
}

/* Reads all scored windows; without a session only the score of each document. */
static bool unlearn__chance_pass(unlearn *u, unlearn_chance *c, const texts_config *config,
                                 monet_session *session, tool_error *err)
{
    uint64_t last = 0;
    size_t n = 0; /* documents */
    text_window w;
    texts t;
    bool ok = texts_open(&t, config, err);

    if (!ok) return false;
    tool_progress_begin(&u->progress, "permuting", NULL, t.bytes);
    if (u->e->quiet) u->progress.last = 1e300; /* the next line is never due */
    for (w.n = 1; ok && w.n > 0;) {
        ok = texts_next(&t, &w, err) && (!explore_interrupted || tool_fail(err, "interrupted"));
        if (!ok || w.n == 0 || !w.has_score) continue;
        n += n == 0 || w.document != last;
        last = w.document;
        if (session == NULL) {
            ok = tool_grow(&c->scores, &c->room, n, sizeof *c->scores, err);
            if (ok) c->scores[n - 1] = w.score;
            c->n_documents = n;
        } else {
            ok = (n <= c->n_documents || tool_fail(err, "the texts have changed")) &&
                 unlearn__chance_add(c, session, &w, n - 1, err);
        }
        tool_progress_update(&u->progress, t.bytes_done);
    }
    tool_progress_end(&u->progress);
    texts_close(&t);
    return ok;
}

static bool unlearn__chance_check(const unlearn *u, const unlearn_chance *c, tool_error *err)
{
    const size_t size = domains_group_size(&u->s);
    size_t k;
    bool same = c->sets[0].n_scored == u->s.n_scored;

    for (k = 0; same && k < unlearn__members(u); k++) {
        const double a = unlearn__r(&c->sets[0], (int32_t)(k / size), k % size, -1);
        const double b = unlearn__r(&u->s, (int32_t)(k / size), k % size, -1);
        same = a == a ? fabs(a - b) < 1e-6 : b != b;
    }
    return same || tool_fail(err, "--permute: %.200s is not what the statistics were made of, or "
                             "--window is another", u->permute);
}

/* How many experts of a set reach the threshold; *most: the largest r of all. */
static long long unlearn__reach(const unlearn *u, const stats *set, double threshold, double *most)
{
    const size_t size = domains_group_size(&u->s);
    long long n = 0;
    size_t k;

    for (*most = -1, k = 0; k < unlearn__members(u); k++) {
        const double r = unlearn__r(set, (int32_t)(k / size), k % size, -1);
        n += r >= threshold;
        if (r > *most) *most = r;
    }
    return n;
}

static void unlearn__put_chance(const unlearn *u, const unlearn_chance *c, tool_buffer *out)
{
    double most = 0;
    size_t t, k;

    tool_putf(out, "\nexperts whose score correlates with that of the texts, and with scores "
                   "permuted over %llu documents (seed %lld)\n\n%-10s %8s   permuted\n",
              (unsigned long long)c->n_documents, (long long)u->seed, "threshold", "experts");
    for (t = 0; t < u->n_thresholds; t++) {
        tool_putf(out, "r >= %-5g", u->thresholds[t]);
        for (k = 0; k < c->n_sets; k++)
            tool_putf(out, k == 0 ? " %8lld  " : " %lld",
                      unlearn__reach(u, &c->sets[k], u->thresholds[t], &most));
        tool_putf(out, "\n");
    }
    tool_putf(out, "%-10s", "largest r");
    for (k = 0; k < c->n_sets; k++) {
        unlearn__reach(u, &c->sets[k], 1, &most);
        tool_putf(out, k == 0 ? " %8.3f  " : " %.3f", most);
    }
    tool_putf(out, "\n");
}

static bool unlearn__permute(unlearn *u, tool_buffer *out, tool_error *err)
{
    texts_config config;
    unlearn_chance c;
    monet_session *session = NULL;
    size_t k;
    bool ok;

    if (u->permute == NULL) return true;
    if (u->correlation == NULL || u->s.n_scored == 0)
        return tool_fail(err, "--permute: needs --correlation, and statistics of scored texts");
    memset(&c, 0, sizeof c);
    memset(&config, 0, sizeof config);
    config.paths = &u->permute;
    config.n_paths = 1;
    config.window = (int32_t)u->size;
    config.tokenizer = u->e->tokenizer;
    config.stop = &explore_interrupted;
    ok = unlearn__chance_pass(u, &c, &config, NULL, err) && unlearn__chance_start(u, &c, err) &&
         explore_session(u->e, config.window, EXPLORE_ROUTING, &session, err) &&
         unlearn__chance_pass(u, &c, &config, session, err) && unlearn__chance_check(u, &c, err);
    if (ok) unlearn__put_chance(u, &c, out);
    for (k = 0; k < c.n_made; k++) stats_free(&c.sets[k]);
    free(c.sets);
    free(c.scores);
    monet_session_free(session);
    return ok;
}

/* ---- unlearn --------------------------------------------------------------------------------- */

static void unlearn__free(unlearn *u)
{
    size_t k;

    for (k = 0; k < u->n_masks; k++) {
        monet_edit_free(u->masks[k].edit);
        free(u->masks[k].member);
    }
    for (k = 0; k < u->n_runs; k++) free(u->runs[k].nats);
    for (k = 0; k < u->n_labels; k++) free(u->labels[k].name);
    free(u->masks), free(u->runs), free(u->labels), free(u->tokens), free(u->windows);
    free(u->member), free(u->order);
    stats_free(&u->s);
    explore_close(u->e);
}

static void unlearn__put_head(const unlearn *u, tool_buffer *out)
{
    size_t k;

    tool_putf(out, "%llu windows of up to %lld tokens, each from position 0; all of their tokens "
                   "but the first are scored\n", (unsigned long long)u->n_windows,
              (long long)u->size);
    for (k = 0; k < u->n_labels; k++) {
        domains_put_name(out, u->labels[k].name, 16);
        tool_putf(out, "%10llu tokens %10llu bytes\n", (unsigned long long)u->labels[k].tokens,
                  (unsigned long long)u->labels[k].bytes);
    }
}

/* After Ctrl-C the tables show what was measured until then. */
static bool unlearn__report(unlearn *u, explore_output *out, tool_error *err)
{
    bool ok = unlearn__measure_all(u, err);

    if (!ok && !explore_interrupted) return false;
    if (u->runs[0].nats != NULL) {
        unlearn__put_matrix(u, &out->text);
        unlearn__put_sums(u, &out->text);
        ok = unlearn__save_json(u, err) && ok;
    }
    return ok;
}

static bool unlearn__run(unlearn *u, const char **files, size_t n_files, tool_error *err)
{
    explore_output out;
    texts_config config;
    bool ok, opened;

    memset(&config, 0, sizeof config);
    memset(&out, 0, sizeof out);
    ok = explore_open(u->e, files[0], err) && stats_load(&u->s, u->e->model, files[1], err);
    config.paths = files + 2;
    config.n_paths = n_files - 2;
    config.match = u->match;
    config.window = (int32_t)u->size;
    config.max_windows = u->max_windows;
    config.tokenizer = u->e->tokenizer;
    config.stop = &explore_interrupted;
    ok = ok && unlearn__read(u, &config, err) && unlearn__make_masks(u, err) &&
         unlearn__list(u, err) && unlearn__load(u, err);
    opened = ok && explore_output_open(u->e, &out, err);
    ok = opened;
    if (ok) {
        unlearn__put_head(u, &out.text);
        ok = unlearn__permute(u, &out.text, err) && explore_flush(u->e, &out, err) &&
             unlearn__report(u, &out, err);
    }
    if (opened) ok = explore_output_close(u->e, &out, ok || explore_interrupted, err) && ok;
    unlearn__free(u);
    return ok;
}

static TOOL_UNUSED int explore_unlearn(explore *e, int argc, char **argv)
{
    static const explore_command about = {"unlearn", "MODEL STATS TEXTS...",
        "Removes the experts of each label (see `explore domains`) and measures how much worse the\n"
        "model then predicts the texts of every label, beside random masks of as many experts and\n"
        "of the same routing mass. TEXTS: not those that the statistics are of.",
        "  explore unlearn M.monet M.stats texts --match '*.valid.txt' --max-windows 64 \\\n"
        "      --csv unlearn.csv --resume"};
    static const char *files[UNLEARN_FILES];
    size_t n_files;
    int status;
    tool_error err = {{0}};
    unlearn u;
    const run_option options[] = {
        {"match", RUN_TEXT, (void *)&u.match, 0, 0, "PATTERN", "names of files in folders"},
        {"window", RUN_WHOLE, &u.size, 2, INT32_MAX - 1, "N", "tokens of a window (256)"},
        {"max-windows", RUN_WHOLE, &u.max_windows, 0, INT64_MAX - 1, "N",
         "at most N windows of each file (0: all)"},
        DOMAINS_RULE_OPTIONS(&u.rule),
        {"label", RUN_TEXT, (void *)&u.label, 0, 0, "LABEL", "remove the experts of this one only"},
        {"correlation", RUN_TEXT, (void *)&u.correlation, 0, 0, "R,R...",
         "remove by correlation of at least R with the score of the texts, or with a label"},
        {"permute", RUN_TEXT, (void *)&u.permute, 0, 0, "TEXTS",
         "what the statistics are of: how many experts correlate with permuted scores?"},
        {"edit", RUN_TEXT, (void *)&u.edit, 0, 0, "FILE",
         "measure this edit; --label says what it should hurt"},
        {"draws", RUN_WHOLE, &u.draws, 0, 10000, "N", "random masks of each kind (5)"},
        {"own-mass", RUN_FLAG, &u.own_mass, 0, 0, NULL,
         "also random masks of the same routing mass on the mask's own label"},
        {"seed", RUN_WHOLE, &u.seed, 0, INT64_MAX - 1, "N", "of the draws (1)"},
        {"csv", RUN_TEXT, (void *)&u.csv, 0, 0, "FILE", "every run and label, after each run"},
        {"resume", RUN_FLAG, &u.resume, 0, 0, NULL, "take runs from that file, do the rest"},
        {"jsonl", RUN_TEXT, (void *)&u.jsonl, 0, 0, "FILE", "an object for each mask"},
        EXPLORE_OUT(e), EXPLORE_OPTIONS(e)};

    memset(&u, 0, sizeof u);
    u.e = e;
    u.size = 256;
    u.rule.floor = 10;
    u.draws = 5;
    u.seed = 1;
    if (!explore_arguments(e, &about, options, sizeof options / sizeof options[0], argc, argv,
                           files, 3, UNLEARN_FILES, &n_files, &status)) return status;
    return explore_end(e, about.name, unlearn__run(&u, files, n_files, &err), &err);
}

#endif /* TOOL_EXPLORE_UNLEARN_H */
