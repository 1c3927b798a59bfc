// Attention of a batch to the KV pages of its sequences.
#ifndef FL_ATTENTION_H
#define FL_ATTENTION_H

#include "forward.h"

// Turns the queries, keys and values of all tokens (s->q, s->k, s->v) into s->att: rotates and stores keys and values
// in the pages of `layer`, attends to what each token sees, and writes the probabilities where the forward's outputs
// want them. s->att is complete after the next barrier.
void fl_attention(const fl_worker *w, size_t layer);

#endif
