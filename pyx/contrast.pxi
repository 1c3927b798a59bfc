# Predictions weighed against each other: guidance, DoLa and contrastive search; csrc/contrast.c has the formulas.


def head(Model model not None, Buffer rows not None, size_t n, Buffer logits not None, *, bint norm=True,
         size_t threads=1):
    """Writes the logits of n rows of the stream: f32 (n, dim), as Model.forward writes them to `hidden`.

    logits: a Buffer (n or more, logits_stride). norm: they are those that a forward gives for the output of the last
    layer; without, the head's matrix and bias alone, as of an early exit. Raises OptionError for too small a Buffer or
    a model without a head; MemoryError; CheckpointError if a mapped file has changed.
    """
    cdef size_t stride = fl_logits_stride(&model.c)
    cdef const float *x = <const float *>rows.data
    cdef float *out = <float *>logits.data
    cdef Scratch scratch
    cdef fl_status status
    if model.c.head.data is NULL or n > rows.rows(model.c.config.dim) or n > logits.rows(stride):
        raise OptionError(f"head: no room for {n} rows, or the model has none")
    taken = take_cores(threads)
    try:
        scratch = model.idle.pop() if model.idle else Scratch()
        with nogil:
            status = fl_head(&model.c, scratch.c, x, n, norm, threads, out)
        model.idle.append(scratch)
    finally:
        give_cores(taken)
    check(status, "head")
    model.expect_same_files()


cdef float *logits_row(Model model, Buffer logits, size_t row, str what) except NULL:
    cdef size_t stride = fl_logits_stride(&model.c)
    if row >= logits.rows(stride):
        raise OptionError(f"{what}: no row {row} of logits")
    return <float *>logits.data + row * stride


def guide(Model model not None, Buffer logits not None, size_t row, size_t other, float scale, Buffer out not None):
    """Row 0 of `out` becomes the scores of guidance of a row of logits against another: scale (ln p - ln q) + ln q.

    Raises OptionError for a row that there is not, NumericError if a logit is not finite, MemoryError.
    """
    cdef const float *x = logits_row(model, logits, row, "guide")
    cdef const float *y = logits_row(model, logits, other, "guide")
    cdef float *to = logits_row(model, out, 0, "guide")
    cdef DrawScratch scratch = model.idle_draws.pop() if model.idle_draws else DrawScratch()
    cdef fl_status status
    with nogil:
        status = fl_guide(scratch.c, model.c.kernels, x, y, model.c.config.vocab_size, scale, to)
    model.idle_draws.append(scratch)
    if status != FL_OK:
        raise draw_error(status, False)


def dola(Model model not None, Buffer logits not None, size_t row, Buffer exits not None, size_t n,
         Buffer out not None, *, size_t threads=1):
    """Row 0 of `out` becomes the scores of DoLa: of a row of logits against the farthest of the first n of `exits`.

    Tokens of less than a tenth of the largest probability get -infinity. Raises OptionError for rows that there are
    not, NumericError if a logit is not finite, MemoryError.
    """
    cdef const float *x = logits_row(model, logits, row, "dola")
    cdef const float *y = <const float *>exits.data
    cdef float *to = logits_row(model, out, 0, "dola")
    cdef DrawScratch scratch
    cdef fl_status status
    if n == 0 or n > exits.rows(fl_logits_stride(&model.c)):
        raise OptionError(f"dola: no {n} rows of exits")
    taken = take_cores(min(n, threads))
    try:
        scratch = model.idle_draws.pop() if model.idle_draws else DrawScratch()
        with nogil:
            status = fl_dola(scratch.c, model.c.kernels, x, y, n, model.c.config.vocab_size, threads, model.draw_pace,
                             to)
        model.idle_draws.append(scratch)
    finally:
        give_cores(taken)
    if status != FL_OK:
        raise draw_error(status, False)


def likeliest(Model model not None, Sampler sampler not None, Buffer logits not None, size_t row, size_t most, *,
              bint processed=False, bytes mask=None):
    """The up to `most` likeliest tokens after a row of logits, the likeliest first: a list of (token, probability).

    Logits are changed before by what the sampler knows of its text, which stays as it is; what is forbidden is not in
    the list. processed: the caller has changed them. mask: the tokens that are allowed, as Model.draw takes it. Raises
    NumericError if a logit is not finite; OptionError for what is impossible, or where no token is left; MemoryError.
    """
    cdef const float *x = logits_row(model, logits, row, "likeliest")
    cdef size_t n = 0, i, room = min(most, model.c.config.vocab_size)
    cdef const uint32_t *bits = NULL
    cdef DrawScratch scratch
    cdef fl_status status
    if mask is not None and <size_t>len(mask) < (model.c.config.vocab_size + 31) // 32 * 4:
        raise OptionError(f"likeliest: a mask of {len(mask)} bytes")
    if mask is not None:
        bits = <const uint32_t *><const char *>mask
    if sampler.vocab_size != model.c.config.vocab_size:
        raise OptionError("likeliest: a sampler of another vocabulary")
    cdef int32_t *tokens = <int32_t *>malloc((room + 1) * sizeof(int32_t))
    cdef double *probs = <double *>malloc((room + 1) * sizeof(double))
    try:
        if tokens is NULL or probs is NULL:
            raise MemoryError("likeliest: out of memory")
        scratch = model.idle_draws.pop() if model.idle_draws else DrawScratch()
        sampler.take()
        with nogil:
            status = fl_likeliest(sampler.c, scratch.c, model.c.kernels, x, processed, bits, room, tokens, probs,
                                  &n)
        sampler.busy = False
        model.idle_draws.append(scratch)
        if status != FL_OK:
            raise draw_error(status, processed)
        return [(tokens[i], probs[i]) for i in range(n)]
    finally:
        free(tokens)
        free(probs)


cdef class Directions:
    """The directions of a text's hidden states, position after position: rows of unit length. One call at a time.

    It takes 4 bytes for each channel of a position. Raises MemoryError.
    """
    cdef Model model
    cdef Buffer panels
    cdef readonly size_t count  # positions

    def __cinit__(self, Model model not None):
        self.model = model

    cdef const float *rows(self, Buffer rows, size_t first, size_t n) except NULL:
        cdef size_t dim = self.model.c.config.dim, there = rows.rows(dim)
        if first > there or n > there - first:
            raise OptionError(f"directions: no {n} rows from {first} on in {there}")
        return <const float *>rows.data + first * dim

    def append(self, Buffer rows not None, size_t first, size_t n):
        """Adds n rows of f32 (.., dim), from row `first` on. Raises OptionError for rows that there are not."""
        cdef size_t dim = self.model.c.config.dim, i, room
        cdef const float *x = self.rows(rows, first, n)
        cdef Buffer more
        if self.panels is None or fl_matrix_bytes(FL_F32, self.count + n, dim) > self.panels.nbytes:
            room = self.count + max(self.count, n, <size_t>FL_PAGE)
            more = Buffer(fl_matrix_bytes(FL_F32, room, dim))
            if self.panels is not None:
                memcpy(more.data, self.panels.data, self.panels.nbytes)
            self.panels = more
        with nogil:
            for i in range(n):
                fl_unit_row(<float *>self.panels.data, dim, self.count + i, x + i * dim)
        self.count += n

    def truncate(self, size_t count):
        """Forgets all but the first `count` positions. Raises OptionError if there are fewer."""
        if count > self.count:
            raise OptionError(f"directions: {self.count:,} positions cannot be cut to {count:,}")
        self.count = count

    def degeneration(self, Buffer rows not None, size_t first, size_t n, *, size_t threads=1):
        """The degeneration penalties of n rows: of each, the largest cosine with any of the positions, of which there
        must be one; NaN where a row or a position is not finite. Raises OptionError for rows that there are not,
        MemoryError."""
        cdef const float *x = self.rows(rows, first, n)
        cdef float *out
        cdef fl_matrix context
        cdef fl_status status
        if self.count == 0:
            raise OptionError("directions: no position")
        memset(&context, 0, sizeof(context))
        context.data, context.type = self.panels.data, FL_F32
        context.d, context.n = self.count, self.model.c.config.dim
        out = <float *>malloc((n + 1) * sizeof(float))
        if out is NULL:
            raise MemoryError("directions: out of memory")
        taken = take_cores(threads)
        try:
            with nogil:
                status = fl_degeneration(self.model.c.kernels, &context, self.count, x, n, threads, out)
            check(status, "directions")
            return [out[i] for i in range(n)]
        finally:
            free(out)
            give_cores(taken)
