"""What commands say of versions that erasures changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treadle_corpus import Erasure

__all__ = ["erasures_json", "erasures_line"]


def erasures_json(erasures: Sequence[Erasure], version: int) -> list[dict[str, Any]]:
    """The erasures that took rows out of a version."""
    return [
        {
            "erasure": one.number,
            "erased_at": one.erased_at,
            "reason": one.reason,
            "removed": change.removed,
            "rows_before": change.rows_before,
            "content_hash_before": change.before,
        }
        for one in erasures
        if (change := one.versions.get(version)) is not None
    ]


def erasures_line(erasures: Sequence[Erasure], version: int) -> str:
    """`erasure 1 of 2026-11-30 took out 3 rows (asked)`; empty where there was none."""
    return "; ".join(
        f"erasure {one['erasure']} of {one['erased_at'][:10]} took out {one['removed']:,} rows ({one['reason']})"
        for one in erasures_json(erasures, version)
    )
