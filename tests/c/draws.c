// Draws of several texts at once, on several threads, and logarithms of probabilities.
#include <math.h>
#include <string.h>

#include "check.h"

enum { VOCAB = 1003, STRIDE = 1008, TEXTS = 14, ROWS = 4, TOP = 50 };

static const fl_sampling params[TEXTS] = {
    {.temperature = 1, .repetition_penalty = 1},
    {.temperature = 0.5f, .top_k = 40, .repetition_penalty = 1.25f},
    {.temperature = 1, .top_p = 0.875f, .repetition_penalty = 1, .frequency_penalty = 0.5f},
    {.temperature = 2, .min_p = 0.0625f, .repetition_penalty = 1, .presence_penalty = 1},
    {.temperature = 1, .typical_p = 0.75f, .repetition_penalty = 1},
    {.temperature = 0, .repetition_penalty = 1.5f},
    {.temperature = 0, .repetition_penalty = 1},
    {.temperature = 1.5f, .top_h = 0.5f, .eta_cutoff = 0.015625f, .repetition_penalty = 1.25f, .penalty_window = 2},
    {.temperature = 1, .dynatemp_range = 0.5f, .dynatemp_exponent = 1.5f, .top_n_sigma = 2, .repetition_penalty = 1},
    {.temperature = 1, .xtc_probability = 0.5f, .xtc_threshold = 0.03125f, .repetition_penalty = 1},
    {.temperature = 1, .mirostat_tau = 3, .mirostat_eta = 0.25f, .repetition_penalty = 1},
    {.temperature = 0.75f, .top_p = 0.9375f, .typical_p = 0.875f, .min_p = 0.015625f, .repetition_penalty = 1,
     .order = {FL_TYPICAL_P, FL_TOP_P, FL_MIN_P, FL_TEMPERATURE}},
    {.temperature = 1, .epsilon_cutoff = 0.0009765625f, .repetition_penalty = 1, .no_repeat_ngram_size = 1},
    {.temperature = 1, .repetition_penalty = 1, .dry_multiplier = 1, .dry_base = 1.75f, .dry_allowed_length = 1,
     .dry_last_n = SIZE_MAX},
};

static fl_sampler *sampler_of(size_t text) {
    static const int32_t barred[] = {3, 77, VOCAB - 1};
    fl_sampler *s = NULL;
    expect(fl_sampler_new(VOCAB, &params[text], 42 + text, &s) == FL_OK, "a sampler");
    if (text % 2) expect(fl_sampler_bar(s, barred, 3, text) == FL_OK, "barred tokens");
    if (text % 3) expect(fl_sampler_bias(s, (int32_t[]){(int32_t)(text * 70)}, 1, -INFINITY) == FL_OK, "a bias");
    if (text == 13)
        for (size_t i = 0; i < 8; i++) expect(fl_sampler_accept(s, (int32_t)(i % 3), 0) == FL_OK, "a prompt's token");
    return s;
}

// The texts' rows lie one after the other. Each text has guesses: the first `text % ROWS` of them are right.
void test_draws(void) {
    static float logits[TEXTS * ROWS * STRIDE];
    int32_t guesses[TEXTS][ROWS - 1], want[TEXTS][ROWS], tokens[TEXTS][ROWS];
    size_t counts[TEXTS];
    fl_draw_scratch *scratch;
    describe("draws");
    expect(fl_draw_scratch_new(&scratch) == FL_OK, "working memory");
    for (size_t row = 0; row < TEXTS * ROWS; row++) {
        fill(logits + row * STRIDE, VOCAB, 8);
        poison(logits + row * STRIDE + VOCAB, (STRIDE - VOCAB) * sizeof(float));
    }
    for (size_t text = 0; text < TEXTS; text++) {
        fl_sampler *s = sampler_of(text);
        counts[text] = text % ROWS + 1;
        for (size_t i = 0; i < counts[text]; i++) {
            const float *row = logits + (text * ROWS + i) * STRIDE;
            expect(fl_sampler_draw(s, scratch, isas[0], row, &want[text][i]) == FL_OK &&
                       fl_sampler_accept(s, want[text][i], 1) == FL_OK,
                   "one draw");
            if (i < ROWS - 1) guesses[text][i] = i + 1 < counts[text] ? want[text][i] : (want[text][i] + 1) % VOCAB;
        }
        for (size_t i = counts[text]; i < ROWS - 1; i++) guesses[text][i] = 0;
        same(0, isas[0]->name, want[text], counts[text] * sizeof(int32_t)); // into the hash
        fl_sampler_free(s);
    }
    for (size_t i = 0; i < n_isas; i++)
        for (size_t threads = 1; threads <= 4; threads++) {
            fl_draw draws[TEXTS];
            describe("draws on %zu threads", threads);
            for (size_t text = 0; text < TEXTS; text++) {
                fl_sampler *s = sampler_of(text), *copy = NULL;
                expect(fl_sampler_copy(s, &copy) == FL_OK, "a copy");
                fl_sampler_free(s);
                draws[text] = (fl_draw){.sampler = copy, .logits = logits + text * ROWS * STRIDE,
                                        .guesses = guesses[text], .n_guesses = ROWS - 1, .tokens = tokens[text],
                                        .status = FL_NO_MEMORY};
            }
            memset(tokens, 0, sizeof tokens);
            fl_draw_all(scratch, isas[i], draws, TEXTS, threads, NULL);
            for (size_t text = 0; text < TEXTS; text++) {
                const size_t n = draws[text].n_tokens;
                expect(draws[text].status == FL_OK && n == counts[text], "one token more than guesses are right");
                expect(memcmp(tokens[text], want[text], n * sizeof(int32_t)) == 0, "the tokens of one draw each");
                fl_sampler_free(draws[text].sampler);
            }
        }
    fl_draw_scratch_free(scratch);
}

// Values are multiples of 1/4, so that many are equal.
void test_logprobs(void) {
    static float x[STRIDE];
    struct {
        double out[TOP + 1];
        int32_t tokens[TOP + 1];
    } found;
    int32_t *tokens = found.tokens;
    double *out = found.out;
    fl_draw_scratch *scratch;
    describe("logprobs");
    expect(fl_draw_scratch_new(&scratch) == FL_OK, "working memory");
    for (size_t number = 0; number < 200; number++) {
        const size_t n = number < 40 ? number + 1 : between(1, VOCAB), top = between(0, n < TOP ? n : TOP);
        const size_t token = between(0, n - 1);
        poison(x, sizeof x);
        for (size_t i = 0; i < n; i++) x[i] = (float)between(0, 60) / 4 - 8;
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += exp((double)x[i]);
        describe("logprobs of %zu, %zu of %zu", token, top, n);
        for (size_t i = 0; i < n_isas; i++) {
            memset(&found, 0, sizeof found);
            tokens[0] = (int32_t)token;
            expect(fl_logprobs(scratch, isas[i], x, n, top, tokens, out) == FL_OK, "logprobs");
            same(i, isas[i]->name, &found, sizeof found);
        }
        for (size_t i = 0; i <= top; i++) {
            const size_t at = (size_t)tokens[i];
            expect(fabs(out[i] - ((double)x[at] - log(sum))) < 1e-6, "a logarithm");
            size_t before = 0; // how many are better, or equal with a lower id
            for (size_t j = 0; j < n; j++) before += x[j] > x[at] || (x[j] >= x[at] && j < at);
            expect(i == 0 ? at == token : before == i - 1, "the place in the order");
        }
        x[token] = number % 3 == 0 ? NAN : number % 3 == 1 ? INFINITY : -INFINITY;
        expect(fl_logprobs(scratch, isas[number % n_isas], x, n, top, tokens, out) == FL_BAD_VALUE, "no number");
        tokens[0] = (int32_t)n;
        expect(fl_logprobs(scratch, isas[0], x, n, 0, tokens, out) == FL_BAD_TOKEN, "no token");
    }
    fl_draw_scratch_free(scratch);
}
