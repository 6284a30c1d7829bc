"""Two treadle workers of one workspace; they end with this process."""

from __future__ import annotations

import signal
import subprocess
import sys
from os import environ
from pathlib import Path

workers = []
for name in ("a", "b"):
    home = Path(environ["DATA"], name)
    home.mkdir(parents=True)
    command = [sys.executable, "-m", "treadle", "worker", "--workspace", environ["WORKSPACE"]]
    workers.append(subprocess.Popen(command, env={**environ, "TREADLE_HOME": str(home)}))
signal.signal(signal.SIGTERM, lambda *_: [worker.terminate() for worker in workers])
for worker in workers:
    worker.wait()
