"""Raw files and prepared sources for the tests of this folder."""

import json
from pathlib import Path

import pytest

from longspan.data.prepare import prepare
from longspan.data.source import PairSource, TextSource


@pytest.fixture(scope="session")
def write_rows():
    """Writes rows as JSON Lines."""

    def write(path: Path, rows) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def pair_rows():
    """Rows of pairs with five negatives each, of many lengths."""

    def make(count: int, tag: str = "") -> list[dict]:
        return [
            {
                "query": f"{tag} query {n} " + "fox " * (n % 7),
                "document": f"{tag} document {n} " + "the quick brown " * (n % 5),
                "negatives": [f"{tag} lazy dogs {n} {k}" for k in range(5)],
            }
            for n in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, write_rows, pair_rows, small_tokenizer):
    """A folder with two sources of pairs (40 and 24 rows, in several shards) and one of text."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
    texts = [{"text": f"naïve café {n} " + "jumps over the lazy dogs " * (n % 11)} for n in range(60)]
    files = {
        name: (str(write_rows(raw / f"{name}.jsonl", rows)),)
        for name, rows in {"faq": pair_rows(40, "faq"), "code": pair_rows(24, "def"), "books": texts}.items()
    }
    sources = [
        PairSource(name="faq", files=files["faq"], negatives="negatives"),
        PairSource(
            name="code",
            files=files["code"],
            negatives="negatives",
            query_task="clustering",
            document_task="classification",
        ),
        TextSource(name="books", files=files["books"]),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("longspan.data.prepare.ROWS_PER_SHARD", 9)
        prepare(sources, out, small_tokenizer)
    return out
