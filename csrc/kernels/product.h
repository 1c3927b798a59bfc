// A matrix product, as the two ways to compute it share it: direct.h and staged.h.
#ifndef FL_PRODUCT_H
#define FL_PRODUCT_H

#include "arguments.h"
#include "vectors.h"

// out[t][r] = or += sum over k of w[r][k] * x[t][k].
typedef struct product {
    const uint8_t *panels; // of w
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

// f16 scales, or the f32 ones of FL_Q8_F32.
static FL_INLINE fl_type scale_type(const fl_type type) { return type == FL_Q8_F32 ? FL_F32 : FL_F16; }
static FL_INLINE size_t scales_of_group(const fl_type type) { return FL_LANES * (type == FL_Q8_F32 ? 4 : 2); } // bytes

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

// Lines 2 i and 2 i + 1 of a group of int8, i < 4.
static FL_INLINE void load_lines(const fl_type type, const uint8_t *group, size_t i, vb line[2]) {
    if (type == FL_Q4) {
        vb_load_codes(group + i * 64, &line[0], &line[1]);
    } else {
        line[0] = vb_load((const int8_t *)group + i * 128);
        line[1] = vb_load((const int8_t *)group + i * 128 + 64);
    }
}

#endif
