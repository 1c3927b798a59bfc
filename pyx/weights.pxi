# Weights as the kernels read them: matrices in panels, vectors padded to 16, and layers made of both.
from cpython.memoryview cimport PyMemoryView_FromObject

TYPES = ("f32", "f16", "bf16", "q8", "q4", "q4m")  # names of fl_type, in its order
DENSE_ACTS = ("identity", "tanh", "sigmoid", "gelu", "relu", "silu")  # names of fl_dense_act, in its order


cdef fl_type type_of(str name) except *:
    if name not in TYPES:
        raise OptionError(f"{name!r} is no weight type: choose one of {', '.join(TYPES)}")
    return <fl_type><int>TYPES.index(name)


def matrix_bytes(str dtype, size_t d, size_t n):
    """Bytes of a matrix (d, n) in panels; 0 where that is more than memory can hold.

    Raises OptionError if dtype is none of TYPES.
    """
    return fl_matrix_bytes(type_of(dtype), d, n)


cdef class Matrix:
    """Weights (d, n), d outputs by n inputs, in panels of 16 rows: fl_type in csrc/fastllm.h draws them. Immutable.

    data: the panels, any buffer of bytes that starts on a multiple of 64. It is not copied, and kept alive. count: a
    stack of that many matrices (d, n), one after the other; only a Model multiplies by one. values: of a q4 matrix, the
    16 int8 that its codes stand for; None for those that `pack` rounds to. Raises OptionError if dtype is none of
    TYPES, CheckpointError if `data` has not exactly the bytes of the shape or is not aligned, and for other `values`.
    """
    cdef fl_matrix c
    cdef size_t count  # matrices in `view`: 1 without a stack
    cdef bint stack
    cdef const unsigned char[::1] view

    def __cinit__(self, str dtype, size_t d, size_t n, const unsigned char[::1] data not None, *, count=None,
                  values=None):
        cdef fl_type type = type_of(dtype)
        cdef int code
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
        self.c.data, self.c.type, self.c.d, self.c.n = &data[0], type, d, n
        if values is not None:
            self.set_values(values)
        else:
            for code in range(16):
                self.c.values[code] = code if type == FL_Q4_MIN else fl_q4_values[code] if type == FL_Q4 else 0

    cdef int set_values(self, values) except -1:
        cdef int code
        if self.c.type != FL_Q4 or not isinstance(values, (list, tuple)) or len(values) != 16 \
                or not all([isinstance(value, int) and -128 <= value < 128 for value in values]):
            raise CheckpointError(f"a {self.dtype} matrix cannot have the values {values!r}")
        for code in range(16):
            self.c.values[code] = values[code]
        return 0

    @property
    def dtype(self):
        """The name of the type, one of TYPES."""
        return TYPES[<int>self.c.type]

    @property
    def shape(self):
        """(d, n), or (count, d, n) of a stack."""
        d, n = self.c.d, self.c.n
        if self.stack:
            return (self.count, d, n)
        return (d, n)

    @property
    def values(self):
        """What the 16 codes of a q4 matrix stand for; None for other types."""
        return tuple([self.c.values[i] for i in range(16)]) if self.c.type == FL_Q4 else None

    @property
    def nbytes(self):
        """Bytes of all panels."""
        return <size_t>self.view.shape[0]

    @property
    def data(self):
        """The panels as a read-only memoryview of bytes."""
        return memoryview(self.view)

    @property
    def file(self):
        """The MappedFile that the panels lie in; None if they lie in memory."""
        owner = self.owner()
        return owner if isinstance(owner, MappedFile) else None

    cdef object owner(self):
        """The object that owns the panels' memory, such as a Buffer or a MappedFile."""
        return PyMemoryView_FromObject(self.view.base).obj

    def row(self, size_t r, float[::1] out not None):
        """Writes row r to out (n,) as f32. Raises OptionError for another size, a row past the end, or a stack."""
        if self.stack or r >= self.c.d or <size_t>out.shape[0] != self.c.n:
            raise OptionError(f"no row {r} of {out.shape[0]} values in a matrix of {self.c.d} x {self.c.n}")
        fl_matrix_row(&self.c, r, &out[0])

    def multiply(self, const float[:, ::1] x not None, float[:, ::1] out not None, *, size_t threads=1, isa=None):
        """Writes x (t, n) times the transposed matrix to out (t, d rounded up to 16), both f32.

        A matrix of int8 or four bits is multiplied by x rounded to int8, as in a forward. Raises OptionError for other
        shapes, a stack, or an unknown isa; MemoryError.
        """
        cdef const fl_kernels *kernels = find_kernels(isa)
        cdef size_t tokens = product_tokens(self, x, out, "multiply")
        cdef fl_status status
        taken = take_cores(threads)
        with nogil:
            status = fl_multiply(kernels, &self.c, &x[0, 0], tokens, threads, &out[0, 0])
        give_cores(taken)
        check(status, "multiply")


cdef size_t product_tokens(Matrix matrix, const float[:, ::1] x, float[:, ::1] out, str what) except 0:
    """The t of a product of x (t, n) and a matrix. Raises OptionError if x and out are not what it needs."""
    if matrix.stack or x.shape[0] == 0 or <size_t>x.shape[1] != matrix.c.n or out.shape[0] != x.shape[0] \
            or <size_t>out.shape[1] != fl_round_up(matrix.c.d, FL_LANES):
        raise OptionError(f"{what}: x must be (t, n) and out (t, d rounded up to 16)")
    return <size_t>x.shape[0]


cdef class Vector:
    """n f32 values, aligned to 64 bytes and zero-padded to a multiple of 16: norms, biases, frequencies. Immutable.

    data: the values as bytes of f32, which are copied. name: the vector's name in messages. Raises CheckpointError if
    there are no values, or one is not finite.
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
        """(n,)"""
        return (self.n,)

    @property
    def nbytes(self):
        """Bytes of the n values, without the padding."""
        return self.n * 4

    @property
    def data(self):
        """The n values as a memoryview of bytes, without the padding."""
        return memoryview(self.buffer)[:self.n * 4]


cdef class Dense:
    """A layer of a head that follows the model, such as a classifier's: act(matrix x + bias). Immutable.

    matrix: (d, n), no stack; bias: (d,) or None; act: one of DENSE_ACTS. Raises CheckpointError for anything else.
    """
    cdef readonly Matrix matrix
    cdef readonly Vector bias
    cdef readonly str act
    cdef fl_matrix c  # the matrix with the bias: the Matrix itself, which others may share, has none
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
        """Writes the layer's outputs for x (t, n) to out (t, d rounded up to 16), both f32.

        Raises OptionError for other shapes or an unknown isa; MemoryError.
        """
        cdef const fl_kernels *kernels = find_kernels(isa)
        cdef size_t tokens = product_tokens(self.matrix, x, out, "apply")
        cdef fl_status status
        taken = take_cores(threads)
        with nogil:
            status = fl_dense(kernels, &self.c, self.kind, &x[0, 0], tokens, threads, &out[0, 0])
        give_cores(taken)
        check(status, "a dense layer")
