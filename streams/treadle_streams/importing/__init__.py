"""Bringing logs into a workspace: JSON lines in, events with their own times out, every bad line named. Safe to repeat.

An import has an id. It travels in the header of each event, and a begin and an end marker on every partition of interactions and outcomes
frame it: the join settles no row that it touched by time before it is over. Values are the same bytes each time, and an outcome without an
id gets one made of its content, so importing twice, or in two halves, changes nothing.

Not done here: the rules ask for a throttle by the lag of live traffic. What there is: a bound on events in flight, and `rate`.
"""

from treadle_streams.importing._export import Export
from treadle_streams.importing._lines import BadLine, Lines
from treadle_streams.importing._run import ImportReport, run_import
from treadle_streams.importing.formats import FORMATS

__all__ = ["FORMATS", "BadLine", "Export", "ImportReport", "Lines", "run_import"]
