// Matrix products, and the quantization of what they multiply.
#include <math.h>
#include <string.h>

#include "check.h"

void test_matmul(void) {
    // Up to 21 panels, more than any tile has; up to 35 groups, more than a stretch has; and tokens for every remainder
    // of every tile.
    enum { D = 330, N = 1100, T = 45, WIDTH = 1120, STRIDE = 344 };
    static float x[T * WIDTH], start[T * STRIDE], out[T * STRIDE], row[WIDTH];
    static fl_q8_group q[(T + FL_LANES) * WIDTH / FL_GROUP], alone[T * WIDTH / FL_GROUP];
    for (size_t number = 0; number < 1200; number++) {
        const fl_type type = (fl_type)(number % FL_TYPES);
        const size_t d = between(1, number % 8 == 3 ? D : 70), n = between(1, number % 8 == 7 ? N : 200);
        const size_t tokens = number < T * FL_TYPES ? number / FL_TYPES + 1 : between(1, T);
        const size_t width = fl_round_up(n, FL_GROUP), groups = width / FL_GROUP, panels = (d + 15) / 16;
        const size_t panel0 = number % 3 ? 0 : between(0, panels - 1), panel1 = between(panel0 + 1, panels);
        const int add = (int)between(0, 1);
        describe("matmul_%s d %zu n %zu tokens %zu panels %zu..%zu add %d", type_name(type), d, n, tokens, panel0,
                 panel1, add);
        const fl_matrix w = random_matrix(type, d, n, 1);
        fill(start, tokens * STRIDE, 1);
        poison(q, sizeof q); // places past the last token may hold anything
        for (size_t t = 0; t < tokens; t++) {
            memset(x + t * width, 0, width * sizeof *x);
            fill(x + t * width, n, 1);
            const size_t bundled = fl_bundle_width(tokens);
            isas[0]->quantize(x + t * width, width, fl_bundle_of(q, groups, tokens, t), bundled, t % bundled);
        }
        const fl_inputs in = {.f = x, .f_stride = width, .q = q};
        for (size_t i = 0; i < n_isas; i++) {
            memcpy(out, start, tokens * STRIDE * sizeof *out);
            isas[i]->matmul[type](&w, panel0, panel1, &in, tokens, out, STRIDE, add);
            same(i, isas[i]->name, out, tokens * STRIDE * sizeof *out);
            if (i > 0) continue;
            int kept = 1, zero = 1;
            for (size_t t = 0; t < tokens; t++) isas[0]->quantize(x + t * width, width, alone + t * groups, 1, 0);
            for (size_t r = 0; r < STRIDE; r++) {
                if (r < d) fl_matrix_row(&w, r, row);
                for (size_t t = 0; t < tokens; t++) {
                    const float got = out[t * STRIDE + r], before = start[t * STRIDE + r];
                    double sum = add ? (double)before : 0, size = fabs(sum) + 1e-30;
                    for (size_t k = 0; k < n && r < d; k++) {
                        const fl_q8_group *g = &alone[t * groups + k / FL_GROUP];
                        const float f = x[t * width + k];
                        const double a = fl_is_int8(type) ? g->q[k % FL_GROUP] * (double)g->scale : (double)f;
                        sum += (double)row[k] * a;
                        size += fabs((double)row[k] * a);
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
    static fl_q8_group q[N / FL_GROUP];
    static fl_q8_bundle bundle[N / FL_GROUP];
    for (size_t number = 0; number < 300; number++) {
        const size_t n = between(1, 7) * FL_GROUP;
        describe("quantize number %zu n %zu", number, n);
        fill(x, n, from_bits((uint32_t)between(20, 230) << 23)); // the smallest become zero, the largest are 2^103
        if (number % 4 == 0) memset(x, 0, FL_GROUP * sizeof *x);
        if (number % 4 == 1) memset(x + 1, 0, (FL_GROUP - 1) * sizeof *x);
        if (number % 4 == 2) // halves, after division by the step
            for (size_t i = 0; i < FL_GROUP; i++) x[i] = i == 0 ? 127 : (float)i - 15.5f;
        for (size_t i = 0; i < n_isas; i++) {
            poison(q, sizeof q);
            isas[i]->quantize(x, n, q, 1, 0);
            same(i, isas[i]->name, q, n / FL_GROUP * sizeof *q);
        }
        const size_t place = between(0, FL_LANES - 1);
        int bias = 1, zero = 1, placed = 1;
        isas[n_isas - 1]->quantize(x, n, bundle, FL_LANES, place);
        for (size_t g = 0; g < n / FL_GROUP; g++)
            placed &= memcmp(bundle[g].q[place], q[g].q, FL_GROUP) == 0 && bundle[g].scale[place] == q[g].scale &&
                      bundle[g].sum[place] == q[g].sum && bundle[g].bias[place] == q[g].bias;
        expect(placed, "a place of a bundle has what a token alone has");
        for (size_t g = 0; g < n / FL_GROUP; g++) {
            int32_t sum = 0;
            for (size_t k = 0; k < FL_GROUP; k++) {
                sum += q[g].q[k];
                const double step = (double)q[g].scale, value = (double)x[g * FL_GROUP + k];
                if (step > 0) measure(QUANTIZE, fabs(q[g].q[k] * step - value) / step);
                else zero &= q[g].q[k] == 0 && fabs(value) <= 1e-30;
            }
            bias &= q[g].bias == -128 * sum && q[g].sum == q[g].scale * (float)sum;
        }
        expect(bias, "bias and sum are of the int8");
        expect(zero, "a scale of zero only for next to nothing");
    }
}
