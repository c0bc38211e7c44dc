"""LoCo: scores by length and scaling, kept measurement by measurement."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.loco import SCALINGS, SUMMARY, LocoResults, LocoScore, rescaled, run_loco
from longspan.evaluate.loco_sets import V0, load_loco
from longspan.evaluate.retrieval import RetrievalSet, evaluate_retrieval
from longspan.model.config import EmbeddingConfig

WORDS = "quick brown fox jumps over lazy dogs naïve café area".split()
LONG = "the fox jumps over lazy dogs " * 12


@pytest.fixture(scope="module")
def one_set():
    corpus = {f"d{n}": f"{LONG} {word}" for n, word in enumerate(WORDS)} | {"short": "fox"}
    return RetrievalSet("animals", {f"q{n}": w for n, w in enumerate(WORDS)}, corpus, {
        f"q{n}": {f"d{n}": 1.0} for n in range(len(WORDS))
    })  # fmt: skip


def vectors(embedder: Embedder, length: int) -> np.ndarray:
    return embedder.embed([LONG], task="search_query", max_length=length, truncate=True)


def test_every_scaling_is_the_config_that_says_so(small_embedder, small_encoder, small_tokenizer):
    # 32 tokens were trained, 128 can be read: at 64, L' / L is 2 and not the config's 4.
    for scaling in SCALINGS:
        factor = {"rope_factor": 2.0} if scaling in ("linear", "ntk") else {}
        encoder = small_encoder(rope_scaling=scaling, **factor)
        expected = Embedder(encoder, small_tokenizer, small_embedder.config, device="cpu")
        ours = rescaled(small_embedder, scaling, 64)
        np.testing.assert_allclose(vectors(ours, 64), vectors(expected, 64), atol=2e-6)
        assert ours.fingerprint == expected.fingerprint
    assert small_embedder.model.encoder.config.rope_scaling == "dynamic"


def test_up_to_the_trained_length_nothing_is_stretched(small_embedder):
    plain = vectors(small_embedder, 32)
    for scaling in SCALINGS:
        np.testing.assert_array_equal(vectors(rescaled(small_embedder, scaling, 32), 32), plain)


def test_scores_are_those_of_retrieval_and_are_kept(small_embedder, one_set, tmp_path, monkeypatch):
    told = []
    results = run_loco(
        small_embedder, [one_set], tmp_path, lengths=[32, 128], scalings=["dynamic", "none"],
        progress=lambda *what: told.append(what),
    )  # fmt: skip
    assert [(s.max_length, s.rope_scaling) for s in results.scores] == [
        (32, "dynamic"), (32, "none"), (128, "dynamic"), (128, "none"),
    ]  # fmt: skip

    def embed(texts, *, task):
        return small_embedder.embed(texts, task=task, max_length=128, truncate=True)

    expected = evaluate_retrieval(one_set, embed)
    assert results.scores[2].score == expected.metrics["ndcg@10"]
    assert results.scores[2].interval == expected.interval
    assert results.scores[2].cut == 0
    assert results.scores[0].cut == len(WORDS)
    assert results.scores[0].score == results.scores[1].score
    assert told[-1][1] == told[-1][2] == len(one_set.queries) + len(one_set.corpus)
    assert json.loads((tmp_path / SUMMARY).read_text()) == results.as_json() | {
        "scores": [vars(score) | {"interval": list(score.interval)} for score in results.scores]
    }

    def refuse(*arguments, **options):
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", refuse)
        again = run_loco(small_embedder, [one_set], tmp_path, lengths=[32, 128], scalings=["dynamic", "none"])
        assert again == results
        other = RetrievalSet(one_set.name, one_set.queries, one_set.corpus | {"new": "text"}, one_set.qrels)
        with pytest.raises(AssertionError, match="measured again"):
            run_loco(small_embedder, [other], tmp_path, lengths=[32])


def test_a_crash_in_the_middle_loses_nothing(small_embedder, one_set, tmp_path, monkeypatch):
    second = RetrievalSet("second", one_set.queries, one_set.corpus, one_set.qrels)
    embed, calls = Embedder.embed, []

    def dies(self, texts, **options):
        calls.append(len(texts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return embed(self, texts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", dies)
        with pytest.raises(KeyboardInterrupt):
            run_loco(small_embedder, [one_set, second], tmp_path, lengths=[32])
        run_loco(small_embedder, [one_set, second], tmp_path, lengths=[32])
    assert len(calls) == 4 + 2  # of the first set nothing, of the second queries and corpus


KILLED = """
import os, signal, sys
from pathlib import Path

from longspan.embedder import Embedder
from longspan.evaluate.loco import run_loco
from longspan.evaluate.loco_sets import load_loco

embed, calls = Embedder.embed, []

def killing(self, texts, **options):
    calls.append(texts)
    if len(calls) == 4:  # the first set is measured, of the second only the queries
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(self, texts, **options)

Embedder.embed = killing
model, data, out = map(Path, sys.argv[1:])
run_loco(Embedder.load(model, device="cpu"), load_loco(data, ["one", "two"]), out, lengths=[32])
"""


def test_a_kill_costs_no_more_than_the_measurement_it_hits(small_embedder, one_set, tmp_path):
    small_embedder.save(tmp_path / "model")
    for name in ("one", "two"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for table, texts in (("corpus", one_set.corpus), ("queries", one_set.queries)):
            rows = [json.dumps({"_id": identity, "text": text}) for identity, text in texts.items()]
            (folder / f"{table}.jsonl").write_text("\n".join(rows))
        lines = [f"{query}\t{document}\t1" for query, judged in one_set.qrels.items() for document in judged]
        (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    places = [tmp_path / name for name in ("model", "data", "out")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *places], check=False, capture_output=True, timeout=120)
    assert killed.returncode == -9, killed.stderr.decode()
    embedder, sets = Embedder.load(places[0], device="cpu"), load_loco(places[1], ["one", "two"])
    told = []
    resumed = run_loco(embedder, sets, places[2], lengths=[32], progress=lambda what, *_: told.append(what.split()[0]))
    assert set(told) == {"two"}
    whole = run_loco(embedder, sets, tmp_path / "whole", lengths=[32])
    assert [(s.task, s.score, s.interval) for s in resumed.scores] == [
        (s.task, s.score, s.interval) for s in whole.scores
    ]


@pytest.mark.parametrize(
    ("length", "what"),
    [(256, "reads at most 128 tokens, not 256"), (64, "rotary positions, and this model.s are learned")],
)
def test_what_cannot_be_measured_is_refused(small_encoder, small_tokenizer, length, what):
    encoder = small_encoder(positions="learned", rope_scaling="none", trained_length=128)
    embedder = Embedder(encoder, small_tokenizer, EmbeddingConfig(), device="cpu")
    with pytest.raises(LongspanError, match=what):
        rescaled(embedder, "dynamic", length)


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.integers(0, 5))
def test_an_average_is_the_benchmarks_only_when_it_has_all_sets(values, left_out):
    scores = [LocoScore(n, 2048, "none", v, (v, v), 1, 1, 0, 0.0) for n, v in zip(V0, values, strict=True)]
    scores = [score for number, score in enumerate(scores) if number != left_out]
    (average,) = LocoResults("m", "float32", 2048, 1, tuple(scores)).averages()
    assert average["score"] == pytest.approx(np.mean([score.score for score in scores]))
    assert average["benchmark"] == ("LoCo v0" if left_out == 5 else None)
