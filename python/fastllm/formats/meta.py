"""Llama as Meta releases it: params.json and parts consolidated.00.pth, .01.pth, ..., each with a share of each matrix.

The shares are those of tensor parallelism (Shoeybi et al., 2019, https://arxiv.org/abs/1909.08053): wq, wk, wv, w1, w3
and the head are split by rows, wo and w2 by columns, the embedding by columns (Llama 2) or rows (Llama 3). Every part
has the whole norms.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastllm.errors import CheckpointError
from fastllm.files import matching
from fastllm.formats._files import tensors_of
from fastllm.formats.checkpoint import Checkpoint
from fastllm.formats.configs import json_of
from fastllm.tensors import Tensor, joined_columns, joined_rows

_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
_COLUMNS = ("wo", "w2")


def read_folder(path: Path) -> Checkpoint:
    """Opens all parts. Raises CheckpointError if one is missing, or if they do not fit params.json or each other."""
    params = json_of(path / "params.json", dict)
    files = matching(path, "consolidated.*.pth")
    found = {int(m[1]): file for file in files if (m := re.search(r"\.(\d{1,4})\.pth$", file.name))}
    for i in range(max(found, default=0) + 1):
        if i not in found:
            raise CheckpointError(
                f"{path} lacks consolidated.{i:02}.pth: it has {len(found)} of {max(found) + 1} parts"
            )
    files = [found[i] for i in range(len(found))]
    parts = [tensors_of(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.keys() != parts[0].keys():
            name = min(part.keys() ^ parts[0].keys())
            raise CheckpointError(
                f"{path} is broken: of {files[0].name} and {file.name} only one has the tensor {name}"
            )
    dim = params.get("dim")
    tensors: dict[str, Tensor] = {}
    joined: dict[tuple[int, ...], Tensor] = {}  # by the shares' ids: a head that is the embedding stays the same tensor
    for name in parts[0]:
        if name == "rope.freqs":  # computed from params.json
            continue
        shares = [part[name] for part in parts]
        same = tuple(id(share) for share in shares)
        if same not in joined:
            joined[same] = _joined(path, name, shares, dim)
        tensors[name] = joined[same]
    share = parts[0].get("layers.0.attention.wq.weight")  # (dim / parts, dim)
    if share and isinstance(dim, int) and share.rows and share.rows * len(files) < dim:
        raise CheckpointError(f"{path} has {len(files)} of {dim // share.rows} parts: the last are missing")
    kind = "Meta .pth" if len(files) == 1 else f"Meta .pth, {len(files)} parts"
    return Checkpoint(path, kind, "meta.llama", params, tensors)


def _joined(path: Path, name: str, shares: list[Tensor], dim: object) -> Tensor:
    """The whole tensor. dim: that of params.json, the whole width of the embedding."""
    shape = shares[0].shape
    if any(share.shape != shape for share in shares):
        raise CheckpointError(f"{path} is broken: its parts have {name} in several shapes")
    if len(shares) == 1 or len(shape) < 2:
        return shares[0]
    kind = name.split(".")[-2] if "." in name else name
    if kind == "tok_embeddings":
        return joined_rows(shares) if shape[-1] == dim else joined_columns(shares)
    if kind in _ROWS:
        return joined_rows(shares)
    if kind in _COLUMNS:
        return joined_columns(shares)
    raise CheckpointError(f"{path} has the tensor {name} in {len(shares)} parts; how they belong together is not known")
