"""Pairs in clusters: the clusters that are there are found, again after a kill, and every pair has one."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.curate.clustering import CLUSTERED, Clustering, cluster_source, merged
from longspan.curate.consistency import Teacher
from longspan.curate.kmeans import learn_centres, nearest_centres
from longspan.curate.vectors import VectorStore
from longspan.data.source import PairSource
from longspan.errors import LongspanError
from longspan.files import write_json_lines

NUM_GROUPS = 6


def _source(folder: Path, sizes: list[int]) -> PairSource:
    """Documents of group g are near each other (`WordsEmbedder`); queries are not."""
    rows = [
        {"query": f"q{n * 7919}", "document": f"{group} and {n}", "id": n}
        for group, size in enumerate(sizes)
        for n in range(size)
    ]
    draw = np.random.default_rng(0)
    write_json_lines(folder / "pairs.jsonl", [rows[n] for n in draw.permutation(len(rows))])
    return PairSource(name="pairs", files=(str(folder / "pairs.jsonl"),))


def _rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / CLUSTERED).read_text("utf-8").splitlines()]


def test_the_groups_are_found(tmp_path, make_embedder):
    source, embedder = _source(tmp_path, [40, 30, 20, 15, 10, 5]), make_embedder()
    seen = {}
    report = cluster_source(
        source,
        Teacher(embedder),
        tmp_path / "out",
        Clustering(num_clusters=NUM_GROUPS),
        progress=lambda what, done, total: seen.update({what: (done, total)}),
    )
    rows = _rows(tmp_path / "out")
    given_rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in given_rows[0]} for row in rows] == given_rows, "rows stay as they were"
    groups = {}
    for row in rows:
        groups.setdefault(row["cluster"], []).append(row["document"].split()[0])
    assert all(len(set(documents)) == 1 for documents in groups.values()), "a cluster is one group"
    assert [len(groups[cluster]) for cluster in range(NUM_GROUPS)] == [40, 30, 20, 15, 10, 5], "the largest is first"
    assert report.facts["clusters"] == NUM_GROUPS
    assert (report.facts["smallest"], report.facts["largest"]) == (5, 40)
    assert seen == {"embedding": (120, 120), "clustering": (120, 120), "writing": (120, 120)}
    assert {task for _, task, _ in embedder.embedded} == {"search_document"}
    assert (tmp_path / "out/report.html").is_file()


def test_small_clusters_go_to_their_neighbours(tmp_path, make_embedder):
    source = _source(tmp_path, [40, 30, 20, 15, 10, 5])
    cluster_source(source, Teacher(make_embedder()), tmp_path / "out", Clustering(num_clusters=6, at_least=20))
    sizes = np.bincount([row["cluster"] for row in _rows(tmp_path / "out")])
    assert sizes.sum() == 120
    assert sizes.min() >= 20
    assert (np.diff(sizes) <= 0).all()


def test_a_killed_run_goes_on_with_its_vectors_and_ends_the_same(tmp_path, make_embedder, monkeypatch):
    monkeypatch.setattr("longspan.curate.vectors.TEXTS_PER_BLOCK", 16)
    source, config = _source(tmp_path, [20] * 6), Clustering(num_clusters=4, seed=3)
    whole = make_embedder()
    cluster_source(source, Teacher(whole), tmp_path / "whole", config)
    killed = make_embedder()
    killed.calls_left = 4
    with pytest.raises(KeyboardInterrupt):
        cluster_source(source, Teacher(killed), tmp_path / "killed", config)
    assert not (tmp_path / "killed" / CLUSTERED).exists()
    again = make_embedder()
    cluster_source(source, Teacher(again), tmp_path / "killed", config)
    assert len(again.embedded) == len(whole.embedded) - 4 * 16
    for name in (CLUSTERED, "report.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_query_may_be_looked_at(tmp_path, make_embedder):
    embedder = make_embedder()
    cluster_source(
        _source(tmp_path, [5] * 3), Teacher(embedder), tmp_path / "out", Clustering(num_clusters=2, side="query")
    )
    assert {task for _, task, _ in embedder.embedded} == {"search_query"}
    assert all(text.startswith("q") for text, _, _ in embedder.embedded)


def test_what_cannot_be_clustered_is_refused(tmp_path, make_embedder):
    source, teacher = _source(tmp_path, [3]), Teacher(make_embedder())
    with pytest.raises(LongspanError, match="3 pairs cannot give 4 clusters"):
        cluster_source(source, teacher, tmp_path / "out", Clustering(num_clusters=4))
    write_json_lines(tmp_path / "pairs.jsonl", [{"query": f"{n}", "document": "the same"} for n in range(9)])
    with pytest.raises(LongspanError, match="1 different vectors cannot give 2 clusters"):
        cluster_source(source, teacher, tmp_path / "out", Clustering(num_clusters=2))
    (tmp_path / CLUSTERED).write_text("", "utf-8")
    mine = PairSource(name="pairs", files=(str(tmp_path / CLUSTERED),))
    with pytest.raises(LongspanError, match="would be overwritten"):
        cluster_source(mine, teacher, tmp_path, Clustering(num_clusters=2))


# --- the centres ------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(k=st.integers(1, 8), extra=st.integers(0, 40), seed=st.integers(0, 99))
def test_a_round_never_makes_centres_worse(k, extra, seed):
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(k + extra, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centres = learn_centres(vectors, k, seed=seed)
    assert centres.shape == (k, 5)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, rtol=1e-5)
    labels, scores = nearest_centres(vectors, centres)
    np.testing.assert_array_equal(labels, (vectors.astype(np.float64) @ centres.T.astype(np.float64)).argmax(axis=1))
    # No centre of one vector's own could bring more than the means do, if the clusters stay.
    for cluster in np.unique(labels):
        mean = vectors[labels == cluster].astype(np.float64).sum(axis=0)
        assert scores[labels == cluster].sum() <= np.linalg.norm(mean) + 1e-5
    np.testing.assert_array_equal(centres, learn_centres(vectors, k, seed=seed))


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), at_least=st.integers(1, 20))
def test_merging_moves_only_what_is_in_small_clusters(sizes, at_least):
    number_N = np.arange(sum(sizes))
    label_N = np.repeat(np.arange(len(sizes)), sizes)
    draw = np.random.default_rng(1)
    vectors_ND = draw.normal(size=(sum(sizes), 4)).astype(np.float32)

    class Store:
        class blocks:
            take = staticmethod(lambda numbers: vectors_ND[numbers])

    store: VectorStore = Store()  # pyright: ignore[reportAssignmentType]
    found = merged(label_N, store, number_N, draw.normal(size=(len(sizes), 4)).astype(np.float32), at_least)
    counts = np.bincount(found)
    assert counts.sum() == sum(sizes)
    if len(counts) > 1:
        assert counts.min() >= at_least
    for cluster, size in enumerate(sizes):
        if size >= at_least and size:
            assert len(set(found[label_N == cluster])) == 1, "large clusters stay together"
