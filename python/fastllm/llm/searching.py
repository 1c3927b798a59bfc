"""Searches that generate is asked for: options checked against each other and the model, and made into searches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastllm.errors import OptionError

if TYPE_CHECKING:
    from fastllm.decoding import Sampling
    from fastllm.decoding.search import SearchOptions
    from fastllm.engine.generation import Search
    from fastllm.llm.texts import Texts

_MOST = 1000  # tokens that contrastive search chooses among: each takes a row of a forward
_NAMES = ("penalty_alpha", "dola_layers", "guidance_scale", "negative_prompt")


def search_options(options: dict[str, Any]) -> SearchOptions | None:
    """Takes the options of a search out of those of generate; None where none is on.

    Contrastive search is greedy, and chooses among a number of tokens that the caller has to say: the temperature
    becomes 0 unless it is given. Raises OptionError.
    """
    given = {name: value for name in _NAMES if (value := options.pop(name, None)) is not None}
    if not given:
        return None
    from fastllm.decoding.search import SearchOptions

    search = SearchOptions(**given)
    if search.name == "penalty_alpha":
        if options.get("top_k") is None:
            raise OptionError("penalty_alpha needs top_k, among how many tokens it chooses, such as 4")
        if options.get("temperature") is None:
            options["temperature"] = 0.0
    return search if search.name is not None else None


def check_search(search: SearchOptions, sampling: Sampling, others: dict[str, Any]) -> None:
    """Raises OptionError for options that do not go with a search. others: name -> value of further options."""
    for name, value in others.items():
        if value:
            raise OptionError(f"{name} does not go with {search.name}")
    if search.name == "penalty_alpha":
        if sampling.temperature >= 1e-6:
            why = "contrastive search draws nothing"
            raise OptionError(f"penalty_alpha goes with temperature 0 only, not {sampling.temperature:g}: {why}")
        if not 2 <= sampling.top_k <= _MOST:
            raise OptionError(f"penalty_alpha takes a top_k between 2 and {_MOST:,}, not {sampling.top_k}")


def search_of(llm: Texts, search: SearchOptions, sampling: Sampling, prompt: list[int]) -> tuple[Search, int]:
    """The search of one text, and how long its longest prompt is. Raises OptionError for layers that a model has not,
    and what a negative prompt may raise."""
    engine, config, longest = llm._engine, llm.config, len(prompt)
    if search.name == "penalty_alpha":
        from fastllm.engine.contrastive import Contrastive

        k = min(sampling.top_k, config.vocab_size)
        return Contrastive(engine, search.penalty_alpha, k, config.n_layers), longest + 1  # candidates take a position
    if search.name == "guidance_scale":
        from fastllm.engine.guidance import Guidance

        negative, ids = search.negative_prompt, prompt[-1:]
        if negative is not None:
            ids = llm._ids(negative, "negative_prompt")
        return Guidance(engine, search.guidance_scale, ids), max(longest, len(ids))
    from fastllm.engine.dola import Dola, layers_of

    layers = search.dola_layers
    if layers is None or isinstance(layers, str):
        return Dola(engine, layers_of(layers or "high", config.n_layers, tied=llm._tied)), longest
    if max(layers) >= config.n_layers:
        raise OptionError(
            f"dola_layers has layer {max(layers)}: it takes those before the last, 0 to {config.n_layers - 1}"
        )
    return Dola(engine, layers), longest
