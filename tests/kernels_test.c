// Holds the kernels to the numeric contract, on any machine and without Python:
//   - every instruction set gives the scalar kernels' bits, on shapes that divide nothing;
//   - the scalar kernels are close to plain loops in double precision, the largest difference of each being printed;
//   - conversions, exp and rotation angles are as exact as their comments say;
//   - a forward gives the same bits for any number of threads and any cut into batches.
// Inputs come from an integer generator, so that the printed hash of all results is the same on every architecture.
// Built with csrc/*.c and the objects of kernels.c; .ci/run has the command lines.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

// ---- kernels -------------------------------------------------------------------------------------------------------

static void test_matmul(void) {
    // Up to 21 panels, more than any kernel takes at once; up to 35 groups, more than two pages of any; and tokens for
    // every remainder of every tile.
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
        poison(q, sizeof q); // lanes past the last token hold anything
        for (size_t t = 0; t < tokens; t++) {
            memset(x + t * width, 0, width * sizeof *x);
            fill(x + t * width, n, 1);
            const size_t lanes = fl_bundle_width(tokens);
            isas[0]->quantize(x + t * width, width, fl_bundle_of(q, groups, tokens, t), lanes, t % lanes);
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
                        const double a = is_int8(type) ? g->q[k % FL_GROUP] * (double)g->scale : (double)f;
                        sum += (double)row[k] * a;
                        size += fabs((double)row[k] * a);
                    }
                    if (r / 16 < panel0 || r / 16 >= panel1)
                        kept &= got == before;
                    else if (r < d)
                        measure(is_int8(type) ? MATMUL_INT8 : MATMUL_FLOAT, fabs((double)got - sum) / size);
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

static void test_quantize(void) {
    enum { N = 7 * FL_GROUP };
    static float x[N];
    static fl_q8_group q[N / FL_GROUP];
    static fl_q8_bundle tile[N / FL_GROUP];
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
        const size_t lane = between(0, FL_LANES - 1);
        int bias = 1, zero = 1, placed = 1;
        isas[n_isas - 1]->quantize(x, n, tile, FL_LANES, lane);
        for (size_t g = 0; g < n / FL_GROUP; g++)
            placed &= memcmp(tile[g].q[lane], q[g].q, FL_GROUP) == 0 && tile[g].scale[lane] == q[g].scale &&
                      tile[g].bias[lane] == q[g].bias;
        expect(placed, "a place of a bundle has what a token alone has");
        for (size_t g = 0; g < n / FL_GROUP; g++) {
            int32_t sum = 0;
            for (size_t k = 0; k < FL_GROUP; k++) {
                sum += q[g].q[k];
                const double step = (double)q[g].scale, value = (double)x[g * FL_GROUP + k];
                if (step > 0) measure(QUANTIZE, fabs(q[g].q[k] * step - value) / step);
                else zero &= q[g].q[k] == 0 && fabs(value) <= 1e-30;
            }
            bias &= q[g].bias == -128 * sum;
        }
        expect(bias, "bias is -128 times the sum");
        expect(zero, "a scale of zero only for next to nothing");
    }
}

// out of each instruction set for one norm of n values, with and without a bias.
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
        // The mean takes away what the rounding of it and of the sum leaves.
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
        // Where the activation nearly vanishes, what counts is the error beside the input.
        measure(ACT, fabs((double)out[k] - act_of(act, (double)x[k]) * factor) / (fabs((double)x[k] * factor) + 1e-25));
    }
}

static void test_vectors(void) {
    static const float special[] = {0, -0.0f, 87.2f, 87.4f, 88, 89, -87.2f, -87.4f, -88, -89, 1e4f, -1e4f, 1e-38f, -1e-38f};
    enum { N = 208, SPECIAL = sizeof special / sizeof special[0] };
    static float x[N], weight[N], bias[N], out[N];
    for (size_t n = 1; n <= 200; n++) {
        const size_t padded = fl_round_up(n, FL_LANES);
        poison(x, sizeof x); // a norm reads no more than its values
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

// ---- attention -----------------------------------------------------------------------------------------------------

enum { ROWS = 19, HEAD = 130, STRIDE = 144, PAGES = 3, FIRST = 6 }; // pages 6, 7 | 8: two runs

// Keys and values of a page, as the kernels see them and as they are.
typedef struct attend_page {
    _Alignas(FL_ALIGN) char bytes[FL_PAGE * ((HEAD + STRIDE) * 4 + 1)];
    double keys[FL_PAGE][HEAD], values[FL_PAGE][HEAD];
} attend_page;

// Element i of keys or values, x or what the type makes of it; int8 takes the bits of x for a number of its own.
static double put(fl_type type, char *bytes, size_t i, float x, float scale) {
    const float f16 = fl_f32_from_f16(fl_f16_from_f32(x));
    const int8_t q = (int8_t)(127 * x);
    if (type == FL_F32) memcpy(bytes + 4 * i, &x, 4);
    if (type == FL_F16) memcpy(bytes + 2 * i, (uint16_t[]){fl_f16_from_f32(x)}, 2);
    if (type == FL_Q8) memcpy(bytes + i, &q, 1);
    return type == FL_F32 ? (double)x : type == FL_F16 ? (double)f16 : (double)q * (double)scale;
}

// Random keys and values of `seen` positions; past them lies what an earlier sequence left.
static void fill_page(attend_page *b, fl_type type, size_t head_dim, size_t seen) {
    const size_t stride = fl_round_up(head_dim, FL_LANES), groups = (head_dim + FL_GROUP - 1) / FL_GROUP;
    char *values = b->bytes + fl_keys_bytes(type, head_dim);
    poison(b->bytes, sizeof b->bytes);
    for (size_t j = 0; j < seen; j++)
        for (size_t c = 0; c < stride; c++) {
            static float key_scale, value_scale;
            if (c % FL_GROUP == 0) {
                key_scale = (unit() + 2) * 0x1p-8f;
                value_scale = (unit() + 2) * 0x1p-8f;
            }
            const double value = put(type, values, j * stride + c, c < head_dim ? unit() : 0, value_scale);
            if (c >= head_dim) continue;
            b->values[j][c] = value;
            b->keys[j][c] = put(type, b->bytes, c * FL_PAGE + j, unit(), key_scale);
            if (type != FL_Q8) continue;
            memcpy(b->bytes + FL_PAGE * head_dim + (c / FL_GROUP * FL_PAGE + j) * 4, &key_scale, 4);
            memcpy(values + FL_PAGE * stride + (j * groups + c / FL_GROUP) * 4, &value_scale, 4);
        }
}

// What row r should be, in double precision.
static void check_attend(const fl_attend *a, const attend_page *pages, const float *mask, const float *maps, size_t r) {
    double total = 0, want[HEAD] = {0}, size[HEAD] = {0};
    for (size_t p = a->from[r] > a->begin ? a->from[r] : a->begin; p < a->limit[r] && p < a->end; p++) {
        const attend_page *b = &pages[p / FL_PAGE - FIRST];
        const size_t j = p % FL_PAGE;
        double score = 0;
        for (size_t c = 0; c < a->head_dim; c++) score += (double)a->q[r * a->stride + c] * b->keys[j][c];
        if (a->softcap > 0) score = (double)a->softcap * tanh(score / (double)a->softcap);
        if (mask) score += (double)mask[j];
        const double e = exp(score - (double)a->max[r]);
        total += e;
        measure(ATTEND, fabs((double)maps[((p / FL_PAGE - FIRST) * ROWS + r) * FL_PAGE + j] - e / (double)a->sum[r]));
        for (size_t c = 0; c < a->head_dim; c++) {
            want[c] += e * b->values[j][c];
            size[c] += e * fabs(b->values[j][c]);
        }
    }
    measure(ATTEND, fabs((double)a->sum[r] - total) / (total + 1e-30));
    for (size_t c = 0; c < a->head_dim; c++)
        measure(ATTEND, fabs((double)a->out[r * a->stride + c] - want[c]) / (size[c] + 1e-30));
}

static void test_attend(void) {
    static const fl_type types[] = {FL_F32, FL_F16, FL_Q8};
    static float q[ROWS * STRIDE], result[2][ROWS * (STRIDE + 2)], maps[PAGES * ROWS * FL_PAGE], mask[FL_PAGE];
    static attend_page cache[PAGES];
    float *work = take(fl_attend_floats(ROWS, STRIDE) * sizeof *work);
    for (size_t number = 0; number < 600; number++) {
        const fl_type type = types[number % 3];
        const size_t rows = number / 3 % ROWS + 1, head_dim = between(2, HEAD), stride = fl_round_up(head_dim, FL_LANES);
        const size_t n_pages = between(1, PAGES), begin = FIRST * FL_PAGE, middle = 8 * FL_PAGE;
        const int masked = number % 7 == 0;
        size_t limit[ROWS], from[ROWS], end = begin + 1;
        void *pages[FIRST + PAGES];
        describe("attend_%s number %zu rows %zu head_dim %zu pages %zu", type_name(type), number, rows, head_dim, n_pages);
        for (size_t r = 0; r < rows; r++) {
            const size_t kind = between(0, 3), past = begin + n_pages * FL_PAGE; // 0: nothing, 1: all, else: a part
            limit[r] = kind == 0 ? begin : kind == 1 ? past : between(begin + 1, past);
            from[r] = between(0, 2) ? 0 : between(begin, limit[r]); // a window, of nothing at times
            end = limit[r] > end ? limit[r] : end;
        }
        memset(q, 0, sizeof q);
        for (size_t r = 0; r < rows; r++) fill(q + r * stride, head_dim, 0.5f);
        for (size_t j = 0; j < FL_PAGE; j++) mask[j] = between(0, 3) == 0 ? -1e30f : 0;
        for (size_t b = 0; b < PAGES; b++) {
            const size_t start = begin + b * FL_PAGE;
            pages[FIRST + b] = cache[b].bytes;
            fill_page(&cache[b], type, head_dim, end < start ? 0 : end - start < FL_PAGE ? end - start : FL_PAGE);
            if (masked) memcpy(cache[b].bytes + sizeof cache[b].bytes - sizeof mask, mask, sizeof mask);
        }
        fl_attend a = {
            .rows = rows, .head_dim = head_dim, .stride = stride, .q = q, .from = from, .limit = limit, .begin = begin,
            .end = end, .pages = pages, .values = fl_keys_bytes(type, head_dim), .softcap = number % 5 == 0 ? 3 : 0,
            .mask = masked ? sizeof cache[0].bytes - sizeof mask : 0, .work = work};
        for (size_t i = 0; i < n_isas; i++)
            for (size_t apart = 0; apart < 2; apart++) { // the runs at once, and one after the other
                poison(result, sizeof result);
                poison(work, fl_attend_floats(ROWS, STRIDE) * sizeof *work);
                a.max = result[0], a.sum = a.max + rows, a.out = a.sum + rows;
                if (apart && end > middle) {
                    a.end = middle;
                    isas[i]->attend[type](&a);
                    a.begin = middle, a.end = end;
                    a.max = result[1], a.sum = a.max + rows, a.out = a.sum + rows;
                    isas[i]->attend[type](&a);
                    isas[i]->merge(rows, stride, result[0], result[0] + rows, result[0] + 2 * rows, a.max, a.sum, a.out);
                    a.begin = begin;
                } else {
                    isas[i]->attend[type](&a);
                }
                same(2 * i + apart, isas[i]->name, result[0], rows * (stride + 2) * sizeof(float));
            }
        a.max = result[0], a.sum = a.max + rows, a.out = a.sum + rows;
        for (size_t b = 0; begin + b * FL_PAGE < end; b++)
            for (size_t i = 0; i < n_isas; i++) {
                fl_attend one = a;
                float *map = maps + b * ROWS * FL_PAGE;
                one.begin = begin + b * FL_PAGE;
                one.end = end < one.begin + FL_PAGE ? end : one.begin + FL_PAGE;
                poison(map, ROWS * FL_PAGE * sizeof *map);
                isas[i]->probabilities[type](&one, map);
                for (size_t r = 0; r < rows; r++) // rows that see nothing at all have no softmax
                    if (a.sum[r] == 0) memset(map + r * FL_PAGE, 0, FL_PAGE * sizeof *map);
                same(i, isas[i]->name, map, rows * FL_PAGE * sizeof *map);
            }
        for (size_t r = 0; r < rows; r++) check_attend(&a, cache, masked ? mask : NULL, maps, r);
    }
    fl_free(work);
}

// ---- sampling ------------------------------------------------------------------------------------------------------

enum { N = 1200 };

// Sums of what is larger than a bound, of probabilities (n), zero past them: bounds that all or none exceed, those that
// are one of them, the largest included.
static void test_above(const float *probs, size_t n, size_t best) {
    const float bounds[] = {0, 2, probs[best], probs[between(0, n - 1)], probs[between(0, n - 1)], fabsf(unit()) * 0x1p-6f};
    for (size_t j = 0; j < sizeof bounds / sizeof *bounds; j++)
        for (size_t start = 0; start < n; start += FL_SUM_RUN) { // as the sampler asks, run by run
            const size_t count = n - start < FL_SUM_RUN ? n - start : FL_SUM_RUN;
            const float all = isas[0]->above(probs + start, count, 0);
            float sum = -1;
            describe("above %g of %zu", (double)bounds[j], count);
            for (size_t i = 0; i < n_isas; i++) {
                sum = isas[i]->above(probs + start, count, bounds[j]);
                same(i, isas[i]->name, &sum, sizeof sum);
            }
            double want = 0;
            for (size_t k = start; k < start + count; k++)
                if (probs[k] > bounds[j]) want += (double)probs[k];
            measure(SOFTMAX, fabs((double)sum - want) / (want + 1e-30));
            expect((sum > 0) == (want > 0), "nothing but what is larger");
            expect(all > bounds[j] || want <= 0, "a sum is at least as large as its parts"); // the sampler skips by it
        }
}

static void test_sampling(void) {
    static float x[N], out[N], sums[N / FL_SUM_RUN + 1];
    for (size_t number = 0; number < 600; number++) {
        const size_t n = number < 40 ? number + 1 : between(1, N - 16), padded = fl_round_up(n, FL_LANES);
        const size_t runs = (n + FL_SUM_RUN - 1) / FL_SUM_RUN;
        const float scale = (float)between(1, 64) * 0x1p-4f;
        fill(x, padded, 16);
        float max = 0;
        size_t index = 0, best = 0;
        for (size_t k = 1; k < n; k++) best = x[k] > x[best] ? k : best;
        const float top = x[best] * scale;
        describe("softmax n %zu scale %g", n, (double)scale);
        for (size_t i = 0; i < n_isas; i++) {
            poison(out, sizeof out);
            poison(sums, sizeof sums);
            isas[i]->softmax(out, sums, x, n, scale, top);
            memcpy(out + padded, sums, runs * sizeof *sums);
            same(i, isas[i]->name, out, (padded + runs) * sizeof *out);
        }
        for (size_t b = 0; b < runs; b++) {
            double sum = 0;
            for (size_t k = b * FL_SUM_RUN; k < n && k < (b + 1) * FL_SUM_RUN; k++) {
                const double want = exp((double)(x[k] * scale - top));
                if (want > 1e-37) measure(SOFTMAX, fabs((double)out[k] - want) / want);
                sum += want;
            }
            measure(SOFTMAX, fabs((double)sums[b] - sum) / (sum + 1e-30));
        }
        int zero = 1;
        for (size_t k = n; k < padded; k++) zero &= out[k] == 0;
        expect(zero, "zero past n");
        test_above(out, n, best);

        // Of the same logits, sprinkled with what a grammar's mask or a broken model puts there.
        for (size_t k = 0; k < number % 12; k++) {
            const size_t at = between(0, n - 1);
            const size_t kind = (k + number / 12) % 4;
            x[at] = kind == 0 ? NAN : kind == 1 ? -INFINITY : kind == 2 ? 1 : -0.0f;
        }
        if (number % 50 == 49)
            for (size_t k = 0; k < n; k++) x[k] = k % 3 || number % 100 < 50 ? -INFINITY : NAN;
        float want = -INFINITY;
        int finite = 1, nan = 0;
        for (size_t k = 0; k < n; k++) {
            want = x[k] > want ? x[k] : want;
            finite &= isfinite(x[k]) != 0;
            nan |= isnan(x[k]) != 0;
        }
        for (best = 0; best < n - 1 && x[best] != want; best++) {}
        if (x[best] != want) best = 0;
        describe("max number %zu n %zu", number, n);
        for (size_t i = 0; i < n_isas; i++) {
            index = n;
            int found = -1;
            max = isas[i]->max(x, n, &index, &found);
            expect(found == finite, "whether all are finite");
            expect(index < n, "an index of what there is");
            if (nan) continue;
            const uint64_t at = index;
            memcpy(out, &at, 8);
            memcpy(out + 2, &max, 4);
            same(i, isas[i]->name, out, 12);
            expect(index == best && max == want, "largest and its first index");
        }
    }
}

int main(void) {
    static void (*const tests[])(void) = {test_matmul,    test_quantize, test_vectors,     test_attend,    test_sampling,
                                          test_sampler,   test_pool,     test_conversions, test_functions, test_forward,
                                          test_nonfinite, test_threads,  test_callers,     test_pace,      test_dense};
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
