"""The errors of exports, beside those of corpora.

TreadleError (treadle_schemas.errors)
└── ExportError
    └── NotATable        values of one column differ in kind, so that Parquet has no column for them
"""

from __future__ import annotations

from treadle_schemas.errors import TreadleError

__all__ = ["ExportError", "NotATable"]


class ExportError(TreadleError):
    """Base of the export errors."""


class NotATable(ExportError):
    """Values of one column differ in kind, so that Parquet has no column for them."""

    exit_code = 2
