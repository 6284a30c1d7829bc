"""Writes the golden examples anew."""

from treadle_schemas.examples import write

for path in write():
    print(path)
