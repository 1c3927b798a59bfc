"""fastllm chat: a talk with a model at a terminal, an answer to one message, or answers to lines of JSON."""

from __future__ import annotations

import argparse
import sys

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


def options(chat: argparse.ArgumentParser) -> None:
    chat.add_argument("model", metavar="MODEL", help="a checkpoint of a chat model")
    chat.add_argument(
        "question", nargs="?", metavar="TEXT", help="answer this, followed by what a pipe brings, and end"
    )
    chat.add_argument("-y", "--system", metavar="TEXT", help="a system prompt")
    chat.add_argument("-n", "--max-tokens", type=int, metavar="N", help="write at most N new tokens an answer")
    sampling_options(chat)
    chat.add_argument("--no-think", action="store_true", help="answer at once, where the chat template can say so")
    chat.add_argument("--hide-thinking", action="store_true", help="do not show thinking, which a terminal shows dim")
    chat.add_argument("--no-history", action="store_true", help="keep no file of what was typed")
    chat.add_argument(
        "--jsonl",
        action="store_true",
        help="each line of stdin is a text, a message with role and content, or a list of messages; so are answers",
    )
    model_options(chat)
    guessing_options(chat)


def run(args: argparse.Namespace) -> int:
    from fastllm.chat import Conversation
    from fastllm.cli._answers import Answers

    if args.jsonl and args.question is not None:
        raise OptionError("with --jsonl all messages come from stdin, so no TEXT is taken")
    sampling, seed = sampling_of(args), seed_of(args)
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    talking = at_terminal and args.question is None and not args.jsonl
    message = None
    if not talking and not args.jsonl:
        from fastllm.cli._piped import question

        message = question(args.question)
    answers = Answers(load_model(args), load_draft(args), sampling, seed, args)
    conversation = Conversation()
    conversation.system = args.system
    if args.jsonl:
        from fastllm.cli._piped import answer_lines

        answer_lines(conversation, answers)
        return 0
    from fastllm.cli._terminal import Screen, reader, say

    screen = Screen(thinking=not args.hide_thinking)
    if message is not None:
        conversation.say(message)
        answers.fit(conversation)
        return 0 if answers.answer(conversation, screen) else 130
    from fastllm.cli._talk import Talk

    typed = reader(history=not args.no_history)
    say("Enter sends a message, Alt-Enter makes a new line, /help lists commands, Ctrl-D ends.")
    Talk(conversation, answers, screen).run(typed)
    return 0
