"""Where a corpus lies: a path, deeplake://ORG/NAME below the configured corpus root, or an object store; and PATH@vN or PATH@TAG, one
version of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from treadle_schemas.errors import NotYetSupported

from treadle_corpus._versions import tagged
from treadle_corpus.errors import TargetError
from treadle_corpus.objects.place import name_of, place_at, place_for
from treadle_corpus.objects.store import SCHEMES

__all__ = ["CorpusRef", "parse_ref", "resolve_target"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_AT = re.compile(r"(.+)@([^/@]+)", re.DOTALL)
_NUMBER = re.compile(r"v[1-9][0-9]{0,8}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class CorpusRef:
    """A corpus and one of its versions; `version` None is the newest tagged one."""

    path: Path
    version: int | None

    def __str__(self) -> str:
        return name_of(self.path) if self.version is None else f"{name_of(self.path)}@v{self.version}"


def resolve_target(text: str, corpus_root: Path | None = None) -> Path:
    """The folder of this machine that a target means. For s3://, gs:// and az:// it is the one that stands for the corpus there: it is
    made, and the store is not asked. Otherwise nothing is touched.

    Raises NotYetSupported for al://, TargetError for what is no target, and where the package for an object store is missing.
    """
    if not text.strip() or "\0" in text:
        raise TargetError(f"target {text!r}: expected a folder or deeplake://ORG/NAME")
    match = _SCHEME.fullmatch(text)
    if match is None:
        return Path(text).expanduser().absolute()
    scheme, rest = match[1].lower(), match[2]
    if scheme in SCHEMES:
        return place_for(text).cache
    if scheme == "al":
        raise NotYetSupported(
            f"target {text!r}: Activeloop storage cannot be written yet; use s3://BUCKET/PREFIX, a folder or deeplake://ORG/NAME"
        )
    if scheme == "file":
        return Path(rest).absolute()
    if scheme != "deeplake":
        raise TargetError(
            f"target {text!r}: unknown scheme {scheme}://; expected a folder, deeplake://ORG/NAME or one of "
            + ", ".join(f"{known}://" for known in SCHEMES)
        )
    if corpus_root is None:
        raise TargetError(f"target {text!r}: no corpus root is known here; give the folder itself")
    parts = rest.rstrip("/").split("/")
    if len(parts) != 2 or not all(_NAME.fullmatch(p) for p in parts):
        raise TargetError(f"target {text!r}: expected deeplake://ORG/NAME, each of letters, digits, _, . and -")
    return corpus_root / parts[0] / parts[1]


def parse_ref(text: str, corpus_root: Path | None = None) -> CorpusRef:
    """`TARGET`, `TARGET@vN` or `TARGET@TAG`, where a tag means the version that it names now. A folder whose name has an @ is a folder.

    Raises TargetError for `@v` without a number, TagMissing for a tag that the corpus has not, and what `resolve_target` raises.
    """
    match = _AT.fullmatch(text)
    if match is None:
        return CorpusRef(resolve_target(text, corpus_root), None)
    if _NUMBER.fullmatch(match[2]):
        return CorpusRef(resolve_target(match[1], corpus_root), int(match[2][1:]))
    if _SCHEME.fullmatch(text) or not Path(text).expanduser().exists():
        path = resolve_target(match[1], corpus_root)
        if place_at(path) is not None or (path / "corpus.json").exists():
            return CorpusRef(path, tagged(path, match[2]))
    if match[2].startswith("v"):
        raise TargetError(f"{text!r}: @{match[2]} is no version; versions are @v1, @v2, ...")
    return CorpusRef(resolve_target(text, corpus_root), None)
