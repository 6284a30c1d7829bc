"""Checking what a producer sent against the contract, with the code that the join itself uses."""

from treadle_streams.conformance._check import Check, Found
from treadle_streams.conformance._sources import Place, from_file, from_topics

__all__ = ["Check", "Found", "Place", "from_file", "from_topics"]
