"""The report of the consistency filter: how many pairs were kept, how they scored, and examples of both kinds.

Axes: N pairs, R pairs that the report looks at closely, K other documents for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from longspan.curate.approximate import Search
from longspan.curate.consistency import (
    PairVectors,
    Rule,
    Sample,
    agreement,
    equal_threshold,
    nearest_wrong,
    sample_pairs,
)
from longspan.curate.filter_state import State, known_ranks
from longspan.curate.pairs import Pair
from longspan.curate.report import (
    NUM_EXAMPLES,
    Example,
    Other,
    Report,
    Table,
    evenly,
    score_histogram,
    shortened,
)

REPORT_PAIRS = 2**14
"""Pairs, drawn at random, whose best wrong documents the report looks at."""
NUM_OTHERS = 3
"""Other documents shown with an example."""
TOPS = (1, 2, 5, 10, 20)


def close_look(
    vectors: PairVectors, judged_N: np.ndarray, rule: Rule, state: State, searches: list[Search], device: str
) -> tuple[Callable[[dict[int, Pair]], Report], list[int]]:
    """What the report will show: a function from texts to the report, and the pairs whose texts it needs."""
    sample = Sample.draw(0, vectors, state.sample_size, state.seed)
    drawn_R = np.sort(sample_pairs(0, len(vectors), state.sample_size, state.seed)[:REPORT_PAIRS])
    scores_RK, pairs_RK = nearest_wrong(vectors, sample, drawn_R, max(rule.k, NUM_OTHERS), device=device)
    judged_R = judged_N[drawn_R]
    cut = equal_threshold(judged_N, rule.k) if rule.threshold is None else rule.threshold
    # By how much the own document is in front of the first one that would have to be behind it, or the threshold.
    rivals_R = scores_RK[:, rule.k - 1] if rule.threshold is None else rule.threshold
    margin_R = judged_R["score"] - rivals_R
    keeps_R, found_R = rule.keeps(judged_R), judged_R["rank"] < rule.k
    only_found_R = np.flatnonzero(found_R & (judged_R["score"] < cut))
    chosen = {
        "kept": evenly(np.flatnonzero(keeps_R)),
        "dropped": evenly(np.flatnonzero(~keeps_R)),
        "borderline": np.argsort(np.abs(margin_R), kind="stable")[:NUM_EXAMPLES],
        "found among the top k, but below the threshold": only_found_R[
            np.argsort(judged_R["score"][only_found_R], kind="stable")
        ][:NUM_EXAMPLES],
    }
    places = np.unique(np.concatenate(list(chosen.values())))
    wanted = np.unique(np.concatenate([drawn_R[places], pairs_RK[places, :NUM_OTHERS].ravel()]))

    def example(place: int, texts: dict[int, Pair]) -> Example:
        pair = int(drawn_R[place])
        others = [
            Other(shortened(texts[int(other)].document), round(float(score), 4), int(other) + 1)
            for score, other in zip(scores_RK[place, :NUM_OTHERS], pairs_RK[place, :NUM_OTHERS], strict=True)
            if other >= 0
        ]
        own = texts[pair]
        score, rank = round(float(judged_R["score"][place]), 4), int(judged_R["rank"][place])
        return Example(pair + 1, shortened(own.query), shortened(own.document), score, rank, tuple(others))

    def report(texts: dict[int, Pair]) -> Report:
        return replace(
            _numbers(judged_N, rule, state, searches),
            histograms=(
                score_histogram(
                    "Score of the pair's own document, and of the best other one in the sample",
                    {"own": judged_N["score"], "best other": scores_RK[:, 0]},
                    {"threshold": cut} if np.isfinite(cut) else {},
                ),
            ),
            examples={
                kind: tuple(example(int(place), texts) for place in chosen_R) for kind, chosen_R in chosen.items()
            },
        )

    return report, [int(pair) for pair in wanted if pair >= 0]


def _numbers(judged_N: np.ndarray, rule: Rule, state: State, searches: list[Search]) -> Report:
    """The report without pictures."""
    rank_N, score_N, num_kept = judged_N["rank"], judged_N["score"], int(rule.keeps(judged_N).sum())
    thresholds = [equal_threshold(judged_N, rule.k)]
    thresholds += [] if rule.threshold is None else [rule.threshold]
    agreements = [agreement(judged_N, rule.k, cut) for cut in thresholds if np.isfinite(cut)]
    kept_at = {str(top): float((rank_N < top).mean()) for top in TOPS}
    known = known_ranks(state, searches)
    last = state.num_pairs if known is None else known
    places = sorted({*TOPS, 50, 100, 1000, last})
    bounds = [0, *(place for place in places if place <= last and place < state.num_pairs), state.num_pairs]
    ranks = []
    for low, high in itertools.pairwise(bounds):
        count = int(((rank_N >= low) & (rank_N < high)).sum())
        name = f"{low + 1:,}" if high == low + 1 else f"{low + 1:,} to {high:,}"
        ranks.append((name, f"{count:,}", f"{count / state.num_pairs:.1%}"))
    facts: dict[str, Any] = {
        "pairs": state.num_pairs,
        "kept": num_kept,
        "dropped": state.num_pairs - num_kept,
        "part_kept": num_kept / state.num_pairs,
        "k": rule.k,
        "threshold": rule.threshold,
        "sample_size": min(state.sample_size, state.num_pairs),
        "seed": state.seed,
        "search": min(searches, key=lambda search: search.recall).report() | {"ranks_known_to": known},
        "teacher": state.teacher,
        "teacher_fingerprint": state.teacher_fingerprint,
        "teacher_precision": state.teacher_precision,
        "teacher_max_length": state.max_length,
        "rank_quantiles": {str(q): float(np.quantile(rank_N, q)) for q in (0.25, 0.5, 0.75, 0.9, 0.99)},
        "score_quantiles": {str(q): float(np.quantile(score_N, q)) for q in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)},
        "kept_at": kept_at,
        "top_k_and_threshold": agreements,
    }
    tables = [Table("Place of the pair's own document (1 is the best)", ("place", "pairs", "part"), tuple(ranks))]
    for one in agreements:
        rows = (
            ("found among the top k", f"{one['both_keep']:,}", f"{one['only_top_k_keeps']:,}"),
            ("not found", f"{one['only_threshold_keeps']:,}", f"{one['both_drop']:,}"),
        )
        what = f"Top {rule.k} beside a threshold of {one['threshold']:.3f}, "
        what += f"which drops {one['dropped_of_top_k']:.1%} of what top {rule.k} keeps"
        tables.append(Table(what, ("pairs", "at or above the threshold", "below"), rows))
    return Report("filter", state.source.name, facts, tables=tuple(tables))
