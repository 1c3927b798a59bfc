// On how many threads a forward is fastest. When another process keeps one of the cores busy, the whole team waits for
// that core at each barrier: one thread fewer is faster then, and one more again when that process has ended. Only a
// try can tell, and tries cost time. This is the policy alone: it has no clock and starts no threads.
#ifndef FL_PACE_H
#define FL_PACE_H

#include <stdatomic.h>
#include <stddef.h>

#include "fastllm.h"

// Tries in one direction: with fewer threads, or with more.
typedef struct fl_pace_way {
    size_t step;     // how many threads fewer, or more, the next try has
    double wait;     // seconds of forwards before the next try
    double patience; // a failed try is followed by a wait of so many times what it cost
} fl_pace_way;

// What is known of forwards of one kind, those of similar numbers of tokens. A forward of one token takes a thousandth
// of a prompt's, and suffers more from a lost core: its phases are too short to deal that core's work to others.
typedef struct fl_pace_kind {
    size_t threads;     // that its forwards run on; 0: it has had none
    size_t tried;       // that the present try runs on; 0: there is none
    double forwards;    // recent ones on `threads`; below 0: the first, which reads cold memory, has yet to be noted
    double ran, lost;   // seconds that these took, and that a thread waited for one that was not running
    double begun, cost; // of the try: seconds since it began, and how many more than as many forwards on `threads`
    double took, usual; // of the try's forwards that count: seconds that they took, and would have taken on `threads`
    fl_pace_way fewer, more;
} fl_pace_kind;

enum { FL_PACE_KINDS = 32 };

struct fl_pace {
    atomic_int busy; // 1 while a forward is measured; others that run meanwhile neither follow the pace nor teach it
    fl_pace_kind kinds[FL_PACE_KINDS]; // by the logarithm to base 2 of the number of tokens
};

// How many threads, 1 to `most`, the next forward of so many tokens should run on.
size_t fl_pace_threads(fl_pace *pace, size_t tokens, size_t most);

// Notes that it took so many seconds on so many threads, of which a thread on average lost so many waiting for one that
// was not running.
void fl_pace_note(fl_pace *pace, size_t tokens, size_t threads, double seconds, double lost);

#endif
