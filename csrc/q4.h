// Four-bit panels, and what a calibration text says of their errors.
#ifndef FL_Q4_H
#define FL_Q4_H

#include "kernels/kernels.h"

// The 16 rows of a panel while they are packed; columns k and, of scale, groups.
typedef struct fl_q4_rows {
    float (*w)[FL_LANES]; // (n, 16) the weights; the others are filled
    float (*value)[FL_LANES], (*error)[FL_LANES], (*scale)[FL_LANES];
} fl_q4_rows;

// Packs a panel, which is all zeros, by what s says of the columns.
fl_status fl_q4_pack(void *panel, const fl_source *s, const fl_q4_rows *r);

// Code of (row `lane`, column k) of a group: its byte, and how far to shift.
size_t fl_q4_index(size_t lane, size_t k, unsigned *shift);

#endif
