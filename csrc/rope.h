// Rotary position embedding (Su et al., 2021), half-split pairs.
#ifndef FL_ROPE_H
#define FL_ROPE_H

#include <stddef.h>

// cos and sin of pos * freqs[i]. The angle is rounded to f32 as the references do; the rest is in double, so that
// the result is the nearest f32 but for rare ties, on any machine. NaN where the angle is not finite.
void fl_rope_angles(size_t pos, const float *freqs, size_t half, float *cos, float *sin);

// Rotates pairs (x[i], x[i + half]).
void fl_rope(float *x, const float *cos, const float *sin, size_t half);

#endif
