// What a forward works in. Rows are padded with zeros to a multiple of 32 floats.
#ifndef FL_SCRATCH_H
#define FL_SCRATCH_H

#include "kernels/kernels.h"

enum { FL_ATTEND_ROWS = 32 }; // queries that share a pass over the keys and values

// Of one thread. With one token in the batch, every thread computes the inputs of a matrix product for itself: cheaper
// than to wait for another to do it.
typedef struct fl_lane_scratch {
    float *norm;        // (dim,)
    fl_q8_group *q8;    // (widest / 32,)
    float *q, *out;     // (FL_ATTEND_ROWS, head_dim rounded up to 16)
    float *scores;      // (FL_ATTEND_ROWS, 64)
    float *max, *sum;   // (FL_ATTEND_ROWS,)
    size_t *limit;      // (FL_ATTEND_ROWS,)
    uint16_t *half;     // (head_dim rounded up to 16,)
} fl_lane_scratch;

struct fl_scratch {
    size_t tokens, threads;          // what it has room for
    size_t dim, q_dim, kv_dim, hidden; // row widths
    void *memory;
    float *x;           // (tokens, dim) the residual stream
    float *q;           // (tokens, q_dim)
    float *k, *v;       // (tokens, kv_dim)
    float *att;         // (tokens, q_dim)
    float *gate, *up;   // (tokens, hidden)
    float *norm;        // (tokens, dim)
    fl_q8_group *q8;    // (tokens, widest / 32)
    float *cos, *sin;   // (tokens, rotary_dim / 2)
    size_t *wanted;     // (tokens,) rows whose logits are computed
    fl_lane_scratch *lanes; // (threads,)
};

fl_status fl_scratch_reserve(fl_scratch *s, const fl_model *m, size_t tokens, size_t threads);

#endif
