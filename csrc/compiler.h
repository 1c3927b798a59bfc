// What GCC, Clang and MSVC write differently.
#ifndef FL_COMPILER_H
#define FL_COMPILER_H

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif

#define FL_PRAGMA(x) _Pragma(#x)

#if defined(_MSC_VER) && !defined(__clang__)
#define FL_INLINE __forceinline
#define FL_RESTRICT __restrict
#define FL_UNROLL
#else
#define FL_INLINE inline __attribute__((always_inline))
#define FL_RESTRICT restrict
#ifdef __clang__
#define FL_UNROLL FL_PRAGMA(clang loop unroll(full))
#else
#define FL_UNROLL FL_PRAGMA(GCC unroll 16)
#endif
#endif

// The number of the lowest bit that is set in x, which is not 0.
static FL_INLINE unsigned fl_lowest_bit(unsigned long long x) {
#if defined(_MSC_VER) && !defined(__clang__)
    unsigned long i;
    _BitScanForward64(&i, x);
    return i;
#else
    return (unsigned)__builtin_ctzll(x);
#endif
}

// The compiler moves no access to memory across this.
#if defined(__GNUC__) || defined(__clang__)
#define FL_COMPILER_FENCE __asm__ volatile("" ::: "memory")
#else
#define FL_COMPILER_FENCE ((void)0)
#endif

// The vector x is computed here. GCC turns chains of integer additions into trees, whose leaves take all registers.
#if defined(__GNUC__) && !defined(__clang__)
#define FL_KEEP_ORDER(x) __asm__("" : "+x"(x))
#else
#define FL_KEEP_ORDER(x) ((void)0)
#endif

// Starts to fetch the cache line at p, into L1 or L2. It never faults: p may lie past the end of an array.
#if defined(__GNUC__) || defined(__clang__)
#define FL_PREFETCH(p) __builtin_prefetch((p), 0, 3)
#define FL_PREFETCH_L2(p) __builtin_prefetch((p), 0, 2)
#else
#define FL_PREFETCH(p) ((void)(p))
#define FL_PREFETCH_L2(p) ((void)(p))
#endif

#endif
