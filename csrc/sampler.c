// The sampler: what it knows of a text (its seed, biases, the tokens seen), and the way from logits to a token.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "candidates.h"
#include "fpenv.h"

typedef struct bias {
    int32_t token;
    float value;
} bias;

typedef struct seen {
    uint32_t name;  // token + 1; 0: this place is free
    uint32_t count; // how often it was generated
} seen;

struct fl_sampler {
    fl_sampling p;
    size_t vocab;
    uint64_t state;
    seen *places; // (n_places,) a hash table of the tokens in prompt and text, at most half full
    size_t n_places, n_seen;
    bias *biases;
    size_t n_biases;
};

fl_status fl_sampler_new(size_t vocab_size, const fl_sampling *params, uint64_t seed, fl_sampler **out) {
    if (vocab_size == 0 || vocab_size > INT32_MAX) return FL_BAD_CONFIG;
    fl_sampler *s = calloc(1, sizeof *s);
    if (!s) return FL_NO_MEMORY;
    s->p = *params;
    s->vocab = vocab_size;
    s->state = seed ? seed : 0x9E3779B97F4A7C15u; // from zero, xorshift gives nothing but zeros
    *out = s;
    return FL_OK;
}

void fl_sampler_free(fl_sampler *s) {
    if (!s) return;
    free(s->places);
    free(s->biases);
    free(s);
}

fl_status fl_sampler_bias(fl_sampler *s, int32_t token, float value) {
    if (token < 0 || (size_t)token >= s->vocab) return FL_BAD_TOKEN;
    bias *more = realloc(s->biases, (s->n_biases + 1) * sizeof *more);
    if (!more) return FL_NO_MEMORY;
    s->biases = more;
    s->biases[s->n_biases++] = (bias){token, value};
    return FL_OK;
}

// ---- tokens that were seen -----------------------------------------------------------------------------------------

static int penalizes(const fl_sampling *p) {
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f;
}

// A token's place, or the free one that it would take. n_places is a power of two, and some are free.
static seen *place_of(seen *places, size_t n_places, uint32_t name) {
    size_t i = (size_t)(name * 0x9E3779B97F4A7C15u >> 32) & (n_places - 1);
    while (places[i].name != 0 && places[i].name != name) i = (i + 1) & (n_places - 1);
    return &places[i];
}

static fl_status more_places(fl_sampler *s) {
    const size_t n = s->n_places ? 2 * s->n_places : 64;
    seen *more = calloc(n, sizeof *more);
    if (!more) return FL_NO_MEMORY;
    for (size_t i = 0; i < s->n_places; i++)
        if (s->places[i].name != 0) *place_of(more, n, s->places[i].name) = s->places[i];
    free(s->places);
    s->places = more;
    s->n_places = n;
    return FL_OK;
}

fl_status fl_sampler_accept(fl_sampler *s, int32_t token, int generated) {
    if (token < 0 || (size_t)token >= s->vocab) return FL_BAD_TOKEN;
    if (!penalizes(&s->p)) return FL_OK;
    if (2 * s->n_seen >= s->n_places) {
        const fl_status status = more_places(s);
        if (status != FL_OK) return status;
    }
    const uint32_t name = (uint32_t)token + 1;
    seen *place = place_of(s->places, s->n_places, name);
    s->n_seen += place->name == 0;
    place->name = name;
    place->count += generated != 0;
    return FL_OK;
}

// Logits after biases and penalties, written to `out`; where there are none, the given logits.
static const float *adjust(const fl_sampler *s, const float *logits, float *out) {
    const fl_sampling *p = &s->p;
    if (s->n_seen == 0 && s->n_biases == 0) return logits;
    memcpy(out, logits, s->vocab * sizeof(float));
    for (size_t i = 0; i < s->n_biases; i++) out[s->biases[i].token] += s->biases[i].value;
    for (size_t i = 0; i < s->n_places; i++) {
        const seen *place = &s->places[i];
        if (place->name == 0) continue;
        float *l = &out[place->name - 1];
        *l = *l > 0 ? *l / p->repetition_penalty : *l * p->repetition_penalty;
        if (place->count) *l -= p->presence_penalty + (float)place->count * p->frequency_penalty;
    }
    return out;
}

// ---- random numbers ------------------------------------------------------------------------------------------------

// xorshift64* (Marsaglia, 2003; Vigna, 2016), as in llama2.c: a multiple of 2^-24 in [0, 1).
static float draw(fl_sampler *s) {
    s->state ^= s->state >> 12;
    s->state ^= s->state << 25;
    s->state ^= s->state >> 27;
    const uint32_t high = (uint32_t)((s->state * 0x2545F4914F6CDD1Du) >> 32);
    return (float)(high >> 8) / 16777216.0f;
}

// ---- filters -------------------------------------------------------------------------------------------------------

static int is_fraction(float p) { return p > 0.0f && p < 1.0f; }

// The candidates that top_k, top_p and min_p leave. `all` is the sum of all probabilities, the largest being 1.
static fl_cut keep_likely(const fl_sampler *s, fl_draw_scratch *w, const fl_kernels *k, double all) {
    const fl_sampling *p = &s->p;
    const int top_k = p->top_k && p->top_k < s->vocab, nucleus = is_fraction(p->top_p);
    const float min_p = p->min_p > 0.0f ? (p->min_p < 1.0f ? p->min_p : 1.0f) : 0.0f;
    if (top_k) {
        fl_candidates_collect(w, s->vocab, k, p->top_k, 0, 0);
    } else {
        // A lower bound for the nucleus, so that fewer candidates are collected. The tokens before one of the nucleus
        // hold at most top_p; so it and the tokens after it, vocab - 1 at most, hold at least 1 - top_p. It is the
        // largest of these, so it has at least (1 - top_p) / (vocab - 1).
        float least = min_p;
        if (nucleus && s->vocab > 1) {
            const float share = (float)((1.0 - (double)p->top_p) / (double)(s->vocab - 1) * all);
            least = share > least ? share : least;
        }
        const double mass = nucleus ? (double)p->top_p * all : INFINITY;
        fl_candidates_collect(w, s->vocab, k, 0, mass, least < 1.0f ? least : 1.0f);
    }
    const fl_candidate worst = fl_candidate_of(fl_rank_of(min_p), UINT32_MAX); // the last that min_p allows
    fl_cut end = {.last = worst};
    if (top_k) end = fl_candidates_cut(w, p->top_k, INFINITY);
    if (nucleus) end = fl_candidates_cut(w, top_k ? end.count : SIZE_MAX, (double)p->top_p * (top_k ? end.sum : all));
    const int limited = end.last > worst || !(top_k || nucleus);
    if (limited) end.last = worst;
    return limited || is_fraction(p->typical_p) ? fl_candidates_keep(w, end.last) : end;
}

// Of those, the most typical ones that together hold typical_p of the mass or more.
static fl_cut keep_typical(const fl_sampler *s, fl_draw_scratch *w, const fl_kernels *k, fl_cut likely) {
    fl_candidates_rank_typical(w, k, likely.sum);
    const double enough = (double)s->p.typical_p * likely.sum;
    // fl_candidates_cut stops once the sum is larger than a mass; with the next double below `enough`, at `enough`.
    return fl_candidates_cut(w, likely.count, nextafter(enough, 0.0));
}

// ---- drawing -------------------------------------------------------------------------------------------------------

// The token at which the sum of probabilities, in the order of the vocabulary, passes the target: no filter is on, so
// that no order is needed. Goes part by part first.
static size_t draw_any(const fl_draw_scratch *w, size_t vocab, double target) {
    const size_t parts = (vocab + FL_SUM_PART - 1) / FL_SUM_PART;
    size_t part = 0;
    double sum = 0;
    while (part + 1 < parts && sum + (double)w->sums[part] <= target) sum += (double)w->sums[part++];
    for (size_t i = part * FL_SUM_PART; i < vocab; i++) {
        sum += (double)w->probs[i];
        if (target < sum) return i;
    }
    // A part's sum is rounded otherwise than the same numbers one by one, so the target may lie just past the end.
    size_t last = vocab - 1;
    while (last > 0 && w->probs[last] <= 0) last--;
    return last;
}

static fl_status draw_token(fl_sampler *s, fl_draw_scratch *w, const fl_kernels *k, const float *logits,
                            int32_t *token) {
    const fl_sampling *p = &s->p;
    const float *x = adjust(s, logits, w->logits);
    size_t best;
    int finite;
    float max = k->max(logits, s->vocab, &best, &finite);
    if (!finite) return FL_BAD_VALUE;
    if (x != logits) max = k->max(x, s->vocab, &best, &finite); // with biases, which may be -infinity
    if (!isfinite(max)) return FL_BAD_TOKEN;
    // Where logits divided by the temperature overflow, the best token has all the probability. Multiplying takes half
    // the time of dividing.
    const float scale = 1.0f / p->temperature;
    if (p->temperature < 1e-6f || !isfinite(max * scale)) {
        *token = (int32_t)best;
        return FL_OK;
    }
    k->softmax(w->probs, w->sums, x, s->vocab, scale, max * scale);
    double total = 0;
    for (size_t i = 0; i < (s->vocab + FL_SUM_PART - 1) / FL_SUM_PART; i++) total += (double)w->sums[i];
    const double coin = (double)draw(s);
    const int typical = is_fraction(p->typical_p);
    if (!typical && !is_fraction(p->top_p) && p->min_p <= 0.0f && (p->top_k == 0 || p->top_k >= s->vocab)) {
        *token = (int32_t)draw_any(w, s->vocab, coin * total);
        return FL_OK;
    }
    fl_cut end = keep_likely(s, w, k, total);
    if (typical) end = keep_typical(s, w, k, end);
    *token = (int32_t)fl_id_in(fl_candidates_cut(w, end.count, coin * end.sum).last);
    return FL_OK;
}

fl_status fl_sampler_draw(fl_sampler *s, fl_draw_scratch *w, const fl_kernels *k, const float *logits, int32_t *token) {
    const fl_status status = fl_draw_reserve(w, s->vocab);
    if (status != FL_OK) return status;
    const fl_fpenv before = fl_fpenv_set();
    const fl_status drawn = draw_token(s, w, k, logits, token);
    fl_fpenv_restore(before);
    return drawn;
}
