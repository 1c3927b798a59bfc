// The pool of pages. It allocates slabs, each of pages of one kind. A slab without a page in use goes back to the
// system, but for one: so a text that comes and goes costs no allocation each time.
//
//   a page's number    | number of its slab: 20 bits | place in the slab: 12 bits |
//
//   a slab of 6 pages, of which 0, 1, 3 are in use:
//     place     0     1     2     3     4     5
//     word      1     2     4     1     5     6        of a page in use: how many references it has
//               ^     ^     |           ^     ^        of a free page: the next free one; 6: there is none
//             in use        +-----------+-----+        free = 2
#include "pages.h"

#include <stdlib.h>

enum { SLAB_BYTES = 4 << 20, PLACES = 1 << 12, MOST_SLABS = 1 << 20 };

typedef struct slab {
    struct slab *next, *previous; // in the list of its kind, while it has a free page
    size_t kind, number;
    char *data;      // its pages, one after the other
    size_t free;     // the first free place
    size_t used;     // how many places are in use
    uint32_t word[]; // one a place
} slab;

typedef struct kind_pages {
    size_t bytes;  // of a page
    size_t places; // pages of a slab
    slab *open;    // slabs in use that have a free page
} kind_pages;

struct fl_pool {
    size_t slab_bytes, places; // of every slab: memory, and the most that a kind has places
    slab **slabs;              // (n_slabs,) by their numbers; NULL: the number is free
    size_t n_slabs;
    slab *spare;               // a slab that is not in use, or NULL
    size_t used, limit;        // bytes of pages
    kind_pages kinds[];
};

size_t fl_kv_page_bytes(const fl_model *m, size_t kind) {
    return fl_page_mask(m, kind) + (m->config.pad_token >= 0 ? FL_PAGE * sizeof(float) : 0);
}

fl_status fl_pool_new(size_t kinds, const size_t *page_bytes, fl_pool **out) {
    fl_pool *pool = calloc(1, sizeof *pool + kinds * sizeof *pool->kinds);
    if (!pool) return FL_NO_MEMORY;
    pool->limit = SIZE_MAX;
    pool->slab_bytes = SLAB_BYTES;
    for (size_t i = 0; i < kinds; i++) {
        pool->kinds[i].bytes = fl_round_up(page_bytes[i], FL_ALIGN);
        if (pool->slab_bytes < pool->kinds[i].bytes) pool->slab_bytes = pool->kinds[i].bytes;
    }
    for (size_t i = 0; i < kinds; i++) {
        const size_t places = pool->slab_bytes / pool->kinds[i].bytes;
        pool->kinds[i].places = places < PLACES ? places : PLACES;
        if (pool->places < pool->kinds[i].places) pool->places = pool->kinds[i].places;
    }
    *out = pool;
    return FL_OK;
}

static void free_slab(slab *s) {
    fl_free(s->data);
    free(s);
}

void fl_pool_free(fl_pool *pool) {
    if (!pool) return;
    for (size_t i = 0; i < pool->n_slabs; i++)
        if (pool->slabs[i]) free_slab(pool->slabs[i]);
    if (pool->spare) free_slab(pool->spare);
    free(pool->slabs);
    free(pool);
}

void fl_pool_limit(fl_pool *pool, size_t bytes) { pool->limit = bytes; }

size_t fl_pool_used(const fl_pool *pool) { return pool->used; }

// ---- slabs ---------------------------------------------------------------------------------------------------------

static void link_slab(kind_pages *k, slab *s) {
    s->next = k->open;
    s->previous = NULL;
    if (k->open) k->open->previous = s;
    k->open = s;
}

static void unlink_slab(kind_pages *k, slab *s) {
    if (s->next) s->next->previous = s->previous;
    if (s->previous) s->previous->next = s->next;
    else k->open = s->next;
}

// A number that no slab has. FL_NO_MEMORY also where there are more slabs than numbers.
static fl_status free_number(fl_pool *pool, size_t *number) {
    for (*number = 0; *number < pool->n_slabs; ++*number)
        if (!pool->slabs[*number]) return FL_OK;
    if (pool->n_slabs == MOST_SLABS) return FL_NO_MEMORY;
    const size_t more = pool->n_slabs ? 2 * pool->n_slabs : 16;
    slab **slabs = realloc(pool->slabs, more * sizeof *slabs);
    if (!slabs) return FL_NO_MEMORY;
    for (size_t i = pool->n_slabs; i < more; i++) slabs[i] = NULL;
    pool->slabs = slabs;
    pool->n_slabs = more;
    return FL_OK;
}

static slab *new_slab(const fl_pool *pool) {
    slab *s = malloc(sizeof *s + pool->places * sizeof *s->word);
    if (!s) return NULL;
    s->data = fl_alloc(pool->slab_bytes);
    if (s->data) return s;
    free(s);
    return NULL;
}

// A slab of free pages for a kind that has no free page: the spare one, or a new one.
static fl_status open_slab(fl_pool *pool, size_t kind) {
    kind_pages *k = &pool->kinds[kind];
    size_t number;
    const fl_status status = free_number(pool, &number);
    if (status != FL_OK) return status;
    slab *s = pool->spare ? pool->spare : new_slab(pool);
    if (!s) return FL_NO_MEMORY;
    pool->spare = NULL;
    s->kind = kind;
    s->number = number;
    s->free = s->used = 0;
    for (size_t i = 0; i < k->places; i++) s->word[i] = (uint32_t)i + 1;
    pool->slabs[number] = s;
    link_slab(k, s);
    return FL_OK;
}

static void close_slab(fl_pool *pool, slab *s) {
    unlink_slab(&pool->kinds[s->kind], s);
    pool->slabs[s->number] = NULL;
    if (pool->spare) free_slab(s);
    else pool->spare = s;
}

// ---- pages ---------------------------------------------------------------------------------------------------------

static slab *slab_of(const fl_pool *pool, fl_page page) { return pool->slabs[page / PLACES]; }

fl_status fl_pool_take(fl_pool *pool, size_t kind, fl_page *page) {
    kind_pages *k = &pool->kinds[kind];
    if (pool->used > pool->limit || k->bytes > pool->limit - pool->used) return FL_NO_PAGES;
    if (!k->open) {
        const fl_status status = open_slab(pool, kind);
        if (status != FL_OK) return status;
    }
    slab *s = k->open;
    const size_t place = s->free;
    s->free = s->word[place];
    s->word[place] = 1;
    if (++s->used == k->places) unlink_slab(k, s);
    pool->used += k->bytes;
    *page = (fl_page)(s->number * PLACES + place);
    return FL_OK;
}

void fl_pool_hold(fl_pool *pool, fl_page page) { slab_of(pool, page)->word[page % PLACES]++; }

size_t fl_pool_references(const fl_pool *pool, fl_page page) { return slab_of(pool, page)->word[page % PLACES]; }

void *fl_pool_data(const fl_pool *pool, fl_page page) {
    const slab *s = slab_of(pool, page);
    return s->data + page % PLACES * pool->kinds[s->kind].bytes;
}

void fl_pool_give(fl_pool *pool, fl_page page) {
    slab *s = slab_of(pool, page);
    kind_pages *k = &pool->kinds[s->kind];
    const size_t place = page % PLACES;
    if (--s->word[place] > 0) return;
    s->word[place] = (uint32_t)s->free;
    s->free = place;
    pool->used -= k->bytes;
    if (s->used-- == k->places) link_slab(k, s);
    if (s->used == 0) close_slab(pool, s);
}
