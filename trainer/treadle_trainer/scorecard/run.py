"""Making a scorecard of a release, and keeping it beside the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from treadle_corpus import Corpus, CorpusRow
from treadle_corpus.views import every_row
from treadle_schemas import ReleaseId, content_hash
from treadle_schemas.moments import now

from treadle_trainer._files import write_atomically
from treadle_trainer.errors import DataRefused, ReleaseMissing
from treadle_trainer.jobs import JobRunner, ScorecardSpec
from treadle_trainer.policy import ScorecardPolicy
from treadle_trainer.registry import Registry
from treadle_trainer.scorecard.card import Played, Scorecard, make_card
from treadle_trainer.scorecard.evaluators import check_evaluator, split_evaluator
from treadle_trainer.scorecard.metrics import MetricKind, Values
from treadle_trainer.scorecard.render import to_html, to_markdown
from treadle_trainer.scorecard.rows import Measured, read_anchor, select_rows
from treadle_trainer.scorecard.spend import Spend

__all__ = ["Limits", "Measurement", "card_folder", "keep", "measure_models", "rows_for", "score", "stored"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How a job is run: see JobRunner.run."""

    timeout_s: float
    memory_gb: float | None = None
    on_progress: Callable[[dict[str, Any]], None] | None = None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a job measured, and on what."""

    measured: Measured
    values: Values
    judge: Spend | None
    failures: dict[str, str]
    seconds: float


def rows_for(
    corpus: Corpus,
    plan: ScorecardPolicy,
    *,
    deciding: int = 0,
    labels: Sequence[str] = (),
    believed: Callable[[CorpusRow], bool] = every_row,
) -> Measured:
    """The rows of a plan: held-out ones of a version and the anchor suite; with `deciding` those of the gate as well, see select_rows.

    Raises SettingError for an evaluator or an anchor suite that is not there.
    """
    for text in plan.evaluators:
        check_evaluator(text)
    anchor = [] if plan.anchor is None else read_anchor(Path(plan.anchor).expanduser())
    selected = select_rows(corpus, plan.rows, deciding=deciding, labels=labels, believed=believed)
    return Measured(rows=[*selected.rows, *anchor], pairs=selected.pairs)


def measure_models(
    runner: JobRunner,
    job: str,
    models: Mapping[str, Path],
    measured: Measured,
    plan: ScorecardPolicy | None,
    limits: Limits,
    *,
    max_length: int,
) -> Measurement:
    """Measure models in one job, the first beside the last. Without a plan likelihoods alone. Raises JobFailed and what the job refuses."""
    folder = runner.prepare(job)
    write_atomically(folder / "measured.json", msgspec.json.encode(measured))
    spec = ScorecardSpec(
        models={name: str(path.absolute()) for name, path in models.items()},
        rows=str((folder / "measured.json").absolute()),
        max_length=max_length,
        generate=0 if plan is None else plan.generate,
        max_new_tokens=1 if plan is None else plan.max_new_tokens,
        evaluators=() if plan is None else plan.evaluators,
        kl=plan is not None,
    )
    try:
        result = runner.run(
            job,
            spec,
            timeout_s=limits.timeout_s,
            memory_gb=limits.memory_gb,
            on_progress=limits.on_progress,
            should_stop=limits.should_stop,
        )
    finally:
        runner.discard(job, "measured.json")  # a copy of rows, where nobody looks for them
    return Measurement(
        measured=measured,
        values=result["values"],
        judge=None if result["judge"] is None else msgspec.convert(result["judge"], Spend),
        failures=result["failures"],
        seconds=result["seconds"],
    )


def score(
    registry: Registry,
    candidate: ReleaseId,
    against: ReleaseId | None,
    corpus: Corpus,
    runner: JobRunner,
    plan: ScorecardPolicy,
    limits: Limits,
    *,
    max_length: int = 1024,
) -> Scorecard:
    """Measure a release, beside another one of any slot, on the held-out rows of a version; store the scorecard and return it.

    Raises DataRefused where there is nothing to measure on, ReleaseMissing (also for a release without a model folder), ReleaseTampered,
    SettingError, JobFailed.
    """
    measured = rows_for(corpus, plan)
    if not measured.rows and not measured.pairs:
        raise DataRefused(f"{corpus}: has no held-out rows to evaluate on, and no anchor suite was named")
    models = {}
    for name, release in (("champion", against), ("candidate", candidate)):
        if release is not None:
            models[name] = _weights(registry, release)
    key = _key(candidate, against, corpus, plan, max_length)
    found = measure_models(runner, f"scorecard-{key}", models, measured, plan, limits, max_length=max_length)
    card, _ = keep(registry, candidate, against, corpus, plan, found, max_length=max_length)
    return card


def keep(
    registry: Registry,
    candidate: ReleaseId,
    against: ReleaseId | None,
    corpus: Corpus,
    plan: ScorecardPolicy,
    found: Measurement,
    *,
    max_length: int,
    played: Played | None = None,
) -> tuple[Scorecard, Path]:
    """Make the scorecard of what was measured, and store it beside the registry. Returns it with its JSON file."""
    own = [split_evaluator(text)[0] for text in plan.evaluators]
    card = make_card(
        found.measured,
        found.values,
        {name: MetricKind(name.replace("_", " "), 1) for name in own},
        played,
        candidate=str(candidate),
        champion=None if against is None else str(against),
        corpus=corpus.name,
        version=corpus.version,
        content_hash=corpus.manifest.content_hash,
        created_at=now(),
        made={**msgspec.json.decode(msgspec.json.encode(plan)), "max_length": max_length},
        judge=found.judge,
        failures=found.failures,
    )
    folder, key = card_folder(registry, candidate), _key(candidate, against, corpus, plan, max_length)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{key}.html", to_html(card).encode())
    write_atomically(folder / f"{key}.md", to_markdown(card).encode())
    write_atomically(folder / f"{key}.json", msgspec.json.format(msgspec.json.encode(card), indent=1))
    return card, folder / f"{key}.json"


def card_folder(registry: Registry, release: ReleaseId) -> Path:
    """Where the scorecards of a release lie: beside the releases, which never change."""
    return registry.path / "scorecards" / f"r{release.number}"


def stored(registry: Registry, release: ReleaseId) -> Sequence[tuple[Path, Scorecard]]:
    """The scorecards of a release with their JSON files, oldest first."""
    folder = card_folder(registry, release)
    found = [(path, msgspec.json.decode(path.read_bytes(), type=Scorecard)) for path in folder.glob("*.json")]
    return sorted(found, key=lambda each: (each[1].created_at, each[0].name))


def _weights(registry: Registry, release: ReleaseId) -> Path:
    """The verified model folder of a release of any slot. Raises ReleaseMissing for one without weights."""
    home = Registry(registry.root, release.workspace, release.slot)
    manifest = home.verify(release)
    if manifest.kind != "model":
        raise ReleaseMissing(
            f"{release} is a {manifest.kind} release: a scorecard reads a model's own probabilities, and it has no model folder here. "
            "`--against none` measures the other release alone; how it does on logged rows the gate compares (gate.mode=non_inferiority)"
        )
    return home.folder(release)


def _key(
    candidate: ReleaseId, against: ReleaseId | None, corpus: Corpus, plan: ScorecardPolicy, max_length: int
) -> str:
    parts = [str(candidate), str(against), corpus.name, corpus.version, msgspec.to_builtins(plan), max_length]
    return content_hash(parts)[:12]
