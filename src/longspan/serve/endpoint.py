"""From HTTP to a handler and back: bodies within limits, clients that leave, errors in the form of each API."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pydantic_core import to_json

from longspan.serve.refusal import CLIENT_GONE, REASONS, Refusal
from longspan.serve.service import Service

T = TypeVar("T")
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = dict[str, Any]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health", "/docs", "/openapi.json")
"""What needs no API key: probes have none, and the documentation tells nothing of the models."""
_OPENAI_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
_TEI_TYPES = {413: "Validation", 422: "Tokenizer", 429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Backend"}


@dataclass
class Answer:
    """What a handler gives: a value to be written as JSON (or bytes of another kind), and what the log should tell."""

    content: Any
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str = "application/json"
    told: dict[str, Any] = field(default_factory=dict)


class Handler(Protocol):
    """Answers a request with a body."""

    async def __call__(self, service: Service, body: bytes) -> Answer: ...


class _Gone(Exception):
    """The client left."""


async def answer(service: Service, request: Any, handler: Handler) -> Any:
    """Read the body of a Starlette request, have it handled, and give the response; raises nothing."""
    from starlette.responses import Response

    told = request.scope["longspan"]
    try:
        with service.admitted(), service.holding() as hold:
            async with service.in_time():
                body = await _body(request, service.settings.max_body_bytes, hold)
                given = await _while_connected(request.receive, handler(service, body))
    except _Gone:
        return Response(status_code=CLIENT_GONE)
    except Refusal as refusal:
        return refused(service, refusal, request.scope["path"])
    except Exception as error:
        service.log.failure("request failed", error, id=told.get("id"))
        return refused(service, Refusal(500, "the server failed; its log says why"), request.scope["path"])
    told.update(given.told)
    content = given.content if isinstance(given.content, bytes) else to_json(given.content)
    return Response(content, headers=given.headers, media_type=given.media_type)


def refused(service: Service, refusal: Refusal, path: str) -> Any:
    """A refusal as a response, in the form of the API that the path belongs to."""
    from starlette.responses import Response

    service.metrics.refused.labels(REASONS.get(refusal.status, "other")).inc()
    content: dict[str, Any]
    if path.startswith("/v1/"):
        kind = _OPENAI_TYPES.get(refusal.status, "invalid_request_error")
        detail = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
        content = {"error": detail}
    else:
        content = {"error": refusal.message, "error_type": _TEI_TYPES.get(refusal.status, "Validation")}
    return Response(to_json(content), refusal.status, refusal.headers, "application/json")


async def _body(request: Any, limit: int, hold: Callable[[int], None]) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        hold(len(part))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body has more than {limit} bytes: send the texts in parts")


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves or the caller is cancelled."""
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Gone
        return task.result()
    finally:
        leaving.cancel()
        task.cancel()
        await asyncio.wait((task, leaving))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Door:
    """ASGI middleware, the first to see a request: gives it a number, checks the API key, writes the log."""

    def __init__(
        self,
        app: Application,
        service: Service,
        routes: frozenset[str],
        api_key: str | None,
        open_paths: frozenset[str],
    ) -> None:
        self._app, self._service, self._routes, self._open_paths = app, service, routes, open_paths
        self._api_key = api_key.encode() if api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        told = scope["longspan"] = {"id": _request_id(headers.get(b"x-request-id", b""))}
        status, began = 500, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", told["id"].encode())]
                message = message | {"headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            if self._may_enter(scope["path"], headers.get(b"authorization", b"")):
                await self._app(scope, receive, sending)
            else:
                refusal = Refusal(401, "the API key is missing or wrong", code="invalid_api_key")
                await refused(self._service, refusal, scope["path"])(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - began
            route = scope["path"] if scope["path"] in self._routes else "other"
            metrics = self._service.metrics
            metrics.requests.labels(route, str(status)).inc()
            metrics.seconds.labels(route).observe(seconds)
            self._service.log.write(
                "request", route=route, method=scope["method"], status=status, ms=round(1000 * seconds, 1), **told
            )

    def _may_enter(self, path: str, authorization: bytes) -> bool:
        if self._api_key is None or path in self._open_paths:
            return True
        scheme, _, key = authorization.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._api_key)


def _request_id(given: bytes) -> str:
    if 0 < len(given) <= 64 and given.replace(b"-", b"").isalnum():
        return given.decode()
    return uuid.uuid4().hex
