// The transformer over a ragged batch. Every thread runs fl_forward's work from end to end and takes its share of rows,
// tokens or heads in each phase; sums are never shared out, which is why the number of threads changes no bit.
#include <string.h>

#include "attention.h"
#include "moe.h"
#include "product.h"
#include "rope.h"
#include "validate.h"

static void add_branch(const fl_job *f, const fl_norm *norm, size_t begin, size_t end) {
    const size_t dim = f->m->config.dim;
    const float scale = f->m->config.residual_scale;
    for (size_t t = begin; t < end; t++) {
        float *x = f->s->x + t * f->s->dim, *y = f->s->y + t * f->s->dim;
        if (norm && norm->weight) fl_norm_row(f->m, norm, y, y);
        for (size_t i = 0; i < dim; i++) x[i] += scale * y[i];
    }
}

// Queries, keys and values in one phase: their panels are dealt out as if they were one matrix.
static void multiply_qkv(const fl_job *f, fl_team *team, size_t id, const fl_layer *l, const fl_inputs *in) {
    const fl_matrix *const w[] = {&l->wq, &l->wk, &l->wv};
    float *const out[] = {f->s->q, f->s->k, f->s->v};
    const size_t stride[] = {f->s->q_dim, f->s->kv_dim, f->s->kv_dim};
    const size_t panels = fl_panels(w[0]) + fl_panels(w[1]) + fl_panels(w[2]);
    fl_deal deal = fl_deal_panels(team, id, panels);
    for (size_t begin, end; fl_next_panels(&deal, panels, &begin, &end);) {
        size_t first = 0;
        for (size_t i = 0; i < 3; i++) {
            const size_t n = fl_panels(w[i]);
            const size_t from = begin > first ? begin - first : 0, to = end > first ? end - first : 0;
            fl_multiply_panels(f, w[i], from, to < n ? to : n, in, f->tokens, out[i], stride[i], 0);
            first += n;
        }
    }
}

// Norms of whole rows of queries and keys; those of heads are fl_attention's.
static void norm_rows(const fl_job *f, fl_team *team, size_t id, const fl_layer *l) {
    const fl_config *c = &f->m->config;
    size_t begin, end;
    fl_share(f->tokens, team, id, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        float *q = f->s->q + t * f->s->q_dim, *k = f->s->k + t * f->s->kv_dim;
        f->m->kernels->norm[c->norm](q, q, l->q_norm, NULL, c->n_heads * c->head_dim, c->norm_eps);
        f->m->kernels->norm[c->norm](k, k, l->k_norm, NULL, c->n_kv_heads * c->head_dim, c->norm_eps);
    }
    fl_barrier(team, id);
}

// What ESM-2 multiplies a text's embeddings with: masks, which are zero, count as 12 % of it in training
// (fair-esm's token dropout).
static float dropout_scale(const fl_job *f, const fl_span *span) {
    size_t masks = 0;
    for (size_t t = 0; t < span->n; t++) masks += span->tokens[t] == f->m->config.mask_token;
    // A text of nothing but masks has nothing to scale.
    return masks == span->n ? 0.0f : (1.0f - 0.12f) / (1.0f - (float)masks / (float)span->n);
}

// A token's embedding, from the vocabulary and from a row of the table of positions.
static void embed_token(const fl_job *f, fl_lane_scratch *lane, int32_t token, size_t row, float scale, float *x) {
    const fl_model *m = f->m;
    const fl_config *c = &m->config;
    fl_matrix_row(&m->embed, (size_t)token, x);
    memset(x + c->dim, 0, (f->s->dim - c->dim) * sizeof(float)); // what an earlier text left there may be NaN
    if (c->mask_token >= 0 && token == c->mask_token) memset(x, 0, c->dim * sizeof(float));
    if (scale != 1.0f)
        for (size_t i = 0; i < c->dim; i++) x[i] *= scale;
    if (c->positions > 0) {
        fl_matrix_row(&m->positions, row, lane->norm);
        for (size_t i = 0; i < c->dim; i++) x[i] += lane->norm[i];
    }
    if (m->embed_norm.weight) fl_norm_row(m, &m->embed_norm, x, x);
}

static float *kv_mask(const fl_model *m, void *page) { return (float *)(void *)((char *)page + fl_kv_mask(m)); }

// Embeddings and rotation angles of all tokens.
static void embed(const fl_job *f, fl_team *team, size_t id) {
    const fl_model *m = f->m;
    const fl_config *c = &m->config;
    const size_t half = c->rotary_dim / 2;
    size_t row = 0;
    for (size_t i = 0; i < f->n_spans; i++) {
        const fl_span *span = &f->spans[i];
        const float scale = c->embed_scale * (c->mask_token >= 0 ? dropout_scale(f, span) : 1.0f);
        for (size_t t = 0; t < span->n; t++, row++) {
            if (row % team->threads != id) continue;
            const size_t pos = span->pos + t, of_table = t < span->segment ? pos : c->positions + pos;
            embed_token(f, &f->s->lanes[id], span->tokens[t], of_table, scale, f->s->x + row * f->s->dim);
            if (c->pad_token >= 0)
                kv_mask(m, span->pages[pos / FL_PAGE])[pos % FL_PAGE] = span->tokens[t] == c->pad_token ? -1e30f : 0;
            for (size_t j = 0; j < 2; j++) {
                if (!m->rope_freqs[j]) continue;
                float *cos = f->s->cos[j] + row * half, *sin = f->s->sin[j] + row * half;
                fl_rope_angles(pos, m->rope_freqs[j], half, cos, sin);
                if (j == 0 && c->rope_scale != 1.0f)
                    for (size_t k = 0; k < half; k++) cos[k] *= c->rope_scale, sin[k] *= c->rope_scale;
            }
        }
    }
    fl_barrier(team, id);
}

// s->x (+)= w . in, straight or by way of a norm and a factor; or, with `parallel`, into s->y for later. Ends with a
// barrier.
static void add_block(const fl_job *f, fl_team *team, size_t id, const fl_matrix *w, const fl_inputs *in,
                      const fl_norm *after_block, const fl_norm *after_sum, int last) {
    const fl_config *c = &f->m->config;
    fl_scratch *s = f->s;
    size_t begin, end;
    fl_share(f->tokens, team, id, &begin, &end);
    const int straight = !c->parallel && !after_block->weight && c->residual_scale == 1.0f;
    fl_multiply_dealt(f, team, id, w, in, f->tokens, straight ? s->x : s->y, s->dim, straight || (c->parallel && last));
    fl_barrier(team, id);
    if (!straight && (!c->parallel || last)) {
        add_branch(f, after_block, begin, end);
        fl_barrier(team, id);
    }
    if (after_sum) {
        for (size_t t = begin; t < end; t++) fl_norm_row(f->m, after_sum, s->x + t * s->dim, s->x + t * s->dim);
        fl_barrier(team, id);
    }
}

// What a layer's matrices multiply, where it is wanted, for this thread's tokens.
static void keep_inputs(const fl_job *f, fl_team *team, size_t id, size_t i, const fl_inputs *in, size_t n) {
    float *out = f->out->inputs ? f->out->inputs[i] : NULL;
    size_t begin, end;
    fl_share(f->tokens, team, id, &begin, &end);
    for (size_t t = begin; out && t < end; t++) memcpy(out + t * n, in->f + t * in->f_stride, n * sizeof(float));
}

static void attention_block(const fl_job *f, const fl_layer *l, size_t layer, fl_team *team, size_t id) {
    fl_scratch *s = f->s;
    const fl_config *c = &f->m->config;
    const int quantize = fl_is_integer(l->wq.type) || fl_is_integer(l->wk.type) || fl_is_integer(l->wv.type);
    fl_inputs in = fl_prepare(f, team, id, s->x, s->dim, NULL, f->tokens, c->norm_after ? NULL : &l->attn_norm, quantize);
    keep_inputs(f, team, id, 4 * layer, &in, c->dim);
    multiply_qkv(f, team, id, l, &in);
    fl_barrier(team, id);
    if (c->qk_norm == FL_QK_ROW) norm_rows(f, team, id, l);
    fl_attention(f->m, s, f->spans, f->n_spans, layer, f->out->attention ? f->out->attention[layer] : NULL, team, id);
    fl_barrier(team, id);
    in = fl_prepare(f, team, id, s->att, s->q_dim, NULL, f->tokens, NULL, fl_is_integer(l->wo.type));
    keep_inputs(f, team, id, 4 * layer + 1, &in, c->n_heads * c->head_dim);
    add_block(f, team, id, &l->wo, &in, &l->post_attn_norm, c->norm_after ? &l->attn_norm : NULL, 0);
}

static void ffn_block(const fl_job *f, const fl_layer *l, size_t layer, fl_team *team, size_t id) {
    fl_scratch *s = f->s;
    const fl_config *c = &f->m->config;
    const fl_norm *norm = c->norm_after ? NULL : c->parallel && !l->ffn_norm.weight ? &l->attn_norm : &l->ffn_norm;
    const int quantize = fl_is_integer(l->w1.type) || fl_is_integer(l->w3.type);
    fl_inputs in = fl_prepare(f, team, id, s->x, s->dim, NULL, f->tokens, norm, quantize);
    keep_inputs(f, team, id, 4 * layer + 2, &in, c->dim);
    in = fl_hidden_layer(f, team, id, l, &in);
    keep_inputs(f, team, id, 4 * layer + 3, &in, c->hidden_dim);
    add_block(f, team, id, &l->w2, &in, &l->post_ffn_norm, c->norm_after ? &l->ffn_norm : NULL, 1);
}

static void moe_block(const fl_job *f, const fl_layer *l, fl_team *team, size_t id) {
    size_t begin, end;
    fl_share(f->tokens, team, id, &begin, &end);
    fl_moe(f, l, team, id);
    add_branch(f, &l->post_ffn_norm, begin, end);
    fl_barrier(team, id);
}

// The stream, where it is wanted, as it enters a layer: for this thread's tokens, which nobody changes before the next
// barrier but one.
static void keep_hidden(const fl_job *f, fl_team *team, size_t id, size_t layer) {
    const size_t dim = f->m->config.dim;
    float *out = f->out->hidden ? f->out->hidden[layer] : NULL;
    size_t begin, end;
    fl_share(f->tokens, team, id, &begin, &end);
    for (size_t t = begin; out && t < end; t++) memcpy(out + t * dim, f->s->x + t * f->s->dim, dim * sizeof(float));
}

static void keep_last(const fl_job *f, fl_team *team, size_t id) {
    const fl_model *m = f->m;
    float *out = f->out->hidden ? f->out->hidden[m->config.n_layers + 1] : NULL, *normed = f->s->lanes[id].norm;
    size_t begin, end;
    fl_share(f->tokens, team, id, &begin, &end);
    for (size_t t = begin; out && t < end; t++) {
        const float *x = f->s->x + t * f->s->dim;
        if (m->final_norm.weight) fl_norm_row(m, &m->final_norm, normed, x);
        memcpy(out + t * m->config.dim, m->final_norm.weight ? normed : x, m->config.dim * sizeof(float));
    }
}

// Logits of the wanted rows.
static void head(const fl_job *f, fl_team *team, size_t id) {
    const fl_model *m = f->m;
    const fl_config *c = &m->config;
    const size_t stride = fl_logits_stride(m);
    fl_inputs in;
    if (m->head_dense.data) {
        in = fl_prepare(f, team, id, f->s->x, f->s->dim, f->s->wanted, f->n_logits, &m->final_norm,
                        fl_is_integer(m->head_dense.type));
        const fl_hidden dense = {.f = f->s->y, .stride = f->s->dim};
        fl_gate_dealt(f, team, id, &m->head_dense, &(fl_matrix){0}, &in, f->n_logits, &dense);
        fl_barrier(team, id);
        in = fl_prepare(f, team, id, f->s->y, f->s->dim, NULL, f->n_logits, &m->head_norm, fl_is_integer(m->head.type));
    } else {
        in = fl_prepare(f, team, id, f->s->x, f->s->dim, f->s->wanted, f->n_logits, &m->final_norm,
                        fl_is_integer(m->head.type));
    }
    fl_deal deal = fl_deal_panels(team, id, fl_panels(&m->head));
    for (size_t begin, end; fl_next_panels(&deal, fl_panels(&m->head), &begin, &end);) {
        fl_multiply_panels(f, &m->head, begin, end, &in, f->n_logits, f->out->logits, stride, 0);
        for (size_t t = 0; t < f->n_logits; t++) {
            float *row = f->out->logits + t * stride + begin * FL_LANES;
            const size_t n = (end - begin) * FL_LANES;
            if (c->logit_scale != 1.0f)
                for (size_t i = 0; i < n; i++) row[i] *= c->logit_scale;
            if (c->logit_softcap > 0) m->kernels->softcap(row, n, c->logit_softcap);
        }
    }
}

static void run(void *arg, fl_team *team, size_t id) {
    const fl_job *f = arg;
    embed(f, team, id);
    for (size_t i = 0; i < f->m->config.n_layers; i++) {
        const fl_layer *l = &f->m->layers[i];
        keep_hidden(f, team, id, i);
        attention_block(f, l, i, team, id);
        if (l->router.data) moe_block(f, l, team, id);
        else ffn_block(f, l, i, team, id);
    }
    keep_hidden(f, team, id, f->m->config.n_layers);
    keep_last(f, team, id);
    if (f->n_logits > 0) head(f, team, id);
}

size_t fl_logits_stride(const fl_model *m) { return fl_round_up(m->config.vocab_size, FL_LANES); }

fl_status fl_forward(const fl_model *m, fl_scratch *s, const fl_span *spans, size_t n_spans, size_t threads,
                     const fl_outputs *out) {
    fl_status status = fl_batch_check(m, spans, n_spans);
    if (status != FL_OK) return status;
    fl_job f = {.m = m, .s = s, .spans = spans, .n_spans = n_spans, .out = out};
    for (size_t i = 0; i < n_spans; i++) f.tokens += spans[i].n;
    if (f.tokens == 0) return FL_OK;
    if (threads == 0) threads = 1;
    if (threads > FL_TEAM) threads = FL_TEAM; // working memory is for no more
    status = fl_scratch_reserve(s, m, f.tokens, threads);
    if (status != FL_OK) return status;
    size_t row = 0;
    for (size_t i = 0; i < n_spans; i++) {
        row += spans[i].n;
        for (size_t t = spans[i].n_logits; t > 0; t--) s->wanted[f.n_logits++] = row - t;
    }
    fl_paced(m->pace, f.tokens, threads, run, &f);
    return FL_OK;
}
