"""The supervisor: keeps the wheel's processes running on one machine, for `treadle up` and for the demo.

`Supervisor` runs processes inside the caller's; `treadle up` puts one into a daemon of its own, `treadle down` ends it, `treadle status`
says how everything is.
"""

from treadle_streams.supervisor._errors import (
    AlreadySupervised,
    OtherBroker,
    SupervisorBusy,
    SupervisorError,
    SupervisorStartFailed,
)
from treadle_streams.supervisor._life import Life, Restarts, State
from treadle_streams.supervisor._process import ProcessId, last_line
from treadle_streams.supervisor._supervisor import Event, ProcessSpec, ProcessStatus, Supervisor

__all__ = [
    "AlreadySupervised",
    "Event",
    "Life",
    "OtherBroker",
    "ProcessId",
    "ProcessSpec",
    "ProcessStatus",
    "Restarts",
    "State",
    "Supervisor",
    "SupervisorBusy",
    "SupervisorError",
    "SupervisorStartFailed",
    "last_line",
]
