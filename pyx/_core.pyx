# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=False
"""The C core as Python objects: weights, model, KV cache, sampler. Thin: lifetimes, locks and exceptions, no policy.

The GIL is released in every call that computes. A Model, its Matrix objects and a KVCache may be shared between
threads; a Sequence and a Sampler belong to one at a time, and say so.

Objects from outside are converted once, and what was converted is counted: len() may say something else, and code that
converts may change a list. What C points to is held by the object or the call that has the pointer. Constructors are
__cinit__, which runs once.
"""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport INT32_MAX, SIZE_MAX, UINT64_MAX, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy

from libfastllm cimport *

import os
from _thread import allocate_lock
from collections import deque
from functools import wraps

from fastllm.config import ACTS, NORMS, QK_NORMS
from fastllm.errors import CheckpointError, ContextError, NumericError, OptionError

LANES = FL_LANES
GROUP = FL_GROUP
PAGE = FL_PAGE
ALIGN = FL_ALIGN

include "errors.pxi"
include "cores.pxi"
include "machine.pxi"
include "memory.pxi"
include "weights.pxi"
include "packing.pxi"
include "model.pxi"
include "kv_cache.pxi"
include "forward.pxi"
include "sampler.pxi"
include "attention.pxi"
include "pieces.pxi"
