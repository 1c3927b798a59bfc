// Rounding weights, for pack.c and q4.c: a group of 32 columns at a time, column by column, each of a panel's 16 rows
// in a lane.
#ifndef FL_ROUND_H
#define FL_ROUND_H

#include <float.h>

#include "arguments.h"
#include "vectors.h"

// The values that codes stand for, the middle between each and the next, and whether 0 is one of them.
typedef struct table {
    float value[16], middle[15];
    int zero;
} table;

static void fill_table(table *t, const int8_t *values) {
    t->zero = 0;
    for (size_t c = 0; c < 16; c++) {
        t->value[c] = (float)values[c];
        t->zero |= values[c] == 0;
    }
    for (size_t c = 0; c < 15; c++) t->middle[c] = (t->value[c] + t->value[c + 1]) * 0.5f;
}

// x[i] becomes the value nearest to it, i < N. Several at once, since each select has to wait for the one before.
static FL_INLINE void nearest(const table *t, const size_t N, vf *x) {
    vf v[2];
    FL_UNROLL for (size_t i = 0; i < N; i++) v[i] = vf_set1(t->value[0]);
    FL_UNROLL for (size_t c = 0; c < 15; c++) {
        const vf middle = vf_set1(t->middle[c]), next = vf_set1(t->value[c + 1]);
        FL_UNROLL for (size_t i = 0; i < N; i++) v[i] = vf_select_gt(x[i], middle, next, v[i]);
    }
    FL_UNROLL for (size_t i = 0; i < N; i++) x[i] = v[i];
}

// 1 / scale, and 0 for 0.
static FL_INLINE vf inverse_or_zero(vf scale) {
    const vf zero = vf_set1(0.0f);
    return vf_select_gt(vf_abs(scale), zero, vf_div(vf_set1(1.0f), scale), zero);
}

// A coarser step moves all values to other places between two integers: the best of nine steps loses a sixth less than
// the finest.
static void q8_search(const float (*x)[FL_LANES], const float *largest, float *scale) {
    enum { STEPS = 9 };
    const vf top = vf_set1(127.0f), bottom = vf_set1(-127.0f);
    vf best = vf_set1(0.0f), least = vf_set1(FLT_MAX);
    for (size_t i = 0; i < STEPS; i++) {
        uint16_t half[FL_LANES];
        vf_store_f16(half, vf_mul(vf_load(largest), vf_set1((1.0f + 0.005f * (float)i) / 127.0f)));
        const vf s = vf_load_f16(half), inverse = inverse_or_zero(s);
        vf sum = vf_set1(0.0f);
        for (size_t k = 0; k < FL_GROUP; k++) {
            const vf w = vf_load(x[k]), q = vf_from_vi(vi_from_vf(vf_max(vf_min(vf_mul(w, inverse), top), bottom)));
            const vf error = vf_sub(w, vf_mul(q, s));
            sum = vf_add(vf_mul(error, error), sum); // not fused: the scalar kernels would call fmaf
        }
        if (i == 0) best = s;
        best = vf_select_gt(least, sum, s, best);
        least = vf_select_gt(least, sum, sum, least);
    }
    vf_store(scale, best);
}

// Rounds x with a scale, and fits the scale to the values that result: a / b is the scale of least weighted squared
// error for them, and a * a / b is by how much that error is below the error of all zeros. Keeps the scale if that gain
// is larger.
static FL_INLINE void try_scale(const table *t, const float (*x)[FL_LANES], const float (*weight)[FL_LANES], vf scale,
                                vf *best, vf *gain) {
    const vf inverse = vf_div(vf_set1(1.0f), scale), zero = vf_set1(0.0f);
    vf a = zero, b = zero;
    for (size_t k = 0; k < FL_GROUP; k += 2) {
        vf v[2];
        FL_UNROLL for (size_t i = 0; i < 2; i++) v[i] = vf_mul(vf_load(x[k + i]), inverse);
        nearest(t, 2, v);
        FL_UNROLL for (size_t i = 0; i < 2; i++) {
            const vf wv = vf_mul(vf_load(weight[k + i]), v[i]);
            a = vf_add(vf_mul(wv, vf_load(x[k + i])), a); // not fused: the scalar kernels would call fmaf
            b = vf_add(vf_mul(wv, v[i]), b);
        }
    }
    const vf fitted = vf_select_gt(b, zero, vf_div(a, b), zero), worth = vf_mul(a, fitted);
    *best = vf_select_gt(worth, *gain, fitted, *best);
    *gain = vf_select_gt(worth, *gain, worth, *gain);
}

// Tries scales that put a row's largest weight near the long end of the codebook or beyond its short end, and refines
// the best of them.
static void q4_search(const int8_t *values, const float (*x)[FL_LANES], const float (*weight)[FL_LANES],
                      const float *sign, float *scale) {
    enum { STEPS = 7, REFINED = 2 };
    table t;
    fill_table(&t, values);
    const vf largest = vf_load(sign);
    vf best = vf_div(largest, vf_set1(-127.0f)), gain = vf_set1(0.0f);
    for (size_t i = 0; i < 2 * STEPS; i++) {
        const float end = (i < STEPS ? -127.0f : 127.0f) * (0.9f + 0.06f * (float)(i % STEPS));
        try_scale(&t, x, weight, vf_div(largest, vf_set1(end)), &best, &gain);
    }
    for (size_t i = 0; i < REFINED; i++) try_scale(&t, x, weight, best, &best, &gain);
    vf_store(scale, best);
}

// The value of a weight w, 0 where w is and the table has it: of a pruned matrix zeros stay.
static FL_INLINE vf value_of(const table *t, const float *w, vf v) {
    nearest(t, 1, &v);
    return t->zero ? vf_select_gt(vf_abs(vf_load(w)), vf_set1(0.0f), v, vf_set1(0.0f)) : v;
}

static void q4_round(const fl_q4_group *g, float (*x)[FL_LANES], const float *u) {
    table t;
    fill_table(&t, g->table);
    const vf s = vf_load(g->scale), inverse = inverse_or_zero(s);
    for (size_t k = 0; k < g->count; k++) {
        const vf v = value_of(&t, g->w[k], vf_mul(vf_load(x[k]), inverse));
        const vf error = vf_sub(vf_load(g->w[k]), vf_mul(v, s));
        vf_store(g->value[k], v);
        vf_store(g->error[k], error);
        if (u)
            for (size_t j = k + 1; j < g->count; j++)
                vf_store(x[j], vf_fma(error, vf_set1(u[k * FL_GROUP + j]), vf_load(x[j])));
    }
}

// The step d if a d^2 - 2 b d, by which it changes the error, is below zero; otherwise 0.
static FL_INLINE vf if_less(vf d, vf a, vf b) {
    const vf zero = vf_set1(0.0f);
    return vf_select_gt(zero, vf_mul(d, vf_sub(vf_mul(d, a), vf_add(b, b))), d, zero);
}

static void q4_descend(const fl_q4_group *g, float (*slope)[FL_LANES], const float *h) {
    table t;
    fill_table(&t, g->table);
    const vf s = vf_load(g->scale), inverse = inverse_or_zero(s), zero = vf_set1(0.0f);
    for (size_t k = 0; k < g->count; k++) {
        // The error is a parabola in this value's error: own * d^2 - 2 along * d for a change d of value * scale.
        const vf own = vf_set1(h[k * FL_GROUP + k]), value = vf_load(g->value[k]), along = vf_load(slope[k]);
        const vf v = value_of(&t, g->w[k], vf_fma(vf_div(along, own), inverse, value));
        const vf moved = if_less(vf_mul(vf_sub(v, value), s), own, along);
        vf_store(g->value[k], vf_select_gt(vf_abs(moved), zero, v, value));
        for (size_t j = 0; j < g->count; j++)
            vf_store(slope[j], vf_fma(moved, vf_set1(-h[k * FL_GROUP + j]), vf_load(slope[j])));
    }
    // And in the scale: a = v h v^T, b = v h e^T, so that the best step is b / a, here rounded to f16.
    vf a = zero, b = zero;
    for (size_t k = 0; k < g->count; k++) {
        vf hv = zero;
        for (size_t j = 0; j < g->count; j++)
            hv = vf_fma(vf_load(g->value[j]), vf_set1(h[k * FL_GROUP + j]), hv);
        a = vf_fma(vf_load(g->value[k]), hv, a);
        b = vf_fma(vf_load(g->value[k]), vf_load(slope[k]), b);
    }
    const vf most = vf_set1(65504.0f), least = vf_set1(-65504.0f);
    const vf fitted = vf_add(s, vf_select_gt(a, zero, vf_div(b, a), zero));
    uint16_t half[FL_LANES];
    vf_store_f16(half, vf_max(vf_min(fitted, most), least));
    const vf rounded = vf_load_f16(half), moved = if_less(vf_sub(rounded, s), a, b);
    const vf scale = vf_select_gt(vf_abs(moved), zero, rounded, s);
    vf_store(g->scale, scale);
    for (size_t k = 0; k < g->count; k++)
        vf_store(g->error[k], vf_sub(vf_load(g->w[k]), vf_mul(vf_load(g->value[k]), scale)));
}

#endif
