// libFuzzer over forwards and draws: a model of random shape, flags and weight types, whose weights hold NaN,
// infinities, denormals and numbers near the largest, reads a few ragged batches.
//
// Sanitizers find what must not happen. This file checks what must: a status for every model and batch, the same bits
// from another instruction set, from two threads and from other cuts into batches, whatever the numbers are, and a draw
// only from logits that are finite.
//
// fuzz.sh beside this file builds and runs it. To run an input again that libFuzzer has left, name its file.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

// ---- numbers out of the input ---------------------------------------------------------------------------------------

static const uint8_t *input, *input_end;
static uint64_t state; // of random numbers, for when the input has ended

static uint64_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
}

// 0 to most, by the input while there is some left.
static size_t pick(size_t most) {
    const size_t x = input < input_end ? *input++ : (size_t)next();
    return x % (most + 1);
}

static size_t between(size_t low, size_t high) { return low + pick(high - low); }

// One number in `odd` is NaN, infinite or extreme; 0: none is.
static size_t odd;

static float number(float scale) {
    static const float extremes[] = {NAN,   -NAN,  INFINITY, -INFINITY, 3e38f,  -3e38f, 1e-40f, -1e-45f,
                                     1e20f, -1e20f, 65504,   1e-30f,    -0.0f, 0,      1,      -1};
    const uint64_t r = next();
    if (odd && r % odd == 0) return extremes[next() % (sizeof extremes / sizeof *extremes)];
    return ((float)(r & 0xffff) / 32768.0f - 1.0f) * scale;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

// Each part is an allocation of its own, so that sanitizers see reads past its end.
static void *owned[4096];
static size_t n_owned;

static void *take(size_t bytes) {
    void *p = aligned_alloc(FL_ALIGN, fl_round_up(bytes ? bytes : 1, FL_ALIGN));
    if (!p || n_owned == sizeof owned / sizeof *owned) abort();
    memset(p, 0, fl_round_up(bytes ? bytes : 1, FL_ALIGN));
    return owned[n_owned++] = p;
}

static void must(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "not so: %s\n", what);
    abort();
}

// ---- a model --------------------------------------------------------------------------------------------------------

static float *vector(size_t n) {
    float *p = take(fl_round_up(n, FL_LANES) * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = 1 + number(0.5f);
    return p;
}

static fl_norm norm(size_t n) { return (fl_norm){vector(n), pick(2) ? NULL : vector(n)}; }

static fl_norm maybe_norm(size_t n) { return pick(2) ? (fl_norm){0} : norm(n); }

// `count` matrices of any type, one after the other: packed panels, whose scales and floats hold anything.
static fl_matrix stack(fl_type type, size_t count, size_t d, size_t n, int bias) {
    const size_t panel = fl_panel_bytes(type, n), bytes = fl_matrix_bytes(type, d, n), groups = (n + 31) / 32;
    char *data = take(count * bytes);
    for (size_t p = 0; p < count * bytes / panel; p++) {
        char *at = data + p * panel;
        const size_t first = p % (bytes / panel) * FL_LANES, rows = d - first < FL_LANES ? d - first : FL_LANES;
        const int integer = fl_is_int8(type);
        const size_t columns = type == FL_Q4_MIN ? 2 * groups : integer ? groups : n; // minima too
        for (size_t k = 0; k < columns; k++)
            for (size_t row = 0; row < rows; row++) {
                const float x = number(integer ? 0.01f : 0.5f);
                const size_t i = k * FL_LANES + row;
                if (type == FL_F32) memcpy(at + 4 * i, &x, 4);
                else memcpy(at + 2 * i, (uint16_t[]){type == FL_BF16 ? fl_bf16_from_f32(x) : fl_f16_from_f32(x)}, 2);
            }
        if (!integer) continue;
        // Rows and columns past the last stay zero, as packed.
        for (size_t i = fl_scales_bytes(type, groups); i < panel; i++) {
            const size_t row = (i - fl_scales_bytes(type, groups)) % 64 / 4; // a line is 16 rows x 4 bytes
            if (row < rows) at[i] = (char)next();
        }
        const size_t last = n % FL_GROUP; // columns of the last group that there are
        for (size_t k = last; last && type == FL_Q8 && k < FL_GROUP; k++)
            for (size_t row = 0; row < FL_LANES; row++)
                at[fl_scales_bytes(type, groups) + (groups - 1) * 512 + k / 4 * 64 + row * 4 + k % 4] = 0;
    }
    fl_matrix w = {.data = data, .type = type, .d = d, .n = n, .bias = bias && !pick(3) ? vector(d) : NULL};
    for (size_t i = 0; i < sizeof w.values; i++) w.values[i] = type == FL_Q4_MIN ? (int8_t)i : (int8_t)next();
    return w;
}

static fl_type any_type(void) { return (fl_type)pick(FL_TYPES - 1); }

static fl_matrix matrix(size_t d, size_t n) { return stack(any_type(), 1, d, n, 1); }

static void make_layer(const fl_model *m, fl_layer *l, int gated, int moe) {
    const fl_config *c = &m->config;
    const size_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    l->attn_norm = c->norm_after || c->parallel ? norm(c->dim) : maybe_norm(c->dim);
    l->ffn_norm = c->norm_after ? norm(c->dim) : maybe_norm(c->dim);
    l->wq = matrix(q, c->dim);
    l->wk = matrix(kv, c->dim);
    l->wv = matrix(kv, c->dim);
    l->wo = matrix(c->dim, q);
    if (c->qk_norm != FL_QK_NONE) l->q_norm = vector(q), l->k_norm = vector(kv);
    if (!c->parallel) l->post_attn_norm = maybe_norm(c->dim), l->post_ffn_norm = maybe_norm(c->dim);
    l->window = c->causal ? pick(1) * between(1, 70) : 0;
    l->rope = pick(2);
    if (!moe || pick(1)) {
        l->w1 = matrix(c->hidden_dim, c->dim);
        l->w2 = matrix(c->dim, c->hidden_dim);
        if (gated) l->w3 = matrix(c->hidden_dim, c->dim);
        if (moe && pick(1)) l->shared_gate = stack((fl_type)pick(FL_BF16), 1, 1, c->dim, 1);
    }
    if (!moe) return;
    l->router = stack(FL_F32, 1, c->n_experts, c->dim, 1);
    l->e1 = stack(any_type(), c->n_experts, c->expert_dim, c->dim, 0);
    l->e2 = stack(any_type(), c->n_experts, c->dim, c->expert_dim, 0);
    if (gated) l->e3 = stack(any_type(), c->n_experts, c->expert_dim, c->dim, 0);
}

static fl_model make_model(fl_layer *layers, fl_kind *kinds) {
    static const size_t odds[] = {0, 4096, 512, 64, 8};
    static const fl_type kv[] = {FL_F32, FL_F16, FL_Q8, FL_Q4};
    odd = odds[pick(4)];
    const int gated = (int)pick(1), moe = !pick(2), large = !pick(31); // small as a rule: thousands in a second
    fl_model m = {.kv_type = kv[pick(3)], .layers = layers, .kinds = kinds};
    fl_config *c = &m.config;
    c->causal = pick(3) > 0;
    c->parallel = !moe && !pick(3);
    c->norm_after = !moe && !c->parallel && !pick(3);
    c->dim = between(1, large ? 70 : 9);
    c->hidden_dim = between(1, large ? 70 : 9);
    c->n_kv_heads = between(1, large ? 3 : 2);
    c->n_heads = c->n_kv_heads * (large && !pick(3) ? between(1, 60) : between(1, 2));
    c->head_dim = between(1, large && c->n_heads < 10 ? 40 : 3);
    c->n_layers = between(1, 2);
    c->vocab_size = between(1, large ? 40 : 7);
    c->max_seq = between(1, large ? 160 : 80);
    c->rotary_dim = pick(c->head_dim / 2) * 2;
    c->norm_eps = pick(1) ? 0x1p-17f : 0;
    c->attn_scale = pick(7) ? 0.3f : 1e20f;
    c->norm = (fl_norm_kind)pick(FL_LAYER_NORM);
    c->act = (fl_act)pick(FL_RELU);
    c->qk_norm = (fl_qk_norm)pick(FL_QK_ROW);
    c->rope_scale = pick(3) ? 1 : 1.5f;
    c->attn_softcap = pick(3) ? 0 : 5;
    c->logit_scale = pick(3) ? 1 : 0.5f;
    c->logit_softcap = pick(3) ? 0 : 30;
    c->embed_scale = pick(3) ? 1 : 10;
    c->residual_scale = pick(3) ? 1 : 0.25f;
    c->mask_token = c->causal || pick(1) ? -1 : (int32_t)pick(c->vocab_size - 1); // masks are counted in a span
    c->pad_token = pick(3) ? -1 : (int32_t)pick(c->vocab_size - 1);
    c->positions = pick(3) ? 0 : c->max_seq;
    if (moe) {
        c->n_experts = between(1, large ? 20 : 4);
        c->n_experts_used = between(1, c->n_experts < 5 ? c->n_experts : 5);
        c->expert_dim = between(1, large ? 40 : 5);
        c->moe_renormalize = (int)pick(1);
    }
    m.embed = matrix(c->vocab_size, c->dim);
    m.embed.bias = NULL;
    c->second_segment = c->positions > 0 && pick(1);
    if (c->positions) m.positions = stack((fl_type)pick(FL_BF16), 1, c->positions << c->second_segment, c->dim, 0);
    m.embed_norm = maybe_norm(c->dim);
    m.final_norm = maybe_norm(c->dim);
    m.head_norm = maybe_norm(c->dim);
    if (!pick(5)) m.head_dense = matrix(c->dim, c->dim);
    m.head = pick(1) ? m.embed : matrix(c->vocab_size, c->dim);
    for (size_t j = 0; j < 2; j++) {
        float *freqs = vector(c->rotary_dim / 2 + 1);
        if (odd)
            for (size_t i = 0; i <= c->rotary_dim / 2; i++) freqs[i] = number(3);
        m.rope_freqs[j] = freqs;
    }
    for (size_t i = 0; i < c->n_layers; i++) make_layer(&m, &layers[i], gated, moe && (i == 0 || pick(1)));
    return m;
}

// ---- sequences ------------------------------------------------------------------------------------------------------

enum { SEQUENCES = 3, MOST = 90, PAGES = 3, STRIDE = 48 };

typedef struct sequence {
    size_t length, segment; // tokens, and the first of the second segment
    int32_t tokens[MOST];
} sequence;

// Where the second segment begins in tokens [from, from + n) of a sequence.
static size_t second_segment(const fl_model *m, const sequence *t, size_t from, size_t n) {
    if (!m->config.second_segment || t->segment >= from + n) return n;
    return t->segment > from ? t->segment - from : 0;
}

// Logits of all tokens, out (sequences, MOST, STRIDE), by forwards of at most `chunk` tokens of each sequence; with
// `ragged` some take fewer or none. Every NaN becomes the same one.
static void read_sequences(const fl_model *m, const sequence *sequences, size_t n, size_t chunk, int ragged,
                           size_t threads, float *out) {
    fl_scratch *scratch;
    void *pages[SEQUENCES][2][PAGES];
    void *const *tables[SEQUENCES][2];
    size_t done[SEQUENCES] = {0}, left = 0;
    const size_t stride = fl_logits_stride(m);
    float *logits = take(SEQUENCES * MOST * STRIDE * sizeof *logits);
    must(fl_scratch_new(&scratch) == FL_OK, "memory");
    for (size_t i = 0; i < n; i++) {
        for (size_t kind = 0; kind < m->n_kinds; kind++) {
            tables[i][kind] = pages[i][kind];
            for (size_t j = 0; j * FL_PAGE < sequences[i].length; j++) {
                pages[i][kind][j] = take(fl_kv_page_bytes(m, kind));
                // NaN, as a broken sequence may have left it.
                memset(pages[i][kind][j], 0xff, fl_kv_page_bytes(m, kind));
            }
        }
        left += sequences[i].length;
    }
    while (left > 0) {
        fl_span spans[SEQUENCES];
        size_t whose[SEQUENCES], count = 0, row = 0;
        for (size_t i = 0; i < n; i++) {
            const size_t rest = sequences[i].length - done[i];
            size_t take_now = !m->config.causal || rest < chunk ? rest : chunk;
            if (ragged && m->config.causal && take_now > 0 && left > rest) take_now = (size_t)next() % (take_now + 1);
            if (take_now == 0) continue;
            for (size_t kind = 0; kind < m->n_kinds; kind++) { // what no token from here on sees
                const size_t window = m->kinds[kind].window;
                for (size_t j = 0; window > 0 && (j + 1) * FL_PAGE + window <= done[i] + 1; j++)
                    pages[i][kind][j] = NULL;
            }
            whose[count] = i;
            spans[count++] = (fl_span){sequences[i].tokens + done[i], take_now, done[i], tables[i],
                                       (sequences[i].length + FL_PAGE - 1) / FL_PAGE, take_now,
                                       second_segment(m, &sequences[i], done[i], take_now)};
        }
        if (count == 0) continue;
        const fl_outputs outputs = {.logits = logits};
        must(fl_forward(m, scratch, spans, count, threads, NULL, &outputs) == FL_OK, "a forward");
        for (size_t s = 0; s < count; row += spans[s].n, s++) {
            const size_t i = whose[s];
            for (size_t t = 0; t < spans[s].n; t++)
                for (size_t v = 0; v < m->config.vocab_size; v++) {
                    const float x = logits[(row + t) * stride + v];
                    out[(i * MOST + done[i] + t) * STRIDE + v] = isnan(x) ? NAN : x;
                }
            done[i] += spans[s].n;
            left -= spans[s].n;
        }
    }
    fl_scratch_free(scratch);
}

static void draw(const fl_model *m, const float *row) {
    const size_t vocab = m->config.vocab_size;
    fl_sampling sampling = {.temperature = pick(3) ? number(2) : 0, .top_k = pick(3) ? 0 : pick(50),
                            .top_p = (float)pick(4) / 4, .min_p = (float)pick(4) / 8, .typical_p = (float)pick(4) / 4,
                            .repetition_penalty = pick(1) ? 1 : 1.5f, .presence_penalty = pick(1) ? 0 : 0.5f};
    if (!(sampling.temperature >= 0)) sampling.temperature = 1;
    if (pick(1)) {
        sampling.dynatemp_range = pick(2) ? 0 : number(2);
        sampling.dynatemp_exponent = (float)pick(3);
        sampling.top_n_sigma = (float)pick(3);
        sampling.top_h = (float)pick(4) / 4;
        sampling.epsilon_cutoff = (float)pick(3) / 16;
        sampling.eta_cutoff = (float)pick(3) / 16;
        sampling.xtc_probability = (float)pick(2) / 2;
        sampling.xtc_threshold = (float)pick(4) / 8;
        sampling.mirostat_tau = pick(3) ? 0 : (float)pick(4);
        sampling.mirostat_eta = 0.5f;
        for (size_t i = 0; i < FL_FILTERS && pick(8); i++) sampling.order[i] = (uint8_t)(1 + pick(FL_FILTERS - 1));
        sampling.no_repeat_ngram_size = pick(2);
        sampling.penalty_window = pick(2);
        sampling.dry_multiplier = (float)pick(1);
        sampling.dry_base = 2;
        sampling.dry_allowed_length = 1 + pick(1);
        sampling.dry_last_n = pick(1) ? SIZE_MAX : pick(5);
    }
    fl_sampler *s;
    fl_draw_scratch *work;
    must(fl_draw_scratch_new(&work) == FL_OK, "memory");
    must(fl_sampler_new(vocab, &sampling, 1 + next(), &s) == FL_OK, "memory");
    const int32_t biased = (int32_t)pick(vocab - 1);
    if (!pick(3)) must(fl_sampler_bias(s, &biased, 1, pick(1) ? -INFINITY : 1e9f) == FL_OK, "a bias");
    for (size_t i = 0; i < 3; i++) {
        int32_t token = -1;
        const fl_status status = fl_sampler_draw(s, work, m->kernels, row, &token);
        must((status == FL_BAD_VALUE) == !fl_finite(row, vocab), "a draw from finite logits, and from those alone");
        must(status != FL_OK || (token >= 0 && (size_t)token < vocab), "a token");
        if (status != FL_OK) break;
        must(fl_sampler_accept(s, token, 1) == FL_OK, "a token that is known");
    }
    int32_t tokens[2] = {(int32_t)pick(vocab - 1)};
    double logs[2];
    const fl_status logged = fl_logprobs(work, m->kernels, row, vocab, 1, tokens, logs);
    must(logged == (fl_finite(row, vocab) ? FL_OK : FL_BAD_VALUE), "logprobs of finite logits, and of those alone");
    must(logged != FL_OK || logs[0] <= logs[1], "none is likelier than the likeliest");
    fl_sampler_free(s);
    fl_draw_scratch_free(work);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static float first[SEQUENCES * MOST * STRIDE], again[SEQUENCES * MOST * STRIDE];
    fl_layer layers[2] = {{.window = 0}};
    fl_kind kinds[2];
    sequence sequences[SEQUENCES];
    input = data;
    input_end = data + size;
    state = 0x9E3779B97F4A7C15u;
    for (size_t i = 0; i < size; i++) state = (state ^ data[i]) * 0x100000001b3u;
    static const fl_kernels *isas[8]; // asked for once: cpuid takes long on a virtual machine
    static size_t n_isas;
    int supported = 1;
    for (size_t i = 0; (i > 0 || n_isas == 0) && fl_isa_built(i, &supported); i++)
        if (supported) must(fl_kernels_find(fl_isa_built(i, &supported), &isas[n_isas++]) == FL_OK, "kernels");

    fl_model m = make_model(layers, kinds);
    m.kernels = isas[pick(n_isas - 1)];
    must(fl_model_check(&m) == FL_OK, "a model");
    const size_t n = between(1, SEQUENCES), longest = m.config.max_seq < MOST ? m.config.max_seq : MOST;
    for (size_t i = 0; i < n; i++) {
        sequences[i].length = pick(15) ? between(1, longest < 4 ? longest : 4) : between(1, longest);
        sequences[i].segment = pick(sequences[i].length);
        for (size_t t = 0; t < sequences[i].length; t++)
            sequences[i].tokens[t] = (int32_t)pick(m.config.vocab_size - 1);
    }
    memset(first, 0, sizeof first);
    memset(again, 0, sizeof again);
    read_sequences(&m, sequences, n, MOST, 0, 1, first);
    draw(&m, first + (between(1, n) - 1) * MOST * STRIDE);
    m.kernels = isas[pick(n_isas - 1)];
    read_sequences(&m, sequences, n, between(1, 33), 1, pick(15) ? 1 : 2, again);
    must(memcmp(first, again, sizeof first) == 0, "the same bits");
    while (n_owned > 0) free(owned[--n_owned]);
    return 0;
}
