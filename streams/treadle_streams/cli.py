"""The commands of the streams side: name -> ("module:attribute", one line of help). Nothing is imported to list them."""

from __future__ import annotations

from typing import Final

__all__ = ["COMMANDS"]

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("treadle_streams.supervisor.commands:up", "Start broker and services for this machine, supervised."),
    "down": ("treadle_streams.supervisor.commands:down", "Stop what `treadle up` started; all data stays."),
    "status": ("treadle_streams.supervisor.commands:status", "Show how broker, services and workspaces are."),
    "workspace": ("treadle_streams.workspaces.commands:workspace", "Create, list, show and delete workspaces."),
    "worker": ("treadle_streams.worker.cli:command", "Join interactions with their outcomes; runs until stopped."),
    "tail": ("treadle_streams.tail.commands:command", "Show the newest graded rows, and those that follow."),
    "dead-letter": (
        "treadle_streams.dead_letters.commands:dead_letter",
        "Look at what the join refused, and send it again.",
    ),
    "erase": ("treadle_streams.erasing.commands:command", "Erase everything recorded of a subject, in all stores."),
    "restore": ("treadle_streams.worker.restore_cli:command", "Rebuild lost join state from the log."),
    "snapshot": ("treadle_streams.snapshot.cli:snapshot", "Make the next version of a corpus from what has settled."),
    "snapshotter": (
        "treadle_streams.snapshot.cli:snapshotter",
        "Keep making versions of a corpus; runs until stopped.",
    ),
    "policy": (
        "treadle_streams.snapshot.policy_cli:policy",
        "Store, list, show and delete snapshot policies.",
    ),
    "corpus": ("treadle_streams.snapshot.corpus_cli:corpus", "Look into corpora and export views of them."),
    "archive": ("treadle_streams.archive.commands:archive", "Move closed ranges of the log into files."),
    "check-producer": (
        "treadle_streams.conformance.commands:check_producer",
        "Check what a producer sent against the contract.",
    ),
    "grader": ("treadle_streams.grader.cli:grader", "Judge interactions; verdicts are outcomes."),
    "ingest": ("treadle_streams.ingest.commands:ingest", "Receive events over HTTP; runs until stopped."),
    "indexer": ("treadle_streams.live.cli:indexer", "Keep the live index for recall up to date; runs until stopped."),
    "recall": ("treadle_streams.live.cli:recall", "Find what agents did before, with its grade."),
    "import": ("treadle_streams.importing.commands:import_", "Bring logs into a workspace; safe to repeat."),
}
