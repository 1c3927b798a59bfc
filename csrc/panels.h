// The layout of weight matrices, which packing writes and the kernels read.
//
// A matrix (d, n) is a sequence of panels: 16 rows x all of n, so that a vector's 16 lanes are 16 rows. Rows are padded
// with zeros to a multiple of 16 and n to a multiple of 32. A float panel holds, for each k, 16 values, one of each
// row. An int8 panel of g groups (a group: 32 consecutive k, which share a scale) has its scales first, then its lines:
//
//     scales of group 0, 1, .. g - 1  (padding)  group 0's lines     group 1's lines      ...
//     |  16 f16 |  16 f16 | ...     |~~~~~~~~~~|L0|L1|L2| .. |L7|  |L0|L1|L2| .. |L7|
//
//     q8: line i of a group is 64 bytes, 16 rows x 4 k, what one dot-product instruction multiplies:
//       byte  0     1     2     3    |  4     5     6     7    | ... | 60    61    62    63
//       row   0     0     0     0    |  1     1     1     1    | ... | 15    15    15    15
//       k     4i   4i+1  4i+2  4i+3  |  4i   4i+1  4i+2  4i+3  | ... |  4i   4i+1  4i+2  4i+3
//
//     q4: four lines a group; each byte holds two codes into the matrix's table of 16 values. Line i has the codes of
//       what would be q8's line 2i in the low four bits of its bytes, and those of line 2i + 1 in the high four bits.
//
//     q4m: the same, and after each 16 scales 16 minima: |16 scales of group 0|16 minima of group 0|16 scales of ..
//
// Scales lie apart from the lines so that no line straddles two cache lines: 13 % faster from L2 with AVX-512.
#ifndef FL_PANELS_H
#define FL_PANELS_H

#include "compiler.h"
#include "fastllm.h"

// Always inlined: in kernels the type is a constant, and branches on it must be gone before loops are optimized.

// Whether products with a matrix of this type are of int8, and its activations must be quantized.
static FL_INLINE int fl_is_int8(fl_type type) { return type == FL_Q8 || type == FL_Q4 || type == FL_Q4_MIN; }

// Whether a panel holds codes of four bits into the matrix's table.
static FL_INLINE int fl_is_q4(fl_type type) { return type == FL_Q4 || type == FL_Q4_MIN; }

static FL_INLINE size_t fl_groups(size_t n) { return (n + FL_GROUP - 1) / FL_GROUP; }

// Bytes of a group's scales, and of its minima where the type has some.
static FL_INLINE size_t fl_group_scales(fl_type type) { return FL_LANES * (type == FL_Q4_MIN ? 4 : 2); }

// Bytes of those of so many groups at the head of an int8 panel, with their padding: its lines follow.
static FL_INLINE size_t fl_scales_bytes(fl_type type, size_t groups) {
    return fl_round_up(groups * fl_group_scales(type), FL_ALIGN);
}

// Bytes of a group's lines.
static FL_INLINE size_t fl_group_bytes(fl_type type) { return (size_t)FL_LANES * FL_GROUP / (fl_is_q4(type) ? 2 : 1); }

// Where the value of row `lane` and column k of a group is, in bytes from the group's first line.
static FL_INLINE size_t fl_q8_index(size_t lane, size_t k) { return k / 4 * 64 + lane * 4 + k % 4; }

// The same for a four-bit code: the byte that holds it, and by how much to shift that right.
static FL_INLINE size_t fl_q4_index(size_t lane, size_t k, unsigned *shift) {
    *shift = k / 4 % 2 * 4;
    return k / 8 * 64 + lane * 4 + k % 4;
}

#endif
