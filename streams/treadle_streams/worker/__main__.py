"""`python -m treadle_streams.worker`: the worker command by itself, as supervisors start it."""

from __future__ import annotations

import sys

from treadle_schemas.errors import TreadleError

from treadle_streams.worker.cli import command


def main() -> None:
    """Run the command; a TreadleError is one line on stderr and an exit code."""
    try:
        command()
    except TreadleError as err:
        sys.stderr.write(f"error: {err}\n")
        sys.exit(err.exit_code)


if __name__ == "__main__":
    main()
