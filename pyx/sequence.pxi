# A sequence: the keys and values of the tokens of a text, as forwards need them.
#
# It has a table of pages for each kind of layers and a length, and hands the tables to fl_forward, which writes to the
# pages from its length on. Of a kind with a window, a forward gives back at its start the pages that no token from the
# length on sees, nor would after 64 tokens less: so guesses can be cut off. Of 200 positions, where one kind of layers
# sees all positions and another the last 70:
#
#     kind 0, window 0     | page 9   | page 4   | page 2   | page 11  |
#     kind 1, window 70    | -        | page 6   | page 3   | page 8   |
#     positions              0..63      64..127    128..191   192..199, and room for 56 more
#
# Token 200 sees positions 131 to 200, but token 136 would see positions from 67 on, and so page 6.


@cython.no_gc_clear  # __dealloc__ needs the cache
cdef class Sequence:
    """The keys and values of the `length` tokens that forwards have appended so far. One call at a time may use it."""
    cdef KVCache cache
    cdef size_t kinds
    cdef fl_page **ids  # (kinds, n_pages)
    cdef void ***pages  # (kinds, n_pages) the bytes of each, NULL where it was given back
    cdef size_t *first  # (kinds,) pages before this one have been given back
    cdef size_t n_pages
    cdef bint busy  # a forward has taken it
    cdef readonly size_t length

    def __cinit__(self, KVCache cache not None):
        self.cache, self.kinds = cache, cache.kinds
        self.ids = <fl_page **>calloc(self.kinds, sizeof(fl_page *))
        self.pages = <void ***>calloc(self.kinds, sizeof(void **))
        self.first = <size_t *>calloc(self.kinds, sizeof(size_t))
        if self.ids is NULL or self.pages is NULL or self.first is NULL:
            raise MemoryError("KV cache: out of memory")

    def __dealloc__(self):
        cdef size_t kind
        if self.ids is not NULL and self.pages is not NULL and self.first is not NULL:
            self.give_pages(0)
            for kind in range(self.kinds):
                free(self.ids[kind])
                free(self.pages[kind])
        free(self.ids)
        free(self.pages)
        free(self.first)

    # ---- for forwards

    cdef int take(self, Model model, str what) except -1:
        """Takes it for a forward of `model`, which calls give() at its end."""
        if self.cache.model is not model:
            raise OptionError(f"{what}: a sequence of another model")
        if self.busy:
            raise OptionError("a sequence is in use by another forward, or twice in this one")
        self.busy = True
        return 0

    cdef void give(self) noexcept:
        """After a forward that succeeded or failed: gives back pages past its length; others may use it again."""
        self.give_pages(pages_of(self.length))
        self.busy = False

    cdef int reserve(self, size_t n) except -1:
        """Makes room for n more tokens; not if that exceeds the context: fl_forward reports it."""
        cdef size_t kind
        if n > self.cache.model.c.config.max_seq - self.length:
            return 0
        self.grow(pages_of(self.length + n))
        for kind in range(self.kinds):
            self.give_left(kind)
            if self.length % FL_PAGE:
                self.make_own(kind, self.length // FL_PAGE)
        while self.n_pages < pages_of(self.length + n):
            self.append_page()
        return 0

    cdef int grow(self, size_t count) except -1:
        """Makes the tables long enough for `count` pages."""
        cdef size_t kind
        cdef void *ids
        cdef void *pages
        if count <= self.n_pages:
            return 0
        for kind in range(self.kinds):
            ids = realloc(self.ids[kind], count * sizeof(fl_page))
            if ids is not NULL:
                self.ids[kind] = <fl_page *>ids
            pages = realloc(self.pages[kind], count * sizeof(void *))
            if pages is not NULL:
                self.pages[kind] = <void **>pages
            if ids is NULL or pages is NULL:
                raise MemoryError("KV cache: out of memory")
        return 0

    cdef int append_page(self) except -1:
        """Takes a page for the next 64 positions, one of each kind, or raises and takes none."""
        cdef size_t kind, taken = 0
        try:
            for kind in range(self.kinds):
                self.cache.take(kind, &self.ids[kind][self.n_pages])
                self.pages[kind][self.n_pages] = fl_pool_data(self.cache.pool, self.ids[kind][self.n_pages])
                taken += 1
        except:
            for kind in range(taken):
                fl_pool_give(self.cache.pool, self.ids[kind][self.n_pages])
            raise
        self.n_pages += 1
        return 0

    cdef int make_own(self, size_t kind, size_t i) except -1:
        """Puts a copy in the place of page i if that is shared."""
        cdef fl_pool *pool = self.cache.pool
        cdef fl_page own
        if fl_pool_references(pool, self.ids[kind][i]) == 1:
            return 0
        self.cache.take(kind, &own)
        memcpy(fl_pool_data(pool, own), self.pages[kind][i], self.cache.page_size(kind))
        fl_pool_give(pool, self.ids[kind][i])
        self.ids[kind][i] = own
        self.pages[kind][i] = fl_pool_data(pool, own)
        return 0

    cdef inline size_t first_seen(self, size_t kind, size_t length) noexcept:
        """The first page that positions from `length` on see."""
        cdef size_t window = self.cache.model.c.kinds[kind].window
        return (length + 1 - window) // FL_PAGE if 0 < window <= length else 0

    cdef void give_left(self, size_t kind) noexcept:
        """Gives back the pages of a kind that positions do not see even if it is cut by a page."""
        cdef size_t end = self.first_seen(kind, self.length - min(self.length, <size_t>FL_PAGE))
        while self.first[kind] < end:
            fl_pool_give(self.cache.pool, self.ids[kind][self.first[kind]])
            self.pages[kind][self.first[kind]] = NULL
            self.first[kind] += 1

    cdef void give_pages(self, size_t keep) noexcept:
        """Gives back all but the first `keep` pages of each kind."""
        cdef size_t kind
        while self.n_pages > keep:
            self.n_pages -= 1
            for kind in range(self.kinds):
                if self.first[kind] <= self.n_pages:
                    fl_pool_give(self.cache.pool, self.ids[kind][self.n_pages])
                else:
                    self.first[kind] = self.n_pages

    # ---- for its owner

    cdef int share(self, list pages, size_t length) except -1:
        """Takes references to the pages that positions from `length` on see. For a new, empty sequence."""
        cdef size_t i, kind, count = pages_of(length)
        cdef Page page
        if length > self.cache.model.c.config.max_seq:
            raise OptionError(f"a sequence of {length:,} tokens is longer than the context")
        if <size_t>len(pages) != count:
            raise OptionError(f"a sequence of {length:,} tokens has {count:,} pages, not {len(pages):,}")
        for i, given in enumerate(pages):
            page = <Page?>given
            if page.cache is not self.cache:
                raise OptionError(f"page {i} is of another KV cache")
            for kind in range(self.kinds):
                if page.data[kind] is NULL and i >= self.first_seen(kind, length):
                    raise OptionError(f"page {i} has not what positions from {length:,} on see in part {kind}")
        self.grow(count)
        for kind in range(self.kinds):
            self.first[kind] = self.first_seen(kind, length)
            for i in range(count):
                page = <Page>pages[i]
                if i < self.first[kind]:
                    self.pages[kind][i] = NULL
                    continue
                fl_pool_hold(self.cache.pool, page.ids[kind])
                self.ids[kind][i], self.pages[kind][i] = page.ids[kind], page.data[kind]
        self.n_pages, self.length = count, length
        return 0

    cdef int expect_idle(self) except -1:
        if self.busy:
            raise OptionError("a sequence is in use by another forward")
        return 0

    def page(self, size_t i):
        """A Page of references to its page i, positions 64 i to 64 i + 63, of which the last may have fewer.

        Raises OptionError if there is no such page, or a forward uses the sequence; MemoryError.
        """
        cdef size_t kind
        cdef Page page
        self.expect_idle()
        if i >= self.n_pages:
            raise OptionError(f"a sequence of {self.length:,} tokens has no page {i:,}")
        page = Page(self.cache)
        for kind in range(self.kinds):
            if self.pages[kind][i] is not NULL:
                fl_pool_hold(self.cache.pool, self.ids[kind][i])
                page.ids[kind], page.data[kind] = self.ids[kind][i], self.pages[kind][i]
        return page

    def fork(self):
        """A new Sequence of the same tokens, which shares all pages until one of the two is written.

        Raises OptionError if a forward uses it; MemoryError.
        """
        cdef Sequence twin = Sequence(self.cache)
        cdef size_t kind, i
        self.expect_idle()
        twin.grow(self.n_pages)
        for kind in range(self.kinds):
            twin.first[kind] = self.first[kind]
            for i in range(self.n_pages):
                twin.pages[kind][i] = self.pages[kind][i]
                if self.pages[kind][i] is not NULL:
                    twin.ids[kind][i] = self.ids[kind][i]
                    fl_pool_hold(self.cache.pool, self.ids[kind][i])
        twin.n_pages, twin.length = self.n_pages, self.length
        return twin

    def truncate(self, size_t length):
        """Forgets all but the first `length` tokens.

        Raises OptionError if it holds fewer, if it has given back what positions from `length` on see, or if a forward
        uses it. What the last forward appended can always be cut off, and up to 64 tokens of those before.
        """
        cdef size_t kind
        self.expect_idle()
        if length > self.length:
            raise OptionError(f"a sequence of {self.length:,} tokens cannot be cut to {length:,}")
        for kind in range(self.kinds):
            if length > 0 and self.first[kind] > self.first_seen(kind, length):
                raise OptionError(f"a sequence of {self.length:,} tokens cannot be cut to {length:,}: "
                                  f"later tokens would see what it has given back")
        self.length = length
        self.give_pages(pages_of(length))


cdef inline size_t pages_of(size_t length) noexcept:
    return (length + FL_PAGE - 1) // FL_PAGE
