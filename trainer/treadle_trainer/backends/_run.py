"""One training by an external trainer, inside a job process.

1. write    the view of the version as JSON lines, in the backend's form
2. fill     the config file and the command
3. run      the command, in the job's process group, hence within its limits; what it prints goes to backend.log
4. check    that it left a model folder
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from treadle_corpus import Corpus, CorpusRef
from treadle_corpus.forms import convert
from treadle_corpus.heldout import HeldOut
from treadle_corpus.views import View, jsonl
from treadle_schemas import SettingError

from treadle_trainer.backends._folder import check_folder
from treadle_trainer.backends._settings import VIEW_OF, Backend, fill_command, fill_text
from treadle_trainer.data.order import drawn_before, mixed_order
from treadle_trainer.data.sources import examples_of, source_view
from treadle_trainer.errors import DataRefused
from treadle_trainer.jobs._command import run_command

if TYPE_CHECKING:
    from treadle_trainer.jobs._spec import TrainSpec
    from treadle_trainer.mixture import Mixture

__all__ = ["train_outside"]

LOG: Final = "backend.log"


def train_outside(spec: TrainSpec, backend: Backend, progress: Callable[..., None]) -> dict[str, Any]:
    """Do the training of `spec` with `backend`. Returns the counts of what it was given and what it left.

    Raises DataRefused where no row is left to train on, SettingError, BackendFailed, FolderRefused, JobStopped.
    """
    backend.checked(spec.method)
    out, rows = Path(spec.out), Path(spec.work) / "rows.jsonl"
    try:
        counts = _write_rows(spec, backend, rows)
        progress(stage="rows", **counts)
        return {**counts, **_made(spec, backend, rows, out, progress)}
    finally:
        rows.unlink(missing_ok=True)  # a copy of the corpus, which no erasure would find


def _made(spec: TrainSpec, backend: Backend, rows: Path, out: Path, progress: Callable[..., None]) -> dict[str, Any]:
    work = Path(spec.work)
    values: dict[str, object] = {
        "rows": rows,
        "out": out,
        "base": spec.base,
        "work": work,
        "config": "",
        **{
            name: getattr(spec, name) for name in ("method", "steps", "lr", "batch", "accumulate", "max_length", "seed")
        },
    }
    if backend.config is not None:
        values["config"] = _write_config(Path(backend.config), work, values)
    command = fill_command(backend.command, values)
    progress(stage="backend", command=shlex.join(command))
    started = time.monotonic()
    run_command(command, work, work / LOG)
    seconds = round(time.monotonic() - started, 3)
    made = check_folder(out)
    return {"form": backend.form, "command": shlex.join(command), "backend_seconds": seconds, **made}


def _write_rows(spec: TrainSpec, backend: Backend, path: Path) -> dict[str, Any]:
    view = VIEW_OF[spec.method]
    with Corpus.open(CorpusRef(Path(spec.corpus), spec.version)) as corpus:
        name = str(corpus)
        made = source_view(corpus, view, newest_rows=spec.newest_rows, **spec.view_options(view))
        heldout = None if spec.mixture is None else HeldOut(corpus, spec.mixture.split)
    lines, unsaid = _lines(name, backend, view, made)
    counts: dict[str, Any] = {"rows": made.rows, "examples": len(made), "unsaid": unsaid}
    if spec.mixture is not None and heldout is not None:
        lines, counts["sources"] = _mixed(spec, spec.mixture, backend, view, heldout, name, lines)
    with path.open("wb") as file:
        file.writelines(jsonl(lines))
    return {**counts, "lines": len(lines)}


def _lines(name: str, backend: Backend, view: str, made: View[Any]) -> tuple[list[Any], dict[str, int]]:
    """The examples of one source in the backend's form, and why some are in none."""
    lines: list[Any] = list(made.examples)
    unsaid: dict[str, int] = {}
    if backend.form != "treadle":
        converted = convert(backend.form, view, made, loose=backend.loose)
        lines, unsaid = list(converted.lines), dict(converted.left_out)
    if not lines:
        reasons = {**made.dropped, **made.left_out, **unsaid}
        said = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "it has none"
        raise DataRefused(f"{name}: no {view} example is left of its {made.rows} train rows ({said})")
    if any(line.get("images") for line in lines):
        raise DataRefused(f"{name}: these rows have images, which JSON lines in form {backend.form} cannot hold")
    return lines, unsaid


def _mixed(
    spec: TrainSpec, mixture: Mixture, backend: Backend, view: str, heldout: HeldOut, name: str, own: list[Any]
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Every line of the corpus once, and of each further source its share of the whole, again and again where it has fewer."""
    made = [(name, own)]
    rows: list[tuple[int | None, dict[str, int]]] = [(None, {})]
    for source in mixture.sources:
        view_of_it = examples_of(source, view, heldout, spec.view_options(view))
        made.append((str(source), _lines(str(source), backend, view, view_of_it)[0]))
        rows.append((view_of_it.rows, dict(view_of_it.dropped)))
    every = [line for _, lines in made for line in lines]
    counts = [len(lines) for _, lines in made]
    order = mixed_order(counts, mixture.weights, spec.seed, 0)
    read = drawn_before(counts, mixture.weights, 1)
    said = [
        {"source": source, "weight": weight, "rows": found, "dropped": dropped, "examples": count, "read": times}
        for (source, _), weight, (found, dropped), count, times in zip(
            made, mixture.weights, rows, counts, read, strict=True
        )
    ]
    return [every[n] for n in order.tolist()], said


def _write_config(template: Path, work: Path, values: dict[str, object]) -> Path:
    try:
        text = template.read_text()
    except (OSError, UnicodeDecodeError) as err:
        raise SettingError(f"backend config={str(template)!r}: cannot be read: {err}") from None
    copy = work / f"config{template.suffix}"
    values["config"] = copy
    copy.write_text(fill_text(text, values))
    return copy
