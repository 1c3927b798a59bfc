// Keys, values and queries on their way to int8.
//
// A few channels of keys are much larger than the others, and would leave these few of the 255 steps. So channels are
// turned by a Walsh-Hadamard matrix first, which spreads each of them over all (as QuaRot does, Ashkboos et al., 2024):
//
//     H1 = 1      H2n = | Hn   Hn |      Hn Hn = n I
//                       | Hn  -Hn |
//
// Keys and queries are turned alike, in blocks of up to 32 channels, a group: their products stay what they are, but
// for the factor n, a power of two, by which queries are divided. Values are turned as wide as a head, and what comes of
// them is turned back.
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

// x (n,) = Hn x, for n a power of two.
static FL_INLINE void turn_block(float *x, size_t n) {
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

// Turns x (n,) in blocks, each the largest power of two that `most`, itself one, and what is left of n allow. `divide`:
// by the block's size, which turns back what has been turned.
static void turn(float *x, size_t n, size_t most, int divide) {
    for (size_t block; n > 0; x += block, n -= block) {
        for (block = most; block > n; block /= 2) {}
        turn_block(x, block);
        for (size_t i = 0; divide && i < block; i++) x[i] *= 1.0f / (float)block;
    }
}

// Rounds x (n,), n a multiple of 16, to int8 with one scale, largest / 127, and returns their sum. The scale is NaN, and
// q zero, where x has a NaN or an infinity.
static int32_t to_int8(const float *x, size_t n, int8_t *q, float *scale) {
    float largest = 0;
    for (size_t i = 0; i < n && largest <= FLT_MAX; i += FL_LANES) {
        const float most = lanes_largest(vf_load(x + i), vf_load(x + (i + FL_LANES < n ? i + FL_LANES : i)));
        if (!(most <= largest)) largest = most;
    }
    if (!(largest <= FLT_MAX)) {
        memset(q, 0, n);
        *scale = NAN;
        return 0;
    }
    // What is so small that 127 / largest would overflow becomes zero.
    const int zero = !(largest > 1e-30f);
    const vf inverse = vf_set1(zero ? 0.0f : 127.0f / largest);
    vf sum = vf_set1(0.0f); // of integers: exact in any order
    for (size_t i = 0; i < n; i += FL_LANES) {
        const vi steps = vi_from_vf(vf_mul(vf_load(x + i), inverse));
        vi_store_i8(q + i, steps);
        sum = vf_add(sum, vf_from_vi(steps));
    }
    *scale = zero ? 0.0f : largest / 127.0f;
    return (int32_t)lanes_sum(sum);
}

#endif
