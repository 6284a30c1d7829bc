"""The detached supervisor that `treadle up` starts: `python -m treadle_streams.supervisor PART...`, settings from the environment."""

from __future__ import annotations

import logging
import sys

from treadle.settings import Settings
from treadle_schemas.errors import TreadleError

from treadle_streams.supervisor._daemon import serve
from treadle_streams.supervisor._supervisor import Event

_log = logging.getLogger("treadle.supervisor")


def _tell(event: Event) -> None:
    _log.log(
        logging.INFO if event.kind in ("started", "stopped") else logging.WARNING, "%s: %s", event.name, event.text
    )


def main() -> None:
    """Serve until stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        serve(Settings.load(), tuple(sys.argv[1:]), on_event=_tell)
    except TreadleError as err:
        _log.error("%s", err)
        sys.exit(err.exit_code)


main()
