// The working memory of a forward, one allocation for all of it. Widths of rows are padded with zeros to a multiple of
// 32 floats.
#ifndef FL_SCRATCH_H
#define FL_SCRATCH_H

#include "kernels/kernels.h"

enum { FL_ATTEND_ROWS = 48 }; // queries that pass over keys and values together, at most
enum { FL_CHUNK = 8 };        // panels that a kernel reads at once, and that a worker takes at a time

// What one worker alone reads and writes.
typedef struct fl_worker_scratch {
    float *norm;          // (dim,) the inputs of a single token, or a row that is about to be copied or added
    fl_q8_group *q8;      // (wider of dim and q_dim / 32,) a single token's inputs as int8
    float *gate, *up;     // (tokens, 16 FL_CHUNK) outputs of a chunk of panels
    float *q, *out;       // (FL_ATTEND_ROWS, head_dim rounded up to 16) queries, and the sums of values they weigh
    float *key;           // (head_dim rounded up to 32,)
    float *attend;        // what the attention kernels work in
    float *map;           // (FL_ATTEND_ROWS, 64) probabilities of a page
    float *max, *sum;     // (FL_ATTEND_ROWS,) see fl_attend
    size_t *from, *limit; // (FL_ATTEND_ROWS,) see fl_attend
    uint16_t *half;       // (head_dim rounded up to 16,)
    int8_t *bytes;        // (head_dim rounded up to 32,)
    fl_query *q8_rows;    // (FL_ATTEND_ROWS, head_dim / 32 rounded up) queries for keys in int8
} fl_worker_scratch;

// Of layers with experts. A row is a token at one of its experts; rows lie by expert, see moe.c.
typedef struct fl_routes {
    float *scores;   // (tokens, n_experts rounded up to 16)
    float *sums;     // (tokens, n_experts / FL_SUM_PART + 1) see the softmax kernel
    int32_t *expert; // (tokens, n_experts_used) most probable first
    float *weight;   // (tokens, n_experts_used)
    size_t *row;     // (tokens, n_experts_used) the row of a token at that expert
    size_t *begin;   // (n_experts + 1,) expert e has the rows [begin[e], begin[e + 1])
    size_t *active;  // (n_experts,) the experts that have rows
    size_t n_active;
    size_t *bundles;    // (n_experts,) where an expert's bundles begin in q8 and hidden8, counted in places
    float *x;           // (rows, dim) inputs of the experts
    void *q8;           // the same as int8: bundles of each expert's rows
    float *gate;        // (rows, width) what their gates make, where e2 takes floats
    void *hidden8;      // the same as int8, where e2 takes that
    float *out;         // (rows, dim)
    float *shared;      // (tokens, 16) in column 0 the output of shared_gate
    size_t width;       // expert_dim rounded up to 32
} fl_routes;

struct fl_scratch {
    size_t tokens, threads;            // what it has room for
    size_t dim, q_dim, kv_dim, hidden; // widths of rows: a multiple of 32
    void *memory;
    float *x;               // (tokens, dim) the residual stream
    float *y;               // (tokens, dim) what a branch adds to it, where a norm or factor comes between
    float *q;               // (tokens, q_dim)
    float *k, *v;           // (tokens, kv_dim)
    float *att;             // (tokens, q_dim) what attention makes of the values
    float *gate;            // (tokens, hidden) what the gate makes, where floats are wanted
    void *hidden8;          // bundles of (tokens, hidden / 32) groups: the same as int8
    float *norm;            // (tokens, dim) inputs of several tokens
    void *q8;               // bundles of (tokens, wider of dim and q_dim / 32) groups: the same as int8
    float *cos[2], *sin[2]; // (tokens, rotary_dim / 2) by each of the model's frequencies
    float *partial;         // (partials, head_dim rounded up to 16, + 2) attention to runs that are to be merged
    size_t partials;        // enough for four tokens at the end of the context
    size_t *wanted;         // (tokens,) the tokens of the batch whose logits are computed, n_logits of them
    fl_routes routes;
    fl_worker_scratch *workers; // (threads,)
};

// Makes room for forwards of `tokens` tokens on `threads` threads. FL_NO_MEMORY: nothing has changed.
fl_status fl_scratch_reserve(fl_scratch *s, const fl_model *m, size_t tokens, size_t threads);

#endif
