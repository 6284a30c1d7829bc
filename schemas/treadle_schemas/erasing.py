"""Erasing a subject: who was erased, as the workspace remembers it, and what each store that holds text answers when it is asked to erase.

A workspace remembers erased subjects as keyed hashes with the moment of the erasure, so that a replay, an import or a late duplicate of
what was recorded before brings nobody back, and nobody can read in it who they were. Work that the subject starts afterwards is new.

    digest = HMAC-SHA256(salt, subject), the first 32 hex digits

The salt is the workspace's own and lies beside the list: who may read the settings may try names they know. Where that is too much, let the
PII policy hash subjects (`strict`): then the names tried would have to be keyed hashes themselves.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from treadle_schemas.moments import to_micros

__all__ = ["ErasedSubjects", "Eraser", "ErasureRequest", "Erasures", "StoreReport", "subject_digest"]

_DIGITS: Final = 32
_REMEMBERED: Final = 16_384
"""Subjects whose digests are kept at hand."""


class Erasures(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who was erased in a workspace: by digest, when (RFC 3339). `salt` is 64 hex digits, made with the first erasure."""

    salt: str = ""
    subjects: dict[str, str] = {}


def subject_digest(salt: str, subject: str) -> str:
    """How a workspace with this salt remembers a subject."""
    key = bytes.fromhex(salt)
    return hmac.new(key, subject.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:_DIGITS]


class ErasedSubjects:
    """Asks of an interaction whether it belongs to what was erased."""

    def __init__(self, erasures: Erasures) -> None:
        until = {digest: to_micros(at, f"erased.subjects.{digest}") for digest, at in erasures.subjects.items()}

        @lru_cache(maxsize=_REMEMBERED)
        def until_us(subject: str) -> int | None:
            return until.get(subject_digest(erasures.salt, subject))

        self._until_us = until_us

    def covers(self, subject: str, started_us: int) -> bool:
        """Did the subject's interaction start no later than its erasure?"""
        until = self._until_us(subject)
        return until is not None and started_us <= until


@dataclass(frozen=True, kw_only=True)
class ErasureRequest:
    """What is to go. Whole episodes are the unit: `rows` are all interactions of `episodes`."""

    home: Path
    """TREADLE_HOME."""
    corpus_root: str | None
    """Where corpora lie that are named, not given as paths; None: home/corpora."""
    workspace: str
    subjects: frozenset[str]
    """As records name them: in clear and, where subjects are hashed, hashed."""
    episodes: frozenset[str]
    rows: frozenset[tuple[str, str]]
    """(episode_id, interaction_id)."""
    corpora: frozenset[Path] = frozenset()
    """Corpora that cannot be found below `home` and `corpus_root`: of stored policies, and named by the caller."""
    archives: tuple[str, ...] = ()
    """Where the workspace's log was archived."""
    reason: str
    erased_at: str
    """RFC 3339."""
    dry_run: bool = False
    """Say what would go, and change nothing."""


@dataclass(frozen=True, kw_only=True)
class StoreReport:
    """What one store answers: a corpus, an archive, the live index."""

    store: str
    """What it is, in a word."""
    place: str
    """Path, topic or URL."""
    rows: int = 0
    """Taken out, or in a dry run: would be."""
    bytes: int = 0
    """Freed or written anew; 0: not known."""
    remains: tuple[str, ...] = ()
    """What still holds text, and why, in a sentence each."""
    notes: tuple[str, ...] = ()
    """What somebody should know, and is no text that remains."""


Eraser = Callable[[ErasureRequest], Iterable[StoreReport]]
"""A store's part of an erasure. Can be cut off anywhere and called again. Raises TreadleError.

A package lists its erasers as ERASERS: ((name, "module:attribute"), ...), which `treadle erase` reads.
"""
