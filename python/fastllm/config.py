"""What a model is, apart from its weights: the dimensions and constants that the C core reads."""

import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastllm.errors import CheckpointError

# More than any model has; small enough that no product of three overflows. The C core has the same bounds.
_MOST = {
    "dim": 1 << 20,
    "hidden_dim": 1 << 20,
    "head_dim": 4096,
    "n_layers": 65536,
    "n_heads": 65536,
    "n_kv_heads": 65536,
    "vocab_size": 1 << 28,
    "max_seq": (1 << 31) - 1,
}


class _Fields(NamedTuple):
    dim: int
    hidden_dim: int
    head_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq: int
    rotary_dim: int
    norm_eps: float
    attn_scale: float


class Config(_Fields):
    """The mirror of csrc/fastllm.h's fl_config. Not a dataclass: those take a fifth of the time to the first token.

    dim: width of the residual stream; hidden_dim: inside the feed-forward; max_seq: positions the model was made for;
    rotary_dim: how many channels of a head rotate, as pairs (i, i + rotary_dim / 2); attn_scale: of query . key.
    Raises CheckpointError for what cannot be a model.
    """

    __slots__ = ()

    def __new__(cls, **values: Any) -> "Config":
        self = super().__new__(cls, **values)
        self._check()
        return self

    def _check(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 < value <= most:
                raise CheckpointError(f"{name} {value!r} is not between 1 and {most:,}")
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(f"{self.n_heads} query heads cannot share {self.n_kv_heads} key heads evenly")
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            raise CheckpointError(f"{self.rotary_dim} channels of heads of {self.head_dim} cannot rotate in pairs")
        if not (math.isfinite(self.norm_eps) and self.norm_eps >= 0):
            raise CheckpointError(f"norm_eps {self.norm_eps} is not a small positive number")
        if not math.isfinite(self.attn_scale):
            raise CheckpointError(f"attn_scale {self.attn_scale} is not a finite number")

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The canonical names and shapes (rows, columns) of all matrices, in the order a token reads them.

        The embedding comes late, since it is the head where there is no other.
        """
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        for i in range(self.n_layers):
            yield f"layers.{i}.attn.wq", (q, self.dim)
            yield f"layers.{i}.attn.wk", (kv, self.dim)
            yield f"layers.{i}.attn.wv", (kv, self.dim)
            yield f"layers.{i}.attn.wo", (self.dim, q)
            yield f"layers.{i}.ffn.w1", (self.hidden_dim, self.dim)
            yield f"layers.{i}.ffn.w3", (self.hidden_dim, self.dim)
            yield f"layers.{i}.ffn.w2", (self.dim, self.hidden_dim)
        yield "embed", (self.vocab_size, self.dim)
        yield "head", (self.vocab_size, self.dim)

    def vectors(self) -> Iterator[tuple[str, int]]:
        """The canonical names and lengths of all vectors."""
        if self.rotary_dim:
            yield "rope.freqs", self.rotary_dim // 2
        for i in range(self.n_layers):
            yield f"layers.{i}.attn_norm", self.dim
            yield f"layers.{i}.ffn_norm", self.dim
        yield "final_norm", self.dim

    def to_json(self) -> dict[str, object]:
        return self._asdict()

    @classmethod
    def from_json(cls, data: object) -> "Config":
        """The inverse of to_json; raises CheckpointError for anything else."""
        names = _Fields.__annotations__
        if not isinstance(data, dict) or set(data) != set(names):
            raise CheckpointError("the config has not the fields that this version knows")
        for name, kind in names.items():
            if isinstance(data[name], bool) or not isinstance(data[name], int if kind is int else (int, float)):
                raise CheckpointError(f"{name} {data[name]!r} is not a number of the right kind")
        return cls(**data)


def _f32(x: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def rope_freqs(theta: float, rotary_dim: int) -> bytes:
    """Inverse frequencies theta^(-2i / rotary_dim) as f32 bytes, rounded step by step as the references do in f32."""
    freqs = [1.0 / _f32(theta ** _f32(2 * i / rotary_dim)) for i in range(rotary_dim // 2)]
    return struct.pack(f"<{len(freqs)}f", *freqs)
