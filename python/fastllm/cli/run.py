"""fastllm run: a text from a model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from fastllm.cli.lines import write
from fastllm.cli.options import (
    guessing_options,
    load_draft,
    load_model,
    model_options,
    sampling_of,
    sampling_options,
    seed_of,
)
from fastllm.errors import OptionError

if TYPE_CHECKING:
    from fastllm.engine import Generation
    from fastllm.llm import LLM


def options(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a checkpoint, or its name on the hub; without, a built-in storyteller",
    )
    run.add_argument("-i", "--prompt", default="", metavar="TEXT", help="text to continue")
    length = run.add_mutually_exclusive_group()
    length.add_argument(
        "-n",
        "--steps",
        type=int,
        metavar="N",
        help="stop after N tokens in all, the prompt's included; 0 is the context's end (default 256; built-in: 0)",
    )
    length.add_argument("--max-tokens", type=int, metavar="N", help="write at most N new tokens")
    model_options(run)
    sampling_options(run)
    guessing_options(run)
    run.add_argument("--json", action="store_true", help="print one JSON object at the end instead of text")


def run(args: argparse.Namespace) -> int:
    from fastllm.tokenizer import decode

    sampling, seed = sampling_of(args), seed_of(args)
    llm = load_model(args)
    tokens = llm.tokenize(args.prompt)
    max_tokens = args.max_tokens
    if max_tokens is None:
        steps = args.steps
        if steps is None:
            steps = 0 if args.model is None else 256
        if steps < 0:
            raise OptionError(f"-n must be 0 or more, not {steps}")
        if steps > 0:
            # As llama2.c counts: each step takes one token and shows the next.
            tokens = tokens[: steps + 1]
            max_tokens = steps + 1 - len(tokens)
    draft = load_draft(args)
    options = sampling._asdict() | {"max_tokens": max_tokens, "seed": seed, "lookup": args.lookup, "draft": draft}
    pieces = llm.generate(tokens, stream=True, **options)
    generation, prompt = pieces.generation, decode(llm.tokenizer, tokens)
    text, interrupted = [], False
    try:
        if not args.json:
            write(prompt)
        for piece in pieces:
            text.append(piece)
            if not args.json:
                write(piece)
    except KeyboardInterrupt:
        interrupted = True
    speed = _speed(llm, generation)
    if args.lookup or draft:
        speed |= {"proposed_tokens": generation.proposed, "accepted_tokens": generation.accepted}
    if args.json:
        import json

        reason = "interrupted" if interrupted else pieces.finish_reason
        about: dict[str, object] = {"prompt": prompt, "text": "".join(text)}
        about |= {"tokens": generation.tokens, "finish_reason": reason, "seed": seed}
        print(json.dumps(about | speed, ensure_ascii=False))
    else:
        write("\n")
        print(speed_line(speed, seed), file=sys.stderr)
    return 130 if interrupted else 0


def _speed(llm: LLM, generation: Generation) -> dict[str, float | int | str | None]:
    """The measured speeds; None where too little ran to tell."""

    def rate(count: int, seconds: float) -> float | None:
        return count / seconds if count > 0 and seconds > 0 else None

    prompt = len(generation.prompt) - generation.cached
    # The first new token is drawn from the prompt's logits, so it is not counted here.
    decode_tps = rate(len(generation.tokens) - 1, generation.decode_seconds)
    # A right guess adds a token without reading the weights again.
    forwards = len(generation.tokens) - 1 - generation.accepted
    forward_tps = rate(forwards, generation.decode_seconds)
    weight_gbps = forward_tps * llm.bytes_per_token / 1e9 if forward_tps else None
    return {
        "prompt_tokens": len(generation.prompt),
        "generated_tokens": len(generation.tokens),
        "prompt_tps": rate(prompt, generation.prompt_seconds),
        "decode_tps": decode_tps,
        "weight_gbps": weight_gbps,
        "read_gbps": llm.read_bandwidth(),
        "isa": llm.isa,
        "threads": llm.threads,
        "dtype": "+".join(llm.dtypes),
    }


def speed_line(speed: dict[str, float | int | str | None], seed: int) -> str:
    parts = []
    for name in ("prompt", "generated"):
        tps = speed["prompt_tps" if name == "prompt" else "decode_tps"]
        rate = f", {tps:,.0f} tokens/s" if isinstance(tps, float) else ""
        parts.append(f"{name} {speed[f'{name}_tokens']} tokens{rate}")
    if "proposed_tokens" in speed:
        parts.append(f"guessed {speed['proposed_tokens']}, {speed['accepted_tokens']} of them right")
    used, read = speed["weight_gbps"], speed["read_gbps"]
    if isinstance(used, float) and isinstance(read, float):
        share = f", {used / read:.0%} of the {read:.1f} that reading alone takes" if used < 2 * read else ""
        parts.append(f"weights {used:.1f} GB/s{share}")
    threads = speed["threads"]
    parts.append(f"{speed['isa']}, {threads} thread{'s' if threads != 1 else ''}, {speed['dtype']}")
    parts.append(f"seed {seed}")
    return f"[{'; '.join(parts)}]"
