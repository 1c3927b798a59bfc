// The tokens that a draw may choose from, in descending order of probability as far as it needs them, without sorting
// the vocabulary: see candidates.c.
#ifndef FL_CANDIDATES_H
#define FL_CANDIDATES_H

#include "kernels/kernels.h"
#include "threads.h"

// A token with its rank: 0 for the most likely one, larger for less likely ones. The rank is in the high half and the
// id in the low one, so that as numbers candidates are in order of their ranks, lowest id first among equals.
typedef uint64_t fl_candidate;

static inline fl_candidate fl_candidate_of(uint32_t rank, size_t id) { return (fl_candidate)rank << 32 | id; }
static inline uint32_t fl_rank_in(fl_candidate c) { return (uint32_t)(c >> 32); }
static inline size_t fl_id_in(fl_candidate c) { return (size_t)(c & UINT32_MAX); }

// The rank of a probability relative to the largest: how far its bits are from those of 1.
uint32_t fl_rank_of(float p);

// Some of the candidates, by ascending id, and the lowest and highest of their ranks.
typedef struct fl_candidate_set {
    const fl_candidate *c;
    size_t n;
    uint32_t low, high;
} fl_candidate_set;

enum { FL_BUCKETS = 1024, FL_LEVELS = 3 };

// How many candidates of a set have which ranks, and what their probabilities add up to: bucket b has those whose
// rank >> shift is first + b.
typedef struct fl_histogram {
    uint32_t first;
    unsigned shift;
    struct fl_bucket {
        double sum;
        size_t count;
    } buckets[FL_BUCKETS];
} fl_histogram;

// A set that the search for a cut looks into. Level 0 has all candidates, level 1 those of the bucket of level 0 that
// was looked into last. Level 2 has those of a bucket of level 1, and is narrowed in place as often as needed.
typedef struct fl_level {
    fl_candidate_set set;
    uint32_t first, width; // it has the ranks first .. first + width - 1 of the level before
    int counted;           // whether `histogram` is filled
    fl_histogram histogram;
} fl_level;

// What one worker's draws read and write.
typedef struct fl_draw_worker {
    size_t vocab; // what it has room for
    void *memory;
    // (vocab rounded up to 16,) each:
    float *logits;                  // after biases and penalties
    float *probs;                   // of all tokens, relative to the largest, which is 1
    float *kept;                    // of the candidates, once fl_candidates_keep has been called
    double *logs;                   // of kept
    uint32_t *marks;                // scratch of a number for each token
    uint32_t *order;                // scratch of a list of tokens, in the memory of found[FL_LEVELS - 1]
    fl_candidate *found[FL_LEVELS]; // what the levels' sets point to
    // One for each part of FL_SUM_PART tokens:
    float *sums;  // of probabilities
    float *parts; // of the probabilities above a bound
    fl_level levels[FL_LEVELS];
} fl_draw_worker;

struct fl_draw_scratch {
    fl_draw_worker *workers[FL_TEAM]; // by the worker's id; NULL: it has drawn nothing that needs memory
};

// A worker's memory with room for so many tokens. Workers of a team may call it at the same time. FL_NO_MEMORY.
fl_status fl_draw_reserve(fl_draw_scratch *scratch, size_t id, size_t vocab, fl_draw_worker **out);

// Fills the candidates from w->probs and w->sums: at least the `most` likeliest tokens, and at least so many of the
// likeliest that together they hold more than `mass`. Tokens less likely than `least` are left out.
void fl_candidates_collect(fl_draw_worker *w, size_t vocab, const fl_kernels *k, size_t most, double mass,
                           float least);

// The first candidates by rank.
typedef struct fl_cut {
    size_t count;
    double sum;        // of their probabilities
    fl_candidate last; // of them
} fl_cut;

// Cuts where the first candidates hold more than `mass`, or are `most`, or are all that there are.
fl_cut fl_candidates_cut(fl_draw_worker *w, size_t most, double mass);

// Drops the candidates behind `last`, and returns how many are left and the sum of their probabilities.
fl_cut fl_candidates_keep(fl_draw_worker *w, fl_candidate last);

// Drops the candidates before `first`, and returns how many are left and the sum of their probabilities.
fl_cut fl_candidates_skip(fl_draw_worker *w, fl_candidate first);

// Drops the candidates whose logit is below `least`, and returns how many are left and the sum of their probabilities.
fl_cut fl_candidates_keep_logits(fl_draw_worker *w, const float *logits, float least);

// Makes probabilities of the candidates' logits times `scale` anew, the largest being 1; those of 0 are dropped. The
// largest logit times `scale` is finite. Returns what is left.
fl_cut fl_candidates_heat(fl_draw_worker *w, const fl_kernels *k, const float *logits, float scale);

// Ranks candidates by probability, after w->probs has changed or they had been ranked otherwise.
void fl_candidates_rank(fl_draw_worker *w);

// The entropy in nats of the candidates' probabilities, whose sum is `total`.
double fl_candidates_entropy(fl_draw_worker *w, const fl_kernels *k, double total);

// Natural logarithm of a double that is a normal x > 0 as a float, and exponential of x below 88. libm's differ between
// systems.
double fl_log_of(const fl_kernels *k, double x);
float fl_exp_of(const fl_kernels *k, float x);

// Writes the `most` <= n largest of n finite logits to w->found[0] as candidates, the largest first. They are ranked by
// the logits themselves: as probabilities, different logits may round to one number.
void fl_candidates_top(fl_draw_worker *w, const fl_kernels *k, const float *logits, size_t n, size_t most);

// The sum of p, or of p[i] * times[i] where `times` is not NULL, in doubles and one order. p is zero past n up to a
// multiple of 16.
double fl_sum_of(const float *p, const double *times, size_t n);

// After fl_candidates_keep: ranks candidates by typicality (Meister et al., 2022), that is, by how far the logarithm of
// their probability is from the expected one. `total` is the sum of their probabilities.
void fl_candidates_rank_typical(fl_draw_worker *w, const fl_kernels *k, double total);

#endif
