"""Copies are dropped, and nothing else: exact ones always, near ones as often as the bands promise."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.curate import sketches as module
from longspan.curate.dedup import deduplicate, jaccard
from longspan.curate.ngrams import NgramHasher, normalised, words
from longspan.curate.sketches import DedupConfig, sketch
from longspan.errors import LongspanError

pytest.importorskip("rensa", reason="near duplicates need the dedup extra")

DOCUMENTS = DedupConfig(columns={"document": 0.8}, ngram=2)


def write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(files: list[str], out: Path, config: DedupConfig = DOCUMENTS, **options) -> dict:
    return deduplicate(sketch(files, config, out, **options), out)


def documents(*texts: str) -> list[dict]:
    return [{"document": text, "n": n} for n, text in enumerate(texts)]


def random_words(seed: int, count: int = 60) -> list[str]:
    return random.Random(seed).choices([f"w{n}" for n in range(5000)], k=count)


def changed(text: list[str], places: list[int]) -> str:
    return " ".join(f"new{n}" if n in places else word for n, word in enumerate(text))


def similarity(first: str, second: str, ngram: int = 2) -> float:
    """Jaccard of word n-grams, from the definition."""
    sets = []
    for text in (first, second):
        own = words(text, signs=True)
        length = min(ngram, len(own))
        sets.append({tuple(own[i : i + length]) for i in range(len(own) - length + 1)})
    return len(sets[0] & sets[1]) / max(1, len(sets[0] | sets[1]))


# --- n-grams ----------------------------------------------------------------------------------------------------------


def test_copies_differ_in_case_spaces_and_forms():
    assert normalised("  The\tfirst ﬁle\n") == "the first file"
    assert words("Don't: it's 50 %!") == ["don", "t", "it", "s", "50"]
    assert words("C++ and C#", signs=True) == ["c", "+", "+", "and", "c", "#"]
    assert words("東京 is ไทย") == ["東", "京", "is", *"ไทย"]


letters = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)


@given(letters, letters, st.integers(1, 4))
def test_hashes_are_the_set_of_ngrams(first, second, n):
    hasher = NgramHasher(n)
    one, two = hasher.hashes(first), hasher.hashes(second)
    assert (np.diff(one.astype(object)) > 0).all()
    assert jaccard(one, two) == similarity(" ".join(first), " ".join(second), n)


def test_hashes_are_the_same_in_every_process():
    assert NgramHasher(2).hashes(["a", "b", "c"]).tolist() == [6802589585425292438, 15064931491686589906]


# --- what is dropped --------------------------------------------------------------------------------------------------


def test_the_first_copy_stays_and_the_others_say_why(tmp_path):
    text = random_words(1)
    near = changed(text, [30])
    rows = documents(" ".join(text), "something else entirely", near, " ".join(text).upper() + "\n", near + " ")
    report = run([write(tmp_path / "a.jsonl", rows)], tmp_path / "out")
    assert read(tmp_path / "out/kept/a.jsonl") == rows[:2]
    dropped = read(tmp_path / "out/dropped.jsonl")
    assert [(row["n"], row["duplicate"]["kind"]) for row in dropped] == [(2, "near"), (3, "exact"), (4, "near")]
    assert {row["duplicate"]["kept"] for row in dropped} == {f"{tmp_path / 'a.jsonl'}:1"}
    expected = round(similarity(rows[0]["document"], near), 4)
    assert [row["duplicate"]["similarity"] for row in dropped] == [expected, 1.0, expected]
    assert {k: {key: v for key, v in row.items() if key != "duplicate"} for k, row in enumerate(dropped)} == dict(
        enumerate(rows[2:])
    )
    assert (report["rows"], report["kept"], report["dropped_exact"], report["dropped_near"]) == (5, 2, 1, 2)
    assert (report["clusters"], report["cluster_sizes"]) == (1, {"4": 1})
    assert len(report["examples"]) == 3
    assert report["examples"][0]["document"]["kept"].startswith(" ".join(text[:10]))
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    assert not (tmp_path / "out/sketches").exists()


def test_across_files_the_first_file_wins(tmp_path):
    a, b = documents("one and the same text", "only in a"), documents("only in b", "One and the  same text")
    files = [write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b), write(tmp_path / "empty.jsonl", [])]
    report = run(files, tmp_path / "ab")
    assert read(tmp_path / "ab/kept/a.jsonl") == a
    assert read(tmp_path / "ab/kept/b.jsonl") == b[:1]
    assert read(tmp_path / "ab/kept/empty.jsonl") == []
    assert report["dropped_because_of"] == [{"file": files[1], "kept_file": files[0], "rows": 1}]
    assert report["files"][files[1]] == {"rows": 2, "kept": 1, "exact": 1, "near": 0}
    run(files[1::-1], tmp_path / "ba")
    assert read(tmp_path / "ba/kept/a.jsonl") == a[1:]
    assert read(tmp_path / "ba/kept/b.jsonl") == b


def test_a_pair_is_a_copy_if_both_sides_are(tmp_path):
    long = random_words(2)
    near = changed(long, [40])
    rows = [
        {"query": "When did the movement begin?", "document": " ".join(long)},
        {"query": "Why did the movement begin?", "document": " ".join(long)},
        {"query": "when did the movement begin ?", "document": near},
        {"query": "When did the movement begin?", "document": "another answer altogether"},
    ]
    file = write(tmp_path / "a.jsonl", rows)
    run([file], tmp_path / "pairs", DedupConfig(ngram=2))
    assert read(tmp_path / "pairs/kept/a.jsonl") == [rows[0], rows[1], rows[3]]
    run([file], tmp_path / "documents", DedupConfig(columns={"document": 0.8}, ngram=2))
    assert read(tmp_path / "documents/kept/a.jsonl") == [rows[0], rows[3]]
    run([file], tmp_path / "queries", DedupConfig(columns={"query": 1.0}, ngram=2))
    assert read(tmp_path / "queries/kept/a.jsonl") == rows[:2]
    run([file], tmp_path / "exact", DedupConfig(columns={"document": 0.8}, near=False))
    assert read(tmp_path / "exact/kept/a.jsonl") == [rows[0], *rows[2:]]


def test_a_chain_does_not_pull_in_what_is_unlike_the_kept_row(tmp_path):
    text = random_words(3, 40)
    chain = [changed(text, list(range(0, 2 * n, 2))) for n in range(9)]
    assert similarity(chain[0], chain[1]) >= 0.8 > similarity(chain[0], chain[4])
    report = run([write(tmp_path / "a.jsonl", documents(*chain))], tmp_path / "out")
    kept = [row["document"] for row in read(tmp_path / "out/kept/a.jsonl")]
    assert kept[0] == chain[0]
    assert 1 < len(kept) < len(chain)
    assert max(similarity(a, b) for a in kept for b in kept if a is not b) < 0.8
    assert report["dropped_near"] == len(chain) - len(kept)


texts = st.lists(st.sampled_from(["ab", "cd", "ef", "gh"]), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=30)
@given(rows=st.lists(texts, max_size=25), ngram=st.integers(1, 3), threshold=st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_laws(tmp_path_factory, rows, ngram, threshold):
    folder = tmp_path_factory.mktemp("laws")
    config = DedupConfig(columns={"document": threshold}, ngram=ngram)
    report = run([write(folder / "a.jsonl", documents(*rows))], folder / "out", config)
    kept = {row["n"]: row["document"] for row in read(folder / "out/kept/a.jsonl")}
    dropped = read(folder / "out/dropped.jsonl")
    # Every row is in one of the two, in its order.
    assert sorted([*kept, *(row["n"] for row in dropped)]) == list(range(len(rows)))
    assert list(kept) == sorted(kept)
    # No exact duplicate stays.
    assert len(set(kept.values())) == len(kept)
    # No row is dropped below the threshold, or for one that is not there, or for a later one.
    for row in dropped:
        owner = int(row["duplicate"]["kept"].rpartition(":")[2]) - 1
        assert owner in kept
        assert owner < row["n"]
        found = similarity(row["document"], kept[owner], ngram)
        assert found >= threshold
        assert row["duplicate"]["similarity"] == pytest.approx(found, abs=1e-4)
    # What is left has no duplicates.
    again = run([str(folder / "out/kept/a.jsonl")], folder / "again", config)
    assert (again["dropped_exact"], again["dropped_near"], again["kept"]) == (0, 0, report["kept"])


@given(st.permutations(range(12)))
@settings(max_examples=10)
def test_where_copies_are_alike_the_order_decides_only_which_one_stays(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("order")
    rows = [
        {"document": changed(random_words(group), [10] if copy == 1 else []), "group": group}
        for group in range(4)
        for copy in range(3)
    ]
    report = run([write(folder / "a.jsonl", [rows[n] for n in order])], folder / "out")
    kept = read(folder / "out/kept/a.jsonl")
    assert [row["group"] for row in kept] == list(dict.fromkeys(rows[n]["group"] for n in order))
    assert report["cluster_sizes"] == {"3": 4}


# --- recall -----------------------------------------------------------------------------------------------------------


def test_bands_follow_the_threshold():
    for columns in ({"t": 0.8}, {"t": 0.5}, {"t": 1.0}, {"a": 0.8, "b": 0.8}, {"a": 1.0, "b": 0.8}):
        config = DedupConfig(columns=columns)
        num_bands, slots = config.bands
        assert num_bands * slots <= config.num_hashes
        assert config.recall(math.prod(columns.values())) >= module.TARGET_RECALL
    assert DedupConfig(columns={"t": 0.8}).bands == (21, 6)
    assert DedupConfig(columns={"t": 0.01}).bands == (128, 1)  # no choice reaches the target


@pytest.mark.parametrize("places", [[15, 45], [8, 20, 33, 50], [4, 14, 24, 34, 44, 54]])
def test_near_copies_are_candidates_as_often_as_promised(places):
    """Constructed near-copies in two columns: the share that meets in a band, against the formula."""
    config, num_pairs = DedupConfig(columns={"a": 0.8, "b": 0.8}, ngram=2), 400
    sketcher = module.Sketcher(config)
    originals = [random_words(seed) for seed in range(2 * num_pairs)]
    first = [[" ".join(text) for text in originals[2 * n : 2 * n + 2]] for n in range(num_pairs)]
    second = [[changed(text, places) for text in originals[2 * n : 2 * n + 2]] for n in range(num_pairs)]
    bands_one, bands_two = (sketcher.block(side)[:, module.EXACT_KEYS :] for side in (first, second))
    together = float((bands_one == bands_two).any(1).mean())
    pairs = [pair for one, two in zip(first[:50], second[:50], strict=True) for pair in zip(one, two, strict=True)]
    s = float(np.mean([similarity(*pair) for pair in pairs]))
    promised = config.recall(s * s)
    assert together == pytest.approx(promised, abs=4 * (promised * (1 - promised) / num_pairs) ** 0.5 + 0.02)


# --- how it runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setattr(module, "ROWS_PER_BLOCK", 8)
    files = []
    for name in "abc":
        rows = documents(*(changed(random_words(seed % 12), [seed % 7]) for seed in range(ord(name), ord(name) + 30)))
        files.append(write(tmp_path / f"{name}.jsonl", rows))
    return files


def result(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_kill_costs_a_block_and_changes_nothing(tmp_path, many, monkeypatch):
    run(many, tmp_path / "whole")
    made = []
    original = module.Sketcher.block

    def block(self, texts):
        made.append(len(texts))
        if len(made) == 6:
            raise KeyboardInterrupt
        return original(self, texts)

    monkeypatch.setattr(module.Sketcher, "block", block)
    with pytest.raises(KeyboardInterrupt):
        run(many, tmp_path / "killed")
    done: list[int] = []
    sketches = sketch(many, DOCUMENTS, tmp_path / "killed", progress=done.append)
    assert sum(made) == 90 + 8  # the block that was being made is made again
    assert sum(done) == sketches.num_rows == 90
    deduplicate(sketches, tmp_path / "killed")
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


def test_workers_change_nothing(tmp_path, many, monkeypatch):
    monkeypatch.undo()  # the other process has the ordinary block size
    done: list[int] = []
    run(many, tmp_path / "one")
    run(many, tmp_path / "two", workers=2, progress=done.append)
    assert result(tmp_path / "two") == result(tmp_path / "one")
    assert sum(done) == 90


def test_a_changed_file_is_sketched_anew(tmp_path):
    file = write(tmp_path / "a.jsonl", documents("one text", "two texts"))
    sketches = sketch([file], DOCUMENTS, tmp_path / "out")
    write(tmp_path / "a.jsonl", documents("one text", "two texts", "two texts"))
    with pytest.raises(LongspanError, match="has changed while it was read"):
        deduplicate(sketches, tmp_path / "out")
    assert run([file], tmp_path / "out")["dropped_exact"] == 1


def test_other_settings_have_other_sketches(tmp_path):
    text = random_words(5)
    file = write(tmp_path / "a.jsonl", documents(" ".join(text), changed(text, [30])))
    sketch([file], DedupConfig(columns={"document": 0.99}, ngram=2), tmp_path / "out")
    assert run([file], tmp_path / "out")["dropped_near"] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [([{"text": "no document"}], "'document' is missing or empty"), ([{"document": " "}], "a.jsonl:1")],
)
def test_rows_without_the_column_are_refused(tmp_path, rows, message):
    with pytest.raises(LongspanError, match=message):
        run([write(tmp_path / "a.jsonl", rows)], tmp_path / "out")


def test_files_are_not_mixed_or_overwritten(tmp_path):
    files = [write(tmp_path / folder / "a.jsonl", documents("text")) for folder in ("x", "y")]
    with pytest.raises(LongspanError, match="would have one name"):
        run(files, tmp_path / "out")
    own = write(tmp_path / "out/kept/a.jsonl", documents("text"))
    with pytest.raises(LongspanError, match="would be overwritten"):
        run([own], tmp_path / "out")


def test_without_the_library_exact_duplicates_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rensa", None)
    file = write(tmp_path / "a.jsonl", documents("one text", "One text"))
    with pytest.raises(LongspanError, match=r"longspan\[dedup\]"):
        run([file], tmp_path / "out")
    assert run([file], tmp_path / "out", DedupConfig(columns={"document": 1.0}, near=False))["kept"] == 1


# --- real data --------------------------------------------------------------------------------------------------------


def test_equal_to_all_pairs_on_real_text(shared_data, tmp_path):
    """On the 1,000 abstracts of PubMedQA with constructed near-copies, the same rows go as by comparing all pairs."""
    from longspan.data.readers import read_rows

    rows = [row["document"] for _, row in read_rows(str(shared_data / "pairs/pubmedqa.jsonl.gz"))][:300]
    chance = random.Random(0)
    for text in rows[:150]:
        own = text.split()
        for _ in range(chance.randrange(4)):
            own[chance.randrange(len(own))] = "changed"
        rows.append(" ".join(own))
    config = DedupConfig(columns={"document": 0.8})
    run([write(tmp_path / "a.jsonl", documents(*rows))], tmp_path / "out", config)
    hasher = NgramHasher(config.ngram)
    sets = [hasher.hashes(words(text, signs=True)) for text in rows]
    kept: list[int] = []
    for n, ngrams in enumerate(sets):
        if all(jaccard(ngrams, sets[other]) < 0.8 for other in kept):
            kept.append(n)
    assert 250 < len(kept) < 420
    assert [row["n"] for row in read(tmp_path / "out/kept/a.jsonl")] == kept


# --- the command ------------------------------------------------------------------------------------------------------


def test_command(tmp_path, monkeypatch, capsys):
    from longspan.cli import main

    monkeypatch.chdir(tmp_path)
    rows = [{"query": query, "document": "the same words again"} for query in ("one", "One", "two")]
    write(tmp_path / "a.jsonl", rows)
    assert main("curate dedup a.jsonl --out out".split()) == 0
    assert "kept 2 of 3 rows: out/kept (dropped: 1 exact and 0 near duplicates)" in capsys.readouterr().out
    assert main("curate dedup a.jsonl --out out --on document --exact".split()) == 0
    assert "kept 1 of 3 rows" in capsys.readouterr().out
    for on, message in (("document=x", "'x' is not a similarity"), ("document=2", "less than or equal to 1")):
        assert main(["curate", "dedup", "a.jsonl", "--out", "out", "--on", on]) == 2
        assert message in capsys.readouterr().err
