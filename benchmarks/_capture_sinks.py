"""Where the peers of the capture benchmark send to: an HTTP server in a process of its own, and a real Kafka for treadle.

Every sink can be `up`, `slow`, `hanging` (accepts connections and never answers) or `down` (nothing listens). Slow is for HTTP an answer
after SLOW_S, for Kafka a broker that is stopped (SIGSTOP) for SLOW_S out of every SLOW_S + RUN_S: its clients speak to it directly, so a
proxy in between would slow down nothing but their first connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

SLOW_S = 0.25
RUN_S = 0.05
TAG = re.compile(rb"EVT-\d{8}")


class HttpSink:
    """The server's process, seen from outside."""

    def __init__(self, mode: str = "up", port: int | None = None) -> None:
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._process = subprocess.Popen([sys.executable, __file__, str(self.port), mode])
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"the sink on port {self.port} did not start")
            time.sleep(0.05)

    def unique(self) -> int:
        """How many different tags arrived."""
        with urllib.request.urlopen(f"{self.address}/__count", timeout=30) as answer:
            return int(json.load(answer)["unique"])

    def stop(self) -> None:
        """Nothing listens any more."""
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def hanging() -> Iterator[int]:
    """A port whose connections are accepted, and what they send is never even read."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in held:
                connection.close()


@contextlib.contextmanager
def slowed(pid: int) -> Iterator[None]:
    """Inside, the process runs one sixth of the time."""
    over = threading.Event()

    def stutter() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(SLOW_S)
            os.kill(pid, signal.SIGCONT)
            over.wait(RUN_S)

    thread = threading.Thread(target=stutter)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- the server's process --------------------------------------------------------------------------------------------------


class _Server:
    def __init__(self, slow: bool) -> None:
        self._slow = slow
        self._seen: set[bytes] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                path = head[0].split(" ")[1]
                fields = {
                    k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)
                }
                if "expect" in fields:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await _body(reader, fields)
                kind, answer = self._answer(path, _plain(fields.get("content-encoding", ""), body))
                if self._slow and not path.startswith("/__"):
                    await asyncio.sleep(SLOW_S)
                writer.write(
                    f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(answer)}\r\n\r\n".encode()
                    + answer
                )
                await writer.drain()
        writer.close()

    def _answer(self, path: str, body: bytes) -> tuple[str, bytes]:
        self._seen.update(TAG.findall(body))
        if path == "/__count":
            return "application/json", json.dumps({"unique": len(self._seen)}).encode()
        if "v1/traces" in path:
            return "application/x-protobuf", b""
        if path.endswith("/info"):  # what LangSmith's server says of itself
            limits = {"use_multipart_endpoint": True, "size_limit": 100, "size_limit_bytes": 20_971_520}
            scale = {"scale_up_nthreads_limit": 16, "scale_up_qsize_trigger": 1000, "scale_down_nempty_trigger": 4}
            flags = {"zstd_compression_enabled": True}
            told = {"version": "0.10.0", "instance_flags": flags, "batch_ingest_config": limits | scale}
            return "application/json", json.dumps(told).encode()
        return "application/json", b"{}"


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if "content-length" in fields:
        return await reader.readexactly(int(fields["content-length"]))
    if "chunked" not in fields.get("transfer-encoding", ""):
        return b""
    parts: list[bytes] = []
    while True:
        size = int((await reader.readline()).split(b";")[0], 16)
        part = await reader.readexactly(size + 2)
        if not size:
            return b"".join(parts)
        parts.append(part[:-2])


def _plain(encoding: str, body: bytes) -> bytes:
    if "gzip" in encoding:
        return gzip.decompress(body)
    if "deflate" in encoding:
        return zlib.decompress(body)
    if "zstd" in encoding:
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return body


async def _main(port: int, mode: str) -> None:
    server = await asyncio.start_server(_Server(mode == "slow").serve, "127.0.0.1", port, limit=1 << 26, backlog=512)
    await server.serve_forever()


def main(argv: list[Any]) -> None:
    """`_capture_sinks.py PORT MODE`"""
    asyncio.run(_main(int(argv[0]), argv[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
