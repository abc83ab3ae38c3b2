// The shortest complete program with monet.h: continues a text on standard output.
// cc -O2 -pthread -I. examples/hello.c -o hello -lm && ./hello
#define MONET_IMPLEMENTATION
#include "monet.h"
#include <stdio.h>

static bool print_text(void *user, const char *text, size_t size)
{
    return fwrite(text, 1, size, (FILE *)user) == size && fflush((FILE *)user) == 0;
}

int main(int argc, char **argv)
{
    monet_error err = {{0}, MONET_OK};
    monet_model *model = NULL;
    monet_session *session = NULL;
    monet_generate_config config = {0};
    config.sampler.temperature = 0.8f;
    config.sampler.top_p = 0.9f;
    config.max_tokens = 100;
    config.text_fn = print_text;
    config.user = stdout;

    const char *path = argc > 1 ? argv[1] : "examples/monet-4m.monet";
    if (monet_model_load(path, NULL, &model, &err) != MONET_OK ||
        monet_session_create(model, NULL, &session, &err) != MONET_OK) {
        fprintf(stderr, "%s\n", err.message);
    } else if (monet_session_generate(session, "The key to life is", &config, NULL)) {
        fprintf(stderr, "%s\n", monet_session_error(session)->message);
    }
    monet_session_free(session);
    monet_model_free(model);
    return err.code != MONET_OK;
}
