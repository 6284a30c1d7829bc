"""Redaction: what becomes of private text, and that nothing else changes."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from treadle.redaction import TOMBSTONE_TEXT, RedactionRefused, Redactor, subject_hash
from treadle.redaction._scan import PatternTooSlow, Scanner
from treadle_schemas.errors import SettingError
from treadle_schemas.events import read_interaction, read_outcome
from treadle_schemas.pii import (
    STRICTEST,
    FieldRule,
    Pattern,
    PiiPolicy,
    RightsRule,
    built_in,
    rights_of,
)

KEY = "sk" + "-proj-" + "aB3dE5gH7jK9mN1pQ2rS4tU6"
CARD = "4111 1111 1111 1111"


def interaction(*contents: Any, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content} for content in contents]
    times = {"started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:01Z"}
    return {"interaction_id": "i1", "episode_id": "e1", "agent": "a", "messages": messages, **times, **more}


def call(arguments: str) -> dict[str, Any]:
    function = {"name": "send", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


def arguments_of(done: dict[str, Any]) -> str:
    return str(done["messages"][0]["tool_calls"][0]["function"]["arguments"])


def test_what_is_found_is_masked_by_kind_and_counted() -> None:
    value = interaction(f"key {KEY}, card {CARD}, mail jane@acme.io or JANE@acme.io")
    before = copy.deepcopy(value)
    done = Redactor(built_in("standard", 7)).redact(value)
    assert done["messages"][0]["content"] == "key [API_KEY_1], card [CARD_1], mail [EMAIL_1] or [EMAIL_1]"
    assert done["redaction"] == {"policy": "standard", "version": 7, "counts": {"api_key": 1, "card": 1, "email": 2}}
    assert value == before
    read_interaction(done)


def test_the_built_in_policies_get_stricter() -> None:
    text = f"{KEY} jane@acme.io 185.22.3.9"
    masked = {
        name: Redactor(built_in(name)).redact(interaction(text))["messages"][0]["content"]
        for name in ("off", "secrets", "standard", "strict")
    }
    assert masked == {
        "off": text,
        "secrets": "[API_KEY_1] jane@acme.io 185.22.3.9",
        "standard": "[API_KEY_1] [EMAIL_1] 185.22.3.9",
        "strict": "[API_KEY_1] [EMAIL_1] [IP_1]",
    }
    assert set(STRICTEST.effective()) == set(built_in("strict").effective())


def test_a_value_keeps_its_placeholder_all_through_an_episode() -> None:
    redactor = Redactor(built_in("standard"))
    redactor.redact(interaction("a@acme.io"))
    later = redactor.redact(interaction("b@acme.io wrote to a@acme.io", interaction_id="i2"))
    other = redactor.redact(interaction("b@acme.io", interaction_id="i3", episode_id="e2"))
    assert later["messages"][0]["content"] == "[EMAIL_2] wrote to [EMAIL_1]"
    assert other["messages"][0]["content"] == "[EMAIL_1]"


def test_a_history_that_is_sent_again_is_redacted_alike_in_another_process() -> None:
    history = ["a@acme.io", "b@acme.io and a@acme.io", KEY]
    one, two = Redactor(built_in("standard")), Redactor(built_in("standard"))
    one.redact(interaction(*history[:1]))
    assert one.redact(interaction(*history))["messages"] == two.redact(interaction(*history))["messages"]


def test_parts_without_a_finding_are_shared_not_copied() -> None:
    value = interaction(
        "nothing here", f"{KEY}", tools=[{"type": "function", "function": {"name": "f", "description": "d"}}]
    )
    done = Redactor(built_in("strict")).redact(value)
    assert done["messages"][0] is value["messages"][0]
    assert done["tools"] is value["tools"]
    assert Redactor(built_in("strict")).redact(interaction("nothing"))["messages"][0]["content"] == "nothing"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"to":  "nobody",\n "n": 1.0}', '{"to":  "nobody",\n "n": 1.0}'),
        ('{"to": "jane@acme.io", "n": 1.0}', '{"to":"[EMAIL_1]","n":1.0}'),
        ('{"to": "jane\\u0040acme.io"}', '{"to":"[EMAIL_1]"}'),
        ('{"card": 4111111111111111, "x": null}', '{"card":"[CARD_1]","x":null}'),
        ('{"password": "abc", "note": "ok"}', '{"password":"[SECRET_1]","note":"ok"}'),
        ('{"a": {"jane@acme.io": [1]}}', '{"a":{"[EMAIL_1]":[1]}}'),
        ('{"inner": "{\\"to\\": \\"jane@acme.io\\"}"}', '{"inner":"{\\"to\\":\\"[EMAIL_1]\\"}"}'),
        ("not json jane@acme.io {", "not json [EMAIL_1] {"),
        ('{"sql": "\\nsk' + "-proj-aB3dE5gH7jK9mN1pQ2rS4tU6\"}", '{"sql":"\\n[API_KEY_1]"}'),
        ('{"big": 123456789012345678901234567890, "to": "a@b.io"}', '{"big":123456789012345678901234567890,"to":"[EMAIL_1]"}'),
    ],
)  # fmt: skip
def test_tool_arguments_are_read_as_json_and_written_anew_only_after_a_finding(arguments: str, expected: str) -> None:
    done = Redactor(built_in("standard")).redact({**interaction(), "messages": [call(arguments)]})
    assert json.loads(arguments_of(done)) == json.loads(expected) if expected.startswith("{") else True
    assert arguments_of(done) == expected


def test_hashing_is_keyed_so_that_joins_survive_and_masks_without_a_key() -> None:
    policy = PiiPolicy(name="standard", actions={"email": "hash"})
    one = Redactor(policy, b"k1").redact(interaction("jane@acme.io"))["messages"][0]["content"]
    elsewhere = Redactor(policy, b"k1").redact(interaction("JANE@acme.io", episode_id="x"))["messages"][0]["content"]
    other_key = Redactor(policy, b"k2").redact(interaction("jane@acme.io"))["messages"][0]["content"]
    assert one == elsewhere != other_key
    assert one.startswith("[EMAIL:")
    assert Redactor(policy).redact(interaction("jane@acme.io"))["messages"][0]["content"] == "[EMAIL_1]"


def test_dropping_takes_the_whole_field_and_leaves_a_valid_interaction() -> None:
    redactor = Redactor(PiiPolicy(name="standard", actions={"card": "drop"}))
    done = redactor.redact(interaction(f"pay {CARD}", error=f"declined {CARD}", tags={"pan": CARD, "ok": "yes"}))
    assert done["messages"] == [{"role": "user", "content": None}]
    assert "error" not in done
    assert done["tags"] == {"ok": "yes"}
    read_interaction(done)
    dropped = redactor.redact({**interaction(), "messages": [call(json.dumps({"n": CARD, "to": "x"}))]})
    assert arguments_of(dropped) == '{"to":"x"}'


def test_refusing_names_the_kind_and_not_the_value() -> None:
    redactor = Redactor(PiiPolicy(name="standard", actions={"card": "refuse"}))
    with pytest.raises(RedactionRefused, match="card") as caught:
        redactor.redact(interaction(f"pay {CARD}"))
    assert "4111" not in str(caught.value)
    with pytest.raises(RedactionRefused):
        redactor.redact_outcome({"name": "comment", "kind": "comment", "value": CARD})


def test_fields_are_private_whatever_they_say() -> None:
    policy = PiiPolicy(
        name="off",
        fields=(
            FieldRule(path="$.tags.customer"),
            FieldRule(path="$.messages[*].tool_calls[*].function.arguments.street"),
            FieldRule(path="$.subject", action="drop"),
        ),
    )
    value = interaction(tags={"customer": "ACME", "n": 1}, subject="s1")
    value["messages"] = [call('{"street": "High St 1", "city": "Rome"}')]
    done = Redactor(policy).redact(value)
    assert done["tags"] == {"customer": "[FIELD_1]", "n": 1}
    assert arguments_of(done) == '{"street":"[FIELD_2]","city":"Rome"}'
    assert "subject" not in done
    assert Redactor(policy).redact(done) == done
    content = Redactor(PiiPolicy(name="off", fields=(FieldRule(path="$.messages[*].content"),))).redact(
        interaction("a", [{"type": "text", "text": "b"}])
    )
    assert content["messages"][0] == {"role": "user", "content": "[FIELD_1]"}
    assert content["messages"][1]["content"] == [{"type": "text", "text": "[FIELD_2]"}]
    read_interaction(content)


def test_own_patterns_find_what_they_say() -> None:
    redactor = Redactor(PiiPolicy(name="secrets", patterns=(Pattern(name="employee", regex=r"EMP-\d{4}\b"),)))
    long = "x" * 5000 + " EMP-1234 " + "y" * 5000
    done = redactor.redact(interaction("EMP-0042 and EMP-00421", long))
    assert done["messages"][0]["content"] == "[EMPLOYEE_1] and EMP-00421"
    assert "EMP-" not in done["messages"][1]["content"]


@pytest.mark.parametrize("regex", [r"(a+)+b", r"(a|aa)*b", r".*.*.*x", r"a*", r"(\d)\1", "(", "x" * 600, ""])
def test_patterns_that_may_take_for_ever_are_refused(regex: str) -> None:
    with pytest.raises(SettingError, match="pii pattern p"):
        PiiPolicy(patterns=(Pattern(name="p", regex=regex),)).checked()


def test_a_pattern_that_is_too_slow_all_the_same_fails_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treadle.redaction._scan._PATTERNS_BUDGET_S", -1.0)
    redactor = Redactor(PiiPolicy(patterns=(Pattern(name="p", regex="a{1,9}b"),)))
    done = redactor.redact(interaction("aaab"))
    assert done["redaction"]["error"] == f"{PatternTooSlow.__name__} at $.messages[0]"


def test_an_error_leaves_a_tombstone_with_the_ids_and_without_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError(f"the text was {CARD}")

    redactor = Redactor(built_in("standard", 3))
    monkeypatch.setattr(Scanner, "find", broken)
    value = interaction("fine", f"pay {CARD}", slot="main", error=CARD, response=[1], task_id="t", subject=CARD)
    done = redactor.redact(value)
    assert "4111" not in json.dumps(done)
    assert done["redaction"] == {"policy": "standard", "version": 3, "error": "ValueError at $.messages[1]"}
    assert done["messages"] == [{"role": "system", "content": TOMBSTONE_TEXT}]
    for name in ("interaction_id", "episode_id", "agent", "slot", "started_at", "ended_at", "task_id"):
        assert done[name] == value[name]
    assert done["rights"] == {"train": "deny", "eval": "deny", "recall": "deny"}
    read_interaction(done)
    comment = {
        "name": "comment",
        "kind": "comment",
        "value": CARD,
        "outcome_id": "o",
        "interaction_id": "i1",
        "observed_at": "2026-01-01T00:00:00Z",
    }
    read_outcome(redactor.redact_outcome(comment))
    assert "4111" not in json.dumps(redactor.redact_outcome(comment))


def test_token_ids_and_logprobs_go_with_the_text_that_they_spell() -> None:
    redactor = Redactor(built_in("secrets"))
    done = redactor.redact(interaction(KEY, token_ids=[[1]], logprobs=[[-0.1]]))
    assert "token_ids" not in done
    assert "logprobs" not in done
    assert redactor.redact(interaction("fine", token_ids=[[1]]))["token_ids"] == [[1]]


def test_media_become_hash_type_and_size_or_stay() -> None:
    raw = b"\x89PNG" + bytes(range(256))
    url = "data:image/png;base64," + base64.b64encode(raw).decode()
    audio = base64.b64encode(raw).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64," + audio}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": audio}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
    ]
    value = interaction(content)
    done = Redactor(built_in("standard")).redact(value)
    parts = done["messages"][0]["content"]
    assert parts[0]["image_url"]["url"].startswith("media:sha256/")
    assert parts[0]["image_url"]["url"].endswith(f"?type=image/png&size={len(raw)}")
    assert parts[1]["input_audio"]["data"].endswith(f"?type=audio/wav&size={len(raw)}")
    assert "?type=application/pdf&" in parts[2]["file"]["file_data"]
    assert "?type=image/jpeg&" in parts[3]["source"]["data"]
    assert parts[4] == content[4]
    assert done["redaction"]["counts"] == {"media": 4}
    assert Redactor(built_in("secrets")).redact(value)["messages"] == value["messages"]
    assert Redactor(built_in("standard")).redact(done)["messages"] == done["messages"]


def test_ids_and_references_stay_and_the_subject_is_hashed_when_the_policy_says_so() -> None:
    value = interaction("x", subject="alice", references=["mail:jane@acme.io"], task_id="jane@acme.io")
    done = Redactor(built_in("strict"), b"key").redact(value)
    assert done["subject"] == subject_hash(b"key", "alice")
    assert done["references"] == value["references"]
    assert done["task_id"] == value["task_id"]
    assert Redactor(built_in("standard")).redact(value)["subject"] == "alice"
    assert Redactor(built_in("standard")).redact(interaction("x", subject="jane@acme.io"))["subject"] == "[EMAIL_1]"
    assert Redactor(built_in("strict")).redact(value)["subject"] == "[SUBJECT_1]"


def test_comments_and_demonstrations_of_outcomes_are_redacted_metrics_are_not() -> None:
    redactor = Redactor(built_in("standard"))
    assert (
        redactor.redact_outcome({"kind": "comment", "name": "comment", "value": "ask jane@acme.io"})["value"]
        == "ask [EMAIL_1]"
    )
    shown = redactor.redact_outcome(
        {"kind": "demonstration", "name": "d", "messages": [{"role": "user", "content": KEY}]}
    )
    assert shown["messages"][0]["content"] == "[API_KEY_1]"
    metric = {"name": "who", "value": "jane@acme.io"}
    assert redactor.redact_outcome(metric) is metric


def test_a_clean_text_is_remembered_without_being_kept() -> None:
    redactor = Redactor(built_in("secrets"))
    text = "a long and harmless message that is sent again with every step of the episode " * 3
    redactor.redact(interaction(text))
    assert (hash(text), len(text)) in redactor._memory.clean
    assert text not in str(vars(redactor._memory))
    redactor.redact(interaction(f"my key {KEY}"))
    assert KEY not in str(
        {name: vars(e) if hasattr(e, "__dict__") else e.texts for name, e in redactor._memory._episodes.items()}
    )


def test_rights_deny_by_subject_tag_and_model() -> None:
    rules = (
        RightsRule(subject="alice", train="deny"),
        RightsRule(tags={"tenant": "acme-*"}, eval="deny"),
        RightsRule(model="gpt-*", tags={"tier": "1"}, recall="deny"),
    )
    assert rights_of(rules, {"subject": "alice", "tags": {"tenant": "acme-eu"}}) == {"train": "deny", "eval": "deny"}
    assert rights_of(rules, {"model": "gpt-5", "tags": {"tier": 1}}) == {"recall": "deny"}
    assert rights_of(rules, {"model": "gpt-5"}) is None
    assert rights_of(rules, {"subject": "bob", "tags": None}) is None
    with pytest.raises(SettingError, match="what is denied"):
        RightsRule(subject="x").checked()


@pytest.mark.parametrize(
    "policy",
    [
        PiiPolicy(actions={"shoe_size": "mask"}),
        PiiPolicy(actions={"name": "mask"}),
        PiiPolicy(fields=(FieldRule(path="$.interaction_id"),)),
        PiiPolicy(fields=(FieldRule(path="tags"),)),
        PiiPolicy(patterns=(Pattern(name="email", regex="x"),)),
        PiiPolicy(phone_regions=("Germany",)),
    ],
)
def test_policies_that_make_no_sense_are_refused(policy: PiiPolicy) -> None:
    with pytest.raises(SettingError, match="pii"):
        policy.checked()


def test_names_are_found_by_the_users_model(tmp_path: Any) -> None:
    spacy = pytest.importorskip("spacy")
    pytest.importorskip("presidio_analyzer")
    language = spacy.blank("en")
    ruler = language.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "Grace Hopper"}])
    language.to_disk(tmp_path / "names")
    redactor = Redactor(PiiPolicy(name="secrets", name_model=str(tmp_path / "names")))
    done = redactor.redact(interaction(f"Grace Hopper sent {KEY}"))
    assert done["messages"][0]["content"] == "[NAME_1] sent [API_KEY_1]"
    missing = Redactor(PiiPolicy(name="secrets", name_model="no_such_model")).redact(interaction("Grace Hopper"))
    assert missing["redaction"]["error"].startswith("OSError at $.messages[0]")
