// Which instruction sets were built, which of them this machine can run, and the best of these.
#include <string.h>

#include "kernels/kernels.h"

#if defined(FL_HAVE_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(FL_HAVE_AVX2) || defined(FL_HAVE_AVXVNNI) || defined(FL_HAVE_AVX512) || defined(FL_HAVE_AMX)
#ifdef _MSC_VER
#include <intrin.h>
static void cpuid(unsigned leaf, unsigned sub, unsigned r[4]) { __cpuidex((int *)r, (int)leaf, (int)sub); }
static unsigned long long xgetbv(void) { return _xgetbv(0); }
#else
#include <cpuid.h>
static void cpuid(unsigned leaf, unsigned sub, unsigned r[4]) {
    if (!__get_cpuid_count(leaf, sub, &r[0], &r[1], &r[2], &r[3])) r[0] = r[1] = r[2] = r[3] = 0;
}
static unsigned long long xgetbv(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (unsigned long long)high << 32 | low;
}
#endif

static int bit(unsigned word, unsigned i) { return (int)(word >> i & 1u); }

// The operating system must save the registers too: XCR0 says which ones it does.
static int has_avx2(void) {
    unsigned r[4];
    cpuid(1, 0, r);
    if (!bit(r[2], 27) || !bit(r[2], 28) || !bit(r[2], 12) || !bit(r[2], 29)) return 0; // OSXSAVE, AVX, FMA, F16C
    if ((xgetbv() & 0x6) != 0x6) return 0;                                              // xmm, ymm
    cpuid(7, 0, r);
    return bit(r[1], 5);
}

#ifdef FL_HAVE_AVXVNNI
static int has_avxvnni(void) {
    unsigned r[4];
    if (!has_avx2()) return 0;
    cpuid(7, 1, r);
    return bit(r[0], 4);
}
#endif

#if defined(FL_HAVE_AVX512) || defined(FL_HAVE_AMX)
static int has_avx512(void) {
    unsigned r[4];
    if (!has_avx2() || (xgetbv() & 0xe6) != 0xe6) return 0; // opmask, zmm
    cpuid(7, 0, r);
    return bit(r[1], 16) && bit(r[1], 17) && bit(r[1], 30) && bit(r[1], 31) && bit(r[2], 11); // F, DQ, BW, VL, VNNI
}
#endif

#ifdef FL_HAVE_AMX
// Linux gives a process the 8 KiB of tile registers only when it asks for them; it may ask again, and may be refused.
static int tiles_granted(void) {
#ifdef __linux__
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}

static int has_amx(void) {
    unsigned r[4];
    if (!has_avx512() || (xgetbv() >> 17 & 3) != 3) return 0; // tile configuration, tile data
    cpuid(7, 0, r);
    return bit(r[2], 1) && bit(r[3], 24) && bit(r[3], 25) && tiles_granted(); // VBMI, AMX-TILE, AMX-INT8
}
#endif
#endif

#ifdef FL_HAVE_NEON
#if defined(__linux__)
#include <sys/auxv.h>
static int has_dotprod(void) { return (getauxval(AT_HWCAP) & (1ul << 20)) != 0; } // HWCAP_ASIMDDP
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int has_dotprod(void) {
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, NULL, 0) == 0 && has;
}
#elif defined(_WIN32)
#include <windows.h>
static int has_dotprod(void) { return IsProcessorFeaturePresent(43) != 0; } // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
#else
static int has_dotprod(void) { return 0; }
#endif
#endif

static int always(void) { return 1; }

typedef struct isa {
    const fl_kernels *kernels;
    int (*supported)(void);
} isa;

extern const fl_kernels fl_kernels_scalar, fl_kernels_avx2, fl_kernels_avxvnni, fl_kernels_avx512, fl_kernels_amx,
    fl_kernels_neon;

// Worst first. The build defines FL_HAVE_.. for each that it has compiled.
static const isa built[] = {
    {&fl_kernels_scalar, always},
#ifdef FL_HAVE_AVX2
    {&fl_kernels_avx2, has_avx2},
#endif
#ifdef FL_HAVE_AVXVNNI
    {&fl_kernels_avxvnni, has_avxvnni},
#endif
#ifdef FL_HAVE_AVX512
    {&fl_kernels_avx512, has_avx512},
#endif
#ifdef FL_HAVE_AMX
    {&fl_kernels_amx, has_amx},
#endif
#ifdef FL_HAVE_NEON
    {&fl_kernels_neon, has_dotprod},
#endif
};

enum { BUILT = sizeof built / sizeof built[0] };

const char *fl_isa_built(size_t i, int *supported) {
    if (i >= BUILT) return NULL;
    *supported = built[i].supported();
    return built[i].kernels->name;
}

fl_status fl_kernels_find(const char *name, const fl_kernels **out) {
    for (size_t i = BUILT; i-- > 0;) {
        const int wanted = !name || !*name || strcmp(name, built[i].kernels->name) == 0;
        if (wanted && built[i].supported()) {
            *out = built[i].kernels;
            return FL_OK;
        }
    }
    return FL_NO_ISA;
}

const char *fl_kernels_name(const fl_kernels *k) { return k->name; }
