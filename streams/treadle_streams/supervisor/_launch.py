"""Run as a script by file name, without the package: asks to die with its parent, then becomes the program.

    python -I -S _launch.py PARENT_PID PROGRAM ARGUMENT...

Done here and not between fork and exec of the parent, where threads of the Kafka client run and Python code may deadlock.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_NOT_FOUND = 127


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    # SIGTERM, not SIGKILL: what has transactions or jobs open gets the chance to end them
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(f"not started: the process {parent} that asked for it is gone")
    try:
        os.execvp(program[0], program)  # noqa: S606 - that is the point
    except OSError as err:
        print(f"cannot start {program[0]!r}: {err.strerror}", file=sys.stderr)
        sys.exit(_NOT_FOUND)


if __name__ == "__main__":
    main()
