// How keys and values are written to pages; pages.h says what lies where. Each position is rounded by itself, so that
// what a page holds depends on its tokens alone.
#include "kv.h"

#include <string.h>

#include "pages.h"

// A worker's keys and values: own->key is the key that is stored.
typedef struct kv {
    const fl_kernels *kernels;
    const fl_worker_scratch *own;
    size_t head_dim, stride; // channels of a head, and rounded up to 16
} kv;

static kv kv_of(const fl_model *m, const fl_worker_scratch *own) {
    return (kv){m->kernels, own, m->config.head_dim, fl_round_up(m->config.head_dim, FL_LANES)};
}

// Infinities of a key or value become NaN before it is stored. A key's infinity could make a score of -infinity, which
// would weigh 0 and so hide that the key is broken.
static void infinity_to_nan(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] -= x[i] - x[i];
}

// Numbers past the largest f16 become that; NaN stays.
static void saturate(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = x[i] > 65504.0f ? 65504.0f : x[i] < -65504.0f ? -65504.0f : x[i];
}

// ---- floats --------------------------------------------------------------------------------------------------------

static void store_f32(const kv *v, const float *value, char *keys, char *values, size_t slot) {
    for (size_t i = 0; i < v->head_dim; i++) ((float *)(void *)keys)[i * FL_PAGE + slot] = v->own->key[i];
    memcpy((float *)(void *)values + slot * v->stride, value, v->head_dim * sizeof(float));
}

static void store_f16(const kv *v, const float *value, char *keys, char *values, size_t slot) {
    v->kernels->to_f16(v->own->half, v->own->key, v->head_dim);
    for (size_t i = 0; i < v->head_dim; i++) ((uint16_t *)(void *)keys)[i * FL_PAGE + slot] = v->own->half[i];
    v->kernels->to_f16((uint16_t *)(void *)values + slot * v->stride, value, v->head_dim);
}

// ---- int8 and fewer bits -------------------------------------------------------------------------------------------

// Copies x (head_dim,), which may be own->key, there, with zeros past it, and turns it in blocks of up to `most`.
static float *turned(const kv *v, const float *x, size_t most) {
    float *key = v->own->key;
    if (x != key) memcpy(key, x, v->head_dim * sizeof(float));
    memset(key + v->head_dim, 0, (fl_round_up(v->head_dim, FL_GROUP) - v->head_dim) * sizeof(float));
    v->kernels->turn(key, v->head_dim, most);
    return key;
}

// The largest power of two up to head_dim: how wide values are turned.
static size_t value_turn(size_t head_dim) {
    size_t n = 1;
    while (2 * n <= head_dim) n *= 2;
    return n;
}

static void store_key_q8(const kv *v, char *keys, size_t slot) {
    float *scales = (float *)(void *)(keys + FL_PAGE * v->stride);
    const float *x = turned(v, v->own->key, FL_GROUP);
    int8_t *q = v->own->bytes, *line = (int8_t *)keys + slot * 4;
    for (size_t g = 0; g < fl_groups(v->head_dim); g++)
        v->kernels->to_int8(x + g * FL_GROUP, FL_GROUP, 127, 127, q + g * FL_GROUP, scales + g * FL_PAGE + slot);
    for (size_t i = 0; i < v->stride; i += 4) memcpy(line + i * FL_PAGE, q + i, 4);
}

static void store_value_q8(const kv *v, const float *value, char *values, size_t slot) {
    float *scales = (float *)(void *)(values + FL_PAGE * v->stride);
    int8_t *q = v->own->bytes, *line = (int8_t *)values + slot / 4 * 4 * v->stride + slot % 4;
    v->kernels->to_int8(turned(v, value, value_turn(v->head_dim)), v->stride, 127, 127, q, scales + slot);
    for (size_t i = 0; i < v->stride; i++) line[4 * i] = q[i];
}

// A scale as f16. Those past the largest f16 become that.
static void store_scale(const kv *v, float scale, uint16_t *out) {
    saturate(&scale, 1);
    v->kernels->to_f16(out, &scale, 1);
}

// Six bits. Of 16 channels, four each of four lines, the low bits go to two lines, the high to a third.
static void store_key_q4(const kv *v, char *keys, size_t slot) {
    uint16_t *scales = (uint16_t *)(void *)(keys + FL_PAGE * v->stride * 6 / 8);
    const float *x = turned(v, v->own->key, FL_GROUP);
    int8_t *q = v->own->bytes;
    for (size_t g = 0; g < fl_groups(v->head_dim); g++) {
        float scale;
        v->kernels->to_int8(x + g * FL_GROUP, FL_GROUP, 31, 36, q + g * FL_GROUP, &scale);
        store_scale(v, scale, scales + g * FL_PAGE + slot);
    }
    for (size_t c = 0; c < v->stride; c += 16) {
        uint8_t *to = (uint8_t *)keys + (c / 16 * 4 + slot / FL_LANES) * 3 * FL_ALIGN + slot % FL_LANES * 4;
        for (size_t i = 0; i < 4; i++) {
            unsigned code[4];
            for (size_t j = 0; j < 4; j++) code[j] = (unsigned)(q[c + 4 * j + i] + 32);
            to[i] = (uint8_t)((code[0] & 15) | (code[1] & 15) << 4);
            to[FL_ALIGN + i] = (uint8_t)((code[2] & 15) | (code[3] & 15) << 4);
            to[2 * FL_ALIGN + i] = (uint8_t)(code[0] >> 4 | code[1] >> 4 << 2 | code[2] >> 4 << 4 | code[3] >> 4 << 6);
        }
    }
}

// Four bits. A byte has the codes of a position and of the one four further on.
static void store_value_q4(const kv *v, const float *value, char *values, size_t slot) {
    uint16_t *scales = (uint16_t *)(void *)(values + FL_PAGE * v->stride / 2);
    uint8_t *codes = (uint8_t *)v->own->bytes, *line = (uint8_t *)values + slot / 8 * 4 * v->stride + slot % 4;
    const unsigned shift = slot % 8 < 4 ? 0 : 4;
    const float *x = turned(v, value, value_turn(v->head_dim));
    for (size_t g = 0; g < fl_groups(v->head_dim); g++) {
        const size_t rest = v->head_dim - g * FL_GROUP;
        float scale;
        v->kernels->to_codes(x + g * FL_GROUP, rest < FL_GROUP ? rest : FL_GROUP, codes + g * FL_GROUP, &scale);
        store_scale(v, scale, scales + g * FL_PAGE + slot);
    }
    for (size_t i = 0; i < v->stride; i++)
        line[4 * i] = (uint8_t)((line[4 * i] & ~(15u << shift)) | (unsigned)codes[i] << shift);
}

// ---- what attention calls ------------------------------------------------------------------------------------------

void fl_kv_store(const fl_model *m, const fl_worker_scratch *own, size_t layer, size_t head, float *value, void *page,
                 size_t slot) {
    const kv v = kv_of(m, own);
    const size_t n = v.head_dim;
    char *keys = (char *)page + fl_page_keys(m, layer, head), *values = (char *)page + fl_page_values(m, layer, head);
    infinity_to_nan(own->key, n);
    infinity_to_nan(value, n);
    if (m->kv_type != FL_F32) {
        saturate(own->key, n);
        saturate(value, n);
    }
    switch (m->kv_type) {
    case FL_F16: store_f16(&v, value, keys, values, slot); break;
    case FL_Q8:
        store_key_q8(&v, keys, slot);
        store_value_q8(&v, value, values, slot);
        break;
    case FL_Q4:
        store_key_q4(&v, keys, slot);
        store_value_q4(&v, value, values, slot);
        break;
    default: store_f32(&v, value, keys, values, slot);
    }
}

void fl_kv_round_query(const fl_model *m, const fl_worker_scratch *own, const float *q, fl_query *out) {
    const kv v = kv_of(m, own);
    const float *x = turned(&v, q, FL_GROUP);
    for (size_t g = 0; g < fl_groups(v.head_dim); g++)
        out[g].bias = -128 * v.kernels->to_int8(x + g * FL_GROUP, FL_GROUP, 127, 127, out[g].q, &out[g].scale);
}

void fl_kv_turn_back(const fl_model *m, float *x) {
    m->kernels->turn(x, m->config.head_dim, value_turn(m->config.head_dim));
}
