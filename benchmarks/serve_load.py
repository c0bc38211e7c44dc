"""Requests to a server, many at a time, and what became of them. HTTP by hand: the generator must cost little."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PARTS = 5
"""A measurement is counted in so many parts, too, so that its spread can be seen."""
IDLE = 10.0
"""Seconds after which a connection is not used again: servers hang up on idle ones."""


@dataclass
class Outcome:
    """What became of requests: status (0: the connection broke, -1: the client left) and seconds of each."""

    statuses: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    without_retry_after: int = 0

    def add(self, status: int, seconds: float, end: float = 0.0) -> None:
        """Another one; `end`: seconds since the measurement began."""
        self.statuses.append(status)
        self.seconds.append(seconds)
        self.ends.append(end)

    def summary(self) -> dict[str, Any]:
        """Requests per second and latencies of those that were answered, in milliseconds."""
        answered = np.array([s for status, s in zip(self.statuses, self.seconds, strict=True) if status == 200])
        found: dict[str, Any] = {
            "seconds": round(self.elapsed, 1),
            "statuses": {str(status): count for status, count in sorted(Counter(self.statuses).items())},
            "requests_per_second": round(len(answered) / self.elapsed, 2),
        }
        if len(answered):
            found |= {f"p{p}_ms": round(1000 * float(np.percentile(answered, p)), 1) for p in (50, 90, 99)}
            found["max_ms"] = round(1000 * float(answered.max()), 1)
            ends = [end for status, end in zip(self.statuses, self.ends, strict=True) if status == 200]
            counts, _ = np.histogram(ends, bins=PARTS, range=(0, self.elapsed))
            found["requests_per_second_by_part"] = [round(float(n) * PARTS / self.elapsed, 1) for n in counts]
        return found


class Connection:
    """One keep-alive connection, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request: status, headers and body of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return int(first.split()[1]), headers, content

    def close(self) -> None:
        """Hang up, at once."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


def request_body(text: str) -> bytes:
    """What OpenAI's client sends for one text."""
    return json.dumps({"model": "m", "input": text, "encoding_format": "base64"}).encode()


async def vectors_of(port: int, texts: Sequence[str]) -> np.ndarray:
    """Vectors that a server gives, one request per text."""
    connection = Connection(port)
    rows = []
    for text in texts:
        status, _, content = await connection.post("/v1/embeddings", request_body(text))
        assert status == 200, content
        rows.append(np.frombuffer(base64.b64decode(json.loads(content)["data"][0]["embedding"]), dtype="<f4"))
    connection.close()
    return np.stack(rows)


async def closed_loop(
    port: int, next_body: Callable[[], bytes], num_clients: int, seconds: float, warm_up: float
) -> Outcome:
    """Clients that send their next request as soon as the last one is answered."""
    outcome = Outcome()
    began = time.perf_counter()
    start, end = began + warm_up, began + warm_up + seconds

    async def client() -> None:
        connection = Connection(port)
        while (sent := time.perf_counter()) < end:
            status, _, _ = await connection.post("/v1/embeddings", next_body())
            now = time.perf_counter()
            if start <= now <= end:
                outcome.add(status, now - sent, now - start)
        connection.close()

    await asyncio.gather(*(client() for _ in range(num_clients)))
    outcome.elapsed = seconds
    return outcome


async def open_loop(
    port: int, next_body: Callable[[], bytes], per_second: float, seconds: float, impatient: float, seed: int = 0
) -> Outcome:
    """Requests that come at random at a given rate, whether the server keeps up or not.

    Args:
        impatient: share of clients that hang up after half a second if they have no answer by then.
    """
    outcome = Outcome()
    idle: list[tuple[Connection, float]] = []
    random = np.random.default_rng(seed)
    tasks: set[asyncio.Task[None]] = set()

    async def one(leaves: bool) -> None:
        sent = time.perf_counter()
        connection, since = idle.pop() if idle else (Connection(port), sent)
        if sent - since > IDLE:
            connection.close()  # and opened anew, before the server hangs up on it
        try:
            async with asyncio.timeout(0.5 if leaves else 600):
                status, headers, _ = await connection.post("/v1/embeddings", next_body())
            idle.append((connection, time.perf_counter()))
            outcome.without_retry_after += status == 429 and "retry-after" not in headers
        except TimeoutError:
            status = -1
            connection.close()
        except (OSError, asyncio.IncompleteReadError):
            status = 0
            connection.close()
        now = time.perf_counter()
        outcome.add(status, now - sent, now - began)

    began = time.perf_counter()
    due = began
    while due < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.ensure_future(one(bool(random.random() < impatient)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += random.exponential(1 / per_second)
    while tasks:
        await asyncio.wait(tasks)
    outcome.elapsed = time.perf_counter() - began
    for connection, _ in idle:
        connection.close()
    return outcome


def endless(bodies: Sequence[bytes]) -> Callable[[], bytes]:
    """The bodies again and again, in their order."""

    def forever() -> Iterator[bytes]:
        while True:
            yield from bodies

    return forever().__next__
