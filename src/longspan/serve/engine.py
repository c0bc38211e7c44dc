"""One model at work: its own thread, its queue, and batches formed from the texts of all requests.

The encoder takes whatever waits as soon as it is free (continuous batching), so a lone request waits for nothing and a
crowd fills the batches. A text's vector does not depend on its batch, so none of this can be seen in the vectors.

While a single long text is computed, short requests that come meanwhile are computed between two of its layers, up to
their fair share; and a long text that nobody waits for any more is given up there.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from longspan.embedder import TOKENS_PER_BATCH, Embedder
from longspan.serve.lanes import Batch, Job, Lanes
from longspan.serve.refusal import Refusal
from longspan.serve.settings import ServeSettings

SAFETY = 0.5
"""A request is refused when it is expected to take more than this part of the time that it may take."""
_WARM_UP = (16, 256, 256)
"""Tokens of the texts that are computed before the first request: kernels are ready then, and their speed is known."""
_MEMORY = 0.9
"""How much of the measured speed is remembered at each batch of `max_batch_tokens`."""


class Watcher(Protocol):
    """Who is told what an engine does."""

    def batch(self, *, texts: int, tokens: int, seconds: float) -> None: ...

    def waited(self, seconds: float) -> None: ...

    def failed(self, error: Exception) -> None: ...


@dataclass(frozen=True)
class Texts:
    """The texts of one request, to be embedded.

    Attributes:
        inputs: texts, or arrays of token ids without prefix and special tokens; all of one kind.
        normalize: scale to length 1 or do not; None: as the model says.
    """

    inputs: Sequence[str] | Sequence[np.ndarray]
    task: str | None = None
    dim: int | None = None
    normalize: bool | None = None
    truncate: bool = False


@dataclass(frozen=True)
class Vectors:
    """The answer to `Texts`.

    Attributes:
        vectors_ND: float32, a row a text.
        num_tokens: that the model read, prefixes and special tokens included.
        cut: numbers of the texts that were cut.
    """

    vectors_ND: np.ndarray
    num_tokens: int
    cut: list[int]


@dataclass
class _Call:
    """What an engine knows of a request in its queue."""

    finish: tuple[int | None, bool | None]
    future: asyncio.Future[None]
    rows: list[np.ndarray | None]
    came: float
    missing: int
    started: bool = False


class Engine:
    """A model and the thread that computes it, for one event loop: `await start()`, `await embed()`, `stop()`."""

    def __init__(self, embedder: Embedder, settings: ServeSettings, watcher: Watcher) -> None:
        self.embedder = embedder
        self.settings = settings
        by_device = TOKENS_PER_BATCH.get(embedder.device.type, TOKENS_PER_BATCH["cpu"])
        self.max_batch_tokens = settings.max_batch_tokens or by_device
        self._watcher = watcher
        self._lanes = Lanes()
        self._changed = threading.Condition()
        self._stopping = False
        self._tokens, self._seconds = 0.0, 0.0  # computed, and the time it took, the past fading away
        self._computing = 0.0  # seconds of all batches, nested ones once
        self._interruptible: Batch | None = None
        self._variants: dict[bool | None, Embedder] = {None: embedder}
        self._tokenizers = ThreadPoolExecutor(settings.tokenizer_threads, thread_name_prefix="tokenize")
        self._thread = threading.Thread(target=self._work, name=f"encode {embedder.name}", daemon=True)
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        """Compute something to know the speed, and begin to work."""
        self._loop = asyncio.get_running_loop()
        await self._loop.run_in_executor(self._tokenizers, self._warm_up)
        self._thread.start()

    def stop(self) -> None:
        """End the threads; a batch in progress is finished first."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self._tokenizers.shutdown()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the queue."""
        with self._changed:
            return self._lanes.tokens

    @property
    def waiting_texts(self) -> int:
        """Texts in the queue."""
        with self._changed:
            return self._lanes.num_texts

    @property
    def tokens_per_second(self) -> float:
        """How fast the encoder was lately while it computed."""
        return self._tokens / self._seconds

    async def embed(self, texts: Texts) -> Vectors:
        """Vectors of the texts of a request. When the caller is cancelled, what still waits is forgotten.

        Raises:
            LongspanError: what `Embedder.embed` refuses.
            Refusal: the queue is full (429), or the encoder failed (500).
        """
        sequences, cut = await self._loop.run_in_executor(self._tokenizers, self._tokenise, texts)
        now = time.monotonic()
        call = _Call(
            (texts.dim, texts.normalize), self._loop.create_future(), [None] * len(sequences), now, len(sequences)
        )
        job = Job(sequences, call)
        num_tokens = job.tokens
        with self._changed:
            self._admit(num_tokens)
            self._lanes.put(job)
            self._changed.notify()
        try:
            await call.future
        finally:
            call.future.cancel()
            with self._changed:
                self._lanes.discard(job)
        return Vectors(np.stack([row for row in call.rows if row is not None]), num_tokens, cut)

    def retry_after(self) -> int:
        """Seconds after which half of what waits now is done."""
        return max(1, math.ceil(self.waiting_tokens / 2 / self.tokens_per_second))

    def _admit(self, num_tokens: int) -> None:
        waiting = self._lanes.tokens
        if not waiting:
            return
        seconds = self._lanes.tokens_until_done(num_tokens) / self.tokens_per_second
        too_late = seconds > SAFETY * self.settings.timeout
        if too_late or waiting + num_tokens > self.settings.max_queue_tokens:
            reason = (
                f"it would take more than the {self.settings.timeout:g} seconds that a request may take"
                if too_late
                else f"the queue holds {waiting} of {self.settings.max_queue_tokens} tokens"
            )
            retry_after = max(1, math.ceil(waiting / 2 / self.tokens_per_second))
            raise Refusal(429, f"the server is busy: {reason}; try again later", retry_after=retry_after)

    def _tokenise(self, texts: Texts) -> tuple[list[np.ndarray], list[int]]:
        self._variant(texts.normalize).check_dim(texts.dim)
        inputs = texts.inputs
        if isinstance(inputs[0], str):
            read = self.embedder.sequences
        else:
            read = self.embedder.sequences_of_ids
        return read(inputs, task=texts.task, truncate=texts.truncate)  # pyright: ignore[reportArgumentType]

    def _variant(self, normalize: bool | None) -> Embedder:
        if normalize not in self._variants:
            self._variants[normalize] = self.embedder.with_settings(normalize=normalize)
        return self._variants[normalize]

    # --- the encoder's thread ------------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        cls_id = self.embedder.tokenizer.cls_id
        self.embedder.fingerprint  # noqa: B018  # takes a while, and is kept
        for length in _WARM_UP:
            began = time.perf_counter()
            ids = np.full(min(length, self.embedder.config.max_length), cls_id)
            self.embedder.finished(self.embedder.pooled([ids]))
            self._tokens, self._seconds = float(len(ids)), time.perf_counter() - began

    def _work(self) -> None:
        layers = self.embedder.model.encoder.layers if self.embedder.device.type == "cpu" else []
        hooks = [layer.register_forward_pre_hook(self._between_layers) for layer in layers]
        try:
            while (batch := self._next()) is not None:
                self._compute(batch)
        finally:
            for hook in hooks:
                hook.remove()

    def _next(self) -> Batch | None:
        with self._changed:
            while (batch := self._lanes.take(self.max_batch_tokens)) is None:
                if self._stopping:
                    return None
                self._changed.wait()
            return batch

    def _between_layers(self, *_: object) -> None:
        batch = self._interruptible
        if batch is None or threading.current_thread() is not self._thread:
            return
        if batch.items[0][0].call.future.done():
            raise _GivenUp
        with self._changed:
            urgent = self._lanes.take(self.max_batch_tokens, interrupting=batch)
        if urgent is not None:
            self._compute(urgent)
            self._interruptible = batch

    def _compute(self, batch: Batch) -> None:
        began, others = time.perf_counter(), self._computing
        now = time.monotonic()
        for job, _, _ in batch.items:
            call: _Call = job.call
            if not call.started:
                call.started = True
                self._watcher.waited(now - call.came)
        self._interruptible = batch if len(batch.items) == 1 else None
        try:
            rows = self._rows(batch)
        except _GivenUp:
            return
        except Exception as error:
            self._watcher.failed(error)
            self._loop.call_soon_threadsafe(_fail, batch)
            return
        finally:
            own = time.perf_counter() - began - (self._computing - others)
            self._computing += own
        self._measure(batch.tokens, own)
        self._watcher.batch(texts=len(batch.items), tokens=batch.tokens, seconds=own)
        self._loop.call_soon_threadsafe(_deliver, batch, rows)

    def _rows(self, batch: Batch) -> list[np.ndarray]:
        e_BD = self.embedder.pooled([sequence for _, _, sequence in batch.items])
        finishes: dict[tuple[int | None, bool | None], list[int]] = {}
        for place, (job, _, _) in enumerate(batch.items):
            finishes.setdefault(job.call.finish, []).append(place)
        rows: list[np.ndarray] = [np.empty(0)] * len(batch.items)
        for (dim, normalize), places in finishes.items():
            vectors_BD = self._variant(normalize).finished(e_BD[places], dim=dim)
            for place, vector_D in zip(places, vectors_BD, strict=True):
                rows[place] = vector_D
        return rows

    def _measure(self, tokens: int, seconds: float) -> None:
        kept = _MEMORY ** (tokens / self.max_batch_tokens)
        self._tokens, self._seconds = kept * self._tokens + tokens, kept * self._seconds + seconds


class _GivenUp(Exception):
    """Nobody waits for the batch any more."""


def _deliver(batch: Batch, rows: list[np.ndarray]) -> None:
    for (job, number, _), row in zip(batch.items, rows, strict=True):
        call: _Call = job.call
        call.rows[number] = row
        call.missing -= 1
        if not call.missing and not call.future.done():
            call.future.set_result(None)


def _fail(batch: Batch) -> None:
    for job, _, _ in batch.items:
        if not job.call.future.done():
            job.call.future.set_exception(Refusal(500, "the encoder failed; the server's log says why"))
