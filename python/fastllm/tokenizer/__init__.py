"""Text to token ids and back, for every kind of vocabulary that checkpoints come with.

base.py says what a tokenizer offers, and frame.py what is put around a model's texts. kinds.py is the table of the
kinds; each kind is a file of its name, and the files that begin with an underscore are what several kinds share.
search.py finds a checkpoint's tokenizer. Encoding is left to the libraries that own the formats; decoding is done here,
so that a text that is shown token by token is the same as the text decoded at once.
"""

from fastllm.tokenizer.base import Pair, Stream, Tokenizer, cut_pair, decode
from fastllm.tokenizer.frame import Frame, stop_tokens
from fastllm.tokenizer.kinds import from_blob, pack
from fastllm.tokenizer.search import check_fit, find, read

__all__ = [
    "Frame",
    "Pair",
    "Stream",
    "Tokenizer",
    "check_fit",
    "cut_pair",
    "decode",
    "find",
    "from_blob",
    "pack",
    "read",
    "stop_tokens",
]
