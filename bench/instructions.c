// Small fixed works for bench/instructions.py, which counts the instructions of one function of the core in each.
//   instructions WORK TYPE ISA    runs one once; exit code 2: this machine lacks the instruction set
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastllm.h"

static _Noreturn void die(const char *what) {
    fprintf(stderr, "instructions: %s\n", what);
    exit(1);
}

static void must(fl_status status, const char *what) {
    if (status != FL_OK) die(what);
}

static void *take(size_t bytes) {
    void *p = fl_alloc(bytes);
    if (!p) die("out of memory");
    return p;
}

// ---- inputs, made of integers: the same on every machine ------------------------------------------------------------

static uint64_t state = 1;

static uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 40); // 24 bits
}

static float *numbers(size_t n, float scale) {
    float *x = take(fl_round_up(n, FL_LANES) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = ((float)next() * 0x1p-23f - 1) * scale;
    return x;
}

static const float *ones(size_t n) {
    float *x = take(fl_round_up(n, FL_LANES) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = 1;
    return x;
}

static fl_matrix matrix(fl_type type, size_t d, size_t n, const fl_kernels *kernels) {
    void *panels = take(fl_matrix_bytes(type, d, n));
    float *values = numbers(d * n, 0.1f);
    const fl_source source = {.data = values, .type = FL_F32, .d = d, .n = n, .kernels = kernels};
    must(fl_pack(type, panels, &source, 1), "pack");
    fl_free(values);
    fl_matrix w = {.data = panels, .type = type, .d = d, .n = n};
    memcpy(w.values, fl_q4_values, sizeof w.values);
    return w;
}

// ---- models --------------------------------------------------------------------------------------------------------

typedef struct shape {
    size_t dim, hidden, head_dim, heads, kv_heads, vocab;
} shape;

enum { LAYERS = 2, CONTEXT = 2048 };

// A plain Llama of two layers.
static fl_model llama(shape s, fl_type type, const fl_kernels *kernels) {
    static fl_layer layers[LAYERS];
    static fl_kind kinds[LAYERS];
    const size_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    for (size_t i = 0; i < LAYERS; i++)
        layers[i] = (fl_layer){
            .attn_norm = {ones(s.dim), NULL}, .ffn_norm = {ones(s.dim), NULL}, .rope = 1,
            .wq = matrix(type, q, s.dim, kernels), .wk = matrix(type, kv, s.dim, kernels),
            .wv = matrix(type, kv, s.dim, kernels), .wo = matrix(type, s.dim, q, kernels),
            .w1 = matrix(type, s.hidden, s.dim, kernels), .w3 = matrix(type, s.hidden, s.dim, kernels),
            .w2 = matrix(type, s.dim, s.hidden, kernels)};
    fl_model m = {
        .config = {.dim = s.dim, .hidden_dim = s.hidden, .head_dim = s.head_dim, .n_layers = LAYERS,
                   .n_heads = s.heads, .n_kv_heads = s.kv_heads, .vocab_size = s.vocab, .max_seq = CONTEXT,
                   .rotary_dim = s.head_dim, .norm_eps = 1e-5f, .attn_scale = 0.125f, .causal = 1, .rope_scale = 1,
                   .logit_scale = 1, .embed_scale = 1, .residual_scale = 1, .mask_token = -1, .pad_token = -1},
        .kernels = kernels, .kv_type = FL_F16, .final_norm = {ones(s.dim), NULL},
        .rope_freqs = {numbers(s.head_dim / 2, 1)}, .layers = layers, .kinds = kinds};
    m.embed = m.head = matrix(type, s.vocab, s.dim, kernels);
    must(fl_model_check(&m), "model");
    return m;
}

// `count` forwards of `n` tokens each, from position `pos` on. The keys and values before it are random.
static void forwards(const fl_model *m, size_t pos, size_t n, size_t count) {
    void *pages[CONTEXT / FL_PAGE];
    void *const *const table = pages;
    int32_t tokens[FL_PAGE];
    fl_pool *pool;
    fl_scratch *scratch;
    must(fl_pool_new(1, (size_t[]){fl_kv_page_bytes(m, 0)}, &pool), "pool");
    must(fl_scratch_new(&scratch), "scratch");
    for (size_t p = 0; p < CONTEXT / FL_PAGE; p++) {
        fl_page page;
        must(fl_pool_take(pool, 0, &page), "page");
        pages[p] = fl_pool_data(pool, page);
        uint16_t *x = pages[p]; // keys and values as f16: from 0.5 to 2, signs alternating at random
        for (size_t i = 0; i < fl_kv_page_bytes(m, 0) / sizeof *x; i++)
            x[i] = (uint16_t)(0x3800u + (next() & 0x7ffu) + (next() & 1u ? 0x8000u : 0));
    }
    const fl_outputs out = {.logits = take(fl_logits_stride(m) * sizeof(float))};
    for (size_t i = 0; i < count; i++, pos += n) {
        for (size_t t = 0; t < n; t++) tokens[t] = (int32_t)(next() % m->config.vocab_size);
        const fl_span span = {tokens, n, pos, &table, CONTEXT / FL_PAGE, 1, n};
        must(fl_forward(m, scratch, &span, 1, 1, NULL, &out), "forward");
    }
    fl_scratch_free(scratch);
    fl_pool_free(pool);
}

// ---- works ---------------------------------------------------------------------------------------------------------

static const shape small = {.dim = 256, .hidden = 512, .head_dim = 64, .heads = 4, .kv_heads = 2, .vocab = 1024};
static const shape heads = {.dim = 32, .hidden = 32, .head_dim = 64, .heads = 8, .kv_heads = 2, .vocab = 64};

static void decode(fl_type type, const fl_kernels *k) {
    const fl_model m = llama(small, type, k);
    forwards(&m, 0, 1, 8);
}

static void prefill(fl_type type, const fl_kernels *k) {
    const fl_model m = llama(small, type, k);
    forwards(&m, 0, 64, 1);
}

// One token after 2,000 whose keys and values are of a type.
static void attend(fl_type kv_type, const fl_kernels *k) {
    fl_model m = llama(heads, FL_F16, k);
    m.kv_type = kv_type;
    forwards(&m, 2000, 1, 4);
}

static void attend_prompt(fl_type kv_type, const fl_kernels *k) {
    fl_model m = llama(heads, FL_F16, k);
    m.kv_type = kv_type;
    forwards(&m, 512, 64, 1);
}

static void pack(fl_type type, const fl_kernels *k) {
    matrix(type, 256, 512, k);
}

// Eight draws from a vocabulary whose likeliest words hold most of the mass, as after a text.
static void draw(const fl_sampling *params, const fl_kernels *k) {
    enum { VOCAB = 32000, DRAWS = 8 };
    float *logits = numbers(VOCAB, 4);
    for (size_t i = 0; i < VOCAB; i += 500) logits[i] += 8;
    fl_sampler *s;
    fl_draw_scratch *work;
    int32_t token;
    must(fl_sampler_new(VOCAB, params, 1, &s), "sampler");
    must(fl_draw_scratch_new(&work), "working memory");
    for (size_t i = 0; i < DRAWS; i++) must(fl_sampler_draw(s, work, k, logits, &token), "draw");
}

static void greedy(fl_type type, const fl_kernels *k) {
    (void)type;
    draw(&(fl_sampling){.temperature = 0, .repetition_penalty = 1}, k);
}

static void top_p(fl_type type, const fl_kernels *k) {
    (void)type;
    draw(&(fl_sampling){.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1}, k);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(fl_type, const fl_kernels *);
    } works[] = {{"decode", decode}, {"prefill", prefill}, {"attend", attend}, {"attend-prompt", attend_prompt},
                 {"pack", pack}, {"greedy", greedy}, {"top-p", top_p}};
    static const char *const types[FL_TYPES] = {
        [FL_F32] = "f32", [FL_F16] = "f16", [FL_BF16] = "bf16", [FL_Q8] = "q8", [FL_Q4] = "q4"};
    if (argc != 4) die("WORK TYPE ISA");
    const fl_kernels *kernels;
    if (fl_kernels_find(argv[3], &kernels) != FL_OK) return 2;
    for (size_t type = 0; type < FL_TYPES; type++)
        for (size_t i = 0; i < sizeof works / sizeof works[0]; i++)
            if (strcmp(works[i].name, argv[1]) == 0 && types[type] && strcmp(types[type], argv[2]) == 0) {
                works[i].run((fl_type)type, kernels);
                return 0;
            }
    die("no such work or type");
}
