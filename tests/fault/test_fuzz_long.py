"""Millions of inputs against the decoder, coverage-guided: `make test-long`. Each is accounted for by its class."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

_HARNESS = Path(__file__).parent.parent / "fuzz" / "decoder.py"
PROCESSES = 2
INPUTS = 1_000_000
SECONDS = 420.0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_millions_of_inputs_are_accepted_or_refused_by_type(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; it has wheels for some versions of Python only")
    running: list[subprocess.Popen[str]] = []
    folders = [tmp_path / str(seed) for seed in range(1, PROCESSES + 1)]
    try:
        for seed, folder in enumerate(folders, 1):
            folder.mkdir()
            command = [sys.executable, str(_HARNESS), "--inputs", str(INPUTS), "--seconds", str(SECONDS)]
            command += ["--seed", str(seed), "--report", str(folder / "report.json")]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        problems = [process.communicate(timeout=SECONDS + 300)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    total = 0
    for process, folder, problem in zip(running, folders, problems, strict=True):
        assert process.returncode == 0, problem[-4000:]
        report = json.loads((folder / "report.json").read_text())
        print(json.dumps(report, indent=1))
        assert report["complete"]
        assert sum(report["classes"].values()) == report["inputs"]
        assert all(name.startswith(("accepted", "refused")) for name in report["classes"])
        total += report["inputs"]
    assert total >= PROCESSES * 100_000
