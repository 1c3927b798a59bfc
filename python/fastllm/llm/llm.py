"""A model and its tokenizer, ready to use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastllm import _core
from fastllm.config import Config
from fastllm.decoding import checkpoint_defaults
from fastllm.decoding.grammar import Grammar, Grammars
from fastllm.engine import Engine, Scheduler
from fastllm.errors import OptionError, TokenizerError
from fastllm.llm.arguments import whole
from fastllm.llm.chatting import Chatting
from fastllm.llm.embed import Vectors
from fastllm.llm.labels import Labels
from fastllm.llm.steering import Phrases
from fastllm.machine import read_bandwidth
from fastllm.tokenizer import Tokenizer, stop_tokens
from fastllm.weights import store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LLM(Labels, Vectors, Chatting):
    """A model and its tokenizer. Nothing in it changes after loading, so several threads may use one at once.

    config: what the model computes. context: positions that a text may have. path: where it was loaded from. dtypes:
    the types of its weights. bos: the id that texts begin with, if any; stop, chat_stop: the ids that end a text, and a
    turn. defaults: the sampling options of texts that name none (decoding.checkpoint_defaults). file_bytes: bytes of
    all weights; bytes_per_token: bytes of weights that one token reads.

    copy and deepcopy give the same object. A pickle holds what load was called with: another process loads the same
    files, which it maps for itself. close, or leaving a `with` block, gives the model's memory back.
    """

    # How a pickle makes it again, and from what; set by load.
    _origin: tuple[Callable[..., LLM], tuple[Any, ...]] | None = None

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
        cache_dir: Path | None = None,
    ) -> None:
        config = stored.config
        self.config, self.bos = config, stored.bos
        ends = () if isinstance(tokenizer, TokenizerError) else tokenizer.ends
        self.stop, self.chat_stop = stop_tokens(stored.stop, stored.chat_stop, ends)
        self.path, self.defaults = path, checkpoint_defaults(path, stored.sampling)
        self._set_head(stored)
        longest = config.max_seq
        if context is not None:
            context = whole("context", context, 1, longest)
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
        model = _core.Model(config, tensors, kv_dtype=kv_dtype, isa=isa)
        read = {name: _bytes_read(config, name, t) for name, t in tensors.items()}
        layers = sum(nbytes for name, nbytes in read.items() if name.startswith("layers."))
        self._head: _core.Matrix | _core.Vector | None = tensors.get("head", tensors["embed"])
        self._opened = Engine(
            model,
            threads,
            layers // config.n_layers,
            causal=config.causal,
            vocab_size=config.vocab_size,
            name=str(path),
            kv_bytes=kv_bytes,
        )
        if cache_dir is not None:
            from fastllm.engine.disk import PromptCache
            from fastllm.engine.key import model_key

            key = model_key(config, tensors, kv_dtype, cache_dir, threads=threads, identity=stored.identity)
            self._opened.disk = PromptCache(cache_dir, key, self._opened.cache)
        self._scheduler = Scheduler(self._opened)
        self.context = min(self.context, max(1, self._opened.capacity))
        self._tokenizer = tokenizer
        self._phrases = Phrases(config.vocab_size, tokenizer)
        self._grammars = Grammars(config.vocab_size, tokenizer)
        self.file_bytes = sum(t.nbytes for t in stored.tensors.values())
        # A token reads one row of the embedding, about nothing, unless the embedding is also the head.
        self._tied = config.head and "head" not in tensors
        self.bytes_per_token = sum(read.values()) - (0 if self._tied else read["embed"])

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
        threads = self.threads
        assert self._head is not None  # since it is open
        return read_bandwidth(threads, data=self._head.data[: 64 << 20])

    def close(self) -> None:
        """Gives the memory of weights, keys and values back; from then on most calls raise OptionError.

        Texts that are being written go on to their end, and keep the memory until then.
        """
        if self._opened is not None:
            if self._opened.disk is not None:
                self._opened.disk.close()
            del self._scheduler
        self._opened = self._head = None
        self._layers = self._embedding_layers = ()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> LLM:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LLM:
        return self

    def __reduce__(self) -> tuple[Callable[..., LLM], tuple[Any, ...]]:
        self._engine  # noqa: B018  # raises where it is closed
        if self._origin is None:
            raise OptionError(f"{self.path} was not opened by fastllm.load, so it cannot be pickled")
        return self._origin

    def grammar(
        self,
        *,
        json_schema: Any = None,
        regex: str | None = None,
        choice: Sequence[str] | None = None,
        grammar: str | Grammar | None = None,
    ) -> Grammar | None:
        """The Grammar of the option that is given, for generate's `grammar`: compiled once, for many texts.

        json_schema: a schema as a dict or JSON text, a pydantic model, or True for any JSON. regex: a regular
        expression that the whole text matches. choice: texts, of which the text is one. grammar: the text of a grammar
        in the form of Lark or, recognized by "::=", of llama.cpp (GBNF), or a Grammar of this model.

        Raises OptionError for two of them, for what is no grammar or no schema, uses what is not supported, exceeds
        limits or is satisfied by no text; TokenizerError; LibraryError.
        """
        return self._grammars.compile(json_schema=json_schema, regex=regex, choice=choice, grammar=grammar)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits at every token: float32 [T, vocabulary]; for an encoder, those of its masked-token head.

        Raises OptionError, ContextError.
        """
        import numpy

        self._check_head()
        ids = self._ids(tokens, "tokens")
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
        return next(self._streams([self._ids(tokens, "tokens")], layer))

    def attentions(self, tokens: Sequence[int], layer: int) -> NDArray[np.float32]:
        """The attention probabilities of layer `layer`, from 0: float32 [heads, T, T], [h, i, j] from token i to j.

        Raises OptionError, ContextError.
        """
        layer = whole("layer", layer, 0, self.config.n_layers - 1)
        return self._engine.attention(self._ids(tokens, "tokens"), layer, self.config.n_heads)


def _bytes_read(config: Config, name: str, tensor: _core.Matrix | _core.Vector) -> int:
    """Bytes that a token reads of a tensor: of experts, those that it uses; of learned positions one row, about 0."""
    if name == "positions":
        return 0
    share = config.n_experts_used / config.n_experts if ".experts." in name else 1
    return int(tensor.nbytes * share)
