"""One rank of a training, started by torchrun: `python -m treadle_trainer.launch._rank FOLDER`.

FOLDER/spec.json says what to train. The first rank writes progress.jsonl; each writes rank-N.json, its result or its error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from treadle_trainer._files import write_atomically
from treadle_trainer.jobs._leftovers import die_with_parent
from treadle_trainer.jobs._outcome import attempt
from treadle_trainer.jobs._spec import TrainSpec

__all__ = ["main"]


def main(folder: Path) -> int:
    """Do this rank's part. Returns the exit code."""
    die_with_parent()  # torchrun gives each rank a session of its own, where no signal to the job's group comes
    rank = int(os.environ["RANK"])
    from treadle_trainer.jobs._child import Progress
    from treadle_trainer.methods import train

    progress: Any = Progress(folder / "progress.jsonl") if rank == 0 else _silent
    said = attempt(lambda: train(msgspec.json.decode((folder / "spec.json").read_bytes(), type=TrainSpec), progress))
    write_atomically(folder / f"rank-{rank}.json", json.dumps(said).encode())
    if "error" in said:
        # others may wait in a collective for ever: torchrun ends them once one of them is gone
        os._exit(1)
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


def _silent(**_: Any) -> None:
    return


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
