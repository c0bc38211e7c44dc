"""Training's compiled code (`kernels/training_*.c`): attention, and the passes between matrix products, both ways.

As with what embedding uses (`compiled.py`), it is compiled when it is first needed and never required: where it is not
to be had, torch's operators compute the same. `LONGSPAN_COMPILE=0` asks for them.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
from typing import Any

import torch
from torch import Tensor

from longspan.machine import read_processor
from longspan.model.compiled import AVX512, FLAGS, Fused, Tier, build, find_compiler, last_line

TIER = Tier(
    "training",
    ("avx512f", "avx512_bf16"),
    ("training_attention.c", "training_passes.c"),
    (*FLAGS, *AVX512),
    multiplies=False,
)

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, list[type]] = {
    "attention": [*[_POINTER] * 4, _LONG, _LONG, _LONG, _POINTER, _POINTER, _INT, _INT],
    "attention_back": [*[_POINTER] * 4, _LONG, _LONG, _LONG, *[_POINTER] * 4, _INT, _INT],
    "add_norm": [*[_POINTER] * 4, _FLOAT, _LONG, _LONG, *[_POINTER] * 5, _INT, _INT],
    "add_norm_back": [*[_POINTER] * 6, _LONG, _LONG, *[_POINTER] * 3, _INT, _INT],
    "gate": [_POINTER, _LONG, _LONG, _POINTER, _INT, _INT, _INT],
    "gate_back": [_POINTER, _POINTER, _LONG, _LONG, _POINTER, _INT, _INT, _INT],
}
_CAN_FAIL = ("attention", "attention_back")


def can_train_compiled(device: torch.device) -> bool:
    """Whether the compiled code is there for that device, and nobody traces the computation to write it down."""
    return (
        device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.onnx.is_in_onnx_export()
        and load_training().library is not None
    )


def can_read(*tensors: Tensor) -> bool:
    """Whether the compiled code reads all of them; subclasses of tensors have no plain memory."""
    return all(type(x) is Tensor and x.dtype in (torch.float32, torch.bfloat16) for x in tensors)


def training_library() -> Any:
    """The library, where it is there: of ctypes, whose functions no checker knows."""
    return load_training().library


def place_of(tensor: Tensor | None) -> int | None:
    """Where compiled code finds a tensor's numbers; None, which it reads as NULL, for none."""
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def load_training() -> Fused:
    """The compiled passes of training; compiled at the first call where this user has not yet."""
    missing = _missing()
    if missing is not None:
        return Fused(None, missing)
    try:
        library = ctypes.CDLL(str(build(TIER, find_compiler())))
    except (OSError, subprocess.SubprocessError) as error:
        return Fused(None, f"it could not be compiled: {last_line(error)}")
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _INT if name in _CAN_FAIL else None
    return Fused(library, "compiled for this processor")


def _missing() -> str | None:
    if os.environ.get("LONGSPAN_COMPILE") == "0":
        return "LONGSPAN_COMPILE=0 asks for torch's operators"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "it is written for Linux on x86-64"
    lacking = [feature for feature in TIER.needed if feature not in read_processor().simd]
    if lacking:
        return f"the processor has no {', '.join(lacking)}"
    return None if find_compiler() else "there is no C compiler (install gcc or clang, or name it in CC)"
