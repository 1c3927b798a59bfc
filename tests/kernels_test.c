// Holds the core to the numeric contract, on any machine and without Python:
//   - every instruction set gives the scalar kernels' bits, on shapes that divide nothing;
//   - the scalar kernels are close to plain loops in double precision, the largest difference of each being printed;
//   - conversions, exp and rotation angles are as exact as their comments say;
//   - a forward gives the same bits for any number of threads and any cut into batches.
// Inputs come from an integer generator, so that the printed hash of all results is the same on every architecture. It
// depends on the order of the tests. Built with c/*.c and csrc/*.c and the objects of kernels.c; .ci/run has the
// command lines.
#include <stdio.h>
#include <stdlib.h>

#include "check.h"

int main(void) {
    static void (*const tests[])(void) = {
        test_matmul,   test_quantize,    test_vectors,   test_attend,  test_sampling,
        test_sampler,  test_pool,        test_conversions, test_functions, test_forward,
        test_nonfinite, test_threads,    test_callers,   test_pace,    test_dense,
        test_draws,    test_logprobs,   test_blocks,
    };
    int supported;
    const char *name;
    printf("instruction sets:");
    for (size_t i = 0; (name = fl_isa_built(i, &supported)) != NULL; i++) {
        printf(supported ? " %s" : " (%s: not on this machine)", name);
        if (supported && fl_kernels_find(name, &isas[n_isas])) abort();
        n_isas += supported != 0;
    }
    printf("; threads: %s\n", fl_has_threads() ? "yes" : "no");
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        seed(0x9E3779B97F4A7C15u + i);
        tests[i]();
    }
    return conclude();
}
