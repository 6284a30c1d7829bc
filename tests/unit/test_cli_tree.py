"""The command tree: composition, suggestions, exit codes, shared options. No broker."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from treadle.cli import _root, main, support
from treadle.errors import LogUnreachable, MissingExtra
from treadle.settings import Settings
from treadle_schemas import Metric, SettingError
from treadle_streams.workspaces import parse_metric
from treadle_streams.workspaces._metrics import default_reward


@click.group(cls=support.SuggestingGroup)
def probe() -> None:
    """A group of commands for these tests."""


@probe.command()
@click.argument("how")
@click.pass_context
def end(ctx: click.Context, how: str) -> int:
    """End in the way that is asked for."""
    match how:
        case "well":
            return 0
        case "refused":
            return 3
        case "exit":
            return ctx.exit(4)
        case "unreachable":
            raise LogUnreachable("no broker")
        case "setting":
            raise SettingError("a setting")
        case "interrupt":
            raise KeyboardInterrupt
        case "click":
            raise click.ClickException("a click error")
        case "usage":
            raise click.UsageError("wrong")
        case "missing":
            raise ModuleNotFoundError("No module named 'faust'", name="faust.app")
        case _:
            raise RuntimeError("a bug")


@probe.command()
@click.option("--wait", type=support.DURATION, default="5m")
@support.yes_option
@support.json_option
@support.pass_settings
def show(settings: Settings, wait: float, yes: bool, as_json: bool) -> int:
    """Show what the shared options give."""
    if not support.confirmed("Go on?", yes):
        return 1
    if as_json:
        support.echo_json({"wait": wait, "home": str(settings.home), "servers": settings.bootstrap_servers})
    return 0


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    """Runs the tree with one more table, whose group `probe` needs the extra `streams` and whose `broken` does not import."""
    table = types.ModuleType("table_of_tests")
    table.COMMANDS = {  # type: ignore[attr-defined]
        "probe": ("module_of_tests:probe", "Probe the tree."),
        "absent": ("module_that_needs_an_extra:command", "Needs an extra."),
        "broken": ("treadle_streams.no_such_module:command", "A broken installation."),
    }
    module = types.ModuleType("module_of_tests")
    module.probe = probe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "table_of_tests", table)
    monkeypatch.setitem(sys.modules, "module_of_tests", module)
    sources = (("table_of_tests", "streams"), ("no_such_package.cli", "train"), *_root._SOURCES)
    monkeypatch.setattr(_root, "_SOURCES", sources)
    return CliRunner()


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("well", 0, ""),
        ("refused", 3, ""),
        ("exit", 4, ""),
        ("unreachable", 5, "error: no broker\n"),
        ("setting", 2, "error: a setting\n"),
        ("interrupt", 130, "interrupted\n"),
        ("click", 1, "Error: a click error\n"),
        ("usage", 2, "Error: wrong\n"),
        ("missing", 1, "error: `treadle probe` needs the package faust, which is not installed."),
    ],
)
def test_how_a_command_ends_is_its_exit_code(runner: CliRunner, how: str, code: int, message: str) -> None:
    result = runner.invoke(main, ["probe", "end", how])
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert isinstance(result.exception, SystemExit | None)


def test_a_bug_is_not_hidden(runner: CliRunner) -> None:
    assert isinstance(runner.invoke(main, ["probe", "end", "bug"]).exception, RuntimeError)
    assert isinstance(runner.invoke(main, ["broken"]).exception, ModuleNotFoundError)


def test_help_lists_every_command_without_importing_any(runner: CliRunner) -> None:
    result = runner.invoke(main, ["--help"])
    for name, text in [
        ("absent", "Needs an extra."),
        ("broken", "broken installation"),
        ("version", "Print the version"),
    ]:
        assert name in result.stdout
        assert text in result.stdout
    assert "130 interrupted" in " ".join(result.stdout.split())


def test_a_missing_extra_prints_the_install_command(runner: CliRunner) -> None:
    result = runner.invoke(main, ["absent"])
    assert result.exit_code == 1
    assert "pip install 'treadle[streams]'" in result.stderr
    assert MissingExtra("worker", "faust", "streams").extra == "streams"


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [(["probee"], "'probe'"), (["verison"], "'version'"), (["probe", "shwo"], "'show'"), (["zzz"], None)],
)
def test_an_unknown_command_suggests_a_known_one(
    runner: CliRunner, arguments: list[str], suggestion: str | None
) -> None:
    result = runner.invoke(main, arguments)
    assert result.exit_code == 2
    assert "No such command" in result.stderr
    assert ("Did you mean" in result.stderr) == (suggestion is not None)
    assert suggestion is None or suggestion in result.stderr


def test_flags_win_over_the_environment(runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "environment"))
    monkeypatch.setenv("TREADLE_BOOTSTRAP_SERVERS", "environment:1")
    command = ["probe", "show", "--yes", "--json", "--wait", "90s"]
    plain = json.loads(runner.invoke(main, command).stdout)
    assert plain == {"wait": 90.0, "home": str(tmp_path / "environment"), "servers": "environment:1"}
    flags = ["--home", str(tmp_path / "flag"), "--bootstrap-servers", "flag:1"]
    assert json.loads(runner.invoke(main, [*flags, *command]).stdout)["home"] == str(tmp_path / "flag")
    assert json.loads(runner.invoke(main, [*flags, *command]).stdout)["servers"] == "flag:1"


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_what_destroys_asks(runner: CliRunner, answer: str, code: int) -> None:
    result = runner.invoke(main, ["probe", "show"], input=answer)
    assert result.exit_code == code
    assert result.stdout == ""
    assert ("nothing was changed" in result.stderr) == (code == 1)


def test_a_wrong_duration_is_wrong_usage(runner: CliRunner) -> None:
    result = runner.invoke(main, ["probe", "show", "--wait", "soon"])
    assert (result.exit_code, "'soon' is not a duration" in result.stderr) == (2, True)


def test_without_a_broker_commands_say_how_to_get_one(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(main, ["--home", str(tmp_path), "workspace", "list"])
    assert result.exit_code == 2
    assert "treadle up" in result.stderr
    assert str(tmp_path) in result.stderr


def test_version_reports(runner: CliRunner) -> None:
    found = json.loads(runner.invoke(main, ["version", "--json"]).stdout)
    assert found["treadle"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert runner.invoke(main, ["version"]).stdout.startswith(f"treadle {found['treadle']}\n")


def test_every_command_of_every_table_can_be_loaded_and_has_help() -> None:
    # with the root's context settings: click keeps the first help option that a command is asked for
    context = main.make_context("treadle", ["version"])
    for name in main.list_commands(context):
        command = main.get_command(context, name)  # type: ignore[attr-defined]
        assert command is not None
        assert command.help, name
        assert command.get_help(click.Context(command, parent=context, info_name=name))


def test_listing_commands_imports_none_of_the_heavy_packages() -> None:
    code = (
        "import sys; from treadle.cli import main; main(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ran.stdout.splitlines()[-1]
    for name in ("confluent_kafka", "faust", "deeplake", "torch", "duckdb", "sqlglot", "rich", "numpy"):
        assert f"'{name}'" not in loaded


def test_the_module_is_the_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "treadle", "verison"], capture_output=True, text=True, check=False)
    assert (ran.returncode, "'version'" in ran.stderr) == (2, True)


# Metrics on the command line.


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("reward:float", Metric(name="reward")),
        ("reward:float,required", Metric(name="reward", required=True)),
        (
            "cost:float,minimise,aggregate=sum,horizon=2h,absent=0,low=0,high=9.5",
            Metric(name="cost", direction="minimise", aggregate="sum", horizon_s=7200.0, absent=0.0, low=0.0, high=9.5),
        ),
        ("ok:bool,absent=false", Metric(name="ok", type="bool", absent=False)),
        ("judge:v2:category,absent=none", Metric(name="judge:v2", type="category", absent="none")),
    ],
)
def test_a_metric_can_be_declared_in_one_argument(text: str, metric: Metric) -> None:
    assert parse_metric(text) == metric


@pytest.mark.parametrize(
    "text",
    [
        "",
        "reward",
        ":float",
        "reward:number",
        "reward:float,requird",
        "reward:float,required=1",
        "reward:float,horizon=soon",
        "reward:float,absent=none",
        "ok:bool,absent=0",
        "reward:float,aggregate=median",
        "reward:float,low=1,high=0",
        "label:category,aggregate=mean",
    ],
)
def test_a_wrong_declaration_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(SettingError, match="metric"):
        parse_metric(text)


@pytest.mark.parametrize(
    ("metrics", "reward"),
    [
        (["reward:float,required"], "reward"),
        (["reward:float,required", "cost:float"], "reward"),
        (["cost:float,required,minimise", "note:category"], "-cost"),
        (["ok:bool,required", "cost:float"], "ok"),
        (["my metric:float,required"], '"my metric"'),
        (["a:float,required", "b:float,required"], None),
        (["label:category,required"], None),
    ],
)
def test_the_reward_has_a_default_only_where_there_is_no_choice(metrics: list[str], reward: str | None) -> None:
    declared = tuple(parse_metric(text) for text in metrics)
    if reward is None:
        with pytest.raises(SettingError, match="--reward"):
            default_reward(declared)
    else:
        assert default_reward(declared) == reward


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    environment: dict[str, Any] = {
        "TREADLE_HOME": str(tmp_path),
        "TREADLE_WORKSPACE": "shop",
        "TREADLE_DISABLED": "true",
        "TREADLE_CORPUS_ROOT": str(tmp_path / "c"),
    }
    settings = Settings.load(environment)
    assert (settings.home, settings.workspace, settings.disabled) == (tmp_path, "shop", True)
    assert settings.corpus_root == tmp_path / "c"
    with pytest.raises(SettingError, match="treadle up"):
        _ = settings.bootstrap_servers
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "broker.json").write_text('{"bootstrap_servers": "127.0.0.1:1234"}')
    assert settings.bootstrap_servers == "127.0.0.1:1234"
    assert Settings.load({"XDG_DATA_HOME": "/data"}).home == Path("/data/treadle")
    with pytest.raises(SettingError, match="TREADLE_DISABLED"):
        Settings.load({"TREADLE_DISABLED": "perhaps"})
