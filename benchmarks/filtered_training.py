"""Does the consistency filter help training? The same small model on clean, noisy and filtered pairs, from one file.

Real pairs: questions and paragraphs (SQuAD), or another of the shared files. The last documents of the file (of SQuAD
whole articles) are held out with their queries. Among the others the documents of a part of the pairs (--noise) are
shuffled, and the product's own filter, with all-MiniLM-L6-v2 as its teacher, searches the noisy pairs for the bad ones.
Then the same model is trained from the same weights (random ones, or those of --init, "teacher" for the teacher's own)
on

- clean: the pairs before the noise,
- noisy: with it,
- filtered: what the filter has kept, for as many steps (so each pair is seen more often),
- filtered, equal epochs: for as many passes over the pairs (so fewer steps),

and has to find the held-out queries' documents among all held-out documents; so has the model before training. Each
seed has its own noise, weights and order of the batches, and within a seed all runs share them. A query's nDCG@10 is
averaged over the seeds before runs are compared by a paired test over the queries. The filter sees a sample of some
thousand pairs only, where the paper's sees a million, so --k may be larger than the paper's 2 (docs/curation.md).

    LONGSPAN_SHARED_DATA=DIR python -m benchmarks.filtered_training [--source NAME] [--noise PART] [--k K] [--init NAME]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import write_record
from longspan.curate.consistency import TOP_K, Rule, Teacher
from longspan.curate.filtering import KEPT, filter_source
from longspan.data.prepare import prepare
from longspan.data.readers import read_rows
from longspan.data.source import PairSource
from longspan.demo.teacher import teacher_folder
from longspan.embedder import Embedder
from longspan.evaluate.retrieval import RetrievalResult, RetrievalSet, evaluate_retrieval
from longspan.evaluate.significance import paired_test
from longspan.files import read_json, sha256_json, write_json, write_json_lines
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.objective.contrastive import ContrastiveConfig
from longspan.text.tasks import PREFIXES
from longspan.text.tokenizer import Tokenizer
from longspan.train.config import TrainConfig
from longspan.train.loop import start
from longspan.train.optim import OptimConfig
from longspan.train.schedule import ScheduleConfig

HELD_OUT = 0.15
"""Part of the distinct documents."""
VOCAB_SIZE = 8192
ENCODER = EncoderConfig(width=128, num_layers=2, num_heads=2, inner_width=256, trained_length=512, max_length=512)
OBJECTIVE = ContrastiveConfig(max_query_tokens=32, max_document_tokens=96, chunk_tokens=4096)
UNTRAINED, CLEAN, NOISY, FILTERED = "before training", "clean", "noisy", "filtered"
EQUAL_EPOCHS = "filtered, equal epochs"

Row = dict[str, Any]


def main() -> None:
    """Filter, train and evaluate for every seed, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LONGSPAN_SHARED_DATA"), help="shared data")
    parser.add_argument("--source", default="squad", help="file of pairs there (%(default)s)")
    parser.add_argument("--rows", type=int, help="pairs, the first (all)")
    parser.add_argument("--noise", type=float, default=0.3, help="part of the pairs that is shuffled (%(default)s)")
    parser.add_argument("--k", type=int, default=TOP_K, help="of the filter (%(default)s)")
    parser.add_argument("--init", help="model to start from, or: teacher (random weights)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of training (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs of a step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at the top (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="of them (%(default)s)")
    parser.add_argument("--epochs", type=float, default=3, help="passes over the noisy pairs (%(default)s)")
    parser.add_argument("--no-clean", action="store_true", help="leave out the run on the pairs before the noise")
    parser.add_argument("--work", type=Path, help="folder where vectors and finished seeds are kept: a run can go on")
    parsed = parser.parse_args()
    initial = str(teacher_folder()) if parsed.init == "teacher" else parsed.init
    if parsed.data is None:
        parser.error("name the folder of the small real data sets: --data, or LONGSPAN_SHARED_DATA")
    with tempfile.TemporaryDirectory() as folder:
        write_record("filtered-training-cpu", _measure(parsed, initial, Path(parsed.work or folder)))


def _measure(parsed: argparse.Namespace, initial: str | None, folder: Path) -> dict[str, Any]:
    file = Path(parsed.data) / "pairs" / f"{parsed.source}.jsonl.gz"
    rows = [row for _, row in read_rows(str(file))][: parsed.rows]
    training, held_out = _split([{"query": row["query"], "document": row["document"]} for row in rows])
    if initial:
        tokenizer = Embedder.load(initial).tokenizer
    else:
        tokenizer = Tokenizer.train((text for row in training for text in row.values()), VOCAB_SIZE)
    asked = {name: value for name, value in vars(parsed).items() if name not in ("seeds", "first_seed", "data", "work")}
    runs = []
    for seed in range(parsed.first_seed, parsed.first_seed + parsed.seeds):
        file = folder / sha256_json(asked)[:16] / f"seed-{seed}.json"
        if not file.is_file():
            with tempfile.TemporaryDirectory() as place:
                run = _one_seed(training, held_out, tokenizer, initial, seed, parsed, Path(place), folder / "vectors")
            write_json(file, run)
        runs.append(read_json(file, remedy="delete it"))
    values = {name: [run["arms"][name]["ndcg@10"] for run in runs] for name in runs[0]["arms"]}
    per_query = [run.pop("per_query") for run in runs]
    return {
        "source": parsed.source,
        "pairs": len(training),
        "noise": parsed.noise,
        "k": parsed.k,
        "held_out": {"queries": len(held_out.queries), "documents": len(held_out.corpus)},
        "teacher": "all-MiniLM-L6-v2, bfloat16",
        "start": parsed.init or "random weights",
        "encoder": None if initial else ENCODER.model_dump(include={"width", "num_layers", "num_heads", "inner_width"}),
        "batch_size": parsed.batch_size,
        "learning_rate": parsed.learning_rate,
        "precision": parsed.precision,
        "epochs": parsed.epochs,
        "ndcg@10": {name: _over_seeds(scores) for name, scores in values.items()},
        "against_noisy": _against_noisy(per_query),
        "runs": runs,
    }


def _one_seed(
    training: list[Row],
    held_out: RetrievalSet,
    tokenizer: Tokenizer,
    initial: str | None,
    seed: int,
    parsed: argparse.Namespace,
    place: Path,
    cache: Path,
) -> dict[str, Any]:
    sets = _training_sets(training, place, cache, seed, parsed)
    filtering = _quality(sets[NOISY], sets[FILTERED])
    steps = {name: round(parsed.epochs * len(training) / parsed.batch_size) for name in sets}
    sets[EQUAL_EPOCHS] = sets[FILTERED]
    steps[EQUAL_EPOCHS] = round(parsed.epochs * len(sets[FILTERED]) / parsed.batch_size)
    found = {UNTRAINED: _evaluate(held_out, _untrained(tokenizer, initial, seed))}
    arms: dict[str, dict[str, Any]] = {UNTRAINED: _metrics(found[UNTRAINED])}
    for name, pairs in sets.items():
        began = time.perf_counter()
        config = _config(parsed, initial, steps[name], seed)
        model = _train(pairs, tokenizer, place / name.replace(", ", "-"), config)
        seconds = time.perf_counter() - began
        found[name] = _evaluate(held_out, model)
        arms[name] = {"pairs": len(pairs), "steps": steps[name], "seconds": round(seconds, 1)} | _metrics(found[name])
        print(seed, name, arms[name], flush=True)
    per_query = {name: result.per_query for name, result in found.items()}
    return {"seed": seed, "filter": filtering, "arms": arms, "per_query": per_query}


def _split(rows: Sequence[Row]) -> tuple[list[Row], RetrievalSet]:
    """Pairs to train on, and queries whose documents are in none of them."""
    documents = list(dict.fromkeys(row["document"] for row in rows))
    corpus = {text: str(number) for number, text in enumerate(documents[-round(HELD_OUT * len(documents)) :])}
    held_out = {f"q{number}": row for number, row in enumerate(rows) if row["document"] in corpus}
    return [row for row in rows if row["document"] not in corpus], RetrievalSet(
        name="held out",
        queries={name: row["query"] for name, row in held_out.items()},
        corpus={name: text for text, name in corpus.items()},
        qrels={name: {corpus[row["document"]]: 1.0} for name, row in held_out.items()},
    )


def _training_sets(
    clean: list[Row], folder: Path, cache: Path, seed: int, parsed: argparse.Namespace
) -> dict[str, list[Row]]:
    noisy = _with_noise(clean, parsed.noise, seed)
    write_json_lines(folder / "noisy.jsonl", noisy)
    source = PairSource(name="noisy", files=(str(folder / "noisy.jsonl"),))
    filter_source(
        source,
        Teacher(Embedder.load(teacher_folder(), precision="bfloat16")),
        folder / "filter",
        rule=Rule(parsed.k),
        seed=seed,
        cache=cache,
    )
    filtered = [row for _, row in read_rows(str(folder / "filter" / KEPT))]
    sets = {CLEAN: clean, NOISY: noisy, FILTERED: filtered}
    return {name: sets[name] for name in sets if name != CLEAN or not parsed.no_clean}


def _with_noise(clean: list[Row], noise: float, seed: int) -> list[Row]:
    """Shuffle the documents of a part of the pairs among themselves; a pair that gets its own text back stays good."""
    generator = np.random.default_rng(seed)
    moved = generator.permutation(len(clean))[: round(noise * len(clean))]
    documents = [row["document"] for row in clean]
    for place, origin in zip(moved, generator.permutation(moved), strict=True):
        documents[place] = clean[origin]["document"]
    return [
        {"query": row["query"], "document": document, "bad": document != row["document"]}
        for row, document in zip(clean, documents, strict=True)
    ]


def _quality(noisy: list[Row], filtered: list[Row]) -> dict[str, float]:
    bad, bad_left = (sum(row["bad"] for row in rows) for rows in (noisy, filtered))
    return {
        "kept": len(filtered),
        "good_kept": round((len(filtered) - bad_left) / (len(noisy) - bad), 4),
        "bad_dropped": round(1 - bad_left / bad, 4),
    }


def _untrained(tokenizer: Tokenizer, initial: str | None, seed: int) -> Embedder:
    if initial:
        return Embedder.load(initial)
    encoder = Encoder(ENCODER.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    initialize(encoder, seed)
    return Embedder(encoder, tokenizer, EmbeddingConfig(prefixes=PREFIXES, max_length=ENCODER.max_length))


def _config(parsed: argparse.Namespace, initial: str | None, num_steps: int, seed: int) -> TrainConfig:
    return TrainConfig(
        recipe="filtered-training",
        data="",
        init=initial,
        encoder=None if initial else ENCODER,
        objective=OBJECTIVE,
        batch_size=parsed.batch_size,
        max_steps=num_steps,
        optim=OptimConfig(lr=parsed.learning_rate, clip_norm=1.0),
        schedule=ScheduleConfig(kind="linear", warmup_fraction=0.06),
        precision=parsed.precision,
        prefixes=Embedder.load(initial).config.prefixes if initial else PREFIXES,
        seed=seed,
        checkpoint_every=num_steps,
    )


def _train(pairs: list[Row], tokenizer: Tokenizer, folder: Path, config: TrainConfig) -> Embedder:
    write_json_lines(folder / "pairs.jsonl", pairs)
    prepare([PairSource(name="pairs", files=(str(folder / "pairs.jsonl"),))], folder / "data", tokenizer)
    config = config.model_copy(update={"data": str(folder / "data")})
    return Embedder.load(start(config, folder / "run").folder)


def _evaluate(held_out: RetrievalSet, model: Embedder) -> RetrievalResult:
    length = OBJECTIVE.max_document_tokens
    return evaluate_retrieval(
        held_out, lambda texts, *, task: model.embed(texts, task=task, max_length=length, truncate=True)
    )


def _metrics(result: RetrievalResult) -> dict[str, Any]:
    return {metric: round(result.metrics[metric], 4) for metric in ("ndcg@10", "recall@1")}


def _against_noisy(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Each arm beside the run on noisy pairs: a paired test over the queries, of their mean nDCG@10 over the seeds."""

    def means(name: str) -> dict[str, float]:
        return {query: statistics.mean(run[name][query] for run in runs) for query in runs[0][name]}

    noisy = means(NOISY)
    return {name: paired_test(means(name), noisy).as_json() for name in runs[0] if name != NOISY}


def _over_seeds(values: list[float]) -> dict[str, Any]:
    return {"mean": round(statistics.mean(values), 4), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    main()
