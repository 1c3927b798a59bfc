"""fastllm rerank: documents by how well they answer a query."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastllm.cli.lines import in_line, lines
from fastllm.cli.options import load_model, model_options


def options(rerank: argparse.ArgumentParser) -> None:
    rerank.add_argument("model", metavar="MODEL", help="a checkpoint of a reranker: a classifier of pairs, or a judge")
    rerank.add_argument("query", metavar="QUERY")
    rerank.add_argument("documents", nargs="*", metavar="DOCUMENT")
    rerank.add_argument("--instruction", metavar="TEXT", help="what the query is for (default: the model's)")
    rerank.add_argument("--template", metavar="FILE", help="a chat template with the roles query and document")
    rerank.add_argument("--json", action="store_true", help="lines are JSON objects")
    model_options(rerank)


def run(args: argparse.Namespace) -> int:
    import json

    from fastllm.files import read_file

    template = None
    if args.template is not None:
        template = read_file(Path(args.template)).decode("utf-8", "replace")
    llm = load_model(args)
    documents = args.documents or lines()
    ranked = llm.rerank(args.query, documents, instruction=args.instruction, template=template)
    for index, score in ranked:
        document = documents[index]
        if args.json:
            print(json.dumps({"index": index, "score": score, "document": document}, ensure_ascii=False))
        else:
            print(f"{score:.6f}\t{index}\t{in_line(document)}")
    return 0
