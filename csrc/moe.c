// Layers with experts (Shazeer et al., 2017): the router's softmax over all experts, the most probable few of each
// token, and the weighted sum of what these make of it.
//
// A row is a token at one of its experts. Rows are laid out by expert, so that a batch reads each expert's weights
// once. For example 3 tokens, 4 experts, 2 of them for each token:
//
//   token 0: experts 2, 0       expert      0     1    2        3       begin  = 0 1 1 4 6
//   token 1: experts 3, 2       rows        0     -    1 2 3    4 5     active = 0 2 3, the experts with rows
//   token 2: experts 2, 3       of tokens   0          0 1 2    1 2     row    = 1 0, 4 2, 3 5: of token 0, 1, 2
//
// A phase multiplies every active expert's matrix with that expert's rows. The matrices are cut into pieces of FL_CHUNK
// panels, which are dealt out expert after expert; here with 3 pieces in each matrix and 2 workers:
//
//   piece     0 1 2   3 4 5   6 7 8
//   expert      0       2       3
//   share     of worker 0: pieces 0 to 3, of worker 1: 4 to 8
#include "moe.h"

#include <math.h>
#include <string.h>

#include "multiply.h"

// ---- router --------------------------------------------------------------------------------------------------------

// The experts' probabilities of a token, from its scores, in place. All are NaN where a score is not finite.
static void softmax(const fl_model *m, float *scores, float *sums) {
    const size_t n = m->config.n_experts;
    size_t best;
    int finite;
    float total = 0;
    const float max = m->kernels->max(scores, n, &best, &finite);
    m->kernels->softmax(scores, sums, scores, n, 1.0f, finite ? max : NAN);
    for (size_t i = 0; i * FL_SUM_PART < n; i++) total += sums[i];
    for (size_t i = 0; i < n; i++) scores[i] /= total;
}

// The experts of token t, most probable first, the lower number first among equals. Each expert is looked at once, and
// so chosen at most once even where probabilities are NaN: an expert never has more rows than there are tokens, which
// is what the scratch has room for.
static void choose(const fl_forward_call *f, size_t t) {
    const fl_config *c = &f->m->config;
    const fl_routes *r = &f->s->routes;
    const size_t used = c->n_experts_used;
    float *p = r->scores + t * fl_round_up(c->n_experts, FL_LANES), total = 0;
    int32_t *expert = r->expert + t * used;
    float *weight = r->weight + t * used;
    softmax(f->m, p, r->sums + t * (c->n_experts / FL_SUM_PART + 1));
    for (size_t e = 0, found = 0; e < c->n_experts; e++) {
        if (found == used && !(p[e] > weight[used - 1])) continue;
        size_t at = found < used ? found++ : used - 1;
        for (; at > 0 && p[e] > weight[at - 1]; at--) {
            expert[at] = expert[at - 1];
            weight[at] = weight[at - 1];
        }
        expert[at] = (int32_t)e;
        weight[at] = p[e];
    }
    if (!c->moe_renormalize) return;
    for (size_t j = 0; j < used; j++) total += weight[j];
    for (size_t j = 0; j < used; j++) weight[j] /= total;
}

// Where each token's rows lie: by expert, and within an expert by token.
static void lay_out_rows(const fl_forward_call *f) {
    const size_t experts = f->m->config.n_experts, rows = f->tokens * f->m->config.n_experts_used;
    fl_routes *r = &f->s->routes;
    memset(r->begin, 0, (experts + 1) * sizeof *r->begin);
    for (size_t i = 0; i < rows; i++) r->begin[r->expert[i] + 1]++;
    for (size_t e = 0; e < experts; e++) r->begin[e + 1] += r->begin[e];
    for (size_t i = 0; i < rows; i++) r->row[i] = r->begin[r->expert[i]]++;
    // That has moved each expert's begin to its end, which is the begin of the next.
    for (size_t e = experts; e > 0; e--) r->begin[e] = r->begin[e - 1];
    r->begin[0] = 0;
    r->n_active = 0;
    size_t places = 0;
    for (size_t e = 0; e < experts; e++) {
        const size_t count = r->begin[e + 1] - r->begin[e];
        r->bundles[e] = places;
        const size_t quantized = count * fl_parts(f->m);
        places += fl_round_up(quantized, fl_bundle_width(quantized));
        if (count > 0) r->active[r->n_active++] = e;
    }
}

// Chooses the experts of all tokens and lays out their rows. Ends with a barrier.
static void route(const fl_worker *w, const fl_layer *l, const fl_inputs *in) {
    const fl_forward_call *f = w->f;
    const size_t stride = fl_round_up(f->m->config.n_experts, FL_LANES);
    fl_multiply_dealt(w, &l->router, in, f->tokens, f->s->routes.scores, stride, 0);
    fl_barrier(w->team, w->id);
    for (size_t t = w->begin; t < w->end; t++) choose(f, t);
    // A single token is the last worker's share, which then need not wait for others' choices.
    if (f->tokens > 1) fl_barrier(w->team, w->id);
    if (w->id == w->team->threads - 1) lay_out_rows(f);
    fl_barrier(w->team, w->id);
}

// ---- experts -------------------------------------------------------------------------------------------------------

static fl_matrix expert_of(const fl_matrix *first, size_t e) {
    fl_matrix one = *first;
    if (one.data) one.data = (const char *)one.data + e * fl_matrix_bytes(one.type, one.d, one.n);
    return one;
}

static size_t rows_of(const fl_routes *r, size_t e) { return r->begin[e + 1] - r->begin[e]; }

// Where in q the bundles of expert e begin; `groups`: of a token.
static void *bundles_of(const fl_routes *r, void *q, size_t e, size_t groups) {
    return (char *)q + fl_q8_bytes(groups, r->bundles[e]);
}

// The inputs of an expert's rows, of all rows' x (rows, width) and q.
static fl_inputs inputs_of(const fl_worker *w, size_t e, const float *x, size_t width, void *q) {
    const fl_routes *r = &w->f->s->routes;
    return (fl_inputs){.f = x + r->begin[e] * width,
                       .f_stride = width,
                       .q = bundles_of(r, q, e, width / FL_GROUP),
                       .parts = fl_parts(w->f->m)};
}

static size_t pieces_of(const fl_matrix *matrix) { return (fl_panels(matrix) + FL_CHUNK - 1) / FL_CHUNK; }

static fl_deal deal_pieces(const fl_worker *w, const fl_matrix *matrix) {
    return fl_deal_start(w->team, w->id, w->f->s->routes.n_active * pieces_of(matrix), 1);
}

// The next piece: panels [*begin, *end) of expert *e. 0 when all are taken.
static int next_piece(const fl_routes *r, fl_deal *deal, const fl_matrix *matrix, size_t *e, size_t *begin,
                      size_t *end) {
    size_t piece, stop;
    if (!fl_deal_next(deal, &piece, &stop)) return 0;
    *e = r->active[piece / pieces_of(matrix)];
    *begin = piece % pieces_of(matrix) * FL_CHUNK;
    *end = *begin + FL_CHUNK < fl_panels(matrix) ? *begin + FL_CHUNK : fl_panels(matrix);
    return 1;
}

// Copies the inputs of all rows together by expert. With one token all experts read the same input row, so nothing is
// gathered. Ends with a barrier if there is anything to do.
static void gather(const fl_worker *w, const fl_inputs *in, int quantize) {
    const fl_routes *r = &w->f->s->routes;
    const size_t used = w->f->m->config.n_experts_used, width = in->f_stride, groups = width / FL_GROUP;
    if (w->f->tokens == 1) return;
    for (size_t t = w->begin; t < w->end; t++)
        for (size_t j = 0; j < used; j++) {
            const size_t row = r->row[t * used + j], e = (size_t)r->expert[t * used + j];
            const float *x = in->f + t * width;
            memcpy(r->x + row * width, x, width * sizeof(float));
            if (quantize)
                fl_quantize(w, x, width, bundles_of(r, r->q8, e, groups), groups, 0, rows_of(r, e), row - r->begin[e]);
        }
    fl_barrier(w->team, w->id);
}

// What the experts' e1 and e3 make of their rows. Ends with a barrier.
static void multiply_gates(const fl_worker *w, const fl_layer *l, const fl_inputs *in) {
    const fl_scratch *s = w->f->s;
    const fl_routes *r = &s->routes;
    const int integer = fl_is_int8(l->e2.type);
    fl_deal deal = deal_pieces(w, &l->e1);
    for (size_t e, begin, end; next_piece(r, &deal, &l->e1, &e, &begin, &end);) {
        const fl_matrix w1 = expert_of(&l->e1, e), w3 = expert_of(&l->e3, e);
        const fl_inputs rows = w->f->tokens == 1 ? *in : inputs_of(w, e, r->x, s->dim, r->q8);
        const fl_hidden hidden = {.f = integer ? NULL : r->gate + r->begin[e] * r->width,
                                  .q = integer ? bundles_of(r, r->hidden8, e, r->width / FL_GROUP) : NULL,
                                  .stride = r->width};
        fl_gate_panels(w, &w1, &w3, begin, end, &rows, rows_of(r, e), &hidden);
    }
    fl_barrier(w->team, w->id);
}

// The experts' e2 times that. Ends with a barrier.
static void multiply_downs(const fl_worker *w, const fl_layer *l) {
    const fl_routes *r = &w->f->s->routes;
    const size_t dim = w->f->s->dim;
    fl_deal deal = deal_pieces(w, &l->e2);
    for (size_t e, begin, end; next_piece(r, &deal, &l->e2, &e, &begin, &end);) {
        const fl_matrix w2 = expert_of(&l->e2, e);
        const fl_inputs rows = inputs_of(w, e, r->gate, r->width, r->hidden8);
        fl_multiply_panels(w, &w2, begin, end, &rows, rows_of(r, e), r->out + r->begin[e] * dim, dim, 0);
    }
    fl_barrier(w->team, w->id);
}

// The shared expert's output for all tokens, into s->y, and its gate's into s->routes.shared. Ends with a barrier.
static void multiply_shared(const fl_worker *w, const fl_layer *l, const fl_inputs *in) {
    fl_scratch *s = w->f->s;
    if (l->shared_gate.data && w->id == 0)
        fl_multiply_panels(w, &l->shared_gate, 0, 1, in, w->f->tokens, s->routes.shared, FL_LANES, 0);
    const fl_inputs hidden = fl_hidden_layer(w, l, in);
    fl_multiply_dealt(w, &l->w2, &hidden, w->f->tokens, s->y, s->dim, 0);
    fl_barrier(w->team, w->id);
}

// ---- sums ----------------------------------------------------------------------------------------------------------

// 1 / (1 + exp(-x)), as the softmax of (x, 0): that kernel's bits do not depend on the machine. NaN where x is not
// finite.
static float sigmoid(const fl_kernels *k, float x) {
    float pair[FL_LANES] = {x, 0}, sum;
    k->softmax(pair, &sum, pair, 2, 1.0f, x > 0 ? x : 0);
    return pair[0] / sum - (x - x);
}

// The sum of a token's experts and of the shared one, which is in s->y already, into s->y.
static void combine(const fl_forward_call *f, const fl_layer *l, size_t t) {
    const fl_routes *r = &f->s->routes;
    const size_t used = f->m->config.n_experts_used, dim = f->m->config.dim, stride = f->s->dim;
    float *y = f->s->y + t * stride;
    if (!l->w1.data) memset(y, 0, dim * sizeof(float));
    if (l->shared_gate.data) {
        const float weight = sigmoid(f->m->kernels, r->shared[t * FL_LANES]);
        for (size_t i = 0; i < dim; i++) y[i] *= weight;
    }
    for (size_t j = 0; j < used; j++) {
        const float weight = r->weight[t * used + j], *out = r->out + r->row[t * used + j] * stride;
        for (size_t i = 0; i < dim; i++) y[i] += weight * out[i];
    }
}

void fl_moe(const fl_worker *w, const fl_layer *l, const fl_norm *norm) {
    const fl_forward_call *f = w->f;
    const int experts = fl_is_int8(l->e1.type) || fl_is_int8(l->e3.type);
    const int others = fl_is_int8(l->router.type) || fl_is_int8(l->w1.type) || fl_is_int8(l->w3.type) ||
                       fl_is_int8(l->shared_gate.type);
    // The experts' int8 inputs are made by gather, unless there is a single token.
    const int quantize = others || (experts && f->tokens == 1);
    const fl_inputs in = fl_prepare(w, f->s->x, f->s->dim, NULL, f->tokens, norm, quantize);
    route(w, l, &in);
    gather(w, &in, experts);
    multiply_gates(w, l, &in);
    multiply_downs(w, l);
    if (l->w1.data) multiply_shared(w, l, &in);
    for (size_t t = w->begin; t < w->end; t++) combine(f, l, t);
}
