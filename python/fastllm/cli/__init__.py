"""The command line: a file a command."""

from fastllm.cli.program import main

__all__ = ["main"]
