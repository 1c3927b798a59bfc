// The transformer over a ragged batch: fl_forward and its phases.
//
// Every worker runs a forward from end to end, and in each phase takes its part of the tokens, heads or panels. A sum
// is always computed whole by one worker, so the number of workers changes no bit.
#include <string.h>

#include "attention.h"
#include "moe.h"
#include "multiply.h"
#include "pages.h"
#include "rope.h"
#include "validate.h"

// ---- embedding -----------------------------------------------------------------------------------------------------

// The factor of a span's embeddings in a model with mask tokens (ESM-2; Lin et al., 2023). A mask's embedding is zero.
// In training 12 % of a sequence's embeddings were, so the others are scaled to weigh here what they did there.
static float dropout_scale(const fl_config *c, const fl_span *span) {
    size_t masks = 0;
    for (size_t t = 0; t < span->n; t++) masks += span->tokens[t] == c->mask_token;
    if (masks == span->n) return 0.0f; // there are no others
    return (1.0f - 0.12f) / (1.0f - (float)masks / (float)span->n);
}

// x (dim,) = scale * embedding of the token + row `row` of the table of positions, normed. `work`: (dim,).
static void embed_token(const fl_forward_call *f, int32_t token, size_t row, float scale, float *work, float *x) {
    const fl_model *m = f->m;
    const fl_config *c = &m->config;
    fl_matrix_row(&m->embed, (size_t)token, x);
    memset(x + c->dim, 0, (f->s->dim - c->dim) * sizeof(float)); // an earlier forward may have left NaN in the padding
    if (c->mask_token >= 0 && token == c->mask_token) memset(x, 0, c->dim * sizeof(float));
    if (scale != 1.0f)
        for (size_t i = 0; i < c->dim; i++) x[i] *= scale;
    if (c->positions > 0) {
        fl_matrix_row(&m->positions, row, work);
        for (size_t i = 0; i < c->dim; i++) x[i] += work[i];
    }
    if (m->embed_norm.weight) fl_norm_row(m, &m->embed_norm, x, x);
}

// Cosines and sines of token number `token` of the batch, by each of the model's frequencies.
static void rotation(const fl_forward_call *f, size_t token, size_t pos) {
    const fl_config *c = &f->m->config;
    const size_t half = c->rotary_dim / 2;
    for (size_t j = 0; j < 2; j++) {
        if (!f->m->rope_freqs[j]) continue;
        float *cos = f->s->cos[j] + token * half, *sin = f->s->sin[j] + token * half;
        fl_rope_angles(pos, f->m->rope_freqs[j], half, cos, sin);
        if (j == 0 && c->rope_scale != 1.0f)
            for (size_t k = 0; k < half; k++) cos[k] *= c->rope_scale, sin[k] *= c->rope_scale;
    }
}

// Writes to token t's pages what is added to the scores of its position: padding is masked.
static void mask_padding(const fl_model *m, const fl_span *span, size_t t) {
    const size_t pos = span->pos + t;
    for (size_t kind = 0; kind < m->n_kinds; kind++) {
        float *mask = (float *)(void *)((char *)span->pages[kind][pos / FL_PAGE] + fl_page_mask(m, kind));
        mask[pos % FL_PAGE] = span->tokens[t] == m->config.pad_token ? -1e30f : 0;
    }
}

// The stream before the first layer, and the rotation of all tokens. Ends with a barrier.
static void embed(const fl_worker *w) {
    const fl_forward_call *f = w->f;
    const fl_config *c = &f->m->config;
    size_t token = 0;
    for (const fl_span *span = f->spans; span < f->spans + f->n_spans; span++) {
        const float scale = c->embed_scale * (c->mask_token >= 0 ? dropout_scale(c, span) : 1.0f);
        for (size_t t = 0; t < span->n; t++, token++) {
            if (token < w->begin || token >= w->end) continue;
            const size_t pos = span->pos + t, row = t < span->segment ? pos : c->positions + pos;
            embed_token(f, span->tokens[t], row, scale, w->own->norm, f->s->x + token * f->s->dim);
            rotation(f, token, pos);
            if (c->pad_token >= 0) mask_padding(f->m, span, t);
        }
    }
    fl_barrier(w->team, w->id);
}

// ---- residuals -----------------------------------------------------------------------------------------------------

typedef enum branch { ATTENTION, FEED_FORWARD } branch;

// How a branch of a layer reads the stream x and joins it:
//
//        +-- before --> branch --> y -- inside -- * scale --+
//        |                                                  |
//   x ---+------------------------------------------------- + -- after --> x
//
// A model may have norms at `before` (pre-norm), `inside` (as Gemma 2) and `after` (post-norm, as BERT). Without a norm
// inside and a scale, the branch's last product is added to x itself. Of two parallel branches (as GPT-J) the first
// leaves its product in y, the second adds its own to that, and their sum joins the stream.
typedef struct residual {
    const fl_norm *before, *inside; // without a weight, or `before` NULL: no norm
    const fl_norm *after;           // NULL: no norm
    float *to;                      // s->x or s->y, (tokens, dim): where the branch's last product goes
    int add;                        // the product is added to what is there
    int joins;                      // s->y is then normed, scaled and added to s->x
} residual;

// The one place that chooses between norms before and after, parallel branches, and adding directly or by way of y.
static residual residual_of(const fl_worker *w, const fl_layer *l, branch b) {
    const fl_config *c = &w->f->m->config;
    const int first = b == ATTENTION, shares_norm = c->parallel && !l->ffn_norm.weight;
    const fl_norm *norm = first || shares_norm ? &l->attn_norm : &l->ffn_norm;
    residual r = {.inside = first ? &l->post_attn_norm : &l->post_ffn_norm, .to = w->f->s->y, .joins = 1};
    if (c->norm_after) r.after = norm;
    else r.before = norm;
    if (c->parallel) {
        r.add = r.joins = !first;
    } else if (!r.inside->weight && c->residual_scale == 1.0f && (first || !l->router.data)) {
        // Not with experts: they end in a weighted sum, which is made in y, and not in a product.
        r.to = w->f->s->x;
        r.add = 1;
        r.joins = 0;
    }
    return r;
}

// The stream after a branch whose last product is complete, for this worker's tokens. Ends with a barrier if there is
// anything to do.
static void join(const fl_worker *w, const residual *r) {
    const fl_model *m = w->f->m;
    const fl_scratch *s = w->f->s;
    const size_t dim = m->config.dim;
    const float scale = m->config.residual_scale;
    if (!r->joins && !r->after) return;
    for (size_t t = w->begin; t < w->end; t++) {
        float *x = s->x + t * s->dim, *y = s->y + t * s->dim;
        if (r->joins && r->inside->weight) fl_norm_row(m, r->inside, y, y);
        for (size_t i = 0; r->joins && i < dim; i++) x[i] += scale * y[i];
        if (r->after) fl_norm_row(m, r->after, x, x);
    }
    fl_barrier(w->team, w->id);
}

// ---- layers --------------------------------------------------------------------------------------------------------

// The inputs of a layer's matrices, where the forward's outputs want them: number i of fl_outputs.inputs, n floats of
// each of this worker's tokens.
static void keep_inputs(const fl_worker *w, size_t i, const fl_inputs *in, size_t n) {
    float *out = w->f->out->inputs ? w->f->out->inputs[i] : NULL;
    if (!out) return;
    for (size_t t = w->begin; t < w->end; t++) memcpy(out + t * n, in->f + t * in->f_stride, n * sizeof(float));
}

// Queries, keys and values, dealt out as if their matrices were one. Ends with a barrier.
static void multiply_qkv(const fl_worker *w, const fl_layer *l, const fl_inputs *in) {
    const fl_scratch *s = w->f->s;
    const fl_matrix *const matrix[] = {&l->wq, &l->wk, &l->wv};
    float *const out[] = {s->q, s->k, s->v};
    const size_t stride[] = {s->q_dim, s->kv_dim, s->kv_dim};
    const size_t panels = fl_panels(&l->wq) + fl_panels(&l->wk) + fl_panels(&l->wv);
    fl_deal deal = fl_deal_panels(w, panels);
    for (size_t begin, end; fl_next_panels(&deal, panels, &begin, &end);) {
        size_t first = 0; // panels of the matrices before
        for (size_t i = 0; i < 3; i++) {
            const size_t n = fl_panels(matrix[i]);
            const size_t from = begin > first ? begin - first : 0, to = end > first ? end - first : 0;
            fl_multiply_panels(w, matrix[i], from, to < n ? to : n, in, w->f->tokens, out[i], stride[i], 0);
            first += n;
        }
    }
    fl_barrier(w->team, w->id);
}

// Norms of whole rows of queries and keys; fl_attention norms heads. Ends with a barrier.
static void norm_rows(const fl_worker *w, const fl_layer *l) {
    const fl_model *m = w->f->m;
    const fl_config *c = &m->config;
    const fl_scratch *s = w->f->s;
    for (size_t t = w->begin; t < w->end; t++) {
        float *q = s->q + t * s->q_dim, *k = s->k + t * s->kv_dim;
        m->kernels->norm[c->norm](q, q, l->q_norm, NULL, c->n_heads * c->head_dim, c->norm_eps);
        m->kernels->norm[c->norm](k, k, l->k_norm, NULL, c->n_kv_heads * c->head_dim, c->norm_eps);
    }
    fl_barrier(w->team, w->id);
}

static void attention(const fl_worker *w, size_t layer) {
    const fl_config *c = &w->f->m->config;
    const fl_layer *l = &w->f->m->layers[layer];
    const fl_scratch *s = w->f->s;
    const int quantize = fl_is_int8(l->wq.type) || fl_is_int8(l->wk.type) || fl_is_int8(l->wv.type);
    const residual r = residual_of(w, l, ATTENTION);
    fl_inputs in = fl_prepare(w, s->x, s->dim, NULL, w->f->tokens, r.before, quantize);
    keep_inputs(w, 4 * layer, &in, c->dim);
    multiply_qkv(w, l, &in);
    if (c->qk_norm == FL_QK_ROW) norm_rows(w, l);
    fl_attention(w, layer);
    fl_barrier(w->team, w->id);
    in = fl_prepare(w, s->att, s->q_dim, NULL, w->f->tokens, NULL, fl_is_int8(l->wo.type));
    keep_inputs(w, 4 * layer + 1, &in, c->n_heads * c->head_dim);
    fl_multiply_dealt(w, &l->wo, &in, w->f->tokens, r.to, s->dim, r.add);
    fl_barrier(w->team, w->id);
    join(w, &r);
}

static void dense(const fl_worker *w, size_t layer, const residual *r) {
    const fl_config *c = &w->f->m->config;
    const fl_layer *l = &w->f->m->layers[layer];
    const fl_scratch *s = w->f->s;
    const int quantize = fl_is_int8(l->w1.type) || fl_is_int8(l->w3.type);
    fl_inputs in = fl_prepare(w, s->x, s->dim, NULL, w->f->tokens, r->before, quantize);
    keep_inputs(w, 4 * layer + 2, &in, c->dim);
    in = fl_hidden_layer(w, l, &in);
    keep_inputs(w, 4 * layer + 3, &in, c->hidden_dim);
    fl_multiply_dealt(w, &l->w2, &in, w->f->tokens, r->to, s->dim, r->add);
    fl_barrier(w->team, w->id);
}

static void feed_forward(const fl_worker *w, size_t layer) {
    const fl_layer *l = &w->f->m->layers[layer];
    const residual r = residual_of(w, l, FEED_FORWARD);
    if (l->router.data) fl_moe(w, l, r.before);
    else dense(w, layer, &r);
    join(w, &r);
}

// ---- outputs -------------------------------------------------------------------------------------------------------

// The stream as it enters layer `layer`, or leaves the last, where the forward's outputs want it. Safe without a
// barrier: a worker copies its own tokens, and s->x is next written after two barriers.
static void keep_stream(const fl_worker *w, size_t layer) {
    const size_t dim = w->f->m->config.dim, stride = w->f->s->dim;
    float *out = w->f->out->hidden ? w->f->out->hidden[layer] : NULL;
    if (!out) return;
    for (size_t t = w->begin; t < w->end; t++) memcpy(out + t * dim, w->f->s->x + t * stride, dim * sizeof(float));
}

// The stream after the final norm, where the forward's outputs want it.
static void keep_normed(const fl_worker *w) {
    const fl_model *m = w->f->m;
    const size_t dim = m->config.dim, stride = w->f->s->dim;
    float *out = w->f->out->hidden ? w->f->out->hidden[m->config.n_layers + 1] : NULL;
    if (!out) return;
    for (size_t t = w->begin; t < w->end; t++) {
        const float *x = w->f->s->x + t * stride;
        // Not straight to `out`, whose rows have no padding: kernels write whole vectors.
        if (m->final_norm.weight) fl_norm_row(m, &m->final_norm, w->own->norm, x);
        memcpy(out + t * dim, m->final_norm.weight ? w->own->norm : x, dim * sizeof(float));
    }
}

// The inputs of the head: the wanted tokens' rows of the stream, after the final norm and, if there is one, the dense
// layer.
static fl_inputs head_inputs(const fl_worker *w) {
    const fl_model *m = w->f->m;
    const fl_scratch *s = w->f->s;
    const size_t rows = w->f->n_logits;
    const int quantize = fl_is_int8(m->head.type);
    if (w->f->bare) return fl_prepare(w, s->x, s->dim, s->wanted, rows, NULL, quantize);
    if (!m->head_dense.data) return fl_prepare(w, s->x, s->dim, s->wanted, rows, &m->final_norm, quantize);
    const int dense = fl_is_int8(m->head_dense.type);
    const fl_inputs in = fl_prepare(w, s->x, s->dim, s->wanted, rows, &m->final_norm, dense);
    fl_gate_dealt(w, &m->head_dense, &(fl_matrix){0}, &in, rows, &(fl_hidden){.f = s->y, .stride = s->dim});
    fl_barrier(w->team, w->id);
    return fl_prepare(w, s->y, s->dim, NULL, rows, &m->head_norm, quantize);
}

static void head(const fl_worker *w) {
    const fl_model *m = w->f->m;
    const fl_config *c = &m->config;
    const size_t rows = w->f->n_logits, stride = fl_logits_stride(m), panels = fl_panels(&m->head);
    const fl_inputs in = head_inputs(w);
    fl_deal deal = fl_deal_panels(w, panels);
    for (size_t begin, end; fl_next_panels(&deal, panels, &begin, &end);) {
        fl_multiply_panels(w, &m->head, begin, end, &in, rows, w->f->out->logits, stride, 0);
        for (size_t t = 0; t < rows && !w->f->bare; t++) {
            float *logits = w->f->out->logits + t * stride + begin * FL_LANES;
            const size_t n = (end - begin) * FL_LANES;
            if (c->logit_scale != 1.0f)
                for (size_t i = 0; i < n; i++) logits[i] *= c->logit_scale;
            if (c->logit_softcap > 0) m->kernels->softcap(logits, n, c->logit_softcap);
        }
    }
}

static void run_head(void *arg, fl_team *team, size_t id) {
    const fl_forward_call *f = arg;
    const fl_worker w = {.f = f, .team = team, .id = id, .own = &f->s->workers[id]};
    head(&w);
}

fl_status fl_head(const fl_model *m, fl_scratch *s, const float *rows, size_t n, int norm, size_t threads,
                  float *logits) {
    const size_t dim = m->config.dim;
    if (!m->head.data) return FL_BAD_TENSOR;
    if (n == 0) return FL_OK;
    threads = threads == 0 ? 1 : threads < FL_TEAM ? threads : FL_TEAM;
    const fl_status status = fl_scratch_reserve(s, m, n, threads);
    if (status != FL_OK) return status;
    for (size_t t = 0; t < n; t++) {
        float *x = s->x + t * s->dim;
        memcpy(x, rows + t * dim, dim * sizeof(float));
        memset(x + dim, 0, (s->dim - dim) * sizeof(float));
        s->wanted[t] = t;
    }
    const fl_outputs out = {.logits = logits};
    fl_forward_call f = {.m = m, .s = s, .tokens = n, .n_logits = n, .out = &out, .bare = !norm};
    fl_paced(m->pace, fl_apart(n), threads, run_head, &f, NULL);
    return FL_OK;
}

size_t fl_logits_stride(const fl_model *m) { return fl_round_up(m->config.vocab_size, FL_LANES); }

// ---- leaving early -------------------------------------------------------------------------------------------------
//
// When worker 0 has seen that the forward is to end, deals hand out no more chunks (threads.h), so that phases end at
// once, whatever is in their outputs. All workers then leave at the same place: before a branch worker 0 writes whether
// to leave after it, and barriers within the branch lie between that and the others' reading it. A worker may still be
// about to read when worker 0 writes again, so the two branches have a word each.
//
//   worker 0    write [0]   attention  read [0]   write [1]   feed-forward  read [1]   write [0]  ..
//   worker 1                attention  read [0]               feed-forward  read [1]              ..

static void decide(const fl_worker *w, branch b) {
    if (w->id == 0) w->f->leave[b] = fl_stopped(w->team);
}

// ---- forward -------------------------------------------------------------------------------------------------------

static void compute(const fl_forward_call *f, fl_team *team, size_t id) {
    fl_worker w = {.f = f, .team = team, .id = id, .own = &f->s->workers[id]};
    fl_share(f->tokens, team, id, &w.begin, &w.end);
    embed(&w);
    for (size_t layer = 0; layer < f->m->config.n_layers; layer++) {
        keep_stream(&w, layer);
        decide(&w, ATTENTION);
        attention(&w, layer);
        if (f->leave[ATTENTION]) return;
        decide(&w, FEED_FORWARD);
        feed_forward(&w, layer);
        if (f->leave[FEED_FORWARD]) return;
    }
    keep_stream(&w, f->m->config.n_layers);
    keep_normed(&w);
    if (f->n_logits > 0) head(&w);
}

static void run(void *arg, fl_team *team, size_t id) {
    const fl_forward_call *f = arg;
    if (id == 0) {
        team->watch = f->watch;
        team->every = f->tokens < FL_LANES ? FL_LANES : 1; // of few tokens a chunk takes no longer than a look
        team->asked = f->watch && f->watch->ask ? fl_now() : 0;
    }
    compute(f, team, id);
    if (id == 0) *f->cancelled = fl_stopped(team);
}

// Lists the tokens whose logits are wanted, by their numbers in the batch.
static void list_wanted(fl_forward_call *f) {
    size_t end = 0;
    for (size_t i = 0; i < f->n_spans; i++) {
        end += f->spans[i].n;
        for (size_t t = f->spans[i].n_logits; t > 0; t--) f->s->wanted[f->n_logits++] = end - t;
    }
}

fl_status fl_forward(const fl_model *m, fl_scratch *s, const fl_span *spans, size_t n_spans, size_t threads,
                     const fl_watch *watch, const fl_outputs *out) {
    fl_status status = fl_batch_check(m, spans, n_spans);
    if (status != FL_OK) return status;
    int leave[2] = {0}, cancelled = 0;
    fl_forward_call f = {.m = m, .s = s, .spans = spans, .n_spans = n_spans, .out = out, .watch = watch,
                         .leave = leave, .cancelled = &cancelled};
    for (size_t i = 0; i < n_spans; i++) f.tokens += spans[i].n;
    if (f.tokens == 0) return FL_OK;
    threads = threads == 0 ? 1 : threads < FL_TEAM ? threads : FL_TEAM; // a team is no larger
    status = fl_scratch_reserve(s, m, f.tokens, threads);
    if (status != FL_OK) return status;
    list_wanted(&f);
    fl_paced(m->pace, f.tokens, threads, run, &f, &cancelled);
    return cancelled ? FL_CANCELLED : FL_OK;
}
