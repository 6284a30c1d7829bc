"""Stopping a worker between two steps, for fault tests: the one place that reads TREADLE_FAULT_STOP_AT.

`TREADLE_FAULT_STOP_AT=send:12` stops the whole process (SIGSTOP) right after step `send` of its first batch with number 12 or above, once;
`send:12:t` waits for a batch that only timers made. Without the variable nothing here does anything.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from typing import Final, Literal

from treadle_schemas.errors import SettingError

__all__ = ["STEPS", "Faults", "Step"]

Step = Literal["plan", "begin", "produce", "flush", "send", "commit", "local"]
STEPS: Final[tuple[Step, ...]] = ("plan", "begin", "produce", "flush", "send", "commit", "local")


class Faults:
    """Counts batches and stops the process where it was asked to."""

    def __init__(self, environ: Mapping[str, str] | None = None, fired: threading.Event | None = None) -> None:
        """Lanes of one process share `fired`, so that it is stopped once. Raises SettingError when the variable names no step."""
        text = (os.environ if environ is None else environ).get("TREADLE_FAULT_STOP_AT", "")
        self.batch = 0
        self.timers_only = False
        armed = bool(text)
        self._fired = fired or threading.Event()
        if not armed:
            self._fired.set()
        step, _, rest = text.partition(":")
        number, _, flag = rest.partition(":")
        if armed and (step not in STEPS or not number.isdigit() or flag not in ("", "t")):
            raise SettingError(
                f"TREADLE_FAULT_STOP_AT={text!r}: expected STEP:BATCH or STEP:BATCH:t, STEP of {', '.join(STEPS)}"
            )
        self._step = step
        self._number = int(number or 0)
        self._wants_timers = flag == "t"

    def after(self, step: Step) -> None:
        """Called after each step of a transaction."""
        if (
            not self._fired.is_set()
            and step == self._step
            and self.batch >= self._number
            and (self.timers_only or not self._wants_timers)
        ):
            self._fired.set()
            os.write(2, b"fault: stopped after %s of batch %d\n" % (step.encode(), self.batch))
            os.kill(os.getpid(), signal.SIGSTOP)
