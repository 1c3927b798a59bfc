// The table of kernels: kernels.c is compiled once for each instruction set and fills one of these.
#ifndef FL_KERNELS_H
#define FL_KERNELS_H

#include "fastllm.h"

// Bytes of the scales at the head of an int8 panel; its tiles follow.
static inline size_t fl_scales_bytes(fl_type type, size_t groups) {
    return fl_round_up(groups * FL_LANES * (type == FL_Q8_F32 ? 4 : 2), FL_ALIGN);
}

// 32 activations of a token with their scale. `bias` is -128 * sum(q): what turns a product of (w + 128) and q back
// into one of w and q, for instructions that multiply unsigned by signed.
typedef struct fl_q8_group {
    int8_t q[FL_GROUP];
    float scale;
    int32_t bias;
} fl_q8_group;

// t tokens as a matrix product takes them.
typedef struct fl_inputs {
    const float *f;       // (t, f_stride) for float weights
    size_t f_stride;      // a multiple of 32; zero past n
    const fl_q8_group *q; // (t, q_stride) for int8 weights
    size_t q_stride;      // groups
} fl_inputs;

// out[t][r] = sum over k of w[r][k] * x[t][k], for rows of panels [panel0, panel1); all 16 rows of a panel are
// written. With add: out[t][r] += that sum.
typedef void fl_matmul(const fl_matrix *w, size_t panel0, size_t panel1, const fl_inputs *x, size_t tokens, float *out,
                       size_t out_stride, int add);

// One online-softmax step of attention: rows of queries against one KV block.
typedef struct fl_attend {
    size_t rows;         // queries that share this block's keys and values
    size_t head_dim;     // channels
    size_t stride;       // channels rounded up to 16: floats from one row of q, out to the next
    const float *q;      // (rows, stride), already scaled
    const size_t *from;  // (rows,) row r sees positions from[r] <= position < limit[r] of this block: maybe none;
    const size_t *limit; // (rows,) limit may be beyond 64
    float softcap;       // scores become softcap * tanh(score / softcap); 0: they stay
    const float *mask;   // (64,) added to the scores; NULL: nothing is
    const void *keys;    // (head_dim, 64) of kv_type
    const void *values;  // (64, stride) of kv_type
    float *scores;       // (rows, 64) working memory
    float *max, *sum;    // (rows,) running maximum (start: -infinity) and sum (start: 0)
    float *out;          // (rows, stride) running weighted sum of values (start: 0)
} fl_attend;

struct fl_kernels {
    const char *name;
    fl_matmul *matmul[FL_TYPES];
    // q[g] of n floats, n a multiple of 32.
    void (*quantize)(const float *x, size_t n, fl_q8_group *q);
    // RMS: out = x / sqrt(mean(x^2) + eps) * weight; layer: out = (x - mean) / sqrt(variance + eps) * weight. Then
    // + bias, unless that is NULL. n floats, out may be x.
    void (*norm[FL_LAYER_NORM + 1])(float *out, const float *x, const float *weight, const float *bias, size_t n,
                                    float eps);
    // x = act(x) * up, without up where that is NULL; n a multiple of 16.
    void (*act[FL_RELU + 1])(float *x, const float *up, size_t n);
    // x = cap * tanh(x / cap); n a multiple of 16.
    void (*softcap)(float *x, size_t n, float cap);
    void (*attend[FL_F16 + 1])(const fl_attend *a); // by kv_type
    // After all blocks, with a->max and a->sum as they are then: the softmax of the block's positions, in a->scores.
    void (*attention[FL_F16 + 1])(const fl_attend *a);
    // n floats to f16, round to nearest even.
    void (*to_f16)(uint16_t *out, const float *x, size_t n);
    // Largest of n logits and the lowest index that has it; n >= 1. NaN counts as -infinity.
    float (*max)(const float *x, size_t n, size_t *index);
    // out[i] = exp(x[i] / temperature - max), zero past n up to a multiple of 16; sums[b] = sum of out over elements
    // FL_SUM_RUN * b .. FL_SUM_RUN * (b + 1).
    void (*softmax)(float *out, float *sums, const float *x, size_t n, float temperature, float max);
    // sums[b] = sum of the elements of run b, as above, that are larger than `least` >= 0; x is zero past n up to a
    // multiple of 16.
    void (*above)(float *sums, const float *x, size_t n, float least);
    // Int8 multiply-adds that wait neither for memory nor for each other; returns how many. The sum is nobody's, but
    // a compiler cannot know that.
    uint64_t (*peak)(size_t rounds, int32_t *sum);
};

enum { FL_SUM_RUN = 256 };

#endif
