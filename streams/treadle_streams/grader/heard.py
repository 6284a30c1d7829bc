"""What a grader hears on `.outcomes`: which verdicts it has published already, and what may not be evaluated."""

from __future__ import annotations

from typing import Final

from treadle.log import Admin, Record, TailReader
from treadle_schemas.codec import OUTCOME, decode
from treadle_schemas.errors import ContractError
from treadle_schemas.events import Interaction, Outcome, read_outcome
from treadle_schemas.moments import to_micros
from treadle_schemas.topics import topic

from treadle_streams.grader.verdict import id_prefix, outcome_id, source_of

__all__ = ["Heard"]

_POLL_S: Final = 0.5


class Heard:
    """Reads `.outcomes` from its beginning and follows it. Holds one id a verdict; other outcomes are passed over undecoded.

    It is what makes a grader repeatable: an interaction whose verdict is in the log is not judged again, whatever was committed. A verdict
    that was retracted stays known, since taking it back is somebody's decision. A denial that was retracted goes on to hold here.
    """

    def __init__(
        self, servers: str, workspace: str, partitions: int, name: str, version: str, fingerprint: str
    ) -> None:
        self._admin = Admin(servers)
        self._topic = topic(workspace, "outcomes")
        self._partitions = [(self._topic, number) for number in range(partitions)]
        self._reader = TailReader(servers, self._admin.start_offsets(self._partitions))
        self._name, self._version = name, version
        self._prefix = id_prefix(name, version)
        self._source = source_of(name, version, fingerprint)
        self._needles = (self._prefix.encode(), b'"rights"')
        self._done: set[str] = set()
        self._rights: dict[tuple[str, str], tuple[int, str]] = {}
        self.other_source: str | None = None
        """The source of an outcome with an id of this version that another prompt, model or program made."""

    def catch_up(self) -> None:
        """Read to the end that the topic has now."""
        ends = self._admin.stable_offsets(self._partitions)
        while any(self._reader.positions[where] < end for where, end in ends.items()):
            for record in self._reader.poll(_POLL_S):
                self._take(record)

    def has_verdict(self, interaction: Interaction) -> bool:
        """Whether the log holds this version's verdict of an interaction."""
        return outcome_id(self._name, self._version, interaction) in self._done

    def may_evaluate(self, interaction: Interaction) -> bool:
        """Whether the right to evaluate is not denied: by the interaction itself, or by a later word. The latest word counts."""
        said: list[tuple[int, str]] = []
        if interaction.rights is not None:
            said.append((-1, interaction.rights.eval))
        named = [("interaction", interaction.interaction_id), ("episode", interaction.episode)]
        named += [("reference", reference) for reference in interaction.references or ()]
        said += [self._rights[target] for target in named if target in self._rights]
        return max(said)[1] != "deny" if said else True

    def close(self) -> None:
        """Let go of the connection."""
        self._reader.close()

    def _take(self, record: Record) -> None:
        value = record.value or b""
        if not any(needle in value for needle in self._needles):
            return
        try:
            event = decode(value, record.headers)
            if event.type != OUTCOME:
                return
            outcome = read_outcome(event.data)
        except ContractError:
            return  # the join makes it a dead letter
        if outcome.kind == "rights" and outcome.name == "eval" and outcome.op == "set":
            self._word(outcome)
        elif outcome.kind == "metric" and outcome.op == "set" and (outcome.outcome_id or "").startswith(self._prefix):
            self._done.add(outcome.outcome_id or "")
            if outcome.source != self._source:
                self.other_source = outcome.source or "none"

    def _word(self, outcome: Outcome) -> None:
        if outcome.interaction_id is not None:
            target = ("interaction", outcome.interaction_id)
        elif outcome.episode_id is not None:
            target = ("episode", outcome.episode_id)
        else:
            target = ("reference", outcome.reference or "")
        said = (to_micros(outcome.observed_at, "$.observed_at"), str(outcome.value))
        self._rights[target] = max(said, self._rights.get(target, said))
