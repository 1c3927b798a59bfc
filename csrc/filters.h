// The filters of a draw, in any order: from the probabilities of all tokens to the tokens that may be drawn.
#ifndef FL_FILTERS_H
#define FL_FILTERS_H

#include "candidates.h"

// The filters that are on, in their order.
typedef struct fl_chain {
    uint8_t steps[FL_FILTERS]; // fl_filter
    size_t n;
    float scale; // logits are multiplied by it before the first of them
} fl_chain;

// The chain of options. Where the temperature is the first step it becomes the scale.
fl_chain fl_chain_of(const fl_sampling *p);

// What may be drawn after some of the steps.
typedef struct fl_choice {
    const fl_sampling *p;
    fl_draw_worker *w; // has probs and sums of all tokens
    const fl_kernels *k;
    const float *logits;
    size_t vocab;
    double total;  // of all probabilities
    float scale;   // what logits have been multiplied by so far
    size_t keep;   // what top_k, top_p, min_p, typical_p and both cutoffs leave at least; 0 and 1: one token
    float chance;  // a random number in [0, 1), for XTC
    double mu;     // mirostat's: the largest surprise, in bits
    int collected; // whether the tokens are the worker's candidates; until then they are all
    int exact;     // whether they are all of the candidates, not only the first `end.count`
    int typical;   // whether candidates are ranked by typicality
    fl_cut end;    // of them
} fl_choice;

void fl_choice_filter(fl_choice *c, const fl_chain *chain);

// Makes what may be drawn all of the candidates, ranked by probability.
void fl_choice_settle(fl_choice *c);

#endif
