"""Tiny random decoders of the transformers library."""

from helpers import reference
from helpers.reference import transformers

SIZES = {
    "vocab_size": 131,
    "hidden_size": 40,
    "intermediate_size": 57,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2}
# Of a Gemma that sees images, the part that fastllm leaves out.
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def architecture(family):
    return f"{family.removesuffix('Text')}ForCausalLM"


def build(family, seed=0, **values):
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **values})
    return reference.build(architecture(family), config, seed=seed)


MODULES = ("llama", "qwen", "moe", "gemma", "phi", "olmo", "cohere", "stablelm")
