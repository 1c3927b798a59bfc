// Number formats, exp, log and rotation angles.
#include <float.h>
#include <math.h>
#include <string.h>

#include "check.h"
#include "rope.h"

// Every f16 and bf16 to f32 and back, by functions and by kernels; and f32 just around the middle of each two f16.
void test_conversions(void) {
    static float value[3][FL_LANES], out[FL_LANES], one[FL_GROUP] = {1};
    static uint16_t panel[2][FL_LANES * FL_GROUP], half[48], want[48];
    const fl_inputs in = {.f = one, .f_stride = FL_GROUP, .parts = 1};
    const fl_type types[] = {FL_F16, FL_BF16};
    for (uint32_t h0 = 0; h0 < 65536; h0 += FL_LANES) {
        describe("conversions of 0x%04x and on", h0);
        int ok = 1;
        for (uint32_t j = 0; j < FL_LANES; j++) {
            const uint16_t h = (uint16_t)(h0 + j), exponent = h >> 10 & 31, mantissa = h & 1023;
            const float x = fl_f32_from_f16(h), b = fl_f32_from_bf16(h);
            double exact = ldexp(exponent ? mantissa + 1024 : mantissa, (exponent ? exponent : 1) - 25);
            if (exponent == 31) exact = mantissa ? NAN : INFINITY;
            ok &= isnan(exact) ? isnan(x) : (double)fabsf(x) == exact;
            ok &= isnan(x) || (signbit(x) != 0) == h >> 15;
            ok &= isnan(x) ? isnan(fl_f32_from_f16(fl_f16_from_f32(x))) : fl_f16_from_f32(x) == h;
            ok &= isnan(b) ? isnan(fl_f32_from_bf16(fl_bf16_from_f32(b))) : fl_bf16_from_f32(b) == h;
            // The middle to the next f16, and the floats before and after it. A tie goes to the even one of the two.
            const int finite = exponent < 31;
            const double unit_of_last = ldexp(1, (exponent ? exponent : 1) - 25);
            const float middle = finite ? (float)copysign(exact + unit_of_last / 2, h >> 15 ? -1.0 : 1.0) : 0;
            uint32_t bits;
            memcpy(&bits, &middle, 4);
            for (uint32_t side = 0; side < 3; side++) {
                value[side][j] = finite ? from_bits(bits - 1 + side) : 0;
                const uint32_t up = side == 2 || (side == 1 && h % 2 == 1);
                want[side * FL_LANES + j] = (uint16_t)(finite ? h + up : 0);
                ok &= fl_f16_from_f32(value[side][j]) == want[side * FL_LANES + j];
                if (!isfinite(b)) continue;
                const float near = from_bits(((uint32_t)h << 16) + 0x7fff + side);
                ok &= fl_bf16_from_f32(near) == (uint16_t)(h + (side == 2 || (side == 1 && h % 2 == 1)));
            }
            panel[0][j] = isnan(x) ? 0 : h;
            panel[1][j] = isnan(b) ? 0 : h;
        }
        expect(ok, "f16 and bf16 as defined");
        for (size_t i = 0; i < n_isas; i++) {
            const size_t n = 48 - h0 / FL_LANES % 17; // whole vectors and tails
            memset(half, 0, sizeof half);
            isas[i]->to_f16(half, value[0], n);
            same(i, isas[i]->name, half, sizeof half);
            expect(memcmp(half, want, n * sizeof *half) == 0, "to_f16 rounds to nearest even");
        }
        for (size_t t = 0; t < 2; t++) // a product with 1 is the load of a weight
            for (size_t i = 0; i < n_isas; i++) {
                const fl_matrix w = {panel[t], types[t], FL_LANES, 1, NULL, {0}};
                isas[i]->matmul[types[t]](&w, 0, 1, &in, 1, out, FL_LANES, 0);
                same(i, isas[i]->name, out, sizeof out);
            }
    }
}

void test_functions(void) {
    static float x[FL_SUM_PART], out[FL_SUM_PART], sums[1], cos_[61], sin_[61], freqs[61];
    for (int start = -88 * 1024; start < 88 * 1024; start += FL_SUM_PART) {
        describe("exp from %g", start / 1024.0);
        for (int k = 0; k < FL_SUM_PART; k++) x[k] = (float)(start + k) * 0x1p-10f + unit() * 0x1p-12f;
        for (size_t i = 0; i < n_isas; i++) {
            isas[i]->softmax(out, sums, x, FL_SUM_PART, 1, 0);
            same(i, isas[i]->name, out, sizeof out);
        }
        for (size_t k = 0; k < FL_SUM_PART; k++)
            if (x[k] > -87.3f) measure(EXP, ulps(out[k], exp((double)x[k])));
    }
    static double logs[FL_SUM_PART];
    // Normal numbers of all sizes, and those around 1.
    for (uint32_t bits = 0x00800000u; bits < 0x7F000000u; bits += 0x003FF0F1u) {
        describe("log from the float 0x%08x", bits);
        const size_t n = between(1, FL_SUM_PART);
        for (uint32_t k = 0; k < FL_SUM_PART; k++)
            x[k] = from_bits(k % 3 ? bits + k : 0x3F800000u - FL_SUM_PART / 2 + k);
        memset(logs, 0, sizeof logs);
        for (size_t i = 0; i < n_isas; i++) {
            isas[i]->log(logs, x, n);
            same(i, isas[i]->name, logs, n * sizeof *logs);
        }
        for (size_t k = 0; k < n; k++) {
            const double want = log((double)x[k]);
            expect(fabs(logs[k] - want) <= 4 * DBL_EPSILON * fabs(want), "log");
        }
    }
    for (size_t number = 0; number < 4000; number++) {
        const size_t pos = number < 1000 ? number : between(0, 1 << 20), half = between(1, 61);
        describe("rope angles of position %zu", pos);
        for (size_t i = 0; i < half; i++)
            freqs[i] = i == 0 ? 1 : (unit() + 1) * from_bits((uint32_t)between(107, 126) << 23);
        fl_rope_angles(pos, freqs, half, cos_, sin_);
        for (size_t i = 0; i < half; i++) {
            const double angle = (double)((float)pos * freqs[i]);
            measure(ROPE, ulps(cos_[i], cos(angle)));
            measure(ROPE, ulps(sin_[i], sin(angle)));
        }
        same(0, "", cos_, half * sizeof *cos_);
        same(0, "", sin_, half * sizeof *sin_);
    }
}
