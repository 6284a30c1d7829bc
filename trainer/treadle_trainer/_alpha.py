"""The alpha ledger of a slot on disk: what was spent, before the decision that spends it is told."""

from __future__ import annotations

from pathlib import Path

import msgspec

from treadle_trainer._files import locked, write_atomically
from treadle_trainer.errors import RegistryError
from treadle_trainer.gate import AlphaLedger

__all__ = ["spend_alpha"]


def spend_alpha(folder: Path, generation: str, key: str, alpha: float, *, whole: bool) -> float:
    """The alpha that decision `key` on `generation` may use, recorded in `folder`/alpha.json. The same key gets the same again."""
    path = folder / "alpha.json"
    with locked(folder / "alpha.lock"):
        ledger, share = _read(path).spend(generation, key, alpha, whole=whole)
        write_atomically(path, msgspec.json.encode({g: list(given) for g, given in ledger.spent.items()}))
        return share


def _read(path: Path) -> AlphaLedger:
    try:
        return AlphaLedger(msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[tuple[str, float], ...]]))
    except FileNotFoundError:
        return AlphaLedger()
    except msgspec.MsgspecError as err:
        raise RegistryError(f"{path}: not an alpha ledger: {err}") from err
