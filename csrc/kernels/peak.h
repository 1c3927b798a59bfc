// The most int8 multiply-adds that the instruction set can do, to compare matrix products with: no loads, and sums that
// do not wait for each other.
#ifndef FL_PEAK_H
#define FL_PEAK_H

#ifdef FL_AMX
#include "amx.h"

static uint64_t peak(size_t rounds, int32_t *sum) {
    enum { LOOPS = 64, SUMS = 4, PRODUCT = 16 * 16 * 64 };
    const tile_config config = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16},
    };
    int32_t tile[256];
    memset(tile, 0, sizeof tile);
    _tile_loadconfig(&config);
    _tile_loadd(4, tile, 64);
    _tile_loadd(5, tile, 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t i = 0; i < rounds * LOOPS; i++) {
        _tile_dpbssd(0, 4, 5);
        _tile_dpbssd(1, 4, 5);
        _tile_dpbssd(2, 4, 5);
        _tile_dpbssd(3, 4, 5);
    }
    _tile_stored(0, tile, 64);
    _tile_release();
    *sum ^= tile[0];
    return (uint64_t)rounds * LOOPS * SUMS * PRODUCT;
}

#else
#include "lanes.h"

static uint64_t peak(size_t rounds, int32_t *sum) {
    // A loop's body has several turns: some compilers copy all sums at its end, which may take longer than one turn.
    enum { SUMS = FL_TILE_TOKENS * FL_TILE_PANELS, LOOPS = 64, TURNS = 4 };
    // Every product has a factor of its own. Compilers compute equal ones once, where the instruction does not also
    // add.
    int32_t a[LOOPS * SUMS], lanes[FL_LANES];
    for (size_t i = 0; i < LOOPS * SUMS; i++) a[i] = (int32_t)(rounds & i & 1);
    memcpy(lanes, a, sizeof lanes);
    const vb w = vb_load((const int8_t *)lanes);
    vi s[SUMS];
    FL_UNROLL for (size_t i = 0; i < SUMS; i++) s[i] = vi_set1(0);
    for (size_t r = 0; r < rounds; r++)
        for (size_t loop = 0; loop < LOOPS; loop += TURNS)
            FL_UNROLL for (size_t turn = 0; turn < TURNS; turn++)
                FL_UNROLL for (size_t i = 0; i < SUMS; i++) s[i] = vi_dot(s[i], w, a[(loop + turn) * SUMS + i]);
    FL_UNROLL for (size_t i = 0; i < SUMS; i++) { // every lane counts, so that none is left out
        memcpy(lanes, &s[i], sizeof lanes);
        for (size_t lane = 0; lane < FL_LANES; lane++) *sum ^= lanes[lane];
    }
    return (uint64_t)rounds * LOOPS * SUMS * FL_LANES * 4;
}
#endif

#endif
