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
