// Counting, comparing and inputs of the C tests.
#include "check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t passed, failed;
static char label[160]; // of the case that is being tested
static uint64_t hash = 0xcbf29ce484222325u;
const fl_kernels *isas[8];
size_t n_isas;

void describe(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(label, sizeof label, format, args);
    va_end(args);
}

void expect(int ok, const char *what) {
    passed += ok != 0;
    failed += ok == 0;
    if (!ok) printf("FAIL %s: %s\n", label, what);
}

void same(size_t number, const char *isa, const void *got, size_t bytes) {
    static uint8_t first[1 << 20];
    static size_t first_bytes;
    const uint8_t *p = got;
    if (number == 0) {
        if (bytes > sizeof first) abort();
        memcpy(first, got, first_bytes = bytes);
        for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3u; // FNV-1a
        return;
    }
    size_t i = 0;
    while (i < bytes && first[i] == p[i]) i++;
    const int ok = bytes == first_bytes && i == bytes;
    passed += ok != 0;
    failed += ok == 0;
    if (!ok) printf("FAIL %s, %s: byte %zu of %zu is not what the first result has\n", label, isa, i, bytes);
}

void same_floats(size_t number, const char *isa, const float *got, size_t n) {
    static float x[1 << 18];
    if (n > sizeof x / sizeof *x) abort();
    for (size_t i = 0; i < n; i++) x[i] = isnan(got[i]) ? NAN : got[i];
    same(number, isa, x, n * sizeof *x);
}

// Largest difference from the plain loops, and what is allowed.
static const struct {
    const char *name, *unit;
    double limit;
} oracles[ORACLES] = {
    [PACK] = {"pack q8", "steps", 0.5005},
    [MATMUL_FLOAT] = {"matmul f32 f16 bf16", "of sum |w x|", 2e-6},
    [MATMUL_INT8] = {"matmul q8 q8_f32 q4", "of sum |w x|", 1e-6},
    [QUANTIZE] = {"quantize", "steps", 0.50001},
    [NORM] = {"norm", "of the largest", 1e-6},
    [ACT] = {"act", "of the input", 1e-6},
    [SOFTCAP] = {"softcap", "of the cap", 3e-7},
    [ATTEND] = {"attend", "of sum p |v|", 5e-6},
    [SOFTMAX] = {"softmax", "of the value", 2e-6},
    [EXP] = {"exp", "ulp", 1.5},
    [ROPE] = {"rope angles", "ulp", 0.51},
    [DENSE] = {"dense layers", "of 1 + sum |w x|", 2e-6},
};
static double worst[ORACLES];
static char worst_case[ORACLES][sizeof label];

void measure(int which, double difference) {
    if (isnan(difference)) difference = INFINITY;
    if (difference <= worst[which]) return;
    worst[which] = difference;
    memcpy(worst_case[which], label, sizeof label);
}

double ulps(float got, double want) {
    int e;
    frexp(want, &e);
    return fabs((double)got - want) / ldexp(1, (e < -125 ? -125 : e) - 24);
}

int conclude(void) {
    for (size_t i = 0; i < ORACLES; i++) {
        printf("%-20s differs by %.3g %s at most (limit %g)\n", oracles[i].name, worst[i], oracles[i].unit,
               oracles[i].limit);
        describe("%s", worst_case[i]);
        expect(worst[i] <= oracles[i].limit, oracles[i].name);
    }
    printf("hash: %016llx\n%zu passed, %zu failed\n", (unsigned long long)hash, passed, failed);
    return failed > 0;
}

// ---- inputs --------------------------------------------------------------------------------------------------------

static uint64_t state;

void seed(uint64_t s) { state = s; }

static uint64_t next(void) { // xorshift64*
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545F4914F6CDD1Du;
}

size_t between(size_t low, size_t high) { return low + (size_t)(next() >> 33) % (high - low + 1); }

float unit(void) { return (float)((int32_t)(next() >> 40) - (1 << 23)) * 0x1p-23f; }

void fill(float *x, size_t n, float scale) {
    for (size_t i = 0; i < n; i++) x[i] = unit() * scale;
}

float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

void poison(void *p, size_t bytes) { memset(p, 0xff, bytes); }

void *take(size_t bytes) {
    void *p = fl_alloc(bytes);
    if (!p) abort();
    return p;
}

const char *type_name(fl_type type) {
    static const char *const names[FL_TYPES] = {"f32", "f16", "bf16", "q8", "q8_f32", "q4"};
    return names[type];
}

// FL_Q8_F32 has every int8, -128 too, and is packed from a source whose n is rounded up.
fl_matrix random_matrix(fl_type type, size_t d, size_t n, float scale) {
    const size_t width = fl_round_up(n, FL_GROUP), count = d * width;
    float *values = take(count * sizeof *values), *scales = take(count * sizeof *scales);
    int8_t *bytes = take(count);
    void *panels = take(fl_matrix_bytes(type, d, n));
    fill(values, count, scale);
    for (size_t i = 0; i < count; i++) bytes[i] = (int8_t)((int)(next() >> 56) - 128);
    for (size_t i = 0; i < count / FL_GROUP; i++) scales[i] = (unit() + 2) * scale * 0x1p-8f;
    const fl_source floats = {.data = values, .type = FL_F32, .d = d, .n = n, .kernels = isas[0]};
    const fl_source ints = {.data = bytes, .type = FL_Q8_F32, .scales = scales, .group = FL_GROUP, .d = d, .n = width};
    expect(fl_pack(type, panels, type == FL_Q8_F32 ? &ints : &floats, 1) == FL_OK, "packed");
    const fl_matrix w = {panels, type, d, n, NULL};
    float row[2048];
    int exact = 1;
    for (size_t r = 0; r < d; r++) {
        fl_matrix_row(&w, r, row);
        for (size_t k = 0; k < n; k++) {
            const float x = values[r * n + k];
            if (type == FL_F32) exact &= row[k] == x;
            if (type == FL_F16) exact &= row[k] == fl_f32_from_f16(fl_f16_from_f32(x));
            if (type == FL_BF16) exact &= row[k] == fl_f32_from_bf16(fl_bf16_from_f32(x));
            if (type == FL_Q8_F32) exact &= row[k] == (float)bytes[r * width + k] * scales[(r * width + k) / FL_GROUP];
            if (type != FL_Q8) continue;
            const size_t g = k / FL_GROUP * FL_GROUP;
            float most = 0;
            for (size_t i = g; i < n && i < g + FL_GROUP; i++) most = fmaxf(most, fabsf(values[r * n + i]));
            measure(PACK, fabs((double)row[k] - (double)x) / ((double)most / 127));
        }
    }
    expect(exact, "row is what was packed");
    fl_free(values);
    fl_free(scales);
    fl_free(bytes);
    return w;
}
