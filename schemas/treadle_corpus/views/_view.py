"""What a view gives back: examples in a fixed order, and an account of every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from treadle_schemas.canonical import dumps

from treadle_corpus.reader import CorpusRow, SplitChoice
from treadle_corpus.views._examples import SftExample

__all__ = ["Account", "View", "Where", "every_row", "jsonl", "repetition", "rewarded", "row_key"]

E = TypeVar("E", covariant=True)
Where = Callable[[CorpusRow], bool]


def rewarded(row: CorpusRow) -> bool:
    """reward > 0, the default of the sft view. No reward is not above zero."""
    return row.grade.reward is not None and row.grade.reward > 0


def every_row(row: CorpusRow) -> bool:
    """Any row: for a version whose filter has chosen already."""
    return True


@dataclass(frozen=True, kw_only=True)
class View(Generic[E]):
    """The examples of a view, and what became of the rows it was given: `rows == used + sum(dropped.values())`."""

    name: str
    split: SplitChoice
    examples: Sequence[E]
    rows: int
    used: int
    """Rows that are part of some example."""
    dropped: Mapping[str, int]
    """Rows in no example, by reason."""
    left_out: Mapping[str, int]
    """Examples that could have been made and were not, by reason."""

    def __iter__(self) -> Iterator[E]:
        return iter(self.examples)

    def __len__(self) -> int:
        return len(self.examples)


def row_key(row: CorpusRow) -> tuple[str, str]:
    """(episode_id, interaction_id)."""
    return (row.episode_id, row.interaction_id)


@dataclass
class Account:
    """The bookkeeping of one view while it is made."""

    name: str
    split: SplitChoice
    rows: list[CorpusRow] = field(default_factory=list)
    _used: set[tuple[str, str]] = field(default_factory=set)
    _reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    _others: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, name: str, rows: Iterable[CorpusRow], split: SplitChoice) -> Account:
        """Take the rows of one side, sorted by id; the others are counted by the name of their side."""
        account = cls(name, split)
        for row in rows:
            if split in ("all", row.split):
                account.rows.append(row)
            else:
                account._others[row.split] += 1
        account.rows.sort(key=row_key)
        return account

    def use(self, row: CorpusRow) -> None:
        """The row is part of an example."""
        self._used.add(row_key(row))

    def drop(self, row: CorpusRow, reason: str) -> None:
        """The row is in no example for this reason, unless it is used after all. The first reason counts."""
        self._reasons.setdefault(row_key(row), reason)

    def close(self, examples: Sequence[Any]) -> View[Any]:
        """The finished view."""
        dropped = Counter(self._others)
        for row in self.rows:
            if row_key(row) not in self._used:
                dropped[self._reasons[row_key(row)]] += 1
        return View(
            name=self.name,
            split=self.split,
            examples=examples,
            rows=len(self.rows) + self._others.total(),
            used=len(self._used),
            dropped=dict(sorted(dropped.items())),
            left_out=dict(sorted(self.left_out.items())),
        )


def repetition(examples: Iterable[SftExample]) -> float:
    """How many messages the logged steps held for each message in the examples; 1.0 where no step extends another.

    A chat of n steps that resends its history holds about n / 2 times the messages of its one trajectory.
    """
    sent = kept = 0
    for example in examples:
        sent += sum(example["steps"])
        kept += len(example["messages"])
    return sent / kept if kept else 1.0


def jsonl(examples: Iterable[Any]) -> Iterator[bytes]:
    """One JSON line an example."""
    for example in examples:
        yield dumps(example) + b"\n"
