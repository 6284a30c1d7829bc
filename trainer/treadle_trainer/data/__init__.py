"""Data for training: which rows, which tokens of them, and in what order.

`rendering` says which tokens are trained on, `sequences` cuts long trajectories at turns, `building` and `columns` keep tokens beside the
corpus, and `stream` reads them as batches. These load numpy, torch or transformers, so import them where they are needed.
"""

from treadle_trainer.data._selection import newest, only_train

__all__ = ["newest", "only_train"]
