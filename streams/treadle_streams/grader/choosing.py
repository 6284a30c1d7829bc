"""Which interactions a grader judges: sampled by hash, filtered by a condition, and never those that may not be evaluated."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlglot import exp
from treadle_schemas.errors import SettingError
from treadle_schemas.events import Interaction
from treadle_schemas.records import Grade, GradedRow, Provenance

from treadle_streams import filter as filters
from treadle_streams.grader.config import GraderConfig

__all__ = ["Chooser", "sampled"]

_UNKNOWN_YET: Final = ("reward", "completeness", "split")
_NO_GRADE: Final = Grade(metrics={}, reward=None, completeness=0.0, settled=False, grading_version=0)
_NOWHERE: Final = Provenance(
    revision=0, graded_at="", append_ms=0, interaction_offset=0, partition=0, outcome_ids=[], import_id=None
)


class Chooser:
    """Decides by the interaction alone, so that a repetition decides alike."""

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._filter: filters.Filter | None = None
        if config.filter is not None:
            named = {column.name for column in filters.check_syntax(config.filter).find_all(exp.Column)}
            graded = sorted(named & set(_UNKNOWN_YET))
            if graded:
                raise SettingError(f"filter: {', '.join(graded)} of an interaction is not known before it is graded")
            self._filter = filters.compile(config.filter, {}, int(time.time() * 1000))

    def chosen(self, interactions: Sequence[Interaction]) -> list[Interaction]:
        """Those that are in the sample and pass the filter; only true passes."""
        found = [one for one in interactions if sampled(self._config, one)]
        if self._filter is None or not found:
            return found
        rows = [_row(one) for one in found]
        return [one for one, match in zip(found, self._filter.matches(rows), strict=True) if match is True]


def sampled(config: GraderConfig, interaction: Interaction) -> bool:
    """Whether an interaction is in the sample: a hash of the grader's name and the unit, the same for each version."""
    if config.rate >= 1.0:
        return True
    unit = {
        "interaction": f"{interaction.episode}\0{interaction.interaction_id}",
        "episode": interaction.episode,
        "task": interaction.task_id or interaction.episode,
    }[config.sample_by]
    digest = hashlib.sha256(f"{config.name}\0{unit}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < config.rate * 2**64


def _row(interaction: Interaction) -> GradedRow:
    plain: dict[str, Any] = msgspec.to_builtins(interaction)
    return GradedRow(
        episode_id=interaction.episode,
        interaction_id=interaction.interaction_id,
        interaction=plain,
        grade=_NO_GRADE,
        split="train",
        split_group="",
        provenance=_NOWHERE,
    )
