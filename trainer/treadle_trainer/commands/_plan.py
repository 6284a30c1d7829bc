"""A dry run on a terminal: counts, and one example whose trained tokens are bracketed and coloured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from treadle_trainer.methods.plan import Plan, Segment

__all__ = ["shown"]

NAMES = {"dpo": ("chosen", "rejected"), "reward": ("chosen", "rejected")}
MOST_SHOWN = 4
"""Attempts of a group that are printed."""


def shown(corpus: str, method: str, plan: Plan) -> str:
    """The text. What is trained on stands in green between ⟦ and ⟧."""
    return "\n".join(_lines(corpus, method, plan))


def _lines(corpus: str, method: str, plan: Plan) -> Iterator[str]:
    sampling = plan.get("sampling")
    source = "train rows" if sampling is None else sampling["source"]
    yield f"{corpus}: {method} on {plan['examples']:,} {plan['unit']} from {plan['used']:,} of {plan['rows']:,} {source}"
    for name, counts in (("rows dropped", plan["dropped"]), ("left out", plan["left_out"])):
        if counts:
            yield f"  {name}: {_counted(counts)}"
    if sampling is not None:
        yield f"  {plan['tokens']:,} tokens in the prompts; the longest has {plan['longest']:,}"
        yield (
            f"  a step samples {sampling['group']} attempts at each of {sampling['prompts']} prompts, at most "
            f"{sampling['max_new_tokens']} tokens a turn, scored by {sampling['scored_by']}"
        )
        yield f"  the steps of the policy see each prompt {plan['epochs']:g} times"
        yield "-- example"
        yield from ("".join(map(_styled, segments)) for segments in plan["example"])
        return
    logged = f", {plan['logged_tokens']:,} with a logged probability" if plan["logged_tokens"] else ""
    yield (
        f"  {plan['tokens']:,} tokens in {plan['sequences']:,} sequences, {plan['trained_tokens']:,} of them trained on{logged}; "
        f"the longest has {plan['longest']:,}"
    )
    yield f"  the steps of the policy see each example {plan['epochs']:g} times"
    yield from _sources(plan)
    names = NAMES.get(method, ())
    for n, (segments, value) in enumerate(zip(plan["example"], plan["values"], strict=True)):
        if n == MOST_SHOWN:
            yield f"-- and {len(plan['example']) - n} more attempts"
            return
        yield f"-- {names[n] if names else 'example'}{'' if value is None else f', {_value(method)} {value:g}'}"
        yield "".join(map(_styled, segments))


def _sources(plan: Plan) -> Iterator[str]:
    """Of a mixture each source, the corpus first."""
    for one in plan.get("sources", []):
        gone = _counted({**one["dropped"], **one["left_out"]})
        yield (
            f"  {one['share']:.1%} ({one['weight']:.1%} asked for) {one['source']}: {one['examples']:,} {plan['unit']} from "
            f"{one['rows']:,} rows, {one['tokens']:,} tokens; {one['read']:,} read, each {one['epochs']:g} times"
            + (f"; dropped or left out: {gone}" if gone else "")
        )


def _value(method: str) -> str:
    return {"dpo": "margin", "reward": "margin", "kto": "desirable"}.get(method, "reward")


def _styled(segment: Segment) -> str:
    if not segment["trained"]:
        return click.style(segment["text"], dim=True)
    return click.style(f"⟦{segment['text']}⟧", fg="green", bold=True)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
