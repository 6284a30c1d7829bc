"""What models say and how likely they find what was said (inside a job process)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from treadle_schemas.canonical import dumps

from treadle_trainer.data.rendering import Encoded, encode, identify
from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.evaluate.likelihood import divergences, likelihoods
from treadle_trainer.evaluate.player import load, prompt_ids, sample
from treadle_trainer.jobs._spec import ScorecardSpec
from treadle_trainer.scorecard.calls import calls_of, read_text
from treadle_trainer.scorecard.evaluators import run_evaluator, split_evaluator
from treadle_trainer.scorecard.rows import ANCHOR, EvalPair, EvalRow, Measured
from treadle_trainer.scorecard.spend import Spend

__all__ = ["measure"]


def measure(spec: ScorecardSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Values by model, metric and index: `{"values": {model: {metric: {index: value}}}, "rows": n, "pairs": n, "judge": Spend or None,
    "failures": {evaluator: why}}`.

    Indices are those of rows, of pairs for `preference`. What a model cannot be measured on (too long, a template that does not take it)
    has no value. `kl` is KL(last model || first) a response token over what was logged, where both take the same tokens. `judge` is what
    models as evaluators used.
    """
    measured = msgspec.json.decode(Path(spec.rows).read_bytes(), type=Measured)
    values: dict[str, dict[str, dict[str, float]]] = {}
    spend, failures = Spend(), dict[str, str]()
    first: tuple[Any, Any] | None = None  # held where it is compared with, so that two models are in memory at most
    for name, folder in spec.models.items():
        model, tokenizer = load(folder)
        encoded = _encoded(tokenizer, measured.rows, spec.max_length)
        values[name] = {
            "log_likelihood": _text_keys(likelihoods(model, encoded, spec.batch)),
            "preference": _text_keys(_preferences(model, tokenizer, measured.pairs, spec)),
            **_generated(model, tokenizer, measured.rows, spec, spend, failures),
        }
        if first is not None and identify(first[1]) == identify(tokenizer):
            values[name]["kl"] = _text_keys(divergences(model, first[0], encoded, spec.batch))
        if spec.kl and first is None:
            first = model, tokenizer
        progress(stage="scorecard", model=name, rows=len(encoded))
    judge = msgspec.to_builtins(spend) if spend.calls else None
    return {
        "values": values,
        "rows": len(measured.rows),
        "pairs": len(measured.pairs),
        "judge": judge,
        "failures": failures,
    }


def _encoded(tokenizer: Any, rows: Sequence[EvalRow], max_length: int) -> dict[int, Encoded]:
    found = {}
    for index, row in enumerate(rows):
        tokens = encode(tokenizer, row.messages, row.response, row.tools)
        if len(tokens.input_ids) <= max_length and any(tokens.trained):
            found[index] = tokens
    return found


def _preferences(model: Any, tokenizer: Any, pairs: Sequence[EvalPair], spec: ScorecardSpec) -> dict[int, float]:
    """1 where the better answer is likelier a token than the worse one, 0.5 where both are equally likely."""
    halves: dict[int, Encoded] = {}
    for index, pair in enumerate(pairs):
        for half, (answer, response) in enumerate(
            ((pair.chosen, pair.chosen_response), (pair.rejected, pair.rejected_response))
        ):
            start = len(pair.prompt)
            tokens = encode(tokenizer, [*pair.prompt, *answer], [start + n for n in response], pair.tools)
            if len(tokens.input_ids) <= spec.max_length and any(tokens.trained):
                halves[2 * index + half] = tokens
    whole = {n: tokens for n, tokens in halves.items() if n ^ 1 in halves}
    likely = likelihoods(model, whole, spec.batch)
    return {n // 2: (likely[n] > likely[n + 1]) + 0.5 * (likely[n] == likely[n + 1]) for n in likely if n % 2 == 0}


def _generated(
    model: Any, tokenizer: Any, rows: Sequence[EvalRow], spec: ScorecardSpec, spend: Spend, failures: dict[str, str]
) -> dict[str, dict[str, float]]:
    """What the model writes in place of the last logged response, without chance: held against it."""
    wanted = _spread([n for n, row in enumerate(rows) if row.on_card and ANCHOR not in row.slices], spec.generate)
    wanted += [n for n, row in enumerate(rows) if ANCHOR in row.slices]
    prompts = {n: prompt_ids(tokenizer, rows[n].messages[: rows[n].response[-1]], rows[n].tools) for n in wanted}
    kept = sorted(
        (n for n in wanted if len(prompts[n]) + spec.max_new_tokens <= spec.max_length), key=lambda n: len(prompts[n])
    )
    out: dict[str, dict[str, float]] = {name: {} for name in ("exact", "tool_name", "arguments", "format", "length")}
    answers: list[dict[str, Any]] = []
    for first in range(0, len(kept), spec.batch):
        chunk = kept[first : first + spec.batch]
        noise = torch.zeros(len(chunk), spec.max_new_tokens)
        for n, said in zip(chunk, sample(model, tokenizer, [prompts[n] for n in chunk], noise, 0), strict=True):
            for name, value in _held_against(rows[n], said.text, len(said.token_ids), spec.max_new_tokens).items():
                out[name][str(n)] = value
            last = rows[n].response[-1]
            answers.append(
                {
                    "messages": rows[n].messages[:last],
                    "tools": rows[n].tools,
                    "text": said.text,
                    "logged": rows[n].messages[last],
                }
            )
    for evaluator in spec.evaluators:
        own = split_evaluator(evaluator)[0]
        if own in failures:
            continue
        try:
            given = zip(kept, run_evaluator(evaluator, answers, spend), strict=True)
        except EvaluationFailed as err:  # the other metrics are worth having all the same
            failures[own] = str(err)
            continue
        out[own] = {str(n): value for n, value in given if value is not None}
    return out


def _held_against(row: EvalRow, text: str, length: int, limit: int) -> dict[str, float]:
    logged = row.messages[row.response[-1]]
    expected, reading = calls_of([logged]), read_text(text)
    values = {"length": float(length), "format": float(_well_formed(row, reading, length, limit))}
    if expected:
        names = [call.name for call in expected]
        values["tool_name"] = float([call.name for call in reading.calls] == names)
        values["arguments"] = float(
            [dumps(c.arguments) for c in reading.calls] == [dumps(c.arguments) for c in expected]
        )
        values["exact"] = float(reading.calls == expected)
    else:
        content = logged.get("content")
        values["exact"] = float(isinstance(content, str) and text.strip() == content.strip())
    return values


def _well_formed(row: EvalRow, reading: Any, length: int, limit: int) -> bool:
    """It came to an end, and what it calls is a tool that there is, with an object of arguments."""
    if length >= limit or reading.broken:
        return False
    known = {tool.get("function", tool).get("name") for tool in row.tools or ()}
    return all(isinstance(call.arguments, dict) and (not known or call.name in known) for call in reading.calls)


def _spread(places: list[int], wanted: int) -> list[int]:
    """`wanted` of the places, evenly."""
    n = len(places)
    return places if wanted >= n else [places[i * n // wanted] for i in range(wanted)]


def _text_keys(values: dict[int, float]) -> dict[str, float]:
    return {str(index): value for index, value in values.items()}
