"""What is put on top of the encoder to train it.

Axes: T tokens, M masked tokens, D width, V vocabulary (padded).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder
from longspan.text.packed import Packed


class MaskedLanguageModel(nn.Module):
    """Encoder with the head that predicts masked tokens: dense, activation, norm, and the tied token table.

    Only masked positions are projected to the vocabulary: the (T, V) logits never exist.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = MaskedLanguageHead(encoder.config)

    def forward(self, packed: Packed, masked_M: Tensor) -> Tensor:
        """Logits (M, V) of the tokens at flat positions `masked_M` (int64)."""
        h_MD = self.encoder(packed)[masked_M]
        return self.head(h_MD, self.encoder.embeddings.tokens.weight)


class MaskedLanguageHead(nn.Module):
    """`norm(act(dense(h))) @ tokens.T + bias`; act is SiLU beside SwiGLU and GELU beside GELU, as published."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.act = functional.silu if config.activation == "swiglu" else functional.gelu
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.padded_vocab_size))

    def forward(self, h_MD: Tensor, tokens_VD: Tensor) -> Tensor:
        return functional.linear(self.norm(self.act(self.dense(h_MD))), tokens_VD, self.bias)


def start_from_frequencies(head: MaskedLanguageHead, counts_V: np.ndarray) -> None:
    """Set the output bias to the log-frequency of every token, each counted once more than it occurs."""
    frequencies_V = (counts_V + 1.0) / (counts_V + 1.0).sum()
    with torch.no_grad():
        head.bias.copy_(torch.from_numpy(np.log(frequencies_V)))
