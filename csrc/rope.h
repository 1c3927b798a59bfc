// Rotary position embedding (Su et al., 2021), half-split pairs.
#ifndef FL_ROPE_H
#define FL_ROPE_H

#include <stddef.h>

// Writes cos[i] and sin[i] of the angle pos * freqs[i], in radians, for i < half. The angle is rounded to f32, as the
// reference implementations do. The rest is computed in double: on any machine the same f32, the nearest one but for
// rare ties. NaN where the angle is not finite.
void fl_rope_angles(size_t pos, const float *freqs, size_t half, float *cos, float *sin);

// Rotates the pairs (x[i], x[i + half]) of x (2 half,) by the angles whose cosines and sines are given, i < half.
void fl_rope(float *x, const float *cos, const float *sin, size_t half);

#endif
