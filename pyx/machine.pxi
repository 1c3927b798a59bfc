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
