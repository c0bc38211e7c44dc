"""Servers on free local ports, in a thread, with small models."""

import io
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A server: its address, what it serves, and what it logged."""

    url: str
    service: Any
    server: Any
    log: io.StringIO = field(default_factory=io.StringIO)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def call(self, path: str, body: Any = None, *, headers: dict[str, str] | None = None, method: str | None = None):
        """POST a body (bytes as they are, everything else as JSON), or GET."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@contextmanager
def running(embedders, settings=None, *, api_key=None, default_task=None, mounts=(), open_paths=()):
    """A real server in a thread."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    from longspan.serve.app import create_app
    from longspan.serve.run import listen, make_server
    from longspan.serve.service import Service
    from longspan.serve.settings import ServeSettings
    from longspan.serve.telemetry import Log

    log = io.StringIO()
    settings = settings or ServeSettings(shutdown_timeout=5)
    service = Service(embedders, settings, default_task=default_task, log=Log(log))
    app = create_app(service, api_key=api_key, mounts=mounts, open_paths=open_paths)
    server = make_server(app, service)
    with listen("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive())
            yield Running(f"http://127.0.0.1:{sock.getsockname()[1]}", service, server, log)
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def until(condition, seconds: float = 20.0) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


class Gate:
    """Holds the encoder in its first layer: `with Gate(embedder) as gate: ... gate.open()`."""

    def __init__(self, embedder, only=lambda packed: True):
        self._layer = embedder.model.encoder.layers[0]
        self._only = only
        self._opened = threading.Event()
        self.reached = threading.Event()

    def __enter__(self):
        self._hook = self._layer.register_forward_pre_hook(self._hold)
        return self

    def __exit__(self, *_):
        self._hook.remove()
        self.open()

    def open(self):
        self._opened.set()

    def _hold(self, _, arguments):
        if threading.current_thread().name.startswith("encode") and self._only(arguments[-1]):
            self.reached.set()
            assert self._opened.wait(30)


@pytest.fixture(scope="session")
def plain_embedder(small_encoder, small_tokenizer):
    """A model without prefixes."""
    from longspan.embedder import Embedder
    from longspan.model.config import EmbeddingConfig

    return Embedder(small_encoder(1), small_tokenizer, EmbeddingConfig(max_length=128), device="cpu", name="plain")


@pytest.fixture(scope="session")
def server(small_embedder, plain_embedder):
    """Two models: `small`, which needs a task, and `plain`. Tests do not change it."""
    with running({"small": small_embedder, "plain": plain_embedder}) as started:
        yield started
