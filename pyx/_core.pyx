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

TYPES = ("f32", "f16", "bf16", "q8", "q8_f32", "q4")


cdef fl_type type_of(str name) except *:
    if name not in TYPES:
        raise OptionError(f"{name!r} is no weight type: choose one of {', '.join(TYPES)}")
    return <fl_type><int>TYPES.index(name)


cdef int check(fl_status status, str what) except -1:
    """Turns a status into the exception it stands for; `what` says what was being done."""
    if status == FL_OK:
        return 0
    if status == FL_NO_MEMORY:
        raise MemoryError(f"{what}: out of memory")
    if status == FL_BAD_TOKEN:
        raise OptionError(f"{what}: a token id is outside the vocabulary")
    if status == FL_BAD_POSITION:
        raise ContextError(f"{what}: more tokens than the context holds, or none")
    if status == FL_BAD_VALUE:
        raise CheckpointError(f"{what}: a value is not finite, or too large for the type")
    if status == FL_BAD_CONFIG:
        raise CheckpointError(f"{what}: these dimensions cannot be a model's")
    raise CheckpointError(f"{what}: a tensor is missing or has the wrong shape")


# ---- turns ----------------------------------------------------------------------------------------------------------

# Teams that Python threads start at once share the machine's cores: a team takes as many as it has threads, and waits
# until they are free, first come, first served. (More threads than cores would stop each other at their barriers, for a
# time slice each time. Python's own locks are not fair: a thread that gives one back and takes it again starves the
# others.) A call of one thread waits for no barrier and takes no turn: the system shares the cores between such.
# All of this happens under the GIL; nothing holds it while it waits.
cdef size_t cores = 0          # of the machine; 0: not yet asked for
cdef size_t busy_cores = 0     # of them, those that teams have
cdef object waiting = deque()  # (a lock that is taken until it is this team's turn, how many cores it takes)


cdef size_t take_cores(size_t threads) except? 0:
    """Waits for the cores of a team; returns what is to be given back. Ctrl-C ends the wait with KeyboardInterrupt."""
    global cores, busy_cores
    if threads <= 1:
        return 0
    if cores == 0:
        from fastllm.cores import core_count
        cores = core_count()[0]
    cdef size_t wanted = min(threads, cores)
    if busy_cores + wanted <= cores and not waiting:
        busy_cores += wanted
        return wanted
    turn = allocate_lock()
    turn.acquire()
    waiting.append((turn, wanted))
    try:
        turn.acquire()
    except BaseException:
        try:
            waiting.remove((turn, wanted))
            call_next()
        except ValueError:  # its turn came just now
            give_cores(wanted)
        raise
    return wanted


cdef int give_cores(size_t taken) except -1:
    global busy_cores
    if taken:
        busy_cores -= taken
        call_next()
    return 0


cdef int call_next() except -1:
    """Lets those that wait begin, in order, for as long as there are cores for the next one."""
    global busy_cores
    while waiting and busy_cores + <size_t>waiting[0][1] <= cores:
        turn, wanted = waiting.popleft()
        busy_cores += wanted
        turn.release()
    return 0


def _forget_turns():
    """In a forked child: the threads that had cores in the parent, or waited for them, are not there."""
    global busy_cores
    busy_cores = 0
    waiting.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_turns)


# ---- floats ---------------------------------------------------------------------------------------------------------

def standard_floats(function):
    """A function whose floats round to nearest and may be subnormal, whatever its caller has set: see csrc/fpenv.h.

    The core sees to its own; this is for what Python and numpy compute of a model's numbers. Not for generators.
    """
    @wraps(function)
    def standard(*args, **kwargs):
        cdef fl_fpenv before = fl_fpenv_set()
        try:
            return function(*args, **kwargs)
        finally:
            fl_fpenv_restore(before)
    return standard


# ---- the machine ----------------------------------------------------------------------------------------------------

def isas():
    """The instruction sets built in, worst first, each with whether this machine can run it."""
    cdef size_t i = 0
    cdef int supported = 0
    cdef const char *name
    found = []
    while True:
        name = fl_isa_built(i, &supported)
        if name is NULL:
            return found
        found.append((name.decode(), bool(supported)))
        i += 1


cdef const fl_kernels *find_kernels(isa) except NULL:
    cdef const fl_kernels *kernels = NULL
    name = (isa or "").encode()
    if fl_kernels_find(name, &kernels) != FL_OK:
        can = ", ".join(name for name, supported in isas() if supported)
        raise OptionError(f"{isa!r} is no instruction set of this build and machine: choose one of {can}")
    return kernels


def best_isa(isa=None):
    """The name of the instruction set that is used: the best, unless one is asked for. Raises OptionError."""
    return fl_kernels_name(find_kernels(isa)).decode()


def has_threads():
    """Whether this build has OpenMP."""
    return bool(fl_has_threads())


def try_threads(size_t threads):
    """Starts that many threads at once, which do nothing. Raises OSError when the system refuses one."""
    cdef int problem
    with nogil:
        problem = fl_try_threads(threads)
    if problem:
        raise OSError(problem, os.strerror(problem))


def read_memory(const unsigned char[::1] data not None, size_t threads=1):
    """Reads all of `data` with `threads` threads and returns a sum of it: for timing memory."""
    cdef uint64_t total
    taken = take_cores(threads)
    with nogil:
        total = fl_read(&data[0], <size_t>data.shape[0], threads)
    give_cores(taken)
    return total


def int8_peak(size_t rounds, size_t threads=1, isa=None):
    """Runs int8 multiply-adds that wait for nothing, on `threads` threads at once, and returns how many: for timing."""
    cdef const fl_kernels *kernels = find_kernels(isa)
    cdef uint64_t done
    taken = take_cores(threads)
    with nogil:
        done = fl_int8_peak(kernels, rounds, threads)
    give_cores(taken)
    return done


# ---- memory ---------------------------------------------------------------------------------------------------------

cdef class Buffer:
    """`nbytes` of zeroed memory, aligned to 64 bytes, untouched until written. Supports the buffer protocol (bytes)."""
    cdef char *data
    cdef readonly size_t nbytes

    def __cinit__(self, size_t nbytes):
        self.data = <char *>fl_alloc(nbytes)
        self.nbytes = nbytes
        if self.data is NULL:
            raise MemoryError(f"cannot allocate {nbytes:,} bytes")

    def __dealloc__(self):
        fl_free(self.data)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, <Py_ssize_t>self.nbytes, 0, flags)


@cython.final
cdef class MappedFile:
    """A file that is not empty, mapped read-only. Supports the buffer protocol (bytes); unmapped after its last view.

    fd: open for reading, and not needed after. path: what errors call the file. Raises OSError.
    """
    cdef fl_mapping *c
    cdef readonly str path

    def __cinit__(self, int fd, str path):
        cdef int problem = fl_mapping_new(fd, &self.c)
        if problem:
            raise OSError(problem, os.strerror(problem), path)
        self.path = path

    def __dealloc__(self):
        fl_mapping_free(self.c)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>fl_mapping_data(self.c), <Py_ssize_t>fl_mapping_bytes(self.c), 1, flags)

    def check(self):
        """Raises CheckpointError when the file is not what was mapped: what was read of it since may be anything."""
        self.expect_same(fl_mapping_state(self.c), "while it was read")

    cdef int expect_same(self, fl_file_state state, str when) except -1:
        if state == FL_FILE_SAME:
            return 0
        if state == FL_FILE_TRUNCATED:
            raise CheckpointError(f"{self.path} was truncated while it was in use")
        if state == FL_FILE_CHANGED:
            raise CheckpointError(f"{self.path} was changed {when}")
        raise CheckpointError(f"{self.path} cannot be read any more: its disk or network failed")


# ---- weights --------------------------------------------------------------------------------------------------------

cdef class Matrix:
    """Weights (d, n) in panels: see fl_type in csrc/fastllm.h. `data` is any buffer of panels, kept alive, not copied.

    With count, that many matrices (d, n), one after the other: a stack, of which nobody multiplies but a Model. Raises
    CheckpointError when `data` has not the size the shape needs, or is not aligned to 64 bytes.
    """
    cdef fl_matrix c
    cdef size_t count
    cdef bint stack
    cdef const unsigned char[::1] view

    def __cinit__(self, str dtype, size_t d, size_t n, const unsigned char[::1] data not None, *, count=None):
        cdef fl_type type = type_of(dtype)
        cdef size_t need = fl_matrix_bytes(type, d, n)
        self.stack = count is not None
        self.count = count if self.stack else 1
        if need == 0 or self.count == 0 or <size_t>data.shape[0] % self.count \
                or <size_t>data.shape[0] // self.count != need:
            what = f"a {dtype} matrix" if count is None else f"{count} {dtype} matrices"
            raise CheckpointError(f"{what} of {d} x {n}: {need:,} bytes each, not {data.shape[0]:,} in all")
        if <uintptr_t>&data[0] % FL_ALIGN:
            raise CheckpointError(f"a {dtype} matrix of {d} x {n} does not start on a multiple of {FL_ALIGN} bytes")
        self.view = data
        self.c = fl_matrix(&data[0], type, d, n, NULL)

    @property
    def dtype(self):
        return TYPES[<int>self.c.type]

    @property
    def shape(self):
        d, n = self.c.d, self.c.n
        if self.stack:
            return (self.count, d, n)
        return (d, n)

    @property
    def nbytes(self):
        return <size_t>self.view.shape[0]

    @property
    def data(self):
        """The panels as a read-only memoryview of bytes."""
        return memoryview(self.view)

    cdef object owner(self):
        """The object whose memory the panels lie in."""
        return PyMemoryView_FromObject(self.view.base).obj

    def row(self, size_t r, float[::1] out not None):
        """Writes row r as f32 to `out`, n floats."""
        if self.stack or r >= self.c.d or <size_t>out.shape[0] != self.c.n:
            raise OptionError(f"no row {r} of {out.shape[0]} values in a matrix of {self.c.d} x {self.c.n}")
        fl_matrix_row(&self.c, r, &out[0])

    def multiply(self, const float[:, ::1] x not None, float[:, ::1] out not None, *, size_t threads=1, isa=None):
        """out (t, d rounded up to 16) = x (t, n) times the matrix, transposed."""
        cdef const fl_kernels *kernels = find_kernels(isa)
        cdef size_t tokens = <size_t>x.shape[0]
        cdef fl_status status
        if self.stack or tokens == 0 or <size_t>x.shape[1] != self.c.n or out.shape[0] != x.shape[0] \
                or <size_t>out.shape[1] != fl_round_up(self.c.d, FL_LANES):
            raise OptionError("multiply: x must be (t, n) and out (t, d rounded up to 16)")
        taken = take_cores(threads)
        with nogil:
            status = fl_multiply(kernels, &self.c, &x[0, 0], tokens, threads, &out[0, 0])
        give_cores(taken)
        check(status, "multiply")


def matrix_bytes(str dtype, size_t d, size_t n):
    """Bytes of a matrix (d, n) in panels."""
    return fl_matrix_bytes(type_of(dtype), d, n)


def pack(str dtype, size_t d, size_t n, str source_dtype, const unsigned char[::1] data not None, *,
         const unsigned char[::1] scales=None, size_t group=0, const int32_t[::1] rows=None,
         const float[::1] importance=None, const float[:, ::1] feedback=None, const float[:, ::1] products=None,
         unsigned char[::1] out=None, size_t threads=1, str name="matrix", isa=None):
    """Packs a row-major matrix (d, n) into a Matrix of type `dtype`, in `out` (matrix_bytes long) or memory of its own.

    data: its bytes, as f32, f16, bf16, or ("q8_f32") int8 with f32 `scales`, one for each `group` consecutive elements.
    rows: row r of the result is row rows[r] of the source. For q4 importance (n,), feedback (n, n) and products (n, n),
    see fl_source. name: what to call the matrix in an error.
    """
    cdef fl_type type = type_of(dtype), source_type = type_of(source_dtype)
    cdef size_t size = 4 if source_type == FL_F32 else 1 if source_type == FL_Q8_F32 else 2
    cdef fl_source source = fl_source(NULL, source_type, NULL, group, d, n, NULL, find_kernels(isa), NULL, NULL, NULL)
    cdef fl_status status
    if source_type in (FL_Q8, FL_Q4) or d == 0 or n == 0 or fl_matrix_bytes(type, d, n) == 0 \
            or n > <size_t>data.shape[0] or <size_t>data.shape[0] % (n * size) or <size_t>data.shape[0] // (n * size) != d:
        raise CheckpointError(f"{name} of {d} x {n} {source_dtype} values cannot be {data.shape[0]:,} bytes")
    source.data = &data[0]
    if source_type == FL_Q8_F32:
        if group == 0 or scales is None or <size_t>scales.shape[0] < ((d * n - 1) // group + 1) * 4:
            raise CheckpointError(f"{name} has not a scale for each group of {group} values")
        source.scales = &scales[0]
    if rows is not None:
        if <size_t>rows.shape[0] != d:
            raise CheckpointError(f"{name} has {d} rows, not {rows.shape[0]}")
        source.rows = &rows[0]
    if importance is not None:
        if <size_t>importance.shape[0] != n:
            raise OptionError(f"{name} has {n} columns, not {importance.shape[0]} that count")
        source.importance = &importance[0]
    if feedback is not None:
        if importance is None or <size_t>feedback.shape[0] != n or <size_t>feedback.shape[1] != n:
            raise OptionError(f"{name} of {n} columns needs their importance and a feedback of {n} x {n}")
        source.feedback = &feedback[0, 0]
    if products is not None:
        if feedback is None or <size_t>products.shape[0] != n or <size_t>products.shape[1] != n:
            raise OptionError(f"{name} of {n} columns needs their feedback and products of {n} x {n}")
        source.products = &products[0, 0]
    if out is None:
        out = Buffer(fl_matrix_bytes(type, d, n))
    matrix = Matrix(dtype, d, n, out)
    taken = take_cores(threads)
    with nogil:
        status = fl_pack(type, &out[0], &source, threads)
    give_cores(taken)
    check(status, f"{name} as {dtype}")
    return matrix


def factor(double[:, ::1] h not None, float[::1] importance not None, *, size_t threads=1):
    """h (n, n), symmetric and positive definite, becomes U and importance (n,), see fl_factor."""
    cdef size_t n = <size_t>h.shape[0]
    if n == 0 or h.shape[1] != h.shape[0] or <size_t>importance.shape[0] != n:
        raise OptionError("factor: h must be (n, n) and importance (n,)")
    taken = take_cores(threads)
    with nogil:
        status = fl_factor(n, &h[0, 0], &importance[0], threads)
    give_cores(taken)
    check(status, "factor")


def block_types():
    """GGUF's block types that dequantize knows: name -> (values of a block, their bytes)."""
    cdef size_t i = 0, values = 0, nbytes = 0
    cdef const char *name
    found = {}
    while True:
        name = fl_block(i, &values, &nbytes)
        if name is NULL:
            return found
        found[name.decode()] = (values, nbytes)
        i += 1


def dequantize(str block, const unsigned char[::1] data not None, float[::1] out not None, *, size_t threads=1):
    """GGUF's blocks of a type as floats: `data` whole blocks, `out` room for their values."""
    types = block_types()
    if block not in types:
        raise OptionError(f"{block!r} is none of GGUF's block types: {', '.join(types)}")
    cdef size_t number = list(types).index(block), values = types[block][0], nbytes = types[block][1]
    cdef size_t count = <size_t>data.shape[0] // nbytes
    if <size_t>data.shape[0] != count * nbytes or <size_t>out.shape[0] != count * values:
        raise OptionError(f"{data.shape[0]:,} bytes of {block} blocks are not {out.shape[0]:,} values")
    if count == 0:
        return
    taken = take_cores(threads)
    with nogil:
        status = fl_dequantize(number, &data[0], count, threads, &out[0])
    give_cores(taken)
    check(status, block)


cdef class Vector:
    """n floats, aligned and zero-padded to a multiple of 16: norm weights, frequencies. Copies `data`, f32 bytes.

    name: what to call the vector in an error. Raises CheckpointError where a value is not finite.
    """
    cdef Buffer buffer
    cdef readonly size_t n

    def __cinit__(self, const unsigned char[::1] data not None, *, str name="a vector"):
        if data.shape[0] == 0 or data.shape[0] % 4:
            raise CheckpointError(f"{name} of {data.shape[0]} bytes is no vector of f32")
        self.n = <size_t>data.shape[0] // 4
        self.buffer = Buffer(fl_round_up(self.n, FL_LANES) * 4)
        memcpy(self.buffer.data, &data[0], self.n * 4)
        if not fl_finite(<const float *>self.buffer.data, self.n):
            raise CheckpointError(f"{name} has a value that is not finite")

    @property
    def shape(self):
        return (self.n,)

    @property
    def nbytes(self):
        return self.n * 4

    @property
    def data(self):
        """The values as a memoryview of bytes, without the padding."""
        return memoryview(self.buffer)[:self.n * 4]


DENSE_ACTS = ("identity", "tanh", "sigmoid", "gelu", "relu", "silu")  # fl_dense_act, in its order


cdef class Dense:
    """A layer after the stream: act(matrix x + bias). Immutable.

    Raises CheckpointError where the bias has not the matrix's rows, or the activation is none of DENSE_ACTS.
    """
    cdef readonly Matrix matrix
    cdef readonly Vector bias
    cdef readonly str act
    cdef fl_matrix c
    cdef fl_dense_act kind

    def __cinit__(self, Matrix matrix not None, Vector bias, str act not None):
        if act not in DENSE_ACTS:
            raise CheckpointError(f"a dense layer has the activation {act!r}; known are {', '.join(DENSE_ACTS)}")
        if matrix.stack or (bias is not None and bias.n != matrix.c.d):
            raise CheckpointError(f"a dense layer of {matrix.c.d} rows has a bias of {0 if bias is None else bias.n}")
        self.matrix, self.bias, self.act = matrix, bias, act
        self.kind = <fl_dense_act><int>DENSE_ACTS.index(act)
        self.c = matrix.c
        if bias is not None:
            self.c.bias = <const float *>bias.buffer.data

    def apply(self, const float[:, ::1] x not None, float[:, ::1] out not None, *, size_t threads=1, isa=None):
        """out (t, d rounded up to 16) = act(matrix x + bias) of x (t, n)."""
        cdef const fl_kernels *kernels = find_kernels(isa)
        cdef size_t tokens = <size_t>x.shape[0]
        cdef fl_status status
        if tokens == 0 or <size_t>x.shape[1] != self.c.n or out.shape[0] != x.shape[0] \
                or <size_t>out.shape[1] != fl_round_up(self.c.d, FL_LANES):
            raise OptionError("apply: x must be (t, n) and out (t, d rounded up to 16)")
        taken = take_cores(threads)
        with nogil:
            status = fl_dense(kernels, &self.c, self.kind, &x[0, 0], tokens, threads, &out[0, 0])
        give_cores(taken)
        check(status, "a dense layer")


# ---- model ----------------------------------------------------------------------------------------------------------

cdef class Scratch:
    """Working memory of one forward at a time."""
    cdef fl_scratch *c

    def __cinit__(self):
        check(fl_scratch_new(&self.c), "working memory")

    def __dealloc__(self):
        fl_scratch_free(self.c)


cdef class Model:
    """A config and its tensors, bound and checked; immutable.

    config: a fastllm.config.Config. tensors: name -> Matrix or Vector, by its canonical names; without "head" the
    embedding serves. Raises CheckpointError when one is missing or has the wrong shape. Where a forward is given more
    threads than are fastest just now, on busy cores, it takes fewer; with paced=False exactly as many, for tests.
    """
    cdef fl_model c
    cdef dict tensors
    cdef list idle  # Scratch objects that no forward uses now
    cdef list files  # MappedFile objects that matrices lie in

    def __cinit__(self, config, dict tensors not None, *, str kv_dtype="f16", isa=None, bint paced=True):
        cdef fl_model *m = &self.c
        cdef size_t i
        self.tensors = dict(tensors)
        self.idle = []
        owners = {id(owner): owner for owner in ((<Matrix>t).owner() for t in self.tensors.values() if isinstance(t, Matrix))}
        self.files = [owner for owner in owners.values() if isinstance(owner, MappedFile)]
        self.set_config(config)
        m.kernels = find_kernels(isa)
        m.kv_type = type_of(kv_dtype)
        if paced:
            check(fl_pace_new(&m.pace), "the pace of threads")
        m.layers = <fl_layer *>calloc(m.config.n_layers, sizeof(fl_layer))
        if m.layers is NULL:
            raise MemoryError("cannot allocate the list of layers")
        for name, shape, required in config.matrices():
            tensor = self.tensors.get(name)
            if tensor is None and not required:
                continue
            if not isinstance(tensor, Matrix) or tensor.shape != shape:
                raise CheckpointError(f"the model has no matrix {name} of {' x '.join(map(str, shape))}")
        for name, n, required in config.vectors():
            tensor = self.tensors.get(name)
            if tensor is None and not required:
                continue
            if not isinstance(tensor, Vector) or tensor.n != n:
                raise CheckpointError(f"the model has no vector {name} of {n} values")
        m.embed = self.matrix("embed")
        m.positions = self.matrix("positions")
        m.embed_norm = self.norm("embed_norm")
        m.final_norm = self.norm("final_norm")
        if config.head:
            m.head_dense = self.matrix("head.dense")
            m.head_norm = self.norm("head.norm")
            m.head = self.matrix("head" if "head" in self.tensors else "embed")
            m.head.bias = self.vector("head.bias")
        m.rope_freqs[0] = self.vector("rope.freqs")
        m.rope_freqs[1] = self.vector("rope.freqs_local")
        for i in range(m.config.n_layers):
            self.set_layer(config, i)
        check(fl_model_check(m), "model")

    cdef int set_config(self, config) except -1:
        cdef fl_config *c = &self.c.config
        c.dim = config.dim
        c.hidden_dim = config.hidden_dim
        c.head_dim = config.head_dim
        c.n_layers = config.n_layers
        c.n_heads = config.n_heads
        c.n_kv_heads = config.n_kv_heads
        c.vocab_size = config.vocab_size
        c.max_seq = config.max_seq
        c.rotary_dim = config.rotary_dim
        c.norm_eps = config.norm_eps
        c.attn_scale = config.attn_scale
        c.norm = <fl_norm_kind><int>NORMS.index(config.norm)
        c.act = <fl_act><int>ACTS.index(config.act)
        c.qk_norm = <fl_qk_norm><int>QK_NORMS.index(config.qk_norm)
        c.causal = config.causal
        c.parallel = config.parallel
        c.norm_after = config.norm_after
        c.rope_scale = config.rope_scale
        c.attn_softcap = config.attn_softcap
        c.logit_scale = config.logit_scale
        c.logit_softcap = config.logit_softcap
        c.embed_scale = config.embed_scale
        c.residual_scale = config.residual_scale
        c.n_experts = config.n_experts
        c.n_experts_used = config.n_experts_used
        c.expert_dim = config.expert_dim
        c.moe_renormalize = config.moe_renormalize
        c.positions = config.positions
        c.second_segment = config.second_segment
        c.mask_token = config.mask_token
        c.pad_token = config.pad_token
        return 0

    cdef int set_layer(self, config, size_t i) except -1:
        cdef fl_layer *layer = &self.c.layers[i]
        prefix = f"layers.{i}."
        layer.attn_norm = self.norm(prefix + "attn_norm")
        layer.wq = self.matrix(prefix + "attn.wq")
        layer.wk = self.matrix(prefix + "attn.wk")
        layer.wv = self.matrix(prefix + "attn.wv")
        layer.q_norm = self.vector(prefix + "attn.q_norm")
        layer.k_norm = self.vector(prefix + "attn.k_norm")
        layer.wo = self.matrix(prefix + "attn.wo")
        layer.post_attn_norm = self.norm(prefix + "post_attn_norm")
        layer.ffn_norm = self.norm(prefix + "ffn_norm")
        layer.w1 = self.matrix(prefix + "ffn.w1")
        layer.w3 = self.matrix(prefix + "ffn.w3")
        layer.w2 = self.matrix(prefix + "ffn.w2")
        layer.post_ffn_norm = self.norm(prefix + "post_ffn_norm")
        layer.router = self.matrix(prefix + "router")
        layer.e1 = self.matrix(prefix + "experts.w1")
        layer.e3 = self.matrix(prefix + "experts.w3")
        layer.e2 = self.matrix(prefix + "experts.w2")
        layer.shared_gate = self.matrix(prefix + "ffn.gate")
        layer.window = config.layer_window(i)
        layer.rope = config.layer_rope(i)
        return 0

    def __dealloc__(self):
        free(self.c.layers)
        fl_pace_free(self.c.pace)

    # What is not there is NULL; __init__ has looked for what must be.

    cdef fl_matrix matrix(self, str name) except *:
        cdef fl_matrix c = fl_matrix(NULL, FL_F32, 0, 0, NULL)
        tensor = self.tensors.get(name)
        if tensor is not None:
            c = (<Matrix?>tensor).c
            c.bias = self.vector(name + ".bias")
        return c

    cdef const float *vector(self, str name) except? NULL:
        tensor = self.tensors.get(name)
        if tensor is None:
            return NULL
        return <const float *>(<Vector?>tensor).buffer.data

    cdef fl_norm norm(self, str name) except *:
        return fl_norm(self.vector(name), self.vector(name + ".bias"))

    @property
    def isa(self):
        return fl_kernels_name(self.c.kernels).decode()

    @property
    def kv_dtype(self):
        return TYPES[<int>self.c.kv_type]

    @property
    def logits_stride(self):
        """Floats from one row of logits to the next: the vocabulary rounded up to 16."""
        return fl_logits_stride(&self.c)

    @property
    def kv_page_bytes(self):
        """Bytes that 64 positions of one sequence take in the KV cache."""
        return fl_kv_page_bytes(&self.c)

    def check_files(self):
        """Raises CheckpointError when a mapped file of its weights has changed: before a text. Each forward looks too."""
        if self.files:
            fl_mapping_guard()
        self.look_at_files()

    cdef int look_at_files(self, bint glance=False) except -1:
        """glance: for a single token, which may take no longer than the system to answer: see fl_mapping_glance."""
        cdef MappedFile file
        for file in self.files:
            state = fl_mapping_glance(file.c) if glance else fl_mapping_state(file.c)
            file.expect_same(state, "since it was loaded: load it again")
        return 0

    def logits(self, size_t rows=1):
        """A Buffer for `rows` rows of logits."""
        cdef size_t row = fl_logits_stride(&self.c) * sizeof(float)
        if rows > SIZE_MAX // row:
            raise MemoryError(f"cannot allocate {rows:,} rows of logits")
        return Buffer(rows * row)

    def forward(self, list spans, Buffer logits=None, *, size_t threads=1, hidden=None, attention=None,
                inputs=None, segments=None):
        """Appends tokens to sequences and computes logits.

        spans: (sequence, tokens, n_logits) for each sequence, tokens any sequence of ids, logits for the last n_logits
        of them. They are written to `logits` in order, rows of logits_stride floats. Raises OptionError for an id
        outside the vocabulary and ContextError past the context; the sequences then stay as they were.

        hidden: layer -> Buffer for the stream of all tokens, f32 (tokens, dim): 0 is what enters the first layer, i
        what leaves the i-th, n_layers + 1 that after the final norm. attention: layer (from 0) -> Buffer for the
        probabilities, f32, for each span (n_heads, n, pos + n).
        inputs: 4 layer + i -> Buffer for what multiplies, of all tokens, f32: wq, wk and wv (i = 0); wo; w1 and w3; w2.
        segments: index of a span -> the index of its token from which on they are a second text (config.second_segment).
        """
        cdef fl_outputs outputs = fl_outputs(NULL, NULL, NULL, NULL)
        cdef size_t count, n, n_logits, total = 0, wanted = 0, at = 0, i
        cdef fl_span *c_spans = NULL
        cdef float **hidden_list = NULL
        cdef float **attention_list = NULL
        cdef float **inputs_list = NULL
        cdef int32_t *ids = NULL
        cdef Sequence sequence
        cdef list parts = [], words, taken = [], held = []
        for item, tokens, last in list(spans):
            words, n_logits = list(tokens), last
            n = <size_t>len(words)
            if n_logits > n:
                raise OptionError(f"forward: logits after the last {n_logits:,} of {n:,} tokens")
            parts.append((<Sequence?>item, words, n_logits))
            total += n
            wanted += n_logits
        if wanted and (logits is None or wanted > logits.nbytes // sizeof(float) // fl_logits_stride(&self.c)):
            raise OptionError(f"forward: no room for {wanted} rows of logits")
        count = <size_t>len(parts)
        maps = 0
        try:
            c_spans = <fl_span *>calloc(count + 1, sizeof(fl_span))
            ids = <int32_t *>malloc((total + 1) * sizeof(int32_t))
            if c_spans is NULL or ids is NULL:
                raise MemoryError("forward: out of memory")
            for i, (item, tokens, last) in enumerate(parts):
                sequence, words, n_logits = item, tokens, last
                n = <size_t>len(words)
                if sequence.cache.model is not self:
                    raise OptionError("forward: a sequence of another model")
                sequence.take()
                taken.append(sequence)
                sequence.reserve(sequence.length + n, self.c.config.max_seq)
                c_spans[i] = fl_span(ids + at, n, sequence.length, <void *const *>sequence.pages, sequence.n_pages,
                                     n_logits, (segments or {}).get(i, n))
                for token in words:
                    # Whatever does not fit int32 is no token either.
                    ids[at] = token if 0 <= token < self.c.config.vocab_size else -1
                    at += 1
                if attention:
                    maps += int(n) * int(sequence.length + n) * int(self.c.config.n_heads)
            outputs.logits = <float *>logits.data if wanted else NULL
            if hidden:
                outputs.hidden = hidden_list = self.buffers(hidden, self.c.config.n_layers + 2,
                                                            int(total) * self.c.config.dim, held)
            if attention:
                outputs.attention = attention_list = self.buffers(attention, self.c.config.n_layers, maps, held)
            if inputs:
                widest = max(self.c.config.dim, self.c.config.hidden_dim, self.c.config.n_heads * self.c.config.head_dim)
                outputs.inputs = inputs_list = self.buffers(inputs, 4 * self.c.config.n_layers, int(total) * widest, held)
            self.run(c_spans, count, threads, &outputs)
            self.look_at_files()
            for i, item in enumerate(taken):
                (<Sequence>item).length += c_spans[i].n
        finally:
            for item in taken:
                (<Sequence>item).busy = False
            free(c_spans)
            free(ids)
            free(hidden_list)
            free(attention_list)
            free(inputs_list)

    def broken_layer(self, Sequence sequence not None, token, *, size_t threads=1):
        """The first layer (see hidden of forward) whose output for one more token is not finite; None where all are."""
        hidden = {i: Buffer(self.c.config.dim * sizeof(float)) for i in range(self.c.config.n_layers + 2)}
        self.forward([(sequence, [token], 0)], threads=threads, hidden=hidden)
        for layer, stream in hidden.items():
            if not fl_finite(<const float *>(<Buffer>stream).data, self.c.config.dim):
                return layer
        return None

    def step(self, Sequence sequence not None, token, Sampler sampler not None, Buffer logits not None, *,
             size_t threads=1):
        """Appends one token to a sequence and draws the next: forward and Sampler.draw at once, for one text alone."""
        cdef fl_outputs outputs = fl_outputs(<float *>logits.data, NULL, NULL, NULL)
        cdef int32_t id = token if 0 <= token < self.c.config.vocab_size else -1
        cdef fl_status status
        cdef fl_span span
        if logits.nbytes < fl_logits_stride(&self.c) * sizeof(float) or sampler.vocab_size != self.c.config.vocab_size:
            raise OptionError("step: no room for logits, or a sampler of another vocabulary")
        if sequence.cache.model is not self:
            raise OptionError("step: a sequence of another model")
        sequence.take()
        try:
            sampler.take()
            try:
                sequence.reserve(sequence.length + 1, self.c.config.max_seq)
                span = fl_span(&id, 1, sequence.length, <void *const *>sequence.pages, sequence.n_pages, 1, 1)
                self.run(&span, 1, threads, &outputs)
                self.look_at_files(glance=True)
                sequence.length += 1
                return sampler.next(outputs.logits)
            finally:
                sampler.busy = False
        finally:
            sequence.busy = False

    cdef int run(self, const fl_span *spans, size_t count, size_t threads, const fl_outputs *outputs) except -1:
        """fl_forward, when there are cores for it."""
        cdef Scratch scratch
        cdef fl_status status
        taken = take_cores(threads)
        try:
            scratch = self.idle.pop() if self.idle else Scratch()
            with nogil:
                status = fl_forward(&self.c, scratch.c, spans, count, threads, outputs)
            self.idle.append(scratch)
        finally:
            give_cores(taken)
        return check(status, "forward")

    cdef float **buffers(self, given, size_t count, floats, list held) except NULL:
        """A list of `count` pointers to the Buffers in a dict, each with room for so many floats; `held` keeps them."""
        cdef float **out = <float **>calloc(count, sizeof(float *))
        cdef size_t index
        if out is NULL:
            raise MemoryError("forward: out of memory")
        try:
            for layer, buffer in list(given.items()):
                index = layer if 0 <= layer < count else SIZE_MAX
                if index >= count or (<Buffer?>buffer).nbytes // sizeof(float) < floats:
                    raise OptionError(f"forward: no layer {layer}, or no room for {floats:,} values")
                held.append(buffer)
                out[index] = <float *>(<Buffer>buffer).data
        except:
            free(out)
            raise
        return out


cdef class KVCache:
    """The pool of KV pages of a model: hands out sequences, and takes their pages back when they are gone."""
    cdef fl_pool *pool
    cdef Model model

    def __cinit__(self, Model model not None):
        self.model = model
        check(fl_pool_new(fl_kv_page_bytes(&model.c), &self.pool), "KV cache")

    def __dealloc__(self):
        fl_pool_free(self.pool)

    def sequence(self):
        """A new, empty Sequence."""
        return Sequence(self)


@cython.no_gc_clear  # its pages go back to the cache, which must still be there
cdef class Sequence:
    """The keys and values of one text so far. `length` tokens are in it."""
    cdef KVCache cache
    cdef void **pages
    cdef size_t n_pages
    cdef bint busy
    cdef readonly size_t length

    def __cinit__(self, KVCache cache not None):
        self.cache = cache

    def __dealloc__(self):
        self.give_back(0)
        free(self.pages)

    cdef int take(self) except -1:
        if self.busy:
            raise OptionError("a sequence is in use by another forward, or twice in this one")
        self.busy = True
        return 0

    cdef int reserve(self, size_t length, size_t limit) except -1:
        """Pages for `length` positions, unless that is past the limit: the forward says so."""
        cdef size_t need = (length + FL_PAGE - 1) // FL_PAGE
        cdef void **more
        if length > limit or need <= self.n_pages:
            return 0
        more = <void **>realloc(self.pages, need * sizeof(void *))
        if more is NULL:
            raise MemoryError("KV cache: out of memory")
        self.pages = more
        while self.n_pages < need:
            check(fl_pool_take(self.cache.pool, &self.pages[self.n_pages]), "KV cache")
            self.n_pages += 1
        return 0

    cdef void give_back(self, size_t keep) noexcept:
        while self.n_pages > keep:
            self.n_pages -= 1
            fl_pool_give(self.cache.pool, self.pages[self.n_pages])

    def truncate(self, size_t length):
        """Forgets all but the first `length` tokens."""
        if self.busy or length > self.length:
            raise OptionError(f"a sequence of {self.length} tokens cannot be cut to {length}")
        self.length = length
        self.give_back((length + FL_PAGE - 1) // FL_PAGE)


# ---- sampling -------------------------------------------------------------------------------------------------------

cdef class DrawScratch:
    """Working memory of one draw at a time."""
    cdef fl_draw_scratch *c

    def __cinit__(self):
        check(fl_draw_scratch_new(&self.c), "working memory")

    def __dealloc__(self):
        fl_draw_scratch_free(self.c)


# DrawScratch objects that no draw uses now, as many as there were draws at once. Of all models: a sampler knows none,
# and hundreds of them may wait for their turn.
cdef list idle_draws = []


cdef class Sampler:
    """Draws tokens; params is any object with the fields of fl_sampling. One text at a time."""
    cdef fl_sampler *c
    cdef const fl_kernels *kernels
    cdef size_t vocab_size
    cdef bint busy

    def __cinit__(self, size_t vocab_size, params, *, uint64_t seed, bias=None, isa=None):
        cdef fl_sampling p = fl_sampling(
            params.temperature, params.top_k, params.top_p, params.min_p, params.typical_p,
            params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        self.kernels = find_kernels(isa)
        self.vocab_size = vocab_size
        if not 0 < vocab_size <= INT32_MAX:
            raise OptionError(f"sampler: a vocabulary of {vocab_size:,} tokens")
        check(fl_sampler_new(vocab_size, &p, seed, &self.c), "sampler")
        for token, value in (bias or {}).items():
            if not 0 <= token < vocab_size:
                raise OptionError(f"logit bias: no token {token} in a vocabulary of {vocab_size}")
            check(fl_sampler_bias(self.c, token, value), "logit bias")

    def __dealloc__(self):
        fl_sampler_free(self.c)

    cdef int take(self) except -1:
        if self.busy:
            raise OptionError("a sampler is in use by another thread")
        self.busy = True
        return 0

    cdef int32_t next(self, const float *logits) except -1:
        """Draws; the caller has taken the sampler."""
        cdef DrawScratch scratch = idle_draws.pop() if idle_draws else DrawScratch()
        cdef int32_t token = 0
        cdef fl_status status
        with nogil:
            status = fl_sampler_draw(self.c, scratch.c, self.kernels, logits, &token)
        idle_draws.append(scratch)
        if status == FL_BAD_VALUE:
            raise NumericError("the logits are not finite")
        if status == FL_BAD_TOKEN:
            raise OptionError("after biases and penalties there is no token to draw")
        check(status, "logits")
        return token

    def accept(self, token, *, bint generated):
        """Tells of a token of the prompt, or of the text, for the penalties. Raises OptionError, also during a draw."""
        cdef int32_t id = token if 0 <= token < self.vocab_size else -1
        cdef fl_status status
        if id < 0:
            raise OptionError(f"sampler: no token {token} in a vocabulary of {self.vocab_size}")
        self.take()
        status = fl_sampler_accept(self.c, id, generated)
        self.busy = False
        check(status, "sampler")

    def draw(self, Buffer logits not None, size_t row=0):
        """The next token, from a row of what forward wrote. Raises OptionError, also while another thread draws."""
        cdef size_t stride = fl_round_up(self.vocab_size, FL_LANES)
        if row >= logits.nbytes // sizeof(float) // stride:
            raise OptionError(f"sampler: no row {row} of logits")
        self.take()
        try:
            return self.next(<const float *>logits.data + row * stride)
        finally:
            self.busy = False


# ---- kernels on their own -------------------------------------------------------------------------------------------

def attend(const float[:, ::1] q not None, const float[:, ::1] keys not None, const float[:, ::1] values not None, seen,
           float[:, ::1] out not None, *, str kv_dtype="f32", isa=None):
    """Attention of one head: row r of q over the first seen[r] keys and values, unscaled; for tests and benchmarks."""
    cdef const fl_kernels *kernels = find_kernels(isa)
    cdef fl_type type = type_of(kv_dtype)
    cdef size_t rows = <size_t>q.shape[0], n = <size_t>keys.shape[0], head_dim = <size_t>q.shape[1], r
    cdef list limits = list(seen)
    cdef size_t *c_limits = NULL
    cdef fl_status status
    if type > FL_F16 or rows == 0 or n == 0 or head_dim == 0 or <size_t>len(limits) != rows \
            or keys.shape[1] != q.shape[1] or values.shape[0] != keys.shape[0] or values.shape[1] != q.shape[1] \
            or out.shape[0] != q.shape[0] or out.shape[1] != q.shape[1]:
        raise OptionError("attend: the shapes do not fit each other")
    c_limits = <size_t *>malloc(rows * sizeof(size_t))
    if c_limits is NULL:
        raise MemoryError("attend: out of memory")
    try:
        for r, limit in enumerate(limits):
            c_limits[r] = limit if 1 <= limit <= n else 0
            if not 1 <= c_limits[r] <= n:
                raise OptionError(f"attend: row {r} cannot see {limit} of {n} positions")
        with nogil:
            status = fl_attend_rows(kernels, type, rows, n, head_dim, &q[0, 0], &keys[0, 0], &values[0, 0], c_limits,
                                    &out[0, 0])
    finally:
        free(c_limits)
    check(status, "attend")


# ---- vocabularies ---------------------------------------------------------------------------------------------------

include "pieces.pxi"
