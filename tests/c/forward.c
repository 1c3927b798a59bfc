// The forward over ragged batches, and the sampler: what users see of the contract.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

// Tokens drawn from the same seed.
void test_sampler(void) {
    static const fl_sampling params[] = {
        {.temperature = 1, .repetition_penalty = 1},
        {.temperature = 0.5f, .top_k = 40, .repetition_penalty = 1.25f},
        {.temperature = 1, .top_p = 0.875f, .repetition_penalty = 1, .frequency_penalty = 0.5f},
        {.temperature = 2, .min_p = 0.0625f, .repetition_penalty = 1, .presence_penalty = 1},
        {.temperature = 1, .typical_p = 0.75f, .repetition_penalty = 1},
        {.temperature = 0, .repetition_penalty = 1.5f},
    };
    enum { VOCAB = 1003, DRAWS = 64 };
    static float logits[1008];
    fill(logits, VOCAB, 8);
    for (size_t j = 0; j < sizeof params / sizeof params[0]; j++) {
        describe("sampler %zu", j);
        for (size_t i = 0; i < n_isas; i++) {
            int32_t drawn[DRAWS] = {0};
            fl_sampler *s;
            int ok = fl_sampler_new(VOCAB, &params[j], 42, &s) == FL_OK;
            for (size_t k = 0; ok && k < DRAWS; k++)
                ok = fl_sampler_draw(s, isas[i], logits, &drawn[k]) == FL_OK && fl_sampler_accept(s, drawn[k], 1) == FL_OK;
            expect(ok, "draws");
            same(i, isas[i]->name, drawn, sizeof drawn);
            fl_sampler_free(s);
        }
    }
}

enum { SEQUENCES = 2, VOCAB = 27, LOGITS = 32, LONGEST = 75 };
static const size_t lengths[SEQUENCES] = {LONGEST, 20};

static const float *random_vector(size_t n) {
    float *p = take(fl_round_up(n, FL_LANES) * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = 1 + unit() / 4;
    return p;
}

// Runs all sequences, `chunk` tokens of each at a time, and returns the logits of every token.
static void run_forward(const fl_model *m, size_t threads, size_t chunk, float (*logits)[LONGEST][LOGITS]) {
    static int32_t tokens[SEQUENCES][LONGEST];
    float *some = take(SEQUENCES * LONGEST * LOGITS * sizeof *some);
    void *blocks[SEQUENCES][2];
    fl_pool *pool;
    fl_scratch *scratch;
    if (fl_pool_new(fl_kv_block_bytes(m), &pool) || fl_scratch_new(&scratch)) abort();
    for (size_t i = 0; i < SEQUENCES; i++) {
        for (size_t j = 0; j < 2; j++)
            if (fl_pool_take(pool, &blocks[i][j])) abort();
        for (size_t t = 0; t < LONGEST; t++) tokens[i][t] = (int32_t)((7 * t + 11 * i + t * t) % VOCAB);
    }
    for (size_t pos = 0; pos < LONGEST; pos += chunk) {
        fl_span spans[SEQUENCES];
        size_t n = 0, row = 0;
        for (size_t i = 0; i < SEQUENCES && pos < lengths[i]; i++) {
            const size_t left = lengths[i] - pos, count = left < chunk ? left : chunk;
            spans[n++] = (fl_span){tokens[i] + pos, count, pos, blocks[i], 2, count};
        }
        expect(fl_forward(m, scratch, spans, n, threads, some) == FL_OK, "forward");
        for (size_t i = 0; i < n; row += spans[i].n, i++)
            memcpy(logits[i][pos], some + row * LOGITS, spans[i].n * LOGITS * sizeof *some);
    }
    fl_scratch_free(scratch);
    fl_pool_free(pool);
    fl_free(some);
}

void test_forward(void) {
    static const struct { fl_type weights, kv; } kinds[] = {
        {FL_F32, FL_F32}, {FL_Q8, FL_F16}, {FL_Q8_F32, FL_F32}, {FL_BF16, FL_F16}};
    static const size_t chunks[] = {LONGEST, 1, 7, 64, 33};
    static float logits[SEQUENCES][LONGEST][LOGITS];
    enum { DIM = 44, HIDDEN = 116, HEAD = 10, HEADS = 6, KV = 2, LAYERS = 2 };
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
        const fl_type type = kinds[kind].weights;
        fl_layer layers[LAYERS];
        fl_model m = {
            .config = {DIM, HIDDEN, HEAD, LAYERS, HEADS, KV, VOCAB, 128, .rotary_dim = 8, .norm_eps = 0x1p-17f,
                       .attn_scale = 0.3125f},
            .kv_type = kinds[kind].kv, .embed = random_matrix(type, VOCAB, DIM, 1),
            .head = random_matrix(type, VOCAB, DIM, 1), .final_norm = random_vector(DIM),
            .rope_freqs = random_vector(4), .layers = layers};
        for (size_t i = 0; i < LAYERS; i++)
            layers[i] = (fl_layer){
                .attn_norm = random_vector(DIM), .wq = random_matrix(type, HEADS * HEAD, DIM, 0.25f),
                .wk = random_matrix(type, KV * HEAD, DIM, 0.25f), .wv = random_matrix(type, KV * HEAD, DIM, 0.25f),
                .wo = random_matrix(type, DIM, HEADS * HEAD, 0.25f), .ffn_norm = random_vector(DIM),
                .w1 = random_matrix(type, HIDDEN, DIM, 0.25f), .w3 = random_matrix(type, HIDDEN, DIM, 0.25f),
                .w2 = random_matrix(type, DIM, HIDDEN, 0.25f)};
        for (size_t number = 0; number < 8 * n_isas; number++) {
            const size_t threads = number % 8 + 1, chunk = chunks[number % 5];
            m.kernels = isas[number / 8];
            describe("forward %s threads %zu chunk %zu", type_name(type), threads, chunk);
            expect(fl_model_check(&m) == FL_OK, "model");
            run_forward(&m, threads, chunk, logits);
            same(number, m.kernels->name, logits, sizeof logits);
        }
        int finite = 1;
        for (size_t i = 0; i < sizeof logits / sizeof(float); i++) finite &= isfinite((&logits[0][0][0])[i]) != 0;
        expect(finite, "finite logits");
        const fl_matrix *const w[] = {&layers[0].wq, &layers[0].wk, &layers[0].wv, &layers[0].wo, &layers[0].w1,
                                      &layers[0].w2, &layers[0].w3, &layers[1].wq, &layers[1].wk, &layers[1].wv,
                                      &layers[1].wo, &layers[1].w1, &layers[1].w2, &layers[1].w3, &m.embed, &m.head};
        for (size_t i = 0; i < sizeof w / sizeof w[0]; i++) fl_free((void *)w[i]->data);
        for (size_t i = 0; i < LAYERS; i++) fl_free((void *)layers[i].attn_norm), fl_free((void *)layers[i].ffn_norm);
        fl_free((void *)m.final_norm);
        fl_free((void *)m.rope_freqs);
    }
}
