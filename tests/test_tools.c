/* test_tools.c: tests the file readers and writers that the tools share: tools/common.h, json.h,
   safetensors.h, protobuf.h, tokenizer_files.h; good input, hostile input, faults of the system.

   cc -O2 -pthread -I. tests/test_tools.c -o test_tools -lm && ./test_tools

   All files are made in a temporary folder, which is removed at the end.                       */
#define _FILE_OFFSET_BITS 64
#define _XOPEN_SOURCE 700
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- faults ----------------------------------------------------------------------------------
   The readers call these in place of the system. Each counts as one step; step number fault.at
   fails with fault.code. In trickle mode reads and writes are cut short and interrupted.       */

static struct {
    long   at, steps;   /* at < 0: never */
    int    code;
    bool   trickle;
    size_t memory;      /* asked for since it was set to 0 */
} fault = {-1, 0, 0, false, 0};

static bool fault_now(void)
{
    if (fault.at < 0 || fault.steps++ != fault.at) return false;
    errno = fault.code;
    return true;
}

static void *fault_calloc(size_t count, size_t size)
{
    fault.memory += count * size;
    return fault_now() ? NULL : calloc(count, size);
}

static void *fault_realloc(void *memory, size_t size)
{
    fault.memory += size;
    return fault_now() ? NULL : realloc(memory, size);
}

static int fault_open(const char *path, int flags, int mode)
{
    return fault_now() ? -1 : open(path, flags, mode);
}

/* Every second call is interrupted, the others move at most three bytes. */
static bool fault_interrupts(size_t *size)
{
    static unsigned calls;

    if (!fault.trickle) return false;
    if (*size > 3) *size = 3;
    errno = EINTR;
    return calls++ % 2 == 0;
}

static ssize_t fault_pread(int fd, void *out, size_t size, off_t offset)
{
    if (fault_now() || fault_interrupts(&size)) return -1;
    return pread(fd, out, size, offset);
}

static ssize_t fault_pwrite(int fd, const void *data, size_t size, off_t offset)
{
    if (fault_now() || fault_interrupts(&size)) return -1;
    return pwrite(fd, data, size, offset);
}

static int fault_fsync(int fd)
{
    return fault_now() ? -1 : fsync(fd);
}

static int fault_close(int fd)
{
    int result = close(fd);
    return fault_now() ? -1 : result;
}

static int fault_rename(const char *from, const char *to)
{
    return fault_now() ? -1 : rename(from, to);
}

static int fault_posix_fallocate(int fd, off_t offset, off_t size)
{
    return fault_now() ? ENOSPC : posix_fallocate(fd, offset, size);
}

#define TOOL_SYS(name) fault_##name
#include "tools/common.h"
#include "tools/json.h"
#include "tools/protobuf.h"
#include "tools/safetensors.h"
#include "tools/tokenizer_files.h"

#include "tests/test.h"

/* ---- helpers --------------------------------------------------------------------------------- */

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((random_state >> 33) % n);
}

static void write_bytes(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");

    CHECK(file != NULL && fwrite(data, 1, size, file) == size);
    if (file != NULL) CHECK(fclose(file) == 0);
}

static void write_text(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

static void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static int entries; /* of a folder, counted by count_one */

static int count_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    (void)path, (void)status, (void)kind;
    entries += walk->level == 1;
    return 0;
}

static int count_entries(const char *path)
{
    entries = 0;
    nftw(path, count_one, 16, FTW_PHYS);
    return entries;
}

static char *copy_of(const void *bytes, size_t size) /* exact size, so that ASan sees overruns */
{
    char *copy = malloc(size > 0 ? size : 1);

    if (copy == NULL) exit(2);
    memcpy(copy, bytes, size);
    return copy;
}

static int64_t file_size(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 ? (int64_t)status.st_size : -1;
}

/* ---- common ---------------------------------------------------------------------------------- */

static void test_numbers(void)
{
    uint64_t x = 0;
    char text[TOOL_HUMAN];

    CHECK(tool_mul(UINT64_C(1) << 32, (UINT64_C(1) << 32) - 1, &x));
    CHECK(!tool_mul(UINT64_C(1) << 32, UINT64_C(1) << 32, &x));
    CHECK(!tool_mul(UINT64_MAX, 2, &x));
    CHECK(tool_mul(0, UINT64_MAX, &x) && x == 0);
    CHECK(tool_add(UINT64_MAX - 1, 1, &x) && x == UINT64_MAX);
    CHECK(!tool_add(UINT64_MAX, 1, &x));
    CHECK_STR(tool_human(text, 999), "999 bytes");
    CHECK_STR(tool_human(text, 1000), "1.0 kB");
    CHECK_STR(tool_human(text, UINT64_C(2888000000)), "2.9 GB");
    CHECK_STR(tool_human(text, 999949), "999.9 kB");
    CHECK_STR(tool_human(text, 999999), "1.0 MB");
    CHECK_STR(tool_human(text, UINT64_MAX), "18.4 EB");
    CHECK(tool_seconds() > 0);
}

static void test_text_helpers(void)
{
    char out[TOOL_QUOTE], hostile[300];
    tool_error err;
    size_t i;
    static const char *const bad[] = {
        "\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80",
        "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE2\x82", "\xF0\x9F\x98",
        "\xC3(", "\xE2\x28\xA1", "\xFF"};
    static const char *const good[] = {"a", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF",
        "\xEE\x80\x80", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"};

    for (i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_EQ(tool_utf8(bad[i], strlen(bad[i])), 0);
    for (i = 0; i < sizeof good / sizeof *good; i++)
        CHECK_EQ(tool_utf8(good[i], strlen(good[i])), strlen(good[i]));
    CHECK_STR(tool_quote(out, "a\0b\x1B[2J\xFF\xC2\x85\xE2\x96\x81", 13),
              "a\\x00b\\x1B[2J\\xFF\\xC2\\x85\xE2\x96\x81");
    memset(hostile, 1, sizeof hostile);
    CHECK(strlen(tool_quote(out, hostile, sizeof hostile)) < TOOL_QUOTE);
    CHECK_HAS(out, "...");
    CHECK(!tool_fail(&err, "%s", "reason"));
    memset(hostile, 'x', sizeof hostile);
    hostile[299] = '\0';
    CHECK(!tool_prefix(&err, hostile));
    CHECK_HAS(err.message, "xxx: reason");
    tool_fail(&err, "%s%s", hostile + 10, hostile + 100); /* 488 of 511 */
    CHECK(!tool_prefix(&err, "0123456789abcdefghi"));
    CHECK(strncmp(err.message, "...123456789abcdefghi: xxx", 26) == 0);
    CHECK_EQ(strlen(err.message), 511);
    CHECK(!tool_prefix(&err, "no room") && strncmp(err.message, "...123", 6) == 0);
    CHECK(!tool_fail(NULL, "nobody listens"));
    CHECK(!tool_prefix(NULL, "nobody"));
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x < y ? -1 : x > y;
}

static void test_sorting(void)
{
    enum { n = 5000 };
    static uint64_t values[n];
    static tool_name names[n];
    static char text[n][8];
    uint32_t round, i, sorted;

    for (round = 0; round < 6; round++) { /* random, few values, falling, all equal, rising, tiny */
        uint32_t size = round == 5 ? 2 : n;
        for (i = 0; i < size; i++)
            values[i] = round == 0 ? random_below(1u << 30) : round == 1 ? random_below(7) :
                        round == 3 ? 5 : round == 4 ? i : size - i;
        tool_sort(values, size, sizeof values[0], compare_u64);
        for (i = 1, sorted = 1; i < size; i++) sorted += values[i - 1] <= values[i];
        CHECK_EQ(sorted, size);
    }
    for (i = 0; i < n; i++) values[i] = random_below(1000);
    tool__sort((unsigned char *)values, n, sizeof values[0], compare_u64, 0); /* heapsort */
    for (i = 1, sorted = 1; i < n; i++) sorted += values[i - 1] <= values[i];
    CHECK_EQ(sorted, n);
    for (i = 0; i < n; i++) {
        snprintf(text[i], sizeof text[i], "n%u", (unsigned)i);
        names[i] = tool_name_of(text[i], strlen(text[i]), i);
    }
    CHECK(tool_names_sort(names, n) == NULL);
    for (i = 0, sorted = 0; i < n; i++) {
        const tool_name *found = tool_names_find(names, n, text[i], strlen(text[i]));
        sorted += found != NULL && found->value == i;
    }
    CHECK_EQ(sorted, n);
    CHECK(tool_names_find(names, n, "n", 1) == NULL);
    CHECK(tool_names_find(names, 0, "n", 1) == NULL);
    names[7] = names[9];
    CHECK(tool_names_sort(names, n) != NULL);
    for (i = 0; i < 40; i++) { /* names that collide by force are told apart by their bytes */
        names[i] = tool_name_of(text[i / 2 + 10], 3, i);
        names[i].hash = 1;
    }
    CHECK(tool_names_sort(names, 40) != NULL);
    CHECK(memcmp(names[0].bytes, names[1].bytes, 3) == 0);
    CHECK(memcmp(names[1].bytes, names[2].bytes, 3) < 0);
}

static void refuse_read(const char *path, uint64_t most, const char *reason)
{
    char *data = NULL;
    size_t size;
    tool_error err = {""};

    CHECK(!tool_read_file(path, most, &data, &size, &err));
    CHECK(data == NULL);
    CHECK_HAS(err.message, path);
    CHECK_HAS(err.message, reason);
}

static void test_read_file(void)
{
    char *data = NULL;
    size_t size = 0;
    tool_error err;

    write_bytes("plain", "a\0b", 3);
    CHECK(tool_read_file("plain", 3, &data, &size, &err));
    CHECK(size == 3 && data != NULL && memcmp(data, "a\0b", 4) == 0);
    free(data);
    write_text("empty", "");
    CHECK(tool_read_file("empty", 3, &data, &size, &err) && size == 0 && data[0] == '\0');
    free(data);
    refuse_read("plain", 2, "has 3 bytes, at most 2");
    refuse_read("nothing", 9, "No such file");
    refuse_read(".", 9, "a directory");
    CHECK(mkfifo("fifo", 0600) == 0);
    refuse_read("fifo", 9, "a FIFO"); /* and does not hang */
    refuse_read("/dev/zero", 9, "a device");
}

static void refuse_inside(const char *folder, const char *name, const char *reason)
{
    tool_error err = {""};
    char *path = tool_inside(folder, name, &err);

    if (!CHECK(path == NULL)) printf("    %s in %s\n", name, folder);
    CHECK_HAS(err.message, reason);
    free(path);
}

static void accept_inside(const char *folder, const char *name)
{
    tool_error err = {""};
    char *path = tool_inside(folder, name, &err);

    if (!CHECK(path != NULL)) printf("    %s\n", err.message);
    free(path);
}

static void test_inside(void)
{
    CHECK(mkdir("f", 0700) == 0 && mkdir("f/sub", 0700) == 0);
    write_text("outside", "x");
    write_text("f/inside", "x");
    CHECK(symlink("inside", "f/link") == 0 && symlink("../outside", "f/out") == 0);
    CHECK(symlink("/etc/passwd", "f/passwd") == 0 && symlink("gone", "f/dangling") == 0);
    CHECK(symlink("loop", "f/loop") == 0 && symlink("../f-other", "f/sibling") == 0);
    write_text("f-other", "x");
    accept_inside("f", "inside");
    accept_inside("./f/", "inside");
    accept_inside("f", "link");
    refuse_inside("f", "out", "outside the model folder");
    refuse_inside("f", "passwd", "outside the model folder");
    refuse_inside("f", "sibling", "outside the model folder");
    refuse_inside("f", "dangling", "No such file");
    refuse_inside("f", "loop", "symbolic links");
    refuse_inside("f", "missing", "f/missing: No such file");
    refuse_inside("f", "..", "dot");
    refuse_inside("f", "", "empty");
    refuse_inside("f", "sub/x", "'/'");
    /* the cache of Hugging Face: snapshots/REV/file -> ../../blobs/HASH */
    CHECK(mkdir("models--x", 0700) == 0 && mkdir("models--x/blobs", 0700) == 0);
    CHECK(mkdir("models--x/snapshots", 0700) == 0 && mkdir("models--x/snapshots/rev", 0700) == 0);
    write_text("models--x/blobs/abc", "x");
    write_text("models--x/refs", "x");
    CHECK(symlink("../../blobs/abc", "models--x/snapshots/rev/config.json") == 0);
    CHECK(symlink("../../refs", "models--x/snapshots/rev/refs") == 0);
    accept_inside("models--x/snapshots/rev", "config.json");
    refuse_inside("models--x/snapshots/rev", "refs", "outside the model folder");
    CHECK(tool_has("f", "dangling") && tool_has("f", "inside") && !tool_has("f", "missing"));
}

static void check_old(const char *path) /* the old file is there and nothing beside it */
{
    char *data = NULL;
    size_t size = 0;

    CHECK(tool_read_file(path, 100, &data, &size, NULL) && strcmp(data, "old") == 0);
    free(data);
    CHECK_EQ(count_entries("o"), 1);
}

static void test_output(void)
{
    tool_output out;
    tool_error err;
    char big[100000], *data = NULL;
    size_t size = 0;
    struct stat status;

    memset(big, 'b', sizeof big);
    CHECK(mkdir("o", 0700) == 0);
    write_text("o/file", "old");
    CHECK(chmod("o/file", 0600) == 0);
    CHECK(tool_output_open(&out, "o/file", &err));
    CHECK_EQ(count_entries("o"), 2);
    CHECK(tool_output_write(&out, "new", 3, &err));
    tool_output_abandon(&out);
    tool_output_abandon(&out);
    check_old("o/file");
    fault.trickle = true;
    CHECK(tool_output_open(&out, "o/file", &err) && tool_output_reserve(&out, 200000, &err));
    CHECK(tool_output_write(&out, "head", 4, &err) && tool_output_write(&out, big, 70000, &err));
    CHECK(tool_output_write(&out, "tail", 4, &err) && tool_output_write_at(&out, "HE", 2, 0, &err));
    CHECK(tool_output_commit(&out, &err));
    fault.trickle = false;
    CHECK(!tool_output_commit(&out, &err));
    CHECK_EQ(count_entries("o"), 1);
    CHECK(tool_read_file("o/file", 100000, &data, &size, &err) && size == 70008);
    CHECK(data != NULL && memcmp(data, "HEadb", 5) == 0 && strcmp(data + 70003, "btail") == 0);
    free(data);
    CHECK(stat("o/file", &status) == 0 && (status.st_mode & 0777) == 0600);
    CHECK(!tool_output_open(&out, "o", &err));
    CHECK_HAS(err.message, "a directory");
    CHECK(!tool_output_open(&out, "/dev/null", &err));
    CHECK_HAS(err.message, "a device");
    CHECK(!tool_output_open(&out, "o/none/file", &err));
    CHECK_HAS(err.message, "No such file");
    CHECK(symlink("o/file", "to-file") == 0);
    CHECK(tool_output_open(&out, "to-file", &err) && tool_output_commit(&out, &err));
    CHECK(lstat("to-file", &status) == 0 && S_ISLNK(status.st_mode) && file_size("o/file") == 0);
}

/* Whatever step fails, the old file stays and no temporary one does; only after the rename, when
   the folder cannot be synced, the new file is there and the error says so.                    */
static void test_output_faults(void)
{
    tool_output out;
    tool_error err;
    long at;
    bool ok = false;

    fault.code = ENOSPC;
    for (at = 0; at < 40 && !ok; at++) {
        write_text("o/file", "old");
        memset(&out, 0, sizeof out);
        fault.at = at;
        fault.steps = 0;
        ok = tool_output_open(&out, "o/file", &err) && tool_output_reserve(&out, 100, &err) &&
             tool_output_write(&out, "new", 3, &err) && tool_output_commit(&out, &err);
        fault.at = -1;
        tool_output_abandon(&out);
        if (ok) break;
        if (strstr(err.message, "could not be synced") == NULL) check_old("o/file");
        CHECK_EQ(count_entries("o"), 1);
    }
    CHECK(ok && at > 7);
}

/* A signal removes the temporary file and ends the process. */
static void test_output_signal(void)
{
    tool_output out;
    int status = 0;
    pid_t child = fork();

    if (child == 0) {
        tool_remove_on_signal();
        if (!tool_output_open(&out, "o/interrupted", NULL)) _exit(3);
        raise(SIGTERM);
        _exit(4);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    CHECK_EQ(count_entries("o"), 1);
}

/* What a terminal is not: a line now and then, none for short work. */
static void test_progress(void)
{
    tool_progress progress;
    char *data = NULL;
    size_t size = 0;
    int saved = dup(2), fd = open("stderr", O_RDWR | O_CREAT | O_TRUNC, 0600);

    CHECK(saved >= 0 && fd >= 0 && dup2(fd, 2) == 2);
    tool_progress_begin(&progress, "reading", NULL, 2000);
    tool_progress_update(&progress, 1000);
    progress.start -= 10;
    progress.last -= 10;
    tool_progress_update(&progress, 1000);
    tool_progress_update(&progress, 1500);
    tool_progress_end(&progress);
    tool_progress_begin(&progress, "writing", "tokens", 0);
    progress.last -= 10;
    tool_progress_update(&progress, 7);
    tool_progress_end(&progress);
    CHECK(dup2(saved, 2) == 2 && close(saved) == 0 && close(fd) == 0);
    CHECK(tool_read_file("stderr", 1000, &data, &size, NULL));
    CHECK_STR(data, "reading: 1.0 kB of 2.0 kB, 10 s left\nwriting: 7 tokens\n");
    free(data);
}

/* ---- json ------------------------------------------------------------------------------------ */

static void refuse_json_bytes(const void *text, size_t size, const char *reason)
{
    json_doc doc;
    tool_error err = {""};
    char *copy = copy_of(text, size);

    if (!CHECK(!json_parse(&doc, copy, size, &err))) {
        printf("    %.60s\n", (const char *)text);
        json_free(&doc);
    }
    CHECK_HAS(err.message, reason);
    free(copy);
}

static void test_json_refused(void)
{
    static const struct { const char *text, *reason; } bad[] = {
        {"", "byte 0: the text ends"}, {" \n", "byte 2: the text ends"}, {"nul", "expected a val"},
        {"[1,]", "byte 3: expected a value"}, {"[1 2]", "byte 3: expected , or ]"},
        {"{\"a\":1,}", "byte 7: expected a key"}, {"{a:1}", "byte 1: expected a key"},
        {"{\"a\" 1}", "byte 5: expected :"}, {"{\"a\":}", "byte 5: expected a value"},
        {"[1}", "byte 2: expected , or ]"}, {"{\"a\":1]", "byte 6: expected , or }"},
        {"[", "byte 1: the text ends"}, {"[1", "byte 2: expected , or ]"}, {"]", "expected a val"},
        {"1 2", "byte 2: text after the end"}, {"{}x", "byte 2: text after the end"},
        {"[NaN]", "NaN and Infinity are not JSON"}, {"[-Infinity]", "not a JSON number"},
        {"Infinity", "NaN and Infinity"}, {"'a'", "expected a value"}, {"// c\n1", "expected a"},
        {"01", "not a JSON number"}, {"-", "not a JSON number"}, {"+1", "expected a value"},
        {".5", "expected a value"}, {"1.", "not a JSON number"}, {"1.e5", "not a JSON number"},
        {"1e", "not a JSON number"}, {"1e+", "not a JSON number"}, {"0x10", "text after the end"},
        {"1,5", "text after the end"}, {"\"a", "byte 0: string without an end"},
        {"\"a\\", "unknown escape"}, {"\"\\x41\"", "byte 1: unknown escape"},
        {"\"\\u12\"", "four hexadecimal"}, {"\"\\u12g4\"", "byte 5: \\u needs four"},
        {"\"\\ud800\"", "byte 1: a surrogate without"}, {"\"\\udc00\"", "a surrogate without"},
        {"\"\\ud800\\u0041\"", "a surrogate without"}, {"\"\\ud800\\ud800\"", "a surrogate"},
        {"\"\n\"", "byte 1: control character"}, {"\"\x1F\"", "control character"},
        {"\"\x80\"", "byte 1: invalid UTF-8"}, {"\"\xC0\xAF\"", "invalid UTF-8"},
        {"\"\xED\xA0\x80\"", "invalid UTF-8"}, {"\"\xF4\x90\x80\x80\"", "invalid UTF-8"},
        {"\"\xE2\x82\"", "invalid UTF-8"}, {"\xEF\xBB\xBF{}", "byte order mark"},
        {"{\"a\":1,\"a\":2}", "byte 8: the key \"a\" occurs twice"},
        {"{\"a\":1,\"\\u0061\":2}", "\"a\" occurs twice"},
        {"[{\"x\":{\"k\":1,\"b\":0,\"k\":2}}]", "\"k\" occurs twice"},
        {"{\"\":1,\"\":2}", "the key \"\" occurs twice"}, {"[\xC2\xA0]", "expected a value"},
    };
    char digits[500];
    size_t i;

    for (i = 0; i < sizeof bad / sizeof *bad; i++)
        refuse_json_bytes(bad[i].text, strlen(bad[i].text), bad[i].reason);
    refuse_json_bytes("\"a\0b\"", 5, "byte 2: control character");
    refuse_json_bytes("[1]\0", 4, "byte 3: text after the end");
    memset(digits, '7', sizeof digits);
    refuse_json_bytes(digits, 400, "more than 64 characters");
    refuse_json_bytes(digits, 65, "more than 64 characters");
    memcpy(digits, "0.", 2);
    refuse_json_bytes(digits, 400, "more than 64 characters");
}

static bool parse_copy(json_doc *doc, const char *text) /* json_free frees the copy */
{
    char *copy = copy_of(text, strlen(text));
    tool_error err = {""};
    bool parsed = json_parse(doc, copy, strlen(text), &err);

    if (!CHECK(parsed)) {
        printf("    %s\n", err.message);
        free(copy);
    }
    doc->owns_text = parsed;
    return parsed;
}

static void test_json_values(void)
{
    json_doc doc;
    json_each it;
    size_t size;
    int64_t x = 0;
    bool flag = false;
    uint32_t list, sum = 0;
    const char *text;

    if (!parse_copy(&doc, " {\"a\\u0000b\" : [1, [2,3], {\"x\":[]}, true,false , null],\"s\":"
                    "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u20ac\\ud83d\\ude00\xE2\x96\x81\\u0041\", "
                    "\"z\":{}}\n ")) return;
    CHECK_EQ(json_count(&doc, 0), 3);
    it = json_begin(&doc, 0);
    CHECK(json_step(&doc, &it));
    text = json_string(&doc, it.key, &size);
    CHECK(size == 3 && memcmp(text, "a\0b", 4) == 0);
    list = it.value;
    CHECK_EQ(json_count(&doc, list), 6);
    for (it = json_begin(&doc, list); json_step(&doc, &it);) sum += it.key == JSON_NONE;
    CHECK_EQ(sum, 6);
    it = json_begin(&doc, list);
    CHECK(json_step(&doc, &it) && json_int(&doc, it.value, &x) && x == 1);
    CHECK(json_step(&doc, &it) && json_count(&doc, it.value) == 2);
    CHECK(json_step(&doc, &it) && json_count(&doc, json_find(&doc, it.value, "x")) == 0);
    CHECK(json_step(&doc, &it) && json_bool(&doc, it.value, &flag) && flag);
    CHECK(json_step(&doc, &it) && json_bool(&doc, it.value, &flag) && !flag);
    CHECK(json_step(&doc, &it) && json_is_null(&doc, it.value) && !json_step(&doc, &it));
    text = json_string(&doc, json_find(&doc, 0, "s"), &size);
    CHECK_STR(text, "\"\\/\b\f\n\r\t\xE2\x82\xAC\xF0\x9F\x98\x80\xE2\x96\x81" "A");
    CHECK_EQ(size, strlen(text));
    CHECK(json_find(&doc, 0, "a") == JSON_NONE && json_find(&doc, list, "a") == JSON_NONE);
    CHECK(json_string(&doc, JSON_NONE, &size) == NULL && size == 0);
    CHECK(!json_int(&doc, JSON_NONE, &x) && !json_bool(&doc, 0, &flag));
    CHECK(json_is_null(&doc, JSON_NONE) && json_count(&doc, JSON_NONE) == 0);
    it = json_begin(&doc, json_find(&doc, 0, "s"));
    CHECK(!json_step(&doc, &it));
    json_free(&doc);
    json_free(&doc);
}

static void test_json_numbers(void)
{
    static const struct { const char *text; bool ok; int64_t value; } whole[] = {
        {"0", true, 0}, {"-0", true, 0}, {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN}, {"9223372036854775808", false, 0},
        {"-9223372036854775809", false, 0}, {"18446744073709551617", false, 0}, {"1.0", false, 0},
        {"1e3", false, 0}, {"9007199254740993", true, INT64_C(9007199254740993)},
        {"99999999999999999999999999999999999999", false, 0}, {"-7", true, -7},
    };
    static const char *const exact[] = {"0.1", "1e-6", "123456789.125", "1e22", "1e23", "-2.5e-3",
        "9007199254740993", "0.020766258239746094", "2.2250738585072011e-308", "5e-324", "2e-324",
        "1.7976931348623157e308", "2.4703282292062328e-324", "1000000000000000019884624838656",
        "8.5e-320", "0e999", "0.00000000000000000000000000000000000000000000000000000000000001",
        "179769313486231570000000000000000000000000000000000000000000e249", "1e-400", "-0.0"};
    json_doc doc;
    int64_t x = 0;
    double y = 0, wanted;
    bool nearest;
    size_t i;
    char text[64];

    for (i = 0; i < sizeof whole / sizeof *whole; i++) {
        if (!parse_copy(&doc, whole[i].text)) continue;
        CHECK_EQ(json_int(&doc, 0, &x), whole[i].ok);
        if (whole[i].ok) CHECK_EQ(x, whole[i].value);
        json_free(&doc);
    }
    for (i = 0; i < 3000; i++) {
        const char *number = text;
        if (i < sizeof exact / sizeof *exact)
            number = exact[i];
        else
            snprintf(text, sizeof text, "%u%u.%u%ue%d", (unsigned)random_below(90000000) + 1,
                     (unsigned)random_below(1u << 30), (unsigned)random_below(1u << 30),
                     (unsigned)random_below(1000), (int)random_below(640) - 340);
        if (!parse_copy(&doc, number)) continue;
        wanted = strtod(number, NULL);
        nearest = json_double(&doc, 0, &y) ? memcmp(&y, &wanted, sizeof y) == 0 : wanted > DBL_MAX;
        if (!CHECK(nearest)) printf("    %s: %.17g and %.17g\n", number, y, wanted);
        json_free(&doc);
    }
    CHECK(parse_copy(&doc, "[1e309,-1e309,1e99999999999]"));
    for (i = 1; i < 4; i++) CHECK(!json_double(&doc, (uint32_t)i, &y));
    json_free(&doc);
}

/* Row T12, and item 11 of the bar: depth is refused at once, whatever the stack. */
static void test_json_limits(void)
{
    enum { n = 1000000 };
    char *deep = copy_of("", 1), *next;
    size_t i, used;
    json_doc doc;
    tool_error err;
    clock_t start = clock();

    next = realloc(deep, 6 * n);
    if (next == NULL) exit(2);
    deep = next;
    memset(deep, '[', n);
    refuse_json_bytes(deep, n, "byte 64: nested deeper than 64 levels");
    for (i = 0; i < n; i++) memcpy(deep + 5 * i, "{\"a\":", 5);
    refuse_json_bytes(deep, 5 * n, "nested deeper");
    memset(deep, '[', 64);
    memset(deep + 64, ']', 64);
    CHECK(json_parse(&doc, deep, 128, &err) && doc.n_tokens == 64);
    json_free(&doc);
    /* 100,000 keys in one object, and then the same with one twice */
    used = 1;
    deep[0] = '{';
    for (i = 0; i < 100000; i++)
        used += (size_t)snprintf(deep + used, 24, "\"k%u\":%u,", (unsigned)i, (unsigned)i);
    deep[used - 1] = '}';
    CHECK(json_parse(&doc, deep, used, &err) && json_count(&doc, 0) == 100000);
    json_free(&doc);
    used = 1;
    for (i = 0; i < 100000; i++)
        used += (size_t)snprintf(deep + used, 24, "\"k%u\":%u,", (unsigned)(i == 99999 ? 5 : i),
                                 (unsigned)i);
    deep[used - 1] = '}';
    CHECK(!json_parse(&doc, deep, used, &err));
    CHECK_HAS(err.message, "\"k5\" occurs twice");
    CHECK(!json_parse(&doc, deep, (size_t)JSON_MAX_BYTES + 1, &err)); /* not even looked at */
    CHECK_HAS(err.message, "268435457 bytes of JSON");
    free(deep);
    deep = malloc(JSON_MAX_TOKENS);
    if (deep == NULL) exit(2);
    memset(deep, ',', JSON_MAX_TOKENS);
    fault.memory = 0;
    refuse_json_bytes(deep, JSON_MAX_TOKENS, "more than 33554432 values");
    CHECK(fault.memory == 0);
    CHECK((clock() - start) / CLOCKS_PER_SEC < 3);
    free(deep);
}

static void test_json_settings(void)
{
    json_doc doc;
    tool_error err;
    int64_t n = 7;
    double x = 7;
    bool flag = true;
    const char *text = "unset", *path = "settings.json";
    size_t size;
    tool_buffer out = {NULL, 0, 0, false};

    write_text(path, "{\"n\":12,\"x\":1e-6,\"flag\":false,\"null\":null,\"s\":\"v\",\"half\":1.5}");
    if (!CHECK(json_load(&doc, path, 1000, &err))) return;
    CHECK(json_get_int(&doc, 0, "absent", 0, 9, &n, &err) && n == 7);
    CHECK(json_get_int(&doc, 0, "null", 0, 9, &n, &err) && n == 7);
    CHECK(json_get_int(&doc, 0, "n", 1, 12, &n, &err) && n == 12);
    CHECK(!json_get_int(&doc, 0, "n", 13, 20, &n, &err));
    CHECK_STR(err.message, "\"n\" is 12, needs an integer from 13 to 20");
    CHECK(!json_get_int(&doc, 0, "half", 0, 20, &n, &err) && n == 12);
    CHECK(json_get_double(&doc, 0, "x", 0, 1, &x, &err) && x == 1e-6);
    CHECK(!json_get_double(&doc, 0, "s", 0, 1, &x, &err));
    CHECK_STR(err.message, "\"s\" is \"v\", needs a number from 0 to 1");
    CHECK(json_get_bool(&doc, 0, "flag", &flag, &err) && !flag);
    CHECK(!json_get_bool(&doc, 0, "n", &flag, &err));
    CHECK(json_get_string(&doc, 0, "s", &text, &size, &err) && strcmp(text, "v") == 0);
    CHECK(!json_get_string(&doc, 0, "flag", &text, &size, &err));
    json_free(&doc);
    CHECK(!json_load(&doc, path, 10, &err));
    write_text(path, "[}");
    CHECK(!json_load(&doc, path, 10, &err));
    CHECK_HAS(err.message, "settings.json: byte 1");
    json_put_string(&out, "a\"\\\n\x7F\xC3\xA9", 7);
    CHECK_STR(out.data, "\"a\\\"\\\\\\u000a\\u007f\xC3\xA9\"");
    tool_buffer_free(&out);
}

static const char json_sample[] =
    "{\"a\":[1,-2.5e3,true,null,\"x\\u00e9\\ud83d\\ude00\"],\"b\":{\"c\":{}}}";

/* Any damage gives an error or a document that can be walked over. */
static void test_json_damage(void)
{
    size_t size = sizeof json_sample - 1, cut;
    long at;
    uint32_t round, i;
    json_doc doc;
    char *copy, shown[TOOL_QUOTE];

    for (cut = 0; cut < size; cut++) {
        copy = copy_of(json_sample, cut);
        CHECK(!json_parse(&doc, copy, cut, NULL));
        free(copy);
    }
    for (round = 0; round < 20000; round++) {
        copy = copy_of(json_sample, size);
        for (i = 0; i <= round % 3; i++)
            copy[random_below((uint32_t)size)] = round % 2 ? (char)random_below(256) :
                "{}[]\",:\\u0e-."[random_below(14)];
        if (json_parse(&doc, copy, size, NULL))
            for (i = 0; i < doc.n_tokens; i++) json_show(&doc, i, shown);
        json_free(&doc);
        free(copy);
    }
    for (at = 0; at < 3; at++) { /* no memory: an error, and nothing leaks */
        copy = copy_of(json_sample, size);
        fault.at = at;
        fault.steps = 0;
        if (json_parse(&doc, copy, size, NULL)) json_free(&doc);
        else CHECK_EQ(at, 0);
        fault.at = -1;
        free(copy);
    }
}

/* ---- safetensors: one file ------------------------------------------------------------------- */

static void write_st(const char *path, uint64_t size, const char *header, size_t data)
{
    size_t n = strlen(header), i;
    unsigned char *bytes = malloc(8 + n + data);

    if (bytes == NULL) exit(2);
    for (i = 0; i < 8; i++) bytes[i] = (unsigned char)(size >> 8 * i & 255);
    memcpy(bytes + 8, header, n);
    for (i = 0; i < data; i++) bytes[8 + n + i] = (unsigned char)i;
    write_bytes(path, bytes, 8 + n + data);
    free(bytes);
}

static void refuse_st(const char *header, size_t data, const char *reason)
{
    st_file file;
    tool_error err = {""};

    write_st("bad.safetensors", strlen(header), header, data);
    if (!CHECK(!st_open(&file, "bad.safetensors", &err))) {
        printf("    %s\n", header);
        st_close(&file);
    }
    CHECK_HAS(err.message, "bad.safetensors");
    CHECK_HAS(err.message, reason);
}

static void refuse_st_all(void)
{
    static const struct { const char *header; size_t data; const char *reason; } bad[] = {
        {" {}", 0, "does not begin with {"}, {"[]", 0, "does not begin with {"},
        {"{", 0, "header: byte 1"}, {"{}x", 0, "text after the end"}, {"{\"a\":1}", 0, "\"a\""},
        {"{\"a\":{}}", 0, "data_offsets"}, {"{}", 1, "0 bytes of data, the file has 1"},
        /* G2: dtype and number of dimensions */
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype \"F33\""},
        {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype 7"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype nothing"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "needs a shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":{},\"data_offsets\":[0,4]}}", 4, "needs a shape"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
         "more than 8 dimensions"},
        /* G7, G8, G9 and the wrap that the C++ port accepts: products that leave 64 bits */
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4194305,4194305,211106198978564],"
         "\"data_offsets\":[0,16]}}", 16, "does not fill its 16 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387903],\"data_offsets\":[0,4]}}", 4,
         "does not fill"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4,1073741823,1073741825],"
         "\"data_offsets\":[0,0]}}", 0, "does not fill"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9223372036854775807,2],\"data_offsets\":[0,0]}}", 0,
         "does not fill"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "does not fill"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0,
         "does not fill"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775808],\"data_offsets\":[0,0]}}", 0,
         "a dimension is not an integer"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 1, "a dimension"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", 1, "a dimension"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[0,1]}}", 1, "a dimension"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, "does not fill"},
        /* G17, G19: offsets against the size and the file */
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,4]}}", 4, "does not fill"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[0,5]}}", 4,
         "5 bytes of data, the file has 4"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 5,
         "4 bytes of data, the file has 5"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[1,5]}}", 5, "begins at 1"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,0]}}", 4, "ends before"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[-4,0]}}", 4, "an offset"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,1e1]}}", 4, "an offset"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,18446744073709551615]}}", 4,
         "an offset"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0]}}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4,4]}}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":{\"0\":0,\"4\":4}}}", 4,
         "data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"x\":1}}", 4, "key \"x\""},
        /* two tensors: overlap, gap, the same data, the same name */
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[3,7]}}", 7, "begins at 3"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[5,9]}}", 9, "begins at 5"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "begins at 0"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"e\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]}}", 4, "begins at 2"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}", 8, "occurs twice"},
        {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
         "occurs twice"},
        /* G5: sizes whose sum would leave 64 bits */
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775744],"
         "\"data_offsets\":[0,9223372036854775744]},\"b\":{\"dtype\":\"U8\",\"shape\":[63],"
         "\"data_offsets\":[9223372036854775744,9223372036854775807]}}", 64, "does not fill"},
        /* G11: names */
        {"{\"\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "empty name"},
        {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "byte 0x00"},
        {"{\"\xFF\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "invalid UTF-8"},
        {"{\"__metadata__\":[]}", 0, "not an object"}, {"{\"__metadata__\":null}", 0, "not an obj"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "not a string"},
        {"{\"__metadata__\":{\"k\":{\"n\":\"x\"}}}", 0, "not a string"},
    };
    size_t i;

    for (i = 0; i < sizeof bad / sizeof *bad; i++)
        refuse_st(bad[i].header, bad[i].data, bad[i].reason);
}

static void test_st_sizes(void)
{
    static const uint64_t sizes[] = {3, 100000001, UINT64_C(1) << 32, UINT64_MAX, UINT64_MAX - 7,
        UINT64_MAX - 8, UINT64_C(1) << 63, 100000000};
    char name[2100], header[2300];
    st_file file;
    tool_error err = {""};
    size_t i;

    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        fault.memory = 0;
        write_st("bad.safetensors", sizes[i], "{}", 0);
        CHECK(!st_open(&file, "bad.safetensors", &err));
        CHECK_HAS(err.message, "its header would have");
        CHECK(fault.memory < 100000);
    }
    write_st("bad.safetensors", 0, "{}", 0);
    CHECK(!st_open(&file, "bad.safetensors", &err));
    memset(name, 'n', sizeof name);
    name[1025] = '\0';
    snprintf(header, sizeof header,
             "{\"%s\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", name);
    refuse_st(header, 1, "more than 1024 bytes");
    CHECK(!st_open(&file, "fifo", &err));
    CHECK_HAS(err.message, "a FIFO");
    CHECK(!st_open(&file, "f", &err));
    CHECK(!st_open(&file, "nothing.safetensors", &err));
}

static const char good_header[] =
    "{\"__metadata__\":{\"format\":\"pt\",\"\":\"\"},"
    "\"wide\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
    "\"none\":{\"dtype\":\"F32\",\"shape\":[0,9223372036854775807],\"data_offsets\":[24,24]},"
    "\"bytes\":{\"shape\":[1,1,1,1,1,1,1,2],\"data_offsets\":[25,27],\"dtype\":\"I8\"},"
    "\"scalar\":{\"dtype\":\"BOOL\",\"shape\":[],\"data_offsets\":[24,25]},"
    "\"big\":{\"dtype\":\"U64\",\"shape\":[2],\"data_offsets\":[27,43]},"
    "\"halves\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[43,47]}}    \n";

static void test_st_good(void)
{
    st_file file;
    tool_error err = {""};
    const st_tensor *t;
    unsigned char raw[4];
    int64_t ints[2] = {0, 0}, shape[2] = {3, 2};
    float x, halves[2] = {0, 0};

    write_st("good.safetensors", sizeof good_header - 1, good_header, 47);
    if (!CHECK(st_open(&file, "good.safetensors", &err))) return;
    CHECK_EQ(file.n_tensors, 6);
    CHECK_STR(file.tensors[0].name, "wide");
    CHECK_STR(file.tensors[4].name, "big");
    CHECK_STR(st_note_of(&file, "format"), "pt");
    CHECK(st_note_of(&file, "missing") == NULL);
    t = st_find(&file, "wide");
    CHECK(t != NULL && t->n_dims == 2 && t->shape[1] == 3 && t->count == 6 && t->size == 24);
    CHECK(st_read(&file, t, 20, 4, raw, &err) && raw[0] == 20 && raw[3] == 23);
    CHECK(!st_read(&file, t, 21, 4, raw, &err));
    CHECK_HAS(err.message, "\"wide\": bytes 21..25 asked for, it has 24");
    CHECK(!st_read(&file, t, UINT64_MAX, 2, raw, &err));
    CHECK(!st_read_f32(&file, t, 6, 1, &x, &err));
    CHECK(!st_read_f32(&file, t, UINT64_MAX, 1, &x, &err));
    CHECK(!st_read_i64(&file, t, 0, 1, ints, &err));
    CHECK_HAS(err.message, "dtype is F32, needs an integer");
    t = st_find(&file, "scalar");
    CHECK(t != NULL && t->n_dims == 0 && t->count == 1 && st_read_i64(&file, t, 0, 1, ints, &err));
    CHECK_EQ(ints[0], 24);
    CHECK(!st_read_f32(&file, t, 0, 1, &x, &err));
    t = st_find(&file, "none");
    CHECK(t != NULL && t->count == 0 && st_read_f32(&file, t, 0, 0, &x, &err));
    CHECK(!st_read_f32(&file, t, 0, 1, &x, &err));
    CHECK(st_find(&file, "bytes") != NULL && st_find(&file, "byte") == NULL);
    t = st_find(&file, "halves");
    CHECK(t != NULL && st_read_f32(&file, t, 0, 2, halves, &err)); /* bytes 43 44 45 46 */
    CHECK(halves[0] == st_f32_of_f16(0x2C2B) && halves[1] == st_f32_of_f16(0x2E2D));
    t = st_find(&file, "big"); /* bytes 27..42, and byte 42 is below 128 */
    CHECK(t != NULL && st_read_i64(&file, t, 1, 1, ints, &err));
    CHECK_EQ(ints[0], INT64_C(0x2A29282726252423));
    CHECK(st_expect(&file, "wide", 2, shape, &err) == NULL);
    CHECK_STR(err.message, "tensor \"wide\": the file has (2,3), needs (3,2)");
    CHECK(st_expect(&file, "wider", 2, shape, &err) == NULL);
    CHECK_HAS(err.message, "tensor \"wider\" is missing; its shape would be (3,2)");
    shape[0] = 2, shape[1] = 3;
    CHECK(st_expect(&file, "wide", 2, shape, &err) != NULL);
    CHECK(st_expect(&file, "scalar", 0, NULL, &err) != NULL);
    CHECK(truncate("good.safetensors", 20) == 0); /* cut while it is open: an error, no signal */
    CHECK(!st_read(&file, st_find(&file, "big"), 0, 4, raw, &err));
    CHECK_HAS(err.message, "but was longer when it was opened");
    st_close(&file);
    write_st("good.safetensors", 2, "{}", 0);
    CHECK(st_open(&file, "good.safetensors", &err) && file.n_tensors == 0);
    CHECK(st_find(&file, "") == NULL);
    st_close(&file);
}

/* Row G18: every cut and every byte too many is refused; no damage to the header crashes. */
static void test_st_damage(void)
{
    size_t size = sizeof good_header - 1 + 8 + 47, i;
    char *whole, *copy;
    uint32_t round;
    st_file file;
    long at;
    bool ok = false;

    write_st("whole.safetensors", sizeof good_header - 1, good_header, 47);
    if (!CHECK(tool_read_file("whole.safetensors", 10000, &whole, &i, NULL) && i == size)) return;
    for (i = 0; i < size + 64; i += i + 1 == size ? 2 : 1) {
        copy = copy_of(whole, i < size ? i : size);
        write_bytes("cut.safetensors", copy, i < size ? i : size);
        if (i > size) CHECK(truncate("cut.safetensors", (off_t)i) == 0);
        CHECK(!st_open(&file, "cut.safetensors", NULL));
        free(copy);
    }
    for (round = 0; round < 3000; round++) {
        copy = copy_of(whole, size);
        i = round < 8 * 40 ? round / 8 : random_below((uint32_t)size);
        copy[i] = (char)(copy[i] ^ 1 << round % 8);
        write_bytes("cut.safetensors", copy, size);
        if (st_open(&file, "cut.safetensors", NULL)) {
            for (i = 0; i < file.n_tensors; i++)
                CHECK(file.tensors[i].offset + file.tensors[i].size <= size);
            st_close(&file);
        }
        free(copy);
    }
    for (at = 0; at < 100 && !ok; at++) { /* memory, open or read fails */
        fault.at = at;
        fault.steps = 0;
        fault.code = EIO;
        ok = st_open(&file, "whole.safetensors", NULL);
        fault.at = -1;
    }
    CHECK(ok && at > 8);
    if (ok) st_close(&file);
    fault.trickle = true;
    CHECK(st_open(&file, "whole.safetensors", NULL));
    fault.trickle = false;
    st_close(&file);
    free(whole);
}

/* 100,000 tensors with their offsets in disorder: quick, and found by name. */
static void test_st_many(void)
{
    enum { n = 100000 };
    tool_buffer header = {NULL, 0, 0, false};
    st_file file;
    tool_error err = {""};
    char name[32];
    clock_t start = clock();
    uint32_t i, found = 0;

    tool_put(&header, "{", 1);
    for (i = 0; i < n; i++) {
        unsigned at = (unsigned)((uint64_t)i * 7919 % n);
        tool_putf(&header, "%s\"layers.%u.w\":{\"dtype\":\"U8\",\"shape\":[1],"
                  "\"data_offsets\":[%u,%u]}", i > 0 ? "," : "", (unsigned)i, at, at + 1);
    }
    tool_put(&header, "}", 1);
    write_st("many.safetensors", header.size, header.data, n);
    fault.memory = 0;
    if (CHECK(st_open(&file, "many.safetensors", &err))) {
        CHECK(fault.memory < header.size * 5 + (16u << 20));
        for (i = 0; i < n; i++) {
            const st_tensor *t;
            snprintf(name, sizeof name, "layers.%u.w", (unsigned)i);
            t = st_find(&file, name);
            found += t != NULL && t->offset == 8 + header.size + (uint64_t)i * 7919 % n;
        }
        CHECK_EQ(found, n);
        CHECK(st_find(&file, "layers.4294967295.w") == NULL);
        st_close(&file);
    }
    CHECK((clock() - start) / CLOCKS_PER_SEC < 3);
    tool_buffer_free(&header);
}

/* ---- safetensors: numbers and the writer ----------------------------------------------------- */

static void test_st_conversions(void)
{
    static const struct { float value; uint16_t f16, bf16; } known[] = {
        {0.0f, 0, 0}, {-0.0f, 0x8000, 0x8000}, {1.0f, 0x3C00, 0x3F80}, {-2.0f, 0xC000, 0xC000},
        {65504.0f, 0x7BFF, 0x4780}, {65519.0f, 0x7BFF, 0x4780}, {65520.0f, 0x7C00, 0x4780},
        {1e10f, 0x7C00, 0x5015}, {0x1p-14f, 0x0400, 0x3880}, {0x1p-24f, 1, 0x3380},
        {0x1p-25f, 0, 0x3300}, {0x1.8p-25f, 1, 0x3340}, {0x1.8p-24f, 2, 0x33C0},
        {0x1p-26f, 0, 0x3280}, {1.00048828125f, 0x3C00, 0x3F80}, {1.00146484375f, 0x3C02, 0x3F80},
        {1.00390625f, 0x3C04, 0x3F80}, {1.01171875f, 0x3C0C, 0x3F82}, {3e38f, 0x7C00, 0x7F62},
    };
    uint32_t i, same16 = 0, same_b = 0;
    float nan = st_f32_of_bf16(0x7F81);

    for (i = 0; i < sizeof known / sizeof *known; i++) {
        CHECK_EQ(st_f16_of_f32(known[i].value), known[i].f16);
        CHECK_EQ(st_bf16_of_f32(known[i].value), known[i].bf16);
    }
    for (i = 0; i < 65536; i++) {
        float x = st_f32_of_f16((uint16_t)i), y = st_f32_of_bf16((uint16_t)i);
        same16 += isnan(x) ? (st_f16_of_f32(x) & 0x7FFF) > 0x7C00 : st_f16_of_f32(x) == i;
        same_b += isnan(y) ? (st_bf16_of_f32(y) & 0x7FFF) > 0x7F80 : st_bf16_of_f32(y) == i;
    }
    CHECK_EQ(same16, 65536);
    CHECK_EQ(same_b, 65536);
    CHECK(isnan(nan) && st_f32_of_f16(0x3555) == 0.333251953125f);
    CHECK(st_f32_of_f16(0x7C00) > FLT_MAX && st_f32_of_f16(0x0001) == 0x1p-24f);
    CHECK_EQ(st_dtype_of("BF16", 4), ST_BF16);
    CHECK_EQ(st_dtype_of("BF1", 3), ST_N_DTYPES);
    CHECK_EQ(st_dtype_bits(ST_F64), 64);
    CHECK_STR(st_dtype_name(ST_F8_E5M2), "F8_E5M2");
}

static bool write_sample(const char *path, const float *x, const int64_t *n, tool_error *err)
{
    st_writer w;
    int64_t shape[2] = {50, 100}, three = 3;
    double wide[3] = {1, -2, 1e300};
    bool ok;

    memset(&w, 0, sizeof w);
    ok = st_writer_add(&w, "half", ST_F16, 1, &three, err) &&
         st_writer_add(&w, "plain \"quoted\"", ST_F32, 2, shape, err) &&
         st_writer_add(&w, "brain", ST_BF16, 2, shape, err) &&
         st_writer_add(&w, "count", ST_I64, 0, NULL, err) &&
         st_writer_add(&w, "ids", ST_I32, 1, &three, err) &&
         st_writer_add(&w, "wide", ST_F64, 1, &three, err) &&
         st_writer_note(&w, "format", "pt", err) && st_writer_start(&w, path, err) &&
         st_writer_put_f32(&w, 0, x, 3, err) && st_writer_put_f32(&w, 2, x, 4000, err) &&
         st_writer_put_f32(&w, 1, x, 5000, err) && st_writer_put_f32(&w, 2, x + 4000, 1000, err) &&
         st_writer_put_i64(&w, 3, n, 1, err) && st_writer_put_i64(&w, 4, n, 3, err) &&
         st_writer_put(&w, 5, wide, sizeof wide, err) && /* this machine is little-endian */
         st_writer_commit(&w, err);
    st_writer_free(&w);
    return ok;
}

static void test_st_writer(void)
{
    static float x[5000], back[5000];
    static const int64_t n[3] = {12345, -1, INT32_MIN};
    int64_t ints[3] = {0, 0, 0};
    double wide[3];
    st_file file;
    tool_error err = {""};
    uint32_t i, aligned = 0;
    const st_tensor *t;
    uint64_t start;

    for (i = 0; i < 5000; i++) x[i] = (float)random_below(1u << 24) / 4096.0f - 2000.0f;
    CHECK(mkdir("w", 0700) == 0);
    if (!CHECK(write_sample("w/out.safetensors", x, n, &err))) printf("    %s\n", err.message);
    CHECK_EQ(count_entries("w"), 1);
    if (!CHECK(st_open(&file, "w/out.safetensors", &err))) return;
    CHECK_EQ(file.n_tensors, 6);
    CHECK_STR(st_note_of(&file, "format"), "pt");
    start = file.tensors[0].offset;
    for (i = 0; i < 6; i++)
        aligned += (file.tensors[i].offset) % (st_dtype_bits(file.tensors[i].dtype) / 8) == 0;
    CHECK(aligned == 6 && start % 8 == 0);
    t = st_find(&file, "plain \"quoted\"");
    CHECK(t != NULL && st_read_f32(&file, t, 0, 5000, back, &err));
    CHECK(memcmp(back, x, sizeof x) == 0);
    CHECK(st_read_f32(&file, t, 4990, 10, back, &err) && memcmp(back, x + 4990, 40) == 0);
    t = st_find(&file, "brain");
    CHECK(t != NULL && st_read_f32(&file, t, 0, 5000, back, &err));
    CHECK(st_bf16_of_f32(x[4321]) == st_bf16_of_f32(back[4321]));
    CHECK_NEAR(back[4321], x[4321], 8);
    CHECK(st_read_i64(&file, st_find(&file, "ids"), 0, 3, ints, &err));
    CHECK(ints[1] == -1 && ints[2] == INT32_MIN);
    CHECK(st_read_i64(&file, st_find(&file, "count"), 0, 1, ints, &err) && ints[0] == 12345);
    CHECK(st_read_f64(&file, st_find(&file, "wide"), 1, 2, wide, &err) && wide[1] == 1e300);
    CHECK(st_read_f64(&file, t, 0, 2, wide, &err) && (float)wide[1] == back[1]);
    st_close(&file);
}

static void test_st_writer_refuses(void)
{
    st_writer w;
    st_file file;
    static const unsigned char high[8] = {0, 0, 0, 0, 0, 0, 0, 128};
    tool_error err = {""};
    int64_t shape[2] = {2, 3}, huge[2] = {INT64_MAX, 4}, big = INT64_C(1) << 40;
    float x[8] = {0};

    memset(&w, 0, sizeof w);
    CHECK(!st_writer_add(&w, "", ST_F32, 1, shape, &err));
    CHECK(!st_writer_add(&w, "__metadata__", ST_F32, 1, shape, &err));
    CHECK(!st_writer_add(&w, "\xFF", ST_F32, 1, shape, &err));
    CHECK(!st_writer_add(&w, "x", ST_F32, 9, shape, &err));
    CHECK(!st_writer_add(&w, "x", ST_F32, 2, huge, &err));
    CHECK(!st_writer_note(&w, "format", "\xFF", &err));
    CHECK(st_writer_add(&w, "x", ST_F32, 2, shape, &err));
    CHECK(st_writer_add(&w, "x", ST_F32, 2, shape, &err));
    CHECK(!st_writer_start(&w, "w/bad", &err));
    CHECK_HAS(err.message, "\"x\" is declared twice");
    st_writer_free(&w);
    CHECK(st_writer_add(&w, "x", ST_F32, 2, shape, &err));
    CHECK(st_writer_add(&w, "i", ST_I32, 0, NULL, &err));
    CHECK(!st_writer_put(&w, 0, x, 4, &err));
    CHECK(st_writer_start(&w, "w/bad", &err) && !st_writer_start(&w, "w/bad", &err));
    CHECK(!st_writer_add(&w, "y", ST_F32, 2, shape, &err));
    CHECK(!st_writer_put_f32(&w, 0, x, 7, &err));
    CHECK_HAS(err.message, "\"x\": 28 bytes are too many, 24 of 24 are left");
    CHECK(!st_writer_put_f32(&w, 1, x, 1, &err) && !st_writer_put(&w, 2, x, 4, &err));
    CHECK(!st_writer_put_i64(&w, 1, &big, 1, &err) && !st_writer_put_i64(&w, 0, &big, 1, &err));
    CHECK(st_writer_put_f32(&w, 0, x, 5, &err));
    CHECK(!st_writer_commit(&w, &err));
    CHECK_HAS(err.message, "\"x\": 20 of 24 bytes were written");
    st_writer_free(&w);
    CHECK(st_writer_add(&w, "u", ST_U64, 0, NULL, &err) && st_writer_start(&w, "u64", &err));
    CHECK(st_writer_put(&w, 0, high, 8, &err) && st_writer_commit(&w, &err));
    st_writer_free(&w);
    CHECK(st_open(&file, "u64", &err) && !st_read_i64(&file, file.tensors, 0, 1, &big, &err));
    CHECK_HAS(err.message, "needs values below 2^63");
    st_close(&file);
    CHECK_EQ(count_entries("w"), 1);
}

static void test_st_writer_faults(void)
{
    static float x[5000];
    static const int64_t n[3] = {1, 2, 3};
    long at;
    bool ok = false;
    tool_error err;
    st_file file;

    for (at = 0; at < 200 && !ok; at++) {
        fault.at = at;
        fault.steps = 0;
        fault.code = EIO;
        ok = write_sample("w/out.safetensors", x, n, &err);
        fault.at = -1;
        CHECK_EQ(count_entries("w"), 1);
    }
    CHECK(ok && at > 20);
    CHECK(st_open(&file, "w/out.safetensors", &err));
    st_close(&file);
}

/* ---- safetensors: model folders -------------------------------------------------------------- */

#define ONE(name) "{\"" name "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}"

static void make_shards(const char *index)
{
    remove_tree("m");
    CHECK(mkdir("m", 0700) == 0);
    write_st("m/b.safetensors", strlen(ONE("y")), ONE("y"), 1);
    write_st("m/a.safetensors", strlen(ONE("x")), ONE("x"), 1);
    write_text("m/model.safetensors.index.json", index);
}

static void refuse_model(const char *reason)
{
    st_file file;
    tool_error err = {""};

    if (!CHECK(!st_open_model(&file, "m", &err))) st_close(&file);
    if (CHECK_HAS(err.message, reason)) CHECK_HAS(err.message, "m: ");
}

static void refuse_index(const char *index, const char *reason)
{
    make_shards(index);
    refuse_model(reason);
}

static void test_model_good(void)
{
    st_file file;
    tool_error err = {""};
    unsigned char byte;

    make_shards("{\"metadata\":{\"total_size\":2},"
                "\"weight_map\":{\"y\":\"b.safetensors\",\"x\":\"a.safetensors\"}}");
    if (!CHECK(st_open_model(&file, "m", &err))) printf("    %s\n", err.message);
    CHECK(file.n_tensors == 2 && file.n_parts == 2);
    CHECK(st_find(&file, "x") == &file.tensors[0] && st_find(&file, "y") == &file.tensors[1]);
    CHECK_STR(file.parts[file.tensors[1].part].label, "b.safetensors");
    CHECK(st_read(&file, &file.tensors[1], 0, 1, &byte, &err));
    st_close(&file);
    write_st("m/model.safetensors", strlen(ONE("z")), ONE("z"), 1); /* comes first */
    CHECK(st_open_model(&file, "m", &err) && st_find(&file, "z") != NULL && file.n_tensors == 1);
    st_close(&file);
    CHECK(st_open_model(&file, "m/a.safetensors", &err) && st_find(&file, "x") != NULL);
    st_close(&file);
}

/* Rows C1 and C2: a shard's name leads nowhere but to a regular file of the folder. */
static void test_model_paths(void)
{
    static const struct { const char *name, *reason; } bad[] = {
        {"../../x.safetensors", "starts with a dot"}, {"/etc/passwd", "contains '/'"},
        {"a/../../b.safetensors", "contains '/'"}, {"sub/b.safetensors", "contains '/'"},
        {"..", "starts with a dot"}, {".", "starts with a dot"}, {"", "an empty file name"},
        {"..\\\\b.safetensors", "starts with a dot"}, {"a\\\\b.safetensors", "contains '\\'"},
        {"C:b.safetensors", "contains ':'"}, {"a.safetensors\\u0000.safetensors", "byte 0x00"},
        {"a\\n.safetensors", "byte 0x0A"}, {"config.json", "does not end with .safetensors"},
        {".safetensors", "starts with a dot"}, {"gone.safetensors", "No such file"},
        {"link.safetensors", "outside the model folder"}, {"dir.safetensors", "a directory"},
        {"fifo.safetensors", "a FIFO"}, {"device.safetensors", "outside the model folder"},
        {"hard.safetensors", "a hard link (the file has 2 names)"},
        {"file:///etc/passwd", "contains"}, {"~/x.safetensors", "contains '/'"},
        {"a.safetensors/", "contains '/'"}, {"//a.safetensors", "contains '/'"},
    };
    char index[400], longest[300];
    st_file file;
    tool_error err;
    size_t i;

    write_st("outside.safetensors", strlen(ONE("x")), ONE("x"), 1);
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(index, sizeof index, "{\"weight_map\":{\"x\":\"%s\"}}", bad[i].name);
        make_shards(index);
        CHECK(symlink("../outside.safetensors", "m/link.safetensors") == 0);
        CHECK(symlink("/dev/zero", "m/device.safetensors") == 0);
        CHECK(mkfifo("m/fifo.safetensors", 0600) == 0 && mkdir("m/dir.safetensors", 0700) == 0);
        CHECK(link("outside.safetensors", "m/hard.safetensors") == 0);
        refuse_model(bad[i].reason);
    }
    memset(longest, 'l', sizeof longest);
    longest[299] = '\0';
    snprintf(index, sizeof index, "{\"weight_map\":{\"x\":\"%s\"}}", longest);
    refuse_index(index, "longer than 255 bytes");
    make_shards("{\"weight_map\":{\"x\":\"same.safetensors\"}}");
    CHECK(symlink("a.safetensors", "m/same.safetensors") == 0); /* stays inside: fine */
    CHECK(st_open_model(&file, "m", &err));
    st_close(&file);
    CHECK(unlink("m/model.safetensors.index.json") == 0);
    CHECK(symlink("../outside.safetensors", "m/model.safetensors") == 0);
    refuse_model("outside the model folder");
}

static void test_model_index(void)
{
    st_file file;
    tool_error err = {""};
    tool_buffer index = {NULL, 0, 0, false};
    unsigned i;
    FILE *sparse;

    refuse_index("[]", "needs a weight_map");
    refuse_index("{}", "needs a weight_map");
    refuse_index("{\"weight_map\":{}}", "needs a weight_map");
    refuse_index("{\"weight_map\":[\"a.safetensors\"]}", "needs a weight_map");
    refuse_index("{\"weight_map\":{\"x\":1}}", "is not a string");
    refuse_index("{\"weight_map\":{\"x\":\"a.safetensors\",\"x\":\"a.safetensors\"}}", "twice");
    refuse_index("{\"weight_map\":", "index.json: byte 14");
    refuse_index("{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"gone.safetensors\"}}",
                 "gone.safetensors: No such file");
    refuse_index("{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"a.safetensors\"}}",
                 "\"y\" is not in \"a.safetensors\"");
    refuse_index("{\"weight_map\":{\"x\":\"b.safetensors\",\"y\":\"a.safetensors\"}}",
                 "\"x\" is in \"a.safetensors\", but model.safetensors.index.json says \"b.saf");
    refuse_index("{\"weight_map\":{\"q\":\"a.safetensors\"}}", "does not list it");
    make_shards("{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"b.safetensors\"}}");
    write_st("m/b.safetensors", strlen(ONE("x")), ONE("x"), 1);
    refuse_model("\"x\" is in \"a.safetensors\" and in \"b.safetensors\"");
    write_st("m/b.safetensors", 7, "{", 0);
    refuse_model("b.safetensors: its header would have 7 bytes");
    tool_put(&index, "{\"weight_map\":{", 15);
    for (i = 0; i < 100000; i++)
        tool_putf(&index, "%s\"t%u\":\"s%u.safetensors\"", i > 0 ? "," : "", i, i);
    tool_put(&index, "}}", 2);
    refuse_index(index.data, "names 100000 files, at most 500");
    tool_buffer_free(&index);
    sparse = fopen("m/model.safetensors.index.json", "wb");
    CHECK(sparse != NULL && fclose(sparse) == 0);
    CHECK(truncate("m/model.safetensors.index.json", 100000001) == 0);
    fault.memory = 0;
    refuse_model("has 100000001 bytes, at most 100000000");
    CHECK(fault.memory < 10000);
    remove_tree("m");
    CHECK(mkdir("m", 0700) == 0);
    refuse_model("no model.safetensors and no model.safetensors.index.json");
    write_text("m/pytorch_model.bin", "x");
    refuse_model("'model.safetensors',{'format':'pt'})\"");
    CHECK(!st_open_model(&file, "no-such-folder", &err));
}

static void test_model_faults(void)
{
    st_file file;
    long at;
    bool ok = false;

    make_shards("{\"weight_map\":{\"y\":\"b.safetensors\",\"x\":\"a.safetensors\"}}");
    fault.code = ENOMEM;
    for (at = 0; at < 200 && !ok; at++) {
        fault.at = at;
        fault.steps = 0;
        ok = st_open_model(&file, "m", NULL);
        fault.at = -1;
    }
    CHECK(ok && at > 20);
    if (ok) st_close(&file);
}

/* ---- protobuf -------------------------------------------------------------------------------- */

static void refuse_pb(const char *bytes, size_t size, const char *reason)
{
    char *copy = copy_of(bytes, size);
    pb_reader reader = pb_begin(copy, size);
    pb_field field;
    tool_error err = {""};
    int got;

    while ((got = pb_next(&reader, &field, &err)) > 0) continue;
    CHECK_EQ(got, -1);
    CHECK_HAS(err.message, reason);
    free(copy);
}

static void test_protobuf(void)
{
    static const char good[] = "\x08\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01" "\x12\x02" "ab"
                               "\x1D\x00\x00\x80\x3F" "\x21\x01\x02\x03\x04\x05\x06\x07\x08";
    pb_reader reader = pb_begin(good, sizeof good - 1);
    pb_field field;
    tool_error err = {""};
    int32_t n = 0;
    float x = 0;
    bool flag = false;

    CHECK(pb_next(&reader, &field, &err) == 1 && field.number == 1 && field.value == UINT64_MAX);
    CHECK(pb_int32(&field, &n, &err) && n == -1 && pb_bool(&field, &flag, &err) && flag);
    field.value = UINT64_C(1) << 31;
    CHECK(!pb_int32(&field, &n, &err));
    field.value = ~UINT64_C(0) << 31;
    CHECK(pb_int32(&field, &n, &err) && n == INT32_MIN);
    CHECK(!pb_float(&field, &x, &err));
    CHECK_HAS(err.message, "byte 0: field 1 has wire type 0, needs 5");
    CHECK(pb_next(&reader, &field, &err) == 1 && field.size == 2 && field.bytes[1] == 'b');
    CHECK(pb_next(&reader, &field, &err) == 1 && pb_float(&field, &x, &err) && x == 1);
    CHECK(pb_next(&reader, &field, &err) == 1 && field.value == UINT64_C(0x0807060504030201));
    CHECK(pb_next(&reader, &field, &err) == 0);
    refuse_pb("\x08\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x02", 11, "more than 64 bits");
    refuse_pb("\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 12, "more than 64 bits");
    refuse_pb("\x08\x80", 2, "byte 2: the message ends inside a number");
    refuse_pb("\x0A\x05" "abcd", 6, "leads past the end");
    refuse_pb("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11, "leads past the end");
    refuse_pb("\x0A\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 11, "leads past the end");
    refuse_pb("\x0B", 1, "a group");
    refuse_pb("\x0C", 1, "a group");
    refuse_pb("\x0E", 1, "unknown wire type");
    refuse_pb("\x0F", 1, "unknown wire type");
    refuse_pb("\x02\x00", 2, "field number");
    refuse_pb("\x8D\x80\x80\x80\x10", 5, "field number");
    refuse_pb("\x1D\x00\x00\x80", 4, "ends inside a number");
    refuse_pb("\x21\x00\x00\x80\x00\x00\x00\x00", 8, "ends inside a number");
}

/* ---- tokenizer.model ------------------------------------------------------------------------- */

static void pb_put_varint(tool_buffer *out, uint64_t x)
{
    unsigned char c;

    for (; x > 127; x >>= 7) {
        c = (unsigned char)(x & 127) | 128;
        tool_put(out, &c, 1);
    }
    c = (unsigned char)x;
    tool_put(out, &c, 1);
}

static void pb_put_bytes(tool_buffer *out, uint32_t number, const void *bytes, size_t size)
{
    pb_put_varint(out, number << 3 | PB_BYTES);
    pb_put_varint(out, size);
    tool_put(out, bytes, size);
}

static void pb_put_number(tool_buffer *out, uint32_t number, int64_t value)
{
    pb_put_varint(out, number << 3 | PB_VARINT);
    pb_put_varint(out, (uint64_t)value);
}

static void put_piece(tool_buffer *out, const void *bytes, size_t size, float score, int type)
{
    tool_buffer piece = {NULL, 0, 0, false};
    unsigned char raw[5] = {2 << 3 | PB_FIXED32};

    pb_put_bytes(&piece, 1, bytes, size);
    st__store(raw + 1, st__bits(score), 4);
    tool_put(&piece, raw, 5);
    if (type != TOK_NORMAL) pb_put_number(&piece, 3, type);
    pb_put_bytes(out, 1, piece.data, piece.size);
    tool_buffer_free(&piece);
}

typedef struct spec { /* what a test changes of a sound tokenizer.model */
    int64_t model_type, fallback, unk, bos, eos, pad, suffix, dummy_prefix, extra, escape;
    const char *charsmap, *decharsmap;
    int skip_byte, byte_type;  /* -1, TOK_BYTE */
    const char *last;          /* one more piece */
    size_t last_size;
    float last_score;
    int last_type;
} spec;

static const spec sound = {2, 1, 0, 1, 2, -1, 0, 1, 0, 1, NULL, NULL, -1, TOK_BYTE, "ab", 2, -3.5f,
                           TOK_NORMAL};

static tool_buffer make_model(const spec *s)
{
    tool_buffer out = {NULL, 0, 0, false}, part = {NULL, 0, 0, false};
    char name[8];
    int i;

    put_piece(&out, "<unk>", 5, 0, TOK_UNKNOWN);
    put_piece(&out, "<s>", 3, 0, TOK_CONTROL);
    put_piece(&out, "</s>", 4, 0, TOK_CONTROL);
    for (i = 0; i < 256; i++) {
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)i);
        if (i != s->skip_byte) put_piece(&out, name, 6, 0, s->byte_type);
    }
    put_piece(&out, "\xE2\x96\x81", 3, -1, TOK_NORMAL);
    put_piece(&out, "a", 1, -2, TOK_NORMAL);
    put_piece(&out, s->last, s->last_size, s->last_score, s->last_type);
    pb_put_number(&part, 3, s->model_type);
    pb_put_number(&part, 24, s->suffix);
    pb_put_number(&part, 35, s->fallback);
    pb_put_number(&part, 40, s->unk);
    pb_put_number(&part, 41, s->bos);
    pb_put_number(&part, 42, s->eos);
    pb_put_number(&part, 43, s->pad);
    pb_put_bytes(&out, 2, part.data, part.size);
    part.size = 0;
    pb_put_bytes(&part, 1, "identity", 8);
    if (s->charsmap != NULL) pb_put_bytes(&part, 2, s->charsmap, strlen(s->charsmap));
    pb_put_number(&part, 3, s->dummy_prefix);
    pb_put_number(&part, 4, s->extra);
    pb_put_number(&part, 5, s->escape);
    pb_put_bytes(&out, 3, part.data, part.size);
    part.size = 0;
    if (s->decharsmap != NULL) pb_put_bytes(&part, 2, s->decharsmap, strlen(s->decharsmap));
    pb_put_bytes(&out, 5, part.data, part.size);
    tool_buffer_free(&part);
    return out;
}

static void refuse_spec(const spec *s, const char *reason)
{
    tool_buffer model = make_model(s);
    tok_file tok;
    tool_error err = {""};

    if (!CHECK(!tok_parse_model(&tok, copy_of(model.data, model.size), model.size, &err)))
        tok_free(&tok);
    CHECK_HAS(err.message, reason);
    tool_buffer_free(&model);
}

static void test_model_file(void)
{
    tool_buffer model = make_model(&sound);
    tok_file tok;
    tool_error err = {""};
    spec s = sound;
    static char huge[120000];

    if (CHECK(tok_parse_model(&tok, copy_of(model.data, model.size), model.size, &err))) {
        CHECK(tok.n_pieces == 262 && tok.n_merges == 0);
        CHECK(tok.unk_id == 0 && tok.bos_id == 1 && tok.eos_id == 2 && tok.pad_id == -1);
        CHECK(tok.prefix_space == TOK_PREFIX_ALWAYS && tok.strip_space && tok.add_bos);
        CHECK(!tok.add_eos && tok.chat_template == NULL);
        CHECK(tok.pieces[68].type == TOK_BYTE && memcmp(tok.pieces[68].bytes, "<0x41>", 6) == 0);
        CHECK(tok.pieces[261].size == 2 && tok.pieces[261].score == -3.5f);
        CHECK(tok_find(&tok, "\xE2\x96\x81", 3) == 259 && tok_find(&tok, "b", 1) == -1);
        tok_free(&tok);
    } else {
        printf("    %s\n", err.message);
    }
    tool_buffer_free(&model);
    s.last = "\0", s.last_size = 1, s.dummy_prefix = 0; /* T7: a piece that is one NUL is sound */
    s.pad = 2, s.last_type = TOK_USER_DEFINED;
    model = make_model(&s);
    CHECK(tok_parse_model(&tok, copy_of(model.data, model.size), model.size, &err));
    CHECK(tok.n_pieces == 262 && tok.pieces[261].size == 1 && tok.pieces[261].bytes[0] == '\0');
    CHECK(tok.prefix_space == TOK_PREFIX_NEVER && !tok.strip_space && tok.pad_id == 2);
    tok_free(&tok);
    tool_buffer_free(&model);
    memset(huge, 'h', sizeof huge); /* T6, T1 */
    s.last = huge, s.last_size = sizeof huge;
    refuse_spec(&s, "has more than 65535 bytes");
    s.last_size = 65535;
    model = make_model(&s);
    CHECK(tok_parse_model(&tok, copy_of(model.data, model.size), model.size, &err));
    tok_free(&tok);
    tool_buffer_free(&model);
}

static void test_model_file_refused(void)
{
    spec s = sound;

#define WITH(change, reason) (s = sound, change, refuse_spec(&s, reason))
    WITH(s.model_type = 1, "model_type is 1 (Unigram)");
    WITH(s.model_type = 3, "(Word)");
    WITH(s.model_type = 4, "(Char)");
    WITH(s.model_type = 99, "model_type is 99 (unknown)");
    WITH(s.fallback = 0, "byte_fallback is false");
    WITH(s.suffix = 1, "treat_whitespace_as_suffix");
    WITH(s.charsmap = "xyz", "precompiled charsmap (3 bytes)"); /* T5 */
    WITH(s.decharsmap = "xyz", "precompiled charsmap");
    WITH(s.extra = 1, "remove_extra_whitespaces");
    WITH(s.escape = 0, "escape_whitespaces");
    WITH(s.unk = -1, "unk_id is -1");
    WITH(s.unk = 1, "unk_id is 1, but that piece has type 3");
    WITH(s.bos = 262, "bos_id is 262, but there are 262 pieces"); /* T3 */
    WITH(s.eos = INT32_MAX, "eos_id is 2147483647");
    WITH(s.pad = -2, "pad_id is -2");
    WITH(s.bos = 260, "bos_id is 260, but that piece has type 1");
    WITH(s.bos = INT64_C(1) << 40, "does not fit 32 bits");
    WITH(s.skip_byte = 0x0A, "\"<0x0A>\" is missing");
    WITH(s.byte_type = TOK_NORMAL, "\"<0x00>\" does not have the type of a byte");
    WITH((s.last = "<0x-1>", s.last_size = 6, s.last_type = TOK_BYTE), "looks like"); /* T4 */
    WITH((s.last = "<0xZZ>", s.last_size = 6), "looks like a byte");
    WITH((s.last = "<0xff>", s.last_size = 6), "looks like a byte");
    WITH((s.last = "<0x+f>", s.last_size = 6), "looks like a byte");
    WITH(s.last_type = TOK_BYTE, "the type of a byte, but not its name");
    WITH((s.last = "<0x41>", s.last_size = 6), "has two ids, 68 and 261");
    WITH((s.last = "a", s.last_size = 1), "\"a\" has two ids, 260 and 261");
    WITH(s.last_size = 0, "an empty piece");
    WITH((s.last = "\xFF", s.last_size = 1), "\"\\xFF\" is not valid UTF-8");
    WITH(s.last_score = st_f32_of_bf16(0x7FC0), "a score that is not finite");
    WITH(s.last_score = -st_f32_of_bf16(0x7F80), "a score that is not finite");
    WITH(s.last_type = 7, "unknown type 7");
    WITH(s.last_type = 0, "unknown type 0");
    WITH(s.last_type = TOK_UNKNOWN, "2 pieces are of the unknown type");
#undef WITH
}

/* Cuts and flips of a whole model, and failing memory: an error or a sound table, never a crash. */
static void test_model_file_damage(void)
{
    tool_buffer model = make_model(&sound);
    tok_file tok;
    char *copy;
    uint32_t round;
    size_t cut;
    long at;
    bool ok = false;

    for (cut = 0; cut < model.size; cut += cut < model.size - 80 ? 97 : 1)
        if (tok_parse_model(&tok, copy_of(model.data, cut), cut, NULL)) tok_free(&tok);
    CHECK(!tok_parse_model(&tok, copy_of("", 0), 0, NULL));
    for (round = 0; round < 1500; round++) {
        size_t where = round < 600 ? model.size - 1 - round / 8 :
                       random_below((uint32_t)model.size);
        copy = copy_of(model.data, model.size);
        copy[where] = (char)(copy[where] ^ 1 << round % 8);
        if (tok_parse_model(&tok, copy, model.size, NULL)) {
            CHECK(tok_find(&tok, "<0xFF>", 6) >= 0 && tok.unk_id < tok.n_pieces);
            tok_free(&tok);
        }
    }
    for (at = 0; at < 40 && !ok; at++) {
        fault.at = at;
        fault.steps = 0;
        ok = tok_parse_model(&tok, copy_of(model.data, model.size), model.size, NULL);
        fault.at = -1;
    }
    CHECK(ok && at > 3);
    if (ok) tok_free(&tok);
    tool_buffer_free(&model);
}

/* ---- tokenizer.json -------------------------------------------------------------------------- */

#define SPACE "\xE2\x96\x81"
#define PREPEND "{\"type\":\"Prepend\",\"prepend\":\"" SPACE "\"}"
#define REPLACE "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" SPACE "\"}"
#define METASPACE(rest) "{\"type\":\"Metaspace\",\"replacement\":\"" SPACE "\"," rest "}"
#define BACK "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" SPACE "\"},\"content\":\" \"}"
#define FALLBACK "{\"type\":\"ByteFallback\"}"
#define STRIP "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}"

typedef struct parts { /* of a sound tokenizer.json */
    const char *normalizer, *pre_tokenizer, *decoder, *post, *added, *model, *vocab, *merges;
    int skip_byte;
} parts;

static const parts sound_json = {
    "{\"type\":\"Sequence\",\"normalizers\":[" PREPEND "," REPLACE "]}", "null",
    "{\"type\":\"Sequence\",\"decoders\":[" BACK "," FALLBACK ",{\"type\":\"Fuse\"}," STRIP "]}",
    "{\"type\":\"TemplateProcessing\",\"single\":["
    "{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
    "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],"
    "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\","
    "\"ids\":[1],\"tokens\":[\"<s>\"]}}}",
    "{\"id\":0,\"content\":\"<unk>\",\"special\":true},"
    "{\"id\":1,\"content\":\"<s>\",\"special\":true},"
    "{\"id\":2,\"content\":\"</s>\",\"special\":true}",
    "\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"<unk>\",\"continuing_subword_prefix\":null,"
    "\"end_of_word_suffix\":\"\",\"fuse_unk\":true,\"byte_fallback\":true,\"ignore_merges\":false",
    ",\"" SPACE "\":259,\"a\":260,\"b\":261,\"ab\":262,\"" SPACE "a\":263",
    "\"a b\",[\"" SPACE "\",\"a\"]", -1
};

static tool_buffer make_json(const parts *p)
{
    tool_buffer out = {NULL, 0, 0, false};
    int i;

#define PUT(text) tool_put(&out, text, strlen(text))
    PUT("{\"version\":\"1.0\",\"added_tokens\":[");
    PUT(p->added);
    PUT("],\"normalizer\":");
    PUT(p->normalizer);
    PUT(",\"pre_tokenizer\":");
    PUT(p->pre_tokenizer);
    PUT(",\"post_processor\":");
    PUT(p->post);
    PUT(",\"decoder\":");
    PUT(p->decoder);
    PUT(",\"model\":{");
    PUT(p->model);
    PUT(",\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2");
    for (i = 0; i < 256; i++)
        if (i != p->skip_byte) tool_putf(&out, ",\"<0x%02X>\":%d", (unsigned)i, i + 3);
    PUT(p->vocab);
    PUT("},\"merges\":[");
    PUT(p->merges);
    PUT("]}}");
#undef PUT
    return out;
}

static bool parse_parts(tok_file *tok, const parts *p, tool_error *err)
{
    tool_buffer json = make_json(p);
    bool ok = tok_parse_json(tok, copy_of(json.data, json.size), json.size, err);

    tool_buffer_free(&json);
    return ok;
}

static void refuse_parts(const parts *p, const char *reason)
{
    tok_file tok;
    tool_error err = {""};

    if (!CHECK(!parse_parts(&tok, p, &err))) tok_free(&tok);
    CHECK_HAS(err.message, reason);
}

static void test_json_tokenizer(void)
{
    tok_file tok;
    tool_error err = {""};
    parts p = sound_json;

    if (!CHECK(parse_parts(&tok, &p, &err))) {
        printf("    %s\n", err.message);
        return;
    }
    CHECK(tok.n_pieces == 264 && tok.n_merges == 2);
    CHECK(tok.unk_id == 0 && tok.bos_id == 1 && tok.eos_id == 2 && tok.pad_id == -1);
    CHECK(tok.prefix_space == TOK_PREFIX_ALWAYS && tok.strip_space && tok.add_bos && !tok.add_eos);
    CHECK(tok.pieces[0].type == TOK_UNKNOWN && tok.pieces[1].type == TOK_CONTROL);
    CHECK(tok.pieces[3].type == TOK_BYTE && tok.pieces[263].type == TOK_NORMAL);
    CHECK(tok.merges[0].left == 260 && tok.merges[0].right == 261 && tok.merges[0].result == 262);
    CHECK(tok.merges[1].left == 259 && tok.merges[1].right == 260 && tok.merges[1].result == 263);
    CHECK(tok.pieces[262].score == -1 && tok.pieces[263].score == -2 && tok.pieces[260].score == 0);
    tok_free(&tok);
    p.normalizer = "null";
    p.pre_tokenizer = METASPACE("\"prepend_scheme\":\"first\",\"split\":false");
    CHECK(parse_parts(&tok, &p, &err) && tok.prefix_space == TOK_PREFIX_FIRST && !tok.prefix_each);
    tok_free(&tok);
    p.pre_tokenizer = METASPACE("\"prepend_scheme\":\"always\",\"split\":false");
    CHECK(parse_parts(&tok, &p, &err) && tok.prefix_space == TOK_PREFIX_FIRST && tok.prefix_each);
    tok_free(&tok);
    p.pre_tokenizer = METASPACE("\"prepend_scheme\":\"never\",\"split\":false");
    p.decoder = "{\"type\":\"Sequence\",\"decoders\":[" BACK "," FALLBACK ",{\"type\":\"Fuse\"}]}";
    p.post = "null";
    CHECK(parse_parts(&tok, &p, &err) && tok.prefix_space == TOK_PREFIX_NEVER);
    CHECK(!tok.strip_space && !tok.add_bos && tok.bos_id == 1);
    tok_free(&tok);
    p.decoder = "{\"type\":\"Sequence\",\"decoders\":[" FALLBACK ","
                METASPACE("\"prepend_scheme\":\"first\"") "]}";
    CHECK(parse_parts(&tok, &p, &err) && tok.strip_space);
    tok_free(&tok);
    p = sound_json;
    p.normalizer = REPLACE; /* added tokens beyond the vocabulary, one special, one not */
    p.added = "{\"id\":265,\"content\":\"[X]\",\"special\":false},{\"id\":0,\"content\":\"<unk>\","
              "\"special\":true},{\"id\":264,\"content\":\"[PAD]\",\"special\":true}";
    CHECK(parse_parts(&tok, &p, &err) && tok.n_pieces == 266);
    CHECK(tok.prefix_space == TOK_PREFIX_NEVER && tok.pieces[265].type == TOK_USER_DEFINED);
    CHECK(tok.pieces[264].type == TOK_CONTROL && tok.pieces[0].type == TOK_UNKNOWN);
    tok_free(&tok);
}

static void test_json_tokenizer_model(void)
{
    parts p = sound_json;

#define WITH(change, reason) (p = sound_json, change, refuse_parts(&p, reason))
    WITH(p.model = "\"type\":\"Unigram\"", "model \"Unigram\" is not supported");
    WITH(p.model = "\"type\":\"WordPiece\"", "model \"WordPiece\"");
    WITH(p.model = "\"type\":\"WordLevel\"", "model \"WordLevel\"");
    WITH(p.model = "\"unk_token\":null", "model an object is not supported");
    WITH(p.model = "\"type\":\"BPE\"", "byte_fallback is false");
    WITH(p.model = "\"type\":\"BPE\",\"byte_fallback\":1", "\"byte_fallback\" is 1");
    WITH(p.model = "\"type\":\"BPE\",\"byte_fallback\":true,\"dropout\":0.1", "dropout");
    WITH(p.model = "\"type\":\"BPE\",\"byte_fallback\":true,\"continuing_subword_prefix\":\"##\"",
         "continuing_subword_prefix is \"##\"");
    WITH(p.model = "\"type\":\"BPE\",\"byte_fallback\":true,\"end_of_word_suffix\":\"</w>\"",
         "end_of_word_suffix");
    WITH(p.model = "\"type\":\"BPE\",\"byte_fallback\":true,\"ignore_merges\":true",
         "ignore_merges");
    WITH(p.model = "\"type\":\"BPE\",\"byte_fallback\":true,\"unk_token\":\"[UNK]\"", "[UNK]");
    WITH(p.model = "\"type\":\"BPE\",\"byte_fallback\":true,\"unk_token\":\"<0x00>\"", "a byte");
    /* ids */
    WITH(p.vocab = ",\"a\":260", "\"a\" has id 260, but the ids of 260 pieces go from 0 to 259");
    WITH(p.vocab = ",\"a\":1000000000", "negative or above 2^24");
    WITH(p.vocab = ",\"a\":-1", "has id -1, needs an integer");
    WITH(p.vocab = ",\"a\":9007199254740993", "negative or above 2^24");
    WITH(p.vocab = ",\"a\":99999999999999999999", "needs an integer");
    WITH(p.vocab = ",\"a\":1.5", "has id 1.5, needs an integer");
    WITH(p.vocab = ",\"a\":1e3", "has id 1e3, needs an integer");
    WITH(p.vocab = ",\"a\":\"259\"", "has id \"259\", needs an integer");
    WITH(p.vocab = ",\"a\":258", "\"a\" has id 258, as \"<0xFF>\" has");
    WITH(p.vocab = ",\"a\":259,\"a\":260", "the key \"a\" occurs twice");
    WITH(p.vocab = ",\"\":259", "an empty piece");
    WITH(p.vocab = ",\"<0x-1>\":259", "looks like a byte");
    WITH(p.vocab = ",\"\\ud800\":259", "a surrogate without its pair");
    WITH((p.skip_byte = 0x80, p.vocab = ",\"q\":131"), "\"<0x80>\" is missing");
    /* T8 and the like */
    WITH(p.merges = "\"a a\"", "merge 0: the result \"aa\" is not in the vocabulary");
    WITH(p.merges = "\"a b\",\"a q\"", "merge 1: the right half \"q\"");
    WITH(p.merges = "\"q a\"", "the left half \"q\"");
    WITH(p.merges = "\"ab\"", "\"ab\" is not two pieces");
    WITH(p.merges = "\"a b b\"", "is not two pieces");
    WITH(p.merges = "\"a \"", "the right half \"\"");
    WITH(p.merges = "[\"a\"]", "is not two pieces");
    WITH(p.merges = "[\"a\",\"b\",\"c\"]", "is not two pieces");
    WITH(p.merges = "[\"a\",1]", "is not two pieces");
    WITH(p.merges = "[\" a\",\"b\"]", "the left half \" a\"");
    WITH(p.merges = "1", "is not two pieces");
    WITH(p.merges = "\"a b\",[\"a\",\"b\"]", "the merge of \"a\" and \"b\" is there twice");
#undef WITH
}

static void test_json_tokenizer_steps(void)
{
    parts p = sound_json;

#define WITH(change, reason) (p = sound_json, change, refuse_parts(&p, reason))
#define ADDED(rest) "{\"id\":264,\"content\":" rest "}"
    WITH(p.added = ADDED("\"\",\"special\":true"), "an added token is empty");
    WITH(p.added = ADDED("5"), "is 5, not a string");
    WITH(p.added = ADDED("\"a\""), "\"a\" has two ids, 260 and 264");
    WITH(p.added = "{\"id\":5,\"content\":\"new\"}", "\"new\" has id 5, as \"<0x02>\" has");
    WITH(p.added = "{\"id\":270,\"content\":\"new\"}", "has id 270, but the ids of 265");
    WITH(p.added = "{\"content\":\"new\"}", "has id nothing");
    WITH(p.added = ADDED("\"x\",\"lstrip\":true"), "\"x\": lstrip is not supported");
    WITH(p.added = "7", "is nothing, not a string");
    WITH(p.normalizer = "null", "nothing turns spaces into U+2581");
    WITH(p.normalizer = PREPEND, "nothing turns spaces");
    WITH(p.normalizer = "{\"type\":\"NFKC\"}", "normalizer \"NFKC\" is not supported");
    WITH(p.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Precompiled\"}]}",
         "a precompiled charsmap is not supported");
    WITH(p.normalizer = "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(a+)+\"}}",
         "normalizer \"Replace\" is not supported"); /* T9 */
    WITH(p.normalizer = "{\"type\":\"Prepend\",\"prepend\":\"_\"}", "normalizer \"Prepend\"");
    WITH(p.normalizer = "5", "normalizer 5 is not supported");
    WITH(p.pre_tokenizer = "{\"type\":\"ByteLevel\"}", "byte-level BPE is not supported");
    WITH(p.pre_tokenizer = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a+)+\"}}", "\"Split\"");
    WITH(p.pre_tokenizer = METASPACE("\"split\":false"), "both a normalizer and Metaspace");
    WITH((p.normalizer = "null", p.pre_tokenizer = METASPACE("\"split\":true")), "split is true");
    WITH((p.normalizer = "null", p.pre_tokenizer = METASPACE("\"x\":0")), "split is true");
    WITH((p.normalizer = "null",
          p.pre_tokenizer = METASPACE("\"split\":false,\"prepend_scheme\":\"maybe\"")),
         "prepend_scheme is \"maybe\"");
    WITH((p.normalizer = "null",
          p.pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"_\"}"),
         "replacement is not U+2581");
    WITH(p.decoder = "null", "decoder null is not supported");
    WITH(p.decoder = "{\"type\":\"WordPiece\"}", "decoder \"WordPiece\"");
    WITH(p.decoder = "{\"type\":\"ByteLevel\"}", "byte-level BPE");
    WITH(p.decoder = FALLBACK, "nothing turns U+2581 into spaces");
    WITH(p.decoder = BACK, "needs ByteFallback");
    WITH(p.decoder = "{\"type\":\"Sequence\",\"decoders\":[" BACK "," BACK "]}", "\"Replace\"");
    WITH(p.decoder = "{\"type\":\"Strip\",\"content\":\" \",\"start\":2,\"stop\":0}", "\"Strip\"");
    WITH(p.post = "{\"type\":\"RobertaProcessing\"}", "post_processor \"RobertaProcessing\"");
    WITH(p.post = "{\"type\":\"TemplateProcessing\",\"single\":[]}", "without the text");
    WITH(p.post = "{\"type\":\"TemplateProcessing\",\"single\":["
         "{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],"
         "\"special_tokens\":{\"<s>\":{\"ids\":[9]}}}",
         "token \"<s>\" is id 1 in the vocabulary, 9 in special_tokens");
    WITH(p.post = "{\"type\":\"TemplateProcessing\",\"single\":["
         "{\"SpecialToken\":{\"id\":\"<q>\"}}]}",
         "\"<q>\" is id -1");
#undef ADDED
#undef WITH
}

static void test_json_tokenizer_damage(void)
{
    tool_buffer json = make_json(&sound_json);
    tok_file tok;
    char *copy;
    uint32_t round;
    long at;
    bool ok = false;

    for (round = 0; round < 1500; round++) {
        size_t where = random_below((uint32_t)json.size);
        if (where > 1800 && round % 4 != 0) where = where % 1800; /* not only the bytes' names */
        copy = copy_of(json.data, json.size);
        copy[where] = (char)(round % 2 ? copy[where] ^ 1 << round % 8 :
                             "{}[]\",:\\u09a<"[random_below(13)]);
        if (tok_parse_json(&tok, copy, json.size, NULL)) {
            CHECK(tok_find(&tok, "<0xFF>", 6) >= 0 && tok.bos_id < tok.n_pieces);
            tok_free(&tok);
        }
    }
    for (at = 0; at < 60 && !ok; at++) {
        fault.at = at;
        fault.steps = 0;
        ok = tok_parse_json(&tok, copy_of(json.data, json.size), json.size, NULL);
        fault.at = -1;
    }
    CHECK(ok && at > 6);
    if (ok) tok_free(&tok);
    tool_buffer_free(&json);
}

/* ---- tokenizer: folders ---------------------------------------------------------------------- */

static void refuse_folder(const char *reason)
{
    tok_file tok;
    tool_error err = {""};

    if (!CHECK(!tok_open(&tok, "t", &err))) tok_free(&tok);
    CHECK_HAS(err.message, reason);
}

static void test_tokenizer_folder(void)
{
    tool_buffer json = make_json(&sound_json), model = make_model(&sound);
    tok_file tok;
    tool_error err = {""};

    CHECK(mkdir("t", 0700) == 0);
    refuse_folder("no tokenizer.model and no tokenizer.json");
    write_bytes("t/tokenizer.json", json.data, json.size);
    CHECK(tok_open(&tok, "t", &err) && tok.n_merges == 2);
    tok_free(&tok);
    CHECK(tok_open(&tok, "t/tokenizer.json", &err) && tok.n_merges == 2);
    tok_free(&tok);
    write_bytes("t/tokenizer.model", model.data, model.size);
    CHECK(tok_open(&tok, "t/tokenizer.model", &err) && tok.n_merges == 0);
    tok_free(&tok);
    write_text("t/special_tokens_map.json",
               "{\"eos_token\":{\"content\":\"<s>\"},\"pad_token\":null}");
    write_text("t/tokenizer_config.json", "{\"bos_token\":\"</s>\",\"pad_token\":\"[PAD]\","
               "\"add_bos_token\":false,\"add_eos_token\":true,\"chat_template\":\"{{ x }}\","
               "\"add_prefix_space\":null,\"model_max_length\":1000000000000000019884624838656,"
               "\"added_tokens_decoder\":{\"0\":{\"content\":\"<unk>\",\"special\":true},"
               "\"262\":{\"content\":\"[PAD]\",\"special\":true}}}");
    if (CHECK(tok_open(&tok, "t", &err))) {
        CHECK(tok.n_merges == 0 && tok.n_pieces == 263 && tok.pieces[262].type == TOK_CONTROL);
        CHECK(tok.bos_id == 2 && tok.eos_id == 1 && tok.pad_id == 262 && tok.unk_id == 0);
        CHECK(!tok.add_bos && tok.add_eos && tok.prefix_space == TOK_PREFIX_ALWAYS);
        CHECK_STR(tok.chat_template, "{{ x }}");
        tok_free(&tok);
    } else {
        printf("    %s\n", err.message);
    }
    write_text("t/chat_template.jinja", "{{ jinja }}");
    write_text("t/tokenizer_config.json", "{\"add_prefix_space\":false,\"chat_template\":["
               "{\"name\":\"default\",\"template\":\"{{ d }}\"}]}");
    CHECK(tok_open(&tok, "t", &err) && tok.prefix_space == TOK_PREFIX_NEVER);
    CHECK_STR(tok.chat_template, "{{ jinja }}");
    tok_free(&tok);
    CHECK(unlink("t/chat_template.jinja") == 0);
    CHECK(tok_open(&tok, "t", &err));
    CHECK_STR(tok.chat_template, "{{ d }}");
    tok_free(&tok);
    write_text("t/tokenizer_config.json", "{\"bos_token\":\"<bos>\"}");
    refuse_folder("tokenizer_config.json: bos_token \"<bos>\" is not in the vocabulary");
    write_text("t/tokenizer_config.json", "{\"bos_token\":null,\"add_bos_token\":true}");
    refuse_folder("there is none");
    write_text("t/tokenizer_config.json", "{\"chat_template\":5}");
    refuse_folder("chat_template is 5, not a string");
    write_text("t/tokenizer_config.json",
               "{\"added_tokens_decoder\":{\"-1\":{\"content\":\"q\"}}}");
    refuse_folder("\"-1\" is not an id");
    write_text("t/tokenizer_config.json",
               "{\"added_tokens_decoder\":{\"300\":{\"content\":\"q\"}}}");
    refuse_folder("\"q\" has id 300, but the ids of 263");
    write_text("t/tokenizer_config.json", "[]");
    refuse_folder("is not an object");
    CHECK(unlink("t/tokenizer_config.json") == 0);
    CHECK(symlink("/etc/passwd", "t/tokenizer_config.json") == 0);
    refuse_folder("outside the model folder");
    tool_buffer_free(&json);
    tool_buffer_free(&model);
}

static void refuse_generation(const char *text, const char *reason)
{
    tok_generation g;
    tool_error err = {""};

    write_text("g/generation_config.json", text);
    CHECK(!tok_generation_read(&g, "g", 100, &err));
    CHECK_HAS(err.message, "generation_config.json: ");
    CHECK_HAS(err.message, reason);
}

static void test_generation(void)
{
    tok_generation g;
    tool_error err = {""};
    tool_buffer many = {NULL, 0, 0, false};
    unsigned i;

    CHECK(mkdir("g", 0700) == 0);
    CHECK(tok_generation_read(&g, "g", 100, &err));
    CHECK(g.n_eos_ids == 0 && g.bos_id == -1 && g.temperature < 0 && g.top_k == -1);
    write_text("g/generation_config.json", "{\"eos_token_id\":2,\"bos_token_id\":1,\"top_k\":50,"
               "\"temperature\":0.6,\"top_p\":0.9,\"do_sample\":true,\"pad_token_id\":null}");
    CHECK(tok_generation_read(&g, "g", 100, &err));
    CHECK(g.n_eos_ids == 1 && g.eos_ids[0] == 2 && g.bos_id == 1 && g.pad_id == -1);
    CHECK(g.temperature == 0.6 && g.top_p == 0.9 && g.top_k == 50 && g.do_sample);
    write_text("g/generation_config.json", "{\"eos_token_id\":[2,99]}");
    CHECK(tok_generation_read(&g, "g", 100, &err) && g.n_eos_ids == 2 && g.eos_ids[1] == 99);
    refuse_generation("{\"eos_token_id\":100}",
                      "\"eos_token_id\" is 100, needs an integer from 0 to 99");
    refuse_generation("{\"eos_token_id\":4294967295}", "4294967295"); /* T13 */
    refuse_generation("{\"eos_token_id\":-1}", "-1");
    refuse_generation("{\"eos_token_id\":[2,100]}", "100 is not an id from 0 to 99");
    refuse_generation("{\"eos_token_id\":[\"2\"]}", "\"2\" is not an id");
    refuse_generation("{\"temperature\":-1}", "\"temperature\" is -1");
    refuse_generation("{\"top_p\":1.5}", "\"top_p\" is 1.5");
    refuse_generation("{\"top_k\":2147483648}", "\"top_k\"");
    refuse_generation("{\"temperature\":NaN}", "NaN");
    tool_put(&many, "{\"eos_token_id\":[0", 18);
    for (i = 0; i < 100000; i++) tool_put(&many, ",1", 2);
    tool_put(&many, "]}", 2);
    refuse_generation(many.data, "more than 64 ids");
    tool_buffer_free(&many);
}

/* ---- main ------------------------------------------------------------------------------------ */

static void test_common(void)
{
    test_numbers();
    test_text_helpers();
    test_sorting();
    test_read_file();
    test_inside();
    test_output();
    test_output_faults();
    test_output_signal();
    test_progress();
}

static void test_json(void)
{
    test_json_refused();
    test_json_values();
    test_json_numbers();
    test_json_limits();
    test_json_settings();
    test_json_damage();
}

static void test_safetensors(void)
{
    refuse_st_all();
    test_st_sizes();
    test_st_good();
    test_st_damage();
    test_st_many();
    test_st_conversions();
    test_st_writer();
    test_st_writer_refuses();
    test_st_writer_faults();
    test_model_good();
    test_model_paths();
    test_model_index();
    test_model_faults();
}

static void test_tokenizers(void)
{
    test_protobuf();
    test_model_file();
    test_model_file_refused();
    test_model_file_damage();
    test_json_tokenizer();
    test_json_tokenizer_model();
    test_json_tokenizer_steps();
    test_json_tokenizer_damage();
    test_tokenizer_folder();
    test_generation();
}

int main(void)
{
    const char *place = getenv("TMPDIR");
    char folder[512];

    snprintf(folder, sizeof folder, "%.400s/monet-test-XXXXXX", place != NULL ? place : "/tmp");
    if (mkdtemp(folder) == NULL || chdir(folder) != 0) {
        fprintf(stderr, "%s: %s\n", folder, strerror(errno));
        return 2;
    }
    test_common();
    test_json();
    test_safetensors();
    test_tokenizers();
    if (chdir("/") == 0) remove_tree(folder);
    return test_end("tools");
}
