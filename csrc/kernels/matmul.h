// Matrix products of every type: which of the two ways, and what size of tile, suits so many tokens.
#ifndef FL_MATMUL_H
#define FL_MATMUL_H

#include "direct.h"
#include "outliers.h"
#include "staged.h"

static FL_INLINE void matmul(const fl_type type, const fl_matrix *w, size_t panel0, size_t panel1, const fl_inputs *in,
                             size_t tokens, float *out, size_t out_stride, int add) {
    const size_t parts = fl_is_int8(type) ? in->parts : 1, rows = tokens * parts;
    product p = {.panels = w->data, .values = w->values, .panel_bytes = fl_panel_bytes(type, w->n), .n = w->n, .in = in,
                 .tokens = rows, .parts = parts, .out = out, .out_stride = out_stride, .add = add};
    // Looking up four-bit codes takes registers and time: four streams are then read faster than eight. With more
    // tokens, and registers enough, one look-up serves several products.
    const size_t streams = fl_is_q4(type) ? 4 : FL_STREAMS, wide = FL_FEW >= 8 ? FL_STREAMS : streams;
    if (rows == 1) multiply_direct(streams, 1, type, &p, panel0, panel1);
    else if (rows == 2) multiply_direct(streams, 2, type, &p, panel0, panel1);
    else if (fl_is_int8(type) && fl_bundle_width(rows) > 1) multiply_staged(type, &p, panel0, panel1);
    else if (rows <= 4) multiply_direct(wide / 2, 4, type, &p, panel0, panel1);
    else if (rows <= 8 && FL_FEW >= 8) multiply_direct(wide / 4, 8, type, &p, panel0, panel1);
    else multiply_direct(FL_TILE_PANELS, fl_is_int8(type) ? 4 : FL_TILE_TOKENS, type, &p, panel0, panel1);
    if (fl_is_int8(type) && parts == 1) add_outliers(type, &p, panel0, panel1);
}

#define MATMUL(name, type)                                                                                           \
    static void matmul_##name(const fl_matrix *w, size_t panel0, size_t panel1, const fl_inputs *in, size_t tokens, \
                              float *out, size_t out_stride, int add) {                                              \
        matmul(type, w, panel0, panel1, in, tokens, out, out_stride, add);                                           \
    }
MATMUL(f32, FL_F32)
MATMUL(f16, FL_F16)
MATMUL(bf16, FL_BF16)
MATMUL(q8, FL_Q8)
MATMUL(q4, FL_Q4)
MATMUL(q4_min, FL_Q4_MIN)
#undef MATMUL

#endif
