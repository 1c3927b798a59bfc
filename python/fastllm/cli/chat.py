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
    from fastllm.chat import Conversation, chat_format
    from fastllm.llm import TextStream

    sampling, seed = sampling_of(args), seed_of(args)
    llm = load_model(args)
    draft = load_draft(args)
    conversation, chat = Conversation(), chat_format(llm)
    conversation.system = args.system
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
        conversation.say(without_end(line))
        tokens = chat.encode(conversation.messages)
        generation = llm.start(
            tokens,
            sampling,
            max_tokens=args.max_tokens,
            seed=seed,
            stop=llm.chat_stop,
            lookup=args.lookup,
            draft=draft,
        )
        try:
            for piece in TextStream(generation, llm.tokenizer, ()):
                write(piece)
        except KeyboardInterrupt:  # ends this reply, not the conversation
            if not asking:
                raise
        write("\n")
        conversation.messages.append({"role": "assistant", "content": llm.detokenize(generation.tokens)})
