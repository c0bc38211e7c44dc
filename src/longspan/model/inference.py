"""The form of the encoder for use without gradients: which one is the fastest for a device and a precision."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch

from longspan.errors import LongspanError
from longspan.model.compiled_linear import CompiledFloatLinear, multiplies_float32
from longspan.model.encoder import Encoder
from longspan.model.fused import FusedEncoder, can_fuse
from longspan.model.inplace import InferenceEncoder
from longspan.model.prepacked import BUILT_IN, FloatLinear, Int8Linear, has_float_kernels, has_int8_kernels

Precision = Literal["float32", "bfloat16", "float16", "int8"]
"""How exactly vectors are computed: a floor. bfloat16 on a processor without its arithmetic is computed in float32,
which is nearer to the truth there, and faster."""
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16", "int8")


def prepare_for_inference(
    encoder: Encoder, precision: Precision, device: torch.device, *, consume: bool = False
) -> Encoder:
    """The fastest form of `encoder` for `device`; the one place that decides which.

    On a CPU an `InferenceEncoder`, in bfloat16 and int8 a `FusedEncoder` where there is compiled code for the
    processor; elsewhere (and where torch was built without oneDNN) the encoder itself, moved and cast.

    Args:
        consume: nobody uses `encoder` afterwards: its matrices may be freed while they are laid out, so that the model
            is in memory once.

    Raises:
        LongspanError: the device cannot compute at this precision.
    """
    if precision not in PRECISIONS:
        raise LongspanError(
            f"there is no precision {precision!r}", where="precision", remedy=f"choose one of: {', '.join(PRECISIONS)}"
        )
    if device.type != "cpu":
        if precision == "int8":
            raise LongspanError(
                "int8 is computed on a CPU only", where=str(device), remedy="use precision bfloat16 here"
            )
        return encoder.to(device, getattr(torch, precision)).eval()
    if precision == "float16":
        raise LongspanError(
            "float16 is not computed on a CPU", where=str(device), remedy="use precision float32, bfloat16 or int8"
        )
    if precision == "int8":
        if not has_int8_kernels():
            raise LongspanError(
                "this build of torch has no integer matrix kernels for this processor",
                where=str(device),
                remedy="use precision float32",
            )
        encoder = encoder.float()
        if can_fuse(encoder.config):
            return FusedEncoder(encoder, int8=True, consume=consume)
        return InferenceEncoder(encoder, linear=Int8Linear, consume=consume)
    dtype = torch.bfloat16 if precision == "bfloat16" and has_float_kernels(torch.bfloat16) else torch.float32
    encoder = encoder.to(device, dtype).eval()
    if not has_float_kernels(dtype):
        return encoder
    if dtype == torch.bfloat16 and can_fuse(encoder.config):
        return FusedEncoder(encoder, int8=False, consume=consume)
    activation = encoder.config.activation
    linear, built_in = FloatLinear, activation in BUILT_IN
    if dtype == torch.float32 and multiplies_float32(encoder.config):
        linear, built_in = CompiledFloatLinear, True
    first = partial(linear, activation=activation) if built_in else linear
    return InferenceEncoder(encoder, linear=linear, first=first, consume=consume)
