"""Filters in a process that the kernel ends at its first attempt to open a file or a socket, or to start a program.

`python caged.py SEED COUNT` compiles and evaluates hostile expressions; `python caged.py escape` opens a file, to show that it is one.
What a first use loads is loaded before the door closes.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import random
import struct
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz.filters import ATTACKS, SEEDS, hostile
from treadle_corpus.testing import graded
from treadle_streams.filter import FilterError, SqlType, compile

_FORBIDDEN: Final = {
    # open creat openat openat2 socket connect execve execveat rename unlink unlinkat renameat
    "x86_64": (2, 85, 257, 437, 41, 42, 59, 322, 82, 87, 263, 264),
    "aarch64": (56, 437, 198, 203, 221, 281, 35, 38),
}
_METRICS: Final[dict[str, SqlType]] = {"reward": "DOUBLE", "cost": "DOUBLE", "resolved": "BOOLEAN", "a b": "DOUBLE"}
_ROWS: Final = [
    graded("i", reward=0.5, tags={"n": 7, "team": "red"}, metrics={"cost": ("observed", 12)}).row,
    graded("j", reward=None, tags={"n": "\ud83d", "team": None}, step=2**70).row,
]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def close_the_door() -> None:
    """seccomp(2): from here on a forbidden system call ends the process with SIGSYS."""
    numbers = _FORBIDDEN[platform.machine()]
    program = struct.pack("HBBI", 0x20, 0, 0, 0)  # load the number of the call
    for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True):
        program += struct.pack("HBBI", 0x15, left, 0, number)  # equal: jump to the last instruction
    program += struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)  # allow
    program += struct.pack("HBBI", 0x06, 0, 0, 0x80000000)  # end the process
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(_Program(len(program) // 8, program)), 0, 0):
        print("no seccomp here")
        raise SystemExit(77)


def evaluate(texts: list[str]) -> int:
    """How many of them are filters."""
    count = 0
    for text in texts:
        try:
            compile(text, _METRICS, 1_715_774_400_000).select(_ROWS)
            count += 1
        except FilterError as err:
            str(err)
    return count


def main(args: list[str]) -> None:
    """See above."""
    logging.disable(logging.WARNING)
    evaluate([*SEEDS, *ATTACKS])
    before = [hostile(chance) for chance in [random.Random(0)] for _ in range(100)]
    evaluate(before)
    close_the_door()
    if args == ["escape"]:
        open("/etc/hostname")  # noqa: SIM115
        return
    chance = random.Random(int(args[0]))
    texts = [*ATTACKS, *(hostile(chance) for _ in range(int(args[1])))]
    print(f"{evaluate(texts)} of {len(texts)} are filters")


if __name__ == "__main__":
    main(sys.argv[1:])
