// AMX: tiles of 16 rows x 64 bytes, and an instruction that multiplies two of them.
#ifndef FL_AMX_H
#define FL_AMX_H

// Shapes of the eight tile registers, as ldtilecfg reads them.
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

// Registers 0 to 3: T tokens x 16 rows of int32; 4, 5: T tokens x 32 bytes of activations; 6, 7: a group of weights,
// 8 x 64 bytes, which is what eight tiles of a panel are.
static FL_INLINE void tiles_begin(const size_t T) {
    const uint8_t rows = (uint8_t)T;
    const tile_config config = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 32, 32, 64, 64},
        .rows = {rows, rows, rows, rows, rows, rows, 8, 8},
    };
    _tile_loadconfig(&config);
}

static FL_INLINE void tiles_end(void) { _tile_release(); }

// The activations of a block and of T tokens as the tiles take them: no row straddles cache lines, and the scales of a
// group lie side by side. Each is used P times.
typedef struct tokens_block {
    _Alignas(64) int8_t q[BLOCK_GROUPS][16][FL_GROUP];
    float scale[BLOCK_GROUPS][16];
} tokens_block;

static FL_INLINE void pack_tokens(const size_t T, size_t groups, const fl_q8_group *x, size_t x_stride,
                                  tokens_block *out) {
    FL_UNROLL for (size_t t = 0; t < T; t++, x += x_stride)
        for (size_t g = 0; g < groups; g++) {
            memcpy(out->q[g][t], x[g].q, FL_GROUP);
            out->scale[g][t] = x[g].scale;
        }
}

static FL_INLINE void prefetch_group(const fl_type type, const uint8_t *group) {
    FL_UNROLL for (size_t i = 0; i < group_bytes(type); i += 64) FL_PREFETCH_L2(group + i);
}

static FL_INLINE void scale_products(const size_t T, const fl_type type, const block *b, size_t p, size_t g,
                                     const int32_t *product, const float *x_scale, vf *sum) {
    const vf scale = load_float(scale_type(type), b->scales[p], g * FL_LANES);
    FL_UNROLL for (size_t t = 0; t < T; t++)
        sum[t] = vf_fma(vf_from_vi(_mm512_load_si512(product + t * FL_LANES)), vf_mul(scale, vf_set1(x_scale[t])), sum[t]);
}

// Macros, since the numbers of registers must be literals. One group at a time: each has scales of its own.
#define MULTIPLY(c, a, b, g)                                        \
    do {                                                            \
        _tile_loadd(a, x.q[g], FL_GROUP);                           \
        _tile_loadd(b, tiles + (g) * FL_LANES * FL_GROUP, 64);      \
        _tile_zero(c);                                              \
        _tile_dpbssd(c, a, b);                                      \
    } while (0)
// Group g is converted while g + 1 is stored and g + 3 multiplied: a product is stored long after it was begun.
#define STEP(stored, multiplied, a, b, g)                                                              \
    do {                                                                                               \
        if (prefetch) prefetch_group(type, next + (g) * group_bytes(type));                            \
        if ((g) + 3 < w->groups) MULTIPLY(multiplied, a, b, (g) + 3);                                  \
        if ((g) + 1 < w->groups) _tile_stored(stored, products[((g) + 1) % 4], 64);                    \
        if ((g) < w->groups) scale_products(T, type, w, p, (g), products[(g) % 4], x.scale[g], sum);   \
    } while (0)

// sums[p][t] += the block's product with T tokens, `from` being the first.
static FL_INLINE void block_tile(const size_t P, const size_t T, const fl_type type, const block *w,
                                 const fl_q8_group *from, size_t x_stride, int prefetch, float *sums) {
    _Alignas(64) int32_t products[4][16 * FL_LANES];
    tokens_block x;
    pack_tokens(T, w->groups, from, x_stride, &x);
    FL_COMPILER_FENCE; // some compilers do not know that tiles are loaded from memory
    for (size_t p = 0; p < P; p++, sums += T * FL_LANES) {
        const uint8_t *tiles = w->tiles[p], *next = w->next[p];
        vf sum[16];
        FL_UNROLL for (size_t t = 0; t < T; t++) sum[t] = w->begins ? vf_set1(0.0f) : vf_load(sums + t * FL_LANES);
        MULTIPLY(0, 4, 6, 0);
        if (w->groups > 1) MULTIPLY(1, 5, 7, 1);
        if (w->groups > 2) MULTIPLY(2, 4, 6, 2);
        _tile_stored(0, products[0], 64);
        for (size_t g = 0; g < w->groups; g += 4) {
            STEP(1, 3, 5, 7, g);
            STEP(2, 0, 4, 6, g + 1);
            STEP(3, 1, 5, 7, g + 2);
            STEP(0, 2, 4, 6, g + 3);
        }
        FL_UNROLL for (size_t t = 0; t < T; t++) vf_store(sums + t * FL_LANES, sum[t]);
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
