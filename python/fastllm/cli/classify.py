"""fastllm classify: labels of texts, or of their tokens."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastllm.cli.lines import in_line, in_parts, lines, token_texts
from fastllm.cli.options import load_model, model_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastllm.llm import LLM


def options(classify: argparse.ArgumentParser) -> None:
    classify.add_argument("model", metavar="MODEL", help="a checkpoint of a classifier, of texts or of tokens")
    classify.add_argument("texts", nargs="*", metavar="TEXT", help="a tab parts a pair of texts")
    classify.add_argument("--json", action="store_true", help="lines are JSON objects with the scores of all labels")
    model_options(classify)


def run(args: argparse.Namespace) -> int:
    llm = load_model(args)
    texts, what = (args.texts, "text") if args.texts else (lines(), "line")
    each = llm.classifier is not None and llm.classifier.pooling == "each"

    def write(part: Sequence[str]) -> None:
        if each:
            for text in part:
                _write_tokens(llm, text, as_json=args.json)
        else:
            pairs = [(first, second) if tab else first for first, tab, second in (t.partition("\t") for t in part)]
            _write_labels(llm, part, llm.classify(pairs), as_json=args.json)

    in_parts(texts, what, 1 if each else 64, write)
    return 0


def _write_tokens(llm: LLM, text: str, *, as_json: bool) -> None:
    """A line for each token of a text, and an empty one."""
    ids, scores = llm.token_classify(text)
    _write_labels(llm, token_texts(llm, ids), scores, as_json=as_json)
    if not as_json:
        print()


def _write_labels(llm: LLM, texts: Sequence[str], scores: NDArray[np.float32], *, as_json: bool) -> None:
    """The likeliest label of each text, from the scores of all, [n, labels]."""
    import json

    if llm.classifier is None:
        return
    for text, row in zip(texts, llm.classifier.probabilities(scores), strict=True):
        best = int(row.argmax())
        label, probability = llm.labels[best], float(row[best])
        if as_json:
            about: dict[str, object] = {"text": text, "label": label, "probability": probability}
            about["probabilities"] = [float(x) for x in row]
            print(json.dumps(about | {"labels": llm.labels}, ensure_ascii=False))
        else:
            print(f"{in_line(label)}\t{probability:.6f}\t{in_line(text)}")
