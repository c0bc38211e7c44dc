"""The catalogue says what the paper says, and every entry can be prepared."""

import pytest

from longspan.data.catalog import Entry, catalog, find_entry, source_of, source_toml
from longspan.data.source import PairSource, TextSource, read_sources
from longspan.errors import LongspanError

ENTRIES = list(catalog().values())


def of_stage(stage):
    return [entry for entry in ENTRIES if entry.stage == stage]


def count_of(entry: Entry) -> int:
    """The paper's count; every source of the two tables has one."""
    assert entry.paper_rows is not None
    return entry.paper_rows


def released(entry: Entry) -> int:
    """The rows of the authors' release."""
    assert entry.released_rows is not None
    return entry.released_rows


def whole_batches(rows: int, batch_size: int) -> int:
    """Rows of the whole batches in files of 100,000 rows, the last one shorter."""
    files = [100_000] * (rows // 100_000) + [rows % 100_000]
    return sum(file // batch_size * batch_size for file in files)


# --- Table 7 ----------------------------------------------------------------------------------------------------------


def test_table_7_has_29_sources_that_add_up_to_its_total():
    assert len(of_stage("contrastive")) == 29
    assert sum(count_of(entry) for entry in of_stage("contrastive")) == 234_553_344


def test_table_7s_shares():
    shares = [count_of(entry) / 234_553_344 for entry in of_stage("contrastive")]
    assert [f"{share:.2f}" for share in shares[:10]] == "0.28 0.23 0.16 0.15 0.04 0.03 0.03 0.03 0.03 0.01".split()
    assert max(shares[10:]) < 0.01


def test_the_released_rows_of_the_weakly_supervised_sources():
    assert sum(released(entry) for entry in of_stage("contrastive")) == 238_998_494


def test_filtering_only_takes_away():
    for entry in of_stage("contrastive"):
        # WikiAnswers is the one that counts sets of questions, not pairs, before filtering.
        assert entry.origin_rows is None or count_of(entry) <= released(entry) < entry.origin_rows
    assert [entry.name for entry in of_stage("contrastive") if entry.origin_rows is None] == [
        "s2orc_abstract_body",
        "wikipedia",
    ]
    # "In total, we curated 470 million pairs": what is missing are those two.
    assert 440e6 < sum(entry.origin_rows or 0 for entry in of_stage("contrastive")) < 470e6


def test_table_7_counts_whole_batches_of_the_released_files():
    differ = {
        entry.name for entry in of_stage("contrastive") if count_of(entry) != whole_batches(released(entry), 16_384)
    }
    assert differ == {"reddit_title_body", "s2orc_abstract_body"}
    assert all(any("Table 7 has fewer rows" in note for note in find_entry(name).notes) for name in differ)
    assert all(count_of(entry) % 16_384 == 0 for entry in of_stage("contrastive"))


# --- Table 3 ----------------------------------------------------------------------------------------------------------


def test_table_3_has_ten_sources_of_1_6_million_rows():
    assert len(of_stage("finetune")) == 10
    assert sum(count_of(entry) for entry in of_stage("finetune")) == 1_692_672


def test_table_3_counts_whole_batches_of_the_released_files():
    # MEDI's duplicate questions lie in one file, though they are more than 100,000.
    for entry in of_stage("finetune"):
        one_file = entry.name == "medi_stackexchange"
        expected = released(entry) // 256 * 256 if one_file else whole_batches(released(entry), 256)
        assert count_of(entry) == expected, entry.name


def test_negatives_are_mined_for_the_retrieval_sets():
    mined = {entry.name for entry in ENTRIES if entry.mined_negatives}
    assert mined == {"msmarco", "nq", "hotpot", "fever"}
    assert all(find_entry(name).query_task == "search_query" for name in mined)


# --- all entries ------------------------------------------------------------------------------------------------------


def test_the_corpora_of_masked_language_modelling():
    assert [entry.name for entry in of_stage("mlm")] == ["bookscorpus", "wikipedia_text"]
    assert all(entry.form == "text" for entry in of_stage("mlm"))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_tasks_go_together(entry):
    if entry.form == "text":
        assert entry.query_task is entry.document_task is None
    elif entry.symmetric:
        assert entry.query_task in ("classification", "clustering")
    else:
        assert (entry.query_task, entry.document_task) == ("search_query", "search_document")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_numbers_tasks_and_places_were_read_somewhere(entry):
    facts = {"release", "origin"} | ({"paper_rows", "tasks"} if entry.form != "text" else set())
    assert facts <= entry.evidence.keys()
    assert all(entry.evidence.values())
    assert entry.form == {"mlm": "text", "contrastive": "pairs", "finetune": "triplets"}[entry.stage]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_table_of_an_entry_is_a_source(entry, tmp_path):
    path = tmp_path / "sources.toml"
    path.write_text(source_toml(source_of(entry)), "utf-8")
    [source] = read_sources(path)
    assert source == source_of(entry)
    assert (source.name, source.hub, source.split) == (entry.name, entry.hub, entry.split)
    assert (source.revision, source.licence, source.origin) == (entry.revision, entry.licence, entry.origin)
    if isinstance(source, TextSource):
        assert source.text == entry.text
    else:
        assert isinstance(source, PairSource)
        assert source.columns == tuple(c for c in (entry.query, entry.document, entry.negatives) if c)
        assert (source.query_task, source.document_task) == (entry.query_task, entry.document_task)


def test_all_tables_together_are_one_sources_file(tmp_path):
    path = tmp_path / "sources.toml"
    path.write_text("\n".join(source_toml(source_of(entry)) for entry in ENTRIES), "utf-8")
    assert [source.name for source in read_sources(path)] == list(catalog())


@pytest.mark.parametrize(("name", "remedy"), [("godaq", "did you mean gooaq"), ("zzzz", "longspan data list")])
def test_an_unknown_name_is_refused(name, remedy):
    with pytest.raises(LongspanError) as caught:
        find_entry(name)
    assert name in caught.value.what
    assert remedy in caught.value.remedy
