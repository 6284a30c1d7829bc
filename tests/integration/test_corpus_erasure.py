"""Erasing episodes from a corpus on disk: who may be there meanwhile, what commands say afterwards, and what becomes of exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from treadle.cli import main
from treadle_corpus import (
    Corpus,
    CorpusDamaged,
    CorpusInUse,
    CorpusLocked,
    CorpusWriter,
    PartRecord,
    Policy,
    erase,
    erasures,
    is_wanted,
    read_tags,
    versions,
)
from treadle_corpus.exports import exports
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas.parts import SentParts, read_part, split
from treadle_streams.exporting.rewriting import rewrite_exports

AT = "2026-11-30T12:00:00Z"


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, ["corpus", *map(str, words)])


def shown(*words: object) -> Any:
    done = invoke(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def messages(name: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"{name} asks"}, {"role": "assistant", "content": f"a word for {name}"}]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """v1 has ann and bob, v2 carol too; cid is folded and in no version yet."""
    path = tmp_path / "corpora" / "main"
    with CorpusWriter.open(path, workspace="w", policy=Policy()) as writer:
        writer.apply([graded(n, messages=messages(n)) for n in ("ann", "bob")], {0: 2}, 1000)
        writer.finish(SelectAll(), created_at=AT)
        writer.apply([graded("carol", messages=messages("carol"))], {0: 3}, 2000)
        writer.finish(SelectAll(), created_at=AT)
        writer.apply([graded("cid", messages=messages("cid"))], {0: 4}, 3000)
    Corpus.open(f"{path}@v1").tag("golden")
    return path


def members(path: Path, version: int) -> list[str]:
    with Corpus.open(f"{path}@v{version}") as found:
        return [r.interaction_id for r in found.rows("all")]


def test_readers_and_writers_are_named_and_one_that_listens_lets_go(corpus: Path) -> None:
    reading = Corpus.open(f"{corpus}@v1")
    with pytest.raises(CorpusInUse, match=r"@v1 cannot be replaced: .* is reading it.*Nothing was replaced"):
        erase(corpus, ["ann"], reason="asked", erased_at=AT)
    assert (members(corpus, 1), erasures(corpus)) == (["ann", "bob"], [])
    reading.close()
    with CorpusWriter.open(corpus, workspace="w", policy=Policy()) as writer:
        with pytest.raises(CorpusLocked):
            erase(corpus, ["ann"], reason="asked", erased_at=AT)
        assert not is_wanted(corpus)
        with pytest.raises(CorpusLocked):
            erase(corpus, ["ann"], reason="asked", erased_at=AT, wait_s=0.15)
        assert not is_wanted(corpus)  # taken back
        assert writer.manifest is not None
    assert erase(corpus, ["ann"], reason="asked", erased_at=AT) is not None
    assert [p.name for p in corpus.parent.iterdir()] == ["main"]


def test_commands_say_what_an_erasure_did_and_its_record_proves_the_version(corpus: Path) -> None:
    before = [Corpus.open(f"{corpus}@v{n}").manifest.content_hash for n in (1, 2)]
    record = erase(corpus, ["carol", "cid", "nobody"], reason="asked by mail", erased_at=AT)
    assert record is not None
    assert (len(record.episodes), len(record.rows), sorted(record.versions)) == (3, 2, [2])
    assert (record.versions[2].before, record.versions[2].removed) == (before[1], 1)
    assert b"carol" not in b"".join(f.read_bytes() for f in (corpus / "erasures").iterdir())
    assert (members(corpus, 1), members(corpus, 2)) == (["ann", "bob"], ["ann", "bob"])
    assert read_tags(corpus) == {"golden": 1}
    assert erase(corpus, ["carol"], reason="again", erased_at=AT) is None
    # commands
    said = {
        "erasure": 1,
        "erased_at": AT,
        "reason": "asked by mail",
        "removed": 1,
        "rows_before": 3,
        "content_hash_before": before[1],
    }
    assert shown("show", corpus)["erasures"] == [said]
    assert [one["erasures"] for one in shown("log", corpus)] == [[said], []]
    assert shown("diff", f"{corpus}@v1", "@v2")["erasures"] == {f"{corpus}@v1": [], f"{corpus}@v2": [said]}
    assert [one["erasures"] for one in shown("verify", corpus, "--all")["verified"]] == [[], [said]]
    words = "erasure 1 of 2026-11-30 took out 1 rows (asked by mail)"
    for command in (["log", corpus], ["diff", f"{corpus}@v1", "@v2"], ["verify", corpus]):
        assert words in invoke(*command).stdout
    assert f"took out 1 of 3 rows; before it the content hash was {before[1]}" in invoke("show", corpus).stdout
    # a replay of the log, from its beginning or from anywhere, brings nobody back
    with CorpusWriter.open(corpus, workspace="w", policy=Policy()) as writer:
        names = ("ann", "carol", "cid", "new")
        assert writer.apply([graded(n, messages=messages(n), revision=2) for n in names], {0: 9}, 4000) == []
        assert (writer.knows(("carol", "carol")), writer.knows(("x", "x"))) == (True, False)
        writer.finish(SelectAll())
    assert members(corpus, 3) == ["ann", "bob", "new"]
    # a record that does not go with the version is found out
    file = corpus / "erasures" / "1.json"
    file.write_text(file.read_text().replace(record.versions[2].after, before[1]))
    with pytest.raises(CorpusDamaged, match="the record of erasure 1 says"):
        Corpus.open(f"{corpus}@v2").verify()


def test_parts_of_long_contexts_go_with_their_episode(tmp_path: Path) -> None:
    path = tmp_path / "main"
    records: list[Any] = []
    for name in ("ann", "bob"):
        whole = graded(name, episode_id=name, messages=[{"role": "user", "content": f"{name} " * 900}, *messages(name)])
        short, parts = split(whole.row.interaction, SentParts())
        assert parts
        records += [PartRecord(*read_part(part)) for part in parts]
        fields = {k: v for k, v in short.items() if k in ("transcript", "claims")}
        records.append(graded(name, episode_id=name, messages=short["messages"] or messages(name), **fields))
    with CorpusWriter.open(path, workspace="w", policy=Policy()) as writer:
        assert writer.apply(records, {0: len(records)}, 1000) == []
        writer.finish(SelectAll())
    text = {r.interaction_id: r.interaction["messages"][0]["content"] for r in Corpus.open(path).rows("all")}
    assert sorted(text) == ["ann", "bob"]
    erase(path, ["ann"], reason="asked", erased_at=AT)
    with Corpus.open(path) as left:
        left.verify()
        assert {r.interaction_id: r.interaction["messages"][0]["content"] for r in left.rows("all")} == {
            "bob": text["bob"]
        }
        assert {key[0] for key in left._read().parts} == {"bob"}
    with CorpusWriter.open(path, workspace="w", policy=Policy()) as writer:
        writer.apply(records, {0: 99}, 1000)  # replayed, parts too
        assert {key[0] for key in writer._state.parts} == {"bob"}


def test_exports_are_written_again_and_those_that_are_not_as_they_were_are_named(corpus: Path, tmp_path: Path) -> None:
    def export(name: str, *options: object, version: int = 2) -> Path:
        out = tmp_path / name
        done = invoke("export", f"{corpus}@v{version}", "--view", "sft", *options, "--out", out)
        assert done.exit_code == 0, done.output
        return out

    kept, table, changed, moved = export("a.jsonl"), export("b.parquet"), export("c.jsonl"), export("d.jsonl")
    other, form = export("e.jsonl", version=1), export("f.jsonl", "--form", "openai")
    done = export("g.jsonl")
    changed.write_bytes(changed.read_bytes() + b"\n")
    moved.rename(tmp_path / "elsewhere.jsonl")
    untouched = other.read_bytes()
    states = {Path(e["file"]).name: e["state"] for e in shown("exports", corpus)}
    assert states == dict.fromkeys(("a.jsonl", "b.parquet", "e.jsonl", "f.jsonl", "g.jsonl"), "there") | {
        "c.jsonl": "changed",
        "d.jsonl": "gone",
    }
    erase(corpus, ["carol"], reason="asked", erased_at=AT)
    assert len(exports(corpus)) == 7  # they are known to the corpus that took the place of the old one
    planned = {Path(r.export.file).name: (r.outcome, r.removed) for r in rewrite_exports(corpus, dry_run=True)}
    assert b"carol" in kept.read_bytes()
    # killed before its record was written: the file is what it should be
    done.write_bytes(b"".join(line for line in done.read_bytes().splitlines(keepends=True) if b"carol" not in line))
    found = {Path(r.export.file).name: (r.outcome, r.removed) for r in rewrite_exports(corpus)}
    assert found == {
        "a.jsonl": ("rewritten", 1),
        "b.parquet": ("rewritten", 1),
        "c.jsonl": ("changed", 0),
        "d.jsonl": ("gone", 0),
        "f.jsonl": ("rewritten", 1),
        "g.jsonl": ("rewritten", 1),
    }
    assert planned == {**found, "g.jsonl": ("rewritten", 1)}
    for file in (kept, table, form, done):
        assert b"carol" not in file.read_bytes()
        assert b"bob" in file.read_bytes() or file == table
    assert other.read_bytes() == untouched
    again = list(rewrite_exports(corpus))
    assert [Path(r.export.file).name for r in again] == ["c.jsonl", "d.jsonl"]
    assert "was changed since it was exported from v2" in again[0].remains
    assert "is not there any more" in again[1].remains
    assert not list(tmp_path.glob(".*"))
    assert invoke("exports", corpus, "--forget", moved).exit_code == 0
    assert [Path(r.export.file).name for r in rewrite_exports(corpus)] == ["c.jsonl"]
    assert versions(corpus) == [1, 2]
