"""Decontamination: which training rows hold texts of an evaluation set, and which texts of it they hold.

A training text and an evaluation text match if

- they are the same, but for case, punctuation and spaces (how texts of fewer words than an n-gram are found), or
- of the word n-grams of the one that has fewer, at least a given part occurs in the other, so that a passage is found
  inside a document whichever of the two is the training text, or
- a teacher's vectors of the two are at least so similar (optional).

N-grams of 13 words are the field's custom since GPT-3 (Brown et al., 2020, appendix C).

The evaluation sets are in memory, training files are read row by row.

Axes: G distinct n-grams of all evaluation texts, E (n-gram, text) entries, D width.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from longspan.config import Config
from longspan.curate.neighbours import top_k
from longspan.curate.ngrams import NgramHasher, words
from longspan.curate.report import write_values
from longspan.curate.rows import (
    DROPPED,
    KEPT,
    excerpt,
    json_lines,
    refuse_to_overwrite,
    result_names,
)
from longspan.curate.vectors import VectorStore
from longspan.data.places import find_files, inside, is_folder, list_files
from longspan.data.readers import Row, is_readable, read_rows
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import atomic_path

TEXT_COLUMNS = (
    *("query", "document", "negatives", "question", "passage", "title", "text"),
    *("sentence", "sentence1", "sentence2", "premise", "hypothesis"),
)
"""Columns that are read unless others are named."""

SHORTEST = 3
"""Evaluation texts of fewer words are not looked for: "yes" is in every training set."""

ROWS_AT_A_TIME = 1024
NEAREST = 10
"""Evaluation texts that a teacher looks at for each training text."""

NUM_EXAMPLES = 20

How = Literal["equal", "ngrams", "vectors"]
HOW: tuple[How, ...] = ("equal", "ngrams", "vectors")

Progress = Callable[[int], None]
"""Called with the number of training rows done since the last call."""


class ContaminationConfig(Config):
    """What counts as a match."""

    ngram: int = Field(default=13, ge=1)
    """Words of an n-gram."""
    ratio: float = Field(default=0.5, gt=0, le=1)
    """Part of the n-grams of the text with fewer that have to be in the other."""
    columns: tuple[str, ...] | None = None
    """Columns of the training rows; None: those of `TEXT_COLUMNS` that a row has."""
    benchmark_columns: tuple[str, ...] | None = None
    """Likewise of the evaluation sets. A retrieval set in BEIR's layout has queries and documents instead."""


@dataclass(frozen=True)
class Judge:
    """A teacher that finds paraphrases too.

    Attributes:
        similarity: cosine from which on two texts match.
        task: for which both texts are embedded; "classification" is the paper's for rephrased texts (section 4.2.2).
        cache: folder of the vectors.
    """

    embedder: Embedder
    similarity: float
    cache: Path
    task: str = "classification"
    max_length: int | None = None


class BenchmarkText(NamedTuple):
    """A text of an evaluation set: which set, what it is there (queries, documents, or its column), and where."""

    benchmark: str
    kind: str
    where: str
    text: str


class Match(NamedTuple):
    """An evaluation text that a training text matches."""

    number: int
    """Of the evaluation text."""
    how: How
    score: float
    """1 for equal texts; the part of the n-grams; the cosine."""


class Found(NamedTuple):
    """A text of a training row, and what it matches."""

    column: str
    text: str
    match: Match


def read_benchmark(place: str, columns: Sequence[str] | None = None) -> list[BenchmarkText]:
    """The texts of an evaluation set.

    Args:
        place: a folder in BEIR's layout (`corpus.jsonl`, `queries.jsonl`, compressed or not); any other folder, of
            which all files of rows are read but those of judgements (qrels); or one file, such as only the queries of
            a set.
        columns: see `ContaminationConfig.benchmark_columns`.

    Raises:
        LongspanError: there is nothing there, or no row has a column of text.
    """
    parts = place.rstrip("/").split("/")
    if not is_folder(place):
        [file] = find_files((place,))
        return list(_texts_of_file(file, "/".join(parts[-2:]), columns))
    names = [name for name in list_files(place) if is_readable(name) and "qrels" not in name]
    beir = {name for name in names if name.split(".")[0] in ("queries", "corpus")}
    if not names:
        raise LongspanError(
            "the evaluation set has no files of rows", where=place, remedy="name its folder, or one of its files"
        )
    texts = []
    for name in sorted(beir or names):
        benchmark = parts[-1] if beir else f"{parts[-1]}/{name}"
        texts += _texts_of_file(inside(place, name), benchmark, columns)
    return texts


def _texts_of_file(file: str, benchmark: str, columns: Sequence[str] | None) -> Iterator[BenchmarkText]:
    stem = file.rpartition("/")[2].split(".")[0]
    kind = {"queries": "queries", "corpus": "documents"}.get(stem)
    found = False
    for number, row in read_rows(file):
        where = f"{file}:{number}"
        if kind is not None and columns is None:
            parts = [row.get(column) for column in ("title", "text")]
            text = " ".join(part for part in parts if isinstance(part, str) and part)
            found |= "text" in row
            yield BenchmarkText(benchmark, kind, where, text)
            continue
        for column, text in row_texts(row, columns):
            found = True
            yield BenchmarkText(benchmark, column, where, text)
    if not found:
        wanted = ", ".join(columns or TEXT_COLUMNS)
        raise LongspanError(f"no row has a column of text ({wanted})", where=file, remedy="name its columns")


def row_texts(row: Row, columns: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """Column and text of every text in the columns of a row; a column may list several."""
    for column in columns or TEXT_COLUMNS:
        value = row.get(column)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.strip():
                yield column, text


class ContaminationIndex:
    """Evaluation texts, to be asked which of them a training text matches."""

    def __init__(self, texts: Iterable[str], *, ngram: int = 13, ratio: float = 0.5) -> None:
        self._hasher, self._ratio = NgramHasher(ngram), ratio
        self._equal: dict[bytes, list[int]] = {}
        sets, sizes, short = [np.empty(0, np.uint64)], [], []
        for number, text in enumerate(texts):
            own = words(text)
            short.append(len(own) < SHORTEST)
            if not short[-1]:
                self._equal.setdefault(_equality_key(own), []).append(number)
            sets.append(self._ngrams(own))
            sizes.append(len(sets[-1]))
        self._sizes = np.array(sizes, dtype=np.int64)
        self.too_short = np.array(short, dtype=bool)
        grams_E = np.concatenate(sets)
        order_E = np.argsort(grams_E, kind="stable")
        self._text_E = np.repeat(np.arange(len(sizes)), self._sizes)[order_E]
        self._grams_G, self._start_G, self._count_G = np.unique(grams_E[order_E], return_index=True, return_counts=True)

    def matches(self, text: str) -> list[Match]:
        """The evaluation texts that a text matches, each once, in their order."""
        own = words(text)
        equal = self._equal.get(_equality_key(own), [])
        found = {number: Match(number, "equal", 1.0) for number in equal}
        grams = self._ngrams(own)
        place = np.searchsorted(self._grams_G, grams)
        there = place < len(self._grams_G)
        there[there] = self._grams_G[place[there]] == grams[there]
        starts, counts = self._start_G[place[there]].tolist(), self._count_G[place[there]].tolist()
        entries = [self._text_E[start : start + count] for start, count in zip(starts, counts, strict=True)]
        if entries:
            numbers, shared = np.unique(np.concatenate(entries), return_counts=True)
            parts = shared / np.minimum(self._sizes[numbers], len(grams))
            for number, part in zip(numbers.tolist(), parts.tolist(), strict=True):
                if part >= self._ratio:
                    found.setdefault(number, Match(number, "ngrams", part))
        return [found[number] for number in sorted(found)]

    def _ngrams(self, own: list[str]) -> np.ndarray:
        return self._hasher.hashes(own) if len(own) >= self._hasher.n else np.empty(0, np.uint64)


def _equality_key(own: list[str]) -> bytes:
    # Without the spaces too: tokenised copies write "do n't" and "levi 's".
    return hashlib.blake2b("".join(own).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def decontaminate(
    files: Sequence[str],
    benchmarks: Sequence[str],
    out: Path,
    config: ContaminationConfig,
    *,
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `out/kept/` (a file for each file read), `out/dropped.jsonl` and `out/report.json`.

    Returns:
        The report: for each benchmark how many of its texts are met, by which way, how many rows are dropped for it,
        and examples.

    Raises:
        LongspanError: a file is missing or broken, rows or evaluation sets without texts, a result that would overwrite
            a file, or whatever the teacher refuses.
    """
    names = result_names(files)
    refuse_to_overwrite(files, out)
    texts = [text for place in benchmarks for text in read_benchmark(place, config.benchmark_columns)]
    if not texts:
        raise LongspanError("there is no evaluation text", where="--against", remedy="name an evaluation set")
    finder = _Finder(texts, config, judge)
    tally = _Tally(texts, finder.too_short)
    with atomic_path(out / KEPT) as kept, json_lines(out / DROPPED) as drop:
        kept.mkdir()
        for file in files:
            with json_lines(kept / names[file]) as keep:
                for rows in _batches(read_rows(file), ROWS_AT_A_TIME):
                    for (number, row), matches in zip(rows, finder.find(file, rows), strict=True):
                        tally.add(file, number, matches)
                        if matches:
                            drop(row | {"contamination": [_described(texts, found) for found in matches]})
                        else:
                            keep(row)
                    if progress is not None:
                        progress(len(rows))
    report = tally.report() | {"settings": config.model_dump(mode="json") | finder.judge_settings()}
    write_values(out, "decontaminate", report)
    return report


def _batches(rows: Iterator[tuple[int, Row]], size: int) -> Iterator[list[tuple[int, Row]]]:
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _described(texts: Sequence[BenchmarkText], found: Found) -> dict[str, Any]:
    met = texts[found.match.number]
    return {
        "column": found.column,
        "benchmark": met.benchmark,
        "kind": met.kind,
        "where": met.where,
        "how": found.match.how,
        "score": round(found.match.score, 4),
    }


class _Finder:
    """Asks the index, and the teacher where there is one."""

    def __init__(self, texts: Sequence[BenchmarkText], config: ContaminationConfig, judge: Judge | None) -> None:
        self._config, self._judge = config, judge
        self._index = ContaminationIndex((text.text for text in texts), ngram=config.ngram, ratio=config.ratio)
        self.too_short = self._index.too_short
        self._long_enough = np.flatnonzero(~self.too_short)
        if judge is not None:
            self._store = VectorStore(judge.cache, judge.embedder, task=judge.task, max_length=judge.max_length)
            self._vectors_MD = self._store.embed([texts[number].text for number in self._long_enough.tolist()])

    def find(self, file: str, rows: Sequence[tuple[int, Row]]) -> list[list[Found]]:
        """For each row its texts that match, and what they match.

        Raises:
            LongspanError: a row has no text in the columns.
        """
        texts: list[tuple[int, str, str]] = []
        for position, (number, row) in enumerate(rows):
            own = list(row_texts(row, self._config.columns))
            if not own:
                wanted = ", ".join(self._config.columns or TEXT_COLUMNS)
                remedy = f"the row has the columns: {', '.join(map(str, row))}; name those that are texts"
                raise LongspanError(f"the row has no text ({wanted})", where=f"{file}:{number}", remedy=remedy)
            texts += [(position, column, text) for column, text in own]
        found: list[list[Found]] = [[] for _ in rows]
        for (position, column, text), similar in zip(texts, self._near([text for *_, text in texts]), strict=True):
            matches = self._index.matches(text)
            known = {match.number for match in matches}
            matches += [match for match in similar if match.number not in known]
            found[position] += [Found(column, text, match) for match in matches]
        return found

    def judge_settings(self) -> dict[str, Any]:
        if self._judge is None:
            return {}
        embedder = self._judge.embedder
        return {
            "teacher": embedder.name,
            "teacher_fingerprint": embedder.fingerprint,
            "similarity": self._judge.similarity,
            "task": self._judge.task,
        }

    def _near(self, texts: list[str]) -> list[list[Match]]:
        """For each text the evaluation texts whose vectors are near enough, of the `NEAREST` nearest."""
        if self._judge is None or not len(self._long_enough):
            return [[] for _ in texts]
        least = self._judge.similarity
        scores_NK, places_NK = top_k(self._store.embed(texts), self._vectors_MD, min(NEAREST, len(self._long_enough)))
        return [
            [
                Match(int(self._long_enough[place]), "vectors", float(score))
                for score, place in zip(scores_K, places_K, strict=True)
                if score >= least
            ]
            for scores_K, places_K in zip(scores_NK, places_NK, strict=True)
        ]


class _Tally:
    """What is told of every benchmark."""

    def __init__(self, texts: Sequence[BenchmarkText], too_short: np.ndarray) -> None:
        self._texts, self._too_short = texts, too_short
        self._met = {how: np.zeros(len(texts), bool) for how in HOW}
        self._rows: dict[str, Counter[str]] = {}
        self._dropped_for: Counter[str] = Counter()
        self._columns: dict[str, Counter[str]] = {}
        self._examples: dict[str, list[dict[str, Any]]] = {}

    def add(self, file: str, number: int, matches: Sequence[Found]) -> None:
        rows = self._rows.setdefault(file, Counter(rows=0, dropped=0))
        rows["rows"] += 1
        rows["dropped"] += bool(matches)
        first: dict[str, Found] = {}
        for found in matches:
            self._met[found.match.how][found.match.number] = True
            first.setdefault(self._texts[found.match.number].benchmark, found)
        for benchmark, found in first.items():
            self._dropped_for[benchmark] += 1
            self._columns.setdefault(benchmark, Counter())[found.column] += 1
            examples = self._examples.setdefault(benchmark, [])
            if len(examples) < NUM_EXAMPLES:
                both = {
                    "row": f"{file}:{number}",
                    "training": excerpt(found.text),
                    "evaluation": excerpt(self._texts[found.match.number].text),
                }
                examples.append(_described(self._texts, found) | both)

    def report(self) -> dict[str, Any]:
        dropped = sum(rows["dropped"] for rows in self._rows.values())
        num_rows = sum(rows["rows"] for rows in self._rows.values())
        kinds: dict[str, dict[str, list[int]]] = {}
        for number, text in enumerate(self._texts):
            kinds.setdefault(text.benchmark, {}).setdefault(text.kind, []).append(number)
        return {
            "rows": num_rows,
            "kept": num_rows - dropped,
            "dropped": dropped,
            "files": {file: dict(rows) for file, rows in self._rows.items()},
            "benchmarks": {
                benchmark: {
                    "rows_dropped": self._dropped_for[benchmark],
                    "first_match_in": dict(self._columns.get(benchmark, {})),
                    "texts": {kind: self._counts(np.array(numbers)) for kind, numbers in by_kind.items()},
                    "examples": self._examples.get(benchmark, []),
                }
                for benchmark, by_kind in kinds.items()
            },
        }

    def _counts(self, numbers: np.ndarray) -> dict[str, Any]:
        """Of some evaluation texts: how many there are, are not looked for, are met, and in which ways."""
        by = {how: int(met[numbers].sum()) for how, met in self._met.items()}
        met = np.any([met[numbers] for met in self._met.values()], axis=0)
        return {
            "texts": len(numbers),
            "too_short": int(self._too_short[numbers].sum()),
            "met": int(met.sum()),
            "met_by": by,
        }
