"""The training policy of a slot: when and how candidates are made, what they must prove, and how the champion is watched.

Stored as `registry/WORKSPACE/SLOT/policy.json` below treadle's home. It is read anew for each job, so a change needs no restart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from treadle_schemas import SettingError, content_hash
from treadle_schemas.ids import check_slot, check_workspace

from treadle_trainer._files import write_atomically
from treadle_trainer.backends import Backend
from treadle_trainer.launch import Launch
from treadle_trainer.mixture import MixtureSource, check_sources

__all__ = [
    "CanaryPolicy",
    "FastMetric",
    "GatePolicy",
    "GuardMetric",
    "GuardPolicy",
    "ScorecardPolicy",
    "TrainingPolicy",
    "policy_path",
]


class GuardMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A metric of the evaluation that a candidate must not worsen."""

    tolerance: float = 0.0
    """How much worse it may be, in its own unit."""
    direction: Literal["maximise", "minimise"] = "maximise"
    """Which way is better."""


class GatePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate must prove."""

    alpha: float = 0.05
    """Chance of promoting a candidate that is no better, per generation of held-out groups."""
    min_tasks: int = 64
    """Fewest held-out tasks on which anything but "not enough evidence" is said."""
    min_effect: float = 0.0
    """The lower bound must be above this, in the unit of the scores."""
    mode: Literal["superiority", "non_inferiority"] = "superiority"
    """Must it be better, or not worse by more than `margin` and cheaper or faster?"""
    margin: float = 0.02
    """With `non_inferiority`: how much worse it may be, in the unit of the scores."""
    savings: list[str] = []
    """With `non_inferiority`: metrics of the evaluation of which less is better; one of them must fall."""
    saving_share: float = 0.0
    """With `non_inferiority`: by at least this share of the champion's."""
    usd_per_million_tokens: float | None = None
    """Beside a hosted champion: what a million tokens that a candidate writes cost to serve. None: the evaluator says `cost`."""
    slices: list[str] = []
    """Labels that divide the tasks into slices which must not get worse: keys of a task's data, or of a row's tags."""
    slice_tolerance: float = 0.0
    """How much worse a slice may be, in the unit of the scores."""
    guards: dict[str, GuardMetric] = {}
    """Metrics of the evaluation that must not get worse, by name."""
    regression_alpha: float = 0.05
    """Chance of refusing a candidate for slices and guards of which none is worse, all together."""


class CanaryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a canary is tried on live traffic."""

    share: float = 0.1
    """Share of the episodes that it serves."""
    alpha: float = 0.05
    """Chance of ever promoting a canary that is no better than the champion."""
    min_effect: float = 0.0
    """It must be better by more than this, after scaling to [0, 1]."""
    max_episodes: int = 5000
    """Episodes of it after which, undecided, it is withdrawn."""


class FastMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that an interaction tells at once, of which less is better, scaled so that 0 is none and 1 is `high` or more."""

    tolerance: float = 0.05
    """How much worse it may be, after scaling."""
    high: float = 1.0
    """Value that counts as 1: seconds of `latency_s`, US dollars of `cost`. `error` and `invalid_calls` are 0 or 1 by themselves."""


FAST_METRICS = ("error", "invalid_calls", "latency_s", "cost")


class GuardPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the live champion is watched on `.progress`."""

    metric: str = "reward"
    """Metric whose live mean must not fall. `reward` is the row's reward where no metric has that name."""
    age_s: float = 3600.0
    """Age, on the clock of the partition since the row's append, at which each row enters once."""
    tolerance: float = 0.05
    """How far below the predecessor's mean the champion may be, after scaling to [0, 1]."""
    alpha: float = 0.01
    """Chance of ever rolling back a champion that is not below the floor."""
    min_baseline: int = 64
    """Fewest rows of the predecessor that make a floor."""
    baseline_rows: int = 512
    """The floor is made of the predecessor's newest rows, at most so many."""
    low: float = 0.0
    """Value of the metric that counts as 0."""
    high: float = 1.0
    """Value of the metric that counts as 1."""
    fast: dict[str, FastMetric] = msgspec.field(
        default_factory=lambda: {"error": FastMetric(), "invalid_calls": FastMetric()}
    )
    """What is watched from the moment an interaction is there: `error`, `invalid_calls`, `latency_s`, `cost`."""


class ScorecardPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is measured of every candidate beside the champion, see docs/evaluation.md."""

    rows: int = 128
    """Held-out trajectories, the newest."""
    generate: int = 32
    """How many of them are answered anew; 0: none."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    anchor: str | None = None
    """File of an anchor suite: conversations that are always a slice."""
    evaluators: tuple[str, ...] = ()
    """Metrics of one's own: `NAME=module:function`, `NAME=!command`, `NAME=?URL MODEL RUBRIC_FILE`."""
    timeout_s: float = 600.0
    """Longest run; what takes longer fails, and the turn goes on without it."""

    def checked(self) -> ScorecardPolicy:
        """Itself, if it makes sense. Raises SettingError naming the setting."""
        rules = [
            (self.rows >= 1, "rows", self.rows, "at least 1"),
            (self.generate >= 0, "generate", self.generate, "at least 0"),
            (self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1"),
            (self.timeout_s > 0, "timeout_s", self.timeout_s, "above 0"),
        ]
        for holds, name, value, wanted in rules:
            if not holds:
                raise SettingError(f"policy scorecard.{name}={value!r}: expected {wanted}")
        names = [text.partition("=")[0] for text in self.evaluators]
        for text, name in zip(self.evaluators, names, strict=True):
            if not name.isidentifier() or not text.partition("=")[2].strip():
                raise SettingError(f"policy scorecard.evaluators: {text!r}: expected NAME=...")
            if name in RESERVED_METRICS or names.count(name) > 1:
                raise SettingError(f"policy scorecard.evaluators: {name!r} is the name of another metric")
        return self


RESERVED_METRICS = ("log_likelihood", "preference", "exact", "tool_name", "arguments", "format", "length", "kl")
"""What a scorecard always measures, so that no evaluator may have the name."""


class TrainingPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy of one slot. The defaults train the demo's tiny model; a real model wants its own learning rate."""

    method: str = "sft"
    """Training method: sft, rwsft, dpo, kto, reward, rl or grpo."""
    steps: int = 80
    """Optimiser steps of a job."""
    lr: float = 2e-3
    """Peak learning rate, linear decay after 5 warm-up steps."""
    batch: int = 32
    """Examples a step and device; with `packed`, rows of `max_length` tokens."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    packed: bool = False
    """Put several sequences into one row of `max_length` tokens, where the method allows it."""
    max_length: int = 1024
    """Longest sequence in tokens; a longer trajectory is split at turns."""
    save_steps: int | None = None
    """Steps between checkpoints, from which a training that was cut short goes on. None: only when it is asked to end."""
    backend: Backend | None = None
    """An external trainer: `{"command": ..., "form": ...}`. None: TRL, here."""
    lora_rank: int | None = None
    """Train low-rank adapters of this rank, merged at the end. None: all weights."""
    beta: float = 0.1
    """How near to the model that it begins with: beta of dpo and kto, weight of the divergence in rl and grpo."""
    clip: float = 0.2
    """rl, grpo: how far a token's probability may move from the logged one before it stops counting."""
    margin: float = 0.0
    """dpo, reward: least difference of rewards in a pair."""
    cap: int | None = 16
    """dpo, reward: at most so many pairs of a task. None: all."""
    reward_function: str | None = None
    """grpo: `pkg.module:function` that scores answers to the prompts of a version. None: the environment scores whole attempts."""
    group: int = 8
    """grpo: attempts at one prompt or task, which are compared with each other. `batch` counts attempts."""
    max_new_tokens: int = 32
    """grpo: most tokens that are sampled a turn."""
    temperature: float = 1.0
    """grpo: temperature of the sampling."""
    prompts: Literal["task", "row"] = "task"
    """grpo with a reward function: one prompt a task, that of its newest row, or one of every row."""
    launch: Launch | None = None
    """Several processes of this machine: `{"processes": N, "strategy": "ddp"}`. None: one."""
    rows: Literal["rewarded", "all"] = "rewarded"
    """Which train rows to imitate: those with a reward above zero, or all, where the corpus's filter has chosen already."""
    newest_rows: int | None = None
    """Train on at most so many rows, the newest by ended_at. None: all."""
    mixture: tuple[MixtureSource, ...] = ()
    """Further corpora and anchor sets, `[{"corpus": "PATH@v3", "weight": 0.2}, {"anchor": "/PATH.jsonl", "weight": 0.1}]`."""
    seed: int = 1
    """Seed of training, evaluation tasks and sampling, together with the corpus version."""
    base: str | None = None
    """Model folder to train from. None: the champion; `previous`: the newest candidate, so that each job goes on from the last."""
    corpus: str | None = None
    """Corpus path whose new versions start jobs. None: every corpus of the workspace."""
    trigger: Literal["rows", "schedule", "manual"] = "rows"
    """When a new corpus version starts a job: at `min_new_rows`, at most every `every_s`, or never (`treadle job submit` does)."""
    every_s: float = 86_400.0
    """With `schedule`: seconds between the beginnings of two jobs."""
    min_new_rows: int = 1
    """Newly settled rows since the last job that start the next one."""
    environment: str | None = None
    """`pkg.module:Class` in which candidates are evaluated. Without one, held-out rows are."""
    evaluator: str = "treadle_trainer.evaluate.player:evaluate"
    """`pkg.module:function(model_folder, environment, tasks, seed) -> list[float]`."""
    eval_tasks: int = 256
    """Fresh held-out tasks of an evaluation; without an environment, at most so many held-out rows."""
    allow_offline_promotion: bool = False
    """Whether held-out likelihood alone, without an environment, may promote."""
    timeout_s: float = 3600.0
    """Longest run of one job process."""
    memory_gb: float | None = None
    """Most memory of one job process and all that it starts, in 10^9 bytes. None: what the machine has."""
    promotion: Literal["auto", "approval", "canary"] = "auto"
    """What happens to a candidate that the gate finds better: it serves, waits for a person, or is tried on live traffic first."""
    deploy: tuple[str, ...] = ()
    """Addresses of `treadle serve` (`http://HOST:PORT`) that load and probe a release before its alias moves."""
    gate: GatePolicy = GatePolicy()
    """What a candidate must prove."""
    scorecard: ScorecardPolicy | None = ScorecardPolicy()
    """What is measured of every candidate besides. None: nothing."""
    canary: CanaryPolicy = CanaryPolicy()
    """How a canary is tried on live traffic."""
    guard: GuardPolicy | None = GuardPolicy()
    """How the champion is watched. None: not at all."""

    def checked(self) -> TrainingPolicy:
        """Itself, if it makes sense. Raises SettingError naming the setting."""
        rules = [
            (self.steps >= 1, "steps", self.steps, "at least 1"),
            (self.batch >= 1, "batch", self.batch, "at least 1"),
            (self.accumulate >= 1, "accumulate", self.accumulate, "at least 1"),
            (self.save_steps is None or self.save_steps >= 1, "save_steps", self.save_steps, "at least 1"),
            (self.lora_rank is None or self.lora_rank >= 1, "lora_rank", self.lora_rank, "at least 1"),
            (self.beta >= 0, "beta", self.beta, "at least 0"),
            (0 < self.clip < 1, "clip", self.clip, "between 0 and 1"),
            (self.margin >= 0, "margin", self.margin, "at least 0"),
            (self.cap is None or self.cap >= 1, "cap", self.cap, "at least 1"),
            (self.lr > 0, "lr", self.lr, "above 0"),
            (self.group >= 2, "group", self.group, "at least 2: attempts are compared with each other"),
            (self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1"),
            (self.temperature > 0, "temperature", self.temperature, "above 0"),
            (self.eval_tasks >= 1, "eval_tasks", self.eval_tasks, "at least 1"),
            (self.newest_rows is None or self.newest_rows >= 1, "newest_rows", self.newest_rows, "at least 1"),
            (self.timeout_s > 0, "timeout_s", self.timeout_s, "above 0"),
            (self.memory_gb is None or self.memory_gb > 0, "memory_gb", self.memory_gb, "above 0"),
            (self.every_s > 0, "every_s", self.every_s, "above 0"),
            (
                all(target.startswith(("http://", "https://")) for target in self.deploy),
                "deploy",
                list(self.deploy),
                "addresses such as http://127.0.0.1:8485",
            ),
            (0 < self.gate.alpha < 0.5, "gate.alpha", self.gate.alpha, "between 0 and 0.5"),
            (
                0 < self.gate.regression_alpha < 0.5,
                "gate.regression_alpha",
                self.gate.regression_alpha,
                "between 0 and 0.5",
            ),
            (self.gate.margin > 0, "gate.margin", self.gate.margin, "above 0"),
            (0 <= self.gate.saving_share < 1, "gate.saving_share", self.gate.saving_share, "at least 0, below 1"),
            (
                self.gate.mode == "superiority" or self.gate.savings != [],
                "gate.savings",
                self.gate.savings,
                "at least one metric where gate.mode is non_inferiority",
            ),
            (
                self.gate.usd_per_million_tokens is None or self.gate.usd_per_million_tokens >= 0,
                "gate.usd_per_million_tokens",
                self.gate.usd_per_million_tokens,
                "at least 0",
            ),
            (0 < self.canary.share <= 0.5, "canary.share", self.canary.share, "above 0, at most 0.5"),
            (0 < self.canary.alpha < 0.5, "canary.alpha", self.canary.alpha, "between 0 and 0.5"),
            (-1 < self.canary.min_effect < 1, "canary.min_effect", self.canary.min_effect, "between -1 and 1"),
            (self.canary.max_episodes >= 1, "canary.max_episodes", self.canary.max_episodes, "at least 1"),
        ]
        if self.guard is not None:
            guard = self.guard
            rules += [
                (0 < guard.alpha < 0.5, "guard.alpha", guard.alpha, "between 0 and 0.5"),
                (guard.age_s >= 0, "guard.age_s", guard.age_s, "at least 0"),
                (guard.low < guard.high, "guard.low", guard.low, "below guard.high"),
                (-1 < guard.tolerance < 1, "guard.tolerance", guard.tolerance, "between -1 and 1"),
                (set(guard.fast) <= set(FAST_METRICS), "guard.fast", sorted(guard.fast), f"among {FAST_METRICS}"),
                (all(m.high > 0 for m in guard.fast.values()), "guard.fast", sorted(guard.fast), "with high above 0"),
                (guard.min_baseline >= 1, "guard.min_baseline", guard.min_baseline, "at least 1"),
                (
                    guard.min_baseline <= guard.baseline_rows,
                    "guard.min_baseline",
                    guard.min_baseline,
                    "at most baseline_rows",
                ),
            ]
        for holds, name, value, wanted in rules:
            if not holds:
                raise SettingError(f"policy {name}={value!r}: expected {wanted}")
        if self.scorecard is not None:
            self.scorecard.checked()
        if self.method == "grpo" and self.backend is None:
            self._check_sampling()
        check_sources(self.mixture)
        if self.mixture and self.method == "grpo" and self.backend is None:
            raise SettingError(
                "policy mixture: grpo learns from what it samples; a mixture is for methods that read rows"
            )
        if self.backend is not None:
            self.backend.checked(self.method)
            if self.launch is not None:
                raise SettingError(
                    "policy launch: is for training here; with a backend its command starts the processes"
                )
        if self.launch is not None:
            self.launch.checked()
            if self.launch.strategy == "fsdp" and self.lora_rank is not None:
                raise SettingError(
                    "policy lora_rank: an adapter is merged by one process, and with fsdp none has the whole model"
                )
        return self

    def _check_sampling(self) -> None:
        """What only a method that samples asks for. Raises SettingError."""
        if self.reward_function is None and self.environment is None:
            raise SettingError(
                "policy method='grpo': wants what scores its attempts, reward_function=pkg.module:function or "
                "environment=pkg.module:Class"
            )
        if self.packed:
            raise SettingError("policy packed=True: grpo trains on what it samples, and there is nothing to pack")
        ranks = 1 if self.launch is None else self.launch.processes
        attempts = self.batch * self.accumulate * ranks
        if attempts % self.group:
            raise SettingError(
                f"policy group={self.group}: a step has batch x accumulate x processes = {self.batch} x {self.accumulate} x {ranks} "
                f"= {attempts} attempts, which are no whole groups"
            )
        if self.launch is not None and self.launch.strategy == "fsdp":
            raise SettingError(
                "policy launch.strategy='fsdp': grpo samples with a whole model in each process; set launch.strategy=ddp"
            )

    @property
    def fingerprint(self) -> str:
        """Hash of what shapes a job: everything but the trigger, how often it is saved, and what happens after the gate."""
        shaping = msgspec.to_builtins(self)
        for name in (
            "guard",
            "canary",
            "promotion",
            "deploy",
            "trigger",
            "every_s",
            "min_new_rows",
            "corpus",
            "timeout_s",
            "memory_gb",
            "save_steps",
        ):
            del shaping[name]
        for name in ("backend", "launch"):
            if shaping[name] is None:
                del shaping[name]
        # it decides nothing but by the metrics that the gate names
        if self.scorecard == ScorecardPolicy() or not (self.gate.guards or self.gate.savings):
            del shaping["scorecard"]
        usual = TrainingPolicy()
        for name in ("reward_function", "group", "max_new_tokens", "temperature", "prompts"):
            if shaping[name] == getattr(usual, name):  # policies of before these were there stay what they were
                del shaping[name]
        if not self.mixture:
            del shaping["mixture"]
        if shaping["gate"]["usd_per_million_tokens"] is None:
            del shaping["gate"]["usd_per_million_tokens"]
        return content_hash(shaping)

    def changed(self, settings: dict[str, Any]) -> TrainingPolicy:
        """A copy with dotted names set, `{"steps": "40", "gate.alpha": "0.01"}`; text is read as JSON where it is JSON.

        Raises SettingError naming the setting.
        """
        plain = msgspec.to_builtins(self)
        for name, value in settings.items():
            place = plain
            *parents, last = name.split(".")
            for parent in parents:
                if place.get(parent) is None and parent in _OPTIONAL:
                    place[parent] = dict(_OPTIONAL[parent])
                place = place.get(parent)
                if not isinstance(place, dict):
                    raise SettingError(f"policy {name}: there is no such setting")
            place[last] = _value(value)
        return _convert(plain, "policy").checked()

    def save(self, root: Path, workspace: str, slot: str) -> Path:
        """Write the policy of a slot below the registry root. Returns the file."""
        path = policy_path(root, workspace, slot)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(self.checked()), indent=2) + b"\n")
        return path

    @classmethod
    def load(cls, root: Path, workspace: str, slot: str) -> TrainingPolicy | None:
        """The policy of a slot, or None where it has none. Raises SettingError naming file and field."""
        path = policy_path(root, workspace, slot)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _convert(msgspec.json.decode(text), os.fspath(path)).checked()
        except msgspec.DecodeError as err:
            raise SettingError(f"{path}: not JSON: {err}") from err


_OPTIONAL: Mapping[str, dict[str, Any]] = {
    "guard": msgspec.to_builtins(GuardPolicy()),
    "scorecard": msgspec.to_builtins(ScorecardPolicy()),
    "backend": {"command": ""},
    "launch": {},
}
"""What a part that may be null begins with, when one of its settings is written."""


def policy_path(root: Path, workspace: str, slot: str) -> Path:
    """Where the policy of a slot lies below the registry root."""
    return root / check_workspace(workspace) / check_slot(slot) / "policy.json"


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value


def _convert(plain: Any, where: str) -> TrainingPolicy:
    try:
        return msgspec.convert(plain, TrainingPolicy)
    except msgspec.ValidationError as err:
        raise SettingError(f"{where}: {err}") from None
