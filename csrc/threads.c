#include "threads.h"

#include <stdint.h>

#include "compiler.h"
#include "fastllm.h"

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

void fl_barrier(fl_team *team) {
    enum { SPINS = 1000 }; // some microseconds: longer than a phase is uneven, shorter than a time slice
    if (team->threads == 1) return;
    const size_t round = atomic_load_explicit(&team->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->waiting, 1, memory_order_acq_rel) + 1 == team->threads) {
        atomic_store_explicit(&team->waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&team->round, round + 1, memory_order_release);
        return;
    }
    for (size_t i = 0; atomic_load_explicit(&team->round, memory_order_acquire) == round; i++) {
        if (i < SPINS)
            relax();
        else
            yield_cpu(); // the one we wait for may need this very core
    }
}

void fl_parallel(size_t threads, fl_work *work, void *arg) {
    fl_team team = {.threads = 1};
    atomic_init(&team.waiting, 0);
    atomic_init(&team.round, 0);
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads((int)threads)
        {
            // The runtime may grant fewer than we ask for.
#pragma omp single
            team.threads = (size_t)omp_get_num_threads();
            work(arg, &team, (size_t)omp_get_thread_num());
        }
        return;
    }
#else
    (void)threads;
#endif
    work(arg, &team, 0);
}

int fl_has_threads(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

// ---- reading memory ------------------------------------------------------------------------------------------------

typedef struct read_job {
    const uint64_t *words;
    size_t n;
    atomic_uint_least64_t sum;
} read_job;

static void read_part(void *arg, fl_team *team, size_t id) {
    read_job *job = arg;
    size_t begin, end;
    fl_share(job->n / 8, team, id, &begin, &end);
    uint64_t sum[8] = {0};
    for (size_t line = begin; line < end; line++) {
        const uint64_t *p = job->words + line * 8;
        FL_PREFETCH(p + 512);
        for (size_t j = 0; j < 8; j++) sum[j] += p[j];
    }
    uint64_t total = 0;
    for (size_t j = 0; j < 8; j++) total += sum[j];
    atomic_fetch_add(&job->sum, total);
}

uint64_t fl_read(const void *p, size_t bytes, size_t threads) {
    read_job job = {.words = p, .n = bytes / 8};
    atomic_init(&job.sum, 0);
    fl_parallel(threads, read_part, &job);
    return atomic_load(&job.sum);
}
