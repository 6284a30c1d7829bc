"""`treadle corpus export` over a corpus on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from treadle.cli import main
from treadle_corpus import CorpusWriter, Policy
from treadle_corpus.testing import SelectAll, graded

ASK = {"role": "user", "content": "q"}


def said(*texts: str) -> list[dict[str, Any]]:
    return [m for text in texts for m in (ASK, {"role": "assistant", "content": text})]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "corpus"
    records = [
        *(graded(f"w{n}", reward=n / 4, messages=said(f"w{n}")) for n in range(5)),
        *(graded(f"s{n}", episode_id="e", step=n, messages=said(*map(str, range(n + 1)))) for n in range(3)),
        graded("lone", task_id="lone"),
        graded("h", task_id="h", split="heldout"),
    ]
    with CorpusWriter.open(path, workspace="w", policy=Policy()) as writer:
        writer.apply(records, {0: len(records)}, 1000)
        writer.finish(SelectAll())
    return path


Export = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, ["corpus", "export", *map(str, args)])


@pytest.fixture
def export(corpus: Path, tmp_path: Path) -> Export:
    def run(view: str, *options: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        out = tmp_path / f"{view}.jsonl"
        done = invoke(corpus, "--view", view, *options, "--out", out, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout), [json.loads(line) for line in out.read_bytes().splitlines()]

    return run


def test_the_summary_accounts_for_every_row(export: Export) -> None:
    counts, lines = export("sft")
    assert counts["examples"] == len(lines) == 6
    assert (counts["rows"], counts["used"], counts["dropped"]) == (9, 8, {"not_selected": 1})
    assert counts["repetition"] == pytest.approx((2 + 4 + 6 + 5 * 2) / (6 + 5 * 2), abs=1e-3)
    assert counts["version"] == 1
    assert len(export("sft", "--rows", "all")[1]) == 7


def test_options_belong_to_their_views(export: Export, corpus: Path) -> None:
    margins = sorted(line["margin"] for line in export("dpo", "--margin", "0.75", "--cap", "0")[1])
    assert margins == [0.75, 0.75, 0.75, 1.0, 1.0]
    assert len(export("reward", "--cap", "2")[1]) == 2
    assert [len(line["attempts"]) for line in export("rl")[1]] == [6]
    assert [len(line["attempts"]) for line in export("rl", "--min-attempts", "1")[1]] == [1, 6]
    assert {line["label"] for line in export("kto")[1]} == {True, False}
    assert [line["interaction_id"] for line in export("eval", "--split", "heldout")[1]] == ["h"]
    for args, words in (
        (["--view", "sft", "--cap", "2"], "--cap is for the view dpo and reward, not for sft"),
        (["--view", "dpo", "--rows", "all"], "--rows is for the view sft, not for dpo"),
        (["--view", "eval"], "--split heldout"),
    ):
        done = invoke(corpus, *args)
        assert (done.exit_code, words in done.stderr) == (2, True), done.output


def test_on_a_terminal_the_account_stands_beside_the_lines(corpus: Path) -> None:
    done = invoke(corpus, "--view", "sft")
    assert len(done.stdout.splitlines()) == 6
    assert "6 sft examples from split train" in done.stderr
    assert "rows dropped: not_selected 1" in done.stderr
    assert "the steps held 1.4 times the messages" in done.stderr


def test_a_file_is_written_whole_or_not_at_all(corpus: Path, tmp_path: Path) -> None:
    target = tmp_path / "taken.jsonl"
    target.mkdir()
    done = invoke(corpus, "--view", "sft", "--out", target)
    assert done.exit_code != 0
    assert [p.name for p in tmp_path.iterdir()] == ["taken.jsonl"]
