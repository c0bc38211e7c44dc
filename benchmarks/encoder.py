"""Embedding on a CPU at the published width: `longspan bench encoder`, kept as a record of each thing it measures.

Peers that are not installed are said to be absent; for all of them: `pip install 'longspan[st]' onnx onnxruntime`.
"""

from __future__ import annotations

import argparse

from benchmarks.record import write_record
from longspan.bench import KINDS, PRECISIONS, bench_encoder


def main() -> None:
    """Measure and write a record of everything that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=KINDS, help=f"some of: {', '.join(KINDS)} (default: all)")
    parser.add_argument("--peers", nargs="+", default=PRECISIONS, help="precisions of peers (default: all)")
    parser.add_argument("--documents", type=int, default=16, help="how many long texts (default: 16)")
    parsed = parser.parse_args()
    for kind in parsed.kinds:
        measured = bench_encoder(
            kinds=[kind],
            peers=parsed.peers,
            num_documents=parsed.documents,
            say=lambda what: print(what, flush=True),
        )
        about = {name: measured[name] for name in ("model", "compiled_passes", "versions")}
        write_record(f"encoder-cpu-{kind}", about | measured["result"])


if __name__ == "__main__":
    main()
