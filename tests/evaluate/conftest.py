"""A small data folder in the layouts that the tests of MTEB read."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def mteb_data(tmp_path: Path) -> Callable[[], Path]:
    """Makes a data folder: STSBenchmark, Banking77, SciFact (BEIR's layout), AskUbuntu with documents to rank again."""

    def make() -> Path:
        data = tmp_path / "data"
        animals = ["the quick fox", "a lazy dog", "brown dogs jump", "naïve café", "東京", "the area of fox", "", "dog"]
        sts = [
            {"sentence1": one, "sentence2": other, "score": float((3 * n + m) % 6)}
            for n, one in enumerate(animals)
            for m, other in enumerate(animals)
            if n < m
        ]
        intents = [{"text": f"{text} {n}", "label": n % 4} for n, text in enumerate(animals * 5)]
        corpus = [{"_id": f"d{n}", "title": "fox" * (n % 2), "text": f"{text} {n}"} for n, text in enumerate(animals)]
        queries = [{"_id": f"q{n}", "text": text} for n, text in enumerate(animals[:4])]
        qrels = "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(3))
        files = {
            "stsbenchmark/test.jsonl": lines(sts),
            "mteb/banking77/train.jsonl": lines(intents),
            "mteb/banking77/test.jsonl": lines(intents[:12]),
            "SciFact/corpus.jsonl": lines(corpus),
            "SciFact/queries.jsonl": lines(queries),
            "SciFact/qrels/test.tsv": qrels,
            "AskUbuntuDupQuestions/corpus.jsonl": lines(corpus),
            "AskUbuntuDupQuestions/queries.jsonl": lines(queries),
            "AskUbuntuDupQuestions/qrels/test.tsv": qrels,
            "AskUbuntuDupQuestions/top_ranked/test.jsonl": lines(
                [{"query-id": f"q{n}", "corpus-ids": [f"d{n}", "d4", "d5"]} for n in range(3)]
            ),
        }
        for name, content in files.items():
            path = data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, "utf-8")
        return data

    return make
