// Every kernel, written once over 16 lanes and compiled once per instruction set: the build defines FL_LANES_H as one
// of lanes_*.h. All of them give the same bits, because each sum has one order, whatever the width of a register:
// in a matrix product a lane is an output and adds up k ascending with fused multiply-adds; a sum over a vector adds
// element i into lane i mod 16, ascending, and then the lanes by one fixed tree.
#include "kernels.h"

#include <math.h>
#include <string.h>

#include "../compiler.h"
#include FL_LANES_H

#ifndef FL_TILE_PANELS
#define FL_TILE_PANELS 1
#endif

// ---- lanes ---------------------------------------------------------------------------------------------------------

static inline float lanes_sum(vf a) {
    float t[16];
    vf_store(t, a);
    for (size_t s = 8; s > 0; s /= 2)
        for (size_t j = 0; j < s; j++) t[j] += t[j + s];
    return t[0];
}

static inline float lanes_max(vf a) {
    float t[16];
    vf_store(t, a);
    for (size_t s = 8; s > 0; s /= 2)
        for (size_t j = 0; j < s; j++) t[j] = t[j] > t[j + s] ? t[j] : t[j + s];
    return t[0];
}

static inline vf lanes_index(void) {
    static const float index[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return vf_load(index);
}

// The first `count` lanes of a, `fill` in the others.
static inline vf lanes_first(vf a, size_t count, float fill) {
    return vf_select_gt(vf_set1((float)count), lanes_index(), a, vf_set1(fill));
}

// e^x within 1.5 ulp, for x <= 88; 0 below -87.3. x = n ln2 + r, |r| <= ln2 / 2, e^r by Cephes' polynomial.
static inline vf vf_exp(vf x) {
    const vf low = vf_set1(-87.3f);
    const vf clamped = vf_max(vf_min(x, vf_set1(88.0f)), low);
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
    return vf_select_gt(x, low, vf_mul(p, vf_exp2i(n)), vf_set1(0.0f));
}

// ---- matrix products -----------------------------------------------------------------------------------------------
//
// A tile is P panels x T tokens, its sums in registers. P, T and type are constants where a tile is called, so that
// each combination is compiled on its own; indices into the arrays of sums vanish.

static FL_INLINE void store_tile(vf sum, float *out, int add) {
    vf_store(out, add ? vf_add(vf_load(out), sum) : sum);
}

static FL_INLINE vf load_float(fl_type type, const void *p, size_t i) {
    if (type == FL_F32) return vf_load((const float *)p + i);
    if (type == FL_F16) return vf_load_f16((const uint16_t *)p + i);
    return vf_load_bf16((const uint16_t *)p + i);
}

static FL_INLINE void tile_float(const size_t P, const size_t T, const fl_type type, const uint8_t *w,
                                 size_t panel_bytes, size_t n, const fl_inputs *in, size_t t0, float *out,
                                 size_t out_stride, int add) {
    const float *x = in->f + t0 * in->f_stride;
    const size_t xs = in->f_stride;
    vf sum[4][8];
    FL_UNROLL for (size_t p = 0; p < P; p++)
        FL_UNROLL for (size_t t = 0; t < T; t++) sum[p][t] = vf_set1(0.0f);
    for (size_t k = 0; k < n; k++) {
        vf a[4];
        FL_UNROLL for (size_t p = 0; p < P; p++) a[p] = load_float(type, w + p * panel_bytes, k * FL_LANES);
        FL_UNROLL for (size_t t = 0; t < T; t++) {
            const vf b = vf_set1(x[t * xs + k]);
            FL_UNROLL for (size_t p = 0; p < P; p++) sum[p][t] = vf_fma(a[p], b, sum[p][t]);
        }
    }
    FL_UNROLL for (size_t p = 0; p < P; p++)
        FL_UNROLL for (size_t t = 0; t < T; t++)
            store_tile(sum[p][t], out + t * out_stride + p * FL_LANES, add);
}

static FL_INLINE void tile_int8(const size_t P, const size_t T, const fl_type type, const uint8_t *w,
                                size_t panel_bytes, size_t n, const fl_inputs *in, size_t t0, float *out,
                                size_t out_stride, int add) {
    enum { GROUP_BYTES = FL_LANES * FL_GROUP, AHEAD = 4096 };
    const size_t groups = (n + FL_GROUP - 1) / FL_GROUP, xs = in->q_stride;
    const fl_q8_group *x = in->q + t0 * xs;
    const uint8_t *tiles = w + fl_scales_bytes(type, groups);
    vf sum[4][8];
    FL_UNROLL for (size_t p = 0; p < P; p++)
        FL_UNROLL for (size_t t = 0; t < T; t++) sum[p][t] = vf_set1(0.0f);
    for (size_t g = 0; g < groups; g++, x++, tiles += GROUP_BYTES) {
        vi dot[4][8];
        FL_UNROLL for (size_t t = 0; t < T; t++)
            FL_UNROLL for (size_t p = 0; p < P; p++) dot[p][t] = vi_dot_start(x[t * xs].bias);
        FL_UNROLL for (size_t k = 0; k < FL_GROUP; k += 4) {
            vb a[4];
            FL_UNROLL for (size_t p = 0; p < P; p++) {
                const uint8_t *tile = tiles + p * panel_bytes + k * FL_LANES;
                if (T == 1) FL_PREFETCH(tile + AHEAD); // one token: the weights stream from memory
                a[p] = vb_load((const int8_t *)tile);
            }
            FL_UNROLL for (size_t t = 0; t < T; t++) {
                int32_t b;
                memcpy(&b, x[t * xs].q + k, 4);
                FL_UNROLL for (size_t p = 0; p < P; p++) dot[p][t] = vi_dot(dot[p][t], a[p], b);
            }
        }
        vf scale[4];
        FL_UNROLL for (size_t p = 0; p < P; p++)
            scale[p] = load_float(type == FL_Q8 ? FL_F16 : FL_F32, w + p * panel_bytes, g * FL_LANES);
        FL_UNROLL for (size_t t = 0; t < T; t++) {
            const vf xscale = vf_set1(x[t * xs].scale);
            FL_UNROLL for (size_t p = 0; p < P; p++)
                sum[p][t] = vf_fma(vf_from_vi(dot[p][t]), vf_mul(scale[p], xscale), sum[p][t]);
        }
    }
    FL_UNROLL for (size_t p = 0; p < P; p++)
        FL_UNROLL for (size_t t = 0; t < T; t++)
            store_tile(sum[p][t], out + t * out_stride + p * FL_LANES, add);
}

static FL_INLINE void tile(const size_t P, const size_t T, const fl_type type, const uint8_t *w, size_t panel_bytes,
                           size_t n, const fl_inputs *in, size_t t0, float *out, size_t out_stride, int add) {
    if (type == FL_Q8 || type == FL_Q8_F32)
        tile_int8(P, T, type, w, panel_bytes, n, in, t0, out, out_stride, add);
    else
        tile_float(P, T, type, w, panel_bytes, n, in, t0, out, out_stride, add);
}

static FL_INLINE void matmul(const fl_type type, const fl_matrix *m, size_t panel0, size_t panel1, const fl_inputs *in,
                             size_t tokens, float *out, size_t out_stride, int add) {
    // One token: several panels give a float product enough independent sums. Int8 has them inside a group, and one
    // panel at a time is one stream for the prefetch.
    enum { FLOAT_PANELS = 4, MANY = FL_TILE_PANELS };
    const int is_float = type != FL_Q8 && type != FL_Q8_F32;
    const size_t bytes = fl_panel_bytes(type, m->n), n = m->n;
    const uint8_t *data = m->data;
    size_t p = panel0;
#define TILE(P, T, t) \
    tile(P, T, type, data + p * bytes, bytes, n, in, t, out + (t) * out_stride + p * FL_LANES, out_stride, add)
    if (tokens == 1) {
        if (is_float)
            for (; p + FLOAT_PANELS <= panel1; p += FLOAT_PANELS) TILE(FLOAT_PANELS, 1, 0);
        for (; p < panel1; p++) TILE(1, 1, 0);
        return;
    }
#define TOKENS(P)                                                   \
    do {                                                            \
        size_t t = 0;                                               \
        for (; t + FL_TILE <= tokens; t += FL_TILE) TILE(P, FL_TILE, t); \
        if (FL_TILE > 4 && t + 4 <= tokens) {                       \
            TILE(P, 4, t);                                          \
            t += 4;                                                 \
        }                                                           \
        if (t + 2 <= tokens) {                                      \
            TILE(P, 2, t);                                          \
            t += 2;                                                 \
        }                                                           \
        if (t < tokens) TILE(P, 1, t);                              \
    } while (0)
    for (; p + MANY <= panel1; p += MANY) TOKENS(MANY);
    for (; p < panel1; p++) TOKENS(1);
#undef TOKENS
#undef TILE
}

#define MATMUL(name, type)                                                                                        \
    static void matmul_##name(const fl_matrix *m, size_t panel0, size_t panel1, const fl_inputs *in, size_t tokens, \
                              float *out, size_t out_stride, int add) {                                           \
        matmul(type, m, panel0, panel1, in, tokens, out, out_stride, add);                                        \
    }
MATMUL(f32, FL_F32)
MATMUL(f16, FL_F16)
MATMUL(bf16, FL_BF16)
MATMUL(q8, FL_Q8)
MATMUL(q8_f32, FL_Q8_F32)

static void quantize(const float *x, size_t n, fl_q8_group *q) {
    for (; n > 0; n -= FL_GROUP, x += FL_GROUP, q++) {
        const vf a = vf_load(x), b = vf_load(x + FL_LANES);
        const float largest = lanes_max(vf_max(vf_abs(a), vf_abs(b)));
        // 127 / largest must not overflow: groups of nothing but the smallest numbers become zero.
        const int zero = !(largest > 1e-30f);
        const vf inverse = vf_set1(zero ? 0.0f : 127.0f / largest);
        q->scale = zero ? 0.0f : largest / 127.0f;
        vi_store_i8(q->q, vi_from_vf(vf_mul(a, inverse)));
        vi_store_i8(q->q + FL_LANES, vi_from_vf(vf_mul(b, inverse)));
        int32_t total = 0;
        for (size_t i = 0; i < FL_GROUP; i++) total += q->q[i];
        q->bias = -128 * total;
    }
}

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
    const float scale = 1.0f / sqrtf(lanes_sum(squares) / (float)n + eps);
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
    const float scale = 1.0f / sqrtf(lanes_sum(squares) / (float)n + eps);
    write_norm(out, x, weight, bias, n, mean, vf_set1(scale));
}

// ---- activations ---------------------------------------------------------------------------------------------------

// x * sigmoid(k x)
static inline vf swish(vf x, float k) {
    const vf kx = vf_mul(x, vf_set1(k));
    const vf y = vf_div(x, vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_set1(0.0f), kx))));
    return vf_select_gt(kx, vf_set1(-88.0f), y, vf_set1(0.0f)); // vf_exp goes no further
}

static inline vf vf_tanh(vf x) {
    const vf one = vf_set1(1.0f), a = vf_min(vf_abs(x), vf_set1(20.0f)); // 1 to the last bit from 9.1 on
    const vf e = vf_exp(vf_mul(a, vf_set1(-2.0f)));
    const vf y = vf_div(vf_sub(one, e), vf_add(one, e));
    return vf_select_gt(vf_set1(0.0f), x, vf_sub(vf_set1(0.0f), y), y);
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
            const vf a = vf_##name(vf_load(x + i));                           \
            vf_store(x + i, up ? vf_mul(a, vf_load(up + i)) : a);             \
        }                                                                     \
    }
ACT(silu)
ACT(gelu_tanh)
ACT(gelu_erf)
ACT(quick_gelu)
ACT(relu)

static inline vf capped(vf x, float cap) { return vf_mul(vf_set1(cap), vf_tanh(vf_div(x, vf_set1(cap)))); }

static void softcap(float *x, size_t n, float cap) {
    for (size_t i = 0; i < n; i += FL_LANES) vf_store(x + i, capped(vf_load(x + i), cap));
}

static void to_f16(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + FL_LANES <= n; i += FL_LANES) vf_store_f16(out + i, vf_load(x + i));
    for (; i < n; i++) out[i] = fl_f16_from_f32(x[i]);
}

// ---- attention -----------------------------------------------------------------------------------------------------

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

// ---- sampling ------------------------------------------------------------------------------------------------------

static float max_index(const float *x, size_t n, size_t *index) {
    vf largest = vf_set1(-INFINITY);
    size_t i = 0;
    for (; i + FL_LANES <= n; i += FL_LANES) largest = vf_max(vf_load(x + i), largest);
    float max = lanes_max(largest);
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    for (i = 0; i + 1 < n && x[i] != max; i++) {}
    *index = x[i] == max ? i : 0;
    return max;
}

static void softmax(float *out, float *sums, const float *x, size_t n, float temperature, float max) {
    for (size_t start = 0; start < n; start += FL_SUM_RUN) {
        const size_t end = start + FL_SUM_RUN < n ? start + FL_SUM_RUN : n;
        vf total = vf_set1(0.0f);
        for (size_t i = start; i < end; i += FL_LANES) {
            const size_t count = end - i < FL_LANES ? end - i : FL_LANES;
            vf p = vf_exp(vf_sub(vf_div(vf_load(x + i), vf_set1(temperature)), vf_set1(max)));
            if (count < FL_LANES) p = lanes_first(p, count, 0.0f);
            vf_store(out + i, p);
            total = vf_add(total, p);
        }
        *sums++ = lanes_sum(total);
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
               [FL_Q8_F32] = matmul_q8_f32},
    .quantize = quantize,
    .norm = {[FL_RMS_NORM] = rms_norm, [FL_LAYER_NORM] = layer_norm},
    .act = {[FL_SILU] = act_silu, [FL_GELU_TANH] = act_gelu_tanh, [FL_GELU_ERF] = act_gelu_erf,
            [FL_QUICK_GELU] = act_quick_gelu, [FL_RELU] = act_relu},
    .softcap = softcap,
    .attend = {[FL_F32] = attend_f32, [FL_F16] = attend_f16},
    .attention = {[FL_F32] = attention_f32, [FL_F16] = attention_f16},
    .to_f16 = to_f16,
    .max = max_index,
    .softmax = softmax,
};
