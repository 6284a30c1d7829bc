"""Who may write into which workspace: tokens, of which only hashes are kept, and the secrets of webhooks.

One JSON file, readable by its owner alone, replaced as a whole. A running receiver looks at it with every request, so a new token counts at
once and a revoked one no longer. A file that cannot be used lets nobody in.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec
from treadle_schemas.ids import check_workspace
from treadle_schemas.moments import from_micros, now, to_micros

from treadle_streams.ingest.errors import AccessFileUnusable

__all__ = ["Access", "Entry"]

_LOG = logging.getLogger(__name__)
PREFIX: Final = "treadle_"
"""Of every token, so that a scanner for leaked secrets can know one."""
SECRET_BYTES: Final = 32
# what a signature is compared with where a workspace has no secret: the answer must not come sooner there
_NOBODY: Final = secrets.token_bytes(SECRET_BYTES)


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A token or a webhook's secret."""

    id: str
    kind: Literal["token", "github"]
    workspace: str
    digest: str | None = None
    """Of a token: hex sha256. Tokens are 256 random bits, so no slow hash is needed."""
    secret: str | None = None
    """Of a webhook: the secret itself, since both sides compute with it."""
    created_at: str
    ends_at: str | None = None
    """When it stops counting, after a rotation."""

    def counts(self, moment: str) -> bool:
        """Whether it counts at that time."""
        return self.ends_at is None or to_micros(moment, "$") < to_micros(self.ends_at, "$.ends_at")

    def __repr__(self) -> str:
        return f"Entry({self.kind} {self.id} of {self.workspace})"


class _File(msgspec.Struct, frozen=True, kw_only=True):
    entries: tuple[Entry, ...] = ()


class Access:
    """The access file. Reading methods may be called from any thread."""

    def __init__(self, path: Path, *, github_secret: str | None = None, workspace: str | None = None) -> None:
        """`github_secret` is one more secret of `workspace`'s webhooks, which stands in no file."""
        self.path = path
        self._extra = (workspace, github_secret.encode()) if workspace and github_secret else None
        self._known: tuple[Entry, ...] = ()
        self._stat: tuple[int, ...] | None = None
        self._problem: str | None = None

    def workspace_of(self, token: str) -> str | None:
        """The workspace that a token writes into, or None. The time it takes does not tell how much of a token is right."""
        digest = hashlib.sha256(token.encode(errors="replace")).hexdigest()
        moment, found = now(), None
        for entry in self.entries():
            if entry.kind == "token" and hmac.compare_digest(entry.digest or "", digest) and entry.counts(moment):
                found = entry.workspace
        return found

    def signed(self, workspace: str, body: bytes, signature: str) -> bool:
        """Whether `signature` (`sha256=...`) is that of `body` under a webhook secret of the workspace."""
        given, right = signature.encode(errors="replace"), False
        for secret in self._secrets(workspace):
            wanted = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
            right = hmac.compare_digest(wanted.encode(), given) or right
        return right

    def workspaces(self) -> set[str]:
        """Those that anybody may write into."""
        known = {entry.workspace for entry in self.entries() if entry.counts(now())}
        return known | {self._extra[0]} if self._extra else known

    def entries(self) -> tuple[Entry, ...]:
        """All entries, read again when the file changed. None where it cannot be used, which is logged once."""
        try:
            found = os.stat(self.path)
            mark = (found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode)
            if mark != self._stat:
                self._known, self._stat = self._read(), mark
        except FileNotFoundError:
            self._known, self._stat = (), None
        except (OSError, AccessFileUnusable) as err:
            self._known, self._stat = (), None
            if str(err) != self._problem:
                _LOG.error("nobody is let in: %s", err)
            self._problem = str(err)
        else:
            self._problem = None
        return self._known

    def add_token(self, workspace: str, *, rotate: bool = False, grace_s: float = 0.0) -> tuple[Entry, str]:
        """Make a token: its entry, and the token itself, which nobody can give again.

        `rotate` ends the workspace's other tokens `grace_s` from now. Raises AccessFileUnusable, FieldError.
        """
        token = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        return self._add("token", workspace, rotate, grace_s, digest=hashlib.sha256(token.encode()).hexdigest()), token

    def add_secret(self, workspace: str, *, rotate: bool = False, grace_s: float = 0.0) -> tuple[Entry, str]:
        """Make a secret for GitHub's webhooks. As `add_token`."""
        secret = secrets.token_hex(SECRET_BYTES)
        return self._add("github", workspace, rotate, grace_s, secret=secret), secret

    def revoke(self, identity: str) -> Entry | None:
        """Take an entry away at once; what it was, None where there is none of that id. Raises AccessFileUnusable."""
        with self._changing() as entries:
            gone = next((entry for entry in entries if entry.id == identity), None)
            self._write([entry for entry in entries if entry.id != identity])
        return gone

    def checked(self) -> tuple[Entry, ...]:
        """All entries. Raises AccessFileUnusable where `entries` would only log."""
        return self._read() if self.path.exists() else ()

    def _add(
        self,
        kind: Literal["token", "github"],
        workspace: str,
        rotate: bool,
        grace_s: float,
        *,
        digest: str | None = None,
        secret: str | None = None,
    ) -> Entry:
        moment = now()
        ends = from_micros(to_micros(moment, "$") + round(grace_s * 1e6))
        made = Entry(
            id=secrets.token_hex(4),
            kind=kind,
            workspace=check_workspace(workspace),
            digest=digest,
            secret=secret,
            created_at=moment,
        )
        with self._changing() as entries:
            kept = [entry for entry in entries if entry.counts(moment)]
            if rotate:
                kept = [
                    msgspec.structs.replace(entry, ends_at=ends)
                    if (entry.kind, entry.workspace, entry.ends_at) == (kind, workspace, None)
                    else entry
                    for entry in kept
                ]
            self._write([*kept, made])
        return made

    def _secrets(self, workspace: str) -> list[bytes]:
        moment = now()
        found = [
            (entry.secret or "").encode()
            for entry in self.entries()
            if entry.kind == "github" and entry.workspace == workspace and entry.counts(moment)
        ]
        if self._extra and self._extra[0] == workspace:
            found.append(self._extra[1])
        return found or [_NOBODY]

    def _read(self) -> tuple[Entry, ...]:
        if stat.S_IMODE(self.path.stat().st_mode) & 0o077:
            raise AccessFileUnusable(f"{self.path} may be read by others than its owner; run: chmod 600 {self.path}")
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_File).entries
        except msgspec.MsgspecError as err:
            # without the cause, which could quote a secret
            raise AccessFileUnusable(
                f"{self.path} is no file of tokens and secrets ({type(err).__name__}); put a copy back, or delete it and make new tokens"
            ) from None

    @contextmanager
    def _changing(self) -> Iterator[tuple[Entry, ...]]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self.path.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield self.checked()
        except OSError as err:
            raise AccessFileUnusable(f"{self.path} cannot be written: {err.strerror}") from err

    def _write(self, entries: Sequence[Entry]) -> None:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".access.")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(_File(entries=tuple(entries))), indent=1))
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
