"""Text to token ids and back, through the libraries that own the formats.

A kind of tokenizer is a module here with `read(files) -> Tokenizer`. Nothing heavy is imported before it is needed:
a run without a prompt waits for no library where the vocabulary is SentencePiece's or llama2.c's.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from fastllm.errors import CheckpointError, TokenizerError
from fastllm.files import StandInError, read_file


class Stream:
    """Turns tokens into text one by one; the pieces joined are what decoding all of them gives.

    pieces: the bytes of each token, none for a token that is not shown. at_start: whether one space before the first
    bytes is left out.
    """

    def __init__(self, pieces: Sequence[bytes], *, at_start: bool = False) -> None:
        self.pieces, self._at_start = pieces, at_start
        self._utf8, self._within = codecs.getincrementaldecoder("utf-8")("replace"), False

    def push(self, token: int) -> str:
        """The text that is certain with this token: maybe none, never half a character."""
        # A model's vocabulary may be padded past the tokenizer's.
        piece = self.pieces[token] if token < len(self.pieces) else b""
        if self._at_start and piece:
            piece = piece.removeprefix(b" ")
            self._at_start = False
        if not self._within and piece.isascii():  # nearly always, and a tenth of the time
            return piece.decode()
        text = self._utf8.decode(piece)
        self._within = bool(self._utf8.getstate()[0])  # a character has begun
        return text

    def flush(self) -> str:
        """What is left at the end: U+FFFD where a character is incomplete."""
        return self._utf8.decode(b"", final=True)


class Pair(NamedTuple):
    """The ids that are put around two texts that are read as one: before the first, between them, after the second.

    second: how many of those between belong to the first; the others and the second text have a token type of their
    own. None where they have not.
    """

    prefix: tuple[int, ...]
    between: tuple[int, ...]
    suffix: tuple[int, ...]
    second: int | None = None


class Tokenizer(Protocol):
    """A vocabulary.

    kind, blob: what a converted file keeps of it; from_blob(kind, blob) gives it back.
    size: its ids are 0 .. size - 1. A model may have more, then the rest is padding.
    plain: ids that a text without special tokens may have are 0 .. plain - 1; a model needs as many.
    exact: whether the model must have exactly `size`.
    prefix, suffix: the ids that the tokenizer's own files put before and after a text (BOS; [CLS] and [SEP]); None
    where they do not say, so that the model's family decides.
    pair: the same for a pair of texts, where the files say.
    special: the special tokens by their text. added: tokens that are taken whole wherever they are written, though not
    special.
    roles: the text of "bos_token", "eos_token" and so on, as far as the files say. ends: ids that end what a model
    says: what its files name, and special tokens that are known to.
    chat_template: a Jinja template of a conversation, where the files have one. tool_template: another one for
    conversations with tools.
    """

    kind: str = ""
    blob: bytes = b""
    size: int
    plain: int
    exact: bool = False
    prefix: tuple[int, ...] | None = None
    suffix: tuple[int, ...] | None = None
    pair: Pair | None = None
    special: Collection[str] = ()
    added: Collection[str] = ()
    roles: Mapping[str, str] = MappingProxyType({})
    ends: tuple[int, ...] = ()
    chat_template: str | None = None
    tool_template: str | None = None

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        """The ids of a text, without prefix and suffix. Raises TokenizerError where the vocabulary cannot say it.

        special: whether special tokens written in the text ("<|im_start|>", "[MASK]") become their ids; else they are
        text like any other. start: whether this begins a text: some vocabularies put a space there.
        """

    def stream(self, previous: int | None = None) -> Stream:
        """A decoder of what follows the token `previous`; None: of a text from its start."""

    def token_id(self, text: str) -> int | None:
        """The id of the token that is written exactly so, such as "<|im_end|>"."""


def cut_pair(a: list[int], b: list[int], room: int | None, *, left: bool = False) -> tuple[list[int], list[int]]:
    """Two texts without their ends, so that both together have at most `room` tokens: the longer one is cut first.

    They are as long as the tokenizers library's longest_first leaves them. left: they lose their beginnings instead.
    """
    if room is None or len(a) + len(b) <= room:
        return a, b
    short, long = sorted((len(a), len(b)))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    sizes = (short, long) if len(a) <= len(b) else (long, short)
    first, second = (text[len(text) - n :] if left else text[:n] for text, n in zip((a, b), sizes, strict=True))
    return first, second


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of tokens from the start of a text, without special tokens."""
    stream = tokenizer.stream()
    return "".join([stream.push(token) for token in tokens]) + stream.flush()


# ---- files and blobs -------------------------------------------------------------------------------------------------

Files = Mapping[str, bytes]

# Kind -> its module in this package, and the name under which its `read` finds the main file.
_KINDS: dict[str, tuple[str, str]] = {
    "llama2.c": ("sentencepiece", "tokenizer.bin"),
    "sentencepiece": ("sentencepiece", "tokenizer.model"),
    "tokenizer.json": ("tokenizer_json", "tokenizer.json"),
    "unigram": ("unigram", "tokenizer.model"),
    "tiktoken": ("tiktoken", "tokenizer.model"),
    "tekken": ("tekken", "tekken.json"),
    "gpt2": ("gpt2", "vocab.json"),
    "wordpiece": ("wordpiece", "vocab.txt"),
    "letters": ("letters", "vocab.txt"),
    "characters": ("characters", "characters"),
    "gguf": ("gguf", "metadata"),
}
# What Hugging Face puts beside the vocabulary: the policy, the chat template, the tokens that end a text.
_POLICY = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja")
_BESIDE = (*_POLICY, *_TEMPLATES)
CLASS_FILE = "tokenizer_class"  # beside them in a blob: the class that a vocabulary is for, see classes.py
_PACKED = b'{"files": '


def from_blob(kind: str, blob: bytes) -> Tokenizer:
    """A tokenizer from its kind and the bytes of its file, or of `pack` where it has several. Raises TokenizerError."""
    if kind not in _KINDS:
        raise TokenizerError(f"no tokenizer of the kind {kind!r} is known")
    module, name = _KINDS[kind]
    files = _unpack(blob) if blob.startswith(_PACKED) else {name: blob}
    if name not in files:
        raise TokenizerError(f"it has no {name}")
    function = "read_llama2c" if kind == "llama2.c" else "read"
    reader: Callable[[Files], Tokenizer] = getattr(import_module(f"fastllm.tokenizer.{module}"), function)
    tokenizer = reader(files)
    tokenizer.kind, tokenizer.blob = kind, blob
    tokenizer.ends = tuple(dict.fromkeys((*tokenizer.ends, *_known_ends(tokenizer))))
    return tokenizer


# What families end a turn or a text with, as llama.cpp knows it (src/llama-vocab.cpp): files often name one of several.
END_TOKENS: tuple[str, ...] = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>")
END_TOKENS += ("<|eom_id|>", "<|end|>", "<end_of_turn>", "<|END_OF_TURN_TOKEN|>", "<|return|>", "<|call|>", "<EOT>")
END_TOKENS += ("_<EOT>", "\u2581<EOT>", "<|EOT|>")
END_TOKENS += ("[EOT]", "[EOS]", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
# Code models write these where a file, or what fills a gap in one, is over.
END_TOKENS += ("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<|fim_repo|>", "<|repo_name|>", "<reponame>", "<|file_sep|>")


def _known_ends(tokenizer: Tokenizer) -> list[int]:
    """The tokens of a vocabulary that end a text in the family that they come from. Files call some of them special,
    such as <|im_end|>, and others not, such as Qwen's <|fim_pad|>."""
    tokens = {*tokenizer.special, *(set(tokenizer.added) - {"</s>"})}  # added it is HTML's, as Gemma has it
    if {"<|return|>", "<|call|>"} <= tokens:
        tokens.discard("<|end|>")  # gpt-oss writes it between its thoughts and its answer
    return [i for text in END_TOKENS if text in tokens and (i := tokenizer.token_id(text)) is not None]


def pack(files: Files) -> bytes:
    """Several files as one blob: JSON, with base64 of those that are no text."""
    from base64 import b64encode

    def text(blob: bytes) -> str | list[str]:
        try:
            return blob.decode()
        except UnicodeDecodeError:
            return [b64encode(blob).decode()]

    packed = {name: text(blob) for name, blob in files.items()}
    return json.dumps({"files": packed}, ensure_ascii=False).encode()


def _unpack(blob: bytes) -> dict[str, bytes]:
    from base64 import b64decode

    try:
        packed = json.loads(blob.decode())["files"]
        return {
            name: text.encode() if isinstance(text, str) else b64decode(text[0], validate=True)
            for name, text in packed.items()
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"its files cannot be unpacked: {error}") from None


def _load(path: Path) -> bytes:
    try:
        blob = read_file(path)
    except StandInError:  # no reason to look for another tokenizer
        raise
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None
    if not blob and path.suffix in (".json", ".model"):
        raise TokenizerError(f"{path} is empty")
    return blob


def _class_of(beside: Files) -> str:
    found: str = import_module("fastllm.tokenizer._classes").class_of(beside)
    return found


def _own_rules(beside: Files) -> str:
    """The class for which a tokenizer.json is, where that has rules of its own in place of the file's; else nothing."""
    bert: str = import_module("fastllm.tokenizer._settings").BERT
    return _llama_class(beside) or (bert if _class_of(beside) == bert else "")


def _llama_class(beside: Files) -> str:
    found: str = import_module("fastllm.tokenizer._settings").llama_class(beside)
    return found


def _kind_of(path: Path, blob: bytes, beside: Files, vocab_size: int) -> tuple[str, str]:
    """The kind of a file, by its name, its first bytes and what lies beside it; and the class that it is for, empty
    where that is not said or makes no difference."""
    if path.name == "vocab.json" and "merges.txt" in beside:
        return "gpt2", _class_of(beside)
    if path.suffix == ".json" or blob[:1] == b"{":
        characters, tekken = path.name in ("vocab.json", "chars.json"), b'"token_bytes"' in blob
        if characters or tekken:
            return "characters" if characters else "tekken", ""
        return "tokenizer.json", _own_rules(beside)
    if path.suffix == ".txt":
        found = _class_of(beside)
        return import_module("fastllm.tokenizer.letters").kind_of(blob, vocab_size, path.name, found), found
    # A SentencePiece model begins with field 1, a piece of a few bytes; a tiktoken one with base64 and a rank; a
    # tokenizer.bin with a small int32.
    if blob[:1] == b"\x0a" and blob[2:3] == b"\x0a":
        found = import_module("fastllm.tokenizer.unigram").class_for(_class_of(beside), path.name, blob, vocab_size)
        return ("unigram", found) if found else ("sentencepiece", _llama_class(beside))
    line = blob[:400].split(b"\n", 1)[0].split()
    return "tiktoken" if len(line) == 2 and line[1].isdigit() else "llama2.c", ""


def read(path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a file, with what lies beside it; it must fit a model of vocab_size words.

    Raises TokenizerError, naming the file, and CheckpointError where something else is in a file's place.
    """
    blob = _load(path)
    try:
        names = (*_BESIDE, "config.json", *(("merges.txt",) if path.name == "vocab.json" else ()))
        beside = {name: _load(path.parent / name) for name in names if (path.parent / name).exists()}
        kind, found = _kind_of(path, blob, beside, vocab_size)
        files = {_KINDS[kind][1]: blob}
        if kind not in ("llama2.c", "characters"):
            files |= {name: data for name, data in beside.items() if name != "config.json"}
            files |= {CLASS_FILE: found.encode()} if found else {}
        tokenizer = from_blob(kind, blob if len(files) == 1 else pack(files))
    except TokenizerError as error:
        raise TokenizerError(f"{path} is no usable tokenizer: {error}") from None
    check_fit(tokenizer, vocab_size, str(path))
    return tokenizer


def check_fit(tokenizer: Tokenizer, vocab_size: int, where: str, *, exact: bool = False) -> None:
    """Raises TokenizerError unless every id of plain text is the model's; exact: unless there are as many as it has."""
    if tokenizer.plain > vocab_size or ((exact or tokenizer.exact) and tokenizer.size < vocab_size):
        raise TokenizerError(f"{where} has {tokenizer.size:,} words, the model {vocab_size:,}")


# What a checkpoint's own folder may have, the best first: a tokenizer.json says most of how a text is split.
_OWN: tuple[str, ...] = ("tokenizer.json", "tekken.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
_OWN += ("spm.model", "vocab.json", "vocab.txt", "amplify_vocab.txt", "chars.json", "chars.txt")


def find(checkpoint: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint, a file or a folder: the first of the names below that fits.

    A folder, or a file with a config.json beside it, has its own; a .model of any other name comes last. For another
    file the current folder is a place too, where llama2.c's users have it; nothing says that what is found is the
    model's but its size: it must be the same. Raises TokenizerError that names every place looked at and what was wrong
    there.
    """
    ours = ("tokenizer.bin", f"tok{vocab_size}.bin")
    shared = ("tokenizer.model", "tokenizer.json")
    inside = checkpoint.is_dir() and checkpoint.name != "ckpt-0"  # Grok-1's tokenizer is beside its ckpt-0
    folder = checkpoint if inside else checkpoint.parent
    own = checkpoint.is_dir() or (folder / "config.json").exists()
    names = dict.fromkeys((*_OWN, *ours) if own else (*ours, *shared, *_OWN))
    if own:
        names |= dict.fromkeys(sorted(path.name for path in folder.glob("*.model")))
    places = {folder: [*names]}
    if not own and folder.resolve() != Path.cwd():
        places[Path.cwd()] = [*ours, *shared]
    looked: list[str] = []
    for place, wanted in places.items():
        missing = []
        for name in wanted:
            if not (place / name).exists():
                missing.append(name)
                continue
            try:
                tokenizer = read(place / name, vocab_size)
                check_fit(tokenizer, vocab_size, str(place / name), exact=not own)
            except TokenizerError as error:
                looked.append(str(error))
            else:
                return tokenizer
        looked.append(f"{'the current folder' if place == Path() else place} has no {', '.join(missing)}")
    raise TokenizerError(f"no tokenizer fits {checkpoint}: {'; '.join(looked)}")
