"""fastllm chat: a talk with a model at a terminal, an answer to one message, or answers to lines of JSON."""

from __future__ import annotations

import argparse
import sys

from fastllm.cli.options import cache_options, guessing_options, load_draft, load_model, model_options
from fastllm.cli.sampling import bias_of, grammar_of, grammar_options, sampling_of, sampling_options, seed_of
from fastllm.errors import OptionError


def options(chat: argparse.ArgumentParser) -> None:
    chat.add_argument("model", metavar="MODEL", help="a chat model: a file, a folder or a name of the hub")
    chat.add_argument("text", nargs="*", metavar="TEXT", help="a message to answer; what a pipe brings follows it")
    chat.add_argument("-y", "--system", metavar="TEXT", help="a system prompt")
    chat.add_argument(
        "-n", "--max-tokens", type=int, metavar="N", help="write at most N new tokens an answer (-1: no limit)"
    )
    chat.add_argument("--no-think", action="store_true", help="answer at once, where the chat template can say so")
    chat.add_argument("--hide-thinking", action="store_true", help="do not show thinking, which is dim at a terminal")
    chat.add_argument("--no-history", action="store_true", help="keep no file of what is typed")
    chat.add_argument(
        "--jsonl",
        action="store_true",
        help="each line of stdin is a text, a message or a list of messages in JSON, and so is each answer",
    )
    sampling_options(chat)
    grammar_options(chat)
    guessing_options(chat)
    cache_options(chat)
    model_options(chat)


def run(args: argparse.Namespace) -> int:
    from fastllm.chat import Conversation
    from fastllm.cli._answers import Answers
    from fastllm.cli._piped import answer_lines, check_text, message_of
    from fastllm.cli._terminal import Screen, reader, say
    from fastllm.decoding import DEFAULTS

    sampling, grammar = sampling_of(args), grammar_of(args)
    usual = DEFAULTS._asdict()
    lists = {name: value for name, value in sampling.items() if not isinstance(usual[name], (int, float))}
    settings = {name: value for name, value in sampling.items() if name not in lists} | {"seed": seed_of(args)}
    if args.max_tokens is not None:
        settings["max_tokens"] = args.max_tokens
    if args.jsonl and args.text:
        raise OptionError("with --jsonl all messages come from stdin, so it takes no TEXT")
    check_text("--system", args.system or "")
    talking = not args.text and not args.jsonl and sys.stdin.isatty()
    message = None if talking or args.jsonl else message_of(args.text)
    llm = load_model(args)
    fixed = {**lists, **grammar, "logit_bias": bias_of(args, llm), "lookup": args.lookup, "draft": load_draft(args)}
    answers = Answers(llm, settings, fixed, think=not args.no_think)
    conversation = Conversation()
    conversation.system = args.system
    if args.jsonl:
        answer_lines(conversation, answers)
        return 0
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
