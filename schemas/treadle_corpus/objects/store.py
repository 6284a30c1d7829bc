"""One folder of an object store: whole objects to read, put, list and delete, and puts that fail where an object is.

The only module that talks to an object store. s3:// goes through s3fs, with what AWS_* says; gs:// and az:// through gcsfs and adlfs where
they are installed. Whatever these raise becomes a StoreError without credentials.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from treadle_corpus.errors import BucketMissing, StoreError, StoreRefused, StoreUnreachable, TargetError

__all__ = ["SCHEMES", "ObjectStore", "is_object_url"]

SCHEMES: Final = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""What can be named, and the package that it needs."""
_S3_OPTIONS: Final = {
    # nothing is remembered: another process writes the same folder
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3, "mode": "standard"}},
}
_REFUSALS: Final = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403"})


def is_object_url(text: str) -> bool:
    """Whether a target lies in an object store."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme.lower() in SCHEMES


class ObjectStore:
    """A folder of an object store. `url` is SCHEME://BUCKET[/PREFIX]; names are relative to it."""

    def __init__(self, url: str) -> None:
        """Nothing is asked of the store yet. Raises TargetError for no such URL, or where the package for it is not installed."""
        scheme, _, rest = url.partition("://")
        self._scheme = scheme.lower()
        parts = rest.rstrip("/").split("/")
        if (
            self._scheme not in SCHEMES
            or not all(parts)
            or any(part in (".", "..") or set(part) & set(":@?#") for part in parts)
        ):
            raise TargetError(f"target {url!r}: expected {scheme.lower()}://BUCKET/PREFIX")
        self.url = f"{self._scheme}://{'/'.join(parts)}"
        self._root = "/".join(parts)
        package = SCHEMES[self._scheme]
        if importlib.util.find_spec(package) is None:
            raise TargetError(
                f"target {url!r}: {self._scheme}:// needs {package}; `pip install 'treadle[s3]'`, or {package} itself"
            )

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def at(self, name: str) -> str:
        """The URL of an object."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes | None:
        """An object as a whole; None where there is none. Raises StoreError."""
        try:
            with self._talking(name):
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Put an object, over one that is there. Raises StoreError."""
        with self._talking(name):
            self._fs.pipe_file(f"{self._root}/{name}", data)

    def create(self, name: str, data: bytes) -> bool:
        """Put an object where none is; False, and nothing is done, where one is. Of two at once one succeeds. Raises StoreError."""
        try:
            with self._talking(name):
                self._fs.pipe_file(f"{self._root}/{name}", data, mode="create")
        except FileExistsError:
            return False
        return True

    def put_file(self, name: str, file: Path) -> None:
        """Put what a file holds. Raises StoreError."""
        with self._talking(name):
            self._fs.put_file(str(file), f"{self._root}/{name}")

    def get_file(self, name: str, file: Path) -> bool:
        """Write an object to a file; False where there is none. Raises StoreError."""
        try:
            with self._talking(name):
                self._fs.get_file(f"{self._root}/{name}", str(file))
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str = "") -> list[str]:
        """Names of all objects below a folder, sorted; relative to the store. Raises StoreError."""
        return sorted(self._found(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each object below a folder, by its name relative to the store. Raises StoreError."""
        return {name: int(said["size"]) for name, said in self._found(folder).items()}

    def names_before(self, folder: str, time_s: float) -> list[str]:
        """Names of the objects below a folder that were put before a time, seconds since the epoch. Raises StoreError."""
        old: list[str] = []
        for name, said in self._found(folder).items():
            put_at = next(
                (said[key] for key in ("LastModified", "mtime", "updated", "last_modified") if key in said), None
            )
            if put_at is not None and put_at.timestamp() < time_s:
                old.append(name)
        return sorted(old)

    def _found(self, folder: str) -> dict[str, dict[str, Any]]:
        """What the store says of each object below a folder."""
        with self._talking(folder):
            if (
                folder and self._scheme == "s3"
            ):  # with a prefix, s3fs asks once where there is nothing, otherwise three times
                found = self._fs.find(self._root, prefix=f"{folder}/", detail=True)
            else:
                found = self._fs.find(f"{self._root}/{folder}".rstrip("/"), detail=True)
        return {name.removeprefix(f"{self._root}/"): said for name, said in found.items()}

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; relative to the store. Raises StoreError."""
        try:
            with self._talking(folder):
                found = self._fs.ls(f"{self._root}/{folder}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return []
        return sorted(
            str(one["name"]).rstrip("/").removeprefix(f"{self._root}/") for one in found if one["type"] == "directory"
        )

    def put_at(self, name: str) -> float | None:
        """When an object was put, in seconds by the store's clock; None where there is none. Raises StoreError."""
        try:
            with self._talking(name):
                return float(self._fs.modified(f"{self._root}/{name}").timestamp())
        except FileNotFoundError:
            return None

    def delete(self, name: str) -> None:
        """Delete an object, if it is there. Raises StoreError."""
        try:
            with self._talking(name):
                self._fs.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            pass

    @property
    def _fs(self) -> Any:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return _filesystem(self._scheme, endpoint if self._scheme == "s3" else None)

    @contextmanager
    def _talking(self, name: str) -> Iterator[None]:
        """Lets FileNotFoundError and FileExistsError of an object through; all else becomes a StoreError."""
        url = self.at(name) if name else self.url
        try:
            yield
        except StoreError:
            raise
        except FileExistsError:
            raise
        except Exception as err:  # each package has its own family of exceptions
            code = _code(err)
            bucket = self.url.partition("://")[2].partition("/")[0]
            if code == "NoSuchBucket" or "bucket does not exist" in str(err):
                raise BucketMissing(f"{self._scheme}://{bucket}") from None
            if isinstance(err, FileNotFoundError):
                raise
            said = f"{code}: {err}" if code else f"{type(err).__name__}: {err}"
            if isinstance(err, PermissionError) or code in _REFUSALS or "Credentials" in type(err).__name__:
                raise StoreRefused(url, _short(said)) from None
            raise StoreUnreachable(url, _short(said)) from None


@cache
def _filesystem(scheme: str, endpoint: str | None) -> Any:
    fsspec = importlib.import_module("fsspec")  # it says nothing of its types
    options: dict[str, Any] = dict(_S3_OPTIONS) if scheme == "s3" else {}
    if endpoint is not None:
        options["endpoint_url"] = endpoint
    return fsspec.filesystem(scheme, **options)


def _code(err: BaseException) -> str:
    """What the store itself called the error."""
    for each in (err, err.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
