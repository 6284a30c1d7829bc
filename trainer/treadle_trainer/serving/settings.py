"""The proxy's own settings, beside those of treadle.settings.

| variable | meaning | default |
|---|---|---|
| TREADLE_SERVE_HOST | address that the proxy listens on; another than loopback needs a token | 127.0.0.1 |
| TREADLE_SERVE_PORT | port that it listens on; 0: any free one | 8485 |
| TREADLE_SERVE_TOKEN | what clients give as their API key | none |
| TREADLE_SERVE_UPSTREAM_KEY | API key for `--upstream` and `--vllm` | none |
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from treadle_schemas.errors import SettingError

__all__ = ["ServeSettings"]

DEFAULT_PORT: Final = 8485


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where the proxy listens, and whom it lets in. `load()` reads the environment."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str | None = field(default=None, repr=False)
    """Clients send it as `Authorization: Bearer`. None: everybody on this machine may ask."""
    upstream_key: str | None = field(default=None, repr=False)
    body_bytes: int = 32 * 1024 * 1024
    """Largest request."""
    answer_s: float = 600.0
    """Longest silence of a model, before its first byte and between two."""

    @classmethod
    def load(
        cls, environ: Mapping[str, str] | None = None, *, host: str | None = None, port: int | None = None
    ) -> ServeSettings:
        """Read the environment; `host` and `port` win over it. Raises SettingError naming the variable."""
        env = os.environ if environ is None else environ
        text = env.get("TREADLE_SERVE_PORT") or str(DEFAULT_PORT)
        if not (text.isascii() and text.isdigit() and int(text) < 65536):
            raise SettingError(f"TREADLE_SERVE_PORT={text!r}: expected a port, 0 to 65535")
        made = cls(
            host=host or env.get("TREADLE_SERVE_HOST") or "127.0.0.1",
            port=int(text) if port is None else port,
            token=env.get("TREADLE_SERVE_TOKEN") or None,
            upstream_key=env.get("TREADLE_SERVE_UPSTREAM_KEY") or None,
        )
        if made.token is None and not _is_loopback(made.host):
            raise SettingError(
                f"{made.host} can be reached from other machines; set TREADLE_SERVE_TOKEN to what clients shall give as their API key"
            )
        return made


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
