"""What is put on top of the encoder to train it.

Axes: T tokens, B sequences, M masked tokens, D width, V vocabulary (padded), C labels of a classification.
"""

from __future__ import annotations

from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from longspan.model.config import EncoderConfig
from longspan.model.encoder import ACTIVATIONS, Encoder
from longspan.model.linear import Linear
from longspan.model.pooling import pool
from longspan.model.tiled_loss import tiled_cross_entropy
from longspan.text.packed import Packed


class MaskedLanguageModel(nn.Module):
    """Encoder with the head that predicts masked tokens: dense, activation, norm, and the tied token table.

    Only masked positions are projected to the vocabulary: the (T, V) logits never exist. Given the labels, neither do
    the (M, V) logits.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = MaskedLanguageHead(encoder.config)

    @overload
    def forward(self, packed: Packed, masked_M: Tensor) -> Tensor: ...
    @overload
    def forward(self, packed: Packed, masked_M: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, packed: Packed, masked_M: Tensor, labels_M: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What is said of the tokens at flat positions `masked_M` (int64).

        Returns:
            Logits (M, V). With `labels_M` (int64): the sum of the cross-entropies, and how many were predicted right.
        """
        h_MD = self.head.transform(self.encoder(packed)[masked_M])
        tokens_VD = self.encoder.embeddings.tokens.weight
        if labels_M is None:
            return functional.linear(h_MD, tokens_VD, self.head.bias)
        return tiled_cross_entropy(h_MD, tokens_VD, self.head.bias, labels_M)


class MaskedLanguageHead(nn.Module):
    """`norm(act(dense(h))) @ tokens.T + bias`; act is the encoder's own (SiLU beside SwiGLU), as published."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.act = ACTIVATIONS[config.activation]
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.padded_vocab_size))

    def transform(self, h_MD: Tensor) -> Tensor:
        """What is multiplied with the token table."""
        return self.norm(self.act(self.dense(h_MD)))


class SequenceClassifier(nn.Module):
    """Encoder with a linear classifier of whole sequences, as BERT is finetuned on GLUE (Devlin et al., 2019).

    `classifier(tanh(pooler(pool(h))))`. One label means regression: the output is the prediction itself. Without
    dropout, as the paper's encoder (section 4.1.2).

    Args:
        num_labels: C, at least 1.
        pooling: what stands for a sequence: its first token (BERT), its last, or the mean of all.
        pooler: whether a dense layer with tanh comes before the classifier (BERT: yes).
    """

    def __init__(
        self,
        encoder: Encoder,
        num_labels: int,
        *,
        pooling: Literal["cls", "mean", "last"] = "cls",
        pooler: bool = True,
    ) -> None:
        super().__init__()
        width = encoder.config.width
        self.encoder = encoder
        self.pooling = pooling
        self.pooler = nn.Linear(width, width) if pooler else None
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, packed: Packed) -> Tensor:
        """Logits (B, C)."""
        e_BD = pool(self.encoder(packed), packed, self.pooling).to(self.classifier.weight.dtype)
        if self.pooler is not None:
            e_BD = torch.tanh(self.pooler(e_BD))
        return self.classifier(e_BD)


def start_from_frequencies(head: MaskedLanguageHead, counts_V: np.ndarray) -> None:
    """Set the output bias to the log-frequency of every token, each counted once more than it occurs."""
    frequencies_V = (counts_V + 1.0) / (counts_V + 1.0).sum()
    with torch.no_grad():
        head.bias.copy_(torch.from_numpy(np.log(frequencies_V)))
