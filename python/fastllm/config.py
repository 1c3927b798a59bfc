"""What a model is, apart from its weights: the dimensions, constants and flags that the C core reads."""

import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastllm.errors import CheckpointError

NORMS = ("rms", "layer")
ACTS = ("silu", "gelu_tanh", "gelu_erf", "quick_gelu", "relu")
QK_NORMS = ("none", "head", "row")

# More than any model has, and so small that no product of three overflows 64 bits. The C core has the same bounds.
_MOST = {
    "dim": 1 << 20,
    "hidden_dim": 1 << 20,
    "head_dim": 4096,
    "n_layers": 65536,
    "n_heads": 65536,
    "n_kv_heads": 65536,
    "vocab_size": 1 << 28,
    "max_seq": (1 << 31) - 1,
    "n_experts": 65536,
    "n_experts_used": 65536,
    "expert_dim": 1 << 20,
    "positions": (1 << 31) - 1,
}
_MAY_BE_ZERO = ("hidden_dim", "n_experts", "n_experts_used", "expert_dim", "positions")
_CHOICES = {"norm": NORMS, "act": ACTS, "qk_norm": QK_NORMS}


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
    norm: str = "rms"
    act: str = "silu"
    qk_norm: str = "none"
    causal: bool = True
    gated: bool = True
    parallel: bool = False
    norm_after: bool = False
    head: bool = True
    rope_scale: float = 1.0
    attn_softcap: float = 0.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    n_experts: int = 0
    n_experts_used: int = 0
    expert_dim: int = 0
    moe_renormalize: bool = False
    positions: int = 0
    mask_token: int = -1
    pad_token: int = -1
    rope_switch: int = 0
    second_segment: bool = False
    precise: bool = False
    windows: tuple[int, ...] = ()
    ropes: tuple[int, ...] = ()
    moe: tuple[int, ...] = ()


class Config(_Fields):
    """A model's dimensions, constants and flags: the mirror of fl_config in csrc/fastllm.h.

    Sizes. dim: width of the residual stream. hidden_dim: width inside the feed-forward; in a layer with experts, inside
    the shared expert, 0 if there is none. head_dim: channels of a head. n_heads: query heads. n_kv_heads: heads of keys
    and values. max_seq: positions that the model was made for. positions: rows of the table of learned positions, 0 for
    none. second_segment: whether that table has as many rows again, for a second text's tokens (BERT's token type 1).

    Layers, each of two branches, attention and feed-forward. norm: "rms" or "layer" (LayerNorm, with mean and
    variance). norm_after: norms follow each addition to the stream (BERT); otherwise they precede each branch.
    qk_norm: a norm of queries and keys: "none", over each "head", or over the "row" of all heads. causal: a token
    attends to itself and those before it, else to all. parallel: both branches read the same stream, and both outputs
    are added to it. gated: the feed-forward is w2(act(w1 x) * w3 x), else w2(act(w1 x)). head: whether it has logits.

    precise: activations enter products of int8 weights with 15 bits instead of 8, at twice the work.

    Factors. attn_scale: of query . key. attn_softcap, logit_softcap: cap of cap * tanh(x / cap), 0 for none.
    logit_scale, embed_scale: of logits and embeddings. residual_scale: of what a branch adds to the stream.

    Rotation (RoPE, Su et al., 2021, https://arxiv.org/abs/2104.09864). rotary_dim: channels of a head that rotate, as
    pairs (i, i + rotary_dim / 2). rope_scale: factor of the cosines and sines (YaRN, LongRoPE). rope_switch: contexts
    longer than this rotate by rope.freqs_long instead of rope.freqs (LongRoPE), 0 for never.

    Experts. n_experts, n_experts_used: of a layer, and for a token. expert_dim: width inside an expert.
    moe_renormalize: whether the chosen experts' probabilities are scaled to sum to 1, which equals a softmax over them.

    Tokens, -1 for none. mask_token: its embedding is zero, and a text's other embeddings are scaled up to make up for
    it (ESM-2). pad_token: no token attends to it (Grok-1).

    One value for each layer, or empty where all layers are alike. windows: a token attends to those less than so many
    positions away, 0 for all. ropes: 0 no rotation, 1 by rope.freqs, 2 by rope.freqs_local. moe: 1 with experts.

    Raises CheckpointError for values that no model can have. (It is no dataclass: importing those takes a fifth of the
    time to the first token.)
    """

    __slots__ = ()

    def __new__(cls, **values: Any) -> "Config":
        self = super().__new__(cls, **values)
        self._check()
        return self

    def _check(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            least = 0 if name in _MAY_BE_ZERO else 1
            if not isinstance(value, int) or not least <= value <= most:
                raise CheckpointError(f"{name} {value!r} is not between {least} and {most:,}")
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(f"{self.n_heads} query heads cannot share {self.n_kv_heads} key heads evenly")
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            raise CheckpointError(f"{self.rotary_dim} channels of heads of {self.head_dim} cannot rotate in pairs")
        if not (math.isfinite(self.norm_eps) and self.norm_eps >= 0):
            raise CheckpointError(f"norm_eps {self.norm_eps} is not a small positive number")
        for name, kind in _Fields.__annotations__.items():
            value = getattr(self, name)
            if kind is float and not _is_f32(value):
                raise CheckpointError(f"{name} {value} is not a finite number of f32, which the core computes with")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise CheckpointError(f"{name} {getattr(self, name)!r} is none of {', '.join(choices)}")
        self._check_layers()

    def _check_layers(self) -> None:
        if bool(self.n_experts) != bool(self.n_experts_used and self.expert_dim) or (
            self.n_experts_used > self.n_experts
        ):
            raise CheckpointError(
                f"{self.n_experts_used} of {self.n_experts} experts of {self.expert_dim} cannot be used"
            )
        if not self.hidden_dim and not all(self.layer_moe(i) for i in range(self.n_layers)):
            raise CheckpointError("hidden_dim 0 leaves layers without a feed-forward")
        if self.second_segment and not self.positions:
            raise CheckpointError("a second segment without a table of learned positions")
        if 0 < self.positions < self.max_seq:
            raise CheckpointError(
                f"{self.positions:,} learned positions are fewer than the context of {self.max_seq:,}"
            )
        for name, most in (("windows", _MOST["max_seq"]), ("ropes", 2), ("moe", 1)):
            values = getattr(self, name)
            if values and (len(values) != self.n_layers or not all(0 <= v <= most for v in values)):
                raise CheckpointError(f"{name} has {len(values)} values, not one between 0 and {most} for each layer")

    def layer_window(self, layer: int) -> int:
        """The window of a layer, 0 for none."""
        return self.windows[layer] if self.windows else 0

    def layer_rope(self, layer: int) -> int:
        """The rotation of a layer, as `ropes` has it."""
        return 0 if not self.rotary_dim else self.ropes[layer] if self.ropes else 1

    def layer_moe(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return bool(self.n_experts and (not self.moe or self.moe[layer]))

    def matrices(self) -> Iterator[tuple[str, tuple[int, ...], bool]]:
        """The canonical name, shape and whether it is required of each matrix that a model of this Config may have.

        Shapes are (outputs, inputs), of experts (experts, outputs, inputs). They come in the order in which a forward
        reads them; the embedding comes late because a tied one is read as the head.
        """
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        for i in range(self.n_layers):
            yield f"layers.{i}.attn.wq", (q, self.dim), True
            yield f"layers.{i}.attn.wk", (kv, self.dim), True
            yield f"layers.{i}.attn.wv", (kv, self.dim), True
            yield f"layers.{i}.attn.wo", (self.dim, q), True
            moe = self.layer_moe(i)
            if moe:
                yield f"layers.{i}.router", (self.n_experts, self.dim), True
                yield f"layers.{i}.experts.w1", (self.n_experts, self.expert_dim, self.dim), True
                if self.gated:
                    yield f"layers.{i}.experts.w3", (self.n_experts, self.expert_dim, self.dim), True
                yield f"layers.{i}.experts.w2", (self.n_experts, self.dim, self.expert_dim), True
                yield f"layers.{i}.ffn.gate", (1, self.dim), False
            if self.hidden_dim:
                yield f"layers.{i}.ffn.w1", (self.hidden_dim, self.dim), not moe
                if self.gated:
                    yield f"layers.{i}.ffn.w3", (self.hidden_dim, self.dim), not moe
                yield f"layers.{i}.ffn.w2", (self.dim, self.hidden_dim), not moe
        if self.positions:
            yield "positions", (self.positions << self.second_segment, self.dim), True
        if self.head:
            yield "head.dense", (self.dim, self.dim), False
        yield "embed", (self.vocab_size, self.dim), True
        if self.head:
            yield "head", (self.vocab_size, self.dim), False

    def vectors(self) -> Iterator[tuple[str, int, bool]]:
        """The canonical name, length and whether it is required of each vector that a model of this Config may have.

        A norm's weight has the norm's name, its bias name.bias; a matrix may have a name.bias too.
        """
        dim, q, kv = self.dim, self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        ropes = {self.layer_rope(i) for i in range(self.n_layers)}
        half = self.rotary_dim // 2
        if 1 in ropes:
            yield "rope.freqs", half, True
            if self.rope_switch:
                yield "rope.freqs_long", half, True
        if 2 in ropes:
            yield "rope.freqs_local", half, True
        for i in range(self.n_layers):
            layer = f"layers.{i}"
            for name in ("attn_norm", "post_attn_norm", "ffn_norm", "post_ffn_norm"):
                yield f"{layer}.{name}", dim, False
                yield f"{layer}.{name}.bias", dim, False
            if self.qk_norm != "none":
                yield f"{layer}.attn.q_norm", q, True
                yield f"{layer}.attn.k_norm", kv, True
            for name, n in (("wq", q), ("wk", kv), ("wv", kv), ("wo", dim)):
                yield f"{layer}.attn.{name}.bias", n, False
            if self.hidden_dim:
                for name, n in (("w1", self.hidden_dim), ("w3", self.hidden_dim), ("w2", dim)):
                    yield f"{layer}.ffn.{name}.bias", n, False
        for name in ("embed_norm", "final_norm", "head.norm"):
            yield name, dim, False
            yield f"{name}.bias", dim, False
        if self.head:
            yield "head.dense.bias", dim, False
            yield "head.bias", self.vocab_size, False

    def to_json(self) -> dict[str, object]:
        """The fields that differ from their defaults."""
        defaults = _Fields._field_defaults
        return {k: v for k, v in self._asdict().items() if k not in defaults or v != defaults[k]}

    @classmethod
    def from_json(cls, data: object) -> "Config":
        """The inverse of to_json; raises CheckpointError for anything else."""
        kinds = _Fields.__annotations__
        if (
            not isinstance(data, dict)
            or not kinds.keys() - _Fields._field_defaults.keys() <= data.keys() <= kinds.keys()
        ):
            raise CheckpointError("the config has not the fields that this version knows")
        values = dict(data)
        for name, value in data.items():
            kind = kinds[name]
            if kind in (int, float, bool, str):
                right = isinstance(value, (int, float) if kind is float else kind)
                if not right or (isinstance(value, bool) and kind is not bool):
                    raise CheckpointError(f"{name} {value!r} is not a value of the right kind")
            else:
                if not isinstance(value, list) or not all(type(v) is int for v in value):
                    raise CheckpointError(f"{name} is not a list of numbers")
                values[name] = tuple(value)
        return cls(**values)


def _is_f32(x: float) -> bool:
    """Whether x rounds to a finite f32, and to 0 only if it is 0."""
    try:
        return math.isfinite(x) and (_f32(x) == 0) == (x == 0)
    except OverflowError:
        return False


def _f32(x: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def rope_freqs(theta: float, rotary_dim: int) -> bytes:
    """The frequencies theta^(-2i / rotary_dim), i < rotary_dim / 2, in radians per position, as f32 bytes.

    Each step is rounded to f32, as in the references.
    """
    freqs = [1.0 / _f32(theta ** _f32(2 * i / rotary_dim)) for i in range(rotary_dim // 2)]
    return struct.pack(f"<{len(freqs)}f", *freqs)
