"""Keys as files of a folder, see the package."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

from treadle_schemas.errors import KeyErased, KeyUnavailable, SettingError
from treadle_schemas.sealing import KEY_BYTES, KEY_ID_BYTES

from treadle.disk import fsync_folder
from treadle.errors import EncryptionMissing

__all__ = ["FolderKeys", "KeyStore", "check_installed"]

_ID: Final = re.compile(f"[0-9a-f]{{{2 * KEY_ID_BYTES}}}")


def check_installed() -> None:
    """Raises EncryptionMissing where the package that encrypts is not installed."""
    if find_spec("cryptography") is None:
        raise EncryptionMissing


class KeyStore(Protocol):
    """Where a workspace's keys are. Another store, such as a key management service, stands in by these methods.

    Processes ask it seldom: they keep keys for some seconds, see KeyRing.
    """

    def current(self, subject: str) -> str:
        """The id of the key that seals what a subject does now; one is made where there is none. Raises SettingError."""
        ...

    def of(self, subject: str) -> list[str]:
        """The ids of all keys that a subject ever had, destroyed ones too. Raises SettingError where there is no store."""
        ...

    def load(self, key_id: str) -> bytes:
        """A key. Raises KeyErased where it was destroyed, KeyUnavailable where nothing is known of it."""
        ...

    def destroy(self, key_id: str) -> bool:
        """Destroy a key, durably; False where it was destroyed before. Raises KeyUnavailable."""
        ...


class FolderKeys:
    """A KeyStore in a folder. Any number of processes and machines may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Make the store, empty. Where it is, a recorder seals even before it has seen the workspace's settings. Raises SettingError,
        EncryptionMissing: whoever cannot seal should not make it."""
        check_installed()
        self._name("", make=True)

    def current(self, subject: str) -> str:
        """See KeyStore."""
        name = self._name(subject, make=True)
        while True:
            known = self._ids(name)
            if known and self._alive(known[-1]):
                return known[-1]
            key_id = secrets.token_bytes(KEY_ID_BYTES).hex()
            self._write(self.folder / f"{key_id}.key", secrets.token_bytes(KEY_BYTES))
            if self._replace(name, known, [*known, key_id]):
                return key_id
            (self.folder / f"{key_id}.key").unlink()  # another process was first: nothing was sealed with this one

    def of(self, subject: str) -> list[str]:
        """See KeyStore."""
        if not (self.folder / "names.key").exists():
            # to say that a subject has no keys would be to say that nothing of them can be read
            raise SettingError(
                f"there is no key store in {self.folder}: mount the one that all machines of the workspace share, or set TREADLE_KEYS"
            )
        return self._ids(self._name(subject, make=False))

    def load(self, key_id: str) -> bytes:
        """See KeyStore."""
        if not _ID.fullmatch(key_id):
            raise KeyUnavailable(key_id, str(self.folder))
        if (self.folder / f"{key_id}.erased").exists():
            raise KeyErased(key_id)
        try:
            key = (self.folder / f"{key_id}.key").read_bytes()
        except FileNotFoundError:
            raise KeyUnavailable(key_id, str(self.folder)) from None
        except OSError as err:
            raise SettingError(f"key store {self.folder}: {key_id}.key cannot be read: {err.strerror}") from err
        if len(key) != KEY_BYTES:
            raise SettingError(f"key store {self.folder}: {key_id}.key has {len(key)} bytes, not {KEY_BYTES}")
        return key

    def destroy(self, key_id: str) -> bool:
        """See KeyStore.

        1. mark it as destroyed. 2. overwrite the key. 3. remove it. 4. sync the folder. Cut off anywhere, it can be called again.
        """
        path, mark = self.folder / f"{key_id}.key", self.folder / f"{key_id}.erased"
        if not path.exists() and not mark.exists():
            raise KeyUnavailable(key_id, str(self.folder))
        fresh = path.exists()
        if not mark.exists():  # 1
            self._write(mark, b"")
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_WRONLY)  # 2
            try:
                os.write(descriptor, bytes(KEY_BYTES))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            path.unlink()  # 3
        fsync_folder(self.folder)  # 4
        return fresh

    def _alive(self, key_id: str) -> bool:
        return (self.folder / f"{key_id}.key").exists() and not (self.folder / f"{key_id}.erased").exists()

    def _name(self, subject: str, *, make: bool) -> Path:
        secret = self.folder / "names.key"
        if make and not secret.exists():
            self._folders()
            with contextlib.suppress(FileExistsError):
                self._write(secret, secrets.token_bytes(KEY_BYTES), new=True)
        digest = hmac.new(secret.read_bytes(), subject.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()
        return self.folder / "names" / digest

    def _folders(self) -> None:
        try:
            (self.folder / "names").mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
        except OSError as err:
            raise SettingError(
                f"key store {self.folder}: {err.strerror}. Set TREADLE_KEYS to a folder that all machines of the workspace share"
            ) from err

    def _ids(self, name: Path) -> list[str]:
        try:
            return name.read_text().split()
        except FileNotFoundError:
            return []

    def _replace(self, name: Path, before: list[str], after: list[str]) -> bool:
        """Write the ids of a subject if they are still those of before. A link decides between processes, on network file systems too."""
        claim = name.with_name(f"{name.name}.{len(before)}")
        try:
            self._write(claim, after[-1].encode(), new=True)
        except FileExistsError:
            # the winner may have died before it wrote the list
            winner = claim.read_text()
            if self._ids(name) == before and self._alive(winner):
                self._write(name, "\n".join([*before, winner]).encode())
            return False
        self._write(name, "\n".join(after).encode())
        return True

    def _write(self, path: Path, data: bytes, *, new: bool = False) -> None:
        """Write a file as a whole, durably. With `new` raises FileExistsError where it is there."""
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if new:
                os.link(fresh, path)
            else:
                os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
        fsync_folder(path.parent)
