// Matrix products of a forward: inputs made ready, panels dealt out to the team, and the gate of a feed-forward.
#ifndef FL_PRODUCT_H
#define FL_PRODUCT_H

#include "forward.h"

// out = norm(x), rows of dim floats; out may be x.
void fl_norm_row(const fl_model *m, const fl_norm *norm, float *out, const float *x);

static inline int fl_is_integer(fl_type type) { return type == FL_Q8 || type == FL_Q8_F32 || type == FL_Q4; }

// Rows of x as the inputs of matrices: normed if there is a norm, quantized if a matrix is int8. `rows` picks rows of
// x; NULL takes the first `tokens`. Ends with a barrier unless each thread did it all for itself.
fl_inputs fl_prepare(const fl_job *f, fl_team *team, size_t id, const float *x, size_t stride, const size_t *rows,
                     size_t tokens, const fl_norm *norm, int quantize);

// n floats, from group `first` on, of token t of so many as int8, in tiles of so many groups.
void fl_quantize(const fl_job *f, const float *x, size_t n, void *q, size_t groups, size_t first, size_t tokens,
                 size_t t);

// Panels [begin, end) of out (+)= w . in + bias.
void fl_multiply_panels(const fl_job *f, const fl_matrix *w, size_t begin, size_t end, const fl_inputs *in,
                        size_t tokens, float *out, size_t stride, int add);

// All panels, dealt out to the team.
void fl_multiply_dealt(const fl_job *f, fl_team *team, size_t id, const fl_matrix *w, const fl_inputs *in,
                       size_t tokens, float *out, size_t stride, int add);

// What a gate makes, as the next matrix takes it: NULL where it does not.
typedef struct fl_hidden {
    float *f;      // (tokens, stride)
    void *q;       // tiles of (tokens, stride / 32) groups
    size_t stride; // a multiple of 32
} fl_hidden;

// out = act(w1 . in) * (w3 . in), or act(w1 . in) without w3, for panels [begin, end), at most FL_CHUNK, from an even one.
void fl_gate_panels(const fl_job *f, size_t id, const fl_matrix *w1, const fl_matrix *w3, size_t begin, size_t end,
                    const fl_inputs *in, size_t tokens, const fl_hidden *out);

// The same for all panels, dealt out to the team.
void fl_gate_dealt(const fl_job *f, fl_team *team, size_t id, const fl_matrix *w1, const fl_matrix *w3,
                   const fl_inputs *in, size_t tokens, const fl_hidden *out);

// What a layer's w1 and w3 make of all tokens, as the inputs of its w2. Ends with a barrier.
fl_inputs fl_hidden_layer(const fl_job *f, fl_team *team, size_t id, const fl_layer *l, const fl_inputs *in);

static inline size_t fl_panels(const fl_matrix *w) { return (w->d + FL_LANES - 1) / FL_LANES; }

// So many panels, dealt out in chunks; in halves of them where a thread's share is but a few. Two at a time, which are a
// group of the next matrix's inputs.
static inline fl_deal fl_deal_panels(fl_team *team, size_t id, size_t panels) {
    const size_t chunk = panels < 4 * FL_CHUNK * team->threads ? FL_CHUNK / 2 : FL_CHUNK;
    return fl_deal_start(team, id, (panels + 1) / 2, chunk / 2);
}

static inline int fl_next_panels(fl_deal *deal, size_t panels, size_t *begin, size_t *end) {
    if (!fl_deal_next(deal, begin, end)) return 0;
    *begin *= 2;
    *end = *end * 2 < panels ? *end * 2 : panels;
    return 1;
}

#endif
