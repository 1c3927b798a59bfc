// The vectors that all kernels are written over: 16 lanes, whatever the width of the machine's registers. The build
// defines FL_LANES_H as one of lanes_*.h, which supplies them; lanes_scalar.h says what each function does.
//
//   vf   16 floats
//   vi   16 int32
//   vb   64 bytes: a line of an int8 panel, 16 rows x 4 k, in the form that the machine's dot product takes
//   vt   the table of a matrix of four bits: 16 int8, in the form in which their codes are looked up
//
// Each set also says how much fits its registers and what its CPUs do well:
//
//   FL_ISA             its name
//   FL_STREAMS         panels that are read at once for one token
//   FL_FEW             the most tokens, 4 or 8, for which reading the weights takes longer than multiplying with them
//   FL_TILE_PANELS     panels and
//   FL_TILE_TOKENS     tokens of a tile of many tokens, whose sums stay in registers
//   FL_STRETCH_PANELS  panels of a stretch, see staged.h; FL_TILE_PANELS if not given
//   FL_UNPACKS         1: a stretch's q8 lines are converted once, to what vb_reload takes, and not at each load
//   FL_MUL_VECTORS     vectors of sums that a tile of attention keeps in registers
#ifndef FL_LANES_COMMON_H
#define FL_LANES_COMMON_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"
#include "fastllm.h"
#include FL_LANES_H

#ifndef FL_STRETCH_PANELS
#define FL_STRETCH_PANELS FL_TILE_PANELS
#endif

#ifndef FL_DOT_AT
// c + the products of a line with the four activations q[k .. k + 3] of a token.
static inline vi vi_dot_at(vi c, vb line, const int8_t *q, size_t k) {
    int32_t four;
    memcpy(&four, q + k, 4);
    return vi_dot(c, line, four);
}
#endif

#ifndef FL_DOT_CODES
// The same for up to 8 lines whose weights are 0 to 15; vi_from_codes_dot makes sums of what comes out. Such products
// take fewer instructions on some machines.
static inline vi vi_dot_codes_at(vi c, vb line, const int8_t *q, size_t k) { return vi_dot_at(c, line, q, k); }
static inline vi vi_from_codes_dot(vi c) { return c; }
#endif

#endif
