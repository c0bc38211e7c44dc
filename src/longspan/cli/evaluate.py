"""`longspan evaluate`: retrieval quality."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longspan.cli.common import declare, load_embedder, say_cut


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "evaluate",
        _evaluate,
        "retrieval quality on a set in BEIR's layout, beside BM25 if wanted",
        "  longspan evaluate runs/finetune --data scifact --bm25",
    )
    parser.add_argument("model", help="folder, finished run or hub id")
    parser.add_argument("--suite", choices=("retrieval",), default="retrieval", help="what to measure (%(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="folder with corpus.jsonl, queries.jsonl and qrels")
    parser.add_argument("--bm25", action="store_true", help="measure BM25 too")
    parser.add_argument("--max-length", type=int, help="cut texts at this many tokens (default: the model's limit)")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")


def _evaluate(parsed: argparse.Namespace) -> None:
    from longspan.evaluate.bm25 import evaluate_bm25
    from longspan.evaluate.retrieval import RetrievalSet, evaluate_retrieval
    from longspan.files import write_json
    from longspan.progress import Bar

    retrieval_set, embedder = RetrievalSet.load(parsed.data), load_embedder(parsed.model)
    num_texts, cut = len(retrieval_set.queries) + len(retrieval_set.corpus), []
    with Bar("evaluate", num_texts) as bar:

        def embed(texts: Sequence[str], *, task: str) -> Any:
            return embedder.embed(
                texts,
                task=task,
                max_length=parsed.max_length,
                truncate=True,
                progress=bar.advance,
                on_cut=cut.append,
            )

        results = {parsed.model: evaluate_retrieval(retrieval_set, embed)}
    say_cut(sum(cut), num_texts)
    if parsed.bm25:
        results["BM25"] = evaluate_bm25(retrieval_set)
    names = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "map")
    print("  ".join(f"{name:>10s}" for name in names))
    for model, result in results.items():
        print("  ".join(f"{result.metrics[name]:10.4f}" for name in names), f" {model}")
    if parsed.out is not None:
        write_json(parsed.out, {model: result.as_json() for model, result in results.items()})
