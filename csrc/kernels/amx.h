// AMX: tiles of 16 rows x 64 bytes, and an instruction that multiplies two of them.
#ifndef FL_AMX_H
#define FL_AMX_H

// Shapes of the eight tile registers, as ldtilecfg reads them.
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

// Registers 0 to 3: 16 tokens x 16 rows of int32; 4, 5: 16 tokens x 32 bytes of activations; 6, 7: a group of weights,
// 8 x 64 bytes, which is what eight tiles of a panel are.
static FL_INLINE void blocks_begin(void) {
    const tile_config config = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 32, 32, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16, 8, 8},
    };
    _tile_loadconfig(&config);
}

static FL_INLINE void blocks_end(void) { _tile_release(); }

// Asks for part i of n of what the next tile of tokens has for this block: this one is done with before it would come
// from L2 by itself.
static FL_INLINE void prefetch_tile(const block *b, const fl_q8_tile *x, size_t i, size_t n) {
    const char *next = (const char *)(x + b->stride);
    const size_t bytes = b->groups * sizeof *x;
    for (size_t at = bytes * i / n; at < bytes * (i + 1) / n; at += 64) FL_PREFETCH(next + at);
}

static FL_INLINE void scale_products(const fl_type type, const block *b, size_t p, size_t g, const int32_t *product,
                                     const float *x_scale, vf *sum) {
    const vf scale = load_float(scale_type(type), b->scales[p], g * FL_LANES);
    FL_UNROLL for (size_t t = 0; t < FL_LANES; t++)
        sum[t] = vf_fma(vf_from_vi(_mm512_load_si512(product + t * FL_LANES)), vf_mul(scale, vf_set1(x_scale[t])), sum[t]);
}

// Macros, since the numbers of registers must be literals. One group at a time: each has scales of its own.
#define MULTIPLY(c, a, d, g)                                        \
    do {                                                            \
        _tile_loadd(a, x[g].q, FL_GROUP);                           \
        _tile_loadd(d, tiles + (g) * FL_LANES * FL_GROUP, 64);      \
        _tile_zero(c);                                              \
        _tile_dpbssd(c, a, d);                                      \
    } while (0)
// Group g is converted while g + 1 is stored and g + 3 multiplied: a product is stored long after it was begun.
#define STEP(stored, multiplied, a, d, g)                                                            \
    do {                                                                                             \
        if (prefetch) prefetch_next(type, b, p, g);                                                  \
        if ((g) + 3 < b->groups) MULTIPLY(multiplied, a, d, (g) + 3);                                \
        if ((g) + 1 < b->groups) _tile_stored(stored, products[((g) + 1) % 4], 64);                  \
        if ((g) < b->groups) scale_products(type, b, p, (g), products[(g) % 4], x[g].scale, sum);    \
    } while (0)

// sums[p][t] += the block's product with the tokens of a tile.
static FL_INLINE void block_tile(const size_t P, const fl_type type, const block *b, const fl_q8_tile *x, size_t count,
                                 int prefetch, float *sums) {
    _Alignas(64) int32_t products[4][FL_LANES * FL_LANES];
    (void)count; // of a tile's tokens, which cost the same however few they are
    for (size_t p = 0; p < P; p++, sums += TILE_SUMS) {
        const uint8_t *tiles = b->tiles[p];
        prefetch_tile(b, x, p, P);
        vf sum[FL_LANES];
        FL_UNROLL for (size_t t = 0; t < FL_LANES; t++)
            sum[t] = b->begins ? vf_set1(0.0f) : vf_load(sums + t * FL_LANES);
        MULTIPLY(0, 4, 6, 0);
        if (b->groups > 1) MULTIPLY(1, 5, 7, 1);
        if (b->groups > 2) MULTIPLY(2, 4, 6, 2);
        _tile_stored(0, products[0], 64);
        for (size_t g = 0; g < b->groups; g += 4) {
            STEP(1, 3, 5, 7, g);
            STEP(2, 0, 4, 6, g + 1);
            STEP(3, 1, 5, 7, g + 2);
            STEP(0, 2, 4, 6, g + 3);
        }
        FL_UNROLL for (size_t t = 0; t < FL_LANES; t++) vf_store(sums + t * FL_LANES, sum[t]);
    }
}
#undef STEP
#undef MULTIPLY

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
