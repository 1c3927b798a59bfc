// Attention with an online softmax over blocks of 64 positions (Dao et al., 2022), grouped queries (Ainslie et al.,
// 2023). A task is one KV head of a few tokens of a span: its rows, the tokens' queries of that head's group, pass over
// the blocks together, so that keys and values are read once for all of them.
#include "attention.h"

#include <math.h>
#include <string.h>

#include "rope.h"

typedef struct view {
    const fl_model *m;
    fl_scratch *s;
    size_t layer;
    const fl_layer *l;
    const float *cos, *sin;  // (tokens, rotary_dim / 2); NULL where the layer does not rotate
    size_t head_dim, stride; // channels of a head, and rounded up to 16
    size_t group, heads;     // query heads of a KV head; how many of them a task takes
    size_t tokens;           // of a task at most
} view;

// Where keys and values of a head lie in a block, in elements.
static size_t keys_at(const view *v, size_t head) {
    return (v->layer * v->m->config.n_kv_heads + head) * FL_BLOCK * (v->head_dim + v->stride);
}

static size_t values_at(const view *v, size_t head) { return keys_at(v, head) + FL_BLOCK * v->head_dim; }

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// The nearest f16 that is finite: 0 times an infinity at a position that a query must not see would be NaN.
static void saturate(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = x[i] > 65504.0f ? 65504.0f : x[i] < -65504.0f ? -65504.0f : x[i];
}

// A head's query or key, channels `at` and on of a row of heads, as the scores take it: normed and rotated.
static void turn(const view *v, const float *x, size_t at, const float *norm, size_t row, float *out) {
    const fl_config *c = &v->m->config;
    const size_t half = c->rotary_dim / 2;
    x += at;
    if (c->qk_norm == FL_QK_HEAD)
        v->m->kernels->norm[c->norm](out, x, norm + at, NULL, v->head_dim, c->norm_eps);
    else
        memcpy(out, x, v->head_dim * sizeof(float));
    if (v->cos) fl_rope(out, v->cos + row * half, v->sin + row * half, half);
}

// Token `row` of the batch becomes position `pos` of its sequence, for one KV head.
static void store(const view *v, fl_lane_scratch *lane, size_t row, void *block, size_t pos, size_t head) {
    const size_t slot = pos % FL_BLOCK, at = head * v->head_dim;
    float *key = lane->key, *value = v->s->v + row * v->s->kv_dim + at;
    turn(v, v->s->k + row * v->s->kv_dim, at, v->l->k_norm, row, key);
    if (v->m->kv_type == FL_F32) {
        float *keys = (float *)block + keys_at(v, head) + slot;
        for (size_t i = 0; i < v->head_dim; i++) keys[i * FL_BLOCK] = key[i];
        memcpy((float *)block + values_at(v, head) + slot * v->stride, value, v->head_dim * sizeof(float));
    } else {
        uint16_t *keys = (uint16_t *)block + keys_at(v, head) + slot;
        saturate(key, v->head_dim);
        saturate(value, v->head_dim);
        v->m->kernels->to_f16(lane->half, key, v->head_dim);
        for (size_t i = 0; i < v->head_dim; i++) keys[i * FL_BLOCK] = lane->half[i];
        v->m->kernels->to_f16((uint16_t *)block + values_at(v, head) + slot * v->stride, value, v->head_dim);
    }
}

// A task: queries of tokens [t0, t1) of a span, whose first token is row `row` of the batch, heads [h0, h1) of the KV
// head's group.
typedef struct task {
    const fl_span *span;
    size_t row, t0, t1, kv_head, h0, h1;
} task;

// The positions that row r of a task sees, [*from, *to).
static void sight(const view *v, const task *k, size_t r, size_t *from, size_t *to) {
    const size_t pos = k->span->pos + k->t0 + r / (k->h1 - k->h0), window = v->l->window;
    *to = v->m->config.causal ? pos + 1 : k->span->pos + k->span->n;
    *from = window > 0 && pos + 1 > window ? pos + 1 - window : 0;
}

// The block that begins at position `start`, as the kernels take it.
static fl_attend attend_block(const view *v, fl_lane_scratch *lane, const task *k, size_t start) {
    const size_t rows = (k->t1 - k->t0) * (k->h1 - k->h0), size = v->m->kv_type == FL_F32 ? sizeof(float) : sizeof(uint16_t);
    for (size_t r = 0; r < rows; r++) {
        size_t from, to;
        sight(v, k, r, &from, &to);
        lane->from[r] = from > start ? from - start : 0;
        lane->limit[r] = to > start ? to - start : 0;
    }
    char *block = k->span->blocks[start / FL_BLOCK];
    return (fl_attend){
        .rows = rows,
        .head_dim = v->head_dim,
        .stride = v->stride,
        .q = lane->q,
        .from = lane->from,
        .limit = lane->limit,
        .softcap = v->m->config.attn_softcap,
        .mask = v->m->config.pad_token >= 0 ? fl_kv_mask(v->m, block) : NULL,
        .keys = block + keys_at(v, k->kv_head) * size,
        .values = block + values_at(v, k->kv_head) * size,
        .scores = lane->scores,
        .max = lane->max,
        .sum = lane->sum,
        .out = lane->out,
    };
}

// The probabilities of a task's rows into `maps`, the span's (n_heads, n, pos + n).
static void write_maps(const view *v, fl_lane_scratch *lane, const task *k, float *maps) {
    const size_t heads = k->h1 - k->h0, all = k->span->pos + k->span->n;
    for (size_t start = 0; start < all; start += FL_BLOCK) {
        const fl_attend a = attend_block(v, lane, k, start);
        v->m->kernels->attention[v->m->kv_type](&a);
        for (size_t r = 0; r < a.rows; r++) {
            const size_t head = k->kv_head * v->group + k->h0 + r % heads, t = k->t0 + r / heads;
            memcpy(maps + (head * k->span->n + t) * all + start, a.scores + r * FL_BLOCK,
                   smaller(FL_BLOCK, all - start) * sizeof(float));
        }
    }
}

static void run_task(const view *v, fl_lane_scratch *lane, const task *k, float *maps) {
    const size_t heads = k->h1 - k->h0, rows = (k->t1 - k->t0) * heads, first_head = k->kv_head * v->group + k->h0;
    size_t from, first, end, last;
    for (size_t r = 0; r < rows; r++) {
        const size_t token = k->row + k->t0 + r / heads, at = (first_head + r % heads) * v->head_dim;
        float *q = lane->q + r * v->stride;
        turn(v, v->s->q + token * v->s->q_dim, at, v->l->q_norm, token, q);
        for (size_t i = 0; i < v->head_dim; i++) q[i] *= v->m->config.attn_scale;
        lane->max[r] = -INFINITY;
        lane->sum[r] = 0;
    }
    memset(lane->out, 0, rows * v->stride * sizeof(float));
    sight(v, k, 0, &first, &end);
    sight(v, k, rows - 1, &from, &last);
    for (size_t start = first / FL_BLOCK * FL_BLOCK; start < last; start += FL_BLOCK) {
        const fl_attend a = attend_block(v, lane, k, start);
        v->m->kernels->attend[v->m->kv_type](&a);
    }
    for (size_t r = 0; r < rows; r++) {
        float *out = v->s->att + (k->row + k->t0 + r / heads) * v->s->q_dim + (first_head + r % heads) * v->head_dim;
        for (size_t i = 0; i < v->head_dim; i++) out[i] = lane->out[r * v->stride + i] / lane->sum[r];
    }
    if (maps) write_maps(v, lane, k, maps);
}

void fl_attention(const fl_model *m, fl_scratch *s, const fl_span *spans, size_t n_spans, size_t layer, float *maps,
                  fl_team *team, size_t id) {
    const fl_config *c = &m->config;
    const fl_layer *l = &m->layers[layer];
    const size_t group = c->n_heads / c->n_kv_heads, heads = smaller(group, FL_ATTEND_ROWS);
    const view v = {
        .m = m,
        .s = s,
        .layer = layer,
        .l = l,
        .cos = l->rope > 0 ? s->cos[l->rope - 1] : NULL,
        .sin = l->rope > 0 ? s->sin[l->rope - 1] : NULL,
        .head_dim = c->head_dim,
        .stride = fl_round_up(c->head_dim, FL_LANES),
        .group = group,
        .heads = heads,
        .tokens = FL_ATTEND_ROWS / heads,
    };
    const size_t parts = (group + heads - 1) / heads, per_tile = c->n_kv_heads * parts;
    fl_lane_scratch *lane = &s->lanes[id];

    // Tasks go round the threads, so that the long ones at the end of a prompt are shared out too. With one token and
    // one task a KV head, the task's own thread stores that head's key and value: no need to wait for the others.
    const int alone = n_spans == 1 && spans[0].n == 1 && parts == 1;
    size_t row = 0;
    if (!alone) {
        for (size_t i = 0; i < n_spans; row += spans[i].n, i++)
            for (size_t t = 0; t < spans[i].n; t++) {
                if ((row + t) % team->threads != id) continue;
                const size_t pos = spans[i].pos + t;
                for (size_t head = 0; head < c->n_kv_heads; head++)
                    store(&v, lane, row + t, spans[i].blocks[pos / FL_BLOCK], pos, head);
            }
        fl_barrier(team, id);
    }
    size_t number = 0;
    row = 0;
    for (size_t i = 0; i < n_spans; row += spans[i].n, i++) {
        const fl_span *span = &spans[i];
        for (size_t t = 0; t < span->n; t += v.tokens)
            for (size_t j = 0; j < per_tile; j++, number++) {
                if (number % team->threads != id) continue;
                const size_t kv_head = j / parts, h0 = j % parts * heads;
                if (alone) store(&v, lane, row, span->blocks[span->pos / FL_BLOCK], span->pos, kv_head);
                const task k = {span, row, t, smaller(t + v.tokens, span->n), kv_head, h0, smaller(h0 + heads, group)};
                run_task(&v, lane, &k, maps);
            }
        if (maps) maps += c->n_heads * span->n * (span->pos + span->n);
    }
}
