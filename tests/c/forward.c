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
    fl_draw_scratch *work;
    expect(fl_draw_scratch_new(&work) == FL_OK, "working memory");
    for (size_t j = 0; j < sizeof params / sizeof params[0]; j++) {
        describe("sampler %zu", j);
        for (size_t i = 0; i < n_isas; i++) {
            int32_t drawn[DRAWS] = {0};
            fl_sampler *s;
            int ok = fl_sampler_new(VOCAB, &params[j], 42, &s) == FL_OK;
            for (size_t k = 0; ok && k < DRAWS; k++)
                ok = fl_sampler_draw(s, work, isas[i], logits, &drawn[k]) == FL_OK &&
                     fl_sampler_accept(s, drawn[k], 1) == FL_OK;
            expect(ok, "draws");
            same(i, isas[i]->name, drawn, sizeof drawn);
            fl_sampler_free(s);
        }
    }
    fl_draw_scratch_free(work);
}

enum { SEQUENCES = 2, VOCAB = 27, LOGITS = 32, LONGEST = 75, DIM = 44, HEAD = 10, HEADS = 6, KV = 2, LAYERS = 2,
       SEGMENT = 13 }; // where the second segment begins
static const size_t lengths[SEQUENCES] = {LONGEST, 20};

// Everything that a model points to, to be freed at the end.
static void *owned[256];
static size_t n_owned;

static const float *vector(size_t n) {
    float *p = take(fl_round_up(n, FL_LANES) * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = 1 + unit() / 4;
    owned[n_owned++] = p;
    return p;
}

static fl_matrix matrix(fl_type type, size_t d, size_t n, float scale, int bias) {
    fl_matrix w = random_matrix(type, d, n, scale);
    owned[n_owned++] = (void *)w.data;
    if (bias) w.bias = vector(d);
    return w;
}

// `count` matrices, one after the other.
static fl_matrix stack(fl_type type, size_t count, size_t d, size_t n) {
    const size_t bytes = fl_matrix_bytes(type, d, n);
    char *all = take(count * bytes);
    fl_matrix one = {.type = type};
    for (size_t i = 0; i < count; i++) {
        one = random_matrix(type, d, n, 0.25f);
        memcpy(all + i * bytes, one.data, bytes);
        fl_free((void *)one.data);
    }
    owned[n_owned++] = all;
    one.data = all; // the last one's table is that of all
    return one;
}

static fl_norm norm(int bias) { return (fl_norm){vector(DIM), bias ? vector(DIM) : NULL}; }

enum { PAGES = (LONGEST + FL_PAGE - 1) / FL_PAGE };

// The pages of one sequence, one table for each kind of layers.
typedef struct pages {
    void *page[LAYERS][PAGES];
    void *const *table[LAYERS];
} pages;

static void take_pages(const fl_model *m, fl_pool *pool, pages *p) {
    for (size_t kind = 0; kind < m->n_kinds; kind++) {
        p->table[kind] = p->page[kind];
        for (size_t i = 0; i < PAGES; i++) {
            fl_page page;
            if (fl_pool_take(pool, kind, &page)) abort();
            p->page[kind][i] = fl_pool_data(pool, page);
            poison(p->page[kind][i], fl_kv_page_bytes(m, kind));
        }
    }
}

// Takes away what tokens from position `pos` on do not see.
static void forget_pages(const fl_model *m, size_t pos, pages *p) {
    for (size_t kind = 0; kind < m->n_kinds; kind++) {
        const size_t window = m->kinds[kind].window;
        for (size_t i = 0; i < PAGES; i++)
            if (window > 0 && (i + 1) * FL_PAGE + window <= pos + 1) p->page[kind][i] = NULL;
    }
}

// Runs all sequences, `chunk` tokens of each at a time, and returns the logits of every token: (SEQUENCES, LONGEST,
// LOGITS). The first sequence has the last token of the vocabulary at `broken`, and nowhere else. Each forward is begun
// and cancelled before, which must change nothing.
static void run_forward(const fl_model *m, size_t threads, size_t chunk, size_t broken,
                        float (*logits)[LONGEST][LOGITS]) {
    static int32_t tokens[SEQUENCES][LONGEST];
    float *some = take(SEQUENCES * LONGEST * LOGITS * sizeof *some);
    pages of[SEQUENCES];
    fl_pool *pool;
    fl_scratch *scratch;
    size_t page_bytes[LAYERS];
    for (size_t kind = 0; kind < m->n_kinds; kind++) page_bytes[kind] = fl_kv_page_bytes(m, kind);
    if (fl_pool_new(m->n_kinds, page_bytes, &pool) || fl_scratch_new(&scratch)) abort();
    for (size_t i = 0; i < SEQUENCES; i++) {
        take_pages(m, pool, &of[i]);
        for (size_t t = 0; t < LONGEST; t++) tokens[i][t] = (int32_t)((7 * t + 11 * i + t * t) % (VOCAB - 1));
    }
    if (broken < LONGEST) tokens[0][broken] = VOCAB - 1;
    fl_cancel *flag;
    if (fl_cancel_new(&flag)) abort();
    const fl_watch watch = {.flag = flag};
    for (size_t pos = 0; pos < LONGEST; pos += chunk) {
        fl_span spans[SEQUENCES];
        size_t n = 0, row = 0;
        for (size_t i = 0; i < SEQUENCES && pos < lengths[i]; i++) {
            const size_t left = lengths[i] - pos, count = left < chunk ? left : chunk;
            const size_t before = pos < SEGMENT ? SEGMENT - pos : 0;
            const size_t segment = m->config.second_segment && before < count ? before : count;
            forget_pages(m, pos, &of[i]);
            spans[n++] = (fl_span){tokens[i] + pos, count, pos, of[i].table, PAGES, count, segment};
        }
        const fl_outputs out = {.logits = some};
        fl_cancel_set(flag, 1);
        expect(fl_forward(m, scratch, spans, n, threads, &watch, &out) == FL_CANCELLED, "a cancelled forward");
        fl_cancel_set(flag, 0);
        expect(fl_forward(m, scratch, spans, n, threads, &watch, &out) == FL_OK, "forward");
        for (size_t i = 0; i < n; row += spans[i].n, i++)
            memcpy(logits[i][pos], some + row * LOGITS, spans[i].n * LOGITS * sizeof *some);
    }
    fl_cancel_free(flag);
    fl_scratch_free(scratch);
    fl_pool_free(pool);
    fl_free(some);
}

// A plain Llama.
static fl_model llama(fl_type type, fl_layer *layers, fl_kind *kinds) {
    enum { HIDDEN = 116 };
    for (size_t i = 0; i < LAYERS; i++)
        layers[i] = (fl_layer){
            .attn_norm = norm(0), .ffn_norm = norm(0), .rope = 1,
            .wq = matrix(type, HEADS * HEAD, DIM, 0.25f, 0), .wk = matrix(type, KV * HEAD, DIM, 0.25f, 0),
            .wv = matrix(type, KV * HEAD, DIM, 0.25f, 0), .wo = matrix(type, DIM, HEADS * HEAD, 0.25f, 0),
            .w1 = matrix(type, HIDDEN, DIM, 0.25f, 0), .w3 = matrix(type, HIDDEN, DIM, 0.25f, 0),
            .w2 = matrix(type, DIM, HIDDEN, 0.25f, 0)};
    return (fl_model){
        .config = {DIM, HIDDEN, HEAD, LAYERS, HEADS, KV, VOCAB, 128, .rotary_dim = 8, .norm_eps = 0x1p-17f,
                   .attn_scale = 0.3125f, .causal = 1, .rope_scale = 1, .logit_scale = 1, .embed_scale = 1,
                   .residual_scale = 1, .mask_token = -1, .pad_token = -1},
        .embed = matrix(type, VOCAB, DIM, 1, 0), .head = matrix(type, VOCAB, DIM, 1, 0), .final_norm = norm(0),
        .rope_freqs = {vector(4)}, .layers = layers, .kinds = kinds};
}

// Most of what other families have: experts, windows, two rotations, norms everywhere, biases, caps, factors.
static fl_model rich(fl_type type, fl_layer *layers, fl_kind *kinds) {
    enum { EXPERTS = 19, WIDTH = 21 };
    fl_model m = llama(type, layers, kinds);
    m.config.act = FL_GELU_ERF;
    m.config.norm = FL_LAYER_NORM;
    m.config.qk_norm = FL_QK_HEAD;
    m.config.attn_softcap = 5;
    m.config.logit_softcap = 3;
    m.config.residual_scale = 0.5f;
    m.config.n_experts = EXPERTS;
    m.config.n_experts_used = 3;
    m.config.expert_dim = WIDTH;
    m.config.moe_renormalize = 1;
    m.config.positions = 128;
    m.config.pad_token = 4;
    m.config.second_segment = 1;
    m.positions = matrix(FL_F32, 2 * 128, DIM, 0.25f, 0);
    m.embed_norm = norm(1);
    m.head.bias = vector(VOCAB);
    m.rope_freqs[1] = vector(4);
    for (size_t i = 0; i < LAYERS; i++) {
        fl_layer *l = &layers[i];
        l->rope = i + 1;
        l->window = i == 0 ? 5 : 0;
        l->q_norm = vector(HEADS * HEAD);
        l->k_norm = vector(KV * HEAD);
        l->wq.bias = vector(HEADS * HEAD);
        l->wo.bias = vector(DIM);
        l->post_attn_norm = norm(1);
        l->post_ffn_norm = norm(0);
        l->router = matrix(FL_F32, EXPERTS, DIM, 1, 0);
        l->shared_gate = matrix(FL_F32, 1, DIM, 1, 0);
        l->e1 = stack(type, EXPERTS, WIDTH, DIM);
        l->e3 = stack(type, EXPERTS, WIDTH, DIM);
        l->e2 = stack(type, EXPERTS, DIM, WIDTH);
    }
    return m;
}

// Makes the first weight of row r NaN or infinite; of int8, the scale of the first group.
static void spoil(const fl_matrix *w, size_t r, int nan) {
    char *panel = (char *)w->data + r / FL_LANES * fl_panel_bytes(w->type, w->n);
    const size_t row = r % FL_LANES;
    if (w->type == FL_F32) ((float *)(void *)panel)[row] = nan ? NAN : INFINITY;
    else ((uint16_t *)(void *)panel)[row] = w->type == FL_BF16 ? (nan ? 0x7fc0 : 0x7f80) : (nan ? 0x7e00 : 0x7c00);
}

// A token whose embedding is not finite: from there on its sequence has no finite logit. The tokens before it, and the
// other sequence, are not changed by it.
static void test_broken(fl_model *m, float (*clean)[LONGEST][LOGITS]) {
    static const size_t chunks[] = {LONGEST, 1, 7, 64, 33};
    static float logits[SEQUENCES][LONGEST][LOGITS];
    for (size_t number = 0; number < 10 * n_isas; number++) {
        const size_t at = number < 5 * n_isas ? 61 : 3, threads = number % 7 % 3 + 1, chunk = chunks[number % 5];
        spoil(&m->embed, VOCAB - 1, number % 2 == 0);
        m->kernels = isas[number % (5 * n_isas) / 5];
        describe("token %zu is broken, %s threads %zu chunk %zu", at, type_name(m->embed.type), threads, chunk);
        run_forward(m, threads, chunk, at, logits);
        same_floats(number % (5 * n_isas), m->kernels->name, logits[0][0], sizeof logits / sizeof(float));
        expect(memcmp(logits[1], clean[1], sizeof logits[1]) == 0, "the other sequence");
        expect(memcmp(logits[0], clean[0], at * sizeof logits[0][0]) == 0, "the tokens before it");
        int finite = 0;
        for (size_t t = at; t < LONGEST; t++)
            for (size_t i = 0; i < VOCAB; i++) finite |= isfinite(logits[0][t][i]) != 0;
        expect(!finite, "what comes after it");
    }
}

void test_forward(void) {
    static const struct { fl_type weights, kv; int rich, causal, precise; } kinds[] = {
        {FL_F32, FL_F32, 0, 1, 0}, {FL_Q8, FL_F16, 0, 1, 0}, {FL_Q4_MIN, FL_F32, 0, 1, 0}, {FL_BF16, FL_F16, 0, 1, 0},
        {FL_F32, FL_F16, 1, 1, 0}, {FL_Q8, FL_F32, 1, 1, 0}, {FL_Q4, FL_F16, 1, 1, 0}, {FL_Q8, FL_Q8, 0, 1, 0},
        {FL_F32, FL_Q8, 1, 1, 0}, {FL_Q8, FL_Q4, 0, 1, 0},
        {FL_F32, FL_Q4, 1, 1, 0}, {FL_F32, FL_F32, 1, 0, 0}, {FL_Q8, FL_F16, 1, 0, 0}, {FL_Q8, FL_F32, 0, 1, 1},
        {FL_Q4_MIN, FL_F32, 1, 1, 1}};
    static const size_t chunks[] = {LONGEST, 1, 7, 64, 33};
    static float logits[SEQUENCES][LONGEST][LOGITS];
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
        const fl_type type = kinds[kind].weights;
        fl_layer layers[LAYERS];
        fl_kind of_layers[LAYERS];
        fl_model m = kinds[kind].rich ? rich(type, layers, of_layers) : llama(type, layers, of_layers);
        m.kv_type = kinds[kind].kv;
        m.config.causal = kinds[kind].causal;
        m.config.precise = kinds[kind].precise;
        for (size_t number = 0; number < 8 * n_isas; number++) {
            const size_t threads = number % 8 + 1, chunk = m.config.causal ? chunks[number % 5] : LONGEST;
            m.kernels = isas[number / 8];
            describe("forward %s rich %d causal %d precise %d threads %zu chunk %zu", type_name(type), kinds[kind].rich,
                     m.config.causal, m.config.precise, threads, chunk);
            expect(fl_model_check(&m) == FL_OK, "model");
            run_forward(&m, threads, chunk, LONGEST, logits);
            same(number, m.kernels->name, logits, sizeof logits);
        }
        int finite = 1;
        for (size_t i = 0; i < sizeof logits / sizeof(float); i++) finite &= isfinite((&logits[0][0][0])[i]) != 0;
        expect(finite, "finite logits");
        if (m.config.causal) test_broken(&m, logits);
        while (n_owned > 0) fl_free(owned[--n_owned]);
    }
}
