// Keys and values on their way to pages, and queries and outputs as keys and values in few bits need them.
#ifndef FL_KV_H
#define FL_KV_H

#include "scratch.h"

// Stores own->key and value (head_dim,), both of which it overwrites, in a page as its position `slot`, for a KV head
// of a layer.
void fl_kv_store(const fl_model *m, const fl_worker_scratch *own, size_t layer, size_t head, float *value, void *page,
                 size_t slot);

// Where fl_kv_rounded: a query (head_dim,) as keys of FL_Q8 and FL_Q4 are multiplied with it, out (groups,). Overwrites
// own->key.
void fl_kv_round_query(const fl_model *m, const fl_worker_scratch *own, const float *q, fl_query *out);

// Where fl_kv_rounded: turns a sum of values, x (head_dim,), back.
void fl_kv_turn_back(const fl_model *m, float *x);

#endif
