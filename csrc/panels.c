// What a panel's layout (panels.h) means in bytes, and reading a row back out of it.
#include "panels.h"

#include "fpenv.h"

// The table of weights that fl_pack rounds to four bits is Lloyd's (1982, "Least squares quantization in PCM") for the
// weights of trained models, each group scaled as q4.c scales it. It reaches further on its negative side: a scale may
// be negative, which turns that side to the group's largest weight.
const int8_t fl_q4_values[16] = {-127, -100, -78, -61, -47, -33, -20, -8, 1, 12, 24, 36, 50, 64, 81, 107};

size_t fl_panel_bytes(fl_type type, size_t n) {
    if (n > SIZE_MAX / (FL_LANES * 16)) return 0;
    const size_t groups = fl_groups(n), values = groups * FL_GROUP * FL_LANES;
    switch (type) {
    case FL_F32: return values * 4;
    case FL_F16:
    case FL_BF16: return values * 2;
    case FL_Q8:
    case FL_Q4:
    case FL_Q4_MIN: return fl_scales_bytes(type, groups) + groups * fl_group_bytes(type);
    default: return 0;
    }
}

size_t fl_matrix_bytes(fl_type type, size_t d, size_t n) {
    const size_t panel = fl_panel_bytes(type, n), panels = d / FL_LANES + (d % FL_LANES != 0);
    return panel > 0 && panels > SIZE_MAX / panel ? 0 : panels * panel;
}

// Row `lane` of a float panel: n values.
static void float_row(fl_type type, const void *panel, size_t lane, size_t n, float *out) {
    for (size_t k = 0; k < n; k++) {
        const size_t i = k * FL_LANES + lane;
        if (type == FL_F32) out[k] = ((const float *)panel)[i];
        else if (type == FL_F16) out[k] = fl_f32_from_f16(((const uint16_t *)panel)[i]);
        else out[k] = fl_f32_from_bf16(((const uint16_t *)panel)[i]);
    }
}

// Row `lane` of an int8 panel.
static void int8_row(const fl_matrix *w, const void *panel, size_t lane, float *out) {
    const fl_type type = w->type;
    const uint8_t *lines = (const uint8_t *)panel + fl_scales_bytes(type, fl_groups(w->n));
    const uint16_t *scales = panel;
    for (size_t k = 0; k < w->n; k += FL_GROUP, lines += fl_group_bytes(type), scales += fl_group_scales(type) / 2) {
        const size_t count = w->n - k < FL_GROUP ? w->n - k : FL_GROUP;
        const float scale = fl_f32_from_f16(scales[lane]);
        const float minimum = type == FL_Q4_MIN ? fl_f32_from_f16(scales[FL_LANES + lane]) : 0.0f;
        for (size_t i = 0; i < count; i++) {
            unsigned shift = 0;
            const size_t byte = fl_is_q4(type) ? fl_q4_index(lane, i, &shift) : fl_q8_index(lane, i);
            const int8_t value = fl_is_q4(type) ? w->values[lines[byte] >> shift & 15] : (int8_t)lines[byte];
            const float product = (float)value * scale;
            out[k + i] = type == FL_Q4_MIN ? product + minimum : product; // adding 0 would change -0
        }
    }
}

void fl_matrix_row(const fl_matrix *w, size_t r, float *out) {
    const char *panel = (const char *)w->data + r / FL_LANES * fl_panel_bytes(w->type, w->n);
    const fl_fpenv before = fl_fpenv_set();
    if (fl_is_int8(w->type)) int8_row(w, panel, r % FL_LANES, out);
    else float_row(w->type, panel, r % FL_LANES, w->n, out);
    fl_fpenv_restore(before);
}
