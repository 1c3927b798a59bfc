// 16 lanes in one zmm: AVX-512 F, BW, VL, DQ and VNNI; with FL_AMX also VBMI, and the tile registers of amx.h.
#include <immintrin.h>

#include "fastllm.h"

#ifdef FL_AMX
#define FL_ISA amx
#define FL_UNPACKS 0
#define FL_STRETCH_PANELS 8
#else
#define FL_ISA avx512
#define FL_UNPACKS 1
#endif
#define FL_FEW 8
#define FL_STREAMS 8
#define FL_TILE_TOKENS 8
#define FL_TILE_PANELS 2
#define FL_MUL_VECTORS 24

typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vb;
typedef __m512i vt;

static inline vf vf_set1(float x) { return _mm512_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
static inline vf vf_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}
static inline void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline void vf_store_f16(uint16_t *p, vf a) {
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_abs(vf a) { return _mm512_abs_ps(a); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_select_gt(vf a, vf b, vf x, vf y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
static inline vf vf_from_vi(vi a) { return _mm512_cvtepi32_ps(a); }
static inline vi vi_from_vf(vf a) { return _mm512_cvtps_epi32(a); }
static inline vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
static inline vf vf_exp2i(vi n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
static inline void vi_store_i8(int8_t *p, vi a) { _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(a)); }

// vpdpbusd multiplies unsigned by signed, so a line is held as w + 128: w with its sign bits flipped.
static inline vb vb_load(const int8_t *p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)0x80));
}
static inline void vb_store(uint8_t *p, vb w) {
#ifdef FL_AMX // takes both factors signed: flips the sign bits back
    w = _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80));
#endif
    _mm512_store_si512(p, w);
}
static inline vb vb_reload(const uint8_t *p) { return _mm512_load_si512(p); }
static inline vt vt_load(const int8_t *values) {
    return _mm512_xor_si512(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)values)),
                            _mm512_set1_epi8((char)0x80));
}
static inline vt vt_load_signed(const int8_t *values) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)values));
}
static inline void vb_load_codes(const uint8_t *p, vt table, vb *low, vb *high) {
    const __m512i codes = _mm512_loadu_si512(p);
#ifdef FL_AMX // VBMI looks up six bits, in the table four times over: the upper two bits need not be masked
    *low = _mm512_permutexvar_epi8(codes, table);
    *high = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table);
#else
    const __m512i four = _mm512_set1_epi8(15);
    *low = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, four));
    *high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(codes, 4), four));
#endif
}
static inline vi vi_dot(vi c, vb w, int32_t a4) { return _mm512_dpbusd_epi32(c, w, _mm512_set1_epi32(a4)); }
static inline vi vi_dot_positive(vi c, vb w, int32_t a4) {
    return _mm512_dpbusd_epi32(c, _mm512_set1_epi32(a4), w);
}
static inline vi vi_dot_start(int32_t bias) { return _mm512_set1_epi32(bias); }

static inline vf vf_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
// Lanes j and j + 8, then j and j + 4, then 2, then 1.
#define REDUCE(op)                                                                            \
    const __m256 b = _mm256_##op##_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)); \
    const __m128 c = _mm_##op##_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));     \
    const __m128 d = _mm_##op##_ps(c, _mm_movehl_ps(c, c));                                     \
    return _mm_cvtss_f32(_mm_##op##_ss(d, _mm_movehdup_ps(d)))
static inline float lanes_sum(vf a) { REDUCE(add); }
static inline float lanes_max(vf a) { REDUCE(max); }
#undef REDUCE
// Sums of all lanes of a and of b, where any order gives the same.
static inline void lanes_sums(vf a, vf b, float sums[2]) {
    const __m256 c = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m256 d = _mm256_add_ps(_mm512_castps512_ps256(b), _mm512_extractf32x8_ps(b, 1)), e = _mm256_hadd_ps(c, d);
    const __m128 f = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    _mm_storel_pi((void *)sums, _mm_hadd_ps(f, f));
}
static inline float lanes_largest(vf a, vf b) {
    const __m512i c = _mm512_max_epi32(_mm512_castps_si512(vf_abs(a)), _mm512_castps_si512(vf_abs(b)));
    const __m256i d = _mm256_max_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
    const __m128i e = _mm_max_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
    const __m128i f = _mm_max_epi32(e, _mm_shuffle_epi32(e, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(f, _mm_shuffle_epi32(f, 0xb1))));
}
