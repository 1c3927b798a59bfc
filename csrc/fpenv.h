// The mode of float arithmetic: round to nearest even, keep subnormal numbers, no traps. The process may have set
// another mode for a thread (a library built with -ffast-math does so when it is loaded), and results would differ.
//
// All float arithmetic of the core runs between fl_fpenv_set and fl_fpenv_restore. fl_parallel calls them on each of
// its threads; functions that compute without a team call them themselves.
#ifndef FL_FPENV_H
#define FL_FPENV_H

#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

typedef unsigned fl_fpenv; // MXCSR

static inline fl_fpenv fl_fpenv_set(void) {
    const fl_fpenv before = _mm_getcsr();
    _mm_setcsr(0x1f80); // the default: all exceptions masked, nothing else set
    return before;
}

static inline void fl_fpenv_restore(fl_fpenv before) { _mm_setcsr(before); }

#elif defined(__aarch64__) && !defined(_MSC_VER)

#include <stdint.h>

typedef uint64_t fl_fpenv; // FPCR

static inline fl_fpenv fl_fpenv_set(void) {
    fl_fpenv before;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(before)::"memory");
    __asm__ __volatile__("msr fpcr, %0" ::"r"((uint64_t)0) : "memory");
    return before;
}

static inline void fl_fpenv_restore(fl_fpenv before) { __asm__ __volatile__("msr fpcr, %0" ::"r"(before) : "memory"); }

#else

#include <fenv.h>

typedef fenv_t fl_fpenv;

static inline fl_fpenv fl_fpenv_set(void) {
    fl_fpenv before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    return before;
}

static inline void fl_fpenv_restore(fl_fpenv before) { fesetenv(&before); }

#endif

#endif
