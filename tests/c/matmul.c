// Matrix products, and the quantization of what they multiply.
#include <math.h>
#include <string.h>

#include "check.h"

// Quantizes token t of `tokens`, x (width,), into q, as one row of int8 with outliers or as two parts; and into a
// (width,) what that stands for.
static void quantize_token(const float *x, size_t width, void *q, size_t tokens, size_t parts, size_t t, double *a) {
    const size_t groups = width / FL_GROUP, rows = tokens * parts, bundled = fl_bundle_width(rows);
    static fl_q8_group alone[2048 / FL_GROUP];
    static float rest[2048];
    memcpy(rest, x, width * sizeof *x);
    for (size_t k = 0; k < width; k++) a[k] = 0;
    for (size_t part = 0; part < parts; part++) {
        const size_t row = t * parts + part;
        const fl_outliers outliers = fl_outliers_of(q, groups, rows, row);
        const fl_outliers *taken = parts == 1 ? &outliers : NULL;
        isas[0]->quantize(rest, width, fl_bundle_of(q, groups, rows, row), bundled, row % bundled, taken);
        isas[0]->quantize(rest, width, alone, 1, 0, taken);
        for (size_t k = 0; k < width; k++) {
            const fl_q8_group *g = &alone[k / FL_GROUP];
            a[k] += g->q[k % FL_GROUP] * (double)g->scale;
            if (taken && taken->k[k / FL_GROUP] == k % FL_GROUP) a[k] += (double)taken->value[k / FL_GROUP];
            rest[k] -= (float)g->q[k % FL_GROUP] * g->scale;
        }
    }
}

void test_matmul(void) {
    // Up to 21 panels, more than any tile has; up to 35 groups, more than a stretch has; and tokens for every remainder
    // of every tile.
    enum { D = 330, N = 1100, T = 45, WIDTH = 1120, STRIDE = 344 };
    static float x[T * WIDTH], start[T * STRIDE], out[T * STRIDE], row[WIDTH];
    static fl_q8_group q[3 * (T + FL_LANES) * WIDTH / FL_GROUP];
    static double a[T * WIDTH];
    for (size_t number = 0; number < 1200; number++) {
        const fl_type type = (fl_type)(number % FL_TYPES);
        const size_t d = between(1, number % 8 == 3 ? D : 70), n = between(1, number % 8 == 7 ? N : 200);
        const size_t tokens = number < T * FL_TYPES ? number / FL_TYPES + 1 : between(1, T);
        const size_t width = fl_round_up(n, FL_GROUP), groups = width / FL_GROUP, panels = (d + 15) / 16;
        const size_t panel0 = number % 3 ? 0 : between(0, panels - 1), panel1 = between(panel0 + 1, panels);
        const int add = (int)between(0, 1);
        const size_t parts = number % 7 == 3 ? 2 : 1;
        describe("matmul_%s d %zu n %zu tokens %zu x %zu panels %zu..%zu add %d", type_name(type), d, n, tokens, parts,
                 panel0, panel1, add);
        const fl_matrix w = random_matrix(type, d, n, 1);
        fill(start, tokens * STRIDE, 1);
        poison(q, sizeof q); // places past the last token may hold anything
        for (size_t t = 0; t < tokens; t++) {
            memset(x + t * width, 0, width * sizeof *x);
            fill(x + t * width, n, 1);
            for (size_t g = 0; number % 2 && g < groups; g++) // outliers in a quarter of the groups
                if (between(0, 3) == 0) x[t * width + between(g * FL_GROUP, g * FL_GROUP + 31) % n] *= 50;
            quantize_token(x + t * width, width, q, tokens, parts, t, a + t * width);
        }
        const fl_inputs in = {.f = x, .f_stride = width, .q = q, .parts = parts};
        for (size_t i = 0; i < n_isas; i++) {
            memcpy(out, start, tokens * STRIDE * sizeof *out);
            isas[i]->matmul[type](&w, panel0, panel1, &in, tokens, out, STRIDE, add);
            same(i, isas[i]->name, out, tokens * STRIDE * sizeof *out);
            if (i > 0) continue;
            int kept = 1, zero = 1;
            for (size_t r = 0; r < STRIDE; r++) {
                if (r < d) fl_matrix_row(&w, r, row);
                for (size_t t = 0; t < tokens; t++) {
                    const float got = out[t * STRIDE + r], before = start[t * STRIDE + r];
                    double sum = add ? (double)before : 0, size = fabs(sum) + 1e-30;
                    for (size_t k = 0; k < n && r < d; k++) {
                        const double in_k = fl_is_int8(type) ? a[t * width + k] : (double)x[t * width + k];
                        sum += (double)row[k] * in_k;
                        size += fabs((double)row[k] * in_k);
                    }
                    if (r / 16 < panel0 || r / 16 >= panel1)
                        kept &= got == before;
                    else if (r < d)
                        measure(fl_is_int8(type) ? MATMUL_INT8 : MATMUL_FLOAT, fabs((double)got - sum) / size);
                    else
                        zero &= got == (add ? before : 0);
                }
            }
            expect(kept, "other panels are untouched");
            expect(zero, "rows of padding give zero");
        }
        fl_free((void *)w.data);
    }
}

void test_quantize(void) {
    enum { N = 7 * FL_GROUP };
    static float x[N];
    static struct {
        fl_q8_group q[N / FL_GROUP];
        float value[N / FL_GROUP];
        uint8_t k[N / FL_GROUP + 1];
    } result;
    static fl_q8_bundle bundle[N / FL_GROUP];
    const fl_q8_group *q = result.q;
    const fl_outliers outliers = {result.value, result.k};
    for (size_t number = 0; number < 300; number++) {
        const size_t n = between(1, 7) * FL_GROUP;
        describe("quantize number %zu n %zu", number, n);
        fill(x, n, from_bits((uint32_t)between(20, 230) << 23)); // the smallest become zero, the largest are 2^103
        if (number % 4 == 0) memset(x, 0, FL_GROUP * sizeof *x);
        if (number % 4 == 1) memset(x + 1, 0, (FL_GROUP - 1) * sizeof *x);
        for (size_t g = 1; g < n / FL_GROUP; g++) // one value of some is up to 9 times larger
            if (between(0, 1)) x[g * FL_GROUP + between(0, 31)] *= 1 + 8 * fabsf(unit());
        if (number % 4 == 2) // halves, after division by the step
            for (size_t i = 0; i < FL_GROUP; i++) x[i] = i == 0 ? 127 : (float)i - 15.5f;
        const fl_outliers *taken = number % 3 ? &outliers : NULL;
        for (size_t i = 0; i < n_isas; i++) {
            poison(&result, sizeof result);
            isas[i]->quantize(x, n, result.q, 1, 0, taken);
            same(i, isas[i]->name, &result, sizeof result);
        }
        const size_t place = between(0, FL_LANES - 1);
        int bias = 1, zero = 1, placed = 1, rule = 1;
        isas[n_isas - 1]->quantize(x, n, bundle, FL_LANES, place, taken);
        for (size_t g = 0; g < n / FL_GROUP; g++)
            placed &= memcmp(bundle[g].q[place], q[g].q, FL_GROUP) == 0 && bundle[g].scale[place] == q[g].scale &&
                      bundle[g].sum[place] == q[g].sum && bundle[g].bias[place] == q[g].bias;
        expect(placed, "a place of a bundle has what a token alone has");
        for (size_t g = 0; g < n / FL_GROUP; g++) {
            int32_t sum = 0;
            double squares = 0;
            const float *group = x + g * FL_GROUP;
            const size_t out = taken ? result.k[g] : FL_NONE;
            size_t largest = 0;
            for (size_t k = 0; k < FL_GROUP; k++) {
                if (fabsf(group[k]) > fabsf(group[largest])) largest = k;
                squares += (double)group[k] * (double)group[k];
            }
            // A rounded value is half a step from its own at most, and the rule sums up 32 of them.
            const double crest = squares > 0 ? fabs((double)group[largest]) / sqrt(squares / FL_GROUP) : 0;
            rule &= out == FL_NONE ? !taken || crest < 5.02 || fabsf(group[largest]) < 2e-30f
                                   : out == largest && result.value[g] == group[out] && crest > 4.98;
            for (size_t k = 0; k < FL_GROUP; k++) {
                sum += q[g].q[k];
                if (k == out) {
                    rule &= q[g].q[k] == 0;
                    continue;
                }
                const double step = (double)q[g].scale, value = (double)x[g * FL_GROUP + k];
                if (step > 0) measure(QUANTIZE, fabs(q[g].q[k] * step - value) / step);
                else zero &= q[g].q[k] == 0 && fabs(value) <= 1e-30;
            }
            bias &= q[g].bias == -128 * sum &&
                    q[g].sum == q[g].scale * (float)sum + (out == FL_NONE ? 0 : result.value[g]);
        }
        expect(rule, "an outlier is a group's largest value, five times its root mean square");
        expect(bias, "bias and sum are of the int8 and what was taken out");
        expect(zero, "a scale of zero only for next to nothing");
    }
}
