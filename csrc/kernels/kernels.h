// The table of kernels: kernels.c is compiled once for each instruction set, and fills one.
#ifndef FL_KERNELS_H
#define FL_KERNELS_H

#include "arguments.h"

// out[t][r] = sum over k of w[r][k] * x[t][k], for all 16 rows r of each of the panels [panel0, panel1). With add, += .
typedef void fl_matmul(const fl_matrix *w, size_t panel0, size_t panel1, const fl_inputs *x, size_t tokens, float *out,
                       size_t out_stride, int add);

// NaN and infinity are never hidden: what a kernel computes from them is not finite, on every instruction set. Which
// NaN it is, its sign and payload, may differ between them.
struct fl_kernels {
    const char *name;
    fl_matmul *matmul[FL_TYPES];
    // Quantizes n floats, n a multiple of 32, into a place of a bundle of `width` tokens. A group with a NaN or an
    // infinity gets the scale NaN, and zeros. With outliers, which may be NULL, what a group's other values suffer
    // from is taken out of it first.
    void (*quantize)(const float *x, size_t n, void *bundle, size_t width, size_t place,
                     const fl_outliers *outliers);
    // out = x / sqrt(mean(x^2) + eps) * weight (RMS), or (x - mean) / sqrt(variance + eps) * weight (layer norm); then
    // + bias, unless it is NULL. n floats; out may be x. NaN where the mean of squares is not finite.
    void (*norm[FL_LAYER_NORM + 1])(float *out, const float *x, const float *weight, const float *bias, size_t n,
                                    float eps);
    // x = act(x) * up; without up, which may be NULL, act(x). n a multiple of 16. act(x) is NaN where x is not finite.
    void (*act[FL_RELU + 1])(float *x, const float *up, size_t n);
    // x = cap * tanh(x / cap), NaN where x is not finite. n a multiple of 16.
    void (*softcap)(float *x, size_t n, float cap);
    // Attention, by the type of keys and values: writes max, sum and out.
    void (*attend[FL_TYPES])(const fl_attend *a);
    // Merges the next run's max, sum and out into those of the runs before it.
    void (*merge)(size_t rows, size_t stride, float *max, float *sum, float *out, const float *next_max,
                  const float *next_sum, const float *next_out);
    // out (rows, 64): probabilities of the one page [a->begin, a->end), where a->max and a->sum are of all positions.
    void (*probabilities[FL_TYPES])(const fl_attend *a, float *out);
    // The 16 scales, f16 as floats, of a group x (32, 16) that round it to int8 with the least squared error, of those
    // from largest / 127 up to 4 % above. largest (16,) is the largest magnitude of a row.
    void (*q8_search)(const float (*x)[FL_LANES], const float *largest, float *scale);
    // The 16 scales of a group x (32, 16), |x| <= 1, that make the sum of weight (32, 16) * squared error smallest.
    // Each row reaches 1, or is all zero; sign (16,) is the sign of its largest value.
    void (*q4_search)(const int8_t *values, const float (*x)[FL_LANES], const float (*weight)[FL_LANES],
                      const float *sign, float *scale);
    // Fills value and error from x (count, 16), column after column. With u (32, 32), which may be NULL, the error of
    // column k times u[k][j] is added to x of each column j > k before that is rounded.
    void (*q4_round)(const fl_q4_group *g, float (*x)[FL_LANES], const float *u);
    // Betters value, scale and error: each column's value, then the scale, becomes the one that lowers e h e^T most
    // while all else stays. h (32, 32) is the group's own part of it, on the diagonal. slope (count, 16) is e h, of all
    // columns; it is overwritten.
    void (*q4_descend)(const fl_q4_group *g, float (*slope)[FL_LANES], const float *h);
    // n floats to f16, rounded to nearest even.
    void (*to_f16)(uint16_t *out, const float *x, size_t n);
    // Turns x (n,) by Walsh-Hadamard matrices of up to `most` channels, a power of two, each the largest that fits. The
    // same again turns it back.
    void (*turn)(float *x, size_t n, size_t most);
    // Rounds x (n,), n a multiple of 16, to integers of -most to most with one scale, and returns their sum. The scale
    // makes of the largest magnitude `most`, or up to `widest` steps where cutting it off has the least squared error.
    // With a NaN or an infinity the scale is NaN, and q zero.
    int32_t (*to_int8)(const float *x, size_t n, float most, float widest, int8_t *q, float *scale);
    // The same to codes of four bits, see turn.h, for any n: x is zero, and there are codes, up to a multiple of 16.
    void (*to_codes)(const float *x, size_t n, uint8_t *codes, float *scale);
    // The largest of n >= 1 logits, the lowest index that has it, and whether all are finite. With a NaN among them the
    // largest is any number, and the index is below n.
    float (*max)(const float *x, size_t n, size_t *index, int *finite);
    // out[i] = exp(x[i] * scale - max), zero past n up to a multiple of 16. sums[b] is the sum of out over the elements
    // FL_SUM_PART * b .. FL_SUM_PART * (b + 1) - 1.
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
