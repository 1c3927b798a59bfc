// What lies where in a page: the keys and values of 64 positions, from a multiple of 64 on, in the layers of one kind
// and all KV heads. In a model whose layers 0, 1, 3, 4 have a window and 2, 5 have none, page i of a sequence is two
// pages in C:
//
//   kind 0   | layer 0, head 0 | layer 0, head 1 | .. | layer 1, .. | layer 3, .. | layer 4, .. | mask: 64 f32 |
//   kind 1   | layer 2, head 0 | layer 2, head 1 | .. | layer 5, .. | mask |
//   a head   | keys | scales | values | scales |      scales: of FL_Q8 and FL_Q4;  mask: with a pad_token alone
//
// As FL_F32 and FL_F16:
//
//   keys: a row for each channel               values: a row for each position
//               position  0  1  2  ..  63                    channel  0  1  ..  head_dim - 1, up to a multiple of 16
//   channel 0             k  k  k  ..  k        position 0            v  v  ..  v  -
//   channel 1             k  k  k  ..  k        position 1            v  v  ..  v  -
//
// A vector of keys is one channel of 16 positions, and a vector of values 16 channels of one position: scores, sums
// over channels, and sums of values over positions, then add up within lanes.
//
// As FL_Q8, keys and values are turned (kernels/turn.h) and lie in lines of 64 bytes, 16 lanes x 4, which lanes of an
// integer dot product take:
//
//   keys: 4 lines for each 4 channels                    values: a line for each 4 positions and 16 channels
//             positions 0-15  16-31  32-47  48-63                  channels 0-15  16-31  ..
//   channels 0-3    line      line   line   line         positions 0-3    line    line   ..
//   channels 4-7    line      line   line   line         positions 4-7    line    line   ..
//   scales: (groups, 64) f32, a group being 32           scales: (64,) f32
//   channels of a position, or fewer in the last
//
// FL_Q4 has these lines in fewer bits, and scales (groups, 64) of f16 for both. Keys are integers of -31 to 31, stored
// as six bits of key + 32; values are codes of four bits into the table of turn.h. For 16 channels and 16 positions,
// the four lines of keys, 0 to 3, become three; two lines of values become one:
//
//   bits of a byte      76  54  32  10                   76  54  32  10
//   low four bits       line 1  line 0                   positions 4-7  positions 0-3
//   low four bits       line 3  line 2                   positions 12-15  positions 8-11
//   high two bits        3   2   1   0                   ..
#ifndef FL_PAGES_H
#define FL_PAGES_H

#include "kernels/kernels.h"

// Bytes of the keys and values of one KV head of a layer.
static inline size_t fl_page_head(const fl_model *m) {
    return fl_keys_bytes(m->kv_type, m->config.head_dim) + fl_values_bytes(m->kv_type, m->config.head_dim);
}

// At which byte of a page, one of the layer's kind, a head's keys and values begin.
static inline size_t fl_page_keys(const fl_model *m, size_t layer, size_t head) {
    return (m->layers[layer].place * m->config.n_kv_heads + head) * fl_page_head(m);
}

static inline size_t fl_page_values(const fl_model *m, size_t layer, size_t head) {
    return fl_page_keys(m, layer, head) + fl_keys_bytes(m->kv_type, m->config.head_dim);
}

// At which byte of a page of a kind the mask begins, which is added to the scores of each position.
static inline size_t fl_page_mask(const fl_model *m, size_t kind) {
    return m->kinds[kind].layers * m->config.n_kv_heads * fl_page_head(m);
}

#endif
