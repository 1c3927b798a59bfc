"""Options of generate by which a text is searched instead of drawn token by token, checked and made into a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastllm.errors import OptionError
from fastllm.llm.arguments import whole

if TYPE_CHECKING:
    from fastllm.decoding import Sampling
    from fastllm.decoding.beams import BeamOptions
    from fastllm.engine import Engine
    from fastllm.engine.generation import Search
    from fastllm.llm.steering import Phrases

BEAMS = (
    "num_beams",
    "length_penalty",
    "early_stopping",
    "num_beam_groups",
    "diversity_penalty",
    "force_words",
)


def count_of(n: Any, num_return_sequences: Any) -> int:
    """How many texts of each prompt are asked for. Raises OptionError where both options are given and differ."""
    count = whole("n", n, 1)
    if num_return_sequences is None:
        return count
    same = whole("num_return_sequences", num_return_sequences, 1)
    if count not in (1, same):
        raise OptionError(f"n and num_return_sequences are the same, but n is {count} and num_return_sequences {same}")
    return same


def beams_of(options: dict[str, Any], count: int) -> BeamOptions | None:
    """Takes the options of beams out of `options`; None without beams. count: texts of each prompt that are wanted.

    Raises OptionError.
    """
    given = {name: value for name in BEAMS if (value := options.pop(name, None)) is not None}
    if not given:
        return None
    from fastllm.decoding.beams import BeamOptions

    beams = BeamOptions(**given, num_return_sequences=count)
    return beams if beams.num_beams > 1 else None


def check_beams(beams: BeamOptions, sampling: Sampling, others: dict[str, Any]) -> None:
    """Raises OptionError for options that do not go with beams. others: name -> value of further options."""
    for name in ("mirostat_tau", "xtc_probability"):
        if getattr(sampling, name) > 0:
            raise OptionError(f"{name} does not go with num_beams: it follows the draws of one text")
    for name, value in others.items():
        if value:
            why = "the best text is known only at the end" if name == "stream" else "a beam is not guessed"
            raise OptionError(f"{name} does not go with num_beams: {why}")
    if samples(sampling):
        for name in ("num_beam_groups", "force_words"):
            if getattr(beams, name) not in (1, ()):
                raise OptionError(f"{name} goes with temperature 0 only: beams are not drawn then")


def samples(sampling: Sampling) -> bool:
    """Whether tokens are drawn, and not the most likely ones."""
    return sampling.temperature >= 1e-6


def beam_search(
    engine: Engine,
    phrases: Phrases,
    beams: BeamOptions,
    sampling: Sampling,
    *,
    seed: int,
    stop: Sequence[int],
    ends: Callable[[list[int]], bool] | None,
    max_tokens: int,
) -> Search:
    """ends: whether a text, its new tokens, is ended by something else than a token of `stop`."""
    from fastllm.decoding.beams import Rules
    from fastllm.decoding.forced import Forced
    from fastllm.engine.beams import Beams

    words = phrases.forced(beams.force_words, stop)
    rules = Rules(beams, stop=stop, ends=ends, max_tokens=max_tokens, forced=Forced(words) if words else None)
    return Beams(engine, rules, samples=samples(sampling), seed=seed)
