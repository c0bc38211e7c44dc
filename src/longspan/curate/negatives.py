"""Hard negatives (paper, section 4.2.4): for each query, the documents nearest to it that are not its answer.

The paper takes the top 20 of the corpus without the positive; training then draws seven of them at random. Mined
negatives contain false ones, so a guard beyond the paper can leave out candidates that score nearly as high as the
positive itself.

Axes: N pairs, M distinct documents, K negatives kept, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longspan.curate.consistency import Teacher, embed_pairs
from longspan.curate.neighbours import Exclude, top_k
from longspan.errors import LongspanError
from longspan.files import write_json, write_json_lines

NUM_NEGATIVES = 20
SPARE = 2
"""With a guard, this many times as many candidates are looked at as are kept; more where it rejects more."""


def mine_negatives(
    queries_ND: np.ndarray,
    corpus_MD: np.ndarray,
    positives: Sequence[Sequence[int]],
    *,
    k: int = NUM_NEGATIVES,
    guard: float | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The K nearest documents of each query that are none of its positives.

    Args:
        queries_ND, corpus_MD: the teacher's vectors, of length 1; the documents are distinct texts.
        positives: for each query, the documents that answer it (at least one).
        k: at most this many each, at least 1.
        guard: leave out candidates whose score is above this part of the best positive's; None: the paper's way.

    Returns:
        For each query its negatives' numbers, nearest first, and their scores; fewer than `k` where there are no more.
    """
    chosen = [np.empty(0, dtype=np.int64)] * len(positives)
    chosen_scores = [np.empty(0, dtype=np.float32)] * len(positives)
    pending, candidates = list(range(len(positives))), k if guard is None else k * SPARE
    while pending:
        candidates = min(candidates, len(corpus_MD))
        exclude = Exclude.of([positives[query] for query in pending])
        scores_NK, indices_NK = top_k(queries_ND[pending], corpus_MD, candidates, exclude=exclude)
        short = []
        for query, scores_K, indices_K in zip(pending, scores_NK, indices_NK, strict=True):
            fine_K = indices_K >= 0
            more = bool(fine_K.all()) and candidates < len(corpus_MD)
            if guard is not None:
                fine_K &= scores_K <= _limit(queries_ND[query], corpus_MD[positives[query]], guard)
            chosen[query], chosen_scores[query] = indices_K[fine_K][:k], scores_K[fine_K][:k]
            if more and len(chosen[query]) < k:
                short.append(query)
        pending, candidates = short, candidates * SPARE
    return chosen, chosen_scores


def _limit(query_D: np.ndarray, positives_PD: np.ndarray, guard: float) -> np.float32:
    """The highest score that a negative may have: `guard` of the best positive's."""
    # Summed in float64 and rounded once, as `top_k` does, so that equal documents have equal scores here too.
    best = float((positives_PD.astype(np.float64) @ query_D.astype(np.float64)).astype(np.float32).max())
    # Of a score below zero, a part is more than the whole.
    return np.float32(best * guard if best > 0 else best / guard)


def mine_pairs(
    rows: Sequence[dict[str, Any]],
    teacher: Teacher,
    out: Path,
    *,
    k: int = NUM_NEGATIVES,
    at_least: int = 7,
    guard: float | None = None,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Give rows with `query` and `document` their `negatives`, from the documents of all rows; write `out/mined.jsonl`.

    A query that stands in several rows has several positives, and none of them becomes its negative. Rows left with
    fewer than `at_least` negatives are written to `out/dropped.jsonl` instead; `out/report.json` says how many.

    Raises:
        LongspanError: there are not even `at_least` other documents, or a number with which every row is dropped.
    """
    _check_numbers(k, at_least, guard)
    corpus = list(dict.fromkeys(row["document"] for row in rows))
    if len(corpus) <= at_least:
        raise LongspanError(
            f"{len(corpus)} distinct documents cannot give {at_least} negatives to each query",
            where=out,
            remedy="mine in a larger corpus or ask for fewer negatives",
        )
    number_of = {text: number for number, text in enumerate(corpus)}
    queries_ND, documents_ND = embed_pairs(rows, teacher, cache or out / "vectors", progress)
    first_row = {number_of[row["document"]]: n for n, row in reversed(list(enumerate(rows)))}
    corpus_MD = documents_ND[[first_row[number] for number in range(len(corpus))]]
    answers: dict[str, list[int]] = {}
    for row in rows:
        answers.setdefault(row["query"], []).append(number_of[row["document"]])
    positives = [answers[row["query"]] for row in rows]
    negatives, scores = mine_negatives(queries_ND, corpus_MD, positives, k=k, guard=guard)
    mined, dropped = [], []
    for row, numbers, values in zip(rows, negatives, scores, strict=True):
        full = row | {
            "negatives": [corpus[number] for number in numbers],
            "negative_scores": [round(float(value), 4) for value in values],
        }
        (mined if len(numbers) >= at_least else dropped).append(full)
    report = {
        "pairs": len(rows),
        "mined": len(mined),
        "dropped": len(dropped),
        "documents": len(corpus),
        "negatives_per_pair": float(np.mean([len(numbers) for numbers in negatives])),
        "k": k,
        "guard": guard,
        "teacher": teacher.embedder.name,
        "teacher_fingerprint": teacher.embedder.fingerprint,
    }
    write_json_lines(out / "mined.jsonl", mined)
    write_json_lines(out / "dropped.jsonl", dropped)
    write_json(out / "report.json", report)
    return report


def _check_numbers(k: int, at_least: int, guard: float | None) -> None:
    if k < 1 or not 0 <= at_least <= k:
        raise LongspanError(
            f"{k} negatives are kept, and rows with fewer than {at_least} left out: that leaves none",
            where="k, at_least",
            remedy="keep at least 1, and at least as many as a row must have",
        )
    if guard is not None and guard <= 0:
        raise LongspanError(
            f"guard {guard} leaves no candidate", where="guard", remedy="use a part of the score, such as 0.95"
        )
