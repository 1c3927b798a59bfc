// GGUF's block types, ggml's quantization: to floats, and into panels as they are. A block of 32 values has one scale
// d, and in some types a minimum m. A block of 256 values has d and m too, and small integers, for each 16 or 32
// values, that multiply them.
#include <math.h>
#include <string.h>

#include "panels.h"
#include "threads.h"

static float f16_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return fl_f32_from_f16(h);
}

// What four-bit codes stand for: in Q4_0; in Q4_1 and Q4_K; in MXFP4, E2M1 doubled with half the scale; in IQ4.
static const int8_t centered[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
static const int8_t counted[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const int8_t e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
static const int8_t iq4_steps[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Four-bit value i, where each `width` bytes hold 2 * width values: first those in their low halves, then those in the
// high ones.
static int nibble(const uint8_t *p, size_t width, size_t i) {
    const size_t part = i / (2 * width), at = i % (2 * width);
    return at < width ? p[part * width + at] & 15 : p[part * width + at - width] >> 4;
}

// Two-bit value i, where each 32 bytes hold 128 values: those in the lowest two bits of each byte, then in the next
// two.
static int pair_of_bits(const uint8_t *p, size_t i) { return p[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3; }

// One-bit value i, where 32 bytes hold 256 values: those in the lowest bit of each byte, then in the next.
static int bit_of_run(const uint8_t *p, size_t i) { return p[i % 32] >> (i / 32) & 1; }

// One-bit value i, where each byte holds 8 values in order.
static int bit(const uint8_t *p, size_t i) { return p[i / 8] >> (i % 8) & 1; }

// ---- to floats: ggml's arithmetic, in its order, and so its bits (ggml-quants.c) ------------------------------------

static void q4_0(const uint8_t *b, float *out) {
    const float d = f16_at(b);
    for (size_t i = 0; i < 32; i++) out[i] = d * (float)(nibble(b + 2, 16, i) - 8);
}

static void q4_1(const uint8_t *b, float *out) {
    const float d = f16_at(b), m = f16_at(b + 2);
    for (size_t i = 0; i < 32; i++) out[i] = d * (float)nibble(b + 4, 16, i) + m;
}

static void q5_0(const uint8_t *b, float *out) {
    const float d = f16_at(b);
    for (size_t i = 0; i < 32; i++) out[i] = d * (float)((nibble(b + 6, 16, i) | bit(b + 2, i) << 4) - 16);
}

static void q5_1(const uint8_t *b, float *out) {
    const float d = f16_at(b), m = f16_at(b + 2);
    for (size_t i = 0; i < 32; i++) out[i] = d * (float)(nibble(b + 8, 16, i) | bit(b + 4, i) << 4) + m;
}

static void q8_0(const uint8_t *b, float *out) {
    const float d = f16_at(b);
    for (size_t i = 0; i < 32; i++) out[i] = d * (float)(int8_t)b[2 + i];
}

static void q2_k(const uint8_t *b, float *out) {
    const float d = f16_at(b + 80), m = f16_at(b + 82);
    for (size_t s = 0; s < 16; s++) {
        const float scale = d * (float)(b[s] & 15), minimum = m * (float)(b[s] >> 4);
        for (size_t i = 16 * s; i < 16 * s + 16; i++) out[i] = scale * (float)pair_of_bits(b + 16, i) - minimum;
    }
}

static void q3_k(const uint8_t *b, float *out) {
    const float d = f16_at(b + 108);
    for (size_t s = 0; s < 16; s++) {
        const int high = b[104 + s % 4] >> (2 * (s / 4)) & 3;
        const float scale = d * (float)((nibble(b + 96, 8, s) | high << 4) - 32);
        for (size_t i = 16 * s; i < 16 * s + 16; i++)
            out[i] = scale * (float)((pair_of_bits(b + 32, i) | bit_of_run(b, i) << 2) - 4);
    }
}

// Scale and minimum number s of 8: 6 bits each, in 12 bytes.
static void scale_and_minimum(const uint8_t *b, size_t s, float *scale, float *minimum) {
    const uint8_t *p = b + 4;
    int a = p[s] & 63, m = p[s + 4] & 63;
    if (s >= 4) {
        a = (p[s + 4] & 15) | p[s - 4] >> 6 << 4;
        m = p[s + 4] >> 4 | p[s] >> 6 << 4;
    }
    *scale = f16_at(b) * (float)a;
    *minimum = f16_at(b + 2) * (float)m;
}

static void q4_k(const uint8_t *b, float *out) {
    for (size_t s = 0; s < 8; s++) {
        float scale, minimum;
        scale_and_minimum(b, s, &scale, &minimum);
        for (size_t i = 32 * s; i < 32 * s + 32; i++) out[i] = scale * (float)nibble(b + 16, 32, i) - minimum;
    }
}

static void q5_k(const uint8_t *b, float *out) {
    for (size_t s = 0; s < 8; s++) {
        float scale, minimum;
        scale_and_minimum(b, s, &scale, &minimum);
        for (size_t i = 32 * s; i < 32 * s + 32; i++)
            out[i] = scale * (float)(nibble(b + 48, 32, i) | bit_of_run(b + 16, i) << 4) - minimum;
    }
}

static void q6_k(const uint8_t *b, float *out) {
    const float d = f16_at(b + 208);
    for (size_t s = 0; s < 16; s++) {
        const float scale = d * (float)(int8_t)b[192 + s];
        for (size_t i = 16 * s; i < 16 * s + 16; i++)
            out[i] = scale * (float)((nibble(b, 64, i) | pair_of_bits(b + 128, i) << 4) - 32);
    }
}

static void iq4_nl(const uint8_t *b, float *out) {
    const float d = f16_at(b);
    for (size_t i = 0; i < 32; i++) out[i] = d * (float)iq4_steps[nibble(b + 2, 16, i)];
}

// Scale number s of 8: 6 bits each, the low four of all before the high two of all.
static float iq4_xs_scale(const uint8_t *b, size_t s) {
    const int high = b[2 + s / 4] >> (2 * (s % 4)) & 3;
    return f16_at(b) * (float)((nibble(b + 4, 1, s) | high << 4) - 32);
}

static void iq4_xs(const uint8_t *b, float *out) {
    for (size_t s = 0; s < 8; s++) {
        const float scale = iq4_xs_scale(b, s);
        for (size_t i = 32 * s; i < 32 * s + 32; i++) out[i] = scale * (float)iq4_steps[nibble(b + 8, 16, i)];
    }
}

// The scale of MXFP4 (OCP Microscaling Formats), a power of two as an exponent of eight bits, for doubled values.
static float e8m0_half(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static void mxfp4(const uint8_t *b, float *out) {
    const float d = e8m0_half(b[0]);
    for (size_t i = 0; i < 32; i++) out[i] = d * (float)e2m1[nibble(b + 1, 16, i)];
}

typedef struct unpack {
    const fl_block *block;
    size_t count;
    const uint8_t *data;
    float *out;
} unpack;

static void unpack_share(void *arg, fl_team *team, size_t id) {
    const unpack *u = arg;
    size_t begin, end;
    fl_share(u->count, team, id, &begin, &end);
    for (size_t i = begin; i < end; i++)
        u->block->to_floats(u->data + i * u->block->bytes, u->out + i * u->block->values);
}

void fl_dequantize(const fl_block *block, const void *data, size_t count, size_t threads, float *out) {
    unpack u = {block, count, data, out};
    fl_parallel(threads, unpack_share, &u);
}

// ---- into panels ---------------------------------------------------------------------------------------------------

// These write the groups of a block for one row of a panel, see panels.h. `scales` and `lines` are that row's in the
// block's first group; the next group's are fl_group_scales and fl_group_bytes further. They return whether all scales
// and minima are finite.

static int is_finite(uint16_t h) { return (h & 0x7c00u) != 0x7c00u; }

// Four codes, each in a byte: those in the low and in the high halves of four bytes.
static uint32_t four_low(const uint8_t *p) {
    uint32_t word;
    memcpy(&word, p, 4);
    return word & 0x0f0f0f0fu;
}

static uint32_t four_high(const uint8_t *p) {
    uint32_t word;
    memcpy(&word, p, 4);
    return word >> 4 & 0x0f0f0f0fu;
}

// The 32 codes of a group, four to a word, into its four lines.
static void put_codes(uint8_t *lines, const uint32_t *four) {
    for (size_t i = 0; i < 4; i++) {
        const uint32_t word = four[2 * i] | four[2 * i + 1] << 4;
        memcpy(lines + i * 64, &word, 4);
    }
}

// 32 int8 into the eight lines of a group.
static void put_bytes(uint8_t *lines, const void *values) {
    for (size_t i = 0; i < 8; i++) memcpy(lines + i * 64, (const uint8_t *)values + i * 4, 4);
}

// A group whose codes lie in 16 bytes: the first 16 in the low halves, the others in the high ones.
static void put_halves(uint8_t *lines, const uint8_t *p) {
    uint32_t four[8];
    for (size_t i = 0; i < 4; i++) {
        four[i] = four_low(p + 4 * i);
        four[4 + i] = four_high(p + 4 * i);
    }
    put_codes(lines, four);
}

static int move_q4_0(const uint8_t *b, uint16_t *scales, uint8_t *lines) {
    memcpy(scales, b, 2);
    put_halves(lines, b + 2);
    return is_finite(*scales);
}

static int move_q4_1(const uint8_t *b, uint16_t *scales, uint8_t *lines) {
    memcpy(scales, b, 2);
    memcpy(scales + FL_LANES, b + 2, 2);
    put_halves(lines, b + 4);
    return is_finite(scales[0]) && is_finite(scales[FL_LANES]);
}

static int move_mxfp4(const uint8_t *b, uint16_t *scales, uint8_t *lines) {
    *scales = fl_f16_from_f32(e8m0_half(b[0]));
    put_halves(lines, b + 1);
    return is_finite(*scales);
}

static int move_iq4_xs(const uint8_t *b, uint16_t *scales, uint8_t *lines) {
    int ok = 1;
    for (size_t s = 0; s < 8; s++, scales += FL_LANES, lines += fl_group_bytes(FL_Q4)) {
        *scales = fl_f16_from_f32(iq4_xs_scale(b, s));
        put_halves(lines, b + 8 + 16 * s);
        ok &= is_finite(*scales);
    }
    return ok;
}

static int move_q4_k(const uint8_t *b, uint16_t *scales, uint8_t *lines) {
    int ok = 1;
    for (size_t s = 0; s < 8; s++, scales += 2 * FL_LANES, lines += fl_group_bytes(FL_Q4_MIN)) {
        float scale, minimum;
        uint32_t four[8];
        const uint8_t *p = b + 16 + s / 2 * 32; // the codes of two groups: low halves, high halves
        scale_and_minimum(b, s, &scale, &minimum);
        scales[0] = fl_f16_from_f32(scale);
        scales[FL_LANES] = fl_f16_from_f32(-minimum);
        for (size_t i = 0; i < 8; i++) four[i] = s % 2 ? four_high(p + 4 * i) : four_low(p + 4 * i);
        put_codes(lines, four);
        ok &= is_finite(scales[0]) && is_finite(scales[FL_LANES]);
    }
    return ok;
}

static int move_q5_0(const uint8_t *b, uint16_t *scales, uint8_t *lines) {
    uint32_t values[8];
    for (size_t i = 0; i < 8; i++) {
        // A value is its code less 16: the low four bits, and above them four times the opposite of bit 4. A factor
        // spreads four such bits, one to a byte.
        const uint32_t bits = b[2 + i / 2] >> 4 * (i % 2) & 15u, ones = 0x01010101u;
        const uint32_t below = (bits * 0x00204081u & ones) ^ ones;
        values[i] = (i < 4 ? four_low(b + 6 + 4 * i) : four_high(b + 6 + 4 * (i - 4))) | below * 0xf0u;
    }
    memcpy(scales, b, 2);
    put_bytes(lines, values);
    return is_finite(*scales);
}

static int move_q8_0(const uint8_t *b, uint16_t *scales, uint8_t *lines) {
    memcpy(scales, b, 2);
    put_bytes(lines, b + 2);
    return is_finite(*scales);
}

// To nearest even, within 127: adding 1.5 * 2^23 leaves no bit for a fraction.
static int8_t nearest(float x) {
    const float rounded = (x + 12582912.0f) - 12582912.0f;
    return (int8_t)(rounded > 127.0f ? 127.0f : rounded < -127.0f ? -127.0f : rounded);
}

// The two halves of a group have scales of their own, s[0] and s[1], for values of six bits. The half with the larger
// weights becomes int8 exactly: its values times the largest whole number that keeps them within 127.
static int move_q6_k(const uint8_t *b, uint16_t *scales, uint8_t *lines) {
    const float d = f16_at(b + 208);
    for (size_t g = 0; g < 8; g++, scales += FL_LANES, lines += fl_group_bytes(FL_Q8)) {
        const uint8_t *low = b + g / 4 * 64 + g % 2 * 32, *high = b + 128 + g / 4 * 32;
        const unsigned low_shift = g / 2 % 2 * 4, high_shift = g % 4 * 2;
        uint8_t codes[32];
        int8_t values[32];
        int most[2];
        for (size_t i = 0; i < 32; i++)
            codes[i] = (uint8_t)((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4);
        for (size_t h = 0; h < 2; h++) {
            uint8_t least = 63, largest = 0;
            for (size_t i = 16 * h; i < 16 * h + 16; i++) {
                least = codes[i] < least ? codes[i] : least;
                largest = codes[i] > largest ? codes[i] : largest;
            }
            most[h] = largest - 32 > 32 - least ? largest - 32 : 32 - least;
        }
        const float s[2] = {d * (float)(int8_t)b[192 + 2 * g], d * (float)(int8_t)b[193 + 2 * g]};
        const size_t larger = fabsf(s[1]) * (float)most[1] > fabsf(s[0]) * (float)most[0];
        const int times = most[larger] ? 127 / most[larger] : 1;
        *scales = fl_f16_from_f32(s[larger] / (float)times);
        // A subnormal scale may be rounded down so far that the largest value would be cut off: then take the next one.
        if (fabsf(fl_f32_from_f16(*scales)) * 127.5f < fabsf(s[larger]) * (float)most[larger]) (*scales)++;
        if (!is_finite(*scales)) return 0;
        const float step = fl_f32_from_f16(*scales);
        for (size_t h = 0; h < 2; h++) {
            const float factor = step != 0 ? s[h] / step : 0;
            for (size_t i = 16 * h; i < 16 * h + 16; i++) values[i] = nearest((float)(codes[i] - 32) * factor);
        }
        put_bytes(lines, values);
    }
    return 1;
}

// ---- the types -----------------------------------------------------------------------------------------------------

static const fl_block blocks[] = {
    {"Q4_0", 32, 18, FL_Q4, centered, q4_0, move_q4_0},
    {"Q4_1", 32, 20, FL_Q4_MIN, counted, q4_1, move_q4_1},
    {"Q5_0", 32, 22, FL_Q8, NULL, q5_0, move_q5_0},
    {"Q5_1", 32, 24, FL_F32, NULL, q5_1, NULL},
    {"Q8_0", 32, 34, FL_Q8, NULL, q8_0, move_q8_0},
    {"Q2_K", 256, 84, FL_F32, NULL, q2_k, NULL},
    {"Q3_K", 256, 110, FL_F32, NULL, q3_k, NULL},
    {"Q4_K", 256, 144, FL_Q4_MIN, counted, q4_k, move_q4_k},
    {"Q5_K", 256, 176, FL_F32, NULL, q5_k, NULL},
    {"Q6_K", 256, 210, FL_Q8, NULL, q6_k, move_q6_k},
    {"IQ4_NL", 32, 18, FL_Q4, iq4_steps, iq4_nl, move_q4_0},
    {"IQ4_XS", 256, 136, FL_Q4, iq4_steps, iq4_xs, move_iq4_xs},
    {"MXFP4", 32, 17, FL_Q4, e2m1, mxfp4, move_mxfp4},
};

const fl_block *fl_blocks(size_t *count) {
    *count = sizeof blocks / sizeof *blocks;
    return blocks;
}
