// Attention of rows of queries to one block of keys and values.
#ifndef FL_ATTEND_H
#define FL_ATTEND_H

#include "vectors.h"

// c[r][j] (+)= sum over k < n of a[r][k] * b[k][j], for R rows and V vectors of 16 columns.
static FL_INLINE void mul_tile(const size_t R, const size_t V, const fl_type type, size_t n, const float *a,
                               size_t a_stride, const void *b, size_t b_offset, size_t b_stride, float *c,
                               size_t c_stride, const int add) {
    vf sum[4][4];
    FL_UNROLL for (size_t r = 0; r < R; r++)
        FL_UNROLL for (size_t v = 0; v < V; v++)
            sum[r][v] = add ? vf_load(c + r * c_stride + v * FL_LANES) : vf_set1(0.0f);
    for (size_t k = 0; k < n; k++) {
        vf w[4];
        FL_UNROLL for (size_t v = 0; v < V; v++) w[v] = load_float(type, b, b_offset + k * b_stride + v * FL_LANES);
        FL_UNROLL for (size_t r = 0; r < R; r++) {
            const vf x = vf_set1(a[r * a_stride + k]);
            FL_UNROLL for (size_t v = 0; v < V; v++) sum[r][v] = vf_fma(w[v], x, sum[r][v]);
        }
    }
    FL_UNROLL for (size_t r = 0; r < R; r++)
        FL_UNROLL for (size_t v = 0; v < V; v++) vf_store(c + r * c_stride + v * FL_LANES, sum[r][v]);
}

#ifndef FL_MUL_VECTORS
#define FL_MUL_VECTORS 1 // of four rows at once; a single row always takes four
#endif

static FL_INLINE void mul(const fl_type type, size_t rows, size_t n, size_t vectors, const float *a, size_t a_stride,
                          const void *b, size_t b_stride, float *c, size_t c_stride, const int add) {
    size_t r = 0;
#define MUL(R, V) \
    mul_tile(R, V, type, n, a + r * a_stride, a_stride, b, v * FL_LANES, b_stride, c + r * c_stride + v * FL_LANES, c_stride, add)
    for (; r + 4 <= rows; r += 4) {
        size_t v = 0;
        for (; v + FL_MUL_VECTORS <= vectors; v += FL_MUL_VECTORS) MUL(4, FL_MUL_VECTORS);
        for (; v < vectors; v++) MUL(4, 1);
    }
    for (; r < rows; r++) {
        size_t v = 0;
        for (; v + 4 <= vectors; v += 4) MUL(1, 4);
        for (; v < vectors; v++) MUL(1, 1);
    }
#undef MUL
}

// Products with the keys of the block's first positions, capped and masked; how many vectors of them matter.
static FL_INLINE size_t scores(const fl_type type, const fl_attend *a) {
    size_t seen = 0;
    for (size_t r = 0; r < a->rows; r++) seen = a->limit[r] > seen ? a->limit[r] : seen;
    seen = seen < FL_BLOCK ? seen : FL_BLOCK;
    const size_t vectors = (seen + FL_LANES - 1) / FL_LANES;
    mul(type, a->rows, a->head_dim, vectors, a->q, a->stride, a->keys, FL_BLOCK, a->scores, FL_BLOCK, 0);
    if (a->softcap > 0 || a->mask)
        for (size_t r = 0; r < a->rows; r++)
            for (size_t v = 0; v < vectors; v++) {
                float *at = a->scores + r * FL_BLOCK + v * FL_LANES;
                vf s = vf_load(at);
                if (a->softcap > 0) s = capped(s, a->softcap);
                vf_store(at, a->mask ? vf_add(s, vf_load(a->mask + v * FL_LANES)) : s);
            }
    return vectors;
}

// Vector v of a row's scores, -infinity where the row does not look.
static FL_INLINE vf seen_scores(const fl_attend *a, size_t r, size_t v) {
    const size_t first = v * FL_LANES, from = a->from[r], limit = a->limit[r];
    const size_t skip = from > first ? from - first : 0, count = limit > first ? limit - first : 0;
    vf s = lanes_first(vf_load(a->scores + r * FL_BLOCK + first), count < FL_LANES ? count : FL_LANES, -INFINITY);
    if (skip > 0)
        s = vf_select_gt(vf_set1((float)(skip < FL_LANES ? skip : FL_LANES)), lanes_index(), vf_set1(-INFINITY), s);
    return s;
}

static FL_INLINE int sees_none(const fl_attend *a, size_t r) {
    return a->limit[r] <= a->from[r] || a->from[r] >= FL_BLOCK;
}

static FL_INLINE void clear_scores(const fl_attend *a, size_t r, size_t vectors) {
    for (size_t v = 0; v < vectors; v++) vf_store(a->scores + r * FL_BLOCK + v * FL_LANES, vf_set1(0.0f));
}

// Scores of one row to probabilities relative to its running maximum; the row's sum and output are brought to it.
static FL_INLINE void softmax_row(const fl_attend *a, size_t r, size_t vectors) {
    if (sees_none(a, r)) {
        clear_scores(a, r, vectors);
        return;
    }
    float *row = a->scores + r * FL_BLOCK, *out = a->out + r * a->stride;
    vf largest = vf_set1(a->max[r]);
    for (size_t v = 0; v < vectors; v++) {
        const vf s = seen_scores(a, r, v);
        vf_store(row + v * FL_LANES, s);
        largest = vf_max(s, largest);
    }
    const float max = lanes_max(largest);
    vf total = vf_set1(0.0f);
    for (size_t v = 0; v < vectors; v++) {
        const vf p = vf_exp(vf_sub(vf_load(row + v * FL_LANES), vf_set1(max)));
        vf_store(row + v * FL_LANES, p);
        total = vf_add(total, p);
    }
    // Lane 0 of the vector exp: the same bits as any other lane would give.
    float scale[16];
    vf_store(scale, vf_exp(vf_sub(vf_set1(a->max[r]), vf_set1(max))));
    if (scale[0] != 1.0f)
        for (size_t i = 0; i < a->stride; i += FL_LANES)
            vf_store(out + i, vf_mul(vf_load(out + i), vf_set1(scale[0])));
    a->sum[r] = a->sum[r] * scale[0] + lanes_sum(total);
    a->max[r] = max;
}

static FL_INLINE void attend(const fl_type type, const fl_attend *a) {
    size_t seen = 0;
    for (size_t r = 0; r < a->rows; r++)
        if (!sees_none(a, r) && a->limit[r] > seen) seen = a->limit[r];
    if (seen == 0) return;
    seen = seen < FL_BLOCK ? seen : FL_BLOCK;
    const size_t vectors = scores(type, a);
    for (size_t r = 0; r < a->rows; r++) softmax_row(a, r, vectors);
    // Positions past a row's own limit weigh 0 and leave its sum as it is.
    mul(type, a->rows, seen, a->stride / FL_LANES, a->scores, FL_BLOCK, a->values, a->stride, a->out, a->stride, 1);
}

static FL_INLINE void attention(const fl_type type, const fl_attend *a) {
    const size_t vectors = scores(type, a);
    for (size_t r = 0; r < a->rows; r++) {
        for (size_t v = 0; v < vectors; v++) {
            const vf p = vf_exp(vf_sub(seen_scores(a, r, v), vf_set1(a->max[r])));
            vf_store(a->scores + r * FL_BLOCK + v * FL_LANES, vf_div(p, vf_set1(a->sum[r])));
        }
        for (size_t v = vectors; v < FL_BLOCK / FL_LANES; v++)
            vf_store(a->scores + r * FL_BLOCK + v * FL_LANES, vf_set1(0.0f));
    }
}

static void attend_f32(const fl_attend *a) { attend(FL_F32, a); }
static void attend_f16(const fl_attend *a) { attend(FL_F16, a); }
static void attention_f32(const fl_attend *a) { attention(FL_F32, a); }
static void attention_f16(const fl_attend *a) { attention(FL_F16, a); }

#endif
