"""The demo's data, made from a small tree of packages that stands in for site-packages."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from longspan.demo import heldout
from longspan.demo.collect import CollectReport, Sizes, collect
from longspan.demo.pairs import num_tokens
from longspan.demo.python_docs import read_module
from longspan.errors import LongspanError

SMALL = Sizes(
    read_bytes=10**9, min_pairs=20, min_long=1, num_queries=6, num_distractors=10, text_bytes=100_000, share=0.5
)
PACKAGES = ["apple", "birch", "cedar", "daisy"]

# Every module has three functions. The number words make each summary, body and code its own.
DIGITS = "zero one two three four five six seven eight nine".split()


def spell(number: int) -> str:
    return " ".join(DIGITS[int(digit)] for digit in str(number))


def function(package: str, number: int, kind: int) -> str:
    what = f"{package} {spell(number)} part {DIGITS[kind]}"
    details = " ".join(f"The {adjective} way of {what} is told here." for adjective in ("long", "short", "plain"))
    docstring = (
        f'"""Measure the height of {what}.\n\n    {details}\n    """' if kind else f'"""Weigh each bit of {what}."""'
    )
    lines = "\n".join(f"    {package}_{step} = tree + {number} * {step} + {kind}" for step in range(6))
    return f"def look_{kind}(tree, ruler=None):\n    {docstring}\n{lines}\n    return {package}_5\n"


def module(package: str, number: int) -> str:
    functions = "\n\n".join(function(package, number, kind) for kind in range(3))
    return f'# Copyright someone\n"""All there is to know of {package} {spell(number)}.\n\nRead on.\n"""\n\n{functions}'


def long_readme() -> str:
    return "# Apple\n\n" + "\n".join(f"Line {spell(n)} says how an apple is eaten, bite by bite." for n in range(300))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Four packages of thirty modules; one has a README of more than 2600 tokens."""
    root = tmp_path / "secret-place" / "site-packages"
    for package in PACKAGES:
        write(root / package / "__init__.py", f'"""The {package} package."""\n')
        for number in range(30):
            write(root / package / f"m{number}.py", module(package, number))
    metadata = f"Metadata-Version: 2.1\nName: apple\nVersion: 1.2\nSummary: Fruit for all\n\n{long_readme()}\n"
    write(root / "apple-1.2.dist-info" / "METADATA", metadata)
    return root


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def module_of(identifier: str) -> str:
    return ".".join(identifier.removeprefix("query:").split(".")[:2])


def test_the_same_packages_give_the_same_bytes_and_another_seed_others(site: Path, tmp_path: Path) -> None:
    first = collect(tmp_path / "a", roots=[site], sizes=SMALL)
    again = collect(tmp_path / "b", roots=[site], sizes=SMALL)
    other = collect(tmp_path / "c", roots=[site], sizes=SMALL, seed=1)
    assert first == again
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")
    assert first.fingerprint != other.fingerprint


def test_the_output_holds_no_path_of_this_machine(site: Path, tmp_path: Path) -> None:
    collect(tmp_path / "out", roots=[site], sizes=SMALL)
    assert not [name for name, content in all_bytes(tmp_path / "out").items() if b"secret-place" in content]


def test_the_report_says_what_was_written(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = collect(out, roots=[site], sizes=SMALL)
    assert {source: len(rows(out / "pairs" / f"{source}.jsonl")) for source in report.pairs} == report.pairs
    assert report.num_pairs == sum(report.pairs.values()) >= SMALL.min_pairs
    assert report.packages["apple"] == "1.2"
    assert report.files_read == len(PACKAGES) * 31
    assert (report.queries, report.corpus) == (6, 16)
    assert CollectReport(**json.loads((out / "report.json").read_text())) == report


def test_no_training_text_shares_a_module_with_the_held_out_set(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = collect(out, roots=[site], sizes=SMALL)
    corpus = rows(out / "heldout" / "corpus.jsonl")
    trained = [row for source in report.pairs for row in rows(out / "pairs" / f"{source}.jsonl")]
    text = rows(out / "text" / "python.jsonl")
    seen = {module_of(row["id"]) for row in trained} | {module_of(row["title"].split()[0]) for row in text}
    assert not seen & {module_of(row["_id"]) for row in corpus}
    everything = " ".join(" ".join(value.split()).lower() for row in [*trained, *text] for value in row.values())
    for row in [*corpus, *rows(out / "heldout" / "queries.jsonl")]:
        assert " ".join(row["text"].split()).lower() not in everything


def test_every_query_has_one_answer_in_the_corpus(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    collect(out, roots=[site], sizes=SMALL)
    header, *lines = (out / "heldout" / "qrels.tsv").read_text().splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    qrels = {query: (document, score) for query, document, score in (line.split("\t") for line in lines)}
    queries, corpus = rows(out / "heldout" / "queries.jsonl"), rows(out / "heldout" / "corpus.jsonl")
    assert list(qrels) == [row["_id"] for row in queries]
    assert {document for document, _ in qrels.values()} <= {row["_id"] for row in corpus}
    assert {score for _, score in qrels.values()} == {"1"}
    assert len({row["text"] for row in queries}) == len(queries)
    assert len({row["text"] for row in corpus}) == len({row["_id"] for row in corpus}) == len(corpus)
    assert all(len(row["text"].split()) >= heldout.FEWEST_QUERY_WORDS for row in queries)


def test_what_a_held_out_module_copies_from_another_is_not_asked_for() -> None:
    kept = read_module(module("apple", 1), name="apple.kept", package="apple")
    copy = read_module(module("apple", 1), name="birch.copied", package="birch")
    own = read_module(module("birch", 2), name="birch.own", package="birch")
    chosen = heldout.build(
        [copy, own], seen=heldout.Seen.of([kept]), num_queries=2, num_distractors=4, share=1.0, seed=0
    )
    assert {module_of(pair.id) for pair in chosen.corpus} == {"birch.own"}


def test_long_documents_are_whole(site: Path, tmp_path: Path) -> None:
    big = '"""Everything about tall trees.\n\nAnd more."""\n\n' + "\n\n".join(
        function("elm", number, 1).replace("look_1", f"look_{number}") for number in range(20)
    )
    for number in range(2):  # one of them may be held out
        write(site / "elm" / f"tall{number}.py", big.replace("tall trees", f"tall trees of {spell(number)}"))
    report = collect(tmp_path / "out", roots=[site], sizes=SMALL)
    long = {row["id"]: row for row in rows(tmp_path / "out" / "pairs" / "long.jsonl")}
    assert long["apple.README"]["document"] == long_readme().strip()
    assert long["apple.README"]["query"] == "apple: Fruit for all"
    assert num_tokens(long_readme()) > 2600
    assert report.long_documents == 1
    found = [row for name, row in long.items() if name.startswith("elm.tall")]
    assert found
    for row in found:
        assert row["query"].startswith("Everything about tall trees of")
        assert row["document"].endswith(big.split('more."""')[1].strip())


def test_no_source_takes_more_than_its_share_from_one_package(site: Path, tmp_path: Path) -> None:
    sizes = Sizes(**{**vars(SMALL), "share": 0.3})
    report = collect(
        tmp_path / "out", roots=[site], sizes=sizes, max_pairs={"docstring": 20, "code": 20, "name": 20, "long": 4}
    )
    for source in ("docstring", "code", "name"):
        assert max(report.pairs_by_package[source].values()) <= 6


def test_nothing_occurs_in_two_pairs(site: Path, tmp_path: Path) -> None:
    report = collect(tmp_path / "out", roots=[site], sizes=SMALL)
    pairs = [row for source in report.pairs for row in rows(tmp_path / "out" / "pairs" / f"{source}.jsonl")]
    for key in ("query", "document"):
        assert max(Counter(" ".join(row[key].lower().split()) for row in pairs).values()) == 1


def test_files_that_are_not_read_are_counted(site: Path, tmp_path: Path) -> None:
    write(site / "odd" / "broken.py", '"""Docs."""\ndef f(:\n')
    write(site / "odd" / "null.py", '"""Docs."""\nx = "\0"\n')
    write(site / "odd" / "latin.py", '"""Café."""\n', encoding="latin-1")
    write(site / "odd" / "big.py", '"""Docs."""\n' + "x = 1\n" * 70_000)
    write(site / "odd" / "made.py", '"""Docs."""\n# Automatically generated, do not edit\n')
    write(site / "odd" / "bare.py", "x = 1\n" * 100)
    write(site / "odd" / "tests" / "test_it.py", module("odd", 1))
    report = collect(tmp_path / "out", roots=[site], sizes=SMALL)
    assert report.files_skipped == {
        "encoding is not UTF-8": 1,
        "generated": 1,
        "little documentation": 1,
        "syntax error": 2,
        "too large": 1,
    }
    assert b"odd" not in b"".join(all_bytes(tmp_path / "out" / "pairs").values())


def test_nothing_is_run(site: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    write(site / "evil.py", f'"""Docs of evil things."""\nopen({str(marker)!r}, "w")\nraise SystemExit\n')
    collect(tmp_path / "out", roots=[site], sizes=SMALL)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"min_pairs": 10_000}, "training pairs"),
        ({"min_long": 50}, "more than 2048 tokens"),
        ({"num_queries": 300}, "held-out queries"),
        ({"num_distractors": 3000}, "held-out documents"),
    ],
)
def test_too_little_text_is_an_error_and_writes_nothing(
    site: Path, tmp_path: Path, changes: dict[str, int], what: str
) -> None:
    with pytest.raises(LongspanError, match=what) as error:
        collect(tmp_path / "out", roots=[site], sizes=Sizes(**{**vars(SMALL), **changes}))
    assert f"{next(iter(changes.values())):,}"[:2] in error.value.what
    assert str(site) in error.value.where
    assert "install" in error.value.remedy
    assert not (tmp_path / "out").exists()


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LongspanError, match="unknown source 'docs'"):
        collect(tmp_path / "out", roots=[], max_pairs={"docs": 3})


def test_a_place_that_cannot_be_written_is_named(site: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "pairs" / "code.jsonl").mkdir(parents=True)
    with pytest.raises(LongspanError, match=r"cannot write code\.jsonl"):
        collect(tmp_path / "out", roots=[site], sizes=SMALL)
    assert not (tmp_path / "out" / "report.json").exists()


def test_odd_characters_do_not_stop_it(site: Path, tmp_path: Path) -> None:
    body = "It has a lone surrogate \\ud800 and a separator \\u2028 which " + "no file of ours should hold " * 5
    odd = "\n\n".join(
        f'def odd_{n}():\n    """Show what odd thing {spell(n)} is.\n\n    {body}{n}"""' for n in range(9)
    )
    for number in range(9):
        write(site / "odd" / f"m{number}.py", odd.replace("what odd", f"what {spell(number)} odd"))
    collect(tmp_path / "out", roots=[site], sizes=SMALL)
    text = (tmp_path / "out" / "pairs" / "docstring.jsonl").read_text("utf-8")
    assert "lone surrogate   and a separator   which" in text
    assert len(text.splitlines()) == text.count("\n")


def test_progress_ends_at_the_number_of_files(site: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    collect(tmp_path / "out", roots=[site], sizes=SMALL, progress=lambda done, of: calls.append((done, of)))
    assert calls[0] == (0, len(PACKAGES) * 31)
    assert calls[-1] == (len(PACKAGES) * 31, len(PACKAGES) * 31)


def test_the_running_interpreter_has_text(tmp_path: Path) -> None:
    sizes = Sizes(
        read_bytes=3_000_000, min_pairs=200, min_long=1, num_queries=10, num_distractors=20, text_bytes=200_000
    )
    report = collect(tmp_path / "out", sizes=sizes, max_pairs={"docstring": 150, "code": 150, "name": 50, "long": 20})
    assert report.packages["python"]
    assert report.packages["numpy"]
    for row in rows(tmp_path / "out" / "pairs" / "code.jsonl"):
        assert row["query"].lower() not in row["document"].lower()
