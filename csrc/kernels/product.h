// A matrix product, as the two ways to compute it share it: direct.h and staged.h.
#ifndef FL_PRODUCT_H
#define FL_PRODUCT_H

#include "arguments.h"
#include "vectors.h"

// out[t][r] = or += sum over k of w[r][k] * x[t][k].
typedef struct product {
    const uint8_t *panels; // of w
    const int8_t *values;  // (16,) of w's codes
    size_t panel_bytes, n;
    const fl_inputs *in;
    size_t tokens; // rows of the inputs: `parts` for each token
    size_t parts;
    float *out;
    size_t out_stride;
    int add;
    size_t apart; // a tile's panels are so many panels apart
    size_t next;  // and the next tile's are so many panels after them: what is fetched ahead
} product;

// A group's 16 scales, and the 16 minima that FL_Q4_MIN has after them.
static FL_INLINE vf load_scales(const uint8_t *scales) { return load_float(FL_F16, scales, 0); }
static FL_INLINE vf load_minima(const uint8_t *scales) { return load_float(FL_F16, scales, FL_LANES); }

// Panel i of a tile whose first panel is number `first`.
static FL_INLINE const uint8_t *panel_at(const product *p, size_t first, size_t i) {
    return p->panels + (first + i * p->apart) * p->panel_bytes;
}

// Stores the sum of row t of the inputs. Rows come in order, so that a token's second part finds its first.
static FL_INLINE void store_sum(const product *p, size_t panel, size_t t, vf sum) {
    const size_t second = t & (p->parts - 1);
    float *out = p->out + (t - second) / p->parts * p->out_stride + panel * FL_LANES;
    vf_store(out, p->add || second ? vf_add(vf_load(out), sum) : sum);
}

// Lines 2 i and 2 i + 1 of a group of int8, i < 4. table: of the codes of four bits.
static FL_INLINE void load_lines(const fl_type type, const vt table, const uint8_t *group, size_t i, vb line[2]) {
    if (fl_is_q4(type)) {
        vb_load_codes(group + i * 64, table, &line[0], &line[1]);
    } else {
        line[0] = vb_load((const int8_t *)group + i * 128);
        line[1] = vb_load((const int8_t *)group + i * 128 + 64);
    }
}

// Adds to the products of a group, `dot`, those of a line with the activations q[k .. k + 3].
static FL_INLINE vi dot_at(const fl_type type, vi dot, vb line, const int8_t *q, size_t k) {
    return type == FL_Q4_MIN ? vi_dot_codes_at(dot, line, q, k) : vi_dot_at(dot, line, q, k);
}

// The products of a whole group.
static FL_INLINE vf dot_end(const fl_type type, vi dot) {
    return vf_from_vi(type == FL_Q4_MIN ? vi_from_codes_dot(dot) : dot);
}

#endif
