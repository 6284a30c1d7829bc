"""What a corpus selects: the snapshot policy."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Policy"]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A corpus follows one policy.

    `filter` is a SQL boolean expression over a row, None selects every settled row. `dedupe` is by id always; `exact` also keeps
    only the best of rows with equal messages and tools, inside each side of the split.
    """

    filter: str | None = None
    dedupe: Literal["id", "exact"] = "id"

    def __str__(self) -> str:
        return f"filter {self.filter!r}, dedupe {self.dedupe}" if self.filter else f"no filter, dedupe {self.dedupe}"
