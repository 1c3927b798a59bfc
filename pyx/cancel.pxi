# What ends a forward early: a flag of its caller's, and signals.
from cpython.exc cimport PyErr_CheckSignals

import sys
from _thread import get_ident

cdef bint answering = False  # whether a handler of a signal runs in the middle of a forward


@cython.final
cdef class Cancel:
    """A flag by which any thread ends forwards that were given it. At first it is clear. Raises MemoryError."""
    cdef fl_cancel *c

    def __cinit__(self):
        check(fl_cancel_new(&self.c), "a flag")

    def __dealloc__(self):
        fl_cancel_free(self.c)

    def set(self):
        """Ends forwards that have this flag, soon, and all that begin before it is cleared."""
        fl_cancel_set(self.c, True)

    def clear(self):
        """Takes it back."""
        fl_cancel_set(self.c, False)

    def is_set(self):
        """Whether it is set."""
        return fl_cancel_is_set(self.c) != 0


@cython.internal
@cython.final
cdef class Watch:
    """What ends one forward. In the main thread, where Python runs handlers of signals, these run during the forward
    too, and an exception of theirs, such as KeyboardInterrupt, ends it."""
    cdef fl_watch c
    cdef Cancel cancel
    cdef object error  # what a handler has raised

    def __cinit__(self, Cancel cancel):
        self.cancel = cancel
        self.c.flag = NULL if cancel is None else cancel.c
        # Where `threading` was never imported, there is hardly another thread; in one, asking is only of no use.
        threading = sys.modules.get("threading")
        if threading is None or threading.main_thread().ident == get_ident():
            self.c.ask = answer_signals
            self.c.arg = <void *>self


cdef int answer_signals(void *arg) noexcept with gil:
    global answering
    cdef bint before = answering
    answering = True
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<Watch>arg).error = error
        return True
    finally:
        answering = before
    return False
