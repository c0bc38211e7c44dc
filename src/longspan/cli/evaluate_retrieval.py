"""`longspan evaluate --suite retrieval`: one's own queries and documents."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longspan.cli.common import load_embedder, say_cut, usage_error

if TYPE_CHECKING:
    from longspan.evaluate.retrieval import RetrievalResult, RetrievalSet

NAME = "retrieval"
SUMMARY = "a set in BEIR's layout or a file of pairs, beside BM25 or another model if wanted"

SHARED = ("max_length",)

SHOWN = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "map")


def add_options(parser: Any) -> list[argparse.Action]:
    return [
        parser.add_argument("--bm25", action="store_true", help="measure BM25 too"),
        parser.add_argument("--against", metavar="MODEL2", help="measure this model too, and whether the two differ"),
        parser.add_argument("--split", help="judgements to use, where the folder has several (test)"),
        parser.add_argument("--k", type=_cuts, help="further cut-offs beside 10 and 100, such as 1,5,20 (1)"),
    ]


def run(parsed: argparse.Namespace) -> None:
    from longspan.evaluate.bm25 import evaluate_bm25
    from longspan.evaluate.corpus import load_retrieval_set
    from longspan.evaluate.retrieval import K_VALUES
    from longspan.evaluate.significance import paired_test
    from longspan.files import write_json

    if parsed.data is None:
        raise usage_error("the retrieval suite needs --data", "evaluate")
    if parsed.against == parsed.model:
        raise usage_error(f"--against names the same model, {parsed.model}", "evaluate")
    retrieval_set = load_retrieval_set(parsed.data, split=parsed.split or "test")
    cuts = parsed.k or K_VALUES
    models = [parsed.model] if parsed.against is None else [parsed.model, parsed.against]
    results = {model: _measure(model, retrieval_set, cuts, parsed) for model in models}
    if parsed.bm25:
        results["BM25"] = evaluate_bm25(retrieval_set, k_values=cuts)
    shown = [*SHOWN, *(f"ndcg@{k}" for k in parsed.k or () if f"ndcg@{k}" not in SHOWN)]
    print("  ".join(f"{name:>10s}" for name in shown))
    for model, result in results.items():
        print("  ".join(f"{result.metrics[name]:10.4f}" for name in shown), f" {model}")
    report: dict[str, Any] = {model: result.as_json() for model, result in results.items()}
    if parsed.against is not None:
        ours, theirs = results[parsed.model], results[parsed.against]
        tests = {name: paired_test(ours.values[name], theirs.values[name]) for name in ours.values}
        report["comparison"] = {name: test.as_json() for name, test in tests.items()}
        print(f"\n{parsed.model} less {parsed.against}, of {len(ours.per_query):,} queries")
        for name in shown:
            test = tests[name]
            low, high = test.interval
            print(
                f"{name:>10s}  {test.difference:+.4f}  95 % interval {low:+.4f} to {high:+.4f}  p {test.p_value:.4f}  "
                f"better on {test.wins:,}, worse on {test.losses:,}"
            )
    if parsed.out is not None:
        write_json(parsed.out, report)


def _measure(
    model: str, retrieval_set: RetrievalSet, cuts: Sequence[int], parsed: argparse.Namespace
) -> RetrievalResult:
    from longspan.evaluate.retrieval import evaluate_retrieval
    from longspan.progress import Bar

    embedder = load_embedder(model, parsed.precision)
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

        result = evaluate_retrieval(retrieval_set, embed, k_values=cuts)
    say_cut(sum(cut), num_texts)
    return result


def _cuts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers of at least 1, such as 1,5,20")
    return tuple(int(part) for part in parts)
