"""fastllm run: a text from a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastllm.cli.beams import beam_options, beams_of
from fastllm.cli.lines import token_texts, unescaped, write
from fastllm.cli.options import cache_options, guessing_options, load_draft, load_model, model_options
from fastllm.cli.prompt import prompt_of, prompt_options
from fastllm.cli.sampling import bias_of, grammar_of, grammar_options, sampling_of, sampling_options, seed_of
from fastllm.cli.searching import search_of, search_options
from fastllm.errors import OptionError

if TYPE_CHECKING:
    from fastllm.engine import Logprob
    from fastllm.llm import LLM, ChatStream, Text, TextStream

_NEW_TOKENS = 256


def options(run: argparse.ArgumentParser) -> None:
    run.add_argument("model", nargs="?", metavar="MODEL", help="a file, a folder or a name of the hub (built-in)")
    prompt_options(run)
    run.add_argument("--chat", action="store_true", help="answer the prompt, in the format of the chat template")
    run.add_argument("--special", action="store_true", help="special tokens written in the prompt are no text")
    length = run.add_argument_group("length")
    most = length.add_mutually_exclusive_group()
    most.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="write at most N new tokens; -1: to the end of the context (256; built-in and --chat: -1)",
    )
    most.add_argument(
        "-n", "--steps", type=int, metavar="N", help="as in llama2.c: N tokens in all, the prompt's too; 0 is no limit"
    )
    length.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; \\n is a line end"
    )
    length.add_argument("--min-tokens", type=int, default=0, metavar="N", help="no end before N new tokens")
    length.add_argument("--ignore-eos", action="store_true", help="go on where the model ends its text")
    sampling_options(run)
    beam_options(run)
    grammar_options(run)
    search_options(run)
    output = run.add_argument_group("output")
    output.add_argument("--n", type=int, default=1, metavar="N", help="write N texts, of seeds from -s on")
    output.add_argument("--json", action="store_true", help="print a JSON object for each text, in a line at its end")
    output.add_argument("--logprobs", type=int, metavar="K", help="list log probabilities, with the K likeliest tokens")
    guessing_options(run)
    cache_options(run)
    model_options(run)


def run(args: argparse.Namespace) -> int:
    _check(args)
    sampling, grammar, beams, search = sampling_of(args), grammar_of(args), beams_of(args), search_of(args)
    prompt = prompt_of(args) or ""
    if args.temperature is None and "penalty_alpha" in search:
        sampling.pop("temperature", None)  # the built-in model's: contrastive search is greedy
    if args.chat and not prompt:
        raise OptionError("--chat needs a message: TEXT, -i, --file or stdin")
    llm = load_model(args)
    asked, shown, max_tokens = _prompt(args, llm, prompt)
    given: dict[str, Any] = {
        **sampling,
        **beams,
        **grammar,
        **search,
        "logit_bias": bias_of(args, llm),
        "seed": seed_of(args),
        "max_tokens": max_tokens,
        "min_tokens": args.min_tokens,
        "ignore_eos": args.ignore_eos,
        "stop": [unescaped(stop) for stop in args.stop],
        "logprobs": args.logprobs,
        "lookup": args.lookup,
        "draft": load_draft(args),
    }
    code, thinking = 0, None
    if args.chat:
        answer = llm.chat(prompt, stream=True, **given)
        code = _write(answer, args)
        texts = [answer.message["content"]]
        thinking = answer.message.get("reasoning_content")
    elif args.n == 1 and not beams:
        stream = llm.generate(asked, stream=True, special=args.special, **given)
        write("" if args.json else shown)
        code = _write(stream, args)
        texts = [stream.text]
    else:
        texts = llm.generate(asked, n=args.n, special=args.special, **given)
        texts = texts if args.n > 1 else [texts]
        for i, text in enumerate(() if args.json else texts):
            which = f"score {text.score:.4f}" if beams else f"seed {text.seed}"
            write(f"--- {i + 1} of {args.n}, {which} ---\n" if args.n > 1 else "")
            write(f"{shown}{text}\n")
            _list_logprobs(llm, text.logprobs or ())
    if args.json:
        import json

        for text in texts:
            about = _about(llm, shown, text, guesses=args.lookup or args.draft is not None)
            print(json.dumps(about | ({"reasoning_content": thinking} if thinking else {}), ensure_ascii=False))
        return code
    if args.n == 1 and not beams:
        _list_logprobs(llm, texts[0].logprobs or ())
    speed = _speed(llm, texts, guesses=args.lookup or args.draft is not None)
    print(speed_line(speed, given["seed"]), file=sys.stderr)
    return code


def _check(args: argparse.Namespace) -> None:
    """Raises OptionError for options that do not go together."""
    if args.steps is not None and args.steps < 0:
        raise OptionError(f"-n must be 0 or more, not {args.steps}")
    for name, used in (("-n", args.steps is not None), ("--n", args.n != 1), ("--special", args.special)):
        if args.chat and used:
            raise OptionError(f"{name} does not go with --chat")
    if "" in args.stop:
        raise OptionError("--stop takes a text, which is not empty")
    if args.model is not None and " " in args.model and not args.text and not Path(args.model).exists():
        raise OptionError(f"{args.model!r} is no model: MODEL comes before TEXT; -i TEXT does without one")


def _prompt(args: argparse.Namespace, llm: LLM, prompt: str) -> tuple[str | list[int], str, int | None]:
    """The prompt for the model, as it is shown before the text, and the most new tokens."""
    if args.chat:
        return prompt, prompt, args.max_tokens
    max_tokens: int | None = args.max_tokens
    if max_tokens is None and args.steps is None and args.model is not None:
        max_tokens = _NEW_TOKENS
    tokens = llm.tokenize(prompt, special=args.special)
    if args.steps:
        # As llama2.c counts: each step takes one token and shows the next.
        max_tokens = max(0, args.steps + 1 - len(tokens))
        if len(tokens) > args.steps + 1:
            said = (
                f"fastllm: -n {args.steps} counts the prompt too, and cuts its {len(tokens)} tokens to {args.steps + 1}"
            )
            print(f"{said}; --max-tokens counts new tokens only", file=sys.stderr)
            tokens = tokens[: args.steps + 1]
            return tokens, llm.detokenize(tokens), max_tokens
    # Of special tokens generate knows more than tokenize, and detokenize shows none.
    return (prompt, prompt, max_tokens) if args.special else (tokens, llm.detokenize(tokens), max_tokens)


def _write(pieces: TextStream | ChatStream, args: argparse.Namespace) -> int:
    """Writes a text as its pieces come, unless JSON is asked for; returns the exit code. Ctrl-C ends the text."""
    code = 0
    try:
        for piece in pieces:
            if not args.json:
                write(piece)
    except KeyboardInterrupt:
        pieces.close()
        code = 130
    if not args.json:
        write("\n")
    return code


def _about(llm: LLM, prompt: str, text: Text, *, guesses: bool) -> dict[str, object]:
    """What --json says of a text."""
    about: dict[str, object] = {"prompt": prompt, "text": text, "tokens": text.tokens}
    about |= {"finish_reason": text.finish_reason, "seed": text.seed}
    if text.score is not None:
        about["score"] = text.score
    if text.logprobs is not None:
        about["logprobs"] = [
            {**_scored(llm, one.token, one.logprob), "top": [_scored(llm, *other) for other in one.top]}
            for one in text.logprobs
        ]
    return about | _speed(llm, [text], guesses=guesses)


def _scored(llm: LLM, token: int, logprob: float) -> dict[str, object]:
    return {"token": token_texts(llm, [token])[0], "id": token, "logprob": logprob}


def _list_logprobs(llm: LLM, logprobs: Sequence[Logprob]) -> None:
    """A line for each token on stderr: its log probability and text, and those of the likeliest."""
    for one in logprobs:
        tokens = token_texts(llm, [one.token, *(token for token, _ in one.top)])
        numbers = [one.logprob, *(logprob for _, logprob in one.top)]
        cells = [f"{number:8.4f} {token!r:12}" for token, number in zip(tokens, numbers, strict=True)]
        print(" ".join(cells).rstrip(), file=sys.stderr)


def _speed(llm: LLM, texts: Sequence[Text], *, guesses: bool) -> dict[str, float | int | str | None]:
    """The measured speeds of texts on one prompt that were written together; None where too little ran to tell."""

    def rate(count: int, seconds: float) -> float | None:
        return count / seconds if count > 0 and seconds > 0 else None

    first, count = texts[0], sum(len(text.tokens) for text in texts)
    seconds = max(text.decode_seconds for text in texts)
    # A right guess adds a token without reading the weights again; texts that are written together share a reading.
    forwards = len(first.tokens) - 1 - first.accepted_tokens if len(texts) == 1 else 0
    forward_tps = rate(forwards, seconds)
    speed: dict[str, float | int | str | None] = {
        "prompt_tokens": first.prompt_tokens,
        "generated_tokens": count,
        "prompt_tps": rate(first.prompt_tokens - first.cached_tokens, first.prompt_seconds),
        # The first new token is drawn from the prompt's logits, so it is not counted here.
        "decode_tps": rate(count - len(texts), seconds),
        "weight_gbps": forward_tps * llm.bytes_per_token / 1e9 if forward_tps else None,
        "read_gbps": llm.read_bandwidth(),
        "isa": llm.isa,
        "threads": llm.threads,
        "dtype": "+".join(llm.dtypes),
        "precise": llm.config.precise and not {"f32", "f16", "bf16"}.issuperset(llm.dtypes),
    }
    if guesses:
        speed["proposed_tokens"] = sum(text.proposed_tokens for text in texts)
        speed["accepted_tokens"] = sum(text.accepted_tokens for text in texts)
    return speed


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
    threads, precise = speed["threads"], ", precise" if speed["precise"] else ""
    parts.append(f"{speed['isa']}, {threads} thread{'s' if threads != 1 else ''}, {speed['dtype']}{precise}")
    parts.append(f"seed {seed}")
    return f"[{'; '.join(parts)}]"
