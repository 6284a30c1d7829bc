"""Which code made a release."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

__all__ = ["code_version"]


@cache
def code_version() -> str:
    """`treadle X.Y.Z`, as installed."""
    try:
        return f"treadle {version('treadle')}"
    except PackageNotFoundError:
        return "treadle (not installed)"
