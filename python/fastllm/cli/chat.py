"""fastllm chat: a talk with a model."""

from __future__ import annotations

import argparse
import sys

from fastllm.cli.lines import without_end, write
from fastllm.cli.options import (
    guessing_options,
    load_draft,
    load_model,
    model_options,
    sampling_of,
    sampling_options,
    seed_of,
)


def options(chat: argparse.ArgumentParser) -> None:
    chat.add_argument("model", metavar="MODEL", help="a checkpoint of a chat model")
    chat.add_argument("-y", "--system", metavar="TEXT", help="a system prompt")
    chat.add_argument("-n", "--max-tokens", type=int, metavar="N", help="write at most N new tokens a reply")
    model_options(chat)
    sampling_options(chat)
    guessing_options(chat)


def run(args: argparse.Namespace) -> int:
    from fastllm.chat import start_chat

    sampling, seed = sampling_of(args), seed_of(args)
    llm = load_model(args)
    draft = load_draft(args)
    conversation = start_chat(llm, args.system)
    asking = sys.stdin.isatty()
    if asking:
        print("A line is a turn; Ctrl-D ends.", file=sys.stderr)
    while True:
        if asking:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return 0
        if not line.strip():
            continue
        tokens = conversation.say(without_end(line))
        stream = llm.generate(
            tokens,
            **sampling._asdict(),
            max_tokens=args.max_tokens,
            seed=seed,
            stop=list(conversation.stop),
            lookup=args.lookup,
            draft=draft,
            stream=True,
        )
        try:
            for piece in stream:
                write(piece)
        except KeyboardInterrupt:  # ends this reply, not the conversation
            if not asking:
                raise
        write("\n")
        conversation.reply(stream.tokens)
