// Dense layers on their own: every instruction set and number of threads gives the same bits, close to plain loops.
#include <math.h>
#include <string.h>

#include "check.h"

static double activated(fl_dense_act act, double x) {
    switch (act) {
    case FL_DENSE_IDENTITY: return x;
    case FL_DENSE_TANH: return tanh(x);
    case FL_DENSE_SIGMOID: return 1 / (1 + exp(-x));
    case FL_DENSE_GELU: return x * 0.5 * (1 + erf(x / sqrt(2.0)));
    case FL_DENSE_RELU: return x > 0 ? x : 0;
    case FL_DENSE_SILU: return x / (1 + exp(-x));
    }
    return NAN;
}

void test_dense(void) {
    enum { D = 70, N = 90, T = 20, STRIDE = 80 };
    static float x[T * N], row[96];
    static _Alignas(FL_ALIGN) float bias[STRIDE], out[T * STRIDE];
    static const fl_type types[] = {FL_F32, FL_F16, FL_BF16};
    for (size_t number = 0; number < 180; number++) {
        const fl_dense_act act = (fl_dense_act)(number % (FL_DENSE_SILU + 1));
        const fl_type type = types[number / 6 % 3];
        const size_t d = between(1, D), n = between(1, N), tokens = between(1, T), width = fl_round_up(d, FL_LANES);
        const int broken = number % 11 == 10;
        describe("dense act %d %s d %zu n %zu tokens %zu", (int)act, type_name(type), d, n, tokens);
        fl_matrix w = random_matrix(type, d, n, 1);
        memset(bias, 0, sizeof bias);
        fill(bias, d, 1);
        fill(x, tokens * n, 1);
        if (broken) x[n - 1] = number % 2 ? NAN : INFINITY; // in the first row alone
        if (number % 3) w.bias = bias;
        for (size_t i = 0; i < n_isas; i++) {
            expect(fl_dense(isas[i], &w, act, x, tokens, 1 + i % 2, out) == FL_OK, "a dense layer");
            same_floats(i, fl_kernels_name(isas[i]), out, tokens * width);
        }
        for (size_t r = 0; r < d; r++) {
            fl_matrix_row(&w, r, row);
            if (broken) expect(!isfinite(out[r]) || row[n - 1] == 0, "a row that is not finite");
            for (size_t t = (size_t)broken; t < tokens; t++) {
                double sum = w.bias ? (double)bias[r] : 0, size = 1 + fabs(sum);
                for (size_t k = 0; k < n; k++) {
                    sum += (double)row[k] * (double)x[t * n + k];
                    size += fabs((double)row[k] * (double)x[t * n + k]);
                }
                measure(DENSE, fabs((double)out[t * width + r] - activated(act, sum)) / size);
            }
        }
        fl_free((void *)w.data);
    }
}
