"""LoCo of a rotary model: how positions reach past the trained length, by how much of a document is read.

    python -m benchmarks.loco MODEL DATA [--tasks qmsum] [--lengths 2048 4096 8192] [--out FOLDER]

DATA holds the sets as `longspan evaluate --suite loco` reads them. Every length is measured with dynamic NTK (the
paper's), no scaling, position interpolation and static NTK. QMSum has 35 documents and 272 queries: on two cores about
15 minutes for a model of 10 million parameters at these lengths, and 3 hours for one of 137 million; on a GPU a minute.
Killed, it goes on from --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.record import write_record
from longspan.embedder import Embedder
from longspan.evaluate.loco import LENGTHS, SCALINGS, run_loco
from longspan.evaluate.loco_sets import load_loco
from longspan.progress import Bars


def main() -> None:
    """Measure, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a published model, or a finished run")
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["qmsum"])
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--out", type=Path, default=Path("loco-results"))
    parsed = parser.parse_args()
    embedder, sets = Embedder.load(parsed.model), load_loco(parsed.data, parsed.tasks)
    with Bars("loco") as bars:
        results = run_loco(embedder, sets, parsed.out, lengths=parsed.lengths, scalings=SCALINGS, progress=bars.show)
    config = embedder.model.encoder.config.model_dump()
    write_record("loco", {"encoder": config, **results.as_json()})


if __name__ == "__main__":
    main()
