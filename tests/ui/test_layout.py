"""The map: neighbours stay neighbours, it is a function of the vectors, and any number of them will do."""

import numpy as np
import pytest

from longspan.ui.layout import STEPS, kept_layout, lay_out, principal_components
from longspan.ui.topics import regions, topics


def clusters(num_clusters: int = 12, size: int = 40, dim: int = 48) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_clusters), size)
    return (random.normal(size=(num_clusters, dim))[labels] + random.normal(size=(len(labels), dim))), labels


def purity(places_M2: np.ndarray, labels_M: np.ndarray) -> float:
    """Share of each place's nine nearest others that have its label."""
    away = np.linalg.norm(places_M2[:, None] - places_M2[None], axis=2)
    nearest = np.argsort(away, axis=1)[:, 1:10]
    return float((labels_M[nearest] == labels_M[:, None]).mean())


def test_neighbours_stay_neighbours_and_more_than_in_the_principal_components():
    vectors_MD, labels_M = clusters()
    vectors_MD = vectors_MD.astype(np.float32)
    steps: list[int] = []
    places_M2 = lay_out(vectors_MD, steps.append)
    assert sum(steps) == STEPS
    assert places_M2.dtype == np.float32
    assert places_M2.min() >= 0
    assert places_M2.max() <= 1
    assert np.ptp(places_M2, axis=0).max() == pytest.approx(1, abs=1e-5)
    assert purity(places_M2, labels_M) > 0.95
    assert purity(principal_components(vectors_MD), labels_M) < 0.8


def test_equal_vectors_give_equal_maps_and_kept_ones_are_read(tmp_path, monkeypatch):
    vectors_MD = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)
    first = kept_layout(tmp_path, vectors_MD)
    assert np.array_equal(first, kept_layout(None, vectors_MD))
    monkeypatch.setattr("longspan.ui.layout.lay_out", None)
    assert np.array_equal(first, kept_layout(tmp_path, vectors_MD))
    with pytest.raises(TypeError):
        kept_layout(tmp_path, vectors_MD[:-1])


@pytest.mark.parametrize("num", [1, 2, 4, 5, 6, 20])
@pytest.mark.parametrize("equal", [False, True])
def test_any_number_of_vectors_will_do(num, equal):
    vectors_MD = np.random.default_rng(num).normal(size=(num, 4)).astype(np.float32)
    if equal:
        vectors_MD[:] = vectors_MD[0]
    places_M2 = lay_out(vectors_MD)
    assert places_M2.shape == (num, 2)
    assert np.isfinite(places_M2).all()
    assert topics(places_M2, ["some words here"] * num)


def test_principal_components_are_those_of_the_singular_values():
    vectors_MD = np.random.default_rng(2).normal(size=(50, 6)).astype(np.float32) * [9, 5, 1, 1, 1, 1]
    centred_MD = vectors_MD - vectors_MD.mean(axis=0)
    _, sizes, _ = np.linalg.svd(centred_MD)
    assert np.linalg.norm(principal_components(vectors_MD), axis=0) == pytest.approx(sizes[:2], rel=1e-4)


def test_signposts_say_what_a_region_has_more_of():
    random = np.random.default_rng(3)
    centres = np.array([[0.1, 0.1], [0.9, 0.2], [0.4, 0.9]])
    names = ["matrices", "sockets", "calendars"]
    labels = np.repeat(np.arange(3), 160)
    places_M2 = (centres[labels] + 0.02 * random.normal(size=(480, 2))).astype(np.float32)
    texts = [f"common words about {names[label]} number{i}" for i, label in enumerate(labels)]
    regions_M = regions(places_M2, 3)
    assert len({(a, b) for a, b in zip(labels, regions_M, strict=True)}) == 3
    large = [topic for topic in topics(places_M2, texts) if topic.level == 0]
    assert {topic.words.split(",")[0] for topic in large} == set(names)
    for topic in large:
        assert np.linalg.norm(centres[names.index(topic.words.split(",")[0])] - [topic.x, topic.y]) < 0.05
