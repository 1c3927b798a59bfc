// Layers with experts.
#ifndef FL_MOE_H
#define FL_MOE_H

#include "forward.h"

// What the experts of a layer make of the stream s->x, normed by ffn_norm: into s->y, complete for the tokens of this
// thread's share.
void fl_moe(const fl_job *f, const fl_layer *l, fl_team *team, size_t id);

#endif
