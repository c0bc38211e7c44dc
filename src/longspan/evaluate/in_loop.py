"""What a run measures itself on while it trains: held-out pairs of several sources, or a small retrieval set.

Every rank embeds and ranks its part (`heldout.py`), with the prefixes, tasks and cuts of the run. The figures are
`eval/SOURCE/MEASURE`, and `eval/mean/MEASURE`, the mean over the sources.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import torch
from torch import nn

from longspan.data.collate import PairCollator
from longspan.data.dataset import Dataset, find_prepared
from longspan.data.plan import PlannedBatch, shuffled
from longspan.data.prepare import TOKENIZER_FILE
from longspan.errors import LongspanError
from longspan.evaluate.corpus import load_retrieval_set
from longspan.evaluate.heldout import CUT, HeldOutPairs, as_sequences, quick_benchmark
from longspan.evaluate.retrieval import RetrievalSet
from longspan.model.config import EmbeddingConfig
from longspan.objective.contrastive import ContrastiveConfig
from longspan.objective.world import World
from longspan.text.packed import Packed
from longspan.text.tokenizer import Tokenizer
from longspan.train.config import TrainConfig
from longspan.train.loop import Evaluator
from longspan.train.stage import embedding_config

MEAN = "mean"
BEST = f"eval/{MEAN}/ndcg@{CUT}"
"""By this the best checkpoint is kept, where nothing else is said."""


def evaluators(config: TrainConfig) -> dict[str, Evaluator]:
    """What `config.held_out` asks for: an evaluator for each source, and one for their mean; none where it asks for
    nothing.

    Raises:
        LongspanError: the run trains no vectors; the data is not there, has another tokenizer than the run's, or is
            what the run trains on.
    """
    if config.held_out.data is None:
        return {}
    if not isinstance(config.objective, ContrastiveConfig):
        raise LongspanError(
            f"a run of {config.objective.kind} trains no vectors that could be ranked",
            where="held_out.data",
            remedy="leave --eval-data out; it is for contrastive training and finetuning",
        )
    place = Path(config.held_out.data)
    if find_prepared(place):
        sets = _prepared(place, config, config.objective)
    else:
        sets = _retrieval_set(place, config, config.objective)
    if MEAN in sets:
        raise LongspanError(f"a source is called {MEAN!r}", where=place, remedy="give it another name")
    return _Measured(sets, embedding_config(config, config.objective.pooling), config.precision).evaluators()


class _Measured:
    """Evaluators of several sets; that of the mean comes last and uses what the others have found."""

    def __init__(self, sets: dict[str, HeldOutPairs], config: EmbeddingConfig, precision: str) -> None:
        self._sets = sets
        self._config = config
        self._autocast = torch.bfloat16 if precision == "bf16" else None
        self._found: dict[str, dict[str, float]] = {}

    def evaluators(self) -> dict[str, Evaluator]:
        """By name."""
        return {name: self._measure(name) for name in self._sets} | {MEAN: self._mean}

    def _measure(self, name: str) -> Evaluator:
        def measure(model: nn.Module, world: World) -> dict[str, float]:
            device = next(model.parameters()).device
            self._found[name] = quick_benchmark(
                model, self._sets[name], self._config, world=world, device=device, autocast=self._autocast
            )
            return self._found[name]

        return measure

    def _mean(self, model: nn.Module, world: World) -> dict[str, float]:
        del model, world
        found = self._found.values()
        return {measure: statistics.fmean(one[measure] for one in found) for measure in next(iter(found))}


def _prepared(place: Path, config: TrainConfig, objective: ContrastiveConfig) -> dict[str, HeldOutPairs]:
    """Some pairs of every prepared source, as a step of the run would read them."""
    held_out, trained = Dataset(place, "pairs"), Dataset(Path(config.data), "pairs", only=config.sources)
    _check_tokenizer(place, held_out.tokenizer, trained.tokenizer)
    training = {shard.sha256 for source in trained.sources for shard in source.manifest.shards}
    for source in held_out.sources:
        if any(shard.sha256 in training for shard in source.manifest.shards):
            raise LongspanError(
                f"source {source.manifest.name!r} is not held out: the run trains on these pairs",
                where=source.folder,
                remedy="prepare pairs that are not in the training data, and name their folder",
            )
    names = {source.manifest.name for source in held_out.sources}
    collate = PairCollator(
        held_out,
        num_negatives=0,
        max_query_tokens=objective.max_query_tokens,
        max_document_tokens=objective.max_document_tokens,
        max_document_tokens_of={
            name: longest for name, longest in objective.max_document_tokens_of.items() if name in names
        },
        prefixes=config.prefixes,
        seed=config.seed,
    )
    sets = {}
    for number, source in enumerate(held_out.sources):
        rows = np.arange(min(len(source), config.held_out.max_pairs))
        if source.manifest.clusters:  # the first rows are of the first cluster
            rows = shuffled(rows, len(source), (config.seed,))
        batch = collate(0, PlannedBatch(number, rows), slice(None))
        kept = _first_of_equals(batch.query_hashes.numpy(), batch.document_hashes.numpy())
        if len(kept) < 2:
            raise LongspanError(
                f"{len(kept)} different pairs are too few to rank", where=source.folder, remedy="hold out more"
            )
        queries, documents = _sequences(batch.queries), _sequences(batch.documents)
        sets[source.manifest.name] = HeldOutPairs(
            tuple(queries[row] for row in kept), tuple(documents[row] for row in kept)
        )
    return sets


def _retrieval_set(place: Path, config: TrainConfig, objective: ContrastiveConfig) -> dict[str, HeldOutPairs]:
    """A retrieval set in BEIR's or MTEB's form or a file of pairs, as token sequences."""
    one = load_retrieval_set(place, split=config.held_out.split)
    tokenizer = Tokenizer.load(Path(config.data) / TOKENIZER_FILE)
    documents = {identity: number for number, identity in enumerate(one.corpus)}
    queries, corpus = (
        as_sequences([config.prefixes.get(task, "") + text for text in texts], tokenizer, longest)
        for task, texts, longest in (
            ("search_query", one.queries.values(), objective.max_query_tokens),
            ("search_document", one.corpus.values(), objective.max_document_tokens),
        )
    )
    return {one.name: HeldOutPairs(queries, corpus, _gains(one, documents))}


def _gains(one: RetrievalSet, documents: dict[str, int]) -> tuple[dict[int, float], ...]:
    return tuple(
        {documents[document]: gain for document, gain in one.qrels[query].items() if gain > 0} for query in one.queries
    )


def _sequences(packed: Packed) -> list[np.ndarray]:
    return [ids.numpy() for ids in packed.ids_T.split(packed.lengths)]


def _first_of_equals(queries_N: np.ndarray, documents_N: np.ndarray) -> list[int]:
    """The rows whose query and document are in no earlier row: others would have two right answers."""
    is_first = np.zeros((2, len(queries_N)), dtype=bool)
    for side, hashes_N in zip(is_first, (queries_N, documents_N), strict=True):
        side[np.unique(hashes_N, return_index=True)[1]] = True
    return np.flatnonzero(is_first.all(axis=0)).tolist()


def _check_tokenizer(place: Path, theirs: Tokenizer, ours: Tokenizer) -> None:
    if theirs.fingerprint != ours.fingerprint:
        raise LongspanError(
            "the held-out data was prepared with another tokenizer than the training data",
            where=place,
            remedy="prepare it with the tokenizer.json of the training data: longspan prepare ... --tokenizer FILE",
        )
