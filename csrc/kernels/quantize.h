// Activations in fewer bits: int8 groups for matrix products, and f16 for keys and values.
//
// A few channels of a trained model are outliers, and a group of 32 that holds one has a coarse scale: most of the
// error of int8 products comes from there (Dettmers et al., 2022, "LLM.int8()", keep whole channels in f16 for that).
// Here a group's largest value is taken out where it exceeds 5 times the group's own root mean square. It is multiplied
// as a float (outliers.h), and the others get the scale of the largest among them. The rule looks at one group alone,
// so whoever quantizes it needs nothing else.
//
//     group      0.1  -0.3  9.0  0.2 ..     largest 9.0, root mean square 1.6
//     outlier               9.0             at channel 2
//     rounded    0.1  -0.3   0   0.2 ..     scale 0.3 / 127 instead of 9.0 / 127
#ifndef FL_QUANTIZE_H
#define FL_QUANTIZE_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "arguments.h"
#include "vectors.h"

// The squares of a group's rounded values sum to less than this where its largest value, which is 127, is an outlier:
// 127^2 * 32 / 5^2.
static const float OUTLIER_SQUARES = 20645.0f;

// A group's values in steps of a scale, and the sums of the steps and of their squares, which are exact.
typedef struct codes {
    vi a, b;
    float scale, sums[2];
} codes;

static FL_INLINE codes round_group(vf a, vf b, float largest) {
    // A group whose largest value is so small that 127 / largest would overflow becomes zero.
    const int zero = !(largest > 1e-30f);
    const vf inverse = vf_set1(zero ? 0.0f : 127.0f / largest);
    codes c = {vi_from_vf(vf_mul(a, inverse)), vi_from_vf(vf_mul(b, inverse)), zero ? 0.0f : largest / 127.0f, {0}};
    const vf i = vf_from_vi(c.a), j = vf_from_vi(c.b);
    lanes_sums(vf_add(i, j), vf_fma(i, i, vf_mul(j, j)), c.sums);
    return c;
}

// The first channel of a group whose magnitude is `largest`.
static FL_INLINE int channel_of(vf a, vf b, float largest) {
    const vf most = vf_set1(largest), none = vf_set1(-(float)FL_GROUP), i = lanes_index();
    const vf in_a = vf_select_gt(most, vf_abs(a), none, vf_sub(vf_set1(0.0f), i));
    const vf in_b = vf_select_gt(most, vf_abs(b), none, vf_sub(vf_set1(-(float)FL_LANES), i));
    return -(int)lanes_max(vf_max(in_a, in_b));
}

static void quantize(const float *x, size_t n, void *bundle, size_t width, size_t place, const fl_outliers *outliers) {
    char *at = bundle; // group by group: width x 32 int8, width scales, width sums, width biases
    for (size_t g = 0; g < n / FL_GROUP; g++, x += FL_GROUP, at += width * sizeof(fl_q8_group)) {
        int8_t *q = (int8_t *)at + place * FL_GROUP;
        float *scales = (float *)(void *)(at + width * FL_GROUP);
        float *sums = scales + width;
        int32_t *biases = (int32_t *)(void *)(sums + width);
        const vf a = vf_load(x), b = vf_load(x + FL_LANES);
        const float largest = lanes_largest(a, b);
        if (outliers) outliers->k[g] = FL_NONE;
        if (!(largest <= FLT_MAX)) {
            memset(q, 0, FL_GROUP);
            scales[place] = sums[place] = NAN;
            biases[place] = 0;
            continue;
        }
        codes c = round_group(a, b, largest);
        float taken = 0.0f;
        if (outliers && c.sums[1] < OUTLIER_SQUARES && c.scale > 0) {
            // There is only one such value: the squares of two alone would be more.
            const vf most = vf_set1(largest), zero = vf_set1(0.0f);
            const vf rest_a = vf_select_gt(most, vf_abs(a), a, zero), rest_b = vf_select_gt(most, vf_abs(b), b, zero);
            const int k = channel_of(a, b, largest);
            outliers->k[g] = (uint8_t)k;
            outliers->value[g] = taken = x[k];
            c = round_group(rest_a, rest_b, lanes_largest(rest_a, rest_b));
        }
        vi_store_i8(q, c.a);
        vi_store_i8(q + FL_LANES, c.b);
        scales[place] = c.scale;
        sums[place] = c.scale * c.sums[0] + taken;
        biases[place] = -128 * (int32_t)c.sums[0];
    }
}

static void to_f16(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + FL_LANES <= n; i += FL_LANES) vf_store_f16(out + i, vf_load(x + i));
    for (; i < n; i++) out[i] = fl_f16_from_f32(x[i]);
}

#endif
