"""Models of images and text: their language model computes what transformers computes."""

import json

import numpy as np
import pytest

import fastllm
from helpers import reference
from helpers.calls import failure
from helpers.families import decoders, folders
from helpers.reference import torch, transformers

TEXT = decoders.SIZES | {"hidden_size": 64, "num_hidden_layers": 2}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0, "mrope_section": [2, 3, 3]}}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 16}


def seeing():
    t = transformers
    clip, siglip = t.CLIPVisionConfig(**decoders.VISION), t.SiglipVisionConfig(**decoders.VISION)
    pixtral = t.PixtralVisionConfig(**decoders.VISION)
    llama, qwen2 = t.LlamaConfig(**TEXT), t.Qwen2Config(**TEXT)
    mistral = t.MistralConfig(**TEXT, head_dim=20, sliding_window=None)
    gemma = t.Gemma3TextConfig(**TEXT, head_dim=16, sliding_window=20)
    return {
        "Llava": t.LlavaConfig(text_config=llama, vision_config=clip),
        "LlavaNext": t.LlavaNextConfig(text_config=mistral, vision_config=clip),
        "LlavaOnevision": t.LlavaOnevisionConfig(text_config=qwen2, vision_config=siglip),
        "Mistral3": t.Mistral3Config(text_config=mistral, vision_config=pixtral, tie_word_embeddings=False),
        "Idefics3": t.Idefics3Config(text_config=llama, vision_config=dict(decoders.VISION), scale_factor=1),
        "SmolVLM": t.SmolVLMConfig(text_config=llama, vision_config=dict(decoders.VISION), scale_factor=1),
        "Qwen2VL": t.Qwen2VLConfig(
            text_config=TEXT | MROPE, vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 64}
        ),
        "Qwen2_5_VL": t.Qwen2_5_VLConfig(text_config=TEXT | MROPE, vision_config=QWEN_VISION),
        "Qwen3VL": t.Qwen3VLConfig(
            text_config=TEXT | MROPE | {"head_dim": 16}, vision_config=QWEN_VISION | {"deepstack_visual_indexes": [0]}
        ),
        "Qwen3VLMoe": t.Qwen3VLMoeConfig(
            text_config=TEXT | MROPE | decoders.EXPERTS | {"head_dim": 16, "moe_intermediate_size": 21},
            vision_config=QWEN_VISION | {"deepstack_visual_indexes": [0]},
        ),
        "PaliGemma": t.PaliGemmaConfig(
            text_config=t.GemmaConfig(**TEXT, head_dim=16),
            vision_config=t.SiglipVisionConfig(**decoders.VISION, projection_dim=64),
            projection_dim=64,
        ),
        "Gemma3": t.Gemma3Config(text_config=gemma, vision_config=siglip),
        "AyaVision": t.AyaVisionConfig(
            text_config=t.Cohere2Config(**TEXT, head_dim=16, logit_scale=0.0625), vision_config=siglip
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "Llava",
        "LlavaNext",
        "LlavaOnevision",
        "Mistral3",
        "Idefics3",
        "SmolVLM",
        "Qwen2VL",
        "Qwen2_5_VL",
        "Qwen3VL",
        "Qwen3VLMoe",
        "PaliGemma",
        "Gemma3",
        "AyaVision",
    ],
)
def test_a_model_that_sees_runs_as_its_language_model(name, tmp_path):
    model = reference.build(f"{name}ForConditionalGeneration", seeing()[name])
    model.save_pretrained(tmp_path)
    with pytest.warns(fastllm.CheckpointWarning, match=r"the vision tower \(\d+ tensors\) is left out$") as said:
        llm = folders.load(tmp_path)
    assert len(said) == 1
    ids = reference.tokens(131, 90)
    folders.same(llm.logits(ids), reference.logits(model, ids))
    # Also the base class's files, and files with the names that tensors have in memory.
    model.model.save_pretrained(tmp_path / "base")
    with pytest.warns(fastllm.CheckpointWarning):
        base = folders.load(tmp_path / "base")
    folders.same(base.hidden_states(ids), folders.last_hidden(model.model, ids))
    folders.rewrite(tmp_path, lambda _: model.state_dict())
    with pytest.warns(fastllm.CheckpointWarning):
        assert np.array_equal(folders.load(tmp_path).logits(ids), llm.logits(ids))


def edit(folder, change):
    """Replaces a folder's config by change(config)."""
    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def said(folder):
    """Loads a folder. Asserts a warning that the vision tower is not used, and no other."""
    with pytest.warns(fastllm.CheckpointWarning, match=r"the vision tower \(\d+ tensors?\) is left out$") as warned:
        llm = folders.load(folder)
    assert len(warned) == 1
    return llm


def test_one_config_for_all_of_a_model(tmp_path):
    """The first checkpoints of Qwen2-VL: one flat config for text and vision, and older names of tensors."""
    model = reference.build("Qwen2VLForConditionalGeneration", seeing()["Qwen2VL"])
    model.save_pretrained(tmp_path)

    def flat(config):
        text = config.pop("text_config")
        rope = {"rope_theta": text.pop("rope_parameters")["rope_theta"]}
        rope["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
        return {**text, **config, **rope, "model_type": "qwen2_vl"}

    edit(tmp_path, flat)
    changes = (("model.language_model.", "model."), ("model.visual.", "visual."))
    for old, new in changes:
        folders.rewrite(
            tmp_path, lambda tensors, old=old, new=new: {n.replace(old, new): t for n, t in tensors.items()}
        )
    ids = reference.tokens(131, 60)
    folders.same(
        said(tmp_path).logits(ids), reference.logits(folders.theirs(tmp_path, "AutoModelForImageTextToText"), ids)
    )


def test_a_text_config_that_says_little(tmp_path):
    """In a text_config null means no window, and a missing key means Mistral's default."""
    reference.build("LlavaNextForConditionalGeneration", seeing()["LlavaNext"]).save_pretrained(tmp_path)
    kept = {*TEXT, "model_type", "sliding_window", "head_dim"} - {"max_position_embeddings", "bos_token_id"}
    edit(
        tmp_path, lambda config: config | {"text_config": {k: v for k, v in config["text_config"].items() if k in kept}}
    )
    ids = reference.tokens(131, 60)
    llm = said(tmp_path)
    assert llm.config.max_seq == 131072
    folders.same(llm.logits(ids), reference.logits(folders.theirs(tmp_path, "AutoModelForImageTextToText"), ids))


def test_a_language_model_inside_a_class_of_its_author(tmp_path):
    model = folders.built("qwen2")
    model.save_pretrained(tmp_path)
    tower = {"vision_model.embeddings.class_embedding": torch.zeros(1, 4)}
    folders.rewrite(tmp_path, lambda tensors: {f"language_model.{n}": t for n, t in tensors.items()} | tower)
    edit(tmp_path, lambda c: {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "llm_config": c})
    folders.same(said(tmp_path).logits(folders.IDS), reference.logits(model, folders.IDS))


@pytest.mark.parametrize(
    "config",
    [
        {"text_config": [1]},
        {"text_config": {}},
        {"text_config": {"model_type": ["llama"]}},
        {"text_config": {"model_type": "gguf:llama"}},
        {"model_type": "llava"},
        {"model_type": "llava", "text_config": {"model_type": "llava"}},
        {"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"}},
        {"model_type": {}, "text_config": None},
    ],
)
def test_a_config_without_a_language_model_that_is_known(config, tmp_path):
    folders.built("llama").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    error = failure(lambda: folders.load(tmp_path))
    assert isinstance(error, fastllm.CheckpointError)
    assert str(tmp_path) in str(error)
