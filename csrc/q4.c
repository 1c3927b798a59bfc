// Four-bit panels: codes into a table that is not an even grid, with a scale for each group of 32, searched.
//
// The table is Lloyd's (1982) for weights of trained models after they are scaled as `search` scales them. It is longer
// on its negative side: a scale may be negative, and turns that side to where the group's largest weight is.
//
// With a calibration text the error that counts is that of the outputs, e H e^T with H the sum of x x^T over the text's
// inputs x. Columns are rounded one after the other, and what rounding one has cost is taken into account in those
// after it (GPTQ, Frantar et al. 2022; the form used here is LDLQ, Chee et al. 2023): with H = U diag(D) U^T, U unit
// upper triangular, column k is rounded from w_k + sum over j < k of e_j U_jk, and then e H e^T is the sum of D_k times
// the squared rounding errors.
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

void fl_q4_fill(fl_q4_grid *g) {
    for (int i = -128; i < 128; i++) {
        uint8_t best = 0;
        for (uint8_t c = 1; c < 16; c++)
            if (abs(i - fl_q4_values[c]) < abs(i - fl_q4_values[best])) best = c;
        g->code[(uint8_t)i] = best;
        g->value[(uint8_t)i] = (float)fl_q4_values[best];
    }
}

// The low byte of x rounded to an integer, at most 127 either way: adding 1.5 * 2^23 leaves no bits for a fraction, and
// floats above zero are ordered as their bits are.
static inline uint8_t round_byte(float x) {
    enum { LEAST = 0x4b400000 - 127, MOST = 0x4b400000 + 127 };
    int32_t bits;
    x += 12582912.0f;
    memcpy(&bits, &x, 4);
    bits = bits > MOST ? MOST : bits;
    bits = bits < LEAST ? LEAST : bits;
    return (uint8_t)bits;
}

// Sum of a[i] * b[i] over a group, in eight parts that a compiler may put side by side.
static inline float dot(const float *a, const float *b) {
    float sum[8] = {0};
    for (size_t i = 0; i < FL_GROUP; i += 8)
        for (size_t j = 0; j < 8; j++) sum[j] += a[i + j] * b[i + j];
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

// Of x rounded with a scale: the scale of least weighted squared error for these codes, and by how much that error is
// below the one of all zeros.
typedef struct fit {
    float scale, gain;
} fit;

static fit try_scale(const fl_q4_grid *g, const float *x, const float *weight, const float *wx, float scale) {
    const float inverse = 1.0f / scale;
    float t[FL_GROUP], v[FL_GROUP];
    uint8_t byte[FL_GROUP];
    for (size_t i = 0; i < FL_GROUP; i++) byte[i] = round_byte(x[i] * inverse);
    for (size_t i = 0; i < FL_GROUP; i++) v[i] = g->value[byte[i]];
    const float a = dot(wx, v);
    for (size_t i = 0; i < FL_GROUP; i++) t[i] = weight[i] * v[i];
    const float b = dot(t, v);
    const float best = b > 0 ? a / b : 0;
    return (fit){best, a * best};
}

// The scale of a group, |x| <= 1 with 1 reached, `largest` being that value: from scales that put it at the table's
// long end, its short end and between, the best is refined.
static float search(const fl_q4_grid *g, const float *x, const float *weight, float largest) {
    enum { STEPS = 7 };
    float wx[FL_GROUP];
    for (size_t i = 0; i < FL_GROUP; i++) wx[i] = weight[i] * x[i];
    fit best = {-largest / 127.0f, 0};
    for (int i = 0; i < 2 * STEPS; i++) {
        const float end = (i < STEPS ? -127.0f : 127.0f) * (0.9f + 0.06f * (float)(i % STEPS));
        const fit found = try_scale(g, x, weight, wx, largest / end);
        if (found.gain > best.gain) best = found;
    }
    for (int i = 0; i < 2 && best.scale != 0; i++) {
        const fit found = try_scale(g, x, weight, wx, best.scale);
        if (!(found.gain > best.gain)) break;
        best = found;
    }
    return best.scale;
}

// The f16 nearest to a scale, but not zero for what is not, nor infinite.
static uint16_t scale_bits(float scale) {
    if (fabsf(scale) > 65504.0f) scale = scale > 0 ? 65504.0f : -65504.0f;
    const uint16_t bits = fl_f16_from_f32(scale);
    return scale == 0 || bits & 0x7fffu ? bits : bits | 1u;
}

// A row of a group on its way to codes.
typedef struct group_row {
    float w[FL_GROUP];      // the weights
    float x[FL_GROUP];      // from what they are rounded: with what the columns before this group have cost
    float weight[FL_GROUP]; // of the squared error of each
    const float *u;         // (32, 32) the group's square of s->feedback; NULL: columns do not depend
    size_t count;           // columns that there are
} group_row;

// Codes with a scale, and the errors w - value * scale.
static void round_row(const fl_q4_grid *g, const group_row *r, float scale, uint8_t *code, float *errors) {
    const float inverse = scale != 0 ? 1.0f / scale : 0;
    float x[FL_GROUP];
    memcpy(x, r->x, sizeof x);
    for (size_t k = 0; k < r->count; k++) {
        const uint8_t byte = round_byte(x[k] * inverse);
        const float value = g->value[byte] * scale;
        code[k] = g->code[byte];
        errors[k] = r->w[k] - value;
        if (r->u)
            for (size_t j = k + 1; j < FL_GROUP; j++) x[j] += errors[k] * r->u[k * FL_GROUP + j];
    }
}

// What the weights' errors count where nothing is known of their inputs: large weights a little more.
static void guess_weights(const float *x, float *weight) {
    const float mean = dot(x, x) / FL_GROUP;
    for (size_t k = 0; k < FL_GROUP; k++) weight[k] = sqrtf(mean + x[k] * x[k]);
}

// One row's scale, codes and errors.
static fl_status quantize_row(const fl_q4_grid *g, group_row *r, const fl_source *s, size_t k, uint16_t *scale,
                              uint8_t *code, float *errors) {
    float largest = 0, x[FL_GROUP];
    int finite = 1;
    for (size_t i = 0; i < FL_GROUP; i++) {
        finite &= fabsf(r->w[i]) <= FLT_MAX;
        largest = fabsf(r->x[i]) > fabsf(largest) ? r->x[i] : largest;
    }
    if (!finite || !(fabsf(largest) <= 65504.0f * 127.0f)) return FL_BAD_VALUE;
    if (fabsf(largest) < 0x1p-25f) largest = 0; // less than half of the smallest scale
    for (size_t i = 0; i < FL_GROUP; i++) x[i] = largest != 0 ? r->x[i] / fabsf(largest) : 0;
    if (s->importance)
        for (size_t i = 0; i < FL_GROUP; i++) r->weight[i] = i < r->count ? s->importance[k + i] : 0;
    else
        guess_weights(x, r->weight);
    *scale = scale_bits(largest != 0 ? search(g, x, r->weight, largest > 0 ? 1.0f : -1.0f) * fabsf(largest) : 0);
    round_row(g, r, fl_f32_from_f16(*scale), code, errors);
    return FL_OK;
}

// x[lane][0..31] += sum over j < k of errors[lane][j] * feedback[j][k ..]: what is already lost, by way of the inputs
// that go together.
static void feed_back(const fl_source *s, size_t k, size_t count, const float *errors, group_row *rows) {
    enum { BLOCK = 64 };
    for (size_t begin = 0; begin < k; begin += BLOCK) {
        const size_t end = k - begin < BLOCK ? k : begin + BLOCK;
        float u[BLOCK][FL_GROUP] = {{0}};
        for (size_t j = begin; j < end; j++) memcpy(u[j - begin], s->feedback + j * s->n + k, count * sizeof(float));
        for (size_t lane = 0; lane < FL_LANES; lane++) {
            const float *e = errors + lane * s->n;
            float sum[FL_GROUP];
            memcpy(sum, rows[lane].x, sizeof sum);
            for (size_t j = begin; j < end; j++)
                for (size_t i = 0; i < FL_GROUP; i++) sum[i] += e[j] * u[j - begin][i];
            memcpy(rows[lane].x, sum, sizeof sum);
        }
    }
}

fl_status fl_q4_store(const fl_q4_grid *g, uint16_t *scales, uint8_t *tiles, const fl_source *s, size_t k,
                      float (*x)[FL_GROUP], float *errors) {
    const size_t count = s->n - k < FL_GROUP ? s->n - k : FL_GROUP;
    float u[FL_GROUP * FL_GROUP] = {0};
    group_row rows[FL_LANES];
    for (size_t lane = 0; lane < FL_LANES; lane++) {
        group_row *r = &rows[lane];
        memcpy(r->w, x[lane], sizeof r->w);
        memcpy(r->x, x[lane], sizeof r->x);
        r->u = errors ? u : NULL;
        r->count = count;
    }
    if (errors) {
        feed_back(s, k, count, errors, rows);
        for (size_t j = 0; j < count; j++)
            memcpy(u + j * FL_GROUP, s->feedback + (k + j) * s->n + k, count * sizeof(float));
    }
    for (size_t lane = 0; lane < FL_LANES; lane++) {
        uint8_t code[FL_GROUP] = {0};
        float missed[FL_GROUP];
        const fl_status status = quantize_row(g, &rows[lane], s, k, &scales[lane], code, missed);
        if (status != FL_OK) return status;
        if (errors) memcpy(errors + lane * s->n + k, missed, count * sizeof(float));
        for (size_t i = 0; i < FL_GROUP; i++) {
            unsigned shift;
            uint8_t *byte = &tiles[fl_q4_index(lane, i, &shift)];
            *byte = (uint8_t)(*byte | code[i] << shift);
        }
    }
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
    double mean = 0;
    for (size_t i = 0; i < n; i++) mean += h[i * n + i] / (double)n;
    if (!(mean <= DBL_MAX)) return FL_BAD_VALUE;
    const double damp = mean > 0 ? 0.01 * mean : 1;
    for (size_t i = 0; i < n; i++) h[i * n + i] += damp;
    factor_job job = {h, importance, n};
    fl_parallel(threads, factor_share, &job);
    return FL_OK;
}
