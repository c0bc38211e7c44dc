"""What all routes have in common: limits, keys, logs, metrics, documentation, clients that leave, fuzzed requests."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from longspan.errors import LongspanError
from longspan.serve.settings import ServeSettings
from tests.serve.conftest import Gate, running, until

FOX = {"inputs": "fox", "model": "plain"}


def occupy(server, gate, pool, waiting):
    """One request in the encoder, and some that wait for it."""
    accepted = [pool.submit(server.call, "/embed", FOX)]
    until(gate.reached.is_set)
    accepted += [pool.submit(server.call, "/embed", FOX) for _ in range(waiting)]
    until(lambda: server.service.models["plain"].engine.waiting_texts == waiting)
    return accepted


def stop(server):
    """What the server does first when it is told to stop (tests/serve/test_run.py tells it by a signal)."""
    loop = server.service.models["plain"].engine._loop
    loop.call_soon_threadsafe(server.service.drain)
    until(lambda: server.service.draining)


def test_health_and_what_is_not_there(server):
    assert server.call("/health").status == 200
    assert server.call("/nothing").json["error"] == "Not Found"
    assert server.call("/v1/nothing").json["error"]["message"] == "Not Found"
    answer = server.call("/embed")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert server.call("/embed/", FOX).status == 404


def test_logs_tell_of_requests_and_never_of_texts(server):
    secret = "quokka"
    headers = {"x-request-id": "abc-123"}
    for path, body in {
        "/embed": {"inputs": secret, "model": "plain"},
        "/v1/embeddings": {"input": [secret, " "], "model": "plain"},
        "/tokenize": {"inputs": secret, "task": secret},
        "/nothing": {"inputs": secret},
    }.items():
        assert server.call(path, body, headers=headers).headers["x-request-id"] == "abc-123"
    until(lambda: len([line for line in server.lines() if line.get("id") == "abc-123"]) == 4)
    first, *_ = [line for line in server.lines() if line.get("id") == "abc-123"]
    assert {"route": "/embed", "status": 200, "texts": 1, "model": "plain", "method": "POST"}.items() <= first.items()
    assert secret not in server.log.getvalue()
    assert secret not in server.call("/metrics").body.decode()
    assert server.call("/health", headers={"x-request-id": "a b\t{}"}).headers["x-request-id"] != "a b\t{}"


def test_metrics_count(server):
    def value(line):
        page = server.call("/metrics").body.decode()
        return next((float(found.split()[-1]) for found in page.splitlines() if found.startswith(line)), 0.0)

    lines = {
        'longspan_requests_total{route="/embed",status="200"}': 1,
        'longspan_requests_total{route="/embed",status="400"}': 1,
        'longspan_refused_total{reason="malformed"}': 1,
        'longspan_texts_total{model="plain"}': 3,
        'longspan_truncated_texts_total{model="plain"}': 2,
        'longspan_batch_tokens_sum{model="plain"}': 3 + 2 * 128,
    }
    before = {line: value(line) for line in lines}
    server.call("/embed", {"inputs": ["fox", "fox " * 200, "fox " * 300], "truncate": True, "model": "plain"})
    server.call("/embed", b"{")
    until(lambda: {line: value(line) - before[line] for line in lines} == lines)
    assert value('longspan_queue_tokens{model="plain"}') == 0


def test_the_documentation_shows_every_route_with_examples(server):
    openapi = server.call("/openapi.json").json
    page = server.call("/docs").body.decode()
    assert {"/v1/embeddings", "/v1/models", "/embed", "/tokenize", "/info", "/health", "/metrics"} == set(
        openapi["paths"]
    )
    for path in openapi["paths"]:
        assert f"{path}</code></h2>" in page
    assert "<script" not in page
    posts = [(path, methods["post"]) for path, methods in openapi["paths"].items() if "post" in methods]
    for path, operation in posts:
        examples = operation["requestBody"]["content"]["application/json"]["schema"]["examples"]
        assert examples
        for example in examples:
            body = json.loads(json.dumps(example).replace("MODEL", "small").replace("256", "32"))
            assert server.call(path, body).status == 200, (path, body)


def test_a_key_is_asked_for_everywhere_but_for_health_and_documentation(plain_embedder):
    with running({"plain": plain_embedder}, api_key="s3cret") as server:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}):
            for path in ("/embed", "/v1/embeddings", "/metrics", "/info", "/nothing"):
                answer = server.call(path, headers=header)
                assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        right = {"authorization": "Bearer s3cret"}
        assert server.call("/embed", FOX, headers=right).status == 200
        assert server.call("/v1/embeddings", FOX).json["error"]["type"] == "authentication_error"
        assert [server.call(path).status for path in ("/health", "/docs", "/openapi.json")] == [200] * 3
        operations = server.call("/openapi.json").json["paths"]
        assert operations["/embed"]["post"]["security"] == [{"key": []}]
        assert "security" not in operations["/health"]["get"]
        assert "s3cret" not in server.log.getvalue()


def test_a_default_task_is_told_and_used(small_embedder):
    with running({"small": small_embedder}, ServeSettings(token_ids=False), default_task="search_query") as server:
        info = server.call("/info").json
        assert (info["default_task"], info["token_ids"]) == ("search_query", False)
        answer = server.call("/embed", {"inputs": "fox"})
        assert np.array_equal(np.float32(answer.json), small_embedder.embed(["fox"], task="search_query"))
        answer = server.call("/embed", {"inputs": [10]})
        assert (answer.status, "does not accept token ids" in answer.json["error"]) == (422, True)


def test_refuses_to_start_with_nothing_or_an_unknown_task(small_embedder):
    from longspan.serve.service import Service

    with pytest.raises(LongspanError, match="no model to serve"):
        Service({})
    with pytest.raises(LongspanError, match="no task 'search'"):
        Service({"small": small_embedder}, default_task="search")


def test_limits_of_bodies(plain_embedder):
    with running({"plain": plain_embedder}, ServeSettings(max_body_bytes=1000, max_pending_bytes=500)) as server:
        assert server.call("/embed", FOX).status == 200
        answer = server.call("/embed", b" " * 1001)
        assert (answer.status, "more than 1000 bytes" in answer.json["error"]) == (413, True)
        answer = server.call("/embed", b" " * 600)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        # Chunks do not tell how many bytes will come.
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            head = b"POST /embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            client.sendall(head + (b"190\r\n" + b" " * 400 + b"\r\n") * 3 + b"0\r\n\r\n")
            assert client.recv(12) in (b"HTTP/1.1 413", b"HTTP/1.1 429")
        assert server.call("/embed", FOX).status == 200  # all bytes were given back


def test_too_many_requests_are_refused_and_the_others_answered(plain_embedder):
    with (
        running({"plain": plain_embedder}, ServeSettings(max_requests=2)) as server,
        Gate(plain_embedder) as gate,
        ThreadPoolExecutor() as pool,
    ):
        accepted = occupy(server, gate, pool, waiting=1)
        refused = server.call("/v1/embeddings", {"model": "plain", "input": "fox"})
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json["error"]["type"] == "rate_limit_error"
        gate.open()
        assert [answer.result().status for answer in accepted] == [200, 200]


def test_a_request_that_takes_too_long_is_told_so_and_forgotten(plain_embedder):
    with running({"plain": plain_embedder}, ServeSettings(timeout=0.5)) as server, Gate(plain_embedder) as gate:
        answer = server.call("/embed", FOX)
        assert (answer.status, "more than 0.5 seconds" in answer.json["error"]) == (504, True)
        gate.open()
        assert server.call("/embed", FOX).status == 200


def test_the_work_of_a_client_that_leaves_is_forgotten(plain_embedder):
    with (
        running({"plain": plain_embedder}) as server,
        Gate(plain_embedder) as gate,
        ThreadPoolExecutor() as pool,
    ):
        engine = server.service.models["plain"].engine
        first = pool.submit(server.call, "/embed", FOX)
        until(gate.reached.is_set)
        body = json.dumps({"inputs": ["fox"] * 9}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            until(lambda: engine.waiting_texts == 9)
        until(lambda: engine.waiting_texts == 0)
        gate.open()
        assert first.result().status == 200
        until(lambda: any(line.get("status") == 499 for line in server.lines()))


def test_what_was_accepted_is_finished_when_the_server_stops(plain_embedder):
    with ThreadPoolExecutor() as pool:
        with running({"plain": plain_embedder}) as server, Gate(plain_embedder) as gate:
            accepted = occupy(server, gate, pool, waiting=2)
            stop(server)
            assert server.call("/health").status == 503
            late = server.call("/embed", FOX)
            assert (late.status, late.json["error_type"]) == (503, "Unhealthy")
            server.server.should_exit = True
            gate.open()
        assert [answer.result().status for answer in accepted] == [200] * 3


def test_what_cannot_be_finished_in_time_is_told_so_when_the_server_stops(plain_embedder):
    with (
        Gate(plain_embedder) as gate,
        ThreadPoolExecutor() as pool,
        running({"plain": plain_embedder}, ServeSettings(shutdown_timeout=0.2)) as server,
    ):
        accepted = pool.submit(server.call, "/embed", FOX)
        until(gate.reached.is_set)
        stop(server)
        answer = accepted.result()
        assert (answer.status, "shutting down" in answer.json["error"]) == (503, True)
        gate.open()


def test_a_failure_is_logged_by_its_place_without_its_message(plain_embedder, monkeypatch):
    with running({"plain": plain_embedder}) as server:

        def fail(*_, **__):
            raise RuntimeError("quokka")

        monkeypatch.setattr(plain_embedder, "sequences", fail)
        answer = server.call("/embed", FOX)
        assert (answer.status, answer.json["error_type"]) == (500, "Backend")
        line = next(line for line in server.lines() if line["event"] == "request failed")
        assert line["error"] == "RuntimeError"
        assert "quokka" not in server.log.getvalue() + answer.body.decode()


def test_more_routes_are_mounted_behind_the_same_door(plain_embedder):
    def mount(app, service):
        @app.get("/models-here")
        def models():
            return list(service.models)

    with running({"plain": plain_embedder}, api_key="key", mounts=[mount]) as server:
        assert server.call("/models-here").status == 401
        assert server.call("/models-here", headers={"authorization": "Bearer key"}).json == ["plain"]
        until(lambda: any(line.get("route") == "/models-here" for line in server.lines()))


BYTES = [
    b"\x00" * 100,
    b"GET\r\n\r\n",
    b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
    b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
    b"POST /embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nauthorization: \xff\xfe\r\n\r\n{}",
    b"GET /%ff%00?model=%ff HTTP/1.1\r\nhost: x\r\n\r\n",
]


@pytest.mark.parametrize("raw", BYTES)
def test_raw_bytes_are_refused_and_the_server_lives(server, raw):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(raw)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(10)
        answer = client.recv(100)
    assert answer[9:10] in (b"4", b"")
    assert server.call("/health").status == 200
