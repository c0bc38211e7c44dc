"""A run that is killed at random moments, again and again, beside one that is not: the same bytes in the end.

    python -m benchmarks.kills --kills 100

Each process trains some dozen steps with a checkpoint after each, and gets SIGKILL at a random moment; the next one
goes on from what it finds. A run that finishes is compared with the undisturbed one, and another is begun. About a
second a kill.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_record
from longspan.files import read_json
from longspan.progress import Bar
from longspan.train.checkpoint import checkpoints
from longspan.train.config import TrainConfig
from longspan.train.loop import resume, start
from longspan.train.run import FINISHED, RUN
from tests.train import folders, tiny

KILLED, FINE = -9, 0
LEAST_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--objective", choices=("mlm", "contrastive"), action="append", help="only these")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    # A server that has imported all of this forks each process, so that it lives long enough to be killed at work.
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["benchmarks.kills", "torch._dynamo", "numpy.random"])
    with tempfile.TemporaryDirectory() as folder:
        configs = _configs(Path(folder), arguments.steps)
        configs = {name: configs[name] for name in arguments.objective or configs}
        with Bar("kills", arguments.kills * len(configs)) as bar:
            results = {
                name: _killed(config, Path(folder) / name, arguments.kills, random.Random(arguments.seed), bar)
                for name, config in configs.items()
            }
    write_record("kills", {"seed": arguments.seed, "steps": arguments.steps, "objectives": results})


def _configs(folder: Path, num_steps: int) -> dict[str, TrainConfig]:
    changes = {"max_steps": num_steps, "checkpoint_every": 1}
    text, pairs = tiny.prepare_text(folder / "text"), tiny.prepare_pairs(folder / "pairs")
    return {"mlm": tiny.masked_config(text, **changes), "contrastive": tiny.contrastive_config(pairs, **changes)}


def _killed(config: TrainConfig, folder: Path, num_kills: int, draw: random.Random, bar: Bar) -> dict[str, Any]:
    began = time.perf_counter()
    undisturbed = folder / "undisturbed"
    _process(config, undisturbed)  # the first also waits for the server
    seconds = _seconds(config, folder / "again")
    reached: Counter[str] = Counter()
    kills = finished = different = 0
    run = folder / "run-0"
    while kills < num_kills or run.is_dir():
        began_here = time.perf_counter()
        code = _process(config, run, draw.uniform(0, seconds) if kills < num_kills else None)
        if code == FINE:
            # The machine may have been busy when a whole run was timed: most moments would then come too late.
            seconds = min(seconds, max(LEAST_SECONDS, time.perf_counter() - began_here))
        if code == KILLED:
            kills += 1
            reached[_reached(run)] += 1
            bar.advance(1)
            continue
        if code != FINE:
            raise SystemExit(f"a process ended with {code}: {run}")
        finished += 1
        different += folders.differing(run, undisturbed) != []
        run = folder / f"run-{finished}"
    return {
        "kills": kills,
        "finished_runs": finished,
        "runs_that_differ": different,
        "model_sha256": read_json(undisturbed / FINISHED, remedy="run again")["model_sha256"],
        "kills_by_what_they_left": dict(sorted(reached.items())),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _seconds(config: TrainConfig, folder: Path) -> float:
    began = time.perf_counter()
    _process(config, folder)
    return time.perf_counter() - began


def _process(config: TrainConfig, folder: Path, seconds: float | None = None) -> int | None:
    process = multiprocessing.Process(target=_train, args=(config.model_dump_json(), str(folder)))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def _train(config: str, out: str) -> None:
    torch.set_num_threads(1)
    folder = Path(out)
    if (folder / RUN).is_file():
        resume(folder)
    else:
        start(TrainConfig.model_validate_json(config), folder)


def _reached(run: Path) -> str:
    if not (run / RUN).is_file():
        return "no run.json"
    return f"step {int(checkpoints(run / 'checkpoints')[-1].name.removeprefix('step-')):02d}"


if __name__ == "__main__":
    main()
