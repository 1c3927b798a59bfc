// 16-bit floats: f16 (IEEE 754 binary16) and bf16 (the upper half of an f32), to and from f32; and whether floats are
// finite. None of it uses the CPU's conversions, so every machine gives the same bits.
#include <string.h>

#include "fastllm.h"

float fl_f32_from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    uint32_t bits;
    float x;
    if (rest >= 0x7c00u) { // infinity or NaN
        bits = sign | 0x7f800000u | (rest & 0x3ffu) << 13;
    } else if (rest >= 0x400u) {
        bits = sign | ((rest << 13) + (112u << 23));
    } else { // subnormal: a multiple of 2^-24
        x = (float)rest * 0x1p-24f;
        memcpy(&bits, &x, 4);
        bits |= sign;
    }
    memcpy(&x, &bits, 4);
    return x;
}

uint16_t fl_f16_from_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u); // NaN
    if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); // 65520 and more round to infinity
    if (rest >= 0x38800000u) {
        rest -= 112u << 23;
        rest += 0xfffu + (rest >> 13 & 1u);
        return (uint16_t)(sign | rest >> 13);
    }
    // Subnormal: the last bit of 0.5 is worth 2^-24, the step of subnormal f16, so adding 0.5 rounds to that step.
    float magnitude;
    memcpy(&magnitude, &rest, 4);
    magnitude += 0.5f;
    memcpy(&rest, &magnitude, 4);
    return (uint16_t)(sign | (rest - 0x3f000000u));
}

float fl_f32_from_bf16(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

uint16_t fl_bf16_from_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u); // NaN stays NaN
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

int fl_finite(const float *x, size_t n) {
    const uint32_t exponent = 0x7f800000u;
    uint32_t broken = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], 4);
        broken |= (bits & exponent) == exponent;
    }
    return !broken;
}
