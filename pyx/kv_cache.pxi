cdef class KVCache:
    """The pool of KV pages of a model: hands out sequences, and takes their pages back when they are gone."""
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


@cython.no_gc_clear  # its pages go back to the cache, which must still be there
cdef class Sequence:
    """The keys and values of one text so far. `length` tokens are in it."""
    cdef KVCache cache
    cdef void **pages
    cdef size_t n_pages
    cdef bint busy
    cdef readonly size_t length

    def __cinit__(self, KVCache cache not None):
        self.cache = cache

    def __dealloc__(self):
        self.give_back(0)
        free(self.pages)

    cdef int take(self) except -1:
        if self.busy:
            raise OptionError("a sequence is in use by another forward, or twice in this one")
        self.busy = True
        return 0

    cdef int reserve(self, size_t length, size_t limit) except -1:
        """Pages for `length` positions, unless that is past the limit: the forward says so."""
        cdef size_t need = (length + FL_PAGE - 1) // FL_PAGE
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

    cdef void give_back(self, size_t keep) noexcept:
        while self.n_pages > keep:
            self.n_pages -= 1
            fl_pool_give(self.cache.pool, self.pages[self.n_pages])

    def truncate(self, size_t length):
        """Forgets all but the first `length` tokens."""
        if self.busy or length > self.length:
            raise OptionError(f"a sequence of {self.length} tokens cannot be cut to {length}")
        self.length = length
        self.give_back((length + FL_PAGE - 1) // FL_PAGE)
