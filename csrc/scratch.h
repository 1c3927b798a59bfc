// What a forward works in. Rows are padded with zeros to a multiple of 32 floats.
#ifndef FL_SCRATCH_H
#define FL_SCRATCH_H

#include "kernels/kernels.h"
#include "threads.h"

enum { FL_ATTEND_ROWS = 48 }; // queries that share a pass over the keys and values
enum { FL_CHUNK = 8 };        // panels that a kernel reads best at once

// Of one thread. With one token in the batch, every thread computes the inputs of a matrix product for itself: cheaper
// than to wait for another to do it.
typedef struct fl_lane_scratch {
    float *norm;        // (dim,)
    fl_q8_group *q8;    // (wider of dim and q_dim / 32,) of one token
    float *gate, *up;   // (tokens, panels of a chunk)
    float *q, *out;     // (FL_ATTEND_ROWS, head_dim rounded up to 16)
    float *key;         // (head_dim rounded up to 32,)
    float *attend;      // what the attention kernels work in
    float *map;         // (FL_ATTEND_ROWS, 64)
    float *max, *sum;   // (FL_ATTEND_ROWS,)
    size_t *from, *limit; // (FL_ATTEND_ROWS,)
    uint16_t *half;     // (head_dim rounded up to 16,)
} fl_lane_scratch;

// Of layers with experts. A row is a token with one of its experts; rows lie by expert.
typedef struct fl_routes {
    float *scores;    // (tokens, n_experts rounded up to 16)
    float *sums;      // (tokens, runs of n_experts): see the softmax kernel
    int32_t *expert;  // (tokens, n_experts_used), most probable first
    float *weight;    // (tokens, n_experts_used)
    size_t *row;      // (tokens, n_experts_used) where that pair's row is
    size_t *begin;    // (n_experts + 1,) rows of expert e: begin[e] to begin[e + 1]
    size_t *active;   // (n_experts,) those that have rows
    size_t n_active;
    float *x;         // (rows, dim) inputs of the experts
    float *gate;      // (rows, width)
    void *q8, *hidden8; // the same as int8, for the types that the experts' matrices have: tiles of each expert's rows
    size_t *bundles;  // (n_experts,) where an expert's bundles begin, in tokens
    float *out;       // (rows, dim)
    float *shared;    // (tokens, 16) the shared expert's gate in the first column
    size_t width;     // expert_dim rounded up to 32
} fl_routes;

struct fl_scratch {
    size_t tokens, threads;          // what it has room for
    size_t dim, q_dim, kv_dim, hidden; // row widths
    void *memory;
    float *x;           // (tokens, dim) the residual stream
    float *y;           // (tokens, dim) what a block adds to it, where that passes a norm or factor first
    float *q;           // (tokens, q_dim)
    float *k, *v;       // (tokens, kv_dim)
    float *att;         // (tokens, q_dim)
    float *gate;        // (tokens, hidden), where floats are wanted
    void *hidden8;      // the same as int8
    float *norm;        // (tokens, dim)
    void *q8;           // tiles of (tokens, wider of dim and q_dim / 32) groups
    float *cos[2], *sin[2]; // (tokens, rotary_dim / 2), by each of the model's frequencies
    float *partial;     // (partials, head_dim rounded up to 16, and 2) rows of attention to runs that are to be merged:
    size_t partials;    // enough for four tokens at the end of the context
    size_t *wanted;     // (tokens,) rows whose logits are computed
    fl_routes routes;
    fl_lane_scratch *lanes; // (threads,)
};

fl_status fl_scratch_reserve(fl_scratch *s, const fl_model *m, size_t tokens, size_t threads);

#endif
