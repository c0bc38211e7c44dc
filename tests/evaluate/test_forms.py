"""Vectors that are cut and rounded: what they score, against making them so in the first place."""

import json

import pytest

from longspan.cli import main
from longspan.errors import LongspanError
from longspan.evaluate import embedding
from longspan.evaluate.embedding import without_lengths
from longspan.evaluate.forms import forms_report, measure_forms
from longspan.evaluate.retrieval import RetrievalSet, evaluate_retrieval
from longspan.storage import Storage

WORDS = "quick brown fox jumps over lazy dogs naïve café area".split()


@pytest.fixture(scope="module")
def one_set():
    corpus = {f"d{n}": f"the {word} {WORDS[n - 1]} of {WORDS[n - 2]}" for n, word in enumerate(WORDS)}
    return RetrievalSet("animals", {f"q{n}": w for n, w in enumerate(WORDS)}, corpus, {
        f"q{n}": {f"d{n}": 1.0} for n in range(len(WORDS))
    })  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"normalize": False}, {"layer_norm": True}])
def test_every_form_scores_what_it_would_if_it_were_the_only_one(small_embedder, one_set, settings):
    embedder = small_embedder.with_settings(**settings)
    raw, calls = without_lengths(embedder), []

    def embed_at(length):
        def embed(texts, *, task):
            calls.append((length, task))
            return raw.embed(texts, task=task, max_length=length, truncate=True)

        return embed

    scores = measure_forms(one_set, embedder, embed_at, lengths=[6, None], dims=[16, 64], forms=["float16", "binary"])
    assert len(calls) == 4  # queries and documents, once for each length
    assert [(s.max_length, s.dim, s.form) for s in scores] == [
        (length, dim, form)
        for length in (6, None)
        for dim, form in [(64, "float32"), (64, "float16"), (64, "binary"), (16, "float16"), (16, "binary")]
    ]
    assert [s.bytes_per_vector for s in scores[:5]] == [256, 128, 8, 32, 2]
    for score in scores:

        def alone(texts, *, task, score=score):
            vectors = embedder.embed(texts, task=task, dim=score.dim, max_length=score.max_length, truncate=True)
            storage = Storage.of(score.form, vectors)
            return vectors if task == "search_query" else storage.decode(storage.encode(vectors))

        assert score.result.metrics == evaluate_retrieval(one_set, alone).metrics, score
    exact = scores[0].result
    assert scores[0].change is None
    assert scores[3].change is not None
    assert scores[3].change.difference == pytest.approx(scores[3].score - exact.metrics["ndcg@10"])
    told = json.loads(json.dumps(forms_report(embedder, one_set, scores)))
    assert [one["form"] for one in told["scores"]] == [s.form for s in scores]


def test_impossible_dims_are_refused_before_anything_is_embedded(small_embedder, one_set):
    with pytest.raises(LongspanError, match="65"):
        measure_forms(one_set, small_embedder, lambda length: pytest.fail("embedded"), dims=[65])


@pytest.fixture
def model_and_data(small_embedder, one_set, tmp_path):
    small_embedder.save(tmp_path / "model")
    rows = [{"query": query, "document": one_set.corpus[f"d{n}"]} for n, query in enumerate(one_set.queries.values())]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(tmp_path / "model"), "--data", str(tmp_path / "pairs.jsonl")]


def test_the_command_line_shows_and_keeps_them(model_and_data, tmp_path, capsys):
    out = tmp_path / "forms.json"
    options = ["--dim", "32,8", "--stored", "int8,binary", "--lengths", "8,64", "--out", str(out)]
    assert main(["evaluate", *model_and_data, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * (1 + 3 * 2)
    assert main(["report", str(out)]) == 0
    assert "| **64** | **8** | **binary** | **1** |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--dim", "8", "--bm25"], "measure one model"),
        (["--lengths", "8", "--max-length", "8"], "say the same"),
        (["--stored", "int4"], "cannot be stored as 'int4'"),
        (["--dim", "8", "--suite", "loco"], "--dim belongs to --suite retrieval or mteb"),
    ],
)
def test_options_that_do_not_go_together_are_refused(model_and_data, capsys, options, what):
    try:
        code = main(["evaluate", *model_and_data, *options])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert what in capsys.readouterr().err


def test_several_processes_give_the_same_scores_to_the_bit(model_and_data, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "CHARACTERS_PER_BLOCK", 60)  # so that both have work
    results = []
    for name, options in (("one", []), ("two", ["--processes", "2"])):
        out = tmp_path / f"{name}.json"
        assert main(["evaluate", *model_and_data, *options, "--dim", "16", "--out", str(out)]) == 0
        results.append(json.loads(out.read_text()))
    assert results[0] == results[1]
