// The search for the candidate at which a count or a mass is reached, in descending order of probability.
//
// Nothing is sorted. A histogram over ranks says in which bucket the count or mass is reached; only that bucket's
// candidates are looked at again, in finer buckets. A draw takes a few passes over the vocabulary, and often one.
//
//     rank      0 (probability 1)                            larger (less likely)
//     level 0   |  3  |  9  |  40  |  210  |  1900  |  ..    candidates in each bucket, and sums of probabilities
//                              ^ the mass is reached in here
//     level 1                | 1 | 5 |  12 |  22 |           that bucket's 40 candidates
//                                       ^ in here
//     level 2                        | 4 | 3 | 5 |           .. until all of a set have one probability, which are
//                                                            taken by ascending id
#include "candidates.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- working memory ------------------------------------------------------------------------------------------------

fl_status fl_draw_scratch_new(fl_draw_scratch **out) {
    *out = calloc(1, sizeof **out);
    return *out ? FL_OK : FL_NO_MEMORY;
}

void fl_draw_scratch_free(fl_draw_scratch *scratch) {
    if (!scratch) return;
    for (size_t i = 0; i < FL_TEAM; i++)
        if (scratch->workers[i]) {
            fl_free(scratch->workers[i]->memory);
            free(scratch->workers[i]);
        }
    free(scratch);
}

fl_status fl_draw_reserve(fl_draw_scratch *scratch, size_t id, size_t vocab, fl_draw_worker **out) {
    fl_draw_worker *w = scratch->workers[id];
    if (!w) w = scratch->workers[id] = calloc(1, sizeof *w);
    if (!w) return FL_NO_MEMORY;
    *out = w;
    if (vocab <= w->vocab) return FL_OK;
    const size_t padded = fl_round_up(vocab, FL_LANES), n_parts = fl_round_up(vocab / FL_SUM_PART + 1, FL_LANES);
    char *at = fl_alloc(padded * (4 * sizeof(float) + FL_LEVELS * sizeof(fl_candidate) + sizeof(double)) +
                        2 * n_parts * sizeof(float));
    if (!at) return FL_NO_MEMORY;
    fl_free(w->memory);
    w->vocab = vocab;
    w->memory = at;
    w->probs = (float *)at;
    w->logits = w->probs + padded;
    w->kept = w->logits + padded;
    w->sums = w->kept + padded;
    w->parts = w->sums + n_parts;
    w->found[0] = (fl_candidate *)(w->parts + n_parts);
    for (size_t i = 1; i < FL_LEVELS; i++) w->found[i] = w->found[i - 1] + padded;
    w->logs = (double *)(w->found[FL_LEVELS - 1] + padded);
    w->marks = (uint32_t *)(w->logs + padded);
    w->order = (uint32_t *)w->found[FL_LEVELS - 1];
    return FL_OK;
}

// ---- sets ----------------------------------------------------------------------------------------------------------

// The bits of positive floats, as integers, are in the floats' order. A step in rank is therefore smaller for smaller
// probabilities. Within 2^20 aligned ranks, probabilities are multiples of one unit and at most 2^24 of it, so that
// their sums in doubles are exact.
uint32_t fl_rank_of(float p) {
    uint32_t bits;
    memcpy(&bits, &p, sizeof bits);
    return 0x3F800000u - bits;
}

// The first n of w->found[i] are level i from now on.
static void set_level(fl_draw_worker *w, size_t i, size_t n, uint32_t first, uint32_t width) {
    const fl_candidate *c = w->found[i];
    uint32_t low = UINT32_MAX, high = 0;
    for (size_t j = 0; j < n; j++) {
        const uint32_t rank = fl_rank_in(c[j]);
        low = rank < low ? rank : low;
        high = rank > high ? rank : high;
    }
    w->levels[i].set = (fl_candidate_set){w->found[i], n, low, high};
    w->levels[i].first = first;
    w->levels[i].width = width;
    w->levels[i].counted = 0;
    if (i == 0) w->levels[1].width = 0; // it has candidates of the old level 0
}

// Makes level i of those of a set whose ranks are first .. first + width - 1. The set may be level i itself. Each
// candidate is written and only counted if it belongs there: a branch would be mispredicted half of the time.
static void narrow(fl_draw_worker *w, fl_candidate_set set, uint32_t first, uint32_t width, size_t i) {
    const fl_candidate from = fl_candidate_of(first, 0), span = fl_candidate_of(width, 0);
    fl_candidate *to = w->found[i];
    size_t n = 0;
    for (size_t j = 0; j < set.n; j++) {
        const fl_candidate c = set.c[j];
        to[n] = c;
        n += c - from < span;
    }
    set_level(w, i, n, first, width);
}

static inline void add(struct fl_bucket *buckets, const fl_histogram *h, fl_candidate c, const float *probs) {
    struct fl_bucket *b = &buckets[(fl_rank_in(c) >> h->shift) - h->first];
    b->sum += (double)probs[fl_id_in(c)];
    b->count++;
}

static void fill_histogram(fl_histogram *h, const fl_candidate_set *set, const float *probs) {
    struct fl_bucket odd[FL_BUCKETS]; // of every other candidate: additions to one bucket have to wait for each other
    size_t buckets = 16;
    while (buckets < set->n && buckets < FL_BUCKETS) buckets *= 2;
    h->shift = 0;
    while ((set->high >> h->shift) - (set->low >> h->shift) >= buckets) h->shift++;
    h->first = set->low >> h->shift;
    memset(h->buckets, 0, buckets * sizeof *odd);
    memset(odd, 0, buckets * sizeof *odd);
    for (size_t i = 0; i < set->n; i += 2) {
        add(h->buckets, h, set->c[i], probs);
        if (i + 1 < set->n) add(odd, h, set->c[i + 1], probs);
    }
    for (size_t i = 0; i < buckets; i++) {
        h->buckets[i].sum += odd[i].sum;
        h->buckets[i].count += odd[i].count;
    }
}

// ---- cutting -------------------------------------------------------------------------------------------------------

fl_cut fl_candidates_cut(fl_draw_worker *w, size_t most, double mass) {
    fl_cut at = {.count = 0};
    const fl_level *v = w->levels;
    double before = 0, inside = 0; // sums of the buckets passed: on level 0, and below it
    if (most > v->set.n) most = v->set.n;
    for (size_t i = 0; v->set.low < v->set.high; v = &w->levels[i]) {
        if (!v->counted) fill_histogram(&w->levels[i].histogram, &v->set, w->probs);
        w->levels[i].counted = 1;
        // This ends: `most` is no more than the counts of all buckets add up to.
        const struct fl_bucket *b = v->histogram.buckets;
        for (; at.count + b->count < most && before + (inside + b->sum) <= mass; b++) {
            at.count += b->count;
            inside += b->sum;
        }
        if (most > at.count + b->count) most = at.count + b->count;
        if (i == 0) {
            before = inside;
            inside = 0;
        }
        const unsigned shift = v->histogram.shift;
        const uint32_t bucket = v->histogram.first + (uint32_t)(b - v->histogram.buckets);
        const uint32_t first = bucket << shift, width = 1u << shift;
        i += i + 1 < FL_LEVELS;
        // The last search often ended in the same bucket of level 0: then level 1 is there already.
        if (i > 1 || w->levels[1].first != first || w->levels[1].width != width) narrow(w, v->set, first, width, i);
    }
    for (size_t j = 0; j < v->set.n; j++) { // all of one rank
        at.count++;
        at.last = v->set.c[j];
        inside += (double)w->probs[fl_id_in(at.last)];
        if (at.count >= most || before + inside > mass) break;
    }
    at.sum = before + inside;
    return at;
}

// First in 16 lanes, and then of the lanes.
double fl_sum_of(const float *p, const double *times, size_t n) {
    double sums[FL_LANES] = {0};
    for (size_t i = 0; i < n; i += FL_LANES)
        for (size_t j = 0; j < FL_LANES; j++) sums[j] += times ? (double)p[i + j] * times[i + j] : (double)p[i + j];
    for (size_t half = FL_LANES / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++) sums[j] += sums[j + half];
    return sums[0];
}

// The first n of w->found[0] are the candidates from now on.
static fl_cut settle(fl_draw_worker *w, size_t n, fl_candidate last) {
    float *kept = w->kept;
    set_level(w, 0, n, 0, 0);
    for (size_t i = 0; i < n; i++) kept[i] = w->probs[fl_id_in(w->found[0][i])];
    for (size_t i = n; i < fl_round_up(n, FL_LANES); i++) kept[i] = 0;
    return (fl_cut){.count = n, .sum = fl_sum_of(kept, NULL, n), .last = last};
}

fl_cut fl_candidates_keep(fl_draw_worker *w, fl_candidate last) {
    fl_candidate *found = w->found[0];
    size_t n = 0;
    for (size_t i = 0; i < w->levels[0].set.n; i++) {
        const fl_candidate c = found[i];
        found[n] = c;
        n += c <= last;
    }
    return settle(w, n, last);
}

fl_cut fl_candidates_skip(fl_draw_worker *w, fl_candidate first) {
    fl_candidate *found = w->found[0];
    size_t n = 0;
    for (size_t i = 0; i < w->levels[0].set.n; i++) {
        const fl_candidate c = found[i];
        found[n] = c;
        n += c >= first;
    }
    return settle(w, n, UINT64_MAX);
}

fl_cut fl_candidates_keep_logits(fl_draw_worker *w, const float *logits, float least) {
    fl_candidate *found = w->found[0];
    size_t n = 0;
    for (size_t i = 0; i < w->levels[0].set.n; i++) {
        const fl_candidate c = found[i];
        found[n] = c;
        n += logits[fl_id_in(c)] >= least;
    }
    return settle(w, n, UINT64_MAX);
}

void fl_candidates_rank(fl_draw_worker *w) {
    fl_candidate *c = w->found[0];
    const size_t n = w->levels[0].set.n;
    for (size_t i = 0; i < n; i++) c[i] = fl_candidate_of(fl_rank_of(w->probs[fl_id_in(c[i])]), fl_id_in(c[i]));
    set_level(w, 0, n, 0, 0);
}

fl_cut fl_candidates_heat(fl_draw_worker *w, const fl_kernels *k, const float *logits, float scale) {
    const fl_candidate *c = w->found[0];
    const size_t n = w->levels[0].set.n;
    size_t best;
    int finite;
    for (size_t i = 0; i < n; i++) w->kept[i] = logits[fl_id_in(c[i])];
    const float max = k->max(w->kept, n, &best, &finite);
    k->softmax(w->kept, w->sums, w->kept, n, scale, max * scale); // of each element alone: in place
    for (size_t i = 0; i < n; i++) w->probs[fl_id_in(c[i])] = w->kept[i];
    fl_candidates_rank(w);
    return fl_candidates_keep(w, fl_candidate_of(fl_rank_of(0.0f), 0) - 1);
}

// The expected logarithm of the candidates' probabilities, whose sum is `total`, relative to the largest.
static double expected_log(fl_draw_worker *w, const fl_kernels *k, double total) {
    const size_t n = w->levels[0].set.n;
    k->log(w->logs, w->kept, n);
    return fl_sum_of(w->kept, w->logs, n) / total;
}

double fl_candidates_entropy(fl_draw_worker *w, const fl_kernels *k, double total) {
    return fl_log_of(k, total) - expected_log(w, k, total);
}

void fl_candidates_rank_typical(fl_draw_worker *w, const fl_kernels *k, double total) {
    fl_candidate *c = w->found[0];
    const size_t n = w->levels[0].set.n;
    const double expected = expected_log(w, k, total);
    for (size_t i = 0; i < n; i++) {
        const float far = (float)fabs(w->logs[i] - expected);
        uint32_t rank; // the bits of positive floats are in their order
        memcpy(&rank, &far, sizeof rank);
        c[i] = fl_candidate_of(rank, fl_id_in(c[i]));
    }
    set_level(w, 0, n, 0, 0);
}

// ---- logarithms and exponentials ------------------------------------------------------------------------------------

// ln of the nearest float by the kernel, and of the quotient, which is nearer to 1 than 2^-24, by two terms of its
// series.
double fl_log_of(const fl_kernels *k, double x) {
    const float nearest[FL_LANES] = {(float)x};
    double logs[FL_LANES];
    k->log(logs, nearest, 1);
    const double rest = (x - (double)nearest[0]) / (double)nearest[0];
    return logs[0] + (rest - rest * rest / 2);
}

float fl_exp_of(const fl_kernels *k, float x) {
    const float in[FL_LANES] = {x};
    float out[FL_LANES], sum;
    k->softmax(out, &sum, in, 1, 1.0f, 0.0f);
    return out[0];
}

// ---- collecting ----------------------------------------------------------------------------------------------------

// The sum of the probabilities above a bound; that of each part goes to w->parts. Most parts have none: a part whose
// whole sum is no larger than the bound is not looked at.
static double sum_above(fl_draw_worker *w, size_t vocab, const fl_kernels *k, float bound) {
    double sum = 0;
    for (size_t part = 0; part * FL_SUM_PART < vocab; part++) {
        const size_t begin = part * FL_SUM_PART, rest = vocab - begin;
        const size_t some = rest < FL_SUM_PART ? rest : FL_SUM_PART;
        w->parts[part] = w->sums[part] > bound ? k->above(w->probs + begin, some, bound) : 0;
        sum += (double)w->parts[part];
    }
    return sum;
}

// Makes candidates of the tokens above a bound, for which sum_above has filled w->parts.
static void collect_above(fl_draw_worker *w, size_t vocab, float bound) {
    const size_t padded = fl_round_up(vocab, FL_LANES);
    const float *probs = w->probs, *parts = w->parts;
    const uint32_t worst = fl_rank_of(bound);
    fl_candidate *found = w->found[0];
    size_t n = 0;
    for (size_t i = 0; i < padded; i += FL_LANES) {
        if (parts[i / FL_SUM_PART] <= 0) {
            i += FL_SUM_PART - FL_LANES;
            continue;
        }
        int any = 0; // signed numbers, which compilers can compare in vectors
        for (size_t j = i; j < i + FL_LANES; j++) any |= (int32_t)fl_rank_of(probs[j]) < (int32_t)worst;
        if (!any) continue;
        for (size_t j = i; j < i + FL_LANES; j++) { // past the vocabulary probabilities are zero
            found[n] = fl_candidate_of(fl_rank_of(probs[j]), j);
            n += found[n] < fl_candidate_of(worst, 0);
        }
    }
    set_level(w, 0, n, 0, 0);
}

// A few tokens hold most of the mass, so ever lower bounds are tried until enough lies above.
void fl_candidates_collect(fl_draw_worker *w, size_t vocab, const fl_kernels *k, size_t most, double mass,
                           float least) {
    const float lowest = least > 0 ? nextafterf(least, 0.0f) : 0.0f;
    float bound = mass < INFINITY && most < vocab / 32 ? 2.0f : 0.0f;
    do {
        double sum;
        do {
            bound = bound > 1e-9f ? bound / 16 : 0.0f;
            if (bound < lowest) bound = lowest;
            sum = sum_above(w, vocab, k, bound);
        } while (bound > lowest && sum <= mass * 1.0001); // added up one by one they may round to a little less
        collect_above(w, vocab, bound);
    } while (bound > lowest && w->levels[0].set.n < most);
}

// ---- the top -------------------------------------------------------------------------------------------------------

// Ranks of finite floats, the largest first: their bits are in order where they are positive, in reverse where they are
// negative. -0 becomes 0.
static uint32_t rank_of_logit(float x) {
    uint32_t bits;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? bits : 0x7FFFFFFFu - bits;
}

// Moves the candidate at i of a heap of n down until no child is worse: larger candidates are above.
static void sift(fl_candidate *heap, size_t n, size_t i) {
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && heap[child + 1] > heap[child];
        if (heap[i] >= heap[child]) return;
        const fl_candidate c = heap[i];
        heap[i] = heap[child];
        heap[child] = c;
    }
}

// A heap has the best so far, the worst of them on top. Ids ascend, so a logit equal to the worst one's comes too late,
// and a part of the vocabulary whose largest logit is no larger is passed over.
void fl_candidates_top(fl_draw_worker *w, const fl_kernels *k, const float *logits, size_t n, size_t most) {
    fl_candidate *heap = w->found[0];
    if (most == 0) return;
    for (size_t i = 0; i < most; i++) heap[i] = fl_candidate_of(rank_of_logit(logits[i]), i);
    for (size_t i = most / 2; i-- > 0;) sift(heap, most, i);
    float worst = logits[fl_id_in(heap[0])];
    for (size_t start = most; start < n; start += FL_SUM_PART) {
        const size_t end = n - start < FL_SUM_PART ? n : start + FL_SUM_PART;
        size_t at;
        int finite;
        if (k->max(logits + start, end - start, &at, &finite) <= worst) continue;
        for (size_t i = start; i < end; i++) {
            if (logits[i] <= worst) continue;
            heap[0] = fl_candidate_of(rank_of_logit(logits[i]), i);
            sift(heap, most, 0);
            worst = logits[fl_id_in(heap[0])];
        }
    }
    for (size_t left = most; left-- > 1;) { // the worst that are left go to the end
        const fl_candidate c = heap[0];
        heap[0] = heap[left];
        heap[left] = c;
        sift(heap, left, 0);
    }
}
