// What the sampler does with all logits at once: the largest, softmax, sums and logarithms of probabilities.
#ifndef FL_LOGITS_H
#define FL_LOGITS_H

#include <math.h>

#include "arguments.h"
#include "vectors.h"

// Finds the largest of each PART, and then searches the index in that part alone.
static float max_index(const float *x, size_t n, size_t *index, int *finite) {
    enum { PART = 1024 };
    float max = -INFINITY, broken = 0;
    vf c = vf_set1(0.0f), d = c; // sums of 0 * x: 0, or NaN once an x is not finite
    size_t best = 0;
    for (size_t start = 0; start < n; start += PART) {
        const size_t end = start + PART < n ? start + PART : n;
        vf a = vf_set1(-INFINITY), b = a;
        size_t i = start;
        for (; i + 2 * FL_LANES <= end; i += 2 * FL_LANES) {
            a = vf_max(a, vf_load(x + i));
            b = vf_max(b, vf_load(x + i + FL_LANES));
            c = vf_fma(vf_load(x + i), vf_set1(0.0f), c);
            d = vf_fma(vf_load(x + i + FL_LANES), vf_set1(0.0f), d);
        }
        float largest = lanes_max(vf_max(a, b));
        for (; i < end; i++) {
            largest = x[i] > largest ? x[i] : largest;
            broken += x[i] * 0.0f;
        }
        if (largest > max) {
            max = largest;
            best = start;
        }
    }
    for (; best + FL_LANES <= n; best += FL_LANES) { // on to the vector that has it
        const vf a = vf_load(x + best);
        if (lanes_max(a) >= max) break;
    }
    while (best < n && x[best] != max) best++;
    *index = best < n ? best : 0; // 0: there is nothing but NaN and -infinity
    *finite = broken + lanes_sum(vf_add(c, d)) == 0;
    return max;
}

static void softmax(float *out, float *sums, const float *x, size_t n, float scale, float max) {
    for (size_t start = 0; start < n; start += FL_SUM_PART) {
        const size_t end = start + FL_SUM_PART < n ? start + FL_SUM_PART : n;
        vf total = vf_set1(0.0f);
        for (size_t i = start; i < end; i += FL_LANES) {
            const size_t count = end - i < FL_LANES ? end - i : FL_LANES;
            vf p = vf_exp(vf_sub(vf_mul(vf_load(x + i), vf_set1(scale)), vf_set1(max)));
            if (count < FL_LANES) p = lanes_first(p, count, 0.0f);
            vf_store(out + i, p);
            total = vf_add(total, p);
        }
        *sums++ = lanes_sum(total);
    }
}

static float above(const float *x, size_t n, float least) {
    const vf bound = vf_set1(least), zero = vf_set1(0.0f);
    vf total = zero;
    for (size_t i = 0; i < n; i += FL_LANES) {
        const vf p = vf_load(x + i);
        total = vf_add(total, vf_select_gt(p, bound, p, zero));
    }
    return lanes_sum(total);
}

// x = m 2^e with m in [sqrt(1/2), sqrt(2)), and ln m = 2 atanh((m - 1) / (m + 1)), by its series. libm's log differs
// between systems. There are no vectors of doubles in lanes.h: compilers make vectors of the loops over 16.
static void logarithm(double *out, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += FL_LANES) {
        uint32_t bits[FL_LANES];
        int32_t e[FL_LANES];
        float m[FL_LANES];
        memcpy(bits, x + i, sizeof bits);
        for (size_t j = 0; j < FL_LANES; j++) {
            const uint32_t exponent = (bits[j] + (0x3F800000u - 0x3F3504F4u)) >> 23; // bits of 1 and sqrt(1/2)
            e[j] = (int32_t)exponent - 127;
            bits[j] -= (exponent - 127) << 23;
        }
        memcpy(m, bits, sizeof m);
        for (size_t j = 0; j < FL_LANES; j++) {
            const double s = ((double)m[j] - 1) / ((double)m[j] + 1), z = s * s, z2 = z * z, z4 = z2 * z2;
            const double low = 1.0 + 1.0 / 3 * z + (1.0 / 5 + 1.0 / 7 * z) * z2;
            const double middle = 1.0 / 9 + 1.0 / 11 * z + (1.0 / 13 + 1.0 / 15 * z) * z2;
            const double high = 1.0 / 17 + 1.0 / 19 * z + (1.0 / 21 + 1.0 / 23 * z) * z2;
            out[i + j] = 2 * s * (low + z4 * (middle + z4 * high)) + (double)e[j] * 0.69314718055994530942;
        }
    }
}

#endif
