// Layers with experts (Shazeer et al., 2017).
#ifndef FL_MOE_H
#define FL_MOE_H

#include "forward.h"

// What the experts of a layer, and its shared expert if it has one, make of the stream s->x after `norm` (without a
// weight: as it is). Writes s->y, of which each worker has the rows of its own share of tokens when this returns: the
// others' are complete after the next barrier.
void fl_moe(const fl_worker *w, const fl_layer *l, const fl_norm *norm);

#endif
