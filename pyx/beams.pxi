# Beams: the scores of what may follow several texts that a search goes on with. See fastllm.h.


cdef class BeamScores:
    """Room for the scores of `beams` beams, f32 (beams, vocab_size rounded up to 16), and what computes them.

    most: followers that are wanted of all beams together. One call at a time may use it. It is written and read through
    the buffer protocol too. Raises OptionError for no beam or no follower; MemoryError.
    """
    cdef Model model
    cdef Buffer scores, sums
    cdef fl_beam *beams
    cdef fl_follower *found  # (beams, most) and behind them (most,)
    cdef size_t most, n, stride
    cdef bint busy

    def __cinit__(self, Model model not None, size_t beams, size_t most):
        cdef size_t vocab = model.c.config.vocab_size, parts = vocab // 256 + 1, i
        if beams < 1 or most < 1 or beams > INT32_MAX or most > INT32_MAX:
            raise OptionError(f"beams: {beams:,}, of which {most:,} followers are wanted")
        self.model, self.n, self.most, self.stride = model, beams, most, fl_logits_stride(&model.c)
        self.scores = Buffer(beams * self.stride * sizeof(float))
        self.sums = Buffer(beams * parts * sizeof(float))
        self.beams = <fl_beam *>calloc(beams, sizeof(fl_beam))
        self.found = <fl_follower *>calloc((beams + 1) * most, sizeof(fl_follower))
        if self.beams is NULL or self.found is NULL:
            raise MemoryError("beams: out of memory")
        for i in range(beams):
            self.beams[i].scores = <float *>self.scores.data + i * self.stride
            self.beams[i].sums = <float *>self.sums.data + i * parts
            self.beams[i].best = self.found + i * most

    def __dealloc__(self):
        free(self.beams)
        free(self.found)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.scores.data, <Py_ssize_t>self.scores.nbytes, 0, flags)

    def logs(self, size_t beam, Buffer logits not None, size_t row):
        """Writes the log softmax of a row of logits to a beam's scores. Raises NumericError unless all are finite."""
        cdef DrawScratch scratch
        cdef fl_status status
        if beam >= self.n or row >= logits.rows(self.stride):
            raise OptionError(f"beams: no beam {beam} or no row {row} of logits")
        cdef const float *x = <const float *>logits.data + row * self.stride
        scratch = self.model.idle_draws.pop() if self.model.idle_draws else DrawScratch()
        with nogil:
            status = fl_log_softmax(scratch.c, self.model.c.kernels, x, self.model.c.config.vocab_size,
                                    self.beams[beam].scores)
        self.model.idle_draws.append(scratch)
        if status != FL_OK:
            raise draw_error(status, False)

    def score(self, size_t beam, token):
        """The score of the text of a beam with a token; after `follow` -infinity where it was drawn."""
        cdef int32_t id = token_id(token, self.model.c.config.vocab_size)
        if beam >= self.n or id < 0:
            raise OptionError(f"beams: no beam {beam} or no token {token}")
        return <double>self.beams[beam].scores[id]

    def best(self, size_t beam):
        """The `most` best followers of one beam, after `follow` without draws: a list of (token, score)."""
        if beam >= self.n:
            raise OptionError(f"beams: no beam {beam}")
        cdef fl_beam *b = &self.beams[beam]
        return [(b.best[i].token, <double>b.best[i].score) for i in range(b.n_best)]

    def follow(self, list beams, Buffer logits not None, *, size_t keep=0, uint64_t state=0, taken=(), float penalty=0,
               bint processed=False, size_t threads=1):
        """The `most` best followers of beams: a list of (beam, token, score), the best first, and the new state.

        beams: (sampler, row of logits, score so far, None or a mask as Model.draw takes it) of each. keep: 0, or followers are drawn without replacement, and
        the samplers' filters leave each beam at least so many tokens; then state is that of the random numbers, a seed
        at first. taken: tokens that lose `penalty` once for each time that they are in it. processed: `logs` has
        written the beams' scores, and the caller has changed them. Forbidden tokens follow no beam: the list may be
        shorter, or empty.

        Raises NumericError if a logit is not finite; OptionError for what is impossible; MemoryError.
        """
        cdef size_t n = <size_t>len(beams), i, count
        cdef Ids less = Ids(taken, self.model.c.config.vocab_size, "beams")
        cdef fl_scoring how = fl_scoring(self.most, keep > 0, keep, less.at, less.n, penalty)
        cdef fl_follower *out = self.found + self.n * self.most
        cdef list samplers = []
        if n > self.n:
            raise OptionError(f"beams: {n} in place of at most {self.n}")
        if state == 0:
            state = 0x9E3779B97F4A7C15
        for i in range(n):
            self.set_beam(&self.beams[i], beams[i], logits, processed, samplers)
        self.run(samplers, n, &how, threads)
        for i in range(n):
            if self.beams[i].status != FL_OK:
                raise draw_error(self.beams[i].status, processed)
        if keep > 0:
            count = fl_beams_draw(self.model.c.kernels, self.beams, n, self.model.c.config.vocab_size, self.most,
                                  &state, out)
        else:
            count = fl_beams_best(self.beams, n, self.most, out)
        return [(out[i].beam, out[i].token, <double>out[i].score) for i in range(count)], state

    cdef int set_beam(self, fl_beam *beam, given, Buffer logits, bint processed, list samplers) except -1:
        cdef Sampler sampler
        cdef size_t row
        cdef bytes mask
        sampler, row, score, mask = given
        if sampler is None or sampler.vocab_size != self.model.c.config.vocab_size or row >= logits.rows(self.stride):
            raise OptionError(f"beams: a sampler of another vocabulary, or no row {row} of logits")
        beam.mask = NULL
        if mask is not None:
            if <size_t>len(mask) < (sampler.vocab_size + 31) // 32 * 4:
                raise OptionError(f"beams: a mask of {len(mask)} bytes")
            beam.mask = <const uint32_t *><const char *>mask
        samplers.append(sampler)
        beam.sampler, beam.score, beam.processed = sampler.c, score, processed
        beam.logits = <const float *>logits.data + row * self.stride
        return 0

    cdef int run(self, list samplers, size_t n, const fl_scoring *how, size_t threads) except -1:
        """fl_beams_score, with the samplers taken meanwhile, as soon as there are cores."""
        cdef DrawScratch scratch
        cdef Sampler sampler
        cdef size_t team = max(<size_t>1, min(threads, n))
        cdef list taken = []
        cores = take_cores(team)
        try:
            for sampler in samplers:
                sampler.take()
                taken.append(sampler)
            scratch = self.model.idle_draws.pop() if self.model.idle_draws else DrawScratch()
            with nogil:
                fl_beams_score(scratch.c, self.model.c.kernels, self.beams, n, how, team, self.model.draw_pace)
            self.model.idle_draws.append(scratch)
        finally:
            give_cores(cores)
            for sampler in taken:
                sampler.busy = False
        return 0
