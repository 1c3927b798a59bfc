"""Options of beam search, and what is made of them."""

from __future__ import annotations

import argparse
from typing import Any

from fastllm.cli.lines import unescaped
from fastllm.errors import OptionError

_STOPPING: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}


def beam_options(parser: argparse.ArgumentParser) -> None:
    beams = parser.add_argument_group("beams", "Several texts are searched at once, and --n of the best are shown.")
    beams.add_argument("--num-beams", type=int, metavar="N", help="search with N beams; drawn where -t is above 0 (1)")
    beams.add_argument("--length-penalty", type=float, metavar="X", help="above 0, prefer longer texts (1)")
    beams.add_argument(
        "--early-stopping",
        choices=list(_STOPPING),
        help="end once N texts are done; else once no better one is likely, or once none can be (false)",
    )
    beams.add_argument("--num-beam-groups", type=int, metavar="G", help="G groups of beams that differ (1)")
    beams.add_argument("--diversity-penalty", type=float, metavar="X", help="by how much groups avoid each other (0)")
    beams.add_argument(
        "--force-word",
        dest="force_words",
        action="append",
        metavar="TEXT",
        help="the text must contain TEXT, or one of TEXT|TEXT; several times",
    )


def beams_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of beams that were given, as LLM.generate takes them. Raises OptionError."""
    from fastllm.decoding.beams import BeamOptions

    names = set(BeamOptions._fields) - {"num_return_sequences"}
    given = {name: value for name in sorted(names) if (value := vars(args)[name]) is not None}
    if "early_stopping" in given:
        given["early_stopping"] = _STOPPING[given["early_stopping"]]
    if "force_words" in given:
        given["force_words"] = [[unescaped(one) for one in word.split("|")] for word in given["force_words"]]
    if args.chat and given:
        raise OptionError("beams do not go with --chat")
    BeamOptions(**given)
    return given if given.get("num_beams", 1) > 1 else {}
