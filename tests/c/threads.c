// Work that is dealt out to threads, and how many of them run.
#include "threads.h"

#include <string.h>

#include "check.h"

enum { ITEMS = 300, PHASES = 12 };

typedef struct deals {
    size_t n[PHASES], chunk[PHASES];
    atomic_int times[PHASES][ITEMS]; // how often an item was dealt
    atomic_int wrong;                // chunks that are too long or too far
    atomic_int early;                // chunks of a phase before the last one's were all done
    size_t laggard;                  // a thread that takes nothing until the others have had their chance
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

// A busy core: half of each of `times` forwards is lost.
static void lose(fl_pace *pace, size_t threads, size_t times) {
    for (size_t i = 0; i < times; i++) fl_pace_note(pace, threads, 0.03, 0.015);
}

static void test_pace(void) {
    fl_pace pace = {0};
    describe("pace");
    expect(fl_pace_threads(&pace, 8) == 8, "all threads, as long as none stalls");
    for (size_t i = 0; i < 1000; i++) fl_pace_note(&pace, 2, 0.001, i % 25 ? 0 : 0.004); // four milliseconds of 25
    expect(fl_pace_threads(&pace, 2) == 2, "a stall now and then costs less than a thread");
    fl_pace_note(&pace, 2, 0.004, 0.004);
    expect(fl_pace_threads(&pace, 2) == 2, "nor does one alone");
    lose(&pace, 8, 1);
    expect(fl_pace_threads(&pace, 8) == 7, "one less where much is lost");
    lose(&pace, 7, 1);
    expect(fl_pace_threads(&pace, 8) == 6, "two less after two");
    expect(fl_pace_threads(&pace, 2) == 1 && fl_pace_threads(&pace, 1) == 1, "but never none");
    const double first = pace.patience;
    pace.until = 0; // long ago
    expect(fl_pace_threads(&pace, 8) == 7, "one more is tried when it is time");
    pace.until = 1e18;
    lose(&pace, 7, 1);
    expect(pace.patience > first, "the next try waits longer where the last one failed");
    const size_t fewer = pace.fewer;
    lose(&pace, 1, 100);
    expect(pace.fewer == fewer, "a thread alone waits for nobody");
    for (size_t i = 0; i < 100 && fl_pace_threads(&pace, 3) > 1; i++) lose(&pace, fl_pace_threads(&pace, 3), 1);
    expect(fl_pace_threads(&pace, 3) == 1 && pace.patience < 1, "however much is lost");
}

void test_threads(void) {
    test_deals();
    test_pace();
}
