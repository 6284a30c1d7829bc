"""What a version holds out, against other sources that are trained on beside it.

A version is free of leaks inside itself. A conversation from elsewhere, another corpus or a file, may still be one that this version, or a
later one of its workspace, is evaluated on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from treadle_schemas.canonical import content_hash
from treadle_schemas.split import Split, split_group

from treadle_corpus._rows import Key
from treadle_corpus.hashing import messages_digest
from treadle_corpus.reader import Corpus

__all__ = ["Foreign", "HeldOut", "Reason"]

Messages = Sequence[dict[str, Any]]
Reason = Literal["heldout_group", "leak"]


class Foreign(NamedTuple):
    """Something to train on from elsewhere: its split group, its conversations (of a pair two), and the row that it is, if it is one."""

    group: str
    conversations: Sequence[Messages]
    key: Key | None = None


class HeldOut:
    """The held-out side of a version, by groups, rows and normalised messages."""

    def __init__(self, corpus: Corpus, split: Split) -> None:
        """Read the held-out rows of `corpus`; `split` is that of its workspace. Raises CorpusDamaged."""
        self._split = split
        self._near = corpus.manifest.policy.near
        self._keys: set[Key] = set()
        self._groups: set[str] = set()
        self._twins: set[bytes] = set()
        self._sketches: list[bytes] = []
        for row in corpus.rows("heldout"):
            messages = row.interaction["messages"]
            self._keys.add((row.episode_id, row.interaction_id))
            # what tells no task is known by its prompt, also where the held-out row tells one
            self._groups |= {row.split_group, split_group(None, messages)}
            self._twins.add(messages_digest(messages))
            if self._near is not None:
                self._sketches.append(_sketch(messages))

    @property
    def identity(self) -> str:
        """The same for the same rules: 16 hex digits."""
        twins = sorted(twin.hex() for twin in self._twins)
        keys = [list(key) for key in sorted(self._keys)]
        return content_hash([self._split.salt, self._split.share, self._near, sorted(self._groups), keys, twins])[:16]

    def judge(self, found: Iterable[Foreign]) -> list[Reason | None]:
        """For each why it must not be trained on, or None.

        - `heldout_group`: the split of the workspace holds its group out, or a held-out row has it or asks the same;
        - `leak`: one of its conversations has the normalised messages of a held-out row, or is that row; where the version removes near
          duplicates, also one that is directly near.
        """
        given = list(found)
        reasons: list[Reason | None] = [self._alone(one) for one in given]
        if self._near is not None and self._sketches:
            from treadle_corpus._near import near_any

            left = [
                (n, messages) for n, one in enumerate(given) if reasons[n] is None for messages in one.conversations
            ]
            near = near_any([_sketch(messages) for _, messages in left], self._sketches, self._near)
            for (n, _), leaks in zip(left, near.tolist(), strict=True):
                if leaks:
                    reasons[n] = "leak"
        return reasons

    def _alone(self, one: Foreign) -> Reason | None:
        if one.group in self._groups or self._split.side(one.group) == "heldout":
            return "heldout_group"
        if one.key in self._keys or any(messages_digest(messages) in self._twins for messages in one.conversations):
            return "leak"
        return None


def _sketch(messages: Messages) -> bytes:
    from treadle_corpus._sketch import sketch

    return sketch(messages)
