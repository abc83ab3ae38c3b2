/* test.h: checks that count. A test is one program:

       #include "test.h"
       int main(void)
       {
           CHECK(1 + 1 == 2);
           CHECK_EQ(strlen("ab"), 2);
           return test_end("arithmetic");        prints "arithmetic: 2 passed, 0 failed"
       }

   A check that fails prints its place and what it saw; the program goes on, and test_end returns 1.
   Every macro is also a value, true if the check passed. Use them from one thread.             */
#ifndef TEST_H
#define TEST_H

#include <stdio.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#define TEST_FN static __attribute__((unused))
#else
#define TEST_FN static
#endif

/* Any condition. */
#define CHECK(condition) test_check(!!(condition), __FILE__, __LINE__, #condition)
/* Two integers that fit long long. */
#define CHECK_EQ(a, b) test_equal((long long)(a), (long long)(b), __FILE__, __LINE__, #a " == " #b)
/* Two numbers that differ by at most `tolerance`; NaN fails. */
#define CHECK_NEAR(a, b, tolerance) \
    test_near((double)(a), (double)(b), (double)(tolerance), __FILE__, __LINE__, #a " near " #b)
/* Two texts that are equal. */
#define CHECK_STR(a, b) test_text((a), (b), __FILE__, __LINE__, #a)
/* A text, for instance a message, that contains another. */
#define CHECK_HAS(text, part) test_has((text), (part), __FILE__, __LINE__, #text)

TEST_FN struct { int passed, failed; } test_counts;

TEST_FN int test_check(int ok, const char *file, int line, const char *what)
{
    if (ok) test_counts.passed++;
    else test_counts.failed++;
    if (!ok) printf("%s:%d: failed: %s\n", file, line, what);
    return ok;
}

TEST_FN int test_equal(long long a, long long b, const char *file, int line, const char *what)
{
    if (!test_check(a == b, file, line, what)) printf("    %lld and %lld\n", a, b);
    return a == b;
}

TEST_FN int test_near(double a, double b, double tolerance, const char *file, int line,
                      const char *what)
{
    int ok = (a > b ? a - b : b - a) <= tolerance;

    if (!test_check(ok, file, line, what))
        printf("    %.9g and %.9g, tolerance %.3g\n", a, b, tolerance);
    return ok;
}

TEST_FN int test_text(const char *a, const char *b, const char *file, int line, const char *what)
{
    int ok = strcmp(a, b) == 0;

    if (!test_check(ok, file, line, what)) printf("    \"%s\"\n    \"%s\"\n", a, b);
    return ok;
}

TEST_FN int test_has(const char *text, const char *part, const char *file, int line,
                     const char *what)
{
    int ok = strstr(text, part) != NULL;

    if (!test_check(ok, file, line, what)) printf("    \"%s\" in \"%s\"\n", part, text);
    return ok;
}

/* The last line of the output, and what main returns. */
TEST_FN int test_end(const char *name)
{
    printf("%s: %d passed, %d failed\n", name, test_counts.passed, test_counts.failed);
    return test_counts.failed > 0;
}

#endif /* TEST_H */
