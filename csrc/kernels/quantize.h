// Activations in fewer bits: int8 groups for matrix products, and f16 for keys and values.
#ifndef FL_QUANTIZE_H
#define FL_QUANTIZE_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "arguments.h"
#include "vectors.h"

static void quantize(const float *x, size_t n, void *bundle, size_t width, size_t place) {
    char *at = bundle; // group by group: width x 32 int8, width scales, width sums, width biases
    for (; n > 0; n -= FL_GROUP, x += FL_GROUP, at += width * sizeof(fl_q8_group)) {
        int8_t *q = (int8_t *)at + place * FL_GROUP;
        float *scales = (float *)(void *)(at + width * FL_GROUP);
        float *sums = scales + width;
        int32_t *biases = (int32_t *)(void *)(sums + width);
        const vf a = vf_load(x), b = vf_load(x + FL_LANES);
        const float largest = lanes_largest(a, b);
        if (!(largest <= FLT_MAX)) {
            memset(q, 0, FL_GROUP);
            scales[place] = sums[place] = NAN;
            biases[place] = 0;
            continue;
        }
        // A group whose largest value is so small that 127 / largest would overflow becomes zero.
        const int zero = !(largest > 1e-30f);
        const vf inverse = vf_set1(zero ? 0.0f : 127.0f / largest);
        scales[place] = zero ? 0.0f : largest / 127.0f;
        const vi qa = vi_from_vf(vf_mul(a, inverse)), qb = vi_from_vf(vf_mul(b, inverse));
        vi_store_i8(q, qa);
        vi_store_i8(q + FL_LANES, qb);
        // Floats add up such small integers exactly, in any order.
        const float sum = lanes_sum(vf_add(vf_from_vi(qa), vf_from_vi(qb)));
        sums[place] = scales[place] * sum;
        biases[place] = -128 * (int32_t)sum;
    }
}

static void to_f16(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + FL_LANES <= n; i += FL_LANES) vf_store_f16(out + i, vf_load(x + i));
    for (; i < n; i++) out[i] = fl_f16_from_f32(x[i]);
}

#endif
