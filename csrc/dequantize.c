// GGUF's block types, ggml's quantization, to floats. A block of 32 values has one scale d, and in some types a minimum
// m. A block of 256 values has d and m too, and small integers, for each 16 or 32 values, that multiply them. The
// arithmetic is ggml's, in its order, and gives its bits (ggml-quants.c).
#include <string.h>

#include "fastllm.h"
#include "threads.h"

typedef void decode(const uint8_t *b, float *out);

static float f16_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return fl_f32_from_f16(h);
}

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

static void iq4_xs(const uint8_t *b, float *out) {
    const float d = f16_at(b);
    for (size_t s = 0; s < 8; s++) {
        const int high = b[2 + s / 4] >> (2 * (s % 4)) & 3;
        const float scale = d * (float)((nibble(b + 4, 1, s) | high << 4) - 32);
        for (size_t i = 32 * s; i < 32 * s + 32; i++) out[i] = scale * (float)iq4_steps[nibble(b + 8, 16, i)];
    }
}

static const struct {
    const char *name;
    size_t values, bytes;
    decode *to_floats;
} blocks[] = {
    {"Q4_0", 32, 18, q4_0},    {"Q4_1", 32, 20, q4_1},    {"Q5_0", 32, 22, q5_0},    {"Q5_1", 32, 24, q5_1},
    {"Q8_0", 32, 34, q8_0},    {"Q2_K", 256, 84, q2_k},   {"Q3_K", 256, 110, q3_k},  {"Q4_K", 256, 144, q4_k},
    {"Q5_K", 256, 176, q5_k},  {"Q6_K", 256, 210, q6_k},  {"IQ4_NL", 32, 18, iq4_nl}, {"IQ4_XS", 256, 136, iq4_xs},
};

const char *fl_block(size_t i, size_t *values, size_t *bytes) {
    if (i >= sizeof blocks / sizeof *blocks) return NULL;
    *values = blocks[i].values;
    *bytes = blocks[i].bytes;
    return blocks[i].name;
}

typedef struct unpack {
    size_t block, count;
    const uint8_t *data;
    float *out;
} unpack;

static void unpack_share(void *arg, fl_team *team, size_t id) {
    const unpack *u = arg;
    size_t begin, end;
    fl_share(u->count, team, id, &begin, &end);
    for (size_t i = begin; i < end; i++)
        blocks[u->block].to_floats(u->data + i * blocks[u->block].bytes, u->out + i * blocks[u->block].values);
}

fl_status fl_dequantize(size_t block, const void *data, size_t count, size_t threads, float *out) {
    if (block >= sizeof blocks / sizeof *blocks) return FL_BAD_VALUE;
    unpack u = {block, count, data, out};
    fl_parallel(threads, unpack_share, &u);
    return FL_OK;
}
