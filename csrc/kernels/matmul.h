// Matrix products, in two ways. For few tokens the weights come from memory once, and only how fast they come counts:
// several panels are read at once, each a stream of its own, since one stream does not fill a memory bus. For many
// tokens arithmetic is what counts: block.h.
//
// A tile is P panels x T tokens. P, T and type are constants where a tile is called, so that each combination is
// compiled on its own; indices into the arrays of sums vanish.
#ifndef FL_MATMUL_H
#define FL_MATMUL_H

#include "vectors.h"

// A matrix product, but for what its tiles are.
typedef struct job {
    const uint8_t *panels;
    size_t panel_bytes, n;
    size_t step; // between the panels of a tile, in panels
    size_t next; // from a tile's panels to those that their streams go on with, in panels
    const fl_inputs *in;
    size_t tokens;
    float *out;
    size_t out_stride;
    int add;
} job;

static FL_INLINE int is_int8(const fl_type type) { return type == FL_Q8 || type == FL_Q8_F32 || type == FL_Q4; }
static FL_INLINE fl_type scale_type(const fl_type type) { return type == FL_Q8_F32 ? FL_F32 : FL_F16; }
static FL_INLINE size_t group_bytes(const fl_type type) { return (size_t)FL_LANES * FL_GROUP / (type == FL_Q4 ? 2 : 1); }
static FL_INLINE size_t groups_of(const job *j) { return (j->n + FL_GROUP - 1) / FL_GROUP; }

// Where panel p of a tile begins whose first is panel `first`.
static FL_INLINE const uint8_t *panel_at(const job *j, size_t first, size_t p) {
    return j->panels + (first + p * j->step) * j->panel_bytes;
}

static FL_INLINE void store_sum(const job *j, size_t panel, size_t t, vf sum) {
    float *out = j->out + t * j->out_stride + panel * FL_LANES;
    vf_store(out, j->add ? vf_add(vf_load(out), sum) : sum);
}

// ---- few tokens ----------------------------------------------------------------------------------------------------

// How far before they are needed weights are asked for, in rows of a float panel or groups of an int8 one. Where a panel
// ends, its stream goes on elsewhere: only who asks for that place reads on at full speed.
static FL_INLINE size_t ahead(const fl_type type) {
    return type == FL_F32 ? 32 : !is_int8(type) ? 64 : type == FL_Q4 ? 6 : 2;
}

// Tokens past the last are the last once more, and not stored.
static FL_INLINE void tile_float(const size_t P, const size_t T, const fl_type type, const job *j, size_t first,
                                 size_t t0) {
    const uint8_t *w[8];
    const float *x[16];
    vf sum[8][16];
    FL_UNROLL for (size_t p = 0; p < P; p++) w[p] = panel_at(j, first, p);
    FL_UNROLL for (size_t t = 0; t < T; t++)
        x[t] = j->in->f + (t0 + t < j->tokens ? t0 + t : j->tokens - 1) * j->in->f_stride;
    FL_UNROLL for (size_t p = 0; p < P; p++)
        FL_UNROLL for (size_t t = 0; t < T; t++) sum[p][t] = vf_set1(0.0f);
    for (size_t k = 0; k < j->n; k++) {
        vf a[8];
        const size_t far = k + ahead(type);
        const size_t at = far * FL_LANES * (type == FL_F32 ? 4 : 2) + (far < j->n ? 0 : (j->next - 1) * j->panel_bytes);
        FL_UNROLL for (size_t p = 0; p < P; p++) {
            if (T <= FL_FEW) FL_PREFETCH(w[p] + at);
            a[p] = load_float(type, w[p], k * FL_LANES);
        }
        FL_UNROLL for (size_t t = 0; t < T; t++) {
            const vf b = vf_set1(x[t][k]);
            FL_UNROLL for (size_t p = 0; p < P; p++) sum[p][t] = vf_fma(a[p], b, sum[p][t]);
        }
    }
    FL_UNROLL for (size_t t = 0; t < T; t++)
        FL_UNROLL for (size_t p = 0; p < P; p++)
            if (t0 + t < j->tokens) store_sum(j, first + p * j->step, t0 + t, sum[p][t]);
}

#ifndef FL_DOT_AT
// Four activations from the k-th on.
static inline vi vi_dot_at(vi c, vb w, const int8_t *q, size_t k) {
    int32_t a;
    memcpy(&a, q + k, 4);
    return vi_dot(c, w, a);
}
#endif

// Tiles 2 i and 2 i + 1 of a group.
static FL_INLINE void load_tiles(const fl_type type, const uint8_t *group, size_t i, vb w[2]) {
    if (type == FL_Q4) {
        vb_load_codes(group + i * 64, &w[0], &w[1]);
    } else {
        w[0] = vb_load((const int8_t *)group + i * 128);
        w[1] = vb_load((const int8_t *)group + i * 128 + 64);
    }
}

// Asks for a quarter of group g of a panel whose tiles begin at `tiles`, and before the first for the group's scales.
static FL_INLINE void fetch_quarter(const fl_type type, const uint8_t *panel, size_t tiles, size_t g, size_t quarter) {
    const size_t bytes = group_bytes(type) / 4;
    const uint8_t *group = panel + tiles + g * group_bytes(type);
    if (quarter == 0) FL_PREFETCH(panel + g * FL_LANES * (type == FL_Q8_F32 ? 4 : 2));
    FL_UNROLL for (size_t i = 0; i < bytes; i += 64) FL_PREFETCH(group + quarter * bytes + i);
}

static FL_INLINE void tile_int8(const size_t P, const size_t T, const fl_type type, const job *j, size_t first,
                                size_t t0) {
    const size_t groups = groups_of(j), tiles = fl_scales_bytes(type, groups);
    const uint8_t *w[8];
    const fl_q8_group *x[8];
    vf sum[8][8];
    FL_UNROLL for (size_t p = 0; p < P; p++) w[p] = panel_at(j, first, p);
    FL_UNROLL for (size_t t = 0; t < T; t++)
        x[t] = (const fl_q8_group *)j->in->q + (t0 + t < j->tokens ? t0 + t : j->tokens - 1) * groups;
    FL_UNROLL for (size_t p = 0; p < P; p++)
        FL_UNROLL for (size_t t = 0; t < T; t++) sum[p][t] = vf_set1(0.0f);
    for (size_t g = 0; g < groups; g++) {
        const int inside = g + ahead(type) < groups;
        const size_t far = g + ahead(type) - (inside ? 0 : groups), beyond = inside ? 0 : j->next * j->panel_bytes;
        vi dot[8][8];
        FL_UNROLL for (size_t p = 0; p < P; p++)
            FL_UNROLL for (size_t t = 0; t < T; t++) dot[p][t] = vi_dot_start(x[t][g].bias);
        // A line or two of each stream in turn: that reads faster than a group of each.
        FL_UNROLL for (size_t i = 0; i < 4; i++)
            FL_UNROLL for (size_t p = 0; p < P; p++) {
                vb a[2];
                fetch_quarter(type, w[p] + beyond, tiles, far, i);
                load_tiles(type, w[p] + tiles + g * group_bytes(type), i, a);
                FL_UNROLL for (size_t h = 0; h < 2; h++)
                    FL_UNROLL for (size_t t = 0; t < T; t++)
                        dot[p][t] = vi_dot_at(dot[p][t], a[h], x[t][g].q, 8 * i + 4 * h);
            }
        FL_UNROLL for (size_t p = 0; p < P; p++) {
            const vf scale = load_float(scale_type(type), w[p], g * FL_LANES);
            FL_UNROLL for (size_t t = 0; t < T; t++)
                sum[p][t] = vf_fma(vf_from_vi(dot[p][t]), vf_mul(scale, vf_set1(x[t][g].scale)), sum[p][t]);
        }
    }
    FL_UNROLL for (size_t t = 0; t < T; t++)
        FL_UNROLL for (size_t p = 0; p < P; p++)
            if (t0 + t < j->tokens) store_sum(j, first + p * j->step, t0 + t, sum[p][t]);
}

#include "block.h"

// ---- both ----------------------------------------------------------------------------------------------------------

// All tokens, T at a time; T = 0: in blocks.
static FL_INLINE void tile(const size_t P, const size_t T, const fl_type type, const job *j, size_t first) {
    if (T == 0) blocks(P, type, j, first);
    else if (is_int8(type))
        for (size_t t = 0; t < j->tokens; t += T) tile_int8(P, T, type, j, first, t);
    else
        for (size_t t = 0; t < j->tokens; t += T) tile_float(P, T, type, j, first, t);
}

// P panels at a time. For few tokens they lie a P-th of all apart: then each stream goes on where it was when a panel
// ends. For many they are neighbours, as what is written of a token then is.
static FL_INLINE size_t tiles(const size_t P, const size_t T, const fl_type type, job *j, size_t panel0,
                              size_t panel1) {
    const size_t rounds = (panel1 - panel0) / P, apart = T > 0;
    j->step = apart ? rounds : 1;
    for (size_t i = 0; i < rounds; i++) {
        // The last go on with the next call's, which come after.
        j->next = !apart ? P : i + 1 < rounds ? 1 : (P - 1) * rounds + 1;
        tile(P, T, type, j, panel0 + (apart ? i : i * P));
    }
    return panel0 + P * rounds;
}

static FL_INLINE void matmul(const fl_type type, const fl_matrix *m, size_t panel0, size_t panel1, const fl_inputs *in,
                             size_t tokens, float *out, size_t out_stride, int add) {
    job j = {.panels = m->data, .panel_bytes = fl_panel_bytes(type, m->n), .n = m->n, .in = in, .tokens = tokens,
             .out = out, .out_stride = out_stride, .add = add};
#define TILES(P, T)                                                        \
    do {                                                                   \
        panel0 = tiles(P, T, type, &j, panel0, panel1);                    \
        if ((P) > 4) panel0 = tiles((P) / 2, T, type, &j, panel0, panel1); \
        if ((P) > 2) panel0 = tiles(2, T, type, &j, panel0, panel1);       \
        if ((P) > 1) tiles(1, T, type, &j, panel0, panel1);                \
    } while (0)
    // Of four bits, whose look-ups take registers and time, four streams are read faster than eight. With more tokens, and
    // registers enough, a panel's look-ups serve several products.
    const size_t streams = type == FL_Q4 ? 4 : FL_STREAMS, wide = FL_FEW >= 8 ? FL_STREAMS : streams;
    if (tokens == 1) {
        TILES(streams, 1);
    } else if (tokens == 2) {
        TILES(streams, 2);
    } else if (is_int8(type) && fl_bundle_width(tokens) > 1) {
        blocks_begin();
        TILES(FL_BLOCK_PANELS, 0);
        blocks_end();
    } else if (tokens <= 4) {
        TILES(wide / 2, 4);
    } else if (tokens <= 8 && FL_FEW >= 8) {
        TILES(wide / 4, 8);
    } else {
        TILES(FL_TILE_PANELS, is_int8(type) ? 4 : FL_TILE);
    }
#undef TILES
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

static void quantize(const float *x, size_t n, void *tile, size_t width, size_t lane) {
    char *at = tile;
    for (; n > 0; n -= FL_GROUP, x += FL_GROUP, at += width * sizeof(fl_q8_group)) {
        int8_t *q = (int8_t *)at + lane * FL_GROUP;
        float *scales = (float *)(void *)(at + width * FL_GROUP);
        int32_t *biases = (int32_t *)(void *)(scales + width);
        const vf a = vf_load(x), b = vf_load(x + FL_LANES);
        const float largest = lanes_largest(a, b);
        if (!(largest <= FLT_MAX)) {
            memset(q, 0, FL_GROUP);
            scales[lane] = NAN;
            biases[lane] = 0;
            continue;
        }
        // 127 / largest must not overflow: groups of nothing but the smallest numbers become zero.
        const int zero = !(largest > 1e-30f);
        const vf inverse = vf_set1(zero ? 0.0f : 127.0f / largest);
        scales[lane] = zero ? 0.0f : largest / 127.0f;
        const vi qa = vi_from_vf(vf_mul(a, inverse)), qb = vi_from_vf(vf_mul(b, inverse));
        vi_store_i8(q, qa);
        vi_store_i8(q + FL_LANES, qb);
        // Small integers, whose sum is exact.
        biases[lane] = -128 * (int32_t)lanes_sum(vf_add(vf_from_vi(qa), vf_from_vi(qb)));
    }
}

#endif
