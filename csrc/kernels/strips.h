// Strips of rows of queries, see attend.h: which positions they see, the memory they work in, and how their scores of a
// page become probabilities.
#ifndef FL_STRIPS_H
#define FL_STRIPS_H

#include <math.h>

#include "arguments.h"
#include "gemm.h"
#include "lines.h"
#include "vectors.h"

// The working memory of a call; see fl_attend_floats.
typedef struct workspace {
    float *wide;            // (64, stride) a page's keys or values as floats
    float *scores;          // (rows, 64), then probabilities relative to the maximum
    page_weights *weights;  // (rows,) for values in int8
    float *sums;            // (rows, 16) sums of probabilities, lane by lane
    float *scale;           // (rows,) what earlier sums are multiplied with, now that the maximum is another
    float *max, *sum, *out; // of a run, until it is merged with those before it
} workspace;

static FL_INLINE workspace workspace_of(const fl_attend *a) {
    const size_t rows = fl_round_up(a->rows, FL_LANES);
    workspace w = {.wide = a->work};
    w.scores = w.wide + FL_PAGE * a->stride;
    w.weights = (page_weights *)(void *)(w.scores + rows * FL_PAGE);
    w.sums = (float *)(void *)(w.weights + rows);
    w.scale = w.sums + rows * FL_LANES;
    w.max = w.scale + rows;
    w.sum = w.max + rows;
    w.out = w.sum + rows;
    return w;
}

// Rows row .. row + rows - 1 of a call, and which positions they see.
typedef struct strip {
    size_t row, rows;
    size_t first, last;         // of a run: those that one of the rows or more sees, from the beginning of a page
    size_t from;                // of the sequence: the first position that one of the rows sees
    size_t all_from, all_limit; // of the sequence: the positions that every row sees, if there are any
} strip;

static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static inline size_t strips_of(const fl_attend *a) { return (a->rows + STRIP_ROWS - 1) / STRIP_ROWS; }

// Strip i of a call, in the positions [begin, end) of a run.
static inline strip strip_of(const fl_attend *a, size_t i, size_t begin, size_t end) {
    const size_t n = strips_of(a), row = a->rows * i / n;
    strip t = {.row = row, .rows = a->rows * (i + 1) / n - row, .last = begin, .from = end, .all_limit = end};
    for (size_t r = row; r < row + t.rows; r++) {
        t.from = a->from[r] < t.from ? a->from[r] : t.from;
        t.all_from = a->from[r] > t.all_from ? a->from[r] : t.all_from;
        t.all_limit = a->limit[r] < t.all_limit ? a->limit[r] : t.all_limit;
        t.last = a->limit[r] > t.last ? a->limit[r] : t.last;
    }
    t.first = t.from > begin ? t.from / FL_PAGE * FL_PAGE : begin;
    t.last = t.last < end ? t.last : end;
    return t;
}

// Caps the scores of a strip, in `vectors` vectors of a page, and adds the page's mask to them.
static FL_INLINE void strip_cap(const fl_attend *a, const workspace *w, const strip *t, const char *page,
                                size_t vectors) {
    const float *mask = a->mask ? (const float *)(const void *)(page + a->mask) : NULL;
    if (!(a->softcap > 0) && !mask) return;
    for (size_t r = t->row; r < t->row + t->rows; r++)
        for (size_t v = 0; v < vectors; v++) {
            float *at = w->scores + r * FL_PAGE + v * FL_LANES;
            vf s = vf_load(at);
            if (a->softcap > 0) s = capped(s, a->softcap);
            vf_store(at, mask ? vf_add(s, vf_load(mask + v * FL_LANES)) : s);
        }
}

// The part of a page that lies in [from, limit): positions [begin, end) relative to the page's first, `start`. None:
// begin = end.
typedef struct seen_part {
    size_t begin, end;
} seen_part;

static FL_INLINE seen_part part_of(size_t from, size_t limit, size_t start) {
    const size_t low = from > start ? smaller(from - start, FL_PAGE) : 0;
    const size_t high = limit > start ? smaller(limit - start, FL_PAGE) : 0;
    return (seen_part){low < high ? low : high, high};
}

// Sets the scores of row r to -infinity where it does not see the page's positions.
static FL_INLINE void hide(const fl_attend *a, const workspace *w, size_t r, size_t start) {
    if (a->from[r] <= start && a->limit[r] >= start + FL_PAGE) return;
    const seen_part part = part_of(a->from[r], a->limit[r], start);
    const vf none = vf_set1(-INFINITY), from = vf_set1((float)part.begin), limit = vf_set1((float)part.end);
    float *row = w->scores + r * FL_PAGE;
    for (size_t v = 0; v < FL_PAGE; v += FL_LANES) {
        const vf position = vf_add(lanes_index(), vf_set1((float)v));
        const vf s = vf_select_gt(limit, position, vf_load(row + v), none);
        vf_store(row + v, vf_select_gt(from, position, none, s));
    }
}

// What is subtracted from scores. A row that has seen nothing has the maximum -infinity; 0 gives it e^-infinity = 0,
// not NaN.
static inline float subtrahend(float max) { return max == -INFINITY ? 0.0f : max; }

// Turns a strip's scores of the page at `start` into probabilities relative to each row's maximum so far, which may
// grow, and adds them to the row's sums.
static FL_INLINE void strip_softmax(const fl_attend *a, const workspace *w, const strip *t, size_t start, float *max) {
    float before[FL_LANES] = {0}, now[FL_LANES] = {0}; // each row's maximum
    for (size_t r = t->row; r < t->row + t->rows; r++) {
        hide(a, w, r, start);
        const float *row = w->scores + r * FL_PAGE;
        const vf low = vf_max(vf_load(row), vf_load(row + 16)), high = vf_max(vf_load(row + 32), vf_load(row + 48));
        const float most = lanes_max(vf_max(low, high));
        before[r - t->row] = max[r];
        now[r - t->row] = max[r] = most > max[r] ? most : max[r];
    }
    const vf old = vf_load(before), new = vf_load(now); // -infinity less -infinity is NaN: 0 where it has not grown
    float scale[FL_LANES];
    vf_store(scale, vf_exp(vf_select_gt(new, old, vf_sub(old, new), vf_set1(0.0f))));
    for (size_t r = t->row; r < t->row + t->rows; r++) {
        float *row = w->scores + r * FL_PAGE, *sums = w->sums + r * FL_LANES;
        const vf most = vf_set1(subtrahend(max[r]));
        vf p[4];
        FL_UNROLL for (size_t v = 0; v < 4; v++) {
            p[v] = vf_exp(vf_sub(vf_load(row + v * FL_LANES), most));
            vf_store(row + v * FL_LANES, p[v]);
        }
        w->scale[r] = scale[r - t->row];
        const vf total = vf_add(vf_add(p[0], p[1]), vf_add(p[2], p[3]));
        vf_store(sums, vf_fma(vf_load(sums), vf_set1(w->scale[r]), total));
    }
}

#endif
