"""Versions, their tags, and who reads them.

    PATH/versions/vN.json   {"v": {"manifest", "journal", "size", "sha256", "bodies"}, "sha256": of the JSON of "v"}
    PATH/tags/NAME.json     {"version": N}

A version is there when its file is: it is the last thing that a run writes. A reader holds a shared lock on that file for as long as it
reads, which the system gives up with the process, however that ends, and which needs no right to write. Whoever removes a version takes
the exclusive lock first.

A folder may stand for a corpus in an object store, see `objects.place`: then its versions and tags are those that are published there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from treadle_corpus import _disk, _files
from treadle_corpus.errors import CorpusDamaged, CorpusInUse, TagMissing, TagTaken, TargetError, VersionMissing
from treadle_corpus.manifest import Manifest

if TYPE_CHECKING:
    from treadle_corpus.objects.place import Place

__all__ = [
    "Lease",
    "VersionFile",
    "bring",
    "decode_version",
    "holder",
    "is_ready",
    "lease",
    "read_tags",
    "read_version",
    "reader_of",
    "remove_version",
    "set_tag",
    "tagged",
    "untag",
    "versions",
]

_NAME: Final = re.compile(r"v([1-9][0-9]{0,8})\.json")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_NUMBERED: Final = re.compile(r"v[0-9]*")


class VersionFile(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a version: `size` bytes of a journal, whose SHA-256 is `sha256`, over the first `bodies` bodies."""

    manifest: Manifest
    journal: int
    size: int
    sha256: str
    bodies: int


class _File(msgspec.Struct):
    v: msgspec.Raw
    sha256: str


class Lease:
    """Keeps a version from being removed while it is read, until it is closed or forgotten."""

    def __init__(self, path: Path, version: int) -> None:
        """Raises VersionMissing."""
        file = _version_path(path, version)
        while True:
            try:
                opened = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise VersionMissing(path, version, versions(path)) from None
            except OSError as err:
                raise CorpusDamaged(path, f"versions/{file.name} cannot be read ({err.strerror})") from err
            try:
                fcntl.flock(opened, fcntl.LOCK_SH)
            except OSError:
                pass  # a file system without locks: nobody removes what cannot be locked, see `remove_version`
            if os.fstat(opened).st_nlink:
                break
            os.close(opened)  # removed, or replaced, between opening and locking
        self.close = weakref.finalize(self, os.close, opened)


def is_ready(path: Path) -> bool:
    """Whether the corpus at `path` can have versions. Raises CorpusMissing, CorpusOutdated, CorpusDamaged, StoreError."""
    place = _remote(path)
    if place is None:
        return _files.check_marker(path) == "ready"
    from treadle_corpus.objects.cache import follow
    from treadle_corpus.objects.published import check_published

    check_published(place.store)
    follow(place)
    return True


def lease(path: Path, version: int) -> Lease:
    """Keep a version from being removed while it is read. Raises VersionMissing, StoreError."""
    place = _remote(path)
    if place is None:
        return Lease(path, version)
    from treadle_corpus.objects.cache import open_version

    return open_version(place, version)


def bring(path: Path, version: int) -> None:
    """All that a version needs lies below `path` when this returns: that of an object store is fetched. Raises StoreError, CorpusFull."""
    place = _remote(path)
    if place is not None:
        from treadle_corpus.objects.cache import fetch

        fetch(place, version)


def _remote(path: Path) -> Place | None:
    from treadle_corpus.objects.place import place_at

    return place_at(path)


def versions(path: Path) -> list[int]:
    """The versions of the corpus at `path`, ascending; none where its first run is not over.

    Raises CorpusMissing, CorpusOutdated, CorpusDamaged, StoreError.
    """
    place = _remote(path)
    if place is not None:
        from treadle_corpus.objects.cache import follow
        from treadle_corpus.objects.published import check_published, published_versions

        check_published(place.store)
        return published_versions(place.store, follow(place))
    if _files.check_marker(path) != "ready":
        return []
    return sorted(int(match[1]) for name in os.listdir(path / "versions") if (match := _NAME.fullmatch(name)))


def read_version(path: Path, version: int) -> VersionFile:
    """Raises VersionMissing, CorpusDamaged, StoreError."""
    file = _version_path(path, version)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        place = _remote(path)
        if place is not None:
            from treadle_corpus.objects.published import published_version

            return published_version(place.store, version)[1]
        raise VersionMissing(path, version, versions(path)) from None
    except OSError as err:
        raise CorpusDamaged(path, f"versions/{file.name} cannot be read ({err.strerror})") from err
    return decode_version(path, version, data)


def decode_version(path: Path | str, version: int, data: bytes) -> VersionFile:
    """What the file of a version says. Raises CorpusDamaged."""
    name = f"versions/v{version}.json"
    try:
        outer = msgspec.json.decode(data, type=_File)
        if hashlib.sha256(outer.v).hexdigest() != outer.sha256:
            raise CorpusDamaged(path, f"{name} is not what was written")
        found = msgspec.json.decode(outer.v, type=VersionFile)
    except msgspec.DecodeError as err:
        raise CorpusDamaged(path, f"{name} cannot be read ({err})") from err
    if found.manifest.version != version:
        raise CorpusDamaged(path, f"{name} is that of v{found.manifest.version}")
    return found


def write_version(path: Path, made: VersionFile) -> None:
    """The commit point of a version: from here on there is one. Raises CorpusFull, CorpusUnwritable."""
    inner = msgspec.json.encode(made)
    digest = hashlib.sha256(inner).hexdigest()
    _disk.create(_version_path(path, made.manifest.version), b'{"v":%b,"sha256":"%b"}\n' % (inner, digest.encode()))


def reader_of(path: Path, version: int) -> str | None:
    """The process that reads a version on this machine, if one does."""
    try:
        opened = os.open(_version_path(path, version), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder(opened)
    except OSError:
        pass  # a file system without locks
    finally:
        os.close(opened)
    return None


def remove_version(path: Path, version: int) -> None:
    """Remove a version that nobody reads and no tag names. Raises CorpusInUse, VersionMissing, CorpusUnwritable, StoreError."""
    place = _remote(path)
    if place is not None:
        from treadle_corpus.objects.history import remove_published

        remove_published(place.store, version)
        return
    named = [name for name, number in read_tags(path).items() if number == version]
    if named:
        raise CorpusInUse(path, version, f"the tag {named[0]!r} names it; `treadle corpus tag --delete` takes it away")
    file = _version_path(path, version)
    try:
        opened = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise VersionMissing(path, version, versions(path)) from None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _disk.remove(file)
    except BlockingIOError:
        raise CorpusInUse(path, version, f"{holder(opened)} is reading it; wait for it, or stop it") from None
    finally:
        os.close(opened)


def holder(opened: int) -> str:
    """The process that holds a lock on an open file, as far as this machine knows it."""
    inode = os.fstat(opened).st_ino
    try:
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == inode and fields[4] != str(os.getpid()):
                command = Path(f"/proc/{fields[4]}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                return f"process {fields[4]} ({command.strip()[:200]})"
    except (OSError, ValueError, IndexError):
        pass
    return "this process or one elsewhere"


def _version_path(path: Path, version: int) -> Path:
    return path / "versions" / f"v{version}.json"


def check_tag(name: str) -> None:
    """Raises TargetError for what cannot be a tag."""
    if not _TAG.fullmatch(name) or _NUMBERED.fullmatch(name):
        raise TargetError(
            f"tag {name!r}: expected up to 100 letters, digits, _, . and -, beginning with none of the last two, and not like v12"
        )


def set_tag(path: Path, name: str, version: int, *, force: bool = False) -> None:
    """Name a version; with `force` also where the tag names another one. Raises TargetError, VersionMissing, TagTaken, CorpusFull."""
    check_tag(name)
    place = _remote(path)
    if place is not None:
        from treadle_corpus.objects.history import put_tag

        put_tag(place.store, name, version, force=force)
        return
    lease = Lease(path, version)
    try:
        before = read_tags(path).get(name)
        if before == version:
            return
        if before is not None and not force:
            raise TagTaken(path, name, before)
        (path / "tags").mkdir(exist_ok=True)
        _disk.create(_tag_path(path, name), json.dumps({"version": version}).encode() + b"\n")
    finally:
        lease.close()


def untag(path: Path, name: str) -> int:
    """Take a tag away; the version that it named stays. Raises TagMissing, TargetError, CorpusUnwritable."""
    place = _remote(path)
    if place is not None:
        from treadle_corpus.objects.history import remove_tag

        check_tag(name)
        return remove_tag(place.store, name)
    version = tagged(path, name)
    _disk.remove(_tag_path(path, name))
    _disk.sync(path / "tags")
    return version


def tagged(path: Path, name: str) -> int:
    """The version that a tag names. Raises TagMissing, TargetError, CorpusMissing, CorpusDamaged."""
    check_tag(name)
    is_ready(path)
    tags = read_tags(path)
    if name not in tags:
        raise TagMissing(path, name, sorted(tags))
    return tags[name]


def read_tags(path: Path) -> dict[str, int]:
    """Versions by tag, sorted by name. Raises CorpusDamaged, StoreError."""
    place = _remote(path)
    if place is not None:
        from treadle_corpus.objects.published import published_tags

        return published_tags(place.store)
    found: dict[str, int] = {}
    try:
        names = sorted(os.listdir(path / "tags"))
    except FileNotFoundError:
        return found
    for file in names:
        name, _, kind = file.rpartition(".")
        if kind != "json":
            continue
        try:
            found[name] = int(json.loads((path / "tags" / file).read_bytes())["version"])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise CorpusDamaged(path, f"tags/{file} cannot be read ({err})") from err
    return found


def _tag_path(path: Path, name: str) -> Path:
    return path / "tags" / f"{name}.json"
