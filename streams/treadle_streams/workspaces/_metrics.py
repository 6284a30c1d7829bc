"""Metric declarations as a command line writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from treadle_schemas.errors import FieldError, SettingError
from treadle_schemas.moments import parse_duration_s
from treadle_schemas.workspace import Credit, Metric

FORM: Final = (
    "NAME:TYPE[,required][,minimise][,level=episode][,aggregate=last][,horizon=7d][,absent=0][,low=0][,high=1]"
)

_FLAGS: Final[dict[str, tuple[str, object]]] = {
    "required": ("required", True),
    "optional": ("required", False),
    "minimise": ("direction", "minimise"),
    "maximise": ("direction", "maximise"),
}


def parse_metric(text: str) -> Metric:
    """The metric that `text` declares, in the form of FORM. Raises SettingError naming the part that is wrong."""
    head, *options = text.split(",")
    # a name may hold colons itself (`judge:v2:float`)
    name, colon, kind = head.rpartition(":")
    if not colon or not name:
        raise SettingError(f"metric {text!r}: expected {FORM}")
    fields: dict[str, Any] = {"name": name, "type": kind}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals and key in _FLAGS:
            field, meaning = _FLAGS[key]
            fields[field] = meaning
        elif equals and key in _VALUES:
            field, convert = _VALUES[key]
            try:
                fields[field] = convert(value, kind)
            except (ValueError, FieldError):
                raise SettingError(f"metric {name}: {key}={value!r} is not understood; expected {FORM}") from None
        else:
            raise SettingError(f"metric {name}: no option {option!r}; expected {FORM}")
    try:
        return msgspec.convert(fields, Metric).checked()
    except msgspec.ValidationError as err:
        raise SettingError(f"metric {text!r}: {err}; expected {FORM}") from None


CREDIT_FORM: Final = "last|all|discounted[:GAMMA]"


def parse_credit(text: str) -> Credit:
    """The rule that `text` names, in the form of CREDIT_FORM. Raises SettingError."""
    rule, colon, gamma = text.partition(":")
    if rule in ("last", "all", "discounted") and (not colon or rule == "discounted"):
        try:
            return msgspec.convert({"rule": rule} | ({"gamma": float(gamma)} if colon else {}), Credit).checked()
        except ValueError:
            pass
    raise SettingError(f"credit {text!r}: expected {CREDIT_FORM}, GAMMA in (0, 1]")


def changed_metrics(
    present: tuple[Metric, ...], declared: tuple[Metric, ...], removed: tuple[str, ...]
) -> tuple[Metric, ...]:
    """The metrics after some are declared, anew or for the first time, and others no longer. Raises SettingError for an unknown name."""
    unknown = set(removed) - {metric.name for metric in present}
    if unknown:
        names = ", ".join(metric.name for metric in present)
        raise SettingError(f"metric {sorted(unknown)[0]!r} is not declared; the metrics are {names}")
    made = {metric.name: metric for metric in present if metric.name not in removed}
    return tuple((made | {metric.name: metric for metric in declared}).values())


def default_reward(metrics: tuple[Metric, ...]) -> str:
    """The reward of a workspace that names none: its metric `reward`, else its only required one.

    Raises SettingError where that leaves a choice, or where that metric is no number.
    """
    required = [metric for metric in metrics if metric.required]
    chosen = next((metric for metric in metrics if metric.name == "reward"), None)
    if chosen is None and len(required) == 1:
        chosen = required[0]
    if chosen is None or chosen.type == "category":
        names = ", ".join(metric.name for metric in metrics)
        raise SettingError(f"reward: say with --reward what it is made of; the metrics are {names}")
    quoted = chosen.name if chosen.name.isidentifier() else '"' + chosen.name.replace('"', '""') + '"'
    return quoted if chosen.direction == "maximise" else f"-{quoted}"


def _absent(value: str, kind: str) -> bool | float | str:
    if kind == "float":
        return float(value)
    if kind == "bool":
        if value not in ("true", "false"):
            raise ValueError(value)
        return value == "true"
    return value


_VALUES: Final[dict[str, tuple[str, Callable[[str, str], object]]]] = {
    "level": ("level", lambda value, kind: value),
    "aggregate": ("aggregate", lambda value, kind: value),
    "horizon": ("horizon_s", lambda value, kind: parse_duration_s(value, "horizon")),
    "absent": ("absent", _absent),
    "low": ("low", lambda value, kind: float(value)),
    "high": ("high", lambda value, kind: float(value)),
}
"""Option -> field of Metric, and its value from the text and the metric's type."""
