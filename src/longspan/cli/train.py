"""`longspan train`: train by a recipe, or go on with a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from longspan.cli.common import EXIT_INTERRUPTED, declare, usage_error
from longspan.errors import LongspanError


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "train",
        _train,
        "train by a recipe, or go on with a run",
        "  longspan train mlm --data data --out runs/mlm --set batch_size=256 --set max_steps=1000\n"
        "  longspan train --resume runs/mlm\n"
        "  torchrun --nproc-per-node 8 -m longspan train contrastive --data data --init runs/mlm --out runs/con",
    )
    parser.add_argument("recipe", nargs="?", help="name of a recipe (longspan recipe lists them) or file.py:function")
    parser.add_argument("--data", help="folder of prepared sources")
    parser.add_argument("--init", help="model to start from: folder, finished run or hub id")
    parser.add_argument("--out", type=Path, help="run directory")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: optim.lr=1e-4"
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with this run; needs nothing else")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    parser.add_argument(
        "--parallel",
        choices=["ddp", "zero2", "zero3"],
        help="how several processes share the model, instead of what the recipe or the run says",
    )
    parser.add_argument(
        "--wandb",
        nargs="?",
        const="longspan",
        metavar="PROJECT",
        help="send metrics to Weights & Biases",
    )
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events into the run directory")


def _train(parsed: argparse.Namespace) -> int | None:
    if parsed.resume is None and not (parsed.recipe and parsed.data and parsed.out):
        raise usage_error("name a RECIPE, --data and --out; or --resume RUN", "train")
    if parsed.resume is not None and (parsed.recipe or parsed.data or parsed.init or parsed.out or parsed.set):
        raise usage_error("--resume takes everything from the run directory: leave the other arguments out", "train")
    changes = _changes(parsed.set)

    from longspan.recipes.catalog import build_recipe
    from longspan.train.loop import Interrupted, resume, start

    _check_device(parsed.device)
    options = {
        "device": parsed.device,
        "tensorboard": parsed.tensorboard,
        "wandb": parsed.wandb,
        "parallel": parsed.parallel,
        "measure_peak": True,
    }
    try:
        if parsed.resume is not None:
            run = resume(parsed.resume, **options)
        else:
            run = start(build_recipe(parsed.recipe, parsed.data, parsed.init, changes), parsed.out, **options)
    except Interrupted as stop:
        folder = parsed.resume or parsed.out
        print(f"longspan: {stop}; go on with: longspan train --resume {folder}", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"finished: {run.model}")
    return None


def _check_device(name: str | None) -> None:
    import torch

    if name is None:
        return
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # an unknown name, no such GPU, a torch without CUDA
        why = str(error).splitlines()[0]
        raise LongspanError(f"there is no device {name!r}: {why}", where="--device", remedy="use cpu or cuda") from None


def _changes(settings: list[str]) -> dict[str, str]:
    changes = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise usage_error(f"--set {setting}: write it as KEY=VALUE", "train")
        changes[key] = value
    return changes
