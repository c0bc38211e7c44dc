"""How a model came about, read from its run directory: the stages of its training, their data, their machines.

Nothing is typed by hand: what a run directory or a manifest does not say is not told.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.data.dataset import find_prepared
from longspan.data.manifest import Manifest
from longspan.errors import LongspanError
from longspan.files import read_json, sha256_json
from longspan.train.run import ENVIRONMENT, FINISHED, RUN, Run, RunSettings


@dataclass(frozen=True)
class TrainedStage:
    """One finished run.

    Attributes:
        settings: its configuration, the shape of its encoder, the fingerprint of its data, its number of steps.
        sources: manifests of what it was trained on; None where the prepared data is no longer there, or is other data
            by now.
        environment: code, libraries and machine of its last start.
        summary: what was kept when it was finished.
    """

    settings: RunSettings
    sources: tuple[Manifest, ...] | None
    environment: dict[str, Any]
    summary: dict[str, Any]


def is_run(path: Path) -> bool:
    """Whether a model's path is a run directory, so that it has a history."""
    return (path / RUN).is_file()


def read_history(path: Path) -> list[TrainedStage]:
    """The stages that led to the run at `path`, the first one first, as far back as run directories are there.

    Raises:
        LongspanError: a run is not finished, or a file of it is torn.
    """
    stages: list[TrainedStage] = []
    seen: set[Path] = set()
    next_path: Path | None = path
    while next_path is not None and is_run(next_path) and next_path.resolve() not in seen:
        seen.add(next_path.resolve())
        stages.insert(0, _read_stage(next_path))
        init = stages[0].settings.config.init
        next_path = None if init is None else Path(init)
    return stages


def _read_stage(folder: Path) -> TrainedStage:
    run = Run(folder)
    if not run.finished:
        raise LongspanError(
            "this run is not finished", where=folder, remedy=f"finish it first: longspan train --resume {folder}"
        )
    lines = (folder / ENVIRONMENT).read_text("utf-8").splitlines()
    return TrainedStage(
        settings=run.settings,
        sources=_sources(run.settings),
        environment=json.loads(lines[-1]) if lines else {},
        summary=read_json(folder / FINISHED, remedy="restore the run directory from a copy"),
    )


def _sources(settings: RunSettings) -> tuple[Manifest, ...] | None:
    config = settings.config
    kind = "text" if config.objective.kind == "mlm" else "pairs"
    manifests = [manifest for manifest in find_prepared(Path(config.data)).values() if manifest.kind == kind]
    if config.sources:
        manifests = [manifest for manifest in manifests if manifest.name in config.sources]
    if sha256_json([manifest.fingerprint for manifest in manifests]) != settings.data_fingerprint:
        return None
    return tuple(manifests)
