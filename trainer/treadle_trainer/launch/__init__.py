"""One training on several processes of this machine, by torchrun: replicas (DDP), or shards of the model (FSDP).

The job process starts torchrun and waits. Each rank does the method of the spec, and Hugging Face's trainer, through accelerate, makes
them one training. All ranks read the same global batches, each takes its part of them, so the result is that of one process whose batch is
as large as all of theirs together.
"""

from treadle_trainer.launch._settings import Launch

__all__ = ["Launch"]
