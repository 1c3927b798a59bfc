# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=False
"""The C core (csrc/) as Python objects: weights, models, KV caches, samplers, and what tokenizers need to be fast.

This module decides which object owns which memory, what protects what from other threads, and which exception stands
for which status of C. Beside that it has the queue for cores and the loops over tokenizers' pieces, which are too slow
in Python; policy is python/fastllm's, arithmetic is csrc's.

Threads: every call that computes releases the GIL. Everything that such calls share (the pool of KV pages, the lists of
idle scratch, the queue for cores) is read and written only with the GIL held: the GIL is its lock, which is why the
module is not free-threading compatible. Any number of threads may use a Matrix, a Vector, a Dense, a Model, a KVCache,
a Page or a Cancel at once. A Sequence and a Sampler serve one call at a time: a second one raises OptionError.

Memory: C gets plain pointers. What they point into belongs to Python objects, and for as long as C may read or write
there, the object or the call that made the pointer holds a reference to its owner.

Arguments: converting one may run Python code (__index__, __iter__, __float__), which may change the list that it came
from. So every argument is converted once, and what is checked and counted is the result of that, never len() of the
original. Constructors are __cinit__, which runs once: a second __init__ cannot replace memory that is in use.
"""
cimport cython
from libc.math cimport INFINITY
from libc.stdint cimport INT32_MAX, SIZE_MAX, UINT64_MAX, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from libfastllm cimport *

import os

from fastllm.errors import CacheFullError, CheckpointError, ContextError, NumericError, OptionError

LANES = FL_LANES  # rows of a panel; rows of outputs and logits are padded to a multiple of it
GROUP = FL_GROUP  # consecutive channels that share a scale
PAGE = FL_PAGE  # positions of a page of keys and values
ALIGN = FL_ALIGN  # bytes; where tensors start is a multiple of it

include "errors.pxi"  # a status of C as an exception
include "cores.pxi"  # teams of threads take turns on the machine's cores
include "machine.pxi"  # instruction sets, threads, how floats round, loads to measure it by
include "memory.pxi"  # aligned memory, mapped files
include "weights.pxi"  # matrices and vectors as the kernels read them
include "packing.pxi"  # a checkpoint's weights into panels
include "model.pxi"  # a config and its tensors, bound; what runs a forward
include "kv_cache.pxi"  # pages of keys and values, their pool
include "sequence.pxi"  # the pages of a text, for forwards
include "cancel.pxi"  # what ends a forward early
include "forward.pxi"  # the spans and outputs of one forward as C arrays
include "sampler.pxi"  # from logits to a token
include "contrast.pxi"  # predictions weighed against each other
include "beams.pxi"  # from logits to the tokens that may follow several beams
include "attention.pxi"  # the attention kernel on its own
include "pieces.pxi"  # vocabularies of SentencePiece and llama2.c
include "merges.pxi"  # byte-pair encoding by tables in a file
