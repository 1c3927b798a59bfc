// Matrix products straight from the panels, a tile at a time: those of few tokens, and those of float weights.
//
// For few tokens the weights come from memory once, and only how fast they come counts. One stream of reads does not
// fill a memory bus, so a tile reads P panels at once. They lie a P-th of all panels apart: where a panel ends, its
// stream goes on with the panel that lies behind it, and what was fetched ahead is what comes next.
//
//     12 panels, P = 4        stream 0: 0 1 2 | 1: 3 4 5 | 2: 6 7 8 | 3: 9 10 11
//     tiles                   0 3 6 9,   then 1 4 7 10,   then 2 5 8 11
//
// A tile is P panels x T tokens of sums. P, T and type are constants wherever these functions are inlined, so that each
// combination is compiled on its own and the arrays of sums become registers.
#ifndef FL_DIRECT_H
#define FL_DIRECT_H

#include "product.h"

enum { MOST_PANELS = 8, MOST_TOKENS = 8 }; // of a tile

// How far ahead weights are fetched: rows k of a float panel, groups of an int8 one.
static FL_INLINE size_t ahead(const fl_type type) {
    return type == FL_F32 ? 32 : !fl_is_int8(type) ? 64 : fl_is_q4(type) ? 6 : 2;
}

// Token t of a tile's inputs. Past the last it is the last once more, and its sums are not stored.
static FL_INLINE size_t token_of(const product *p, size_t t) { return t < p->tokens ? t : p->tokens - 1; }

static FL_INLINE void store_tile(const size_t P, const size_t T, const product *p, size_t first, size_t t0,
                                 vf sum[MOST_PANELS][MOST_TOKENS]) {
    FL_UNROLL for (size_t t = 0; t < T; t++)
        FL_UNROLL for (size_t i = 0; i < P; i++)
            if (t0 + t < p->tokens) store_sum(p, first + i * p->apart, t0 + t, sum[i][t]);
}

static FL_INLINE void tile_float(const size_t P, const size_t T, const fl_type type, const product *p, size_t first,
                                 size_t t0) {
    const uint8_t *w[MOST_PANELS];
    const float *x[MOST_TOKENS];
    vf sum[MOST_PANELS][MOST_TOKENS];
    FL_UNROLL for (size_t i = 0; i < P; i++) w[i] = panel_at(p, first, i);
    FL_UNROLL for (size_t t = 0; t < T; t++) x[t] = p->in->f + token_of(p, t0 + t) * p->in->f_stride;
    FL_UNROLL for (size_t i = 0; i < P; i++)
        FL_UNROLL for (size_t t = 0; t < T; t++) sum[i][t] = vf_set1(0.0f);
    for (size_t k = 0; k < p->n; k++) {
        vf a[MOST_PANELS];
        const size_t far = k + ahead(type); // past n: a row of the stream's next panel
        const size_t at = far * FL_LANES * (type == FL_F32 ? 4 : 2) + (far < p->n ? 0 : (p->next - 1) * p->panel_bytes);
        FL_UNROLL for (size_t i = 0; i < P; i++) {
            if (T <= FL_FEW) FL_PREFETCH(w[i] + at);
            a[i] = load_float(type, w[i], k * FL_LANES);
        }
        FL_UNROLL for (size_t t = 0; t < T; t++) {
            const vf b = vf_set1(x[t][k]);
            FL_UNROLL for (size_t i = 0; i < P; i++) sum[i][t] = vf_fma(a[i], b, sum[i][t]);
        }
    }
    store_tile(P, T, p, first, t0, sum);
}

// Fetches a quarter of group g of a panel whose lines begin at `lines`; with the first quarter also the group's scales.
static FL_INLINE void fetch_quarter(const fl_type type, const uint8_t *panel, size_t lines, size_t g, size_t quarter) {
    const size_t bytes = fl_group_bytes(type) / 4;
    const uint8_t *group = panel + lines + g * fl_group_bytes(type);
    if (quarter == 0) FL_PREFETCH(panel + g * fl_group_scales(type));
    FL_UNROLL for (size_t i = 0; i < bytes; i += 64) FL_PREFETCH(group + quarter * bytes + i);
}

// Each token's activations lie alone here: fl_bundle_width is 1.
static FL_INLINE void tile_int8(const size_t P, const size_t T, const fl_type type, const product *p, size_t first,
                                size_t t0) {
    const size_t groups = fl_groups(p->n), lines = fl_scales_bytes(type, groups);
    const vt table = vt_load(p->values);
    const uint8_t *w[MOST_PANELS];
    const fl_q8_group *x[MOST_TOKENS];
    vf sum[MOST_PANELS][MOST_TOKENS];
    FL_UNROLL for (size_t i = 0; i < P; i++) w[i] = panel_at(p, first, i);
    FL_UNROLL for (size_t t = 0; t < T; t++) x[t] = (const fl_q8_group *)p->in->q + token_of(p, t0 + t) * groups;
    FL_UNROLL for (size_t i = 0; i < P; i++)
        FL_UNROLL for (size_t t = 0; t < T; t++) sum[i][t] = vf_set1(0.0f);
    for (size_t g = 0; g < groups; g++) {
        const int inside = g + ahead(type) < groups;
        const size_t far = g + ahead(type) - (inside ? 0 : groups), beyond = inside ? 0 : p->next * p->panel_bytes;
        vi dot[MOST_PANELS][MOST_TOKENS];
        FL_UNROLL for (size_t i = 0; i < P; i++)
            FL_UNROLL for (size_t t = 0; t < T; t++) dot[i][t] = vi_dot_start(x[t][g].bias);
        // Two lines of each stream in turn are read faster than a whole group of each.
        FL_UNROLL for (size_t quarter = 0; quarter < 4; quarter++)
            FL_UNROLL for (size_t i = 0; i < P; i++) {
                vb line[2];
                fetch_quarter(type, w[i] + beyond, lines, far, quarter);
                load_lines(type, table, w[i] + lines + g * fl_group_bytes(type), quarter, line);
                FL_UNROLL for (size_t h = 0; h < 2; h++)
                    FL_UNROLL for (size_t t = 0; t < T; t++)
                        dot[i][t] = dot_at(type, dot[i][t], line[h], x[t][g].q, 8 * quarter + 4 * h);
            }
        FL_UNROLL for (size_t i = 0; i < P; i++) {
            const uint8_t *scales = w[i] + g * fl_group_scales(type);
            const vf scale = load_scales(scales);
            FL_UNROLL for (size_t t = 0; t < T; t++)
                sum[i][t] = vf_fma(dot_end(type, dot[i][t]), vf_mul(scale, vf_set1(x[t][g].scale)), sum[i][t]);
            if (type != FL_Q4_MIN) continue;
            const vf minimum = load_minima(scales);
            FL_UNROLL for (size_t t = 0; t < T; t++) sum[i][t] = vf_fma(minimum, vf_set1(x[t][g].sum), sum[i][t]);
        }
    }
    store_tile(P, T, p, first, t0, sum);
}

// All tokens with the P panels of a tile, T tokens at a time.
static FL_INLINE void tiles_of_tokens(const size_t P, const size_t T, const fl_type type, const product *p,
                                      size_t first) {
    for (size_t t = 0; t < p->tokens; t += T)
        if (fl_is_int8(type)) tile_int8(P, T, type, p, first, t);
        else tile_float(P, T, type, p, first, t);
}

// Panels [panel0, panel1), as many as make whole tiles of P panels; returns the first of those left over.
static FL_INLINE size_t whole_tiles(const size_t P, const size_t T, const fl_type type, product *p, size_t panel0,
                                    size_t panel1) {
    const size_t rounds = (panel1 - panel0) / P;
    p->apart = rounds;
    for (size_t i = 0; i < rounds; i++) {
        p->next = i + 1 < rounds ? 1 : (P - 1) * rounds + 1; // at the end: the panels left over
        tiles_of_tokens(P, T, type, p, panel0 + i);
    }
    return panel0 + P * rounds;
}

// Panels [panel0, panel1): tiles of P panels, of fewer for what is left over.
static FL_INLINE void multiply_direct(const size_t P, const size_t T, const fl_type type, product *p, size_t panel0,
                                      size_t panel1) {
    panel0 = whole_tiles(P, T, type, p, panel0, panel1);
    if (P > 4) panel0 = whole_tiles(P / 2, T, type, p, panel0, panel1);
    if (P > 2) panel0 = whole_tiles(2, T, type, p, panel0, panel1);
    if (P > 1) whole_tiles(1, T, type, p, panel0, panel1);
}

#endif
