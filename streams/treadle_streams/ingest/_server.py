"""The process: the application with its settings, until a signal."""

from __future__ import annotations

from collections.abc import Callable

from treadle.cli.web import run_app
from treadle.settings import Settings
from treadle_schemas.errors import SettingError

from treadle_streams.ingest._access import Access
from treadle_streams.ingest._app import make_app
from treadle_streams.ingest._desk import Desk
from treadle_streams.ingest._settings import IngestSettings

__all__ = ["serve"]


def serve(settings: Settings, own: IngestSettings, announce: Callable[[str], None]) -> None:
    """Receive until SIGTERM or SIGINT. `announce` is called with the address once connections are taken.

    At the signal open requests are finished, then Kafka is waited for; what it does not have by then stays in the spool.
    Raises SettingError, AccessFileUnusable, AddressInUse, AppFailed.
    """
    if settings.disabled:
        raise SettingError("TREADLE_DISABLED is set: a receiver that captures nothing would acknowledge what it loses")
    access = Access(own.access_file, github_secret=own.github_secret, workspace=own.workspace)
    access.checked()
    app = make_app(own, access, Desk(settings))
    run_app(app, own.host, own.port, announce, connections=own.connections, drain_s=own.drain_s)
