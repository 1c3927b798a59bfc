"""Reads pickles safely: a small stack machine that builds plain objects, and others only as its caller allows.

Python's own unpickler imports whatever a file names and calls it. This one knows the opcodes of protocols 2 to 5
(https://github.com/python/cpython/blob/main/Lib/pickletools.py describes them) and asks its caller about every global:
the caller gives a builder, refuses the name, or lets it become a Foreign, an object that is described and not built.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastllm.errors import CheckpointError

_MOST_OPCODES = 1 << 19  # a tensor takes some 30: enough for 16,000 tensors, and half a second of work
# A few opcodes can fetch a memoized object and use it again and again, so each use must be cheap: names and tuples of
# arguments have limits.
_MOST_NAME, _MOST_ARGUMENTS = 1024, 64
_MOST_DIGITS = 255  # bytes of a long integer; the states of random number generators have 17


class Built(ABC):
    """An object that is built empty and given its state later, by the opcode BUILD."""

    @abstractmethod
    def build(self, state: Any) -> None: ...


class Foreign:
    """Stands for a class or function that is not imported, or for the object that calling it with `args` would make.

    items: the items that the pickle sets, if the object is a kind of dict.
    """

    def __init__(self, name: str, args: Any = ()) -> None:
        self.name, self.args = name, args
        self.items: dict[Any, Any] = {}


class _RefusedError(CheckpointError):
    """The pickle asks for something that is not allowed. The message says what; load() adds the file's name."""


def load(
    path: Path,
    data: memoryview,
    find: Callable[[str], Any],
    persistent: Callable[[Any], Any] | None = None,
    *,
    begin: int = 0,
) -> tuple[Any, int]:
    """The object that the pickle in data[begin:] describes, and the offset at which the pickle ends.

    find: gives for a global ("module.name") what stands for it: a builder, which the pickle may call with any
    arguments, a Foreign, or None to refuse the file. persistent: gives the object for a persistent id, torch's
    storages; without it such ids are refused. Bytes objects become memoryviews of `data`. Raises CheckpointError for a
    refused file, and for a broken one, where builders raise TypeError, ValueError and the like for arguments that make
    no sense.
    """
    machine = _Machine(data, begin, find, persistent)
    try:
        return machine.run(), machine.at
    except _RefusedError as error:
        raise CheckpointError(f"{path} is refused: its pickle {error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path} is broken: {error}") from None
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, struct.error):
        raise CheckpointError(
            f"{path} is broken: its pickle makes no sense at byte {machine.at:,} of {len(data):,}"
        ) from None


class _Machine:
    """Reads one pickle. Methods without a docstring do what pickletools says of their opcodes in _OPCODES."""

    def __init__(
        self, data: memoryview, begin: int, find: Callable[[str], Any], persistent: Callable[[Any], Any] | None
    ) -> None:
        self.data, self.at = data, begin
        self.find, self.persistent = find, persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # what lay on the stack below each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Runs opcodes up to STOP, and returns the object on top of the stack."""
        data, opcodes = self.data, _OPCODES
        for _ in range(_MOST_OPCODES):
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack.pop()
            if code not in opcodes:
                raise _RefusedError(f"has the opcode {bytes([code])!r}, which no tensor needs")
            opcodes[code](self)
        raise _RefusedError(f"has more than {_MOST_OPCODES:,} steps")

    # ---- reading

    def take(self, count: int) -> memoryview:
        part = self.data[self.at : self.at + count]
        if len(part) != count:
            raise CheckpointError(f"its pickle is truncated at byte {len(self.data):,}")
        self.at += count
        return part

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def sized(self, layout: str) -> memoryview:
        return self.take(self.number(layout))

    def text(self, layout: str) -> str:
        return str(self.sized(layout), "utf-8", "surrogatepass")

    def line(self) -> str:
        line, end, _ = bytes(self.data[self.at : self.at + _MOST_NAME]).partition(b"\n")
        if not end:
            raise CheckpointError("a name in its pickle does not end")
        self.at += len(line) + 1
        return line.decode()

    # ---- the stack and the memo

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        """MARK: what is pushed from here on goes into a new stack, until to_mark takes it all."""
        self.marked.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def pop(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def long(self, layout: str) -> int:
        digits = self.sized(layout)
        if len(digits) > _MOST_DIGITS:
            raise CheckpointError(f"a number in its pickle has {len(digits):,} bytes")
        return int.from_bytes(digits, "little", signed=True)

    # ---- containers

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1].items if isinstance(self.stack[-1], Foreign) else self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys are dropped: they name no tensor, and may be slow to hash or made to collide.
            if key is None or isinstance(key, str) or (isinstance(key, int) and abs(key) < 1 << 63):
                target[key] = value

    def make_dict(self) -> None:
        items = self.to_mark()
        self.push({})
        self.set_items(items)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise TypeError

    # ---- globals and calls

    def look_up(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > _MOST_NAME:
            raise TypeError
        found = self.find(f"{module}.{name}")
        if found is None:
            raise _RefusedError(f"would import {f'{module}.{name}'!r}, which no tensor needs")
        self.push(found)

    def call(self) -> None:
        function, args = self.pop(2)
        if isinstance(function, Foreign):
            self.push(Foreign(function.name, args))
            return
        if not callable(function) or not isinstance(args, tuple) or len(args) > _MOST_ARGUMENTS:
            raise TypeError
        self.push(function(*args))

    def call_with_names(self) -> None:
        """NEWOBJ_EX: a class, its arguments, its named arguments. Only a Foreign may have named ones."""
        if self.pop(1) != ({},) and not isinstance(self.stack[-2], Foreign):
            raise TypeError
        self.call()

    def instance(self) -> None:
        """INST: arguments from the mark on; the class's names follow in the pickle."""
        args = tuple(self.to_mark())
        self.look_up(self.line(), self.line())
        self.push(args)
        self.call()

    def instance_of_class(self) -> None:
        """OBJ: a class and its arguments, from the mark on."""
        made, *args = self.to_mark()
        self.push(made)
        self.push(tuple(args))
        self.call()

    def build(self) -> None:
        (state,) = self.pop(1)
        target = self.stack[-1]
        if isinstance(target, Built):
            target.build(state)
        elif not isinstance(target, (dict, Foreign)):  # their state, such as a state_dict's _metadata, is dropped
            raise TypeError

    def frozen_set(self) -> None:
        """FROZENSET: its items, from the mark on, are dropped, for no tensor is in a set."""
        self.to_mark()
        self.push(Foreign("frozenset"))

    def persist(self) -> None:
        """BINPERSID: an object outside of the pickle, such as torch's storages."""
        if self.persistent is None:
            raise _RefusedError("refers to something outside of it")
        self.push(self.persistent(self.stack.pop()))


def numbers(values: Any) -> tuple[int, ...]:
    """A shape or strides from a pickle. Raises TypeError unless it is a short tuple or list of integers."""
    if (
        not isinstance(values, (tuple, list))
        or len(values) > _MOST_ARGUMENTS
        or any(type(n) is not int for n in values)
    ):
        raise TypeError
    return tuple(values)


_STOP = ord(".")
_OPCODES: dict[int, Callable[[_Machine], object]] = {
    code[0]: action
    for code, action in {
        b"\x80": lambda m: m.take(1),  # PROTO
        b"\x95": lambda m: m.take(8),  # FRAME: its length is not needed
        b"(": _Machine.mark,
        b"0": lambda m: m.stack.pop() if m.stack else m.to_mark(),  # POP, also of a mark
        b"1": _Machine.to_mark,  # POP_MARK
        b"2": lambda m: m.push(m.stack[-1]),  # DUP
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"J": lambda m: m.push(m.number("<i")),  # BININT
        b"K": lambda m: m.push(m.number("<B")),
        b"M": lambda m: m.push(m.number("<H")),
        b"\x8a": lambda m: m.push(m.long("<B")),  # LONG1
        b"\x8b": lambda m: m.push(m.long("<I")),
        b"G": lambda m: m.push(m.number(">d")),  # BINFLOAT
        b"X": lambda m: m.push(m.text("<I")),  # BINUNICODE
        b"\x8c": lambda m: m.push(m.text("<B")),
        b"\x8d": lambda m: m.push(m.text("<Q")),
        b"U": lambda m: m.push(m.text("<B")),  # SHORT_BINSTRING: a str of Python 2
        b"T": lambda m: m.push(m.text("<I")),
        b"C": lambda m: m.push(m.sized("<B")),  # SHORT_BINBYTES
        b"B": lambda m: m.push(m.sized("<I")),
        b"\x8e": lambda m: m.push(m.sized("<Q")),
        b"\x96": lambda m: m.push(m.sized("<Q")),  # BYTEARRAY8
        b")": lambda m: m.push(()),
        b"\x85": lambda m: m.push(m.pop(1)),  # TUPLE1
        b"\x86": lambda m: m.push(m.pop(2)),
        b"\x87": lambda m: m.push(m.pop(3)),
        b"t": lambda m: m.push(tuple(m.to_mark())),
        b"]": lambda m: m.push([]),
        b"l": lambda m: m.push(m.to_mark()),  # LIST
        b"a": lambda m: m.append(list(m.pop(1))),
        b"e": lambda m: m.append(m.to_mark()),
        b"}": lambda m: m.push({}),
        b"d": _Machine.make_dict,
        b"s": lambda m: m.set_items(list(m.pop(2))),
        b"u": lambda m: m.set_items(m.to_mark()),
        b"h": lambda m: m.push(m.memo[m.number("<B")]),  # BINGET
        b"j": lambda m: m.push(m.memo[m.number("<I")]),
        b"q": lambda m: m.put(m.number("<B")),  # BINPUT
        b"r": lambda m: m.put(m.number("<I")),
        b"\x94": lambda m: m.put(len(m.memo)),  # MEMOIZE
        b"c": lambda m: m.look_up(m.line(), m.line()),  # GLOBAL
        b"\x93": lambda m: m.look_up(*m.pop(2)),  # STACK_GLOBAL
        b"R": _Machine.call,  # REDUCE
        b"\x81": _Machine.call,  # NEWOBJ
        b"\x92": _Machine.call_with_names,  # NEWOBJ_EX
        b"i": _Machine.instance,  # INST
        b"o": _Machine.instance_of_class,  # OBJ
        b"b": _Machine.build,
        b"\x8f": lambda m: m.push(Foreign("set")),  # EMPTY_SET
        b"\x90": lambda m: m.append(m.to_mark()),  # ADDITEMS
        b"\x91": _Machine.frozen_set,
        b"Q": _Machine.persist,  # BINPERSID
    }.items()
}
