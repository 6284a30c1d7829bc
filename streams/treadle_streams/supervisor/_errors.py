"""Every error of this package.

::

    SupervisorError (a treadle_schemas.errors.TreadleError)
    ├── AlreadySupervised      another supervisor serves this home
    ├── SupervisorBusy         another `up` or `down` holds the home's lock for too long (a retry can help)
    ├── SupervisorStartFailed  the detached supervisor ended, or did not report in time; has the log's end
    └── OtherBroker            a supervisor serves this home, but with another Kafka than the one asked for
"""

from __future__ import annotations

from pathlib import Path

from treadle_schemas.errors import TreadleError

__all__ = ["AlreadySupervised", "OtherBroker", "SupervisorBusy", "SupervisorError", "SupervisorStartFailed"]


class SupervisorError(TreadleError):
    """Something about the processes of one home; the message names the value, the place and the way out."""


class AlreadySupervised(SupervisorError):
    """Another supervisor serves this home."""

    def __init__(self, home: Path, pid: int | None) -> None:
        self.home = home
        self.pid = pid
        who = f"process {pid}" if pid is not None else "another process"
        super().__init__(
            f"{who} already supervises {str(home)!r}. `treadle status` shows what runs, `treadle down` stops it."
        )


class SupervisorBusy(SupervisorError):
    """Another `up` or `down` was at work for longer than the deadline."""

    retriable = True

    def __init__(self, home: Path, waited_s: float) -> None:
        self.home = home
        super().__init__(
            f"another `treadle up` or `treadle down` was at work in {str(home)!r} for {waited_s:g} s. "
            "Wait for it to end, then try again."
        )


class SupervisorStartFailed(SupervisorError):
    """The detached supervisor did not come up. `log_tail` is the end of its log."""

    def __init__(self, log: Path, reason: str, log_tail: str = "") -> None:
        self.log = log
        self.log_tail = log_tail
        tail = f"\n--- end of its log ---\n{log_tail.rstrip()}" if log_tail.strip() else ""
        super().__init__(f"the supervisor did not start: {reason}. Its whole log is {str(log)!r}.{tail}")


class OtherBroker(SupervisorError):
    """What runs uses another Kafka than the one asked for."""

    def __init__(self, home: Path, present: str, asked: str) -> None:
        super().__init__(
            f"what runs for {str(home)!r} uses the Kafka at {present}, not {asked}. "
            "Run `treadle down` first, or use another TREADLE_HOME beside it."
        )
