// What several kernels compute with: choosing lanes, exp, tanh, and loads of any type of float.
#ifndef FL_VECTORS_H
#define FL_VECTORS_H

#include "lanes.h"

// 0, 1, .. 15
static inline vf lanes_index(void) {
    static const float index[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return vf_load(index);
}

// The first `count` lanes of a, `fill` in the others.
static inline vf lanes_first(vf a, size_t count, float fill) {
    return vf_select_gt(vf_set1((float)count), lanes_index(), a, vf_set1(fill));
}

// 0 for finite x, otherwise NaN. y minus this is y, also where y is -0, or NaN.
static inline vf nan_unless_finite(vf x) { return vf_sub(x, x); }

// e^x within 1.5 ulp for x <= 88, 0 from -87.3 down, NaN of NaN. x = n ln2 + r with |r| <= ln2 / 2, and e^r by the
// polynomial of Cephes (Moshier), expf. The order of operands matters: max and min give their second one if either is
// NaN, and select its last one.
static inline vf vf_exp(vf x) {
    const vf low = vf_set1(-0x1.5d3334p+6f), above = vf_set1(-0x1.5d3332p+6f); // -87.3, and the next number above it
    const vf clamped = vf_max(low, vf_min(vf_set1(88.0f), x));
    const vi n = vi_from_vf(vf_mul(clamped, vf_set1(1.44269504f)));
    const vf nf = vf_from_vi(n);
    vf r = vf_fma(nf, vf_set1(-0.693359375f), clamped);
    r = vf_fma(nf, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_fma(p, vf_mul(r, r), vf_add(r, vf_set1(1.0f)));
    return vf_select_gt(above, x, vf_set1(0.0f), vf_mul(p, vf_exp2i(n)));
}

// (1 - e^-2|x|) / (1 + e^-2|x|), with the sign of x.
static inline vf vf_tanh(vf x) {
    const vf one = vf_set1(1.0f), a = vf_min(vf_abs(x), vf_set1(20.0f)); // 1 to the last bit from 9.1 on
    const vf e = vf_exp(vf_mul(a, vf_set1(-2.0f)));
    const vf y = vf_div(vf_sub(one, e), vf_add(one, e));
    return vf_select_gt(vf_set1(0.0f), x, vf_sub(vf_set1(0.0f), y), y);
}

// cap * tanh(x / cap); NaN where x is not finite.
static inline vf capped(vf x, float cap) {
    return vf_sub(vf_mul(vf_set1(cap), vf_tanh(vf_div(x, vf_set1(cap)))), nan_unless_finite(x));
}

// 16 floats from element i of an array of a type on.
static FL_INLINE vf load_float(fl_type type, const void *p, size_t i) {
    if (type == FL_F32) return vf_load((const float *)p + i);
    if (type == FL_F16) return vf_load_f16((const uint16_t *)p + i);
    return vf_load_bf16((const uint16_t *)p + i);
}

#endif
