"""An index of stored vectors, as a file that FAISS or usearch opens.

FAISS: a flat index, exact. float32 and float16 are compared by inner product as they are. int8 becomes a scalar
quantiser of FAISS whose codes and ranges are ours, so that it reads back the very values that `Storage.decode` does.
binary becomes a binary index, searched by the packed bits of a query. usearch: a graph (HNSW) over the same vectors, by
inner product, or Hamming distance of bits; int8 vectors are stored with usearch's own scale, one for all dimensions.
The key of a vector is its row.

Axes: M vectors, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longspan.errors import LongspanError
from longspan.output.formats import placed
from longspan.storage import Form, Stored

IndexLibrary = Literal["faiss", "usearch"]
INDEX_LIBRARIES: tuple[IndexLibrary, ...] = ("faiss", "usearch")

_ROWS_PER_PART = 16_384
_USEARCH_DTYPES: dict[Form, str] = {"float32": "f32", "float16": "f16", "int8": "i8", "binary": "b1"}


def index_file(library: IndexLibrary, out: Path) -> Path:
    """Where the index of the vectors in `out` is written."""
    return out.with_name(f"{out.name}.{library}")


def check_index(library: IndexLibrary, out: Path, form: Form, dim: int) -> None:
    """Refuse an index that cannot be written, before any work is done.

    Raises:
        LongspanError: the library is not installed, or has no index of such vectors.
    """
    _library(library, out)
    if form == "binary" and dim % 8:
        raise LongspanError(
            f"bits of {dim} dimensions do not fill whole bytes, which an index needs",
            where=index_file(library, out),
            remedy="choose a --dim that is a multiple of 8",
        )


def write_index(library: IndexLibrary, out: Path, vectors: Stored, folder: Path) -> Path:
    """Build the index of stored vectors in memory, and write it beside `out`.

    Args:
        folder: on the same disk, where the file grows until it is whole.

    Raises:
        LongspanError: see `check_index`; the disk is full.
    """
    check_index(library, out, vectors.storage.form, vectors.storage.dim)
    path = index_file(library, out)
    with placed(folder, path) as unfinished:
        if library == "faiss":
            _write_faiss(_library(library, out), unfinished, vectors)
        else:
            _write_usearch(_library(library, out), unfinished, vectors)
    return path


def _write_faiss(faiss: Any, path: Path, vectors: Stored) -> None:
    storage = vectors.storage
    if storage.form == "binary":
        bits = faiss.IndexBinaryFlat(storage.dim)
        for _, part_MS in _parts(vectors):
            bits.add(np.ascontiguousarray(part_MS))
        faiss.write_index_binary(bits, str(path))
        return
    if storage.form == "float32":
        index = faiss.IndexFlatIP(storage.dim)
    else:
        kinds = {"float16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}
        index = faiss.IndexScalarQuantizer(storage.dim, kinds[storage.form], faiss.METRIC_INNER_PRODUCT)
        if storage.ranges is not None:
            trained = np.concatenate([storage.ranges.lowest_D, storage.ranges.step_D * 255])
            faiss.copy_array_to_vector(trained.astype(np.float32), index.sq.trained)
        index.is_trained = True
    for rows, part_MS in _parts(vectors):
        if storage.form == "int8":  # FAISS counts bins from 0
            codes = (part_MS.astype(np.int16) + 128).astype(np.uint8)
            index.add_sa_codes(codes)
        else:
            index.add(vectors[rows])
    faiss.write_index(index, str(path))


def _write_usearch(usearch: Any, path: Path, vectors: Stored) -> None:
    storage = vectors.storage
    metric = "hamming" if storage.form == "binary" else "ip"
    index = usearch.Index(ndim=storage.dim, metric=metric, dtype=_USEARCH_DTYPES[storage.form])
    for rows, part_MS in _parts(vectors):
        given = part_MS if storage.form == "binary" else vectors[rows]
        index.add(np.arange(rows.start, rows.stop), np.ascontiguousarray(given))
    index.save(str(path))


def _parts(vectors: Stored) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(vectors), _ROWS_PER_PART):
        rows = slice(start, min(start + _ROWS_PER_PART, len(vectors)))
        yield rows, np.asarray(vectors.array_NS[rows])


def _library(library: IndexLibrary, out: Path) -> Any:
    try:
        if library == "faiss":
            import faiss

            return faiss
        from usearch import index

        return index
    except ImportError:
        raise LongspanError(
            f"{library} is not installed",
            where=index_file(library, out),
            remedy=f"pip install 'longspan[{library}]'",
        ) from None
