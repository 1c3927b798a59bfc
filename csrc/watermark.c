// A watermark's lists are those of the transformers library: its detector finds what this writes, and the other way
// round. A list is the beginning of a permutation that a random generator makes from a seed: PyTorch's on CPUs, that
// is, the Mersenne Twister (Matsumoto and Nishimura, 1998) seeded with 32 bits, and a shuffle from the front.
#include "watermark.h"

#include <stdlib.h>

enum { TWISTED = 624, TABLE = 1000003 };

typedef struct twister {
    uint32_t state[TWISTED];
    size_t at;
} twister;

static void seed_twister(twister *t, uint32_t seed) {
    t->state[0] = seed;
    for (uint32_t i = 1; i < TWISTED; i++)
        t->state[i] = 1812433253u * (t->state[i - 1] ^ t->state[i - 1] >> 30) + i;
    t->at = TWISTED;
}

static uint32_t twist(twister *t) {
    if (t->at == TWISTED) {
        for (size_t i = 0; i < TWISTED; i++) {
            const uint32_t y = (t->state[i] & 0x80000000u) | (t->state[(i + 1) % TWISTED] & 0x7FFFFFFFu);
            t->state[i] = t->state[(i + 397) % TWISTED] ^ y >> 1 ^ (y & 1 ? 0x9908B0DFu : 0u);
        }
        t->at = 0;
    }
    uint32_t y = t->state[t->at++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9D2C5680u;
    y ^= y << 15 & 0xEFC60000u;
    return y ^ y >> 18;
}

// The first `some` of the permutation of 0 .. n - 1 that a seed gives; all of `order` (n,) is written.
static void shuffle(uint32_t *order, size_t n, size_t some, uint32_t seed) {
    twister t;
    seed_twister(&t, seed);
    for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    for (size_t i = 0; i < some && i + 1 < n; i++) {
        const size_t j = i + twist(&t) % (n - i);
        const uint32_t moved = order[i];
        order[i] = order[j];
        order[j] = moved;
    }
}

struct fl_watermark {
    size_t vocab, n_green, width;
    float bias;
    uint64_t key;
    uint32_t *table; // (TABLE,) a fixed permutation, for selfhash alone
};

fl_status fl_watermark_new(size_t vocab_size, double ratio, float bias, uint64_t key, int selfhash, size_t width,
                           fl_watermark **out) {
    if (vocab_size == 0 || vocab_size > INT32_MAX || !(ratio > 0 && ratio < 1) || width == 0) return FL_BAD_CONFIG;
    fl_watermark *m = calloc(1, sizeof *m);
    if (!m) return FL_NO_MEMORY;
    *m = (fl_watermark){vocab_size, (size_t)((double)vocab_size * ratio), width, bias, key, NULL};
    if (selfhash) {
        m->table = malloc(TABLE * sizeof *m->table);
        if (!m->table) {
            free(m);
            return FL_NO_MEMORY;
        }
        shuffle(m->table, TABLE, TABLE, (uint32_t)key);
    }
    *out = m;
    return FL_OK;
}

void fl_watermark_free(fl_watermark *m) {
    if (!m) return;
    free(m->table);
    free(m);
}

int fl_watermark_is_selfhash(const fl_watermark *m) { return m->table != NULL; }
float fl_watermark_bias(const fl_watermark *m) { return m->bias; }
size_t fl_watermark_width(const fl_watermark *m) { return m->width; }

// Python's seed % (2^64 - 1) of a signed number of 64 bits.
static uint64_t wrapped(int64_t seed) { return seed < 0 ? (uint64_t)seed - 1 : (uint64_t)seed; }

size_t fl_watermark_list(const fl_watermark *m, const int32_t *context, size_t n, int32_t own, uint32_t *order) {
    uint64_t seed;
    if (m->table) { // the least of products, as signed numbers that overflow
        const uint64_t last = m->key * ((uint64_t)m->table[own % TABLE] + 1);
        int64_t least = (int64_t)(last * ((uint64_t)m->table[own % TABLE] + 1));
        for (size_t i = 0; i < n; i++) {
            const int64_t product = (int64_t)(last * ((uint64_t)m->table[context[i] % TABLE] + 1));
            least = product < least ? product : least;
        }
        seed = wrapped(least);
    } else {
        seed = wrapped((int64_t)(m->key * (uint64_t)context[n - 1]));
    }
    shuffle(order, m->vocab, m->n_green, (uint32_t)seed);
    return m->n_green;
}

fl_status fl_watermark_green(const fl_watermark *m, const int32_t *context, int32_t token, int *green) {
    const size_t n = m->table ? m->width - 1 : m->width;
    for (size_t i = 0; i < n; i++)
        if (context[i] < 0 || (size_t)context[i] >= m->vocab) return FL_BAD_TOKEN;
    if (token < 0 || (size_t)token >= m->vocab) return FL_BAD_TOKEN;
    uint32_t *order = malloc(m->vocab * sizeof *order);
    if (!order) return FL_NO_MEMORY;
    const size_t count = fl_watermark_list(m, context, n, token, order);
    *green = 0;
    for (size_t i = 0; i < count; i++) *green |= order[i] == (uint32_t)token;
    free(order);
    return FL_OK;
}
