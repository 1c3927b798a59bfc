"""Tiny random encoders of the transformers library, and what they compute."""

import numpy as np

from helpers import reference
from helpers.reference import torch, transformers

SIZES = {
    "vocab_size": 97,
    "max_position_embeddings": 90,
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 57,
}
MASK = 32
ESM = SIZES | {"pad_token_id": 1, "mask_token_id": MASK}
ESM2 = ESM | {"position_embedding_type": "rotary", "token_dropout": True}
ESM1B = ESM | {"position_embedding_type": "absolute", "emb_layer_norm_before": True}

CASES = {
    "bert": ("BertModel", SIZES),
    "bert, relu": ("BertModel", SIZES | {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "bert, masked tokens": ("BertForMaskedLM", SIZES),
    "bert, untied": ("BertForMaskedLM", SIZES | {"tie_word_embeddings": False}),
    "bert, pretraining": ("BertForPreTraining", SIZES),
    "roberta": ("RobertaModel", SIZES),
    "roberta, masked tokens": ("RobertaForMaskedLM", SIZES),
    "xlm-roberta, masked tokens": ("XLMRobertaForMaskedLM", SIZES),
    "camembert": ("CamembertModel", SIZES),
    "esm-2": ("EsmModel", ESM2),
    "esm-2, masked tokens": ("EsmForMaskedLM", ESM2),
    "esm-1b": ("EsmModel", ESM1B),
    "esm-1b, masked tokens": ("EsmForMaskedLM", ESM1B),
    "esm, untied": ("EsmForMaskedLM", ESM2 | {"tie_word_embeddings": False, "token_dropout": False}),
    "clip text": ("CLIPTextModel", SIZES),
    "clip text, gelu": ("CLIPTextModel", SIZES | {"hidden_act": "gelu"}),
    "clip text, projected": ("CLIPTextModelWithProjection", SIZES),
    "clip": ("CLIPModel", SIZES),
}


def built(case):
    architecture, values = CASES[case]
    kind = getattr(transformers, architecture).config_class
    if architecture == "CLIPModel":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        values = {"text_config": values, "vision_config": vision | {"image_size": 8, "patch_size": 4}}
    model = reference.build(architecture, kind(**values))
    return model, model.text_model if architecture == "CLIPModel" else model


def text(length, *, seed=0):
    """Random ids without special tokens, except for mask tokens at positions 3 and 7."""
    ids = np.random.default_rng(seed).integers(MASK + 1, 97, length)
    ids[3:8:4] = MASK
    return ids.tolist()


def run(model, ids, mask=None):
    """What transformers computes: hidden states (the last is after the final norm), attention maps, logits or None."""
    with torch.no_grad():
        out = model(
            torch.tensor(ids),
            attention_mask=None if mask is None else torch.tensor(mask),
            output_hidden_states=True,
            output_attentions=True,
        )
    hidden = [h.numpy() for h in out.hidden_states]
    if hasattr(out, "last_hidden_state"):
        hidden[-1] = out.last_hidden_state.numpy()
    logits = getattr(out, "logits", getattr(out, "prediction_logits", None))
    return hidden, [a.numpy() for a in out.attentions], None if logits is None else logits.numpy()
