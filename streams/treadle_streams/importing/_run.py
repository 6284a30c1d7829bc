"""The import itself: markers around events, in order, with a bound on what is in flight."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from treadle.errors import LogError, NotDelivered, RedactionRefused
from treadle.log import Sender
from treadle_schemas.canonical import loads
from treadle_schemas.codec import IMPORT_MARKER, OUTCOME, PART, Headers, encode, make_headers, to_json
from treadle_schemas.errors import ContractError
from treadle_schemas.ids import check_id, new_id
from treadle_schemas.records import ImportMarker
from treadle_schemas.sealing import is_sealed
from treadle_schemas.topics import topic

from treadle_streams import workspaces
from treadle_streams.errors import ImportInterrupted
from treadle_streams.importing._documents import Source
from treadle_streams.importing._episodes import Episodes
from treadle_streams.importing._export import Export
from treadle_streams.importing._lines import BadLine, Lines, interaction_of, outcome_of
from treadle_streams.importing._outgoing import Outgoing

MAX_IN_FLIGHT: Final = 5_000
SHOWN_ROWS: Final = 5
"""Interactions, and outcomes, that a dry run keeps to show."""
KEPT_BAD_LINES: Final = 1_000
"""Bad lines kept in the report; `on_bad_line` sees every one."""
DELIVERY_TIMEOUT_S: Final = 120.0
"""How long one event may wait for Kafka: a broker's restart fits, the end of a network does not."""
_SOURCE = "treadle/import"
_TOPICS = ("interactions", "outcomes")


@dataclass(kw_only=True)
class ImportReport:
    """What an import did."""

    workspace: str
    import_id: str
    interactions: int = 0
    """Interactions sent and acknowledged."""
    outcomes: int = 0
    """Outcomes (retractions included) sent and acknowledged."""
    bad_lines: int = 0
    bad: list[BadLine] = field(default_factory=list)
    """The first KEPT_BAD_LINES of them."""
    passed: dict[str, int] = field(default_factory=dict)
    """Of another product's export: what was understood and holds nothing to import, by what it is."""
    dry_run: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of a dry run: the first events as they would be sent, redacted."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**self.__dict__, "bad": [line._asdict() for line in self.bad]}


def run_import(
    servers: str,
    workspace: str,
    interactions: Sequence[Path] = (),
    outcomes: Sequence[Path] = (),
    *,
    export: Export | None = None,
    import_id: str | None = None,
    rate: float | None = None,
    pii_key: bytes | None = None,
    dry_run: bool = False,
    on_progress: Callable[[int], None] = lambda read: None,
    on_bad_line: Callable[[BadLine], None] = lambda line: None,
) -> ImportReport:
    """Send the lines of the files, then those of the export, to a workspace: all interactions, then all outcomes. Returns when all are
    acknowledged. The workspace's PII policy and its rules of rights are carried out here, before anything is sent.

    `import_id` is by default a new one; `rate` is the most events a second. `pii_key` is the secret of the policy's keyed hash (None: it
    masks). A `dry_run` sends nothing and keeps the first rows. `on_progress` gets the bytes read so far, after each line; an export is read
    PASSES times.
    Raises WorkspaceMissing, OSError, and ImportInterrupted when Kafka does not take the events; end markers are written whenever Kafka
    can still be reached, also on Ctrl-C, and else the join takes the import as over one hour after its last event.
    """
    settings = workspaces.get(servers, workspace)
    report = ImportReport(workspace=workspace, import_id=check_id(import_id or new_id(), "import_id"), dry_run=dry_run)
    started = time.monotonic()
    sender = _Nowhere(report) if dry_run else Sender(servers, timeout_s=DELIVERY_TIMEOUT_S)
    run = _Run(sender, Outgoing(settings, pii_key), report, None if dry_run else rate, on_progress, on_bad_line)
    if export is not None:
        run.learn(export)
    with Episodes() as episodes, run.framed(settings.partitions):
        for path in interactions:
            run.send_interactions(Lines(path), episodes)
        for source in [] if export is None else map(export.interactions, export.files):
            run.send_interactions(source, episodes)
        for path in outcomes:
            run.send_outcomes(Lines(path), episodes)
        for source in [] if export is None else map(export.outcomes, export.files):
            run.send_outcomes(source, episodes)
        run.flush()
    report.passed = dict(sorted(export.passed.items())) if export is not None else {}
    report.seconds = round(time.monotonic() - started, 3)
    return report


class _Sends(Protocol):
    """What an import needs of a sender."""

    failed: int
    failures: list[str]

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, partition: int | None = None
    ) -> None: ...

    def wait_below(self, in_flight: int) -> None: ...

    def flush(self, timeout_s: float) -> None: ...


class _Nowhere:
    """The sender of a dry run: it keeps the first rows."""

    def __init__(self, report: ImportReport) -> None:
        self.failed = 0
        self.failures: list[str] = []
        self._rows = report.rows
        self._kept: Counter[str] = Counter()

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, partition: int | None = None
    ) -> None:
        if key is not None and value is not None and ("ce_type", PART.encode()) not in headers:
            self._kept[topic] += 1
            if self._kept[topic] <= SHOWN_ROWS:
                self._rows.append(loads(value))

    def wait_below(self, in_flight: int) -> None:
        pass

    def flush(self, timeout_s: float) -> None:
        pass


class _Run:
    def __init__(
        self,
        sender: _Sends,
        outgoing: Outgoing,
        report: ImportReport,
        rate: float | None,
        on_progress: Callable[[int], None],
        on_bad_line: Callable[[BadLine], None],
    ) -> None:
        self._sender = sender
        self._outgoing = outgoing
        self._report = report
        self._rate = rate
        self._on_progress = on_progress
        self._on_bad_line = on_bad_line
        self._bytes = 0
        self._sent = 0
        self._started = time.monotonic()

    @contextmanager
    def framed(self, partitions: int) -> Iterator[None]:
        """Begin markers before, end markers after; per partition Kafka keeps their order.

        An import that is broken off (Ctrl-C, an unreadable file) ends too: its id will not go on. One that Kafka stopped taking cannot.
        """
        self._mark("begin", partitions)
        try:
            yield
        except ImportInterrupted:
            raise
        except BaseException:
            self._mark("end", partitions)
            with suppress(ImportInterrupted):
                self.flush()
            raise
        self._mark("end", partitions)
        self.flush()

    def learn(self, export: Export) -> None:
        """Read an export for the first time."""
        self._bytes += export.learn(self._on_progress)
        self._on_progress(self._bytes)

    def send_interactions(self, lines: Source, episodes: Episodes) -> None:
        """Send one file of interactions."""

        def send(line: dict[str, Any]) -> None:
            value, episode, interaction_id = interaction_of(line)
            try:
                records = self._outgoing.interaction(value, episode)
            except ContractError:
                self._outgoing.not_sent(episode)
                raise
            for kind, body in records:
                self._send("interactions", kind, episode, body, interaction_id, value["ended_at"])
            episodes.add(interaction_id, episode)
            self._report.interactions += 1

        self._each(lines, send)

    def send_outcomes(self, lines: Source, episodes: Episodes) -> None:
        """Send one file of outcomes. One whose interaction came with this import is sent to each of its episodes."""

        def send(line: dict[str, Any]) -> None:
            value, wanted = outcome_of(line)
            # where the episode is the interaction itself the event says nothing of it, so that outcomes which are imported later, without
            # their interactions, are the same bytes
            told = [e for e in episodes.of(wanted) if e != wanted] if wanted is not None else []
            own = wanted is None or not told or wanted in episodes.of(wanted)
            copies = ([value] if own else []) + [{**value, "episode_id": episode} for episode in told]
            for copy in copies:
                self._send("outcomes", OUTCOME, _key(copy), self._outgoing.outcome(copy))
            self._report.outcomes += 1

        self._each(lines, send)

    def flush(self) -> None:
        """Wait for every acknowledgement. Raises ImportInterrupted."""
        try:
            self._sender.flush(DELIVERY_TIMEOUT_S + 10)
        except NotDelivered as err:
            raise self._interrupted(err) from err

    def _each(self, lines: Source, send: Callable[[dict[str, Any]], None]) -> None:
        before = self._bytes
        for number, line in lines:
            if isinstance(line, BadLine):
                self._bad(line)
            else:
                try:
                    send(line)
                except (ContractError, RedactionRefused) as err:
                    self._bad(lines.bad(number, err))
            self._bytes = before + lines.bytes_read
            self._on_progress(self._bytes)
        # a file's last lines, or all of an export's, may hold nothing of this kind
        self._bytes = before + lines.bytes_read
        self._on_progress(self._bytes)

    def _send(
        self, kind: str, event_type: str, key: str, body: bytes, event_id: str | None = None, at: str | None = None
    ) -> None:
        report = self._report
        headers = make_headers(
            event_type,
            report.workspace,
            source=_SOURCE,
            event_id=event_id,
            import_id=report.import_id,
            pii=self._outgoing.pii,
        )
        if at is not None and is_sealed(body):
            # what is left of it when its key is destroyed
            headers = [(name, at.encode() if name == "ce_time" else value) for name, value in headers]
        self._pace()
        try:
            self._sender.wait_below(MAX_IN_FLIGHT)
            if self._sender.failed:
                raise LogError(self._sender.failures[0])
            self._sender.send(topic(report.workspace, kind), key.encode(), body, headers)
        except LogError as err:
            raise self._interrupted(err) from err

    def _pace(self) -> None:
        if self._rate is not None:
            ahead_s = self._sent / self._rate - (time.monotonic() - self._started)
            if ahead_s > 0:
                time.sleep(ahead_s)
        self._sent += 1

    def _mark(self, phase: Any, partitions: int) -> None:
        report = self._report
        value = encode(to_json(ImportMarker(import_id=report.import_id, phase=phase)))
        headers = make_headers(IMPORT_MARKER, report.workspace, source=_SOURCE, import_id=report.import_id)
        for kind in _TOPICS:
            for partition in range(partitions):
                self._sender.send(topic(report.workspace, kind), None, value, headers, partition=partition)

    def _bad(self, line: BadLine) -> None:
        self._report.bad_lines += 1
        if len(self._report.bad) < KEPT_BAD_LINES:
            self._report.bad.append(line)
        self._on_bad_line(line)

    def _interrupted(self, err: LogError) -> ImportInterrupted:
        report = self._report
        return ImportInterrupted(
            f"import {report.import_id} into {report.workspace} stopped after {report.interactions} interactions and "
            f"{report.outcomes} outcomes: {err}. Repeat it as it is: what arrived already changes nothing"
        )


def _key(value: dict[str, Any]) -> str:
    return str(value.get("episode_id") or value.get("interaction_id") or value.get("reference"))
