// GGUF's blocks into panels.
#include <math.h>
#include <string.h>

#include "check.h"

// Every type that is moved: rows in any order, and threads, give one result, which is what the blocks say: exactly, or
// but for the rounding of scales (Q4_K, IQ4_XS) and of half of a group (Q6_K).
static void moved(const fl_block *block) {
    enum { D = 37, BLOCKS_A_ROW = 3, N = BLOCKS_A_ROW * 256 };
    static uint8_t data[D * BLOCKS_A_ROW * 256];
    static float row[N], want[N];
    const size_t n = BLOCKS_A_ROW * block->values;
    const fl_type type = block->packed;
    const int exact = block->values == FL_GROUP;
    int32_t rows[D];
    for (size_t i = 0; i < D * BLOCKS_A_ROW; i++) random_block(block, data + i * block->bytes, 1);
    for (size_t i = 0; i < D; i++) rows[i] = (int32_t)(i * 11 % D);
    const size_t bytes = fl_matrix_bytes(type, D, n);
    uint8_t *panels = take(bytes);
    const fl_source source = {.data = data, .block = block, .d = D, .n = n, .rows = rows};
    fl_matrix w = {.data = panels, .type = type, .d = D, .n = n};
    if (block->table) memcpy(w.values, block->table, sizeof w.values);
    for (size_t threads = 1; threads <= 4; threads++) {
        describe("%s on %zu threads", block->name, threads);
        poison(panels, bytes);
        expect(fl_pack(type, panels, &source, threads) == FL_OK, "packed");
        same(threads - 1, "threads", panels, bytes);
    }
    int equal = 1;
    for (size_t r = 0; r < D; r++) {
        double largest = 0;
        fl_matrix_row(&w, r, row);
        for (size_t b = 0; b < BLOCKS_A_ROW; b++)
            block->to_floats(data + ((size_t)rows[r] * BLOCKS_A_ROW + b) * block->bytes, want + b * block->values);
        for (size_t k = 0; k < n; k++) {
            const size_t g = k / FL_GROUP * FL_GROUP;
            for (size_t i = g; k == g && i < g + FL_GROUP; i++)
                largest = fmax(i == g ? 0 : largest, fabs((double)want[i]));
            equal &= !exact || memcmp(&row[k], &want[k], sizeof *row) == 0;
            if (!exact && largest > 0) measure(BLOCKS, fabs((double)row[k] - (double)want[k]) / largest);
        }
    }
    expect(equal, "rows are those of the blocks, bit for bit");
    rows[D - 1] = D;
    expect(fl_pack(type, panels, &source, 1) == FL_BAD_TENSOR, "a row that there is not");
    rows[D - 1] = 0;
    expect(fl_pack(FL_F32, panels, &source, 1) == FL_BAD_TENSOR, "another type");
    fl_free(panels);
}

// A scale that is not finite, or too large for f16, is refused, whichever it is.
static void refused(const fl_block *block, size_t at, uint16_t bits) {
    uint8_t data[256];
    const size_t bytes = fl_matrix_bytes(block->packed, 1, block->values);
    uint8_t *panels = take(bytes);
    random_block(block, data, 1);
    memcpy(data + at, &bits, sizeof bits);
    describe("%s with %04x at %zu", block->name, (unsigned)bits, at);
    const fl_source source = {.data = data, .block = block, .d = 1, .n = block->values};
    expect(fl_pack(block->packed, panels, &source, 1) == FL_BAD_VALUE, "refused");
    fl_free(panels);
}

void test_blocks(void) {
    size_t count;
    const fl_block *all = fl_blocks(&count);
    for (size_t i = 0; i < count; i++) {
        if (all[i].packed == FL_F32) continue;
        for (size_t number = 0; number < 8; number++) moved(&all[i]);
        const size_t at = strcmp(all[i].name, "Q6_K") == 0 ? 208 : 0;
        const int power = strcmp(all[i].name, "MXFP4") == 0;
        for (size_t number = 0; number < 3; number++)
            refused(&all[i], at, power ? (uint16_t)(0xff - 40 * number) : (uint16_t[]){0x7c00, 0xfe01, 0xfc00}[number]);
        if (all[i].packed == FL_Q4_MIN) refused(&all[i], 2, 0x7c00);
    }
}
