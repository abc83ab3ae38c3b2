/* explore_domains.h: `explore domains`: which experts belong to a label, by the paper's rule.

   The rule (sections 5.1 and 5.2 of the paper): an expert belongs to a label if its mean score on
   the tokens of that label is at least `factor` = 2 times its mean on the label that comes second.
   The paper has no floor; here the expert has to be active (score above 0.01) on at least 10 of all
   tokens that the statistics counted, of any label: a mean of fewer says nothing. Experts are those
   of a router, (group, i, j): whatever is removed is removed in all layers of the group.

   A mask is a byte for each expert of the model, (n_groups, N*N): 1 = removed.                 */
#ifndef TOOL_EXPLORE_DOMAINS_H
#define TOOL_EXPLORE_DOMAINS_H

#include "explore_common.h"
#include "stats.h"

typedef struct domains_rule {
    const char *factor_text; /* --factor */
    double      factor;
    int64_t     floor;       /* tokens */
} domains_rule;

#define DOMAINS_RULE_OPTIONS(rule)                                                                 \
    {"factor", RUN_TEXT, (void *)&(rule)->factor_text, 0, 0, "F",                                  \
     "times the mean score of the second label, at least (default: 2)"},                     \
    {"floor", RUN_WHOLE, &(rule)->floor, 0, INT64_MAX - 1, "N",                                    \
     "an expert is active on at least N tokens of all labels (default: 10)"}

/* ---- domains: the settings of the rule ------------------------------------------------------- */

static TOOL_UNUSED bool domains_check_rule(domains_rule *rule, const stats *s, tool_error *err)
{
    rule->factor = 2;
    if (s->n_labels < 2)
        return tool_fail(err, "the rule compares labels, and these statistics have %d: pass the "
                         "texts of each label to `explore stats` as a file of its own",
                         (int)s->n_labels);
    return rule->factor_text == NULL ||
           explore_parse_real("factor", rule->factor_text, 1, 1e9, &rule->factor, err);
}

/* A name in `width` columns, cut or filled up, and a blank. */
static TOOL_UNUSED void domains_put_name(tool_buffer *out, const char *name, int width)
{
    tool_buffer safe = {NULL, 0, 0, false};
    size_t n = 0, next;
    int used = 0;

    explore_put_safe(&safe, name, strlen(name), 0);
    for (; n < safe.size && used < width; n += next, used++)
        next = tool_utf8(safe.data + n, safe.size - n);
    tool_put(out, safe.size > 0 ? safe.data : "", n);
    tool_putf(out, "%*s", width - used + 1, "");
    out->failed = out->failed || safe.failed;
    tool_buffer_free(&safe);
}

/* ---- domains: the rule ----------------------------------------------------------------------- */

static TOOL_UNUSED size_t domains_group_size(const stats *s)
{
    return (size_t)s->N * (size_t)s->N;
}

/* Mean score over the tokens of a label; -1 = over all. `id` is i*N + j. */
static TOOL_UNUSED double domains_mean(const stats *s, int32_t group, size_t id, int32_t label)
{
    const int32_t i = (int32_t)(id / (size_t)s->N), j = (int32_t)(id % (size_t)s->N);

    if (label < 0) return stats_mean(s, group, i, j);
    return stats_label_mean(s, group, i, j, (size_t)label);
}

/* Tokens of all labels on which it is active. */
static TOOL_UNUSED uint64_t domains_active(const stats *s, int32_t group, size_t id)
{
    return stats_expert(s, group, (int32_t)(id / (size_t)s->N), (int32_t)(id % (size_t)s->N))
        ->count;
}

/* The labels where its mean score is largest (the first of equal ones) and second largest. */
static TOOL_UNUSED void domains_two_best(const stats *s, int32_t group, size_t id, int32_t label[2],
                                         double mean[2])
{
    int32_t k;

    label[0] = label[1] = -1;
    mean[0] = mean[1] = 0;
    for (k = 0; k < (int32_t)s->n_labels; k++) {
        const double m = domains_mean(s, group, id, k);
        const int place = label[0] < 0 || m > mean[0] ? 0 : label[1] < 0 || m > mean[1] ? 1 : 2;
        if (place == 0) label[1] = label[0], mean[1] = mean[0];
        if (place < 2) label[place] = k, mean[place] = m;
    }
}

/* The label that each expert of the model belongs to, (n_groups, N*N), in new memory; -1 = none. */
static TOOL_UNUSED int32_t *domains_find(const stats *s, const domains_rule *rule, tool_error *err)
{
    const size_t size = domains_group_size(s);
    int32_t *owner = tool_alloc((uint64_t)s->n_groups * size, sizeof *owner, err);
    int32_t group;
    size_t id;

    for (group = 0; owner != NULL && group < s->n_groups; group++)
        for (id = 0; id < size; id++) {
            int32_t label[2];
            double mean[2];
            domains_two_best(s, group, id, label, mean);
            owner[(size_t)group * size + id] =
                mean[0] > 0 && mean[0] >= rule->factor * mean[1] &&
                domains_active(s, group, id) >= (uint64_t)rule->floor ? label[0] : -1;
        }
    return owner;
}

static TOOL_UNUSED int64_t domains_count(const stats *s, int32_t group, const uint8_t *mask)
{
    const size_t size = domains_group_size(s);
    int64_t n = 0;
    size_t id;

    for (id = 0; id < size; id++) n += mask[(size_t)group * size + id];
    return n;
}

/* Routing mass of the mask: mean scores added up. All experts of a group together have H. */
static TOOL_UNUSED double domains_mass(const stats *s, int32_t group, const uint8_t *mask,
                                       int32_t label)
{
    const size_t size = domains_group_size(s);
    double sum = 0;
    size_t id;

    for (id = 0; id < size; id++)
        if (mask[(size_t)group * size + id]) sum += domains_mean(s, group, id, label);
    return sum;
}

/* The same in all groups, in percent of all that is routed. */
static TOOL_UNUSED double domains_percent(const stats *s, const uint8_t *mask, int32_t label)
{
    double sum = 0;
    int32_t group;

    for (group = 0; group < s->n_groups; group++) sum += domains_mass(s, group, mask, label);
    return 100 * sum / ((double)s->n_groups * s->H);
}

/* The mask of one label, into (n_groups, N*N) bytes. */
static TOOL_UNUSED void domains_mask(const stats *s, const int32_t *owner, int32_t label,
                                     uint8_t *mask)
{
    const size_t n = (size_t)s->n_groups * domains_group_size(s);
    size_t k;

    for (k = 0; k < n; k++) mask[k] = owner[k] == label;
}

/* The edit that removes the mask's experts in all layers of their group. */
static TOOL_UNUSED bool domains_edit(const explore *e, const stats *s, const char *name,
                                     const uint8_t *mask, monet_edit **out, tool_error *err)
{
    const size_t size = domains_group_size(s);
    monet_error why = {{0}, MONET_OK};
    monet_result result = monet_edit_create(e->model, name, out, &why);
    int32_t group;
    size_t id;

    for (group = 0; result == MONET_OK && group < s->n_groups; group++)
        for (id = 0; result == MONET_OK && id < size; id++)
            if (mask[(size_t)group * size + id])
                result = monet_edit_scale(*out, MONET_ROUTER(group), (int32_t)(id / (size_t)s->N),
                                          (int32_t)(id % (size_t)s->N), 0, &why);
    if (result == MONET_OK) return true;
    monet_edit_free(*out);
    *out = NULL;
    return tool_fail(err, "%s", why.message);
}

/* ---- domains: exports ------------------------------------------------------------------------ */

typedef struct domains {
    explore      *e;
    stats         s;
    domains_rule  rule;
    int32_t      *owner;
    uint8_t      *mask; /* of the label at hand */
    const char   *csv, *jsonl, *edits;
} domains;

static void domains__put_expert(const domains *d, tool_buffer *out, bool json, int32_t group,
                                size_t id)
{
    const stats *s = &d->s;
    int32_t label[2];
    double mean[2];
    const char *name[2];
    int k;

    domains_two_best(s, group, id, label, mean);
    for (k = 0; k < 2; k++) name[k] = s->labels[label[k]].name;
    tool_put(out, json ? "{\"label\":" : "", json ? 9 : 0);
    (json ? explore_put_json : tool_put_csv)(out, name[0], strlen(name[0]));
    tool_putf(out, json ? ",\"group\":%d,\"expert\":%llu,\"i\":%d,\"j\":%d,\"mean\":%.9g"
                          ",\"second\":" : ",%d,%llu,%d,%d,%.9g,",
              (int)group + 1, (unsigned long long)id, (int)(id / (size_t)s->N),
              (int)(id % (size_t)s->N), mean[0]);
    (json ? explore_put_json : tool_put_csv)(out, name[1], strlen(name[1]));
    tool_putf(out, json ? ",\"second_mean\":%.9g,\"active\":%llu}\n" : ",%.9g,%llu\n", mean[1],
              (unsigned long long)domains_active(s, group, id));
}

/* All experts that belong to a label, label by label. */
static bool domains__export(const domains *d, const char *path, bool json, tool_error *err)
{
    const size_t size = domains_group_size(&d->s);
    tool_buffer out = {NULL, 0, 0, false};
    int32_t label, group;
    size_t id;
    bool ok;

    if (path == NULL) return true;
    if (!json) tool_putf(&out, "label,group,expert,i,j,mean,second,second_mean,active\n");
    for (label = 0; label < (int32_t)d->s.n_labels; label++)
        for (group = 0; group < d->s.n_groups; group++)
            for (id = 0; id < size; id++)
                if (d->owner[(size_t)group * size + id] == label)
                    domains__put_expert(d, &out, json, group, id);
    ok = tool_write_file(path, &out, err);
    tool_buffer_free(&out);
    return ok;
}

/* "no-economics": what may stand in an edit and in a file name. */
static TOOL_UNUSED void domains_edit_name(char out[64], const char *label)
{
    char *c;

    snprintf(out, 64, "no-%.60s", label);
    for (c = out; *c != '\0'; c++)
        if (strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+", *c) == NULL)
            *c = '_';
}

static bool domains__save_edit(domains *d, int32_t label, tool_error *err)
{
    char name[64], other[64], file[80], *path;
    monet_error why = {{0}, MONET_OK};
    monet_edit *edit = NULL;
    int32_t k;
    bool ok;

    domains_edit_name(name, d->s.labels[label].name);
    for (k = 0; k < label; k++) {
        domains_edit_name(other, d->s.labels[k].name);
        if (strcmp(name, other) == 0)
            return tool_fail(err, "two labels would share the file %s.edit", name);
    }
    snprintf(file, sizeof file, "%s.edit", name);
    path = tool_join(d->edits, file, err);
    domains_mask(&d->s, d->owner, label, d->mask);
    ok = path != NULL && domains_edit(d->e, &d->s, name, d->mask, &edit, err);
    if (ok && monet_edit_save(edit, path, &why) != MONET_OK) ok = tool_fail(err, "%s", why.message);
    monet_edit_free(edit);
    free(path);
    return ok;
}

static bool domains__save_edits(domains *d, tool_error *err)
{
    int32_t label;
    bool ok = true;

    if (d->edits == NULL) return true;
    if (mkdir(d->edits, 0777) != 0 && errno != EEXIST)
        return tool_fail(err, "%.300s: cannot be made: %s", d->edits, strerror(errno));
    for (label = 0; ok && label < (int32_t)d->s.n_labels; label++)
        ok = domains__save_edit(d, label, err);
    return ok;
}

/* ---- domains: the table ---------------------------------------------------------------------- */

static void domains__put_row(const domains *d, tool_buffer *out, const char *name, int32_t label)
{
    int64_t all = 0;
    int32_t group;

    for (group = 0; group < d->s.n_groups; group++) all += domains_count(&d->s, group, d->mask);
    domains_put_name(out, name, 16);
    tool_putf(out, "%8lld", (long long)all);
    for (group = 0; group < d->s.n_groups; group++)
        tool_putf(out, " %7lld", (long long)domains_count(&d->s, group, d->mask));
    tool_putf(out, " %8.3f %%", domains_percent(&d->s, d->mask, -1));
    if (label >= 0) tool_putf(out, " %8.3f %%", domains_percent(&d->s, d->mask, label));
    tool_putf(out, "\n");
}

static void domains__put_table(const domains *d, tool_buffer *out)
{
    char layers[EXPLORE_NAME];
    int32_t label, group;

    tool_putf(out, "mean score at least %g times that of the second label, active on at least %lld "
              "tokens\n", d->rule.factor, (long long)d->rule.floor);
    for (group = 0; group < d->s.n_groups; group++)
        tool_putf(out, "%sG%d = %s", group > 0 ? ", " : "", (int)group + 1,
                  explore_layers(d->e, layers, group));
    tool_putf(out, "; mass = share of all scores; on it = on the label's own tokens\n\n");
    tool_putf(out, "%-16s %8s", "label", "experts");
    for (group = 0; group < d->s.n_groups; group++)
        tool_putf(out, " %*sG%d", group < 9 ? 5 : 4, "", (int)group + 1);
    tool_putf(out, " %10s %10s\n", "mass", "on it");
    for (label = 0; label < (int32_t)d->s.n_labels; label++) {
        domains_mask(&d->s, d->owner, label, d->mask);
        domains__put_row(d, out, d->s.labels[label].name, label);
    }
    domains_mask(&d->s, d->owner, -1, d->mask);
    domains__put_row(d, out, "no label", -1);
}

static bool domains__run(domains *d, const char **files, tool_error *err)
{
    explore_output out;
    bool ok = explore_open(d->e, files[0], err) && stats_load(&d->s, d->e->model, files[1], err) &&
              domains_check_rule(&d->rule, &d->s, err);

    if (ok) d->owner = domains_find(&d->s, &d->rule, err);
    if (ok) d->mask = tool_alloc((uint64_t)d->s.n_groups * domains_group_size(&d->s), 1, err);
    ok = ok && d->owner != NULL && d->mask != NULL && explore_output_open(d->e, &out, err);
    if (ok) {
        domains__put_table(d, &out.text);
        ok = explore_output_close(d->e, &out, true, err);
    }
    ok = ok && domains__export(d, d->csv, false, err) && domains__export(d, d->jsonl, true, err) &&
         domains__save_edits(d, err);
    free(d->owner);
    free(d->mask);
    stats_free(&d->s);
    explore_close(d->e);
    return ok;
}

static TOOL_UNUSED int explore_domains(explore *e, int argc, char **argv)
{
    static const explore_command about = {"domains", "MODEL STATS",
        "Which experts belong to which label: an expert does if its mean score there is at least\n"
        "twice that of the second label (section 5.1 of the paper).",
        "  explore stats M.monet texts --match '*.train.txt' --max-windows 40 --out M.stats\n"
        "  explore domains M.monet M.stats --out-edits edits\n"
        "  eval M.monet law.valid.txt --edit edits/no-law.edit"};
    const char *files[2];
    size_t n_files;
    int status;
    tool_error err = {{0}};
    domains d;
    const run_option options[] = {
        DOMAINS_RULE_OPTIONS(&d.rule),
        {"csv", RUN_TEXT, (void *)&d.csv, 0, 0, "FILE", "the experts as a table"},
        {"jsonl", RUN_TEXT, (void *)&d.jsonl, 0, 0, "FILE", "the same as JSON lines"},
        {"out-edits", RUN_TEXT, (void *)&d.edits, 0, 0, "FOLDER",
         "for each label an edit no-LABEL.edit that removes its experts"},
        EXPLORE_OUT(e), EXPLORE_OPTIONS(e)};

    memset(&d, 0, sizeof d);
    d.e = e;
    d.rule.floor = 10;
    if (!explore_arguments(e, &about, options, sizeof options / sizeof options[0], argc, argv,
                           files, 2, 2, &n_files, &status)) return status;
    return explore_end(e, about.name, domains__run(&d, files, &err), &err);
}

#endif /* TOOL_EXPLORE_DOMAINS_H */
