TYPES = ("f32", "f16", "bf16", "q8", "q8_f32", "q4")


cdef fl_type type_of(str name) except *:
    if name not in TYPES:
        raise OptionError(f"{name!r} is no weight type: choose one of {', '.join(TYPES)}")
    return <fl_type><int>TYPES.index(name)


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
