/* faults.h: the system calls of monet.h go through functions that fail at the k-th call, do half of
   the work, or end the process.

       io.op = WRITE, io.at = 3, io.error = ENOSPC;       the third write fails

   Include it before monet.h, after a definition of _POSIX_C_SOURCE or _XOPEN_SOURCE.             */
#ifndef FAULTS_H
#define FAULTS_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPEN, WRITE, FSYNC, CLOSE, RENAME, READ, MMAP, LSEEK, FSTAT, N_OPS, HALF = -1, ZERO = -2,
       DIE = -3 };
static const char *const op_names[N_OPS] = {"open", "write", "fsync", "close", "rename", "read",
                                            "mmap", "lseek", "fstat"};
static struct {
    int calls[N_OPS];
    int op, at, error; /* call number `at` of op fails with this error; at 0 = none */
    int full;          /* new files are /dev/full */
    int open;          /* files that are open now */
} io;

/* Does this call fail? Its error, else 0. */
static int fails(int op)
{
    int error = ++io.calls[op] == io.at && op == io.op ? io.error : 0;
    if (error == DIE && op != WRITE) _exit(9);
    if (error > 0 || error == ZERO) errno = error > 0 ? error : 0;
    return error;
}

static int io_open(const char *path, int flags, ...)
{
    int file, mode = 0;
    va_list args;
    va_start(args, flags);
    if (flags & O_CREAT) mode = va_arg(args, int);
    va_end(args);
    if (fails(OPEN)) return -1;
    file = io.full && mode ? open("/dev/full", O_WRONLY) : open(path, flags, (mode_t)mode);
    io.open += file >= 0;
    return file;
}

static ssize_t io_write(int file, const void *data, size_t size)
{
    int error = fails(WRITE);
    ssize_t n;
    if (error == ZERO) return 0;
    if (error > 0) return -1;
    n = write(file, data, error < 0 ? (size + 1) / 2 : size);
    if (error == DIE) _exit(9);
    return n;
}

static ssize_t io_read(int file, void *data, size_t size)
{
    int error = fails(READ);
    if (error == ZERO) return 0;
    if (error > 0) return -1;
    return read(file, data, error == HALF ? (size + 1) / 2 : size);
}

static int io_fsync(int file) /* not a real one: the disk has better things to do */
{
    (void)file;
    return fails(FSYNC) > 0 ? -1 : 0;
}

static int io_close(int file)
{
    int error = fails(CLOSE), result = close(file);
    io.open--;
    if (error <= 0) return result;
    errno = error;
    return -1;
}

static int io_rename(const char *from, const char *to)
{
    return fails(RENAME) > 0 ? -1 : rename(from, to);
}

static void *io_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    return fails(MMAP) > 0 ? MAP_FAILED : mmap(at, size, protection, flags, file, offset);
}

static off_t io_lseek(int file, off_t offset, int from)
{
    return fails(LSEEK) > 0 ? (off_t)-1 : lseek(file, offset, from);
}

static int io_fstat(int file, struct stat *info)
{
    return fails(FSTAT) > 0 ? -1 : fstat(file, info);
}

#define open(...) io_open(__VA_ARGS__)
#define write(file, data, size) io_write(file, data, size)
#define read(file, data, size) io_read(file, data, size)
#define fsync(file) io_fsync(file)
#define close(file) io_close(file)
#define rename(from, to) io_rename(from, to)
#define mmap(at, size, protection, flags, file, offset)                                            \
    io_mmap(at, size, protection, flags, file, offset)
#define lseek(file, offset, from) io_lseek(file, offset, from)
#define fstat(file, info) io_fstat(file, info)
#endif
