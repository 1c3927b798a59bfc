// Matrix products.
//
// A tile is P panels x T tokens, its sums in registers. P, T and type are constants where a tile is called, so that
// each combination is compiled on its own; indices into the arrays of sums vanish.
#ifndef FL_MATMUL_H
#define FL_MATMUL_H

#include "vectors.h"

#ifndef FL_TILE_PANELS
#define FL_TILE_PANELS 1
#endif

static FL_INLINE void store_tile(vf sum, float *out, int add) {
    vf_store(out, add ? vf_add(vf_load(out), sum) : sum);
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
    enum { AHEAD = 4096 };
    const size_t group_bytes = (size_t)FL_LANES * FL_GROUP / (type == FL_Q4 ? 2 : 1);
    const size_t groups = (n + FL_GROUP - 1) / FL_GROUP, xs = in->q_stride;
    const fl_q8_group *x = in->q + t0 * xs;
    const uint8_t *tiles = w + fl_scales_bytes(type, groups);
    vf sum[4][8];
    FL_UNROLL for (size_t p = 0; p < P; p++)
        FL_UNROLL for (size_t t = 0; t < T; t++) sum[p][t] = vf_set1(0.0f);
    for (size_t g = 0; g < groups; g++, x++, tiles += group_bytes) {
        vi dot[4][8];
        FL_UNROLL for (size_t t = 0; t < T; t++)
            FL_UNROLL for (size_t p = 0; p < P; p++) dot[p][t] = vi_dot_start(x[t * xs].bias);
        FL_UNROLL for (size_t k = 0; k < FL_GROUP; k += 8) { // two tiles
            vb a[2][4];
            FL_UNROLL for (size_t p = 0; p < P; p++) {
                const uint8_t *tile = tiles + p * panel_bytes + k * group_bytes / FL_GROUP;
                if (T == 1) FL_PREFETCH(tile + AHEAD); // one token: the weights stream from memory
                if (type == FL_Q4) {
                    vb_load_codes(tile, &a[0][p], &a[1][p]);
                } else {
                    if (T == 1) FL_PREFETCH(tile + AHEAD + 64);
                    a[0][p] = vb_load((const int8_t *)tile);
                    a[1][p] = vb_load((const int8_t *)tile + 64);
                }
            }
            FL_UNROLL for (size_t i = 0; i < 2; i++)
                FL_UNROLL for (size_t t = 0; t < T; t++) {
                    int32_t b;
                    memcpy(&b, x[t * xs].q + k + 4 * i, 4);
                    FL_UNROLL for (size_t p = 0; p < P; p++) dot[p][t] = vi_dot(dot[p][t], a[i][p], b);
                }
        }
        vf scale[4];
        FL_UNROLL for (size_t p = 0; p < P; p++)
            scale[p] = load_float(type == FL_Q8_F32 ? FL_F32 : FL_F16, w + p * panel_bytes, g * FL_LANES);
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
    if (type == FL_Q8 || type == FL_Q8_F32 || type == FL_Q4)
        tile_int8(P, T, type, w, panel_bytes, n, in, t0, out, out_stride, add);
    else
        tile_float(P, T, type, w, panel_bytes, n, in, t0, out, out_stride, add);
}

static FL_INLINE void matmul(const fl_type type, const fl_matrix *m, size_t panel0, size_t panel1, const fl_inputs *in,
                             size_t tokens, float *out, size_t out_stride, int add) {
    // One token: several panels give a float product enough independent sums. Int8 has them inside a group, and one
    // panel at a time is one stream for the prefetch.
    enum { FLOAT_PANELS = 4, MANY = FL_TILE_PANELS };
    const int is_float = type == FL_F32 || type == FL_F16 || type == FL_BF16;
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
MATMUL(q4, FL_Q4)

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

#endif
