"""A temperature that is trained with the model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from longspan.model.encoder import Encoder
from longspan.model.pooling import PooledEncoder


class TemperedEncoder(PooledEncoder):
    """A pooled encoder that has the temperature of its loss beside it, as CLIP has (Radford et al., 2021).

    What is trained is its logarithm. As a weight of the model it is in the optimiser, in the sum of gradients over
    processes and in checkpoints without further ado; it is no part of the encoder, and so of no published model.

    Args:
        temperature: where it starts.
    """

    def __init__(self, encoder: Encoder, pooling: str, temperature: float) -> None:
        super().__init__(encoder, pooling)
        self.log_temperature = nn.Parameter(torch.tensor([math.log(temperature)]))

    def temperature(self, lowest: float) -> Tensor:
        """The temperature (one element, with gradient), which is first raised to `lowest` if it has fallen below."""
        with torch.no_grad():
            self.log_temperature.clamp_(min=math.log(lowest))
        return self.log_temperature.exp()
