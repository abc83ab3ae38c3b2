/* test_io.c: files that fail. The k-th open, write, fsync, close, rename, read, mmap, lseek or
   fstat of monet.h fails, or does half of its work: an error in words, the old file as it was, no
   file left behind, and the next try works.

   cc -O2 -pthread -I. tests/test_io.c -o test_io -lm && ./test_io                                */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "faults.h"
#define MONET_IMPLEMENTATION
#include "monet.h"
#include "tiny.h"

static monet_error said;
static monet_model *model;                 /* what save writes */
static monet_session *session;
static char source[256], target[256];
static tiny_file old_file, new_file;       /* what is there before, and what is there afterwards */
static tiny_options options;               /* of the new file */

/* ---- the work -------------------------------------------------------------------------------- */

static monet_result save(void)
{
    return monet_model_save(model, target, &said);
}

static monet_result write_file(void)
{
    return tiny_write(target, &options, &said);
}

static monet_result load_with(bool copy)
{
    monet_model_config config = {0};
    monet_model *m = NULL;
    monet_result result;
    config.copy = copy;
    result = monet_model_load(source, &config, &m, &said);
    if (result == MONET_OK) CHECK_EQ(monet_model_verify(m, NULL), MONET_OK);
    CHECK((m != NULL) == (result == MONET_OK));
    monet_model_free(m);
    return result;
}

static monet_result load_mapped(void)
{
    return load_with(false);
}

static monet_result load_copied(void)
{
    return load_with(true);
}

static monet_result save_session(void)
{
    return monet_session_save(session, target, &said);
}

static monet_result load_session(void)
{
    monet_result result = monet_session_load(session, source, &said);
    CHECK_EQ(monet_session_length(session), 3);
    return result;
}

/* ---- what is on the disk --------------------------------------------------------------------- */

static void put_file(const char *path, const tiny_file *f)
{
    FILE *out = fopen(path, "wb");
    if (CHECK(out != NULL)) {
        CHECK_EQ(fwrite(f->data, 1, f->size, out), f->size);
        fclose(out);
    }
}

/* Is the target this file, byte for byte? NULL: is there none? */
static bool target_is(const tiny_file *f)
{
    tiny_file now = tiny_read(target);
    bool same = f ? now.data && now.size == f->size && !memcmp(now.data, f->data, f->size)
                  : now.data == NULL;
    tiny_drop(&now);
    return same;
}

/* ---- the k-th call fails --------------------------------------------------------------------- */

/* What must come of it. The second open, fsync and close of a save are those of the folder, after
   the file is there; a file that cannot be mapped is read.                                       */
static bool must_work(int op, int k, int error, bool saves)
{
    if (saves && k == 2 && (op == OPEN || op == FSYNC || op == CLOSE)) return true;
    if (!saves && (op == CLOSE || op == MMAP)) return true;
    if (error == HALF) return true;
    return error == EINTR && op != RENAME && op != LSEEK && op != FSTAT;
}

static void one_failure(monet_result (*work)(void), int op, int k, int error, bool saves,
                        const tiny_file *before)
{
    const int n = tiny_files(), n_open = io.open;
    bool works = must_work(op, k, error, saves);
    monet_result result;
    memset(io.calls, 0, sizeof io.calls);
    memset(&said, 0, sizeof said);
    io.op = op;
    io.at = k;
    io.error = error;
    result = work();
    io.at = 0;
    if (!CHECK_EQ(result, works ? MONET_OK : MONET_ERROR_IO))
        printf("    %s %d: %s: %s\n", op_names[op], k, strerror(error > 0 ? error : 0),
               said.message);
    CHECK_EQ(io.open, n_open);
    if (saves) CHECK(target_is(works ? &new_file : before));
    if (!works) {
        CHECK_EQ(said.code, MONET_ERROR_IO);
        CHECK_HAS(said.message, saves ? target : source);
        if (error > 0 && op != FSTAT) CHECK_HAS(said.message, strerror(error));
        CHECK(!strstr(said.message, strerror(0)));
        CHECK_EQ(tiny_files(), n);
        CHECK_EQ(work(), MONET_OK); /* again, and it works */
        if (saves) CHECK(target_is(&new_file));
    }
    if (saves && before) put_file(target, before);
    else if (saves) (void)remove(target);
    CHECK_EQ(tiny_files(), n);
}

static void each_failure(const char *name, monet_result (*work)(void), bool saves,
                         const tiny_file *before)
{
    static const int errors[] = {EIO, ENOSPC, EINTR, HALF, ZERO};
    int counts[N_OPS], total = 0;
    if (before) put_file(target, before);
    memset(io.calls, 0, sizeof io.calls);
    CHECK_EQ(work(), MONET_OK);
    memcpy(counts, io.calls, sizeof counts);
    if (saves && before) put_file(target, before);
    else if (saves) (void)remove(target);
    for (int op = 0; op < N_OPS; op++)
        for (int k = 1; k <= counts[op]; k++)
            for (size_t e = 0; e < sizeof errors / sizeof *errors; e++) {
                if (errors[e] < 0 && op != READ && op != WRITE) continue;
                if (errors[e] == EIO && op == WRITE && k % 8) continue; /* as ENOSPC */
                one_failure(work, op, k, errors[e], saves, before);
                total++;
            }
    printf("  %s: %d failures\n", name, total);
    (void)remove(target);
}

/* ---- real places where no file can be -------------------------------------------------------- */

static void fail_at(const char *what, const char *path, const char *words)
{
    const int n = tiny_files(), n_open = io.open;
    char saved[256];
    strcpy(saved, target);
    memmove(target, path, strlen(path) + 1);
    for (int k = 0; k < 2; k++) {
        memset(&said, 0, sizeof said);
        test_check((k ? write_file() : save()) == MONET_ERROR_IO, __FILE__, __LINE__, what);
        CHECK_HAS(said.message, words);
        CHECK_EQ(tiny_files(), n);
        CHECK_EQ(io.open, n_open);
    }
    strcpy(target, saved);
}

static void places(void)
{
    char folder[256], inside[256], words[300];
    strcpy(folder, tiny_path("folder"));
    strcpy(inside, tiny_path("folder/x.monet"));
    CHECK_EQ(mkdir(folder, 0700), 0);
    fail_at("a folder", folder, "cannot rename");
    snprintf(words, sizeof words, "%s/", folder);
    fail_at("a folder, with a slash", words, "cannot rename");
    fail_at("a folder that is missing", tiny_path("missing/x.monet"), strerror(ENOENT));
    fail_at("a file as folder", tiny_path("model.monet/x.monet"), strerror(ENOTDIR));
    fail_at("no name", "/proc/self/no/file", "cannot create");
    if (access("/dev/full", W_OK) == 0) {
        io.full = 1;
        fail_at("a full disk", target, strerror(ENOSPC));
        io.full = 0;
    }
    put_file(inside, &old_file);
    CHECK_EQ(chmod(tiny_path(""), 0755), 0);
    CHECK_EQ(chmod(folder, 0555), 0);
    if (geteuid() != 0 || seteuid(65534) == 0) { /* the rights of root are too many */
        if (access(inside, R_OK) == 0) fail_at("a read-only folder", inside, strerror(EACCES));
        if (getuid() == 0) CHECK_EQ(seteuid(0), 0);
    } else {
        printf("  a read-only folder: not tested as root\n");
    }
    CHECK_EQ(chmod(folder, 0700), 0);
    (void)remove(inside);
    CHECK_EQ(rmdir(folder), 0);
}

/* Names of temporary files that are taken; a name that is too long. */
static void names(void)
{
    char taken[512], *long_name = (char *)malloc(6000);
    const tiny_file three = {(uint8_t *)taken, 3};
    monet_model *none = model;
    memset(taken, 'x', 3);
    snprintf(taken + 4, 500, "%s.tmp.%ld.0", target, (long)getpid());
    put_file(taken + 4, &three);
    CHECK_EQ(save(), MONET_OK);
    CHECK(target_is(&new_file));
    CHECK_EQ(remove(taken + 4), 0);
    CHECK_EQ(symlink(source, taken + 4), 0); /* nobody's file is written through a link */
    CHECK_EQ(save(), MONET_OK);
    CHECK_EQ(load_mapped(), MONET_OK);
    CHECK_EQ(remove(taken + 4), 0);
    memset(long_name, 'n', 5999);
    long_name[5999] = 0;
    CHECK_EQ(monet_model_save(model, long_name, &said), MONET_ERROR_IO);
    CHECK_EQ(strlen(said.message), sizeof said.message - 1);
    CHECK_EQ(monet_model_load(long_name, NULL, &none, &said), MONET_ERROR_IO);
    CHECK(none == NULL);
    free(long_name);
}

/* A model saved over the file that it was loaded from. */
static void over_itself(void)
{
    tiny_file before, after;
    before = tiny_read(source);
    for (int k = 0; k < 3; k++) CHECK_EQ(monet_model_save(model, source, &said), MONET_OK);
    after = tiny_read(source);
    CHECK(before.size == after.size && !memcmp(before.data, after.data, after.size));
    CHECK_EQ(monet_model_verify(model, &said), MONET_OK);
    tiny_drop(&before);
    tiny_drop(&after);
}

/* The same for snapshots: now they are the new file and the source. */
static void sessions(void)
{
    const int32_t tokens[3] = {1, 2, 3};
    CHECK_EQ(monet_session_create(model, NULL, &session, &said), MONET_OK);
    CHECK_EQ(monet_session_eval(session, tokens, 3), MONET_OK);
    CHECK_EQ(monet_session_save(session, source, &said), MONET_OK);
    tiny_drop(&new_file);
    new_file = tiny_read(source);
    each_failure("save a session over an old file", save_session, true, &old_file);
    each_failure("save a session, a new file", save_session, true, NULL);
    each_failure("load a session", load_session, false, NULL);
    monet_session_free(session);
}

int main(void)
{
    tiny_options other = {0};
    options.n_layers = other.n_layers = 1;
    options.tied = 1;
    options.dtype = MONET_BF16;
    options.seed = 7;
    strcpy(source, tiny_path("model.monet"));
    strcpy(target, tiny_path("target.monet"));
    old_file = tiny_make(&other);
    new_file = tiny_make(&options);
    put_file(source, &new_file);
    CHECK_EQ(monet_model_load(source, NULL, &model, &said), MONET_OK);
    each_failure("load, mapped", load_mapped, false, NULL);
    each_failure("load, copied", load_copied, false, NULL);
    each_failure("save, a new file", save, true, NULL);
    each_failure("save over an old file", save, true, &old_file);
    each_failure("write over an old file", write_file, true, &old_file);
    places();
    names();
    over_itself();
    sessions();
    monet_model_free(model);
    CHECK_EQ(io.open, 0);
    (void)remove(target);
    (void)remove(source);
    tiny_drop(&old_file);
    tiny_drop(&new_file);
    tiny_clean();
    return test_end("io");
}
