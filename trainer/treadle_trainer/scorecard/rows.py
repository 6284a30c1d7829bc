"""What a scorecard is measured on: held-out rows of one corpus version, and an anchor suite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from treadle_corpus import Corpus, CorpusRow
from treadle_corpus.images import has_images
from treadle_corpus.views import dpo, evaluation, every_row, rewarded, sft
from treadle_schemas.errors import SettingError

from treadle_trainer.data._selection import newest

__all__ = ["ANCHOR", "EvalPair", "EvalRow", "Measured", "read_anchor", "select_rows"]

ANCHOR: Final = "anchor"
"""The slice of an anchor suite."""
MIN_SLICE: Final = 8
"""Rows that a tag, task, model or agent needs to be a slice of its own."""
MAX_SLICES: Final = 24


class EvalRow(msgspec.Struct, frozen=True, kw_only=True):
    """One logged trajectory: context, and the responses (indices of messages) that a model is held against."""

    messages: list[dict[str, Any]]
    response: list[int]
    tools: list[dict[str, Any]] | None = None
    reward: float | None = None
    group: str
    """The split group: rows of one group count as one observation."""
    slices: list[str] = []
    """Where it counts beside the whole: `anchor`, `tag tier=gold`, `task t1`, `model m`, `agent a`."""
    on_card: bool = True
    """Whether it counts on the scorecard."""
    decides: bool = False
    """Whether the gate compares its likelihood."""
    labels: dict[str, str] = {}
    """Of a row that decides: by each label that the gate asks for its value, "" without one."""


class EvalPair(msgspec.Struct, frozen=True, kw_only=True):
    """Two answers to one prompt, the better one first."""

    prompt: list[dict[str, Any]]
    chosen: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    chosen_response: list[int]
    rejected_response: list[int]
    tools: list[dict[str, Any]] | None = None
    group: str


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The file that a job reads."""

    rows: list[EvalRow]
    pairs: list[EvalPair]


def select_rows(
    corpus: Corpus,
    limit: int,
    *,
    deciding: int = 0,
    labels: Sequence[str] = (),
    believed: Callable[[CorpusRow], bool] = every_row,
) -> Measured:
    """The newest `limit` held-out trajectories of a version, and the pairs among its held-out rows (none where `limit` is 0).

    With `deciding`, also the newest so many that succeeded, for the gate: these name their `labels`, each `model`, `agent`, `task` or
    the name of a tag. Where a label is not `believed`, nobody knows whether the row succeeded: it decides nothing, is in no pair, and its
    reward is None. Those with images are left out. The held-out rows are read once.
    """
    heldout = [row for row in corpus.rows("heldout") if not has_images(row.interaction["messages"])]
    rows = _card_rows(newest(heldout, limit), believed) if limit else []
    if deciding:
        rows = _with_deciding(
            rows, newest((row for row in heldout if rewarded(row) and believed(row)), deciding), labels
        )
    pairs = [
        EvalPair(
            prompt=pair["prompt"],
            chosen=pair["chosen"],
            rejected=pair["rejected"],
            chosen_response=pair["chosen_response"],
            rejected_response=pair["rejected_response"],
            tools=pair["tools"],
            group=pair["task_id"] or repr(pair["prompt"]),
        )
        for pair in (dpo([row for row in heldout if believed(row)], split="heldout") if limit else ())
    ]
    return Measured(rows=rows, pairs=pairs[:limit])


def _card_rows(chosen: Sequence[CorpusRow], believed: Callable[[CorpusRow], bool]) -> list[EvalRow]:
    of_row = {(row.episode_id, row.interaction_id): row for row in chosen}
    rows = []
    for example in evaluation(chosen):
        row = of_row[example["episode_id"], example["interaction_id"]]
        rows.append(
            EvalRow(
                messages=example["messages"],
                response=example["response"],
                tools=example["tools"],
                reward=example["reward"] if believed(row) else None,
                group=example["group"],
                slices=list(_slices(row.interaction)),
            )
        )
    return _with_big_slices(rows)


def _with_deciding(rows: list[EvalRow], wins: Sequence[CorpusRow], labels: Sequence[str]) -> list[EvalRow]:
    """With those that the gate compares: the same row where the same is measured, one of its own elsewhere.

    An episode of which some steps succeeded decides by these steps alone, and counts on the card with all of them.
    """
    of_row = {(row.episode_id, row.interaction_id): row for row in wins}
    places = {(repr(row.messages), tuple(row.response)): n for n, row in enumerate(rows)}
    rows = list(rows)
    for example in sft(wins, rewarded, split="heldout"):
        row = of_row[example["episode_id"], example["interaction_id"]]
        said = {name: _label(row.interaction, name) for name in labels}
        place = places.get((repr(example["messages"]), tuple(example["response"])))
        if place is not None and not rows[place].decides:
            rows[place] = msgspec.structs.replace(rows[place], decides=True, labels=said)
            continue
        rows.append(
            EvalRow(
                messages=example["messages"],
                response=example["response"],
                tools=example["tools"],
                reward=example["reward"],
                group=row.split_group,
                on_card=False,
                decides=True,
                labels=said,
            )
        )
    return rows


def _label(interaction: dict[str, Any], name: str) -> str:
    tags = interaction.get("tags") or {}
    field = {"task": "task_id"}.get(name, name)
    value = tags[name] if name in tags else interaction.get(field) if name in ("task", "model", "agent") else None
    return "" if value is None else str(value)


def read_anchor(path: Path) -> list[EvalRow]:
    """An anchor suite: JSON lines of {"messages": [...], "response": [indices], "tools": [...], "group": "..."}.

    `response` is by default the last assistant message, `group` the number of the line. Raises SettingError naming the line.
    """
    rows = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as err:
        raise SettingError(f"{path}: the anchor suite cannot be read: {err}") from err
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            said = msgspec.json.decode(line, type=_AnchorLine)
        except msgspec.DecodeError as err:
            raise SettingError(f"{path}:{number}: no line of an anchor suite: {err}") from err
        spoken = [n for n, message in enumerate(said.messages) if message.get("role") == "assistant"]
        response = spoken[-1:] if said.response is None else said.response
        if not response or not set(response) <= set(spoken):
            raise SettingError(
                f"{path}:{number}: response {response} names no messages of the assistant (those are {spoken})"
            )
        rows.append(
            EvalRow(
                messages=said.messages,
                response=response,
                tools=said.tools,
                reward=1.0,
                group=f"anchor {said.group or number}",
                slices=[ANCHOR],
            )
        )
    if not rows:
        raise SettingError(f"{path}: the anchor suite is empty")
    return rows


class _AnchorLine(msgspec.Struct, kw_only=True):
    messages: list[dict[str, Any]]
    response: list[int] | None = None
    tools: list[dict[str, Any]] | None = None
    group: str | None = None


def _slices(interaction: dict[str, Any]) -> Iterator[str]:
    for name, value in sorted((interaction.get("tags") or {}).items()):
        yield f"tag {name}={value}"
    for kind, name in (("task", "task_id"), ("model", "model"), ("agent", "agent")):
        if interaction.get(name) is not None:
            yield f"{kind} {interaction[name]}"


def _with_big_slices(rows: Iterable[EvalRow]) -> list[EvalRow]:
    """The same rows, with those slices only that hold enough of them and not all."""
    rows = list(rows)
    counts: dict[str, int] = {}
    for row in rows:
        for name in row.slices:
            counts[name] = counts.get(name, 0) + 1
    big = [name for name, n in counts.items() if MIN_SLICE <= n < len(rows)]
    kept = set(sorted(big, key=lambda name: (-counts[name], name))[:MAX_SLICES])
    return [msgspec.structs.replace(row, slices=[name for name in row.slices if name in kept]) for row in rows]
