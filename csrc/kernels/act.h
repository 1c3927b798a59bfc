// Activation functions, and the soft cap of scores and logits.
#ifndef FL_ACT_H
#define FL_ACT_H

#include "vectors.h"

// x * sigmoid(k x)
static inline vf swish(vf x, float k) {
    const vf kx = vf_mul(x, vf_set1(k));
    const vf y = vf_div(x, vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_set1(0.0f), kx))));
    return vf_select_gt(kx, vf_set1(-88.0f), y, vf_set1(0.0f)); // vf_exp ends at 88; the result is below 1e-36
}

// erf within 1.5e-7. Up to |x| = 1, x times a polynomial in x^2; beyond, 1 - exp(-x times a polynomial in x).
// Coefficients are Chebyshev fits.
static inline vf vf_erf(vf x) {
    static const float near[] = {7.88249711e-05f, -0.000801885499f, 0.00518931194f, -0.0268543288f,
                                 0.112835975f,    -0.376126269f,    1.12837917f};
    static const float far[] = {-1.09303623e-06f, 3.53037699e-05f, -0.000506273673f, 0.00433651029f,
                                -0.0252230633f,   0.10797904f,     0.634050843f,     1.12893431f};
    const vf zero = vf_set1(0.0f), one = vf_set1(1.0f), s = vf_mul(x, x), t = vf_min(vf_abs(x), vf_set1(4.0f));
    vf p = vf_set1(near[0]), q = vf_set1(far[0]);
    for (size_t i = 1; i < sizeof near / sizeof *near; i++) p = vf_fma(p, s, vf_set1(near[i]));
    for (size_t i = 1; i < sizeof far / sizeof *far; i++) q = vf_fma(q, t, vf_set1(far[i]));
    const vf tail = vf_sub(one, vf_exp(vf_sub(zero, vf_mul(t, q))));
    return vf_select_gt(vf_abs(x), one, vf_select_gt(zero, x, vf_sub(zero, tail), tail), vf_mul(x, p));
}

// The functions by their names in fl_act. ACT makes NaN of what is not finite, which they may hide.
static inline vf vf_silu(vf x) { return swish(x, 1.0f); }
static inline vf vf_quick_gelu(vf x) { return swish(x, 1.702f); }
static inline vf vf_relu(vf x) { return vf_max(x, vf_set1(0.0f)); }
static inline vf vf_gelu_erf(vf x) {
    const vf half = vf_set1(0.5f);
    return vf_mul(vf_mul(x, half), vf_add(vf_set1(1.0f), vf_erf(vf_mul(x, vf_set1(0.707106781f)))));
}
// x / 2 (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel, 2016)
static inline vf vf_gelu_tanh(vf x) {
    const vf cube = vf_mul(vf_mul(x, x), x);
    const vf u = vf_mul(vf_set1(0.797884561f), vf_fma(vf_set1(0.044715f), cube, x));
    return vf_mul(vf_mul(x, vf_set1(0.5f)), vf_add(vf_set1(1.0f), vf_tanh(u)));
}

#define ACT(name)                                                             \
    static void act_##name(float *x, const float *up, size_t n) {             \
        for (size_t i = 0; i < n; i += FL_LANES) {                            \
            const vf a = vf_load(x + i);                                      \
            const vf b = vf_sub(vf_##name(a), nan_unless_finite(a));          \
            vf_store(x + i, up ? vf_mul(b, vf_load(up + i)) : b);             \
        }                                                                     \
    }
ACT(silu)
ACT(gelu_tanh)
ACT(gelu_erf)
ACT(quick_gelu)
ACT(relu)
#undef ACT

static void softcap(float *x, size_t n, float cap) {
    for (size_t i = 0; i < n; i += FL_LANES) vf_store(x + i, capped(vf_load(x + i), cap));
}

#endif
