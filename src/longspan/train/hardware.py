"""Devices that a run may be planned for: how fast they multiply and how much they remember.

Rates are the makers' figures for dense bfloat16 products that accumulate in float32 (data sheets often print twice as
much, for sparse ones).
"""

from __future__ import annotations

import re

from pydantic import Field

from longspan.config import Config
from longspan.errors import LongspanError


class Hardware(Config):
    """So many equal devices."""

    name: str
    num_devices: int = Field(gt=0)
    flops: float = Field(gt=0)
    """Operations a second of one device at its best."""
    memory: int = Field(gt=0)
    """Bytes of one device."""


_TERA, _GIGA = 1e12, 10**9
_DEVICES = {  # dense bfloat16 TFLOP/s, GB
    "B200": (2250, 180),
    "H200": (989, 141),
    "H100": (989, 80),
    "H100-PCIE": (756, 80),
    "A100": (312, 80),
    "A100-40": (312, 40),
    "L40S": (362, 48),
    "A10": (125, 24),
    "L4": (121, 24),
    "RTX4090": (165, 24),
    "RTX3090": (71, 24),
}


def find_hardware(text: str) -> Hardware:
    """Hardware by name: "8xH100", "A100".

    Raises:
        LongspanError: an unknown device, or no number of them.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(\S+)", text, re.IGNORECASE)
    name = match[2].upper() if match else ""
    count = int(match[1] or 1) if match else 0
    if name not in _DEVICES or not count:
        raise LongspanError(
            f"unknown hardware {text!r}",
            where="--hardware",
            remedy=f"write it as 8xH100, of {', '.join(_DEVICES)}; or `here` to try this machine",
        )
    teraflops, gigabytes = _DEVICES[name]
    return Hardware(name=name, num_devices=count, flops=teraflops * _TERA, memory=gigabytes * _GIGA)
