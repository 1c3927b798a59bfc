// Whether a batch can be run; for models see fl_model_check.
#ifndef FL_VALIDATE_H
#define FL_VALIDATE_H

#include "fastllm.h"

// FL_BAD_POSITION, FL_BAD_TOKEN or FL_BAD_TENSOR, as fl_forward says, where a span of the batch cannot be run.
fl_status fl_batch_check(const fl_model *m, const fl_span *spans, size_t n_spans);

#endif
