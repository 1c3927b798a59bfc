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

// Each group has scales of its own, so that a product is no sum yet: it is stored, scaled and added up. Four are made of
// each group, of 2 tiles of tokens and 2 panels or of 1 and 4: while another thread has the core's other half, a tile
// that is loaded holds up all that follows, and this way there is hardly more than one for each product.
enum { QUAD = 4 };

// What a quad's products are made of and added to, from the first group on.
typedef struct quad {
    const fl_q8_bundle *x[QUAD];
    const uint8_t *tiles[QUAD];
    const uint8_t *scales[QUAD];
    float *sums[QUAD];
} quad;

typedef int32_t products[QUAD][TILE_SUMS];

static FL_INLINE void add_product(const fl_type type, const quad *q, size_t g, size_t n, products *made) {
    const vf scale = load_float(scale_type(type), q->scales[n], g * FL_LANES);
    const float *x_scale = q->x[n][g].scale;
    float *sums = q->sums[n];
    FL_UNROLL for (size_t t = 0; t < FL_LANES; t++) {
        const vf product = vf_from_vi(_mm512_load_si512((*made)[n] + t * FL_LANES));
        vf_store(sums + t * FL_LANES, vf_fma(product, vf_mul(scale, vf_set1(x_scale[t])), vf_load(sums + t * FL_LANES)));
    }
}

// Macros, since the numbers of registers must be literals.
#define LOAD_TOKENS(a, n) _tile_loadd(a, q->x[n][g].q, FL_GROUP)
#define LOAD_WEIGHTS(b, n) _tile_loadd(b, q->tiles[n] + g * FL_LANES * FL_GROUP, 64)
#define MULTIPLY(c, a, b)      \
    do {                       \
        _tile_zero(c);         \
        _tile_dpbssd(c, a, b); \
    } while (0)

// Makes the products of group g of q, with T tiles of tokens, while those made before, of group g0 of q0, are added up.
// A product is stored two later, when it is done; so the last two made before are stored here.
static FL_INLINE void multiply_quad(const size_t T, const fl_type type, const quad *q, size_t g, const quad *q0,
                                    size_t g0, products *made) {
    LOAD_TOKENS(4, 0);
    LOAD_WEIGHTS(6, 0);
    _tile_stored(2, (*made)[2], 64);
    MULTIPLY(0, 4, 6);
    add_product(type, q0, g0, 0, made);
    if (T == 1) LOAD_WEIGHTS(7, 1);
    else LOAD_TOKENS(5, 1);
    _tile_stored(3, (*made)[3], 64);
    if (T == 1) MULTIPLY(1, 4, 7);
    else MULTIPLY(1, 5, 6);
    add_product(type, q0, g0, 1, made);
    if (T == 1) LOAD_WEIGHTS(6, 2);
    else LOAD_WEIGHTS(7, 2);
    _tile_stored(0, (*made)[0], 64);
    if (T == 1) MULTIPLY(2, 4, 6);
    else MULTIPLY(2, 4, 7);
    add_product(type, q0, g0, 2, made);
    if (T == 1) LOAD_WEIGHTS(7, 3);
    _tile_stored(1, (*made)[1], 64);
    if (T == 1) MULTIPLY(3, 4, 7);
    else MULTIPLY(3, 5, 7);
    add_product(type, q0, g0, 3, made);
}
#undef LOAD_TOKENS
#undef LOAD_WEIGHTS
#undef MULTIPLY

// sums[t][p] += the block's products with the tokens of a tile, which cost the same however few they are.
static FL_INLINE void block_tiles(const size_t P, const fl_type type, const block *b, const fl_q8_bundle *x,
                                  size_t count, float *sums) {
    const size_t tiles = (count + FL_LANES - 1) / FL_LANES;
    _Alignas(64) products made;
    _Alignas(64) float dropped[TILE_SUMS]; // of panels past the last, which are the last once more
    quad quads[2], *q0 = &quads[1];
    size_t g0 = 0;
    for (size_t n = 0; n < QUAD; n++) q0->x[n] = x, q0->scales[n] = b->scales[0], q0->sums[n] = dropped; // of no products
    if (b->begins) memset(sums, 0, tiles * P * TILE_SUMS * sizeof *sums);
    for (size_t t = 0, T; t < tiles; t += T) {
        T = tiles - t > 1 ? 2 : 1;
        for (size_t p = 0; p < P; p += QUAD / T) {
            quad *q = q0 == quads ? &quads[1] : quads;
            for (size_t n = 0; n < QUAD; n++) {
                const size_t tile = t + n % T, panel = p + n / T, inside = panel < P ? panel : P - 1;
                q->x[n] = x + tile * b->stride;
                q->tiles[n] = b->tiles[inside];
                q->scales[n] = b->scales[inside];
                q->sums[n] = panel < P ? sums + (tile * P + panel) * TILE_SUMS : dropped;
            }
            for (size_t g = 0; g < b->groups; g++) {
                for (size_t i = p; t == 0 && i < P && i < p + QUAD / T; i++) prefetch_next(type, b, i, g);
                if (T == 2) multiply_quad(2, type, q, g, q0, g0, &made);
                else multiply_quad(1, type, q, g, q0, g0, &made);
                q0 = q;
                g0 = g;
            }
        }
    }
    _tile_stored(2, made[2], 64);
    _tile_stored(3, made[3], 64);
    for (size_t n = 0; n < QUAD; n++) add_product(type, q0, g0, n, &made);
    for (size_t t = 0; b->ends && t < count; t++)
        for (size_t p = 0; p < P; p++)
            store_sum(b->j, b->first + p, b->t0 + t,
                      vf_load(sums + (t / FL_LANES * P + p) * TILE_SUMS + t % FL_LANES * FL_LANES));
}

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
