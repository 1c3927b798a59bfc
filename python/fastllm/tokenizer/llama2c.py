"""llama2.c's tokenizer.bin."""

from __future__ import annotations

from fastllm import _core
from fastllm.errors import TokenizerError
from fastllm.tokenizer._added import AddedToken
from fastllm.tokenizer._pieces import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, PieceTokenizer, piece_model
from fastllm.tokenizer.base import Files


def read(files: Files) -> PieceTokenizer:
    """llama2.c's tokenizer.bin: the longest piece's length, then for each token an f32 score, a length, the bytes.

    Its encoding merges the pair of best score first, as SentencePiece's BPE does, so SentencePiece does it, from a
    model made of the same pieces and scores. BOS is 1, EOS 2.
    """
    words, scores = _core.llama2c_words(files["tokenizer.bin"])
    if len(words) < 4:
        raise TokenizerError(f"it has {len(words)} words: no tokenizer.bin")
    names = _core.byte_names(words)
    pieces = words.copy()
    for i, byte in names.items():
        pieces[i] = bytes([byte])
    pieces[1] = b""  # run.c shows all but BOS

    def model() -> bytes:
        named = [word.strip(b"\n") for word in words[:3]] + [word.replace(b" ", SPACE) for word in words[3:]]
        types = [NORMAL] * len(words)
        if {b"<0x%02X>" % b for b in range(256)} <= {words[i] for i in names}:
            for i in names:
                types[i] = BYTE
        types[:3] = [UNKNOWN, CONTROL, CONTROL]
        return piece_model(named, scores, types, add_dummy_prefix=True)

    added = {i: AddedToken(words[i].strip(b"\n").decode("utf-8", "replace"), special=True) for i in (1, 2)}
    tokenizer = PieceTokenizer(words, pieces, model, added, space=True)
    tokenizer.exact = True
    return tokenizer
