// Attention to keys and values in int8, by instructions that add up four products of int8 in each of their lanes.
//
// A line is 64 bytes, 16 lanes x 4. Of keys the lanes are positions, and the four are channels; of values the lanes are
// channels, and the four positions. See pages.h.
//
//     scores       sum over groups of   key scale * query scale * (key line . query's four channels, 8 lines)
//     out          sum over pages of    weight scale * (value line . four weights, 16 lines)
//
// A weight is a probability times the scale of the value at its position. The 64 weights of a page become integers of
// 14 bits, in two bytes, with one scale: of 7 bits small weights would lose too much beside a large one.
#ifndef FL_LINES_H
#define FL_LINES_H

#include <float.h>

#include "arguments.h"
#include "turn.h"
#include "vectors.h"

// Rows of a tile: two vectors of sums, or of dot products, for each must fit the registers.
enum { TILE_ROWS = FL_MUL_VECTORS >= 12 ? 6 : 3 };

// A page's keys or values; values of four bits have two lines in one, see pages.h.
typedef struct page_lines {
    const int8_t *data;  // (depth / 4, vectors) lines
    size_t vectors;
    const float *scales; // (groups, 64) of keys, and of values of four bits; (64,) of values in int8
    const char *next;    // what is needed next, of the same shape, and fetched while this is read; or this
} page_lines;

// The 64 weights of a row in a page: (high + low / 128) * scale, both bytes 0 to 127.
typedef struct page_weights {
    int8_t high[FL_PAGE], low[FL_PAGE];
    float scale;
} page_weights;

static FL_INLINE int32_t four_at(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, 4);
    return four;
}

// ---- fewer bits ----------------------------------------------------------------------------------------------------

// Keys of six bits are unpacked page by page, values of four where they are multiplied.

// Writes keys of six bits as lines, and their scales as floats: `vectors` vectors of positions, (stride / 4, 4) lines.
// Four lines are stored as two with the low four bits of each two of them, and one with the high two of all four. See
// pages.h. What lies at `next`, keys too, is fetched meanwhile.
static void unpack_keys(const char *keys, const char *next, size_t stride, size_t vectors, int8_t *out, float *scales) {
    enum { LINE = FL_ALIGN, VECTORS = FL_PAGE / FL_LANES };
    const char *halves = keys + FL_PAGE * stride * 6 / 8;
    for (size_t c = 0; c < stride / 16; c++)
        for (size_t v = 0; v < vectors; v++) {
            const size_t at = (c * VECTORS + v) * 3 * LINE;
            const uint8_t *FL_RESTRICT from = (const uint8_t *)keys + at;
            for (size_t j = 0; j < 3; j++) FL_PREFETCH(next + at + j * LINE);
            FL_UNROLL for (size_t j = 0; j < 4; j++) {
                int8_t *FL_RESTRICT line = out + ((c * 4 + j) * VECTORS + v) * LINE;
                for (size_t i = 0; i < LINE; i++) {
                    const uint8_t low = (uint8_t)(from[j / 2 * LINE + i] >> j % 2 * 4) & 15;
                    const uint8_t high = (uint8_t)(from[2 * LINE + i] >> j * 2) & 3;
                    line[i] = (int8_t)((low | high << 4) - 32);
                }
            }
        }
    for (size_t i = 0; i < fl_groups(stride) * FL_PAGE; i += FL_LANES)
        vf_store(scales + i, vf_load_f16((const uint16_t *)(const void *)halves + i));
}

// ---- keys ----------------------------------------------------------------------------------------------------------

typedef struct key_product {
    const page_lines *keys;
    const fl_query *q; // (rows, groups)
    size_t depth;      // channels, a multiple of 16
    size_t first;      // vectors of 16 positions: from which one on,
    size_t vectors;    // and up to which one
    float *scores;     // (rows, 64)
} key_product;

static FL_INLINE void keys_tile(const size_t R, const size_t V, const key_product *whole, size_t v0) {
    const key_product p = *whole; // copies, which stay in registers
    const page_lines m = *p.keys;
    const size_t groups = fl_groups(p.depth);
    vf sum[TILE_ROWS][4];
    FL_UNROLL for (size_t r = 0; r < R; r++) FL_UNROLL for (size_t v = 0; v < V; v++) sum[r][v] = vf_set1(0.0f);
    for (size_t g = 0; g < groups; g++) {
        const fl_query *q = p.q + g;
        vi dot[TILE_ROWS][4];
        FL_UNROLL for (size_t r = 0; r < R; r++)
            FL_UNROLL for (size_t v = 0; v < V; v++) dot[r][v] = vi_dot_start(q[r * groups].bias);
        for (size_t half = 0; half < FL_GROUP && g * FL_GROUP + half < p.depth; half += 16)
            FL_UNROLL for (size_t k = 0; k < 16; k += 4) {
                const size_t place = ((g * FL_GROUP + half + k) / 4 * m.vectors + v0) * FL_ALIGN;
                vb line[4];
                FL_UNROLL for (size_t v = 0; v < V; v++) {
                    FL_PREFETCH(m.next + place + v * FL_ALIGN);
                    line[v] = vb_load(m.data + place + v * FL_ALIGN);
                }
                FL_UNROLL for (size_t r = 0; r < R; r++)
                    FL_UNROLL for (size_t v = 0; v < V; v++)
                        dot[r][v] = vi_dot_at(dot[r][v], line[v], q[r * groups].q + half, k);
            }
        FL_UNROLL for (size_t v = 0; v < V; v++) {
            const vf scale = vf_load(m.scales + g * FL_PAGE + (v0 + v) * FL_LANES);
            FL_UNROLL for (size_t r = 0; r < R; r++)
                sum[r][v] = vf_fma(vf_from_vi(dot[r][v]), vf_mul(scale, vf_set1(q[r * groups].scale)), sum[r][v]);
        }
    }
    FL_UNROLL for (size_t r = 0; r < R; r++)
        FL_UNROLL for (size_t v = 0; v < V; v++) vf_store(p.scores + r * FL_PAGE + (v0 + v) * FL_LANES, sum[r][v]);
}

// ---- values --------------------------------------------------------------------------------------------------------

typedef struct value_product {
    const page_lines *values;
    const page_weights *w; // (rows,)
    const float *scale; // (rows,) what out is multiplied with before; NULL: it is begun
    size_t begin, end;  // positions of the page, multiples of 16, outside which all weights are zero
    size_t first;       // vectors of 16 channels: from which one on,
    size_t vectors;     // and up to which one
    float *out;         // (rows, all channels)
} value_product;

static FL_INLINE void values_tile(const int four_bits, const size_t R, const size_t V, const value_product *whole,
                                  size_t v0) {
    const value_product p = *whole;
    const page_lines m = *p.values;
    const vt table = vt_load_signed(VALUE_LEVELS);
    vi high[TILE_ROWS][4], low[TILE_ROWS][4];
    FL_UNROLL for (size_t r = 0; r < R; r++)
        FL_UNROLL for (size_t v = 0; v < V; v++) high[r][v] = low[r][v] = vi_set1(0);
    for (size_t at = p.begin; at < p.end; at += 16)
        FL_UNROLL for (size_t k = 0; k < 16; k += 8) {
            vb line[2][4]; // of four positions, and of the next four
            FL_UNROLL for (size_t v = 0; v < V; v++) {
                const uint8_t *data = (const uint8_t *)m.data;
                const size_t i = (at + k) / 4, first = (i * m.vectors + v0 + v) * FL_ALIGN;
                const size_t second = first + m.vectors * FL_ALIGN, both = (i / 2 * m.vectors + v0 + v) * FL_ALIGN;
                FL_PREFETCH(m.next + (four_bits ? both : first));
                if (four_bits) {
                    vb_load_codes(data + both, table, &line[0][v], &line[1][v]);
                } else {
                    FL_PREFETCH(m.next + second);
                    line[0][v] = vb_reload(data + first);
                    line[1][v] = vb_reload(data + second);
                }
            }
            FL_UNROLL for (size_t j = 0; j < 2; j++)
                FL_UNROLL for (size_t r = 0; r < R; r++) {
                    const size_t four = at + k + 4 * j;
                    const int32_t high4 = four_at(p.w[r].high + four), low4 = four_at(p.w[r].low + four);
                    FL_UNROLL for (size_t v = 0; v < V; v++) {
                        high[r][v] = vi_dot_positive(high[r][v], line[j][v], high4);
                        low[r][v] = vi_dot_positive(low[r][v], line[j][v], low4);
                    }
                }
        }
    FL_UNROLL for (size_t r = 0; r < R; r++)
        FL_UNROLL for (size_t v = 0; v < V; v++) {
            float *to = p.out + (r * m.vectors + v0 + v) * FL_LANES;
            const vf before = p.scale ? vf_mul(vf_load(to), vf_set1(p.scale[r])) : vf_set1(0.0f);
            const vf total = vf_fma(vf_from_vi(low[r][v]), vf_set1(0x1p-7f), vf_from_vi(high[r][v]));
            vf_store(to, vf_fma(total, vf_set1(p.w[r].scale), before));
        }
}

static FL_INLINE void values_tile_q8(const size_t R, const size_t V, const value_product *p, size_t v0) {
    values_tile(0, R, V, p, v0);
}

static FL_INLINE void values_tile_q4(const size_t R, const size_t V, const value_product *p, size_t v0) {
    values_tile(1, R, V, p, v0);
}

// The weights of a row: its probabilities p (64,) times the scales (64,) of values at the positions [begin, end) of the
// page, which it sees. A NaN among these makes the scale NaN.
static FL_INLINE void round_weights(const float *p, const float *scales, size_t begin, size_t end, page_weights *w) {
    vf x[4];
    FL_UNROLL for (size_t v = 0; v < 4; v++) {
        x[v] = vf_mul(vf_load(p + v * FL_LANES), vf_load(scales + v * FL_LANES));
        if (begin > 0 || end < FL_PAGE) {
            const vf zero = vf_set1(0.0f), position = vf_add(lanes_index(), vf_set1((float)(v * FL_LANES)));
            x[v] = vf_select_gt(vf_set1((float)end), position, x[v], zero);
            x[v] = vf_select_gt(vf_set1((float)begin), position, zero, x[v]);
        }
    }
    // A NaN that max loses is kept by the sum.
    const vf sum = vf_add(vf_add(x[0], x[1]), vf_add(x[2], x[3]));
    const vf most = vf_add(vf_max(vf_max(x[0], x[1]), vf_max(x[2], x[3])), nan_unless_finite(sum));
    const float largest = lanes_largest(most, most);
    const int broken = !(largest <= FLT_MAX), zero = broken || !(largest > 1e-30f);
    const vf inverse = vf_set1(zero ? 0.0f : 127.0f / largest), half = vf_set1(0.49609375f), limit = vf_set1(127.0f);
    w->scale = broken ? NAN : zero ? 0.0f : largest / 127.0f;
    FL_UNROLL for (size_t v = 0; v < 4; v++) {
        // Nearly half a step is taken off before rounding, 1/2 - 1/256, so that what is left rounds to no less than 0.
        const vf steps = broken ? vf_set1(0.0f) : vf_mul(x[v], inverse);
        const vi high = vi_from_vf(vf_max(vf_set1(0.0f), vf_sub(steps, half)));
        const vf rest = vf_mul(vf_sub(steps, vf_from_vi(high)), vf_set1(128.0f));
        vi_store_i8(w->high + v * FL_LANES, high);
        vi_store_i8(w->low + v * FL_LANES, vi_from_vf(vf_min(limit, rest)));
    }
}

// ---- any number of rows and vectors --------------------------------------------------------------------------------

// All vectors of R rows, as many at a time as the registers have room for.
#define ALL_VECTORS(R, tile)                                                  \
    case R: {                                                                 \
        enum {                                                                \
            ROWS = R <= TILE_ROWS ? R : 1, /* no tile has more */             \
            FIT = FL_MUL_VECTORS / (2 * ROWS),                                \
            V = FIT > 3 ? 4 : FIT > 1 ? 2 : 1                                 \
        };                                                                    \
        size_t v = p->first;                                                  \
        for (; v + V <= p->vectors; v += V) tile(ROWS, V, p, v);              \
        for (; v < p->vectors; v++) tile(ROWS, 1, p, v);                      \
        break;                                                                \
    }
#define TILES(name, type, tile)                                               \
    static void name(size_t rows, const type *p) {                            \
        switch (rows) {                                                       \
            ALL_VECTORS(1, tile) ALL_VECTORS(2, tile) ALL_VECTORS(3, tile)    \
            ALL_VECTORS(4, tile) ALL_VECTORS(5, tile) ALL_VECTORS(6, tile)    \
        }                                                                     \
    }
TILES(multiply_keys, key_product, keys_tile)
TILES(multiply_values_q8, value_product, values_tile_q8)
TILES(multiply_values_q4, value_product, values_tile_q4)
#undef TILES
#undef ALL_VECTORS

#endif
