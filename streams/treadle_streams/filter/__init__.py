"""Filters: which graded rows a policy selects, said as a SQL boolean expression.

A filter names columns of the row (`agent`, `reward`, `split`, ...), metrics (`NAME` or `metrics.NAME`), tags (`tags.NAME`, of the type they
are compared with), the state of a metric (`state(NAME)`) and the snapshot's watermark (`now`). Columns win over metrics of the same name.

`compile` is the one entry point, for snapshots, `treadle tail` and whoever else selects rows: a filter means the same everywhere. It may
come from anybody: what is no filter raises FilterError and nothing else, and no filter reaches a file, the network or a setting.
"""

from treadle_streams.filter._columns import COLUMNS, PROGRESS_COLUMNS, SqlType, metric_types, progress_row
from treadle_streams.filter._engine import Filter, compile
from treadle_streams.filter._grammar import check_syntax
from treadle_streams.filter.errors import FilterError, FilterNameError, FilterSyntaxError, FilterTypeError

__all__ = [
    "COLUMNS",
    "PROGRESS_COLUMNS",
    "Filter",
    "FilterError",
    "FilterNameError",
    "FilterSyntaxError",
    "FilterTypeError",
    "SqlType",
    "check_syntax",
    "compile",
    "metric_types",
    "progress_row",
]
