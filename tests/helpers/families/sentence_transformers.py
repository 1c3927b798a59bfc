"""Tiny random models, saved by the sentence-transformers library."""

import json
import shutil

import numpy as np
import pytest

import fastllm
from fastllm.weights.convert import convert
from helpers import vocabularies
from helpers.reference import build, torch, transformers

st = pytest.importorskip("sentence_transformers")

import tokenizers  # noqa: E402
from sentence_transformers.sentence_transformer import modules  # noqa: E402
from tokenizers import models, pre_tokenizers, processors  # noqa: E402

TEXTS = ["the ocean", "Once upon a time THERE was", "a", "été naïve world dog. 12 3456 x = y + 1;", "then then then"]
LONG = " ".join(["ocean time world"] * 30)
PROMPTS = {"query": "query: the ", "document": ""}


def around(tokenizer, before, after):
    """transformers' class of a tokenizer that puts these tokens before and after each text."""
    ids = [(token, tokenizer.token_to_id(token)) for token in (*before, *after)]
    tokenizer.post_processor = processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=ids)
    pad, end = tokenizer.id_to_token(0), after[-1]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=end)


def unigram():
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=2000, special_tokens=names, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(vocabularies.WORDS)] * 5, trainer)
    return tokenizer


SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
DECODER = {**SIZES, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 128, "initializer_range": 0.2}


def bert():
    words = around(vocabularies.word_pieces(lower=False), ["[CLS]"], ["[SEP]"])
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=80, **SIZES)
    return build("BertModel", config), words


def xlmr():
    words = around(unigram(), ["<s>"], ["</s>"])
    config = transformers.XLMRobertaConfig(
        vocab_size=len(words), max_position_embeddings=82, type_vocab_size=1, pad_token_id=1, **SIZES
    )
    return build("XLMRobertaModel", config), words


def qwen3():
    words = around(vocabularies.byte_level(vocabularies.gpt2_split(), vocab_size=500), [], ["<|endoftext|>"])
    return build("Qwen3ForCausalLM", transformers.Qwen3Config(vocab_size=len(words), **DECODER)), words


def gemma3():
    words = around(vocabularies.byte_level(vocabularies.gpt2_split(), vocab_size=500), ["<s>"], ["</s>"])
    config = transformers.Gemma3TextConfig(
        vocab_size=len(words),
        use_bidirectional_attention=True,
        sliding_window=7,
        sliding_window_pattern=2,
        query_pre_attn_scalar=12,
        **DECODER,
    )
    return build("Gemma3ForCausalLM", config), words


MODELS = {"bert": bert, "xlmr": xlmr, "qwen3": qwen3, "gemma3": gemma3}


def save(trunk, folder, *after, prompts=None, default=None, length=None, **more):
    """Saves a SentenceTransformer of the model in `trunk` and the modules `after` it, and returns it as read again."""
    torch.manual_seed(1)
    after = [module() if callable(module) and not isinstance(module, torch.nn.Module) else module for module in after]
    model = st.SentenceTransformer(
        modules=[modules.Transformer(str(trunk)), *after], prompts=prompts, default_prompt_name=default, **more
    )
    if length is not None:
        model.max_seq_length = length
    model.save(str(folder), create_model_card=False)
    for name in ("config.json", "model.safetensors"):  # only the base model was saved
        shutil.copy(trunk / name, folder / name)
    return st.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def check(model, folder, texts=TEXTS, options=None, **ours):
    """Asserts that fastllm gives the model's vectors, from its folder and from files converted from it.

    options: for the model's encode(). ours: for LLM.embed(). Returns the LLM of the folder.
    """
    expected = model.encode(texts, **(options or {}))
    llm = fastllm.load(folder, dtype="f32", threads=1)
    found = llm.embed(texts, **ours)
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (len(texts), llm.embed([]).shape[1])
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, expected.std()))
    convert(folder, folder.parent / "converted.safetensors")
    again = fastllm.load(folder.parent / "converted.safetensors", threads=1)
    assert again.embedding == llm.embedding
    assert (again.embed(texts, **ours) == found).all()
    convert(folder.parent / "converted.safetensors", folder.parent / "twice.safetensors")
    assert (fastllm.load(folder.parent / "twice.safetensors", threads=1).embed(texts, **ours) == found).all()
    return llm


def edit(path, **changes):
    """Changes values of a JSON file; None removes the key."""
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (values | changes).items() if v is not None}))


def listed(*types, paths=None):
    """The text of a modules.json that lists modules of these types, in folders paths."""
    paths = paths or ["", *(f"{i}_Module" for i in range(1, len(types)))]
    entries = [
        {"idx": i, "name": str(i), "path": p, "type": t} for i, (t, p) in enumerate(zip(types, paths, strict=True))
    ]
    return json.dumps(entries)
