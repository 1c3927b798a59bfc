// Whether a model and a batch can be run. The rest of the core relies on it: no phase checks a shape or a token again.
#include "validate.h"

#include <math.h>
#include <stdint.h>

#include "kernels/arguments.h"

// ---- model ---------------------------------------------------------------------------------------------------------

enum { WIDEST = 1 << 20 }; // of any row of a matrix: under it no product of three dimensions overflows

static int within(size_t n, size_t least, size_t most) { return n >= least && n <= most; }

static int sizes_possible(const fl_config *c) {
    return within(c->dim, 1, WIDEST) && within(c->hidden_dim, 0, WIDEST) && within(c->n_layers, 1, 65536) &&
           within(c->head_dim, 1, 4096) && within(c->n_heads, 1, 65536) && c->n_heads * c->head_dim <= WIDEST &&
           c->n_kv_heads > 0 && c->n_heads % c->n_kv_heads == 0 && c->rotary_dim % 2 == 0 &&
           c->rotary_dim <= c->head_dim && within(c->vocab_size, 1, (size_t)1 << 28);
}

static int positions_possible(const fl_config *c) {
    if (!within(c->max_seq, 1, INT32_MAX)) return 0;
    if (c->positions == 0) return !c->second_segment; // segments are told apart by rows of that table
    return within(c->positions, c->max_seq, INT32_MAX);
}

static int experts_possible(const fl_config *c) {
    if (c->n_experts == 0) return c->n_experts_used == 0 && c->expert_dim == 0;
    return c->n_experts <= 65536 && within(c->n_experts_used, 1, c->n_experts) && within(c->expert_dim, 1, WIDEST);
}

static int numbers_possible(const fl_config *c) {
    const float numbers[] = {c->norm_eps,    c->attn_scale,    c->rope_scale,  c->attn_softcap,
                             c->logit_scale, c->logit_softcap, c->embed_scale, c->residual_scale};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!isfinite(numbers[i])) return 0;
    return c->norm_eps >= 0 && c->norm <= FL_LAYER_NORM && c->act <= FL_RELU && c->qk_norm <= FL_QK_ROW;
}

// Codes of FL_Q4_MIN stand for themselves: some kernels add up products of no more than 15 in int16.
static int values_fit(const fl_matrix *matrix) {
    for (int i = 0; matrix->type == FL_Q4_MIN && i < 16; i++)
        if (matrix->values[i] != i) return 0;
    return 1;
}

static int matrix_fits(const fl_matrix *matrix, size_t d, size_t n) {
    return matrix->data && (uintptr_t)matrix->data % FL_ALIGN == 0 && matrix->d == d && matrix->n == n &&
           fl_panel_bytes(matrix->type, n) > 0 && values_fit(matrix);
}

static int attention_fits(const fl_config *c, const fl_layer *l) {
    const size_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    return matrix_fits(&l->wq, q, c->dim) && matrix_fits(&l->wk, kv, c->dim) && matrix_fits(&l->wv, kv, c->dim) &&
           matrix_fits(&l->wo, c->dim, q) && (c->qk_norm == FL_QK_NONE || (l->q_norm && l->k_norm));
}

static int feed_forward_fits(const fl_config *c, const fl_layer *l, int gated) {
    return matrix_fits(&l->w1, c->hidden_dim, c->dim) && matrix_fits(&l->w2, c->dim, c->hidden_dim) &&
           (!gated || matrix_fits(&l->w3, c->hidden_dim, c->dim));
}

static int experts_fit(const fl_config *c, const fl_layer *l, int gated) {
    // The router is f32: which expert is chosen must not depend on rounding.
    return c->n_experts > 0 && l->router.type == FL_F32 && matrix_fits(&l->router, c->n_experts, c->dim) &&
           matrix_fits(&l->e1, c->expert_dim, c->dim) && matrix_fits(&l->e2, c->dim, c->expert_dim) &&
           (!gated || matrix_fits(&l->e3, c->expert_dim, c->dim));
}

static int shared_gate_fits(const fl_config *c, const fl_layer *l) {
    return l->w1.data && !fl_is_int8(l->shared_gate.type) && matrix_fits(&l->shared_gate, 1, c->dim);
}

// The norms that a config asks for, and none of those that it leaves no place for.
static int norms_fit(const fl_config *c, const fl_layer *l) {
    if (c->norm_after && !(l->attn_norm.weight && l->ffn_norm.weight)) return 0;
    return !c->parallel || (l->attn_norm.weight && !l->post_attn_norm.weight && !l->post_ffn_norm.weight);
}

static int rope_fits(const fl_model *m, const fl_layer *l) {
    return l->rope == 0 || (l->rope <= 2 && (m->config.rotary_dim == 0 || m->rope_freqs[l->rope - 1]));
}

static int layer_fits(const fl_model *m, const fl_layer *l) {
    const fl_config *c = &m->config;
    const int gated = l->w3.data || l->e3.data, experts = l->router.data != NULL;
    if (!attention_fits(c, l) || !norms_fit(c, l) || !rope_fits(m, l)) return 0;
    if ((l->w1.data || !experts) && !feed_forward_fits(c, l, gated)) return 0;
    if (!experts) return 1;
    return !c->parallel && !c->norm_after && experts_fit(c, l, gated) &&
           (!l->shared_gate.data || shared_gate_fits(c, l));
}

// Finds the kinds of layers, and each layer's place among those of its kind.
static void find_kinds(fl_model *m) {
    m->n_kinds = 0;
    for (size_t i = 0; i < m->config.n_layers; i++) {
        fl_layer *l = &m->layers[i];
        for (l->kind = 0; l->kind < m->n_kinds && m->kinds[l->kind].window != l->window; l->kind++) {}
        if (l->kind == m->n_kinds) m->kinds[m->n_kinds++] = (fl_kind){.window = l->window};
        l->place = m->kinds[l->kind].layers++;
    }
}

fl_status fl_model_check(fl_model *m) {
    const fl_config *c = &m->config;
    if (!sizes_possible(c) || !positions_possible(c) || !experts_possible(c) || !numbers_possible(c) ||
        (m->kv_type != FL_F32 && m->kv_type != FL_F16 && !fl_kv_rounded(m->kv_type)))
        return FL_BAD_CONFIG;
    const size_t position_rows = c->second_segment ? 2 * c->positions : c->positions;
    int fits = m->kernels && m->layers && m->kinds && matrix_fits(&m->embed, c->vocab_size, c->dim) &&
               (!m->head.data || matrix_fits(&m->head, c->vocab_size, c->dim)) &&
               (!m->head_dense.data || matrix_fits(&m->head_dense, c->dim, c->dim)) &&
               (c->positions == 0 || matrix_fits(&m->positions, position_rows, c->dim));
    for (size_t i = 0; fits && i < c->n_layers; i++) fits = layer_fits(m, &m->layers[i]);
    if (!fits) return FL_BAD_TENSOR;
    find_kinds(m);
    return FL_OK;
}

// ---- batch ---------------------------------------------------------------------------------------------------------

static fl_status check_span(const fl_model *m, const fl_span *span) {
    const fl_config *c = &m->config;
    if (span->n == 0 || span->n_logits > span->n) return FL_BAD_POSITION;
    if (span->pos >= c->max_seq || span->n > c->max_seq - span->pos) return FL_BAD_POSITION;
    if (!c->causal && span->pos > 0) return FL_BAD_POSITION; // earlier tokens would have had to see these
    if (span->segment > span->n || (span->segment < span->n && !c->second_segment)) return FL_BAD_POSITION;
    if (span->n_pages < (span->pos + span->n + FL_PAGE - 1) / FL_PAGE) return FL_BAD_POSITION;
    for (size_t t = 0; t < span->n; t++)
        if (span->tokens[t] < 0 || (size_t)span->tokens[t] >= c->vocab_size) return FL_BAD_TOKEN;
    return span->n_logits > 0 && !m->head.data ? FL_BAD_TENSOR : FL_OK;
}

fl_status fl_batch_check(const fl_model *m, const fl_span *spans, size_t n_spans) {
    fl_status status = FL_OK;
    for (size_t i = 0; i < n_spans && status == FL_OK; i++) status = check_span(m, &spans[i]);
    return status;
}
