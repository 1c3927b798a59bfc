// Norms of a row: root mean square (Zhang and Sennrich, 2019) and layer normalization (Ba et al., 2016).
#ifndef FL_NORM_H
#define FL_NORM_H

#include <float.h>
#include <math.h>

#include "vectors.h"

// Loads the first `count` floats at p, and zeros in the other lanes; stores the first `count` lanes.
static inline vf load_first(const float *p, size_t count) {
    float t[FL_LANES] = {0};
    memcpy(t, p, count * sizeof(float));
    return vf_load(t);
}

static inline void store_first(float *p, vf a, size_t count) {
    float t[FL_LANES];
    vf_store(t, a);
    memcpy(p, t, count * sizeof(float));
}

// (x - mean) * scale * weight + bias
static inline vf affine(vf x, vf mean, vf scale, vf weight, vf bias) {
    return vf_add(vf_mul(weight, vf_mul(scale, vf_sub(x, mean))), bias);
}

static void write_norm(float *out, const float *x, const float *weight, const float *bias, size_t n, vf mean,
                       vf scale) {
    const vf zero = vf_set1(0.0f);
    size_t i = 0;
    for (; i + FL_LANES <= n; i += FL_LANES)
        vf_store(out + i, affine(vf_load(x + i), mean, scale, vf_load(weight + i), bias ? vf_load(bias + i) : zero));
    if (i < n)
        store_first(out + i,
                    affine(load_first(x + i, n - i), mean, scale, load_first(weight + i, n - i),
                           bias ? load_first(bias + i, n - i) : zero),
                    n - i);
}

// 1 / sqrt(mean + eps) of a mean of squares. Where the squares overflow it is NaN: 1 / infinity would make the row
// zero.
static inline float inverse_root(float mean, float eps) {
    return mean <= FLT_MAX ? 1.0f / sqrtf(mean + eps) : NAN;
}

// The sums of rms_norm and layer_norm: element i in lane i mod 16, then the lanes.
static void rms_norm(float *out, const float *x, const float *weight, const float *bias, size_t n, float eps) {
    vf squares = vf_set1(0.0f);
    size_t i = 0;
    for (; i + FL_LANES <= n; i += FL_LANES) {
        const vf a = vf_load(x + i);
        squares = vf_fma(a, a, squares);
    }
    if (i < n) {
        const vf a = load_first(x + i, n - i);
        squares = vf_fma(a, a, squares);
    }
    const float scale = inverse_root(lanes_sum(squares) / (float)n, eps);
    write_norm(out, x, weight, bias, n, vf_set1(0.0f), vf_set1(scale));
}

static void layer_norm(float *out, const float *x, const float *weight, const float *bias, size_t n, float eps) {
    vf total = vf_set1(0.0f), squares = vf_set1(0.0f);
    size_t i = 0;
    for (; i + FL_LANES <= n; i += FL_LANES) total = vf_add(total, vf_load(x + i));
    if (i < n) total = vf_add(total, load_first(x + i, n - i));
    const vf mean = vf_set1(lanes_sum(total) / (float)n);
    for (i = 0; i + FL_LANES <= n; i += FL_LANES) {
        const vf a = vf_sub(vf_load(x + i), mean);
        squares = vf_fma(a, a, squares);
    }
    if (i < n) {
        const vf a = lanes_first(vf_sub(load_first(x + i, n - i), mean), n - i, 0.0f);
        squares = vf_fma(a, a, squares);
    }
    const float scale = inverse_root(lanes_sum(squares) / (float)n, eps);
    write_norm(out, x, weight, bias, n, mean, vf_set1(scale));
}

#endif
