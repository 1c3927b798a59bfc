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
    [PACK] = {"pack q8", "steps", 0.5205},
    [BLOCKS] = {"pack blocks", "of the largest", 0.0054},
    [MATMUL_FLOAT] = {"matmul f32 f16 bf16", "of sum |w x|", 2e-6},
    [MATMUL_INT8] = {"matmul q8 q4 q4m", "of sum |w x|", 1e-6},
    [QUANTIZE] = {"quantize", "steps", 0.50001},
    [NORM] = {"norm", "of the largest", 1e-6},
    [ACT] = {"act", "of the input", 1e-6},
    [SOFTCAP] = {"softcap", "of the cap", 3e-7},
    [ATTEND] = {"attend", "of sum p |v|", 5e-6},
    [ATTEND_INT8] = {"attend q8 q4", "of sum p max |v|", 5e-4},
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
    static const char *const names[FL_TYPES] = {"f32", "f16", "bf16", "q8", "q4", "q4m"};
    return names[type];
}

void random_block(const fl_block *block, uint8_t *out, float scale) {
    // Where a type has f16: scales, and minima.
    static const struct { const char *name; int at[2]; } halves[] = {
        {"Q4_0", {0, -1}}, {"Q4_1", {0, 2}}, {"Q5_0", {0, -1}}, {"Q8_0", {0, -1}}, {"Q4_K", {0, 2}},
        {"Q6_K", {208, -1}}, {"IQ4_NL", {0, -1}}, {"IQ4_XS", {0, -1}}};
    for (size_t i = 0; i < block->bytes; i++) out[i] = (uint8_t)(next() >> 56);
    if (strcmp(block->name, "MXFP4") == 0) out[0] = (uint8_t)between(117, 121);
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++)
        for (size_t j = 0; j < 2 && strcmp(halves[i].name, block->name) == 0; j++) {
            const uint16_t h = fl_f16_from_f32((unit() + (unit() < 0 ? -2 : 2)) * scale * 0x1p-8f);
            if (halves[i].at[j] >= 0) memcpy(out + halves[i].at[j], &h, sizeof h);
        }
}

// A block type of 32 values that is packed as `type`.
static const fl_block *random_type(fl_type type) {
    size_t count;
    const fl_block *all = fl_blocks(&count), *block;
    do block = &all[between(0, count - 1)];
    while (block->packed != type || block->values != FL_GROUP);
    return block;
}

static fl_matrix matrix_of_blocks(fl_type type, size_t d, size_t n, float scale) {
    const size_t groups = fl_groups(n);
    const fl_block *block = random_type(type);
    uint8_t *data = take(d * groups * block->bytes);
    fl_matrix w = {.data = take(fl_matrix_bytes(type, d, n)), .type = type, .d = d, .n = n};
    for (size_t i = 0; i < d * groups; i++) random_block(block, data + i * block->bytes, scale);
    const fl_source source = {.data = data, .block = block, .d = d, .n = groups * FL_GROUP};
    expect(fl_pack(type, (void *)w.data, &source, 1) == FL_OK, "packed");
    if (block->table) memcpy(w.values, block->table, sizeof w.values);
    float row[2048], value[FL_GROUP];
    int exact = 1;
    for (size_t r = 0; r < d; r++) {
        fl_matrix_row(&w, r, row);
        for (size_t k = 0; k < n; k++) {
            if (k % FL_GROUP == 0) block->to_floats(data + (r * groups + k / FL_GROUP) * block->bytes, value);
            exact &= row[k] == value[k % FL_GROUP];
        }
    }
    expect(exact, "row is what was packed");
    fl_free(data);
    return w;
}

fl_matrix random_matrix(fl_type type, size_t d, size_t n, float scale) {
    if (type == FL_Q4_MIN || (fl_is_int8(type) && between(0, 1))) return matrix_of_blocks(type, d, n, scale);
    float *values = take(d * n * sizeof *values);
    void *panels = take(fl_matrix_bytes(type, d, n));
    fill(values, d * n, scale);
    const fl_source floats = {.data = values, .type = FL_F32, .d = d, .n = n, .kernels = isas[0]};
    expect(fl_pack(type, panels, &floats, 1) == FL_OK, "packed");
    fl_matrix w = {panels, type, d, n, NULL, {0}};
    memcpy(w.values, fl_q4_values, sizeof w.values);
    float row[2048];
    int exact = 1;
    for (size_t r = 0; r < d; r++) {
        fl_matrix_row(&w, r, row);
        for (size_t k = 0; k < n; k++) {
            const float x = values[r * n + k];
            if (type == FL_F32) exact &= row[k] == x;
            if (type == FL_F16) exact &= row[k] == fl_f32_from_f16(fl_f16_from_f32(x));
            if (type == FL_BF16) exact &= row[k] == fl_f32_from_bf16(fl_bf16_from_f32(x));
            if (type != FL_Q8) continue;
            const size_t g = k / FL_GROUP * FL_GROUP;
            float most = 0;
            for (size_t i = g; i < n && i < g + FL_GROUP; i++) most = fmaxf(most, fabsf(values[r * n + i]));
            measure(PACK, fabs((double)row[k] - (double)x) / ((double)most / 127));
        }
    }
    expect(exact, "row is what was packed");
    fl_free(values);
    return w;
}
