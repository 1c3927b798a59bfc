"""A text that a model has written: a str that knows how it came about."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastllm.engine import Logprob


class Text(str):
    """The new text, without its prompt and without what stopped it: a str, with facts about how it was written.

    It behaves, compares, copies and pickles like a str; what is made from it (a slice, a sum) is a plain str.

    tokens: the ids of all tokens drawn, also those of a stop string. finish_reason: "stop" (a token, string, pattern or
    callable ended it), "length" (max_tokens, or the end of the context), "cancelled" (it was closed); None of a text so
    far. prompt_tokens: how many ids the prompt has; cached_tokens: for how many of them keys and values were there
    already. logprobs: where they were asked for, one for each of `tokens`: its id, its natural log probability, and the
    likeliest (id, logprob) in order; prompt_logprobs: the same of the prompt's tokens, None of the first; else None.
    score: of a text that beams have found, the sum of its log probabilities, by its length: what they are ranked by.
    seed: the same prompt, options and seed give the same text again. prompt_seconds, decode_seconds: time spent on the
    prompt, and on the new tokens. proposed_tokens, accepted_tokens: how many tokens were guessed (lookup, draft), and
    how many of them became part of the text.
    """

    tokens: list[int]
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    logprobs: list[Logprob] | None
    prompt_logprobs: list[Logprob | None] | None
    score: float | None
    seed: int
    prompt_seconds: float
    decode_seconds: float
    proposed_tokens: int
    accepted_tokens: int
