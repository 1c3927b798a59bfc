// Logarithms of probabilities: the log softmax of logits as the model computed them.
#include <math.h>

#include "candidates.h"
#include "fpenv.h"

// ln p[i] = x[i] - max - ln(sum of exp(x[j] - max)), the sum being 1 at least.
static fl_status logprobs(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, size_t vocab, size_t top,
                          int32_t *tokens, double *out) {
    fl_draw_worker *w;
    size_t best;
    int finite;
    const fl_status status = fl_draw_reserve(scratch, 0, vocab, &w);
    if (status != FL_OK) return status;
    const float max = k->max(logits, vocab, &best, &finite);
    if (!finite) return FL_BAD_VALUE;
    k->softmax(w->probs, w->sums, logits, vocab, 1, max);
    const double norm = fl_log_of(k, fl_sum_of(w->probs, NULL, vocab));
    fl_candidates_top(w, k, logits, vocab, top);
    for (size_t i = 0; i < top; i++) tokens[i + 1] = (int32_t)fl_id_in(w->found[0][i]);
    for (size_t i = 0; i <= top; i++) out[i] = (double)logits[tokens[i]] - (double)max - norm;
    return FL_OK;
}

fl_status fl_logprobs(fl_draw_scratch *scratch, const fl_kernels *k, const float *logits, size_t vocab, size_t top,
                      int32_t *tokens, double *out) {
    if (vocab == 0 || top > vocab || tokens[0] < 0 || (size_t)tokens[0] >= vocab) return FL_BAD_TOKEN;
    const fl_fpenv before = fl_fpenv_set();
    const fl_status status = logprobs(scratch, k, logits, vocab, top, tokens, out);
    fl_fpenv_restore(before);
    return status;
}
