"""What a turn costs: accelerators, processors, judges and bytes as measured, in money by a file of prices."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from treadle_schemas.errors import SettingError

from treadle_trainer.cycle.spending import Bytes, Judged
from treadle_trainer.cycle.turns import Turn

__all__ = ["Cost", "Prices", "costs"]

GB: Final = 1e9


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money in one currency. What is not named costs nothing."""

    currency: str = "USD"
    gpu_second: float = 0.0
    """Of one accelerator that a job holds."""
    cpu_second: float = 0.0
    """Of a job that holds none."""
    judge_call: float = 0.0
    """Of one call of a judge."""
    judge_1k_prompt: float = 0.0
    """Of 1,000 tokens that a judge reads."""
    judge_1k_completion: float = 0.0
    """Of 1,000 tokens that a judge writes."""
    gb_stored: float = 0.0
    """Of 10^9 bytes that are kept, for as long as you keep them: captured, in the corpus, of the release."""
    gb_written: float = 0.0
    """Of 10^9 bytes that are written once: those, and token columns."""

    @classmethod
    def load(cls, path: Path) -> Prices:
        """Read a JSON file, for example {"gpu_second": 0.0011}. Raises SettingError naming the file and the place."""
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as err:
            known = ", ".join(cls.__struct_fields__)
            raise SettingError(f"{path}: no file of prices: {err}. It is a JSON object of {known}") from err
        for name in cls.__struct_fields__[1:]:
            if getattr(found, name) < 0:
                raise SettingError(f"{path}: {name}={getattr(found, name):g}: a price is at least 0")
        return found


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one turn took. `money` is None without prices; `per_point` is money for one hundredth of lift, None without lift."""

    job_seconds: float
    """Wall clock of its jobs: reading, training and evaluation."""
    gpu_seconds: float
    judged: Judged
    bytes: Bytes
    parts: dict[str, float]
    """Money by what it is for: compute, judges, storage. Empty without prices."""
    money: float | None
    per_point: float | None


def costs(turn: Turn, prices: Prices | None = None) -> Cost:
    """What a turn took, and in money.

    `evidence.training.devices` says how many accelerators training held, while it read and trained; evaluation is one process, and holds
    one of them. What graders say in US dollars of their calls counts where the prices are in US dollars and name none for judges.
    """
    at_training = turn.seconds.get("read", 0.0) + turn.seconds.get("train", 0.0)
    evaluating = turn.seconds.get("evaluate", 0.0)
    seconds = at_training + evaluating
    gpu = at_training * turn.devices + evaluating * min(turn.devices, 1)
    judged, written = turn.judged, turn.bytes
    parts: dict[str, float] = {}
    if prices is not None:
        parts["compute"] = gpu * prices.gpu_second + (0.0 if turn.devices else seconds * prices.cpu_second)
        parts["judges"] = _of_judges(judged, prices)
        parts["storage"] = (written.stored * prices.gb_stored + written.written * prices.gb_written) / GB
    money = sum(parts.values()) if parts else None
    lift = turn.lift
    per_point = money / (100 * lift) if money is not None and lift is not None and lift > 0 else None
    return Cost(
        job_seconds=seconds,
        gpu_seconds=gpu,
        judged=judged,
        bytes=written,
        parts=parts,
        money=money,
        per_point=per_point,
    )


def _of_judges(judged: Judged, prices: Prices) -> float:
    named = prices.judge_call or prices.judge_1k_prompt or prices.judge_1k_completion
    if not named and prices.currency == "USD":
        return judged.usd
    tokens = judged.prompt_tokens * prices.judge_1k_prompt + judged.completion_tokens * prices.judge_1k_completion
    return judged.calls * prices.judge_call + tokens / 1000
