# Keys and values of sequences, in pages of 64 positions (PagedAttention, Kwon et al., 2023).
#
# A KVCache owns the pool of pages of one model; fl_pool is not thread-safe and is only called with the GIL held. A
# Sequence holds a list of pages and a length, and hands the pages to fl_forward, which writes to them:
#
#     length = 150      pages[0] 0..63    pages[1] 64..127    pages[2] 128..149, and room for 42 more positions


cdef class KVCache:
    """The pool of pages of a model. Its sequences take pages from it and give them back when they end.

    Raises MemoryError.
    """
    cdef fl_pool *pool
    cdef Model model

    def __cinit__(self, Model model not None):
        self.model = model
        check(fl_pool_new(fl_kv_page_bytes(&model.c), &self.pool), "KV cache")

    def __dealloc__(self):
        fl_pool_free(self.pool)

    def sequence(self):
        """A new, empty Sequence."""
        return Sequence(self)


@cython.no_gc_clear  # __dealloc__ needs the cache: the garbage collector must not clear it before
cdef class Sequence:
    """The keys and values of the `length` tokens that forwards have appended so far. One call at a time may use it."""
    cdef KVCache cache
    cdef void **pages  # (n_pages,)
    cdef size_t n_pages
    cdef bint busy  # a forward has taken it
    cdef readonly size_t length

    def __cinit__(self, KVCache cache not None):
        self.cache = cache

    def __dealloc__(self):
        self.give_pages(0)
        free(self.pages)

    cdef int take(self, Model model, str what) except -1:
        """Takes it for a forward of `model`, which sets busy to False at its end."""
        if self.cache.model is not model:
            raise OptionError(f"{what}: a sequence of another model")
        if self.busy:
            raise OptionError("a sequence is in use by another forward, or twice in this one")
        self.busy = True
        return 0

    cdef int reserve(self, size_t length, size_t limit) except -1:
        """Takes pages for `length` positions; none if that exceeds the context, `limit`: fl_forward reports it."""
        cdef size_t need = pages_of(length)
        cdef void **more
        if length > limit or need <= self.n_pages:
            return 0
        more = <void **>realloc(self.pages, need * sizeof(void *))
        if more is NULL:
            raise MemoryError("KV cache: out of memory")
        self.pages = more
        while self.n_pages < need:
            check(fl_pool_take(self.cache.pool, &self.pages[self.n_pages]), "KV cache")
            self.n_pages += 1
        return 0

    cdef void give_pages(self, size_t keep) noexcept:
        """Gives all but the first `keep` pages back to the pool."""
        while self.n_pages > keep:
            self.n_pages -= 1
            fl_pool_give(self.cache.pool, self.pages[self.n_pages])

    def truncate(self, size_t length):
        """Forgets all but the first `length` tokens. Raises OptionError if it holds fewer, or is in use."""
        if self.busy or length > self.length:
            raise OptionError(f"a sequence of {self.length} tokens cannot be cut to {length}")
        self.length = length
        self.give_pages(pages_of(length))


cdef inline size_t pages_of(size_t length) noexcept:
    return (length + FL_PAGE - 1) // FL_PAGE
