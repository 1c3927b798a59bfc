// The sampler: what it knows of a text (its seed, biases, the tokens seen), and the way from logits to a token.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "candidates.h"
#include "fpenv.h"
#include "threads.h"

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
    int32_t *barred; // (n_barred,) tokens that are not drawn before `until` tokens have been generated
    size_t n_barred, until, n_generated;
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
    free(s->barred);
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

fl_status fl_sampler_bar(fl_sampler *s, const int32_t *tokens, size_t n, size_t until) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (size_t)tokens[i] >= s->vocab) return FL_BAD_TOKEN;
    int32_t *barred = malloc((n + 1) * sizeof *barred); // never of no bytes, for which malloc may return NULL
    if (!barred) return FL_NO_MEMORY;
    memcpy(barred, tokens, n * sizeof *barred);
    free(s->barred);
    s->barred = barred;
    s->n_barred = n;
    s->until = until;
    return FL_OK;
}

// A copy of n elements, or NULL for none. Notes in *status where there is no memory.
static void *duplicate(const void *from, size_t n, size_t size, fl_status *status) {
    if (n == 0) return NULL;
    void *to = malloc(n * size);
    if (to) memcpy(to, from, n * size);
    else *status = FL_NO_MEMORY;
    return to;
}

fl_status fl_sampler_copy(const fl_sampler *s, fl_sampler **out) {
    fl_status status = FL_OK;
    fl_sampler *copy = duplicate(s, 1, sizeof *s, &status);
    if (!copy) return status;
    copy->places = duplicate(s->places, s->n_places, sizeof *s->places, &status);
    copy->biases = duplicate(s->biases, s->n_biases, sizeof *s->biases, &status);
    copy->barred = duplicate(s->barred, s->n_barred, sizeof *s->barred, &status);
    if (status == FL_OK) *out = copy;
    else fl_sampler_free(copy);
    return status;
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

// Makes room for one more token, so that the next fl_sampler_accept does not fail.
static fl_status reserve_place(fl_sampler *s) {
    if (!penalizes(&s->p) || 2 * s->n_seen < s->n_places) return FL_OK;
    const size_t n = s->n_places ? 2 * s->n_places : 16;
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
    const fl_status status = reserve_place(s);
    if (status != FL_OK) return status;
    s->n_generated += generated != 0;
    if (!penalizes(&s->p)) return FL_OK;
    const uint32_t name = (uint32_t)token + 1;
    seen *place = place_of(s->places, s->n_places, name);
    s->n_seen += place->name == 0;
    place->name = name;
    place->count += generated != 0;
    return FL_OK;
}

static int bars(const fl_sampler *s) { return s->n_barred > 0 && s->n_generated < s->until; }

// Whether logits have to be adjusted at all.
static int adjusts(const fl_sampler *s) { return s->n_seen > 0 || s->n_biases > 0 || bars(s); }

// Writes logits after biases and penalties, and without the tokens that are barred now.
static void adjust(const fl_sampler *s, const float *logits, float *out) {
    const fl_sampling *p = &s->p;
    memcpy(out, logits, s->vocab * sizeof(float));
    for (size_t i = 0; i < s->n_biases; i++) out[s->biases[i].token] += s->biases[i].value;
    for (size_t i = 0; i < s->n_places; i++) {
        const seen *place = &s->places[i];
        if (place->name == 0) continue;
        float *l = &out[place->name - 1];
        *l = *l > 0 ? *l / p->repetition_penalty : *l * p->repetition_penalty;
        if (place->count) *l -= p->presence_penalty + (float)place->count * p->frequency_penalty;
    }
    if (bars(s))
        for (size_t i = 0; i < s->n_barred; i++) out[s->barred[i]] = -INFINITY;
}

// Whether processed logits that are not all finite are as they may be: -infinity forbids a token.
static int only_forbids(const float *logits, size_t n) {
    int ok = 1;
    for (size_t i = 0; i < n; i++) ok &= logits[i] < INFINITY; // false for NaN too
    return ok;
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
static fl_cut keep_likely(const fl_sampler *s, fl_draw_worker *w, const fl_kernels *k, double all) {
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
static fl_cut keep_typical(const fl_sampler *s, fl_draw_worker *w, const fl_kernels *k, fl_cut likely) {
    fl_candidates_rank_typical(w, k, likely.sum);
    const double enough = (double)s->p.typical_p * likely.sum;
    // fl_candidates_cut stops once the sum is larger than a mass; with the next double below `enough`, at `enough`.
    return fl_candidates_cut(w, likely.count, nextafter(enough, 0.0));
}

// ---- drawing -------------------------------------------------------------------------------------------------------

// The token at which the sum of probabilities, in the order of the vocabulary, passes the target: no filter is on, so
// that no order is needed. Goes part by part first.
static size_t draw_any(const fl_draw_worker *w, size_t vocab, double target) {
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

// A draw that fails leaves the sampler as it was: nothing fails after the random number is taken.
static fl_status draw_token(fl_sampler *s, fl_draw_scratch *scratch, size_t id, const fl_kernels *k,
                            const float *logits, int processed, int32_t *token) {
    const fl_sampling *p = &s->p;
    const float *x = logits;
    fl_draw_worker *w;
    size_t best;
    int finite;
    float max = k->max(logits, s->vocab, &best, &finite);
    if (!finite && !(processed && only_forbids(logits, s->vocab))) return FL_BAD_VALUE;
    if (adjusts(s)) {
        const fl_status status = fl_draw_reserve(scratch, id, s->vocab, &w);
        if (status != FL_OK) return status;
        adjust(s, logits, w->logits);
        x = w->logits;
        max = k->max(x, s->vocab, &best, &finite); // biases may be -infinity
    }
    if (!isfinite(max)) return FL_BAD_TOKEN;
    // Where logits divided by the temperature overflow, the best token has all the probability. Multiplying takes half
    // the time of dividing.
    const float scale = 1.0f / p->temperature;
    if (p->temperature < 1e-6f || !isfinite(max * scale)) {
        *token = (int32_t)best;
        return FL_OK;
    }
    const fl_status status = fl_draw_reserve(scratch, id, s->vocab, &w);
    if (status != FL_OK) return status;
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

fl_status fl_sampler_draw(fl_sampler *s, fl_draw_scratch *scratch, const fl_kernels *k, const float *logits,
                          int32_t *token) {
    const fl_fpenv before = fl_fpenv_set();
    const fl_status status = draw_token(s, scratch, 0, k, logits, 0, token);
    fl_fpenv_restore(before);
    return status;
}

// ---- many texts ----------------------------------------------------------------------------------------------------

typedef struct drawing {
    fl_draw_scratch *scratch;
    const fl_kernels *k;
    fl_draw *draws;
    size_t n;
} drawing;

static void draw_text(const drawing *all, fl_draw *d, size_t id) {
    const size_t stride = fl_round_up(d->sampler->vocab, FL_LANES);
    for (d->n_tokens = 0;; d->n_tokens++) {
        const float *row = d->logits + d->n_tokens * stride;
        int32_t *token = &d->tokens[d->n_tokens];
        if (d->n_tokens > 0 && (d->n_tokens > d->n_guesses || token[-1] != d->guesses[d->n_tokens - 1])) return;
        d->status = reserve_place(d->sampler);
        if (d->status == FL_OK) d->status = draw_token(d->sampler, all->scratch, id, all->k, row, d->processed, token);
        if (d->status == FL_OK) d->status = fl_sampler_accept(d->sampler, *token, 1);
        if (d->status != FL_OK) break;
    }
    if (d->n_tokens > 0) d->status = FL_OK;
}

static void draw_share(void *arg, fl_team *team, size_t id) {
    const drawing *all = arg;
    fl_deal deal = fl_deal_start(team, id, all->n, 1);
    for (size_t begin, end; fl_deal_next(&deal, &begin, &end);) draw_text(all, &all->draws[begin], id);
}

// A team is started and met in a few microseconds, some tens if its threads sleep. One thread draws what is not worth
// that: the shortest work that a thread is given takes it 10 us or so. The most likely token costs one pass over the
// logits, at 16 or more in a nanosecond; filters and exponentials take some twenty times as long.
size_t fl_draw_threads(const fl_draw *draws, size_t n, size_t threads) {
    enum { FILTERS = 16, WORTH = 256 << 10 };
    size_t work = 0; // counted in logits of greedy draws
    for (size_t i = 0; i < n; i++) {
        const fl_sampler *s = draws[i].sampler;
        work += s->p.temperature < 1e-6f ? s->vocab : FILTERS * s->vocab;
    }
    const size_t worth = 1 + work / WORTH, most = n < threads ? n : threads;
    return worth < most ? worth : most;
}

void fl_draw_all(fl_draw_scratch *scratch, const fl_kernels *k, fl_draw *draws, size_t n, size_t threads,
                 fl_pace *pace) {
    drawing all = {scratch, k, draws, n};
    fl_paced(pace, n, threads, draw_share, &all, NULL);
}
