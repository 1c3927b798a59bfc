// 16 lanes as a plain array: the reference that every other instruction set equals bit for bit.
#include <math.h>
#include <string.h>

// No unrolling: the compiler would take half a minute over what is not meant to be fast.
#undef FL_UNROLL
#define FL_UNROLL

#define FL_ISA scalar
#define FL_UNPACKS 0
#define FL_FEW 4
#define FL_STREAMS 4
#define FL_TILE 4
#define FL_TILE_PANELS 1
#define FL_MUL_VECTORS 1

typedef struct { float v[16]; } vf;
typedef struct { int32_t v[16]; } vi;
typedef struct { int8_t w[64]; } vb; // 64 bytes: 16 rows x 4 k

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
// a > b ? a : b, and so b where one is NaN: the x86 rule, which NEON is made to follow. A NaN in a is dropped, one in b
// is kept.
static inline vf vf_max(vf a, vf b) { EACH(a.v[j] > b.v[j] ? a.v[j] : b.v[j]); }
static inline vf vf_min(vf a, vf b) { EACH(a.v[j] < b.v[j] ? a.v[j] : b.v[j]); }
// a > b ? x : y
static inline vf vf_select_gt(vf a, vf b, vf x, vf y) { EACH(a.v[j] > b.v[j] ? x.v[j] : y.v[j]); }
static inline vf vf_from_vi(vi a) { EACH((float)a.v[j]); }
// Round to nearest even; of what is not below 2^31 in magnitude, or NaN, any number, which differs by instruction set:
// callers do not use it then.
static inline vi vi_from_vf(vf a) { EACH_I((int32_t)lrintf(a.v[j])); }
static inline vi vi_set1(int32_t x) { EACH_I(x); }
// 2^n as a float, n in -126..127; of another n any number.
static inline vf vf_exp2i(vi n) {
    vf o;
    for (int j = 0; j < 16; j++) {
        const uint32_t bits = ((uint32_t)n.v[j] + 127) << 23;
        memcpy(&o.v[j], &bits, 4);
    }
    return o;
}
static inline void vi_store_i8(int8_t *p, vi a) { for (int j = 0; j < 16; j++) p[j] = (int8_t)a.v[j]; }

static inline vb vb_load(const int8_t *p) {
    vb o;
    memcpy(o.w, p, sizeof o.w);
    return o;
}
static inline void vb_store(uint8_t *p, vb w) { memcpy(p, w.w, sizeof w.w); }
static inline vb vb_reload(const uint8_t *p) { return vb_load((const int8_t *)p); }
// The two tiles whose codes are in the low and in the high four bits of 64 bytes.
static inline void vb_load_codes(const uint8_t *p, vb *low, vb *high) {
    for (int j = 0; j < 64; j++) {
        low->w[j] = fl_q4_values[p[j] & 15];
        high->w[j] = fl_q4_values[p[j] >> 4];
    }
}
// c[j] + sum of w[j][0..3] * a[0..3], a the four bytes of a4.
static inline vi vi_dot(vi c, vb w, int32_t a4) {
    int8_t a[4];
    memcpy(a, &a4, 4);
    EACH_I(c.v[j] + w.w[4 * j] * a[0] + w.w[4 * j + 1] * a[1] + w.w[4 * j + 2] * a[2] + w.w[4 * j + 3] * a[3]);
}
// What an accumulator of vi_dot starts with; see fl_q8_group.
static inline vi vi_dot_start(int32_t bias) { (void)bias; return vi_set1(0); }

static inline vf vf_load_i8(const int8_t *p) { EACH((float)p[j]); }
// Sum and maximum of all lanes: of j and j + 8, then of j and j + 4, and so on.
static inline float lanes_sum(vf a) {
    for (int s = 8; s > 0; s /= 2)
        for (int j = 0; j < s; j++) a.v[j] += a.v[j + s];
    return a.v[0];
}
static inline float lanes_max(vf a) {
    for (int s = 8; s > 0; s /= 2)
        for (int j = 0; j < s; j++) a.v[j] = a.v[j] > a.v[j + s] ? a.v[j] : a.v[j + s];
    return a.v[0];
}
// The largest magnitude of both. It is not finite where one is not: compared as integers, magnitudes are in order, with
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
