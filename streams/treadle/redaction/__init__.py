"""Redaction: the workspace's PII policy, carried out inside the agent's process before an event is written anywhere.

1. One prefilter pass over all strings of an event; where it sees nothing, nothing else is done. 2. Detectors at the places it saw.
3. Each finding is masked ([EMAIL_1], the same for the same value all through an episode), hashed with a key ([EMAIL:9f...], the same
wherever the key is), dropped, or makes the event refused, as the policy says for its kind. 4. Media become hash, type and size, or stay.

The same goes for JSON inside strings (tool arguments), which is written anew only where something was found. Ids, references, times and
the structure of messages stay. Token ids and logprobs go with the text that they spell. Whatever goes wrong, the text does not get out.
"""

from treadle.errors import RedactionRefused
from treadle.redaction._redactor import TOMBSTONE_TEXT, Redactor, subject_hash

__all__ = ["TOMBSTONE_TEXT", "RedactionRefused", "Redactor", "subject_hash"]
