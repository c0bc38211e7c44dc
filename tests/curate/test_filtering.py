"""The consistency filter on files: what goes where, and that a kill costs a block and changes no bit."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longspan.curate import consistency, filtering
from longspan.curate.consistency import PairVectors, Rule, Teacher, judge
from longspan.curate.filtering import WORK, filter_source
from longspan.data.source import PairSource
from longspan.errors import LongspanError

RESULT = ("kept.jsonl", "dropped.jsonl", "report.json", "report.html")


def pair_rows(num_good: int, num_noise: int) -> list[dict]:
    good = [{"query": f"what is {n}?", "document": f"{n} is this", "id": n} for n in range(num_good)]
    noise = [
        {"query": f"what is {100 + n}?", "document": f"{900 + n} is that", "id": 100 + n} for n in range(num_noise)
    ]
    return [row for pair in zip(good, [*noise, *[None] * num_good], strict=False) for row in pair if row]


def source_of(folder: Path, rows: list[dict], name: str = "pairs", **values) -> PairSource:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return PairSource.parse({"name": name, "files": [str(file)], **values}, where="test")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def result(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in RESULT]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("longspan.curate.vectors.TEXTS_PER_BLOCK", 8)
    monkeypatch.setattr(filtering, "PAIRS_PER_CHUNK", 7)
    monkeypatch.setattr(consistency, "QUERIES_PER_BLOCK", 4)


def test_noise_is_dropped_and_good_pairs_stay(tmp_path, make_embedder, small_blocks):
    rows = pair_rows(60, 15)
    told: dict[str, list[tuple[int, int]]] = {}
    report = filter_source(
        source_of(tmp_path, rows),
        Teacher(make_embedder()),
        tmp_path / "out",
        progress=lambda what, done, total: told.setdefault(what, []).append((done, total)),
    )
    kept, dropped = read(tmp_path / "out" / "kept.jsonl"), read(tmp_path / "out" / "dropped.jsonl")
    assert kept == [row for row in rows if row["id"] < 100], "as they came, in their order"
    assert [{key: row[key] for key in ("query", "document", "id")} for row in dropped] == [
        row for row in rows if row["id"] >= 100
    ]
    assert min(row["consistency"]["rank"] for row in dropped) >= 2
    assert all(rows[row["consistency"]["row"] - 1]["id"] == row["id"] for row in dropped)
    facts = report.facts
    assert (facts["pairs"], facts["kept"], facts["dropped"], facts["k"], facts["sample_size"]) == (75, 60, 15, 2, 75)
    assert (facts["teacher"], facts["teacher_fingerprint"]) == ("words", "words-1")
    assert facts["kept_at"]["2"] == 60 / 75
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written == json.loads(json.dumps(report.as_json()))
    assert (written["step"], written["source"], written["kept"]) == ("filter", "pairs", 60)
    for what, total in (("embedding", 150), ("ranking", 75), ("writing", 75)):
        assert told[what][0] == (0, total)
        assert told[what][-1] == (total, total)


def test_examples_show_what_beat_a_pair(tmp_path, make_embedder):
    rows = pair_rows(60, 15)
    report = filter_source(source_of(tmp_path, rows), Teacher(make_embedder()), tmp_path / "out")
    assert [len(examples) for examples in report.examples.values()][:3] == [20, 15, 20]
    for kind, examples in report.examples.items():
        for one in examples:
            row = rows[one.row - 1]
            assert (one.query, one.document) == (row["query"], row["document"])
            scores = [other.score for other in one.others]
            assert scores == sorted(scores, reverse=True)
            assert len(scores) == 3
            assert one.rank is not None
            for other in one.others:
                assert other.row is not None
                assert rows[other.row - 1]["document"] == other.document != one.document
            assert (one.rank < 2) == (one.score >= scores[1])
            if kind in ("kept", "dropped"):
                assert (one.rank < 2) == (kind == "kept")
    [histogram] = report.histograms
    assert {name: sum(counts) for name, counts in histogram.series.items()} == {"own": 75, "best other": 75}
    assert sum(int(row[1]) for row in report.tables[0].rows) == 75


def test_ranks_and_files_say_the_same(tmp_path, make_embedder, small_blocks):
    rows, embedder = pair_rows(20, 20), make_embedder()
    source, teacher = source_of(tmp_path, rows), Teacher(embedder, "clustering", "classification", 9)
    filter_source(source, teacher, tmp_path / "out", rule=Rule(1), sample_size=16, seed=4)
    queries_ND = np.array([embedder.vector(row["query"], "clustering", 9) for row in rows])
    documents_ND = np.array([embedder.vector(row["document"], "classification", 9) for row in rows])
    vectors = PairVectors.of(queries_ND, documents_ND, [row["document"] for row in rows])
    expected = judge(vectors, sample_size=16, seed=4)
    why = [row["consistency"] for row in read(tmp_path / "out" / "dropped.jsonl")]
    dropped = np.flatnonzero(expected["rank"] >= 1)
    assert [one["row"] - 1 for one in why] == dropped.tolist()
    assert [one["rank"] for one in why] == expected["rank"][dropped].tolist()
    np.testing.assert_allclose([one["score"] for one in why], expected["score"][dropped], atol=1e-6)


def test_both_sides_may_have_one_task(tmp_path, make_embedder, small_blocks):
    rows = pair_rows(20, 5)
    teacher = Teacher(make_embedder(), "clustering", "clustering")
    filter_source(source_of(tmp_path, rows), teacher, tmp_path / "out")
    again = make_embedder()
    filter_source(source_of(tmp_path, rows), Teacher(again, "clustering", "clustering"), tmp_path / "out")
    assert again.embedded == [], "one store, in which no side overwrites the other"
    assert len(list((tmp_path / "out" / "vectors").iterdir())) == 1


def test_a_threshold_keeps_by_score_and_ranks_are_not_computed_again(tmp_path, make_embedder, monkeypatch):
    source, out = source_of(tmp_path, pair_rows(60, 15)), tmp_path / "out"
    filter_source(source, Teacher(make_embedder()), out)
    monkeypatch.setattr(consistency, "rank_of", None)
    report = filter_source(source, Teacher(make_embedder()), out, rule=Rule(threshold=0.9))
    scores = np.load(out / WORK / "ranks.npy")["score"]
    assert len(read(out / "kept.jsonl")) == (scores >= 0.9).sum() == report.facts["kept"]
    assert all(row["consistency"]["score"] < 0.9 for row in read(out / "dropped.jsonl"))
    assert [one["threshold"] for one in report.facts["top_k_and_threshold"]][1] == 0.9


def test_copies_of_a_document_count_once(tmp_path, make_embedder):
    rows = [{"query": f"what is {n // 5}?", "document": f"{n // 5} is this"} for n in range(50)]
    report = filter_source(source_of(tmp_path, rows), Teacher(make_embedder()), tmp_path / "out", rule=Rule(1))
    assert report.facts["kept"] == 50


def test_columns_and_max_rows_of_the_source_are_used(tmp_path, make_embedder):
    rows = [{"ask": row["query"], "body": row["document"], "id": row["id"]} for row in pair_rows(60, 0)]
    source = source_of(tmp_path, rows, query="ask", document="body", max_rows=30)
    filter_source(source, Teacher(make_embedder()), tmp_path / "out")
    assert read(tmp_path / "out" / "kept.jsonl") == rows[:30]


def test_again_computes_nothing_and_gives_the_same_files(tmp_path, make_embedder, monkeypatch):
    source = source_of(tmp_path, pair_rows(20, 5))
    filter_source(source, Teacher(make_embedder()), tmp_path / "a")
    before, embedder = result(tmp_path / "a"), make_embedder()
    monkeypatch.setattr(consistency, "rank_of", None)
    filter_source(source, Teacher(embedder), tmp_path / "a")
    assert embedder.embedded == []
    assert result(tmp_path / "a") == before


@pytest.mark.parametrize("change", ["rows", "teacher", "task", "length", "sample", "seed"])
def test_ranks_of_something_else_are_not_used(tmp_path, make_embedder, change):
    rows, out, new = pair_rows(30, 10), tmp_path / "out", pair_rows(10, 30)
    filter_source(source_of(tmp_path, rows), Teacher(make_embedder()), out, sample_size=20)
    before = (out / WORK / "ranks.npy").stat().st_mtime_ns
    source = source_of(tmp_path, new if change == "rows" else rows)
    embedder = make_embedder("words-2" if change == "teacher" else "words-1")
    task, length = "clustering" if change == "task" else "search_query", 8 if change == "length" else None
    teacher = Teacher(embedder, task, max_length=length)
    options: dict[str, Any] = {"sample_size": 10 if change == "sample" else 20, "seed": 1 if change == "seed" else 0}
    filter_source(source, teacher, out, **options)
    assert (out / WORK / "ranks.npy").stat().st_mtime_ns != before
    filter_source(source, teacher, tmp_path / "fresh", **options)
    assert result(out) == result(tmp_path / "fresh")


def test_vectors_that_a_person_deleted_are_computed_again(tmp_path, make_embedder, small_blocks):
    source, out = source_of(tmp_path, pair_rows(20, 5)), tmp_path / "out"
    filter_source(source, Teacher(make_embedder()), out)
    before = result(out)
    shutil.rmtree(out / "vectors")
    filter_source(source, Teacher(make_embedder()), out)
    assert result(out) == before


def test_an_interrupted_filter_goes_on_to_the_same_files(tmp_path, make_embedder, small_blocks):
    source = source_of(tmp_path, pair_rows(20, 5))
    whole = make_embedder()
    filter_source(source, Teacher(whole), tmp_path / "a")
    killed, rest = make_embedder(), make_embedder()
    killed.calls_left = 5
    with pytest.raises(KeyboardInterrupt):
        filter_source(source, Teacher(killed), tmp_path / "b")
    assert not (tmp_path / "b" / "kept.jsonl").exists()
    filter_source(source, Teacher(rest), tmp_path / "b")
    assert killed.embedded + rest.embedded == whole.embedded, "nothing twice"
    assert result(tmp_path / "a") == result(tmp_path / "b")


KEPT_WORK = ["numbers.npy", "ranks.npy", "searches.json", "state.json"]
KILLED = """
import sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
import conftest
from longspan.curate import consistency, filtering, vectors
from longspan.data.source import PairSource

vectors.TEXTS_PER_BLOCK, filtering.PAIRS_PER_CHUNK, consistency.QUERIES_PER_BLOCK = 8, 7, 4
original = consistency.rank_of

def slow_rank_of(*arguments, **options):
    time.sleep(0.05)
    return original(*arguments, **options)

consistency.rank_of = slow_rank_of
source = PairSource.parse({"name": "pairs", "files": [sys.argv[2]]}, where="test")
filtering.filter_source(source, consistency.Teacher(conftest.WordsEmbedder()), Path(sys.argv[3]), sample_size=30)
"""


def test_kill_9_while_ranking_costs_a_block(tmp_path, make_embedder, small_blocks, monkeypatch):
    source, out = source_of(tmp_path, pair_rows(60, 20)), tmp_path / "out"
    filter_source(source, Teacher(make_embedder()), tmp_path / "whole", sample_size=30)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), source.files[0], str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 100
    while len(list((out / WORK).glob("sample-*.npy"))) < 3:
        assert process.poll() is None, process.stderr.read().decode()  # pyright: ignore[reportOptionalMemberAccess]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finished = len(list((out / WORK).glob("sample-*.npy")))
    ranked, embedder, original = [], make_embedder(), consistency.rank_of
    monkeypatch.setattr(consistency, "rank_of", lambda *a, **b: ranked.append(1) or original(*a, **b))
    filter_source(source, Teacher(embedder), out, sample_size=30)
    assert embedder.embedded == []
    num_blocks = sum(-(-size // 4) for size in (26, 27, 27))
    assert len(ranked) == num_blocks - finished
    assert result(out) == result(tmp_path / "whole")
    assert sorted(path.name for path in (out / WORK).iterdir()) == KEPT_WORK


def test_nothing_dropped_and_everything_dropped_are_reported_too(tmp_path, make_embedder):
    report = filter_source(source_of(tmp_path, pair_rows(10, 0)), Teacher(make_embedder()), tmp_path / "a")
    assert (report.facts["kept"], report.facts["dropped"], report.examples["dropped"]) == (10, 0, ())
    assert read(tmp_path / "a" / "dropped.jsonl") == []
    noise = [{"query": f"what is {n}?", "document": f"{n + 1} is this"} for n in range(0, 40, 2)]
    noise += [{"query": f"what is {n + 1}?", "document": f"{n} is this"} for n in range(0, 40, 2)]
    report = filter_source(source_of(tmp_path, noise), Teacher(make_embedder()), tmp_path / "b", rule=Rule(1))
    assert (report.facts["kept"], report.facts["dropped"]) == (0, 40)
    assert read(tmp_path / "b" / "kept.jsonl") == []


def test_the_pass_that_writes_refuses_pairs_that_changed(tmp_path, make_embedder):
    rows = pair_rows(20, 0)
    source = source_of(tmp_path, rows)

    def change(what: str, done: int, total: int) -> None:
        if what == "ranking" and done == total:
            source_of(tmp_path, rows[:10])

    with pytest.raises(LongspanError, match="changed while they were read"):
        filter_source(source, Teacher(make_embedder()), tmp_path / "out", progress=change)
    assert not (tmp_path / "out" / "kept.jsonl").exists()


@pytest.mark.parametrize(
    ("rows", "options", "what"),
    [
        ([], {}, "there are no pairs"),
        (pair_rows(5, 0), {"rule": Rule(0)}, "k 0 would drop every pair"),
        (pair_rows(5, 0), {"sample_size": 2}, "nothing could be dropped"),
        ([*pair_rows(5, 0), {"query": "q", "document": " "}], {}, "'document' is missing or empty"),
        ([*pair_rows(5, 0), {"document": "d"}], {}, "'query' is missing or empty"),
    ],
)
def test_what_cannot_be_filtered_is_refused_before_the_long_work(tmp_path, make_embedder, rows, options, what):
    embedder = make_embedder()
    with pytest.raises(LongspanError, match=what):
        filter_source(source_of(tmp_path, rows), Teacher(embedder), tmp_path / "out", **options)
    assert embedder.embedded == []


def test_a_source_is_not_overwritten(tmp_path, make_embedder):
    source = source_of(tmp_path / "out", pair_rows(5, 0), "kept")
    with pytest.raises(LongspanError, match="would be overwritten"):
        filter_source(source, Teacher(make_embedder()), tmp_path / "out")


def test_a_real_encoder_is_a_teacher(tmp_path, small_embedder):
    texts = ["the quick brown fox", "lazy dogs jump", "naïve café 東京", "def area(radius) -> float", "0123456789"]
    source = source_of(tmp_path, [{"query": text, "document": text} for text in texts])
    report = filter_source(source, Teacher(small_embedder, "clustering", "clustering"), tmp_path / "out", rule=Rule(1))
    assert report.facts["kept"] == 5, "a text is nearest to itself"


@pytest.mark.shared_data
def test_real_pairs_with_noise_are_kept_as_brute_force_keeps_them(tmp_path, shared_data, bag_of_words):
    with gzip.open(shared_data / "pairs" / "squad.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:4000]
    generator = np.random.default_rng(0)
    moved = generator.permutation(4000)[:1200]
    good = [row["document"] for row in rows]
    for place, other in zip(moved, generator.permutation(moved), strict=True):
        rows[place] = rows[place] | {"document": good[other]}
    bad_N = np.array([row["document"] != text for row, text in zip(rows, good, strict=True)])
    assert bad_N.sum() > 1100
    embedder = bag_of_words
    filter_source(source_of(tmp_path, rows), Teacher(embedder), tmp_path / "out")
    texts = list(dict.fromkeys(good))
    documents_MD = embedder.embed(texts).astype(np.float64)
    scores_NM = embedder.embed([row["query"] for row in rows]).astype(np.float64) @ documents_MD.T
    own_N = np.array([texts.index(row["document"]) for row in rows])
    keeps_N = (scores_NM > scores_NM[np.arange(4000), own_N][:, None]).sum(axis=1) < 2
    kept = read(tmp_path / "out" / "kept.jsonl")
    assert kept == [row for row, keep in zip(rows, keeps_N, strict=True) if keep]
    assert (~keeps_N[bad_N]).mean() > 0.99
    assert keeps_N[~bad_N].mean() > 0.3, "it is a teacher that knows something"
