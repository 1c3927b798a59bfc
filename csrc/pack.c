// Packing: rows of a checkpoint, of whatever type, into panels (panels.h).
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "panels.h"
#include "q4.h"
#include "threads.h"

// Reads n values of a source row, from column k on, as f32: a group, or what there is of it.
static void load_group(const fl_source *s, size_t row, size_t k, size_t n, float *out) {
    const size_t at = row * s->n + k;
    switch (s->type) {
    case FL_F32: memcpy(out, (const char *)s->data + at * 4, n * 4); break;
    default:
        for (size_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, (const char *)s->data + (at + i) * 2, 2);
            out[i] = s->type == FL_F16 ? fl_f32_from_f16(h) : fl_f32_from_bf16(h);
        }
    }
}

// Stores 16 rows x 32 columns as group g of a float panel.
static fl_status store_floats(fl_type type, void *panel, size_t g, float (*x)[FL_GROUP]) {
    const size_t at = g * FL_GROUP * FL_LANES;
    int finite = 1;
    for (size_t k = 0; k < FL_GROUP; k++) {
        for (size_t lane = 0; lane < FL_LANES; lane++) {
            const size_t i = at + k * FL_LANES + lane;
            const float value = x[lane][k];
            if (type == FL_F32) {
                ((float *)panel)[i] = value;
                finite &= isfinite(value) != 0;
            } else {
                const uint16_t h = type == FL_F16 ? fl_f16_from_f32(value) : fl_bf16_from_f32(value);
                const uint16_t exponent = type == FL_F16 ? 0x7c00u : 0x7f80u;
                ((uint16_t *)panel)[i] = h;
                finite &= (h & exponent) != exponent;
            }
        }
    }
    return finite ? FL_OK : FL_BAD_VALUE;
}

// Turns 16 rows x n columns into n columns x 16 rows.
static void transpose(float (*x)[FL_GROUP], size_t n, float (*columns)[FL_LANES]) {
    for (size_t k = 0; k < n; k++)
        for (size_t lane = 0; lane < FL_LANES; lane++) columns[k][lane] = x[lane][k];
}

// Rounds 32 floats to int8 in steps of a scale.
static void round_group(const float *x, float step, int8_t *q) {
    if (step == 0) {
        memset(q, 0, FL_GROUP);
        return;
    }
    // Adding 1.5 * 2^23 and taking it away rounds to nearest even: no bit is left for a fraction. rintf would be a
    // call.
    const float magic = 12582912.0f;
    for (size_t i = 0; i < FL_GROUP; i++) {
        const float rounded = (x[i] / step + magic) - magic;
        q[i] = (int8_t)(rounded > 127.0f ? 127.0f : rounded < -127.0f ? -127.0f : rounded);
    }
}

// Quantizes and stores 16 rows x 32 columns as group g of a q8 panel.
static fl_status store_q8(const fl_kernels *k, void *panel, size_t groups, size_t g, float (*x)[FL_GROUP]) {
    uint16_t *scales = (uint16_t *)panel + g * FL_LANES;
    int8_t *lines = (int8_t *)panel + fl_scales_bytes(FL_Q8, groups) + g * FL_GROUP * FL_LANES;
    float columns[FL_GROUP][FL_LANES], largest[FL_LANES] = {0}, best[FL_LANES];
    transpose(x, FL_GROUP, columns);
    int finite = 1;
    for (size_t i = 0; i < FL_GROUP; i++)
        for (size_t lane = 0; lane < FL_LANES; lane++) {
            const float magnitude = fabsf(columns[i][lane]);
            finite &= magnitude <= FLT_MAX;
            largest[lane] = magnitude > largest[lane] ? magnitude : largest[lane];
        }
    if (!finite) return FL_BAD_VALUE;
    k->q8_search((const float(*)[FL_LANES])columns, largest, best);
    for (size_t lane = 0; lane < FL_LANES; lane++) {
        int8_t q[FL_GROUP];
        scales[lane] = fl_f16_from_f32(best[lane]);
        // A subnormal scale may have been rounded down so far that the largest value would be cut off: then take the
        // next one.
        if (fl_f32_from_f16(scales[lane]) * 127.5f < largest[lane]) scales[lane]++;
        const float step = fl_f32_from_f16(scales[lane]);
        if (isinf(step)) return FL_BAD_VALUE;
        round_group(x[lane], step, q);
        for (size_t i = 0; i < FL_GROUP; i++) lines[fl_q8_index(lane, i)] = q[i];
    }
    return FL_OK;
}

// Moves the blocks of up to 16 rows into a panel. Block by block, not row by row: the lines that 16 rows share are then
// still in the first-level cache.
static fl_status move_blocks(fl_type type, void *panel, const fl_source *s, const size_t *rows, size_t count) {
    const fl_block *block = s->block;
    const size_t blocks = s->n / block->values, groups = block->values / FL_GROUP;
    uint8_t *lines = (uint8_t *)panel + fl_scales_bytes(type, fl_groups(s->n));
    int finite = 1;
    for (size_t b = 0; b < blocks; b++)
        for (size_t lane = 0; lane < count; lane++)
            finite &= block->to_panel((const uint8_t *)s->data + (rows[lane] * blocks + b) * block->bytes,
                                      (uint16_t *)panel + b * groups * fl_group_scales(type) / 2 + lane,
                                      lines + b * groups * fl_group_bytes(type) + lane * 4);
    return finite ? FL_OK : FL_BAD_VALUE;
}

// Packs panel p of the result. `q4` is working memory, for floats to FL_Q4.
static fl_status pack_panel(fl_type type, void *panels, const fl_source *s, size_t p, const fl_q4_rows *q4) {
    const size_t bytes = fl_panel_bytes(type, s->n), groups = fl_groups(s->n);
    const size_t first = p * FL_LANES, count = s->d - first < FL_LANES ? s->d - first : FL_LANES;
    char *panel = (char *)panels + p * bytes;
    size_t rows[FL_LANES];
    for (size_t lane = 0; lane < count; lane++)
        rows[lane] = s->rows ? (size_t)s->rows[first + lane] : first + lane;
    if (fl_is_int8(type)) memset(panel, 0, bytes); // also the padding after the scales, and rows past the last
    if (s->block) return move_blocks(type, panel, s, rows, count);
    for (size_t g = 0; g < groups; g++) {
        const size_t k = g * FL_GROUP, n = s->n - k < FL_GROUP ? s->n - k : FL_GROUP;
        float x[FL_LANES][FL_GROUP] = {{0}};
        fl_status status = FL_OK;
        for (size_t lane = 0; lane < count; lane++) load_group(s, rows[lane], k, n, x[lane]);
        if (type == FL_Q8) status = store_q8(s->kernels, panel, groups, g, x);
        else if (type == FL_Q4) transpose(x, n, q4->w + k);
        else status = store_floats(type, panel, g, x);
        if (status != FL_OK) return status;
    }
    return type == FL_Q4 ? fl_q4_pack(panel, s, q4) : FL_OK;
}

typedef struct packing {
    fl_type type;
    void *panels;
    const fl_source *source;
    atomic_int status; // FL_OK, or the last failure of any worker
} packing;

static void pack_share(void *arg, fl_team *team, size_t id) {
    packing *packed = arg;
    const fl_source *s = packed->source;
    size_t begin, end;
    fl_share((s->d + FL_LANES - 1) / FL_LANES, team, id, &begin, &end);
    fl_status status = FL_OK;
    fl_q4_rows q4 = {NULL, NULL, NULL, NULL};
    float(*room)[FL_LANES] = NULL;
    if (packed->type == FL_Q4 && !s->block) {
        room = fl_alloc((3 * s->n + fl_groups(s->n)) * sizeof *room);
        if (room) q4 = (fl_q4_rows){room, room + s->n, room + 2 * s->n, room + 3 * s->n};
        else status = FL_NO_MEMORY;
    }
    for (size_t p = begin; p < end && status == FL_OK; p++)
        status = pack_panel(packed->type, packed->panels, s, p, &q4);
    fl_free(room);
    if (status != FL_OK) atomic_store(&packed->status, (int)status);
}

fl_status fl_pack(fl_type type, void *panels, const fl_source *s, size_t threads) {
    if (fl_panel_bytes(type, s->n) == 0) return FL_BAD_TENSOR;
    if (s->block) {
        if (type != s->block->packed || !s->block->to_panel || s->n % s->block->values) return FL_BAD_TENSOR;
    } else if (type == FL_Q4_MIN || (fl_is_int8(type) && !s->kernels)) {
        return FL_BAD_TENSOR;
    }
    if (s->rows)
        for (size_t r = 0; r < s->d; r++)
            if (s->rows[r] < 0 || (size_t)s->rows[r] >= s->d) return FL_BAD_TENSOR;
    packing packed = {.type = type, .panels = panels, .source = s};
    atomic_init(&packed.status, FL_OK);
    fl_parallel(threads, pack_share, &packed);
    return (fl_status)atomic_load(&packed.status);
}
