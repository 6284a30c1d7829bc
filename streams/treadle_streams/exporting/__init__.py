"""Views of a corpus version as files: JSON lines and Parquet, in treadle's own form and in those of other trainers."""

from treadle_streams.exporting._files import write_lines
from treadle_streams.exporting.errors import NotATable

__all__ = ["NotATable", "write_lines"]
