"""`longspan train`: train by a recipe, or go on with a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from longspan.cli.common import EXIT_INTERRUPTED, at_least_1, changed_settings, declare, usage_error
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
    parser.add_argument(
        "--eval-data",
        metavar="PLACE",
        help="measure retrieval on this while training: a folder of prepared sources, a set in BEIR's or MTEB's form, "
        "a file of pairs; the best checkpoint is kept",
    )
    parser.add_argument(
        "--eval-every", type=at_least_1, metavar="STEPS", help="so often (default: only after the last step)"
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
    given = (parsed.recipe, parsed.data, parsed.init, parsed.out, parsed.set, parsed.eval_data, parsed.eval_every)
    if parsed.resume is not None and any(given):
        raise usage_error("--resume takes everything from the run directory: leave the other arguments out", "train")
    changes = changed_settings(parsed.set, "train")

    from longspan.evaluate.in_loop import BEST, evaluators
    from longspan.recipes.catalog import build_recipe
    from longspan.train.checkpoint import checkpoints, read_best
    from longspan.train.loop import Interrupted, resume, start
    from longspan.train.run import Run

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
            begun = Run(parsed.resume)
            # A finished run needs its held-out data no more.
            measured = {} if begun.finished else evaluators(begun.config)
            run = resume(parsed.resume, evaluators=measured, **options)
        else:
            if parsed.eval_data is not None:
                changes = {"held_out.data": parsed.eval_data, "best_metric": BEST} | changes
            if parsed.eval_every is not None:
                changes = {"evaluate_every": str(parsed.eval_every)} | changes
            config = build_recipe(parsed.recipe, parsed.data, parsed.init, changes)
            run = start(config, parsed.out, evaluators=evaluators(config), **options)
    except Interrupted as stop:
        folder = parsed.resume or parsed.out
        print(f"longspan: {stop}; go on with: longspan train --resume {folder}", file=sys.stderr)
        return EXIT_INTERRUPTED
    kept = checkpoints(run.checkpoints)
    best = read_best(kept[-1]) if kept else None
    if best is not None:
        print(f"best: {best.metric} {best.value:.4f} after step {best.step}")
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
