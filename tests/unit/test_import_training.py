"""Exports come back: what was exported is imported as the rows that it was made of, from JSON lines and from Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from treadle_corpus import CorpusRow
from treadle_corpus.forms import convert
from treadle_corpus.testing import corpus_row, graded
from treadle_corpus.views import VIEWS, every_row
from treadle_schemas.records import Feedback
from treadle_streams.exporting import NotATable, write_lines
from treadle_streams.importing import BadLine, Export
from treadle_streams.importing._lines import interaction_of, outcome_of

ASK = {"role": "user", "content": "où? 🙂"}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
    }
]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}],
}
TOOL = {"role": "tool", "tool_call_id": "c", "content": "result"}


def say(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def row(interaction_id: str, *messages: dict[str, Any], **fields: Any) -> CorpusRow:
    return corpus_row(graded(interaction_id, messages=list(messages), **fields))


def said(kind: Any, text: str) -> Feedback:
    return Feedback(kind=kind, name=kind, outcome_id="o", observed_at="2024-05-16T00:00:00Z", messages=[say(text)])


ROWS = [
    row("a", ASK, CALL, TOOL, say("done"), tools=TOOLS, response=[1, 3], reward=1.0, episode_id="e"),
    row("b", ASK, CALL, TOOL, say("not done"), tools=TOOLS, response=[1, 3], reward=0.0),
    row("c", ASK, say("worse"), response=[1], reward=0.5, task_id="t", feedback=[said("demonstration", "better")]),
    row("d", ASK, say("good"), response=[1], reward=0.5, task_id="u", feedback=[said("preference", "bad")]),
    row("n", ASK, say("no reward"), response=[1], reward=None, task_id="v"),
]


class Read:
    """What `treadle import --from treadle` would send."""

    def __init__(self, *files: Path) -> None:
        self.bad: list[BadLine] = []
        with Export("treadle", files) as export:
            export.learn(lambda read: None)
            self.interactions = [line for path in files for line in self._lines(export.interactions(path))]
            self.outcomes = [line for path in files for line in self._lines(export.outcomes(path))]
            self.passed = dict(export.passed)
        for line in self.interactions:
            interaction_of(line)
        for line in self.outcomes:
            outcome_of(line)

    def _lines(self, source: Any) -> Iterator[dict[str, Any]]:
        for _, line in source:
            if isinstance(line, BadLine):
                self.bad.append(line)
            else:
                yield line


@pytest.fixture(params=["jsonl", "parquet"])
def reread(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def run(lines: Any, *, nested: bool = False) -> Read:
        path = tmp_path / f"lines.{request.param}"
        write_lines(list(lines), str(path), nested=nested)
        found = Read(path)
        assert found.bad == []
        return found

    return run


def test_sft_lines_come_back_as_the_rows_they_were(reread: Any) -> None:
    found = reread(VIEWS["sft"](ROWS, where=every_row))
    rows = {line["interaction_id"]: line for line in found.interactions}
    assert sorted(rows) == ["a", "b", "c", "d", "n"]
    for original in ROWS:
        line, given = rows[original.interaction_id], original.interaction
        for name in ("messages", "response", "tools", "task_id"):
            assert line.get(name) == given.get(name)
        assert line.get("episode_id", line["interaction_id"]) == original.episode_id
    assert {(o["interaction_id"], o["name"], o["value"]) for o in found.outcomes if o.get("kind") is None} == {
        ("a", "reward", 1.0),
        ("b", "reward", 0.0),
        ("c", "reward", 0.5),
        ("d", "reward", 0.5),
    }
    told = [(o["interaction_id"], o["kind"], o["messages"]) for o in found.outcomes if o.get("kind")]
    assert told == [("c", "demonstration", [say("better")])]


def test_pairs_come_back_as_rows_with_rewards_and_what_was_said(reread: Any) -> None:
    found = reread(VIEWS["dpo"](ROWS))
    assert sorted({line["interaction_id"] for line in found.interactions}) == ["a", "b", "c", "d"]
    assert {line["interaction_id"]: line["response"] for line in found.interactions}["a"] == [1, 3]
    kinds = {(o["interaction_id"], o.get("kind", "metric")) for o in found.outcomes}
    assert kinds == {
        ("a", "metric"),
        ("b", "metric"),
        ("c", "metric"),
        ("c", "demonstration"),
        ("d", "metric"),
        ("d", "preference"),
    }


def test_labels_groups_and_evaluation_lines_come_back(reread: Any) -> None:
    kto = reread(VIEWS["kto"](ROWS))
    assert {line["interaction_id"] for line in kto.interactions} == {"a", "b", "c", "d"}
    assert {(o["interaction_id"], o["kind"]) for o in kto.outcomes if o.get("kind")} == {
        ("c", "demonstration"),
        ("d", "preference"),
    }
    sampled = row("s", ASK, say("x"), response=[1], token_ids=[[4, 5]], logprobs=[[-0.5, -0.25]])
    rl = reread(VIEWS["rl"]([*ROWS, sampled], min_attempts=1))
    (line,) = [line for line in rl.interactions if line["interaction_id"] == "s"]
    assert (line["token_ids"], line["logprobs"]) == ([[4, 5]], [[-0.5, -0.25]])
    evaluated = reread(VIEWS["eval"](ROWS, split="all"))
    assert len(evaluated.interactions) == 5


@pytest.mark.parametrize(
    ("form", "view"), [("trl", "sft"), ("axolotl", "sft"), ("verl", "sft"), ("trl", "kto"), ("trl", "dpo")]
)
def test_the_lines_of_other_trainers_come_back_with_what_is_learned(reread: Any, form: str, view: str) -> None:
    lines = convert(form, view, VIEWS[view](ROWS), loose=True).lines
    found = reread(lines, nested=True)
    assert len(found.interactions) == len({line["interaction_id"] for line in found.interactions}) > 1
    (agent,) = [line for line in found.interactions if any(m["content"] == "done" for m in line["messages"])]
    if view != "dpo":
        assert agent["response"] == [1, 3]
    assert agent["tools"] == TOOLS
    assert agent["messages"][: len(agent["messages"])] == [ASK, CALL, TOOL, say("done")]
    if view == "kto":
        assert {o["value"] for o in found.outcomes} == {0.0, 1.0}
    if view == "dpo":
        assert {o["kind"] for o in found.outcomes} == {"preference"}


def test_reading_twice_gives_the_same_ids(reread: Any) -> None:
    lines = convert("trl", "dpo", VIEWS["dpo"](ROWS), loose=True).lines
    one, two = reread(lines, nested=True), reread(lines, nested=True)
    assert one.interactions == two.interactions
    assert one.outcomes == two.outcomes


def test_prompts_alone_are_no_rows_and_other_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    bad = [
        {"text": "plain"},
        {"messages": []},
        {"messages": [{"content": "x"}]},
        {"messages": [ASK], "response": "all"},
    ]
    path.write_text("\n".join(map(json.dumps, [{"prompt": [ASK], "task_id": "t"}, *bad])))
    found = Read(path)
    assert (found.interactions, found.passed) == ([], {"prompt without an answer": 1})
    assert [(line.line, line.reason.split(":")[0]) for line in found.bad] == [
        (2, "$"),
        (3, "$.messages"),
        (4, "$.messages[0].role"),
        (5, "$.response"),
    ]
    broken = tmp_path / "x.parquet"
    broken.write_bytes(b"PAR1 no table")
    (line,) = Read(broken).bad
    assert "no Parquet file" in line.reason


def test_parquet_holds_what_differs_in_kind_as_text_and_refuses_it_as_columns(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}]}, say("1")]
    rows = [row("a", ASK, say("0")), row("b", *parts)]
    path = tmp_path / "x.parquet"
    write_lines(list(VIEWS["sft"](rows)), str(path), nested=False)
    assert [line["messages"] for line in Read(path).interactions] == [[ASK, say("0")], parts]
    lines = convert("verl", "sft", VIEWS["sft"](rows)).lines
    with pytest.raises(NotATable, match=r"x.parquet: column 'messages' cannot be a Parquet column.*\.jsonl"):
        write_lines(lines, str(path), nested=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
    assert Read(path).interactions  # what was there stays
