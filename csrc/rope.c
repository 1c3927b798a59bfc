#include "rope.h"

#include <math.h>

// sin and cos of r, |r| <= pi / 4: Taylor's series, whose first left-out terms are below 2^-55.
static double sin_near(double r) {
    const double z = r * r;
    double p = 1.0 / 355687428096000.0;
    p = p * z - 1.0 / 1307674368000.0;
    p = p * z + 1.0 / 6227020800.0;
    p = p * z - 1.0 / 39916800.0;
    p = p * z + 1.0 / 362880.0;
    p = p * z - 1.0 / 5040.0;
    p = p * z + 1.0 / 120.0;
    p = p * z - 1.0 / 6.0;
    return r + r * z * p;
}

static double cos_near(double r) {
    const double z = r * r;
    double p = 1.0 / 20922789888000.0;
    p = p * z - 1.0 / 87178291200.0;
    p = p * z + 1.0 / 479001600.0;
    p = p * z - 1.0 / 3628800.0;
    p = p * z + 1.0 / 40320.0;
    p = p * z - 1.0 / 720.0;
    p = p * z + 1.0 / 24.0;
    p = p * z - 0.5;
    return 1.0 + z * p;
}

void fl_rope_angles(size_t pos, const float *freqs, size_t half, float *cos, float *sin) {
    // pi / 2 in two parts, the first of 33 bits: its product with a quadrant below 2^20 is exact.
    const double high = 1.57079632673412561417e+00, low = 6.07710050650619224932e-11;
    for (size_t i = 0; i < half; i++) {
        const float angle = (float)pos * freqs[i];
        const double quadrant = floor((double)angle * 0.63661977236758134308 + 0.5);
        const double r = ((double)angle - quadrant * high) - quadrant * low;
        const double s = sin_near(r), c = cos_near(r);
        switch ((long long)quadrant & 3) {
        case 0: cos[i] = (float)c; sin[i] = (float)s; break;
        case 1: cos[i] = (float)-s; sin[i] = (float)c; break;
        case 2: cos[i] = (float)-c; sin[i] = (float)-s; break;
        default: cos[i] = (float)s; sin[i] = (float)-c;
        }
    }
}

void fl_rope(float *x, const float *cos, const float *sin, size_t half) {
    for (size_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = a * sin[i] + b * cos[i];
    }
}
