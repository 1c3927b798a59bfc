"""A model ready to use: load, generate, logits, tokenize."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from fastllm import _core
from fastllm.classify import Labels
from fastllm.config import Config
from fastllm.engine import Batch, Engine, Generation
from fastllm.errors import CheckpointError, ContextError, NumericError, OptionError, TokenizerError, about
from fastllm.files import reading
from fastllm.heads import Embedding, normalized
from fastllm.machine import check_threads, read_bandwidth
from fastllm.sampling import DEFAULTS, Sampling
from fastllm.speculative import DraftModel, PromptLookup, Proposer
from fastllm.texts import check_layer, token_ids
from fastllm.tokenizer import Tokenizer
from fastllm.tokenizer.frame import stop_tokens
from fastllm.weights import store
from fastllm.weights.source import (
    Adapters,
    check_not_converted,
    find_adapters,
    find_source,
    open_source,
    stored_tokenizer,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastllm.weights.packing import Progress

KV_DTYPES = ("f32", "f16", "q8")


@_core.standard_floats
def load(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    kv: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    lora: Adapters | None = None,
    progress: Progress | None = None,
) -> LLM:
    """Loads a checkpoint: a file, a folder, or a name of the Hugging Face hub, owner/name or owner/name/file.

    dtype: f32, f16, bf16, q8 or q4 converts the weights; None keeps what the file has, and makes q8 of weights of a few
    bits: GGUF's, and those of GPTQ, AWQ, MLX, compressed-tensors and FP8. kv: f32, f16 or q8 keys and values; None is
    f32 beside f32 weights, else f16. q8, int8 with a scale for every 32 channels, takes 9/16 of f16's memory. threads:
    None takes OMP_NUM_THREADS, or as many as the machine gives this process; fewer run where that is faster, as beside
    a busy program. context: positions a text may have, at most what the model was made for (None); a model with two
    sets of rotary frequencies (LongRoPE) has the short context's by default, and with a context beyond that computes
    everything with the long one's. tokenizer: its file; None looks beside the checkpoint and in the current folder. A
    checkpoint for which none is found loads all the same: token ids work, text raises TokenizerError. revision: a
    branch, tag or commit on the hub. lora: an adapter of the PEFT library, or several, added to the weights one after
    the other: each a folder, or a name of the hub. progress: is called with the bytes packed so far and in all; a
    converted file has nothing to pack.

    Raises CheckpointError, TokenizerError (a tokenizer that was named does not fit), OptionError.
    """
    store.check_dtype(dtype)
    if kv is not None and kv not in KV_DTYPES:
        raise OptionError(f"kv must be one of {', '.join(KV_DTYPES)}, not {kv!r}")
    count = check_threads(threads)
    found, from_hub = find_source(path, revision)
    adapters = find_adapters(lora)
    with reading() as read:
        if (stored := store.open_file(found)) is not None:
            check_not_converted(found, adapters)
            _check_stored_dtype(found, stored, dtype)
            words = stored_tokenizer(stored, found, tokenizer)
        else:
            from fastllm.weights.packing import assemble

            source = open_source(found, tokenizer, from_hub=from_hub, adapters=adapters)
            try:
                stored = assemble(
                    source.recipe, dtype=dtype or source.dtype, threads=count, progress=read.watched(progress)
                )
            except CheckpointError as error:
                raise CheckpointError(f"{found} cannot be used: {error}") from None
            words = source.tokenizer
        return LLM(stored, words, threads=count, context=context, path=found, kv=kv)


def _check_stored_dtype(path: Path, stored: store.Stored, dtype: str | None) -> None:
    have = stored.dtypes
    if dtype is not None and have != [dtype]:
        raise OptionError(
            f"{path} is already converted to {', '.join(have)}: for {dtype}, load the checkpoint it was made from"
        )


class TextStream:
    """The new text, piece by piece, as it is written; ends at a stop string, which is left out.

    generation: the tokens and times behind it; finish_reason: "stop" or "length" once it has ended.
    """

    def __init__(self, generation: Generation, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.generation = generation
        self.finish_reason: str | None = None
        previous = generation.prompt[-1] if generation.prompt else None
        self._decoder = tokenizer.stream(previous)
        self._stop, self._held = stop, ""  # what may be the beginning of a stop string
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the text early."""
        self._pieces.close()

    def _run(self) -> Generator[str, None, None]:
        push = self.push if self._stop else self._decoder.push
        for token in self.generation:
            if piece := push(token):
                yield piece
            if self.finish_reason:
                return
        if piece := self.end():
            yield piece

    def push(self, token: int) -> str:
        """Takes the next token, for those who do not iterate: returns the text that is certain with it, maybe none.

        finish_reason is "stop" from then on if it completes a stop string.
        """
        piece = self._decoder.push(token)
        if not self._stop:
            return piece
        held = self._held + piece
        cut = self._found(held)
        if cut is not None:
            self.finish_reason = "stop"
            return held[:cut]
        ready = len(held) - self._could_begin(held)
        self._held = held[ready:]
        return held[:ready]

    def end(self) -> str:
        """The rest of the text, after the last token."""
        held = self._held + self._decoder.flush()
        cut = self._found(held)
        self.finish_reason = self.generation.finish_reason if cut is None else "stop"
        return held[:cut]

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


class LLM(Labels):
    """A model and its tokenizer. Immutable: several threads may use one at once."""

    @_core.standard_floats
    def __init__(
        self,
        stored: store.Stored,
        tokenizer: Tokenizer | TokenizerError,
        *,
        threads: int,
        context: int | None,
        path: Path,
        kv: str | None = None,
    ) -> None:
        config = stored.config
        self.config, self.bos = config, stored.bos
        ends = () if isinstance(tokenizer, TokenizerError) else tokenizer.ends
        self.stop, self.chat_stop = stop_tokens(stored.stop, stored.chat_stop, ends)
        self.path = path
        self._set_head(stored)
        longest = config.max_seq
        if context is not None and not 1 <= context <= longest:
            raise OptionError(f"the context must be between 1 and the model's {longest:,}, not {context!r}")
        self.context = context or config.rope_switch or longest
        tensors = dict(stored.tensors)
        if 0 < config.rope_switch < self.context:
            tensors["rope.freqs"] = tensors["rope.freqs_long"]
        self.dtypes = stored.dtypes
        self.embedding, self._embedding_layers = stored.embedding, stored.dense.get("embedding", ())
        # f32 weights come with f32 keys and values, so that nothing is rounded that the reference does not round.
        kv_dtype = kv or ("f32" if "f32" in self.dtypes else "f16")
        isa = os.environ.get("FASTLLM_ISA")
        self._isa = isa
        self._model = _core.Model(config, tensors, kv_dtype=kv_dtype, isa=isa)
        read = {name: _bytes_read(config, name, t) for name, t in tensors.items()}
        layers = sum(nbytes for name, nbytes in read.items() if name.startswith("layers."))
        self._head = tensors.get("head", tensors["embed"])
        self._engine = Engine(self._model, threads, layers // config.n_layers, causal=config.causal, name=str(path))
        self._tokenizer = tokenizer
        self.file_bytes = sum(t.nbytes for t in stored.tensors.values())
        # Of an embedding that is not also the head, one row.
        is_head = config.head and "head" not in tensors
        self.bytes_per_token = sum(read.values()) - (0 if is_head else read["embed"])

    @property
    def threads(self) -> int:
        return self._engine.threads

    @property
    def isa(self) -> str:
        """The instruction set its kernels use."""
        return self._model.isa

    def read_bandwidth(self) -> float:
        """GB/s at which its threads read its own weights, of its head, and do nothing else: takes no memory for it."""
        return read_bandwidth(self.threads, data=self._head.data[: 64 << 20])

    def start(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int | None,
        seed: int | None,
        stop: Sequence[int] | None = None,
        lookup: bool = False,
        draft: LLM | None = None,
    ) -> Generation:
        """A Generation of token ids: what generate runs on, without a tokenizer where the prompt is ids.

        stop: token ids that end it; None is the model's own. max_tokens: None is to the end of the context.
        """
        self._check_head()
        if not self.config.causal:
            raise OptionError(f"{self.path} is an encoder, which reads texts but cannot continue them")
        tokens = self._ids(prompt, "the prompt")
        # The last new token need not be run through the model: one more than there are positions left.
        room = self.context - len(tokens) + 1
        if max_tokens is not None and (not isinstance(max_tokens, int) or max_tokens < 0):
            raise OptionError(f"max_tokens must be 0 or more, not {max_tokens!r}")
        count = room if max_tokens is None else min(room, max_tokens)
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little")
        elif not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise OptionError(f"seed must be between 0 and 2^64 - 1, not {seed!r}")
        return Generation(
            self._engine,
            tokens,
            self._sampler(sampling, seed),
            max_tokens=count,
            stop=self.stop if stop is None else stop,
            proposer=self._proposer(lookup, draft),
        )

    @_core.standard_floats
    def _sampler(self, sampling: Sampling, seed: int) -> _core.Sampler:
        return _core.Sampler(self.config.vocab_size, sampling, seed=seed, bias=sampling.logit_bias, isa=self._isa)

    def _proposer(self, lookup: bool, draft: LLM | None) -> Proposer | None:
        """Who guesses tokens of a text, if anybody."""
        if draft is None:
            return PromptLookup(self._engine.costs) if lookup else None
        if lookup:
            raise OptionError("guesses come from lookup or from a draft model, not from both")
        if not draft.config.head or not draft.config.causal:
            raise OptionError(f"{draft.path} writes no text, so it cannot be the draft of {self.path}")
        ours, theirs = self.config.vocab_size, draft.config.vocab_size
        if ours != theirs:
            raise OptionError(
                f"{draft.path} has a vocabulary of {theirs:,}, {self.path} one of {ours:,}: a draft needs the same one"
            )
        words = [t.stream().pieces for t in (self._tokenizer, draft._tokenizer) if not isinstance(t, TokenizerError)]
        if len(words) == 2 and words[0] != words[1]:
            raise OptionError(f"{draft.path} has other tokens than {self.path}: a draft needs the same vocabulary")
        draft._model.check_files()
        greedy = draft._sampler(Sampling(temperature=0), 0)
        share = draft.bytes_per_token / self.bytes_per_token
        return DraftModel(self._engine.costs, draft._engine, greedy, draft.context, share)

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
        lookup: bool = False,
        draft: LLM | None = None,
        stream: bool = False,
    ) -> str | TextStream | list[int] | Iterator[int]:
        """Continues a prompt, text or token ids, and returns the new text; with stream, an iterator of its pieces.

        max_tokens: at most so many new tokens; None is to the end of the context. stop: strings that end the text,
        themselves left out. seed: the same seed gives the same text, on any machine; None takes a new one. lookup,
        draft: write the same text, faster where much of it stands in the prompt or in the text before (lookup), or
        where a smaller model with the same vocabulary guesses well (draft); see fastllm.speculative. The others are
        Sampling's. A model without a tokenizer takes ids and gives ids: a list, or with stream their iterator.
        Raises OptionError, ContextError, TokenizerError (text where there is no tokenizer), NumericError (the model
        computes numbers that are not finite).
        """
        stops = _stop_strings(stop)
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
        generation = self.start(prompt, sampling, max_tokens=max_tokens, seed=seed, lookup=lookup, draft=draft)
        if isinstance(self._tokenizer, TokenizerError) and not stops:
            return iter(generation) if stream else list(generation)
        pieces = TextStream(generation, self.tokenizer, stops)
        return pieces if stream else "".join(pieces)

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        max_tokens: int | None = 256,
        seed: int | Sequence[int] | None = None,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> list[str] | list[list[int]]:
        """Continues several prompts at once and returns the new texts, in order; of a model without a tokenizer, ids.

        Each text is what generate gives for its prompt alone, but n of them take far less time than n times one: see
        fastllm.engine.Batch. seed: one for all, or one for each. sampling: the fields of Sampling, such as temperature.
        Raises OptionError, ContextError, TokenizerError, and once all texts have ended NumericError, with the others in
        its `texts`, where the model computed numbers that are not finite for one of them.
        """
        if isinstance(prompts, str):
            raise OptionError("generate_batch takes a list of prompts, not one prompt")
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(prompts)
        if len(seeds) != len(prompts):
            raise OptionError(f"{len(prompts)} prompts need as many seeds, or one, not {len(seeds)}")
        stops, checked = _stop_strings(stop), Sampling(**sampling)
        generations = [
            self.start(prompt, checked, max_tokens=max_tokens, seed=one)
            for prompt, one in zip(prompts, seeds, strict=True)
        ]
        batch = Batch(self._engine)
        for generation in generations:
            batch.add(generation)
        if isinstance(self._tokenizer, TokenizerError) and not stops:
            _write(batch, {})
            return _unbroken(generations, [generation.tokens for generation in generations])
        streams = {generation: TextStream(generation, self.tokenizer, stops) for generation in generations}
        texts = _write(batch, streams)
        return _unbroken(generations, [texts[generation] for generation in generations])

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits at every token: float32 [T, vocabulary]; of an encoder, the masked-token logits.

        Raises OptionError, ContextError.
        """
        import numpy

        self._check_head()
        ids = self._ids(tokens, "the text")
        out = numpy.empty((len(ids), self.config.vocab_size), numpy.float32)
        at = 0
        for count, rows in self._engine.logits(ids):
            block = numpy.frombuffer(memoryview(rows), numpy.float32).reshape(count, -1)
            out[at : at + count] = block[:, : self.config.vocab_size]
            at += count
        out[numpy.isnan(out)] = numpy.nan  # of one sign and payload, which depend on the machine
        return out

    def hidden_states(self, tokens: Sequence[int], layer: int | None = None) -> NDArray[np.float32]:
        """The stream at every token: float32 [T, dim].

        layer: 0 is what enters the first block, i what leaves block i, n_layers + 1 (None) is after the final norm.
        Raises OptionError, ContextError.
        """
        return next(self._streams([self._ids(tokens, "the text")], layer))

    def attentions(self, tokens: Sequence[int], layer: int) -> NDArray[np.float32]:
        """How much each head of block `layer`, from 0, looks from each token at each: float32 [heads, T, T].

        Raises OptionError, ContextError.
        """
        check_layer(layer, self.config.n_layers - 1)
        return self._engine.attention(self._ids(tokens, "the text"), layer, self.config.n_heads)

    @_core.standard_floats
    def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        pooling: str | None = None,
        layer: int | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """One vector for each text, strings or token ids, in their order: float32 [n, channels].

        Where None is given, what the checkpoint says is done (see `embedding`), sentence-transformers' files or a
        GGUF's metadata; where it says nothing, the mean of the hidden states, as long as it is. pooling: one of
        embedding.POOLINGS, of the hidden states at `layer` (see hidden_states). normalize: to length 1. prompt: goes
        before each string; prompt_name: the name of one of the checkpoint's (embedding.prompts); "" is none. truncate:
        cuts texts that are longer than the model takes, as tokenizers do: what belongs around them stays. Else they
        are an error. A string gets what its tokenizer puts around a text.

        Raises OptionError, ContextError, TokenizerError, NumericError (a vector that is not finite), CheckpointError
        (what the checkpoint says cannot be done, as long as no pooling is named). An error about one of the texts has
        its place among them as `text`.
        """
        import numpy

        if isinstance(texts, str):
            raise OptionError("embed takes a list of texts, not one text")
        how, layers = self.embedding.chosen(pooling, normalize), self._embedding_layers
        try:
            width = how.width(self.config.dim, layers)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path} makes no vectors: {error}") from None
        before = self._lowered(how, how.prompt(prompt, prompt_name))
        skip = 0 if how.include_prompt or not before else self._prompt_length(before)
        ids = []
        for i, text in enumerate(texts):
            with about(i):
                tokens = self._embedded(text, f"text {i}", how, before, truncate=truncate)
                if isinstance(text, str) and len(tokens) <= skip:
                    raise OptionError(f"text {i} has no tokens but its prompt's, which are not pooled")
                if not isinstance(text, str) and (prompt or prompt_name):
                    raise OptionError(f"text {i} is token ids: a prompt goes before strings")
                ids.append(tokens)
        out = numpy.empty((len(ids), width), numpy.float32)
        for i, stream in enumerate(self._streams(ids, layer)):
            out[i] = how.vector(stream, layers, skip=skip if isinstance(texts[i], str) else 0, isa=self._isa)
            if not numpy.isfinite(out[i]).all():
                with about(i):
                    raise NumericError(f"{self.path} computes numbers that are not finite: the vector of text {i}")
        return normalized(out) if normalize else out

    def _embedded(
        self, text: str | Sequence[int], what: str, how: Embedding, before: str, *, truncate: bool
    ) -> list[int]:
        """The ids of a text that is to be embedded; of a string with its prompt and what belongs around it."""
        longest = min(self.context, how.max_tokens or self.context)
        ids = self._prompted(before, self._lowered(how, text)) if isinstance(text, str) else token_ids(text, what)
        if len(ids) > longest:
            if not truncate:
                raise ContextError(f"{what} has {len(ids):,} tokens, the model takes {longest:,}: truncate=True cuts")
            start = end = 0
            if isinstance(text, str):
                start, end = len(self._frame.around("", suffix=False)), len(self._frame.suffix)
            kept, rest = ids[start : len(ids) - end], max(0, longest - start - end)
            kept = kept[len(kept) - rest :] if how.truncate_left else kept[:rest]
            ids = [*ids[:start], *kept, *ids[len(ids) - end :]][:longest]
        return self._ids(ids, what)

    def _prompted(self, before: str, text: str) -> list[int]:
        """The ids of a prompt and a text as one text; in the prompt, special tokens that are written out count."""
        words = self.tokenizer
        end = max((before.rfind(token) + len(token) for token in words.special if token in before), default=0)
        if not end or not self.config.causal:
            return self._frame.around(before + text, suffix=True)
        head = [*self._frame.around("", suffix=False), *words.encode(before[:end], special=True)]
        return [*head, *words.encode(before[end:] + text, start=False), *(words.suffix or ())]

    def _lowered(self, how: Embedding, text: str) -> str:
        special = self.tokenizer.special if how.lower_case and text and not self.config.causal else ()
        return how.lowered(text, special)

    def _prompt_length(self, before: str) -> int:
        """Tokens of a text that are its prompt's: those of the prompt alone, less a special one that ends it."""
        ids = self._prompted(before, "")
        special = {self.tokenizer.token_id(token) for token in self.tokenizer.special}
        return len(ids) - bool(ids and ids[-1] in special)

    def _check_head(self) -> None:
        if not self.config.head:
            can = (
                f"what it can do is {', '.join(self._can())}"
                if self.classifier
                else "only hidden states and embeddings"
            )
            raise OptionError(f"{self.path} has no head, so there are no logits: {can}")


def _write(batch: Batch, streams: Mapping[Generation, TextStream]) -> dict[Generation, str]:
    """Runs a batch to its end and returns the texts of the streams."""
    pieces: dict[Generation, list[str]] = {generation: [] for generation in streams}
    try:
        while batch:
            for generation, token in batch.step():
                if (stream := streams.get(generation)) is None:
                    continue
                if token is not None:
                    pieces[generation].append(stream.push(token))
                if stream.finish_reason:
                    batch.drop(generation)
                elif generation.finish_reason:
                    pieces[generation].append(stream.end())
    finally:
        batch.close()
    return {generation: "".join(parts) for generation, parts in pieces.items()}


def _unbroken(generations: Sequence[Generation], texts: list[Any]) -> list[Any]:
    """The texts of a batch. Raises NumericError, with all others in it, where one ended so."""
    failed = [i for i, generation in enumerate(generations) if generation.error is not None]
    if not failed:
        return texts
    others = f" (and {len(failed) - 1} more)" if failed[1:] else ""
    error = NumericError(f"prompt {failed[0]}{others}: {generations[failed[0]].error}")
    error.texts = [None if generation.error else text for generation, text in zip(generations, texts, strict=True)]
    raise error


def _stop_strings(stop: str | Sequence[str]) -> list[str]:
    stops = [stop] if isinstance(stop, str) else list(stop)
    if not all(isinstance(s, str) and s for s in stops):
        raise OptionError("a stop string must not be empty")
    return stops


def _bytes_read(config: Config, name: str, tensor: _core.Matrix | _core.Vector) -> int:
    """What a token reads of a tensor: of experts, those that it uses; of a table of positions, one row."""
    if name == "positions":
        return 0
    share = config.n_experts_used / config.n_experts if ".experts." in name else 1
    return int(tensor.nbytes * share)
