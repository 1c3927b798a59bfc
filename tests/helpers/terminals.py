"""A terminal with `fastllm chat` at it, and small models that talk."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import fastllm
from fastllm import LLM
from helpers import writers

# The process of a terminal's session. Ctrl-C must reach it even where tests run in the background, which ignores it.
_CHILD = """
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[1] == "plain":
    sys.modules["prompt_toolkit"] = None
from fastllm import cli
raise SystemExit(cli.main(["chat", *sys.argv[2:]]))
"""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
READY = "\x1b[?2004h"  # the editor begins to read: it asks for bracketed paste


# A chat template that can be told not to think, and what makes it begin answers with thinking otherwise.
TEMPLATE = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}
{%- endif %}
"""
_THINKS = "{% if add_generation_prompt and enable_thinking is not defined %}<think>{% endif %}"


# Options with which a talker writes each letter at most once, then </think>, then other characters.
THOUGHTS = ("-t", "0", "--presence-penalty", "50", "--logit-bias", "</think>=0.1", "-n", "40", "-s", "5")


def talker(folder: Path, *, context: int = 100_000, thinks: bool = False) -> Path:
    """A random model with a chat template, whose greedy answers are letters without an end.

    Each byte is a token, so that a text has the tokens with which it was written. The tokenizer is in `folder` too.
    thinks: whether answers begin with thinking, which ends only with THOUGHTS.
    """
    import tokenizers

    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    library = tokenizers.Tokenizer(tokenizers.models.BPE({text: i for i, text in enumerate(sorted(alphabet))}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    library.add_tokens(["<think>", "</think>"])
    library.save(str(folder / "tokenizer.json"))
    template = TEMPLATE + _THINKS if thinks else TEMPLATE
    settings = {"chat_template": template, "eos_token": "<|im_end|>", "model_max_length": context}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    cfg = writers.config(40, 57, 4, 2, library.get_vocab_size(), max_seq=context)
    weights = writers.random_weights(cfg)
    letters = [library.token_to_id(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    weights["head"][[i for i in range(cfg.vocab_size) if i not in letters]] = 0
    path = folder / "talker.bin"
    path.write_bytes(writers.v1(cfg, weights))
    return path


def with_template(folder: Path, template: str, **more: Any) -> LLM:
    """A talker of this template. more: other entries of tokenizer_config.json."""
    path = talker(folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    words = state["model"]["vocab"]
    for mark, other in ('"', "\u0100"), ("#", "\u0101"):  # the ids 1 and 2 end texts in llama2.c's files
        words[mark], words[other] = words[other], words[mark]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template, **more}))
    return fastllm.load(path, threads=1)


class Says:
    """A logits_processor that has the model write a text."""

    def __init__(self, llm: LLM, text: str) -> None:
        self.ids: list[Any] = [*llm.tokenize(text, bos=False, special=True), llm.tokenizer.token_id("<|im_end|>")]
        self.at = 0

    def __call__(self, ids: list[int], logits: Any) -> None:
        logits[:] = 0
        logits[self.ids[self.at]] = 100
        self.at += 1


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def written(llm: LLM, messages: Any, **options: Any) -> str:
    """What the API answers, greedily and in six tokens, unless options say otherwise."""
    options = {"temperature": 0, "max_tokens": 6, "seed": 5} | options
    return str(llm.chat(messages, **options)["content"])


class Terminal:
    """A pseudo-terminal of 24 x 80 characters, on which `fastllm chat` runs.

    plain: as where prompt_toolkit is not installed.
    """

    def __init__(self, *args: str, plain: bool = False, **env: str) -> None:
        self._leader, follower = pty.openpty()
        self.resize(24, 80)
        mode = "plain" if plain else "editor"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, mode, *args],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"} | env,
        )
        os.close(follower)
        self._seen, self._at = b"", 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._leader)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        """A terminal takes only so much at a time while nothing is read: so reads too."""
        data = keys.encode()
        while data:
            reads, writes, _ = select.select([self._leader], [self._leader], [], 60)
            if reads:
                self._read()
            if writes:
                data = data[os.write(self._leader, data[:512]) :]

    def interrupt(self) -> None:
        """Ctrl-C for readline, which misses it in the instant after a key, until the next key."""
        time.sleep(0.5)
        self.type("\x03")

    def wait(self, text: str) -> str:
        """Waits until a text has appeared after those that were waited for before, and returns what came with it."""
        end = time.monotonic() + 60
        while (found := self._text().find(text, self._at)) < 0:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} did not appear after {self._text()[self._at :]!r}"
            if select.select([self._leader], [], [], left)[0]:
                assert self._read(), f"it ended before {text!r}: {self._text()[self._at :]!r}"
        before, self._at = self._at, found + len(text)
        return _ESCAPES.sub("", self._text()[before : self._at])

    def ready(self) -> str:
        """Waits until the editor reads a message."""
        return self.wait(READY)

    def answering(self) -> None:
        """Waits until a message is complete, and Ctrl-C a signal."""
        end = time.monotonic() + 60
        while not termios.tcgetattr(self._leader)[3] & termios.ICANON:
            assert time.monotonic() < end
            time.sleep(0.01)

    def ends(self) -> int:
        """The exit code, once it has ended."""
        while select.select([self._leader], [], [], 60)[0] and self._read():
            pass
        assert b"Traceback" not in self._seen
        return self._process.wait(60)

    def _text(self) -> str:
        return self._seen.decode(errors="replace").replace("\r", "")

    def _read(self) -> bool:
        try:
            data = os.read(self._leader, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            return False
        self._seen += data
        return bool(data)
