"""The names that checkpoints give themselves: every class of transformers leads to its family and its task."""

import pytest

from fastllm.families.architectures import FAMILIES, TASKS, nearest, split

transformers = pytest.importorskip("transformers")


def classes():
    """(class, model type, task) for each class that transformers has for our families."""
    from transformers.models.auto import modeling_auto as auto

    kinds = {
        "base": auto.MODEL_MAPPING_NAMES,
        "causal lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked lm": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "sequence classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "token classification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "other": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    }
    for task, names in kinds.items():
        for family in FAMILIES:
            if isinstance(names.get(family), str):
                yield names[family], family, task


@pytest.mark.parametrize(("name", "family", "task"), list(classes()))
def test_a_class_is_its_family_and_task(name, family, task):
    assert split(name, family) == (family, task)
    assert task in TASKS
    assert split(name) == (family, task)


@pytest.mark.parametrize(
    ("name", "model_type", "expected"),
    [
        ("LLaMAForCausalLM", None, ("llama", "causal lm")),
        ("MyLlamaForCausalLM", "llama", ("llama", "causal lm")),
        ("MistralForCausalLM", "llama", ("llama", "causal lm")),  # the model type decides, as in transformers
        ("AntiBERTy", "bert", ("bert", "")),
        ("AntiBERTy", None, ("bert", "")),
        ("AMPLIFY", "AMPLIFY", ("AMPLIFY", "")),
        ("llama", "llama", ("llama", "")),
        ("gguf:llama", None, ("gguf:llama", "")),
        ("gguf:Llama", None, ("", "")),  # llama.cpp takes lower case only
        ("LlamaForCausalLM", "gguf:llama", ("llama", "causal lm")),
        ("CLIPTextModelWithProjection", "clip_text_model", ("clip_text_model", "base")),
        ("Gemma3ForConditionalGeneration", "gemma3", ("", "causal lm")),  # the family follows from its text_config
        ("Gemma3nForConditionalGeneration", "gemma3n", ("", "causal lm")),
        ("Phi3SmallForCausalLM", "phi3small", ("", "causal lm")),
        ("", "llama", ("llama", "")),
        ("", None, ("", "")),
        ("", ["llama"], ("", "")),
    ],
)
def test_names_that_are_not_the_library_s(name, model_type, expected):
    assert split(name, model_type) == expected


def test_names_like_one_that_is_not_known():
    assert nearest("Qwen33ForCausalLM")[0] == "qwen3"
    assert nearest("Entirely-Different") == []
