// 16 lanes in four q registers: ARMv8.2 with dot products.
#if defined(__GNUC__) && !defined(__clang__)
// GCC would move loads far ahead of their use before it allocates registers, and tiles that fit the registers no longer
// would.
#pragma GCC optimize("no-schedule-insns")
#endif
#include <arm_neon.h>

#include "fastllm.h"

#define FL_ISA neon
#define FL_UNPACKS 0
#define FL_FEW 4
#define FL_STREAMS 4
#define FL_TILE_TOKENS 4
#define FL_TILE_PANELS 1
#define FL_MUL_VECTORS 6

typedef struct { float32x4_t v[4]; } vf;
typedef struct { int32x4_t v[4]; } vi;
typedef struct { int8x16_t v[4]; } vb;
typedef int8x16_t vt;

#define EACH(expr) vf o; for (int j = 0; j < 4; j++) o.v[j] = (expr); return o
#define EACH_I(expr) vi o; for (int j = 0; j < 4; j++) o.v[j] = (expr); return o

static inline vf vf_set1(float x) { EACH(vdupq_n_f32(x)); }
static inline vf vf_load(const float *p) { EACH(vld1q_f32(p + 4 * j)); }
static inline vf vf_load_f16(const uint16_t *p) {
    EACH(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * j))));
}
static inline vf vf_load_bf16(const uint16_t *p) { EACH(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * j), 16))); }
static inline void vf_store(float *p, vf a) { for (int j = 0; j < 4; j++) vst1q_f32(p + 4 * j, a.v[j]); }
static inline void vf_store_f16(uint16_t *p, vf a) {
    for (int j = 0; j < 4; j++) vst1_u16(p + 4 * j, vreinterpret_u16_f16(vcvt_f16_f32(a.v[j])));
}
static inline vf vf_add(vf a, vf b) { EACH(vaddq_f32(a.v[j], b.v[j])); }
static inline vf vf_sub(vf a, vf b) { EACH(vsubq_f32(a.v[j], b.v[j])); }
static inline vf vf_mul(vf a, vf b) { EACH(vmulq_f32(a.v[j], b.v[j])); }
static inline vf vf_div(vf a, vf b) { EACH(vdivq_f32(a.v[j], b.v[j])); }
static inline vf vf_fma(vf a, vf b, vf c) { EACH(vfmaq_f32(c.v[j], a.v[j], b.v[j])); }
static inline vf vf_abs(vf a) { EACH(vabsq_f32(a.v[j])); }
static inline vf vf_select_gt(vf a, vf b, vf x, vf y) { EACH(vbslq_f32(vcgtq_f32(a.v[j], b.v[j]), x.v[j], y.v[j])); }
// Not vmaxq_f32 and vminq_f32, which give NaN where either operand is NaN.
static inline vf vf_max(vf a, vf b) { return vf_select_gt(a, b, a, b); }
static inline vf vf_min(vf a, vf b) { return vf_select_gt(b, a, a, b); }
static inline vf vf_from_vi(vi a) { EACH(vcvtq_f32_s32(a.v[j])); }
static inline vi vi_from_vf(vf a) { EACH_I(vcvtnq_s32_f32(a.v[j])); }
static inline vi vi_set1(int32_t x) { EACH_I(vdupq_n_s32(x)); }
static inline vf vf_exp2i(vi n) {
    EACH(vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.v[j], vdupq_n_s32(127)), 23)));
}
static inline void vi_store_i8(int8_t *p, vi a) {
    const int16x8_t l = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
    const int16x8_t h = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(l), vmovn_s16(h)));
}

static inline vb vb_load(const int8_t *p) {
    vb o;
    for (int j = 0; j < 4; j++) o.v[j] = vld1q_s8(p + 16 * j);
    return o;
}
static inline void vb_store(uint8_t *p, vb w) {
    for (int j = 0; j < 4; j++) vst1q_s8((int8_t *)p + 16 * j, w.v[j]);
}
static inline vb vb_reload(const uint8_t *p) { return vb_load((const int8_t *)p); }
static inline vt vt_load(const int8_t *values) { return vld1q_s8(values); }
static inline vt vt_load_signed(const int8_t *values) { return vt_load(values); }
static inline void vb_load_codes(const uint8_t *p, vt table, vb *low, vb *high) {
    for (int j = 0; j < 4; j++) {
        const uint8x16_t codes = vld1q_u8(p + 16 * j);
        low->v[j] = vqtbl1q_s8(table, vandq_u8(codes, vdupq_n_u8(15)));
        high->v[j] = vqtbl1q_s8(table, vshrq_n_u8(codes, 4));
    }
}
static inline vi vi_dot(vi c, vb w, int32_t a4) {
    const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(a4));
    EACH_I(vdotq_s32(c.v[j], w.v[j], a));
}
// Loads 16 activations at once and multiplies by four of them: k is a constant after unrolling, so the load is shared.
#define FL_DOT_AT
static inline vi vi_dot_at(vi c, vb w, const int8_t *q, size_t k) {
    const int8x16_t a = vld1q_s8(q + k / 16 * 16);
    vi o;
    for (int j = 0; j < 4; j++)
        o.v[j] = k % 16 == 0   ? vdotq_laneq_s32(c.v[j], w.v[j], a, 0)
                 : k % 16 == 4 ? vdotq_laneq_s32(c.v[j], w.v[j], a, 1)
                 : k % 16 == 8 ? vdotq_laneq_s32(c.v[j], w.v[j], a, 2)
                               : vdotq_laneq_s32(c.v[j], w.v[j], a, 3);
    return o;
}
static inline vi vi_dot_positive(vi c, vb w, int32_t a4) { return vi_dot(c, w, a4); }
static inline vi vi_dot_start(int32_t bias) { (void)bias; return vi_set1(0); }

static inline vf vf_load_i8(const int8_t *p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t l = vmovl_s8(vget_low_s8(bytes)), h = vmovl_s8(vget_high_s8(bytes));
    return (vf){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(l))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(l))),
                 vcvtq_f32_s32(vmovl_s16(vget_low_s16(h))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(h)))}};
}
// Lanes j and j + 8, then j and j + 4, then 2, then 1.
static inline float lanes_sum(vf a) {
    const float32x4_t b = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t c = vadd_f32(vget_low_f32(b), vget_high_f32(b));
    return vget_lane_f32(c, 0) + vget_lane_f32(c, 1);
}
// The sums of a and of b, where any order gives the same.
static inline void lanes_sums(vf a, vf b, float sums[2]) {
    const float32x4_t c = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x4_t d = vaddq_f32(vaddq_f32(b.v[0], b.v[2]), vaddq_f32(b.v[1], b.v[3])), e = vpaddq_f32(c, d);
    vst1_f32(sums, vpadd_f32(vget_low_f32(e), vget_high_f32(e)));
}
static inline float32x4_t fl_larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline float lanes_max(vf a) {
    const float32x4_t b = fl_larger(fl_larger(a.v[0], a.v[2]), fl_larger(a.v[1], a.v[3]));
    const float32x2_t l = vget_low_f32(b), h = vget_high_f32(b), c = vbsl_f32(vcgt_f32(l, h), l, h);
    return vget_lane_f32(c, 0) > vget_lane_f32(c, 1) ? vget_lane_f32(c, 0) : vget_lane_f32(c, 1);
}
static inline float lanes_largest(vf a, vf b) {
    uint32x4_t c = vdupq_n_u32(0);
    for (int j = 0; j < 4; j++) {
        c = vmaxq_u32(c, vreinterpretq_u32_f32(vabsq_f32(a.v[j])));
        c = vmaxq_u32(c, vreinterpretq_u32_f32(vabsq_f32(b.v[j])));
    }
    return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(vmaxvq_u32(c))), 0);
}

#undef EACH
#undef EACH_I
