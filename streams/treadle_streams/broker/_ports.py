"""Ports on the loopback interface."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

HOST = "127.0.0.1"

# Below Linux's range for outgoing connections (32768-60999): a client that retries a port inside it while the broker is
# away can be given that very port as its own, connect to itself, and keep the broker from coming back.
_FIRST, _LAST = 20_000, 31_999


@contextlib.contextmanager
def reserved(count: int) -> Iterator[list[int]]:
    """``count`` free ports, held (bound, never listening) until the block ends, so that no two starters get one."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for _ in range(4 * (_LAST - _FIRST)):
            port = _FIRST + int.from_bytes(os.urandom(4), "big") % (_LAST - _FIRST + 1)
            sock = socket.socket()
            # Without SO_REUSEADDR: two reservations of one port must collide.
            try:
                sock.bind((HOST, port))
            except OSError:
                sock.close()
                continue
            held.enter_context(contextlib.closing(sock))
            ports.append(port)
            if len(ports) == count:
                break
        else:
            raise OSError(f"no {count} free ports between {_FIRST} and {_LAST} on {HOST}")
        yield ports


def is_free(port: int) -> bool:
    """True if a server could listen on the port now. Connections of a former server in TIME_WAIT do not count."""
    with contextlib.closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
            sock.listen(1)
        except OSError:
            return False
        return True


def is_open(port: int) -> bool:
    """True if something accepts connections on the port."""
    with contextlib.closing(socket.socket()) as sock:
        sock.settimeout(0.2)
        return sock.connect_ex((HOST, port)) == 0
