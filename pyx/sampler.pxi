# From logits to a token.

# The names of fl_filter, from 1 on: the filters in their default order.
FILTERS = ("temperature", "top_n_sigma", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff",
           "eta_cutoff", "xtc", "mirostat")


@cython.internal
cdef class DrawScratch:
    """Working memory of one call that draws at a time; its Model keeps it."""
    cdef fl_draw_scratch *c

    def __cinit__(self):
        check(fl_draw_scratch_new(&self.c), "working memory")

    def __dealloc__(self):
        fl_draw_scratch_free(self.c)


@cython.internal
cdef class Ids:
    """Token ids as a C array."""
    cdef int32_t *at
    cdef size_t n

    def __cinit__(self, tokens, size_t vocab_size, what):
        cdef list given = list(tokens)
        cdef size_t i
        self.n = <size_t>len(given)
        self.at = <int32_t *>malloc((self.n + 1) * sizeof(int32_t))
        if self.at is NULL:
            raise MemoryError(f"{what}: out of memory")
        for i in range(self.n):
            self.at[i] = token_id(given[i], vocab_size)
            if self.at[i] < 0:
                raise OptionError(f"{what}: no token {given[i]} in a vocabulary of {vocab_size}")

    def __dealloc__(self):
        free(self.at)


cdef class Watermark:
    """Which tokens of a vocabulary are green: see fl_watermark_new. Several threads may use one.

    Raises OptionError for what is impossible, MemoryError.
    """
    cdef fl_watermark *c
    cdef size_t vocab_size, before  # tokens of a text that `green` needs

    def __cinit__(self, size_t vocab_size, *, double ratio, float bias, uint64_t key, bint selfhash, size_t width):
        if not 0 < vocab_size <= INT32_MAX or not 0 < ratio < 1 or width < 1:
            raise OptionError(f"watermark: a share of {ratio:g} of {vocab_size:,} tokens, after {width}")
        self.vocab_size, self.before = vocab_size, width - selfhash
        check(fl_watermark_new(vocab_size, ratio, bias, key, selfhash, width, &self.c), "watermark")

    def __dealloc__(self):
        fl_watermark_free(self.c)

    def green(self, context, token):
        """Whether a token is green after a context: `width` ids, or with selfhash one less.

        Raises OptionError for another number of ids, or one outside the vocabulary; MemoryError.
        """
        cdef Ids ids = Ids(context, self.vocab_size, "watermark")
        cdef int32_t id = token_id(token, self.vocab_size)
        cdef int found = 0
        if ids.n != self.before:
            raise OptionError(f"watermark: a context of {ids.n} tokens, not {self.before}")
        check(fl_watermark_green(self.c, ids.at, id, &found), "watermark")
        return bool(found)


cdef fl_sampling sampling_of(params) except *:
    cdef fl_sampling p
    memset(&p, 0, sizeof(p))
    p.temperature, p.top_k, p.top_p, p.min_p = params.temperature, params.top_k, params.top_p, params.min_p
    p.typical_p, p.repetition_penalty = params.typical_p, params.repetition_penalty
    p.presence_penalty, p.frequency_penalty = params.presence_penalty, params.frequency_penalty
    p.penalty_window, p.no_repeat_ngram_size = params.penalty_window, params.no_repeat_ngram_size
    p.dry_multiplier, p.dry_base = params.dry_multiplier, params.dry_base
    p.dry_allowed_length = params.dry_allowed_length
    p.dry_last_n = SIZE_MAX if params.dry_penalty_last_n < 0 else params.dry_penalty_last_n
    p.dynatemp_range, p.dynatemp_exponent = params.dynatemp_range, params.dynatemp_exponent
    p.top_n_sigma, p.top_h = params.top_n_sigma, params.top_h
    p.epsilon_cutoff, p.eta_cutoff = params.epsilon_cutoff, params.eta_cutoff
    p.xtc_probability, p.xtc_threshold = params.xtc_probability, params.xtc_threshold
    p.mirostat_tau, p.mirostat_eta = params.mirostat_tau, params.mirostat_eta
    for i, name in enumerate(params.sampler_order):
        p.order[i] = FILTERS.index(name) + 1
    return p


cdef class Sampler:
    """Draws the tokens of one text. One call at a time may use it.

    vocab_size: 1 to 2^31 - 1. params: any object with the fields of fl_sampling, such as a fastllm.decoding.Sampling,
    which explains them and names their papers. seed: of the random numbers, 64 bits; the same seed and logits give the
    same tokens. bias: token -> what is added to its logit; -infinity forbids it. phrases: pairs of ids and what is
    added to the logit of the last id where a text ends with the others. bars: pairs of ids and a number: they cannot be
    drawn while fewer tokens have been accepted as generated. forced: ids, of which one is drawn when so many tokens
    have been generated. decay: ids, a start and a factor, see fl_sampler_decay. breakers: sequences of ids, see
    fl_sampler_break. isa: the instruction set of draw, None for the best; all draw the same.

    It is small: working memory belongs to the call that draws. Raises OptionError for a vocab_size, token, bias or isa
    that is impossible; MemoryError.
    """
    cdef fl_sampler *c
    cdef const fl_kernels *kernels
    cdef size_t vocab_size
    cdef bint busy  # a call has taken it
    cdef object params
    cdef Watermark watermark

    def __cinit__(self, size_t vocab_size, params, *, uint64_t seed, bias=None, phrases=(), bars=(), forced=None,
                  decay=None, breakers=(), Watermark watermark=None, isa=None):
        cdef fl_sampling p = sampling_of(params)
        cdef Ids ids
        self.kernels = find_kernels(isa)
        self.vocab_size, self.params = vocab_size, params
        if not 0 < vocab_size <= INT32_MAX:
            raise OptionError(f"sampler: a vocabulary of {vocab_size:,} tokens")
        check(fl_sampler_new(vocab_size, &p, seed, &self.c), "sampler")
        for token, value in (bias or {}).items():
            self.add_bias([token], value, "logit bias")
        for tokens, value in phrases:
            self.add_bias(tokens, value, "phrases")
        for tokens, until in bars:
            ids = Ids(tokens, vocab_size, "bars")
            check(fl_sampler_bar(self.c, ids.at, ids.n, until), "bars")
        if forced is not None:
            ids = Ids(forced[0], vocab_size, "forced")
            check(fl_sampler_force(self.c, ids.at, ids.n, forced[1]), "forced")
        if decay is not None:
            ids = Ids(decay[0], vocab_size, "decay")
            check(fl_sampler_decay(self.c, ids.at, ids.n, decay[1], decay[2]), "decay")
        for tokens in breakers:
            ids = Ids(tokens, vocab_size, "breakers")
            check(fl_sampler_break(self.c, ids.at, ids.n), "breakers")
        if watermark is not None:
            self.set_watermark(watermark)

    def __dealloc__(self):
        fl_sampler_free(self.c)

    cdef int add_bias(self, tokens, float value, what) except -1:
        cdef Ids ids = Ids(tokens, self.vocab_size, what)
        if ids.n == 0:
            raise OptionError(f"{what}: no token")
        if not value < INFINITY:
            raise OptionError(f"{what}: {value} for token {', '.join(map(str, tokens))}")
        return check(fl_sampler_bias(self.c, ids.at, ids.n, value), what)

    cdef int set_watermark(self, Watermark watermark) except -1:
        if watermark.vocab_size != self.vocab_size:
            raise OptionError("watermark: of another vocabulary")
        self.watermark = watermark
        fl_sampler_watermark(self.c, watermark.c)
        return 0

    cdef int take(self) except -1:
        """Takes it for one call, which sets busy to False at its end."""
        if self.busy:
            raise OptionError("a sampler is in use by another thread, or twice in one call")
        self.busy = True
        return 0

    def accept(self, token, *, bint generated):
        """Counts a token for the penalties and `until`: of the generated text, or else of the prompt.

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

    def accept_all(self, tokens):
        """Counts the tokens of a prompt for the penalties. Raises what accept raises; counts none where one is bad."""
        cdef Ids ids = Ids(tokens, self.vocab_size, "sampler")
        cdef fl_status status = FL_OK
        cdef size_t i = 0
        self.take()
        while i < ids.n and status == FL_OK:
            status = fl_sampler_accept(self.c, ids.at[i], False)
            i += 1
        self.busy = False
        check(status, "sampler")

    def draw(self, Buffer logits not None, size_t row=0):
        """The next token's id, drawn from a row of logits, f32 (rows, vocab_size rounded up to 16), as forward writes.

        The sampler does not accept the token. Working memory is made for the call alone; Model.draw keeps its own.
        Raises OptionError if there is no such row, if what is forbidden leaves no token, or while another call uses
        the sampler; NumericError if a logit is not finite; MemoryError. The sampler is then as it was.
        """
        cdef size_t stride = fl_round_up(self.vocab_size, FL_LANES)
        cdef DrawScratch scratch
        cdef const float *x
        cdef int32_t token = 0
        cdef fl_status status
        if row >= logits.rows(stride):
            raise OptionError(f"sampler: no row {row} of logits")
        scratch, x = DrawScratch(), <const float *>logits.data + row * stride
        self.take()
        with nogil:
            status = fl_sampler_draw(self.c, scratch.c, self.kernels, x, &token)
        self.busy = False
        if status != FL_OK:
            raise draw_error(status, False)
        return token

    def copy(self):
        """A new Sampler in the same state: from the same logits it draws the same tokens as this one.

        Raises OptionError while another call uses the sampler; MemoryError.
        """
        cdef Sampler twin = Sampler(self.vocab_size, self.params, seed=0)
        cdef fl_sampler *c = NULL
        self.take()
        status = fl_sampler_copy(self.c, &c)
        self.busy = False
        check(status, "sampler")
        fl_sampler_free(twin.c)
        twin.c, twin.kernels, twin.watermark = c, self.kernels, self.watermark
        return twin


cdef object draw_error(fl_status status, bint processed):
    """The exception that a failed draw ends in."""
    if status == FL_BAD_VALUE:
        return NumericError("the processed logits hold NaN or infinity" if processed else "the logits are not finite")
    if status == FL_BAD_TOKEN:
        return OptionError("after biases, penalties and what is forbidden there is no token to draw")
    return MemoryError("logits: out of memory")


@cython.internal
cdef class Draws:
    """The draws of one call as C arrays, and references to all that they point into.

        items  [ sampler, logits, guesses, n_guesses = 2, tokens | sampler, ... ]     (count,)
                                   |                        |
                                   v                        v
        ids                      [ 17 | 4                 | _ | _ | _           | ... ]

    masks: for each draw that has masks pointers to those of its rows, which `bits` keeps.

    The constructor converts and checks the draws; take() marks the samplers as busy; after fl_draw_all results() has
    what it wrote; give() is called in any case.
    """
    cdef Buffer logits
    cdef list samplers, taken  # of all draws; those that take() has marked as busy
    cdef list bits             # the masks' bytes objects
    cdef fl_draw *items
    cdef int32_t *ids
    cdef const uint32_t **masks
    cdef size_t count

    def __cinit__(self, Model model, draws, Buffer logits):
        cdef list given = list(draws), guesses = []
        cdef size_t i, n_guesses = 0
        cdef tuple draw
        self.logits, self.samplers, self.taken, self.bits = logits, [], [], []
        self.count = <size_t>len(given)
        self.items = <fl_draw *>calloc(self.count + 1, sizeof(fl_draw))
        if self.items is NULL:
            raise MemoryError("draw: out of memory")
        for i in range(self.count):
            draw = tuple(given[i])
            if not 3 <= len(draw) <= 5:
                raise OptionError(f"draw: {len(draw)} values in place of a sampler, a row and guesses")
            guesses.append(tuple(draw[2]))
            n_guesses += self.set_item(model, &self.items[i], draw[0], draw[1], <size_t>len(<tuple>guesses[i]))
            self.items[i].processed = len(draw) >= 4 and bool(draw[3])
        self.set_ids(guesses, n_guesses, model.c.config.vocab_size)
        self.set_masks([draw[4] if len(draw) == 5 else None for draw in given], model.c.config.vocab_size)

    def __dealloc__(self):
        free(self.items)
        free(self.ids)
        free(self.masks)

    cdef size_t set_item(self, Model model, fl_draw *item, Sampler sampler, size_t row, size_t n) except? 0:
        cdef size_t stride = fl_logits_stride(&model.c), rows = self.logits.rows(stride)
        if row >= rows or n >= rows - row:
            raise OptionError(f"draw: no row {row}, or no {n} after it, in {rows} rows of logits")
        if sampler is None or sampler.vocab_size != model.c.config.vocab_size:
            raise OptionError("draw: a sampler of another vocabulary, or none")
        self.samplers.append(sampler)
        item.sampler = sampler.c
        item.logits = <const float *>self.logits.data + row * stride
        item.n_guesses = n
        return n

    cdef int set_ids(self, list guesses, size_t n_guesses, size_t vocab_size) except -1:
        cdef size_t i, at = 0
        self.ids = <int32_t *>malloc((2 * n_guesses + self.count + 1) * sizeof(int32_t))
        if self.ids is NULL:
            raise MemoryError("draw: out of memory")
        for i in range(self.count):
            self.items[i].guesses = self.ids + at
            for guess in <tuple>guesses[i]:
                self.ids[at] = token_id(guess, vocab_size)
                if self.ids[at] < 0:
                    raise OptionError(f"draw: no token {guess} to guess in a vocabulary of {vocab_size}")
                at += 1
            self.items[i].tokens = self.ids + at
            at += self.items[i].n_guesses + 1
        return 0

    cdef int set_masks(self, list masks, size_t vocab_size) except -1:
        cdef size_t i, at = 0, n_bytes = (vocab_size + 31) // 32 * 4
        cdef bytes one
        for i in range(self.count):
            if masks[i] is not None:
                if len(masks[i]) != <Py_ssize_t>self.items[i].n_guesses + 1:
                    raise OptionError(f"draw: {len(masks[i])} masks of {self.items[i].n_guesses + 1} rows")
                self.bits.extend(masks[i])
        if not self.bits:
            return 0
        self.masks = <const uint32_t **>malloc(<size_t>len(self.bits) * sizeof(uint32_t *))
        if self.masks is NULL:
            raise MemoryError("draw: out of memory")
        for i in range(self.count):
            if masks[i] is None:
                continue
            self.items[i].masks = <const uint32_t *const *>self.masks + at
            for one in masks[i]:
                if <size_t>len(one) < n_bytes:
                    raise OptionError(f"draw: a mask of {len(one)} bytes, not {n_bytes}")
                self.masks[at] = <const uint32_t *><const char *>one  # as aligned as a bytes object is: to 8
                at += 1
        return 0

    cdef int take(self) except -1:
        cdef Sampler sampler
        for sampler in self.samplers:
            sampler.take()
            self.taken.append(sampler)
        return 0

    cdef list results(self):
        """For each draw the list of its tokens, or an exception."""
        cdef list out = [], tokens
        cdef fl_draw *item
        cdef size_t i, j
        for i in range(self.count):
            item = &self.items[i]
            if item.status != FL_OK:
                out.append(draw_error(item.status, item.processed))
                continue
            tokens = []
            for j in range(item.n_tokens):
                tokens.append(item.tokens[j])
            out.append(tokens)
        return out

    cdef void give(self) noexcept:
        """Marks the samplers that take() has taken as free again."""
        for sampler in self.taken:
            (<Sampler>sampler).busy = False
