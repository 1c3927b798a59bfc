// Every kernel, written once over 16 lanes and compiled once per instruction set: the build defines FL_LANES_H as one
// of lanes_*.h. All of them give the same bits, because each sum has one order, whatever the width of a register:
// in a matrix product a lane is an output and adds up k ascending with fused multiply-adds; a sum over a vector adds
// element i into lane i mod 16, ascending, and then the lanes by one fixed tree.
#include "kernels.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "../compiler.h"
#include FL_LANES_H

#include "attend.h"
#include "matmul.h"
#include "round.h"
#include "vectors.h"

// ---- vectors -------------------------------------------------------------------------------------------------------

// The first `count` floats at p, zeros in the other lanes; and back.
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

// 1 / sqrt(mean + eps), a mean of squares. Squares that overflow would make all of a row zero: NaN instead.
static inline float inverse_root(float mean, float eps) {
    return mean <= FLT_MAX ? 1.0f / sqrtf(mean + eps) : NAN;
}

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

// ---- activations ---------------------------------------------------------------------------------------------------

// What they make of numbers; ACT, below, makes NaN of what is not finite.

// x * sigmoid(k x)
static inline vf swish(vf x, float k) {
    const vf kx = vf_mul(x, vf_set1(k));
    const vf y = vf_div(x, vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_set1(0.0f), kx))));
    return vf_select_gt(kx, vf_set1(-88.0f), y, vf_set1(0.0f)); // vf_exp goes no further
}

// erf within 1.5e-7: x times a polynomial in x^2 up to 1, then 1 - exp(-x times a polynomial in x); Chebyshev fits.
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

static inline vf vf_silu(vf x) { return swish(x, 1.0f); }
static inline vf vf_quick_gelu(vf x) { return swish(x, 1.702f); }
static inline vf vf_relu(vf x) { return vf_max(x, vf_set1(0.0f)); }
static inline vf vf_gelu_erf(vf x) {
    const vf half = vf_set1(0.5f);
    return vf_mul(vf_mul(x, half), vf_add(vf_set1(1.0f), vf_erf(vf_mul(x, vf_set1(0.707106781f)))));
}
// x / 2 (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)
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

static void softcap(float *x, size_t n, float cap) {
    for (size_t i = 0; i < n; i += FL_LANES) vf_store(x + i, capped(vf_load(x + i), cap));
}

static void to_f16(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + FL_LANES <= n; i += FL_LANES) vf_store_f16(out + i, vf_load(x + i));
    for (; i < n; i++) out[i] = fl_f16_from_f32(x[i]);
}

// ---- sampling ------------------------------------------------------------------------------------------------------

// The largest, stretch by stretch: where it is then needs a search in one of them only.
static float max_index(const float *x, size_t n, size_t *index, int *finite) {
    enum { STRETCH = 1024 };
    float max = -INFINITY, broken = 0;
    vf c = vf_set1(0.0f), d = c; // 0 times each number, added up: NaN once one is not finite
    size_t best = 0;
    for (size_t start = 0; start < n; start += STRETCH) {
        const size_t end = start + STRETCH < n ? start + STRETCH : n;
        vf a = vf_set1(-INFINITY), b = a;
        size_t i = start;
        for (; i + 2 * FL_LANES <= end; i += 2 * FL_LANES) {
            a = vf_max(a, vf_load(x + i));
            b = vf_max(b, vf_load(x + i + FL_LANES));
            c = vf_fma(vf_load(x + i), vf_set1(0.0f), c);
            d = vf_fma(vf_load(x + i + FL_LANES), vf_set1(0.0f), d);
        }
        float largest = lanes_max(vf_max(a, b));
        for (; i < end; i++) {
            largest = x[i] > largest ? x[i] : largest;
            broken += x[i] * 0.0f;
        }
        if (largest > max) {
            max = largest;
            best = start;
        }
    }
    for (; best + FL_LANES <= n; best += FL_LANES) { // up to the vector that has it
        const vf a = vf_load(x + best);
        if (lanes_max(a) >= max) break;
    }
    while (best < n && x[best] != max) best++;
    *index = best < n ? best : 0; // nothing but NaN and -infinity
    *finite = broken + lanes_sum(vf_add(c, d)) == 0;
    return max;
}

static void softmax(float *out, float *sums, const float *x, size_t n, float scale, float max) {
    for (size_t start = 0; start < n; start += FL_SUM_RUN) {
        const size_t end = start + FL_SUM_RUN < n ? start + FL_SUM_RUN : n;
        vf total = vf_set1(0.0f);
        for (size_t i = start; i < end; i += FL_LANES) {
            const size_t count = end - i < FL_LANES ? end - i : FL_LANES;
            vf p = vf_exp(vf_sub(vf_mul(vf_load(x + i), vf_set1(scale)), vf_set1(max)));
            if (count < FL_LANES) p = lanes_first(p, count, 0.0f);
            vf_store(out + i, p);
            total = vf_add(total, p);
        }
        *sums++ = lanes_sum(total);
    }
}

// ---- the machine ---------------------------------------------------------------------------------------------------

#ifndef FL_AMX
static uint64_t peak(size_t rounds, int32_t *sum) {
    // Several turns in one, since a compiler that copies sums at the end of a loop's body may take longer than they do.
    enum { SUMS = FL_TILE * FL_TILE_PANELS, LOOPS = 64, TURNS = 4 };
    // Each product is of another number: those that are equal are computed once by compilers, where a sum is not part of
    // the instruction.
    int32_t a[LOOPS * SUMS], tile[FL_LANES];
    for (size_t i = 0; i < LOOPS * SUMS; i++) a[i] = (int32_t)(rounds & i & 1);
    memcpy(tile, a, sizeof tile);
    const vb w = vb_load((const int8_t *)tile);
    vi s[SUMS];
    FL_UNROLL for (size_t i = 0; i < SUMS; i++) s[i] = vi_set1(0);
    for (size_t r = 0; r < rounds; r++)
        for (size_t loop = 0; loop < LOOPS; loop += TURNS)
            FL_UNROLL for (size_t turn = 0; turn < TURNS; turn++)
                FL_UNROLL for (size_t i = 0; i < SUMS; i++) s[i] = vi_dot(s[i], w, a[(loop + turn) * SUMS + i]);
    FL_UNROLL for (size_t i = 0; i < SUMS; i++) { // all lanes: one that nobody reads need not be computed
        memcpy(tile, &s[i], sizeof tile);
        for (size_t lane = 0; lane < FL_LANES; lane++) *sum ^= tile[lane];
    }
    return (uint64_t)rounds * LOOPS * SUMS * FL_LANES * 4;
}
#endif

static float above(const float *x, size_t n, float least) {
    const vf bound = vf_set1(least), zero = vf_set1(0.0f);
    vf total = zero;
    for (size_t i = 0; i < n; i += FL_LANES) {
        const vf p = vf_load(x + i);
        total = vf_add(total, vf_select_gt(p, bound, p, zero));
    }
    return lanes_sum(total);
}

// x = m 2^e, m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m - 1) / (m + 1)). Not libm's, which differs from system to
// system. In doubles, of which there are no lanes: compilers make vectors of the loops over 16.
static void logarithm(double *out, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += FL_LANES) {
        uint32_t bits[FL_LANES];
        int32_t e[FL_LANES];
        float m[FL_LANES];
        memcpy(bits, x + i, sizeof bits);
        for (size_t j = 0; j < FL_LANES; j++) {
            const uint32_t exponent = (bits[j] + (0x3F800000u - 0x3F3504F4u)) >> 23; // the latter: sqrt(1/2), rounded up
            e[j] = (int32_t)exponent - 127;
            bits[j] -= (exponent - 127) << 23;
        }
        memcpy(m, bits, sizeof m);
        for (size_t j = 0; j < FL_LANES; j++) {
            const double s = ((double)m[j] - 1) / ((double)m[j] + 1), z = s * s, z2 = z * z, z4 = z2 * z2;
            const double low = 1.0 + 1.0 / 3 * z + (1.0 / 5 + 1.0 / 7 * z) * z2;
            const double middle = 1.0 / 9 + 1.0 / 11 * z + (1.0 / 13 + 1.0 / 15 * z) * z2;
            const double high = 1.0 / 17 + 1.0 / 19 * z + (1.0 / 21 + 1.0 / 23 * z) * z2;
            out[i + j] = 2 * s * (low + z4 * (middle + z4 * high)) + (double)e[j] * 0.69314718055994530942;
        }
    }
}

// ---- the table -----------------------------------------------------------------------------------------------------

#define NAME2(isa) fl_kernels_##isa
#define NAME(isa) NAME2(isa)
#define TEXT2(isa) #isa
#define TEXT(isa) TEXT2(isa)

extern const fl_kernels NAME(FL_ISA);
const fl_kernels NAME(FL_ISA) = {
    .name = TEXT(FL_ISA),
    .matmul = {[FL_F32] = matmul_f32, [FL_F16] = matmul_f16, [FL_BF16] = matmul_bf16, [FL_Q8] = matmul_q8,
               [FL_Q8_F32] = matmul_q8_f32, [FL_Q4] = matmul_q4},
    .quantize = quantize,
    .norm = {[FL_RMS_NORM] = rms_norm, [FL_LAYER_NORM] = layer_norm},
    .act = {[FL_SILU] = act_silu, [FL_GELU_TANH] = act_gelu_tanh, [FL_GELU_ERF] = act_gelu_erf,
            [FL_QUICK_GELU] = act_quick_gelu, [FL_RELU] = act_relu},
    .softcap = softcap,
    .attend = {[FL_F32] = attend_f32, [FL_F16] = attend_f16, [FL_Q8] = attend_q8},
    .merge = merge,
    .probabilities = {[FL_F32] = probabilities_f32, [FL_F16] = probabilities_f16, [FL_Q8] = probabilities_q8},
    .q4_search = q4_search,
    .q4_round = q4_round,
    .q4_descend = q4_descend,
    .to_f16 = to_f16,
    .max = max_index,
    .softmax = softmax,
    .above = above,
    .log = logarithm,
    .peak = peak,
};
