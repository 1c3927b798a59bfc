// The pool of pages.
#include <string.h>

#include "check.h"

// Pages that come and go: aligned, apart from each other, and whole for as long as they are taken.
void test_pool(void) {
    enum { PAGES = 64 };
    static const size_t sizes[] = {64, 1000, 300000, 2 << 20, (4 << 20) + 64};
    for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++) {
        const size_t bytes = sizes[j], most = bytes < 100000 ? PAGES : 9;
        fl_page pages[PAGES];
        size_t n = 0;
        fl_pool *pool;
        describe("pool of pages of %zu bytes", bytes);
        int ok = fl_pool_new(1, &bytes, &pool) == FL_OK, whole = 1;
        for (size_t turn = 0; ok && turn < 400; turn++) {
            // Up to all of them and down to none, several times.
            if (n < most && (n == 0 || between(0, 9) < (turn % 100 < 50 ? 8u : 2u))) {
                ok = fl_pool_take(pool, 0, &pages[n]) == FL_OK;
                unsigned char *data = fl_pool_data(pool, pages[n++]);
                ok = ok && (uintptr_t)data % FL_ALIGN == 0;
                memset(data, (int)(turn % 251), 8);
                memset(data + bytes - 8, (int)(turn % 251), 8);
            } else {
                const size_t i = between(0, n - 1);
                const unsigned char *data = fl_pool_data(pool, pages[i]);
                for (size_t b = 0; b < 8; b++) whole &= data[b] == data[bytes - 1 - b] && data[b] == data[0];
                fl_pool_give(pool, pages[i]);
                pages[i] = pages[--n];
            }
        }
        expect(ok, "pages");
        expect(whole, "what a page holds");
        fl_pool_free(pool);
    }
}

