"""How far a grader agrees with people: accuracy and Cohen's kappa, with 95 % intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from treadle_schemas.errors import SettingError
from treadle_schemas.events import Outcome, OutcomeValue
from treadle_schemas.moments import to_micros

__all__ = ["Agreement", "Label", "agreement", "latest_values", "paired"]

Label = bool | str | float
_Z_95: Final = 1.959963984540054


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Of `n` interactions that both judged. `kappa` is None where one label alone was ever given: chance explains everything."""

    n: int
    accuracy: float | None
    accuracy_95: tuple[float, float] | None
    kappa: float | None
    kappa_95: tuple[float, float] | None
    table: dict[str, int]
    """How often `GRADER | HUMAN` came together."""
    only_grader: int = 0
    only_human: int = 0


def latest_values(outcomes: Iterable[Outcome]) -> dict[str, OutcomeValue]:
    """By interaction id the value that counts: the greatest (observed_at, outcome_id) that was not retracted."""
    found: dict[str, dict[str, tuple[int, str, OutcomeValue]]] = {}
    gone: dict[str, set[str]] = {}
    until: dict[str, int] = {}
    for one in outcomes:
        target = one.interaction_id
        if target is None:
            continue
        at = to_micros(one.observed_at, "$.observed_at")
        if one.op == "set":
            known = found.setdefault(target, {})
            known[one.outcome_id or ""] = max(
                (at, one.outcome_id or "", one.value),
                known.get(one.outcome_id or "", (-1, "", None)),
                key=lambda v: v[:2],
            )
        elif one.outcome_id is not None:
            gone.setdefault(target, set()).add(one.outcome_id)
        else:
            until[target] = max(at, until.get(target, at))
    values: dict[str, OutcomeValue] = {}
    for target, known in found.items():
        left = [
            said for name, said in known.items() if name not in gone.get(target, ()) and said[0] > until.get(target, -1)
        ]
        if left:
            values[target] = max(left, key=lambda v: v[:2])[2]
    return {target: value for target, value in values.items() if value is not None}


def paired(
    grader: dict[str, OutcomeValue], human: dict[str, OutcomeValue], threshold: float | None
) -> list[tuple[Label, Label]]:
    """The labels of the interactions that both judged. Numbers become true from `threshold` on; without one they must be 0 or 1."""
    return [(_label(grader[t], threshold), _label(human[t], threshold)) for t in sorted(grader.keys() & human.keys())]


def agreement(pairs: Sequence[tuple[Label, Label]], only_grader: int = 0, only_human: int = 0) -> Agreement:
    """Accuracy with Wilson's interval; kappa (Cohen 1960) with its large-sample interval (Fleiss, Cohen and Everitt 1969, equation 13).

    With fewer than some 30 pairs the second one is too narrow.
    """
    n = len(pairs)
    table = {f"{_text(a)} | {_text(b)}": count for (a, b), count in sorted(Counter(pairs).items(), key=str)}
    if n == 0:
        return Agreement(
            n=0,
            accuracy=None,
            accuracy_95=None,
            kappa=None,
            kappa_95=None,
            table={},
            only_grader=only_grader,
            only_human=only_human,
        )
    p_agree = sum(a == b for a, b in pairs) / n
    kappa, spread = _kappa(pairs, p_agree)
    return Agreement(
        n=n,
        accuracy=p_agree,
        accuracy_95=_wilson(p_agree, n),
        kappa=kappa,
        kappa_95=None if kappa is None else (max(-1.0, kappa - spread), min(1.0, kappa + spread)),
        table=table,
        only_grader=only_grader,
        only_human=only_human,
    )


def _kappa(pairs: Sequence[tuple[Label, Label]], p_agree: float) -> tuple[float | None, float]:
    n = len(pairs)
    cells = {pair: count / n for pair, count in Counter(pairs).items()}
    labels = {label for pair in pairs for label in pair}
    rows = {label: sum(p for (a, _), p in cells.items() if a == label) for label in labels}
    columns = {label: sum(p for (_, b), p in cells.items() if b == label) for label in labels}
    p_chance = sum(rows[label] * columns[label] for label in labels)
    if p_chance >= 1.0:
        return None, 0.0
    kappa = (p_agree - p_chance) / (1.0 - p_chance)
    same = sum(
        cells.get((label, label), 0.0) * (1.0 - (rows[label] + columns[label]) * (1.0 - kappa)) ** 2 for label in labels
    )
    other = (1.0 - kappa) ** 2 * sum(p * (columns[a] + rows[b]) ** 2 for (a, b), p in cells.items() if a != b)
    variance = (same + other - (kappa - p_chance * (1.0 - kappa)) ** 2) / (n * (1.0 - p_chance) ** 2)
    return kappa, _Z_95 * math.sqrt(max(0.0, variance))


def _wilson(p: float, n: int) -> tuple[float, float]:
    z2 = _Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _label(value: OutcomeValue, threshold: float | None) -> Label:
    if isinstance(value, bool | str):
        return value
    assert value is not None
    if threshold is not None:
        return value >= threshold
    if value in (0, 1):
        return bool(value)
    raise SettingError(
        f"the value {value} is a number between labels: give --threshold, from which on it counts as true"
    )


def _text(label: Label) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)
