"""A cheap look at retrieval quality in the middle of training: held-out pairs, on all ranks together.

It costs one pass over the texts. The corpus is only as large as the set, so its figures say whether a run gets better,
not how good the model is.

Axes: N texts of one side, D width, R queries of one rank, M documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from longspan.embedder import TOKENS_PER_BATCH
from longspan.errors import LongspanError
from longspan.evaluate import metrics
from longspan.model.config import EmbeddingConfig
from longspan.model.pooling import finish
from longspan.objective.world import Alone, World
from longspan.text.packed import Packed, chunks_of_similar_length
from longspan.text.tokenizer import Tokenizer

CUT = 10
"""nDCG, MRR and recall look at so many documents."""

_SCORES_AT_A_TIME = 2**24


@dataclass(frozen=True)
class HeldOutPairs:
    """Queries and documents as token sequences, and which answers which.

    Attributes:
        gains: for each query, the documents that answer it, by number, and how well; empty: document n answers query n.
    """

    queries: tuple[np.ndarray, ...]
    documents: tuple[np.ndarray, ...]
    gains: tuple[Mapping[int, float], ...] = ()

    def answers(self, query: int) -> Mapping[int, float]:
        """The documents that answer a query, and how well."""
        return self.gains[query] if self.gains else {query: 1.0}

    @classmethod
    def of(
        cls,
        pairs: Sequence[tuple[str, str]],
        tokenizer: Tokenizer,
        config: EmbeddingConfig,
        *,
        max_length: int = 128,
    ) -> HeldOutPairs:
        """Tokens of (query, document) pairs with the model's prefixes, cut at `max_length` tokens.

        Pairs whose query or document is there already are left out: they would have two right answers.

        Raises:
            LongspanError: fewer than two different pairs are left, or max_length is below 3.
        """
        if max_length < 3:
            raise LongspanError(f"max_length {max_length} is below 3", where="max_length", remedy="use a larger one")
        seen: set[tuple[str, str]] = set()
        kept = []
        for query, document in pairs:
            if ("query", query) not in seen and ("document", document) not in seen:
                kept.append((query, document))
            seen |= {("query", query), ("document", document)}
        if len(kept) < 2:
            raise LongspanError(
                f"{len(kept)} different pairs are too few to rank", where="held-out pairs", remedy="hold out more"
            )
        sides = []
        for side, task in enumerate(("search_query", "search_document")):
            prefix = config.prefixes.get(task, "")
            sides.append(as_sequences([prefix + pair[side] for pair in kept], tokenizer, max_length))
        return cls(*sides)


def as_sequences(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> tuple[np.ndarray, ...]:
    """[CLS] text [SEP] of every text, cut at `max_length` tokens."""
    cls, sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    return tuple(np.concatenate([cls, ids[: max_length - 2], sep]) for ids in tokenizer.encode(list(texts)))


def quick_benchmark(
    model: nn.Module,
    pairs: HeldOutPairs,
    config: EmbeddingConfig,
    *,
    world: World | None = None,
    device: torch.device | str = "cpu",
    tokens_per_batch: int | None = None,
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """Rank all held-out documents for each query: "recall@1", "recall@10", "mrr@10" and "ndcg@10", in [0, 1].

    Collective: each rank embeds and ranks its part, and every rank gets the same figures. A document that scores as
    high as a right one counts as before it, so that a model whose vectors are all the same scores nothing. The model
    goes back to training mode if it was in it, and no gradient or random number is touched.

    Args:
        model: packed tokens to pooled vectors (`PooledEncoder`), on `device`; under sharded weights too.
        pairs: what to rank.
        config: how pooled vectors become vectors.
        world: the ranks that share the work; None: this process alone.
        device: where the model computes.
        tokens_per_batch: a batch is filled up to this many tokens; None takes what suits the device.
        autocast: type of mixed precision of the model's passes, or None.
    """
    world = world or Alone()
    device = torch.device(device)
    budget = tokens_per_batch or TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cpu"])
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            queries_ND, documents_MD = (
                _embed(model, side, config, world, device, budget) for side in (pairs.queries, pairs.documents)
            )
    finally:
        model.train(was_training)
    own = range(world.rank, len(pairs.queries), world.size)
    ranked = {
        str(query): places for query, places in zip(own, _ranked(queries_ND, documents_MD, pairs, own), strict=True)
    }
    judged = {str(query): {str(n): gain for n, gain in pairs.answers(query).items()} for query in own}
    values = {
        "recall@1": metrics.recall_at_k(ranked, judged, 1),
        f"recall@{CUT}": metrics.recall_at_k(ranked, judged, CUT),
        f"mrr@{CUT}": metrics.mrr_at_k(ranked, judged, CUT),
        f"ndcg@{CUT}": metrics.ndcg_at_k(ranked, judged, CUT),
    }
    sums = torch.tensor([math.fsum(of.values()) for of in values.values()], dtype=torch.float64, device=device)
    return {name: float(total) / len(pairs.queries) for name, total in zip(values, world.sum(sums), strict=True)}


def _ranked(queries_ND: Tensor, documents_MD: Tensor, pairs: HeldOutPairs, own: range) -> Iterator[list[str]]:
    """For each of the own queries the best documents, best first; of equals, the one that answers less is first."""
    step = max(1, _SCORES_AT_A_TIME // len(documents_MD))
    depth = min(CUT, len(documents_MD))
    for start in range(0, len(own), step):
        part = own[start : start + step]
        scores_RM = queries_ND[list(part)] @ documents_MD.T
        # All that score as high as the last one that is looked at, so that it is not chance who is left out.
        lowest_R1 = scores_RM.topk(depth, dim=1).values[:, -1:]
        rows, places = (scores_RM >= lowest_R1).nonzero(as_tuple=True)
        scores = scores_RM[rows, places].cpu().numpy()
        rows, places = rows.cpu().numpy(), places.cpu().numpy()
        bounds = np.searchsorted(rows, np.arange(len(part) + 1))
        for number, query in enumerate(part):
            found = slice(bounds[number], bounds[number + 1])
            answers = pairs.answers(query)
            gains = np.array([answers.get(int(place), 0.0) for place in places[found]])
            order = np.lexsort((places[found], gains, -scores[found]))[:depth]
            yield [str(place) for place in places[found][order]]


def _embed(
    model: nn.Module,
    sequences: Sequence[np.ndarray],
    config: EmbeddingConfig,
    world: World,
    device: torch.device,
    budget: int,
) -> Tensor:
    """Vectors of all sequences on every rank, (N, D): rank r embeds sequences r, r + size, ..."""
    own = sequences[world.rank :: world.size] or sequences[:1]
    groups = chunks_of_similar_length([len(sequence) for sequence in own], budget)
    # As many rows on each rank, so that they can be gathered; the surplus is cut off below.
    num_rows = math.ceil(len(sequences) / world.size)
    rows_RD: Tensor | None = None
    for turn in range(world.passes(len(groups))):
        group = groups[min(turn, len(groups) - 1)]  # idle passes keep ranks in step where weights are sharded
        e_BD = finish(model(Packed.of([own[i] for i in group]).to(device)), config).float()
        if rows_RD is None:
            rows_RD = e_BD.new_zeros((num_rows, e_BD.shape[1]))
        rows_RD[group] = e_BD
    assert rows_RD is not None
    gathered_ND = world.gather(rows_RD)
    return gathered_ND.unflatten(0, (world.size, num_rows)).transpose(0, 1).flatten(0, 1)[: len(sequences)]
