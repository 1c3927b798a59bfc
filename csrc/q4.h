// Rounds the weights of a panel to four bits.
#ifndef FL_Q4_H
#define FL_Q4_H

#include "fastllm.h"

// The 16 rows of a panel on their way to four bits, column by column. w is given; the rest is filled by fl_q4_pack.
typedef struct fl_q4_rows {
    float (*w)[FL_LANES];     // (n, 16) weights
    float (*value)[FL_LANES]; // (n, 16) of the table
    float (*error)[FL_LANES]; // (n, 16) w - value * scale
    float (*scale)[FL_LANES]; // (groups, 16)
} fl_q4_rows;

// Packs r->w into a panel that is all zeros, weighing errors by the importance, feedback and products of `s`.
fl_status fl_q4_pack(void *panel, const fl_source *s, const fl_q4_rows *r);

#endif
