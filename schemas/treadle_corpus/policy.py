"""What a corpus selects: the snapshot policy."""

from __future__ import annotations

import msgspec
from treadle_schemas.snapshot_policy import DEFAULT_THRESHOLD, Dedupe, Use

__all__ = ["Policy"]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A corpus follows one policy.

    `filter` is a SQL boolean expression over a row, None selects every settled row. `dedupe` is by id always; `exact` also keeps
    only the best of rows with equal normalised messages, `near` the best of rows whose similarity is at least `threshold`, both inside
    each side of the split. A version is a function of this, of the rows and of their newest time.
    """

    filter: str | None = None
    dedupe: Dedupe = "id"
    threshold: float = DEFAULT_THRESHOLD
    """Of `near`: the share of equal MinHash minima, an estimate of the Jaccard similarity."""
    require: tuple[str, ...] = ()
    """Metrics that must be observed."""
    rights: tuple[Use, ...] = ()
    """Uses that a row must allow, beside that of its side of the split: train, or eval for held-out rows."""
    retention_s: float | None = None
    """A row leaves when its interaction came so long before the newest graded row. None: it stays."""
    name: str = ""
    """The stored policy that this is; empty for one that was said once. It selects nothing."""

    @property
    def near(self) -> float | None:
        """The threshold where nearly equal rows count as duplicates, else None."""
        return self.threshold if self.dedupe == "near" else None

    def selects_as(self, other: Policy) -> bool:
        """Whether both select the same rows, whatever they are called."""
        return _nameless(self) == _nameless(other)

    def follows(self, held: Policy | None) -> bool:
        """Whether a corpus that follows `held` goes on with this one unasked: it selects the same, or is the same stored policy changed."""
        return held is None or bool(self.name and self.name == held.name) or self.selects_as(held)

    def __str__(self) -> str:
        parts = [f"policy {self.name}"] if self.name else []
        parts.append(f"filter {self.filter!r}" if self.filter else "no filter")
        parts.append(f"dedupe {self.dedupe}" + (f":{self.threshold:g}" if self.dedupe == "near" else ""))
        if self.require:
            parts.append("require " + ",".join(self.require))
        if self.rights:
            parts.append("rights " + ",".join(self.rights))
        if self.retention_s is not None:
            parts.append(f"retention {self.retention_s:g} s")
        return ", ".join(parts)


def _nameless(policy: Policy) -> Policy:
    threshold = policy.threshold if policy.dedupe == "near" else DEFAULT_THRESHOLD
    return msgspec.structs.replace(policy, name="", threshold=threshold)
