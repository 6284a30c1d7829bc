"""Where a corpus lies: a path, or deeplake://ORG/NAME below the configured corpus root; and PATH@vN or PATH@TAG, one version of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from treadle_schemas.errors import NotYetSupported

from treadle_corpus._versions import tagged
from treadle_corpus.errors import TargetError

__all__ = ["CorpusRef", "parse_ref", "resolve_target"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_AT = re.compile(r"(.+)@([^/@]+)", re.DOTALL)
_NUMBER = re.compile(r"v[1-9][0-9]{0,8}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_REMOTE = {
    "s3": "object stores",
    "gs": "object stores",
    "gcs": "object stores",
    "azure": "object stores",
    "al": "Activeloop storage",
}


@dataclass(frozen=True)
class CorpusRef:
    """A corpus and one of its versions; `version` None is the newest tagged one."""

    path: Path
    version: int | None

    def __str__(self) -> str:
        return f"{self.path}" if self.version is None else f"{self.path}@v{self.version}"


def resolve_target(text: str, corpus_root: Path | None = None) -> Path:
    """The local folder that a target means. Nothing is touched.

    Raises NotYetSupported for s3://, al:// and other remote stores, TargetError for what is no target.
    """
    if not text.strip() or "\0" in text:
        raise TargetError(f"target {text!r}: expected a folder or deeplake://ORG/NAME")
    match = _SCHEME.fullmatch(text)
    if match is None:
        return Path(text).expanduser().absolute()
    scheme, rest = match[1].lower(), match[2]
    if scheme in _REMOTE:
        raise NotYetSupported(
            f"target {text!r}: {_REMOTE[scheme]} cannot be written yet, since exactly-once there needs a lock that they lack. "
            "Use a folder or deeplake://ORG/NAME, and copy the folder when a version is done"
        )
    if scheme == "file":
        return Path(rest).absolute()
    if scheme != "deeplake":
        raise TargetError(f"target {text!r}: unknown scheme {scheme}://; expected a folder or deeplake://ORG/NAME")
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
        if (path / "corpus.json").exists():
            return CorpusRef(path, tagged(path, match[2]))
    if match[2].startswith("v"):
        raise TargetError(f"{text!r}: @{match[2]} is no version; versions are @v1, @v2, ...")
    return CorpusRef(resolve_target(text, corpus_root), None)
