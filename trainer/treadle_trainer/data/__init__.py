"""Data for training: which rows, which tokens of them, and in what order.

`heldout_examples` writes the rows to evaluate on to a file; `rendering` says which tokens are trained on, `sequences` cuts long
trajectories at turns, `building` and `columns` keep tokens beside the corpus, and `stream` reads them as batches. These load numpy, torch
or transformers, so import them where they are needed.
"""

from treadle_trainer.data._selection import Selection, heldout_examples, newest, only_train, read_examples

__all__ = ["Selection", "heldout_examples", "newest", "only_train", "read_examples"]
