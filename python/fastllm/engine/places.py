"""Which texts are written now: those that have waited longest, as far as there are places and pages."""

from __future__ import annotations

from _weakref import ref
from collections import deque

from fastllm.engine.engine import Engine
from fastllm.engine.generation import Generation
from fastllm.engine.prefix import common_length

_SAVED = 16  # a text waits for another one that reads the same beginning where that saves at least so many tokens


class Places:
    """The texts of one model, from their arrival to their end. One thread at a time may call it.

        arrival   waiting  ->  running: reads its prompt, then writes  ->  ended
                     ^            |
                     '-- preempted                     at most `most` run, by arrival; where pages run out the youngest
                                                       gives its own up; a text whose tokens are not asked for pauses

    References are weak: a text that is not held any more is not written on.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine, self._most = engine, most
        self.waiting: deque[ref[Generation]] = deque()
        self.running: list[ref[Generation]] = []  # by arrival
        self._full = False  # whether a text was preempted, and none has ended since

    def live(self) -> list[Generation]:
        """The texts that run, by arrival. Retires those that have ended."""
        alive = list[Generation]()
        for reference in self.running:
            if (generation := reference()) is None:
                continue
            generation.take()  # what an interrupted step has left
            if generation.finish_reason is None:
                alive.append(generation)
            else:
                self._retire(generation)
        if len(alive) != len(self.running):
            self.running = [ref(generation) for generation in alive]
            self._full = False
        return alive

    def _retire(self, generation: Generation) -> None:
        """Keeps what an ended text has computed for later ones."""
        if generation.search is not None:
            generation.search.close()
        sequence, generation.sequence = generation.sequence, None
        text = generation.prompt + generation.tokens
        if sequence is not None:
            self._engine.keep(text, sequence)
        generation.end_guesses()

    def restart(self) -> list[Generation]:
        """Has all texts that run compute what they hold anew: a forward may have been writing it. Returns them."""
        texts = self.live()
        for generation in reversed(texts):
            generation.release()
            self.waiting.appendleft(ref(generation))
        self.running = []
        return texts

    # ---- admission

    def admit(self, running: list[Generation]) -> list[Generation]:
        """Gives free places to the texts that have waited longest, and returns those."""
        new, i = list[Generation](), 0
        width = sum(generation.width for generation in running)
        if not running:
            self._full = False
        while i < len(self.waiting) and not self._full and width < self._most:
            generation = self.waiting[i]()
            if generation is not None and generation.finish_reason is None:
                if generation.pauses():
                    i += 1
                    continue
                if width and width + generation.width > self._most:  # a search that is wider than that runs alone
                    break
                if not self._begin(generation, running + new):
                    break
                self.running.append(ref(generation))
                new.append(generation)
                width += generation.width
            del self.waiting[i]
        return new

    def _begin(self, generation: Generation, others: list[Generation]) -> bool:
        """Gives a text a sequence with as much of it as is known. False: it has to wait for others."""
        if self._waits_for_another(generation, others):
            return False
        generation.after = None
        tokens, search = generation.prompt + generation.tokens, generation.search
        if generation.prompt_logprobs is not None and not generation.tokens:
            sequence, known = self._engine.sequence(), 0  # logits of all its tokens are wanted
            generation.prompt_logprobs = [None]
        elif search is not None and search.reads_all:
            sequence, known = self._engine.sequence(), 0
        else:
            sequence, known = self._engine.open(tokens)
            if sequence.length < len(tokens) - 1 and self._shares(generation, tokens, sequence.length, others):
                if generation.after is not None:
                    return False
                sequence, known = self._engine.open(tokens)
        if not self._engine.has_room(len(tokens) + 1, sequence, generation.width) and others:
            return False
        if known > sequence.length:
            generation.marks.add(known)
        generation.sequence = sequence
        if not generation.begun:
            generation.begun = True
            generation.cached = sequence.length
            generation.sampler.accept_all(generation.prompt)
        return True

    def _waits_for_another(self, generation: Generation, others: list[Generation]) -> bool:
        """Whether the text that it waits `after` is still reading what they have in common."""
        other = None if generation.after is None else generation.after()
        if other is None or other not in others or other.sequence is None:
            return False
        return max(other.marks) > other.sequence.length

    def _shares(self, generation: Generation, tokens: list[int], found: int, others: list[Generation]) -> bool:
        """Whether others are reading a longer beginning of a text than was found. It then waits `after` one of them,
        or what that one has read already is kept for it."""
        for other in others:
            sequence = other.sequence
            if sequence is None or other.tokens or other.prompt_logprobs is not None:
                continue
            common = min(common_length(other.prompt, tokens), len(tokens) - 1)
            if common < found + _SAVED:
                continue
            if common > sequence.length:
                other.marks.add(common)
                generation.after = ref(other)
            else:
                self._engine.keep(other.prompt, sequence)
            return True
        return False

    def preempt(self, stepping: list[Generation]) -> bool:
        """Takes the pages of a text, since there are none left: one that pauses, or else the youngest of `stepping`.

        It is computed again later, to the same bits. False: a text that is alone needs more than there are.
        """
        paused = [generation for generation in self.live() if generation not in stepping]
        if not paused and len(stepping) == 1:
            guesses = stepping[0].proposer is not None
            stepping[0].end_guesses()  # a draft's keys and values may be in this very cache
            return guesses
        generation = paused[-1] if paused else max(stepping, key=lambda generation: self.running.index(ref(generation)))
        generation.release()
        self.running.remove(ref(generation))
        self.waiting.appendleft(ref(generation))
        self._full = True
        return True
