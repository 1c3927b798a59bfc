// The pool of KV blocks: slabs of them, threaded on a free list.
#include <stdlib.h>

#include "kernels/kernels.h"

typedef struct slab {
    struct slab *next;
    void *blocks;
} slab;

// The link lies in the free block itself: what a block holds past its sequence's length, nobody reads.
typedef struct free_block {
    struct free_block *next;
} free_block;

struct fl_pool {
    size_t block_bytes, fresh; // fresh: blocks of the newest slab that were never handed out
    slab *slabs;
    free_block *free;
};

enum { SLAB_BYTES = 4 << 20 };

static size_t slab_blocks(const fl_pool *pool) {
    return pool->block_bytes < SLAB_BYTES ? SLAB_BYTES / pool->block_bytes : 1;
}

size_t fl_kv_block_bytes(const fl_model *m) {
    const fl_config *c = &m->config;
    const size_t head = fl_keys_bytes(m->kv_type, c->head_dim) + fl_values_bytes(m->kv_type, c->head_dim);
    return c->n_layers * c->n_kv_heads * head + (c->pad_token >= 0 ? FL_BLOCK * sizeof(float) : 0);
}

fl_status fl_pool_new(size_t block_bytes, fl_pool **out) {
    fl_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return FL_NO_MEMORY;
    pool->block_bytes = block_bytes;
    *out = pool;
    return FL_OK;
}

void fl_pool_free(fl_pool *pool) {
    if (!pool) return;
    for (slab *s = pool->slabs; s;) {
        slab *next = s->next;
        fl_free(s->blocks);
        free(s);
        s = next;
    }
    free(pool);
}

fl_status fl_pool_take(fl_pool *pool, void **block) {
    if (pool->free) {
        *block = pool->free;
        pool->free = pool->free->next;
        return FL_OK;
    }
    if (pool->fresh == 0) {
        slab *s = malloc(sizeof *s);
        if (!s) return FL_NO_MEMORY;
        s->blocks = fl_alloc(slab_blocks(pool) * pool->block_bytes);
        if (!s->blocks) {
            free(s);
            return FL_NO_MEMORY;
        }
        s->next = pool->slabs;
        pool->slabs = s;
        pool->fresh = slab_blocks(pool);
    }
    *block = (char *)pool->slabs->blocks + (slab_blocks(pool) - pool->fresh--) * pool->block_bytes;
    return FL_OK;
}

void fl_pool_give(fl_pool *pool, void *block) {
    free_block *f = block;
    f->next = pool->free;
    pool->free = f;
}
