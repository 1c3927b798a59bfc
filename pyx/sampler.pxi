# From logits to a token.


@cython.internal
cdef class DrawScratch:
    """Working memory of one draw at a time, some arrays as long as the vocabulary."""
    cdef fl_draw_scratch *c

    def __cinit__(self):
        check(fl_draw_scratch_new(&self.c), "working memory")

    def __dealloc__(self):
        fl_draw_scratch_free(self.c)


# DrawScratch objects that no draw is using; as many were made as draws ran at once. All samplers share them: a batch
# of hundreds of texts has a sampler for each, and few of them draw at once.
cdef list idle_draws = []


cdef class Sampler:
    """Draws the tokens of one text. One call at a time may use it.

    vocab_size: 1 to 2^31 - 1. params: any object with the fields of fl_sampling, such as a fastllm.decoding.Sampling,
    which explains them and names their papers. seed: of the random numbers, 64 bits; the same seed and logits give the
    same tokens. bias: token -> what is added to its logit. isa: the instruction set, None for the best; all draw the
    same. Raises OptionError for a vocab_size, token or isa that is impossible; MemoryError.
    """
    cdef fl_sampler *c
    cdef const fl_kernels *kernels
    cdef size_t vocab_size
    cdef bint busy  # a call has taken it

    def __cinit__(self, size_t vocab_size, params, *, uint64_t seed, bias=None, isa=None):
        cdef fl_sampling p = fl_sampling(
            params.temperature, params.top_k, params.top_p, params.min_p, params.typical_p,
            params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        self.kernels = find_kernels(isa)
        self.vocab_size = vocab_size
        if not 0 < vocab_size <= INT32_MAX:
            raise OptionError(f"sampler: a vocabulary of {vocab_size:,} tokens")
        check(fl_sampler_new(vocab_size, &p, seed, &self.c), "sampler")
        for token, value in (bias or {}).items():
            if not 0 <= token < vocab_size:
                raise OptionError(f"logit bias: no token {token} in a vocabulary of {vocab_size}")
            check(fl_sampler_bias(self.c, token, value), "logit bias")

    def __dealloc__(self):
        fl_sampler_free(self.c)

    cdef int take(self) except -1:
        """Takes it for one call, which sets busy to False at its end."""
        if self.busy:
            raise OptionError("a sampler is in use by another thread")
        self.busy = True
        return 0

    cdef int32_t next(self, const float *logits) except -1:
        """Draws a token from logits (vocab_size rounded up to 16,); the caller has taken the sampler."""
        cdef DrawScratch scratch = idle_draws.pop() if idle_draws else DrawScratch()
        cdef int32_t token = 0
        cdef fl_status status
        with nogil:
            status = fl_sampler_draw(self.c, scratch.c, self.kernels, logits, &token)
        idle_draws.append(scratch)
        if status == FL_BAD_VALUE:
            raise NumericError("the logits are not finite")
        if status == FL_BAD_TOKEN:
            raise OptionError("after biases and penalties there is no token to draw")
        check(status, "logits")
        return token

    def accept(self, token, *, bint generated):
        """Counts a token for the penalties: of the generated text, or else of the prompt.

        Raises OptionError for an id outside the vocabulary, or while another call uses the sampler; MemoryError.
        """
        cdef int32_t id = token_id(token, self.vocab_size)
        cdef fl_status status
        if id < 0:
            raise OptionError(f"sampler: no token {token} in a vocabulary of {self.vocab_size}")
        self.take()
        status = fl_sampler_accept(self.c, id, generated)
        self.busy = False
        check(status, "sampler")

    def draw(self, Buffer logits not None, size_t row=0):
        """The next token's id, drawn from a row of logits, f32 (rows, vocab_size rounded up to 16), as forward writes.

        Raises OptionError if there is no such row, if biases and penalties leave no token, or while another call uses
        the sampler; NumericError if a logit is not finite; MemoryError.
        """
        cdef size_t stride = fl_round_up(self.vocab_size, FL_LANES)
        if row >= logits.rows(stride):
            raise OptionError(f"sampler: no row {row} of logits")
        self.take()
        try:
            return self.next(<const float *>logits.data + row * stride)
        finally:
            self.busy = False
