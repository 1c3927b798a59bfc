# The attention kernel on its own.


def attend(const float[:, ::1] q not None, const float[:, ::1] keys not None, const float[:, ::1] values not None, seen,
           float[:, ::1] out not None, *, str kv_dtype="f32", isa=None):
    """Writes the attention of one head to out (rows, head_dim); for tests and benchmarks. All arrays are f32.

    Row r of q (rows, head_dim) sees the first seen[r] of n keys and values (n, head_dim), 1 to n; scores are q . key,
    not scaled. kv_dtype: how keys and values are stored in between, f32 or f16. Raises OptionError for other shapes, a
    seen[r] outside 1 to n, another kv_dtype or an unknown isa; MemoryError.
    """
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
            if not 1 <= c_limits[r] <= n:  # limit's comparisons may not agree with its value
                raise OptionError(f"attend: row {r} cannot see {limit} of {n} positions")
        with nogil:
            status = fl_attend_rows(kernels, type, rows, n, head_dim, &q[0, 0], &keys[0, 0], &values[0, 0], c_limits,
                                    &out[0, 0])
    finally:
        free(c_limits)
    check(status, "attend")
