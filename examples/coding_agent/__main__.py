"""The whole story in one command: `python -m coding_agent`, in the folder `examples`.

1. Kafka and a workspace whose metric is `pr_merged`. 2. The agent fixes two bugs in a small repository and opens two pull requests, each
with a handle in its body. 3. A reviewer tries them: one is merged, one is closed. 4. Webhooks with GitHub's signature tell
`treadle ingest`, which knows nothing of the agent; a forged one is refused. 5. The join grades; rows are printed.
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
from urllib.error import HTTPError

import treadle
from treadle_schemas import Metric, WorkspaceSettings
from treadle_streams import workspaces
from treadle_streams.broker import BrokerSettings, resolve

from coding_agent import forge

EXAMPLES = Path(__file__).resolve().parents[1]
FILES = {
    "slug.py": "def slugify(title):\n    return title.lower().replace(' ', '-')\n",
    "leap.py": "def is_leap(year):\n    return year % 100 == 0\n",
    "test_tools.py": """import unittest
from leap import is_leap
from slug import slugify


class Tests(unittest.TestCase):
    def test_slugify(self):
        self.assertEqual(slugify("A  Pair of Spaces"), "a-pair-of-spaces")

    def test_is_leap(self):
        self.assertTrue(is_leap(2024) and is_leap(2000))
        self.assertFalse(is_leap(2023))
""",
}
# what the reviewer tries by hand, and the agent's tests do not
CHECKS = {
    "slugify": "from slug import slugify; assert slugify(' Around ') == 'around'",
    "is_leap": "from leap import is_leap; assert is_leap(2028)",
}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", default="coding-agent")
    workspace = parser.parse_args().workspace
    with tempfile.TemporaryDirectory(prefix="coding-agent-") as folder, kafka(Path(folder)) as servers:
        merged = Metric(name="pr_merged", type="bool", required=True)
        settings = WorkspaceSettings(workspace=workspace, partitions=2, metrics=(merged,), reward="pr_merged")
        workspaces.create(servers, settings, if_missing=True)
        os.environ |= {
            "TREADLE_BOOTSTRAP_SERVERS": servers,
            "TREADLE_WORKSPACE": workspace,
            "TREADLE_INGEST_ACCESS": f"{folder}/access.json",
        }

        repository, hub = Path(folder) / "tools", Path(folder) / "forge.json"
        repository.mkdir()
        for name, text in FILES.items():
            (repository / name).write_text(text)
        for issue in CHECKS:
            run("coding_agent.agent", repository, issue, hub)

        secret = output("treadle", "ingest", "github-secret", workspace).strip()
        receiver = start("treadle", "ingest", "--port", "0", stdout=subprocess.PIPE)
        assert receiver.stdout is not None
        url = f"{receiver.stdout.readline().split()[-1]}/v1/{workspace}/github"
        deliveries = []
        for number, check in enumerate(CHECKS.values(), 1):
            works = subprocess.run(
                [sys.executable, "-c", check], cwd=repository, stderr=subprocess.DEVNULL, check=False
            )
            pull = forge.close(hub, number, merge=works.returncode == 0)
            print(f"pull request {number}: {'merged' if pull['merged'] else 'closed without'}")
            deliveries.append(forge.webhook(pull, secret))
            forge.deliver(url, *deliveries[-1])
        forge.deliver(url, *deliveries[-1])  # GitHub delivers again when it is not sure
        try:
            forge.deliver(url, *forge.webhook(forge.pulls(hub)[-1] | {"merged": True}, "not the secret"))
        except HTTPError as err:
            print(f"a forged delivery: {err.code}")
        receiver.terminate()
        receiver.communicate()

        run("treadle", "worker", "--workspace", workspace, "--once-caught-up")
        with treadle.consume(workspace, "graded", idle_s=1) as rows:
            for row in rows:
                asked = row.interaction["messages"][1]["content"]
                print(f"reward {row.grade.reward}  {asked}  step {row.interaction['step']}")


def run(module: str, *arguments: str | Path) -> None:
    """A Python process of its own, to its end."""
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, cwd=EXAMPLES)


def output(module: str, *arguments: str) -> str:
    """What a Python process of its own prints."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, check=True, cwd=EXAMPLES, stdout=subprocess.PIPE, text=True).stdout


def start(module: str, *arguments: str, stdout: int) -> subprocess.Popen[str]:
    """A Python process of its own."""
    return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=EXAMPLES, stdout=stdout, text=True)


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
