// One parallel region per forward: the threads of a team pass from phase to phase through a barrier of their own, and
// within a phase take work in chunks, so that a slow core, or one that another program wants too, holds up nobody.
#ifndef FL_THREADS_H
#define FL_THREADS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "fastllm.h"

enum { FL_TEAM = 256 }; // threads of a team at most

// One thread's part of a phase, on a cache line of its own: others look only when theirs is empty.
typedef struct fl_queue {
    _Alignas(64) atomic_uint_least64_t next; // the number of the phase in the high half, the next chunk in the low half
    double begun;                            // seconds on the clock: when its thread began to take chunks
    size_t taken;                            // by it, since then; 0 from a barrier on
} fl_queue;

typedef struct fl_team {
    size_t threads;
    int crowded;      // more threads than CPUs
    fl_queue *queues; // (threads,)
    // On cache lines of their own: waiting is written by all, round is read by the spinning.
    _Alignas(64) atomic_size_t waiting;
    _Alignas(64) atomic_size_t round;
    atomic_uint_least64_t lost; // nanoseconds that its threads waited for one that cannot have been running, all together
} fl_team;

typedef void fl_work(void *arg, fl_team *team, size_t id);

// Calls work(arg, team, id) on each of up to `threads` threads, the caller being id 0, in the default mode of floats (see
// fpenv.h). Returns the seconds that they waited for one that was not running, on the average of those that could wait.
double fl_parallel(size_t threads, fl_work *work, void *arg);

// Seconds since some time ago, whatever is done to the system's date.
double fl_now(void);

// Returns when every thread of the team has called it.
void fl_barrier(fl_team *team, size_t id);

// The part of n items that belongs to thread id: [*begin, *end), sizes differing by one at most.
static inline void fl_share(size_t n, const fl_team *team, size_t id, size_t *begin, size_t *end) {
    *begin = n * id / team->threads;
    *end = n * (id + 1) / team->threads;
}

// n items dealt out in chunks: each thread begins with its share, and goes on with what is left of others'. Between two
// deals of a team lies a barrier.
typedef struct fl_deal {
    fl_team *team;
    size_t n, chunk, id;
    size_t from; // whose chunks it takes: id, id + 1, ...; for a thread alone, the next item
} fl_deal;

fl_deal fl_deal_start(fl_team *team, size_t id, size_t n, size_t chunk);

// The next items, [*begin, *end), at most a chunk of them; 0 when all are taken.
int fl_deal_next(fl_deal *deal, size_t *begin, size_t *end);

// fl_parallel of a forward of so many tokens, on as many threads as the pace allows, which learns from it; without a
// pace on as many as are asked for.
void fl_paced(fl_pace *pace, size_t tokens, size_t threads, fl_work *work, void *arg);

#endif
