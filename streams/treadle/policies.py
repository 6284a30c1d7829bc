"""Which policy a recorder works under: what is private in its workspace, and what may be done with whose interactions.

The workspace's settings decide. A process knows them from a file beside its spool, or from Kafka once a background thread has read them;
the caller of `record` never waits for either. A process that has neither works under the strictest built-in policy, and says so once.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
from treadle_schemas.canonical import loads
from treadle_schemas.codec import to_json
from treadle_schemas.errors import SettingError, TreadleError
from treadle_schemas.ids import check_workspace
from treadle_schemas.pii import STRICTEST, PiiPolicy, RightsRule, rights_of
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle.keys import KeyRing, ring_of
from treadle.redaction import RedactionRefused, Redactor
from treadle.settings import Settings

__all__ = ["CapturePolicy", "PolicySource", "cache_file", "hash_key", "remember"]

REFRESH_S: Final = 30.0
"""How long a change of the settings takes at most to reach a running process."""
RETRY_S: Final = 5.0
_LOG = logging.getLogger("treadle")


class _Cached(msgspec.Struct, frozen=True, kw_only=True):
    """What the cache file holds."""

    workspace: str
    pii: PiiPolicy
    rights: tuple[RightsRule, ...] = ()
    encrypt: str = "nothing"


@dataclass(frozen=True)
class CapturePolicy:
    """One version of a workspace's policy, ready for use from any thread."""

    redactor: Redactor
    rules: tuple[RightsRule, ...]
    name: str
    version: int
    keys: KeyRing | None = None
    """Of a workspace that encrypts: the keys of its subjects."""

    @cached_property
    def header(self) -> str:
        """What `ce_pii` says of it."""
        return "off" if self.name == "off" else f"{self.name}/{self.version}"

    def rights_of(self, value: Mapping[str, Any]) -> dict[str, str] | None:
        """What is denied of an interaction, or None. Ask before redaction, which may hide the subject."""
        return rights_of(self.rules, value) if self.rules else None


class PolicySource:
    """The policy of a workspace, as far as this process knows it. `current` never blocks and never fails."""

    def __init__(
        self,
        workspace: str,
        settings: Settings,
        *,
        policy: PiiPolicy | None = None,
        bootstrap_servers: str | None = None,
    ) -> None:
        """`policy` fixes one for good: tests, and tools that work on files."""
        self._workspace = workspace
        self._settings = settings
        self._servers = bootstrap_servers
        self._fixed = policy is not None
        self._key, key_problem = _key_or_problem(settings)
        if key_problem:
            _LOG.warning("PII values are masked instead of hashed: %s", key_problem)
        self._current = _prepared(policy, (), self._key, None) if policy is not None else None
        self._warned = False
        self._stat: tuple[int, int] | None = None
        self._stop = threading.Event()
        self._thread: tuple[int, threading.Thread] | None = None

    def current(self) -> CapturePolicy:
        """The policy in force: from memory, else from the cache file, else the strictest built-in one."""
        return self._current or self._first()

    def refresh(self) -> None:
        """Follow the workspace's settings in a daemon thread from now on; where it does, nothing happens. A forked child starts its own."""
        if self._fixed or (self._thread is not None and self._thread[0] == os.getpid()):
            return
        self._stop = threading.Event()
        thread = threading.Thread(target=self._follow, args=(self._stop,), name="treadle-policy", daemon=True)
        self._thread = (os.getpid(), thread)
        thread.start()

    def close(self) -> None:
        """Let the thread end; it is not waited for."""
        self._stop.set()

    def refresh_now(self) -> bool:
        """Read the settings from Kafka in the caller's thread; whether there are any. Raises LogError."""
        from treadle.log import read

        newest: bytes | None = None
        for record in read(self._servers or self._settings.bootstrap_servers, topic(self._workspace, "settings"), 1):
            newest = record.value
        if newest is None:
            return False
        found = msgspec.convert(loads(newest), WorkspaceSettings)
        self._use(_Cached(workspace=self._workspace, pii=found.pii, rights=found.rights, encrypt=found.encrypt))
        remember(self._settings.home, found)
        return True

    def _first(self) -> CapturePolicy:
        self._read_cache()
        if self._current is None:
            if not self._warned:
                self._warned = True
                _LOG.warning(
                    "workspace %s: this process has never seen its PII policy; until it has, the strictest built-in one is used",
                    self._workspace,
                )
            # not kept in `_current`: the cache file is looked at again until there is one
            # a machine that has keys of the workspace knows that it encrypts
            folder = self._settings.keys_folder / self._workspace
            keys = ring_of(self._workspace, self._settings) if folder.exists() else None
            made = _strictest(self._key)
            return made if keys is None else replace(made, keys=keys)
        return self._current

    def _read_cache(self) -> None:
        try:
            path = cache_file(self._settings.home, self._workspace)
            stat = path.stat()
            changed = (stat.st_mtime_ns, stat.st_ino)
            if changed == self._stat:
                return
            self._stat = changed
            cached = msgspec.json.decode(path.read_bytes(), type=_Cached)
            if cached.workspace == self._workspace:
                self._use(cached)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError, TreadleError, ValueError) as err:
            # what cannot be read says nothing; the policy in force stays in force
            _LOG.warning("workspace %s: its cached PII policy cannot be used: %s", self._workspace, type(err).__name__)

    def _use(self, cached: _Cached) -> None:
        now = self._current
        keys = ring_of(self._workspace, self._settings) if cached.encrypt == "subjects" else None
        if now is None or (now.redactor.policy, now.rules, now.keys) != (cached.pii, cached.rights, keys):
            self._current = _prepared(cached.pii, cached.rights, self._key, keys)

    def _follow(self, stop: threading.Event) -> None:
        warmed: CapturePolicy | None = None
        while not stop.is_set():
            wait_s = REFRESH_S
            try:
                if not self.refresh_now():
                    wait_s = RETRY_S
            except Exception as err:  # this thread only makes things newer: whatever fails is tried again
                _LOG.debug("workspace %s: its settings could not be read: %s", self._workspace, err)
                self._read_cache()
                wait_s = RETRY_S
            if warmed is not self._current and self._current is not None:
                warmed = self._current
                try:
                    warmed.redactor.warm()
                except RedactionRefused:
                    pass  # the policy refuses phone numbers
            stop.wait(wait_s)


def remember(home: Path, settings: WorkspaceSettings) -> None:
    """Write what recorders of this machine need to know of a workspace, all or nothing, readable by this user alone. Raises OSError."""
    path = cache_file(home, settings.workspace)
    cached = _Cached(workspace=settings.workspace, pii=settings.pii, rights=settings.rights, encrypt=settings.encrypt)
    text = json.dumps(to_json(cached), indent=1).encode()
    try:
        if path.read_bytes() == text:
            return
    except OSError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{settings.workspace}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def cache_file(home: Path, workspace: str) -> Path:
    """Where this machine remembers a workspace's policy."""
    return home / "policy" / f"{check_workspace(workspace)}.json"


def hash_key(settings: Settings) -> bytes | None:
    """The secret of the keyed hash: TREADLE_PII_KEY, else the file, else None. Raises SettingError for a file that is not usable."""
    if settings.pii_key is not None:
        return settings.pii_key.encode()
    named = settings.pii_key_file
    path = named or settings.home / "pii.key"
    try:
        key = path.read_bytes().strip()
    except FileNotFoundError:
        if named is None:
            return None
        raise SettingError(f"TREADLE_PII_KEY_FILE={path}: no such file") from None
    except OSError as err:
        raise SettingError(f"the file of the PII key, {path}, cannot be read: {err.strerror}") from None
    if len(key) < 16:
        raise SettingError(
            f"the PII key in {path} has {len(key)} bytes; use 16 or more, for example of `openssl rand -hex 32`"
        )
    return key


def _key_or_problem(settings: Settings) -> tuple[bytes | None, str | None]:
    try:
        return hash_key(settings), None
    except SettingError as err:
        return None, str(err)


def _prepared(
    policy: PiiPolicy, rules: tuple[RightsRule, ...], key: bytes | None, keys: KeyRing | None
) -> CapturePolicy:
    return CapturePolicy(Redactor(policy, key), rules, policy.name, policy.version, keys)


_strictest_made: dict[bytes | None, CapturePolicy] = {}


def _strictest(key: bytes | None) -> CapturePolicy:
    made = _strictest_made.get(key)
    if made is None:
        made = _strictest_made.setdefault(key, _prepared(STRICTEST, (), key, None))
    return made
