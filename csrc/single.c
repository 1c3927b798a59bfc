// Kernels on their own, without a model: products, dense layers, one head's attention, and the peak of multiply-adds.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fpenv.h"
#include "kernels/kernels.h"
#include "threads.h"

typedef struct product {
    const fl_kernels *k;
    const fl_matrix *w;
    fl_inputs in;
    size_t tokens;
    float *out;
} product;

static void multiply_share(void *arg, fl_team *team, size_t id) {
    const product *p = arg;
    size_t begin, end;
    fl_share((p->w->d + FL_LANES - 1) / FL_LANES, team, id, &begin, &end);
    if (begin < end)
        p->k->matmul[p->w->type](p->w, begin, end, &p->in, p->tokens, p->out, fl_round_up(p->w->d, FL_LANES), 0);
}

fl_status fl_multiply(const fl_kernels *k, const fl_matrix *w, const float *x, size_t tokens, size_t threads,
                      float *out) {
    const size_t width = fl_round_up(w->n, FL_GROUP), groups = width / FL_GROUP;
    float *padded = fl_alloc(tokens * width * sizeof(float));
    const size_t bundle = fl_bundle_width(tokens);
    void *q8 = fl_alloc(fl_q8_bytes(groups, fl_round_up(tokens, bundle)));
    if (padded && q8) {
        const fl_fpenv before = fl_fpenv_set();
        for (size_t t = 0; t < tokens; t++) {
            memcpy(padded + t * width, x + t * w->n, w->n * sizeof(float));
            const fl_outliers outliers = fl_outliers_of(q8, groups, tokens, t);
            k->quantize(padded + t * width, width, fl_bundle_of(q8, groups, tokens, t), bundle, t % bundle,
                        &outliers);
        }
        product p = {k, w, {padded, width, q8, 1}, tokens, out};
        fl_parallel(threads, multiply_share, &p);
        fl_fpenv_restore(before);
    }
    const fl_status status = padded && q8 ? FL_OK : FL_NO_MEMORY;
    fl_free(padded);
    fl_free(q8);
    return status;
}

static void activate(const fl_kernels *k, fl_dense_act act, float *x, size_t n) {
    switch (act) {
    case FL_DENSE_IDENTITY: break;
    case FL_DENSE_TANH: k->softcap(x, n, 1.0f); break;
    case FL_DENSE_SIGMOID: // 1 / (1 + e^-x) = 1/2 + tanh(x / 2) / 2
        k->softcap(x, n, 2.0f);
        for (size_t i = 0; i < n; i++) x[i] = 0.5f + 0.25f * x[i];
        break;
    case FL_DENSE_GELU: k->act[FL_GELU_ERF](x, NULL, n); break;
    case FL_DENSE_RELU: k->act[FL_RELU](x, NULL, n); break;
    case FL_DENSE_SILU: k->act[FL_SILU](x, NULL, n); break;
    }
}

fl_status fl_dense(const fl_kernels *k, const fl_matrix *w, fl_dense_act act, const float *x, size_t tokens,
                   size_t threads, float *out) {
    const fl_status status = fl_multiply(k, w, x, tokens, threads, out);
    if (status != FL_OK) return status;
    const fl_fpenv before = fl_fpenv_set();
    const size_t width = fl_round_up(w->d, FL_LANES);
    for (size_t t = 0; t < tokens; t++) {
        float *row = out + t * width;
        for (size_t i = 0; w->bias && i < width; i++) row[i] += w->bias[i];
        activate(k, act, row, width);
    }
    fl_fpenv_restore(before);
    return FL_OK;
}

typedef struct peak {
    const fl_kernels *k;
    size_t rounds;
    atomic_uint_least64_t done; // multiply-adds
    atomic_int sum;             // of no use, but a compiler cannot know that
} peak;

static void peak_share(void *arg, fl_team *team, size_t id) {
    (void)team, (void)id;
    peak *p = arg;
    int32_t sum = 0;
    atomic_fetch_add(&p->done, p->k->peak(p->rounds, &sum));
    atomic_fetch_add(&p->sum, sum);
}

uint64_t fl_int8_peak(const fl_kernels *k, size_t rounds, size_t threads) {
    peak p = {.k = k, .rounds = rounds};
    atomic_init(&p.done, 0);
    atomic_init(&p.sum, 0);
    fl_parallel(threads, peak_share, &p);
    return atomic_load(&p.done);
}

// Writes n <= 64 keys and values (n, head_dim) to a page of one head, as f32 or f16; see pages.h.
static void fill_page(const fl_kernels *k, fl_type type, size_t n, size_t head_dim, const float *keys,
                      const float *values, char *page) {
    const size_t stride = fl_round_up(head_dim, FL_LANES), at_values = FL_PAGE * head_dim;
    for (size_t pos = 0; pos < n; pos++) {
        if (type == FL_F32) {
            float *out = (float *)page;
            for (size_t i = 0; i < head_dim; i++) out[i * FL_PAGE + pos] = keys[pos * head_dim + i];
            memcpy(out + at_values + pos * stride, values + pos * head_dim, head_dim * sizeof(float));
        } else {
            uint16_t *out = (uint16_t *)page;
            for (size_t i = 0; i < head_dim; i++) k->to_f16(out + i * FL_PAGE + pos, keys + pos * head_dim + i, 1);
            k->to_f16(out + at_values + pos * stride, values + pos * head_dim, head_dim);
        }
    }
}

fl_status fl_attend_rows(const fl_kernels *k, fl_type kv_type, size_t rows, size_t n, size_t head_dim, const float *q,
                         const float *keys, const float *values, const size_t *seen, float *out) {
    const size_t stride = fl_round_up(head_dim, FL_LANES), size = kv_type == FL_F32 ? 4 : 2;
    const size_t bytes = FL_PAGE * (head_dim + stride) * size, n_pages = (n + FL_PAGE - 1) / FL_PAGE;
    char *cache = fl_alloc(n_pages * bytes);
    float *work = fl_alloc((rows * (2 * stride + 2) + fl_attend_floats(rows, stride)) * sizeof(float));
    size_t *from = calloc(rows, sizeof *from);
    void **pages = malloc(n_pages * sizeof *pages);
    const fl_status status = cache && work && from && pages ? FL_OK : FL_NO_MEMORY;
    if (status == FL_OK) {
        const fl_fpenv before = fl_fpenv_set();
        float *sums = work + fl_attend_floats(rows, stride), *padded = sums + rows * stride;
        float *max = padded + rows * stride, *sum = max + rows;
        for (size_t r = 0; r < rows; r++) memcpy(padded + r * stride, q + r * head_dim, head_dim * sizeof(float));
        for (size_t i = 0; i < n_pages; i++) {
            const size_t start = i * FL_PAGE, count = n - start < FL_PAGE ? n - start : FL_PAGE;
            pages[i] = cache + i * bytes;
            fill_page(k, kv_type, count, head_dim, keys + start * head_dim, values + start * head_dim, pages[i]);
        }
        k->attend[kv_type](&(fl_attend){
            .rows = rows,
            .head_dim = head_dim,
            .stride = stride,
            .q = padded,
            .from = from,
            .limit = seen,
            .end = n,
            .pages = pages,
            .values = FL_PAGE * head_dim * size,
            .work = work,
            .max = max,
            .sum = sum,
            .out = sums,
        });
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < head_dim; i++) out[r * head_dim + i] = sums[r * stride + i] / sum[r];
        fl_fpenv_restore(before);
    }
    fl_free(cache);
    fl_free(work);
    free(from);
    free(pages);
    return status;
}
