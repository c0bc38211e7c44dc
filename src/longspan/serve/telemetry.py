"""What a server tells of itself: metrics for Prometheus, and a line of JSON per request. Never a text."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from typing import Any, TextIO

from longspan.errors import LongspanError

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)


class Log:
    """Lines of JSON on a stream: time, event, and what belongs to it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._lock = threading.Lock()

    def write(self, event: str, **fields: Any) -> None:
        """Write a line; fields that are None are left out."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        told = {key: value for key, value in fields.items() if value is not None}
        line = json.dumps({"time": stamp, "event": event, **told}, default=str)
        with self._lock:
            print(line, file=self._stream, flush=True)

    def failure(self, event: str, error: BaseException, **fields: Any) -> None:
        """Write where an error came from and of what kind it is. Not its message: that could quote a text."""
        frames = traceback.extract_tb(error.__traceback__)[-8:]
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        self.write(event, error=type(error).__name__, at=places, **fields)


class Metrics:
    """Prometheus metrics of one server.

    Raises:
        LongspanError: prometheus-client is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError:
            raise missing_extra("prometheus_client") from None
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        self.requests = counter("longspan_requests", "Requests answered", "route", "status")
        self.seconds = histogram("longspan_request_seconds", "First byte of a request to its answer", "route")
        self.refused = counter("longspan_refused", "Requests refused", "reason")
        self.texts = counter("longspan_texts", "Texts embedded", "model")
        self.truncated = counter("longspan_truncated_texts", "Texts cut on request", "model")
        self.queue_seconds = histogram("longspan_queue_seconds", "A request in the queue to its first batch", "model")
        self.queue_tokens = Gauge("longspan_queue_tokens", "Tokens that wait", ["model"], registry=self.registry)
        self.queue_texts = Gauge("longspan_queue_texts", "Texts that wait", ["model"], registry=self.registry)
        self.batch_texts = histogram("longspan_batch_texts", "Texts of a batch", "model", buckets=_TOKENS)
        self.batch_tokens = histogram("longspan_batch_tokens", "Tokens of a batch", "model", buckets=_TOKENS)
        self.batch_seconds = histogram("longspan_batch_seconds", "Computing a batch", "model")
        self.failures = counter("longspan_failures", "Batches that the encoder failed to compute", "model")

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class EngineWatcher:
    """Tells metrics and log what an engine does."""

    def __init__(self, model: str, metrics: Metrics, log: Log) -> None:
        self._model, self._log = model, log
        self._queue_seconds = metrics.queue_seconds.labels(model)
        self._batch_texts = metrics.batch_texts.labels(model)
        self._batch_tokens = metrics.batch_tokens.labels(model)
        self._batch_seconds = metrics.batch_seconds.labels(model)
        self._texts, self._failures = metrics.texts.labels(model), metrics.failures.labels(model)

    def batch(self, *, texts: int, tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self._batch_texts.observe(texts)
        self._batch_tokens.observe(tokens)
        self._batch_seconds.observe(seconds)
        self._texts.inc(texts)

    def waited(self, seconds: float) -> None:
        """The first text of a request left the queue."""
        self._queue_seconds.observe(seconds)

    def failed(self, error: Exception) -> None:
        """The encoder failed."""
        self._failures.inc()
        self._log.failure("batch failed", error, model=self._model)


def missing_extra(package: str) -> LongspanError:
    """The error for a package of the extra `serve` that is not there."""
    return LongspanError("serving is not installed", where=f"package {package}", remedy="pip install 'longspan[serve]'")
