// AMX: tiles of 16 rows x 64 bytes, and an instruction that multiplies two of them.
#ifndef FL_AMX_H
#define FL_AMX_H

// Shapes of the eight tile registers, as ldtilecfg reads them.
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

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

#endif
