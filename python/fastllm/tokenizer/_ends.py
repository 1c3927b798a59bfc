"""Tokens that are known to end a turn or a text, whatever a model's files say: files often name one of several."""

from __future__ import annotations

from fastllm.tokenizer.base import Tokenizer

# What families end a turn or a text with, as llama.cpp knows it (src/llama-vocab.cpp): files often name one of several.
END_TOKENS: tuple[str, ...] = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>")
END_TOKENS += ("<|eom_id|>", "<|end|>", "<end_of_turn>", "<|END_OF_TURN_TOKEN|>", "<|return|>", "<|call|>", "<EOT>")
END_TOKENS += ("_<EOT>", "\u2581<EOT>", "<|EOT|>")
END_TOKENS += ("[EOT]", "[EOS]", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
# Code models write these where a file, or what fills a gap in one, is over.
END_TOKENS += ("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<|fim_repo|>", "<|repo_name|>", "<reponame>", "<|file_sep|>")


def known_ends(tokenizer: Tokenizer) -> list[int]:
    """The tokens of a vocabulary that end a text in the family that they come from. Files call some of them special,
    such as <|im_end|>, and others not, such as Qwen's <|fim_pad|>."""
    tokens = {*tokenizer.special, *(set(tokenizer.added) - {"</s>"})}  # added it is HTML's, as Gemma has it
    if {"<|return|>", "<|call|>"} <= tokens:
        tokens.discard("<|end|>")  # gpt-oss writes it between its thoughts and its answer
    return [i for text in END_TOKENS if text in tokens and (i := tokenizer.token_id(text)) is not None]
