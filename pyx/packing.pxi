# A checkpoint's weights into panels: from floats or GGUF's blocks to a Matrix; from blocks to floats.


def block_types():
    """GGUF's block types, as ggml defines them: name -> (values, bytes, dtype, table).

    values, bytes: of a block. dtype: the type of TYPES that pack moves such blocks into, None where there is none, and
    they must be dequantized. table: Matrix.values of the result, where that is q4.
    """
    cdef size_t count = 0, i
    cdef const fl_block *blocks = fl_blocks(&count)
    found = {}
    for i in range(count):
        dtype = None if blocks[i].packed == FL_F32 else TYPES[<int>blocks[i].packed]
        table = tuple([blocks[i].table[c] for c in range(16)]) if dtype == "q4" else None
        found[blocks[i].name.decode()] = (blocks[i].values, blocks[i].bytes, dtype, table)
    return found


cdef const fl_block *block_of(str name) except? NULL:
    """The block type of that name, or NULL."""
    cdef size_t count = 0, i
    cdef const fl_block *blocks = fl_blocks(&count)
    for i in range(count):
        if blocks[i].name.decode() == name:
            return &blocks[i]
    return NULL


def dequantize(str block, const unsigned char[::1] data not None, float[::1] out not None, *, size_t threads=1):
    """Writes the values of GGUF's blocks to `out` as f32.

    block: a name from block_types; data: the bytes of whole blocks; out: exactly as many floats as they have values.
    Raises OptionError for anything else.
    """
    cdef const fl_block *kind = block_of(block)
    if kind is NULL:
        raise OptionError(f"{block!r} is none of GGUF's block types: {', '.join(block_types())}")
    cdef size_t count = <size_t>data.shape[0] // kind.bytes
    if <size_t>data.shape[0] != count * kind.bytes or <size_t>out.shape[0] != count * kind.values:
        raise OptionError(f"{data.shape[0]:,} bytes of {block} blocks are not {out.shape[0]:,} values")
    if count == 0:
        return
    taken = take_cores(threads)
    with nogil:
        fl_dequantize(kind, &data[0], count, threads, &out[0])
    give_cores(taken)


def dequantize_int8(const unsigned char[::1] values not None, const unsigned char[::1] scales not None, size_t group,
                    size_t first, float[::1] out not None):
    """Writes the values of a flattened matrix of int8, from number `first` on, to `out` as f32.

    scales: the bytes of f32 scales, one for each `group` values (llama2.c's q8_0). Raises OptionError where there are
    fewer values or scales.
    """
    cdef size_t i, n = <size_t>out.shape[0], end = first + n
    cdef float scale = 0
    if group == 0 or <size_t>values.shape[0] < end or <size_t>scales.shape[0] // 4 * group < end:
        raise OptionError(f"int8: no {n:,} values from number {first:,} on in groups of {group}")
    with nogil:
        for i in range(first, end):
            if i == first or i % group == 0:
                memcpy(&scale, &scales[i // group * 4], 4)
            out[i - first] = <float><signed char>values[i] * scale


def factor(double[:, ::1] h not None, float[::1] importance not None, *, size_t threads=1):
    """Factors h (n, n), f64, symmetric and positive definite, as U diag(importance) U^T (LDLQ, Chee et al., 2023).

    importance (n,), f32, is written. U, unit upper triangular, replaces what is above h's diagonal; the rest of h is
    overwritten with intermediate values. Raises OptionError for other shapes, CheckpointError if a value on h's
    diagonal is not positive and finite.
    """
    cdef size_t n = <size_t>h.shape[0]
    cdef fl_status status
    if n == 0 or h.shape[1] != h.shape[0] or <size_t>importance.shape[0] != n:
        raise OptionError("factor: h must be (n, n) and importance (n,)")
    taken = take_cores(threads)
    with nogil:
        status = fl_factor(n, &h[0, 0], &importance[0], threads)
    give_cores(taken)
    check(status, "factor")


def pack(str dtype, size_t d, size_t n, str source_dtype, const unsigned char[::1] data not None, *,
         const int32_t[::1] rows=None, const float[::1] importance=None, const float[:, ::1] feedback=None,
         const float[:, ::1] products=None, values=None, unsigned char[::1] out=None, size_t threads=1,
         str name="matrix", isa=None):
    """Packs a row-major matrix (d, n) into panels and returns them as a Matrix of type `dtype`.

    data: the bytes of d * n values of source_dtype: f32, f16, bf16, or one of block_types, whose blocks become its
    dtype and no other: bits are moved, see fl_pack in csrc/fastllm.h. Floats become every type but q4m. rows (d,),
    int32: row r of the result is row rows[r] of the source. out: matrix_bytes of memory, aligned to 64 bytes, for the
    panels; a new Buffer without it. name: the matrix's name in messages.

    For q4 from floats, what a calibration knows of the inputs x of the matrix, all f32 (GPTQ, Frantar et al., 2022;
    LDLQ, Chee et al., 2023). h = U diag(importance) U^T is the sum of x x^T, see factor. importance (n,): what an error
    in a column costs; feedback (n, n), with importance: U^T, by which a column's error changes what later columns are
    rounded from; products (n, n), with feedback: h, by which values that are rounded are then improved.

    values: of q4 from floats, the 16 int8 to round to, ascending from -127; None for the core's own. If 0 is one of
    them, weights that are zero stay zero.

    Raises OptionError if a type is not known or the calibration has other shapes. Raises CheckpointError if data, rows
    or out have other sizes, source_dtype cannot become dtype, or a weight is not finite or too large.
    """
    cdef fl_type type = type_of(dtype)
    cdef const fl_block *block = block_of(source_dtype)
    cdef fl_type source_type = FL_F32 if block is not NULL else type_of(source_dtype)
    cdef size_t size = block.bytes if block is not NULL else 4 if source_type == FL_F32 else 2
    cdef size_t of_block = block.values if block is not NULL else 1
    cdef fl_source source = fl_source(NULL, source_type, block, d, n, NULL, find_kernels(isa), NULL, NULL, NULL, NULL)
    cdef size_t row = n // of_block * size
    cdef fl_status status
    if source_type not in (FL_F32, FL_F16, FL_BF16) or d == 0 or n == 0 or n % of_block \
            or fl_matrix_bytes(type, d, n) == 0 or n // of_block > <size_t>data.shape[0] \
            or <size_t>data.shape[0] % row or <size_t>data.shape[0] // row != d:
        raise CheckpointError(f"{name} of {d} x {n} {source_dtype} values cannot be {data.shape[0]:,} bytes")
    source.data = &data[0]
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
    matrix = Matrix(dtype, d, n, out, values=values)
    if values is not None:
        source.values = (<Matrix>matrix).c.values
    if block is not NULL and type == FL_Q4 and block.table is not NULL:
        memcpy(matrix.c.values, block.table, 16)
    taken = take_cores(threads)
    with nogil:
        status = fl_pack(type, &out[0], &source, threads)
    give_cores(taken)
    if status == FL_BAD_TENSOR and rows is None:
        raise CheckpointError(f"{name} cannot become {dtype} from {source_dtype}")
    check(status, f"{name} as {dtype}")
    return matrix
