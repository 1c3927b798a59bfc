// From logits to a token. No full sort: only tokens that may be kept are looked at, and only those that are kept sorted.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

typedef struct candidate {
    float key; // their order: largest first, lowest id among equals
    int32_t id;
} candidate;

typedef struct bias {
    int32_t token;
    float value;
} bias;

struct fl_sampler {
    fl_sampling p;
    size_t vocab;
    uint64_t state;
    uint32_t *counts;  // (vocab,) how often a token was generated
    uint8_t *seen;     // (vocab,) whether it was in prompt or text
    int32_t *history;  // the tokens seen, each once
    size_t n_history;
    bias *biases;
    size_t n_biases;
    float *logits;     // (vocab rounded up to 16) after penalties
    float *probs;      // the same size
    float *sums;       // of runs of FL_SUM_RUN probabilities
    float *parts;      // of runs, the sums of those that are likely enough
    candidate *found;  // (vocab,)
    candidate *kept;   // (vocab,) the likeliest first
};

fl_status fl_sampler_new(size_t vocab_size, const fl_sampling *params, uint64_t seed, fl_sampler **out) {
    fl_sampler *s = calloc(1, sizeof *s);
    if (!s) return FL_NO_MEMORY;
    const size_t padded = fl_round_up(vocab_size, FL_LANES);
    s->p = *params;
    s->vocab = vocab_size;
    s->state = seed ? seed : 0x9E3779B97F4A7C15u; // xorshift never leaves zero
    s->counts = calloc(vocab_size, sizeof *s->counts);
    s->seen = calloc(vocab_size, sizeof *s->seen);
    s->history = calloc(vocab_size, sizeof *s->history);
    s->logits = fl_alloc(padded * sizeof(float));
    s->probs = fl_alloc(padded * sizeof(float));
    s->sums = calloc(vocab_size / FL_SUM_RUN + 1, sizeof *s->sums);
    s->parts = calloc(vocab_size / FL_SUM_RUN + 1, sizeof *s->parts);
    s->found = calloc(vocab_size, sizeof *s->found);
    s->kept = calloc(vocab_size, sizeof *s->kept);
    if (!s->counts || !s->seen || !s->history || !s->logits || !s->probs || !s->sums || !s->parts || !s->found ||
        !s->kept) {
        fl_sampler_free(s);
        return FL_NO_MEMORY;
    }
    *out = s;
    return FL_OK;
}

void fl_sampler_free(fl_sampler *s) {
    if (!s) return;
    free(s->counts);
    free(s->seen);
    free(s->history);
    free(s->biases);
    fl_free(s->logits);
    fl_free(s->probs);
    free(s->sums);
    free(s->parts);
    free(s->found);
    free(s->kept);
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

fl_status fl_sampler_accept(fl_sampler *s, int32_t token, int generated) {
    if (token < 0 || (size_t)token >= s->vocab) return FL_BAD_TOKEN;
    if (!s->seen[token]) s->history[s->n_history++] = token;
    s->seen[token] = 1;
    if (generated) s->counts[token]++;
    return FL_OK;
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

// ---- order ---------------------------------------------------------------------------------------------------------

static int before(candidate a, candidate b) { return a.key > b.key || (a.key == b.key && a.id < b.id); }

// The last in order at the root.
static void sift_down(candidate *heap, size_t n, size_t i) {
    const candidate moving = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && before(heap[child], heap[child + 1])) child++;
        if (!before(moving, heap[child])) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

static void sort(candidate *c, size_t n) {
    if (n > 32) {
        for (size_t i = n / 2; i-- > 0;) sift_down(c, n, i);
        while (n > 1) {
            const candidate last = c[0];
            c[0] = c[--n];
            c[n] = last;
            sift_down(c, n, 0);
        }
        return;
    }
    for (size_t i = 1; i < n; i++) {
        const candidate moving = c[i];
        size_t at = i;
        for (; at > 0 && before(moving, c[at - 1]); at--) c[at] = c[at - 1];
        c[at] = moving;
    }
}

// Candidates by the size of their key, in about as many buckets as there are candidates. Those of a bucket are sorted
// when they are wanted: as a rule the first few hold all that is drawn from.
enum { FL_BUCKETS = 8192 };

typedef struct buckets {
    uint32_t ends[FL_BUCKETS]; // where bucket b ends in s->kept
    unsigned shift;
    size_t next;   // the first bucket that is not sorted
    size_t sorted; // candidates in order
} buckets;

// How far a key in [0, 1] is from 1, in steps that are finer for smaller keys.
static uint32_t distance(float key) {
    uint32_t bits;
    memcpy(&bits, &key, sizeof bits);
    return 0x3F800000u - bits;
}

// n candidates of s->found, whose keys are above `bound`, into s->kept.
static void fill(buckets *b, fl_sampler *s, size_t n, float bound) {
    size_t count = 16;
    while (count < n && count < FL_BUCKETS) count *= 2;
    b->shift = 0;
    b->next = b->sorted = 0;
    while (distance(bound) >> b->shift >= count) b->shift++;
    memset(b->ends, 0, count * sizeof *b->ends);
    for (size_t i = 0; i < n; i++) b->ends[distance(s->found[i].key) >> b->shift]++;
    uint32_t at = 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t size = b->ends[i];
        b->ends[i] = at;
        at += size;
    }
    for (size_t i = 0; i < n; i++) s->kept[b->ends[distance(s->found[i].key) >> b->shift]++] = s->found[i];
}

// Sees to it that the first `count` of s->kept are in order.
static void order(buckets *b, fl_sampler *s, size_t count) {
    while (b->sorted < count) {
        const size_t end = b->ends[b->next++];
        sort(s->kept + b->sorted, end - b->sorted);
        b->sorted = end;
    }
}

// ---- filters -------------------------------------------------------------------------------------------------------

static int is_fraction(float p) { return p > 0.0f && p < 1.0f; }

// ln x for normal x > 0: x = m 2^e, m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m - 1) / (m + 1)). Not libm's, which
// differs from system to system.
static double natural_log(double x) {
    int e;
    double m = frexp(x, &e);
    if (m < 0.70710678118654752440) {
        m *= 2;
        e--;
    }
    const double s = (m - 1) / (m + 1), z = s * s;
    double sum = 0;
    for (int k = 23; k >= 1; k -= 2) sum = sum * z + 1.0 / k;
    return 2 * s * sum + e * 0.69314718055994530942;
}

// The sum of the probabilities above a bound, run by run in s->parts. A run whose sum is no larger has none: few have.
static double sum_above(fl_sampler *s, const fl_kernels *k, float bound) {
    double sum = 0;
    for (size_t run = 0; run * FL_SUM_RUN < s->vocab; run++) {
        const size_t begin = run * FL_SUM_RUN, rest = s->vocab - begin;
        const size_t count = rest < FL_SUM_RUN ? rest : FL_SUM_RUN;
        s->parts[run] = s->sums[run] > bound ? k->above(s->probs + begin, count, bound) : 0;
        sum += (double)s->parts[run];
    }
    return sum;
}

// The tokens above a bound into s->found, in no order; s->parts as `above` makes it of that bound.
static size_t collect(fl_sampler *s, float bound) {
    const size_t padded = fl_round_up(s->vocab, FL_LANES);
    size_t n = 0;
    for (size_t i = 0; i < padded; i += FL_LANES) {
        if (s->parts[i / FL_SUM_RUN] <= 0) {
            i += FL_SUM_RUN - FL_LANES;
            continue;
        }
        int any = 0;
        for (size_t j = i; j < i + FL_LANES; j++) any |= s->probs[j] > bound;
        for (size_t j = i; any && j < i + FL_LANES; j++)
            if (s->probs[j] > bound) s->found[n++] = (candidate){s->probs[j], (int32_t)j};
    }
    return n;
}

// Tokens by buckets: at least the `count` most likely, and the most likely that together hold more than `mass`; all
// that have `least` where those are fewer. Tries ever lower bounds: few tokens hold most of the mass.
static size_t likely(fl_sampler *s, const fl_kernels *k, buckets *b, size_t count, double mass, float least) {
    const float lowest = least > 0 ? nextafterf(least, 0.0f) : 0.0f;
    float bound = mass < INFINITY ? 2.0f : 0.0f;
    size_t n;
    for (;;) {
        bound = bound > 1e-9f ? bound / 16 : 0.0f;
        if (bound < lowest) bound = lowest;
        const double sum = sum_above(s, k, bound);
        // Added up one by one they may round to a little less.
        if (bound > lowest && sum <= mass * 1.0001) continue;
        n = collect(s, bound);
        if (bound <= lowest || n >= count) break;
    }
    fill(b, s, n, bound);
    return n;
}

// Candidates in descending order of probability until top_k, top_p or min_p says enough. Returns how many are in
// s->kept; *total is the sum of their probabilities. `all` is the sum over the vocabulary, the largest being 1.
static size_t keep_likely(fl_sampler *s, const fl_kernels *k, double all, double *total) {
    const int nucleus = is_fraction(s->p.top_p);
    double whole = all;
    buckets b;
    size_t n;
    if (s->p.top_k && s->p.top_k < s->vocab) {
        n = likely(s, k, &b, s->p.top_k, 0, 0);
        n = n < s->p.top_k ? n : s->p.top_k;
        order(&b, s, n);
        whole = 0;
        for (size_t i = 0; i < n; i++) whole += (double)s->kept[i].key;
    } else {
        // Tokens under the nucleus' share of the rest cannot be in it: there are too few of them to fill it.
        float least = s->p.min_p;
        if (nucleus && s->vocab > 1) {
            const float share = (float)((1.0 - (double)s->p.top_p) / (double)(s->vocab - 1) * all);
            least = share > least ? share : least;
        }
        const double mass = nucleus ? (double)s->p.top_p * all : INFINITY;
        n = likely(s, k, &b, 0, mass, least < 1.0f ? least : 1.0f); // the best is always a candidate
    }
    size_t kept = 0;
    double sum = 0;
    while (kept < n) {
        order(&b, s, kept + 1);
        const candidate next = s->kept[kept];
        if (kept > 0 && next.key < s->p.min_p) break;
        kept++;
        sum += (double)next.key;
        if (nucleus && sum > (double)s->p.top_p * whole) break;
    }
    *total = sum;
    return kept;
}

// Of the kept candidates, those whose surprise is nearest to the expected one, until they hold typical_p of the mass.
static size_t keep_typical(fl_sampler *s, size_t count, double *total) {
    const double log_total = natural_log(*total);
    double entropy = 0;
    for (size_t i = 0; i < count; i++) {
        const double p = (double)s->kept[i].key;
        entropy -= p / *total * (natural_log(p) - log_total);
    }
    for (size_t i = 0; i < count; i++) {
        const double surprise = log_total - natural_log((double)s->kept[i].key);
        s->found[i] = (candidate){(float)-fabs(surprise - entropy), s->kept[i].id};
    }
    sort(s->found, count);
    size_t kept = 0;
    double sum = 0;
    while (kept < count && sum < (double)s->p.typical_p * *total) {
        const int32_t id = s->found[kept].id;
        s->kept[kept] = (candidate){s->probs[id], id};
        sum += (double)s->kept[kept++].key;
    }
    *total = sum;
    return kept;
}

// ---- drawing -------------------------------------------------------------------------------------------------------

// Logits after biases and penalties: the given ones where there are none.
static const float *adjust(fl_sampler *s, const float *logits) {
    const fl_sampling *p = &s->p;
    const int penalized = p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f;
    if (!penalized && s->n_biases == 0) return logits;
    memcpy(s->logits, logits, s->vocab * sizeof(float));
    for (size_t i = 0; i < s->n_biases; i++) s->logits[s->biases[i].token] += s->biases[i].value;
    for (size_t i = 0; penalized && i < s->n_history; i++) {
        const int32_t id = s->history[i];
        float *l = &s->logits[id];
        *l = *l > 0 ? *l / p->repetition_penalty : *l * p->repetition_penalty;
        if (s->counts[id]) *l -= p->presence_penalty + (float)s->counts[id] * p->frequency_penalty;
    }
    return s->logits;
}

// Walks the whole vocabulary in order, run by run: no candidate list needed where nothing is filtered.
static int32_t draw_any(const fl_sampler *s, double target) {
    const size_t runs = (s->vocab + FL_SUM_RUN - 1) / FL_SUM_RUN;
    size_t run = 0;
    double sum = 0;
    while (run + 1 < runs && sum + (double)s->sums[run] <= target) sum += (double)s->sums[run++];
    for (size_t i = run * FL_SUM_RUN; i < s->vocab; i++) {
        sum += (double)s->probs[i];
        if (target < sum) return (int32_t)i;
    }
    // The runs were added up in another order than their parts: the target may lie a rounding beyond the end.
    size_t last = s->vocab - 1;
    while (s->probs[last] <= 0) last--;
    return (int32_t)last;
}

fl_status fl_sampler_draw(fl_sampler *s, const fl_kernels *k, const float *logits, int32_t *token) {
    const fl_sampling *p = &s->p;
    const float *x = adjust(s, logits);
    size_t best;
    int finite;
    float max = k->max(logits, s->vocab, &best, &finite);
    if (!finite) return FL_BAD_VALUE;
    if (x != logits) max = k->max(x, s->vocab, &best, &finite); // a bias may be -infinity
    if (!isfinite(max)) return FL_BAD_VALUE;
    // Where logits divided by the temperature overflow, the best one has all the probability. (A product takes half the
    // time of as many quotients.)
    const float scale = 1.0f / p->temperature;
    if (p->temperature < 1e-6f || !isfinite(max * scale)) {
        *token = (int32_t)best;
        return FL_OK;
    }
    k->softmax(s->probs, s->sums, x, s->vocab, scale, max * scale);
    double total = 0;
    for (size_t i = 0; i < (s->vocab + FL_SUM_RUN - 1) / FL_SUM_RUN; i++) total += (double)s->sums[i];
    const float coin = draw(s);
    const int typical = is_fraction(p->typical_p);
    if (!typical && !is_fraction(p->top_p) && p->min_p <= 0.0f && (p->top_k == 0 || p->top_k >= s->vocab)) {
        *token = draw_any(s, (double)coin * total);
        return FL_OK;
    }
    size_t kept = keep_likely(s, k, total, &total);
    if (typical) kept = keep_typical(s, kept, &total);
    const double target = (double)coin * total;
    double sum = 0;
    *token = s->kept[kept - 1].id;
    for (size_t i = 0; i < kept; i++) {
        sum += (double)s->kept[i].key;
        if (target < sum) {
            *token = s->kept[i].id;
            break;
        }
    }
    return FL_OK;
}
