"""Beams side by side with as many texts that are drawn: python bench/beams.py [MODEL] [--beams N] [--tokens N]

All are written from one prompt, in turns. Prints a Markdown table of medians. The default MODEL is the built-in one.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter
from typing import Any

import fastllm
from fastllm.llm.loading import BUILT_IN

PROMPT = (
    "Once upon a time there was a king who lived in a castle, and every day he looked out of the window at the sea."
)
DRAWN = {"temperature": 1.1, "top_p": 0.9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=BUILT_IN)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    llm, count = fastllm.load(args.model), args.beams
    prompt = llm.tokenize(PROMPT)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        f"{count} texts, drawn": ([prompt] * count, {**DRAWN, "seed": list(range(count))}),
        f"{count} beams": (prompt, {"num_beams": count}),
        f"{count} beams, drawn": (prompt, {"num_beams": count, "no_repeat_ngram_size": 3, **DRAWN}),
        f"{count} groups of beams": (prompt, {"num_beams": count, "num_beam_groups": count, "diversity_penalty": 1.0}),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(args.rounds + 1):
        for kind, (asked, options) in kinds.items():
            start = perf_counter()
            llm.generate(asked, max_tokens=args.tokens, ignore_eos=True, **options)
            if turn:  # the first warms caches up
                times[kind].append(perf_counter() - start)
    plain = median(next(iter(times.values())))
    print("| | ms a step | of the texts |\n| --- | ---: | ---: |")
    for kind, seconds in times.items():
        print(f"| {kind} | {1e3 * median(seconds) / args.tokens:.2f} | {median(seconds) / plain:.2f} |")


if __name__ == "__main__":
    main()
