// Attention with an online softmax (Dao et al., 2022) over pages of 64 positions, with grouped queries (Ainslie et al.,
// 2023): several query heads share a KV head.
//
// A task is one KV head and a few tokens of a span. Its rows, the queries of those tokens in the heads that share the
// KV head, pass over the pages together, so that keys and values are read once for all of them.
//
// The kernels take a task's positions in runs of FL_RUN. Runs begin at multiples of FL_RUN of the sequence, not at a
// task's first position: how a batch is cut, and where a window begins, changes no run, and so no bit. With FL_RUN =
// 512 and a task that sees positions 300 to 1400:
//
//   position     0           512         1024        1536
//                |      .    |           |        .  |
//   runs                [ 0 ][     1    ][   2   ]        Each begins anew: a maximum of scores, the sum of
//                                                         e^(score - maximum), the sum of values so weighed.
//   merged in order:      (0 + 1) + 2
//
// So where tasks are few and long, workers take runs instead of tasks, leave the results in s->partial, and merge them
// in that same order after a barrier (flash decoding; Dao et al., 2023).
#include "attention.h"

#include <math.h>
#include <string.h>

#include "kv.h"
#include "pages.h"
#include "rope.h"

// One layer's attention, as one worker sees it.
typedef struct view {
    const fl_worker *w;
    const fl_model *m;
    fl_scratch *s;
    size_t layer;
    const fl_layer *l;
    const float *cos, *sin;  // (tokens, rotary_dim / 2); NULL where the layer does not rotate
    float *maps;             // where probabilities go, see fl_outputs; or NULL
    size_t head_dim, stride; // channels of a head, and rounded up to 16
    size_t sharing;          // query heads that share a KV head
    size_t heads, tokens;    // of a task, at most: query heads that share a KV head, and tokens of a span
    size_t parts;            // tasks for the query heads of a KV head
} view;

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static view view_of(const fl_worker *w, size_t layer) {
    const fl_forward_call *f = w->f;
    const fl_config *c = &f->m->config;
    const fl_layer *l = &f->m->layers[layer];
    const size_t sharing = c->n_heads / c->n_kv_heads, heads = smaller(sharing, FL_ATTEND_ROWS);
    return (view){
        .w = w,
        .m = f->m,
        .s = f->s,
        .layer = layer,
        .l = l,
        .cos = l->rope > 0 ? f->s->cos[l->rope - 1] : NULL,
        .sin = l->rope > 0 ? f->s->sin[l->rope - 1] : NULL,
        .maps = f->out->attention ? f->out->attention[layer] : NULL,
        .head_dim = c->head_dim,
        .stride = fl_round_up(c->head_dim, FL_LANES),
        .sharing = sharing,
        .heads = heads,
        .tokens = FL_ATTEND_ROWS / heads,
        .parts = (sharing + heads - 1) / heads,
    };
}

// ---- keys and values -----------------------------------------------------------------------------------------------

// The query or key that begins at channel `at` of x, a row of all heads, of the batch's token number `token`: normed
// and rotated, to out (head_dim,).
static void norm_and_rotate(const view *v, const float *x, size_t at, const float *norm, size_t token, float *out) {
    const fl_config *c = &v->m->config;
    const size_t half = c->rotary_dim / 2;
    x += at;
    if (c->qk_norm == FL_QK_HEAD)
        v->m->kernels->norm[c->norm](out, x, norm + at, NULL, v->head_dim, c->norm_eps);
    else
        memcpy(out, x, v->head_dim * sizeof(float));
    if (v->cos) fl_rope(out, v->cos + token * half, v->sin + token * half, half);
}

// Stores the key and value of the batch's token number `token` in a page, as position `pos` of its sequence, for one KV
// head.
static void store(const view *v, size_t token, void *page, size_t pos, size_t head) {
    const size_t at = head * v->head_dim;
    norm_and_rotate(v, v->s->k + token * v->s->kv_dim, at, v->l->k_norm, token, v->w->own->key);
    fl_kv_store(v->m, v->w->own, v->layer, head, v->s->v + token * v->s->kv_dim + at, page, pos % FL_PAGE);
}

// Stores the keys and values of all tokens. Workers take half a page of a head in turn: of keys that are floats these
// are whole cache lines, so that no two workers write to the same one.
static void store_all(const view *v) {
    enum { HALF = FL_PAGE / 2 };
    const fl_forward_call *f = v->w->f;
    size_t first = 0, number = 0;
    for (const fl_span *span = f->spans; span < f->spans + f->n_spans; first += span->n, span++)
        for (size_t pos = span->pos, end; pos < span->pos + span->n; pos = end) {
            end = smaller((pos / HALF + 1) * HALF, span->pos + span->n);
            for (size_t head = 0; head < v->m->config.n_kv_heads; head++) {
                if (number++ % v->w->team->threads != v->w->id) continue;
                for (size_t p = pos; p < end; p++)
                    store(v, first + p - span->pos, span->pages[v->l->kind][p / FL_PAGE], p, head);
            }
        }
}

// ---- tasks ---------------------------------------------------------------------------------------------------------

// The token at `pos` of a span sees positions [seen_from, seen_to): with a window those less than its size away, and in
// a causal model none after its own.
static size_t seen_from(const view *v, size_t pos) {
    const size_t window = v->l->window;
    return window > 0 && pos + 1 > window ? pos + 1 - window : 0;
}

static size_t seen_to(const view *v, const fl_span *span, size_t pos) {
    if (v->m->config.causal) return pos + 1;
    const size_t end = span->pos + span->n;
    return v->l->window > 0 ? smaller(pos + v->l->window, end) : end;
}

// Tokens [t0, t1) of a span at query heads [h0, h1), which share a KV head. Row r is a token and a head of these, the
// heads of a token side by side.
typedef struct task {
    const fl_span *span;
    size_t first; // the batch's number of the span's first token
    size_t t0, t1, h0, h1, kv_head, rows;
    size_t begin, end; // the positions that its rows see, begin rounded down to that of a page
    float *maps;       // the span's: (n_heads, n, pos + n); or NULL
} task;

static size_t token_of(const task *k, size_t row) { return k->t0 + row / (k->h1 - k->h0); }

static size_t head_of(const task *k, size_t row) { return k->h0 + row % (k->h1 - k->h0); }

static size_t runs_of(const task *k) { return (k->end - 1) / FL_RUN - k->begin / FL_RUN + 1; }

// All tasks of the batch, span by span. A span's last tokens come first: they see the most, and what takes longest
// should begin first.
typedef struct tasks {
    const view *v;
    size_t span, first; // of the next task: its span, and the batch's number of that span's first token
    size_t slice, part; // of the next task: its tokens, in slices of v->tokens counted from the end, and its heads
    size_t maps;        // floats of the maps of the spans before
} tasks;

static int next_task(tasks *all, task *k) {
    const view *v = all->v;
    const fl_forward_call *f = v->w->f;
    if (all->span == f->n_spans) return 0;
    const fl_span *span = &f->spans[all->span];
    const size_t slices = (span->n + v->tokens - 1) / v->tokens, t0 = (slices - 1 - all->slice) * v->tokens;
    const size_t kv_head = all->part / v->parts, part = all->part % v->parts;
    *k = (task){
        .span = span,
        .first = all->first,
        .t0 = t0,
        .t1 = smaller(t0 + v->tokens, span->n),
        .h0 = kv_head * v->sharing + part * v->heads,
        .h1 = kv_head * v->sharing + smaller((part + 1) * v->heads, v->sharing),
        .kv_head = kv_head,
        .maps = v->maps ? v->maps + all->maps : NULL,
    };
    k->rows = (k->t1 - k->t0) * (k->h1 - k->h0);
    k->begin = seen_from(v, span->pos + k->t0) / FL_PAGE * FL_PAGE;
    k->end = seen_to(v, span, span->pos + k->t1 - 1);
    if (++all->part < v->m->config.n_kv_heads * v->parts) return 1;
    all->part = 0;
    if (++all->slice < slices) return 1;
    all->slice = 0;
    all->first += span->n;
    all->maps += v->m->config.n_heads * span->n * (span->pos + span->n);
    all->span++;
    return 1;
}

// The queries of a task, normed, rotated and scaled, and what they see: into the worker's own scratch.
static void prepare_rows(const view *v, const task *k) {
    const fl_worker_scratch *own = v->w->own;
    for (size_t r = 0; r < k->rows; r++) {
        const size_t token = k->first + token_of(k, r), pos = k->span->pos + token_of(k, r);
        float *q = own->q + r * v->stride;
        norm_and_rotate(v, v->s->q + token * v->s->q_dim, head_of(k, r) * v->head_dim, v->l->q_norm, token, q);
        for (size_t i = 0; i < v->head_dim; i++) q[i] *= v->m->config.attn_scale;
        if (fl_kv_rounded(v->m->kv_type)) fl_kv_round_query(v->m, own, q, own->q8_rows + r * fl_groups(v->head_dim));
        own->from[r] = seen_from(v, pos);
        own->limit[r] = seen_to(v, k->span, pos);
    }
}

// A kernel's call for the positions [begin, end) of a task whose rows are prepared: max, sum (rows,), out (rows,
// stride).
static fl_attend attend_call(const view *v, const task *k, size_t begin, size_t end, float *max, float *sum,
                             float *out) {
    return (fl_attend){
        .rows = k->rows,
        .head_dim = v->head_dim,
        .stride = v->stride,
        .q = v->w->own->q,
        .q8 = v->w->own->q8_rows,
        .from = v->w->own->from,
        .limit = v->w->own->limit,
        .begin = begin,
        .end = end,
        .pages = k->span->pages[v->l->kind],
        .keys = fl_page_keys(v->m, v->layer, k->kv_head),
        .values = fl_page_values(v->m, v->layer, k->kv_head),
        .mask = v->m->config.pad_token >= 0 ? fl_page_mask(v->m, v->l->kind) : 0,
        .softcap = v->m->config.attn_softcap,
        .work = v->w->own->attend,
        .max = max,
        .sum = sum,
        .out = out,
    };
}

// The rows' sums of values, divided by their sums of weights, into s->att.
static void write_out(const view *v, const task *k, const float *sum, const float *out) {
    for (size_t r = 0; r < k->rows; r++) {
        float *to = v->s->att + (k->first + token_of(k, r)) * v->s->q_dim + head_of(k, r) * v->head_dim;
        for (size_t i = 0; i < v->head_dim; i++) to[i] = out[r * v->stride + i] / sum[r];
        if (fl_kv_rounded(v->m->kv_type)) fl_kv_turn_back(v->m, to);
    }
}

// The probabilities of a task's rows, page by page, into the span's maps. No row sees what lies before k->begin.
static void write_maps(const view *v, const task *k) {
    const fl_worker_scratch *own = v->w->own;
    const size_t all = k->span->pos + k->span->n;
    for (size_t r = 0; r < k->rows; r++)
        memset(k->maps + (head_of(k, r) * k->span->n + token_of(k, r)) * all, 0, k->begin * sizeof(float));
    for (size_t start = k->begin; start < all; start += FL_PAGE) {
        const fl_attend a = attend_call(v, k, start, smaller(start + FL_PAGE, all), own->max, own->sum, NULL);
        v->m->kernels->probabilities[v->m->kv_type](&a, own->map);
        for (size_t r = 0; r < a.rows; r++)
            memcpy(k->maps + (head_of(k, r) * k->span->n + token_of(k, r)) * all + start, own->map + r * FL_PAGE,
                   (a.end - start) * sizeof(float));
    }
}

static void attend_task(const view *v, const task *k) {
    const fl_worker_scratch *own = v->w->own;
    prepare_rows(v, k);
    const fl_attend a = attend_call(v, k, k->begin, k->end, own->max, own->sum, own->out);
    v->m->kernels->attend[v->m->kv_type](&a);
    write_out(v, k, own->sum, own->out);
    if (k->maps) write_maps(v, k);
}

// ---- runs ----------------------------------------------------------------------------------------------------------

// The partial results in s->partial, a record for each run of each task: max (rows,), sum (rows,), out (rows, stride).
// `before`: the rows of all records before this one, where a task has its rows once for each of its runs.
static float *partial_at(const view *v, size_t before) { return v->s->partial + before * (v->stride + 2); }

// Attends to run i of a task, whose first record comes after `before` rows.
static void attend_run(const view *v, const task *k, size_t i, size_t before) {
    const size_t run = k->begin / FL_RUN + i;
    const size_t begin = larger(k->begin, run * FL_RUN), end = smaller(k->end, (run + 1) * FL_RUN);
    float *to = partial_at(v, before + i * k->rows);
    prepare_rows(v, k);
    const fl_attend a = attend_call(v, k, begin, end, to, to + k->rows, to + 2 * k->rows);
    v->m->kernels->attend[v->m->kv_type](&a);
}

// Merges the runs of a task in order, into its first record, and writes it out.
static void merge_runs(const view *v, const task *k, size_t before) {
    float *first = partial_at(v, before), *out = first + 2 * k->rows;
    for (size_t i = 1; i < runs_of(k); i++) {
        const float *next = partial_at(v, before + i * k->rows);
        v->m->kernels->merge(k->rows, v->stride, first, first + k->rows, out, next, next + k->rows, next + 2 * k->rows);
    }
    write_out(v, k, first + k->rows, out);
}

// The items that are dealt out: tasks, or the runs of all tasks.
typedef struct items {
    tasks all;
    int runs;            // items are runs
    task k;              // the task of items [first, first + count)
    size_t first, count;
    size_t before;       // what partial_at takes for the task's first run
} items;

static items items_of(const view *v, int runs) { return (items){.all = {.v = v}, .runs = runs}; }

// Goes on to the next task's items. 0 after the last: then `first` and `before` are those of all items.
static int next_items(items *p) {
    p->first += p->count;
    p->before += p->count * p->k.rows;
    if (!next_task(&p->all, &p->k)) return 0;
    p->count = p->runs ? runs_of(&p->k) : 1;
    return 1;
}

static size_t count_items(const view *v, int runs) {
    items p = items_of(v, runs);
    while (next_items(&p)) {}
    return p.first;
}

// Goes to the task of item `number`. Mostly that comes after those found before; if not, this starts again.
static void find_item(items *p, size_t number) {
    if (number < p->first) *p = items_of(p->all.v, p->runs);
    while (number >= p->first + p->count && next_items(p)) {}
}

// Whether runs are dealt out: where some task has several, and the scratch has room for all partial results. Maps need
// a task's maximum and sum, which only a whole task has.
static int deals_runs(const view *v) {
    if (v->w->team->threads == 1 || v->maps) return 0;
    size_t longest = 0;
    items p = items_of(v, 1);
    while (next_items(&p)) longest = larger(longest, p.count);
    return longest > 1 && p.before <= v->s->partials;
}

// Merges the runs of this worker's share of the tasks.
static void merge_share(const view *v) {
    size_t number = 0;
    for (items p = items_of(v, 1); next_items(&p);)
        if (number++ % v->w->team->threads == v->w->id) merge_runs(v, &p.k, p.before);
}

// Whether each task can store its own token's key and value before it attends: with one token in every span and one
// task for every KV head no other task needs them, which saves a barrier.
static int tasks_store(const view *v) {
    const fl_forward_call *f = v->w->f;
    int single = v->parts == 1;
    for (size_t i = 0; i < f->n_spans; i++) single = single && f->spans[i].n == 1;
    return single;
}

void fl_attention(const fl_worker *w, size_t layer) {
    const view v = view_of(w, layer);
    const int stores = tasks_store(&v);
    if (!stores) {
        store_all(&v);
        fl_barrier(w->team, w->id);
    }
    const int runs = deals_runs(&v);
    items p = items_of(&v, runs);
    fl_deal deal = fl_deal_start(w->team, w->id, count_items(&v, runs), 1);
    for (size_t number, end; fl_deal_next(&deal, &number, &end);) {
        find_item(&p, number);
        const task *k = &p.k;
        const int last = end == p.first + p.count; // of the task's items: the only one that sees the token itself
        if (stores && last)
            store(&v, k->first, k->span->pages[v.l->kind][k->span->pos / FL_PAGE], k->span->pos, k->kv_head);
        if (runs) attend_run(&v, k, number - p.first, p.before);
        else attend_task(&v, k);
    }
    if (!runs) return;
    fl_barrier(w->team, w->id);
    merge_share(&v);
}
