// Cosines and sines that are the same on every machine, as a C library's are not, and the rotation by them.
#include "rope.h"

#include <math.h>
#include <stdint.h>

// sin and cos of r, |r| <= pi / 4, by Taylor's series: the first term left out is below 2^-55.
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

// Reduces an angle of 2^20 or more (Payne and Hanek, 1983): angle = quadrant * pi / 2 + the result, |result| <= pi / 4,
// the quadrant modulo 4.
//
// With angle = m 2^e, m an integer below 2^24, m 2^e (2 / pi) is the number of quadrants. Bits of 2 / pi that are worth
// 4 * 2^-e or more make whole turns of it, and do not count. The 96 bits below them are enough: 70 bits behind the
// point of their product with m 2^e are exact.
//
//   2 / pi =  0.10100010 ... | 96 bits, the first worth 2 * 2^-e | ...
//             whole turns    | window                            | too small to matter
static double reduce(float angle, unsigned *quadrant) {
    // 2 / pi, after two zero words: word 2 begins at the bit worth 1/2.
    static const uint32_t words[] = {0,          0,          0xa2f9836eu, 0x4e441529u, 0xfc2757d1u,
                                     0xf534ddc0u, 0xdb629599u, 0x3c439041u, 0xfe5163abu};
    int e;
    const uint64_t m = (uint64_t)(frexp(fabs((double)angle), &e) * 16777216.0);
    e -= 24; // angle = m 2^e
    // The window begins with the bit of 2 / pi that is worth 2^(1 - e), whose product with 2^e is 2.
    const unsigned first = (unsigned)(64 + e - 2), word = first / 32, shift = first % 32;
    uint32_t window[3];
    for (unsigned i = 0; i < 3; i++)
        window[i] = (uint32_t)((((uint64_t)words[word + i] << 32 | words[word + i + 1]) << shift) >> 32);
    // m times a fixed-point number of 2 bits before the point and 94 behind, modulo 4.
    const uint64_t low = m * window[2], middle = m * window[1] + (low >> 32), high = m * window[0] + (middle >> 32);
    const uint64_t top = high << 32 | (middle & UINT32_MAX); // 2 bits before the point, 62 behind
    const uint64_t rounded = top + ((uint64_t)1 << 61);      // the nearest quadrant
    *quadrant = (unsigned)(rounded >> 62);
    const double turn = (double)(int64_t)(top - (rounded >> 62 << 62)) * 0x1p-62 * 1.57079632679489661923;
    if (angle >= 0) return turn;
    *quadrant = 4 - *quadrant;
    return -turn;
}

void fl_rope_angles(size_t pos, const float *freqs, size_t half, float *cos, float *sin) {
    // pi / 2 in two parts, the first of 33 bits: its product with a quadrant below 2^20 is exact.
    const double high = 1.57079632673412561417e+00, low = 6.07710050650619224932e-11;
    for (size_t i = 0; i < half; i++) {
        const float angle = (float)pos * freqs[i];
        unsigned quadrant;
        double r;
        if (!isfinite(angle)) {
            cos[i] = sin[i] = NAN;
            continue;
        }
        if (fabsf(angle) < 0x1p20f) {
            const double q = floor((double)angle * 0.63661977236758134308 + 0.5);
            quadrant = (unsigned)(int)q;
            r = ((double)angle - q * high) - q * low;
        } else {
            r = reduce(angle, &quadrant);
        }
        const double s = sin_near(r), c = cos_near(r);
        switch (quadrant & 3) {
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
