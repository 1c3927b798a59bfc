// AMX: tiles of 16 rows x 64 bytes, and an instruction that multiplies two of them.
#ifndef FL_AMX_H
#define FL_AMX_H

// Shapes of the eight tile registers, as ldtilecfg reads them.
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

// Registers 0, 1: T tokens x 16 rows of int32; 2, 3: T tokens x 32 bytes of activations; 4, 5: a group of weights,
// 8 x 64 bytes, which is what eight tiles of a panel are.
static FL_INLINE void tiles_begin(const size_t T) {
    const tile_config config = {
        .palette = 1,
        .row_bytes = {64, 64, 32, 32, 64, 64},
        .rows = {(uint8_t)T, (uint8_t)T, (uint8_t)T, (uint8_t)T, 8, 8},
    };
    _tile_loadconfig(&config);
}

static FL_INLINE void tiles_end(void) { _tile_release(); }

// The products of group g, one group at a time since each has scales of its own. Macros: the numbers of the registers
// must be literals.
#define GROUP_PRODUCTS(c, a, b, g)                                     \
    do {                                                               \
        _tile_loadd(a, x + (g), x_stride * sizeof *x);                 \
        _tile_loadd(b, tiles + (g) * FL_LANES * FL_GROUP, 64);         \
        _tile_zero(c);                                                 \
        _tile_dpbssd(c, a, b);                                         \
        _tile_stored(c, products[(g) % 4], 64);                        \
    } while (0)

// sums[p][t] += the block's product with T tokens, `x` being the first. The products of two groups are under way while
// those of the one before are converted and scaled.
static FL_INLINE void block_tile(const size_t P, const size_t T, const fl_type type, const block *b,
                                 const fl_q8_group *x, size_t x_stride, int prefetch, float *sums) {
    _Alignas(64) int32_t products[4][16 * FL_LANES];
    for (size_t p = 0; p < P; p++, sums += T * FL_LANES) {
        const uint8_t *tiles = b->tiles[p], *next = b->next[p];
        // Three tokens a pointer: an address is a pointer and up to twice the stride.
        const fl_q8_group *row[6];
        vf sum[16];
        FL_UNROLL for (size_t i = 0; i < (T + 2) / 3; i++) row[i] = x + 3 * i * x_stride;
        FL_UNROLL for (size_t t = 0; t < T; t++) sum[t] = vf_load(sums + t * FL_LANES);
        GROUP_PRODUCTS(0, 2, 4, 0);
        if (b->groups > 1) GROUP_PRODUCTS(1, 3, 5, 1);
        for (size_t g = 0; g < b->groups; g++) {
            if (g + 2 < b->groups) {
                if (g % 2 == 0) GROUP_PRODUCTS(0, 2, 4, g + 2);
                else GROUP_PRODUCTS(1, 3, 5, g + 2);
            }
            if (prefetch)
                FL_UNROLL for (size_t i = 0; i < group_bytes(type); i += 64) FL_PREFETCH_L2(next + g * group_bytes(type) + i);
            const int32_t *product = products[g % 4];
            const vf scale = load_float(scale_type(type), b->scales[p], g * FL_LANES);
            FL_UNROLL for (size_t t = 0; t < T; t++) {
                const vf both = vf_mul(scale, vf_set1(row[t / 3][t % 3 * x_stride].scale));
                sum[t] = vf_fma(vf_from_vi(_mm512_load_si512(product + t * FL_LANES)), both, sum[t]);
            }
            FL_UNROLL for (size_t i = 0; i < (T + 2) / 3; i++) row[i]++;
        }
        FL_UNROLL for (size_t t = 0; t < T; t++) vf_store(sums + t * FL_LANES, sum[t]);
    }
}
#undef GROUP_PRODUCTS

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
