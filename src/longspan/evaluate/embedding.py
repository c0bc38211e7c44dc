"""Texts of an evaluation become vectors: in this process or in several, on all GPUs, with the same numbers.

Texts go to an engine (`longspan.curate.engine`) in blocks of similar length, which it never divides. What is in a block
depends on the texts alone, so a score is the same to the bit, however many processes share the work on a CPU.

Axes: N texts, D width.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from longspan.curate.engine import Block, Engine, LocalEngine, RemoteTeacher
from longspan.embedder import Embedder
from longspan.model.inference import Precision

CHARACTERS_PER_BLOCK = 2**18
"""About as many tokens as fill a batch of a GPU, and seconds of work for a CPU."""

_CHARACTERS_PER_TOKEN = 8
"""More than any real text has: what is counted of a text that will be cut."""


def embed_texts(
    engine: Engine,
    texts: Sequence[str],
    *,
    task: str | None,
    max_length: int | None = None,
    progress: Callable[[int], None] | None = None,
    on_cut: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Vectors of N texts in their order, float32 (N, D); longer texts are cut.

    Args:
        engine: where they are computed; entered already.
        texts: at least one.
        task: of all of them.
        max_length: cut here, in tokens; None: at what the model reads.
        progress: called with the number of texts done since the last call.
        on_cut: called with the number of texts cut since the last call, where any were.

    Raises:
        LongspanError: a text or a task that the model refuses; memory ran out; a worker died.
    """
    groups = list(_groups(texts, max_length))
    blocks = (Block(n, [texts[i] for i in group], task, max_length) for n, group in enumerate(groups))
    vectors_ND: np.ndarray | None = None
    for embedded in engine.embed(blocks):
        if vectors_ND is None:
            vectors_ND = np.empty((len(texts), embedded.vectors_MD.shape[1]), dtype=np.float32)
        vectors_ND[groups[embedded.number]] = embedded.vectors_MD
        if embedded.num_cut and on_cut is not None:
            on_cut(embedded.num_cut)
        if progress is not None:
            progress(len(embedded.vectors_MD))
    assert vectors_ND is not None
    return vectors_ND


def open_engine(
    model: str,
    embedder: Embedder,
    processes: int | None,
    change: Callable[[Embedder], Embedder] | None = None,
) -> Engine:
    """The engine of an evaluation, to be entered by `with`.

    Args:
        model: what `embedder` was loaded from; other processes load it from there.
        embedder: the model.
        processes: None: one for each GPU, where there are several, or else this one. Without GPUs they share the cores.
        change: what is to be made of the model before it computes; can be pickled.
    """
    changed = embedder if change is None else change(embedder)
    if processes is None:
        processes = max(1, torch.cuda.device_count() if embedder.device.type == "cuda" else 0)
    if processes == 1:
        return LocalEngine(changed)
    from longspan.curate.engine_pool import PoolEngine

    place = os.path.abspath(model) if os.path.exists(model) else model
    load = functools.partial(_load, place, embedder.precision, change)
    return PoolEngine(RemoteTeacher(load, changed.fingerprint), processes, Path(model))


def _load(place: str, precision: Precision, change: Callable[[Embedder], Embedder] | None, *, device: str) -> Embedder:
    embedder = Embedder.load(place, precision=precision, device=device)
    return embedder if change is None else change(embedder)


def _groups(texts: Sequence[str], max_length: int | None) -> Iterator[list[int]]:
    """Numbers of texts of similar length, the longest first, so that no process is left with them at the end."""
    most = CHARACTERS_PER_BLOCK if max_length is None else _CHARACTERS_PER_TOKEN * max_length
    sizes = [min(len(text), most) + 1 for text in texts]
    group: list[int] = []
    filled = 0
    for number in sorted(range(len(texts)), key=lambda n: (-sizes[n], n)):
        if group and filled + sizes[number] > CHARACTERS_PER_BLOCK:
            yield group
            group, filled = [], 0
        group.append(number)
        filled += sizes[number]
    if group:
        yield group


def without_lengths(embedder: Embedder) -> Embedder:
    """The model with vectors that are not normalised: `finished_vectors` makes all others of them."""
    return embedder.with_settings(normalize=False)


def finished_vectors(raw_ND: np.ndarray, *, dim: int | None, normalize: bool) -> np.ndarray:
    """Vectors of `without_lengths` as `Embedder.embed` gives them, so that one pass serves every dim and both lengths.

    Args:
        raw_ND: float32.
        dim: coordinates kept, at most D; None: all.
        normalize: whether vectors have length 1.
    """
    vectors_ND = np.ascontiguousarray(raw_ND[:, :dim])
    if not normalize:
        return vectors_ND
    return torch.nn.functional.normalize(torch.from_numpy(vectors_ND), dim=-1).numpy()
