"""What the join and the snapshotter refused: look at it, send it again, or put it aside.

Dead letters are kept for good. What was done about one is a record beside it, so nothing is ever taken out of the topic.
"""

from treadle_streams.dead_letters._letters import DeadLetter, letters, replay, resolve

__all__ = ["DeadLetter", "letters", "replay", "resolve"]
