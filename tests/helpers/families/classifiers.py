"""Tiny random classifiers of the transformers library."""

import pytest

from helpers import vocabularies
from helpers.reference import build, transformers

tokenizers = pytest.importorskip("tokenizers")
WORDS = 3000  # rows of the embedding: more than word_pieces has
SIZES = {
    "vocab_size": 97,
    "max_position_embeddings": 90,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 57,
    "num_labels": 3,
}
GROUPS = {"num_key_value_heads": 1, "head_dim": 12, "pad_token_id": 0}
EXPERTS = GROUPS | {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
GPT2 = {"n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 90, "pad_token_id": 0}
NEO = {"num_layers": 2, "num_heads": 3, "attention_types": [[["global", "local"], 1]], "pad_token_id": 0}
ESM = {"pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary", "token_dropout": True}
# Model type -> what its config needs besides SIZES.
FAMILIES = {
    "bert": {},
    "camembert": {},
    "esm": ESM,
    "gemma": GROUPS,
    "gemma2": GROUPS,
    "gemma3_text": GROUPS | {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": GPT2,
    "gpt_neo": NEO,
    "gpt_neox": {"pad_token_id": 0, "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4}},
    "helium": GROUPS,
    "llama": GROUPS,
    "mistral": GROUPS,
    "mixtral": EXPERTS,
    "olmo2": GROUPS,
    "phi3": {"num_key_value_heads": 1, "pad_token_id": 0},
    "qwen2": GROUPS,
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 20},
    "qwen3": GROUPS,
    "qwen3_moe": EXPERTS,
    "roberta": {},
    "smollm3": GROUPS,
    "stablelm": GROUPS | {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4}},
    "xlm-roberta": {},
}


def model_of(family, name, **more):
    """A random model of a class. more: of its config, beside SIZES and FAMILIES[family]."""
    kind = getattr(transformers, name).config_class
    values = SIZES | {"tie_word_embeddings": False} | FAMILIES[family] | more
    if family == "gpt2":
        values = {
            key: value for key, value in values.items() if key not in SIZES or key in ("vocab_size", "num_labels")
        }
    return build(name, kind(**values))


def word_pieces(folder):
    """Writes BERT's vocab.txt and returns transformers' tokenizer for it."""
    tokenizer = vocabularies.word_pieces(lower=True)
    words = vocabularies.by_id(tokenizer)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return transformers.BertTokenizer.from_pretrained(folder)


def byte_level(folder, kind, *, vocab_size=500, **more):
    """transformers' byte-level BPE. kind says which tokens it puts around a text: "roberta", "bos", or none."""
    library = vocabularies.byte_level(vocabularies.gpt2_split(), vocab_size=vocab_size)
    if kind == "roberta":
        library.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    if kind == "bos":
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
        )
    named = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=library, **(named | more))
