"""What a corpus says of its versions: log, differences, tags, verification; from Python and from the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from treadle.cli import main
from treadle_corpus import (
    Corpus,
    CorpusRef,
    CorpusWriter,
    GradedRecord,
    Policy,
    TagMissing,
    TagTaken,
    TargetError,
    VersionMissing,
    parse_ref,
    read_tags,
    set_tag,
    untag,
)
from treadle_corpus.testing import SelectAll, graded


def run(path: Path, records: Sequence[GradedRecord]) -> None:
    with CorpusWriter.open(path, workspace="w", policy=Policy()) as corpus:
        corpus.apply(records, {0: corpus.offsets.get(0, 0) + len(records)}, 1000)
        assert corpus.finish(SelectAll(), created_at="2024-05-15T20:31:00Z", code_version="test") is not None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three versions: rows come; one leaves and three change; one comes."""
    path = tmp_path / "c"
    run(path, [graded(n) for n in ("a", "b", "c", "d", "e")])
    run(
        path,
        [
            graded("a", revision=2, reward=0.25),
            graded("b", revision=2, settled=False),
            graded("c", revision=2, messages=[{"role": "user", "content": "other"}], task_id="other"),
            graded("d", revision=2, metrics={"csat": ("observed", 5), "late": ("pending", None)}),
        ],
    )
    run(path, [graded("f"), graded("a", revision=3, reward=None)])
    return path


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TREADLE_CORPUS_ROOT", str(tmp_path))
    return lambda *words: CliRunner().invoke(main, [str(w) for w in words])


def test_a_difference_names_rows_and_what_changed_of_them(path: Path) -> None:
    one, two, three = (Corpus.open(f"{path}@v{n}") for n in (1, 2, 3))
    found = one.diff(two)
    assert (found.added, found.removed) == ([], [("b", "b")])
    changes = {change.interaction_id: change for change in found.updated}
    assert list(changes) == ["a", "c", "d"]
    assert (changes["a"].changed, changes["a"].reward) == (["reward", "metrics"], (1.0, 0.25))
    assert changes["a"].metrics == {"reward": (("observed", 1.0), ("observed", 0.25))}
    assert changes["c"].changed == ["messages", "task_id"]
    assert changes["d"].changed == ["metrics"]
    assert changes["d"].metrics == {"csat": (None, ("observed", 5)), "late": (None, ("pending", None))}
    later = two.diff(three)
    assert (later.added, later.removed) == ([("f", "f")], [])
    assert [(c.interaction_id, c.reward) for c in later.updated] == [("a", (0.25, None))]
    back = three.diff(one)
    assert (back.added, back.removed) == ([("b", "b")], [("f", "f")])
    assert not any((same := one.diff(one)).added + same.removed + list(same.updated))


def test_a_row_that_moved_to_the_other_side_is_removed_and_two_corpora_can_be_compared(tmp_path: Path) -> None:
    run(tmp_path / "x", [graded("a"), graded("b")])
    run(tmp_path / "y", [graded("a", split="heldout"), graded("c")])
    found = Corpus.open(tmp_path / "x").diff(Corpus.open(tmp_path / "y"))
    assert (found.added, found.removed) == ([("c", "c")], [("b", "b")])
    assert [(c.changed, c.split) for c in found.updated] == [(["split"], ("train", "heldout"))]


def test_the_log_goes_back_from_a_version(path: Path) -> None:
    assert [made.version for made in Corpus.open(path).log()] == [3, 2, 1]
    assert [(made.added, made.updated, made.removed) for made in Corpus.open(f"{path}@v2").log()] == [
        (0, 3, 1),
        (5, 0, 0),
    ]


def test_a_tag_names_a_version_wherever_one_is_named(path: Path) -> None:
    Corpus.open(f"{path}@v2").tag("golden-1")
    assert read_tags(path) == {"golden-1": 2}
    assert parse_ref(f"{path}@golden-1") == CorpusRef(path, 2)
    assert Corpus.open(f"{path}@golden-1").version == 2
    assert Corpus.open(f"{path}@v2").tags() == ["golden-1"]
    set_tag(path, "golden-1", 2)  # the same again
    with pytest.raises(TagTaken, match="names v2 already"):
        set_tag(path, "golden-1", 3)
    set_tag(path, "golden-1", 3, force=True)
    assert Corpus.open(f"{path}@golden-1").version == 3
    assert untag(path, "golden-1") == 3
    with pytest.raises(TagMissing, match="it has none"):
        Corpus.open(f"{path}@golden-1")
    with pytest.raises(VersionMissing):
        set_tag(path, "golden-1", 9)


@pytest.mark.parametrize("name", ["v1", "v12", "v", "", "a/b", "../x", ".hidden", "a b", "-x", "é", "x" * 101])
def test_what_could_be_a_version_or_a_path_is_no_tag(path: Path, name: str) -> None:
    with pytest.raises(TargetError, match="tag"):
        set_tag(path, name, 1)
    assert not read_tags(path)


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path: Path) -> None:
    run(tmp_path / "team@work", [graded("a")])
    assert parse_ref(str(tmp_path / "team@work")) == CorpusRef(tmp_path / "team@work", None)
    assert Corpus.open(f"{tmp_path}/team@work@v1").version == 1
    set_tag(tmp_path / "team@work", "x", 1)
    assert Corpus.open(f"{tmp_path}/team@work@x").version == 1


def test_tags_are_set_while_a_writer_holds_the_corpus(path: Path) -> None:
    with CorpusWriter.open(path, workspace="w", policy=Policy()):
        set_tag(path, "now", 1)
    assert read_tags(path) == {"now": 1}


def test_log_diff_verify_and_tag_by_command(path: Path, command: Callable[..., Result]) -> None:
    assert command("corpus", "tag", f"{path}@v1", "base").stdout == f"{path}@base is v1\n"
    assert json.loads(command("corpus", "tag", path, "--json").stdout) == [{"tag": "base", "version": 1}]
    assert command("corpus", "tag", path).stdout == "base  v1\n"
    lines = command("corpus", "log", path).stdout.splitlines()
    assert lines[0] == "v3  2024-05-15T20:31:00Z  5 rows  added 1, updated 1, removed 0  no filter, dedupe id"
    assert lines[2].startswith("v1  (base)  ")
    assert command("corpus", "log", path, "--limit", "1").stdout.splitlines()[1] == "and 2 before"
    logged = json.loads(command("corpus", "log", f"{path}@v2", "--json").stdout)
    assert [(entry["version"], entry["tags"]) for entry in logged] == [(2, []), (1, ["base"])]
    text = command("corpus", "diff", f"{path}@base", "@v2").stdout.splitlines()
    assert text == [
        f"{path}@v1 to v2: added 0, removed 1, updated 3",
        "  - b/b",
        "  ~ a/a  reward 1.0 to 0.25, metrics.reward 1.0 to 0.25",
        "  ~ c/c  messages, task_id",
        "  ~ d/d  metrics.csat unseen to 5, metrics.late unseen to pending",
    ]
    different = json.loads(command("corpus", "diff", f"{path}@v2", f"{path}@v3", "--json").stdout)
    assert (different["added"], different["updated"][0]["reward"]) == ([["f", "f"]], [0.25, None])
    assert command("corpus", "verify", f"{path}@base").stdout.endswith("  ok\n")
    verified = json.loads(command("corpus", "verify", path, "--all", "--json").stdout)
    assert [entry["version"] for entry in verified["verified"]] == [1, 2, 3]
    assert "tags          base" in command("corpus", "show", f"{path}@base").stdout
    assert json.loads(command("corpus", "show", f"{path}@base", "--json").stdout)["tags"] == ["base"]
    assert command("corpus", "tag", path, "base", "--delete").stdout == f"{path}@base is v1 no more\n"
    assert command("corpus", "show", f"{path}@base").exit_code == 1


def test_verify_by_command_says_what_is_wrong_and_exits_with_1(path: Path, command: Callable[..., Result]) -> None:
    (tail,) = (path / "bodies").glob("tail-*.log")
    os.truncate(tail, tail.stat().st_size // 2)
    done = command("corpus", "verify", path)
    assert done.exit_code == 1
    assert "is in no file of bodies/" in done.output
