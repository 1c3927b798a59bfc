// Attention of a batch over the KV pages of its sequences.
#ifndef FL_ATTENTION_H
#define FL_ATTENTION_H

#include "scratch.h"
#include "threads.h"

// Rotates and stores the keys and values (s->k, s->v) of all spans in the pages of `layer`, then turns the queries
// s->q into s->att; with maps, writes the probabilities too (see fl_outputs). Called by every thread of the team; s->att
// is complete only after the caller's next barrier.
void fl_attention(const fl_model *m, fl_scratch *s, const fl_span *spans, size_t n_spans, size_t layer, float *maps,
                  fl_team *team, size_t id);

// Where in a page lies what is added to the scores of its 64 positions, with a pad_token; in bytes.
static inline size_t fl_kv_mask(const fl_model *m) { return fl_kv_page_bytes(m) - FL_PAGE * sizeof(float); }

#endif
