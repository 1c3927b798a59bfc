// Keys, values and queries on their way to int8.
//
// A few channels of keys are much larger than the others, and would leave these few of the 255 steps. So channels are
// turned by a Walsh-Hadamard matrix first, which spreads each of them over all (as QuaRot does, Ashkboos et al., 2024):
//
//     H1 = 1      H2n = | Hn   Hn |      T = Hn / sqrt(n)      T T = I
//                       | Hn  -Hn |
//
// Keys and queries are turned alike, in blocks of up to 32 channels, a group, which leaves their products as they are.
// Values are turned as wide as a head, and what comes of them is turned back, by the same T.
#ifndef FL_TURN_H
#define FL_TURN_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "vectors.h"

#define P 1.0f
#define M -1.0f
// Row i of H16.
static const float HADAMARD[FL_LANES][FL_LANES] = {
    {P, P, P, P, P, P, P, P, P, P, P, P, P, P, P, P}, {P, M, P, M, P, M, P, M, P, M, P, M, P, M, P, M},
    {P, P, M, M, P, P, M, M, P, P, M, M, P, P, M, M}, {P, M, M, P, P, M, M, P, P, M, M, P, P, M, M, P},
    {P, P, P, P, M, M, M, M, P, P, P, P, M, M, M, M}, {P, M, P, M, M, P, M, P, P, M, P, M, M, P, M, P},
    {P, P, M, M, M, M, P, P, P, P, M, M, M, M, P, P}, {P, M, M, P, M, P, P, M, P, M, M, P, M, P, P, M},
    {P, P, P, P, P, P, P, P, M, M, M, M, M, M, M, M}, {P, M, P, M, P, M, P, M, M, P, M, P, M, P, M, P},
    {P, P, M, M, P, P, M, M, M, M, P, P, M, M, P, P}, {P, M, M, P, P, M, M, P, M, P, P, M, M, P, P, M},
    {P, P, P, P, M, M, M, M, M, M, M, M, P, P, P, P}, {P, M, P, M, M, P, M, P, M, P, M, P, P, M, P, M},
    {P, P, M, M, M, M, P, P, M, M, P, P, P, P, M, M}, {P, M, M, P, M, P, P, M, M, P, P, M, P, M, M, P},
};
#undef P
#undef M

// x (n,) = Hn x / sqrt(n), for n a power of two.
static FL_INLINE void turn_block(float *x, size_t n) {
    const float length = 1.0f / sqrtf((float)n);
    for (size_t i = 0; i < n; i++) x[i] *= length;
    for (size_t h = 1; n < FL_LANES && h < n; h *= 2)
        for (size_t i = 0; i < n; i++)
            if (!(i & h)) {
                const float a = x[i], b = x[i + h];
                x[i] = a + b;
                x[i + h] = a - b;
            }
    for (size_t at = 0; n >= FL_LANES && at < n; at += FL_LANES) {
        vf sum = vf_set1(x[at]);
        FL_UNROLL for (size_t i = 1; i < FL_LANES; i++) sum = vf_fma(vf_set1(x[at + i]), vf_load(HADAMARD[i]), sum);
        vf_store(x + at, sum);
    }
    for (size_t h = FL_LANES; h < n; h *= 2)
        for (size_t i = 0; i < n; i += FL_LANES)
            if (!(i & h)) {
                const vf a = vf_load(x + i), b = vf_load(x + i + h);
                vf_store(x + i, vf_add(a, b));
                vf_store(x + i + h, vf_sub(a, b));
            }
}

// Turns x (n,) in blocks, each the largest power of two that `most`, itself one, and what is left of n allow.
static void turn(float *x, size_t n, size_t most) {
    for (size_t block; n > 0; x += block, n -= block) {
        for (block = most; block > n; block /= 2) {}
        turn_block(x, block);
    }
}

// The largest magnitude of x (n,), n a multiple of 16; NaN or infinity if one of them is.
static FL_INLINE float largest_of(const float *x, size_t n) {
    float largest = 0;
    for (size_t i = 0; i < n && largest <= FLT_MAX; i += FL_LANES) {
        const float most = lanes_largest(vf_load(x + i), vf_load(x + i));
        if (!(most <= largest)) largest = most;
    }
    return largest;
}

// Rounds x (n,), n a multiple of 16, to integers of -most to most, with one scale, and returns their sum. The largest
// magnitude becomes `most`, or at the price of cutting it off up to `widest` steps, whichever of these whole numbers
// makes the sum of squared errors smallest. The scale is NaN, and q zero, where x has a NaN or an infinity.
static int32_t to_int8(const float *x, size_t n, float most, float widest, int8_t *q, float *scale) {
    const float largest = largest_of(x, n);
    memset(q, 0, n);
    *scale = largest <= FLT_MAX ? 0.0f : NAN;
    // What is so small that widest / largest would overflow becomes zero.
    if (!(largest <= FLT_MAX) || !(largest > 1e-30f)) return 0;
    const vf high = vf_set1(most), low = vf_set1(-most);
    float best = most, least = INFINITY;
    for (float steps = most; widest > most && steps <= widest; steps++) {
        const vf inverse = vf_set1(steps / largest);
        vf error = vf_set1(0.0f);
        for (size_t i = 0; i < n; i += FL_LANES) {
            const vf y = vf_mul(vf_load(x + i), inverse);
            const vf e = vf_sub(y, vf_from_vi(vi_from_vf(vf_max(low, vf_min(high, y)))));
            error = vf_fma(e, e, error);
        }
        const float sum = lanes_sum(error) / (steps * steps);
        if (sum < least) least = sum, best = steps;
    }
    const vf inverse = vf_set1(best / largest);
    vf sum = vf_set1(0.0f); // of integers: exact in any order
    for (size_t i = 0; i < n; i += FL_LANES) {
        const vi steps = vi_from_vf(vf_max(low, vf_min(high, vf_mul(vf_load(x + i), inverse))));
        vi_store_i8(q + i, steps);
        sum = vf_add(sum, vf_from_vi(steps));
    }
    *scale = largest / best;
    return (int32_t)lanes_sum(sum);
}

// ---- four bits -----------------------------------------------------------------------------------------------------

// Turned values are nearly normally distributed, and levels that lie closer where most of them are lose a third less
// than even ones. These are the best for that distribution (Max, 1960), rounded.
static const int8_t VALUE_LEVELS[16] = {-121, -92, -72, -56, -42, -29, -17, -6, 6, 17, 29, 42, 56, 72, 92, 121};

// The level and its number for magnitudes in steps of a scale.
static FL_INLINE vf level_of(vf magnitude, vf *number) {
    const int8_t *levels = VALUE_LEVELS + 8;
    vf level = vf_set1(levels[0]);
    *number = vf_set1(0.0f);
    FL_UNROLL for (size_t a = 1; a < 8; a++) {
        const vf middle = vf_set1((float)(levels[a - 1] + levels[a]) / 2);
        level = vf_select_gt(magnitude, middle, vf_set1(levels[a]), level);
        *number = vf_select_gt(magnitude, middle, vf_set1((float)a), *number);
    }
    return level;
}

// Rounds x (n,), zero past n up to a multiple of 16, to as many codes, with the scale of eight that makes the sum of
// squared errors of the n smallest. The scale is NaN, and codes zero, where x has a NaN or an infinity.
static void to_codes(const float *x, size_t n, uint8_t *code, float *scale) {
    const size_t stride = fl_round_up(n, FL_LANES);
    const float largest = largest_of(x, stride);
    memset(code, 0, stride);
    *scale = largest <= FLT_MAX ? 0.0f : NAN;
    if (!(largest <= FLT_MAX) || !(largest > 1e-30f)) return;
    float least = INFINITY, best = 0, inverse = 0;
    vf number;
    for (size_t i = 0; i < 8; i++) {
        const float steps = 88.0f + 8.0f * (float)i; // in which the largest magnitude is counted
        vf error = vf_set1(0.0f);
        for (size_t j = 0; j < n; j += FL_LANES) {
            const vf magnitude = vf_mul(vf_abs(vf_load(x + j)), vf_set1(steps / largest));
            const vf e = vf_mul(vf_sub(magnitude, level_of(magnitude, &number)), vf_set1(100.0f / steps));
            error = vf_fma(e, lanes_first(e, n - j, 0.0f), error);
        }
        const float sum = lanes_sum(error);
        if (sum < least) least = sum, best = largest / steps, inverse = steps / largest;
    }
    for (size_t j = 0; j < stride; j += FL_LANES) {
        const vf y = vf_load(x + j);
        level_of(vf_mul(vf_abs(y), vf_set1(inverse)), &number);
        const vf below = vf_sub(vf_set1(7.0f), number), above = vf_add(vf_set1(8.0f), number);
        vi_store_i8((int8_t *)code + j, vi_from_vf(vf_select_gt(vf_set1(0.0f), y, below, above)));
    }
    *scale = best;
}

#endif
