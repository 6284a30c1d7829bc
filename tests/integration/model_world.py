"""What the tests of training share: a corpus of given rows, and a tiny random model that knows its words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treadle_corpus import CorpusWriter, Policy
from treadle_corpus.testing import SelectAll


def write_corpus(path: Path, rows: Sequence[Any]) -> Path:
    """The corpus of one version that has these rows."""
    with CorpusWriter.open(path, workspace="w", policy=Policy()) as writer:
        writer.apply(rows, {0: len(rows)}, 1000)
        writer.finish(SelectAll())
    return path


def save_model(folder: Path, conversations: Sequence[list[dict[str, Any]]]) -> Path:
    """A model folder: random weights, and a tokenizer trained on the conversations."""
    from treadle_demo.model import build_model, save, train_tokenizer

    tokenizer = train_tokenizer(conversations)
    save(build_model(tokenizer, 0), tokenizer, folder)
    return folder
