"""The encoder in bfloat16 or int8 on a CPU with compiled code: between two matrix products one pass over memory.

Where there is a matrix unit (AMX) a product takes a tenth of the time that it takes in float32, elsewhere a half to a
quarter, and what lies between the products would take most of the rest. Here it is compiled code (`kernels/`): sum,
norm and rounding are one pass, activation, gate and rounding another, and attention reads queries, keys and values from
where the product left them and rotates them on the way. Without a matrix unit the products are ours too. What passes
through the layers unmultiplied stays float32.

Axes: T tokens of all sequences, D width, H heads, K head size, F inner width, I inputs, O outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longspan.model.compiled import load_fused, multiplies
from longspan.model.compiled_linear import ACTIVATIONS, CompiledFloatLinear, CompiledLinear
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder
from longspan.model.inplace import InferenceEncoder, MakeLinear
from longspan.model.prepacked import FloatLinear, Int8Linear
from longspan.model.rope import rotary_tables
from longspan.model.rows import Product, Rows, at, library
from longspan.text.packed import Packed

FusedPrecision = Literal["float32", "bfloat16", "int8"]
"""What the compiled code may multiply in."""
_ROWS = 2048
"""Rows that pass all between two attentions together: it bounds memory, and weights are read once for so many."""
_OUR_ROWS = 1024
"""The most for our own products, which read weights again before long anyway: what passes stays in the cache."""


def can_fuse(config: EncoderConfig) -> bool:
    """Whether the compiled code is there and computes such an encoder: its vectors hold 16 numbers, or 32."""
    sizes_fit = config.width % 16 == 0 and config.inner_width % 16 == 0 and config.head_size % 32 == 0
    return sizes_fit and load_fused().library is not None


class FusedEncoder(InferenceEncoder):
    """`FusedEncoder(encoder)(packed) -> h_TD`, float32 whatever the products are computed in, without gradients."""

    def __init__(self, encoder: Encoder, *, int8: bool, consume: bool = False) -> None:
        """`encoder` has its weights in bfloat16, or for `int8` in float32; `can_fuse` its configuration."""
        first = fused_linear(int8=int8, activation=encoder.config.activation)
        super().__init__(encoder, linear=fused_linear(int8=int8), first=first, consume=consume)
        self._int8 = int8
        config = encoder.config
        layers: list[Any] = list(self.layers)
        after = [norm for layer in layers for norm in (layer.norm1, layer.norm2)]
        # The norms in the order of the sums that they follow; the first stands before the first layer.
        self._norms = [_Norm.of(norm) for norm in ([*after, self.norm] if config.prenorm else [nn.Identity(), *after])]

    @property
    def arithmetic(self) -> str:
        """What its numbers' last bits depend on, beside the weights."""
        tier = load_fused().tier
        return f"fused {tier.name}" if tier is not None and tier.multiplies else "fused"

    def forward(self, packed: Packed) -> Tensor:
        """Vectors of all tokens, (T, D), float32."""
        with torch.inference_mode():
            h_TD = self.embeddings(packed).float().contiguous()
            rotation = rotary_tables(packed, self.config, torch.float32) if self.config.positions == "rotary" else None
            x = Rows.empty(*h_TD.shape, int8=self._int8)
            _combine(h_TD, None, self._norms[0], self.config.prenorm, x)
            rows = -(-len(h_TD) // -(-len(h_TD) // _OUR_ROWS)) if multiplies() else _ROWS
            layers: list[Any] = list(self.layers)
            for number, layer in enumerate(layers):
                last = number == len(layers) - 1
                attended_TD = self._attention(layer.attention, x, rotation, packed)
                for start in range(0, len(h_TD), rows):
                    some, part = slice(start, start + rows), x.part(start, start + rows)
                    y = product(layer.attention.out, self._rounded(attended_TD[some]))
                    _combine(h_TD[some], y, self._norms[2 * number + 1], self.config.prenorm, part)
                    y = self._mlp(layer.mlp, part)
                    prenorm = self.config.prenorm and not last  # the last norm's result is the encoder's
                    _combine(h_TD[some], y, self._norms[2 * number + 2], prenorm, part)
            return h_TD

    def _attention(self, attention: Any, x: Rows, rotation: tuple[Tensor, Tensor] | None, packed: Packed) -> Tensor:
        qkv = product(attention.qkv, x)
        cos_TK, sin_TK = (None, None) if rotation is None else rotation
        out_TD = torch.empty((packed.num_tokens, self.config.width), dtype=torch.bfloat16)
        failed = library().attention(
            *qkv.places(),
            at(cos_TK),
            at(sin_TK),
            at(packed.cu_seqlens),
            packed.num_sequences,
            self.config.num_heads,
            self.config.head_size,
            self.config.head_size**-0.5,
            at(out_TD),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"attention over {packed.max_length} tokens")
        return out_TD

    def _rounded(self, x_TI: Tensor) -> Rows:
        """Rows of bfloat16 as the next product reads them."""
        if not self._int8:
            return Rows(x_TI)
        rounded = Rows.empty(*x_TI.shape, int8=True)
        library().round_rows(at(x_TI), *x_TI.shape, *rounded.places()[1:], torch.get_num_threads())
        return rounded

    def _mlp(self, mlp: Any, x: Rows) -> Product:
        kind, gated = ACTIVATIONS[self.config.activation]
        first = mlp.up_gate if gated else mlp.up
        y = product(first, x)
        if isinstance(first, CompiledLinear):
            return product(mlp.down, self._rounded(y.values_TO))
        inner = Rows.empty(len(y.values_TO), self.config.inner_width, int8=self._int8)
        library().activate(
            *y.places(),
            *inner.values_TI.shape,
            kind,
            gated,
            *inner.places(),
            torch.get_num_threads(),
        )
        return product(mlp.down, inner)


def fused_linear(*, int8: bool, activation: str | None = None) -> MakeLinear:
    """Our own products, with an activation, where the compiled code has them, else oneDNN's, without."""
    if multiplies():
        return functools.partial(CompiledLinear, int8=int8, activation=activation)
    return Int8Linear if int8 else FloatLinear


def product(linear: CompiledLinear | FloatLinear | Int8Linear, x: Rows) -> Product:
    """`linear(x)` as the compiled code reads it."""
    if isinstance(linear, CompiledLinear):
        return linear(x)
    if isinstance(linear, FloatLinear):
        return Product(linear(x.values_TI))
    return Product(linear.of_integers(x.values_TI), x.step_T, x.middle_T, linear.sums_O, linear.bias_O)


def fused_precisions() -> tuple[FusedPrecision, ...]:
    """What the compiled code multiplies in here."""
    if load_fused().library is None:
        return ()
    return ("float32", "bfloat16", "int8") if multiplies() else ("bfloat16", "int8")


def random_product(weight_OI: Tensor, num_rows: int, precision: FusedPrecision) -> Callable[[], object]:
    """The compiled code's product of random rows with a weight, to be timed."""
    x_TI = torch.randn(num_rows, weight_OI.shape[1])
    if precision == "float32":
        linear = CompiledFloatLinear(weight_OI, None)
        return lambda: linear(x_TI)
    int8 = precision == "int8"
    rounded: Any = fused_linear(int8=int8)(weight_OI if int8 else weight_OI.bfloat16(), None)
    rows = Rows.empty(*x_TI.shape, int8=int8)
    _combine(x_TI, None, _Norm(None, None, 0.0), False, rows)
    return lambda: product(rounded, rows)


@dataclass(frozen=True)
class _Norm:
    """A layer norm's numbers in float32; None: no norm."""

    gamma_D: Tensor | None
    beta_D: Tensor | None
    eps: float

    @classmethod
    def of(cls, norm: nn.Module) -> _Norm:
        if not isinstance(norm, nn.LayerNorm):
            return cls(None, None, 0.0)
        beta_D = None if norm.bias is None else norm.bias.detach().float().contiguous()
        return cls(norm.weight.detach().float().contiguous(), beta_D, norm.eps)


def _combine(h_TD: Tensor, y: Product | None, norm: _Norm, prenorm: bool, x: Rows) -> None:
    """`sum = h + y`; its norm goes to `x`, and to `h` the norm or (`prenorm`) the sum."""
    library().combine(
        at(h_TD),
        *((None,) * 5 if y is None else y.places()),
        at(norm.gamma_D),
        at(norm.beta_D),
        norm.eps,
        prenorm,
        *h_TD.shape,
        *x.places(),
        torch.get_num_threads(),
    )
