// Matrix products of a forward: inputs made ready, panels dealt out to the team, and the gate of a feed-forward.
#include "product.h"

#include <string.h>

void fl_norm_row(const fl_model *m, const fl_norm *norm, float *out, const float *x) {
    m->kernels->norm[m->config.norm](out, x, norm->weight, norm->bias, m->config.dim, m->config.norm_eps);
}

void fl_quantize(const fl_job *f, const float *x, size_t n, void *q, size_t groups, size_t first, size_t tokens,
                 size_t t) {
    const size_t width = fl_bundle_width(tokens);
    char *tile = fl_bundle_of(q, groups, tokens, t);
    f->m->kernels->quantize(x, n, tile + first * width * sizeof(fl_q8_group), width, t % width);
}

fl_inputs fl_prepare(const fl_job *f, fl_team *team, size_t id, const float *x, size_t stride, const size_t *rows,
                     size_t tokens, const fl_norm *norm, int quantize) {
    const int alone = tokens == 1, normed = norm && norm->weight, copied = normed || rows;
    float *out = alone ? f->s->lanes[id].norm : f->s->norm;
    void *q8 = alone ? f->s->lanes[id].q8 : f->s->q8;
    size_t begin = 0, end = tokens;
    if (!alone) fl_share(tokens, team, id, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const float *row = x + (rows ? rows[t] : t) * stride;
        // Rows that are copied are `dim` wide, and their padding stays zero whatever the stream's holds.
        if (normed) fl_norm_row(f->m, norm, out + t * stride, row);
        else if (copied) memcpy(out + t * stride, row, f->m->config.dim * sizeof(float));
        if (copied) row = out + t * stride;
        if (quantize) fl_quantize(f, row, stride, q8, stride / FL_GROUP, 0, tokens, t);
    }
    if (!alone) fl_barrier(team, id);
    return (fl_inputs){.f = copied ? out : x, .f_stride = stride, .q = q8};
}

void fl_multiply_panels(const fl_job *f, const fl_matrix *w, size_t begin, size_t end, const fl_inputs *in,
                        size_t tokens, float *out, size_t stride, int add) {
    if (begin >= end || tokens == 0) return;
    f->m->kernels->matmul[w->type](w, begin, end, in, tokens, out, stride, add);
    if (!w->bias) return;
    for (size_t t = 0; t < tokens; t++)
        for (size_t r = begin * FL_LANES; r < end * FL_LANES; r++) out[t * stride + r] += w->bias[r];
}

void fl_multiply_dealt(const fl_job *f, fl_team *team, size_t id, const fl_matrix *w, const fl_inputs *in,
                       size_t tokens, float *out, size_t stride, int add) {
    fl_deal deal = fl_deal_panels(team, id, fl_panels(w));
    for (size_t begin, end; fl_next_panels(&deal, fl_panels(w), &begin, &end);)
        fl_multiply_panels(f, w, begin, end, in, tokens, out, stride, add);
}

// A matrix from a panel on.
static fl_matrix panels_from(const fl_matrix *w, size_t panel) {
    fl_matrix rest = *w;
    if (w->data) rest.data = (const char *)w->data + panel * fl_panel_bytes(w->type, w->n);
    if (w->bias) rest.bias = w->bias + panel * FL_LANES;
    return rest;
}

void fl_gate_panels(const fl_job *f, size_t id, const fl_matrix *w1, const fl_matrix *w3, size_t begin, size_t end,
                    const fl_inputs *in, size_t tokens, const fl_hidden *out) {
    // Gate and up by the same thread, which then joins them: no barrier between. The rows lie close together meanwhile:
    // those of a whole matrix may be a power of two apart, and a cache hold but few of them.
    const fl_matrix gates = panels_from(w1, begin), ups = panels_from(w3, begin);
    const size_t panels = end - begin, n = panels * FL_LANES, stride = fl_round_up(n, FL_GROUP);
    float *gate = f->s->lanes[id].gate, *up = w3->data ? f->s->lanes[id].up : NULL;
    fl_multiply_panels(f, &gates, 0, panels, in, tokens, gate, stride, 0);
    if (up) fl_multiply_panels(f, &ups, 0, panels, in, tokens, up, stride, 0);
    for (size_t t = 0; t < tokens; t++, gate += stride) {
        f->m->kernels->act[f->m->config.act](gate, up ? up + t * stride : NULL, n);
        if (out->f) memcpy(out->f + t * out->stride + begin * FL_LANES, gate, n * sizeof(float));
        if (!out->q) continue;
        memset(gate + n, 0, (stride - n) * sizeof(float));
        fl_quantize(f, gate, stride, out->q, out->stride / FL_GROUP, begin * FL_LANES / FL_GROUP, tokens, t);
    }
}

void fl_gate_dealt(const fl_job *f, fl_team *team, size_t id, const fl_matrix *w1, const fl_matrix *w3,
                   const fl_inputs *in, size_t tokens, const fl_hidden *out) {
    fl_deal deal = fl_deal_panels(team, id, fl_panels(w1));
    for (size_t begin, end; fl_next_panels(&deal, fl_panels(w1), &begin, &end);)
        fl_gate_panels(f, id, w1, w3, begin, end, in, tokens, out);
}

fl_inputs fl_hidden_layer(const fl_job *f, fl_team *team, size_t id, const fl_layer *l, const fl_inputs *in) {
    fl_scratch *s = f->s;
    const int integer = fl_is_integer(l->w2.type);
    const fl_hidden hidden = {
        .f = !integer || f->out->inputs ? s->gate : NULL, .q = integer ? s->hidden8 : NULL, .stride = s->hidden};
    fl_gate_dealt(f, team, id, &l->w1, &l->w3, in, f->tokens, &hidden);
    fl_barrier(team, id);
    return (fl_inputs){.f = hidden.f, .f_stride = s->hidden, .q = hidden.q};
}
