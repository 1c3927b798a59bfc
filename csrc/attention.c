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
    size_t head_dim, stride; // channels of a head, and rounded up to 16
    size_t group, heads;     // query heads of a KV head; how many of them a task takes
    size_t tokens;           // of a task at most
} view;

// Where keys and values of a head lie in a block, in elements.
static size_t keys_at(const view *v, size_t head) {
    return (v->layer * v->m->config.n_kv_heads + head) * FL_BLOCK * (v->head_dim + v->stride);
}

static size_t values_at(const view *v, size_t head) { return keys_at(v, head) + FL_BLOCK * v->head_dim; }

// The nearest f16 that is finite: 0 times an infinity at a position that a query must not see would be NaN.
static void saturate(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = x[i] > 65504.0f ? 65504.0f : x[i] < -65504.0f ? -65504.0f : x[i];
}

// Token `row` of the batch becomes position `pos` of its sequence, for one KV head.
static void store(const view *v, fl_lane_scratch *lane, size_t row, void *block, size_t pos, size_t head) {
    const fl_config *c = &v->m->config;
    const size_t half = c->rotary_dim / 2, slot = pos % FL_BLOCK;
    float *key = v->s->k + row * v->s->kv_dim + head * v->head_dim;
    float *value = v->s->v + row * v->s->kv_dim + head * v->head_dim;
    fl_rope(key, v->s->cos + row * half, v->s->sin + row * half, half);
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

// Queries of tokens [t0, t1) of a span (its first token is row `row` of the batch), heads [h0, h1) of the KV head's
// group.
static void task(const view *v, fl_lane_scratch *lane, const fl_span *span, size_t row, size_t t0, size_t t1,
                 size_t kv_head, size_t h0, size_t h1) {
    const fl_config *c = &v->m->config;
    const size_t half = c->rotary_dim / 2, heads = h1 - h0, rows = (t1 - t0) * heads;
    const size_t first_head = kv_head * v->group + h0;
    for (size_t r = 0; r < rows; r++) {
        const size_t token = row + t0 + r / heads;
        float *q = lane->q + r * v->stride;
        memcpy(q, v->s->q + token * v->s->q_dim + (first_head + r % heads) * v->head_dim, v->head_dim * sizeof(float));
        fl_rope(q, v->s->cos + token * half, v->s->sin + token * half, half);
        for (size_t i = 0; i < v->head_dim; i++) q[i] *= c->attn_scale;
        lane->max[r] = -INFINITY;
        lane->sum[r] = 0;
    }
    memset(lane->out, 0, rows * v->stride * sizeof(float));
    const size_t size = v->m->kv_type == FL_F32 ? sizeof(float) : sizeof(uint16_t), end = span->pos + t1;
    for (size_t start = 0; start < end; start += FL_BLOCK) {
        for (size_t r = 0; r < rows; r++) {
            const size_t seen = span->pos + t0 + r / heads + 1;
            lane->limit[r] = seen > start ? seen - start : 0;
        }
        const char *block = span->blocks[start / FL_BLOCK];
        v->m->kernels->attend[v->m->kv_type](&(fl_attend){
            .rows = rows,
            .head_dim = v->head_dim,
            .stride = v->stride,
            .q = lane->q,
            .limit = lane->limit,
            .keys = block + keys_at(v, kv_head) * size,
            .values = block + values_at(v, kv_head) * size,
            .scores = lane->scores,
            .max = lane->max,
            .sum = lane->sum,
            .out = lane->out,
        });
    }
    for (size_t r = 0; r < rows; r++) {
        float *out = v->s->att + (row + t0 + r / heads) * v->s->q_dim + (first_head + r % heads) * v->head_dim;
        for (size_t i = 0; i < v->head_dim; i++) out[i] = lane->out[r * v->stride + i] / lane->sum[r];
    }
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

void fl_attention(const fl_model *m, fl_scratch *s, const fl_span *spans, size_t n_spans, size_t layer, fl_team *team,
                  size_t id) {
    const fl_config *c = &m->config;
    const size_t group = c->n_heads / c->n_kv_heads, heads = smaller(group, FL_ATTEND_ROWS);
    const view v = {
        .m = m,
        .s = s,
        .layer = layer,
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
        fl_barrier(team);
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
                task(&v, lane, span, row, t, smaller(t + v.tokens, span->n), kv_head, h0, smaller(h0 + heads, group));
            }
    }
}
