"""Masked language modelling: packed rows in, gradients out (paper, sections 3.1 and 4.1).

Axes: T tokens, M masked tokens.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from longspan.config import Config
from longspan.data.batch import MaskedBatch
from longspan.objective.world import Alone, World, adding_summed_gradients
from longspan.text.packed import Packed, join


class MaskedConfig(Config):
    """Cross-entropy on masked tokens."""

    kind: Literal["mlm"] = "mlm"
    mask_rate: float = Field(default=0.30, gt=0, lt=1)
    row_length: int = Field(default=2048, ge=8)
    """Tokens of a packed row."""
    within_documents: bool = False
    """Keep attention inside each document of a row; in the paper it crosses."""
    bias_from_counts: bool = False
    """Start the output bias at the logarithm of each token's frequency, so that the network need not learn it. Not in
    the paper; it matters in short runs (EXPERIMENTS.md)."""
    micro_batch_tokens: int = Field(default=32_768, gt=0)
    """Tokens that go through the model at a time: what bounds memory."""


class MaskedLanguageModelling:
    """`backward(model, batch)` leaves in `.grad` the gradient of the mean loss over all masked tokens of the batch."""

    def __init__(
        self, config: MaskedConfig, *, world: World | None = None, autocast: torch.dtype | None = None
    ) -> None:
        self._config = config
        self._world = world or Alone()
        self._autocast = autocast

    def backward(self, model: nn.Module, batch: MaskedBatch) -> dict[str, float | str]:
        """Add the gradients of one global batch to `.grad`; collective over the world.

        Args:
            model: maps a `Packed`, masked positions (M) and their labels (M) to the sum of the losses and the number of
                labels predicted right, e.g. `MaskedLanguageModel`.
            batch: this rank's share.

        Returns:
            loss (mean over the global batch's masked tokens), accuracy (part of them predicted right), and counts.
        """
        device = next(model.parameters()).device
        local = sum(len(positions) for positions, _ in batch.targets)
        masked = float(self._world.sum(torch.tensor(float(local), dtype=torch.float64, device=device)))
        loss_sum = correct = 0.0
        with adding_summed_gradients(model, self._world):
            for rows in self._micro_batches(batch):
                packed, positions_M, labels_M = _join_rows(batch, rows)
                with torch.autocast(device.type, dtype=self._autocast, enabled=self._autocast is not None):
                    loss, right = model(packed.to(device), positions_M.to(device), labels_M.to(device))
                (loss / masked).backward()
                loss_sum += float(loss.detach())
                correct += float(right)
        tokens = float(sum(row.num_tokens for row in batch.rows))
        totals = torch.tensor([loss_sum, correct, tokens], dtype=torch.float64, device=device)
        loss_sum, correct, tokens = self._world.sum(totals).tolist()
        return {"loss": loss_sum / masked, "accuracy": correct / masked, "masked": int(masked), "tokens": int(tokens)}

    def _micro_batches(self, batch: MaskedBatch) -> list[tuple[int, ...]]:
        rows_at_a_time = max(1, self._config.micro_batch_tokens // self._config.row_length)
        numbers = range(len(batch.rows))
        return [tuple(numbers[i : i + rows_at_a_time]) for i in range(0, len(batch.rows), rows_at_a_time)]


def _join_rows(batch: MaskedBatch, rows: tuple[int, ...]) -> tuple[Packed, Tensor, Tensor]:
    starts = itertools.accumulate((batch.rows[row].num_tokens for row in rows), initial=0)
    positions_M = torch.cat([batch.targets[row][0] + start for row, start in zip(rows, starts, strict=False)])
    labels_M = torch.cat([batch.targets[row][1] for row in rows])
    return join([batch.rows[row] for row in rows]), positions_M, labels_M
