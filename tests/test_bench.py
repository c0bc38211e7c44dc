"""The benchmark measures what it says it measures; how fast anything is, no test can say."""

import json

import numpy as np
import pytest

from longspan import bench
from longspan.bench import Candidate, bench_encoder, texts_of_this_machine
from longspan.cli import main
from longspan.errors import LongspanError

TEXTS = ["the quick brown fox", "fox", "jumps over " * 30, "the lazy dogs"]
DOCUMENTED = '''
def short(x):
    """Say in one sentence what this does."""

def long(x):
    """Summary of a long text.

    {body}
    """
'''


@pytest.fixture
def quickly(monkeypatch):
    """The texts above, no peers, and no long measuring of limits and memory."""
    monkeypatch.setattr(bench, "texts_of_this_machine", lambda *_: (TEXTS, TEXTS[:2]))
    monkeypatch.setattr(bench, "_limits", lambda: {"float32": 100.0})
    monkeypatch.setattr(bench, "_peak_memory", lambda kind, place, texts: 1.0)
    find_spec = bench.importlib.util.find_spec
    peers = ("sentence_transformers", "onnxruntime")
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None if name in peers else find_spec(name))


@pytest.fixture(scope="module")
def folder(small_embedder, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "model"
    small_embedder.save(path)
    return path


def test_texts_come_from_installed_files(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    for number in range(3):
        body = f"{number} " * bench.LONG_CHARACTERS
        (tmp_path / "package" / f"module{number}.py").write_text(DOCUMENTED.format(body=body), "utf-8")
    (tmp_path / "package" / "broken.py").write_text('"""' + "x" * 100, "utf-8")
    monkeypatch.setattr(bench.installed, "default_roots", lambda: [tmp_path])
    documents, queries = texts_of_this_machine(2, 2)
    assert len(documents) == len(queries) == 2
    assert all(text.startswith("Summary of a long text.\n\n") for text in documents)
    assert queries == ["Say in one sentence what this does."] * 2
    with pytest.raises(LongspanError, match="only 3 long and 3 short docstrings were found"):
        texts_of_this_machine(4, 1)


def test_a_run_says_everything(quickly, folder, tmp_path, capsys):
    assert main(["bench", "encoder", "--model", str(folder), "--quick", "--out", str(tmp_path / "bench.json")]) == 0
    written = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    result = written["result"]
    assert written["model"] == str(folder)
    assert written["machine"]["processor"]["usable"] > 0
    assert result["absent"] == ["sentence-transformers", "onnxruntime"]
    assert result["documents"]["texts"] == 4
    assert result["documents"]["tokens_per_second"]["longspan float32"] > 0
    assert result["queries"]["texts"] == 2
    printed = capsys.readouterr().out
    assert "not installed, so not measured: sentence-transformers, onnxruntime" in printed
    assert "longspan float32" in printed


def test_peers_run_at_every_setting_once_and_the_best_of_each_go_on(small_embedder, folder, monkeypatch):
    calls = []

    def peer(family, setting, seconds, share=1):
        def embed(texts):
            calls.append((family, setting, len(texts)))
            clock[0] += seconds * len(texts)
            return small_embedder.embed(texts, task="clustering")

        return Candidate(family, setting, embed, share=share)

    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench, "_linear_share", lambda *_: None)
    place = bench._Place(folder, "clustering", 128)
    found = bench._side_by_side(
        [
            peer("longspan float32", "", 1.0),
            peer("theirs float32", "batch 1", 4.0),
            peer("theirs float32", "batch 8", 2.0),
            peer("theirs int8", "batch 1", 1.5),
            peer("theirs bfloat16", "batch 1", 9.0, share=2),
        ],
        TEXTS,
        place,
        rounds=3,
        say=lambda _: None,
    )
    timed = [call for call in calls if call[2] > 1]
    assert timed.count(("theirs float32", "batch 1", 4)) == 1
    assert timed.count(("theirs float32", "batch 8", 4)) == 3
    assert timed.count(("theirs bfloat16", "batch 1", 2)) == 3
    to_float32, to_bfloat16, to_int8 = found["ratios"]["longspan float32"]
    assert to_float32 == {"to": "theirs float32, batch 8", "median": 2.0, "by_round": [2.0, 2.0, 2.0]}
    assert to_bfloat16["to"] == "theirs bfloat16, batch 1"
    assert to_int8["to"] == "theirs int8, batch 1"
    assert to_int8["median"] == 1.5
    assert found["tokens_per_second"]["theirs float32, batch 8"] == pytest.approx(found["tokens"] / 8, rel=1e-2)
    assert found["smallest_cosine_to_float32"]["theirs int8, batch 1"] == pytest.approx(1, abs=1e-5)


def test_the_stand_in_is_a_model_that_others_can_load(quickly, tmp_path):
    place = bench._place(None, TEXTS, tmp_path / "model", num_layers=1)
    vectors_ND = bench._ours(place, "float32").embed(TEXTS)
    assert vectors_ND.shape == (4, 768)
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-5)


def test_the_share_counts_the_products_of_the_linear_layers(folder, monkeypatch):
    """At one second a product, the share is the work of a product in GFLOP over the limit of 1."""
    clock = [0.0]

    def tick():
        clock[0] += 0.5
        return clock[0]

    monkeypatch.setattr(bench.time, "perf_counter", tick)
    monkeypatch.setattr(bench, "_limits", lambda: {"float32": 1e-6})
    place = bench._Place(folder, "clustering", 128)
    embedder = bench.Embedder.load(folder, device="cpu")
    tokens = embedder.num_tokens(["fox"], task="clustering")[0]
    weights = 64 * 192 + 64 * 64 + 64 * 192 + 96 * 64
    expected = 2 * tokens * weights * 2 / (8 * 0.5) / 1e9 / 1e-6
    assert bench._linear_share("float32", ["fox"], place) == pytest.approx(expected, abs=1e-3)


def test_an_unknown_model_is_refused(quickly, tmp_path):
    with pytest.raises(LongspanError):
        bench_encoder(str(tmp_path / "nothing"))
