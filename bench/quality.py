"""What fewer bits cost: q8, q4 and the file's own type against f16 of the same weights, ours and llama.cpp's.

    python bench/quality.py [MODEL.gguf ...] [--peer-python PATH]

Both read the built-in model and each MODEL as f16, and compare their smaller types with their own f16 over the same
held-out tokens; a file of a few bits is also run as it is, by both. What is held out is Python's documentation (every
other of pydoc's topics); both calibrate with fastllm's own text. For the built-in model both are stories of its
grammar. Chat models also answer 40 short questions (quality_questions.py): the last column says how many greedy answers
of 16 tokens equal those of f16. Prints a Markdown table. Without a Python that has llama-cpp-python, llama.cpp is left
out.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastllm import TokenizerError, _core, load
from fastllm.llm import LLM
from fastllm.weights import store, text
from fastllm.weights.calibration import Calibration
from fastllm.weights.convert import convert
from fastllm.weights.source import open_source
from quality_questions import QUESTIONS
from quality_scores import answers, compare, equal
from storyteller.corpus import stories

DEMO = Path(_core.__file__).parent / "demo" / "stories.safetensors"
PEER = Path(__file__).parent / "quality_llama.py"
PIECE = 256  # tokens of a text


class Model(NamedTuple):
    name: str
    path: Path  # GGUF
    tokenizer: Path | None
    calibration: str
    held_out: list[list[int]]
    questions: list[list[int]]  # as the chat template has them; none where there is no template
    stop: list[int]


class Row(NamedTuple):
    side: str
    dtype: str
    nbytes: int
    kl: float  # the mean over positions, in nats
    ppl: float
    top1: float
    answers: int | None  # of the questions, that are the same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--peer-python", metavar="PATH", help="a Python with llama-cpp-python")
    parser.add_argument("--pieces", type=int, default=16, metavar="N", help=f"held out, of {PIECE} tokens (default 16)")
    args = parser.parse_args()
    if args.peer_python is None:
        print("llama.cpp is left out: name a Python that has llama-cpp-python with --peer-python", file=sys.stderr)
    print("| model | | bytes | KL (nats) | perplexity | top-1 | answers |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="fastllm-quality-") as name:
        for model in _models(Path(name), args.models, args.pieces):
            for row in _measure(model, Path(name), args.peer_python):
                what = f"{row.side} {row.dtype}"
                numbers = f"{row.nbytes:,} | {row.kl:.6f} | {row.ppl:.5f} | {row.top1:.1%} | {row.answers or ''}"
                print(f"| {model.name} | {what} | {numbers} |", flush=True)
    return 0


# ---- texts and models ----------------------------------------------------------------------------------------------


def _models(folder: Path, paths: list[Path], pieces: int) -> Iterator[Model]:
    demo = load(DEMO)
    words = folder / "tokenizer.model"
    words.write_bytes(store.open_file(DEMO).tokenizer[1])
    held_out = [demo.tokenize(story)[:PIECE] for story in stories(2, pieces)]
    yield Model("built-in", _write_demo(folder), words, "\n\n".join(stories(3, 60)), held_out, [], [])
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    for path in paths:
        llm = load(path)
        held_out, asked = _held_out(llm, topics[1::2], pieces), _questions(llm)
        yield Model(path.stem, path, None, text.DEFAULT.read_text("utf-8"), held_out, asked, list(llm.chat_stop))


def _questions(llm: LLM) -> list[list[int]]:
    """The questions as the model's chat template has them; none without a template."""
    try:
        return [llm.apply_chat_template([{"role": "user", "content": question}]) for question in QUESTIONS]
    except TokenizerError:  # it has no template
        return []


def _held_out(llm: LLM, topics: list[str], pieces: int) -> list[list[int]]:
    begin, tokens = llm.tokenize(""), llm.tokenizer.encode("\n\n".join(topics))
    step = len(tokens) // pieces
    return [[*begin, *tokens[i * step : i * step + PIECE - len(begin)]] for i in range(pieces)]


def _write_demo(folder: Path) -> Path:
    """Writes the built-in model as an f16 GGUF without a vocabulary, as both sides are given token ids."""
    import gguf

    stored = store.open_file(DEMO)
    c, path = stored.config, folder / "built-in.gguf"
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(c.max_seq)
    out.add_embedding_length(c.dim)
    out.add_block_count(c.n_layers)
    out.add_feed_forward_length(c.hidden_dim)
    out.add_head_count(c.n_heads)
    out.add_head_count_kv(c.n_kv_heads)
    out.add_rope_dimension_count(c.rotary_dim)
    out.add_layer_norm_rms_eps(c.norm_eps)
    out.add_vocab_size(c.vocab_size)
    out.add_tokenizer_model("llama")
    out.add_token_list([f"<{i}>" for i in range(c.vocab_size)])
    out.add_token_scores([0.0] * c.vocab_size)
    out.add_token_types([gguf.TokenType.NORMAL] * c.vocab_size)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    names = {"attn.wq": "attn_q", "attn.wk": "attn_k", "attn.wv": "attn_v", "attn.wo": "attn_output"}
    names |= {"ffn.w1": "ffn_gate", "ffn.w3": "ffn_up", "ffn.w2": "ffn_down", "attn_norm": "attn_norm"}
    for name, tensor in stored.tensors.items():
        layer, _, part = name.removeprefix("layers.").partition(".")
        target = f"blk.{layer}.{names.get(part, part)}.weight"
        if name in ("embed", "final_norm"):
            target = "token_embd.weight" if name == "embed" else "output_norm.weight"
        if isinstance(tensor, _core.Matrix):
            out.add_tensor(target, _interleaved(part, _floats(tensor), c.head_dim).astype(np.float16))
        elif not name.startswith("rope."):
            out.add_tensor(target, np.frombuffer(tensor.data, np.float32).copy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def _floats(matrix: _core.Matrix) -> NDArray[np.float32]:
    out = np.empty(matrix.shape, np.float32)
    for i, row in enumerate(out):
        matrix.row(i, row)
    return out


def _interleaved(part: str, w: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of wq and wk in the order of a Llama in GGUF: the two rows of a rotary pair are neighbours."""
    if part not in ("attn.wq", "attn.wk"):
        return w
    return w.reshape(-1, 2, head_dim // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


# ---- measuring -----------------------------------------------------------------------------------------------------


def _measure(model: Model, folder: Path, peer: str | None) -> Iterator[Row]:
    words, out = folder / "calibration.txt", folder / "converted.safetensors"
    words.write_text(model.calibration, encoding="utf-8")
    exact = load(model.path, dtype="f16", tokenizer=model.tokenizer)
    right = answers(exact, model.questions, model.stop)

    def row(name: str, nbytes: int, llm: LLM) -> Row:
        same = equal(right, answers(llm, model.questions, model.stop))
        return Row("fastllm", name, nbytes, *compare(exact, llm, model.held_out), same)

    # The bits are such that SmolLM2 takes 5 % fewer bytes than in llama.cpp's Q4_K_M.
    asked: dict[str, dict[str, Any]] = {
        "q8": {"dtype": "q8"},
        "q4, not calibrated": {"dtype": "q4", "calibrate": False},
    }
    asked |= {"q4": {"dtype": "q4", "calibrate": words}, "5.85 bits": {"bits": 5.85, "calibrate": words}}
    for name, options in asked.items():
        convert(model.path, out, tokenizer=model.tokenizer, **options)
        yield row(name, out.stat().st_size, load(out))
    own = load(model.path, tokenizer=model.tokenizer)
    if own.dtypes != exact.dtypes:
        convert(model.path, out, tokenizer=model.tokenizer)
        yield row(f"the file as it is ({', '.join(own.dtypes)})", out.stat().st_size, own)
        if "precise" in signature(load).parameters:
            precise = load(model.path, tokenizer=model.tokenizer, precise=True)
            yield row("the file as it is, precise", out.stat().st_size, precise)
    if peer is not None:
        del exact
        yield from _llama(model, folder, peer, quantized=own.dtypes != ["f16"])


def _llama(model: Model, folder: Path, peer: str, *, quantized: bool) -> Iterator[Row]:
    """llama.cpp's rows of the table: without an importance matrix, with one of the calibration text, and of the very
    file if it is `quantized`."""
    names = folder / "importance.npz"
    np.savez(names, **_importance(model))
    about: dict[str, Any] = {"model": str(model.path), "folder": str(folder), "importance": str(names)}
    about |= {"texts": model.held_out, "questions": model.questions, "stop": model.stop, "quantized": quantized}
    done = subprocess.run(
        [peer, str(PEER)], input=json.dumps(about), stdout=subprocess.PIPE, text=True, check=True, encoding="utf-8"
    )
    for row in json.loads(done.stdout):
        yield Row("llama.cpp", *row)


def _importance(model: Model) -> dict[str, NDArray[np.float32]]:
    """The sums of squares of each matrix's inputs over the calibration text, by GGUF's names of the matrices."""
    opened = open_source(model.path, model.tokenizer)
    seen = Calibration(opened.recipe, text.given(opened, model.calibration), threads=2)
    names = {"attn.wq": ("attn_q", "attn_k", "attn_v"), "attn.wo": ("attn_output",)}
    names |= {"ffn.w1": ("ffn_gate", "ffn_up"), "ffn.w2": ("ffn_down",)}
    found = {}
    for layer in range(opened.recipe.config.n_layers):
        for part, targets in names.items():
            known = seen.factors(f"layers.{layer}.{part}")
            assert known is not None  # these models have no experts
            squares = np.diag(known.products)
            found |= {f"blk.{layer}.{target}.weight": squares.astype(np.float32) for target in targets}
    return found


if __name__ == "__main__":
    sys.exit(main())
