// Attention to keys and values in pages: runs at once and one by one, windows, masks, and the maps of probabilities.
#include <math.h>
#include <string.h>

#include "check.h"

enum { ROWS = 19, HEAD = 130, STRIDE = 144, PAGES = 3, FIRST = 6 }; // pages 6, 7 | 8: two runs

// Keys and values of a page: the bytes that kernels read, and their values.
typedef struct attend_page {
    _Alignas(FL_ALIGN) char bytes[FL_PAGE * ((HEAD + STRIDE) * 4 + 4)];
    double keys[FL_PAGE][HEAD], values[FL_PAGE][HEAD];
} attend_page;

// Stores x, in [-1, 1), as element i of a page's keys or values, floats, and returns the value that it has there.
static double put(fl_type type, char *bytes, size_t i, float x) {
    if (type == FL_F32) memcpy(bytes + 4 * i, &x, 4);
    else memcpy(bytes + 2 * i, (uint16_t[]){fl_f16_from_f32(x)}, 2);
    return type == FL_F32 ? (double)x : (double)fl_f32_from_f16(fl_f16_from_f32(x));
}

// Sets `bits` bits of a byte, from bit `shift` on.
static void put_bits(char *byte, unsigned shift, unsigned bits, unsigned x) {
    *byte = (char)(((unsigned char)*byte & ~(((1u << bits) - 1) << shift)) | x << shift);
}

// A random scale, exact in f16, as number i of f32 or f16.
static float put_scale(fl_type type, char *scales, size_t i) {
    const float scale = (float)between(512, 2047) * 0x1p-18f;
    if (type == FL_Q8) memcpy(scales + 4 * i, &scale, 4);
    else memcpy(scales + 2 * i, (uint16_t[]){fl_f16_from_f32(scale)}, 2);
    return scale;
}

// A random key of position j, in int8 or six bits.
static void put_key(attend_page *b, fl_type type, size_t head_dim, size_t j) {
    const size_t stride = fl_round_up(head_dim, FL_LANES);
    char *scales = b->bytes + (type == FL_Q8 ? FL_PAGE * stride : FL_PAGE * stride * 6 / 8);
    float scale = 0;
    for (size_t c = 0; c < stride; c++) {
        if (c % FL_GROUP == 0) scale = put_scale(type, scales, c / FL_GROUP * FL_PAGE + j);
        const int x = type == FL_Q8 ? (int)between(0, 254) - 127 : (int)between(0, 62) - 31;
        if (type == FL_Q8) {
            b->bytes[(c / 4 * 4 + j / 16) * 64 + j % 16 * 4 + c % 4] = (char)x;
        } else {
            const unsigned code = (unsigned)(x + 32), line = c % 16 / 4;
            char *at = b->bytes + (c / 16 * 4 + j / 16) * 192 + j % 16 * 4 + c % 4;
            put_bits(at + line / 2 * 64, line % 2 * 4, 4, code & 15);
            put_bits(at + 128, line * 2, 2, code >> 4);
        }
        if (c < head_dim) b->keys[j][c] = (double)x * (double)scale;
    }
}

// A random value of position j, in int8 or four bits.
static void put_value(attend_page *b, fl_type type, size_t head_dim, size_t j) {
    static const int levels[8] = {6, 17, 29, 42, 56, 72, 92, 121};
    const size_t stride = fl_round_up(head_dim, FL_LANES), vectors = stride / FL_LANES;
    char *values = b->bytes + fl_keys_bytes(type, head_dim);
    char *scales = values + FL_PAGE * (type == FL_Q8 ? stride : stride / 2);
    float scale = 0;
    for (size_t c = 0; c < stride; c++) {
        if (c == 0 || (type == FL_Q4 && c % FL_GROUP == 0)) scale = put_scale(type, scales, c / FL_GROUP * FL_PAGE + j);
        const unsigned code = (unsigned)between(0, 15);
        int x = (int)between(0, 254) - 127;
        if (type == FL_Q8) {
            values[(j / 4 * vectors + c / 16) * 64 + c % 16 * 4 + j % 4] = (char)x;
        } else {
            x = code < 8 ? -levels[7 - code] : levels[code - 8];
            put_bits(values + (j / 8 * vectors + c / 16) * 64 + c % 16 * 4 + j % 4, j % 8 / 4 * 4, 4, code);
        }
        if (c < head_dim) b->values[j][c] = (double)x * (double)scale;
    }
}

// Random keys and values of `seen` positions. Behind them is poison, as an earlier sequence may leave it.
static void fill_page(attend_page *b, fl_type type, size_t head_dim, size_t seen) {
    const size_t stride = fl_round_up(head_dim, FL_LANES);
    char *values = b->bytes + fl_keys_bytes(type, head_dim);
    poison(b->bytes, sizeof b->bytes);
    for (size_t j = 0; j < seen; j++) {
        if (fl_kv_rounded(type)) {
            put_key(b, type, head_dim, j);
            put_value(b, type, head_dim, j);
            continue;
        }
        for (size_t c = 0; c < stride; c++) {
            const double value = put(type, values, j * stride + c, c < head_dim ? unit() : 0);
            if (c >= head_dim) continue;
            b->values[j][c] = value;
            b->keys[j][c] = put(type, b->bytes, c * FL_PAGE + j, unit());
        }
    }
}

// Random queries, and the same as int8, of which they are multiples.
static void fill_queries(size_t rows, size_t head_dim, float *q, fl_query *q8) {
    const size_t stride = fl_round_up(head_dim, FL_LANES), groups = fl_groups(head_dim);
    memset(q8, 0, rows * groups * sizeof *q8);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < head_dim; c++) {
            fl_query *group = &q8[r * groups + c / FL_GROUP];
            if (c % FL_GROUP == 0) group->scale = (float)between(512, 2047) * 0x1p-18f;
            const int x = (int)between(0, 254) - 127;
            group->q[c % FL_GROUP] = (int8_t)x;
            group->bias -= 128 * x;
            q[r * stride + c] = (float)x * group->scale;
        }
}

// Compares row r with attention in double precision.
static void check_attend(fl_type type, const fl_attend *a, const attend_page *pages, const float *mask,
                         const float *maps, size_t r) {
    double total = 0, want[HEAD] = {0}, size[HEAD] = {0}, all = 0; // all: of weights times the largest of each value
    for (size_t p = a->from[r] > a->begin ? a->from[r] : a->begin; p < a->limit[r] && p < a->end; p++) {
        const attend_page *b = &pages[p / FL_PAGE - FIRST];
        const size_t j = p % FL_PAGE;
        double score = 0;
        for (size_t c = 0; c < a->head_dim; c++) score += (double)a->q[r * a->stride + c] * b->keys[j][c];
        if (a->softcap > 0) score = (double)a->softcap * tanh(score / (double)a->softcap);
        if (mask) score += (double)mask[j];
        const double e = exp(score - (double)a->max[r]);
        total += e;
        measure(ATTEND, fabs((double)maps[((p / FL_PAGE - FIRST) * ROWS + r) * FL_PAGE + j] - e / (double)a->sum[r]));
        double largest = 0;
        for (size_t c = 0; c < a->head_dim; c++) {
            want[c] += e * b->values[j][c];
            size[c] += e * fabs(b->values[j][c]);
            largest = fmax(largest, fabs(b->values[j][c]));
        }
        all += e * largest;
    }
    measure(ATTEND, fabs((double)a->sum[r] - total) / (total + 1e-30));
    // Weights of int8 are rounded, beside the largest of their page.
    for (size_t c = 0; c < a->head_dim; c++) {
        const double error = fabs((double)a->out[r * a->stride + c] - want[c]);
        if (fl_kv_rounded(type)) measure(ATTEND_INT8, error / (all + 1e-30));
        else measure(ATTEND, error / (size[c] + 1e-30));
    }
}

void test_attend(void) {
    static const fl_type types[] = {FL_F32, FL_F16, FL_Q8, FL_Q4};
    static float q[ROWS * STRIDE], result[2][ROWS * (STRIDE + 2)], maps[PAGES * ROWS * FL_PAGE], mask[FL_PAGE];
    static attend_page cache[PAGES];
    static fl_query q8[ROWS * (STRIDE / FL_GROUP + 1)];
    float *work = take(fl_attend_floats(ROWS, STRIDE) * sizeof *work);
    for (size_t number = 0; number < 800; number++) {
        const fl_type type = types[number % 4];
        const size_t rows = number / 4 % ROWS + 1, head_dim = between(2, HEAD);
        const size_t stride = fl_round_up(head_dim, FL_LANES);
        const size_t n_pages = between(1, PAGES), begin = FIRST * FL_PAGE, middle = 8 * FL_PAGE;
        const int masked = number % 7 == 0;
        size_t limit[ROWS], from[ROWS], end = begin + 1;
        void *pages[FIRST + PAGES];
        describe("attend_%s number %zu rows %zu head_dim %zu pages %zu", type_name(type), number, rows, head_dim,
                 n_pages);
        for (size_t r = 0; r < rows; r++) {
            const size_t kind = between(0, 3), past = begin + n_pages * FL_PAGE; // 0: nothing, 1: all, else: a part
            limit[r] = kind == 0 ? begin : kind == 1 ? past : between(begin + 1, past);
            from[r] = between(0, 2) ? 0 : between(begin, limit[r]); // a window, of nothing at times
            end = limit[r] > end ? limit[r] : end;
        }
        memset(q, 0, sizeof q);
        fill_queries(rows, head_dim, q, q8);
        for (size_t j = 0; j < FL_PAGE; j++) mask[j] = between(0, 3) == 0 ? -1e30f : 0;
        for (size_t b = 0; b < PAGES; b++) {
            const size_t start = begin + b * FL_PAGE;
            pages[FIRST + b] = cache[b].bytes;
            fill_page(&cache[b], type, head_dim, end < start ? 0 : end - start < FL_PAGE ? end - start : FL_PAGE);
            if (masked) memcpy(cache[b].bytes + sizeof cache[b].bytes - sizeof mask, mask, sizeof mask);
        }
        fl_attend a = {
            .rows = rows, .head_dim = head_dim, .stride = stride, .q = q, .q8 = q8, .from = from, .limit = limit,
            .begin = begin, .end = end, .pages = pages, .values = fl_keys_bytes(type, head_dim),
            .softcap = number % 5 == 0 ? 3 : 0,
            .mask = masked ? sizeof cache[0].bytes - sizeof mask : 0, .work = work};
        for (size_t i = 0; i < n_isas; i++)
            for (size_t apart = 0; apart < 2; apart++) { // both runs in one call, and a call for each
                poison(result, sizeof result);
                poison(work, fl_attend_floats(ROWS, STRIDE) * sizeof *work);
                a.max = result[0], a.sum = a.max + rows, a.out = a.sum + rows;
                if (apart && end > middle) {
                    a.end = middle;
                    isas[i]->attend[type](&a);
                    a.begin = middle, a.end = end;
                    a.max = result[1], a.sum = a.max + rows, a.out = a.sum + rows;
                    isas[i]->attend[type](&a);
                    float *max = result[0], *sum = max + rows;
                    isas[i]->merge(rows, stride, max, sum, sum + rows, a.max, a.sum, a.out);
                    a.begin = begin;
                } else {
                    isas[i]->attend[type](&a);
                }
                same(2 * i + apart, isas[i]->name, result[0], rows * (stride + 2) * sizeof(float));
            }
        a.max = result[0], a.sum = a.max + rows, a.out = a.sum + rows;
        for (size_t b = 0; begin + b * FL_PAGE < end; b++)
            for (size_t i = 0; i < n_isas; i++) {
                fl_attend one = a;
                float *map = maps + b * ROWS * FL_PAGE;
                one.begin = begin + b * FL_PAGE;
                one.end = end < one.begin + FL_PAGE ? end : one.begin + FL_PAGE;
                poison(map, ROWS * FL_PAGE * sizeof *map);
                isas[i]->probabilities[type](&one, map);
                for (size_t r = 0; r < rows; r++) // a row that sees nothing has no softmax
                    if (a.sum[r] == 0) memset(map + r * FL_PAGE, 0, FL_PAGE * sizeof *map);
                same(i, isas[i]->name, map, rows * FL_PAGE * sizeof *map);
            }
        for (size_t r = 0; r < rows; r++) check_attend(type, &a, cache, masked ? mask : NULL, maps, r);
    }
    fl_free(work);
}
