"""The alpha ledger of a slot on disk: what was spent, before the decision that spends it is told."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from treadle_trainer._files import locked, write_atomically
from treadle_trainer.errors import RegistryError
from treadle_trainer.gate import Chosen, GenerationLedger

__all__ = ["spend_alpha", "spend_alpha_whole"]


def spend_alpha(folder: Path, key: str, groups: Iterable[str], alpha: float, *, min_groups: int) -> Chosen:
    """What decision `key` may use of the held-out `groups`, recorded in `folder`/alpha.json. The same key gets the same again."""
    with locked(folder / "alpha.lock"):
        chosen = _read(folder).spend(key, groups, alpha, min_groups=min_groups)
        _write(folder, chosen.ledger)
        return chosen


def spend_alpha_whole(folder: Path, key: str, alpha: float) -> float:
    """The alpha of a decision on tasks drawn for it alone, recorded likewise."""
    with locked(folder / "alpha.lock"):
        chosen = _read(folder).spend_whole(key, alpha)
        _write(folder, chosen.ledger)
        return chosen.alpha


def _write(folder: Path, ledger: GenerationLedger) -> None:
    write_atomically(folder / "alpha.json", msgspec.json.encode(ledger))


def _read(folder: Path) -> GenerationLedger:
    path = folder / "alpha.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=GenerationLedger)
    except FileNotFoundError:
        return GenerationLedger()
    except msgspec.MsgspecError as err:
        raise RegistryError(f"{path}: not an alpha ledger: {err}") from err
