// The flag that ends forwards early.
#include <stdatomic.h>
#include <stdlib.h>

#include "fastllm.h"

struct fl_cancel {
    atomic_int on;
};

fl_status fl_cancel_new(fl_cancel **out) {
    *out = malloc(sizeof **out);
    if (!*out) return FL_NO_MEMORY;
    atomic_init(&(*out)->on, 0);
    return FL_OK;
}

void fl_cancel_free(fl_cancel *cancel) { free(cancel); }

void fl_cancel_set(fl_cancel *cancel, int on) { atomic_store_explicit(&cancel->on, on, memory_order_relaxed); }

int fl_cancel_is_set(const fl_cancel *cancel) { return atomic_load_explicit(&cancel->on, memory_order_relaxed); }
