"""The process in which a Python judge runs: a line when it is ready, then a line of JSON out for each one in, until stdin ends.

Run by its path: it imports nothing of treadle_streams.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

import msgspec
from treadle_schemas.events import Interaction


def main(target: str) -> None:
    """Serve `MODULE:FUNCTION`."""
    # answers have a descriptor of their own: what the function prints goes to stderr
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)
        answers.write("ready\n")
        answers.flush()
        for line in sys.stdin.buffer:
            given = json.loads(line)
            given.pop("handle")
            try:
                said = function(msgspec.convert(given, Interaction))
                answer = json.dumps({"said": msgspec.to_builtins(said)})
            except Exception as err:
                answer = json.dumps({"error": f"{type(err).__name__}: {err}"[:500]})
            answers.write(answer + "\n")
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[-1])
