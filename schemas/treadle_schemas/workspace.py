"""The settings of a workspace: what its metrics mean, how a reward is made of them, how it splits, what is private."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from treadle_schemas.erasing import Erasures
from treadle_schemas.errors import FieldError, SettingError, shown
from treadle_schemas.events import MAX_METRIC_NAME, OutcomeValue
from treadle_schemas.ids import check_workspace
from treadle_schemas.pii import PiiPolicy, RightsRule
from treadle_schemas.snapshot_policy import SnapshotPolicy
from treadle_schemas.split import Split

__all__ = ["Credit", "Metric", "WorkspaceSettings", "default_metrics"]

DAY_S = 86_400.0


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A declared metric. Times are seconds.

    `horizon_s` is how long a row waits for it; `absent` is the value that absence stands for in rewards (None: NULL, never zero). A
    metric of level `episode` is final only when the episode is over: a row that requires it does not settle before.
    """

    name: str
    type: Literal["bool", "float", "category"] = "float"
    direction: Literal["maximise", "minimise"] = "maximise"
    aggregate: Literal["last", "first", "mean", "max", "min", "sum"] = "last"
    required: bool = False
    horizon_s: float = 7 * DAY_S
    absent: bool | float | str | None = None
    low: float | None = None
    high: float | None = None
    level: Literal["interaction", "episode"] = "interaction"

    def checked(self) -> Metric:
        """Itself, if its declaration makes sense. Raises SettingError naming what does not."""
        if not 1 <= len(self.name.encode(errors="replace")) <= MAX_METRIC_NAME:
            raise SettingError(f"metric {shown(self.name)}: a name has 1 to {MAX_METRIC_NAME} bytes")
        if not 0 <= self.horizon_s < math.inf:
            raise SettingError(f"metric {self.name}: horizon {self.horizon_s} is not a number of seconds of 0 or more")
        if self.type != "float" and (self.low is not None or self.high is not None):
            raise SettingError(f"metric {self.name}: only a float has a range, this is a {self.type}")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise SettingError(f"metric {self.name}: its range {self.low} to {self.high} is empty")
        if self.type == "category" and self.aggregate not in ("last", "first"):
            raise SettingError(f"metric {self.name}: a category has no {self.aggregate}; aggregate it by last or first")
        try:
            self.check(self.absent)
        except FieldError as err:
            raise SettingError(f"metric {self.name}: absent: {err.problem}") from None
        return self

    def check(self, value: OutcomeValue) -> bool | float | str | None:
        """`value` as this metric keeps it. Raises FieldError for a wrong type or range. None (absent by its source) passes."""
        if value is None:
            return None
        if self.type == "float":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise FieldError("$.value", f"{shown(value)} is no number, but metric {self.name} is a float")
            try:
                number = float(value)
            except OverflowError:
                raise FieldError("$.value", f"metric {self.name}: the integer is beyond float64") from None
            if not math.isfinite(number):
                raise FieldError("$.value", f"{number} is no finite number; send null for no value")
            if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
                raise FieldError("$.value", f"{number} is outside {self.low} to {self.high} of metric {self.name}")
            return number
        wanted = bool if self.type == "bool" else str
        if not isinstance(value, wanted):
            raise FieldError("$.value", f"{shown(value)} is no {self.type}, as metric {self.name} is declared")
        return value


def default_metrics() -> tuple[Metric, ...]:
    """A new workspace grades by one required float, `reward`."""
    return (Metric(name="reward", required=True),)


class Credit(msgspec.Struct, frozen=True, kw_only=True):
    """Which steps of an episode an outcome of the whole episode counts for.

    last        the last step
    all         every step, as it is
    discounted  every step; a number times gamma to the power of the steps after it, anything else as it is
    """

    rule: Literal["last", "all", "discounted"] = "last"
    gamma: float = 0.9

    def checked(self) -> Credit:
        """Itself, if it makes sense. Raises SettingError."""
        if not 0.0 < self.gamma <= 1.0:
            raise SettingError(f"credit: gamma {self.gamma} is not in (0, 1]")
        return self


class WorkspaceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that grading and splitting in a workspace depend on. Changing a grading setting raises `grading_version`."""

    workspace: str
    partitions: int = 8
    metrics: tuple[Metric, ...] = msgspec.field(default_factory=default_metrics)
    reward: str = "reward"
    grading_version: int = 1
    grace_s: float = 3600.0
    split: Split = msgspec.field(default_factory=Split)
    created_at: str = ""
    pii: PiiPolicy = msgspec.field(default_factory=PiiPolicy)
    """What is redacted inside the agent's process. A workspace that says nothing masks secrets."""
    rights: tuple[RightsRule, ...] = ()
    """Whose interactions may not be used for training, evaluation or recall."""
    credit: Credit = msgspec.field(default_factory=Credit)
    """How outcomes of whole episodes reach rows."""
    strict: bool = False
    """Refuse outcomes of metrics that are not declared, instead of keeping them as they come."""
    retention_s: float = 90 * DAY_S
    """How long the join keeps the state of a row after the append of its first copy. What comes later is a dead letter."""
    policies: tuple[SnapshotPolicy, ...] = ()
    """Snapshot policies, each of another name. The built-in one is not among them, unless one took its place."""
    archives: tuple[str, ...] = ()
    """Where closed ranges of the log were archived, the last one being where to go on: folders, or URLs of object stores."""

    encrypt: Literal["nothing", "subjects"] = "nothing"
    """Fixed at creation. `subjects`: what is recorded of a subject is sealed with its own key before it leaves the agent's process."""
    erased: Erasures = msgspec.field(default_factory=Erasures)
    """Whose work was erased, as digests."""

    def metric(self, name: str) -> Metric | None:
        """The declared metric of that name, or None."""
        return next((m for m in self.metrics if m.name == name), None)

    def checked(self) -> WorkspaceSettings:
        """Itself, if it makes sense. Raises SettingError naming the setting."""
        check_workspace(self.workspace)
        if not 1 <= self.partitions <= 1024:
            raise SettingError(f"partitions: {self.partitions} is not between 1 and 1024")
        if not 0.0 <= self.split.share < 1.0:
            raise SettingError(f"held-out share: {self.split.share} is not in [0, 1)")
        if not 0 <= self.grace_s < math.inf:
            raise SettingError(f"grace: {self.grace_s} is not a number of seconds of 0 or more")
        for metric in self.metrics:
            metric.checked()
        names = [m.name for m in self.metrics]
        if len(set(names)) < len(names):
            raise SettingError(f"metrics: a name is declared twice in {', '.join(names)}")
        if not any(m.required for m in self.metrics):
            raise SettingError("metrics: none is required, so nothing would ever settle; mark one as required")
        if not 0 < self.retention_s < math.inf:
            raise SettingError(f"retention: {self.retention_s} is not a number of seconds above 0")
        self.credit.checked()
        self.pii.checked()
        for rule in self.rights:
            rule.checked()
        for policy in self.policies:
            policy.checked()
        stored = [p.name for p in self.policies]
        if len(set(stored)) < len(stored):
            raise SettingError(f"policies: a name is there twice in {', '.join(stored)}")
        return self
