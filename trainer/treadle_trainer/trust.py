"""Which labels the gate of a slot believes: kept in its audit log alone, so that nothing but an audited decision changes it.

The first turn that judges by logged rows pins what their labels come from; from then on `treadle release trust` is the only way to another
pin. It is no setting of the policy: whoever may tune the gate may not thereby choose its judge.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
from treadle_corpus import Corpus, CorpusRow
from treadle_schemas import ReleaseEvent

from treadle_trainer.errors import RegistryError
from treadle_trainer.gate import LabelPin, Verdict
from treadle_trainer.registry import Registry

__all__ = ["Labels", "labels_of", "pinned", "trust"]

EVENT: Final = "trusted"


def pinned(registry: Registry) -> LabelPin | None:
    """What the slot's gate believes, None before anything was pinned. Raises RegistryError for an entry that is not one."""
    event = next((e for e in reversed(registry.events()) if e.event == EVENT), None)
    if event is None:
        return None
    try:
        return msgspec.convert(event.evidence.get("labels"), LabelPin)
    except msgspec.ValidationError as err:
        raise RegistryError(f"{registry.path / 'audit.jsonl'}: entry {event.sequence} pins no labels: {err}") from None


def trust(registry: Registry, pin: LabelPin, *, actor: str = "user", reason: str) -> ReleaseEvent:
    """Pin what the gate believes from now on, in the audit log."""
    before = pinned(registry)
    evidence = {
        "labels": msgspec.to_builtins(pin),
        "before": None if before is None else msgspec.to_builtins(before),
    }
    return registry.note(EVENT, None, actor=actor, reason=reason, evidence=evidence)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The rows of a version that a gate may judge by. `refused` counts the others by what labelled them, as they are met."""

    pin: LabelPin
    workspace: str
    slot: str
    first: bool
    """It was pinned by this turn."""
    refused: Counter[str] = field(default_factory=Counter)

    def believes(self, row: CorpusRow) -> bool:
        """Whether the row's labels come from what is pinned."""
        return self.pin.believes(row, self.refused)

    @property
    def evidence(self) -> dict[str, Any]:
        """What the evidence of a turn says of them."""
        return {"pinned": msgspec.to_builtins(self.pin), "first": self.first, "refused": dict(self.refused)}

    def about(self, verdict: Verdict, min_tasks: int) -> Verdict:
        """The verdict, or where rows were left out and too few are left: not enough evidence, with what to do about it."""
        if not self.refused or verdict.tasks >= min_tasks:
            return verdict
        strangers = ", ".join(name for name, _ in self.refused.most_common(4))
        reason = (
            f"the held-out rows are labelled by {strangers}, but the gate trusts {self.pin}: with {verdict.tasks} tasks left it "
            f"decides nothing. If those labels are right: `treadle release trust {self.workspace} --slot {self.slot} --reason ...`, with "
            "--grading N and --grader NAME@VERSION"
        )
        return replace(verdict, decision="not_enough_evidence", reason=reason)


def labels_of(registry: Registry, corpus: Corpus, actor: str) -> Labels:
    """What the gate of a slot believes of a version. The first time that is what the version's held-out rows have, and is recorded."""
    pin = pinned(registry)
    first = pin is None
    if pin is None:
        pin = LabelPin.of(corpus.rows("heldout"))
        if pin is None:  # nothing held out: nothing to believe, nothing to remember
            return Labels(pin=LabelPin(grading=0), workspace=registry.workspace, slot=registry.slot, first=False)
        trust(registry, pin, actor=actor, reason=f"the labels of {corpus}, the first version that the gate judges by")
    return Labels(pin=pin, workspace=registry.workspace, slot=registry.slot, first=first)
