"""Ten thousand wrong and right requests and raw bytes to `longspan serve`: no 500, no hang, and it still answers.

Half of the requests are made by schemathesis from the OpenAPI document; the others are bytes: whole requests with a
random or a damaged body, and lines that are no HTTP at all.
"""

from __future__ import annotations

import argparse
import collections
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.record import write_record
from benchmarks.serve import ours, serving
from longspan.demo.teacher import teacher_folder

PATIENCE = 30.0
"""Seconds after which a request counts as hanging."""
GOOD = b'{"model": "m", "input": ["a fox", "two foxes"], "dimensions": 16, "truncate": true}'
PATHS = (b"/v1/embeddings", b"/embed", b"/tokenize", b"/info", b"/v1/models", b"/", b"/%00", b"/embed?model=%ff")
METHODS = (b"POST", b"GET", b"PUT", b"OPTIONS", b"HEAD", b"\xff")


def main() -> None:
    """Send all and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the raw bytes (%(default)s)")
    parsed = parser.parse_args()
    began = time.perf_counter()
    with serving(ours(Path(teacher_folder()))) as (port, process):
        result: dict[str, Any] = {"from_openapi": from_openapi(port, parsed.requests // 2)}
        result["raw"] = raw(port, parsed.requests - parsed.requests // 2, parsed.seed)
        result["alive"] = process.poll() is None and answers(port)
    result["seconds"] = round(time.perf_counter() - began, 1)
    write_record("serve-fuzz", result)


def from_openapi(port: int, num_requests: int) -> dict[str, Any]:
    """Requests that follow the document and requests that do not; stops at the first answer that it does not allow."""
    url = f"http://127.0.0.1:{port}"
    api = schemathesis.openapi.from_url(f"{url}/openapi.json")
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    statuses: collections.Counter[str] = collections.Counter()
    for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

        @settings(
            max_examples=num_requests // 2,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(api.as_strategy(generation_mode=mode))
        def fuzz(case: schemathesis.Case) -> None:
            response = case.call_and_validate(base_url=url, checks=checks, timeout=PATIENCE)
            statuses[str(response.status_code)] += 1

        fuzz()
    return {"requests": sum(statuses.values()), "statuses": dict(sorted(statuses.items()))}


def raw(port: int, num_requests: int, seed: int) -> dict[str, Any]:
    """Bytes; each on a connection of its own. Counts the statuses, connections closed without one, and hangs."""
    random = np.random.default_rng(seed)
    found: collections.Counter[str] = collections.Counter()
    for _ in range(num_requests):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            try:
                sent, whole = one(random)
                client.sendall(sent)
                if not whole:
                    client.shutdown(socket.SHUT_WR)  # or the server would wait for more
                first = client.recv(64)
            except TimeoutError:
                found["hang"] += 1
                continue
            except OSError:
                first = b""
        found[first[9:12].decode("latin-1") or "closed"] += 1
    return {"requests": num_requests, "statuses": dict(sorted(found.items()))}


def one(random: np.random.Generator) -> tuple[bytes, bool]:
    """Some bytes, and whether they are a whole request."""
    kind = random.integers(4)
    if kind == 0:
        return random.bytes(int(random.integers(1, 300))), False
    body = random.bytes(int(random.integers(0, 200))) if kind == 1 else damaged(random)
    length = len(body) if kind < 3 else int(random.integers(-5, 2 * len(body) + 5))
    method, path = METHODS[random.integers(len(METHODS))], PATHS[random.integers(len(PATHS))]
    head = method + b" " + path + b" HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % length
    return head + body, 0 <= length <= len(body)


def damaged(random: np.random.Generator) -> bytes:
    """A good body with some bytes changed, left out or doubled."""
    body = bytearray(GOOD)
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(len(body)))
        match random.integers(3):
            case 0:
                body[place] = int(random.integers(256))
            case 1:
                del body[place]
            case _:
                body[place:place] = body[place : place + int(random.integers(1, 9))]
    return bytes(body)


def answers(port: int) -> bool:
    """Whether a good request is still answered."""
    request = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(GOOD) + GOOD
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(request)
        return client.recv(64).startswith(b"HTTP/1.1 200")


if __name__ == "__main__":
    main()
