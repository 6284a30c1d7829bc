"""The guard: watches live grades on `.progress`, long before rows settle, and acts without a person.

It rolls a champion back that falls below its predecessor, promotes a canary that is better than the champion beside it or withdraws one
that is worse, and measures the lift over a control. `EProcess`, `Units`, `Trial` and `GuardState` are pure; `GuardService` is the process
around them.
"""

from treadle_trainer.guard._eprocess import BETS, EProcess
from treadle_trainer.guard._service import GuardService
from treadle_trainer.guard._state import Alarm, GuardState, lower_bound
from treadle_trainer.guard._trial import Lift, LiveVerdict, Trial
from treadle_trainer.guard._units import Unit, Units, fast_values, live_value

__all__ = [
    "BETS",
    "Alarm",
    "EProcess",
    "GuardService",
    "GuardState",
    "Lift",
    "LiveVerdict",
    "Trial",
    "Unit",
    "Units",
    "fast_values",
    "live_value",
    "lower_bound",
]
