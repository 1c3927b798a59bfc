# Memory that C reads and writes: aligned memory of our own, and files mapped read-only.
from cpython.buffer cimport PyBuffer_FillInfo


cdef class Buffer:
    """`nbytes` of zeroed memory that starts on a multiple of 64 bytes, writable through the buffer protocol (bytes).

    The system provides pages of memory only when they are first written. Raises MemoryError.
    """
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

    cdef size_t rows(self, size_t stride):
        """How many rows of `stride` floats it has room for."""
        return self.nbytes // sizeof(float) // stride


@cython.final
cdef class MappedFile:
    """A file mapped read-only, readable through the buffer protocol (bytes); unmapped when the last view of it is gone.

    fd: the file, not empty, open for reading; it may be closed afterwards. path: the file's name in messages. Raises
    OSError. If another program cuts the file short, what is missing reads as zeros; check says so.
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

    def fileno(self):
        """A descriptor of the file, for os.fstat; the MappedFile closes it."""
        return fl_mapping_fd(self.c)

    def check(self):
        """Raises CheckpointError if the file has changed since it was mapped: bytes read since then may be wrong."""
        self.expect_same(fl_mapping_state(self.c), "while it was read")

    cdef int expect_same(self, fl_file_state state, str when) except -1:
        """Raises CheckpointError for every state but FL_FILE_SAME; `when` ends the sentence about a changed file."""
        if state == FL_FILE_SAME:
            return 0
        if state == FL_FILE_TRUNCATED:
            raise CheckpointError(f"{self.path} was truncated while it was in use")
        if state == FL_FILE_CHANGED:
            raise CheckpointError(f"{self.path} was changed {when}")
        raise CheckpointError(f"{self.path} cannot be read any more: its disk or network failed")
