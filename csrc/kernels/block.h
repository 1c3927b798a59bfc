// Matrix products of int8 weights and many tokens: arithmetic binds. A block is BLOCK_GROUPS groups of P panels, laid
// out in L1 as the multiplying instructions want it; all tokens pass by, and their sums wait in memory for the next
// block.
#ifndef FL_BLOCK_H
#define FL_BLOCK_H

#ifndef FL_BLOCK_TILE
#define FL_BLOCK_TILE FL_TILE
#define FL_BLOCK_PANELS FL_TILE_PANELS
#endif

enum {
    BLOCK_GROUPS = 16,
    TILE_SUMS = FL_BLOCK_PANELS * FL_BLOCK_TILE * FL_LANES,
    BLOCK_TILES = 128 / FL_BLOCK_TILE, // of tokens, for which a block stays
};

typedef struct block {
    size_t groups;
    int begins; // the sums: this is the first block
    const uint8_t *tiles[FL_BLOCK_PANELS]; // of each panel: 8 tiles of 64 bytes a group
    const void *scales[FL_BLOCK_PANELS];   // of scale_type: 16 a group
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

#ifdef FL_AMX
#include "amx.h"
#else
// sums[p][t] += the block's product with T tokens, `x` being the first.
static FL_INLINE void block_tile(const size_t P, const size_t T, const fl_type type, const block *b,
                                 const fl_q8_group *x, size_t x_stride, int prefetch, float *sums) {
    // Three tokens a pointer: an address is a pointer and up to twice the stride.
    const fl_q8_group *row[6];
    FL_UNROLL for (size_t i = 0; i < (T + 2) / 3; i++) row[i] = x + 3 * i * x_stride;
    vf sum[2][16];
    FL_UNROLL for (size_t p = 0; p < P; p++)
        FL_UNROLL for (size_t t = 0; t < T; t++)
            sum[p][t] = b->begins ? vf_set1(0.0f) : vf_load(sums + (p * T + t) * FL_LANES);
    for (size_t g = 0; g < b->groups; g++) {
        vi dot[2][16];
        FL_UNROLL for (size_t t = 0; t < T; t++)
            FL_UNROLL for (size_t p = 0; p < P; p++) dot[p][t] = vi_dot_start(row[t / 3][t % 3 * x_stride].bias);
        FL_UNROLL for (size_t k = 0; k < FL_GROUP; k += 4) {
            vb w[2];
            FL_UNROLL for (size_t p = 0; p < P; p++)
                w[p] = vb_reload(b->tiles[p] + g * FL_LANES * FL_GROUP + k * FL_LANES);
            FL_UNROLL for (size_t t = 0; t < T; t++) {
                int32_t a;
                memcpy(&a, row[t / 3][t % 3 * x_stride].q + k, 4);
                FL_UNROLL for (size_t p = 0; p < P; p++) dot[p][t] = vi_dot(dot[p][t], w[p], a);
            }
        }
        FL_UNROLL for (size_t p = 0; p < P; p++) {
            const vf scale = load_float(scale_type(type), b->scales[p], g * FL_LANES);
            FL_UNROLL for (size_t t = 0; t < T; t++) {
                const vf both = vf_mul(scale, vf_set1(row[t / 3][t % 3 * x_stride].scale));
                sum[p][t] = vf_fma(vf_from_vi(dot[p][t]), both, sum[p][t]);
            }
            if (prefetch)
                FL_UNROLL for (size_t i = 0; i < group_bytes(type); i += 64)
                    FL_PREFETCH_L2(b->next[p] + g * group_bytes(type) + i);
        }
        FL_UNROLL for (size_t i = 0; i < (T + 2) / 3; i++) row[i]++;
    }
    FL_UNROLL for (size_t p = 0; p < P; p++)
        FL_UNROLL for (size_t t = 0; t < T; t++) vf_store(sums + (p * T + t) * FL_LANES, sum[p][t]);
}
#endif

// The tile of tokens after `at` of `count`: T, or S of them where that is enough. The last one may begin before `at`,
// with tokens that were in the tile before: count >= S.
static FL_INLINE size_t next_tile(const size_t T, const size_t S, size_t at, size_t count, size_t *begin) {
    const size_t width = T == S || (count >= T && count - at > S) ? T : S;
    *begin = at + width <= count ? at : count - width;
    return width;
}

static FL_INLINE void blocks_of(const size_t P, const size_t T, const size_t S, const fl_type type, const job *j,
                                size_t first, const fl_q8_group *x, size_t t0, size_t count) {
    const size_t groups = groups_of(j), tiles = fl_scales_bytes(type, groups);
    _Alignas(64) float sums[BLOCK_TILES * TILE_SUMS];
    _Alignas(64) uint8_t unpacked[FL_BLOCK_PANELS][BLOCK_GROUPS * FL_LANES * FL_GROUP];
    block b;
    size_t begin;
    for (size_t g = 0; g < groups; g += BLOCK_GROUPS) {
        b.begins = g == 0;
        b.groups = groups - g < BLOCK_GROUPS ? groups - g : BLOCK_GROUPS;
        const int last = g + BLOCK_GROUPS >= groups;
        for (size_t p = 0; p < P; p++) {
            const uint8_t *panel = panel_at(j, first, p);
            b.tiles[p] = panel + tiles + g * group_bytes(type);
            b.scales[p] = panel + g * FL_LANES * (type == FL_Q8_F32 ? 4 : 2);
            b.next[p] = last ? panel + j->panel_bytes + tiles : b.tiles[p] + BLOCK_GROUPS * group_bytes(type);
            if (type == FL_Q4 || FL_UNPACKS) {
                unpack(type, b.tiles[p], b.groups, unpacked[p]);
                FL_COMPILER_FENCE; // some compilers do not know that tiles are loaded from memory
                b.tiles[p] = unpacked[p];
            }
        }
        float *sum = sums;
        for (size_t at = 0; at < count; sum += TILE_SUMS) {
            const size_t width = next_tile(T, S, at, count, &begin);
            const fl_q8_group *from = x + begin * j->in->q_stride + g;
            if (width == T) block_tile(P, T, type, &b, from, j->in->q_stride, at == 0, sum);
            else block_tile(P, S, type, &b, from, j->in->q_stride, at == 0, sum);
            at = begin + width;
        }
    }
    const float *sum = sums;
    for (size_t at = 0; at < count; sum += TILE_SUMS) {
        const size_t width = next_tile(T, S, at, count, &begin);
        for (size_t t = at - begin; t < width; t++)
            for (size_t p = 0; p < P; p++)
                store_sum(j, first + p * j->step, t0 + begin + t, vf_load(sum + (p * width + t) * FL_LANES));
        at = begin + width;
    }
}

static FL_INLINE void blocks(const size_t P, const size_t T, const size_t S, const fl_type type, const job *j,
                             size_t first) {
    // Tokens in equal parts, so that none is less than a tile.
    const size_t parts = (j->tokens + BLOCK_TILES * T - 1) / (BLOCK_TILES * T);
    for (size_t i = 0; i < parts; i++) {
        const size_t t0 = j->tokens * i / parts, t1 = j->tokens * (i + 1) / parts;
        blocks_of(P, T, S, type, j, first, j->in->q + t0 * j->in->q_stride, t0, t1 - t0);
    }
}

#endif
