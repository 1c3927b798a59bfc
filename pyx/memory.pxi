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
