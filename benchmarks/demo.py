"""The whole demo as a stranger runs it: its table, its time and its memory, kept as a record.

`python -m benchmarks.demo` runs it in a folder that is deleted afterwards.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import write_record


def main() -> None:
    """Run the demo and write a record."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "longspan", "demo", "--out", str(out)], check=True)
        seconds = time.perf_counter() - began
        results = json.loads((out / "results.json").read_text("utf-8"))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    whole_process = {"seconds": round(seconds, 1), "peak_memory_gib": round(peak / 2**20, 2)}
    write_record("demo", {"whole_process": whole_process} | results)


if __name__ == "__main__":
    main()
