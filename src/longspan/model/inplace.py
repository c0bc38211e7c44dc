"""The encoder for use without gradients on a CPU, by torch's operators: in fewer passes over memory.

Weights are laid out in advance, for oneDNN (`model/prepacked.py`) or in float32 for our own kernel
(`model/compiled_linear.py`), and a product may apply the activation to its own result. In float32 attention, gate, sum
and norm are training's compiled passes where there are any (`model/compiled_training.py`); else what lies between the
products is done in place, in pieces that fit the cache. Every step treats each token or each sequence by itself, and
gives the same bits whatever lies beside it: a text's vector does not depend on its batch, to the last bit. (By torch's
attention, where 16 does not divide the head size, the last bits depend on where in memory a sequence begins.)

Axes: T tokens of all sequences, D width, H heads, K head size, F inner width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from longspan.model.add_norm import add_norm, can_add_norm
from longspan.model.attention import attention
from longspan.model.compiled_attention import attend, can_attend
from longspan.model.config import EncoderConfig
from longspan.model.encoder import MLP, Attention, Encoder, GatedMLP, Layer
from longspan.model.gated import can_gate, gated_product
from longspan.model.prepacked import FloatLinear
from longspan.text.packed import Packed

_NUMBERS = 6 * 2**20
"""Numbers of the feed-forward block's inner result, the widest between two attentions, that are computed together. They
stay in the last level of the cache, and the more rows a product has, the faster it is."""


MakeLinear = Callable[[Tensor, Tensor | None], Any]
"""Lays out a weight (O, I) and a bias (O,), or None, as a layer."""


class InferenceEncoder(Encoder):
    """`InferenceEncoder(encoder)(packed) -> h_TD`, as `encoder(packed)` up to rounding, without gradients.

    It shares the encoder's embeddings and norms, and holds the matrices in a layout of its own. `state_dict()` is the
    encoder's; under int8 it has rounded weights, and their scales beside them.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        linear: MakeLinear = FloatLinear,
        first: MakeLinear | None = None,
        consume: bool = False,
    ) -> None:
        """
        Args:
            linear: how a layer's matrices are laid out.
            first: how the first matrix of the feed-forward block is, where that is another way: with its activation.
            consume: free the encoder's matrices layer by layer, as they are laid out; it is of no use then.
        """
        nn.Module.__init__(self)  # the encoder's own would make weights that nobody needs
        self.config = encoder.config
        self.embeddings = encoder.embeddings
        self.layers = nn.ModuleList()
        for layer in encoder.layers:
            assert isinstance(layer, Layer)
            self.layers.append(_Layer(layer, encoder.config, linear, first or linear))
            for module in layer.modules() if consume else ():
                if isinstance(module, nn.Linear):
                    module.to("meta")
        self.norm = encoder.norm
        self.eval()

    def forward(self, packed: Packed) -> Tensor:
        """Vectors of all tokens, (T, D)."""
        with torch.inference_mode():
            return super().forward(packed)


class _Layer(nn.Module):
    """What `encoder.Layer` computes."""

    def __init__(self, layer: Layer, config: EncoderConfig, linear: MakeLinear, first: MakeLinear) -> None:
        super().__init__()
        self.prenorm = config.prenorm
        self.attention = _Attention(layer.attention, linear)
        self.norm1 = layer.norm1
        if isinstance(layer.mlp, GatedMLP):
            self.inner_size = layer.mlp.up_gate.out_features
            self.mlp = _GatedMLP(layer.mlp, config.activation, linear, first)
        else:
            self.inner_size = layer.mlp.up.out_features
            self.mlp = _MLP(layer.mlp, config.activation, linear, first)
        self.norm2 = layer.norm2

    def forward(self, h_TD: Tensor, rotation: tuple[Tensor, Tensor] | None, packed: Packed) -> Tensor:
        attended_TD = self.attention(self.norm1(h_TD) if self.prenorm else h_TD, rotation, packed)
        parts = -(-len(h_TD) * self.inner_size // _NUMBERS)
        blocks = [self._rest(h, x) for h, x in zip(h_TD.chunk(parts), attended_TD.chunk(parts), strict=True)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def _rest(self, h_TD: Tensor, attended_TD: Tensor) -> Tensor:
        """What follows attention, of some rows."""
        y_TD = self.attention.out(attended_TD)
        if self.prenorm:
            h_TD = y_TD.add_(h_TD)
            return self.mlp(self.norm2(h_TD)).add_(h_TD)
        h_TD = _norm_of_sum(h_TD, y_TD, self.norm1)
        return _norm_of_sum(h_TD, self.mlp(h_TD), self.norm2)


class _Attention(nn.Module):
    """What `encoder.Attention` computes, but for its last product."""

    def __init__(self, attention: Attention, linear: MakeLinear) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.qkv, self.out = linear(*_parameters(attention.qkv)), linear(*_parameters(attention.out))

    def forward(self, x_TD: Tensor, rotation: tuple[Tensor, Tensor] | None, packed: Packed) -> Tensor:
        qkv_TC = self.qkv(x_TD)
        head_size = qkv_TC.shape[1] // (3 * self.num_heads)
        if qkv_TC.dtype == torch.float32 and can_attend(head_size, qkv_TC.device):
            return attend(qkv_TC, rotation, packed, self.num_heads)
        qkv_T3HK = qkv_TC.unflatten(-1, (3, self.num_heads, -1))
        if rotation is not None:
            _rotate_in_place(qkv_T3HK[:, :2], *rotation)
        q_THK, k_THK, v_THK = qkv_T3HK.unbind(dim=1)
        return attention(q_THK, k_THK, v_THK, packed).flatten(-2)


class _GatedMLP(nn.Module):
    """`down(up(x) * act(gate(x)))`."""

    def __init__(self, mlp: GatedMLP, activation: str, linear: MakeLinear, first: MakeLinear) -> None:
        super().__init__()
        self.exact_act, self.act = mlp.act, _ACTIVATIONS[activation]
        self.up_gate, self.down = first(*_parameters(mlp.up_gate)), linear(*_parameters(mlp.down))

    def forward(self, x_TD: Tensor) -> Tensor:
        up_gate_TF = self.up_gate(x_TD)
        if self.up_gate.activates:
            return self.down(up_gate_TF)
        if up_gate_TF.dtype == torch.float32 and can_gate(up_gate_TF, self.exact_act):
            return self.down(gated_product(up_gate_TF, self.exact_act))
        up_TF, gate_TF = up_gate_TF.chunk(2, dim=-1)
        return self.down(self.act(gate_TF).mul_(up_TF))


class _MLP(nn.Module):
    """`down(act(up(x)))`."""

    def __init__(self, mlp: MLP, activation: str, linear: MakeLinear, first: MakeLinear) -> None:
        super().__init__()
        self.act = _ACTIVATIONS[activation]
        self.up, self.down = first(*_parameters(mlp.up)), linear(*_parameters(mlp.down))

    def forward(self, x_TD: Tensor) -> Tensor:
        up_TF = self.up(x_TD)
        return self.down(up_TF if self.up.activates else self.act(up_TF))


def _norm_of_sum(h_TD: Tensor, y_TD: Tensor, norm: nn.Module) -> Tensor:
    """`norm(h + y)`; `y` is lost."""
    if can_add_norm(h_TD, y_TD, norm):
        return add_norm(h_TD, y_TD, norm)[0]
    return norm(y_TD.add_(h_TD))


# torch's own SiLU and GELU round the last few numbers of a tensor otherwise than the rest, so a token's place would
# matter. Its exp, erf and tanh do not.


def _silu(x_TF: Tensor) -> Tensor:
    out_TF = x_TF.neg().exp_().add_(1)
    return torch.div(x_TF, out_TF, out=out_TF)


def _gelu(x_TF: Tensor) -> Tensor:
    return (x_TF * math.sqrt(0.5)).erf_().add_(1).mul_(x_TF).mul_(0.5)


def _gelu_tanh(x_TF: Tensor) -> Tensor:
    inner_TF = (x_TF * x_TF).mul_(0.044715).add_(1).mul_(x_TF).mul_(math.sqrt(2 / math.pi))
    return inner_TF.tanh_().add_(1).mul_(x_TF).mul_(0.5)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": _silu,
    "geglu": _gelu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": torch.relu,
}


def _rotate_in_place(x_TPHK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> None:
    """`rope.rotate` of P = 2 tensors, queries and keys, where they lie."""
    half = x_TPHK.shape[-1] // 2
    first, second = x_TPHK[..., :half], x_TPHK[..., half:]
    cos, sin = cos_TK[:, None, None, :half], sin_TK[:, None, None, :half]
    first_sin, second_sin = first * sin, second * sin
    first.mul_(cos).sub_(second_sin)
    second.mul_(cos).add_(first_sin)


def _parameters(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
