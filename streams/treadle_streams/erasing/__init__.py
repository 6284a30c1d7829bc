"""Erasing a subject from everything that a workspace keeps: `treadle erase`.

    1. remember   the subject is one of the workspace's erased ones, as a digest with the moment: nothing recorded before comes back
    2. find       the episodes in which the subject occurs, in the log
    3. say        an erasure for each of them, on `.interactions`; the join, and what follows it, take the text away
    4. wait       until the join has passed it; what came meanwhile goes back to 2
    5. stores     each store that holds text beside the log erases it and reports

Every step can be repeated, so a run that was cut off is completed by the next one.
"""

from treadle_streams.erasing._run import Erased, Step, erase, erased_episodes

__all__ = ["Erased", "Step", "erase", "erased_episodes"]
