"""The options by which the next token is drawn, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastllm import _core
from fastllm.decoding import _checks as checks
from fastllm.decoding.watermark import Watermark
from fastllm.errors import CheckpointError, OptionError


class _Fields(NamedTuple):
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = {}
    penalty_window: int = 0
    no_repeat_ngram_size: int = 0
    bad_words: tuple[str | tuple[int, ...], ...] = ()
    sequence_bias: Mapping[str | tuple[int, ...], float] = {}
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_eos_token_id: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str | tuple[int, ...], ...] = ("\n", ":", '"', "*")
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_n_sigma: float = 0.0
    top_h: float = 0.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat_tau: float = 0.0
    mirostat_eta: float = 0.1
    sampler_order: tuple[str, ...] = ()
    watermark: Watermark | None = None


# The least and the largest value of each number.
_RANGES = {
    "temperature": (0, 1e4),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repetition_penalty": (1e-4, 1e4),
    "presence_penalty": (-1e4, 1e4),
    "frequency_penalty": (-1e4, 1e4),
    "dry_multiplier": (0, 1e4),
    "dry_base": (1, 1e4),
    "dynatemp_range": (0, 1e4),
    "dynatemp_exponent": (0, 1e4),
    "top_n_sigma": (-1, 1e4),
    "top_h": (0, 1),
    "epsilon_cutoff": (0, 1),
    "eta_cutoff": (0, 1),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "mirostat_tau": (0, 1e4),
    "mirostat_eta": (0, 1),
}
# The least value of each whole number.
_WHOLES = {"penalty_window": 0, "no_repeat_ngram_size": 0, "dry_allowed_length": 1, "dry_penalty_last_n": -1}
# What each filter is off by.
_OFF: dict[str, tuple[str, float]] = {
    "temperature": ("temperature", 1.0),
    "top_n_sigma": ("top_n_sigma", 0.0),
    "top_h": ("top_h", 0.0),
    "top_k": ("top_k", 0),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
    "typical_p": ("typical_p", 1.0),
    "epsilon_cutoff": ("epsilon_cutoff", 0.0),
    "eta_cutoff": ("eta_cutoff", 0.0),
    "xtc": ("xtc_probability", 0.0),
    "mirostat": ("mirostat_tau", 0.0),
}
_NOTHING = 1e-37  # a float32 below it may be 0


class Sampling(_Fields):
    """The options of a draw.

    First logits change, in this order, which is that of the transformers library where it has the option:

    - logit_bias: token id -> number added to its logit, -inf to forbid it; ids may be strings of digits, as in JSON.
      sequence_bias: the same of phrases, that is, texts or tuples of ids: a phrase's bias is added to the logit of its
      last token where the text so far ends with the tokens before it. bad_words: phrases that are forbidden so.
      suppress_tokens: ids that are forbidden. A phrase that is a text is meant after a space and without one.
    - repetition_penalty: of tokens in the prompt or the text, positive logits are divided by it and negative ones
      multiplied; 1 is none (Keskar et al., 2019). presence_penalty, frequency_penalty: subtracted from the logit of a
      token in the new text, once, or as often as it occurs there. penalty_window: these three look at so many last
      tokens of prompt and text; 0: at all.
    - dry_multiplier: a token that would go on with what followed the last m tokens before loses dry_multiplier *
      dry_base^(m - dry_allowed_length), where m is dry_allowed_length or more; 0 is none. dry_penalty_last_n: it looks
      at so many last tokens; 0: at none, -1: at all. dry_sequence_breakers: phrases that end a repetition (p-e-w, 2024;
      as in llama.cpp).
    - no_repeat_ngram_size: so many tokens in a row never occur twice in prompt and text; 0 is off (Paulus et al.,
      2017).
    - begin_suppress_tokens: ids that are forbidden as the first of the text. forced_eos_token_id: the id, or ids, of
      which one is the last of max_tokens tokens. exponential_decay_length_penalty: (start, factor): in the i-th draw
      after `start` tokens the logits of those that end the text rise by |logit| * (factor^i - 1).

    Then filters leave some tokens, in this order, or in that of sampler_order, a list of their names, as llama.cpp has
    it; what is left out of the list is off. "penalties", "dry" and "typ_p" are understood there.

    - temperature: logits are divided by it; 0 (below 1e-6) takes the most likely token, whatever the filters say.
      dynatemp_range: the temperature is between temperature - range and temperature + range, by the entropy's share of
      the largest possible one to the power of dynatemp_exponent; 0 is off (as in llama.cpp).
    - top_n_sigma: keeps logits that are at most so many standard deviations below the largest; 0 and -1 keep all (Tang
      et al., 2024). top_h: of the 100 most likely tokens keeps the first that hold that share of their entropy; 0 keeps
      all (Potraghloo et al., 2025).
    - top_k: keeps the k most likely tokens; 0 and -1 keep all. top_p: keeps the smallest set with more than top_p of
      the probability; 1 keeps all, and 0 only the most likely token, as temperature 0 does, which it becomes (Holtzman
      et al., 2020). min_p: keeps tokens at least min_p times as likely as the best (Nguyen et al., 2024). typical_p:
      keeps the tokens whose surprise is nearest to the expected surprise, up to that probability; 1 keeps all (Meister
      et al., 2022). epsilon_cutoff: keeps tokens of at least that probability; eta_cutoff: the same, but less where the
      entropy is large; 0 keeps all (Hewitt et al., 2022).
    - xtc: with the chance xtc_probability, of the tokens that have xtc_threshold of the probability or more all but the
      least likely are excluded (p-e-w, 2024).
    - mirostat: keeps tokens whose surprise is below a bound that follows the text, so that its mean nears mirostat_tau
      bits; mirostat_eta is how fast the bound moves; 0 is off (version 2; Basu et al., 2021). It takes the place of the
      filters from top_n_sigma on.

    watermark: a Watermark, or a dict of its fields: raises the logits of green tokens at last.

    The defaults are llama2.c's. Numbers may be numpy's. Raises OptionError for what is out of range or no number, and
    for a filter named beside mirostat.
    """

    __slots__ = ()

    def __new__(cls, **values: Any) -> Sampling:
        given = super().__new__(cls, **values)._asdict()
        for name, (low, high) in _RANGES.items():
            given[name] = checks.number(given[name], name, low, high)
        for name, least in _WHOLES.items():
            given[name] = checks.whole(given[name], name, least)
        for name in ("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"):
            given[name] = checks.token_ids(given[name], name)
        for name in ("bad_words", "dry_sequence_breakers"):
            given[name] = checks.phrases(given[name], name)
        if forced := set(given["forced_eos_token_id"]) & set(given["suppress_tokens"]):
            raise OptionError(f"forced_eos_token_id has {min(forced)}, which suppress_tokens forbids")
        given["top_k"] = checks.top_k(given["top_k"])
        given["top_n_sigma"] = max(given["top_n_sigma"], 0.0)
        given["logit_bias"] = checks.logit_bias(given["logit_bias"])
        given["sequence_bias"] = checks.sequence_bias(given["sequence_bias"])
        given["exponential_decay_length_penalty"] = checks.decay(given["exponential_decay_length_penalty"])
        given["sampler_order"] = checks.order(given["sampler_order"], _core.FILTERS)
        given["watermark"] = Watermark.of(given["watermark"])
        off = [step for step in _core.FILTERS if given["sampler_order"] and step not in given["sampler_order"]]
        if given["mirostat_tau"] > 0 and "mirostat" not in off:
            off += [step for step in _core.FILTERS if step not in ("temperature", "mirostat")]
            for step in off:
                name, value = _OFF[step]
                if name in values and given[name] != value:
                    raise OptionError(f"mirostat_tau takes the place of {name}: leave that out, or {value:g}")
        for step in off:
            given.update([_OFF[step]])
        if given["top_p"] < _NOTHING:
            given["temperature"] = 0.0
        return super().__new__(cls, **given)

    def updated(self, **options: Any) -> Sampling:
        """These options with those of `options` that are not None in their place. Raises OptionError."""
        named = {name: value for name, value in options.items() if value is not None}
        base = self._asdict()
        if checks.as_float(
            named.get("mirostat_tau")
        ):  # then the filters that these have are off, and only those of `options` an error
            for name, _ in _OFF.values():
                base.pop(name)
            base["temperature"] = self.temperature
        return Sampling(**{**base, **named})


DEFAULTS = Sampling()


def checkpoint_defaults(path: Path, options: Mapping[str, Any]) -> Sampling:
    """The options to use with a checkpoint where a user names none. options: those that the checkpoint names, if any.

    A checkpoint that names none has llama2.c's defaults. One that names some was tuned with the others off, as they are
    off in transformers and vLLM: so its top_p is 1 unless it says otherwise. (transformers also takes the 50 most
    likely tokens where a checkpoint gives no top_k; vLLM does not, and nor does fastllm.) Raises CheckpointError.
    """
    try:
        return Sampling(**{"top_p": 1.0, **options}) if options else DEFAULTS
    except (OptionError, TypeError) as error:
        raise CheckpointError(f"{path} has sampling options that are not possible: {error}") from None
