"""Lists of the bytes of all tokens of a vocabulary, which are made for each token when it is asked for.

Vocabularies have up to a quarter of a million tokens, and a text shows a few hundred.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from fastllm.tokenizer.base import Bytes


class Computed(Sequence[bytes]):
    """The bytes of `size` tokens, by a function of the id, which is called once for each that is asked for."""

    def __init__(self, size: int, piece: Callable[[int], bytes]) -> None:
        self._size, self._piece = size, piece
        self._known: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, i: Any) -> Any:
        found = self._known.get(i)
        if found is None:
            if not 0 <= i < self._size:
                raise IndexError(i)
            found = self._known[i] = self._piece(i)
        return found


class Joined(Sequence[bytes]):
    """The bytes of tokens that lie one after the other in `data`. ends: where each ends, in 32 bits."""

    def __init__(self, data: Bytes, ends: Bytes) -> None:
        self._data, self._ends = bytes(data), memoryview(ends).cast("B").cast("I")

    @classmethod
    def parts(cls, tokens: Sequence[bytes]) -> tuple[bytes, bytes]:
        """The arguments that make a list of these tokens."""
        return b"".join(tokens), array("I", accumulate(map(len, tokens))).tobytes()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < len(self._ends):
            raise IndexError(i)
        return self._data[self._ends[i - 1] if i else 0 : self._ends[i]]

    def find(self, token: bytes) -> int | None:
        """The first id of a token, which is not empty; None where there is none."""
        at = self._data.find(token)
        while at >= 0:
            i = bisect_left(self._ends, at + len(token))  # the token that the last byte is in
            if self[i] == token and self._ends[i] == at + len(token):
                return i
            at = self._data.find(token, at + 1)
        return None
