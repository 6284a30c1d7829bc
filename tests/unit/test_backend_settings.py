"""The command of an external trainer: its places are filled, its words stay words, and what makes no sense is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from treadle_schemas import SettingError
from treadle_trainer.backends import PLACES, Backend, fill_command, fill_text
from treadle_trainer.policy import TrainingPolicy


@given(st.text(), st.text())
def test_a_value_is_one_word_whatever_is_in_it(rows: str, out: str) -> None:
    filled = fill_command("train --data={rows} '{out}' {{x}}", {"rows": rows, "out": out})
    assert filled == ["train", f"--data={rows}", out, "{x}"]


def test_a_config_keeps_braces_that_are_not_places() -> None:
    values = {**dict.fromkeys(PLACES, "?"), "rows": "/a/{out}"}
    assert fill_text('{"path": "{rows}", "x": {"rows": 1}, "y": "{no}"}', values) == (
        '{"path": "/a/{out}", "x": {"rows": 1}, "y": "{no}"}'
    )


@pytest.mark.parametrize(
    ("settings", "method", "said"),
    [
        ({"command": "train {rows} {out} {oops}"}, "sft", r"\{oops\} is no place; there are \{rows\}"),
        ({"command": "train '{rows} {out}"}, "sft", "No closing quotation"),
        ({"command": ""}, "sft", "names no program"),
        ({"command": "train {rows}"}, "sft", r"lacks \{out\}, the folder in which the model is expected"),
        ({"command": "train {config} {rows} {out}"}, "sft", r"has \{config\}, but no file is named"),
        ({"command": "t {rows} {out}", "form": "axolotl"}, "kto", "has no form of the kto view.*; it has dpo, sft"),
        ({"command": "t {rows} {out}", "loose": True}, "sft", "treadle's own form says exactly"),
        ({"command": "t {rows} {out}"}, "magic", "method 'magic': no view is written for it"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(settings: dict[str, Any], method: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Backend(**settings).checked(method)


def test_a_policy_names_a_backend_with_dotted_settings() -> None:
    policy = TrainingPolicy().changed({"backend.command": "axolotl train {config}", "backend.config": "/c.yaml"})
    policy = policy.changed({"backend.form": "axolotl", "method": "dpo"})
    assert policy.backend == Backend(command="axolotl train {config}", config="/c.yaml", form="axolotl")
    assert policy.fingerprint != policy.changed({"backend": "null", "method": "sft"}).fingerprint
    with pytest.raises(SettingError, match="nemo"):
        policy.changed({"backend.form": "nemo"})
    with pytest.raises(SettingError, match="form='axolotl' has no form of the rl view"):
        policy.changed({"method": "rl"})
