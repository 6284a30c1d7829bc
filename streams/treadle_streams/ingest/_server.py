"""The process: a socket, uvicorn around the application, signals."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn
from treadle.settings import Settings
from treadle_schemas.errors import SettingError

from treadle_streams.ingest._access import Access
from treadle_streams.ingest._app import make_app
from treadle_streams.ingest._desk import Desk
from treadle_streams.ingest._settings import IngestSettings
from treadle_streams.ingest.errors import AddressInUse, IngestError

__all__ = ["serve"]

BACKLOG = 2048


def serve(settings: Settings, own: IngestSettings, announce: Callable[[str], None]) -> None:
    """Receive until SIGTERM or SIGINT. `announce` is called with the address once connections are taken.

    At the signal open requests are finished, then Kafka is waited for; what it does not have by then stays in the spool.
    Raises SettingError, IngestError.
    """
    if settings.disabled:
        raise SettingError("TREADLE_DISABLED is set: a receiver that captures nothing would acknowledge what it loses")
    access = Access(own.access_file, github_secret=own.github_secret, workspace=own.workspace)
    access.checked()
    app = make_app(own, access, Desk(settings))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ws="none",
            limit_concurrency=own.connections,
            timeout_graceful_shutdown=round(own.drain_s),
        )
    )

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn handles them itself while it serves, and raises them again under these when it is done
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with _listening(own.host, own.port) as listener:
            host, port = listener.getsockname()[:2]
            announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            server.run(sockets=[listener])
            if not server.started:
                raise IngestError("the receiver could not start; its log says why")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listening(host: str, port: int) -> socket.socket:
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
