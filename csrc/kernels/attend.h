// Attention of rows of queries to a range of a sequence's positions: an online softmax (Milakov and Gimelshein, 2018),
// page by page, as in FlashAttention (Dao et al., 2022).
//
//     positions   0        64       128           512                  1024        end
//     pages       | page 0 | page 1 | ..  page 7  | page 8 | ..        | page 16 | ..
//     runs        |             run 0             |       run 1        |    run 2
//                   max, sum, out of run 0   merge with those of run 1   merge with those of run 2
//
// A run is FL_RUN positions, and begins anew: its maximum, sum and output depend on no other run. Runs are merged in
// order. So different workers can compute different runs, and the bits are those of one worker that computes all.
//
// Rows are cut into strips of up to STRIP_ROWS queries, whose sums stay in registers. A page's keys are multiplied with
// all strips, each strip's scores become probabilities, and the page's values are weighed with them:
//
//     for each page:   keys    x strip 0, strip 1, ..  ->  scores -> hidden where not seen -> probabilities, max, sum
//                      values  x strip 0, strip 1, ..  ->  out, after scaling it for a maximum that has grown
//
// Products are those of gemm.h where keys and values are floats, and of lines.h where they are int8.
#ifndef FL_ATTEND_H
#define FL_ATTEND_H

#include <math.h>
#include <string.h>

#include "gemm.h"
#include "lines.h"
#include "strips.h"

// ---- a page of floats ----------------------------------------------------------------------------------------------

static FL_INLINE matrix keys_of(const fl_attend *a, const char *page) {
    return (matrix){.data = page + a->keys, .stride = FL_PAGE};
}

static FL_INLINE matrix values_of(const fl_attend *a, const char *page) {
    return (matrix){.data = page + a->values, .stride = a->stride};
}

// Scores of a strip: its products with `vectors` vectors of a page's keys.
static FL_INLINE void strip_scores(const form kind, const fl_attend *a, const workspace *w, const strip *t,
                                   const matrix *keys, size_t vectors) {
    multiply(kind, t->rows, &(gemm){.n = a->head_dim, .vectors = vectors, .a = a->q + t->row * a->stride,
                                    .a_stride = a->stride, .b = keys, .c = w->scores + t->row * FL_PAGE,
                                    .c_stride = FL_PAGE});
}

// out (rows, stride) of a strip = out * scale + the page's values, weighed with the strip's probabilities. Each row
// takes the values that it sees and no others: 0 times a value that is not finite would be NaN. What all rows see is
// multiplied for all of them at once, and the few positions beyond that, at the end of what the strip sees, row by row:
//
//     position    0 ......... 58 59 60 61       a causal strip: the query of the next token sees one position more
//     row 0       x x x x x x x
//     row 1       x x x x x x x  x
//     row 2       x x x x x x x  x  x
//                  all at once  | row by row
//
// Where rows of a window begin to see this page at different positions, everything is multiplied row by row.
static FL_INLINE void weigh_values(const form kind, const fl_attend *a, const workspace *w, const strip *t,
                                   size_t start, const matrix *values, float *out) {
    static const float one = 1;
    const size_t stride = a->stride, vectors = stride / FL_LANES;
    const float *p = w->scores + t->row * FL_PAGE, *scale = start == t->first ? NULL : w->scale + t->row;
    const seen_part all = part_of(t->all_from, t->all_limit, start);
    const int alike = t->all_from <= start || t->all_from == t->from; // the rows begin to see the page at one position
    out += t->row * stride;
    gemm m = {.vectors = vectors, .a_stride = FL_PAGE, .c_stride = stride};
    if (alike) {
        const matrix rest = rows_from(kind, values, all.begin);
        m.n = all.end - all.begin, m.a = p + all.begin, m.b = &rest, m.scale = scale, m.c = out;
        multiply(kind, t->rows, &m);
        if (t->all_limit >= t->last || all.end == FL_PAGE) return;
    }
    for (size_t r = 0; r < t->rows; r++) {
        const seen_part part = part_of(a->from[t->row + r], a->limit[t->row + r], start);
        const size_t begin = alike && part.begin < all.end ? all.end : part.begin;
        if (alike && begin == part.end) continue;
        const matrix rest = rows_from(kind, values, begin);
        m.n = part.end - begin, m.a = p + r * FL_PAGE + begin, m.b = &rest, m.c = out + r * stride;
        m.scale = alike ? &one : scale ? scale + r : NULL;
        multiply(kind, 1, &m);
    }
}

// How many vectors of the page at `start`, up to 4, a strip needs: those that its rows see of it, and those before.
static FL_INLINE size_t vectors_of(const strip *t, size_t start) {
    return (smaller(t->last - start, FL_PAGE) + FL_LANES - 1) / FL_LANES;
}

// Adds the page at `start`, of a run [begin, end), to max, the sums and out of all strips.
static FL_INLINE void attend_floats(const form kind, const fl_attend *a, const workspace *w, size_t begin, size_t end,
                                    size_t start, float *max, float *out) {
    const size_t strips = strips_of(a), seen = smaller(end - start, FL_PAGE);
    const char *page = a->pages[start / FL_PAGE];
    matrix keys = keys_of(a, page), values = values_of(a, page);
    keys.next = values.data;
    values.next = start + FL_PAGE < end ? keys_of(a, a->pages[start / FL_PAGE + 1]).data : values.data;
    if (strips > 1 && kind != F32) keys = widen(kind, &keys, a->head_dim, (seen + FL_LANES - 1) / FL_LANES, w->wide);
    for (size_t i = 0; i < strips; i++) {
        const strip t = strip_of(a, i, begin, end);
        if (start < t.first || start >= t.last) continue;
        strip_scores(keys.next ? kind : WIDE, a, w, &t, &keys, vectors_of(&t, start));
        if (strips > 1) keys.next = NULL; // the first strip has fetched what comes next
        strip_cap(a, w, &t, page, vectors_of(&t, start));
        strip_softmax(a, w, &t, start, max);
    }
    if (strips > 1 && kind != F32) values = widen(kind, &values, seen, a->stride / FL_LANES, w->wide);
    for (size_t i = 0; i < strips; i++) {
        const strip t = strip_of(a, i, begin, end);
        if (start < t.first || start >= t.last) continue;
        weigh_values(values.next ? kind : WIDE, a, w, &t, start, &values, out);
        if (strips > 1) values.next = NULL;
    }
}

// ---- a page of int8 ------------------------------------------------------------------------------------------------

// A page's keys as lines, of `vectors` vectors of positions: as they are, or unpacked to the working memory. `next` is
// the next page, or this one.
static FL_INLINE page_lines key_lines(const form kind, const fl_attend *a, const workspace *w, const char *page,
                                      const char *next, size_t vectors) {
    const char *keys = page + a->keys;
    const float *scales = (const float *)(const void *)(keys + FL_PAGE * a->stride);
    if (kind == Q4) {
        int8_t *out = (int8_t *)(w->wide + fl_groups(a->stride) * FL_PAGE);
        unpack_keys(keys, next + a->keys, a->stride, vectors, out, w->wide);
        keys = (const char *)out;
        scales = w->wide;
    }
    return (page_lines){.data = (const int8_t *)keys, .vectors = FL_PAGE / FL_LANES, .scales = scales,
                        .next = kind == Q4 ? keys : next + a->keys};
}

// Its values as they are, but scales of f16 as floats, which go behind the unpacked keys: all that takes less than 64
// rows of floats.
static FL_INLINE page_lines value_lines(const form kind, const fl_attend *a, const workspace *w, const char *page,
                                        const char *next) {
    const char *values = page + a->values;
    const float *scales = (const float *)(const void *)(values + FL_PAGE * a->stride);
    if (kind == Q4) {
        const uint16_t *halves = (const uint16_t *)(const void *)(values + FL_PAGE * a->stride / 2);
        float *to = w->wide + fl_groups(a->stride) * FL_PAGE + FL_PAGE * a->stride / sizeof(float);
        for (size_t i = 0; i < fl_groups(a->stride) * FL_PAGE; i += FL_LANES) vf_store(to + i, vf_load_f16(halves + i));
        scales = to;
    }
    return (page_lines){.data = (const int8_t *)values, .vectors = a->stride / FL_LANES, .scales = scales,
                        .next = next + a->values};
}

// strip_scores for keys in int8.
static FL_INLINE void strip_scores_q8(const fl_attend *a, const workspace *w, const strip *t, const page_lines *keys,
                                      size_t vectors) {
    for (size_t r = t->row, end = t->row + t->rows; r < end; r += TILE_ROWS)
        multiply_keys(smaller(end - r, TILE_ROWS),
                     &(key_product){.keys = keys, .q = a->q8 + r * fl_groups(a->head_dim), .depth = a->stride,
                                    .vectors = vectors, .scores = w->scores + r * FL_PAGE});
}

// weigh_values for values in int8. What a row does not see has the weight 0, and as integers are never NaN, that hides
// it.
static FL_INLINE void weigh_values_q8(const form kind, const fl_attend *a, const workspace *w, const strip *t,
                                      size_t start, const page_lines *values, float *out) {
    const seen_part any = part_of(t->from, t->last, start); // nothing, if no row of the strip sees anything
    const size_t vectors = a->stride / FL_LANES, together = kind == Q4 ? FL_GROUP / FL_LANES : vectors; // with a scale
    for (size_t first = 0; first < vectors; first += together) {
        const float *scales = values->scales + first / together * FL_PAGE;
        for (size_t r = t->row; r < t->row + t->rows; r++) {
            const seen_part part = part_of(a->from[r], a->limit[r], start);
            round_weights(w->scores + r * FL_PAGE, scales, part.begin, part.end, w->weights + r);
        }
        for (size_t r = t->row, end = t->row + t->rows; r < end; r += TILE_ROWS) {
            const value_product p = {.values = values, .w = w->weights + r,
                                     .scale = start == t->first ? NULL : w->scale + r,
                                     .begin = any.begin / FL_LANES * FL_LANES, .end = fl_round_up(any.end, FL_LANES),
                                     .first = first, .vectors = smaller(first + together, vectors),
                                     .out = out + r * a->stride};
            if (kind == Q4) multiply_values_q4(smaller(end - r, TILE_ROWS), &p);
            else multiply_values_q8(smaller(end - r, TILE_ROWS), &p);
        }
    }
}

// Fetches the scales of a page, which lie behind its keys and behind its values.
static FL_INLINE void fetch_scales(const form kind, const fl_attend *a, const char *page) {
    const size_t groups = fl_groups(a->head_dim), of_values = kind == Q4 ? groups : 1, size = kind == Q4 ? 2 : 4;
    const char *keys = page + a->keys + FL_PAGE * a->stride * (kind == Q4 ? 6 : 8) / 8;
    const char *values = page + a->values + FL_PAGE * a->stride * (kind == Q4 ? 4 : 8) / 8;
    for (size_t i = 0; i < groups * FL_PAGE * size; i += FL_ALIGN) FL_PREFETCH(keys + i);
    for (size_t i = 0; i < of_values * FL_PAGE * size; i += FL_ALIGN) FL_PREFETCH(values + i);
}

// attend_floats for keys and values in int8 or fewer bits.
static FL_INLINE void attend_lines(const form kind, const fl_attend *a, const workspace *w, size_t begin, size_t end,
                                   size_t start, float *max, float *out) {
    const char *page = a->pages[start / FL_PAGE];
    const char *next = start + FL_PAGE < a->end ? a->pages[start / FL_PAGE + 1] : page;
    const size_t seen = smaller(end - start, FL_PAGE);
    page_lines keys = key_lines(kind, a, w, page, next, (seen + FL_LANES - 1) / FL_LANES);
    page_lines values = value_lines(kind, a, w, page, next);
    fetch_scales(kind, a, next);
    for (size_t i = 0; i < strips_of(a); i++) {
        const strip t = strip_of(a, i, begin, end);
        if (start < t.first || start >= t.last) continue;
        strip_scores_q8(a, w, &t, &keys, vectors_of(&t, start));
        strip_cap(a, w, &t, page, vectors_of(&t, start));
        strip_softmax(a, w, &t, start, max);
        weigh_values_q8(kind, a, w, &t, start, &values, out);
        keys.next = (const char *)keys.data; // the first strip has fetched the next page
        values.next = (const char *)values.data;
    }
}

// ---- a run ---------------------------------------------------------------------------------------------------------

// max, sum (rows,) and out (rows, stride) of all rows over the positions [begin, end) of one run.
static FL_INLINE void attend_run(const form kind, const fl_attend *a, const workspace *w, size_t begin, size_t end,
                                 float *max, float *sum, float *out) {
    for (size_t r = 0; r < a->rows; r++) {
        max[r] = -INFINITY;
        vf_store(w->sums + r * FL_LANES, vf_set1(0.0f));
    }
    for (size_t i = 0; i < strips_of(a); i++) {
        const strip t = strip_of(a, i, begin, end);
        if (t.first >= t.last) memset(out + t.row * a->stride, 0, t.rows * a->stride * sizeof *out);
    }
    for (size_t start = begin; start < end; start += FL_PAGE) {
        if (kind == Q8 || kind == Q4) attend_lines(kind, a, w, begin, end, start, max, out);
        else attend_floats(kind, a, w, begin, end, start, max, out);
    }
    for (size_t r = 0; r < a->rows; r++) sum[r] = lanes_sum(vf_load(w->sums + r * FL_LANES));
}

// Merges the next run's max, sum and out into those of the runs before it.
static void merge(size_t rows, size_t stride, float *max, float *sum, float *out, const float *next_max,
                  const float *next_sum, const float *next_out) {
    for (size_t r = 0; r < rows; r++, out += stride, next_out += stride) {
        if (next_sum[r] == 0) continue; // the row saw nothing there
        const float most = max[r] > next_max[r] ? max[r] : next_max[r];
        float x[FL_LANES] = {max[r] - most, next_max[r] - most}, scale[FL_LANES];
        vf_store(scale, vf_exp(vf_load(x)));
        const vf before = vf_set1(scale[0]), now = vf_set1(scale[1]);
        for (size_t i = 0; i < stride; i += FL_LANES)
            vf_store(out + i, vf_fma(vf_load(next_out + i), now, vf_mul(vf_load(out + i), before)));
        sum[r] = sum[r] * scale[0] + next_sum[r] * scale[1];
        max[r] = most;
    }
}

static FL_INLINE void attend(const form kind, const fl_attend *a) {
    const workspace w = workspace_of(a);
    size_t end = (a->begin / FL_RUN + 1) * FL_RUN;
    attend_run(kind, a, &w, a->begin, smaller(end, a->end), a->max, a->sum, a->out);
    for (; end < a->end; end += FL_RUN) {
        attend_run(kind, a, &w, end, smaller(end + FL_RUN, a->end), w.max, w.sum, w.out);
        merge(a->rows, a->stride, a->max, a->sum, a->out, w.max, w.sum, w.out);
    }
}

static FL_INLINE void probabilities(const form kind, const fl_attend *a, float *out) {
    enum { VECTORS = FL_PAGE / FL_LANES };
    workspace w = workspace_of(a);
    const char *page = a->pages[a->begin / FL_PAGE];
    matrix keys = keys_of(a, page);
    page_lines lines = {0};
    keys.next = keys.data;
    if (kind == Q8 || kind == Q4) lines = key_lines(kind, a, &w, page, page, VECTORS);
    else keys = widen(kind, &keys, a->head_dim, VECTORS, w.wide);
    w.scores = out;
    for (size_t i = 0; i < strips_of(a); i++) {
        const strip t = strip_of(a, i, a->begin, a->end);
        if (kind == Q8 || kind == Q4) strip_scores_q8(a, &w, &t, &lines, VECTORS);
        else strip_scores(WIDE, a, &w, &t, &keys, VECTORS);
        strip_cap(a, &w, &t, page, VECTORS);
    }
    for (size_t r = 0; r < a->rows; r++) {
        hide(a, &w, r, a->begin);
        for (size_t v = 0; v < FL_PAGE; v += FL_LANES) {
            float *at = out + r * FL_PAGE + v;
            vf_store(at, vf_div(vf_exp(vf_sub(vf_load(at), vf_set1(a->max[r]))), vf_set1(a->sum[r])));
        }
    }
}

#define ATTEND(name, kind)                                             \
    static void attend_##name(const fl_attend *a) { attend(kind, a); } \
    static void probabilities_##name(const fl_attend *a, float *out) { probabilities(kind, a, out); }
ATTEND(f32, F32)
ATTEND(f16, F16)
ATTEND(q8, Q8)
ATTEND(q4, Q4)
#undef ATTEND

#endif
