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
    from fastllm.llm import (
        LLM,
        AsyncChatStream,
        AsyncTextStream,
        ChatMessage,
        ChatStream,
        Text,
        TextStream,
        load,
    )

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncChatStream",
    "AsyncTextStream",
    "CacheFullError",
    "CacheWarning",
    "ChatMessage",
    "ChatStream",
    "CheckpointError",
    "CheckpointWarning",
    "ContextError",
    "FastLLMError",
    "LibraryError",
    "NumericError",
    "OptionError",
    "Text",
    "TextStream",
    "TokenizerError",
    "load",
]


def __getattr__(name: str) -> object:
    # The compiled core is loaded when it is first needed: `import fastllm` stays light.
    if name in __all__:
        from fastllm import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
