"""Texts that follow a grammar: a JSON schema, a regular expression, a list of choices, or a Lark or GBNF grammar.

The llguidance library says which tokens a grammar allows next (Earley's algorithm over a lexer of derivatives; its
grammars are described in its own documentation). Here stands what surrounds it: a model's vocabulary as it takes it,
checked and compiled grammars, and the state of one text.
"""

from __future__ import annotations

import re
from _thread import allocate_lock
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastllm.decoding._schemas import schema_text
from fastllm.errors import OptionError, TokenizerError, import_error

if TYPE_CHECKING:
    import llguidance

    from fastllm.tokenizer import Tokenizer

LONGEST_TEXT = 1 << 20  # characters of a grammar
_CACHED = 16  # compiled grammars that a model keeps
_STEPS = 4  # tokens that a new grammar is tried with
# JSON between whose tokens there may be a space, or line ends with spaces after them, as llama.cpp has it: a model that
# may write any white space may write nothing else.
_JSON: Any = {"whitespace_pattern": r" |\n{1,2}[ \t]{0,20}"}
_STRICT: Any = {"lenient": False, "coerce_one_of": False}  # a schema's own x-guidance cannot loosen it


class Grammar:
    """A compiled grammar of one model's vocabulary, for any number of texts. Made by Grammars.compile.

    name: the option that it was given as, for errors. previous: a token after which a text is shown whole, so that what
    is shown is what the grammar says: some vocabularies leave a space at the start of a text out.
    """

    def __init__(self, name: str, compiled: llguidance.LLMatcher, vocab_size: int, previous: int) -> None:
        self.name, self.previous = name, previous
        self._compiled, self._vocab_size = compiled, vocab_size

    def matcher(self, ends: Sequence[int]) -> Matcher:
        """The state of a text at its start. ends: the tokens that end the text, allowed where it is complete."""
        return Matcher(self.name, self._compiled.deep_copy(), self._vocab_size, tuple(ends))


class Matcher:
    """What a grammar allows after a text. Several threads may use it.

    Each call is given the whole text, which continues that of the call before, or is a beginning of it. So the state
    follows from the tokens alone: a call that was interrupted is made good by the next.
    """

    def __init__(self, name: str, grammar: llguidance.LLMatcher, vocab_size: int, ends: tuple[int, ...]) -> None:
        self._name, self._grammar, self._vocab_size, self._ends = name, grammar, vocab_size, ends
        self._known = 0  # tokens of the text that the grammar has taken; -1: a call was interrupted
        self._lock = allocate_lock()

    def copy(self) -> Matcher:
        """Another one in the same state, for a text that parts from this one."""
        with self._lock:
            twin = Matcher(self._name, self._grammar.deep_copy(), self._vocab_size, self._ends)
            twin._known = self._known
        return twin

    def follow(self, tokens: Sequence[int]) -> bool:
        """Takes a text without the token that ends it; returns whether it is complete and can go on no more.

        Raises OptionError for a text that the grammar does not allow, and where a limit is exceeded.
        """
        with self._lock:
            self._follow(tokens)
            return self._is_over()

    def allowed(self, tokens: Sequence[int], guesses: Sequence[int]) -> int:
        """How many of the guesses may follow a text. Raises what follow raises."""
        with self._lock:
            self._follow(tokens)
            return self._grammar.validate_tokens(list(guesses))

    def forced(self, tokens: Sequence[int]) -> list[int]:
        """Tokens of what must follow a text, which other tokens may stand for too. Raises what follow raises."""
        with self._lock:
            self._follow(tokens)
            return self._grammar.compute_ff_tokens()

    def masks(self, tokens: Sequence[int], guesses: Sequence[int] = ()) -> list[bytes]:
        """What may follow a text, and then each of the guesses, which are allowed: bit i % 8 of byte i // 8 is token i.

        Raises what follow raises.
        """
        with self._lock:
            self._follow(tokens)
            found = [self._mask()]
            if guesses:
                known, self._known = self._known, -1
                for guess in guesses:
                    self._grammar.consume_token(guess)
                    found.append(self._mask())
                self._grammar.rollback(len(guesses))
                self._known = known
            return found

    def _follow(self, tokens: Sequence[int]) -> None:
        known, self._known = self._known, -1
        if known < 0:
            self._grammar.reset()
            known = 0
        if known > len(tokens):
            self._grammar.rollback(known - len(tokens))
        elif known < len(tokens):
            self._grammar.consume_tokens(list(tokens[known:]))
        self._known = len(tokens)

    def _mask(self) -> bytes:
        mask = bytearray(self._grammar.compute_bitmask())
        self._is_over()
        end = self._vocab_size  # the bit after the last token's says that the text is complete
        if mask[end >> 3] >> (end & 7) & 1:
            for token in self._ends:
                mask[token >> 3] |= 1 << (token & 7)
        return bytes(mask)

    def _is_over(self) -> bool:
        """Whether the text is complete and can go on no more. Raises OptionError where it cannot be completed."""
        grammar = self._grammar
        if not grammar.is_stopped() or (reason := grammar.stop_reason()) in ("NoExtension", "EndOfSentence"):
            return grammar.is_stopped()
        said = _said(grammar.get_error() or reason)
        raise OptionError(f"{self._name}: {_STUCK if said in ('NoExtensionBias', 'InternalError') else said}")


_STUCK = "a text can be begun that can never be completed"


class Grammars:
    """Compiles grammars for one model, and keeps the latest. Several threads may use it.

    tokenizer: the model's, or why there is none. vocab_size: the model's, which may be padded past the tokenizer's.
    """

    def __init__(self, vocab_size: int, tokenizer: Tokenizer | TokenizerError) -> None:
        self._vocab_size, self._tokenizer = vocab_size, tokenizer
        self._wrapped: tuple[llguidance.LLTokenizer, int] | None = None  # the vocabulary, and Grammar.previous
        self._cached: OrderedDict[tuple[str, str], Grammar] = OrderedDict()
        self._lock = allocate_lock()

    def compile(
        self, *, json_schema: Any = None, regex: Any = None, choice: Any = None, grammar: Any = None
    ) -> Grammar | None:
        """The Grammar of the option that is not None; None if all are. LLM.grammar says what they are.

        Raises OptionError for two of them, for what is no grammar, uses what is not supported, exceeds limits (of
        characters here, of schemas in _schemas.py, of automata in llguidance.LLParserLimits), or is satisfied by no
        text; TokenizerError; LibraryError for a broken llguidance.
        """
        options = {"json_schema": json_schema, "regex": regex, "choice": choice, "grammar": grammar}
        given = {name: value for name, value in options.items() if value is not None}
        if len(given) > 1:
            raise OptionError(f"a text follows one grammar, so {' and '.join(given)} do not go together")
        for name, value in given.items():
            if isinstance(value, Grammar):
                return self._own(name, value)
            source = _READERS[name](value)
            with self._lock:
                key = (name, source)
                found = self._cached.get(key) or self._compiled(name, source)
                self._cached[key] = found
                self._cached.move_to_end(key)
                if len(self._cached) > _CACHED:
                    self._cached.popitem(last=False)
            return found
        return None

    def _own(self, name: str, grammar: Grammar) -> Grammar:
        if name != "grammar":
            raise OptionError(f"a compiled grammar is given as grammar, not as {name}")
        if grammar._vocab_size != self._vocab_size:
            raise OptionError("grammar was compiled for another model")
        return grammar

    def _compiled(self, name: str, source: str) -> Grammar:
        library = _llguidance()
        (words, previous), matcher = self._vocabulary(), library.LLMatcher
        if name == "json_schema":
            source = matcher.grammar_from_json_schema(source, defaults=_JSON, overrides=_STRICT)
        elif name == "regex":
            source = matcher.grammar_from_regex(source)
        else:
            source = matcher.grammar_from_lark(source)
        compiled = matcher(words, source, log_level=0, limits=library.LLParserLimits(verbose_errors=False))
        if compiled.is_error():
            raise OptionError(f"{name} is not possible: {_said(compiled.get_error())}")
        found = Grammar(name, compiled, self._vocab_size, previous)
        _try(found)
        return found

    def _vocabulary(self) -> tuple[llguidance.LLTokenizer, int]:
        """The vocabulary as llguidance takes it, made once, in about a second for 262,144 tokens; Grammar.previous.

        The token after the model's last one stands for the end of a text.
        """
        if self._wrapped is None:
            if isinstance(self._tokenizer, TokenizerError):
                raise TokenizerError(f"a grammar needs a tokenizer: {self._tokenizer}")
            library, words = _llguidance(), _Words(self._tokenizer, self._vocab_size)
            self._wrapped = library.LLTokenizer(library.TokenizerWrapper(words)), words.previous()
        return self._wrapped


class _Words:
    """A vocabulary for llguidance's TokenizerWrapper, which asks for these attributes, and calls it to encode texts.

    Special tokens have their names, by which a Lark grammar means them: <|im_end|>.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        pieces = list(tokenizer.stream().pieces)[:vocab_size]
        self.tokens = [*pieces, *[b""] * (vocab_size - len(pieces)), b"<the end of the text>"]
        self.eos_token_id = vocab_size
        self.special_token_ids = [vocab_size]
        for text in tokenizer.special:
            token = tokenizer.token_id(text)
            if token is not None and token < vocab_size and not self.tokens[token]:
                self.tokens[token] = text.encode()
                self.special_token_ids.append(token)
        self._tokenizer = tokenizer
        self._ids: dict[bytes, int] | None = None

    def __call__(self, text: bytes) -> list[int]:
        """Tokens that stand for exactly these bytes, which are forced: the tokenizer's own, else the longest first.

        A tokenizer may change a text, such as spaces at its start. No tokens where the vocabulary lacks a byte; then
        the text fails where it comes to it.
        """
        try:
            ids = self._tokenizer.encode(text.decode(), start=False)
        except (TokenizerError, UnicodeDecodeError):
            ids = []
        return ids if b"".join(self.tokens[i] for i in ids) == text else self._longest(text)

    def _longest(self, text: bytes) -> list[int]:
        if self._ids is None:
            self._ids = {piece: i for i, piece in enumerate(self.tokens) if piece and i not in self.special_token_ids}
        found, at, most = [], 0, max(map(len, self._ids))
        while at < len(text):
            ends = range(min(len(text), at + most), at, -1)
            end = next((end for end in ends if text[at:end] in self._ids), None)
            if end is None:
                return []
            found.append(self._ids[text[at:end]])
            at = end
        return found

    def previous(self) -> int:
        """Grammar.previous. Raises TokenizerError where what tokens are shown as depends on their neighbours."""
        words = [i for i, piece in enumerate(self.tokens[:-1]) if piece.isalpha()]
        if words:
            some = words[:: len(words) // 50 + 1]
            stream = self._tokenizer.stream(words[0])
            if "".join(map(stream.push, some)) + stream.flush() == b"".join(self.tokens[i] for i in some).decode():
                return words[0]
        raise TokenizerError("a grammar needs a vocabulary whose tokens are always shown in the same way")


def _try(grammar: Grammar) -> None:
    """Raises OptionError for a grammar that allows no text, or that exceeds limits within a few tokens."""
    matcher, tokens = grammar.matcher(()), list[int]()
    for _ in range(_STEPS):
        mask = int.from_bytes(matcher.masks(tokens)[0], "little") & ((1 << grammar._vocab_size) - 1)
        if mask == 0:
            break
        tokens.append((mask & -mask).bit_length() - 1)
    if not tokens:
        raise OptionError(f"{grammar.name}: no text of this vocabulary satisfies it, but perhaps an empty one")


# ---- what options are given as ---------------------------------------------------------------------------------------


def _text(name: str, value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{name} must be {what}, not {value!r}"[:200])
    if not value.strip():
        raise OptionError(f"{name} is an empty text")
    if len(value) > LONGEST_TEXT:
        raise OptionError(f"{name} has {len(value):,} characters: it may have {LONGEST_TEXT:,}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise OptionError(f"{name} is not UTF-8: it has half a surrogate pair") from None
    return str(value)


def _schema(value: Any) -> str:
    if isinstance(value, str):
        _text("json_schema", value, "")
    return schema_text(value, LONGEST_TEXT)


def _regex(value: Any) -> str:
    return _text("regex", value, "the text of a regular expression")


def _choices(value: Any) -> str:
    """A Lark grammar of the texts."""
    import json

    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple, set, frozenset)) or not value:
        raise OptionError(f"choice must be a list of texts, not {value!r}"[:200])
    for one in value:
        if not isinstance(one, str):
            raise OptionError(f"choice has {one!r}, which is no text"[:200])
        if not one:
            raise OptionError("choice has an empty text")
    return _text("choice", "start: " + " | ".join(json.dumps(one) for one in dict.fromkeys(value)), "")


def _grammar(value: Any) -> str:
    """A Lark grammar, translated from GBNF where it is that."""
    source = _text("grammar", value, "the text of a grammar in the form of Lark or GBNF, or a compiled Grammar")
    if "::=" not in source:
        return source
    _llguidance()
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(source)
    except RecursionError:
        raise OptionError("grammar is nested too deeply") from None
    except Exception as error:  # it raises Exception itself
        raise OptionError(f"grammar is no GBNF: {error}") from None


_READERS = {"json_schema": _schema, "regex": _regex, "choice": _choices, "grammar": _grammar}


def rules(name: str, value: Any) -> str:
    """The Lark rules of what an option says, for a grammar that has them as a part: the first is called "own_answer".

    Raises what Grammars.compile raises for the text of a grammar.
    """
    if isinstance(value, Grammar):
        raise OptionError(
            "a compiled grammar is of a whole text: where the prompt begins the thinking, give its source"
        )
    source = _READERS[name](value)
    if name == "json_schema":
        import json

        return f"own_answer: {json_rule(json.loads(source))}"
    if name == "regex":
        return f"own_answer: /{_SLASH.sub(lambda found: found[1] or _ESCAPED, source)}/"
    return _START.sub(lambda found: "own_answer" if found[0] == "start" else found[0], source)


def json_rule(schema: Any) -> str:
    """JSON of a schema, as a part of a Lark rule; with the white space that json_schema has."""
    import json

    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON | _STRICT})}"


_SLASH, _ESCAPED = re.compile(r"(\\.)|/", re.DOTALL), r"\/"
# In Lark the name "start", and what it is not: texts, regular expressions, comments.
_START = re.compile(r'"(?:[^"\\]|\\.)*"|/(?!/)(?:[^/\\\n]|\\.)+/|//[^\n]*|\bstart\b')


def _said(error: str) -> str:
    """llguidance's error as part of a sentence: without the drawings and states that follow it."""
    lines = error.split("\n<", 1)[0].split(" Enable '", 1)[0].splitlines()
    kept = [line.strip() for line in lines if line.strip(" ^") and " | " not in line]
    return ": ".join(line.rstrip(":") for line in kept)[:300] or "it cannot be compiled"


def _llguidance() -> Any:
    try:
        import llguidance
    except (ImportError, OSError) as error:
        missing = OptionError("a grammar needs the llguidance library: pip install 'fastllm[grammar]'")
        raise import_error(error, "llguidance", missing) from None
    return llguidance
