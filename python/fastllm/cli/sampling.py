"""Options of a draw, which several commands have, and what is made of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastllm.cli.lines import unescaped
from fastllm.cli.prompt import file_text
from fastllm.errors import OptionError

if TYPE_CHECKING:
    from fastllm.llm import LLM

# Those that are numbers: type, metavar, and what they are.
_COMMON: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "top_k": (int, "N", "of the N likeliest; 0 is all (0)"),
    "min_p": (float, "X", "at least X times the best's probability (0)"),
    "typical_p": (float, "X", "of the X nearest to what is expected; 1 is all (1)"),
    "repetition_penalty": (float, "X", "above 1, tokens so far become less likely (1)"),
    "presence_penalty": (float, "X", "the same of tokens in the new text (0)"),
    "frequency_penalty": (float, "X", "the same, again each time (0)"),
}
RARE: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "penalty_window": (int, "N", "penalties look at the last N tokens; 0 is all (0)"),
    "no_repeat_ngram_size": (int, "N", "N tokens in a row never occur twice; 0 is off (0)"),
    "dry_multiplier": (float, "X", "DRY: going on as after the same tokens before costs X or more (0)"),
    "dry_base": (float, "X", "times X for each of these tokens (1.75)"),
    "dry_allowed_length": (int, "N", "after N of them (2)"),
    "dry_penalty_last_n": (int, "N", "DRY looks at the last N tokens; -1 is all (-1)"),
    "dynatemp_range": (float, "X", "the temperature moves by up to X with the entropy (0)"),
    "dynatemp_exponent": (float, "X", "as the entropy to the power of X (1)"),
    "top_n_sigma": (float, "X", "logits up to X standard deviations below the best; 0 is all (0)"),
    "top_h": (float, "X", "of the likeliest that hold X of the entropy; 0 is all (0)"),
    "epsilon_cutoff": (float, "X", "of probability X or more; 0 is all (0)"),
    "eta_cutoff": (float, "X", "the same, less where much is possible; 0 is all (0)"),
    "xtc_probability": (float, "X", "XTC: with this chance, leave out the likeliest tokens (0)"),
    "xtc_threshold": (float, "X", "that have this probability or more, but one (0.1)"),
    "mirostat_tau": (float, "X", "mirostat 2: aim at X bits a token, in place of other filters; 0 is off (0)"),
    "mirostat_eta": (float, "X", "at this rate (0.1)"),
    "forced_eos_token_id": (int, "ID", "the token that a text of --max-tokens ends with"),
}
# Those that may be given several times, and those that are lists in one value.
_REPEATED = {
    "bad_words": ("--bad-word", "TEXT", "do not write TEXT"),
    "sequence_bias": ("--sequence-bias", "TEXT=X", "add X to the logit of the token that completes TEXT"),
    "dry_sequence_breakers": ("--dry-sequence-breaker", "TEXT", r"DRY begins anew after TEXT (\n : \" *)"),
}
_LISTS = {
    "suppress_tokens": ("IDS", "do not write these tokens, such as 5,7"),
    "begin_suppress_tokens": ("IDS", "nor these as the first"),
    "exponential_decay_length_penalty": ("START,X", "after START tokens an end becomes likelier, X times each token"),
    "sampler_order": ("NAMES", "the order of filters, such as top_k,top_p,temperature; without the others"),
    "watermark": ("KEY", "mark the text with the green tokens of a number that you keep secret"),
}


def sampling_options(parser: argparse.ArgumentParser) -> None:
    """Options whose default is None are the model's own where its files have one, else run.c's."""
    draw = parser.add_argument_group("sampling", "Defaults are the model's own, else those in parentheses.")
    draw.add_argument("-t", "--temperature", type=float, metavar="X", help="0 is greedy (1.0; the built-in: 0.6)")
    draw.add_argument("-p", "--top-p", type=float, metavar="X", help="nucleus of probability X; 1 is all (0.9)")
    for name, (kind, metavar, text) in _COMMON.items():
        draw.add_argument(_flag(name), type=kind, metavar=metavar, help=text)
    draw.add_argument(
        "--logit-bias",
        action="append",
        default=[],
        metavar="ID=X",
        help="add X to a token's logit, -inf forbids it; ID is a number, or a text of one token; several times",
    )
    draw.add_argument("-s", "--seed", type=int, metavar="N", help="the same seed gives the same text (a new one)")
    rare = parser.add_argument_group("more sampling", "Off unless given.")
    for name, (flag, metavar, text) in _REPEATED.items():
        rare.add_argument(flag, dest=name, action="append", metavar=metavar, help=f"{text}; several times")
    for name, (kind, metavar, text) in RARE.items():
        rare.add_argument(_flag(name), type=kind, metavar=metavar, help=text)
    for name, (metavar, text) in _LISTS.items():
        rare.add_argument(_flag(name), metavar=metavar, help=text)


def grammar_options(parser: argparse.ArgumentParser) -> None:
    rules = parser.add_argument_group("grammar", "The text follows one of these. Needs pip install 'fastllm[grammar]'.")
    one = rules.add_mutually_exclusive_group()
    one.add_argument("--json-schema", metavar="FILE", help="a JSON schema, or its text: {} is any JSON")
    one.add_argument("--regex", metavar="R", help="a regular expression that all of the text matches")
    one.add_argument("--choice", action="append", metavar="TEXT", help="one of these texts; several times")
    one.add_argument("--grammar", metavar="FILE", help="a grammar in the form of Lark or of llama.cpp (GBNF)")


def grammar_of(args: argparse.Namespace) -> dict[str, Any]:
    """The option of a grammar that was given, as LLM.generate takes it. Raises OptionError."""
    schema = args.json_schema
    if schema is not None and not schema.lstrip().startswith("{"):
        schema = file_text(schema)
    return {
        "json_schema": schema,
        "regex": args.regex,
        "choice": None if args.choice is None else [unescaped(one) for one in args.choice],
        "grammar": None if args.grammar is None else file_text(args.grammar),
    }


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that were given, checked, as LLM.generate takes them; but logit_bias: see bias_of."""
    from fastllm.decoding import Sampling

    given = {name: vars(args)[name] for name in Sampling._fields if name != "logit_bias"}
    given = {name: value for name, value in given.items() if value is not None}
    for name, parse in _PARSERS.items():
        if name in given:
            given[name] = parse(name, given[name])
    if args.model is None and not vars(args).get("num_beams"):
        given.setdefault("temperature", 0.6)
    Sampling(**given)
    return given


def bias_of(args: argparse.Namespace, llm: LLM) -> dict[int, float]:
    """--logit-bias: token id -> number. Raises OptionError."""
    return {_token(name, llm): number for name, number in _pairs("logit_bias", "ID", args.logit_bias)}


def seed_of(args: argparse.Namespace) -> int:
    """The seed asked for, or a new one of 32 bits, short enough to be typed again."""
    return int.from_bytes(os.urandom(4), "little") if args.seed is None else args.seed


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _pairs(option: str, what: str, given: list[str]) -> list[tuple[str, float]]:
    """The texts and numbers of WHAT=X. Raises OptionError."""
    found = []
    for pair in given:
        name, _, value = pair.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            name = ""
        if not name:
            raise OptionError(f"{option} takes {what}=X, X a number or -inf, not {pair!r}")
        found.append((name, number))
    return found


def _ids(name: str, value: str) -> list[int]:
    return [int(one) for one in _numbers(name, value, "token ids, such as 5,7", int)]


def _decay(name: str, value: str) -> list[float]:
    start, *rest = _numbers(name, value, "a start and a factor, such as 100,1.1", float)
    return [int(start) if start.is_integer() else start, *rest]


def _watermark(name: str, value: str) -> dict[str, Any]:
    return {"hashing_key": _numbers(name, value, "a whole number", int)[0]}


def _numbers(name: str, value: str, what: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(one) for one in value.split(",")]
    except ValueError:
        raise OptionError(f"{name} takes {what}, not {value!r}") from None


# How the values that are texts are read.
_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "bad_words": lambda _, words: [unescaped(word) for word in words],
    "sequence_bias": lambda name, given: [(unescaped(text), x) for text, x in _pairs(name, "TEXT", given)],
    "dry_sequence_breakers": lambda _, texts: [unescaped(text) for text in texts],
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "exponential_decay_length_penalty": _decay,
    "watermark": _watermark,
}


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
