// Four-bit panels: codes into a table that is not an even grid, with a scale for each group of 32, searched.
//
// The table is Lloyd's (1982) for weights of trained models after they are scaled as the search scales them. It is
// longer on its negative side: a scale may be negative, and turns that side to where the group's largest weight is.
//
// With a calibration text the error that counts is that of the outputs, e H e^T with H the sum of x x^T over the text's
// inputs x. Columns are rounded one after the other, and what rounding one has cost is taken into account in those
// after it (GPTQ, Frantar et al. 2022; the form used here is LDLQ, Chee et al. 2023): with H = U diag(D) U^T, U unit
// upper triangular, column k is rounded from w_k + sum over j < k of e_j U_jk, and then e H e^T is the sum of D_k times
// the squared rounding errors. Then, a few times over, each value and each scale becomes what is best with all the
// others as they are (coordinate descent), which lowers e H e^T by another tenth.
#include "q4.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

const int8_t fl_q4_values[16] = {-127, -100, -78, -61, -47, -33, -20, -8, 1, 12, 24, 36, 50, 64, 81, 107};

size_t fl_q4_index(size_t lane, size_t k, unsigned *shift) {
    *shift = k / 4 % 2 * 4;
    return k / 8 * 64 + lane * 4 + k % 4;
}

// The f16 nearest to a scale, but not zero for what is not, nor infinite.
static uint16_t scale_bits(float scale) {
    if (fabsf(scale) > 65504.0f) scale = scale > 0 ? 65504.0f : -65504.0f;
    const uint16_t bits = fl_f16_from_f32(scale);
    return scale == 0 || bits & 0x7fffu ? bits : bits | 1u;
}

// out (count, 16) = or, with add, += errors of columns 0 .. k - 1 times rows (count, s->n): a matrix product in which
// the errors are the panel and the rows the tokens.
static void multiply_errors(const fl_source *s, const float *rows, size_t count, const float (*errors)[FL_LANES],
                            size_t k, float (*out)[FL_LANES], int add) {
    const fl_matrix panel = {.data = errors, .type = FL_F32, .d = FL_LANES, .n = k};
    const fl_inputs tokens = {.f = rows, .f_stride = s->n};
    s->kernels->matmul[FL_F32](&panel, 0, 1, &tokens, count, *out, FL_LANES, add);
}

// What each error of x (32, 16) counts when its scale is searched: where nothing is known of the inputs, those of large
// weights a little more.
static void weigh(const fl_source *s, size_t k, size_t count, const float (*x)[FL_LANES], float (*weight)[FL_LANES]) {
    float mean[FL_LANES] = {0};
    for (size_t i = 0; i < FL_GROUP; i++)
        for (size_t lane = 0; lane < FL_LANES; lane++) mean[lane] += x[i][lane] * x[i][lane] / FL_GROUP;
    for (size_t i = 0; i < FL_GROUP; i++)
        for (size_t lane = 0; lane < FL_LANES; lane++)
            weight[i][lane] = !s->importance ? sqrtf(mean[lane] + x[i][lane] * x[i][lane])
                              : i < count    ? s->importance[k + i]
                                             : 0;
}

// The 16 scales of x (32, 16), the first of `count` columns being k. Destroys x. FL_BAD_VALUE: too large, or no number.
static fl_status find_scales(const fl_source *s, size_t k, size_t count, float (*x)[FL_LANES], float *scale) {
    float weight[FL_GROUP][FL_LANES], largest[FL_LANES] = {0}, size[FL_LANES], sign[FL_LANES];
    for (size_t i = 0; i < FL_GROUP; i++)
        for (size_t lane = 0; lane < FL_LANES; lane++) {
            const float a = fabsf(x[i][lane]), b = fabsf(largest[lane]);
            largest[lane] = a > b || !(a <= FLT_MAX) ? x[i][lane] : largest[lane]; // a NaN stays
        }
    for (size_t lane = 0; lane < FL_LANES; lane++) {
        size[lane] = fabsf(largest[lane]);
        if (!(size[lane] <= 65504.0f * 127.0f)) return FL_BAD_VALUE;
        if (size[lane] < 0x1p-25f) size[lane] = 0; // less than half of the smallest scale
        sign[lane] = largest[lane] > 0 ? 1.0f : -1.0f;
    }
    for (size_t i = 0; i < FL_GROUP; i++)
        for (size_t lane = 0; lane < FL_LANES; lane++) x[i][lane] = size[lane] > 0 ? x[i][lane] / size[lane] : 0;
    weigh(s, k, count, (const float(*)[FL_LANES])x, weight);
    s->kernels->q4_search((const float(*)[FL_LANES])x, (const float(*)[FL_LANES])weight, sign, scale);
    for (size_t lane = 0; lane < FL_LANES; lane++)
        scale[lane] = fl_f32_from_f16(scale_bits(scale[lane] * size[lane]));
    return FL_OK;
}

// Columns k .. k + g->count - 1, those before them being rounded.
static fl_status round_group(const fl_source *s, size_t k, const fl_q4_rows *r, fl_q4_group *g) {
    float x[FL_GROUP][FL_LANES] = {{0}}, copy[FL_GROUP][FL_LANES], u[FL_GROUP * FL_GROUP];
    for (size_t i = 0; i < g->count; i++)
        for (size_t lane = 0; lane < FL_LANES; lane++)
            if (!(fabsf(g->w[i][lane]) <= FLT_MAX)) return FL_BAD_VALUE;
    memcpy(x, g->w, g->count * sizeof *x);
    if (s->feedback) {
        if (k > 0) multiply_errors(s, s->feedback + k * s->n, g->count, (const float(*)[FL_LANES])r->error, k, x, 1);
        for (size_t j = 0; j < g->count; j++)
            for (size_t i = j + 1; i < g->count; i++) u[j * FL_GROUP + i] = s->feedback[(k + i) * s->n + k + j];
    }
    memcpy(copy, x, sizeof x);
    const fl_status status = find_scales(s, k, g->count, copy, g->scale);
    if (status == FL_OK) s->kernels->q4_round(g, x, s->feedback ? u : NULL);
    return status;
}

// The same columns, all being rounded.
static void better_group(const fl_source *s, size_t k, const fl_q4_rows *r, fl_q4_group *g) {
    float slope[FL_GROUP][FL_LANES], h[FL_GROUP * FL_GROUP];
    multiply_errors(s, s->products + k * s->n, g->count, (const float(*)[FL_LANES])r->error, s->n, slope, 0);
    for (size_t j = 0; j < g->count; j++)
        memcpy(h + j * FL_GROUP, s->products + (k + j) * s->n + k, g->count * sizeof(float));
    s->kernels->q4_descend(g, slope, h);
}

// Codes of column k of a group.
static void store_column(const float *value, size_t k, uint8_t *tiles) {
    uint8_t code[256];
    for (uint8_t c = 0; c < 16; c++) code[fl_q4_values[c] + 128] = c;
    for (size_t lane = 0; lane < FL_LANES; lane++) {
        unsigned shift;
        uint8_t *byte = &tiles[fl_q4_index(lane, k, &shift)];
        *byte = (uint8_t)(*byte | code[(int)value[lane] + 128] << shift);
    }
}

fl_status fl_q4_pack(void *panel, const fl_source *s, const fl_q4_rows *r) {
    enum { ROUNDS = 2 }; // the third gains a hundredth
    const size_t groups = (s->n + FL_GROUP - 1) / FL_GROUP;
    uint16_t *scales = panel;
    uint8_t *tiles = (uint8_t *)panel + fl_scales_bytes(FL_Q4, groups);
    for (size_t round = 0; round <= (s->products ? ROUNDS : 0); round++)
        for (size_t i = 0; i < groups; i++) {
            const size_t k = i * FL_GROUP, count = s->n - k < FL_GROUP ? s->n - k : FL_GROUP;
            fl_q4_group g = {count, r->w + k, r->value + k, r->error + k, r->scale[i]};
            if (round > 0) {
                better_group(s, k, r, &g);
            } else {
                const fl_status status = round_group(s, k, r, &g);
                if (status != FL_OK) return status;
            }
        }
    for (size_t k = 0; k < s->n; k++)
        store_column(r->value[k], k % FL_GROUP, tiles + k / FL_GROUP * FL_GROUP * FL_LANES / 2);
    for (size_t i = 0; i < groups * FL_LANES; i++) scales[i] = fl_f16_from_f32(r->scale[i / FL_LANES][i % FL_LANES]);
    return FL_OK;
}

// ---- calibration ---------------------------------------------------------------------------------------------------

typedef struct factor_job {
    double *h;
    float *importance;
    size_t n;
} factor_job;

// h = U diag(D) U^T, from the last columns to the first, 32 at a time so that h is read n / 32 times. Every sum has one
// order, whoever computes it. Below the diagonal h is less the columns that are done, row j of it by symmetry column j.
static void factor_share(void *arg, fl_team *team, size_t id) {
    enum { COLUMNS = 32, CHUNK = 512 };
    const factor_job *f = arg;
    const size_t n = f->n;
    for (size_t end = n; end > 0;) {
        const size_t begin = end > COLUMNS ? end - COLUMNS : 0;
        if (id == 0) { // the block's own rows
            for (size_t j = end; j-- > begin;) {
                const double *row = f->h + j * n;
                f->importance[j] = (float)row[j];
                for (size_t i = begin; i < j; i++) {
                    const double u = row[i] / row[j];
                    double *to = f->h + i * n;
                    for (size_t k = 0; k <= i; k++) to[k] -= u * row[k];
                    to[j] = u;
                }
            }
        }
        fl_barrier(team, id);
        for (size_t from = 0; from < begin; from += CHUNK) {
            for (size_t i = from + id; i < begin; i += team->threads) { // rows above from have none of these columns
                double *to = f->h + i * n;
                const size_t last = i + 1 < from + CHUNK ? i + 1 : from + CHUNK;
                for (size_t j = end; j-- > begin;) {
                    const double *row = f->h + j * n;
                    const double u = row[i] / row[j];
                    for (size_t k = from; k < last; k++) to[k] -= u * row[k];
                    to[j] = u;
                }
            }
        }
        fl_barrier(team, id);
        end = begin;
    }
}

fl_status fl_factor(size_t n, double *h, float *importance, size_t threads) {
    for (size_t i = 0; i < n; i++)
        if (!(h[i * n + i] > 0 && h[i * n + i] <= DBL_MAX)) return FL_BAD_VALUE;
    factor_job job = {h, importance, n};
    fl_parallel(threads, factor_share, &job);
    return FL_OK;
}
