"""Contrastive learning: pairs in, gradients out (paper, sections 3.2, 3.3 and 4.2).

Axes: n queries of this process, N = n * world size queries of the global batch, H negatives of each, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from longspan.config import Config
from longspan.data.collate import PairBatch
from longspan.objective.gradcache import embed_in_chunks
from longspan.objective.losses import info_nce
from longspan.objective.world import Alone, World, adding_summed_gradients


class ContrastiveConfig(Config):
    """InfoNCE over query-document pairs."""

    kind: Literal["contrastive"] = "contrastive"
    temperature: float = Field(default=0.02, gt=0)
    """tau of equations (1) and (2). The paper does not state it; the released configuration uses a scale of 50."""
    num_negatives: int = Field(default=0, ge=0)
    """H: mined negatives drawn for each query in each step."""
    negatives_for: Literal["own", "all"] = "own"
    """Whether a mined negative is a candidate for its own query only (equation 2) or for every query of the batch (the
    released code)."""
    mask_duplicates: bool = True
    """Leave out of a query's sum the candidates that are right answers as well: documents equal to its own, and the
    documents of equal queries. The paper does not, and its recipes here do not."""
    max_query_tokens: int = Field(default=2048, ge=16)
    max_document_tokens: int = Field(default=2048, ge=16)
    """Texts are cut here, prefix and special tokens included."""
    max_document_tokens_of: dict[str, int] = Field(default_factory=dict)
    """Other cuts for the documents of some sources, by name: long pairs need more room than the rest."""
    chunk_tokens: int = Field(default=65_536, gt=0)
    """Most tokens in a chunk of GradCache: what bounds memory."""
    pooling: Literal["mean", "cls", "last"] = "mean"


class Contrastive:
    """`backward(model, batch)` leaves in `.grad` the gradient of the mean loss over the global batch."""

    def __init__(
        self, config: ContrastiveConfig, *, world: World | None = None, autocast: torch.dtype | None = None
    ) -> None:
        self._config = config
        self._world = world or Alone()
        self._autocast = autocast

    def backward(self, model: nn.Module, batch: PairBatch) -> dict[str, float | str]:
        """Add the gradients of one global batch to `.grad`; collective over the world.

        Args:
            model: maps a `Packed` to vectors (B, D), e.g. `PooledEncoder`.
            batch: this rank's share; every rank has the same number of queries.

        Returns:
            loss (mean over the global batch), accuracy (part of the queries whose own document scores highest), and
            counts, all global.
        """
        world, n = self._world, batch.queries.num_sequences
        budget = self._config.chunk_tokens
        q_nD, backward_queries = embed_in_chunks(model, batch.queries, budget, self._autocast)
        d_nD, backward_documents = embed_in_chunks(model, batch.documents, budget, self._autocast)

        share_negatives = self._config.negatives_for == "all"
        queries_nD = q_nD.requires_grad_()
        positives_ND = world.gather(d_nD[:n]).requires_grad_()
        negatives_D = (world.gather(d_nD[n:]) if share_negatives else d_nD[n:]).requires_grad_()
        masked_nC = duplicates(batch, world, q_nD.device, share_negatives=share_negatives)
        loss, correct = self._loss(queries_nD, positives_ND, negatives_D, masked_nC)
        (loss / (n * world.size)).backward()

        gradient_nD = [world.reduce_scatter(_gradient(positives_ND))]
        if batch.num_negatives:
            gradient = _gradient(negatives_D)
            gradient_nD.append(world.reduce_scatter(gradient) if share_negatives else gradient)
        with adding_summed_gradients(model, world):
            backward_queries(_gradient(queries_nD))
            backward_documents(torch.cat(gradient_nD))
        return self._metrics(batch, loss.detach(), correct, masked_nC)

    def _loss(
        self, queries_nD: Tensor, positives_ND: Tensor, negatives_D: Tensor, duplicates_nC: Tensor
    ) -> tuple[Tensor, Tensor]:
        n = queries_nD.shape[0]
        labels_n = torch.arange(n, device=queries_nD.device) + n * self._world.rank
        temperature = self._config.temperature
        masked_nC = duplicates_nC if self._config.mask_duplicates else None
        if not negatives_D.shape[0]:
            return info_nce(queries_nD, positives_ND, labels_n, temperature, masked_NC=masked_nC)
        if self._config.negatives_for == "all":
            candidates_D = torch.cat([positives_ND, negatives_D])
            return info_nce(queries_nD, candidates_D, labels_n, temperature, masked_NC=masked_nC)
        return info_nce(queries_nD, positives_ND, labels_n, temperature, negatives_D.unflatten(0, (n, -1)), masked_nC)

    def _metrics(
        self, batch: PairBatch, loss: Tensor, correct: Tensor, duplicates_nC: Tensor
    ) -> dict[str, float | str]:
        tokens = batch.queries.num_tokens + batch.documents.num_tokens
        num_duplicates = int(duplicates_nC.sum())
        local = [float(loss), float(correct), batch.queries.num_sequences, tokens, batch.num_cut, num_duplicates]
        total = self._world.sum(torch.tensor(local, dtype=torch.float64, device=loss.device))
        loss_sum, correct_sum, pairs, num_tokens, num_cut, num_duplicates = total.tolist()
        return {
            "loss": loss_sum / pairs,
            "accuracy": correct_sum / pairs,
            "source": batch.source,
            "pairs": int(pairs),
            "tokens": int(num_tokens),
            "cut": int(num_cut),
            "duplicates": int(num_duplicates),
        }


def duplicates(batch: PairBatch, world: World, device: torch.device, *, share_negatives: bool) -> Tensor:
    """Which candidates of each query are right answers beside its own document; collective over the world.

    Two texts count as equal when they are the same tokens to the model, cuts included (compared by 64-bit hashes).

    Returns:
        Boolean (n, N + n' H): the N documents of the global batch, then mined negatives: with `share_negatives` those
        of the whole batch (n' = N), else the query's own (n' = 1).
    """
    n = batch.queries.num_sequences
    query_n, texts = batch.query_hashes.to(device), batch.document_hashes.to(device)
    document_n, negatives = texts[:n], texts[n:]
    query_N, document_N = world.gather(query_n), world.gather(document_n)
    right_nN = (query_n[:, None] == query_N) | (document_n[:, None] == document_N)
    right_nN[torch.arange(n), torch.arange(n) + n * world.rank] = False
    mined = world.gather(negatives) if share_negatives else negatives.view(n, batch.num_negatives)
    return torch.cat([right_nN, document_n[:, None] == mined], dim=1)


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad
