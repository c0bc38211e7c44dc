"""The models that a server has, and who may use them when: names, tasks, limits of all requests together, shutdown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.serve.engine import Engine, Texts, Vectors
from longspan.serve.refusal import Refusal
from longspan.serve.settings import ServeSettings
from longspan.serve.telemetry import EngineWatcher, Log, Metrics


@dataclass(frozen=True)
class Served:
    """A model that is served."""

    name: str
    engine: Engine
    default_task: str | None
    loaded: int
    """When, in seconds since 1970."""

    @property
    def embedder(self) -> Embedder:
        return self.engine.embedder


class Service:
    """Models behind a server. Enter `running()` before anything is embedded.

    Args:
        embedders: the models by the names under which they are served; the first one answers requests without a name.
        default_task: the task of requests that name none, for models that have prefixes.

    Raises:
        LongspanError: no model, a model without this task, or prometheus-client is not installed.
    """

    def __init__(
        self,
        embedders: Mapping[str, Embedder],
        settings: ServeSettings | None = None,
        *,
        default_task: str | None = None,
        log: Log | None = None,
    ) -> None:
        if not embedders:
            raise LongspanError("there is no model to serve", where="models", remedy="name at least one")
        self.settings = settings if settings is not None else ServeSettings()
        self.log = log if log is not None else Log()
        self.metrics = Metrics()
        self.draining = False
        self._requests, self._bytes = 0, 0
        self._timeouts: set[asyncio.Timeout] = set()
        self.models: dict[str, Served] = {}
        for name, embedder in embedders.items():
            if default_task is not None and embedder.config.prefixes:
                embedder.check_task(default_task)
            engine = Engine(embedder, self.settings, EngineWatcher(name, self.metrics, self.log))
            task = default_task if embedder.config.prefixes else None
            self.models[name] = Served(name, engine, task, int(time.time()))
            self.metrics.queue_tokens.labels(name).set_function(lambda engine=engine: engine.waiting_tokens)
            self.metrics.queue_texts.labels(name).set_function(lambda engine=engine: engine.waiting_texts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start all engines, and stop them at the end."""
        try:
            for model in self.models.values():
                await model.engine.start()
            self.log.write("started", models=list(self.models))
            yield
        finally:
            for model in self.models.values():
                model.engine.stop()
            self.log.write("stopped")

    @property
    def healthy(self) -> bool:
        """Whether a new request would be worked on."""
        return not self.draining and all(model.engine.alive for model in self.models.values())

    def find(self, name: str | None) -> tuple[Served, str | None]:
        """The model of this name, and the task if the name is `NAME:TASK`.

        Raises:
            Refusal: 404.
        """
        if name is None:
            return next(iter(self.models.values())), None
        if name in self.models:
            return self.models[name], None
        model, colon, task = name.rpartition(":")
        if colon and model in self.models:
            return self.models[model], task
        known = ", ".join(self.models)
        raise Refusal(
            404, f"there is no model {name!r:.100}; there are: {known}", param="model", code="model_not_found"
        )

    async def embed(
        self, model_name: str | None, texts: Texts, prompt_name: str | None = None
    ) -> tuple[Served, Vectors]:
        """Vectors of the texts of a request, and the model that gave them.

        Raises:
            Refusal: whatever is wrong, as HTTP tells it.
        """
        model, task = self.task_of(model_name, texts.task, prompt_name)
        if len(texts.inputs) > self.settings.max_texts:
            raise Refusal(
                413,
                f"{len(texts.inputs)} texts in one request are more than {self.settings.max_texts}: send them in parts",
                param="input",
            )
        if not isinstance(texts.inputs[0], str):
            if not self.settings.token_ids:
                raise Refusal(422, "this server does not accept token ids: send texts", param="input")
            bare = [_bare(ids, model.embedder) for ids in texts.inputs if isinstance(ids, np.ndarray)]
            texts = replace(texts, inputs=bare)
        try:
            vectors = await model.engine.embed(replace(texts, task=task))
        except LongspanError as error:
            raise Refusal.of(error, "input") from None
        self.metrics.truncated.labels(model.name).inc(len(vectors.cut))
        return model, vectors

    def task_of(self, model_name: str | None, *tasks: str | None) -> tuple[Served, str | None]:
        """The model, and the one task that a request names, in whatever way; or the server's default.

        Raises:
            Refusal: 404; 422, two different tasks, one that the model does not have, or none where one is needed.
        """
        model, from_name = self.find(model_name)
        named = {task for task in (from_name, *tasks) if task is not None}
        if len(named) > 1:
            raise Refusal(422, f"the request names several tasks: {', '.join(sorted(named))!r:.200}", param="task")
        task = named.pop() if named else model.default_task
        try:
            model.embedder.check_task(task)
        except LongspanError as error:
            raise Refusal.of(error, "task") from None
        return model, task

    # --- limits of all requests together -------------------------------------------------------------------------

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A request is in progress.

        Raises:
            Refusal: 429, too many are; 503, the server is going down.
        """
        if self.draining:
            raise Refusal(503, "the server is shutting down: try another one, or later", retry_after=5)
        if self._requests >= self.settings.max_requests:
            raise self._busy(f"{self.settings.max_requests} requests are in progress")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Bytes of a body are in memory: gives a function to be called with the number of bytes before more are kept.

        Raises:
            Refusal: 429, too many are (from the function).
        """
        held = 0

        def hold(num_bytes: int) -> None:
            nonlocal held
            if self._bytes + num_bytes > self.settings.max_pending_bytes:
                raise self._busy(f"requests in progress hold {self._bytes} bytes")
            self._bytes += num_bytes
            held += num_bytes

        try:
            yield hold
        finally:
            self._bytes -= held

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """What happens within takes no longer than a request may.

        Raises:
            Refusal: 504, it took longer; 503, it was not done when the server went down.
        """
        try:
            async with asyncio.timeout(self.settings.timeout) as timeout:
                self._timeouts.add(timeout)
                try:
                    yield
                finally:
                    self._timeouts.discard(timeout)
        except TimeoutError:
            if self.draining:
                raise Refusal(503, "the server is shutting down and had no time left", retry_after=5) from None
            raise Refusal(
                504, f"the answer took more than {self.settings.timeout:g} seconds: send fewer or shorter texts"
            ) from None

    def drain(self) -> None:
        """Accept nothing new, and give what was accepted `shutdown_timeout` seconds more."""
        if self.draining:
            return
        self.draining = True
        self.log.write("stopping", requests=self._requests)
        end = asyncio.get_running_loop().time() + self.settings.shutdown_timeout
        for timeout in self._timeouts:
            when = timeout.when()
            timeout.reschedule(end if when is None else min(when, end))

    def _busy(self, why: str) -> Refusal:
        retry_after = max(model.engine.retry_after() for model in self.models.values())
        return Refusal(429, f"the server is busy: {why}; try again later", retry_after=retry_after)


def _bare(ids_T: np.ndarray, embedder: Embedder) -> np.ndarray:
    """Without the special tokens that many tokenizers put around a text by themselves."""
    tokenizer = embedder.tokenizer
    if len(ids_T) > 1 and ids_T[0] == tokenizer.cls_id and ids_T[-1] == tokenizer.sep_id:
        return ids_T[1:-1]
    return ids_T
