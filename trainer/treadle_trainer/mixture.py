"""A mixture: further sources that a training draws examples from, each with its share, so that what they teach is not forgotten.

A policy names sources (`MixtureSource`). For a job they become `Source`s: a corpus with the version and the content hash that are read, an
anchor set with the hash of its file. These name a mixture everywhere: in job keys, fingerprints, manifests, evidence and lineage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from treadle_schemas import SettingError, Split

if TYPE_CHECKING:
    from treadle_corpus import Corpus

__all__ = [
    "Mixture",
    "MixtureSource",
    "Source",
    "check_sources",
    "mixture_of",
    "resolved",
    "said_mixture",
    "sources_of",
]


class MixtureSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One further source: a corpus or an anchor set, and its weight."""

    weight: float
    """Share of the training examples drawn from it; the corpus whose version is trained on takes what is left."""
    corpus: str | None = None
    """A corpus, `PATH`, `PATH@vN` or `PATH@TAG`; without a version the newest one."""
    anchor: str | None = None
    """A file of JSON lines: conversations, or what `treadle corpus export --view` wrote for the method's view."""

    @property
    def name(self) -> str:
        """Which it is."""
        return self.corpus if self.corpus is not None else str(self.anchor)


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A source of one job. Of a corpus: `name` (path or URL), `path`, version and content hash; of an anchor set: path and SHA-256."""

    kind: str
    name: str
    path: str
    weight: float
    content_hash: str
    version: int | None = None
    workspace: str | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@v{self.version}"

    def said(self) -> dict[str, Any]:
        """What manifests and evidence say of it."""
        if self.kind == "anchor":
            return {"anchor": self.name, "sha256": self.content_hash, "weight": self.weight}
        return {
            "corpus": self.name,
            "version": self.version,
            "content_hash": self.content_hash,
            "workspace": self.workspace,
            "weight": self.weight,
        }


class Mixture(msgspec.Struct, frozen=True, kw_only=True):
    """The further sources of a job, and the split of the workspace whose corpus is trained on: what that holds out is drawn from none."""

    sources: tuple[Source, ...]
    split: Split

    @property
    def weights(self) -> list[float]:
        """Of the corpus itself, then of each source."""
        others = [source.weight for source in self.sources]
        return [1.0 - sum(others), *others]


def check_sources(sources: Sequence[MixtureSource]) -> None:
    """Raises SettingError naming the source that makes no sense."""
    seen: set[tuple[str | None, str | None]] = set()
    for n, source in enumerate(sources):
        where = f"policy mixture[{n}]"
        if (source.corpus is None) == (source.anchor is None):
            raise SettingError(f"{where}: expected either a corpus or an anchor")
        if not source.name.strip():
            raise SettingError(f"{where}: expected a path, found {source.name!r}")
        if source.anchor is not None and not Path(source.anchor).is_absolute():
            raise SettingError(f"{where}.anchor={source.anchor!r}: expected an absolute path")
        if not 0 < source.weight < 1:
            raise SettingError(f"{where}.weight={source.weight!r}: expected a share between 0 and 1")
        if (source.corpus, source.anchor) in seen:
            raise SettingError(f"{where}: {source.name!r} is named twice; add up its weights")
        seen.add((source.corpus, source.anchor))
    total = sum(source.weight for source in sources)
    if total >= 1:
        raise SettingError(
            f"policy mixture: the weights add up to {total:g}: expected less than 1, since the corpus that is trained on takes the rest"
        )


def resolved(
    sources: Sequence[MixtureSource], corpus: Corpus | None = None, corpus_root: Path | None = None
) -> tuple[Source, ...]:
    """The sources as they are now: newest versions, content hashes, hashes of files.

    Raises SettingError where an anchor set cannot be read, or where a source is the very version that is trained on; CorpusError.
    """
    found = tuple(_anchor(s) if s.anchor is not None else _version(s, corpus_root) for s in sources)
    for n, source in enumerate(found):
        same = (source.kind, source.name, source.version)
        if corpus is not None and same == ("corpus", corpus.name, corpus.version):
            raise SettingError(f"policy mixture[{n}]: {source} is the corpus version that is trained on itself")
        if same in [(s.kind, s.name, s.version) for s in found[:n]]:
            raise SettingError(f"policy mixture[{n}]: {source} is named twice; add up its weights")
    return found


def mixture_of(
    sources: Sequence[MixtureSource], corpus: Corpus, split: Split, corpus_root: Path | None = None
) -> Mixture | None:
    """The mixture of a job on `corpus`; None without further sources. Raises as `resolved`."""
    return Mixture(sources=resolved(sources, corpus, corpus_root), split=split) if sources else None


def said_mixture(mixture: Mixture | None) -> dict[str, Any]:
    """`{"mixture": [...]}` for manifests and evidence, nothing where there is none."""
    return {} if mixture is None else {"mixture": [source.said() for source in mixture.sources]}


def sources_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The corpora that a manifest's `config` names beside its own: each with `corpus`, `version`, `content_hash` and `workspace`."""
    said = config.get("mixture") or []
    return [one for one in said if isinstance(one, dict) and one.get("corpus") is not None]


def file_hash(data: bytes) -> str:
    """SHA-256 of an anchor set."""
    return hashlib.sha256(data).hexdigest()


def _anchor(source: MixtureSource) -> Source:
    path = Path(str(source.anchor))
    try:
        data = path.read_bytes()
    except OSError as err:
        raise SettingError(f"policy mixture: the anchor set {path} cannot be read: {err}") from err
    return Source(kind="anchor", name=str(path), path=str(path), weight=source.weight, content_hash=file_hash(data))


def _version(source: MixtureSource, corpus_root: Path | None) -> Source:
    from treadle_corpus import Corpus, parse_ref

    with Corpus.open(parse_ref(str(source.corpus), corpus_root)) as found:
        return Source(
            kind="corpus",
            name=found.name,
            path=str(found.path.absolute()),
            weight=source.weight,
            content_hash=found.manifest.content_hash,
            version=found.version,
            workspace=found.manifest.workspace,
        )
