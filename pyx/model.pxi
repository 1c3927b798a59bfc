# A model: a config and its tensors bound as the fl_model that fl_forward reads, and the calls that run forwards of it.
from fastllm.config import ACTS, NORMS, QK_NORMS


cdef class Model:
    """A config and its tensors, checked against each other. Immutable; any number of threads may run forwards of it.

    config: a fastllm.config.Config. tensors: canonical name -> Matrix or Vector (see Config.matrices and vectors), kept
    alive; the dict is copied. Without "head", the embedding is the head too. kv_dtype: how keys and values are stored,
    f32, f16 or q8. isa: the instruction set, None for the best. paced: a forward may run on fewer threads than it is
    given, where other programs keep cores busy and fewer are faster; without, on exactly as many (for tests).

    Raises CheckpointError if a tensor is missing or has the wrong shape, or the dimensions cannot be a model's;
    OptionError for an unknown kv_dtype or isa; MemoryError.
    """
    cdef fl_model c
    cdef fl_pace *draw_pace  # of draws; forwards have c's
    cdef dict tensors  # name -> Matrix or Vector: the owners of what c's pointers point into
    cdef list files  # the MappedFile objects that matrices lie in, each once
    cdef list idle  # Scratch objects that no forward is using; as many were made as forwards ran at once
    cdef list idle_draws  # the same of DrawScratch objects and calls that draw

    def __cinit__(self, config, dict tensors not None, *, str kv_dtype="f16", isa=None, bint paced=True):
        self.tensors = dict(tensors)
        self.files = self.mapped_files()
        self.idle, self.idle_draws = [], []
        set_config(&self.c.config, config)
        self.c.kernels = find_kernels(isa)
        self.c.kv_type = type_of(kv_dtype)
        if paced:
            check(fl_pace_new(&self.c.pace), "the pace of threads")
            check(fl_pace_new(&self.draw_pace), "the pace of threads")
        self.c.layers = <fl_layer *>calloc(self.c.config.n_layers, sizeof(fl_layer))
        self.c.kinds = <fl_kind *>calloc(self.c.config.n_layers, sizeof(fl_kind))
        if self.c.layers is NULL or self.c.kinds is NULL:
            raise MemoryError("cannot allocate the list of layers")
        self.expect_tensors(config)
        self.bind(config)
        check(fl_model_check(&self.c), "model")

    def __dealloc__(self):
        free(self.c.layers)
        free(self.c.kinds)
        fl_pace_free(self.c.pace)
        fl_pace_free(self.draw_pace)

    cdef list mapped_files(self):
        cdef dict owners = {}
        for tensor in self.tensors.values():
            if isinstance(tensor, Matrix):
                owner = (<Matrix>tensor).owner()
                owners[id(owner)] = owner
        return [owner for owner in owners.values() if isinstance(owner, MappedFile)]

    cdef int expect_tensors(self, config) except -1:
        """Raises CheckpointError for the first tensor that the config asks for and that is missing or misshapen."""
        for name, shape, required in config.matrices():
            tensor = self.tensors.get(name)
            if tensor is None and not required:
                continue
            if not isinstance(tensor, Matrix) or tensor.shape != shape:
                raise CheckpointError(f"the model has no matrix {name} of {' x '.join(map(str, shape))}")
        for name, n, required in config.vectors():
            tensor = self.tensors.get(name)
            if tensor is None and not required:
                continue
            if not isinstance(tensor, Vector) or tensor.n != n:
                raise CheckpointError(f"the model has no vector {name} of {n} values")
        return 0

    cdef int bind(self, config) except -1:
        """Points c at the tensors, by their canonical names."""
        cdef fl_model *m = &self.c
        cdef size_t i
        m.embed = self.matrix("embed")
        m.positions = self.matrix("positions")
        m.embed_norm = self.norm("embed_norm")
        m.final_norm = self.norm("final_norm")
        if config.head:
            m.head_dense = self.matrix("head.dense")
            m.head_norm = self.norm("head.norm")
            m.head = self.matrix("head" if "head" in self.tensors else "embed")
            m.head.bias = self.vector("head.bias")
        m.rope_freqs[0] = self.vector("rope.freqs")
        m.rope_freqs[1] = self.vector("rope.freqs_local")
        for i in range(m.config.n_layers):
            self.bind_layer(config, i)
        return 0

    cdef int bind_layer(self, config, size_t i) except -1:
        cdef fl_layer *layer = &self.c.layers[i]
        prefix = f"layers.{i}."
        layer.attn_norm = self.norm(prefix + "attn_norm")
        layer.wq = self.matrix(prefix + "attn.wq")
        layer.wk = self.matrix(prefix + "attn.wk")
        layer.wv = self.matrix(prefix + "attn.wv")
        layer.q_norm = self.vector(prefix + "attn.q_norm")
        layer.k_norm = self.vector(prefix + "attn.k_norm")
        layer.wo = self.matrix(prefix + "attn.wo")
        layer.post_attn_norm = self.norm(prefix + "post_attn_norm")
        layer.ffn_norm = self.norm(prefix + "ffn_norm")
        layer.w1 = self.matrix(prefix + "ffn.w1")
        layer.w3 = self.matrix(prefix + "ffn.w3")
        layer.w2 = self.matrix(prefix + "ffn.w2")
        layer.post_ffn_norm = self.norm(prefix + "post_ffn_norm")
        layer.router = self.matrix(prefix + "router")
        layer.e1 = self.matrix(prefix + "experts.w1")
        layer.e3 = self.matrix(prefix + "experts.w3")
        layer.e2 = self.matrix(prefix + "experts.w2")
        layer.shared_gate = self.matrix(prefix + "ffn.gate")
        layer.window = config.layer_window(i)
        layer.rope = config.layer_rope(i)
        return 0

    # A tensor that a model does not have is NULL to C; expect_tensors has found those that it must have.

    cdef fl_matrix matrix(self, str name) except *:
        cdef fl_matrix c
        memset(&c, 0, sizeof(c))
        tensor = self.tensors.get(name)
        if tensor is not None:
            c = (<Matrix?>tensor).c
            c.bias = self.vector(name + ".bias")
        return c

    cdef const float *vector(self, str name) except? NULL:
        tensor = self.tensors.get(name)
        if tensor is None:
            return NULL
        return <const float *>(<Vector?>tensor).buffer.data

    cdef fl_norm norm(self, str name) except *:
        return fl_norm(self.vector(name), self.vector(name + ".bias"))

    @property
    def isa(self):
        """The name of the instruction set that its forwards use."""
        return fl_kernels_name(self.c.kernels).decode()

    @property
    def kv_dtype(self):
        """How keys and values are stored, one of TYPES."""
        return TYPES[<int>self.c.kv_type]

    @property
    def logits_stride(self):
        """Floats from one row of logits to the next: the vocabulary rounded up to 16."""
        return fl_logits_stride(&self.c)

    def logits(self, size_t rows=1):
        """A new Buffer for `rows` rows of logits, f32 (rows, logits_stride). Raises MemoryError."""
        cdef size_t row = fl_logits_stride(&self.c) * sizeof(float)
        if rows > SIZE_MAX // row:
            raise MemoryError(f"cannot allocate {rows:,} rows of logits")
        return Buffer(rows * row)

    def stream(self, size_t rows):  # a new Buffer for `rows` tokens of the stream, f32 (rows, dim)
        return Buffer(int(rows) * self.c.config.dim * sizeof(float))

    def check_files(self):
        """Raises CheckpointError if a mapped file of its weights has changed since it was loaded.

        To be called before each text: it also puts our handler of SIGBUS in front again, if another library has
        installed its own since. Every forward checks the files too, after it has computed.
        """
        if self.files:
            fl_mapping_guard()
        self.expect_same_files()

    cdef int expect_same_files(self, bint glance=False) except -1:
        """Raises CheckpointError if a mapped file has changed. glance: without a system call most times, see C's
        fl_mapping_glance; for a step, which may be shorter than the call."""
        cdef MappedFile file
        for file in self.files:
            state = fl_mapping_glance(file.c) if glance else fl_mapping_state(file.c)
            file.expect_same(state, "since it was loaded: load it again")
        return 0

    def forward(self, list spans, Buffer logits=None, *, size_t threads=1, hidden=None, attention=None,
                inputs=None, segments=None, Cancel cancel=None):
        """Appends the tokens of each span to its sequence and writes the outputs that are asked for, all f32.

        Returns True, or False if `cancel` was set, before or meanwhile: then no sequence's length has changed, and what
        outputs hold means nothing. In the main thread handlers of signals run meanwhile: Ctrl-C raises
        KeyboardInterrupt, and no length has changed either. So it is with every exception.

        spans: (sequence, tokens, n_logits) for each sequence. tokens: an iterable of n ids, at least one. n_logits:
        logits are computed for the last so many of them. T is the number of tokens of all spans.
        logits: a Buffer (rows, logits_stride) for the logits of all spans, in order.
        hidden: i -> Buffer (T, dim) for the stream: 0 is the input of the first layer, i the output of the i-th layer,
        n_layers + 1 the output of the final norm.
        attention: layer, from 0 -> Buffer for its probabilities: for each span (n_heads, n, length before + n).
        inputs: 4 * layer + i -> Buffer (T, n) for what is multiplied by wq, wk and wv (i = 0), wo (1), w1 and w3 (2),
        w2 (3). It must have room for the widest of these. Those of experts are not written.
        segments: index of a span -> index of its token from which on they are a second text (Config.second_segment).

        Raises OptionError for an id outside the vocabulary, a sequence that is in use or another model's, or too small
        a Buffer; ContextError if a span is empty or exceeds the context; CacheFullError, before anything is computed,
        if new pages would exceed the limit of the KVCache; CheckpointError if a mapped file has changed; MemoryError.
        """
        cdef fl_config *c = &self.c.config
        cdef Batch batch = Batch(self, spans)
        if batch.n_logits and (logits is None or batch.n_logits > logits.rows(fl_logits_stride(&self.c))):
            raise OptionError(f"forward: no room for {batch.n_logits} rows of logits")
        try:
            batch.take(segments or {})
            if batch.n_logits:
                batch.outputs.logits = <float *>logits.data
            if hidden:
                batch.outputs.hidden = batch.pointers(hidden, c.n_layers + 2, int(batch.n_tokens) * c.dim)
            if attention:
                batch.outputs.attention = batch.pointers(attention, c.n_layers, batch.attention_floats())
            if inputs:
                widest = max(c.dim, c.hidden_dim, c.n_heads * c.head_dim)
                batch.outputs.inputs = batch.pointers(inputs, 4 * c.n_layers, int(batch.n_tokens) * widest)
            if not self.run(batch.spans, batch.count, threads, cancel, &batch.outputs):
                return False
            self.expect_same_files()
            batch.append()
        finally:
            batch.give()
        return True

    def step(self, Sequence sequence not None, token, Sampler sampler not None, Buffer logits not None, *,
             size_t threads=1):
        """Appends one token to a sequence and returns the next one, drawn from the logits that follow it.

        The same as forward and draw, in one call, for a text that is written alone: the sampler accepts the new token.
        logits: a Buffer for one row, which is written. Raises what forward and Sampler.draw raise; if the draw fails,
        the token has been appended.
        """
        cdef fl_outputs outputs = fl_outputs(<float *>logits.data, NULL, NULL, NULL)
        cdef int32_t id = token_id(token, self.c.config.vocab_size)
        cdef fl_span span
        cdef fl_draw draw
        if logits.rows(fl_logits_stride(&self.c)) < 1 or sampler.vocab_size != self.c.config.vocab_size:
            raise OptionError("step: no room for logits, or a sampler of another vocabulary")
        sequence.take(self, "step")
        try:
            sampler.take()
            try:
                sequence.reserve(1)
                span = fl_span(&id, 1, sequence.length, <void *const *const *>sequence.pages, sequence.n_pages, 1, 1)
                self.run(&span, 1, threads, None, &outputs)
                self.expect_same_files(glance=True)
                sequence.length += 1
                draw = fl_draw(sampler.c, outputs.logits, False, NULL, NULL, 0, &id, 0, FL_OK)
                self.run_draws(&draw, 1, 1)
                if draw.status != FL_OK:
                    raise draw_error(draw.status, False)
                return id
            finally:
                sampler.busy = False
        finally:
            sequence.give()

    def draw(self, draws, Buffer logits not None, *, size_t threads=1):
        """Draws the next tokens of several texts from the logits that a forward wrote, on up to `threads` threads.

        draws: a (sampler, row, guesses) for each text. Draws from row, row + 1, ... as long as each token equals its
        guess: 1 to len(guesses) + 1 tokens. The sampler accepts them as generated. The tokens are those that
        Sampler.draw gives one by one, whatever `threads` is.
        A fourth element, if true: the rows have been processed, that is, changed by writing to memoryview(logits). Then
        -infinity forbids a token. Whoever processes a row must check before that it is finite. A fifth is None, or the
        rows' masks: len(guesses) + 1 bytes objects, in which bit i of the little-endian number allows token i.

        Returns for each text the list of its tokens, or the exception that its first row's draw ends in: NumericError
        if a logit is not finite (NaN or +infinity, of a changed row); OptionError if biases and penalties leave no
        token; MemoryError. Its sampler is then as it was. If a later row's draw fails, the tokens before it are
        returned, which the guesses equal, and the failure comes again with the row after them.

        Raises OptionError, before anything is drawn, for a row that there is not, a guess outside the vocabulary, or a
        sampler of another vocabulary, in use, or in two draws; MemoryError.
        """
        cdef Draws batch = Draws(self, draws, logits)
        try:
            batch.take()
            self.run_draws(batch.items, batch.count, threads)
            return batch.results()
        finally:
            batch.give()

    def logprobs(self, Buffer logits not None, size_t row, token, size_t top=0):
        """The natural logarithms of probabilities, as a forward's logits give them: no sampling option has a part.

        Returns that of the token, and a list of (id, logarithm) of the `top` likeliest tokens, the likeliest first,
        lowest id first among equals. They are off by some units in the last place of a float, and are the same to the
        bit on every instruction set. Raises OptionError if there is no such row or token, or if `top` exceeds the
        vocabulary; NumericError if a logit is not finite; MemoryError.
        """
        cdef size_t vocab_size = self.c.config.vocab_size, stride = fl_logits_stride(&self.c), i
        cdef int32_t id = token_id(token, vocab_size)
        cdef DrawScratch scratch
        cdef fl_status status
        if row >= logits.rows(stride):
            raise OptionError(f"logprobs: no row {row} of logits")
        if id < 0 or top > vocab_size:
            raise OptionError(f"logprobs: no token {token}, or no {top:,} tokens, in a vocabulary of {vocab_size:,}")
        cdef const float *x = <const float *>logits.data + row * stride
        cdef int32_t *tokens = <int32_t *>malloc((top + 1) * sizeof(int32_t))
        cdef double *out = <double *>malloc((top + 1) * sizeof(double))
        try:
            if tokens is NULL or out is NULL:
                raise MemoryError("logprobs: out of memory")
            tokens[0] = id
            scratch = self.idle_draws.pop() if self.idle_draws else DrawScratch()
            with nogil:
                status = fl_logprobs(scratch.c, self.c.kernels, x, vocab_size, top, tokens, out)
            self.idle_draws.append(scratch)
            if status != FL_OK:
                raise draw_error(status, False)
            return out[0], [(tokens[i + 1], out[i + 1]) for i in range(top)]
        finally:
            free(tokens)
            free(out)

    cdef int run_draws(self, fl_draw *items, size_t count, size_t threads) except -1:
        """Runs fl_draw_all with scratch of its own, on as many threads as pay off, as soon as there are cores."""
        cdef DrawScratch scratch
        cdef size_t team = fl_draw_threads(items, count, threads)
        taken = take_cores(team)
        try:
            scratch = self.idle_draws.pop() if self.idle_draws else DrawScratch()
            with nogil:
                fl_draw_all(scratch.c, self.c.kernels, items, count, team, self.draw_pace)
            self.idle_draws.append(scratch)
        finally:
            give_cores(taken)
        return 0

    def broken_layer(self, Sequence sequence not None, token, *, size_t threads=1):
        """Appends one token and returns the first i whose stream is not finite, see forward's hidden; None: all are.

        It tells a user where a model's numbers overflow. Raises what forward raises.
        """
        hidden = {i: Buffer(self.c.config.dim * sizeof(float)) for i in range(self.c.config.n_layers + 2)}
        self.forward([(sequence, [token], 0)], threads=threads, hidden=hidden)
        for i, stream in hidden.items():
            if not fl_finite(<const float *>(<Buffer>stream).data, self.c.config.dim):
                return i
        return None

    cdef int run(self, const fl_span *spans, size_t count, size_t threads, Cancel cancel,
                 const fl_outputs *outputs) except -1:
        """Runs fl_forward with scratch of its own, as soon as there are cores for its team. Returns 0 if it was
        cancelled, else 1."""
        cdef Watch watch = Watch(cancel)
        cdef Scratch scratch
        cdef fl_status status
        taken = take_cores(threads)
        try:
            scratch = self.idle.pop() if self.idle else Scratch()
            with nogil:
                status = fl_forward(&self.c, scratch.c, spans, count, threads, &watch.c, outputs)
            self.idle.append(scratch)
        finally:
            give_cores(taken)
        if watch.error is not None:
            raise watch.error
        if status == FL_CANCELLED:
            return 0
        check(status, "forward")
        return 1


cdef int set_config(fl_config *c, config) except -1:
    """Copies a fastllm.config.Config, whose fields have the same names."""
    c.dim = config.dim
    c.hidden_dim = config.hidden_dim
    c.head_dim = config.head_dim
    c.n_layers = config.n_layers
    c.n_heads = config.n_heads
    c.n_kv_heads = config.n_kv_heads
    c.vocab_size = config.vocab_size
    c.max_seq = config.max_seq
    c.rotary_dim = config.rotary_dim
    c.norm_eps = config.norm_eps
    c.attn_scale = config.attn_scale
    c.norm = <fl_norm_kind><int>NORMS.index(config.norm)
    c.act = <fl_act><int>ACTS.index(config.act)
    c.qk_norm = <fl_qk_norm><int>QK_NORMS.index(config.qk_norm)
    c.causal = config.causal
    c.parallel = config.parallel
    c.norm_after = config.norm_after
    c.rope_scale = config.rope_scale
    c.attn_softcap = config.attn_softcap
    c.logit_scale = config.logit_scale
    c.logit_softcap = config.logit_softcap
    c.embed_scale = config.embed_scale
    c.residual_scale = config.residual_scale
    c.n_experts = config.n_experts
    c.n_experts_used = config.n_experts_used
    c.expert_dim = config.expert_dim
    c.moe_renormalize = config.moe_renormalize
    c.positions = config.positions
    c.second_segment = config.second_segment
    c.mask_token = config.mask_token
    c.pad_token = config.pad_token
    c.precise = config.precise
    return 0
