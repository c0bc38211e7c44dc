"""What adapting gives: all-MiniLM-L6-v2 on a corpus of its own, measured on what was held out; guard: Cranfield.

    LONGSPAN_SHARED_DATA=DIR python -m benchmarks.adapt [--corpus scifact] [--set epochs=3] [--blend 0.5] [--keep DIR]

`documentation`: the demo's pairs of summaries with docstrings and with code, measured on modules held out whole.
`scifact`: its training claims, measured on its test claims. Documents that the test asks for are in training neither as
answers nor as negatives (see `longspan.adapt.hold_out`). The folder has `mteb/scifact` and `retrieval/cranfield` in
BEIR's form. `--words` and `--documents` make it a quick try, whose figures are not those of the sets.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.record import write_record
from longspan.adapt.report import write_report
from longspan.adapt.road import Adaptation, AdaptConfig
from longspan.cli.common import changed_settings
from longspan.data.judged import beir_files, read_judgements
from longspan.data.readers import read_rows
from longspan.demo.collect import STANDARD, collect
from longspan.demo.teacher import teacher_folder
from longspan.files import write_json_lines, write_text
from longspan.stages import run_stages

SCIFACT, CRANFIELD = "mteb/scifact", "retrieval/cranfield"


def main() -> None:
    """Adapt, measure, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("LONGSPAN_SHARED_DATA"), help="shared data")
    parser.add_argument("--corpus", choices=("documentation", "scifact"), default="documentation")
    parser.add_argument("--pairs", type=int, default=1000, help="of documentation and of code (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--blend", type=float, help="part of the trained weights")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--words", type=int, help="cut documents after so many words")
    parser.add_argument("--documents", type=int, help="so many documents beside those that are judged")
    parser.add_argument("--keep", type=Path, help="folder for everything; a try that was interrupted goes on")
    parsed = parser.parse_args()
    if parsed.data is None:
        parser.error("name the folder of the small real data sets: --data, or LONGSPAN_SHARED_DATA")
    with tempfile.TemporaryDirectory() as folder:
        _run(parsed, parsed.keep or Path(folder))


def _run(parsed: argparse.Namespace, out: Path) -> None:
    places = {name: parsed.data / name for name in (SCIFACT, CRANFIELD)}
    small = parsed.words is not None or parsed.documents is not None
    if small:
        for name, place in places.items():
            places[name] = _smaller(place, out / "sets" / place.name, parsed.words, parsed.documents)
    if parsed.corpus == "scifact":
        data = {"data": str(places[SCIFACT]), "split": "train", "held_out": str(places[SCIFACT])}
    else:
        data = _documentation(out / "documentation", parsed.pairs)
    values: dict[str, Any] = data | {
        "model": str(teacher_folder()),
        "guard": str(places[CRANFIELD]),
        "blend": parsed.blend,
        "precision": parsed.precision,
        "training": changed_settings(parsed.set, "adapt"),
        "seed": parsed.seed,
    }
    console, began = Console(), time.monotonic()
    adaptation = Adaptation(AdaptConfig.parse(values, where="the command line"), out / "adapted", console)
    done = run_stages(adaptation.stages(), adaptation.out, console)
    write_report(done, adaptation, console)
    seconds = time.monotonic() - began
    results = {name: stage.result for name, stage in done.items()}
    name = f"adapt-{parsed.corpus}" + ("-try" if small else "")
    stages = {stage: one.seconds for stage, one in done.items()}
    write_record(name, {"seconds": round(seconds, 1), "seconds_by_stage": stages, "results": results})


def _documentation(folder: Path, num_pairs: int) -> dict[str, str]:
    if not (folder / "report.json").is_file():
        sizes = dataclasses.replace(STANDARD, min_pairs=0, min_long=0)
        collect(folder, max_pairs={"docstring": num_pairs, "code": num_pairs}, sizes=sizes)
    return {"data": str(folder / "pairs"), "held_out": str(folder / "heldout")}


def _smaller(place: Path, folder: Path, words: int | None, documents: int | None) -> Path:
    """A retrieval set with fewer and shorter documents, in the same form."""
    judged: set[str] = set()
    files = beir_files(str(place), "test")
    for split in sorted(path.name.partition(".")[0] for path in (place / "qrels").iterdir()):
        judgements = list(read_judgements(beir_files(str(place), split).qrels))
        judged |= {one.document for one in judgements}
        lines = [f"{one.query}\t{one.document}\t{one.score:g}\n" for one in judgements]
        write_text(folder / "qrels" / f"{split}.tsv", "query-id\tcorpus-id\tscore\n" + "".join(lines))
    rows = [row for _, row in read_rows(files.corpus[0])]
    others = [row["_id"] for row in rows if row["_id"] not in judged]
    kept = judged | set(others[:documents])
    short = [row | {"text": " ".join(row["text"].split()[:words])} for row in rows if row["_id"] in kept]
    write_json_lines(folder / "corpus.jsonl", short)
    write_json_lines(folder / "queries.jsonl", (row for _, row in read_rows(files.queries[0])))
    return folder


if __name__ == "__main__":
    main()
