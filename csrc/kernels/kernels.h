// The table of kernels, and the layouts of what they read and write beside weights (panels.h). kernels.c is compiled
// once for each instruction set and fills one table.
#ifndef FL_KERNELS_H
#define FL_KERNELS_H

#include "fastllm.h"
#include "panels.h"

// ---- int8 activations ----------------------------------------------------------------------------------------------

// A group of 32 activations of a token, and their scale. `bias` is -128 * sum(q), for instructions that multiply
// unsigned by signed: the sum of (w + 128) * q, plus the bias, is the sum of w * q.
typedef struct fl_q8_group {
    int8_t q[FL_GROUP];
    float scale;
    int32_t bias;
} fl_q8_group;

// A group of each of 16 tokens side by side: a token has a place in the bundle.
typedef struct fl_q8_bundle {
    int8_t q[FL_LANES][FL_GROUP];
    float scale[FL_LANES];
    int32_t bias[FL_LANES];
} fl_q8_bundle;

// How many tokens of the int8 inputs of so many lie side by side. 1: (tokens, groups) of fl_q8_group. 16: (bundles,
// groups) of fl_q8_bundle, since many tokens are read again and again, 16 at a time.
static inline size_t fl_bundle_width(size_t tokens) { return tokens > 8 ? FL_LANES : 1; }

// Where the bundle of token t begins, whose place in it is t % fl_bundle_width(tokens).
static inline void *fl_bundle_of(void *q, size_t groups, size_t tokens, size_t t) {
    const size_t width = fl_bundle_width(tokens);
    return (char *)q + t / width * width * groups * sizeof(fl_q8_group);
}

// Bytes of all of them. What the places past the last token hold is never used.
static inline size_t fl_bundles_bytes(size_t groups, size_t tokens) {
    return fl_round_up(tokens, fl_bundle_width(tokens)) * groups * sizeof(fl_q8_group);
}

// ---- matrix products -----------------------------------------------------------------------------------------------

// The tokens that a matrix of n columns is multiplied with.
typedef struct fl_inputs {
    const float *f;  // (tokens, f_stride), for float weights
    size_t f_stride; // a multiple of 32; columns past n are zero
    const void *q;   // for int8 weights: bundles of n / 32 groups, rounded up
} fl_inputs;

// out[t][r] = sum over k of w[r][k] * x[t][k], for all 16 rows r of each of the panels [panel0, panel1). With add, += .
typedef void fl_matmul(const fl_matrix *w, size_t panel0, size_t panel1, const fl_inputs *x, size_t tokens, float *out,
                       size_t out_stride, int add);

// ---- attention -----------------------------------------------------------------------------------------------------

// Bytes of one head's keys and of its values in a page; fl_kv_page_bytes has the layout.
static inline size_t fl_keys_bytes(fl_type kv_type, size_t head_dim) {
    if (kv_type == FL_Q8) return FL_PAGE * (head_dim + fl_groups(head_dim) * sizeof(float));
    return FL_PAGE * head_dim * (kv_type == FL_F16 ? 2 : 4);
}

static inline size_t fl_values_bytes(fl_type kv_type, size_t head_dim) {
    const size_t stride = fl_round_up(head_dim, FL_LANES);
    if (kv_type == FL_Q8) return FL_PAGE * (stride + fl_groups(head_dim) * sizeof(float));
    return FL_PAGE * stride * (kv_type == FL_F16 ? 2 : 4);
}

// Attention of rows of queries, which share their keys and values, to the positions [begin, end) of one sequence.
typedef struct fl_attend {
    size_t rows;         // queries
    size_t head_dim;     // channels
    size_t stride;       // channels rounded up to 16: floats from one row of q, and of out, to the next
    const float *q;      // (rows, stride), already scaled
    const size_t *from;  // (rows,) row r sees the positions from[r] <= p < limit[r] of the sequence that lie in
    const size_t *limit; // [begin, end): all, some, or none
    size_t begin, end;   // begin: a multiple of 64
    void *const *pages;  // of the sequence, from its position 0 on
    size_t keys, values; // offset in bytes of this head's in a page
    size_t mask;         // offset in bytes of 64 floats that are added to a page's scores; 0: none are
    float softcap;       // scores become softcap * tanh(score / softcap); 0: they stay
    float *work;         // fl_attend_floats floats
    float *max, *sum;    // (rows,) the largest score (-infinity where a row sees nothing), sum of e^(score - max)
    float *out;          // (rows, stride) sum of e^(score - max) * value; NaN that a row does not see does not enter it
} fl_attend;

static inline size_t fl_attend_floats(size_t rows, size_t stride) {
    return FL_PAGE * stride + fl_round_up(rows, FL_LANES) * (FL_PAGE + FL_LANES + 3 + stride);
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
    float (*value)[FL_LANES]; // (count, 16) of fl_q4_values
    float (*error)[FL_LANES]; // (count, 16) w - value * scale
    float *scale;             // (16,)
} fl_q4_group;

// ---- the table -----------------------------------------------------------------------------------------------------

enum { FL_SUM_RUN = 256 }; // elements whose sum the softmax of logits gives apart

// NaN and infinity are never hidden: what a kernel computes from them is not finite, on every instruction set. Which
// NaN it is, its sign and payload, may differ between them.
struct fl_kernels {
    const char *name;
    fl_matmul *matmul[FL_TYPES];
    // Quantizes n floats, n a multiple of 32, into a place of a bundle of `width` tokens. A group with a NaN or an
    // infinity gets the scale NaN, and zeros.
    void (*quantize)(const float *x, size_t n, void *bundle, size_t width, size_t place);
    // out = x / sqrt(mean(x^2) + eps) * weight (RMS), or (x - mean) / sqrt(variance + eps) * weight (layer norm); then
    // + bias, unless it is NULL. n floats; out may be x. NaN where the mean of squares is not finite.
    void (*norm[FL_LAYER_NORM + 1])(float *out, const float *x, const float *weight, const float *bias, size_t n,
                                    float eps);
    // x = act(x) * up; without up, which may be NULL, act(x). n a multiple of 16. act(x) is NaN where x is not finite.
    void (*act[FL_RELU + 1])(float *x, const float *up, size_t n);
    // x = cap * tanh(x / cap), NaN where x is not finite. n a multiple of 16.
    void (*softcap)(float *x, size_t n, float cap);
    // Attention, by the type of keys and values: writes max, sum and out.
    void (*attend[FL_Q8 + 1])(const fl_attend *a);
    // Merges the next run's max, sum and out into those of the runs before it.
    void (*merge)(size_t rows, size_t stride, float *max, float *sum, float *out, const float *next_max,
                  const float *next_sum, const float *next_out);
    // out (rows, 64): probabilities of the one page [a->begin, a->end), where a->max and a->sum are of all positions.
    void (*probabilities[FL_Q8 + 1])(const fl_attend *a, float *out);
    // The 16 scales of a group x (32, 16), |x| <= 1, that make the sum of weight (32, 16) * squared error smallest.
    // Each row reaches 1, or is all zero; sign (16,) is the sign of its largest value.
    void (*q4_search)(const float (*x)[FL_LANES], const float (*weight)[FL_LANES], const float *sign, float *scale);
    // Fills value and error from x (count, 16), column after column. With u (32, 32), which may be NULL, the error of
    // column k times u[k][j] is added to x of each column j > k before that is rounded.
    void (*q4_round)(const fl_q4_group *g, float (*x)[FL_LANES], const float *u);
    // Betters value, scale and error: each column's value, then the scale, becomes the one that lowers e h e^T most
    // while all else stays. h (32, 32) is the group's own square. slope (count, 16) is e h, of all columns; it is
    // overwritten.
    void (*q4_descend)(const fl_q4_group *g, float (*slope)[FL_LANES], const float *h);
    // n floats to f16, rounded to nearest even.
    void (*to_f16)(uint16_t *out, const float *x, size_t n);
    // The largest of n >= 1 logits, the lowest index that has it, and whether all are finite. With a NaN among them the
    // largest is any number, and the index is below n.
    float (*max)(const float *x, size_t n, size_t *index, int *finite);
    // out[i] = exp(x[i] * scale - max), zero past n up to a multiple of 16. sums[b] is the sum of out over the elements
    // FL_SUM_RUN * b .. FL_SUM_RUN * (b + 1) - 1.
    void (*softmax)(float *out, float *sums, const float *x, size_t n, float scale, float max);
    // The sum of the numbers larger than `least` >= 0; x is zero past n up to a multiple of 16.
    float (*above)(const float *x, size_t n, float least);
    // out[i] = ln x[i] for n normal x > 0. Both have room up to a multiple of 16.
    void (*log)(double *out, const float *x, size_t n);
    // Does int8 multiply-adds that wait neither for memory nor for each other, in proportion to `rounds`, and returns
    // how many. *sum makes a compiler keep them.
    uint64_t (*peak)(size_t rounds, int32_t *sum);
};

#endif
