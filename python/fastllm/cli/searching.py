"""Options of searches, and what is made of them: contrastive search, DoLa, guidance."""

from __future__ import annotations

import argparse
from typing import Any

from fastllm.cli.lines import unescaped
from fastllm.errors import OptionError

_NAMES = ("penalty_alpha", "dola_layers", "guidance_scale", "negative_prompt")


def search_options(parser: argparse.ArgumentParser) -> None:
    search = parser.add_argument_group("searches", "Off unless given; one of the first three.")
    search.add_argument(
        "--penalty-alpha",
        type=float,
        metavar="X",
        help="contrastive search: of the --top-k likeliest, unlike the text so far by a share X of the choice",
    )
    search.add_argument(
        "--dola-layers", metavar="LAYERS", help="DoLa: against earlier layers: low, high, or a list, such as 0,2,4"
    )
    search.add_argument(
        "--guidance-scale", type=float, metavar="X", help="above 1, away from what is likely without the prompt"
    )
    search.add_argument("--negative-prompt", metavar="TEXT", help="or away from what is likely after TEXT")


def search_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as LLM.generate takes them. Raises OptionError."""
    given = {name: vars(args)[name] for name in _NAMES if vars(args)[name] is not None}
    if "dola_layers" in given:
        given["dola_layers"] = _layers(given["dola_layers"])
    if "negative_prompt" in given:
        given["negative_prompt"] = unescaped(given["negative_prompt"])
    if given:
        from fastllm.decoding.search import SearchOptions

        SearchOptions(**given)
    return given


def _layers(value: str) -> str | list[int]:
    if value in ("low", "high"):
        return value
    try:
        return [int(layer) for layer in value.split(",")]
    except ValueError:
        raise OptionError(f"dola_layers takes low, high or layers, such as 0,2,4, not {value!r}") from None
