// What the phases of a forward share: the call itself, and the worker, which every phase takes as its first argument.
#ifndef FL_FORWARD_H
#define FL_FORWARD_H

#include "scratch.h"
#include "threads.h"

// One call of fl_forward.
typedef struct fl_forward_call {
    const fl_model *m;
    fl_scratch *s;
    const fl_span *spans; // (n_spans,) the batch
    size_t n_spans;
    size_t tokens;   // of all spans
    size_t n_logits; // rows of logits, of all spans
    const fl_outputs *out;
    int bare;              // logits are the head's matrix and bias alone
    const fl_watch *watch; // or NULL
    int *leave;            // (2,) by branch: whether the workers leave after it
    int *cancelled;        // whether the forward has ended early
} fl_forward_call;

// A thread of the team that runs a forward. Every worker calls every phase, and does its part of it.
typedef struct fl_worker {
    const fl_forward_call *f;
    fl_team *team;
    size_t id;              // its number in the team
    size_t begin, end;      // its share of the batch's tokens, for what is done token by token
    fl_worker_scratch *own; // its part of f->s, which no other worker reads or writes
} fl_worker;

#endif
