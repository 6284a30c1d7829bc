"""The keys of an encrypted workspace: a random one for each subject, in a folder that all machines of the workspace share.

    TREADLE_KEYS/WORKSPACE/
      names.key            secret by which names of subjects become names of files
      names/DIGEST         the ids of a subject's keys, one a line, the newest last
      KEYID.key            a key: 32 bytes
      KEYID.erased         the key was destroyed; what it sealed is erased

Files are written once, mode 0600, and synced. A key without its mark of destruction may only be missing by mistake, and no reader takes its
records for erased then. A copy of a key in a backup is not destroyed with it.
"""

from treadle.keys._folder import FolderKeys, KeyStore
from treadle.keys._ring import CHECK_S, KeyRing, keys_in, ring_of

__all__ = ["CHECK_S", "FolderKeys", "KeyRing", "KeyStore", "keys_in", "ring_of"]
