"""Statistics are what one finds by counting: over the raw texts, over the plan's batches, over sets of texts."""

import itertools
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.collate import PairCollator, pair_plan
from longspan.data.dataset import Dataset
from longspan.data.prepare import prepare
from longspan.data.source import PairSource, TextSource
from longspan.data.stats import SequenceLengths, Stats, collect_stats
from longspan.data.stats_page import stats_page
from longspan.errors import LongspanError
from longspan.text.tasks import PREFIXES
from longspan.text.tokenizer import Tokenizer

ALL = slice(None)


def lengths_of(lengths: list[int]) -> SequenceLengths:
    counted = sorted(Counter(lengths).items())
    return SequenceLengths(values=tuple(v for v, _ in counted), counts=tuple(c for _, c in counted))


some_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(some_lengths, st.floats(0.01, 1))
def test_a_quantile_is_the_smallest_length_that_enough_do_not_exceed(lengths, part):
    found = lengths_of(lengths).quantile(part)
    assert sum(length <= found for length in lengths) >= part * len(lengths)
    assert found == min(lengths) or sum(length < found for length in lengths) < part * len(lengths)


@given(some_lengths)
def test_lengths_in_short(lengths):
    found = lengths_of(lengths)
    assert (found.num_tokens, found.longest) == (sum(lengths), max(lengths))
    assert found.mean == pytest.approx(np.mean(lengths))
    expected = np.quantile(lengths, [0.5, 0.9, 0.99], method="inverted_cdf")
    assert (found.p50, found.p90, found.p99) == tuple(expected)


@given(some_lengths, st.integers(1, 70))
def test_a_cut_takes_the_tokens_behind_it(lengths, longest):
    cut = lengths_of(lengths).cut(longest)
    assert cut.num_cut == sum(length > longest for length in lengths)
    assert cut.num_tokens_lost == sum(lengths) - sum(min(length, longest) for length in lengths)


# --- prepared sources -------------------------------------------------------------------------------------------------

WORDS = "the quick brown fox jumps over lazy dogs café".split()


def words(number: int, count: int) -> str:
    return " ".join(WORDS[(number * 7 + k * k) % len(WORDS)] for k in range(count))


FAQ = [(f"query {n % 17} {words(n % 17, n % 5)}", f"document {n % 23} {words(n % 23, 3 + n % 23)}") for n in range(50)]
CODE = [(f"query {n} {words(n, n % 5)}", f"document {n + 10} {words(n + 10, 3 + n + 10)}") for n in range(5, 35)]
BOOKS = [words(n, 1 + 9 * n) for n in range(1, 21)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_rows, small_tokenizer) -> Path:
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")

    def pairs(rows, negatives):
        return [{"query": q, "document": d, "negatives": ["fox"] * negatives(n)} for n, (q, d) in enumerate(rows)]

    rows = {
        "faq": pairs(FAQ, lambda n: 2 + n % 3),
        "code": pairs(CODE, lambda n: 0),
        "books": [{"text": text} for text in BOOKS],
    }
    files = {name: (str(write_rows(raw / f"{name}.jsonl", some)),) for name, some in rows.items()}
    sources = [
        PairSource(name="faq", files=files["faq"], negatives="negatives", weight=2.0),
        PairSource(
            name="code", files=files["code"], negatives="negatives", query_task="clustering", document_task="clustering"
        ),
        TextSource(name="books", files=files["books"]),
    ]
    prepare(sources, out, small_tokenizer)
    return out


@pytest.fixture(scope="module")
def stats(folder) -> Stats:
    return collect_stats(folder, lengths=(20, 32))


def as_tokens(texts, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Two texts are the same when they are the same to the model."""
    return [tuple(ids.tolist()) for ids in tokenizer.encode(list(texts))]


def column_of(stats: Stats, source: str, column: str):
    [found] = [c for s in stats.sources if s.name == source for c in s.columns if c.column == column]
    return found


@pytest.mark.parametrize(
    ("source", "column", "texts", "prefix"),
    [
        ("faq", "query", [q for q, _ in FAQ], "search_query: "),
        ("faq", "document", [d for _, d in FAQ], "search_document: "),
        ("code", "query", [q for q, _ in CODE], "clustering: "),
        ("code", "document", [d for _, d in CODE], "clustering: "),
        ("books", "text", BOOKS, ""),
    ],
)
def test_a_column_is_what_its_texts_are(stats, small_tokenizer, source, column, texts, prefix):
    found = column_of(stats, source, column)
    lengths = [len(ids) + 2 for ids in small_tokenizer.encode([prefix + text for text in texts])]
    assert found.lengths == lengths_of(lengths)
    cuts = (20, 32) if prefix else ()  # running text is packed and not cut
    assert [cut.length for cut in found.cuts] == list(cuts)
    assert [cut.num_cut for cut in found.cuts] == [sum(length > longest for length in lengths) for longest in cuts]
    seen = Counter(as_tokens(texts, small_tokenizer))
    assert found.repeats.num_seen == len(texts)
    assert found.repeats.num_repeated == len(texts) - len(seen)
    assert found.repeats.most == max(seen.values())


def test_a_pair_that_occurs_twice_is_a_repeat(tmp_path, write_rows, small_tokenizer):
    rows = [{"query": "fox", "document": "dogs"}, {"query": "dogs", "document": "fox"}] * 3
    rows += [{"query": "fox", "document": "fox"}, {"query": "dogs", "document": "dogs"}]
    source = PairSource(name="twice", files=(str(write_rows(tmp_path / "twice.jsonl", rows)),))
    prepare([source], tmp_path / "out", small_tokenizer)
    [found] = collect_stats(tmp_path / "out").sources
    assert found.pair_repeats is not None
    assert (found.pair_repeats.num_repeated, found.pair_repeats.most) == (4, 3)


def test_overlaps_are_the_texts_of_two_sources(stats, small_tokenizer):
    assert stats.sampled == 1
    found = {(o.column, o.first, o.second): o for o in stats.overlaps}
    expected = {
        column: [set(as_tokens([pair[side] for pair in rows], small_tokenizer)) for rows in (CODE, FAQ)]
        for side, column in enumerate(("query", "document"))
    }
    assert found.keys() == {("query", "code", "faq"), ("document", "code", "faq")}
    for (column, *_), overlap in found.items():
        code, faq = expected[column]
        assert overlap.num_shared == len(code & faq)
        assert overlap.part_of_first == pytest.approx(len(code & faq) / len(code))
        assert overlap.part_of_second == pytest.approx(len(code & faq) / len(faq))


def test_negatives_are_counted(stats):
    assert {s.name: s.num_negatives for s in stats.sources} == {"faq": (2, 4), "code": (0, 0), "books": None}


def test_shares_without_a_batch_size_are_rows_times_weight(stats):
    shares = {source.name: source.share for source in stats.sources}
    assert shares["faq"] == pytest.approx(2 * 50 / (2 * 50 + 30))
    assert shares["code"] == pytest.approx(30 / (2 * 50 + 30))
    assert shares["books"] == 1


@pytest.mark.parametrize("batch_size", [5, 7, 16])
def test_batches_are_those_of_the_plan(folder, batch_size):
    stats = collect_stats(folder, batch_size=batch_size)
    dataset = Dataset(folder, "pairs")
    plan = pair_plan(dataset, batch_size, seed=3)
    drawn = Counter(dataset.sources[plan(step).source].manifest.name for step in range(plan.steps_per_epoch))
    assert {s.name: s.num_batches for s in stats.sources if s.kind == "pairs"} == drawn
    for source in stats.sources:
        assert source.share == pytest.approx(1 if source.kind == "text" else drawn[source.name] / drawn.total())


def test_a_source_that_cannot_fill_a_batch_has_no_share(folder):
    shares = {s.name: (s.share, s.num_batches) for s in collect_stats(folder, batch_size=40).sources}
    assert shares == {"code": (0, 0), "faq": (1, 2), "books": (1, None)}


@pytest.mark.parametrize("longest", [None, 32])
def test_epoch_tokens_are_those_of_an_epochs_batches(folder, longest):
    stats = collect_stats(folder, lengths=(32,), batch_size=10)  # a divisor of all sizes: no row is left out
    dataset = Dataset(folder, "pairs")
    cut = longest or 10_000
    collate = PairCollator(dataset, num_negatives=0, max_query_tokens=cut, max_document_tokens=cut, seed=0)
    plan = pair_plan(dataset, 10, seed=0)
    batches = [collate(step, plan(step), ALL) for step in range(plan.steps_per_epoch)]
    expected = sum(batch.queries.num_tokens + batch.documents.num_tokens for batch in batches)
    found = {(epoch.kind, epoch.length): epoch.num_tokens for epoch in stats.epoch_tokens}
    assert found.keys() == {("pairs", None), ("pairs", 32), ("text", None)}
    assert found["pairs", longest] == expected


def test_rows_are_told_as_they_are_read(folder):
    seen = []
    collect_stats(folder, progress=seen.append)
    assert sum(seen) == len(FAQ) + len(CODE) + len(BOOKS)


def test_several_shards_are_one_source(prepared):
    """The fixture's sources have several shards each."""
    stats = collect_stats(prepared)
    for kind, columns in (("pairs", ("query", "document")), ("text", ("text",))):
        for source in Dataset(prepared, kind).sources:
            assert len(source.manifest.shards) > 1
            for column in columns:
                texts = [tuple(source.ids(column)[row].tolist()) for row in range(len(source))]
                repeats = column_of(stats, source.manifest.name, column).repeats
                assert (repeats.num_seen, repeats.num_repeated) == (len(texts), len(texts) - len(set(texts)))


# --- samples of the hashes --------------------------------------------------------------------------------------------


def test_a_sample_has_all_copies_of_a_text_or_none(tmp_path, write_rows, small_tokenizer):
    texts = [f"text {n} {words(n, n % 40)}" for n in range(300)]
    rows = [{"query": text, "document": text} for text in texts for _ in range(4)]
    for name, some in (("four", rows), ("one", rows[::4])):
        source = PairSource(name=name, files=(str(write_rows(tmp_path / f"{name}.jsonl", some)),))
        prepare([source], tmp_path / "out", small_tokenizer)
    found = collect_stats(tmp_path / "out", max_hashes=200)
    assert found.sampled == 8
    for source in found.sources:
        for repeats in (*(column.repeats for column in source.columns), source.pair_repeats):
            assert repeats is not None
            copies = 4 if source.name == "four" else 1
            assert repeats.part == pytest.approx(1 - 1 / copies)
            assert repeats.most == copies
            # 300 / 8 = 37.5 distinct texts are expected, give or take 5.7
            assert 15 < repeats.num_seen / copies < 60
    assert {(o.column, o.part_of_first, o.part_of_second) for o in found.overlaps} == {
        ("query", 1.0, 1.0),
        ("document", 1.0, 1.0),
    }


@pytest.mark.parametrize("max_hashes", [1, 37, 99, 100, 101, 1000])
def test_the_sample_is_as_large_as_there_is_room(folder, max_hashes):
    sampled = collect_stats(folder, max_hashes=max_hashes).sampled
    rows = len(FAQ) + len(CODE) + len(BOOKS)
    assert rows / sampled <= max_hashes
    assert sampled == 1 or rows / (sampled / 2) > max_hashes
    assert math.log2(sampled).is_integer()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_folder_without_sources_is_refused(tmp_path):
    with pytest.raises(LongspanError, match="no prepared sources"):
        collect_stats(tmp_path)


def test_a_cut_that_leaves_no_room_is_refused(folder, small_tokenizer):
    longest_prefix = max(len(ids) for ids in small_tokenizer.encode([PREFIXES["search_document"]]))
    with pytest.raises(LongspanError, match=f"leaves no room for text: .* up to {longest_prefix + 2}"):
        collect_stats(folder, lengths=(longest_prefix + 2,))
    assert collect_stats(folder, lengths=(longest_prefix + 3,)).sources


# --- the page ---------------------------------------------------------------------------------------------------------


class _Checked(HTMLParser):
    """Collects tags and their attributes, and fails where they do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page: str) -> _Checked:
    found = _Checked()
    found.feed(page)
    found.close()
    assert found.open == []
    return found


def test_the_page_is_one_file_without_scripts_or_links(folder):
    page = stats_page(collect_stats(folder, lengths=(20, 32), batch_size=10))
    tags = parsed(page).tags
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags}
    assert "://" not in page
    assert sum(tag == "figure" for tag, _ in tags) == 5
    assert "search_document" in page


def test_bars_stay_inside_their_plots(folder):
    for plot in re.findall(r"<figure>.*?</figure>", stats_page(collect_stats(folder, lengths=(32,))), re.DOTALL):
        tags = parsed(plot).tags
        [svg] = [attributes for tag, attributes in tags if tag == "svg"]
        bars = [attributes for tag, attributes in tags if tag == "rect"]
        assert bars
        for bar in bars:
            x, y, width, height = (float(bar[key] or 0) for key in ("x", "y", "width", "height"))
            assert x >= 0
            assert x + width <= float(svg["width"] or 0) + 0.01
            assert 0 <= y <= y + height <= float(svg["height"] or 0)
        titles = re.findall(r"<title>([\d,]+) to ([\d,]+) tokens: ([\d,]+)", plot)
        edges = [(int(low.replace(",", "")), int(high.replace(",", ""))) for low, high, _ in titles]
        assert all(high < low for (_, high), (low, _) in itertools.pairwise(edges)), "bars do not overlap"


def test_every_length_is_in_the_bar_that_says_so():
    lengths = list(range(1, 300))
    column = {"column": "query", "task": None, "cuts": (), "repeats": {"num_seen": 0, "num_repeated": 0, "most": 0}}
    source = {
        "name": "<&>",
        "kind": "text",
        "num_rows": 1,
        "weight": 1,
        "share": 1,
        "num_batches": None,
        "columns": [{**column, "lengths": {"values": lengths, "counts": [1] * len(lengths)}}],
        "pair_repeats": None,
        "num_negatives": None,
    }
    values = {
        "folder": "<&>",
        "batch_size": None,
        "sampled": 1,
        "sources": [source],
        "overlaps": [],
        "epoch_tokens": [],
    }
    page = stats_page(Stats.parse(values, where="test"))
    parsed(page)
    assert "&lt;&amp;&gt;" in page
    bars = re.findall(r"<title>(\d+) to (\d+) tokens: (\d+)", page)
    assert sum(int(count) for *_, count in bars) == len(lengths)
    for low, high, count in bars[:-1]:
        assert int(count) == int(high) - int(low) + 1


# --- real sets --------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_squad_and_amazon_reviews_are_what_counting_says(shared_data, tmp_path):
    from longspan.data.readers import read_rows

    tokenizer = Tokenizer.load(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    files = {name: str(shared_data / "pairs" / f"{name}.jsonl.gz") for name in ("squad", "amazon_reviews")}
    tasks = {"squad": ("search_query", "search_document"), "amazon_reviews": ("classification", "classification")}
    both = {name: {"query_task": query, "document_task": document} for name, (query, document) in tasks.items()}
    sources = [
        PairSource.parse({"name": name, "files": [file], "max_rows": 3000, **both[name]}, where="test")
        for name, file in files.items()
    ]
    prepare(sources, tmp_path / "out", tokenizer)
    stats = collect_stats(tmp_path / "out", lengths=(32, 256), batch_size=1024)
    assert {s.name: (s.num_rows, s.num_batches) for s in stats.sources} == dict.fromkeys(files, (3000, 2))
    for name, file in files.items():
        rows = [row for _, row in itertools.islice(read_rows(file), 3000)]
        for column, task in zip(("query", "document"), tasks[name], strict=True):
            found = column_of(stats, name, column)
            texts = [row[column] for row in rows]
            lengths = np.array([len(ids) + 2 for ids in tokenizer.encode([f"{task}: {text}" for text in texts])])
            assert found.lengths.mean == pytest.approx(lengths.mean())
            expected = np.quantile(lengths, [0.5, 0.9, 0.99, 1.0], method="inverted_cdf")
            assert (found.lengths.p50, found.lengths.p90, found.lengths.p99, found.lengths.longest) == tuple(expected)
            assert [cut.num_cut for cut in found.cuts] == [(lengths > 32).sum(), (lengths > 256).sum()]
            distinct = {tuple(ids.tolist()) for ids in tokenizer.encode(texts)}
            assert found.repeats.num_repeated == len(texts) - len(distinct)
