// What the C tests share: counting, comparing with the scalar kernels and with plain loops, and inputs.
#ifndef CHECK_H
#define CHECK_H

#include "kernels/kernels.h"

// The instruction sets that this machine can run, scalar first.
extern const fl_kernels *isas[8];
extern size_t n_isas;

// Says which case is at hand, for the lines about what fails.
void describe(const char *format, ...);

void expect(int ok, const char *what);

// Number 0 is a scalar kernel's result: it is kept, and goes into the hash. Those after it must have its bits.
void same(size_t number, const char *who, const void *got, size_t bytes);

// The same of n floats, all NaN counting as one: its sign and payload depend on the order of operands.
void same_floats(size_t number, const char *who, const float *got, size_t n);

// Takes note of a difference from a plain loop in double precision. The largest ones are judged at the end.
enum { PACK, MATMUL_FLOAT, MATMUL_INT8, QUANTIZE, NORM, ACT, SOFTCAP, ATTEND, SOFTMAX, EXP, ROPE, DENSE, ORACLES };
void measure(int which, double difference);
double ulps(float got, double want);

// Judges the differences, prints them, the hash and the counts. Returns what main returns.
int conclude(void);

// ---- inputs, out of integers: the same on every machine -------------------------------------------------------------

void seed(uint64_t state);
size_t between(size_t low, size_t high);        // low to high, both included
float unit(void);                               // in [-1, 1), a multiple of 2^-23
void fill(float *x, size_t n, float scale);     // with unit() * scale
float from_bits(uint32_t bits);
void poison(void *p, size_t bytes);             // with NaN: what must not be read, or must be overwritten
void *take(size_t bytes);                       // fl_alloc that ends the program when there is no memory

int is_int8(fl_type type);
const char *type_name(fl_type type);

// A random matrix of any type, n up to 2048, its packing checked. Free its data.
fl_matrix random_matrix(fl_type type, size_t d, size_t n, float scale);

// ---- tests of the other files ---------------------------------------------------------------------------------------

void test_conversions(void);
void test_functions(void);
void test_sampler(void);
void test_pool(void);
void test_forward(void);
void test_nonfinite(void);
void test_threads(void);
void test_callers(void);
void test_pace(void);
void test_dense(void);

#endif
