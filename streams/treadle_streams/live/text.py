"""The text index: which rows a query's words are in, ranked by BM25. The only module that knows tantivy.

It holds ids and words, no texts: what a row says lies in `store.Rows`. Documents are replaced by deleting their id and adding them again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import tantivy

__all__ = ["TextIndex", "TextWriter", "stem", "words"]

_ID: Final = "id"
_TEXT: Final = "text"
_ASKED: Final = "asked"
_FACETS: Final = "facets"
_ANALYZER: Final = "treadle-words"
_HEAP_BYTES: Final = 32_000_000
_LONGEST_WORD: Final = 64
MAX_QUERY_WORDS: Final = 256
"""Different words of a query that count; the first ones."""


def words(text: str) -> list[str]:
    """The words of a text as they are indexed: lower case, without accents, English endings taken off."""
    found: list[str] = _analyzer().analyze(text)
    return found


@functools.lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """One word as it is indexed; empty where it is not."""
    found = words(word)
    return found[0] if found else ""


class TextWriter:
    """Writes a text index. Raises ValueError where another writer has it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._index = _open(folder)
        self._writer = self._index.writer(_HEAP_BYTES, 1)

    def put(self, number: int, text: str, asked: str = "", facets: Iterable[str] = ()) -> None:
        """Make this the text of a row. The words of `asked`, what it is about, count once more; `facets` are words COLUMN=VALUE that
        are looked for as they are."""
        self._writer.delete_documents_by_term(_ID, number)
        document = tantivy.Document()
        document.add_integer(_ID, number)
        document.add_text(_TEXT, text)
        document.add_text(_ASKED, asked)
        for facet in facets:
            document.add_text(_FACETS, facet)
        self._writer.add_document(document)

    def remove(self, number: int) -> None:
        """Take a row out. What it said stays in the files until they are merged, or written anew."""
        self._writer.delete_documents_by_term(_ID, number)

    def commit(self) -> None:
        """Make it visible and durable."""
        self._writer.commit()

    def rollback(self) -> None:
        """Forget what was not committed."""
        self._writer.rollback()

    def close(self) -> None:
        """Wait for merges, and let go of the lock. The writer cannot be used afterwards."""
        self._writer.wait_merging_threads()


class TextIndex:
    """Searches a text index, while it is written too. Raises ValueError where there is none."""

    def __init__(self, folder: Path) -> None:
        if not tantivy.Index.exists(str(folder)):
            raise ValueError(f"no text index in {folder}")
        self._index = _open(folder)
        self._index.config_reader("manual")

    def search(self, query: str, limit: int, facets: Mapping[str, str] | None = None) -> list[tuple[int, float]]:
        """The ids of the `limit` best rows with their scores, among those that have all `facets`, as of the last commit."""
        self._index.reload()
        schema, query_type, occur = self._index.schema, tantivy.Query, tantivy.Occur
        said = list(dict.fromkeys(words(query)))[:MAX_QUERY_WORDS]
        clauses: list[tuple[Any, Any]] = [
            (occur.Should, query_type.term_query(schema, field, word, index_option="freq"))
            for word in said
            for field in (_TEXT, _ASKED)
        ]
        if not clauses or limit < 1:
            return []
        tree = query_type.boolean_query(clauses)
        if facets:
            musts = [
                query_type.term_query(schema, _FACETS, f"{n}={v}", index_option="basic") for n, v in facets.items()
            ]
            tree = query_type.boolean_query(
                [(occur.Must, tree), *((occur.Must, query_type.const_score_query(one, 0.0)) for one in musts)]
            )
        searcher = self._index.searcher()
        hits = searcher.search(tree, limit, count=False).hits
        ids = searcher.fast_field_values(_ID, [address for _, address in hits])
        return [(int(number or 0), float(score)) for number, (score, _) in zip(ids, hits, strict=True)]

    def __len__(self) -> int:
        """How many rows it holds, as of the last commit."""
        self._index.reload()
        return int(self._index.searcher().num_docs)


def _open(folder: Path) -> Any:
    index = tantivy.Index(_schema(), path=str(folder), reuse=True)
    index.register_tokenizer(_ANALYZER, _analyzer())
    return index


def _schema() -> Any:
    builder = tantivy.SchemaBuilder()
    # not unsigned: of that type tantivy's Python side deletes nothing by term
    builder.add_integer_field(_ID, indexed=True, fast=True)
    # no positions: phrases are not asked for, and the index is a third smaller
    builder.add_text_field(_TEXT, tokenizer_name=_ANALYZER, index_option="freq")
    builder.add_text_field(_ASKED, tokenizer_name=_ANALYZER, index_option="freq")
    builder.add_text_field(_FACETS, tokenizer_name="raw", index_option="basic")
    return builder.build()


@functools.cache
def _analyzer() -> Any:
    chosen = tantivy.Filter
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    for one in (
        chosen.remove_long(_LONGEST_WORD),
        chosen.lowercase(),
        chosen.ascii_fold(),
        chosen.stemmer("english"),
    ):
        builder = builder.filter(one)
    return builder.build()
