// How many threads a forward runs on where some are asked for. A core that another program keeps busy stops a whole
// team at each barrier: one thread fewer may be faster then, and one more again when that program has gone. Only a try
// can tell, and tries cost time. This is the policy alone: no clock, no threads.
#ifndef FL_PACE_H
#define FL_PACE_H

#include <stdatomic.h>
#include <stddef.h>

#include "fastllm.h"

// One way to go, to fewer threads or to more.
typedef struct fl_pace_way {
    size_t step;     // by how many threads the next try goes
    double wait;     // seconds of forwards until then
    double patience; // times what a failed try cost, to the next
} fl_pace_way;

// What is known of forwards of one kind. Those of one token and those of a prompt differ in length by a thousand, and a
// lost core costs them differently: short phases stop for it, long ones leave it less to do.
typedef struct fl_pace_kind {
    size_t threads;      // that it goes with; 0: before its first forward
    size_t tried;        // that it tries just now; 0: none
    double forwards;     // with `threads`, lately; below 0: the first, which reads cold memory, is still to come
    double ran, lost;    // seconds that they took; of them, those that a thread waited for one that was not running
    double begun, cost;  // of the try: seconds since it began, and how many more than the same forwards with `threads`
    double took, usual;  // of its forwards that count: seconds that they took, and take with `threads`
    fl_pace_way fewer, more;
} fl_pace_kind;

enum { FL_PACE_KINDS = 32 };

struct fl_pace {
    atomic_int busy; // 1 while a forward runs by it; one that runs beside it neither asks nor tells
    fl_pace_kind kinds[FL_PACE_KINDS]; // by the logarithm of the number of tokens
};

// How many threads to run a forward of so many tokens on, where `most` are asked for and there: 1 to most.
size_t fl_pace_threads(fl_pace *pace, size_t tokens, size_t most);

// It took so many seconds with so many threads, and each that could wait lost so many for one that was not running.
void fl_pace_note(fl_pace *pace, size_t tokens, size_t threads, double seconds, double lost);

#endif
