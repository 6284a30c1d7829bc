"""Releases that were trained on given rows: by the corpus versions of each, and through the releases that it was trained from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from treadle_corpus import Corpus, CorpusError
from treadle_corpus.target import CorpusRef, resolve_target

from treadle_trainer.lineage import Learnt, heirs, learnt_from
from treadle_trainer.registry import Registry, slots

__all__ = ["concerned_releases"]

Row = tuple[str, str]
"""(episode_id, interaction_id)."""


def concerned_releases(
    home: Path,
    corpus_root: Path,
    workspace: str,
    rows: Collection[Row],
    subjects: Collection[str],
    tell: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """The releases with a corpus version that holds one of the rows, or one of the subjects: release, champion, corpus, rows.

    The rows are those of `workspace`; a release of another one is found where its mixture draws from a corpus of this. `corpus` and `rows`
    are of the first such version. `rows` None: the corpus cannot be read, of which `tell` hears; such a release counts as concerned.
    Raises RegistryError.
    """
    held: dict[tuple[str, int | None], int | None] = {}
    for space, slot in slots(home / "registry"):
        registry = Registry(home / "registry", space, slot)
        champion = str(registry.champion)
        manifests = {manifest.release: manifest for manifest in registry.releases()}
        direct: dict[str, tuple[Learnt, int | None]] = {}
        for manifest in manifests.values():
            for one in learnt_from(manifest):
                place = (one.corpus, one.version)
                if one.workspace != workspace:
                    continue
                if place not in held:
                    held[place] = _held(corpus_root, place, workspace, rows, subjects, tell)
                if held[place] != 0:
                    direct.setdefault(manifest.release, (one, held[place]))
        for manifest, source in heirs(direct, manifests):
            learnt, count = direct[source.release]
            yield {
                "release": manifest.release,
                "champion": manifest.release == champion,
                "corpus": f"{learnt.corpus}@v{learnt.version}"
                + ("" if source is manifest else f" (through {source.release})"),
                "rows": count,
            }


def _held(
    corpus_root: Path,
    place: tuple[str, int | None],
    workspace: str,
    rows: Collection[Row],
    subjects: Collection[str],
    tell: Callable[[str], None],
) -> int | None:
    corpus, version = place
    try:
        opened = Corpus.open(CorpusRef(resolve_target(corpus, corpus_root), version))
        if opened.manifest.workspace != workspace:  # the same ids in another workspace are other rows
            return 0
        return sum(
            (row.episode_id, row.interaction_id) in rows or row.interaction.get("subject") in subjects
            for row in opened.rows("all")
        )
    except CorpusError as err:
        tell(f"{corpus}@v{version} cannot be read, so its releases count as concerned: {err}")
        return None
