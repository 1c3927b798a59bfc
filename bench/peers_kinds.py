"""The peers of bench/peers.py: their formats, the settings that are tried, and what one process is asked to measure."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from peers_models import SHAPES

SEQUENCES = 16  # of the work "batch"
FAR = 8000  # tokens in the context of "long" and "long-q8"
TEXTS = 5  # of "long" and "long-q8", one after the other in one process


class Variant(NamedTuple):
    name: str
    bits: float  # per weight with scales; for files whose size says it, that counts


class Kind(NamedTuple):
    """A kind of peer: its formats, and the settings that are tried."""

    title: str
    variants: tuple[Variant, ...]
    settings: tuple[dict[str, Any], ...] = ({},)
    far: tuple[dict[str, Any], ...] = ({},)  # more settings with a long context, each combined with all of `settings`
    without: tuple[str, ...] = ()  # works that it cannot do


GGUF = (Variant("Q8_0", 8.5), Variant("Q4_0", 4.5), Variant("Q4_K_M", 4.8))
KINDS = {
    "fastllm": Kind("fastllm", (Variant("q8", 8.5), Variant("q4", 4.5))),
    "llama.cpp": Kind("llama.cpp", GGUF, ({"repack": True}, {"repack": False}), far=({"flash": 1}, {"flash": 0})),
    "ik_llama.cpp": Kind("ik_llama.cpp", GGUF, ({"rtr": 1}, {"rtr": 0}), without=("start",)),
    "ctranslate2": Kind("CTranslate2", (Variant("int8", 8),), ({"compute": "int8"},)),
    "ort": Kind("ORT GenAI", (Variant("int8", 9), Variant("int4", 5))),
    "openvino": Kind(
        "OpenVINO GenAI",
        (Variant("int8", 8), Variant("int4", 4.2)),
        ({}, {"INFERENCE_PRECISION_HINT": "f32"}, {"ATTENTION_BACKEND": "SDPA"}),
        without=("batch",),
    ),
    "torch": Kind("transformers", (Variant("f32", 32), Variant("bf16", 16), Variant("int8", 8))),
    "llama2.c": Kind("llama2.c runq", (Variant("int8", 9),), without=("prefill", "batch", "long", "long-q8")),
}

# Instruction set -> environment variables that keep libraries, which choose one as they start, to it.
LIMITS = {
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "MKL_ENABLE_INSTRUCTIONS": "AVX512_E1"},
    "avxvnni": {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI", "MKL_ENABLE_INSTRUCTIONS": "AVX2_E1", "CT2_FORCE_CPU_ISA": "AVX2"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "CT2_FORCE_CPU_ISA": "AVX2"},
}


class Peer:
    """A variant of a kind of peer, on one shape."""

    def __init__(self, name: str, variant: Variant, shape: str, where: str) -> None:
        self.kind, _, self.tag = name.partition("@")
        self.variant, self.shape, self.where = variant, shape, where
        self.label = f"{KINDS[self.kind].title} {variant.name}" + (f" ({self.tag})" if self.tag else "")
        self.model = self.scratch = Path()
        self.token_bytes = SHAPES[shape].weights * variant.bits / 8

    @property
    def is_binary(self) -> bool:
        """Whether the peer is programs in a folder, not a Python package."""
        return self.kind in ("ik_llama.cpp", "llama2.c")

    def settings(self, work: str) -> list[dict[str, Any]]:
        """The settings that are tried for a work."""
        kind = KINDS[self.kind]
        return [some | more for some in kind.settings for more in (kind.far if work.startswith("long") else ({},))]

    def python(self) -> str:
        return sys.executable if self.is_binary else self.where

    def environment(self) -> dict[str, str]:
        extra = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.tag:
            extra |= {"FASTLLM_ISA": self.tag, **LIMITS.get(self.tag, {})}
        return os.environ | extra

    def spec(self, work: str, threads: int, settings: dict[str, Any]) -> dict[str, Any]:
        shape = SHAPES[self.shape]
        count = {"prefill": shape.prompt, "decode": shape.tokens, "busy": min(shape.tokens, 64)}.get(work, 16)
        before = FAR if work.startswith("long") else 8
        return {
            "peer": self.kind,
            "where": self.where,
            "model": str(self.model),
            "scratch": str(self.scratch),
            "variant": self.variant.name,
            "work": work,
            "kv": "q8" if work == "long-q8" else "f16",
            "threads": threads,
            "count": count,
            "before": before,
            "texts": TEXTS if work.startswith("long") else 1,
            "room": before + count + 16,
            "batch": SEQUENCES if work == "batch" else 1,
            "vocab": shape.vocab,
            "settings": settings,
        }
