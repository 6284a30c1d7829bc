"""The join's domain: outcomes meet their interactions, rows are graded, and every case has a defined result.

Pure functions over values, with time passed in: no Kafka, Faust or RocksDB. One batch of one partition goes through `plan`:

    understand (arrivals) -> fold (row, event) -> evaluate (row, clock) -> Plan (state, outputs, META)

The shell around it is `treadle_streams.worker`. What is not joined yet is listed in `plan`.
"""

from treadle_schemas.partitioner import partition_of

from treadle_streams.join.arrivals import (
    Arrival,
    InteractionEvent,
    MarkerEvent,
    OutcomeEvent,
    PartsEvent,
    Refused,
    RightsEvent,
    understand,
)
from treadle_streams.join.clock import END_MARGIN_MS, IMPORT_PATIENCE_MS, INPUTS, ImportState, Input, advanced
from treadle_streams.join.emissions import Emission
from treadle_streams.join.episode_state import is_erased_episode
from treadle_streams.join.errors import RewardError, StateError
from treadle_streams.join.fold import FoldResult, evaluate, fold
from treadle_streams.join.grading import Grading, time_up_ms
from treadle_streams.join.ledger import MAX_OUTCOMES
from treadle_streams.join.memory import MemoryPartition
from treadle_streams.join.meta import Meta
from treadle_streams.join.plan import Plan, StateReader, plan
from treadle_streams.join.state import (
    META_KEY,
    NEVER_MS,
    TIMER_PREFIX,
    RowState,
    decode,
    encode,
    index_keys,
    row_key,
    state_prefixes,
    timer_bound,
)

__all__ = [
    "END_MARGIN_MS",
    "IMPORT_PATIENCE_MS",
    "INPUTS",
    "MAX_OUTCOMES",
    "META_KEY",
    "NEVER_MS",
    "TIMER_PREFIX",
    "Arrival",
    "Emission",
    "FoldResult",
    "Grading",
    "ImportState",
    "Input",
    "InteractionEvent",
    "MarkerEvent",
    "MemoryPartition",
    "Meta",
    "OutcomeEvent",
    "PartsEvent",
    "Plan",
    "Refused",
    "RewardError",
    "RightsEvent",
    "RowState",
    "StateError",
    "StateReader",
    "advanced",
    "decode",
    "encode",
    "evaluate",
    "fold",
    "index_keys",
    "is_erased_episode",
    "partition_of",
    "plan",
    "row_key",
    "state_prefixes",
    "time_up_ms",
    "timer_bound",
    "understand",
]
