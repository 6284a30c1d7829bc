"""Running an ASGI application as a process: a socket, uvicorn, signals. uvicorn comes with the extras `ingest` and `serve`."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from typing import Any, Final

import uvicorn

from treadle.errors import AddressInUse, AppFailed

__all__ = ["listening", "run_app"]

BACKLOG: Final = 2048


def run_app(
    app: Any,
    host: str,
    port: int,
    announce: Callable[[str], None],
    *,
    connections: int = 1024,
    drain_s: float = 10.0,
) -> None:
    """Serve an ASGI application until SIGTERM or SIGINT; then open requests have `drain_s` to end, and its lifespan ends.

    `announce` is called with the address once connections are taken. Port 0 takes any free one. More than `connections` at once are
    answered with 503. Raises AddressInUse, AppFailed.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ws="none",
            limit_concurrency=connections,
            timeout_graceful_shutdown=round(drain_s),
        )
    )

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn handles them itself while it serves, and raises them again under these when it is done
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with listening(host, port) as listener:
            announce(_address_of(listener))
            server.run(sockets=[listener])
            if not server.started:
                raise AppFailed("the server could not start; its log says why")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listening(host: str, port: int) -> socket.socket:
    """A TCP socket that takes connections; port 0: any free one."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # asyncio sets TCP_NODELAY only on sockets that name their protocol: without it an answer waits 40 ms for an ACK
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as err:
        raise AddressInUse(
            f"{host}:{port} cannot be listened on: {err.strerror or err}; choose another with --host and --port"
        ) from err


def _address_of(listener: socket.socket) -> str:
    """The address of a server on that socket, `http://HOST:PORT`."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
