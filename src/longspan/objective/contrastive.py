"""Contrastive learning: pairs in, gradients out (paper, sections 3.2, 3.3 and 4.2).

Axes: n queries of this process, N = n * world size queries of the global batch, D width.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from longspan.data.batch import PairBatch
from longspan.errors import LongspanError
from longspan.objective.distillation import Distillation, distillation_loss
from longspan.objective.gradcache import embed_in_chunks
from longspan.objective.losses import Hashes, InfoNCEConfig, Pairs, Sums, info_nce
from longspan.objective.temperature import TemperedEncoder
from longspan.objective.world import Alone, World, adding_summed_gradients, gather_with_gradient
from longspan.text.packed import join


class ContrastiveConfig(InfoNCEConfig):
    """InfoNCE over query-document pairs: what is compared, and what bounds memory."""

    kind: Literal["contrastive"] = "contrastive"
    batches_of: Literal["source", "cluster"] = "source"
    """Whether the pairs of a batch come from one source (paper, section 4.2.2), or also from one of its clusters, where
    it has them (Merrick, 2024)."""
    num_negatives: int = Field(default=0, ge=0)
    """H: mined negatives drawn for each query in each step."""
    negatives_for: Literal["own", "all"] = "own"
    """Whether a mined negative is a candidate for its own query only (equation 2) or for every query of the batch (the
    released code)."""
    matryoshka_dims: tuple[int, ...] = ()
    """Train the first so many coordinates as vectors of their own too (Kusupati et al., 2022): the loss is the sum of
    the losses of all of them, each normalised anew. The width of the model has to be among them."""
    matryoshka_weights: tuple[float, ...] = ()
    """What the loss of each of the `matryoshka_dims` is multiplied with; empty: 1."""
    learn_temperature: bool = False
    """Train the temperature as well, from `temperature` on (CLIP: Radford et al., 2021)."""
    min_temperature: float = Field(default=0.01, gt=0)
    """How low `learn_temperature` may bring it."""
    distillation: Distillation | None = None
    """Learn also how a teacher scores a query's document and its mined negatives (see objective/distillation.py): `kl`,
    the divergence from the teacher's softmax over them, or `margin_mse`, the error of the distances between them."""
    distillation_weight: float = Field(default=1.0, gt=0)
    """What that loss is multiplied with, before it is added to InfoNCE."""
    teacher_temperature: float = Field(default=0.02, gt=0)
    """Temperature of the teacher's softmax under `kl`."""
    max_query_tokens: int = Field(default=2048, ge=16)
    max_document_tokens: int = Field(default=2048, ge=16)
    """Texts are cut here, prefix and special tokens included."""
    max_document_tokens_of: dict[str, int] = Field(default_factory=dict)
    """Other cuts for the documents of some sources, by name: long pairs need more room than the rest."""
    chunk_tokens: int = Field(default=65_536, gt=0)
    """Most tokens in a chunk of GradCache: what bounds memory."""
    pooling: Literal["mean", "cls", "last"] = "mean"

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        dims, weights = self.matryoshka_dims, self.matryoshka_weights
        if any(dim < 1 for dim in dims) or len(set(dims)) < len(dims):
            raise ValueError(f"matryoshka_dims are numbers of coordinates, each once, and not {list(dims)}")
        if weights and (len(weights) != len(dims) or min(weights) <= 0):
            raise ValueError(
                f"matryoshka_weights has to have a positive number for each of the {len(dims)} matryoshka_dims"
            )
        if self.hardness_mode == "hard_negatives" and not self.num_negatives:
            raise ValueError("hardness_mode hard_negatives weighs mined negatives, and num_negatives is 0")
        if self.distillation is not None and not self.num_negatives:
            raise ValueError("a teacher's scores are of mined negatives, and num_negatives is 0")
        if self.learn_temperature and self.temperature < self.min_temperature:
            raise ValueError(f"temperature {self.temperature} is below min_temperature {self.min_temperature}")
        return self

    def check_width(self, width: int) -> None:
        """Refuse Matryoshka dimensions that a model with vectors of `width` coordinates cannot have.

        Raises:
            LongspanError: the width is not the largest of them.
        """
        if self.matryoshka_dims and max(self.matryoshka_dims) != width:
            raise LongspanError(
                f"the largest of the Matryoshka dimensions is {max(self.matryoshka_dims)}, and the model's vectors "
                f"have {width} coordinates",
                where="objective.matryoshka_dims",
                remedy=f"let them begin with {width}, the whole vector, and be smaller from there on",
            )


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
            model: maps a `Packed` to vectors (B, D), e.g. `PooledEncoder`; for `learn_temperature` a
                `TemperedEncoder`.
            batch: this rank's share; every rank has the same number of queries.

        Returns:
            loss (mean over the global batch, with what is distilled), accuracy (part of the queries whose own document
            scores highest), and
            counts, all global. With some options more: `false_negatives` (candidates left out for their score),
            `temperature`, `loss_distillation` (as it is, without its weight), and for each Matryoshka dimension
            `loss_<dim>` (InfoNCE) and `accuracy_<dim>`.

        Raises:
            LongspanError: the Matryoshka dimensions do not fit the vectors, or a batch lacks the scores of a teacher.
        """
        world, n = self._world, batch.queries.num_sequences
        budget = self._config.chunk_tokens
        texts = join([batch.queries, batch.documents])
        vectors_BD, backward_texts = embed_in_chunks(model, texts, budget, self._autocast, world)
        q_nD, d_nD = vectors_BD[:n], vectors_BD[n:]
        self._config.check_width(q_nD.shape[1])
        pairs = self._pairs(q_nD.requires_grad_(), d_nD.requires_grad_())
        hashes = self._hashes(batch, q_nD.device)
        with adding_summed_gradients(model, world):
            temperature = self._temperature(model)
            by_dim = {
                dim: info_nce(_truncated(pairs, dim), temperature, self._config, hashes)
                for dim in self._config.matryoshka_dims or (q_nD.shape[1],)
            }
            weights = self._config.matryoshka_weights or (1.0,) * len(by_dim)
            loss = torch.stack([w * sums.loss for w, sums in zip(weights, by_dim.values(), strict=True)]).sum()
            distilled = self._distilled(q_nD, d_nD, batch, temperature, dict(zip(by_dim, weights, strict=True)))
            if distilled is not None:
                loss = loss + self._config.distillation_weight * distilled
            (loss / (n * world.size)).backward()
            backward_texts(torch.cat([_gradient(q_nD), _gradient(d_nD)]))
        metrics = self._metrics(batch, loss.detach(), by_dim, distilled)
        if isinstance(temperature, Tensor):
            metrics["temperature"] = float(temperature.detach())
        return metrics

    def _pairs(self, q_nD: Tensor, d_nD: Tensor) -> Pairs:
        n, world = len(q_nD), self._world
        mined_D = d_nD[n:]
        negatives = None
        if len(mined_D):
            share = self._config.negatives_for == "all"
            negatives = gather_with_gradient(mined_D, world) if share else mined_D.unflatten(0, (n, -1))
        return Pairs(
            queries_nD=q_nD,
            documents_ND=gather_with_gradient(d_nD[:n], world),
            labels_n=torch.arange(n, device=q_nD.device) + n * world.rank,
            negatives=negatives,
            queries_ND=gather_with_gradient(q_nD, world) if len(self._config.directions) > 1 else None,
        )

    def _distilled(
        self, q_nD: Tensor, d_nD: Tensor, batch: PairBatch, temperature: Tensor | float, weights: dict[int, float]
    ) -> Tensor | None:
        """What the teacher's scores add, before its weight: a sum over this process's queries; None: nothing."""
        config, n = self._config, len(q_nD)
        if config.distillation is None:
            return None
        if batch.teacher_scores is None:
            raise LongspanError(
                "the batch has no scores of a teacher",
                where=f"source {batch.source}",
                remedy="let the collator read them (PairCollator(..., scores=True)), or set no distillation",
            )
        own_nHD = d_nD[n:].unflatten(0, (n, -1))
        candidates_nCD = torch.cat([d_nD[:n, None], own_nHD], dim=1)
        scores_nC = batch.teacher_scores.to(q_nD.device)
        losses = [
            weight
            * distillation_loss(
                config.distillation,
                q_nD[:, :dim],
                candidates_nCD[..., :dim],
                scores_nC,
                temperature,
                config.teacher_temperature,
            )
            for dim, weight in weights.items()
        ]
        return torch.stack(losses).sum()

    def _hashes(self, batch: PairBatch, device: torch.device) -> Hashes:
        n, world = batch.queries.num_sequences, self._world
        texts = batch.document_hashes.to(device)
        negatives = None
        if batch.num_negatives:
            share = self._config.negatives_for == "all"
            negatives = world.gather(texts[n:]) if share else texts[n:].unflatten(0, (n, -1))
        return Hashes(world.gather(batch.query_hashes.to(device)), world.gather(texts[:n]), negatives)

    def _temperature(self, model: nn.Module) -> Tensor | float:
        if not self._config.learn_temperature:
            return self._config.temperature
        if not isinstance(model, TemperedEncoder):
            raise TypeError("a temperature is learnt by a TemperedEncoder")
        return model.temperature(self._config.min_temperature)

    def _metrics(
        self, batch: PairBatch, loss: Tensor, by_dim: dict[int, Sums], distilled: Tensor | None
    ) -> dict[str, float | str]:
        whole = by_dim[max(by_dim)]
        false_negatives = torch.stack([sums.false_negatives for sums in by_dim.values()]).sum()
        tokens = batch.queries.num_tokens + batch.documents.num_tokens
        sums_by_name = {
            "loss": loss,
            "accuracy": whole.correct,
            "pairs": batch.queries.num_sequences,
            "tokens": tokens,
            "cut": batch.num_cut,
            "duplicates": whole.duplicates,
            "false_negatives": false_negatives,
        }
        for dim in self._config.matryoshka_dims:
            sums_by_name |= {f"loss_{dim}": by_dim[dim].loss, f"accuracy_{dim}": by_dim[dim].correct}
        if distilled is not None:
            sums_by_name["loss_distillation"] = distilled.detach()
        numbers = [torch.as_tensor(x, dtype=torch.float64, device=loss.device) for x in sums_by_name.values()]
        local = torch.stack(numbers).detach()
        total = dict(zip(sums_by_name, self._world.sum(local).tolist(), strict=True))
        if self._config.false_negative_margin is None and self._config.false_negative_ratio is None:
            del total["false_negatives"]
        metrics: dict[str, float | str] = {"source": batch.source}
        for name, value in total.items():
            is_mean = name.startswith(("loss", "accuracy"))
            metrics[name] = value / total["pairs"] if is_mean else int(value)
        return metrics


def _truncated(pairs: Pairs, dim: int) -> Pairs:
    """The first `dim` coordinates of all vectors."""
    return pairs._replace(
        queries_nD=pairs.queries_nD[:, :dim],
        documents_ND=pairs.documents_ND[:, :dim],
        negatives=None if pairs.negatives is None else pairs.negatives[..., :dim],
        queries_ND=None if pairs.queries_ND is None else pairs.queries_ND[:, :dim],
    )


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad
