"""The receiver's own settings, beside those of treadle.settings.

| variable | meaning | default |
|---|---|---|
| TREADLE_INGEST_HOST | address that the receiver listens on | 127.0.0.1 |
| TREADLE_INGEST_PORT | port that it listens on; 0: any free one | 8484 |
| TREADLE_INGEST_ACCESS | file of tokens (hashes only) and webhook secrets | TREADLE_HOME/ingest/access.json |
| TREADLE_INGEST_GITHUB_SECRET | secret of GitHub's webhooks for TREADLE_WORKSPACE, beside those in the file | none |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from treadle.settings import Settings
from treadle_schemas.errors import SettingError

__all__ = ["IngestSettings"]

DEFAULT_PORT: Final = 8484


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Where a receiver listens, and how much it takes at a time. `load()` reads the environment."""

    host: str = "127.0.0.1"
    """Address to listen on. Every bind needs tokens."""
    port: int = DEFAULT_PORT
    """Port to listen on; 0 takes a free one."""
    access_file: Path
    """Tokens, as hashes, and webhook secrets; mode 0600."""
    github_secret: str | None = field(default=None, repr=False)
    """A webhook secret of `workspace`, from the environment."""
    workspace: str | None = None
    """The workspace that `github_secret` is for."""
    body_bytes: int = 32 * 1024 * 1024
    """Largest body, before and after decompression."""
    held_bytes: int = 256 * 1024 * 1024
    """Most bytes of bodies in memory at once; beyond it requests are told to come again."""
    body_s: float = 60.0
    """How long a body may take to arrive."""
    workers: int = 8
    """Threads that decode, redact and write. Redaction holds the interpreter's lock: more would not be faster."""
    connections: int = 1024
    """Most connections at once; beyond it they are answered with 503."""
    drain_s: float = 10.0
    """How long SIGTERM waits for open requests, and once more for Kafka. What is left stays in the spool."""

    @classmethod
    def load(cls, settings: Settings, environ: Mapping[str, str] | None = None) -> IngestSettings:
        """Read the environment. Raises SettingError naming the variable."""
        env = os.environ if environ is None else environ
        port = env.get("TREADLE_INGEST_PORT") or str(DEFAULT_PORT)
        if not (port.isascii() and port.isdigit() and int(port) < 65536):
            raise SettingError(f"TREADLE_INGEST_PORT={port!r}: expected a port, 0 to 65535")
        secret = env.get("TREADLE_INGEST_GITHUB_SECRET") or None
        if secret is not None and settings.workspace is None:
            raise SettingError(
                "TREADLE_INGEST_GITHUB_SECRET is set, but not TREADLE_WORKSPACE: which workspace's webhooks does it sign?"
            )
        file = env.get("TREADLE_INGEST_ACCESS") or settings.home / "ingest" / "access.json"
        return cls(
            host=env.get("TREADLE_INGEST_HOST") or "127.0.0.1",
            port=int(port),
            access_file=Path(file).expanduser().absolute(),
            github_secret=secret,
            workspace=settings.workspace,
        )
