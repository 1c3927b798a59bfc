// Products of int8 weights with the outliers of activations (quantize.h), as floats: they are few, one for some of a
// token's groups, and each is one column of the matrix. A token's outliers add up by themselves, groups ascending, and
// their sum is added to the token's outputs once. A token without any keeps its bits. Weights' minima are not in it:
// they have been multiplied by the sums of whole groups.
#ifndef FL_OUTLIERS_H
#define FL_OUTLIERS_H

#include "product.h"

enum { OUTLIER_PANELS = FL_STREAMS > 4 ? 8 : 4 }; // whose sums stay in registers

// Column k of group g of a panel: 16 weights, as integers. A line holds four columns; `one` picks one of them.
static FL_INLINE vf column_of(const fl_type type, const vt table, const uint8_t *lines, size_t g, size_t k) {
    static const int8_t one[4][FL_LANES] = {{1}, {0, 1}, {0, 0, 1}, {0, 0, 0, 1}};
    static const int8_t none[FL_LANES] = {0};
    const uint8_t *group = lines + g * fl_group_bytes(type);
    vi dot = vi_dot_start(-128);
    if (fl_is_q4(type)) {
        vb low, high;
        vb_load_codes(group + k / 8 * 64, table, &low, &high);
        dot = vi_dot_at(dot, low, k / 4 % 2 ? none : one[k % 4], 0);
        dot = vi_dot_at(dot, high, k / 4 % 2 ? one[k % 4] : none, 0);
    } else {
        dot = vi_dot_at(dot, vb_load((const int8_t *)group + k / 4 * 64), one[k % 4], 0);
    }
    return vf_from_vi(dot);
}

// Adds to the outputs of token t, in P panels from `panel` on, the products with its outliers of the groups in a list.
static FL_INLINE void add_outliers_of(const size_t P, const fl_type type, const product *p, size_t panel, size_t t,
                                      const fl_outliers *outliers, const uint32_t *list, size_t count) {
    const size_t lines = fl_scales_bytes(type, fl_groups(p->n));
    const vt table = vt_load(p->values);
    const uint8_t *w[OUTLIER_PANELS];
    vf sum[OUTLIER_PANELS];
    FL_UNROLL for (size_t i = 0; i < P; i++) w[i] = p->panels + (panel + i) * p->panel_bytes, sum[i] = vf_set1(0.0f);
    for (size_t j = 0; j < count; j++) {
        const size_t g = list[j], k = outliers->k[g];
        const vf value = vf_set1(outliers->value[g]);
        FL_UNROLL for (size_t i = 0; i < P; i++) {
            const vf scale = load_scales(w[i] + g * fl_group_scales(type));
            sum[i] = vf_fma(column_of(type, table, w[i] + lines, g, k), vf_mul(scale, value), sum[i]);
        }
    }
    float *out = p->out + t * p->out_stride + panel * FL_LANES;
    FL_UNROLL for (size_t i = 0; i < P; i++)
        vf_store(out + i * FL_LANES, vf_add(vf_load(out + i * FL_LANES), sum[i]));
}

// Lists the groups from `begin` on, a multiple of 8, and before `end` that have an outlier; returns how many.
static FL_INLINE size_t list_outliers(const fl_outliers *outliers, size_t begin, size_t end, uint32_t *list) {
    size_t count = 0;
    for (size_t g = begin; g < end; g += 8) {
        uint64_t k;
        memcpy(&k, outliers->k + g, 8);
        // The highest bit of a byte is set where there is none. The bytes past the last group may hold anything.
        uint64_t some = ~k & UINT64_C(0x8080808080808080);
        if (end - g < 8) some &= (UINT64_C(1) << 8 * (end - g)) - 1;
        for (; some; some &= some - 1) list[count++] = (uint32_t)(g + fl_lowest_bit(some) / 8);
    }
    return count;
}

// out[t][r] += the products with the outliers of token t, for all tokens and panels [panel0, panel1).
static FL_INLINE void add_outliers(const fl_type type, const product *p, size_t panel0, size_t panel1) {
    enum { P = OUTLIER_PANELS, MOST = 512 };
    const size_t groups = fl_groups(p->n);
    for (size_t t = 0; t < p->tokens; t++) {
        const fl_outliers outliers = fl_outliers_of(p->in->q, groups, p->tokens, t);
        for (size_t g = 0; g < groups; g += MOST) {
            uint32_t list[MOST];
            const size_t count = list_outliers(&outliers, g, groups - g > MOST ? g + MOST : groups, list);
            if (count == 0) continue;
            size_t panel = panel0;
            for (; panel + P <= panel1; panel += P) add_outliers_of(P, type, p, panel, t, &outliers, list, count);
            for (; panel < panel1; panel++) add_outliers_of(1, type, p, panel, t, &outliers, list, count);
        }
    }
}

#endif
