"""Masked language modelling on packed rows: attention across documents (the paper) beside attention inside them (ours).

Two runs that differ in nothing else: same documents, rows, masks, seed and steps. Each model is then asked about
held-out documents both ways, so that a model trained one way is also seen used the other way; text is embedded one
document at a time, so "inside" is what counts in use. Texts are the documentation of the installed packages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.record import write_record
from longspan.data.collate import MaskedCollator
from longspan.data.dataset import Dataset
from longspan.data.packing import PackedRows
from longspan.data.plan import PlannedBatch
from longspan.data.prepare import prepare
from longspan.data.source import TextSource
from longspan.demo.collect import collect
from longspan.model.folder import find_model
from longspan.model.heads import MaskedLanguageModel
from longspan.model.hub import load_masked_model
from longspan.objective.mlm import MaskedConfig
from longspan.recipes.demo import demo_mlm
from longspan.text.tokenizer import Tokenizer
from longspan.train.loop import start

HELD_OUT = 0.1
ROW_LENGTH = 2048
ROWS_PER_STEP = 2
WAYS = {"across": False, "inside": True}


def main() -> None:
    """Train both ways for every seed, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = _measure(Path(folder), parsed.steps, parsed.seeds)
    write_record("mlm-packing-cpu", result)


def _measure(root: Path, steps: int, seeds: int) -> dict[str, object]:
    collect(root)
    rows = [json.loads(line) for line in (root / "text" / "python.jsonl").read_text("utf-8").splitlines()]
    tokenizer = Tokenizer.train((row["text"] for row in rows), 8192)
    for name, held_out in (("train", False), ("heldout", True)):
        chosen = [row for row in rows if _is_held_out(row["title"]) == held_out]
        file = root / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in chosen), "utf-8")
        prepare([TextSource(name=name, files=(str(file),))], root / "data", tokenizer)
    runs = []
    for seed in range(seeds):
        for way, within in WAYS.items():
            began = time.perf_counter()
            model = _train(root, root / f"{way}-{seed}", within=within, steps=steps, seed=seed)
            seconds = round(time.perf_counter() - began, 1)
            losses = {asked: _held_out_loss(model, root, within=inside) for asked, inside in WAYS.items()}
            runs.append({"trained": way, "seed": seed, "seconds": seconds, "held_out_loss_asked": losses})
            print(runs[-1], flush=True)
    dataset = Dataset(root / "data", "text", only=("train",))
    manifest = dataset.sources[0].manifest
    lengths = dataset.sources[0].ids("text").lengths()
    return {
        "documents": manifest.num_rows,
        "tokens": int(lengths.sum()),
        "median_tokens_of_a_document": float(sorted(lengths)[len(lengths) // 2]),
        "row_length": ROW_LENGTH,
        "steps": steps,
        "tokens_per_step": ROW_LENGTH * ROWS_PER_STEP,
        "runs": runs,
    }


def _is_held_out(title: str) -> bool:
    return int(hashlib.sha256(title.encode()).hexdigest()[:8], 16) < HELD_OUT * 16**8


def _train(root: Path, out: Path, *, within: bool, steps: int, seed: int) -> MaskedLanguageModel:
    recipe = demo_mlm(str(root / "data"))
    assert isinstance(recipe.objective, MaskedConfig)
    config = recipe.model_copy(
        update={
            "sources": ("train",),
            "objective": recipe.objective.model_copy(update={"row_length": ROW_LENGTH, "within_documents": within}),
            "batch_size": ROWS_PER_STEP,
            "max_steps": steps,
            "seed": seed,
            "log_every": 50,
            "checkpoint_every": steps,
        }
    )
    return load_masked_model(find_model(start(config, out).folder))


def _held_out_loss(model: MaskedLanguageModel, root: Path, *, within: bool) -> float:
    dataset = Dataset(root / "data", "text", only=("heldout",))
    tokenizer = dataset.tokenizer
    columns = [source.ids("text") for source in dataset.sources]
    rows = PackedRows(columns, ROW_LENGTH, tokenizer.cls_id, tokenizer.sep_id)
    collate = MaskedCollator(dataset, rows, mask_rate=0.3, within_documents=within, seed=99)
    loss_sum, count = 0.0, 0
    for number in range(rows.num_rows):
        batch = collate(0, PlannedBatch(0, torch.tensor([number]).numpy()), slice(None))
        [row], [(positions_M, labels_M)] = batch.rows, batch.targets
        with torch.no_grad():
            loss, _ = model(row, positions_M, labels_M)
        loss_sum, count = loss_sum + float(loss), count + len(labels_M)
    return round(loss_sum / count, 4)


if __name__ == "__main__":
    main()
