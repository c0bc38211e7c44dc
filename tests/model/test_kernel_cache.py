"""oneDNN keeps few kernels, unless the user says otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longspan.model.kernel_cache import KERNELS, SETTINGS


@pytest.mark.parametrize("module", ["longspan.embedder", "longspan.train.loop", "longspan.model.prepacked"])
def test_whatever_multiplies_bounds_the_caches_first(module: str) -> None:
    assert _settings_after(f"import {module}", {}) == dict.fromkeys(SETTINGS, str(KERNELS))


def test_what_the_user_says_stays() -> None:
    asked = {SETTINGS[0]: "7"}
    assert _settings_after("import longspan.embedder", asked) == {SETTINGS[0]: "7", SETTINGS[1]: str(KERNELS)}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_kernels_beyond_the_bound_are_let_go() -> None:
    # Kernels of 400 further numbers of rows would take twice the room of the first 200.
    code = """
import json, random, torch
from longspan.model.prepacked import FloatLinear
def resident():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024
torch.set_num_threads(2)
linear, x = FloatLinear(torch.zeros(384, 384), None), torch.zeros(2048, 384)
def grown(rows):
    before = resident()
    for count in rows:
        linear(x[:count])
    return resident() - before
with torch.inference_mode():
    linear(x)
    counts = random.Random(0).sample(range(16, 2048), 600)
    print(json.dumps([grown(counts[:200]), grown(counts[200:])]))
"""
    first, later = json.loads(_run(code, {}))
    assert later < max(first, 50.0), (first, later)


def _settings_after(code: str, asked: dict[str, str]) -> dict[str, str | None]:
    code = f"{code}\nimport json, os\nprint(json.dumps({{name: os.environ.get(name) for name in {SETTINGS!r}}}))"
    return json.loads(_run(code, asked))


def _run(code: str, asked: dict[str, str]) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | asked
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
