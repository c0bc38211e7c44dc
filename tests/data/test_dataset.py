"""A folder of prepared sources opened for training: what belongs together, and nothing else."""

import shutil
from pathlib import Path

import pytest

from longspan.data.dataset import Dataset
from longspan.data.prepare import TOKENIZER_FILE, prepare
from longspan.data.shards import PreparedSource
from longspan.data.source import TextSource
from longspan.errors import LongspanError
from longspan.text.tokenizer import Tokenizer


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    """A copy of the prepared folder, to be changed."""
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def refused(folder: Path, kind: str, **options) -> LongspanError:
    with pytest.raises(LongspanError) as caught:
        Dataset(folder, kind, **options)
    assert caught.value.remedy
    return caught.value


def test_the_sources_of_one_kind_are_opened_by_name(prepared, small_tokenizer):
    pairs, text = Dataset(prepared, "pairs"), Dataset(prepared, "text")
    assert [source.manifest.name for source in pairs.sources] == ["code", "faq"]
    assert [source.manifest.name for source in text.sources] == ["books"]
    assert pairs.tokenizer.fingerprint == small_tokenizer.fingerprint
    assert [s.manifest.name for s in Dataset(prepared, "pairs", only=("faq",)).sources] == ["faq"]


def test_the_fingerprint_is_that_of_the_sources_that_are_used(prepared, folder):
    assert Dataset(folder, "pairs").fingerprint == Dataset(prepared, "pairs").fingerprint
    fingerprints = {
        Dataset(folder, "pairs").fingerprint,
        Dataset(folder, "pairs", only=("faq",)).fingerprint,
        Dataset(folder, "pairs", only=("code",)).fingerprint,
        Dataset(folder, "text").fingerprint,
    }
    assert len(fingerprints) == 4
    before = Dataset(folder, "text").fingerprint
    shutil.rmtree(folder / "faq")
    assert Dataset(folder, "text").fingerprint == before


def test_a_torn_source_of_the_other_kind_does_not_matter(folder):
    (folder / "books" / "shard-00000.arrow").write_bytes(b"torn")
    Dataset(folder, "pairs")
    assert "shard-00000.arrow is not what the manifest vouches for" in refused(folder, "text").what


def test_a_source_that_is_not_used_is_not_read(folder, monkeypatch):
    opened = []
    original = PreparedSource.__init__
    monkeypatch.setattr(PreparedSource, "__init__", lambda self, path: opened.append(path.name) or original(self, path))
    Dataset(folder, "pairs", only=("code",))
    assert opened == ["code"]


def test_what_is_not_prepared_is_named(folder, tmp_path):
    error = refused(tmp_path / "nowhere", "pairs")
    assert error.what == "no prepared sources of pairs"
    assert "longspan prepare" in error.remedy
    error = refused(folder, "pairs", only=("faq", "fqa"))
    assert error.what == "no prepared source 'fqa' of pairs"
    assert error.where == str(folder)
    assert "(there are: books (text), code (pairs), faq (pairs))" in error.remedy
    assert refused(folder, "pairs", only=("books",)).what == "no prepared source 'books' of pairs"


def test_an_unfinished_source_is_not_opened(folder):
    (folder / "faq" / "manifest.json").unlink()
    assert [source.manifest.name for source in Dataset(folder, "pairs").sources] == ["code"]
    assert refused(folder, "pairs", only=("faq",)).what == "no prepared source 'faq' of pairs"


def test_another_tokenizer_than_the_one_of_the_shards_is_refused(folder):
    Tokenizer.train(["other words"] * 3, 50).save(folder / TOKENIZER_FILE)
    error = refused(folder, "pairs")
    assert error.what == "source 'code' was prepared with another tokenizer than tokenizer.json"
    assert error.where == str(folder / "code")


def test_sources_of_one_folder_may_be_prepared_one_after_another(folder, tmp_path, small_tokenizer):
    (tmp_path / "a.txt").write_text("the quick brown fox")
    prepare([TextSource(name="more", files=(str(tmp_path / "a.txt"),))], folder, small_tokenizer)
    assert [source.manifest.name for source in Dataset(folder, "text").sources] == ["books", "more"]
