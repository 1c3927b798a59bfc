// Matrix products of int8 weights and many tokens: arithmetic takes longer than reading the weights.
//
// A stretch is STRETCH_GROUPS groups of P panels. It is laid out in L1 once, as the multiplying instructions want it,
// and up to STRETCH_BUNDLES bundles of tokens pass by; their sums wait in memory for the next stretch of the same
// panels. After the last one they go to the output.
//
//                    K, in groups ->
//     P panels      | stretch 0     | stretch 1     | stretch 2  |
//                        x               x               x
//     bundle 0        sums = ..   ->  sums += ..  ->  sums += ..  -> output
//     bundle 1        sums = ..   ->  sums += ..  ->  sums += ..  -> output
//     ..              all bundles pass stretch 0, then all pass stretch 1, ..
#ifndef FL_STAGED_H
#define FL_STAGED_H

#include "stretch.h"

#ifdef FL_AMX
#include "amx.h"
#else
#include "dots.h"
#endif

// Groups of a panel as int8 lines in the form of vb_reload.
static FL_INLINE void unpack(const fl_type type, const vt table, const uint8_t *packed, size_t groups, uint8_t *out) {
    for (size_t g = 0; g < groups; g++)
        FL_UNROLL for (size_t i = 0; i < 4; i++) {
            vb line[2];
            load_lines(type, table, packed + g * fl_group_bytes(type), i, line);
            vb_store(out + g * FL_LANES * FL_GROUP + i * 128, line[0]);
            vb_store(out + g * FL_LANES * FL_GROUP + i * 128 + 64, line[1]);
        }
}

// P panels from `panel` on, times tokens [token, token + count): token is a multiple of 16.
static FL_INLINE void stretches_of(const size_t P, const fl_type type, const product *p, size_t panel, size_t token,
                                   size_t count) {
    const size_t groups = fl_groups(p->n), lines = fl_scales_bytes(type, groups);
    const vt table = vt_load(p->values);
    const fl_q8_bundle *x = (const fl_q8_bundle *)p->in->q + token / FL_LANES * groups;
    _Alignas(64) float sums[STRETCH_BUNDLES * FL_STRETCH_PANELS * BUNDLE_SUMS];
    _Alignas(64) uint8_t unpacked[FL_STRETCH_PANELS][STRETCH_GROUPS * FL_LANES * FL_GROUP];
    stretch s = {.p = p, .panel = panel, .token = token, .bundle_groups = groups};
    for (size_t g = 0; g < groups; g += STRETCH_GROUPS) {
        s.begins = g == 0;
        s.ends = groups - g <= STRETCH_GROUPS;
        s.groups = s.ends ? groups - g : STRETCH_GROUPS;
        for (size_t i = 0; i < P; i++) {
            const uint8_t *at = panel_at(p, panel, i);
            s.lines[i] = at + lines + g * fl_group_bytes(type);
            s.scales[i] = at + g * fl_group_scales(type);
            s.upcoming[i] = s.ends ? at + p->next * p->panel_bytes + lines
                                   : s.lines[i] + s.groups * fl_group_bytes(type);
            if (fl_is_q4(type) || FL_UNPACKS) {
                unpack(type, table, s.lines[i], s.groups, unpacked[i]);
                FL_COMPILER_FENCE; // some compilers do not know that AMX's loads read memory, and move them up
                s.lines[i] = unpacked[i];
            }
        }
        multiply_stretch(P, type, &s, x + g, count, sums);
    }
}

// Panels [panel0, panel1), as many as make whole stretches of P panels; returns the first of those left over.
static FL_INLINE size_t whole_stretches(const size_t P, const fl_type type, product *p, size_t panel0, size_t panel1) {
    enum { MOST = STRETCH_BUNDLES * FL_LANES };
    p->apart = 1;
    p->next = P;
    for (; panel0 + P <= panel1; panel0 += P)
        for (size_t t = 0; t < p->tokens; t += MOST)
            stretches_of(P, type, p, panel0, t, p->tokens - t < MOST ? p->tokens - t : MOST);
    return panel0;
}

// Panels [panel0, panel1): stretches of P neighbours, whose outputs for one token are neighbours too; of fewer for what
// is left over.
static FL_INLINE void multiply_staged(const fl_type type, product *p, size_t panel0, size_t panel1) {
    enum { P = FL_STRETCH_PANELS };
    stretches_begin();
    panel0 = whole_stretches(P, type, p, panel0, panel1);
    if (P > 4) panel0 = whole_stretches(P / 2, type, p, panel0, panel1);
    if (P > 2) panel0 = whole_stretches(2, type, p, panel0, panel1);
    if (P > 1) whole_stretches(1, type, p, panel0, panel1);
    stretches_end();
}

#endif
