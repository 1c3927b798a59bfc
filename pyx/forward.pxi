cdef class Scratch:
    """Working memory of one forward at a time."""
    cdef fl_scratch *c

    def __cinit__(self):
        check(fl_scratch_new(&self.c), "working memory")

    def __dealloc__(self):
        fl_scratch_free(self.c)
