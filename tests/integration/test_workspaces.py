"""Workspaces on a real Kafka."""

from __future__ import annotations

import threading

import msgspec
import pytest
from treadle.log import Admin, Sender, TailReader
from treadle_schemas.codec import INTERACTION, make_headers
from treadle_schemas.errors import FieldError, SettingError
from treadle_schemas.topics import CONTROL, DATA_TOPICS, KINDS, group, topic
from treadle_schemas.workspace import Metric, WorkspaceSettings
from treadle_streams import workspaces
from treadle_streams.errors import WorkspaceDamaged, WorkspaceExists, WorkspaceInUse, WorkspaceMissing


def test_a_workspace_can_be_used_at_once_found_listed_and_deleted(broker: str, workspace_name: str) -> None:
    made = workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=3))
    counts = Admin(broker).partitions()
    assert {kind: counts[topic(workspace_name, kind)] for kind in KINDS} == {
        kind: 3 if kind in DATA_TOPICS else 1 for kind in KINDS
    }
    sender = Sender(broker)
    for kind in DATA_TOPICS:
        sender.send(topic(workspace_name, kind), b"k", b"{}", make_headers(INTERACTION, workspace_name, source="test"))
    sender.flush()
    assert made.created_at
    assert workspaces.get(broker, workspace_name) == made
    assert workspace_name in workspaces.names(broker)

    assert set(workspaces.delete(broker, workspace_name)) == {topic(workspace_name, kind) for kind in KINDS}
    assert workspace_name not in workspaces.names(broker)
    assert not [name for name in Admin(broker).partitions() if name.startswith(f"treadle.{workspace_name}.")]
    with pytest.raises(WorkspaceMissing):
        workspaces.get(broker, workspace_name)
    with pytest.raises(WorkspaceMissing):
        workspaces.delete(broker, workspace_name)


def test_topics_keep_and_stamp_as_the_rules_say(broker: str, workspace_name: str) -> None:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=1))
    admin = Admin(broker)
    for kind in KINDS:
        config = admin.config(topic(workspace_name, kind))
        inputs = kind in ("interactions", "outcomes", "references")
        append = "LogAppendTime" if inputs or kind == "progress" else "CreateTime"
        assert (kind, config["message.timestamp.type"]) == (kind, append)
        assert (kind, config["cleanup.policy"]) == (kind, "compact" if kind == "settings" else "delete")
        assert (kind, config["max.message.bytes"]) == (kind, str(16 * 1024 * 1024))
        if kind != "settings":
            assert (kind, config["retention.ms"]) == (kind, str(180 * 86_400_000) if inputs else "-1")
    assert admin.config(CONTROL)["cleanup.policy"] == "compact"


def test_creating_twice_is_refused_or_accepted_but_never_changes_the_first(broker: str, workspace_name: str) -> None:
    first = workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=2))
    other = WorkspaceSettings(workspace=workspace_name, partitions=5, grace_s=1.0)
    with pytest.raises(WorkspaceExists, match="--if-missing"):
        workspaces.create(broker, other)
    assert workspaces.create(broker, other, if_missing=True) == first
    assert workspaces.get(broker, workspace_name) == first


def test_a_creation_that_was_cut_off_is_completed_by_the_next(broker: str, workspace_name: str) -> None:
    settings = WorkspaceSettings(workspace=workspace_name, partitions=2)
    plan = workspaces.topic_plan(settings)
    Admin(broker).create_all(
        {name: plan[name] for name in list(plan)[:4]} | {topic(workspace_name, "settings"): (1, {})}
    )
    assert workspace_name not in workspaces.names(broker)
    made = workspaces.create(broker, settings)
    assert workspaces.get(broker, workspace_name) == made


def test_topics_of_another_shape_are_refused_not_used(broker: str, workspace_name: str) -> None:
    Admin(broker).create(topic(workspace_name, "graded"), 7, {})
    with pytest.raises(WorkspaceDamaged, match="has 7 partitions, not 2"):
        workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=2))
    assert workspace_name not in workspaces.names(broker)


@pytest.mark.parametrize("if_missing", [False, True])
def test_of_several_creators_at_once_at_most_one_wins(broker: str, workspace_name: str, if_missing: bool) -> None:
    made: list[WorkspaceSettings] = []
    refused: list[WorkspaceExists] = []

    def create(number: int) -> None:
        settings = WorkspaceSettings(workspace=workspace_name, partitions=2, grace_s=number)
        try:
            made.append(workspaces.create(broker, settings, if_missing=if_missing))
        except WorkspaceExists as err:
            refused.append(err)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) + len(refused) == 3
    assert all(settings == made[0] for settings in made)
    assert len(made) == 3 if if_missing else len(made) <= 1
    # without if_missing all may have fenced each other off; then the next one makes it
    settled = workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=2), if_missing=True)
    assert workspaces.get(broker, workspace_name) == (made[0] if made else settled)


def test_a_workspace_with_running_consumers_keeps_its_data(broker: str, workspace_name: str) -> None:
    from confluent_kafka import Consumer

    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=1))
    consumer = Consumer({"bootstrap.servers": broker, "group.id": group(workspace_name, "join")})
    consumer.subscribe([topic(workspace_name, "interactions")])
    while not consumer.assignment():
        consumer.poll(0.05)
    with pytest.raises(WorkspaceInUse, match="join"):
        workspaces.delete(broker, workspace_name, timeout_s=0.5)
    assert topic(workspace_name, "graded") in Admin(broker).partitions()
    assert workspace_name not in workspaces.names(broker)
    consumer.close()
    assert workspaces.delete(broker, workspace_name)


def test_a_missing_workspace_names_the_nearest_one(broker: str, workspace_name: str) -> None:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=1))
    with pytest.raises(WorkspaceMissing, match=f"Did you mean {workspace_name}") as caught:
        workspaces.get(broker, workspace_name + "x")
    assert caught.value.suggestion == workspace_name


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (WorkspaceSettings(workspace="Not A Name"), FieldError),
        (WorkspaceSettings(workspace="a", partitions=0), SettingError),
        (WorkspaceSettings(workspace="a", reward="nothing + 1"), SettingError),
        (WorkspaceSettings(workspace="a", metrics=(Metric(name="reward"),)), SettingError),
        (WorkspaceSettings(workspace="a", metrics=(Metric(name="reward", required=True, absent="x"),)), SettingError),
    ],
)
def test_settings_that_make_no_sense_create_nothing(
    broker: str, settings: WorkspaceSettings, error: type[Exception]
) -> None:
    with pytest.raises(error):
        workspaces.create(broker, settings)
    assert "treadle.a.settings" not in Admin(broker).partitions()


def test_the_settings_record_survives_a_reader_of_today_with_fields_of_tomorrow(
    broker: str, workspace_name: str
) -> None:
    made = workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=1))
    reader = TailReader(broker, {(topic(workspace_name, "settings"), 0): 0})
    try:
        (record,) = reader.poll(10.0)
    finally:
        reader.close()
    assert record.value is not None
    later = {**msgspec.json.decode(record.value), "colour": "blue"}
    sender = Sender(broker)
    sender.send(record.topic, record.key, msgspec.json.encode(later), [])
    sender.flush()
    assert workspaces.get(broker, workspace_name) == made
