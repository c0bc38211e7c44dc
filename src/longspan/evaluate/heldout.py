"""A cheap look at retrieval quality in the middle of training: held-out pairs, on all ranks together.

It costs one pass over the pairs. The corpus is only as large as the set, so its figures say whether a run gets better,
not how good the model is.

Axes: N pairs, D width, R rows of one rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from longspan.embedder import TOKENS_PER_BATCH
from longspan.errors import LongspanError
from longspan.model.config import EmbeddingConfig
from longspan.model.pooling import finish
from longspan.objective.world import Alone, World
from longspan.text.packed import Packed, chunks_of_similar_length
from longspan.text.tokenizer import Tokenizer

CUT = 10
"""nDCG, MRR and recall look at so many documents."""


@dataclass(frozen=True)
class HeldOutPairs:
    """N queries and their documents as token sequences: document n is the one that answers query n."""

    queries: tuple[np.ndarray, ...]
    documents: tuple[np.ndarray, ...]

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
            ids = tokenizer.encode([prefix + pair[side] for pair in kept])
            ends = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
            sides.append(tuple(np.concatenate([ends[0], i[: max_length - 2], ends[1]]) for i in ids))
        return cls(*sides)


def quick_benchmark(
    model: nn.Module,
    pairs: HeldOutPairs,
    config: EmbeddingConfig,
    *,
    world: World | None = None,
    device: torch.device | str = "cpu",
    tokens_per_batch: int | None = None,
) -> dict[str, float]:
    """Rank all held-out documents for each query: "recall@1", "recall@10", "mrr@10" and "ndcg@10", in [0, 1].

    Collective: each rank embeds and ranks its part, and every rank gets the same figures. A document that scores as
    high as the right one counts as before it, so that a model whose vectors are all the same scores nothing. The model
    goes back to training mode if it was in it, and no gradient or random number is touched.

    Args:
        model: packed tokens to pooled vectors (`PooledEncoder`), on `device`; under sharded weights too.
        pairs: what to rank.
        config: how pooled vectors become vectors.
        world: the ranks that share the work; None: this process alone.
        device: where the model computes.
        tokens_per_batch: a batch is filled up to this many tokens; None takes what suits the device.
    """
    world = world or Alone()
    device = torch.device(device)
    budget = tokens_per_batch or TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cpu"])
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            queries_ND, documents_ND = (
                _embed(model, side, config, world, device, budget) for side in (pairs.queries, pairs.documents)
            )
    finally:
        model.train(was_training)
    own_R = torch.arange(len(pairs.queries), device=device)[world.rank :: world.size]
    scores_RN = queries_ND[own_R] @ documents_ND.T
    right_R1 = scores_RN.gather(1, own_R[:, None])
    rank_R = (scores_RN >= right_R1).sum(dim=1).double()  # the right one itself is counted, so ranks begin at 1
    found_R = (rank_R <= CUT).double()
    sums = torch.stack(
        [
            (rank_R == 1).double().sum(),
            found_R.sum(),
            (found_R / rank_R).sum(),
            (found_R / torch.log2(rank_R + 1)).sum(),
        ]
    )
    names = ("recall@1", f"recall@{CUT}", f"mrr@{CUT}", f"ndcg@{CUT}")
    return {name: float(total) / len(pairs.queries) for name, total in zip(names, world.sum(sums), strict=True)}


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
