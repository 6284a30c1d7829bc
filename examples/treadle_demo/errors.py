"""Every error of the demo.

TreadleError (treadle_schemas.errors)
└── DemoFailed     a stage of the wheel did not do its work; names the stage, what was awaited and where its log lies
"""

from __future__ import annotations

from treadle_schemas.errors import TreadleError

__all__ = ["DemoFailed"]


class DemoFailed(TreadleError):
    """A stage of the wheel did not do its work."""

    def __init__(self, stage: str, problem: str) -> None:
        super().__init__(f"{stage}: {problem}")
        self.stage = stage
