"""What can go wrong, by what the user can do about it. Each message is one sentence that names the cause."""

from collections.abc import Iterator
from contextlib import contextmanager


class FastLLMError(Exception):
    """The base of all errors that fastllm raises on purpose; the command line exits with 2.

    text: of an error about one of several texts, which one, from 0; it calls it so too.
    """

    text: int | None = None


class CheckpointError(FastLLMError):
    """A model file that is missing, truncated, inconsistent, or of no known kind."""


class LibraryError(FastLLMError):
    """A library that is installed and cannot be loaded: it is broken, or needs more memory or files than there are."""


class TokenizerError(FastLLMError):
    """A tokenizer that is missing, broken, or not the model's."""


class NumericError(FastLLMError):
    """Numbers that are not finite where a text or vector should come of them: a broken model, or one that overflows.

    texts: from generate_batch, what became of each prompt; None for those that ended in this error.
    """

    texts: list[str | None] | list[list[int] | None] | None = None


class OptionError(FastLLMError, ValueError):
    """An option or argument outside what is possible."""


class ContextError(FastLLMError, ValueError):
    """More tokens than the context holds."""


class CheckpointWarning(UserWarning):
    """A part of a model file that has no effect on what is computed, though it might be expected to have one."""


@contextmanager
def about(text: int) -> Iterator[None]:
    """Errors in the block say which of several texts they are about."""
    try:
        yield
    except FastLLMError as error:
        error.text = text
        raise


def reason(error: BaseException) -> str:
    """What it was that made an import fail, in a line: libraries wrap the cause in advice."""
    while isinstance(cause := error.__cause__ or error.__context__, (ImportError, OSError, MemoryError)):
        error = cause
    said = error.strerror if isinstance(error, OSError) else str(error)
    return (said or type(error).__name__).strip().splitlines()[0]


def import_error(error: ImportError | OSError, package: str, missing: FastLLMError) -> FastLLMError:
    """What an import's failure means: `missing` where the package is not installed, else a LibraryError with the cause.

    Too few open files and too little memory look like a package that is not there: OSError, ImportError.
    """
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] == package:
        return missing
    return LibraryError(f"the library {package} cannot be loaded: {reason(error)}")
