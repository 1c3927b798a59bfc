"""Which of transformers' tokenizer classes a vocabulary is for.

A vocab.json or a SentencePiece model does not say how a text is split, or which tokens are put around it. That is in
the class, which tokenizer_config.json names or which follows from config.json's model type. Here are only the names;
what each class does is in the files of the kinds.
"""

from __future__ import annotations

from fastllm.tokenizer._parsing import json_object
from fastllm.tokenizer._settings import BERT, CODE_LLAMA, LLAMA
from fastllm.tokenizer.base import CLASS_FILE, Files

# Class -> the model types (config.json's "model_type") that use it: TOKENIZER_MAPPING_NAMES in transformers,
# models/auto/tokenization_auto.py.
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
_REGISTERED = {model_type: name for name, types in _MODEL_TYPES.items() for model_type in types.split()}
# Classes that are only another name of a class.
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
# For these model types the published tokenizer_config.json often names a wrong class, so that the type decides.
_TYPE_DECIDES = {"qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"}


def class_of(files: Files) -> str:
    """The name of the class, without "Fast".

    It is "tokenizer_class" in tokenizer_config.json or config.json, else the class of the model type, else the model
    type itself where that is not known here. Empty where the files say nothing.
    """
    if CLASS_FILE in files:
        return files[CLASS_FILE].decode("utf-8", "replace")
    config = json_object(files, "config.json")
    model_type = config.get("model_type")
    model_type = model_type if isinstance(model_type, str) else ""
    registered = _REGISTERED.get(model_type)
    if registered is not None and model_type in _TYPE_DECIDES:
        return registered
    named = json_object(files, "tokenizer_config.json").get("tokenizer_class") or config.get("tokenizer_class")
    if not isinstance(named, str):
        return registered or model_type
    named = named.removesuffix("Fast")
    return _SAME.get(named, named)


# ---- classes with rules of their own ---------------------------------------------------------------------------------

# For these model types transformers ignores the class that a checkpoint names and takes all rules from its files
# (models/auto/tokenization_auto.py: types that are mapped to TokenizersBackend or MistralCommonBackend).
_CLASSLESS = (
    "EvollaModel arctic aria beam bigbird_pegasus camembertv2-base canary chatlm cohere_asr ernie4_5 ernie4_5_moe "
    "flex_olmo fuyu glm glm4 glm4_moe glm4_moe_lite glm4v glm4v_moe glm_image glmasr got_ocr2 gpt_bigcode granite "
    "granitemoe granitemoehybrid granitemoeshared h2ovl_chat hyperclovax hyperclovax_vlm internlm2 internlm3 "
    "iquestcoder jamba kimi_k25 kimi_linear kosmos-2 llava llava_next mimo_v2_flash minicpm3 minicpmv minimax_m2 "
    "ministral ministral3 mistral mistral3 mistral_large4 mixtral modernbert modernbert-decoder molmo molmo2 nemotron "
    "nvfp4 nystromformer olmo2 olmo3 olmo_hybrid opencua openvla paddleocr_vl pegasus_x persimmon phi3 phi3_v phimoe "
    "pix2struct pixtral smolvlm stablelm step3_vl umt5 vipllava voxtral xlm-roberta-xl"
)
# For these it ignores the named class too, in favour of a class of their own.
_OWN_CLASS = "qwen2 qwen3_5 qwen3_5_moe qwen3_5_moe_text siglip2"


def llama_class(files: Files) -> str:
    """LlamaTokenizer or CodeLlamaTokenizer where transformers would use that class for these files; else empty."""
    config = json_object(files, "config.json")
    named = json_object(files, "tokenizer_config.json").get("tokenizer_class") or config.get("tokenizer_class")
    named = named.removesuffix("Fast") if isinstance(named, str) else ""
    other = config.get("model_type") in [*_CLASSLESS.split(), *_OWN_CLASS.split()]
    return named if named in (LLAMA, CODE_LLAMA) and not other else ""


def overriding_class(files: Files) -> str:
    """The class for which a tokenizer.json is, where transformers applies the class's rules in place of the file's:
    Llama's for spaces, BERT's for case and accents. Else empty."""
    return llama_class(files) or (BERT if class_of(files) == BERT else "")
