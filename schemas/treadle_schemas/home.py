"""Where treadle keeps its local state."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final

__all__ = ["home_folder", "home_is"]

_SAID: Final[ContextVar[Path | None]] = ContextVar("treadle_home", default=None)


def home_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The home that `home_is` said; else TREADLE_HOME, or the user's data directory + /treadle. With `environ` what that says alone."""
    said = _SAID.get()
    if environ is None and said is not None:
        return said
    env = os.environ if environ is None else environ
    data = Path(env.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(env.get("TREADLE_HOME") or data / "treadle").expanduser().absolute()


@contextmanager
def home_is(path: Path) -> Iterator[None]:
    """Inside, `home_folder()` is `path`: a command was told so by --home."""
    token = _SAID.set(path)
    try:
        yield
    finally:
        _SAID.reset(token)
