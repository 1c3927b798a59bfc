// Layers with experts (Shazeer et al., 2017): the router's softmax over all of them, the most probable few of each
// token, and the sum of what those make of it, weighted. Rows, a token with one of its experts, are brought together by
// expert, so that a batch reads each expert's weights once.
#include "moe.h"

#include <math.h>
#include <string.h>

#include "product.h"

// The experts' probabilities of a token, from its scores, in place; all are NaN where a score is not finite.
static void softmax(const fl_job *f, float *scores, float *sums) {
    const size_t n = f->m->config.n_experts;
    size_t best;
    int finite;
    float total = 0;
    const float max = f->m->kernels->max(scores, n, &best, &finite);
    f->m->kernels->softmax(scores, sums, scores, n, 1.0f, finite ? max : NAN);
    for (size_t i = 0; i * FL_SUM_RUN < n; i++) total += sums[i];
    for (size_t i = 0; i < n; i++) scores[i] /= total;
}

// The experts of token t, most probable first, the lower number first among equals. Each is looked at once and so chosen
// once at most, whatever its probability is, NaN too: an expert has no more rows than there are tokens, and that is what
// the scratch has room for.
static void choose(const fl_job *f, size_t t) {
    const fl_config *c = &f->m->config;
    const fl_routes *r = &f->s->routes;
    const size_t used = c->n_experts_used;
    float *p = r->scores + t * fl_round_up(c->n_experts, FL_LANES), total = 0;
    int32_t *expert = r->expert + t * used;
    float *weight = r->weight + t * used;
    softmax(f, p, r->sums + t * (c->n_experts / FL_SUM_RUN + 1));
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
static void group(const fl_job *f) {
    const size_t experts = f->m->config.n_experts, pairs = f->tokens * f->m->config.n_experts_used;
    fl_routes *r = &f->s->routes;
    memset(r->begin, 0, (experts + 1) * sizeof *r->begin);
    for (size_t i = 0; i < pairs; i++) r->begin[r->expert[i] + 1]++;
    for (size_t e = 0; e < experts; e++) r->begin[e + 1] += r->begin[e];
    for (size_t i = 0; i < pairs; i++) r->row[i] = r->begin[r->expert[i]]++;
    for (size_t e = experts; e > 0; e--) r->begin[e] = r->begin[e - 1]; // each start had moved to its end
    r->begin[0] = 0;
    r->n_active = 0;
    size_t slots = 0;
    for (size_t e = 0; e < experts; e++) {
        const size_t count = r->begin[e + 1] - r->begin[e];
        r->bundles[e] = slots;
        slots += fl_round_up(count, fl_bundle_width(count));
        if (count > 0) r->active[r->n_active++] = e;
    }
}

static fl_matrix expert_of(const fl_matrix *w, size_t e) {
    fl_matrix one = *w;
    if (one.data) one.data = (const char *)one.data + e * fl_matrix_bytes(w->type, w->d, w->n);
    return one;
}

// A deal of the panels of a matrix of every expert that has rows: pieces of FL_CHUNK panels, expert after expert.
static size_t pieces(const fl_matrix *w) { return (fl_panels(w) + FL_CHUNK - 1) / FL_CHUNK; }

static fl_deal deal_experts(const fl_job *f, fl_team *team, size_t id, const fl_matrix *w) {
    return fl_deal_start(team, id, f->s->routes.n_active * pieces(w), 1);
}

// The next piece: of which expert, and which of its panels.
static int next_piece(const fl_job *f, fl_deal *deal, const fl_matrix *w, size_t *e, size_t *begin, size_t *end) {
    size_t piece, stop;
    if (!fl_deal_next(deal, &piece, &stop)) return 0;
    *e = f->s->routes.active[piece / pieces(w)];
    *begin = piece % pieces(w) * FL_CHUNK;
    *end = *begin + FL_CHUNK < fl_panels(w) ? *begin + FL_CHUNK : fl_panels(w);
    return 1;
}

// Where the bundles of an expert begin, of so many groups each.
static void *bundles_at(const fl_routes *r, void *q, size_t e, size_t groups) {
    return (char *)q + r->bundles[e] * groups * sizeof(fl_q8_group);
}

// The rows' inputs, brought together by expert. A single token needs none of it: its rows are all the same.
static void gather(const fl_job *f, fl_team *team, size_t id, const fl_inputs *in, int quantize) {
    const fl_routes *r = &f->s->routes;
    const size_t used = f->m->config.n_experts_used, groups = in->f_stride / FL_GROUP;
    if (f->tokens == 1) return;
    size_t begin, end;
    fl_share(f->tokens, team, id, &begin, &end);
    for (size_t t = begin; t < end; t++)
        for (size_t j = 0; j < used; j++) {
            const size_t row = r->row[t * used + j], e = (size_t)r->expert[t * used + j], first = r->begin[e];
            const float *x = in->f + t * in->f_stride;
            memcpy(r->x + row * in->f_stride, x, in->f_stride * sizeof(float));
            if (quantize)
                fl_quantize(f, x, in->f_stride, bundles_at(r, r->q8, e, groups), groups, 0, r->begin[e + 1] - first,
                            row - first);
        }
    fl_barrier(team, id);
}

// The inputs of an expert's rows.
static fl_inputs rows_of(const fl_routes *r, size_t e, const float *x, size_t width, void *q) {
    return (fl_inputs){.f = x + r->begin[e] * width, .f_stride = width, .q = bundles_at(r, q, e, width / FL_GROUP)};
}

// The shared expert's output for all tokens, into s->y. Ends with a barrier.
static void shared_expert(const fl_job *f, const fl_layer *l, fl_team *team, size_t id, const fl_inputs *in) {
    fl_scratch *s = f->s;
    if (l->shared_gate.data && id == 0)
        fl_multiply_panels(f, &l->shared_gate, 0, 1, in, f->tokens, s->routes.shared, FL_LANES, 0);
    const fl_inputs hidden = fl_hidden_layer(f, team, id, l, in);
    fl_multiply_dealt(f, team, id, &l->w2, &hidden, f->tokens, s->y, s->dim, 0);
    fl_barrier(team, id);
}

// 1 / (1 + exp(-x)), by the kernel whose bits do not depend on the machine: the softmax of x and 0. NaN where x is not
// finite.
static float sigmoid(const fl_job *f, float x) {
    float pair[FL_LANES] = {x, 0}, sum;
    f->m->kernels->softmax(pair, &sum, pair, 2, 1.0f, x > 0 ? x : 0);
    return pair[0] / sum - (x - x);
}

// The sum of a token's experts, and of the shared one, into s->y.
static void combine(const fl_job *f, const fl_layer *l, size_t t) {
    const fl_routes *r = &f->s->routes;
    const size_t used = f->m->config.n_experts_used, dim = f->m->config.dim, stride = f->s->dim;
    float *y = f->s->y + t * stride;
    if (!l->w1.data) memset(y, 0, dim * sizeof(float));
    if (l->shared_gate.data) {
        const float weight = sigmoid(f, r->shared[t * FL_LANES]);
        for (size_t i = 0; i < dim; i++) y[i] *= weight;
    }
    for (size_t j = 0; j < used; j++) {
        const float weight = r->weight[t * used + j], *out = r->out + r->row[t * used + j] * stride;
        for (size_t i = 0; i < dim; i++) y[i] += weight * out[i];
    }
}

void fl_moe(const fl_job *f, const fl_layer *l, fl_team *team, size_t id) {
    fl_scratch *s = f->s;
    const fl_config *c = &f->m->config;
    const fl_routes *r = &s->routes;
    const size_t scores = fl_round_up(c->n_experts, FL_LANES);
    const int integer = fl_is_integer(l->e2.type);
    const int experts = fl_is_integer(l->e1.type) || fl_is_integer(l->e3.type);
    const int all = fl_is_integer(l->router.type) || fl_is_integer(l->w1.type) || fl_is_integer(l->w3.type) ||
                    fl_is_integer(l->shared_gate.type);
    size_t begin, end;

    // Of several tokens, gather makes the experts' int8.
    const fl_inputs in = fl_prepare(f, team, id, s->x, s->dim, NULL, f->tokens, &l->ffn_norm,
                                    all || (experts && f->tokens == 1));
    fl_multiply_dealt(f, team, id, &l->router, &in, f->tokens, r->scores, scores, 0);
    fl_barrier(team, id);
    fl_share(f->tokens, team, id, &begin, &end);
    for (size_t t = begin; t < end; t++) choose(f, t);
    if (f->tokens > 1) fl_barrier(team, id);
    if (id == (f->tokens > 1 ? 0 : team->threads - 1)) group(f); // who chose for a single token goes on
    fl_barrier(team, id);

    gather(f, team, id, &in, experts);
    size_t e;
    fl_deal gates = deal_experts(f, team, id, &l->e1);
    while (next_piece(f, &gates, &l->e1, &e, &begin, &end)) {
        const size_t row = r->begin[e], count = r->begin[e + 1] - row;
        const fl_matrix w1 = expert_of(&l->e1, e), w3 = expert_of(&l->e3, e);
        const fl_inputs mine = f->tokens == 1 ? in : rows_of(r, e, r->x, s->dim, r->q8);
        const fl_hidden made = {.f = integer ? NULL : r->gate + row * r->width,
                                .q = integer ? bundles_at(r, r->hidden8, e, r->width / FL_GROUP) : NULL,
                                .stride = r->width};
        fl_gate_panels(f, id, &w1, &w3, begin, end, &mine, count, &made);
    }
    fl_barrier(team, id);
    fl_deal downs = deal_experts(f, team, id, &l->e2);
    while (next_piece(f, &downs, &l->e2, &e, &begin, &end)) {
        const size_t row = r->begin[e], count = r->begin[e + 1] - row;
        const fl_matrix w2 = expert_of(&l->e2, e);
        const fl_inputs mine = rows_of(r, e, r->gate, r->width, r->hidden8);
        fl_multiply_panels(f, &w2, begin, end, &mine, count, r->out + row * s->dim, s->dim, 0);
    }
    fl_barrier(team, id);
    if (l->w1.data) shared_expert(f, l, team, id, &in);
    fl_share(f->tokens, team, id, &begin, &end);
    for (size_t t = begin; t < end; t++) combine(f, l, t);
}
