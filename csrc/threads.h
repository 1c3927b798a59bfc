// Teams of threads, and dealing out work to them. A forward is one parallel region: its workers pass from phase to
// phase through barriers of their own.
//
// The deal of a phase: n items (panels, say, or tasks of attention) are divided into one share for each worker, and a
// share into chunks. Each share has a queue, which is no more than the number of its next chunk. A worker takes the
// chunks of its own share, then those that are left of the other shares, so that a core that is slow, or shared with
// another process, holds up the others by one chunk at most.
//
//     items      0 . . . . . . . | 8 . . . . . . . | 16 . . . . . . .     n = 24, 3 workers, chunks of 2: 4 in a share
//     share of      worker 0     |    worker 1     |    worker 2
//     queue         next = 4     |    next = 2     |    next = 3
//                   all taken    |  [12, 16) left  |  [22, 24) left
//
//     Worker 0 has finished its share: it takes [12, 14) by adding 1 to queue 1, and goes on there, then at queue 2.
//
// A queue's word holds the number of the phase in its high half and the next chunk in its low half. So nothing needs to
// be reset before a phase: a word with the number of an older phase belongs to a worker that has not begun this one,
// and that worker sets it when it begins. Until then no chunk of that share is taken. Between two deals lies a
// barrier.
#ifndef FL_THREADS_H
#define FL_THREADS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "fastllm.h"

enum { FL_TEAM = 256 }; // threads of a team at most

// A worker's share of the present phase, on a cache line of its own.
typedef struct fl_queue {
    _Alignas(64) atomic_uint_least64_t next; // phase << 32 | next chunk
    double begun;                            // when the worker began to take chunks, in seconds of fl_now
    size_t taken;                            // chunks that it has taken, of any share; 0 after a barrier
} fl_queue;

typedef struct fl_team {
    size_t threads;
    int crowded;      // more threads than CPUs
    fl_queue *queues; // (threads,)
    atomic_int stopped; // worker 0 has seen that its caller wants an end: deals hand out no more chunks
    // Worker 0's alone, which sets them before its first deal. It looks at what is watched at its first chunk, and then
    // at every so many.
    const fl_watch *watch; // NULL: nothing
    size_t every, chunks;  // `chunks`: those that it has asked for
    double asked;          // when it last called watch->ask
    // Each on a cache line of its own: every worker writes `waiting`, and reads `phase` while it waits.
    _Alignas(64) atomic_size_t waiting; // workers that have reached the barrier
    _Alignas(64) atomic_size_t phase;   // barriers that all have passed
    atomic_uint_least64_t lost;         // nanoseconds that workers, all together, waited for one that was not running
} fl_team;

typedef void fl_work(void *arg, fl_team *team, size_t id);

// Calls work(arg, team, id) on each of up to `threads` threads, the caller's having id 0, in the default mode of floats
// (fpenv.h). Returns the seconds that a thread, on average, waited for another that was not running.
double fl_parallel(size_t threads, fl_work *work, void *arg);

// Seconds of a clock that only moves forward.
double fl_now(void);

// Returns when every thread of the team has called it.
void fl_barrier(fl_team *team, size_t id);

// Whether worker 0 has seen that the caller wants an end.
static inline int fl_stopped(fl_team *team) { return atomic_load_explicit(&team->stopped, memory_order_relaxed); }

// A worker's share of n items, [*begin, *end). Shares differ by one item at most.
static inline void fl_share(size_t n, const fl_team *team, size_t id, size_t *begin, size_t *end) {
    *begin = n * id / team->threads;
    *end = n * (id + 1) / team->threads;
}

// A worker's view of a deal.
typedef struct fl_deal {
    fl_team *team;
    size_t n, chunk, id;
    size_t from; // whose share it takes chunks of: worker from % threads; of a team of one: the next item
} fl_deal;

fl_deal fl_deal_start(fl_team *team, size_t id, size_t n, size_t chunk);

// Takes the next chunk, items [*begin, *end). Returns 0 when all are taken, or the team is stopped.
int fl_deal_next(fl_deal *deal, size_t *begin, size_t *end);

// fl_parallel for a forward of so many tokens, on as many threads as `pace` has found best, up to `threads`; the pace
// learns from it, unless *left is then not 0: it was left early. With a pace of NULL, on `threads`. `left` may be NULL.
void fl_paced(fl_pace *pace, size_t tokens, size_t threads, fl_work *work, void *arg, const int *left);

// The `tokens` of fl_paced for other work on so many rows than the pace's forwards or draws: more than those have, so
// that it has kinds of its own.
static inline size_t fl_apart(size_t rows) { return (rows < 1024 ? rows : 1024) << 20; }

#endif
