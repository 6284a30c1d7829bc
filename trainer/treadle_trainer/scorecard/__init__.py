"""The scorecard of a release: champion and candidate side by side on the same held-out rows, metric by metric and slice by slice.

    rows        what is measured: held-out rows of a version, and an anchor suite that never changes
    measure     in a job process: what each model says, how likely it finds what was said
    calls       a tool call in a generated text
    evaluators  metrics of one's own; `spend` is what models among them use
    metrics     what the metrics are, and their values pair by pair, for card and gate
    card        means, differences with intervals clustered by group, slices
    render      Markdown and HTML; `plots` draws the differences
    run         a scorecard made and kept; `of_turn` that of a turn's candidate

A scorecard informs. The gate decides by the policy's evaluation, and by those metrics of the card that it names.
"""

from __future__ import annotations

from treadle_trainer.scorecard.card import Metric, Scorecard, Slice, make_card
from treadle_trainer.scorecard.metrics import METRICS, MetricKind
from treadle_trainer.scorecard.render import to_html, to_markdown
from treadle_trainer.scorecard.rows import EvalRow, read_anchor, select_rows

__all__ = [
    "METRICS",
    "EvalRow",
    "Metric",
    "MetricKind",
    "Scorecard",
    "Slice",
    "make_card",
    "read_anchor",
    "select_rows",
    "to_html",
    "to_markdown",
]
