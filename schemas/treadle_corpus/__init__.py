"""The corpus: graded rows in immutable, tagged versions, written exactly once. Deeplake lies behind `_store` alone, files behind `_disk`.

Importing this package is light; Deeplake is loaded when a corpus is opened.
"""

from treadle_corpus._moments import folded_offsets, workspace_of
from treadle_corpus._parts import PartRecord, read_parts
from treadle_corpus._rows import Decision, GradedRecord, decode_key, read_record
from treadle_corpus._tally import Tally, kinds_of
from treadle_corpus._tombstones import erased_episodes
from treadle_corpus._versions import read_tags, set_tag, untag
from treadle_corpus.diff import Diff, RowChange
from treadle_corpus.erasure import Erasure, VersionChange, erase, erasures
from treadle_corpus.errors import (
    BucketMissing,
    CorpusDamaged,
    CorpusError,
    CorpusFull,
    CorpusInUse,
    CorpusLocked,
    CorpusMissing,
    CorpusNewer,
    CorpusOutdated,
    CorpusUnwritable,
    ObjectDamaged,
    PolicyMismatch,
    StoreError,
    StoreRefused,
    StoreUnfit,
    StoreUnreachable,
    TagMissing,
    TagTaken,
    TargetError,
    VersionChanged,
    VersionMissing,
)
from treadle_corpus.hashing import content_hash, row_line
from treadle_corpus.lineage import RowOrigin, RowTrace, Sighting, trace_rows, trace_subject
from treadle_corpus.manifest import Manifest
from treadle_corpus.objects.place import name_of
from treadle_corpus.pass_at import pass_hat
from treadle_corpus.policy import Policy
from treadle_corpus.preview import Preview
from treadle_corpus.reader import Commit, Corpus, CorpusRow, SplitChoice, versions
from treadle_corpus.replace import Replacement, is_wanted
from treadle_corpus.retention import Kept, Pruned, prune_versions
from treadle_corpus.selector import Refusal, Selector
from treadle_corpus.target import CorpusRef, parse_ref, resolve_target
from treadle_corpus.writer import CorpusWriter

__all__ = [
    "BucketMissing",
    "Commit",
    "Corpus",
    "CorpusDamaged",
    "CorpusError",
    "CorpusFull",
    "CorpusInUse",
    "CorpusLocked",
    "CorpusMissing",
    "CorpusNewer",
    "CorpusOutdated",
    "CorpusRef",
    "CorpusRow",
    "CorpusUnwritable",
    "CorpusWriter",
    "Decision",
    "Diff",
    "Erasure",
    "GradedRecord",
    "Kept",
    "Manifest",
    "ObjectDamaged",
    "PartRecord",
    "Policy",
    "PolicyMismatch",
    "Preview",
    "Pruned",
    "Refusal",
    "Replacement",
    "RowChange",
    "RowOrigin",
    "RowTrace",
    "Selector",
    "Sighting",
    "SplitChoice",
    "StoreError",
    "StoreRefused",
    "StoreUnfit",
    "StoreUnreachable",
    "TagMissing",
    "TagTaken",
    "Tally",
    "TargetError",
    "VersionChange",
    "VersionChanged",
    "VersionMissing",
    "content_hash",
    "decode_key",
    "erase",
    "erased_episodes",
    "erasures",
    "folded_offsets",
    "is_wanted",
    "kinds_of",
    "name_of",
    "parse_ref",
    "pass_hat",
    "prune_versions",
    "read_parts",
    "read_record",
    "read_tags",
    "resolve_target",
    "row_line",
    "set_tag",
    "trace_rows",
    "trace_subject",
    "untag",
    "versions",
    "workspace_of",
]
