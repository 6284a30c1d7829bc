"""What a turn costs: processor and accelerator time as measured, in money by a file of prices."""

from __future__ import annotations

from pathlib import Path

import msgspec
from treadle_schemas.errors import SettingError

from treadle_trainer.cycle.turns import Turn

__all__ = ["Cost", "Prices", "costs"]


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money for a second, in one currency. What is not named costs nothing."""

    currency: str = "USD"
    gpu_second: float = 0.0
    """Of one accelerator that a job holds."""
    cpu_second: float = 0.0
    """Of a job that holds none."""

    @classmethod
    def load(cls, path: Path) -> Prices:
        """Read a JSON file, for example {"gpu_second": 0.0011}. Raises SettingError naming the file and the place."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as err:
            known = ", ".join(cls.__struct_fields__)
            raise SettingError(f"{path}: no file of prices: {err}. It is a JSON object of {known}") from err


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one turn took. `money` is None without prices; `per_point` is money for one hundredth of lift, None without lift."""

    job_seconds: float
    gpu_seconds: float
    money: float | None
    per_point: float | None


def costs(turn: Turn, prices: Prices | None = None) -> Cost:
    """Training and evaluation of a turn. A job is on one device: `evidence.training.devices` says how many accelerators it held."""
    seconds = turn.seconds.get("train", 0.0) + turn.seconds.get("evaluate", 0.0)
    training = turn.evidence.get("training")
    devices = int(training.get("devices", 0)) if isinstance(training, dict) else 0
    gpu = seconds * devices
    if prices is None:
        return Cost(job_seconds=seconds, gpu_seconds=gpu, money=None, per_point=None)
    money = gpu * prices.gpu_second + (0.0 if devices else seconds * prices.cpu_second)
    lift = turn.lift
    per_point = money / (100 * lift) if lift is not None and lift > 0 else None
    return Cost(job_seconds=seconds, gpu_seconds=gpu, money=money, per_point=per_point)
