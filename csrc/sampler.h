// What a sampler is made of, for those who use parts of a draw: beams.c.
#ifndef FL_SAMPLER_H
#define FL_SAMPLER_H

#include "filters.h"
#include "history.h"
#include "watermark.h"

struct fl_sampler {
    fl_sampling p;
    size_t vocab;
    uint64_t state; // of its random numbers
    fl_chain chain;
    fl_history history;
    double mu;                     // mirostat's: the largest surprise in bits that it lets through
    const fl_watermark *watermark; // NULL: none
};

// The state that random numbers of a seed begin with: from zero, xorshift gives nothing but zeros.
static inline uint64_t fl_coin_state(uint64_t seed) { return seed ? seed : 0x9E3779B97F4A7C15u; }

// The next random number: xorshift64* (Marsaglia, 2003; Vigna, 2016), as in llama2.c: a multiple of 2^-24 in [0, 1).
static inline float fl_coin(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    const uint32_t high = (uint32_t)((*state * 0x2545F4914F6CDD1Du) >> 32);
    return (float)(high >> 8) / 16777216.0f;
}

// Whether logits (n,) that others have changed are as they may be: all finite, but that -infinity forbids a token.
int fl_only_forbids(const float *logits, size_t n);

// Forbids the tokens whose bits in mask ((vocab + 31) / 32,) are 0. Returns how many are allowed.
size_t fl_apply_mask(const uint32_t *mask, float *logits, size_t vocab);

// Adds the watermark's bias to the logits (vocab,) of green tokens. Overwrites w->found, w->marks and w->order.
void fl_raise_green(const fl_sampler *s, fl_draw_worker *w, const fl_kernels *k, float *logits);

#endif
