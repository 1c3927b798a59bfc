// Whether the system lets this process start threads. OpenMP ends the process when a thread cannot be started, so we
// try before it does.
#include "fastllm.h"

#ifdef _WIN32

int fl_try_threads(size_t threads) {
    (void)threads;
    return 0;
}

#else
#include <pthread.h>

#include "threads.h"

static void *pass(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

int fl_try_threads(size_t threads) {
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER; // keeps each thread from ending before all have started
    pthread_t started[FL_TEAM];
    size_t count = 0;
    int problem = 0;
    pthread_mutex_lock(&gate);
    while (!problem && count + 1 < threads && count < FL_TEAM) { // the caller is one
        problem = pthread_create(&started[count], NULL, pass, &gate);
        count += !problem;
    }
    pthread_mutex_unlock(&gate);
    for (size_t i = 0; i < count; i++) pthread_join(started[i], NULL);
    return problem;
}

#endif
