"""Texts that follow a grammar beside plain ones: python bench/grammar.py [MODEL]

Each grammar's texts are written in turns with plain ones of as many tokens, and without guesses of what it forces.
Prints a Markdown table of medians: tokens/s, and what masks take of a token's time. MODEL is a file; the default is two
layers of 2,048 channels with random weights and a vocabulary of 128,256 random words, made in memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import fastllm
from fastllm.decoding import Sampling
from fastllm.decoding.grammar import Grammar
from fastllm.llm import LLM

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 20},
        "age_in_years": {"type": "integer", "minimum": 0, "maximum": 150},
        "favourite_colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 20},
                "postal_code": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "postal_code"],
            "additionalProperties": False,
        },
    },
    "required": ["first_name", "age_in_years", "favourite_colours", "address"],
    "additionalProperties": False,
}
GRAMMARS: dict[str, dict[str, Any]] = {
    "a JSON schema": {"json_schema": PERSON},
    "any JSON": {"json_schema": True},
    "any text": {"regex": r"[\s\S]*"},
}
PROMPT = "A person as JSON:"


class Written(NamedTuple):
    tokens: int
    seconds: float  # of decoding
    masks: float  # seconds of them in the matcher
    longest: float  # of its calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", nargs="?")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--tokens", type=int, default=96, metavar="N", help="at most, of a text (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each (default %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        llm = fastllm.load(args.model or _large(Path(folder)), threads=args.threads)
        start = perf_counter()
        llm.grammar(regex="a")
        print(
            f"{llm.path.name}, {'+'.join(llm.dtypes)}, {llm.threads} threads, {llm.isa}, "
            f"a vocabulary of {llm.config.vocab_size:,}, made ready in {perf_counter() - start:.2f} s\n"
        )
        print("| grammar | compiled, ms | plain, tokens/s | masked | and guessed | masks, of the time | slowest, ms |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for name, options in GRAMMARS.items():
            compare(llm, name, options, args.tokens, args.rounds)
    return 0


def _large(folder: Path) -> Path:
    import models

    return models.write_converted(folder / "random.safetensors", "128k")


def compare(llm: LLM, name: str, options: dict[str, Any], count: int, rounds: int) -> None:
    start = perf_counter()
    grammar = llm.grammar(**options)
    compiled = perf_counter() - start
    runs: dict[str, list[Written]] = {"plain": [], "masked": [], "forced": []}
    for _ in range(rounds):
        masked = write(llm, grammar, count, forced=False)
        runs["masked"].append(masked)
        runs["forced"].append(write(llm, grammar, count))
        runs["plain"].append(write(llm, None, masked.tokens))
    plain, ruled, forced = (median((run.tokens - 1) / run.seconds for run in each) for each in runs.values())
    share = median(run.masks / run.seconds for run in runs["masked"])
    longest = median(run.longest for run in runs["masked"])
    speeds = f"{plain:.1f} | {ruled:.1f} | {forced:.1f}"
    print(f"| {name} | {compiled * 1e3:.1f} | {speeds} | {share:.1%} | {longest * 1e3:.2f} |", flush=True)


def write(llm: LLM, grammar: Grammar | None, count: int, *, forced: bool = True) -> Written:
    """One greedy text. forced: whether tokens that the grammar forces are guessed."""
    times = [0.0]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any) -> Any:
            start = perf_counter()
            found = call(*args)
            times.append(perf_counter() - start)
            return found

        return timing

    stop = llm.stop if grammar is not None else ()
    generation = llm.start(PROMPT, Sampling(temperature=0), max_tokens=count, seed=1, stop=stop, grammar=grammar)
    matcher = generation.matcher
    for method in ("masks", "follow", "forced", "allowed") if matcher is not None else ():
        setattr(matcher, method, timed(getattr(matcher, method)))
    if matcher is not None and not forced:
        matcher.forced = lambda tokens: []  # type: ignore[method-assign]
    generation.wait()
    return Written(len(generation.tokens), generation.decode_seconds, sum(times), max(times))


if __name__ == "__main__":
    sys.exit(main())
