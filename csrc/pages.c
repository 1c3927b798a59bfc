// The pool of pages. It allocates slabs, of several pages each with a free list of its own. Slabs without a page in use
// go back to the system, but for one: so a text that comes and goes costs no allocation each time.
#include "pages.h"

#include <stdlib.h>

// The list's link lies in the free page itself: a sequence reads nothing of a page that it has not written.
typedef struct free_page {
    struct free_page *next;
} free_page;

typedef struct slab {
    struct slab *next, *previous; // in the list it is in: open or full
    free_page *free; // pages that were given back
    size_t fresh;    // how many at the end were never handed out
    size_t used;     // how many are handed out
    char *pages;     // each with a pointer to its slab in the FL_ALIGN bytes before it
} slab;

struct fl_pool {
    size_t stride, slab_pages; // bytes from one page of a slab to the next; pages of a slab
    slab *open, *full;         // slabs in use, with and without a free page
    slab *spare;               // a slab that is not in use; or NULL
};

enum { SLAB_BYTES = 4 << 20 };

size_t fl_kv_page_bytes(const fl_model *m) {
    return fl_page_mask(m) + (m->config.pad_token >= 0 ? FL_PAGE * sizeof(float) : 0);
}

fl_status fl_pool_new(size_t page_bytes, fl_pool **out) {
    fl_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return FL_NO_MEMORY;
    pool->stride = fl_round_up(page_bytes, FL_ALIGN) + FL_ALIGN;
    pool->slab_pages = pool->stride < SLAB_BYTES ? SLAB_BYTES / pool->stride : 1;
    *out = pool;
    return FL_OK;
}

static void link_slab(slab **list, slab *s) {
    s->next = *list;
    s->previous = NULL;
    if (*list) (*list)->previous = s;
    *list = s;
}

static void unlink_slab(slab **list, slab *s) {
    if (s->next) s->next->previous = s->previous;
    if (s->previous)
        s->previous->next = s->next;
    else
        *list = s->next;
}

static void free_slab(slab *s) {
    fl_free(s->pages);
    free(s);
}

static void free_slabs(slab *s) {
    while (s) {
        slab *next = s->next;
        free_slab(s);
        s = next;
    }
}

void fl_pool_free(fl_pool *pool) {
    if (!pool) return;
    free_slabs(pool->open);
    free_slabs(pool->full);
    if (pool->spare) free_slab(pool->spare);
    free(pool);
}

static slab *new_slab(const fl_pool *pool) {
    slab *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->fresh = pool->slab_pages;
    s->pages = fl_alloc(pool->slab_pages * pool->stride);
    if (s->pages) return s;
    free(s);
    return NULL;
}

fl_status fl_pool_take(fl_pool *pool, void **page) {
    slab *s = pool->open;
    if (!s) {
        s = pool->spare ? pool->spare : new_slab(pool);
        if (!s) return FL_NO_MEMORY;
        pool->spare = NULL;
        link_slab(&pool->open, s);
    }
    if (s->free) {
        *page = s->free;
        s->free = s->free->next;
    } else {
        char *at = s->pages + (pool->slab_pages - s->fresh--) * pool->stride;
        *(slab **)at = s;
        *page = at + FL_ALIGN;
    }
    if (++s->used == pool->slab_pages) {
        unlink_slab(&pool->open, s);
        link_slab(&pool->full, s);
    }
    return FL_OK;
}

void fl_pool_give(fl_pool *pool, void *page) {
    slab *s = *(slab **)((char *)page - FL_ALIGN);
    free_page *f = page;
    f->next = s->free;
    s->free = f;
    if (s->used-- == pool->slab_pages) {
        unlink_slab(&pool->full, s);
        link_slab(&pool->open, s);
    }
    if (s->used > 0) return;
    unlink_slab(&pool->open, s);
    if (pool->spare)
        free_slab(s);
    else
        pool->spare = s;
}
