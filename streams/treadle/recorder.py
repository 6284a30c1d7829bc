"""`Recorder`: what an agent publishes its work through."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

from treadle_schemas.codec import INTERACTION, OUTCOME, encode, make_headers
from treadle_schemas.errors import FieldError, SettingError, TreadleError
from treadle_schemas.events import OutcomeValue, read_interaction, read_outcome
from treadle_schemas.ids import Handle, check_workspace, new_id
from treadle_schemas.moments import from_micros, now, to_micros
from treadle_schemas.topics import topic

from treadle import _process
from treadle._delivery import Delivery, KafkaDelivery
from treadle._ledger import Ledger, Stats
from treadle.errors import NotDelivered, RecorderClosed
from treadle.settings import Settings

__all__ = ["Moment", "Recorder"]

Moment = str | datetime.datetime
"""A time: RFC 3339 text with a zone, kept verbatim, or an aware datetime."""


class Recorder:
    """Publishes an agent's interactions and their outcomes to a workspace, straight to Kafka, from any thread.

    It never hurts its host. A call validates, encodes and hands the event to a bounded queue in memory; it waits for nothing and opens no
    connection itself. What cannot be sent is logged (logger `treadle`) and counted in `stats()`, not raised, except under pytest or with
    `raise_errors=True`. A forked child gets a producer of its own. A normal exit waits up to 2 s for what is in flight; kill -9, os._exit
    and an unhandled SIGTERM lose it.
    """

    def __init__(
        self,
        workspace: str | None = None,
        *,
        bootstrap_servers: str | None = None,
        agent: str = "agent",
        slot: str = "main",
        model: str | None = None,
        release: str | None = None,
        tags: Mapping[str, str | int | float | bool | None] | None = None,
        sink: Delivery | None = None,
        raise_errors: bool | None = None,
        settings: Settings | None = None,
    ) -> None:
        """`workspace` and `bootstrap_servers` default to the environment (see treadle.settings).

        agent, slot, model, release and tags are what `record` says of an interaction unless the call says otherwise. `sink` takes the
        place of Kafka, for tests: treadle.MemorySink. `raise_errors` None means: only under pytest.
        """
        self._raise_errors = raise_errors
        self._ledger = Ledger()
        self._closed = False
        self._defaults = {"agent": agent, "slot": slot, "model": model, "release": release}
        self._tags = dict(tags or {})
        self._source = f"/agents/{quote(agent, safe='', errors='replace')}"
        self._unusable: TreadleError | None = None
        self.workspace = workspace or ""
        self.enabled = True
        self._delivery = sink or KafkaDelivery(
            lambda: bootstrap_servers or (settings or Settings.load()).bootstrap_servers
        )
        try:
            loaded = settings or Settings.load()
            self.enabled = not loaded.disabled
            if not workspace and not loaded.workspace:
                raise SettingError("no workspace: Recorder('NAME'), or set TREADLE_WORKSPACE")
            self.workspace = check_workspace(workspace or loaded.workspace or "")
        except TreadleError as err:
            self._unusable = err
            self._ledger.complain("recorder unusable", err)
            if self._raises():
                raise
        _process.enlist(self)

    @property
    def usable(self) -> bool:
        """Whether it knows a workspace to publish to and was not closed."""
        return self._unusable is None and not self._closed

    def record(
        self,
        *,
        messages: Sequence[Any],
        task_id: str | None = None,
        episode_id: str | None = None,
        interaction_id: str | None = None,
        step: int | None = None,
        response: Sequence[int] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        started_at: Moment | None = None,
        ended_at: Moment | None = None,
        status: Literal["ok", "error"] | None = None,
        error: str | None = None,
        subject: str | None = None,
        tags: Mapping[str, str | int | float | bool | None] | None = None,
        sampling: Mapping[str, Any] | None = None,
        usage: Mapping[str, Any] | None = None,
        token_ids: Sequence[Sequence[int]] | None = None,
        logprobs: Sequence[Sequence[float]] | None = None,
        model: str | None = None,
        release: str | None = None,
        agent: str | None = None,
        slot: str | None = None,
    ) -> Handle:
        """Publish one interaction and return its handle; `str(handle)` can be stored anywhere and turned into an outcome later.

        `messages` are OpenAI chat messages, request and response (dicts, or objects with `model_dump`, as the openai client gives);
        `response` are the indices of those that this call produced. Times default to now. See treadle_schemas.Interaction for the rest.

        The handle is returned also when the event was refused; `stats()` tells.
        """
        interaction = interaction_id or new_id()
        handle = Handle(self.workspace, episode_id or interaction, interaction)

        def event() -> tuple[dict[str, Any], str]:
            ended = _text(ended_at, "$.ended_at") or now()
            value = {
                "interaction_id": interaction,
                "episode_id": episode_id,
                "task_id": task_id,
                **self._defaults,
                "messages": [_plain(message) for message in messages],
                "response": _listed(response),
                "tools": _listed(tools),
                "started_at": _text(started_at, "$.started_at") or ended,
                "ended_at": ended,
                "step": step,
                "status": status,
                "error": error,
                "subject": subject,
                "tags": {**self._tags, **(tags or {})} or None,
                "sampling": sampling,
                "usage": usage,
                "token_ids": _listed(token_ids),
                "logprobs": _listed(logprobs),
            }
            said = {"model": model, "release": release, "agent": agent, "slot": slot}
            value |= {name: given for name, given in said.items() if given is not None}
            value = {name: given for name, given in value.items() if given is not None}
            return value, read_interaction(value).episode

        self._publish("interactions", INTERACTION, event)
        return handle

    def outcome(
        self,
        target: Handle | str,
        name: str,
        value: OutcomeValue = None,
        *,
        observed_at: Moment | None = None,
        outcome_id: str | None = None,
        source: str | None = None,
        op: Literal["set", "retract"] = "set",
    ) -> str | None:
        """Publish what became of an interaction, and return the outcome's id.

        `target` is a handle or its text. A repeated report should carry the same `outcome_id` (a webhook's delivery id), then it counts
        once; without one each call is a new outcome. `value` None says that its source has no value: absent, not pending. `op` retract is
        what `retract` does.
        """
        set_id = outcome_id or (new_id() if op == "set" else None)

        def event() -> tuple[dict[str, Any], str]:
            handle = Handle.parse(target) if isinstance(target, str) else target
            if handle.workspace != self.workspace:
                raise FieldError(
                    "target",
                    f"{handle} is of another workspace than this recorder's {self.workspace}; use treadle.outcome",
                )
            said = {
                "name": name,
                "value": _scalar(value),
                "observed_at": _text(observed_at, "$.observed_at") or now(),
                "op": op if op != "set" else None,
                "outcome_id": set_id,
                "interaction_id": handle.interaction_id,
                "episode_id": handle.episode_id,
                "source": source,
            }
            body = {key: given for key, given in said.items() if given is not None or (key == "value" and op == "set")}
            return body, read_outcome(body).key

        self._publish("outcomes", OUTCOME, event)
        return set_id

    def retract(
        self,
        target: Handle | str,
        name: str,
        *,
        outcome_id: str | None = None,
        observed_at: Moment | None = None,
        source: str | None = None,
    ) -> None:
        """Take back one outcome by its id, or without one every outcome of that name observed at or before `observed_at` (now)."""
        self.outcome(target, name, observed_at=observed_at, outcome_id=outcome_id, source=source, op="retract")

    def flush(self, timeout_s: float = 10.0) -> int:
        """Wait at most `timeout_s` until nothing is in flight; how many events still are. Under pytest, raises NotDelivered
        for what Kafka did not accept since the last flush."""
        deadline = time.monotonic() + timeout_s
        self._delivery.flush(timeout_s)
        # the polling thread may still be telling the ledger
        left = self._ledger.wait_settled(max(0.0, deadline - time.monotonic()))
        problem = self._ledger.take_undelivered()
        if problem is not None and self._raises():
            raise NotDelivered(f"an event was not accepted: {problem}", left)
        return left

    def stats(self) -> Stats:
        """Counts since this process made the recorder (or was forked)."""
        return self._ledger.stats()

    def close(self, timeout_s: float = 2.0) -> int:
        """Flush, then give up what is left (logged and counted as refused): how many that were. Later events are refused."""
        if self._closed:
            return 0
        self._closed = True
        _process.discharge(self)
        return self._finish(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _publish(self, kind: str, event_type: str, event: Callable[[], tuple[dict[str, Any], str]]) -> None:
        if not self.enabled:
            self._ledger.skip()
            return
        self._ledger.open()
        try:
            if self._closed:
                raise RecorderClosed("this recorder is closed")
            if self._unusable is not None:
                raise self._unusable
            value, key = event()
            headers = make_headers(event_type, self.workspace, source=self._source)
            name = topic(self.workspace, kind)
            _process.hook_multiprocessing()
            self._delivery.send(name, key.encode(), encode(value), headers, self._ledger.settle)
        except Exception as err:  # the host's work goes on whatever its payload does to us
            self._ledger.refuse()
            if self._raises():
                raise
            self._ledger.complain(type(err).__name__, err)

    def _raises(self) -> bool:
        if self._raise_errors is not None:
            return self._raise_errors
        # the variable alone also reaches the programs that a test starts
        return "pytest" in sys.modules and "PYTEST_CURRENT_TEST" in os.environ

    def _finish(self, timeout_s: float) -> int:
        self._delivery.flush(timeout_s)
        left = self._ledger.wait_settled(0.0)
        self._delivery.close()
        if left:
            self._ledger.complain("not delivered in time", f"{left} events were given up after {timeout_s:.1f} s")
        return left

    def _after_fork(self) -> None:
        self._ledger = Ledger()
        self._delivery.after_fork()


def _text(moment: Moment | None, field: str) -> str | None:
    if isinstance(moment, datetime.datetime):
        if moment.tzinfo is None:
            raise FieldError(field, f"{moment} has no time zone; use datetime.now(UTC)")
        return from_micros(to_micros(moment.isoformat(timespec="microseconds"), field))
    return moment


def _plain(message: Any) -> Any:
    if isinstance(message, Mapping):
        return message if isinstance(message, dict) else dict(message)
    dump = getattr(message, "model_dump", None)
    # what the server sent, without the client's defaults
    return message if dump is None else dump(mode="json", exclude_unset=True)


def _listed(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _scalar(value: OutcomeValue) -> OutcomeValue:
    # numpy's float64 is a float, but not one that every encoder takes
    return float(value) if isinstance(value, float) else value
