"""Vectors for storage: float32, float16, int8 with calibrated ranges, or one bit a dimension; to bytes and back.

The forms are those of sentence-transformers' `quantize_embeddings`, bit for bit: "int8" under the same ranges, and
"binary" is what it calls "ubinary". So vectors that either has written are read by the other.

int8: dimension d has 256 bins of equal width between the lowest and the highest value of a calibration sample, and a
value is read back as the middle of its bin. It is then off by at most half a bin, unless it lies outside the range and
is stored as the nearest bin. binary: the sign, 1 for what is above 0, eight dimensions to a byte, the first in the
highest bit.

Axes: N vectors, M vectors of a sample, D dimensions, S stored values of a vector (D, or bytes of 8 bits).
"""

from __future__ import annotations

import functools
import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from longspan.config import Config
from longspan.errors import LongspanError

Form = Literal["float32", "float16", "int8", "binary"]
"""How a vector is stored."""

FORMS: tuple[Form, ...] = ("float32", "float16", "int8", "binary")
"""From the most exact to the smallest."""

_BINS = 256
_DTYPES: dict[Form, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "binary": np.uint8,
}


class Ranges(Config):
    """The lowest and the highest value of each dimension, by which int8 is read and written."""

    lowest: tuple[float, ...]
    highest: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.lowest) != len(self.highest):
            raise ValueError("lowest and highest name different numbers of dimensions")
        if any(low > high for low, high in zip(self.lowest, self.highest, strict=True)):
            raise ValueError("a dimension's lowest value is above its highest")
        return self

    @classmethod
    def of(cls, sample_MD: np.ndarray) -> Ranges:
        """Calibrate on a sample of vectors, at least one.

        Raises:
            LongspanError: there is none, or a value that is not finite.
        """
        sample_MD = _checked(sample_MD)
        if not len(sample_MD):
            raise LongspanError(
                "int8 has to be calibrated on vectors, and there are none",
                where="Ranges.of",
                remedy="give a sample of the vectors that are to be stored, a thousand or more",
            )
        return cls(lowest=tuple(sample_MD.min(axis=0).tolist()), highest=tuple(sample_MD.max(axis=0).tolist()))

    @functools.cached_property
    def lowest_D(self) -> np.ndarray:
        """`lowest`, float32."""
        return np.array(self.lowest, dtype=np.float32)

    @functools.cached_property
    def step_D(self) -> np.ndarray:
        """Width of a bin, float32; 0 where a dimension has only one value."""
        return (np.array(self.highest, dtype=np.float32) - self.lowest_D) / np.float32(_BINS - 1)


class Storage(Config):
    """How vectors of so many dimensions are stored.

    Example:
        >>> storage = Storage.of("int8", sample)              # doctest: +SKIP
        >>> near = storage.decode(storage.encode(vectors))    # doctest: +SKIP
    """

    form: Form
    dim: int = Field(ge=1)
    ranges: Ranges | None = None
    """Of int8, and of no other form."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.form == "int8") != (self.ranges is not None):
            raise ValueError("int8 has ranges, and no other form has")
        if self.ranges is not None and len(self.ranges.lowest) != self.dim:
            raise ValueError(f"the ranges are of {len(self.ranges.lowest)} dimensions, not of {self.dim}")
        return self

    @classmethod
    def of(cls, form: Form, sample_MD: np.ndarray) -> Storage:
        """The storage of vectors such as these; int8 is calibrated on them.

        Raises:
            LongspanError: see `Ranges.of`.
        """
        return cls(form=form, dim=sample_MD.shape[1], ranges=Ranges.of(sample_MD) if form == "int8" else None)

    @property
    def dtype(self) -> np.dtype:
        """Of stored values."""
        return np.dtype(_DTYPES[self.form])

    @property
    def width(self) -> int:
        """S, how many values are stored of a vector."""
        return math.ceil(self.dim / 8) if self.form == "binary" else self.dim

    @property
    def bytes_per_vector(self) -> int:
        """What a vector takes."""
        return self.width * self.dtype.itemsize

    def encode(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Vectors as they are stored, (N, S).

        Raises:
            LongspanError: they have other dimensions, a value that is not finite, or one beyond float16.
        """
        vectors_ND = _checked(vectors_ND)
        if vectors_ND.shape[1] != self.dim:
            raise LongspanError(
                f"vectors of {vectors_ND.shape[1]} dimensions where {self.dim} are stored",
                where="Storage.encode",
                remedy="use the model and the dim that the storage was made for",
            )
        if self.form == "float32":
            return vectors_ND
        if self.form == "float16":
            if float(np.abs(vectors_ND).max(initial=0)) > float(np.finfo(np.float16).max):
                raise LongspanError(
                    "a value is beyond what float16 holds",
                    where="Storage.encode",
                    remedy="store float32, or normalise the vectors",
                )
            return vectors_ND.astype(np.float16)
        if self.form == "binary":
            return np.packbits(vectors_ND > 0, axis=1)
        assert self.ranges is not None
        step_D = np.where(self.ranges.step_D == 0, np.float32(1), self.ranges.step_D)
        with np.errstate(over="ignore"):  # far outside a narrow range: the last bin
            bins_ND = np.floor((vectors_ND - self.ranges.lowest_D) / step_D)
        return (bins_ND.clip(0, _BINS - 1) - _BINS // 2).astype(np.int8)

    def decode(self, stored_NS: np.ndarray) -> np.ndarray:
        """Stored vectors as float32, (N, D); of "binary" the signs, as vectors of length 1.

        Raises:
            LongspanError: they are not of this form.
        """
        if stored_NS.ndim != 2 or stored_NS.dtype != self.dtype or stored_NS.shape[1] != self.width:
            raise LongspanError(
                f"{stored_NS.dtype} of shape {stored_NS.shape} is no {self.form} of {self.dim} dimensions",
                where="Storage.decode",
                remedy=f"give {self.dtype} of shape (N, {self.width})",
            )
        if self.form == "int8":
            assert self.ranges is not None
            middle_ND = stored_NS.astype(np.float32) + np.float32(_BINS // 2 + 0.5)
            return self.ranges.lowest_D + middle_ND * self.ranges.step_D
        if self.form == "binary":
            signs_ND = np.unpackbits(stored_NS, axis=1, count=self.dim).astype(np.float32) * 2 - 1
            return signs_ND / np.float32(math.sqrt(self.dim))
        return np.asarray(stored_NS, dtype=np.float32)


class Stored:
    """Stored vectors that are read as float32, a part at a time: the array may be a memory map.

    Args:
        storage: their form.
        array_NS: (N, S), as `Storage.encode` gives them.
    """

    ndim, dtype = 2, np.dtype(np.float32)

    def __init__(self, storage: Storage, array_NS: np.ndarray) -> None:
        self.storage, self.array_NS = storage, array_NS
        self.shape = (len(array_NS), storage.dim)

    def __len__(self) -> int:
        return len(self.array_NS)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.storage.decode(self.array_NS[rows])


def _checked(vectors_ND: np.ndarray) -> np.ndarray:
    vectors_ND = np.asarray(vectors_ND, dtype=np.float32)
    if vectors_ND.ndim != 2 or not np.isfinite(vectors_ND).all():
        raise LongspanError(
            f"vectors to be stored are finite and of shape (N, D); these have shape {vectors_ND.shape}",
            where="storage",
            remedy="find out which text's vector holds NaN or infinity, and make it again",
        )
    return vectors_ND
