"""Models that see or hear besides reading text: their language model, without the vision and audio towers.

The names are those of the transformers library. Multimodal rotations (M-RoPE, Wang et al., 2024,
https://arxiv.org/abs/2409.12191) give images positions on several axes; a text's are the same on all, so that for text
they are the ordinary rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from fastllm.families.architectures import FAMILIES
from fastllm.formats import Checkpoint


class _Class(NamedTuple):
    """What a multimodal class of transformers says of its language model.

    text: its family, where the config does not say. tied: whether its head is the embedding, where the config does not
    say. changes: keys of the language model's config that the class does not heed, and the values it has instead.
    """

    text: str = ""
    tied: bool = False
    changes: Mapping[str, object] = MappingProxyType({})


_NO_SCALE = {"logit_scale": 1.0}
_CLASSES = {  # by the model_type of the whole
    "aya_vision": _Class("cohere2", tied=True, changes=_NO_SCALE),
    "cohere2_vision": _Class("cohere2", tied=True, changes=_NO_SCALE),
    "deepseek_vl": _Class(tied=True),
    "fast_vlm": _Class("qwen2"),
    "gemma3": _Class("gemma3_text", tied=True),
    "got_ocr2": _Class("qwen2", tied=True),
    "idefics2": _Class("mistral"),
    "idefics3": _Class("llama"),
    "internvl": _Class("qwen2", tied=True),
    "janus": _Class("llama", tied=True),
    "lighton_ocr": _Class("qwen3", tied=True),
    "llava": _Class("llama"),
    "llava_next": _Class("llama"),
    "llava_next_video": _Class("llama"),
    "llava_onevision": _Class("qwen2"),
    "mistral3": _Class("mistral", tied=True),
    "ovis2": _Class("qwen2", tied=True),
    # PaliGemma attends in both directions to an image and the prompt beside it only.
    "paligemma": _Class("gemma", tied=True, changes={"use_bidirectional_attention": None}),
    "perception_lm": _Class("llama"),
    "qwen2_5_vl": _Class("qwen2_5_vl_text"),
    "qwen2_vl": _Class("qwen2_vl_text"),
    "qwen3_vl": _Class("qwen3_vl_text"),
    "qwen3_vl_moe": _Class("qwen3_vl_moe_text"),
    "shieldgemma2": _Class("gemma3_text", tied=True),
    "smolvlm": _Class("llama"),
    "video_llava": _Class("llama"),
    "vipllava": _Class("llama"),
}
_SECTIONS = ("text_config", "llm_config", "language_config")  # where the whole's config has the language model's
_SHARED = (  # keys that count for the language model where its own config lacks them
    "generation_config",
    "tokenizer_config",
    "quantization_config",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def language_model(checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint of a multimodal model as its language model's; None where that is of no known family."""
    whole = checkpoint.header
    kind = whole.get("model_type")
    kind = kind if isinstance(kind, str) else ""
    class_ = _CLASSES.get(kind, _Class())
    sections = [value for key in _SECTIONS if isinstance(value := whole.get(key), dict)]
    # The first checkpoints of LLaVA and Qwen2-VL have one flat config for everything.
    text = dict(sections[0] if sections else whole if "hidden_size" in whole else {})
    family = class_.text if text.get("model_type") in (None, kind) else text["model_type"]
    if not isinstance(family, str) or family not in FAMILIES:
        return None
    for key in _SHARED:
        if text.get(key) is None and whole.get(key) is not None:
            text[key] = whole[key]
    text |= class_.changes
    tied = whole.get("tie_word_embeddings")
    if tied is True or (tied is None and class_.tied):
        text["tie_word_embeddings"] = True
    return checkpoint._replace(architecture=family, header=text)
