"""A model ready to use: load, generate, logits, tokenize."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from fastllm import _core, store
from fastllm.engine import Engine, Generation
from fastllm.errors import CheckpointError, ContextError, OptionError, TokenizerError
from fastllm.families import Recipe, recipe
from fastllm.formats import Tensor, map_file, open_checkpoint
from fastllm.machine import check_threads
from fastllm.sampling import DEFAULTS, Sampling
from fastllm.tokenizer import Tokenizer, decode, find, from_blob, read

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPES = ("f32", "f16", "bf16", "q8")


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> LLM:
    """Loads a checkpoint.

    dtype: f32, f16, bf16 or q8 converts the weights; None keeps what the file has. threads: None takes as many as the
    machine gives this process. context: positions a text may have, at most what the model was made for (None).
    tokenizer: its file; None looks beside the checkpoint and in the current folder. A checkpoint for which none is
    found loads all the same: token ids work, text raises TokenizerError.

    Raises CheckpointError, TokenizerError (a tokenizer that was named does not fit), OptionError.
    """
    path = Path(path)
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    count = check_threads(threads)
    data = map_file(path)
    if store.is_store(data):
        stored = store.load(path, data)
        _check_stored_dtype(path, stored, dtype)
    else:
        checkpoint = open_checkpoint(path, data)
        try:
            stored = assemble(recipe(checkpoint), dtype=dtype, threads=count)
        except CheckpointError as error:
            raise CheckpointError(f"{path} cannot be used: {error}") from None
    words: Tokenizer | TokenizerError
    vocab_size = stored.config.vocab_size
    if tokenizer is not None:
        words = read(Path(tokenizer), vocab_size)
    elif stored.tokenizer is not None:
        words = from_blob(*stored.tokenizer)
    else:
        try:
            words = find(path, vocab_size)
        except TokenizerError as error:
            words = error
    return LLM(stored, words, threads=count, context=context, path=path)


def assemble(plan: Recipe, *, dtype: str | None, threads: int) -> store.Stored:
    """Packs a recipe's weights, tensor by tensor, into one stretch of memory in the order a token reads them."""
    tensors: dict[str, _core.Matrix | _core.Vector] = {}
    shapes = {name: shape for name, shape in plan.config.matrices() if name in plan.matrices}
    dtypes = {name: dtype or _kept_dtype(plan.matrices[name].tensor) for name in shapes}
    sizes = {name: _core.matrix_bytes(dtypes[name], *shape) for name, shape in shapes.items()}
    memory, at = memoryview(_core.Buffer(sum(sizes.values()))), 0
    for name, (d, n) in shapes.items():
        tensor, rows = plan.matrices[name].tensor, plan.matrices[name].rows
        if tensor.shape != (d, n):
            raise CheckpointError(f"{name} has the shape {tensor.shape}, the config needs {(d, n)}")
        tensors[name] = _core.pack(
            dtypes[name],
            d,
            n,
            tensor.dtype,
            tensor.data,
            scales=tensor.scales,
            group=tensor.group,
            rows=rows,
            out=memory[at : at + sizes[name]],
            threads=threads,
            name=name,
        )
        at += sizes[name]
    for name, values in plan.vectors.items():
        tensors[name] = _core.Vector(values)
    return store.Stored(
        config=plan.config,
        tensors=tensors,
        bos=plan.bos,
        stop=plan.stop,
        chat_stop=plan.chat_stop,
        tokenizer=None,
    )


def _kept_dtype(tensor: Tensor) -> str:
    """The type that holds a tensor's values exactly.

    int8 with float scales stays as it is where its groups are whole groups of ours; otherwise f32 holds the same
    weights.
    """
    if tensor.dtype == "q8_f32" and (tensor.group % _core.GROUP or tensor.shape[-1] % tensor.group):
        return "f32"
    return tensor.dtype


def _check_stored_dtype(path: Path, stored: store.Stored, dtype: str | None) -> None:
    have = {t.dtype for t in stored.tensors.values() if isinstance(t, _core.Matrix)}
    if dtype is not None and have != {dtype}:
        raise OptionError(
            f"{path} is already converted to {', '.join(sorted(have))}: "
            f"for {dtype}, load the checkpoint it was made from"
        )


class TextStream:
    """The new text, piece by piece, as it is written; ends at a stop string, which is left out.

    generation: the tokens and times behind it; finish_reason: "stop" or "length" once it has ended.
    """

    def __init__(self, generation: Generation, tokenizer: Tokenizer, stop: Sequence[str], bos: int | None) -> None:
        self.generation = generation
        self.finish_reason: str | None = None
        previous = generation.prompt[-1] if generation.prompt else None
        self._decoder = tokenizer.stream(previous, bos=bos)
        self._stop = stop
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the text early."""
        self._pieces.close()

    def _run(self) -> Generator[str, None, None]:
        held = ""
        for token in self.generation:
            held += self._decoder.push(token)
            cut = self._found(held)
            if cut is not None:
                self.finish_reason = "stop"
                if held[:cut]:
                    yield held[:cut]
                return
            keep = self._could_begin(held)
            if len(held) > keep:
                ready, held = held[: len(held) - keep], held[len(held) - keep :]
                yield ready
        held += self._decoder.flush()
        cut = self._found(held)
        self.finish_reason = self.generation.finish_reason if cut is None else "stop"
        if held[:cut]:
            yield held[:cut]

    def _found(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((i for i in (text.find(s) for s in self._stop) if i >= 0), default=None)

    def _could_begin(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        most = max((len(s) - 1 for s in self._stop), default=0)
        for n in range(min(most, len(text)), 0, -1):
            if any(s.startswith(text[-n:]) for s in self._stop):
                return n
        return 0


class LLM:
    """A model and its tokenizer. Immutable: several threads may use one at once."""

    def __init__(
        self,
        stored: store.Stored,
        tokenizer: Tokenizer | TokenizerError,
        *,
        threads: int,
        context: int | None,
        path: Path,
    ) -> None:
        self.config, self.bos = stored.config, stored.bos
        self.stop, self.chat_stop = stored.stop, stored.chat_stop
        self.path = path
        longest = stored.config.max_seq
        if context is not None and not 1 <= context <= longest:
            raise OptionError(f"the context must be between 1 and the model's {longest:,}, not {context!r}")
        self.context = context or longest
        matrices = {k: t for k, t in stored.tensors.items() if isinstance(t, _core.Matrix)}
        self.dtypes = sorted({t.dtype for t in matrices.values()})
        # f32 weights come with f32 keys and values, so that nothing is rounded that the reference does not round.
        kv_dtype = "f32" if "f32" in self.dtypes else "f16"
        isa = os.environ.get("FASTLLM_ISA")
        self._isa = isa
        self._model = _core.Model(stored.config, dict(stored.tensors), kv_dtype=kv_dtype, isa=isa)
        layers = sum(t.nbytes for name, t in matrices.items() if name.startswith("layers."))
        self._engine = Engine(self._model, threads, layers // stored.config.n_layers)
        self._tokenizer = tokenizer
        self.file_bytes = sum(t.nbytes for t in stored.tensors.values())
        # What a token reads: all but an embedding that is not also the head, of which it reads one row.
        untied = matrices["embed"].nbytes if "head" in matrices else 0
        self.bytes_per_token = self.file_bytes - untied

    @property
    def threads(self) -> int:
        return self._engine.threads

    @property
    def isa(self) -> str:
        """The instruction set its kernels use."""
        return self._model.isa

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError, which says where one was looked for, when the model has none."""
        if isinstance(self._tokenizer, TokenizerError):
            raise TokenizerError(str(self._tokenizer))
        return self._tokenizer

    def tokenize(self, text: str, *, bos: bool = True) -> list[int]:
        """The token ids of a text, with the model's BOS in front unless bos=False."""
        return self.tokenizer.encode(text, bos=self.bos if bos else None)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        self._check_tokens(tokens)
        return decode(self.tokenizer, tokens, bos=self.bos)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        size = self.config.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise OptionError(f"{token} is no token id: the vocabulary has {size:,}")

    def start(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int | None,
        seed: int | None,
        stop: Sequence[int] | None = None,
    ) -> Generation:
        """A Generation of token ids: what generate runs on, without a tokenizer where the prompt is ids.

        stop: token ids that end it; None is the model's own. max_tokens: None is to the end of the context.
        """
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        if not tokens:
            raise OptionError("the prompt is empty: it needs a token to begin with")
        self._check_tokens(tokens)
        if len(tokens) > self.context:
            raise ContextError(f"the prompt has {len(tokens):,} tokens, the context {self.context:,}")
        # The last new token need not be run through the model: one more than there are positions left.
        room = self.context - len(tokens) + 1
        if max_tokens is not None and (not isinstance(max_tokens, int) or max_tokens < 0):
            raise OptionError(f"max_tokens must be 0 or more, not {max_tokens!r}")
        count = room if max_tokens is None else min(room, max_tokens)
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little")
        elif not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise OptionError(f"seed must be between 0 and 2^64 - 1, not {seed!r}")
        sampler = _core.Sampler(self.config.vocab_size, sampling, seed=seed, bias=sampling.logit_bias, isa=self._isa)
        return Generation(self._engine, tokens, sampler, max_tokens=count, stop=self.stop if stop is None else stop)

    @overload
    def generate(self, prompt: str | Sequence[int], *, stream: Literal[True], **options: Any) -> TextStream: ...
    @overload
    def generate(self, prompt: str | Sequence[int], *, stream: Literal[False] = False, **options: Any) -> str: ...
    def generate(  # type: ignore[misc]  # the overloads name only what decides the type of the result
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 256,
        temperature: float = DEFAULTS.temperature,
        top_p: float = DEFAULTS.top_p,
        top_k: int = DEFAULTS.top_k,
        min_p: float = DEFAULTS.min_p,
        typical_p: float = DEFAULTS.typical_p,
        repetition_penalty: float = DEFAULTS.repetition_penalty,
        presence_penalty: float = DEFAULTS.presence_penalty,
        frequency_penalty: float = DEFAULTS.frequency_penalty,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stream: bool = False,
    ) -> str | TextStream | list[int] | Iterator[int]:
        """Continues a prompt, text or token ids, and returns the new text; with stream, an iterator of its pieces.

        max_tokens: at most so many new tokens; None is to the end of the context. stop: strings that end the text,
        themselves left out. seed: the same seed gives the same text, on any machine; None takes a new one. The others
        are Sampling's. A model without a tokenizer takes ids and gives ids: a list, or with stream their iterator.
        Raises OptionError, ContextError, TokenizerError (text where there is no tokenizer).
        """
        stops = [stop] if isinstance(stop, str) else list(stop)
        if not all(isinstance(s, str) and s for s in stops):
            raise OptionError("a stop string must not be empty")
        sampling = Sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            typical_p=typical_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias or {},
        )
        generation = self.start(prompt, sampling, max_tokens=max_tokens, seed=seed)
        if isinstance(self._tokenizer, TokenizerError) and not stops:
            return iter(generation) if stream else list(generation)
        pieces = TextStream(generation, self.tokenizer, stops, self.bos)
        return pieces if stream else "".join(pieces)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits after every token: float32 [T, vocabulary]. Raises OptionError, ContextError."""
        import numpy

        ids = [int(token) for token in tokens]
        if not ids:
            raise OptionError("logits of no tokens")
        if len(ids) > self.context:
            raise ContextError(f"{len(ids):,} tokens are more than the context of {self.context:,}")
        out = numpy.empty((len(ids), self.config.vocab_size), numpy.float32)
        at = 0
        for count, rows in self._engine.logits(ids):
            block = numpy.frombuffer(memoryview(rows), numpy.float32).reshape(count, -1)
            out[at : at + count] = block[:, : self.config.vocab_size]
            at += count
        return out
