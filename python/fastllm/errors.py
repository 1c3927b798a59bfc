"""What can go wrong, by what the user can do about it. Each message is one sentence that names the cause."""


class FastLLMError(Exception):
    """The base of all errors that fastllm raises on purpose; the command line exits with 2."""


class CheckpointError(FastLLMError):
    """A model file that is missing, truncated, inconsistent, or of no known kind."""


class TokenizerError(FastLLMError):
    """A tokenizer that is missing, broken, or not the model's."""


class OptionError(FastLLMError, ValueError):
    """An option or argument outside what is possible."""


class ContextError(FastLLMError, ValueError):
    """More tokens than the context holds."""
