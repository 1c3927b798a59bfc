# The machine: instruction sets, threads, how floats round, and two loads to measure it by.
from functools import wraps


def isas():
    """The instruction sets of this build, the slowest first: a list of (name, whether this machine can run it)."""
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


# isa -> the address of its kernels. Asking the CPU what it has takes 100 us and more in a virtual machine, and every
# text has a sampler that asks.
cdef dict known_kernels = {}


cdef const fl_kernels *find_kernels(isa) except NULL:
    """The kernels of an instruction set; of the best that this machine can run where isa is None or empty.

    Raises OptionError for one that is unknown, not in this build, or not of this machine. The kernels are constants of
    the C core and need no owner.
    """
    cdef const fl_kernels *kernels = NULL
    known = known_kernels.get(isa)
    if known is not None:
        return <const fl_kernels *><uintptr_t>known
    name = (isa or "").encode()
    if fl_kernels_find(name, &kernels) != FL_OK:
        can = ", ".join([name for name, supported in isas() if supported])
        raise OptionError(f"{isa!r} is no instruction set of this build and machine: choose one of {can}")
    known_kernels[isa] = <uintptr_t>kernels
    return kernels


def best_isa(isa=None):
    """The name of the instruction set that is used where `isa` is asked for; None asks for the best.

    Raises OptionError for one that is unknown, not in this build, or not of this machine.
    """
    return fl_kernels_name(find_kernels(isa)).decode()


def has_threads():
    """Whether this build has OpenMP. Without it every call runs on one thread."""
    return bool(fl_has_threads())


def try_threads(size_t threads):
    """Starts `threads` threads at once, which do nothing, and ends them. Raises OSError if the system refuses one.

    OpenMP ends the process if a thread of a team cannot be started, so it is tried before.
    """
    cdef int problem
    with nogil:
        problem = fl_try_threads(threads)
    if problem:
        raise OSError(problem, os.strerror(problem))


def standard_floats(function):
    """Decorates a function: it runs with floats rounding to nearest and subnormals kept, whatever its caller has set.

    A library that is built with -ffast-math changes the mode of the thread that loads it. The C core sets the mode for
    its own threads; this is for what Python and numpy compute with a model's numbers. See csrc/fpenv.h. A generator's
    body would run after the mode is restored: do not decorate one.
    """
    @wraps(function)
    def standard(*args, **kwargs):
        cdef fl_fpenv before = fl_fpenv_set()
        try:
            return function(*args, **kwargs)
        finally:
            fl_fpenv_restore(before)
    return standard


def read_memory(const unsigned char[::1] data not None, size_t threads=1):
    """Reads all bytes of `data` on `threads` threads and returns a checksum: the caller times it for the bandwidth."""
    cdef uint64_t total
    taken = take_cores(threads)
    with nogil:
        total = fl_read(&data[0], <size_t>data.shape[0], threads)
    give_cores(taken)
    return total


def int8_peak(size_t rounds, size_t threads=1, isa=None):
    """Multiplies and adds int8 from registers, `rounds` times on each of `threads` threads; the caller times it.

    Returns the number of multiply-adds, which is proportional to `rounds`. Raises OptionError for an unknown isa.
    """
    cdef const fl_kernels *kernels = find_kernels(isa)
    cdef uint64_t done
    taken = take_cores(threads)
    with nogil:
        done = fl_int8_peak(kernels, rounds, threads)
    give_cores(taken)
    return done
