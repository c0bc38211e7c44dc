"""One forecast, or one real run, in a process of its own (see benchmarks/forecast.py, which starts it)."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from longspan.model.config import EncoderConfig
from longspan.recipes.catalog import build_recipe
from longspan.train.config import TrainConfig
from longspan.train.forecast import forecast
from longspan.train.loop import start
from longspan.train.parallel import join_world, leave_world, local_device


def main() -> None:
    """`WHAT CASES ENCODER DATA FOLDER`; the last line that is printed has a result for each case."""
    what, cases, encoder, data, folder = sys.argv[1:]
    shape = EncoderConfig.parse(json.loads(encoder), where="benchmark")
    results = []
    for settings in json.loads(cases):
        config, place = _config(settings, shape, Path(data))
        results.append(_forecast(config, place) if what == "forecast" else _train(config, Path(folder)))
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(results))


def _config(settings: dict[str, Any], shape: EncoderConfig, data: Path) -> tuple[TrainConfig, Path]:
    recipe = settings["recipe"]
    place = data / recipe
    config = build_recipe(recipe, str(place), "model", {})
    config = config.model_copy(update={"init": None, "encoder": shape, "log_every": 1})
    changes = {key: value for key, value in settings.items() if key not in ("case", "recipe")}
    return config.replace(changes, where="benchmark"), place


def _forecast(config: TrainConfig, place: Path) -> dict[str, Any]:
    world = join_world(local_device())
    try:
        told = forecast(config, None, data=place, utilization=1, otherwise={}, world=world)
    finally:
        leave_world(world)
    return {
        "seconds": told.step_seconds,
        "tokens": told.work.num_tokens,
        "memory_bytes": told.memory.total,
        "memory_by_part": told.memory.model_dump(),
    }


def _train(config: TrainConfig, folder: Path) -> dict[str, Any]:
    _warm_up(config, folder)
    with Watched() as watched:
        run = start(config, folder, device="cpu")
    steps = run.logged()
    return {
        "seconds": [step["seconds"] for step in steps],
        "tokens": [step["tokens"] for step in steps],
        "memory_bytes": watched.grown,
    }


def _warm_up(config: TrainConfig, folder: Path) -> None:
    """A run of two steps with a tiny encoder: what libraries take once for themselves is no part of a run."""
    tiny = EncoderConfig(width=64, num_heads=1, num_layers=1, inner_width=64)
    small = {"encoder": tiny, "max_steps": 2, "batch_size": 2 * int(os.environ.get("WORLD_SIZE", "1"))}
    start(config.model_copy(update=small), folder.with_name(folder.name + "-first"), device="cpu")


class Watched:
    """Looks at this process's own memory all the time.

    Attributes:
        grown: the most it had, less what it had at first, in bytes.
    """

    def __enter__(self) -> Watched:
        self._first = self._most = _own_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.grown = self._most - self._first

    def _look(self) -> None:
        while not self._ended.is_set():
            self._most = max(self._most, _own_bytes())
            time.sleep(0.002)


def _own_bytes() -> int:
    """Resident memory that belongs to no file."""
    with open("/proc/self/status", encoding="ascii") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
