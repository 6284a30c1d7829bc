"""torchrun, in a process that does not outlive the job: `python -m treadle_trainer.launch._agent ...` takes torchrun's arguments."""

from __future__ import annotations

import os
import sys

from treadle_trainer.jobs._leftovers import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    from torch.distributed.run import main

    os.environ.setdefault("TORCHELASTIC_ERROR_FILE", os.devnull)
    main(sys.argv[1:])
