// What the C tests share: counting, comparing with the scalar kernels and with plain loops, and making inputs.
#ifndef CHECK_H
#define CHECK_H

#include "kernels/kernels.h"

// The instruction sets that this machine can run, scalar first.
extern const fl_kernels *isas[8];
extern size_t n_isas;

// Names the case that is being tested; a failure prints it.
void describe(const char *format, ...);

void expect(int ok, const char *what);

// Compares results of one case. Number 0 is the scalar kernels': it is kept, and goes into the hash. Those with other
// numbers, by the instruction set `isa`, must have its bits.
void same(size_t number, const char *isa, const void *got, size_t bytes);

// The same of n floats. All NaN count as equal: their sign and payload depend on the order of operands.
void same_floats(size_t number, const char *isa, const float *got, size_t n);

// Notes a difference from a plain loop in double precision. conclude() compares the largest of each kind with its
// limit.
enum { PACK, BLOCKS, MATMUL_FLOAT, MATMUL_INT8, QUANTIZE, NORM, ACT, SOFTCAP, ATTEND, ATTEND_INT8, SOFTMAX, EXP, ROPE,
       DENSE, ORACLES };
void measure(int which, double difference);
double ulps(float got, double want);

// Prints the largest differences, the hash and how many checks passed and failed. Returns main's exit status.
int conclude(void);

// ---- inputs, made of integers: the same on every machine -----------------------------------------------------------

void seed(uint64_t state);
size_t between(size_t low, size_t high);        // low to high, both included
float unit(void);                               // in [-1, 1), a multiple of 2^-23
void fill(float *x, size_t n, float scale);     // with unit() * scale
float from_bits(uint32_t bits);
void poison(void *p, size_t bytes);             // fills with NaN what must not be read, or must be overwritten
void *take(size_t bytes);                       // fl_alloc that ends the program when there is no memory

const char *type_name(fl_type type);

// A random block of a type, with finite scales of that order.
void random_block(const fl_block *block, uint8_t *out, float scale);

// A random packed matrix, n up to 2048; checks that its rows are what was packed. Half of those of int8, and of four
// bits, are packed from blocks, and so have any table, and every int8. The caller frees its data.
fl_matrix random_matrix(fl_type type, size_t d, size_t n, float scale);

// ---- the tests ------------------------------------------------------------------------------------------------------

void test_blocks(void);
void test_matmul(void);
void test_quantize(void);
void test_vectors(void);
void test_attend(void);
void test_sampling(void);
void test_sampler(void);
void test_pool(void);
void test_conversions(void);
void test_functions(void);
void test_forward(void);
void test_nonfinite(void);
void test_threads(void);
void test_callers(void);
void test_pace(void);
void test_dense(void);
void test_draws(void);
void test_logprobs(void);

#endif
