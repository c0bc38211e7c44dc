"""Vectors are computed once per text, kept whole, and come back bit for bit."""

import contextlib
import itertools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.curate import vectors as module
from longspan.curate.engine import LocalEngine
from longspan.curate.vectors import VectorBlocks, VectorStore
from longspan.errors import LongspanError
from longspan.files import UNFINISHED

TEXTS = [f"text {n} é" for n in range(11)]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "TEXTS_PER_BLOCK", 4)


def blocks(folder: Path) -> list[str]:
    return sorted(path.name for store in folder.iterdir() for path in store.iterdir())


def test_vectors_are_the_embedders_in_the_order_of_the_texts(tmp_path, make_embedder, small_blocks):
    embedder = make_embedder()
    got = VectorStore(tmp_path, embedder, task="clustering", max_length=7).embed(TEXTS[::-1])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [embedder.vector(text, "clustering", 7) for text in TEXTS[::-1]])
    assert blocks(tmp_path) == ["block-000000", "block-000001", "block-000002"]


def test_a_text_is_embedded_once(tmp_path, make_embedder, small_blocks):
    embedder = make_embedder()
    store = VectorStore(tmp_path, embedder, task=None)
    twice = store.embed([*TEXTS[:3], *TEXTS[:5], TEXTS[0]])
    np.testing.assert_array_equal(twice, [embedder.vector(text) for text in [*TEXTS[:3], *TEXTS[:5], TEXTS[0]]])
    assert [text for text, _, _ in embedder.embedded] == TEXTS[:5]
    np.testing.assert_array_equal(store.embed(TEXTS), [embedder.vector(text) for text in TEXTS])
    assert [text for text, _, _ in embedder.embedded] == TEXTS
    again = make_embedder()
    reopened = VectorStore(tmp_path, again, task=None).embed(TEXTS[::-1])
    np.testing.assert_array_equal(reopened, [embedder.vector(text) for text in TEXTS[::-1]])
    assert again.embedded == []


def test_models_tasks_and_lengths_do_not_share_vectors(tmp_path, make_embedder):
    for fingerprint, task, max_length in [("a", None, None), ("b", None, None), ("a", "x", None), ("a", None, 9)]:
        embedder = make_embedder(fingerprint)
        got = VectorStore(tmp_path, embedder, task=task, max_length=max_length).embed(TEXTS)
        np.testing.assert_array_equal(got, [embedder.vector(text, task, max_length) for text in TEXTS])
        assert len(embedder.embedded) == len(TEXTS)
    assert len(list(tmp_path.iterdir())) == 4


def test_no_texts_are_no_vectors(tmp_path, make_embedder):
    assert VectorStore(tmp_path, make_embedder(), task=None).embed([]).shape == (0, 24)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_text_asked_for(tmp_path, make_embedder, small_blocks):
    store = VectorStore(tmp_path, make_embedder(), task=None)
    for texts in (TEXTS[:3], TEXTS, TEXTS[:2] * 5, [], [*TEXTS, "new 1", "new 2"]):
        done: list[int] = []
        store.embed(texts, done.append)
        # A text that is there twice is done twice, or the bar never gets to its end.
        assert sum(done) == len(texts)


def test_a_kill_costs_a_block_and_changes_no_bit(tmp_path, small_embedder, small_blocks, monkeypatch):
    # A real encoder: its last bits may depend on what shares a batch, and a run that goes on has the same batches.
    texts = [f"the quick brown fox {n} " * (n % 5 + 1) for n in range(11)]
    undisturbed = VectorStore(tmp_path / "a", small_embedder, task="clustering").embed(texts)
    calls = []
    original = type(small_embedder).embed

    def embed(self, texts, **options):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, texts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(small_embedder), "embed", embed)
        with pytest.raises(KeyboardInterrupt):
            VectorStore(tmp_path / "b", small_embedder, task="clustering").embed(texts)
        assert blocks(tmp_path / "b") == ["block-000000", "block-000001"]
        got = VectorStore(tmp_path / "b", small_embedder, task="clustering").embed(texts)
    assert calls == [4, 4, 3, 3], "what was done is not done again"
    np.testing.assert_array_equal(got, undisturbed)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from longspan.curate import vectors as module

class Embedder:
    dim, fingerprint = 3, "f"
    def embed(self, texts, **options):
        return np.array([[len(text), 0, 1] for text in texts], dtype=np.float32)

module.TEXTS_PER_BLOCK = 4
save, saved = np.save, []
def killing_save(path, array):
    save(path, array)
    saved.append(path)
    if len(saved) == 3:  # the second block's hashes are there, its vectors are not
        os.kill(os.getpid(), signal.SIGKILL)
np.save = killing_save
module.VectorStore(Path(sys.argv[1]), Embedder(), task=None).embed(["x" * n for n in range(1, 12)])
"""


def test_a_kill_while_a_block_is_written_leaves_whole_blocks(tmp_path, small_blocks):
    class Embedder:
        dim, fingerprint = 3, "f"

        def embed(self, texts, **options):
            nonlocal num_embedded
            num_embedded += len(texts)
            return np.array([[len(text), 0, 1] for text in texts], dtype=np.float32)

    num_embedded = 0
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, capture_output=True, timeout=60)
    assert result.returncode == -9, result.stderr.decode()
    left = blocks(tmp_path)
    assert left[-1] == "block-000000"
    assert left[0].startswith(UNFINISHED)
    store = VectorStore(tmp_path, Embedder(), task=None)  # pyright: ignore[reportArgumentType]
    assert blocks(tmp_path) == ["block-000000"]
    got = store.embed(["x" * n for n in range(1, 12)])
    np.testing.assert_array_equal(got[:, 0], range(1, 12))
    assert num_embedded == 7


def test_a_block_that_a_person_deleted_is_computed_again(tmp_path, make_embedder, small_blocks):
    expected = VectorStore(tmp_path, make_embedder(), task=None).embed(TEXTS)
    [store] = tmp_path.iterdir()
    for path in (store / "block-000001").iterdir():
        path.unlink()
    (store / "block-000001").rmdir()
    embedder = make_embedder()
    np.testing.assert_array_equal(VectorStore(tmp_path, embedder, task=None).embed(TEXTS), expected)
    assert [text for text, _, _ in embedder.embedded] == TEXTS[4:8]
    assert blocks(tmp_path) == ["block-000000", "block-000001", "block-000002"]
    again = make_embedder()
    np.testing.assert_array_equal(VectorStore(tmp_path, again, task=None).embed(TEXTS), expected)
    assert again.embedded == []


class ShuffledEngine(LocalEngine):
    """Blocks come back in some order, as from processes; after some of them it is killed."""

    def __init__(self, embedder, random: Random, num_blocks: int | None = None) -> None:
        super().__init__(embedder)
        self._random, self._left = random, num_blocks

    def _embed(self, blocks):
        out, blocks = [], iter(blocks)
        while out := out + list(itertools.islice(blocks, 3 - len(out))):
            if self._left is not None:
                if not self._left:
                    raise KeyboardInterrupt
                self._left -= 1
            yield from super()._embed([out.pop(self._random.randrange(len(out)))])


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 30), max_size=60),
    st.lists(st.integers(0, 8), max_size=3),
    st.randoms(use_true_random=False),
)
def test_in_whatever_order_blocks_come_and_however_often_it_is_killed(make_embedder, numbers, kills, random):
    texts = [f"text {number}" for number in numbers]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(module, "TEXTS_PER_BLOCK", 3)
        patch.setattr(module, "_TEXTS_PER_LOOK", 5)
        plain, killed = Path(folder) / "plain", Path(folder) / "killed"
        expected = VectorStore(plain, make_embedder(), task=None).numbers(texts)
        embedder = make_embedder()
        for num_blocks in kills:
            engine = ShuffledEngine(embedder, random, num_blocks)
            with contextlib.suppress(KeyboardInterrupt):
                VectorStore(killed, embedder, task=None, engine=engine).fill(texts)
        store = VectorStore(killed, embedder, task=None, engine=ShuffledEngine(embedder, random))
        done: list[int] = []
        store.fill(iter(texts), done.append)
        assert sum(done) == len(texts)
        np.testing.assert_array_equal(store.numbers(texts), expected)
        assert len(embedder.embedded) == len(set(texts)), "nothing twice"
        assert contents(killed) == contents(plain)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damage", ["vectors cut", "hashes cut", "vectors gone", "not numpy", "another width", "fewer"])
def test_a_torn_block_is_named(tmp_path, make_embedder, damage):
    VectorStore(tmp_path, make_embedder(), task=None).embed(TEXTS)
    [block] = next(tmp_path.iterdir()).iterdir()
    vectors, hashes = block / "vectors.npy", block / "hashes.npy"
    match damage:
        case "vectors cut":
            vectors.write_bytes(vectors.read_bytes()[:-5])
        case "hashes cut":
            hashes.write_bytes(hashes.read_bytes()[:-5])
        case "vectors gone":
            vectors.unlink()
        case "not numpy":
            hashes.write_bytes(b"nonsense")
        case "another width":
            np.save(vectors, np.zeros((11, 5), dtype=np.float32))
        case "fewer":
            np.save(vectors, np.load(vectors)[:-1])
    with pytest.raises(LongspanError) as caught:
        VectorStore(tmp_path, make_embedder(), task=None)
    assert caught.value.what.startswith("a block of stored vectors is torn: ")
    assert caught.value.where == str(block)
    assert caught.value.remedy.startswith("delete this folder")


def test_a_place_that_cannot_be_written_is_named(tmp_path, make_embedder):
    (tmp_path / "cache").touch()
    with pytest.raises(LongspanError, match="cannot write block-000000"):
        VectorStore(tmp_path / "cache", make_embedder(), task=None).embed(TEXTS)


def test_a_hash_that_ends_in_zero_bytes_is_found_again(tmp_path, make_embedder, monkeypatch):
    # numpy's fixed-width strings drop trailing zero bytes.
    monkeypatch.setattr(module, "_hash", lambda text: text.encode().ljust(16, b"\0"))
    embedder = make_embedder()
    for _ in range(2):
        got = VectorStore(tmp_path, embedder, task=None).embed(["a", "b"])
        np.testing.assert_array_equal(got, [embedder.vector("a"), embedder.vector("b")])
    assert len(embedder.embedded) == 2


def test_numbers_tell_texts_apart_and_lead_to_their_vectors(tmp_path, make_embedder, small_blocks):
    embedder = make_embedder()
    store = VectorStore(tmp_path, embedder, task=None)
    texts = [*TEXTS[:6], TEXTS[2], *TEXTS[3:], TEXTS[0]]
    numbers_N = store.numbers(texts)
    assert len(set(numbers_N.tolist())) == len(TEXTS)
    assert dict(zip(texts, numbers_N, strict=True)) == dict(
        zip(texts, VectorStore(tmp_path, embedder, task=None).numbers(texts), strict=True)
    )
    order = np.random.default_rng(0).permutation(len(texts))
    blocks = VectorBlocks(store.blocks.folder, embedder.dim)
    np.testing.assert_array_equal(blocks.take(numbers_N[order]), [embedder.vector(texts[n]) for n in order])
    for n, text in enumerate(texts):
        assert blocks.holds(int(numbers_N[n]), text)
        assert not blocks.holds(int(numbers_N[n]), text + "!")


def test_texts_are_found_when_many_have_been_added(tmp_path, make_embedder, small_blocks, monkeypatch):
    monkeypatch.setattr(module, "_PENDING", 5)
    monkeypatch.setattr(module, "OPEN_BLOCKS", 2)
    embedder = make_embedder()
    store, texts = VectorStore(tmp_path, embedder, task=None), [f"text {n}" for n in range(60)]
    for start in range(0, 60, 7):
        store.embed(texts[max(0, start - 20) : start + 7])
    np.testing.assert_array_equal(store.embed(texts[::-1]), [embedder.vector(text) for text in texts[::-1]])
    assert len(embedder.embedded) == 60


def test_a_block_that_is_gone_is_named(tmp_path, make_embedder, small_blocks):
    store = VectorStore(tmp_path, make_embedder(), task=None)
    numbers_N = store.numbers(TEXTS)
    shutil.rmtree(store.blocks.path(1))
    with pytest.raises(LongspanError, match="block of stored vectors is torn") as caught:
        VectorBlocks(store.blocks.folder, 24).take(numbers_N)
    assert caught.value.where.endswith("block-000001")
