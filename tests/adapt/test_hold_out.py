"""What is held out is unknown to training, whatever hangs together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.adapt.hold_out import hold_out, hold_out_given, normal, write_retrieval_set
from longspan.adapt.own_data import OwnData, OwnPair
from longspan.errors import LongspanError
from longspan.evaluate.retrieval import RetrievalSet


def data_of(pairs: list[OwnPair]) -> OwnData:
    return OwnData(tuple(pairs), tuple(dict.fromkeys(pair.document for pair in pairs)), "pairs")


def is_clean(train, negatives, held_out: RetrievalSet) -> bool:
    asked = {normal(text) for text in held_out.queries.values()}
    relevant = {normal(held_out.corpus[key]) for gains in held_out.qrels.values() for key in gains}
    return (
        asked.isdisjoint(normal(pair.query) for pair in train)
        and relevant.isdisjoint(normal(pair.document) for pair in train)
        and relevant.isdisjoint(map(normal, negatives))
    )


@given(
    links=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 30)), min_size=30, max_size=80),
    part=st.floats(0.05, 0.5),
    seed=st.integers(0, 3),
)
def test_no_held_out_text_is_in_training(links, part, seed):
    pairs = [OwnPair(f"query {q}", f"Document  {d}" if g % 2 else f"document {d}", f"file {g}") for q, d, g in links]
    data = data_of(list(dict.fromkeys(pairs)))
    try:
        parts = hold_out(data, part, seed=seed)
    except LongspanError:
        return  # too much hangs together
    assert is_clean(parts.train, parts.negatives, parts.held_out)
    files = {pair.group for pair in parts.train}
    held = set(data.pairs) - set(parts.train)
    assert files.isdisjoint(pair.group for pair in held)
    assert sum(map(len, parts.held_out.qrels.values())) == len({(p.query, p.document) for p in held})


def test_about_the_part_is_held_out_and_the_order_of_files_does_not_matter():
    pairs = [OwnPair(f"query {n}", f"document {n}", f"document {n}") for n in range(200)]
    parts = hold_out(data_of(pairs), 0.15)
    assert len(parts.held_out.queries) == 30
    assert len(parts.train) == 170
    assert len(parts.held_out.corpus) == 200, "documents of the training part distract"
    again = hold_out(data_of(pairs[::-1]), 0.15)
    assert set(again.train) == set(parts.train)
    assert set(hold_out(data_of(pairs), 0.15, seed=1).train) != set(parts.train)


def test_of_few_large_files_the_smallest_is_held_out():
    sizes = {"a": 40, "b": 20, "c": 40}
    pairs = [OwnPair(f"{file} {n}", f"text {file} {n}", file) for file, size in sizes.items() for n in range(size)]
    parts = hold_out(data_of(pairs), 0.15)
    assert {pair.group for pair in parts.train} == {"a", "c"}
    assert len(parts.held_out.queries) == 20


def test_one_file_cannot_be_parted():
    pairs = [OwnPair(f"query {n}", f"document {n}", "the one file") for n in range(100)]
    with pytest.raises(LongspanError, match="too few") as caught:
        hold_out(data_of(pairs), 0.15)
    assert "--held-out" in str(caught.value)


def test_a_given_set_takes_its_texts_out_of_training():
    pairs = [OwnPair(f"query {n}", f"document {n // 2}", f"document {n // 2}") for n in range(40)]
    corpus = {f"d{n}": f"Document {n}" for n in range(20)}
    queries = {f"q{n}": f"other {n}" for n in range(4)} | {"q9": "QUERY 39"}
    qrels = {f"q{n}": {f"d{n}": 1.0} for n in range(4)} | {"q9": {"d3": 1.0}}
    parts = hold_out_given(data_of(pairs), RetrievalSet("theirs", queries, corpus, qrels))
    assert is_clean(parts.train, parts.negatives, parts.held_out)
    assert parts.num_dropped == 9, "two pairs of each of four documents, and one query"
    assert len(parts.train) == 31


def test_what_is_written_is_read_again(tmp_path):
    pairs = [OwnPair(f"query\t{n}", f"a\nb {n}", f"a\nb {n}") for n in range(20)]
    held_out = hold_out(data_of(pairs), 0.3).held_out
    write_retrieval_set(held_out, tmp_path / "held-out")
    assert RetrievalSet.load(tmp_path / "held-out") == held_out
