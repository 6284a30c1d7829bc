"""The `treadle` command: one tree, composed from the tables of the packages that are installed.

Each package owns a table `COMMANDS: dict[str, tuple[str, str]]`, command name -> ("module:attribute", "one line of help"). Listing the
commands reads the tables only; a command's module is imported when that command runs, so that help is quick and a missing extra concerns
nobody who does not need it.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by a gate, 4 not authorised, 5 a dependency cannot be reached, 130 interrupted.
"""

from treadle.cli._root import main

__all__ = ["main"]
