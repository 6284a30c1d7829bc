"""The wheel of the demo: starts the processes that production runs, lets the agent play, and waits for each stage by its records.

The orchestrator decides nothing. It asks the agent to play and the world to speak, and reads on Kafka what join, snapshotter, trainer and
guard make of it; what it reports is recounted from there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from treadle.log import Admin, TailReader
from treadle_schemas import Metric, ReleaseEvent, ReleaseId, Split, WorkspaceSettings
from treadle_schemas.topics import group, topic
from treadle_streams import workspaces
from treadle_streams.supervisor import ProcessSpec, Supervisor, last_line
from treadle_trainer.cycle import read_turns
from treadle_trainer.policy import GatePolicy, GuardPolicy, ScorecardPolicy, TrainingPolicy
from treadle_trainer.registry import Outbox, Registry

from treadle_demo._children import Child
from treadle_demo.errors import DemoFailed
from treadle_demo.ledger import Ledger, Stamped
from treadle_demo.profiles import CPU, Profile
from treadle_demo.report import Drill, GuardDrill, Report, Turn, heldout_of, turn_report
from treadle_demo.view import View

__all__ = ["STAGES", "DemoSettings", "Wheel"]

STAGES = ("worker", "snapshotter", "trainer", "guard", "agent", "world")
_T = TypeVar("_T")

HELD_OUT_SHARE = 0.2
PARTITIONS = 4
GRACE_S = 1.0
"""An interaction without any outcome settles a second (and the clock's 5 s margin) after its append: its event time is long past."""
GUARD_AGE_S = 8.0
"""Everything the world says of a batch is there by then; both arms are read at this age."""
WINDOW_TURNS = 3
"""A candidate trains on the newest rows of this many turns."""
LAST_EPISODES_SHARE = 0.5
BAD_EPISODES_SHARE = 0.25
"""What is played after the last turn, as shares of a turn's episodes. Nothing is trained on it."""
BAD_PORTIONS = 4
"""So many times the bad release plays its share, until it is rolled back: where the champion is hardly better, that takes more rows."""
GUARD_LAG_S = 15.0
"""What the guard may need for a portion, once its rows have reached their age."""
AFTER_ROLLBACK_EPISODES = 40


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What a run is made of."""

    workspace: str
    home: Path
    """State of this run: broker, corpora, releases, logs."""
    bootstrap_servers: str
    seed: int = 0
    turns: int = 4
    episodes: int = 960
    """Episodes a turn; a fifth of the tasks is held out and never trained on."""
    environment: str = CPU.environment
    profile: Profile = CPU
    model: Path | None = None
    """Model folder to begin with; None: a warm start of the tiny model."""
    broken: str | None = None
    """A stage (one of STAGES) whose process is replaced by one that ends at once: a drill of the demo itself."""
    stage_timeout_s: float = 180.0

    @property
    def corpus(self) -> Path:
        """The workspace's corpus."""
        return self.home / "corpora" / self.workspace / "main"

    @property
    def child_environment(self) -> dict[str, str]:
        """What every process of this run has in its environment."""
        return {
            "TREADLE_HOME": str(self.home),
            "TREADLE_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "TREADLE_WORKSPACE": self.workspace,
            "OMP_NUM_THREADS": "2",
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@dataclass
class Wheel:
    """One run. Use as a context manager: leaving it stops every process."""

    settings: DemoSettings
    view: View
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        s = self.settings
        self.report = Report(seed=s.seed, workspace=s.workspace, environment=s.environment)
        self.registry = Registry(s.home / "registry", s.workspace)
        self.supervisor = Supervisor(s.home)
        self.children: list[Child] = []
        self._admin = Admin(s.bootstrap_servers)
        self._bad: str | None = None
        self._reader: TailReader | None = None

    def __enter__(self) -> Wheel:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for child in self.children:
            child.close(at_once=kind is not None)
        self.supervisor.stop()
        if self._reader is not None:
            self._reader.close()

    # --- setting up --------------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Create the workspace, start the services, warm the first release up, start agent and world."""
        s = self.settings
        self.view.stage("workspace", f"creating {s.workspace}")
        workspaces.create(s.bootstrap_servers, self._workspace_settings(), home=s.home)
        self._training_policy().save(s.home / "registry", s.workspace, "main")
        self._follow()
        self._start_services()
        # before the warm start: their imports take as long as it does
        named = ("--environment", s.environment, "--profile", s.profile.name)
        self.agent = self._child("agent", "treadle_demo.agent", *named)
        self.world = self._child("world", "treadle_demo.world", "--seed", str(s.seed))
        folder = s.model or self._warm_start()
        first = self.registry.register(folder, actor="demo", reason="what runs today")
        self.registry.promote(first, expect=None, actor="demo", reason="the first champion is what runs today")
        self._publish_registry()
        for child in (self.agent, self.world):
            child.answer(s.stage_timeout_s, self._watch)

    def _workspace_settings(self) -> WorkspaceSettings:
        return WorkspaceSettings(
            workspace=self.settings.workspace,
            partitions=PARTITIONS,
            metrics=(Metric(name="reward", required=True, low=0.0, high=1.0),),
            grace_s=GRACE_S,
            split=Split(share=HELD_OUT_SHARE),
        ).checked()

    def _training_policy(self, trigger: Literal["rows", "manual"] = "rows") -> TrainingPolicy:
        s = self.settings
        return TrainingPolicy(
            trigger=trigger,
            steps=s.profile.steps,
            lr=s.profile.lr,
            batch=s.profile.batch,
            rows=s.profile.rows,
            evaluator=s.profile.evaluator,
            newest_rows=int(s.episodes * (1 - HELD_OUT_SHARE)) * WINDOW_TURNS,
            seed=s.seed,
            corpus=str(s.corpus),
            environment=s.environment,
            eval_tasks=256,
            gate=GatePolicy(alpha=0.05, min_tasks=64),
            # small: a demonstration should not wait for it
            scorecard=ScorecardPolicy(rows=64, generate=16, max_new_tokens=32),
            guard=GuardPolicy(age_s=GUARD_AGE_S, min_baseline=64, tolerance=0.05, alpha=0.01),
        ).checked()

    def _start_services(self) -> None:
        s = self.settings
        treadle = [sys.executable, "-m", "treadle"]
        argv = {
            "worker": ["worker", "--workspace", s.workspace],
            "snapshotter": [
                *("snapshotter", "--workspace", s.workspace, "--to", str(s.corpus)),
                *("--min-new-rows", str(s.episodes), "--every", "1h"),
            ],
            "trainer": ["trainer", "--workspace", s.workspace],
            "guard": ["guard", "--workspace", s.workspace],
        }
        for name, arguments in argv.items():
            command = self._broken_command(name) or [*treadle, *arguments]
            self.supervisor.add(ProcessSpec(name=name, argv=tuple(command), env=s.child_environment))
        self.supervisor.start()

    def _broken_command(self, stage: str) -> list[str] | None:
        if self.settings.broken != stage:
            return None
        return [sys.executable, "-c", f"raise SystemExit('the {stage} is broken on request')"]

    def _warm_start(self) -> Path:
        s = self.settings
        self.view.stage("warm start", "a tiny model learns the form of the work from noisy demonstrations")
        folder = s.home / "base"
        command = [
            sys.executable,
            "-m",
            "treadle_demo.warmstart",
            "--environment",
            s.environment,
            "--seed",
            str(s.seed),
            "--profile",
            s.profile.name,
        ]
        command += ["--held-out", str(HELD_OUT_SHARE), str(folder)]
        self._run("warm start", command)
        return folder

    def _child(self, stage: str, module: str, *arguments: str) -> Child:
        s = self.settings
        command = self._broken_command(stage) or [sys.executable, "-m", module, "--workspace", s.workspace, *arguments]
        child = Child(stage, command, s.child_environment, s.home / "logs" / f"{stage}.log")
        self.children.append(child)
        return child

    # --- turning -----------------------------------------------------------------------------------------------------------

    def turn(self, turn: int) -> Turn:
        """One turn: play, let the world speak, wait for the version and for what the registry makes of its candidate."""
        s = self.settings
        self.view.stage("capture", "the agent plays", turn=turn)
        self._play(turn, s.episodes)
        self.view.stage("join", "outcomes find their rows", turn=turn)
        self.world.ask(do="speak", turn=turn)
        self.world.answer(s.stage_timeout_s, self._watch)
        self.view.stage("snapshot", "waiting for the next version", turn=turn)
        snapshot = self._await("snapshotter", f"version {turn}", lambda: self._snapshot(turn))
        self.view.stage("train", f"on @v{snapshot.record.version}", turn=turn)
        decision = self._await(
            "trainer",
            f"the decision on v{snapshot.record.version}",
            lambda: self.ledger.decision(str(s.corpus), snapshot.record.version),
        )
        self.view.decided(turn, snapshot.record, decision.record)
        made = turn_report(self.ledger, turn, snapshot, decision)
        self.report.turns.append(made)
        return made

    def poison(self, turn: int) -> Drill:
        """A broken grader scores the turn; a corpus and a candidate are made of what it liked, beside the main line."""
        s = self.settings
        self.view.stage("poison", "a broken grader scores this turn, as a side branch", turn=turn)
        self.world.ask(do="broken", turn=turn, file=str(self._episodes_file(turn)))
        graded = int(self.world.answer(s.stage_timeout_s, self._watch)["outcomes"])
        if graded == 0:
            raise DemoFailed("world", "the broken grader found no episode to score")
        path = s.corpus.parent / "poisoned"
        treadle = [sys.executable, "-m", "treadle"]
        where = f"broken_grader > 0 and tags.turn = {turn}"
        self._run("poison", [*treadle, "snapshot", s.workspace, "--filter", where, "--to", str(path), "--json"])
        train = ["train", f"{path}@v1", "--method", "sft", "--rows", "all", "--gate", "--label", "poisoned", "--json"]
        # exit 3 says that the gate refused, which is what should happen
        self._run("poison", [*treadle, *train], accepted=(0, 3))
        decision = self._await(
            "gate", "the decision on the poisoned candidate", lambda: self.ledger.decision(str(path), 1)
        )
        event: ReleaseEvent = decision.record
        self.view.drill("poisoned candidate", event.event, event.reason)
        self.report.poisoned = Drill(decision=event.event, reason=event.reason, heldout=heldout_of(event.evidence))
        self._bad = event.release
        return self.report.poisoned

    def last_word(self, turn: int) -> None:
        """The champion plays once more: the last word on live success, and the baseline of the guard."""
        s = self.settings
        self._training_policy(trigger="manual").save(s.home / "registry", s.workspace, "main")
        self.view.stage("capture", "the champion plays once more", turn=turn)
        self._play(turn, int(s.episodes * LAST_EPISODES_SHARE))
        self.world.ask(do="speak", turn=turn)
        self.world.answer(s.stage_timeout_s, self._watch)

    def guard(self, turn: int) -> GuardDrill:
        """The poisoned candidate is forced live, and plays on as turn + 1."""
        champion = self.registry.champion
        assert champion is not None
        assert self._bad is not None, "the poison drill comes first"
        self.view.stage("guard", f"{self._bad} is forced live", turn=turn)
        self._await("guard", "the champion's rows at their age", lambda: self._aged(turn) or None)
        bad = ReleaseId.parse(self._bad)
        self.registry.promote(
            bad, expect=champion, actor="demo", reason="forced live: a drill of the guard", force=True
        )
        self._publish_registry()
        event, turn = self._played_until_rolled_back(bad, turn)
        self.view.drill("bad release", event.event, event.reason)
        self.view.stage("guard", "the agent plays on", turn=turn + 1)
        served = self._play(turn + 1, AFTER_ROLLBACK_EPISODES)
        if served != str(champion):
            raise DemoFailed("agent", f"plays on with {served} after the rollback to {champion}")
        self.report.guard = GuardDrill(
            rolled_back=self.registry.champion == champion,
            after_rows=event.evidence.get("after_rows"),
            reason=event.reason,
        )
        return self.report.guard

    def _played_until_rolled_back(self, bad: ReleaseId, turn: int) -> tuple[ReleaseEvent, int]:
        """Portions of the bad release after `turn`, until the guard has enough of it. Returns the rollback, and the last one's turn."""
        s = self.settings
        for portion in range(1, BAD_PORTIONS + 1):
            self._play(turn + portion, int(s.episodes * BAD_EPISODES_SHARE))
            self.world.ask(do="speak", turn=turn + portion)
            self.world.answer(s.stage_timeout_s, self._watch)
            event = self._wait(lambda: self._rolled_back(str(bad)), GUARD_AGE_S + GUARD_LAG_S)
            if event is not None:
                return event, turn + portion
        return self._await("guard", "the rollback", lambda: self._rolled_back(str(bad))), turn + BAD_PORTIONS

    def finish(self, started: float) -> Report:
        """Let the world say the rest, and recount every number from the topics."""
        s = self.settings
        self.view.stage("report", "the last outcomes come in")
        self.world.ask(do="rest", turn=0)
        self.world.answer(s.stage_timeout_s, self._watch)
        self._await("worker", "the last outcomes on their rows", self._drained)
        self._await(
            "worker", "every row's settling", lambda: all(row.settled for row in self.ledger.rows.values()) or None
        )
        timed = {
            (turn.corpus, turn.version): turn for turn in read_turns(s.bootstrap_servers, s.workspace, s.turns + 1)
        }
        turns = []
        for old in self.report.turns:
            snapshot = self._snapshot(old.turn)
            assert snapshot is not None
            decision = self.ledger.decision(str(s.corpus), snapshot.record.version)
            assert decision is not None
            times = timed.get((snapshot.record.corpus, snapshot.record.version))
            turns.append(turn_report(self.ledger, old.turn, snapshot, decision, times))
        self.report.turns = turns
        self.report.final_live_success = self.ledger.live_success(len(turns) + 1)
        cycles = [turn.seconds["cycle"] for turn in turns if "cycle" in turn.seconds]
        self.report.cycle_seconds = round(sum(cycles) / len(cycles), 3) if cycles else None
        self.report.wall_seconds = round(time.monotonic() - started, 1)
        return self.report

    # --- waiting -----------------------------------------------------------------------------------------------------------

    def _play(self, turn: int, episodes: int) -> str | None:
        """Let the agent play and record. Returns the release that it played with."""
        s = self.settings
        file = self._episodes_file(turn)
        file.parent.mkdir(parents=True, exist_ok=True)
        seed = s.seed * 1000 + turn
        self.agent.ask(do="play", turn=turn, episodes=episodes, seed=seed, file=str(file))
        release: str | None = self.agent.answer(s.stage_timeout_s, self._watch)["release"]
        self.world.ask(do="early", turn=turn, file=str(file))
        self.world.answer(s.stage_timeout_s, self._watch)
        self.agent.ask(do="record", turn=turn)
        left = int(self.agent.answer(s.stage_timeout_s, self._watch)["left"])
        if left:
            raise DemoFailed("agent", f"{left} interactions were not acknowledged by Kafka")
        return release

    def _episodes_file(self, turn: int) -> Path:
        return self.settings.home / "episodes" / f"turn-{turn}.jsonl"

    def _snapshot(self, turn: int) -> Stamped | None:
        ours = [x for x in self.ledger.snapshots if x.record.corpus == str(self.settings.corpus)]
        return ours[turn - 1] if len(ours) >= turn else None

    def _rolled_back(self, bad: str) -> ReleaseEvent | None:
        for stamped in reversed(self.ledger.releases):
            event: ReleaseEvent = stamped.record
            if event.event == "rolled_back" and event.previous == bad:
                return event
        return None

    def _aged(self, turn: int) -> bool:
        newest = max((row.append_ms for row in self.ledger.of_turn(turn)), default=0)
        return newest > 0 and time.time() * 1000 > newest + GUARD_AGE_S * 1000

    def _drained(self) -> bool | None:
        """Whether the join has taken in everything that is on the input topics now."""
        s = self.settings
        inputs = [(topic(s.workspace, kind), p) for kind in ("interactions", "outcomes") for p in range(PARTITIONS)]
        ends = self._admin.end_offsets(inputs)
        passed = self._admin.committed(group(s.workspace, "join"), inputs)
        return all(passed.get(where, 0) >= end for where, end in ends.items()) or None

    def _await(self, stage: str, what: str, ready: Callable[[], _T | None]) -> _T:
        found = self._wait(ready, self.settings.stage_timeout_s)
        if found is None:
            logs = self.settings.home / "logs"
            raise DemoFailed(stage, f"{what} did not come in {self.settings.stage_timeout_s:g} s; logs: {logs}")
        return found

    def _wait(self, ready: Callable[[], _T | None], timeout_s: float) -> _T | None:
        deadline = time.monotonic() + timeout_s
        while (found := ready()) is None and time.monotonic() < deadline:
            self._watch()
        self._watch()
        return found

    def _watch(self) -> None:
        """Read what came on the topics, see to the services, redraw."""
        assert self._reader is not None
        self.ledger.take(self._reader.poll(0.05))
        self.supervisor.poll()
        for status in self.supervisor.status():
            if status.restarts >= 2:
                raise DemoFailed(
                    status.name, f"keeps ending (exit code {status.exit_code}): {status.last_line} (log: {status.log})"
                )
        for child in self.children:
            child.check()
        self.view.counts(self.ledger)

    def _follow(self) -> None:
        s = self.settings
        positions: dict[tuple[str, int], int] = {
            (topic(s.workspace, kind), p): 0 for kind in ("interactions", "graded") for p in range(PARTITIONS)
        }
        positions |= {(topic(s.workspace, kind), 0): 0 for kind in ("snapshots", "releases")}
        self._reader = TailReader(s.bootstrap_servers, positions)

    def _publish_registry(self) -> None:
        Outbox(self.registry, self.settings.bootstrap_servers).publish()

    def _run(self, stage: str, command: list[str], accepted: tuple[int, ...] = (0,)) -> None:
        """Run a command to its end while watching; what it says goes to its log."""
        s = self.settings
        log = s.home / "logs" / f"{stage.replace(' ', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, env={**os.environ, **s.child_environment}, stdout=file, stderr=subprocess.STDOUT
            )
        try:
            while process.poll() is None:
                self._watch()
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode not in accepted:
            raise DemoFailed(stage, f"exit code {process.returncode}: {last_line(log)} (log: {log})")
