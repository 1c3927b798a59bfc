// From logits to a token. Nothing is sorted: a histogram says in which bucket of probabilities a sum is reached, and only
// that bucket's tokens are looked at more closely. So a draw takes a few passes over the vocabulary at most.
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fpenv.h"
#include "kernels/kernels.h"

typedef struct bias {
    int32_t token;
    float value;
} bias;

typedef struct seen {
    uint32_t name;  // token + 1; 0: a free place
    uint32_t count; // how often it was generated
} seen;

struct fl_sampler {
    fl_sampling p;
    size_t vocab;
    uint64_t state;
    seen *places; // (n_places,) a hash table of the tokens in prompt or text, at most half full
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
    s->state = seed ? seed : 0x9E3779B97F4A7C15u; // xorshift never leaves zero
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

// Where a token is or would be; n_places, a power of two, has a free place.
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

// Logits after biases and penalties, in `out`: the given ones where there are none.
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

// xorshift64* (Marsaglia, 2003; Vigna, 2016), as llama2.c draws: 24 bits in [0, 1).
static float draw(fl_sampler *s) {
    s->state ^= s->state >> 12;
    s->state ^= s->state << 25;
    s->state ^= s->state >> 27;
    const uint32_t high = (uint32_t)((s->state * 0x2545F4914F6CDD1Du) >> 32);
    return (float)(high >> 8) / 16777216.0f;
}

// ---- working memory ------------------------------------------------------------------------------------------------

// A token that may be drawn: its rank in the high half and its id in the low one, so that their order as numbers is
// that by rank, lowest id first among equals.
typedef uint64_t candidate;

static inline candidate candidate_of(uint32_t rank, size_t id) { return (candidate)rank << 32 | id; }
static inline uint32_t rank_in(candidate c) { return (uint32_t)(c >> 32); }
static inline size_t id_in(candidate c) { return (size_t)(c & UINT32_MAX); }

// Candidates by ascending id, and between which ranks they lie.
typedef struct group {
    const candidate *c;
    size_t n;
    uint32_t low, high;
} group;

// Candidates by their rank: bucket b has those whose rank >> shift is first + b.
enum { FL_BUCKETS = 1024 };

typedef struct histogram {
    uint32_t first;
    unsigned shift;
    struct bucket {
        double sum; // of their probabilities
        size_t count;
    } buckets[FL_BUCKETS];
} histogram;

typedef struct level {
    group g;
    uint32_t first, width; // of which ranks it has those of the level before
    int counted;           // whether h is of it
    histogram h;
} level;

enum { FL_LEVELS = 3 };

struct fl_draw_scratch {
    size_t vocab; // what it has room for
    void *memory;
    // (vocab rounded up to 16) each:
    float *logits;    // after penalties
    float *probs;     // of all tokens; the largest is 1
    float *kept;      // of the candidates that `keep` left
    double *logs;     // of those
    candidate *found[FL_LEVELS]; // of the levels
    // Of each run of FL_SUM_RUN tokens:
    float *sums;  // of probabilities
    float *parts; // of those that are likely enough
    // All candidates; those of the bucket that was looked into last; those of one of its buckets, and so on.
    level levels[FL_LEVELS];
};

fl_status fl_draw_scratch_new(fl_draw_scratch **out) {
    *out = calloc(1, sizeof **out);
    return *out ? FL_OK : FL_NO_MEMORY;
}

void fl_draw_scratch_free(fl_draw_scratch *w) {
    if (!w) return;
    fl_free(w->memory);
    free(w);
}

static fl_status reserve(fl_draw_scratch *w, size_t vocab) {
    if (vocab <= w->vocab) return FL_OK;
    const size_t padded = fl_round_up(vocab, FL_LANES), runs = fl_round_up(vocab / FL_SUM_RUN + 1, FL_LANES);
    char *at = fl_alloc(padded * (3 * sizeof(float) + FL_LEVELS * sizeof(candidate) + sizeof(double)) +
                        2 * runs * sizeof(float));
    if (!at) return FL_NO_MEMORY;
    fl_free(w->memory);
    w->vocab = vocab;
    w->memory = at;
    w->probs = (float *)at;
    w->logits = w->probs + padded;
    w->kept = w->logits + padded;
    w->sums = w->kept + padded;
    w->parts = w->sums + runs;
    w->found[0] = (candidate *)(w->parts + runs);
    for (size_t i = 1; i < FL_LEVELS; i++) w->found[i] = w->found[i - 1] + padded;
    w->logs = (double *)(w->found[FL_LEVELS - 1] + padded);
    return FL_OK;
}

// ---- order ---------------------------------------------------------------------------------------------------------

// By descending probability: how far one is from 1, in steps that are finer for smaller ones. Steps of 2^20, aligned,
// hold probabilities that are multiples of one unit and at most 2^24 of it: their sums are exact.
static uint32_t rank_of(float p) {
    uint32_t bits;
    memcpy(&bits, &p, sizeof bits);
    return 0x3F800000u - bits;
}

static inline void add(struct bucket *buckets, const histogram *h, candidate c, const float *probs) {
    struct bucket *b = &buckets[(rank_in(c) >> h->shift) - h->first];
    b->sum += (double)probs[id_in(c)];
    b->count++;
}

static void tally(histogram *h, const group *g, const float *probs) {
    struct bucket odd[FL_BUCKETS]; // of every other candidate: additions to one bucket wait for each other
    size_t buckets = 16;
    while (buckets < g->n && buckets < FL_BUCKETS) buckets *= 2;
    h->shift = 0;
    while ((g->high >> h->shift) - (g->low >> h->shift) >= buckets) h->shift++;
    h->first = g->low >> h->shift;
    memset(h->buckets, 0, buckets * sizeof *odd);
    memset(odd, 0, buckets * sizeof *odd);
    for (size_t i = 0; i < g->n; i += 2) {
        add(h->buckets, h, g->c[i], probs);
        if (i + 1 < g->n) add(odd, h, g->c[i + 1], probs);
    }
    for (size_t i = 0; i < buckets; i++) {
        h->buckets[i].sum += odd[i].sum;
        h->buckets[i].count += odd[i].count;
    }
}

// The first n of what is in w->found[i] are that level from now on.
static void set_level(fl_draw_scratch *w, size_t i, size_t n, uint32_t first, uint32_t width) {
    const candidate *c = w->found[i];
    uint32_t low = UINT32_MAX, high = 0;
    for (size_t j = 0; j < n; j++) {
        const uint32_t rank = rank_in(c[j]);
        low = rank < low ? rank : low;
        high = rank > high ? rank : high;
    }
    w->levels[i].g = (group){w->found[i], n, low, high};
    w->levels[i].first = first;
    w->levels[i].width = width;
    w->levels[i].counted = 0;
    if (i == 0) w->levels[1].width = 0; // it is of other candidates
}

// Makes those of a group whose ranks are `first` or up to `width` - 1 more level i, which may be the group's own. Without
// a branch, which nothing could foretell: to[n] is written anyway.
static void narrow(fl_draw_scratch *w, group g, uint32_t first, uint32_t width, size_t i) {
    const candidate from = candidate_of(first, 0), span = candidate_of(width, 0);
    candidate *to = w->found[i];
    size_t n = 0;
    for (size_t j = 0; j < g.n; j++) {
        const candidate c = g.c[j];
        to[n] = c;
        n += c - from < span;
    }
    set_level(w, i, n, first, width);
}

// The first candidates in order.
typedef struct cut {
    size_t count;
    double sum;     // of their probabilities
    candidate last; // of them
} cut;

// As many as hold more than `mass`, but at most `most`, all of them where there are not so many.
static cut beginning(fl_draw_scratch *w, size_t most, double mass) {
    cut at = {.count = 0};
    const level *v = w->levels;
    double before = 0, inside = 0; // the sums of whole buckets of the first level, and of what else is left behind
    if (most > v->g.n) most = v->g.n;
    for (size_t i = 0; v->g.low < v->g.high; v = &w->levels[i]) {
        if (!v->counted) tally(&w->levels[i].h, &v->g, w->probs);
        w->levels[i].counted = 1;
        // The counts of all buckets add up to what makes this end.
        const struct bucket *b = v->h.buckets;
        for (; at.count + b->count < most && before + (inside + b->sum) <= mass; b++) {
            at.count += b->count;
            inside += b->sum;
        }
        if (most > at.count + b->count) most = at.count + b->count;
        if (i == 0) {
            before = inside;
            inside = 0;
        }
        const uint32_t first = (v->h.first + (uint32_t)(b - v->h.buckets)) << v->h.shift, width = 1u << v->h.shift;
        i += i + 1 < FL_LEVELS;
        // What comes next is often in the same bucket.
        if (i > 1 || w->levels[1].first != first || w->levels[1].width != width) narrow(w, v->g, first, width, i);
    }
    for (size_t j = 0; j < v->g.n; j++) {
        at.count++;
        at.last = v->g.c[j];
        inside += (double)w->probs[id_in(at.last)];
        if (at.count >= most || before + inside > mass) break;
    }
    at.sum = before + inside;
    return at;
}

// The sum of p, or of p times `times`: of each lane, and then of the lanes. p is zero past n up to a multiple of 16.
static double sum_of(const float *p, const double *times, size_t n) {
    double sums[FL_LANES] = {0};
    for (size_t i = 0; i < n; i += FL_LANES)
        for (size_t j = 0; j < FL_LANES; j++) sums[j] += times ? (double)p[i + j] * times[i + j] : (double)p[i + j];
    for (size_t half = FL_LANES / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++) sums[j] += sums[j + half];
    return sums[0];
}

// Leaves of the candidates those up to `last`, with their probabilities in w->kept; returns the sum of these.
static double keep(fl_draw_scratch *w, candidate last) {
    candidate *found = w->found[0];
    float *kept = w->kept;
    size_t n = 0;
    for (size_t i = 0; i < w->levels[0].g.n; i++) {
        const candidate c = found[i];
        found[n] = c;
        n += c <= last;
    }
    set_level(w, 0, n, 0, 0);
    for (size_t i = 0; i < n; i++) kept[i] = w->probs[id_in(found[i])];
    for (size_t i = n; i < fl_round_up(n, FL_LANES); i++) kept[i] = 0;
    return sum_of(kept, NULL, n);
}

// ---- filters -------------------------------------------------------------------------------------------------------

static int is_fraction(float p) { return p > 0.0f && p < 1.0f; }

// The sum of the probabilities above a bound, run by run in w->parts. A run whose sum is no larger has none: few have.
static double sum_above(fl_draw_scratch *w, size_t vocab, const fl_kernels *k, float bound) {
    double sum = 0;
    for (size_t run = 0; run * FL_SUM_RUN < vocab; run++) {
        const size_t begin = run * FL_SUM_RUN, rest = vocab - begin;
        const size_t some = rest < FL_SUM_RUN ? rest : FL_SUM_RUN;
        w->parts[run] = w->sums[run] > bound ? k->above(w->probs + begin, some, bound) : 0;
        sum += (double)w->parts[run];
    }
    return sum;
}

// Makes the tokens above a bound candidates; w->parts as `sum_above` makes it of that bound.
static void collect(fl_draw_scratch *w, size_t vocab, float bound) {
    const size_t padded = fl_round_up(vocab, FL_LANES);
    const float *probs = w->probs, *parts = w->parts;
    const uint32_t worst = rank_of(bound);
    candidate *found = w->found[0];
    size_t n = 0;
    for (size_t i = 0; i < padded; i += FL_LANES) {
        if (parts[i / FL_SUM_RUN] <= 0) {
            i += FL_SUM_RUN - FL_LANES;
            continue;
        }
        int any = 0;
        for (size_t j = i; j < i + FL_LANES; j++) any |= (int32_t)rank_of(probs[j]) < (int32_t)worst; // as vectors do
        if (!any) continue;
        for (size_t j = i; j < i + FL_LANES; j++) { // what is past the vocabulary is zero
            found[n] = candidate_of(rank_of(probs[j]), j);
            n += found[n] < candidate_of(worst, 0);
        }
    }
    set_level(w, 0, n, 0, 0);
}

// Candidates: at least the `most` most likely, and the most likely that together hold more than `mass`; all that have
// `least` where those are fewer. Tries ever lower bounds: few tokens hold most of the mass.
static void likely(fl_draw_scratch *w, size_t vocab, const fl_kernels *k, size_t most, double mass, float least) {
    const float lowest = least > 0 ? nextafterf(least, 0.0f) : 0.0f;
    float bound = mass < INFINITY && most < vocab / 32 ? 2.0f : 0.0f;
    do {
        double sum;
        do {
            bound = bound > 1e-9f ? bound / 16 : 0.0f;
            if (bound < lowest) bound = lowest;
            sum = sum_above(w, vocab, k, bound);
        } while (bound > lowest && sum <= mass * 1.0001); // added up one by one they may round to a little less
        collect(w, vocab, bound);
    } while (bound > lowest && w->levels[0].g.n < most);
}

// Candidates in descending order of probability until top_k, top_p or min_p says enough. `all` is the sum over the
// vocabulary, the largest being 1.
static cut keep_likely(const fl_sampler *s, fl_draw_scratch *w, const fl_kernels *k, double all) {
    const fl_sampling *p = &s->p;
    const int top_k = p->top_k && p->top_k < s->vocab, nucleus = is_fraction(p->top_p);
    const float min_p = p->min_p > 0.0f ? (p->min_p < 1.0f ? p->min_p : 1.0f) : 0.0f;
    if (top_k) {
        likely(w, s->vocab, k, p->top_k, 0, 0);
    } else {
        // Tokens under the nucleus' share of the rest cannot be in it: there are too few of them to fill it.
        float least = min_p;
        if (nucleus && s->vocab > 1) {
            const float share = (float)((1.0 - (double)p->top_p) / (double)(s->vocab - 1) * all);
            least = share > least ? share : least;
        }
        likely(w, s->vocab, k, 0, nucleus ? (double)p->top_p * all : INFINITY, least < 1.0f ? least : 1.0f);
    }
    const candidate worst = candidate_of(rank_of(min_p), UINT32_MAX); // the best is always a candidate
    cut end = {.last = worst};
    if (top_k) end = beginning(w, p->top_k, INFINITY);
    if (nucleus) end = beginning(w, top_k ? end.count : SIZE_MAX, (double)p->top_p * (top_k ? end.sum : all));
    const int limited = end.last > worst || !(top_k || nucleus);
    if (limited) end.last = worst;
    if (limited || is_fraction(p->typical_p)) {
        end.sum = keep(w, end.last);
        end.count = w->levels[0].g.n;
    }
    return end;
}

// Of the candidates, those whose log-probability is nearest to the expected one, until they hold typical_p of the mass:
// that is their new order.
static cut keep_typical(const fl_sampler *s, fl_draw_scratch *w, const fl_kernels *k, double total) {
    candidate *c = w->found[0];
    const size_t n = w->levels[0].g.n;
    k->log(w->logs, w->kept, n);
    const double expected = sum_of(w->kept, w->logs, n) / total;
    for (size_t i = 0; i < n; i++) {
        const float far = (float)fabs(w->logs[i] - expected);
        uint32_t rank; // the bits of positive floats are in their order
        memcpy(&rank, &far, sizeof rank);
        c[i] = candidate_of(rank, id_in(c[i]));
    }
    set_level(w, 0, n, 0, 0);
    return beginning(w, n, nextafter((double)s->p.typical_p * total, 0.0)); // exactly that much is enough
}

// ---- drawing -------------------------------------------------------------------------------------------------------

// Walks the whole vocabulary in order, run by run: no candidate list needed where nothing is filtered.
static size_t draw_any(const fl_draw_scratch *w, size_t vocab, double target) {
    const size_t runs = (vocab + FL_SUM_RUN - 1) / FL_SUM_RUN;
    size_t run = 0;
    double sum = 0;
    while (run + 1 < runs && sum + (double)w->sums[run] <= target) sum += (double)w->sums[run++];
    for (size_t i = run * FL_SUM_RUN; i < vocab; i++) {
        sum += (double)w->probs[i];
        if (target < sum) return i;
    }
    // The runs were added up in another order than their parts: the target may lie a rounding beyond the end.
    size_t last = vocab - 1;
    while (last > 0 && w->probs[last] <= 0) last--;
    return last;
}

static fl_status draw_token(fl_sampler *s, fl_draw_scratch *w, const fl_kernels *k, const float *logits, int32_t *token) {
    const fl_sampling *p = &s->p;
    const float *x = adjust(s, logits, w->logits);
    size_t best;
    int finite;
    float max = k->max(logits, s->vocab, &best, &finite);
    if (!finite) return FL_BAD_VALUE;
    if (x != logits) max = k->max(x, s->vocab, &best, &finite); // a bias may be -infinity
    if (!isfinite(max)) return FL_BAD_TOKEN;
    // Where logits divided by the temperature overflow, the best one has all the probability. (A product takes half the
    // time of as many quotients.)
    const float scale = 1.0f / p->temperature;
    if (p->temperature < 1e-6f || !isfinite(max * scale)) {
        *token = (int32_t)best;
        return FL_OK;
    }
    k->softmax(w->probs, w->sums, x, s->vocab, scale, max * scale);
    double total = 0;
    for (size_t i = 0; i < (s->vocab + FL_SUM_RUN - 1) / FL_SUM_RUN; i++) total += (double)w->sums[i];
    const double coin = (double)draw(s);
    const int typical = is_fraction(p->typical_p);
    if (!typical && !is_fraction(p->top_p) && p->min_p <= 0.0f && (p->top_k == 0 || p->top_k >= s->vocab)) {
        *token = (int32_t)draw_any(w, s->vocab, coin * total);
        return FL_OK;
    }
    cut end = keep_likely(s, w, k, total);
    if (typical) end = keep_typical(s, w, k, end.sum);
    *token = (int32_t)id_in(beginning(w, end.count, coin * end.sum).last);
    return FL_OK;
}

fl_status fl_sampler_draw(fl_sampler *s, fl_draw_scratch *w, const fl_kernels *k, const float *logits, int32_t *token) {
    const fl_status status = reserve(w, s->vocab);
    if (status != FL_OK) return status;
    const fl_fpenv before = fl_fpenv_set();
    const fl_status drawn = draw_token(s, w, k, logits, token);
    fl_fpenv_restore(before);
    return drawn;
}
