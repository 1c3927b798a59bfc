// 16 lanes as a plain array: the reference, which every other instruction set equals bit for bit. What each function
// does is said here.
#include <math.h>
#include <string.h>

#include "compiler.h"
#include "fastllm.h"

// No unrolling: compiling would take half a minute longer, for kernels that need not be fast.
#undef FL_UNROLL
#define FL_UNROLL

#define FL_ISA scalar
#define FL_UNPACKS 0
#define FL_FEW 4
#define FL_STREAMS 4
#define FL_TILE_TOKENS 4
#define FL_TILE_PANELS 1
#define FL_MUL_VECTORS 1

typedef struct { float v[16]; } vf;
typedef struct { int32_t v[16]; } vi;
typedef struct { int8_t w[64]; } vb; // a line: 16 rows x 4 k
typedef struct { int8_t v[16]; } vt;

#define EACH(expr) vf o; for (int j = 0; j < 16; j++) o.v[j] = (expr); return o
#define EACH_I(expr) vi o; for (int j = 0; j < 16; j++) o.v[j] = (expr); return o

static inline vf vf_set1(float x) { EACH(x); }
static inline vf vf_load(const float *p) { EACH(p[j]); }
static inline vf vf_load_f16(const uint16_t *p) { EACH(fl_f32_from_f16(p[j])); }
static inline vf vf_load_bf16(const uint16_t *p) { EACH(fl_f32_from_bf16(p[j])); }
static inline void vf_store(float *p, vf a) { memcpy(p, a.v, sizeof a.v); }
static inline void vf_store_f16(uint16_t *p, vf a) { for (int j = 0; j < 16; j++) p[j] = fl_f16_from_f32(a.v[j]); }
static inline vf vf_add(vf a, vf b) { EACH(a.v[j] + b.v[j]); }
static inline vf vf_sub(vf a, vf b) { EACH(a.v[j] - b.v[j]); }
static inline vf vf_mul(vf a, vf b) { EACH(a.v[j] * b.v[j]); }
static inline vf vf_div(vf a, vf b) { EACH(a.v[j] / b.v[j]); }
static inline vf vf_fma(vf a, vf b, vf c) { EACH(fmaf(a.v[j], b.v[j], c.v[j])); }
static inline vf vf_abs(vf a) { EACH(fabsf(a.v[j])); }
// a > b ? a : b; therefore b where one of them is NaN. That is x86's rule, and NEON is made to follow it: a NaN in a is
// lost, one in b is kept.
static inline vf vf_max(vf a, vf b) { EACH(a.v[j] > b.v[j] ? a.v[j] : b.v[j]); }
static inline vf vf_min(vf a, vf b) { EACH(a.v[j] < b.v[j] ? a.v[j] : b.v[j]); }
// a > b ? x : y
static inline vf vf_select_gt(vf a, vf b, vf x, vf y) { EACH(a.v[j] > b.v[j] ? x.v[j] : y.v[j]); }
static inline vf vf_from_vi(vi a) { EACH((float)a.v[j]); }
// Rounds to nearest even. For NaN, and from 2^31 on in magnitude, the result differs by instruction set: callers do not
// use it then.
static inline vi vi_from_vf(vf a) { EACH_I((int32_t)lrintf(a.v[j])); }
static inline vi vi_set1(int32_t x) { EACH_I(x); }
// 2^n as a float, for n in -126..127; any number for another n.
static inline vf vf_exp2i(vi n) {
    vf o;
    for (int j = 0; j < 16; j++) {
        const uint32_t bits = ((uint32_t)n.v[j] + 127) << 23;
        memcpy(&o.v[j], &bits, 4);
    }
    return o;
}
static inline void vi_store_i8(int8_t *p, vi a) { for (int j = 0; j < 16; j++) p[j] = (int8_t)a.v[j]; }

// A q8 line from a panel.
static inline vb vb_load(const int8_t *p) {
    vb o;
    memcpy(o.w, p, sizeof o.w);
    return o;
}
// To a stretch (staged.h), in the form that costs vb_reload least, or that AMX takes.
static inline void vb_store(uint8_t *p, vb w) { memcpy(p, w.w, sizeof w.w); }
static inline vb vb_reload(const uint8_t *p) { return vb_load((const int8_t *)p); }
static inline vt vt_load(const int8_t *values) {
    vt o;
    memcpy(o.v, values, sizeof o.v);
    return o;
}
// A table for lines that vi_dot_positive takes.
static inline vt vt_load_signed(const int8_t *values) { return vt_load(values); }
// The two lines whose codes are in the low and in the high four bits of a q4 line.
static inline void vb_load_codes(const uint8_t *p, vt table, vb *low, vb *high) {
    for (int j = 0; j < 64; j++) {
        low->w[j] = table.v[p[j] & 15];
        high->w[j] = table.v[p[j] >> 4];
    }
}
// c[j] + the sum of w[j][i] * a[i], i < 4, with a the four int8 in a4.
static inline vi vi_dot(vi c, vb w, int32_t a4) {
    int8_t a[4];
    memcpy(a, &a4, 4);
    EACH_I(c.v[j] + w.w[4 * j] * a[0] + w.w[4 * j + 1] * a[1] + w.w[4 * j + 2] * a[2] + w.w[4 * j + 3] * a[3]);
}
// The same for a line that vb_reload reads from where no vb_store wrote it, or that has a table of vt_load_signed, and
// four a of 0 to 127. It needs no bias.
static inline vi vi_dot_positive(vi c, vb w, int32_t a4) { return vi_dot(c, w, a4); }
// What the sum of vi_dot begins with: the bias (see fl_q8_group) where its instruction takes w + 128 for w.
static inline vi vi_dot_start(int32_t bias) { (void)bias; return vi_set1(0); }

static inline vf vf_load_i8(const int8_t *p) { EACH((float)p[j]); }
// Sum and maximum of all lanes, in the order of a tree: lanes j and j + 8, then j and j + 4, then 2, then 1.
static inline float lanes_sum(vf a) {
    for (int s = 8; s > 0; s /= 2)
        for (int j = 0; j < s; j++) a.v[j] += a.v[j + s];
    return a.v[0];
}
// The sums of a and of b, where any order gives the same.
static inline void lanes_sums(vf a, vf b, float sums[2]) {
    sums[0] = lanes_sum(a);
    sums[1] = lanes_sum(b);
}
static inline float lanes_max(vf a) {
    for (int s = 8; s > 0; s /= 2)
        for (int j = 0; j < s; j++) a.v[j] = a.v[j] > a.v[j + s] ? a.v[j] : a.v[j + s];
    return a.v[0];
}
// The largest magnitude in a and b, NaN if one is NaN. The bits of magnitudes, as integers, are in their order, with
// infinity above all numbers and NaN above infinity.
static inline float lanes_largest(vf a, vf b) {
    uint32_t largest = 0;
    float x;
    for (int j = 0; j < 32; j++) {
        const float magnitude = fabsf(j < 16 ? a.v[j] : b.v[j - 16]);
        uint32_t bits;
        memcpy(&bits, &magnitude, 4);
        largest = bits > largest ? bits : largest;
    }
    memcpy(&x, &largest, 4);
    return x;
}

#undef EACH
#undef EACH_I
