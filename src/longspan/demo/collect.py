"""The demo's data: training pairs, held-out queries and plain text from the Python packages on this machine.

    report = collect(Path("demo-data"))

Real text that is everywhere, licensed to whoever has it installed, and copied nowhere: docstrings, source code and
READMEs. The files are only read, never imported or run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.demo import heldout, installed, plain_text
from longspan.demo.installed import PYTHON, InstalledFile
from longspan.demo.pairs import (
    LONG_TOKENS,
    Pair,
    Sampler,
    code_pair,
    docstring_pair,
    document_pair,
    is_documented,
    is_for_code,
    long_pair,
    name_pair,
    num_tokens,
    readme_pair,
)
from longspan.demo.python_docs import Module, is_bare, is_generated, read_module
from longspan.errors import LongspanError
from longspan.files import sha256_json, write_json, write_text

MAX_PAIRS: Mapping[str, int] = {"docstring": 5_000, "code": 5_500, "name": 2_000, "long": 512}
"""Training pairs per source."""

REMEDY = (
    "install more packages beside longspan (`pip install scikit-learn transformers` is plenty), "
    "or pass their folders as roots"
)


@dataclass(frozen=True)
class Sizes:
    """How much to read, and how much there must be.

    Args:
        read_bytes: Python source to read; only what is well documented is parsed.
        min_pairs: fewer training pairs in all are an error.
        min_long: fewer training documents of more than 2048 tokens are an error.
        num_queries, num_distractors: the held-out set; fewer are an error.
        text_bytes: plain text to write, about; 7/10 of it documentation, the rest source code.
        share: the largest part of any source that one package may give.
    """

    read_bytes: int = 56_000_000
    min_pairs: int = 10_000
    min_long: int = 50
    num_queries: int = 300
    num_distractors: int = 700
    text_bytes: int = 10_000_000
    share: float = 0.25


STANDARD = Sizes()


@dataclass(frozen=True)
class CollectReport:
    """What was read and written. Kept as `report.json`; equal environments give equal reports.

    Args:
        pairs: training pairs per source.
        pairs_by_package: the same by package ("python" is the standard library), for each source.
        long_documents: training documents of more than 2048 tokens.
        files_skipped, pairs_dropped: counts by reason.
        num_duplicates: pairs dropped because their query or document was there already.
        num_words: white-space-separated words of all training pairs and the plain text.
        packages: name -> version of the installed distributions, Python included.
        fingerprint: SHA-256 over the names and bytes of all data files.
    """

    pairs: dict[str, int]
    pairs_by_package: dict[str, dict[str, int]]
    long_documents: int
    queries: int
    corpus: int
    texts: int
    text_bytes: int
    num_words: int
    files_read: int
    files_skipped: dict[str, int]
    pairs_dropped: dict[str, int]
    num_duplicates: int
    packages: dict[str, str]
    seed: int
    fingerprint: str

    @property
    def num_pairs(self) -> int:
        """Training pairs of all sources."""
        return sum(self.pairs.values())


def collect(
    out: Path,
    *,
    roots: Sequence[Path] | None = None,
    max_pairs: Mapping[str, int] = MAX_PAIRS,
    sizes: Sizes = STANDARD,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CollectReport:
    """Write `pairs/<source>.jsonl`, `heldout/`, `text/python.jsonl` and, last, `report.json` into `out`.

    The bytes written are a pure function of the environment and the arguments, and hold no path of this machine.

    Args:
        out: folder, made if needed; files of the same names are replaced.
        roots: folders that hold packages; None is this interpreter's standard library and site-packages.
        max_pairs: training pairs per source; the sources are those of `MAX_PAIRS`.
        sizes: how much to read, and how much there must be.
        seed: another seed, another choice of files, pairs and held-out modules.
        progress: called with the number of files read and the number to read.

    Raises:
        LongspanError: too little text is installed; names what was found and what is required. Nothing is written.
    """
    if unknown := sorted(set(max_pairs) - set(MAX_PAIRS)):
        raise LongspanError(f"unknown source {unknown[0]!r}", where="max_pairs", remedy=f"use {', '.join(MAX_PAIRS)}")
    roots = installed.default_roots() if roots is None else [Path(root).resolve() for root in roots]
    found = installed.find_files(roots)
    distributions = installed.read_distributions(roots)
    chosen = installed.choose(found.files, num_bytes=sizes.read_bytes, seed=seed)
    modules, documents, skipped = _read(chosen, progress)

    kept = [module for module in modules if not heldout.is_held_out(module.name, seed)]
    held = [module for module in modules if heldout.is_held_out(module.name, seed)]
    sampler = Sampler(share=sizes.share, seed=seed)
    whole_texts = [*map(readme_pair, distributions), *documents]
    pairs = {
        source: sampler.take(source, candidates, most=max_pairs.get(source, 0))
        for source, candidates in _candidates(kept, whole_texts).items()
    }
    test = heldout.build(
        held,
        seen=heldout.Seen.of(kept),
        num_queries=sizes.num_queries,
        num_distractors=sizes.num_distractors,
        share=sizes.share,
        seed=seed,
    )
    num_long = sum(num_tokens(pair.document) > LONG_TOKENS for pair in pairs["long"])
    for what, number, required in (
        ("training pairs", sum(map(len, pairs.values())), sizes.min_pairs),
        ("training documents of more than 2048 tokens", num_long, sizes.min_long),
        ("held-out queries", len(test.queries), sizes.num_queries),
        ("held-out documents", len(test.corpus), sizes.num_queries + sizes.num_distractors),
    ):
        if number < required:
            message = f"only {number:,} {what} were found, {required:,} are required"
            raise LongspanError(message, where=", ".join(map(str, roots)), remedy=REMEDY)

    texts = plain_text.choose(kept, whole_texts, num_bytes=sizes.text_bytes, share=sizes.share, seed=seed)
    with contextlib.suppress(OSError):  # a folder that cannot be written is told of by the first file below
        (out / "report.json").unlink()  # written last: where it is, the rest is whole and belongs to it
    hashes: dict[str, str] = {}
    for name, content in _contents(pairs, test, texts).items():
        write_text(out / name, content)
        hashes[name] = hashlib.sha256(content.encode("utf-8")).hexdigest()
    report = CollectReport(
        pairs={source: len(rows) for source, rows in pairs.items()},
        pairs_by_package={source: _by_package(rows) for source, rows in pairs.items()},
        long_documents=num_long,
        queries=len(test.queries),
        corpus=len(test.corpus),
        texts=len(texts),
        text_bytes=sum(len(text.encode()) for _, text in texts),
        num_words=sum(len(pair.query.split()) + len(pair.document.split()) for rows in pairs.values() for pair in rows)
        + sum(len(text.split()) for _, text in texts),
        files_read=len(modules) + len(documents),
        files_skipped=dict(sorted((found.skipped + skipped).items())),
        pairs_dropped=dict(sorted(sampler.dropped.items())),
        num_duplicates=sum(count for reason, count in sampler.dropped.items() if reason.endswith("duplicate")),
        packages={PYTHON: installed.python_version()} | {item.name: item.version for item in distributions},
        seed=seed,
        fingerprint=sha256_json(hashes),
    )
    write_json(out / "report.json", dataclasses.asdict(report))
    return report


def _read(
    files: Sequence[InstalledFile], progress: Callable[[int, int], None] | None
) -> tuple[list[Module], list[Pair], Counter[str]]:
    modules: list[Module] = []
    documents: list[Pair] = []
    skipped: Counter[str] = Counter()
    for position, file in enumerate(files):
        if progress:
            progress(position, len(files))
        try:
            text = file.path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            skipped["encoding is not UTF-8"] += 1
            continue
        except OSError:
            skipped["cannot be read"] += 1
            continue
        if is_generated(text):
            skipped["generated"] += 1
        elif file.kind == "text":
            documents.append(document_pair(file.name, file.package, text))
        elif is_bare(text):
            skipped["little documentation"] += 1
        else:
            try:
                modules.append(read_module(text, name=file.name, package=file.package))
            except SyntaxError:
                skipped["syntax error"] += 1
    if progress:
        progress(len(files), len(files))
    return modules, documents, skipped


def _candidates(modules: Iterable[Module], whole_texts: Iterable[Pair]) -> dict[str, list[Pair]]:
    pairs: dict[str, list[Pair]] = {"docstring": [], "code": [], "name": [], "long": list(whole_texts)}
    for module in modules:
        for item in module.objects:
            if is_for_code(item):
                pairs["code"].append(code_pair(item, module.package))
            else:
                pairs["docstring"].append(docstring_pair(item, module.package))
            pairs["name"].append(name_pair(item, module.package))
        if is_documented(module):
            pairs["long"].append(long_pair(module))
    return pairs


def _contents(
    pairs: Mapping[str, Sequence[Pair]], test: heldout.Heldout, texts: Sequence[tuple[str, str]]
) -> dict[str, str]:
    contents = {f"pairs/{source}.jsonl": _jsonl(map(_row, rows)) for source, rows in pairs.items()}
    # A query's id differs from its document's: BEIR's evaluation leaves out hits that have the query's own id.
    queries = [{"_id": f"query:{pair.id}", "text": pair.query} for pair in test.queries]
    qrels = "".join(f"query:{pair.id}\t{pair.id}\t1\n" for pair in test.queries)
    return contents | {
        "heldout/queries.jsonl": _jsonl(queries),
        "heldout/corpus.jsonl": _jsonl({"_id": pair.id, "text": pair.document} for pair in test.corpus),
        "heldout/qrels.tsv": "query-id\tcorpus-id\tscore\n" + qrels,
        "text/python.jsonl": _jsonl({"title": title, "text": text} for title, text in texts),
    }


def _row(pair: Pair) -> dict[str, str]:
    return {"query": pair.query, "document": pair.document, "id": pair.id}


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _by_package(rows: Iterable[Pair]) -> dict[str, int]:
    return dict(Counter(pair.package for pair in rows).most_common())
