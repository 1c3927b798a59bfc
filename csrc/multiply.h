// Matrix products of a forward: inputs made ready, panels dealt out to the workers, and the gate of a feed-forward.
//
// A matrix has d rows and n columns. Its inputs are (tokens, stride) with stride a multiple of 32, its outputs (tokens,
// stride) with stride at least d rounded up to 16: whole panels are written.
#ifndef FL_MULTIPLY_H
#define FL_MULTIPLY_H

#include "forward.h"
#include "panels.h"

static inline size_t fl_panels(const fl_matrix *matrix) { return (matrix->d + FL_LANES - 1) / FL_LANES; }

// out (dim,) = norm(x), x (dim,); out may be x. The norm must have a weight.
void fl_norm_row(const fl_model *m, const fl_norm *norm, float *out, const float *x);

// ---- inputs --------------------------------------------------------------------------------------------------------

// Rows of int8 inputs for each token: see fl_inputs.
static inline size_t fl_parts(const fl_model *m) { return m->config.precise ? 2 : 1; }

// Writes n floats of token t as int8, to its groups from number `first` on; n is a multiple of 32. q: the int8 inputs
// of `tokens` tokens of `groups` groups each.
void fl_quantize(const fl_worker *w, const float *x, size_t n, void *q, size_t groups, size_t first, size_t tokens,
                 size_t t);

// Rows of x as inputs of matrices: after the norm, if one with a weight is given, and as int8 too with `quantize`.
// Input t is row rows[t] of x (.., stride); rows NULL: row t. For several tokens the workers share the rows and pass a
// barrier. A single token is cheaper for each worker to prepare for itself, in its own scratch, than to wait for.
fl_inputs fl_prepare(const fl_worker *w, const float *x, size_t stride, const size_t *rows, size_t tokens,
                     const fl_norm *norm, int quantize);

// ---- products ------------------------------------------------------------------------------------------------------

// out = matrix . in + bias for panels [begin, end) by this worker alone; with `add`, out += that.
void fl_multiply_panels(const fl_worker *w, const fl_matrix *matrix, size_t begin, size_t end, const fl_inputs *in,
                        size_t tokens, float *out, size_t stride, int add);

// The same for all panels, dealt out to the workers. `out` is complete after the next barrier.
void fl_multiply_dealt(const fl_worker *w, const fl_matrix *matrix, const fl_inputs *in, size_t tokens, float *out,
                       size_t stride, int add);

// The deal of a matrix's panels. They go in pairs: 32 rows are one group of the next matrix's inputs, so that the
// worker that computes them can write their int8. Chunks are FL_CHUNK panels, or half of that where a worker's share
// would be fewer than four of them. For example 19 panels, 3 workers and chunks of 4:
//
//   panels   0  1  2  3  4  5 | 6  7  8  9 10 11 | 12 13 14 15 16 17 18
//   share    of worker 0      | of worker 1      | of worker 2
//   chunks  [0  1  2  3][4  5]|[6  7  8  9][10 11]|[12 13 14 15][16 17 18]
//
//     fl_deal deal = fl_deal_panels(w, panels);
//     for (size_t begin, end; fl_next_panels(&deal, panels, &begin, &end);) ... panels [begin, end), begin even
static inline fl_deal fl_deal_panels(const fl_worker *w, size_t panels) {
    const size_t chunk = panels < 4 * FL_CHUNK * w->team->threads ? FL_CHUNK / 2 : FL_CHUNK;
    return fl_deal_start(w->team, w->id, (panels + 1) / 2, chunk / 2);
}

static inline int fl_next_panels(fl_deal *deal, size_t panels, size_t *begin, size_t *end) {
    if (!fl_deal_next(deal, begin, end)) return 0;
    *begin *= 2;
    *end = *end * 2 < panels ? *end * 2 : panels;
    return 1;
}

// ---- gates ---------------------------------------------------------------------------------------------------------

// Where the outputs of a gate go, in the form that the next matrix takes: floats, int8 or both. NULL: not in that form.
typedef struct fl_hidden {
    float *f;      // (tokens, stride)
    void *q;       // bundles of (tokens, stride / 32) groups
    size_t stride; // a multiple of 32
} fl_hidden;

// out = act(w1 . in) * (w3 . in), or act(w1 . in) where w3 has no data, for panels [begin, end) by this worker alone:
// begin even, FL_CHUNK panels at most.
void fl_gate_panels(const fl_worker *w, const fl_matrix *w1, const fl_matrix *w3, size_t begin, size_t end,
                    const fl_inputs *in, size_t tokens, const fl_hidden *out);

// The same for all panels, dealt out to the workers. `out` is complete after the next barrier.
void fl_gate_dealt(const fl_worker *w, const fl_matrix *w1, const fl_matrix *w3, const fl_inputs *in, size_t tokens,
                   const fl_hidden *out);

// The gate of a dense feed-forward, or of a shared expert, for all tokens of the batch: returns the inputs of w2, as
// floats too where the forward's outputs want them. Ends with a barrier.
fl_inputs fl_hidden_layer(const fl_worker *w, const fl_layer *l, const fl_inputs *in);

#endif
