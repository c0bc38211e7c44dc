"""The encoder: packed token ids in, one vector per token out. Mathematics only.

Axes: T tokens of all sequences, D width, C = 3 D, H heads, K head size, F inner width.

The paper's model (section 4.1.2) is BERT with rotary positions, SwiGLU, no biases and no dropout, normalised after each
residual sum. BERT itself (learned positions, GELU, biases) and the pre-norm encoders of ModernBERT's kind are the same
encoder with other settings, so that teachers, baselines and ablations run through the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from longspan.errors import LongspanError
from longspan.model.add_norm import add_norm
from longspan.model.attention import attention
from longspan.model.compiled_attention import attend, can_attend
from longspan.model.compiled_training import can_read
from longspan.model.config import EncoderConfig
from longspan.model.gated import gated_product
from longspan.model.linear import Linear
from longspan.model.rope import rotary_tables, rotate
from longspan.text.packed import Packed

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": functional.silu,
    "geglu": functional.gelu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}
"""The function that each `EncoderConfig.activation` applies."""

INIT_STD = 0.02
"""Standard deviation of initial weights, as BERT's."""


class Encoder(nn.Module):
    """`Encoder(config)(packed) -> h_TD`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, first=i == 0) for i in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.prenorm else nn.Identity()

    def forward(self, packed: Packed) -> Tensor:
        """Vectors of all tokens, (T, D), in the model's dtype (or autocast's)."""
        h_TD = self.embeddings(packed)
        rotation = self._rotation(packed, h_TD.dtype)
        for layer in self.layers:
            h_TD = layer(h_TD, rotation, packed)
        return self.norm(h_TD)

    def _rotation(self, packed: Packed, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        if self.config.positions != "rotary":
            return None
        device = packed.ids_T.device
        if dtype == torch.float32 and torch.is_autocast_enabled(device.type):
            first = self.layers[0]
            # Compiled attention rotates in float32. Else the tables get the type that queries and keys will have: cast
            # once, not in every layer.
            if not (isinstance(first, Layer) and first.attention.is_compiled(device)):
                dtype = torch.get_autocast_dtype(device.type)
        return rotary_tables(packed, self.config, dtype)


class Embeddings(nn.Module):
    """Sum of token, (if there are any) token-type and (if learned) position vectors, normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.max_length = config.max_length
        self.tokens = nn.Embedding(config.padded_vocab_size, config.width)
        self.token_types = nn.Embedding(config.num_token_types, config.width) if config.num_token_types else None
        self.positions = nn.Embedding(config.max_length, config.width) if config.positions == "learned" else None
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, packed: Packed) -> Tensor:
        """Vectors of all tokens, (T, D).

        Raises:
            LongspanError: a sequence longer than the model reads; on a CPU, an id that is not in the vocabulary. (On a
                GPU looking would cost a wait: `packed.check_ids` before the batch goes there.)
        """
        if packed.max_length > self.max_length:
            raise LongspanError(
                f"a sequence has {packed.max_length} tokens, more than the {self.max_length} that the model reads",
                where=f"sequence {packed.lengths.index(packed.max_length)}",
                remedy="cut or split it",
            )
        try:
            h_TD = self.tokens(packed.ids_T)
        except IndexError:
            packed.check_ids(self.tokens.num_embeddings)
            raise
        if self.token_types is not None:
            h_TD = h_TD + (self.token_types.weight[0] if packed.types_T is None else self.token_types(packed.types_T))
        if self.positions is not None:
            h_TD = h_TD + self.positions(packed.positions_T())
        return self.norm(h_TD)


class Layer(nn.Module):
    """Attention and feed-forward, each added to its input. Post-norm normalises the sums, pre-norm what both read.

    Under pre-norm the first layer has no norm before its attention, as in ModernBERT (Warner et al., 2024, section
    2.1.1): what it reads was normalised by the embeddings.
    """

    def __init__(self, config: EncoderConfig, *, first: bool) -> None:
        super().__init__()
        self.prenorm = config.prenorm
        self.attention = Attention(config)
        no_norm1 = config.prenorm and first
        self.norm1 = nn.Identity() if no_norm1 else nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = GatedMLP(config) if config.activation in ("swiglu", "geglu") else MLP(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, h_TD: Tensor, rotation: tuple[Tensor, Tensor] | None, packed: Packed) -> Tensor:
        if self.prenorm:
            h_TD = h_TD + self.attention(self.norm1(h_TD), rotation, packed)
            return h_TD + self.mlp(self.norm2(h_TD))
        h_TD, x_TD = add_norm(h_TD, self.attention(h_TD, rotation, packed), self.norm1)
        return add_norm(h_TD, self.mlp(x_TD), self.norm2)[0]


class Attention(nn.Module):
    """Multi-head self-attention within each sequence.

    Attributes:
        kernel: what computes it where there is no compiled code for it, `model.attention.attention`.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.num_heads, self._head_size = config.num_heads, config.head_size
        self.kernel = attention
        self.qkv = Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = Linear(config.width, config.width, bias=config.bias)

    def forward(self, h_TD: Tensor, rotation: tuple[Tensor, Tensor] | None, packed: Packed) -> Tensor:
        qkv_TC = self.qkv(h_TD)
        if self.is_compiled(qkv_TC.device) and can_read(qkv_TC):
            return self.out(attend(qkv_TC, rotation, packed, self.num_heads))
        q_THK, k_THK, v_THK = qkv_TC.unflatten(-1, (3, self.num_heads, -1)).unbind(dim=1)
        if rotation is not None:
            cos_TK, sin_TK = (table.to(q_THK.dtype) for table in rotation)
            q_THK, k_THK = rotate(q_THK, cos_TK, sin_TK), rotate(k_THK, cos_TK, sin_TK)
        return self.out(self.kernel(q_THK, k_THK, v_THK, packed).flatten(-2))

    def is_compiled(self, device: torch.device) -> bool:
        """Whether compiled code computes it on that device, of float32 and bfloat16; `kernel` is left aside then."""
        return self.kernel is attention and can_attend(self._head_size, device)


class GatedMLP(nn.Module):
    """`down(up(x) * act(gate(x)))`, SwiGLU or GeGLU; the two input projections are one matrix, up first."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.activation]
        self.up_gate = Linear(config.width, 2 * config.inner_width, bias=config.bias)
        self.down = Linear(config.inner_width, config.width, bias=config.bias)

    def forward(self, h_TD: Tensor) -> Tensor:
        return self.down(gated_product(self.up_gate(h_TD), self.act))


class MLP(nn.Module):
    """`down(act(up(x)))`, BERT's."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.activation]
        self.up = Linear(config.width, config.inner_width, bias=config.bias)
        self.down = Linear(config.inner_width, config.width, bias=config.bias)

    def forward(self, h_TD: Tensor) -> Tensor:
        return self.down(self.act(self.up(h_TD)))


def initialize(module: nn.Module, seed: int) -> None:
    """Draw all weights anew from `seed`: matrices normal with std 0.02, biases 0, norms 1.

    The draw is made in float32 on the CPU, so that the same seed gives the same model on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() >= 2:
                drawn = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, INIT_STD, generator=generator)
                parameter.copy_(drawn)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
