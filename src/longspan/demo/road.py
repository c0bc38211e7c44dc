"""The whole road of the paper at small scale, on text that is on every machine.

collect -> tokenizer -> MLM -> consistency filter -> contrastive pretraining -> mining -> finetuning -> evaluation ->
publishing -> search. Each stage calls the same code that the command line offers for real data; this file only joins
them. Read `stages` below from top to bottom.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from longspan.curate.consistency import Teacher
from longspan.curate.filtering import filter_source
from longspan.curate.mining import mine_source
from longspan.curate.negatives import Mining
from longspan.data.prepare import prepare
from longspan.data.readers import read_rows
from longspan.data.source import PairSource, TextSource
from longspan.demo.collect import MAX_PAIRS, STANDARD, Sizes, collect
from longspan.demo.teacher import load_teacher
from longspan.embedder import Embedder
from longspan.evaluate.bm25 import evaluate_bm25
from longspan.evaluate.retrieval import RetrievalResult, RetrievalSet, evaluate_retrieval
from longspan.export.history import read_history
from longspan.export.model_card import CardFacts
from longspan.export.publish import publish
from longspan.files import sha256_file, write_json_lines
from longspan.model.config import EmbeddingConfig
from longspan.model.encoder import Encoder, initialize
from longspan.progress import Bar, Bars
from longspan.recipes.demo import demo_contrastive, demo_finetune, demo_mlm
from longspan.search import Index, Passage
from longspan.stages import Stage
from longspan.text.tasks import PREFIXES, Task
from longspan.text.tokenizer import Tokenizer
from longspan.train.config import TrainConfig
from longspan.train.loop import resume, start
from longspan.train.run import RUN

TASKS: dict[str, tuple[Task, Task]] = {
    "docstring": ("search_query", "search_document"),
    "code": ("search_query", "search_document"),
    "name": ("clustering", "clustering"),
    "long": ("search_query", "search_document"),
}
"""Source -> tasks of its two sides."""
MINED_SOURCES = ("docstring", "code")
"""Retrieval sources get mined negatives, as in the paper (section 4.2.4)."""
FINETUNE_SHARE = 4
"""Of the kept pairs of these sources, one in so many is left out of pretraining and used for finetuning, which in the
paper has data sets of its own."""
QUESTIONS = (
    "read rows of a csv file as dictionaries",
    "compute the inverse of a matrix",
    "run a function in another process",
    "how do I draw random samples without replacement?",
)
PASSAGES = "passages.jsonl"
"""The file in which the finished model searches, a row a passage; the package that it comes from is its source."""
LABELS = {"mlm": "after MLM", "contrastive": "after contrastive", "finetune": "after finetuning"}
"""Run -> what its row in the table is called."""


@dataclass(frozen=True)
class Scale:
    """How much of everything. The defaults take some minutes on two cores.

    Attributes:
        max_pairs, sizes: what is collected (see `collect`).
        vocab_size: of the tokenizer.
        teacher: loads the model that filters and mines.
        teacher_tokens: how much of a text the teacher reads when it filters and mines: enough to recognise it.
        sample_size: pairs among which the filter searches; the paper's million are out of hundreds of millions, too.
        guard: mined negatives may score up to this part of the positive's score. Beyond the paper: overloads of one
            function have nearly the same documentation.
        training: settings of the recipes to change, by stage.
        num_long_searched: long documents in the final search, each read whole.
    """

    max_pairs: Mapping[str, int] = field(default_factory=lambda: dict(MAX_PAIRS))
    sizes: Sizes = STANDARD
    vocab_size: int = 8192
    teacher: Callable[[], Embedder] = load_teacher
    teacher_tokens: int = 40
    sample_size: int = 1000
    guard: float = 0.95
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    num_long_searched: int = 16


class Road:
    """The demo's stages and where they keep things."""

    def __init__(self, out: Path, console: Console, scale: Scale | None = None) -> None:
        self.out = out
        self.console = console
        self.scale = scale or Scale()
        self.collected = out / "collect"
        self.tokenizer_file = out / "tokenizer.json"
        self.filtered = out / "filter"
        self.mined = out / "mine"
        self.data = out / "data"
        self.finetune_data = out / "finetune-data"
        self.runs = out / "runs"
        self.published = out / "published"
        self.passages = out / PASSAGES
        self.cache = out / "vectors"

    def stages(self) -> list[Stage]:
        """Everything, in order."""
        scale = self.scale
        curation = {"tokens": scale.teacher_tokens, "sample": scale.sample_size, "guard": scale.guard}
        collected = {"pairs": dict(scale.max_pairs), "sizes": asdict(scale.sizes)}

        def recipe(stage: str) -> Any:
            # Places are left out, so that the folder can be moved.
            return self._config(stage).model_dump(mode="json", exclude={"data", "init"})

        return [
            Stage("collect", "read the documentation of installed packages", collected, self.collect),
            Stage("tokenizer", "train a WordPiece vocabulary", scale.vocab_size, self.train_tokenizer),
            Stage("mlm", "masked language modelling on packed text (4.1)", recipe("mlm"), self.mlm),
            Stage("filter", "drop pairs the teacher does not find in its top 2 (4.2.1)", curation, self.filter),
            Stage("contrastive", "one source per batch, GradCache (4.2.2)", recipe("contrastive"), self.contrastive),
            Stage("mine", "top-20 hard negatives (4.2.4)", curation, self.mine),
            Stage("finetune", "seven of the twenty negatives, at random (4.2.5)", recipe("finetune"), self.finetune),
            Stage("evaluate", "held-out queries: every stage, random weights, MiniLM, BM25", 0, self.evaluate),
            Stage("publish", "a folder for sentence-transformers and transformers", 0, self.publish),
            Stage("search", "ask the finished model", {"questions": list(QUESTIONS), "in": PASSAGES}, self.search),
        ]

    def collect(self) -> dict[str, Any]:
        with _FileBar(self.console) as progress:
            report = collect(self.collected, max_pairs=self.scale.max_pairs, sizes=self.scale.sizes, progress=progress)
        self._say(
            f"{report.num_pairs:,} pairs ({_counts(report.pairs)}), "
            f"{report.long_documents} documents over 2,048 tokens, "
            f"{report.text_bytes / 1e6:.1f} MB of text, {report.queries} held-out queries"
        )
        return {"pairs": report.pairs, "long_documents": report.long_documents, "fingerprint": report.fingerprint}

    def train_tokenizer(self) -> dict[str, Any]:
        tokenizer = Tokenizer.train((row["text"] for row in self._rows("text/python.jsonl")), self.scale.vocab_size)
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
            pairs = PairSource(name=source, files=(str(self.collected / "pairs" / f"{source}.jsonl"),))
            teacher = Teacher(self.scale.teacher(), query_task, document_task, self.scale.teacher_tokens)
            with Bars(f"filter {source}", console=self.console) as bars:
                report = filter_source(
                    pairs,
                    teacher,
                    self.filtered / source,
                    sample_size=self.scale.sample_size,
                    cache=self.cache,
                    progress=bars.show,
                ).facts
            counts[source] = {"pairs": report["pairs"], "kept": report["kept"]}
            self._say(f"{source}: kept {report['kept']:,} of {report['pairs']:,}")
            kept = read_rows(str(self.filtered / source / "kept.jsonl"))
            pretrain = [row for _, row in kept if source not in MINED_SOURCES or not _is_for_finetuning(row)]
            write_json_lines(self.filtered / source / "pretrain.jsonl", pretrain)
        return counts

    def contrastive(self) -> dict[str, Any]:
        sources = [
            PairSource(
                name=source,
                files=(str(self.filtered / source / "pretrain.jsonl"),),
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
            pairs = PairSource(name=source, files=(str(self.filtered / source / "kept.jsonl"),))
            teacher = Teacher(self.scale.teacher(), max_length=self.scale.teacher_tokens)
            with Bars(f"mine {source}", console=self.console) as bars:
                report = mine_source(
                    pairs,
                    teacher,
                    self.mined / source,
                    Mining(guard=self.scale.guard),
                    cache=self.cache,
                    progress=bars.show,
                ).facts
            mined = read_rows(str(self.mined / source / "mined.jsonl"))
            chosen = [row for _, row in mined if _is_for_finetuning(row)]
            write_json_lines(self.mined / source / "finetune.jsonl", chosen)
            counts[source] = {"mined": report["mined"], "finetune": len(chosen)}
            self._say(
                f"{source}: {report['negatives_per_pair']:.1f} negatives for each of {report['mined']:,} pairs, "
                f"{len(chosen):,} of them for finetuning"
            )
        return counts

    def finetune(self) -> dict[str, Any]:
        sources = [
            PairSource(name=source, files=(str(self.mined / source / "finetune.jsonl"),), negatives="negatives")
            for source in MINED_SOURCES
        ]
        prepare(sources, self.finetune_data, self._tokenizer())
        return self._train("finetune", self._config("finetune"))

    def evaluate(self) -> dict[str, Any]:
        held_out = RetrievalSet.load(self.collected / "heldout")
        models: dict[str, Callable[[], Embedder]] = {"random weights": self._random_model}
        for run, label in LABELS.items():
            models[label] = partial(Embedder.load, self.runs / run)
        models["all-MiniLM-L6-v2"] = self.scale.teacher
        rows = {}
        for name, load in models.items():
            rows[name] = _scores(evaluate_model(held_out, load(), self.console, name))
        rows["BM25"] = _scores(evaluate_bm25(held_out))
        return {"queries": len(held_out.queries), "documents": len(held_out.corpus), "models": rows}

    def publish(self) -> dict[str, Any]:
        facts = CardFacts(history=read_history(self.runs / "finetune"), body=CARD)
        publish(Embedder.load(self.runs / "finetune"), self.published, facts=facts)
        self._say(f"{self.published}")
        return {"folder": self.published.name, "model_sha256": sha256_file(self.published / "model.safetensors")}

    def search(self) -> dict[str, Any]:
        embedder = Embedder.load(self.published)
        rows = [row | {"text": f"{row['query']}\n\n{row['document']}"} for row in self._rows("pairs/docstring.jsonl")]
        long_rows = list(self._rows("pairs/long.jsonl"))[: self.scale.num_long_searched]
        rows += [row | {"text": row["document"]} for row in long_rows]
        found = [{"id": row["id"], "source": row["id"].partition(".")[0], "text": row["text"].strip()} for row in rows]
        write_json_lines(self.passages, found)
        passages = [Passage(row["id"], row["text"], row["source"]) for row in found]
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

    def _config(self, stage: str) -> TrainConfig:
        if stage == "mlm":
            config = demo_mlm(str(self.data))
        elif stage == "contrastive":
            config = demo_contrastive(str(self.data), str(self.runs / "mlm"))
        else:
            config = demo_finetune(str(self.finetune_data), str(self.runs / "contrastive"))
        return config.replace(self.scale.training.get(stage, {}), where=f"the demo's {stage}")

    def _train(self, name: str, config: TrainConfig) -> dict[str, Any]:
        folder = self.runs / name
        run = resume(folder) if (folder / RUN).is_file() else start(config, folder)
        first, last = _first_and_last_loss(run.logged())
        self._say(f"{run.total_steps} steps, loss {first:.2f} -> {last:.2f}")
        return {
            "steps": run.total_steps,
            "first_loss": first,
            "last_loss": last,
            "model_sha256": sha256_file(run.model / "model.safetensors"),
        }

    def _random_model(self) -> Embedder:
        # The very weights that MLM starts from.
        config, tokenizer = self._config("mlm"), self._tokenizer()
        assert config.encoder is not None
        encoder = Encoder(config.encoder.model_copy(update={"vocab_size": tokenizer.vocab_size}))
        initialize(encoder, config.seed)
        return Embedder(encoder, tokenizer, EmbeddingConfig(prefixes=PREFIXES), name="random weights")

    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.tokenizer_file)

    def _rows(self, name: str) -> Iterable[dict[str, Any]]:
        return (row for _, row in read_rows(str(self.collected / name)))

    def _say(self, text: str) -> None:
        self.console.print(f"    {text}", highlight=False, soft_wrap=True)


def _first_and_last_loss(logged: list[dict[str, Any]]) -> tuple[float, float]:
    # Means over a tenth of the run: batches of different sources differ more than the start and the end do.
    part = max(1, len(logged) // 10)
    return fmean(row["loss"] for row in logged[:part]), fmean(row["loss"] for row in logged[-part:])


def _is_for_finetuning(row: dict[str, Any]) -> bool:
    return int(hashlib.sha256(row["id"].encode()).hexdigest(), 16) % FINETUNE_SHARE == 0


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
