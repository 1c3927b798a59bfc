cdef class Model:
    """A config and its tensors, bound and checked; immutable.

    config: a fastllm.config.Config. tensors: name -> Matrix or Vector, by its canonical names; without "head" the
    embedding serves. Raises CheckpointError when one is missing or has the wrong shape. Where a forward is given more
    threads than are fastest just now, on busy cores, it takes fewer; with paced=False exactly as many, for tests.
    """
    cdef fl_model c
    cdef dict tensors
    cdef list idle  # Scratch objects that no forward uses now
    cdef list files  # MappedFile objects that matrices lie in

    def __cinit__(self, config, dict tensors not None, *, str kv_dtype="f16", isa=None, bint paced=True):
        cdef fl_model *m = &self.c
        cdef size_t i
        self.tensors = dict(tensors)
        self.idle = []
        owners = {id(owner): owner for owner in ((<Matrix>t).owner() for t in self.tensors.values() if isinstance(t, Matrix))}
        self.files = [owner for owner in owners.values() if isinstance(owner, MappedFile)]
        self.set_config(config)
        m.kernels = find_kernels(isa)
        m.kv_type = type_of(kv_dtype)
        if paced:
            check(fl_pace_new(&m.pace), "the pace of threads")
        m.layers = <fl_layer *>calloc(m.config.n_layers, sizeof(fl_layer))
        if m.layers is NULL:
            raise MemoryError("cannot allocate the list of layers")
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
            self.set_layer(config, i)
        check(fl_model_check(m), "model")

    cdef int set_config(self, config) except -1:
        cdef fl_config *c = &self.c.config
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
        return 0

    cdef int set_layer(self, config, size_t i) except -1:
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

    def __dealloc__(self):
        free(self.c.layers)
        fl_pace_free(self.c.pace)

    # What is not there is NULL; __init__ has looked for what must be.

    cdef fl_matrix matrix(self, str name) except *:
        cdef fl_matrix c = fl_matrix(NULL, FL_F32, 0, 0, NULL)
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
        return fl_kernels_name(self.c.kernels).decode()

    @property
    def kv_dtype(self):
        return TYPES[<int>self.c.kv_type]

    @property
    def logits_stride(self):
        """Floats from one row of logits to the next: the vocabulary rounded up to 16."""
        return fl_logits_stride(&self.c)

    @property
    def kv_page_bytes(self):
        """Bytes that 64 positions of one sequence take in the KV cache."""
        return fl_kv_page_bytes(&self.c)

    def check_files(self):
        """Raises CheckpointError when a mapped file of its weights has changed: before a text. Each forward looks too."""
        if self.files:
            fl_mapping_guard()
        self.look_at_files()

    cdef int look_at_files(self, bint glance=False) except -1:
        """glance: for a single token, which may take no longer than the system to answer: see fl_mapping_glance."""
        cdef MappedFile file
        for file in self.files:
            state = fl_mapping_glance(file.c) if glance else fl_mapping_state(file.c)
            file.expect_same(state, "since it was loaded: load it again")
        return 0

    def logits(self, size_t rows=1):
        """A Buffer for `rows` rows of logits."""
        cdef size_t row = fl_logits_stride(&self.c) * sizeof(float)
        if rows > SIZE_MAX // row:
            raise MemoryError(f"cannot allocate {rows:,} rows of logits")
        return Buffer(rows * row)

    def forward(self, list spans, Buffer logits=None, *, size_t threads=1, hidden=None, attention=None,
                inputs=None, segments=None):
        """Appends tokens to sequences and computes logits.

        spans: (sequence, tokens, n_logits) for each sequence, tokens any sequence of ids, logits for the last n_logits
        of them. They are written to `logits` in order, rows of logits_stride floats. Raises OptionError for an id
        outside the vocabulary and ContextError past the context; the sequences then stay as they were.

        hidden: layer -> Buffer for the stream of all tokens, f32 (tokens, dim): 0 is what enters the first layer, i
        what leaves the i-th, n_layers + 1 that after the final norm. attention: layer (from 0) -> Buffer for the
        probabilities, f32, for each span (n_heads, n, pos + n).
        inputs: 4 layer + i -> Buffer for what multiplies, of all tokens, f32: wq, wk and wv (i = 0); wo; w1 and w3; w2.
        segments: index of a span -> the index of its token from which on they are a second text (config.second_segment).
        """
        cdef fl_outputs outputs = fl_outputs(NULL, NULL, NULL, NULL)
        cdef size_t count, n, n_logits, total = 0, wanted = 0, at = 0, i
        cdef fl_span *c_spans = NULL
        cdef float **hidden_list = NULL
        cdef float **attention_list = NULL
        cdef float **inputs_list = NULL
        cdef int32_t *ids = NULL
        cdef Sequence sequence
        cdef list parts = [], words, taken = [], held = []
        for item, tokens, last in list(spans):
            words, n_logits = list(tokens), last
            n = <size_t>len(words)
            if n_logits > n:
                raise OptionError(f"forward: logits after the last {n_logits:,} of {n:,} tokens")
            parts.append((<Sequence?>item, words, n_logits))
            total += n
            wanted += n_logits
        if wanted and (logits is None or wanted > logits.nbytes // sizeof(float) // fl_logits_stride(&self.c)):
            raise OptionError(f"forward: no room for {wanted} rows of logits")
        count = <size_t>len(parts)
        maps = 0
        try:
            c_spans = <fl_span *>calloc(count + 1, sizeof(fl_span))
            ids = <int32_t *>malloc((total + 1) * sizeof(int32_t))
            if c_spans is NULL or ids is NULL:
                raise MemoryError("forward: out of memory")
            for i, (item, tokens, last) in enumerate(parts):
                sequence, words, n_logits = item, tokens, last
                n = <size_t>len(words)
                if sequence.cache.model is not self:
                    raise OptionError("forward: a sequence of another model")
                sequence.take()
                taken.append(sequence)
                sequence.reserve(sequence.length + n, self.c.config.max_seq)
                c_spans[i] = fl_span(ids + at, n, sequence.length, <void *const *>sequence.pages, sequence.n_pages,
                                     n_logits, (segments or {}).get(i, n))
                for token in words:
                    # Whatever does not fit int32 is no token either.
                    ids[at] = token if 0 <= token < self.c.config.vocab_size else -1
                    at += 1
                if attention:
                    maps += int(n) * int(sequence.length + n) * int(self.c.config.n_heads)
            outputs.logits = <float *>logits.data if wanted else NULL
            if hidden:
                outputs.hidden = hidden_list = self.buffers(hidden, self.c.config.n_layers + 2,
                                                            int(total) * self.c.config.dim, held)
            if attention:
                outputs.attention = attention_list = self.buffers(attention, self.c.config.n_layers, maps, held)
            if inputs:
                widest = max(self.c.config.dim, self.c.config.hidden_dim, self.c.config.n_heads * self.c.config.head_dim)
                outputs.inputs = inputs_list = self.buffers(inputs, 4 * self.c.config.n_layers, int(total) * widest, held)
            self.run(c_spans, count, threads, &outputs)
            self.look_at_files()
            for i, item in enumerate(taken):
                (<Sequence>item).length += c_spans[i].n
        finally:
            for item in taken:
                (<Sequence>item).busy = False
            free(c_spans)
            free(ids)
            free(hidden_list)
            free(attention_list)
            free(inputs_list)

    def broken_layer(self, Sequence sequence not None, token, *, size_t threads=1):
        """The first layer (see hidden of forward) whose output for one more token is not finite; None where all are."""
        hidden = {i: Buffer(self.c.config.dim * sizeof(float)) for i in range(self.c.config.n_layers + 2)}
        self.forward([(sequence, [token], 0)], threads=threads, hidden=hidden)
        for layer, stream in hidden.items():
            if not fl_finite(<const float *>(<Buffer>stream).data, self.c.config.dim):
                return layer
        return None

    def step(self, Sequence sequence not None, token, Sampler sampler not None, Buffer logits not None, *,
             size_t threads=1):
        """Appends one token to a sequence and draws the next: forward and Sampler.draw at once, for one text alone."""
        cdef fl_outputs outputs = fl_outputs(<float *>logits.data, NULL, NULL, NULL)
        cdef int32_t id = token if 0 <= token < self.c.config.vocab_size else -1
        cdef fl_status status
        cdef fl_span span
        if logits.nbytes < fl_logits_stride(&self.c) * sizeof(float) or sampler.vocab_size != self.c.config.vocab_size:
            raise OptionError("step: no room for logits, or a sampler of another vocabulary")
        if sequence.cache.model is not self:
            raise OptionError("step: a sequence of another model")
        sequence.take()
        try:
            sampler.take()
            try:
                sequence.reserve(sequence.length + 1, self.c.config.max_seq)
                span = fl_span(&id, 1, sequence.length, <void *const *>sequence.pages, sequence.n_pages, 1, 1)
                self.run(&span, 1, threads, &outputs)
                self.look_at_files(glance=True)
                sequence.length += 1
                return sampler.next(outputs.logits)
            finally:
                sampler.busy = False
        finally:
            sequence.busy = False

    cdef int run(self, const fl_span *spans, size_t count, size_t threads, const fl_outputs *outputs) except -1:
        """fl_forward, when there are cores for it."""
        cdef Scratch scratch
        cdef fl_status status
        taken = take_cores(threads)
        try:
            scratch = self.idle.pop() if self.idle else Scratch()
            with nogil:
                status = fl_forward(&self.c, scratch.c, spans, count, threads, outputs)
            self.idle.append(scratch)
        finally:
            give_cores(taken)
        return check(status, "forward")

    cdef float **buffers(self, given, size_t count, floats, list held) except NULL:
        """A list of `count` pointers to the Buffers in a dict, each with room for so many floats; `held` keeps them."""
        cdef float **out = <float **>calloc(count, sizeof(float *))
        cdef size_t index
        if out is NULL:
            raise MemoryError("forward: out of memory")
        try:
            for layer, buffer in list(given.items()):
                index = layer if 0 <= layer < count else SIZE_MAX
                if index >= count or (<Buffer?>buffer).nbytes // sizeof(float) < floats:
                    raise OptionError(f"forward: no layer {layer}, or no room for {floats:,} values")
                held.append(buffer)
                out[index] = <float *>(<Buffer>buffer).data
        except:
            free(out)
            raise
        return out
