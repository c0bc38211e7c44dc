"""The encoder in bfloat16 or int8 on a CPU with a matrix unit: between two matrix products one pass over memory.

With AMX a matrix product takes a tenth of the time that it takes in float32, and what lies between the products would
take most of the rest. Here it is compiled code (`fused.c`): sum, norm and rounding are one pass, activation, gate and
rounding another, and attention reads queries, keys and values from where the product left them and rotates them on the
way. What passes through the layers unmultiplied stays float32.

Axes: T tokens of all sequences, D width, H heads, K head size, F inner width, I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longspan.model.compiled import load_fused
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder
from longspan.model.inplace import InferenceEncoder
from longspan.model.prepacked import FloatLinear, Int8Linear
from longspan.model.rope import rotary_tables
from longspan.text.packed import Packed

_ROWS = 2048
"""Rows of the feed-forward block computed together: it bounds memory, and weights are read once for so many."""
_KINDS = {"swiglu": (0, True), "geglu": (1, True), "gelu": (1, False), "gelu_tanh": (2, False), "relu": (3, False)}
"""By activation: its number in the compiled code, and whether it is gated."""


def can_fuse(config: EncoderConfig) -> bool:
    """Whether the compiled code is there and computes such an encoder: its vectors hold 16 numbers, or 32."""
    sizes_fit = config.width % 16 == 0 and config.inner_width % 16 == 0 and config.head_size % 32 == 0
    return sizes_fit and load_fused().library is not None


@dataclass(frozen=True)
class Rows:
    """What a matrix product reads: bfloat16, or `middle + step * integer` with both numbers for every row."""

    values_TI: Tensor
    step_T: Tensor | None = None
    middle_T: Tensor | None = None

    @classmethod
    def empty(cls, num_rows: int, width: int, *, int8: bool) -> Rows:
        """Room for rows."""
        if not int8:
            return cls(torch.empty((num_rows, width), dtype=torch.bfloat16))
        values_TI = torch.empty((num_rows, width), dtype=torch.int8)
        return cls(values_TI, torch.empty(num_rows), torch.empty(num_rows))

    def part(self, start: int, end: int) -> Rows:
        """The rows from `start` to `end`, where they lie."""
        cut = (None if tensor is None else tensor[start:end] for tensor in (self.step_T, self.middle_T))
        return Rows(self.values_TI[start:end], *cut)

    def places(self) -> tuple[int | None, ...]:
        """Where the compiled code writes them: bfloat16, or integers, steps and middles."""
        if self.step_T is None:
            return _at(self.values_TI), None, None, None
        return None, _at(self.values_TI), _at(self.step_T), _at(self.middle_T)


class FusedEncoder(InferenceEncoder):
    """`FusedEncoder(encoder)(packed) -> h_TD`, float32 whatever the products are computed in, without gradients."""

    def __init__(self, encoder: Encoder, *, int8: bool) -> None:
        """`encoder` has its weights in bfloat16, or for `int8` in float32; `can_fuse` its configuration."""
        super().__init__(encoder, int8=int8)
        self._int8 = int8
        config = encoder.config
        layers: list[Any] = list(self.layers)
        after = [norm for layer in layers for norm in (layer.norm1, layer.norm2)]
        # The norms in the order of the sums that they follow; the first stands before the first layer.
        self._norms = [_Norm.of(norm) for norm in ([*after, self.norm] if config.prenorm else [nn.Identity(), *after])]

    def forward(self, packed: Packed) -> Tensor:
        """Vectors of all tokens, (T, D), float32."""
        with torch.inference_mode():
            h_TD = self.embeddings(packed).float().contiguous()
            rotation = rotary_tables(packed, self.config, torch.float32) if self.config.positions == "rotary" else None
            x = Rows.empty(*h_TD.shape, int8=self._int8)
            _combine(h_TD, None, self._norms[0], self.config.prenorm, x)
            layers: list[Any] = list(self.layers)
            for number, layer in enumerate(layers):
                last = number == len(layers) - 1
                attended = self._attention(layer.attention, x, rotation, packed)
                y = _product(layer.attention.out, attended)
                _combine(h_TD, y, self._norms[2 * number + 1], self.config.prenorm, x)
                for start in range(0, len(h_TD), _ROWS):
                    part = x.part(start, start + _ROWS)
                    y = self._mlp(layer.mlp, part)
                    prenorm = self.config.prenorm and not last  # the last norm's result is the encoder's
                    _combine(h_TD[start : start + _ROWS], y, self._norms[2 * number + 2], prenorm, part)
            return h_TD

    def _attention(self, attention: Any, x: Rows, rotation: tuple[Tensor, Tensor] | None, packed: Packed) -> Rows:
        qkv = _product(attention.qkv, x)
        cos_TK, sin_TK = (None, None) if rotation is None else rotation
        out_TD = torch.empty((packed.num_tokens, self.config.width), dtype=torch.bfloat16)
        failed = _library().attention(
            *qkv.places(),
            _at(cos_TK),
            _at(sin_TK),
            _at(packed.cu_seqlens),
            packed.num_sequences,
            self.config.num_heads,
            self.config.head_size,
            self.config.head_size**-0.5,
            _at(out_TD),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"attention over {packed.max_length} tokens")
        if not self._int8:
            return Rows(out_TD)
        rounded = Rows.empty(*out_TD.shape, int8=True)
        _library().round_rows(_at(out_TD), *out_TD.shape, *rounded.places()[1:], torch.get_num_threads())
        return rounded

    def _mlp(self, mlp: Any, x: Rows) -> _Product:
        kind, gated = _KINDS[self.config.activation]
        y = _product(mlp.up_gate if gated else mlp.up, x)
        inner = Rows.empty(len(y.values_TO), self.config.inner_width, int8=self._int8)
        _library().activate(
            *y.places(),
            *inner.values_TI.shape,
            kind,
            gated,
            *inner.places(),
            torch.get_num_threads(),
        )
        return _product(mlp.down, inner)


@dataclass(frozen=True)
class _Product:
    """A matrix product as the compiled code reads it: bfloat16, and what is still to be put to it."""

    values_TO: Tensor
    step_T: Tensor | None = None
    middle_T: Tensor | None = None
    sums_O: Tensor | None = None
    bias_O: Tensor | None = None

    def places(self) -> tuple[int | None, ...]:
        """Where the compiled code reads it."""
        parts = (self.values_TO, self.step_T, self.middle_T, self.sums_O, self.bias_O)
        return tuple(_at(tensor) for tensor in parts)


def _product(linear: FloatLinear | Int8Linear, x: Rows) -> _Product:
    if isinstance(linear, FloatLinear):
        return _Product(linear(x.values_TI))
    return _Product(linear.of_integers(x.values_TI), x.step_T, x.middle_T, linear.sums_O, linear.bias_O)


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


def _combine(h_TD: Tensor, y: _Product | None, norm: _Norm, prenorm: bool, x: Rows) -> None:
    """`sum = h + y`; its norm goes to `x`, and to `h` the norm or (`prenorm`) the sum."""
    _library().combine(
        _at(h_TD),
        *((None,) * 5 if y is None else y.places()),
        _at(norm.gamma_D),
        _at(norm.beta_D),
        norm.eps,
        prenorm,
        *h_TD.shape,
        *x.places(),
        torch.get_num_threads(),
    )


def _library() -> Any:
    """A ctypes library, whose functions no checker knows."""
    return load_fused().library


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
