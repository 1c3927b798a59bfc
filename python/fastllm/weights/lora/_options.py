"""An adapter's adapter_config.json: the rank, alpha and kind of its sums.

https://huggingface.co/docs/peft/package_reference/lora describes the keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastllm.errors import CheckpointError
from fastllm.formats import Checkpoint

# Keys that say how an adapter was trained, or repeat what the names and shapes of its tensors say.
_NO_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config"),
    *("megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r"),
    *("alpha_pattern", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora"),
    *("use_rslora", "inference_framework", "torch_dtype", "unsloth_fixed"),
}
# Values of init_lora_weights that leave the base as it was; others (PiSSA, OLoRA, LoftQ) change it before training.
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")


class Options(NamedTuple):
    """How an adapter's products are added. ranks, alphas: regular expression of a module's name -> its own value."""

    rank: int
    alpha: float
    ranks: Mapping[str, Any]
    alphas: Mapping[str, Any]
    root: bool  # scale alpha / sqrt(r), not alpha / r: rsLoRA (Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732)
    dora: bool  # rows get lengths of their own: DoRA (Liu et al., 2024, https://arxiv.org/abs/2402.09353)
    keep_tied: bool  # whether a tied head follows its embedding when the adapter changes that

    def scale(self, adapter: Checkpoint, module: str, rank: int, tensor: str) -> float:
        """The factor of a module's product B A. rank: that of `tensor`, A. Raises CheckpointError if it is another."""
        told, alpha = _of_module(self.ranks, module, self.rank), _of_module(self.alphas, module, self.alpha)
        if told != rank:
            raise CheckpointError(f"{adapter.path} is broken: {tensor} has the rank {rank}, its config says {told}")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < 1e30:
            raise CheckpointError(f"{adapter.path} has lora_alpha {alpha!r} for {module}")
        return alpha / (math.sqrt(rank) if self.root else rank)


def _of_module(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of a module: that of the first regular expression that the end of its name matches, or `default`."""
    for key, value in pattern.items():
        if key == module or re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def read(adapter: Checkpoint) -> Options:
    """The options of an adapter. Raises CheckpointError for those that fastllm does not support, or that are broken."""
    header = adapter.header

    def error(what: str) -> CheckpointError:
        return CheckpointError(f"{adapter.path} {what}")

    kind = header.get("peft_type")
    if kind != "LORA":
        raise error(f"is an adapter of the type {kind!r}; fastllm applies LORA: merge it into its model with peft")
    init = header.get("init_lora_weights")
    if init not in _INITS:
        raise error(f"has init_lora_weights {init!r}, which changed its model's weights too: convert it to plain LoRA")
    for key, value in header.items():
        if key not in _NO_EFFECT and value:
            raise error(
                f"has {key} {str(value)[:80]!r}, which fastllm does not support: merge it into its model with peft"
            )
    flags = {}
    for key in ("use_rslora", "use_dora", "ensure_weight_tying"):
        flags[key] = header.get(key)
        if flags[key] is not None and not isinstance(flags[key], bool):
            raise error(f"has {key} {flags[key]!r}, not true or false")
    patterns: dict[str, Mapping[str, Any]] = {}
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = header.get(key)
        pattern = {} if pattern is None else pattern
        if not isinstance(pattern, dict) or len(pattern) > 65536:
            raise error(f"has {key} {str(pattern)[:80]!r}, not an object")
        for expression in pattern:
            _check_pattern(adapter, key, expression)
        patterns[key] = pattern
    rank, alpha = header.get("r", 8), header.get("lora_alpha", 8)
    return Options(
        rank=rank if type(rank) is int else -1,
        alpha=alpha,  # type: ignore[arg-type]  # checked where it is used
        ranks=patterns["rank_pattern"],
        alphas=patterns["alpha_pattern"],
        root=bool(flags["use_rslora"]),
        dora=bool(flags["use_dora"]),
        keep_tied=bool(flags["ensure_weight_tying"]),
    )


def _check_pattern(adapter: Checkpoint, key: str, expression: str) -> None:
    """Raises CheckpointError for an expression that may be slow to match (ReDoS).

    Allowed are 512 characters with two repetitions, none of them of a group.
    """
    try:
        re.compile(expression)
        slow = len(re.findall(r"[*+?{]", expression)) > 2 or re.search(r"\)[*+?{]", expression) or len(expression) > 512
    except (re.error, RecursionError, OverflowError):
        slow = True
    if slow:
        raise CheckpointError(f"{adapter.path} has {key} with {expression[:80]!r}, which fastllm cannot match")
