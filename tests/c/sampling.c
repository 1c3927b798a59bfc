// The kernels of the sampler: the largest logit, softmax, and sums of probabilities.
#include <math.h>
#include <string.h>

#include "check.h"

enum { N = 1200 };

// Sums of the probabilities above a bound: one that all exceed, one that none exceeds, and some that are equal to a
// probability, the largest included. probs (n,) is zero past n.
static void test_above(const float *probs, size_t n, size_t best) {
    const float bounds[] = {0,
                            2,
                            probs[best],
                            probs[between(0, n - 1)],
                            probs[between(0, n - 1)],
                            fabsf(unit()) * 0x1p-6f};
    for (size_t j = 0; j < sizeof bounds / sizeof *bounds; j++)
        for (size_t start = 0; start < n; start += FL_SUM_PART) { // run by run, as the sampler does
            const size_t count = n - start < FL_SUM_PART ? n - start : FL_SUM_PART;
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
            expect(all > bounds[j] || want <= 0, "a sum is at least as large as its parts"); // the sampler relies on it
        }
}

void test_sampling(void) {
    static float x[N], out[N], sums[N / FL_SUM_PART + 1];
    for (size_t number = 0; number < 600; number++) {
        const size_t n = number < 40 ? number + 1 : between(1, N - 16), padded = fl_round_up(n, FL_LANES);
        const size_t runs = (n + FL_SUM_PART - 1) / FL_SUM_PART;
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
            for (size_t k = b * FL_SUM_PART; k < n && k < (b + 1) * FL_SUM_PART; k++) {
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

        // The same logits with some of what a grammar's mask or a broken model may put there.
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
