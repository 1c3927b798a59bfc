// 16 lanes in two ymm: AVX2, FMA and F16C; with FL_AVXVNNI also the 256-bit vpdpbusd of AVX-VNNI.
#include <immintrin.h>

#include "fastllm.h"

#ifdef FL_AVXVNNI
#define FL_ISA avxvnni
#define FL_UNPACKS 1
#define FL_TILE_TOKENS 6
#else
#define FL_ISA avx2
#define FL_UNPACKS 0
#define FL_TILE_TOKENS 4
#endif
#define FL_FEW 4
#define FL_STREAMS 8
#define FL_TILE_PANELS 1
#define FL_MUL_VECTORS 6

typedef struct { __m256 l, h; } vf;
typedef struct { __m256i l, h; } vi;
typedef __m256i vt;

static inline vf vf_set1(float x) { const __m256 v = _mm256_set1_ps(x); return (vf){v, v}; }
static inline vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline vf vf_load_f16(const uint16_t *p) {
    const __m128i *q = (const void *)p;
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
static inline __m256 fl_bf16_half(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
}
static inline vf vf_load_bf16(const uint16_t *p) { return (vf){fl_bf16_half(p), fl_bf16_half(p + 8)}; }
static inline void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a.l); _mm256_storeu_ps(p + 8, a.h); }
static inline void vf_store_f16(uint16_t *p, vf a) {
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(a.l, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((void *)(p + 8), _mm256_cvtps_ph(a.h, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#define BOTH(f) (vf){f(a.l, b.l), f(a.h, b.h)}
static inline vf vf_add(vf a, vf b) { return BOTH(_mm256_add_ps); }
static inline vf vf_sub(vf a, vf b) { return BOTH(_mm256_sub_ps); }
static inline vf vf_mul(vf a, vf b) { return BOTH(_mm256_mul_ps); }
static inline vf vf_div(vf a, vf b) { return BOTH(_mm256_div_ps); }
static inline vf vf_max(vf a, vf b) { return BOTH(_mm256_max_ps); }
static inline vf vf_min(vf a, vf b) { return BOTH(_mm256_min_ps); }
static inline vf vf_fma(vf a, vf b, vf c) {
    return (vf){_mm256_fmadd_ps(a.l, b.l, c.l), _mm256_fmadd_ps(a.h, b.h, c.h)};
}
static inline vf vf_abs(vf a) {
    const vf b = vf_set1(-0.0f);
    return (vf){_mm256_andnot_ps(b.l, a.l), _mm256_andnot_ps(b.h, a.h)};
}
static inline vf vf_select_gt(vf a, vf b, vf x, vf y) {
    return (vf){_mm256_blendv_ps(y.l, x.l, _mm256_cmp_ps(a.l, b.l, _CMP_GT_OQ)),
                _mm256_blendv_ps(y.h, x.h, _mm256_cmp_ps(a.h, b.h, _CMP_GT_OQ))};
}
#undef BOTH
static inline vf vf_from_vi(vi a) { return (vf){_mm256_cvtepi32_ps(a.l), _mm256_cvtepi32_ps(a.h)}; }
static inline vi vi_from_vf(vf a) { return (vi){_mm256_cvtps_epi32(a.l), _mm256_cvtps_epi32(a.h)}; }
static inline vi vi_set1(int32_t x) { const __m256i v = _mm256_set1_epi32(x); return (vi){v, v}; }
static inline __m256 fl_exp2i_half(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
static inline vf vf_exp2i(vi n) { return (vf){fl_exp2i_half(n.l), fl_exp2i_half(n.h)}; }
static inline void vi_store_i8(int8_t *p, vi a) {
    const __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.l, a.h), 0xD8);
    _mm_storeu_si128((void *)p, _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}

#ifdef FL_AVXVNNI
// vpdpbusd multiplies unsigned by signed, so a line is held as w + 128: w with its sign bits flipped.
typedef struct { __m256i l, h; } vb;
static inline vb vb_load(const int8_t *p) {
    const __m256i flip = _mm256_set1_epi8((char)0x80), *q = (const void *)p;
    return (vb){_mm256_xor_si256(_mm256_loadu_si256(q), flip), _mm256_xor_si256(_mm256_loadu_si256(q + 1), flip)};
}
static inline vb vb_reload(const uint8_t *p) {
    const __m256i *q = (const void *)p;
    return (vb){_mm256_load_si256(q), _mm256_load_si256(q + 1)};
}
static inline vt vt_load(const int8_t *values) {
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)values));
    return _mm256_xor_si256(twice, _mm256_set1_epi8((char)0x80));
}
static inline vb fl_line(__m256i l, __m256i h) { return (vb){l, h}; }
static inline vi vi_dot(vi c, vb w, int32_t a4) {
    const __m256i a = _mm256_set1_epi32(a4);
    return (vi){_mm256_dpbusd_avx_epi32(c.l, w.l, a), _mm256_dpbusd_avx_epi32(c.h, w.h, a)};
}
static inline vi vi_dot_positive(vi c, vb w, int32_t a4) {
    const __m256i a = _mm256_set1_epi32(a4);
    return (vi){_mm256_dpbusd_avx_epi32(c.l, a, w.l), _mm256_dpbusd_avx_epi32(c.h, a, w.h)};
}
static inline vi vi_dot_start(int32_t bias) { return vi_set1(bias); }
#else
// vpmaddubsw multiplies unsigned by signed, so it multiplies |w| by a with w's sign. Sums of two products fit int16, as
// |w| <= 128 and |a| <= 127.
typedef struct { __m256i l, h, abs_l, abs_h; } vb;
static inline vb vb_load(const int8_t *p) {
    const __m256i *q = (const void *)p, l = _mm256_loadu_si256(q), h = _mm256_loadu_si256(q + 1);
    return (vb){l, h, _mm256_abs_epi8(l), _mm256_abs_epi8(h)};
}
static inline vb vb_reload(const uint8_t *p) { return vb_load((const int8_t *)p); }
static inline vt vt_load(const int8_t *values) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)values));
}
static inline vb fl_line(__m256i l, __m256i h) { return (vb){l, h, _mm256_abs_epi8(l), _mm256_abs_epi8(h)}; }
static inline __m256i fl_dot_half(__m256i c, __m256i w, __m256i abs_w, __m256i a) {
    const __m256i pairs = _mm256_maddubs_epi16(abs_w, _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(c, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
static inline vi vi_dot(vi c, vb w, int32_t a4) {
    const __m256i a = _mm256_set1_epi32(a4);
    c = (vi){fl_dot_half(c.l, w.l, w.abs_l, a), fl_dot_half(c.h, w.h, w.abs_h, a)};
    FL_KEEP_ORDER(c.l);
    FL_KEEP_ORDER(c.h);
    return c;
}
static inline __m256i fl_dot_positive_half(__m256i c, __m256i w, __m256i a) {
    return _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(a, w), _mm256_set1_epi16(1)));
}
static inline vi vi_dot_positive(vi c, vb w, int32_t a4) {
    const __m256i a = _mm256_set1_epi32(a4);
    return (vi){fl_dot_positive_half(c.l, w.l, a), fl_dot_positive_half(c.h, w.h, a)};
}
static inline vi vi_dot_start(int32_t bias) { (void)bias; return vi_set1(0); }
// Weights of 0 to 15 need no sign, and 16 of their products add up in int16: 16 * 15 * 127 < 32768.
#define FL_DOT_CODES
static inline vi vi_dot_codes_at(vi c, vb w, const int8_t *q, size_t k) {
    int32_t four;
    memcpy(&four, q + k, 4);
    const __m256i a = _mm256_set1_epi32(four);
    c = (vi){_mm256_add_epi16(c.l, _mm256_maddubs_epi16(w.l, a)),
             _mm256_add_epi16(c.h, _mm256_maddubs_epi16(w.h, a))};
    FL_KEEP_ORDER(c.l);
    FL_KEEP_ORDER(c.h);
    return c;
}
static inline vi vi_from_codes_dot(vi c) {
    const __m256i one = _mm256_set1_epi16(1);
    return (vi){_mm256_madd_epi16(c.l, one), _mm256_madd_epi16(c.h, one)};
}
#endif
static inline void vb_store(uint8_t *p, vb w) {
    _mm256_store_si256((void *)p, w.l);
    _mm256_store_si256((void *)(p + 32), w.h);
}
static inline vt vt_load_signed(const int8_t *values) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)values));
}
static inline void vb_load_codes(const uint8_t *p, vt table, vb *low, vb *high) {
    const __m256i *q = (const void *)p, l = _mm256_loadu_si256(q), h = _mm256_loadu_si256(q + 1);
    const __m256i four = _mm256_set1_epi8(15);
    *low = fl_line(_mm256_shuffle_epi8(table, _mm256_and_si256(l, four)),
                   _mm256_shuffle_epi8(table, _mm256_and_si256(h, four)));
    *high = fl_line(_mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(l, 4), four)),
                    _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(h, 4), four)));
}

static inline vf vf_load_i8(const int8_t *p) {
    return (vf){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(p + 8))))};
}
// Lanes j and j + 8, then j and j + 4, then 2, then 1.
#define REDUCE(op)                                                                          \
    const __m256 b = _mm256_##op##_ps(a.l, a.h);                                            \
    const __m128 c = _mm_##op##_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1)); \
    const __m128 d = _mm_##op##_ps(c, _mm_movehl_ps(c, c));                                 \
    return _mm_cvtss_f32(_mm_##op##_ss(d, _mm_movehdup_ps(d)))
static inline float lanes_sum(vf a) { REDUCE(add); }
static inline float lanes_max(vf a) { REDUCE(max); }
#undef REDUCE
// Sums of all lanes of a and of b, where any order gives the same.
static inline void lanes_sums(vf a, vf b, float sums[2]) {
    const __m256 e = _mm256_hadd_ps(_mm256_add_ps(a.l, a.h), _mm256_add_ps(b.l, b.h));
    const __m128 f = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    _mm_storel_pi((void *)sums, _mm_hadd_ps(f, f));
}
static inline float lanes_largest(vf a, vf b) {
    const __m256i sign = _mm256_castps_si256(_mm256_set1_ps(-0.0f));
#define MAGNITUDE(x) _mm256_andnot_si256(sign, _mm256_castps_si256(x))
    const __m256i c = _mm256_max_epi32(_mm256_max_epi32(MAGNITUDE(a.l), MAGNITUDE(a.h)),
                                       _mm256_max_epi32(MAGNITUDE(b.l), MAGNITUDE(b.h)));
#undef MAGNITUDE
    const __m128i d = _mm_max_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
    const __m128i e = _mm_max_epi32(d, _mm_shuffle_epi32(d, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(e, _mm_shuffle_epi32(e, 0xb1))));
}
