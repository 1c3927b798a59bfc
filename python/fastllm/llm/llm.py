"""A model and its tokenizer, ready to use."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from fastllm import _core
from fastllm.config import Config
from fastllm.decoding import DEFAULTS, Sampling, stop_strings
from fastllm.engine import Engine, Generation, Scheduler
from fastllm.errors import NumericError, OptionError, TokenizerError
from fastllm.llm.embed import Vectors
from fastllm.llm.labels import Labels
from fastllm.llm.stream import TextStream
from fastllm.llm.texts import check_layer
from fastllm.machine import read_bandwidth
from fastllm.tokenizer import Tokenizer, stop_tokens
from fastllm.weights import store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastllm.engine.guesses import Proposer


class LLM(Labels, Vectors):
    """A model and its tokenizer. Nothing in it changes after loading, so several threads may use one at once.

    config: what the model computes. context: positions that a text may have. path: where it was loaded from. dtypes:
    the types of its weights. bos: the id that texts begin with, if any; stop, chat_stop: the ids that end a text, and a
    turn. file_bytes: bytes of all weights; bytes_per_token: bytes of weights that one token reads.
    """

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
        kv_bytes: int | None = None,
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
        # With f32 weights, keys and values are f32 too, so that nothing is rounded that a reference keeps in f32.
        kv_dtype = kv or ("f32" if "f32" in self.dtypes else "f16")
        isa = os.environ.get("FASTLLM_ISA")
        self._isa = isa
        self._model = _core.Model(config, tensors, kv_dtype=kv_dtype, isa=isa)
        read = {name: _bytes_read(config, name, t) for name, t in tensors.items()}
        layers = sum(nbytes for name, nbytes in read.items() if name.startswith("layers."))
        self._head = tensors.get("head", tensors["embed"])
        self._engine = Engine(
            self._model,
            threads,
            layers // config.n_layers,
            causal=config.causal,
            vocab_size=config.vocab_size,
            name=str(path),
            kv_bytes=kv_bytes,
        )
        self._scheduler = Scheduler(self._engine)
        self.context = min(self.context, max(1, self._engine.capacity))
        self._tokenizer = tokenizer
        self.file_bytes = sum(t.nbytes for t in stored.tensors.values())
        # A token reads one row of the embedding, about nothing, unless the embedding is also the head.
        is_head = config.head and "head" not in tensors
        self.bytes_per_token = sum(read.values()) - (0 if is_head else read["embed"])

    @property
    def threads(self) -> int:
        """The most threads that a forward runs on."""
        return self._engine.threads

    @property
    def isa(self) -> str:
        """The instruction set its kernels use."""
        return self._model.isa

    def read_bandwidth(self) -> float:
        """GB/s at which its threads read weights and do nothing else, measured on its own head: no extra memory."""
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
        """The new token ids of a text, as a Generation to iterate over: the level below generate.

        A prompt of ids needs no tokenizer. stop: ids that end the text; None: the model's own. max_tokens: None: to the
        end of the context. Raises OptionError, ContextError, TokenizerError.
        """
        self._check_head()
        if not self.config.causal:
            raise OptionError(f"{self.path} is an encoder, which reads texts but cannot continue them")
        tokens = self._ids(prompt, "the prompt")
        # The last new token takes no position, since it is not run through the model: hence + 1.
        room = self.context - len(tokens) + 1
        if max_tokens is not None and (not isinstance(max_tokens, int) or max_tokens < 0):
            raise OptionError(f"max_tokens must be 0 or more, not {max_tokens!r}")
        count = room if max_tokens is None else min(room, max_tokens)
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little")
        elif not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise OptionError(f"seed must be between 0 and 2^64 - 1, not {seed!r}")
        return Generation(
            self._scheduler,
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
        """The proposer that guesses tokens, if one is asked for. Raises OptionError for a draft that does not fit."""
        if draft is None and not lookup:
            return None
        from fastllm.engine.guesses import DraftModel, PromptLookup

        if draft is None:
            return PromptLookup(self._engine.costs)
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
        """Continues a prompt, a text or token ids, and returns the new text; with stream, a TextStream of its pieces.

        max_tokens: at most so many new tokens; None: to the end of the context. stop: strings that end the text and are
        left out of it. seed: the same seed gives the same text on any machine; None takes a new one. lookup, draft: the
        same text, sooner (speculative decoding): lookup guesses tokens from the prompt and the text so far, which pays
        where these repeat; draft is a smaller model with the same vocabulary that guesses. The other options are those
        of fastllm.decoding.Sampling. A model without a tokenizer takes ids and returns ids: a list, or an iterator.

        Raises OptionError, ContextError, TokenizerError (a text, but no tokenizer), NumericError (the model computes
        numbers that are not finite).
        """
        stops = stop_strings(stop)
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
        """Continues several prompts together and returns the new texts in order; without a tokenizer, lists of ids.

        Each text is what generate returns for its prompt alone, but together they take far less time (see
        fastllm.engine.Batch). seed: one for all, or one for each prompt. sampling: fields of Sampling, such as
        temperature.

        Raises OptionError, ContextError, TokenizerError. Where the model computes numbers that are not finite for one
        prompt, raises NumericError once all texts have ended, with the good ones in its `texts`.
        """
        if isinstance(prompts, str):
            raise OptionError("generate_batch takes a list of prompts, not one prompt")
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(prompts)
        if len(seeds) != len(prompts):
            raise OptionError(f"{len(prompts)} prompts need as many seeds, or one, not {len(seeds)}")
        stops, checked = stop_strings(stop), Sampling(**sampling)
        generations = [
            self.start(prompt, checked, max_tokens=max_tokens, seed=one)
            for prompt, one in zip(prompts, seeds, strict=True)
        ]
        if isinstance(self._tokenizer, TokenizerError) and not stops:
            self._scheduler.run(generations)
            return _unbroken(generations, [generation.tokens for generation in generations])
        streams = [TextStream(generation, self.tokenizer, stops) for generation in generations]
        texts = []
        for generation, stream in zip(generations, streams, strict=True):
            pieces = []
            generation.watch = lambda token, stream=stream, pieces=pieces: (pieces.append(stream.push(token)), stream.finish_reason is not None)[1]
            texts.append(pieces)
        self._scheduler.run(generations)
        return _unbroken(generations, ["".join([*p, s.end()]) for p, s in zip(texts, streams)])

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits at every token: float32 [T, vocabulary]; for an encoder, those of its masked-token head.

        Raises OptionError, ContextError.
        """
        import numpy

        self._check_head()
        ids = self._ids(tokens, "the text")
        out = numpy.empty((len(ids), self.config.vocab_size), numpy.float32)
        at = 0
        for count, rows in self._engine.logits(ids):
            chunk = numpy.frombuffer(memoryview(rows), numpy.float32).reshape(count, -1)
            out[at : at + count] = chunk[:, : self.config.vocab_size]
            at += count
        out[numpy.isnan(out)] = numpy.nan  # one NaN for all: its sign and payload depend on the machine
        return out

    def hidden_states(self, tokens: Sequence[int], layer: int | None = None) -> NDArray[np.float32]:
        """The residual stream at every token: float32 [T, dim].

        layer: 0: the input of the first layer; i: the output of the i-th layer; n_layers + 1 (None): after the final
        norm.
        Raises OptionError, ContextError.
        """
        return next(self._streams([self._ids(tokens, "the text")], layer))

    def attentions(self, tokens: Sequence[int], layer: int) -> NDArray[np.float32]:
        """The attention probabilities of layer `layer`, from 0: float32 [heads, T, T], [h, i, j] from token i to j.

        Raises OptionError, ContextError.
        """
        check_layer(layer, self.config.n_layers - 1)
        return self._engine.attention(self._ids(tokens, "the text"), layer, self.config.n_heads)

    def _check_head(self) -> None:
        if not self.config.head:
            can = (
                f"what it can do is {', '.join(self._can())}"
                if self.classifier
                else "only hidden states and embeddings"
            )
            raise OptionError(f"{self.path} has no head, so there are no logits: {can}")


def _unbroken(generations: Sequence[Generation], texts: list[Any]) -> list[Any]:
    """The texts of a batch; where one ended in a NumericError, raises one that has the good texts in it."""
    failed = [i for i, generation in enumerate(generations) if generation.error is not None]
    if not failed:
        return texts
    if not isinstance(error := generations[failed[0]].error, NumericError):
        raise error
    others = f" (and {len(failed) - 1} more)" if failed[1:] else ""
    error = NumericError(f"prompt {failed[0]}{others}: {generations[failed[0]].error}")
    error.texts = [None if generation.error else text for generation, text in zip(generations, texts, strict=True)]
    raise error


def _bytes_read(config: Config, name: str, tensor: _core.Matrix | _core.Vector) -> int:
    """Bytes that a token reads of a tensor: of experts, those that it uses; of learned positions one row, about 0."""
    if name == "positions":
        return 0
    share = config.n_experts_used / config.n_experts if ".experts." in name else 1
    return int(tensor.nbytes * share)
