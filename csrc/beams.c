// Beams: several texts at once that a search goes on with, and the scores of what may follow them. fastllm.h says what
// the functions compute. A score is a sum of log probabilities, in floats as the transformers library adds them up.
#include <math.h>
#include <string.h>

#include "fpenv.h"
#include "sampler.h"
#include "threads.h"

// ---- scores of one beam --------------------------------------------------------------------------------------------

// x (vocab,) = log softmax of logits.
static fl_status log_softmax(fl_draw_worker *w, const fl_kernels *k, const float *logits, size_t vocab, float *x) {
    size_t best;
    int finite;
    const float max = k->max(logits, vocab, &best, &finite);
    if (!finite) return FL_BAD_VALUE;
    k->softmax(w->probs, w->sums, logits, vocab, 1, max);
    const float norm = (float)fl_log_of(k, fl_sum_of(w->probs, NULL, vocab));
    for (size_t i = 0; i < vocab; i++) x[i] = logits[i] - max - norm;
    return FL_OK;
}

// The sampler's filters on scores x (vocab,): those of tokens that they leave are divided by the temperature, the
// others become -infinity.
static void filter(const fl_sampler *s, fl_draw_worker *w, const fl_kernels *k, size_t keep, float *x) {
    const size_t vocab = s->vocab;
    size_t best;
    int finite;
    const float scale = s->chain.scale, max = k->max(x, vocab, &best, &finite);
    if (!isfinite(max * scale)) return; // no token is left, or the numbers are beyond all bounds
    k->softmax(w->probs, w->sums, x, vocab, scale, max * scale);
    double total = 0;
    for (size_t i = 0; i < (vocab + FL_SUM_PART - 1) / FL_SUM_PART; i++) total += (double)w->sums[i];
    fl_choice c = {.p = &s->p, .w = w, .k = k, .logits = x, .vocab = vocab, .total = total, .scale = scale,
                   .keep = keep};
    fl_choice_filter(&c, &s->chain);
    if (!c.collected) {
        if (scale != 1.0f)
            for (size_t i = 0; i < vocab; i++) x[i] *= scale;
        return;
    }
    fl_choice_settle(&c);
    const fl_candidate *left = w->found[0];
    for (size_t i = 0; i < c.end.count; i++) w->kept[i] = x[fl_id_in(left[i])] * c.scale;
    for (size_t i = 0; i < vocab; i++) x[i] = -INFINITY;
    for (size_t i = 0; i < c.end.count; i++) x[fl_id_in(left[i])] = w->kept[i];
}

typedef struct scoring {
    fl_draw_scratch *scratch;
    const fl_kernels *k;
    const fl_scoring *how;
    fl_beam *beams;
    size_t n;
} scoring;

static fl_status score(const scoring *all, fl_beam *b, size_t id) {
    const fl_sampler *s = b->sampler;
    const fl_scoring *how = all->how;
    const size_t vocab = s->vocab;
    float *x = b->scores;
    fl_draw_worker *w;
    fl_status status = fl_draw_reserve(all->scratch, id, vocab, &w);
    if (status != FL_OK) return status;
    if (!b->processed) status = log_softmax(w, all->k, b->logits, vocab, x);
    else if (!fl_only_forbids(x, vocab)) status = FL_BAD_VALUE;
    if (status != FL_OK) return status;
    for (size_t i = 0; i < how->n_taken; i++) x[how->taken[i]] -= how->penalty;
    if (fl_history_adjusts(&s->history)) fl_history_adjust(&s->history, x, w->marks);
    if (b->mask) fl_apply_mask(b->mask, x, vocab);
    if (how->samples) filter(s, w, all->k, how->keep, x);
    if (s->watermark) fl_raise_green(s, w, all->k, x);
    for (size_t i = 0; i < vocab; i++) x[i] += b->score;
    for (size_t i = vocab; i < fl_round_up(vocab, FL_LANES); i++) x[i] = -INFINITY;
    if (how->samples) {
        size_t best;
        int finite;
        b->max = all->k->max(x, vocab, &best, &finite);
        if (isfinite(b->max)) all->k->softmax(w->probs, b->sums, x, vocab, 1, b->max);
        return FL_OK;
    }
    const size_t most = how->most < vocab ? how->most : vocab;
    fl_candidates_top(w, all->k, x, vocab, most);
    for (b->n_best = 0; b->n_best < most; b->n_best++) {
        const size_t token = fl_id_in(w->found[0][b->n_best]);
        if (!(x[token] > -INFINITY)) break;
        b->best[b->n_best] = (fl_follower){.token = (int32_t)token, .score = x[token]};
    }
    return FL_OK;
}

static void score_share(void *arg, fl_team *team, size_t id) {
    const scoring *all = arg;
    fl_deal deal = fl_deal_start(team, id, all->n, 1);
    for (size_t begin, end; fl_deal_next(&deal, &begin, &end);)
        all->beams[begin].status = score(all, &all->beams[begin], id);
}

void fl_beams_score(fl_draw_scratch *scratch, const fl_kernels *k, fl_beam *beams, size_t n, const fl_scoring *how,
                    size_t threads, fl_pace *pace) {
    enum { WORTH = 16 << 10 }; // logits that are worth another thread: see fl_draw_threads
    scoring all = {scratch, k, how, beams, n};
    const size_t worth = 1 + n * (n ? beams[0].sampler->vocab : 0) / WORTH, most = n < threads ? n : threads;
    fl_paced(pace, n, worth < most ? worth : most, score_share, &all, NULL);
}

// The log softmax alone, for those who change it before fl_beams_score.
fl_status fl_log_softmax(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, size_t vocab, float *out) {
    fl_draw_worker *w;
    fl_status status = fl_draw_reserve(scratch, 0, vocab, &w);
    if (status != FL_OK) return status;
    const fl_fpenv before = fl_fpenv_set();
    status = log_softmax(w, k, logits, vocab, out);
    fl_fpenv_restore(before);
    return status;
}

// ---- the best of all beams -----------------------------------------------------------------------------------------

size_t fl_beams_best(const fl_beam *beams, size_t n, size_t most, fl_follower *out) {
    size_t count = 0;
    for (size_t b = 0; b < n; b++)
        for (size_t i = 0; i < beams[b].n_best; i++) { // the best first: behind one that comes too late all do
            const fl_follower one = {.beam = b, .token = beams[b].best[i].token, .score = beams[b].best[i].score};
            size_t at = count;
            while (at > 0 && out[at - 1].score < one.score) at--;
            if (at == most) break;
            count += count < most;
            memmove(out + at + 1, out + at, (count - at - 1) * sizeof *out);
            out[at] = one;
        }
    return count;
}

// ---- drawing -------------------------------------------------------------------------------------------------------

// Draws one after the other, each from those that are left: beam after beam, token after token, the first at which the
// sum of probabilities passes coin * all of it. Tokens that were drawn get a score of -infinity, and the sum of their
// part of the vocabulary is made anew.
//
//     sums    | beam 0: part 0 | part 1 | .. | beam 1: part 0 | ..       each of FL_SUM_PART tokens, times weight
//                                 ^ coin * all: within, token by token
size_t fl_beams_draw(const fl_kernels *k, fl_beam *beams, size_t n, size_t vocab, size_t most, uint64_t *state,
                     fl_follower *out) {
    const fl_fpenv before = fl_fpenv_set();
    const size_t parts = (vocab + FL_SUM_PART - 1) / FL_SUM_PART;
    float probs[FL_SUM_PART], max = -INFINITY;
    size_t count = 0;
    for (size_t b = 0; b < n; b++) max = beams[b].max > max ? beams[b].max : max;
    for (; count < most && isfinite(max); count++) {
        double all = 0, sum = 0;
        size_t beam = n, part = 0;
        for (size_t b = 0; b < n; b++) {
            if (!isfinite(beams[b].max)) continue;
            beams[b].weight = (double)fl_exp_of(k, beams[b].max - max);
            for (size_t i = 0; i < parts; i++) all += (double)beams[b].sums[i] * beams[b].weight;
        }
        if (!(all > 0)) break;
        const double target = (double)fl_coin(state) * all;
        for (size_t b = 0; b < n && sum <= target; b++) {
            if (!isfinite(beams[b].max)) continue;
            for (size_t i = 0; i < parts && sum <= target; i++) {
                const double more = (double)beams[b].sums[i] * beams[b].weight;
                if (!(more > 0)) continue;
                beam = b; // the last that has any, where sums round to less than the target
                part = i;
                sum += more;
            }
        }
        fl_beam *from = &beams[beam];
        float *x = from->scores + part * FL_SUM_PART;
        const size_t rest = vocab - part * FL_SUM_PART, some = rest < FL_SUM_PART ? rest : FL_SUM_PART;
        size_t drawn = 0;
        k->softmax(probs, &from->sums[part], x, some, 1, from->max);
        sum -= (double)from->sums[part] * from->weight;
        for (size_t i = 0; i < some; i++) {
            if (!(probs[i] > 0)) continue;
            drawn = i;
            sum += (double)probs[i] * from->weight;
            if (target < sum) break;
        }
        const fl_follower one = {.beam = beam, .token = (int32_t)(part * FL_SUM_PART + drawn), .score = x[drawn]};
        x[drawn] = -INFINITY;
        k->softmax(probs, &from->sums[part], x, some, 1, from->max);
        size_t at = count;
        for (; at > 0 && out[at - 1].score < one.score; at--) out[at] = out[at - 1];
        out[at] = one;
    }
    fl_fpenv_restore(before);
    return count;
}
