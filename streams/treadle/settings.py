"""Where treadle finds things: each environment variable is declared once, here, with its type and default.

| variable | meaning | default |
|---|---|---|
| TREADLE_HOME | folder of all local state: broker, corpora, releases, logs | the user's data directory + /treadle |
| TREADLE_BOOTSTRAP_SERVERS | Kafka to use; set, treadle starts none of its own | the local broker of TREADLE_HOME |
| TREADLE_WORKSPACE | workspace of commands and recorders that name none | none |
| TREADLE_CORPUS_ROOT | folder below which deeplake://ORG/NAME is resolved | TREADLE_HOME/corpora |
| TREADLE_CORPUS_CACHE_BYTES | most bytes that copies of corpora in object stores may take | 21474836480 |
| TREADLE_TRAINER_BYTES | most bytes that jobs, token columns and releases may take together | as much as the disk has |
| TREADLE_DISABLED | 1: recorders capture nothing | 0 |
| TREADLE_SPOOL | folder in which recorders keep events until Kafka has them; must outlive the container | TREADLE_HOME/spool |
| TREADLE_SPOOL_BYTES | most bytes that one workspace's spool may take | 4294967296 |
| TREADLE_SPOOL_FULL | what a full spool does: refuse, or block for at most a second and then refuse | refuse |
| TREADLE_PII_KEY | secret of the keyed hash that replaces private values; the same wherever they shall join | the file below |
| TREADLE_KEYS | folder of the subjects' keys of encrypted workspaces, the same for all machines of one | TREADLE_HOME/keys |
| TREADLE_PII_KEY_FILE | file that holds that secret | TREADLE_HOME/pii.key, where it exists |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from treadle_schemas.errors import SettingError
from treadle_schemas.home import home_folder

__all__ = ["Settings", "bootstrap_file"]

SPOOL_BYTES: Final = 4 * 1024 * 1024 * 1024
"""More than an hour of 3 KB events at 333 a second."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one process. `Settings.load()` reads the environment."""

    home: Path
    """Folder of all local state."""
    configured_servers: str | None = None
    """Bootstrap servers that the user named, `host:port,host:port`."""
    workspace: str | None = None
    """Default workspace."""
    corpus_root: Path
    """Folder below which deeplake://ORG/NAME is resolved."""
    disabled: bool = False
    """Recorders capture nothing."""
    spool: Path | None = None
    """Folder of recorders' spools, one folder a workspace; None means `home`/spool. It must outlive the container."""
    spool_bytes: int = SPOOL_BYTES
    """Most bytes that one workspace's spool may take on this machine."""
    spool_full: Literal["block", "refuse"] = "refuse"
    """What `record` does when the spool is full: refuse at once, or wait for at most treadle.spool.BLOCK_S and then refuse."""
    pii_key: str | None = field(default=None, repr=False)
    """Secret of the keyed hash that replaces private values. Never logged, and never on a topic."""
    pii_key_file: Path | None = None
    """File that holds that secret; None means `home`/pii.key where it exists."""

    keys: Path | None = None
    """Folder of the keys of encrypted workspaces, one folder a workspace; None means `home`/keys."""

    trainer_bytes: int | None = None
    """Most bytes that jobs, token columns and releases may take together on this machine; None: what the disk has."""

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment. Raises SettingError naming the variable."""
        env = os.environ if environ is None else environ
        home = home_folder(env)
        disabled = env.get("TREADLE_DISABLED", "0").lower()
        if disabled not in ("", "0", "1", "true", "false"):
            raise SettingError(f"TREADLE_DISABLED={disabled!r}: expected 0 or 1")
        full = env.get("TREADLE_SPOOL_FULL") or "refuse"
        if full not in ("block", "refuse"):
            raise SettingError(f"TREADLE_SPOOL_FULL={full!r}: expected block or refuse")
        size = env.get("TREADLE_SPOOL_BYTES") or str(SPOOL_BYTES)
        if not (size.isascii() and size.isdigit() and int(size) > 0):
            raise SettingError(f"TREADLE_SPOOL_BYTES={size!r}: expected a number of bytes")
        budget = env.get("TREADLE_TRAINER_BYTES") or None
        if budget is not None and not (budget.isascii() and budget.isdigit() and int(budget) > 0):
            raise SettingError(f"TREADLE_TRAINER_BYTES={budget!r}: expected a number of bytes")
        return cls(
            home=home,
            trainer_bytes=None if budget is None else int(budget),
            spool=Path(env.get("TREADLE_SPOOL") or home / "spool").expanduser().absolute(),
            spool_bytes=int(size),
            spool_full="block" if full == "block" else "refuse",
            configured_servers=env.get("TREADLE_BOOTSTRAP_SERVERS") or None,
            workspace=env.get("TREADLE_WORKSPACE") or None,
            keys=Path(folder).expanduser().absolute() if (folder := env.get("TREADLE_KEYS")) else None,
            corpus_root=Path(env.get("TREADLE_CORPUS_ROOT") or home / "corpora").expanduser().absolute(),
            disabled=disabled in ("1", "true"),
            pii_key=env.get("TREADLE_PII_KEY") or None,
            pii_key_file=Path(file).expanduser().absolute() if (file := env.get("TREADLE_PII_KEY_FILE")) else None,
        )

    @property
    def spool_folder(self) -> Path:
        """The folder below which each workspace has its spool."""
        return self.spool or self.home / "spool"

    @property
    def keys_folder(self) -> Path:
        """The folder below which each encrypted workspace has its keys."""
        return self.keys or self.home / "keys"

    @property
    def bootstrap_servers(self) -> str:
        """The configured servers, else those of the local broker that `treadle up` or `treadle demo` announced.

        Raises SettingError when there is neither.
        """
        if self.configured_servers:
            return self.configured_servers
        path = bootstrap_file(self.home)
        try:
            return str(json.loads(path.read_text())["bootstrap_servers"])
        except (OSError, ValueError, KeyError):
            raise SettingError(
                f"no Kafka is known: TREADLE_BOOTSTRAP_SERVERS is not set and no local broker runs under {self.home}. "
                "Start one with `treadle up`, or set TREADLE_BOOTSTRAP_SERVERS=host:port"
            ) from None


def bootstrap_file(home: Path) -> Path:
    """The file in which the local broker announces its address: JSON with `bootstrap_servers`."""
    return home / "run" / "broker.json"
