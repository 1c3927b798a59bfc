"""llama2.c's tokenizer.bin: an int32, then for each token an f32 score, an int32 length and the bytes.

The first int32 is the length of the longest token (https://github.com/karpathy/llama2.c, tokenizer.py). run.c encodes
as SentencePiece's BPE does: it merges the pair of the best score first. So the sentencepiece library encodes here, with
a model made of the same tokens and scores. BOS has the id 1, EOS 2.
"""

from __future__ import annotations

from fastllm import _core
from fastllm.errors import TokenizerError
from fastllm.tokenizer._added import AddedToken
from fastllm.tokenizer._pieces import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, PieceTokenizer, piece_model
from fastllm.tokenizer.base import Files


def read(files: Files) -> PieceTokenizer:
    """The tokenizer of a tokenizer.bin. Raises TokenizerError where that is truncated or no tokenizer.bin."""
    words, scores = _core.llama2c_words(files["tokenizer.bin"])
    if len(words) < 4:
        raise TokenizerError(f"it has {len(words)} words: no tokenizer.bin")
    names = _core.byte_names(words)
    pieces = words.copy()
    for i, byte in names.items():
        pieces[i] = bytes([byte])
    pieces[1] = b""  # run.c shows every token but BOS

    def model() -> bytes:
        # The file has the first three as "<unk>", "\n<s>\n", "\n</s>\n", and plain spaces in the others.
        named = [word.strip(b"\n") for word in words[:3]] + [word.replace(b" ", SPACE) for word in words[3:]]
        types = [NORMAL] * len(words)
        if {b"<0x%02X>" % b for b in range(256)} <= {words[i] for i in names}:  # byte fallback needs all of them
            for i in names:
                types[i] = BYTE
        types[:3] = [UNKNOWN, CONTROL, CONTROL]
        return piece_model(named, scores, types, add_dummy_prefix=True)

    added = {i: AddedToken(words[i].strip(b"\n").decode("utf-8", "replace"), special=True) for i in (1, 2)}
    tokenizer = PieceTokenizer(words, pieces, model, added, strips_space=True)
    tokenizer.exact = True
    return tokenizer
