"""What a turn used beside time: calls of judges, and bytes of every kind that it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from treadle.log import Record
from treadle_schemas.codec import OUTCOME, header_map

__all__ = ["Bytes", "Judged", "Window", "windows"]


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of judges. `usd` is what they said themselves that it cost, in US dollars."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    usd: float = 0.0

    def __add__(self, other: Judged) -> Judged:
        return Judged(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})

    @classmethod
    def of(cls, said: Any) -> Judged:
        """What an event says, numbers only; what it does not say, or says otherwise, counts as none."""
        found = said if isinstance(said, Mapping) else {}
        kinds = {"calls": int, "prompt_tokens": int, "completion_tokens": int, "seconds": float, "usd": float}
        values = {name: found.get(name) for name in kinds}
        plain = {n: v for n, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        return cls(**{name: kinds[name](value) for name, value in plain.items()})


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What came in for one version: since the version before it of the same corpus, up to its own record."""

    interactions: int = 0
    outcomes: int = 0
    bytes: int = 0
    """Keys and values of both, as they were sent; compression and headers do not count."""
    judged: Judged = Judged()
    """What graders said of their own calls in the outcomes that they published."""


class Bytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a turn wrote; None: not known. What replicas of a topic take, and checkpoints that are gone, does not count."""

    captured: int | None = None
    """Interactions and outcomes that came in for the version."""
    corpus: int | None = None
    """What the version added to the corpus."""
    columns: int | None = None
    """Token columns that its training made or read. They are derived, and removed again."""
    release: int | None = None
    """The release's folder."""

    @classmethod
    def of(cls, said: Any, version: int | None, window: Window | None) -> Bytes:
        """From a decision's evidence, the record of the version, and what came in for it."""
        found = said if isinstance(said, Mapping) else {}
        return cls(
            captured=None if window is None else window.bytes,
            corpus=version,
            columns=found.get("columns"),
            release=found.get("release"),
        )

    @property
    def written(self) -> int:
        """All that is known of."""
        return self.stored + (self.columns or 0)

    @property
    def stored(self) -> int:
        """What is kept: all but token columns."""
        return sum(kept or 0 for kept in (self.captured, self.corpus, self.release))


def windows(records: Iterable[Record], bounds: Sequence[tuple[int, int]]) -> list[Window]:
    """The sums of the records of `.interactions` and `.outcomes` in each window, which ends with its second append time (milliseconds).

    Windows may overlap, as those of several corpora do. Each record is looked at once.
    """
    sums = [[0, 0, 0] for _ in bounds]
    judged = [Judged() for _ in bounds]
    for record in records:
        value = record.value or b""
        outcome = header_map(record.headers).get("ce_type") == OUTCOME.encode()
        usage = _usage(value) if outcome and b'"usage"' in value else None
        for n, (after_ms, until_ms) in enumerate(bounds):
            if after_ms < record.timestamp_ms <= until_ms:
                sums[n][outcome] += 1
                sums[n][2] += len(value) + len(record.key or b"")
                if usage is not None:
                    judged[n] += usage
    return [Window(interactions=i, outcomes=o, bytes=b, judged=judged[n]) for n, (i, o, b) in enumerate(sums)]


class _Outcome(msgspec.Struct):
    usage: Any = None


def _usage(value: bytes) -> Judged | None:
    try:
        said = msgspec.json.decode(value, type=_Outcome).usage
    except msgspec.DecodeError:
        return None  # the join makes it a dead letter
    return None if said is None else Judged.of({"calls": 1, **said} if isinstance(said, Mapping) else said)
