// A stretch times bundles of tokens, by instructions that add up four products of int8 in each of their lanes.
#ifndef FL_DOTS_H
#define FL_DOTS_H

#include "stretch.h"

static FL_INLINE void stretches_begin(void) {}
static FL_INLINE void stretches_end(void) {}

// sums[i][place] += the products of P panels with T tokens of a bundle x, whose first token is number t, from `place`
// on.
static FL_INLINE void stretch_tile(const size_t P, const size_t T, const fl_type type, const stretch *s,
                                   const fl_q8_bundle *x, size_t t, size_t place, int fetches, float *sums) {
    vf sum[FL_STRETCH_PANELS][FL_LANES];
    FL_UNROLL for (size_t i = 0; i < P; i++)
        FL_UNROLL for (size_t j = 0; j < T; j++)
            sum[i][j] = s->begins ? vf_set1(0.0f) : vf_load(sums + i * BUNDLE_SUMS + (place + j) * FL_LANES);
    for (size_t g = 0; g < s->groups; g++) {
        const int8_t *q = x[g].q[place];
        vi dot[FL_STRETCH_PANELS][FL_LANES];
        FL_UNROLL for (size_t j = 0; j < T; j++)
            FL_UNROLL for (size_t i = 0; i < P; i++) dot[i][j] = vi_dot_start(x[g].bias[place + j]);
        FL_UNROLL for (size_t k = 0; k < FL_GROUP; k += 4) {
            vb line[FL_STRETCH_PANELS];
            FL_UNROLL for (size_t i = 0; i < P; i++)
                line[i] = vb_reload(s->lines[i] + g * FL_LANES * FL_GROUP + k * FL_LANES);
            FL_UNROLL for (size_t j = 0; j < T; j++)
                FL_UNROLL for (size_t i = 0; i < P; i++)
                    dot[i][j] = dot_at(type, dot[i][j], line[i], q + j * FL_GROUP, k);
        }
        FL_UNROLL for (size_t i = 0; i < P; i++) {
            const uint8_t *scales = s->scales[i] + g * fl_group_scales(type);
            const vf scale = load_scales(scales);
            FL_UNROLL for (size_t j = 0; j < T; j++)
                sum[i][j] = vf_fma(dot_end(type, dot[i][j]), vf_mul(scale, vf_set1(x[g].scale[place + j])), sum[i][j]);
            if (type == FL_Q4_MIN) {
                const vf minimum = load_minima(scales);
                FL_UNROLL for (size_t j = 0; j < T; j++)
                    sum[i][j] = vf_fma(minimum, vf_set1(x[g].sum[place + j]), sum[i][j]);
            }
            if (fetches) fetch_upcoming(type, s, i, g);
        }
    }
    if (s->ends) {
        FL_UNROLL for (size_t j = 0; j < T; j++)
            FL_UNROLL for (size_t i = 0; i < P; i++)
                if (t + place + j < s->p->tokens) store_sum(s->p, s->panel + i, t + place + j, sum[i][j]);
    } else {
        FL_UNROLL for (size_t i = 0; i < P; i++)
            FL_UNROLL for (size_t j = 0; j < T; j++)
                vf_store(sums + i * BUNDLE_SUMS + (place + j) * FL_LANES, sum[i][j]);
    }
}

// sums[bundle][i] += the products of the stretch's P panels with `count` tokens, whose bundles begin at x. Places of
// the last bundle past the last token may be multiplied too.
static FL_INLINE void multiply_stretch(const size_t P, const fl_type type, const stretch *s, const fl_q8_bundle *x,
                                       size_t count, float *sums) {
    enum { T = FL_TILE_TOKENS, LAST = FL_LANES % FL_TILE_TOKENS };
    for (size_t t = 0; t < count; t += FL_LANES, x += s->bundle_groups, sums += P * BUNDLE_SUMS) {
        for (size_t place = 0; place + T <= FL_LANES && t + place < count; place += T)
            stretch_tile(P, T, type, s, x, s->token + t, place, t + place == 0, sums);
        if (LAST > 0 && count - t > FL_LANES - LAST)
            stretch_tile(P, LAST, type, s, x, s->token + t, FL_LANES - LAST, 0, sums);
    }
}

#endif
