# Keys and values of sequences, in pages of 64 positions (PagedAttention, Kwon et al., 2023).
#
# A KVCache owns the pool of pages of one model; fl_pool is not thread-safe and is only called with the GIL held. The
# layers of a model are of one or several kinds, by how far a token sees in them, and a page in C belongs to one kind. A
# Page object stands for 64 positions in all kinds, and so has a part of each.
#
# A page may belong to several sequences and Page objects; each holds a reference. A page that is shared is never
# written: a forward that would, copies it first (sequence.pxi).


cdef class KVCache:
    """The pages of a model's sequences.

    limit: the bytes that all pages in use may take; None: no limit but memory. It may be changed at any time; below
    `used`, no page can be taken until enough are given back. Raises OptionError for a negative limit; MemoryError.
    """
    cdef fl_pool *pool
    cdef Model model
    cdef size_t kinds  # of the model's layers
    cdef size_t most  # the limit, SIZE_MAX for none

    def __cinit__(self, Model model not None, *, limit=None):
        cdef size_t kind
        cdef size_t *page_bytes
        self.model, self.kinds = model, model.c.n_kinds
        page_bytes = <size_t *>malloc(self.kinds * sizeof(size_t))
        if page_bytes is NULL:
            raise MemoryError("KV cache: out of memory")
        for kind in range(self.kinds):
            page_bytes[kind] = self.page_size(kind)
        status = fl_pool_new(self.kinds, page_bytes, &self.pool)
        free(page_bytes)
        check(status, "KV cache")
        self.limit = limit

    def __dealloc__(self):
        fl_pool_free(self.pool)

    @property
    def limit(self):
        """The bytes that pages in use may take, or None."""
        return None if self.most == SIZE_MAX else self.most

    @limit.setter
    def limit(self, limit):
        if limit is not None and limit < 0:
            raise OptionError(f"KV cache: a limit of {limit} bytes")
        self.most = SIZE_MAX if limit is None else min(limit, SIZE_MAX)
        fl_pool_limit(self.pool, self.most)

    @property
    def used(self):
        """The bytes of the pages that are in use."""
        return fl_pool_used(self.pool)

    @property
    def windows(self):
        """For each kind of layers how many positions back a token sees, itself included; 0: all."""
        return tuple([self.model.c.kinds[kind].window for kind in range(self.kinds)])

    @property
    def page_bytes(self):
        """For each kind of layers the bytes of a page."""
        return tuple([self.page_size(kind) for kind in range(self.kinds)])

    def sequence(self, pages=(), size_t length=0):
        """A new Sequence of `length` tokens, which shares `pages`: Page objects of positions 0 to 63, 64 to 127, ...

        It takes references only to what later positions see. Raises OptionError if that is missing, if the number of
        pages is not that of `length` positions, or for pages of another KVCache; MemoryError.
        """
        cdef Sequence sequence = Sequence(self)
        sequence.share(list(pages), length)
        return sequence

    def page(self, parts):
        """A new Page with copies of `parts`, which Page.part returned before: for each kind bytes, or None.

        Raises OptionError if there is not one part for each kind, or a part has not page_bytes; CacheFullError;
        MemoryError.
        """
        cdef Page page = Page(self)
        cdef const unsigned char[::1] view
        cdef list given = list(parts)
        cdef size_t kind
        if <size_t>len(given) != self.kinds:
            raise OptionError(f"a page has {self.kinds} parts, not {len(given)}")
        for kind, part in enumerate(given):
            if part is None:
                continue
            view = part
            if <size_t>view.shape[0] != self.page_size(kind):
                raise OptionError(f"part {kind} of a page has {self.page_size(kind):,} bytes, not {len(view):,}")
            self.take(kind, &page.ids[kind])
            page.data[kind] = fl_pool_data(self.pool, page.ids[kind])
            memcpy(page.data[kind], &view[0], self.page_size(kind))
        return page

    cdef inline size_t page_size(self, size_t kind) noexcept:
        return fl_kv_page_bytes(&self.model.c, kind)

    cdef int take(self, size_t kind, fl_page *page) except -1:
        """fl_pool_take, with an exception of its own for a limit that is reached."""
        cdef fl_status status = fl_pool_take(self.pool, kind, page)
        if status == FL_NO_PAGES:
            raise CacheFullError(f"the KV cache is full: {self.used:,} bytes of at most {self.most:,} are in use")
        return check(status, "KV cache")


@cython.no_gc_clear  # __dealloc__ needs the cache: the garbage collector must not clear it before
cdef class Page:
    """References to the keys and values of 64 positions of a sequence, which it keeps as they are.

    Of a kind of layers with a window, the sequence may have given its part back; then that part is None. Made by
    Sequence.page and KVCache.page.
    """
    cdef KVCache cache
    cdef fl_page *ids  # (kinds,)
    cdef void **data  # (kinds,) the bytes of each; NULL: this part is None

    def __cinit__(self, KVCache cache not None):
        self.cache = cache
        self.ids = <fl_page *>calloc(cache.kinds, sizeof(fl_page))
        self.data = <void **>calloc(cache.kinds, sizeof(void *))
        if self.ids is NULL or self.data is NULL:
            raise MemoryError("KV cache: out of memory")

    def __dealloc__(self):
        cdef size_t kind
        if self.ids is not NULL and self.data is not NULL:
            for kind in range(self.cache.kinds):
                if self.data[kind] is not NULL:
                    fl_pool_give(self.cache.pool, self.ids[kind])
        free(self.ids)
        free(self.data)

    @property
    def nbytes(self):
        """The bytes of its parts together."""
        cdef size_t kind, total = 0
        for kind in range(self.cache.kinds):
            if self.data[kind] is not NULL:
                total += self.cache.page_size(kind)
        return total

    def part(self, size_t kind):
        """The bytes of one kind of layers as a read-only memoryview, or None. Raises OptionError for another kind."""
        if kind >= self.cache.kinds:
            raise OptionError(f"a page has {self.cache.kinds} parts: there is no part {kind}")
        return None if self.data[kind] is NULL else memoryview(Part(self, kind))

    def has(self, size_t kind):
        """Whether it has a part of one kind of layers."""
        return kind < self.cache.kinds and self.data[kind] is not NULL

    def filled(self, Page other not None):
        """A Page with its parts, and those of `other`, a page of this cache and the same tokens, where it has none."""
        cdef Page both = Page(self.cache)
        cdef size_t kind
        if other.cache is not self.cache:
            raise OptionError("a page of another KV cache")
        for kind in range(self.cache.kinds):
            both.data[kind] = other.data[kind] if self.data[kind] is NULL else self.data[kind]
            both.ids[kind] = other.ids[kind] if self.data[kind] is NULL else self.ids[kind]
            if both.data[kind] is not NULL:
                fl_pool_hold(self.cache.pool, both.ids[kind])
        return both


@cython.internal
cdef class Part:
    """The bytes of one part of a Page, by the buffer protocol."""
    cdef Page page
    cdef size_t kind

    def __cinit__(self, Page page, size_t kind):
        self.page, self.kind = page, kind

    def __getbuffer__(self, Py_buffer *view, int flags):
        nbytes = <Py_ssize_t>self.page.cache.page_size(self.kind)
        PyBuffer_FillInfo(view, self, self.page.data[self.kind], nbytes, 1, flags)
