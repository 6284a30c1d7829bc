"""`treadle tail`: the newest graded rows, or changes of grades, and those that follow."""

from treadle_streams.tail._tail import Kind, Row, tail

__all__ = ["Kind", "Row", "tail"]
