// One call of fl_forward: what all its phases are given.
#ifndef FL_FORWARD_H
#define FL_FORWARD_H

#include "scratch.h"
#include "threads.h"

typedef struct fl_job {
    const fl_model *m;
    fl_scratch *s;
    const fl_span *spans;
    size_t n_spans;
    size_t tokens;   // of all spans
    size_t n_logits; // of all spans
    const fl_outputs *out;
} fl_job;

#endif
