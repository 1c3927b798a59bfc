// A stretch times bundles of tokens, by Intel's AMX: eight tile registers of 16 rows x 64 bytes, and an instruction
// that multiplies two of them and adds up in a third.
#ifndef FL_AMX_H
#define FL_AMX_H

#include <string.h>

#include "stretch.h"

// Shapes of the eight tile registers, as ldtilecfg reads them (Intel SDM, volume 2).
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

// Registers 0 to 3: products, 16 tokens x 16 rows of int32. 4 and 5: a group of a bundle, 16 tokens x 32 int8. 6 and 7:
// a group of a panel, 8 lines of 64 bytes.
static FL_INLINE void stretches_begin(void) {
    const tile_config config = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 32, 32, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16, 8, 8},
    };
    _tile_loadconfig(&config);
}

static FL_INLINE void stretches_end(void) { _tile_release(); }

// A group's int32 products must be scaled before they are added to those of other groups, so each is stored to memory,
// and vector instructions scale it and add it to its sums. A quad makes four products of a group: 2 bundles x 2 panels,
// or 1 bundle x 4 panels. So it loads hardly more than one tile for each product: a load holds up all that follows
// while the core's other thread is busy.
enum { QUAD = 4 };

// A quad's products n: of which bundle and panel, from their first group on, and which sums they are added to.
typedef struct quad {
    const fl_q8_bundle *x[QUAD];
    const uint8_t *lines[QUAD];
    const uint8_t *scales[QUAD];
    float *sums[QUAD];
} quad;

typedef int32_t products[QUAD][BUNDLE_SUMS];

// Adds product n of group g to its sums.
static FL_INLINE void add_product(const fl_type type, const quad *q, size_t g, size_t n, products *made) {
    const uint8_t *scales = q->scales[n] + g * fl_group_scales(type);
    const vf scale = load_scales(scales), minimum = type == FL_Q4_MIN ? load_minima(scales) : scale;
    const float *x_scale = q->x[n][g].scale, *x_sum = q->x[n][g].sum;
    float *sums = q->sums[n];
    FL_UNROLL for (size_t t = 0; t < FL_LANES; t++) {
        const vf dots = vf_from_vi(_mm512_load_si512((*made)[n] + t * FL_LANES));
        vf sum = vf_fma(dots, vf_mul(scale, vf_set1(x_scale[t])), vf_load(sums + t * FL_LANES));
        if (type == FL_Q4_MIN) sum = vf_fma(minimum, vf_set1(x_sum[t]), sum);
        vf_store(sums + t * FL_LANES, sum);
    }
}

// Macros, since the numbers of registers must be literals.
#define LOAD_TOKENS(a, n) _tile_loadd(a, q->x[n][g].q, FL_GROUP)
#define LOAD_WEIGHTS(b, n) _tile_loadd(b, q->lines[n] + g * FL_LANES * FL_GROUP, 64)
#define MULTIPLY(c, a, b)      \
    do {                       \
        _tile_zero(c);         \
        _tile_dpbssd(c, a, b); \
    } while (0)

// Multiplies group g of quad q, with B bundles, while the group before it, g0 of q0, is stored and added up. A product
// takes long to be done, so it is stored only two products later, and added to its sums another two later:
//
//     multiply     0    1    2    3  |  0'   1'   2'   3' |  0"   ..        n: product n of a group
//     store        .    .    0    1  |  2    3    0'   1' |  2'   ..        n': of the next group
//     add          .    .    .    .  |  0    1    2    3  |  0'   ..
//                                       one call of this
static FL_INLINE void multiply_quad(const size_t B, const fl_type type, const quad *q, size_t g, const quad *q0,
                                    size_t g0, products *made) {
    LOAD_TOKENS(4, 0);
    LOAD_WEIGHTS(6, 0);
    _tile_stored(2, (*made)[2], 64);
    MULTIPLY(0, 4, 6);
    add_product(type, q0, g0, 0, made);
    if (B == 1) LOAD_WEIGHTS(7, 1);
    else LOAD_TOKENS(5, 1);
    _tile_stored(3, (*made)[3], 64);
    if (B == 1) MULTIPLY(1, 4, 7);
    else MULTIPLY(1, 5, 6);
    add_product(type, q0, g0, 1, made);
    if (B == 1) LOAD_WEIGHTS(6, 2);
    else LOAD_WEIGHTS(7, 2);
    _tile_stored(0, (*made)[0], 64);
    if (B == 1) MULTIPLY(2, 4, 6);
    else MULTIPLY(2, 4, 7);
    add_product(type, q0, g0, 2, made);
    if (B == 1) LOAD_WEIGHTS(7, 3);
    _tile_stored(1, (*made)[1], 64);
    if (B == 1) MULTIPLY(3, 4, 7);
    else MULTIPLY(3, 5, 7);
    add_product(type, q0, g0, 3, made);
}
#undef LOAD_TOKENS
#undef LOAD_WEIGHTS
#undef MULTIPLY

// The quad of B bundles from `bundle` on and QUAD / B panels from `panel` on. Where there are fewer panels, the last
// one is multiplied again, into sums that are dropped.
static FL_INLINE void fill_quad(quad *q, const size_t P, const stretch *s, const fl_q8_bundle *x, size_t B,
                                size_t bundle, size_t panel, float *sums, float *dropped) {
    for (size_t n = 0; n < QUAD; n++) {
        const size_t b = bundle + n % B, i = panel + n / B, inside = i < P ? i : P - 1;
        q->x[n] = x + b * s->bundle_groups;
        q->lines[n] = s->lines[inside];
        q->scales[n] = s->scales[inside];
        q->sums[n] = i < P ? sums + (b * P + i) * BUNDLE_SUMS : dropped;
    }
}

// sums[bundle][i] += the products of the stretch's P panels with `count` tokens, whose bundles begin at x. All 16
// places of a bundle are multiplied: fewer would take as long.
static FL_INLINE void multiply_stretch(const size_t P, const fl_type type, const stretch *s, const fl_q8_bundle *x,
                                       size_t count, float *sums) {
    const size_t bundles = (count + FL_LANES - 1) / FL_LANES;
    _Alignas(64) products made;
    _Alignas(64) float dropped[BUNDLE_SUMS];
    quad quads[2], *q0 = &quads[1]; // the one whose products are still to be added; at first none that count
    size_t g0 = 0;
    for (size_t n = 0; n < QUAD; n++) q0->x[n] = x, q0->scales[n] = s->scales[0], q0->sums[n] = dropped;
    if (s->begins) memset(sums, 0, bundles * P * BUNDLE_SUMS * sizeof *sums);
    for (size_t bundle = 0, B; bundle < bundles; bundle += B) {
        B = bundles - bundle > 1 ? 2 : 1;
        for (size_t panel = 0; panel < P; panel += QUAD / B) {
            quad *q = q0 == quads ? &quads[1] : quads;
            fill_quad(q, P, s, x, B, bundle, panel, sums, dropped);
            for (size_t g = 0; g < s->groups; g++) {
                for (size_t i = panel; bundle == 0 && i < P && i < panel + QUAD / B; i++) fetch_upcoming(type, s, i, g);
                if (B == 2) multiply_quad(2, type, q, g, q0, g0, &made);
                else multiply_quad(1, type, q, g, q0, g0, &made);
                q0 = q;
                g0 = g;
            }
        }
    }
    _tile_stored(2, made[2], 64);
    _tile_stored(3, made[3], 64);
    for (size_t n = 0; n < QUAD; n++) add_product(type, q0, g0, n, &made);
    for (size_t t = 0; s->ends && t < count; t++)
        for (size_t i = 0; i < P; i++)
            store_sum(s->p, s->panel + i, s->token + t,
                      vf_load(sums + (t / FL_LANES * P + i) * BUNDLE_SUMS + t % FL_LANES * FL_LANES));
}

#endif
