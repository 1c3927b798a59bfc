// Attention with an online softmax over pages of 64 positions (Dao et al., 2022), grouped queries (Ainslie et al.,
// 2023), runs of pages that may be computed apart (flash decoding; Dao et al., 2023). A task is one KV head of a few
// tokens of a span: its rows, the tokens' queries of that head's group, pass over the pages together, so that keys
// and values are read once for all of them.
#include "attention.h"

#include <math.h>
#include <string.h>

#include "rope.h"

typedef struct view {
    const fl_model *m;
    fl_scratch *s;
    const fl_span *spans;
    size_t n_spans;
    size_t layer;
    const fl_layer *l;
    const float *cos, *sin;  // (tokens, rotary_dim / 2); NULL where the layer does not rotate
    size_t head_dim, stride; // channels of a head, and rounded up to 16
    size_t group, heads;     // query heads of a KV head; how many of them a task takes
    size_t parts;            // tasks of a KV head, that its group takes
    size_t tokens;           // of a task at most
} view;

// Where keys and values of a head lie in a page, in bytes.
static size_t keys_at(const view *v, size_t head) {
    const fl_type type = v->m->kv_type;
    return (v->layer * v->m->config.n_kv_heads + head) *
           (fl_keys_bytes(type, v->head_dim) + fl_values_bytes(type, v->head_dim));
}

static size_t values_at(const view *v, size_t head) {
    return keys_at(v, head) + fl_keys_bytes(v->m->kv_type, v->head_dim);
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

// Infinities of a key or value become NaN before it is stored: a key's product with a query may be -infinity, which weighs
// 0 as if the position were not there.
static void infinity_to_nan(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] -= x[i] - x[i];
}

// The nearest f16 that is finite, of numbers; NaN stays.
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

// A key or value as int8, whose channels lie `step` apart at `out`, and its scales, as far apart at `scales`.
static void store_q8(const view *v, fl_lane_scratch *lane, const float *x, size_t step, int8_t *out, float *scales) {
    const size_t padded = fl_round_up(v->head_dim, FL_GROUP);
    if (x != lane->key) memcpy(lane->key, x, v->head_dim * sizeof(float));
    memset(lane->key + v->head_dim, 0, (padded - v->head_dim) * sizeof(float));
    v->m->kernels->quantize(lane->key, padded, lane->q8, 1, 0);
    for (size_t i = 0; i < v->head_dim; i++) out[i * step] = lane->q8[i / FL_GROUP].q[i % FL_GROUP];
    for (size_t g = 0; g < padded / FL_GROUP; g++) scales[g * step] = lane->q8[g].scale;
}

// Token `row` of the batch becomes position `pos` of its sequence, for one KV head.
static void store(const view *v, fl_lane_scratch *lane, size_t row, void *page, size_t pos, size_t head) {
    const size_t slot = pos % FL_PAGE, at = head * v->head_dim, n = v->head_dim, stride = v->stride;
    float *key = lane->key, *value = v->s->v + row * v->s->kv_dim + at;
    char *keys = (char *)page + keys_at(v, head), *values = (char *)page + values_at(v, head);
    turn(v, v->s->k + row * v->s->kv_dim, at, v->l->k_norm, row, key);
    infinity_to_nan(key, n);
    infinity_to_nan(value, n);
    if (v->m->kv_type == FL_F32) {
        for (size_t i = 0; i < n; i++) ((float *)(void *)keys)[i * FL_PAGE + slot] = key[i];
        memcpy((float *)(void *)values + slot * stride, value, n * sizeof(float));
        return;
    }
    saturate(key, n);
    saturate(value, n);
    if (v->m->kv_type == FL_Q8) {
        const size_t groups = (n + FL_GROUP - 1) / FL_GROUP;
        store_q8(v, lane, key, FL_PAGE, (int8_t *)keys + slot, (float *)(void *)(keys + n * FL_PAGE) + slot);
        store_q8(v, lane, value, 1, (int8_t *)values + slot * stride,
                 (float *)(void *)(values + FL_PAGE * stride) + slot * groups);
        return;
    }
    v->m->kernels->to_f16(lane->half, key, n);
    for (size_t i = 0; i < n; i++) ((uint16_t *)(void *)keys)[i * FL_PAGE + slot] = lane->half[i];
    v->m->kernels->to_f16((uint16_t *)(void *)values + slot * stride, value, n);
}

// The token at `pos` of a span sees positions [seen_from, seen_to): with a window those less than its size away from it,
// and of those, in a causal model, none that comes later.
static size_t seen_from(const view *v, size_t pos) {
    const size_t window = v->l->window;
    return window > 0 && pos + 1 > window ? pos + 1 - window : 0;
}

static size_t seen_to(const view *v, const fl_span *span, size_t pos) {
    if (v->m->config.causal) return pos + 1;
    const size_t end = span->pos + span->n;
    return v->l->window > 0 ? smaller(pos + v->l->window, end) : end;
}

// A task: queries of tokens [t0, t1) of a span, whose first token is row `row` of the batch, heads [h0, h1) of the KV
// head's group. They see positions from `begin` (a multiple of 64) to `end`.
typedef struct task {
    const fl_span *span;
    size_t row, t0, t1, kv_head, h0, h1, rows;
    size_t begin, end;
    float *maps; // the span's
} task;

// The tasks of all spans in their order; the longest of a span, its last tokens, first.
typedef struct tasks {
    const view *v;
    size_t span, row, tile, part; // of the next one; tiles are counted from the span's end
    float *maps;
} tasks;

static int next_task(tasks *all, task *k) {
    const view *v = all->v;
    if (all->span == v->n_spans) return 0;
    const fl_span *span = &v->spans[all->span];
    const fl_config *c = &v->m->config;
    const size_t tiles = (span->n + v->tokens - 1) / v->tokens, t0 = (tiles - 1 - all->tile) * v->tokens;
    const size_t h0 = all->part % v->parts * v->heads;
    *k = (task){.span = span, .row = all->row, .t0 = t0, .t1 = smaller(t0 + v->tokens, span->n), .maps = all->maps,
                .kv_head = all->part / v->parts, .h0 = h0, .h1 = smaller(h0 + v->heads, v->group)};
    k->rows = (k->t1 - k->t0) * (k->h1 - k->h0);
    k->begin = seen_from(v, span->pos + k->t0) / FL_PAGE * FL_PAGE;
    k->end = seen_to(v, span, span->pos + k->t1 - 1);
    if (++all->part < c->n_kv_heads * v->parts) return 1;
    all->part = 0;
    if (++all->tile < tiles) return 1;
    all->tile = 0;
    all->row += span->n;
    if (all->maps) all->maps += c->n_heads * span->n * (span->pos + span->n);
    all->span++;
    return 1;
}

static size_t runs_of(const task *k) { return (k->end - 1) / FL_RUN - k->begin / FL_RUN + 1; }

// Normed, rotated and scaled queries of a task, and what they see.
static void prepare_rows(const view *v, fl_lane_scratch *lane, const task *k) {
    const fl_config *c = &v->m->config;
    const size_t heads = k->h1 - k->h0, first_head = k->kv_head * v->group + k->h0;
    for (size_t r = 0; r < k->rows; r++) {
        const size_t t = k->t0 + r / heads, pos = k->span->pos + t, head = first_head + r % heads;
        float *q = lane->q + r * v->stride;
        turn(v, v->s->q + (k->row + t) * v->s->q_dim, head * v->head_dim, v->l->q_norm, k->row + t, q);
        for (size_t i = 0; i < v->head_dim; i++) q[i] *= c->attn_scale;
        lane->from[r] = seen_from(v, pos);
        lane->limit[r] = seen_to(v, k->span, pos);
    }
}

// A task's positions [begin, end) for the kernels, and where the results go: max, sum (rows) and out (rows, stride).
static fl_attend attend_call(const view *v, const fl_lane_scratch *lane, const task *k, size_t begin, size_t end,
                             float *max, float *sum, float *out) {
    return (fl_attend){
        .rows = k->rows,
        .head_dim = v->head_dim,
        .stride = v->stride,
        .q = lane->q,
        .from = lane->from,
        .limit = lane->limit,
        .begin = begin,
        .end = end,
        .pages = k->span->pages,
        .keys = keys_at(v, k->kv_head),
        .values = values_at(v, k->kv_head),
        .mask = v->m->config.pad_token >= 0 ? fl_kv_mask(v->m) : 0,
        .softcap = v->m->config.attn_softcap,
        .work = lane->attend,
        .max = max,
        .sum = sum,
        .out = out,
    };
}

static void write_out(const view *v, const task *k, const float *sum, const float *out) {
    const size_t heads = k->h1 - k->h0, first_head = k->kv_head * v->group + k->h0;
    for (size_t r = 0; r < k->rows; r++) {
        float *to = v->s->att + (k->row + k->t0 + r / heads) * v->s->q_dim + (first_head + r % heads) * v->head_dim;
        for (size_t i = 0; i < v->head_dim; i++) to[i] = out[r * v->stride + i] / sum[r];
    }
}

// The probabilities of a task's rows into the span's maps, (n_heads, n, pos + n).
static void write_maps(const view *v, const fl_lane_scratch *lane, const task *k) {
    const size_t heads = k->h1 - k->h0, all = k->span->pos + k->span->n;
    for (size_t start = 0; start < all; start += FL_PAGE) {
        const fl_attend a = attend_call(v, lane, k, start, smaller(start + FL_PAGE, all), lane->max, lane->sum, NULL);
        v->m->kernels->probabilities[v->m->kv_type](&a, lane->map);
        for (size_t r = 0; r < a.rows; r++) {
            const size_t head = k->kv_head * v->group + k->h0 + r % heads, t = k->t0 + r / heads;
            memcpy(k->maps + (head * k->span->n + t) * all + start, lane->map + r * FL_PAGE,
                   (a.end - start) * sizeof(float));
        }
    }
}

static void run_task(const view *v, fl_lane_scratch *lane, const task *k) {
    prepare_rows(v, lane, k);
    const fl_attend a = attend_call(v, lane, k, k->begin, k->end, lane->max, lane->sum, lane->out);
    v->m->kernels->attend[v->m->kv_type](&a);
    write_out(v, k, lane->sum, lane->out);
    if (k->maps) write_maps(v, lane, k);
}

// The keys and values of all tokens. Threads take half a page of a head each: whole cache lines of keys.
static void store_all(const view *v, fl_lane_scratch *lane, const fl_team *team, size_t id) {
    enum { PIECE = FL_PAGE / 2 };
    size_t row = 0, number = 0;
    for (const fl_span *span = v->spans; span < v->spans + v->n_spans; row += span->n, span++)
        for (size_t pos = span->pos, end; pos < span->pos + span->n; pos = end) {
            end = smaller((pos / PIECE + 1) * PIECE, span->pos + span->n);
            for (size_t head = 0; head < v->m->config.n_kv_heads; head++) {
                if (number++ % team->threads != id) continue;
                for (size_t p = pos; p < end; p++)
                    store(v, lane, row + p - span->pos, span->pages[p / FL_PAGE], p, head);
            }
        }
}

// Where a task's run `i`, whose tasks before it have `rows` rows times runs, leaves its results until they are merged.
static float *partial_at(const view *v, size_t rows) { return v->s->partial + rows * (v->stride + 2); }

// The first run's results, with those of the others merged into them.
static void merge_runs(const view *v, const task *k, size_t rows) {
    float *first = partial_at(v, rows), *out = first + 2 * k->rows;
    for (size_t i = 1; i < runs_of(k); i++) {
        const float *next = partial_at(v, rows + i * k->rows);
        v->m->kernels->merge(k->rows, v->stride, first, first + k->rows, out, next, next + k->rows, next + 2 * k->rows);
    }
    write_out(v, k, first + k->rows, out);
}

// What threads take at a time: whole tasks, or, where there are few of them and they are long, runs of tasks.
typedef struct pieces {
    tasks all;
    int apart;
    float *maps;
    task k;             // the task of the last piece that was found
    size_t first, count; // the number of its first piece, and how many it has
    size_t rows;        // rows times runs of the tasks before it
} pieces;

// Goes on to the next task; 0 after the last.
static int next_pieces(pieces *p) {
    p->first += p->count;
    p->rows += p->count * p->k.rows;
    if (!next_task(&p->all, &p->k)) return 0;
    p->count = p->apart ? runs_of(&p->k) : 1;
    return 1;
}

// The task of piece `number`; mostly it comes after those found before.
static void find_piece(pieces *p, size_t number) {
    if (number < p->first) *p = (pieces){.all = {.v = p->all.v, .maps = p->maps}, .apart = p->apart, .maps = p->maps};
    while (number >= p->first + p->count && next_pieces(p)) {}
}

// Run i of a task, to where it waits to be merged.
static void run_piece(const view *v, fl_lane_scratch *lane, const task *k, size_t i, size_t rows) {
    const size_t run = k->begin / FL_RUN + i;
    float *to = partial_at(v, rows + i * k->rows);
    prepare_rows(v, lane, k);
    const fl_attend a = attend_call(v, lane, k, larger(k->begin, run * FL_RUN), smaller(k->end, (run + 1) * FL_RUN), to,
                                    to + k->rows, to + 2 * k->rows);
    v->m->kernels->attend[v->m->kv_type](&a);
}

void fl_attention(const fl_model *m, fl_scratch *s, const fl_span *spans, size_t n_spans, size_t layer, float *maps,
                  fl_team *team, size_t id) {
    const fl_config *c = &m->config;
    const fl_layer *l = &m->layers[layer];
    const size_t group = c->n_heads / c->n_kv_heads, heads = smaller(group, FL_ATTEND_ROWS);
    const view v = {
        .m = m,
        .s = s,
        .spans = spans,
        .n_spans = n_spans,
        .layer = layer,
        .l = l,
        .cos = l->rope > 0 ? s->cos[l->rope - 1] : NULL,
        .sin = l->rope > 0 ? s->sin[l->rope - 1] : NULL,
        .head_dim = c->head_dim,
        .stride = fl_round_up(c->head_dim, FL_LANES),
        .group = group,
        .heads = heads,
        .parts = (group + heads - 1) / heads,
        .tokens = FL_ATTEND_ROWS / heads,
    };
    fl_lane_scratch *lane = &s->lanes[id];
    // With one token a span and one task a KV head, the task stores that head's key and value itself: no need to wait
    // for other threads.
    int decode = v.parts == 1;
    for (size_t i = 0; i < n_spans; i++) decode = decode && spans[i].n == 1;
    if (!decode) {
        store_all(&v, lane, team, id);
        fl_barrier(team, id);
    }
    size_t longest = 0;
    pieces p = {.all = {.v = &v}, .apart = 1};
    while (next_pieces(&p)) longest = larger(longest, p.count);
    const int apart = team->threads > 1 && !maps && longest > 1 && p.rows <= s->partials;
    if (!apart)
        for (p = (pieces){.all = {.v = &v}}; next_pieces(&p);) {}

    fl_deal deal = fl_deal_start(team, id, p.first, 1);
    p = (pieces){.all = {.v = &v, .maps = maps}, .apart = apart, .maps = maps};
    for (size_t number, end; fl_deal_next(&deal, &number, &end);) {
        find_piece(&p, number);
        const task *k = &p.k;
        const int last = number + 1 == p.first + p.count;
        if (decode && last) store(&v, lane, k->row, k->span->pages[k->span->pos / FL_PAGE], k->span->pos, k->kv_head);
        if (apart) run_piece(&v, lane, k, number - p.first, p.rows);
        else run_task(&v, lane, k);
    }
    if (!apart) return;
    fl_barrier(team, id);
    size_t number = 0;
    for (p = (pieces){.all = {.v = &v}, .apart = 1}; next_pieces(&p);)
        if (number++ % team->threads == id) merge_runs(&v, &p.k, p.rows);
}
