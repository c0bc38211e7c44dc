"""A finished model, one's own documents -> a model that is better on them, or the finding that it is not.

hold out -> measure -> mine -> train -> measure again -> publish the better one. Each stage calls the code that the
command line offers for it (`curate mine`, `prepare`, `train`, `evaluate`, `export`); this file only joins them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from rich.console import Console

from longspan.adapt.hold_out import Parts, hold_out, hold_out_given, write_retrieval_set
from longspan.adapt.own_data import fingerprint, read_own_data
from longspan.config import Config
from longspan.curate.consistency import Teacher
from longspan.curate.mining import MINED, Pool, mine_source, read_pool
from longspan.curate.negatives import Mining
from longspan.curate.vectors import VectorStore
from longspan.data.prepare import prepare
from longspan.data.readers import read_rows
from longspan.data.source import PairSource
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.corpus import load_retrieval_set
from longspan.evaluate.retrieval import EmbedFunction, RetrievalSet, evaluate_retrieval
from longspan.evaluate.significance import PairedTest, paired_test
from longspan.export.history import read_history
from longspan.export.model_card import CardFacts
from longspan.export.publish import publish
from longspan.files import read_json, sha256_file, write_json, write_json_lines
from longspan.model.folder import find_model, read_model
from longspan.model.inference import Precision
from longspan.objective.contrastive import ContrastiveConfig
from longspan.progress import Bars, Tell, counted
from longspan.recipes.adapt import adapt, scaled_lr
from longspan.stages import Stage, refuse_foreign
from longspan.train.config import TrainConfig
from longspan.train.loop import resume, start
from longspan.train.run import RUN

SOURCE = "own"
HELD_OUT, GUARD = "held-out", "guard"
ORIGINAL, ADAPTED = "the original model", "the adapted model"
MEASURE = "ndcg@10"
BEFORE, AFTER = "before.json", "after.json"
"""Files with the scores of every query."""
MEASURES = (MEASURE, "recall@10", "mrr@10")
SPARE = 4
"""So many times as many negatives are mined as a step draws: which of them is drawn changes from step to step."""
BLENDS = (1.0, 0.5, 0.25)
"""Parts of the trained weights that are tried."""
REMEDY = "start anew with --fresh"


class AdaptConfig(Config):
    """What is adapted to what, and when the result counts as better."""

    model: str
    """The model to begin with: folder, finished run or hub id."""
    data: str
    """One's own documents or pairs (see `read_own_data`)."""
    split: str | None = None
    """Of a retrieval set's judgements: those to train on."""
    query: str = "query"
    document: str = "document"
    """Columns of rows that are pairs."""
    held_out: str | None = None
    """A retrieval set to measure on; None: a part of the data."""
    part: float = Field(default=0.15, gt=0, lt=1)
    """Part of the pairs that is held out."""
    guard: str | None = None
    """Another retrieval set, on which the model must not get worse."""
    most_lost: float = Field(default=0.01, ge=0)
    """So much nDCG@10 it may lose there."""
    blend: float | None = Field(default=None, gt=0, le=1)
    """Part of the trained weights in the finished ones; the rest is the original's. An average keeps more of what the
    model knew (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022). None: all, or with a guard the largest
    of `BLENDS` that does not lose too much there."""
    closest: float | None = Field(default=0.95, gt=0)
    """Mined negatives score at most this part of the answer's score, so that few of them are answers, too. Left out
    where it would leave most pairs without negatives."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the vectors that are mined with and measured, before and after, and of the products of training. bfloat16 is
    several times as fast on GPUs and on CPUs that have its arithmetic; the published weights are float32 all the same.
    """
    training: dict[str, str] = Field(default_factory=dict)
    """Settings of the recipe `adapt` to change, by dotted key."""
    seed: int = 0


class Adaptation:
    """The stages, and where they keep things."""

    def __init__(self, config: AdaptConfig, out: Path, console: Console, *, device: str | None = None) -> None:
        """
        Raises:
            LongspanError: the model is not there, or was not made to search.
        """
        self.config, self.out, self.console = config, out, console
        self._device = device
        self._model_folder = find_model(config.model)
        self.original = Embedder.load(self._model_folder, device=device)
        self.original.name = config.model
        self._measured = self.original
        if config.precision != self.original.precision:
            self._measured = Embedder.load(self._model_folder, device=device, precision=config.precision)
            self._measured.name = config.model
        for task in ("search_query", "search_document"):
            self.original.check_task(task)
        self.parts = out / "data"
        self.mined = out / "mine"
        self.prepared = out / "prepared"
        self.run = out / "run"
        self.published = out / "model"
        self.cache = out / "vectors"

    def stages(self) -> list[Stage]:
        """Everything, in order.

        Raises:
            LongspanError: there is no data, a setting of the recipe does not exist, or the folder holds something else.
        """
        config = self.config
        refuse_foreign(self.out)
        places = {name: fingerprint(place) for name, place in self._places().items()}
        self._recipe()  # an unknown setting is told now, not after the mining
        # Everything is asked for at once: with another setting, all of it is another adaptation.
        asked = config.model_dump(mode="json", exclude={"model", *places}) | {"places": places}
        asked |= {"model": self.original.fingerprint}
        return [
            Stage("hold-out", "read the data and hold out a part", asked, self.hold_out),
            Stage("before", "measure the model as it is", 0, self.measure_before),
            Stage("mine", "find hard negatives with the model itself", 0, self.mine),
            Stage("train", "contrastive training at a small learning rate", 0, self.train),
            Stage("after", "measure the adapted model", 0, self.measure_after),
            Stage("publish", "keep the better model", 0, self.publish),
        ]

    def hold_out(self) -> dict[str, Any]:
        config = self.config
        data = read_own_data(config.data, split=config.split, query=config.query, document=config.document)
        parts: Parts
        if config.held_out is None:
            parts = hold_out(data, config.part, seed=config.seed)
            write_retrieval_set(parts.held_out, self.parts / HELD_OUT)
        else:
            parts = hold_out_given(data, load_retrieval_set(Path(config.held_out)))
        rows = [{"query": pair.query, "document": pair.document} for pair in parts.train]
        write_json_lines(self.parts / "train.jsonl", rows)
        write_json_lines(self.parts / "negatives.jsonl", ({"document": text} for text in parts.negatives))
        held_out = parts.held_out
        self._say(
            f"{len(data.pairs):,} pairs and {len(data.documents):,} documents: {len(rows):,} pairs to learn from, "
            f"{len(held_out.queries):,} queries held out"
        )
        return {
            "form": data.form,
            "pairs": len(data.pairs),
            "documents": len(data.documents),
            "train": len(rows),
            "dropped": parts.num_dropped,
            "held_out_queries": len(held_out.queries),
            "searched_documents": len(held_out.corpus),
        }

    def measure_before(self) -> dict[str, Any]:
        scores = self._measure(self._measured)
        write_json(self.out / BEFORE, scores)
        return _summary(scores)

    def measure_after(self) -> dict[str, Any]:
        before = read_json(self.out / BEFORE, remedy=REMEDY)
        blends = BLENDS if self.config.blend is None else (self.config.blend,)
        scores: dict[str, Any] = {}
        blend, tried = blends[0], []
        for blend in blends:
            scores = self._measure(self.adapted(blend, self.config.precision))
            tried.append({"blend": blend} | {which: one["metrics"][MEASURE] for which, one in scores.items()})
            if GUARD not in scores or -_difference(before, scores, GUARD) <= self.config.most_lost:
                break
        write_json(self.out / AFTER, {"blend": blend, "scores": scores})
        return _summary(scores) | {"blend": blend, "tried": tried}

    def mine(self) -> dict[str, Any]:
        source = PairSource(name=SOURCE, files=(str(self.parts / "train.jsonl"),))
        pool = read_pool(source, [str(self.parts / "negatives.jsonl")])
        # No query can have more negatives than there are documents that do not answer it.
        most = len(pool.corpus) - int(np.diff(pool.positives.offsets).max())
        wanted = min(self._num_negatives(), most)
        closest = self.config.closest
        report = self._mine(source, pool, wanted, closest)
        if closest is not None and 2 * report["mined"] < report["pairs"]:
            # All scores of this model lie close together: a part of the answer's says nothing.
            self._say(f"{report['dropped']:,} pairs have too few negatives below {closest:g} of the answer's score")
            closest = None
            report = self._mine(source, pool, wanted, closest)
        self._say(
            f"{report['mined']:,} pairs with {wanted} negatives or more, {report['dropped']:,} left out with fewer"
        )
        return {
            "mined": report["mined"],
            "dropped": report["dropped"],
            "num_negatives": wanted,
            "closest": closest,
            "nearest_above_positive": report["nearest_above_positive"],
        }

    def train(self) -> dict[str, Any]:
        source = PairSource(name=SOURCE, files=(str(self.mined / MINED),), negatives="negatives")
        prepare([source], self.prepared, self.original.tokenizer)
        counts = [len(row["negatives"]) for _, row in read_rows(str(self.mined / MINED))]
        options = {"device": self._device}
        if (self.run / RUN).is_file():
            run = resume(self.run, **options)
        else:
            run = start(self._recipe(len(counts), min(counts)), self.run, **options)
        logged = run.logged()
        self._say(f"{run.total_steps} steps, loss {logged[0]['loss']:.3f} -> {logged[-1]['loss']:.3f}")
        return {
            "steps": run.total_steps,
            "pairs": len(counts),
            "settings": run.config.model_dump(mode="json", exclude={"data", "init"}),
            "model_sha256": sha256_file(run.model / "model.safetensors"),
        }

    def publish(self) -> dict[str, Any]:
        verdict = self.verdict()
        chosen = self.adapted(verdict["blend"]) if verdict["kept"] == ADAPTED else self.original
        history = read_history(self.run) if verdict["kept"] == ADAPTED else []
        facts = CardFacts(history=history, body=_card(self.config, verdict))
        publish(chosen, self.published, facts=facts)
        shutil.rmtree(self.cache, ignore_errors=True)
        self._say(f"kept {verdict['kept']}: {verdict['why']}")
        return verdict | {"model_sha256": sha256_file(self.published / "model.safetensors")}

    def adapted(self, blend: float, precision: Precision = "float32") -> Embedder:
        """The trained weights, or their average with the original's, used as the original is used."""
        encoder, tokenizer, config = read_model(self._model_folder)
        trained = read_model(self.run)[0].state_dict()
        weights = {name: old + blend * (trained[name] - old) for name, old in encoder.state_dict().items()}
        encoder.load_state_dict(trained if blend == 1.0 else weights)
        name = f"{self.config.model}, adapted"
        return Embedder(encoder, tokenizer, config, device=self._device, precision=precision, name=name)

    def verdict(self) -> dict[str, Any]:
        """Which model is kept and why, and the paired comparison on every set."""
        before, after = (read_json(self.out / name, remedy=REMEDY) for name in (BEFORE, AFTER))
        tests = {
            which: paired_test(after["scores"][which]["per_query"], before[which]["per_query"]) for which in before
        }
        kept, why = decide(tests, self.config.most_lost)
        comparisons = {which: test.as_json() for which, test in tests.items()}
        return {"kept": kept, "why": why, "blend": after["blend"], "comparisons": comparisons}

    def retrieval_sets(self) -> dict[str, RetrievalSet]:
        """What is measured on: the held-out queries, and the guard if there is one."""
        held_out = self.config.held_out
        sets = {HELD_OUT: load_retrieval_set(self.parts / HELD_OUT if held_out is None else Path(held_out))}
        if self.config.guard is not None:
            sets[GUARD] = load_retrieval_set(Path(self.config.guard))
        return sets

    def _measure(self, embedder: Embedder) -> dict[str, Any]:
        """Scores on the held-out queries and on the guard; vectors are kept, so that mining need not compute them."""
        scores: dict[str, Any] = {}
        for which, retrieval_set in self.retrieval_sets().items():
            with Bars(which, console=self.console) as bars:
                result = evaluate_retrieval(
                    retrieval_set, stored_embed(embedder, self.cache, bars.show), seed=self.config.seed
                )
            scores[which] = {
                "set": retrieval_set.name,
                "queries": len(retrieval_set.queries),
                "documents": result.num_documents,
                "metrics": {measure: result.metrics[measure] for measure in MEASURES},
                "interval": list(result.interval),
                "per_query": result.per_query,
            }
            low, high = result.interval
            self._say(f"{which}: nDCG@10 {result.metrics[MEASURE]:.3f} ({low:.3f} to {high:.3f})")
        return scores

    def _mine(self, source: PairSource, pool: Pool, wanted: int, closest: float | None) -> dict[str, Any]:
        with Bars("mine", console=self.console) as bars:
            return mine_source(
                source,
                Teacher(self._measured),
                self.mined,
                Mining(k=max(SPARE * wanted, 1), at_least=wanted, guard=closest),
                pool=pool,
                cache=self.cache,
                progress=bars.show,
            ).facts

    def _places(self) -> dict[str, str]:
        places = {"data": self.config.data, "held_out": self.config.held_out, "guard": self.config.guard}
        return {name: place for name, place in places.items() if place is not None}

    def _num_negatives(self) -> int:
        objective = self._recipe().objective
        assert isinstance(objective, ContrastiveConfig)
        return objective.num_negatives

    def _recipe(self, num_rows: int | None = None, num_negatives: int | None = None) -> TrainConfig:
        """The recipe `adapt` for this model and these pairs, with what the user has changed."""
        settings, width = self.original.config, self.original.dim
        config = adapt(str(self.prepared), str(self._model_folder))
        longest = settings.max_length
        objective = config.objective
        assert isinstance(objective, ContrastiveConfig)
        suited: dict[str, Any] = {
            "optim.lr": scaled_lr(width),
            "objective.pooling": settings.pooling,
            "objective.max_query_tokens": min(objective.max_query_tokens, longest),
            "objective.max_document_tokens": min(objective.max_document_tokens, longest),
            "max_length": longest,
            "prefixes": settings.prefixes,
            "precision": "bf16" if self.config.precision == "bfloat16" else "fp32",
            "seed": self.config.seed,
        }
        config = config.replace(suited | self.config.training, where="--set")
        if config.objective.kind != "contrastive":
            raise LongspanError(
                f"a model is not adapted by {config.objective.kind}",
                where="--set objective.kind",
                remedy="leave that setting out",
            )
        # Few pairs may fill no batch, and few documents may hold no negatives: that is no setting to be refused.
        fitting: dict[str, Any] = {}
        if num_rows is not None:
            fitting["batch_size"] = min(config.batch_size, num_rows)
        if num_negatives is not None:
            fitting["objective.num_negatives"] = min(config.objective.num_negatives, num_negatives)
        return config.replace(fitting, where="adapt")

    def _say(self, text: str) -> None:
        self.console.print(f"    {text}", highlight=False, soft_wrap=True)


def decide(tests: Mapping[str, PairedTest], most_lost: float) -> tuple[str, str]:
    """Which model is kept, and why: the adapted one if it is better on the held-out queries and safe on the guard."""
    held_out, guard = tests[HELD_OUT], tests.get(GUARD)
    gained = f"{held_out.difference:+.3f} nDCG@10 on the held-out queries"
    if held_out.difference <= 0:
        return ORIGINAL, f"the adapted one is not better ({gained})"
    if guard is not None and guard.difference < -most_lost:
        return ORIGINAL, (
            f"the adapted one has {gained} but loses {-guard.difference:.3f} on the guard, more than {most_lost:g}; a "
            "lower learning rate or a smaller --blend may keep more"
        )
    sure = "" if held_out.interval[0] > 0 else ", which may be chance: 0 is in its interval"
    return ADAPTED, gained + sure


def _difference(before: Mapping[str, Any], after: Mapping[str, Any], which: str) -> float:
    return after[which]["metrics"][MEASURE] - before[which]["metrics"][MEASURE]


def _summary(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {which: {key: one[key] for key in one if key != "per_query"} for which, one in scores.items()}


def stored_embed(embedder: Embedder, cache: Path, tell: Tell) -> EmbedFunction:
    """An embedder whose vectors are kept in a folder, for `evaluate_retrieval`; texts are cut at the model's limit."""

    def embed(texts: Sequence[str], *, task: str) -> np.ndarray:
        return VectorStore(cache, embedder, task=task).embed(texts, counted(tell, task, len(texts)))

    return embed


def _card(config: AdaptConfig, verdict: Mapping[str, Any]) -> str:
    name = Path(config.model).name if Path(config.model).exists() else config.model
    lines = ["## Adapted with `longspan adapt`", "", f"From `{name}`. Kept: {verdict['kept']}: {verdict['why']}."]
    for which, test in verdict["comparisons"].items():
        low, high = test["interval"]
        lines.append(
            f"- {which}, {test['num_queries']:,} queries: nDCG@10 {test['difference']:+.4f} against the original "
            f"({low:+.4f} to {high:+.4f}, 95 %)"
        )
    return "\n".join(lines)
