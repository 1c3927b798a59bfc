// What lies where in a KV page: 64 positions, a multiple of 64 and those after it, of all layers and KV heads.
//
//   page     | layer 0, head 0 | layer 0, head 1 | ... | last layer, last head | mask: 64 f32 |
//   a head   | keys | scales | values | scales |      scales: of FL_Q8 alone;  mask: with a pad_token alone
//
//   keys: a row for each channel               values: a row for each position
//               position  0  1  2  ..  63                    channel  0  1  ..  head_dim - 1, up to a multiple of 16
//   channel 0             k  k  k  ..  k        position 0            v  v  ..  v  -
//   channel 1             k  k  k  ..  k        position 1            v  v  ..  v  -
//   ..                                          ..
//   scales: (groups, 64) f32                    scales: (64, groups) f32
//
// Keys are transposed so that a vector of them is one channel of 16 positions: the scores of 16 positions are then sums
// within lanes, and so are the sums of values, whose vectors are 16 channels of one position. A group is 32 channels of
// a position, of which the last may have fewer.
#ifndef FL_PAGES_H
#define FL_PAGES_H

#include "kernels/kernels.h"

// Where a head's keys and values begin in a page, and the mask, which is added to the scores of each position; in
// bytes.
static inline size_t fl_page_keys(const fl_model *m, size_t layer, size_t head) {
    const size_t head_dim = m->config.head_dim;
    const size_t bytes = fl_keys_bytes(m->kv_type, head_dim) + fl_values_bytes(m->kv_type, head_dim);
    return (layer * m->config.n_kv_heads + head) * bytes;
}

static inline size_t fl_page_values(const fl_model *m, size_t layer, size_t head) {
    return fl_page_keys(m, layer, head) + fl_keys_bytes(m->kv_type, m->config.head_dim);
}

static inline size_t fl_page_mask(const fl_model *m) { return fl_page_keys(m, m->config.n_layers, 0); }

#endif
