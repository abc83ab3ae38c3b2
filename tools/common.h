/* common.h: what all tools of monet.h share: errors, checked sizes, memory, names, files, progress.
   Include it before any system header: it asks for POSIX and for 64-bit file offsets.

   Conventions. A function that can fail returns bool (or NULL, or -1) and takes a tool_error,
   which may be NULL. Nothing here exits. Whatever comes out of a file is a pointer and a size;
   sizes are uint64_t until memory is asked for, and products and sums of them are checked.     */
#ifndef TOOL_COMMON_H
#define TOOL_COMMON_H

#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* realpath */
#endif
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1 /* leave the rest as it is without the three above */
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define TOOL_UNUSED __attribute__((unused)) /* a tool includes a header and uses half of it */

/* Every system call and allocation that can fail goes through this macro, so that a test can put
   its own functions in their place.                                                            */
#ifndef TOOL_SYS
#define TOOL_SYS(name) name
#endif

/* ---- errors ---------------------------------------------------------------------------------- */

typedef struct tool_error {
    char message[512];
} tool_error;

/* Writes the message and returns false, so that a check is one line. err may be NULL. */
static TOOL_UNUSED bool tool_fail(tool_error *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static TOOL_UNUSED bool tool_fail(tool_error *err, const char *format, ...)
{
    va_list args;

    if (err == NULL) return false;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    return false;
}

/* Puts "label: " before the message. Of a label that is too long the end is kept, and of all that
   is too long the message: it says what to do. Returns false.                                  */
static TOOL_UNUSED bool tool_prefix(tool_error *err, const char *label)
{
    size_t size = strlen(label), room, most;
    tool_error old;

    if (err == NULL) return false;
    old = *err;
    room = sizeof old.message - 1 - strlen(old.message);
    most = room < 5 ? 0 : room - 5 < 200 ? room - 5 : 200; /* 5 = "..." and ": " */
    if (size <= most) return tool_fail(err, "%s: %s", label, old.message);
    if (most > 0) return tool_fail(err, "...%s: %s", label + (size - most), old.message);
    return false;
}

/* ---- checked sizes --------------------------------------------------------------------------- */

static TOOL_UNUSED bool tool_mul(uint64_t a, uint64_t b, uint64_t *product)
{
    if (a != 0 && b > UINT64_MAX / a) return false;
    *product = a * b;
    return true;
}

static TOOL_UNUSED bool tool_add(uint64_t a, uint64_t b, uint64_t *sum)
{
    if (b > UINT64_MAX - a) return false;
    *sum = a + b;
    return true;
}

/* "2.9 GB", decimal units as disks and networks count. Returns out. */
#define TOOL_HUMAN 32
static TOOL_UNUSED const char *tool_human(char out[TOOL_HUMAN], uint64_t bytes)
{
    static const char *const units[] = {"kB", "MB", "GB", "TB", "PB", "EB"};
    uint64_t tenth = 100; /* bytes in a tenth of the unit */
    uint64_t shown;
    size_t unit = 0;

    if (bytes < 1000) {
        snprintf(out, TOOL_HUMAN, "%u bytes", (unsigned)bytes);
        return out;
    }
    while ((shown = bytes / tenth + (bytes % tenth >= tenth / 2)) >= 10000) {
        tenth *= 1000;
        unit++;
    }
    snprintf(out, TOOL_HUMAN, "%u.%u %s", (unsigned)(shown / 10), (unsigned)(shown % 10),
             units[unit]);
    return out;
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* count * size bytes, all zero; free() releases them. */
static TOOL_UNUSED void *tool_alloc(uint64_t count, uint64_t size, tool_error *err)
{
    uint64_t bytes;
    char text[TOOL_HUMAN];
    void *memory = NULL;

    if (tool_mul(count, size, &bytes) && bytes <= SIZE_MAX / 2)
        memory = TOOL_SYS(calloc)(1, bytes > 0 ? (size_t)bytes : 1);
    else
        bytes = UINT64_MAX;
    if (memory == NULL) tool_fail(err, "out of memory: %s are needed", tool_human(text, bytes));
    return memory;
}

/* Makes room for `need` elements in the growing array whose pointer is at `array` (the address of
   an element pointer, initially NULL). Doubles, so that n appends cost O(n). Does not zero.    */
static TOOL_UNUSED bool tool_grow(void *array, size_t *capacity, uint64_t need, size_t size,
                                  tool_error *err)
{
    uint64_t target = *capacity < 16 ? 16 : (uint64_t)*capacity * 2;
    uint64_t bytes;
    void *old, *grown;

    if (need <= *capacity) return true;
    if (target < need) target = need;
    if (!tool_mul(target, size, &bytes) || bytes > SIZE_MAX / 2)
        return tool_fail(err, "out of memory: an array would be too large");
    memcpy(&old, array, sizeof old);
    grown = TOOL_SYS(realloc)(old, (size_t)bytes);
    if (grown == NULL) return tool_fail(err, "out of memory: an array could not grow");
    memcpy(array, &grown, sizeof grown);
    *capacity = (size_t)target;
    return true;
}

static TOOL_UNUSED char *tool_copy(const char *bytes, size_t size, tool_error *err)
{
    char *copy = tool_alloc((uint64_t)size + 1, 1, err);

    if (copy != NULL) memcpy(copy, bytes, size);
    return copy;
}

/* "a" "/" "b" in new memory. */
static TOOL_UNUSED char *tool_join(const char *folder, const char *name, tool_error *err)
{
    size_t a = strlen(folder), b = strlen(name);
    char *path = tool_alloc((uint64_t)a + b + 2, 1, err);

    if (path == NULL) return NULL;
    memcpy(path, folder, a);
    if (a > 0 && path[a - 1] != '/') path[a++] = '/';
    memcpy(path + a, name, b);
    return path;
}

/* What stands behind the last slash. */
static TOOL_UNUSED const char *tool_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash != NULL ? slash + 1 : path;
}

/* Text that grows. A failure is remembered in `failed`, to be looked at once, at the end. */
typedef struct tool_buffer {
    char  *data; /* ends with a NUL that is not counted; NULL while empty */
    size_t size, capacity;
    bool   failed;
} tool_buffer;

static TOOL_UNUSED void tool_put(tool_buffer *buffer, const void *bytes, size_t size)
{
    if (buffer->failed) return;
    if (!tool_grow(&buffer->data, &buffer->capacity, (uint64_t)buffer->size + size + 1, 1, NULL)) {
        buffer->failed = true;
        return;
    }
    if (size > 0) memcpy(buffer->data + buffer->size, bytes, size);
    buffer->size += size;
    buffer->data[buffer->size] = '\0';
}

static TOOL_UNUSED void tool_putf(tool_buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* For numbers and short words: at most 255 bytes at a time, or the buffer is marked as failed. */
static TOOL_UNUSED void tool_putf(tool_buffer *buffer, const char *format, ...)
{
    char text[256];
    va_list args;
    int size;

    va_start(args, format);
    size = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (size < 0 || (size_t)size >= sizeof text)
        buffer->failed = true;
    else
        tool_put(buffer, text, (size_t)size);
}

/* A CSV field in quotes, as RFC 4180 says. */
static TOOL_UNUSED void tool_put_csv(tool_buffer *buffer, const char *bytes, size_t size)
{
    size_t k;

    tool_put(buffer, "\"", 1);
    for (k = 0; k < size; k++)
        tool_put(buffer, bytes[k] == '"' ? "\"\"" : bytes + k, bytes[k] == '"' ? 2 : 1);
    tool_put(buffer, "\"", 1);
}

static TOOL_UNUSED void tool_buffer_free(tool_buffer *buffer)
{
    free(buffer->data);
    memset(buffer, 0, sizeof *buffer);
}

/* ---- text ------------------------------------------------------------------------------------ */

/* Bytes of the UTF-8 character at s (1..4), or 0 if it is cut off, overlong, a surrogate, above
   U+10FFFF, or no character at all.                                                            */
static TOOL_UNUSED size_t tool_utf8(const void *s, size_t size)
{
    const unsigned char *p = s;
    unsigned low = 0x80, high = 0xBF; /* what the second byte may be */
    size_t length, i;

    if (size == 0) return 0;
    if (p[0] < 0x80) return 1;
    if (p[0] < 0xC2 || p[0] > 0xF4) return 0;
    length = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    if (p[0] == 0xE0) low = 0xA0;
    if (p[0] == 0xED) high = 0x9F;
    if (p[0] == 0xF0) low = 0x90;
    if (p[0] == 0xF4) high = 0x8F;
    if (length > size || p[1] < low || p[1] > high) return 0;
    for (i = 2; i < length; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    return length;
}

static TOOL_UNUSED bool tool_is_utf8(const void *bytes, size_t size)
{
    const unsigned char *p = bytes;
    size_t at = 0, length;

    for (; at < size; at += length)
        if ((length = tool_utf8(p + at, size - at)) == 0) return false;
    return true;
}

/* Bytes of the character at s, or 0 if it must not reach a terminal: a control character, or bytes
   that are no character at all.                                                                */
static TOOL_UNUSED size_t tool_visible(const void *s, size_t size)
{
    const unsigned char *p = s;
    size_t n = tool_utf8(s, size);

    if (n == 1 && (p[0] < 0x20 || p[0] == 0x7F)) return 0;
    return n == 2 && p[0] == 0xC2 && p[1] < 0xA0 ? 0 : n;
}

/* The first line that holds one form feed and nothing else: there a document ends. NULL = none.
   line_start: the text begins a line; all: nothing follows the text.                           */
static TOOL_UNUSED const char *tool_form_feed(const char *text, size_t size, bool line_start,
                                              bool all)
{
    const char *feed = text;
    size_t n;

    for (; (feed = memchr(feed, '\f', size - (size_t)(feed - text))) != NULL; feed++) {
        n = (size_t)(feed - text);
        if ((n > 0 ? feed[-1] == '\n' : line_start) && (n + 1 < size ? feed[1] == '\n' : all))
            break;
    }
    return feed;
}

/* A name from a file, made fit for a message: control characters and broken UTF-8 as \xNN (a name
   must not be able to drive the terminal), long names cut. Returns out.                        */
#define TOOL_QUOTE 112
static TOOL_UNUSED const char *tool_quote(char out[TOOL_QUOTE], const void *bytes, size_t size)
{
    const unsigned char *p = bytes;
    size_t used = 0, at = 0;

    while (at < size && used < TOOL_QUOTE - 12) {
        size_t length = tool_visible(p + at, size - at);
        if (length == 0) {
            used += (size_t)snprintf(out + used, 5, "\\x%02X", p[at++]);
        } else {
            memcpy(out + used, p + at, length);
            used += length;
            at += length;
        }
    }
    snprintf(out + used, 4, "%s", at < size ? "..." : "");
    return out;
}

/* ---- sorting and names ----------------------------------------------------------------------- */

typedef int (*tool_compare)(const void *a, const void *b);

#define TOOL_SORT_MAX 64 /* bytes of an element that tool_sort can move */

static TOOL_UNUSED void tool__sift(unsigned char *base, size_t root, size_t n, size_t size,
                                   tool_compare compare)
{
    unsigned char moving[TOOL_SORT_MAX];
    size_t child;

    memcpy(moving, base + root * size, size);
    while (root < n / 2 && (child = 2 * root + 1) < n) {
        if (child + 1 < n && compare(base + child * size, base + (child + 1) * size) < 0) child++;
        if (compare(moving, base + child * size) >= 0) break;
        memcpy(base + root * size, base + child * size, size);
        root = child;
    }
    memcpy(base + root * size, moving, size);
}

static TOOL_UNUSED void tool__heapsort(unsigned char *p, size_t n, size_t size,
                                       tool_compare compare)
{
    unsigned char spare[TOOL_SORT_MAX];
    size_t i;

    for (i = n / 2; i-- > 0;) tool__sift(p, i, n, size, compare);
    for (i = n - 1; i > 0; i--) {
        memcpy(spare, p, size);
        memcpy(p, p + i * size, size);
        memcpy(p + i * size, spare, size);
        tool__sift(p, 0, i, size, compare);
    }
}

/* Splits n >= 3 elements around the median of three of them, which leaves elements on both sides;
   returns how many are in front. */
static TOOL_UNUSED size_t tool__split(unsigned char *p, size_t n, size_t size,
                                      tool_compare compare)
{
    unsigned char pivot[TOOL_SORT_MAX], spare[TOOL_SORT_MAX];
    unsigned char *a = p, *b = p + n / 2 * size, *c = p + (n - 1) * size, *low, *high;

    if (compare(a, b) > 0) low = a, a = b, b = low;
    if (compare(b, c) > 0) b = compare(a, c) > 0 ? a : c;
    memcpy(pivot, b, size);
    for (low = p, high = p + (n - 1) * size;; low += size, high -= size) {
        while (compare(low, pivot) < 0) low += size;
        while (compare(pivot, high) < 0) high -= size;
        if (low >= high) return (size_t)(high - p) / size + 1;
        memcpy(spare, low, size);
        memcpy(low, high, size);
        memcpy(high, spare, size);
    }
}

static TOOL_UNUSED void tool__insert(unsigned char *p, size_t n, size_t size, tool_compare compare)
{
    unsigned char moving[TOOL_SORT_MAX];
    size_t i, j;

    for (i = 1; i < n; i++) {
        memcpy(moving, p + i * size, size);
        for (j = i; j > 0 && compare(p + (j - 1) * size, moving) > 0; j--)
            memcpy(p + j * size, p + (j - 1) * size, size);
        memcpy(p + j * size, moving, size);
    }
}

/* In place and O(n log n) whatever the input, which qsort does not promise: quicksort that turns to
   heapsort where it splits badly too often. Not stable, so compare functions end with a tie-break.
   Sorted input costs one pass. Calls itself for the smaller side only: 64 deep at most.        */
static TOOL_UNUSED void tool__sort(unsigned char *p, size_t n, size_t size, tool_compare compare,
                                   int splits)
{
    while (n > 12) {
        size_t front;
        if (splits-- == 0) {
            tool__heapsort(p, n, size, compare);
            return;
        }
        front = tool__split(p, n, size, compare);
        if (front < n - front) {
            tool__sort(p, front, size, compare, splits);
            p += front * size;
            n -= front;
        } else {
            tool__sort(p + front * size, n - front, size, compare, splits);
            n = front;
        }
    }
    tool__insert(p, n, size, compare);
}

static TOOL_UNUSED void tool_sort(void *base, size_t n, size_t size, tool_compare compare)
{
    unsigned char *p = base;
    size_t i = 1;
    int splits = 8;

    while (i < n && compare(p + (i - 1) * size, p + i * size) <= 0) i++;
    if (i >= n || size > TOOL_SORT_MAX) return;
    for (i = n; i > 1; i /= 2) splits += 2;
    tool__sort(p, n, size, compare, splits);
}

/* A table from names to numbers: fill, sort, search. Ordered by hash first, for speed, then by the
   bytes, so that names made to collide cost no more than a comparison.                         */
typedef struct tool_name {
    uint64_t    hash;
    const char *bytes; /* borrowed */
    uint32_t    size;
    uint32_t    value;
} tool_name;

#define TOOL_HASH_START UINT64_C(14695981039346656037)

/* FNV-1a, of what was hashed before and these bytes. */
static TOOL_UNUSED uint64_t tool_hash_more(uint64_t hash, const void *bytes, size_t size)
{
    const unsigned char *p = bytes;
    size_t i;

    for (i = 0; i < size; i++) hash = (hash ^ p[i]) * UINT64_C(1099511628211);
    return hash;
}

static TOOL_UNUSED uint64_t tool_hash(const void *bytes, size_t size)
{
    return tool_hash_more(TOOL_HASH_START, bytes, size);
}

static TOOL_UNUSED tool_name tool_name_of(const char *bytes, size_t size, uint32_t value)
{
    tool_name name;

    name.hash = tool_hash(bytes, size);
    name.bytes = bytes;
    name.size = (uint32_t)size;
    name.value = value;
    return name;
}

static TOOL_UNUSED int tool__name_order(const tool_name *a, const tool_name *b)
{
    if (a->hash != b->hash) return a->hash < b->hash ? -1 : 1;
    if (a->size != b->size) return a->size < b->size ? -1 : 1;
    return a->size == 0 ? 0 : memcmp(a->bytes, b->bytes, a->size);
}

static TOOL_UNUSED int tool__name_compare(const void *a, const void *b)
{
    const tool_name *x = a, *y = b;
    int order = tool__name_order(x, y);

    if (order != 0) return order;
    return x->value < y->value ? -1 : x->value > y->value;
}

/* Sorts; returns the second of two equal names (its neighbour before it is the first), or NULL. */
static TOOL_UNUSED const tool_name *tool_names_sort(tool_name *names, size_t n)
{
    size_t i;

    tool_sort(names, n, sizeof *names, tool__name_compare);
    for (i = 1; i < n; i++)
        if (tool__name_order(&names[i - 1], &names[i]) == 0) return &names[i];
    return NULL;
}

static TOOL_UNUSED const tool_name *tool_names_find(const tool_name *names, size_t n,
                                                    const char *bytes, size_t size)
{
    tool_name wanted = tool_name_of(bytes, size, 0);
    size_t low = 0, high = n;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = tool__name_order(&names[middle], &wanted);
        if (order == 0) return &names[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* ---- reading files --------------------------------------------------------------------------- */

static TOOL_UNUSED const char *tool__kind(mode_t mode)
{
    return S_ISREG(mode) ? "a regular file" : S_ISDIR(mode) ? "a directory" :
           S_ISFIFO(mode) ? "a FIFO" : S_ISSOCK(mode) ? "a socket" :
           S_ISLNK(mode) ? "a symbolic link" : "a device";
}

/* Opens a regular file for reading and gives its status. Non-blocking, so that a FIFO is refused
   at once instead of waiting for a writer. The message does not contain the path. -1 on failure. */
static TOOL_UNUSED int tool__open(const char *path, struct stat *status, tool_error *err)
{
    int fd = TOOL_SYS(open)(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0);

    if (fd < 0) {
        tool_fail(err, "%s", strerror(errno));
        return -1;
    }
    if (fstat(fd, status) != 0) {
        tool_fail(err, "%s", strerror(errno));
    } else if (!S_ISREG(status->st_mode)) {
        tool_fail(err, "is %s, not a regular file", tool__kind(status->st_mode));
    } else {
        return fd;
    }
    close(fd);
    return -1;
}

/* Exactly `size` bytes from `offset`; fails if the file has fewer. */
static TOOL_UNUSED bool tool_pread(int fd, void *out, uint64_t size, uint64_t offset,
                                   tool_error *err)
{
    unsigned char *p = out;
    uint64_t done = 0;

    if (size > SIZE_MAX / 2 || offset > INT64_MAX - size)
        return tool_fail(err, "cannot read that many bytes");
    while (done < size) {
        size_t want = size - done > (1u << 30) ? (size_t)1 << 30 : (size_t)(size - done);
        ssize_t got = TOOL_SYS(pread)(fd, p + done, want, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return tool_fail(err, "reading failed: %s", strerror(errno));
        if (got == 0)
            return tool_fail(err, "ends at byte %llu, but was longer when it was opened",
                             (unsigned long long)(offset + done));
        done += (uint64_t)got;
    }
    return true;
}

/* A whole file of at most max_bytes in new memory, with a NUL after it that is not counted. */
static TOOL_UNUSED bool tool_read_file(const char *path, uint64_t max_bytes, char **data,
                                       size_t *size, tool_error *err)
{
    struct stat status;
    uint64_t bytes;
    int fd = tool__open(path, &status, err);
    bool ok = false;

    *data = NULL;
    *size = 0;
    if (fd < 0) return tool_prefix(err, path);
    bytes = (uint64_t)status.st_size;
    if (bytes > max_bytes || bytes >= SIZE_MAX / 2)
        tool_fail(err, "has %llu bytes, at most %llu are read", (unsigned long long)bytes,
                  (unsigned long long)max_bytes);
    else if ((*data = tool_alloc(bytes + 1, 1, err)) != NULL)
        ok = tool_pread(fd, *data, bytes, 0, err);
    close(fd);
    if (ok) {
        *size = (size_t)bytes;
        return true;
    }
    free(*data);
    *data = NULL;
    return tool_prefix(err, path);
}

/* ---- files of a folder that is not trusted --------------------------------------------------- */

/* A name that a file of the folder may use for another: one plain component, no way out. */
static TOOL_UNUSED bool tool_plain_name(const char *bytes, size_t size, tool_error *err)
{
    char quoted[TOOL_QUOTE];
    size_t i;

    tool_quote(quoted, bytes, size);
    if (size == 0) return tool_fail(err, "an empty file name");
    if (size > 255) return tool_fail(err, "file name \"%s\" is longer than 255 bytes", quoted);
    if (bytes[0] == '.')
        return tool_fail(err, "file name \"%s\" starts with a dot", quoted);
    for (i = 0; i < size; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '/' || c == '\\' || c == ':')
            return tool_fail(err, "file name \"%s\" contains '%c': only names of files in the "
                             "model folder are followed", quoted, c);
        if (c < 0x20 || c == 0x7F)
            return tool_fail(err, "file name \"%s\" contains byte 0x%02X", quoted, c);
    }
    return true;
}

static TOOL_UNUSED bool tool__starts(const char *path, const char *root, size_t size)
{
    while (size > 0 && root[size - 1] == '/') size--;
    return strncmp(path, root, size) == 0 && path[size] == '/';
}

/* Both paths resolved. One exception: the download cache of Hugging Face keeps the files of
   X/snapshots/REVISION in X/blobs, behind symbolic links.                                      */
static TOOL_UNUSED bool tool__contains(const char *root, const char *target)
{
    static const char marker[] = "/snapshots";
    const char *last = strrchr(root, '/');
    size_t before;

    if (tool__starts(target, root, strlen(root))) return true;
    if (last == NULL) return false;
    before = (size_t)(last - root);
    if (before < sizeof marker - 1) return false;
    before -= sizeof marker - 1;
    if (strncmp(root + before, marker, sizeof marker - 1) != 0) return false;
    return tool__starts(target, root, before) && strncmp(target + before, "/blobs/", 7) == 0;
}

/* The resolved path of folder/name in new memory, or NULL: the name is not plain, there is no such
   file, or it is a symbolic link that leaves the folder.                                       */
static TOOL_UNUSED char *tool_inside(const char *folder, const char *name, tool_error *err)
{
    char *joined = NULL, *root = NULL, *target = NULL;
    char quoted[TOOL_QUOTE];
    bool ok = false;

    if (!tool_plain_name(name, strlen(name), err)) return NULL;
    if ((joined = tool_join(folder, name, err)) == NULL) return NULL;
    root = realpath(folder, NULL);
    target = root == NULL ? NULL : realpath(joined, NULL);
    if (target == NULL)
        tool_fail(err, "%s", strerror(errno));
    else if (!tool__contains(root, target))
        tool_fail(err, "is a symbolic link to \"%s\", outside the model folder; put a copy in its "
                  "place", tool_quote(quoted, target, strlen(target)));
    else
        ok = true;
    if (!ok) {
        tool_prefix(err, joined);
        free(target);
        target = NULL;
    }
    free(joined);
    free(root);
    return target;
}

/* Whether the folder has such an entry at all (a dangling link counts). Allocates nothing, so that
   no file seems absent for want of memory; a path too long to ask is left to whoever opens it. */
static TOOL_UNUSED bool tool_has(const char *folder, const char *name)
{
    struct stat status;
    char path[4096];
    int size = snprintf(path, sizeof path, "%s/%s", folder, name);

    return size < 0 || (size_t)size >= sizeof path || lstat(path, &status) == 0 ||
           (errno != ENOENT && errno != ENOTDIR);
}

/* tool_read_file for a file of such a folder. */
static TOOL_UNUSED bool tool_read_inside(const char *folder, const char *name, uint64_t max_bytes,
                                         char **data, size_t *size, tool_error *err)
{
    char *path = tool_inside(folder, name, err);
    bool ok = path != NULL && tool_read_file(path, max_bytes, data, size, err);

    if (path == NULL) *data = NULL;
    free(path);
    return ok;
}

/* ---- writing files ---------------------------------------------------------------------------
   Output goes to "path.tmp.<pid>" and takes the place of `path` in one step at commit, so that a
   reader, or a program that has the old file mapped, never sees half of the new one.           */

typedef struct tool_output {
    int      fd;
    char    *path, *temp;  /* NULL = not open */
    uint64_t size;         /* of the file so far, waiting bytes included */
    char    *waiting;      /* not yet written: the last n_waiting of the `size` bytes */
    size_t   n_waiting;
} tool_output;

#define TOOL_WAITING 65536

/* Temporary files that a signal has to remove; see tool_remove_on_signal. */
static TOOL_UNUSED const char *volatile tool__temps[8];

static TOOL_UNUSED void tool__set_temp(const char *before, const char *after)
{
    size_t i;

    for (i = 0; i < sizeof tool__temps / sizeof tool__temps[0]; i++)
        if (tool__temps[i] == before) {
            tool__temps[i] = after;
            return;
        }
}

static TOOL_UNUSED void tool__on_signal(int number)
{
    size_t i;

    for (i = 0; i < sizeof tool__temps / sizeof tool__temps[0]; i++)
        if (tool__temps[i] != NULL) unlink(tool__temps[i]);
    signal(number, SIG_DFL);
    raise(number); /* ends the process in the default way once we return */
}

/* For main() of a tool that writes long: Ctrl-C leaves no temporary file behind. */
static TOOL_UNUSED void tool_remove_on_signal(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action, old;
    size_t i;

    memset(&action, 0, sizeof action);
    action.sa_handler = tool__on_signal;
    sigemptyset(&action.sa_mask);
    for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler == SIG_DFL)
            sigaction(numbers[i], &action, NULL);
}

/* Where the output really goes: through a symbolic link, never onto a device or a directory. */
static TOOL_UNUSED char *tool__target(const char *path, mode_t *mode, tool_error *err)
{
    struct stat status;
    char *target = NULL;

    *mode = 0;
    if (lstat(path, &status) != 0) {
        if (errno == ENOENT) return tool_copy(path, strlen(path), err);
        tool_fail(err, "%s", strerror(errno));
        return NULL;
    }
    if (S_ISLNK(status.st_mode)) {
        target = realpath(path, NULL);
        if (target == NULL || lstat(target, &status) != 0) {
            tool_fail(err, "is a symbolic link that leads nowhere: %s", strerror(errno));
            free(target);
            return NULL;
        }
    }
    if (!S_ISREG(status.st_mode)) {
        tool_fail(err, "is %s, not a regular file", tool__kind(status.st_mode));
        free(target);
        return NULL;
    }
    *mode = status.st_mode & 0777;
    return target != NULL ? target : tool_copy(path, strlen(path), err);
}

/* Two processes of two containers may have one pid, so a taken name is passed over. */
static TOOL_UNUSED bool tool__create_temp(tool_output *output, tool_error *err)
{
    size_t room = strlen(output->path) + 48;
    int attempt;

    output->temp = tool_alloc(room, 1, err);
    if (output->temp == NULL) return false;
    for (attempt = 0; attempt < 100; attempt++) {
        int n = snprintf(output->temp, room, "%s.tmp.%ld", output->path, (long)getpid());
        if (attempt > 0) snprintf(output->temp + n, room - (size_t)n, ".%d", attempt);
        output->fd = TOOL_SYS(open)(output->temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (output->fd >= 0) return true;
        if (errno != EEXIST) break;
    }
    return tool_fail(err, "cannot be written: %s", strerror(errno));
}

static TOOL_UNUSED void tool__output_free(tool_output *output)
{
    free(output->path);
    free(output->temp);
    free(output->waiting);
    memset(output, 0, sizeof *output);
}

static TOOL_UNUSED bool tool_output_open(tool_output *output, const char *path, tool_error *err)
{
    mode_t mode;

    memset(output, 0, sizeof *output);
    output->path = tool__target(path, &mode, err);
    output->waiting = output->path == NULL ? NULL : tool_alloc(TOOL_WAITING, 1, err);
    if (output->waiting == NULL || !tool__create_temp(output, err)) {
        tool__output_free(output);
        return tool_prefix(err, path);
    }
    tool__set_temp(NULL, output->temp);
    if (mode != 0 && fchmod(output->fd, mode) != 0) { /* a private file stays private */
        tool_fail(err, "%s: cannot set permissions: %s", path, strerror(errno));
        close(output->fd);
        unlink(output->temp);
        tool__set_temp(output->temp, NULL);
        tool__output_free(output);
        return false;
    }
    return true;
}

/* Closes and removes the unfinished file. Does nothing after a commit, or on a zeroed struct. */
static TOOL_UNUSED void tool_output_abandon(tool_output *output)
{
    if (output->temp == NULL) return;
    if (output->fd >= 0) close(output->fd);
    unlink(output->temp);
    tool__set_temp(output->temp, NULL);
    tool__output_free(output);
}

static TOOL_UNUSED bool tool__pwrite(const tool_output *output, const void *data, size_t size,
                                     uint64_t offset, tool_error *err)
{
    const char *p = data;

    while (size > 0) {
        size_t want = size > (1u << 30) ? (size_t)1 << 30 : size;
        ssize_t put = TOOL_SYS(pwrite)(output->fd, p, want, (off_t)offset);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0)
            return tool_fail(err, "%s: writing failed: %s", output->path,
                             put < 0 ? strerror(errno) : "no bytes were taken");
        p += put;
        size -= (size_t)put;
        offset += (uint64_t)put;
    }
    return true;
}

static TOOL_UNUSED bool tool__flush(tool_output *output, tool_error *err)
{
    size_t n = output->n_waiting;

    output->n_waiting = 0;
    return tool__pwrite(output, output->waiting, n, output->size - n, err);
}

/* Appends. */
static TOOL_UNUSED bool tool_output_write(tool_output *output, const void *data, size_t size,
                                          tool_error *err)
{
    uint64_t end;

    if (!tool_add(output->size, size, &end) || end > INT64_MAX)
        return tool_fail(err, "%s: would be too large", output->path);
    if (size > TOOL_WAITING - output->n_waiting && !tool__flush(output, err)) return false;
    if (size >= TOOL_WAITING) {
        if (!tool__pwrite(output, data, size, output->size, err)) return false;
    } else if (size > 0) {
        memcpy(output->waiting + output->n_waiting, data, size);
        output->n_waiting += size;
    }
    output->size = end;
    return true;
}

/* Writes at any offset; the file grows if need be, and a gap reads as zeros until it is filled. */
static TOOL_UNUSED bool tool_output_write_at(tool_output *output, const void *data, size_t size,
                                             uint64_t offset, tool_error *err)
{
    uint64_t end;

    if (!tool_add(offset, size, &end) || end > INT64_MAX)
        return tool_fail(err, "%s: would be too large", output->path);
    if (!tool__flush(output, err) || !tool__pwrite(output, data, size, offset, err)) return false;
    if (end > output->size) output->size = end;
    return true;
}

/* Asks for the room of the whole file now, so that a full disk shows before the long work. */
static TOOL_UNUSED bool tool_output_reserve(tool_output *output, uint64_t size, tool_error *err)
{
    int code = 0;
    char text[TOOL_HUMAN];

    if (size > INT64_MAX) return tool_fail(err, "%s: would be too large", output->path);
#ifdef __linux__
    if (size > 0) code = TOOL_SYS(posix_fallocate)(output->fd, 0, (off_t)size);
#endif
    if (code == ENOSPC || code == EFBIG || code == EDQUOT) /* others: it cannot reserve, no harm */
        return tool_fail(err, "%s: no room for %s: %s", output->path, tool_human(text, size),
                         strerror(code));
    return true;
}

/* A rename is durable once its directory is. File systems that cannot sync one say EINVAL. */
static TOOL_UNUSED bool tool__sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash == NULL ? tool_copy(".", 1, NULL) :
                   tool_copy(path, slash == path ? 1 : (size_t)(slash - path), NULL);
    int fd = folder == NULL ? -1 : TOOL_SYS(open)(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    bool ok = fd >= 0 && (TOOL_SYS(fsync)(fd) == 0 || errno == EINVAL);

    if (fd >= 0) close(fd);
    free(folder);
    return ok;
}

/* Makes it the file at `path`, complete and on disk, or removes it and leaves the old one. A failed
   fsync is not tried again: the second one succeeds without having written anything.           */
static TOOL_UNUSED bool tool_output_commit(tool_output *output, tool_error *err)
{
    bool ok, closed;

    if (output->temp == NULL) return tool_fail(err, "there is no open output to commit");
    ok = tool__flush(output, err);
    if (ok && (ftruncate(output->fd, (off_t)output->size) != 0 ||
               TOOL_SYS(fsync)(output->fd) != 0))
        ok = tool_fail(err, "%s: writing failed: %s", output->path, strerror(errno));
    closed = TOOL_SYS(close)(output->fd) == 0 || errno == EINTR;
    output->fd = -1;
    if (ok && !closed) ok = tool_fail(err, "%s: closing failed: %s", output->path, strerror(errno));
    if (ok && TOOL_SYS(rename)(output->temp, output->path) != 0)
        ok = tool_fail(err, "%s: cannot be replaced: %s", output->path, strerror(errno));
    if (!ok) {
        tool_output_abandon(output);
        return false;
    }
    tool__set_temp(output->temp, NULL);
    if (!tool__sync_folder(output->path))
        ok = tool_fail(err, "%s: written, but its folder could not be synced", output->path);
    tool__output_free(output);
    return ok;
}

/* The text becomes the whole file, in one step. */
static TOOL_UNUSED bool tool_write_file(const char *path, const tool_buffer *text, tool_error *err)
{
    tool_output output;
    bool ok;

    if (text->failed) return tool_fail(err, "%.300s: out of memory", path);
    ok = tool_output_open(&output, path, err) &&
         tool_output_write(&output, text->data, text->size, err) &&
         tool_output_commit(&output, err);
    if (!ok) tool_output_abandon(&output);
    return ok;
}

/* ---- time and progress ----------------------------------------------------------------------- */

/* Seconds of a clock that never goes back. */
static TOOL_UNUSED double tool_seconds(void)
{
    struct timespec now;

    if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) return 0;
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* One line on stderr: rewritten in place on a terminal, else a new line every few seconds. Work
   that is over before the first line is due shows nothing.                                     */
typedef struct tool_progress {
    const char *label; /* "reading" */
    const char *unit;  /* "tokens"; NULL = bytes */
    uint64_t    total; /* 0 = unknown */
    double      start, last;
    bool        terminal, shown;
} tool_progress;

static TOOL_UNUSED void tool_progress_begin(tool_progress *progress, const char *label,
                                            const char *unit, uint64_t total)
{
    progress->label = label;
    progress->unit = unit;
    progress->total = total;
    progress->start = progress->last = tool_seconds();
    progress->terminal = isatty(2) == 1;
    progress->shown = false;
}

/* Nothing is shown: the next line is never due. Behind tool_progress_begin. */
static TOOL_UNUSED void tool_progress_silence(tool_progress *progress)
{
    progress->last = 1e300;
}

static TOOL_UNUSED void tool_progress_update(tool_progress *progress, uint64_t done)
{
    double now = tool_seconds(), spent = now - progress->start;
    uint64_t total = progress->total;
    char line[200], a[TOOL_HUMAN], b[TOOL_HUMAN], of[48] = "", left[48] = "";

    if (now - progress->last < (progress->terminal ? 0.1 : 5.0)) return;
    progress->last = now;
    progress->shown = true;
    if (progress->unit == NULL) {
        tool_human(a, done);
        tool_human(b, total);
    } else {
        snprintf(a, sizeof a, "%llu", (unsigned long long)done);
        snprintf(b, sizeof b, "%llu", (unsigned long long)total);
    }
    if (total > 0) snprintf(of, sizeof of, " of %s", b);
    if (total > done && done > 0 && spent > 1)
        snprintf(left, sizeof left, ", %.0f s left",
                 spent * ((double)total / (double)done - 1));
    snprintf(line, sizeof line, "%.40s: %s%s%s%.9s%s", progress->label, a, of,
             progress->unit != NULL ? " " : "", progress->unit != NULL ? progress->unit : "", left);
    if (progress->terminal)
        fprintf(stderr, "\r%-78.78s", line);
    else
        fprintf(stderr, "%s\n", line);
}

/* Clears the line of a terminal, so that what comes next starts on an empty one. */
static TOOL_UNUSED void tool_progress_end(tool_progress *progress)
{
    if (progress->shown && progress->terminal) fprintf(stderr, "\r%78s\r", "");
    progress->shown = false;
}

#endif /* TOOL_COMMON_H */
