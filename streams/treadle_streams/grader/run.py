"""A grader's run: read, choose, judge, publish, commit.

The order makes it safe to kill. For each handful of interactions:

1. read what has been said on `.outcomes` until now: verdicts that are there already, denied rights
2. judge the rest, each call set aside in the budget before it is made
3. publish the verdicts, and wait until Kafka has them
4. write down what failed
5. commit the positions

A kill between two steps repeats the earlier ones for what step 1 does not find in the log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import treadle
from treadle.consuming import group_of
from treadle.errors import LogError
from treadle.log import Admin, begin_group
from treadle_schemas.events import Interaction
from treadle_schemas.ids import Handle
from treadle_schemas.moments import now
from treadle_schemas.topics import topic
from treadle_schemas.workspace import Metric

from treadle_streams import workspaces
from treadle_streams.grader.budget import Budget
from treadle_streams.grader.choosing import Chooser
from treadle_streams.grader.config import GraderConfig
from treadle_streams.grader.errors import BudgetSpent, EndpointDown, GraderChanged, GraderRefused, JudgeFailed
from treadle_streams.grader.files import Failure, Folder, Tally
from treadle_streams.grader.heard import Heard
from treadle_streams.grader.judges import Judge, make_judge
from treadle_streams.grader.verdict import Usage, Verdict, outcome_id, read_verdict, source_of

__all__ = ["Place", "run_grader"]

_LOG: Final = logging.getLogger(__name__)

_POLL_S: Final = 0.5
_AT_ONCE: Final = 8
"""Interactions a commit, for each call that may run at the same time."""
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_FLUSH_S: Final = 30.0
_BUDGET_LOOK_S: Final = 5.0
"""How often a grader that waits for the next day looks whether it has come."""

Begin = Literal["beginning", "end"] | int
"""Where to begin: an int is an append time in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a grader works."""

    servers: str
    workspace: str
    home: Path
    begin: Begin | None = None
    """None: where the grader left off, a new one at the present end."""
    once: bool = False
    """End at what was there at the start, and where the budget of the day is spent."""


@dataclass(slots=True)
class _Item:
    """One interaction that is to be judged, and what became of it."""

    interaction: Interaction
    verdict: Verdict | None = None
    failed: JudgeFailed | None = None
    spent: BudgetSpent | None = None
    calls: int = 0
    """Tries, those that failed included."""
    used: Usage = field(default_factory=Usage)
    """By all of them."""
    seconds: float = 0.0

    @property
    def usage(self) -> dict[str, float]:
        """What the outcome says of it."""
        used = self.used
        said = {"calls": self.calls, "prompt_tokens": used.input_tokens, "completion_tokens": used.output_tokens}
        return {**said, "seconds": round(self.seconds, 3), **({"usd": round(used.usd, 9)} if used.usd else {})}


def run_grader(
    config: GraderConfig, place: Place, quit_: threading.Event, environ: Mapping[str, str] | None = None
) -> Tally:
    """Grade until `quit_` is set (or with `once` until all that was there is graded); how it went.

    Raises what no retry mends: SettingError, GraderChanged, GraderRunning, GraderRefused, BudgetSpent, EndpointDown, LogError. What was
    decided by then is published, and the next run goes on from there.
    """
    folder = Folder(place.home, place.workspace, config.name)
    settings = workspaces.get(place.servers, place.workspace)
    with folder.locked():
        judge = make_judge(config, environ)
        tally = Tally(
            grader=config.name,
            version=config.version,
            fingerprint=judge.fingerprint,
            started_at=now(),
            updated_at=now(),
        )
        run = _Run(config, place, folder, judge, settings.metric(config.metric), settings.partitions, tally, quit_)
        try:
            run.go()
            tally.state = "ended"
        except BaseException as err:
            tally.state = f"ended: {err or type(err).__name__}"
            raise
        finally:
            run.close()
            tally.updated_at = now()
            folder.show(tally)
    return tally


class _Run:
    def __init__(
        self,
        config: GraderConfig,
        place: Place,
        folder: Folder,
        judge: Judge,
        metric: Metric | None,
        partitions: int,
        tally: Tally,
        quit_: threading.Event,
    ) -> None:
        self._config, self._place, self._folder, self._judge = config, place, folder, judge
        self._metric, self._tally, self._quit = metric, tally, quit_
        self._budget = Budget(config, folder.spent)
        self._chooser = Chooser(config)
        self._source = source_of(config.name, config.version, judge.fingerprint)
        self._refused: GraderRefused | None = None
        self._down: list[_Item] = []
        """The gradings in a row that found no working endpoint. Nothing is committed while there are any."""
        name = topic(place.workspace, "interactions")
        self._partitions = [(name, number) for number in range(partitions)]
        self._heard = Heard(place.servers, place.workspace, partitions, config.name, config.version, judge.fingerprint)
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="judge")

    def close(self) -> None:
        """End calls, processes and connections."""
        self._pool.shutdown(cancel_futures=True)
        self._judge.close()
        self._heard.close()

    def go(self) -> None:
        """Run."""
        self._begin()
        ends = Admin(self._place.servers).stable_offsets(self._partitions) if self._place.once else {}
        reader = f"grader-{self._config.name}"
        with (
            treadle.Recorder(
                self._place.workspace,
                bootstrap_servers=self._place.servers,
                agent=reader,
                durable=False,
                raise_errors=True,
            ) as recorder,
            treadle.consume(
                self._place.workspace,
                "interactions",
                name=reader,
                start="end",
                bootstrap_servers=self._place.servers,
            ) as rows,
        ):
            while not self._quit.is_set():
                batch = rows.batch(_POLL_S, self._config.concurrency * _AT_ONCE)
                if batch:
                    self._handle(recorder, batch)
                    if self._tally.left:
                        return
                    self._commit(rows)
                at = rows.positions
                # partitions that another process of this grader has are its to finish
                if ends and at and all(at.get(number, end) >= end for (_, number), end in ends.items()):
                    self._end_of_down()
                    self._commit(rows)
                    return
        self._tally.left += len(self._down)

    def _begin(self) -> None:
        self._heard.catch_up()
        if self._heard.other_source is not None:
            known = self._heard.other_source.rpartition("/")[2]
            raise GraderChanged(self._config.name, self._config.version, known, self._judge.fingerprint)
        begin = self._place.begin
        if begin is None:
            return
        admin = Admin(self._place.servers)
        if begin == "beginning":
            first = admin.start_offsets(self._partitions)
        elif begin == "end":
            first = admin.stable_offsets(self._partitions)
        else:
            first = admin.offsets_at(self._partitions, begin)
        group = group_of(self._place.workspace, f"grader-{self._config.name}")
        begin_group(self._place.servers, group, first, anew=True)

    def _handle(self, recorder: treadle.Recorder, batch: Sequence[Interaction]) -> None:
        self._heard.catch_up()
        todo = [_Item(one) for one in self._taken_up(batch)]
        while todo:
            list(self._pool.map(self._decide, todo))
            self._publish(recorder, todo)
            if self._refused is not None:
                self._tally.left += sum(item.verdict is None for item in todo)
                raise self._refused
            self._note(todo)
            held = [item for item in todo if item.verdict is None and item.failed is None]
            todo = self._resumed(held)
        self._show("running")

    def _taken_up(self, batch: Sequence[Interaction]) -> list[Interaction]:
        """What is to be judged of a batch; the rest is counted."""
        tally = self._tally
        tally.seen += len(batch)
        chosen = self._chooser.chosen(batch)
        tally.not_chosen += len(batch) - len(chosen)
        taken: dict[str, Interaction] = {}
        for one in chosen:
            key = outcome_id(self._config.name, self._config.version, one)
            if not self._heard.may_evaluate(one):
                tally.denied += 1
            elif one.transcript is not None or one.claims or (one.redaction is not None and one.redaction.error):
                tally.incomplete += 1
            elif key in taken or self._heard.has_verdict(one):
                tally.known += 1
            else:
                taken[key] = one
        return list(taken.values())

    def _decide(self, item: _Item) -> None:
        """Judge one, with retries. In a thread of the pool; what ends the run is raised."""
        for attempt in range(self._config.retries + 1):
            if self._quit.is_set() or self._refused is not None:
                return
            estimate = self._judge.estimate(item.interaction)
            try:
                self._budget.set_aside(estimate)
            except BudgetSpent as err:
                item.spent = err
                return
            item.calls += 1
            began = time.monotonic()
            try:
                try:
                    said, used = self._judge.judge(self._place.workspace, item.interaction)
                finally:
                    item.seconds += time.monotonic() - began
                if used is not None:
                    item.used += used
                    self._budget.settle(estimate, used)
                verdict = read_verdict(said, self._metric)
                if used is None and verdict.usage != Usage():
                    item.used += verdict.usage
                    self._budget.settle(estimate, verdict.usage)
                item.verdict, item.failed = verdict, None
                return
            except GraderRefused as err:
                self._refused = err
                return
            except JudgeFailed as err:
                item.failed = err
                if not err.retriable or attempt == self._config.retries:
                    return
                wait_s = min(_FIRST_WAIT_S * 2.0**attempt, _LONGEST_WAIT_S)
                self._quit.wait(wait_s if err.after_s is None else err.after_s)
                if self._quit.is_set():
                    item.failed = None  # it was not given all its tries: the next start judges it
                    return

    def _publish(self, recorder: treadle.Recorder, items: Sequence[_Item]) -> None:
        for item in items:
            if item.verdict is None:
                continue
            if item.verdict.value is None:
                self._tally.abstained += 1
                continue
            one = item.interaction
            handle = Handle(self._place.workspace, one.episode, one.interaction_id)
            name, moment = outcome_id(self._config.name, self._config.version, one), now()
            recorder.outcome(
                handle,
                self._config.metric,
                item.verdict.value,
                outcome_id=name,
                observed_at=moment,
                source=self._source,
                usage=item.usage,
                subject=one.subject,
            )
            if item.verdict.reason and self._config.reasons:
                recorder.comment(
                    handle,
                    item.verdict.reason,
                    outcome_id=f"{name}/reason",
                    observed_at=moment,
                    source=self._source,
                    subject=one.subject,
                )
            self._tally.graded += 1
        if left := recorder.flush(_FLUSH_S):
            raise LogError(
                f"{left} outcomes were not taken by Kafka in {_FLUSH_S:g} s; nothing was committed", retriable=True
            )

    def _note(self, items: Sequence[_Item]) -> None:
        """Tell an endpoint that is down, which ends the run, from gradings that failed, which are written down."""
        failed = [item for item in items if item.failed is not None]
        own = [item for item in failed if item.failed is not None and not item.failed.endpoint]
        down = [item for item in failed if item.failed is not None and item.failed.endpoint]
        if len(down) < sum(item.verdict is not None or item.failed is not None for item in items):
            # it answered others: what failed for want of an answer failed for good
            self._write_down([*self._down, *down, *own])
            self._down = []
            return
        self._down += down
        if len(self._down) >= self._config.give_up_after:
            self._raise_down()

    def _end_of_down(self) -> None:
        """At the end of a run with `once`: an endpoint that never answered is down, one that did has failed these."""
        if self._down and not self._tally.graded + self._tally.abstained + self._tally.failed:
            self._raise_down()
        self._write_down(self._down)
        self._down = []

    def _raise_down(self) -> None:
        self._tally.left += len(self._down)
        raise EndpointDown(
            f"grader {self._config.name}: the last {len(self._down)} gradings found no working endpoint. They are not marked as failed; "
            f"the next start grades them again. The last one: {self._down[-1].failed}"
        )

    def _write_down(self, items: Sequence[_Item]) -> None:
        if not items:
            return
        found = [
            Failure(
                handle=str(Handle(self._place.workspace, i.interaction.episode, i.interaction.interaction_id)),
                at=now(),
                version=self._config.version,
                reason=str(i.failed),
            )
            for i in items
        ]
        self._folder.note(found)
        self._tally.failed += len(found)
        for one in found[:3]:
            _LOG.warning("grading %s failed: %s", one.handle, one.reason)

    def _resumed(self, held: list[_Item]) -> list[_Item]:
        """Those that were not judged, as soon as they can be; none where the run ends. Raises BudgetSpent."""
        if not held:
            return []
        spent = next((item.spent for item in held if item.spent is not None), None)
        if spent is None or self._quit.is_set():
            self._tally.left += len(held)
            return []
        if spent.for_good or self._place.once:
            self._tally.left += len(held)
            raise spent
        self._show(f"waiting: {spent}")
        _LOG.warning("grader %s waits for the next day: %s", self._config.name, spent)
        day = now()[:10]
        while now()[:10] == day and not self._quit.wait(_BUDGET_LOOK_S):
            pass
        return [_Item(item.interaction) for item in held]

    def _commit(self, rows: treadle.Consumed[Interaction]) -> None:
        if self._down:
            return
        try:
            rows.commit()
        except LogError as err:
            # what was decided is in the log, so whoever reads it again finds it there
            _LOG.warning("%s", err)

    def _show(self, state: str) -> None:
        self._tally.state, self._tally.updated_at = state, now()
        self._folder.show(self._tally)
