"""What a run measures itself on: prepared sources and retrieval sets, from the command line to the page of the run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longspan.cli import main
from longspan.data.prepare import prepare
from longspan.data.source import PairSource
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.corpus import load_retrieval_set
from longspan.evaluate.heldout import HeldOutPairs, quick_benchmark
from longspan.evaluate.in_loop import BEST, evaluators
from longspan.evaluate.retrieval import evaluate_retrieval
from longspan.model.config import EmbeddingConfig
from longspan.model.pooling import PooledEncoder
from longspan.objective.world import Alone
from longspan.train import checkpoint
from longspan.train.config import TrainConfig
from longspan.train.loop import start
from longspan.train.run import Run
from tests.evaluate.test_heldout import Table, first_tokens
from tests.train import folders, tiny

PLAIN = EmbeddingConfig(normalize=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared pairs to train on; not to be changed."""
    return tiny.prepare_pairs(tmp_path_factory.mktemp("pairs"), num_pairs=24)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other pairs, of the same two sources."""
    return tiny.prepare_pairs(tmp_path_factory.mktemp("held-out"), num_pairs=20, seed=5)


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries with several graded answers."""
    folder = tmp_path_factory.mktemp("beir") / "small"
    (folder / "qrels").mkdir(parents=True)
    words = [f"{a} {b}" for a in tiny.WORDS[:12] for b in tiny.WORDS[12:14]]
    corpus = [json.dumps({"_id": f"d{n}", "text": text}) for n, text in enumerate(words)]
    queries = [json.dumps({"_id": f"q{n}", "text": text.split()[0]}) for n, text in enumerate(words[:10])]
    judged = [f"q{n}\td{(7 * n + k) % len(words)}\t{k}" for n in range(10) for k in range(3)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus), "utf-8")
    (folder / "queries.jsonl").write_text("\n".join(queries), "utf-8")
    (folder / "qrels/dev.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]), "utf-8")
    return folder


def _config(data: Path, place: Path, **changes: Any) -> TrainConfig:
    return tiny.contrastive_config(data, **{"held_out.data": str(place), "best_metric": BEST, **changes})


def test_prepared_sources_are_ranked_each_by_itself_and_their_mean(data: Path, held_out: Path, tmp_path: Path) -> None:
    config = _config(data, held_out, evaluate_every=3)
    run = start(config, tmp_path / "run", evaluators=evaluators(config))
    rows = [row for row in run.logged() if BEST in row]
    assert [row["step"] for row in rows] == [3, 6]
    for row in rows:
        for measure in ("ndcg@10", "recall@1"):
            both = [row[f"eval/{name}/{measure}"] for name in ("first", "second")]
            assert row[f"eval/mean/{measure}"] == pytest.approx(sum(both) / 2)
    # The figures of the finished model on the same texts, through the one way from text to vector.
    embedder = Embedder.load(str(run.model))
    texts = [json.loads(line) for line in (held_out.parent / "first.jsonl").read_text().splitlines()]
    pairs = HeldOutPairs.of(
        [(" ".join(row["query"].split()), row["document"]) for row in texts],
        embedder.tokenizer,
        embedder.config,
        max_length=20,
    )
    again = quick_benchmark(embedder.model, pairs, embedder.config)
    assert again == pytest.approx({name: rows[-1][f"eval/first/{name}"] for name in again})


def test_a_retrieval_set_gives_what_longspan_evaluate_gives(data: Path, beir: Path) -> None:
    config = _config(data, beir, **{"held_out.split": "dev"})
    stage_encoder = tiny.contrastive_config(data)
    run_model = PooledEncoder(_encoder(stage_encoder), "mean")
    (name, measure), *_ = evaluators(config).items()
    assert name == "small"
    figures = measure(run_model, Alone())
    embedder = Embedder(
        run_model.encoder,
        tiny.make_tokenizer(beir.parent),
        EmbeddingConfig(pooling="mean", max_length=64, prefixes=config.prefixes),
    )
    result = evaluate_retrieval(load_retrieval_set(beir, split="dev"), embedder.embed, k_values=[1])
    assert 0.1 < figures["ndcg@10"] < 0.9
    assert figures == pytest.approx({name: result.metrics[name] for name in figures})


def _encoder(config: TrainConfig) -> Any:
    from longspan.model.encoder import Encoder, initialize

    assert config.encoder is not None
    encoder = Encoder(config.encoder.model_copy(update={"vocab_size": len(tiny.WORDS) + 5}))
    initialize(encoder, 1)
    return encoder


def test_several_answers_by_hand() -> None:
    # Document 1 (gain 2) comes first, document 0 (gain 1) ties with document 2, which does not answer.
    model = Table([[1.0, 0.0], [0.5, 0.0], [0.9, 0.0]])
    pairs = HeldOutPairs(first_tokens(0), first_tokens(1, 2, 1), ({0: 1.0, 1: 2.0},))
    figures = quick_benchmark(model, pairs, PLAIN)
    assert figures["recall@1"] == 0.5
    assert figures["recall@10"] == figures["mrr@10"] == 1.0
    assert figures["ndcg@10"] == pytest.approx((2 + 1 / 2) / (2 + 1 / np.log2(3)))


def test_the_command_line_measures_keeps_the_best_and_goes_on(
    data: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from tests.train.tiny import contrastive_config\n\n"
        "def tiny(data, init=None):\n    return contrastive_config(data)\n",
        "utf-8",
    )
    values = iter([0.2, 0.9, 0.4])
    monkeypatch.setattr(
        "longspan.evaluate.in_loop.quick_benchmark",
        lambda *_, **__: {"ndcg@10": next(values), "recall@1": 0.0},
    )
    # One source is held out here, so that a value stands for a step.
    one = tmp_path / "one"
    source = PairSource(name="other", files=(str(held_out.parent / "first.jsonl"),))
    prepare([source], one, tiny.make_tokenizer(tmp_path))
    asked = ["train", f"{recipe}:tiny", "--data", str(data), "--out", str(tmp_path / "run")]
    asked += ["--eval-data", str(one), "--eval-every", "2"]
    asked += ["--set", "published=best", "--set", "keep_checkpoints=1"]
    assert main(asked) in (None, 0)
    assert "best: eval/mean/ndcg@10 0.9000 after step 4" in capsys.readouterr().out
    run = Run(tmp_path / "run")
    assert run.config.held_out.data == str(one)
    best = checkpoint.best_checkpoint(run.checkpoints)
    assert best is not None
    assert best.name == "step-00000004"
    # Published are the best weights, not the last.
    weights = checkpoint.read_safetensors(best / checkpoint.MODEL)
    published = Embedder.load(str(run.model)).model.encoder.state_dict()
    assert all(torch.equal(weights[f"encoder.{name}"], tensor) for name, tensor in published.items())
    assert main(["train", "--resume", str(run.folder)]) in (None, 0)
    assert main(["report", str(run.folder), "--out", str(tmp_path / "page.html")]) in (None, 0)
    page = (tmp_path / "page.html").read_text()
    assert "eval/other/ndcg@10" in page
    assert "eval/mean/ndcg@10, at the end 0.4" in page


def test_a_run_that_was_stopped_is_measured_as_before(data: Path, held_out: Path, tmp_path: Path) -> None:
    config = _config(data, held_out, evaluate_every=2)
    whole = start(config, tmp_path / "whole", evaluators=evaluators(config))
    (stopped := tmp_path / "stopped").mkdir()
    failing = evaluators(config)
    real, calls = failing["mean"], []

    def fail(model: Any, world: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return real(model, world)

    with pytest.raises(ZeroDivisionError):
        start(config, stopped, evaluators={**failing, "mean": fail})
    assert main(["train", "--resume", str(stopped)]) in (None, 0)
    assert folders.differing(stopped, whole.folder) == []


def test_what_cannot_be_measured_is_refused(data: Path, held_out: Path, tmp_path: Path) -> None:
    with pytest.raises(LongspanError, match=r"'first' is not held out"):
        evaluators(_config(data, data))
    vocabulary = tiny.make_tokenizer(tmp_path), tmp_path / "vocab.txt"
    vocabulary[1].write_text(vocabulary[1].read_text("utf-8") + "\nzebra", "utf-8")
    source = PairSource(name="other", files=(str(held_out.parent / "first.jsonl"),))
    prepare([source], tmp_path / "others", type(vocabulary[0]).load(vocabulary[1]))
    with pytest.raises(LongspanError, match="another tokenizer"):
        evaluators(_config(data, tmp_path / "others"))
    with pytest.raises(LongspanError, match="a run of mlm trains no vectors"):
        evaluators(tiny.masked_config(data, **{"held_out.data": str(held_out)}))
    assert evaluators(tiny.contrastive_config(data)) == {}
