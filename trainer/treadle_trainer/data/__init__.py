"""Data for training: which rows, which tokens of them, and in what order.

`select_training` and `heldout_examples` write a version's examples to a file; `rendering` says which tokens are trained on, `sequences`
cuts long trajectories at turns, `columns` keeps tokens beside the corpus, and `stream` reads them as batches. Only the last four load
numpy, torch or transformers, so import them where they are needed.
"""

from treadle_trainer.data._selection import (
    Selection,
    heldout_examples,
    newest,
    only_train,
    read_examples,
    select_training,
)

__all__ = ["Selection", "heldout_examples", "newest", "only_train", "read_examples", "select_training"]
