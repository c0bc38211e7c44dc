"""`longspan plan` beside what then happens, on this machine: memory of a chunk, and time of a run.

Memory: a fresh process measures how much its largest resident size grows while one chunk goes through an encoder and
back; the forecast says how much the chunk needs. Time: the forecast of a short run (`--hardware here`: it tries one
chunk) and the seconds of its steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import write_record

SHAPES = ((6, 384), (2, 768))
CHUNKS = (4096, 16384)
LENGTH = 512
STEPS = 12
SKIPPED = 2
"""Steps that are not counted: the first ones of a process are slower."""

_PROBE = """
import json, sys
import numpy as np, torch
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.text.packed import Packed

layers, width, tokens, length = map(int, sys.argv[1:])
shape = EncoderConfig(
    vocab_size=1024, width=width, num_layers=layers, num_heads=width // 64, inner_width=4 * width
)
encoder = Encoder(shape)
initialize(encoder, 0)

def step(count):
    draw = np.random.default_rng(0)
    encoder(Packed.of([draw.integers(0, 1024, length) for _ in range(count)])).sum().backward()

def resident(name):
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(name))

step(1)
before = resident("VmRSS")
with open("/proc/self/clear_refs", "w") as stream:
    stream.write("5")
step(tokens // length)
print(json.dumps(resident("VmHWM") - before))
"""


def main() -> None:
    """Measure, and write a record."""
    with tempfile.TemporaryDirectory() as folder:
        write_record(
            "forecast-cpu", {"memory": [_memory(*s, t) for s in SHAPES for t in CHUNKS], "time": _time(folder)}
        )


def _memory(num_layers: int, width: int, num_tokens: int) -> dict[str, Any]:
    from longspan.model.config import EncoderConfig
    from longspan.train.cost import activation_bytes

    shape = EncoderConfig(num_layers=num_layers, width=width, num_heads=width // 64, inner_width=4 * width)
    forecast = round(num_tokens * activation_bytes(shape, "fp32"))
    arguments = [str(value) for value in (num_layers, width, num_tokens, LENGTH)]
    # What is freed goes back to the system at once, so that the resident size is what tensors need.
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", _PROBE, *arguments]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=settings).stdout
    measured = json.loads(out)
    return {
        "layers": num_layers,
        "width": width,
        "tokens": num_tokens,
        "forecast_bytes": forecast,
        "measured_bytes": measured,
        "forecast_to_measured": round(forecast / measured, 3),
    }


def _time(folder: str) -> dict[str, Any]:
    from longspan.data.prepare import prepare
    from longspan.data.source import PairSource
    from longspan.demo.collect import collect
    from longspan.recipes.demo import demo_contrastive
    from longspan.text.tokenizer import Tokenizer
    from longspan.train.forecast import forecast
    from longspan.train.loop import start

    root = Path(folder)
    collect(root / "collect")
    file = root / "collect" / "pairs" / "docstring.jsonl"
    texts = [json.loads(line)["document"] for line in file.read_text("utf-8").splitlines()]
    prepare([PairSource(name="docstring", files=(str(file),))], root / "data", Tokenizer.train(texts, 8192))
    recipe = demo_contrastive(str(root / "data"), None)
    config = recipe.model_copy(update={"max_steps": STEPS, "log_every": 1, "checkpoint_every": STEPS})
    told = forecast(config, None, data=root / "data", utilization=1, otherwise={})
    run = start(config, root / "run", device="cpu")
    steps = run.logged()[SKIPPED:]
    measured = sum(step["seconds"] for step in steps) / len(steps)
    return {
        "steps": len(steps),
        "forecast_seconds_of_a_step": round(told.step_seconds, 3),
        "measured_seconds_of_a_step": [round(step["seconds"], 3) for step in steps],
        "forecast_tokens_of_a_step": round(told.work.num_tokens),
        "measured_tokens_of_a_step": [step["tokens"] for step in steps],
        "forecast_to_measured": round(told.step_seconds / measured, 3),
    }


if __name__ == "__main__":
    main()
