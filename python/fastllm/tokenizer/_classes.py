"""Which of transformers' tokenizer classes a vocabulary is for, and the special tokens that such a class brings.

A vocab.json or a SentencePiece model does not say how a text is split, nor what is put around it: that is in the class
that tokenizer_config.json names, or that belongs to config.json's model type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastllm.errors import TokenizerError
from fastllm.tokenizer._library import library
from fastllm.tokenizer._settings import ROLES, Settings, load_json
from fastllm.tokenizer.base import CLASS_FILE, Files

# Class -> the model types that it belongs to (transformers, models/auto/tokenization_auto.py).
_MODEL_TYPES = {
    "AlbertTokenizer": "albert fnet yoso",
    "BertTokenizer": "align bert blip bros chinese_clip convbert distilbert electra ernie flava git layoutlm "
    "megatron-bert mobilebert nezha nomic_bert qdqbert realm retribert squeezebert tvp vilt visual_bert",
    "BigBirdTokenizer": "big_bird",
    "BlenderbotTokenizer": "blenderbot",
    "CLIPTokenizer": "aimv2 clip clip_text_model clipseg groupvit omdet-turbo oneformer owlv2 owlvit sam3 xclip",
    "CamembertTokenizer": "camembert",
    "CohereTokenizer": "aya_vision cohere cohere2",
    "DebertaTokenizer": "deberta",
    "DebertaV2Tokenizer": "deberta-v2",
    "EsmTokenizer": "esm",
    "FunnelTokenizer": "funnel",
    "GPT2Tokenizer": "blip-2 codegen dbrx gpt2 gpt_neo gptj jais2 opt phi starcoder2",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "MPNetTokenizer": "mpnet",
    "MBartTokenizer": "mbart",
    "MarianTokenizer": "marian",
    "M2M100Tokenizer": "m2m_100",
    "NllbTokenizer": "nllb nllb-moe",
    "PLBartTokenizer": "plbart",
    "PegasusTokenizer": "bigbird_pegasus pegasus pegasus_x",
    "Qwen2Tokenizer": "qwen2 qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_next "
    "qwen3_omni_moe qwen3_vl qwen3_vl_moe",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text",
    "ReformerTokenizer": "reformer",
    "RemBertTokenizer": "rembert",
    "RoCBertTokenizer": "roc_bert",
    "RoFormerTokenizer": "roformer",
    "RobertaTokenizer": "bart data2vec-text ibert led lilt longformer mega mra mvp roberta roberta-prelayernorm",
    "SiglipTokenizer": "siglip",
    "SplinterTokenizer": "splinter",
    "T5Tokenizer": "longt5 mt5 switch_transformers t5",
    "WhisperTokenizer": "whisper",
    "XGLMTokenizer": "xglm",
    "XLMRobertaTokenizer": "gte jina_embeddings_v3 metaclip_2 trocr xlm-roberta xlm-roberta-xl xmod",
    "XLNetTokenizer": "xlnet",
}
_REGISTERED = {kind: name for name, kinds in _MODEL_TYPES.items() for kind in kinds.split()}
# Classes that are others under a second name.
_SAME = {
    "BartTokenizer": "RobertaTokenizer",
    "CodeGenTokenizer": "GPT2Tokenizer",
    "ConvBertTokenizer": "BertTokenizer",
    "DPRContextEncoderTokenizer": "BertTokenizer",
    "DPRQuestionEncoderTokenizer": "BertTokenizer",
    "DistilBertTokenizer": "BertTokenizer",
    "ElectraTokenizer": "BertTokenizer",
    "FNetTokenizer": "AlbertTokenizer",
    "LEDTokenizer": "RobertaTokenizer",
    "LayoutLMTokenizer": "BertTokenizer",
    "LongformerTokenizer": "RobertaTokenizer",
    "MT5Tokenizer": "T5Tokenizer",
    "MobileBertTokenizer": "BertTokenizer",
    "MvpTokenizer": "RobertaTokenizer",
}
# Model types whose published tokenizer_config.json often names a wrong class: the type decides.
_TYPE_DECIDES = {"qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"}


def class_of(files: Files) -> str:
    """The class, without "Fast": tokenizer_config.json's or config.json's "tokenizer_class", else that of the model
    type, else the unknown model type itself. Empty where the files say nothing."""
    if CLASS_FILE in files:
        return files[CLASS_FILE].decode("utf-8", "replace")
    config = mapping_of(files, "config.json")
    kind = config.get("model_type")
    kind = kind if isinstance(kind, str) else ""
    registered = _REGISTERED.get(kind)
    if registered is not None and kind in _TYPE_DECIDES:
        return registered
    named = mapping_of(files, "tokenizer_config.json").get("tokenizer_class") or config.get("tokenizer_class")
    if not isinstance(named, str):
        return registered or kind
    named = named.removesuffix("Fast")
    return _SAME.get(named, named)


def mapping_of(files: Files, name: str) -> Mapping[str, Any]:
    """A JSON file's object, empty where the file is missing. Raises TokenizerError."""
    value = load_json(files[name], name) if name in files else {}
    if not isinstance(value, dict):
        raise TokenizerError(f"{name} is no JSON object")
    return value


# ---- special tokens --------------------------------------------------------------------------------------------------

Added = dict[str, Any]  # an AddedToken's arguments


def special(content: str, *, lstrip: bool = False) -> Added:
    """A special token. lstrip: whether it takes the spaces before it."""
    return {"content": content, "special": True, "normalized": False, "lstrip": lstrip}


def by_role(**tokens: str | Added) -> dict[str, Added]:
    """Special tokens by their role: "mask_token" for mask=..."""
    return {f"{role}_token": special(token) if isinstance(token, str) else token for role, token in tokens.items()}


def roles_of(files: Files, defaults: Mapping[str, Added]) -> dict[str, Added]:
    """The special tokens by their role, such as "mask_token": what the files say, else the class's own. A role that
    the files set to null has none."""
    config, named = mapping_of(files, "tokenizer_config.json"), mapping_of(files, "special_tokens_map.json")
    if "added_tokens_decoder" in config:  # then the map is not read
        named = {}
    roles: dict[str, Added] = {}
    for role in ROLES:
        value = named.get(role, config.get(role, defaults.get(role)))
        if isinstance(value, str) and value:
            roles[role] = special(value)
        elif isinstance(value, Mapping):
            content = value.get("content")
            if not isinstance(content, str) or not content:
                raise TokenizerError(f"its {role} has no text")
            flags = ("lstrip", "rstrip", "single_word", "normalized")
            kept = {flag: value[flag] for flag in flags if isinstance(value.get(flag), bool)}
            kept.setdefault("normalized", role not in named)
            roles[role] = {"content": content, "special": True, **kept}
        elif value is not None:
            raise TokenizerError(f"its {role} is no token")
    return roles


def add_specials(
    tokenizer: Any,
    files: Files,
    settings: Settings,
    defaults: Mapping[str, Added],
    extras: Iterable[Added] = (),
) -> None:
    """Adds the special tokens of a class to a tokenizers.Tokenizer, behind its vocabulary where that has them not.

    defaults: by role. extras: other tokens, whose flags count where one has a role too. What tokenizer_config.json or
    added_tokens.json list by id is added later, with the ids that they say.
    """
    hf, roles = library("its vocabulary"), roles_of(files, defaults)
    settings.roles = {role: token["content"] for role, token in roles.items()}
    listed = mapping_of(files, "tokenizer_config.json").get("added_tokens_decoder")
    later = set(mapping_of(files, "added_tokens.json"))
    for token in listed.values() if isinstance(listed, Mapping) else ():
        text = token.get("content") if isinstance(token, Mapping) else token
        later.update([text] if isinstance(text, str) else [])
    tokens = {token["content"]: token for token in (*roles.values(), *extras) if token["content"] not in later}
    tokenizer.add_tokens([hf.AddedToken(**token) for token in tokens.values()])


def around(tokenizer: Any, before: list[str], after: list[str], *, doubled: bool = False) -> Any:
    """A post-processor that puts tokens around a text. Raises TokenizerError where the vocabulary has them not.

    Of two texts the first ends as it would alone, and the second has a token type of its own, as BERT has it; doubled:
    it ends twice, and types are all one, as RoBERTa has it.
    """
    ids = {token: tokenizer.token_to_id(token) for token in (*before, *after)}
    if missing := [token for token, i in ids.items() if i is None]:
        raise TokenizerError(f"it has no token {missing[0]}")
    first = [*before, "$A", *after]
    second = [*after, "$B", *after] if doubled else [f"{token}:1" for token in ("$B", *after)]
    return library("its vocabulary").processors.TemplateProcessing(
        single=first, pair=[*first, *second], special_tokens=list(ids.items())
    )
