// The transformer over a ragged batch. Every thread runs fl_forward's work from end to end and takes its share of rows,
// tokens or heads in each phase; sums are never shared out, which is why the number of threads changes no bit.
#include <math.h>
#include <stdint.h>

#include "attention.h"
#include "rope.h"

// ---- checks --------------------------------------------------------------------------------------------------------

static int is_integer(fl_type type) { return type == FL_Q8 || type == FL_Q8_F32; }

static int config_possible(const fl_config *c) {
    // Bounds under which no product of three dimensions overflows.
    const size_t wide = (size_t)1 << 20;
    return c->dim > 0 && c->dim <= wide && c->hidden_dim > 0 && c->hidden_dim <= wide && c->head_dim > 0 &&
           c->head_dim <= 4096 && c->n_layers > 0 && c->n_layers <= 65536 && c->n_heads > 0 && c->n_heads <= 65536 &&
           c->n_kv_heads > 0 && c->n_heads % c->n_kv_heads == 0 && c->vocab_size > 0 &&
           c->vocab_size <= (size_t)1 << 28 && c->max_seq > 0 && c->max_seq <= INT32_MAX && c->rotary_dim % 2 == 0 &&
           c->rotary_dim <= c->head_dim && c->n_heads * c->head_dim <= wide && c->norm_eps >= 0 &&
           isfinite(c->norm_eps) && isfinite(c->attn_scale);
}

static int matrix_fits(const fl_matrix *w, size_t d, size_t n) {
    return w->data && (uintptr_t)w->data % FL_ALIGN == 0 && w->d == d && w->n == n && fl_panel_bytes(w->type, n) > 0;
}

fl_status fl_model_check(const fl_model *m) {
    const fl_config *c = &m->config;
    if (!config_possible(c) || (m->kv_type != FL_F32 && m->kv_type != FL_F16)) return FL_BAD_CONFIG;
    const size_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    int fits = m->kernels && m->layers && m->final_norm && (m->rope_freqs || c->rotary_dim == 0) &&
               matrix_fits(&m->embed, c->vocab_size, c->dim) && matrix_fits(&m->head, c->vocab_size, c->dim);
    for (size_t i = 0; fits && i < c->n_layers; i++) {
        const fl_layer *l = &m->layers[i];
        fits = l->attn_norm && l->ffn_norm && matrix_fits(&l->wq, q, c->dim) && matrix_fits(&l->wk, kv, c->dim) &&
               matrix_fits(&l->wv, kv, c->dim) && matrix_fits(&l->wo, c->dim, q) &&
               matrix_fits(&l->w1, c->hidden_dim, c->dim) && matrix_fits(&l->w3, c->hidden_dim, c->dim) &&
               matrix_fits(&l->w2, c->dim, c->hidden_dim);
    }
    return fits ? FL_OK : FL_BAD_TENSOR;
}

static fl_status check_span(const fl_model *m, const fl_span *span) {
    if (span->n == 0 || span->n_logits > span->n) return FL_BAD_POSITION;
    if (span->pos >= m->config.max_seq || span->n > m->config.max_seq - span->pos) return FL_BAD_POSITION;
    if (span->n_blocks < (span->pos + span->n + FL_BLOCK - 1) / FL_BLOCK) return FL_BAD_POSITION;
    for (size_t t = 0; t < span->n; t++)
        if (span->tokens[t] < 0 || (size_t)span->tokens[t] >= m->config.vocab_size) return FL_BAD_TOKEN;
    return FL_OK;
}

// ---- phases --------------------------------------------------------------------------------------------------------

typedef struct forward {
    const fl_model *m;
    fl_scratch *s;
    const fl_span *spans;
    size_t n_spans;
    size_t tokens;   // of all spans
    size_t n_logits; // of all spans
    float *logits;
} forward;

static size_t panels_of(const fl_matrix *w) { return (w->d + FL_LANES - 1) / FL_LANES; }

// Rows of x as the inputs of matrices: normed if there is a norm, quantized if a matrix is int8. `rows` picks rows of
// x; NULL takes the first `tokens`. Ends with a barrier unless each thread did it all for itself.
static fl_inputs prepare(const forward *f, fl_team *team, size_t id, const float *x, size_t stride, const size_t *rows,
                         size_t tokens, const float *norm, int quantize) {
    const fl_kernels *k = f->m->kernels;
    const int alone = tokens == 1;
    float *normed = alone ? f->s->lanes[id].norm : f->s->norm;
    fl_q8_group *q8 = alone ? f->s->lanes[id].q8 : f->s->q8;
    const size_t groups = stride / FL_GROUP;
    size_t begin = 0, end = tokens;
    if (!alone) fl_share(tokens, team, id, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const float *row = x + (rows ? rows[t] : t) * stride;
        if (norm) {
            k->rms_norm(normed + t * stride, row, norm, f->m->config.dim, f->m->config.norm_eps);
            row = normed + t * stride;
        }
        if (quantize) k->quantize(row, stride, q8 + t * groups);
    }
    if (!alone) fl_barrier(team);
    return (fl_inputs){.f = norm ? normed : x, .f_stride = stride, .q = q8, .q_stride = groups};
}

// This thread's share of out (+)= w . in.
static void multiply(const forward *f, const fl_matrix *w, size_t begin, size_t end, const fl_inputs *in,
                     size_t tokens, float *out, size_t stride, int add) {
    if (begin < end) f->m->kernels->matmul[w->type](w, begin, end, in, tokens, out, stride, add);
}

static void multiply_share(const forward *f, fl_team *team, size_t id, const fl_matrix *w, const fl_inputs *in,
                           size_t tokens, float *out, size_t stride, int add) {
    size_t begin, end;
    fl_share(panels_of(w), team, id, &begin, &end);
    multiply(f, w, begin, end, in, tokens, out, stride, add);
}

// Queries, keys and values in one phase: their panels are shared out as if they were one matrix.
static void multiply_qkv(const forward *f, fl_team *team, size_t id, const fl_layer *l, const fl_inputs *in) {
    const fl_matrix *const w[] = {&l->wq, &l->wk, &l->wv};
    float *const out[] = {f->s->q, f->s->k, f->s->v};
    const size_t stride[] = {f->s->q_dim, f->s->kv_dim, f->s->kv_dim};
    size_t begin, end, first = 0;
    fl_share(panels_of(w[0]) + panels_of(w[1]) + panels_of(w[2]), team, id, &begin, &end);
    for (size_t i = 0; i < 3; i++) {
        const size_t n = panels_of(w[i]);
        const size_t from = begin > first ? begin - first : 0, to = end > first ? end - first : 0;
        multiply(f, w[i], from, to < n ? to : n, in, f->tokens, out[i], stride[i], 0);
        first += n;
    }
}

// Embeddings and rotation angles of all tokens.
static void embed(const forward *f, fl_team *team, size_t id) {
    const fl_model *m = f->m;
    const size_t half = m->config.rotary_dim / 2;
    size_t row = 0;
    for (size_t i = 0; i < f->n_spans; i++)
        for (size_t t = 0; t < f->spans[i].n; t++, row++) {
            if (row % team->threads != id) continue;
            fl_matrix_row(&m->embed, (size_t)f->spans[i].tokens[t], f->s->x + row * f->s->dim);
            fl_rope_angles(f->spans[i].pos + t, m->rope_freqs, half, f->s->cos + row * half, f->s->sin + row * half);
        }
    fl_barrier(team);
}

static void attention_block(const forward *f, const fl_layer *l, size_t layer, fl_team *team, size_t id) {
    fl_scratch *s = f->s;
    const int quantize = is_integer(l->wq.type) || is_integer(l->wk.type) || is_integer(l->wv.type);
    fl_inputs in = prepare(f, team, id, s->x, s->dim, NULL, f->tokens, l->attn_norm, quantize);
    multiply_qkv(f, team, id, l, &in);
    fl_barrier(team);
    fl_attention(f->m, s, f->spans, f->n_spans, layer, team, id);
    fl_barrier(team);
    in = prepare(f, team, id, s->att, s->q_dim, NULL, f->tokens, NULL, is_integer(l->wo.type));
    multiply_share(f, team, id, &l->wo, &in, f->tokens, s->x, s->dim, 1);
    fl_barrier(team);
}

static void ffn_block(const forward *f, const fl_layer *l, fl_team *team, size_t id) {
    fl_scratch *s = f->s;
    const int quantize = is_integer(l->w1.type) || is_integer(l->w3.type);
    fl_inputs in = prepare(f, team, id, s->x, s->dim, NULL, f->tokens, l->ffn_norm, quantize);
    // Gate and up by the same thread, which then joins them: no barrier between.
    size_t begin, end;
    fl_share(panels_of(&l->w1), team, id, &begin, &end);
    multiply(f, &l->w1, begin, end, &in, f->tokens, s->gate, s->hidden, 0);
    multiply(f, &l->w3, begin, end, &in, f->tokens, s->up, s->hidden, 0);
    for (size_t t = 0; t < f->tokens; t++) {
        const size_t at = t * s->hidden + begin * FL_LANES;
        f->m->kernels->silu_mul(s->gate + at, s->up + at, (end - begin) * FL_LANES);
    }
    fl_barrier(team);
    in = prepare(f, team, id, s->gate, s->hidden, NULL, f->tokens, NULL, is_integer(l->w2.type));
    multiply_share(f, team, id, &l->w2, &in, f->tokens, s->x, s->dim, 1);
    fl_barrier(team);
}

// Logits of the wanted rows.
static void head(const forward *f, fl_team *team, size_t id) {
    const fl_model *m = f->m;
    const fl_inputs in = prepare(f, team, id, f->s->x, f->s->dim, f->s->wanted, f->n_logits, m->final_norm,
                                 is_integer(m->head.type));
    multiply_share(f, team, id, &m->head, &in, f->n_logits, f->logits, fl_logits_stride(m), 0);
}

static void run(void *arg, fl_team *team, size_t id) {
    const forward *f = arg;
    embed(f, team, id);
    for (size_t i = 0; i < f->m->config.n_layers; i++) {
        attention_block(f, &f->m->layers[i], i, team, id);
        ffn_block(f, &f->m->layers[i], team, id);
    }
    if (f->n_logits > 0) head(f, team, id);
}

size_t fl_logits_stride(const fl_model *m) { return fl_round_up(m->config.vocab_size, FL_LANES); }

fl_status fl_forward(const fl_model *m, fl_scratch *s, const fl_span *spans, size_t n_spans, size_t threads,
                     float *logits) {
    forward f = {.m = m, .s = s, .spans = spans, .n_spans = n_spans, .logits = logits};
    for (size_t i = 0; i < n_spans; i++) {
        const fl_status status = check_span(m, &spans[i]);
        if (status != FL_OK) return status;
        f.tokens += spans[i].n;
    }
    if (f.tokens == 0) return FL_OK;
    if (threads == 0) threads = 1;
    const fl_status status = fl_scratch_reserve(s, m, f.tokens, threads);
    if (status != FL_OK) return status;
    size_t row = 0;
    for (size_t i = 0; i < n_spans; i++) {
        row += spans[i].n;
        for (size_t t = spans[i].n_logits; t > 0; t--) s->wanted[f.n_logits++] = row - t;
    }
    fl_parallel(threads, run, &f);
    return FL_OK;
}
