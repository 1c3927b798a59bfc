"""The C core; see pyx/_core.pyx."""

from array import array
from collections.abc import Callable, Mapping
from collections.abc import Sequence as _Tokens
from typing import Any, TypeVar

from typing_extensions import Buffer as _AnyBuffer

LANES: int
GROUP: int
PAGE: int
ALIGN: int
TYPES: tuple[str, ...]

_Function = TypeVar("_Function", bound=Callable[..., Any])

def standard_floats(function: _Function) -> _Function: ...
def isas() -> list[tuple[str, bool]]: ...
def best_isa(isa: str | None = None) -> str: ...
def has_threads() -> bool: ...
def try_threads(threads: int) -> None: ...
def read_memory(data: _AnyBuffer, threads: int = 1) -> int: ...
def int8_peak(rounds: int, threads: int = 1, isa: str | None = None) -> int: ...
def matrix_bytes(dtype: str, d: int, n: int) -> int: ...

class Buffer:
    nbytes: int
    def __init__(self, nbytes: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class MappedFile:
    path: str
    def __init__(self, fd: int, path: str) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def check(self) -> None: ...

class Matrix:
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    data: memoryview
    def __init__(self, dtype: str, d: int, n: int, data: _AnyBuffer, *, count: int | None = None) -> None: ...
    def row(self, r: int, out: _AnyBuffer) -> None: ...
    def multiply(self, x: _AnyBuffer, out: _AnyBuffer, *, threads: int = 1, isa: str | None = None) -> None: ...

def pack(
    dtype: str,
    d: int,
    n: int,
    source_dtype: str,
    data: _AnyBuffer,
    *,
    scales: _AnyBuffer | None = None,
    group: int = 0,
    rows: array[int] | None = None,
    importance: _AnyBuffer | None = None,
    feedback: _AnyBuffer | None = None,
    products: _AnyBuffer | None = None,
    out: _AnyBuffer | None = None,
    threads: int = 1,
    name: str = "matrix",
    isa: str | None = None,
) -> Matrix: ...
def factor(h: _AnyBuffer, importance: _AnyBuffer, *, threads: int = 1) -> None: ...
def block_types() -> dict[str, tuple[int, int]]: ...
def dequantize(block: str, data: _AnyBuffer, out: _AnyBuffer, *, threads: int = 1) -> None: ...

DENSE_ACTS: tuple[str, ...]

class Dense:
    matrix: Matrix
    bias: Vector | None
    act: str
    def __init__(self, matrix: Matrix, bias: Vector | None, act: str) -> None: ...
    def apply(self, x: _AnyBuffer, out: _AnyBuffer, *, threads: int = 1, isa: str | None = None) -> None: ...

class Vector:
    n: int
    shape: tuple[int]
    nbytes: int
    data: memoryview
    def __init__(self, data: _AnyBuffer, *, name: str = ...) -> None: ...

class Model:
    isa: str
    kv_dtype: str
    logits_stride: int
    kv_page_bytes: int
    def __init__(
        self,
        config: Any,
        tensors: dict[str, Matrix | Vector],
        *,
        kv_dtype: str = "f16",
        isa: str | None = None,
        paced: bool = True,
    ) -> None: ...
    def check_files(self) -> None: ...
    def logits(self, rows: int = 1) -> Buffer: ...
    def forward(
        self,
        spans: list[tuple[Sequence, _Tokens[int], int]],
        logits: Buffer | None = None,
        *,
        threads: int = 1,
        hidden: Mapping[int, Buffer] | None = None,
        attention: Mapping[int, Buffer] | None = None,
        inputs: Mapping[int, Buffer] | None = None,
        segments: Mapping[int, int] | None = None,
    ) -> None: ...
    def broken_layer(self, sequence: Sequence, token: int, *, threads: int = 1) -> int | None: ...
    def step(self, sequence: Sequence, token: int, sampler: Sampler, logits: Buffer, *, threads: int = 1) -> int: ...

class KVCache:
    def __init__(self, model: Model) -> None: ...
    def sequence(self) -> Sequence: ...

class Sequence:
    length: int
    def __init__(self, cache: KVCache) -> None: ...
    def truncate(self, length: int) -> None: ...

class Sampler:
    def __init__(
        self,
        vocab_size: int,
        params: Any,
        *,
        seed: int,
        bias: Mapping[int, float] | None = None,
        isa: str | None = None,
    ) -> None: ...
    def accept(self, token: int, *, generated: bool) -> None: ...
    def draw(self, logits: Buffer, row: int = 0) -> int: ...

def attend(
    q: _AnyBuffer,
    keys: _AnyBuffer,
    values: _AnyBuffer,
    seen: _Tokens[int],
    out: _AnyBuffer,
    *,
    kv_dtype: str = "f32",
    isa: str | None = None,
) -> None: ...
def llama2c_words(blob: bytes) -> tuple[list[bytes], list[float]]: ...
def byte_names(words: list[bytes]) -> dict[int, int]: ...
def proto_fields(message: bytes) -> list[tuple[int, int | bytes]]: ...
def proto_pieces(model: bytes) -> tuple[list[bytes], list[int], list[tuple[int, int | bytes]]]: ...
def write_proto_pieces(words: list[bytes], scores: _Tokens[float], types: list[int]) -> bytes: ...
