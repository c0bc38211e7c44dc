"""Jina's long-context benchmark (Günther et al., 2024): four tasks of mteb, each read to several lengths.

Paper, section 5.2.3 and Table 5: nDCG@10 of the two retrieval tasks, V-measure of the two clustering tasks, 128, 512
and 8,191 tokens. Prefixes and all else are those of `MtebProtocol`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longspan.curate.engine import Engine
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.mteb_encoder import MtebProtocol
from longspan.evaluate.mteb_suite import MtebResults, run_mteb
from longspan.evaluate.mteb_tasks import tasks_by_name
from longspan.files import write_json
from longspan.progress import Tell

TASKS = ("NarrativeQARetrieval", "WikiCitiesClustering", "SciFact", "BigPatentClustering")
"""In the order of Table 5."""

LENGTHS = (128, 512, 8191)

SUMMARY = "jina-long.json"


def run_jina_long(
    embedder: Embedder,
    out: Path,
    *,
    tasks: Sequence[str] = TASKS,
    lengths: Sequence[int] = LENGTHS,
    data: Path | None = None,
    engine: Engine | None = None,
    progress: Tell | None = None,
) -> list[MtebResults]:
    """Measure a model at every length, skipping what is in `out` (see `run_mteb`).

    Args:
        embedder: the model.
        out: folder of results; each length has a folder of its own in it.
        tasks: some of `TASKS`.
        lengths: cut texts at so many tokens, prefix and special tokens included.
        data: read the data from this folder and not from the hub.
        engine: as in `run_mteb`.
        progress: told of texts embedded.

    Raises:
        LongspanError: a task that is none of the benchmark's, a length that the model does not read, or whatever
            `run_mteb` raises.
    """
    if unknown := [name for name in tasks if name not in TASKS]:
        what = f"{', '.join(unknown)} is not in Jina's benchmark"
        raise LongspanError(what, where="tasks", remedy=f"choose some of: {', '.join(TASKS)}")
    if max(lengths) > embedder.config.max_length:
        raise LongspanError(
            f"the model reads at most {embedder.config.max_length:,} tokens, not {max(lengths):,}",
            where=embedder.name,
            remedy=f"measure shorter lengths: --lengths 128,{embedder.config.max_length}",
        )
    results = []
    for length in lengths:
        protocol = MtebProtocol.of(embedder, max_length=length)
        folder = out / str(length)
        results.append(
            run_mteb(
                embedder, tasks_by_name(tasks), folder, protocol=protocol, data=data, engine=engine, progress=progress
            )
        )
        write_json(out / SUMMARY, _summary(embedder, lengths, results))
    return results


def _summary(embedder: Embedder, lengths: Sequence[int], results: Sequence[MtebResults]) -> dict[str, Any]:
    scores = [
        {"max_length": length, "task": score.task, "metric": score.metric, "score": score.score}
        for length, result in zip(lengths, results, strict=False)
        for score in result.scores
    ]
    return {"suite": "jina-long", "model": embedder.name, "precision": embedder.precision, "scores": scores}
