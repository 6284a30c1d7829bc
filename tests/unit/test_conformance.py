"""The contract for producers in other languages: golden examples, vectors, and what a check finds in records."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from treadle.cli import main
from treadle_schemas import FieldError, Metric, WorkspaceSettings, codec, examples
from treadle_schemas.canonical import canonical_json, content_hash, loads
from treadle_schemas.conformance import REQUIRED_HEADERS, header_findings, record_of, unknown_fields
from treadle_schemas.ids import Handle
from treadle_schemas.moments import to_micros
from treadle_schemas.partitioner import murmur2, partition_of
from treadle_schemas.pii import built_in
from treadle_streams.conformance import Check, Place
from treadle_streams.conformance._check import Found

FILES = sorted(examples.FOLDER.rglob("*.json"))
VALID = sorted((examples.FOLDER / "valid").glob("*.json"))
INVALID = sorted((examples.FOLDER / "invalid").glob("*.json"))
WARNED = {"interaction-unknown-field": {"unknown_field"}}
SETTINGS = WorkspaceSettings(workspace=examples.WORKSPACE, pii=built_in("secrets"))


def records(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = loads(path.read_bytes())["records"]
    return found


def run(said: list[dict[str, Any]], settings: WorkspaceSettings = SETTINGS, *, whole: bool = False) -> Check:
    check = Check(settings)
    for number, record in enumerate(said, 1):
        check.add(record_of(record), Place("f", number))
    check.finish(whole=whole)
    return check


def base(**changed: Any) -> dict[str, Any]:
    (record,) = records(examples.FOLDER / "valid" / "interaction-minimal.json")
    return {**record, "value": {**record["value"], **changed}}


def cli(*args: object) -> Result:
    return CliRunner().invoke(main, ["check-producer", *map(str, args)])


# The golden files.


def test_the_committed_examples_are_those_the_code_gives() -> None:
    made = examples.files()
    assert {path.relative_to(examples.FOLDER).as_posix() for path in FILES} == set(made)
    for name, text in made.items():
        committed = (examples.FOLDER / name).read_text(encoding="ascii")
        assert committed == text, "run `python -m treadle_schemas.examples` and review the change of contract"


def test_writing_examples_tells_what_changed(tmp_path: Path) -> None:
    assert len(examples.write(tmp_path)) == len(FILES)
    assert examples.write(tmp_path) == []


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_example_conforms(path: Path) -> None:
    check = run(records(path), whole=path.stem != "import")
    assert check.conforming, check.found
    assert set(check.warnings) == WARNED.get(path.stem, set()), check.found
    assert check.repeats == 0


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_an_invalid_example_is_found_with_its_reason_and_field(path: Path) -> None:
    *before, last = records(path)
    assert run(before).conforming or not before
    check = run([*before, last])
    wanted = last["expected"]
    found = {
        (f.finding.reason, f.finding.detail.startswith(wanted["field"] + ":"))
        for f in check.found
        if f.finding.level == "error"
    }
    assert (wanted["reason"], True) in found, check.found
    assert not check.conforming


@pytest.mark.parametrize("path", [*VALID, *INVALID], ids=lambda path: path.stem)
def test_partitions_and_hashes_of_an_example_are_those_of_its_bytes(path: Path) -> None:
    for record in records(path):
        if "content_hash" in record:
            assert record["content_hash"] == content_hash(loads(json.dumps(record["value"])))
        for count, partition in record.get("partitions", {}).items():
            assert partition == partition_of(record["key"].encode(), int(count))


def test_vectors() -> None:
    vectors = loads((examples.FOLDER / "vectors.json").read_bytes())
    # from org.apache.kafka.common.utils.UtilsTest.testMurmur2
    known = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
    assert {v["key"]: v["murmur2"] for v in vectors["partitions"] if v["key"] in known} == {
        key: number % 2**32 for key, number in known.items()
    }
    for vector in vectors["partitions"]:
        assert murmur2(vector["key"].encode()) == vector["murmur2"]
        assert vector["partitions"].keys() == {str(count) for count in examples.PARTITIONS}
    for vector in vectors["canonical"]:
        assert canonical_json(loads(vector["json"])).decode() == vector["canonical"]
    for vector in vectors["handles"]:
        assert Handle.parse(vector["handle"]) == Handle(
            *(vector[k] for k in ("workspace", "episode_id", "interaction_id"))
        )
    for vector in vectors["times"]:
        assert to_micros(vector["text"], "$") == vector["microseconds"]


def test_another_language_comes_to_the_same_hashes_and_partitions(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = Path(__file__).parents[2] / "examples" / "other_languages" / "hashes.mjs"

    def check(folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([node, script, folder], capture_output=True, text=True, timeout=60, check=False)

    ran = check(examples.FOLDER)
    assert (ran.returncode, ran.stderr) == (0, "")
    changed = shutil.copytree(examples.FOLDER, tmp_path / "examples")
    path = changed / "valid" / "parts.json"
    path.write_text(path.read_text().replace("It is on its way.", "It is on its Way.", 1))
    assert check(changed).returncode == 1


# Headers.


@pytest.mark.parametrize("name", REQUIRED_HEADERS)
def test_a_required_header_that_is_missing_is_an_error(name: str) -> None:
    record = base()
    del record["headers"][name]
    check = run([record])
    assert any(f.finding.detail.startswith(f"headers.{name}: ") for f in check.found if f.finding.level == "error")


BAD_HEADERS = [
    ("ce_pii", "secrets"),
    ("ce_pii", "secrets/v1"),
    ("ce_time", "yesterday"),
    ("ce_time", "2026-01-31T09:30:00"),
    ("ce_dataschema", "urn:other"),
    ("content-type", "text/plain"),
    ("ce_id", ""),
    ("ce_source", ""),
]


@pytest.mark.parametrize(("name", "value"), BAD_HEADERS)
def test_a_header_that_says_something_else_is_an_error(name: str, value: str) -> None:
    record = base()
    record["headers"][name] = value
    (found,) = [f for f in header_findings(record_of(record).headers) if f.reason == "bad_header"]
    assert (found.level, found.detail.startswith(f"headers.{name}: ")) == ("error", True)


def test_bytes_that_are_no_text_and_repeated_headers_are_found() -> None:
    headers = [*record_of(base()).headers, ("ce_subject", b"\xff"), ("ce_id", b"again")]
    assert [(f.level, f.detail.partition(":")[0]) for f in header_findings(headers)] == [
        ("warning", "headers.ce_id"),
        ("error", "headers.ce_subject"),
    ]
    assert not list(header_findings([(n, v) for n, v in headers if n != "ce_subject"][:-1]))


# Fields, identity, time, privacy.


def test_a_misspelt_field_is_a_warning_with_the_name_that_was_meant() -> None:
    found = list(unknown_fields(codec.INTERACTION, {**base()["value"], "episodeid": "x", "rights": {"trian": "deny"}}))
    assert [f.detail for f in found] == [
        "$.episodeid: is kept, but means nothing; is episode_id meant?",
        "$.rights.trian: is kept, but means nothing; is train meant?",
    ]
    assert {f.level for f in found} == {"warning"}


def test_the_same_again_is_a_repeat_and_other_content_a_conflict() -> None:
    (outcome,) = records(examples.FOLDER / "valid" / "outcome.json")
    as_integer = {**outcome, "value": {**outcome["value"], "value": 1}}
    check = run([base(), base(), outcome, outcome, as_integer])
    assert (check.repeats, check.conforming) == (3, True), "of a float metric 1 is 1.0"
    check = run([base(), base(error="other"), outcome, {**outcome, "value": {**outcome["value"], "value": 0.0}}])
    assert check.errors == {"conflict": 2}
    assert "f:1" in check.found[0].finding.detail


def test_one_interaction_id_in_two_episodes_is_two_interactions() -> None:
    a, b = base(episode_id="a") | {"key": "a"}, base(episode_id="b") | {"key": "b"}
    assert run([a, b]).conforming


def test_a_clock_that_is_ahead_is_a_warning() -> None:
    ended_ms = to_micros(base()["value"]["ended_at"], "$") // 1000
    assert not run([base() | {"timestamp_ms": ended_ms}]).warnings
    check = run([base() | {"timestamp_ms": ended_ms - 1500}])
    assert (check.warnings, check.conforming) == ({"clock_ahead": 1}, True)
    assert "1.500 s" in check.found[0].finding.detail


def test_metrics_are_those_of_the_workspace() -> None:
    (outcome,) = records(examples.FOLDER / "valid" / "outcome.json")
    strict = WorkspaceSettings(
        workspace="shop", metrics=(Metric(name="reward", type="bool", required=True),), pii=built_in("secrets")
    )
    assert run([outcome], strict).errors == {"bad_value": 1}
    other = WorkspaceSettings(
        workspace="shop",
        metrics=(Metric(name="csat", required=True),),
        reward="csat",
        strict=True,
        pii=built_in("secrets"),
    )
    assert run([outcome], other).errors == {"undeclared": 1}


SECRET = "the key is sk-proj-" + "Ab3dEf6h" * 6


def test_a_producer_that_carries_out_no_policy_is_found_and_its_secrets_are_not_shown() -> None:
    record = base(messages=[{"role": "user", "content": SECRET}])
    check = run([record])
    assert (check.warnings, check.conforming) == ({"pii_found": 1}, True)
    assert "api_key 1" in check.found[0].finding.detail
    assert SECRET not in str(check.found)
    record["headers"]["ce_pii"] = "off"
    assert run([record]).errors == {"pii_off": 1}
    assert run([record], WorkspaceSettings(workspace="shop", pii=built_in("off"))).conforming
    record["headers"]["ce_pii"] = "standard/3"
    assert run([record]).warnings == {"pii_found": 1, "pii_other": 1}


def test_what_was_redacted_is_not_found_again() -> None:
    from treadle.redaction import Redactor

    done = Redactor(SETTINGS.pii, b"k").redact(base(messages=[{"role": "user", "content": SECRET}])["value"])
    check = run([base() | {"value": done}])
    assert done["redaction"]["counts"]
    assert not check.warnings


def test_a_part_that_is_not_there_is_an_error_only_where_all_was_read() -> None:
    said = records(examples.FOLDER / "valid" / "parts.json")
    lacking = [r for r in said if r["headers"]["ce_type"] != codec.PART or r is not said[1]]
    assert run(lacking, whole=True).errors == {"part_missing": 2}, "the second step builds on the first one's link"
    assert run(lacking).warnings == {"part_missing": 2}
    assert run(list(reversed(said)), whole=True).conforming, "the join does not care for the order"


def test_an_import_needs_markers_on_every_partition() -> None:
    said = records(examples.FOLDER / "valid" / "import.json")
    one = WorkspaceSettings(workspace="shop", partitions=1, pii=built_in("secrets"))
    assert run(said, one, whole=True).conforming
    check = run(said[:-1], one, whole=True)
    assert check.errors == {"import_open": 1}
    assert "no end marker on outcomes[0]" in check.found[0].finding.detail
    assert run(said, whole=True).errors == {"import_open": 2}


@pytest.mark.parametrize(
    ("said", "field"),
    [
        (1, "$"),
        ({}, "$.topic"),
        ({"topic": "graded"}, "$.topic"),
        ({"topic": "outcomes", "key": 1}, "$.key"),
        ({"topic": "outcomes", "key": None, "headers": {"a": 1}}, "$.headers"),
        ({"topic": "outcomes", "headers": {}, "partition": -1}, "$.partition"),
        ({"topic": "outcomes", "headers": {}, "timestamp_ms": True}, "$.timestamp_ms"),
        ({"topic": "outcomes", "headers": {}}, "$.value"),
        ({"topic": "outcomes", "headers": {}, "value": 1, "value_text": "1"}, "$.value"),
        ({"topic": "outcomes", "headers": {}, "value_text": 1}, "$.value_text"),
        ({"topic": "outcomes", "headers": {}, "value_base64": "?"}, "$.value_base64"),
    ],
)
def test_a_line_that_is_no_record_names_its_field(said: Any, field: str) -> None:
    with pytest.raises(FieldError) as caught:
        record_of(said)
    assert caught.value.field == field


def test_a_null_value_is_malformed() -> None:
    assert record_of(base() | {"value": None}).value is None
    assert run([base() | {"value": None}]).errors == {"malformed": 1}


# The command, on files.


def test_a_file_of_lines_is_checked_without_a_broker(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("".join(json.dumps(r) + "\n\n" for path in VALID for r in records(path)))
    result = cli("--file", good)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("conforming\n")
    assert "$.colour: is kept" in result.stdout
    bad.write_text("{\n" + "".join(json.dumps(r) + "\n" for path in INVALID for r in records(path)))
    result = cli("--file", bad, "--json")
    assert result.exit_code == 1
    *found, summary = map(json.loads, result.stdout.splitlines())
    assert summary["conforming"] is False
    assert summary["errors"]["no_record"] == 1
    assert {r["expected"]["reason"] for path in INVALID for r in records(path)[-1:]} <= summary["errors"].keys()
    assert {line["level"] for line in found} == {"error"}
    assert all(line["file"] == "bad.jsonl" and line["line"] > 0 and line["detail"] for line in found)


@pytest.mark.parametrize("path", [VALID[0], *INVALID], ids=lambda path: path.stem)
def test_an_example_itself_can_be_checked(path: Path) -> None:
    result = cli("--file", path, *([] if path in VALID else ["shop"]))
    assert result.exit_code == (0 if path in VALID else 1), result.output


def test_a_list_and_a_single_record_are_files_too(tmp_path: Path) -> None:
    for number, said in enumerate(([base(), base()], base())):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(said, indent=1))
        summary = json.loads(cli("--file", path, "--json").stdout.splitlines()[-1])
        assert (summary["conforming"], summary["records"]) == (True, 2 - number)


def test_a_file_without_a_workspace_is_not_one_of_a_workspace(tmp_path: Path) -> None:
    record = base()
    del record["headers"]["ce_workspace"]
    (tmp_path / "f.jsonl").write_text(json.dumps(record))
    assert "malformed  headers.ce_workspace: is missing" in cli("--file", tmp_path / "f.jsonl").stdout


def test_an_empty_file_does_not_conform(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    result = cli("--file", tmp_path / "empty.jsonl")
    assert (result.exit_code, "nothing was sent" in result.stdout) == (1, True)


def test_options_of_a_workspace_do_not_go_with_a_file() -> None:
    for more in (["--from-end"], ["--since", "1h"], ["--source", "s"]):
        assert cli("--file", VALID[0], *more).exit_code == 2
    assert cli("shop", "--from-end", "--since", "1h").exit_code == 2


def test_only_so_many_findings_are_printed_but_all_are_counted(tmp_path: Path) -> None:
    (tmp_path / "many.jsonl").write_text((json.dumps(base() | {"key": "other"}) + "\n") * 70)
    result = cli("--file", tmp_path / "many.jsonl")
    assert "... and 20 more findings" in result.stdout
    assert "errors: malformed 70" in result.stdout


def test_the_page_names_every_reason_and_header() -> None:
    page = (Path(__file__).parents[2] / "docs" / "contract.md").read_text(encoding="utf-8")
    own = {"missing_header", "bad_header", "unknown_field", "clock_ahead", "pii_off", "pii_other", "pii_found"}
    own |= {"part_missing", "import_open", "no_record", "undeclared", "too_large"}
    for reason in own | {r["expected"]["reason"] for path in INVALID for r in records(path)[-1:]}:
        assert f"`{reason}`" in page, reason
    for name in REQUIRED_HEADERS:
        assert f"`{name}`" in page, name
    assert "json/examples" in page
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for key, hashed, *partitions in rows:
        assert int(hashed) == murmur2(key.encode())
        assert [int(p) for p in partitions] == [partition_of(key.encode(), count) for count in (3, 8, 12)]


def test_a_finding_says_where() -> None:
    assert str(Place("treadle.shop.outcomes", 7, 3)) == "treadle.shop.outcomes[3]@7"
    assert str(Place("f.jsonl", 7)) == "f.jsonl:7"
    assert Found(Place("f", 1), run([base() | {"key": "x"}]).found[0].finding) == run([base() | {"key": "x"}]).found[0]
