// Matrix products of int8 weights and many tokens: arithmetic binds. A block is BLOCK_GROUPS groups of P panels, laid
// out in L1 as the multiplying instructions want it; all tokens pass by, and their sums wait in memory for the next
// block. Those of the last go to the output, whose cache lines come while the next sums are computed.
#ifndef FL_BLOCK_H
#define FL_BLOCK_H

#ifndef FL_BLOCK_PANELS
#define FL_BLOCK_PANELS FL_TILE_PANELS
#endif

enum {
    BLOCK_GROUPS = 24,
    BLOCK_TILES = 64 / FL_BLOCK_PANELS, // of 16 tokens, for which a block stays: their sums are 64 KiB
    TILE_SUMS = FL_LANES * FL_LANES,
};

typedef struct block {
    size_t groups;
    size_t stride; // groups from a tile of tokens to the next
    int begins;    // the sums: this is the first block
    int ends;      // them: this is the last
    const job *j;
    size_t first, t0; // the job's panel and token that the block begins with
    const uint8_t *tiles[FL_BLOCK_PANELS]; // of each panel: 8 tiles of 64 bytes a group
    const uint8_t *scales[FL_BLOCK_PANELS]; // of scale_type: 16 a group
    const uint8_t *next[FL_BLOCK_PANELS];  // what follows this block in each panel: on its way to L2 meanwhile
} block;

// Groups of a panel to int8 tiles as vb_reload takes them.
static FL_INLINE void unpack(const fl_type type, const uint8_t *packed, size_t groups, uint8_t *out) {
    for (size_t g = 0; g < groups; g++)
        FL_UNROLL for (size_t i = 0; i < 4; i++) {
            vb w[2];
            load_tiles(type, packed + g * group_bytes(type), i, w);
            vb_store(out + g * FL_LANES * FL_GROUP + i * 128, w[0]);
            vb_store(out + g * FL_LANES * FL_GROUP + i * 128 + 64, w[1]);
        }
}

// Asks for what follows group g of panel p.
static FL_INLINE void prefetch_next(const fl_type type, const block *b, size_t p, size_t g) {
    FL_UNROLL for (size_t i = 0; i < group_bytes(type); i += 64) FL_PREFETCH_L2(b->next[p] + g * group_bytes(type) + i);
}

#ifdef FL_AMX
#include "amx.h"
#else
static FL_INLINE void blocks_begin(void) {}
static FL_INLINE void blocks_end(void) {}

// sums[p][t] += the block's product with T tokens of tile x, whose first token is t0; `lane` is the first of them.
static FL_INLINE void block_lanes(const size_t P, const size_t T, const fl_type type, const block *b,
                                  const fl_q8_bundle *x, size_t t0, size_t lane, int prefetch, float *sums) {
    vf sum[FL_BLOCK_PANELS][FL_LANES];
    FL_UNROLL for (size_t p = 0; p < P; p++)
        FL_UNROLL for (size_t t = 0; t < T; t++)
            sum[p][t] = b->begins ? vf_set1(0.0f) : vf_load(sums + p * TILE_SUMS + (lane + t) * FL_LANES);
    for (size_t g = 0; g < b->groups; g++) {
        const int8_t *q = x[g].q[lane];
        vi dot[FL_BLOCK_PANELS][FL_LANES];
        FL_UNROLL for (size_t t = 0; t < T; t++)
            FL_UNROLL for (size_t p = 0; p < P; p++) dot[p][t] = vi_dot_start(x[g].bias[lane + t]);
        FL_UNROLL for (size_t k = 0; k < FL_GROUP; k += 4) {
            vb w[FL_BLOCK_PANELS];
            FL_UNROLL for (size_t p = 0; p < P; p++)
                w[p] = vb_reload(b->tiles[p] + g * FL_LANES * FL_GROUP + k * FL_LANES);
            FL_UNROLL for (size_t t = 0; t < T; t++)
                FL_UNROLL for (size_t p = 0; p < P; p++)
                    dot[p][t] = vi_dot_at(dot[p][t], w[p], q + t * FL_GROUP, k);
        }
        FL_UNROLL for (size_t p = 0; p < P; p++) {
            const vf scale = load_float(scale_type(type), b->scales[p], g * FL_LANES);
            FL_UNROLL for (size_t t = 0; t < T; t++)
                sum[p][t] = vf_fma(vf_from_vi(dot[p][t]), vf_mul(scale, vf_set1(x[g].scale[lane + t])), sum[p][t]);
            if (prefetch) prefetch_next(type, b, p, g);
        }
    }
    if (b->ends) {
        FL_UNROLL for (size_t t = 0; t < T; t++)
            FL_UNROLL for (size_t p = 0; p < P; p++)
                if (t0 + lane + t < b->j->tokens) store_sum(b->j, b->first + p, t0 + lane + t, sum[p][t]);
    } else {
        FL_UNROLL for (size_t p = 0; p < P; p++)
            FL_UNROLL for (size_t t = 0; t < T; t++) vf_store(sums + p * TILE_SUMS + (lane + t) * FL_LANES, sum[p][t]);
    }
}

// sums[t][p] += the block's product with tile t of `count` tokens, and with some past them where it is simpler.
static FL_INLINE void block_tiles(const size_t P, const fl_type type, const block *b, const fl_q8_bundle *x,
                                  size_t count, float *sums) {
    enum { T = FL_TILE, LAST = FL_LANES % FL_TILE };
    for (size_t t = 0; t < count; t += FL_LANES, x += b->stride, sums += P * TILE_SUMS) {
        for (size_t lane = 0; lane + T <= FL_LANES && t + lane < count; lane += T)
            block_lanes(P, T, type, b, x, b->t0 + t, lane, t + lane == 0, sums);
        if (LAST > 0 && count - t > FL_LANES - LAST)
            block_lanes(P, LAST, type, b, x, b->t0 + t, FL_LANES - LAST, 0, sums);
    }
}
#endif

// Tokens [t0, t0 + count), t0 a multiple of 16.
static FL_INLINE void blocks_of(const size_t P, const fl_type type, const job *j, size_t first, size_t t0,
                                size_t count) {
    const size_t groups = groups_of(j), tiles = fl_scales_bytes(type, groups);
    const fl_q8_bundle *x = (const fl_q8_bundle *)j->in->q + t0 / FL_LANES * groups;
    _Alignas(64) float sums[BLOCK_TILES * FL_BLOCK_PANELS * TILE_SUMS];
    _Alignas(64) uint8_t unpacked[FL_BLOCK_PANELS][BLOCK_GROUPS * FL_LANES * FL_GROUP];
    block b = {.stride = groups, .j = j, .first = first, .t0 = t0};
    for (size_t g = 0; g < groups; g += BLOCK_GROUPS) {
        b.begins = g == 0;
        b.ends = groups - g <= BLOCK_GROUPS;
        b.groups = b.ends ? groups - g : BLOCK_GROUPS;
        for (size_t p = 0; p < P; p++) {
            const uint8_t *panel = panel_at(j, first, p);
            b.tiles[p] = panel + tiles + g * group_bytes(type);
            b.scales[p] = panel + g * FL_LANES * (type == FL_Q8_F32 ? 4 : 2);
            b.next[p] = b.ends ? panel + j->next * j->panel_bytes + tiles : b.tiles[p] + b.groups * group_bytes(type);
            if (type == FL_Q4 || FL_UNPACKS) {
                unpack(type, b.tiles[p], b.groups, unpacked[p]);
                FL_COMPILER_FENCE; // some compilers do not know that tiles are loaded from memory
                b.tiles[p] = unpacked[p];
            }
        }
        block_tiles(P, type, &b, x + g, count, sums);
    }
}

static FL_INLINE void blocks(const size_t P, const fl_type type, const job *j, size_t first) {
    enum { MOST = BLOCK_TILES * FL_LANES };
    for (size_t t = 0; t < j->tokens; t += MOST)
        blocks_of(P, type, j, first, t, j->tokens - t < MOST ? j->tokens - t : MOST);
}

#endif
