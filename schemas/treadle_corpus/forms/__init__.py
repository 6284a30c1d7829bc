"""Views in the forms that other trainers read: TRL, OpenAI fine-tuning, verl, Axolotl. Pure.

Each form says in its own way what is trained on, and some cannot say it for every example. What cannot be said exactly is left out and
counted, unless the caller allows that turns are trained on which nobody marked (`loose`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from treadle_corpus.forms import _axolotl, _openai, _trl, _verl
from treadle_corpus.forms._shape import Convert

__all__ = ["FORMS", "Converted", "convert"]

FORMS: Mapping[str, Mapping[str, Convert]] = {
    "axolotl": _axolotl.VIEWS,
    "openai": _openai.VIEWS,
    "trl": _trl.VIEWS,
    "verl": _verl.VIEWS,
}
"""By form and view: what turns one example into lines, or into the reason why it is left out."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Lines of a form. One example may be several. `left_out` counts examples by reason."""

    lines: list[dict[str, Any]]
    left_out: Mapping[str, int]


def convert(form: str, view: str, examples: Iterable[Any], *, loose: bool = False) -> Converted:
    """The examples of a view in a form. Raises KeyError for a view that the form does not have (see FORMS)."""
    make = FORMS[form][view]
    lines: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for example in examples:
        made = make(example, loose)
        if isinstance(made, str):
            left_out[made] += 1
        else:
            lines += made
    return Converted(lines=_trl.finish(lines) if form == "trl" else lines, left_out=dict(sorted(left_out.items())))
