// Products of a few rows of floats with a page's keys or values, where these are floats; lines.h has those in int8.
#ifndef FL_GEMM_H
#define FL_GEMM_H

#include "vectors.h"

// ---- keys and values -----------------------------------------------------------------------------------------------

// How a page's keys (head_dim, 64) or values (64, stride) are stored. WIDE: converted to f32, for several strips.
typedef enum form { WIDE, F32, F16, Q8, Q4 } form;

typedef struct matrix {
    const char *data;
    size_t stride;    // elements from one row to the next
    const char *next; // a matrix of the same form that is needed next, and is fetched while this one is read
} matrix;

// Vector v, of 16 elements, of a row.
static FL_INLINE vf load_vector(const form kind, const matrix *m, size_t row, size_t v) {
    const size_t at = row * m->stride + v * FL_LANES;
    if (kind == F16) return vf_load_f16((const uint16_t *)(const void *)m->data + at);
    return vf_load((const float *)(const void *)m->data + at);
}

// Fetches of the next matrix what lies where `vectors` vectors of this one are read, from vector v of a row on.
static FL_INLINE void fetch_next(const form kind, const matrix *m, size_t row, size_t v, size_t vectors) {
    const size_t size = kind == F32 ? 4 : 2, at = row * m->stride + v * FL_LANES;
    for (size_t i = 0; kind != WIDE && i < vectors; i += FL_ALIGN / FL_LANES / size)
        FL_PREFETCH(m->next + (at + i * FL_LANES) * size);
}

// The rows of a matrix from `row` on.
static FL_INLINE matrix rows_from(const form kind, const matrix *m, size_t row) {
    const size_t at = row * m->stride * (kind == F16 ? 2 : 4);
    matrix rest = *m;
    rest.data += at;
    if (kind != WIDE) rest.next += at;
    return rest;
}

// Converts the first `vectors` vectors of the first rows to floats: once, for several strips.
static FL_INLINE matrix widen(const form kind, const matrix *m, size_t rows, size_t vectors, float *out) {
    for (size_t k = 0; k < rows; k++)
        for (size_t v = 0; v < vectors; v++) {
            if (v % 4 == 0) fetch_next(kind, m, k, v, 4);
            vf_store(out + k * m->stride + v * FL_LANES, load_vector(kind, m, k, v));
        }
    return (matrix){.data = (const char *)out, .stride = m->stride};
}

// ---- products ------------------------------------------------------------------------------------------------------

// Rows of a strip. Sums of 6 rows x 4 zmm, or x 1 pair of ymm, leave registers for what they are multiplied with.
enum { STRIP_ROWS = 6 };

// c[r][j] = c[r][j] * scale[r] + sum over k < n of a[r][k] * b[k][j]; without scale, the sum alone.
typedef struct gemm {
    size_t n;       // k
    size_t vectors; // j, in vectors of 16
    const float *a;
    size_t a_stride;
    const matrix *b;
    const float *scale;
    float *c;
    size_t c_stride;
} gemm;

// A tile of it: R rows x V vectors, from vector v0 on.
static FL_INLINE void gemm_tile(const size_t R, const size_t V, const form kind, const gemm *whole, size_t v0) {
    const gemm m = *whole; // copies, which stay in registers
    const matrix b = *m.b;
    vf sum[STRIP_ROWS][4];
    float *c = m.c + v0 * FL_LANES;
    FL_UNROLL for (size_t r = 0; r < R; r++)
        FL_UNROLL for (size_t v = 0; v < V; v++)
            sum[r][v] = m.scale ? vf_mul(vf_load(c + r * m.c_stride + v * FL_LANES), vf_set1(m.scale[r]))
                                 : vf_set1(0.0f);
    for (size_t k = 0; k < m.n; k++) {
        vf w[4];
        fetch_next(kind, &b, k, v0, V);
        FL_UNROLL for (size_t v = 0; v < V; v++) w[v] = load_vector(kind, &b, k, v0 + v);
        FL_UNROLL for (size_t r = 0; r < R; r++) {
            const vf x = vf_set1(m.a[r * m.a_stride + k]);
            FL_UNROLL for (size_t v = 0; v < V; v++) sum[r][v] = vf_fma(w[v], x, sum[r][v]);
        }
    }
    FL_UNROLL for (size_t r = 0; r < R; r++)
        FL_UNROLL for (size_t v = 0; v < V; v++) vf_store(c + r * m.c_stride + v * FL_LANES, sum[r][v]);
}

// All vectors of R rows, as many at a time as the registers have room for.
static FL_INLINE void gemm_rows(const size_t R, const form kind, const gemm *m) {
    const size_t fit = FL_MUL_VECTORS / R, most = fit > 4 ? 4 : fit > 1 ? fit : 1;
    size_t v = 0;
    for (; v + most <= m->vectors; v += most) gemm_tile(R, most, kind, m, v);
    if (most > 3 && v + 3 <= m->vectors) {
        gemm_tile(R, 3, kind, m, v);
        v += 3;
    }
    if (most > 2 && v + 2 <= m->vectors) {
        gemm_tile(R, 2, kind, m, v);
        v += 2;
    }
    if (most > 1 && v < m->vectors) gemm_tile(R, 1, kind, m, v);
}

// One function for each form of b, for 1 to STRIP_ROWS rows.
#define GEMM(name, kind)                                    \
    static void gemm_##name(size_t rows, const gemm *m) {   \
        switch (rows) {                                     \
        case 1: gemm_rows(1, kind, m); break;               \
        case 2: gemm_rows(2, kind, m); break;               \
        case 3: gemm_rows(3, kind, m); break;               \
        case 4: gemm_rows(4, kind, m); break;               \
        case 5: gemm_rows(5, kind, m); break;               \
        case 6: gemm_rows(6, kind, m); break;               \
        }                                                   \
    }
GEMM(wide, WIDE)
GEMM(f32, F32)
GEMM(f16, F16)
#undef GEMM

static FL_INLINE void multiply(const form kind, size_t rows, const gemm *m) {
    static void (*const of[])(size_t, const gemm *) = {gemm_wide, gemm_f32, gemm_f16};
    of[kind](rows, m);
}

#endif
