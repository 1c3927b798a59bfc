"""Options that several commands have, and what is made of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastllm.decoding import Sampling
    from fastllm.llm import LLM

BUILT_IN = Path(__file__).parents[1] / "demo" / "stories.safetensors"


def model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-z", "--tokenizer", metavar="FILE", help="default: beside the model, or in this folder")
    parser.add_argument(
        "--dtype",
        metavar="TYPE",
        help="convert weights to f32, f16, bf16, q8 or q4 (default: as in the file; weights of a few bits: q8)",
    )
    parser.add_argument("--kv", metavar="TYPE", help="of keys and values: f32, f16 or q8 (default: f16; f32 with f32)")
    parser.add_argument("--context", type=int, metavar="N", help="positions a text may have (default: the model's)")
    opening_options(parser)


def opening_options(parser: argparse.ArgumentParser) -> None:
    """What every command has that opens a checkpoint, also where it runs no model."""
    parser.add_argument("--threads", type=int, metavar="N", help="default: see fastllm info")
    parser.add_argument("--revision", metavar="NAME", help="of a model on the hub: branch, tag or commit")
    parser.add_argument(
        "--lora", action="append", metavar="PATH", help="add a PEFT adapter to the weights; may be given several times"
    )


def sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-t", "--temperature", type=float, metavar="X", help="0 is greedy (default 1.0; built-in: 0.6)")
    parser.add_argument(
        "-p", "--top-p", type=float, default=0.9, metavar="X", help="nucleus of probability X; 1 is all (default 0.9)"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="N", help="of the N likeliest; 0 is all (default)")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="X", help="at least X times the best's probability")
    parser.add_argument("-s", "--seed", type=int, metavar="N", help="the same seed gives the same text")


def guessing_options(parser: argparse.ArgumentParser) -> None:
    guesses = parser.add_mutually_exclusive_group()
    guesses.add_argument(
        "--lookup",
        action="store_true",
        help="guess tokens from the text so far: the same text, faster if it repeats",
    )
    guesses.add_argument(
        "--draft", metavar="MODEL", help="guess tokens with a smaller model of the same vocabulary: the same text"
    )


def load_model(args: argparse.Namespace) -> LLM:
    from fastllm.llm import load
    from fastllm.progress import Bar

    with Bar("packing") as bar:
        return load(
            BUILT_IN if args.model is None else args.model,
            dtype=args.dtype,
            kv=args.kv,
            threads=args.threads,
            context=args.context,
            tokenizer=args.tokenizer,
            revision=args.revision,
            lora=args.lora,
            progress=bar,
        )


def load_draft(args: argparse.Namespace) -> LLM | None:
    from fastllm.llm import load

    return None if args.draft is None else load(args.draft, kv=args.kv, threads=args.threads)


def sampling_of(args: argparse.Namespace) -> Sampling:
    from fastllm.decoding import Sampling

    temperature = args.temperature
    if temperature is None:
        temperature = 0.6 if args.model is None else 1.0
    return Sampling(temperature=temperature, top_p=args.top_p, top_k=args.top_k, min_p=args.min_p)


def seed_of(args: argparse.Namespace) -> int:
    """The seed asked for, or a new one of 32 bits, short enough to be typed again."""
    return int.from_bytes(os.urandom(4), "little") if args.seed is None else args.seed
