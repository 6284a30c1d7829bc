"""The guard: watches the live grades of the champion on `.progress`, long before rows settle, and rolls back without a person.

`EProcess` and `GuardState` are pure; `GuardService` is the process around them.
"""

from treadle_trainer.guard._eprocess import BETS, EProcess
from treadle_trainer.guard._service import GuardService
from treadle_trainer.guard._state import Alarm, GuardState, live_value

__all__ = ["BETS", "Alarm", "EProcess", "GuardService", "GuardState", "live_value"]
