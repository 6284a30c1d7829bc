"""The documentation says what the code says: commands, links, tables, error trees, examples."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from urllib.parse import unquote

import click
import msgspec
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *DOCS.rglob("*.md")])
SOURCES = [
    REPOSITORY / root
    for root in (
        "schemas/treadle_schemas",
        "schemas/treadle_corpus",
        "streams/treadle",
        "streams/treadle_streams",
        "trainer/treadle_trainer",
        "examples/treadle_demo",
    )
]
# set by the demo for its own children, and meaningless to anybody else
INTERNAL_VARIABLES = {"TREADLE_DEMO_CHILD"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def fences(text: str, language: str | None = None) -> list[str]:
    return [body for tag, body in _FENCE.findall(text) if language is None or tag == language]


def prose(text: str) -> str:
    return _FENCE.sub("", text)


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Each table: its header and its rows, without backquotes."""
    block: list[str] = []
    for line in [*prose(text).splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            cells = [[c.strip() for c in row.strip("|").split("|")] for row in block]
            yield cells[0], cells[2:]
            block = []


def table(text: str, *header: str) -> list[list[str]]:
    found = [rows for head, rows in tables(text) if head == list(header)]
    assert len(found) == 1, f"{len(found)} tables with the header {header}"
    return found[0]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_cli", DOCS / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def commands(generator: ModuleType) -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = generator.commands()
    return found


# --- commands ------------------------------------------------------------------------------------------------------------------


def test_the_command_reference_is_what_the_commands_say(generator: ModuleType) -> None:
    assert read("docs/cli.md") == generator.generate(), "run: python docs/generate_cli.py"


def test_every_command_explains_itself(commands: dict[tuple[str, ...], click.Command]) -> None:
    silent = [" ".join(words) for words, command in commands.items() if not (command.help or "").strip()]
    assert not silent


def _command_lines(text: str) -> Iterator[str]:
    for body in fences(text, "") + fences(text, "bash"):
        for line in body.splitlines():
            command = re.sub(r"^(?:[A-Z_]+=\S* )*", "", line.split("  #")[0])
            if command.startswith("treadle "):
                yield command
    yield from (code for code in re.findall(r"`(treadle [^`]+)`", prose(text)))


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "cli.md"], ids=name_of)
def test_commands_and_options_that_a_page_names_exist(
    page: Path, commands: dict[tuple[str, ...], click.Command]
) -> None:
    for line in _command_lines(page.read_text(encoding="utf-8")):
        words = line.split()[1:]
        path: tuple[str, ...] = ()
        while words and (*path, words[0].rstrip(",")) in commands:
            path = (*path, words.pop(0).rstrip(","))
        command = commands[path]
        default = getattr(command, "default", None)  # what a group does with words that name no command of it
        if default is not None and words:
            command = commands[*path, default]
        if not path:
            assert all(word.startswith("-") for word in words[:1]), f"{line!r}: no such command"
        elif isinstance(command, click.Group) and words:
            assert words[0].startswith("-"), f"{line!r}: {' '.join(path)} has no command {words[0]}"
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.strip("[],").split("=")[0] for word in words if re.match(r"\[?-{1,2}[a-z]", word)}
        assert used <= known | {"--help", "-h"}, f"{line!r}: unknown options {used - known}"


def test_make_targets_in_the_pages_are_those_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", read("Makefile"), re.MULTILINE)) | {"demo-seeds"}
    documented = {
        code.removeprefix("make ")
        for row in table(read("docs/development.md"), "target", "does")
        for code in quoted(row[0])
    }
    assert documented - {"make"} == targets - {"help"}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`make ([a-z-]+)", text) + re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= targets, name_of(page)


# --- links and paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for text, target in _LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = unquote(target).partition("#")
        path = (page.parent / place).resolve() if place else page
        assert path.exists(), f"[{text}]({target})"
        assert path.is_relative_to(REPOSITORY), f"[{text}]({target}) leaves the repository"
        if anchor:
            assert anchor in anchors(path), f"[{text}]({target}): no such heading"


def test_the_walk_through_the_code_names_what_is_defined_there() -> None:
    found = 0
    for text, target in _LINK.findall(read("docs/architecture.md")):
        if target.endswith(".py") and text.startswith("`"):
            name = text.strip("`").rpartition(".")[2]
            code = (DOCS / target).read_text(encoding="utf-8")
            assert re.search(rf"^\s*(?:def|class) {name}\b", code, re.MULTILINE) or re.search(
                rf"\b{name}\b", (DOCS / target).parent.name
            ), f"{text} is not defined in {target}"
            found += 1
    assert found > 25


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    for code in re.findall(r"`([\w./-]+\.(?:py|toml|yaml))`", prose(page.read_text(encoding="utf-8"))):
        here = [
            REPOSITORY / code,
            *(source.parent / code for source in SOURCES),
            *(source / code for source in SOURCES),
        ]
        assert any(path.exists() for path in here), code


# --- what is configured --------------------------------------------------------------------------------------------------------


def test_every_environment_variable_is_documented_and_every_documented_one_exists() -> None:
    page = read("docs/operations.md")
    ours, compose = [rows for head, rows in tables(page) if head == ["variable", "meaning", "default"]]
    documented = {name for row in ours for name in quoted(row[0])}
    code = "\n".join(file.read_text(encoding="utf-8") for source in SOURCES for file in source.rglob("*.py"))
    used = set(re.findall(r"\bTREADLE_[A-Z_]*[A-Z]\b", code)) - INTERNAL_VARIABLES
    assert documented == used
    in_compose = set(re.findall(r"\$\{(TREADLE_[A-Z_]+)", read("compose.yaml")))
    assert {name for row in compose for name in quoted(row[0])} == in_compose - documented
    for other in PAGES:
        assert (
            set(re.findall(r"\bTREADLE_[A-Z_]*[A-Z]\b", other.read_text(encoding="utf-8"))) <= documented | in_compose
        )


def test_the_settings_modules_document_their_own_variables() -> None:
    for module_name in ("treadle.settings", "treadle_streams.broker._settings", "treadle_streams.ingest._settings"):
        module = importlib.import_module(module_name)
        declared = set(re.findall(r"^\| (TREADLE_\w+) \|", module.__doc__ or "", re.MULTILINE))
        read_here = set(re.findall(r'env\.get\(\s*"(TREADLE_\w+)"', inspect.getsource(module)))
        assert read_here <= declared
        assert declared <= {name for row in table_of_variables() for name in quoted(row[0])}


def table_of_variables() -> list[list[str]]:
    return next(rows for head, rows in tables(read("docs/operations.md")) if head == ["variable", "meaning", "default"])


def test_the_policy_table_is_the_policy() -> None:
    from treadle_trainer.policy import CanaryPolicy, GatePolicy, GuardPolicy, TrainingPolicy

    def rows_of(kind: Any, prefix: str = "") -> dict[str, str]:
        found = {}
        for field in msgspec.structs.fields(kind):
            if field.name in ("gate", "guard", "canary"):
                continue
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            found[prefix + field.name] = (
                default if isinstance(default, str) else json.dumps(msgspec.to_builtins(default))
            )
        return found

    wanted = {
        **rows_of(TrainingPolicy),
        **rows_of(GatePolicy, "gate."),
        **rows_of(CanaryPolicy, "canary."),
        **rows_of(GuardPolicy, "guard."),
    }
    documented = {
        quoted(name)[0]: quoted(default)[0]
        for name, default, _ in table(read("docs/trainer.md"), "name", "default", "meaning")
    }
    assert documented == wanted


def test_the_metric_table_names_the_fields_of_a_metric() -> None:
    from treadle_schemas import Metric

    rows = table(read("docs/concepts.md"), "setting", "values", "default")
    documented = {name for row in rows for name in row[0].split(", ")}
    fields = {field.name.removesuffix("_s") for field in msgspec.structs.fields(Metric)} - {"name"}
    assert documented == fields


# --- the wire ------------------------------------------------------------------------------------------------------------------


def test_event_types_topics_and_keys_are_those_of_the_contracts() -> None:
    from treadle_schemas import codec, topics

    page = read("docs/events.md")
    assert {quoted(row[0])[0] for row in table(page, "type", "topic", "value")} == set(codec.TYPES)
    assert [quoted(row[0])[0] for row in table(page, "kind", "key", "partitions")] == [
        *(
            kind
            for kind in topics.KINDS
            if kind in ("interactions", "outcomes", "references", "progress", "graded", "dead-letter")
        ),
        "snapshots",
        "releases",
        "settings",
    ]
    named = {
        n for row in table(read("docs/operations.md"), "topic", "partitions", "configuration") for n in quoted(row[0])
    }
    kinds = {name.rpartition(".")[2] for name in named}
    assert set(topics.KINDS) | {"workspaces", "join-rows-changelog"} == kinds


def test_dead_letter_reasons_are_those_of_the_join() -> None:
    from treadle_streams.join import arrivals

    documented = {quoted(row[0])[0] for row in table(read("docs/events.md"), "reason", "when")}
    assert documented == set(get_args(arrivals.Reason))


def test_every_field_of_interactions_and_outcomes_is_documented() -> None:
    from treadle_schemas import Interaction, Outcome

    page = read("docs/events.md")
    documented = [
        {name for row in rows for name in quoted(row[0])}
        for head, rows in tables(page)
        if head == ["field", "type", ""]
    ]
    assert documented == [{field.name for field in msgspec.structs.fields(kind)} for kind in (Interaction, Outcome)]


def test_the_examples_of_events_are_accepted() -> None:
    from treadle_schemas.events import read_interaction, read_outcome

    blocks = [json.loads(part) for body in fences(read("docs/events.md"), "json") for part in _objects(body)]
    read_interaction(next(b for b in blocks if "messages" in b))
    outcomes = [b for b in blocks if "observed_at" in b]
    assert {read_outcome(b).op for b in outcomes} == {"set", "retract"}
    for body in fences(read("docs/import.md"), "json"):
        line = json.loads(body)
        if "messages" in line:
            read_interaction(line)
        else:
            read_outcome({**line, "outcome_id": "made by the import"})


def _objects(text: str) -> Iterator[str]:
    decoder, at = json.JSONDecoder(), 0
    while at < len(text.rstrip()):
        _, end = decoder.raw_decode(text, at)
        yield text[at:end]
        at = end + len(text[end:]) - len(text[end:].lstrip())


def test_limits_are_those_of_the_code() -> None:
    from treadle.log import MAX_MESSAGE_BYTES
    from treadle_schemas import canonical, events, ids
    from treadle_streams.join import MAX_OUTCOMES, arrivals

    limits = {row[0]: row[1] for row in table(read("docs/events.md"), "what", "limit")}
    assert limits["value of an event"] == f"{events.MAX_EVENT_BYTES >> 20} MiB"
    assert limits["record on a topic"] == f"{MAX_MESSAGE_BYTES >> 20} MiB"
    assert limits["nesting of lists and objects"] == str(canonical.MAX_DEPTH)
    assert limits["digits of an integer"] == f"{canonical.MAX_DIGITS:,}"
    assert limits["messages of an interaction"] == f"{events.MAX_MESSAGES:,}"
    assert limits["an id"] == f"{ids.MAX_ID_BYTES} bytes"
    assert limits["a metric's name"] == f"{events.MAX_METRIC_NAME} bytes"
    assert f"{MAX_OUTCOMES:,} outcomes" in read("docs/events.md")
    assert f"{arrivals.MAX_TEXT_VALUE_BYTES:,} bytes" in read("docs/events.md")


# --- the corpus ----------------------------------------------------------------------------------------------------------------


def test_filter_columns_are_those_of_the_filter() -> None:
    from treadle_streams.filter import COLUMNS, compile

    page = read("docs/corpus.md")
    documented = [name for row in table(page, "name", "what") for name in quoted(row[0])]
    assert set(documented) - {"NAME", "metrics.NAME", "state(NAME)", "tags.NAME", "now"} == set(COLUMNS)
    (examples,) = [body for body in fences(page, "") if "state(csat)" in body]
    for line in examples.splitlines():
        compile(line, {"csat": "DOUBLE", "reward": "DOUBLE"}, 0)


def test_the_manifest_table_is_the_manifest() -> None:
    from treadle_corpus import Manifest

    documented = [name for row in table(read("docs/corpus.md"), "field", "meaning") for name in quoted(row[0])]
    fields = {field.name for field in msgspec.structs.fields(Manifest)}
    assert set(documented) == fields | {"train", "heldout"} & set(documented) | set(documented) & {
        "pending",
        "absent",
        "observed",
    }
    assert fields <= set(documented)


# --- errors --------------------------------------------------------------------------------------------------------------------


def _error_modules() -> list[str]:
    found = []
    for source in SOURCES:
        for file in sorted(source.rglob("*errors.py")):
            parts = file.relative_to(source.parent).with_suffix("").parts
            found.append(".".join(parts))
    return found


@pytest.mark.parametrize("module_name", _error_modules())
def test_the_error_tree_of_a_package_is_the_one_it_draws(module_name: str) -> None:
    module = importlib.import_module(module_name)
    drawn = set(re.findall(r"[├└]── ([A-Z][A-Za-z]+)", module.__doc__ or ""))
    mentioned = set(re.findall(r"^\s*([A-Z][A-Za-z]+Error)\b", module.__doc__ or "", re.MULTILINE))
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, Exception)]
    defined = {c.__name__ for c in classes if c.__module__ == module_name}
    assert defined <= drawn | mentioned, "a class that the tree lacks"
    assert drawn <= {c.__name__ for c in classes} | _errors_below(), "the tree draws what is not there"


def _errors_below() -> set[str]:
    from treadle_schemas import errors

    return set(errors.__all__)


# --- Python in the pages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_of_a_page_are_python(page: Path) -> None:
    for body in fences(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("treadle"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "treadle":
                assert hasattr(importlib.import_module("treadle"), node.attr), f"treadle.{node.attr}"


def test_the_agent_of_the_readme_records_what_the_client_answered() -> None:
    import treadle

    class Answer:
        """As the openai client gives it."""

        def model_dump(self, **_: Any) -> dict[str, Any]:
            return {"role": "assistant", "content": "On its way."}

    sink = treadle.MemorySink()
    recorder = treadle.Recorder("shop", agent="desk", model="gpt-4o-mini", sink=sink)
    messages: list[Any] = [{"role": "user", "content": "Where is my order 17?"}]
    handle = recorder.record(messages=[*messages, Answer()], response=[1], task_id="where-is-order")
    assert treadle.Handle.parse(str(handle)) == handle
    recorder.outcome(str(handle), "reward", 1.0, source="csat")
    (interaction,) = sink.interactions
    assert interaction["messages"][1] == {"role": "assistant", "content": "On its way."}
    (outcome,) = sink.outcomes
    assert (outcome["interaction_id"], outcome["value"]) == (handle.interaction_id, 1.0)


def test_the_example_environment_is_one() -> None:
    from treadle_schemas import Split
    from treadle_schemas.environment import Attempt, Environment
    from treadle_trainer.evaluate._environment import heldout_tasks

    page = read("docs/trainer.md")
    (example,) = re.findall(r"<!-- environment-example -->\n```python\n(.*?)```", page, re.DOTALL)
    space: dict[str, Any] = {}
    exec(compile(example, "docs/trainer.md", "exec"), space)
    environment = space["Adding"]()
    assert isinstance(environment, Environment)
    tasks = heldout_tasks(environment, 64, 7, Split())
    assert len({task.task_id for task in tasks}) == 64
    assert list(environment.tasks(9, 3)) == list(environment.tasks(9, 3))
    for right in (True, False):
        attempt = environment.start(tasks[0])
        assert isinstance(attempt, Attempt)
        assert attempt.act(str(tasks[0].data["sum"] if right else -1)) is False
        assert attempt.success() == float(right)
        verdicts = [v for n in range(50) for v in environment.outcomes(attempt, random.Random(n))]
        assert {v.value for v in verdicts} == {float(right)}
        attempt.close()


# --- the reader's view ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_tells_nothing_of_one_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"/(?:work|root|home)/|\.\./shared|localhost:\d{4,}/simple|index-url", text)
    assert not [line for line in text.splitlines() if line.rstrip() != line], "trailing blanks"
