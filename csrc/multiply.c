// Matrix products of a forward; see multiply.h.
#include "multiply.h"

#include <string.h>

void fl_norm_row(const fl_model *m, const fl_norm *norm, float *out, const float *x) {
    m->kernels->norm[m->config.norm](out, x, norm->weight, norm->bias, m->config.dim, m->config.norm_eps);
}

// ---- inputs --------------------------------------------------------------------------------------------------------

// Where groups of a row of int8 inputs go.
typedef struct place {
    char *bundle;
    size_t width, i; // the bundle's tokens, and which of them the row is
} place;

// From group number `first` on, of row t of `rows`.
static place place_of(void *q, size_t groups, size_t first, size_t rows, size_t t) {
    const size_t width = fl_bundle_width(rows);
    char *bundle = fl_bundle_of(q, groups, rows, t);
    return (place){bundle + first * width * sizeof(fl_q8_group), width, t % width};
}

// Quantizes n floats into row t, and what rounding has taken from them into row t + 1: 15 bits in all.
static void quantize_twice(const fl_kernels *k, const float *x, size_t n, void *q, size_t groups, size_t first,
                           size_t rows, size_t t) {
    for (size_t g = first; n > 0; g++, n -= FL_GROUP, x += FL_GROUP) {
        const place a = place_of(q, groups, g, rows, t), b = place_of(q, groups, g, rows, t + 1);
        const int8_t *rounded = (const int8_t *)a.bundle + a.i * FL_GROUP;
        const float *scales = (const float *)(const void *)(a.bundle + a.width * FL_GROUP);
        float rest[FL_GROUP];
        k->quantize(x, FL_GROUP, a.bundle, a.width, a.i, NULL);
        for (size_t i = 0; i < FL_GROUP; i++) rest[i] = x[i] - (float)rounded[i] * scales[a.i];
        k->quantize(rest, FL_GROUP, b.bundle, b.width, b.i, NULL);
    }
}

void fl_quantize(const fl_worker *w, const float *x, size_t n, void *q, size_t groups, size_t first, size_t tokens,
                 size_t t) {
    const fl_model *m = w->f->m;
    if (m->config.precise) {
        quantize_twice(m->kernels, x, n, q, groups, first, 2 * tokens, 2 * t);
    } else {
        const place p = place_of(q, groups, first, tokens, t);
        fl_outliers outliers = fl_outliers_of(q, groups, tokens, t);
        outliers.value += first;
        outliers.k += first;
        m->kernels->quantize(x, n, p.bundle, p.width, p.i, &outliers);
    }
}

fl_inputs fl_prepare(const fl_worker *w, const float *x, size_t stride, const size_t *rows, size_t tokens,
                     const fl_norm *norm, int quantize) {
    const fl_forward_call *f = w->f;
    const int alone = tokens == 1, normed = norm && norm->weight, copied = normed || rows;
    float *out = alone ? w->own->norm : f->s->norm;
    void *q8 = alone ? w->own->q8 : f->s->q8;
    size_t begin = 0, end = tokens;
    if (!alone) fl_share(tokens, w->team, w->id, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const float *row = x + (rows ? rows[t] : t) * stride;
        // Only the first dim floats of a row are copied: the padding of `out` stays zero whatever that of x holds.
        if (normed) fl_norm_row(f->m, norm, out + t * stride, row);
        else if (copied) memcpy(out + t * stride, row, f->m->config.dim * sizeof(float));
        if (copied) row = out + t * stride;
        if (quantize) fl_quantize(w, row, stride, q8, stride / FL_GROUP, 0, tokens, t);
    }
    if (!alone) fl_barrier(w->team, w->id);
    return (fl_inputs){.f = copied ? out : x, .f_stride = stride, .q = q8, .parts = fl_parts(f->m)};
}

// ---- products ------------------------------------------------------------------------------------------------------

void fl_multiply_panels(const fl_worker *w, const fl_matrix *matrix, size_t begin, size_t end, const fl_inputs *in,
                        size_t tokens, float *out, size_t stride, int add) {
    if (begin >= end || tokens == 0) return;
    w->f->m->kernels->matmul[matrix->type](matrix, begin, end, in, tokens, out, stride, add);
    if (!matrix->bias) return;
    for (size_t t = 0; t < tokens; t++)
        for (size_t r = begin * FL_LANES; r < end * FL_LANES; r++) out[t * stride + r] += matrix->bias[r];
}

void fl_multiply_dealt(const fl_worker *w, const fl_matrix *matrix, const fl_inputs *in, size_t tokens, float *out,
                       size_t stride, int add) {
    const size_t panels = fl_panels(matrix);
    fl_deal deal = fl_deal_panels(w, panels);
    for (size_t begin, end; fl_next_panels(&deal, panels, &begin, &end);)
        fl_multiply_panels(w, matrix, begin, end, in, tokens, out, stride, add);
}

// ---- gates ---------------------------------------------------------------------------------------------------------

// A matrix from a panel on.
static fl_matrix panels_from(const fl_matrix *matrix, size_t panel) {
    fl_matrix rest = *matrix;
    if (rest.data) rest.data = (const char *)rest.data + panel * fl_panel_bytes(rest.type, rest.n);
    if (rest.bias) rest.bias += panel * FL_LANES;
    return rest;
}

void fl_gate_panels(const fl_worker *w, const fl_matrix *w1, const fl_matrix *w3, size_t begin, size_t end,
                    const fl_inputs *in, size_t tokens, const fl_hidden *out) {
    // One worker computes gate and up of the same rows, so that it can join them without a barrier. Meanwhile they lie
    // close together in its own scratch. In a whole (tokens, hidden) array the rows may be a power of two apart, and
    // then a cache holds only a few of them.
    const fl_model *m = w->f->m;
    const fl_matrix gates = panels_from(w1, begin), ups = panels_from(w3, begin);
    const size_t panels = end - begin, n = panels * FL_LANES, stride = fl_round_up(n, FL_GROUP);
    float *gate = w->own->gate, *up = w3->data ? w->own->up : NULL;
    fl_multiply_panels(w, &gates, 0, panels, in, tokens, gate, stride, 0);
    if (up) fl_multiply_panels(w, &ups, 0, panels, in, tokens, up, stride, 0);
    for (size_t t = 0; t < tokens; t++, gate += stride) {
        m->kernels->act[m->config.act](gate, up ? up + t * stride : NULL, n);
        if (out->f) memcpy(out->f + t * out->stride + begin * FL_LANES, gate, n * sizeof(float));
        if (!out->q) continue;
        memset(gate + n, 0, (stride - n) * sizeof(float));
        fl_quantize(w, gate, stride, out->q, out->stride / FL_GROUP, begin * FL_LANES / FL_GROUP, tokens, t);
    }
}

void fl_gate_dealt(const fl_worker *w, const fl_matrix *w1, const fl_matrix *w3, const fl_inputs *in, size_t tokens,
                   const fl_hidden *out) {
    const size_t panels = fl_panels(w1);
    fl_deal deal = fl_deal_panels(w, panels);
    for (size_t begin, end; fl_next_panels(&deal, panels, &begin, &end);)
        fl_gate_panels(w, w1, w3, begin, end, in, tokens, out);
}

fl_inputs fl_hidden_layer(const fl_worker *w, const fl_layer *l, const fl_inputs *in) {
    fl_scratch *s = w->f->s;
    const int integer = fl_is_int8(l->w2.type);
    const fl_hidden hidden = {.f = !integer || w->f->out->inputs ? s->gate : NULL,
                              .q = integer ? s->hidden8 : NULL,
                              .stride = s->hidden};
    fl_gate_dealt(w, &l->w1, &l->w3, in, w->f->tokens, &hidden);
    fl_barrier(w->team, w->id);
    return (fl_inputs){.f = hidden.f, .f_stride = s->hidden, .q = hidden.q, .parts = fl_parts(w->f->m)};
}
