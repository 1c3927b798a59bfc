// NaN and infinity: every kernel passes them on, in the same places on every instruction set, and nowhere else.
#include <math.h>
#include <string.h>

#include "check.h"

static const float broken[] = {NAN, INFINITY, -INFINITY, 0x1.8p127f, -0x1.8p127f};
enum { BROKEN = sizeof broken / sizeof *broken, FINITE = 3 }; // the last two are finite, but not their squares

static int none_finite(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (isfinite(x[i])) return 0;
    return 1;
}

static void broken_vectors(void) {
    enum { N = 80 };
    static float x[N], up[N], weight[N], out[N], sums[1], row[N + FL_GROUP];
    static fl_q8_group q[N / FL_GROUP + 1];
    static float value[N / FL_GROUP + 1];
    static uint8_t outlier[N / FL_GROUP + 1];
    const fl_outliers outliers = {value, outlier};
    for (size_t number = 0; number < 60 * BROKEN; number++) {
        const float bad = broken[number % BROKEN];
        const int finite = number % BROKEN >= FINITE;
        const size_t n = between(1, N), at = between(0, n - 1), padded = fl_round_up(n, FL_LANES);
        memset(x, 0, sizeof x);
        fill(x, n, 4);
        fill(up, N, 2);
        fill(weight, N, 1);
        x[at] = bad;
        describe("%g at %zu of %zu", (double)bad, at, n);
        for (size_t kind = FL_RMS_NORM; kind <= FL_LAYER_NORM; kind++)
            for (size_t i = 0; i < n_isas; i++) {
                isas[i]->norm[kind](out, x, weight, NULL, n, 0x1p-17f);
                same_floats(i, isas[i]->name, out, n);
                // A row of one value less its mean is 0.
                expect(none_finite(out, n) || (finite && n == 1 && kind == FL_LAYER_NORM), "a norm");
            }
        for (size_t act = FL_SILU; act <= FL_RELU; act++)
            for (size_t i = 0; i < n_isas; i++) {
                memcpy(out, x, sizeof out);
                isas[i]->act[act](out, number % 2 ? up : NULL, padded);
                same_floats(i, isas[i]->name, out, padded);
                expect(isfinite(out[at]) ? finite : !finite || fabsf(up[at]) > 1, "an activation");
                for (size_t j = 0; j < n; j++) expect(j == at || isfinite(out[j]), "an activation's neighbours");
            }
        for (size_t i = 0; i < n_isas; i++) {
            memcpy(out, x, sizeof out);
            isas[i]->softcap(out, padded, 30);
            same_floats(i, isas[i]->name, out, padded);
            expect((isfinite(out[at]) != 0) == finite, "a softcap");
        }
        for (size_t i = 0; i < n_isas; i++) {
            size_t best;
            int all;
            const float max = isas[i]->max(x, n, &best, &all);
            expect(all == finite && best < n, "a maximum says whether all are finite");
            isas[i]->softmax(out, sums, x, n, 1, all ? max : NAN);
            same_floats(i, isas[i]->name, out, padded);
            expect((isfinite(sums[0]) != 0) == finite, "a softmax");
        }
        for (size_t i = 0; i < n_isas; i++) {
            const size_t groups = (n + FL_GROUP - 1) / FL_GROUP, mine = at / FL_GROUP;
            memset(row, 0, sizeof row);
            memcpy(row, x, n * sizeof *x);
            poison(q, sizeof q);
            isas[i]->quantize(row, groups * FL_GROUP, q, 1, 0, number % 2 ? &outliers : NULL);
            int zero = 1;
            for (size_t j = 0; j < FL_GROUP; j++) zero &= q[mine].q[j] == 0;
            expect(finite || (isnan(q[mine].scale) && isnan(q[mine].sum) && q[mine].bias == 0 && zero), "a group");
            for (size_t g = 0; g < groups; g++)
                expect(g == mine || (isfinite(q[g].scale) && isfinite(q[g].sum)), "a group's neighbours");
            for (size_t g = 0; g < groups; g++)
                if (isnan(q[g].scale)) q[g].scale = q[g].sum = NAN; // of one sign
            same(i, isas[i]->name, q, groups * sizeof *q);
        }
    }
}

// A token with a value that is not finite leaves the products of other tokens, of its bundle too, as they are.
static void broken_tokens(void) {
    enum { D = 37, N = 75, T = 21, WIDTH = 96, STRIDE = 48 };
    static float x[T * WIDTH], out[T * STRIDE], clean[T * STRIDE];
    static fl_q8_group q[2 * (T + FL_LANES) * WIDTH / FL_GROUP];
    for (size_t number = 0; number < 12 * FL_TYPES; number++) {
        const fl_type type = (fl_type)(number % FL_TYPES);
        const size_t tokens = number / FL_TYPES < 4 ? number / FL_TYPES + 1 : between(5, T);
        const size_t bad = between(0, tokens - 1);
        const fl_matrix w = random_matrix(type, D, N, 1);
        memset(x, 0, sizeof x);
        for (size_t t = 0; t < tokens; t++) fill(x + t * WIDTH, N, 1);
        describe("matmul_%s, token %zu of %zu is broken", type_name(type), bad, tokens);
        for (size_t round = 0; round < 2; round++) {
            if (round) x[bad * WIDTH + between(0, N - 1)] = broken[number % FINITE];
            for (size_t i = 0; i < n_isas; i++) {
                poison(q, sizeof q);
                for (size_t t = 0; t < tokens; t++) {
                    const size_t bundled = fl_bundle_width(tokens);
                    void *bundle = fl_bundle_of(q, WIDTH / FL_GROUP, tokens, t);
                    const fl_outliers outliers = fl_outliers_of(q, WIDTH / FL_GROUP, tokens, t);
                    isas[i]->quantize(x + t * WIDTH, WIDTH, bundle, bundled, t % bundled, &outliers);
                }
                const fl_inputs in = {.f = x, .f_stride = WIDTH, .q = q, .parts = 1};
                memset(out, 0, sizeof out);
                isas[i]->matmul[type](&w, 0, (D + 15) / 16, &in, tokens, out, STRIDE, 0);
                same_floats(i, isas[i]->name, out, T * STRIDE);
                if (!round) continue;
                expect(none_finite(out + bad * STRIDE, D), "the broken token");
                for (size_t t = 0; t < tokens; t++) {
                    const float *row = out + t * STRIDE;
                    expect(t == bad || memcmp(row, clean + t * STRIDE, D * sizeof *row) == 0, "the others");
                }
            }
            memcpy(clean, out, sizeof clean);
        }
        fl_free((void *)w.data);
    }
}

// A position with a NaN makes rows that see it NaN, and leaves the others as they are without it.
static void broken_positions(void) {
    enum { ROWS = 48, LONGEST = 1100, HEAD = 40 };
    static float q[ROWS * HEAD], keys[LONGEST * HEAD], values[LONGEST * HEAD], out[ROWS * HEAD], clean[ROWS * HEAD];
    for (size_t number = 0; number < 80; number++) {
        const fl_type type = number % 2 ? FL_F16 : FL_F32;
        const size_t rows = between(1, ROWS), n = number % 4 < 2 ? between(1, 130) : between(1, LONGEST);
        const size_t head = between(2, HEAD), bad = between(0, n - 1);
        size_t seen[ROWS];
        describe("attend_%s rows %zu positions %zu head_dim %zu, %zu is broken", type_name(type), rows, n, head, bad);
        for (size_t r = 0; r < rows; r++) seen[r] = number % 3 ? n - (n > rows ? rows - 1 - r : 0) : between(1, n);
        fill(q, rows * head, 0.5f);
        fill(keys, n * head, 1);
        fill(values, n * head, 1);
        for (size_t round = 0; round < 2; round++) {
            if (round) *((number / 8 % 2 ? keys : values) + bad * head + between(0, head - 1)) = NAN;
            for (size_t i = 0; i < n_isas; i++) {
                expect(fl_attend_rows(isas[i], type, rows, n, head, q, keys, values, seen, out) == FL_OK, "memory");
                same_floats(i, isas[i]->name, out, rows * head);
                for (size_t r = 0; round && r < rows; r++) {
                    const float *row = out + r * head;
                    const int same_bits = memcmp(row, clean + r * head, head * sizeof *row) == 0;
                    if (seen[r] <= bad) expect(same_bits, "a row before it");
                    else expect(!fl_finite(row, head), "a row that sees it");
                }
            }
            memcpy(clean, out, sizeof clean);
        }
    }
}

void test_nonfinite(void) {
    broken_vectors();
    broken_tokens();
    broken_positions();
}
