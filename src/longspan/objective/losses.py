"""InfoNCE, equations (1) and (2) of the paper, and its variants; in tiles, so that memory holds no N x N scores.

Axes: n queries of this process, N pairs of the global batch, H mined negatives of each, K mined negatives that all
queries share (N * H), m rows of one tile, C candidates of one kind, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Self, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from longspan.config import Config
from longspan.objective.tiles import Tensors, sum_over_rows

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]

SCORES_PER_TILE = 2**24
"""Scores in memory at a time: 64 MiB in float32, and some copies of it; enough to keep matrix units busy."""

_OUT = -1e30
"""The logit of what is left out. Not minus infinity, whose logsumexp has no gradient where all of a row is left out."""


class InfoNCEConfig(Config):
    """InfoNCE over pairs of a query i and its document d_i, with s the cosine and t the temperature.

    The loss of a pair is `log(Z_i) - s(q_i, d_i) / t`. As in the paper, Z_i is the sum of `exp(s / t)` over the
    documents of the batch and the mined negatives. Every option adds to Z_i or takes from it; all are off by default.
    """

    temperature: float = Field(default=0.02, gt=0)
    """tau of equations (1) and (2). The paper does not state it; the released configuration uses a scale of 50."""
    mask_duplicates: bool = True
    """Leave out of a query's sum the candidates that are right answers as well: documents equal to its own, and the
    documents of equal queries. The paper does not, and its recipes here do not."""
    directions: tuple[Direction, ...] = ("query_to_doc",)
    """Which scores Z_i sums beside those of the query with the documents: `query_to_query` (s(q_i, q_j), j != i),
    `doc_to_query` (s(q_j, d_i), all j) and `doc_to_doc` (s(d_j, d_i), j != i); all four are the improved contrastive
    loss of Li et al., 2023 (GTE), equation 2."""
    partition_mode: Literal["joint", "per_direction"] = "joint"
    """`joint`: one Z_i for all directions. `per_direction`: a loss for each of `query_to_doc` and `doc_to_query`, and
    their mean: the symmetric InfoNCE of CLIP (Radford et al., 2021)."""
    false_negative_margin: float | None = Field(default=None, ge=-2, le=2)
    """Leave out candidates that score more than this above the pair's own score (Qwen3-Embedding, 2025: 0.1)."""
    false_negative_ratio: float | None = Field(default=None, gt=0)
    """Leave out candidates that score more than this part of the pair's own score (NV-Retriever, 2024: 0.95)."""
    hardness_mode: Literal["all_negatives", "in_batch_negatives", "hard_negatives"] | None = None
    """Which documents count for more the higher they score: all but the query's own; those of other queries (LLaVE,
    Lan et al., 2025, equation 5); or its own mined negatives (EmbeddingGemma, 2025)."""
    hardness_strength: float = Field(default=0.0, ge=0)
    """alpha: such a document counts exp(alpha * s) times, s without gradient. LLaVE takes 9, EmbeddingGemma 5."""

    @model_validator(mode="after")
    def _check_variants(self) -> Self:
        if "query_to_doc" not in self.directions or len(set(self.directions)) < len(self.directions):
            raise ValueError(
                f"directions has to hold query_to_doc, and may add {', '.join(get_args(Direction)[1:])}, each once"
            )
        if self.partition_mode == "per_direction" and set(self.directions) != {"query_to_doc", "doc_to_query"}:
            raise ValueError(
                "partition_mode per_direction is for the directions query_to_doc and doc_to_query: in the others no "
                "candidate is the right one"
            )
        if self.false_negative_margin is not None and self.false_negative_ratio is not None:
            raise ValueError("give false_negative_margin or false_negative_ratio, not both")
        if (self.hardness_mode is None) != (self.hardness_strength == 0):
            raise ValueError("hardness_mode says what hardness_strength weighs: give both, or neither")
        return self


class Pairs(NamedTuple):
    """The vectors of a batch as one process sees it; they need not be normalised.

    Attributes:
        queries_nD: of this process.
        documents_ND: of the global batch.
        labels_n: which of the N documents (and queries) belongs to each query (int64).
        negatives: mined ones: (n, H, D), each query's own; or (K, D), which every query meets, those of the global
            query 0 first.
        queries_ND: of the global batch; for directions to queries only.
    """

    queries_nD: Tensor
    documents_ND: Tensor
    labels_n: Tensor
    negatives: Tensor | None = None
    queries_ND: Tensor | None = None


class Hashes(NamedTuple):
    """int64, equal for equal texts.

    Attributes:
        queries_N, documents_N: of the global batch.
        negatives: (n, H) or (K,), as the vectors.
    """

    queries_N: Tensor
    documents_N: Tensor
    negatives: Tensor | None = None


class Sums(NamedTuple):
    """Sums over the n queries; scalars.

    Attributes:
        loss: not the mean, for the caller knows how many queries the global batch has.
        correct: queries whose own document scores strictly highest among the documents; known duplicates that are left
            out do not count as rivals, supposed false negatives do.
        duplicates: documents, over all queries, that are known to be right answers beside the own one, left out or not.
        false_negatives: candidates that are left out for their score.
    """

    loss: Tensor
    correct: Tensor
    duplicates: Tensor
    false_negatives: Tensor


def info_nce(
    pairs: Pairs,
    temperature: float | Tensor,
    config: InfoNCEConfig,
    hashes: Hashes | None = None,
    *,
    scores_per_tile: int = SCORES_PER_TILE,
) -> Sums:
    """The sum over queries of the cross-entropy of the right document among all candidates.

    `-log(exp(s(q_i, d_i) / t) / (sum_j exp(s(q_i, d_j) / t) + sum_m exp(s(q_i, h_im) / t)))` with s the cosine. Without
    negatives this is equation (1); with each query's own, equation (2). The released code lets every query meet every
    negative. The direction is query to document only, as in the paper, unless `config` says more.

    Computed in float32 or wider.

    Args:
        temperature: t; a tensor of one element may ask for its gradient. `config.temperature` is not read.
        hashes: of the texts; without them no two texts count as equal.
        scores_per_tile: scores in memory at a time; a tile has at least one row.
    """
    n, num_pairs = len(pairs.queries_nD), len(pairs.documents_ND)
    width = num_pairs * len(config.directions)
    by_row, whole = {"queries": _unit(pairs.queries_nD)}, {"documents": _unit(pairs.documents_ND)}
    if pairs.negatives is not None:
        width += pairs.negatives.shape[-2]
        (by_row if pairs.negatives.dim() == 3 else whole)["negatives"] = _unit(pairs.negatives)
    if pairs.queries_ND is not None:
        whole["all_queries"] = _unit(pairs.queries_ND)
    whole["temperature"] = torch.as_tensor(temperature, dtype=by_row["queries"].dtype, device=pairs.queries_nD.device)

    def of_tile(tile: slice, rows: Tensors, others: Tensors) -> tuple[Tensor, Tensor]:
        return _Tile(config, tile, pairs.labels_n[tile, None], {**rows, **others}, hashes).sums()

    loss, counts = sum_over_rows(of_tile, by_row, whole, min(n, max(1, scores_per_tile // width)))
    return Sums(loss, *counts.unbind())


class _Block(NamedTuple):
    """Candidates of one kind for m rows.

    Attributes:
        cosines_mC: scores with the candidates.
        right_mC: candidates known to be right answers too; None: none is known.
        has_own: whether column `labels_m1` is of the row's own pair.
    """

    direction: Direction
    cosines_mC: Tensor
    right_mC: Tensor | None
    has_own: bool
    mined: Literal["own", "shared"] | None = None


class _Tile:
    """The losses of m queries, in plain differentiable steps."""

    def __init__(
        self, config: InfoNCEConfig, tile: slice, labels_m1: Tensor, vectors: Tensors, hashes: Hashes | None
    ) -> None:
        self._config = config
        self._tile = tile
        self._labels_m1 = labels_m1
        self._vectors = vectors
        self._hashes = hashes

    def sums(self) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the counts of `Sums` in their order."""
        temperature = self._vectors["temperature"]
        blocks = list(self._blocks())
        own_m1 = blocks[0].cosines_mC.gather(1, self._labels_m1)
        log_sums: dict[str, list[Tensor]] = {}
        nothing = self._labels_m1.new_zeros(())
        rivals_m1, duplicates, false_negatives = torch.zeros_like(self._labels_m1), nothing, nothing
        for block in blocks:
            out_mC, num_false = self._left_out(block, own_m1.detach())
            false_negatives = false_negatives + num_false
            logits_mC = block.cosines_mC / temperature
            if self._config.hardness_mode is not None and block.direction == "query_to_doc":
                logits_mC = logits_mC + self._penalty(block)
            if out_mC is not None:
                logits_mC = logits_mC.masked_fill(out_mC, _OUT)
            part = block.direction if self._config.partition_mode == "per_direction" else "joint"
            log_sums.setdefault(part, []).append(logits_mC.logsumexp(dim=1, keepdim=True))
            if block.direction == "query_to_doc":
                rivals_m1 += self._rivals(block, own_m1)
                duplicates = duplicates if block.right_mC is None else duplicates + block.right_mC.sum()
        log_z = [torch.cat(parts, dim=1).logsumexp(dim=1) for parts in log_sums.values()]
        loss = (torch.stack(log_z).mean(dim=0) - own_m1[:, 0] / temperature).sum()
        # Not argmax, which lets the first of equals win: a model that maps everything to one vector is right about
        # nothing.
        return loss, torch.stack([(rivals_m1 == 1).sum(), duplicates, false_negatives])

    def _blocks(self) -> Iterator[_Block]:
        """All candidates; the documents of the batch come first."""
        config, vectors = self._config, self._vectors
        queries_mD, documents_ND = vectors["queries"], vectors["documents"]
        right_mN = self._right_pairs()
        yield _Block("query_to_doc", queries_mD @ documents_ND.T, right_mN, has_own=True)
        if "negatives" in vectors:
            yield self._mined(queries_mD, vectors["negatives"])
        if "query_to_query" in config.directions:
            yield _Block("query_to_query", queries_mD @ vectors["all_queries"].T, right_mN, has_own=True)
        own_mD = documents_ND[self._labels_m1[:, 0]] if len(config.directions) > 1 else queries_mD
        if "doc_to_query" in config.directions:
            yield _Block("doc_to_query", own_mD @ vectors["all_queries"].T, right_mN, has_own=True)
        if "doc_to_doc" in config.directions:
            yield _Block("doc_to_doc", own_mD @ documents_ND.T, right_mN, has_own=True)

    def _mined(self, queries_mD: Tensor, negatives: Tensor) -> _Block:
        right_mC = None
        if self._hashes is not None and self._hashes.negatives is not None:
            hashes = self._hashes.negatives
            hashes = hashes[self._tile] if hashes.dim() == 2 else hashes
            right_mC = self._hashes.documents_N[self._labels_m1] == hashes
        if negatives.dim() == 2:
            return _Block("query_to_doc", queries_mD @ negatives.T, right_mC, has_own=False, mined="shared")
        cosines_mH = torch.einsum("md,mhd->mh", queries_mD, negatives)
        return _Block("query_to_doc", cosines_mH, right_mC, has_own=False, mined="own")

    def _right_pairs(self) -> Tensor | None:
        """Which other pairs have an equal query or an equal document."""
        if self._hashes is None:
            return None
        queries_N, documents_N = self._hashes.queries_N, self._hashes.documents_N
        right_mN = (queries_N[self._labels_m1] == queries_N) | (documents_N[self._labels_m1] == documents_N)
        return right_mN.scatter_(1, self._labels_m1, False)

    def _left_out(self, block: _Block, own_m1: Tensor) -> tuple[Tensor | None, Tensor | int]:
        """Which candidates are left out of Z, and how many of them only for their score."""
        config, out_mC, num_false = self._config, None, 0
        if config.mask_duplicates and block.right_mC is not None:
            out_mC = block.right_mC
        limit_m1 = self._limit(own_m1)
        if limit_m1 is not None:
            false_mC = block.cosines_mC.detach() > limit_m1
            if block.has_own:
                false_mC.scatter_(1, self._labels_m1, False)
            if out_mC is not None:
                false_mC &= ~out_mC
            num_false = false_mC.sum()
            out_mC = false_mC if out_mC is None else out_mC | false_mC
        if block.direction in ("query_to_query", "doc_to_doc"):
            out_mC = torch.zeros_like(block.cosines_mC, dtype=torch.bool) if out_mC is None else out_mC
            out_mC = out_mC.scatter(1, self._labels_m1, True)
        return out_mC, num_false

    def _limit(self, own_m1: Tensor) -> Tensor | None:
        """What a candidate has to score more than to count as a false negative."""
        if self._config.false_negative_margin is not None:
            return own_m1 + self._config.false_negative_margin
        if self._config.false_negative_ratio is not None:
            return own_m1 * self._config.false_negative_ratio
        return None

    def _penalty(self, block: _Block) -> Tensor:
        """What hardness adds to the logits."""
        mode, penalty_mC = self._config.hardness_mode, self._config.hardness_strength * block.cosines_mC.detach()
        if block.mined is None:
            if mode == "hard_negatives":
                return torch.zeros_like(penalty_mC)
            return penalty_mC.scatter_(1, self._labels_m1, 0.0)
        if mode == "all_negatives":
            return penalty_mC
        if block.mined == "own":
            return penalty_mC if mode == "hard_negatives" else torch.zeros_like(penalty_mC)
        num_shared = penalty_mC.shape[1]
        own_K = torch.arange(num_shared, device=penalty_mC.device) * len(self._vectors["documents"]) // num_shared
        is_own_mK = own_K == self._labels_m1
        return penalty_mC.masked_fill_(~is_own_mK if mode == "hard_negatives" else is_own_mK, 0.0)

    def _rivals(self, block: _Block, own_m1: Tensor) -> Tensor:
        """How many documents score at least as high as the own one, itself included."""
        high_mC = block.cosines_mC.detach() >= own_m1.detach()
        if self._config.mask_duplicates and block.right_mC is not None:
            high_mC &= ~block.right_mC
        return high_mC.sum(dim=1, keepdim=True)


def _unit(x: Tensor) -> Tensor:
    return normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
