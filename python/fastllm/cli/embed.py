"""fastllm embed: texts as vectors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fastllm.cli.lines import in_parts, lines
from fastllm.cli.options import load_model, model_options


def options(embed: argparse.ArgumentParser) -> None:
    embed.add_argument("model", metavar="MODEL", help="a checkpoint, an encoder or not")
    embed.add_argument("texts", nargs="*", metavar="TEXT")
    embed.add_argument(
        "--pooling",
        metavar="HOW",
        help="of a text's tokens: mean, cls, last, max, weighted_mean, mean_sqrt_len (default: the model's, else mean)",
    )
    length = embed.add_mutually_exclusive_group()
    length.add_argument("--normalize", action="store_true", default=None, help="to length 1 (default: as the model's)")
    length.add_argument("--no-normalize", dest="normalize", action="store_false", help="as long as they are")
    prompts = embed.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="goes before each text (default: the model's, if any)")
    prompts.add_argument("--prompt-name", metavar="NAME", help="of one of the model's prompts, such as query")
    embed.add_argument("--truncate", action="store_true", help="cut texts that are too long, else they are errors")
    form = embed.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="lines are JSON lists (default)")
    form.add_argument("--text", action="store_true", help="lines are numbers with spaces between")
    model_options(embed)


def run(args: argparse.Namespace) -> int:
    import json

    llm = load_model(args)
    texts, what = (args.texts, "text") if args.texts else (lines(), "line")

    def write(part: Sequence[str]) -> None:
        vectors = llm.embed(
            part,
            pooling=args.pooling,
            normalize=args.normalize,
            prompt=args.prompt,
            prompt_name=args.prompt_name,
            truncate=args.truncate,
        )
        for vector in vectors:
            numbers = [str(x) for x in vector]  # the shortest that are these float32
            print(" ".join(numbers) if args.text else json.dumps([float(x) for x in numbers]))

    in_parts(texts, what, 256, write)
    return 0
