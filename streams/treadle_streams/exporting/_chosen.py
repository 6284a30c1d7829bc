"""What an export is of: a view of a version in a form. The same choice makes the same lines of the same version."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from treadle_corpus import Corpus, SplitChoice
from treadle_corpus.exports import Export, sha256_of
from treadle_corpus.forms import convert
from treadle_corpus.views import VIEWS, View, every_row
from treadle_schemas.codec import to_json
from treadle_schemas.moments import now

__all__ = ["Chosen", "Lines", "again", "lines_of", "noted"]


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The options of an export. None: the view's own default."""

    view: str
    form: str = "treadle"
    loose: bool = False
    split: SplitChoice = "train"
    rows: Literal["rewarded", "all"] | None = None
    margin: float | None = None
    cap: int | None = None
    min_attempts: int | None = None


class Lines(NamedTuple):
    """What goes into the file, and what does not."""

    lines: list[Any]
    view: View[Any]
    unsaid: dict[str, int]
    """Examples that the form cannot say, by reason."""


def lines_of(corpus: Corpus, chosen: Chosen) -> Lines:
    """The lines of an export of a version. Raises CorpusDamaged."""
    options: dict[str, Any] = {"split": chosen.split}
    if chosen.rows == "all":
        options["where"] = every_row
    if chosen.margin is not None:
        options["min_margin"] = chosen.margin
    if chosen.cap is not None:
        options["cap"] = chosen.cap or None
    if chosen.min_attempts is not None:
        options["min_attempts"] = chosen.min_attempts
    made = VIEWS[chosen.view](corpus.rows(chosen.split), **options)
    if chosen.form == "treadle":
        return Lines(list(made.examples), made, {})
    converted = convert(chosen.form, chosen.view, made, loose=chosen.loose)
    return Lines(list(converted.lines), made, dict(converted.left_out))


def noted(corpus: Corpus, chosen: Chosen, file: Path, lines: int) -> Export:
    """The record of an export that was just written. Raises OSError."""
    said = to_json(chosen)
    return Export(
        file=str(file),
        version=corpus.version,
        content_hash=corpus.manifest.content_hash,
        view=said.pop("view"),
        form=said.pop("form"),
        options=said,
        lines=lines,
        size=file.stat().st_size,
        sha256=sha256_of(file),
        exported_at=now(),
    )


def again(export: Export) -> Chosen:
    """What was chosen for an export."""
    return msgspec.convert({**export.options, "view": export.view, "form": export.form}, Chosen)
