"""Exports after an erasure: files that are there as they were written are written again from the version as it is now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from treadle_corpus import Corpus, CorpusRef, VersionMissing
from treadle_corpus.exports import Export, exports, note_export, sha256_of, state_of

from treadle_streams.exporting._chosen import again, lines_of, noted
from treadle_streams.exporting._files import write_lines

__all__ = ["Rewritten", "rewrite_exports"]


class Rewritten(NamedTuple):
    """What became of one export of a version that an erasure changed."""

    export: Export
    """As it was before."""
    outcome: Literal["rewritten", "changed", "gone", "no version"]
    """`changed` and `gone` are files that treadle did not touch; `no version`: what it was exported from was removed."""
    removed: int
    """Lines fewer than before."""

    @property
    def remains(self) -> str:
        """What is left to do for people, in a sentence; empty where nothing is."""
        made = f"exported from v{self.export.version} on {self.export.exported_at[:10]}"
        match self.outcome:
            case "changed":
                return f"{self.export.file} was changed since it was {made}, so it is left alone: it may hold what was erased"
            case "gone":
                return f"{self.export.file}, {made}, is not there any more: wherever it or a copy is, it holds what was erased"
            case "no version":
                return f"{self.export.file}, {made}, cannot be written again, since that version was removed: delete it"
            case _:
                return ""


def rewrite_exports(path: Path, *, dry_run: bool = False) -> Iterator[Rewritten]:
    """Write the exports of the corpus at `path` again whose versions have another content than they had, and yield each of them.

    A file appears whole; killed before its record is, the next call finds out that it is done. Raises CorpusError, OSError.
    """
    for export in exports(path):
        try:
            corpus = Corpus.open(CorpusRef(path, export.version))
        except VersionMissing:
            yield Rewritten(export, "gone" if state_of(export) == "gone" else "no version", 0)
            continue
        with corpus:
            if corpus.manifest.content_hash == export.content_hash:
                continue
            state = state_of(export)
            if state == "gone" or (dry_run and state == "changed"):
                yield Rewritten(export, state, 0)
                continue
            chosen, file = again(export), Path(export.file)
            lines = lines_of(corpus, chosen).lines
            removed = export.lines - len(lines)
            if dry_run:
                yield Rewritten(export, "rewritten", removed)
                continue
            beside = file.with_name(f".{file.stem}.erased{file.suffix}")
            try:
                write_lines(lines, str(beside), nested=chosen.form != "treadle")
                if state == "changed" and sha256_of(beside) != sha256_of(file):
                    yield Rewritten(export, "changed", 0)
                    continue
                beside.replace(file)
            finally:
                beside.unlink(missing_ok=True)
            note_export(path, noted(corpus, chosen, file, len(lines)))
            yield Rewritten(export, "rewritten", removed)
