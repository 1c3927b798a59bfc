// Numbers of threads, in simulated time: how long a forward takes is arithmetic here.
#include "pace.h"

#include <stdlib.h>

#include "check.h"

// A machine of which so many cores are free; other processes take half of the time of the others. A forward takes `one`
// seconds on one thread. A team that is larger than the free cores waits for the threads that share a core.
typedef struct machine {
    double one;
    size_t free;
} machine;

static double forward(const machine *m, fl_pace *pace, size_t tokens, size_t most) {
    const size_t threads = fl_pace_threads(pace, tokens, most);
    expect(threads >= 1 && threads <= most, "one thread or more, and no more than asked for");
    const int stops = threads > m->free;
    const double seconds = stops ? 2 * m->one / (double)m->free : m->one / (double)threads;
    fl_pace_note(pace, tokens, threads, seconds, stops ? 0.6 * seconds : 0);
    return seconds;
}

// Runs at least so many forwards and so many seconds. Returns their time relative to what the free cores alone would
// take.
static double run(const machine *m, fl_pace *pace, size_t tokens, size_t most, double forwards, double seconds) {
    const double best = m->one / (double)(m->free < most ? m->free : most);
    double time = 0, count = 0;
    while (count < forwards || time < seconds) time += forward(m, pace, tokens, most), count++;
    return time / (count * best);
}

static fl_pace *new_pace(void) {
    fl_pace *pace;
    if (fl_pace_new(&pace)) abort();
    return pace;
}

static void test_lost_cores(size_t most, size_t left, double one) {
    machine m = {one, most};
    fl_pace *pace = new_pace();
    describe("pace: %zu of %zu cores left, forwards of %g s", left, most, one);
    expect(run(&m, pace, 1, most, 100, 1) < 1.001, "all threads run as long as none stalls");
    m.free = left;
    run(&m, pace, 1, most, 100, 1);
    expect(run(&m, pace, 1, most, 500, 20) < 1.05, "tries cost 5 % of the time at most");
    m.free = most;
    run(&m, pace, 1, most, 200, 2);
    expect(run(&m, pace, 1, most, 100, 1) < 1.001, "cores that are back are used again");
    fl_pace_free(pace);
}

// A core that is lost and back every five seconds.
static void test_coming_and_going(void) {
    machine m = {0.004, 2};
    fl_pace *pace = new_pace();
    double time = 0, best = 0;
    describe("pace: a core comes and goes");
    for (size_t i = 0; i < 50000; i++) {
        m.free = (size_t)(time / 5) % 2 ? 1 : 2;
        time += forward(&m, pace, 1, 2);
        best += m.one / (double)m.free;
    }
    expect(time < 1.2 * best, "a change every five seconds is followed");
    fl_pace_free(pace);
}

static void test_small_losses(void) {
    fl_pace *pace = new_pace();
    describe("pace: small losses");
    for (size_t i = 0; i < 10000; i++) {
        expect(fl_pace_threads(pace, 1, 2) == 2, "four milliseconds of 25 cost less than a thread");
        fl_pace_note(pace, 1, 2, i % 25 ? 0.001 : 0.005, i % 25 ? 0 : 0.004);
    }
    fl_pace_free(pace);
    pace = new_pace();
    describe("pace: the first forward");
    for (size_t i = 0; i < 100; i++) {
        expect(fl_pace_threads(pace, 1, 8) == 8, "reads cold memory, which says nothing");
        fl_pace_note(pace, 1, 8, i ? 0.005 : 10, i ? 0 : 8);
    }
    fl_pace_free(pace);
}

static void test_kinds(void) {
    machine busy = {0.002, 1}, idle = {2, 4};
    fl_pace *pace = new_pace();
    describe("pace: kinds of forwards");
    run(&busy, pace, 1, 4, 1000, 1);
    expect(fl_pace_threads(pace, 1, 4) == 1, "one thread for tokens, where others are lost");
    expect(run(&idle, pace, 256, 4, 100, 1) == 1, "which teaches prompts nothing");
    expect(run(&busy, pace, 1, 4, 1000, 1) < 1.05, "nor do prompts teach tokens");
    expect(fl_pace_threads(pace, 1, 1) == 1, "one where one is asked for");
    for (size_t tokens = 0; tokens < 1000; tokens++)
        expect(fl_pace_threads(pace, tokens * tokens * tokens, 4) <= 4, "any number of tokens");
    expect(fl_pace_threads(pace, SIZE_MAX, 3) <= 3, "and the largest");
    busy.free = 8;
    run(&busy, pace, 1, 4, 1000, 1);
    const int better = run(&busy, pace, 1, 8, 1000, 1) < 1.1;
    expect(better && run(&busy, pace, 1, 8, 1000, 1) < 1.001, "more are asked for, and run");
    int both = 0;
    for (size_t i = 0; i < 100000; i++) { // three threads are asked for, then four, and so on
        forward(&busy, pace, 5, 3 + i / 50 % 2);
        both |= fl_pace_threads(pace, 5, 4) == 4;
    }
    expect(both, "three and four in turns");
    fl_pace_free(pace);
}

void test_pace(void) {
    static const double seconds[] = {1e-4, 1e-3, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.4, 2, 10};
    static const size_t most[] = {2, 3, 4, 8, 16, 64};
    for (size_t i = 0; i < sizeof most / sizeof *most; i++)
        for (size_t j = 0; j < sizeof seconds / sizeof *seconds; j++) {
            test_lost_cores(most[i], most[i] - 1, seconds[j]);
            test_lost_cores(most[i], (most[i] + 1) / 2, seconds[j]);
            test_lost_cores(most[i], 1, seconds[j]);
        }
    test_coming_and_going();
    test_small_losses();
    test_kinds();
}
