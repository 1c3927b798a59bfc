// Filters on candidates. None sorts the vocabulary, and what the first of them collects is mostly a few tokens, so that
// the later ones cost little.
#include "filters.h"

#include <math.h>
#include <string.h>

static int is_fraction(float p) { return p > 0.0f && p < 1.0f; }

// ---- chains --------------------------------------------------------------------------------------------------------

static const uint8_t default_order[FL_FILTERS] = {FL_TEMPERATURE, FL_TOP_N_SIGMA,    FL_TOP_H,      FL_TOP_K,
                                                  FL_TOP_P,       FL_MIN_P,          FL_TYPICAL_P,  FL_EPSILON_CUTOFF,
                                                  FL_ETA_CUTOFF,  FL_XTC,            FL_MIROSTAT};

static int is_on(const fl_sampling *p, enum fl_filter filter) {
    switch (filter) {
    case FL_TEMPERATURE: return p->temperature != 1.0f || p->dynatemp_range > 0.0f;
    case FL_TOP_N_SIGMA: return p->top_n_sigma > 0.0f;
    case FL_TOP_H: return p->top_h > 0.0f;
    case FL_TOP_K: return p->top_k > 0;
    case FL_TOP_P: return is_fraction(p->top_p);
    case FL_MIN_P: return p->min_p > 0.0f;
    case FL_TYPICAL_P: return is_fraction(p->typical_p);
    case FL_EPSILON_CUTOFF: return is_fraction(p->epsilon_cutoff);
    case FL_ETA_CUTOFF: return is_fraction(p->eta_cutoff);
    case FL_XTC: return p->xtc_probability > 0.0f;
    case FL_MIROSTAT: return p->mirostat_tau > 0.0f;
    }
    return 0;
}

fl_chain fl_chain_of(const fl_sampling *p) {
    fl_chain chain = {.n = 0, .scale = 1};
    const uint8_t *order = p->order[0] ? p->order : default_order;
    for (size_t i = 0; i < FL_FILTERS && order[i]; i++) {
        if (!is_on(p, (enum fl_filter)order[i])) continue;
        if (order[i] == FL_TEMPERATURE && chain.n == 0 && !(p->dynatemp_range > 0.0f))
            chain.scale = 1.0f / p->temperature; // multiplying takes half the time of dividing
        else chain.steps[chain.n++] = order[i];
    }
    return chain;
}

// ---- choices -------------------------------------------------------------------------------------------------------

static const float EVERY = 0.0f; // a bound of probabilities: candidates are never 0, so that it leaves none out

// The last candidate that has at least the probability p.
static fl_candidate last_of(float p) { return fl_candidate_of(fl_rank_of(p), UINT32_MAX); }

// The largest probability: less than 1 once tokens before it have been excluded.
static double best_of(fl_choice *c) {
    if (!c->collected) return 1;
    fl_choice_settle(c);
    const uint32_t bits = fl_rank_of(0.0f) - c->w->levels[0].set.low;
    float p;
    memcpy(&p, &bits, sizeof p);
    return (double)p;
}

static void set(fl_choice *c, fl_cut end, int exact) {
    c->end = end;
    c->collected = 1;
    c->exact = exact;
}

void fl_choice_settle(fl_choice *c) {
    if (!c->collected) {
        fl_candidates_collect(c->w, c->vocab, c->k, 0, INFINITY, EVERY);
        set(c, fl_candidates_keep(c->w, last_of(EVERY)), 1);
    }
    if (!c->exact) set(c, fl_candidates_keep(c->w, c->end.last), 1);
    if (c->typical) fl_candidates_rank(c->w);
    c->typical = 0;
}

// A cut, or where that leaves too few tokens, the one that leaves c->keep.
static fl_cut no_less(const fl_choice *c, fl_cut end) {
    return end.count < c->keep ? fl_candidates_cut(c->w, c->keep, INFINITY) : end;
}

// The last candidate that a bound of ranks lets through: `worst`, or one behind it, so that c->keep are left.
static fl_candidate no_earlier(const fl_choice *c, fl_candidate worst) {
    if (c->keep < 2) return worst;
    const fl_candidate last = fl_candidates_cut(c->w, c->keep, INFINITY).last;
    return last > worst ? last : worst;
}

// Collects more candidates where a bound has left out some of the first c->keep.
static void collect_enough(fl_choice *c) {
    if (c->w->levels[0].set.n < c->keep) fl_candidates_collect(c->w, c->vocab, c->k, c->keep, 0, EVERY);
}

// Keeps tokens of at least that probability, on the scale of w->probs; the most likely one in any case.
static void keep_least(fl_choice *c, double least) {
    const double best = best_of(c);
    if (least > best) least = best;
    float bound = (float)least;
    if ((double)bound < least) bound = nextafterf(bound, 1.0f);
    if (!c->collected) {
        fl_candidates_collect(c->w, c->vocab, c->k, 0, INFINITY, bound);
        collect_enough(c);
    }
    set(c, fl_candidates_keep(c->w, no_earlier(c, last_of(bound))), 1);
}

// The candidates that top_k, top_p and min_p leave, where they are the first filters and in this order: one search for
// all three. k = 0, top_p = 1, min_p = 0: without it.
static void keep_likely(fl_choice *c, size_t top_k, float top_p, float min_p) {
    fl_draw_worker *w = c->w;
    const int nucleus = top_p < 1.0f;
    const double all = c->total;
    if (top_k) {
        top_k = top_k < c->keep ? c->keep : top_k;
        fl_candidates_collect(w, c->vocab, c->k, top_k, 0, 0);
    } else {
        // A lower bound for the nucleus, so that fewer candidates are collected. The tokens before one of the nucleus
        // hold at most top_p; so it and the tokens after it, vocab - 1 at most, hold at least 1 - top_p. It is the
        // largest of these, so it has at least (1 - top_p) / (vocab - 1).
        float least = min_p;
        if (nucleus && c->vocab > 1) {
            const float share = (float)((1.0 - (double)top_p) / (double)(c->vocab - 1) * all);
            least = share > least ? share : least;
        }
        const double mass = nucleus ? (double)top_p * all : INFINITY;
        fl_candidates_collect(w, c->vocab, c->k, 0, mass, least < 1.0f ? least : 1.0f);
        collect_enough(c);
    }
    const fl_candidate worst = no_earlier(c, last_of(min_p < 1.0f ? min_p : 1.0f)); // the last that min_p allows
    fl_cut end = {.last = worst};
    if (top_k) end = fl_candidates_cut(w, top_k, INFINITY);
    if (nucleus)
        end = no_less(c, fl_candidates_cut(w, top_k ? end.count : SIZE_MAX, (double)top_p * (top_k ? end.sum : all)));
    const int limited = end.last > worst || !(top_k || nucleus);
    set(c, limited ? fl_candidates_keep(w, worst) : end, limited);
}

// Cuts behind the first tokens that are `most`, or hold more than that share.
static void keep_first(fl_choice *c, size_t most, double share) {
    fl_choice_settle(c);
    set(c, no_less(c, fl_candidates_cut(c->w, most, share * c->end.sum)), 0);
}

// The most typical tokens that together hold typical_p of the mass or more.
static void keep_typical(fl_choice *c) {
    fl_choice_settle(c);
    fl_candidates_rank_typical(c->w, c->k, c->end.sum);
    const double enough = (double)c->p->typical_p * c->end.sum;
    // fl_candidates_cut stops once the sum is larger than a mass; with the next double below `enough`, at `enough`.
    set(c, no_less(c, fl_candidates_cut(c->w, c->end.count, nextafter(enough, 0.0))), 0);
    c->typical = 1;
}

// Of the 100 most likely tokens the first whose terms of the entropy add up to no more than top_h of all of it.
static void keep_top_h(fl_choice *c) {
    enum { MOST = 100 };
    fl_candidate sorted[MOST];
    float probs[MOST + FL_LANES];
    double logs[MOST + FL_LANES], terms[MOST], entropy = 0;
    if (c->collected) fl_choice_settle(c);
    else fl_candidates_collect(c->w, c->vocab, c->k, MOST, 0, EVERY);
    const fl_cut top = fl_candidates_cut(c->w, MOST, INFINITY);
    const fl_cut end = fl_candidates_keep(c->w, top.last);
    const double norm = fl_log_of(c->k, end.sum);
    for (size_t i = 0; i < end.count; i++) {
        size_t at = i;
        for (; at > 0 && sorted[at - 1] > c->w->found[0][i]; at--) sorted[at] = sorted[at - 1];
        sorted[at] = c->w->found[0][i];
    }
    for (size_t i = 0; i < fl_round_up(end.count, FL_LANES); i++)
        probs[i] = i < end.count ? c->w->probs[fl_id_in(sorted[i])] : 1.0f;
    c->k->log(logs, probs, end.count);
    for (size_t i = 0; i < end.count; i++) {
        terms[i] = (double)probs[i] / end.sum * (norm - logs[i]);
        entropy += terms[i];
    }
    size_t n = 1;
    for (double sum = terms[0]; n < end.count; n++) {
        sum += terms[n];
        if (sum > (double)c->p->top_h * entropy) break;
    }
    set(c, fl_candidates_keep(c->w, sorted[n - 1]), 1);
}

// Tokens whose logit is no more than top_n_sigma standard deviations below the largest. Forbidden ones do not count.
static void keep_sigma(fl_choice *c) {
    const size_t n = c->collected ? c->end.count : c->vocab;
    double sums[2] = {0}, count = 0;
    float max = -INFINITY;
    if (c->collected) fl_choice_settle(c);
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < n; i++) {
            const float l = c->logits[c->collected ? fl_id_in(c->w->found[0][i]) : i];
            if (!(l > -INFINITY)) continue;
            const double far = pass == 0 ? 0 : (double)l - sums[0] / count;
            sums[pass] += pass == 0 ? (double)l : far * far;
            count += pass == 0;
            max = l > max ? l : max;
        }
    const float least = (float)((double)max - (double)c->p->top_n_sigma * sqrt(sums[1] / count));
    fl_choice_settle(c);
    set(c, fl_candidates_keep_logits(c->w, c->logits, least), 1);
}

// Drops all but the least likely of the tokens that hold at least that share each: exclude top choices.
static void exclude_top(fl_choice *c) {
    if (!(c->chance < c->p->xtc_probability)) return;
    fl_choice_settle(c);
    const double least = (double)c->p->xtc_threshold * c->end.sum;
    fl_candidate first = 0;
    for (size_t i = 0; i < c->end.count; i++) {
        const fl_candidate one = c->w->found[0][i];
        if ((double)c->w->kept[i] >= least && one > first) first = one;
    }
    set(c, fl_candidates_skip(c->w, first), 1);
}

// Divides logits by the temperature, which with dynatemp_range depends on the entropy's share of the largest possible
// one: from temperature - range where one token is certain, to temperature + range where all are equally likely.
static void heat(fl_choice *c) {
    float temperature = c->p->temperature;
    if (c->p->dynatemp_range > 0.0f) {
        const size_t n = c->collected ? c->end.count : c->vocab;
        fl_choice_settle(c);
        if (n < 2) return;
        const double least = fmax(0.0, (double)temperature - (double)c->p->dynatemp_range);
        const double most = (double)temperature + (double)c->p->dynatemp_range;
        double share = fl_candidates_entropy(c->w, c->k, c->end.sum) / fl_log_of(c->k, (double)n);
        share = share < 1e-30 ? 1e-30 : share > 1 ? 1 : share;
        if (c->p->dynatemp_exponent != 1.0f) // ln of a share is -ln of its inverse, which is 1 or more
            share = (double)fl_exp_of(c->k, (float)(-(double)c->p->dynatemp_exponent * fl_log_of(c->k, 1 / share)));
        temperature = (float)(least + (most - least) * share);
    }
    fl_choice_settle(c);
    float largest = 0, scale = 1.0f / temperature;
    for (size_t i = 0; i < c->end.count; i++) {
        const float size = fabsf(c->logits[fl_id_in(c->w->found[0][i])]);
        largest = size > largest ? size : largest;
    }
    const float limit = largest > 1.0f ? 0x1p126f / largest : 0x1p126f; // so that products are finite
    c->scale = scale < limit ? scale : limit;
    set(c, fl_candidates_heat(c->w, c->k, c->logits, c->scale), 1);
}

// Whether the i-th step is this one; then i is the next.
static int goes_on(const fl_chain *chain, size_t *i, enum fl_filter filter) {
    const int is = *i < chain->n && chain->steps[*i] == filter;
    *i += (size_t)is;
    return is;
}

void fl_choice_filter(fl_choice *c, const fl_chain *chain) {
    const fl_sampling *p = c->p;
    const double ln2 = 0.69314718055994530942;
    size_t i = 0;
    const size_t k = goes_on(chain, &i, FL_TOP_K) && p->top_k < c->vocab ? p->top_k : 0;
    const float top_p = goes_on(chain, &i, FL_TOP_P) ? p->top_p : 1.0f;
    const float min_p = goes_on(chain, &i, FL_MIN_P) ? p->min_p : 0.0f;
    if (k > 0 || top_p < 1.0f || min_p > 0.0f) keep_likely(c, k, top_p, min_p);
    for (; i < chain->n; i++) {
        const double sum = c->collected ? c->end.sum : c->total;
        switch ((enum fl_filter)chain->steps[i]) {
        case FL_TEMPERATURE: heat(c); break;
        case FL_TOP_N_SIGMA: keep_sigma(c); break;
        case FL_TOP_H: keep_top_h(c); break;
        case FL_TOP_K:
            if (p->top_k < c->vocab) keep_first(c, p->top_k, 2);
            break;
        case FL_TOP_P: keep_first(c, SIZE_MAX, (double)p->top_p); break;
        case FL_MIN_P: keep_least(c, (double)p->min_p * best_of(c)); break;
        case FL_TYPICAL_P: keep_typical(c); break;
        case FL_EPSILON_CUTOFF: keep_least(c, (double)p->epsilon_cutoff * sum); break;
        case FL_ETA_CUTOFF: {
            fl_choice_settle(c);
            const double epsilon = (double)p->eta_cutoff;
            const float spread = fl_exp_of(c->k, (float)-fl_candidates_entropy(c->w, c->k, c->end.sum));
            keep_least(c, fmin(epsilon, sqrt(epsilon) * (double)spread) * c->end.sum);
            break;
        }
        case FL_XTC: exclude_top(c); break;
        case FL_MIROSTAT: keep_least(c, (double)fl_exp_of(c->k, (float)(-c->mu * ln2)) * sum); break;
        }
    }
}
