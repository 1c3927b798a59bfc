"""Options that several commands have, and what is made of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fastllm.cli.sizes import size

if TYPE_CHECKING:
    from fastllm.llm import LLM


def model_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(kv_bytes=None, prompt_cache=None)  # where a command has no cache_options
    model = parser.add_argument_group("model")
    model.add_argument("-z", "--tokenizer", metavar="FILE", help="default: beside the model, or in this folder")
    model.add_argument(
        "--dtype",
        metavar="TYPE",
        help="convert weights to f32, f16, bf16, q8 or q4 (default: as in the file, or q8)",
    )
    model.add_argument(
        "--no-calibrate",
        action="store_true",
        help="round each weight to q4 by itself: sooner done, less like the model",
    )
    precise_options(model)
    model.add_argument("--kv", metavar="TYPE", help="keys and values: f32, f16, q8 or q4 (default: f16; f32 with f32)")
    model.add_argument("--context", type=int, metavar="N", help="positions a text may have (default: the model's)")
    opening_options(model)
    model.add_argument(
        "--no-cache", action="store_true", help="pack weights anew, and keep nothing (see fastllm cache)"
    )


def precise_options(parser: argparse._ActionsContainer) -> None:
    """Without either, a converted file says it."""
    parser.add_argument(
        "--precise",
        action="store_true",
        default=None,
        help="activations of 15 bits instead of 8: nearer to f32, slower",
    )
    parser.add_argument(
        "--no-precise", action="store_false", dest="precise", help="of 8, even where a converted file says --precise"
    )


def opening_options(parser: argparse._ActionsContainer) -> None:
    """What every command has that opens a checkpoint, also where it runs no model."""
    parser.add_argument("--threads", type=int, metavar="N", help="default: see fastllm info")
    parser.add_argument("--revision", metavar="NAME", help="of a model on the hub: branch, tag or commit")
    parser.add_argument(
        "--lora", action="append", metavar="PATH", help="add a PEFT adapter to the weights; may be given several times"
    )


def cache_options(parser: argparse.ArgumentParser) -> None:
    cache = parser.add_argument_group("cache")
    cache.add_argument("--prompt-cache", metavar="DIR", help="keep what long prompts compute, for the next start")
    cache.add_argument("--kv-bytes", type=size, metavar="SIZE", help="of all keys and values (default: see info)")


def guessing_options(parser: argparse.ArgumentParser) -> None:
    guesses = parser.add_argument_group("guesses").add_mutually_exclusive_group()
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
            args.model,
            dtype=args.dtype,
            calibrate=not args.no_calibrate,
            precise=args.precise,
            kv=args.kv,
            threads=args.threads,
            context=args.context,
            tokenizer=args.tokenizer,
            revision=args.revision,
            lora=args.lora,
            kv_bytes=args.kv_bytes,
            cache_dir=args.prompt_cache,
            cache=not args.no_cache,
            progress=bar,
        )


def load_draft(args: argparse.Namespace) -> LLM | None:
    from fastllm.llm import load

    return None if args.draft is None else load(args.draft, kv=args.kv, threads=args.threads, cache=not args.no_cache)
