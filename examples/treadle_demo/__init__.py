"""The demo: three small worlds for an agent, and a tiny language model that learns to act in them.

`CustomerDesk`, `RoomDesk` and the longer `BackOffice` implement the environment protocol over real SQLite databases. They are light to
import; the model, the warm start and the play loop (`model`, `warmstart`, `sampling`) need the `train` extra.
"""

from treadle_demo.desk import CustomerDesk
from treadle_demo.office import BackOffice
from treadle_demo.rooms import RoomDesk

__all__ = ["BackOffice", "CustomerDesk", "RoomDesk"]
