"""The filter keeps a pair if its own document is found, and judges every pair once. Axes: N pairs, D width."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longspan.curate import consistency
from longspan.curate.consistency import Teacher, consistency_filter, embed_pairs, filter_pairs
from longspan.errors import LongspanError


def brute_rank(queries_ND, documents_ND, texts, own) -> int:
    """By definition: the distinct other texts of which some copy scores above the pair's own document."""
    scores = {}
    for document_D, text in zip(documents_ND.astype(np.float64), texts, strict=True):
        scores.setdefault(text, []).append(float(queries_ND[own].astype(np.float64) @ document_D))
    mine = float(queries_ND[own].astype(np.float64) @ documents_ND[own].astype(np.float64))
    return sum(max(values) > mine for text, values in scores.items() if text != texts[own])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[str]]:
    num_pairs, width = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    # Few values make many ties, and their products are exact in float32.
    integers = hnp.arrays(np.float32, (num_pairs, width), elements=st.integers(-2, 2).map(float))
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=num_pairs, max_size=num_pairs))
    documents_ND = draw(integers)
    for n, name in enumerate(names):  # equal texts have equal vectors
        documents_ND[n] = documents_ND[names.index(name)]
    return draw(integers), documents_ND, names


@given(pairs(), st.integers(1, 4))
def test_ranks_equal_brute_force_with_copies_of_a_document_counting_once(data, k):
    queries_ND, documents_ND, texts = data
    filtered = consistency_filter(queries_ND, documents_ND, texts, k=k)
    expected = [brute_rank(queries_ND, documents_ND, texts, n) for n in range(len(texts))]
    assert filtered.rank_N.tolist() == expected
    assert filtered.keep_N.tolist() == [rank < k for rank in expected]


def test_a_paragraph_that_answers_many_questions_is_one_document():
    # Query 5's own document comes right after a document that is there five times.
    documents_ND = np.array([[1.0, 0.0]] * 5 + [[0.9, 0.1]], dtype=np.float32)
    queries_ND = np.array([[1.0, 0.0]] * 6, dtype=np.float32)
    filtered = consistency_filter(queries_ND, documents_ND, ["copy"] * 5 + ["own"], k=2)
    assert filtered.rank_N.tolist() == [0] * 5 + [1]
    assert filtered.keep_N.all()


@given(pairs(), st.integers(2, 6), st.integers(0, 3))
def test_samples_hold_each_pair_once_and_judge_it_among_their_own(data, sample_size, seed):
    queries_ND, documents_ND, texts = data
    samples = []

    def rank_of(queries, documents, own, groups):
        samples.append((queries, documents))
        return original(queries, documents, own, groups)

    original = consistency.rank_of
    numbered_ND = np.column_stack([documents_ND, np.zeros(len(texts))]).astype(np.float32)
    queries_ND = np.column_stack([queries_ND, np.arange(len(texts))]).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consistency, "rank_of", rank_of)
        filtered = consistency_filter(queries_ND, numbered_ND, texts, k=1, sample_size=sample_size, seed=seed)
    members = [queries[:, -1].astype(int).tolist() for queries, _ in samples]
    assert sorted(n for sample in members for n in sample) == list(range(len(texts)))
    sizes = [len(sample) for sample in members]
    assert len(sizes) == -(-len(texts) // sample_size)
    assert max(sizes) <= sample_size
    assert max(sizes) - min(sizes) <= 1, "no sample in which a pair is judged against next to nothing"
    for sample in members:
        part = np.array(sample)
        names = [texts[n] for n in sample]
        for own, n in enumerate(sample):
            assert filtered.rank_N[n] == brute_rank(queries_ND[part], numbered_ND[part], names, own)


def test_samples_are_a_function_of_the_seed():
    generator = np.random.default_rng(0)
    queries_ND, documents_ND = (generator.normal(size=(60, 4)).astype(np.float32) for _ in range(2))
    texts = [str(n) for n in range(60)]

    def ranks(seed):
        return consistency_filter(queries_ND, documents_ND, texts, sample_size=10, seed=seed).rank_N.tolist()

    assert ranks(0) == ranks(0)
    assert ranks(0) != ranks(1)


@pytest.mark.parametrize(
    ("num_pairs", "options", "where"),
    [
        (0, {}, "the pairs"),
        (5, {"k": 0}, "k"),
        (5, {"k": -1}, "k"),
        (5, {"sample_size": 0}, "sample_size"),
        (5, {"sample_size": 2, "k": 2}, "sample_size"),
    ],
)
def test_settings_with_which_nothing_is_filtered_are_refused(tmp_path, make_embedder, num_pairs, options, where):
    vectors_ND = np.ones((num_pairs, 3), dtype=np.float32)
    embedder = make_embedder()
    rows = [{"query": "q", "document": "d"}] * num_pairs
    for call in (
        lambda: consistency_filter(vectors_ND, vectors_ND, ["d"] * num_pairs, **options),
        lambda: filter_pairs(rows, Teacher(embedder), tmp_path, **options),
    ):
        with pytest.raises(LongspanError) as caught:
            call()
        assert caught.value.where == where
    assert embedder.embedded == [], "before the long work"


# --- files of pairs ---------------------------------------------------------------------------------------------------


def pair_rows(num_good: int, num_noise: int) -> list[dict]:
    good = [{"query": f"what is {n}?", "document": f"{n} is this", "id": n} for n in range(num_good)]
    noise = [
        {"query": f"what is {100 + n}?", "document": f"{900 + n} is that", "id": 100 + n} for n in range(num_noise)
    ]
    return [row for pair in zip(good, [*noise, *[None] * num_good], strict=False) for row in pair if row]


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_noise_is_dropped_and_good_pairs_stay(tmp_path, make_embedder):
    rows = pair_rows(60, 15)
    done: list[int] = []
    teacher = Teacher(make_embedder())
    report = filter_pairs(rows, teacher, tmp_path, progress=done.append)
    kept, dropped = read(tmp_path / "kept.jsonl"), read(tmp_path / "dropped.jsonl")
    assert kept == [row for row in rows if row["id"] < 100], "as they came, in their order"
    assert [{key: row[key] for key in ("query", "document", "id")} for row in dropped] == [
        row for row in rows if row["id"] >= 100
    ]
    assert min(row["rank"] for row in dropped) >= 2
    assert sum(done) == 2 * len(rows)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert (report["pairs"], report["kept"], report["dropped"], report["k"]) == (75, 60, 15, 2)
    assert report["sample_size"] == 75
    assert (report["teacher"], report["teacher_fingerprint"]) == ("words", "words-1")
    assert report["kept_at"]["2"] == 60 / 75
    assert report["rank_quantiles"]["0.5"] == 0
    assert len(report["examples_dropped"]) == 15
    assert all(example["rank"] >= 2 for example in report["examples_dropped"])


def test_the_ranks_in_the_files_are_those_of_the_filter(tmp_path, make_embedder):
    rows, teacher = pair_rows(20, 20), Teacher(make_embedder(), "clustering", "classification", 9)
    filter_pairs(rows, teacher, tmp_path, k=1, sample_size=16, seed=4)
    queries_ND, documents_ND = embed_pairs(rows, teacher, tmp_path / "vectors")
    np.testing.assert_array_equal(
        queries_ND, [teacher.embedder.vector(row["query"], "clustering", 9) for row in rows]  # pyright: ignore[reportAttributeAccessIssue]
    )  # fmt: skip
    expected = consistency_filter(
        queries_ND, documents_ND, [row["document"] for row in rows], k=1, sample_size=16, seed=4
    )
    assert [row["rank"] for row in read(tmp_path / "dropped.jsonl")] == expected.rank_N[~expected.keep_N].tolist()
    assert len(read(tmp_path / "kept.jsonl")) == expected.keep_N.sum()


def test_again_embeds_nothing_and_gives_the_same_files(tmp_path, make_embedder):
    rows = pair_rows(20, 5)
    filter_pairs(rows, Teacher(make_embedder()), tmp_path / "a", cache=tmp_path / "cache")
    embedder = make_embedder()
    filter_pairs(rows, Teacher(embedder), tmp_path / "b", cache=tmp_path / "cache")
    assert embedder.embedded == []
    for name in ("kept.jsonl", "dropped.jsonl", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_interrupted_filter_goes_on_to_the_same_files(tmp_path, make_embedder, monkeypatch):
    monkeypatch.setattr("longspan.curate.vectors.TEXTS_PER_BLOCK", 8)
    rows = pair_rows(20, 5)
    filter_pairs(rows, Teacher(make_embedder()), tmp_path / "a")
    killed = make_embedder()
    killed.calls_left = 5
    with pytest.raises(KeyboardInterrupt):
        filter_pairs(rows, Teacher(killed), tmp_path / "b")
    assert not (tmp_path / "b" / "kept.jsonl").exists()
    filter_pairs(rows, Teacher(make_embedder()), tmp_path / "b")
    for name in ("kept.jsonl", "dropped.jsonl", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_nothing_dropped_and_everything_dropped_are_reported_too(tmp_path, make_embedder):
    report = filter_pairs(pair_rows(10, 0), Teacher(make_embedder()), tmp_path / "a")
    assert (report["kept"], report["dropped"], report["examples_dropped"]) == (10, 0, [])
    assert read(tmp_path / "a" / "dropped.jsonl") == []
    noise = [{"query": f"what is {n}?", "document": f"{n + 1} is this"} for n in range(0, 40, 2)]
    noise += [{"query": f"what is {n + 1}?", "document": f"{n} is this"} for n in range(0, 40, 2)]
    report = filter_pairs(noise, Teacher(make_embedder()), tmp_path / "b", k=1)
    assert (report["kept"], report["dropped"]) == (0, 40)
    assert read(tmp_path / "b" / "kept.jsonl") == []


def test_a_real_encoder_is_a_teacher(tmp_path, small_embedder):
    texts = ["the quick brown fox", "lazy dogs jump", "naïve café 東京", "def area(radius) -> float", "0123456789"]
    rows = [{"query": text, "document": text} for text in texts]
    report = filter_pairs(rows, Teacher(small_embedder, "clustering", "clustering"), tmp_path, k=1)
    assert report["kept"] == 5, "a text is nearest to itself"
