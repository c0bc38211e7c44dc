"""Embedding on a CPU at the published width: `longspan bench encoder`, kept as a record.

Peers that are not installed are said to be absent; for all of them: `pip install 'longspan[st]' onnx onnxruntime`.
"""

from __future__ import annotations

from benchmarks.record import write_record
from longspan.bench import bench_encoder


def main() -> None:
    """Measure and write a record."""
    measured = bench_encoder(say=print)
    write_record("encoder-cpu", {"model": measured["model"]} | measured["result"])


if __name__ == "__main__":
    main()
