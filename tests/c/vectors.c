// Norms, activation functions and the soft cap.
#include <math.h>
#include <string.h>

#include "check.h"

// One norm of n values, on each instruction set.
static void check_norm(fl_norm_kind kind, const float *x, const float *weight, const float *bias, size_t n) {
    enum { N = 224 };
    static float out[N];
    const double eps = (double)0x1p-17f;
    describe("norm %d n %zu bias %d", (int)kind, n, bias != NULL);
    double mean = 0, squares = 0, largest = 0;
    for (size_t k = 0; k < n && kind == FL_LAYER_NORM; k++) mean += (double)x[k] / (double)n;
    for (size_t k = 0; k < n; k++) squares += ((double)x[k] - mean) * ((double)x[k] - mean);
    for (size_t k = 0; k < n; k++) largest = fmax(largest, fabs((double)x[k]));
    const double scale = 1 / sqrt(squares / (double)n + eps);
    for (size_t i = 0; i < n_isas; i++) {
        poison(out, sizeof out);
        isas[i]->norm[kind](out, x, weight, bias, n, (float)eps);
        same(i, isas[i]->name, out, n * sizeof *out);
        for (size_t k = n; k < N; k++) expect(isnan(out[k]), "nothing past the values is written");
    }
    for (size_t k = 0; k < n; k++) {
        const double want = ((double)x[k] - mean) * scale * (double)weight[k] + (bias ? (double)bias[k] : 0);
        // The error is relative to the largest value, since the mean that is subtracted may be as large.
        const double size = largest * scale * fabs((double)weight[k]) + (bias ? fabs((double)bias[k]) : 0);
        measure(NORM, fabs((double)out[k] - want) / (size + 1e-30));
    }
}

static double act_of(fl_act act, double x) {
    switch (act) {
    case FL_SILU: return x / (1 + exp(-x));
    case FL_QUICK_GELU: return x / (1 + exp(-(double)1.702f * x));
    case FL_GELU_TANH: return x / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case FL_GELU_ERF: return x / 2 * erfc(-x / sqrt(2));
    default: return x > 0 ? x : 0;
    }
}

static void check_act(fl_act act, const float *x, const float *up, size_t n) {
    enum { N = 208 };
    static float out[N];
    describe("act %d n %zu up %d", (int)act, n, up != NULL);
    for (size_t i = 0; i < n_isas; i++) {
        memset(out, 0, sizeof out);
        memcpy(out, x, n * sizeof *out);
        isas[i]->act[act](out, up, n);
        same(i, isas[i]->name, out, sizeof out);
    }
    for (size_t k = 0; k < n; k++) {
        const double factor = up ? (double)up[k] : 1;
        // The error is relative to the input, since the result may be next to nothing.
        measure(ACT, fabs((double)out[k] - act_of(act, (double)x[k]) * factor) / (fabs((double)x[k] * factor) + 1e-25));
    }
}

void test_vectors(void) {
    static const float special[] = {0,   -0.0f, 87.2f, 87.4f, 88,   89,    -87.2f, -87.4f,
                                    -88, -89,   1e4f,  -1e4f, 1e-38f, -1e-38f};
    enum { N = 208, SPECIAL = sizeof special / sizeof special[0] };
    static float x[N], weight[N], bias[N], out[N];
    for (size_t n = 1; n <= 200; n++) {
        const size_t padded = fl_round_up(n, FL_LANES);
        poison(x, sizeof x); // a norm must read no more than n values
        poison(weight, sizeof weight);
        poison(bias, sizeof bias);
        fill(x, n, n % 2 ? 1 : 0x1p10f);
        fill(weight, n, 4);
        fill(bias, n, 2);
        for (int kind = FL_RMS_NORM; kind <= FL_LAYER_NORM; kind++) {
            check_norm((fl_norm_kind)kind, x, weight, NULL, n);
            check_norm((fl_norm_kind)kind, x, weight, bias, n);
        }
        fill(x, padded, n % 2 ? 2 : 64);
        fill(weight, padded, 2);
        if (n % 4 == 0) memcpy(x, special, (padded < SPECIAL ? padded : SPECIAL) * sizeof *x);
        for (int act = FL_SILU; act <= FL_RELU; act++) check_act((fl_act)act, x, n % 3 ? weight : NULL, padded);
        describe("softcap n %zu", padded);
        for (size_t i = 0; i < n_isas; i++) {
            memcpy(out, x, sizeof out);
            isas[i]->softcap(out, padded, 30);
            same(i, isas[i]->name, out, padded * sizeof *out);
        }
        for (size_t k = 0; k < padded; k++) measure(SOFTCAP, fabs((double)out[k] - 30 * tanh((double)x[k] / 30)) / 30);
    }
}
