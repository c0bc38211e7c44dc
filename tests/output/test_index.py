"""The library opens the index that is written for it, and finds the neighbours that the stored vectors have."""

import numpy as np
import pytest

from longspan.curate.stored import nearest_stored
from longspan.errors import LongspanError
from longspan.output.formats import check_output
from longspan.output.index import INDEX_LIBRARIES, check_index, index_file, write_index
from longspan.storage import FORMS, Storage, Stored

K = 10


@pytest.fixture(scope="module")
def vectors():
    generator = np.random.default_rng(0)
    vectors_MD = generator.normal(size=(2000, 64)) + 0.1
    vectors_MD = (vectors_MD / np.linalg.norm(vectors_MD, axis=1, keepdims=True)).astype(np.float32)
    return vectors_MD[:1950], vectors_MD[1950:]


def stored_as(form, documents_MD):
    storage = Storage.of(form, documents_MD)
    return Stored(storage, storage.encode(documents_MD))


@pytest.mark.parametrize("form", FORMS)
def test_faiss_finds_the_same_neighbours(tmp_path, vectors, form):
    faiss = pytest.importorskip("faiss")
    documents_MD, queries_ND = vectors
    stored = stored_as(form, documents_MD)
    path = write_index("faiss", tmp_path / "v.npy", stored, tmp_path)
    assert path == tmp_path / "v.npy.faiss"
    if form == "binary":
        differ_NK, found_NK = faiss.read_index_binary(str(path)).search(stored.storage.encode(queries_ND), K)
        found_scores_NK = 1 - 2 * differ_NK / 64
    else:
        index = faiss.read_index(str(path))
        found_scores_NK, found_NK = index.search(queries_ND, K)
        for number in (0, 7, 1949):  # FAISS reads back the very values that we do
            np.testing.assert_allclose(index.reconstruct(number), stored[number : number + 1][0], atol=1e-7)
    scores_NK, indices_NK = nearest_stored(queries_ND, stored, K)
    # Equal up to rounding: two neighbours as near as that may change places, or be another one.
    np.testing.assert_allclose(found_scores_NK, scores_NK, atol=1e-5)
    if form != "binary":
        assert np.mean(found_NK == indices_NK) > 0.99


@pytest.mark.parametrize("form", FORMS)
def test_usearch_finds_nearly_all_of_the_same_neighbours(tmp_path, vectors, form):
    usearch = pytest.importorskip("usearch.index")
    documents_MD, queries_ND = vectors
    stored = stored_as(form, documents_MD)
    index = usearch.Index.restore(str(write_index("usearch", tmp_path / "v.npy", stored, tmp_path)))
    assert len(index) == len(documents_MD)
    given = stored.storage.encode(queries_ND) if form == "binary" else queries_ND
    found = index.search(given, K)
    scores_NK, indices_NK = nearest_stored(queries_ND, stored, K)
    if form == "binary":
        differ_NK = np.rint((1 - scores_NK) * 32)
        assert np.mean(np.asarray(found.distances) <= differ_NK[:, -1:]) > 0.9
        return
    common = [len(set(map(int, one)) & set(other)) for one, other in zip(found.keys, indices_NK, strict=True)]
    # A graph's recall, and usearch's own 8 bits beside ours.
    assert np.mean(common) / K > 0.9


def test_what_cannot_be_indexed_is_refused(tmp_path, monkeypatch):
    for library in INDEX_LIBRARIES:
        with pytest.raises(LongspanError, match="do not fill whole bytes"):
            check_index(library, tmp_path / "v.npy", "binary", 12)
        monkeypatch.setitem(__import__("sys").modules, library, None)
        with pytest.raises(LongspanError, match=f"{library} is not installed") as caught:
            check_index(library, tmp_path / "v.npy", "int8", 12)
        assert caught.value.where == str(index_file(library, tmp_path / "v.npy"))


@pytest.mark.parametrize("name", ["out.csv", "out", "x.npy.gz"])
def test_other_kinds_are_refused_before_any_work(tmp_path, name):
    with pytest.raises(LongspanError, match="vectors are not written as") as caught:
        check_output(tmp_path / name)
    assert ".npy, .jsonl or .parquet" in caught.value.remedy


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LongspanError, match=r"cannot write out\.npy: file is a file"):
        check_output(tmp_path / "file" / "out.npy")
