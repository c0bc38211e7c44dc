"""`longspan evaluate --suite retrieval`: one's own queries and documents."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from longspan.cli.common import load_embedder, say_cut, usage_error

if TYPE_CHECKING:
    from longspan.embedder import Embedder
    from longspan.evaluate.forms import FormScore
    from longspan.evaluate.retrieval import EmbedFunction, RetrievalResult, RetrievalSet
    from longspan.storage import Form

NAME = "retrieval"
SUMMARY = "a set in BEIR's layout or a file of pairs, beside BM25 or another model if wanted"

SHARED = ("max_length", "lengths", "dim", "processes")

SHOWN = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "map")


def add_options(parser: Any) -> list[argparse.Action]:
    return [
        parser.add_argument("--bm25", action="store_true", help="measure BM25 too"),
        parser.add_argument("--against", metavar="MODEL2", help="measure this model too, and whether the two differ"),
        parser.add_argument("--split", help="judgements to use, where the folder has several (test)"),
        parser.add_argument(
            "--stored",
            type=_forms,
            help="measure documents stored so, some of float32,float16,int8,binary, at every --dim (float32)",
        ),
        parser.add_argument("--k", type=_cuts, help="further cut-offs beside 10 and 100, such as 1,5,20 (1)"),
    ]


def run(parsed: argparse.Namespace) -> None:
    from longspan.evaluate.bm25 import evaluate_bm25
    from longspan.evaluate.corpus import load_retrieval_set
    from longspan.evaluate.retrieval import K_VALUES
    from longspan.files import write_json

    if parsed.data is None:
        raise usage_error("the retrieval suite needs --data", "evaluate")
    if parsed.against == parsed.model:
        raise usage_error(f"--against names the same model, {parsed.model}", "evaluate")
    retrieval_set = load_retrieval_set(parsed.data, split=parsed.split or "test")
    if parsed.dim or parsed.stored or parsed.lengths:
        report = _measure_forms(retrieval_set, parsed)
    else:
        cuts = parsed.k or K_VALUES
        models = [parsed.model] if parsed.against is None else [parsed.model, parsed.against]
        results = {model: _measure(model, retrieval_set, cuts, parsed) for model in models}
        if parsed.bm25:
            results["BM25"] = evaluate_bm25(retrieval_set, k_values=cuts)
        report = _shown(results, parsed)
    if parsed.out is not None:
        write_json(parsed.out, report)


def _shown(results: dict[str, RetrievalResult], parsed: argparse.Namespace) -> dict[str, Any]:
    """Print the measures, and return all of them for the results file."""
    from longspan.evaluate.significance import paired_test

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
    return report


def _measure(
    model: str, retrieval_set: RetrievalSet, cuts: Sequence[int], parsed: argparse.Namespace
) -> RetrievalResult:
    from longspan.evaluate.retrieval import evaluate_retrieval

    embedder = load_embedder(model, parsed.precision)
    with _embedding(model, embedder, retrieval_set, parsed) as embed_at:
        return evaluate_retrieval(retrieval_set, embed_at(parsed.max_length), k_values=cuts)


def _measure_forms(retrieval_set: RetrievalSet, parsed: argparse.Namespace) -> dict[str, Any]:
    """Print what vectors are worth by length, dimension and form, and return it for the results file."""
    from longspan.evaluate.embedding import without_lengths
    from longspan.evaluate.forms import forms_report, measure_forms

    if parsed.against or parsed.bm25 or parsed.k:
        raise usage_error("--dim, --stored and --lengths measure one model, without --against, --bm25, --k", "evaluate")
    if parsed.lengths and parsed.max_length:
        raise usage_error("--lengths and --max-length say the same: leave one out", "evaluate")
    embedder = load_embedder(parsed.model, parsed.precision)
    with _embedding(parsed.model, embedder, retrieval_set, parsed, without_lengths) as embed_at:
        scores = measure_forms(
            retrieval_set,
            embedder,
            embed_at,
            lengths=parsed.lengths or [parsed.max_length],
            dims=parsed.dim or (),
            forms=parsed.stored or ("float32",),
        )
    print(f"{'tokens':>7s} {'dim':>5s} {'stored':<8s} {'bytes':>6s} {'ndcg@10':>8s}  {'95 % interval':<17s}  change")
    for score in scores:
        print(_line(score))
    return forms_report(embedder, retrieval_set, scores)


def _line(score: FormScore) -> str:
    low, high = score.result.interval
    length = "all" if score.max_length is None else f"{score.max_length:,}"
    change = ""
    if score.change is not None:
        change = f"{score.change.difference:+.4f} (p {score.change.p_value:.4f})"
    what = f"{length:>7s} {score.dim:5d} {score.form:<8s} {score.bytes_per_vector:6,d}"
    return f"{what} {score.score:8.4f}  {low:.4f} to {high:.4f}  {change}".rstrip()


@contextmanager
def _embedding(
    model: str,
    embedder: Embedder,
    retrieval_set: RetrievalSet,
    parsed: argparse.Namespace,
    change: Callable[[Embedder], Embedder] | None = None,
) -> Iterator[Any]:
    """A function from a length to what makes vectors of texts cut there, in as many processes as are asked for."""
    from longspan.evaluate.embedding import embed_texts, open_engine
    from longspan.progress import Bar

    num_texts = len(retrieval_set.queries) + len(retrieval_set.corpus)
    cut: list[int] = []
    lengths = len(parsed.lengths or [0])
    with Bar("evaluate", lengths * num_texts) as bar, open_engine(model, embedder, parsed.processes, change) as engine:

        def embed_at(length: int | None) -> EmbedFunction:
            def embed(texts: Sequence[str], *, task: str) -> Any:
                return embed_texts(engine, texts, task=task, max_length=length, progress=bar.advance, on_cut=cut.append)

            return embed

        yield embed_at
    say_cut(sum(cut), lengths * num_texts)


def _forms(text: str) -> list[Form]:
    from longspan.errors import LongspanError
    from longspan.evaluate.forms import check_forms

    try:
        return check_forms([name.strip() for name in text.split(",")])
    except LongspanError as error:
        raise argparse.ArgumentTypeError(error.what) from None


def _cuts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers of at least 1, such as 1,5,20")
    return tuple(int(part) for part in parts)
