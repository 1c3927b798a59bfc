// Lays out the working memory of a forward.
#include "scratch.h"

#include <stdlib.h>

fl_status fl_scratch_new(fl_scratch **out) {
    *out = calloc(1, sizeof **out);
    return *out ? FL_OK : FL_NO_MEMORY;
}

void fl_scratch_free(fl_scratch *s) {
    if (!s) return;
    fl_free(s->memory);
    free(s);
}

// Hands out aligned parts of one allocation. Without a base it hands out NULL and only adds up sizes.
typedef struct carver {
    char *base;
    size_t used;
} carver;

static void *carve(carver *c, size_t count, size_t size) {
    void *p = c->base ? c->base + c->used : NULL;
    c->used += fl_round_up(count * size, FL_ALIGN);
    return p;
}

static size_t largest(size_t a, size_t b) { return a > b ? a : b; }

static void lay_out_routes(fl_routes *r, const fl_config *c, size_t t, size_t dim, carver *at) {
    const size_t rows = t * c->n_experts_used, experts = fl_round_up(c->n_experts, FL_LANES);
    // More than 8 rows of an expert are rounded up to 16s, to less than twice as many.
    const size_t places = 2 * rows * (c->precise ? 2 : 1);
    r->width = fl_round_up(c->expert_dim, FL_GROUP);
    r->scores = carve(at, t * experts, sizeof(float));
    r->sums = carve(at, t * (c->n_experts / FL_SUM_PART + 1), sizeof(float));
    r->expert = carve(at, rows, sizeof(int32_t));
    r->weight = carve(at, rows, sizeof(float));
    r->row = carve(at, rows, sizeof(size_t));
    r->begin = carve(at, c->n_experts + 1, sizeof(size_t));
    r->active = carve(at, c->n_experts, sizeof(size_t));
    r->x = carve(at, rows * dim, sizeof(float));
    r->bundles = carve(at, c->n_experts, sizeof(size_t));
    r->q8 = carve(at, fl_q8_bytes(dim / FL_GROUP, places), 1);
    r->gate = carve(at, rows * r->width, sizeof(float));
    r->hidden8 = carve(at, fl_q8_bytes(r->width / FL_GROUP, places), 1);
    r->out = carve(at, rows * dim, sizeof(float));
    r->shared = carve(at, t * FL_LANES, sizeof(float));
}

static void lay_out(fl_scratch *s, const fl_config *c, carver *at) {
    const size_t t = s->tokens, head = fl_round_up(c->head_dim, FL_LANES);
    const size_t groups = largest(s->dim, s->q_dim) / FL_GROUP, parts = c->precise ? 2 : 1;
    const size_t places = fl_round_up(t * parts, fl_bundle_width(t * parts));
    s->x = carve(at, t * s->dim, sizeof(float));
    s->y = carve(at, t * s->dim, sizeof(float));
    s->q = carve(at, t * s->q_dim, sizeof(float));
    s->k = carve(at, t * s->kv_dim, sizeof(float));
    s->v = carve(at, t * s->kv_dim, sizeof(float));
    s->att = carve(at, t * s->q_dim, sizeof(float));
    s->gate = carve(at, t * s->hidden, sizeof(float));
    s->hidden8 = carve(at, fl_q8_bytes(s->hidden / FL_GROUP, places), 1);
    s->norm = carve(at, t * s->dim, sizeof(float));
    s->q8 = carve(at, fl_q8_bytes(groups, places), 1);
    for (size_t i = 0; i < 2; i++) {
        s->cos[i] = carve(at, t * c->rotary_dim / 2, sizeof(float));
        s->sin[i] = carve(at, t * c->rotary_dim / 2, sizeof(float));
    }
    s->partial = carve(at, s->partials * (head + 2), sizeof(float));
    s->wanted = carve(at, t, sizeof(size_t));
    if (c->n_experts > 0) lay_out_routes(&s->routes, c, t, s->dim, at);
    s->workers = carve(at, s->threads, sizeof(fl_worker_scratch));
    for (size_t i = 0; i < s->threads; i++) {
        const fl_worker_scratch worker = {
            .norm = carve(at, s->dim, sizeof(float)),
            .q8 = carve(at, fl_q8_bytes(groups, parts), 1),
            .gate = carve(at, t * FL_CHUNK * FL_LANES, sizeof(float)),
            .up = carve(at, t * FL_CHUNK * FL_LANES, sizeof(float)),
            .q = carve(at, FL_ATTEND_ROWS * head, sizeof(float)),
            .out = carve(at, FL_ATTEND_ROWS * head, sizeof(float)),
            .key = carve(at, fl_round_up(c->head_dim, FL_GROUP), sizeof(float)),
            .attend = carve(at, fl_attend_floats(FL_ATTEND_ROWS, head), sizeof(float)),
            .map = carve(at, FL_ATTEND_ROWS * FL_PAGE, sizeof(float)),
            .max = carve(at, FL_ATTEND_ROWS, sizeof(float)),
            .sum = carve(at, FL_ATTEND_ROWS, sizeof(float)),
            .from = carve(at, FL_ATTEND_ROWS, sizeof(size_t)),
            .limit = carve(at, FL_ATTEND_ROWS, sizeof(size_t)),
            .half = carve(at, head, sizeof(uint16_t)),
            .bytes = carve(at, fl_round_up(c->head_dim, FL_GROUP), 1),
            .q8_rows = carve(at, FL_ATTEND_ROWS * fl_groups(c->head_dim), sizeof(fl_query)),
        };
        if (at->base) s->workers[i] = worker;
    }
}

fl_status fl_scratch_reserve(fl_scratch *s, const fl_model *m, size_t tokens, size_t threads) {
    const fl_config *c = &m->config;
    if (s->memory && tokens <= s->tokens && threads <= s->threads) return FL_OK;
    fl_scratch next = {
        .tokens = largest(tokens, s->tokens),
        .threads = largest(threads, s->threads),
        .dim = fl_round_up(c->dim, FL_GROUP),
        .q_dim = fl_round_up(c->n_heads * c->head_dim, FL_GROUP),
        .kv_dim = fl_round_up(c->n_kv_heads * c->head_dim, FL_GROUP),
        .hidden = fl_round_up(c->hidden_dim, FL_GROUP),
        .partials = 4 * c->n_heads * ((c->max_seq + FL_RUN - 1) / FL_RUN),
    };
    carver sizes = {0};
    lay_out(&next, c, &sizes);
    next.memory = fl_alloc(sizes.used);
    if (!next.memory) return FL_NO_MEMORY;
    carver parts = {.base = next.memory};
    lay_out(&next, c, &parts);
    fl_free(s->memory);
    *s = next;
    return FL_OK;
}
