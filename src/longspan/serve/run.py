"""The server as a process: uvicorn, and a shutdown that finishes what was accepted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from longspan.errors import LongspanError
from longspan.serve.service import Service
from longspan.serve.telemetry import missing_extra

if TYPE_CHECKING:
    import uvicorn

_LARGEST_PORT = 65_535
_CLOSING = 3
"""Seconds after `shutdown_timeout` for the last answers to reach their clients."""


def make_server(app: Any, service: Service) -> uvicorn.Server:
    """A server that stops accepting when it is told to stop (SIGTERM, Ctrl-C), and then finishes what it accepted.

    Raises:
        LongspanError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError:
        raise missing_extra("uvicorn") from None

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            self._loop = asyncio.get_running_loop()
            await super().startup(sockets)

        def handle_exit(self, sig: int, frame: Any) -> None:
            self._loop.call_soon_threadsafe(service.drain)
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(service.settings.shutdown_timeout) + _CLOSING,
    )
    return Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        LongspanError: the address is in use or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if not 0 <= port <= _LARGEST_PORT:
            raise OSError(f"a port is between 0 and {_LARGEST_PORT}")
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise LongspanError(
            f"cannot listen there: {error.strerror or error}",
            where=f"{host}:{port}",
            remedy="choose another --port (0 takes a free one) or --host",
        ) from None


def run(app: Any, service: Service, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until told to stop.

    Args:
        ready: called with the server's address once it listens.

    Raises:
        LongspanError: the address cannot be used, or uvicorn is not installed.
    """
    server = make_server(app, service)
    with listen(host, port) as sock:
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{sock.getsockname()[1]}")
        server.run(sockets=[sock])
