"""A checkpoint's tensors by the names that a family has for them, whatever wraps the model in the file.

Classes nest the same layers in different ways ("layers.0...", "model.layers.0...", "model.language_model.layers.0..."),
and so do those who save them ("module.", "_orig_mod.", "base_model.model."). A name that the file does not have as it
is stands for the one tensor that is called the same apart from such wrappers, on either side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fastllm.errors import CheckpointError
from fastllm.tensors import Tensor, floats

# Names of modules that hold a whole model and do nothing: before a tensor's own name any of them may come, or none; so
# with every module that holds an embedding of tokens.
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
_INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_EMBEDDING = re.compile(
    r"(.+)\.(?:embed_tokens|embed_in|wte|tok_embeddings|embeddings\.(?:word_embeddings|token_embedding))\.weight"
)

# What a model computes with without having learned it, statistics and heads of training only: nothing is lost.
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
_TOWERS = {
    "the vision tower": re.compile(
        r"(^|\.)(vision\w*|visual\w*|image_\w+|img_\w+|patch_\w+|multi_modal_projector|mm_projector|multimodal_projector"
        r"|connector|aligner|qformer|query_tokens|language_projection|embed_vision|mlp1|row_seperator)(\.|$)"
    ),
    "the audio tower": re.compile(r"(^|\.)(audio\w*|speech\w*|sound\w*|embed_audio)(\.|$)"),
}
_SHOWN, _SHOWN_CHARACTERS = 3, 120


class Tensors(Mapping[str, Tensor]):
    """Tensors by a family's names, which remember those that were asked for. Iterating gives the file's own names.

    file: the tensors by the file's own names, for looks that use nothing.
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
        """The file's tensors of these names are used."""
        self._used.update(names)

    def unused(self) -> tuple[str, ...]:
        """The file's names of what was never asked for and might have mattered, in the file's order."""
        return tuple(
            name
            for name, tensor in self.file.items()
            if name not in self._used and not _HARMLESS.search(name) and not _adds_nothing(name, tensor)
        )

    def _find(self, name: str) -> str | None:
        """The file's name for it. Raises CheckpointError where there are two: which is meant cannot be known."""
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
    """Whether it is a bias of zeros, which AutoGPTQ makes for layers that have none."""
    return name.endswith(".bias") and len(tensor.shape) == 1 and tensor.raw is None and not floats(tensor).any()


def _inner(name: str, wrappers: frozenset[str]) -> str:
    """A tensor's name without wrappers; norms as PyTorch names them, not TensorFlow."""
    name = _INSIDE.sub("", name)
    first, dot, rest = name.partition(".")
    while dot and first in wrappers:
        name = rest
        first, dot, rest = name.partition(".")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _around_embeddings(names: Iterable[str]) -> frozenset[str]:
    """Modules that hold an embedding of tokens, whatever they are called: a model is in them."""
    found = [match[1] for name in names if (match := _EMBEDDING.fullmatch(name))]
    return frozenset(module for around in found if not _is_tower(around) for module in around.split("."))


def _is_tower(name: str) -> bool:
    return any(pattern.search(name) for pattern in _TOWERS.values())


def unused_sentence(path: Path, names: Sequence[str]) -> str:
    """One sentence about a checkpoint's tensors that nothing uses: towers as a whole, of the others the first few."""
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
    """A tensor's name in a sentence of one line: names may be of any length, and hold line breaks and escapes."""
    short = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..."
    return short if short.isprintable() else repr(short)
