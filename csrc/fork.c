// Makes teams of threads work in a child of fork().
//
// A child has one thread, a copy of the one that called fork. GCC's OpenMP keeps the threads of a team for the next
// team, in a list that belongs to the leading thread. In the child that list names threads that do not exist there, and
// the child's next team, or its exit, would wait for them for ever. So just before a fork the calling thread gives its
// pool up (omp_pause_resource_all). The next team, in the parent and in the child, starts new threads, which takes
// about 50 us.
//
// Teams that other threads lead are not disturbed: neither they nor their leaders exist in the child. LLVM's OpenMP
// repairs itself in a child, and must not be paused while its other threads run. Windows has no fork.
#include "fork.h"

#if defined(_OPENMP) && !defined(_WIN32)

#include <omp.h>
#include <pthread.h>

// kept: this thread could not give its pool up, for example because it is a worker of a team itself. alone: it is a
// copy of such a thread, in a child, and must not lead a team. Both belong to the thread, as OpenMP's pool does.
static _Thread_local int kept, alone;

#if defined(__clang__)
static int give_up_pool(void) { return 1; }
#elif __GNUC__ < 9
static int give_up_pool(void) { return 0; }
#else
// Only LLVM's runtime has this symbol. It may stand in for GCC's, as in conda's environments.
extern void __kmpc_fork_call(void) __attribute__((weak));

static int give_up_pool(void) { return __kmpc_fork_call ? 1 : omp_pause_resource_all(omp_pause_hard) == 0; }
#endif

static void before_fork(void) { kept = !give_up_pool(); }
static void in_child(void) { alone |= kept; }

// Runs when the library is loaded, since a fork may come before our first team.
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(before_fork, NULL, in_child); }

int fl_can_lead(void) { return !alone; }

#else

int fl_can_lead(void) { return 1; }

#endif
