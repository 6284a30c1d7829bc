"""The whole story in one command: `python -m background_evaluator`, in the folder `examples`.

1. Kafka and a workspace whose metric is `judge`. 2. The evaluator starts, then the agent works. 3. The evaluator is killed in the middle
and started again. 4. The join grades; rows are printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import treadle
from treadle_schemas import Metric, WorkspaceSettings
from treadle_streams import workspaces
from treadle_streams.broker import BrokerSettings, resolve

EXAMPLES = Path(__file__).resolve().parents[1]
KILLED_AFTER = 3


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", default="background-evaluator")
    workspace = parser.parse_args().workspace
    with tempfile.TemporaryDirectory(prefix="evaluator-") as folder, kafka(Path(folder)) as servers:
        judge = Metric(name="judge", required=True, low=0.0, high=1.0)
        settings = WorkspaceSettings(workspace=workspace, partitions=2, metrics=(judge,), reward="judge")
        workspaces.create(servers, settings, if_missing=True)
        os.environ |= {"TREADLE_BOOTSTRAP_SERVERS": servers, "TREADLE_WORKSPACE": workspace}

        place = Path(folder) / "place.json"
        evaluator = start("background_evaluator.evaluator", place, str(KILLED_AFTER))
        start("background_evaluator.agent").wait()
        print(f"the evaluator died: {evaluator.wait(60)}")
        start("background_evaluator.evaluator", place).wait()

        start("treadle", "worker", "--workspace", workspace, "--once-caught-up").wait()
        with treadle.consume(workspace, "graded", idle_s=1) as rows:
            for row in rows:
                print(f"judge {row.grade.reward}  {row.interaction['messages'][-1]['content']}")


def start(module: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """A Python process of its own."""
    return subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], cwd=EXAMPLES)


@contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """The configured Kafka, else a local one for as long as this runs."""
    configured = treadle.Settings.load().configured_servers
    if configured is None:
        os.environ["TREADLE_HOME"] = str(folder / "home")
    broker = resolve(BrokerSettings(directory=folder / "broker", bootstrap_servers=configured))
    try:
        yield broker.bootstrap
    finally:
        if configured is None:
            broker.stop()


if __name__ == "__main__":
    main()
