"""Texts that a model writes: one or many, whole or piece by piece, for a thread or for asyncio."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, overload

from fastllm import _core
from fastllm.decoding import Sampling, Stops
from fastllm.engine import Generation, Scheduler
from fastllm.errors import OptionError, TokenizerError, about
from fastllm.llm.arguments import flags, prompts_in, seeds, several, token_ids, whole
from fastllm.llm.beams import BeamTexts, Ends
from fastllm.llm.begun import Begun, generation_of
from fastllm.llm.options import beam_search, beams_of, check_beams, count_of
from fastllm.llm.searching import check_search, search_of, search_options
from fastllm.llm.steering import Phrases
from fastllm.llm.stream import AsyncTextStream, Background, Begin, Pieces, TextStream
from fastllm.llm.text import Text
from fastllm.llm.texts import Texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastllm.decoding.beams import BeamOptions
    from fastllm.decoding.grammar import Grammar, Grammars
    from fastllm.decoding.search import SearchOptions
    from fastllm.engine.guesses import Proposer
    from fastllm.llm.texts import Ids

    Processor = Callable[[list[int], NDArray[np.float32]], NDArray[np.float32] | None]

_SEEDS = 1 << 64


class Writing(Texts):
    """The part of an LLM that writes texts."""

    _scheduler: Scheduler
    _phrases: Phrases
    _grammars: Grammars
    defaults: Sampling
    bytes_per_token: int

    def start(
        self,
        prompt: Ids,
        sampling: Sampling,
        *,
        max_tokens: int | None,
        seed: int | None,
        stop: Iterable[int] | None = None,
        lookup: bool = False,
        draft: Writing | None = None,
        min_tokens: int = 0,
        ignore_eos: bool = False,
        logprobs: int | None = None,
        echo: bool = False,
        processors: Sequence[Processor] = (),
        grammar: Grammar | None = None,
        watch: Callable[[int], bool] | None = None,
        notify: Callable[[], None] | None = None,
        beams: BeamOptions | None = None,
        ends: Callable[[list[int]], bool] | None = None,
        search: SearchOptions | None = None,
    ) -> Generation:
        """The new token ids of a text, as a Generation to iterate over: the level below generate.

        A prompt of ids needs no tokenizer. stop: ids that end the text; None: the model's own, or none with ignore_eos.
        max_tokens: None or -1: to the end of the context. watch: called with each new token; True ends the text.
        notify: called after new tokens and at the end. beams: searches with these, and `ends` takes the place of watch:
        called with all new tokens of a beam. These run in the thread that writes. search: chooses tokens by these
        options. The other options are generate's.
        Raises OptionError, ContextError, TokenizerError.
        """
        self._check_head()
        if not self.config.causal:
            raise OptionError(f"{self.path} is an encoder, which reads texts but cannot continue them")
        tokens = self._ids(prompt, "prompt")
        # The last new token takes no position, since it is not run through the model: hence + 1.
        room = self.context - len(tokens) + 1
        if max_tokens is not None:
            max_tokens = whole("max_tokens", max_tokens, -1)
        most = room if max_tokens is None or max_tokens < 0 else min(room, max_tokens)
        least = min(whole("min_tokens", min_tokens, 0), room)
        if logprobs is not None:
            logprobs = whole("logprobs", logprobs, 0, self.config.vocab_size)
        elif echo:
            raise OptionError("echo gives the log probabilities of the prompt's tokens: it needs logprobs, such as 0")
        if stop is None:
            stop = () if ignore_eos else self.stop
        stop = token_ids(stop, "stop")
        self._check_tokens(stop, "stop")
        seed = new_seed() if seed is None else whole("seed", seed, 0, _SEEDS - 1)
        if grammar is not None and sampling.forced_eos_token_id:
            raise OptionError("forced_eos_token_id ends a text anywhere, so it does not go with a grammar")
        chosen = None
        if search is not None:
            check_search(search, sampling, {"num_beams": beams, "lookup": lookup, "draft": draft})
            chosen, longest = search_of(self, search, sampling, tokens)
            most = max(0, min(most, self.context - longest + 1))
        if beams is not None:
            chosen = beam_search(
                self._engine, self._phrases, beams, sampling, seed=seed, stop=stop, ends=ends, max_tokens=most
            )
        return Generation(
            self._scheduler,
            tokens,
            self._sampler(
                sampling, seed, **self._phrases.sampler_options(sampling, stop, min_tokens=least, max_tokens=most)
            ),
            max_tokens=most,
            stop=stop,
            proposer=self._proposer(lookup, draft),
            search=chosen,
            watch=watch,
            processors=processors,
            matcher=None if grammar is None else grammar.matcher(stop),
            logprobs=logprobs,
            echo=echo,
            notify=notify,
        )

    @_core.standard_floats
    def _sampler(self, sampling: Sampling, seed: int, **options: Any) -> _core.Sampler:
        """options: those that are lists, see Phrases.sampler_options."""
        return _core.Sampler(self.config.vocab_size, sampling, seed=seed, isa=self._isa, **options)

    def _proposer(self, lookup: bool, draft: Writing | None) -> Proposer | None:
        """The proposer that guesses tokens, if one is asked for. Raises OptionError for a draft that does not fit."""
        if draft is None and not lookup:
            return None
        from fastllm.engine.guesses import DraftModel, PromptLookup

        if draft is None:
            return PromptLookup(self._engine.costs)
        if lookup:
            raise OptionError("guesses come from lookup or from a draft model, not from both")
        if not isinstance(draft, Writing):
            raise OptionError(f"draft must be a model that fastllm.load has loaded, not {draft!r}"[:200])
        if not draft.config.head or not draft.config.causal:
            raise OptionError(f"{draft.path} writes no text, so it cannot be the draft of {self.path}")
        ours, theirs = self.config.vocab_size, draft.config.vocab_size
        if ours != theirs:
            raise OptionError(
                f"{draft.path} has a vocabulary of {theirs:,}, {self.path} one of {ours:,}: a draft needs the same one"
            )
        words = [
            list(t.stream().pieces) for t in (self._tokenizer, draft._tokenizer) if not isinstance(t, TokenizerError)
        ]
        if len(words) == 2 and words[0] != words[1]:
            raise OptionError(f"{draft.path} has other tokens than {self.path}: a draft needs the same vocabulary")
        draft._model.check_files()
        greedy = draft._sampler(Sampling(temperature=0), 0)
        share = draft.bytes_per_token / self.bytes_per_token
        return DraftModel(self._engine.costs, draft._engine, greedy, draft.context, share)

    @overload
    def generate(self, prompt: Ids, *, n: Literal[1] = 1, stream: Literal[True], **options: Any) -> TextStream: ...
    @overload
    def generate(self, prompt: Ids, *, n: Literal[1] = 1, stream: Literal[False] = False, **options: Any) -> Text: ...
    @overload
    def generate(self, prompt: Ids | Iterable[Ids], **options: Any) -> Any: ...
    def generate(
        self,
        prompt: Ids | Iterable[Ids],
        *,
        n: int = 1,
        num_return_sequences: int | None = None,
        max_tokens: int | None = 256,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        bad_words: Any = None,
        no_repeat_ngram_size: int | None = None,
        seed: int | Sequence[int] | None = None,
        stop: Any = (),
        min_tokens: int = 0,
        ignore_eos: bool = False,
        logprobs: int | None = None,
        echo: bool = False,
        logits_processor: Processor | Sequence[Processor] | None = None,
        json_schema: Any = None,
        regex: str | None = None,
        choice: Sequence[str] | None = None,
        grammar: str | Grammar | None = None,
        special: bool = False,
        lookup: bool = False,
        draft: Writing | None = None,
        stream: bool | Begin = False,
        **more: Any,
    ) -> Any:
        """Continues a prompt and returns the new Text, a str with facts about it; of several prompts, a list.

        prompt: a text, token ids (a list, tuple or one-dimensional array of whole numbers), or any iterable of such
        prompts, which are written together, each as it would be alone. n: so many texts of each prompt: the result is
        a list, prompt by prompt. stream: returns a TextStream of pieces instead, of one prompt and n = 1.

        max_tokens: at most so many new tokens; None or -1: to the end of the context. min_tokens: no token ends the
        text before so many others. stop: a string, a token id, a compiled regular expression, a callable that takes the
        text so far and returns whether it ends, or a list of these; what stops a text is left out of it. ignore_eos:
        the model's own ends do not end it. seed: the same seed gives the same text on any machine; of several prompts,
        a list has one for each; text i of n has seed + i; None: new ones, in Text.seed.

        logprobs: natural log probabilities of each new token, and of so many likeliest ones, before biases, penalties
        and temperature; echo: of the prompt's tokens too. logits_processor: callables that are given the ids (prompt
        and new) and the logits, float32 [vocabulary], before each draw, and change these in place or return others.
        json_schema, regex, choice, grammar: the text follows one of these, see LLM.grammar. It ends where it is
        complete, and is complete unless finish_reason is "length" or something of `stop` ended it.
        special: special tokens written in the prompt, such as "<|fim_prefix|>", become their ids; else they are text.
        lookup, draft: the same text, sooner (speculative decoding): lookup guesses tokens from the prompt and the text
        so far, which pays where these repeat; draft is a smaller model with the same vocabulary that guesses.

        num_beams and the other options of fastllm.decoding.beams.BeamOptions search with beams, which are drawn only
        where a temperature is given. num_return_sequences: the same as n, and the result is always a list; of beams,
        the best texts, the best first, each with its Text.score. Those of fastllm.decoding.SearchOptions choose tokens
        by more than a prediction. The other options are those of fastllm.decoding.Sampling; None takes the model's
        `defaults`.

        A model without a tokenizer takes ids and returns lists of ids, or a Generation as its stream.

        Raises OptionError, ContextError, TokenizerError (a text, but no tokenizer), NumericError (the model computes
        numbers that are not finite), and what a callable raises. Where some of several texts fail, the others are
        written all the same: the error of the first has them in its `texts`, with None for each that failed.
        """
        flags(ignore_eos=ignore_eos, echo=echo, special=special, lookup=lookup)
        flags(**({} if isinstance(stream, Begin) else {"stream": stream}))
        asked, alone = prompts_in(prompt)
        count = count_of(n, num_return_sequences)
        beams = beams_of(more, count)
        if stream is True and (not alone or count > 1):
            raise OptionError("stream=True writes one text: it takes one prompt, not a list, and n = 1")
        options = {
            "temperature": 0.0 if beams is not None and temperature is None else temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "typical_p": typical_p,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "logit_bias": logit_bias,
            "bad_words": bad_words,
            "no_repeat_ngram_size": no_repeat_ngram_size,
            **more,
        }
        search = search_options(options)
        if unknown := options.keys() - set(Sampling._fields):
            raise TypeError(f"generate() got an unexpected keyword argument {min(unknown)!r}")
        sampling = self.defaults.updated(**options)
        if beams is not None:
            check_beams(beams, sampling, {"stream": stream is True, "lookup": lookup, "draft": draft is not None})
            count = 1
        stops = Stops(stop, self.config.vocab_size)
        rules = self._grammars.compile(json_schema=json_schema, regex=regex, choice=choice, grammar=grammar)
        words = None if isinstance(self._tokenizer, TokenizerError) and not stops else self.tokenizer
        how = stream if isinstance(stream, Begin) else Begin()
        shared: dict[str, Any] = {
            "max_tokens": max_tokens,
            "min_tokens": min_tokens,
            "stop": [*(() if ignore_eos else self.stop), *stops.tokens],
            "lookup": lookup,
            "draft": draft,
            "logprobs": logprobs,
            "echo": echo,
            "processors": _callables("logits_processor", logits_processor),
            "grammar": rules,
            "notify": how.notify,
            "search": search,
        }
        if search is not None and search.negative_prompt is not None:
            negative = self._prompt(search.negative_prompt, "negative_prompt", special)
            shared["search"] = search._replace(negative_prompt=negative)
        begun: list[TextStream | Generation | BeamTexts] = []
        for i, (one, base) in enumerate(zip(asked, seeds(seed, len(asked), alone=alone), strict=True)):
            with nullcontext() if alone else about(i):
                tokens = self._prompt(one, "prompt" if alone else f"prompt {i}", special)
                first = new_seed() if base is None else base
                for own in range(first, first + count):
                    seed_of = own % _SEEDS
                    previous = tokens[-1] if rules is None else rules.previous
                    if beams is not None:
                        if how.watch is not None:
                            raise OptionError(
                                "max_thinking_tokens does not go with num_beams: a beam is no single text"
                            )
                        ends = None if words is None or not stops else Ends(words, previous, stops)
                        generation = self.start(tokens, sampling, seed=seed_of, beams=beams, ends=ends, **shared)
                        begun.append(BeamTexts(generation, words, previous, stops, seed_of, special=how.special))
                        continue
                    pieces = None if words is None else Pieces(words, previous, stops, how.special)
                    budget = None if pieces is None or how.watch is None else how.watch(pieces)
                    watch = pieces if budget is None else budget
                    generation = self.start(tokens, sampling, seed=seed_of, watch=watch, **shared)
                    if budget is not None:
                        budget.begin(generation)
                    begun.append(generation if pieces is None else TextStream(generation, pieces, seed_of))
        single = alone and num_return_sequences is None and n == 1
        if stream is True:
            return begun[0]
        if stream:
            return Begun(begun, count, single)
        self._scheduler.run([generation_of(text) for text in begun])
        return Begun(begun, count, single).written()

    def generate_batch(self, prompts: Iterable[Ids], **options: Any) -> list[Any]:
        """generate of a list of prompts: the new texts in order. Takes its options, and raises what it raises."""
        asked, alone = prompts_in(prompts)
        if alone:
            raise OptionError("generate_batch takes a list of prompts, not one prompt")
        texts: list[Any] = self.generate(asked, **options)
        return texts

    @overload
    def agenerate(self, prompt: Ids, *, stream: Literal[True], **options: Any) -> AsyncTextStream: ...
    @overload
    def agenerate(
        self, prompt: Ids | Iterable[Ids], *, stream: Literal[False] = False, **options: Any
    ) -> Coroutine[Any, Any, Any]: ...
    def agenerate(
        self, prompt: Ids | Iterable[Ids], *, stream: bool = False, **options: Any
    ) -> AsyncTextStream | Coroutine[Any, Any, Any]:
        """generate for asyncio: to be awaited, or with stream=True an AsyncTextStream for `async for`.

        Another thread writes; cancelling the task ends its texts. Takes generate's options, and raises what it raises.
        """
        self._engine  # noqa: B018  # raises where it is closed
        if not stream:
            return self._agenerate(prompt, options)
        self.tokenizer  # noqa: B018  # raises where there is none: a stream of ids is not made here
        background = Background(self._scheduler)
        begun = self.generate(prompt, stream=Begin(background), **options)
        return AsyncTextStream(begun.stream(), background)

    async def _agenerate(self, prompt: Any, options: dict[str, Any]) -> Any:
        return (await self._abegun(prompt, Begin(), options)).written()

    async def _abegun(self, prompt: Any, how: Begin, options: dict[str, Any]) -> Begun:
        """What generate begins, once it is written. how: without `notify`."""
        import asyncio

        background = Background(self._scheduler)
        begin: Callable[..., Any] = self.generate
        begun: Begun = await asyncio.to_thread(begin, prompt, stream=how._replace(notify=background), **options)
        generations = [generation_of(text) for text in begun.texts]
        try:
            background.write(generations)
            for generation in generations:
                await background.until(lambda g=generation: g.finish_reason is not None)  # type: ignore[misc]
        finally:
            for generation in generations:
                generation.close()
        return begun

    def _prompt(self, prompt: Any, what: str, special: bool) -> list[int]:
        """The ids of a prompt, checked. special: whether special tokens written in a text become their ids."""
        if not isinstance(prompt, str) or not special:
            return self._ids(prompt, what)
        ids, prefix = self.tokenize(prompt, special=True), list(self._frame.prefix)
        # A chat template writes BOS itself: a second one is not put before it.
        return self._ids(ids[len(prefix) :] if ids[len(prefix) : 2 * len(prefix)] == prefix else ids, what)


def new_seed() -> int:
    """A seed of 64 random bits."""
    return int.from_bytes(os.urandom(8), "little")


def _callables(name: str, value: Any) -> list[Any]:
    """One callable, several, or None, as a list. Raises OptionError for anything else."""
    if value is None or callable(value):
        return [] if value is None else [value]
    found = several("generate", name, value)
    for one in found:
        if not callable(one):
            raise OptionError(f"{name} must be a callable or a list of these, not {one!r}"[:200])
    return found
