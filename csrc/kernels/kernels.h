// The table of kernels: kernels.c is compiled once for each instruction set and fills one of these.
#ifndef FL_KERNELS_H
#define FL_KERNELS_H

#include "fastllm.h"
#include "panels.h"

// 32 activations of a token with their scale. `bias` is -128 * sum(q): what turns a product of (w + 128) and q back
// into one of w and q, for instructions that multiply unsigned by signed.
typedef struct fl_q8_group {
    int8_t q[FL_GROUP];
    float scale;
    int32_t bias;
} fl_q8_group;

// The same of 16 tokens side by side.
typedef struct fl_q8_bundle {
    int8_t q[FL_LANES][FL_GROUP];
    float scale[FL_LANES];
    int32_t bias[FL_LANES];
} fl_q8_bundle;

// Tokens that lie side by side in the int8 inputs of so many: each alone, (tokens, groups) of fl_q8_group, or by 16,
// (tokens / 16 rounded up, groups) of fl_q8_bundle. Many tokens are read again and again, and in order by 16.
static inline size_t fl_bundle_width(size_t tokens) { return tokens > 8 ? FL_LANES : 1; }

// Where the tile of token t begins, and room for all of them. Lanes past the last token are never written out.
static inline void *fl_bundle_of(void *q, size_t groups, size_t tokens, size_t t) {
    const size_t width = fl_bundle_width(tokens);
    return (char *)q + t / width * width * groups * sizeof(fl_q8_group);
}
static inline size_t fl_bundles_bytes(size_t groups, size_t tokens) {
    return fl_round_up(tokens, fl_bundle_width(tokens)) * groups * sizeof(fl_q8_group);
}

// t tokens as a matrix product of n columns takes them.
typedef struct fl_inputs {
    const float *f;  // (t, f_stride) for float weights
    size_t f_stride; // a multiple of 32; zero past n
    const void *q;   // for int8 weights: tiles, as above, of n / 32 groups rounded up
} fl_inputs;

// out[t][r] = sum over k of w[r][k] * x[t][k], for rows of panels [panel0, panel1); all 16 rows of a panel are
// written. With add: out[t][r] += that sum.
typedef void fl_matmul(const fl_matrix *w, size_t panel0, size_t panel1, const fl_inputs *x, size_t tokens, float *out,
                       size_t out_stride, int add);

// Bytes of one head's keys and values in a KV page.
static inline size_t fl_keys_bytes(fl_type kv_type, size_t head_dim) {
    if (kv_type == FL_Q8) return FL_PAGE * (head_dim + (head_dim + FL_GROUP - 1) / FL_GROUP * sizeof(float));
    return FL_PAGE * head_dim * (kv_type == FL_F16 ? 2 : 4);
}

static inline size_t fl_values_bytes(fl_type kv_type, size_t head_dim) {
    const size_t stride = fl_round_up(head_dim, FL_LANES);
    if (kv_type == FL_Q8) return FL_PAGE * (stride + (head_dim + FL_GROUP - 1) / FL_GROUP * sizeof(float));
    return FL_PAGE * stride * (kv_type == FL_F16 ? 2 : 4);
}

// Attention of rows of queries, which share their keys and values, to a stretch of one sequence.
typedef struct fl_attend {
    size_t rows;         // queries
    size_t head_dim;     // channels
    size_t stride;       // channels rounded up to 16: floats from one row of q, out to the next
    const float *q;      // (rows, stride), already scaled
    const size_t *from;  // (rows,) row r sees positions from[r] <= position < limit[r] of the sequence, within
    const size_t *limit; // begin <= position < end; maybe none
    size_t begin, end;   // begin: a multiple of 64
    void *const *pages; // the sequence's KV pages
    size_t keys, values; // where a page has this head's, in bytes
    size_t mask;         // where a page has what is added to its 64 scores, in bytes; 0: nothing is
    float softcap;       // scores become softcap * tanh(score / softcap); 0: they stay
    float *work;         // fl_attend_floats floats
    float *max, *sum;    // (rows,) maximum of the scores (-infinity: none), sum of e^(score - maximum)
    float *out;          // (rows, stride) sum of values, so weighed; what a row does not see does not enter it, even NaN
} fl_attend;

static inline size_t fl_attend_floats(size_t rows, size_t stride) {
    return FL_PAGE * stride + fl_round_up(rows, FL_LANES) * (FL_PAGE + FL_LANES + 3 + stride);
}

// A group of 32 columns of 16 rows on its way to four bits: column k's weights are w[k], and value[k] * scale what
// they become. Where the columns' inputs go together, sums over errors e count: e h e^T.
typedef struct fl_q4_group {
    size_t count;             // columns that there are
    float (*w)[FL_LANES];     // (count, 16) weights
    float (*value)[FL_LANES]; // (count, 16) of fl_q4_values
    float (*error)[FL_LANES]; // (count, 16) w - value * scale
    float *scale;             // (16,)
} fl_q4_group;

// Positions of a run, which begins at a multiple of it. Attention to a run knows nothing of other runs; merged, in
// order, they are attention to all.
enum { FL_RUN = 512 };

// NaN and infinity are never hidden: what is computed from them is not finite, in any kernel and any instruction set.
// Which NaN it is, its sign and payload, may differ between instruction sets.
struct fl_kernels {
    const char *name;
    fl_matmul *matmul[FL_TYPES];
    // Groups of n floats, n a multiple of 32, into one lane of a tile of `width`. A group with a NaN or an infinity
    // gets the scale NaN and zeros.
    void (*quantize)(const float *x, size_t n, void *tile, size_t width, size_t lane);
    // RMS: out = x / sqrt(mean(x^2) + eps) * weight; layer: out = (x - mean) / sqrt(variance + eps) * weight. Then
    // + bias, unless that is NULL. n floats, out may be x. NaN where the mean of squares is not finite.
    void (*norm[FL_LAYER_NORM + 1])(float *out, const float *x, const float *weight, const float *bias, size_t n,
                                    float eps);
    // x = act(x) * up, without up where that is NULL; n a multiple of 16. act(x) is NaN where x is not finite.
    void (*act[FL_RELU + 1])(float *x, const float *up, size_t n);
    // x = cap * tanh(x / cap), NaN where x is not finite; n a multiple of 16.
    void (*softcap)(float *x, size_t n, float cap);
    void (*attend[FL_Q8 + 1])(const fl_attend *a); // by kv_type; writes max, sum, out
    // Adds a run's max, sum and out to those of the runs before it.
    void (*merge)(size_t rows, size_t stride, float *max, float *sum, float *out, const float *next_max,
                  const float *next_sum, const float *next_out);
    // The softmax of one page, [a->begin, a->end), with max and sum of all of them, to out (rows, 64).
    void (*probabilities[FL_Q8 + 1])(const fl_attend *a, float *out);
    // The scales of a group, x (32, 16) with |x| <= 1, where 1 is reached or all is zero, sign (16,) the sign of that
    // largest: of least squared error, each weighed with weight (32, 16).
    void (*q4_search)(const float (*x)[FL_LANES], const float (*weight)[FL_LANES], const float *sign, float *scale);
    // Fills value and error: columns rounded in turn, from x (count, 16). u (32, 32) or NULL: x of
    // column j gets error of k times u[k][j], for each j > k.
    void (*q4_round)(const fl_q4_group *g, float (*x)[FL_LANES], const float *u);
    // Betters value, scale and error: each column's value and then the scale becomes what lowers e h e^T most, all else
    // left as it is. h (32, 32): the group's own square; slope (count, 16): e h of all columns, is overwritten.
    void (*q4_descend)(const fl_q4_group *g, float (*slope)[FL_LANES], const float *h);
    // n floats to f16, round to nearest even.
    void (*to_f16)(uint16_t *out, const float *x, size_t n);
    // Largest of n >= 1 logits, the lowest index that has it, and whether all are finite. With a NaN among them the
    // largest is any number, and the index one below n.
    float (*max)(const float *x, size_t n, size_t *index, int *finite);
    // out[i] = exp(x[i] * scale - max), zero past n up to a multiple of 16; sums[b] = sum of out over elements
    // FL_SUM_RUN * b .. FL_SUM_RUN * (b + 1).
    void (*softmax)(float *out, float *sums, const float *x, size_t n, float scale, float max);
    // The sum of those of n numbers that are larger than `least` >= 0; x is zero past n up to a multiple of 16.
    float (*above)(const float *x, size_t n, float least);
    // out[i] = ln x[i] for n normal x > 0; both have room up to a multiple of 16.
    void (*log)(double *out, const float *x, size_t n);
    // Int8 multiply-adds that wait neither for memory nor for each other; returns how many. The sum is nobody's, but
    // a compiler cannot know that.
    uint64_t (*peak)(size_t rounds, int32_t *sum);
};

enum { FL_SUM_RUN = 256 };

#endif
