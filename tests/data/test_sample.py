"""A sample is what the model reads: prefix, cut, special tokens, negatives and masks, said in words."""

import difflib

import pytest

from longspan.data.dataset import Dataset
from longspan.data.sample import sample_pairs, sample_text
from longspan.errors import LongspanError
from longspan.text.tasks import PREFIXES


def words_of(seen) -> str:
    return " ".join(piece for piece in seen.pieces if piece)


def stored(dataset: Dataset, name: str, column: str, row: int) -> list[int]:
    [source] = [s for s in dataset.sources if s.manifest.name == name]
    return source.ids(column)[row].tolist()


@pytest.mark.parametrize("longest", [9, 12, 4096])
def test_a_text_is_the_prefix_and_the_text_as_far_as_it_goes(prepared, small_tokenizer, longest):
    dataset = Dataset(prepared, "pairs")
    some_cut, names = False, set()
    for row in sample_pairs(prepared, num_rows=8, max_query_tokens=longest, max_document_tokens=longest):
        assert row.source is not None
        names.add(row.source)
        for seen, column, task in zip(row.texts[:2], ("query", "document"), row.tasks, strict=True):
            assert seen.role == column
            [prefix] = small_tokenizer.encode([PREFIXES[task]])
            text = stored(dataset, row.source, column, row.row)
            kept = text[: longest - 2 - len(prefix)]
            expected = [small_tokenizer.cls_id, *prefix.tolist(), *kept]
            assert seen.pieces == (small_tokenizer.decode(expected), "[SEP]")
            assert (seen.num_tokens, seen.num_lost) == (len(expected) + 1, len(text) - len(kept))
            some_cut |= seen.num_lost > 0
    assert names == {"faq", "code"}
    assert some_cut == (longest < 4096)


def test_tasks_are_those_of_the_source(prepared):
    tasks = {row.source: row.tasks for row in sample_pairs(prepared)}
    assert tasks == {"faq": ("search_query", "search_document"), "code": ("clustering", "classification")}


def test_negatives_are_the_rows_own_and_different(prepared, small_tokenizer):
    dataset = Dataset(prepared, "pairs")
    for wanted, expected in ((0, 0), (3, 3), (7, 5)):  # the rows have five
        for row in sample_pairs(prepared, source="faq", num_rows=6, num_negatives=wanted):
            negatives = row.texts[2:]
            assert [seen.role for seen in negatives] == [f"negative {n + 1}" for n in range(expected)]
            words = {words_of(seen) for seen in negatives}
            assert len(words) == expected
            query = small_tokenizer.decode(stored(dataset, "faq", "query", row.row))
            number = query.split()[2:3]  # "faq query 12 fox ..." was written with "faq lazy dogs 12 k"
            assert all(number[0] in seen for seen in words)


def test_the_draw_depends_on_the_seed_alone(prepared):
    draws = [
        [(row.source, row.row, row.texts) for row in sample_pairs(prepared, num_rows=5, seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1]
    assert [place for *place, _ in draws[0]] != [place for *place, _ in draws[2]]


def test_rows_are_different_and_no_more_than_there_are(prepared):
    rows = [row.row for row in sample_pairs(prepared, source="code", num_rows=1000)]
    assert rows == list(range(24))
    rows = [row.row for row in sample_pairs(prepared, source="code", num_rows=9)]
    assert len(set(rows)) == 9
    assert rows == sorted(rows)
    assert set(rows) <= set(range(24))


def test_packed_text_is_masked(prepared, small_tokenizer):
    rows = list(sample_text(prepared, num_rows=4, row_length=40, mask_rate=0.5))
    assert len(rows) == 4
    for row in rows:
        [seen] = row.texts
        assert (row.source, row.tasks, seen.role) == (None, (), "text")
        assert (seen.num_tokens, seen.num_lost) == (40, 0)
        assert row.num_targets is not None
        assert 12 < row.num_targets <= 20  # half of all but [CLS] and [SEP]
        assert 1 <= words_of(seen).count("[MASK]") <= row.num_targets


def test_unmasked_text_is_the_stream(prepared, small_tokenizer):
    """With almost nothing to predict, a row is a stretch of the documents laid end to end."""
    dataset = Dataset(prepared, "text")
    [source] = dataset.sources
    stream = []
    for number in range(len(source)):
        text = source.ids("text")[number].tolist()
        stream += [small_tokenizer.cls_id, *text, small_tokenizer.sep_id]
    for row in sample_text(prepared, num_rows=3, row_length=30, mask_rate=1e-6):
        expected = small_tokenizer.decode(stream[row.row * 30 : (row.row + 1) * 30]).split()
        found = words_of(row.texts[0]).split()
        assert row.num_targets == 1
        same = sum(block.size for block in difflib.SequenceMatcher(None, found, expected).get_matching_blocks())
        assert same >= len(expected) - 2  # the masked piece, and the rest of its word


@pytest.mark.parametrize(
    ("draw", "what"),
    [
        (lambda folder: sample_pairs(folder, source="books"), "no prepared source 'books' of pairs"),
        (lambda folder: sample_text(folder, source="faq"), "no prepared source 'faq' of text"),
        (lambda folder: sample_pairs(folder, max_query_tokens=5), "leaves no room for text"),
        (lambda folder: sample_text(folder, row_length=10**6), "less than one row"),
        (lambda folder: sample_pairs(folder / "gone"), "no prepared sources of pairs"),
    ],
)
def test_what_cannot_be_shown_is_refused(prepared, draw, what):
    with pytest.raises(LongspanError, match=what):
        list(draw(prepared))
