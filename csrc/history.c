// How the text so far changes logits: see history.h.
#include "history.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const float MOST = 1e30f; // of what is added to or subtracted from a logit: with it all sums stay finite

// ---- arrays --------------------------------------------------------------------------------------------------------

void fl_history_free(fl_history *h) {
    free(h->places);
    free(h->tokens);
    free(h->same);
    free(h->biases.tokens);
    free(h->biases.items);
    free(h->breakers.tokens);
    free(h->breakers.items);
    free(h->bars);
    free(h->forced);
    free(h->next);
    free(h->decaying);
}

// A copy of n elements in an array of `room`, or NULL for none. Notes in *status where there is no memory.
static void *duplicate(const void *from, size_t n, size_t room, size_t size, fl_status *status) {
    if (room == 0) return NULL;
    void *to = malloc(room * size);
    if (!to) *status = FL_NO_MEMORY;
    else if (n > 0) memcpy(to, from, n * size);
    return to;
}

#define COPIED(array, n, room) duplicate(array, n, room, sizeof *(array), &status)

fl_status fl_history_own(fl_history *h) {
    fl_status status = FL_OK;
    const size_t n = h->remembers ? h->n_prompt + h->n_generated : 0;
    h->places = COPIED(h->places, h->n_places, h->n_places);
    h->tokens = COPIED(h->tokens, n, h->room);
    h->same = h->same ? COPIED(h->same, 0, h->room) : NULL;
    h->biases.tokens = COPIED(h->biases.tokens, h->biases.n_tokens, h->biases.n_tokens);
    h->biases.items = COPIED(h->biases.items, h->biases.n, h->biases.n);
    h->breakers.tokens = COPIED(h->breakers.tokens, h->breakers.n_tokens, h->breakers.n_tokens);
    h->breakers.items = COPIED(h->breakers.items, h->breakers.n, h->breakers.n);
    h->bars = COPIED(h->bars, h->n_bars, h->n_bars);
    h->forced = COPIED(h->forced, h->n_forced, h->n_forced);
    h->next = COPIED(h->next, h->n_next, h->n_next);
    h->decaying = COPIED(h->decaying, h->n_decaying, h->n_decaying);
    return status;
}

// ---- tokens that were seen -----------------------------------------------------------------------------------------

static int penalizes(const fl_sampling *p) {
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f;
}

static int is_dry(const fl_sampling *p) {
    return p->dry_multiplier != 0.0f && p->dry_base >= 1.0f && p->dry_last_n > 0;
}

fl_history fl_history_of(const fl_sampling *p, size_t vocab) {
    const int windowed = p->penalty_window > 0 && penalizes(p);
    return (fl_history){.p = p, .vocab = vocab, .remembers = windowed || p->no_repeat_ngram_size > 0 || is_dry(p)};
}

// A token's place, or the free one that it would take. n_places is a power of two, and some are free.
static fl_seen *place_of(fl_seen *places, size_t n_places, uint32_t name) {
    size_t i = (size_t)(name * 0x9E3779B97F4A7C15u >> 32) & (n_places - 1);
    while (places[i].name != 0 && places[i].name != name) i = (i + 1) & (n_places - 1);
    return &places[i];
}

static fl_status reserve_place(fl_history *h) {
    if (!penalizes(h->p) || 2 * h->n_seen < h->n_places) return FL_OK;
    const size_t n = h->n_places ? 2 * h->n_places : 16;
    fl_seen *more = calloc(n, sizeof *more);
    if (!more) return FL_NO_MEMORY;
    for (size_t i = 0; i < h->n_places; i++)
        if (h->places[i].name != 0) *place_of(more, n, h->places[i].name) = h->places[i];
    free(h->places);
    h->places = more;
    h->n_places = n;
    return FL_OK;
}

static fl_status reserve_token(fl_history *h) {
    if (!h->remembers || h->n_prompt + h->n_generated < h->room) return FL_OK;
    const size_t room = h->room ? 2 * h->room : 64;
    int32_t *tokens = realloc(h->tokens, room * sizeof *tokens);
    if (!tokens) return FL_NO_MEMORY;
    h->tokens = tokens;
    if (is_dry(h->p)) {
        uint32_t *same = realloc(h->same, room * sizeof *same);
        if (!same) return FL_NO_MEMORY;
        h->same = same;
    }
    h->room = room;
    return FL_OK;
}

fl_status fl_history_reserve(fl_history *h) {
    const fl_status status = reserve_place(h);
    return status == FL_OK ? reserve_token(h) : status;
}

// Whether the n tokens end with a phrase, or with all of it but its last token.
static int ends_with(const fl_history *h, size_t n, const int32_t *phrase, size_t length) {
    return length <= n && memcmp(h->tokens + n - length, phrase, length * sizeof *phrase) == 0;
}

static void count(fl_history *h, int32_t token, int generated, uint32_t change) {
    const uint32_t name = (uint32_t)token + 1;
    fl_seen *place = place_of(h->places, h->n_places, name);
    h->n_seen += place->name == 0;
    place->name = name;
    place->times += change;
    place->count += generated ? change : 0;
}

void fl_history_accept(fl_history *h, int32_t token, int generated) {
    const size_t n = h->n_prompt + h->n_generated, window = h->p->penalty_window;
    if (penalizes(h->p)) {
        count(h, token, generated, 1);
        if (window > 0 && n >= window) // one leaves it
            count(h, h->tokens[n - window], n - window >= h->n_prompt, (uint32_t)-1);
    }
    if (generated) {
        h->n_generated++;
        h->next_at += h->next_at < h->n_next;
    } else {
        h->n_prompt++;
    }
    if (!h->remembers) return;
    h->tokens[n] = token;
    for (size_t i = 0; i < h->breakers.n; i++) {
        const fl_phrase *b = &h->breakers.items[i];
        const int32_t *phrase = h->breakers.tokens + b->at;
        if (phrase[b->n - 1] == token && ends_with(h, n + 1, phrase, b->n)) h->broken = n + 1;
    }
}

// ---- what it does to logits ----------------------------------------------------------------------------------------

// x^n by squaring: libm's powers differ between systems.
static double power(double x, size_t n) {
    double out = 1;
    for (; n > 0; n >>= 1, x *= x)
        if (n & 1) out *= x;
    return out;
}

static void add_biases(const fl_history *h, float *logits) {
    const size_t n = h->n_prompt + h->n_generated;
    for (size_t i = 0; i < h->biases.n; i++) {
        const fl_phrase *b = &h->biases.items[i];
        const int32_t *phrase = h->biases.tokens + b->at;
        if (b->n == 1 || ends_with(h, n, phrase, b->n - 1)) logits[phrase[b->n - 1]] += b->bias;
    }
}

static void penalize(const fl_history *h, float *logits) {
    const fl_sampling *p = h->p;
    for (size_t i = 0; i < h->n_places; i++) {
        const fl_seen *place = &h->places[i];
        if (place->times == 0) continue;
        float *l = &logits[place->name - 1];
        *l = *l > 0 ? *l / p->repetition_penalty : *l * p->repetition_penalty;
        if (place->count) *l -= p->presence_penalty + (float)place->count * p->frequency_penalty;
    }
}

// DRY (p-e-w, 2024), as in llama.cpp: a token that would go on with what followed the same tokens before, m of them at
// the text's end, loses multiplier * base^(m - allowed).
//
//     text     .. a b c d .. x b c        m = 2 for d: "b c" is at the end and before it
//     same[i]  how many tokens before the i-th last agree with the text's end (Gusfield's Z of the reversed text)
static void penalize_repeats(const fl_history *h, float *logits, uint32_t *marks) {
    const fl_sampling *p = h->p;
    const size_t all = h->n_prompt + h->n_generated, n = all < p->dry_last_n ? all : p->dry_last_n;
    const size_t allowed = p->dry_allowed_length, longest = all - h->broken;
    if (n <= allowed || longest < allowed) return;
    const int32_t *last = h->tokens + all - 1; // the i-th last is last[-i]
    uint32_t *same = h->same;
    for (size_t i = 1, left = 0, right = 0; i < n; i++) { // same tokens are known from `left` up to `right`
        size_t m = i < right ? (right - i < same[i - left] ? right - i : same[i - left]) : 0;
        while (i + m < n && last[-(ptrdiff_t)m] == last[-(ptrdiff_t)(i + m)]) m++;
        same[i] = (uint32_t)m;
        if (i + m > right) {
            left = i;
            right = i + m;
        }
    }
    for (size_t i = 1; i < n; i++) marks[last[-(ptrdiff_t)(i - 1)]] = 0;
    for (size_t i = 1; i < n; i++) {
        uint32_t *mark = &marks[last[-(ptrdiff_t)(i - 1)]];
        const uint32_t m = same[i] < longest ? same[i] : (uint32_t)longest;
        if (m >= allowed && m + 1 > *mark) *mark = m + 1;
    }
    for (size_t i = 1; i < n; i++) {
        const int32_t token = last[-(ptrdiff_t)(i - 1)];
        if (marks[token] == 0) continue;
        const double penalty = (double)p->dry_multiplier * power((double)p->dry_base, marks[token] - 1 - allowed);
        logits[token] -= (float)fmin(penalty, (double)MOST);
        marks[token] = 0;
    }
}

// Forbids tokens that would complete an n-gram that is in the text.
static void forbid_ngrams(const fl_history *h, float *logits) {
    const size_t n = h->n_prompt + h->n_generated, before = h->p->no_repeat_ngram_size - 1;
    if (n < before + 1) return;
    const int32_t *end = h->tokens + n - before;
    for (size_t i = 0; i + before < n; i++) {
        const int32_t *at = h->tokens + i;
        if (before > 0 && (at[before - 1] != end[before - 1] || memcmp(at, end, before * sizeof *at) != 0)) continue;
        logits[at[before]] = -INFINITY;
    }
}

static void force(const fl_history *h, float *logits) {
    for (size_t i = 0; i < h->vocab; i++) logits[i] = -INFINITY;
    for (size_t i = 0; i < h->n_forced; i++) logits[h->forced[i]] = 0;
}

static void decay(const fl_history *h, float *logits) {
    const float rise = (float)fmin(power(h->decay_factor, h->n_generated - h->decay_start) - 1, (double)MOST);
    for (size_t i = 0; i < h->n_decaying; i++) {
        float *l = &logits[h->decaying[i]];
        if (*l > -INFINITY) *l += fminf(fabsf(*l) * rise, MOST);
    }
}

static int forces(const fl_history *h) { return h->n_forced > 0 && h->n_generated == h->forced_at; }
static int decays(const fl_history *h) { return h->n_decaying > 0 && h->n_generated > h->decay_start; }

static int bars(const fl_history *h) {
    for (size_t i = 0; i < h->n_bars; i++)
        if (h->n_generated < h->bars[i].until) return 1;
    return 0;
}

int fl_history_adjusts(const fl_history *h) {
    return h->n_seen > 0 || h->biases.n > 0 || bars(h) || forces(h) || decays(h) || h->p->no_repeat_ngram_size > 0 ||
           is_dry(h->p);
}

void fl_history_adjust(const fl_history *h, float *logits, uint32_t *marks) {
    add_biases(h, logits);
    penalize(h, logits);
    if (is_dry(h->p)) penalize_repeats(h, logits, marks);
    if (h->p->no_repeat_ngram_size > 0) forbid_ngrams(h, logits);
    for (size_t i = 0; i < h->n_bars; i++)
        if (h->n_generated < h->bars[i].until) logits[h->bars[i].token] = -INFINITY;
    if (forces(h)) force(h, logits);
    if (decays(h)) decay(h, logits);
}
