"""From a checkpoint's own names and config to the canonical ones: families know no file format.

A family is a function from a Source to a Recipe, registered by the architecture's name. README.md, "Adding a family",
walks through one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from fastllm.config import Config
from fastllm.errors import CheckpointError
from fastllm.formats import Checkpoint
from fastllm.tensors import Bytes, Tensor, floats


class Weight(NamedTuple):
    """A matrix, or a stack of them, in the model's shape. Row r of the model is row rows[r] of the tensor."""

    tensor: Tensor
    rows: array[int] | None = None


class Recipe(NamedTuple):
    """How a checkpoint becomes a model.

    matrices, vectors: by canonical name (Config.matrices, Config.vectors); "head" is missing where it is tied. Vectors
    are f32 bytes. bos: the token a text starts with, if any; stop: tokens that end a text; chat_stop: that end a turn
    of a chat.
    """

    config: Config
    matrices: Mapping[str, Weight]
    vectors: Mapping[str, Bytes]
    bos: int | None
    stop: tuple[int, ...]
    chat_stop: tuple[int, ...]


class Source:
    """A checkpoint as a family reads it, and the recipe it writes.

    Values and tensors are checked as they are asked for; every error names the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path, self.architecture = checkpoint.path, checkpoint.architecture
        self.header, self.tensors = checkpoint.header, checkpoint.tensors
        self.matrices: dict[str, Weight] = {}
        self.vectors: dict[str, Bytes] = {}

    # ---- the header

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the header; null counts as missing."""
        value = self.header.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
            raise self.error(f"has no whole number {key} in its config" if value is None else f"has {key} {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
            raise self.error(f"has no number {key} in its config" if value is None else f"has {key} {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"has {key} {value!r}, not true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.error(f"has no {key} in its config" if value is None else f"has {key} {value!r}")
        return value

    def refuse(self, key: str, *allowed: object) -> None:
        """Raises unless the value is missing or one of `allowed`: for options of the family that are not built."""
        value = self.get(key)
        if value is not None and value not in allowed:
            raise self.error(f"has {key} {value!r}, which fastllm does not support")

    def section(self, key: str, **defaults: object) -> Source:
        """The config that the header has under `key` over `defaults`, as a Source with the same tensors."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.error(f"has {key} {value!r}, not a config of its own")
        header = {**defaults, **{k: v for k, v in value.items() if v is not None}}
        return Source(Checkpoint(self.path, "", self.architecture, header, self.tensors))

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {what}")

    # ---- tensors

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise self.error(f"has no tensor {name}")
        return self.tensors[name]

    def matrix(self, name: str, tensor: Tensor | str, rows: array[int] | None = None) -> None:
        """The canonical matrix `name` is `tensor`, or the checkpoint's tensor of that name."""
        self.matrices[name] = Weight(self.tensor(tensor) if isinstance(tensor, str) else tensor, rows)

    def vector(
        self,
        name: str,
        tensor: Tensor | str,
        *,
        add: float = 0.0,
        repeat: int = 1,
        rows: Sequence[int] | None = None,
    ) -> None:
        """The canonical vector `name`: (the tensor + add), repeated, its values in the order of `rows`."""
        tensor = self.tensor(tensor) if isinstance(tensor, str) else tensor
        if tensor.dtype == "f32" and not add and repeat == 1 and rows is None:
            self.vectors[name] = tensor.all()
            return
        import numpy

        values = numpy.tile(floats(tensor).reshape(-1) + numpy.float32(add), repeat)
        if rows is not None and len(rows) != len(values):
            raise self.error(f"has {len(values)} values for {name}, which needs {len(rows)}")
        self.vectors[name] = (values if rows is None else values[numpy.asarray(rows)]).tobytes()

    def linear(
        self, name: str, source: str, *, rows: array[int] | None = None, turn: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """The canonical matrix `name`, and its bias where there is one, from `source`.weight and `source`.bias.

        turn: what to do to the matrix first, such as tensors.transposed.
        """
        tensor = self.tensor(f"{source}.weight")
        self.matrix(name, turn(tensor) if turn else tensor, rows)
        if f"{source}.bias" in self.tensors:
            self.vector(f"{name}.bias", f"{source}.bias", rows=rows)

    def norm(self, name: str, source: str, *, add: float = 0.0, repeat: int = 1) -> None:
        """The canonical norm `name`, and its bias where there is one, from `source`.weight and `source`.bias."""
        self.vector(name, f"{source}.weight", add=add, repeat=repeat)
        if f"{source}.bias" in self.tensors:
            self.vector(f"{name}.bias", f"{source}.bias", repeat=repeat)

    def recipe(
        self,
        config: Config,
        *,
        bos: int | None = None,
        stop: Sequence[int] = (),
        chat_stop: Sequence[int] | None = None,
    ) -> Recipe:
        ends = tuple(dict.fromkeys(stop))
        chat_ends = ends if chat_stop is None else tuple(chat_stop)
        return Recipe(config, self.matrices, self.vectors, bos, ends, chat_ends)


def half_split(heads: int, head_dim: int, rotary_dim: int | None = None) -> array[int]:
    """Rows that bring rotary pairs (2i, 2i + 1) of each head to (i, i + rotary_dim / 2)."""
    r = head_dim if rotary_dim is None else rotary_dim
    order = [*range(0, r, 2), *range(1, r, 2), *range(r, head_dim)]
    return array("i", [head * head_dim + i for head in range(heads) for i in order])


Family = Callable[[Source], Recipe]

# Architecture -> module of this package and function in it; imported when a checkpoint of that architecture is met.
FAMILIES: dict[str, tuple[str, str]] = {
    "AMPLIFY": ("amplify", "recipe"),
    "AntiBERTy": ("bert", "recipe"),
    "BertForMaskedLM": ("bert", "recipe"),
    "BertForPreTraining": ("bert", "recipe"),
    "BertModel": ("bert", "recipe"),
    "CamembertForMaskedLM": ("bert", "roberta"),
    "CamembertModel": ("bert", "roberta"),
    "CLIPModel": ("clip", "recipe"),
    "CLIPTextModel": ("clip", "recipe"),
    "CLIPTextModelWithProjection": ("clip", "recipe"),
    "Cohere2ForCausalLM": ("cohere", "cohere2"),
    "CohereForCausalLM": ("cohere", "cohere"),
    "EsmForMaskedLM": ("esm", "recipe"),
    "EsmModel": ("esm", "recipe"),
    "Gemma2ForCausalLM": ("gemma", "gemma2"),
    "Gemma3ForCausalLM": ("gemma", "gemma3"),
    "Gemma3ForConditionalGeneration": ("gemma", "gemma3_text"),
    "GemmaForCausalLM": ("gemma", "gemma"),
    "gguf:bert": ("gguf", "recipe"),
    "gguf:cohere2": ("gguf", "recipe"),
    "gguf:command-r": ("gguf", "recipe"),
    "gguf:gemma": ("gguf", "recipe"),
    "gguf:gemma2": ("gguf", "recipe"),
    "gguf:gemma3": ("gguf", "recipe"),
    "gguf:gpt2": ("gguf", "recipe"),
    "gguf:gptneox": ("gguf", "recipe"),
    "gguf:granite": ("gguf", "recipe"),
    "gguf:llama": ("gguf", "recipe"),
    "gguf:olmo2": ("gguf", "recipe"),
    "gguf:olmoe": ("gguf", "recipe"),
    "gguf:phi3": ("gguf", "recipe"),
    "gguf:qwen2": ("gguf", "recipe"),
    "gguf:qwen2moe": ("gguf", "recipe"),
    "gguf:qwen3": ("gguf", "recipe"),
    "gguf:qwen3moe": ("gguf", "recipe"),
    "gguf:smollm3": ("gguf", "recipe"),
    "gguf:stablelm": ("gguf", "recipe"),
    "GPT2LMHeadModel": ("gpt2", "recipe"),
    "GPT2Model": ("gpt2", "recipe"),
    "GPTNeoForCausalLM": ("gpt_neo", "recipe"),
    "GPTNeoModel": ("gpt_neo", "recipe"),
    "GPTNeoXForCausalLM": ("gpt_neox", "recipe"),
    "GPTNeoXModel": ("gpt_neox", "recipe"),
    "GraniteForCausalLM": ("llama", "granite"),
    "grok-1": ("grok", "recipe"),
    "HeliumForCausalLM": ("llama", "helium"),
    "LlamaForCausalLM": ("llama", "llama"),
    "meta.llama": ("meta_llama", "recipe"),
    "mindformers.llama": ("mindformers", "recipe"),
    "minGPT": ("mingpt", "recipe"),
    "nanoGPT": ("mingpt", "recipe"),
    "MistralForCausalLM": ("llama", "mistral"),
    "MixtralForCausalLM": ("moe", "mixtral"),
    "Olmo2ForCausalLM": ("olmo", "olmo2"),
    "OlmoeForCausalLM": ("moe", "olmoe"),
    "Phi3ForCausalLM": ("phi", "phi3"),
    "Qwen2ForCausalLM": ("qwen", "qwen2"),
    "Qwen2MoeForCausalLM": ("moe", "qwen2_moe"),
    "Qwen3ForCausalLM": ("qwen", "qwen3"),
    "Qwen3MoeForCausalLM": ("moe", "qwen3_moe"),
    "RobertaForMaskedLM": ("bert", "roberta"),
    "RobertaModel": ("bert", "roberta"),
    "SmolLM3ForCausalLM": ("llama", "smollm3"),
    "StableLmForCausalLM": ("stablelm", "stablelm"),
    "XLMRobertaForMaskedLM": ("bert", "roberta"),
    "XLMRobertaModel": ("bert", "roberta"),
}

# A config without "architectures" still has its "model_type": mostly the architecture's name in small letters.
_MODEL_TYPES = {name.removesuffix("ForCausalLM").lower(): name for name in FAMILIES if name.endswith("ForCausalLM")} | {
    "bert": "BertModel",
    "clip": "CLIPModel",
    "clip_text_model": "CLIPTextModel",
    "esm": "EsmModel",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neo": "GPTNeoForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
}


def recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe of the checkpoint's family. Raises CheckpointError for a family that is not known."""
    architecture = _MODEL_TYPES.get(checkpoint.architecture, checkpoint.architecture)
    if architecture not in FAMILIES:
        from fastllm.families.mingpt import matches

        if not matches(checkpoint.tensors):
            if not architecture:
                raise CheckpointError(
                    f"{checkpoint.path} does not say what family it is of, and has no config.json beside it that does"
                )
            known = ", ".join(sorted(FAMILIES))
            raise CheckpointError(f"{checkpoint.path} is of the family {architecture!r}; known are {known}")
        architecture = "minGPT"  # its files do not say what they are
    module, function = FAMILIES[architecture]
    family: Family = getattr(import_module(f"fastllm.families.{module}"), function)
    return family(Source(checkpoint))
