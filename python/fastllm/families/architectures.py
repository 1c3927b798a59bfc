"""From what a checkpoint calls itself to the family that reads it, and what the model is for.

A class of the transformers library is a family and a task: "Qwen3ForSequenceClassification". As there, the config's
"model_type" names the family where it is known, and the class where it is not.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module

from fastllm.families.source import Recipe, Source

# Family -> module of this folder and function in it, imported when a checkpoint of that family is met. A family is
# called by the model type of transformers' configs, or by its format's own name where all of that is one family.
FAMILIES: dict[str, tuple[str, str]] = {
    "AMPLIFY": ("amplify", "recipe"),
    "bert": ("bert", "recipe"),
    "camembert": ("bert", "roberta"),
    "clip": ("clip", "recipe"),
    "clip_text_model": ("clip", "recipe"),
    "cohere": ("cohere", "cohere"),
    "cohere2": ("cohere", "cohere2"),
    "esm": ("esm", "recipe"),
    "gemma": ("gemma", "gemma"),
    "gemma2": ("gemma", "gemma2"),
    "gemma3_text": ("gemma", "gemma3"),
    "gguf:bert": ("gguf", "recipe"),
    "gguf:cohere2": ("gguf", "recipe"),
    "gguf:command-r": ("gguf", "recipe"),
    "gguf:gemma": ("gguf", "recipe"),
    "gguf:gemma-embedding": ("gguf", "recipe"),
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
    "gpt2": ("gpt2", "recipe"),
    "gpt_neo": ("gpt_neo", "recipe"),
    "gpt_neox": ("gpt_neox", "recipe"),
    "granite": ("granite", "granite"),
    "grok-1": ("grok", "recipe"),
    "helium": ("helium", "helium"),
    "llama": ("llama", "llama"),
    "meta.llama": ("meta_llama", "recipe"),
    "mindformers.llama": ("mindformers", "recipe"),
    "minGPT": ("mingpt", "recipe"),
    "mistral": ("mistral", "mistral"),
    "mixtral": ("moe", "mixtral"),
    "nanoGPT": ("mingpt", "recipe"),
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

# How a class's name ends -> what the model is for; the first that fits counts.
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
    """The function of FAMILIES[name]."""
    module, function = FAMILIES[name]
    found: Callable[[Source], Recipe] = getattr(import_module(f"fastllm.families.{module}"), function)
    return found


def split(architecture: str, model_type: object = None) -> tuple[str, str]:
    """An architecture's name as (family, task); model_type: what the config says beside it.

    The family is "" where none is known; the task one of TASKS: "other" for one that has no name here (question
    answering, multiple choice), "" where the name says none.
    """
    if architecture in FAMILIES or architecture.startswith("gguf:"):
        return architecture if architecture in FAMILIES else "", ""
    end = next((end for end in _TASKS if architecture.endswith(end)), "")
    stem, _, rest = architecture.removesuffix(end).partition("For")
    task = _TASKS[end] if end else "other" if rest else ""
    if isinstance(model_type, str) and model_type in FAMILIES and not model_type.startswith("gguf:"):
        return model_type, task
    if end == "ForCausalLM" and _plain(f"{stem}Text") in _FAMILIES:  # Gemma3ForCausalLM sees no images
        stem += "Text"
    return _FAMILIES.get(_plain(stem), ""), task


def nearest(name: str) -> list[str]:
    """The families whose names are most like one that is not known."""
    stem = name.partition("For")[0].removesuffix("Model")
    return [_FAMILIES[n] for n in difflib.get_close_matches(_plain(stem), list(_FAMILIES), cutoff=0.6)]


def _plain(name: str) -> str:
    """A family's name however it is spelled: GPTNeoX is gpt_neox, LLaMA is llama."""
    return "".join(c for c in name.lower() if c.isalnum())


_FAMILIES = {_plain(name.removesuffix("_model")): name for name in FAMILIES} | {"antiberty": "bert"}
