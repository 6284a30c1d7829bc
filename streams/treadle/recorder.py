"""`Recorder`: what an agent publishes its work through."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self
from urllib.parse import quote

from treadle_schemas.canonical import loads
from treadle_schemas.codec import INTERACTION, OUTCOME, encode
from treadle_schemas.errors import SettingError, TreadleError
from treadle_schemas.events import read_interaction
from treadle_schemas.ids import Handle, check_workspace, new_id
from treadle_schemas.moments import now
from treadle_schemas.pii import PiiPolicy

from treadle import _process, episodes
from treadle._buffer import Buffer, Waiting
from treadle._delivery import Delivery, KafkaDelivery, SpoolSettings
from treadle._given import Moment, listed, moment_text, plain_message, under_pytest
from treadle._ledger import Ledger, Stats
from treadle._reporting import Reporting
from treadle._scopes import Scopes
from treadle._scopes import load as load_scopes
from treadle.errors import NotDelivered, RecorderClosed
from treadle.settings import Settings

if TYPE_CHECKING:
    from treadle.recall import Hit

__all__ = ["Moment", "Recorder"]

_OPTIONAL: Final = (
    "episode_id",
    "task_id",
    "response",
    "tools",
    "step",
    "status",
    "error",
    "subject",
    "sampling",
    "usage",
    "token_ids",
    "logprobs",
    "finish_reason",
    "cost",
    "first_token_ms",
    "attempts",
    "parent_id",
    "references",
    "model",
    "release",
    "agent",
    "slot",
)
"""What `record` may say of an interaction, in the order in which it is put together."""


class Recorder(Scopes, Reporting):
    """Publishes an agent's interactions and their outcomes to a workspace, from any thread.

    It never hurts its host. A call validates, redacts, encodes and appends the event to a file of the spool; it waits for nothing else and
    opens no connection. One background thread a process takes the files to Kafka, now or when it is back. What `record` accepted is lost
    neither by kill -9 nor by a restart: the next recorder of the workspace on this machine sends what a dead process left. What cannot be
    accepted is logged (logger `treadle`) and counted in `stats()`, not raised, except under pytest or with `raise_errors=True`. A forked
    child gets a file, thread and producer of its own. A normal exit and SIGTERM wait up to 2 s for Kafka.
    """

    _delivery_type: ClassVar[type[KafkaDelivery]] = KafkaDelivery

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
        durable: bool | Literal["fsync"] = True,
        buffered: bool = False,
        spool_dir: str | os.PathLike[str] | None = None,
        sink: Delivery | None = None,
        raise_errors: bool | None = None,
        settings: Settings | None = None,
    ) -> None:
        """`workspace` and `bootstrap_servers` default to the environment (see treadle.settings).

        agent, slot, model, release and tags are what `record` says of an interaction unless the call says otherwise.

        durable  True: an event is in a file when `record` returns; a power cut may take the last 100 ms or so
                 "fsync": `record` waits for the disk as well, typically some milliseconds
                 False: straight to Kafka's client; a file takes what that cannot, and kill -9 takes what it still queues
        buffered  True: redaction and the file are the background thread's work too. `record` only copies the event; kill -9 takes what
                 the thread has not done yet, normally some 20 ms, at most BUFFERED_EVENTS events or BUFFERED_BYTES bytes
        spool_dir  the spool's folder, below which each workspace has its own; default TREADLE_SPOOL. It must outlive the container

        `sink` takes the place of spool and Kafka, for tests: treadle.MemorySink. `raise_errors` None means: only under pytest.
        """
        self._raise_errors = raise_errors
        self._ledger = Ledger()
        self._closed = False
        self._hooked = False
        said = {"agent": agent, "slot": slot, "model": model, "release": release}
        self._defaults = {name: given for name, given in said.items() if given is not None}
        self._tags = dict(tags or {})
        self._source = f"/agents/{quote(agent, safe='', errors='replace')}"
        self._unusable: TreadleError | None = None
        self.workspace = workspace or ""
        self.enabled = True
        loaded: Settings | None = None
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
        self._settings = loaded
        self._delivery: Delivery = sink or self._make_delivery(loaded, settings, bootstrap_servers, durable, spool_dir)
        self._buffer = Buffer(self._deliver_buffered, self._complain) if buffered else None
        # detectors compile many patterns: that is the first recorder's time, not the import's
        from treadle._pipeline import Pipeline
        from treadle.policies import PolicySource

        policies = PolicySource(
            self.workspace,
            loaded or _no_settings(),
            policy=None if sink is None else PiiPolicy(),
            bootstrap_servers=bootstrap_servers,
        )
        self._pipeline = Pipeline(self.workspace, self._source, policies)
        load_scopes()
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
        finish_reason: str | None = None,
        cost: float | None = None,
        first_token_ms: float | None = None,
        attempts: Sequence[Mapping[str, Any]] | None = None,
        parent_id: str | None = None,
        references: Sequence[str] | None = None,
        model: str | None = None,
        release: str | None = None,
        agent: str | None = None,
        slot: str | None = None,
    ) -> Handle:
        """Publish one interaction and return its handle; `str(handle)` can be stored anywhere and turned into an outcome later.

        `messages` are OpenAI chat messages, request and response (dicts, or objects with `model_dump`, as the openai client gives);
        `response` are the indices of those that this call produced. Times default to now. `cost` is in US dollars. See
        treadle_schemas.Interaction for the rest.

        The handle is returned also when the event was refused; `stats()` tells.
        """
        interaction = interaction_id or new_id()
        # what the open episode says, unless the caller names one
        joined = {} if episode_id is not None else episodes.claim(self.workspace, interaction)
        handle = Handle(self.workspace, episode_id or joined.get("episode_id") or interaction, interaction)
        if not self.enabled:
            self._ledger.skip()
            return handle
        self._ledger.open()
        try:
            self._check_ready()
            ended = now() if ended_at is None else moment_text(ended_at, "$.ended_at")
            value: dict[str, Any] = {"interaction_id": interaction, **self._defaults, **joined}
            value["messages"] = [m if type(m) is dict else plain_message(m) for m in messages]
            value["started_at"] = ended if started_at is None else moment_text(started_at, "$.started_at")
            value["ended_at"] = ended
            if self._tags or tags:
                value["tags"] = {**self._tags, **joined.get("tags", {}), **(tags or {})}
            if references and "references" in joined:
                references = [*joined["references"], *references]
            for name, given in zip(
                _OPTIONAL,
                (
                    episode_id,
                    task_id,
                    listed(response),
                    listed(tools),
                    step,
                    status,
                    error,
                    subject,
                    sampling,
                    usage,
                    listed(token_ids),
                    listed(logprobs),
                    finish_reason,
                    cost,
                    first_token_ms,
                    listed(attempts),
                    parent_id,
                    listed(references),
                    model,
                    release,
                    agent,
                    slot,
                ),
                strict=True,
            ):
                if given is not None:
                    value[name] = given
            key = read_interaction(value).episode
            self._publish(INTERACTION, value, key)
            episodes.recorded(self.workspace, value)
        except Exception as err:  # the host's work goes on whatever its payload does to us
            self._refuse(err)
        return handle

    def recall(self, query: str, n: int = 5, filter: str | None = None) -> list[Hit]:
        """What was done before in this workspace that is like `query` (plain words), best first, each with its grade at this moment.

        `filter` is a condition as of snapshots: `reward > 0.5 AND agent = 'desk'`. Reads the index that `treadle indexer` keeps on this
        machine; needs the extra `recall`. What goes wrong is logged, and the answer is empty, except under pytest or with
        `raise_errors=True`: then MissingExtra, IndexMissing, FilterError. See docs/recall.md.
        """
        try:
            if self._unusable is not None:
                raise self._unusable
            return importlib.import_module("treadle.recall").recall(  # type: ignore[no-any-return]
                query, n, filter, workspace=self.workspace, settings=self._settings
            )
        except Exception as err:
            if self._raises():
                raise
            self._ledger.complain(f"recall failed, {type(err).__name__}", err)
            return []

    def flush(self, timeout_s: float = 10.0) -> int:
        """Wait at most `timeout_s` until Kafka has everything; how many events it has not (they stay in the spool). Under pytest, raises
        NotDelivered when Kafka did not accept something since the last flush."""
        deadline = time.monotonic() + timeout_s
        if self._buffer is not None:
            self._buffer.work(0.0)
        self._delivery.flush(timeout_s)
        raises = self._raises()
        left = self._ledger.wait_settled(max(0.0, deadline - time.monotonic()), or_worried=raises)
        problem = self._ledger.take_undelivered()
        if problem is not None and raises:
            raise NotDelivered(f"an event was not accepted: {problem}", left)
        return left

    def stats(self) -> Stats:
        """Counts since this process made the recorder (or was forked)."""
        return self._ledger.stats()

    def close(self, timeout_s: float = 2.0) -> int:
        """Flush; what is left then stays in the spool, for the next recorder of the workspace on this machine: how many events that are.
        Later events are refused."""
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

    def _publish_said(self, event: Callable[[], tuple[dict[str, Any], str]], kind: str = OUTCOME) -> None:
        if not self.enabled:
            self._ledger.skip()
            return
        self._ledger.open()
        try:
            self._check_ready()
            value, key = event()
            self._publish(kind, value, key)
        except Exception as err:
            self._refuse(err)

    def _check_ready(self) -> None:
        if self._closed:
            raise RecorderClosed("this recorder is closed")
        if self._unusable is not None:
            raise self._unusable
        if not self._hooked:
            self._hooked = True
            _process.hook_multiprocessing()
            if isinstance(self._delivery, KafkaDelivery):
                _process.hook_sigterm()
                # Here and not in a background thread: a fork while a thread imports leaves the module locked in the child for ever.
                importlib.import_module("treadle.log")
                self._pipeline.follow()

    def _publish(self, kind: str, value: dict[str, Any], key: str) -> None:
        if self._buffer is not None:
            self._buffer.put(Waiting(kind, encode(value), key))
        else:
            self._deliver(kind, value, key)

    def _deliver_buffered(self, event: Waiting) -> None:
        try:
            self._deliver(event.kind, loads(event.raw), event.key)
        except Exception as err:  # this is the background thread: nobody is there to catch it
            self._ledger.worry(str(err))
            self._ledger.refuse()
            self._ledger.complain(f"event refused, {type(err).__name__}", err)

    def _deliver(self, kind: str, value: dict[str, Any], key: str) -> None:
        records = self._pipeline.records(kind, value, key)
        try:
            self._delivery.send_many(records, self._ledger.settle)
        except BaseException:
            self._pipeline.not_sent(key)
            raise

    def _lose(self, err: Exception) -> None:
        """Count, and log or raise, an event that could not even be put together."""
        self._ledger.open()
        self._refuse(err)

    def _refuse(self, err: Exception) -> None:
        self._ledger.refuse()
        if self._raises():
            raise err
        self._ledger.complain(f"event refused, {type(err).__name__}", err)

    def _raises(self) -> bool:
        if self._raise_errors is not None:
            return self._raise_errors
        return under_pytest()

    def _complain(self, kind: str, problem: object) -> None:
        self._ledger.complain(kind, problem)

    def _hurry(self, timeout_s: float) -> int:
        self._delivery.flush(timeout_s)
        return self._ledger.wait_settled(timeout_s)

    def _finish(self, timeout_s: float) -> int:
        if self._buffer is not None:
            self._buffer.close()
        left = self._hurry(timeout_s)
        self._pipeline.close()
        self._delivery.close()
        left = min(left, self._ledger.wait_settled(0.0))
        if left and isinstance(self._delivery, KafkaDelivery):
            self._ledger.complain(
                "not delivered in time",
                f"{left} events stay in the spool {self._delivery.folder} after {timeout_s:.1f} s",
            )
        return left

    def _after_fork(self) -> None:
        self._ledger = Ledger()
        self._hooked = False
        if self._buffer is not None:
            self._buffer.after_fork()
        self._pipeline.after_fork()
        self._delivery.after_fork()

    def _redirect(self, delivery: Delivery) -> Delivery:
        """Send elsewhere from now on; gives the delivery before. For treadle.testing."""
        if self._buffer is not None:
            self._buffer.work(0.0)
        before, self._delivery = self._delivery, delivery
        self._hooked = False
        self._pipeline.after_fork()  # the parts that were sent there are not here
        return before

    def _make_delivery(
        self,
        loaded: Settings | None,
        given: Settings | None,
        bootstrap_servers: str | None,
        durable: bool | Literal["fsync"],
        spool_dir: str | os.PathLike[str] | None,
    ) -> KafkaDelivery:
        def servers() -> str:
            return bootstrap_servers or (given or Settings.load()).bootstrap_servers

        loaded = loaded or _no_settings()
        folder = Path(spool_dir) if spool_dir is not None else loaded.spool_folder
        return self._delivery_type(
            servers,
            SpoolSettings(folder / (self.workspace or "-"), loaded.spool_bytes, loaded.spool_full),
            "fsync" if durable == "fsync" else "file" if durable else "direct",
            lambda: self._ledger,
        )


def _no_settings() -> Settings:
    """Of a recorder that is unusable, and will send nothing."""
    return Settings(home=Path.home(), corpus_root=Path.home())
