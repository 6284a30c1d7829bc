"""Corpora and folders in object storage: s3://, gs://, az://.

A writer works in a folder of this machine and publishes immutable objects; a reader fetches what a version needs and reads it here.
docs/storage.md says how, and ADR 0013 why.
"""

from treadle_corpus.objects.folders import fetch_folder, publish_folder
from treadle_corpus.objects.place import Place, name_of, place_at, place_for
from treadle_corpus.objects.published import published_below
from treadle_corpus.objects.store import SCHEMES, ObjectStore, is_object_url

__all__ = [
    "SCHEMES",
    "ObjectStore",
    "Place",
    "fetch_folder",
    "is_object_url",
    "name_of",
    "place_at",
    "place_for",
    "publish_folder",
    "published_below",
]
