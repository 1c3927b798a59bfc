// What kernels read and write beside weights (panels.h): activations, keys and values, groups on their way to four
// bits.
#ifndef FL_ARGUMENTS_H
#define FL_ARGUMENTS_H

#include "fastllm.h"
#include "panels.h"

// ---- int8 activations ----------------------------------------------------------------------------------------------

// A group of 32 activations of a token, and their scale. `bias` is -128 * sum(q), for instructions that multiply
// unsigned by signed: the sum of (w + 128) * q, plus the bias, is the sum of w * q. `sum` is scale * sum(q), and
// an outlier of the group: weights with a minimum are multiplied by it.
typedef struct fl_q8_group {
    int8_t q[FL_GROUP];
    float scale, sum;
    int32_t bias;
} fl_q8_group;

// What is taken out of a group before it is rounded, because it is so much larger than the group's other values that
// these would share a scale too coarse for them: see quantize.h. It enters a product as it is.
typedef struct fl_outliers {
    float *value; // (groups,)
    uint8_t *k;   // (groups rounded up to 8,) which of a group's 32 channels it is; FL_NONE: nothing is taken out
} fl_outliers;

enum { FL_NONE = 255 };

// A group of each of 16 tokens side by side: a token has a place in the bundle.
typedef struct fl_q8_bundle {
    int8_t q[FL_LANES][FL_GROUP];
    float scale[FL_LANES], sum[FL_LANES];
    int32_t bias[FL_LANES];
} fl_q8_bundle;

// How many tokens lie side by side where there are so many in all: 16, in bundles, (bundles, groups) of fl_q8_bundle,
// since many tokens are read again and again, 16 at a time; few lie each alone, (tokens, groups) of fl_q8_group. Behind
// all of them lie their outliers: value (tokens, groups), then k (tokens, groups rounded up to 8).
static inline size_t fl_bundle_width(size_t tokens) { return tokens > 8 ? FL_LANES : 1; }

// Where the bundle of token t begins, whose place in it is t % fl_bundle_width(tokens).
static inline void *fl_bundle_of(void *q, size_t groups, size_t tokens, size_t t) {
    const size_t width = fl_bundle_width(tokens);
    return (char *)q + t / width * width * groups * sizeof(fl_q8_group);
}

// Where the outliers of token t begin.
static inline fl_outliers fl_outliers_of(const void *q, size_t groups, size_t tokens, size_t t) {
    const size_t places = fl_round_up(tokens, fl_bundle_width(tokens));
    float *value = (float *)(void *)((char *)q + places * groups * sizeof(fl_q8_group));
    return (fl_outliers){value + t * groups, (uint8_t *)(value + tokens * groups) + t * fl_round_up(groups, 8)};
}

// Bytes of all of it, for so many places of bundles. What the places past the last token hold is never used.
static inline size_t fl_q8_bytes(size_t groups, size_t places) {
    return places * (groups * (sizeof(fl_q8_group) + sizeof(float)) + fl_round_up(groups, 8));
}

// ---- matrix products -----------------------------------------------------------------------------------------------

// The tokens that a matrix of n columns is multiplied with.
typedef struct fl_inputs {
    const float *f;  // (tokens, f_stride), for float weights
    size_t f_stride; // a multiple of 32; columns past n are zero
    const void *q;   // for int8 weights: bundles of n / 32 groups, rounded up, and outliers
    // How many rows of q are a token: 1; or 2, whose products are added, and then there are no outliers. The second row
    // is what rounding has taken from the first.
    size_t parts;
} fl_inputs;

// ---- attention -----------------------------------------------------------------------------------------------------

// Bytes of one head's keys and of its values in a page; pages.h has the layout.
static inline size_t fl_keys_bytes(fl_type kv_type, size_t head_dim) {
    const size_t stride = fl_round_up(head_dim, FL_LANES), groups = fl_groups(head_dim);
    if (kv_type == FL_Q8) return FL_PAGE * (stride + groups * sizeof(float));
    if (kv_type == FL_Q4) return FL_PAGE * (stride * 6 / 8 + groups * sizeof(uint16_t));
    return FL_PAGE * head_dim * (kv_type == FL_F16 ? 2 : 4);
}

static inline size_t fl_values_bytes(fl_type kv_type, size_t head_dim) {
    const size_t stride = fl_round_up(head_dim, FL_LANES);
    if (kv_type == FL_Q8) return FL_PAGE * (stride + sizeof(float));
    if (kv_type == FL_Q4) return FL_PAGE * (stride / 2 + fl_groups(head_dim) * sizeof(uint16_t));
    return FL_PAGE * stride * (kv_type == FL_F16 ? 2 : 4);
}

// Whether keys and values are turned and rounded to integers: FL_Q8, FL_Q4.
static inline int fl_kv_rounded(fl_type kv_type) { return kv_type == FL_Q8 || kv_type == FL_Q4; }

// A group of 32 channels of a query, turned (turn.h), as int8; zero past the last channel.
typedef struct fl_query {
    int8_t q[FL_GROUP];
    float scale;
    int32_t bias; // see fl_q8_group
} fl_query;

// Attention of rows of queries, which share their keys and values, to the positions [begin, end) of one sequence.
typedef struct fl_attend {
    size_t rows;         // queries
    size_t head_dim;     // channels
    size_t stride;       // channels rounded up to 16: floats from one row of q, and of out, to the next
    const float *q;      // (rows, stride), already scaled: for keys that are floats
    const fl_query *q8;  // (rows, groups) the same for keys in int8
    const size_t *from;  // (rows,) row r sees the positions from[r] <= p < limit[r] of the sequence that lie in
    const size_t *limit; // [begin, end): all, some, or none
    size_t begin, end;   // begin: a multiple of 64
    void *const *pages;  // of the sequence, from its position 0 on
    size_t keys, values; // offset in bytes of this head's in a page
    size_t mask;         // offset in bytes of 64 floats that are added to a page's scores; 0: none are
    float softcap;       // scores become softcap * tanh(score / softcap); 0: they stay
    float *work;         // fl_attend_floats floats
    float *max, *sum;    // (rows,) the largest score (-infinity where a row sees nothing), sum of e^(score - max)
    float *out;          // (rows, stride) sum of e^(score - max) * value, turned where values are; NaN that a row does
                         // not see does not enter it
} fl_attend;

// Floats of working memory for so many rows.
static inline size_t fl_attend_floats(size_t rows, size_t stride) {
    return FL_PAGE * stride + fl_round_up(rows, FL_LANES) * (FL_PAGE + FL_PAGE / 2 + FL_LANES + 6 + stride);
}

// Positions of a run, which begins at a multiple of FL_RUN. Attention to a run does not depend on other runs; the
// results of runs, merged in order, are attention to all positions.
enum { FL_RUN = 512 };

// ---- four-bit weights ----------------------------------------------------------------------------------------------

// A group of 32 columns of a panel on its way to four bits: weight w becomes value * scale. e is a row's errors of all
// columns, and h (n, n) what a calibration says of them: e h e^T is the error of outputs. See q4.c.
typedef struct fl_q4_group {
    size_t count;             // columns: 32, or what is left of n
    float (*w)[FL_LANES];     // (count, 16) weights
    float (*value)[FL_LANES]; // (count, 16) of `table`
    float (*error)[FL_LANES]; // (count, 16) w - value * scale
    float *scale;             // (16,)
    const int8_t *table;      // (16,) ascending. If 0 is one of them, weights that are zero stay zero
} fl_q4_group;

// ---- sampling ------------------------------------------------------------------------------------------------------

enum { FL_SUM_PART = 256 }; // the softmax of logits gives the sum of each part of so many elements

#endif
