"""The GPU check at its tiny size: every line that is not CUDA's own runs, and its judgement can fail."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.long
def test_the_check_runs_on_a_cpu_at_a_tiny_size(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--tiny", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    assert report["problems"] == []
    assert report["corpus"]["rows"] == 64
    assert report["numeric"]["devices"] == ["cpu", "cpu"]
    for kind in ("float32", "bfloat16"):
        assert report["numeric"][kind]["worst_loss_difference"] == 0
        assert report["numeric"][kind]["last_loss"] < report["numeric"][kind]["first_loss"]
    assert all(report["feed"][one]["tokens_s"] > 0 for one in ("reader", "trl", "deeplake"))
    assert report["feed"]["trl"]["tokenised_tokens_s"] > 0
    assert [one["size"] for one in report["train"]] == ["tiny-1", "tiny-2"]
    for one in report["train"]:
        assert one["tokens_s"] > 0
        assert 0 <= one["stall"] <= 1
        assert one["streamed"]["steps"] == 3
        assert one["batch_rows"] == 4
    assert [one["prompts"] for one in report["sample"]] == [4, 8, 4, 8]
    assert all(one["sampler_tokens_s"] > 0 and one["logprob_error"] < 1e-3 for one in report["sample"])
    assert report["demo"]["decision"] in ("promoted", "rejected", "not_enough_evidence")
    assert 0 <= report["demo"]["live_success"] <= 1


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("gpu_check", BENCHMARKS / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("train", -1, "stall"), 0.06, "at 1.7B 6.0% of the time waits for data"),
        (("numeric", "float32", "worst_loss_difference"), float("nan"), "in float32 nan between cpu and cuda"),
        (("numeric", "bfloat16", "worst_logit_difference"), 1.0, "worst_logit_difference in bfloat16 1"),
        (("sample", 0, "logprob_error"), 0.5, "log-probabilities of the sampler at 1.7B are off by 0.5"),
        (("sample", 0, "generate_batch", "logprob_error"), 0.4, "of generate_batch at 1.7B are off by 0.4"),
        (("demo",), {"failed": "no broker"}, "the demo's turn failed: no broker"),
    ],
)
def test_what_the_check_fails_on(check: ModuleType, place: tuple[Any, ...], value: Any, said: str) -> None:
    same = {"worst_loss_difference": 1e-4, "worst_logit_difference": 1e-3}
    report: dict[str, Any] = {
        "tiny": False,
        "train": [{"size": "0.6B", "stall": 0.5}, {"size": "1.7B", "stall": 0.04}],
        "numeric": {"float32": {**same}, "bfloat16": {**same}, "devices": ["cpu", "cuda"]},
        "sample": [
            {"size": "1.7B", "logprob_error": 0.1, "generate_batch": {"logprob_error": 0.1}},
            {"size": "1.7B", "left_out": "time"},
        ],
        "demo": {"decision": "rejected"},
    }
    assert check.problems(report) == []
    spot: Any = report
    for step in place[:-1]:
        spot = spot[step]
    spot[place[-1]] = value
    (problem,) = check.problems(report)
    assert said in problem


def test_a_machine_without_a_device_is_told_of_the_tiny_size(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(check.Refused, match="shows no CUDA device; --tiny runs the same code"):
        check.find_device(tiny=False)
