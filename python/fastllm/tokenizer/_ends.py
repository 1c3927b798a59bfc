"""Tokens that are known to end a turn or a text, whatever a model's files say: files often name one of several."""

from __future__ import annotations

from fastllm.tokenizer.base import Tokenizer

# As in llama.cpp (src/llama-vocab.cpp, where it collects special_eog_ids).
END_TOKENS: tuple[str, ...] = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>")
END_TOKENS += ("<|eom_id|>", "<|end|>", "<end_of_turn>", "<|END_OF_TURN_TOKEN|>", "<|return|>", "<|call|>", "<EOT>")
END_TOKENS += ("_<EOT>", "\u2581<EOT>", "<|EOT|>")
END_TOKENS += ("[EOT]", "[EOS]", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
# Code models write these at the end of a file, or of the part that they fill in (FIM, fill in the middle).
END_TOKENS += ("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<|fim_repo|>", "<|repo_name|>", "<reponame>", "<|file_sep|>")


def known_ends(tokenizer: Tokenizer) -> list[int]:
    """The ids of a vocabulary's END_TOKENS. Files mark some of them as special, such as <|im_end|>, and others only as
    added, such as Qwen's <|fim_pad|>."""
    # Where "</s>" is added but not special, it is the end tag of HTML's <s>, as in Gemma's vocabulary.
    tokens = {*tokenizer.special, *(set(tokenizer.added) - {"</s>"})}
    if {"<|return|>", "<|call|>"} <= tokens:
        tokens.discard("<|end|>")  # gpt-oss writes it between its reasoning and its answer
    return [i for text in END_TOKENS if text in tokens and (i := tokenizer.token_id(text)) is not None]
