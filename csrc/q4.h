// Four-bit panels, and what a calibration text says of their errors.
#ifndef FL_Q4_H
#define FL_Q4_H

#include "fastllm.h"

// The code and value nearest to an integer between -127 and 127, by its low byte.
typedef struct fl_q4_grid {
    uint8_t code[256];
    float value[256];
} fl_q4_grid;

void fl_q4_fill(fl_q4_grid *g);

// Group of columns k .. k + 31 of 16 rows, x, as codes and scales: `scales` (16,) and `tiles` (256 bytes) of the group.
// errors (16, s->n): w - code * scale of the columns before k, to which this group's are added; only with s->feedback.
fl_status fl_q4_store(const fl_q4_grid *g, uint16_t *scales, uint8_t *tiles, const fl_source *s, size_t k,
                      float (*x)[FL_GROUP], float *errors);

// Code of (row `lane`, column k) of a group: its byte, and how far to shift.
size_t fl_q4_index(size_t lane, size_t k, unsigned *shift);

#endif
