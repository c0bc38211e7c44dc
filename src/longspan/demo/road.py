"""The whole road of the paper at small scale, on text that is on every machine.

collect -> tokenizer -> MLM -> consistency filter -> contrastive pretraining -> mining -> finetuning -> evaluation ->
publishing -> search. Each stage calls the same code that the command line offers for real data; this file only joins
them. Read `stages` below from top to bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from longspan.curate.consistency import Teacher, filter_pairs
from longspan.curate.negatives import mine_pairs
from longspan.data.prepare import prepare
from longspan.data.readers import read_rows
from longspan.data.source import PairSource, TextSource
from longspan.demo.collect import MAX_PAIRS, collect
from longspan.demo.stages import Stage
from longspan.demo.teacher import load_teacher
from longspan.embedder import Embedder
from longspan.evaluate.bm25 import evaluate_bm25
from longspan.evaluate.retrieval import RetrievalResult, RetrievalSet, evaluate_retrieval
from longspan.export.sentence_transformers import publish
from longspan.files import sha256_file
from longspan.model.config import EmbeddingConfig
from longspan.model.encoder import Encoder, initialize
from longspan.progress import Bar
from longspan.recipes.demo import ENCODER, demo_contrastive, demo_finetune, demo_mlm
from longspan.search import Index, Passage
from longspan.text.tasks import PREFIXES, Task
from longspan.text.tokenizer import Tokenizer
from longspan.train.config import TrainConfig
from longspan.train.loop import resume, start
from longspan.train.run import RUN

VOCAB_SIZE = 8192
TASKS: dict[str, tuple[Task, Task]] = {
    "docstring": ("search_query", "search_document"),
    "code": ("search_query", "search_document"),
    "name": ("clustering", "clustering"),
    "long": ("search_query", "search_document"),
}
"""Source -> tasks of its two sides."""
MINED_SOURCES = ("docstring", "code")
"""Retrieval sources get mined negatives, as in the paper (section 4.2.4)."""
TEACHER_TOKENS = 64
"""The teacher reads this much of a text when it filters and mines: enough to recognise it, and quick on a CPU."""
GUARD = 0.95
"""Mined negatives may score up to this part of the positive's score. Beyond the paper; overloads of one function have
nearly the same documentation."""
NUM_LONG_SEARCHED = 64
QUESTIONS = (
    "read rows of a csv file as dictionaries",
    "compute the inverse of a matrix",
    "run a function in another process",
    "how do I draw random samples without replacement?",
)


class Road:
    """The demo's stages and where they keep things."""

    def __init__(self, out: Path, console: Console) -> None:
        self.out = out
        self.console = console
        self.collected = out / "collect"
        self.tokenizer_file = out / "tokenizer.json"
        self.filtered = out / "filter"
        self.mined = out / "mine"
        self.data = out / "data"
        self.finetune_data = out / "finetune-data"
        self.runs = out / "runs"
        self.published = out / "published"
        self.cache = out / "vectors"

    def stages(self) -> list[Stage]:
        """Everything, in order."""
        teacher = {"teacher": "all-MiniLM-L6-v2", "tokens": TEACHER_TOKENS}
        return [
            Stage("collect", "read the documentation of installed packages", dict(MAX_PAIRS), self.collect),
            Stage("tokenizer", f"train a WordPiece vocabulary of {VOCAB_SIZE:,}", VOCAB_SIZE, self.train_tokenizer),
            Stage("mlm", "masked language modelling on packed text (4.1)", *self._training(self.mlm, demo_mlm)),
            Stage("filter", "drop pairs the teacher does not find in its top 2 (4.2.1)", teacher, self.filter),
            Stage(
                "contrastive",
                "one source per batch, GradCache (4.2.2)",
                *self._training(self.contrastive, demo_contrastive),
            ),
            Stage("mine", "top-20 hard negatives (4.2.4)", teacher | {"guard": GUARD}, self.mine),
            Stage(
                "finetune",
                "seven of the twenty negatives, at random (4.2.5)",
                *self._training(self.finetune, demo_finetune),
            ),
            Stage("evaluate", "held-out queries: every stage, random weights, MiniLM, BM25", 0, self.evaluate),
            Stage("publish", "a folder for sentence-transformers and transformers", 0, self.publish),
            Stage("search", "ask the finished model", list(QUESTIONS), self.search),
        ]

    def collect(self) -> dict[str, Any]:
        with _FileBar(self.console) as progress:
            report = collect(self.collected, progress=progress)
        self._say(
            f"{report.num_pairs:,} pairs ({_counts(report.pairs)}), "
            f"{report.long_documents} documents over 2,048 tokens, "
            f"{report.text_bytes / 1e6:.1f} MB of text, {report.queries} held-out queries"
        )
        return {"pairs": report.pairs, "long_documents": report.long_documents, "fingerprint": report.fingerprint}

    def train_tokenizer(self) -> dict[str, Any]:
        tokenizer = Tokenizer.train((row["text"] for row in self._rows("text/python.jsonl")), VOCAB_SIZE)
        tokenizer.save(self.tokenizer_file)
        self._say(f"{tokenizer.vocab_size:,} tokens")
        return {"fingerprint": tokenizer.fingerprint}

    def mlm(self) -> dict[str, Any]:
        text = TextSource(name="python", files=(str(self.collected / "text" / "python.jsonl"),))
        [manifest] = prepare([text], self.data, self._tokenizer())
        self._say(f"{manifest.num_tokens['text']:,} tokens in {manifest.num_rows:,} documents")
        return self._train("mlm", self._config("mlm"))

    def filter(self) -> dict[str, Any]:
        counts = {}
        for source, (query_task, document_task) in TASKS.items():
            rows = list(self._rows(f"pairs/{source}.jsonl"))
            teacher = Teacher(load_teacher(), query_task, document_task, TEACHER_TOKENS)
            with Bar(f"filter {source}", 2 * len(rows), console=self.console) as bar:
                report = filter_pairs(rows, teacher, self.filtered / source, cache=self.cache, progress=bar.advance)
            counts[source] = {"pairs": report["pairs"], "kept": report["kept"]}
            self._say(f"{source}: kept {report['kept']:,} of {report['pairs']:,}")
        return counts

    def contrastive(self) -> dict[str, Any]:
        sources = [
            PairSource(
                name=source,
                files=(str(self.filtered / source / "kept.jsonl"),),
                query_task=query_task,
                document_task=document_task,
            )
            for source, (query_task, document_task) in TASKS.items()
        ]
        prepare(sources, self.data, self._tokenizer())
        return self._train("contrastive", self._config("contrastive"))

    def mine(self) -> dict[str, Any]:
        counts = {}
        for source in MINED_SOURCES:
            rows = [row for _, row in read_rows(str(self.filtered / source / "kept.jsonl"))]
            teacher = Teacher(load_teacher(), max_length=TEACHER_TOKENS)
            with Bar(f"mine {source}", 2 * len(rows), console=self.console) as bar:
                report = mine_pairs(
                    rows, teacher, self.mined / source, guard=GUARD, cache=self.cache, progress=bar.advance
                )
            counts[source] = report["mined"]
            self._say(f"{source}: {report['negatives_per_pair']:.1f} negatives for each of {report['mined']:,} pairs")
        return counts

    def finetune(self) -> dict[str, Any]:
        sources = [
            PairSource(name=source, files=(str(self.mined / source / "mined.jsonl"),), negatives="negatives")
            for source in MINED_SOURCES
        ]
        prepare(sources, self.finetune_data, self._tokenizer())
        return self._train("finetune", self._config("finetune"))

    def evaluate(self) -> dict[str, Any]:
        held_out = RetrievalSet.load(self.collected / "heldout")
        models: dict[str, Callable[[], Embedder]] = {
            "random weights": self._random_model,
            "after MLM": lambda: Embedder.load(self.runs / "mlm"),
            "after contrastive": lambda: Embedder.load(self.runs / "contrastive"),
            "after finetuning": lambda: Embedder.load(self.runs / "finetune"),
            "all-MiniLM-L6-v2": load_teacher,
        }
        rows = {}
        for name, load in models.items():
            rows[name] = _scores(evaluate_model(held_out, load(), self.console, name))
        rows["BM25"] = _scores(evaluate_bm25(held_out))
        return {"queries": len(held_out.queries), "documents": len(held_out.corpus), "models": rows}

    def publish(self) -> dict[str, Any]:
        publish(Embedder.load(self.runs / "finetune"), self.published, card=CARD)
        self._say(f"{self.published}")
        return {"folder": self.published.name, "model_sha256": sha256_file(self.published / "model.safetensors")}

    def search(self) -> dict[str, Any]:
        embedder = Embedder.load(self.published)
        passages = [Passage(row["_id"], row["text"]) for row in self._rows("heldout/corpus.jsonl")]
        long_rows = list(self._rows("pairs/long.jsonl"))[:NUM_LONG_SEARCHED]
        passages += [Passage(row["id"], row["document"]) for row in long_rows]
        with Bar("index", len(passages), console=self.console) as bar:
            index = Index.build(embedder, passages, cache=self.cache, progress=bar.advance)
        answers = {}
        for question in QUESTIONS:
            hits = index.search(question, k=3)
            answers[question] = [
                {
                    "score": round(hit.score, 3),
                    "where": hit.passage.where,
                    "text": " ".join(hit.passage.text.split())[:110],
                }
                for hit in hits
            ]
        return answers

    def _training(
        self, work: Callable[[], dict[str, Any]], recipe: Callable[[str], TrainConfig]
    ) -> tuple[Any, Callable[[], dict[str, Any]]]:
        # Settings and work of a stage; places are left out of the settings, so that the folder can be moved.
        return recipe("data").model_dump(mode="json", exclude={"data", "init"}), work

    def _config(self, stage: str) -> TrainConfig:
        if stage == "mlm":
            return demo_mlm(str(self.data))
        if stage == "contrastive":
            return demo_contrastive(str(self.data), str(self.runs / "mlm"))
        return demo_finetune(str(self.finetune_data), str(self.runs / "contrastive"))

    def _train(self, name: str, config: TrainConfig) -> dict[str, Any]:
        folder = self.runs / name
        run = resume(folder) if (folder / RUN).is_file() else start(config, folder)
        first, last = run.logged()[0], run.logged()[-1]
        self._say(f"{run.total_steps} steps, loss {first['loss']:.2f} -> {last['loss']:.2f}")
        return {
            "steps": run.total_steps,
            "first_loss": first["loss"],
            "last_loss": last["loss"],
            "model_sha256": sha256_file(run.model / "model.safetensors"),
        }

    def _random_model(self) -> Embedder:
        tokenizer = self._tokenizer()
        with torch.device("cpu"):
            encoder = Encoder(ENCODER.model_copy(update={"vocab_size": tokenizer.vocab_size}))
        initialize(encoder, seed=0)
        return Embedder(encoder, tokenizer, EmbeddingConfig(prefixes=dict(PREFIXES)), name="random weights")

    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.tokenizer_file)

    def _rows(self, name: str) -> Iterable[dict[str, Any]]:
        return (row for _, row in read_rows(str(self.collected / name)))

    def _say(self, text: str) -> None:
        self.console.print(f"    {text}", highlight=False, soft_wrap=True)


def evaluate_model(held_out: RetrievalSet, embedder: Embedder, console: Console, name: str) -> RetrievalResult:
    """Retrieval scores of a model, with a bar; texts are cut at the model's own limit."""
    with Bar(f"evaluate {name}", len(held_out.queries) + len(held_out.corpus), console=console) as bar:
        return evaluate_retrieval(
            held_out, lambda texts, *, task: embedder.embed(texts, task=task, truncate=True, progress=bar.advance)
        )


def _scores(result: RetrievalResult) -> dict[str, Any]:
    metrics = {name: result.metrics[name] for name in ("ndcg@10", "recall@10", "mrr@10")}
    return metrics | {"interval": list(result.interval)}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


class _FileBar:
    """A bar for work that tells how much is done and how much there is, instead of steps."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None
        self._done = 0

    def __enter__(self) -> Callable[[int, int], None]:
        return self._tell

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def _tell(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = Bar("read files", total, console=self._console)
            self._bar.__enter__()
        self._bar.advance(done - self._done)
        self._done = done


CARD = """## How it was made

By `longspan demo`: from random weights, on the documentation and source code of the Python packages that were
installed, with all-MiniLM-L6-v2 as the teacher that filtered pairs and mined negatives. It shows the road, not the
state of the art: train on real data for real use."""
