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
from treadle_corpus.views import VIEWS, jsonl
from treadle_schemas import SettingError

from treadle_trainer.backends._folder import check_folder
from treadle_trainer.backends._settings import VIEW_OF, Backend, fill_command, fill_text
from treadle_trainer.data._selection import selection, side_rows
from treadle_trainer.errors import DataRefused
from treadle_trainer.jobs._command import run_command

if TYPE_CHECKING:
    from treadle_trainer.jobs._spec import TrainSpec

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
        options = {n: selection(o) if n == "where" else o for n, o in spec.view_options(view).items()}
        made = VIEWS[view](side_rows(corpus, "train", spec.newest_rows), split="train", **options)
        lines, unsaid = list(made.examples), {}
        if backend.form != "treadle":
            converted = convert(backend.form, view, made, loose=backend.loose)
            lines, unsaid = converted.lines, dict(converted.left_out)
        if not lines:
            reasons = {**made.dropped, **made.left_out, **unsaid}
            said = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "it has none"
            raise DataRefused(f"{corpus}: no {view} example is left of its {made.rows} train rows ({said})")
    if any(line.get("images") for line in lines):
        raise DataRefused(f"{corpus}: these rows have images, which JSON lines in form {backend.form} cannot hold")
    with path.open("wb") as file:
        file.writelines(jsonl(lines))
    return {"rows": made.rows, "examples": len(made), "lines": len(lines), "unsaid": unsaid}


def _write_config(template: Path, work: Path, values: dict[str, object]) -> Path:
    try:
        text = template.read_text()
    except (OSError, UnicodeDecodeError) as err:
        raise SettingError(f"backend config={str(template)!r}: cannot be read: {err}") from None
    copy = work / f"config{template.suffix}"
    values["config"] = copy
    copy.write_text(fill_text(text, values))
    return copy
