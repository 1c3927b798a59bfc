"""Beam search of one text: beams are forks of its sequence, which share the pages of what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from fastllm import _core
from fastllm.decoding.beams import Group, Hypothesis, Rules
from fastllm.decoding.followers import Beam, Follower, Progress, Scores
from fastllm.engine.engine import CHUNK, Span
from fastllm.engine.generation import Logprob, Search, Written
from fastllm.engine.prefix import common_length
from fastllm.engine.scores import changed_by, logprob
from fastllm.errors import OptionError

if TYPE_CHECKING:
    from fastllm.decoding.grammar import Matcher
    from fastllm.engine.engine import Engine
    from fastllm.engine.generation import Generation


_Note: TypeAlias = Callable[[Beam, int], list[Logprob] | None]


class Found(NamedTuple):
    """A text that a search has found. score: the sum of its log probabilities, by its length."""

    tokens: list[int]
    reason: str
    score: float
    logprobs: list[Logprob] | None


class _Beam(Beam):
    """A beam in memory. sequence: holds all of its text but the last token; until the next step it may be that of
    several beams. sampler: knows its text. matcher: of the grammar that it follows."""

    __slots__ = ("logprobs", "matcher", "sampler", "sequence")

    def __init__(
        self,
        tokens: list[int],
        score: float,
        progress: Progress | None,
        sampler: _core.Sampler,
        logprobs: list[Logprob] | None,
    ) -> None:
        super().__init__(tokens, score, progress)
        self.sampler, self.logprobs = sampler, logprobs
        self.sequence: _core.Sequence | None = None  # None: it has to be computed
        self.matcher: Matcher | None = None


class Beams(Search):
    """The beams of a text.

    found: once the search is over, its best texts, the best first. The generation's own tokens are those of the first.

        prompt  ---.--- the  --- .          sequences are forked where texts part; a fork copies nothing but,
                   '--- a --.--- cat .      when it is written to, the last page
                            '--- dog .
    """

    def __init__(self, engine: Engine, rules: Rules, *, samples: bool, seed: int) -> None:
        """samples: followers are drawn, with random numbers of this seed, and not the best."""
        self._engine, self._rules, self._samples = engine, rules, samples
        self.width = rules.options.num_beams
        self.found: list[Found] = []
        self._groups: list[Group] | None = None
        self._state = seed
        self._scores: _core.BeamScores | None = None  # made when it is needed: a text that waits has none

    def begin(self, generation: Generation, sequence: _core.Sequence, written: Written) -> None:
        if self._groups is not None:  # after a preemption: the beams are computed from the prompt's end on
            for group in self._groups:
                for beam in group.beams:
                    beam.sequence = sequence  # type: ignore[attr-defined]
            return
        groups = [
            Group([_Beam([], 0.0, beam.progress, generation.sampler, None if generation.logprobs is None else [])])
            for group in self._rules.start()
            for beam in group.beams
        ]
        for group in groups:
            group.beams[0].sequence = sequence  # type: ignore[attr-defined]
            group.beams[0].matcher = generation.matcher  # type: ignore[attr-defined]
        self._choose(generation, groups, written.logits, [written.row] * len(groups))

    def spans(self, generation: Generation) -> list[Span]:
        beams, start = self._running(), len(generation.prompt)
        ready = start + len(beams[0].tokens) - 1  # tokens that a sequence has before the beam's last one
        late = [span for same in _same(beams) for span in self._part(same, start, ready)]
        if late:
            some = max(1, CHUNK // len(late))
            return [(sequence, tokens[:some], 0) for sequence, tokens, _ in late]
        return [(_sequence(beam), beam.tokens[-1:], 1) for beam in beams]

    def take(self, generation: Generation, written: Written) -> None:
        beams, end = self._running(), len(generation.prompt)
        if any(_sequence(beam).length < end + len(beam.tokens) for beam in beams):
            return  # they are still being computed
        assert self._groups is not None
        self._choose(generation, self._groups, written.logits, range(written.row, written.row + len(beams)))

    def texts(self, generation: Generation) -> list[Found]:
        """The texts found, once the generation has ended; empty ones where it may have no token (max_tokens = 0)."""
        none = Found([], "length", 0.0, None if generation.logprobs is None else [])
        return self.found or [none] * self._rules.options.num_return_sequences

    def close(self) -> None:
        for group in self._groups or ():
            for beam in group.beams:
                beam.sequence = None  # type: ignore[attr-defined]

    def _running(self) -> list[_Beam]:
        return [beam for group in self._groups or () for beam in group.beams]  # type: ignore[misc]

    def _part(self, same: list[_Beam], start: int, ready: int) -> list[Span]:
        """Forks the sequence of several beams where their texts part. Returns what it lacks of what they share."""
        sequence = _sequence(same[0])
        if sequence.length > ready:  # a step was interrupted after its forward
            sequence.truncate(ready)
        shared, at = ready, sequence.length - start
        if len(same) > 1 and sequence.length < ready:
            first, last = min(beam.tokens for beam in same), max(beam.tokens for beam in same)
            shared = min(ready, start + common_length(first, last))
        if sequence.length < shared:
            return [(sequence, same[0].tokens[at : shared - start], 0)]
        if len(same) == 1:
            return []
        ways: dict[int, list[_Beam]] = {}
        for beam in same:
            ways.setdefault(beam.tokens[at] if sequence.length < ready else len(ways), []).append(beam)
        late = list[Span]()
        for i, way in enumerate(ways.values()):
            fork = sequence.fork() if i else sequence
            for beam in way:
                beam.sequence = fork
            late += self._part(way, start, ready)
        return late

    # ---- a step

    def _choose(self, generation: Generation, groups: list[Group], logits: _core.Buffer, rows: Sequence[int]) -> None:
        """Goes on from the logits after each beam's text, or ends the search."""
        rules, state, taken, at = self._rules, self._state, list[int](), 0
        if self._scores is None:
            self._scores = _core.BeamScores(self._engine.model, rules.size, rules.most)
        new = list[Group]()
        for group in groups:
            if group.over:
                new.append(group)
                continue
            own = dict(zip(group.beams, rows[at:], strict=False))
            at += len(own)
            followers, state = self._follow(generation, own, logits, taken, state)
            running, done, over = rules.step(group, followers, _GroupScores(group.beams, self._scores))
            taken += [token for _, token, _ in running]
            note = self._note_in(generation, logits, own)
            new.append(
                Group(
                    [] if over else [_grown(one, rules.progress(one.beam, one.token), note) for one in running],
                    [one if one in group.done else _ended(one, note) for one in done],
                    over,
                )
            )
        if all(group.over for group in new):
            self._end(generation, new)
        self._groups, self._state = new, state

    def _follow(
        self, generation: Generation, own: dict[Beam, int], logits: _core.Buffer, taken: list[int], state: int
    ) -> tuple[list[Follower], int]:
        """The best followers of a group's beams, or those that are drawn, and the new state of the random numbers.

        own: beam -> its row of logits. taken: tokens that groups before it have chosen.
        """
        scores, beams = self._scores, list(own)
        assert scores is not None
        if generation.processors:
            self._process(generation, scores, own, logits)
        found, state = scores.follow(
            [(beam.sampler, row, beam.score, _mask(beam)) for beam, row in own.items()],  # type: ignore[attr-defined]
            logits,
            keep=self._rules.keep if self._samples else 0,
            state=state,
            taken=taken,
            penalty=self._rules.options.diversity_penalty,
            processed=bool(generation.processors),
            threads=self._engine.threads,
        )
        return [Follower(beams[i], token, score) for i, token, score in found], state

    def _process(
        self, generation: Generation, scores: _core.BeamScores, own: dict[Beam, int], logits: _core.Buffer
    ) -> None:
        """Has the text's callables change each beam's log probabilities."""
        import numpy

        stride, size = self._engine.model.logits_stride, self._engine.vocab_size
        for i, (beam, row) in enumerate(own.items()):
            scores.logs(i, logits, row)
            logs = numpy.frombuffer(memoryview(scores), numpy.float32)[i * stride : i * stride + size]
            changed_by(generation.processors, generation.prompt + beam.tokens, logs)

    def _note_in(self, generation: Generation, logits: _core.Buffer, own: dict[Beam, int]) -> _Note:
        """What gives the logprobs of a beam with one more token."""

        def note(beam: Beam, token: int) -> list[Logprob] | None:
            before: list[Logprob] | None = beam.logprobs  # type: ignore[attr-defined]
            if before is None:
                return None
            return [*before, logprob(self._engine, logits, own[beam], token, generation.top)]

        return note

    def _end(self, generation: Generation, groups: list[Group]) -> None:
        options = self._rules.options
        done = sorted((one for group in groups for one in group.done), key=lambda one: -one.score)
        if len(done) < options.num_return_sequences:
            wanted = f"{options.num_return_sequences} text{'s' if options.num_return_sequences > 1 else ''}"
            words = f" with force_words in {generation.max_tokens:,} tokens" if options.force_words else ""
            raise OptionError(
                f"the beams found {len(done)} of {wanted}{words}: all else is forbidden, or was too unlikely"
            )
        self.found = [
            Found(one.tokens, one.reason, one.score, one.beam.logprobs)  # type: ignore[attr-defined]
            for one in done[: options.num_return_sequences]
        ]
        generation.found(*self.found[0][:2], self.found[0].logprobs)


class _GroupScores(Scores):
    """The scores of a group's beams, as they were computed last."""

    def __init__(self, beams: Sequence[Beam], scores: _core.BeamScores) -> None:
        self._places, self._scores = {beam: i for i, beam in enumerate(beams)}, scores

    def score(self, beam: Beam, token: int) -> float:
        return self._scores.score(self._places[beam], token)

    def ends(self, beam: Beam, token: int) -> bool:
        matcher: Matcher | None = beam.matcher  # type: ignore[attr-defined]
        if matcher is None:
            return False
        over = matcher.follow([*beam.tokens, token])
        matcher.follow(beam.tokens)  # back, since the next call may be about another token
        return over

    def best(self, beam: Beam) -> list[Follower]:
        return [Follower(beam, token, score) for token, score in self._scores.best(self._places[beam])]


def _grown(one: Follower, progress: Progress | None, note: _Note) -> _Beam:
    """A beam with its follower's token. It still shares its sequence with others."""
    parent = one.beam
    assert isinstance(parent, _Beam)
    sampler = parent.sampler.copy()
    sampler.accept(one.token, generated=True)
    beam = _Beam([*parent.tokens, one.token], one.score, progress, sampler, note(parent, one.token))
    beam.sequence = parent.sequence
    beam.matcher = parent.matcher and parent.matcher.copy()
    return beam


def _mask(beam: Beam) -> bytes | None:
    """What the grammar of a beam allows next."""
    matcher: Matcher | None = beam.matcher  # type: ignore[attr-defined]
    return None if matcher is None else matcher.masks(beam.tokens)[0]


def _ended(one: Hypothesis, note: _Note) -> Hypothesis:
    """A text that is done, without the sequence that it came from."""
    parent = one.beam
    assert isinstance(parent, _Beam)
    more = len(one.tokens) > len(parent.tokens)
    logprobs = note(parent, one.tokens[-1]) if more else parent.logprobs
    return one._replace(beam=_Beam(one.tokens, one.score, None, parent.sampler, logprobs))


def _same(beams: Sequence[_Beam]) -> list[list[_Beam]]:
    """Beams by the sequence that they have."""
    found: dict[int, list[_Beam]] = {}
    for beam in beams:
        found.setdefault(id(beam.sequence), []).append(beam)
    return list(found.values())


def _sequence(beam: _Beam) -> _core.Sequence:
    assert beam.sequence is not None
    return beam.sequence
