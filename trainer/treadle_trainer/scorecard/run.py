"""Making a scorecard of a release, and keeping it beside the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from treadle_corpus import Corpus
from treadle_schemas import ReleaseId, content_hash
from treadle_schemas.moments import now

from treadle_trainer._files import write_atomically
from treadle_trainer.errors import DataRefused
from treadle_trainer.jobs import JobRunner, ScorecardSpec
from treadle_trainer.registry import Registry
from treadle_trainer.scorecard.card import MetricKind, Scorecard, make_card
from treadle_trainer.scorecard.evaluators import check_evaluator, split_evaluator
from treadle_trainer.scorecard.render import to_html, to_markdown
from treadle_trainer.scorecard.rows import Measured, read_anchor, select_rows

__all__ = ["Plan", "card_folder", "score", "stored"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured. `rows` and `generate` are how many trajectories, `max_length` and `max_new_tokens` tokens."""

    rows: int = 256
    generate: int = 64
    max_new_tokens: int = 128
    max_length: int = 1024
    anchor: str | None = None
    """File of an anchor suite, see rows.read_anchor."""
    evaluators: tuple[str, ...] = ()
    """See scorecard.evaluators."""


def score(
    registry: Registry,
    candidate: ReleaseId,
    against: ReleaseId | None,
    corpus: Corpus,
    runner: JobRunner,
    plan: Plan,
    *,
    timeout_s: float = 3600.0,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Scorecard:
    """Measure a release, beside another one, on the held-out rows of a version; store the scorecard and return it.

    Raises DataRefused where there is nothing to measure on, ReleaseMissing, ReleaseTampered, SettingError, JobFailed.
    """
    from treadle_trainer.turn import model_folder

    for text in plan.evaluators:
        check_evaluator(text)
    selected = select_rows(corpus, plan.rows)
    anchor = [] if plan.anchor is None else read_anchor(Path(plan.anchor).expanduser())
    measured = Measured(rows=[*selected.rows, *anchor], pairs=selected.pairs)
    if not measured.rows and not measured.pairs:
        raise DataRefused(f"{corpus}: has no held-out rows to evaluate on, and no anchor suite was named")
    models = {}
    for name, release in (("champion", against), ("candidate", candidate)):
        if release is not None:
            registry.verify(release)
            models[name] = str(model_folder(registry, release).absolute())
    key = content_hash([str(candidate), str(against), str(corpus.path), corpus.version, msgspec.to_builtins(plan)])[:12]
    job = f"scorecard-{key}"
    folder = runner.prepare(job)
    write_atomically(folder / "measured.json", msgspec.json.encode(measured))
    spec = ScorecardSpec(
        models=models,
        rows=str((folder / "measured.json").absolute()),
        max_length=plan.max_length,
        generate=plan.generate,
        max_new_tokens=plan.max_new_tokens,
        evaluators=plan.evaluators,
    )
    result = runner.run(job, spec, timeout_s=timeout_s, on_progress=on_progress, should_stop=should_stop)
    runner.discard(job, "measured.json")
    card = make_card(
        measured,
        result["values"],
        {split_evaluator(text)[0]: MetricKind(split_evaluator(text)[0], 1) for text in plan.evaluators},
        candidate=str(candidate),
        champion=None if against is None else str(against),
        corpus=str(corpus.path),
        version=corpus.version,
        content_hash=corpus.manifest.content_hash,
        created_at=now(),
        made=msgspec.json.decode(msgspec.json.encode(plan)),
    )
    _store(card_folder(registry, candidate), key, card)
    return card


def card_folder(registry: Registry, release: ReleaseId) -> Path:
    """Where the scorecards of a release lie: beside the releases, which never change."""
    return registry.path / "scorecards" / f"r{release.number}"


def stored(registry: Registry, release: ReleaseId) -> Sequence[tuple[Path, Scorecard]]:
    """The scorecards of a release with their JSON files, oldest first."""
    folder = card_folder(registry, release)
    found = [(path, msgspec.json.decode(path.read_bytes(), type=Scorecard)) for path in folder.glob("*.json")]
    return sorted(found, key=lambda each: (each[1].created_at, each[0].name))


def _store(folder: Path, key: str, card: Scorecard) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{key}.html", to_html(card).encode())
    write_atomically(folder / f"{key}.md", to_markdown(card).encode())
    write_atomically(folder / f"{key}.json", msgspec.json.format(msgspec.json.encode(card), indent=1))
