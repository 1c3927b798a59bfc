// The factors of a calibration's h = U diag(D) U^T, which tell q4.c how later columns make up for errors of earlier
// ones.
#include <float.h>

#include "threads.h"

typedef struct factoring {
    double *h; // (n, n)
    float *importance;
    size_t n;
} factoring;

// Goes from the last columns to the first, 32 at a time, so that h is read n / 32 times. A column that
// is done is subtracted from all before it: entry (i, k) on or below the diagonal then holds h minus the columns that
// are done, and entry (i, j) above it holds U's. Column j before it is done is read as row j, which is contiguous and
// equal by symmetry. Subtractions from one entry have one order, however many workers there are.
static void factor_share(void *arg, fl_team *team, size_t id) {
    enum { COLUMNS = 32, CHUNK = 512 };
    const factoring *f = arg;
    const size_t n = f->n;
    for (size_t end = n; end > 0;) {
        const size_t begin = end > COLUMNS ? end - COLUMNS : 0;
        if (id == 0) { // rows begin .. end - 1 among themselves
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
            for (size_t i = from + id; i < begin; i += team->threads) { // row i has columns up to i
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
    factoring factored = {h, importance, n};
    fl_parallel(threads, factor_share, &factored);
    return FL_OK;
}
