"""Which releases were trained on which corpus versions, mixed ones included: from manifests of the registry, in both directions."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from treadle_corpus import Corpus, CorpusError, CorpusRef, resolve_target
from treadle_schemas import ReleaseManifest

from treadle_trainer.mixture import sources_of
from treadle_trainer.registry import Registry, slots

__all__ = ["Learnt", "Releases", "Trained", "ancestry", "heirs", "learnt_from"]


class Learnt(NamedTuple):
    """A corpus version that a manifest names. `workspace` is whose rows they are, as far as the manifest tells."""

    corpus: str
    version: int | None
    content_hash: str | None
    workspace: str
    weight: float | None
    """Its share of the examples; None for the corpus whose version was trained on."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A release and the version that it learnt from: by itself, or through the release that it was trained from."""

    release: str
    champion: bool
    version: int
    through: str | None


class Releases:
    """All releases as they are now, to be asked for what they were trained on.

    Those of other workspaces are among them: their mixtures may draw from a corpus of this one.
    """

    def __init__(self, root: Path, workspace: str, corpus_root: Path | None = None) -> None:
        """`root` is that of the registry, `workspace` the one whose corpora are asked for. Raises RegistryError."""
        self._workspace = workspace
        self.manifests: dict[str, ReleaseManifest] = {}
        self._champions: set[str] = set()
        self._corpus_root = corpus_root
        for space, slot in slots(root):
            registry = Registry(root, space, slot)
            self.manifests |= {manifest.release: manifest for manifest in registry.releases()}
            if registry.champion is not None:
                self._champions.add(str(registry.champion))
        self._missing: dict[str, bool] = {}

    def is_champion(self, release: str) -> bool:
        """Does it serve now?"""
        return release in self._champions

    def corpora(self) -> set[Path]:
        """Where the corpora of the workspace lie, or lay, that releases were trained on."""
        found = (one for manifest in self.manifests.values() for one in learnt_from(manifest))
        return {self._place(one.corpus) for one in found if one.workspace == self._workspace}

    def ref(self, learnt: Learnt) -> CorpusRef:
        """Where a version that a manifest names lies on this machine."""
        return CorpusRef(self._place(learnt.corpus), learnt.version)

    def refs(self, manifest: ReleaseManifest) -> list[CorpusRef]:
        """Every version that a release was trained on, those of its mixture included."""
        return [self.ref(one) for one in learnt_from(manifest)]

    def trained_on(self, path: Path, version: int, content_hash: str) -> list[Trained]:
        """The releases that learnt from a version: trained on it, or from one that was. By path and number; where the path of a release
        has no such corpus any more, by content hash.
        """
        direct = {m.release for m in self.manifests.values() if self._is(m, path, version, content_hash)}
        return list(self._heirs(direct, version))

    def _heirs(self, direct: set[str], version: int) -> Iterator[Trained]:
        for manifest, source in heirs(direct, self.manifests):
            yield Trained(
                release=manifest.release,
                champion=self.is_champion(manifest.release),
                version=version,
                through=None if source is manifest else source.release,
            )

    def _is(self, manifest: ReleaseManifest, path: Path, version: int, content_hash: str) -> bool:
        for one in learnt_from(manifest):
            ref = self.ref(one)
            if ref.path == path:
                if ref.version == version:
                    return True
            elif one.content_hash == content_hash and self._gone(ref):
                return True
        return False

    def _gone(self, ref: CorpusRef) -> bool:
        if str(ref) not in self._missing:
            try:
                Corpus.open(ref).close()
                self._missing[str(ref)] = False
            except CorpusError:
                self._missing[str(ref)] = True
        return self._missing[str(ref)]

    def _place(self, corpus: str) -> Path:
        return resolve_target(corpus, self._corpus_root).resolve()


def learnt_from(manifest: ReleaseManifest) -> list[Learnt]:
    """The corpus versions that a release itself was trained on: its own first, then those of its mixture."""
    own = manifest.release.split("/")[0]
    found = []
    if manifest.corpus is not None:
        found.append(Learnt(manifest.corpus, manifest.corpus_version, manifest.corpus_hash, own, None))
    for one in sources_of(manifest.config):
        said = one.get("workspace") or own
        found.append(Learnt(one["corpus"], one.get("version"), one.get("content_hash"), said, one.get("weight")))
    return found


def ancestry(manifest: ReleaseManifest, manifests: dict[str, ReleaseManifest]) -> Iterator[ReleaseManifest]:
    """A release and those that it was trained from: what they learnt is in it."""
    seen: set[str] = set()
    name: str | None = manifest.release
    while name is not None and name in manifests and name not in seen:
        seen.add(name)
        yield manifests[name]
        name = manifests[name].parent


def heirs(
    direct: Container[str], manifests: dict[str, ReleaseManifest]
) -> Iterator[tuple[ReleaseManifest, ReleaseManifest]]:
    """The releases that are among `direct` or were trained from one that is, each with that one: the nearest."""
    for manifest in manifests.values():
        source = next((one for one in ancestry(manifest, manifests) if one.release in direct), None)
        if source is not None:
            yield manifest, source
