"""Views over any rows: order changes nothing, every row is accounted for, no side leaks, no turn is learned twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_corpus import CorpusRow
from treadle_corpus.testing import corpus_row, graded
from treadle_corpus.views import VIEWS, dpo, every_row, sft
from treadle_schemas.canonical import canonical_json
from treadle_schemas.records import Feedback

REWARDS = st.sampled_from([None, -1.0, 0.0, 0.5, 1.0])


@st.composite
def feedback(draw: st.DrawFn) -> Feedback:
    kind = draw(st.sampled_from(["comment", "preference", "demonstration"]))
    fields: dict[str, Any] = {}
    if kind == "comment":
        fields["value"] = "fine"
    elif kind == "preference" and draw(st.booleans()):
        fields["over"] = f"e{draw(st.integers(0, 3))}-{draw(st.integers(0, 4))}"
    else:
        roles = draw(st.lists(st.sampled_from(["assistant", "tool"]), max_size=3))
        fields["messages"] = [{"role": role, "content": f"told {n}"} for n, role in enumerate(roles)]
    return Feedback(kind=kind, name="f", outcome_id="o", observed_at="2024-05-16T00:00:00Z", **fields)


@st.composite
def episode(draw: st.DrawFn, name: str) -> list[CorpusRow]:
    """Steps that go on from some earlier step, or begin anew; marked, wrongly marked or not."""
    task = draw(st.sampled_from(["t1", "t2", None]))
    side = "heldout" if task == "t2" else "train"  # one group, one side
    ask = [{"role": "system", "content": draw(st.sampled_from(["s", "r"]))}, {"role": "user", "content": "q"}]
    states = [ask]
    rows = []
    for n in range(draw(st.integers(1, 5))):
        start = list(draw(st.sampled_from(states)))
        new = [
            {"role": role, "content": f"{name}-{n}-{k}"}
            for k, role in enumerate(
                draw(st.lists(st.sampled_from(["assistant", "assistant", "user", "tool"]), min_size=1, max_size=4))
            )
        ]
        messages = start + new
        states.append(messages)
        fields: dict[str, Any] = {}
        if draw(st.booleans()):
            fields["response"] = sorted(draw(st.sets(st.integers(0, len(messages) - 1), max_size=3)))
        record = graded(
            f"{name}-{n}",
            episode_id=name,
            step=n,
            task_id=task,
            messages=messages,
            split=side,  # type: ignore[arg-type]
            reward=draw(REWARDS),
            feedback=draw(st.lists(feedback(), max_size=2)),
            **fields,
        )
        rows.append(corpus_row(record))
    return rows


@st.composite
def corpora(draw: st.DrawFn) -> list[CorpusRow]:
    return [row for n in range(draw(st.integers(1, 4))) for row in draw(episode(f"e{n}"))]


@settings(max_examples=40, deadline=None)
@given(corpora(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows: list[CorpusRow], rng: Any) -> None:
    shuffled = rng.sample(rows, len(rows))
    for make in VIEWS.values():
        assert make(rows, split="all") == make(shuffled, split="all")


@settings(max_examples=40, deadline=None)
@given(corpora(), st.sampled_from(["train", "heldout", "all"]))
def test_every_row_is_used_or_dropped_for_a_reason(rows: list[CorpusRow], split: Any) -> None:
    for make in VIEWS.values():
        view = make(rows, split=split)
        assert view.rows == len(rows) == view.used + sum(view.dropped.values())
        assert bool(view.used) == bool(view.examples)


def conversations(name: str, example: Any) -> list[tuple[list[dict[str, Any]], list[int]]]:
    """(messages, indices trained on) of each sequence of an example."""
    if name in ("sft", "eval"):
        return [(example["messages"], example["response"])]
    if name == "kto":
        return [(example["completion"], example["response"])]
    if name == "rl":
        return [(attempt["messages"], attempt["response"]) for attempt in example["attempts"]]
    return [(example[half], example[f"{half}_response"]) for half in ("chosen", "rejected")]


@settings(max_examples=40, deadline=None)
@given(corpora())
def test_no_held_out_row_is_in_a_train_view_and_only_the_assistant_is_trained_on(rows: list[CorpusRow]) -> None:
    heldout = {row.interaction_id for row in rows if row.split == "heldout"}
    for name, make in VIEWS.items():
        for example in make(rows, split="train"):
            assert example["split"] == "train"
            text = canonical_json(example).decode()
            assert not any(f'"{one}"' in text or f"{one}-" in text for one in heldout)
            for messages, response in conversations(name, example):
                assert response
                assert response == sorted(set(response))
                assert {messages[i]["role"] for i in response} == {"assistant"}
                assert response[-1] == len(messages) - 1 or name == "sft"


@settings(max_examples=40, deadline=None)
@given(corpora())
def test_no_turn_is_learned_twice_and_every_turn_of_a_selected_row_once(rows: list[CorpusRow]) -> None:
    learned: Counter[str] = Counter()
    for example in sft(rows, every_row, split="all"):
        if example["origin"] == "logged":
            learned.update(example["messages"][i]["content"] for i in example["response"])
    # contents are unique to the step that said them
    assert set(learned.values()) <= {1}
    marked = set()
    for row in rows:
        marks = row.interaction.get("response")
        for i, message in enumerate(row.interaction["messages"]):
            if message["role"] == "assistant" and (marks is None or i in marks):
                marked.add(message["content"])
    # without marks a step has its new turns only: the others belong to the steps before, which may have marks that leave them out
    assert set(learned) <= marked
    if all("response" not in row.interaction for row in rows):
        assert set(learned) == marked


@settings(max_examples=40, deadline=None)
@given(corpora(), st.integers(1, 3), st.sampled_from([0.0, 0.5, 1.5]))
def test_a_task_has_at_most_cap_pairs_by_reward(rows: list[CorpusRow], cap: int, margin: float) -> None:
    view = dpo(rows, cap=cap, min_margin=margin, split="all")
    by_task = Counter(pair["task_id"] for pair in view if pair["origin"] == "reward" and pair["task_id"])
    assert all(count <= cap for count in by_task.values())
    for pair in view:
        assert pair["prompt"]
        assert pair["chosen"] != pair["rejected"]
        if pair["origin"] == "reward":
            assert pair["margin"] is not None
            assert pair["margin"] >= max(margin, 1e-9)
    everything = dpo(rows, cap=None, min_margin=margin, split="all")
    ids = {(p["chosen_id"], p["rejected_id"]) for p in everything}
    assert {(p["chosen_id"], p["rejected_id"]) for p in view} <= ids
