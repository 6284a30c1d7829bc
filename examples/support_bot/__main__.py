"""The whole story in one command: `python -m support_bot`, in the folder `examples`.

1. Kafka and a workspace whose metric is `kept`. 2. Customers write, the bot answers, each handle lands in the shop's database. 3. Some
customers come back with the same question. 4. Another process, which knows the database alone, reports. 5. The join grades.
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

from support_bot import tickets

EXAMPLES = Path(__file__).resolve().parents[1]
QUESTIONS = (
    "Where is my refund for order 1041?",
    "I forgot my password, what now?",
    "The screen of my toaster shows a fish.",
    "When does my delivery arrive?",
    "Please send me the invoice of May.",
    "My lamp sings at night.",
)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", default="support-bot")
    workspace = parser.parse_args().workspace
    with tempfile.TemporaryDirectory(prefix="support-bot-") as folder, kafka(Path(folder)) as servers:
        kept = Metric(name="kept", type="bool", required=True)
        settings = WorkspaceSettings(workspace=workspace, partitions=2, metrics=(kept,), reward="kept")
        workspaces.create(servers, settings, if_missing=True)
        os.environ |= {"TREADLE_BOOTSTRAP_SERVERS": servers, "TREADLE_WORKSPACE": workspace}

        database = Path(folder) / "tickets.db"
        db = tickets.connect(database)
        for question in QUESTIONS:
            tickets.ask(db, question)
        run("support_bot.bot", database)
        for ticket in tickets.all_tickets(db):
            # "turn it off and on again" helped nobody
            tickets.closed(db, ticket.number, reopened="again" in (ticket.answer or ""))
        db.close()
        run("support_bot.followup", database)
        run("support_bot.followup", database)  # twice is as good as once

        run("treadle", "worker", "--workspace", workspace, "--once-caught-up")
        with treadle.consume(workspace, "graded", idle_s=1) as rows:
            for row in rows:
                asked, said = row.interaction["messages"][-2:]
                print(f"reward {row.grade.reward}  {asked['content']:42} {said['content']}")


def run(module: str, *arguments: str | Path) -> None:
    """A Python process of its own."""
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, cwd=EXAMPLES)


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
