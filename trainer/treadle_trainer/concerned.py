"""Releases that were trained on given rows: by the corpus version of each, and through the releases that it was trained from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from treadle_corpus import Corpus, CorpusError
from treadle_corpus.target import CorpusRef, resolve_target

from treadle_trainer.lineage import heirs
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
    """The releases whose corpus version holds one of the rows, or one of the subjects: release, champion, corpus, rows.

    `rows` None: the corpus cannot be read, of which `tell` hears; such a release counts as concerned. Raises RegistryError.
    """
    held: dict[tuple[str, int | None], int | None] = {}
    for _, slot in slots(home / "registry", workspace):
        registry = Registry(home / "registry", workspace, slot)
        champion = str(registry.champion)
        manifests = {manifest.release: manifest for manifest in registry.releases()}
        direct: dict[str, int | None] = {}
        for manifest in manifests.values():
            if manifest.corpus is None:
                continue
            place = (manifest.corpus, manifest.corpus_version)
            if place not in held:
                held[place] = _held(corpus_root, place, rows, subjects, tell)
            if held[place] != 0:
                direct[manifest.release] = held[place]
        for manifest, source in heirs(direct, manifests):
            yield {
                "release": manifest.release,
                "champion": manifest.release == champion,
                "corpus": f"{source.corpus}@v{source.corpus_version}"
                + ("" if source is manifest else f" (through {source.release})"),
                "rows": direct[source.release],
            }


def _held(
    corpus_root: Path,
    place: tuple[str, int | None],
    rows: Collection[Row],
    subjects: Collection[str],
    tell: Callable[[str], None],
) -> int | None:
    corpus, version = place
    try:
        opened = Corpus.open(CorpusRef(resolve_target(corpus, corpus_root), version))
        return sum(
            (row.episode_id, row.interaction_id) in rows or row.interaction.get("subject") in subjects
            for row in opened.rows("all")
        )
    except CorpusError as err:
        tell(f"{corpus}@v{version} cannot be read, so its releases count as concerned: {err}")
        return None
