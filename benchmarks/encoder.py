"""Embedding on a CPU at the published width: `longspan bench encoder`, kept as a record of each thing it measures.

Peers that are not installed are said to be absent; for all of them: `pip install 'longspan[st]' onnx onnxruntime`.
"""

from __future__ import annotations

import sys

from benchmarks.record import write_record
from longspan.bench import KINDS, bench_encoder


def main() -> None:
    """Measure and write a record: of the things of `KINDS` that are named, or of each."""
    for kind in sys.argv[1:] or KINDS:
        measured = bench_encoder(kinds=[kind], say=lambda what: print(what, flush=True))
        about = {name: measured[name] for name in ("model", "compiled_passes")}
        write_record(f"encoder-cpu-{kind}", about | measured["result"])


if __name__ == "__main__":
    main()
