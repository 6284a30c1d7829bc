"""Which folders of this machine stand for a corpus in an object store.

    HOME/corpora-objects/NAME/             what readers here fetched, see `cache`; the path of the corpus on this machine
    HOME/corpora-objects/NAME/remote.json  {"url", "id"}: where it lies, and who this home is among its writers
    HOME/corpora-objects/NAME.work/        where a writer here makes versions before it publishes them

All of it can be deleted while nobody uses it: what is published comes back, and what is not is folded again.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from treadle_schemas.home import home_folder

from treadle_corpus import _disk
from treadle_corpus.errors import CorpusDamaged
from treadle_corpus.objects.store import ObjectStore

__all__ = ["Place", "name_of", "place_at", "place_for", "places_below"]

MARKER: Final = "remote.json"
_FOLDER: Final = "corpora-objects"


@dataclass(frozen=True)
class Place:
    """A corpus in an object store, and its folders here."""

    url: str
    id: str
    """Of this home, drawn at random."""
    cache: Path

    @property
    def work(self) -> Path:
        """Where a writer makes versions."""
        return self.cache.with_name(self.cache.name + ".work")

    @property
    def store(self) -> ObjectStore:
        """Raises TargetError where the package for it is not installed."""
        return ObjectStore(self.url)


def place_for(url: str) -> Place:
    """The folders for a URL; made where they are not there. Raises TargetError, CorpusUnwritable, CorpusDamaged."""
    url = ObjectStore(url).url
    plain = re.sub(r"[^a-z0-9]+", "-", url.lower()).strip("-")[:80]
    folder = home_folder() / _FOLDER / f"{plain}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    found = place_at(folder)
    if found is not None:
        return found
    with _disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _disk.create(folder / MARKER, json.dumps({"url": url, "id": secrets.token_hex(8)}).encode() + b"\n")
    return place_at(folder) or Place(url, "", folder)


def place_at(path: Path) -> Place | None:
    """The corpus in an object store that a folder stands for; None for any other folder. Raises CorpusDamaged."""
    file = path / MARKER
    try:
        said = json.loads(file.read_bytes())
        return Place(str(said["url"]), str(said["id"]), path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise CorpusDamaged(path, f"{MARKER} cannot be read ({err}); delete the folder, it is a cache") from None


def places_below(home: Path) -> list[Path]:
    """The folders of a home that stand for corpora in object stores: what was read, written or only looked at there."""
    return sorted(marker.parent for marker in (home / _FOLDER).glob(f"[!.]*/{MARKER}"))


def name_of(path: Path) -> str:
    """How a corpus is called wherever it is spoken of: its URL, or its path."""
    found = place_at(path)
    return str(path) if found is None else found.url
