// Number formats and packing: rows of a checkpoint into panels.
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fpenv.h"
#include "kernels/kernels.h"
#include "q4.h"
#include "threads.h"

float fl_f32_from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    uint32_t bits;
    float x;
    if (rest >= 0x7c00u) { // infinity, NaN
        bits = sign | 0x7f800000u | (rest & 0x3ffu) << 13;
    } else if (rest >= 0x400u) {
        bits = sign | ((rest << 13) + (112u << 23));
    } else { // subnormal: a multiple of 2^-24
        x = (float)rest * 0x1p-24f;
        memcpy(&bits, &x, 4);
        bits |= sign;
    }
    memcpy(&x, &bits, 4);
    return x;
}

uint16_t fl_f16_from_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u); // NaN
    if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); // 65520 and more round to infinity
    if (rest >= 0x38800000u) {
        rest -= 112u << 23;
        rest += 0xfffu + (rest >> 13 & 1u);
        return (uint16_t)(sign | rest >> 13);
    }
    // Subnormal: the unit of the last place of 0.5 is 2^-24, so that the addition rounds to it.
    float magnitude;
    memcpy(&magnitude, &rest, 4);
    magnitude += 0.5f;
    memcpy(&rest, &magnitude, 4);
    return (uint16_t)(sign | (rest - 0x3f000000u));
}

float fl_f32_from_bf16(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

uint16_t fl_bf16_from_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u); // NaN stays one
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

int fl_finite(const float *x, size_t n) {
    const uint32_t exponent = 0x7f800000u;
    uint32_t broken = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], 4);
        broken |= (bits & exponent) == exponent;
    }
    return !broken;
}

// ---- panels --------------------------------------------------------------------------------------------------------

size_t fl_panel_bytes(fl_type type, size_t n) {
    if (n > SIZE_MAX / (FL_LANES * 16)) return 0;
    const size_t groups = (n + FL_GROUP - 1) / FL_GROUP, values = groups * FL_GROUP * FL_LANES;
    switch (type) {
    case FL_F32: return values * 4;
    case FL_F16:
    case FL_BF16: return values * 2;
    case FL_Q8:
    case FL_Q8_F32: return fl_scales_bytes(type, groups) + values;
    case FL_Q4: return fl_scales_bytes(type, groups) + values / 2;
    default: return 0;
    }
}

size_t fl_matrix_bytes(fl_type type, size_t d, size_t n) {
    const size_t panel = fl_panel_bytes(type, n), panels = d / FL_LANES + (d % FL_LANES != 0);
    return panel > 0 && panels > SIZE_MAX / panel ? 0 : panels * panel;
}

// Where value (row `lane`, column k of its group) lies in the group's tiles of 16 rows x 4 k.
static size_t tile_index(size_t lane, size_t k) { return k / 4 * (FL_LANES * 4) + lane * 4 + k % 4; }

// One group of one row: n values from column k on, as f32.
static void load_group(const fl_source *s, size_t row, size_t k, size_t n, float *out) {
    const size_t at = row * s->n + k;
    switch (s->type) {
    case FL_F32: memcpy(out, (const char *)s->data + at * 4, n * 4); break;
    case FL_F16:
    case FL_BF16:
        for (size_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, (const char *)s->data + (at + i) * 2, 2);
            out[i] = s->type == FL_F16 ? fl_f32_from_f16(h) : fl_f32_from_bf16(h);
        }
        break;
    default:
        for (size_t i = 0; i < n; i++) {
            float scale;
            memcpy(&scale, (const char *)s->scales + (at + i) / s->group * 4, 4);
            out[i] = (float)((const int8_t *)s->data)[at + i] * scale;
        }
    }
}

// 16 rows x 32 columns of f32 into a float panel at group g. Returns the status.
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

// 32 floats as int8 with an f16 scale, max|x| / 127.
static fl_status quantize_group(const float *x, int8_t *q, uint16_t *scale) {
    float largest = 0;
    int finite = 1;
    for (size_t i = 0; i < FL_GROUP; i++) {
        const float magnitude = fabsf(x[i]);
        finite &= magnitude <= FLT_MAX;
        largest = magnitude > largest ? magnitude : largest;
    }
    if (!finite) return FL_BAD_VALUE;
    *scale = fl_f16_from_f32(largest / 127.0f);
    // Among the smallest scales rounding down can lose half a step: then the next one up.
    if (fl_f32_from_f16(*scale) * 127.5f < largest) (*scale)++;
    const float step = fl_f32_from_f16(*scale);
    if (isinf(step)) return FL_BAD_VALUE;
    if (step == 0) {
        memset(q, 0, FL_GROUP);
        return FL_OK;
    }
    // Adding 1.5 * 2^23 leaves no bits for a fraction: rounds to nearest even where rintf would be a function call.
    const float magic = 12582912.0f;
    for (size_t i = 0; i < FL_GROUP; i++) {
        const float rounded = (x[i] / step + magic) - magic;
        q[i] = (int8_t)(rounded > 127.0f ? 127.0f : rounded < -127.0f ? -127.0f : rounded);
    }
    return FL_OK;
}

static fl_status store_q8(void *panel, size_t groups, size_t g, float (*x)[FL_GROUP]) {
    uint16_t *scales = (uint16_t *)panel + g * FL_LANES;
    int8_t *tiles = (int8_t *)panel + fl_scales_bytes(FL_Q8, groups) + g * FL_GROUP * FL_LANES;
    for (size_t lane = 0; lane < FL_LANES; lane++) {
        int8_t q[FL_GROUP];
        const fl_status status = quantize_group(x[lane], q, &scales[lane]);
        if (status != FL_OK) return status;
        for (size_t k = 0; k < FL_GROUP; k++) tiles[tile_index(lane, k)] = q[k];
    }
    return FL_OK;
}

// Group g of 16 rows of int8 with float scales, value by value.
static fl_status copy_q8(const fl_source *s, const size_t *rows, size_t count, void *panel, size_t g) {
    const size_t groups = s->n / FL_GROUP;
    float *scales = (float *)panel + g * FL_LANES;
    int8_t *tiles = (int8_t *)panel + fl_scales_bytes(FL_Q8_F32, groups) + g * FL_GROUP * FL_LANES;
    for (size_t lane = 0; lane < count; lane++) {
        const size_t at = rows[lane] * s->n + g * FL_GROUP;
        memcpy(&scales[lane], (const char *)s->scales + at / s->group * 4, 4);
        if (!isfinite(scales[lane])) return FL_BAD_VALUE;
        for (size_t k = 0; k < FL_GROUP; k++) tiles[tile_index(lane, k)] = ((const int8_t *)s->data)[at + k];
    }
    return FL_OK;
}

// 16 rows x n columns of f32, column by column.
static fl_status turn(float (*x)[FL_GROUP], size_t n, float (*columns)[FL_LANES]) {
    for (size_t k = 0; k < n; k++)
        for (size_t lane = 0; lane < FL_LANES; lane++) columns[k][lane] = x[lane][k];
    return FL_OK;
}

// One panel: its 16 rows, group by group.
static fl_status pack_panel(fl_type type, void *panels, const fl_source *s, size_t p, const fl_q4_rows *q4) {
    const size_t bytes = fl_panel_bytes(type, s->n), groups = (s->n + FL_GROUP - 1) / FL_GROUP;
    const size_t first = p * FL_LANES, count = s->d - first < FL_LANES ? s->d - first : FL_LANES;
    char *panel = (char *)panels + p * bytes;
    size_t rows[FL_LANES];
    for (size_t lane = 0; lane < count; lane++)
        rows[lane] = s->rows ? (size_t)s->rows[first + lane] : first + lane;
    if (type == FL_Q8 || type == FL_Q8_F32 || type == FL_Q4) memset(panel, 0, bytes); // scales and rows that are only padding
    for (size_t g = 0; g < groups; g++) {
        const size_t k = g * FL_GROUP, n = s->n - k < FL_GROUP ? s->n - k : FL_GROUP;
        float x[FL_LANES][FL_GROUP] = {{0}};
        fl_status status;
        if (type == FL_Q8_F32) {
            status = copy_q8(s, rows, count, panel, g);
        } else {
            for (size_t lane = 0; lane < count; lane++) load_group(s, rows[lane], k, n, x[lane]);
            status = type == FL_Q8   ? store_q8(panel, groups, g, x)
                     : type == FL_Q4 ? turn(x, n, q4->w + k)
                                     : store_floats(type, panel, g, x);
        }
        if (status != FL_OK) return status;
    }
    return type == FL_Q4 ? fl_q4_pack(panel, s, q4) : FL_OK;
}

typedef struct pack_job {
    fl_type type;
    void *panels;
    const fl_source *source;
    atomic_int status; // the last failure of any thread
} pack_job;

static void pack_share(void *arg, fl_team *team, size_t id) {
    pack_job *job = arg;
    size_t begin, end;
    fl_share((job->source->d + FL_LANES - 1) / FL_LANES, team, id, &begin, &end);
    fl_status status = FL_OK;
    fl_q4_rows q4 = {NULL, NULL, NULL, NULL};
    float(*room)[FL_LANES] = NULL;
    if (job->type == FL_Q4) {
        const size_t n = job->source->n;
        room = fl_alloc((3 * n + (n + FL_GROUP - 1) / FL_GROUP) * sizeof *room);
        if (room) q4 = (fl_q4_rows){room, room + n, room + 2 * n, room + 3 * n};
        else status = FL_NO_MEMORY;
    }
    for (size_t p = begin; p < end && status == FL_OK; p++)
        status = pack_panel(job->type, job->panels, job->source, p, &q4);
    fl_free(room);
    if (status != FL_OK) atomic_store(&job->status, (int)status);
}

fl_status fl_pack(fl_type type, void *panels, const fl_source *s, size_t threads) {
    if (fl_panel_bytes(type, s->n) == 0 || (s->type == FL_Q8_F32 && s->group == 0)) return FL_BAD_TENSOR;
    if (type == FL_Q8_F32 && (s->type != FL_Q8_F32 || s->group % FL_GROUP || s->n % s->group)) return FL_BAD_TENSOR;
    if (type == FL_Q4 && !s->kernels) return FL_BAD_TENSOR;
    if (s->rows)
        for (size_t r = 0; r < s->d; r++)
            if (s->rows[r] < 0 || (size_t)s->rows[r] >= s->d) return FL_BAD_TENSOR;
    pack_job job = {.type = type, .panels = panels, .source = s};
    atomic_init(&job.status, FL_OK);
    fl_parallel(threads, pack_share, &job);
    return (fl_status)atomic_load(&job.status);
}

// `count` columns from `first`, a multiple of 32, of a panel's row.
static void row_group(fl_type type, const char *panel, const int8_t *tiles, size_t lane, size_t first, size_t count,
                      float scale, float *out) {
    const size_t at = first * FL_LANES; // of all rows' columns before
    for (size_t k = 0; k < count; k++) {
        const size_t i = at + k * FL_LANES + lane;
        unsigned shift;
        switch (type) {
        case FL_F32: out[k] = ((const float *)panel)[i]; break;
        case FL_F16: out[k] = fl_f32_from_f16(((const uint16_t *)panel)[i]); break;
        case FL_BF16: out[k] = fl_f32_from_bf16(((const uint16_t *)panel)[i]); break;
        case FL_Q4: {
            const unsigned byte = (uint8_t)tiles[at / 2 + fl_q4_index(lane, k, &shift)];
            out[k] = (float)fl_q4_values[byte >> shift & 15] * scale;
            break;
        }
        default: out[k] = (float)tiles[at + tile_index(lane, k)] * scale;
        }
    }
}

void fl_matrix_row(const fl_matrix *w, size_t r, float *out) {
    const size_t lane = r % FL_LANES, groups = (w->n + FL_GROUP - 1) / FL_GROUP;
    const char *panel = (const char *)w->data + r / FL_LANES * fl_panel_bytes(w->type, w->n);
    const int8_t *tiles = (const int8_t *)panel + fl_scales_bytes(w->type, groups);
    const fl_fpenv before = fl_fpenv_set();
    for (size_t g = 0; g < groups; g++) {
        const size_t first = g * FL_GROUP, count = w->n - first < FL_GROUP ? w->n - first : FL_GROUP;
        const size_t at = g * FL_LANES + lane; // of the scale
        float scale = 0;
        if (w->type == FL_Q8_F32) scale = ((const float *)panel)[at];
        else if (w->type == FL_Q8 || w->type == FL_Q4) scale = fl_f32_from_f16(((const uint16_t *)panel)[at]);
        row_group(w->type, panel, tiles, lane, first, count, scale, out + first);
    }
    fl_fpenv_restore(before);
}
