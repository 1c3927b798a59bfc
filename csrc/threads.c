// Teams on OpenMP: the barrier, dealing, paced forwards; and reading memory as fast as a machine can.
#include "threads.h"

#include <stdint.h>
#include <time.h>

#include "compiler.h"
#include "fork.h"
#include "fpenv.h"
#include "pace.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef _WIN32
#include <windows.h>
#else
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

static void relax(void) {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
    __asm__ __volatile__("yield");
#endif
}

static void yield_cpu(void) {
#ifdef _WIN32
    SwitchToThread();
#else
    sched_yield();
#endif
}

// The number of CPUs that this process may use now.
static size_t cpus(void) {
#ifdef _OPENMP
    return (size_t)omp_get_num_procs();
#else
    return 1;
#endif
}

double fl_now(void) {
#ifdef _WIN32
    LARGE_INTEGER ticks, frequency;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&frequency);
    return (double)ticks.QuadPart / (double)frequency.QuadPart;
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#endif
}

static const double ON_TIME = 300e-6; // seconds within which a thread that has a core begins, and reaches a barrier

// How many seconds a wait at a barrier is normal: workers finish a phase about the time of a chunk apart. A wait much
// longer than that means that another process has taken the core of a worker, for a time slice of some milliseconds.
// `spent`: seconds in which this worker has worked on so many chunks.
static double patience(double spent, size_t chunks) { return ON_TIME + (chunks > 0 ? 4 * spent / (double)chunks : 0); }

void fl_barrier(fl_team *team, size_t id) {
    enum { SPINS = 256 };
    if (team->threads == 1) return;
    fl_queue *mine = &team->queues[id];
    const size_t taken = mine->taken;
    mine->taken = 0;
    const size_t phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->waiting, 1, memory_order_acq_rel) + 1 == team->threads) {
        atomic_store_explicit(&team->waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
        return;
    }
    double start = 0;
    int stalled = 0; // a worker that we wait for does not run, and may need this very core
    for (size_t i = 1; atomic_load_explicit(&team->phase, memory_order_acquire) == phase; i++) {
        if (stalled) {
            yield_cpu(); // in a normal wait this would give another process a time slice
        } else if (i % SPINS) {
            relax();
        } else if (start == 0) {
            start = fl_now();
            stalled = team->crowded;
        } else if (fl_now() - start > patience(start - mine->begun, taken)) {
            stalled = 1;
        }
    }
    if (stalled)
        atomic_fetch_add_explicit(&team->lost, (uint64_t)((fl_now() - start) * 1e9), memory_order_relaxed);
}

fl_deal fl_deal_start(fl_team *team, size_t id, size_t n, size_t chunk) {
    const fl_deal deal = {.team = team, .n = n, .chunk = chunk, .id = id, .from = id};
    if (team->threads > 1) {
        const uint64_t phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
        team->queues[id].begun = fl_now();
        atomic_store_explicit(&team->queues[id].next, phase << 32, memory_order_relaxed);
    }
    return deal;
}

// Stops the team if what is watched says so.
static void look(fl_team *team) {
    const double seldom = 30e-3; // between two calls of ask
    const fl_watch *watch = team->watch;
    int stop = watch->flag && fl_cancel_is_set(watch->flag);
    if (watch->ask && !stop && fl_now() - team->asked > seldom) {
        stop = watch->ask(watch->arg);
        team->asked = fl_now(); // it may have taken long
    }
    if (stop) atomic_store_explicit(&team->stopped, 1, memory_order_relaxed);
}

int fl_deal_next(fl_deal *deal, size_t *begin, size_t *end) {
    fl_team *team = deal->team;
    if (deal->id == 0 && team->watch && team->chunks++ % team->every == 0) look(team);
    if (fl_stopped(team)) return 0;
    if (team->threads == 1) {
        *begin = deal->from;
        *end = deal->n - *begin < deal->chunk ? deal->n : *begin + deal->chunk;
        deal->from = *end;
        return *begin < *end;
    }
    const uint64_t first_chunk = (uint64_t)atomic_load_explicit(&team->phase, memory_order_relaxed) << 32;
    for (; deal->from < deal->id + team->threads; deal->from++) {
        const size_t owner = deal->from % team->threads;
        size_t first, last;
        fl_share(deal->n, team, owner, &first, &last);
        // Reads a queue before it adds to it: an addition takes the cache line away from all other cores, and at the
        // end of a phase each of T workers looks at T queues. A queue still tagged with an older phase belongs to a
        // worker that has not started this phase: the difference is huge, and the share is passed over.
        const size_t chunks = (last - first + deal->chunk - 1) / deal->chunk;
        atomic_uint_least64_t *next = &team->queues[owner].next;
        if (atomic_load_explicit(next, memory_order_relaxed) - first_chunk >= chunks) continue;
        const uint64_t at = atomic_fetch_add_explicit(next, 1, memory_order_relaxed) - first_chunk;
        if (at >= chunks) continue;
        *begin = first + (size_t)at * deal->chunk;
        *end = last - *begin < deal->chunk ? last : *begin + deal->chunk;
        team->queues[deal->id].taken++;
        return 1;
    }
    return 0;
}

double fl_parallel(size_t threads, fl_work *work, void *arg) {
    fl_queue queues[FL_TEAM];
    fl_team team = {.threads = 1, .queues = queues};
    atomic_init(&team.waiting, 0);
    atomic_init(&team.phase, 0);
    atomic_init(&team.lost, 0);
    atomic_init(&team.stopped, 0);
#ifdef _OPENMP
    if (threads > FL_TEAM) threads = FL_TEAM;
    if (threads > 1 && fl_can_lead()) {
        for (size_t i = 0; i < threads; i++) {
            atomic_init(&queues[i].next, (uint64_t)UINT32_MAX << 32); // a phase that never comes
            queues[i].taken = 0;
        }
        const double start = fl_now();
        double late = 0; // seconds until all threads had begun: `single` ends when they have
#pragma omp parallel num_threads((int)threads)
        {
            // The runtime may start fewer threads than we ask for.
#pragma omp single
            {
                team.threads = (size_t)omp_get_num_threads();
                team.crowded = team.threads > cpus();
            }
            const size_t id = (size_t)omp_get_thread_num();
            const fl_fpenv before = fl_fpenv_set();
            if (id == 0) late = fl_now() - start;
            work(arg, &team, id);
            fl_barrier(&team, id); // a wait here is measured; one at the runtime's own barrier would not be
            fl_fpenv_restore(before);
        }
        if (team.threads == 1) return 0;
        return 1e-9 * (double)atomic_load(&team.lost) / (double)(team.threads - 1) + (late > ON_TIME ? late : 0);
    }
#else
    (void)threads;
#endif
    const fl_fpenv before = fl_fpenv_set();
    work(arg, &team, 0);
    fl_fpenv_restore(before);
    return 0;
}

// ---- pace ----------------------------------------------------------------------------------------------------------

void fl_paced(fl_pace *pace, size_t tokens, size_t threads, fl_work *work, void *arg, const int *left) {
    if (!pace || threads <= 1) {
        fl_parallel(threads, work, arg);
        return;
    }
    const size_t there = cpus(), most = threads < there ? threads : there;
    const int busy = atomic_exchange(&pace->busy, 1);
    const size_t allowed = busy ? most : fl_pace_threads(pace, tokens, most);
    const double begun = fl_now(), lost = fl_parallel(allowed, work, arg);
    if (busy) return;
    if (!left || !*left) fl_pace_note(pace, tokens, allowed, fl_now() - begun, lost);
    atomic_store(&pace->busy, 0);
}

int fl_has_threads(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

// ---- reading memory ------------------------------------------------------------------------------------------------

typedef struct reading {
    const uint64_t *words;
    size_t n;
    atomic_uint_least64_t sum;
} reading;

// One stream of reads does not fill a memory bus. Eight streams in turn, each fetched a KiB ahead, are 45 % faster;
// more than eight are slower again. LINE: words of 8 bytes in a cache line. AHEAD: cache lines.
enum { STREAMS = 8, LINE = 8, AHEAD = 16 };

static void read_share(void *arg, fl_team *team, size_t id) {
    reading *r = arg;
    size_t begin, end;
    fl_share(r->n / LINE, team, id, &begin, &end);
    const size_t lines = (end - begin) / STREAMS; // of each stream
    const uint64_t *words = r->words + begin * LINE;
    uint64_t sum[LINE] = {0};
    for (size_t i = 0; i < lines; i++)
        for (size_t s = 0; s < STREAMS; s++) {
            const uint64_t *p = words + (s * lines + i) * LINE;
            FL_PREFETCH(p + AHEAD * LINE);
            for (size_t j = 0; j < LINE; j++) sum[j] += p[j];
        }
    for (size_t i = lines * STREAMS * LINE; i < (end - begin) * LINE; i++) sum[i % LINE] += words[i];
    uint64_t total = 0;
    for (size_t j = 0; j < LINE; j++) total += sum[j];
    atomic_fetch_add(&r->sum, total);
}

uint64_t fl_read(const void *p, size_t bytes, size_t threads) {
    reading r = {.words = p, .n = bytes / 8};
    atomic_init(&r.sum, 0);
    fl_parallel(threads, read_share, &r);
    return atomic_load(&r.sum);
}
