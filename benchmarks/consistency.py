"""The consistency filter on real pairs: equality with brute force, injected noise, k, samples, density, thresholds.

Three sources of the shared data: questions and paragraphs (SQuAD, PubMedQA), and titles and reviews (Amazon);
the teacher is all-MiniLM-L6-v2. Noise: the documents of 30 % of the pairs are shuffled among themselves, so that those
pairs are known to be bad. Vectors are kept in --cache and reused.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.record import write_record
from longspan.curate.consistency import PairVectors, Rule, agreement, equal_threshold, judge
from longspan.curate.vectors import VectorStore
from longspan.demo.teacher import load_teacher
from longspan.embedder import Embedder

SOURCES = ("squad", "pubmedqa", "amazon_reviews")
TOPS = (1, 2, 5, 10, 20)
SAMPLES = (500, 1_000, 2_000, 5_000, 10_000)
NOISE = 0.3
SEEDS = (0, 1, 2)
DENSITY_SAMPLE, DENSITY_ROUNDS = 900, 10
ROWS_AT_A_TIME = 512


class Pairs(NamedTuple):
    """Pairs of a source, and which of them are known to be bad. Vectors are numbered by text."""

    vectors: PairVectors
    bad_N: np.ndarray


def main() -> None:
    """Measure everything and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the small real data sets")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the teacher's vectors")
    parsed = parser.parse_args()
    teacher = load_teacher()
    sources = {name: _load(parsed.data / "pairs" / f"{name}.jsonl.gz", teacher, parsed.cache) for name in SOURCES}
    result: dict[str, Any] = {}
    for name, pairs in sources.items():
        noisy = [_with_noise(pairs, seed) for seed in SEEDS]
        began = time.perf_counter()
        judged_N = judge(pairs.vectors)
        seconds = time.perf_counter() - began
        result[name] = {
            "pairs": len(pairs.bad_N),
            "documents": len(np.unique(pairs.vectors.document_N)),
            "seconds_to_judge": round(seconds, 3),
            "kept_at": {str(k): _part(judged_N["rank"] < k) for k in TOPS},
            "brute_force": [_beside_brute_force(one) for one in (pairs, *noisy)],
            "noise": _mean(_quality(one, judge(one.vectors)) for one in noisy),
            "samples": {
                str(size): _mean(
                    _quality(one, judge(one.vectors, sample_size=size, seed=seed))
                    for seed, one in zip(SEEDS, noisy, strict=True)
                )
                for size in SAMPLES
                if size < len(pairs.bad_N)
            },
            "threshold": _threshold(pairs, noisy),
        }
    result["density"] = _density(sources)
    result["one_threshold_for_all"] = _one_threshold(sources)
    write_record("consistency-minilm", result)


def _load(path: Path, teacher: Embedder, cache: Path) -> Pairs:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    queries, documents = (VectorStore(cache, teacher, task=task) for task in ("search_query", "search_document"))
    query_N = queries.numbers([row["query"] for row in rows])
    document_N = documents.numbers([row["document"] for row in rows])
    vectors = PairVectors(query_N, document_N, queries.blocks.take, documents.blocks.take)
    return Pairs(vectors, np.zeros(len(rows), dtype=bool))


def _with_noise(pairs: Pairs, seed: int) -> Pairs:
    """Shuffle the documents of `NOISE` of the pairs among themselves; a pair that gets its own text back stays good."""
    generator = np.random.default_rng(seed)
    count = len(pairs.bad_N)
    moved = generator.permutation(count)[: round(NOISE * count)]
    document_N = pairs.vectors.document_N.copy()
    document_N[moved] = document_N[generator.permutation(moved)]
    return Pairs(replace(pairs.vectors, document_N=document_N), document_N != pairs.vectors.document_N)


def _beside_brute_force(pairs: Pairs) -> dict[str, Any]:
    """Pairs whose rank or fate differs from ranks by definition: every score in float64, every document looked at."""
    rank_N, vectors = judge(pairs.vectors)["rank"], pairs.vectors
    documents, own_N = np.unique(vectors.document_N, return_inverse=True)
    documents_MD = vectors.take_documents(documents).astype(np.float64)
    brute_N = np.empty(len(rank_N), dtype=np.int64)
    for start in range(0, len(rank_N), ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        scores_RM = vectors.take_queries(vectors.query_N[part]).astype(np.float64) @ documents_MD.T
        own_R1 = np.take_along_axis(scores_RM, own_N[part, None], axis=1)
        brute_N[part] = (scores_RM > own_R1).sum(axis=1)
    differing = {str(k): int(((rank_N < k) != (brute_N < k)).sum()) for k in TOPS}
    return {
        "bad": int(pairs.bad_N.sum()),
        "ranks_that_differ": int((rank_N != brute_N).sum()),
        "kept_or_dropped_otherwise_at": differing,
    }


def _quality(pairs: Pairs, judged_N: np.ndarray) -> dict[str, float]:
    """Parts of the good pairs that are kept and of the bad ones that are dropped, for every k."""
    values = {}
    for k in TOPS:
        keeps_N = Rule(k).keeps(judged_N)
        values[f"good_kept_top_{k}"] = _part(keeps_N[~pairs.bad_N])
        values[f"bad_dropped_top_{k}"] = _part(~keeps_N[pairs.bad_N])
    return values


def _threshold(pairs: Pairs, noisy: list[Pairs]) -> dict[str, Any]:
    """Top 2 beside the threshold that keeps as many: on the pairs as they are, and what each does to noise."""
    judged_N = judge(pairs.vectors)
    clean = agreement(judged_N, 2, equal_threshold(judged_N, 2))
    first_N = judged_N["rank"] == 0
    below_N = judged_N["score"] < clean["threshold"]

    def compare(one: Pairs) -> dict[str, float]:
        judged_N = judge(one.vectors)
        good_N, top_N = ~one.bad_N, Rule(2).keeps(judged_N)
        equal_N = Rule(threshold=equal_threshold(judged_N, 2)).keeps(judged_N)
        # As few bad pairs as top 2 lets through, whatever it costs.
        bad = np.sort(judged_N["score"][one.bad_N])
        strict_N = judged_N["score"] > bad[len(bad) - 1 - int(top_N[one.bad_N].sum())]
        return {
            "bad_dropped_top_2": _part(~top_N[one.bad_N]),
            "bad_dropped_equal_size": _part(~equal_N[one.bad_N]),
            "good_kept_top_2": _part(top_N[good_N]),
            "good_kept_equal_size": _part(equal_N[good_N]),
            "good_kept_as_few_bad": _part(strict_N[good_N]),
        }

    return {
        "as_they_are": clean,
        "found_first_but_below": int((first_N & below_N).sum()),
        "noise": _mean(compare(one) for one in noisy),
    }


def _one_threshold(sources: dict[str, Pairs]) -> dict[str, Any]:
    """One threshold for all sources, of the size that top 2 keeps: which part of each source it keeps."""
    judged = {name: judge(pairs.vectors) for name, pairs in sources.items()}
    threshold = equal_threshold(np.concatenate(list(judged.values())), 2)
    parts = {
        name: {
            "top_2": _part(Rule(2).keeps(judged_N)),
            "threshold": _part(Rule(threshold=threshold).keeps(judged_N)),
        }
        for name, judged_N in judged.items()
    }
    return {"threshold": threshold, "kept": parts}


def _density(sources: dict[str, Pairs]) -> dict[str, Any]:
    """SQuAD's pairs in samples of equal size: among their own articles, among the source, among all three sources."""
    count = len(sources["squad"].bad_N)

    def neighbours(seed: int) -> Pairs:
        start = int(np.random.default_rng(seed).integers(count - DENSITY_SAMPLE))
        return _some(sources["squad"], np.arange(start, start + DENSITY_SAMPLE))

    def anywhere(seed: int) -> Pairs:
        return _some(sources["squad"], _drawn(sources["squad"], DENSITY_SAMPLE, seed))

    def mixed(seed: int) -> Pairs:
        third = DENSITY_SAMPLE // 3
        parts = [_some(pairs, _drawn(pairs, third, seed)) for pairs in sources.values()]
        first = parts[0].vectors  # the stores are the same for all sources
        vectors = replace(
            first,
            query_N=np.concatenate([part.vectors.query_N for part in parts]),
            document_N=np.concatenate([part.vectors.document_N for part in parts]),
        )
        return Pairs(vectors, np.zeros(len(vectors), dtype=bool))

    ways: dict[str, tuple[Callable[[int], Pairs], int]] = {
        "consecutive rows of SQuAD": (neighbours, DENSITY_SAMPLE),
        "random rows of SQuAD": (anywhere, DENSITY_SAMPLE),
        "SQuAD, PubMedQA and Amazon": (mixed, DENSITY_SAMPLE // 3),
    }
    return {
        name: _mean(_dense(make(seed), seed, measured) for seed in range(DENSITY_ROUNDS))
        for name, (make, measured) in ways.items()
    }


def _dense(clean: Pairs, seed: int, measured: int) -> dict[str, float]:
    """Quality with noise, of the first `measured` pairs; noise stays among these too, so that it is of their kind."""
    noisy = _with_noise(_some(clean, np.arange(measured)), seed)
    document_N = np.concatenate([noisy.vectors.document_N, clean.vectors.document_N[measured:]])
    judged_N = judge(replace(clean.vectors, document_N=document_N))[:measured]
    documents = float(len(np.unique(document_N)))
    return {"documents": documents, **_quality(noisy, judged_N)}


def _some(pairs: Pairs, rows: np.ndarray) -> Pairs:
    vectors = pairs.vectors
    return Pairs(
        replace(vectors, query_N=vectors.query_N[rows], document_N=vectors.document_N[rows]), pairs.bad_N[rows]
    )


def _drawn(pairs: Pairs, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(len(pairs.bad_N))[:count]


def _part(chosen_N: np.ndarray) -> float:
    return round(float(chosen_N.mean()), 5)


def _mean(values: Iterable[dict[str, float]]) -> dict[str, float]:
    rows = list(values)
    return {key: round(statistics.mean(row[key] for row in rows), 5) for key in rows[0]}


if __name__ == "__main__":
    main()
