"""What a model is, apart from its weights: the dimensions and constants that the C core reads."""

import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastllm.errors import CheckpointError

NORMS = ("rms", "layer")
ACTS = ("silu", "gelu_tanh", "gelu_erf", "quick_gelu", "relu")
QK_NORMS = ("none", "head", "row")

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
    windows: tuple[int, ...] = ()
    ropes: tuple[int, ...] = ()
    moe: tuple[int, ...] = ()


class Config(_Fields):
    """The mirror of csrc/fastllm.h's fl_config. Not a dataclass: those take a fifth of the time to the first token.

    dim: width of the residual stream; hidden_dim: inside the feed-forward (of a layer with experts: of the expert that
    every token passes, 0 without); max_seq: positions the model was made for; rotary_dim: how many channels of a head
    rotate, as pairs (i, i + rotary_dim / 2); attn_scale: of query . key.

    norm: rms or layer (mean and variance); norm_after: norms follow the additions to the stream (BERT) instead of going
    before each block; qk_norm: a norm of queries and keys, of each head or of the row of all heads; causal: a token
    sees those before it, else all; gated: w3 goes beside w1; parallel: attention and feed-forward read the same stream;
    head: False where there are no logits.

    rope_scale: of the rotation's cosines and sines (YaRN, LongRoPE); attn_softcap, logit_softcap: cap * tanh(x / cap),
    0 for none; logit_scale, embed_scale: factors of logits and embeddings; residual_scale: of what a block adds to the
    stream.

    n_experts, n_experts_used, expert_dim (width inside an expert): mixture of experts; moe_renormalize: the chosen
    experts' probabilities are made to sum to 1, which is the same as a softmax of the chosen only.

    positions: rows of a learned table of positions, 0 for none; second_segment: it has as many rows again, for a second
    text's tokens (BERT's token type 1); mask_token: the token whose embedding is zero while the others of its text are
    scaled up for it (ESM-2); pad_token: the token that no token sees (Grok-1); -1 for none.
    rope_switch: beyond so many positions of context the frequencies rope.freqs_long hold (LongRoPE), 0 for none.

    Per layer, empty for the same everywhere: windows: a token sees those less than so many positions away, 0 for all;
    ropes: 0 no rotation, 1 rope.freqs, 2 rope.freqs_local; moe: whether it has experts.

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
        return self.windows[layer] if self.windows else 0

    def layer_rope(self, layer: int) -> int:
        return 0 if not self.rotary_dim else self.ropes[layer] if self.ropes else 1

    def layer_moe(self, layer: int) -> bool:
        return bool(self.n_experts and (not self.moe or self.moe[layer]))

    def matrices(self) -> Iterator[tuple[str, tuple[int, ...], bool]]:
        """The canonical names and shapes of all matrices a model may have, and whether it must.

        In the order a token reads them; the embedding comes late, since it is the head where there is no other. Shapes
        are (rows, columns), of experts (experts, rows, columns).
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
        """The canonical names and lengths of all vectors a model may have, and whether it must.

        Norms have a weight (name) and may have a bias (name.bias); matrices may have one too.
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
        """The fields that are not what they are by default."""
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
    """Whether a finite f32 is nearest to x, one that is not 0 unless x is."""
    try:
        return math.isfinite(x) and (_f32(x) == 0) == (x == 0)
    except OverflowError:
        return False


def _f32(x: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def rope_freqs(theta: float, rotary_dim: int) -> bytes:
    """Inverse frequencies theta^(-2i / rotary_dim) as f32 bytes, rounded step by step as the references do in f32."""
    freqs = [1.0 / _f32(theta ** _f32(2 * i / rotary_dim)) for i in range(rotary_dim // 2)]
    return struct.pack(f"<{len(freqs)}f", *freqs)
