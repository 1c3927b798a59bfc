// Deals: every item once, however late a worker is, and no more traffic on the queues than one addition a chunk.
#include "threads.h"

#include <string.h>

#include "check.h"

enum { ITEMS = 300, PHASES = 12 };

typedef struct deals {
    size_t n[PHASES], chunk[PHASES];
    atomic_int times[PHASES][ITEMS]; // how often an item was dealt
    atomic_int wrong;                // chunks that are too long or too far
    atomic_int early;                // chunks dealt before all of the phase before were done
    size_t laggard;                  // a worker that begins each phase late
} deals;

static void deal_phases(void *arg, fl_team *team, size_t id) {
    deals *d = arg;
    for (size_t p = 0; p < PHASES; p++) {
        fl_deal deal = fl_deal_start(team, id, d->n[p], d->chunk[p]);
        if (id == d->laggard)
            for (volatile size_t i = 0; i < 2000; i++) {}
        for (size_t begin, end; fl_deal_next(&deal, &begin, &end);) {
            if (begin >= end || end > d->n[p] || end - begin > d->chunk[p]) atomic_fetch_add(&d->wrong, 1);
            for (size_t i = 0; p > 0 && i < d->n[p - 1]; i++)
                if (atomic_load(&d->times[p - 1][i]) != 1) atomic_fetch_add(&d->early, 1);
            for (size_t i = begin; i < end; i++) atomic_fetch_add(&d->times[p][i], 1);
        }
        fl_barrier(team, id);
    }
}

static void test_deals(void) {
    static deals d;
    for (size_t threads = 1; threads <= 8; threads++)
        for (size_t round = 0; round < 20; round++) {
            describe("deals to %zu threads", threads);
            memset(&d, 0, sizeof d);
            d.laggard = between(0, threads);
            for (size_t p = 0; p < PHASES; p++) {
                d.n[p] = between(0, p % 3 == 0 ? 5 : ITEMS);
                d.chunk[p] = between(1, 9);
            }
            fl_parallel(threads, deal_phases, &d);
            int once = 1;
            for (size_t p = 0; p < PHASES; p++)
                for (size_t i = 0; i < ITEMS; i++) once &= atomic_load(&d.times[p][i]) == (i < d.n[p]);
            expect(once, "each item is dealt once");
            expect(atomic_load(&d.wrong) == 0, "chunks are of the items, and no longer than asked for");
            expect(atomic_load(&d.early) == 0, "no phase begins before the one before has ended");
        }
}

// Simulates a deal to so many workers on this thread, each taking a chunk in turn. Returns how many additions the
// queues got.
static size_t additions(size_t workers, size_t n, size_t chunk) {
    static fl_queue queues[FL_TEAM];
    fl_team team = {.threads = workers, .queues = queues};
    fl_deal of[FL_TEAM];
    size_t left = workers, dealt = 0, added = 0;
    int busy[FL_TEAM];
    atomic_init(&team.phase, 1);
    for (size_t id = 0; id < workers; id++) {
        atomic_init(&queues[id].next, 0); // of the phase before
        busy[id] = 1;
    }
    for (size_t turn = 0; left > 0; turn++)
        for (size_t id = 0; id < workers; id++) {
            size_t begin, end;
            if (turn < id % 3 || !busy[id]) continue; // some are late
            if (turn == id % 3) of[id] = fl_deal_start(&team, id, n, chunk);
            busy[id] = fl_deal_next(&of[id], &begin, &end);
            if (busy[id]) dealt += end - begin;
            else left--;
        }
    for (size_t id = 0; id < workers; id++) added += (size_t)(atomic_load(&queues[id].next) & UINT32_MAX);
    expect(dealt == n, "all is dealt");
    return added;
}

static void test_additions(void) {
    static const size_t workers[] = {2, 16, 64, FL_TEAM};
    for (size_t i = 0; i < sizeof workers / sizeof *workers; i++)
        for (size_t n = 0; n < 2000; n = 3 * n + 1) {
            const size_t chunk = 4;
            size_t chunks = 0;
            for (size_t id = 0; id < workers[i]; id++)
                chunks += (n * (id + 1) / workers[i] - n * id / workers[i] + chunk - 1) / chunk;
            describe("deals of %zu items to %zu workers", n, workers[i]);
            expect(additions(workers[i], n, chunk) == chunks, "one addition for each chunk, and none to find nothing");
        }
}

void test_threads(void) {
    test_deals();
    test_additions();
}
