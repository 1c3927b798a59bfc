// Attention to keys and values in pages: runs at once and one by one, windows, masks, and the maps of probabilities.
#include <math.h>
#include <string.h>

#include "check.h"

enum { ROWS = 19, HEAD = 130, STRIDE = 144, PAGES = 3, FIRST = 6 }; // pages 6, 7 | 8: two runs

// Keys and values of a page: the bytes that kernels read, and their values.
typedef struct attend_page {
    _Alignas(FL_ALIGN) char bytes[FL_PAGE * ((HEAD + STRIDE) * 4 + 1)];
    double keys[FL_PAGE][HEAD], values[FL_PAGE][HEAD];
} attend_page;

// Stores x, in [-1, 1), as element i of a page's keys or values, and returns the value that it has there.
static double put(fl_type type, char *bytes, size_t i, float x, float scale) {
    const float f16 = fl_f32_from_f16(fl_f16_from_f32(x));
    const int8_t q = (int8_t)(127 * x);
    if (type == FL_F32) memcpy(bytes + 4 * i, &x, 4);
    if (type == FL_F16) memcpy(bytes + 2 * i, (uint16_t[]){fl_f16_from_f32(x)}, 2);
    if (type == FL_Q8) memcpy(bytes + i, &q, 1);
    return type == FL_F32 ? (double)x : type == FL_F16 ? (double)f16 : (double)q * (double)scale;
}

// Random keys and values of `seen` positions. Behind them is poison, as an earlier sequence may leave it.
static void fill_page(attend_page *b, fl_type type, size_t head_dim, size_t seen) {
    const size_t stride = fl_round_up(head_dim, FL_LANES), groups = (head_dim + FL_GROUP - 1) / FL_GROUP;
    char *values = b->bytes + fl_keys_bytes(type, head_dim);
    poison(b->bytes, sizeof b->bytes);
    for (size_t j = 0; j < seen; j++)
        for (size_t c = 0; c < stride; c++) {
            static float key_scale, value_scale;
            if (c % FL_GROUP == 0) {
                key_scale = (unit() + 2) * 0x1p-8f;
                value_scale = (unit() + 2) * 0x1p-8f;
            }
            const double value = put(type, values, j * stride + c, c < head_dim ? unit() : 0, value_scale);
            if (c >= head_dim) continue;
            b->values[j][c] = value;
            b->keys[j][c] = put(type, b->bytes, c * FL_PAGE + j, unit(), key_scale);
            if (type != FL_Q8) continue;
            memcpy(b->bytes + FL_PAGE * head_dim + (c / FL_GROUP * FL_PAGE + j) * 4, &key_scale, 4);
            memcpy(values + FL_PAGE * stride + (j * groups + c / FL_GROUP) * 4, &value_scale, 4);
        }
}

// Compares row r with attention in double precision.
static void check_attend(const fl_attend *a, const attend_page *pages, const float *mask, const float *maps, size_t r) {
    double total = 0, want[HEAD] = {0}, size[HEAD] = {0};
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
        for (size_t c = 0; c < a->head_dim; c++) {
            want[c] += e * b->values[j][c];
            size[c] += e * fabs(b->values[j][c]);
        }
    }
    measure(ATTEND, fabs((double)a->sum[r] - total) / (total + 1e-30));
    for (size_t c = 0; c < a->head_dim; c++)
        measure(ATTEND, fabs((double)a->out[r * a->stride + c] - want[c]) / (size[c] + 1e-30));
}

void test_attend(void) {
    static const fl_type types[] = {FL_F32, FL_F16, FL_Q8};
    static float q[ROWS * STRIDE], result[2][ROWS * (STRIDE + 2)], maps[PAGES * ROWS * FL_PAGE], mask[FL_PAGE];
    static attend_page cache[PAGES];
    float *work = take(fl_attend_floats(ROWS, STRIDE) * sizeof *work);
    for (size_t number = 0; number < 600; number++) {
        const fl_type type = types[number % 3];
        const size_t rows = number / 3 % ROWS + 1, head_dim = between(2, HEAD);
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
        for (size_t r = 0; r < rows; r++) fill(q + r * stride, head_dim, 0.5f);
        for (size_t j = 0; j < FL_PAGE; j++) mask[j] = between(0, 3) == 0 ? -1e30f : 0;
        for (size_t b = 0; b < PAGES; b++) {
            const size_t start = begin + b * FL_PAGE;
            pages[FIRST + b] = cache[b].bytes;
            fill_page(&cache[b], type, head_dim, end < start ? 0 : end - start < FL_PAGE ? end - start : FL_PAGE);
            if (masked) memcpy(cache[b].bytes + sizeof cache[b].bytes - sizeof mask, mask, sizeof mask);
        }
        fl_attend a = {
            .rows = rows, .head_dim = head_dim, .stride = stride, .q = q, .from = from, .limit = limit, .begin = begin,
            .end = end, .pages = pages, .values = fl_keys_bytes(type, head_dim), .softcap = number % 5 == 0 ? 3 : 0,
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
        for (size_t r = 0; r < rows; r++) check_attend(&a, cache, masked ? mask : NULL, maps, r);
    }
    fl_free(work);
}
