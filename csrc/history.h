// What a sampler knows of the text so far, and what that does to the logits of its next token.
#ifndef FL_HISTORY_H
#define FL_HISTORY_H

#include "fastllm.h"

// A token that was seen.
typedef struct fl_seen {
    uint32_t name;  // token + 1; 0: this place is free
    uint32_t times; // how often it is in the penalties' window
    uint32_t count; // how often of these it was generated
} fl_seen;

// Phrases: sequences of tokens, each with a number.
typedef struct fl_phrase {
    size_t at, n; // it is tokens[at .. at + n - 1]
    float bias;
} fl_phrase;

typedef struct fl_phrases {
    int32_t *tokens;
    fl_phrase *items;
    size_t n_tokens, n;
} fl_phrases;

typedef struct fl_bar {
    int32_t token;
    size_t until; // it is not drawn before so many tokens have been generated
} fl_bar;

typedef struct fl_history {
    const fl_sampling *p; // the sampler's
    size_t vocab;
    size_t n_prompt, n_generated; // tokens accepted
    fl_seen *places;              // (n_places,) a hash table of the tokens seen, at most half full
    size_t n_places, n_seen;
    int remembers;   // whether an option needs `tokens`
    int32_t *tokens; // (n_prompt + n_generated,) of `room`, prompt and text
    uint32_t *same;  // (room,) for DRY
    size_t room;
    fl_phrases biases;   // what is added to the logit of a phrase's last token where the text ends with the others
    fl_phrases breakers; // after which DRY begins anew
    size_t broken;       // tokens up to the end of the last of these
    fl_bar *bars;
    size_t n_bars;
    int32_t *forced; // (n_forced,) the only tokens that may be drawn when `forced_at` tokens have been generated
    size_t n_forced, forced_at;
    int32_t *next; // (n_next,) the tokens that are drawn next, whatever the logits; those before next_at have been
    size_t n_next, next_at;
    int32_t *decaying; // (n_decaying,) whose logits rise exponentially once `decay_start` tokens have been generated
    size_t n_decaying, decay_start;
    double decay_factor;
} fl_history;

fl_history fl_history_of(const fl_sampling *p, size_t vocab);
void fl_history_free(fl_history *h);

// Makes the arrays of a bitwise copy its own. FL_NO_MEMORY: it has then no arrays.
fl_status fl_history_own(fl_history *h);

// Makes room for one more token, so that the next fl_history_accept does not fail.
fl_status fl_history_reserve(fl_history *h);
void fl_history_accept(fl_history *h, int32_t token, int generated);

// Whether logits have to be adjusted at all.
int fl_history_adjusts(const fl_history *h);

// Changes logits (vocab,): biases, penalties, DRY, n-grams, bars, forced tokens, decay. marks (vocab,) is scratch.
void fl_history_adjust(const fl_history *h, float *logits, uint32_t *marks);

#endif
