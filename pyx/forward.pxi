# One forward: its spans and outputs as the C arrays that fl_forward takes, and its working memory.
from cpython.number cimport PyNumber_Index


@cython.internal
cdef class Scratch:
    """Working memory of one forward at a time. It grows to what the largest forward needs, and its Model keeps it."""
    cdef fl_scratch *c

    def __cinit__(self):
        check(fl_scratch_new(&self.c), "working memory")

    def __dealloc__(self):
        fl_scratch_free(self.c)


cdef inline int32_t token_id(token, size_t vocab_size) except? -1:
    """A token's id, or -1, which C refuses, if it is outside the vocabulary: it may not fit int32.

    Raises TypeError for what is no whole number, such as 1.0 or "1".
    """
    token = PyNumber_Index(token)
    return token if 0 <= token < vocab_size else -1


@cython.internal
cdef class Batch:
    """The spans of one forward and its outputs, as C arrays, and references to all that they point into.

    Two spans, of 3 tokens and of 1:

        spans  [ tokens, n = 3, pages, ... | tokens, n = 1, pages, ... ]       (count,)
                   |              |            |              |
                   |              the Sequence's own array    the other Sequence's
                   v                           v
        ids    [ 17 | 4 | 250                | 8 ]                             (n_tokens,)

    The constructor converts and counts the spans; take() makes the arrays and marks the sequences as busy; pointers()
    adds outputs; after fl_forward append() adds the new tokens to the sequences' lengths; give() is called in any case.
    """
    cdef Model model
    cdef list parts  # (Sequence, list of tokens, n_logits) for each span
    cdef list taken  # the sequences that take() has marked as busy
    cdef list buffers  # the Buffer objects that outputs point into
    cdef fl_span *spans
    cdef int32_t *ids
    cdef size_t count, n_tokens, n_logits
    cdef fl_outputs outputs

    def __cinit__(self, Model model, list spans):
        cdef size_t n, n_logits
        cdef list tokens
        self.model, self.parts, self.taken, self.buffers = model, [], [], []
        for sequence, given, last in list(spans):
            tokens, n_logits = list(given), last
            n = <size_t>len(tokens)
            if n_logits > n:
                raise OptionError(f"forward: logits after the last {n_logits:,} of {n:,} tokens")
            self.parts.append((<Sequence?>sequence, tokens, n_logits))
            self.n_tokens += n
            self.n_logits += n_logits
        self.count = <size_t>len(self.parts)

    def __dealloc__(self):
        free(self.spans)
        free(self.ids)
        free(<void *>self.outputs.hidden)
        free(<void *>self.outputs.attention)
        free(<void *>self.outputs.inputs)

    cdef int take(self, segments) except -1:
        """Takes each sequence, reserves pages for its new tokens, and fills `spans` and `ids`."""
        cdef size_t vocab_size = self.model.c.config.vocab_size, i, n, n_logits, at = 0
        cdef Sequence sequence
        cdef list tokens
        self.spans = <fl_span *>calloc(self.count + 1, sizeof(fl_span))
        self.ids = <int32_t *>malloc((self.n_tokens + 1) * sizeof(int32_t))
        if self.spans is NULL or self.ids is NULL:
            raise MemoryError("forward: out of memory")
        for i, (sequence, tokens, n_logits) in enumerate(self.parts):
            n = <size_t>len(tokens)
            sequence.take(self.model, "forward")
            self.taken.append(sequence)
            sequence.reserve(n)
            self.spans[i] = fl_span(self.ids + at, n, sequence.length, <void *const *const *>sequence.pages,
                                    sequence.n_pages, n_logits, segments.get(i, n))
            for token in tokens:
                self.ids[at] = token_id(token, vocab_size)
                at += 1
        return 0

    cdef object attention_floats(self):
        """Floats of one layer's attention probabilities, as a Python int: it cannot overflow."""
        cdef size_t i
        floats = 0
        for i in range(self.count):
            floats += int(self.spans[i].n) * int(self.spans[i].pos + self.spans[i].n)
        return floats * int(self.model.c.config.n_heads)

    cdef float **pointers(self, given, size_t count, floats) except NULL:
        """index -> Buffer as an array of `count` pointers, NULL where there is none; each has room for `floats` floats.

        Raises OptionError for an index past the end or a Buffer too small.
        """
        cdef float **out = <float **>calloc(count, sizeof(float *))
        cdef size_t index
        if out is NULL:
            raise MemoryError("forward: out of memory")
        try:
            for layer, buffer in list(given.items()):
                index = layer if 0 <= layer < count else SIZE_MAX
                if index >= count or (<Buffer?>buffer).nbytes // sizeof(float) < floats:
                    raise OptionError(f"forward: no layer {layer}, or no room for {floats:,} values")
                self.buffers.append(buffer)
                out[index] = <float *>(<Buffer>buffer).data
        except:
            free(out)
            raise
        return out

    cdef void append(self) noexcept:
        """After fl_forward: the new tokens are part of the sequences."""
        cdef size_t i
        for i in range(self.count):
            (<Sequence>self.taken[i]).length += self.spans[i].n

    cdef void give(self) noexcept:
        """Gives back the sequences that take() has taken."""
        for sequence in self.taken:
            (<Sequence>sequence).give()
