// Trying out numbers of threads. A try takes the forwards of a few milliseconds, or one longer forward, and is compared
// with the time of as many forwards before it: the faster number stays. A failed try, and a try that corrects a team
// that was too large, is followed by a wait in proportion to what it has cost. So tries in each direction take at most
// 1 / (1 + PATIENCE) of the time, however long a forward is.
//
//     threads    4  4  4  4 | 3  3        3  3  3  3  3 | 4           | 3  3  3  3  3  3  3 | 4  4      4  4
//                a core is  | try: it     three threads  | try: it     | wait: 40 x what    | try: it   four
//                lost       | wins, stays                | fails, back | the try has cost   | wins      threads
#include "pace.h"

#include <stdlib.h>

static const double PATIENCE = 40; // a failed try is followed by a wait of so many times what it has cost
// In place of PATIENCE for the first tries with fewer threads that fail. Such a try may fail only because the system
// has not yet moved the remaining threads away from the busy core.
static const double HASTE = 5;
static const double START = 0.01;   // seconds of a try that do not count: threads fall asleep, or move to another core
static const double TRY = 0.02;     // seconds of a try that count: other processes' time slices take some milliseconds
static const double LATELY = 0.1;   // seconds of forwards that are averaged
static const double MARGIN = 0.005; // share of the time that counts as a difference
static const double LOSSES = 0.7;   // share of one thread's time that must be lost before fewer threads are tried

fl_status fl_pace_new(fl_pace **out) {
    *out = calloc(1, sizeof **out);
    return *out ? FL_OK : FL_NO_MEMORY;
}

void fl_pace_free(fl_pace *pace) { free(pace); }

static fl_pace_kind *kind_of(fl_pace *pace, size_t tokens) {
    size_t kind = 0;
    while (tokens > 1 && kind + 1 < FL_PACE_KINDS) tokens /= 2, kind++;
    return &pace->kinds[kind];
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// Runs on so many threads from now on.
static void settle(fl_pace_kind *k, size_t threads) {
    k->threads = threads;
    k->tried = 0;
    k->forwards = k->ran = k->lost = 0;
}

static void try_with(fl_pace_kind *k, size_t threads) {
    k->tried = threads;
    k->begun = k->cost = k->took = k->usual = 0;
}

size_t fl_pace_threads(fl_pace *pace, size_t tokens, size_t most) {
    if (most <= 1) return 1;
    fl_pace_kind *k = kind_of(pace, tokens);
    if (k->threads == 0) {
        settle(k, most);
        k->forwards = -1;
        k->fewer = (fl_pace_way){1, 0, HASTE};
        k->more = (fl_pace_way){1, 0, PATIENCE};
    }
    if (k->threads > most) settle(k, most), k->more.step = 1;
    if (k->tried > most) k->tried = 0;
    if (k->tried > 0) return k->tried;
    if (k->ran < TRY) return k->threads; // too short a time to compare a try with
    const int losing = k->lost * (double)k->threads > LOSSES * k->ran;
    if (losing && k->threads > 1 && k->fewer.wait <= 0)
        try_with(k, k->threads - smaller(k->fewer.step, k->threads / 2));
    else if (k->threads < most && k->more.wait <= 0)
        try_with(k, k->threads + smaller(k->more.step, most - k->threads));
    return k->tried > 0 ? k->tried : k->threads;
}

// Ends a try. Without a difference fewer threads win, since the others only wait. Steps grow while tries win, as they
// do when several cores have been lost, or are back.
static void conclude(fl_pace_kind *k) {
    const double saved = k->usual - k->took;
    const int more = k->tried > k->threads, won = saved > (more ? MARGIN : -MARGIN) * k->usual;
    fl_pace_way *way = more ? &k->more : &k->fewer, *back = more ? &k->fewer : &k->more;
    if (won) {
        way->step *= 2;
        back->step = 1;
        k->fewer.patience = HASTE;
        if (!more) k->more.wait = PATIENCE * k->ran * saved / k->usual; // as for a try: what the larger team had cost
        settle(k, k->tried);
    } else {
        way->step = 1;
        way->wait = LATELY + way->patience * k->cost;
        way->patience = 2 * way->patience < PATIENCE ? 2 * way->patience : PATIENCE;
        k->tried = 0;
    }
}

void fl_pace_note(fl_pace *pace, size_t tokens, size_t threads, double seconds, double lost) {
    fl_pace_kind *k = kind_of(pace, tokens);
    if (k->tried > 0 && threads == k->tried) {
        const double usual = k->ran / k->forwards;
        k->begun += seconds;
        k->cost += seconds - usual;
        if (k->begun > START) k->took += seconds, k->usual += usual;
        if (k->took >= TRY) conclude(k);
        return;
    }
    if (threads != k->threads) return; // fewer threads were asked for
    if (k->forwards < 0) {
        k->forwards = 0;
        return;
    }
    k->forwards++;
    k->ran += seconds;
    k->lost += lost;
    k->fewer.wait -= seconds;
    k->more.wait -= seconds;
    if (k->ran > LATELY) k->forwards /= 2, k->ran /= 2, k->lost /= 2;
}
