"""Hard negatives (paper, section 4.2.4): for each query, the documents nearest to it that are not its answer.

The paper takes the top 20 of the corpus without the positive; training then draws seven of them at random. Mined
negatives contain false ones, so a guard beyond the paper can leave out candidates that score nearly as high as the
positive itself.

Axes: N pairs, M distinct documents, K negatives kept, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longspan.curate.consistency import Teacher, embed_pairs
from longspan.curate.neighbours import Exclude, top_k
from longspan.errors import LongspanError
from longspan.files import write_json, write_text

NUM_NEGATIVES = 20
SPARE = 2
"""With a guard, this many times as many candidates are looked at as are kept."""


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
        guard: leave out candidates whose score is above this part of the best positive's; None: the paper's way.

    Returns:
        For each query its negatives' numbers, nearest first, and their scores; fewer than `k` where there are no more.
    """
    candidates = min(k * (SPARE if guard is not None else 1), len(corpus_MD))
    scores_NK, indices_NK = top_k(queries_ND, corpus_MD, candidates, exclude=Exclude.of(positives))
    chosen, chosen_scores = [], []
    for query, (scores_K, indices_K) in enumerate(zip(scores_NK, indices_NK, strict=True)):
        fine = indices_K >= 0
        if guard is not None:
            best_positive = max(float(queries_ND[query] @ corpus_MD[document]) for document in positives[query])
            fine &= scores_K <= guard * best_positive
        chosen.append(indices_K[fine][:k])
        chosen_scores.append(scores_K[fine][:k])
    return chosen, chosen_scores


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
        LongspanError: there are not even `at_least` other documents.
    """
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
    write_text(out / "mined.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in mined))
    write_text(out / "dropped.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in dropped))
    write_json(out / "report.json", report)
    return report
