"""Options that several commands have, and what is made of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastllm.cli.sizes import size
from fastllm.errors import OptionError

if TYPE_CHECKING:
    from fastllm.llm import LLM

BUILT_IN = Path(__file__).parents[1] / "demo" / "stories.safetensors"


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


def sampling_options(parser: argparse.ArgumentParser) -> None:
    """Options whose default is None are the model's own where its files have one, else run.c's."""
    draw = parser.add_argument_group("sampling", "Defaults are the model's own, else those in parentheses.")
    draw.add_argument("-t", "--temperature", type=float, metavar="X", help="0 is greedy (1.0; the built-in: 0.6)")
    draw.add_argument("-p", "--top-p", type=float, metavar="X", help="nucleus of probability X; 1 is all (0.9)")
    draw.add_argument("--top-k", type=int, metavar="N", help="of the N likeliest; 0 is all (0)")
    draw.add_argument("--min-p", type=float, metavar="X", help="at least X times the best's probability (0)")
    draw.add_argument("--typical-p", type=float, metavar="X", help="of the X nearest to what is expected; 1 is all (1)")
    draw.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1, tokens so far become less likely (1)"
    )
    draw.add_argument("--presence-penalty", type=float, metavar="X", help="the same of tokens in the new text (0)")
    draw.add_argument("--frequency-penalty", type=float, metavar="X", help="the same, again each time (0)")
    draw.add_argument(
        "--logit-bias",
        action="append",
        default=[],
        metavar="ID=X",
        help="add X to a token's logit, -inf forbids it; ID is a number, or a text of one token; several times",
    )
    draw.add_argument("-s", "--seed", type=int, metavar="N", help="the same seed gives the same text (a new one)")


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
            BUILT_IN if args.model is None else args.model,
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


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that were given, checked, as LLM.generate takes them; but logit_bias: see bias_of."""
    from fastllm.decoding import Sampling

    given = {name: vars(args)[name] for name in Sampling._fields if name != "logit_bias"}
    given = {name: value for name, value in given.items() if value is not None}
    if args.model is None:
        given.setdefault("temperature", 0.6)
    Sampling(**given)
    return given


def bias_of(args: argparse.Namespace, llm: LLM) -> dict[int, float]:
    """--logit-bias: token id -> number. Raises OptionError."""
    bias = {}
    for pair in args.logit_bias:
        name, _, value = pair.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            name = ""
        if not name:
            raise OptionError(f"logit_bias takes ID=X, X a number or -inf, not {pair!r}")
        bias[_token(name, llm)] = number
    return bias


def _token(name: str, llm: LLM) -> int:
    """The token of an id, or of a text by itself: what the text alone becomes, else the token that is shown so."""
    if name.isascii() and name.isdigit():
        return int(name[:19])
    ids = llm.tokenize(name, bos=False, special=True)
    if len(ids) != 1:  # SentencePiece puts a space before a text, so that a token with a space of its own is not met
        ids = [i for i, piece in enumerate(llm.tokenizer.stream().pieces) if piece == name.encode()][-1:]
    if not ids:
        raise OptionError(f"logit_bias takes a text of one token, and {name!r} is none")
    return ids[0]


def seed_of(args: argparse.Namespace) -> int:
    """The seed asked for, or a new one of 32 bits, short enough to be typed again."""
    return int.from_bytes(os.urandom(4), "little") if args.seed is None else args.seed
