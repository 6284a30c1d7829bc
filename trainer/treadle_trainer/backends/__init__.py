"""Training by somebody else's trainer: a command that reads rows as JSON lines and leaves a Hugging Face model folder.

Axolotl, verl, ms-swift and others pin versions of their own and cannot share an environment with this one. So the contract is files: the
view of the corpus version in the form that the trainer reads, a command, a folder. What comes back is checked, and from there on it is a
candidate like any other.
"""

from treadle_trainer.backends._settings import PLACES, VIEW_OF, Backend, fill_command, fill_text

__all__ = ["PLACES", "VIEW_OF", "Backend", "fill_command", "fill_text"]
