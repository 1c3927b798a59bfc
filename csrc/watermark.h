// Green lists: which tokens a watermark prefers after a text (Kirchenbauer et al., 2023; its selfhash, 2024).
#ifndef FL_WATERMARK_H
#define FL_WATERMARK_H

#include "fastllm.h"

// Whether the list depends on the token itself that it is asked about, so that each token has a list of its own.
int fl_watermark_is_selfhash(const fl_watermark *m);
float fl_watermark_bias(const fl_watermark *m);
size_t fl_watermark_width(const fl_watermark *m);

// Writes the green tokens that follow a text to the first of order (vocab,), and returns how many. context (n,): the
// end of the text, as long as the watermark's context; with selfhash one shorter, and followed by the token `own`.
size_t fl_watermark_list(const fl_watermark *m, const int32_t *context, size_t n, int32_t own, uint32_t *order);

#endif
