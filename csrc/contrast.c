// Predictions weighed against each other: guidance by a second text, DoLa by earlier layers, and the degeneration
// penalty of contrastive search by the text so far. See fastllm.h.
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "candidates.h"
#include "fpenv.h"
#include "sampler.h"

// ---- logarithms of probabilities -----------------------------------------------------------------------------------

// A row of logits, and what its softmax has below the fraction: ln p[i] = x[i] - max - norm.
typedef struct prediction {
    const float *x;
    float max, norm;
    double sum; // of exp(x[i] - max)
} prediction;

// Writes exp(x - max) of all tokens to w->probs. FL_BAD_VALUE: a logit is not finite.
static fl_status predict(fl_draw_worker *w, const fl_kernels *k, const float *x, size_t vocab, prediction *out) {
    size_t best;
    int finite;
    const float max = k->max(x, vocab, &best, &finite);
    if (!finite) return FL_BAD_VALUE;
    k->softmax(w->probs, w->sums, x, vocab, 1, max);
    const double sum = fl_sum_of(w->probs, NULL, vocab);
    *out = (prediction){x, max, (float)fl_log_of(k, sum), sum};
    return FL_OK;
}

static inline float logprob(const prediction *p, size_t i) { return p->x[i] - p->max - p->norm; }

// ---- guidance ------------------------------------------------------------------------------------------------------

fl_status fl_guide(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, const float *other,
                   size_t vocab, float scale, float *out) {
    fl_draw_worker *w;
    prediction p, q;
    fl_status status = fl_draw_reserve(scratch, 0, vocab, &w);
    if (status != FL_OK) return status;
    const fl_fpenv before = fl_fpenv_set();
    status = predict(w, k, logits, vocab, &p);
    if (status == FL_OK) status = predict(w, k, other, vocab, &q);
    for (size_t i = 0; status == FL_OK && i < vocab; i++) {
        const float of_q = logprob(&q, i);
        out[i] = scale * (logprob(&p, i) - of_q) + of_q;
    }
    fl_fpenv_restore(before);
    return status;
}

// ---- DoLa ----------------------------------------------------------------------------------------------------------

typedef struct exits {
    fl_draw_scratch *scratch;
    const fl_kernels *k;
    prediction last;    // of the whole model
    const float *probs; // (vocab,) its probabilities
    const float *rows;  // (n, stride) logits of early exits
    size_t n, vocab, stride;
    atomic_int status; // fl_status, of any that failed
    double *divergence; // (n,) written
} exits;

// The Jensen-Shannon divergence of p and the q of an exit but for constant factors: the sum over the vocabulary of
// m (2 ln m - ln p - ln q), where m = (p + q) / 2. Where m is 0 as a normal float a token adds nothing.
static fl_status diverge(const exits *e, fl_draw_worker *w, size_t exit) {
    prediction q;
    const fl_status status = predict(w, e->k, e->rows + exit * e->stride, e->vocab, &q);
    if (status != FL_OK) return status;
    const float share = (float)(1 / q.sum);
    for (size_t i = 0; i < e->vocab; i++) {
        const float mean = 0.5f * (e->probs[i] + w->probs[i] * share);
        w->kept[i] = mean >= FLT_MIN ? mean : 1.0f;
        w->probs[i] = mean >= FLT_MIN ? mean : 0.0f;
    }
    e->k->log(w->logs, w->kept, e->vocab);
    for (size_t i = 0; i < e->vocab; i++)
        w->logs[i] = 2 * w->logs[i] - (double)logprob(&e->last, i) - (double)logprob(&q, i);
    for (size_t i = e->vocab; i < e->stride; i++) w->logs[i] = 0;
    e->divergence[exit] = fl_sum_of(w->probs, w->logs, e->vocab);
    return FL_OK;
}

static void diverge_share(void *arg, fl_team *team, size_t id) {
    exits *e = arg;
    fl_deal deal = fl_deal_start(team, id, e->n, 1);
    for (size_t begin, end; fl_deal_next(&deal, &begin, &end);) {
        fl_draw_worker *w;
        fl_status status = fl_draw_reserve(e->scratch, id, e->vocab, &w);
        if (status == FL_OK) status = diverge(e, w, begin);
        if (status != FL_OK) atomic_store(&e->status, (int)status);
    }
}

// out = ln p - ln q where p is at least a tenth of the largest, else -infinity.
static void contrast(const prediction *p, const prediction *q, size_t vocab, float *out) {
    const float least = -p->norm - 2.30258509299404568402f; // ln 10
    for (size_t i = 0; i < vocab; i++) {
        const float of_p = logprob(p, i), of_q = logprob(q, i);
        out[i] = of_p < least ? -INFINITY : of_p - of_q;
    }
}

// The exit whose divergence is largest, the first among equals.
static size_t farthest(const exits *e) {
    size_t best = 0;
    for (size_t i = 1; i < e->n; i++)
        if (e->divergence[i] > e->divergence[best]) best = i;
    return best;
}

static fl_status dola(exits *e, fl_draw_worker *w, const float *logits, size_t threads, fl_pace *pace, float *out) {
    fl_status status = predict(w, e->k, logits, e->vocab, &e->last);
    if (status != FL_OK) return status;
    size_t exit = 0;
    if (e->n > 1) {
        const float share = (float)(1 / e->last.sum);
        for (size_t i = 0; i < e->vocab; i++) w->logits[i] = w->probs[i] * share;
        e->probs = w->logits; // which predict leaves alone
        fl_paced(pace, fl_apart(e->n), threads < e->n ? threads : e->n, diverge_share, e, NULL);
        status = (fl_status)atomic_load(&e->status);
        exit = farthest(e);
    }
    prediction q;
    if (status == FL_OK) status = predict(w, e->k, e->rows + exit * e->stride, e->vocab, &q);
    if (status == FL_OK) contrast(&e->last, &q, e->vocab, out);
    return status;
}

fl_status fl_dola(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, const float *rows, size_t n,
                  size_t vocab, size_t threads, fl_pace *pace, float *out) {
    exits e = {.scratch = scratch, .k = k, .rows = rows, .n = n, .vocab = vocab,
               .stride = fl_round_up(vocab, FL_LANES), .divergence = malloc(n * sizeof(double))};
    fl_draw_worker *w;
    fl_status status = e.divergence ? fl_draw_reserve(scratch, 0, vocab, &w) : FL_NO_MEMORY;
    atomic_init(&e.status, FL_OK);
    if (status == FL_OK) {
        const fl_fpenv before = fl_fpenv_set();
        status = dola(&e, w, logits, threads, pace, out);
        fl_fpenv_restore(before);
    }
    free(e.divergence);
    return status;
}

// ---- contrastive search --------------------------------------------------------------------------------------------

static fl_status likeliest(const fl_sampler *s, fl_draw_worker *w, const fl_kernels *k, const float *logits,
                           int processed, const uint32_t *mask, size_t most, int32_t *tokens, double *probs,
                           size_t *n) {
    size_t best;
    int finite;
    k->max(logits, s->vocab, &best, &finite);
    if (!finite && !(processed && fl_only_forbids(logits, s->vocab))) return FL_BAD_VALUE;
    memcpy(w->logits, logits, s->vocab * sizeof(float));
    if (fl_history_adjusts(&s->history)) fl_history_adjust(&s->history, w->logits, w->marks);
    if (mask) fl_apply_mask(mask, w->logits, s->vocab);
    if (s->watermark) fl_raise_green(s, w, k, w->logits);
    const float max = k->max(w->logits, s->vocab, &best, &finite);
    if (!isfinite(max)) return FL_BAD_TOKEN;
    k->softmax(w->probs, w->sums, w->logits, s->vocab, 1, max);
    const double sum = fl_sum_of(w->probs, NULL, s->vocab);
    if (most > s->vocab) most = s->vocab;
    fl_candidates_top(w, k, w->logits, s->vocab, most);
    for (*n = 0; *n < most; ++*n) {
        const size_t id = fl_id_in(w->found[0][*n]);
        if (w->logits[id] == -INFINITY) break;
        tokens[*n] = (int32_t)id;
        probs[*n] = (double)w->probs[id] / sum;
    }
    return FL_OK;
}

fl_status fl_likeliest(const fl_sampler *s, fl_draw_scratch *scratch, const fl_kernels *k, const float *logits,
                       int processed, const uint32_t *mask, size_t most, int32_t *tokens, double *probs, size_t *n) {
    fl_draw_worker *w;
    fl_status status = fl_draw_reserve(scratch, 0, s->vocab, &w);
    if (status != FL_OK) return status;
    const fl_fpenv before = fl_fpenv_set();
    status = likeliest(s, w, k, logits, processed, mask, most, tokens, probs, n);
    fl_fpenv_restore(before);
    return status;
}

enum { WORTH = 4 << 20 }; // floats of a context from which one more thread pays: a millisecond's reading

// 1 / the length of x (n,), or 0 of zeros.
static float unit_of(const float *x, size_t n) {
    double sums[FL_LANES] = {0};
    for (size_t i = 0; i < n; i++) sums[i % FL_LANES] += (double)x[i] * (double)x[i];
    for (size_t half = FL_LANES / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++) sums[j] += sums[j + half];
    return sums[0] == 0 ? 0 : (float)(1 / sqrt(sums[0]));
}

void fl_unit_row(float *panels, size_t n, size_t r, const float *x) {
    const fl_fpenv before = fl_fpenv_set();
    const float unit = unit_of(x, n);
    float *row = panels + r / FL_LANES * FL_LANES * fl_round_up(n, FL_GROUP) + r % FL_LANES;
    for (size_t i = 0; i < n; i++) row[i * FL_LANES] = x[i] * unit;
    fl_fpenv_restore(before);
}

fl_status fl_degeneration(const fl_kernels *k, const fl_matrix *context, size_t count, const float *x, size_t n,
                          size_t threads, float *out) {
    fl_matrix rows = *context;
    rows.d = count;
    rows.bias = NULL;
    const size_t dim = rows.n, stride = fl_round_up(count, FL_LANES), worth = 1 + count * dim / WORTH;
    float *units = fl_alloc(n * dim * sizeof(float)), *cosines = fl_alloc(n * stride * sizeof(float));
    fl_status status = units && cosines ? FL_OK : FL_NO_MEMORY;
    const fl_fpenv before = fl_fpenv_set();
    for (size_t i = 0; status == FL_OK && i < n; i++) {
        const float unit = unit_of(x + i * dim, dim);
        for (size_t j = 0; j < dim; j++) units[i * dim + j] = x[i * dim + j] * unit;
    }
    if (status == FL_OK) status = fl_multiply(k, &rows, units, n, worth < threads ? worth : threads, cosines);
    for (size_t i = 0; status == FL_OK && i < n; i++) {
        size_t best;
        int finite;
        const float largest = k->max(cosines + i * stride, count, &best, &finite);
        out[i] = finite ? largest : NAN;
    }
    fl_fpenv_restore(before);
    fl_free(units);
    fl_free(cosines);
    return status;
}
