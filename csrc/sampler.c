// The sampler: its options, what it knows of a text (history.h), and the way from logits to a token.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fpenv.h"
#include "sampler.h"
#include "threads.h"

fl_status fl_sampler_new(size_t vocab_size, const fl_sampling *params, uint64_t seed, fl_sampler **out) {
    if (vocab_size == 0 || vocab_size > INT32_MAX) return FL_BAD_CONFIG;
    fl_sampler *s = calloc(1, sizeof *s);
    if (!s) return FL_NO_MEMORY;
    s->p = *params;
    s->vocab = vocab_size;
    s->state = fl_coin_state(seed);
    s->chain = fl_chain_of(params);
    s->mu = 2.0 * (double)params->mirostat_tau;
    s->history = fl_history_of(&s->p, vocab_size);
    *out = s;
    return FL_OK;
}

void fl_sampler_free(fl_sampler *s) {
    if (!s) return;
    fl_history_free(&s->history);
    free(s);
}

fl_status fl_sampler_copy(const fl_sampler *s, fl_sampler **out) {
    fl_sampler *copy = malloc(sizeof *copy);
    if (!copy) return FL_NO_MEMORY;
    *copy = *s;
    copy->history.p = &copy->p;
    const fl_status status = fl_history_own(&copy->history);
    if (status == FL_OK) *out = copy;
    else fl_sampler_free(copy);
    return status;
}

// ---- options that are lists -----------------------------------------------------------------------------------------

static int are_tokens(const fl_sampler *s, const int32_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (size_t)tokens[i] >= s->vocab) return 0;
    return 1;
}

// Puts a copy of tokens (n,) in the place of an array.
static fl_status replace(const fl_sampler *s, int32_t **array, size_t *count, const int32_t *tokens, size_t n) {
    if (!are_tokens(s, tokens, n)) return FL_BAD_TOKEN;
    int32_t *copy = malloc((n + 1) * sizeof *copy); // never of no bytes, for which malloc may return NULL
    if (!copy) return FL_NO_MEMORY;
    memcpy(copy, tokens, n * sizeof *copy);
    free(*array);
    *array = copy;
    *count = n;
    return FL_OK;
}

static fl_status add_phrase(fl_sampler *s, fl_phrases *all, const int32_t *tokens, size_t n, float bias) {
    if (n == 0 || !are_tokens(s, tokens, n)) return FL_BAD_TOKEN;
    int32_t *more = realloc(all->tokens, (all->n_tokens + n) * sizeof *more);
    if (!more) return FL_NO_MEMORY;
    all->tokens = more;
    fl_phrase *items = realloc(all->items, (all->n + 1) * sizeof *items);
    if (!items) return FL_NO_MEMORY;
    all->items = items;
    memcpy(more + all->n_tokens, tokens, n * sizeof *more);
    items[all->n++] = (fl_phrase){all->n_tokens, n, bias};
    all->n_tokens += n;
    s->history.remembers |= n > 1 || all == &s->history.breakers;
    return FL_OK;
}

fl_status fl_sampler_bias(fl_sampler *s, const int32_t *tokens, size_t n, float bias) {
    return add_phrase(s, &s->history.biases, tokens, n, bias);
}

fl_status fl_sampler_break(fl_sampler *s, const int32_t *tokens, size_t n) {
    return add_phrase(s, &s->history.breakers, tokens, n, 0);
}

fl_status fl_sampler_bar(fl_sampler *s, const int32_t *tokens, size_t n, size_t until) {
    fl_history *h = &s->history;
    if (!are_tokens(s, tokens, n)) return FL_BAD_TOKEN;
    fl_bar *more = realloc(h->bars, (h->n_bars + n + 1) * sizeof *more);
    if (!more) return FL_NO_MEMORY;
    h->bars = more;
    for (size_t i = 0; i < n; i++) h->bars[h->n_bars++] = (fl_bar){tokens[i], until};
    return FL_OK;
}

fl_status fl_sampler_force(fl_sampler *s, const int32_t *tokens, size_t n, size_t at) {
    s->history.forced_at = at;
    return replace(s, &s->history.forced, &s->history.n_forced, tokens, n);
}

fl_status fl_sampler_decay(fl_sampler *s, const int32_t *tokens, size_t n, size_t start, float factor) {
    s->history.decay_start = start;
    s->history.decay_factor = (double)factor;
    return replace(s, &s->history.decaying, &s->history.n_decaying, tokens, n);
}

void fl_sampler_watermark(fl_sampler *s, const fl_watermark *watermark) {
    s->watermark = watermark;
    s->history.remembers = 1;
}

fl_status fl_sampler_accept(fl_sampler *s, int32_t token, int generated) {
    if (token < 0 || (size_t)token >= s->vocab) return FL_BAD_TOKEN;
    const fl_status status = fl_history_reserve(&s->history);
    if (status == FL_OK) fl_history_accept(&s->history, token, generated);
    return status;
}

int fl_only_forbids(const float *logits, size_t n) {
    int ok = 1;
    for (size_t i = 0; i < n; i++) ok &= logits[i] < INFINITY; // false for NaN too
    return ok;
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

// ---- watermark -----------------------------------------------------------------------------------------------------

enum { SELF_HASHED = 40 }; // tokens whose own lists are looked at with selfhash, as in transformers

// Sets w->marks[token] to 1 where a token is green, else 0. best (n,): the most likely tokens; with selfhash no other
// one is green. Returns whether any may be: a text that is shorter than the watermark's context has no list.
static int mark_green(const fl_sampler *s, fl_draw_worker *w, const fl_candidate *best, size_t n) {
    const size_t width = fl_watermark_width(s->watermark), length = s->history.n_prompt + s->history.n_generated;
    if (length < width) return 0;
    memset(w->marks, 0, s->vocab * sizeof *w->marks);
    if (!fl_watermark_is_selfhash(s->watermark)) {
        const size_t count = fl_watermark_list(s->watermark, s->history.tokens + length - width, width, -1, w->order);
        for (size_t i = 0; i < count; i++) w->marks[w->order[i]] = 1;
        return 1;
    }
    const int32_t *context = s->history.tokens + length - (width - 1); // and the token itself
    for (size_t i = 0; i < n; i++) {
        const size_t id = fl_id_in(best[i]);
        const size_t count = fl_watermark_list(s->watermark, context, width - 1, (int32_t)id, w->order);
        for (size_t j = 0; j < count; j++)
            if (w->order[j] == id) w->marks[id] = 1;
    }
    return 1;
}

void fl_raise_green(const fl_sampler *s, fl_draw_worker *w, const fl_kernels *k, float *logits) {
    const size_t n = s->vocab < SELF_HASHED ? s->vocab : SELF_HASHED;
    if (fl_watermark_is_selfhash(s->watermark)) fl_candidates_top(w, k, logits, s->vocab, n);
    if (!mark_green(s, w, w->found[0], n)) return;
    for (size_t i = 0; i < s->vocab; i++)
        if (w->marks[i]) logits[i] += fl_watermark_bias(s->watermark);
}

// The same of probabilities that filters have left: what is not green becomes less likely.
static void prefer_green(const fl_sampler *s, fl_choice *c) {
    fl_draw_worker *w = c->w;
    fl_candidate best[SELF_HASHED];
    fl_choice_settle(c);
    size_t n = 0;
    if (fl_watermark_is_selfhash(s->watermark)) {
        const fl_candidate last = fl_candidates_cut(w, SELF_HASHED, INFINITY).last;
        for (size_t i = 0; i < c->end.count; i++)
            if (w->found[0][i] <= last) best[n++] = w->found[0][i];
    }
    if (!mark_green(s, w, best, n)) return;
    const float bias = fl_watermark_bias(s->watermark), less = fl_exp_of(c->k, -fabsf(bias));
    for (size_t i = 0; i < c->end.count; i++) {
        const size_t id = fl_id_in(w->found[0][i]);
        if (w->marks[id] == (bias < 0)) w->probs[id] *= less;
    }
    fl_candidates_rank(w);
    c->end = fl_candidates_keep(w, UINT64_MAX);
}

// ---- one draw ------------------------------------------------------------------------------------------------------

size_t fl_apply_mask(const uint32_t *mask, float *logits, size_t vocab) {
    size_t allowed = 0;
    for (size_t i = 0; i < vocab; i += 32) {
        const size_t n = vocab - i < 32 ? vocab - i : 32;
        const uint32_t bits = mask[i / 32];
        if (bits == UINT32_MAX) allowed += n;
        else if (bits == 0)
            for (size_t j = 0; j < n; j++) logits[i + j] = -INFINITY;
        else
            for (size_t j = 0; j < n; j++)
                if (bits >> j & 1) allowed++;
                else logits[i + j] = -INFINITY;
    }
    return allowed;
}

// A draw that fails leaves the sampler as it was: nothing fails after the first random number is taken. mask: NULL, or
// which tokens are allowed.
static fl_status draw_token(fl_sampler *s, fl_draw_scratch *scratch, size_t id, const fl_kernels *k,
                            const float *logits, int processed, const uint32_t *mask, int32_t *token) {
    const fl_sampling *p = &s->p;
    const float *x = logits;
    fl_draw_worker *w;
    size_t best;
    int finite;
    float max = k->max(logits, s->vocab, &best, &finite);
    if (!finite && !(processed && fl_only_forbids(logits, s->vocab))) return FL_BAD_VALUE;
    const int greedy = p->temperature < 1e-6f, adjusts = fl_history_adjusts(&s->history);
    size_t allowed = s->vocab;
    if (adjusts || mask || (greedy && s->watermark)) {
        const fl_status status = fl_draw_reserve(scratch, id, s->vocab, &w);
        if (status != FL_OK) return status;
        memcpy(w->logits, logits, s->vocab * sizeof(float));
        if (adjusts) fl_history_adjust(&s->history, w->logits, w->marks);
        if (mask) allowed = fl_apply_mask(mask, w->logits, s->vocab);
        if (greedy && s->watermark) fl_raise_green(s, w, k, w->logits);
        x = w->logits;
        max = k->max(x, s->vocab, &best, &finite); // biases may be -infinity
    }
    if (!isfinite(max)) return FL_BAD_TOKEN;
    // Where logits divided by the temperature overflow, the best token has all the probability. A mask's only token
    // takes no random number, so that it may be written without a draw.
    const float scale = s->chain.scale;
    if (greedy || allowed == 1 || !isfinite(max * scale)) {
        *token = (int32_t)best;
        return FL_OK;
    }
    const fl_status status = fl_draw_reserve(scratch, id, s->vocab, &w);
    if (status != FL_OK) return status;
    k->softmax(w->probs, w->sums, x, s->vocab, scale, max * scale);
    double total = 0;
    for (size_t i = 0; i < (s->vocab + FL_SUM_PART - 1) / FL_SUM_PART; i++) total += (double)w->sums[i];
    fl_choice c = {.p = p, .w = w, .k = k, .logits = x, .vocab = s->vocab, .total = total, .mu = s->mu};
    if (p->xtc_probability > 0.0f) c.chance = fl_coin(&s->state);
    fl_choice_filter(&c, &s->chain);
    if (s->watermark) prefer_green(s, &c);
    const double coin = (double)fl_coin(&s->state);
    if (!c.collected) {
        *token = (int32_t)draw_any(w, s->vocab, coin * total);
        return FL_OK;
    }
    *token = (int32_t)fl_id_in(fl_candidates_cut(w, c.end.count, coin * c.end.sum).last);
    if (p->mirostat_tau > 0.0f) { // its surprise, in bits, moves the bound of the next
        const double surprise = fl_log_of(k, c.end.sum / (double)w->probs[*token]) / 0.69314718055994530942;
        s->mu -= (double)p->mirostat_eta * (surprise - (double)p->mirostat_tau);
    }
    return FL_OK;
}

fl_status fl_sampler_draw(fl_sampler *s, fl_draw_scratch *scratch, const fl_kernels *k, const float *logits,
                          int32_t *token) {
    const fl_fpenv before = fl_fpenv_set();
    const fl_status status = draw_token(s, scratch, 0, k, logits, 0, NULL, token);
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
        d->status = fl_history_reserve(&d->sampler->history);
        const uint32_t *mask = d->masks ? d->masks[d->n_tokens] : NULL;
        if (d->status == FL_OK)
            d->status = draw_token(d->sampler, all->scratch, id, all->k, row, d->processed, mask, token);
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
