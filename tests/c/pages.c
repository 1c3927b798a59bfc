// The pool of pages: what a page holds, references, the limit, and slabs that go back to the system.
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { KINDS = 3, PAGES = 80 };

typedef struct taken {
    fl_page page;
    size_t kind, references;
    unsigned char mark; // the first and last 8 bytes of its page
} taken;

static int holds_mark(const fl_pool *pool, const taken *t, size_t bytes) {
    const unsigned char *data = fl_pool_data(pool, t->page);
    for (size_t b = 0; b < 8; b++)
        if (data[b] != t->mark || data[bytes - 1 - b] != t->mark) return 0;
    return 1;
}

// Pages of several kinds that come, are shared and go at random: aligned, apart from each other, whole for as long as
// they have a reference, and never more of them than the limit allows.
static void test_history(const size_t *bytes, size_t most) {
    taken pages[PAGES];
    size_t n = 0, used = 0;
    fl_pool *pool;
    if (fl_pool_new(KINDS, bytes, &pool)) abort();
    const size_t largest = bytes[0] > bytes[1] ? bytes[0] : bytes[1], limit = most / 2 * fl_round_up(largest, FL_ALIGN);
    int ok = 1, whole = 1, counted = 1, limited = 1;
    for (size_t turn = 0; turn < 1200; turn++) {
        const size_t what = between(0, 9);
        fl_pool_limit(pool, turn % 300 < 150 ? SIZE_MAX : limit);
        if (n < most && (n == 0 || what < (turn % 100 < 50 ? 6u : 2u))) { // up to all of them and down to none
            taken t = {.kind = between(0, KINDS - 1), .references = 1, .mark = (unsigned char)(turn % 251)};
            const size_t size = fl_round_up(bytes[t.kind], FL_ALIGN);
            const int fits = turn % 300 < 150 || used + size <= limit;
            const fl_status status = fl_pool_take(pool, t.kind, &t.page);
            limited &= status == (fits ? FL_OK : FL_NO_PAGES);
            if (status != FL_OK) continue;
            unsigned char *data = fl_pool_data(pool, t.page);
            ok &= (uintptr_t)data % FL_ALIGN == 0;
            memset(data, t.mark, 8);
            memset(data + bytes[t.kind] - 8, t.mark, 8);
            used += size;
            pages[n++] = t;
        } else if (n > 0) {
            taken *t = &pages[between(0, n - 1)];
            whole &= holds_mark(pool, t, bytes[t->kind]);
            counted &= fl_pool_references(pool, t->page) == t->references;
            if (what % 2) {
                fl_pool_hold(pool, t->page);
                t->references++;
                continue;
            }
            fl_pool_give(pool, t->page);
            if (--t->references > 0) continue;
            used -= fl_round_up(bytes[t->kind], FL_ALIGN);
            *t = pages[--n];
        }
        counted &= fl_pool_used(pool) == used;
    }
    for (size_t i = 0; i < n; i++) whole &= holds_mark(pool, &pages[i], bytes[pages[i].kind]);
    expect(ok, "pages");
    expect(whole, "what a page holds");
    expect(counted, "references and bytes in use");
    expect(limited, "the limit");
    fl_pool_free(pool);
}

// Slabs that have no page in use any more go back: the pages of one kind are found again in memory of another's.
static void test_slabs(void) {
    const size_t bytes[] = {1 << 20, 2 << 20};
    enum { MANY = 40 };
    fl_page pages[MANY];
    fl_pool *pool;
    describe("slabs");
    if (fl_pool_new(2, bytes, &pool)) abort();
    int ok = 1;
    for (size_t round = 0; round < 50; round++) { // 40 MB each time: 2 GB if they stayed
        for (size_t i = 0; i < MANY; i++) {
            ok &= fl_pool_take(pool, round % 2, &pages[i]) == FL_OK;
            memset(fl_pool_data(pool, pages[i]), 1, 64);
        }
        ok &= fl_pool_used(pool) == MANY * bytes[round % 2];
        for (size_t i = 0; i < MANY; i++) fl_pool_give(pool, pages[(i * 7 + round) % MANY]);
        ok &= fl_pool_used(pool) == 0;
    }
    // The spare slab serves a kind that has less room in it, too.
    void *spare = NULL;
    for (size_t kind = 0; kind < 2; kind++) {
        ok &= fl_pool_take(pool, kind, &pages[0]) == FL_OK;
        spare = kind == 0 ? fl_pool_data(pool, pages[0]) : spare;
        expect(fl_pool_data(pool, pages[0]) == spare, "the spare slab");
        fl_pool_give(pool, pages[0]);
    }
    expect(ok, "slabs come and go");
    fl_pool_free(pool);
}

void test_pool(void) {
    static const size_t sizes[][KINDS] = {
        {64, 128, 64}, {1000, 64, 20000}, {300000, 1000, 64}, {2 << 20, 300000, 100}, {(4 << 20) + 64, 1 << 20, 4096}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        describe("pool of pages of %zu, %zu and %zu bytes", sizes[i][0], sizes[i][1], sizes[i][2]);
        test_history(sizes[i], sizes[i][0] < 100000 ? PAGES : 12);
    }
    test_slabs();
}
