"""Padded batches out of rows that a store gives in shuffled pools: the same work for every store but treadle, which has its own reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

BATCH = 16
BLOCK = 64
"""Neighbours that are read beside each other."""
POOL_BLOCKS = 64
"""Blocks from everywhere that are mixed with each other."""
IGNORED = -100


class Rows(NamedTuple):
    """Sequences one behind the other: `ids[bounds[i]:bounds[i + 1]]`, and of each the spans (start, stop) to train on, alike."""

    ids: Any
    bounds: Any
    spans: Any
    span_bounds: Any

    def __len__(self) -> int:
        return len(self.bounds) - 1


def batches(pools: Iterator[Rows], seed: int) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    """Batches of BATCH rows of like length out of each pool, and their tokens without padding."""
    chance = np.random.RandomState(seed)
    for rows in pools:
        order = chance.permutation(len(rows))
        lengths = np.diff(rows.bounds)
        for start in range(0, len(order), BATCH * 32):
            window = order[start : start + BATCH * 32]
            window = window[np.argsort(lengths[window], kind="stable")]
            cuts = [window[at : at + BATCH] for at in range(0, len(window), BATCH)]
            for n in chance.permutation(len(cuts)):
                yield _padded(rows, cuts[n])


def pools(count: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """The blocks (start, stop) of each pool, from everywhere."""
    blocks = np.random.RandomState(seed).permutation(-(-count // BLOCK))
    for at in range(0, len(blocks), POOL_BLOCKS):
        chosen = blocks[at : at + POOL_BLOCKS].tolist()
        yield [(n * BLOCK, min((n + 1) * BLOCK, count)) for n in chosen]


def joined(parts: list[Rows]) -> Rows:
    """Pieces, one behind the other."""
    return Rows(
        np.concatenate([part.ids for part in parts]),
        _shifted([part.bounds for part in parts]),
        np.concatenate([part.spans for part in parts]),
        _shifted([part.span_bounds for part in parts]),
    )


def of_arrays(ids: list[Any], spans: list[Any]) -> Rows:
    """Rows that came one by one."""
    return Rows(
        np.concatenate(ids),
        np.concatenate([[0], np.cumsum([len(one) for one in ids])]),
        np.concatenate(spans).reshape(-1, 2),
        np.concatenate([[0], np.cumsum([len(one) // 2 for one in spans])]),
    )


def _shifted(bounds: list[Any]) -> Any:
    out, base = [np.zeros(1, np.int64)], 0
    for one in bounds:
        start = int(one[0])
        out.append(np.asarray(one[1:], np.int64) - start + base)
        base += int(one[-1]) - start
    return np.concatenate(out)


def _padded(rows: Rows, chosen: Any) -> tuple[dict[str, torch.Tensor], int]:
    starts, stops = rows.bounds[chosen], rows.bounds[chosen + 1]
    lengths = stops - starts
    width = int(lengths.max())
    ids = torch.empty((len(chosen), width), dtype=torch.int64)
    labels = torch.empty((len(chosen), width), dtype=torch.int64)
    id_rows, label_rows = ids.numpy(), labels.numpy()
    label_rows.fill(IGNORED)
    for n, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        row = id_rows[n]
        row[: stop - start] = rows.ids[start:stop]
        row[stop - start :] = 0
    firsts, lasts = rows.span_bounds[chosen].tolist(), rows.span_bounds[chosen + 1].tolist()
    for n, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        for begin, end in rows.spans[first:last].tolist():
            label_rows[n, begin:end] = id_rows[n, begin:end]
    attention = torch.from_numpy(np.arange(width) < lengths[:, None])
    return {"input_ids": ids, "labels": labels, "attention_mask": attention}, int(lengths.sum())
