"""A batch is a function of (seed, step, row): prefixes, cuts, negatives and masks, whoever makes it."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longspan.data.collate import MaskedCollator, PairCollator, pair_plan, text_plan
from longspan.data.dataset import Dataset
from longspan.data.packing import PackedRows
from longspan.data.plan import PlannedBatch, shuffled
from longspan.data.prepare import prepare
from longspan.data.shards import PreparedSource
from longspan.data.source import PairSource, TextSource
from longspan.errors import LongspanError
from longspan.text.tasks import PREFIXES


def sequences(packed) -> list[list[int]]:
    bounds = packed.cu_seqlens.tolist()
    return [packed.ids_T[start:end].tolist() for start, end in itertools.pairwise(bounds)]


def collator(dataset: Dataset, **changes) -> PairCollator:
    settings: dict[str, Any] = {"num_negatives": 0, "max_query_tokens": 64, "max_document_tokens": 64, "seed": 0}
    return PairCollator(dataset, **(settings | changes))


ALL = slice(None)


def as_prepared(raw: list[dict], source: PreparedSource) -> list[dict]:
    """Raw rows in the order in which `prepare` has shuffled them."""
    return [raw[row] for row in shuffled(np.arange(len(raw)), len(raw), (source.manifest.seed,))]


@pytest.fixture(scope="module")
def pairs(prepared) -> Dataset:
    return Dataset(prepared, "pairs")


@pytest.fixture(scope="module")
def odd(tmp_path_factory, write_rows, small_tokenizer) -> tuple[Dataset, list[dict]]:
    """Pairs of texts that begin with whatever could stick to a prefix."""
    starts = [
        "fox",
        " fox",
        ": fox",
        "##x",
        "\u0301e",
        "[SEP] fox",
        "[MASK]",
        "é",
        "東",
        "\u200bfox",
        "?",
        "0",
        "\tx",
        "_",
    ]
    rows = [
        {"query": f"{a}{b}", "document": f"{b} {a} " + "lazy dogs " * n} for a in starts for n, b in enumerate(starts)
    ]
    folder = tmp_path_factory.mktemp("odd")
    source = PairSource(name="odd", files=(str(write_rows(folder / "odd.jsonl", rows)),), query_task="classification")
    prepare([source], folder / "out", small_tokenizer)
    dataset = Dataset(folder / "out", "pairs")
    return dataset, as_prepared(rows, dataset.sources[0])


# --- prefixes and cuts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_query", "max_document"), [(64, 64), (18, 21), (2048, 19)])
def test_a_sequence_is_the_joined_string_in_tokens_and_cut(odd, small_tokenizer, max_query, max_document):
    dataset, rows = odd
    planned = PlannedBatch(0, np.arange(len(rows)))
    batch = collator(dataset, max_query_tokens=max_query, max_document_tokens=max_document)(0, planned, ALL)
    num_cut = 0
    for packed, column, task, longest in [
        (batch.queries, "query", "classification", max_query),
        (batch.documents, "document", "search_document", max_document),
    ]:
        joined = small_tokenizer.encode([PREFIXES[task] + row[column] for row in rows])
        num_cut += sum(len(ids) + 2 > longest for ids in joined)
        assert sequences(packed) == [
            [small_tokenizer.cls_id, *ids[: longest - 2].tolist(), small_tokenizer.sep_id] for ids in joined
        ]
        assert packed.max_length <= longest
    assert batch.num_cut == num_cut
    assert (num_cut > 0) == (min(max_query, max_document) < 64)
    assert batch.source == "odd"


def test_each_source_has_the_prefixes_of_its_tasks(pairs, small_tokenizer):
    names = [source.manifest.name for source in pairs.sources]
    for name, query_task, document_task in [
        ("faq", "search_query", "search_document"),
        ("code", "clustering", "classification"),
    ]:
        batch = collator(pairs)(0, PlannedBatch(names.index(name), np.array([3])), ALL)
        for packed, task in [(batch.queries, query_task), (batch.documents, document_task)]:
            [prefix] = small_tokenizer.encode([PREFIXES[task]])
            assert sequences(packed)[0][1 : 1 + len(prefix)] == prefix.tolist()
        assert batch.source == name


def test_other_prefixes_are_those_of_the_model_or_none(odd, small_tokenizer):
    dataset, rows = odd
    planned = PlannedBatch(0, np.arange(len(rows)))
    for prefixes in ({}, {"classification": "fox: ", "search_document": ""}):
        batch = collator(dataset, prefixes=prefixes)(0, planned, ALL)
        expected = small_tokenizer.encode([prefixes.get("classification", "") + row["query"] for row in rows])
        assert [ids[1:-1] for ids in sequences(batch.queries)] == [ids.tolist()[:62] for ids in expected]
        expected = small_tokenizer.encode([row["document"] for row in rows])
        assert [ids[1:-1] for ids in sequences(batch.documents)] == [ids.tolist()[:62] for ids in expected]
    with pytest.raises(LongspanError, match="classification has no prefix"):
        collator(dataset, prefixes={"search_query": "q: ", "search_document": "d: "})


def test_documents_of_a_source_may_have_a_cut_of_their_own(pairs):
    names = [source.manifest.name for source in pairs.sources]
    make = collator(pairs, max_query_tokens=10, max_document_tokens=14, max_document_tokens_of={"code": 17})
    longest = {}
    for number, name in enumerate(names):
        batch = make(0, PlannedBatch(number, np.arange(24)), ALL)
        plain = collator(pairs)(0, PlannedBatch(number, np.arange(24)), ALL)
        longest[name] = (batch.queries.max_length, batch.documents.max_length)
        cuts = [(plain.queries, 10), (plain.documents, {"code": 17, "faq": 14}[name])]
        assert batch.num_cut == sum(length > cut for packed, cut in cuts for length in packed.lengths)
    assert longest == {"faq": (10, 14), "code": (10, 17)}


def test_a_cut_for_a_source_that_is_not_there_is_refused(pairs):
    with pytest.raises(LongspanError, match="there is no source 'cod' whose documents could be cut") as caught:
        collator(pairs, max_document_tokens_of={"cod": 30})
    assert caught.value.where == "objective.max_document_tokens_of"
    assert caught.value.remedy == "the sources are: code, faq"
    with pytest.raises(LongspanError, match="leaves no room for text"):
        collator(pairs, max_document_tokens_of={"code": 3})


@pytest.mark.parametrize("key", ["max_query_tokens", "max_document_tokens"])
def test_a_length_that_leaves_no_room_for_text_is_refused(pairs, small_tokenizer, key):
    tasks = {"max_query_tokens": "search_query", "max_document_tokens": "search_document"}
    others = {"max_query_tokens": "clustering", "max_document_tokens": "classification"}
    longest = max(len(small_tokenizer.encode([PREFIXES[t[key]]])[0]) for t in (tasks, others)) + 2
    collator(pairs, **{key: longest + 1})
    with pytest.raises(LongspanError, match="leaves no room for text") as caught:
        collator(pairs, **{key: longest})
    assert caught.value.where == f"objective.{key}"
    assert f"more than {longest}" in caught.value.remedy


# --- negatives --------------------------------------------------------------------------------------------------------


def texts_of(small_tokenizer, texts: list[str], prefix: str) -> list[list[int]]:
    encoded = small_tokenizer.encode([prefix + text for text in texts])
    return [[small_tokenizer.cls_id, *ids.tolist(), small_tokenizer.sep_id] for ids in encoded]


def faq_batch(pairs: Dataset, rows, step=0, part=ALL, num_negatives=2, seed=0):
    number = [source.manifest.name for source in pairs.sources].index("faq")
    make = collator(pairs, num_negatives=num_negatives, seed=seed)
    return make(step, PlannedBatch(number, np.array(rows)), part)


def negatives_of(batch) -> list[list[list[int]]]:
    documents = sequences(batch.documents)[batch.queries.num_sequences :]
    return [documents[i : i + batch.num_negatives] for i in range(0, len(documents), batch.num_negatives)]


def test_a_batch_is_queries_then_positives_then_each_rows_own_negatives(pairs, pair_rows, small_tokenizer):
    [faq] = [source for source in pairs.sources if source.manifest.name == "faq"]
    raw, rows = as_prepared(pair_rows(40, "faq"), faq), [7, 0, 39, 12]
    batch = faq_batch(pairs, rows)
    assert (batch.queries.num_sequences, batch.documents.num_sequences, batch.num_negatives) == (4, 12, 2)
    documents = texts_of(small_tokenizer, [raw[row]["document"] for row in rows], PREFIXES["search_document"])
    assert sequences(batch.documents)[:4] == documents
    assert sequences(batch.queries) == texts_of(small_tokenizer, [raw[row]["query"] for row in rows], "search_query: ")
    for row, drawn in zip(rows, negatives_of(batch), strict=True):
        own = texts_of(small_tokenizer, raw[row]["negatives"], PREFIXES["search_document"])
        assert all(negative in own for negative in drawn)
        assert len({tuple(negative) for negative in drawn}) == 2, "distinct"


def test_negatives_depend_on_seed_step_and_row_alone(pairs):
    rows = list(range(16))
    whole = negatives_of(faq_batch(pairs, rows, step=5))
    for world_size in (1, 2, 4, 8):
        share = 16 // world_size
        parts = [slice(rank * share, (rank + 1) * share) for rank in range(world_size)]
        assert [n for part in parts for n in negatives_of(faq_batch(pairs, rows, step=5, part=part))] == whole
    assert negatives_of(faq_batch(pairs, rows[::-1], step=5)) == whole[::-1]
    assert negatives_of(faq_batch(pairs, rows, step=6)) != whole
    assert negatives_of(faq_batch(pairs, rows, step=5, seed=1)) != whole


def test_over_many_steps_every_negative_is_drawn_about_equally_often(pairs):
    drawn: Counter[tuple[int, ...]] = Counter()
    for step in range(200):
        [[first, second]] = negatives_of(faq_batch(pairs, [11], step))
        assert first != second
        drawn.update([tuple(first), tuple(second)])
    # Two of five in 200 steps: 80 each, with a spread of 7.
    assert len(drawn) == 5
    assert min(drawn.values()) > 50
    assert max(drawn.values()) < 110


def test_all_negatives_may_be_drawn_and_not_one_more(pairs):
    assert len(negatives_of(faq_batch(pairs, [0], num_negatives=5))[0]) == 5
    with pytest.raises(LongspanError) as caught:
        faq_batch(pairs, [3, 17], num_negatives=6)
    assert caught.value.what == "row 3 of source 'faq' has 5 negatives, the recipe draws 6"
    assert caught.value.where == "source faq, row 3"
    assert "curate mine" in caught.value.remedy


def test_without_negatives_none_are_read(odd):
    dataset, _ = odd
    batch = collator(dataset)(0, PlannedBatch(0, np.arange(4)), ALL)
    assert batch.num_negatives == 0
    assert batch.documents.num_sequences == 4
    with pytest.raises(LongspanError, match="row 0 of source 'odd' has 0 negatives, the recipe draws 1"):
        collator(dataset, num_negatives=1)(0, PlannedBatch(0, np.arange(4)), ALL)


def test_the_plan_of_pairs_is_over_all_sources_with_their_weights(pairs):
    plan = pair_plan(pairs, batch_size=8, seed=1)
    assert [(source.name, source.num_rows, source.weight) for source in plan.sources] == [
        ("code", 24, 1.0),
        ("faq", 40, 1.0),
    ]
    assert plan.steps_per_epoch == 8


# --- masks ------------------------------------------------------------------------------------------------------------

LENGTH, RATE = 128, 0.3


@pytest.fixture(scope="module")
def text(tmp_path_factory, small_tokenizer) -> tuple[Dataset, PackedRows]:
    """300 rows of 128 tokens."""
    folder = tmp_path_factory.mktemp("text")
    generator = np.random.default_rng(0)
    words = ["quick", "brown", "fox", "naïve", "東京", "0", "1", "def", "radius", "?", "[SEP]", "[PAD]"]
    lines = [{"text": " ".join(generator.choice(words, size=generator.integers(1, 90)))} for _ in range(800)]
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare([TextSource(name="t", files=(str(folder / "a.jsonl"),))], folder / "out", small_tokenizer)
    dataset = Dataset(folder / "out", "text")
    rows = PackedRows([s.ids("text") for s in dataset.sources], LENGTH, small_tokenizer.cls_id, small_tokenizer.sep_id)
    assert rows.num_rows > 300
    return dataset, rows


def masked(text, rows, step=0, part=ALL, seed=0, within_documents=False, mask_rate=RATE):
    dataset, packed_rows = text
    make = MaskedCollator(
        dataset, packed_rows, mask_rate=mask_rate, within_documents=within_documents, seed=seed
    )  # fmt: skip
    return make(step, PlannedBatch(0, np.array(rows)), part)


def test_masks_have_their_rate_and_never_a_special_token(text, small_tokenizer):
    special = [small_tokenizer.pad_id, small_tokenizer.cls_id, small_tokenizer.sep_id]
    batch = masked(text, range(300))
    for number, (packed, (positions, labels)) in enumerate(zip(batch.rows, batch.targets, strict=True)):
        ids, _ = text[1].row(number)
        candidates = ~np.isin(ids, special)
        assert len(positions) == round(RATE * candidates.sum())
        assert len(set(positions.tolist())) == len(positions)
        assert positions.tolist() == sorted(positions.tolist())
        assert candidates[positions.numpy()].all()
        np.testing.assert_array_equal(labels.numpy(), ids[positions.numpy()])
        untouched = np.delete(np.arange(LENGTH), positions.numpy())
        np.testing.assert_array_equal(packed.ids_T.numpy()[untouched], ids[untouched])


def test_80_10_10(text, small_tokenizer):
    batch = masked(text, range(300))
    true = np.concatenate([labels.numpy() for _, labels in batch.targets])
    seen = np.concatenate(
        [p.ids_T[positions].numpy() for p, (positions, _) in zip(batch.rows, batch.targets, strict=True)]
    )
    n, vocab_size = len(true), small_tokenizer.vocab_size
    assert n > 9000
    # Binomial with n > 9,000: a spread below 0.0042 for the 80 %, 0.0032 for the 10 %; four of them are allowed.
    assert abs((seen == small_tokenizer.mask_id).mean() - (0.8 + 0.1 / vocab_size)) < 4 * np.sqrt(0.16 / n)
    assert abs((seen == true).mean() - (0.1 + 0.1 / vocab_size)) < 4 * np.sqrt(0.09 / n)
    others = seen[(seen != true) & (seen != small_tokenizer.mask_id)]
    assert abs(len(others) / n - 0.1 * (1 - 2 / vocab_size)) < 4 * np.sqrt(0.09 / n)
    assert 0 <= others.min() <= others.max() < vocab_size
    assert len(set(others.tolist())) > 0.8 * vocab_size, "from the whole vocabulary"


def test_every_place_is_masked_equally_often(text):
    # Over 300 steps of one row: 30 % each, with a spread of 2.6 points; the special tokens never.
    counts = np.zeros(LENGTH)
    for step in range(300):
        counts[masked(text, [4], step).targets[0][0].numpy()] += 1
    counts = counts[counts > 0] / 300
    assert abs(counts.mean() - RATE) < 0.01
    assert counts.min() > RATE - 0.12
    assert counts.max() < RATE + 0.12


def test_masks_depend_on_seed_step_and_row_alone(text):
    def content(batch) -> list:
        return [
            (packed.ids_T.tolist(), positions.tolist(), labels.tolist())
            for packed, (positions, labels) in zip(batch.rows, batch.targets, strict=True)
        ]

    rows = list(range(16))
    whole = content(masked(text, rows, step=3))
    for world_size in (1, 2, 4, 8):
        share = 16 // world_size
        parts = [slice(rank * share, (rank + 1) * share) for rank in range(world_size)]
        assert [row for part in parts for row in content(masked(text, rows, step=3, part=part))] == whole
    assert content(masked(text, rows[::-1], step=3)) == whole[::-1]
    for other in (masked(text, rows, step=4), masked(text, rows, step=3, seed=1)):
        assert all(a[1] != b[1] for a, b in zip(content(other), whole, strict=True))
    assert len({tuple(positions) for _, positions, _ in whole}) == 16, "rows are masked in their own places"


def test_masking_does_not_write_into_the_shards(text):
    before = text[1].row(0)[0].copy()
    masked(text, [0] * 5)
    np.testing.assert_array_equal(text[1].row(0)[0], before)


def test_a_row_has_at_least_one_target(text):
    assert [len(labels) for _, labels in masked(text, range(20), mask_rate=1e-6).targets] == [1] * 20


def test_attention_crosses_documents_or_stays_inside(text):
    across, within = masked(text, range(20)), masked(text, range(20), within_documents=True)
    for number, (one, several) in enumerate(zip(across.rows, within.rows, strict=True)):
        assert one.lengths == (LENGTH,)
        assert several.lengths == tuple(text[1].row(number)[1])
        assert one.ids_T.tolist() == several.ids_T.tolist()
    assert max(packed.num_sequences for packed in within.rows) > 1


def test_the_plan_of_text_is_over_its_rows(text):
    plan = text_plan(text[1], batch_size=32, seed=0)
    assert plan.sources[0].num_rows == text[1].num_rows
    with pytest.raises(LongspanError, match=r"source 'text' has .* rows and cannot fill a batch of 10000"):
        text_plan(text[1], batch_size=10_000, seed=0)


def test_a_dataset_of_the_other_kind_is_refused(tmp_path: Path):
    with pytest.raises(LongspanError, match="no prepared sources of pairs"):
        Dataset(tmp_path, "pairs")
