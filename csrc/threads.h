// One parallel region per forward: the threads of a team pass from phase to phase through a barrier of their own.
#ifndef FL_THREADS_H
#define FL_THREADS_H

#include <stdatomic.h>
#include <stddef.h>

typedef struct fl_team {
    size_t threads;
    // On cache lines of their own: waiting is written by all, round is read by the spinning.
    _Alignas(64) atomic_size_t waiting;
    _Alignas(64) atomic_size_t round;
} fl_team;

typedef void fl_work(void *arg, fl_team *team, size_t id);

// Calls work(arg, team, id) on each of up to `threads` threads, the caller being id 0.
void fl_parallel(size_t threads, fl_work *work, void *arg);

// Returns when every thread of the team has called it.
void fl_barrier(fl_team *team);

// The part of n items that belongs to thread id: [*begin, *end), sizes differing by one at most.
static inline void fl_share(size_t n, const fl_team *team, size_t id, size_t *begin, size_t *end) {
    *begin = n * id / team->threads;
    *end = n * (id + 1) / team->threads;
}

#endif
