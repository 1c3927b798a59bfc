"""The table of families, and from the name that a checkpoint gives itself to a line of that table.

The name of a class of the transformers library is a family and a task: "Qwen3ForSequenceClassification". As there, the
family is what the config's "model_type" says, or if that is not in the table, the class.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module

from fastllm.families.source import Recipe, Source

# GGUF's general.architecture.
_GGUF = (
    "bert",
    "cohere2",
    "command-r",
    "gemma",
    "gemma-embedding",
    "gemma2",
    "gemma3",
    "gpt2",
    "gptneox",
    "granite",
    "llama",
    "olmo2",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "smollm3",
    "stablelm",
)
# Family -> the module of this folder and the function in it. A family is named by the model_type of transformers'
# configs; by "gguf:" and the architecture in GGUF; or by its format, where that has one family only.
FAMILIES: dict[str, tuple[str, str]] = {
    **{f"gguf:{name}": ("gguf", "gguf") for name in _GGUF},
    "AMPLIFY": ("amplify", "amplify"),
    "bert": ("bert", "bert"),
    "camembert": ("bert", "roberta"),
    "clip": ("clip", "clip"),
    "clip_text_model": ("clip", "clip"),
    "cohere": ("cohere", "cohere"),
    "cohere2": ("cohere", "cohere2"),
    "esm": ("esm", "esm"),
    "gemma": ("gemma", "gemma"),
    "gemma2": ("gemma", "gemma2"),
    "gemma3_text": ("gemma", "gemma3"),
    "gpt2": ("gpt2", "gpt2"),
    "gpt_neo": ("gpt_neo", "gpt_neo"),
    "gpt_neox": ("gpt_neox", "gpt_neox"),
    "granite": ("granite", "granite"),
    "grok-1": ("grok", "grok"),
    "helium": ("helium", "helium"),
    "llama": ("llama", "llama"),
    "meta.llama": ("meta_llama", "meta_llama"),
    "mindformers.llama": ("mindformers", "mindformers"),
    "minGPT": ("mingpt", "mingpt"),
    "mistral": ("mistral", "mistral"),
    "mixtral": ("moe", "mixtral"),
    "nanoGPT": ("mingpt", "mingpt"),
    "olmo2": ("olmo", "olmo2"),
    "olmoe": ("moe", "olmoe"),
    "phi3": ("phi", "phi3"),
    "qwen2": ("qwen", "qwen2"),
    "qwen2_5_vl_text": ("qwen", "qwen2_vl"),
    "qwen2_moe": ("moe", "qwen2_moe"),
    "qwen2_vl_text": ("qwen", "qwen2_vl"),
    "qwen3": ("qwen", "qwen3"),
    "qwen3_moe": ("moe", "qwen3_moe"),
    "qwen3_vl_moe_text": ("moe", "qwen3_vl_moe"),
    "qwen3_vl_text": ("qwen", "qwen3_vl"),
    "roberta": ("bert", "roberta"),
    "smollm3": ("smollm3", "smollm3"),
    "stablelm": ("stablelm", "stablelm"),
    "xlm-roberta": ("bert", "roberta"),
}

# The end of a class's name -> the model's task. The first that fits counts.
_TASKS = {
    "ForCausalLM": "causal lm",
    "ForConditionalGeneration": "causal lm",
    "LMHeadModel": "causal lm",
    "DoubleHeadsModel": "causal lm",
    "ForMaskedLM": "masked lm",
    "ForPreTraining": "masked lm",
    "ForSequenceClassification": "sequence classification",
    "ForTokenClassification": "token classification",
    "ModelWithProjection": "base",
    "Model": "base",
}
TASKS = (*dict.fromkeys(_TASKS.values()), "other", "")


def family(name: str) -> Callable[[Source], Recipe]:
    """The function of a family in FAMILIES; its module is imported only now."""
    module, function = FAMILIES[name]
    found: Callable[[Source], Recipe] = getattr(import_module(f"fastllm.families.{module}"), function)
    return found


def split(architecture: str, model_type: object = None) -> tuple[str, str]:
    """The family and the task of an architecture, the name of a class or of a family. model_type: the config's.

    The family is a key of FAMILIES, or "" if it is not known. The task is one of TASKS: "other" for one that fastllm
    has no use for (question answering, multiple choice), "" where the name has none.
    """
    if architecture in FAMILIES or architecture.startswith("gguf:"):
        return architecture if architecture in FAMILIES else "", ""
    end = next((end for end in _TASKS if architecture.endswith(end)), "")
    stem, _, rest = architecture.removesuffix(end).partition("For")
    task = _TASKS[end] if end else "other" if rest else ""
    if isinstance(model_type, str) and model_type in FAMILIES and not model_type.startswith("gguf:"):
        return model_type, task
    if end == "ForCausalLM" and _plain(f"{stem}Text") in _FAMILIES:  # Gemma3ForCausalLM is the text model, gemma3_text
        stem += "Text"
    return _FAMILIES.get(_plain(stem), ""), task


def nearest(name: str) -> list[str]:
    """The families whose names are most like `name`, a class that is not known."""
    stem = name.partition("For")[0].removesuffix("Model")
    return [_FAMILIES[n] for n in difflib.get_close_matches(_plain(stem), list(_FAMILIES), cutoff=0.6)]


def _plain(name: str) -> str:
    """A name without case and separators, so that GPTNeoX is gpt_neox and LLaMA is llama."""
    return "".join(c for c in name.lower() if c.isalnum())


_FAMILIES = {_plain(name.removesuffix("_model")): name for name in FAMILIES} | {"antiberty": "bert"}
