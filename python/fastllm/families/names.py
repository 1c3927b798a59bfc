"""Finds a checkpoint's tensors by a family's names for them, whatever modules the model was wrapped in when saved.

Classes nest the same layers differently ("layers.0...", "model.layers.0...", "model.language_model.layers.0..."), and
training adds wrappers ("module.", "_orig_mod.", "base_model.model."). A name that is not in the file stands for the one
tensor whose name is equal to it once both are stripped of such wrappers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fastllm.errors import CheckpointError
from fastllm.tensors import Tensor, floats

# Modules that only hold a whole model. Any number of them, in any order, may stand before a tensor's own name; so may
# every module around an embedding of tokens (_around_embeddings).
_WRAPPERS = frozenset(
    (
        "_forward_module",
        "auto_model",
        "backbone",
        "base_model",
        "bert",
        "encoder",
        "esm",
        "gpt_neox",
        "language_model",
        "llm",
        "model",
        "module",
        "roberta",
        "text_encoder",
        "text_model",
        "transformer",
    )
)
# Wrappers of torch.compile, FSDP and activation checkpointing, which stand anywhere in a name.
_INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_EMBEDDING = re.compile(
    r"(.+)\.(?:embed_tokens|embed_in|wte|tok_embeddings|embeddings\.(?:word_embeddings|token_embedding))\.weight"
)

# Tensors that a model does without: buffers that follow from the config, statistics of optimizers, heads that only
# training uses.
_HARMLESS = re.compile(
    r"""(^|\.)(
        rotary\w*\.(inv_freq|cos_cached|sin_cached|original_inv_freq) | freqs_cis | rope\.freqs
        | attn_rot_embd\.weight | embeddings\.position_embeddings\.weight
        | (attn|attention|self_attn)\.(attention\.)?(bias|masked_bias|mask) | causal_mask
        | (position|token_type)_ids | num_batches_tracked
        | pooler\.(dense\.)?(weight|bias) | cls\.seq_relationship\.(weight|bias)
        | contact_head\.regression\.(weight|bias) | logit_scale
        | (mtp|mtp_layers|medusa_head|eagle)\..*
    )$
    | ^(adam_[mv]|moment[12]|moments|accum)\. | ^(global_step|learning_rate|epoch_num|step_num|scale_sense)$""",
    re.VERBOSE,
)
# The parts of multimodal models that are left out.
_TOWERS = {
    "the vision tower": re.compile(
        r"(^|\.)(vision\w*|visual\w*|image_\w+|img_\w+|patch_\w+|multi_modal_projector|mm_projector|multimodal_projector"
        r"|connector|aligner|qformer|query_tokens|language_projection|embed_vision|mlp1|row_seperator)(\.|$)"
    ),
    "the audio tower": re.compile(r"(^|\.)(audio\w*|speech\w*|sound\w*|embed_audio)(\.|$)"),
}
_SHOWN, _SHOWN_CHARACTERS = 3, 120


class Tensors(Mapping[str, Tensor]):
    """Tensors by a family's names. Remembers which were asked for. Iterating gives the file's own names.

    file: the tensors by the file's own names; looking there does not count as use.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self._path, self.file = path, tensors
        self._used: set[str] = set()
        self._inner: dict[str, list[str]] = {}  # a name without wrappers -> the file's names that are called so

    def __getitem__(self, name: str) -> Tensor:
        theirs = self._find(name)
        if theirs is None:
            raise KeyError(name)
        self._used.add(theirs)
        return self.file[theirs]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.file)

    def __len__(self) -> int:
        return len(self.file)

    def mark(self, *names: str) -> None:
        """Counts the tensors with these names in the file as used."""
        self._used.update(names)

    def unused(self) -> tuple[str, ...]:
        """The file's names of tensors that were never asked for, but for harmless ones, in the file's order."""
        return tuple(
            name
            for name, tensor in self.file.items()
            if name not in self._used and not _HARMLESS.search(name) and not _adds_nothing(name, tensor)
        )

    def _find(self, name: str) -> str | None:
        """The file's name of a tensor, None if it has none. Raises CheckpointError where two fit."""
        if name in self.file:
            return name
        if not self._inner:
            wrappers = _WRAPPERS | _around_embeddings(self.file)
            for theirs in self.file:
                self._inner.setdefault(_inner(theirs, wrappers), []).append(theirs)
        found = self._inner.get(_inner(name, _WRAPPERS), [])
        if len(found) > 1:
            raise CheckpointError(f"{self._path} has {name} twice: as {found[0]} and as {found[1]}")
        return found[0] if found else None


def _adds_nothing(name: str, tensor: Tensor) -> bool:
    """Whether it is a bias of zeros: AutoGPTQ saves those for layers without a bias."""
    return name.endswith(".bias") and len(tensor.shape) == 1 and tensor.raw is None and not floats(tensor).any()


def _inner(name: str, wrappers: frozenset[str]) -> str:
    """A tensor's name without wrappers, and with PyTorch's weight and bias of norms for TensorFlow's gamma and beta."""
    name = _INSIDE.sub("", name)
    first, dot, rest = name.partition(".")
    while dot and first in wrappers:
        name = rest
        first, dot, rest = name.partition(".")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _around_embeddings(names: Iterable[str]) -> frozenset[str]:
    """The names of all modules around an embedding of tokens, which must hold the language model."""
    found = [match[1] for name in names if (match := _EMBEDDING.fullmatch(name))]
    return frozenset(module for around in found if not _is_tower(around) for module in around.split("."))


def _is_tower(name: str) -> bool:
    return any(pattern.search(name) for pattern in _TOWERS.values())


def unused_sentence(path: Path, names: Sequence[str]) -> str:
    """A sentence about tensors that nothing uses: each tower is named as a whole, the others by the first few names."""
    said, rest = [], list(names)
    for tower, pattern in _TOWERS.items():
        count = sum(pattern.search(name) is not None for name in rest)
        rest = [name for name in rest if not pattern.search(name)]
        if count:
            said.append(f"{tower} ({count:,} tensor{'s' if count > 1 else ''}) is left out")
    if rest:
        more = f" and {len(rest) - _SHOWN:,} more" if len(rest) > _SHOWN else ""
        said.append(
            f"nothing uses its {'tensors' if len(rest) > 1 else 'tensor'} {', '.join(map(_shown, rest[:_SHOWN]))}{more}"
        )
    return f"{path}: {'; '.join(said)}"


def _shown(name: str) -> str:
    """A tensor's name for a message: cut, and escaped if it has characters that a terminal would obey."""
    short = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..."
    return short if short.isprintable() else repr(short)
