"""Graders on a real broker: functions, commands and a model behind a local endpoint; repeated, refused, out of budget, killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle
from treadle.log import Admin
from treadle_schemas import Metric, Outcome, WorkspaceSettings
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.grader import Folder, GraderConfig, Place, Tally, run_grader
from treadle_streams.grader.errors import BudgetSpent, EndpointDown, GraderChanged, GraderRefused, GraderRunning

from .api_server import ApiServer

PARTITIONS = 2
JUDGE = """
import os, time
def judge(interaction):
    said = interaction.messages[-1]["content"]
    print("this is no answer")
    if "raise" in said:
        raise ValueError("cannot")
    if "hang" in said:
        time.sleep(60)
    if "crash" in said:
        os._exit(7)
    if "unclear" in said:
        return None
    return {"value": "good" in said, "reason": "it says so"}
"""


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


class Bench:
    """A workspace, a home and a judge's endpoint."""

    def __init__(self, servers: str, workspace: str, home: Path, api: ApiServer) -> None:
        self.servers, self.workspace, self.home, self.api = servers, workspace, home, api
        metrics = (Metric(name="ok", type="bool", required=True),)
        settings = WorkspaceSettings(workspace=workspace, partitions=PARTITIONS, metrics=metrics, reward="0.0")
        workspaces.create(servers, settings)
        (home / "prompt.md").write_text("Is the answer good?")
        (home / "judging.py").write_text(JUDGE)

    def record(self, *said: str, **changes: Any) -> list[treadle.Handle]:
        with treadle.Recorder(self.workspace, bootstrap_servers=self.servers) as recorder:
            handles = [
                recorder.record(
                    messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": text}],
                    interaction_id=text.replace(" ", "-"),
                    **changes,
                )
                for text in said
            ]
            assert recorder.flush(30) == 0
        return handles

    def config(self, **changes: Any) -> GraderConfig:
        said: dict[str, Any] = {"name": "tone", "metric": "ok", "retries": 0, "concurrency": 2}
        if "python" not in changes and "command" not in changes:
            said |= {"url": f"{self.api.url}/v1", "model": "judge", "prompt": self.home / "prompt.md"}
        return GraderConfig(**(said | changes)).checked()

    def grade(self, config: GraderConfig, **changes: Any) -> Tally:
        place: dict[str, Any] = {"begin": "beginning", "once": True} | changes
        where = Place(servers=self.servers, workspace=self.workspace, home=self.home, **place)
        return run_grader(config, where, threading.Event())

    def outcomes(self) -> list[Outcome]:
        with treadle.consume(self.workspace, "outcomes", bootstrap_servers=self.servers, idle_s=0.5) as found:
            return list(found)

    def verdicts(self) -> dict[str, Any]:
        found = [one for one in self.outcomes() if one.kind == "metric" and (one.source or "").startswith("grader:")]
        assert len({one.outcome_id for one in found}) == len(found), "one outcome twice"
        return {one.interaction_id or "": one.value for one in found}

    def folder(self) -> Folder:
        return Folder(self.home, self.workspace, "tone")

    def committed(self) -> int:
        partitions = [(topic(self.workspace, "interactions"), number) for number in range(PARTITIONS)]
        return sum(Admin(self.servers).committed(f"treadle.{self.workspace}.consume-grader-tone", partitions).values())


@pytest.fixture
def bench(broker: str, workspace_name: str, tmp_path: Path, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    api.reset()
    return Bench(broker, workspace_name, tmp_path, api)


def test_a_function_judges_and_what_fails_is_counted_and_written_down(bench: Bench) -> None:
    bench.record("good one", "bad one", "unclear one", "please raise", "please crash", "please hang")
    config = bench.config(python="judging:judge", timeout_s=5.0, concurrency=4)
    tally = bench.grade(config)
    assert (tally.seen, tally.graded, tally.abstained, tally.failed) == (6, 2, 1, 3)
    assert bench.verdicts() == {"good-one": True, "bad-one": False}
    reasons = {one.handle.rpartition("/")[2]: one.reason for one in bench.folder().failures()}
    assert set(reasons) == {"please-raise", "please-crash", "please-hang"}
    assert "ValueError: cannot" in reasons["please-raise"]
    assert "ended with 7" in reasons["please-crash"]
    assert "longer than 5 s" in reasons["please-hang"]
    (source,) = {one.source for one in bench.outcomes()}
    assert source == f"grader:tone@1/{tally.fingerprint}"
    assert {one.value for one in bench.outcomes() if one.kind == "comment"} == {"it says so"}
    # again over history: only what has no verdict is judged
    again = bench.grade(config)
    assert (again.known, again.graded, again.failed) == (2, 0, 3)
    # and from where it left off there is nothing
    assert bench.grade(config, begin=None).seen == 0


def test_a_changed_judge_needs_a_new_version_which_grades_anew(bench: Bench) -> None:
    bench.record("good one")
    bench.grade(bench.config())
    (bench.home / "prompt.md").write_text("Is the answer excellent?")
    with pytest.raises(GraderChanged, match="new version"):
        bench.grade(bench.config())
    assert bench.grade(bench.config(version="2")).graded == 1
    versions = {(one.source or "").partition("@")[2].partition("/")[0] for one in bench.outcomes()}
    assert versions == {"1", "2"}


def test_a_command_judges_by_json(bench: Bench) -> None:
    bench.record("good one", "fails here", "hangs here")
    script = bench.home / "judge.py"
    script.write_text(
        "import json, sys, time\n"
        "given = json.load(sys.stdin)\n"
        "said = given['messages'][-1]['content']\n"
        "if 'hangs' in said: time.sleep(60)\n"
        "if 'fails' in said: sys.exit('no idea')\n"
        "json.dump({'value': 'good' in said, 'usage': {'input_tokens': 7, 'usd': 0.5}}, sys.stdout)\n"
    )
    tally = bench.grade(bench.config(command=f"{sys.executable} {script}", timeout_s=4.0))
    assert (tally.graded, tally.failed) == (1, 2)
    assert bench.verdicts() == {"good-one": True}
    assert {"no idea" in one.reason for one in bench.folder().failures()} == {True, False}
    spent = bench.folder().has_spent()
    assert (spent.calls_total, spent.tokens_total, spent.usd_total) == (3, 7, 0.5)


def test_a_model_judges_what_it_is_shown_and_nothing_else_is_asked(bench: Bench) -> None:
    bench.record("good one", "bad one", "unclear one")
    tally = bench.grade(bench.config(usd_per_million_input=1.0, usd_per_million_output=2.0))
    assert (tally.graded, tally.abstained) == (2, 1)
    assert bench.verdicts() == {"good-one": True, "bad-one": False}
    assert len(bench.api.requests) == 3
    system, user = bench.api.requests[0]["messages"]
    assert system["content"].startswith("Is the answer good?")
    shown = json.loads(user["content"].partition("\n\n")[2])
    assert [message["role"] for message in shown["asked"] + shown["answered"]] == ["user", "assistant"]
    spent = bench.folder().has_spent()
    assert spent.tokens_total == 3 * 8
    assert spent.usd_total == pytest.approx(3 * (5 * 1.0 + 3 * 2.0) / 1e6)
    said = [one.usage for one in bench.outcomes() if one.kind == "metric"]
    assert [(u["calls"], u["prompt_tokens"], u["completion_tokens"], u["usd"]) for u in said if u] == [
        (1, 5, 3, 1.1e-05)
    ] * 2


def test_an_answer_that_passes_is_asked_for_again_and_each_try_costs(bench: Bench) -> None:
    bench.record("good one")
    assert bench.grade(bench.config(model="judge-flaky", retries=2)).graded == 1
    assert bench.folder().has_spent().calls_total == 2
    assert [(one.usage or {})["calls"] for one in bench.outcomes() if one.kind == "metric"] == [2]


@pytest.mark.parametrize("model", ["judge-denied", "judge-moved"])
def test_a_refusal_ends_the_grader_and_a_redirect_is_not_followed(bench: Bench, model: str) -> None:
    bench.record("good one", "bad one")
    with pytest.raises(GraderRefused):
        bench.grade(bench.config(model=model, concurrency=1))
    assert len(bench.api.requests) == 1
    assert bench.verdicts() == {}
    assert bench.grade(bench.config(), begin=None).graded == 2  # nothing was committed


def test_an_endpoint_that_is_down_fails_nothing(bench: Bench) -> None:
    bench.record(*(f"good {n}" for n in range(4)))
    with pytest.raises(EndpointDown):
        bench.grade(bench.config(model="judge-broken", give_up_after=3))
    with pytest.raises(EndpointDown):
        bench.grade(bench.config(url="http://127.0.0.1:9/v1"))
    tally = bench.folder().tally()
    assert tally is not None
    assert tally.state.startswith("ended: grader tone: the last")
    assert bench.folder().failures() == []
    assert bench.grade(bench.config(), begin=None).graded == 4


def test_a_budget_stops_the_grader_and_a_larger_one_goes_on_without_repeating(bench: Bench) -> None:
    bench.record(*(f"good {n}" for n in range(6)))
    with pytest.raises(BudgetSpent, match="calls_total is 2"):
        bench.grade(bench.config(calls_total=2))
    assert len(bench.verdicts()) == 2
    tally = bench.grade(bench.config(calls_total=20), begin=None)
    assert (tally.known, tally.graded) == (2, 4)
    assert len(bench.api.requests) == 6
    assert len(bench.verdicts()) == 6


def test_what_may_not_be_evaluated_is_not_shown_to_the_judge(bench: Bench) -> None:
    handles = bench.record("good 0", "good 1", "good 2", "good 3")
    with treadle.Recorder(bench.workspace, bootstrap_servers=bench.servers) as recorder:
        recorder.rights(handles[0], eval="deny")
        recorder.rights(handles[1], train="deny")
        recorder.rights(handles[2], eval="deny", observed_at="2026-01-01T00:00:00Z")
        recorder.rights(handles[2], eval="allow")
        recorder.flush(30)
    tally = bench.grade(bench.config(filter="agent = 'agent'"))
    assert (tally.denied, tally.graded) == (1, 3)
    assert all("good 0" not in request["messages"][1]["content"] for request in bench.api.requests)


def test_since_goes_back_to_a_time_and_a_new_grader_begins_at_the_end(bench: Bench) -> None:
    bench.record("good 0")
    assert bench.grade(bench.config(), begin=None).seen == 0
    bench.record("good 1")
    assert bench.grade(bench.config(), begin=None).seen == 1
    assert bench.grade(bench.config(), begin=0).seen == 2


class Following(threading.Thread):
    """A grader that runs until it is told to end."""

    def __init__(self, bench: Bench, config: GraderConfig) -> None:
        super().__init__()
        self.quit = threading.Event()
        self.tally: Tally | None = None
        self._config = config
        self._place = Place(
            servers=bench.servers, workspace=bench.workspace, home=bench.home, begin="beginning", once=False
        )

    def run(self) -> None:
        self.tally = run_grader(self._config, self._place, self.quit)

    def end(self) -> Tally:
        self.quit.set()
        self.join(60)
        assert self.tally is not None
        return self.tally


def wait(what: str, condition: Callable[[], bool], deadline_s: float = 150.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline_s} s"
        time.sleep(0.1)


def test_a_grader_follows_waits_for_the_next_day_and_leaves_the_rest_for_the_next_start(bench: Bench) -> None:
    bench.record("good 0")
    follower = Following(bench, bench.config(calls_per_day=3))
    follower.start()
    wait("what was there is graded", lambda: len(bench.verdicts()) == 1)
    bench.record("good 1")
    wait("what comes is graded", lambda: len(bench.verdicts()) == 2)
    bench.record("good 2", "good 3")

    def waits() -> bool:
        tally = bench.folder().tally()
        return tally is not None and tally.state.startswith("waiting: the budget is spent: calls_per_day is 3")

    wait("the day's budget is spent", waits)
    tally = follower.end()
    assert (tally.state, tally.graded, tally.left) == ("ended", 3, 1)
    assert bench.grade(bench.config(), begin=None).graded == 1
    assert len(bench.verdicts()) == 4


def command(bench: Bench, *arguments: str) -> list[str]:
    root = [sys.executable, "-m", "treadle", "--home", str(bench.home), "--bootstrap-servers", bench.servers]
    return [*root, "grader", *arguments]


def test_a_killed_grader_judges_the_rest_and_publishes_nothing_twice(bench: Bench) -> None:
    bench.record(*(f"good {n}" for n in range(12)))
    script = bench.home / "judge.sh"
    # the fifth judgement kills the grader itself, after four were made and some of them published
    script.write_text(
        f"cat > /dev/null; n=$(cat {bench.home}/n 2>/dev/null || echo 0); echo $((n+1)) > {bench.home}/n; "
        f"[ $n = 9 ] && kill -9 $PPID; echo true\n"
    )
    (bench.home / "tone.toml").write_text(
        f'name = "tone"\nmetric = "ok"\ncommand = "sh {script}"\nconcurrency = 1\nretries = 0\n'
    )
    start = command(bench, "run", bench.workspace, "--config", str(bench.home / "tone.toml"), "--once")
    first = subprocess.run([*start, "--from-beginning"], check=False, timeout=90)
    assert first.returncode == -signal.SIGKILL
    published = bench.verdicts()
    assert 0 < len(published) <= 8  # those of whole commits: how many records the first one had is Kafka's choice
    second = subprocess.run([*start, "--json"], capture_output=True, text=True, check=False, timeout=90)
    assert second.returncode == 0, second.stderr
    tally = json.loads(second.stdout)
    left = 12 - len(published)
    assert (tally["graded"], tally["seen"]) == (left, left)
    assert set(bench.verdicts().values()) == {True}
    assert len(bench.verdicts()) == 12
    shown = subprocess.run(command(bench, "status", bench.workspace, "--name", "tone"), capture_output=True, text=True)
    assert f"{10 + left} calls" in shown.stdout, shown.stdout + shown.stderr  # the killed one counts


def test_the_command_says_how_far_the_grader_agrees_with_people(bench: Bench) -> None:
    handles = bench.record("good 0", "good 1", "bad 2", "bad 3", "good 4")
    bench.grade(bench.config())
    with treadle.Recorder(bench.workspace, bootstrap_servers=bench.servers) as recorder:
        for handle, label in zip(handles, (True, True, False, True), strict=False):
            recorder.outcome(handle, "ok", label, source="desk")
        recorder.flush(30)
    done = subprocess.run(
        command(bench, "agreement", bench.workspace, "--grader", "tone", "--human", "desk", "--metric", "ok", "--json"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["n"], found["accuracy"], found["kappa"], found["only_grader"]) == (4, 0.75, 0.5, 1)
    assert found["accuracy_95"][0] < 0.75 < found["accuracy_95"][1]


def test_one_grader_of_a_name_runs_on_a_machine(bench: Bench) -> None:
    with bench.folder().locked(), pytest.raises(GraderRunning):
        bench.grade(bench.config())
