/* heap.h: a heap for the tests: counts what is allocated, checks what is freed, fails when told to.

       heap_count heap;
       monet_model_config config = {0};
       config.host = heap_host(&heap);
       heap.fail_at = 1;                                  the next allocation fails
       ... CHECK_EQ(heap.live, 0); CHECK_EQ(heap.wrong, 0);

   Include it after monet.h. It is for one thread.                                                */
#ifndef HEAP_H
#define HEAP_H

#include "test.h"
#include <stdlib.h>

typedef struct heap_count {
    size_t now, peak;     /* bytes */
    long calls, live;     /* allocations so far; not yet freed */
    long fail_at;         /* this call fails (the first is 1); 0 = none */
    int sticky;           /* ... and all after it */
    long wrong;           /* freed with another size than allocated */
} heap_count;

/* Memory is aligned to 16 and never to 64, as malloc's may be; a word before it holds its size, the
   word before that how far the block begins before it.                                           */
TEST_FN void *heap_alloc(void *user, size_t size)
{
    heap_count *heap = (heap_count *)user;
    size_t back = 16;
    char *p;
    heap->calls++;
    if (heap->fail_at && (heap->calls == heap->fail_at ||
                          (heap->sticky && heap->calls > heap->fail_at))) return NULL;
    if (size > SIZE_MAX - 64 || !(p = (char *)malloc(size + back))) return NULL;
    if ((uintptr_t)(p + back) % 64 == 0) {
        free(p);
        back = 32;
        if (!(p = (char *)malloc(size + back))) return NULL;
        if ((uintptr_t)(p + back) % 64 == 0) back = 16;
    }
    p += back;
    memcpy(p - 8, &size, sizeof size);
    memcpy(p - 16, &back, sizeof back);
    heap->live++;
    heap->now += size;
    if (heap->now > heap->peak) heap->peak = heap->now;
    return p;
}

TEST_FN void heap_free(void *user, void *ptr, size_t size)
{
    heap_count *heap = (heap_count *)user;
    size_t known, back;
    if (!ptr) return;
    memcpy(&known, (char *)ptr - 8, sizeof known);
    memcpy(&back, (char *)ptr - 16, sizeof back);
    heap->wrong += known != size;
    heap->live--;
    heap->now -= known;
    free((char *)ptr - back);
}

TEST_FN monet_host heap_host(heap_count *heap)
{
    monet_host host = {heap_alloc, heap_free, NULL, 0, NULL};
    memset(heap, 0, sizeof *heap);
    host.user = heap;
    return host;
}

#endif /* HEAP_H */
