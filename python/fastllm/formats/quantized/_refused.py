"""The schemes that are refused: how each is recognized, and its name."""

from __future__ import annotations

from collections.abc import Mapping

from fastllm.tensors import Tensor

# Endings of names that only one scheme's tensors have, and the scheme. The first ending that occurs names it.
_ENDINGS = (
    (".quant_state.bitsandbytes__nf4", "bitsandbytes (NF4, 4 bits)"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes (FP4, 4 bits)"),
    (".weight.absmax", "bitsandbytes (4 bits)"),
    (".weight.quant_map", "bitsandbytes (4 bits)"),
    (".SCB", "bitsandbytes (8 bits)"),
    ("_blocks", "MXFP4"),
    (".W_q", "HQQ"),
    (".weight_scales", "EETQ (8 bits)"),
    (".codebooks", "AQLM"),
    (".centroids.weight", "VPTQ"),
    (".Qidxs", "QuIP#"),
    (".q_perm", "EXL2"),
    (".q_invperm", "EXL2"),
    (".trellis", "EXL3"),
    (".weight_scale_2", "NVFP4 (ModelOpt)"),
    (".weight_global_scale", "NVFP4 (compressed-tensors)"),
    (".weight_packed", "compressed-tensors of a form"),
    (".bitmask", "sparse compressed-tensors"),
    (".meta_24", "sparse compressed-tensors (marlin-24)"),
    (".weight._data", "quanto"),
    (".weight._packed", "quanto"),
    (".weight_qdata", "torchao"),
    ("._weight_qdata", "torchao"),
    (".weight:qdata", "torchao"),
    (".pre_quant_scale", "AWQ by ModelOpt"),
    (".dense_weights", "SpQR"),
    (".qweight", "a scheme of packed integers"),
    (".qzeros", "a scheme of packed integers"),
    (".scale_weight", "scaled FP8"),
    (".weight_scale", "a scheme of scaled weights"),
    (".weight_scale_inv", "a scheme of scaled weights"),
)

# The config's quant_method -> the scheme's name, for schemes whose tensors do not tell them apart.
_NAMES = {
    "bitsandbytes": "bitsandbytes",
    "bitsandbytes_4bit": "bitsandbytes (4 bits)",
    "bitsandbytes_8bit": "bitsandbytes (8 bits)",
    "compressed-tensors": "compressed-tensors of a form",
    "eetq": "EETQ (8 bits)",
    "hqq": "HQQ",
    "mxfp4": "MXFP4",
    "quanto": "quanto",
    "torchao": "torchao",
}


def refused_scheme(tensors: Mapping[str, Tensor], method: str) -> str | None:
    """The name of the scheme in which tensors are still quantized; None if all are plain.

    tensors: those of a checkpoint after all known schemes were read. method: the config's quant_method, "" if none.
    """
    if "bitnet" in method:  # its tensors may be plain: the model rounds them each time it runs
        return "BitNet (weights of -1, 0 and 1)"
    telling = [name for name in tensors if name.endswith(tuple(ending for ending, _ in _ENDINGS))]
    for ending, name in _ENDINGS:
        if any(found.endswith(ending) and (tensors[found].raw or ending != "_blocks") for found in telling):
            return name
    scales = {base: name for name in tensors if "scale" in name for base in _bases(name)}
    for found, tensor in tensors.items():
        if not found.endswith(("weight", "_proj")) or tensor.raw is None or len(tensor.shape) < 2:
            continue
        if tensor.raw.is_integer:
            return _NAMES.get(method, method) or f"a scheme that has {found} as {tensor.raw.kind}"
        if tensor.raw.is_float8 and found in scales:
            return f"FP8 with scales in {scales[found]}"
    return None


def _bases(name: str) -> tuple[str, ...]:
    """The matrices that a tensor with "scale" in its name may belong to: w.scale and w_scale to w or w.weight."""
    base = name[: name.rindex("scale")].rstrip("._")
    return base, f"{base}.weight", f"{base.rpartition('.')[0]}.weight"
