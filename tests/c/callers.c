// Teams in the places they may be called from: threads whose mode of floats is not the default, and children of fork.
#include <string.h>

#include "check.h"
#include "fpenv.h"
#include "threads.h"

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

enum { MOST = 4 };

#if defined(__x86_64__) || defined(_M_X64)
#define ODD (0x1f80u | 0x8040u | 0x4000u) // subnormal numbers are zero, and sums are rounded up
#elif defined(__aarch64__) && !defined(_MSC_VER)
#define ODD ((uint64_t)1 << 24 | (uint64_t)1 << 22)
#endif

#ifdef ODD

#define MODE (~(fl_fpenv)0x3f) // without x86's flags of exceptions that have occurred

typedef struct modes {
    fl_fpenv of[MOST]; // each thread
    float tiny;        // half of the smallest normal number
} modes;

static void look(void *arg, fl_team *team, size_t id) {
    (void)team;
    modes *m = arg;
    volatile float x = 0x1p-126f;
    x *= 0.5f;
    if (id == 0) m->tiny = x;
    m->of[id] = fl_fpenv_set();
}

static void test_modes(void) {
    for (size_t threads = 1; threads <= MOST; threads++) {
        describe("modes of %zu threads", threads);
        const fl_fpenv usual = fl_fpenv_set();
        modes m = {.tiny = 0};
        for (size_t i = 0; i < MOST; i++) m.of[i] = usual;
        fl_fpenv_restore(ODD);
        fl_parallel(threads, look, &m);
        const fl_fpenv after = fl_fpenv_set();
        const float want = 0x1p-127f;
        expect((after & MODE) == ODD, "the caller's mode is as it was");
        expect(!memcmp(&m.tiny, &want, sizeof want), "subnormal numbers are kept");
        for (size_t i = 0; i < threads; i++)
            expect((m.of[i] & MODE) == (usual & MODE), "all threads compute in the default mode");
    }
}

#else
static void test_modes(void) {}
#endif

#ifndef _WIN32

static void count(void *arg, fl_team *team, size_t id) {
    if (id == 0) *(size_t *)arg = team->threads;
}

// Whether a child of fork has teams of `want` threads, and its own children too down to a depth; and the parent after
// it.
static int teams_in_children(size_t want, size_t depth) {
    const pid_t child = fork();
    if (child < 0) return 0;
    if (child == 0) {
        alarm(60); // ends a child that hangs
        size_t threads = 0;
        fl_parallel(MOST, count, &threads);
        _exit(threads == want && (depth == 0 || teams_in_children(want, depth - 1)) ? 0 : 1);
    }
    int status;
    size_t threads = 0;
    fl_parallel(MOST, count, &threads);
    return waitpid(child, &status, 0) == child && status == 0 && threads == want;
}

// Forks from the worker that leads the team, and from one that does not.
static void fork_inside(void *arg, fl_team *team, size_t id) {
    if (id > 1) return;
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        size_t threads = 0;
        fl_parallel(MOST, count, &threads);
        _exit(threads > 0 ? 0 : 1);
    }
    int status;
    if (child > 0 && waitpid(child, &status, 0) == child && status == 0) atomic_fetch_add((atomic_size_t *)arg, 1);
    (void)team;
}

static void test_forks(void) {
    describe("children of fork");
    size_t threads = 0;
    fl_parallel(MOST, count, &threads);
    for (size_t i = 0; i < 5; i++) expect(teams_in_children(threads, 2), "teams have their threads");
    atomic_size_t inside;
    atomic_init(&inside, 0);
    fl_parallel(MOST, fork_inside, &inside);
    expect(atomic_load(&inside) == (threads > 1 ? 2 : 1), "a worker may fork too");
}

#else
static void test_forks(void) {}
#endif

void test_callers(void) {
    test_modes();
    test_forks();
}
