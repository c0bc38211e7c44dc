"""Linear layers whose weights are laid out once for the CPU's matrix kernels: float32, bfloat16, or 8-bit integers.

The kernels are oneDNN's, through the operators that torch's own compiler uses. Whether this build of torch and this
processor have them is found out by using them, never by version. Measured on every processor so far: a row of their
result does not depend on how many other rows there are, bit for bit, which `torch.nn.functional.linear` (MKL) does not
give. Vectors that are the same in any batch rest on it (tests/model/test_inference.py).

Axes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor, nn

_ROWS = 512
"""Rows that the layout of the weights is chosen for; any number of rows can be multiplied."""
BUILT_IN = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", "")}
"""`EncoderConfig.activation` -> oneDNN's function and variant, for functions that its products apply. (Adding another
matrix it can too, and took a third longer than two steps with AVX2.)"""
_MISSING = (RuntimeError, AttributeError)
"""What torch raises where it, or the processor, has no such kernel (NotImplementedError is a RuntimeError)."""
_TINY = 1e-30
"""Stands for the range of a row whose values are all equal."""


class FloatLinear(nn.Module):
    """`act(x @ weight.T + bias)` in the weight's dtype.

    Attributes:
        activates: whether the activation is applied.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, activation: str | None = None) -> None:
        """`activation` is one of `BUILT_IN`."""
        super().__init__()
        self.activates = activation is not None
        self._function = ("none", "") if activation is None else BUILT_IN[activation]
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _ROWS)
        self._bias_O = bias_O

    def forward(self, x_TI: Tensor) -> Tensor:
        """(T, O)."""
        function, variant = self._function
        return torch.ops.mkldnn._linear_pointwise(x_TI, self._packed, self._bias_O, function, [], variant)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self._packed.to_dense()
        if self._bias_O is not None:
            destination[f"{prefix}bias"] = self._bias_O


class Int8Linear(nn.Module):
    """`x @ weight.T + bias` with both factors rounded to 8-bit integers; float32 in and out.

    A weight has one scale per output and is symmetric around 0. An input has one scale per row, which reaches from the
    row's smallest value to its largest (activations are lopsided), so that a row's result depends on that row alone.
    The products are summed in 32-bit integers, exactly.

    Attributes:
        sums_O: the sum of every output's rounded weights: what a lowest value of 1 adds.
        bias_O: added at the end, or None.
        activates: that no activation is applied.
    """

    activates = False

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        integers_OI, self._scale_O = round_weights(weight_OI)
        self._packed = _pack_int8(integers_OI)
        self.sums_O = integers_OI.sum(dim=1) * self._scale_O
        self.bias_O = bias_O
        self._steps = largest_input()

    def forward(self, x_TI: Tensor) -> Tensor:
        """(T, O), float32."""
        # x = lowest + step * integer, so x @ weight.T = step * (integer @ weight.T) + lowest * sum(weight).
        lowest_T1 = x_TI.amin(dim=1, keepdim=True)
        step_T1 = (x_TI.amax(dim=1, keepdim=True) - lowest_T1).clamp_min_(_TINY) / self._steps
        integers_TI = (x_TI - lowest_T1).div_(step_T1).add_(0.5).to(torch.uint8)  # the cast rounds down
        y_TO = _multiply_int8(integers_TI, self._packed, self._scale_O).mul_(step_T1).add_(lowest_T1 * self.sums_O)
        return y_TO if self.bias_O is None else y_TO.add_(self.bias_O)

    def of_integers(self, integers_TI: Tensor) -> Tensor:
        """`integers @ weight.T`, (T, O), bfloat16, of rows that are rounded already; without their steps and bias.

        For processors with AMX: elsewhere oneDNN has no kernel for signed inputs but its slow reference.
        """
        return _multiply_int8(integers_TI, self._packed, self._scale_O, torch.bfloat16)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self._packed.to_dense().T
        destination[f"{prefix}scale"] = self._scale_O
        if self.bias_O is not None:
            destination[f"{prefix}bias"] = self.bias_O


def round_weights(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as 8-bit integers, symmetric around 0, (O, I), and the scale of every output, (O,)."""
    scale_O = weight_OI.abs().amax(dim=1).clamp_min(_TINY) / 127
    return (weight_OI / scale_O[:, None]).round().to(torch.int8), scale_O


@functools.cache
def has_float_kernels(dtype: torch.dtype) -> bool:
    """Whether `FloatLinear` computes in `dtype` here; for bfloat16 that takes a processor with its arithmetic."""
    weight_OI, x_TI, bias_O = _small_example()
    try:
        linear = FloatLinear(weight_OI.to(dtype), bias_O.to(dtype))
        y_TO = linear(x_TI.to(dtype))
    except _MISSING:
        return False
    bound = 16 * torch.finfo(dtype).eps
    return torch.allclose(y_TO.float(), x_TI @ weight_OI.T + bias_O, rtol=bound, atol=bound)


@functools.cache
def has_int8_kernels() -> bool:
    """Whether `Int8Linear` computes here."""
    try:
        return largest_input() > 0
    except _MISSING:
        return False


@functools.cache
def largest_input() -> int:
    """Largest unsigned input that the integer kernel sums exactly: 255 where the processor has VNNI, else 127.

    Without VNNI two products are first added in 16 bits, and 2 * 255 * 127 does not fit. Found out on the worst case.
    0: neither is exact.

    Raises:
        RuntimeError, AttributeError: there is no such kernel.
    """
    num_inputs, num_outputs = 256, 64
    signs = torch.tensor(list(itertools.islice(itertools.cycle([1, -1]), num_outputs)), dtype=torch.int8)
    weight_OI = (signs[:, None] * torch.tensor(127, dtype=torch.int8)).repeat(1, num_inputs)
    packed = _pack_int8(weight_OI)
    scale_O = torch.ones(num_outputs)
    for largest in (255, 127):
        x_TI = torch.full((16, num_inputs), largest, dtype=torch.uint8)
        expected_TO = (x_TI.double() @ weight_OI.double().T).float()
        if torch.equal(_multiply_int8(x_TI, packed, scale_O), expected_TO):
            return largest
    return 0


def _pack_int8(integers_OI: Tensor) -> Tensor:
    return torch.ops.onednn.qlinear_prepack(integers_OI.contiguous(), [_ROWS, integers_OI.shape[1]])


def _multiply_int8(x_TI: Tensor, packed: Tensor, scale_O: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    no_zeros_O, no_bias = torch.zeros(len(scale_O), dtype=torch.int32), None
    return torch.ops.onednn.qlinear_pointwise(
        x_TI, 1.0, 0, packed, scale_O, no_zeros_O, no_bias, 1.0, 0, dtype, "none", [], ""
    )


def _small_example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight_OI, x_TI = (torch.randn(shape, generator=generator) / 8 for shape in ((32, 64), (5, 64)))
    return weight_OI, x_TI, torch.linspace(-1, 1, 32)
