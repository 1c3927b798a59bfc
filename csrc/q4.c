// Four-bit panels: a code for each weight into a table of 16 values, and a searched scale for each group of 32. A table
// with a 0 is for matrices that were pruned: their zeros stay.
//
// Without a calibration text the error that counts is each weight's own, squared and weighed a little by its size.
//
// With one it is that of the outputs, e H e^T with H (n, n) the sum of x x^T over the text's inputs x and e (1, n) a
// row's rounding errors. Columns are rounded one after the other, and later columns make up for the errors of earlier
// ones (GPTQ, Frantar et al. 2022; in the form of LDLQ, Chee et al. 2023): with H = U diag(D) U^T, U unit upper
// triangular, column k is rounded from w_k + sum over j < k of e_j U_jk. Then e H e^T is the sum of D_k times the
// square of what rounding column k lost. After that come two rounds of coordinate descent: each value, and then each
// group's scale, becomes the best one while all others stay as they are. That lowers e H e^T by another tenth.
//
// What is computed over the 16 rows of a panel at once is in kernels/round.h.
#include "q4.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "panels.h"

// The f16 nearest to a scale, but never infinite, nor zero unless the scale is zero.
static uint16_t scale_bits(float scale) {
    if (fabsf(scale) > 65504.0f) scale = scale > 0 ? 65504.0f : -65504.0f;
    const uint16_t bits = fl_f16_from_f32(scale);
    return scale == 0 || bits & 0x7fffu ? bits : bits | 1u;
}

// out (count, 16) = rows (count, s->n) times the errors (k, 16) of columns 0 .. k - 1; += with add. It is a matrix
// product in which the errors are an f32 panel and the rows are the tokens.
static void multiply_errors(const fl_source *s, const float *rows, size_t count, const float (*errors)[FL_LANES],
                            size_t k, float (*out)[FL_LANES], int add) {
    const fl_matrix panel = {.data = errors, .type = FL_F32, .d = FL_LANES, .n = k};
    const fl_inputs tokens = {.f = rows, .f_stride = s->n};
    s->kernels->matmul[FL_F32](&panel, 0, 1, &tokens, count, *out, FL_LANES, add);
}

// What codes stand for.
static const int8_t *table_of(const fl_source *s) { return s->values ? s->values : fl_q4_values; }

// The weight of each squared error of x (32, 16) while its scale is searched: the importance of its column, or without
// a calibration more for large weights than for small ones.
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

// Finds the 16 scales of a group x (32, 16), whose first of `count` columns is column k. Overwrites x. FL_BAD_VALUE: a
// value is too large for any scale, or NaN.
static fl_status find_scales(const fl_source *s, size_t k, size_t count, float (*x)[FL_LANES], float *scale) {
    float weight[FL_GROUP][FL_LANES], largest[FL_LANES] = {0}, size[FL_LANES], sign[FL_LANES];
    for (size_t i = 0; i < FL_GROUP; i++)
        for (size_t lane = 0; lane < FL_LANES; lane++) {
            const float a = fabsf(x[i][lane]), b = fabsf(largest[lane]);
            largest[lane] = a > b || !(a <= FLT_MAX) ? x[i][lane] : largest[lane]; // and keeps a NaN
        }
    for (size_t lane = 0; lane < FL_LANES; lane++) {
        size[lane] = fabsf(largest[lane]);
        if (!(size[lane] <= 65504.0f * 127.0f)) return FL_BAD_VALUE;
        if (size[lane] < 0x1p-25f) size[lane] = 0; // less than half the smallest f16
        sign[lane] = largest[lane] > 0 ? 1.0f : -1.0f;
    }
    for (size_t i = 0; i < FL_GROUP; i++)
        for (size_t lane = 0; lane < FL_LANES; lane++) x[i][lane] = size[lane] > 0 ? x[i][lane] / size[lane] : 0;
    weigh(s, k, count, (const float(*)[FL_LANES])x, weight);
    s->kernels->q4_search(table_of(s), (const float(*)[FL_LANES])x, (const float(*)[FL_LANES])weight, sign, scale);
    for (size_t lane = 0; lane < FL_LANES; lane++)
        scale[lane] = fl_f32_from_f16(scale_bits(scale[lane] * size[lane]));
    return FL_OK;
}

// Rounds a group, whose first column is k, after all columns before it.
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
    if (memchr(g->table, 0, 16)) // the scale is for the other weights, whatever the feedback to zeros is
        for (size_t i = 0; i < g->count; i++)
            for (size_t lane = 0; lane < FL_LANES; lane++)
                if (g->w[i][lane] == 0) copy[i][lane] = 0;
    const fl_status status = find_scales(s, k, g->count, copy, g->scale);
    if (status == FL_OK) s->kernels->q4_round(g, x, s->feedback ? u : NULL);
    return status;
}

// Betters a group by a round of coordinate descent, after all columns have been rounded.
static void better_group(const fl_source *s, size_t k, const fl_q4_rows *r, fl_q4_group *g) {
    float slope[FL_GROUP][FL_LANES], h[FL_GROUP * FL_GROUP];
    multiply_errors(s, s->products + k * s->n, g->count, (const float(*)[FL_LANES])r->error, s->n, slope, 0);
    for (size_t j = 0; j < g->count; j++)
        memcpy(h + j * FL_GROUP, s->products + (k + j) * s->n + k, g->count * sizeof(float));
    s->kernels->q4_descend(g, slope, h);
}

// Stores the codes of column k of a group, whose lines are still zero there.
static void store_column(const int8_t *table, const float *value, size_t k, uint8_t *lines) {
    uint8_t code[256];
    for (uint8_t c = 0; c < 16; c++) code[table[c] + 128] = c;
    for (size_t lane = 0; lane < FL_LANES; lane++) {
        unsigned shift;
        uint8_t *byte = &lines[fl_q4_index(lane, k, &shift)];
        *byte = (uint8_t)(*byte | code[(int)value[lane] + 128] << shift);
    }
}

fl_status fl_q4_pack(void *panel, const fl_source *s, const fl_q4_rows *r) {
    enum { ROUNDS = 2 }; // the third gains a hundredth
    const size_t groups = fl_groups(s->n);
    uint16_t *scales = panel;
    uint8_t *lines = (uint8_t *)panel + fl_scales_bytes(FL_Q4, groups);
    for (size_t round = 0; round <= (s->products ? ROUNDS : 0); round++)
        for (size_t i = 0; i < groups; i++) {
            const size_t k = i * FL_GROUP, count = s->n - k < FL_GROUP ? s->n - k : FL_GROUP;
            fl_q4_group g = {count, r->w + k, r->value + k, r->error + k, r->scale[i], table_of(s)};
            if (round > 0) {
                better_group(s, k, r, &g);
            } else {
                const fl_status status = round_group(s, k, r, &g);
                if (status != FL_OK) return status;
            }
        }
    for (size_t k = 0; k < s->n; k++)
        store_column(table_of(s), r->value[k], k % FL_GROUP, lines + k / FL_GROUP * fl_group_bytes(FL_Q4));
    for (size_t i = 0; i < groups * FL_LANES; i++) scales[i] = fl_f16_from_f32(r->scale[i / FL_LANES][i % FL_LANES]);
    return FL_OK;
}
