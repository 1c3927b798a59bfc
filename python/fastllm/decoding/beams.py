"""Beam search: which of the texts that are searched at once go on, and which are done. Models and memory are not here.

The rules are those of the transformers library, to the token: `_beam_search` of version 5, and for groups and forced
words, which it has no longer, BeamSearchScorer and ConstrainedBeamSearchScorer of 4.53.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

from fastllm.decoding import _checks as checks
from fastllm.decoding.followers import Beam, Follower, Progress, Scores
from fastllm.decoding.forced import Forced
from fastllm.errors import OptionError


class _Fields(NamedTuple):
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    force_words: tuple[Any, ...] = ()


class BeamOptions(_Fields):
    """How beams are searched.

    num_beams: texts that are searched at once. num_return_sequences: so many of the best are the result.
    length_penalty: a text's score is the sum of its log probabilities, divided by its number of new tokens to the power
    of this: above 0, longer texts are preferred. early_stopping: True: the search ends once num_beams texts are done;
    False: once no better one is likely; "never": once there can be no better one. num_beam_groups: the beams are
    searched in so many groups, of which each, where it chooses the next tokens, takes diversity_penalty off the scores
    of those that the groups before it have chosen (Vijayakumar et al., 2016). force_words: phrases, each a text or ids,
    that the new text must contain, or lists of phrases, of which it must contain one (Post and Vilar, 2018; Hu et al.,
    2019).

    Raises OptionError for what is impossible.
    """

    __slots__ = ()

    def __new__(cls, **values: Any) -> BeamOptions:
        given = super().__new__(cls, **values)._asdict()
        for name in ("num_beams", "num_return_sequences", "num_beam_groups"):
            given[name] = checks.whole(given[name], name, 1)
        given["length_penalty"] = checks.number(given["length_penalty"], "length_penalty", -20, 20)
        given["diversity_penalty"] = checks.number(given["diversity_penalty"], "diversity_penalty", 0, 1e4)
        stopping = given["early_stopping"]
        if not isinstance(stopping, bool) and stopping != "never":
            raise OptionError(f'early_stopping must be True, False or "never", not {checks.shown(stopping)}')
        given["force_words"] = checks.forced(given["force_words"])
        beams, groups = given["num_beams"], given["num_beam_groups"]
        if beams > _MOST:
            raise OptionError(f"num_beams must be {_MOST} or less, not {beams}")
        if given["num_return_sequences"] > beams > 1:
            raise OptionError(f"num_beams is {beams}, which does not give {given['num_return_sequences']} texts")
        if beams % groups:
            raise OptionError(f"num_beam_groups must divide num_beams, and {groups} does not divide {beams}")
        if groups > 1 and given["force_words"]:
            raise OptionError("num_beam_groups and force_words do not go together")
        if groups > 1 and given["diversity_penalty"] == 0:
            raise OptionError("num_beam_groups needs a diversity_penalty above 0: all groups would be the same")
        if groups == 1 and given["diversity_penalty"]:
            raise OptionError("diversity_penalty needs num_beam_groups, 2 or more")
        if beams == 1:
            for name in ("length_penalty", "early_stopping", "force_words"):
                if given[name] != _Fields._field_defaults[name]:
                    raise OptionError(f"{name} is of beams: it needs num_beams, 2 or more")
        return super().__new__(cls, **given)


_MOST = 1000  # beams


class Hypothesis(NamedTuple):
    """A text that is done. beam: what it ended from. tokens: the new ones, without one that ended it. score: by which
    it is ranked."""

    beam: Beam
    tokens: list[int]
    reason: str
    score: float


class Group:
    """Beams that are chosen together, all of one length, and the best texts that have come of them, best first."""

    def __init__(self, beams: Sequence[Beam], done: Sequence[Hypothesis] = (), over: bool = False) -> None:
        """over: whether no beam goes on."""
        self.beams, self.done, self.over = beams, done, over


class Rules:
    """What is true of all steps of one search."""

    def __init__(
        self,
        options: BeamOptions,
        *,
        stop: Collection[int],
        ends: Callable[[list[int]], bool] | None,
        max_tokens: int,
        forced: Forced | None = None,
    ) -> None:
        """stop: tokens that end a text. ends: whether a text, its new tokens, is ended by something else. forced:
        options.force_words as ids."""
        self.options, self.stop, self.ends, self.max_tokens = options, frozenset(stop), ends, max_tokens
        self.forced = forced
        self.size = options.num_beams // options.num_beam_groups  # of a group
        self._older = forced is not None or options.num_beam_groups > 1  # the rules of 4.53
        self.most = max(2, 1 + len(self.stop)) * self.size  # followers that are looked at
        self.keep = 1 + (len(self.stop) or 1)  # tokens that filters leave at least

    def start(self) -> list[Group]:
        progress = None if self.forced is None else self.forced.start
        return [Group([Beam([], 0.0, progress)]) for _ in range(self.options.num_beam_groups)]

    def step(
        self, group: Group, followers: Sequence[Follower], scores: Scores
    ) -> tuple[list[Follower], list[Hypothesis], bool]:
        """The followers that go on, all that is done, and whether the group's search is over.

        followers: the best ones, the best first. scores: of all others of the group's beams.
        """
        running, done = list[Follower](), list(group.done)
        length = len(group.beams[0].tokens) + 1
        for rank, one in enumerate(followers):
            if len(running) == self.size:
                break
            if (tokens := self._ended(one, scores)) is None:
                running.append(one)
            elif rank < self.size and self._is_complete(one.beam.progress):  # those behind only fill the beams up
                done.append(Hypothesis(one.beam, tokens, "stop", self._ranked(one.score, length)))
        done = self._best(done)
        if self.forced is not None:
            further = self.forced.further(group.beams, scores)
            whole = [beam for beam in group.beams if self._is_complete(beam.progress)]
            further += [one for beam in whole for one in self._best_of(beam, scores)]
            running = self.forced.rank(running, further, self.size)
        over = not running
        if not over:
            best = followers[0] if self._older and followers else running[0]
            over = self._is_over(done, best.score, length)
        if length == self.max_tokens and not (over and self._older):
            done += [
                Hypothesis(beam, [*beam.tokens, token], "length", self._ranked(total, length))
                for beam, token, total in running
                if self._is_complete(self.progress(beam, token))
            ]
            done = self._best(done)
        return running, done, over or length == self.max_tokens

    def _ended(self, one: Follower, scores: Scores) -> list[int] | None:
        """The tokens of a text that ends with this one."""
        if one.token in self.stop:
            return one.beam.tokens
        text = [*one.beam.tokens, one.token]
        if self.ends is not None and self.ends(text):
            return text
        return text if scores.ends(one.beam, one.token) else None

    def _best_of(self, beam: Beam, scores: Scores) -> list[Follower]:
        """The best follower with which a beam goes on: so that one that has all phrases is not lost."""
        return next(([one] for one in scores.best(beam) if self._ended(one, scores) is None), [])

    def progress(self, beam: Beam, token: int) -> Progress | None:
        """A beam's progress with one more token."""
        if self.forced is None or beam.progress is None:
            return None
        return self.forced.add(beam.progress, token)

    def _is_complete(self, progress: Progress | None) -> bool:
        return self.forced is None or progress is None or self.forced.complete(progress)

    def _best(self, done: list[Hypothesis]) -> list[Hypothesis]:
        return sorted(done, key=lambda one: -one.score)[: self.size]

    def _is_over(self, done: list[Hypothesis], score: float, length: int) -> bool:
        """Whether the texts that are done are as good as what may come of a text of that score and length."""
        if len(done) < self.size:
            return False
        if self.options.early_stopping is True:
            return True
        if self.options.early_stopping == "never" and self.options.length_penalty > 0:
            length = self.max_tokens
        return done[-1].score >= self._ranked(score, length)

    def _ranked(self, score: float, length: int) -> float:
        divisor: float = length**self.options.length_penalty
        return score / divisor
