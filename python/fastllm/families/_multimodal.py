"""Models that see or hear besides reading: their language model, without what does the seeing and hearing.

A text's positions are the same on all axes of a multimodal rotation (M-RoPE), which is then the ordinary one.
"""

from __future__ import annotations

from fastllm.families.architectures import FAMILIES
from fastllm.formats import Checkpoint

# What the language model is where the config does not say, by the model type of the whole, and the types whose head is
# the embedding where the config does not say: defaults of transformers' classes.
_TEXT = {
    "aya_vision": "cohere2",
    "cohere2_vision": "cohere2",
    "fast_vlm": "qwen2",
    "gemma3": "gemma3_text",
    "got_ocr2": "qwen2",
    "idefics2": "mistral",
    "idefics3": "llama",
    "internvl": "qwen2",
    "janus": "llama",
    "lighton_ocr": "qwen3",
    "llava": "llama",
    "llava_next": "llama",
    "llava_next_video": "llama",
    "llava_onevision": "qwen2",
    "mistral3": "mistral",
    "ovis2": "qwen2",
    "paligemma": "gemma",
    "perception_lm": "llama",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "shieldgemma2": "gemma3_text",
    "smolvlm": "llama",
    "video_llava": "llama",
    "vipllava": "llama",
}
_TIED = frozenset(
    (
        "aya_vision",
        "cohere2_vision",
        "deepseek_vl",
        "gemma3",
        "got_ocr2",
        "internvl",
        "janus",
        "lighton_ocr",
        "mistral3",
        "ovis2",
        "paligemma",
        "shieldgemma2",
    )
)
_SECTIONS = ("text_config", "llm_config", "language_config")
_SHARED = (
    "generation_config",
    "tokenizer_config",
    "quantization_config",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def language_model(checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint as its language model's, which has its own config; None where that is of no known family."""
    whole = checkpoint.header
    kind = whole.get("model_type")
    kind = kind if isinstance(kind, str) else ""
    sections = [value for key in _SECTIONS if isinstance(value := whole.get(key), dict)]
    # The first checkpoints of LLaVA and Qwen2-VL have one config for all.
    text = dict(sections[0] if sections else whole if "hidden_size" in whole else {})
    family = _TEXT.get(kind) if text.get("model_type") in (None, kind) else text["model_type"]
    if not isinstance(family, str) or family not in FAMILIES:
        return None
    for key in _SHARED:
        if text.get(key) is None and whole.get(key) is not None:
            text[key] = whole[key]
    if kind in ("aya_vision", "cohere2_vision"):  # whose classes do not scale logits
        text["logit_scale"] = 1.0
    if kind == "paligemma":  # it means the prompt that stands beside an image
        text.pop("use_bidirectional_attention", None)
    tied = whole.get("tie_word_embeddings")
    if tied is True or (tied is None and kind in _TIED):
        text["tie_word_embeddings"] = True
    return checkpoint._replace(architecture=family, header=text)
