/* host_threads.h: a parallel_fn as a host may bring it. Include it after test.h or tiny.h. */
#ifndef HOST_THREADS_H
#define HOST_THREADS_H

#include <pthread.h>
#include <stdbool.h>

typedef struct piece_of_work {
    void (*task)(void *arg, int index);
    void *arg;
    int   index;
} piece_of_work;

TEST_FN void *do_piece(void *arg)
{
    piece_of_work *work = (piece_of_work *)arg;
    work->task(work->arg, work->index);
    return NULL;
}

/* The last piece first, each on a thread of its own; `user` counts the calls. */
TEST_FN void with_threads(void *user, int count, void (*task)(void *arg, int index), void *arg)
{
    pthread_t     threads[16];
    piece_of_work work[16];
    bool          started[16];
    ++*(long *)user;
    CHECK(count <= 16);
    for (int k = count; k-- > 0;) {
        work[k].task = task, work[k].arg = arg, work[k].index = k;
        started[k] = pthread_create(&threads[k], NULL, do_piece, &work[k]) == 0;
        if (!started[k]) task(arg, k);
    }
    for (int k = 0; k < count; ++k)
        if (started[k]) pthread_join(threads[k], NULL);
}
#endif
