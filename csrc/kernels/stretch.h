// A stretch: what staged.h lays out in L1 and dots.h or amx.h multiplies with all tokens that pass by.
#ifndef FL_STRETCH_H
#define FL_STRETCH_H

#include "product.h"

enum {
    STRETCH_GROUPS = 24,
    STRETCH_BUNDLES = 64 / FL_STRETCH_PANELS, // for which a stretch stays in L1; their sums are 64 KiB
    BUNDLE_SUMS = FL_LANES * FL_LANES,        // of a bundle's 16 tokens and a panel's 16 rows: sums[place][row]
};

// A few groups of P neighbouring panels of a product, with a share of its tokens.
typedef struct stretch {
    const product *p;
    size_t panel, token;                        // the first of each
    size_t bundle_groups;                       // from one bundle of the tokens' to the next: the product's groups
    size_t groups;                              // of this stretch
    int begins, ends;                           // the sums begin with it; they end with it, and go to the output
    const uint8_t *lines[FL_STRETCH_PANELS];    // of each panel: 8 lines of int8 a group, as vb_reload takes them
    const uint8_t *scales[FL_STRETCH_PANELS];   // of each panel: fl_group_scales bytes a group
    const uint8_t *upcoming[FL_STRETCH_PANELS]; // of each panel: lines of the next stretch, fetched meanwhile
} stretch;

// Fetches into L2 what follows group g of panel i.
static FL_INLINE void fetch_upcoming(const fl_type type, const stretch *s, size_t i, size_t g) {
    const size_t bytes = fl_group_bytes(type);
    FL_UNROLL for (size_t at = 0; at < bytes; at += 64) FL_PREFETCH_L2(s->upcoming[i] + g * bytes + at);
}

#endif
