"""fastllm: language models on the computer you have.

import fastllm

llm = fastllm.load("stories15M.bin")
print(llm.generate("Once upon a time", max_tokens=100, temperature=0))
"""

from typing import TYPE_CHECKING

from fastllm.errors import (
    CacheFullError,
    CacheWarning,
    CheckpointError,
    CheckpointWarning,
    ContextError,
    FastLLMError,
    LibraryError,
    NumericError,
    OptionError,
    TokenizerError,
)

if TYPE_CHECKING:
    from fastllm.llm import LLM, load

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CacheFullError",
    "CacheWarning",
    "CheckpointError",
    "CheckpointWarning",
    "ContextError",
    "FastLLMError",
    "LibraryError",
    "NumericError",
    "OptionError",
    "TokenizerError",
    "load",
]


def __getattr__(name: str) -> object:
    # The compiled core is loaded when it is first needed: `import fastllm` stays light.
    if name in ("LLM", "load"):
        from fastllm import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
