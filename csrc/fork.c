// What makes teams of threads work in a child of fork().
//
// A child has one thread, the copy of the one that called fork. GCC's OpenMP keeps the other threads of a team for the
// next one, in memory of the thread that leads it: the copy finds them there, none of which exists, and would wait for
// them for ever, in its next team or where it ends. So just before a fork the thread that calls it lets go of them. The
// next team, in the parent as in the child, begins with new threads, which takes some 50 us.
//
// Teams that other threads lead go on; they and their leaders are not in the child, and a thread that begins there knows
// of none. LLVM's OpenMP mends itself in a child, and takes it ill to be paused while others run. Windows has no fork.
#include "fork.h"

#if defined(_OPENMP) && !defined(_WIN32)

#include <omp.h>
#include <pthread.h>

// A thread that could not let go, such as one of a team itself, leads none in a child: it works alone there. This is kept
// for the thread, whoever it works for: its team is the runtime's, and fork asks no caller.
static _Thread_local int kept, alone;

#if defined(__clang__)
static int let_go(void) { return 1; }
#elif __GNUC__ < 9
static int let_go(void) { return 0; }
#else
// It is there where LLVM's runtime stands in for GCC's, as in conda's environments.
extern void __kmpc_fork_call(void) __attribute__((weak));

static int let_go(void) { return __kmpc_fork_call ? 1 : omp_pause_resource_all(omp_pause_hard) == 0; }
#endif

static void before_fork(void) { kept = !let_go(); }
static void in_child(void) { alone |= kept; }

// When the library is loaded: the first fork may come before the first team of ours.
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(before_fork, NULL, in_child); }

int fl_can_lead(void) { return !alone; }

#else

int fl_can_lead(void) { return 1; }

#endif
