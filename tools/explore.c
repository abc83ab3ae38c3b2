/* explore.c: looks inside a Monet model: which experts a text uses, what an expert stands for.
   cc -O2 -pthread -I. tools/explore.c -o explore -lm
   ./explore tokens examples/monet-4m.monet "The price of bread"

   explore NAME --help says what each subcommand does. Exit status: 0, 1 after a failure, 2 if the
   arguments are wrong, 130 after Ctrl-C.                                                       */
#include "common.h"

#define MONET_THREADS
#define MONET_IMPLEMENTATION
#include "monet.h"

#include "tokenizer_files.h"

#include "explore_common.h"
#include "explore_expert.h"
#include "explore_explain.h"
#include "explore_find.h"
#include "explore_report.h"
#include "explore_stats.h"
#include "explore_tokens.h"
#include "explore_unlearn.h"

typedef struct subcommand {
    const char *name;
    int       (*run)(explore *e, int argc, char **argv);
    const char *what;
} subcommand;

static const subcommand subcommands[] = {
    {"tokens", explore_tokens, "which experts each token of a text uses"},
    {"stats", explore_stats, "reads texts; writes a file with what every expert does on them"},
    {"expert", explore_expert, "one expert: how often, where, its tokens, what it promotes"},
    {"find", explore_find, "experts for a word, a label or a text"},
    {"explain", explore_explain, "the model says what an expert stands for"},
    {"domains", explore_domains, "which experts belong to which label of the texts"},
    {"unlearn", explore_unlearn, "what removing the experts of a label does, to all labels"},
    {"report", explore_report, "the statistics as one HTML file, to look at in a browser"},
};

enum { N_SUBCOMMANDS = sizeof subcommands / sizeof subcommands[0] };

static void print_usage(FILE *out)
{
    size_t k;

    fprintf(out, "usage: explore SUBCOMMAND MODEL.monet ... [options]\n\n");
    for (k = 0; k < N_SUBCOMMANDS; k++)
        fprintf(out, "  %-10s%s\n", subcommands[k].name, subcommands[k].what);
    fprintf(out, "\nexplore SUBCOMMAND --help says more. Experts are written G1:E1304, which is\n"
                 "expert 1304 of group 1, or G1:20,24 by its half-experts.\n");
}

int main(int argc, char **argv)
{
    static explore e;
    size_t k;

    e.threads = run_processors();
    if (argc < 2) {
        print_usage(stderr);
        return EXPLORE_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return fflush(stdout) == 0 ? EXPLORE_DONE : EXPLORE_FAILED;
    }
    explore_catch_interrupt();
    for (k = 0; k < N_SUBCOMMANDS; k++)
        if (strcmp(argv[1], subcommands[k].name) == 0)
            return subcommands[k].run(&e, argc - 1, argv + 1);
    fprintf(stderr, "explore: unknown subcommand '%.60s' (explore --help lists them)\n", argv[1]);
    return EXPLORE_USAGE;
}
