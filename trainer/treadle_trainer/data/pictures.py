"""Image columns: conversations with their images beside them, for trainers of vision-language models.

    PATH/tokens/images/vN-VIEW-KEY/
        meta.json       what it is made of, counts, sizes and checksums
        rows.arrow      one row a line of TRL's form: prompt and completion as JSON texts with a placeholder where each image stood, and
                        the column `images` with the bytes that the agent saw

Which tokens an image becomes depends on the processor of the model, so they are made while training. The columns lie with the token
columns: `forget` removes both, a folder appears whole and never changes, and all of it can be made again.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
from treadle_corpus import Corpus
from treadle_corpus.forms import FORMS, convert
from treadle_corpus.reader import SplitChoice
from treadle_corpus.views import VIEWS
from treadle_schemas.canonical import content_hash, dumps, loads

from treadle_trainer.data._selection import selection, side_rows
from treadle_trainer.data.columns import FOLDER, META, checksums, publish
from treadle_trainer.errors import ColumnsDamaged, ColumnsMissing

__all__ = ["ImageColumns", "ImageMeta", "build_images"]

FORMAT: Final = 1
ROWS: Final = "rows.arrow"
SCHEMA: Final = pa.schema(
    [
        ("prompt", pa.large_string()),
        ("completion", pa.large_string()),
        ("images", pa.list_(pa.large_binary())),
    ]
)
CHUNK_ROWS: Final = 256


class ImageMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What image columns are made of. `left_out` counts examples by reason, `files` maps a name to [bytes, CRC-32]."""

    format: int
    version: int
    content_hash: str
    view: str
    where: str
    split: str
    newest_rows: int | None
    rows: int
    used: int
    made: int
    lines: int
    images: int
    dropped: dict[str, int]
    left_out: dict[str, int]
    files: dict[str, tuple[int, int]]


class ImageColumns:
    """Image columns, open to read. `len()` is the number of lines; `columns[i]` is what TRL's collator takes, its images decoded."""

    def __init__(self, path: Path, meta: ImageMeta, table: Any) -> None:
        """Use `open`."""
        self.path = path
        self.meta = meta
        self._table = table

    @classmethod
    def open(cls, path: Path) -> ImageColumns:
        """Open the folder. Raises ColumnsMissing, ColumnsDamaged (a file is not as long as it was written)."""
        try:
            meta = msgspec.json.decode((path / META).read_bytes(), type=ImageMeta)
        except (FileNotFoundError, NotADirectoryError):
            raise ColumnsMissing(f"{path}: no image columns are there; make them again from the corpus") from None
        except msgspec.DecodeError as err:
            raise ColumnsDamaged(path, f"{META} cannot be read ({err})") from err
        file = path / ROWS
        size, found = meta.files.get(ROWS, (-1, 0))[0], file.stat().st_size if file.exists() else -1
        if size != found:
            raise ColumnsDamaged(path, f"{ROWS} has {found} bytes, and was written with {size}")
        with pa.memory_map(str(file)) as source:
            return cls(path, meta, pa.ipc.open_stream(source).read_all())

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return decoded(self._table.slice(place, 1).to_pylist()[0])

    def dataset(self) -> Any:
        """A `datasets.Dataset` over the mapped file, whose rows are decoded as they are read."""
        from datasets import Dataset

        found = Dataset(self._table)

        def read(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            made = [decoded(row) for row in rows]
            return {name: [row[name] for row in made] for name in batch}

        return found.with_transform(read)


def decoded(row: dict[str, Any]) -> dict[str, Any]:
    """Chats as lists, images as PIL images."""
    from PIL import Image

    return {
        "prompt": loads(row["prompt"].encode(), "prompt"),
        "completion": loads(row["completion"].encode(), "completion"),
        "images": [Image.open(io.BytesIO(data)) for data in row["images"]],
    }


def build_images(
    corpus: Corpus,
    *,
    where: str = "rewarded",
    split: SplitChoice = "train",
    newest_rows: int | None = None,
    root: Path | None = None,
) -> ImageColumns:
    """The image columns of the sft view of this version: those that are there, or else made now. Raises DataRefused, OSError.

    What TRL's form cannot say beside images is left out and counted (`image_place`, `remote_image`, `broken_image`); texts alone are lines
    without images.
    """
    chosen = selection(where)
    key = content_hash([FORMAT, corpus.version, corpus.manifest.content_hash, where, split, newest_rows])[:16]
    folder = (root or corpus.path) / FOLDER / "images" / f"v{corpus.version}-sft-{key}"
    try:
        return ImageColumns.open(folder)
    except ColumnsMissing:
        pass
    except ColumnsDamaged:  # derived data: made again
        shutil.rmtree(folder)
    assert "sft" in FORMS["trl"]
    view = VIEWS["sft"](side_rows(corpus, split, newest_rows), split=split, where=chosen)
    found = convert("trl", "sft", view)
    lines = [line for line in found.lines if "tools" not in line]
    without_tools = len(found.lines) - len(lines)

    def write(fresh: Path) -> None:
        with pa.OSFile(str(fresh / ROWS), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
            for start in range(0, len(lines), CHUNK_ROWS):
                writer.write_table(_table(lines[start : start + CHUNK_ROWS]))
        left_out = {**view.left_out, **found.left_out, **({"tools": without_tools} if without_tools else {})}
        meta = ImageMeta(
            format=FORMAT,
            version=corpus.version,
            content_hash=corpus.manifest.content_hash,
            view="sft",
            where=where,
            split=split,
            newest_rows=newest_rows,
            rows=view.rows,
            used=view.used,
            made=len(view),
            lines=len(lines),
            images=sum(len(line.get("images", ())) for line in lines),
            dropped=dict(view.dropped),
            left_out=left_out,
            files=checksums(fresh),
        )
        (fresh / META).write_bytes(msgspec.json.encode(meta))

    publish(folder, write)
    return ImageColumns.open(folder)


def _table(lines: list[dict[str, Any]]) -> Any:
    return pa.table(
        {
            "prompt": [dumps(_in_parts(line["prompt"])).decode() for line in lines],
            "completion": [dumps(_in_parts(line["completion"])).decode() for line in lines],
            "images": [line.get("images", []) for line in lines],
        },
        schema=SCHEMA,
    )


def _in_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Contents as lists of parts, as processors of images want them, also where no line of the version has an image."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m.get("content"), str) else m
        for m in messages
    ]
