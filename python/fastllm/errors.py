"""The errors that fastllm raises, a class for each thing that a user can do about one.

Each message is one sentence that names the cause.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class FastLLMError(Exception):
    """The base of all errors that fastllm raises on purpose; the command line exits with 2.

    text: the index, from 0, of the text that the error is about, where a call was given several; else None.
    """

    text: int | None = None


class CheckpointError(FastLLMError):
    """A model file is missing, truncated, inconsistent, or of no known kind."""


class LibraryError(FastLLMError):
    """An installed library cannot be loaded: it is broken, or memory or open files have run out."""


class TokenizerError(FastLLMError):
    """A tokenizer is missing, broken, or not the model's."""


class NumericError(FastLLMError):
    """Logits or vectors are not finite: the model is broken, or its activations overflow.

    texts: set by generate_batch: the finished text (or ids) of each prompt, None for a prompt that ended in this error.
    """

    texts: list[str | None] | list[list[int] | None] | None = None


class OptionError(FastLLMError, ValueError):
    """An option or argument is outside what is possible."""


class ContextError(FastLLMError, ValueError):
    """More tokens than the context holds."""


class CacheFullError(ContextError):
    """The keys and values of all texts together would exceed the limit of the KV cache."""


class CheckpointWarning(UserWarning):
    """A part of a model file is not used, though a user might expect it to be."""


class CacheWarning(UserWarning):
    """Prompts or packed weights are not kept on disk: their folder cannot be written, or they do not fit."""


@contextmanager
def about(text: int) -> Iterator[None]:
    """A with block that works on one of several texts: errors that leave it have its index as their `text`."""
    try:
        yield
    except FastLLMError as error:
        error.text = text
        raise


def reason(error: BaseException) -> str:
    """The innermost cause of a failed import, in one line. (Libraries wrap it in lines of advice.)"""
    while isinstance(cause := error.__cause__ or error.__context__, (ImportError, OSError, MemoryError)):
        error = cause
    said = error.strerror if isinstance(error, OSError) else str(error)
    return (said or type(error).__name__).strip().splitlines()[0]


def import_error(error: ImportError | OSError, package: str, missing: FastLLMError) -> FastLLMError:
    """The error to raise for a failed import of `package`: `missing` if it is not installed, else a LibraryError.

    The two must be told apart because running out of memory or open files also ends in an ImportError or OSError.
    """
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] == package:
        return missing
    return LibraryError(f"the library {package} cannot be loaded: {reason(error)}")
