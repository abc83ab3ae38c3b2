/* hf_names.h: where each tensor of a Monet checkpoint of Hugging Face lies in a .monet file.

   The one mapping between the two, used in both directions. It has no list of tensors: that is the
   table of monet.h (monet_arch_tensors), and the rules below follow from a tensor's name.

       .monet                       Hugging Face                      rows
       NAME                         model.NAME                        the same
       lm_head.weight               lm_head.weight                    the same
       layers.L.moe.v1.weight       model.layers.L.moe.v11, .v12      columns, see below
       layers.L.moe.v2.weight       model.layers.L.moe.v21, .v22      columns, see below
       layers.L.moe.v.weight        model.layers.L.moe.v.weight       columns: row r is column r

   V is stored transposed in a .monet file, so that the hidden units of a half-expert lie together.
   Vertical, with m = M/2: half-expert i has 2m rows of v1; row i*2m + u is column i*m + u of v11
   and row i*2m + m + u the same column of v12. Likewise v2 from v21 and v22.                   */
#ifndef TOOL_HF_NAMES_H
#define TOOL_HF_NAMES_H

#include "common.h"

#include "monet.h"

typedef struct hf_source { /* a tensor of the checkpoint, as it is stored there */
    char    name[96];
    int32_t n_dims;
    int64_t shape[2];
} hf_source;

typedef struct hf_mapping {
    hf_source source[2];
    int32_t   n_sources;  /* 2 for V of a vertical layer, else 1 */
    bool      transposed; /* rows in the .monet file are columns of the sources */
    int64_t   run;        /* so many rows come from one source, then as many from the next */
} hf_mapping;

static TOOL_UNUSED bool hf__ends_with(const char *name, const char *ending)
{
    size_t n = strlen(name), m = strlen(ending);

    return n >= m && memcmp(name + n - m, ending, m) == 0;
}

/* "v1" of a vertical layer is made of "v11" and "v12". */
static TOOL_UNUSED void hf__split_v(const monet_tensor *tensor, hf_mapping *map)
{
    static const char ending[] = ".weight";
    int stem = (int)(strlen(tensor->name) - strlen(ending)); /* "layers.3.moe.v1" */
    int i;

    for (i = 0; i < 2; i++)
        snprintf(map->source[i].name, sizeof map->source[i].name, "model.%.*s%d%s", stem,
                 tensor->name, i + 1, ending);
    map->n_sources = 2;
}

/* What a tensor of monet_arch_tensors(arch) is called and how it is stored in a checkpoint. */
static TOOL_UNUSED void hf_map(const monet_arch *arch, const monet_tensor *tensor, hf_mapping *map)
{
    bool outside = strcmp(tensor->name, "lm_head.weight") == 0;
    bool split = hf__ends_with(tensor->name, ".moe.v1.weight") ||
                 hf__ends_with(tensor->name, ".moe.v2.weight");
    int i;

    memset(map, 0, sizeof *map);
    snprintf(map->source[0].name, sizeof map->source[0].name, "%s%s", outside ? "" : "model.",
             tensor->name);
    map->n_sources = 1;
    map->transposed = split || hf__ends_with(tensor->name, ".moe.v.weight");
    map->run = tensor->shape[0];
    if (split) {
        hf__split_v(tensor, map);
        map->run = arch->moe_dim / 2;
    }
    for (i = 0; i < map->n_sources; i++) {
        map->source[i].n_dims = tensor->n_dims;
        map->source[i].shape[0] = map->transposed ? tensor->shape[1] : tensor->shape[0];
        map->source[i].shape[1] = tensor->n_dims == 1 ? 1 :
                                  map->transposed ? tensor->shape[0] / map->n_sources :
                                  tensor->shape[1];
    }
}

/* Row (or column, if transposed) of source *which that is row `row` of the .monet tensor. */
static TOOL_UNUSED int64_t hf_row(const hf_mapping *map, int64_t row, int32_t *which)
{
    int64_t block = row / map->run;

    *which = (int32_t)(block % map->n_sources);
    return block / map->n_sources * map->run + row % map->run;
}

/* The other way: the row of the .monet tensor for row (or column) `at` of source `which`. */
static TOOL_UNUSED int64_t hf_place(const hf_mapping *map, int32_t which, int64_t at)
{
    return (at / map->run * map->n_sources + which) * map->run + at % map->run;
}

/* The counter of training batches that PyTorch keeps beside running statistics; a .monet file keeps
   it as metadata of the name without "model.". For a tensor "X.running_mean" gives the checkpoint's
   name "model.X.num_batches_tracked"; false for any other tensor.                               */
#define HF_COUNTER ".num_batches_tracked"
static TOOL_UNUSED bool hf_counter(const monet_tensor *tensor, char name[96])
{
    static const char ending[] = ".running_mean";
    int stem = (int)strlen(tensor->name) - (int)strlen(ending);

    if (!hf__ends_with(tensor->name, ending)) return false;
    snprintf(name, 96, "model.%.*s%s", stem, tensor->name, HF_COUNTER);
    return true;
}

#endif /* TOOL_HF_NAMES_H */
